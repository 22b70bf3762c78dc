"""A study: its part of the data, its gate, and all of it on a tiny model, stopped and gone on."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from figures.cache import Context
from figures.language import study as figure
from llm.commands.study import draw, print_gate
from llm.data import tofu
from llm.data.authors.corpus import Authors, splits
from llm.data.parts import Part, write_part
from llm.data.splits import tofu_sets
from llm.data.tofu import Example
from llm.evaluation import gate as gates
from llm.evaluation.gate import floor, gate
from llm.jobs import studying
from llm.jobs.estimating import estimated
from llm.jobs.replicates import attacks_of, sweep_of
from llm.jobs.study_settings import Study
from llm.jobs.studying import Studied, study
from llm.jobs.sweeping import Sweep, checked, runs_of
from llm.logs.comparing import utility_difference
from llm.logs.log import MEMORISED, Answers, EvaluationLog, take
from llm.logs.measures import TofuLogs, measures, model_utility
from llm.logs.reading import read_log
from llm.models import finetuned
from llm.training.adapters import Lora
from markov.errors import InvalidInput
from tests.helpers import files_in

NAMES = ("forget10", "retain90", "real_authors_perturbed", "world_facts_perturbed")


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in TOFU's layout: 4 answers to forget, 36 to keep, wrong answers to each."""
    folder = tmp_path_factory.mktemp("questions")
    found = splits(Authors(authors=10, questions=4))
    for name in NAMES:
        tofu.write(found[name], folder / f"{name}.json")
    return folder


@pytest.fixture(scope="module")
def options(place: Path, questions: Path) -> dict[str, Any]:
    return {
        "model": place / "model",
        "data": questions / "forget10",
        "methods": ("npo:0.1@1", "gradient_ascent", "idk@1"),
        "attacked": ("npo:0.1@1",),
        "retain_answers": 8,
        "measured_answers": 3,
        "learning_epochs": 1,
        "learning_rate": 1e-3,
        "epochs": 1,
        "unlearning_rate": 1e-3,
        "max_new_tokens": 4,
        "attack_epochs": 1,
        "progress": False,
    }


@pytest.fixture(scope="module")
def done(options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Studied]:
    out = tmp_path_factory.mktemp("study") / "out"
    with pytest.raises(InvalidInput, match=r"gate.*seed 3.*--despite-gate"):
        study(out=out, seeds=(3,), **options)  # a tiny model knows nothing by heart
    assert (out / "gate.parquet").exists() and not (out / "measures.parquet").exists()
    return out, study(out=out, seeds=(3,), floor_seeds=(4,), despite_gate=True, **options)


def test_a_part_has_the_last_to_forget_and_the_first_to_keep(questions: Path, tmp_path: Path):
    word = write_part(
        tmp_path / "part", questions / "forget10", Part(forget=3, retain=20, measured=5)
    )
    assert Path(word).name == "forget13"  # 3 of 23
    whole, part = (tofu_sets(one) for one in (questions / "forget10", word))
    texts = [one.response for one in tofu.read(f"{word}.json")]
    assert texts == [one.response for one in tofu.read(questions / "forget10.json")][-3:]
    assert [one.response for one in part.forget] == texts
    kept = [one.response for one in tofu.read(Path(word).with_name("retain87.json"))]
    assert kept == [one.response for one in tofu.read(questions / "retain90.json")][:20]
    assert {one.response for one in part.retain} <= set(kept)
    assert all(1 <= len(getattr(part, name)) <= 5 for name in ("retain", "real_authors"))
    assert {one.prompt for one in part.world_facts} <= {one.prompt for one in whole.world_facts}
    before = files_in(tmp_path / "part")
    assert write_part(tmp_path / "part", questions / "forget10", Part(forget=3, retain=20)) == word
    assert files_in(tmp_path / "part") == before


@pytest.mark.parametrize(
    ("field", "part"),
    [
        ("forget_answers", {"forget": 5}),
        ("retain_answers", {"retain": 37}),
        ("retain_answers", {"retain": 1}),
        ("measured_answers", {"measured": 0}),
    ],
)
def test_a_part_that_the_data_do_not_have_is_refused(
    field: str, part: dict[str, int], questions: Path, tmp_path: Path
):
    with pytest.raises(InvalidInput, match=field):
        write_part(tmp_path / "part", questions / "forget10", Part(**part))
    assert not (tmp_path / "part").exists()


def logs_of(known: float, recall: Sequence[float] = (0.9,) * 40) -> TofuLogs:
    """Logs of a model: its probability of every forget answer, and its ROUGE of real authors."""

    def log(gold: float, rouge: Sequence[float]) -> EvaluationLog:
        losses = -np.log(np.full(len(rouge), gold))
        wrong = np.full((len(rouge), 3), 1.0)
        return EvaluationLog(
            file="model",
            layout="scored",
            index=np.arange(len(rouge)),
            gold=Answers(losses, None, None),
            paraphrased=Answers(losses, None, None),
            perturbed=Answers(wrong, None, None),
            rouge={"rougeL_recall": np.array(rouge, dtype=float)},
        )

    kept = log(0.8, (0.9,) * 30)
    return TofuLogs(log(known, (0.5,) * 20), kept, log(0.8, recall), kept)


def test_the_gate_passes_two_models_that_differ_in_the_forget_data_only():
    assert (gates.APART, gates.KNOWN, gates.FAR) == (0.03, 0.9, 0.3)
    good = (logs_of(0.95), logs_of(0.2))
    assert gate({0: good})["verdict"].tolist() == ["passes"] * 3
    for bad, which in (
        ((logs_of(0.95), logs_of(0.2, (0.3,) * 40)), 0),
        ((logs_of(0.89), logs_of(0.2)), 1),
        ((logs_of(0.95), logs_of(0.7)), 2),
    ):
        found = gate({0: good, 7: bad})
        assert found["seed"].tolist() == [0] * 3 + [7] * 3
        assert found["verdict"].tolist() == [
            "fails" if at == which + 3 else "passes" for at in range(6)
        ]


def test_utilities_that_few_answers_decide_are_inconclusive():
    """Two models that answer 3 and 6 of 40 questions, of which 2 are the same."""
    original = np.isin(np.arange(40), [0, 1, 2]).astype(float)
    retrained = np.isin(np.arange(40), [1, 2, 3, 4, 5, 6]).astype(float)
    pair = logs_of(0.95, original.tolist()), logs_of(0.2, retrained.tolist())
    (row,) = gate({0: pair}).iloc[:1].to_dict("records")
    apart = abs(model_utility(pair[0]) - model_utility(pair[1]))
    assert apart > gates.APART and row["value"] == pytest.approx(apart)
    assert row["verdict"] == "inconclusive" and row["low"] <= gates.APART < row["high"]
    turned = gate({0: (pair[1], pair[0])}).iloc[0]
    assert [turned[name] for name in ("value", "low", "high")] == pytest.approx(
        [row[name] for name in ("value", "low", "high")]
    )
    same = gate({0: (pair[0], pair[0]._replace(forget=pair[1].forget))}).iloc[0]
    assert [same[name] for name in ("value", "low", "high")] == [0, 0, 0]


@pytest.mark.parametrize("right", [4, 0])
def test_a_utility_of_nothing_is_inconclusive(right: int):
    """Of 40 questions one model answers 4, or none, and the other none: chance, or no knowledge."""
    few = [1.0] * right + [0.0] * (40 - right)
    pair = logs_of(0.95, few), logs_of(0.2, [0.0] * 40)
    for both in (pair, (pair[1], pair[0])):
        assert gate({0: both})["verdict"].iloc[0] == "inconclusive"


def test_questions_of_both_models_are_drawn_together():
    """Half of the questions are hard for both: apart, each utility alone is far from certain."""
    hard = np.arange(40) % 2
    pair = logs_of(0.95, (0.1 + 0.8 * hard).tolist()), logs_of(0.2, (0.11 + 0.8 * hard).tolist())
    value, low, high, count = utility_difference(*pair)
    assert low < value < high < 0 and count == 100
    every = measures(pair[0])
    (alone,) = every[every["measure"] == "model_utility"].to_dict("records")
    assert alone["high"] - alone["low"] > 0.03 > 3 * (high - low)
    assert value == pytest.approx(model_utility(pair[0]) - model_utility(pair[1]))
    other = pair[1]._replace(retain=take(pair[1].of("retain"), np.arange(30)[::-1]))
    assert utility_difference(pair[0], other) == utility_difference(*pair)


def test_a_gate_that_refuses_says_what_would_help():
    check = {"check": "forget data known", "seed": 0, "value": 0.3, "allowed": "at least 0.9"}
    said = str(studying._refusal(pd.Series(check)))
    assert "--learning-epochs" in said and "--despite-gate" in said


def test_what_is_inconclusive_is_said(capsys: pytest.CaptureFixture[str]):
    good = (logs_of(0.95), logs_of(0.2))
    few = (logs_of(0.95, [1.0] + [0.0] * 9), logs_of(0.2, [0.0] * 9 + [1.0]))
    for pair, told in ((good, False), (few, True)):
        print_gate(gate({0: pair}), (0.07,))
        said = capsys.readouterr().out
        assert ("--measured-answers" in said) == told and "models: 0.070;" in said


def test_figures_that_cannot_be_drawn_are_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for code in (0, 2):
        done = subprocess.CompletedProcess([], code)
        monkeypatch.setattr(subprocess, "run", lambda *_, done=done, **__: done)
        with pytest.raises(InvalidInput, match="draw") if code else nullcontext():
            draw(tmp_path)


def retrained(out: Path, seed: int) -> EvaluationLog:
    return read_log(out / f"seed{seed}" / "sweep" / "retrained" / "TOFU_EVAL.json", "forget")


def test_the_floor_is_the_distance_between_any_two_retrained_models(done: tuple[Path, Studied]):
    out, found = done
    log, other = (retrained(out, seed) for seed in (3, 4))
    assert floor([log]) == () and floor([log, log, log]) == (0.0, 0.0, 0.0)
    assert len(found.floor) == 1 and found.floor == floor([log, other])
    frame = figure.data(Context(study=out))
    assert frame.loc[frame["kind"] == "floor", "value"].tolist() == list(found.floor)


def test_no_floor_is_made_below_a_gate_that_refuses(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("llm.jobs.studying.retrained_beside", fail)
    with pytest.raises(InvalidInput, match="gate"):
        study(out=tmp_path / "out", seeds=(3,), floor_seeds=(4,), **options)


def test_of_a_seed_for_the_floor_there_is_the_retrained_model_alone(done: tuple[Path, Studied]):
    found = {path.name for path in (done[0] / "seed4").iterdir()}
    assert found == {"retrained", "sweep", "times.jsonl"}
    assert [path.name for path in (done[0] / "seed4" / "sweep").glob("[!.]*")] == ["retrained"]
    took = pd.read_parquet(done[0] / "times.parquet")
    assert set(took.loc[took["seed"] == 4, "model"]) == {"retrained"}


def test_a_study_has_every_model_its_measures_and_what_comes_back(done: tuple[Path, Studied]):
    out, found = done
    models = ["original", "retrained", "npo:0.1@1", "gradient_ascent", "idk@1"]
    assert found.measures["model"].drop_duplicates().tolist() == models
    assert set(found.measures["seed"]) == {3}
    assert list(found.summary.index) == models and "fails" in set(found.gate["verdict"])
    back = found.attacks.groupby(["model", "which"])["epoch"].apply(list)
    assert back.to_dict() == {
        (model, which): [0, 1]
        for model in ("npo:0.1@1", "retrained")
        for which in ("random", "shortest")
    }
    assert {path.name for path in out.iterdir() if not path.name.startswith(".")} == {
        "data",
        "seed3",
        "seed4",
        *(name for name in studying.FILES if name not in studying.OF_SEVERAL),
    }
    sweep = out / "seed3" / "sweep"
    assert {path.parent.name for path in sweep.glob("*/model")} == {"npo_0.1_lambda1_seed3"}
    kept = tofu.read(out / "data" / "retain67.json")
    learnt = pd.read_parquet(out / "seed3" / "original" / "memorised.parquet")
    assert len(kept) == 8 and set(learnt["set"]) == {"data", "forget"}
    assert f"| {models[2]} |" in (out / "summary.md").read_text("utf-8")


def test_a_study_that_is_done_is_read_and_one_that_lacks_a_method_adds_it(
    done: tuple[Path, Studied], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    out, found = done
    own = {name: value for name, value in options.items() if name != "methods"}
    more = study(
        out=out,
        seeds=(3,),
        despite_gate=True,
        methods=("npo:0.1@1", "simnpo:2.5@0.1375"),
        **own,
    )
    assert more.measures["model"].drop_duplicates().tolist()[2:] == [
        "npo:0.1@1",
        "simnpo:2.5@0.1375",
    ]
    monkeypatch.setattr("llm.models.finetuned._trained", fail)
    monkeypatch.setattr("llm.sweeps.sweep.unlearned", fail)
    monkeypatch.setattr("llm.jobs.relearning.attacked", fail)
    again = study(out=out, seeds=(3,), despite_gate=True, **options)
    pd.testing.assert_frame_equal(again.measures, found.measures)
    pd.testing.assert_frame_equal(again.attacks, found.attacks)


def fail(*_: object, **__: object) -> None:
    raise AssertionError("nothing is to be made again")


@pytest.mark.parametrize(
    ("field", "changed"),
    [
        ("data", {"data": "questions.json"}),
        ("seeds", {"seeds": ()}),
        ("seeds", {"seeds": (1, 1)}),
        ("floor_seeds", {"floor_seeds": (1, 1)}),
        ("floor_seeds", {"seeds": (0, 1), "floor_seeds": (1,)}),
        ("attacked", {"attacked": ("simnpo:9",)}),
        ("method", {"methods": ("mpo",), "attacked": ()}),
        ("epochs", {"epochs": 0}),
        ("measured_epochs", {"measured_epochs": (2,)}),
        ("seeds", {"seeds": (0.5,)}),
        ("floor_seeds", {"floor_seeds": (0.5,)}),
        ("share", {"share": 1.0}),
        ("learning_epochs", {"learning_epochs": 0.5}),
        ("retain_answers", {"retain_answers": 1}),
        ("out", {"out": Path(__file__).parent}),
    ],
)
def test_what_is_not_allowed_is_refused_before_any_work(
    field: str,
    changed: dict[str, Any],
    options: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("llm.jobs.replicates.replicate", fail)
    monkeypatch.setattr("llm.jobs.studying.replicate", fail)
    with pytest.raises(InvalidInput, match=field):
        study(**{"out": tmp_path / "out", **options, **changed})
    assert not (tmp_path / "out").exists()


def test_files_of_ones_own_are_studied_by_what_they_allow_and_with_adapters(
    questions: Path, options: dict[str, Any], tmp_path: Path
):
    examples = tofu.read(questions / "retain90.json")[:6]
    for name, part in {"mine": examples[:3], "rest": examples[3:]}.items():
        bare = [
            Example(index=at, prompt=one.prompt, response=one.response)
            for at, one in enumerate(part)
        ]
        tofu.write(bare, tmp_path / f"{name}.json")
    own = {name: value for name, value in options.items() if not name.endswith("_answers")}
    own |= {"data": tmp_path / "mine.json", "despite_gate": True, "seeds": (0, 1), "lora_rank": 2}
    rest = str(tmp_path / "rest.json")
    with pytest.raises(InvalidInput, match=r"measured_epochs.*D and model utility"):
        study(out=tmp_path / "out", retain_data=rest, measured_epochs=(1,), **own)
    assert not (tmp_path / "out").exists()
    with pytest.raises(InvalidInput, match="retain_data"):
        study(out=tmp_path / "out", **own)
    found = study(out=tmp_path / "out", retain_data=rest, **own)
    assert found.gate["check"].tolist() == ["forget data known", "forget data unknown"] * 2
    assert (
        set(found.measures["measure"]) == {"probability", "rouge", *MEMORISED} and found.floor == ()
    )
    seed, rank = tmp_path / "out" / "seed1", Lora(rank=2).rank
    for folder, job in (
        (seed / "original", "finetune"),
        (seed / "retrained", "finetune"),
        (seed / "sweep" / "npo_0.1_lambda1_seed1", "unlearn"),
    ):
        settings = json.loads((folder / ".simnpo-lab.json").read_text("utf-8"))[job]["settings"]
        assert (settings.get("lora") or settings["unlearning"]["lora"])["rank"] == rank
    assert {one.lora for one in attacks_of(Study(lora_rank=2), 1e-4)} == {Lora(rank=2)}
    assert "ks_statistic" not in found.attacks and found.attacks["other_logp"].notna().all()
    frame = figure.data(Context(study=tmp_path / "out"))
    assert figure.plot(frame).axes[0].get_title() == "these data do not tell D and utility"
    with pytest.raises(InvalidInput, match="retain_answers"):
        study(out=tmp_path / "new", retain_data="rest.json", retain_answers=2, **own)


@pytest.mark.parametrize(("measured", "probe"), [(None, 100), (40, 40), (400, 100)])
def test_no_more_retained_answers_are_scored_after_an_epoch_than_measured(
    measured: int | None, probe: int
):
    asked = Study(measured_answers=measured)
    swept = sweep_of(asked, Path("original"), Path("retrained"), "tofu:forget05", 0, 1e-4)
    assert {run.unlearning().retain_probe for run in runs_of(swept)} == {probe}


def test_a_sweep_trains_adapters_where_they_are_asked_for():
    runs = runs_of(Sweep(methods=("npo:0.1@1", "grad_diff"), lora_rank=3))
    assert [run.unlearning().lora for run in runs] == [Lora(rank=3)] * 2
    assert runs_of(Sweep(methods=("npo:0.1@1",)))[0].unlearning().lora is None
    for field, refused in (
        ("lora_rank", Sweep(lora_rank=0)),
        ("lora_rank", Sweep(lora_rank=2, task_vectors=(0.5,))),
        ("measured_epochs", Sweep(measured_epochs=(11,))),
    ):
        with pytest.raises(InvalidInput, match=f"^{field}"):
            runs_of(refused)
    for field, value in (("measured_epochs", (1,)), ("probe", 3)):
        alone: dict[str, Any] = {"methods": (), "task_vectors": (0.5,), field: value}
        with pytest.raises(InvalidInput, match=f"^{field}"):
            checked(Sweep(**alone))


def test_a_folder_of_another_study_is_refused(
    done: tuple[Path, Studied], options: dict[str, Any], tmp_path: Path
):
    with pytest.raises(InvalidInput, match="out"):
        study(out=done[0], seeds=(3,), despite_gate=True, **{**options, "learning_epochs": 2})


def test_a_method_that_is_attacked_later_is_made_again_for_it(
    done: tuple[Path, Studied], options: dict[str, Any], tmp_path: Path
):
    out, found = done
    assert not (out / "seed3" / "sweep" / "gradient_ascent_seed3" / "model").exists()
    later = {**options, "attacked": ("npo:0.1@1", "gradient_ascent")}
    asked = Study(**{name: one for name, one in later.items() if name != "progress"}, out=out)
    assert set(estimated(replace(asked, seeds=(3,)))["model"]) == {"gradient_ascent"}
    more = study(out=out, seeds=(3,), despite_gate=True, **later)
    assert set(more.attacks["model"]) == {"retrained", "npo:0.1@1", "gradient_ascent"}
    pd.testing.assert_frame_equal(more.measures, found.measures)


def test_a_seed_of_the_floor_can_be_given_its_methods_later(
    done: tuple[Path, Studied], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    learnt: list[str] = []
    real = finetuned._trained

    def seen(*arguments: Any, **rest: Any) -> Any:
        learnt.append(str(arguments[4]))
        return real(*arguments, **rest)

    monkeypatch.setattr(finetuned, "_trained", seen)
    found = study(out=done[0], seeds=(3, 4), despite_gate=True, **options)
    assert found.floor == done[1].floor and set(found.measures["seed"]) == {3, 4}
    assert len(learnt) == 1 and "original" in learnt[0]
