"""Which kinds of each small model there are, by what they read of what is to be forgotten."""

from __future__ import annotations

from typing import Literal, get_args

# all of it, nothing, half of it and that unevenly
OfAuthors = Literal["original", "retrained", "partial"]
OfNews = Literal["original", "retrained"]  # all of it, nothing
AUTHORS, NEWS = get_args(OfAuthors), get_args(OfNews)
