"""Figures: data and drawing apart, cached tables, and claims that can fail."""

from __future__ import annotations

import io
import itertools
import json
import math
import re
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import matplotlib.colors
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from scipy import stats
from tqdm import tqdm

from figures import __main__ as command
from figures import cache, drawing, experiments, progress, style
from figures.catalogue import ALL, BY_NAME, CATALOGUE, FIGURES, GALLERY, HEAVY
from figures.chains import allocation, attribution, betas, claims, learning_rate, tradeoff
from figures.chains.runs import best_betas, paper_runs
from figures.scale import EVIDENCE, Scale, quick_scale
from figures.statistics import (
    between_models,
    holm_levels,
    mean_interval,
    over_models,
    p_value,
    ratio_interval,
)
from markov.diagnostics import COLUMNS
from markov.errors import InvalidInput
from markov.experiments import Experiment
from markov.files import storage
from tests.figures.studies import Tiny


@pytest.fixture(scope="module")
def context() -> cache.Context:
    scale = Tiny(
        pretrained=2,
        orders=1,
        recorded=(0, 1, 4),
        search_recorded=(0, 2, 4),
        test_examples=6,
        search_examples=4,
        gradient_examples=4,
    )
    return cache.Context(scale=scale, n_jobs=1, progress=False)


@pytest.mark.parametrize(
    "module", [tradeoff, allocation, attribution, betas, claims, learning_rate]
)
def test_every_figure_draws_the_frame_it_computes(module: object, context: cache.Context) -> None:
    frame = module.data(context)  # pyright: ignore[reportAttributeAccessIssue]
    before = frame.copy(deep=True)
    with style.look():
        figure = module.plot(frame)  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(figure, Figure)
    assert all(axes.has_data() for axes in figure.axes)
    pd.testing.assert_frame_equal(frame, before)


def test_tradeoff_shows_both_methods_both_optimisers_and_all_runs(context: cache.Context) -> None:
    frame = tradeoff.data(context)
    assert set(frame.columns) == set(COLUMNS)
    keys = ["case", "method", "optimizer", "pretrain_seed", "seed"]
    assert frame["run"].nunique() == len(frame[keys].drop_duplicates()) == 2 * 2 * 2 * 2


def test_tables_are_read_from_the_cache_and_rebuilt_on_request(
    context: cache.Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = paper_runs(context)
    monkeypatch.setattr(experiments, "run", lambda *arguments, **options: pytest.fail("ran again"))
    pd.testing.assert_frame_equal(paper_runs(context), first)
    with pytest.raises(pytest.fail.Exception, match="ran again"):
        paper_runs(replace(context, since=time.time()))
    with pytest.raises(pytest.fail.Exception, match="ran again"):
        paper_runs(replace(context, scale=Tiny(**{**vars(context.scale), "orders": 2})))


def test_each_method_has_one_colour_and_no_two_share_it() -> None:
    colors = {matplotlib.colors.to_hex(color) for color in style.COLORS.values()}
    assert len(colors) == len(style.COLORS)
    assert set(style.LABELS) == set(style.COLORS)


def test_equal_frames_give_equal_files(context: cache.Context, tmp_path: Path) -> None:
    frame = allocation.data(context)
    for folder in ("one", "two"):
        drawing.write("allocation", allocation, frame, context.scale, tmp_path / folder)
    for suffix in ("png", "pdf", "parquet"):
        one, two = (
            (tmp_path / folder / f"allocation.{suffix}").read_bytes() for folder in ("one", "two")
        )
        assert one == two


def test_a_written_frame_is_the_frame_drawn_with_its_provenance(
    context: cache.Context, tmp_path: Path
) -> None:
    frame = attribution.data(context)
    drawing.write("attribution", attribution, frame, context.scale, tmp_path)
    back = storage.read_table(tmp_path / "attribution.parquet")
    pd.testing.assert_frame_equal(back, frame)
    assert back.attrs["provenance"]["seeds"] == [0, 1]


def test_the_best_beta_reaches_the_goal_most_often_and_then_costs_least() -> None:
    rows = []
    for beta, retain, reached in ((0.1, 0.05, True), (0.2, 0.03, True), (0.5, 0.01, False)):
        for component in ("forget1", "forget2"):
            final = 0.5 if reached else 0.3
            for step, forget, distance in ((0, 0.0, 0.001), (1, final, retain)):
                values = {
                    "retain": distance,
                    component: forget,
                    ({"forget1", "forget2"} - {component}).pop(): 1.0,
                }
                rows += [
                    {
                        "run": f"{beta}{component}",
                        "beta": beta,
                        "step": step,
                        "component": name,
                        "kl_to_truth": value,
                    }
                    for name, value in values.items()
                ]
    settings = {
        "case": "length",
        "method": "npo",
        "gamma": 0.0,
        "architecture": "paper",
        "optimizer": "adamw",
    }
    frame = pd.DataFrame(rows).assign(**settings, pretrain_seed=0, seed=0)
    frame["retrained"] = frame["component"].map({"retain": 0.0, "forget1": 0.4, "forget2": 0.4})
    assert best_betas(frame)["beta"].tolist() == [0.2]


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    samples = generator.normal(3.0, 2.0, size=(2000, 9))
    found = [mean_interval(sample) for sample in samples]
    covered = np.mean([one.low <= 3.0 <= one.high for one in found])
    assert abs(covered - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 2000)


def test_a_ratio_is_a_geometric_mean_and_missing_runs_are_counted_out() -> None:
    found = ratio_interval(np.log([1.0, 4.0, np.nan]))
    assert found.value == pytest.approx(2.0)
    assert found.count == 2
    assert found.low < 2.0 < found.high
    assert np.isnan(mean_interval(np.array([1.0])).low)


def test_orders_of_one_model_are_no_independent_runs() -> None:
    models, orders = np.repeat([3, 5, 9], 4), np.array([0.0, 1.0, 2.0, 3.0] * 3)
    values = pd.Series(np.repeat([1.0, 2.0, 6.0], 4) + orders)
    found = over_models(values, models)
    assert found == mean_interval(np.array([2.5, 3.5, 7.5])) and found.count == 3
    assert found.high - found.low > 2 * np.ptp(mean_interval(values.to_numpy())[1:3])
    known = over_models(values.where(orders < 3), models)  # orders that are not known are left out
    assert known.value == pytest.approx(np.mean([2.0, 3.0, 7.0])) and known.count == 3


def test_models_that_differ_are_covered_as_often_as_is_said_and_runs_are_not() -> None:
    """Of the variance half lies between models."""
    generator = np.random.default_rng(1)
    models, covered = np.repeat(np.arange(8), 3), {"models": 0, "runs": 0}
    for _ in range(1000):
        values = pd.Series(generator.normal(size=8)[models] + generator.normal(size=24))
        for name, one in (
            ("models", over_models(values, models)),
            ("runs", mean_interval(values.to_numpy())),
        ):
            covered[name] += one.low <= 0 <= one.high
    assert abs(covered["models"] / 1000 - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 1000)
    assert covered["runs"] < 880


def test_the_share_of_variance_between_models_is_the_one_that_was_drawn() -> None:
    generator = np.random.default_rng(2)
    models = np.repeat(np.arange(400), 3)
    for share in (0.0, 0.3, 0.8):
        between = np.sqrt(share) * generator.normal(size=400)[models]
        values = pd.Series(between + np.sqrt(1 - share) * generator.normal(size=1200))
        assert between_models(values, models) == pytest.approx(share, abs=0.06)
    same = pd.Series(np.repeat([1.0, 2.0], 2))
    assert between_models(same, np.array([0, 0, 1, 1])) == 1.0
    assert math.isnan(between_models(same, np.array([0, 0, 0, 1])))
    assert math.isnan(between_models(same, np.arange(4)))


@given(st.lists(st.floats(-3, 3), min_size=3, max_size=9, unique=True), st.sampled_from([0.0, 1.0]))
def test_the_p_value_of_an_interval_is_that_of_students_test(
    values: list[float], none: float
) -> None:
    found = p_value(mean_interval(np.array(values)), none)
    assert found == pytest.approx(stats.ttest_1samp(values, none).pvalue, rel=1e-6, abs=1e-12)
    assert math.isnan(p_value(mean_interval(np.array(values[:1]))))


@given(
    st.lists(
        st.one_of(st.floats(0, 1), st.floats(0, 0.05), st.just(math.nan)), min_size=1, max_size=7
    )
)
def test_an_interval_of_holms_level_leaves_no_effect_out_where_holms_test_rejects_it(
    p_values: list[float],
) -> None:
    """By hand: adjusted p-values, as in Holm's paper."""
    known = [1.0 if math.isnan(p) else p for p in p_values]
    order, adjusted, largest = np.argsort(known, kind="stable"), {}, 0.0
    for rank, place in enumerate(order):
        largest = max(largest, (len(known) - rank) * known[place])
        adjusted[int(place)] = largest
    for place, level in enumerate(holm_levels(p_values)):
        near = abs(known[place] - (1 - level)) < 1e-9
        assert near or (known[place] <= 1 - level) == (adjusted[place] <= 0.05)


def _runs(costs: dict[tuple[str, str], float]) -> pd.DataFrame:
    """Runs of both cases that reach each goal half way through one step, at the retain distances
    given.
    """
    rows = []
    for seed in range(6):
        for case in ("length", "memorisation"):
            for method in ("npo", "simnpo"):
                for step in range(3):
                    jitter = 1 + 0.01 * seed
                    forget = {
                        "forget1": 0.4 * step,
                        "forget2": (0.4 if method == "simnpo" else 0.7) * step,
                    }
                    values = {"retain": costs[case, method] * step * jitter, **forget}
                    rows += [
                        {
                            "run": f"{case}{method}{seed}",
                            "case": case,
                            "method": method,
                            "pretrain_seed": seed,
                            "step": step,
                        }
                        | {"component": name, "kl_to_truth": value}
                        for name, value in values.items()
                    ]
    frame = pd.DataFrame(rows).assign(
        optimizer="adamw", beta=1.0, gamma=0.0, architecture="paper", seed=0
    )
    return frame.assign(
        retrained=frame["component"].map({"retain": 0.0, "forget1": 0.5, "forget2": 0.5})
    )


def test_verdicts_follow_the_numbers() -> None:
    costs = {("length", "npo"): 0.5, ("length", "simnpo"): 0.1}
    costs |= {("memorisation", "npo"): 0.1, ("memorisation", "simnpo"): 0.1}
    found = claims.assess(_runs(costs)).set_index("claim")
    verdicts, values = found["verdict"].to_dict(), found["value"].to_dict()
    assert (verdicts["A1"], verdicts["A2"]) == ("holds", "contradicted")
    assert verdicts["B1"] == verdicts["B2"] == "holds"
    assert values["A1"] == pytest.approx(5 * 4 / 7)
    assert values["B1"] == pytest.approx(0.7 * 1.25 - 0.5)
    costs["length", "npo"] = 0.3
    weaker = claims.assess(_runs(costs)).set_index("claim")["verdict"].to_dict()
    assert weaker["A1"] == "holds weakly"
    spread = _runs(costs)
    last = (spread["pretrain_seed"] == 5) & (spread["method"] == "simnpo")
    spread.loc[last & (spread["component"] == "retain"), "kl_to_truth"] *= 1000
    assert claims.assess(spread).set_index("claim")["verdict"]["A1"] == "inconclusive"


def test_a_claim_is_judged_with_the_others_and_not_alone() -> None:
    costs = {("length", "npo"): 0.5, ("length", "simnpo"): 0.1}
    costs |= {("memorisation", "npo"): 0.1, ("memorisation", "simnpo"): 0.1}
    frame = _runs(costs)
    # 95% exclude no effect, and what Holm leaves to the last two of five, 97.5%, does not.
    noisy = frame["pretrain_seed"].map(dict(enumerate([-0.02, 0.5, 0.26, 0.1, 0.46, 0.2])))
    late = (frame["case"] == "memorisation") & (frame["component"] == "forget2")
    frame.loc[late & (frame["method"] == "npo"), "kl_to_truth"] += (noisy - 0.375)[late]
    found = claims.assess(frame).set_index("claim").to_dict("index")["B1"]
    assert found["low"] > 0 and found["p"] < 0.05 and found["level"] == pytest.approx(0.975)
    assert found["verdict"] == "inconclusive"


def test_a_factor_is_also_told_in_nats_above_the_start() -> None:
    costs = {("length", "npo"): 0.5, ("length", "simnpo"): 0.1}
    costs |= {("memorisation", "npo"): 0.1, ("memorisation", "simnpo"): 0.1}
    frame = _runs(costs)
    retain = frame["component"] == "retain"
    frame.loc[retain, "kl_to_truth"] += 0.07  # what all start with
    found = claims.assess(frame).set_index("claim").to_dict("index")["A1"]
    assert found["nats"] == pytest.approx((0.5 * 5 / 7 - 0.1 * 1.25) * 1.025)
    assert found["value"] < 4  # the same as a ratio of levels


def _arrivals(costs: dict[str, float], started: int = 0) -> pd.DataFrame:
    """Four models in two orders, which all arrive at multiples of these costs, 0.02 of it theirs at
    the start; in so many models the other component starts at its goal.
    """
    rows = []
    for model, seed, (method, cost) in itertools.product(range(4), range(2), costs.items()):
        known = {"case": "length", "method": method, "pretrain_seed": model, "seed": seed}
        paid = cost * (1 + 0.1 * model)
        for component, step in (("forget1", 3.0), ("forget2", 0.0 if model < started else 2.0)):
            level = paid if step else 0.02
            found = {"step": step, "retain_distance": level, "retain_paid": level - 0.02}
            rows.append({**known, "component": component, **found})
    return pd.DataFrame(rows)


COSTS = {"npo": 0.4, "reference_free_npo": 0.3, "length_normalized_npo": 0.2, "simnpo": 0.06}


def test_effects_multiply_to_both_and_add_up_in_nats() -> None:
    found = attribution.effects(_arrivals(COSTS))
    one = found[found["component"] == "forget1"].set_index("effect").to_dict("index")
    values = {name: row["value"] for name, row in one.items()}
    assert values == pytest.approx(
        {
            "reference dropped": 0.75,
            "length normalised": 0.5,
            "both: SimNPO": 0.15,
            "product": 0.375,
            "interaction": 0.4,
        }
    )
    nats = {name: row["nats"] / 1.15 for name, row in one.items()}
    assert nats == pytest.approx(
        {
            "reference dropped": -0.1,
            "length normalised": -0.2,
            "both: SimNPO": -0.34,
            "product": -0.3,
            "interaction": -0.04,
        }
    )
    assert {row["count"] for row in one.values()} == {4}


@pytest.mark.parametrize(("started", "counted"), [(0, 4), (2, 2), (3, None), (4, None)])
def test_runs_that_start_at_their_goal_are_not_compared(started: int, counted: int | None) -> None:
    found = attribution.effects(_arrivals(COSTS, started))
    own = found[found["component"] == "forget2"]
    assert set(own["count"]) == ({counted} if counted else set())
    assert (found["component"] == "forget1").sum() == 5


def test_only_runs_that_all_corners_finish_are_compared() -> None:
    frame = _arrivals(COSTS)
    lost = (frame["method"] == "simnpo") & (frame["pretrain_seed"] == 0)
    frame.loc[lost, ["step", "retain_distance", "retain_paid"]] = np.nan
    found = attribution.effects(frame).set_index(["component", "effect"])["count"]
    assert set(found) == {3}  # of no effect other runs than of the others


def test_a_price_is_that_of_the_runs_that_arrive_and_says_how_many_do() -> None:
    frame = _arrivals({"npo": 0.4}).assign(beta=0.2, reached=True)
    frame.loc[0, ["reached", "retain_distance", "retain_paid"]] = False, np.nan, np.nan
    found = betas.prices(frame).set_index("component").to_dict("index")
    assert (found["forget1"]["reached"], found["forget1"]["runs"]) == (7, 8)
    assert found["forget1"]["paid"] == pytest.approx(0.4 * 1.15 - 0.02)
    assert found["forget2"]["value"] == pytest.approx(
        0.4 * float(np.prod([1, 1.1, 1.2, 1.3])) ** 0.25
    )


def test_a_smaller_step_takes_as_many_more_steps_and_records_of_the_same_moments() -> None:
    runs = learning_rate.experiments(cache.Context(scale=Scale(pretrained=1, orders=1)))
    paper = [one for one in runs if one.learning_rate == Experiment().learning_rate]
    for one in runs:
        (same,) = [other for other in paper if other.objective == one.objective]
        factor = same.learning_rate / one.learning_rate
        assert one.steps == same.steps * factor
        if factor >= 1:
            assert one.steps_recorded == tuple(int(step * factor) for step in same.steps_recorded)
    assert len(runs) == 2 * len(learning_rate.FRACTIONS) and len(paper) == 2


def test_factors_compare_the_same_model_and_order() -> None:
    rows = [
        {"component": "forget2", "learning_rate": rate, "pretrain_seed": model, "seed": seed}
        | {"method": method, "retain_distance": cost * (1 + model) * (2 + seed) * rate}
        for rate in (1e-4, 5e-4)
        for model in range(3)
        for seed in range(2)
        for method, cost in (("npo", 3.0), ("simnpo", 0.5))
    ]
    found = learning_rate.factors(pd.DataFrame(rows))
    assert found["value"].tolist() == pytest.approx([6.0, 6.0])
    assert found["low"].tolist() == pytest.approx([6.0, 6.0]) and set(found["count"]) == {3}


def test_the_table_of_claims_lists_every_estimate_with_its_interval(
    context: cache.Context,
) -> None:
    frame = claims.data(context)
    text = claims.markdown(frame)
    assert len(text.splitlines()) == 2 + len(claims.CLAIMS)
    assert len(frame) == 2 * len(claims.CLAIMS)
    for row in frame.itertuples():
        interval = f"{row.low:.2f} to {row.high:.2f}".replace("-", "−")
        assert f"{row.value:.2f}" in text and interval in text


def test_quick_scale_is_a_smaller_study_of_the_same_cases() -> None:
    assert set(quick_scale().cases()) == set(Scale().cases())
    assert quick_scale().cases()["length"].retain_count < Scale().cases()["length"].retain_count
    assert quick_scale().pretrained * quick_scale().orders < Scale().pretrained * Scale().orders


def test_at_full_scale_a_curve_is_at_least_eight_runs_over_at_least_three_pretrained_models() -> (
    None
):
    assert Scale().pretrained >= 3
    assert Scale().pretrained * Scale().orders >= 8
    seen = {
        name: getattr(Scale(), name) for name in ("recorded", "test_examples", "gradient_examples")
    }
    assert Scale().experiment() == replace(Experiment(), **seen)


# --- which figures, and how long they take ---


@pytest.mark.parametrize("name", ["claims", "attribution"])
def test_the_gallery_keeps_the_numbers_that_the_findings_tell(
    name: str, context: cache.Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "__file__", str(tmp_path / "figures" / "__main__.py"))
    asked = command.Arguments(names=(name,), out=tmp_path / "out", gallery=True)
    monkeypatch.setattr(claims, "both_architectures", claims.data)
    command.draw(name, context, asked)
    kept = tmp_path / "figures" / "gallery"
    module = command.module_of(name)
    told = module.told(module.data(context))
    there = {path.name for path in (kept / name).iterdir()}
    assert (kept / f"{name}.png").exists()
    assert there == {drawing.PROVENANCE, *(f"{part}.csv" for part in told)}
    for part, frame in told.items():
        back = pd.read_csv(kept / name / f"{part}.csv")
        assert back.columns.tolist() == frame.columns.tolist() and len(back) == len(frame) > 0
    command.draw(name, context, replace(asked, gallery=False, out=tmp_path / "other"))
    assert not (tmp_path / "other" / name).exists()


def test_what_is_judged_by_has_more_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found: list[int] = []

    def draw(name: str, context: cache.Context, arguments: command.Arguments) -> None:
        found.append(context.scale.pretrained)

    monkeypatch.setattr(command, "draw", draw)
    asked = command.Arguments(names=("weights",), out=tmp_path)
    judged = replace(asked, gallery=True)
    for one in (asked, judged, replace(judged, seeds=9), replace(asked, quick=True)):
        command.main(one)
    assert found == [Scale().pretrained, EVIDENCE, 9, quick_scale().pretrained]
    for fewer in (replace(judged, seeds=5), replace(judged, quick=True)):
        with pytest.raises(InvalidInput, match="gallery = True"):
            command.main(fewer)
    assert len(found) == 4


def test_the_two_groups_are_apart_and_a_name_draws_any_of_either() -> None:
    assert set(FIGURES).isdisjoint(HEAVY)
    assert (*FIGURES, *HEAVY) == ALL and len(set(ALL)) == len(ALL)
    heavy = HEAVY[0]
    asked = [
        (command.Arguments(), FIGURES),
        (command.Arguments(all=True), ALL),
        (command.Arguments(names=(heavy, "tradeoff", heavy)), (heavy, "tradeoff")),
        (command.Arguments(gallery=True), GALLERY),
        (command.Arguments(gallery=True, all=True), ALL),
    ]
    assert [command.chosen(arguments) for arguments, _ in asked] == [names for _, names in asked]
    with pytest.raises(InvalidInput, match="all = True"):
        command.chosen(command.Arguments(names=("tradeoff",), all=True))
    with pytest.raises(InvalidInput, match="figure = 'nobody'"):
        command.chosen(command.Arguments(names=("tradeoff", "nobody")))


def test_the_help_names_every_figure_of_both_groups() -> None:
    first, second = command.DESCRIPTION.split("The second group")
    assert all(re.search(rf"\b{name}\b", first) for name in FIGURES)
    assert all(re.search(rf"\b{name}\b", second) for name in HEAVY)


def test_make_lists_both_ways_to_draw() -> None:
    root = Path(command.__file__).parents[1]
    shown = subprocess.run(
        ["make", "-C", str(root), "help"], capture_output=True, text=True, check=True
    ).stdout
    assert re.search(r"^  make figures  +draw", shown, re.MULTILINE)
    assert re.search(r"^  make figures-all  +draw", shown, re.MULTILINE)


def test_the_first_group_is_expected_to_take_under_forty_minutes_and_the_second_longer() -> None:
    seconds = {entry.name: entry.seconds for entry in CATALOGUE}
    assert sum(seconds[name] for name in FIGURES) < 40 * 60 < sum(seconds.values())
    heavy, light = (sum(seconds[name] for name in group) for group in (HEAVY, FIGURES))
    assert heavy > light


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SIMNPO_LAB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "tables").mkdir(parents=True)
    return tmp_path / "cache" / progress.JOURNAL


def draw_in(
    seconds: float, monkeypatch: pytest.MonkeyPatch, context: cache.Context, *, compute: bool
) -> None:
    """A drawing of tradeoff that takes so long, with or without a new table in the cache."""
    clock = iter([0.0, seconds])
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(clock))
    with progress.timed("tradeoff", context):
        if compute:
            storage.write_table(
                pd.DataFrame({"a": [seconds]}),
                storage.cache_dir() / "tables" / f"{seconds}.parquet",
                {},
            )


def test_what_a_drawing_took_is_expected_of_the_next_one(
    journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = cache.Context()
    fresh, slow = (
        replace(context, since=1.0),
        replace(context, scale=replace(Scale(), pretrained=5)),
    )

    def expect(one: cache.Context) -> tuple[float, bool]:
        return progress.expected(["tradeoff"], one)["tradeoff"]

    assert expect(context) == (BY_NAME["tradeoff"].seconds, False)
    draw_in(40.0, monkeypatch, context, compute=True)
    assert expect(context) == (progress.AGAIN, True) and expect(fresh) == (40.0, False)
    draw_in(2.5, monkeypatch, context, compute=False)
    assert expect(context) == (2.5, True) and expect(fresh) == (40.0, False)
    # five models, where the seconds of the list are those of three
    assert expect(slow) == (pytest.approx(BY_NAME["tradeoff"].seconds * 5 / 3), False)
    assert progress.expected(["tradeoff"], context, architectures=True)["tradeoff"].cached is False
    others = progress.expected(["allocation", "logistic"], slow)
    assert others["allocation"].seconds > BY_NAME["allocation"].seconds
    assert others["logistic"] == (BY_NAME["logistic"].seconds, False)
    known = json.loads(journal.read_text())
    journal.write_text(
        json.dumps({key: {**entry, "code": "another"} for key, entry in known.items()})
    )
    assert expect(context) == (40.0, False)
    assert set(json.loads(journal.read_text()).popitem()[1]) == {"code", "computed", "redrawn"}


def test_the_quick_scale_is_expected_to_be_quick(journal: Path) -> None:
    drawn = [name for name in ALL if not BY_NAME[name].full]  # the others are left out
    found = progress.expected(drawn, cache.Context(scale=quick_scale()))
    assert sum(one.seconds for one in found.values()) < 10 * 60
    assert not journal.exists()


def test_a_drawing_that_fails_is_not_counted_and_a_spoiled_journal_is_no_harm(
    journal: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyboardInterrupt), progress.timed("tradeoff", cache.Context()):
        raise KeyboardInterrupt
    assert not journal.exists()
    key = progress._key("tradeoff", cache.Context(), {})
    nested = [
        f'{{"{key}": {{"computed": {{}}}}}}',
        f'{{"{key}": {{"computed": null}}}}',
        "[" * 100_000,
    ]
    spoiled = ["{", "[1]", '{"a": 1}', *nested]
    for number, text in enumerate(spoiled):
        journal.write_text(text)
        assert (
            progress.expected(["tradeoff"], cache.Context())["tradeoff"].seconds
            == BY_NAME["tradeoff"].seconds
        )
        (line,) = capsys.readouterr().err.splitlines()
        assert (
            line.startswith(f"note: {journal} is broken")
            and "set aside as seconds.json.broken" in line
        )
        assert (
            not journal.exists()
            and len(list(journal.parent.glob("seconds.json.broken*"))) == number + 1
        )
    draw_in(7.0, monkeypatch, cache.Context(), compute=True)
    assert progress.expected(["tradeoff"], cache.Context(since=1.0))["tradeoff"].seconds == 7.0


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.2, "about 5 s"),
        (31, "about 30 s"),
        (89, "about 90 s"),
        (95, "about 2 min"),
        (1200, "about 20 min"),
    ],
)
def test_a_duration_is_said_as_one_would_say_it(seconds: float, said: str) -> None:
    assert progress.duration(seconds) == said


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def three(cached: bool = False) -> dict[str, progress.Expected]:
    return {
        name: progress.Expected(seconds, cached)
        for name, seconds in (("a", 60), ("b", 600), ("c", 540))
    }


def test_the_line_says_which_figure_it_is_and_how_long_it_will_take() -> None:
    now = [0.0]
    stream = Terminal()
    with progress.display(three(), file=stream, clock=lambda: now[0], beat=3600) as shown:
        shown.start("a")
        assert shown.line() == "figure 1 of 3: a, about 20 min left" and shown.left() == 1200
        now[0] = 30.0
        assert shown.left() == 1170
        now[0] = 300.0  # longer than it was thought
        assert shown.left() == 1140
        shown.start("b")
        assert shown.line() == "figure 2 of 3: b, about 19 min left"
        now[0] = 500.0
        shown.start("c")
        assert shown.line() == "figure 3 of 3: c, about 9 min left" and shown.bar is not None
        assert shown.bar.n == 660 and shown.bar.total == 1200
    text = stream.getvalue()
    for part in ("figure 1 of 3: a, about 20 min left", "figure 2 of 3", "figure 3 of 3"):
        assert part in text
    cached = progress.Display(three(cached=True), lambda: 0.0)
    assert cached.line() == "figure 1 of 3: a, about 20 min left, from the cache"


def test_the_line_is_kept_up_to_date_while_a_figure_is_drawn() -> None:
    stream, ticks = Terminal(), itertools.count(0.0, 60.0)
    with progress.display(three(), file=stream, clock=lambda: next(ticks), beat=0.01) as shown:
        shown.start("b")
        until = time.monotonic() + 30
        while "about 9 min left" not in stream.getvalue() and time.monotonic() < until:
            time.sleep(0.01)
    said = [
        int(minutes)
        for minutes in re.findall(r"figure 2 of 3: b, about (\d+) min left", stream.getvalue())
    ]
    assert len(set(said)) > 3 and said == sorted(said, reverse=True) and said[-1] == 9


def test_bars_of_the_work_lie_beneath_the_line_and_leave_it_there() -> None:
    stream = Terminal()
    with progress.display(three(), file=stream, beat=3600) as shown:
        shown.start("a")
        with tqdm(total=2, desc="inner", file=stream, leave=False, mininterval=0) as bar:
            assert abs(bar.pos) == 1
            bar.update()
            shown.refresh()
        assert shown.bar is not None and shown.bar.pos == 0
        shown.start("b")
    screen = screen_of(stream.getvalue())
    assert "inner" in stream.getvalue() and "inner" not in "".join(screen)
    assert "".join(screen).strip() == ""  # nothing is left behind
    before_end = screen_of(stream.getvalue().rsplit("figure 2 of 3", 1)[0] + "figure 2 of 3")
    assert before_end[0].startswith("figure 2 of 3")


def screen_of(text: str) -> list[str]:
    """What a terminal shows of a text with carriage returns, line feeds and "one line up"."""
    lines, row, column = [""], 0, 0
    for token in re.findall(r"\x1b\[A|\r|\n|[^\r\n\x1b]+", text):
        if token == "\x1b[A":
            row = max(0, row - 1)
        elif token == "\r":
            column = 0
        elif token == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        else:
            kept = lines[row].ljust(column)
            lines[row] = kept[:column] + token + kept[column + len(token) :]
            column += len(token)
    return lines


def test_where_nobody_watches_there_are_plain_lines_with_the_estimate_first(
    capsys: pytest.CaptureFixture[str],
) -> None:
    stream = io.StringIO()
    for cached, ending in ((False, ""), (True, ", all tables being in the cache")):
        with progress.display(three(cached), file=stream) as shown:
            shown.start("a")
            shown.say("a: done")
        assert capsys.readouterr().out == f"3 figures: about 20 min{ending}\na: done\n"
    assert stream.getvalue() == ""


def test_a_finished_figure_is_a_line_with_how_many_are_done_and_how_long_the_others_take(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with progress.display(three(), file=io.StringIO()) as shown:
        for name in three():
            shown.start(name)
            shown.done(f"{name}: there")
    _, *lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "a: there; 1 of 3 figures, about 19 min left",
        "b: there; 2 of 3 figures, about 9 min left",
        "c: there; 3 of 3 figures",
    ]


class Drawn:
    """A module of a figure that notes at which scale it is drawn, and what lies there by then."""

    def __init__(self, place: Path) -> None:
        self.place, self.seen = place, list[tuple[bool, bytes | None]]()

    def data(self, context: cache.Context) -> pd.DataFrame:
        there = self.place.read_bytes() if self.place.exists() else None
        self.seen.append((context.scale.quick, there))
        return pd.DataFrame({"a": [1.0]})

    def plot(self, frame: pd.DataFrame) -> Figure:
        return style.grid_figure(1, 1, 3, 2)[0]


def test_the_first_figure_is_there_roughly_at_once_and_says_so(
    journal: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = Drawn(tmp_path / "tradeoff.png")
    for place in (command, drawing):
        monkeypatch.setattr(place, "module_of", lambda name: module)
    said: list[str] = []
    monkeypatch.setattr(Figure, "text", lambda self, x, y, text, **look: said.append(text))
    call = ["tradeoff", "allocation", "--jobs", "1", "--out", str(tmp_path)]
    assert command.cli(call) == 0
    (first, nothing), (second, rough), third = module.seen
    assert (first, second, third[0]) == (True, False, False) and nothing is None
    assert rough is not None and said == [drawing.ROUGH]
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith(f"tradeoff: {module.place}, roughly, in ")
    assert [line.startswith("tradeoff: ") for line in lines[1:3]] == [True, True]
    assert "1 of 2 figures, " in lines[2] and lines[3].endswith("2 of 2 figures")
    # What is there already is not replaced by something rough, nor is a second figure drawn twice.
    for more in (["--fresh"], ["--quick", "--fresh"]):
        module.seen.clear()
        assert command.cli([*call, *more]) == 0
        assert len(module.seen) == 2 and "roughly" not in capsys.readouterr().out


def test_the_command_draws_a_figure_says_so_and_knows_it_the_next_time(
    context: cache.Context,
    journal: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("figures.scale.quick_scale", lambda: context.scale)
    for first in ("1 figure: about 3 min", "1 figure: about 5 s, all tables being in the cache"):
        assert (
            command.cli(["tradeoff", "--quick", "--jobs", "1", "--out", str(tmp_path / "out")]) == 0
        )
        said = capsys.readouterr()
        lines = said.out.splitlines()
        assert lines[0] == first and lines[1].startswith(
            f"tradeoff: {tmp_path / 'out' / 'tradeoff'}.{{pdf,png,parquet}} in "
        )
        assert len(lines) == 2 and said.err == ""
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".pdf", ".png", ".parquet"}
