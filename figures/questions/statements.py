"""What the ledger states: each claim in a sentence, and what finds its numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from figures.questions.evidence import (
    Found,
    Tables,
    at_the_start,
    drifts,
    of_causes,
    of_claims,
    of_effects,
    of_kept,
    of_parts,
    of_study,
    of_trainings,
    of_tuned,
    pushed,
    relearned,
    weakest,
)


class Statement(NamedTuple):
    """A claim in a sentence, of a panel of the paper or, without one, of this project.

    The README has the `brief` ones.
    """

    claim: str
    panel: str
    text: str
    evidence: tuple[Callable[[Tables], Sequence[Found]], ...]
    brief: bool = True


SHORT, LONG = ("length", "forget2"), ("length", "forget1")
KNOWN = ("memorisation", "forget1")
STATEMENTS = (
    Statement("start", "", "NPO weighs nothing at the start: every weight is 1", (at_the_start,)),
    Statement(
        "A1",
        "5",
        "NPO pays several times (at least 2) SimNPO's retain distance for a short chain",
        (of_claims("A1"),),
    ),
    Statement("A2", "5", "NPO is the cheaper one on a long chain", (of_claims("A2"),)),
    Statement(
        "A3", "5", "the costs of two lengths differ more under NPO, as factors", (of_claims("A3"),)
    ),
    Statement("B1", "5", "NPO over-forgets what was never memorised", (of_claims("B1"),)),
    Statement("B2", "5", "SimNPO narrows that", (of_claims("B2"),)),
    Statement(
        "step size",
        "5",
        "NPO pays more for a short chain at every step size",
        (
            weakest(
                "learning_rate",
                "factors",
                "python -m figures learning_rate --seeds 8",
                "learning rate",
                component="forget2",
            ),
        ),
        brief=False,
    ),
    Statement(
        "collapse",
        "1c",
        "GA collapses: at least nine tenths of its utility are lost",
        (of_trainings("collapse"),),
    ),
    Statement("graddiff", "1c", "GradDiff keeps more utility", (of_trainings("graddiff"),)),
    Statement(
        "nearer",
        "1c",
        "SimNPO ends nearer to the retrained model than NPO",
        (of_trainings("nearer"), of_study("ks_statistic", "npo", "simnpo")),
    ),
    Statement(
        "nearer, tuned",
        "1c",
        "the same, at settings chosen on other authors to keep 95% of the utility",
        (of_tuned("nearer"),),
    ),
    Statement(
        "utility",
        "1c",
        "SimNPO keeps more utility",
        (of_trainings("utility"), of_study("model_utility", "simnpo", "npo")),
    ),
    Statement(
        "retain",
        "1c",
        "SimNPO keeps more of the answers to retain",
        (of_trainings("retain"), of_study("retain_probability", "simnpo", "npo")),
        brief=False,
    ),
    Statement(
        "early",
        "3d",
        "after the first epoch NPO has lost more utility",
        (of_trainings("early"),),
        brief=False,
    ),
    Statement(
        "allocation",
        "3a",
        "SimNPO's first push per token neglects the needy answers less",
        (of_trainings("allocation"),),
        brief=False,
    ),
    Statement(
        "lengths",
        "4",
        "after the first epoch SimNPO's weights fall with length more than NPO's",
        (of_trainings("lengths"),),
    ),
    Statement(
        "short",
        "2",
        "NPO leaves short answers further from the retrained model than long ones",
        (of_trainings("short"),),
    ),
    Statement(
        "even",
        "2",
        "SimNPO leaves the two halves of length less far apart, though both further away",
        (of_trainings("even"),),
    ),
    Statement(
        "away",
        "1b",
        "NPO drives away from the retrained model what was never read",
        (of_trainings("away", "llm_truth_ratio"),),
    ),
    Statement(
        "spared",
        "1b",
        "SimNPO leaves what was never read nearer to the retrained model than NPO",
        (of_trainings("spared", "llm_truth_ratio"),),
    ),
    Statement(
        "read",
        "1b",
        "SimNPO brings what was read nearer to the retrained model than NPO",
        (of_trainings("read", "llm_truth_ratio"),),
        brief=False,
    ),
    Statement(
        "relearning",
        "6",
        "SimNPO regains a smaller share of what it lost when a random fifth is taught again",
        (relearned,),
        brief=False,
    ),
    Statement(
        "drift, NPO",
        "A4",
        "the KL to the original model grows with a larger exponent under GA than under NPO",
        (drifts("npo"),),
        brief=False,
    ),
    Statement(
        "drift, SimNPO",
        "A4",
        "the KL to the original model grows with a larger exponent under GA than under SimNPO",
        (drifts("simnpo"),),
    ),
    Statement(
        "in turn",
        "A5",
        "after three requests in turn SimNPO's loss on the answers to retain is lower",
        (of_trainings("kept", "llm_sequential"),),
        brief=False,
    ),
    Statement(
        "in turn, D",
        "A5",
        "after three requests in turn SimNPO is nearer to the retrained model",
        (of_trainings("nearer", "llm_sequential"),),
        brief=False,
    ),
    Statement(
        "reference, known",
        "",
        "dropping the reference alone lowers NPO's price for what was memorised",
        (of_effects(*KNOWN, "reference dropped"),),
    ),
    Statement(
        "reference, short",
        "",
        "dropping the reference alone lowers NPO's price for a short chain",
        (of_effects(*SHORT, "reference dropped"),),
    ),
    Statement(
        "length, short",
        "",
        "dividing by the length alone lowers NPO's price for a short chain",
        (of_effects(*SHORT, "length normalised"),),
    ),
    Statement(
        "interaction, short",
        "",
        "both together lower it more than their product",
        (of_effects(*SHORT, "interaction"),),
        brief=False,
    ),
    Statement(
        "length, long",
        "",
        "dividing by the length alone lowers NPO's price for a long chain",
        (of_effects(*LONG, "length normalised"),),
        brief=False,
    ),
    Statement(
        "reference, D",
        "",
        "dropping the reference alone brings NPO nearer to the retrained model",
        (of_trainings("reference"), of_study("ks_statistic", "npo", "reference_free_npo")),
        brief=False,
    ),
    Statement(
        "length, D",
        "",
        "dividing by the length alone brings NPO nearer to the retrained model",
        (of_trainings("length"), of_study("ks_statistic", "npo", "length_normalized_npo")),
        brief=False,
    ),
    Statement(
        "interaction, D",
        "",
        "both together bring NPO nearer than the two apart do",
        (of_trainings("interaction"),),
        brief=False,
    ),
    Statement(
        "reference, tuned",
        "",
        "dropping the reference alone does so at settings chosen to keep 95% of the utility",
        (of_tuned("reference"),),
        brief=False,
    ),
    Statement(
        "length, tuned",
        "",
        "dividing by the length alone does so at such settings",
        (of_tuned("length"),),
        brief=False,
    ),
    Statement(
        "interaction, tuned",
        "",
        "both together do so by more than the two apart, at such settings",
        (of_tuned("interaction"),),
        brief=False,
    ),
    Statement(
        "reference, never read",
        "",
        "dropping the reference alone spares what was never read",
        (of_causes("reference dropped"),),
    ),
    Statement(
        "length, never read",
        "",
        "dividing by the length alone spares what was never read",
        (of_causes("length normalised"),),
    ),
    Statement(
        "interaction, never read",
        "",
        "both together spare it by more than the two apart do",
        (of_causes("interaction"),),
        brief=False,
    ),
    Statement(
        "allocation, short",
        "",
        "under Adam the comparison of weights alone keeps half of the difference for a short chain",
        (of_parts("short chain", "allocation"),),
        brief=False,
    ),
    Statement(
        "allocation, gap",
        "",
        "under Adam the comparison of weights alone keeps half of what SimNPO narrows",
        (of_parts("gap", "allocation"), of_kept("allocation")),
    ),
    Statement(
        "magnitude, gap",
        "",
        "under Adam the size of weights alone keeps any of it",
        (of_parts("gap", "magnitude"), of_kept("magnitude")),
    ),
    Statement(
        "push, NPO",
        "",
        "at the start NPO's push meets more of the need than SimNPO's",
        (of_trainings("npo first", "push_and_need"), pushed("npo first")),
        brief=False,
    ),
    Statement(
        "push, best",
        "",
        "some weights would meet more than half of the need that NPO's leave unmet",
        (of_trainings("far", "push_and_need"), pushed("far", threshold=0.5)),
        brief=False,
    ),
    Statement(
        "push, runs",
        "",
        "unlearning with the best weights ends nearer to the retrained model, at equal utility",
        (of_trainings("needed wins", "push_and_need"),),
    ),
)
