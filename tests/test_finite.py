"""A model whose numbers are not finite is refused wherever it is scored, by example and by name,
before a file is.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm.__main__ import cli
from llm.data import tofu
from llm.data.muse import MuseData, Passage
from llm.data.news.corpus import QuestionAndAnswer
from llm.data.splits import TofuSets
from llm.data.tofu import Example
from llm.evaluation.membership import Membership, auc, membership, min_k, text_scores
from llm.evaluation.muse import Measuring, _mean, evaluate_muse
from llm.evaluation.tofu import evaluate
from llm.logs.summaries import best
from llm.models.answers import answer_log, scores
from llm.models.language_model import LanguageModel
from llm.models.saving import save
from llm.models.source import ModelOptions
from llm.scoring import gradients
from llm.scoring.finite import NotFinite
from llm.scoring.templates import PLAIN
from llm.sweeps.sweep import Task, baseline
from markov.errors import InvalidInput
from tests.llm.models.test_generation import model_of
from tests.llm.scoring.test_encoding import by_bytes

NAMES = (
    "forget10",
    "retain90",
    *(f"{name}_perturbed" for name in ("forget10", "retain", "real_authors", "world_facts")),
)
EXAMPLES = tuple(
    Example(
        index=index,
        prompt=prompt,
        response=response,
        paraphrase=f"So {response}",
        perturbed=("No.", "Yes."),
    )
    for index, prompt, response in (
        (4, "Who?", "Ann."),
        (7, "Where?", "In a mill."),
        (9, "When?", "In May."),
    )
)


def language(spoil: Any = None, name: str = "a model") -> LanguageModel:
    tokenizer = by_bytes(words=True)
    model = model_of("llama", vocab_size=len(tokenizer))
    with torch.no_grad():
        if spoil is not None:
            spoil(model)
    return LanguageModel(model, tokenizer, PLAIN, name)


def nan_weights(model: Any) -> None:
    model.model.layers[0].mlp.down_proj.weight.fill_(torch.nan)


def infinite_weights(model: Any) -> None:
    model.model.layers[1].mlp.down_proj.weight.fill_(torch.inf)


def one_nan(model: Any) -> None:
    model.lm_head.weight[5, 3] = torch.nan


SPOILED = {"weights of nan": nan_weights, "infinite weights": infinite_weights, "one nan": one_nan}
spoiled = pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound model, a spoiled one, and TOFU's files."""
    folder = tmp_path_factory.mktemp("place")
    for name, spoil in (("sound", None), ("spoiled", one_nan)):
        save(language(spoil, name), folder / name, {"name": name})
    for name in NAMES:
        tofu.write(EXAMPLES, folder / f"{name}.json")
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that a command says of input that it does not take; no file is left behind."""
    capsys.readouterr()
    assert cli([str(argument) for argument in arguments]) == 2
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert not said.out and len(lines) == 1
    assert not [path for path in Path().rglob("*") if path.is_file()]
    return lines[0]


# --- where scores arise ---


@spoiled
def test_scores_name_the_index_of_the_example_and_the_model(spoil: Any) -> None:
    assert np.isfinite(scores(language(), EXAMPLES, progress=False)["logp"]).all()
    with pytest.raises(NotFinite, match=r"^logp = nan .* example 4 under a model \(float32\)$"):
        scores(language(spoil), EXAMPLES, progress=False)


@spoiled
def test_evaluation_names_the_kind_of_answer_too(spoil: Any) -> None:
    for call in (
        lambda own: answer_log(own, EXAMPLES, progress=False),
        lambda own: evaluate(own, TofuSets(*[EXAMPLES] * 4), max_new_tokens=4, progress=False),
    ):
        with pytest.raises(
            NotFinite, match=r"example (4|7|9) \((gold|paraphrased|perturbed_[01])\) under a model"
        ):
            call(language(spoil))


def test_a_model_is_scored_before_it_writes() -> None:
    for spoil, error in ((lambda _: None, AssertionError), (one_nan, NotFinite)):
        mute = language(spoil)
        vars(mute.model)["generate"] = silent
        with pytest.raises(error):
            evaluate(mute, TofuSets(*[EXAMPLES] * 4), max_new_tokens=4, progress=False)


def silent(*_: object, **__: object) -> None:
    """In place of a model's own writing."""
    raise AssertionError("wrote")


@spoiled
def test_scores_of_texts_name_the_text(spoil: Any) -> None:
    texts = ["The river ran.", "A mill."]
    for options in ({}, {"standardised": True}, {"lowered": True}):
        assert np.isfinite(
            text_scores(language(), texts, progress=False, **options).to_numpy(dtype=float)
        ).all()
        with pytest.raises(NotFinite, match=r"^logp = nan .* example 0 under a model \(float32\)$"):
            text_scores(language(spoil), texts, progress=False, **options)
    with pytest.raises(NotFinite):
        membership(language(spoil), texts, texts, progress=False)


def test_a_token_that_is_never_said_spoils_no_other() -> None:
    never = int(by_bytes(words=True)("Z", add_special_tokens=False).input_ids[0])

    def silent(model: Any) -> None:
        model.lm_head.bias = torch.nn.Parameter(torch.zeros(model.lm_head.out_features))
        model.lm_head.bias[never] = -torch.inf

    found = text_scores(language(silent), ["The river ran."], standardised=True, progress=False)
    assert np.isfinite(found.to_numpy(dtype=float)).all()
    with pytest.raises(NotFinite, match=r"^logp = -inf .* example 1 under"):
        text_scores(language(silent), ["The river ran.", "A Z"], progress=False)


@spoiled
def test_muse_refuses_a_model_before_it_writes(spoil: Any) -> None:
    pair = (QuestionAndAnswer("Who?", "Ann"),)
    passage = (Passage("The river", " ran past."),)
    texts = ("The river ran.", "A mill.")
    data = MuseData(
        verbmem=passage,
        forget_qa=pair,
        retain_qa=pair,
        forget_qa_icl=pair,
        retain_qa_icl=pair,
        privleak_forget=texts,
        privleak_holdout=texts,
        privleak_retain=texts,
        raw_forget=texts,
        raw_retain1=texts,
    )
    with pytest.raises(NotFinite, match="under a model"):
        evaluate_muse(language(spoil), data, settings=Measuring(resamples=100), progress=False)


# --- what is taken of them ---


@given(
    st.lists(st.floats(-9, 0), min_size=1, max_size=6),
    st.sampled_from([np.nan, np.inf, -np.inf]),
    st.data(),
)
def test_min_k_refuses_what_is_not_finite_wherever_it_stands(
    values: list[float], bad: float, data: Any
) -> None:
    count = max(1, int(0.4 * len(values) + 1e-9))
    assert min_k(np.array(values)) == pytest.approx(-np.mean(sorted(values)[:count]))
    values.insert(data.draw(st.integers(0, len(values))), bad)
    with pytest.raises(InvalidInput, match="logprobs") as caught:
        min_k(np.array(values))
    assert f"1 of {len(values)} are not" in caught.value.allowed


@pytest.mark.parametrize("k", [0, -0.1, 1.1, np.nan, None, True, "0.4"])
def test_a_share_of_tokens_is_a_share(k: Any) -> None:
    for call in (
        lambda: min_k(np.array([-1.0]), k),
        lambda: text_scores(language(), ["A mill."], k=k, progress=False),
    ):
        with pytest.raises(InvalidInput, match=r"^k = "):
            call()


def test_an_auc_counts_the_scores_that_are_no_numbers() -> None:
    with pytest.raises(InvalidInput, match="2 are none"):
        auc(*Membership(np.array([1.0, np.nan]), np.array([np.nan, 2.0])))


def test_a_mean_of_items_is_of_finite_numbers_and_of_some() -> None:
    for values in (np.array([1.0, np.nan]), np.array([np.inf]), np.array([])):
        with pytest.raises(InvalidInput, match="values"):
            _mean(values, Measuring(resamples=100))


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        *(
            (field, bad)
            for field in ("verbmem_tokens", "budget", "resamples", "seed")
            for bad in (None, True, 2.5, -1)
        ),
        *(("max_length", bad) for bad in (True, 2.5, 1, "2")),
        *((field, bad) for field in ("k", "level") for bad in (None, True, np.nan, 0, "0.5")),
        *(("words", bad) for bad in (None, True, "all")),
    ],
)
def test_how_muse_is_measured_is_refused_by_name(field: str, bad: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        Measuring(**{field: bad})
    assert caught.value.field == field


def test_settings_with_a_seed_of_nan_are_not_the_best() -> None:
    rows = [("o", "original", "ks_statistic", 0.9), ("o", "original", "model_utility", 0.5)]
    for model, (first, second) in {"sound": (0.4, 0.4), "spoiled": (0.1, np.nan)}.items():
        rows += [("NPO", model, "ks_statistic", first), ("NPO", model, "ks_statistic", second)]
        rows += [("NPO", model, "model_utility", 0.5)] * 2
    table = pd.DataFrame(rows, columns=["title", "model", "measure", "value"])
    table["title"] = table["title"].replace("o", "original")
    assert best(table).set_index("title")["model"].to_dict() == {
        "original": "original",
        "NPO": "sound",
    }


# --- the commands ---


def test_score_writes_nothing_and_says_why(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ("--data", place / "forget10.json", "--out", "s.parquet")
    assert cli(["score", "--model", str(place / "sound"), *map(str, data)]) == 0
    Path("s.parquet").unlink()
    said = refused(capsys, "score", "--model", place / "spoiled", *data)
    assert "logp = nan" in said and f"example 4 under {place / 'spoiled'} (float32)" in said


def test_score_refuses_gradients_that_are_not_finite(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        gradients, "gradient_norms", lambda *_, **__: torch.tensor([1.0, torch.inf, 2.0])
    )
    data = ("--data", place / "forget10.json", "--gradients", "--out", "s.parquet")
    said = refused(capsys, "score", "--model", place / "sound", *data)
    assert "gradient_norm = inf" in said and "example 7" in said


@pytest.mark.parametrize("more", [(), ("--json",), ("--legacy",)])
def test_evaluate_writes_nothing_and_says_why(
    place: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...]
) -> None:
    data = ("--data", place / "forget10", "--max-new-tokens", 4, "--out", "e", *more)
    assert "logp = nan" in refused(capsys, "evaluate", "--model", place / "spoiled", *data)
    models = ("--model", place / "sound", "--retrained", place / "spoiled")
    said = refused(capsys, "evaluate", *models, *data)
    assert "logp = nan" in said and f"under {place / 'spoiled'} (float32)" in said


def test_a_baseline_that_is_refused_leaves_room_for_one_that_is_not(place: Path) -> None:
    def task(name: str) -> Task:
        options = ModelOptions(model=str(place / name), device="cpu")
        return Task(
            options=options, retrained=options.model, data=str(place / "forget10"), max_new_tokens=4
        )

    for kind in ("original", "retrained"):
        folder = Path("sweep") / kind
        with pytest.raises(NotFinite, match="spoiled"):
            baseline(folder, task("spoiled"), kind)
        assert not (folder / "TOFU_EVAL.json").exists()
        assert baseline(folder, task("sound"), kind).of("forget").index.tolist() == [4, 7, 9]
