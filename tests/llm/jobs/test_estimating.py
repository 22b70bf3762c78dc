"""How long a study takes: work counted as it is done, time linear in it, and what is left of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import LlamaForCausalLM

import llm
from llm.__main__ import cli
from llm.data import tofu
from llm.data.authors.corpus import Authors, splits
from llm.data.refusals import with_refusals
from llm.data.splits import tofu_sets
from llm.evaluation.attacks import attacks
from llm.evaluation.tofu import evaluate
from llm.jobs import counting, estimating
from llm.jobs.counting import Size
from llm.jobs.estimating import Remaining, estimate, learnt_of, left, lines, spoken, table
from llm.jobs.relearning import attacked
from llm.jobs.study_settings import Study
from llm.jobs.studying import study
from llm.models.answers import encoded_columns, responses
from llm.models.finetuned import finetune_in_memory
from llm.models.language_model import LanguageModel, load_saved
from llm.models.speed import Cost, Passes, Speed, Work, measured
from llm.scoring.shared import LEAST
from llm.sweeps.times import laps, read_times
from llm.training.adapters import Lora
from llm.training.checkpointing import FILE, parameters_digest
from llm.training.loop import Optimization
from llm.unlearning.methods import method
from llm.unlearning.runs import unlearn_in_memory
from markov.errors import InvalidInput
from markov.files import folders, storage
from tests.helpers import files_in

NAMES = ("forget10", "retain90", "real_authors_perturbed", "world_facts_perturbed")
METHODS = ("npo:0.1@1", "idk@1")
SPEED = Speed(
    trained=Cost(0.5, 0.01),
    watched=Cost(0.25, 0.002),
    scored=Cost(0.125, 0.003),
    written=Cost(0.1, 0.02),
    update=0.3,
    byte=1e-6,
)


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("questions")
    found = splits(Authors(authors=10, questions=4))
    for name in NAMES:
        tofu.write(found[name], folder / f"{name}.json")
    return folder


@pytest.fixture
def language(place: Path) -> LanguageModel:
    return load_saved(place / "model", device="cpu")


@pytest.fixture(scope="module")
def options(place: Path, questions: Path) -> dict[str, Any]:
    return {
        "model": place / "model",
        "data": questions / "forget10",
        "methods": METHODS,
        "attacked": METHODS[:1],
        "retain_answers": 8,
        "measured_answers": 3,
        "learning_epochs": 1,
        "learning_rate": 1e-3,
        "epochs": 1,
        "unlearning_rate": 1e-3,
        "max_new_tokens": 4,
        "attack_epochs": 1,
    }


def asked_of(options: dict[str, Any], out: Path, **changed: Any) -> Study:
    words = {**options, "model": str(options["model"]), "data": str(options["data"])}
    return Study(**{**words, "out": out, "seeds": (3,), **changed})


# --- work is what is done ---


class Seen:
    """Tokens that models passed, padding included, with gradients and without, and the updates."""

    def __init__(self) -> None:
        self.trained = self.others = self.updates = 0


@contextmanager
def seen(monkeypatch: pytest.MonkeyPatch, least: int = LEAST) -> Iterator[Seen]:
    found = Seen()

    def see(module: nn.Module, args: tuple[Any, ...]) -> None:
        # Texts are written by calls of keywords; a check of a model passes three short rows.
        if isinstance(module, LlamaForCausalLM) and args and args[0].shape != (3, 5):
            count = args[0].numel()
            if torch.is_grad_enabled():
                found.trained += count
            else:
                found.others += count

    real = torch.optim.AdamW.step

    def step(self: Any, *args: Any) -> Any:
        found.updates += 1
        return real(self, *args)

    handle = register_module_forward_pre_hook(see)
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step)
        # Trying whether a model may read a prompt once takes three short passes.
        patch.setattr("llm.scoring.shared.allows", lambda _: True)
        patch.setattr("llm.scoring.shared.LEAST", least)
        yield found
    handle.remove()


def check_as_seen(work: Work, found: Seen) -> None:
    assert found.trained > 0
    assert (work.trained.tokens, work.watched.tokens + work.scored.tokens, work.updates) == (
        found.trained,
        found.others,
        found.updates,
    )


def every(**changed: Any) -> Optimization:
    return Optimization(
        **{"epochs": 1, "batch": 3, "learning_rate": 1e-3, "budget": 200, "seed": 5, **changed}
    )


def test_the_work_of_learning_is_what_a_training_passes(
    questions: Path, language: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = tofu.read(questions / "retain90.json")[:10]
    encoded, size = responses(language, examples), Size.of(language)
    work = counting.learning(encoded, every(), [encoded[:4]], size)
    with seen(monkeypatch) as found:
        finetune_in_memory(
            language, examples, every(), watched={"data": examples[:4]}, progress=False
        )
    check_as_seen(work, found)


@pytest.mark.parametrize(
    "word",
    ["gradient_ascent", "npo:0.1@1", "grad_diff@0", "idk@1", "dpo:0.1@1", "npo_kl:0.1@1"],
)
def test_the_work_of_unlearning_is_what_a_run_passes(
    word: str, questions: Path, language: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget = tofu.read(questions / "forget10.json")
    retain = tofu.read(questions / "retain90.json")[:5]
    asked = method(word)
    settings = asked.unlearning(every(), retain_probe=3)
    better = with_refusals(forget) if asked.prefers else None
    columns = encoded_columns(language, forget, 512)
    work = counting.unlearning(
        columns[0],
        responses(language, retain),
        settings,
        Size.of(language),
        preferred=None if better is None else responses(language, better),
        answers=counting.answering(language, columns),
    )
    if better is None:
        assert counting.runs(language, forget, retain, [settings] * 3) == work * 3
    with seen(monkeypatch) as found:
        unlearn_in_memory(language, forget, retain, settings, preferred=better, progress=False)
    check_as_seen(work, found)


@pytest.mark.parametrize("least", [0, LEAST])
def test_the_work_of_attacks_is_what_they_pass(
    least: int,
    questions: Path,
    language: LanguageModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("llm.scoring.shared.LEAST", least)
    forget = tofu.read(questions / "forget10.json")
    wanted = attacks(("shortest", "random"), 0.5, 2, every(warmup_epochs=0))
    work = counting.attacking(language, forget, wanted, Size.of(language))
    with seen(monkeypatch, least) as found:
        attacked(language, forget, wanted, None, tmp_path, progress=False)
    check_as_seen(work, found)


@pytest.mark.parametrize("least", [0, LEAST])
def test_the_work_of_evaluating_is_all_answers_scored_and_every_prompt_written(
    least: int, questions: Path, language: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm.scoring.shared.LEAST", least)
    sets = tofu_sets(questions / "forget10")
    options: dict[str, Any] = {"max_new_tokens": 5, "budget": 300}
    work = counting.evaluating(language, sets, Size.of(language), **options)
    texts = sum(map(len, sets))
    tried = 4 * 2 * counting.TRIED  # two texts of each set
    assert work.most.tokens == 5 * texts + tried and work.written.tokens <= work.most.tokens
    monkeypatch.setattr(counting, "_written", lambda *_: Work())
    work = counting.evaluating(language, sets, Size.of(language), **options)
    monkeypatch.setattr("llm.evaluation.tofu.generate", lambda _, own, **__: ("",) * len(own))
    with seen(monkeypatch, least) as found:
        evaluate(language, sets, progress=False, **options)
    assert work.scored.tokens == found.others > 0 == found.trained


# --- time is linear in work ---


def half(speed: Speed) -> Speed:
    """A machine that is twice as fast."""
    costs = {
        name: Cost(*(one / 2 for one in getattr(speed, name)))
        for name in ("trained", "watched", "scored", "written")
    }
    return Speed(**costs, update=speed.update / 2, byte=speed.byte / 2)


def test_a_machine_that_is_twice_as_fast_takes_half_the_time(
    options: dict[str, Any], language: LanguageModel, tmp_path: Path
) -> None:
    asked = asked_of(options, tmp_path / "out")
    tasks = left(asked, language, learnt_of(asked))
    slow, fast = table(tasks, SPEED), table(tasks, half(SPEED))
    for name in ("seconds", "at_most"):
        assert (slow[name] > 0).all()
        assert fast[name].to_numpy() == pytest.approx(slow[name].to_numpy() / 2)
    assert (slow["at_most"] >= slow["seconds"]).all()
    assert (slow["at_most"] > slow["seconds"]).sum() == 0  # answers are cut at four tokens
    longer = replace(asked, max_new_tokens=400)
    more = table(left(longer, language, learnt_of(longer)), SPEED)
    differs = more["at_most"] > more["seconds"]
    assert (
        set(more["part"][differs])
        == {"evaluate"}
        == set(more["part"][~differs])
        ^ {
            "learn",
            "unlearn",
            "attack",
            "evaluate",
        }
    )


@given(
    st.floats(0, 10), st.floats(1e-4, 10), st.integers(1, 100), st.integers(101, 5000), st.floats(0)
)
def test_two_passes_tell_both_costs(
    fixed: float, token: float, less: int, more: int, noise: float
) -> None:
    few, many = ((count, fixed + token * count) for count in (less, more))
    found = Cost.between(few, many)
    assert found == pytest.approx((fixed, token), abs=1e-6 * (fixed + token))
    assert found.seconds(Passes(2, 2 * more)) == pytest.approx(2 * many[1])
    # Whatever noise does to the small pass, no cost is negative, and the large pass is explained.
    spoiled = Cost.between((less, min(noise, 1e6)), many)
    assert min(spoiled) >= 0
    assert spoiled.seconds(Passes(1, more)) == pytest.approx(many[1])


@pytest.mark.parametrize("axis", ["epochs", "learning_epochs", "attack_epochs"])
def test_an_estimate_is_a_straight_line_in_epochs(
    axis: str, options: dict[str, Any], language: LanguageModel, tmp_path: Path
) -> None:
    totals = []
    for count in (1, 2, 5):
        asked = asked_of(options, tmp_path / "out", **{axis: count})
        totals.append(table(left(asked, language, learnt_of(asked)), SPEED)["seconds"].sum())
    assert totals[1] > totals[0]
    assert totals[2] - totals[0] == pytest.approx(4 * (totals[1] - totals[0]))


def test_every_seed_and_every_method_adds_its_own(
    options: dict[str, Any], language: LanguageModel, tmp_path: Path
) -> None:
    def found(**changed: Any) -> pd.DataFrame:
        asked = asked_of(options, tmp_path / "out", **changed)
        return table(left(asked, language, learnt_of(asked)), SPEED)

    one = found()
    assert one.groupby("part")["model"].apply(list).to_dict() == {
        "attack": ["retrained", "npo:0.1@1"],
        "evaluate": ["original", "retrained", *METHODS],
        "learn": ["original", "retrained"],
        "unlearn": list(METHODS),
    }
    several = found(seeds=(3, 0, 7))
    assert several["seed"].value_counts().to_dict() == dict.fromkeys((3, 0, 7), len(one))
    pd.testing.assert_frame_equal(several[several["seed"] == 3], one)
    lower = found(floor_seeds=(7,))
    alone = one[(one["model"] == "retrained") & one["part"].isin(["learn", "evaluate"])]
    alone = alone.assign(seed=7).reset_index(drop=True)
    pd.testing.assert_frame_equal(lower[len(one) :].reset_index(drop=True), alone)
    pd.testing.assert_frame_equal(lower[: len(one)], one)
    once, twice = (
        table[table["part"] == "unlearn"].set_index("model")
        for table in (found(measured_epochs=(1,)), found(measured_epochs=(0, 1)))
    )
    end = one[one["part"] == "evaluate"].set_index("model").loc[list(METHODS)]
    for name in ("scored_tokens", "written_tokens"):
        before = one[one["part"] == "unlearn"].set_index("model")[name]
        added = once[name] - before  # of the forget answers nothing is written along a run
        assert (added > 0).all() and (added < end[name]).all()
        assert (twice[name] - before == 2 * added).all()
    more = found(methods=(*METHODS, "gradient_ascent"))
    added = more[more["model"] == "gradient_ascent"]
    assert added["part"].tolist() == ["unlearn", "evaluate"]
    rest = more[more["model"] != "gradient_ascent"].reset_index(drop=True)
    pd.testing.assert_frame_equal(rest, one)


def test_a_state_is_as_large_as_what_is_trained(language: LanguageModel) -> None:
    whole, adapters = Size.of(language), Size.of(language, Lora(rank=1))
    weights = {name: one.clone() for name, one in language.model.state_dict().items()}
    layers = [one for one in language.model.modules() if isinstance(one, torch.nn.Linear)]
    head = language.model.get_output_embeddings()
    numbers = sum(one.in_features + one.out_features for one in layers if one is not head)
    assert adapters.state == 12 * numbers < whole.state and adapters.weights == whole.weights
    for name, one in language.model.state_dict().items():
        assert torch.equal(one, weights[name])


# --- the speed of a model ---


@pytest.mark.parametrize("lora", [None, Lora(rank=2)], ids=["whole", "adapters"])
def test_measuring_changes_no_weight_and_no_random_number(
    lora: Lora | None, questions: Path, language: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = responses(language, tofu.read(questions / "retain90.json"))
    modes = [module.training for module in language.model.modules()]
    before, random = parameters_digest(language.model), torch.get_rng_state()
    with seen(monkeypatch) as found:
        speed = measured(
            language, encoded, every(precision="bfloat16"), lora=lora, together=5, limit=0.0
        )
    assert parameters_digest(language.model) == before
    assert torch.equal(torch.get_rng_state(), random)
    assert all(one.grad is None for one in language.model.parameters())
    assert [module.training for module in language.model.modules()] == modes
    # Adapters pass tokens on by keyword, where they are not seen.
    assert (found.trained > 0) == (lora is None) and found.others > 0
    numbers = [*speed.trained, *speed.watched, *speed.scored, *speed.written, speed.update]
    assert all(0 <= one < math.inf for one in numbers)
    for kind in ("trained", "watched", "scored", "written"):
        assert getattr(speed, kind).seconds(Passes(1, 100)) > 0
    silent = measured(language, encoded[:1], every(), limit=0.0)
    assert silent.written == Cost(0, 0) and silent.trained.seconds(Passes(1, 1)) > 0


# --- what is left ---


def test_estimating_alone_prints_a_few_lines_and_writes_nothing(
    options: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["study", "--estimate-only", "--out", str(tmp_path / "out"), "--seeds", "0", "1"]
    for name, value in options.items():
        texts = value if isinstance(value, tuple) else (value,)
        words += [f"--{name.replace('_', '-')}", *map(str, texts)]
    assert cli(words) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith("seeds 0 1: 2 methods") and said[1].startswith("estimate, ")
    assert [line.split()[:3] for line in said[2:6]] == [
        ["learn", "4", "models"],
        ["evaluate", "8", "models"],
        ["unlearn", "4", "models"],
        ["attack", "4", "models"],
    ]
    assert said[6].split()[:2] == ["in", "all"] and files_in(tmp_path) == {}
    with pytest.raises(InvalidInput, match=r"llm\.estimate"):
        study(out=tmp_path / "out", estimate_only=True, **options)
    with pytest.raises(InvalidInput, match="method"):
        estimate(**{**options, "methods": ("mpo",), "attacked": ()}, out=tmp_path / "out")
    assert files_in(tmp_path) == {}
    folders.claim(tmp_path / "other", "study", {"epochs": 99}, names=["gate.parquet"])
    (tmp_path / "other" / "gate.parquet").write_text("begun")
    with pytest.raises(InvalidInput, match="a run of these settings"):
        estimate(**options, out=tmp_path / "other")


def test_a_model_that_is_yet_to_be_made_is_not_made_for_an_estimate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIMNPO_LAB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InvalidInput, match="llm build"):
        estimate("authors:original", "authors:forget10", out=tmp_path / "out")
    assert files_in(tmp_path) == {}


def test_what_is_finished_is_not_estimated_and_every_part_has_its_time(
    options: dict[str, Any],
    language: LanguageModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"

    def found(**changed: Any) -> pd.DataFrame:
        asked = asked_of(options, out, **changed)
        return table(left(asked, language, learnt_of(asked)), SPEED)

    whole = found()
    with pytest.raises(InvalidInput, match="gate"):
        study(out=out, seeds=(3,), progress=False, **options)
    begun = found()
    assert set(begun["part"]) == {"unlearn", "evaluate", "attack"}
    assert set(begun["model"][begun["part"] == "evaluate"]) == set(METHODS)
    kept = whole[whole["part"].isin(["unlearn", "attack"]) | whole["model"].isin(METHODS)]
    pd.testing.assert_frame_equal(begun, kept.reset_index(drop=True))

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("llm.jobs.relearning.attacked", stop)
        study(out=out, seeds=(3,), despite_gate=True, progress=False, **options)
    assert set(found()["model"]) == {"retrained", "npo:0.1@1", "idk@1"}
    study(out=out, seeds=(3,), despite_gate=True, progress=False, **options)
    assert found().empty and lines(found()) == ["estimate: nothing is left to make"]
    assert llm.estimate(out=out, seeds=(3,), despite_gate=True, **options).empty
    assert set(found(seeds=(3, 4))["seed"]) == {4}
    assert set(found(methods=(*METHODS, "grad_diff@1"))["model"]) == {"grad_diff@1"}

    times = storage.read_table(out / "times.parquet")
    assert list(times.columns) == ["seed", "part", "model", "seconds", "finished", "resumed"]
    assert (times["seconds"] > 0).all() and set(times["seed"]) == {3}
    done = times[times["finished"]]
    assert sorted(zip(done["part"], done["model"], strict=True)) == sorted(
        zip(whole["part"], whole["model"], strict=True)
    )
    stopped = times[~times["finished"]]
    assert stopped[["part", "model"]].to_numpy().tolist() == [["attack", "retrained"]]
    assert not times["resumed"].any()


def test_epochs_of_which_there_is_the_state_are_not_estimated(
    options: dict[str, Any], language: LanguageModel, tmp_path: Path
) -> None:
    asked = asked_of(options, tmp_path / "out", learning_epochs=4, epochs=4)

    def found() -> pd.DataFrame:
        return table(left(asked, language, learnt_of(asked)), SPEED).set_index(["part", "model"])

    whole = found()
    folders = {
        ("learn", "retrained"): "retrained",
        ("unlearn", "npo:0.1@1"): "sweep/npo_0.1_lambda1_seed3",
    }
    for folder in folders.values():
        state = asked.out / "seed3" / folder / estimating.STATE / FILE
        state.parent.mkdir(parents=True)
        storage.save_parameters(state, {"one": torch.zeros(1)}, {"epoch": 3})
    now = found()
    changed = [key for key in whole.index if (now.loc[key] != whole.loc[key]).any()]
    assert changed == list(folders)
    for key in changed:
        for name in ("trained_tokens", "updates"):
            assert now.loc[key, name] * 4 == whole.loc[key, name]


# --- how long parts took ---


def test_a_part_that_is_refused_or_never_begins_has_no_time(tmp_path: Path) -> None:
    file = tmp_path / "times.jsonl"
    with laps(file, "a"):
        pass
    with pytest.raises(InvalidInput), laps(file, "a") as lap:
        lap("learn")
        raise InvalidInput("field", 1, "another")
    with laps(None, "a") as lap:
        lap("learn")
    assert not file.exists()
    with pytest.raises(MemoryError), laps(file, "a") as lap:
        lap("unlearn", resumed=True)
        lap("evaluate")
        raise MemoryError
    file.write_text(file.read_text("utf-8") + '{"part": "lea', "utf-8")
    with laps(file, "b") as lap:
        lap("attack")
    found = read_times({0: tmp_path / "none", 2: file})
    assert found.drop(columns="seconds").to_numpy().tolist() == [
        [2, "unlearn", "a", True, True],
        [2, "evaluate", "a", False, False],
        [2, "attack", "b", True, False],
    ]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.2, "1 s"), (89, "89 s"), (91, "2 min"), (5340, "89 min"), (5341, "1 h 30 min")],
)
def test_a_time_is_said_in_words(seconds: float, said: str) -> None:
    assert spoken(seconds) == said


def test_lines_add_up_over_seeds_and_tell_both_times() -> None:
    work = Work(trained=Passes(1, 1500), written=Passes(10, 100), most=Passes(20, 200), updates=3)
    found = table([Remaining(seed, "unlearn", "m", work) for seed in (0, 1)], SPEED)
    told = lines(found, jobs=2)
    assert " ".join(told[1].split()) == (
        "unlearn 2 models 39 s to 45 s (3,000 trained, 400 written tokens)"
    )
    assert told[2].split() == ["in", "all", "39", "s", "to", "45", "s"] and len(told) == 5
