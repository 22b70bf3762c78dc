"""The paper's claims about language models, each as a number with a verdict: the default model.

They are those of its Figures 1c, 2, 3a, 3d and 4.

The number has a 95% interval over trainings of the default model (Student's t): in each training a
pair of models is made, original and retrained, from which every method starts. What two methods
differ in is taken within a training. The paper's claims are judged together, and so are this
project's, so that each verdict goes by an interval that Holm's procedure widens, as in the figure
`claims`, which has the words of the verdicts. Every method stands at one setting, the paper's for
forget10, so that methods stop at unequal utility: D is to be read beside it. Dots: trainings. The
axis is linear near 0.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from figures import style
from figures.cache import Context
from figures.language import plane, runs, sources, studies, truth_ratio
from figures.language.study import correlations
from figures.questions.claim_table import Claimed, claim_table
from llm.diagnostics.allocation import allocation_area
from llm.diagnostics.weights import WEIGHT
from llm.sweeps.along import with_ends
from markov.objectives import CORNERS, method_name

SIGNED = ["kind", studies.NAME, studies.SEEDS, studies.GATE]  # columns that tables do not repeat
LOST = 0.9  # of its utility, from which on a model counts as collapsed
# Measures of models that are told of each training, by task and measure.
ENDS = {
    ("forget", "ks_statistic"): "distance",
    ("all", "model_utility"): "utility",
    ("retain", "probability"): "kept",
}
LINEAR = 0.05  # of either side of 0 on the axis
SIZES = (0, LINEAR, 0.1, 0.3, 1)  # of the axis that are labelled, of either sign
END = -1  # stands for the last epoch


@dataclass(frozen=True)
class Numbers:
    """What is known of each training: a quantity of a method after an epoch."""

    table: pd.DataFrame

    def of(self, quantity: str, method: str, epoch: int = END) -> pd.Series:
        """Return the values by training; the epoch is the last one where none is given."""
        own = self.table
        own = own[(own["quantity"] == quantity) & (own["method"] == method)]
        return own[own["epoch"] == epoch].set_index("seed")["value"].sort_index()


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A statement about trainings: a number of each that is claimed to be above `threshold`.

    Without the effect it is 0. `panel` is the paper's figure, or "" for a statement of this
    project.
    """

    name: str
    panel: str
    text: str
    unit: str
    per_training: Callable[[Numbers], pd.Series]
    threshold: float = 0.0


def _above(quantity: str, one: str, other: str, epoch: int = END) -> Callable[..., pd.Series]:
    """Return what takes by how much a method lies above another one."""
    return lambda found: found.of(quantity, one, epoch) - found.of(quantity, other, epoch)


def _interaction(found: Numbers) -> pd.Series:
    """Return how much more both changes to NPO lower D than the two apart do together."""
    npo, free, normalised, both = (
        found.of("distance", name)
        for name in ("npo", "reference_free_npo", "length_normalized_npo", "simnpo")
    )
    return (free - npo) + (normalised - npo) - (both - npo)


CLAIMS = (
    Claim(
        name="collapse",
        panel="1c",
        text="GA collapses: at least nine tenths of the utility are lost",
        unit="of the utility",
        per_training=lambda found: (
            1 - found.of("utility", "gradient_ascent") / found.of("utility", "original")
        ),
        threshold=LOST,
    ),
    Claim(
        name="graddiff",
        panel="1c",
        text="GradDiff keeps more utility than GA",
        unit="utility",
        per_training=_above("utility", "grad_diff", "gradient_ascent"),
    ),
    Claim(
        name="nearer",
        panel="1c",
        text="SimNPO ends nearer to the retrained model than NPO",
        unit="D",
        per_training=_above("distance", "npo", "simnpo"),
    ),
    Claim(
        name="utility",
        panel="1c",
        text="SimNPO keeps more utility than NPO",
        unit="utility",
        per_training=_above("utility", "simnpo", "npo"),
    ),
    Claim(
        name="retain",
        panel="1c",
        text="SimNPO keeps more than NPO of the answers to retain",
        unit="probability",
        per_training=_above("kept", "simnpo", "npo"),
    ),
    Claim(
        name="early",
        panel="3d",
        text="after the first epoch NPO has lost more utility than SimNPO",
        unit="utility",
        per_training=_above("utility", "simnpo", "npo", 1),
    ),
    Claim(
        name="lengths",
        panel="4",
        text="after the first epoch SimNPO's weights fall with length more than NPO's",
        unit="rank correlation",
        per_training=_above("correlation", "npo", "simnpo", 1),
    ),
    Claim(
        name="short",
        panel="2",
        text="NPO leaves the short answers further from the retrained model than the long ones",
        unit="D",
        per_training=lambda found: (
            found.of("distance, short", "npo") - found.of("distance, long", "npo")
        ),
    ),
    Claim(
        name="even",
        panel="2",
        text="SimNPO leaves the two halves of length less far apart than NPO",
        unit="D",
        per_training=lambda found: _apart(found, "npo") - _apart(found, "simnpo"),
    ),
    Claim(
        name="allocation",
        panel="3a",
        text="per token SimNPO's first push neglects the needy answers less than NPO's",
        unit="area",
        per_training=_above("area", "simnpo", "npo"),
    ),
    Claim(
        name="reference",
        panel="",
        text="dropping the reference alone brings NPO nearer to the retrained model",
        unit="D",
        per_training=_above("distance", "npo", "reference_free_npo"),
    ),
    Claim(
        name="length",
        panel="",
        text="dividing by the length alone brings NPO nearer to the retrained model",
        unit="D",
        per_training=_above("distance", "npo", "length_normalized_npo"),
    ),
    Claim(
        name="interaction",
        panel="",
        text="both together bring NPO nearer than the two apart do",
        unit="D",
        per_training=_interaction,
    ),
)


def _apart(found: Numbers, method: str) -> pd.Series:
    short, long = (found.of(f"distance, {half}", method) for half in ("short", "long"))
    return (short - long).abs()


def data(context: Context) -> pd.DataFrame:
    """Return what each training says, and what all say of every claim.

    Columns `kind`, and by kind:

        training   `seed`, `quantity`, `method`, `epoch` (-1: the last), `value`
        number     `claim`, `seed`, `value`: the number of a claim in a training
        claim      see `assess`

    Raises `InvalidInput` without a study, which is that of the default model where none is given.
    """
    place = studies.check(context.study)
    table = trainings(context, place)
    numbers = [
        claim.per_training(Numbers(table)).rename("value").reset_index().assign(claim=claim.name)
        for claim in CLAIMS
    ]
    parts = {"training": table, "number": pd.concat(numbers), "claim": assess(table)}
    return pd.concat([own.assign(kind=kind) for kind, own in parts.items()], ignore_index=True)


def trainings(context: Context, place: Path) -> pd.DataFrame:
    """Return the quantities of each training that claims are about, one in a row.

    The columns are `seed`, `quantity`, `method`, `epoch` and `value`. Of a method with several
    settings it is the first.
    """
    table = studies.table_of(place)
    table = table.assign(method=table["model"].map(plane.method_of))
    first = table.drop_duplicates(["method", "task", "measure", "seed"])
    rows = [
        (row["seed"], ENDS[row["task"], row["measure"]], row["method"], END, row["value"])
        for row in first.to_dict("records")
        if (row["task"], row["measure"]) in ENDS
    ]
    for one in correlations(place, table):
        method = plane.method_of(one["model"])
        rows.append((one["seed"], "correlation", method, one["epoch"], one["spearman"]))
    for seed, runs_of_it in studies.measured_along(place, table).items():
        for word, run in runs_of_it.items():
            way = with_ends(run.epochs, table[table["seed"] == seed], word, seed)
            way = way[way["model_utility"].notna()]
            rows += [
                (seed, "utility", plane.method_of(word), int(epoch), value)
                for epoch, value in zip(way["epoch"], way["model_utility"], strict=True)
            ]
    for seed, found in zip(table["seed"].unique(), _of_logs(context, place), strict=True):
        rows += [(seed, *row) for row in found]
    columns = ["seed", "quantity", "method", "epoch", "value"]
    known = pd.DataFrame(rows, columns=columns).drop_duplicates(columns[:-1])
    return known.astype({"seed": int, "epoch": int}).reset_index(drop=True)


def _of_logs(context: Context, place: Path) -> Iterator[list[tuple[str, str, int, float]]]:
    """Yield what the logs of each training say: D of both halves of length, and the first push.

    The push is on the log-probability per token, and its area that under the allocation curve.
    """
    laws = {method_name(run.objective): run.objective for run in runs.runs(context)}
    laws = {name: law for name, law in laws.items() if name in CORNERS}
    for found in studies.logs_of(place, runs.source_of(context)):
        halves = truth_ratio.frame_of_models(found)
        halves = halves[(halves["kind"] == "statistic") & (halves["split"] == "length_half")]
        rows = [
            (f"distance, {row['half']}", str(row["model"]), END, float(row["distance"]))
            for row in halves.to_dict("records")
        ]
        table = sources.weights_at_the_start(found, laws)
        length, needed = (table[name].to_numpy() for name in ("length", "needed_per_token"))
        for name in laws:
            push = table[f"{WEIGHT}{name}"].to_numpy() * length
            rows.append(("area", name, END, float(allocation_area(needed, push))))
        yield rows


def assess(table: pd.DataFrame) -> pd.DataFrame:
    """Estimate every claim from a table of `trainings` (see `claim_table`)."""
    return claim_table(
        [
            Claimed(
                claim.name,
                claim.panel,
                claim.text,
                claim.unit,
                claim.per_training(Numbers(table)).to_numpy(dtype=float),
                claim.threshold,
            )
            for claim in CLAIMS
        ]
    )


def told(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the numbers that README and findings tell of the frame: all of it."""
    kinds = {"trainings": "training", "numbers": "number", "claims": "claim"}
    return {
        name: frame[frame["kind"] == kind]
        .drop(columns=SIGNED, errors="ignore")
        .dropna(axis=1, how="all")
        for name, kind in kinds.items()
    }


def plot(frame: pd.DataFrame) -> Figure:
    """Draw the frame of `data`, a line for each claim."""
    found, numbers = (frame[frame["kind"] == kind] for kind in ("claim", "number"))
    figure, ((axes,),) = style.grid_figure(1, 1, 9.0, 0.42 * len(found) + 1.2)
    for place, row in enumerate(found.to_dict("records")):
        color = style.VERDICTS[row["verdict"]]
        own = numbers.loc[numbers["claim"] == row["claim"], "value"]
        axes.plot(own, [-place - 0.22] * len(own), ".", color=color, ms=4, alpha=0.6)
        error: Any = [[row["value"] - row["low"]], [row["high"] - row["value"]]]
        axes.errorbar(row["value"], -place, xerr=error, fmt="o", color=color, capsize=3)
    axes.axvline(0, color="grey", lw=0.8)
    texts = ["\n".join(textwrap.wrap(f"{text} ({unit})", 62)) for text, unit in _texts(found)]
    axes.set_yticks([-place for place in range(len(found))], texts, fontsize=7)
    axes.set_ylim(-len(found) + 0.4, 0.6)
    style.around_zero(axes, LINEAR, SIZES)
    axes.set_xlabel("above 0: as claimed")
    for name, color in style.VERDICTS.items():
        axes.plot([], [], "o", color=color, label=name)
    style.room_for_labels(figure)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(style.VERDICTS))
    return figure


def _texts(found: pd.DataFrame) -> Iterator[tuple[str, str]]:
    for row in found.to_dict("records"):
        panel = f"{row['panel']}: " if row["panel"] else ""
        yield f"{panel}{row['text']}", str(row["unit"])
