"""Several processes do what one does: uneven shares of work, one writer, one voice.

One test of several starts them as a user would, by torchrun, the others as copies of this process
(see `tests.llm.in_two`). All ask how many accelerate has joined: one that works alone would prove
nothing.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers

from llm.__main__ import ACTIONS, SPREAD, cli
from llm.data import tofu
from llm.data.authors.corpus import Authors, splits
from llm.models.finetuned import read_finetuned
from llm.models.language_model import LanguageModel
from llm.models.saving import save
from llm.models.source import load
from llm.ranks import place, started
from llm.scoring.encoding import Batch, encode_examples
from llm.scoring.logprobs import response_logprobs
from llm.scoring.templates import PLAIN
from llm.training import checkpointing, memorising, processes
from llm.training.fine_tuning import fine_tune
from llm.training.loop import Loop, Optimization, Term, looping
from llm.training.processes import in_first, in_one_voice
from llm.unlearning import unlearn as unlearning
from llm.unlearning.retaining import cross_entropy
from llm.unlearning.runs import read_run
from llm.unlearning.unlearn import Unlearning, unlearn
from markov.errors import InvalidInput
from markov.files import folders
from markov.objectives import npo
from tests.llm.in_two import in_two
from tests.llm.scoring.test_encoding import by_bytes
from tests.llm.training.test_llm_training import llama, some

ROOT = Path(__file__).parents[3]
# Lengths of which the processes make different numbers of micro-batches, though each has as many
# examples.
FORGET = some(*((3 + place, 2) for place in range(24)), seed=3)
RETAIN = some(*((4 + 2 * place, 3) for place in range(7)), seed=4)
SETTINGS = Unlearning(
    objective=npo(0.5),
    optimization=Optimization(epochs=2, batch=24, learning_rate=0.01, budget=43),
    retain_term="cross_entropy",
)


def torchrun(*arguments: str, cpu: bool = True) -> subprocess.CompletedProcess[str]:
    """What two processes do that torchrun starts."""
    own = {
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
    }
    env = {name: value for name, value in os.environ.items() if name != "ACCELERATE_USE_CPU"} | own
    env |= {"ACCELERATE_USE_CPU": "1"} if cpu else {}
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
    ]
    return subprocess.run(
        [*launch, *arguments], env=env, capture_output=True, text=True, timeout=300
    )


# --- the same numbers, however uneven the shares ---


def recorded() -> dict[str, Any]:
    """What a run sees and leaves, and what passes come to that a process only makes to keep
    step.
    """
    updates: list[list[float]] = []
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        # it has learnt nothing
        warnings.filterwarnings("ignore", "the model has collapsed", RuntimeWarning)
        patch.setattr(Loop, "update", keeping(Loop.update, updates))
        model = llama()
        found = unlearn(model, FORGET, RETAIN, SETTINGS, progress=False)
    return {
        "processes": started(),
        "examples": found.examples.to_dict("list"),
        "epochs": found.epochs.drop(columns="status").to_dict("list"),
        "updates": updates,
        "model": float(
            torch.cat([one.detach().flatten() for one in model.parameters()])
            .double()
            .square()
            .sum()
        ),
        **spoiled(),
    }


def keeping(function: Any, into: list[list[float]]) -> Any:
    """The update, whose terms and norm are kept."""

    def wrapped(*arguments: Any) -> Any:
        done = function(*arguments)
        into.append([*done.terms, done.gradient_norm])
        return done

    return wrapped


def spoiled() -> dict[str, Any]:
    """An update and an evaluation whose losses are infinite, and whose gradients are nan, for
    rows of others.
    """
    with looping(llama(), SETTINGS.optimization) as loop:
        order = sorted(range(24), key=lambda row: -len(FORGET[row].tokens))
        state = loop.accelerator
        owned = set(order[state.process_index :: state.num_processes])

        def losses(model: torch.nn.Module, batch: Batch, rows: Sequence[int]) -> torch.Tensor:
            factor = torch.tensor([1.0 if row in owned else torch.inf for row in rows])
            return response_logprobs(model, batch).logp * factor

        padded = sum(not counts for _, counts in loop._parts(FORGET, range(24)))
        padded = int(loop._over_processes(torch.tensor(padded)))
        logp = loop.evaluate(FORGET, losses)
        first = loop.update(1, 0.0, [Term(FORGET, range(24), losses, 1 / 24)])
        # Fewer examples than processes: one of them has nothing of its own.
        single = [order[0]]
        last = loop.update(2, 0.0, [Term(FORGET, single, losses, 1.0)])
        other = loop.evaluate(
            [FORGET[row] for row in single], lambda model, batch, _: cross_entropy(model, batch)
        )
    return {"padded": padded, "logp": logp.tolist(), "single": [*first, *last, *other.tolist()]}


def save_recorded(path: str) -> None:
    """What each process has recorded, by process 0."""
    torch.set_num_threads(1)
    found = recorded()
    tried = [outcome(one) for one in (lambda: 3, refusing, failing)]
    others = [None] * started()
    torch.distributed.all_gather_object(others, tried)
    if place() == 0:
        Path(path).write_text(json.dumps({**found, "tried": others}))
    torch.distributed.destroy_process_group()


def outcome(call: Any) -> list[str]:
    """What a call in process 0 comes to in this one."""
    try:
        return [str(in_first(call))]
    except Exception as error:
        return [type(error).__name__, str(error)]


def refusing() -> int:
    assert place() == 0
    raise InvalidInput("out", "there", "elsewhere")


def failing() -> int:
    assert place() == 0
    raise OSError("full")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("two")
    path = folder / "found.json"
    done = in_two(lambda: save_recorded(str(path)), folder)
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    return recorded()


@pytest.mark.slow
@pytest.mark.parametrize("part", ["examples", "epochs"])
def test_two_processes_with_uneven_shares_record_what_one_does(
    part: str, two: dict[str, Any], one: dict[str, Any]
) -> None:
    assert (two["processes"], one["processes"]) == (2, 1)
    assert two["padded"] > 0 == one["padded"]
    assert min(map(abs, two["examples"]["logp"] + two["examples"]["ref"])) > 0
    pd.testing.assert_frame_equal(pd.DataFrame(two[part]), pd.DataFrame(one[part]), rtol=1e-4)


@pytest.mark.slow
def test_updates_of_two_processes_with_uneven_shares_are_those_of_one(
    two: dict[str, Any], one: dict[str, Any]
) -> None:
    np.testing.assert_allclose(two["updates"], one["updates"], rtol=1e-4)
    assert two["model"] == pytest.approx(one["model"], rel=1e-5)


@pytest.mark.slow
def test_a_pass_that_keeps_step_adds_nothing_even_where_it_is_not_finite(
    two: dict[str, Any], one: dict[str, Any]
) -> None:
    np.testing.assert_allclose(two["logp"], one["logp"], rtol=1e-5)
    for found, want in zip(two["single"], one["single"], strict=True):
        np.testing.assert_allclose(found, want, rtol=1e-5)


def test_a_pass_that_counts_for_nothing_changes_no_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same in one process, that is told to keep step."""
    found = []
    for extra in ([], [([1], False)]):
        with looping(llama(), SETTINGS.optimization) as loop:
            whole = loop._parts(FORGET, range(4))
            monkeypatch.setattr(
                Loop, "_parts", lambda *_, extra=extra, whole=whole: [*whole, *extra]
            )

            def losses(model: torch.nn.Module, batch: Batch, rows: Sequence[int]) -> torch.Tensor:
                factor = torch.nan if rows == [1] else 1.0
                return response_logprobs(model, batch).logp * factor

            values = loop.evaluate(FORGET[:4], losses)
            found.append((loop.update(1, 0.1, [Term(FORGET, range(4), losses, 1.0)]), values))
            monkeypatch.undo()
    (update, values), (other, others) = found
    assert update == other and update.finite and torch.equal(values, others)


# --- process 0 ---


@pytest.mark.slow
def test_what_process_0_finds_or_raises_reaches_all(two: dict[str, Any]) -> None:
    first, second = two["tried"]
    refused = ["InvalidInput", str(InvalidInput("out", "there", "elsewhere"))]
    assert first == [["3"], refused, ["OSError", "full"]]
    assert second == [["3"], refused, ["RuntimeError", "process 0 failed: OSError('full')"]]


def test_a_single_process_makes_its_own_calls() -> None:
    assert (started(), place(), in_first(lambda: 5)) == (1, 0, 5)
    with pytest.raises(OSError, match="full"):
        in_first(failing)
    assert in_one_voice(lambda: 3) == 3


@pytest.mark.parametrize(
    "command", [kind for kind in ACTIONS if kind not in SPREAD], ids=lambda kind: kind.__name__
)
def test_a_command_that_one_process_can_do_refuses_several(
    command: type,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    needed = {
        "Weights": ["--scores", "s", "--reference", "r"],
        "Diagnose": ["--logs", "a", "--retrained-logs", "b"],
    }
    assert cli([command.__name__.lower(), *needed.get(command.__name__, [])]) == 2
    assert re.fullmatch(r"error: processes = 2 is not allowed: 1: .*\n", capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_other_processes_speak_only_where_process_0_does_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    waited: list[float] = []
    monkeypatch.setattr(processes.time, "sleep", waited.append)
    assert place() == 1 and cli(["sweep"]) == 2
    assert capsys.readouterr().err.startswith("process 1: error: processes = 2") and waited == [
        processes.GRACE
    ]
    assert cli(["score", "--help"]) == 0 and capsys.readouterr() == ("", "") and len(waited) == 1
    assert cli(["score", "--modle", "x"]) == 2 and "process 1:" in capsys.readouterr().err


def test_processes_that_accelerate_does_not_join_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InvalidInput, match="processes = 2"):
        in_first(lambda: 5)


# --- a run, from the command line ---


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model, and what it is to forget and to retain."""
    where, tokenizer = tmp_path_factory.mktemp("model"), by_bytes(words=True)
    data = splits(Authors(authors=10, questions=4))
    tofu.write(data["forget10"][:3] + data["retain90"][-4:], where / "forget.json")
    tofu.write(data["retain90"][:6], where / "retain.json")
    sizes: dict[str, Any] = dict(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=512, **sizes
    )
    model = transformers.LlamaForCausalLM(config)
    # Better than guessing, or the runs would be reported as collapsed from the start.
    taught = encode_examples(tokenizer, PLAIN, (*data["forget10"], *data["retain90"][:6]))
    fine_tune(model, taught, Optimization(epochs=5, batch=4, learning_rate=1e-2), progress=False)
    save(
        LanguageModel(model=model, tokenizer=tokenizer, template=PLAIN, name="small"),
        where / "model",
        {},
    )
    return where


def arguments(folder: Path, out: Path, *more: str) -> list[str]:
    data = [
        "--data",
        str(folder / "forget.json"),
        "--retain-data",
        str(folder / "retain.json"),
        "--device",
        "cpu",
    ]
    sizes = [
        "--epochs",
        "2",
        "--batch",
        "3",
        "--budget",
        "300",
        "--learning-rate",
        "1e-3",
        "--objective",
        "npo:0.2",
    ]
    return ["unlearn", "--model", str(folder / "model"), *data, *sizes, "--out", str(out), *more]


def check_same_run(found: Path, want: Path) -> None:
    runs = [read_run(one) for one in (found, want)]
    for name in ("examples", "answers", "epochs"):
        tables = [getattr(run, name) for run in runs]
        pd.testing.assert_frame_equal(*tables, rtol=1e-4, atol=1e-5)
    models = [load(one / "model", device="cpu").model.state_dict() for one in (found, want)]
    assert models[0].keys() == models[1].keys()
    for name, own in models[0].items():
        torch.testing.assert_close(own, models[1][name], rtol=1e-3, atol=1e-5)
    assert sorted(file.name for file in found.iterdir()) == sorted(
        file.name for file in want.iterdir()
    )


def killing(*command: str) -> int:
    """The command, whose process 0 is killed once the first state is written."""
    keep = checkpointing.save_state

    def once(*rest: Any) -> None:
        keep(*rest)
        if place() == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        torch.distributed.barrier()

    unlearning.save_state = once  # pyright: ignore[reportPrivateImportUsage]
    memorising.save_state = once  # pyright: ignore[reportPrivateImportUsage]
    return cli(command)


@pytest.mark.slow
def test_two_processes_unlearn_from_the_command_line_as_one_does(
    folder: Path, tmp_path: Path
) -> None:
    assert cli(arguments(folder, tmp_path / "one")) == 0
    killed = in_two(lambda: killing(*arguments(folder, tmp_path / "two")), tmp_path)
    assert killed.returncode != 0 and "SIGKILL" in killed.stderr, killed.stderr
    assert sorted(file.name for file in (tmp_path / "two").iterdir()) == [folders.CLAIM, "state"]
    done = torchrun("-m", "llm", *arguments(folder, tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines().count("2 processes") == 1
    assert done.stdout.count("examples.parquet") == 1 and done.stdout.count("retain_loss") == 1
    check_same_run(tmp_path / "two", tmp_path / "one")
    # finished: read, not made
    again = in_two(lambda: cli(arguments(folder, tmp_path / "two")), tmp_path)
    assert again.stdout == done.stdout


@pytest.mark.slow
def test_two_processes_fine_tune_as_one_does_and_go_on_where_they_were_killed(
    folder: Path, tmp_path: Path
) -> None:
    def asked(out: str) -> list[str]:
        files = [str(folder / f"{name}.json") for name in ("forget", "retain")]
        words = ["--model", str(folder / "model"), "--data", files[0], "--watch", files[1]]
        sizes = ["--epochs", "2", "--batch", "3", "--budget", "300", "--learning-rate", "1e-3"]
        return ["finetune", *words, *sizes, "--device", "cpu", "--out", str(tmp_path / out)]

    assert cli(asked("one")) == 0
    killed = in_two(lambda: killing(*asked("two")), tmp_path)
    assert killed.returncode != 0 and "SIGKILL" in killed.stderr, killed.stderr
    assert sorted(file.name for file in (tmp_path / "two").iterdir()) == [folders.CLAIM, "state"]
    done = in_two(lambda: cli(asked("two")), tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines().count("2 processes") == 1 and done.stdout.count("rows:") == 1
    one, two = (read_finetuned(tmp_path / name) for name in ("one", "two"))
    for mine, theirs in zip(one[:2], two[:2], strict=True):
        pd.testing.assert_frame_equal(mine, theirs, rtol=1e-5, check_flags=False)
    for name, own in one.model.model.state_dict().items():
        torch.testing.assert_close(own, two.model.model.state_dict()[name], rtol=1e-4, atol=1e-6)
