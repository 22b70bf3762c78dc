"""What the figures of the sweeps say in their captions, as fitted numbers with intervals, on
small models.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from figures import cache, style
from figures.fits import power_law
from figures.scale import Scale
from figures.statistics import lookup, mean_interval
from figures.theory import (
    divergence,
    dynamics,
    effective_push,
    memorisation,
    optimizer,
    sweeps,
    time_to_forget,
)
from llm.intervals import Estimate
from markov.experiments import Experiment, Pretraining
from markov.models import Transformer
from markov.sweeps import LENGTHS

# The runs that all of them look at take a minute.
pytestmark = pytest.mark.slow
MODULES = (time_to_forget, dynamics, divergence, effective_push, memorisation, optimizer)


class Small(Scale):
    """Three lengths a factor of ten apart, and a transformer that is trained in a second."""

    def sweep(self) -> Experiment:
        few = {"tokens": 1600, "retain_tokens": 3200, "forget_count": 20, "test_count": 12}
        case = replace(LENGTHS, **few)
        return replace(
            super().sweep(),
            case=case,
            model=Transformer(
                states=case.states, context=80, width=32, depth=1, heads=2, mlp_width=32
            ),
            pretraining=Pretraining(epochs=6, batch=64, learning_rate=3e-3),
            test_examples=12,
        )


@pytest.fixture(scope="module")
def context() -> cache.Context:
    scale = Small(
        sweep_pretrained=3, sweep_orders=1, sweep_steps=40, sweep_adam_steps=20, sweep_records=10
    )
    return cache.Context(scale=scale, n_jobs=1, progress=False)


@pytest.fixture(scope="module")
def frames(context: cache.Context) -> dict[object, pd.DataFrame]:
    return {module: module.data(context) for module in MODULES}


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_figure_draws_the_frame_it_computes(module: object, frames: dict) -> None:
    frame = frames[module]
    before = frame.copy(deep=True)
    with style.look():
        figure = module.plot(frame)  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(figure, Figure)
    assert all(axes.has_data() for axes in figure.axes)
    pd.testing.assert_frame_equal(frame, before)


def interval(values: pd.Series) -> Estimate:
    """Over pretrained models, the replicates."""
    return mean_interval(values.groupby(level="pretrain_seed").mean().to_numpy(dtype=float))


def per_model(
    frame: pd.DataFrame, method: str, mode: str, optimizer: str = "sgd", rung: str = "transformer"
) -> pd.Series:
    """Exponent of time to forget in length at the middle beta, one per pretrained model."""
    chosen = (frame["rung"] == rung) & (frame["mode"] == mode) & (frame["optimizer"] == optimizer)
    own = frame[chosen & (frame["method"] == method) & (frame["beta"] == sweeps.BETAS[method][1])]
    return own.groupby("pretrain_seed")[["length", "step"]].apply(
        lambda run: power_law(run["length"], run["step"]).exponent.value
    )


# --- time to forget ---


def test_the_scalar_law_says_minus_one_for_small_beta_and_zero_where_the_length_is_normalised(
    frames: dict,
) -> None:
    found = time_to_forget.exponents(frames[time_to_forget]).query("rung == 'scalar'")
    values = found.set_index(["method", "beta"])["value"]
    assert values["npo", 0.01] == pytest.approx(-1, abs=0.05)
    assert values["npo", 0.2] > 0  # long responses lose their weight before they are forgotten
    for method in ("simnpo", "length_normalized_npo"):
        assert np.abs(values[method].to_numpy()).max() < 1e-9


def test_one_length_at_a_time_the_transformer_agrees_with_the_scalar_law(frames: dict) -> None:
    frame = frames[time_to_forget]
    npo, simnpo = (interval(per_model(frame, method, "alone")) for method in ("npo", "simnpo"))
    assert npo.low < -0.82 < npo.high < -0.4  # -0.82 is the scalar law's at this beta
    assert -0.4 < simnpo.low < 0.1 and simnpo.high < 0.6
    normalised = interval(per_model(frame, "length_normalized_npo", "alone"))
    assert normalised.low < 0 < normalised.high < 0.4


def test_together_long_responses_drag_short_ones_along(frames: dict) -> None:
    frame = frames[time_to_forget]
    gained = per_model(frame, "npo", "together") - per_model(frame, "npo", "alone")
    assert interval(gained).low > 0
    assert interval(gained).value > 0.2


def test_the_table_lies_between_and_both_its_exponents_are_higher(frames: dict) -> None:
    frame = frames[time_to_forget]
    for mode in ("alone", "together"):
        npo, simnpo = (
            interval(per_model(frame, one, mode, "flow", "tabular")) for one in ("npo", "simnpo")
        )
        assert npo.low > -0.82 and npo.high < -0.3
        assert simnpo.low > 0 and simnpo.high < 0.6


def test_adam_takes_away_what_length_does_alone(frames: dict) -> None:
    frame = frames[time_to_forget]
    apart = {
        optimizer: interval(
            per_model(frame, "npo", "alone", optimizer)
            - per_model(frame, "simnpo", "alone", optimizer)
        )
        for optimizer in ("sgd", "adamw")
    }
    assert apart["sgd"].high < -0.5
    assert apart["adamw"].low > -0.3 and apart["adamw"].high < 0.3


# --- dynamics ---


def test_npo_starts_with_equal_weights_and_simnpo_near_one_over_length(frames: dict) -> None:
    frame = frames[dynamics]
    for rung, own in frame.groupby("rung"):
        first = own[own["time"] == own.groupby(["method", "length"])["time"].transform("min")]
        start = first.groupby(["method", "length"])["weight"].mean()
        assert start["npo"].to_numpy() == pytest.approx(
            1.0, abs=1e-6 if rung == "transformer" else 0.25
        )
        slope = power_law(
            start["simnpo"].index.to_numpy(dtype=float), start["simnpo"].to_numpy()
        ).exponent.value
        assert slope == pytest.approx(-1, abs=1e-9 if rung == "scalar" else 0.3)


def test_under_npo_the_long_response_falls_first_and_loses_its_weight_first(frames: dict) -> None:
    own = frames[dynamics].query("method == 'npo' and rung == 'scalar'")
    at = own[
        own["time"] == own["time"].unique()[np.abs(own["time"].unique() - 1).argmin()]
    ].set_index("length")
    assert at.loc[80, "fall"] > at.loc[20, "fall"] > at.loc[2, "fall"]
    assert at.loc[80, "weight"] < at.loc[20, "weight"] < at.loc[2, "weight"]


# --- divergence ---


def test_gradient_ascent_diverges_linearly_and_the_others_ever_more_slowly(frames: dict) -> None:
    found = divergence.exponents(frames[divergence]).set_index(["rung", "method"])["value"]
    for rung in ("scalar", "tabular"):
        assert found[rung, "gradient_ascent"] == pytest.approx(1, abs=0.1)
        assert found[rung].drop("gradient_ascent").max() < 0.6


def test_in_the_transformer_gradient_ascent_runs_away_faster_than_linearly(frames: dict) -> None:
    found = lookup(
        divergence.exponents(frames[divergence]).query("rung == 'transformer'"), ["method"]
    )
    runaway = found.pop("gradient_ascent")
    assert runaway.low > 1
    assert max(estimate.value for estimate in found.values()) < runaway.low


# --- effective push ---


def test_the_gradient_of_logp_grows_as_the_root_of_length_at_first_not_as_length(
    frames: dict,
) -> None:
    # Before unlearning NPO's weight is 1, so that its push is the norm of grad log pi.
    found = lookup(effective_push.exponents(frames[effective_push]), ["rung", "stage", "method"])
    assert found["scalar", "start", "npo"].value == pytest.approx(1)
    table, model = (found[rung, "start", "npo"] for rung in ("tabular", "transformer"))
    assert table.low > 0.4 and table.high < 0.7
    assert model.low > 0.35 and model.high < 0.95


def test_one_over_length_over_corrects_the_push_on_single_examples(frames: dict) -> None:
    found = lookup(effective_push.exponents(frames[effective_push]), ["rung", "stage", "method"])
    assert found["scalar", "start", "simnpo"].value == pytest.approx(0, abs=1e-9)
    for rung in ("tabular", "transformer"):
        for method in ("simnpo", "length_normalized_npo"):
            assert found[rung, "start", method].high < 0


# --- memorisation ---


def test_with_a_reference_all_weights_are_one_and_without_they_grow_with_memorisation(
    frames: dict,
) -> None:
    frame = frames[memorisation]
    weights = frame.groupby(["method", "pretrain_seed", "share"])["weight"].mean()
    for method in ("npo", "length_normalized_npo"):
        assert weights[method].to_numpy() == pytest.approx(1, abs=1e-6)
    seen = weights["simnpo"].unstack("share")
    assert interval(seen[1.0] - seen[0.0]).low > 0


def test_npo_over_forgets_what_was_not_memorised_and_simnpo_narrows_the_gap(frames: dict) -> None:
    own = frames[memorisation].query("optimizer == 'sgd'")
    fits = own.groupby(["method", "pretrain_seed"])[["share", "gap"]].apply(
        lambda run: float(np.polyfit(run["share"], run["gap"], 1)[0])
    )
    assert interval(fits["npo"]).value < -0.7
    assert abs(interval(fits["simnpo"]).value) < 0.5 * abs(interval(fits["npo"]).value)
    assert (fits["npo"] < fits["simnpo"]).all()


def test_a_slope_of_gaps_is_the_line_that_was_put_in() -> None:
    rows = [
        {
            "optimizer": "sgd",
            "method": "npo",
            "pretrain_seed": model,
            "seed": 0,
            "share": share,
            "gap": model - 2 * share,
        }
        for model in range(3)
        for share in (0.0, 0.5, 1.0)
    ]
    found = memorisation.slopes(pd.DataFrame(rows)).iloc[0]
    assert found["value"] == pytest.approx(-2)
    assert (found["count"], found["missing"]) == (3, 0)


# --- what reaches the parameters ---


def test_a_factor_on_all_weights_reaches_the_parameters_under_sgd_and_is_lost_under_adam(
    frames: dict,
) -> None:
    first = (
        optimizer.ratios(frames[optimizer]).query("step == 0").groupby("optimizer")["ratio"].mean()
    )
    assert first["sgd"] == pytest.approx(1 / optimizer.FACTOR, rel=1e-3)
    assert first["adamw"] == pytest.approx(1, abs=0.01)
    assert 0.9 < first["adamw_transformers"] < first["adamw"]


def test_along_a_path_of_simnpo_the_update_follows_the_weight_under_sgd_only(frames: dict) -> None:
    found = lookup(optimizer.elasticities(frames[optimizer]), ["optimizer", "method"])
    assert found["sgd", "simnpo"].low > 0.2
    for rule in ("adamw", "adamw_transformers"):
        assert found[rule, "simnpo"].high < 0.2


# --- the runs behind them ---


def test_under_sgd_every_objective_has_the_pace_of_the_scalar_law(context: cache.Context) -> None:
    frame = sweeps.length_runs(context)
    rates = frame.groupby(["method", "beta"])["learning_rate"].first()
    case = sweeps.sweep_case(context)
    for (method, beta), rate in rates.items():  # pyright: ignore[reportGeneralTypeIssues]
        objective = sweeps.corner(method, beta)
        needed = sweeps.time_to_forget(objective, sweeps.MIDDLE, sweeps.FALL, sweeps.start(case))
        assert rate == pytest.approx(sweeps.PACE["together"] * needed, rel=1e-9)
    adam = sweeps.adam_runs(context, "adamw")
    assert set(adam["learning_rate"]) == {5e-4}


def test_relative_times_have_geometric_mean_one_and_do_not_depend_on_the_unit(frames: dict) -> None:
    frame = frames[time_to_forget]
    whole = frame[np.isfinite(frame["step"])]
    keys = ["rung", "mode", "optimizer", "method", "beta", "pretrain_seed", "seed"]
    means = np.log(whole["relative"]).groupby([whole[key] for key in keys]).mean()
    assert np.abs(means.to_numpy()).max() < 1e-9


def test_a_frame_is_computed_once_for_its_settings_and_again_on_request(
    context: cache.Context, tmp_path: Path
) -> None:
    calls = []

    def compute() -> pd.DataFrame:
        calls.append(1)
        return pd.DataFrame({"x": [1.0]})

    for settings in ([1], [1], [2]):
        cache.cached(context, "figures.theory.optimizer", [settings, str(tmp_path)], compute)
    assert len(calls) == 2
    cache.cached(
        replace(context, since=2e12), "figures.theory.optimizer", [[1], str(tmp_path)], compute
    )
    assert len(calls) == 3
