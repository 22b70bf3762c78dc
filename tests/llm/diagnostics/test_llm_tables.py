"""Scores, answers, sources and words: what the commands of the language models are made of."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm.data import tofu
from llm.data.authors.corpus import Authors, splits
from llm.data.sources import read
from llm.data.tofu import Example
from llm.diagnostics.scores import beside, pair, read_scores, score_table
from llm.jobs.settings import DEFAULTS
from llm.jobs.values import objectives_of
from llm.logs.log import MEMORISED, truth_ratio
from llm.models import answers
from llm.models.answers import answer_log, log_of, log_table, responses
from llm.models.language_model import LanguageModel
from llm.scoring.logprobs import score
from llm.scoring.templates import PLAIN
from llm.unlearning.methods import objective
from markov.errors import InvalidInput
from markov.objectives import CORNERS, Objective, SequenceLogProbs, gradient_ascent, npo, simnpo
from tests.llm.scoring.test_encoding import by_bytes
from tests.llm.scoring.test_scoring import roughen

SEVERAL = (
    Example(
        index=4,
        prompt="Who?",
        response="Ada.",
        paraphrase="It was Ada.",
        perturbed=("Bob.", "No one at all."),
    ),
    Example(
        index=2,
        prompt="Where, then?",
        response="In a small town by the sea.",
        perturbed=("Nowhere.", "Here."),
    ),
)


@pytest.fixture(scope="module")
def language() -> LanguageModel:
    import transformers

    tokenizer = by_bytes(words=True)
    sizes: dict[str, Any] = dict(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=256, **sizes
    )
    model = roughen(transformers.LlamaForCausalLM(config)).eval()
    return LanguageModel(model=model, tokenizer=tokenizer, template=PLAIN, name="tiny")


def test_a_log_of_answers_is_each_answer_scored_alone(language: LanguageModel) -> None:
    log = answer_log(language, SEVERAL, progress=False)
    assert (log.file, log.layout, log.index.tolist()) == ("tiny", "scored", [4, 2])
    assert log.question == ("Who?", "Where, then?") and log.answer == tuple(
        one.response for one in SEVERAL
    )
    assert log.paraphrased is not None and log.perturbed is not None

    def alone(example: Example, text: str) -> tuple[float, float, float]:
        seq = score(
            language.model, language.tokenizer, [replace(example, response=text)], progress=False
        )
        total, length = -float(seq.logp), float(seq.length)
        return total / length, total, length

    for row, example in enumerate(SEVERAL):
        texts = {"gold": example.response, "paraphrased": example.paraphrase or example.response}
        for kind, text in texts.items():
            found = [float(part[row]) for part in getattr(log, kind)]
            np.testing.assert_allclose(found, alone(example, text), rtol=1e-5)
        for place, text in enumerate(example.perturbed):
            found = [float(part[row, place]) for part in log.perturbed if part is not None]
            np.testing.assert_allclose(found, alone(example, text), rtol=1e-5)


def test_no_answer_is_scored_twice(
    language: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    real = answers.score_responses

    def counted(model: Any, encoded: Any, *more: Any, **options: Any) -> Any:
        seen.append(len(encoded))
        assert len(set(encoded)) == len(encoded)
        return real(model, encoded, *more, **options)

    monkeypatch.setattr(answers, "score_responses", counted)
    log = answer_log(language, (*SEVERAL, replace(SEVERAL[0], index=9)), progress=False)
    assert seen == [7]  # 4 answers of the first, which comes twice, and 3 of the second
    assert log.paraphrased is not None and log.perturbed is not None
    assert log.paraphrased.average[1] == log.gold.average[1]  # its answer stands for a paraphrase
    for own in (log.gold, log.paraphrased, log.perturbed):
        assert (own.average[2] == own.average[0]).all()
    assert set(log.memorised) == set(MEMORISED)
    for kind, shares in log.memorised.items():
        assert shares[2] == shares[0]
        counts = shares * log.gold.length
        np.testing.assert_allclose(counts, counts.round(), atol=1e-9, err_msg=kind)


def test_models_of_one_table_may_differ_in_what_is_known_of_them(language: LanguageModel) -> None:
    whole = answer_log(language, SEVERAL, progress=False)
    bare = whole._replace(memorised={})
    tables = [log_table(log).assign(model=name) for name, log in (("a", whole), ("b", bare))]
    both = pd.concat(tables, ignore_index=True)
    found = {name: log_of(own, "a table") for name, own in both.groupby("model")}
    assert found["b"].memorised == {} and set(found["a"].memorised) == set(MEMORISED)
    for kind, shares in whole.memorised.items():
        np.testing.assert_array_equal(found["a"].memorised[kind], shares)
    both.loc[(both["model"] == "a") & (both["answer"] == "gold"), MEMORISED[0]] = [0.5, np.nan]
    with pytest.raises(InvalidInput, match="no gold answer without it"):
        log_of(both[both["model"] == "a"], "a table")
    for wrong in (1.5, -0.1, np.inf):
        with pytest.raises(InvalidInput, match="from 0 to 1"):
            log_of(tables[0].assign(extraction_strength=wrong), "a table")


def test_an_answer_that_is_refused_is_called_after_its_first_example(
    language: LanguageModel,
) -> None:
    broken = language._replace(model=copy.deepcopy(language.model))
    with torch.no_grad():
        next(broken.model.parameters()).fill_(torch.inf)
    with pytest.raises(InvalidInput, match=r"4 \(gold\)"):
        answer_log(broken, [SEVERAL[0], replace(SEVERAL[0], index=9)], progress=False)


def test_examples_without_wrong_answers_have_none_and_uneven_ones_are_refused(
    language: LanguageModel,
) -> None:
    plain = [replace(one, perturbed=()) for one in SEVERAL]
    assert answer_log(language, plain, progress=False).perturbed is None
    with pytest.raises(InvalidInput, match="perturbed"):
        answer_log(language, [SEVERAL[0], plain[1]], progress=False)
    with pytest.raises(InvalidInput, match=r"examples\[1\]"):
        answer_log(
            language,
            SEVERAL,
            max_length=len(responses(language, SEVERAL)[1].tokens) - 1,
            progress=False,
        )


def test_a_log_is_a_table_and_back(language: LanguageModel) -> None:
    log = answer_log(language, SEVERAL, progress=False)
    table = log_table(log)
    assert set(table["answer"]) == {"gold", "paraphrased", "perturbed_0", "perturbed_1"}
    shuffled = table.sample(frac=1, random_state=0)
    for found in (log_of(table, "tiny"), log_of(shuffled, "tiny")):
        order = [found.index.tolist().index(index) for index in log.index]
        assert sorted(found.index) == [2, 4]
        for kind in ("gold", "paraphrased", "perturbed"):
            for mine, theirs in zip(getattr(log, kind), getattr(found, kind), strict=True):
                np.testing.assert_allclose(theirs[order], mine, rtol=1e-12)
        np.testing.assert_allclose(truth_ratio(found)[order], truth_ratio(log))
    assert log_of(table[table["answer"].isin(["gold", "paraphrased"])], "tiny").perturbed is None


def test_sources_are_the_generated_corpus_or_files(tmp_path: Path) -> None:
    small = Authors(authors=10, questions=2, seed=3)
    assert (
        read("authors:forget10", authors=small)
        == splits(small)["forget10"]
        == read("authors", "forget10", authors=small)
    )
    assert read("authors:full") == splits(Authors())["full"]
    tofu.write(SEVERAL, tmp_path / "mine.json")
    assert read(tmp_path / "mine.json") == SEVERAL == read(tmp_path, "mine")
    for source, split, field in (
        ("authors:forget30", None, "split"),
        ("authors", None, "split"),
        ("authors:full", "full", "split"),
        (str(tmp_path / "absent.json"), None, "source"),
    ):
        with pytest.raises(InvalidInput) as caught:
            read(source, split)
        assert caught.value.field == field


@given(
    beta=st.floats(0, 100, allow_nan=False),
    gamma=st.floats(-5, 5, allow_nan=False),
    corner=st.sampled_from(sorted(CORNERS)),
)
def test_a_word_is_an_objective(beta: float, gamma: float, corner: str) -> None:
    assert objective(f"{corner}:{beta!r}:{gamma!r}") == Objective(beta, gamma, *CORNERS[corner])
    assert objective(f"{corner}:{beta!r}") == Objective(beta, 0.0, *CORNERS[corner])


def test_the_limits_are_words_and_the_default_is_the_four_corners() -> None:
    assert objective("gradient_ascent") == gradient_ascent()
    assert objective("length_weighted_gradient_ascent") == gradient_ascent(1.0)
    found = objectives_of(DEFAULTS)
    assert {(one.reference, one.normalize) for one in found.values()} == set(CORNERS.values())
    assert found["npo_b0.1"] == npo(0.1) and found["simnpo_b2.5"] == simnpo(2.5)


@pytest.mark.parametrize(
    "word", ["npo", "npo:x", "npo:1:2:3", "dpo:1", "npo:-1", "npo:nan", "gradient_ascent:1", ""]
)
def test_other_words_are_refused(word: str) -> None:
    with pytest.raises(InvalidInput):
        objective(word)


def test_words_are_needed_and_each_once() -> None:
    for words in ([], ["npo:0.1", "npo:0.1"]):
        with pytest.raises(InvalidInput, match="objectives"):
            objectives_of(words)


def some_scores(count: int = 6, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    length = torch.from_numpy(rng.integers(1, 50, count).astype(float))
    logp = -torch.from_numpy(rng.uniform(0.1, 5, count)) * length
    return score_table(
        SequenceLogProbs(logp, length, torch.zeros(count)), rng.permutation(count) + 10
    )


def test_tables_of_scores_are_matched_by_index(tmp_path: Path) -> None:
    scores = some_scores()
    other = scores.assign(logp=scores["logp"] - scores["index"])
    other.sample(frac=1, random_state=1).to_parquet(tmp_path / "other.parquet")
    reference = read_scores(tmp_path / "other.parquet", "reference")
    np.testing.assert_allclose(
        beside(scores, reference, "reference"), scores["logp"] - scores["index"]
    )
    seq = pair(scores, reference)
    assert seq.logp.dtype == torch.float64
    np.testing.assert_allclose((seq.logp - seq.ref).numpy(), scores["index"])
    np.testing.assert_array_equal(seq.length.numpy(), scores["length"])


def test_tables_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    scores = some_scores()
    for wrong, part in (
        (scores.iloc[1:], "missing"),
        (scores.assign(index=scores["index"] + 1), "missing"),
        (pd.concat([scores, scores.tail(1).assign(index=99)]), "the 6 that are scored"),
        (scores.assign(length=scores["length"] + (scores["index"] == 12)), "1 differ"),
    ):
        with pytest.raises(InvalidInput, match=part):
            beside(scores, wrong, "reference")
    path = tmp_path / "scores.parquet"
    for frame, part in (
        (scores.drop(columns="length"), "length missing"),
        (pd.concat([scores, scores]), "each index once"),
    ):
        frame.to_parquet(path)
        with pytest.raises(InvalidInput, match=part):
            read_scores(path, "scores")
    path.write_text("not a table")
    for absent in (path, tmp_path / "absent.parquet"):
        with pytest.raises(InvalidInput, match="a parquet table of scores"):
            read_scores(absent, "scores")
