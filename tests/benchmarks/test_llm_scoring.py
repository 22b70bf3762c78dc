"""Time and memory of scoring language models and of their gradient norms, beside what they cannot
do without.

Times are of the processor, on one thread: other programs on the machine blur them less than times
of the clock.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from transformers import LlamaConfig, LlamaForCausalLM

from llm.scoring.encoding import BUDGET, Batch, Encoded, batches
from llm.scoring.gradients import gradient_norms, one_by_one
from llm.scoring.logprobs import score_encoded
from llm.scoring.shared import plan_of, score_responses


def llama(vocab: int, width: int = 192, depth: int = 4) -> LlamaForCausalLM:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape: dict[str, Any] = dict(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=depth
    )
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=vocab, num_attention_heads=width // 64, **shape)
    ).eval()


def smollm2() -> LlamaForCausalLM:
    """Random weights in the shape of SmolLM2-135M."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape: dict[str, Any] = dict(hidden_size=576, intermediate_size=1536, num_hidden_layers=30)
    heads: dict[str, Any] = dict(num_attention_heads=9, num_key_value_heads=3)
    config = LlamaConfig(vocab_size=49152, tie_word_embeddings=True, **shape, **heads)
    return LlamaForCausalLM(config).eval()


def answers(count: int, vocab: int, shortest: int = 20, longest: int = 120) -> list[Encoded]:
    """Sequences of evenly spread lengths, a third of each the prompt: about the proportions of
    TOFU.
    """
    generator = torch.Generator().manual_seed(0)
    lengths = torch.linspace(shortest, longest, count).long().tolist()
    draw = (torch.randint(vocab, (length,), generator=generator).tolist() for length in lengths)
    return [Encoded(tuple(tokens), max(1, len(tokens) // 3)) for tokens in draw]


def seconds(call: Callable[[], object], rounds: int = 3) -> float:
    """Processor time of the fastest round after one to warm up."""
    taken = []
    for _ in range(rounds + 1):
        began = time.process_time()
        call()
        taken.append(time.process_time() - began)
    return min(taken[1:])


def report(text: str) -> None:
    print(f"\n    {text}")


def fastest(benchmark: BenchmarkFixture) -> float:
    """Time of the fastest round; nan where benchmarks are switched off."""
    return benchmark.stats["min"] if benchmark.stats else float("nan")


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize(
    ("made", "count"),
    [(lambda: llama(2000), 200), (lambda: llama(32000), 200), (smollm2, 30)],
    ids=["vocabulary of 2k", "vocabulary of 32k", "SmolLM2"],
)
def test_scoring_throughput(
    benchmark: BenchmarkFixture, made: Callable[[], LlamaForCausalLM], count: int
) -> None:
    """Answers in batches of the default budget, beside bare forward passes, heads included, on
    the same batches.
    """
    model = made()
    vocab = model.config.vocab_size
    encoded = answers(count, vocab)
    padded = [Batch.pad([encoded[row] for row in rows]) for rows in batches(encoded)]

    @torch.no_grad()
    def bare() -> None:
        for batch in padded:
            assert (
                model(
                    batch.tokens, attention_mask=batch.present.long(), use_cache=False
                ).logits.shape[-1]
                == vocab
            )

    taken = seconds(bare)
    found = benchmark.pedantic(lambda: score_encoded(model, encoded), rounds=3, warmup_rounds=1)
    assert found.logp.isfinite().all()
    tokens = sum(len(one.tokens) for one in encoded)
    report(
        f"{tokens / fastest(benchmark):.0f} tokens per second, {taken / fastest(benchmark):.2f} of "
        "the bare forward "
        f"pass ({tokens / taken:.0f}) at a vocabulary of {vocab}"
    )


@pytest.mark.benchmark(timer=time.process_time)
def test_seven_answers_to_a_question(benchmark: BenchmarkFixture) -> None:
    """All answers to some questions: each question read once, beside every text read whole."""
    model = smollm2()
    generator = torch.Generator().manual_seed(0)

    def drawn(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(49152, (count,), generator=generator).tolist())

    # The mean lengths of SmolLM2's prompts and answers on TOFU's forget set are 40 and 43 tokens.
    prompts = [drawn(length) for length in (30, 34, 38, 42, 46, 50) * 2]
    texts = [
        Encoded((*prompt, *drawn(length)), len(prompt))
        for prompt in prompts
        for length in (34, 37, 40, 43, 46, 49, 52)
    ]
    whole = seconds(lambda: score_encoded(model, texts, progress=False), rounds=2)
    assert plan_of(model, texts)
    found = benchmark.pedantic(
        lambda: score_responses(model, texts, progress=False), rounds=3, warmup_rounds=1
    )
    assert found.logp.isfinite().all()
    report(f"{whole / fastest(benchmark):.2f} times as fast as reading every text whole")


# Not by getrusage, whose peak a process inherits from the one that starts it.
STATUS = Path("/proc/self/status")
MEMORY = """
import sys, torch
from pathlib import Path
from tests.benchmarks.test_llm_scoring import STATUS, answers, llama
from llm.scoring.encoding import Batch
from llm.scoring.logprobs import score_encoded

def peak():
    lines = STATUS.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20

model, encoded = llama(131072, width=64, depth=1), answers(16, 131072, 128, 128)
before = peak()
if sys.argv[1] == "score":
    score_encoded(model, encoded)
else:
    batch = Batch.pad(encoded)
    with torch.no_grad():
        model(batch.tokens, attention_mask=batch.present.long()).logits.log_softmax(-1)
print(peak() - before)
"""


@pytest.mark.skipif(not STATUS.exists(), reason="peak memory is read from /proc")
def test_memory_at_a_vocabulary_of_128k(benchmark: BenchmarkFixture) -> None:
    """Peak memory beyond that of the model, 2048 tokens in one batch, each way in a process of
    its own.
    """

    def gib(how: str) -> float:
        command = [sys.executable, "-c", MEMORY, how]
        return float(subprocess.check_output(command, cwd=Path(__file__).parents[2], text=True))

    naive = gib("log_softmax")
    scored = benchmark.pedantic(lambda: gib("score"), rounds=1)
    one = 2048 * 131072 * 4 / 2**30
    report(
        f"{scored:.2f} GiB, {scored / naive:.2f} of a log_softmax of all logits ({naive:.2f}; one "
        f"copy {one:.2f})"
    )
    assert 0 < scored < naive


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize(
    ("width", "depth", "vocab"), [(64, 2, 1000), (192, 4, 2000), (192, 4, 32000)]
)
def test_gradient_norms(benchmark: BenchmarkFixture, width: int, depth: int, vocab: int) -> None:
    """64 answers, 16 at a time, beside one backward pass for each, and beside forward and
    backward passes alone.
    """
    model, encoded = llama(vocab, width, depth), answers(64, vocab, 40, 60)
    slow = seconds(lambda: one_by_one(model, encoded), rounds=1)
    quick = benchmark.pedantic(
        lambda: gradient_norms(model, encoded, budget=16 * 60), rounds=3, warmup_rounds=1
    )
    torch.testing.assert_close(quick, one_by_one(model, encoded), rtol=1e-4, atol=0.0)

    def passes() -> None:
        for rows in batches(encoded, 16 * 60):
            batch = Batch.pad([encoded[row] for row in rows])
            labels = batch.tokens.where(batch.present, -100)
            model(batch.tokens, labels=labels).loss.backward()
        model.zero_grad()

    alone = seconds(passes, rounds=2)
    report(
        f"{1e3 * fastest(benchmark) / len(encoded):.1f} ms per example at width {width} and "
        f"vocabulary {vocab}: "
        f"{slow / fastest(benchmark):.1f} times as fast as one by one, "
        f"{alone / fastest(benchmark):.2f} of the speed "
        f"of forward and backward passes of batches of 16"
    )


def test_throughput_by_budget(benchmark: BenchmarkFixture) -> None:
    """On a processor small batches are the faster ones, on a GPU large ones."""
    model, encoded = llama(2000), answers(200, 2000)
    tokens = sum(len(one.tokens) for one in encoded)
    rates = {
        budget: tokens
        / seconds(lambda budget=budget: score_encoded(model, encoded, budget=budget), rounds=2)
        for budget in (512, 1024, 2048, 4096, 8192)
    }
    found = benchmark.pedantic(lambda: score_encoded(model, encoded), rounds=1)
    report(
        "tokens per second by budget: "
        + ", ".join(f"{rate:.0f} ({budget})" for budget, rate in rates.items())
    )
    assert BUDGET in rates and found.logp.isfinite().all()
