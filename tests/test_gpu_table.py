"""What is told of a GPU is what its frames say. They are kept, since most machines have none."""

from __future__ import annotations

import re

import pandas as pd
import pytest

from tests.benchmarks.gpu.rows import number
from tests.test_readme import FINDINGS, ROOT, told

KEPT = ROOT / "figures" / "gallery" / "gpu"
H200 = pd.read_csv(KEPT / "h200.csv", keep_default_na=False).set_index("what")
SECTION = FINDINGS.split("### On a GPU\n")[1].split("\n### ")[0]


def value(what: str) -> float:
    return float(str(H200.loc[what, "value"]))


def test_every_row_of_both_tables_is_one_of_the_frame():
    told = re.findall(r"^\| (.*) \| (.*\d.*) \|$", SECTION, re.MULTILINE)
    assert len(told) == 29
    for what, cell in told:
        assert cell == f"{number(value(what))} {H200.loc[what, 'unit']}".strip(), what


def test_bounds_hold_but_for_the_one_that_is_told():
    failed = H200.index[H200["verdict"] == "does not hold"].tolist()
    assert failed == ["peak of scoring, float32, a random 1B Llama"]
    (peak, planned) = told("the peak was # GB where # were planned")
    assert peak == float(number(value(failed[0])))
    assert str(H200.loc[failed[0], "bound"]).endswith(f"planned {planned}")
    # All that is too much is the table of embeddings, 128,256 words by 2,048, in four bytes.
    assert peak - 4 * 128256 * 2048 / 1e9 < planned


def test_what_is_said_of_speed_is_so():
    runs = [value(f"{count} runs, 50 steps, all recorded") for count in (1, 100, 1000)]
    assert runs[1] < 1.3 * runs[0]
    alone = value("products of 1000 runs, 50 steps, all recorded")
    assert runs[2] / alone == pytest.approx(7, abs=0.5)
    small = "unlearning, a random 135M Llama, products in {}, batches of 16"
    assert value(small.format("bfloat16")) < value(small.format("float32"))


def test_models_that_learnt_on_a_gpu_know_what_the_processor_s_knows():
    five = pd.read_csv(KEPT / "h200_originals.csv")
    low, high = told("answers to forget is # to #, and the processor's model")
    found = five["forget_probability"]
    assert len(five) == 5 and (low, high) == (round(found.min(), 3), round(found.max(), 3))
    (there,) = told("answers to forget is #, and lower by")
    assert there == high
