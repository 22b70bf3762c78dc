"""What the numbers of other codes mean here: margins, coefficients and beta, in both directions.

The published loss is E_forget[(2/beta) softplus(z)] + lambda * E_retain[-log pi_theta], and one
letter means several things. `gamma` is
- in the paper the margin, added to beta * logp / length;
- in the released TOFU code the margin *inside* beta, so that gamma_paper = beta * gamma_code;
- in open-unlearning the coefficient of the forget loss, with the margin called `delta` (again
  inside beta);
- in the SimPO code a ratio, gamma / beta.

lambda multiplies the retain loss where the forget loss has coefficient 1. Of two coefficients only
the ratio can be compared: lambda = retain / forget. Under AdamW, whose steps do not change with the
scale of the loss (up to its epsilon), the ratio is also all that matters; plain SGD would need its
learning rate multiplied by the forget coefficient.

Example: the released TOFU configuration for Forget05 has beta 2.5, gamma 0, npo_coeff 0.1375 and
grad_diff_coeff 1. Its 0.1375 multiplies the *forget* loss, hence

    from_released_tofu(beta=2.5, gamma=0.0, npo_coeff=0.1375, grad_diff_coeff=1.0).retain_weight

is 7.27. The paper puts 0.1375 on the retain loss, from_paper(beta=2.5, gamma=0.0,
retain_weight=0.1375), which is 53 times less. Likewise for Forget10: npo_coeff 0.125 is lambda =
8.0.

What lambda multiplies differs, too: the retain loss here is a mean over tokens, as in the released
code, while the paper prints a sum, E_retain[-log pi_theta]. The released code's gradient ascent is
a mean over tokens as well, where the law's is a sum. `from_summed_retain` and `from_mean_forget`
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
    """Convert SimNPO as published: logit beta * logp / length + gamma, lambda = retain_weight."""
    return Setting(simnpo(beta, gamma), _coefficient("retain_weight", retain_weight))


def from_released_tofu(
    beta: float, gamma: float, npo_coeff: float, grad_diff_coeff: float
) -> Setting:
    """Convert SimNPO of the released TOFU code: logit beta * (logp / length + gamma).

    There npo_coeff multiplies the forget loss and grad_diff_coeff the retain loss.
    """
    objective = simnpo(_positive("beta", beta), beta * _finite("gamma", gamma))
    retain = _coefficient("grad_diff_coeff", grad_diff_coeff)
    return Setting(objective, retain / _positive("npo_coeff", npo_coeff))


def to_released_tofu(setting: Setting) -> dict[str, float]:
    """Return the released TOFU configuration of a SimNPO setting, with npo_coeff = 1.

    The result maps the names of the keys to their values.
    """
    beta, margin, retain = _simnpo_numbers(setting)
    return {"beta": beta, "gamma": margin, "npo_coeff": 1.0, "grad_diff_coeff": retain}


def from_open_unlearning_simnpo(beta: float, delta: float, gamma: float, alpha: float) -> Setting:
    """Convert SimNPO of open-unlearning: logit beta * (logp / length + delta).

    There gamma multiplies the forget loss and alpha the retain loss.
    """
    objective = simnpo(_positive("beta", beta), beta * _finite("delta", delta))
    return Setting(objective, _coefficient("alpha", alpha) / _positive("gamma", gamma))


def to_open_unlearning_simnpo(setting: Setting) -> dict[str, float]:
    """Return the `method_args` of open-unlearning's SimNPO that give this setting.

    The forget coefficient is 1.
    """
    beta, margin, retain = _simnpo_numbers(setting)
    return {"beta": beta, "delta": margin, "gamma": 1.0, "alpha": retain}


def from_open_unlearning_npo(beta: float, gamma: float, alpha: float) -> Setting:
    """Convert NPO of open-unlearning: logit beta * (logp - ref).

    There gamma multiplies the forget loss and alpha the retain loss.
    """
    return Setting(
        npo(_positive("beta", beta)), _coefficient("alpha", alpha) / _positive("gamma", gamma)
    )


def from_simpo_ratio(beta: float, gamma_beta_ratio: float) -> Setting:
    """Convert SimPO's margin ratio: gamma = beta * gamma_beta_ratio, without a retain term.

    The law is that of the rejected response alone. SimPO's loss is softplus(z), without the factor
    2/beta: the learning rate there absorbs it.
    """
    ratio = _finite("gamma_beta_ratio", gamma_beta_ratio)
    return Setting(simnpo(_positive("beta", beta), beta * ratio), 0.0)


def from_trl_cpo(beta: float, simpo_gamma: float, cpo_alpha: float = 0.0) -> Setting:
    """Convert the settings of TRL's CPO trainer with loss_type "simpo".

    gamma = simpo_gamma and lambda = cpo_alpha * 2 / beta. Its loss on the rejected response alone
    is SimPO's, softplus(z) without 2/beta, beside cpo_alpha times the likelihood loss. Relative to
    the loss here, the retain term gains the missing factor.
    """
    retain = _coefficient("cpo_alpha", cpo_alpha) * 2 / _positive("beta", beta)
    return Setting(simnpo(beta, _finite("simpo_gamma", simpo_gamma)), retain)


def from_summed_retain(retain_weight: float, length: float) -> float:
    """Convert lambda of a summed retain loss to that of a mean over tokens.

    The paper prints the sum. The result is lambda * length, where `length` is |y| of the retain
    responses, all taken to be equally long.
    """
    return _coefficient("retain_weight", retain_weight) * _positive("length", length)


def from_mean_forget(retain_weight: float, length: float) -> float:
    """Convert lambda beside a forget loss that is a mean over tokens to lambda beside a sum.

    The released GradDiff has such a mean. The result is lambda * length, with the mean |y| of an
    update's forget responses. The whole loss is then length times as large, for which AdamW takes
    the same steps unless gradients are clipped.
    """
    return _coefficient("retain_weight", retain_weight) * _positive("length", length)


def _simnpo_numbers(setting: Setting) -> tuple[float, float, float]:
    """Return beta, the margin inside beta, and the retain weight of a setting.

    Raises `InvalidInput` for a setting that those codes cannot express.
    """
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
