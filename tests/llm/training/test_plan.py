"""The plan of memory: counts are exact, passes hold what real ones hold, and what is said to fit
does fit.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from llm.__main__ import cli, parse
from llm.jobs.planning import LARGE, check_weights, precision_of, state_minutes_of
from llm.models.language_model import find_device
from llm.models.size import planner_of, skeleton
from llm.scoring.encoding import Batch, Encoded
from llm.scoring.limits import BUDGET, WRITING_BUDGET, writing_budget
from llm.scoring.logprobs import ELEMENTS, response_logprobs
from llm.training.adapters import Lora, adapted
from llm.training.checkpointing import Pace
from llm.training.memory import free_memory, gigabytes, size_of
from llm.training.plan import Plan, Planner, Work, changes, fitting
from llm.training.rehearsal import Shape, Way, rehearsed, weighed
from markov.console import memory as of_machine
from markov.console.ending import exit_code
from markov.errors import InvalidInput, out_of_memory

ROOT = Path(__file__).parents[3]
# What peft says of layers whose matrices lie the other way.
pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out:UserWarning")
SIZES: dict[str, Any] = dict(
    vocab_size=300, hidden_size=64, intermediate_size=160, num_attention_heads=4
)
LLAMA = transformers.LlamaConfig(num_hidden_layers=5, num_key_value_heads=2, **SIZES)
KINDS = {
    "llama": LLAMA,
    "tied": transformers.LlamaConfig(num_hidden_layers=5, tie_word_embeddings=True, **SIZES),
    "gpt2": transformers.GPT2Config(vocab_size=300, n_embd=64, n_layer=4, n_head=4),
    "neox": transformers.GPTNeoXConfig(num_hidden_layers=3, **SIZES),
    # Two kinds of layers: the middle ones have experts.
    "mixed": transformers.Qwen2MoeConfig(
        num_hidden_layers=6,
        mlp_only_layers=[0, 5],
        num_experts=4,
        num_experts_per_tok=2,
        num_key_value_heads=2,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
        **SIZES,
    ),
}
SHAPE = Shape(4, 63)
SEVEN: dict[str, Any] = dict(
    architectures=["LlamaForCausalLM"],
    model_type="llama",
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=32,
    num_attention_heads=32,
    vocab_size=32000,
    max_position_embeddings=4096,
)


def planner(config: Any = LLAMA) -> Planner:
    return Planner(lambda dtype: skeleton(config, dtype))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lora", [None, Lora(rank=3)])
def test_parameters_are_counted_exactly(kind: str, lora: Lora | None) -> None:
    config = KINDS[kind]
    found = weighed(skeleton(config, "float32"), Way(lora=lora))
    real: Any = transformers.AutoModelForCausalLM.from_config(config)
    buffers = sum(one.numel() * one.element_size() for one in real.buffers())
    with adapted(real, lora, 0) as trained:
        every = list(trained.parameters())
        count = sum(one.numel() for one in every)
        learnt = sum(one.numel() for one in every if one.requires_grad)
    assert found.count == count and found.gradients == 4 * learnt
    assert (found.parameters, found.masters) == (4 * count + buffers, 0)


def test_of_16_bit_models_masters_are_counted_in_place_of_parameters() -> None:
    bare = skeleton(LLAMA, "bfloat16")
    full, narrow = weighed(bare, Way()), weighed(bare, Way(narrow_updates=True))
    assert full.masters == full.gradients == 4 * full.count
    assert narrow.masters == 0 and narrow.gradients == 2 * narrow.count
    lora = weighed(bare, Way(lora=Lora()))
    assert lora.masters == 0 and lora.parameters < 0.7 * full.masters


def really_held(config: Any, lora: Lora | None, checkpointing: bool) -> int:
    """Bytes that a real forward pass keeps for the way back, besides parameters."""
    torch.manual_seed(0)
    model: Any = transformers.AutoModelForCausalLM.from_config(config)
    rows = [Encoded(tuple(range(1, SHAPE.time + 2)), 1)] * SHAPE.rows
    kept: dict[int, tuple[int, Tensor]] = {}
    with adapted(model, lora, 0) as trained:
        own = {one.untyped_storage().data_ptr() for one in trained.parameters()}

        def keep(value: Tensor) -> Tensor:
            storage = value.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = (storage.nbytes(), value)
            return value

        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        trained.train()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            logp = response_logprobs(trained, Batch.pad(rows)).logp
        del logp
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("kind", ["llama", "gpt2", "neox"])
@pytest.mark.parametrize("lora", [None, Lora(rank=3)])
def test_a_pretended_pass_holds_what_a_real_one_keeps(kind: str, lora: Lora | None) -> None:
    config = KINDS[kind]
    found = rehearsed(skeleton(config, "float32"), SHAPE, Way(lora=lora))
    assert found is not None
    # The head keeps its logits and what their sum of exponentials came to.
    logits = 4 * SHAPE.rows * SHAPE.time * config.vocab_size
    real = really_held(config, lora, False) - logits
    assert found.activations == pytest.approx(real, rel=0.15)
    assert found.logits >= 2 * logits


def test_checkpointing_bfloat16_and_shorter_batches_hold_less() -> None:
    bare = skeleton(LLAMA, "float32")

    def held(way: Way | None, shape: Shape = SHAPE) -> int:
        found = rehearsed(bare, shape, way)
        assert found is not None
        return found.activations

    whole = held(Way())
    assert held(Way(gradient_checkpointing=True)) < whole / 2
    assert held(Way(bfloat16=True), Shape(16, 63)) < held(Way(), Shape(16, 63))
    assert held(Way(), Shape(2, 63)) == pytest.approx(whole / 2, rel=0.1)
    assert held(None) < whole / 4


def test_logits_are_held_in_parts_that_do_not_grow_with_the_batch() -> None:
    config = transformers.LlamaConfig(
        num_hidden_layers=1, **{**SIZES, "vocab_size": 50_000, "hidden_size": 8}
    )
    bare = skeleton(config, "float32")
    found = [rehearsed(bare, Shape(rows, 511), Way()) for rows in (2, 8)]
    few, many = (one.logits for one in found if one is not None)
    assert few > 2 * 4 * ELEMENTS and many < 1.1 * few


def test_keys_and_values_are_those_of_all_tokens() -> None:
    found = rehearsed(skeleton(LLAMA, "bfloat16"), Shape(3, 50), writing=True)
    assert found is not None
    # Two of the four heads have keys and values; 16 numbers of two bytes for each of them.
    assert found.cache == 2 * 5 * 2 * 16 * 2 * 3 * 50


def test_a_model_that_cannot_pretend_is_planned_by_its_parameters_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forward(*_: object, **__: object) -> None:
        raise RuntimeError("no numbers")

    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", forward)
    plan = planner().plan(Work(way=Way()))
    assert plan.activations == 0 and plan.moments == 2 * plan.gradients > 0
    assert str(plan).startswith("at least ")


@pytest.mark.slow
def test_what_is_said_to_fit_fits_and_is_the_first_that_does() -> None:
    own = planner(transformers.LlamaConfig(num_hidden_layers=2, **SIZES))
    work = Work(way=Way(), budget=256, max_length=64)
    options = ("lora_rank", "gradient_checkpointing", "precision", "dtype", "budget")
    tried = list(changes(work, options))
    assert [words for words, _ in tried][:3] == [
        "--lora-rank 8",
        "--gradient-checkpointing",
        "--precision bfloat16",
    ]
    assert tried[-1][0].startswith("FSDP over 16 such devices")
    sizes = [own.plan(less).total for _, less in tried]
    whole = own.plan(work).total
    assert all(size < whole for size in sizes)
    for place, room in enumerate(sizes):
        found = fitting(own, work, options, lambda _, room=room: room)
        assert found is not None and found[1].total <= room
        assert tried.index((found[0], dict(tried)[found[0]])) <= place
    assert fitting(own, work, options, lambda _: 1) is None
    assert fitting(own, work, (), lambda _: whole - 1) is not None  # a smaller batch always can


def test_several_processes_hold_gradients_twice_or_a_part_of_all() -> None:
    own = planner()
    one, two = own.plan(Work(way=Way())), own.plan(Work(way=Way(), processes=2))
    assert two.gradients == 2 * one.gradients and two.moments == one.moments
    shards = own.plan(Work(way=Way(), processes=2, shards=True))
    assert shards.moments == one.moments // 2 and shards.gradients == one.gradients // 2


def folder_of(place: Path, **changed: Any) -> Path:
    place.mkdir()
    (place / "config.json").write_text(json.dumps({**SEVEN, **changed}))
    return place


def asked(place: Path, out: Path, *more: str) -> list[str]:
    questions = out.parent / "questions.json"
    questions.write_text(json.dumps([{"question": "Who?", "answer": "She."}] * 2))
    named = ["--model", str(place), "--data", str(questions), "--retain-data", str(questions)]
    return ["unlearn", *named, "--out", str(out), *more]


def test_7b_on_24_gb_is_refused_at_once_with_a_line_that_fits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = folder_of(tmp_path / "seven", num_key_value_heads=32, tie_word_embeddings=False)
    command = asked(place, tmp_path / "out", "--memory", "24GB")
    assert cli(command) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: memory = 'at least 107.8 GB (parameters, gradients and moments)")
    assert "at most 24.0 GB as --memory says" in line
    assert not (tmp_path / "out").exists()
    options = re.search(r"; (--\S.*) fits: parameters 13.5 GB", line)
    assert options is not None
    # With these the weights are looked for, of which there are none here.
    assert cli([*command, *options[1].split()]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    planned = re.match(r"memory: ([\d.]+) GB \(parameters 13.6,", said[0])
    assert planned is not None and float(planned[1]) <= 24
    assert said[0].endswith(", 24.0 GB as --memory says")
    assert "safetensors" in said[-1] and said[-1].startswith("error: model")


def test_what_weights_alone_refuse_needs_none_of_the_large_libraries(tmp_path: Path) -> None:
    command = asked(folder_of(tmp_path / "seven"), tmp_path / "out", "--memory", "24GB")
    program = (
        "import sys; from llm.__main__ import cli; code = cli(sys.argv[1:]); "
        "print(code, [name for name in ('torch', 'transformers', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *command], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.strip() == "2 []", done.stderr


@pytest.mark.parametrize("command", ["unlearn", "score"])
@pytest.mark.parametrize("width", [2048, 4096, 5120])
def test_what_weights_alone_suggest_fits_indeed(width: int, command: str, tmp_path: Path) -> None:
    sizes = {"hidden_size": width, "intermediate_size": 5 * width // 2, "num_attention_heads": 8}
    place = folder_of(tmp_path / "model", **sizes, num_key_value_heads=8)
    own = planner_of(str(place), {"revision": None, "trust_remote_code": False})
    assert own is not None
    way = Way(gradient_checkpointing=True, lora=Lora(rank=8))
    less = own.plan(Work(dtype="bfloat16", way=way if command == "unlearn" else None)).total
    line = asked(place, tmp_path / "out")
    if command == "score":
        line = ["score", *line[1:5], "--out", str(tmp_path / "out")]
    given, suggested = parse(line), 0
    for tenths in range(10, 1000):
        bounded = replace(given, memory=f"{tenths / 10}GB")
        try:
            check_weights(bounded, training=command == "unlearn")
        except InvalidInput as error:
            if " fits: " in str(error):
                suggested += 1
                assert less <= tenths * 10**8
    assert suggested


def test_every_command_that_reads_weights_refuses_what_cannot_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = folder_of(tmp_path / "seven", num_hidden_layers=2)
    data = asked(place, tmp_path / "out")[4]
    for command, more in (("score", "out.parquet"), ("relearn", "out.parquet")):
        where = ["--model", str(place), "--data", data, "--out", str(tmp_path / more)]
        assert cli([command, *where, "--memory", "100MB"]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith("error: memory = '") and "no option makes it fit" in line


@pytest.mark.parametrize("command", ["sweep", "study"])
def test_runs_at_a_time_share_the_memory(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    place, out = folder_of(tmp_path / "seven", num_hidden_layers=2), tmp_path / "out"
    words = [command, "--model", str(place), "--data", "authors:forget10", "--device", "cpu"]
    words += ["--methods", "npo:0.1", "simnpo:2.5", "gradient_ascent", "--out", str(out)]
    words += ["--retrained", str(place)] if command == "sweep" else ["--attacked", "npo:0.1"]
    for name in ("sweep.task_of", "study.print_estimate"):  # what follows the plan
        monkeypatch.setattr(f"llm.commands.{name}", stopped)

    def said(memory: float, jobs: int) -> str:
        assert cli([*words, "--memory", f"{memory}GB", "--jobs", str(jobs)]) == 2
        return capsys.readouterr().err.strip().splitlines()[0]

    enough = re.match(r"memory: 3 x ([\d.]+) GB, each .* 400.0 GB as --memory says", said(400, 8))
    assert enough is not None
    one = float(enough[1])
    assert "each" not in said(400, 1)
    few = said(2.5 * one, 3)
    assert few.startswith(f"error: memory = '3 x {one} GB, each ") and few.endswith("--jobs 2 fits")
    assert re.search(r"as --memory says; --jobs 1 --lora-rank 8.* fits: ", said(0.9 * one, 3))
    assert said(2.5 * one, 2).startswith(f"memory: 2 x {one} GB")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # one follows the other there
    assert "each" not in said(1.1 * one, 3)
    monkeypatch.undo()
    assert said(400, 0).startswith("error: jobs = 0")


def stopped(*_: object) -> None:
    raise InvalidInput("stopped", "here", "elsewhere")


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0.0"), (1, "1e-09"), (4e6, "0.004"), (5e7, "0.1"), (1.26e9, "1.3"), (81e9, "81.0")],
)
def test_a_size_is_never_said_to_be_nothing(size: float, text: str) -> None:
    assert gigabytes(size) == text


@pytest.mark.parametrize("text", ["", "much", "0GB", "-1GB", "12 XB", "nan"])
def test_a_size_that_is_none_is_one_line(text: str) -> None:
    with pytest.raises(InvalidInput, match="memory = "):
        size_of(text)


def test_sizes_in_words() -> None:
    assert [size_of(text) for text in ("24GB", "1.5 gb", "16GiB", "300")] == [
        24 * 10**9,
        15 * 10**8,
        2**34,
        300,
    ]


@pytest.mark.parametrize("version", [1, 2])
def test_limits_of_control_groups_bound_what_is_free(
    version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("memory.max", "memory.current", "inactive_file")
    root = tmp_path / "groups"
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        root = root / "memory"
    inner = root / "outer" / "inner"
    inner.mkdir(parents=True)
    for folder, limit in ((inner, "max"), (inner.parent, "50000000")):
        (folder / names[0]).write_text(f"{limit}\n")
        (folder / names[1]).write_text("30000000\n")
        (folder / "memory.stat").write_text(f"file 9\n{names[2]} 4000000\n")
    listed = tmp_path / "cgroup"
    listed.write_text("4:memory:/outer/inner\n" if version == 1 else "0::/outer/inner\n")
    monkeypatch.setattr(of_machine, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(of_machine, "GROUP_OF", listed)
    assert free_memory(torch.device("cpu")) == 24_000_000
    assert free_memory(torch.device("cpu"), processes=2) == 12_000_000
    monkeypatch.setattr(of_machine, "GROUP_OF", tmp_path / "nothing")
    free = free_memory(torch.device("cpu"))
    assert free is not None and free > 24_000_000


ALLOCATOR = "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you"
LACKS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"),
    RuntimeError(ALLOCATOR),
    MemoryError(),
]


@pytest.mark.parametrize("error", LACKS)
def test_memory_that_runs_out_is_one_line_that_says_what_to_lower(
    error: Exception,
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(torch.optim.AdamW, "step", full)
    named = ["--data", str(place / "forget10.json"), "--retain-data", str(place / "retain90.json")]
    command = ["unlearn", "--model", str(place / "model"), *named, "--out", str(tmp_path / "run")]
    assert cli(command) == 2
    (line,) = [
        one for one in capsys.readouterr().err.splitlines() if not one.startswith("unlearn:")
    ]
    assert line.startswith("error: out of memory (")
    assert line.endswith(
        "; --budget 1024 or --gradient-checkpointing or --lora-rank 8 or --dtype bfloat16 take less"
    )


def test_another_runtime_error_is_none_of_memory(capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> None:
        raise RuntimeError("shapes do not match")

    assert not out_of_memory(RuntimeError("shapes do not match"))
    assert exit_code(broken) == 1
    assert capsys.readouterr().err.startswith("error: RuntimeError: shapes do not match (")


def test_a_smaller_budget_makes_batches_of_writing_smaller_too() -> None:
    assert writing_budget(BUDGET) == WRITING_BUDGET
    assert writing_budget(BUDGET // 4) == WRITING_BUDGET // 4
    assert writing_budget(2 * WRITING_BUDGET) == 2 * WRITING_BUDGET
    own = planner()
    sizes = [
        own.plan(Work(writing=200, budget=budget, writing_budget=writing_budget(budget))).cache
        for budget in (BUDGET, BUDGET // 4)
    ]
    assert sizes[0] > 3 * sizes[1] > 0


def test_states_are_written_no_more_often_than_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    always, never, seldom = Pace(0.0, 0.0), Pace(math.inf, 0.0), Pace(2.0, 0.0)
    found = []
    for minute in (1, 3, 4, 6):
        now[0] = 60.0 * minute
        found.append((always.due(), never.due(), seldom.due()))
    assert [one[:2] for one in found] == [(True, False)] * 4
    assert [one[2] for one in found] == [False, True, False, True]


def test_how_often_follows_from_the_size_of_the_state(capsys: pytest.CaptureFixture[str]) -> None:
    small, large = Plan(state=10**9), Plan(state=81 * 10**9)
    assert state_minutes_of(None, small) == state_minutes_of(None, None) == 0
    assert state_minutes_of(None, large) == 27
    assert state_minutes_of("epoch", large) == 0 and state_minutes_of("never", small) == math.inf
    assert state_minutes_of(5.0, large) == 5
    said = capsys.readouterr().err
    assert "state: 81.0 GB on disk until the run is finished, written at most every 27" in said
    assert "written after every epoch" in said and "never written" in said
    with pytest.raises(InvalidInput, match="keep_state"):
        state_minutes_of(-1.0, large)


@pytest.mark.parametrize(
    ("job", "module"),
    [("unlearn", "llm.unlearning.unlearn"), ("finetune", "llm.training.memorising")],
)
def test_a_run_whose_state_is_never_written_ends_as_the_others(
    job: str, module: str, place: Path, tmp_path: Path
) -> None:
    named = ["--data", str(place / "forget10.json")]
    if job == "unlearn":
        named += ["--retain-data", str(place / "retain90.json")]
    command = [job, "--model", str(place / "model"), *named, "--epochs", "2", "--out"]
    written: list[bytes] = []
    for how in ("never", "epoch"):
        with pytest.MonkeyPatch.context() as patch:
            calls: list[object] = []
            own: Callable[..., None] = __import__(module, fromlist=["save_state"]).save_state
            patch.setattr(
                f"{module}.save_state",
                lambda *a, own=own, calls=calls: (calls.append(1), own(*a)),
            )
            assert cli([*command, str(tmp_path / how), "--keep-state", how]) == 0
        assert len(calls) == (0 if how == "never" else 2)
        written.append((tmp_path / how / "model" / "model.safetensors").read_bytes())
    assert written[0] == written[1]


def test_large_models_are_computed_in_bfloat16_on_gpus_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Asked:
        precision, model, device, revision, trust_remote_code = None, "", "auto", None, False

    large, small = folder_of(tmp_path / "7b"), folder_of(tmp_path / "1", num_hidden_layers=2)
    own = planner_of(str(large), {"revision": None, "trust_remote_code": False})
    assert own is not None and own.count() == 6_738_415_616 > LARGE
    for gpu, place, wanted in (
        (False, large, "float32"),
        (True, large, "bfloat16"),
        (True, small, "float32"),
    ):
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        Asked.model = str(place)
        assert precision_of(Asked) == wanted


def test_each_of_several_processes_takes_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", lambda *_, device: torch.zeros(1))
    assert find_device("auto") == torch.device("cuda")
    for name, value in (("WORLD_SIZE", "4"), ("RANK", "2"), ("LOCAL_RANK", "2")):
        monkeypatch.setenv(name, value)
    assert find_device("auto") == torch.device("cuda:2")


PEAKS = """
import gc
import torch, transformers
from llm.scoring.encoding import Batch, Encoded
from llm.scoring.logprobs import response_logprobs
from llm.training.adapters import Lora, adapted
from llm.models.size import skeleton
from llm.training.plan import Planner, Work
from llm.training.rehearsal import Way
torch.set_num_threads(1)
config = transformers.LlamaConfig(vocab_size=20000, hidden_size=512, intermediate_size=1376,
    num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=4)
planner = Planner(lambda dtype: skeleton(config, dtype))
def peak():
    # Not that of getrusage, which also knows the peak of the process that started this one.
    with open("/proc/self/status") as told:
        return next(int(line.split()[1]) for line in told if line.startswith("VmHWM"))
def work(way):
    model = transformers.LlamaForCausalLM(config)
    batch = Batch.pad([Encoded(tuple(range(1, 513)), 1)] * 2)
    if way is None:
        with torch.no_grad():
            response_logprobs(model.eval(), batch)
        return
    with adapted(model, way.lora, 0) as trained:
        optimizer = torch.optim.AdamW([p for p in trained.parameters() if p.requires_grad])
        for _ in range(2):
            response_logprobs(trained.train(), batch).logp.sum().backward()
            optimizer.step()
for name, way in {"score": None, "lora": Way(lora=Lora()), "full": Way()}.items():
    plan = planner.plan(Work(way=way, budget=1024))
    gc.collect()
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")  # the peak is from now on what is held now
    base = peak()
    work(way)
    print(name, peak() - base, plan.total / 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems tell a peak otherwise")
def test_the_plan_is_within_a_fifth_of_the_peak_of_a_fresh_process() -> None:
    # Large pieces of memory are given back at once, as those of GPUs are, so that the peak is that
    # of what is held, and not of the holes between it.
    environment = {"MALLOC_MMAP_THRESHOLD_": "1000000", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", PEAKS],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    found = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()}
    assert list(found) == ["score", "lora", "full"]
    for peak, planned in found.values():
        assert float(planned) == pytest.approx(float(peak), rel=0.2)
