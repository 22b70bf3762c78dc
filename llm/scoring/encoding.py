"""Turn a prompt and its response into tokens, of which those of the response are scored.

The prompt's tokens are always those that the prompt has by itself: what a model is given when it is
to answer. The response's tokens are what the text of both has beyond them, as in training on whole
texts. If a tokenizer merges across the boundary, so that the text of both does not start with the
prompt's tokens, the response is tokenised apart: counting the prompt's tokens off the merged text,
as TOFU's released code does, scores or skips the wrong ones. Either way every token belongs to one
side, and the scored ones decode to the response.

Every text starts with what the tokenizer itself puts before one: nothing, one token, or several. It
ends, once and scored, with what the tokenizer itself puts behind a text, or else with its
end-of-sequence token.

With a chat template, prompt and response are written by the template, from which the response is
read off:

    prompt   = the template's text of the system's and the user's turns, and of the head of the
               assistant's
    response = what its text of the whole conversation has beyond that, up to the token that ends
               the assistant's turn

So blanks that the template writes before the answer are scored, since a model has to write them,
and so is the token that ends a turn, which often differs from the tokenizer's end-of-sequence
token. What comes after that token is not scored, since a model has then stopped. If a template
writes no token after the answer, the end-of-sequence token is added. A template that writes
anything else is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

import torch
from jaxtyping import Bool, Int64
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from llm.scoring.limits import BUDGET, MAX_LENGTH
from llm.scoring.templates import Template, answer_in, conversation
from markov.errors import InvalidInput, is_whole, require, require_whole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ANCHOR = "\n"  # hardly ever merged with what follows it
PROBE = "a"  # a short text, to see what is put around one


class PromptAndResponse(Protocol):
    """An example's prompt and the response to it."""

    @property
    def prompt(self) -> str: ...
    @property
    def response(self) -> str: ...


class Encoded(NamedTuple):
    """The tokens of a prompt and its response, of which `tokens[prompt:]` are scored.

    The end of the response is one of them. `cut` is how many more tokens were cut off, and is 0
    unless truncation was asked for.
    """

    tokens: tuple[int, ...]
    prompt: int
    cut: int = 0


class Batch(NamedTuple):
    """Prompts with their responses, one per row.

    A row has `length` tokens, the first `prompt` of which are not scored.
    """

    tokens: Int64[Tensor, "batch time"]
    prompt: Int64[Tensor, " batch"]
    length: Int64[Tensor, " batch"]

    @classmethod
    def pad(cls, encoded: Sequence[Encoded]) -> Batch:
        """Return the examples padded behind with token 0, which no scored position sees.

        Neither the tokenizer's padding side nor its padding token plays a part.
        """
        tokens = pad_sequence([torch.tensor(one.tokens) for one in encoded], batch_first=True)
        prompt = torch.tensor([one.prompt for one in encoded])
        return cls(tokens, prompt, torch.tensor([len(one.tokens) for one in encoded]))

    @property
    def present(self) -> Bool[Tensor, "batch time"]:
        """True on tokens, False on padding."""
        return torch.arange(self.tokens.shape[1], device=self.length.device) < self.length[:, None]

    @property
    def scored(self) -> Bool[Tensor, "batch time-1"]:
        """True for the targets `tokens[:, 1:]` that belong to responses."""
        place = torch.arange(1, self.tokens.shape[1], device=self.length.device)
        return (place >= self.prompt[:, None]) & (place < self.length[:, None])


def batches(encoded: Sequence[Encoded], budget: int = BUDGET) -> list[list[int]]:
    """Return batches of indices of examples, the longest example first.

    A batch has at most `budget` tokens including padding, or one example.
    """
    require_whole(budget, "budget", 1)
    found: list[list[int]] = []
    for index in sorted(range(len(encoded)), key=lambda index: -len(encoded[index].tokens)):
        if found and len(encoded[found[-1][0]].tokens) * (len(found[-1]) + 1) <= budget:
            found[-1].append(index)
        else:
            found.append([index])
    return found


def encode(
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    prompt: str,
    response: str,
    *,
    max_length: int = MAX_LENGTH,
    truncate: bool = False,
) -> Encoded:
    """Return the tokens of one prompt and response, as `encode_examples` does."""
    return _encode(tokenizer, template, [(prompt, response)], max_length, truncate)[0]


def encode_examples(
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    examples: Sequence[PromptAndResponse],
    *,
    max_length: int = MAX_LENGTH,
    truncate: bool = False,
) -> list[Encoded]:
    """Return the tokens of each example, at most `max_length` of them.

    Raises `InvalidInput` for no example, an empty prompt or response, and a response that
    `max_length` would cut. With `truncate` it is cut, `Encoded.cut` says by how much, and only a
    prompt that leaves no room is refused. Raises it also for a tokenizer without an end-of-sequence
    token if one is needed, and for a chat template that is missing, refuses the conversation, or
    writes another answer than the one given, or something between prompt, answer and end.
    """
    return _encode(
        tokenizer, template, [(one.prompt, one.response) for one in examples], max_length, truncate
    )


def _encode(
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    pairs: Sequence[tuple[str, str]],
    max_length: int,
    truncate: bool,
) -> list[Encoded]:
    require(len(pairs) > 0, "examples", pairs, "at least one")
    for index, pair in enumerate(pairs):
        for field, text in zip(("prompt", "response"), pair, strict=True):
            require(
                bool(text.strip()), f"examples[{index}].{field}", text, "a text that is not blank"
            )
    start: tuple[int, ...] = ()
    end: tuple[int, ...] = ()
    if template.chat:
        parts = _turns(tokenizer, template, pairs)
    else:
        start, behind = around(tokenizer)
        end = (behind or _end_of_sequence(tokenizer)) if template.end else ()
        asked = [template.prompt.replace("{prompt}", prompt) for prompt, _ in pairs]
        written = [template.response.replace("{response}", response) for _, response in pairs]
        parts = _split(tokenizer, asked, written)
    found = []
    for index, (before, after) in enumerate(parts):
        for field, text, tokens in zip(
            ("prompt", "response"), pairs[index], (before, after), strict=True
        ):
            require(
                len(tokens) > 0, f"examples[{index}].{field}", text, "a text of at least one token"
            )
        tokens, prompt = (*start, *before, *after, *end), len(start) + len(before)
        least = prompt + 1 if truncate else len(tokens)
        need = (
            f"at least {least}: examples[{index}] has {prompt} tokens of prompt, "
            f"{len(tokens) - prompt} of response"
        )
        require(is_whole(max_length, least), "max_length", max_length, need)
        found.append(Encoded(tokens[:max_length], prompt, max(0, len(tokens) - max_length)))
    return found


def around(tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the tokens that the tokenizer puts before a text, and those that it puts behind one.

    They are what it makes of a short text beyond the text's own tokens. Raises `InvalidInput` for a
    tokenizer that then also cuts the text itself in another way.
    """
    whole, bare = (
        _ids(tokenizer, [PROBE], add_special_tokens=special)[0] for special in (True, False)
    )
    count = len(bare)
    places = [
        place for place in range(len(whole) - count + 1) if whole[place : place + count] == bare
    ]
    allowed = "one that leaves a text as it is between what it puts around it"
    require(len(places) == 1, "tokenizer", type(tokenizer).__name__, allowed)
    return tuple(whole[: places[0]]), tuple(whole[places[0] + count :])


def end_tokens(tokenizer: PreTrainedTokenizerBase, template: Template) -> tuple[int, ...]:
    """Return the tokens any of which ends an answer.

    They are the token that is scored as its end, and the end-of-sequence token. Raises
    `InvalidInput` as `encode` does.
    """
    if template.chat:
        ends: Sequence[int] = _turns(tokenizer, replace(template, end=True), [(PROBE, PROBE)])[0][
            1
        ][-1:]
    else:
        ends = around(tokenizer)[1][:1] or _end_of_sequence(tokenizer)
    last: Any = tokenizer.eos_token_id
    return tuple(dict.fromkeys((*ends, *([] if last is None else [last]))))


def fitted(tokenizer: PreTrainedTokenizerBase, template: Template) -> Template:
    """Return the template, without its system turn if the chat template has no place for one.

    It has none if it refuses the turn, or if it writes the turn only while the answer is still to
    come, so that no prompt is the beginning of its conversation. Any other problem is reported by
    `encode`.
    """
    without = replace(template, system="")
    unfit = template.chat and not _writes(tokenizer, template) and _writes(tokenizer, without)
    return without if unfit else template


def _writes(tokenizer: PreTrainedTokenizerBase, template: Template) -> bool:
    try:
        return bool(_turns(tokenizer, template, [(PROBE, PROBE)]))
    except InvalidInput:
        return False


def _end_of_sequence(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    end: Any = tokenizer.eos_token_id
    require(
        end is not None,
        "tokenizer",
        type(tokenizer).__name__,
        "one that has an end-of-sequence token",
    )
    return (end,)


def _turns(
    tokenizer: PreTrainedTokenizerBase, template: Template, pairs: Sequence[tuple[str, str]]
) -> list[tuple[list[int], list[int]]]:
    """Return the tokens of each prompt and of each response with its end, by the chat template."""
    # Words that are one token wherever they stand; some tokenizers have many that are blanks, which
    # end nothing.
    words: Any = (*cast(Any, tokenizer).get_added_vocab(), *tokenizer.all_special_tokens)
    marks = {word for word in words if word.strip()}
    asked, written, ends = [], [], []
    for prompt, response in pairs:
        answer = template.response.replace("{response}", response)
        before, whole = conversation(
            tokenizer, template, template.prompt.replace("{prompt}", prompt), answer
        )
        after, end = answer_in(before, whole, answer.strip(), marks)
        asked.append(before)
        written.append(after)
        ends.append(end)
    found = []
    for (before, after), end in zip(_split(tokenizer, asked, written), ends, strict=True):
        after = after if end else [*after, *_end_of_sequence(tokenizer)]
        as_one = not end or after[-1:] == [tokenizer.convert_tokens_to_ids(end)]
        require(
            as_one,
            "template",
            "chat",
            f"one whose end of a turn, {end}, is a token of this tokenizer",
        )
        found.append((before, after if template.end else after[:-1]))
    return found


def _split(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], responses: Sequence[str]
) -> list[tuple[list[int], list[int]]]:
    """Return the tokens of each prompt and of each response."""

    def apart(response: str) -> list[int]:
        # Some tokenizers put a space before a text; behind the anchor the response does not begin
        # a text.
        anchor, anchored, alone = _ids(tokenizer, [ANCHOR, ANCHOR + response, response])
        return _beyond(anchor, anchored) or alone

    both = _ids(
        tokenizer, [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
    )
    parts = zip(_ids(tokenizer, prompts), both, responses, strict=True)
    return [
        (before, _beyond(before, tokens) or apart(response)) for before, tokens, response in parts
    ]


def _ids(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, add_special_tokens: bool = False
) -> list[list[int]]:
    ids: Any = tokenizer(list(texts), add_special_tokens=add_special_tokens).input_ids
    return ids


def _beyond(start: list[int], tokens: list[int]) -> list[int]:
    """Return what follows the start, or nothing if the tokens do not begin with the start."""
    return tokens[len(start) :] if tokens[: len(start)] == start else []
