"""Evaluation logs: three layouts say the same, pairs are matched by example, and what does not
fit is refused.
"""

from __future__ import annotations

import json
import math
import os
import unicodedata
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from llm.logs.log import (
    LOG_RATIOS,
    TRUTH_RATIOS,
    Answers,
    EvaluationLog,
    align,
    log_truth_ratio,
    sequence_logprobs,
    shared,
    take,
    total_loss,
    truth_ratio,
    with_lengths,
)
from llm.logs.questions import Asked, places, shared_places
from llm.logs.reading import AGGREGATED, MEASURES, METRICS, OPEN_UNLEARNING, TASKS, read_log
from markov.errors import InvalidInput

REAL = (
    Path(os.environ.get("SIMNPO_LAB_TOFU", Path(__file__).parents[4] / "shared" / "tofu")) / "logs"
)
needs_real_logs = pytest.mark.skipif(
    not (REAL / "llama2-7b_full").is_dir(),
    reason="no TOFU logs: SIMNPO_LAB_TOFU names the folder that holds them",
)
Columns = dict[str, list[Any]]


def some_columns(count: int = 7, perturbed: int = 5, seed: int = 0, of: str = "author") -> Columns:
    """Measures of a log under the names of the legacy layouts, no two numbers alike."""
    rng = np.random.default_rng(seed)
    columns: Columns = {}
    for mean, total, tokens in MEASURES.values():
        shape = (count, perturbed) if mean == "average_perturb_loss" else (count,)
        losses, lengths = rng.uniform(0.01, 4, shape), rng.integers(2, 60, shape)
        columns |= {
            mean: losses.tolist(),
            total: (losses * lengths).tolist(),
            tokens: lengths.tolist(),
        }
    columns |= {
        name: rng.uniform(0, 1, count).tolist() for name in ("rouge1_recall", "rougeL_recall")
    }
    texts = [
        [f"[INST] Who is {of} {i}? [/INST]", f"nobody {i}", f"{of.title()} {i}."]
        for i in range(count)
    ]
    return {**columns, "generated_text": texts}


def as_open_unlearning(
    columns: Columns, task: str = "forget", *, counts: bool = True
) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for kind, names in MEASURES.items():
        keys = ("avg_loss", "loss", "num_token") if counts else ("avg_loss",)
        inner = [
            dict(zip(keys, row, strict=True))
            for row in zip(*(columns[n] for n in names[: len(keys)]), strict=True)
        ]
        content[METRICS[task][kind]] = entries(
            [{"prob": probability(entry["avg_loss"]), **entry} for entry in inner]
        )
    keys = ("rouge1_recall", "rougeL_recall", "input", "generation", "ground_truth")
    rows = zip(
        columns["rouge1_recall"],
        columns["rougeL_recall"],
        *zip(*columns["generated_text"], strict=True),
        strict=True,
    )
    content[METRICS[task]["gold"].replace("Prob", "ROUGE")] = entries(
        [dict(zip(keys, row, strict=True)) for row in rows]
    )
    return {**content, "forget_quality": {"agg_value": 0.5}, "manifest": {}}


def probability(loss: Any) -> Any:
    return [math.exp(-one) for one in loss] if isinstance(loss, list) else math.exp(-loss)


def entries(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"agg_value": 0.0, "value_by_index": {str(i): row for i, row in enumerate(rows)}}


def as_mapping(columns: Columns, order: list[int] | None = None) -> dict[str, dict[str, Any]]:
    return {
        name: {str(i): column[i] for i in order or range(len(column))}
        for name, column in columns.items()
    }


def write(folder: Path, name: str, content: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder / name


def some_log(folder: Path, name: str = "model", **settings: Any) -> EvaluationLog:
    return read_log(write(folder / name, TASKS["forget"], some_columns(**settings)))


def check_same_log(got: EvaluationLog, want: EvaluationLog) -> None:
    """Every number and text the same, wherever and however it was stored."""
    for name in ("gold", "paraphrased", "perturbed"):
        for one, other in zip(getattr(got, name), getattr(want, name), strict=True):
            np.testing.assert_array_equal(one, other)
            assert one.dtype == np.float64
    assert got.index.tolist() == want.index.tolist()
    assert (got.question, got.prompt, got.generation) == (
        want.question,
        want.prompt,
        want.generation,
    )
    assert got.answer == want.answer
    assert got.rouge.keys() == want.rouge.keys() == {"rouge1_recall", "rougeL_recall"}
    for name in got.rouge:
        np.testing.assert_array_equal(got.rouge[name], want.rouge[name])


# --- layouts ---


@settings(max_examples=15)
@given(
    count=st.integers(1, 12),
    perturbed=st.integers(1, 5),
    seed=st.integers(0, 999),
    task=st.sampled_from(list(TASKS)),
)
def test_all_layouts_of_one_log_say_the_same(
    tmp_path_factory: pytest.TempPathFactory, count: int, perturbed: int, seed: int, task: str
):
    folder, columns = tmp_path_factory.mktemp("logs"), some_columns(count, perturbed, seed)
    if task in ("real_authors", "world_facts"):  # no paraphrase: the answer stands for it
        columns |= {
            names: columns[own]
            for names, own in zip(MEASURES["paraphrased"], MEASURES["gold"], strict=True)
        }
    order = np.random.default_rng(seed).permutation(count).tolist()
    lists = read_log(write(folder / "lists", TASKS[task], columns), task)
    mapping = read_log(write(folder / "mapping", TASKS[task], as_mapping(columns, order)), task)
    other = {name: some_columns(3, seed=seed + 1) for name in TASKS.values()}
    merged = read_log(write(folder / "merged", AGGREGATED, {**other, TASKS[task]: columns}), task)
    both = (
        as_open_unlearning(columns, task)
        if task == "retain"
        else as_open_unlearning(some_columns(3), "retain")
    )
    opened = read_log(
        write(folder / "opened", OPEN_UNLEARNING, both | as_open_unlearning(columns, task)), task
    )
    assert [log.layout for log in (lists, mapping, merged, opened)] == [
        "lists",
        "mapping",
        "lists",
        "open-unlearning",
    ]
    for log in (mapping, merged, opened):
        check_same_log(log, lists)
    assert lists.gold.average.tolist() == columns["avg_gt_loss"]
    assert lists.gold.total is not None and lists.gold.total.tolist() == columns["gt_loss"]
    assert lists.gold.length is not None and lists.gold.length.tolist() == columns["num_token_gt"]
    assert lists.perturbed is not None and lists.perturbed.average.shape == (count, perturbed)


def test_a_folder_is_read_by_the_tasks_own_file_before_the_merged_before_open_unlearnings(
    tmp_path: Path,
):
    files = {
        OPEN_UNLEARNING: as_open_unlearning(some_columns(2)),
        AGGREGATED: {TASKS["forget"]: some_columns(3)},
        TASKS["forget"]: some_columns(4),
    }
    for count, (name, content) in enumerate(files.items(), start=2):
        write(tmp_path, name, content)
        assert len(read_log(tmp_path).index) == count


def test_blanks_around_a_template_do_not_matter_and_keys_of_a_mapping_are_the_indices(
    tmp_path: Path,
):
    columns = some_columns(3)
    spaced = {
        **columns,
        "generated_text": [
            ["  [INST]  Who is author\n0? [/INST]", "a ", " b"],
            *columns["generated_text"][1:],
        ],
    }
    assert (
        read_log(write(tmp_path, "a.json", spaced)).prompt
        == read_log(write(tmp_path, "b.json", columns)).prompt
    )
    keyed = {
        name: dict(zip(("10", "9", "200"), column, strict=True)) for name, column in columns.items()
    }
    log = read_log(write(tmp_path, "c.json", keyed))
    assert log.index.tolist() == [9, 10, 200]
    assert log.gold.average.tolist() == [columns["avg_gt_loss"][place] for place in (1, 0, 2)]


def test_open_unlearnings_metrics_are_read_by_the_names_it_writes(tmp_path: Path):
    def metric(**entry: Any) -> dict[str, Any]:
        return {"agg_value": 0.0, "value_by_index": {"4": entry}}

    content = {
        "ra_Q_A_Prob": metric(prob=math.exp(-1), avg_loss=1.0),
        "ra_Q_A_PERT_Prob": metric(prob=probability([2.0, 3.0]), avg_loss=[2.0, 3.0]),
        "ra_Q_A_ROUGE": metric(
            rouge1_recall=0.25,
            rougeL_recall=0.5,
            input="Who?",
            generation="She.",
            ground_truth="He.",
        ),
        "forget_Q_A_Prob": metric(prob=probability(5.0), avg_loss=5.0),
        "forget_Q_A_PARA_Prob": metric(prob=probability(1.5), avg_loss=1.5),
        "forget_Q_A_PERT_Prob": metric(prob=probability([2.0, 4.0]), avg_loss=[2.0, 4.0]),
    }
    file = write(tmp_path, "TOFU_EVAL.json", content)
    authors, forget = read_log(file, "real_authors"), read_log(file, "forget")
    assert authors.index.tolist() == [4] and authors.gold.average.tolist() == [1.0]
    assert truth_ratio(authors) == pytest.approx([math.exp(1.0 - 2.5)])
    assert truth_ratio(forget) == pytest.approx([math.exp(1.5 - 3.0)])
    assert (authors.prompt, authors.generation, authors.answer) == (("Who?",), ("She.",), ("He.",))
    assert {name: values.tolist() for name, values in authors.rouge.items()} == {
        "rouge1_recall": [0.25], "rougeL_recall": [0.5]
    }  # fmt: skip
    assert (forget.prompt, forget.rouge) == (None, {})


@pytest.mark.parametrize("manifest", [None, {}, {"extraction_strength": "all scored tokens"}, 5])
def test_shares_are_read_where_it_is_said_what_they_count(tmp_path: Path, manifest: Any):
    columns = some_columns(2)
    content = as_open_unlearning(columns)
    scores = [0.25, None if not manifest or manifest == 5 else 0.5]  # open-unlearning writes null
    for name in ("extraction_strength", "exact_memorization"):
        content[name] = entries([{"score": score} for score in scores])
    content["manifest"] = manifest
    found = read_log(write(tmp_path, "TOFU_EVAL.json", content)).memorised
    told = isinstance(manifest, dict) and bool(manifest)
    assert {name: own.tolist() for name, own in found.items()} == (
        {"extraction_strength": [0.25, 0.5]} if told else {}
    )


def test_sums_follow_from_means_and_numbers_of_tokens(tmp_path: Path):
    columns = some_columns()
    del columns["gt_loss"], columns["num_token_perturb"]
    log = read_log(write(tmp_path, "log.json", columns))
    np.testing.assert_allclose(total_loss(log), some_columns()["gt_loss"], rtol=1e-14)
    assert (
        log.perturbed is not None
        and log.perturbed.total is not None
        and log.perturbed.length is None
    )


def test_a_log_with_means_only_becomes_whole_with_lengths(tmp_path: Path):
    columns = some_columns()
    whole = read_log(write(tmp_path, "whole.json", columns))
    means = read_log(write(tmp_path, OPEN_UNLEARNING, as_open_unlearning(columns, counts=False)))
    assert means.gold.total is None and means.gold.length is None
    np.testing.assert_array_equal(truth_ratio(means), truth_ratio(whole))
    with pytest.raises(InvalidInput, match=rf"length = None .*{OPEN_UNLEARNING}.*with_lengths"):
        sequence_logprobs(whole, means)
    assert whole.gold.length is not None
    mended = with_lengths(means, whole.gold.length)
    np.testing.assert_allclose(total_loss(mended), total_loss(whole), rtol=1e-14)
    for lengths, match in (
        (whole.gold.length[1:], "6 counts.*7"),
        (whole.gold.length * 0, "at least 1"),
    ):
        with pytest.raises(InvalidInput, match=match):
            with_lengths(means, lengths)


@pytest.mark.parametrize("missing", ["paraphrased", "perturbed"])
def test_what_a_log_lacks_is_none_and_is_missed_by_name(tmp_path: Path, missing: str):
    columns = {
        name: column for name, column in some_columns().items() if name not in MEASURES[missing]
    }
    log = read_log(write(tmp_path, "log.json", columns))
    assert getattr(log, missing) is None
    assert len(sequence_logprobs(log, log).logp) == 7
    with pytest.raises(InvalidInput, match=rf"{missing} = None .*log.json"):
        truth_ratio(log)


def changed(name: str, value: Any, at: int | None = None) -> Callable[[Columns], Any]:
    def change(columns: Columns) -> Any:
        columns[name] = (
            value
            if at is None
            else [value if place == at else old for place, old in enumerate(columns[name])]
        )
        return columns

    return change


def repeated(columns: Columns) -> Any:
    names = (*MEASURES["paraphrased"], *MEASURES["perturbed"])
    return {
        name: column + column[-2:] if name in names else column for name, column in columns.items()
    }


def lacking(columns: Columns) -> Any:
    mapping = as_mapping(columns)
    del mapping["rougeL_recall"]["4"]
    return mapping


def two_keys(columns: Columns) -> Any:
    mapping = as_mapping(columns)
    return {name: {**column, "00": column["0"]} for name, column in mapping.items()}


# What is wrong, how a sound log is made so, and what the message must name besides the file.
REFUSED: list[tuple[str, Callable[[Columns], Any], list[str]]] = [
    ("padded examples", repeated, ["avg_paraphrased_loss", "9 values", "7 of avg_gt_loss", "[7]"]),
    ("an index missing", lacking, ["rougeL_recall", "6 values", "7 of avg_gt_loss", "[4]"]),
    ("no examples", lambda columns: {name: [] for name in columns}, ["avg_gt_loss", "0 values"]),
    ("not JSON", lambda _: "{not json", ["readable JSON"]),
    ("not an object", lambda _: [1, 2], ["list", "JSON object"]),
    (
        "another file",
        lambda _: {"rows": [1], "seed": 2},
        ["rows", "avg_gt_loss", "forget_Q_A_Prob"],
    ),
    ("a number for a measure", changed("gt_loss", 3), ["gt_loss", "int"]),
    ("a key that is no index", changed("gt_loss", {"first": 1.0}), ["gt_loss", "first"]),
    ("text for a number", changed("gt_loss", "1.5", 2), ["gt_loss of example 2", "1.5"]),
    (
        "true for a number",
        changed("rougeL_recall", True, 2),
        ["rougeL_recall of example 2", "True"],
    ),
    ("nan", changed("avg_gt_loss", math.nan, 3), ["avg_gt_loss of example 3", "nan"]),
    ("null", changed("avg_gt_loss", None, 3), ["avg_gt_loss of example 3", "None"]),
    (
        "a list for a number",
        changed("avg_paraphrased_loss", [1.0], 3),
        ["avg_paraphrased_loss of example 3"],
    ),
    (
        "a row of four",
        changed("perturb_loss", [1.0] * 4, 6),
        ["perturb_loss of example 6", "5 finite numbers"],
    ),
    (
        "a column of three",
        changed("perturb_loss", [[1.0] * 3] * 7),
        ["perturb_loss", "(7, 3)", "(7, 5)"],
    ),
    ("a negative loss", changed("avg_gt_loss", -0.5, 1), ["avg_gt_loss of example 1", "-0.5"]),
    ("an empty answer", changed("num_token_gt", 0, 1), ["num_token_gt of example 1", ">= 1"]),
    (
        "a mean for a sum",
        lambda c: {**c, "gt_loss": c["avg_gt_loss"]},
        ["gt_loss of example 0", "num_token_gt"],
    ),
    (
        "texts of two",
        changed("generated_text", ["a", "b"], 5),
        ["generated_text of example 5", "truth"],
    ),
    (
        "a number for a text",
        changed("generated_text", ["a", 7, "b"], 5),
        ["generated_text of example 5", "7"],
    ),
    (
        "half a token",
        changed("num_token_gt", 2.5, 1),
        ["num_token_gt of example 1", "2.5", "whole"],
    ),
    (
        "too many tokens",
        changed("num_token_gt", 2**40, 1),
        ["num_token_gt of example 1", str(2**40)],
    ),
    (
        "a share above 1",
        changed("rougeL_recall", 5, 2),
        ["rougeL_recall of example 2", "= 5 ", "from 0 to 1"],
    ),
    (
        "a share below 0",
        changed("rouge1_recall", -1, 2),
        ["rouge1_recall of example 2", "= -1 ", "from 0 to 1"],
    ),
    (
        "a number beyond floats",
        changed("avg_gt_loss", 10**400, 2),
        ["avg_gt_loss of example 2", "1000"],
    ),
    (
        "infinity",
        changed("perturb_loss", [math.inf] * 5, 2),
        ["perturb_loss of example 2, answer 0", "inf"],
    ),
    ("two keys of one index", two_keys, ["avg_gt_loss, key", "'00'"]),
    ("a key twice", lambda c: json.dumps(c)[:-1] + ', "gt_loss": [1]}', ["'gt_loss' comes twice"]),
    (
        "a bare question that is none",
        changed("question", [3] * 7),
        ["question of example 0", "3", "text"],
    ),
]


@pytest.mark.parametrize(
    ("change", "named"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_a_log_that_cannot_be_used_is_refused_by_field_and_file(
    tmp_path: Path, change: Any, named: list[str]
):
    file = write(tmp_path, "log.json", change(some_columns()))
    with pytest.raises(InvalidInput) as caught:
        read_log(file)
    for part in (*named, str(file)):
        assert part in str(caught.value)


def test_open_unlearnings_empty_entries_and_wrong_places_are_refused(tmp_path: Path):
    content = as_open_unlearning(some_columns())
    content["forget_Q_A_PERT_Prob"]["value_by_index"]["3"] = {"prob": None, "avg_loss": None}
    with pytest.raises(
        InvalidInput, match=r"forget_Q_A_PERT_Prob of example 3.*avg_loss.*TOFU_EVAL.json"
    ):
        read_log(write(tmp_path, OPEN_UNLEARNING, content))
    with pytest.raises(InvalidInput, match=r"forget_Q_A_Prob = 'NoneType'.*TOFU_EVAL.json"):
        read_log(write(tmp_path, OPEN_UNLEARNING, {"forget_Q_A_Prob": {"agg_value": 1.0}}))
    with pytest.raises(
        InvalidInput,
        match=r"a folder with eval_log.json, eval_log_aggregated.json or TOFU_EVAL.json",
    ):
        read_log(tmp_path / "..", "retain")
    with pytest.raises(InvalidInput, match=r"missing.json"):
        read_log(tmp_path / "missing.json")
    with pytest.raises(InvalidInput, match="task = 'forgotten'"):
        read_log(tmp_path, "forgotten")
    with pytest.raises(
        InvalidInput, match=r"task = 'forget' .*retain, which is what .*eval_log.json holds"
    ):
        read_log(write(tmp_path, TASKS["retain"], some_columns()), "forget")
    with pytest.raises(InvalidInput, match=r"eval_log_forget.json = 'list'"):
        read_log(write(tmp_path, AGGREGATED, {TASKS["forget"]: []}))


@pytest.mark.parametrize("off", [0.015, 0.025])
def test_sums_may_be_rounded_to_eight_bits_and_no_more(tmp_path: Path, off: float):
    columns = some_columns()
    columns["gt_loss"] = [value * (1 + off) for value in columns["gt_loss"]]
    file = write(tmp_path, "log.json", columns)
    if off < 0.02:
        assert total_loss(read_log(file)).tolist() == columns["gt_loss"]
    else:
        with pytest.raises(InvalidInput, match="gt_loss"):
            read_log(file)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_log_is_read_in_any_encoding_of_json_with_or_without_its_mark(
    tmp_path: Path, encoding: str
):
    columns = some_columns(of="Ünal")
    (tmp_path / "log.json").write_bytes(json.dumps(columns, ensure_ascii=False).encode(encoding))
    check_same_log(
        read_log(tmp_path / "log.json"), read_log(write(tmp_path, "plain.json", columns))
    )


def test_rounding_above_a_probability_of_one_counts_as_one_and_more_is_refused(tmp_path: Path):
    columns = some_columns()
    for names in MEASURES.values():
        columns = {name: column for name, column in columns.items() if name != names[1]}
    columns["avg_gt_loss"][2] = -1e-7
    assert read_log(write(tmp_path, "log.json", columns)).gold.average[2] == 0
    columns["avg_gt_loss"][2] = -1e-3
    with pytest.raises(InvalidInput, match="avg_gt_loss of example 2"):
        read_log(write(tmp_path, "log.json", columns))


def test_probabilities_are_shares_and_those_that_are_not_the_losses_are_warned_of(tmp_path: Path):
    content = as_open_unlearning(some_columns())
    entry = content["forget_Q_A_PERT_Prob"]["value_by_index"]["3"]
    want = read_log(write(tmp_path, OPEN_UNLEARNING, content))
    entry["prob"][1] += 0.5
    with pytest.warns(
        UserWarning,
        match=r"prob of forget_Q_A_PERT_Prob of example 3 .* \(1 differ\).*losses are used",
    ):
        check_same_log(read_log(write(tmp_path, OPEN_UNLEARNING, content)), want)
    entry["prob"][1] = 1.5
    with pytest.raises(
        InvalidInput, match=r"prob of forget_Q_A_PERT_Prob of example 3, answer 1 = 1.5"
    ):
        read_log(write(tmp_path, OPEN_UNLEARNING, content))


# --- pairs ---


def test_logp_is_minus_the_summed_loss_of_each_model(tmp_path: Path):
    mine, theirs = some_columns(seed=1), some_columns(seed=2)
    for name in MEASURES["gold"][2:]:  # one tokenizer counts alike
        theirs[name] = mine[name]
    theirs["gt_loss"] = [
        mean * count
        for mean, count in zip(theirs["avg_gt_loss"], theirs["num_token_gt"], strict=True)
    ]
    seq = sequence_logprobs(
        read_log(write(tmp_path, "a.json", mine)), read_log(write(tmp_path, "b.json", theirs))
    )
    assert seq.logp.tolist() == [-loss for loss in mine["gt_loss"]]
    assert seq.ref.tolist() == [-loss for loss in theirs["gt_loss"]]
    assert seq.length.tolist() == mine["num_token_gt"]
    assert {str(part.dtype) for part in seq} == {"torch.float64"}


@settings(max_examples=20)
@given(st.permutations(range(7)), st.permutations(range(7)))
def test_examples_are_paired_by_index_not_by_place(
    tmp_path_factory: pytest.TempPathFactory, mine: list[int], theirs: list[int]
):
    folder = tmp_path_factory.mktemp("logs")
    log = some_log(folder)
    other = log._replace(gold=log.gold._replace(total=total_loss(log) + 1), file="other")
    want, got = (
        sequence_logprobs(log, other),
        sequence_logprobs(take(log, mine), take(other, theirs)),
    )
    for before, after in zip(want, got, strict=True):
        assert after.tolist() == before[list(mine)].tolist()
    shuffled = take(log, mine)
    assert log.prompt and shuffled.prompt == tuple(log.prompt[i] for i in mine)
    assert shuffled.index.tolist() == list(mine)
    np.testing.assert_array_equal(truth_ratio(shuffled), truth_ratio(log)[list(mine)])
    np.testing.assert_array_equal(
        shuffled.rouge["rougeL_recall"], log.rouge["rougeL_recall"][list(mine)]
    )


def test_what_is_no_pair_is_refused_with_counts_and_files(tmp_path: Path):
    log = some_log(tmp_path)
    assert log.prompt is not None and log.gold.length is not None
    templated = log._replace(
        prompt=(*log.prompt[:2], "Question: 2?", *log.prompt[3:]), file="templated.json"
    )
    longer = log._replace(
        gold=log.gold._replace(length=log.gold.length + (log.index == 5)), file="longer.json"
    )
    cases = [
        (
            take(log, [0, 1, 2])._replace(file="few.json"),
            ["examples", "'7 and 3'", "few.json", "3 questions", "`shared`"],
        ),
        (
            some_log(tmp_path, "b", of="writer", count=5),
            ["'7 and 5'", "0 questions occur in both: other splits"],
        ),
        (
            log._replace(index=log.index + 2, file="moved.json"),
            ["index", "[0]", "2 of 7 differ", "moved.json"],
        ),
        (
            templated,
            ["question", "(2, ", "Question: 2?", "1 of 7 differ", "6 questions", "templated.json"],
        ),
        (longer, ["length", "(5, ", "1 of 7 differ", "tokenizer", "longer.json"]),
    ]
    for other, named in cases:
        with pytest.raises(InvalidInput) as caught:
            sequence_logprobs(log, other)
        for part in (*named, log.file):
            assert part in str(caught.value)


def test_logs_without_questions_or_counts_are_paired_by_index_alone(tmp_path: Path):
    log = some_log(tmp_path)
    bare = log._replace(prompt=None, gold=Answers(log.gold.average, None, None), file="bare.json")
    for one, other in ((log, bare), (bare, log), (bare, bare)):
        assert align(one, other).file == other.file
    with pytest.raises(InvalidInput, match=r"equal counts in .*bare.json$"):
        align(log, take(bare, [1, 2]))


def test_identical_logs_are_warned_of_unless_they_are_meant(tmp_path: Path):
    log, other = some_log(tmp_path, "a"), some_log(tmp_path, "b")
    with pytest.warns(
        UserWarning,
        match=r"a.eval_log_forget.json and .*b.eval_log_forget.json hold the same losses",
    ):
        align(log, other, allow_identical=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        align(log, other)
        average = log.gold.average + 1e-9 * (log.index == 3)
        align(log, other._replace(gold=log.gold._replace(average=average)), allow_identical=False)


def test_shared_keeps_the_common_questions_of_both_with_the_first_ones_indices(tmp_path: Path):
    log = some_log(tmp_path, count=9)
    first, second = (
        take(log, [8, 2, 5, 1]),
        take(log, [1, 7, 8, 5])._replace(index=np.arange(4), file="second"),
    )
    mine, theirs = shared(first, second)
    assert mine.index.tolist() == theirs.index.tolist() == [8, 5, 1]
    assert (
        mine.prompt
        == theirs.prompt
        == tuple(f"[INST] Who is author {i}? [/INST]" for i in (8, 5, 1))
    )
    seq = sequence_logprobs(mine, theirs)
    assert seq.logp.tolist() == seq.ref.tolist() == (-total_loss(log)[[8, 5, 1]]).tolist()
    with pytest.raises(InvalidInput, match="0 shared"):
        shared(take(log, [1]), take(log, [2]))
    with pytest.raises(
        InvalidInput,
        match=r"prompt of example 1 = .*each question once in second \(1 repeated; example 1",
    ):
        shared(first, take(second, [0, 1, 1]))
    with pytest.raises(InvalidInput, match=r"question = None .*second"):
        shared(first, second._replace(prompt=None))


def asked(file: str, questions: list[str] | None = None, prompts: list[str] | None = None) -> Asked:
    texts = [None if given is None else tuple(given) for given in (questions, prompts)]
    return Asked(file, np.arange(len(questions or prompts or [])), *texts)


BARE = ["Où est né Ünal?", "Who wrote  The Glass Ferry?", "Is it salty?"]


def in_template(questions: list[str], day: str = "26 Nov 2026") -> list[str]:
    return [
        f"system\n\nToday: {day}\n\nuser\n\n{' '.join(one.split())}\nassistant" for one in questions
    ]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_bare_question_is_the_one_that_a_published_prompt_contains(form: Any):
    own = asked("own", [unicodedata.normalize("NFD", one) for one in BARE])
    theirs = asked("theirs", None, in_template([unicodedata.normalize(form, one) for one in BARE]))
    assert places(own, theirs) == places(theirs, own) == [0, 1, 2]
    order = theirs._replace(index=np.array([2, 0, 1]))
    with pytest.raises(
        InvalidInput, match=r"question = \(0, .*3 of 3 differ.*3 questions occur in both"
    ):
        places(own, order)
    later = asked("later", None, [*in_template(["Who else?"]), *theirs.prompt[::-1]])  # pyright: ignore[reportOptionalSubscript]
    assert shared_places(own, later) == ([0, 1, 2], [3, 2, 1])
    assert shared_places(later, own) == ([1, 2, 3], [2, 1, 0])


def test_a_question_inside_a_longer_one_is_not_shared():
    own = asked("own", ["q1", "q2", "q3", "q4"])
    theirs = asked("theirs", None, in_template(["q10", "q2", "q3", "q4"]))
    assert shared_places(own, theirs) == ([1, 2, 3], [1, 2, 3])


def test_logs_of_two_days_are_one_and_of_two_templates_are_told_apart():
    one, other = (asked(day, None, in_template(BARE, day)) for day in ("26 Nov 2026", "1 Dec 2026"))
    assert places(one, other) == [0, 1, 2] and shared_places(one, other) == ([0, 1, 2], [0, 1, 2])
    plain = asked("plain", None, [f"Question: {one}" for one in BARE])
    with pytest.raises(InvalidInput, match=r"question and template .*3 of 3 differ"):
        places(one, plain)
    # A date that belongs to a question is part of it.
    born = [
        asked(day, None, in_template([f"Who was born on {day}?", "Who?"]))
        for day in ("1 May 1960", "2 May 1960")
    ]
    with pytest.raises(InvalidInput, match="1 of 2 differ"):
        places(*born)


def test_questions_are_the_same_in_two_templates_which_is_warned_of():
    one = asked("one", BARE, in_template(BARE))
    two_blanks = [question.replace(" ", "  ") for question in BARE]
    assert places(one, asked("two", two_blanks, in_template(BARE, "1 Dec 2026"))) == [0, 1, 2]
    with pytest.warns(
        UserWarning, match="one and plain ask the same in different templates: .*Question:"
    ):
        assert places(one, asked("plain", BARE, [f"Question: {text}" for text in BARE])) == [
            0,
            1,
            2,
        ]


# --- truth ratios ---


def slow_ratio(right: float, wrong: list[float], variant: str) -> float:
    """The definitions, one example at a time, in probabilities per token."""
    true, false = math.exp(-right), [math.exp(-loss) for loss in wrong]
    geometric = math.prod(false) ** (1 / len(false))
    return {
        "geometric": geometric / true,
        "arithmetic": sum(false) / len(false) / true,
        "inverse_geometric": true / geometric,
        "prob_mean": true / (true + geometric),
    }[variant]


@pytest.mark.parametrize("variant", TRUTH_RATIOS)
@given(count=st.integers(1, 5), perturbed=st.integers(1, 5), seed=st.integers(0, 99))
@settings(max_examples=10)
def test_truth_ratios_are_their_definitions(
    tmp_path_factory: pytest.TempPathFactory, variant: str, count: int, perturbed: int, seed: int
):
    columns = some_columns(count, perturbed, seed)
    log = read_log(write(tmp_path_factory.mktemp("logs"), "log.json", columns))
    pairs = zip(columns["avg_paraphrased_loss"], columns["average_perturb_loss"], strict=True)
    want = [slow_ratio(right, wrong, variant) for right, wrong in pairs]
    np.testing.assert_allclose(truth_ratio(log, variant), want, rtol=1e-12)


def test_the_arithmetic_ratio_is_never_below_the_geometric_which_is_the_default(tmp_path: Path):
    log = some_log(tmp_path, count=50)
    assert (truth_ratio(log, "arithmetic") > truth_ratio(log, "geometric")).all()
    np.testing.assert_array_equal(truth_ratio(log), truth_ratio(log, "geometric"))
    with pytest.raises(InvalidInput, match=r"variant = 'harmonic' .*geometric, arithmetic"):
        truth_ratio(log, "harmonic")


@pytest.mark.parametrize("variant", LOG_RATIOS)
def test_logarithms_of_ratios_grow_as_the_ratios_do_and_never_saturate(
    tmp_path: Path, variant: str
):
    log = some_log(tmp_path, count=50)
    order = np.argsort(truth_ratio(log, variant))
    assert (np.diff(log_truth_ratio(log, variant)[order]) > 0).all()
    assert log.paraphrased is not None
    far = log._replace(paraphrased=log.paraphrased._replace(average=np.linspace(800, 900, 50)))
    assert (
        np.isfinite(log_truth_ratio(far, variant)).all()
        and len(set(log_truth_ratio(far, variant))) == 50
    )


def test_ratios_of_a_collapsed_model_overflow_without_a_warning(tmp_path: Path):
    log = some_log(tmp_path)
    assert log.paraphrased is not None
    gone = log._replace(paraphrased=log.paraphrased._replace(average=log.paraphrased.average + 1e4))
    want = {"geometric": np.inf, "arithmetic": np.inf, "inverse_geometric": 0.0, "prob_mean": 0.0}
    assert {variant: set(truth_ratio(gone, variant).tolist()) for variant in TRUTH_RATIOS} == {
        variant: {value} for variant, value in want.items()
    }


# --- real logs ---


def real(model: str, task: str = "forget") -> EvaluationLog:
    return read_log(REAL / f"llama2-7b_{model}", task)


@needs_real_logs
@pytest.mark.parametrize(
    ("model", "counts"), [("full", 300), ("retain90", 300), ("retain95", 200), ("retain99", 40)]
)
def test_real_logs_are_read_whole(model: str, counts: int):
    sizes = {task: len(real(model, task).index) for task in TASKS}
    assert sizes == {"retain": 300, "forget": counts, "real_authors": 100, "world_facts": 117}
    for task in TASKS:
        log = real(model, task)
        assert log.layout == ("mapping" if model == "full" else "lists")
        width = 5 if task in ("retain", "forget") else 3
        assert log.perturbed is not None and log.perturbed.average.shape[1] == width
        assert (
            log.prompt is not None
            and len(set(log.prompt)) == len(log.prompt)
            and log.question is None
        )
        assert log.gold.length is not None
        np.testing.assert_allclose(log.gold.average * log.gold.length, total_loss(log), rtol=1e-6)


@needs_real_logs
def test_the_merged_file_of_a_real_log_equals_its_parts():
    for task in TASKS:
        check_same_log(
            read_log(REAL / "llama2-7b_retain95" / AGGREGATED, task), real("retain95", task)
        )


@needs_real_logs
def test_the_logs_own_truth_ratio_is_the_geometric_one():
    for task, name in TASKS.items():
        stored = json.loads((REAL / "llama2-7b_full" / name).read_text())["truth_ratio"]
        np.testing.assert_allclose(
            truth_ratio(real("full", task)), list(stored.values()), rtol=1e-5
        )


def components(log: EvaluationLog, task: str, variant: str) -> tuple[float, float, float]:
    """Probability, ROUGE-L recall and truth ratio of a task, as TOFU defines them."""
    right, ratio = np.exp(-log.gold.average), truth_ratio(log, variant)
    if task in ("real_authors", "world_facts"):
        assert log.perturbed is not None
        right = right / (right + np.exp(-log.perturbed.average).sum(-1))
    score = np.minimum(ratio, 1 / ratio) if task == "forget" else np.maximum(0, 1 - ratio)
    return right.mean(), log.rouge["rougeL_recall"].mean(), score.mean()


@needs_real_logs
def test_components_and_utilities_of_real_models_are_the_published_ones():
    golden = {
        "retain": (0.9898, 0.9822, 0.4719),
        "real_authors": (0.4445, 0.918, 0.5868),
        "world_facts": (0.4187, 0.9088, 0.5468),
        "forget": (0.1436, 0.3984, 0.6694),
    }
    for task, want in golden.items():
        assert components(real("retain90", task), task, "geometric") == pytest.approx(
            want, abs=6e-5
        )
    for model, variant, want in [
        ("retain90", "geometric", 0.6203),
        ("retain90", "arithmetic", 0.5822),
        ("retain95", "geometric", 0.6176),
        ("full", "geometric", 0.6227),
    ]:
        values = [
            x
            for task in TASKS
            if task != "forget"
            for x in components(real(model, task), task, variant)
        ]
        assert stats.hmean(values) == pytest.approx(want, abs=6e-5)


@needs_real_logs
def test_the_wrong_split_looks_harmless_to_a_test_of_distributions_and_is_refused_here():
    # The forget10 log of one retrained model beside the forget05 log of another: p = 0.705, and
    # meaningless.
    ninety, ninety_five = real("retain90"), real("retain95")
    assert stats.ks_2samp(truth_ratio(ninety), truth_ratio(ninety_five)).pvalue == pytest.approx(
        0.705, abs=5e-4
    )
    with pytest.raises(InvalidInput, match=r"'300 and 200'.*100 questions occur in both"):
        align(ninety, ninety_five)
    with pytest.raises(
        InvalidInput, match=r"'300 and 40'.*0 questions occur in both: other splits"
    ):
        align(real("full"), real("retain99"))
    first, second = shared(real("full"), ninety_five)
    assert first.index.tolist() == list(range(200, 300))
    assert len(sequence_logprobs(first, second).logp) == 100


@needs_real_logs
def test_real_logs_of_one_split_pair_up_though_their_layouts_differ():
    full, retrained = real("full"), real("retain90")
    seq = sequence_logprobs(full, retrained)
    assert float(-seq.logp.mean()) == pytest.approx(0.3992, abs=5e-5)
    assert float(-seq.ref.mean()) == pytest.approx(102.1387, abs=5e-5)
    assert align(full, retrained, allow_identical=False).answer == full.answer
    distance = stats.ks_2samp(truth_ratio(full), truth_ratio(retrained), method="asymp")
    assert distance.statistic == pytest.approx(0.38, abs=1e-9) and distance.pvalue < 1e-19  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[" * 100_000 + "]" * 100_000, "levels"),
        ('{"a":' * 50_000 + "1" + "}" * 50_000, "levels"),
        ('{"avg_gt_loss": ' + "9" * 5000 + "}", "digits"),
        ('{"avg_gt_loss": {"0": 0.5, "' + "9" * 30 + '": 0.5}}', "indices"),
        ('{"avg_gt_loss": [0.5], "question": ["\\ud800"]}', "half a character"),
        ('{"avg_gt_loss": [0.5], "average_perturb_loss": [[]]}', "average_perturb_loss"),
        ('{"avg_gt_loss": [NaN]}', "avg_gt_loss"),
        ('{"avg_gt_loss": [[[]]]}', "avg_gt_loss"),
    ],
    ids=range(8),
)
def test_deep_huge_and_odd_logs_are_refused_in_one_line(
    text: str, named: str, tmp_path: Path
) -> None:
    (tmp_path / "log.json").write_text(text)
    with pytest.raises(InvalidInput) as caught:
        read_log(tmp_path / "log.json")
    assert named in str(caught.value) and len(str(caught.value)) < 700
