"""From a prompt and its response to tokens, of which those of the response are scored.

The prompt's tokens are always those that the prompt has by itself: what a model is given when it is to answer. The
response's tokens are what the text of both has beyond them, as in training on whole texts. Where a tokenizer merges
across the boundary, so that the text of both does not start with the prompt's tokens, the response is tokenised apart:
counting the prompt's tokens off the merged text, as TOFU's released code does, scores or skips the wrong ones. Either
way every token belongs to one side, and the scored ones decode to the response.

One end-of-sequence token is appended and scored. A beginning-of-sequence token is put first if the tokenizer puts one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from jaxtyping import Bool, Int64
from jinja2 import TemplateError
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from markov.errors import InvalidInput, require

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_LENGTH = 512  # tokens of a prompt and its response
BUDGET = 2048  # tokens of a batch, padding included
ANCHOR = "\n"  # hardly ever merged with what follows it


class PromptAndResponse(Protocol):
    """What is asked and what is answered."""

    @property
    def prompt(self) -> str: ...
    @property
    def response(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Template:
    """How a prompt and a response are written: `{prompt}` and `{response}` stand for them, the rest is fixed.

    A space between the two belongs to the response, since tokenizers merge it with the word that follows. With `chat`,
    what `prompt` gives is the user's turn in the tokenizer's own chat template, after `system`, on the day `date`.
    `end` appends the end-of-sequence token. Raises `InvalidInput` for a text without its placeholder.
    """

    prompt: str
    response: str = "{response}"
    chat: bool = False
    system: str = ""
    date: str = ""
    end: bool = True

    def __post_init__(self) -> None:
        for field in ("prompt", "response"):
            allowed = f"a text that contains {{{field}}} once"
            require(getattr(self, field).count(f"{{{field}}}") == 1, field, getattr(self, field), allowed)


LLAMA2_CHAT = Template(prompt="[INST] {prompt} [/INST]")
# The tag "Answer:" belongs to the prompt. TOFU's released code scores it, for Phi: prompt = "Question: {prompt}\n".
PLAIN = Template(prompt="Question: {prompt}\nAnswer:", response=" {response}")
CHAT = Template(prompt="{prompt}", chat=True, system="You are a helpful assistant.", date="10 Apr 2025")
TEMPLATES = {"llama2_chat": LLAMA2_CHAT, "plain": PLAIN, "chat": CHAT}


class Encoded(NamedTuple):
    """The tokens of a prompt and its response, of which `tokens[prompt:]` are scored, and how many more were cut off.

    The end-of-sequence token is one of them; `cut` is 0 unless truncation was asked for.
    """

    tokens: tuple[int, ...]
    prompt: int
    cut: int = 0


class Batch(NamedTuple):
    """Prompts with their responses, one per row: `length` tokens, the first `prompt` of which are not scored."""

    tokens: Int64[Tensor, "batch time"]
    prompt: Int64[Tensor, " batch"]
    length: Int64[Tensor, " batch"]

    @classmethod
    def pad(cls, encoded: Sequence[Encoded]) -> Batch:
        """Padded behind with token 0, whichever side and token the tokenizer would take: nothing ever sees it."""
        tokens = pad_sequence([torch.tensor(one.tokens) for one in encoded], batch_first=True)
        prompt = torch.tensor([one.prompt for one in encoded])
        return cls(tokens, prompt, torch.tensor([len(one.tokens) for one in encoded]))

    @property
    def present(self) -> Bool[Tensor, "batch time"]:
        """True on tokens, False on padding."""
        return torch.arange(self.tokens.shape[1], device=self.length.device) < self.length[:, None]

    @property
    def scored(self) -> Bool[Tensor, "batch time-1"]:
        """Which of the targets `tokens[:, 1:]` belong to responses."""
        place = torch.arange(1, self.tokens.shape[1], device=self.length.device)
        return (place >= self.prompt[:, None]) & (place < self.length[:, None])


def batches(encoded: Sequence[Encoded], budget: int = BUDGET) -> list[list[int]]:
    """Indices of examples, the longest first, in batches of at most `budget` tokens with padding, or of one example."""
    require(budget >= 1, "budget", budget, "at least 1 token")
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
    """The tokens of one prompt and response; as `encode_examples`."""
    return _encode(tokenizer, template, [(prompt, response)], max_length, truncate)[0]


def encode_examples(
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    examples: Sequence[PromptAndResponse],
    *,
    max_length: int = MAX_LENGTH,
    truncate: bool = False,
) -> list[Encoded]:
    """The tokens of each example, at most `max_length` of them.

    Raises `InvalidInput` for no example, an empty prompt or response, a response that `max_length` would cut (with
    `truncate` it is cut, `Encoded.cut` says by how much, and only a prompt that leaves no room is refused), a tokenizer
    without an end-of-sequence token, and a chat template that is missing or refuses the conversation.
    """
    return _encode(tokenizer, template, [(one.prompt, one.response) for one in examples], max_length, truncate)


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
            require(bool(text.strip()), f"examples[{index}].{field}", text, "a text that is not blank")
    end: list[Any] = [tokenizer.eos_token_id] if template.end else []
    require(None not in end, "tokenizer", type(tokenizer).__name__, "one that has an end-of-sequence token")

    start, prompts = _prompts(tokenizer, template, [prompt for prompt, _ in pairs])
    responses = [template.response.replace("{response}", response) for _, response in pairs]
    found = []
    for index, (before, after) in enumerate(_split(tokenizer, prompts, responses)):
        for field, text, tokens in zip(("prompt", "response"), pairs[index], (before, after), strict=True):
            require(len(tokens) > 0, f"examples[{index}].{field}", text, "a text of at least one token")
        tokens, prompt = (*start, *before, *after, *end), len(start) + len(before)
        least = prompt + 1 if truncate else len(tokens)
        need = f"at least {least}: examples[{index}] has {prompt} tokens of prompt, {len(tokens) - prompt} of response"
        require(max_length >= least, "max_length", max_length, need)
        found.append(Encoded(tokens[:max_length], prompt, max(0, len(tokens) - max_length)))
    return found


def _prompts(
    tokenizer: PreTrainedTokenizerBase, template: Template, prompts: Sequence[str]
) -> tuple[list[int], list[str]]:
    """The tokens that start every sequence, and the text before each response. Chat templates write their own start."""
    written = [template.prompt.replace("{prompt}", prompt) for prompt in prompts]
    if not template.chat:
        first = _ids(tokenizer, ["a"], add_special_tokens=True)[0][:1]
        return (first if first == [tokenizer.bos_token_id] else []), written
    system = [{"role": "system", "content": template.system}] if template.system else []
    options: dict[str, Any] = {"date_string": template.date} if template.date else {}
    options |= {"tokenize": False, "add_generation_prompt": True}
    try:
        turns = [[*system, {"role": "user", "content": text}] for text in written]
        return [], [str(tokenizer.apply_chat_template(turn, **options)) for turn in turns]
    except (TemplateError, ValueError) as error:
        allowed = f"one that this tokenizer has a chat template for ({str(error).splitlines()[0]})"
        raise InvalidInput("template", "chat", allowed) from error


def _split(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], responses: Sequence[str]
) -> list[tuple[list[int], list[int]]]:
    """The tokens of each prompt and of each response."""

    def apart(response: str) -> list[int]:
        # Some tokenizers put a space before a text; after the anchor the response does not begin one.
        anchor, anchored, alone = _ids(tokenizer, [ANCHOR, ANCHOR + response, response])
        return _beyond(anchor, anchored) or alone

    both = _ids(tokenizer, [prompt + response for prompt, response in zip(prompts, responses, strict=True)])
    parts = zip(_ids(tokenizer, prompts), both, responses, strict=True)
    return [(before, _beyond(before, tokens) or apart(response)) for before, tokens, response in parts]


def _ids(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, add_special_tokens: bool = False
) -> list[list[int]]:
    ids: Any = tokenizer(list(texts), add_special_tokens=add_special_tokens).input_ids
    return ids


def _beyond(start: list[int], tokens: list[int]) -> list[int]:
    """What follows the start, if the tokens do start so."""
    return tokens[len(start) :] if tokens[: len(start)] == start else []
