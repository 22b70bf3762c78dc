"""Figures of language models that need only logs: what their frames say, what is drawn of them,
and where logs are.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from types import ModuleType

import matplotlib.colors
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from figures import style
from figures.cache import Context
from figures.language import bias as llm_bias
from figures.language import sources, sweeps
from figures.language import truth_ratio as llm_truth_ratio
from figures.language.runs import DEFAULT
from figures.language.sources import Logs, Models, models
from figures.questions import truth_ratios
from figures.scale import Scale
from llm.diagnostics.weights import corners, diagnose, named
from llm.jobs.evaluating import read_tofu_logs
from llm.logs.log import TRUTH_RATIOS, Answers, EvaluationLog, take, truth_ratio
from llm.logs.measures import forget_quality, model_utility
from llm.logs.reading import TASKS
from markov.errors import InvalidInput
from markov.files import storage
from markov.objectives import Objective, npo, simnpo

REAL = Path(os.environ.get("SIMNPO_LAB_TOFU", Path(__file__).parents[3] / "shared" / "tofu"))
needs_real_logs = pytest.mark.skipif(
    not (REAL / "logs" / "llama2-7b_full").is_dir(),
    reason="no TOFU logs: SIMNPO_LAB_TOFU names the folder that holds them",
)
CHOSEN = corners(0.1, 4.5)
NPO, FREE, PER_TOKEN, SIMNPO = CHOSEN


def some_log(
    name: str, count: int = 12, seed: int = 0, *, scale: float = 1.0, right: float = 1.0
) -> EvaluationLog:
    """A log with the lengths of all logs of this count; its gold losses scale, and so do those
    of the right answer.
    """
    rng, length = (
        np.random.default_rng(seed),
        np.random.default_rng(count).integers(2, 60, count).astype(float),
    )
    average = scale * rng.uniform(0.05, 2, count)
    return EvaluationLog(
        file=name,
        layout="lists",
        index=np.arange(count) * 3,
        gold=Answers(average, average * length, length),
        paraphrased=Answers(right * rng.uniform(0.1, 3, count), None, None),
        perturbed=Answers(rng.uniform(0.1, 3, (count, 5)), None, None),
    )


def some_models(count: int = 12, seed: int = 0) -> Models:
    """An original that knows every answer, a retrained model, and two unlearned ones."""
    names = {"npo": 1.5, "my run": 0.7}
    unlearned = {
        name: some_log(name, count, seed + 9 + i, right=x)
        for i, (name, x) in enumerate(names.items())
    }
    original, retrained = (
        some_log("original", count, seed, scale=0.01),
        some_log("retrained", count, seed + 5),
    )
    return models("a model", original, retrained, unlearned)


def some_table(needed: list[float], length: list[float], **weights: list[float]) -> pd.DataFrame:
    """A table of diagnosis with these weights; `x` becomes the column weight_x."""
    facts = {
        "index": range(len(needed)),
        "length": length,
        "ref": 0.0,
        "retrained": -np.array(needed),
    }
    need = {"needed": needed, "needed_per_token": np.array(needed) / np.array(length)}
    return pd.DataFrame(
        {**facts, **need, **{f"weight_{name}": values for name, values in weights.items()}}
    )


def of_kind(frame: pd.DataFrame, kind: str, **keys: str) -> pd.DataFrame:
    chosen = frame["kind"] == kind
    for name, key in keys.items():
        chosen &= frame[name] == key
    return frame[chosen]


def one(frame: pd.DataFrame, **keys: str) -> dict[str, float]:
    (row,) = of_kind(frame, "statistic", **keys).to_dict("records")
    return {str(name): value for name, value in row.items()}


def bias_frame(found: Models | None = None, source: str | None = None) -> pd.DataFrame:
    found = found or some_models()
    table = sources.weights_at_the_start(found, CHOSEN)
    return llm_bias.frame_of_table(source or found.source, table, CHOSEN, resamples=100)


def drawn(module: ModuleType, frame: pd.DataFrame) -> Figure:
    """The figure of a frame, which is left as it was."""
    before = frame.copy(deep=True)
    with style.look():
        figure = module.plot(frame)
    pd.testing.assert_frame_equal(frame, before)
    return figure


def legend(axes: Axes) -> str:
    found = axes.get_legend()
    assert found is not None
    return "\n".join(text.get_text() for text in [found.get_title(), *found.get_texts()])


def line(axes: Axes, label: str) -> tuple[np.ndarray, np.ndarray, str]:
    """Data and colour of the one line whose label starts so."""
    (found,) = [one for one in axes.lines if str(one.get_label()).startswith(label)]
    x, y = found.get_data()
    return np.asarray(x), np.asarray(y), matplotlib.colors.to_hex(found.get_color()).upper()


# --- bias: the frame ---


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0.1, 100), min_size=3, max_size=12, unique=True), st.floats(0.01, 100))
def test_an_effort_in_proportion_to_need_lies_on_the_diagonal_with_area_one_half(
    needed: list[float], scale: float
):
    length = [1.0 + place for place in range(len(needed))]
    weight = [scale * value for value in needed]
    push = [scale * value / tokens**2 for value, tokens in zip(needed, length, strict=True)]
    given_ = {"a": npo(1.0), "b": npo(2.0)}
    frame = llm_bias.frame_of_table(
        "s", some_table(needed, length, a=weight, b=push), given_, resamples=100
    )
    for objective, effort, need in (("a", "weight", "total"), ("b", "push", "per_token")):
        keys = {"objective": objective, "effort": effort, "need": need}
        curve, found = of_kind(frame, "curve", **keys), one(frame, **keys)
        np.testing.assert_allclose(curve["effort_share"], curve["needed_share"], rtol=1e-9)
        assert found["area"] == pytest.approx(0.5, rel=1e-9)
        assert found["misplaced"] == pytest.approx(0, abs=1e-9)
    examples = of_kind(frame, "example", objective="a")
    np.testing.assert_allclose(examples["relative"], examples["proportional"], rtol=1e-9)


def test_even_weights_over_known_needs_give_the_curve_and_the_area_reckoned_by_hand():
    table = some_table([1.0, 3.0, 2.0, -4.0], [4.0, 1.0, 2.0, 2.0], even=[0.5] * 4)
    frame = llm_bias.frame_of_table("s", table, {"even": npo(1.0)}, resamples=100)
    curve = of_kind(frame, "curve", effort="weight")
    np.testing.assert_allclose(curve["needed_share"], [0, 1 / 2, 5 / 6, 1, 1])
    np.testing.assert_allclose(curve["effort_share"], [0, 1 / 4, 2 / 4, 3 / 4, 1])
    found = one(frame, effort="weight", need="total")
    assert found["area"] == pytest.approx(1 / 2 * 1 / 8 + 1 / 3 * 3 / 8 + 1 / 6 * 5 / 8)
    assert np.isnan(found["spearman"]) and found["unneeded"] == 0.25 and found["count"] == 4
    # Pushes are 2, 0.5, 1, 1 and needs per token 1/4, 3, 1, -2.
    curve = of_kind(frame, "curve", effort="push")
    np.testing.assert_allclose(curve["needed_share"], np.array([0, 3, 4, 4.25, 4.25]) / 4.25)
    np.testing.assert_allclose(curve["effort_share"], np.array([0, 0.5, 1.5, 3.5, 4.5]) / 4.5)
    examples = of_kind(frame, "example")
    assert examples["proportional"].tolist() == [4 / 6, 12 / 6, 8 / 6, 0]
    assert examples["relative"].tolist() == [1, 1, 1, 1]
    assert examples["push"].tolist() == [2, 0.5, 1, 1]
    assert one(frame, effort="length")["spearman"] == pytest.approx(-2 / math.sqrt(10))


def test_a_frame_has_the_examples_curves_and_statistics_of_every_objective():
    found, frame = some_models(), bias_frame()
    table = diagnose(found.original, found.retrained, CHOSEN)
    assert set(frame["source"]) == {"a model"} and set(frame["kind"]) == {
        "example",
        "curve",
        "statistic",
    }
    for name, objective in CHOSEN.items():
        examples = of_kind(frame, "example", objective=name)
        for column in ("index", "length", "ref", "retrained", "needed", "needed_per_token"):
            np.testing.assert_array_equal(examples[column], table[column])
        np.testing.assert_array_equal(examples["weight"], table[f"weight_{name}"])
        np.testing.assert_array_equal(examples["push"], table[f"weight_{name}"] * table["length"])
        assert examples["relative"].mean() == pytest.approx(1)
        assert set(frame.loc[frame["objective"] == name, "method"]) == {name.rsplit("_", 1)[0]}
        assert set(frame.loc[frame["objective"] == name, "beta"]) == {objective.beta}
        pairs = of_kind(frame, "statistic", objective=name)[["effort", "need"]].to_numpy().tolist()
        assert pairs == [[x, y] for x in ("weight", "push") for y in ("total", "per_token")]
        curves = of_kind(frame, "curve", objective=name)
        assert curves.groupby(["effort", "need"]).size().to_dict() == {
            ("weight", "total"): 13,
            ("push", "per_token"): 13,
        }
    length = one(frame, effort="length", need="total")
    assert length["spearman"] == pytest.approx(
        stats.spearmanr(table["length"], table["needed"]).statistic
    )
    assert (
        length["spearman_low"] < length["spearman"] < length["spearman_high"]
        and length["count"] == 12
    )


@settings(max_examples=4, deadline=None)
@given(st.permutations(range(12)), st.permutations(range(12)))
def test_permuting_the_examples_of_either_log_changes_nothing(mine: list[int], theirs: list[int]):
    found = some_models()
    changed = models(
        found.source, take(found.original, mine), take(found.retrained, theirs), found.unlearned
    )
    for compute, order in (
        (bias_frame, ["objective", "index"]),
        (llm_truth_ratio.frame_of_models, ["model", "index"]),
    ):
        want, got = (values_alone(compute(one)) for one in (found, changed))
        kinds = [
            [of_kind(x, kind) for x in (want, got)] for kind in ("curve", "density", "statistic")
        ]
        kinds.append(
            [of_kind(x, "example").sort_values(order, ignore_index=True) for x in (want, got)]
        )
        assert [len(mine) for mine, _ in kinds].count(0) == 1
        for before, after in kinds:
            pd.testing.assert_frame_equal(before, after)


def values_alone(frame: pd.DataFrame) -> pd.DataFrame:
    """Without the bounds of intervals, since a bootstrap draws examples by their places."""
    return frame[[name for name in frame if not str(name).endswith(("_low", "_high"))]]


def test_weights_that_are_all_zero_are_shown_as_missing_without_a_warning():
    table = some_table([1.0, 3.0, 2.0], [4.0, 1.0, 2.0], gone=[0.0] * 3)
    frame = llm_bias.frame_of_table("s", table, {"gone": npo(1.0)}, resamples=100)
    assert of_kind(frame, "example")["relative"].isna().all()
    assert np.isnan(one(frame, effort="weight", need="total")["area"])


# --- bias: the picture ---


def test_the_figure_of_bias_draws_the_frame_one_row_for_each_source():
    frames = [bias_frame(some_models(12)), bias_frame(some_models(30, seed=3), "another")]
    frame = pd.concat(frames, ignore_index=True)
    figure = drawn(llm_bias, frame)
    rows = [figure.axes[:3], figure.axes[3:]]
    assert len(figure.axes) == 6
    for (left, middle, right), own, (name, count) in zip(
        rows, frames, (("a model", 12), ("another", 30)), strict=True
    ):
        assert left.get_title("left") == f"{name}: {count} answers"
        for objective in CHOSEN:
            examples = of_kind(own, "example", objective=objective)
            method = examples["method"].iloc[0]
            x, y, color = line(left, style.LABELS[method])
            np.testing.assert_array_equal((x, y), (examples["needed"], examples["relative"]))
            assert color == style.COLORS[method]
            for axes, effort, need in ((middle, "weight", "total"), (right, "push", "per_token")):
                curve = of_kind(own, "curve", objective=objective, effort=effort, need=need)
                x, y, color = line(axes, style.LABELS[method])
                np.testing.assert_array_equal(
                    (x, y), (curve["needed_share"], curve["effort_share"])
                )
                assert color == style.COLORS[method]
        x, y, _ = line(left, "in proportion")
        examples = of_kind(own, "example", objective=NPO).sort_values("needed")
        np.testing.assert_array_equal((x, y), (examples["needed"], examples["proportional"]))
        for axes in (middle, right):
            x, y, _ = line(axes, "in proportion to need: 0.50")
            assert x.tolist() == y.tolist() == [0, 1]
            assert len(axes.lines) == 5
        low, high = left.get_ylim()
        assert low <= 0 and high > max(np.nanmax(of_kind(own, "example")["relative"]), 0)


def test_legends_of_bias_give_each_estimate_with_its_interval():
    frame = bias_frame(some_models(40))
    left, middle, right = drawn(llm_bias, frame).axes
    length = one(frame, effort="length")
    assert f"(of |y| itself: {length['spearman']:.2f} ({length['spearman_low']:.2f} to" in legend(
        left
    )
    assert "NPO, β = 0.1: none, a constant" in legend(left)
    for objective in (FREE, PER_TOKEN, SIMNPO):
        found = one(frame, objective=objective, effort="weight", need="total")
        label = f"{style.LABELS[str(found['method'])]}, β = {found['beta']:g}"
        text = (
            f"{label}: {found['spearman']:.2f} ({found['spearman_low']:.2f} to "
            f"{found['spearman_high']:.2f})"
        )
        assert text in legend(left).split("\n")
    for axes, effort, need in ((middle, "weight", "total"), (right, "push", "per_token")):
        for objective in CHOSEN:
            found = one(frame, objective=objective, effort=effort, need=need)
            text = f"{found['area']:.2f} ({found['area_low']:.2f} to {found['area_high']:.2f})"
            assert f"{style.LABELS[str(found['method'])]}: {text}" in legend(axes).split("\n")
    assert (
        middle.get_xlabel().startswith("share of needed movement,")
        and middle.get_ylabel() == "share of weight"
    )
    assert right.get_xlabel().startswith("share of needed movement per token,")
    assert right.get_ylabel() == "share of weight × |y|"


def test_objectives_that_share_a_method_or_lie_between_the_corners_are_told_apart():
    objectives = named([simnpo(2.5), simnpo(2.5, 0.5), Objective(1.0, 0.0, 0.5, 1.0)])
    found = some_models()
    table = sources.weights_at_the_start(found, objectives)
    axes = drawn(llm_bias, llm_bias.frame_of_table("s", table, objectives, resamples=100)).axes
    for panel in axes:
        labels = ("SimNPO, β = 2.5: ", "SimNPO, β = 2.5, γ = 0.5: ", "between_r0.5_n1_b1: ")
        assert all(label in legend(panel) for label in labels)
        assert line(panel, "between")[2] not in style.COLORS.values()


# --- truth ratios: the frame ---


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference of two empirical distributions, looked for at every value."""
    return max(abs(np.mean(one <= x) - np.mean(other <= x)) for x in [*one, *other])


@settings(max_examples=6, deadline=None)
@given(st.integers(4, 31), st.integers(0, 999), st.sampled_from(list(TRUTH_RATIOS)))
def test_distances_are_those_of_the_halves_to_the_retrained_model_on_the_same_half(
    count: int, seed: int, variant: str
):
    found = some_models(count, seed)
    frame = llm_truth_ratio.frame_of_models(found, variant)
    logs = {"retrained": found.retrained, "original": found.original, **found.unlearned}
    gold = found.original.gold
    assert gold.length is not None
    keys = {
        "length_half": (gold.length, "short", "long"),
        "memorised_half": (found.retrained.gold.average - gold.average, "weak", "strong"),
    }
    for split, (values, lower, upper) in keys.items():
        order = np.lexsort((found.original.index, values))
        for half, at in ((lower, order[: (count + 1) // 2]), (upper, order[(count + 1) // 2 :])):
            for model, log in logs.items():
                mine, goal = (
                    truth_ratio(log, variant)[at],
                    truth_ratio(found.retrained, variant)[at],
                )
                row = one(frame, split=split, half=half, model=model)
                want = stats.ks_2samp(mine, goal)
                assert row["distance"] == pytest.approx(distance(mine, goal), abs=1e-12)
                assert row["p"] == pytest.approx(want.pvalue)  # pyright: ignore[reportAttributeAccessIssue]
                assert row["median"] == pytest.approx(np.median(mine))
                assert (row["count"], row["outside"]) == (len(at), 0)
                shown = of_kind(frame, "example", model=model)
                np.testing.assert_allclose(
                    np.sort(shown.loc[shown[split] == half, "ratio"]), np.sort(mine)
                )


@settings(max_examples=6, deadline=None)
@given(st.integers(2, 20), st.integers(0, 999))
def test_halves_have_equal_counts_and_are_the_same_for_every_model(half: int, seed: int):
    frame = llm_truth_ratio.frame_of_models(some_models(2 * half, seed))
    assert set(of_kind(frame, "statistic")["count"]) == {half}
    examples = of_kind(frame, "example")
    for split in llm_truth_ratio.SPLITS:
        wide = examples.pivot(index="index", columns="model", values=split)
        assert (wide.nunique(axis=1) == 1).all()
        assert wide["npo"].value_counts().tolist() == [half, half]


def test_the_retrained_model_is_at_no_distance_from_itself():
    frame = llm_truth_ratio.frame_of_models(some_models())
    for row in of_kind(frame, "statistic", model="retrained").to_dict("records"):
        assert (row["distance"], row["p"]) == (0, 1)
    assert (of_kind(frame, "statistic", model="original")["distance"] > 0).all()


def with_right(log: EvaluationLog, losses: np.ndarray) -> EvaluationLog:
    return log._replace(paraphrased=Answers(losses, None, None))


def right_of(log: EvaluationLog) -> np.ndarray:
    assert log.paraphrased is not None
    return log.paraphrased.average


def test_a_density_is_of_log_ratio_and_its_mass_is_the_share_of_ratios_on_the_axis():
    found = some_models(60)
    lost = found.unlearned["npo"]
    assert lost.perturbed is not None
    right, wrong = right_of(lost).copy(), lost.perturbed.average.copy()
    right[:6], wrong[6:9], right[9:11] = 1e4, 1e4, 30  # ratios inf, 0 and finite but far
    lost = with_right(lost, right)._replace(perturbed=Answers(wrong, None, None))
    frame = llm_truth_ratio.frame_of_models(found._replace(unlearned={"npo": lost}))
    for (split, half, model), curve in of_kind(frame, "density").groupby(
        ["split", "half", "model"]
    ):
        row = one(frame, split=str(split), half=str(half), model=str(model))
        mass = np.trapezoid(curve["density"], np.log(curve["ratio"]))
        assert mass == pytest.approx(1 - row["outside"] / row["count"], abs=0.03)
        values = of_kind(frame, "example", model=str(model))
        ratios = values.loc[values[str(split)] == half, "ratio"].to_numpy(dtype=float)
        logs = np.log(ratios[(ratios >= curve["ratio"].min()) & (ratios <= curve["ratio"].max())])
        width = logs.std(ddof=1) * len(logs) ** -0.2
        for place in (50, 120, 200):
            kernels = stats.norm.pdf((np.log(curve["ratio"].iloc[place]) - logs) / width) / width
            assert curve["density"].iloc[place] == pytest.approx(kernels.sum() / row["count"])
    outside = of_kind(frame, "statistic", split="length_half").groupby("model")["outside"].sum()
    assert outside.to_dict() == {"retrained": 0, "original": 0, "npo": 11}


def test_the_axis_holds_every_ratio_within_a_factor_of_a_hundred_of_the_baselines():
    found = some_models(20)
    limits = {}
    for shift in (1.0, 30.0, 300.0):
        far = with_right(found.unlearned["npo"], right_of(found.unlearned["npo"]) + shift)
        frame = llm_truth_ratio.frame_of_models(found._replace(unlearned={"npo": far}))
        ratios, curves = of_kind(frame, "example"), of_kind(frame, "density")
        outside = of_kind(frame, "statistic", model="npo")["outside"].tolist()
        assert outside == ([0] * 4 if shift == 1 else [10] * 4)
        base = ratios.loc[ratios["model"].isin(["retrained", "original"]), "ratio"]
        limits[shift] = curves["ratio"].max()
        assert curves["ratio"].min() < base.min() and base.max() < limits[shift] < 1000 * base.max()
        figure = drawn(llm_truth_ratio, frame)
        assert all(("10 off the axis" in legend(axes)) == (shift > 1) for axes in figure.axes)
    assert limits[30.0] == limits[300.0] > limits[1.0]


def test_the_distance_does_not_depend_on_which_way_the_ratio_is_taken():
    found = some_models(20)
    frames = [
        of_kind(llm_truth_ratio.frame_of_models(found, name), "statistic") for name in TRUTH_RATIOS
    ]
    arithmetic = frames.pop(list(TRUTH_RATIOS).index("arithmetic"))
    for frame in frames[1:]:
        np.testing.assert_allclose(frame[["distance", "p"]], frames[0][["distance", "p"]])
    assert not np.allclose(arithmetic["distance"], frames[0]["distance"])


def test_a_collapsed_model_without_any_finite_ratio_has_no_curve_and_says_so():
    found = some_models(20)
    lost = with_right(found.unlearned["npo"], np.full(20, 1e4))
    frame = llm_truth_ratio.frame_of_models(found._replace(unlearned={"npo": lost}))
    assert of_kind(frame, "density", model="npo")["density"].isna().all()
    figure = drawn(llm_truth_ratio, frame)
    assert all(
        "NPO: D = 1.00" in legend(axes) and "10 off the axis" in legend(axes)
        for axes in figure.axes
    )
    original, retrained = (
        with_right(log, np.full(20, 1e4)) for log in (found.original, found.retrained)
    )
    with pytest.raises(InvalidInput, match=r"ratio = 'none'.*a model"):
        llm_truth_ratio.frame_of_models(models("a model", original, retrained))


# --- truth ratios: the picture ---


@pytest.mark.parametrize("variant", TRUTH_RATIOS)
def test_the_figure_of_truth_ratios_draws_the_frame_in_panels_by_split_and_half(variant: str):
    frame = llm_truth_ratio.frame_of_models(some_models(20), variant)
    figure = drawn(llm_truth_ratio, frame)
    panels = [(split, half) for split, halves in llm_truth_ratio.SPLITS.items() for half in halves]
    want = {"retrained": "#808080", "original": "#000000", "npo": style.COLORS["npo"]}
    assert len(figure.axes) == 4
    for axes, (split, half) in zip(figure.axes, panels, strict=True):
        assert axes.get_title("left") == f"{llm_truth_ratio.SPLITS[split][half]}, 10 answers"
        for model in ("retrained", "original", "npo", "my run"):
            curve = of_kind(frame, "density", split=split, half=half, model=model)
            row = one(frame, split=split, half=half, model=model)
            x, y, color = line(axes, {"npo": "NPO: "}.get(model, model))
            np.testing.assert_array_equal((x, y), (curve["ratio"], curve["density"]))
            assert color == want.get(model, llm_truth_ratio.OTHERS[0])
            if model != "retrained":
                assert f": D = {row['distance']:.2f}, p = {row['p']:.2g}" in legend(axes)
        assert axes.get_xscale() == "log"
        assert axes.get_ylim()[0] == 0 and axes.get_ylim() == figure.axes[0].get_ylim()
        assert axes.get_ylim()[1] > of_kind(frame, "density")["density"].max()
        assert axes.get_xlim() == figure.axes[0].get_xlim()
    for axes in figure.axes[2:]:
        assert f"({variant})" in axes.get_xlabel()


def test_every_source_of_truth_ratios_has_two_rows_of_its_own():
    found = [some_models(20), some_models(12, seed=4)._replace(source="another", unlearned={})]
    figure = drawn(
        llm_truth_ratio, pd.concat([llm_truth_ratio.frame_of_models(one) for one in found])
    )
    assert len(figure.axes) == 8
    assert [axes.texts[0].get_text() for axes in figure.axes if axes.texts] == [
        "a model",
        "another",
    ]
    assert [axes.get_title("left").split(", ")[1] for axes in figure.axes] == ["10 answers"] * 4 + [
        "6 answers"
    ] * 4
    assert "NPO" in legend(figure.axes[0]) and "NPO" not in legend(figure.axes[4])


# --- sources ---


def write(folder: Path, log: EvaluationLog) -> Path:
    """A log as the lists that evaluations leave."""
    assert log.paraphrased is not None and log.perturbed is not None
    assert log.gold.total is not None and log.gold.length is not None
    columns = {
        "avg_gt_loss": log.gold.average,
        "gt_loss": log.gold.total,
        "num_token_gt": log.gold.length,
        "avg_paraphrased_loss": log.paraphrased.average,
        "average_perturb_loss": log.perturbed.average,
    }
    folder.mkdir(parents=True)
    (folder / TASKS["forget"]).write_text(
        json.dumps({name: values.tolist() for name, values in columns.items()})
    )
    return folder


def test_frames_of_logs_are_those_of_the_values_they_hold(tmp_path: Path):
    found = some_models()
    names = ("original", "retrained", "npo", "my run")
    values = [found.original, found.retrained, *found.unlearned.values()]
    paths = {name: write(tmp_path / name, log) for name, log in zip(names, values, strict=True)}
    unlearned = tuple((name, paths[name]) for name in names[2:])
    logs = Logs(
        source="a model",
        original=paths["original"],
        retrained=paths["retrained"],
        unlearned=unlearned,
    )
    counted = {
        name: log._replace(index=np.arange(12)) for name, log in zip(names, values, strict=True)
    }
    values = models("a model", counted.pop("original"), counted.pop("retrained"), counted)
    got = llm_truth_ratio.frame_of_logs([logs])
    pd.testing.assert_frame_equal(got, llm_truth_ratio.frame_of_models(values))
    assert set(llm_truth_ratio.frame_of_logs([logs], "prob_mean")["variant"]) == {"prob_mean"}
    table = diagnose(values.original, values.retrained, CHOSEN)
    pd.testing.assert_frame_equal(
        llm_bias.frame_of_logs([logs]),
        llm_bias.frame_of_table("a model", table, sources.objectives()),
    )
    single = llm_bias.frame_of_logs([logs], named([npo(0.2)]))
    assert set(single["objective"].dropna()) == {"npo_b0.2"}


PUBLIC = "ft_epoch5_lr1e-05_llama2-7b_{}_wd0.01/eval_results/ds_size300"


@pytest.mark.parametrize(
    "place", ["logs/llama2-7b_{}", PUBLIC, f"data/{PUBLIC}", f"TOFU/data/{PUBLIC}"]
)
def test_the_public_logs_are_found_collected_or_as_the_repository_has_them(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    found = some_models()
    write(tmp_path / place.format("full"), found.original)
    monkeypatch.setenv("SIMNPO_LAB_TOFU", str(tmp_path))
    with pytest.raises(InvalidInput, match=r"logs = .*locuslab/tofu"):
        sources.real_logs()
    write(tmp_path / place.format("retain90"), found.retrained)
    logs = sources.real_logs()
    assert logs == sources.logs_in(tmp_path) and logs is not None
    assert sources.chosen(Context()) == [logs]
    # The study of the default model hides them no more than no study does; one's own does.
    for study, seen in ((sweeps.default_folder(Scale()), [logs]), (tmp_path, [])):
        assert sources.chosen(sweeps.for_logs(Context(study=study))) == seen
    read = sources.read(logs)
    np.testing.assert_array_equal(read.original.gold.average, found.original.gold.average)
    np.testing.assert_array_equal(read.retrained.gold.average, found.retrained.gold.average)
    assert logs.source == "Llama-2-7B, TOFU forget10" and not logs.unlearned
    own = (tmp_path / "mine", tmp_path / "theirs")
    (chosen,) = sources.chosen(Context(logs=own))
    assert (chosen.original, chosen.retrained, chosen.source) == (*own, "mine")
    assert sources.chosen(Context(runs=(tmp_path,))) == []
    # The retrained model's log of another repository, before this one's.
    write(tmp_path / "paper" / place.format("retain90"), found.original)
    both = sources.logs_in(os.pathsep.join([str(tmp_path / "paper"), str(tmp_path)]))
    assert both.original == logs.original and "paper" in str(both.retrained)
    assert sources.repository(found.original) is None


@pytest.mark.parametrize("module", [llm_bias, llm_truth_ratio, truth_ratios])
def test_logs_that_are_promised_and_not_there_are_asked_for_before_any_work(
    module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # With a file in the way of the cache, work would end at the first model to be made.
    (tmp_path / "cache").write_text("")
    monkeypatch.setenv("SIMNPO_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SIMNPO_LAB_TOFU", str(tmp_path))
    with pytest.raises(InvalidInput) as caught:
        module.data(Context())
    assert (caught.value.field, caught.value.value) == ("logs", str(tmp_path))
    for part in ("locuslab/tofu", "folder data", "SIMNPO_LAB_TOFU"):
        assert part in str(caught.value)
    monkeypatch.delenv("SIMNPO_LAB_TOFU")
    assert sources.chosen(Context()) == []


@pytest.mark.parametrize("module", [llm_bias, llm_truth_ratio])
def test_a_figure_without_real_logs_says_how_to_get_them(module: ModuleType):
    for source, told in ((DEFAULT, True), ("Llama-2-7B", False)):
        found = some_models()._replace(source=source)
        objectives = sources.objectives()
        table = sources.weights_at_the_start(found, objectives)
        bias = module is llm_bias
        frame = (
            llm_bias.frame_of_table(source, table, objectives)
            if bias
            else llm_truth_ratio.frame_of_models(found)
        )
        note = module.plot(frame).get_supxlabel()
        assert ("SIMNPO_LAB_TOFU" in note and "locuslab/tofu" in note) == told


def test_what_cannot_share_a_figure_is_refused(tmp_path: Path):
    found = some_models()
    path = write(tmp_path / "log", found.original)
    logs = Logs(source="a", original=path, retrained=write(tmp_path / "other", found.retrained))
    twice = Logs(
        source="b",
        original=path,
        retrained=logs.retrained,
        unlearned=(("npo", path), ("npo", path)),
    )
    table = sources.weights_at_the_start(found, CHOSEN)
    cases = [
        (lambda: llm_bias.frame_of_logs([]), "logs"),
        (lambda: llm_truth_ratio.frame_of_logs([logs, logs]), "source"),
        (lambda: sources.read(twice), "unlearned"),
        (
            lambda: models("a", found.original, found.retrained, {"retrained": found.original}),
            "unlearned",
        ),
        (lambda: models("a", found.original, take(found.retrained, [0, 1])), "examples"),
        (
            lambda: models("a", found.original, found.retrained, {"npo": some_log("npo", 5)}),
            "examples",
        ),
        (lambda: llm_bias.frame_of_table("a", table, named([npo(0.1)])), "objectives"),
        (lambda: llm_bias.frame_of_table("a", table, {**CHOSEN, "more": npo(0.3)}), "objectives"),
        (lambda: llm_truth_ratio.frame_of_models(found, "harmonic"), "variant"),
    ]
    for call, field in cases:
        with pytest.raises(InvalidInput) as caught:
            call()
        assert caught.value.field == field


def test_frames_survive_the_disk(tmp_path: Path):
    for frame in (bias_frame(), llm_truth_ratio.frame_of_models(some_models())):
        storage.write_table(frame, tmp_path / "frame.parquet", {})
        back = storage.read_table(tmp_path / "frame.parquet")
        pd.testing.assert_frame_equal(back, frame, check_dtype=False)


# --- real logs ---


@needs_real_logs
@pytest.mark.parametrize(
    ("name", "repository", "utility", "distance", "log10_p"),
    [
        ("retain90", "OPTML-Group/Unlearn-Simple", 0.6203, 0.38, math.log10(1.1e-19)),
        ("retain90_locuslab", "locuslab/tofu", 0.6137, 0.39667, math.log10(1.83e-21)),
    ],
)
def test_each_public_log_is_named_and_has_numbers_of_its_own(
    name: str, repository: str, utility: float, distance: float, log10_p: float, tmp_path: Path
):
    (tmp_path / "logs").mkdir()
    for own, other in (("full", "full"), ("retain90", name)):
        (tmp_path / "logs" / f"llama2-7b_{own}").symlink_to(REAL / "logs" / f"llama2-7b_{other}")
    found = sources.read(sources.logs_in(tmp_path))
    assert found.source == f"Llama-2-7B, TOFU forget10, retain90 of {repository}"
    assert sources.repository(found.retrained) == repository
    assert sources.repository(found.original) == "locuslab/tofu"
    test = forget_quality(found.original, found.retrained)
    assert test.statistic == pytest.approx(distance, abs=5e-6)
    assert test.log10_p == pytest.approx(log10_p, abs=0.01)
    logs = read_tofu_logs(REAL / "logs" / f"llama2-7b_{name}")
    assert model_utility(logs) == pytest.approx(utility, abs=5e-5)


@needs_real_logs
def test_on_llama_2_7b_the_weights_of_no_corner_go_where_they_are_needed():
    frame = llm_bias.frame_of_logs([sources.logs_in(REAL)])
    assert set(of_kind(frame, "statistic")["count"]) == {300}
    length = one(frame, effort="length")
    bounds = [length[f"spearman{name}"] for name in ("", "_low", "_high")]
    assert bounds == pytest.approx([0.847, 0.807, 0.881], abs=5e-4)
    spearman, areas, pushed = (
        [one(frame, objective=name, effort=effort, need=need)[column] for name in CHOSEN]
        for effort, need, column in (
            ("weight", "total", "spearman"),
            ("weight", "total", "area"),
            ("push", "per_token", "area"),
        )
    )
    assert spearman == pytest.approx([math.nan, -0.484, -0.847, -0.848], abs=5e-4, nan_ok=True)
    assert areas == pytest.approx([0.346, 0.344, 0.255, 0.255], abs=5e-4)
    assert pushed == pytest.approx([0.442, 0.440, 0.404, 0.403], abs=5e-4)
    assert (of_kind(frame, "example", objective=NPO)["weight"] == 1).all()
    caption = " ".join((llm_bias.__doc__ or "").split())
    assert f"the rank correlation is {spearman[3]:.2f}," in caption
    assert f"its area is {pushed[0]:.2f} beside SimNPO's {pushed[3]:.2f}" in caption
    assert len(drawn(llm_bias, frame).axes) == 3


@needs_real_logs
def test_on_llama_2_7b_the_halves_and_their_distances_are_known():
    frame = llm_truth_ratio.frame_of_logs([sources.logs_in(REAL)])
    panels = [(split, half) for split, halves in llm_truth_ratio.SPLITS.items() for half in halves]
    found = [one(frame, split=split, half=half, model="original") for split, half in panels]
    assert {row["count"] for row in found} == {150}
    assert [row["distance"] * 150 for row in found] == pytest.approx([64, 53, 67, 51])
    assert [row["p"] for row in found] == pytest.approx(
        [1.2e-12, 1.0e-8, 7.6e-14, 4.4e-8], rel=0.06
    )
    assert set(frame["model"]) == {"retrained", "original"}
    assert len(drawn(llm_truth_ratio, frame).axes) == 4
