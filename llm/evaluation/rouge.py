"""ROUGE, by the package rouge-score: how many words of one text another text has.

With L the length of the longest common subsequence of words (with `stemmer` without their endings),

    ROUGE-L recall     L / words of the truth
    ROUGE-L precision  L / words of the generation
    ROUGE-L F1         their harmonic mean

ROUGE-1 recall is the same as ROUGE-L recall with the number of common words, wherever they stand,
for L. TOFU takes recall, with the stemmer; MUSE takes F1, without. A generation of no words has 0
of everything.

What counts as a word is one of `WORDS`:

    latin   a run of the letters a to z and digits, in lower case. This is what rouge-score has, and
            with it every published number. It passes over all other letters: a text in Chinese has
            no words, so that its ROUGE is 0 even beside itself, and "Łódź" is the word "d".
    any     a run of letters, marks and digits of any script, in lower case; a character by itself
            in scripts that write no blanks between words. On texts of ASCII it is the same.
"""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float

from markov.errors import require

MEASURES = ("rouge1_recall", "rougeL_recall", "rougeL_f1")
Words = Literal["latin", "any"]
WORDS: tuple[str, ...] = get_args(Words)
TOLERATED = 0.05  # share of letters passed over without a warning, as in names with an accent
UNSPACED = ("Han", "Hiragana", "Katakana", "Thai", "Lao", "Khmer", "Myanmar", "Tibetan")


class PassedOver(NamedTuple):
    """What the words `latin` pass over in some texts.

    `texts` is the number of texts, `wordless` the number of those that have no word left, and
    `letters` the share of all letters and digits that is passed over.
    """

    texts: int
    wordless: int
    letters: float


def rouge(
    truths: Sequence[str], generations: Sequence[str], *, stemmer: bool = True, words: str = "latin"
) -> dict[str, Float[np.ndarray, "examples"]]:
    """Return `rouge1_recall`, `rougeL_recall` and `rougeL_f1` of each generation beside its truth.

    They are numbers in [0, 1]. Warns, in one line, where the words are `latin` and a truth has
    none, or more than a twentieth of the letters and digits of the truths are passed over. Raises
    `InvalidInput` for unequal counts and for other `words`.
    """
    # Imported here, because it takes a second that readers of logs need not wait.
    from rouge_score.rouge_scorer import RougeScorer

    count = len(truths)
    require(
        count == len(generations), "generations", len(generations), f"{count}, one for each truth"
    )
    scorer = RougeScorer(["rouge1", "rougeL"], tokenizer=_Tokenizer(words, stemmer))
    found = [
        scorer.score(target=truth, prediction=own)
        for truth, own in zip(truths, generations, strict=True)
    ]
    rows = [(one["rouge1"].recall, one["rougeL"].recall, one["rougeL"].fmeasure) for one in found]
    values = np.array(rows, dtype=float).reshape(len(rows), len(MEASURES))
    lost = passed_over(truths)
    if words == "latin" and (lost.wordless or lost.letters > TOLERATED):
        told = f"{lost.wordless} of {lost.texts} truths have no words of a to z and 0 to 9"
        rest = (
            f"{lost.letters:.0%} of all letters and digits are passed over; words `any` count "
            "every script"
        )
        warnings.warn(f"ROUGE: {told} and count as 0; {rest}", RuntimeWarning, stacklevel=2)
    return dict(zip(MEASURES, values.T, strict=True))


def check_words(words: str) -> None:
    """Raise `InvalidInput` for words that are not among `WORDS`."""
    require(words in WORDS, "words", words, f"one of {', '.join(WORDS)}")


def passed_over(texts: Sequence[str]) -> PassedOver:
    """Return what rouge-score passes over: texts without a word, and single letters.

    A text counts as wordless if it has letters or digits, but no word.
    """
    wordless, letters, lost = 0, 0, 0
    for text in texts:
        own = [character for character in text if character.isalnum()]
        known = sum(character.isascii() for character in own)
        letters, lost = letters + len(own), lost + len(own) - known
        wordless += bool(own) and not known
    return PassedOver(len(texts), wordless, lost / letters if letters else 0.0)


class _Tokenizer:
    """The tokenizer that rouge-score asks for: it gives the words of a text, in order."""

    def __init__(self, words: str, stemmer: bool) -> None:
        import regex
        from rouge_score.tokenizers import DefaultTokenizer

        check_words(words)
        self._default, self._any = DefaultTokenizer(stemmer), words == "any"
        unspaced = "".join(rf"\p{{Script={name}}}" for name in UNSPACED)
        pattern = rf"[{unspaced}]\p{{M}}*|[[\p{{L}}\p{{M}}\p{{N}}]--[{unspaced}]]+"
        self._pattern: Any = regex.compile(pattern, regex.VERSION1)

    def tokenize(self, text: str) -> list[str]:
        if not self._any:
            return self._default.tokenize(text)
        # Composed, since the same word may be written with separate accents.
        found = self._pattern.findall(unicodedata.normalize("NFC", text).lower())
        return [
            word
            for own in found
            for word in (self._default.tokenize(own) if own.isascii() else [own])
        ]
