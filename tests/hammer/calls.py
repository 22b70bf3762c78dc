"""Calls in Python of what `markov` and `llm` offer, with arguments that nobody should give.

A call returns something finite and sensible, or raises `InvalidInput`; `TypeError` is for arguments
that are missing or not known.
"""

from __future__ import annotations

import dataclasses
import math
import random
import sys
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

import llm
import markov
from markov.errors import InvalidInput, out_of_memory
from markov.objectives import stack
from tests.hammer.cases import Case, Result, once
from tests.hammer.judging import REFUSED, Verdict
from tests.hammer.values import CONTROL, LONG
from tests.hammer.world import Box

SENSELESS, ENDLESS = 3, 50_000  # an exit code, and values that are looked at of a result
LACKING = ("missing", "unexpected keyword", "positional argument", "got multiple values")
Make = Callable[[], Any]


class Given(NamedTuple):
    """What a call is given for an argument: how it reads, how it is made, and whether it has to be
    refused.
    """

    told: str
    make: Make
    refused: bool = True


def _given(refused: bool, **values: Make) -> list[Given]:
    return [Given(told.replace("_", " "), make, refused) for told, make in values.items()]


def _plain(refused: bool, *values: Any) -> list[Given]:
    return [Given(repr(value)[:40], lambda value=value: value, refused) for value in values]


ODD = _given(
    True,
    object=object,
    generator=lambda: (one for one in (1, 2)),
    function=lambda: len,
    a_complex=lambda: 1j,
    bytes=lambda: b"x",
    a_dict=dict,
    a_type=lambda: int,
    an_array_of_text=lambda: np.array(["x"]),
    missing=lambda: pd.NA,
    no_time=lambda: pd.NaT,
)
NUMBERS = (
    ODD
    + _plain(True, "text", "", "1", math.nan, True, False, np.nan, np.bool_(True), [], ["x"], ())
    + _plain(False, math.inf, -math.inf, 10**12, 10**20, 1e30, -1.0, 0, 0.0, -0.0, 5e-324, 1e-30)
    + _plain(False, np.float32(0.1), np.int64(1), Decimal("0.5"), Fraction(1, 2), 10**400)
    + _given(False, a_tensor=lambda: torch.tensor(0.5), half=lambda: torch.tensor(0.5).half())
    + _given(False, an_array=lambda: np.array([0.5, 1.0]), whole=lambda: torch.tensor(1))
)
OR_NONE = _plain(False, None)
NONE = _plain(True, None)
WHOLES = (
    ODD
    + _plain(True, "text", "", "1", math.nan, math.inf, 1.5, True, np.nan, [], ["x"], Decimal("1"))
    + _plain(False, -1, 0, 10**12, 10**20, 10**400, np.int64(1), np.uint8(3), 1.0, np.float64(2))
    + _given(False, a_tensor=lambda: torch.tensor(1), huge=lambda: 2**63)
)
WORDS = ODD + _plain(True, "", "nope", 5, True, math.nan, [], ("a",), LONG, "\ud800", CONTROL)
PATHS = ODD + _plain(True, "", "/nope", 5, True, math.nan, [], LONG, "a\x00b", "\ud800", 10**400)
PATHS += _given(True, zero=lambda: Path("/dev/zero"), fifo=lambda: Path("../odd/fifo"))
SEQUENCES = _plain(True, 5, math.nan, True, "npo:nan", ["npo:nan"], [5], [[]], [None], b"x")
SEQUENCES += _plain(False, [], (), "npo:0.1", ["npo:0.1", "npo:0.1"], {"npo:0.1": 1})
FLAGS = _plain(False, True, False, None, 1, "text", math.nan)
OBJECTIVES = ODD + _plain(True, "text", "", 5, math.nan, [], (), (1,), ("a", "b", "c", "d"))
# What has the methods of an objective, whatever its numbers.
SEVERAL = _given(
    False,
    stacked=lambda: stack([markov.npo(0.1), markov.npo(0.2)]),
    of_infinite_beta=lambda: markov.Objective(math.inf),
    of_half=lambda: markov.Objective(torch.tensor(0.5).half()),
    of_a_huge_margin=lambda: markov.Objective(1.0, 1e30),
)
OBJECTIVES += SEVERAL + _given(True, two=lambda: [markov.npo(0.1), markov.simnpo(2.0)])
TENSORS = ODD + _plain(True, "text", "", math.nan, True, [], ["x"], [[1.0], [1.0, 2.0]])
TENSORS += _given(
    False,
    half=lambda: torch.tensor([-1.0, -60000.0]).half(),
    infinite=lambda: torch.tensor([-math.inf]),
    whole=lambda: torch.tensor([-1, -2]),
    empty=lambda: torch.tensor([]),
    huge=lambda: torch.tensor([-1e38]),
    other_shape=lambda: torch.full((3, 2), -1.0),
    an_array=lambda: np.array([-1.0]),
    above=lambda: torch.tensor([2.0]),
)
FRAMES = ODD + _plain(True, "text", 5, math.nan, [], ())
FRAMES += _given(True, empty=pd.DataFrame, others=lambda: pd.DataFrame({"x": [1]}))
KINDS: Mapping[str, list[Given]] = {
    "number": NUMBERS + NONE,
    "number or none": NUMBERS + OR_NONE,
    "whole": WHOLES + NONE,
    "whole or none": WHOLES + OR_NONE,
    "word": WORDS + NONE,
    "word or none": WORDS + OR_NONE,
    "path": PATHS + NONE,
    "path or none": PATHS + OR_NONE,
    # None stands for the data that go with a model, which take longer than a case may.
    "path of data": PATHS,
    "sequence": SEQUENCES,
    "flag": FLAGS,
    "objective": OBJECTIVES + NONE,
    "several": SEVERAL,
    "tensor": TENSORS + NONE,
    "frame": FRAMES + NONE,
}


class Call(NamedTuple):
    """A function, arguments with which it works, and of what kind each is that may be changed."""

    name: str
    function: Callable[..., Any]
    good: Mapping[str, Make]
    kinds: Mapping[str, str]


def _call(name: str, function: Any, good: Mapping[str, Make], **kinds: str) -> Call:
    return Call(name, function, good, {key: kind.replace("_", " ") for key, kind in kinds.items()})


def _of_fields(kind: type, good: Mapping[str, Make], **others: str) -> Call:
    """The constructor of a dataclass, whose numbers are told by the types of its fields."""
    found = {"int": "whole", "float": "number", "bool": "flag", "float | None": "number or none"}
    found |= {"int | None": "whole or none", "str": "word", "OptimizerName": "word"}
    kinds = {
        one.name: found.get(str(one.type), "word")
        for one in dataclasses.fields(kind)
        if str(one.type) in found or str(one.type).startswith("Literal")
    }
    return Call(
        kind.__name__, kind, good, kinds | {k: v.replace("_", " ") for k, v in others.items()}
    )


def calls(given: Path) -> list[Call]:
    """Return the calls that can be made of what lies in the shared folder."""
    seq = lambda: markov.SequenceLogProbs.of([-1.0, -3.0], [2.0, 3.0], [-2.0, -2.0])  # noqa: E731
    tiny = {"case": lambda: "x", "forget1_length": lambda: 5, "forget2_length": lambda: 9}
    case = {**tiny, "name": lambda: "x", "pretrain_components": lambda: ("retain",)}
    del case["case"]
    objective = {"objective": lambda: markov.npo(0.1)}
    model, table = str(given / "model"), str(given / "tables" / "model.parquet")
    data = str(given / "data" / "forget10.json")
    logs = str(given / "logs" / "model")
    scored = {"model": lambda: model, "data": lambda: data, "progress": lambda: False}
    small = lambda: [experiment(steps=2)]  # noqa: E731

    def experiment(**options: Any) -> Any:
        return markov.Experiment(
            case=dataclasses.replace(markov.LENGTH, **dict.fromkeys(COUNTS, 60)),
            model=markov.Transformer(width=8, depth=1, heads=1),
            pretraining=markov.Pretraining(epochs=1),
            **options,
        )

    chain: dict[str, Any] = {
        "initial": lambda: torch.ones(2).double() / 2,
        "transition": lambda: torch.ones(2, 2).double() / 2,
    }
    mixture = {
        "weights": lambda: (1.0,),
        "chains": lambda: (markov.MarkovChain(**{key: make() for key, make in chain.items()}),),
        "lengths": lambda: (3,),
    }
    corners = [
        _call(name, getattr(markov, name), {"beta": lambda: 0.5}, beta="number", **more)
        for name, more in (
            ("npo", {}),
            *((name, {"gamma": "number"}) for name in CORNERS),
        )
    ]
    laws = {"length": lambda: 3.0, "start": lambda: -1.0, **objective}
    return [
        *corners,
        _call("gradient_ascent", markov.gradient_ascent, {}, normalize="number"),
        _call("Objective.loss", _loss, {"beta": lambda: 0.5, "seq": seq}, **FOUR),
        _call("Objective.weight", _weight, {"beta": lambda: 0.5, "seq": seq}, **FOUR),
        *(
            _call(
                f"Objective.{name}",
                _method(name),
                {**objective, "seq": seq},
                objective="several",
                seq=OF,
            )
            for name in ("score", "logit", "loss", "centered_loss", "weight")
        ),
        *(
            _call(
                f"SequenceLogProbs.of, {name}",
                _of(name),
                {"logp": lambda: [-1.0], "length": lambda: [2.0], "ref": lambda: [-1.0]},
                logp="tensor",
                length="tensor",
                ref="tensor",
            )
            for name in ("loss", "weight")
        ),
        _of_fields(markov.Case, case, pretrain_components="sequence"),
        _of_fields(markov.Transformer, {}),
        _of_fields(markov.Tabular, {}),
        _of_fields(markov.Pretraining, {}),
        _of_fields(markov.Experiment, {}, objective=OF, model=OF, case=OF, recorded="sequence"),
        _call("MarkovChain", markov.MarkovChain, chain, initial="tensor", transition="tensor"),
        _call("Mixture", markov.Mixture, mixture, weights="tensor", chains=OF, lengths="tensor"),
        _call("theta", markov.theta, {**laws, "time": lambda: 1.0}, **LAW, time="number"),
        _call(
            "time_to_forget",
            markov.time_to_forget,
            {**laws, "fall": lambda: 1.0},
            **LAW,
            fall="number",
        ),
        _call(
            "explain",
            markov.explain,
            {**objective, "seq": seq},
            objective=OF,
            seq=OF,
            index="whole",
        ),
        _call("crossings", markov.crossings, {}, table="frame"),
        _call("ideal_forget_distance", markov.ideal_forget_distance, {}, case=OF),
        _call("run", markov.run, {"experiments": small, "progress": lambda: False}, experiments=OF),
        _call("llm.method", llm.method, {"word": lambda: "npo:0.1"}, word="word"),
        _call("llm.read", llm.read, {"source": lambda: data}, source="path", split="word_or_none"),
        _call("llm.read_run", llm.read_run, {}, folder="path"),
        _call(
            "llm.score",
            llm.score,
            scored,
            model="path",
            data="path_of_data",
            noise="number_or_none",
            noise_seed="whole",
            max_length="whole",
            budget="whole",
        ),
        _call(
            "llm.weights",
            llm.weights,
            {"scores": lambda: table, "reference": lambda: table},
            scores="path",
            reference="path",
            retrained="path_or_none",
            objectives="sequence",
        ),
        _call("llm.allocation", llm.allocation, {}, table="frame", effort="word", need="word"),
        _call(
            "llm.diagnose",
            llm.diagnose,
            {"logs": lambda: logs, "retrained_logs": lambda: logs},
            logs="path",
            retrained_logs="path",
            objectives="sequence",
            lengths="path_or_none",
        ),
        _call(
            "llm.evaluate",
            llm.evaluate,
            {"logs": lambda: logs},
            logs="path",
            retrained_logs="path_or_none",
            variant="word",
            per_author="whole_or_none",
        ),
        _call(
            "llm.unlearn",
            llm.unlearn,
            {
                "model": lambda: model,
                "forget": lambda: data,
                "retain": lambda: str(given / "data" / "retain90.json"),
                "epochs": lambda: 1,
                "progress": lambda: False,
            },
            model="path",
            forget="path",
            method="word",
            retain="path",
            retain_weight="number_or_none",
            weighting="word",
            epochs="whole",
            batch="whole",
            learning_rate="number_or_none",
            seed="whole",
            max_length="whole",
        ),
        _call(
            "llm.finetune",
            llm.finetune,
            {**scored, "epochs": lambda: 1},
            model="path",
            data="path",
            epochs="whole",
            batch="whole",
            learning_rate="number_or_none",
            seed="whole",
            probe="whole",
            weight_decay="number",
        ),
        _call(
            "llm.relearn",
            llm.relearn,
            {**scored, "epochs": lambda: 1, "repeats": lambda: 1},
            model="path",
            data="path_of_data",
            which="sequence",
            share="number",
            repeats="whole",
            epochs="whole",
            batch="whole",
        ),
        _call(
            "llm.load",
            llm.load,
            {"source": lambda: model, "device": lambda: "cpu"},
            source="path",
            dtype="word",
            device="word",
            revision="word_or_none",
        ),
    ]


COUNTS = ("retain_count", "forget1_count", "forget2_count")
CORNERS = ("simnpo", "length_normalized_npo", "reference_free_npo")
OF = "objective"
FOUR = {"beta": "number", "gamma": "number", "reference": "number", "normalize": "number"}
LAW = {"objective": OF, "length": "number", "start": "number"}


def _loss(seq: Any, **four: Any) -> Any:
    return markov.Objective(**four).loss(seq)


def _weight(seq: Any, **four: Any) -> Any:
    return markov.Objective(**four).weight(seq)


def _method(name: str) -> Callable[..., Any]:
    def called(objective: Any, seq: Any) -> Any:
        return getattr(objective, name)(seq)

    return called


def _of(name: str) -> Callable[..., Any]:
    def called(**values: Any) -> Any:
        return getattr(markov.npo(0.1), name)(markov.SequenceLogProbs.of(**values))

    return called


def case(given: Path, rng: random.Random) -> Case:
    """A call with one or two arguments changed."""
    call = rng.choice(calls(given))
    chosen = {
        name: rng.choice(KINDS[call.kinds[name]])
        for name in rng.sample(sorted(call.kinds), min(len(call.kinds), rng.choice((1, 1, 1, 2))))
    }
    refused = any(one.refused for one in chosen.values())
    told = ", ".join(f"{name}={one.told}" for name, one in chosen.items())

    def job() -> int:
        arguments = {name: make() for name, make in call.good.items()}
        arguments |= {name: one.make() for name, one in chosen.items()}
        return answered(lambda: call.function(**arguments))

    def act(box: Box) -> Result:
        result = once(box, job, must_refuse=refused)
        if result.ended is not None and result.ended.code == SENSELESS:
            return Result(Verdict("success", result.ended.err.strip()[-300:]), result.ended)
        if result.verdict.kind == "untidy":
            return Result(Verdict(REFUSED), result.ended)  # warnings are for whoever calls
        return result

    return Case("python", f"{call.name}({told})", act)


def answered(call: Make) -> int:
    """Make a call, and return how it was answered, as an exit code."""
    try:
        found = call()
    except InvalidInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except TypeError as error:
        if any(word in str(error) for word in LACKING):
            print(f"error: {error}", file=sys.stderr)
            return 2
        raise
    except MemoryError as error:
        print(f"error: out of memory ({error})", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        print(f"error: out of memory ({error})", file=sys.stderr)
        return 2
    if any(math.isnan(value) for value in numbers(found)):
        print(f"returned what is no number: {str(found)[:200]}", file=sys.stderr)
        return SENSELESS
    return 0


def numbers(found: Any) -> Iterable[float]:
    """Return the numbers in a result, as far as there are not too many.

    Tables are not looked at: where something was not measured, they have nan.
    """
    if isinstance(found, torch.Tensor):
        return found.detach().double().flatten()[:ENDLESS].tolist()
    if isinstance(found, np.ndarray) and found.dtype.kind == "f":
        return found.astype(float).ravel()[:ENDLESS].tolist()
    if isinstance(found, float):
        return [found]
    if isinstance(found, tuple | list):
        return [value for one in found[:100] for value in numbers(one)]
    if isinstance(found, dict):
        return [value for one in found.values() for value in numbers(one)]
    return []
