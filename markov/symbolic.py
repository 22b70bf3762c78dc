"""The theory of the shipped law, proved: symbols go through `Objective.logit` itself.

So code and proof cannot drift apart.

Each function returns a `Theorem`, an equality that sympy proves when asked whether it `holds`, and
that shows itself as LaTeX in a notebook. Symbols: log pi(y|x) and log pi_ref(y|x) in nats, |y| > 0,
beta > 0, gamma real.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import sympy as sp

from markov.objectives import CORNERS, Objective, SequenceLogProbs

LOGP, REF, GAMMA = sp.symbols(r"\log\pi_\theta \log\pi_{\mathrm{ref}} \gamma", real=True)
LENGTH, BETA = sp.symbols(r"|y| \beta", positive=True)


class Theorem(NamedTuple):
    """The equality `left = right`, what it means in one sentence, and where it is stated."""

    left: sp.Expr
    right: sp.Expr
    meaning: str
    source: str

    @property
    def holds(self) -> bool:
        """Whether left - right is proved to vanish for all values of the symbols."""
        return is_zero(self.left - self.right)

    def latex(self) -> str:
        """Return the equality in LaTeX."""
        return f"{sp.latex(self.left)} = {sp.latex(self.right)}"

    def _repr_latex_(self) -> str:
        return f"$\\displaystyle {self.latex()}$"


def is_zero(expression: sp.Expr) -> bool:
    """Return whether an expression vanishes identically.

    Rewritten in u = e^z it is rational, and cancellation decides.
    """
    together = sp.powsimp(
        sp.expand(sp.together(sp.expand_log(sp.powdenest(expression, force=True), force=True)))
    )
    return sp.simplify(together) == 0


def corner(name: str, gamma: Any = 0) -> Objective:
    """Return a corner of the family with symbols for its numbers; `gamma` is 0 unless given."""
    reference, normalize = (sp.Integer(int(number)) for number in CORNERS[name])
    return Objective(*_untyped(BETA, gamma, reference, normalize))


def logit(objective: Objective, logp: Any = LOGP, ref: Any = REF) -> Any:
    """Return z, computed by the shipped code."""
    return sp.sympify(objective.logit(SequenceLogProbs(*_untyped(logp, LENGTH, ref))))


def loss(objective: Objective) -> Any:
    """Return (2 / beta) log(1 + e^z)."""
    beta: Any = sp.sympify(objective.beta)
    return 2 / beta * sp.log(1 + sp.exp(logit(objective)))


def centered_loss(objective: Objective) -> Any:
    """Return (2 / beta) (log(1 + e^z) - log(1 + e^gamma)).

    It is the loss less its value at score 0, which is a constant of the model.
    """
    beta: Any = sp.sympify(objective.beta)
    return loss(objective) - 2 / beta * sp.log(1 + sp.exp(sp.sympify(objective.gamma)))


def weight(objective: Objective, logp: Any = LOGP, ref: Any = REF) -> Any:
    """Return 2 sigmoid(z) / |y|^normalize."""
    return (
        2 / (1 + sp.exp(-logit(objective, logp, ref))) / LENGTH ** sp.sympify(objective.normalize)
    )


def weight_is_slope(name: str) -> Theorem:
    """State that the weight is the slope of the loss, at a corner with any margin."""
    objective = corner(name, GAMMA)
    slope = sp.diff(loss(objective), LOGP)
    return Theorem(
        slope, weight(objective), "the weight is d loss / d logp", "Fan et al. 2025, section 4"
    )


def weight_grows(name: str) -> Theorem:
    """State that the weight grows with logp: the less likely a response, the less it is pushed.

    d weight / d logp = beta w (2 - w |y|^n) / (2 |y|^n) > 0, since 0 < w < 2 / |y|^n.
    """
    objective = corner(name, GAMMA)
    scale, own = LENGTH ** sp.sympify(objective.normalize), weight(objective)
    grown = BETA * own * (2 / scale - own) / 2
    meaning = (
        "the weight grows with logp, as both factors on the right are positive: what is "
        "forgotten is pushed less"
    )
    return Theorem(sp.diff(own, LOGP), grown, meaning, "this project")


def npo_published() -> Theorem:
    """State NPO's weight as printed: 2 pi^beta / (pi^beta + pi_ref^beta)."""
    pi, ref = sp.exp(BETA * LOGP), sp.exp(BETA * REF)
    return Theorem(
        weight(corner("npo")),
        2 * pi / (pi + ref),
        "NPO's published weight",
        "Zhang et al. 2024, section 3",
    )


def simnpo_published() -> Theorem:
    """State SimNPO's weight as printed, with its margin.

    It is 2 pi^(beta/|y|) e^gamma / (1 + pi^(beta/|y|) e^gamma) / |y|.
    """
    pi = sp.exp(BETA * LOGP / LENGTH + GAMMA)
    printed = 2 * pi / (1 + pi) / LENGTH
    return Theorem(
        weight(corner("simnpo", GAMMA)),
        printed,
        "SimNPO's published weight",
        "Fan et al. 2025, section 4",
    )


def npo_starts_as_gradient_ascent() -> Theorem:
    """State that at pi = pi_ref NPO's weight is 1 for every example: failure (b).

    This holds at every length and beta.
    """
    start = weight(corner("npo"), logp=REF)
    return Theorem(
        start, sp.Integer(1), "NPO starts out as gradient ascent", "Fan et al. 2025, section 4 (L2)"
    )


def simnpo_starts_weighted() -> Theorem:
    """State that at pi = pi_ref SimNPO's weight already depends on likelihood and length."""
    start = weight(corner("simnpo"), logp=REF)
    expected = 2 / (1 + sp.exp(-BETA * REF / LENGTH)) / LENGTH
    return Theorem(
        start,
        expected,
        "SimNPO weighs examples from the first step on",
        "Fan et al. 2025, section 4",
    )


def small_beta_loss(name: str) -> Theorem:
    """State the limit of the centred loss as beta -> 0.

    It is 2 sigmoid(gamma) (logp - reference ref) / |y|^normalize, which is GA at gamma = 0. For NPO
    this is Proposition 1 of the NPO paper: loss - (2/beta) log 2 -> logp - ref.
    """
    objective = corner(name, GAMMA)
    score = (LOGP - objective.reference * REF) / LENGTH ** sp.sympify(objective.normalize)
    # With z = gamma + beta s the quotient is 0/0 at beta = 0; its limit is the derivative there.
    slope: Any = sp.diff(sp.log(1 + sp.exp(logit(objective))), BETA).subs(BETA, 0)
    limit = 2 * slope
    meaning = (
        "as beta -> 0 the centred loss becomes gradient ascent, weighted by 1/|y| where the "
        "length is normalised"
    )
    return Theorem(
        limit,
        2 / (1 + sp.exp(-GAMMA)) * score,
        meaning,
        "Zhang et al. 2024, Proposition 1; Fan et al., F",
    )


def small_beta_weight(name: str) -> Theorem:
    """State the limit of the weight as beta -> 0: 2 sigmoid(gamma) / |y|^normalize.

    At gamma = 0 it is 1 or 1/|y|.
    """
    objective = corner(name, GAMMA)
    limit = sp.limit(weight(objective), BETA, 0)
    expected = 2 / (1 + sp.exp(-GAMMA)) / LENGTH ** sp.sympify(objective.normalize)
    return Theorem(
        limit,
        expected,
        "as beta -> 0 every example of a length weighs the same",
        "Fan et al. 2025, F",
    )


def simnpo_bound() -> Theorem:
    """State the supremum of SimNPO's weight over all probabilities.

    It is reached at pi = 1, since the weight grows with logp, and is 2 sigmoid(gamma) / |y|. At
    gamma = 0 the bound is 1 / |y|, and the printed 2 / |y| is loose by a factor of 2; that one is
    approached only as gamma -> infinity.
    """
    top = weight(corner("simnpo", GAMMA), logp=sp.Integer(0))
    meaning = (
        "SimNPO's weight is at most 2 sigmoid(gamma)/|y|, 1/|y| at gamma = 0; the printed "
        "bound 2/|y| is loose"
    )
    return Theorem(
        top, 2 / (1 + sp.exp(-GAMMA)) / LENGTH, meaning, "correction to Fan et al. 2025, section 4"
    )


def bound(name: str) -> Theorem:
    """State the limit of the weight as z grows, 2 / |y|^n, which the weight never reaches.

    It is printed as 2 for NPO and 2 / |y| for SimNPO.
    """
    objective = corner(name, GAMMA)
    scale = LENGTH ** sp.sympify(objective.normalize)
    # At the logp where z = -log u the weight is a rational function of u, which falls to 0 as z
    # grows.
    fallen = sp.Symbol("u", positive=True)
    logp = (-sp.log(fallen) - GAMMA) / BETA * scale + objective.reference * REF
    limit = sp.limit(sp.simplify(weight(objective, logp=logp)), fallen, 0)
    meaning = (
        "the weight stays below 2/|y|^n, which it nears where a response is far likelier "
        "than the reference says"
    )
    return Theorem(
        limit, 2 / scale, meaning, "Zhang et al. 2024, section 3; Fan et al. 2025, section 4"
    )


def tight_bound(name: str) -> Theorem:
    """State the bound of the weight while pi <= pi_ref (with a reference) or pi <= 1 (without).

    It is 2 sigmoid(gamma) / |y|^n. The weight grows with logp (`weight_grows`), so its largest
    value is at the end. At gamma = 0 that is 1 / |y|^n, half of the printed bound: for SimNPO
    always, for NPO as long as nothing is likelier than it was.
    """
    objective = corner(name, GAMMA)
    end = REF * sp.sympify(objective.reference)
    right = 2 / (1 + sp.exp(-GAMMA)) / LENGTH ** sp.sympify(objective.normalize)
    meaning = (
        "while nothing is likelier than under the reference (or certain, without one) the "
        "weight is at most this"
    )
    return Theorem(
        weight(objective, logp=end), right, meaning, "correction to Fan et al. 2025, section 4"
    )


def released_margin() -> Theorem:
    """State that the released code multiplies the margin by beta.

    Its gamma is the published one divided by beta.
    """
    code = sp.Symbol(r"\gamma_{\mathrm{code}}", real=True)
    released = 2 / BETA * sp.log(1 + sp.exp(BETA * (LOGP / LENGTH + code)))
    ours = loss(corner("simnpo", BETA * code))
    return Theorem(
        released,
        ours,
        "gamma as published is beta times that of the released code",
        "released code, TOFU",
    )


def _untyped(*values: Any) -> tuple[Any, ...]:
    """Return symbols where the law is annotated with numbers, as its arithmetic takes both."""
    return values
