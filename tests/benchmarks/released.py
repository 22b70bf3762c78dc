"""How long Figure 5 of one seed takes in the way of the released code, on the same machine.

`python -m tests.benchmarks.released` prints it in seconds. It does the work as that code does it
(folder synthetic of OPTML-Group/Unlearn-Simple, read on commit ec7be0c), on this project's data:

    data          a row at a time, padded to one length, by a `DataLoader`
    model         one head, three projections, a mask that is made anew in every layer
    pretraining   batches of 128, and a test after every epoch
    unlearning    batches of 4, and after every step all test data, in batches of 4 as well: each
                  component and all to forget together, once for the loss and once for the distance

A few steps and one evaluation of each kind are timed, and multiplied by how many there are.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from markov.cases import CASES, Case
from markov.models import Transformer
from markov.studies import Data

SHAPE = Transformer.released()
METHODS = 2
BATCH, SMALL = 128, 4
EPOCHS, STEPS = 5, 50
TIMED, BEFORE = 40, 20  # steps that are timed at most, after so many that are not
NOTHING = -100  # the label of padding

Rows = list[tuple[str, list[int]]]


class OneByOne(Dataset[dict[str, Any]]):
    """Sequences of states with the names of their components, padded when they are asked for."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        name, states = self.rows[index]
        spare = SHAPE.context + 1 - len(states)
        return {
            "seen": torch.tensor(states[:-1] + [0] * spare),
            "next": torch.tensor(states[1:] + [NOTHING] * spare),
            "name": name,
        }


class Block(nn.Module):
    """Attention with one head and no output projection, then an MLP, each normalised behind."""

    def __init__(self) -> None:
        super().__init__()
        width = SHAPE.width
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])

    def forward(self, x: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).transpose(-2, -1) / math.sqrt(SHAPE.width)
        before = torch.tril(torch.ones(x.shape[1], x.shape[1]))[None]
        scores = scores + before.masked_fill(before == 0, -math.inf)
        x = self.norms[0](x + scores.softmax(-1) @ self.value(x))
        return self.norms[1](x + self.mlp(x))


class Net(nn.Module):
    """The released architecture."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding(SHAPE.states, SHAPE.width)
        self.position = nn.Embedding(SHAPE.context, SHAPE.width)
        self.blocks = nn.ModuleList(Block() for _ in range(SHAPE.depth))
        self.head = nn.Linear(SHAPE.width, SHAPE.states)

    def forward(self, states: Tensor) -> Tensor:
        places = torch.arange(states.shape[1])[None].expand_as(states)
        x = self.token(states) + self.position(places)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def rows(sequences: Mapping[str, Tensor]) -> Rows:
    """Return sequences as lists, with the names of their components."""
    return [(name, own) for name, tokens in sequences.items() for own in tokens.tolist()]


def step(net: Net, data: Rows, batch: int) -> float:
    """Return the seconds of a step of training."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-4)
    loader, ends = DataLoader(OneByOne(data), batch_size=batch, shuffle=True), list[float]()
    for few in itertools.islice(loader, BEFORE + TIMED + 1):
        optimizer.zero_grad()
        loss = _cross_entropy(net, few)
        loss.backward()
        optimizer.step()
        loss.item()
        ends.append(time.perf_counter())
    if len(ends) < BEFORE + 2:
        raise ValueError(f"{len(ends)} steps are too few to be timed: {BEFORE + 2} at least")
    return (ends[-1] - ends[BEFORE]) / (len(ends) - 1 - BEFORE)


@torch.no_grad()
def evaluation(
    net: Net, groups: Sequence[Rows], laws: Mapping[str, Float[np.ndarray, "s s"]], batch: int
) -> float:
    """Return the seconds of an evaluation of all groups, for their loss and for their distance."""
    began = time.perf_counter()
    for group in groups:
        for few in DataLoader(OneByOne(group), batch_size=batch):
            _cross_entropy(net, few).item()
        for few in DataLoader(OneByOne(group), batch_size=batch):
            found = net(few["seen"]).log_softmax(-1)
            truth = np.zeros(found.shape)
            for place, name in enumerate(few["name"]):
                truth[place] = laws[name][few["seen"][place].numpy()]
            true = torch.tensor(truth, dtype=torch.float32)
            each = functional.kl_div(found, true, reduction="none").sum(-1)
            (each * (few["next"] != NOTHING).float()).sum().item()
    return time.perf_counter() - began


def _cross_entropy(net: Net, few: Mapping[str, Tensor]) -> Tensor:
    found, asked = net(few["seen"]), few["next"]
    return functional.cross_entropy(
        found.view(-1, SHAPE.states), asked.view(-1), ignore_index=NOTHING
    )


def laws_of(case: Case) -> dict[str, Float[np.ndarray, "states states"]]:
    """Return the transition matrix of each component."""
    return {
        name: chain.transition.numpy()
        for name, chain in zip(case.lengths, case.chains(), strict=True)
    }


def seconds(case: Case, data: Data, kinds: Iterable[Sequence[str]]) -> float:
    """Return the seconds of a case: its models of several `kinds`, and both methods' unlearning.

    A kind is named by the components that it is trained on.
    """
    net, laws, total = Net(), laws_of(case), 0.0
    for seen in kinds:
        train, test = (rows({name: own[name] for name in seen}) for own in (data.train, data.test))
        steps, tests = EPOCHS * math.ceil(len(train) / BATCH), EPOCHS + 1
        total += steps * step(net, train, BATCH) + tests * evaluation(net, [test], laws, BATCH)
    forget = [name for name in case.lengths if name != "retain"]
    groups = [
        rows({name: data.test[name] for name in own})
        for own in (["retain"], forget, *([name] for name in forget))
    ]
    learnt = rows({name: data.train[name] for name in forget})
    tested = (STEPS + 1) * evaluation(net, groups, laws, SMALL)
    return total + METHODS * (STEPS * step(net, learnt, SMALL) + tested)


def both_cases(report: Callable[[str], None] = print) -> float:
    """Return the seconds of Figure 5 of one seed: both cases, both methods, 50 steps."""
    total = 0.0
    for name, case in CASES.items():
        # the retrained model is one for both cases
        kinds = [case.pretrain_components, *([["retain"]] if total == 0 else [])]
        own = seconds(case, case.sample(0), kinds)
        report(f"{name}: {own:.0f} s")
        total += own
    return total


if __name__ == "__main__":
    torch.manual_seed(0)
    print(f"{both_cases():.1f}")
