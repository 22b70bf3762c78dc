"""Which figures are drawn of what: of the default model alone, of runs, or of a study.

What a figure needs of a study to be drawn of it says its entry in `figures.catalogue`.
"""

from __future__ import annotations

from collections.abc import Mapping

from figures.catalogue import BY_NAME

# Of models that sweeps unlearn and evaluate, and that write answers for it.
EVALUATED = (
    *("llm_tradeoff", "llm_beside", "llm_epochs", "llm_w_graddiff", "llm_beta_gamma", "llm_best"),
)
# Why no study holds what a figure draws.
UNSTUDIED = {
    "muse_tradeoff": "a study forgets answers to questions, not MUSE's texts",
    "llm_reference_noise": "no run of a study has a perturbed reference; --model makes such runs",
    "llm_sequential": "a study makes one request, not several in turn",
    "llm_beside": "it is of the default model and of SmolLM2",
    "llm_claims": "it is of the default model's trainings",
    "llm_divergence": "a study holds its models back, and does not record how far they drift",
    "reference_or_length": "no model of a study has read half of what is to be forgotten",
    "llm_after_adam": "no model of a study has read half of what is to be forgotten",
    "llm_tuned": "it is of the default model, and chooses settings on trainings of its own",
    "divergence": "a study does not record the KL to the original along its runs",
}
# They compare with the model retrained without the forget data, whatever unlearned.
COMPARED = (
    *("llm_bias", "llm_truth_ratio", "llm_reference_noise", "llm_relearning"),
    *(name for name in EVALUATED if name != "llm_beside"),
)
LOGGED = ("llm_bias", "llm_truth_ratio")  # they show evaluation logs beside runs
# Always of models that are made here.
OF_DEFAULT = ("llm_beside", "llm_sequential", "llm_tuned", "muse_tradeoff", "push_and_need")
# Of more than what single runs of unlearning hold.
NOT_OF_RUNS = (*OF_DEFAULT, *EVALUATED, "llm_reference_noise")


def unstudied(name: str, lacking: Mapping[str, str]) -> str:
    """Return why a figure cannot be drawn of a study that lacks some things, or ""."""
    entry = BY_NAME[name]
    if entry.study:
        return lacking.get(entry.study, "")
    return UNSTUDIED.get(name, "it is not of a language model")
