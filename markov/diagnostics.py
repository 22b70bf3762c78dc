"""Tables of what a run did: distances, weights, and how its effort is allocated.

The names of their columns are stated here, once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from markov.errors import require
from markov.models import ARCHITECTURES, Transformer
from markov.numerics import SINGLE_MARGIN, reaches
from markov.objectives import Objective, SequenceLogProbs, method_name
from markov.recording import Trajectory, loss_and_weight

if TYPE_CHECKING:
    from markov.experiments import Experiment

COLUMNS: dict[str, str] = {
    "run": "position of the experiment in the list that was run",
    "case": "name of the case",
    "method": "name of the corner of the family, or 'between' inside the square",
    "beta": "inverse temperature, as published",
    "gamma": "reward margin, outside beta",
    "reference": "how much of the reference enters (0 to 1)",
    "normalize": "how much of the length enters (0 to 1)",
    "architecture": "settings of the model",
    "optimizer": "update rule of unlearning",
    "learning_rate": "step size of unlearning",
    "pretrain_seed": "seed of the data and of the pretrained model",
    "seed": "seed of the order of batches in unlearning",
    "step": "unlearning steps taken",
    "component": "retain, forget1, forget2, ...",
    "length": "|y|, scored tokens of a sequence of the component",
    "kl_to_truth": (
        "mean over test tokens of KL(true row || model), nats: forget distance, and retain distance"
    ),
    "kl_to_retrained": "mean over test tokens of KL(retrained model || model), nats; 0 is ideal",
    "kl_to_reference": (
        "mean over test tokens of KL(reference model || model), nats: how far the run has gone"
    ),
    "retrained": "kl_to_truth of the retrained model on the same tokens, nats",
    "ideal": "closed-form kl_to_truth of a model that knows the retain chain only, nats",
    "logp": "mean log-probability of the test sequences, nats",
    "logp_per_token": "logp / length, nats",
    "weight": "mean of d loss / d logp over the test sequences",
    "weight_std": "standard deviation of the weight over the test sequences",
    "weight_share": "share of the total weight of the forget set that goes to the component",
    "gradient_norm": "norm of the gradient of the component's mean loss",
    "gradient_share": "share of the sum of the components' gradient norms, by their counts",
}
SETTINGS = ["case", "method", "beta", "gamma", "architecture", "optimizer", "pretrain_seed", "seed"]


def weights(
    objective: Objective, trajectory: Trajectory, run: int
) -> Float[Tensor, "recorded examples"]:
    """Return d loss / d logp of every recorded example of a run under any objective.

    The reference is the model at step 0.
    """
    logp = trajectory.logp[run]
    length, ref = (
        field.expand_as(logp) for field in (trajectory.length, trajectory.reference[run])
    )
    seq = SequenceLogProbs(logp, length, ref)
    return loss_and_weight(objective, seq)[1]


def table(
    experiments: Sequence[Experiment],
    trajectory: Trajectory,
    retrained: Sequence[Sequence[float]],
    ideal: Sequence[Sequence[float]],
) -> pd.DataFrame:
    """Return a table of one row per run x step x component, with the columns of `COLUMNS`.

    `run` counts the members of the ensemble. `retrained` and `ideal` give, per run and component,
    the distances that mark the goal.
    """
    steps, runs = len(trajectory.step), len(experiments)
    # The members of an ensemble share the lengths, not always the names of their components.
    names = np.array([list(one.case.lengths) for one in experiments], dtype=object)[:, None]
    counts = np.array([list(one.case.counts.values()) for one in experiments])[:, None]
    lengths = np.array([length - 1 for length in experiments[0].case.lengths.values()])
    forgotten = names != "retain"
    own = torch.stack(
        [weights(one.objective, trajectory, run) for run, one in enumerate(experiments)]
    )

    # Axes: runs, steps, components. Not by torch, whose sums over one row by itself are taken
    # otherwise than over one of many.
    def by_component(of: Callable[..., np.ndarray], values: Tensor) -> np.ndarray:
        parts = [
            np.ascontiguousarray(values[..., trajectory.component == place].double().numpy())
            for place in range(len(lengths))
        ]
        return np.stack([of(part, axis=-1) for part in parts], axis=-1)

    def spread(values: np.ndarray) -> np.ndarray:
        return np.broadcast_to(values, (runs, steps, len(lengths)))

    goals = {"retrained": retrained, "ideal": ideal}
    logp = by_component(np.mean, trajectory.logp)
    weight = by_component(np.mean, own)
    norm = trajectory.gradient_norm.double().numpy()
    columns = {
        "step": spread(trajectory.step.numpy()[:, None]),
        "component": spread(names),
        "length": spread(lengths),
        **{
            name: getattr(trajectory, name).double().numpy()
            for name in ("kl_to_truth", "kl_to_retrained", "kl_to_reference")
        },
        **{name: spread(np.array(goal)[:, None]) for name, goal in goals.items()},
        "logp": logp,
        "logp_per_token": logp / lengths,
        "weight": weight,
        "weight_std": by_component(np.std, own),
        "weight_share": shares(weight * counts, forgotten),
        "gradient_norm": norm,
        "gradient_share": shares(norm * counts, forgotten),
    }
    settings = [settings_columns(experiment) for experiment in experiments]
    known = {
        name: np.repeat(_column([own[name] for own in settings]), steps * len(lengths))
        for name in settings[0]
    }
    # Component by component, each with all its steps.
    tidy = {name: np.swapaxes(values, 1, 2).reshape(-1) for name, values in columns.items()}
    run = np.repeat(np.arange(runs), steps * len(lengths))
    return pd.DataFrame({"run": run, **known, **tidy})[list(COLUMNS)]


def _column(values: Sequence[object]) -> np.ndarray:
    """Return values as an array, texts as objects, as pandas keeps them."""
    return np.array(values, dtype=object if isinstance(values[0], str) else None)


def shares(amounts: np.ndarray, forgotten: np.ndarray) -> np.ndarray:
    """Return the shares among the forget components, and nan for others.

    Where the amount of one of them is nan, as in a run that diverged, so are the shares of all.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = amounts / np.where(forgotten, amounts, 0.0).sum(-1, keepdims=True)
    return np.where(forgotten, shares, np.nan)


def settings_columns(experiment: Experiment) -> dict[str, object]:
    """Return the settings of an experiment as columns."""
    return {
        "case": experiment.case.name,
        "method": method_name(experiment.objective),
        **{name: float(value) for name, value in experiment.objective._asdict().items()},
        "architecture": architecture_name(experiment.model),
        "optimizer": experiment.optimizer,
        "learning_rate": experiment.learning_rate,
        "pretrain_seed": experiment.pretraining.seed,
        "seed": experiment.seed,
    }


def _check_table(table: pd.DataFrame) -> None:
    """Raise `InvalidInput` unless a table has a row at least, and the columns of `run`."""
    known = isinstance(table, pd.DataFrame)
    require(known, "table", table, "a table of runs, as markov.run returns")
    needed = ("run", "step", "component", "kl_to_truth", "retrained", *SETTINGS)
    missing = [name for name in needed if name not in table]
    allowed = f"columns {', '.join(needed)}, and rows"
    require(not missing and len(table) > 0, "table", list(table), allowed)


def crossings(table: pd.DataFrame) -> pd.DataFrame:
    """Return where each forget component of each run first reaches the retrained model's distance.

    A row holds the step and the retain distance at that moment, and `retain_paid`, by how much that
    is above the retain distance at the start (nan where step 0 is not recorded). Between two
    recorded steps all distances are taken as linear. `other_gap` is the other forget component's
    distance minus its own goal at that moment: positive is over-forgetting. A run that never gets
    there has nan, and `reached` False; one that starts there has step 0. Raises `InvalidInput` for
    a table of a sweep.
    """
    _check_table(table)
    names = sorted(set(table["component"]))
    require(
        names == ["forget1", "forget2", "retain"],
        "component",
        names,
        "retain, forget1 and forget2, as of a case",
    )
    paths = table.pivot(index=["run", "step"], columns="component", values="kl_to_truth")
    goals = table.pivot_table(
        index="run", columns="component", values="retrained", aggfunc="first"
    ).to_dict("index")
    settings = table.groupby("run")[SETTINGS].first().to_dict("index")
    rows = []
    for run, path in paths.groupby(level="run"):
        steps = path.index.get_level_values("step").to_numpy(dtype=float)
        values = {
            str(component): path[component].to_numpy(dtype=float) for component in path.columns
        }
        for component, other in (("forget1", "forget2"), ("forget2", "forget1")):
            at, goal = first_crossing(values[component], goals[run][component]), goals[run]
            step, retain, beyond = (
                read_at(curve, at) for curve in (steps, values["retain"], values[other])
            )
            rows.append(
                {
                    "run": run,
                    **settings[run],
                    "component": component,
                    "reached": bool(np.isfinite(at)),
                    "step": step,
                    "retain_distance": retain,
                    "retain_paid": retain - (values["retain"][0] if steps[0] == 0 else np.nan),
                    "other_gap": beyond - goal[other],
                }
            )
    return pd.DataFrame(rows)


def at_last_goal(table: pd.DataFrame) -> pd.DataFrame:
    """Return every forget component at the moment when the last one reaches its goal.

    A goal is the retrained model's distance. A row per run and forget component holds `step` and
    `retain_distance` at that moment, and `beyond`, the component's distance minus its own goal:
    positive is over-forgetting, and 0 belongs to the last one. Between two recorded steps all
    distances are taken as linear. A run in which some component never gets there has nan, and
    `reached` False.
    """
    rows = []
    for run, own in table.groupby("run"):
        paths = {
            str(name): part.sort_values("step")
            for name, part in own.groupby("component", sort=False)
        }
        curves = {name: part["kl_to_truth"].to_numpy(float) for name, part in paths.items()}
        goals = {name: float(part["retrained"].iloc[0]) for name, part in paths.items()}
        retain, forgotten = curves["retain"], [name for name in paths if name != "retain"]
        arrivals = [first_crossing(curves[name], goals[name]) for name in forgotten]
        at = float(np.max(arrivals))  # nan if one of them is
        step = read_at(paths["retain"]["step"].to_numpy(float), at)
        for name in forgotten:
            first = paths[name].iloc[0]
            known = {column: first[column] for column in [*SETTINGS, "normalize", "length"]}
            found = {"step": step, "retain_distance": read_at(retain, at)}
            beyond = read_at(curves[name], at) - goals[name]
            rows.append(
                {
                    "run": run,
                    **known,
                    "component": name,
                    "reached": bool(np.isfinite(at)),
                    **found,
                    "beyond": beyond,
                }
            )
    return pd.DataFrame(rows)


def steps_to_forget(table: pd.DataFrame, fall: float) -> pd.DataFrame:
    """Return the step at which `logp_per_token` has fallen by `fall` nats since step 0.

    There is one row per run and forget component. Between two recorded steps the curve is taken as
    linear; `step` is inf for a component that never gets there. Raises `InvalidInput` unless `fall`
    is positive.
    """
    require(fall > 0, "fall", fall, "a positive number of nats")
    forget = table[table["component"] != "retain"].sort_values(["run", "step"], kind="stable")
    rows = []
    for (run, component), own in forget.groupby(["run", "component"], sort=False):
        first = own.iloc[0]
        at = first_crossing(
            float(first["logp_per_token"]) - own["logp_per_token"].to_numpy(dtype=float), fall
        )
        step = read_at(own["step"].to_numpy(dtype=float), at)
        known = {name: first[name] for name in [*SETTINGS, "length", "learning_rate"]}
        rows.append(
            {
                "run": run,
                **known,
                "component": component,
                "step": step if np.isfinite(step) else np.inf,
            }
        )
    return pd.DataFrame(rows)


def read_at(values: np.ndarray, at: float) -> float:
    """Return a sampled curve at a fractional position; nan at nan."""
    return float(np.interp(at, np.arange(len(values)), values)) if np.isfinite(at) else float("nan")


def first_crossing(values: np.ndarray, goal: float) -> float:
    """Return the fractional position at which a sampled curve first reaches a goal from below.

    It is nan if the curve never reaches it. A value that lies below the goal by rounding only has
    reached it.
    """
    # The numbers come from runs in float32: where a model starts at its goal, rounding may part the
    # two.
    above = np.flatnonzero(reaches(values, goal, SINGLE_MARGIN))
    if len(above) == 0:
        return float("nan")
    last = int(above[0])
    if last == 0:
        return 0.0
    before, after = values[last - 1], values[last]
    return min(last - 1 + (goal - before) / (after - before), float(last))


def architecture_name(model: object) -> str:
    """Return 'paper' or 'released' for a model that is one of them, else its settings as text."""
    if isinstance(model, Transformer):
        for name, candidate in ARCHITECTURES.items():
            if replace(candidate, states=model.states, context=model.context) == model:
                return name
    return repr(model)
