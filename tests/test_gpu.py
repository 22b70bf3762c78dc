"""The script behind `make gpu`: its arithmetic, what it says of failures, and all of it on tiny
models on the processor.
"""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from llm.models.language_model import LanguageModel
from llm.models.saving import save
from llm.scoring.templates import PLAIN
from markov.errors import InvalidInput
from markov.files.storage import read_table
from tests.benchmarks.gpu import bench, card, chains, memory, needs, steps, subjects
from tests.benchmarks.gpu.agreement import differences
from tests.benchmarks.gpu.rows import FAILS, HOLDS, NOT_MEASURED, SEEN, Bound, Row, Table
from tests.llm.scoring.test_encoding import by_bytes

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "tests" / "benchmarks" / "gpu"
CPU = torch.device("cpu")
NUMBERS = st.floats(-1e6, 1e6)


def tried(*options: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """The script as it is started, after some statements."""
    code = f"import runpy, sys\n{before}\nsys.argv = [*{[str(SCRIPT), *options]}]\n"
    code += "sys.path.insert(0, '')\nrunpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def llama(shape: dict[str, Any] = subjects.TINY) -> Any:
    return subjects.random_llama(subjects.config_of(shape), torch.float32, CPU)


# --- verdicts and the table ---


@given(NUMBERS, NUMBERS, NUMBERS)
def test_a_bound_holds_from_end_to_end_and_nowhere_else(value: float, one: float, two: float):
    least, most = sorted((one, two))
    inside = least <= value <= most
    assert Bound(least=least, most=most).verdict(value) == (HOLDS if inside else FAILS)
    assert Bound(most=most).verdict(value) == (HOLDS if value <= most else FAILS)
    assert Bound(least=least).verdict(value) == (HOLDS if value >= least else FAILS)


def test_what_is_not_a_number_or_not_there_holds_no_bound():
    assert Bound(least=0.0, most=1.0).verdict(math.nan) == FAILS
    assert Bound(most=1.0).verdict(None) == Bound().verdict(None) == NOT_MEASURED
    assert Bound().verdict(7.0) == SEEN
    assert Row(what="x", bound=Bound(most=1.0), reason="why").verdict == "not measured: why"


def test_every_row_is_in_all_three_files_as_soon_as_it_is_there(tmp_path: Path):
    table = Table(tmp_path, {"card": "one|two"})
    rows = [
        Row(what="a|b", value=12345.6, unit="GB", bound=Bound(least=1.0, note="planned 2")),
        Row(what="c", reason="out of memory"),
    ]
    for count, row in enumerate(rows, start=1):
        table.add(row, 1.25)
        known = json.loads((tmp_path / "gpu.json").read_text())
        frame = read_table(tmp_path / "gpu.parquet")
        page = (tmp_path / "gpu.md").read_text()
        assert len(known["rows"]) == len(frame) == count and known["card"] == "one|two"
        assert frame.attrs["provenance"]["card"] == "one|two"
        lines = [line for line in page.splitlines() if line.startswith("|")]
        assert len(lines) == 2 + count and len({line.count("|") for line in lines}) == 1
    assert known["rows"][1]["value"] is None and math.isnan(frame["value"][1])
    assert "| a/b | 12,346 | GB | at least 1; planned 2 | holds |" in page


# --- arithmetic ---


def test_differences_are_relative_to_the_true_numbers():
    true, found = torch.tensor([-10.0, -90.0]), torch.tensor([-11.0, -89.5])
    mean, most = differences(found, true)
    assert (mean, most) == pytest.approx((0.005, 0.1))
    assert differences(true, true) == (0, 0)


@pytest.mark.parametrize("tied", [True, False])
def test_the_parameters_that_are_multiplied_are_those_of_torchs_own_count(tied: bool):
    """Beside the operations that torch counts in a real pass, without those of attention."""
    from torch.utils.flop_counter import FlopCounterMode

    model = llama({**subjects.TINY, "tie_word_embeddings": tied})
    size, tokens = card.sizes(model), torch.arange(3, 43)[None]
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        model(tokens, use_cache=False)
    kinds = counted.get_flop_counts()["Global"]
    real = sum(count for kind, count in kinds.items() if "attention" not in str(kind))
    # The scales of normalisation are parameters too, but make no product.
    assert card.operations(size, 40, 40) == pytest.approx(real, rel=0.05)
    assert card.operations(size, 40, 40) >= real


@given(*(st.integers(1, 10**9) for _ in range(3)), st.data())
def test_work_is_counted_by_layers_and_head(layers: int, head: int, tokens: int, data: Any):
    size, scored = card.Sizes(layers, head), data.draw(st.integers(0, tokens))
    forward = card.operations(size, tokens, scored)
    assert forward == pytest.approx(2 * (layers * tokens + head * scored))
    assert card.operations(size, tokens, scored, trained=True) == 3 * forward
    rest = 2.0 * layers * tokens / forward
    assert card.head_share(size, tokens, scored) == pytest.approx(1 - rest, abs=1e-9)


def test_the_product_rate_is_that_of_the_clock(monkeypatch: pytest.MonkeyPatch):
    made: list[int] = []

    def seconds(call: Callable[[], list[Any]], _: torch.device) -> float:
        made.append(len(call()))
        return made[-1] * 0.01  # a hundredth of a second for each product

    monkeypatch.setattr(card, "seconds", seconds)
    assert card.product_rate(CPU, torch.float32, 8) == pytest.approx(2 * 8**3 / 0.01)
    assert made[-1] * 0.01 >= card.LEAST


def test_the_peak_is_what_was_held_at_once():
    with card.peak(CPU) as found:
        one = torch.zeros(1000)
        two = one + 1
        del one
        three = two + 1
        del two, three
    assert found.bytes == 8000


def test_the_models_have_the_sizes_that_they_are_named_by():
    for shape, count in (
        (subjects.SMALL, 134.5e6),
        (subjects.ONE, 1.236e9),
        (subjects.SEVEN, 6.738e9),
    ):
        planner = subjects.planner_of(subjects.config_of(shape))
        assert planner.count() == pytest.approx(count, rel=1e-3)


def test_random_models_are_made_in_their_dtype_and_change_no_random_numbers():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    config = subjects.config_of(subjects.TINY)
    one, two = (subjects.random_llama(config, torch.bfloat16, CPU) for _ in range(2))
    assert torch.equal(torch.rand(2), expected) and torch.get_default_dtype() == torch.float32
    assert {p.dtype for p in one.parameters()} == {torch.bfloat16}
    pairs = zip(one.parameters(), two.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert any(bool((p != 0).any() and (p != 1).any()) for p in one.parameters())


def test_answers_have_the_lengths_that_are_asked_for():
    made = subjects.made_answers(9, 300, 6, 20, seed=0)
    assert [len(made[0].tokens), len(made[-1].tokens)] == [6, 20]
    assert subjects.tokens_of(made)[0] == sum(len(one.tokens) for one in made)
    assert made == subjects.made_answers(9, 300, 6, 20, seed=0)
    assert made != subjects.made_answers(9, 300, 6, 20, seed=1)
    full = memory.full_rows(3, 64, 300)
    assert subjects.tokens_of(full) == (3 * 64, 3 * 63)


# --- failures ---


def test_a_measurement_that_fails_leaves_what_it_had_and_says_why():
    def rows() -> Iterator[Row]:
        yield Row(what="first", value=1.0)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    first, second = bench.guarded("all", rows)
    assert first.value == 1.0 and second.verdict == "not measured: out of memory"

    def refused() -> Iterator[Row]:
        raise InvalidInput("model", "x", "a folder")
        yield

    (only,) = bench.guarded("all", refused)
    assert only.what == "all" and only.reason == "model = 'x' is not allowed: a folder"


def test_the_end_of_time_is_no_failure_of_a_measurement():
    def rows() -> Iterator[Row]:
        raise bench.OutOfTime
        yield

    with pytest.raises(bench.OutOfTime):
        list(bench.guarded("all", rows))


def test_what_is_missing_is_said_in_one_line_with_pins_and_never_torch():
    pins = "pandas==3.1.1\ntorch==2.13.0\n"
    told = needs.advice(["pandas", "odd-one"], pins)
    assert told.endswith("-m pip install --no-deps pandas==3.1.1 odd-one") and "\n" not in told
    assert "install" not in needs.advice(["torch", "pandas"], pins)
    assert needs.missing({"json": "json", "no_such_module_at_all": "that"}) == ["that"]
    assert needs.refusal({"json": "json"}) is None


def test_all_that_a_study_needs_is_asked_for():
    from tests.test_imports import PACKAGES, graph_of, reached, texts

    libraries = {
        name
        for name in reached(graph_of(texts()), "llm.__main__")
        if name.split(".")[0] not in (*PACKAGES, *sys.stdlib_module_names)
    }
    # Of a model or data of some kind alone, a terminal, or a cluster.
    left_out = {"IPython", "datasets", "gguf", "dask", "distributed", "ray"}
    assert libraries - left_out <= needs.STUDY.keys() and left_out <= libraries
    assert needs.NEEDED.items() <= needs.STUDY.items()


def required(packages: Iterable[str]) -> set[str]:
    """Packages with all that they need, and what this needs in turn."""
    found, left = set[str](), list(packages)
    while left:
        name = canonicalize_name(left.pop())
        if name not in found:
            found.add(name)
            wanted = [Requirement(one) for one in requires(name) or []]
            left += [
                one.name
                for one in wanted
                if one.marker is None or one.marker.evaluate({"extra": ""})
            ]
    return found


@pytest.mark.parametrize("asked", [needs.NEEDED, needs.CHAINS, needs.STUDY])
def test_what_the_packages_need_themselves_is_asked_for(asked: dict[str, str]):
    """What torch, transformers and the tools that draw need comes with them."""
    there = required([*needs.OWN, "accelerate", "peft", "pandas", "matplotlib", "seaborn"])
    lacking = required(asked.values()) - there - {canonicalize_name(one) for one in asked.values()}
    assert not lacking


# --- the whole script ---


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pretrained model, in a folder."""
    tokenizer = by_bytes(words=True)
    torch.manual_seed(0)
    shape = {**subjects.TINY, "vocab_size": len(tokenizer)}
    config = transformers.LlamaConfig(**subjects.COMMON, **shape)
    language = LanguageModel(transformers.LlamaForCausalLM(config), tokenizer, PLAIN, "tiny")
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save(language, folder, {"seed": 0})
    return folder


@pytest.mark.slow
def test_the_whole_script_on_tiny_models_without_what_it_does_not_ask_for(
    model: Path, tmp_path: Path
):
    """Packages that a machine with a GPU may lack are taken away, and another one called tests is
    put in the way.
    """
    declared = ("tyro", "rouge_score", "nltk", "datasets", "gguf", "joblib")
    (tmp_path / "site" / "tests").mkdir(parents=True)
    (tmp_path / "site" / "tests" / "__init__.py").write_text("raise ImportError('not ours')")
    before = f"sys.modules.update(dict.fromkeys({declared}))\n"
    before += f"sys.path.append({str(tmp_path / 'site')!r})"
    options = ("--device", "cpu", "--quick", "--model", str(model), "--out", str(tmp_path / "out"))
    done = tried(*options, before=before)
    assert done.stderr == "" and done.returncode in (0, 1), done.stderr
    frame = read_table(tmp_path / "out" / "gpu.parquet")
    failed = frame[frame["verdict"] == FAILS]
    assert {HOLDS, SEEN} <= set(frame["verdict"]) <= {HOLDS, SEEN, FAILS}, frame[
        "verdict"
    ].to_list()
    # How near the plan comes to models as tiny as these is for tests of the plan.
    assert failed["bound"].str.contains("planned").all() and done.returncode == (len(failed) > 0)
    planned = frame[frame["bound"].str.contains("planned")]
    ratios = planned["value"] / planned["bound"].str.split("planned ").str[1].astype(float)
    assert len(planned) == 4 and ratios.between(0.8, 1.25).all(), planned.to_string()
    assert frame["what"].is_unique and frame["value"].gt(0).any()
    share = frame[frame["unit"] == "%"]
    speed = frame[frame["unit"] == "tokens/s"]
    names = (
        speed["what"][~speed["what"].str.startswith("training of")] + ": share of the product rate"
    )
    assert set(share["what"]) == set(names) and len(share) == 2 * (2 * 2 + 2)
    kinds = ("products of", "scores in", "scoring, tiny", "unlearning, tiny", "peak of training")
    assert all(frame["what"].str.startswith(kind).any() for kind in kinds)
    known = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert known["torch"] == torch.__version__ and known["card"] == "the processor"
    assert pd.DataFrame(known["rows"])["what"].tolist() == frame["what"].tolist()


@pytest.mark.slow
def test_the_script_of_chains_on_small_models(tmp_path: Path):
    options = ("--chains", "--device", "cpu", "--quick", "--out", str(tmp_path / "out"))
    done = tried(*options, before="sys.modules.update(dict.fromkeys(('tyro', 'matplotlib')))")
    assert done.stderr == "" and done.returncode == 0, done.stderr
    frame = read_table(tmp_path / "out" / "gpu.parquet").set_index("what")
    assert set(frame["verdict"]) == {HOLDS, SEEN} and frame.index.is_unique
    compared = frame[frame.index.str.contains("beside the processor's")]
    assert len(compared) == 5 and (compared["value"] == 0).all()  # it is the processor
    learnt = frame[frame.index.str.startswith("distance of that model")]
    assert len(learnt) == 3
    for note, value in zip(learnt["bound"], learnt["value"], strict=True):
        assert float(str(note).split()[-1]) == pytest.approx(float(value), rel=1e-3)
    values = {str(what): float(value) for what, value in frame["value"].items()}
    runs = "8 runs, 3 steps, all recorded"
    assert values["runs per hour"] == pytest.approx(8 * 3600 / values[runs])
    assert 0 < values[f"products of {runs}"] < values[runs] and values[f"memory of {runs}"] > 0


def test_the_models_of_chains_are_kept_where_a_folder_is_named(tmp_path: Path):
    asked = bench.Bench(CPU, "", "", subjects.QUICK, tmp_path)
    with chains.started(asked) as folder:
        assert folder == tmp_path
    kept = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*.safetensors")}
    with chains.started(asked):
        assert len(kept) == 2
        assert {file: file.stat().st_mtime_ns for file in tmp_path.glob("*.safetensors")} == kept


def test_the_peak_of_a_model_leaves_out_how_it_was_made(monkeypatch: pytest.MonkeyPatch):
    """A tied head is made beside the table that takes its place: that is not held in the work."""
    wasteful = subjects.random_llama

    def made(*arguments: Any) -> Any:
        torch.zeros(10**7)
        return wasteful(*arguments)

    asked = bench.Bench(CPU, "", "", subjects.QUICK)
    plain = [row.value for row in memory.plans(asked)]
    monkeypatch.setattr(memory, "random_llama", made)
    assert [row.value for row in memory.plans(asked)] == plain


def test_a_part_is_ended_by_the_clock_and_those_behind_it_are_rows_too(tmp_path: Path):
    def long(_: bench.Bench) -> Iterator[Row]:
        yield Row(what="kept", value=1.0)
        try:
            time.sleep(60)
        except Exception:  # as libraries do
            yield Row(what="never", value=1.0)

    def broken(_: bench.Bench) -> Iterator[Row]:
        raise RuntimeError("no kernel\nimage")
        yield

    def quick(_: bench.Bench) -> Iterator[Row]:
        yield Row(what="never begun")

    parts = [steps.Step(call.__name__, 0, call) for call in (broken, long)]
    table = Table(tmp_path, {})
    table.write()  # what it imports takes time
    began = time.monotonic()
    # Long enough for what comes before the wait, on a machine that does much else.
    steps.work(bench.Bench(CPU, "", ""), table, 0.15, [*parts, steps.Step("quick", 2, quick)])
    assert time.monotonic() - began < 30
    assert dict(zip(table.frame["what"], table.frame["verdict"], strict=True)) == {
        "broken": "not measured: RuntimeError: no kernel",
        "kept": "measured",
        "long": "not measured: no time left of 0.15 minutes",
        "quick": "not measured: no time left of 0.15 minutes",
    }
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_without_a_gpu_or_packages_it_refuses_in_one_line(tmp_path: Path):
    out = ("--out", str(tmp_path / "out"))
    lacking = tried(*out, before="sys.modules['peft'] = None")
    assert lacking.returncode == 2 and lacking.stderr.count("\n") == 1
    assert "pip install --no-deps peft==" in lacking.stderr
    if not torch.cuda.is_available():
        bare = tried(*out)
        assert bare.returncode == 2 and bare.stderr.count("\n") == 1 and "no GPU" in bare.stderr
    assert not (tmp_path / "out").exists()


def test_the_real_study_takes_both_splits_of_the_data_that_it_is_given():
    command = ["make", "--dry-run", "gpu-real", "DATA=data/forget05", "PYTHON=python3.12"]
    plan = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    assert "python3.12 tests/benchmarks/gpu/needs.py study" in plan
    assert "for data in data/forget05 data/forget10;" in plan and "pip" not in plan
    # The seeds side by side, and then once more with all of them, which makes what is left.
    aside, whole = plan.split("wait;")
    assert "--seeds $seed --no-draw & done" in aside and "--seeds 0 1 2 3 4 ||" in whole
