"""How many tokens an example, a batch and an answer may have, where nobody says otherwise."""

from __future__ import annotations

MAX_LENGTH = 512  # tokens of a prompt and its response
BUDGET = 2048  # tokens of a batch, padding included
NEW_TOKENS = 200  # tokens of an answer that a model writes, as open-unlearning has it for TOFU
# Tokens of a batch with what is still to be written, padding included: most memory of writing goes
# into keys and values, of which a token has few.
WRITING_BUDGET = 16384


def writing_budget(budget: int) -> int:
    """Return the tokens of a batch of writing, for batches of scoring with `budget` tokens.

    A smaller `budget` than the default lowers it in the same proportion.
    """
    return max(budget, min(WRITING_BUDGET, WRITING_BUDGET // BUDGET * budget))
