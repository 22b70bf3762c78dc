"""What nobody said follows from what was said, and is printed; what does not go together is
refused before any work.
"""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from figures.__main__ import cli as figures_cli
from figures.language import own_model
from llm.__main__ import cli
from llm.commands.muse import Muse
from llm.commands.muse import resolved as resolved_muse
from llm.commands.muse import unlearning as unlearning_texts
from llm.commands.unlearn import Unlearn, resolved, unlearning
from llm.data import tofu
from llm.data.authors.corpus import PERCENT, PERCENTS, Authors, splits
from llm.data.news.corpus import News
from llm.data.sources import read
from llm.data.splits import retain_word, tofu_sets
from llm.jobs.sweeping import Sweep, jobs_of, runs_of, task_of
from llm.jobs.sweeping import resolved as resolved_sweep
from llm.models import names
from llm.models.language_model import LanguageModel
from llm.models.names import KINDS, Made, made
from llm.models.small_authors import DefaultModels
from llm.models.small_news import NewsModels
from llm.models.source import ModelOptions, load
from llm.scoring.templates import PLAIN
from llm.sweeps.sweep import Task
from markov.errors import InvalidInput

FEW = Authors(authors=10, questions=2)


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder to work in, where no model is loaded and no data set is fetched."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("work began")

    for place in (
        "llm.models.source.load",
        "llm.sweeps.sweep.several",
        "llm.data.tofu._from_hub",
        "llm.data.muse._from_hub",
    ):
        monkeypatch.setattr(place, refuse)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, str]]:
    """The settings and the kinds of the models that are made."""
    found: list[tuple[Any, str]] = []

    def build(settings: Any, kind: str, **_: object) -> LanguageModel:
        found.append((settings, kind))
        model: Any = nn.Linear(1, 1)
        tokenizer: Any = None
        return LanguageModel(model, tokenizer, PLAIN, "as the cache calls it")

    monkeypatch.setattr("llm.models.small_authors.build", build)
    monkeypatch.setattr("llm.models.small_news.build", build)
    return found


def weights_of(folder: Path, size: int) -> str:
    """A folder with a file of weights of a size, none of which is written."""
    folder.mkdir()
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(size)
    return str(folder)


# --- words that name a model ----------------------------------------------------------------------


@given(
    kind=st.sampled_from(KINDS["authors"]),
    percent=st.sampled_from(PERCENTS),
    seed=st.integers(0, 99),
    news=st.booleans(),
)
def test_a_model_made_here_is_its_word(kind: str, percent: int, seed: int, news: bool) -> None:
    percent = PERCENT if kind == "original" or news else percent
    one = Made("news", "retrained", PERCENT, seed) if news else Made("authors", kind, percent, seed)
    assert made(one.word) == one
    assert all(
        made(f"{word}:{kind}") == Made(word, kind)
        for word, kinds in KINDS.items()
        for kind in kinds
    )
    assert (
        Made("authors", "retrained").word == "authors:retrained"
        and Made("news", "original").word == "news:original"
    )


def test_an_original_is_the_same_whatever_is_to_be_forgotten() -> None:
    assert made("authors:original:5") == made("authors:original:1") == Made("authors", "original")
    assert made("authors:original:5:3") == Made("authors", "original", seed=3)


@pytest.mark.parametrize(
    "word", ["gpt2", "owner/name", "some/folder", "authors", "newspaper:original", "tofu:full"]
)
def test_other_words_name_no_model_made_here(word: str) -> None:
    assert made(word) is None


@pytest.mark.parametrize(
    ("word", "field"),
    [
        ("authors:full", "kind"),
        ("news:partial", "kind"),
        ("authors:", "kind"),
        ("authors:retrained:7", "percent"),
        ("authors:retrained:x", "model"),
        ("authors:retrained:5:1:2", "model"),
        ("authors:retrained:-5", "model"),
        ("news:original:0:1", "model"),
        ("news:original:", "model"),
    ],
)
def test_words_of_no_model_are_refused_and_never_asked_of_the_hub(
    word: str, field: str, idle: Path
) -> None:
    for refused in (lambda: made(word), lambda: names.check(word), lambda: load(word)):
        with pytest.raises(InvalidInput) as caught:
            refused()
        assert caught.value.field == field


def test_every_command_loads_what_a_word_names(asked: list[tuple[Any, str]]) -> None:
    found = [
        load(word, device="cpu").name
        for word in ("authors:original", "authors:retrained:5", "authors:partial:1:3")
    ]
    assert found == ["authors:original", "authors:retrained:5", "authors:partial:1:3"]
    assert asked == [
        (DefaultModels(), "original"),
        (DefaultModels(percent=5), "retrained"),
        (DefaultModels(authors=Authors(seed=3), percent=1, seed=3), "partial"),
    ]
    asked.clear()
    assert [load(word, device="cpu").name for word in ("news:original", "news:retrained:3")] == [
        "news:original",
        "news:retrained:3",
    ]
    assert asked == [(NewsModels(), "original"), (NewsModels(news=News(seed=3)), "retrained")]
    with pytest.raises(InvalidInput, match="revision"):
        load("authors:original", revision="main")


@pytest.mark.parametrize(("percent", "seed"), [(20, 0), (5, 0), (20, 3), (1, 2)])
def test_build_prints_words_that_name_the_very_models_that_it_made(
    percent: int, seed: int, asked: list[tuple[Any, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(["build", "--percent", str(percent), "--seed", str(seed), "--device", "cpu"]) == 0
    printed = dict(line.split(": ") for line in capsys.readouterr().out.strip().splitlines())
    built = {kind: settings for settings, kind in asked}
    assert printed.keys() == built.keys() == set(KINDS["authors"])
    for kind, settings in built.items():
        assert settings == DefaultModels(
            authors=Authors(seed=seed),
            percent=PERCENT if kind == "original" else percent,
            seed=seed,
        )
        asked.clear()
        load(printed[kind], device="cpu")
        assert asked == [(settings, kind)]


def test_the_data_of_another_seed_have_a_word_too() -> None:
    assert (
        read("authors:forget01:3")
        == splits(Authors(seed=3))["forget01"]
        != read("authors:forget01")
    )
    assert retain_word("authors:forget01:3") == "authors:retain99:3"
    assert tofu_sets("authors:forget01:3").forget == read("authors:forget01:3")
    for word in ("authors:forget01:", "authors:forget01:x", "authors:forget01:-1"):
        with pytest.raises(InvalidInput, match="data"):
            read(word)


# --- unlearn --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "data", "retain"),
    [
        ("authors:original", None, "authors:retain80"),
        ("authors:original", "authors:forget05", "authors:retain95"),
        ("authors:original:20:3", None, "authors:retain80:3"),
        ("authors:partial:5", None, "authors:retain95"),
        ("owner/llama", "tofu:forget10", "tofu:retain90"),
        ("owner/llama", "tofu:forget05_perturbed", "tofu:retain95"),
        ("owner/llama", "here/forget01.json", "here/retain99"),
    ],
)
def test_what_is_to_stay_follows_from_what_is_to_be_forgotten(
    model: str, data: str | None, retain: str, idle: Path
) -> None:
    assert resolved(Unlearn(model=model, data=data)).retain_data == retain
    assert (
        resolved(Unlearn(model=model, data=data, retain_data="mine.json")).retain_data
        == "mine.json"
    )


def test_step_sizes_follow_from_the_size_of_the_model_and_what_was_given_stays(idle: Path) -> None:
    small, large = weights_of(idle / "small", 9_000_000), weights_of(idle / "large", 2_000_000_000)
    middle = idle / "middle"
    middle.mkdir()
    sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152}
    config = {"model_type": "llama", **sizes, **heads}
    (middle / "config.json").write_text(json.dumps(config), "utf-8")
    for model, rate in (
        ("authors:original", 1e-3),
        (small, 1e-3),
        (str(middle), 1e-4),
        ("smollm2-135m", 1e-4),
        (large, 1e-5),
        ("owner/llama", 1e-5),
    ):
        command = Unlearn(model=model, data="here/forget10.json")
        assert unlearning(resolved(command)).optimization.learning_rate == rate
        assert (
            resolved(
                Unlearn(model=model, data="here/forget10.json", learning_rate=3e-3)
            ).learning_rate
            == 3e-3
        )
        sweep = Sweep(model=model, retrained=model, data="here/forget10")
        assert {run.optimization.learning_rate for run in runs_of(sweep)} == {
            1e-3 if rate > 1e-4 else rate
        }
        assert jobs_of(sweep) == (-1 if rate > 1e-4 else 1)
        assert jobs_of(replace(sweep, jobs=3)) == 3
        own = own_model.own_model(model, None, "here/forget10.json", None, None)
        assert (own.learning_rate, own.retain_data) == (rate, "here/retain90")
        muse = (
            unlearning_texts(resolved_muse(Muse(model=model, data="here", unlearn="npo:1")))
            if "/" in model
            else None
        )
        assert muse is None or muse.optimization.learning_rate == (5e-4 if rate > 1e-4 else rate)


@pytest.mark.parametrize(
    ("word", "term", "weight", "average"),
    [
        (None, "cross_entropy", 0.125, "examples"),
        ("simnpo:4.5", "cross_entropy", 1.0, "examples"),
        ("npo:0.1@0.5", "cross_entropy", 0.5, "examples"),
        ("gradient_ascent", "none", 1.0, "examples"),
        ("grad_diff@2", "cross_entropy", 2.0, "tokens"),
        ("summed_grad_diff", "cross_entropy", 1.0, "examples"),
        ("npo_kl:0.1", "kl", 1.0, "examples"),
    ],
)
def test_a_method_brings_its_retain_term(
    word: str | None, term: str, weight: float, average: str, idle: Path
) -> None:
    """Not so when gradient ascent got the retain term of SimNPO, and NPO its weight."""
    found = unlearning(resolved(Unlearn(objective=word)))
    assert (found.retain_term, found.retain_weight, found.average) == (term, weight, average)


def test_options_say_what_a_word_leaves_open(idle: Path) -> None:
    found = unlearning(resolved(Unlearn(objective="npo:0.1", retain_term="kl", retain_weight=0.3)))
    assert (found.retain_term, found.retain_weight) == ("kl", 0.3)
    assert unlearning(resolved(Unlearn(retain_weight=2.0))).retain_weight == 2.0
    assert (
        unlearning(resolved(Unlearn(objective="gradient_ascent", retain_term="kl"))).retain_weight
        == 1.0
    )
    for options in (
        {"objective": "npo:0.1@1", "retain_weight": 2.0},
        {"objective": "gradient_ascent", "retain_weight": 2.0},
        {"retain_term": "none", "retain_weight": 2.0},
    ):
        with pytest.raises(InvalidInput, match="retain_weight"):
            resolved(Unlearn(**options))


def test_unlearn_says_what_it_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # With a file in the way of the cache, the model cannot be made.
    (tmp_path / "cache").write_text("")
    monkeypatch.setenv("SIMNPO_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    assert cli(["unlearn", "--data", "authors:forget05", "--objective", "grad_diff"]) == 2
    shown, error = capsys.readouterr()
    assert error.startswith("error: SIMNPO_LAB_CACHE")
    assert "authors:original unlearns authors:forget05 and keeps authors:retain95" in shown
    assert "grad_diff, cross_entropy with lambda = 1, learning rate 0.001" in shown


# --- sweep ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "data", "retrained"),
    [
        ({}, "authors:forget20", "authors:retrained"),
        ({"data": "authors:forget05"}, "authors:forget05", "authors:retrained:5"),
        (
            {"data": "authors:forget01:3", "model": "authors:original:10:3"},
            "authors:forget01:3",
            "authors:retrained:1:3",
        ),
        ({"model": "authors:original:20:3"}, "authors:forget20:3", "authors:retrained:20:3"),
    ],
)
def test_the_retrained_model_is_the_one_that_read_all_but_these_data(
    options: dict[str, str], data: str, retrained: str, idle: Path
) -> None:
    command = resolved_sweep(Sweep(**options))  # pyright: ignore[reportArgumentType]
    task = task_of(command)
    assert (task.data, task.retrained) == (data, retrained)


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@pytest.mark.parametrize("word", ["forget10", "forget10{}", "forget10_perturbed"])
def test_a_folder_of_files_is_taken_as_the_help_has_it(
    word: str, suffix: str, tmp_path: Path
) -> None:
    parts = splits(FEW)
    apart = word.endswith("perturbed")
    for name in ("forget10", "retain90", "real_authors_perturbed", "world_facts_perturbed"):
        tofu.write(parts[name], tmp_path / f"{name}{suffix}")
    if apart:
        tofu.write(parts["forget10"], tmp_path / f"forget10_perturbed{suffix}")
        tofu.write(parts["retain90"][:4], tmp_path / f"retain_perturbed{suffix}")
    data = str(tmp_path / word.format(suffix))
    task = Task(options=ModelOptions(), retrained="", data=data)
    assert task.examples() == (parts["forget10"], parts["retain90"])
    assert task.sets().forget == parts["forget10"] and set(task.sets().retain) <= set(
        parts["retain90"]
    )
    assert resolved(Unlearn(model="owner/llama", data=data)).retain_data == str(
        tmp_path / "retain90"
    )


def test_data_that_are_not_there_are_refused_before_the_baselines(
    idle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = splits(FEW)
    for name in (
        "forget10_perturbed",
        "retain_perturbed",
        "real_authors_perturbed",
        "world_facts_perturbed",
    ):
        tofu.write(parts["real_authors_perturbed"], idle / "data" / f"{name}.json")
    for lacking, name in (("forget10", "retain90"), ("retain90", "full")):
        assert cli(["sweep", "--data", "data/forget10", "--retrained", "data", "--out", "out"]) == 2
        assert lacking in capsys.readouterr().err and not (idle / "out" / "original").exists()
        tofu.write(parts["forget10"], idle / "data" / "forget10.json")
        tofu.write(parts[name], idle / "data" / f"{name}.json") if lacking == "retain90" else None


# --- what does not go together --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "words"),
    [
        # Data that a model need not have read, and models that cannot have read the data.
        ("data", "unlearn --model owner/llama"),
        ("data", "score --model owner/llama"),
        ("data", "evaluate --model owner/llama"),
        ("data", "relearn --model owner/llama"),
        ("data", "sweep --model owner/llama --retrained owner/other"),
        ("data", "muse --model owner/llama"),
        ("data", "score --model news:original"),
        ("model", "unlearn --data tofu:forget10"),
        ("model", "score --data tofu:forget10"),
        ("model", "evaluate --data tofu:forget10"),
        ("model", "relearn --data tofu:forget10"),
        ("model", "sweep --data tofu:forget10"),
        ("model", "score --data authors:forget10:3"),
        ("model", "score --model news:original --data authors:forget10"),
        ("model", "muse --data muse:News"),
        ("model", "muse --data news:3 --model news:original:4"),
        ("model", "muse --model authors:original"),
        ("retain_data", "unlearn --model owner/llama --data mine.json"),
        # Another model as the retrained one.
        ("retrained", "evaluate --data authors:forget05 --retrained authors:retrained"),
        ("retrained", "relearn --retrained authors:retrained:5"),
        ("retrained", "unlearn --retrained authors:retrained:10:1"),
        ("retrained", "sweep --retrained news:retrained"),
        ("retrained", "sweep --retrained no/such/folder"),
        ("retrained", "unlearn --retrained no/such/folder"),
        ("retrained", "sweep --data mine/forget10"),
        ("retrained", "muse --retrained news:retrained:1"),
        ("reference", "unlearn --reference no/such/folder"),
        # Options that would change nothing.
        ("noise_seed", "score --noise-seed 3"),
        ("refusals", "unlearn --refusals mine.txt"),
        ("refusals", "sweep --refusals mine.txt"),
        ("beta", "sweep --beta 0.5"),
        ("gamma", "sweep --methods npo --beta 0.1 --gamma 0 1"),
        ("retain_weight", "sweep --methods gradient_ascent npo:0.1@1 --retain-weight 2"),
        ("retain_weight", "muse --retain-weight 1"),
        ("learning_rate", "muse --learning-rate 1e-3"),
        ("retain_weight", "muse --unlearn npo:1@1 --retain-weight 2"),
        ("model", "evaluate --logs here --model owner/llama"),
        ("data", "evaluate --logs here --data authors:forget05"),
        ("out", "evaluate --logs here --out there"),
        # Splits that the build would not have.
        ("percent", "build --percent 7"),
    ],
)
def test_what_does_not_go_together_is_one_line_before_any_work(
    field: str, words: str, idle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(words.split()) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"error: {field} = ") and "is not allowed" in line
    assert list(idle.iterdir()) == []


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("data", "--data authors:forget05"),
        ("learning_rate", "--learning-rate 1e-3"),
        ("retain_data", "--retain-data mine.json"),
        ("retrained", "--retrained mine"),
        ("data", "--model owner/llama"),
        ("model", "--model authors:original --data tofu:forget10"),
        ("retrained", "--model authors:original --retrained authors:retrained:5"),
    ],
)
def test_figures_of_ones_own_model_are_asked_for_in_the_same_words(
    field: str, words: str, idle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert figures_cli(["llm_weights_length", *words.split()]) == 2
    assert capsys.readouterr().err.startswith(f"error: {field} = ")


def test_small_news_follow_their_data_unless_their_word_says_otherwise(idle: Path) -> None:
    command = resolved_muse(Muse(data="news:3", retrained="news:retrained"))
    assert (command.model, command.retrained) == ("news:original:3", "news:retrained:3")
    assert resolved_muse(Muse()).data == "news" and resolved_muse(Muse()).model == "news:original"
    found = unlearning_texts(resolved_muse(Muse(unlearn="grad_diff")))
    assert (found.average, found.retain_weight, found.optimization.learning_rate) == (
        "tokens",
        0.1,
        5e-4,
    )


def test_no_option_of_a_model_is_lost_on_the_way_to_a_task(idle: Path) -> None:
    options = ModelOptions(
        model="authors:original", max_length=99, budget=77, device="cpu", dtype="bfloat16"
    )
    given = {field.name: getattr(options, field.name) for field in fields(ModelOptions)}
    assert task_of(Sweep(**given)).options == options
