"""What weightings push and what is needed, of the chains of the paper's Figure 5, computed.

It is what `figures.questions.pushing.pushes` does of the language model, at the start of a run: the
pretrained transformer, and the one pretrained without what is to be forgotten. Forget sequences are
the first test sequences of both components. There is no retain term, as in the paper, and retain
sequences only say what is lost.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from figures.cache import Context, cached_each
from figures.questions.pushing.pushes import OPTIMIZERS, matches, power_of, ratios
from llm.diagnostics.matching import best_weights
from llm.scoring.gram import adam
from markov.experiments import Experiment
from markov.models import Model, Parameters, stack_parameters
from markov.objectives import CORNERS, Objective, SequenceLogProbs
from markov.recording import score
from markov.running.models import load_model, model_jobs, models_folder

SEQUENCES = 64  # per component
CHUNK = 32  # sequences whose gradients are taken at once
BETA, BETA_PER_TOKEN = 0.2, 4.0  # of both cases, as the paper has them for the first


def compared(context: Context) -> pd.DataFrame:
    """Return rows of kind match and law, as `pushes.of_point` does, by case and pretrained model.

    Columns `case`, `seed` of the pretraining and `optimizer` come with them.
    """
    jobs = [
        replace(context.scale.experiment(), case=case, pretraining=pretraining)
        for case in context.scale.cases().values()
        for pretraining in context.scale.pretrainings()
    ]
    return cached_each(context, __name__, jobs, of_model)


def of_model(experiment: Experiment) -> pd.DataFrame:
    """Return these rows of one pretrained model."""
    original, retrained = (
        stack_parameters([load_model(models_folder(), job, progress=False)])
        for job in model_jobs(experiment)
    )
    test = experiment.case.sample(experiment.pretraining.seed).test
    parts = [test[name][:SEQUENCES] for name in ("forget1", "forget2", "retain")]
    model = experiment.model
    rows = torch.cat([gradients(model, original, own) for own in parts])
    logp, other = (
        torch.cat([logps(model, own, part) for part in parts]).double().numpy()
        for own in (original, retrained)
    )
    length = np.concatenate([np.full(len(own), own.shape[1] - 1.0) for own in parts])
    count = len(parts[0]) + len(parts[1])
    need, own_length = (logp - other)[:count], length[:count]
    before = torch.tensor(logp[:count])
    seq = SequenceLogProbs(before, torch.tensor(own_length), before)
    frames = []
    for optimizer in OPTIMIZERS:
        scaled = rows
        if optimizer == "AdamW":
            scaled = rows * adam(_moment(rows[:count], experiment.batch))
        k = (scaled @ rows.mT).double().numpy()
        weightings = {name: own.weight(seq).numpy() for name, own in objectives().items()}
        weightings |= ratios(k[:count, :count], need, own_length)
        weightings["nnls"] = best_weights(k[:count, :count], need)
        found = matches(k[:, :count], need, length, weightings, slice(count, None))
        if np.ptp(own_length) > 0:
            found += [
                {"kind": "law", "weighting": name, **power_of(own_length, own)}
                for name, own in weightings.items()
            ]
        frames.append(pd.DataFrame(found).assign(optimizer=optimizer))
    known = {"case": experiment.case.name, "seed": experiment.pretraining.seed}
    return pd.concat(frames, ignore_index=True).assign(**known)


def objectives() -> dict[str, Objective]:
    """Return the four corners by name."""
    return {
        name: Objective(BETA_PER_TOKEN if normalize else BETA, 0.0, reference, normalize)
        for name, (reference, normalize) in CORNERS.items()
    }


def gradients(
    model: Model, parameters: Parameters, tokens: Int64[Tensor, "count time"]
) -> Float[Tensor, "count parameters"]:
    """Return grad log pi(y|x) of each sequence over all parameters, laid one behind the other.

    Every sequence has a run of its own, so that the ensemble's leading axis keeps them apart.
    """
    found = []
    for part in tokens.split(CHUNK):
        own = {
            name: value.detach().expand(len(part), *value.shape[1:]).clone().requires_grad_()
            for name, value in parameters.items()
        }
        logp = score(model, own, part[:, None], torch.ones_like(part[:, None, 1:]).bool()).logp
        each = torch.autograd.grad(logp.sum(), [*own.values()])
        found.append(torch.cat([one.flatten(1) for one in each], dim=1))
    return torch.cat(found)


def logps(
    model: Model, parameters: Parameters, tokens: Int64[Tensor, "count time"]
) -> Float[Tensor, " count"]:
    """Return the log-probability of each sequence, of which the first token is context."""
    with torch.no_grad():
        mask = torch.ones_like(tokens[None, :, 1:]).bool()
        return score(model, parameters, tokens[None], mask).logp[0]


def _moment(rows: Float[Tensor, "count parameters"], batch: int) -> Float[Tensor, " parameters"]:
    """Return the mean over batches of the square of their mean gradient, under weights of 1."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    means = torch.stack([rows[own].mean(0) for own in order.split(batch)])
    return means.square().mean(0)
