"""Work that is dealt out to several processes, and put together again as one process has it."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import math
import pkgutil
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import transformers
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import load_file

from llm import ranks
from llm.__main__ import act, cli, parse
from llm.data import tofu
from llm.data.authors.corpus import Authors, splits
from llm.data.muse import news_data, write_muse
from llm.models.language_model import LanguageModel
from llm.models.saving import save
from llm.models.source import load
from llm.ranks import Done, place, share, started, together
from llm.scoring.encoding import batches, encode_examples
from llm.scoring.finite import NotFinite
from llm.scoring.gradients import gradient_norms
from llm.scoring.logprobs import score_encoded, scored_in
from llm.scoring.templates import PLAIN
from llm.training.fine_tuning import fine_tune
from llm.training.loop import Optimization
from llm.writing.continuations import continuations, planned
from llm.writing.ways import WAYS
from markov.errors import InvalidInput
from markov.files import storage
from tests.llm.evaluation.test_muse import QUICK, SMALL
from tests.llm.in_two import in_two
from tests.llm.models.test_generation import MODELS, Ends
from tests.llm.scoring.test_encoding import by_bytes
from tests.llm.training.test_llm_training import llama, some
from tests.test_restarts import Counted

# --- dealing and gathering, of values ---


@given(st.integers(1, 40), st.integers(1, 9), st.booleans())
def test_every_item_is_dealt_once_and_shares_differ_by_one_at_most(
    count: int, world: int, in_step: bool
) -> None:
    dealt = [share(count, rank=rank, world=world, in_step=in_step) for rank in range(world)]
    counted = [item for part in dealt for item, counts in part if counts]
    assert sorted(counted) == list(range(count))
    sizes = [sum(counts for _, counts in part) for part in dealt]
    assert max(sizes) - min(sizes) <= 1 and max(sizes) == math.ceil(count / world)
    if in_step:  # all make as many passes, over an item that is there
        assert {len(part) for part in dealt} == {max(sizes)}
        assert all(0 <= item < count for part in dealt for item, _ in part)
    else:
        assert [len(part) for part in dealt] == sizes


def test_what_is_refused_is_what_one_process_would_have_refused_first() -> None:
    late, early = NotFinite("logp", 1.0, "late"), NotFinite("logp", 2.0, "early")
    parts = [Done(7, {0: "a"}, {4: late}), Done(7, {1: "b"}, {3: early})]
    with pytest.raises(NotFinite, match="early"):
        together(parts)
    whole = together([Done(7, {0: "a", 2: "c"}, {}), Done(7, {1: "b"}, {})])
    assert whole == {0: "a", 1: "b", 2: "c"}


def test_processes_with_other_examples_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"processes = 2 is not allowed: .* same examples"):
        together([Done(7, {0: 1.0}, {}), Done(8, {1: 2.0}, {})])


@pytest.fixture
def several(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Make a call in each of a number of processes, one after the other; return what all give.

    In the first round each process does its share. In the second it gets the shares of all.
    """

    def run(world: int, call: Any) -> list[Any]:
        monkeypatch.setenv("WORLD_SIZE", str(world))
        parts: list[Done] = []

        class Shared(Exception):
            pass

        def collecting(own: Done) -> list[Done]:
            parts.append(own)
            raise Shared

        monkeypatch.setattr(ranks, "exchanged", collecting)
        for rank in range(world):
            monkeypatch.setenv("RANK", str(rank))
            with pytest.raises(Shared):
                call()
        monkeypatch.setattr(ranks, "exchanged", lambda own: parts[:world])
        found = []
        for rank in range(world):
            monkeypatch.setenv("RANK", str(rank))
            found.append(call())
        monkeypatch.delenv("WORLD_SIZE")
        return found

    yield run


EXAMPLES = some(*((4 + number % 7, 2) for number in range(11)), seed=5)
PROMPTS = [list(one.tokens) for one in some(*((3 + number % 5, 1) for number in range(9)), seed=6)]


@pytest.mark.parametrize("world", [2, 3, 20])
def test_scores_and_norms_of_several_processes_are_the_bits_of_one(
    world: int, several: Any
) -> None:
    model = llama()
    for call in (
        lambda: score_encoded(model, EXAMPLES, budget=20, progress=False).logp,
        lambda: gradient_norms(model, EXAMPLES, budget=20, progress=False),
    ):
        want = call()
        for found in several(world, call):
            assert torch.equal(found, want)


@pytest.mark.parametrize("world", [2, 3, 20])
def test_texts_of_several_processes_are_those_of_one(world: int, several: Any) -> None:
    def call() -> list[list[int]]:
        return continuations(
            MODELS["llama"], Ends(), PROMPTS, max_new_tokens=5, budget=40, progress=False
        )

    want = call()
    assert len({tuple(text) for text in want}) > 1
    for found in several(world, call):
        assert found == want


@example(4, 3, 56)
@given(st.integers(1, 60), st.integers(1, 6), st.integers(1, 400))
def test_batches_to_write_are_dealt_evenly(count: int, world: int, budget: int) -> None:
    prompts = [[1] * (1 + row % 9) for row in range(count)]
    left = sorted(range(count), key=lambda row: -len(prompts[row]))
    plan = planned(left, prompts, 10, budget, WAYS[0], world)
    alone = planned(left, prompts, 10, budget, WAYS[0])
    assert [row for rows in plan for row in rows] == left == [row for rows in alone for row in rows]
    for rows in plan:
        assert len(rows) == 1 or len(rows) * (len(prompts[rows[0]]) + 10) <= budget
    own = [sum(map(len, plan[rank::world])) for rank in range(world)]
    if len(alone) == 1:  # nobody is idle where there are as many texts
        assert min(own) >= min(1, count // world) and max(own) <= math.ceil(count / world)


# --- every command, by two processes ---


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small models, TOFU's sets and MUSE's texts."""
    where, tokenizer = tmp_path_factory.mktemp("models"), by_bytes(words=True)
    parts = splits(Authors(authors=40, questions=4))
    sets = {
        "forget10": parts["forget10"],
        "retain90": parts["retain90"][:64],
        "real_authors_perturbed": parts["retain90"][64:72],
        "world_facts_perturbed": parts["retain90"][72:80],
    }
    for name, examples in sets.items():
        tofu.write(examples, where / f"{name}.json")
    write_muse(news_data(replace(SMALL.news, forget=10, holdout=10, retain=10)), where / "muse")
    sizes: dict[str, Any] = dict(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )
    taught = {"model": sets["forget10"] + sets["retain90"], "retrained": sets["retain90"]}
    for number, (name, examples) in enumerate(taught.items()):
        torch.manual_seed(number)
        config = transformers.LlamaConfig(
            vocab_size=len(tokenizer), max_position_embeddings=2048, **sizes
        )
        model = transformers.LlamaForCausalLM(config)
        encoded = encode_examples(tokenizer, PLAIN, examples)
        fine_tune(
            model, encoded, Optimization(epochs=3, batch=4, learning_rate=1e-2), progress=False
        )
        language = LanguageModel(model=model, tokenizer=tokenizer, template=PLAIN, name=name)
        save(language, where / name, {"seed": number})
    return where


def commands(folder: Path, *, shards: bool) -> dict[str, list[str]]:
    """Commands by the name of what they write, all with more batches than processes."""
    model, other = f"--model {folder / 'model'}", f"--retrained {folder / 'retrained'}"
    forget, retain = (folder / f"{name}.json" for name in ("forget10", "retain90"))
    teach = "--batch 6 --budget 200 --learning-rate 1e-3 --epochs 1"
    attack = f"relearn {model} --data {forget} {teach} --share 0.8"
    found = {
        "run": f"unlearn {model} --data {forget} --retain-data {retain} {teach} "
        f"--objective npo:0.2 {'' if shards else '--gradients'}",
        "relearning.parquet": f"{attack} {other} --repeats 1 --weight-decay 0.1",
        "adapters.parquet": f"{attack} --repeats 2 --which random --lora-rank 2",
        "muse": f"muse {model} --data {folder / 'muse'} {other} --unlearn npo:0.5 --piece 64 "
        f"{teach}",
        "finetuning": f"finetune {model} --data {forget} {retain} --watch {forget} {teach}",
    }
    if not shards:  # where no model is trained, none is in shards
        found["score.parquet"] = f"score {model} --data {retain} --gradients --budget 60"
        found["evaluation"] = (
            f"evaluate {model} --data {folder / 'forget10'} {other} --max-new-tokens 5 --budget 200"
        )
    return {name: words.split() for name, words in found.items()}


def all_commands(folder: Path, out: Path, *, shards: bool = False) -> None:
    """What the commands write, and how many forward passes each takes this process."""
    passes: dict[str, int] = {}
    count, read_once = [0], [0]
    forward = transformers.LlamaForCausalLM.forward

    @functools.wraps(forward)  # which places it takes is read off its signature
    def counted(self: Any, *arguments: Any, **options: Any) -> Any:
        count[0] += 1
        return forward(self, *arguments, **options)

    def once(*arguments: Any, **options: Any) -> Any:
        read_once[0] += 1
        return scored_in(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr("llm.scoring.shared.scored_in", once)
        patch.setattr(transformers.LlamaForCausalLM, "forward", counted)
        if shards:  # a prompt is read once there, and in two whole models with its answers
            patch.setattr("llm.scoring.shared.LEAST", 0)
        patch.setattr("llm.evaluation.tofu.writing_budget", lambda _: 1)
        patch.setattr("llm.evaluation.muse.writing_budget", lambda _: 1)
        patch.setattr("llm.evaluation.muse.Measuring", lambda **options: replace(QUICK, **options))
        for name, arguments in commands(folder, shards=shards).items():
            count[0] = 0
            with contextlib.redirect_stdout(io.StringIO()):
                act(parse([*arguments, "--device", "cpu", "--out", str(out / name)]))
            passes[name] = count[0]
    assert read_once[0] > 0
    (out / f"passes{place()}.json").write_text(json.dumps(passes))


# By what a command writes: what it is stopped in, after how many calls, and how many are left then.
STOPPED = {
    "score.parquet": ("llm.scoring.gradients.gradient_norms", 0, 1),
    "evaluation": ("llm.evaluation.tofu.generate", 1, 3),
    "relearning.parquet": ("llm.evaluation.relearning.relearn", 1, 1),
}


def stopped(folder: Path, out: Path) -> None:
    """What the commands write that are stopped in the middle, and given again."""
    for name, (part, after, left) in STOPPED.items():
        arguments = [*commands(folder, shards=False)[name], "--device", "cpu"]
        command = parse([*arguments, "--out", str(out / name)])
        first, then = (
            Counted(pkgutil.resolve_name(part), after + 1),
            Counted(pkgutil.resolve_name(part)),
        )
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(part, first)
                act(command)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(part, then)
                act(command)
        assert then.calls == left, part  # nothing is made twice


def all_ways(folder: str, whole: str, shards: str, again: str) -> int:
    """All commands in this process of two: with whole models first, then with models in shards."""
    from tests.llm.unlearning.test_unlearning import as_shards

    torch.set_num_threads(1)
    all_commands(Path(folder), Path(whole))
    stopped(Path(folder), Path(again))
    as_shards()
    all_commands(Path(folder), Path(shards), shards=True)
    assert started() == torch.distributed.get_world_size() == 2
    torch.distributed.destroy_process_group()
    return 0


@pytest.fixture(scope="module")
def outs(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders that one process wrote, and two."""
    names = ("one", "two", "shards", "stopped")
    found = {name: tmp_path_factory.mktemp(name) for name in names}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIMNPO_LAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        all_commands(folder, found["one"])
        paths = [str(folder), *(str(found[name]) for name in names[1:])]
        done = in_two(lambda: all_ways(*paths), tmp_path_factory.mktemp("two"), cpu=False)
        assert done.returncode == 0, done.stderr
    return found


def check_tables(found: Path, want: Path) -> None:
    mine, theirs = (storage.read_table(one) for one in (found, want))
    # Norms of gradients are not taken where the model is in shards.
    kept = [name for name in theirs if name in mine]
    pd.testing.assert_frame_equal(mine[kept], theirs[kept], rtol=1e-5, atol=1e-5)


def check_alike(found: Path, want: Path) -> int:
    """Compare all tables, texts and weights; return how many files there were."""
    files = [one for one in sorted(want.rglob("*")) if one.is_file()]
    compared = 0
    for file in files:
        other = found / file.relative_to(want)
        if file.suffix == ".parquet":
            compared += 1
            check_tables(other, file)
        if file.name == "model.safetensors":
            compared += 1
            weights = [load_file(one) for one in (other, file)]
            assert weights[0].keys() == weights[1].keys()
            for name, own in weights[0].items():
                torch.testing.assert_close(own, weights[1][name], rtol=0, atol=1e-6)
    return compared


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, name",
    [
        (kind, name)
        for kind in ("two", "shards")
        for name in commands(Path(), shards=kind == "shards")
    ],
)
def test_two_processes_write_what_one_does(kind: str, name: str, outs: dict[str, Path]) -> None:
    found, want = outs[kind] / name, outs["one"] / name
    if want.is_file():
        return check_tables(found, want)
    assert check_alike(found, want) > 0
    assert sorted(one.name for one in found.iterdir()) == sorted(one.name for one in want.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", STOPPED)
def test_what_two_processes_were_stopped_in_they_write_as_one_does(
    name: str, outs: dict[str, Path]
) -> None:
    found, want = outs["stopped"] / name, outs["one"] / name
    if want.is_file():
        return check_tables(found, want)
    assert check_alike(found, want) > 0
    assert sorted(one.name for one in found.iterdir()) == sorted(one.name for one in want.iterdir())
    assert written(found) == written(want)
    texts = [texts for name, texts in written(want).items() if "ROUGE" in name]
    assert len(texts) == 4 and all(map(any, texts))


def written(place: Path) -> dict[str, list[str | None]]:
    """The texts that a model wrote, by measure, of an evaluation."""
    logs = json.loads((place / "TOFU_EVAL.json").read_text())
    return {
        name: [own.get("generation") for own in values["value_by_index"].values()]
        for name, values in logs.items()
        if "value_by_index" in values
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", commands(Path(), shards=False))
def test_each_of_two_processes_makes_half_of_the_passes(name: str, outs: dict[str, Path]) -> None:
    (one, *_), two = (
        [json.loads(file.read_text())[name] for file in sorted(outs[kind].glob("passes*"))]
        for kind in ("one", "two")
    )
    assert len(two) == 2 and max(two) <= 0.55 * one


@pytest.mark.slow
def test_what_one_of_two_processes_refuses_is_one_line_of_both(
    folder: Path, tmp_path: Path
) -> None:
    language = load(folder / "model", device="cpu")
    data = folder / "forget10.json"
    encoded = encode_examples(language.tokenizer, PLAIN, tofu.read(data))
    order = [rows[0] for rows in batches(encoded, 1)]
    # A token that the second process alone meets, and whose place in the model is not a number.
    met = [
        {token for row in order[rank::2] for token in encoded[row].tokens[:-1]} for rank in (0, 1)
    ]
    weight: Any = language.model.get_input_embeddings().weight
    weight.data[max(met[1] - met[0])] = torch.nan
    save(language, tmp_path / "broken", {})
    words = f"score --model {tmp_path / 'broken'} --data {data} --budget 1 --device cpu"
    out = tmp_path / "scores.parquet"
    done = in_two(lambda: cli([*words.split(), "--out", str(out)]), tmp_path)
    assert done.returncode != 0 and not out.exists()
    assert done.stderr.count("error: logp = nan is not allowed: a finite number for example") == 1
