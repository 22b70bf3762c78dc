"""The gate of the default models: what it found of them, how it is drawn, and which study figures
of the default model are drawn of.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from figures.cache import Context
from figures.catalogue import BY_NAME
from figures.language import gate, studies, sweeps
from figures.language.runs import study as settings_of
from figures.scale import TRAINED, Scale, quick_scale
from figures.statistics import smallest_distance
from llm.data.authors.corpus import PERCENT
from llm.evaluation.gate import PASSES
from llm.jobs.study_settings import checked
from markov.errors import InvalidInput
from markov.files import folders, storage
from tests.figures.studies import drawn

KEPT = Path(gate.__file__).parents[1] / "gallery" / "llm_gate"


def kept(part: str) -> Any:
    """What the gate found of five trainings, as README and findings tell it."""
    return pd.read_csv(KEPT / f"{part}.csv")


def frame() -> Any:
    parts = {"component": kept("components"), "check": kept("checks")}
    parts |= {"distance": kept("distances")}
    return pd.concat([own.assign(kind=kind) for kind, own in parts.items()], ignore_index=True)


def test_the_default_models_of_five_trainings_pass_every_check() -> None:
    found = kept("checks").set_index("check")
    assert found["verdict"].dropna().eq(PASSES).all() and len(found) == 17
    assert found["verdict"].isna().sum() == 1 and np.isnan(found.loc["floor", "verdict"])
    assert kept("components")["seed"].nunique() == TRAINED == 5
    assert found.loc["retrained alike", "count"] == TRAINED * (TRAINED - 1) / 2


def test_the_checks_are_of_the_scores_that_stand_beside_them() -> None:
    scores = kept("components").pivot(
        index="seed", columns=["model", "task", "measure"], values="value"
    )
    found = kept("checks").set_index("check")["value"]
    utility = scores.xs("model_utility", level="measure", axis=1)
    apart = (utility["original"] - utility["retrained"])["all"]
    assert found["utility apart"] == pytest.approx(apart.mean(), abs=1e-5)
    assert found["utility varies, original"] == pytest.approx(
        utility["original"]["all"].std(ddof=1), abs=1e-5
    )
    assert found["forget data known"] == pytest.approx(
        scores["original", "forget", "probability"].min(), abs=1e-5
    )
    far = kept("distances").query("pair == 'retrained'")
    assert found["floor"] == pytest.approx(far["value"].mean(), abs=1e-5)
    assert len(far) == 10 and (far["seed"] < far["other"]).all()


def test_dots_are_models_and_pairs() -> None:
    shown = frame()
    panels: Any = drawn(gate, shown).axes
    left, right = panels
    scores = sorted(
        value for line in left.lines if line.get_marker() == "o" for value in line.get_xdata()
    )
    assert scores == pytest.approx(sorted(shown.loc[shown["kind"] == "component", "value"]))
    names = [label.get_text() for label in left.get_yticklabels()]
    assert names[0] == "model utility" and len(names) == 11 and "forget" in names[-1]
    pairs, level = right.lines[:2], right.lines[2].get_ydata()
    for line, pair in zip(pairs, ("original", "retrained"), strict=True):
        own = shown.loc[shown["pair"] == pair, "value"]
        assert list(line.get_ydata()) == own.tolist() and len(set(line.get_xdata())) == len(own)
    assert set(level) == {smallest_distance(0.05, int(shown["examples"].max()))}
    # Every original can be told from its retrained model, and no two retrained ones can.
    assert min(pairs[0].get_ydata()) > level[0] > max(pairs[1].get_ydata())


def test_what_is_told_is_all_of_the_frame() -> None:
    shown = frame()
    for name, part in gate.told(shown).items():
        pd.testing.assert_frame_equal(
            part.reset_index(drop=True), kept(name), check_dtype=False, check_like=True
        )


def test_a_gate_needs_a_study_of_several_seeds(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="study"):
        gate.data(Context())
    (tmp_path / studies.MEASURES).write_bytes(b"")
    with pytest.raises(InvalidInput, match="several seeds"):
        gate.data(Context(study=tmp_path))


# --- The study of the default model


@pytest.mark.parametrize("count", [2, TRAINED])
def test_the_default_study_is_the_papers_table_over_trainings(count: int, tmp_path: Path) -> None:
    scale = replace(Scale(), trained=count)
    asked = sweeps.asked_of_default(scale, tmp_path / "study")
    assert checked(asked) == asked and asked.seeds == tuple(range(count))
    assert asked.methods == sweeps.table_words(settings_of(scale)) and asked.attacked == ()
    assert (asked.model, asked.data) == ("authors:original", f"authors:forget{PERCENT}")
    chosen = settings_of(scale).optimization()
    assert (asked.epochs, asked.batch, asked.unlearning_rate) == (
        chosen.epochs,
        chosen.batch,
        chosen.learning_rate,
    )


def test_more_trainings_are_added_to_the_same_study() -> None:
    places = {sweeps.default_folder(replace(Scale(), trained=count)) for count in (2, 3, 5)}
    assert len(places) == 1 and storage.cache_dir() in next(iter(places)).parents


@pytest.mark.parametrize(
    "changes",
    [{"scale": quick_scale()}, {"study": Path("mine")}, {"runs": (Path("run"),)}],
    ids=lambda changes: next(iter(changes)),
)
def test_what_the_user_has_is_drawn_instead(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeps, "default_place", lambda context: Path("made"))
    assert sweeps.with_default(Context(**changes)) == Context(**changes)
    assert sweeps.with_default(Context()).study == Path("made")


def test_figures_over_trainings_are_drawn_of_studies_too() -> None:
    trained = [entry for entry in BY_NAME.values() if entry.trained]
    assert {entry.name for entry in trained} >= {"llm_gate", "llm_tradeoff", "llm_bias"}
    assert {entry.name for entry in trained if not entry.study} == {"llm_beside", "llm_claims"}
    # It makes runs of its own beside those of the study.
    assert {entry.name for entry in trained if entry.heavy} == {"llm_truth_ratio"}


def test_a_finished_study_is_not_made_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[int] = []
    scale, place = replace(Scale(), trained=2), tmp_path / "study"

    def studied(asked: Any, **_: object) -> None:
        calls.append(len(asked.seeds))
        rows = itertools.product(asked.seeds, ["original"])
        table = pd.DataFrame(rows, columns=["seed", "model"])
        folders.claim(place, "study", {}, names=(studies.MEASURES,))
        storage.write_table(table, place / studies.MEASURES, storage.provenance({}))

    monkeypatch.setattr(sweeps, "studied", studied)
    monkeypatch.setattr(sweeps, "default_folder", lambda scale: place)
    monkeypatch.setattr(sweeps.study_settings, "checked", lambda asked: asked)
    for count in (2, 2, 3, 3, 2):
        found = sweeps.default_place(Context(scale=replace(scale, trained=count)))
        assert found == place
    assert calls == [2, 3, 2]
