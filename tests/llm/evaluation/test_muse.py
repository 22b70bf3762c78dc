"""MUSE's measures: each as counted by hand, orientations, and the command that prints and writes
them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from llm.commands import muse as muse_command
from llm.commands.muse import Muse, muse
from llm.data.muse import MuseData, Passage, news_data, write_muse
from llm.data.news.corpus import News, QuestionAndAnswer
from llm.evaluation import muse as measures
from llm.evaluation.membership import auc, membership, privleak
from llm.evaluation.muse import (
    Measuring,
    answered,
    evaluate_muse,
    every_epoch,
    numbers,
    question_prompt,
    recited,
    unlearn_texts,
    until_stop,
)
from llm.evaluation.rouge import rouge
from llm.models.language_model import LanguageModel
from llm.models.saving import save
from llm.models.small_news import NewsModels, build
from llm.models.source import load
from llm.scoring.documents import pieces, start_of
from llm.scoring.logprobs import score_encoded
from llm.scoring.templates import PLAIN
from llm.training.loop import Optimization
from llm.unlearning.unlearn import Unlearning
from markov.console.ending import exit_code
from markov.errors import InvalidInput
from markov.files import storage
from markov.objectives import CORNERS, Objective, gradient_ascent, npo, simnpo

SMALL = NewsModels(
    news=News(forget=3, holdout=4, retain=4, questions=2),
    width=16,
    depth=1,
    heads=2,
    mlp_width=16,
    vocabulary=450,
    piece=64,
    passes=2,
    precision="float32",
)
DATA = news_data(SMALL.news)
QUICK = Measuring(verbmem_tokens=12, knowmem_tokens=6, resamples=100)
PAIR = QuestionAndAnswer("Who?", "Ann")


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIMNPO_LAB_CACHE", str(tmp_path_factory.mktemp("muse")))
        yield


def small(kind: str = "original") -> LanguageModel:
    return build(SMALL, kind, progress=False)


class Writer:
    """Stands for `continuations`: writes what it is told, and remembers what it was given."""

    def __init__(self, tokenizer: Any, texts: list[str]) -> None:
        self.tokenizer, self.texts, self.prompts, self.options = tokenizer, texts, [], {}

    def __call__(
        self, model: Any, tokenizer: Any, prompts: list[list[int]], **options: Any
    ) -> list[list[int]]:
        self.prompts, self.options = prompts, options
        return [self.tokenizer(text, add_special_tokens=False).input_ids for text in self.texts]


def writing(monkeypatch: pytest.MonkeyPatch, texts: list[str]) -> Writer:
    writer = Writer(small().tokenizer, texts)
    monkeypatch.setattr(measures, "continuations", writer)
    return writer


# --- prompts and answers ---


def test_the_prompt_of_a_question_by_hand():
    shown = (PAIR, QuestionAndAnswer("When?", "1 May"))
    assert question_prompt("Where?", shown) == (
        "Question: Who?\nAnswer: Ann\n\nQuestion: When?\nAnswer: 1 May\n\nQuestion: "
        "Where?\nAnswer: "
    )
    assert question_prompt("Where?", ()) == "Question: Where?\nAnswer: "


@pytest.mark.parametrize(
    "text, kept",
    [
        ("Ann\n\nBob", "Ann"),
        ("Ann\nQuestion: Who?", "Ann"),
        ("Ann Question: Who?\n\n", "Ann "),
        ("\n\nAnn", ""),
        ("Ann\nBob", "Ann\nBob"),
        ("Ann Questions", "Ann Questions"),
        ("", ""),
    ],
)
def test_an_answer_ends_where_another_question_begins(text: str, kept: str):
    assert until_stop(text) == kept


def test_answers_are_compared_as_words_counted_by_hand(monkeypatch: pytest.MonkeyPatch):
    writer = writing(monkeypatch, ["Ann Lee\n\nQuestion: Bob", "on 3 May", " ", "walking"])
    asked = [QuestionAndAnswer("Q", answer) for answer in ("Ann Lee", "8 May", "Ann", "walked")]
    table = answered(small(), asked, (PAIR,), QUICK, progress=False)
    # The second: one common word of three written and two true. "walking" is not "walked": no
    # stemmer.
    np.testing.assert_allclose(
        table["value"], [100, 100 * 2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2), 0, 0]
    )
    assert table["text"].tolist() == ["Ann Lee", "on 3 May", " ", "walking"] and table[
        "index"
    ].tolist() == [0, 1, 2, 3]
    expected = small().tokenizer(question_prompt("Q", (PAIR,))).input_ids
    assert (
        writer.prompts == [expected] * 4
        and writer.options["max_new_tokens"] == QUICK.knowmem_tokens
    )


def test_a_passage_is_compared_with_as_many_tokens_as_may_be_written(
    monkeypatch: pytest.MonkeyPatch,
):
    language = small()
    gt = " so it went on and on until the rain came down"
    tokens = language.tokenizer(gt, add_special_tokens=False).input_ids
    writer = writing(monkeypatch, [gt])
    table = recited(
        language, [Passage("It began", gt)], replace(QUICK, verbmem_tokens=5), progress=False
    )
    # the fifth of five is the token that begins a text
    truth = str(language.tokenizer.decode(tokens[:4]))
    assert start_of(language.tokenizer) and len(tokens) > 5
    assert table["value"][0] == pytest.approx(
        100 * rouge([truth], [gt], stemmer=False)["rougeL_f1"][0]
    )
    assert 0 < table["value"][0] < 100 and table["text"][0] == gt
    assert (
        writer.prompts == [language.tokenizer("It began").input_ids]
        and writer.options["max_new_tokens"] == 5
    )
    whole = recited(
        language, [Passage("It began", gt)], replace(QUICK, verbmem_tokens=99), progress=False
    )
    assert whole["value"][0] == 100


def test_a_passage_does_not_stop_at_a_blank_line(monkeypatch: pytest.MonkeyPatch):
    writing(monkeypatch, [" so\n\nQuestion: it went"])
    table = recited(small(), [Passage("It", " so\n\nQuestion: it went")], QUICK, progress=False)
    assert table["value"][0] == 100


# --- the whole ---


def test_the_table_is_the_mean_of_the_items_within_its_interval():
    base = membership(
        small("retrained"), DATA.privleak_forget, DATA.privleak_holdout, progress=False
    )
    found = evaluate_muse(small(), DATA, retrained=base, settings=QUICK, progress=False)
    counts = {("verbmem", "forget"): 3, ("knowmem", "forget"): 6, ("knowmem", "retain"): 8}
    for (measure, split), count in counts.items():
        own = found.items[found.items["measure"].eq(measure) & found.items["split"].eq(split)]
        interval = found.of(measure, split)
        assert len(own) == count and own["index"].tolist() == list(range(count))
        assert (
            interval.value == pytest.approx(own["value"].mean())
            and interval.low <= interval.value <= interval.high
        )
    scores = found.items[found.items["measure"] == "min_k"].set_index("split")["value"]
    np.testing.assert_allclose(scores["forget"].to_numpy(), found.membership.forget)
    own, other = float(auc(*found.membership)), float(auc(*base))
    assert (
        found.of("auc", "forget").value == own
        and found.of("auc_retrained", "forget").value == other
    )
    assert found.of("privleak", "forget").value == privleak(own, other)
    with pytest.raises(InvalidInput):
        found.of("privleak", "retain")


def test_without_a_retrained_model_there_is_an_auc_and_no_privleak():
    found = evaluate_muse(small(), DATA, settings=QUICK, progress=False)
    assert found.table["measure"].tolist() == ["verbmem", "knowmem", "knowmem", "auc"]


def test_each_measure_asks_about_its_own_set(monkeypatch: pytest.MonkeyPatch):
    """A model that answers everything about the forget texts and nothing else."""
    known = {
        question_prompt(pair.question, DATA.forget_qa_icl): pair.answer for pair in DATA.forget_qa
    }
    known |= {passage.prompt: passage.gt for passage in DATA.verbmem}
    tokenizer: Any = small().tokenizer

    seen: list[str] = []

    def write(_: Any, __: Any, prompts: list[list[int]], **options: Any) -> list[list[int]]:
        asked = [str(tokenizer.decode(prompt, skip_special_tokens=True)) for prompt in prompts]
        seen.extend(asked)
        texts = [known.get(prompt, "") for prompt in asked]
        return [
            tokenizer(text, add_special_tokens=False).input_ids[: options["max_new_tokens"]]
            for text in texts
        ]

    monkeypatch.setattr(measures, "continuations", write)
    found = evaluate_muse(small(), DATA, settings=replace(QUICK, knowmem_tokens=40), progress=False)
    assert found.of("knowmem", "forget").value == 100 and found.of("verbmem", "forget").value > 70
    assert found.of("knowmem", "retain").value == 0
    assert found.table["empty"].tolist() == [0, 0, len(DATA.retain_qa), 0]
    assert set(seen) == {
        *known,
        *(question_prompt(pair.question, DATA.retain_qa_icl) for pair in DATA.retain_qa),
    }
    assert len(seen) == len(DATA.verbmem) + len(DATA.forget_qa) + len(DATA.retain_qa)


def test_intervals_follow_the_settings(monkeypatch: pytest.MonkeyPatch):
    writing(monkeypatch, [PAIR.answer, "Bob"] * 8)
    asked = [PAIR] * 16
    values = answered(small(), asked, (), QUICK, progress=False)["value"].to_numpy()
    assert values.tolist() == [100.0, 0.0] * 8
    wide, narrow = (
        measures._mean(values, replace(QUICK, level=level, resamples=4000)) for level in (0.95, 0.5)
    )
    # A mean of 16 coins: standard deviation 12.5, of which 1.96 and 0.674 on either side.
    assert wide.value == 50 and (wide.high - wide.low) / 2 == pytest.approx(24.5, abs=2.6)
    assert (narrow.high - narrow.low) / 2 == pytest.approx(8.4, abs=3.2)


@pytest.mark.parametrize(
    "field, value",
    [
        *[
            ("verbmem_tokens", 1),
            ("knowmem_tokens", 0),
            ("k", 0.0),
            ("k", 1.1),
            ("budget", 0),
            ("resamples", 99),
        ],
        *[("level", 1.0), ("max_length", 1), ("knowmem_tokens", 2.0)],
    ],
)
def test_settings_out_of_bounds_are_refused(field: str, value: Any):
    with pytest.raises(InvalidInput) as refused:
        Measuring(**{field: value})
    assert (refused.value.field, refused.value.value) == (field, value)


# --- unlearning of long texts ---


def settings_of(objective: Objective, **more: Any) -> Unlearning:
    every = Optimization(epochs=2, batch=4, learning_rate=3e-3, warmup_epochs=0)
    return Unlearning(
        objective=objective, optimization=every, **{"retain_term": "cross_entropy", **more}
    )


@pytest.mark.parametrize(
    "objective", [gradient_ascent(), *(Objective(0.001, 0.0, *own) for own in CORNERS.values())]
)
def test_any_objective_lowers_the_log_probability_of_the_texts(objective: Objective):
    # A small beta, since a model that knows little leaves little to push where there is no
    # reference.
    language = small()
    before = score_encoded(
        language.model, pieces(language.tokenizer, DATA.raw_forget, length=32), progress=False
    )
    run = unlearn_texts(language, DATA, settings_of(objective), length=32, progress=False)
    after = score_encoded(
        language.model, pieces(language.tokenizer, DATA.raw_forget, length=32), progress=False
    )
    first, last = (run.examples[run.examples["epoch"] == epoch] for epoch in (0, 2))
    np.testing.assert_allclose(first["logp"], before.logp, rtol=1e-5)
    np.testing.assert_allclose(first["ref"], before.logp, rtol=1e-5)
    np.testing.assert_allclose(last["logp"], after.logp, rtol=1e-5)
    assert first["length"].tolist() == before.length.tolist() and set(first["length"][:-1]) == {31}
    assert last["logp"].sum() < first["logp"].sum()


def test_the_retain_term_sees_the_first_retain_set_and_no_other():
    def after(data: MuseData, **more: Any) -> torch.Tensor:
        language = small()
        unlearn_texts(language, data, settings_of(npo(0.5), **more), length=32, progress=False)
        return next(language.model.parameters()).detach().clone()

    base = after(DATA)
    other = ("Another text, of something else altogether, that is to stay as it was before.",)
    assert torch.equal(base, after(replace(DATA, raw_retain2=other, privleak_retain=other)))
    assert not torch.equal(base, after(replace(DATA, raw_retain1=other)))
    assert not torch.equal(base, after(DATA, retain_weight=9.0))


def test_measures_join_the_table_of_a_run_after_the_epochs_that_were_asked_for():
    language, base = (
        small(),
        membership(small("retrained"), DATA.privleak_forget, DATA.privleak_holdout),
    )
    measure = every_epoch(language, DATA, retrained=base, settings=QUICK, epochs=(2,))
    run = unlearn_texts(
        language, DATA, settings_of(simnpo(1.0)), length=32, measure=measure, progress=False
    )
    found = numbers(evaluate_muse(language, DATA, retrained=base, settings=QUICK, progress=False))
    names = ("verbmem_forget", "knowmem_forget", "knowmem_retain", "auc_forget", "privleak_forget")
    assert {f"{name}{end}" for name in names for end in ("", "_low", "_high")} <= found.keys()
    table = run.epochs.set_index("epoch")
    for name, value in found.items():
        assert table.loc[2, name] == pytest.approx(value) and table[name].isna().tolist() == [
            True,
            True,
            False,
        ]


# --- the command ---


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small models and data in place of the default ones."""
    chosen = SMALL
    monkeypatch.setattr(
        "llm.models.small_news.NewsModels", lambda news: replace(chosen, news=replace(chosen.news))
    )
    monkeypatch.setattr("llm.data.muse.News", lambda seed=0: replace(chosen.news, seed=seed))
    monkeypatch.setattr(
        "llm.evaluation.muse.Measuring", lambda **options: replace(QUICK, **options)
    )


def test_the_command_prints_one_json_object_and_writes_both_tables(
    tiny: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "found"
    muse(Muse(retrained="news:retrained", json=True, out=out))
    printed = json.loads(capsys.readouterr().out)
    base = membership(
        small("retrained"), DATA.privleak_forget, DATA.privleak_holdout, progress=False
    )
    found = evaluate_muse(small(), DATA, retrained=base, settings=QUICK, progress=False)
    assert printed["verbmem_forget"] == pytest.approx(found.of("verbmem", "forget").value)
    assert printed["knowmem_retain"] == pytest.approx(found.of("knowmem", "retain").value)
    assert printed["privleak"] == pytest.approx(found.of("privleak", "forget").value)
    assert printed["intervals"]["auc"] == pytest.approx(found.of("auc", "forget")[1:3])
    assert (
        printed["items"]["knowmem_forget"] == len(DATA.forget_qa)
        and "AUC" in printed["orientation"]
    )
    table = storage.read_table(out / "measures.parquet")
    assert table.attrs["provenance"]["settings"]["retrained"] == "news:retrained"
    pd.testing.assert_frame_equal(table, found.table, check_dtype=False)
    assert len(storage.read_table(out / "items.parquet")) == 3 + 6 + 8 + 3 + 4


def test_the_report_names_every_measure_its_interval_and_its_orientation(
    tiny: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    muse(Muse(out=tmp_path / "found"))
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines[1:5]]
    assert names == ["verbmem", "knowmem", "knowmem", "auc"] and "95%" in lines[0]
    assert all(" to " in line and "items" in line for line in lines[1:5])
    text = "\n".join(lines)
    assert (
        "0: forget texts known by heart" in text and "--retrained" in text and str(tmp_path) in text
    )


def test_a_retrained_auc_near_zero_is_one_line_on_standard_error(
    tiny: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("llm.evaluation.membership.NEAR_ZERO", 2.0)
    muse(Muse(retrained="news:retrained", out=tmp_path / "found"))
    error = capsys.readouterr().err
    assert error.count("warning: PrivLeak divides by") == 1


def test_the_command_unlearns_first_and_keeps_the_model(
    tiny: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "run"
    chosen = Muse(
        unlearn="npo:0.5", epochs=2, learning_rate=3e-3, piece=32, batch=4, json=True, out=out
    )
    muse(chosen)
    printed = json.loads(capsys.readouterr().out)
    language = small()
    run = unlearn_texts(language, DATA, muse_command.unlearning(chosen), length=32, progress=False)
    found = evaluate_muse(language, DATA, settings=QUICK, progress=False)
    assert printed["auc"] == pytest.approx(found.of("auc", "forget").value)
    epochs = storage.read_table(out / "epochs.parquet")
    np.testing.assert_allclose(epochs["forget_loss"], run.epochs["forget_loss"], rtol=1e-5)
    kept = load(out / "model")
    for one, two in zip(kept.model.parameters(), language.model.parameters(), strict=True):
        torch.testing.assert_close(one, two)
    assert not (out / "state").exists()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("unlearn_texts", "evaluate_muse"):
            patch.setattr(f"llm.evaluation.muse.{name}", no_work)
        muse(chosen)
    assert json.loads(capsys.readouterr().out) == printed
    for other in (replace(chosen, unlearn="npo:0.4"), Muse(json=True, out=out)):
        with pytest.raises(InvalidInput) as refused:
            muse(other)
        assert refused.value.field == "out" and "(its " in str(refused.value)


def no_work(*_: object, **__: object) -> None:
    raise AssertionError("done again")


def test_the_command_takes_folders_of_models_and_data(
    tiny: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    save(small(), tmp_path / "model", {})
    write_muse(DATA, tmp_path / "data")
    muse(
        Muse(
            model=str(tmp_path / "model"),
            data=str(tmp_path / "data"),
            json=True,
            out=tmp_path / "found",
        )
    )
    given = json.loads(capsys.readouterr().out)
    muse(Muse(json=True, out=tmp_path / "found again"))
    assert json.loads(capsys.readouterr().out) == given


@pytest.mark.parametrize(
    "field, options",
    [
        ("source", {"data": "nowhere"}),
        ("kind", {"model": "news:partial"}),
        ("objective", {"unlearn": "npo"}),
        ("piece", {"unlearn": "npo:1", "piece": 1}),
        ("learning_rate", {"unlearn": "npo:1", "learning_rate": 0.0}),
        ("max_length", {"max_length": 1}),
        ("dtype", {"dtype": "int8"}),
    ],
)
def test_what_the_command_cannot_use_is_one_line_and_exit_code_2(
    tiny: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    field: str,
    options: dict[str, Any],
):
    chosen = Muse(**{"out": tmp_path / "found", **options})
    assert exit_code(lambda: muse(chosen)) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {field}") and len(error.splitlines()) == 1
    assert not (tmp_path / "found").exists()


def test_a_retrained_model_of_another_vocabulary_is_refused(tiny: None, tmp_path: Path):
    other = build(replace(SMALL, vocabulary=440), "retrained", progress=False)
    save(other._replace(template=PLAIN), tmp_path / "other", {})
    with pytest.raises(InvalidInput) as refused:
        muse(Muse(retrained=str(tmp_path / "other"), out=tmp_path / "found"))
    assert refused.value.field == "retrained"
