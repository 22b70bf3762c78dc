"""Fine-tuning from a word to a folder: plain AdamW, what is known by heart, stops, and refusals."""

from __future__ import annotations

import math
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import llm
from llm.__main__ import cli, parse
from llm.commands.options import optimization_of
from llm.commands.unlearn import resolved, unlearning
from llm.data import tofu
from llm.data.sources import without
from llm.jobs.finetuning import RATES, read_sets, with_rate
from llm.jobs.settings import lora_of
from llm.models import finetuned
from llm.models.answers import responses
from llm.models.language_model import LanguageModel
from llm.randomness import shuffled
from llm.scoring.encoding import Encoded
from llm.training.adapters import Lora
from llm.training.memorising import COLUMNS
from llm.training.settings import Optimization
from markov.errors import InvalidInput
from markov.files import storage
from markov.files.folders import CLAIM
from tests.helpers import files_in
from tests.markov.console.test_progress import told

RUN: dict[str, Any] = {"epochs": 3, "batch": 3, "learning_rate": 1e-3, "progress": False}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield


@pytest.fixture
def language(place: Path) -> LanguageModel:
    return llm.load(place / "model")


def asked(place: Path, *more: str) -> list[str]:
    """Both files without the forget file: the words that make a retrained model."""
    files = [str(place / f"{name}.json") for name in ("forget10", "retain90")]
    words = ["--model", str(place / "model"), "--data", *files, "--without", files[0]]
    sizes = ["--epochs", "3", "--batch", "3", "--learning-rate", "1e-3", "--device", "cpu"]
    return ["finetune", *words, *sizes, "--watch", files[1], "--out", "run", *more]


def plain_training(
    model: Any, encoded: list[Encoded], settings: Optimization
) -> Iterator[tuple[int, float]]:
    """Transformers' own loss under torch's AdamW: the sum of losses of each epoch per token."""
    decayed = [one for one in model.parameters() if one.ndim >= 2]
    others = [one for one in model.parameters() if one.ndim < 2]
    rule = torch.optim.AdamW(
        [{"params": decayed}, {"params": others, "weight_decay": 0.0}],
        weight_decay=settings.weight_decay,
    )
    model.train()
    per_epoch, step = math.ceil(len(encoded) / settings.batch), 0
    for epoch in range(1, settings.epochs + 1):
        total, tokens = 0.0, 0
        for rows in shuffled(len(encoded), settings.batch, settings.seed, epoch):
            width = max(len(encoded[row].tokens) for row in rows)
            words, labels, present = (torch.full((len(rows), width), fill) for fill in (0, -100, 0))
            for at, row in enumerate(rows):
                own = torch.tensor(encoded[row].tokens)
                words[at, : len(own)], present[at, : len(own)] = own, 1
                labels[at, encoded[row].prompt : len(own)] = own[encoded[row].prompt :]
            step, count = step + 1, int((labels != -100).sum())
            loss = model(words, attention_mask=present, labels=labels, use_cache=False).loss
            rule.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip or math.inf)
            for group in rule.param_groups:
                group["lr"] = settings.rate(step, per_epoch)
            rule.step()
            total, tokens = total + loss.item() * count, tokens + count
        yield epoch, total / tokens
    model.eval()


@pytest.mark.parametrize("change", [{}, {"weight_decay": 0.5, "warmup_epochs": 2.0, "seed": 5}])
def test_it_is_training_by_transformers_and_adamw(
    place: Path, language: LanguageModel, change: dict[str, Any]
) -> None:
    examples = llm.read(place / "retain90.json")
    found = llm.finetune(language, examples, **RUN, **change)
    twin = llm.load(place / "model")
    options = {name: value for name, value in RUN.items() if name != "progress"}
    settings, encoded = Optimization(**options, **change), responses(twin, examples)
    losses = list(plain_training(twin.model, encoded, settings))
    assert found.epochs["epoch"].tolist() == [epoch for epoch, _ in losses] == [1, 2, 3]
    assert found.epochs["loss"].tolist() == pytest.approx([x for _, x in losses], rel=1e-5)
    for name, value in found.model.model.state_dict().items():
        torch.testing.assert_close(value, twin.model.state_dict()[name], rtol=1e-4, atol=2e-5)
        assert not torch.equal(value, language.model.state_dict()[name])


def written_by_heart(language: LanguageModel, one: Encoded) -> float:
    """The share of a response that greedy decoding writes, one token at a time from the prompt."""
    tokens, wanted = list(one.tokens[: one.prompt]), one.tokens[one.prompt :]
    for count, token in enumerate(wanted):
        with torch.no_grad():
            likeliest = int(language.model(torch.tensor([tokens])).logits[0, -1].argmax())
        if likeliest != token:
            return count / len(wanted)
        tokens.append(likeliest)
    return 1.0


def test_what_is_known_by_heart_is_what_scoring_and_greedy_decoding_find(
    place: Path, language: LanguageModel
) -> None:
    data, other = (llm.read(place / f"{name}.json")[:2] for name in ("forget10", "retain90"))
    tofu.write(other, Path("other.json"))
    few: dict[str, Any] = {**RUN, "epochs": 60, "learning_rate": 3e-2}
    found = llm.finetune(language, data, watch=["other.json"], **few)
    names = ["data", "other.json"]
    assert found.memorised["set"].tolist() == names * 61
    assert list(found.memorised) == ["epoch", "set", "examples", *COLUMNS]
    for epoch, model in ((0, language), (60, found.model)):
        own = found.memorised[found.memorised["epoch"] == epoch].set_index("set")
        for name, examples in zip(names, (data, other), strict=True):
            scores = llm.score(model, examples, progress=False)
            mean = (scores["logp"] / scores["length"]).to_numpy()
            right = [written_by_heart(model, one) for one in responses(model, examples)]
            want = [-mean.mean(), np.exp(mean).mean(), sum(right) / len(right)]
            got: Any = own.loc[name, list(COLUMNS)]
            assert list(got) == pytest.approx(want, rel=1e-4)
    end = found.memorised.query("epoch == 60").set_index("set")["recited"]
    assert end["data"] > 0.5 > end[names[1]] and end["data"] > 2 * end[names[1]]


def test_the_command_writes_a_folder_that_others_take(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = told(monkeypatch)
    assert cli(asked(place)) == 0
    shown = capsys.readouterr().out
    retain = llm.read(place / "retain90.json")
    assert f"{len(retain)} examples, 3 epochs" in shown and "recited" in shown
    assert re.search(r"^finetune: (\d+) of \1 updates", "\n".join(said), re.MULTILINE)
    folder = tmp_path / "run"
    files = {CLAIM, "epochs.parquet", "memorised.parquet", "model"}
    assert {one.name for one in folder.iterdir()} == files
    found = finetuned.read_finetuned(folder)
    value = llm.finetune(
        place / "model", retain, watch=[place / "retain90.json"], batch=3, epochs=3, **few()
    )
    pd.testing.assert_frame_equal(found.epochs, value.epochs, check_flags=False)
    sets = ["data", "without", str(place / "retain90.json")]
    assert found.memorised["set"].tolist() == sets * 4
    alone = found.memorised[found.memorised["set"] != "without"].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, value.memorised, check_flags=False)
    ours, theirs = found.model.model.state_dict(), value.model.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert found.model.template == llm.load(place / "model").template
    provenance = found.epochs.attrs[storage.KEY]
    assert provenance["settings"]["optimization"]["learning_rate"] == 1e-3
    assert provenance["seeds"] == [0]

    before = files_in(folder)
    assert cli(asked(place)) == 0  # finished: read, not made
    assert capsys.readouterr().out == shown and files_in(folder) == before
    assert cli(asked(place, "--seed", "1")) == 2
    assert "error: out = 'run' is not allowed" in capsys.readouterr().err
    assert files_in(folder) == before
    model = ["--model", "run/model", "--data", str(place / "forget10.json")]
    assert cli(["score", *model, "--out", "s.parquet"]) == 0


def few() -> dict[str, Any]:
    return {"learning_rate": 1e-3, "progress": False}


# Inside an epoch, before a state is written, and before the model and the last table.
STOPS = {
    "llm.training.memorising.memorised": 4,
    "llm.training.memorising.save_state": 1,
    "llm.training.loop.Loop.update": 3,
    "llm.models.finetuned.save": 1,
    "markov.files.storage.write_table": 2,
}


@pytest.mark.parametrize(
    ("more", "places"),
    [
        ((), STOPS),
        (("--lora-rank", "2"), {"llm.training.memorising.save_state": 3}),
        (("--dtype", "bfloat16"), {"llm.training.memorising.save_state": 2}),
    ],
    ids=["whole", "adapters", "masters"],
)
def test_a_fine_tuning_that_is_stopped_anywhere_ends_the_same(
    place: Path,
    tmp_path: Path,
    more: tuple[str, ...],
    places: dict[str, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert cli(asked(place, *more, "--out", "whole")) == 0
    for name, number in places.items():
        with monkeypatch.context() as patch:
            stopped(patch, name, number)
            assert cli(asked(place, *more)) == 130, name
        assert not (tmp_path / "run" / "epochs.parquet").exists()
    assert (tmp_path / "run" / "state").is_dir()
    assert cli(asked(place, *more)) == 0
    whole, parts = (finetuned.read_finetuned(tmp_path / name) for name in ("whole", "run"))
    for one, other in zip(whole[:2], parts[:2], strict=True):
        pd.testing.assert_frame_equal(one, other, check_flags=False)
    folders = [tmp_path / name / "model" for name in ("whole", "run")]
    weights = [(folder / "model.safetensors").read_bytes() for folder in folders]
    assert weights[0] == weights[1]
    assert not (tmp_path / "run" / "state").exists()


def stopped(patch: pytest.MonkeyPatch, name: str, number: int) -> None:
    """Interrupt the call of this number of a function, from 1."""
    call, calls = pkgutil.resolve_name(name), iter(range(1, 1000))

    def counted(*args: Any, **options: Any) -> Any:
        if next(calls) == number:
            raise KeyboardInterrupt
        return call(*args, **options)

    patch.setattr(name, counted)


def test_what_was_done_is_not_done_again(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llm.training.loop import Loop

    with monkeypatch.context() as patch:
        stopped(patch, "llm.training.loop.Loop.update", 5)  # the first of epoch 3
        assert cli(asked(place)) == 130
    steps: list[int] = []
    update = Loop.update
    monkeypatch.setattr(
        Loop, "update", lambda self, step, *rest: steps.append(step) or update(self, step, *rest)
    )
    assert cli(asked(place)) == 0 and steps == [5, 6]


def test_adapters_learn_and_are_added_into_the_model(place: Path, language: LanguageModel) -> None:
    data = place / "retain90.json"
    plain = llm.finetune(language, data, **RUN)
    found = llm.finetune(language, data, lora=Lora(rank=2), **{**RUN, "learning_rate": 1e-2})
    assert type(found.model.model) is type(language.model)
    own = found.model.model.state_dict()
    assert own.keys() == language.model.state_dict().keys()
    embedding = "model.embed_tokens.weight"  # no linear layer, so that no adapter is beside it
    assert torch.equal(own[embedding], language.model.state_dict()[embedding])
    assert not torch.equal(plain.model.model.state_dict()[embedding], own[embedding])
    losses = found.epochs["loss"].tolist()
    assert losses[-1] < losses[0]
    last = found.memorised.iloc[-1]
    scores = llm.score(found.model, data, progress=False)
    mean = (scores["logp"] / scores["length"]).mean()
    assert last["nats_per_token"] == pytest.approx(-mean, rel=1e-5)


def test_several_files_are_learnt_in_turn_and_what_is_left_out_is_gone(place: Path) -> None:
    files = [place / f"{name}.json" for name in ("forget10", "retain90")]
    forget, retain = map(llm.read, files)
    examples, sets = read_sets(files, (), [files[0]])
    assert examples == (*forget, *retain) and sets == {"data": examples, str(files[0]): forget}
    examples, sets = read_sets(files, files[0], (), probe=3)
    assert examples == retain and list(sets) == ["data", "without"]
    assert [len(one) for one in sets.values()] == [3, 3] and set(sets["data"]) < set(retain)
    assert read_sets(files, files[0], (), probe=3)[1] == sets
    assert read_sets(forget, (), ())[0] == read_sets(files[0], (), ())[0] == forget
    moved = [replace(one, index=one.index + 100, topic="another") for one in forget]
    assert without((*forget, *retain), moved) == retain
    assert read_sets("authors:full", "authors:forget10", ())[0] == tuple(
        replace(one, index=row) for row, one in enumerate(llm.read("authors:retain90"))
    )


def test_what_is_refused_is_one_line_before_any_work(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm.models.source.load", pytest.fail)
    model, data = ["--model", str(place / "model")], ["--data", str(place / "retain90.json")]
    forget = str(place / "forget10.json")
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "mine.txt").write_text("mine")
    (tmp_path / "bad.json").write_text('[{"question": "Who?"}]')
    cases = [
        (model, "data"),
        ([*model, "--data", "nowhere.json"], "nowhere.json"),
        ([*model, "--data", "tofu:forget07"], "forget07"),
        ([*model, "--data", "bad.json"], "answer"),
        ([*model, *data, "--without", forget], "without, index"),
        ([*model, *data, "--without", *data[1:]], "fewer than all"),
        ([*model, *data, "--watch", *data[1:], *data[1:]], "watch"),
        ([*model, *data, "--watch", "nowhere"], "nowhere"),
        ([*model, *data, "--epochs", "0"], "epochs"),
        ([*model, *data, "--learning-rate", "0"], "learning_rate"),
        ([*model, *data, "--warmup-epochs", "6"], "warmup_epochs"),
        ([*model, *data, "--lora-rank", "0"], "rank"),
        ([*model, *data, "--probe", "0"], "probe"),
        ([*model, *data, "--out", "others"], "mine.txt"),
        ([*model, *data, "--out", str(place / "model" / "in")], "which is read"),
        (["--model", "a/b/c", *data], "model"),
    ]
    for words, said in cases:
        assert cli(["finetune", *words]) == 2, words
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1 and said in err, (words, err)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["bad.json", "others"]


def test_a_rate_that_is_too_large_is_one_line_and_leaves_the_folder_free(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        # The loss of the third epoch is not finite, whatever the rate.
        patch.setattr("llm.training.fine_tuning.response_logprobs", broken_after(5))
        assert cli(asked(place)) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "learning_rate = 0.001" in err and "epoch 3" in err
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())
    assert cli(asked(place, "--learning-rate", "1e-4")) == 0


def broken_after(calls: int) -> Any:
    from llm.scoring.logprobs import response_logprobs

    left = iter(range(calls - 1))

    def broken(model: Any, batch: Any) -> Any:
        found = response_logprobs(model, batch)
        return found if next(left, None) is not None else found._replace(logp=found.logp * math.nan)

    return broken


def test_the_step_size_follows_from_the_number_of_parameters(language: LanguageModel) -> None:
    open_ = Optimization(epochs=1, batch=1, learning_rate=1.0)
    assert with_rate(open_, 0.5, language).learning_rate == 0.5
    assert with_rate(open_, None, language).learning_rate == RATES[0][1]

    class Weighty(torch.nn.Module):
        def __init__(self, size: float) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.empty(int(size), device="meta"))

    rates = [
        with_rate(open_, None, language._replace(model=Weighty(size))).learning_rate  # pyright: ignore[reportArgumentType]
        for size in (2e6, 135e6, 1.2e9, 7e9)
    ]
    assert rates == [1e-3, 3e-4, 1e-5, 1e-5]


def test_unlearn_takes_the_options_of_training_too() -> None:
    words = ["--warmup-epochs", "0.5", "--weight-decay", "0", "--lora-rank", "3", "--batch", "7"]
    found = parse(["unlearn", *words, "--learning-rate", "0.1"])
    given = ["finetune", *words, "--learning-rate", "0.1", "--epochs", "10"]
    own = parse([*given, "--precision", "float32"])
    settings = unlearning(resolved(found))
    assert settings.optimization == optimization_of(own) and settings.lora == lora_of(own.lora_rank)
    want = Optimization(epochs=10, batch=7, learning_rate=0.1, weight_decay=0, warmup_epochs=0.5)
    assert settings.optimization == want and settings.lora == Lora(rank=3)


def test_a_folder_of_something_else_and_an_unfinished_one_are_no_fine_tuning(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidInput, match="finished"):
        finetuned.read_finetuned(tmp_path)
    with monkeypatch.context() as patch:
        stopped(patch, "llm.training.memorising.save_state", 2)
        assert cli(asked(place)) == 130
    with pytest.raises(InvalidInput, match="finished"):
        finetuned.read_finetuned(tmp_path / "run")
    assert cli(asked(place)) == 0
    (tmp_path / "run" / "memorised.parquet").write_bytes(b"cut short")
    want = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    assert cli(asked(place)) == 0
    assert "set aside" in capsys.readouterr().err
    assert finetuned.read_finetuned(tmp_path / "run").memorised["epoch"].max() == 3
    assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() == want
