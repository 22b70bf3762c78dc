"""How many tokens an example and a batch may have, where nobody says otherwise."""

from __future__ import annotations

MAX_LENGTH = 512  # tokens of a prompt and its response
BUDGET = 2048  # tokens of a batch, padding included
