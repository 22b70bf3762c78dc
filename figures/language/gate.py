"""Are the models fit to compare methods by? What original and retrained models of each seed score.

Left: utility and the nine numbers that it is the harmonic mean of, and the probability per token of
the answers to forget. Each dot is a training; filled: the original model, open: the one retrained
without these answers. The two kinds should be alike in everything but the last row, and trainings
of one kind alike in all of it. Right: the statistic D between the truth ratios of the forget
answers, of each original beside its retrained model, and of any two retrained models. The latter
are the floor: a method that comes as near has come as near as another training does. Dashed: where
a test of 5% begins to tell two models apart. The checks themselves are in the frame, and
`python -m llm gate` prints them.
"""

from __future__ import annotations

import itertools

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures import style
from figures.cache import Context
from figures.language import plane, studies
from figures.statistics import smallest_distance
from llm.jobs.studying import COMPONENTS, OVER
from llm.logs.measures import forget_quality
from markov.errors import require
from markov.files import storage

KINDS = {"original": ("black", "black", -0.16), "retrained": ("white", "#0072B2", 0.16)}
MEASURES = {"probability": "probability", "rouge": "ROUGE-L", "truth_ratio": "truth ratio"}
TASKS = {"retain": "retain", "real_authors": "real authors", "world_facts": "world facts"}
LEVEL = 0.05


def data(context: Context) -> pd.DataFrame:
    """Return what a study's models score and what its gate over seeds finds.

    Columns `kind`, and by kind:

        component   `seed`, `model`, `task`, `measure`, `value`
        check       `check`, `value`, `low`, `high`, `count`, `allowed`, `verdict`
        distance    `pair` (original or retrained), `seed`, `other`, D as `value`, `p`, `examples`

    Raises `InvalidInput` without a study, and for one of a single seed.
    """
    place = studies.check(context.study)
    checks = place / OVER
    allowed = "a study of several seeds, whose data have all of TOFU's sets"
    require(checks.is_file(), "study", str(place), allowed)
    seeds = studies.seeds_of(place)
    retrained = [studies.log_of(seed) for seed in seeds]
    originals = [studies.log_of(seed, "original") for seed in seeds]
    numbers = [int(seed.name.removeprefix("seed")) for seed in seeds]
    pairs = [
        ("original", number, number, own, other)
        for number, own, other in zip(numbers, originals, retrained, strict=True)
    ]
    beside = itertools.combinations(zip(numbers, retrained, strict=True), 2)
    pairs += [("retrained", first, second, own, other) for (first, own), (second, other) in beside]
    rows = []
    for pair, seed, other, own, theirs in pairs:
        found = forget_quality(own, theirs)
        rows.append((pair, seed, other, found.statistic, found.p_value, found.examples))
    distances = pd.DataFrame(rows, columns=["pair", "seed", "other", "value", "p", "examples"])
    parts = {"component": storage.read_table(place / COMPONENTS)}
    parts |= {"check": storage.read_table(checks), "distance": distances}
    for part in parts.values():
        part.attrs = {}
    return pd.concat([part.assign(kind=kind) for kind, part in parts.items()], ignore_index=True)


def told(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return what README and findings tell of it, a table for each kind of row."""
    kinds = {kind: frame[frame["kind"] == kind] for kind in ("component", "check", "distance")}
    return {
        f"{kind}s": own.drop(columns="kind").dropna(axis=1, how="all")
        for kind, own in kinds.items()
    }


def plot(frame: pd.DataFrame) -> Figure:
    """Draw the frame of `data`."""
    figure, ((left, right),) = style.grid_figure(
        1, 2, 10.5, 4.6, gridspec_kw={"width_ratios": [3, 2]}
    )
    _components(left, frame[frame["kind"] == "component"])
    _distances(right, frame[frame["kind"] == "distance"])
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2)
    return figure


def _components(axes: Axes, frame: pd.DataFrame) -> None:
    rows = [("all", "model_utility", "model utility")]
    rows += [
        (task, measure, f"{name}, {title}")
        for task, name in TASKS.items()
        for measure, title in MEASURES.items()
    ]
    rows.append(("forget", "probability", "answers to forget, probability"))
    scores = frame.set_index(["model", "task", "measure"])["value"].sort_index()
    for place, (task, measure, _) in enumerate(rows):
        for kind, (face, edge, shift) in KINDS.items():
            values = scores[kind, task, measure]
            label = plane.BASELINES[kind] if place == 0 else None
            heights = [-place - shift] * len(values)
            axes.plot(values, heights, "o", ms=4, mfc=face, mec=edge, mew=0.9, label=label)
    axes.set_yticks([-place for place in range(len(rows))], [title for _, _, title in rows])
    axes.set(xlim=(-0.02, 1.02), xlabel="score of a model")
    axes.axhline(-len(rows) + 1.5, color="0.8", lw=0.8)
    axes.grid(axis="x", lw=0.4, alpha=0.5)


def _distances(axes: Axes, frame: pd.DataFrame) -> None:
    names = {
        "original": "original beside\nits retrained model",
        "retrained": "two retrained\nmodels",
    }
    for place, (pair, _) in enumerate(names.items()):
        face, edge, _ = KINDS[pair]
        own = frame.loc[frame["pair"] == pair, "value"]
        # Side by side, so that equal ones are seen.
        places = [place + 0.3 * (at / max(1, len(own) - 1) - 0.5) for at in range(len(own))]
        axes.plot(places, own, "o", ms=5, mfc=face, mec=edge)
    axes.axhline(
        smallest_distance(LEVEL, int(frame["examples"].max())), color="0.4", lw=0.8, ls="--"
    )
    axes.set_xticks(range(len(names)), list(names.values()))
    axes.set(xlim=(-0.5, 1.5), ylim=(0, 1), ylabel=plane.DISTANCE)
