"""Files of one's own: what can be measured with them is, and the rest is left out and named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import llm
from llm.__main__ import cli
from llm.data import tofu
from llm.data.splits import (
    MEASURED,
    TofuSets,
    checked,
    fitting,
    forget_of,
    is_own,
    retain_word,
    tofu_sets,
    with_wrong,
)
from llm.logs.log import MEMORISED
from llm.logs.measures import MEASURES, TofuLogs
from llm.logs.summaries import lacking
from llm.models.language_model import LanguageModel
from markov.errors import InvalidInput
from markov.files import storage
from tests.helpers import files_in


@pytest.fixture(autouse=True)
def here(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Files with wrong answers, and the same without."""
    for name, own in (("forget10", "mine"), ("retain90", "rest")):
        examples = llm.read(place / f"{name}.json")
        bare = [replace(one, paraphrase=None, perturbed=()) for one in examples]
        tofu.write(examples, tmp_path / f"{own}.json")
        tofu.write(bare, tmp_path / f"{own}_bare.json")
    monkeypatch.chdir(tmp_path)
    yield


@pytest.fixture
def language(place: Path) -> LanguageModel:
    return llm.load(place / "model")


def test_the_sets_of_own_files_are_those_that_are_there(place: Path, tmp_path: Path) -> None:
    mine, rest = llm.read("mine.json"), llm.read("rest.json")
    assert tofu_sets("mine.json") == TofuSets(mine) and TofuSets(mine).tasks == ("forget",)
    assert tofu_sets("mine.json", "rest.json") == TofuSets(mine, rest)
    assert tofu_sets("mine.json").comparable and not tofu_sets("mine_bare.json").comparable
    many = [replace(rest[0], index=row, prompt=f"Who is {row}?") for row in range(MEASURED + 5)]
    tofu.write(many, tmp_path / "many.json")
    found = tofu_sets("mine.json", "many.json").retain
    assert len(found) == MEASURED and set(found) < set(many)
    assert tofu_sets("mine.json", "many.json").retain == found
    # of a folder with TOFU's names the sets follow, as far as they are there
    follows = tofu_sets(place / "forget10")
    assert follows.tasks == ("forget", "retain") and set(follows.retain) <= set(rest)
    assert tofu_sets(place / "forget10", place / "retain90") == follows
    assert tofu_sets(place / "forget10", "rest_bare.json").retain == llm.read("rest_bare.json")
    assert is_own("mine.json") and not is_own("nowhere.json") and not is_own("tofu:retain90")


def test_sets_that_are_half_there_are_refused() -> None:
    mine, bare = llm.read("mine.json"), llm.read("mine_bare.json")
    with pytest.raises(InvalidInput, match="perturbed, index"):
        fitting(TofuSets((*mine[:2], *bare[2:])))
    with pytest.raises(InvalidInput, match="real_authors"):
        fitting(TofuSets(mine, real_authors=bare))
    with pytest.raises(InvalidInput, match="forget"):
        fitting(TofuSets(()))
    with pytest.raises(InvalidInput, match="world_facts"):
        checked(TofuSets(mine, mine, mine))
    for word in ("nowhere.json", "tofu:retain90"):
        with pytest.raises(InvalidInput, match="forgetNN"):
            tofu_sets(word)


def evaluated(place: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    words = ["--model", str(place / "model"), "--device", "cpu", "--max-new-tokens", "3"]
    assert cli(["evaluate", *words, *more]) == 0
    return capsys.readouterr().out


def rows_of(frame: pd.DataFrame) -> set[tuple[str, str]]:
    return set(zip(frame["measure"], frame["task"], strict=True))


KINDS = (*MEASURES, *MEMORISED, "paraphrased_probability")
ALL = {(kind, task) for kind in KINDS for task in ("forget", "retain")}
BARE = {pair for pair in ALL if pair[0] not in ("truth_ratio", "paraphrased_probability")}
QUALITY = {("forget_quality", "forget"), ("ks_statistic", "forget")}


def test_evaluate_names_what_it_leaves_out(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    beside = ["--retrained", str(place / "retrained")]
    both = ["--data", "mine.json", "--retain-data", "rest.json", *beside, "--out", "both"]
    shown = evaluated(place, capsys, *both)
    assert rows_of(storage.read_table(tmp_path / "both" / "measures.parquet")) == ALL | QUALITY
    assert "no model_utility: no logs of real_authors, world_facts" in shown
    assert "no truth_ratio" not in shown and "no forget_quality" not in shown
    before = files_in(tmp_path / "both")
    assert evaluated(place, capsys, *both) == shown and files_in(tmp_path / "both") == before
    logs = evaluated(place, capsys, *both, "--json")
    found = json.loads(logs)
    assert found["model_utility"] is None and 0 <= found["forget_quality"] <= 1

    bare = ["--data", "mine_bare.json", "--retain-data", "rest_bare.json", *beside]
    shown = evaluated(place, capsys, *bare, "--out", "bare", "--legacy")
    assert rows_of(storage.read_table(tmp_path / "bare" / "measures.parquet")) == BARE
    for line in ("no truth_ratio of forget, retain: no wrong", "no forget_quality: no wrong"):
        assert shown.count(line) == 1
    alone = evaluated(place, capsys, "--data", "mine_bare.json", "--out", "alone")
    assert "no model_utility: no logs of retain, real_authors, world_facts" in alone
    assert "retain " not in alone.split("no truth_ratio")[0]
    # the numbers that are there are those of the whole
    whole, part = (storage.read_table(tmp_path / n / "measures.parquet") for n in ("both", "bare"))
    value = [frame.set_index(["measure", "task"])["value"] for frame in (whole, part)]
    np.testing.assert_allclose(value[0][value[1].index], value[1], rtol=1e-6)


def test_a_job_measures_what_the_command_does(place: Path, language: LanguageModel) -> None:
    options: dict[str, Any] = {"max_new_tokens": 3, "progress": False}
    found = llm.evaluate(
        language, "mine.json", retain="rest.json", retrained=place / "retrained", **options
    )
    assert rows_of(found.measures) == ALL | QUALITY
    bare = llm.evaluate(language, "mine_bare.json", retrained=place / "retrained", **options)
    assert rows_of(bare.measures) == {(kind, task) for kind, task in BARE if task == "forget"}
    assert bare.retrained is None and "no forget_quality: no wrong answers" in repr(bare)
    with pytest.raises(InvalidInput, match="retain"):
        llm.evaluate(language, TofuSets(llm.read("mine.json")), retain="rest.json", **options)
    with pytest.raises(InvalidInput, match="retain"):
        llm.evaluate(logs=TofuLogs(), retain="rest.json")


def swept(place: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    words = ["--model", str(place / "model"), "--retrained", str(place / "retrained")]
    words += ["--methods", "npo:0.1@1", "--epochs", "1", "--batch", "3", "--learning-rate", "1e-3"]
    words += ["--max-new-tokens", "2", "--jobs", "1", "--device", "cpu"]
    assert cli(["sweep", *words, *more]) == 0
    return capsys.readouterr().out


def test_sweep_takes_own_files_and_names_what_it_leaves_out(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["--data", "mine.json", "--retain-data", "rest.json", "--out", "own"]
    shown = swept(place, capsys, *own)
    table = storage.read_table(tmp_path / "own" / "sweep.parquet")
    assert set(table["model"]) == {"original", "retrained", "npo:0.1@1"}
    assert rows_of(table) == ALL | QUALITY
    told = "Prob. of real authors and world facts, ROUGE-L of real authors and world facts, "
    told += "Truth ratio of real authors and world facts, MU"
    assert f"left out, since the data for it are missing: {told}\n" in shown
    assert "no best settings" in shown and not (tmp_path / "own" / "best.parquet").exists()
    before = files_in(tmp_path / "own")
    assert swept(place, capsys, *own) == shown
    runs = {path: kept for path, kept in before.items() if path.parent != tmp_path / "own"}
    assert runs.items() <= files_in(tmp_path / "own").items()

    bare = ["--data", "mine_bare.json", "--retain-data", "rest_bare.json", "--out", "bare"]
    shown = swept(place, capsys, *bare)
    found = storage.read_table(tmp_path / "bare" / "sweep.parquet")
    assert rows_of(found) == BARE and "FQ, D, MU\n" in shown
    assert lacking(found)[-3:] == ["FQ", "D", "MU"] and lacking(table)[-1:] == ["MU"]


def test_relearn_leaves_out_what_wrong_answers_would_tell(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", str(place / "model"), "--retrained", str(place / "retrained")]
    words += ["--share", "0.5", "--repeats", "1", "--epochs", "1", "--device", "cpu"]
    for data in ("mine", "mine_bare"):
        asked = [*words, "--data", f"{data}.json", "--out", f"{data}.parquet"]
        assert cli(["relearn", *asked]) == 0
        told = "no forget_quality: no wrong answers" in capsys.readouterr().out
        assert told == (data == "mine_bare")
    whole, bare = (
        storage.read_table(tmp_path / f"{name}_returns.parquet") for name in ("mine", "mine_bare")
    )
    compared = {"forget_quality", "ks_statistic", "other_statistic"}
    assert set(whole) - set(bare) == compared and set(bare) < set(whole)
    pd.testing.assert_frame_equal(whole[list(bare)], bare, check_flags=False, rtol=1e-6)


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (["evaluate", "--data", "nowhere.json"], "nowhere.json"),
        (["evaluate", "--data", "mine.json", "--retain-data", "nowhere.json"], "nowhere.json"),
        (["evaluate", "--data", "mine.json", "--out", "mine.json"], "out"),
        (["evaluate", "--logs", "mine.json", "--retain-data", "rest.json"], "retain_data"),
        (["sweep", "--data", "mine.json"], "retain_data"),
        (["sweep", "--data", "nowhere.json", "--retain-data", "rest.json"], "nowhere.json"),
        (["unlearn", "--data", "mine.json", "--retain-data", "rest.json"], "data, retain"),
    ],
)
def test_what_is_refused_is_one_line_before_any_work(
    words: list[str],
    field: str,
    place: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("llm.models.source.load", pytest.fail)
    model = [] if "--logs" in words else ["--model", str(place / "model")]
    model += ["--retrained", str(place / "retrained")] if words[0] == "sweep" else []
    model += ["--measured", "0"] if words[0] == "unlearn" else []
    assert cli([*words[:1], *model, *words[1:]]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and field in err


def test_wrong_answers_come_from_the_split_beside_the_one_to_forget(tmp_path: Path) -> None:
    whole, bare = llm.read("mine.json"), llm.read("mine_bare.json")
    folder = tmp_path / "tofu"
    folder.mkdir()
    tofu.write(bare, folder / "forget10.json")
    assert forget_of(folder / "forget10") == bare
    tofu.write(whole[::-1], folder / "forget10_perturbed.json")
    for word in (folder / "forget10", folder / "forget10.json"):
        found = forget_of(word)
        assert [one.perturbed for one in found] == [one.perturbed for one in whole]
        assert [replace(one, paraphrase=None, perturbed=()) for one in found] == list(bare)
    assert forget_of("mine_bare.json") == bare and forget_of("mine.json") == whole
    assert with_wrong(bare, whole[1:]) == bare  # of one nothing is known
    assert with_wrong(bare, [*whole[1:], replace(whole[0], perturbed=())]) == bare


@pytest.mark.parametrize("name", ["tofu", "authors", "mine"])
def test_a_folder_may_be_called_as_what_is_fetched(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, kept = llm.read("mine.json"), llm.read("rest.json")
    tofu.write(whole, tmp_path / name / "forget10.json")
    tofu.write(kept, tmp_path / name / "retain90.json")
    assert Path(retain_word(f"{name}/forget10")) == Path(name, "retain90")
    assert llm.read(retain_word(f"{name}/forget10")) == kept
    assert tofu_sets(f"{name}/forget10").forget == whole == forget_of(f"{name}/forget10")


def test_an_attack_compares_by_the_wrong_answers_beside_its_data(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, bare = llm.read("mine.json"), llm.read("mine_bare.json")
    tofu.write(bare, tmp_path / "tofu" / "forget10.json")
    few = ["--epochs", "1", "--repeats", "1", "--which", "random", "--device", "cpu"]
    model = ["relearn", "--model", str(place / "model"), "--retrained", str(place / "retrained")]
    words = [*model, "--data", "tofu/forget10", *few, "--out", "back.parquet"]
    assert cli(words) == 0 and "no forget_quality" in capsys.readouterr().out
    tofu.write(whole, tmp_path / "tofu" / "forget10_perturbed.json")
    assert cli([*words[:-1], "more.parquet"]) == 0
    assert "no forget_quality" not in capsys.readouterr().out
    back = storage.read_table(tmp_path / "more_returns.parquet")
    assert back["ks_statistic"].notna().all()
