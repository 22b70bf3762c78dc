"""Turn whole texts into pieces that a model can take, with every token learnt or scored.

Texts are joined, tokenised as one and cut into pieces of one length. Each piece starts with what
the tokenizer itself puts before a text: nothing, one token, or several. The scored tokens of a
piece, and with them `length` in the law, are all tokens of the text that have something before them
in their piece: all of them, or all but the first if the tokenizer puts nothing before a text.

The last piece is as short as it comes. MUSE's released code fills it with the beginning of the
first one, whose tokens then count twice. That code also applies NPO and SimNPO to the logits,
number by number, without a softmax and without regard to which token comes next: no log-probability
of any text enters. Here a piece is a response with an empty prompt, and the law gets its
log-probability, which changes with the tokens and not with a constant added to all logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llm.scoring.encoding import Encoded, around
from markov.errors import require, require_whole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

SEPARATOR = "\n\n"
PIECE = 2048  # tokens, as MUSE has it


def start_of(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the tokens that the tokenizer puts before a text: none, one, or several."""
    return around(tokenizer)[0]


def pieces(
    tokenizer: Tokenizer, texts: Sequence[str], *, length: int = PIECE, separator: str = SEPARATOR
) -> list[Encoded]:
    """Return the joined texts in pieces of at most `length` tokens.

    The tokens that the tokenizer puts before a text count towards `length`. Every token of the text
    is in one piece, and in one only. Only a last piece of a single token with nothing before it is
    left out. Raises `InvalidInput` for no text, a blank one, a length that leaves no token to
    score, and a text of one token.
    """
    _check(texts)
    tokens, start = _ids(tokenizer, separator.join(texts)), start_of(tokenizer)
    first = max(1, len(start))
    require_whole(length, "length", first + 1)
    step = length - len(start)
    cut = [(*start, *tokens[place : place + step]) for place in range(0, len(tokens), step)]
    found = [Encoded(own, first) for own in cut if len(own) > first]
    require(len(found) > 0, "texts", texts[0], "more than one token")
    return found


def whole(
    tokenizer: Tokenizer, texts: Sequence[str], *, max_length: int | None = None
) -> list[Encoded]:
    """Return each text by itself, cut off after `max_length` tokens if that is given.

    `Encoded.cut` says how many tokens are lost. Raises `InvalidInput` for no text, a blank one, or
    one of which no token would be scored.
    """
    _check(texts)
    start, found = start_of(tokenizer), []
    first = max(1, len(start))
    if max_length is not None:
        require_whole(max_length, "max_length", first + 1)
    for row, text in enumerate(texts):
        tokens = (*start, *_ids(tokenizer, text))
        require(len(tokens) > first, f"texts[{row}]", text, "more than one token")
        kept = tokens[:max_length]
        found.append(Encoded(kept, first, len(tokens) - len(kept)))
    return found


def _check(texts: Sequence[str]) -> None:
    require(len(texts) > 0, "texts", texts, "at least one")
    for row, text in enumerate(texts):
        require(
            isinstance(text, str) and bool(text.strip()),
            f"texts[{row}]",
            text,
            "a text that is not blank",
        )


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    # Not verbose, since tokenizers warn of texts that are longer than a model takes; these are
    # still to be cut.
    ids: Any = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return ids
