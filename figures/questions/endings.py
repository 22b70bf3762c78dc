"""What a small language model that has unlearned says, beside the one that never read the answers.

The measures are TOFU's (`llm.logs.measures`), and a few that say more of what happened.
"""

from __future__ import annotations

import numpy as np

from figures.language.sweeps import default_task
from llm.evaluation.tofu import evaluate
from llm.logs.log import EvaluationLog, log_truth_ratio
from llm.logs.measures import example_values, forget_quality, harmonic_mean, model_utility
from llm.models.language_model import LanguageModel
from llm.models.small_authors import DefaultModels

FACTS = ("real_authors", "world_facts")


def ending(
    language: LanguageModel, models: DefaultModels, retrained: EvaluationLog
) -> dict[str, float]:
    """Return the measures of a model, evaluated on the sets of the `models` it comes from.

    `retrained` is what the retrained one of them says of the forget answers. Returned are
    `distance` (D against it), `utility`, the `retain` probability per token, ROUGE-L on retain and
    the utility of common facts alone in `retain_rouge` and `facts`; the `forget` probability per
    token; `gap`, the mean of |logp - that of the retrained model| over the length, in nats per
    token, and `left`, the same with its sign; and `ratio`, how far the mean log truth ratio lies
    above that of the retrained model.
    """
    logs = evaluate(language, default_task(models).sets(), progress=False)
    after, kept = logs.of("forget"), logs.of("retain")
    apart = retrained.gold.average - after.gold.average  # logp per token, minus the retrained one's
    values = [
        example_values(logs.of(task), task, name).mean()
        for task in FACTS
        for name in ("probability", "rouge", "truth_ratio")
    ]
    return {
        "distance": forget_quality(after, retrained).statistic,
        "utility": model_utility(logs),
        "retain": example_values(kept, "retain", "probability").mean(),
        "retain_rouge": example_values(kept, "retain", "rouge").mean(),
        "facts": float(harmonic_mean(np.array(values))),
        "forget": example_values(after, "forget", "probability").mean(),
        "gap": np.abs(apart).mean(),
        "left": apart.mean(),
        "ratio": (log_truth_ratio(after) - log_truth_ratio(retrained)).mean(),
    }
