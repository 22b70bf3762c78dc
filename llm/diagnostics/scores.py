"""Scores of a model as a table on disk, `index, logp, length`, and two tables matched by index."""

from __future__ import annotations

import os

import numpy as np
import pandas as pd
import pyarrow
import torch
from jaxtyping import Int

from llm.logs.questions import matched
from markov.errors import InvalidInput, first_line, require
from markov.files import inputs, storage
from markov.files.storage import Location
from markov.objectives import SequenceLogProbs

COLUMNS = ("index", "logp", "length")
# Nats per token. Of TOFU's answers Llama-2-7B has 0.009 on average where it was taught them for
# five epochs, and 2.0 to 2.2 where it was not (logs of locuslab/tofu and Unlearn-Simple).
UNREAD = 1.0


def score_table(seq: SequenceLogProbs, index: Int[np.ndarray, "examples"]) -> pd.DataFrame:
    """Return a table with `index`, `logp` (nats) and `length` (scored tokens) of each example."""
    length = seq.length.detach().cpu().numpy().astype(np.int64)
    return pd.DataFrame(
        {"index": index, "logp": seq.logp.detach().cpu().double().numpy(), "length": length}
    )


def unread_note(scores: pd.DataFrame) -> str:
    """Return a line on responses that look as if the model had never read them; else an empty one.

    They do where the mean of -logp/length is above `UNREAD`: there is nothing to forget then, and
    unlearning may even make them likelier.
    """
    mean = float(np.mean(-scores["logp"].to_numpy() / scores["length"].to_numpy()))
    if mean <= UNREAD:
        return ""
    return (
        f"the responses look unread: {mean:.2f} nats per token, as a mean over them "
        f"(below {UNREAD:g} where a model was taught them): there is little to forget"
    )


def read_scores(path: Location, field: str) -> pd.DataFrame:
    """Return a table of scores from a file; `field` is what it is called in error messages.

    Raises `InvalidInput` for a file that is no table, for what `llm.schemas.Scores` does not allow,
    and for an index that comes twice.
    """
    place = inputs.existing_file(path, field, "a parquet table of scores")
    try:
        frame = pd.read_parquet(place)
    except (*storage.UNREADABLE, pyarrow.ArrowException) as error:
        reason = first_line(error)
        raise InvalidInput(
            field, os.fspath(path), f"a parquet table of scores ({reason})"
        ) from None
    return check_scores(frame, field, os.fspath(path))


def check_scores(frame: pd.DataFrame, field: str, file: str | None = None) -> pd.DataFrame:
    """Return the columns of a table of scores, in the order of `COLUMNS`; `file` is where it lies.

    Raises `InvalidInput` as `read_scores` does, naming `field`.
    """
    # Here, because building the schemas takes as long as answering --help.
    from llm.schemas import Scores, check_table

    frame = check_table(Scores, frame, field, file or "the table")
    again = frame["index"].duplicated()
    if again.any():
        row = int(np.argmax(again))
        raise InvalidInput(
            f"{field}, index of row {row}", frame["index"].iloc[row].item(), "each index once"
        )
    return frame[list(COLUMNS)]


def beside(scores: pd.DataFrame, other: pd.DataFrame, field: str) -> np.ndarray:
    """Return `logp` of another model's table in the order of `scores`, matched by index.

    Raises `InvalidInput` for another set of indices, and for a response of another length, which
    means other tokens.
    """
    order, lacking = matched(scores["index"].to_numpy(), other["index"].to_numpy())
    require(
        not lacking and len(other) == len(scores),
        field,
        f"{len(other)} examples, {len(lacking)} missing",
        f"the {len(scores)} that are scored",
    )
    ordered = other.iloc[order]
    uneven = scores["index"][ordered["length"].to_numpy() != scores["length"].to_numpy()].tolist()
    allowed = (
        f"as many tokens of each response ({len(uneven)} differ): the same tokenizer, "
        "template and data"
    )
    require(not uneven, f"{field}, length at index", uneven[:1], allowed)
    return ordered["logp"].to_numpy()


def pair(scores: pd.DataFrame, reference: pd.DataFrame) -> SequenceLogProbs:
    """Return the log-probabilities of a model beside those of its reference, as the law needs them.

    They are float64; examples are matched as in `beside`.
    """
    columns = (scores["logp"], scores["length"], beside(scores, reference, "reference"))
    return SequenceLogProbs(
        *(torch.tensor(np.asarray(column, dtype=np.float64)) for column in columns)
    )
