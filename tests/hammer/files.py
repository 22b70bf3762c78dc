"""Files of every kind that is read, made by the commands themselves and then changed."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import llm
from markov.console.ending import exit_code
from tests.hammer.bases import Options, bases
from tests.hammer.cases import Case, noted, once
from tests.hammer.commands import words_of, wrong
from tests.hammer.mutating import (
    change_bit,
    change_bytes,
    change_gguf,
    change_json,
    change_scores,
    change_weights,
)
from tests.hammer.world import Box, make, once_made, program

Change = Callable[[Path, random.Random], tuple[str, bool]]


class Read(NamedTuple):
    """A file that an option of a command reads.

    `source` is what is copied from the shared folder, `inside` the file in it that is changed, if
    it is a folder, and `more` what the command is given besides.
    """

    base: str
    option: str
    source: str
    change: Change
    inside: str = ""
    more: Options = {}  # noqa: RUF012
    often: int = 2


MODEL = (
    ("config.json", change_json, 8),
    ("tokenizer.json", change_json, 4),
    ("tokenizer_config.json", change_json, 3),
    ("generation_config.json", change_json, 2),
    ("template.json", change_json, 3),
    ("provenance.json", change_json, 1),
    ("model.safetensors", change_weights, 4),
    ("model.safetensors.index.json", change_json, 3),
    ("adapter_config.json", change_json, 2),
    ("chat_template.jinja", change_bytes, 1),
    ("special_tokens_map.json", change_json, 1),
)
INDEX = '{"metadata": {"total_size": 1}, "weight_map": {"lm_head.weight": "model.safetensors"}}'
# What is not in a model folder that this project writes.
ADDED = {
    "model.safetensors.index.json": INDEX,
    "adapter_config.json": '{"peft_type": "LORA", "r": 8, "base_model_name_or_path": "../x"}',
    "chat_template.jinja": "{% for message in messages %}{{ message.content }}{% endfor %}",
    "special_tokens_map.json": '{"bos_token": "<s>", "eos_token": {"content": "</s>"}}',
}
RUNS: Options = {"names": ("llm_trajectories",)}
OF_A_RUN = (
    *(("epochs.parquet", change_bytes), ("examples.parquet", change_bytes)),
    *((".simnpo-lab.json", change_json), ("answers.parquet", change_bit)),
)
STUDY: Options = {"names": ("llm_study",)}
OF_A_STUDY = (
    *((".simnpo-lab.json", change_json), ("measures.parquet", change_bytes)),
    *(("measures.parquet", change_bit), ("attacks.parquet", change_bytes)),
)
READS = (
    Read("llm score", "data", "data/forget10.json", change_json, often=6),
    Read("llm unlearn", "retain_data", "data/retain90.json", change_json),
    Read("llm relearn", "data", "data/forget10.json", change_json),
    Read("llm finetune", "data", "data/forget10.json", change_json),
    Read("llm known", "data", "data/real_authors_perturbed.json", change_json),
    Read("llm evaluate", "data", "data", change_json, "forget10_perturbed.json"),
    Read("llm evaluate", "data", "data", change_json, "world_facts_perturbed.json"),
    Read("llm weights", "scores", "tables/model.parquet", change_scores, often=6),
    Read("llm weights", "reference", "tables/model.parquet", change_scores),
    Read("llm unlearn", "retrained", "tables/retrained.parquet", change_scores),
    Read("llm diagnose", "lengths", "tables/model.parquet", change_scores),
    Read("llm evaluate logs", "logs", "logs/model", change_json, "TOFU_EVAL.json", often=8),
    Read("llm evaluate logs", "retrained_logs", "logs/retrained", change_json, "TOFU_EVAL.json"),
    Read("llm diagnose", "logs", "logs/model", change_json, "TOFU_EVAL.json", often=4),
    Read("llm evaluate logs", "logs", "legacy/model", change_json, "eval_log_forget.json", often=6),
    Read("llm diagnose", "retrained_logs", "legacy/model", change_json, "eval_log_forget.json"),
    Read("llm unlearn", "refusals", "refusals.txt", change_bytes, more={"objective": ("dpo:0.1",)}),
    *(Read("llm score", "model", "model", how, name, often=often) for name, how, often in MODEL),
    *(Read("llm unlearn", "model", "model", how, name, often=1) for name, how, _ in MODEL[:3]),
    *(Read("llm evaluate", "retrained", "retrained", how, name, often=1) for name, how, _ in MODEL),
    Read("llm muse", "data", "muse", change_json, "raw/forget.json"),
    Read("llm muse", "data", "muse", change_json, "verbmem/forget.json"),
    Read("llm muse", "data", "muse", change_json, "knowmem/forget_qa_icl.json"),
    Read("llm score", "model", "gguf/model.gguf", change_gguf, often=6),
    *(Read("figures", "runs", "done/llm unlearn", how, name, RUNS) for name, how in OF_A_RUN),
    *(Read("figures", "study", "done/llm study", how, name, STUDY) for name, how in OF_A_STUDY),
)
# What has to be refused of any file is not what a file that may be left out has to be, or one that
# has no content of its own.
FREE = ("provenance.json", "generation_config.json", "chat_template.jinja", *ADDED)


def case(given: Path, rng: random.Random) -> Case:
    """A command that reads one file, which is changed."""
    if rng.random() < 0.15:
        return finished(given, rng)
    read = rng.choices(READS, [one.often for one in READS])[0]
    base, seed = bases(given)[read.base], rng.random()

    def act(box: Box):
        source, copy = source_of(given, read.source), box.work / "given" / Path(read.source).name
        copy.parent.mkdir()
        (shutil.copytree if source.is_dir() else shutil.copy)(source, copy)
        file = copy / read.inside if read.inside else copy
        if not file.exists():
            file.write_text(ADDED[file.name])
        how, refused = read.change(file, random.Random(seed))
        noted(box, f"{file.name}: {how}")
        options = {**base.options, **read.more, read.option: (_named(copy, read),)}
        words = words_of(base.command, options)
        check = partial(wrong, base=base, options=options)
        must = refused and file.name not in FREE
        return once(box, program(words), must_refuse=must, check=check)

    return Case("files", f"{read.base} --{read.option} {read.inside or read.source}", act)


def _named(copy: Path, read: Read) -> str:
    """What an option is given: a folder of data by its split."""
    split = read.option == "data" and read.source == "data"
    return str(copy / "forget10") if split else str(copy)


DONE = {
    "llm unlearn": (
        *(".simnpo-lab.json", "epochs.parquet", "examples.parquet", "answers.parquet"),
        *("model/config.json", "model/model.safetensors", "model/provenance.json"),
    ),
    "llm evaluate": (".simnpo-lab.json", "TOFU_EVAL.json", "TOFU_SUMMARY.json", "measures.parquet"),
    "llm finetune": (".simnpo-lab.json", "epochs.parquet", "memorised.parquet"),
    "llm sweep": (
        *(".simnpo-lab.json", "sweep.parquet", "original/TOFU_EVAL.json"),
        *("original/.simnpo-lab.json", "summary.parquet"),
    ),
    "llm muse": (".simnpo-lab.json", "measures.parquet", "items.parquet"),
    "llm known": (".simnpo-lab.json", "known.parquet", "counts.parquet"),
}


def finished(given: Path, rng: random.Random) -> Case:
    """A command whose result is there already, with one of its files changed; or a reader of it."""
    name = rng.choice(list(DONE))
    inside, base = rng.choice(DONE[name]), bases(given)[name]
    seed, reader = rng.random(), name == "llm unlearn" and rng.random() < 0.4

    def act(box: Box):
        shutil.copytree(done(given, name), box.work / "found")
        file = box.work / "found" / inside
        own = random.Random(seed)
        change = change_json if file.suffix in (".json", ".jsonl") else change_bytes
        how, _ = own.choices((change, change_bit), (3, 1))[0](file, own)
        noted(box, f"{inside}: {how}")
        check = partial(wrong, base=base, options=base.options)
        if reader:
            return once(box, lambda: exit_code(read_run))
        return once(box, program(words_of(base.command, base.options)), check=check)

    told = "llm.read_run" if reader else f"{name} again"
    return Case("files", f"{told}, after a change of {inside}", act)


def read_run() -> None:
    """Read a run as one does in Python, and print a table of it."""
    print(llm.read_run("found").epochs)


def source_of(given: Path, source: str) -> Path:
    """Return what lies in the shared folder under a name, which may have to be made first."""
    makers: dict[str, Callable[[Path], None]] = {
        "muse": _muse,
        "gguf": _gguf,
        "legacy": partial(_legacy, given),
    }
    name, _, rest = source.partition("/")
    if name == "done":
        return done(given, rest)
    if name in makers:
        once_made(given / name, makers[name])
    return given / source


def done(given: Path, name: str) -> Path:
    """Return the folder that a command has written and finished."""
    base = bases(given)[name]
    words = words_of(base.command, base.options)
    return once_made(given / "done" / name, partial(make, given, words)) / "found"


def _legacy(given: Path, place: Path) -> None:
    """Write the logs of a model in the layout of TOFU's released code alone."""
    options: Options = {**bases(given)["llm evaluate"].options, "legacy": ()}
    options.pop("retrained")
    make(given, words_of("llm evaluate", options), place)
    (place / "found").rename(place / "model")
    (place / "model" / "TOFU_EVAL.json").unlink()


def _gguf(place: Path) -> None:
    from tests.llm.models.test_gguf_files import tiny, written

    place.mkdir(parents=True, exist_ok=True)
    written(place / "model.gguf", tiny())


def _muse(place: Path) -> None:
    from llm.data.muse import news_data, write_muse
    from tests.llm.evaluation.test_muse import SMALL

    write_muse(news_data(SMALL.news), place)
