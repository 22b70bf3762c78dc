"""Whether two models can be compared, asked before work begins on either."""

from __future__ import annotations

from llm.models.language_model import check_same_vocabulary
from llm.models.names import made
from llm.models.source import ModelOptions, load_model


def check_comparable(options: ModelOptions, retrained: str | None) -> None:
    """Raise `InvalidInput` for a retrained model that cannot be read or has another vocabulary.

    One that is made here has the tokenizer of all such models.
    """
    if retrained is None or made(retrained) is not None:
        return
    other = load_model(options, retrained)
    if made(options.model) is None:
        check_same_vocabulary(load_model(options).tokenizer, other.tokenizer, "retrained")
