"""A run of unlearning, step by step: what is recorded, and the player that scrubs through it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import ipywidgets as widgets
import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from scipy.special import softmax

from figures import style
from figures.scale import Scale
from figures.views.view import WIDTH, Picture, View, heat, hint, mixed, quick, room_for_a_line
from markov import diagnostics
from markov.banks import best_table
from markov.cases import CASES, Case
from markov.errors import require, require_whole
from markov.experiments import Experiment
from markov.models import Model, Parameters
from markov.objectives import method_name
from markov.recording import Probe, kl_to_truth, log_laws
from markov.running.models import OnStep, load_model, model_jobs, models_folder
from markov.running.run import trajectory
from markov.studies import ideal_forget_distance

Names = Mapping[str, str]
STEPS = 40
FORGET = ("forget1", "forget2")
HEIGHT = 4.3  # inches, of the player's picture
INTERVAL = 250  # milliseconds between two moments that are played
KEYS = "To move by single steps, click on the slider (or reach it by Tab) and press ← or →."


@dataclass(frozen=True, eq=False, kw_only=True)
class Recording:
    """One run: `table` as of `markov.running.run`, and `laws`, the model's matrix at every step.

    The matrix is the model's transition matrix: the mean of its next-state laws over the test
    tokens of each state, at every recorded step. `before` and `goal` are the best that a table
    could know of the pretraining data and of the retain data alone.
    """

    experiment: Experiment
    table: pd.DataFrame
    laws: Float[np.ndarray, "recorded states states"]
    before: Float[np.ndarray, "states states"]
    goal: Float[np.ndarray, "states states"]

    @property
    def steps(self) -> list[int]:
        """The recorded steps."""
        return sorted(set(self.table["step"]))

    @property
    def label(self) -> str:
        """The method and its beta."""
        objective = self.experiment.objective
        name = style.LABELS.get(method_name(objective), "between")
        return f"{name}, β = {objective.beta:g}"


def small(case: str = "length") -> Experiment:
    """Return a run that takes a second: a tenth of a case's data, a small transformer, 40 steps.

    It records fewer steps where `quick`. Raises `InvalidInput` for a case that does not exist.
    """
    require(case in CASES, "case", case, f"one of {sorted(CASES)}")
    scale = Scale(quick=True)
    seen = {
        "recorded": tuple(range(0, STEPS + 1, 2 if quick() else 1)),
        "test_examples": 32 if quick() else 100,
    }
    return replace(
        scale.experiment(),
        case=scale.cases()[case],
        learning_rate=1e-3,
        steps=STEPS,
        gradient_examples=0,
        **seen,
    )


def record(
    experiment: Experiment, *, on_step: OnStep | None = None, progress: bool = True
) -> Recording:
    """Run one experiment in this process and keep what the player shows.

    `on_step` is as in `markov.training.unlearn`. Models that the cache lacks are pretrained first.
    Raises `InvalidInput` for anything but a `Case`.
    """
    case, folder = experiment.case, models_folder()
    if not isinstance(case, Case):
        require(False, "case", type(case).__name__, "a case of two forget components")
        raise AssertionError
    retrained = load_model(folder, model_jobs(experiment)[1], progress=progress)
    probes = [
        tokens[: experiment.test_examples]
        for tokens in case.sample(experiment.pretraining.seed).test.values()
    ]
    wanted = set(
        range(experiment.steps + 1) if experiment.recorded is None else (0, *experiment.recorded)
    )
    laws: list[np.ndarray] = []

    def look(step: int, parameters: Parameters) -> None:
        if step in wanted:
            laws.append(transitions(experiment.model, parameters, probes))
        if on_step is not None:
            on_step(step, parameters)

    found = trajectory([experiment], on_step=look, progress=progress)
    alone = {name: value[None] for name, value in retrained.items()}
    goals = []
    for tokens, chain in zip(probes, case.chains(), strict=True):
        known = log_laws(experiment.model, alone, tokens)
        goals.append(float(kl_to_truth(Probe(tokens, chain.transition, known, known), known)))
    table = diagnostics.table(
        [experiment], found, [goals], [list(ideal_forget_distance(case).values())]
    )
    before, goal = (softmax(best_table(of.mixture()), axis=-1) for of in (case, case.retrained()))
    return Recording(
        experiment=experiment, table=table, laws=np.stack(laws), before=before, goal=goal
    )


@torch.no_grad()
def transitions(
    model: Model, parameters: Parameters, probes: Sequence[torch.Tensor]
) -> Float[np.ndarray, "states states"]:
    """Return the mean next-state law of a model after each state.

    The mean is over the contexts of the given sequences, nan for a state without any.
    """
    laws = [log_laws(model, parameters, tokens).exp().flatten(0, 1) for tokens in probes]
    every, now = (
        torch.cat(laws).double().numpy(),
        torch.cat([tokens[:, :-1].flatten() for tokens in probes]).numpy(),
    )
    sums, count = (
        np.zeros((every.shape[1], every.shape[1])),
        np.bincount(now, minlength=every.shape[1]),
    )
    np.add.at(sums, now, every)
    with np.errstate(invalid="ignore"):
        return sums / count[:, None]


class Player(View):
    """A view with a play button: `play` moves the slider `moment` in the browser itself.

    So it goes on smoothly while the kernel draws, and shows what the kernel can keep up with.
    """

    def __init__(self, picture: Picture, controls: Mapping[str, Any]) -> None:
        moment = controls["moment"]
        self.play = widgets.Play(
            moment.value,
            min=moment.min,
            max=moment.max,
            interval=INTERVAL,
            show_repeat=False,
            layout=widgets.Layout(width="90px", flex="0 0 auto"),
        )
        self.linked = widgets.jslink((self.play, "value"), (moment, "value"))
        moment.layout = widgets.Layout(flex="1 1 auto", width="auto")
        row = widgets.HBox([self.play, moment], layout=widgets.Layout(width="98%"))
        super().__init__(picture, controls, columns=1, shown={"moment": row, "keys": hint(KEYS)})


def player(recordings: Sequence[Recording], *, moment: int = 0) -> Player:
    """View recorded runs of one case with a slider to scrub through them, and a button to play.

    It shows heat maps beside the truth, weights, distances and the plane of both: the run that is
    chosen is drawn thick. `moment` counts the recorded steps. Raises `InvalidInput` for no
    recording, or recordings of different cases or steps.
    """
    require(len(recordings) > 0, "recordings", recordings, "at least one")
    same = {(one.experiment.case, tuple(one.steps)) for one in recordings}
    require(
        len(same) == 1,
        "recordings",
        f"{len(same)} kinds",
        "runs of one case, recorded at the same steps",
    )
    first = recordings[0]
    last = len(first.steps) - 1
    require_whole(moment, "moment", 0, last)
    controls = _controls(recordings, moment, last)
    names = style.COMPONENT_LABELS[first.experiment.case.name or "length"]
    with style.look():
        figure = Figure(figsize=(WIDTH, HEIGHT))
        said = room_for_a_line(figure, share=0.945)
        # Two figures in one, so that each row is laid out by itself.
        rows: Any = figure.subfigures(2, 1, height_ratios=(1, 1.5))
        upper, lower = rows
        panels = list(upper.subplots(1, 3))
        left, right = lower.subplots(1, 2, width_ratios=(1, 2.2))
        maps, borders = _maps(upper, panels, first, names)
        bars, shares = _bars(left, names)
        plane = _plane(right, recordings, names)
        lower.legend(
            handles=_legend(recordings, names),
            loc="outside lower center",
            ncols=4,
            handlelength=2.6,
            columnspacing=1.5,
        )

    def update(run: int, moment: int) -> None:
        one, color = recordings[run], plane.colors[run]
        step = one.steps[moment]
        now: dict[Any, Any] = (
            one.table[one.table["step"] == step].set_index("component").to_dict("index")
        )
        maps[0].set_data(one.laws[moment])
        for index, path in enumerate(plane.paths):
            for line in path:
                line.set(alpha=1.0 if index == run else 0.45, lw=2.0 if index == run else 1.0)
        for at, name in enumerate(FORGET):
            weight, part = now[name]["weight"], now[name]["weight_share"]
            bars[at].set_height(part)
            bars[at].set_facecolor(color)
            shares[at].set_y(part + 0.02)
            shares[at].set_text(f"{100 * part:.0f}%\nw = {weight:.2g}")
            place = now["retain"]["kl_to_truth"], now[name]["kl_to_truth"]
            plane.points[at].set_data([place[0]], [place[1]])
            plane.points[at].set_markerfacecolor(color)
            plane.labels[at].xy = place
        _apart(plane.labels, now, right.get_xlim()[1])
        said.set_text(f"{one.label}:  step {step} of {one.steps[-1]}")

    paths = [line for path in plane.paths for line in path]
    moving = (maps[0], *borders, *bars, *shares, *paths, *plane.points, *plane.labels, said)
    return Player(Picture(figure=figure, moving=moving, update=update), controls)


def _controls(recordings: Sequence[Recording], moment: int, last: int) -> dict[str, Any]:
    look: dict[str, Any] = {
        "style": {"description_width": "60px"},
        "layout": widgets.Layout(width="98%"),
    }
    labels = [(one.label, index) for index, one in enumerate(recordings)]
    slider = widgets.IntSlider(moment, min=0, max=last, description="moment", **look)
    return {
        "run": widgets.Dropdown(options=labels, value=0, description="run", **look),
        "moment": slider,
    }


def _maps(
    figure: FigureBase, panels: Sequence[Axes], one: Recording, names: Names
) -> tuple[list[Any], list[Line2D]]:
    """Draw the three matrices with the states of each chain marked off and named.

    Return their images, of which the first is still empty, and the lines that lie on the first.
    """
    titles = ("model now", "before unlearning", "goal")
    maps = [heat(axes, len(one.goal), title) for axes, title in zip(panels, titles, strict=True)]
    for image, law in zip(maps[1:], (one.before, one.goal), strict=True):
        image.set_data(law)
    chains = ["retain", *(short(names[name]) for name in FORGET)]
    size = getattr(one.experiment.case, "set_size", len(one.goal) // len(chains))
    for axes in panels:
        axes.set(xticks=[], yticks=[])
        for border in range(size, len(one.goal), size):
            axes.axhline(border - 0.5, color="white", lw=0.8)
            axes.axvline(border - 0.5, color="white", lw=0.8)
    centres = [(size - 1) / 2 + size * place for place in range(len(chains))]
    panels[0].set_yticks(centres, [name.replace(" ", "\n") for name in chains])
    panels[0].tick_params(labelsize=8)
    panels[0].set_ylabel("state of the chain")
    scale = figure.colorbar(maps[-1], ax=list(panels), ticks=(0, 0.25, 0.5), pad=0.02)
    scale.set_label("probability", fontsize=8)
    scale.ax.tick_params(length=0, labelsize=8)
    return maps, list(panels[0].lines)


def _bars(axes: Axes, names: Names) -> tuple[list[Any], list[Any]]:
    """Draw a bar for each forget chain; return the bars and the texts above them."""
    wide = [names[name].replace(" (", "\n(").replace("never ", "never\n") for name in FORGET]
    bars = axes.bar(wide, [1, 1], width=0.6).patches
    axes.set(title="share of the effort", xlabel="w: mean weight of a sequence")
    axes.set(xlim=(-0.65, 1.65), ylim=(0, 1.45), yticks=(0, 0.5, 1))
    axes.set_yticklabels(["0%", "50%", "100%"])
    axes.xaxis.label.set_fontsize(8)
    texts = [axes.text(at, 0, "", ha="center", va="bottom", fontsize=8) for at in range(len(bars))]
    return list(bars), texts


class Plane(NamedTuple):
    """What moves on the trade-off plane: a path per run and chain, two points and their names."""

    colors: list[str]
    paths: list[list[Line2D]]
    points: list[Line2D]
    labels: list[Annotation]


def _plane(axes: Axes, recordings: Sequence[Recording], names: Names) -> Plane:
    """Draw every run's path: its distance on the forget chains against that on the retain chain."""
    colors, paths = _colors(recordings), []
    for one, color in zip(recordings, colors, strict=True):
        wide = one.table.pivot(index="step", columns="component", values="kl_to_truth")
        paths.append(
            [
                axes.plot(wide["retain"], wide[name], style.LINES[name], color=color)[0]
                for name in FORGET
            ]
        )
    goal = recordings[0].table.query("step == 0").set_index("component")["retrained"]
    for name in FORGET:
        axes.plot(goal["retain"], goal[name], "*", color="black", ms=9, zorder=6)
    # The height of a star is to be reached: a line goes from it across, with its name at the end.
    higher = max(FORGET, key=lambda name: goal[name])
    for name in FORGET:
        up = name == higher
        axes.axhline(goal[name], color="grey", ls=":", lw=0.8, zorder=0)
        axes.annotate(
            f"goal, {short(names[name])}",
            (1, goal[name]),
            xycoords=("axes fraction", "data"),
            xytext=(0, 1 if up else -1),
            textcoords="offset points",
            ha="right",
            va="bottom" if up else "top",
            fontsize=8,
        )
    axes.set(
        title="forgetting and its price",
        xlabel="retain distance, nats",
        ylabel="forget distance, nats",
        xlim=(0, None),
        ylim=(0, None),
    )
    points = [
        axes.plot([], [], style.MARKERS[name], color="black", ms=8, zorder=7)[0] for name in FORGET
    ]
    labels = [
        axes.annotate(
            short(names[name]), (0, 0), xytext=(7, 0), textcoords="offset points", fontsize=8
        )
        for name in FORGET
    ]
    for label in labels:
        label.set_path_effects([withStroke(linewidth=3, foreground="white")])
    return Plane(colors, paths, points, labels)


def _apart(labels: Sequence[Annotation], now: Mapping[str, Any], width: float) -> None:
    """Put the name of the higher point above it and that of the lower one beside it.

    The names stand to the left of points near the right edge, which is at `width`.
    """
    higher = max(FORGET, key=lambda name: now[name]["kl_to_truth"])
    side = -1 if now["retain"]["kl_to_truth"] > 0.75 * width else 1
    for label, name in zip(labels, FORGET, strict=True):
        label.set_verticalalignment("bottom" if name == higher else "center")
        label.set_horizontalalignment("left" if side > 0 else "right")
        label.set_position((8 * side, 4 if name == higher else 0))


def _colors(recordings: Sequence[Recording]) -> list[str]:
    """Return a colour per run: its method's, paler for each further run of the same method."""
    colors, seen = [], dict[str, int]()
    for one in recordings:
        method = str(one.table["method"].iloc[0])
        paler = 1 - 0.6 ** seen.get(method, 0)
        colors.append(mixed(style.COLORS.get(method, "#000000"), "#ffffff", paler))
        seen[method] = seen.get(method, 0) + 1
    return colors


def _legend(recordings: Sequence[Recording], names: Names) -> list[Line2D]:
    """Return what stands in the legend: a colour per run, a line per chain and the star."""
    runs = [
        Line2D([], [], color=color, lw=3, label=one.label)
        for one, color in zip(recordings, _colors(recordings), strict=True)
    ]
    chains = [
        Line2D([], [], color="black", ls=style.LINES[name], marker=style.MARKERS[name], label=label)
        for name, label in ((name, names[name]) for name in FORGET)
    ]
    star = Line2D([], [], color="black", ls="", marker="*", ms=9, label="retrained model")
    return [*runs, *chains, star]


def short(name: str) -> str:
    """Return the name of a component without what stands in brackets."""
    return name.split(" (")[0]
