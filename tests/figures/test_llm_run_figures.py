"""Figures of runs of unlearning: which runs are made and kept, what their frames say, and what
is drawn of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.colors
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from scipy import stats

from figures import style
from figures.__main__ import cli as figures_cli
from figures.cache import Context
from figures.catalogue import ALL, BY_NAME, module_of
from figures.language import (
    effective_push,
    reference_noise,
    weight_boxes,
    weights_epoch1,
    weights_length,
)
from figures.language import runs as llm_runs
from figures.language import sweeps as llm_sweeps
from figures.language import trajectories as llm_trajectories
from figures.language.own_model import OwnModel, runs_of_own
from figures.language.reference_noise import NONE, OWN, START, Referenced
from figures.language.runs import (
    Perturbation,
    Wanted,
    default_log,
    run_of,
    runs,
    runs_of,
    trajectories,
)
from figures.language.trajectories import at_epochs, frame_of_runs, panels_of
from figures.scale import quick_scale
from llm.data.sources import read
from llm.diagnostics.weights import corners
from llm.logs.log import Answers, EvaluationLog, truth_ratio
from llm.models.answers import log_table, scores
from llm.models.language_model import load_saved, perturbed
from llm.models.small_authors import build, folder_of, readings, sets
from llm.scoring.limits import BUDGET
from llm.training.adapters import Lora
from llm.training.checkpointing import parameters_digest
from llm.unlearning.runs import EPOCHS, MODEL, Run
from llm.unlearning.unlearn import as_kept
from markov.errors import InvalidInput
from markov.files import storage
from markov.objectives import (
    Objective,
    SequenceLogProbs,
    gradient_ascent,
    length_normalized_npo,
    npo,
    reference_free_npo,
    simnpo,
)
from tests.figures.studies import drawn, in_place, tiny_study, without_models
from tests.helpers import files_in

TINY = tiny_study(questions=4, percent=34, learning_rate=3e-3, noises=(0.0, 1.0))
STUDY = llm_runs.study  # before the tiny one takes its place
CORNERS = corners(0.1, 4.5)
FORGET = len(sets(TINY.models).forget)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    """The tiny study in place of the figures', with a cache of its own; whoever asks first makes
    its runs.
    """
    with in_place(TINY, tmp_path_factory.mktemp("study"), llm_runs, reference_noise):
        yield Context(progress=False, n_jobs=1)


@pytest.fixture
def untrained(context: Context) -> Iterator[None]:
    """A run is there, and no model that could be trained."""
    run_of(context, npo(0.1))
    with without_models():
        yield


REFUSED = "SIMNPO_LAB_CACHE"  # what a model is refused for that would have to be made


def some_answers(length: np.ndarray, seed: int) -> EvaluationLog:
    """The losses of answers of these lengths, their paraphrases and five wrong ones each."""
    rng, count = np.random.default_rng(seed), len(length)
    average = rng.uniform(0.1, 3, (7, count))
    per, wrong = np.broadcast_to(length, (7, count)), average[2:].T
    gold, right = (Answers(average[row], average[row] * length, length) for row in (0, 1))
    return EvaluationLog(
        "a log", "made", np.arange(count), gold, right, Answers(wrong, wrong * per[2:].T, per[2:].T)
    )


def some_run(
    objective: Objective, *, epochs: int = 2, count: int = 12, seed: int = 0, drop: float = 0.3
) -> Run:
    """A run in which answers fall by random amounts, `drop` nats per token and epoch; lengths
    follow from `count`.
    """
    rng, length = (
        np.random.default_rng(seed),
        np.random.default_rng(count).integers(2, 90, count).astype(float),
    )
    ref = -rng.uniform(0.01, 0.4, count) * length
    frames = []
    for epoch in range(epochs + 1):
        logp = ref - epoch * drop * rng.uniform(0.2, 1, count) * length
        facts = {
            "epoch": epoch,
            "index": np.arange(count),
            "logp": logp,
            "length": length,
            "ref": ref,
        }
        needs = {"retrained": ref - length, "needed": length, "needed_per_token": 1.0}
        frames.append(
            pd.DataFrame(
                {**facts, "gradient_norm": rng.uniform(1, 9, count) * length**0.5, **needs}
            )
        )
    kinds = {name: place for place, name in enumerate(("original", "retrained", "unlearned"))}
    logs = [
        log_table(some_answers(length, 10 * seed + at)).assign(model=name)
        for name, at in kinds.items()
    ]
    rows = pd.DataFrame(
        {"epoch": range(epochs + 1), "retain_loss": rng.uniform(0.1, 1, epochs + 1)}
    )
    known = {
        "unlearning": {"objective": {"class": "Objective", **objective._asdict()}},
        "model": "a model",
    }
    return Run(pd.concat(frames, ignore_index=True), pd.concat(logs), rows, known, Path("a run"))


def four(**options: Any) -> list[Run]:
    return [
        some_run(objective, seed=place, **options)
        for place, objective in enumerate(CORNERS.values())
    ]


def law(objective: Objective, rows: pd.DataFrame) -> np.ndarray:
    """The weight written out."""
    beta, gamma, reference, normalize = (float(value) for value in objective)
    logp, length, ref = (rows[name].to_numpy(dtype=float) for name in SequenceLogProbs._fields)
    z = beta * (logp - reference * ref) / length**normalize + gamma
    return 2 / (1 + np.exp(-z)) / length**normalize


def legend(axes: Axes) -> list[str]:
    found = axes.get_legend()
    assert found is not None
    return [text.get_text() for text in [found.get_title(), *found.get_texts()]]


def points(axes: Axes) -> list[tuple[list[float], list[float], str]]:
    """Data and colour of each line, in the order of drawing."""
    found = []
    for line in axes.lines:
        x, y = (np.asarray(values, dtype=float).tolist() for values in line.get_data())
        found.append((x, y, matplotlib.colors.to_hex(line.get_color()).upper()))
    return found


# --- runs: made once, and kept under what they depend on ---


def test_a_run_is_made_once_and_read_afterwards(context: Context, request: pytest.FixtureRequest):
    first = run_of(context, npo(0.1))
    request.getfixturevalue("untrained")
    again = run_of(context, npo(0.1))
    assert again.folder == first.folder and again.objective == npo(0.1)
    pd.testing.assert_frame_equal(again.examples, first.examples)
    assert sorted(set(again.examples["epoch"])) == [0, 1, 2] and len(again.examples) == 3 * FORGET
    assert again.examples["gradient_norm"].gt(0).all()


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize(
    "ask",
    [
        lambda context: run_of(context, npo(0.11)),
        lambda context: run_of(context, npo(0.1), start="retrained"),
        lambda context: run_of(context, npo(0.1), noise=Perturbation(0.5)),
        lambda context: run_of(context, npo(0.1), noise=Perturbation(1.0, 0.25)),
    ],
)
def test_another_objective_start_or_noise_is_another_run(
    ask: Callable[[Context], Run], context: Context
):
    run_of(context, npo(0.1))
    with pytest.raises(InvalidInput, match=REFUSED):
        ask(context)


def test_another_study_is_another_run(context: Context, untrained: None):
    for other in (
        replace(TINY, learning_rate=2e-3),
        replace(TINY, retain_weight=0.5),
        replace(TINY, epochs=1),
    ):
        with (
            in_place(other, storage.cache_dir(), llm_runs),
            pytest.raises(InvalidInput, match=REFUSED),
        ):
            run_of(context, npo(0.1))


def test_a_run_older_than_the_moment_asked_for_is_made_anew(context: Context):
    first = run_of(context, npo(0.1))
    written = (first.folder / EPOCHS).stat().st_mtime
    again = run_of(replace(context, since=written + 1e-6), npo(0.1))
    assert again.folder == first.folder and (again.folder / EPOCHS).stat().st_mtime > written
    pd.testing.assert_frame_equal(again.examples, first.examples)
    assert run_of(replace(context, since=written), npo(0.1)).examples.equals(again.examples)


def test_a_run_starts_where_the_default_model_of_its_kind_is(context: Context):
    kinds = {
        "original": run_of(context, npo(0.1)),
        "partial": run_of(context, npo(0.1), start="partial"),
    }
    retrained = default_log(context, "retrained")
    for kind, run in kinds.items():
        start, log = run.examples[run.examples["epoch"] == 0], default_log(context, kind)
        assert run.settings["model"] == f"authors:{kind}"
        assert log.gold.total is not None and retrained.gold.total is not None
        np.testing.assert_allclose(start["logp"], -log.gold.total, rtol=1e-5)
        np.testing.assert_allclose(start["retrained"], -retrained.gold.total)
        for name, known in {"original": log, "retrained": retrained}.items():
            np.testing.assert_allclose(truth_ratio(run.logs[name]), truth_ratio(known))
    # What the partial model has not read it knows less well than the original does, and has less to
    # forget.
    unread = np.array(readings(TINY.models)) == 0
    needed = {
        kind: run.examples.loc[run.examples["epoch"] == 0, "needed"].to_numpy()
        for kind, run in kinds.items()
    }
    assert needed["partial"][unread].sum() < needed["original"][unread].sum()


def test_a_perturbed_reference_changes_ref_and_not_where_the_model_starts(context: Context):
    clean, noisy = run_of(context, npo(0.1)), run_of(context, npo(0.1), noise=Perturbation(1.0))
    mine, theirs = (run.examples[run.examples["epoch"] == 0] for run in (clean, noisy))
    np.testing.assert_array_equal(mine["logp"], theirs["logp"])
    np.testing.assert_array_equal(mine["ref"], mine["logp"])
    language = build(TINY.models, "original", progress=False)
    model = perturbed(language.model, scale=1.0, share=0.5, seed=llm_runs.SEED)
    expected = scores(language._replace(model=model), sets(TINY.models).forget, progress=False)
    np.testing.assert_allclose(theirs["ref"], expected["logp"], rtol=1e-5)
    assert not np.isclose(theirs["ref"], mine["ref"], rtol=1e-3).any()
    assert not np.allclose(clean.examples["logp"], noisy.examples["logp"])


def test_a_share_of_nothing_perturbs_nothing(context: Context):
    clean, same = run_of(context, npo(0.1)), run_of(context, npo(0.1), noise=Perturbation(3.0, 0.0))
    assert clean.folder != same.folder
    np.testing.assert_allclose(same.examples["logp"], clean.examples["logp"], rtol=1e-3)
    np.testing.assert_allclose(same.examples["ref"], clean.examples["ref"], rtol=1e-5)


def test_the_runs_are_the_four_corners_with_the_retain_weight_of_their_scale(context: Context):
    found = runs(context)
    assert [run.objective for run in found] == list(CORNERS.values())
    lambdas = {run.objective: run.settings["unlearning"]["retain_weight"] for run in found}
    assert lambdas == {one: 0.125 if one.normalize else 1.0 for one in CORNERS.values()}
    assert llm_runs.source_of(context) == llm_runs.DEFAULT


def test_of_several_runs_only_those_missing_are_made_and_all_come_in_the_order_asked_for(
    context: Context,
):
    known = [simnpo(4.5), npo(0.1)]
    before = runs_of(context, [Wanted(objective) for objective in known])
    kept = files_in(storage.cache_dir() / "unlearning")
    wanted = [
        Wanted(known[0]),
        Wanted(npo(0.3)),
        Wanted(known[1]),
        Wanted(known[1], noise=Perturbation(0.0)),
    ]
    found = runs_of(context, wanted)
    assert kept.items() < files_in(storage.cache_dir() / "unlearning").items()
    assert [run.objective for run in found] == [one.objective for one in wanted]
    assert [found[0].folder, found[2].folder] == [run.folder for run in before]
    assert len({run.folder for run in found}) == 4


def test_runs_of_the_users_own_are_read_and_none_is_made(
    context: Context, tmp_path: Path, request: pytest.FixtureRequest
):
    folders = tuple(run_of(context, objective).folder for objective in (simnpo(4.5), npo(0.1)))
    request.getfixturevalue("untrained")
    own = replace(context, runs=folders, since=math.inf)
    found = runs(own)
    assert [run.folder for run in found] == list(folders)
    assert [run.objective for run in found] == [simnpo(4.5), npo(0.1)]
    assert llm_runs.source_of(own) == ", ".join(folder.name for folder in folders)
    for module in (weights_epoch1, weight_boxes, weights_length, effective_push):
        frame = module.data(own)
        assert list(dict.fromkeys(frame["method"])) == ["simnpo", "npo"]
        titles = [axes.get_title() for axes in drawn(module, frame).axes if axes.get_title()]
        assert titles[:2] == ["NPO, β = 0.1", "SimNPO, β = 4.5"] or module is weights_length
    with pytest.raises(InvalidInput, match="there is no such run"):
        runs(replace(context, runs=(tmp_path / "none",)))


def test_the_studies_of_the_figures_differ_in_size_alone():
    small, full = STUDY(quick_scale()), STUDY(Context().scale)
    assert small.objectives() == full.objectives() == CORNERS
    assert (
        small.models.authors.authors < full.models.authors.authors
        and small.epochs == full.epochs == 5
    )
    assert set(small.noises) <= set(full.noises)
    assert full.unlearning(npo(0.1)).gradients == (0, 1, 5)  # those that llm_effective_push shows


# --- trajectories and correlations ---


@settings(max_examples=10)
@given(
    st.floats(0.01, 5),
    st.floats(-1, 1),
    st.sampled_from(["npo", "free", "normalized", "simnpo"]),
    st.integers(0, 9),
)
def test_the_weight_of_a_trajectory_is_the_objectives(
    beta: float, gamma: float, corner: str, seed: int
):
    made = {"npo": npo(beta), "free": reference_free_npo(beta, gamma)}
    made |= {"normalized": length_normalized_npo(beta, gamma), "simnpo": simnpo(beta, gamma)}
    objective, other = made[corner], gradient_ascent()
    frame = trajectories([some_run(objective, seed=seed), some_run(other, epochs=1)])
    own, rest = frame[frame["run"] == 0], frame[frame["run"] == 1]
    numbers = (torch.tensor(own[name].to_numpy()) for name in SequenceLogProbs._fields)
    np.testing.assert_array_equal(own["weight"], objective.weight(SequenceLogProbs(*numbers)))
    np.testing.assert_allclose(own["weight"], law(objective, own))
    assert (rest["weight"] == 1).all() and len(own) == 36 and len(rest) == 24
    assert set(own["beta"]) == {beta} and set(own["gamma"]) == {objective.gamma}
    assert set(rest["method"]) == {"gradient_ascent"}


def test_correlations_are_scipys_with_the_estimate_in_the_interval():
    found = four(count=30)
    frame = frame_of_runs(found, resamples=200)
    statistics, examples = (frame[frame["kind"] == kind] for kind in ("statistic", "example"))
    assert len(statistics) == 12 and len(examples) == 4 * 3 * 30
    for row in statistics.to_dict("records"):
        own = examples[(examples["run"] == row["run"]) & (examples["epoch"] == row["epoch"])]
        assert row["count"] == 30 and row["method"] == own["method"].iloc[0]
        if (row["method"], row["epoch"]) == ("npo", 0):
            assert all(
                math.isnan(row[name])
                for name in ("pearson", "pearson_low", "spearman", "spearman_high")
            )
            continue
        for name, of_scipy in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr)):
            want = of_scipy(own["length"], np.round(own["weight"], 12)).statistic
            assert row[name] == pytest.approx(want)
            assert row[f"{name}_low"] < row[name] + 1e-9 and row[name] - 1e-9 < row[f"{name}_high"]
    # At the reference the length-normalised weight is 1/|y|, whose ranks are those of the length,
    # reversed.
    (first,) = statistics[
        (statistics["method"] == "length_normalized_npo") & (statistics["epoch"] == 0)
    ]["spearman"]
    assert first == pytest.approx(-1)


def test_what_the_users_own_model_went_through_is_kept_and_made_again_on_request(
    context: Context, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = {kind: str(folder_of(TINY.models, kind)) for kind in ("original", "retrained")}
    for kind in folders:
        build(TINY.models, kind, progress=False)
    rates: dict[str, Any] = {"learning_rate": 1e-3, "batch": 7}
    data: dict[str, Any] = {"data": "authors:forget01", "retain_data": "authors:retain99"}
    own = OwnModel(model=folders["original"], retrained=folders["retrained"], **data, **rates)
    wanted = [replace(TINY.unlearning(npo(0.1)), gradients=())]

    def made(since: float) -> int:
        (run,) = runs_of_own(replace(context, since=since), own, wanted)
        return (run.folder / EPOCHS).stat().st_mtime_ns

    monkeypatch.setattr("figures.language.own_model.is_small", lambda _: False)
    first = made(0.0)
    told = re.search(r"^runs of .* to make: 1, \d+ s$", capsys.readouterr().err, re.MULTILINE)
    assert told is not None
    assert made(0.0) == first and "to make" not in capsys.readouterr().err
    later = made(first / 1e9 + 0.001)
    assert later > first and made(later / 1e9 - 0.001) == later


@pytest.mark.filterwarnings("ignore:.*collapsed|nothing was forgotten:RuntimeWarning")
def test_the_reference_of_a_model_of_the_users_own_is_perturbed(context: Context) -> None:
    folders = {kind: str(folder_of(TINY.models, kind)) for kind in ("original", "retrained")}
    for kind in folders:
        build(TINY.models, kind, progress=False)
    data: dict[str, Any] = {"data": "authors:forget01", "retain_data": "authors:retain99"}
    own = OwnModel(model=folders["original"], retrained=None, **data, learning_rate=1e-3, batch=7)
    with pytest.raises(InvalidInput, match="retrained = None"):
        reference_noise.data(replace(context, own=own))
    own = replace(own, retrained=folders["retrained"])
    frame = reference_noise.data(replace(context, own=own))
    assert set(frame["source"]) == {f"{Path(own.model).name}, authors:forget01"}
    start = frame[(frame["kind"] == "example") & (frame["epoch"] == 0)].set_index("reference")
    noises = [f"{scale:g}" for scale in TINY.noises]
    assert set(start.index) == {reference_noise.OWN, reference_noise.NONE, *noises}
    assert np.allclose(start.loc[[reference_noise.OWN], "factor"].astype(float), 1)
    language, forget = load_saved(own.model, device="cpu"), read("authors:forget01")
    for scale in TINY.noises:
        model = perturbed(language.model, scale=scale, seed=0)
        want = scores(language._replace(model=model), forget, progress=False)
        found = start.loc[[f"{scale:g}"]].set_index("index")["ref"].astype(float)
        np.testing.assert_allclose(
            found.to_numpy(), want.set_index("index")["logp"].loc[found.index], rtol=1e-5
        )
    assert drawn(reference_noise, frame).get_supxlabel() == frame["source"].iloc[0]


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("model", "llm_sequential --model out/mine --retrained out/theirs"),
        ("model", "llm_beside --model out/mine"),
        ("runs", "llm_tradeoff --runs out/npo"),
        ("runs", "llm_reference_noise llm_weights_length --runs out/npo out/mine"),
    ],
)
def test_a_figure_that_is_not_drawn_of_what_was_given_is_refused(
    field: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert figures_cli([*words.split(), "--out", str(tmp_path / "drawn")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {field} = 'out/") and words.split()[0] in line
    assert not (tmp_path / "drawn").exists()


@pytest.mark.filterwarnings("ignore:.*collapsed|nothing was forgotten:RuntimeWarning")
def test_a_model_of_the_users_own_unlearns_as_its_options_say(context: Context) -> None:
    build(TINY.models, "original", progress=False)
    data: dict[str, Any] = {"data": "authors:forget01", "retain_data": "authors:retain99"}
    kept: dict[str, Any] = {"retrained": None, "learning_rate": 1e-3, **data}
    folder = str(folder_of(TINY.models, "original"))
    plain = OwnModel(model=folder, **kept, batch=16)
    other = replace(
        plain,
        epochs=1,
        batch=7,
        precision="bfloat16",
        gradient_checkpointing=True,
        lora_rank=2,
        template="llama2_chat",
        budget=512,
    )
    wanted = [replace(TINY.unlearning(npo(0.1)), gradients=())]
    runs_by = [runs_of_own(context, own, wanted)[0] for own in (plain, other)]
    first, second = (run.settings["unlearning"] for run in runs_by)
    asked = replace(TINY.optimization(), learning_rate=1e-3, batch=16, budget=BUDGET)
    assert first == as_kept(replace(wanted[0], optimization=asked))
    made = second["optimization"]
    told = ("epochs", "batch", "precision", "gradient_checkpointing", "budget")
    assert [made[name] for name in told] == [1, 7, "bfloat16", True, 512]
    assert second["lora"]["rank"] == 2
    assert runs_by[0].settings["forget"] != runs_by[1].settings["forget"]  # other templates
    again = runs_of_own(context, replace(other, memory="80GB"), wanted)[0]
    assert again.folder == runs_by[1].folder  # a plan changes no run
    sweeps = [replace(context, own=own) for own in (plain, other)]
    task = llm_sweeps.task_of(replace(context, own=replace(plain, retrained=folder)))
    folders = {llm_sweeps.folder_for(one, task) for one in sweeps}
    assert len(folders) == 2  # runs with adapters are no others' runs
    assert {run.lora for run in llm_sweeps.runs_of(sweeps[1], ["npo:0.1@1"])} == {Lora(rank=2)}


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("epochs", "llm_weights_length --epochs 3"),
        ("precision", "llm_weights_length --precision bfloat16"),
        ("lora_rank", "llm_weights_length --lora-rank 4"),
        ("memory", "llm_weights_length --memory 24GB"),
        ("epochs", "llm_weights_length --model {} --epochs 0"),
        ("batch", "llm_weights_length --model {} --batch 0"),
        ("lora_rank", "llm_weights_length --model {} --lora-rank 0"),
        ("memory", "llm_weights_length --model {} --memory 0.0001GB"),
    ],
)
def test_options_of_a_model_of_the_users_own_are_refused_before_any_work(
    field: str, words: str, context: Context, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(TINY.models, "original", progress=False)
    model = str(folder_of(TINY.models, "original"))
    more = ["--data", "authors:forget01"] if "{}" in words else []
    out = tmp_path / "drawn"
    assert figures_cli([*words.format(model).split(), *more, "--out", str(out)]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {field}")
    assert not out.exists()


def test_the_parameters_of_a_model_of_the_users_own_are_read_once_each_time_it_is_loaded(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(TINY.models, "original", progress=False)
    digest, own = parameters_digest, str(folder_of(TINY.models, "original"))
    read: list[str] = []

    def counted(model: Any) -> str:
        read.append(digest(model))
        return read[-1]

    for module in ("figures.language.own_model", "llm.unlearning.runs", "llm.unlearning.unlearn"):
        monkeypatch.setattr(f"{module}.parameters_digest", counted)
    data: dict[str, Any] = {"data": "authors:forget01", "retain_data": "authors:retain99"}
    chosen = OwnModel(model=own, retrained=None, **data, learning_rate=2e-3, batch=7)
    wanted = [replace(TINY.unlearning(one), gradients=()) for one in (npo(0.1), simnpo(4.5))]
    made = runs_of_own(context, chosen, wanted)
    start = digest(load_saved(own, device="cpu").model)
    assert read == [start, start]
    assert [run.settings["parameters"] for run in made] == [start, start]
    assert all(digest(load_saved(run.folder / MODEL).model) != start for run in made)


def test_only_epochs_that_were_run_can_be_shown():
    frame = frame_of_runs([some_run(npo(0.1))], resamples=100)
    assert set(at_epochs(frame, [0, 2])["epoch"]) == {0, 2}
    assert len(at_epochs(frame, [1])) == 13
    with pytest.raises(InvalidInput, match="epoch = 3"):
        at_epochs(frame, [1, 3])


def test_panels_stand_in_the_order_of_the_corners_whatever_the_order_of_runs():
    objectives = [
        gradient_ascent(),
        simnpo(2.0, 0.5),
        npo(0.1),
        Objective(1.0, 0.0, 0.5, 0.5),
        npo(0.2),
    ]
    frame = frame_of_runs([some_run(objective) for objective in objectives], resamples=100)
    want = [
        (2, "NPO, β = 0.1"),
        (4, "NPO, β = 0.2"),
        (1, "SimNPO, β = 2, γ = 0.5"),
        (0, "GA"),
        (3, "between, β = 1"),
    ]
    assert panels_of(frame) == want


# --- the pictures of weights ---


def test_the_figure_of_epoch_1_draws_weights_before_and_after_with_their_correlations(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(llm_trajectories, "runs", lambda context: four())
    frame = weights_epoch1.data(Context())
    assert set(frame["epoch"]) == {0, 1} and set(frame["source"]) == {llm_runs.DEFAULT}
    figure = drawn(weights_epoch1, frame)
    assert len(figure.axes) == 4
    for axes, (run, label) in zip(figure.axes, panels_of(frame), strict=True):
        assert axes.get_title() == label
        own = frame[frame["run"] == run]
        examples, found = (
            own[own["kind"] == "example"],
            own[(own["kind"] == "statistic") & (own["epoch"] == 1)].iloc[0],
        )
        for (x, y, color), epoch, want in zip(
            points(axes), (0, 1), ("#BFBFBF", style.COLORS[found["method"]]), strict=True
        ):
            part = examples[examples["epoch"] == epoch]
            assert (x, y, color) == (part["length"].tolist(), part["weight"].tolist(), want)
        (text,) = (text.get_text() for text in axes.texts)
        for name in ("pearson", "spearman"):
            bounds = f"({found[f'{name}_low']:.2f} to {found[f'{name}_high']:.2f})"
            assert f"{name.title()} {found[name]:.2f} {bounds}" in text
        assert axes.get_ylim()[0] == 0 and axes.get_ylim()[1] > examples["weight"].max()


def test_a_constant_weight_has_no_correlation_and_a_run_that_ended_no_text():
    alive = frame_of_runs([some_run(gradient_ascent())], resamples=100)
    (axes,) = drawn(weights_epoch1, at_epochs(alive, [0, 1])).axes
    assert [text.get_text() for text in axes.texts] == [
        "Pearson none: constant\nSpearman none: constant"
    ]
    frame = at_epochs(
        frame_of_runs([some_run(npo(0.1)), some_run(simnpo(1.0), epochs=0)], resamples=100), [0, 1]
    )
    left, right = drawn(weights_epoch1, frame).axes
    assert len(left.texts) == 1 and not right.texts
    assert len(points(right)[0][0]) == 12 and points(right)[1][0] == []


@settings(max_examples=20)
@given(st.lists(st.floats(0.01, 2), min_size=1, max_size=40))
def test_the_share_of_the_heaviest_tenth_is_at_least_that_of_equal_weights(weights: list[float]):
    count = max(1, round(len(weights) / 10))
    frame = pd.DataFrame(
        {
            "run": 0,
            "epoch": [0] * len(weights) + [1] * len(weights),
            "weight": [*weights, *[0.3] * len(weights)],
        }
    )
    uneven, even = weight_boxes.with_top_share(frame).groupby("epoch")["top_share"].first()
    assert even == pytest.approx(count / len(weights))
    assert uneven == pytest.approx(sum(sorted(weights)[-count:]) / sum(weights))
    assert uneven >= even - 1e-12


def test_weights_that_are_all_zero_have_no_heaviest_tenth():
    frame = pd.DataFrame({"run": [0, 0, 1, 1], "epoch": 0, "weight": [0.0, 0.0, 1.0, 3.0]})
    shares = weight_boxes.with_top_share(frame)["top_share"].tolist()
    assert np.isnan(shares[:2]).all() and shares[2:] == [0.75, 0.75]


def test_the_figure_of_boxes_draws_quartiles_of_every_epoch_and_the_share(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(weight_boxes, "runs", lambda context: four(count=40))
    frame = weight_boxes.data(Context())
    figure = drawn(weight_boxes, frame)
    assert len(figure.axes) == 8
    for column, (run, label) in enumerate(panels_of(frame)):
        upper, lower = figure.axes[column], figure.axes[4 + column]
        own = frame[frame["run"] == run]
        assert upper.get_title() == label
        assert len(upper.patches) == 3
        for epoch, box in enumerate(upper.patches):
            values = own.loc[own["epoch"] == epoch, "weight"]
            path = np.asarray(box.get_path().vertices)
            assert path[:, 0].mean() == pytest.approx(epoch, abs=0.2)
            assert (path[:, 1].min(), path[:, 1].max()) == pytest.approx(
                tuple(np.quantile(values, [0.25, 0.75]))
            )
            assert (
                matplotlib.colors.to_hex(box.get_facecolor()).upper()
                == style.COLORS[own["method"].iloc[0]]
            )
        medians = [
            y[0]
            for x, y, color in points(upper)
            if color == "#000000" and len(x) == 2 and y[0] == y[1]
        ]
        for epoch in range(3):
            assert own.loc[own["epoch"] == epoch, "weight"].median() in medians
        (x, y, color), (_, dotted, _) = points(lower)
        assert x == [0, 1, 2] and y == own.groupby("epoch")["top_share"].first().tolist()
        assert color == style.COLORS[own["method"].iloc[0]] and set(dotted) == {0.1}


def test_the_figure_of_weights_against_length_draws_ten_times_those_divided_by_it():
    found = four(epochs=12)
    frame = frame_of_runs(found, resamples=100)
    frame = at_epochs(frame, [1, 2, 3, 10, 12])
    figure = drawn(weights_length, frame)
    assert len(figure.axes) == 10
    for place, axes in enumerate(figure.axes):
        row, epoch = divmod(place, 5)
        epoch = (1, 2, 3, 10, 12)[epoch]
        methods = [("npo", "simnpo"), ("length_normalized_npo", "reference_free_npo")][row]
        assert legend(axes)[0] == f"epoch {epoch}"
        shown = {color: (x, y) for x, y, color in points(axes)}
        assert len(shown) == 2
        for method in methods:
            own = frame[(frame["method"] == method) & (frame["epoch"] == epoch)]
            examples, factor = (
                own[own["kind"] == "example"],
                10 if method in ("simnpo", "length_normalized_npo") else 1,
            )
            x, y = shown[style.COLORS[method]]
            assert x == examples["length"].tolist() and y == (factor * examples["weight"]).tolist()
            label = (
                f"{'10 × ' if factor == 10 else ''}{style.LABELS[method]}, β = "
                f"{own['beta'].iloc[0]:g}"
            )
            (pearson,) = own["pearson"].dropna()
            assert f"{label}: r = {pearson:.2f}" in legend(axes)


@pytest.mark.parametrize(
    ("epochs", "want"),
    [(1, [1]), (2, [1, 2]), (5, [1, 2, 3, 5]), (10, [1, 2, 3, 10]), (12, [1, 2, 3, 10, 12])],
)
def test_weights_against_length_are_shown_at_the_papers_epochs_and_the_last(
    epochs: int, want: list[int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        llm_trajectories, "runs", lambda context: [some_run(npo(0.1), epochs=epochs)]
    )
    assert sorted(set(weights_length.data(Context())["epoch"])) == want


def test_methods_beyond_the_corners_have_a_row_of_their_own():
    found = [
        some_run(npo(0.1)),
        some_run(gradient_ascent(1.0)),
        some_run(gradient_ascent(), epochs=1),
    ]
    frame = at_epochs(frame_of_runs(found, resamples=100), [1, 2])
    figure = drawn(weights_length, frame)
    assert len(figure.axes) == 4
    assert len(legend(figure.axes[2])) == 3 and "GA: constant" in legend(figure.axes[2])
    assert any(text.startswith("10 × length-weighted GA: r = ") for text in legend(figure.axes[2]))
    assert len(legend(figure.axes[3])) == 2


# --- effective push ---


def with_norms(run: Run, norms: Callable[[pd.DataFrame], Any]) -> Run:
    return run._replace(examples=run.examples.assign(gradient_norm=norms(run.examples)))


def fit(frame: pd.DataFrame, quantity: str, epoch: int, method: str) -> dict[str, Any]:
    own = frame[
        (frame["kind"] == "fit") & (frame["quantity"] == quantity) & (frame["epoch"] == epoch)
    ]
    (row,) = own[own["method"] == method].to_dict("records")
    return {str(name): value for name, value in row.items()}


@settings(max_examples=10, deadline=None)
@given(st.floats(-1, 2), st.floats(0.1, 50))
def test_a_known_power_law_of_gradient_norms_is_recovered(exponent: float, factor: float):
    found = [with_norms(run, lambda rows: factor * rows["length"] ** exponent) for run in four()]
    frame = effective_push.frame_of_runs(found)
    for method in ("npo", "length_normalized_npo", "reference_free_npo", "simnpo"):
        for epoch in (0, 1, 2):
            row = fit(frame, "gradient_norm", epoch, method)
            assert (row["value"], row["low"], row["high"]) == pytest.approx(
                [exponent] * 3, abs=1e-6
            )
            assert (row["count"], row["missing"]) == (12, 0)
    lines = frame[(frame["kind"] == "line") & (frame["quantity"] == "gradient_norm")]
    np.testing.assert_allclose(lines["value"], factor * lines["length"] ** exponent)
    ends = found[0].examples["length"]
    assert set(lines["length"]) == {ends.min(), ends.max()}


def test_the_push_is_the_norm_at_npos_reference_and_lower_by_a_length_with_normalisation():
    frame = effective_push.frame_of_runs(four(count=30))
    norm, push = (fit(frame, name, 0, "npo") for name in ("gradient_norm", "push"))
    assert push["value"] == pytest.approx(norm["value"]) and push["low"] == pytest.approx(
        norm["low"]
    )
    norm, push = (
        fit(frame, name, 0, "length_normalized_npo") for name in ("gradient_norm", "push")
    )
    assert push["value"] == pytest.approx(norm["value"] - 1)
    later = [fit(frame, name, 1, "npo")["value"] for name in ("gradient_norm", "push")]
    assert later[1] < later[0] - 0.1  # long answers have fallen further, and weigh less


def test_the_push_is_the_weight_times_the_norm_and_its_exponent_that_of_scipys_line():
    found = four(epochs=4, count=20)
    frame = effective_push.frame_of_runs(found)
    assert sorted(set(frame["epoch"])) == [0, 1, 4]
    for run, objective in enumerate(CORNERS.values()):
        for epoch in (0, 1, 4):
            own = frame[
                (frame["run"] == run) & (frame["epoch"] == epoch) & (frame["kind"] == "example")
            ]
            rows = found[run].examples
            rows = rows[rows["epoch"] == epoch]
            np.testing.assert_allclose(
                own["push"], law(objective, rows) * rows["gradient_norm"].to_numpy()
            )
            line = stats.linregress(np.log(own["length"]), np.log(own["push"]))
            row = fit(frame, "push", epoch, str(own["method"].iloc[0]))
            assert row["value"] == pytest.approx(line.slope)
            half = stats.t.ppf(0.975, 18) * line.stderr
            assert (row["low"], row["high"]) == pytest.approx(
                (line.slope - half, line.slope + half)
            )


def test_answers_without_any_push_are_counted_and_not_fitted():
    run = some_run(npo(1.0))
    examples = run.examples
    gone = (examples["epoch"] == 2) & (examples["index"] < 3)
    run = run._replace(
        examples=examples.assign(gradient_norm=examples["gradient_norm"].mask(gone, 0.0))
    )
    frame = effective_push.frame_of_runs([run])
    row = fit(frame, "push", 2, "npo")
    assert (row["count"], row["missing"]) == (9, 3)
    texts = [legend(axes) for axes in drawn(effective_push, frame).axes]
    assert [sum("3 at 0" in text for text in panel) for panel in texts] == [0, 0, 2]


@pytest.mark.parametrize("absent", ["column", "epoch"])
def test_runs_without_gradient_norms_are_refused_with_the_option_that_records_them(absent: str):
    run = some_run(simnpo(1.0))
    rows = run.examples
    without = rows.drop(columns="gradient_norm")
    partly = rows.assign(gradient_norm=rows["gradient_norm"].where(rows["epoch"] != 2))
    bad = run._replace(
        examples=without if absent == "column" else partly, place=Path("the bad one")
    )
    with pytest.raises(InvalidInput, match=r"run = 'the bad one'.*epochs 0, 1, 2.*--gradients"):
        effective_push.frame_of_runs([run, bad])


def test_the_figure_of_pushes_draws_norms_pushes_and_lines_with_their_exponents(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(effective_push, "runs", lambda context: four())
    frame = effective_push.data(Context())
    figure = drawn(effective_push, frame)
    assert len(figure.axes) == 12
    for place, axes in enumerate(figure.axes):
        epoch, column = divmod(place, 4)
        run, label = panels_of(frame)[column]
        own = frame[(frame["run"] == run) & (frame["epoch"] == epoch)]
        method = own["method"].iloc[0]
        assert axes.get_title() == (label if epoch == 0 else "")
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        shown, examples = points(axes), own[own["kind"] == "example"]
        assert len(shown) == 4 and legend(axes)[0] == f"epoch {epoch}"
        for pair, quantity, name, want in (
            (shown[:2], "gradient_norm", "norm, q", "#999999"),
            (shown[2:], "push", "push, p", style.COLORS[method]),
        ):
            ends = own[(own["kind"] == "line") & (own["quantity"] == quantity)]
            assert pair[0] == (ends["length"].tolist(), ends["value"].tolist(), want)
            assert pair[1] == (examples["length"].tolist(), examples[quantity].tolist(), want)
            row = fit(frame, quantity, epoch, method)
            assert f"{name} = {row['value']:.2f} ({row['low']:.2f} to {row['high']:.2f})" in legend(
                axes
            )


def test_runs_of_unequal_lengths_are_each_shown_to_their_own_end():
    frame = effective_push.frame_of_runs(
        [some_run(npo(0.1), epochs=5), some_run(simnpo(1.0), epochs=1)]
    )
    assert frame.groupby("method")["epoch"].unique().map(sorted).to_dict() == {
        "npo": [0, 1, 5],
        "simnpo": [0, 1],
    }
    figure = drawn(effective_push, frame)
    assert [len(axes.lines) for axes in figure.axes] == [4, 4, 4, 4, 4, 0]


# --- the reference perturbed ---


def spoiled(run: Run, by: float) -> Run:
    """The run as if its reference had put every token lower by so many nats."""
    rows = run.examples
    return run._replace(examples=rows.assign(ref=rows["ref"] - by * rows["length"]))


def some_noise(**options: Any) -> list[Referenced]:
    runs_ = [some_run(npo(0.1), seed=seed, **options) for seed in (0, 1, 2)]
    found = [
        Referenced(OWN, runs_[0]),
        Referenced("0", spoiled(runs_[1], 3)),
        Referenced("1", spoiled(runs_[2], 30)),
    ]
    return [*found, Referenced(NONE, some_run(simnpo(4.5), seed=3, **options))]


def test_the_study_of_noise_holds_npo_beside_every_reference_and_simnpo(context: Context):
    frame = reference_noise.data(context)
    assert list(dict.fromkeys(frame["reference"])) == [OWN, "0", "1", NONE, START]
    examples = frame[frame["kind"] == "example"]
    assert examples.groupby("reference")["method"].unique().map(list).to_dict() == {
        OWN: ["npo"],
        "0": ["npo"],
        "1": ["npo"],
        NONE: ["simnpo"],
    }
    start = examples[examples["epoch"] == 0].pivot(
        index="index", columns="reference", values="logp"
    )
    assert start.nunique(axis=1).eq(1).all()
    noisy = run_of(context, npo(0.1), noise=Perturbation(1.0)).examples
    np.testing.assert_array_equal(examples.loc[examples["reference"] == "1", "ref"], noisy["ref"])
    shrunk = run_of(context, npo(0.1), noise=Perturbation(0.0)).examples
    np.testing.assert_array_equal(examples.loc[examples["reference"] == "0", "ref"], shrunk["ref"])
    ends = frame[frame["kind"] == "end"].set_index("reference")
    for reference, objective in ((OWN, npo(0.1)), (NONE, simnpo(4.5))):
        run = run_of(context, objective)
        want = stats.ks_2samp(
            truth_ratio(run.logs["unlearned"]), truth_ratio(default_log(context, "retrained"))
        )
        assert ends.loc[reference, "distance"] == pytest.approx(want.statistic)  # pyright: ignore[reportAttributeAccessIssue]
        assert ends.loc[reference, "retain_loss"] == run.epochs["retain_loss"].iloc[-1]
    assert ends.loc[START, "retain_loss"] == run_of(context, npo(0.1)).epochs["retain_loss"].iloc[0]
    assert len(drawn(reference_noise, frame).axes) == 4
    # The user's own runs are other models', and change nothing here.
    own = replace(context, runs=(Path("nowhere"),))
    pd.testing.assert_frame_equal(reference_noise.data(own), frame)


@settings(max_examples=8, deadline=None)
@given(st.floats(0.1, 40), st.integers(0, 9))
def test_the_lower_the_reference_the_nearer_is_npos_factor_to_2(by: float, seed: int):
    run = some_run(npo(0.1), seed=seed)
    found = [
        Referenced(OWN, run),
        Referenced("a", spoiled(run, by)),
        Referenced("b", spoiled(run, 2 * by)),
    ]
    frame = reference_noise.frame_of_runs(found)
    factor = frame[frame["kind"] == "example"].pivot(
        index=["epoch", "index"], columns="reference", values="factor"
    )
    assert (
        (factor[OWN] <= factor["a"]).all()
        and (factor["a"] <= factor["b"]).all()
        and (factor["b"] <= 2).all()
    )
    start = factor.xs(0, level="epoch")
    np.testing.assert_allclose(start[OWN].to_numpy(), 1.0)
    length = run.examples.loc[run.examples["epoch"] == 0, "length"].to_numpy()
    # it is the answer's length that takes the factor to its bound
    want = 2 / (1 + np.exp(-0.1 * by * length))
    np.testing.assert_allclose(start["a"].to_numpy(), want)


def test_the_factor_is_the_weight_but_for_its_power_of_the_length_and_beyond_is_per_token():
    found = some_noise()
    frame = reference_noise.frame_of_runs(found)
    for number, (reference, run) in enumerate(found):
        own = frame[(frame["kind"] == "example") & (frame["reference"] == reference)]
        assert set(own["run"]) == {number}
        rows, power = run.examples, float(run.objective.normalize)
        np.testing.assert_allclose(own["weight"], law(run.objective, rows))
        np.testing.assert_allclose(
            own["factor"], law(run.objective, rows) * rows["length"] ** power
        )
        np.testing.assert_allclose(
            own["beyond"], (rows["logp"] - rows["retrained"]) / rows["length"]
        )
        for quantity in ("factor", "beyond"):
            along = frame[(frame["kind"] == "epoch") & (frame["reference"] == reference)]
            along = along[along["quantity"] == quantity].set_index("epoch")
            assert along.index.tolist() == [0, 1, 2]
            for epoch, row in along.iterrows():
                values = own.loc[own["epoch"] == epoch, quantity]
                want = np.quantile(values, [0.25, 0.5, 0.75])
                assert [row[name] for name in ("low", "median", "high")] == pytest.approx(
                    want.tolist()
                )


def test_the_end_is_the_distance_of_truth_ratios_to_the_retrained_model_and_the_last_retain_loss():
    found = some_noise(count=25)
    ends = reference_noise.frame_of_runs(found)
    ends = ends[ends["kind"] == "end"].set_index("reference")
    assert ends.index.tolist() == [START, OWN, "0", "1", NONE]
    cases = [
        (START, found[0].run, "original", 0),
        *((name, run, "unlearned", -1) for name, run in found),
    ]
    for reference, run, model, place in cases:
        mine, goal = (truth_ratio(run.logs[name]) for name in (model, "retrained"))
        gap = max(abs(np.mean(mine <= x) - np.mean(goal <= x)) for x in [*mine, *goal])
        assert ends.loc[reference, "distance"] == pytest.approx(gap)
        want = stats.ks_2samp(mine, goal, method="exact")
        assert ends.loc[reference, "p"] == pytest.approx(want.pvalue)  # pyright: ignore[reportAttributeAccessIssue]
        assert ends.loc[reference, "retain_loss"] == run.epochs["retain_loss"].iloc[place]


def test_the_figure_of_noise_draws_medians_quartiles_and_where_each_run_ends():
    frame = reference_noise.frame_of_runs(some_noise())
    figure = drawn(reference_noise, frame)
    factor, beyond, quality, retain = figure.axes
    looks = {OWN: style.COLORS["npo"], NONE: style.COLORS["simnpo"]}
    order = [OWN, "0", "1", NONE]
    for axes, quantity in ((factor, "factor"), (beyond, "beyond")):
        shown = points(axes)[: len(order)]
        assert len({color for _, _, color in shown}) == 4
        for place, reference in enumerate(order):
            own = frame[(frame["kind"] == "epoch") & (frame["reference"] == reference)]
            own = own[own["quantity"] == quantity]
            x, y, color = shown[place]
            assert (x, y) == (own["epoch"].tolist(), own["median"].tolist())
            assert color == looks.setdefault(reference, color)
            band = np.asarray(axes.collections[place].get_paths()[0].vertices)
            for epoch, row in enumerate(own.to_dict("records")):
                heights = band[band[:, 0] == epoch][:, 1]
                assert (heights.min(), heights.max()) == pytest.approx((row["low"], row["high"]))
    assert points(beyond)[-1][1] == [0, 0]
    ends = frame[frame["kind"] == "end"].set_index("reference")
    for axes, column in ((quality, "distance"), (retain, "retain_loss")):
        start, level, *dots = points(axes)
        assert (
            start[1] == [ends.loc[START, column]] * 2 and level[1] == [ends.loc[NONE, column]] * 2
        )
        assert level[2] == looks[NONE]
        want = [
            ([place], [ends.loc[name, column]], looks[name]) for place, name in enumerate(order)
        ]
        assert dots == want
        names = [text.get_text().split("\n")[0] for text in axes.get_xticklabels()]
        assert names == [OWN, "0", "1", "SimNPO"]
    p = [text.get_text().split("\n")[1] for text in quality.get_xticklabels()]
    assert p == [f"p = {ends.loc[name, 'p']:.1g}" for name in order]
    (found,) = figure.legends
    labels = [
        "NPO",
        *(f"NPO, reference perturbed, scale {scale}" for scale in "01"),
        "SimNPO, no reference",
    ]
    assert [text.get_text() for text in found.get_texts()] == labels


def test_frames_survive_the_disk(tmp_path: Path):
    frames = [frame_of_runs(four(), resamples=100), effective_push.frame_of_runs(four())]
    for frame in [*frames, reference_noise.frame_of_runs(some_noise())]:
        storage.write_table(frame, tmp_path / "frame.parquet", {})
        pd.testing.assert_frame_equal(
            storage.read_table(tmp_path / "frame.parquet"), frame, check_dtype=False
        )


@pytest.mark.parametrize("name", ALL)
def test_every_figure_has_a_caption_a_frame_and_a_drawing(name: str):
    module = module_of(name)
    title, gap, *text = (module.__doc__ or "").strip().splitlines()
    assert title.endswith((".", "?", ".)")) and gap == "" and text[-1].endswith(".")
    for panel in BY_NAME[name].panel.split(" and "):
        assert panel in title + " ".join(text)
    assert callable(module.data) and callable(module.plot)


def test_runs_that_are_not_there_are_refused_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = [
        "llm_weights_epoch1",
        "--runs",
        str(tmp_path / "nowhere"),
        "--out",
        str(tmp_path / "out"),
    ]
    assert figures_cli(arguments) == 2
    assert capsys.readouterr().err.startswith("error: run = ")
    assert list(tmp_path.iterdir()) == []
