"""Figures: data and drawing apart, cached tables, and claims that can fail."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import matplotlib.colors
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from figures import __main__ as command
from figures import allocation, attribution, claims, style, tables, tradeoff
from figures.scale import Scale, quick
from figures.statistics import mean_interval, ratio_interval
from markov import storage
from markov.cases import Case
from markov.diagnostics import COLUMNS
from markov.experiments import Experiment, Pretraining
from markov.models import Transformer


class Tiny(Scale):
    """Large enough to draw, too small to mean anything."""

    def cases(self) -> dict[str, Case]:
        counts = {"retain_count": 60, "forget1_count": 30, "forget2_count": 30}
        return {name: replace(case, **counts) for name, case in super().cases().items()}

    def experiment(self) -> Experiment:
        model = Transformer(width=8, depth=1, heads=2, mlp_width=8)
        settings = Pretraining(epochs=1, batch=32, learning_rate=1e-2)
        return replace(super().experiment(), model=model, pretraining=settings, steps=4, learning_rate=1e-2)


@pytest.fixture(scope="module")
def context() -> tables.Context:
    scale = Tiny(
        pretrained=2,
        orders=1,
        recorded=(0, 1, 4),
        search_recorded=(0, 2, 4),
        test_examples=6,
        search_examples=4,
        gradient_examples=4,
    )
    return tables.Context(scale=scale, n_jobs=1, progress=False)


@pytest.mark.parametrize("module", [tradeoff, allocation, attribution, claims])
def test_every_figure_draws_the_frame_it_computes_and_has_a_caption(module: object, context: tables.Context) -> None:
    frame = module.data(context)  # pyright: ignore[reportAttributeAccessIssue]
    before = frame.copy(deep=True)
    with style.look():
        figure = module.plot(frame)  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(figure, Figure)
    assert all(axes.has_data() for axes in figure.axes)
    pd.testing.assert_frame_equal(frame, before)
    assert len(module.__doc__ or "") > 100


def test_tradeoff_shows_both_methods_both_optimisers_and_all_runs(context: tables.Context) -> None:
    frame = tradeoff.data(context)
    assert set(frame.columns) == set(COLUMNS)
    keys = ["case", "method", "optimizer", "pretrain_seed", "seed"]
    assert frame["run"].nunique() == len(frame[keys].drop_duplicates()) == 2 * 2 * 2 * 2


def test_tables_are_read_from_the_cache_and_rebuilt_on_request(
    context: tables.Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tables.paper_runs(context)
    monkeypatch.setattr(tables, "run", lambda *arguments, **options: pytest.fail("ran again"))
    pd.testing.assert_frame_equal(tables.paper_runs(context), first)
    with pytest.raises(pytest.fail.Exception, match="ran again"):
        tables.paper_runs(replace(context, since=time.time()))
    with pytest.raises(pytest.fail.Exception, match="ran again"):
        tables.paper_runs(replace(context, scale=Tiny(**{**vars(context.scale), "orders": 2})))


def test_each_method_has_one_colour_and_no_two_share_it() -> None:
    colors = {matplotlib.colors.to_hex(color) for color in style.COLORS.values()}
    assert len(colors) == len(style.COLORS)
    assert set(style.LABELS) == set(style.COLORS)


def test_equal_frames_give_equal_files(context: tables.Context, tmp_path: Path) -> None:
    frame = allocation.data(context)
    for folder in ("one", "two"):
        command.write("allocation", allocation, frame, context.scale, tmp_path / folder)
    for suffix in ("png", "pdf", "parquet"):
        one, two = ((tmp_path / folder / f"allocation.{suffix}").read_bytes() for folder in ("one", "two"))
        assert one == two


def test_a_written_frame_is_the_frame_drawn_with_its_provenance(context: tables.Context, tmp_path: Path) -> None:
    frame = attribution.data(context)
    command.write("attribution", attribution, frame, context.scale, tmp_path)
    back = storage.read_table(tmp_path / "attribution.parquet")
    pd.testing.assert_frame_equal(back, frame)
    assert back.attrs["provenance"]["seeds"] == [0, 1]


def test_the_best_beta_reaches_the_goal_most_often_and_then_costs_least() -> None:
    rows = []
    for beta, retain, reached in ((0.1, 0.05, True), (0.2, 0.03, True), (0.5, 0.01, False)):
        for component in ("forget1", "forget2"):
            final = 0.5 if reached else 0.3
            for step, forget, distance in ((0, 0.0, 0.001), (1, final, retain)):
                values = {"retain": distance, component: forget, ({"forget1", "forget2"} - {component}).pop(): 1.0}
                rows += [
                    {"run": f"{beta}{component}", "beta": beta, "step": step, "component": name, "kl_to_truth": value}
                    for name, value in values.items()
                ]
    settings = {"case": "length", "method": "npo", "gamma": 0.0, "architecture": "paper", "optimizer": "adamw"}
    frame = pd.DataFrame(rows).assign(**settings, pretrain_seed=0, seed=0)
    frame["retrained"] = frame["component"].map({"retain": 0.0, "forget1": 0.4, "forget2": 0.4})
    assert tables.best_betas(frame)["beta"].tolist() == [0.2]


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


def _runs(costs: dict[tuple[str, str], float]) -> pd.DataFrame:
    """Runs of both cases that reach each goal half way through one step, at the retain distances given."""
    rows = []
    for seed in range(6):
        for case in ("length", "memorisation"):
            for method in ("npo", "simnpo"):
                for step in range(3):
                    jitter = 1 + 0.01 * seed
                    forget = {"forget1": 0.4 * step, "forget2": (0.4 if method == "simnpo" else 0.7) * step}
                    values = {"retain": costs[case, method] * step * jitter, **forget}
                    rows += [
                        {"run": f"{case}{method}{seed}", "case": case, "method": method, "seed": seed, "step": step}
                        | {"component": name, "kl_to_truth": value}
                        for name, value in values.items()
                    ]
    frame = pd.DataFrame(rows).assign(optimizer="adamw", beta=1.0, gamma=0.0, architecture="paper", pretrain_seed=0)
    return frame.assign(retrained=frame["component"].map({"retain": 0.0, "forget1": 0.5, "forget2": 0.5}))


def test_verdicts_follow_the_numbers() -> None:
    costs = {("length", "npo"): 0.5, ("length", "simnpo"): 0.1}
    costs |= {("memorisation", "npo"): 0.1, ("memorisation", "simnpo"): 0.1}
    found = claims.assess(_runs(costs)).set_index("claim")
    verdicts, values = found["verdict"].to_dict(), found["value"].to_dict()
    assert (verdicts["A1"], verdicts["A2"]) == ("holds", "does not hold")
    assert verdicts["B1"] == verdicts["B2"] == "holds"
    assert values["A1"] == pytest.approx(5 * 4 / 7)
    assert values["B1"] == pytest.approx(0.7 * 1.25 - 0.5)
    costs["length", "npo"] = 0.3
    weaker = claims.assess(_runs(costs)).set_index("claim")["verdict"].to_dict()
    assert weaker["A1"] == "holds weakly"


def test_the_table_of_claims_lists_every_estimate_with_its_interval(context: tables.Context) -> None:
    frame = claims.data(context)
    text = claims.markdown(frame)
    assert len(text.splitlines()) == 2 + len(claims.CLAIMS)
    assert len(frame) == 2 * len(claims.CLAIMS)
    for row in frame.itertuples():
        assert f"{row.value:.2f}" in text and f"{row.low:.2f} to {row.high:.2f}" in text


def test_quick_scale_is_a_smaller_study_of_the_same_cases() -> None:
    assert set(quick().cases()) == set(Scale().cases())
    assert quick().cases()["length"].retain_count < Scale().cases()["length"].retain_count
    assert quick().pretrained * quick().orders < Scale().pretrained * Scale().orders


def test_at_full_scale_a_curve_is_at_least_eight_runs_over_at_least_three_pretrained_models() -> None:
    assert Scale().pretrained >= 3
    assert Scale().pretrained * Scale().orders >= 8
    seen = {name: getattr(Scale(), name) for name in ("recorded", "test_examples", "gradient_examples")}
    assert Scale().experiment() == replace(Experiment(), **seen)
