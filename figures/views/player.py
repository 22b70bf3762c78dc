"""A run of unlearning, step by step: what is recorded, and the player that scrubs through it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ipywidgets as widgets
import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from scipy.special import softmax

from figures import style
from figures.scale import Scale
from figures.views.view import Picture, View, heat, quick, room_for_a_line
from markov import diagnostics
from markov.banks import best_table
from markov.cases import CASES, Case
from markov.errors import require, require_whole
from markov.experiments import Experiment
from markov.models import Model, Parameters
from markov.objectives import method_name
from markov.recording import Probe, kl_to_truth, log_laws
from markov.running import load_model, model_jobs, models_folder, trajectory
from markov.studies import ideal_forget_quality

OnStep = Callable[[int, Parameters], None]
STEPS = 40
FORGET = ("forget1", "forget2")


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


def record(experiment: Experiment, *, on_step: OnStep | None = None) -> Recording:
    """Run one experiment in this process and keep what the player shows.

    `on_step` is as in `markov.training.unlearn`. Models that the cache lacks are pretrained first.
    Raises `InvalidInput` for anything but a `Case`.
    """
    case, folder = experiment.case, models_folder()
    if not isinstance(case, Case):
        require(False, "case", type(case).__name__, "a case of two forget components")
        raise AssertionError
    retrained = load_model(folder, model_jobs(experiment)[1])
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

    found = trajectory([experiment], on_step=look)
    alone = {name: value[None] for name, value in retrained.items()}
    goals = []
    for tokens, chain in zip(probes, case.chains(), strict=True):
        known = log_laws(experiment.model, alone, tokens)
        goals.append(float(kl_to_truth(Probe(tokens, chain.transition, known, known), known)))
    table = diagnostics.table(
        [experiment], found, [goals], [list(ideal_forget_quality(case).values())]
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


def player(recordings: Sequence[Recording], *, moment: int = 0) -> View:
    """View recorded runs of one case with a control to scrub through them.

    It shows heat maps beside the truth, weights, distances and the trade-off plane. `moment` counts
    the recorded steps. Raises `InvalidInput` for no recording, or recordings of different cases or
    steps.
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
    with style.look():
        ratios = (1, 1, 1, 0.95, 1.35)
        figure, (panels,) = style.grid_figure(1, 5, 10.8, 2.9, width_ratios=ratios)
        maps = [
            heat(axes, len(first.goal), title)
            for axes, title in zip(panels, ("", "before", "goal"), strict=False)
        ]
        for image, law in zip(maps[1:], (first.before, first.goal), strict=True):
            image.set_data(law)
        panels[0].set_title("model now")
        names = style.COMPONENT_LABELS[first.experiment.case.name or "length"]
        bars = (
            panels[3]
            .bar([names[name].replace(" (", "\n(") for name in FORGET], [1, 1], width=0.6)
            .patches
        )
        shares = [
            panels[3].text(place, 0, "", ha="center", va="bottom", fontsize=8) for place in (0, 1)
        ]
        panels[3].set(title="share of the effort", ylim=(0, 1.25), yticks=(0, 0.5, 1))
        panels[0].set_ylabel("state")
        points = _plane(panels[4], recordings)
        said = room_for_a_line(figure)

    def update(run: int, moment: int) -> None:
        one = recordings[run]
        step, color = one.steps[moment], style.COLORS.get(str(one.table["method"].iloc[0]), "black")
        now: dict[Any, Any] = (
            one.table[one.table["step"] == step].set_index("component").to_dict("index")
        )
        maps[0].set_data(one.laws[moment])
        for bar, share, point, name in zip(bars, shares, points, FORGET, strict=True):
            weight, part = now[name]["weight"], now[name]["weight_share"]
            bar.set_height(part)
            bar.set_facecolor(color)
            share.set_y(part + 0.02)
            share.set_text(f"{100 * part:.0f}%\nw = {weight:.2g}")
            point.set_data([now["retain"]["kl_to_truth"]], [now[name]["kl_to_truth"]])
            point.set_markerfacecolor(color)
        said.set_text(f"{one.label}:  step {step} of {one.steps[-1]}")

    moving = (maps[0], *bars, *shares, *points, said)
    return View(Picture(figure=figure, moving=moving, update=update), controls)


def _controls(recordings: Sequence[Recording], moment: int, last: int) -> dict[str, Any]:
    look: dict[str, Any] = {
        "style": {"description_width": "76px"},
        "layout": widgets.Layout(width="98%"),
    }
    labels = [(one.label, index) for index, one in enumerate(recordings)]
    slider = widgets.IntSlider(moment, min=0, max=last, description="moment", **look)
    return {
        "run": widgets.Dropdown(options=labels, value=0, description="run", **look),
        "moment": slider,
    }


def _plane(axes: Axes, recordings: Sequence[Recording]) -> list[Any]:
    """Draw every run's path, forget quality against retain distance.

    Return the points that will move on it.
    """
    for one in recordings:
        wide = one.table.pivot(index="step", columns="component", values="kl_to_truth")
        for name in FORGET:
            color = style.COLORS.get(str(one.table["method"].iloc[0]), "black")
            axes.plot(wide["retain"], wide[name], style.LINES[name], color=color, lw=1)
    goal = recordings[0].table.query("step == 0").set_index("component")["retrained"]
    for name in FORGET:
        axes.plot(goal["retain"], goal[name], "*", color="black", ms=9)
    axes.set(
        title="forgetting and its price",
        xlabel="retain distance, nats",
        ylabel="forget quality, nats",
    )
    axes.set(xlim=(0, None), ylim=(0, None))
    return [
        axes.plot([], [], style.MARKERS[name], color="black", ms=8, zorder=5)[0] for name in FORGET
    ]
