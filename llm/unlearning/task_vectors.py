"""Unlearning by arithmetic on parameters, with a task vector.

    theta_unlearned = theta - scale * (theta_again - theta)

Here theta_again is the model fine-tuned on the forget data alone, so that what learning these data
once more would add is taken away instead. The method takes no reference, no objective of the family
and no retain data, and is thus a baseline for the others. (Ilharco et al. 2023, "task vectors";
MUSE's baseline.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy

import torch

from llm.models.language_model import LanguageModel
from llm.scoring.encoding import Encoded
from llm.training.fine_tuning import fine_tune
from llm.training.loop import Optimization
from markov.errors import require


def negate_task_vector(
    language: LanguageModel,
    forget: Sequence[Encoded],
    settings: Optimization,
    *,
    scale: float = 1.0,
    progress: bool = True,
) -> LanguageModel:
    """Return a copy of the model minus `scale` times its task vector of the forget examples.

    With scale 0 the copy equals the model. Raises `InvalidInput` as `fine_tune` does, and for a
    scale that is negative or not finite.
    """
    require(0 <= scale < math.inf, "scale", scale, "a finite number >= 0")
    again = deepcopy(language.model)
    fine_tune(again, forget, settings, progress=progress, label="task vector")
    with torch.no_grad():
        for own, theirs in zip(language.model.parameters(), again.parameters(), strict=True):
            theirs.copy_(own - scale * (theirs - own))
    return language._replace(model=again)
