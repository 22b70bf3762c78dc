"""Figures of a study: what each draws of its folder, and which folders and names are refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from figures import __main__ as figures
from figures import catalogue, drawn_of
from figures.cache import Context
from figures.language import (
    beside,
    best,
    beta_gamma,
    bias,
    effective_push,
    epochs,
    graddiff,
    relearning,
    studies,
    tradeoff,
    trajectories,
    weight_boxes,
)
from figures.language import study as figure
from figures.questions import llm_claims, truth_ratios
from figures.questions.pushing import study_pushes
from llm import study
from llm.data import tofu
from llm.data.authors.corpus import Authors, splits
from llm.diagnostics.allocation import pearson
from llm.diagnostics.matching import match
from llm.diagnostics.weights import upper_half
from llm.jobs.replicates import KINDS
from llm.jobs.studying import OF_SEVERAL
from llm.logs.log import take
from llm.logs.measures import forget_quality
from llm.logs.reading import OPEN_UNLEARNING, read_log
from llm.models.answers import responses
from llm.models.source import load
from llm.scoring.gradients import gradient_norms
from llm.scoring.gram import gram
from llm.unlearning.runs import read_run
from markov.errors import InvalidInput
from markov.files import storage
from tests.figures.studies import drawn
from tests.helpers import files_in
from tests.llm.conftest import place

__all__ = ["place"]
METHODS = ("npo:0.1@1", "simnpo:2.5@0.1375", "simnpo:1@0.1375", "grad_diff@1")
CORNERS = {"npo:0.1@1": "npo_0.1_lambda1", "simnpo:2.5@0.1375": "simnpo_2.5_lambda0.1375"}
SEEDS = (0, 1)


@pytest.fixture(scope="module")
def done(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two seeds on a tiny model, with SimNPO at two betas."""
    folder = tmp_path_factory.mktemp("study")
    found = splits(Authors(authors=10, questions=8))
    for name in ("forget10", "retain90", "real_authors_perturbed", "world_facts_perturbed"):
        tofu.write(found[name][:8], folder / "questions" / f"{name}.json")
    study(
        place / "model",
        folder / "questions" / "forget10",
        out=folder / "out",
        methods=METHODS,
        attacked=METHODS[:2],
        seeds=SEEDS,
        forget_answers=4,
        measured_answers=3,
        learning_epochs=1,
        epochs=2,
        unlearning_rate=1e-3,
        measured_epochs=(1,),
        max_new_tokens=2,
        attack_epochs=1,
        despite_gate=True,
        progress=False,
    )
    return folder / "out"


def keep(path: Path, rows: Callable[[pd.DataFrame], pd.Series]) -> None:
    """Keep some rows of a table only, and where it is from."""
    table = storage.read_table(path)
    storage.write_table(table[rows(table)].reset_index(drop=True), path, table.attrs[storage.KEY])


@pytest.fixture(scope="module")
def single(done: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same study, as if it had been asked for its first seed only."""
    folder = tmp_path_factory.mktemp("single") / "out"
    shutil.copytree(done, folder)
    shutil.rmtree(folder / "seed1")
    for name in (studies.MEASURES, studies.ATTACKS):
        keep(folder / name, lambda table: table["seed"] == 0)
    for name in OF_SEVERAL:
        (folder / name).unlink()
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SIMNPO_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SIMNPO_LAB_TOFU", raising=False)
    yield


def log_of(done: Path, seed: int, model: str):
    return read_log(done / f"seed{seed}" / "sweep" / model / OPEN_UNLEARNING, "forget")


def test_all_panels_of_a_study_are_drawn_and_the_others_named(
    done: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    begun: list[str] = []
    monkeypatch.setattr(figures, "draw", lambda name, *_: begun.append(name))
    assert figures.cli(["--study", str(done), "--out", str(tmp_path / "drawn")]) == 0
    assert begun == list(catalogue.STUDY)
    told = capsys.readouterr().out
    for one in catalogue.CATALOGUE:
        named = f"{one.name} (paper: {one.panel}) is not drawn: " in told
        assert named is (bool(one.panel) and one.name not in begun)


def test_a_figure_of_a_study_is_drawn_from_the_command_line(done: Path, tmp_path: Path):
    out = tmp_path / "drawn"
    assert figures.cli(["llm_weights_length", "--study", str(done), "--out", str(out)]) == 0
    frame = pd.read_parquet(out / "llm_weights_length.parquet")
    assert set(frame["method"]) == {"npo", "simnpo"} and set(frame["seeds"]) == {2}
    assert frame["study"].str.endswith("forget10 (last 4 answers)").all()
    assert {path.suffix for path in out.iterdir()} == {".pdf", ".png", ".parquet"}


def test_a_study_without_attacks_is_drawn_without_what_came_back(single: Path, tmp_path: Path):
    other, out = tmp_path / "other", tmp_path / "drawn"
    shutil.copytree(single, other)
    known = storage.read_provenance(other / "attacks.parquet")
    storage.write_table(pd.DataFrame(), other / "attacks.parquet", known)
    assert figures.cli(["llm_study", "--study", str(other), "--out", str(out)]) == 0
    frame = pd.read_parquet(out / "llm_study.parquet")
    assert "attack" not in set(frame["kind"]) and frame["other_logp"].isna().all()


@pytest.mark.parametrize("name", ["tradeoff", "llm_sequential", "muse_tradeoff"])
def test_a_figure_that_no_study_holds_is_refused_in_one_line(
    name: str, done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = [name, "llm_study", "--study", str(done), "--out", str(tmp_path / "drawn")]
    assert figures.cli(arguments) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1 and f"left out with {name}: " in told[0]
    assert not (tmp_path / "drawn").exists()


def test_every_figure_says_what_it_needs_of_a_study_or_why_none_holds_it():
    needs = {"any", "corners", "measures", "ratios", "attacks", "grid", "settings", "along"}
    needs |= {"gate"}
    assert {one.study for one in catalogue.CATALOGUE} == {"", *needs}
    for one in catalogue.CATALOGUE:
        everything = {name: "lacking" for name in needs - {"any"}}
        assert bool(drawn_of.unstudied(one.name, everything)) is (one.study != "any")
        assert bool(drawn_of.unstudied(one.name, {})) is (one.study == "")
    assert all(not catalogue.BY_NAME[name].study for name in drawn_of.UNSTUDIED)


def test_what_a_study_lacks_is_known_from_its_folder(single: Path, tmp_path: Path):
    assert set(studies.lacking(single)) == {"gate"}  # which takes several seeds
    other = tmp_path / "other"
    shutil.copytree(single, other)
    for run in (other / "seed0" / "sweep").glob("*npo_*"):
        shutil.rmtree(run)
    known = ["original", "retrained", "grad_diff@1"]
    keep(
        other / studies.MEASURES,
        lambda table: table["model"].isin(known) & (table["measure"] != "model_utility"),
    )
    keep(other / studies.ATTACKS, lambda table: table["model"] == "retrained")
    lacking = {"measures", "corners", "attacks", "grid", "settings", "along", "gate"}
    assert set(studies.lacking(other)) == lacking
    assert figures.cli(["llm_bias", "--study", str(other), "--out", str(tmp_path / "drawn")]) == 2


def test_pushes_of_a_study_are_those_of_its_own_models(
    single: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "drawn"
    assert figures.cli(["push_and_need", "--study", str(single), "--out", str(out)]) == 0
    frame = pd.read_parquet(out / "push_and_need.parquet")
    assert set(frame["kind"]) == {"example", "match", "law"} and set(frame["seeds"]) == {1}
    language = load(single / "seed0" / "original" / "model")
    encoded = responses(language, studies.forget_of(single))
    need = -np.subtract(*(log_of(single, 0, kind).gold.average for kind in KINDS))
    length = np.array([len(one.tokens) - one.prompt for one in encoded], dtype=float)
    own = frame[(frame["kind"] == "example") & (frame["optimizer"] == "gradient descent")]
    np.testing.assert_allclose(own["need"], need * length, rtol=1e-3, atol=1e-4)
    k = gram(language.model, encoded, progress=False).numpy()
    found = frame[frame["kind"].eq("match") & frame["need_of"].eq("total")]
    found = found.set_index(["optimizer", "weighting"])["whole"]
    # At the start the weights of NPO are 1, whatever its beta.
    want = match(need * length, k @ np.ones(len(encoded)))
    assert found["gradient descent", "npo"] == pytest.approx(want.whole, rel=1e-3, abs=1e-5)
    np.testing.assert_allclose(own["moved_npo"], k.sum(1), rtol=1e-4, atol=1e-6 * k.max())
    names = {word for word in found.index.get_level_values(1) if "npo" in word}
    assert names == {"npo", "simnpo"}
    # Batches of AdamW have the retain term of the run of NPO, whose lambda is 1.
    runs = studies.corners(single)[0]
    steps = study_pushes.steps_of(runs)
    assert steps.retain_weight == 1.0 and steps.law == steps.corners["npo"]
    assert steps.corners["simnpo"] in [run.objective for run in runs]
    # No second computation; and where the models are gone it is refused.
    capsys.readouterr()
    told = pd.read_csv(out / "told" / "push_and_need" / "laws.csv")
    assert set(told["count"]) <= {0, 1}
    shutil.copytree(single, tmp_path / "less")
    shutil.rmtree(tmp_path / "less" / "seed0" / "retrained" / "model")
    less = str(tmp_path / "less")
    assert figures.cli(["push_and_need", "--study", less, "--out", str(out)]) == 2
    assert "seed0/retrained/model" in capsys.readouterr().err


def test_weights_of_several_seeds_have_means_of_their_correlations(done: Path, single: Path):
    frame = trajectories.weights_along(Context(study=done))
    first = trajectories.weights_along(Context(study=single))
    pd.testing.assert_frame_equal(
        frame[frame["kind"] == "example"], first[first["kind"] == "example"]
    )
    row = frame[(frame["kind"] == "statistic") & (frame["epoch"] == 2)]
    row = row[(row["method"] == "simnpo") & (row["beta"] == 2.5)].iloc[0]
    found = []
    for seed in SEEDS:
        run = read_run(done / f"seed{seed}" / "sweep" / f"{CORNERS[METHODS[1]]}_seed{seed}")
        own = trajectories.trajectories([run])
        own = own[own["epoch"] == 2]
        one = pearson(own["length"].to_numpy()[None], own["weight"].to_numpy()[None])
        found.append(float(one[0]))
    assert row["pearson"] == pytest.approx(np.mean(found))
    half = 12.706 * np.std(found, ddof=1) / 2**0.5  # Student's t of two values
    assert row["pearson_high"] == pytest.approx(np.mean(found) + half, rel=1e-4)
    boxes = weight_boxes.data(Context(study=done))
    assert (boxes["top_share_low"] <= boxes["top_share"]).all()
    drawn(weight_boxes, boxes)
    assert "top_share_low" not in weight_boxes.data(Context(study=single))


def test_truth_ratios_are_those_of_the_evaluations_and_their_distances_means(done: Path):
    frame = truth_ratios.data(Context(study=done))
    assert set(frame["model"]) >= {"retrained", "original", "npo"}
    row = frame[(frame["kind"] == "statistic") & (frame["half"] == "short")]
    row = row[row["model"] == "npo"].iloc[0]
    distances, p = [], []
    for seed in SEEDS:
        log, retrained = (
            log_of(done, seed, name) for name in (f"npo_0.1_lambda1_seed{seed}", "retrained")
        )
        rows = np.argsort(np.asarray(log.gold.length), kind="stable")[: int(row["count"])]
        test = forget_quality(take(log, rows), take(retrained, rows))
        distances.append(test.statistic)
        p.append(test.p_value)
    assert row["distance"] == pytest.approx(np.mean(distances))
    assert (row["p"], row["p_low"], row["p_high"]) == pytest.approx((np.median(p), min(p), max(p)))
    legend: Any = drawn(truth_ratios, frame).axes[0].get_legend()
    assert any(" to " in text.get_text() for text in legend.get_texts())


def test_two_retrained_models_stand_beside_the_methods(done: Path, single: Path):
    logs = [log_of(done, seed, "retrained") for seed in SEEDS]
    frame = beside.data(Context(study=done))
    floor = frame[frame["kind"] == "floor"]
    assert floor["value"].tolist() == [forget_quality(*logs).p_value]
    assert set(floor["panel"]) == {"default"}
    words = [text.get_text() for text in drawn(beside, frame).legends[0].get_texts()]
    assert "two retrained models" in words
    alone = beside.data(Context(study=single))
    assert set(alone["kind"]) == {"measure"}
    words = [text.get_text() for text in drawn(beside, alone).legends[0].get_texts()]
    assert "two retrained models" not in words
    back = relearning.data(Context(study=done))
    found = back.loc[back["kind"] == "floor", "value"]
    assert found.tolist() == [forget_quality(*logs).statistic]
    assert "floor" not in set(relearning.data(Context(study=single))["kind"])


def test_the_planes_have_the_means_of_the_measures_of_their_methods(done: Path, single: Path):
    table = pd.read_parquet(done / studies.MEASURES)
    for module, methods in ((tradeoff, set(METHODS)), (graddiff, set(METHODS[:4]))):
        frame = module.data(Context(study=done))
        frame = frame[~frame.get("kind", frame["model"]).isin(["difference", "floor"])]
        assert set(frame["model"]) == {"original", "retrained", *methods}
        mean = table[table["measure"] == "ks_statistic"].groupby("model")["value"].mean()
        own = frame[frame["measure"] == "ks_statistic"].set_index("model")["value"]
        assert own.to_dict() == pytest.approx(mean[own.index].to_dict())
        drawn(module, frame)
    logs = [log_of(done, seed, "retrained") for seed in SEEDS]
    for module in (tradeoff, epochs):
        frame = module.data(Context(study=done))
        floor = frame.loc[frame["kind"] == "floor", "value"]
        assert floor.tolist() == [forget_quality(*logs).statistic]
        panels: Any = drawn(module, frame).axes
        words = [text.get_text() for text in panels[1].texts]
        assert words == ["two retrained models"]
        assert floor.iloc[0] in [line.get_ydata()[0] for line in panels[1].lines]
    one = tradeoff.data(Context(study=single))
    one = one[one["kind"] == "measure"]
    mine: Any = table[table["seed"] == 0].set_index(["model", "measure", "task"])
    for row in one.to_dict("records"):
        low = mine.at[(row["model"], row["measure"], row["task"]), "low"]
        assert row["low"] == low or np.isnan(row["low"])


def test_the_corners_of_a_study_are_followed_along_their_epochs(done: Path, single: Path):
    table, one = pd.read_parquet(done / studies.MEASURES), epochs.data(Context(study=single))
    several = epochs.data(Context(study=done))
    for frame in (one, several):
        path = frame[frame["kind"] == "epoch"]
        assert set(path["model"]) == set(METHODS[:3])
        assert path.groupby("model")["epoch"].apply(tuple).tolist() == [(0, 1, 2)] * 3
        drawn(epochs, frame)
    drawn(tradeoff, tradeoff.data(Context(study=done)))
    for word, folder in CORNERS.items():
        ways = []
        for seed in SEEDS:
            run = read_run(done / f"seed{seed}" / "sweep" / f"{folder}_seed{seed}")
            own = run.epochs.set_index("epoch")["ks_statistic"]
            assert own[[0, 2]].isna().all()  # the run itself was measured in between alone
            mine = table[(table["seed"] == seed) & (table["measure"] == "ks_statistic")]
            ends = mine.set_index("model")["value"]
            ways.append([ends["original"], own[1], ends[word]])
        for frame, want in ((one, ways[0]), (several, np.mean(ways, axis=0))):
            path = frame[(frame["kind"] == "epoch") & (frame["model"] == word)]
            assert path["ks_statistic"].tolist() == pytest.approx(list(want))
    path = several[several["kind"] == "epoch"]
    assert (path["ks_statistic_low"] <= path["ks_statistic"]).all()


def rewritten(path: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    """Change a table, and keep where it is from."""
    table = storage.read_table(path)
    storage.write_table(change(table), path, table.attrs[storage.KEY])


def test_a_study_that_measured_at_the_ends_has_no_way_along_its_epochs(
    single: Path, tmp_path: Path
):
    other = tmp_path / "other"
    shutil.copytree(single, other)
    for path in other.glob("seed*/sweep/*/epochs.parquet"):
        rewritten(path, lambda table: table.drop(columns=list(studies.COLUMNS)))
    assert set(studies.lacking(other)) == {"along", "gate"} and studies.along(other).empty
    frame = tradeoff.data(Context(study=other))
    assert set(frame["kind"]) == {"measure"}
    drawn(tradeoff, frame)


def test_runs_of_methods_that_a_study_compares_no_more_are_not_followed(
    single: Path, tmp_path: Path
):
    other = tmp_path / "other"
    shutil.copytree(single, other)
    keep(other / studies.MEASURES, lambda table: ~table["model"].str.contains("npo"))
    assert "along" in studies.lacking(other) and studies.along(other).empty
    keep(other / studies.MEASURES, lambda table: table["model"] != "")
    drawn(tradeoff, tradeoff.data(Context(study=other)))


def test_there_is_no_mean_where_a_seed_has_no_number(done: Path, tmp_path: Path):
    other = tmp_path / "other"
    shutil.copytree(done, other)
    run = other / "seed1" / "sweep" / f"{CORNERS['npo:0.1@1']}_seed1" / "epochs.parquet"
    rewritten(
        run, lambda table: table.assign(retain_loss=table["retain_loss"].where(table["epoch"] != 1))
    )
    shorter = other / "seed0" / "sweep" / f"{CORNERS['simnpo:2.5@0.1375']}_seed0" / "epochs.parquet"
    rewritten(shorter, lambda table: table[:2])
    whole, part = studies.along(done), studies.along(other)
    npo, simnpo = (part[part["model"] == word].set_index("epoch") for word in CORNERS)
    assert npo["retain_loss"].isna().tolist() == [False, True, False]
    before = whole[whole["model"] == "npo:0.1@1"].set_index("epoch")
    pd.testing.assert_series_equal(npo["ks_statistic"], before["ks_statistic"])
    losses = [
        read_run(done / f"seed{seed}" / "sweep" / f"{CORNERS['npo:0.1@1']}_seed{seed}").epochs
        for seed in SEEDS
    ]
    want = np.mean([own["forget_loss"] for own in losses], axis=0)
    assert npo["forget_loss"].tolist() == pytest.approx(list(want))
    assert simnpo.index.tolist() == [0, 1]


def test_settings_of_one_method_have_names_and_lines_of_their_own(single: Path):
    figure = drawn(epochs, epochs.data(Context(study=single)))
    told = {(line.get_label(), line.get_linestyle()) for line in figure.axes[0].lines}
    for line in ("-", "--"):
        assert any((word, line) in told for word in ("simnpo:2.5@0.1375", "simnpo:1@0.1375"))


def test_a_study_without_methods_lacks_measures_and_says_so(
    done: Path, monkeypatch: pytest.MonkeyPatch
):
    table = studies.table_of(done)
    bare = table[table["model"].isin(["original", "retrained"])]
    monkeypatch.setattr(studies, "table_of", lambda _: bare)
    assert studies.lacking(done)["measures"] == "it has no method"


def test_runs_of_any_seed_are_found():
    for name in ("simnpo_2.5_lambda0.1375_seed0", "npo_0.1_lambda1_seed-1"):
        assert studies.CORNER.fullmatch(name)
    assert not studies.CORNER.fullmatch("grad_diff_lambda1_seed0")


def test_a_figure_is_not_drawn_into_what_it_reads(single: Path, capsys: pytest.CaptureFixture[str]):
    before = files_in(single)
    for out in (single, single / "seed0", single / "data"):
        assert figures.cli(["llm_study", "--study", str(single), "--out", str(out)]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert "out" in line and "which is read" in line
    assert files_in(single) == before


def test_simnpo_is_shown_on_the_grid_that_a_study_has(done: Path):
    frame = beta_gamma.data(Context(study=done))
    assert set(frame["model"]) == {"original", "retrained", *METHODS[1:3]}
    texts = [text.get_text() for text in drawn(beta_gamma, frame).axes[0].texts]
    assert len(texts) == 2
    chosen = best.data(Context(study=done))
    assert chosen[chosen["best"]]["method"].nunique() >= 2


def test_the_grid_is_that_of_one_retain_weight(done: Path, monkeypatch: pytest.MonkeyPatch):
    table = studies.measures_of(done, {"simnpo"})
    other = table[table["model"] == METHODS[1]]
    other = other.assign(model="simnpo:2.5@1", retain_weight=1.0, value=0.123)
    both = pd.concat([table, other], ignore_index=True)
    monkeypatch.setattr(studies, "measures_of", lambda *_: both)
    frame = beta_gamma.data(Context(study=done))
    assert set(frame["model"]) == {"original", "retrained", *METHODS[1:3]}


def test_need_and_weight_at_the_start_are_those_of_the_two_models(done: Path):
    frame = bias.data(Context(study=done))
    own = frame[(frame["kind"] == "example") & (frame["objective"] == "simnpo:2.5:0")]
    original, retrained = (log_of(done, 0, name).gold for name in ("original", "retrained"))
    length = np.asarray(original.length)
    needed = (np.asarray(retrained.average) - np.asarray(original.average)) * length
    np.testing.assert_allclose(own.sort_values("index")["needed"], needed, rtol=1e-6)
    assert set(frame["objective"].dropna()) == {"npo:0.1:0", "simnpo:2.5:0", "simnpo:1:0"}
    length_row = frame[(frame["kind"] == "statistic") & (frame["effort"] == "length")]
    assert length_row["spearman_low"].notna().all()
    drawn(bias, frame)


def test_pushes_are_those_of_the_models_that_a_study_keeps(done: Path):
    frame = effective_push.data(Context(study=done, progress=False))
    examples = frame[frame["kind"] == "example"]
    shown = examples.groupby(["method", "beta"])["epoch"].unique().map(sorted).to_dict()
    assert shown == {("npo", 0.1): [0, 2], ("simnpo", 2.5): [0, 2], ("simnpo", 1.0): [0]}
    forget = studies.forget_of(done)
    for epoch, model in ((0, "original"), (2, f"sweep/{CORNERS[METHODS[0]]}_seed0")):
        language = load(done / "seed0" / model / "model")
        norms = gradient_norms(language.model, responses(language, forget), progress=False)
        own = examples[(examples["method"] == "npo") & (examples["epoch"] == epoch)]
        np.testing.assert_allclose(own.sort_values("index")["gradient_norm"], norms, rtol=1e-4)
    drawn(effective_push, frame)


def test_what_attacks_brought_back_has_an_interval_over_seeds(done: Path, single: Path):
    frame = relearning.data(Context(study=done))
    table = pd.read_parquet(done / studies.ATTACKS)
    rows = frame[(frame["kind"] == "estimate") & (frame["quantity"] == "other_logp")]
    assert set(rows["model"]) == {"retrained", "npo", "simnpo"} and set(rows["count"]) == {2}
    one = rows[(rows["model"] == "npo") & (rows["which"] == "shortest") & (rows["epoch"] == 1)]
    mine = table[(table["model"] == METHODS[0]) & (table["which"] == "shortest")]
    assert one["value"].item() == pytest.approx(mine[mine["epoch"] == 1]["other_logp"].mean())
    drawn(relearning, frame)
    alone = relearning.data(Context(study=single))
    estimates = alone[alone["kind"] == "estimate"]
    assert set(estimates["count"]) == {1} and estimates["low"].isna().all()
    log = log_of(done, 0, "original")
    others = np.argsort(np.asarray(log.gold.length), kind="stable")[1:]  # 0.2 of 4 answers is one
    before = alone[(alone["kind"] == "attack") & (alone["which"] == "shortest")]
    assert set(before["original_logp"].round(9)) == {
        round(float(-np.asarray(log.gold.average)[others].mean()), 9)
    }


def test_the_small_print_says_how_many_seeds_there_are_and_lies_below_all_else(
    done: Path, single: Path
):
    for folder, count in ((done, "2 seeds"), (single, "one seed")):
        frame = studies.signed(folder, relearning.data(Context(study=folder)))
        figure = relearning.plot(frame)
        studies.note(figure, frame)
        (text,) = figure.texts
        assert count in text.get_text()
        assert ("without intervals" in text.get_text()) == (folder == single)
        others: list[Any] = [one.get_tightbbox() for one in (*figure.axes, *figure.legends)]
        assert text.get_window_extent().y1 < min(box.y0 for box in others)


def test_a_study_is_drawn_with_its_seeds_means_weights_and_attacks(done: Path):
    frame = figure.data(Context(study=done))
    table = pd.read_parquet(done / "measures.parquet")
    utility = table[table["measure"] == "model_utility"].groupby("model")["value"].mean()
    means = frame[(frame["kind"] == "mean") & (frame["measure"] == "model_utility")]
    assert means.set_index("model")["value"].to_dict() == pytest.approx(utility.to_dict())
    weights = frame[frame["kind"] == "weight"]
    assert set(zip(weights["model"], weights["seed"], weights["epoch"], strict=True)) == {
        (word, seed, epoch) for word in METHODS for seed in (0, 1) for epoch in (0, 1, 2)
    }
    first = weights[weights["epoch"] == 0].set_index("model")["spearman"]
    assert first[[METHODS[0], METHODS[3]]].isna().all() and (first[METHODS[1]] < 0).all()
    attacked = frame[frame["kind"] == "attack"]
    assert set(attacked["model"]) == {"retrained", *METHODS[:2]}
    assert frame["kind"].eq("floor").sum() == 1
    apart, every = (
        frame[frame["kind"] == "difference"],
        pd.read_parquet(done / "differences.parquet"),
    )
    both = apart.merge(every, on=["model", "other", "measure", "seed"])
    assert len(both) == len(apart) > 0 and set(apart["seed"]) == {0, 1}
    for name in ("value", "low", "high"):
        assert both[f"{name}_x"].to_list() == both[f"{name}_y"].to_list()
    drawn = figure.plot(frame)
    left, middle, right = drawn.axes
    assert len(middle.get_lines()) == 1 + 2 * 2  # a rule, and both seeds of two methods
    assert len(right.get_lines()) == 3 + 3 * 2 * 2  # three of them for the legend alone
    assert any(line.get_linestyle() == ":" for line in left.get_lines())


@pytest.mark.parametrize(
    "arguments",
    [
        ["llm_study"],
        ["--study", "nowhere"],
        ["--study", ".", "--runs", "."],
        ["--study", ".", "--gallery"],
        ["llm_studies"],
    ],
)
def test_what_is_no_study_is_refused_in_one_line(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert figures.cli([*arguments, "--out", str(tmp_path / "drawn")]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1 and ("study" in told[0] or "figure" in told[0])
    assert not (tmp_path / "drawn").exists()


def test_a_study_without_measures_is_refused(tmp_path: Path):
    with pytest.raises(InvalidInput, match="study"):
        studies.check(tmp_path)


def test_what_each_training_says_of_a_claim_is_what_its_measures_and_logs_say(done: Path) -> None:
    context = Context(study=done, progress=False)
    found = llm_claims.trainings(context, done)
    numbers, table = llm_claims.Numbers(found), studies.table_of(done)
    first = table[(table["model"] == "npo:0.1@1") & (table["measure"] == "model_utility")]
    assert numbers.of("utility", "npo").tolist() == first.sort_values("seed")["value"].tolist()
    assert numbers.of("utility", "npo").index.tolist() == list(SEEDS)
    # After an epoch: what was recorded on the way, and the start of both methods is one model.
    start = [numbers.of("utility", name, 0).tolist() for name in ("npo", "simnpo")]
    assert start[0] == start[1] and len(numbers.of("utility", "simnpo", 1)) == len(SEEDS)
    # Before the first update SimNPO's weight falls with length, and NPO's is one for all.
    weights = numbers.of("correlation", "simnpo", 0)
    assert (weights < 0).all() and numbers.of("correlation", "npo", 0).isna().all()
    for seed, own in zip(SEEDS, studies.logs_of(done, "x"), strict=True):
        length = np.asarray(own.original.gold.length)
        long = upper_half(length, np.asarray(own.original.index))
        halves = [take(log, np.flatnonzero(~long)) for log in (own.unlearned["npo"], own.retrained)]
        wanted = forget_quality(*halves).statistic
        assert numbers.of("distance, short", "npo")[seed] == pytest.approx(wanted)
