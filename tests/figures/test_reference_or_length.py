"""Reference or length: one scale for all corners, the parts of what is forgotten, and verdicts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from figures.cache import Context
from figures.chains.attribution import EFFECTS, INTERACTION
from figures.language.runs import AuthorsStudy
from figures.questions import graded, over_forgetting, reference_or_length
from figures.questions.over_forgetting import NAMES, NEVER, PARTS, READ
from figures.questions.reference_or_length import CHAINS, CLAIMS, LANGUAGE, PRIMARY, SUM
from figures.scale import EVIDENCE, TRAINED, Scale, quick_scale
from figures.theory import crossed
from llm.models.small_authors import readings, sets
from markov.objectives import CORNERS, Objective, SequenceLogProbs
from tests.figures.studies import drawn, in_place, tiny_study

PAIRS = (("npo", "length_normalized_npo"), ("reference_free_npo", "simnpo"))


def weight(objective: Objective, length: float, logp: float, ref: float) -> float:
    values = (torch.tensor([one], dtype=torch.float64) for one in (logp, length, ref))
    return float(objective.weight(SequenceLogProbs(*values)))


@given(
    logp=st.floats(-200, -1),
    ref=st.floats(-200, -1),
    median=st.floats(2, 80),
    level=st.floats(0.1, 20),
    pair=st.sampled_from(PAIRS),
)
def test_at_one_scale_corners_coincide_on_an_answer_of_median_length(
    logp: float, ref: float, median: float, level: float, pair: tuple[str, str]
):
    """Up to a factor of 1/m on all of the loss, of which AdamW takes no notice."""
    summed, divided = (graded.matched(AuthorsStudy(), name, level, median) for name in pair)
    objectives = [one.objective for one in (summed, divided)]
    assert all(isinstance(one, Objective) for one in objectives)
    weights = [weight(one, median, logp, ref) for one in objectives]  # pyright: ignore[reportArgumentType]
    assert weights[1] * median == pytest.approx(weights[0], rel=1e-9, abs=1e-300)
    assert divided.retain_weight * median == pytest.approx(summed.retain_weight)
    clips = [one.optimization.clip for one in (summed, divided)]
    assert clips[0] is not None and clips[1] is not None
    assert clips[1] * median == pytest.approx(clips[0])
    assert replace(divided.optimization, clip=clips[0]) == summed.optimization


def test_chains_of_median_length_are_weighed_alike_and_a_level_is_one_beta_for_all():
    for beta, (one, other) in itertools.product(crossed.BETAS, PAIRS):
        first, second = (
            own
            for own in crossed.objectives()
            for name in (one, other)
            if (own.reference, own.normalize) == CORNERS[name]
            and own.beta == beta * crossed.MEDIAN ** CORNERS[name][1]
        )
        weights = [weight(own, crossed.MEDIAN, -30.0, -9.0) for own in (first, second)]
        assert weights[1] * crossed.MEDIAN == pytest.approx(weights[0])
    assert len(set(crossed.objectives())) == len(CORNERS) * len(crossed.BETAS)


def test_the_four_components_cross_length_with_memorisation():
    case = crossed.crossed_case(Context(scale=quick_scale()))
    tokens = dict(zip(NAMES, zip(case.scored, case.shares, strict=True), strict=True))
    for code, name in NAMES.items():
        length, share = tokens[code]
        assert name.startswith("long" if length == crossed.LONG else "short")
        assert name.endswith("never read" if share == 0 else ", read")
    assert set(NAMES.values()) == set(PARTS) and case.lengths.keys() - {"retain"} == set(NAMES)


def chain_run(speeds: dict[str, float], *, steps: int = 40, **known: object) -> pd.DataFrame:
    """Parts that rise from -1 nat by `speeds` a step, read ones, or from 0; retain by 0.01."""
    at, rows = np.arange(0, steps + 1, 4, dtype=float), []
    for code, name in NAMES.items():
        start = -1.0 if name in READ else 0.0
        distance = 2.0 + start + speeds[name] * at
        rows.append(pd.DataFrame({"step": at, "kl_to_truth": distance}).assign(component=code))
    retain = pd.DataFrame({"step": at, "kl_to_truth": 0.3 + 0.01 * at}).assign(component="retain")
    settings = {"run": 0, "optimizer": "adamw", "level": 0.1, "method": "npo"}
    settings |= {"pretrain_seed": 0, "seed": 0, "retrained": 2.0, **known}
    return pd.concat([*rows, retain], ignore_index=True).assign(**settings)


def test_chains_are_read_when_the_last_part_that_was_read_arrives():
    speeds = dict(zip(PARTS, (0.1, 0.04, 0.02, 0.0), strict=True))  # the last at step 25
    slow = chain_run(speeds | {READ[1]: 0.001}, run=1)
    found = over_forgetting.of_chains(pd.concat([chain_run(speeds), slow]))
    first, never = (own.set_index("part") for _, own in found.groupby(found["step"].isna()))
    assert dict(first["over_forgetting"]) == pytest.approx(
        {READ[0]: 1.5, READ[1]: 0, NEVER[0]: 0.5, NEVER[1]: 0}
    )
    assert set(first["step"].round(9)) == {25} and set(first["retain_paid"].round(9)) == {0.25}
    assert dict(first["start"]) == {READ[0]: -1, READ[1]: -1, NEVER[0]: 0, NEVER[1]: 0}
    assert never[["over_forgetting", "retain_paid"]].isna().all(axis=None)


def some_answers(
    training: int = 0, method: str = "npo", level: float = 1.0, shift: float = 0.0
) -> pd.DataFrame:
    """Eight answers of 2 to 16 tokens, every second read, before unlearning and after an epoch.

    An answer of i ends `shift` + i nats per token beyond its goal.
    """
    index = np.arange(8)
    length, read = 2.0 + 2 * index, np.where(index % 2 == 0, 12, 0)
    rows = []
    for epoch, beyond in enumerate((np.where(read > 0, -2.0, 0.0), shift + index)):
        frame = pd.DataFrame({"index": index, "length": length, "read": read, "retrained": -3.0})
        logp = frame["retrained"] - beyond * length
        ratio = np.linspace(-1, 1, 8) + shift if epoch else np.nan
        rows.append(
            frame.assign(
                logp=logp, epoch=epoch, log_ratio=ratio, retain_loss=0.1 + epoch * 0.2 / level
            )
        )
    return pd.concat(rows).assign(training=training, method=method, level=level, ref=-3.0)


def test_answers_are_parts_by_length_and_reading_and_means_over_them():
    table = some_answers(shift=0.5)
    found = over_forgetting.of_answers(table).set_index("part")
    last = table[table["epoch"] == 1]
    for part in PARTS:  # one answer after the other
        inside = []
        for one in last.to_dict("records"):
            if (one["length"] > 9) == part.startswith("long") and (one["read"] > 0) == (
                part in READ
            ):
                inside.append((one["retrained"] - one["logp"]) / one["length"])
        assert len(inside) == 2
        assert found["over_forgetting"][part] == pytest.approx(np.mean(inside))
        assert found["start"][part] == pytest.approx(-2 if part in READ else 0)
    assert found["retain_paid"].unique().tolist() == pytest.approx([0.2])


def test_distances_of_halves_are_those_of_scipy_and_the_floor_is_of_all_pairs():
    rng, read = np.random.default_rng(0), pd.Series([12, 0] * 20)
    goals = {seed: pd.Series(rng.normal(size=40)) for seed in range(3)}
    values = rng.normal(1, 1, 40)
    own = pd.DataFrame({"index": range(40), "log_ratio": values})
    own = own.assign(method="npo", level=1.0, training=1)
    found = over_forgetting.distances(own, goals, read)
    by = found.set_index(["method", "half"])["distance"]
    for half, chosen in (("read", read > 0), ("never read", read == 0)):
        other = goals[1][chosen].to_numpy()
        assert by["npo", half].item() == stats.ks_2samp(values[chosen], other).statistic
        floor = [
            stats.ks_2samp(goals[one][chosen], goals[two][chosen]).statistic
            for one, two in ((0, 1), (0, 2), (1, 2))
        ]
        assert by["retrained", half].tolist() == floor


def frame_of(
    over: dict[str, float], *, noise: float = 0.05, trainings: int = 6, rung: str = CHAINS
) -> pd.DataFrame:
    """Runs of the primary setting: never-read parts at `over`, read ones at 0, with noise."""
    rng, rows = np.random.default_rng(1), []
    setting, level = PRIMARY[rung]
    for training, method, part in itertools.product(range(trainings), CORNERS, PARTS):
        value = (over[method] if part in NEVER else 0.0) + noise * rng.normal()
        known = {"training": training, "method": method, "part": part, "order": 0}
        rows.append({**known, "over_forgetting": value, "retain_paid": 0.1, "start": 0.0})
    frame = pd.DataFrame(rows).assign(kind="part", rung=rung, setting=setting, level=level)
    return frame


ADDITIVE = dict(
    zip(("npo", "reference_free_npo", "length_normalized_npo"), (3.0, 1.0, 2.5), strict=True)
)


@pytest.mark.parametrize("met", [0.0, 1.5, -1.0])
def test_the_interaction_is_what_both_do_beyond_the_sum(met: float):
    over = ADDITIVE | {"simnpo": 0.5 + met}
    known = reference_or_length.effects(frame_of(over, noise=0.0))
    found = known[known["of"] == "never read"].set_index("effect")["value"]
    assert dict(found) == pytest.approx(
        dict(zip(EFFECTS, (-2, -0.5, -2.5 + met), strict=True)) | {SUM: -2.5, INTERACTION: met}
    )
    assert known.loc[known["of"] == "read", "value"].abs().max() == 0


@pytest.mark.parametrize("rung", [CHAINS, LANGUAGE])
def test_verdicts_follow_the_numbers(rung: str):
    def verdicts(**over: float) -> dict[str, str]:
        found = reference_or_length.claims(frame_of(ADDITIVE | over, rung=rung))
        assert found["primary"].all() and set(found["claim"]) == set(CLAIMS.values())
        return dict(zip(found["effect"], found["verdict"], strict=True))

    first, second, third = CLAIMS
    assert verdicts(simnpo=0.5) == {first: "holds", second: "holds", third: "inconclusive"}
    assert verdicts(simnpo=1.5)[third] == verdicts(simnpo=-1.0)[third] == "holds"
    more = verdicts(simnpo=0.5, reference_free_npo=4.0, length_normalized_npo=3.0)
    assert more == {first: "contradicted", second: "inconclusive", third: "holds"}


def test_runs_that_some_corner_does_not_finish_are_left_out_and_counted():
    frame = frame_of(ADDITIVE | {"simnpo": 0.5}, noise=0.0)
    gone = (frame["method"] == "simnpo") & (frame["training"] == 0)
    frame.loc[gone, "over_forgetting"] = np.nan
    frame.loc[(frame["method"] == "npo") & (frame["training"] == 0), "over_forgetting"] = 99
    found = reference_or_length.effects(frame)
    assert set(found["missing"]) == {1} and set(found["count"]) == {5}
    assert found["value"].abs().max() == pytest.approx(2.5)


TINY = tiny_study(questions=4, percent=34, learning_rate=3e-3)
SMALL = Scale(trained=2)
LEVELS = (4.0,)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    with in_place(TINY, tmp_path_factory.mktemp("graded"), graded):
        yield Context(scale=SMALL, progress=False, n_jobs=1)


@pytest.fixture(scope="module")
def table(context: Context) -> pd.DataFrame:
    return graded.graded_runs(context, LEVELS)


def test_every_training_unlearns_under_every_corner_with_its_own_models(
    table: pd.DataFrame, context: Context
):
    runs = table.groupby(["training", "method", "level"])
    assert runs.ngroups == SMALL.trained * len(CORNERS)
    forget, epochs = sets(TINY.models).forget, TINY.epochs + 1
    assert set(runs.size()) == {epochs * len(forget)}
    for seed, own in table.groupby("training"):
        models = replace(TINY.models, seed=int(str(seed)))
        known = dict(zip((one.index for one in forget), readings(models), strict=True))
        assert dict(own[["index", "read"]].drop_duplicates().to_numpy()) == known
        kinds = [graded.Answered(models=models, kind=kind) for kind in ("partial", "retrained")]
        start, goal = graded.answers(context, kinds)
        first = own[own["epoch"] == 0].drop_duplicates("index").set_index("index")
        for name, log in (("logp", start), ("ref", start), ("retrained", goal)):
            total = pd.Series(-np.asarray(log.gold.total, dtype=float), index=log.index)
            assert np.allclose(first[name], total[first.index], rtol=1e-5)
    ends = table["epoch"] == table["epoch"].max()
    assert table.loc[ends, "log_ratio"].notna().all() and table.loc[~ends, "log_ratio"].isna().all()


def test_the_figure_draws_both_rungs_and_tells_their_numbers(
    table: pd.DataFrame, context: Context, monkeypatch: pytest.MonkeyPatch
):
    rng = np.random.default_rng(0)
    chains = [
        chain_run(
            {part: float(rng.uniform(0.05, 0.1)) for part in PARTS},
            **{"run": run, "method": method, "pretrain_seed": model, "level": level},
            optimizer=crossed.OPTIMIZERS[0],
        )
        for run, (method, model, level) in enumerate(
            itertools.product(CORNERS, range(3), crossed.BETAS)
        )
    ]
    monkeypatch.setattr(reference_or_length, "crossed_runs", lambda _: pd.concat(chains))
    monkeypatch.setattr(reference_or_length, "LEVELS", LEVELS)
    primary = {**PRIMARY, LANGUAGE: (PRIMARY[LANGUAGE][0], LEVELS[-1])}
    monkeypatch.setattr(reference_or_length, "PRIMARY", primary)
    frame = reference_or_length.data(context)
    figure = drawn(reference_or_length, frame)
    assert len(figure.axes) == 6
    told = reference_or_length.told(frame)
    assert set(told["claims"]["rung"]) == {CHAINS, LANGUAGE}
    assert set(told["claims"]["verdict"]) <= {"holds", "inconclusive", "contradicted"}
    assert set(told["readings"]["read"]) == set(table["read"])
    assert {"start", "retrained", *CORNERS} == set(told["distances"]["method"])
    quoted = told["claims"][told["claims"]["primary"]]
    assert len(quoted) == len(CLAIMS) * 2


KEPT = Path(reference_or_length.__file__).parents[1] / "gallery" / "reference_or_length"


def test_what_is_kept_is_of_enough_models_and_adds_up():
    claims, effects = (pd.read_csv(KEPT / f"{name}.csv") for name in ("claims", "effects"))
    primary = claims[claims["primary"]]
    counts = primary.groupby("rung")["count"].min()
    assert dict(counts) == {CHAINS: EVIDENCE, LANGUAGE: TRAINED}
    assert set(primary["effect"]) == set(CLAIMS)
    keys = ["rung", "setting", "level", "of"]
    known = effects.set_index([*keys, "effect"])["value"].unstack("effect")
    first, second, both = EFFECTS
    for total, parts in ((SUM, [first, second]), (both, [first, second, INTERACTION])):
        assert np.allclose(known[total], known[parts].sum(axis=1), atol=1e-4)
