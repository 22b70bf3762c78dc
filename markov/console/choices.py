"""The words that a setting of a run may be.

They stand apart from the code that acts on them, so that a command line can be read without torch.
"""

from __future__ import annotations

from typing import Literal

OptimizerName = Literal[
    "adamw_transformers", "adamw", "sgd", "adamw_transformers_matched", "sgd_matched"
]
RetainTerm = Literal["none", "cross_entropy", "kl"]
WeightingName = Literal["own", "magnitude", "allocation", "none"]
