"""The pages for those who use or teach: their commands, columns, sums and sections are the code's.

Nothing is built here, so that a change is told of in seconds.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from transformers import LlamaConfig

pytest.importorskip("sphinx", reason="the notebooks' packages are missing")

from llm.__main__ import parse
from llm.data.splits import retain_word
from llm.diagnostics.weights import COLUMNS
from llm.evaluation.knowledge import COUNTS
from llm.evaluation.relearning import returns
from llm.jobs.knowing import COLUMNS as COLUMNS_KNOWN
from llm.logs.log import MEMORISED, Answers, EvaluationLog
from llm.logs.measures import TofuLogs, measures
from llm.logs.summaries import best
from llm.models.answers import log_table
from llm.models.size import skeleton
from llm.schemas import Answered, ByEpoch, ByRelearning, Epochs, Memorised, Scores
from llm.sweeps.sweep import PlannedRun, _described
from llm.training.adapters import Lora
from llm.training.loop import Optimization
from llm.training.memory import gigabytes
from llm.training.plan import Planner, Work
from llm.training.rehearsal import Way
from llm.unlearning.methods import method
from markov import __main__ as chains

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "notebooks"
# The sizes of models that the page plans for.
LLAMAS = {
    "SmolLM2-135M": LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    ),
    "Llama-3.2-1B": LlamaConfig(
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=True,
    ),
    "Llama-3.2-3B": LlamaConfig(
        vocab_size=128256,
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=28,
        num_attention_heads=24,
        num_key_value_heads=8,
        tie_word_embeddings=True,
    ),
    "Llama-2-7B": LlamaConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
    ),
}
NEW = ("your_model", "more_cores", "class_plan", "cheat_sheet")
WORDS = 30  # of a sentence


@pytest.fixture(scope="module")
def teaching() -> ModuleType:
    spec = importlib.util.spec_from_file_location("teaching", SOURCES / "teaching.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def page(name: str) -> str:
    return (SOURCES / f"{name}.md").read_text("utf-8")


def rows(text: str) -> list[list[str]]:
    """The rows of a table of Markdown, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def section(text: str, title: str) -> str:
    """What stands under a heading, up to the next one."""
    return re.split(r"^#+ .*\n", text.split(f"# {title}\n", 1)[1], maxsplit=1, flags=re.M)[0]


def notebook(number: str, kind: str) -> str:
    cells = json.loads(next(SOURCES.glob(f"{number}_*.ipynb")).read_text("utf-8"))["cells"]
    return "\n\n".join("".join(one["source"]) for one in cells if one["cell_type"] == kind)


def some_log() -> EvaluationLog:
    """Losses of ten examples, with wrong answers."""
    draw = np.random.default_rng(0)
    gold, wrong = draw.uniform(1, 3, 10), draw.uniform(1, 3, (10, 2))
    own, other, bad = (
        Answers(one, one * 4, np.full(one.shape, 4.0)) for one in (gold, gold + 1, wrong)
    )
    log = EvaluationLog("a log", "none", np.arange(10), own, other, bad)
    return log._replace(memorised={name: draw.uniform(size=10) for name in MEMORISED})


def columns() -> dict[str, set[Any]]:
    """The columns of every table by its name, from the schemas and from what the code makes."""
    measured = set(measures(TofuLogs()))
    log = some_log()
    attack = log_table(log).assign(epoch=0, relearned=lambda frame: frame["index"] < 2)
    named = {"which", "repeat"}
    steps = Optimization(epochs=1, batch=1, learning_rate=1e-3)
    run = PlannedRun(method=method("simnpo:4.5@0.125"), optimization=steps)
    tried = pd.DataFrame(
        {"title": ["original"] * 3, "model": ["original"] * 3, "value": [0.5] * 3}
        | {"measure": ["ks_statistic", "extraction_strength", "model_utility"]}
        | {"task": ["forget", "forget", "all"]}
    )
    return {
        "memorised": set(Memorised.model_fields),
        "known": set(COLUMNS_KNOWN),
        "counts": set(COUNTS),
        "scores": {*Scores.model_fields, "gradient_norm"},
        "weights": {*COLUMNS, "weight_NAME"},
        "examples": set(ByEpoch.model_fields),
        "epochs": set(Epochs.model_fields),
        "answers": {*Answered.model_fields, "model"},
        "measures": measured,
        "relearning": {*ByRelearning.model_fields, *named},
        "relearning_returns": {*returns(attack, log), *named},
        "sweep": measured | {"model", "status"} | set(_described(run)),
        "best": set(best(tried)),
    }


def test_your_model_names_the_columns_of_every_table_with_meaning_and_unit():
    text = page("your_model")
    known = columns()
    assert re.findall(r"^### `(\w+)`$", text, re.M) == list(known)
    for name, wanted in known.items():
        told = rows(section(text, f"`{name}`"))
        assert sorted(row[0].strip("`") for row in told) == sorted(wanted), name
        assert all(len(row) == 3 and row[1] for row in told), name
        log_probabilities = [row for row in told if re.fullmatch(r"`(\w+_)?logp`|`ref`", row[0])]
        assert all(row[2].startswith("nats") for row in log_probabilities)


def test_optional_columns_are_marked_and_required_ones_are_not():
    for name, schema in {"examples": ByEpoch, "epochs": Epochs}.items():
        for cell, meaning, _ in rows(section(page("your_model"), f"`{name}`")):
            field = schema.model_fields[cell.strip("`")]
            marked = "*if asked*" in meaning
            # Tables of earlier versions may lack forget_nll, those that are written now have it.
            assert marked == (not field.is_required() and cell != "`forget_nll`"), cell


def test_the_commands_of_your_model_are_taken_by_the_program_in_their_order():
    text = page("your_model").replace("\\\n", " ")
    asked = [shlex.split(line)[3:] for line in re.findall(r"^python -m llm .*", text, re.M)]
    order = [
        "build",
        "finetune",
        "finetune",
        "study",
        "score",
        "score",
        "weights",
        "unlearn",
        "evaluate",
        "relearn",
        "sweep",
        "known",
        "unlearn",
        "evaluate",
        "known",
    ]
    assert [one[0] for one in asked] == order
    assert all(type(parse(one)).__name__.lower() == one[0] for one in asked)
    blocks = re.findall(r"```text\n(.*?)```", page("your_model"), re.S)
    assert blocks and all(len(line) <= 80 for block in blocks for line in block.splitlines())
    assert retain_word("data/forget10") == "data/retain90"


def test_the_commands_of_more_cores_are_taken_by_the_programs():
    text = page("more_cores").replace("\\\n", " ").replace("$SLURM_ARRAY_TASK_ID", "3")
    lines = re.findall(r"^python -m (markov|llm) (.*)", text, re.M)
    assert len(lines) == 11
    asked = []
    for program, words in lines:
        if program == "llm":
            asked.append(parse(shlex.split(words)))
        else:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(chains, "main", asked.append)
                assert chains.cli(shlex.split(words)) == 0
    assert [one.part for one in asked if one.part] == ["3/4", "3/10", "0/3"]
    assert [one.backend for one in asked if one.scheduler] == ["dask", "ray"]
    collected = [number for number, one in enumerate(asked) if one.collect]
    # What is collected is what a part was made of.
    changed = ({**vars(asked[number]), "part": None} for number in collected)
    there = [{**vars(one), "part": None, "collect": True} for one in asked if one.part]
    assert len(collected) == 2 and all(one in there for one in changed)


def planned(config: Any) -> list[str]:
    """What a row of the table of memory has to say of a model."""
    own = Planner(lambda dtype: skeleton(config, dtype))
    training, scoring = own.plan(Work(way=Way())), own.plan(Work())
    narrow = Work(way=Way(gradient_checkpointing=True, lora=Lora()), dtype="bfloat16")
    parts = [training.parts[name] for name in ("parameters", "gradients", "moments")]
    parts += [training.activations, training.logits, training.total]
    parts += [scoring.total, own.plan(narrow).total, training.state + scoring.parameters]
    return [f"{training.count / 1e9:.2f} billion", *map(gigabytes, parts)]


@pytest.mark.slow
def test_the_table_of_memory_and_disk_is_what_the_plan_says():
    told = {row[0]: row[1:] for row in rows(section(page("your_model"), "Memory and disk"))}
    assert told == {name: planned(config) for name, config in LLAMAS.items()}


def test_the_class_plan_fills_90_minutes_with_sections_and_views_that_are_there():
    plan = rows(section(page("class_plan"), "Minute by minute"))
    times = [tuple(map(int, row[0].split(" to "))) for row in plan]
    assert times[0][0] == 0 and times[-1][1] == 90
    assert all(end == start for (_, end), (start, _) in pairwise(times))
    assert all(start < end for start, end in times)
    for _, number, title, told in plan:
        headings = re.findall(r"^#+ (.*)$", notebook(number, "markdown"), re.M)
        assert any(one == title or one.startswith(f"{title}:") for one in headings), title
        for view in re.findall(r"`(\w+_view|player|Training)`", told):
            assert f"{view}(" in notebook(number, "code"), view
    shown = " ".join(row[3] for row in plan)
    questions = re.findall(r"^\*\*(\d)\. .*\?\*\*", page("class_plan"), re.M)
    assert questions and all(f"uestion {number}" in shown for number in questions)


def test_the_new_pages_are_in_short_sentences():
    for name in NEW:
        text = re.sub(r"```.*?```|^\|.*$|^#.*$", "\n\n", page(name), flags=re.S | re.M)
        for part in re.split(r"\n\n|\n(?=- |\d\. )", text):
            for sentence in re.split(r"(?<=[.?!])[*]*\s", " ".join(part.split())):
                assert len(sentence.split()) <= WORDS, (name, sentence)


def test_newcomers_find_the_new_pages():
    index, readme = page("index"), (ROOT / "README.md").read_text("utf-8")
    assert all(f"({name}.md)" in index for name in NEW)
    assert all(f"notebooks/{name}.md" in readme for name in NEW)


def test_make_lab_opens_the_tour():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    recipe = makefile.split("\nlab:", 1)[1].split("\n\n", 1)[0]
    opened = re.findall(r"jupyter lab (\S+)", recipe)
    assert opened == ["notebooks/00_tour.ipynb"] and (ROOT / opened[0]).is_file()


def test_minutes_are_summed_from_the_table_of_a_notebook(teaching: ModuleType):
    head = "| section | minutes, estimated |\n|---|---|\n"
    assert (
        teaching.minutes_of(f"{head}| A | three |\n| B | twenty-five, with more |\n| C | 4 |") == 32
    )
    with pytest.raises(Exception, match="no table of sections and minutes in 'no table"):
        teaching.minutes_of("no table, of five minutes")
    with pytest.raises(Exception, match="no number of minutes"):
        teaching.minutes_of(f"{head}| A | some |\n")
    listed = {row[0].partition("]")[0][1:]: int(row[2]) for row in rows(page("README"))}
    paths = SOURCES.glob("[0-9]*.ipynb")
    assert listed == {one.stem: teaching.minutes_of(teaching.prose_of(one)) for one in paths}


def test_prose_has_a_readable_width():
    css = (SOURCES / "_static" / "book.css").read_text("utf-8")
    width = re.search(r"article :is\(p, [^{]*\{ max-width: (\d+)em; \}", css)
    assert width and 33 <= int(width[1]) <= 40  # of 16 pixels: 65 to 75 characters
