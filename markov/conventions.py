"""What other codes' numbers mean here: margins, coefficients and beta, there and back.

The published loss is E_forget[(2/beta) softplus(z)] + lambda * E_retain[-log pi_theta], and one
letter does not mean one thing. `gamma` is, in the paper, the margin, added to beta * logp / length;
in the released TOFU code the margin *inside* beta, so that gamma_paper = beta * gamma_code; in
open-unlearning the coefficient of the forget loss, with the margin called `delta` (again inside
beta); in the SimPO code a ratio, gamma / beta. And lambda multiplies the retain loss where the
forget loss has coefficient 1: of two coefficients only the ratio compares, lambda = retain /
forget. Under AdamW, whose steps do not change with the scale of the loss (up to its epsilon), the
ratio is also all that matters; plain SGD would need its learning rate multiplied by the forget
coefficient.

Example: the released TOFU configuration for Forget05 has beta 2.5, gamma 0, npo_coeff 0.1375 and
grad_diff_coeff 1. Its 0.1375 stands on the *forget* loss, hence

    from_released_tofu(beta=2.5, gamma=0.0, npo_coeff=0.1375, grad_diff_coeff=1.0).retain_weight  is
                                                                                                  7.27,

where the paper puts 0.1375 on the retain loss, from_paper(beta=2.5, gamma=0.0,
retain_weight=0.1375), 53 times less. Likewise for Forget10: npo_coeff 0.125 is lambda = 8.0.

Nor does lambda multiply one thing: the retain loss here is a mean over tokens, as in the released
code, while the paper prints a sum, E_retain[-log pi_theta]; and the released code's gradient ascent
is a mean over tokens too, where the law's is a sum. `from_summed_retain` and `from_mean_forget`
convert. (What each code averages over is said in `llm.unlearning.retaining`.)

Every function raises `InvalidInput` naming the number that has no counterpart, such as a beta or a
forget coefficient of 0, by which those codes or the conversion divide.
"""

from __future__ import annotations

from typing import NamedTuple

from markov.errors import require, require_number
from markov.objectives import CORNERS, Objective, npo, simnpo


class Setting(NamedTuple):
    """A forget objective and the weight lambda of the retain loss beside it, both as published."""

    objective: Objective
    retain_weight: float


def from_paper(beta: float, gamma: float, retain_weight: float) -> Setting:
    """SimNPO as published: logit beta * logp / length + gamma, lambda = retain_weight."""
    return Setting(simnpo(beta, gamma), _coefficient("retain_weight", retain_weight))


def from_released_tofu(
    beta: float, gamma: float, npo_coeff: float, grad_diff_coeff: float
) -> Setting:
    """SimNPO of the released TOFU code: logit beta * (logp / length + gamma), npo_coeff on the
    forget.
    """
    objective = simnpo(_positive("beta", beta), beta * _finite("gamma", gamma))
    retain = _coefficient("grad_diff_coeff", grad_diff_coeff)
    return Setting(objective, retain / _positive("npo_coeff", npo_coeff))


def to_released_tofu(setting: Setting) -> dict[str, float]:
    """The keys of the released TOFU configuration that give this SimNPO setting, npo_coeff being
    1.
    """
    beta, margin, retain = _simnpo_numbers(setting)
    return {"beta": beta, "gamma": margin, "npo_coeff": 1.0, "grad_diff_coeff": retain}


def from_open_unlearning_simnpo(beta: float, delta: float, gamma: float, alpha: float) -> Setting:
    """SimNPO of open-unlearning: logit beta * (logp / length + delta), gamma on forget, alpha on
    retain.
    """
    objective = simnpo(_positive("beta", beta), beta * _finite("delta", delta))
    return Setting(objective, _coefficient("alpha", alpha) / _positive("gamma", gamma))


def to_open_unlearning_simnpo(setting: Setting) -> dict[str, float]:
    """The `method_args` of open-unlearning's SimNPO that give this setting, with forget
    coefficient 1.
    """
    beta, margin, retain = _simnpo_numbers(setting)
    return {"beta": beta, "delta": margin, "gamma": 1.0, "alpha": retain}


def from_open_unlearning_npo(beta: float, gamma: float, alpha: float) -> Setting:
    """NPO of open-unlearning: logit beta * (logp - ref), gamma on the forget, alpha on the
    retain loss.
    """
    return Setting(
        npo(_positive("beta", beta)), _coefficient("alpha", alpha) / _positive("gamma", gamma)
    )


def from_simpo_ratio(beta: float, gamma_beta_ratio: float) -> Setting:
    """SimPO's margin ratio, gamma = beta * gamma_beta_ratio, on the rejected response alone, no
    retain term.

    SimPO's loss is softplus(z), without the factor 2/beta: the learning rate there absorbs it.
    """
    ratio = _finite("gamma_beta_ratio", gamma_beta_ratio)
    return Setting(simnpo(_positive("beta", beta), beta * ratio), 0.0)


def from_trl_cpo(beta: float, simpo_gamma: float, cpo_alpha: float = 0.0) -> Setting:
    """TRL's CPO trainer with loss_type "simpo": gamma = simpo_gamma, lambda = cpo_alpha * 2 / beta.

    It is SimPO's loss on the rejected response alone, softplus(z) without 2/beta, beside cpo_alpha
    times the likelihood loss: relative to ours the retain term gains the missing factor.
    """
    retain = _coefficient("cpo_alpha", cpo_alpha) * 2 / _positive("beta", beta)
    return Setting(simnpo(beta, _finite("simpo_gamma", simpo_gamma)), retain)


def from_summed_retain(retain_weight: float, length: float) -> float:
    """lambda for a retain loss per token, from that of a summed one as the paper prints it: lambda
    * length.

    `length` is |y| of the retain responses, all of which are taken to be of one length.
    """
    return _coefficient("retain_weight", retain_weight) * _positive("length", length)


def from_mean_forget(retain_weight: float, length: float) -> float:
    """lambda beside summed log-probabilities, from that beside their mean over tokens, as in the
    released GradDiff.

    It is lambda * length, with the mean |y| of an update's forget responses, and what is minimised
    is then length times as large as a whole: of AdamW's steps the same ones, unless gradients are
    clipped.
    """
    return _coefficient("retain_weight", retain_weight) * _positive("length", length)


def _simnpo_numbers(setting: Setting) -> tuple[float, float, float]:
    """beta, the margin inside beta, and the retain weight, of a setting those codes can express."""
    objective = setting.objective
    alone = all(getattr(value, "ndim", 0) == 0 for value in objective)
    require(
        alone, "objective", objective, "one objective: these configurations hold single numbers"
    )
    beta, gamma, reference, normalize = (float(value) for value in objective)
    allowed = "SimNPO, reference = 0 and normalize = 1: these configurations know no other"
    require((reference, normalize) == CORNERS["simnpo"], "objective", objective, allowed)
    retain = _coefficient("retain_weight", setting.retain_weight)
    return _positive("beta", beta), _finite("gamma", gamma / beta), retain


def _finite(field: str, value: float) -> float:
    require_number(value, field, lambda number: True, "a finite number")
    return value


def _coefficient(field: str, value: float) -> float:
    require(_finite(field, value) >= 0, field, value, "a finite number >= 0")
    return value


def _positive(field: str, value: float) -> float:
    require(_finite(field, value) > 0, field, value, "a finite number > 0, as it divides")
    return value
