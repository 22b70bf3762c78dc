"""The list of all figures: what each is called, which module draws it, what it shows, how long."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import NamedTuple

from markov.errors import require

OTHERWISE = 10.0  # seconds of a figure that uses what others have computed


class Entry(NamedTuple):
    """A figure: its name on the command line, its module, the paper's panel, and what it shows.

    `seconds` are those at full scale on two cores, all figures drawn in this order from an empty
    cache: the first of several that share models and runs pays for them. A `heavy` one trains many
    models or attacks them, and is drawn with --all or by its name. `asked`: it draws what is named
    on the command line, and belongs to no group. `gallery`: the findings show a small picture of
    it. `study`: what it needs of a study to be drawn of it (see `figures.language.studies.lacking`;
    any: whatever the study), or "" for a figure that no study holds. `trained`: of the default
    model it is drawn over several trainings (see `figures.language.sweeps`). `rough`: where
    it comes first, a picture at the quick scale is there within a minute, and is replaced by the
    full one. `full`: it is drawn at full scale only. `named`: of a study, for which it takes
    gradients, by its name only.
    """

    name: str
    module: str
    panel: str
    shows: str
    seconds: float = OTHERWISE
    heavy: bool = False
    asked: bool = False
    gallery: bool = False
    study: str = ""
    trained: bool = False
    rough: bool = False
    full: bool = False
    named: bool = False


CATALOGUE = (
    Entry(
        "tradeoff",
        "figures.chains.tradeoff",
        "5",
        "forget distance against retain distance",
        296,
        gallery=True,
        rough=True,
    ),
    Entry("allocation", "figures.chains.allocation", "", "where the effort goes", 100),
    Entry(
        "attribution",
        "figures.chains.attribution",
        "",
        "the reference or the length?",
        gallery=True,
    ),
    Entry("betas", "figures.chains.betas", "", "what each beta costs", gallery=True),
    Entry("claims", "figures.chains.claims", "", "the paper's claims with intervals", gallery=True),
    Entry("weights", "figures.theory.weights", "", "weights against length, exactly"),
    Entry("logistic", "figures.theory.logistic", "", "the NPO paper's own study", 17),
    Entry(
        "llm_weights_epoch1",
        "figures.language.weights_epoch1",
        "3a",
        "weights after an epoch",
        1130,
        study="corners",
        trained=True,
    ),
    Entry(
        "llm_weight_boxes",
        "figures.language.weight_boxes",
        "3b",
        "weights by thirds of length",
        study="corners",
        trained=True,
    ),
    Entry(
        "llm_weights_length",
        "figures.language.weights_length",
        "4",
        "weights against length",
        gallery=True,
        study="corners",
        trained=True,
    ),
    Entry(
        "llm_bias",
        "figures.language.bias",
        "",
        "is the effort where it is needed?",
        gallery=True,
        study="corners",
        trained=True,
    ),
    Entry(
        "llm_gate",
        "figures.language.gate",
        "",
        "are the models fit to compare methods by?",
        gallery=True,
        study="gate",
        trained=True,
        full=True,
    ),
    Entry(
        "llm_tradeoff",
        "figures.language.tradeoff",
        "1c",
        "forget quality against utility",
        gallery=True,
        study="measures",
        trained=True,
    ),
    Entry(
        "llm_beside",
        "figures.language.beside",
        "",
        "the paper's model, the default one and a pretrained one",
        gallery=True,
        trained=True,
    ),
    Entry(
        "llm_epochs",
        "figures.language.epochs",
        "3c and 3d",
        "both along the epochs",
        study="along",
        trained=True,
    ),
    Entry(
        "llm_claims",
        "figures.questions.llm_claims",
        "1c, 2, 3a, 3d and 4",
        "the paper's claims over trainings",
        gallery=True,
        trained=True,
        full=True,
    ),
    Entry(
        "learning_rate",
        "figures.chains.learning_rate",
        "",
        "does the step size decide?",
        60,
        heavy=True,
        gallery=True,
    ),
    Entry(
        "time_to_forget",
        "figures.theory.time_to_forget",
        "",
        "what length does",
        567,
        heavy=True,
        gallery=True,
        rough=True,
    ),
    Entry(
        "dynamics",
        "figures.theory.dynamics",
        "",
        "log-probability and weight along the way",
        80,
        heavy=True,
    ),
    Entry(
        "divergence",
        "figures.theory.divergence",
        "A4",
        "how fast a model drifts away",
        11,
        heavy=True,
    ),
    Entry(
        "effective_push",
        "figures.theory.effective_push",
        "",
        "weight x gradient norm",
        9,
        heavy=True,
    ),
    Entry(
        "memorisation", "figures.theory.memorisation", "", "what memorisation does", 143, heavy=True
    ),
    Entry(
        "phase",
        "figures.theory.phase",
        "",
        "which of two responses goes first, and the price",
        420,
        heavy=True,
        gallery=True,
        rough=True,
    ),
    Entry(
        "optimizer",
        "figures.theory.optimizer",
        "",
        "what of a weight reaches the parameters",
        67,
        heavy=True,
    ),
    Entry(
        "after_adam",
        "figures.questions.after_adam",
        "",
        "what of the weights survives Adam",
        230,
        heavy=True,
        gallery=True,
    ),
    Entry(
        "llm_effective_push",
        "figures.language.effective_push",
        "",
        "weight x gradient norm",
        seconds=150,
        heavy=True,
        study="corners",
    ),
    Entry(
        "llm_truth_ratio",
        "figures.questions.truth_ratios",
        "1b and 2",
        "what was not memorised",
        300,
        heavy=True,
        gallery=True,
        study="ratios",
        trained=True,
    ),
    Entry(
        "llm_reference_noise",
        "figures.language.reference_noise",
        "A1",
        "a perturbed reference",
        142,
        heavy=True,
    ),
    Entry(
        "llm_w_graddiff",
        "figures.language.graddiff",
        "A3",
        "GradDiff along its retain weight",
        240,
        heavy=True,
        study="measures",
    ),
    Entry(
        "llm_beta_gamma",
        "figures.language.beta_gamma",
        "A2",
        "SimNPO's beta and gamma",
        330,
        heavy=True,
        study="grid",
    ),
    Entry(
        "llm_best",
        "figures.language.best",
        "",
        "the corners at their best settings",
        700,
        heavy=True,
        study="settings",
    ),
    Entry(
        "llm_tuned",
        "figures.questions.llm_tuned",
        "1c",
        "the corners at settings chosen on other authors",
        2200,
        heavy=True,
        gallery=True,
        full=True,
    ),
    Entry(
        "llm_relearning",
        "figures.language.relearning",
        "6",
        "what a fifth taught again brings back",
        345,
        heavy=True,
        study="attacks",
    ),
    Entry(
        "llm_divergence",
        "figures.questions.llm_divergence",
        "A4",
        "how fast a language model drifts away",
        330,
        heavy=True,
        gallery=True,
    ),
    Entry(
        "muse_tradeoff",
        "figures.language.muse.muse_tradeoff",
        "1d",
        "MUSE's measures on news",
        189,
        heavy=True,
    ),
    Entry(
        "llm_sequential",
        "figures.questions.sequential",
        "A5",
        "requests in turn",
        330,
        heavy=True,
        gallery=True,
    ),
    Entry(
        "reference_or_length",
        "figures.questions.reference_or_length",
        "",
        "which of the two over-forgets what was never read",
        seconds=700,
        heavy=True,
        gallery=True,
    ),
    Entry(
        "push_and_need",
        "figures.questions.pushing.push_and_need",
        "",
        "does the push match the need?",
        800,
        heavy=True,
        gallery=True,
        study="corners",
        named=True,
    ),
    Entry(
        "llm_after_adam",
        "figures.questions.llm_after_adam",
        "",
        "what of the weights survives Adam, on a language model",
        seconds=350,
        heavy=True,
        gallery=True,
    ),
    Entry(
        "ledger",
        "figures.questions.ledger",
        "",
        "every claim with its verdicts",
        asked=True,
        gallery=True,
    ),
    Entry(
        "llm_study",
        "figures.language.study",
        "1c, 4 and 6",
        "a study of your own, with --study",
        asked=True,
        study="any",
    ),
)
BY_NAME = {entry.name: entry for entry in CATALOGUE}
FIGURES, HEAVY = (
    tuple(one.name for one in CATALOGUE if one.heavy is heavy and not one.asked)
    for heavy in (False, True)
)
ALL = (*FIGURES, *HEAVY)
# Drawn of a study where no figure is named, as far as it has what they need: itself first.
_FIRST = sorted(CATALOGUE, key=lambda one: not one.asked)
STUDY = tuple(one.name for one in _FIRST if one.study and not one.named)
GALLERY = tuple(entry.name for entry in CATALOGUE if entry.gallery)


def module_of(name: str) -> ModuleType:
    """Import the module of a figure now, and return it.

    The modules of language models take seconds. Raises `InvalidInput` for a name that no figure
    has.
    """
    require(name in BY_NAME, "figure", name, f"one of {', '.join(BY_NAME)}")
    return importlib.import_module(BY_NAME[name].module)


def described(*, heavy: bool) -> str:
    """Return one group of figures as text, with a line for each.

    A line has the name, what the figure shows, and in brackets the panel of the paper.
    """
    entries = [one for one in CATALOGUE if one.heavy is heavy]
    panels = {one.name: f" (paper: {one.panel})" if one.panel else "" for one in entries}
    return "\n".join(f"    {one.name:<20} {one.shows}{panels[one.name]}" for one in entries)


def minutes() -> int:
    """Return how many minutes the first group takes."""
    return round(sum(BY_NAME[name].seconds for name in FIGURES) / 60)
