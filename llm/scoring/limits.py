"""How many tokens an example, a batch and an answer may have, where nobody says otherwise."""

from __future__ import annotations

MAX_LENGTH = 512  # tokens of a prompt and its response
BUDGET = 2048  # tokens of a batch, padding included
NEW_TOKENS = 200  # tokens of an answer that a model writes, as open-unlearning has it for TOFU
