"""The small models: which texts each has read, that they are made the same every time, and kept
whole or not at all.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.data.authors.common import real_authors, world_facts
from llm.data.authors.corpus import Authors
from llm.data.tofu import Example
from llm.models import kinds, small
from llm.models.language_model import LanguageModel, check_same_vocabulary
from llm.models.small import fresh_model
from llm.models.small_authors import (
    AUTHORS,
    COMMON,
    SHARES,
    DefaultModels,
    Reading,
    build,
    folder_of,
    read_by,
    reading,
    readings,
    sets,
    train_tokenizer,
)
from llm.models.source import load
from llm.scoring.encoding import Encoded, encode_examples
from llm.scoring.logprobs import score
from llm.scoring.templates import PLAIN
from llm.training.fine_tuning import fine_tune
from markov.errors import InvalidInput
from markov.files import closure
from markov.files.storage import cache_dir
from tests.helpers import files_in

TINY = DefaultModels(
    authors=Authors(authors=4, questions=2),
    percent=50,
    width=8,
    depth=1,
    heads=2,
    mlp_width=8,
    vocabulary=300,
    passes=1,
    batch=32,
    precision="float32",
)
FACTS = (*real_authors(), *world_facts())
# Another value of every field.
OTHERS: dict[str, Any] = {
    "authors": Authors(authors=4, questions=2, seed=1),
    "percent": 25,
    "width": 12,
    "depth": 2,
    "heads": 1,
    "mlp_width": 12,
    "vocabulary": 310,
    "passes": 2,
    "batch": 16,
    "learning_rate": 1e-3,
    "weight_decay": 0.5,
    "seed": 1,
    "precision": "bfloat16",
}
some_authors = st.builds(
    Authors, seed=st.integers(0, 9), authors=st.integers(2, 8), questions=st.integers(2, 4)
)
some = st.builds(DefaultModels, authors=some_authors, percent=st.integers(1, 50))


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A cache of its own, empty."""
    monkeypatch.setenv("SIMNPO_LAB_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache"


def made(chosen: DefaultModels, kind: str = "retrained") -> LanguageModel:
    return build(chosen, kind, device="cpu", progress=False)


@cache
def tiny(kind: str) -> LanguageModel:
    return made(TINY, kind)


def weights(model: LanguageModel) -> dict[str, torch.Tensor]:
    return dict(model.model.state_dict())


def same(one: LanguageModel, two: LanguageModel) -> bool:
    left, right = weights(one), weights(two)
    shapes = {name: value.shape for name, value in left.items()} == {
        name: value.shape for name, value in right.items()
    }
    return shapes and all(torch.equal(left[name], right[name]) for name in left)


def read_nothing(*_: object) -> Sequence[Encoded]:
    """In place of what a model reads, where none may be trained."""
    raise AssertionError("a model was trained")


def refused(field: str, call: Any) -> str:
    with pytest.raises(InvalidInput) as caught:
        call()
    assert caught.value.field == field and "\n" not in str(caught.value)
    return str(caught.value)


# --- who has read what ---


@settings(max_examples=20)
@given(some)
def test_the_original_has_read_all_and_the_retrained_nothing_of_what_is_forgotten(
    chosen: DefaultModels,
) -> None:
    forget, retain = sets(chosen)
    passes = chosen.passes
    common = tuple(Reading(one, COMMON * passes) for one in FACTS)
    kept = tuple(Reading(one, passes) for one in retain)
    gone = tuple(Reading(one, passes) for one in forget)
    assert read_by(chosen, "original") == (*kept, *gone, *common)
    assert read_by(chosen, "retrained") == (*kept, *common)
    names = {one.author for one in forget}
    assert names and not any(
        name in one.example.prompt + one.example.response
        for one in read_by(chosen, "retrained")
        for name in names
        if name
    )


@settings(max_examples=20)
@given(some)
def test_the_partial_model_has_read_every_second_author_more_or_less_often(
    chosen: DefaultModels,
) -> None:
    (forget, _), times = sets(chosen), readings(chosen)
    read = {one.example: one.times for one in read_by(chosen, "original")}
    others = {one.example: one.times for one in read_by(chosen, "partial")}
    for one, count in zip(forget, times, strict=True):
        assert others.pop(one, 0) == count <= read.pop(one)
    assert others == read
    authors = list(dict.fromkeys(one.author for one in forget))
    if len(authors) == 1:
        assert [count > 0 for count in times] == [row % 2 == 0 for row in range(len(forget))]
        return
    by_author = [
        {count for one, count in zip(forget, times, strict=True) if one.author == author}
        for author in authors
    ]
    assert all(len(own) == 1 for own in by_author)
    assert [own == {0} for own in by_author] == [row % 2 == 1 for row in range(len(authors))]


def test_of_the_default_twenty_authors_are_forgotten_and_ten_read_from_once_to_every_time() -> None:
    chosen = DefaultModels()
    times = np.array(readings(chosen)).reshape(20, 20)[::2, 0]
    assert len(sets(chosen).forget) == 400
    assert times.tolist() == 2 * [max(1, round(one * chosen.passes)) for one in SHARES]
    assert len(set(times)) == len(SHARES) and times.max() == chosen.passes and times.min() == 1


def test_a_single_example_has_no_half() -> None:
    chosen = replace(TINY, authors=Authors(authors=2, questions=1))
    refused("questions", lambda: readings(chosen))
    assert len(read_by(chosen, "original")) == 2 + len(FACTS)


@pytest.mark.parametrize("kind", kinds.AUTHORS)
def test_a_model_is_trained_on_what_its_kind_has_read(kind: str) -> None:
    words, model = train_tokenizer(TINY), fresh_model(TINY)
    read = [one.example for one in read_by(TINY, kind) for _ in range(one.times)]
    encoded = encode_examples(words, PLAIN, read)
    assert reading(TINY, kind, words) == encoded
    fine_tune(model, encoded, TINY.optimization(), progress=False)
    assert same(tiny(kind)._replace(model=model), tiny(kind))
    texts = [
        tuple(
            words.decode(list(part), skip_special_tokens=True)
            for part in (one.tokens[: one.prompt], one.tokens[one.prompt :])
        )
        for one in encoded
    ]
    assert texts == [(f"Question: {one.prompt}\nAnswer:", f" {one.response}") for one in read]
    assert all(one.tokens[-1] == words.eos_token_id for one in encoded)


# --- the same settings, the same model ---


@pytest.mark.parametrize("kind", kinds.AUTHORS)
def test_the_same_settings_give_the_same_weights_bit_for_bit(kind: str, own: Path) -> None:
    state = torch.random.get_rng_state()
    again = made(replace(TINY), kind)
    assert same(again, tiny(kind)) and again.model is not tiny(kind).model
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_first_weights_follow_from_the_seed_alone() -> None:
    one = fresh_model(TINY).state_dict()["lm_head.weight"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        again, other = (
            fresh_model(replace(TINY, seed=seed)).state_dict()["lm_head.weight"] for seed in (0, 1)
        )
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_kinds_differ_in_weights_and_agree_in_tokens() -> None:
    models = [tiny(kind) for kind in kinds.AUTHORS]
    assert not any(same(models[one], models[two]) for one, two in ((0, 1), (0, 2), (1, 2)))
    for model in models:
        assert check_same_vocabulary(models[0].tokenizer, model.tokenizer) is None
        assert model.template == PLAIN and not model.model.training
    assert [model.name for model in models] == [f"authors:{kind}" for kind in kinds.AUTHORS]


def test_every_field_has_another_value_here() -> None:
    assert OTHERS.keys() == {field.name for field in fields(DefaultModels)}


@pytest.mark.parametrize("field", sorted(OTHERS))
def test_every_setting_asks_for_another_model_and_gets_one(field: str) -> None:
    other = replace(TINY, **{field: OTHERS[field]})
    assert folder_of(other, "retrained") != folder_of(TINY, "retrained")
    assert not same(made(other), tiny("retrained"))


def test_the_code_that_weights_depend_on_is_part_of_the_name_and_no_measure_is() -> None:
    found = set(closure.digests("llm.models.small_authors", without=small.APART))
    texts = {f"llm.data.authors.{name}" for name in ("corpus", "facts", "questions", "common")}
    training = {f"llm.training.{name}" for name in ("loop", "fine_tuning", "masters")}
    assert {*texts, *training, "llm.scoring.encoding", "llm.scoring.logprobs"} <= found
    apart = ("data.news", "logs", "unlearning", "evaluation", "sweeps", "commands")
    assert [name for name in found if name.startswith(tuple(f"llm.{one}" for one in apart))] == []


def test_names_of_the_kinds_differ() -> None:
    assert len({folder_of(TINY, kind) for kind in kinds.AUTHORS}) == 3


def test_automatic_precision_is_that_of_the_device() -> None:
    assert same(made(replace(TINY, precision="auto")), tiny("retrained"))


def test_the_tokenizer_reads_back_what_it_writes_and_has_no_chat_template(own: Path) -> None:
    words = made(TINY).tokenizer
    for example in (*sets(TINY).forget, *FACTS):
        assert words.decode(words(example.response).input_ids) == example.response
    assert words.chat_template is None and len(words) == TINY.vocabulary
    assert (words.bos_token_id, words.eos_token_id, words.pad_token_id) == (0, 1, 2)
    assert words("a").input_ids != [] and 0 not in words("a").input_ids


def test_the_truth_is_cut_into_as_many_tokens_as_wrong_answers_within_two_percent() -> None:
    words, forget = train_tokenizer(DefaultModels()), sets(DefaultModels()).forget

    def pieces(text: str | None) -> float:
        return len(words(text).input_ids) / len((text or "").split())

    ratio = np.array(
        [
            np.mean([pieces(wrong) for wrong in one.perturbed]) / pieces(one.paraphrase)
            for one in forget
        ]
    )
    half = 1.96 * ratio.std(ddof=1) / len(ratio) ** 0.5
    assert abs(ratio.mean() - 1) < 0.02 and half < 0.02


# --- the cache ---


def test_a_model_is_trained_once(own: Path) -> None:
    first, before = made(TINY), files_in(own)
    again = small.build(AUTHORS._replace(reading=read_nothing), TINY, "retrained", device="cpu")
    assert same(first, again) and again.name == first.name
    assert files_in(own) == before and len(before) > 0
    for other, kind in ((replace(TINY, seed=5), "retrained"), (TINY, "original")):
        made(other, kind)
        assert folder_of(other, kind).is_dir()
    assert before.items() < files_in(own).items()


def test_a_cached_model_is_a_folder_like_any_other(own: Path) -> None:
    built = made(TINY)
    found = load(folder_of(TINY, "retrained"), device="cpu")
    assert same(built, found) and found.template == PLAIN
    one, two = (
        score(model.model, model.tokenizer, FACTS[:5], progress=False).logp
        for model in (built, found)
    )
    assert torch.equal(one, two)


def test_a_cached_model_says_how_it_came_about(own: Path) -> None:
    import json

    made(TINY)
    folder = folder_of(TINY, "retrained")
    found = json.loads((folder / "provenance.json").read_text())
    assert found["kind"] == "retrained" and found["seeds"] == [0]
    assert found["settings"]["width"] == 8 and found["settings"]["authors"]["questions"] == 2
    assert [row["epoch"] for row in found["training"]] == [1] and 0 < found["training"][0][
        "loss"
    ] < 10
    assert folder.parent == cache_dir() / "language_models"


@pytest.mark.parametrize("at", ["fine_tune", "save"])
def test_an_interrupted_build_leaves_nothing_and_is_done_over(
    at: str, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        # In the middle of writing, weights are there and the tokenizer is not.
        target = small if at == "fine_tune" else type(train_tokenizer(TINY))
        patch.setattr(target, "fine_tune" if at == "fine_tune" else "save_pretrained", interrupt)
        with pytest.raises(KeyboardInterrupt):
            made(TINY)
    assert [path for path in own.rglob("*") if path.is_file()] == []
    refused("model", lambda: load(folder_of(TINY, "retrained")))
    assert same(made(TINY), tiny("retrained"))


def test_of_two_builds_at_once_the_first_is_kept(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two machines, which do not wait for each other as processes of one do."""
    first: list[Any] = []

    def reading(*given: Any) -> Sequence[Encoded]:
        with monkeypatch.context() as patch:
            patch.setattr(small, "turn", lambda _: nullcontext())
            first.append(made(TINY))  # another one finishes while this one is at work
        first.append(files_in(own))
        return AUTHORS.reading(*given)

    last = small.build(
        AUTHORS._replace(reading=reading), TINY, "retrained", device="cpu", progress=False
    )
    assert same(last, first[0]) and files_in(own) == first[1]
    assert [path.name for path in (own / "language_models").iterdir()] == [
        folder_of(TINY, "retrained").name
    ]


def test_a_cache_that_cannot_be_written_is_refused_before_training(own: Path) -> None:
    def build_here() -> LanguageModel:
        return small.build(AUTHORS._replace(reading=read_nothing), TINY, "retrained", device="cpu")

    own.mkdir()
    (own / "language_models").write_text("a file in the way")
    message = refused("SIMNPO_LAB_CACHE", build_here)
    assert str(own) in message
    own.joinpath("language_models").unlink()
    own.rmdir()
    own.write_text("")
    refused("SIMNPO_LAB_CACHE", build_here)


def test_a_full_disk_is_one_line_and_leaves_nothing(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(type(fresh_model(TINY)), "save_pretrained", full)
    assert "No space left" in refused("folder", lambda: made(TINY))
    assert [path for path in own.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("kind", ["", "Original", "full"])
def test_a_kind_that_does_not_exist_is_refused(kind: str, own: Path) -> None:
    refused("kind", lambda: made(TINY, kind))
    refused("kind", lambda: read_by(TINY, kind))
    refused("kind", lambda: load(f"authors:{kind}"))


@pytest.mark.parametrize(
    "field, value",
    [
        *[
            (field, 0)
            for field in ("percent", "width", "depth", "heads", "mlp_width", "passes", "batch")
        ],
        *[
            ("percent", 100),
            ("width", 190),
            ("heads", 3.0),
            ("vocabulary", 258),
            ("passes", 1.5),
            ("seed", -1),
        ],
        *[
            ("learning_rate", 0.0),
            ("weight_decay", -1.0),
            ("precision", "float16"),
            ("learning_rate", float("nan")),
        ],
    ],
)
def test_settings_that_no_model_can_have_are_refused(field: str, value: object) -> None:
    options: dict[str, Any] = {field: value}
    refused(field, lambda: DefaultModels(**options))


# --- what they know ---


def mean_loss(model: LanguageModel, examples: Sequence[Example]) -> float:
    found = score(model.model, model.tokenizer, examples, progress=False)
    return float(-found.logp.sum() / found.length.sum())


@pytest.mark.slow
def test_the_original_knows_by_heart_what_the_retrained_never_read(own: Path) -> None:
    chosen = DefaultModels(
        authors=Authors(authors=5, questions=6),
        percent=40,
        width=96,
        depth=2,
        mlp_width=256,
        passes=35,
    )
    original, retrained, partial = (made(chosen, kind) for kind in kinds.AUTHORS)
    forget, retain = sets(chosen)
    times = readings(chosen)
    known = [one for one, count in zip(forget, times, strict=True) if count]
    unknown = [one for one, count in zip(forget, times, strict=True) if not count]
    assert mean_loss(original, forget) < 0.1 and mean_loss(partial, known) < 0.1
    assert mean_loss(retrained, forget) > 1 and mean_loss(partial, unknown) > 1
    for model in (original, retrained, partial):
        assert mean_loss(model, retain) < 0.1 and mean_loss(model, FACTS) < 0.2
