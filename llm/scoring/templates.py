"""How a prompt and a response are written: templates of this project's own, and chat templates.

A chat template is a program that comes with the tokenizer. It is run twice, without the answer and
with it. What it writes the second time beyond the first is the response, up to the token that ends
the assistant's turn.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from markov.errors import InvalidInput, first_line, require

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAVED = "template.json"  # as which a template lies in a model's folder
LONGEST = 240  # characters of what a template complains of
TODAY = "strftime_now"  # what chat templates call to know which day it is


@dataclass(frozen=True, kw_only=True)
class Template:
    """How to write a prompt and a response: fixed text around `{prompt}` and `{response}`.

    A space between the two belongs to the response, since tokenizers merge it with the word that
    follows. With `chat`, what `prompt` and `response` give are the user's and the assistant's turns
    in the tokenizer's own chat template, after the turn `system` (none if it is empty), on the day
    `date`. Without `end` the end of the response is left out. Raises `InvalidInput` for a text that
    does not contain its placeholder once.
    """

    prompt: str
    response: str = "{response}"
    chat: bool = False
    system: str = ""
    date: str = ""
    end: bool = True

    def __post_init__(self) -> None:
        for field in ("prompt", "response", "system", "date"):
            allowed = "text"
            require(isinstance(getattr(self, field), str), field, getattr(self, field), allowed)
        for field in ("prompt", "response"):
            allowed = f"a text that contains {{{field}}} once"
            require(
                getattr(self, field).count(f"{{{field}}}") == 1,
                field,
                getattr(self, field),
                allowed,
            )


LLAMA2_CHAT = Template(prompt="[INST] {prompt} [/INST]")
# The tag "Answer:" belongs to the prompt. TOFU's released code scores it, for Phi: prompt =
# "Question: {prompt}\n".
PLAIN = Template(prompt="Question: {prompt}\nAnswer:", response=" {response}")
CHAT = Template(
    prompt="{prompt}", chat=True, system="You are a helpful assistant.", date="10 Apr 2025"
)
TEMPLATES = {"llama2_chat": LLAMA2_CHAT, "plain": PLAIN, "chat": CHAT}


def conversation(
    tokenizer: PreTrainedTokenizerBase, template: Template, prompt: str, answer: str
) -> tuple[str, str]:
    """Return what the chat template writes before the answer, and what it writes with the answer.

    Raises `InvalidInput` for a chat template that is missing or refuses the conversation.
    """
    system = [{"role": "system", "content": template.system}] if template.system else []
    turns = [*system, {"role": "user", "content": prompt}]
    try:
        # Templates that can have a model think before it answers are told not to: these answers
        # come without thoughts.
        options: dict[str, Any] = {"tokenize": False, "enable_thinking": False}
        options |= {"chat_template": _dated(str(tokenizer.get_chat_template()), template.date)}
        options |= {"date_string": template.date} if template.date else {}
        before = tokenizer.apply_chat_template(turns, add_generation_prompt=True, **options)
        whole = tokenizer.apply_chat_template(
            [*turns, {"role": "assistant", "content": answer}], **options
        )
    # A template is a program of somebody else's, in which anything can go wrong.
    except Exception as error:
        reason = first_line(error)[:LONGEST]
        raise InvalidInput(
            "template", "chat", f"one that this tokenizer has a chat template for ({reason})"
        ) from error
    return str(before), str(whole)


def _dated(written: str, date: str) -> str:
    """Return the chat template with a fixed day in place of today's, for which some templates ask.

    A score must not depend on the day.
    """
    if not date or TODAY not in written:
        return written
    forms = set(re.findall(TODAY + r"\(\s*['\"](.*?)['\"]\s*\)", written))
    try:
        days = {form: datetime.strptime(date, "%d %b %Y").strftime(form) for form in forms}
    except ValueError:
        days = {}
    # A macro of this name takes precedence over the function.
    value = f"{{{{ {days!r}.get(form, {date!r}) }}}}"
    return f"{{%- macro {TODAY}(form) -%}}{value}{{%- endmacro -%}}{written}"


def answer_in(
    before: str, whole: str, answer: str, marks: Collection[str]
) -> tuple[str, str | None]:
    """Return the conversation from the prompt's end through the token that ends the turn.

    Also returned is that token. It is None if no token ends the turn. Raises `InvalidInput` if the
    template writes anything else than a prompt, its answer and one token that ends it.
    """
    beyond = whole[len(before) :]
    place = beyond.find(answer)
    lead, tail = beyond[: max(place, 0)].strip(), beyond[place + len(answer) :]
    # The mark that comes first; of those that begin at its place, the longest.
    until, _, end = min(
        ((tail.find(mark), -len(mark), mark) for mark in marks if mark in tail),
        default=(None, 0, None),
    )
    rest = tail[:until].strip()
    odd = {
        f"does not go on from its own prompt, ...{before[-30:]!r}": not whole.startswith(before),
        f"writes the answer {answer!r} in another way": place < 0,
        f"writes {lead!r} before an answer": bool(lead),
        f"writes {rest!r} after an answer": bool(rest),
    }
    first = next((what for what, is_so in odd.items() if is_so), "")
    allowed = f"one that writes a prompt, its answer and one token that ends it (this {first})"
    require(not first, "template", "chat", allowed)
    through = place + len(answer)
    return (
        (beyond[:through], None)
        if end is None
        else (beyond[: through + (until or 0) + len(end)], end)
    )
