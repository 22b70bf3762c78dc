"""Settings that are chosen on other authors: the rule, the scale, and verdicts on what is known."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from figures.cache import Context
from figures.questions import endings, graded, ledger, llm_tuned, tuned_runs
from figures.questions.graded import trainings
from figures.scale import TRAINED, Scale
from llm.data.authors.corpus import corpus
from llm.data.splits import TofuSets
from llm.evaluation.tofu import evaluate
from llm.logs.measures import TofuLogs, forget_quality
from llm.models.answers import answer_log
from llm.models.language_model import LanguageModel
from llm.models.small_authors import build, sets
from llm.unlearning.unlearn import Unlearning
from markov.objectives import CORNERS
from tests.figures.studies import drawn, in_place, tiny_study

START = {"original": (0.9, 0.8), "retrained": (0.0, 0.8)}  # D and utility


def planted(nearer: dict[str, float], noise: float = 0.001) -> pd.DataFrame:
    """A frame in which corners lie so much nearer than NPO, whose D is 0.6, in five trainings."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []

    def row(**known: Any) -> None:
        rows.append(dict.fromkeys(llm_tuned.MEASURES, 0.5) | known)

    stages = {llm_tuned.CHOSEN: tuned_runs.CHOSEN_ON, llm_tuned.JUDGED: range(TRAINED)}
    for stage, seeds in stages.items():
        for seed, (kind, (distance, utility)) in itertools.product(seeds, START.items()):
            own = {"stage": stage, "seed": seed, "method": kind, "kind": "start"}
            row(**own, distance=distance, utility=utility)
        for seed, method in itertools.product(seeds, CORNERS):
            grid = tuned_runs.settings()
            if stage == llm_tuned.JUDGED:
                grid = grid[:1] * len(llm_tuned.TOLERANCES)
            for place, (beta, level) in enumerate(grid):
                own: dict[str, Any] = {"stage": stage, "seed": seed, "method": method}
                own["kind"] = "run"
                if stage == llm_tuned.JUDGED:
                    own["tolerance"] = llm_tuned.TOLERANCES[place]
                distance = 0.6 - nearer.get(method, 0.0) + noise * rng.normal() + 0.01 * place
                row(**own, beta=beta, level=level, distance=distance, utility=0.79)
    for one, other in itertools.combinations(range(TRAINED), 2):
        own = {"stage": llm_tuned.JUDGED, "seed": one, "other": other, "kind": "floor"}
        row(**own, distance=0.04)
    return pd.DataFrame(rows)


KNOWN = llm_tuned.of_stage(planted({}), llm_tuned.CHOSEN)


@given(
    values=st.lists(
        st.tuples(st.floats(0, 1), st.floats(0, 1)),
        min_size=len(tuned_runs.settings()),
        max_size=len(tuned_runs.settings()),
    ),
    tolerance=st.sampled_from(llm_tuned.TOLERANCES),
)
def test_the_choice_is_the_nearest_of_those_that_keep_enough(
    values: list[tuple[float, float]], tolerance: float
) -> None:
    known = KNOWN.copy()
    npo = known["method"] == "npo"
    for (beta, level), (distance, utility) in zip(tuned_runs.settings(), values, strict=True):
        at = npo & (known["beta"] == beta) & (known["level"] == level)
        known.loc[at, ["distance", "utility"]] = distance, utility
    (found,) = llm_tuned.choice(known, tolerance).query("method == 'npo'").to_dict("records")
    keep = (1 - tolerance) * START["original"][1]
    good = [pair for pair in values if pair[1] >= keep]
    assert found["within"] == bool(good)
    if good:
        assert found["distance"] == pytest.approx(min(pair[0] for pair in good))
    else:
        assert found["utility"] == pytest.approx(max(pair[1] for pair in values))
    ends = [{min(axis), max(axis)} for axis in (tuned_runs.BETAS, tuned_runs.LEVELS)]
    assert found["edge"] == (found["beta"] in ends[0] or found["level"] in ends[1])


def test_verdicts_are_those_of_what_was_planted() -> None:
    def verdicts(nearer: dict[str, float], noise: float = 0.001) -> dict[str, str]:
        table = llm_tuned.claims(planted(nearer, noise))
        own = table[table["tolerance"] == llm_tuned.TOLERANCES[0]]
        return dict(zip(own["claim"], own["verdict"], strict=True))

    apart = {"simnpo": 0.3, "reference_free_npo": 0.1, "length_normalized_npo": 0.1}
    assert set(verdicts(apart).values()) == {"holds"}
    against = {name: -value for name, value in apart.items()}
    assert set(verdicts(against).values()) == {"contradicted"}
    assert set(verdicts({}, noise=0.1).values()) == {"inconclusive"}


def test_every_corner_has_as_many_settings_on_one_scale_and_the_papers_beta_among_them() -> None:
    chosen = trainings(Scale())[0]
    assert chosen.beta in tuned_runs.BETAS
    for method, (_, normalize) in CORNERS.items():
        unit = tuned_runs.MEDIAN**normalize
        own = [one for one in tuned_runs.tried([chosen]) if one.method == method]
        assert [(one.beta, one.level) for one in own] == tuned_runs.settings()
        how = graded.matched(chosen, method, 4.0, tuned_runs.MEDIAN)
        assert isinstance(how, Unlearning)
        assert how.retain_weight * unit == pytest.approx(4.0)


def test_nothing_is_chosen_on_authors_that_judge() -> None:
    on, off = tuned_runs.chosen_on(Scale(trained=TRAINED)), trainings(Scale(trained=TRAINED))
    assert len(on) == len(tuned_runs.CHOSEN_ON)
    names = [{example.author for example in corpus(own.models.authors)} for own in (*on, off[0])]
    for one, other in itertools.combinations(names, 2):
        assert len(one & other) < 0.05 * len(one)
    assert not {own.models.seed for own in on} & {own.models.seed for own in off}


def of_few(language: LanguageModel, asked: TofuSets, *, progress: bool) -> TofuLogs:
    """Evaluate on all forget answers and on four of each other set."""
    few = {name: getattr(asked, name)[:4] for name in TofuSets._fields if name != "forget"}
    return evaluate(language, asked._replace(**few), max_new_tokens=4, progress=progress)


@pytest.fixture(scope="module")
def frame(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, pd.DataFrame]]:
    """All that is drawn, of tiny models and two settings."""
    chosen = tiny_study(questions=10, percent=20)
    context = Context(scale=Scale(trained=1, quick=True), n_jobs=1, progress=False)
    with (
        in_place(chosen, tmp_path_factory.mktemp("cache"), graded, tuned_runs),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(tuned_runs, "BETAS", (0.1,))
        patch.setattr(tuned_runs, "LEVELS", (1.0,))
        patch.setattr(endings, "evaluate", of_few)
        yield chosen, llm_tuned.data(context)


def test_it_is_drawn_and_told(frame: tuple[Any, pd.DataFrame]) -> None:
    chosen, table = frame
    assert isinstance(drawn(llm_tuned, planted({"simnpo": 0.2})), Figure)
    told = llm_tuned.told(table)
    assert set(told["chosen"]["method"]) == set(CORNERS)
    runs = table[(table["kind"] == "run") & (table["stage"] == llm_tuned.JUDGED)]
    # What is judged has the chosen settings.
    found = runs.merge(told["chosen"], on=["method", "beta", "level", "tolerance"])
    assert len(found) == len(runs) == len(CORNERS) * len(llm_tuned.TOLERANCES)
    # The measures of the start are those of the models themselves.
    language, retrained = (
        build(chosen.models, kind, progress=False) for kind in ("original", "retrained")
    )
    forget = sets(chosen.models).forget
    logs = [answer_log(one, forget, progress=False) for one in (language, retrained)]
    begun = table[(table["kind"] == "start") & (table["stage"] == llm_tuned.JUDGED)]
    distance = begun.set_index("method")["distance"]
    assert distance["original"] == pytest.approx(forget_quality(*logs).statistic)
    assert distance["retrained"] == 0


def test_the_kept_tables_say_what_their_runs_say() -> None:
    kept = {
        name: pd.read_csv(ledger.KEPT / "llm_tuned" / f"{name}.csv") for name in ("runs", "claims")
    }
    found = llm_tuned.claims(kept["runs"])
    names = ["value", "low", "high", "p", "level"]
    np.testing.assert_allclose(found[names], kept["claims"][names], rtol=1e-3, atol=1e-6)
    assert list(found["verdict"]) == list(kept["claims"]["verdict"])
    assert isinstance(drawn(llm_tuned, kept["runs"]), Figure)
