"""The command line of the language models: what each command writes, and one clear line for what
it refuses.
"""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import transformers
from safetensors import SafetensorError

from figures.__main__ import cli as figures_cli
from figures.language import runs
from figures.scale import Scale
from llm.__main__ import cli
from llm.data import tofu
from llm.diagnostics.allocation import bias
from llm.diagnostics.weights import COLUMNS
from llm.jobs.settings import DEFAULTS
from llm.jobs.values import objectives_of
from llm.logs.log import total_loss
from llm.models.answers import responses, scores
from llm.models.language_model import LanguageModel, perturbed
from llm.models.saving import save
from llm.models.source import load
from llm.scoring.gradients import gradient_norms
from llm.scoring.templates import LLAMA2_CHAT
from llm.unlearning import runs as run_folders
from llm.unlearning.runs import read_run
from llm.unlearning.unlearn import weights_by_epoch
from markov.errors import InvalidInput
from markov.files import storage
from markov.files.folders import CLAIM
from markov.objectives import CORNERS, npo
from tests.helpers import files_in
from tests.llm.logs.test_logs import REAL, as_open_unlearning, needs_real_logs, some_columns
from tests.llm.scoring.test_encoding import by_pieces
from tests.markov.console.test_progress import told
from tests.markov.test_cli import call

WEIGHTS = [f"weight_{name}" for name in objectives_of(DEFAULTS)]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield


def with_model(place: Path) -> list[str]:
    return [
        "--model",
        str(place / "model"),
        "--data",
        str(place / "forget10.json"),
        "--device",
        "cpu",
    ]


def test_score_writes_what_scoring_gives(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(["score", *with_model(place), "--gradients", "--out", "s.parquet"]) == 0
    frame = storage.read_table(tmp_path / "s.parquet")
    assert list(frame.columns) == ["index", "logp", "length", "gradient_norm"]
    language, examples = load(place / "model", device="cpu"), tofu.read(place / "forget10.json")
    own = scores(language, examples, progress=False)
    pd.testing.assert_frame_equal(frame[["index", "logp", "length"]], own, check_flags=False)
    norms = gradient_norms(language.model, responses(language, examples), progress=False)
    np.testing.assert_allclose(frame["gradient_norm"], norms, rtol=1e-6)
    assert frame.attrs["provenance"]["settings"]["model"] == str(place / "model")
    shown = capsys.readouterr()
    assert f"{-own['logp'].sum() / own['length'].sum():.4f} nats per token" in shown.out
    assert "%|" not in shown.err  # no progress bar where nobody watches


def test_long_commands_say_how_far_they_are(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = told(monkeypatch)

    def lines_of(command: str, *more: str) -> str:
        said.clear()
        assert cli([command, *with_model(place), *more]) == 0
        return "\n".join(said)

    scored = r"score: (\d+) of \1 tokens"
    attack = ["--share", "0.5", "--batch", "4", "--repeats", "2", "--epochs", "1"]
    assert re.search(scored, lines_of("score", "--out", "s.parquet"))
    assert re.search(scored, lines_of("score", "--gradients", "--out", "g.parquet"))
    assert re.search(r"gradient norms: (\d+) of \1 tokens", "\n".join(said))
    relearned = lines_of("relearn", *attack, "--out", "r.parquet")
    assert "attacks: 3 of 4" in relearned
    assert re.search(r"attacks: 1 of 4.*; relearn: (\d+) of \1 updates", relearned)
    said.clear()
    assert cli(arguments_of_unlearning(place, "run")) == 0
    assert re.search(r"^unlearn: (\d+) of \1 updates", "\n".join(said), re.MULTILINE)


def test_score_can_take_a_perturbed_model(place: Path, tmp_path: Path) -> None:
    assert (
        cli(
            [
                "score",
                *with_model(place),
                "--noise",
                "0.5",
                "--noise-seed",
                "3",
                "--out",
                "n.parquet",
            ]
        )
        == 0
    )
    language, examples = load(place / "model", device="cpu"), tofu.read(place / "forget10.json")
    noisy = language._replace(model=perturbed(language.model, scale=0.5, seed=3))
    found = storage.read_table(tmp_path / "n.parquet")
    np.testing.assert_allclose(
        found["logp"], scores(noisy, examples, progress=False)["logp"], rtol=1e-6
    )
    assert not np.allclose(found["logp"], scores(language, examples, progress=False)["logp"])


def test_weights_come_from_tables_of_scores(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("model", "retrained"):
        arguments = ["--model", str(place / name), "--data", str(place / "forget10.json")]
        assert cli(["score", *arguments, "--out", f"{name}.parquet"]) == 0
    tables = ["--scores", "model.parquet", "--reference", "model.parquet"]
    assert cli(["weights", *tables, "--retrained", "retrained.parquet", "--out", "w.parquet"]) == 0
    frame = storage.read_table(tmp_path / "w.parquet")
    assert list(frame.columns) == [*COLUMNS, *WEIGHTS]
    assert set(frame["weight_npo_b0.1"]) == {1.0}
    ours, theirs = (
        storage.read_table(tmp_path / f"{name}.parquet")["logp"] for name in ("model", "retrained")
    )
    np.testing.assert_allclose(frame["needed"], ours - theirs)
    shown = capsys.readouterr().out
    assert "Spearman" in shown and "simnpo_b2.5" in shown
    assert cli(["weights", *tables, "--objectives", "simnpo:1:0.5", "--out", "w.parquet"]) == 0
    assert list(storage.read_table(tmp_path / "w.parquet").columns)[-1] == "weight_simnpo_b1_g0.5"


def arguments_of_unlearning(place: Path, out: str) -> list[str]:
    small = ["--epochs", "2", "--batch", "2", "--learning-rate", "1e-3", "--retain-weight", "0.5"]
    data = ["--retain-data", str(place / "retain90.json"), "--retrained", str(place / "retrained")]
    return [
        "unlearn",
        *with_model(place),
        *data,
        *small,
        "--gradients",
        "--objective",
        "npo:0.2",
        "--out",
        out,
    ]


def test_unlearn_leaves_a_run_with_everything(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(arguments_of_unlearning(place, "run")) == 0
    shown = capsys.readouterr().out
    assert "retain_loss" in shown and "examples.parquet" in shown
    run = read_run(tmp_path / "run")
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == sorted(
        [CLAIM, "answers.parquet", "epochs.parquet", "examples.parquet", "model", "weights.parquet"]
    )
    assert run.objective == npo(0.2)
    assert sorted(set(run.examples["epoch"])) == [0, 1, 2] == run.epochs["epoch"].tolist()
    start, end = (run.examples[run.examples["epoch"] == epoch] for epoch in (0, 2))
    np.testing.assert_array_equal(start["logp"], start["ref"])
    assert (end["logp"] != start["logp"].to_numpy()).all() and (
        run.examples["gradient_norm"] > 0
    ).all()

    examples = tofu.read(place / "forget10.json")
    retrained = scores(load(place / "retrained", device="cpu"), examples, progress=False)
    for _, own in run.examples.groupby("epoch"):
        np.testing.assert_allclose(own["needed"], own["ref"].to_numpy() - retrained["logp"])
    unlearned = load(tmp_path / "run" / "model", device="cpu")
    assert unlearned.template == LLAMA2_CHAT
    again = scores(unlearned, examples, progress=False)
    np.testing.assert_allclose(end["logp"], again["logp"], rtol=1e-5)
    assert set(run.logs) == {"original", "retrained", "unlearned"}
    for model, expected in {
        "original": start["logp"],
        "retrained": retrained["logp"],
        "unlearned": again["logp"],
    }.items():
        np.testing.assert_allclose(total_loss(run.logs[model]), -expected, rtol=1e-5)
        assert run.logs[model].perturbed is not None and run.logs[model].paraphrased is not None
    expected = weights_by_epoch(run.examples, objectives_of(DEFAULTS))
    found = storage.read_table(tmp_path / "run" / "weights.parquet")
    pd.testing.assert_frame_equal(found, expected, check_flags=False)


def test_a_finished_run_is_read_and_a_run_of_other_settings_refused(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = arguments_of_unlearning(place, "run")
    assert cli(arguments) == 0
    before = files_in(tmp_path / "run")
    del before[
        tmp_path / "run" / run_folders.WEIGHTS
    ]  # follows from the others, and is written each time
    assert cli(arguments) == 0
    capsys.readouterr()
    assert cli([*arguments, "--seed", "1"]) == 2
    assert "error: out = 'run' is not allowed" in capsys.readouterr().err
    assert len(before) > 4 and before.items() <= files_in(tmp_path / "run").items()


def test_a_run_that_was_stopped_goes_on_to_the_same_tables(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli(arguments_of_unlearning(place, "whole")) == 0
    stopped = {
        "llm.unlearning.prepared.log_table": "after training",
        "llm.unlearning.runs.save": "before the model is written",
    }
    for place_of_stop in stopped:
        with monkeypatch.context() as patch:

            def interrupted(*_: object, **__: object) -> None:
                raise KeyboardInterrupt

            patch.setattr(place_of_stop, interrupted)
            assert cli(arguments_of_unlearning(place, "stopped")) == 130
        with pytest.raises(InvalidInput, match="no finished run"):
            read_run(tmp_path / "stopped")
    assert cli(arguments_of_unlearning(place, "stopped")) == 0
    whole, parts = read_run(tmp_path / "whole"), read_run(tmp_path / "stopped")
    for mine, theirs in zip(whole[:3], parts[:3], strict=True):
        pd.testing.assert_frame_equal(mine, theirs, check_flags=False)
    assert not (tmp_path / "stopped" / "state").exists()


def test_a_reference_of_its_own_is_used(place: Path, tmp_path: Path) -> None:
    assert cli(["score", *with_model(place), "--noise", "1", "--out", "n.parquet"]) == 0
    arguments = [
        *arguments_of_unlearning(place, "run"),
        "--epochs",
        "1",
        "--reference",
        "n.parquet",
    ]
    assert cli(arguments) == 0
    run, noisy = read_run(tmp_path / "run"), storage.read_table(tmp_path / "n.parquet")
    for _, own in run.examples.groupby("epoch"):
        np.testing.assert_allclose(own["ref"], noisy["logp"])
    start = run.examples[run.examples["epoch"] == 0]
    assert not np.allclose(start["ref"], start["logp"])


def test_diagnose_needs_logs_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, name in enumerate(("full", "retain")):
        columns = some_columns(count=9)
        columns["gt_loss"] = [loss * (1 + seed) for loss in columns["gt_loss"]]
        columns["avg_gt_loss"] = [loss * (1 + seed) for loss in columns["avg_gt_loss"]]
        (tmp_path / f"{name}.json").write_text(json.dumps(columns))
    assert (
        cli(
            [
                "diagnose",
                "--logs",
                "full.json",
                "--retrained-logs",
                "retain.json",
                "--out",
                "d.parquet",
            ]
        )
        == 0
    )
    frame = storage.read_table(tmp_path / "d.parquet")
    assert list(frame.columns) == [name for name in COLUMNS if name != "logp"] + WEIGHTS
    np.testing.assert_allclose(frame["needed"], -frame["ref"])
    assert "Spearman" in capsys.readouterr().out


@pytest.fixture
def published(tmp_path: Path) -> tuple[str, str]:
    """Two logs as open-unlearning writes them: means, and no numbers of tokens. And the same two
    with numbers.
    """
    for seed, name in enumerate(("full", "retain")):
        columns = some_columns(count=9)
        for measure in ("gt_loss", "avg_gt_loss"):
            columns[measure] = [loss * (1 + seed) for loss in columns[measure]]
        content = as_open_unlearning(columns, counts=False)
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        (tmp_path / f"counted_{name}.json").write_text(json.dumps(columns))
    return "full.json", "retain.json"


def diagnosed(*logs: str, more: Sequence[str] = (), code: int = 0) -> pd.DataFrame | None:
    assert (
        cli(
            [
                "diagnose",
                "--logs",
                logs[0],
                "--retrained-logs",
                logs[1],
                "--out",
                "d.parquet",
                *more,
            ]
        )
        == code
    )
    return storage.read_table("d.parquet") if code == 0 else None


def test_diagnose_of_logs_without_counts_says_per_token_what_it_can_and_what_it_lacks(
    published: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    whole = diagnosed(*(f"counted_{name}" for name in published))
    capsys.readouterr()
    frame = diagnosed(*published)
    shown = capsys.readouterr()
    assert whole is not None and frame is not None
    assert shown.err.count("\n") == 1
    for part in (
        "npo_b0.1, reference_free_npo_b0.1",
        "full.json",
        "no numbers of scored tokens",
        "--lengths",
    ):
        assert part in shown.err
    per_token = [f"{name}_per_token" for name in ("ref", "retrained", "needed")]
    pushes = {
        f"push_{name}": f"weight_{name}" for name in ("length_normalized_npo_b2.5", "simnpo_b2.5")
    }
    assert list(frame.columns) == ["index", *per_token, *pushes]
    np.testing.assert_allclose(frame["needed_per_token"], whole["needed_per_token"])
    np.testing.assert_allclose(frame["ref_per_token"], whole["ref"] / whole["length"])
    for push, weight in pushes.items():
        np.testing.assert_allclose(frame[push], whole[weight] * whole["length"])
    wanted = bias(whole).query("effort == 'push' and need == 'per_token'").set_index("objective")
    assert f"{wanted.loc['simnpo_b2.5', 'area']:.3f}" in shown.out
    diagnosed(*published, more=["--objectives", "npo:0.1"], code=2)
    assert "objectives = ['npo_b0.1']" in capsys.readouterr().err


def test_diagnose_takes_lengths_from_a_table_or_from_the_other_log(
    published: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full, retain = published
    whole = diagnosed(f"counted_{full}", f"counted_{retain}")
    assert whole is not None
    lengths = whole[["index", "length"]].assign(logp=-1.0).sample(frac=1, random_state=0)
    # Of all examples of the set, of which a log may hold the first few.
    more = pd.concat([lengths, pd.DataFrame({"index": [20], "logp": [-1.0], "length": [4]})])
    more.to_parquet(tmp_path / "s.parquet")
    for logs, option in (
        ((full, retain), ["--lengths", "s.parquet"]),
        ((f"counted_{full}", retain), []),
        ((full, f"counted_{retain}"), []),
    ):
        found = diagnosed(*logs, more=option)
        assert found is not None
        pd.testing.assert_frame_equal(found, whole, check_flags=False, rtol=1e-12)
    lengths.iloc[2:].to_parquet(tmp_path / "few.parquet")
    for logs, option, said in (
        ((full, retain), "few.parquet", "2 missing"),
        ((f"counted_{full}", retain), "s.parquet", "left out"),
        ((full, retain), "absent.parquet", "lengths = 'absent.parquet'"),
    ):
        capsys.readouterr()
        diagnosed(*logs, more=["--lengths", option], code=2)
        assert said in capsys.readouterr().err


@needs_real_logs
def test_diagnose_reads_real_logs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs = ["--logs", str(REAL / "llama2-7b_full"), "--retrained-logs"]
    assert cli(["diagnose", *logs, str(REAL / "llama2-7b_retain90"), "--out", "d.parquet"]) == 0
    assert len(storage.read_table(tmp_path / "d.parquet")) == 300
    assert "0.847" in capsys.readouterr().out
    assert cli(["diagnose", *logs, str(REAL / "llama2-7b_retain95"), "--out", "d.parquet"]) == 2
    assert (
        cli(["diagnose", *logs, str(REAL / "llama2-7b_retain95"), "--shared", "--out", "d.parquet"])
        == 0
    )
    assert len(storage.read_table(tmp_path / "d.parquet")) == 100


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("model", ["score", "--model", "nowhere", "--data", "DATA"]),
        ("dtype", ["score", "--model", "MODEL", "--dtype", "auto", "--data", "absent.json"]),
        ("out", ["score", "--model", "MODEL", "--out", "/dev/null/s.parquet"]),
        ("split", ["score", "--model", "MODEL", "--data", "authors:forget30"]),
        ("max_length", ["score", "--model", "MODEL", "--data", "DATA", "--max-length", "3"]),
        ("noise", ["score", "--model", "MODEL", "--data", "DATA", "--noise", "-1"]),
        ("scores", ["weights", "--scores", "absent.parquet", "--reference", "absent.parquet"]),
        ("objective", ["weights", "--scores", "x", "--reference", "x", "--objectives", "dpo:1"]),
        ("logs", ["diagnose", "--logs", ".", "--retrained-logs", "."]),
        ("log", ["diagnose", "--logs", "absent.json", "--retrained-logs", "absent.json"]),
        ("objective", ["unlearn", "--objective", "npo"]),
        ("beta", ["unlearn", "--objective", "npo:-1"]),
        ("retain_weight", ["unlearn", "--retain-weight", "-1"]),
        ("epochs", ["unlearn", "--epochs", "0"]),
        ("learning_rate", ["unlearn", "--learning-rate", "0"]),
        ("lora_rank", ["unlearn", "--lora-rank", "0"]),
        (
            "reference",
            [
                "unlearn",
                "--model",
                "MODEL",
                "--data",
                "DATA",
                "--retain-data",
                "DATA",
                "--reference",
                "DATA",
            ],
        ),
        ("percent", ["build", "--percent", "0"]),
        ("out", ["build", "--out", "/dev/null/out"]),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    field: str,
    arguments: list[str],
    place: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    known = {"MODEL": str(place / "model"), "DATA": str(place / "forget10.json")}
    assert cli([known.get(argument, argument) for argument in arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and "is not allowed" in line
    field = {"dtype": "source"}.get(field, field)
    assert line.startswith(f"error: {field}"), line
    assert list(tmp_path.rglob("*.parquet")) == []


def test_help_teaches_without_loading_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    shown = call("--help", module="llm")
    assert shown.returncode == 0
    for word in (
        "build",
        "score",
        "weights",
        "unlearn",
        "diagnose",
        "authors:original",
        "--retrained-logs",
    ):
        assert word in shown.stdout
    for command in ("build", "score", "weights", "unlearn", "diagnose"):
        with pytest.raises(SystemExit) as ended:
            cli([command, "--help"])
        text = capsys.readouterr().out
        assert (
            ended.value.code == 0
            and "default" in text
            and ("Example" in text or command == "build")
        )


@pytest.mark.parametrize(
    ("at", "raised"),
    [
        (
            "safetensors.torch.save_file",
            SafetensorError("I/O error: No space left on device (os error 28)"),
        ),
        ("pyarrow.parquet.write_table", OSError(errno.ENOSPC, "No space left on device")),
        (
            "transformers.PreTrainedModel.save_pretrained",
            OSError(errno.ENOSPC, "No space left on device"),
        ),
    ],
)
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(
    at: str,
    raised: Exception,
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*_: object, **__: object) -> None:
        raise raised

    with monkeypatch.context() as patch:
        patch.setattr(at, full)
        assert cli(arguments_of_unlearning(place, "run")) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and "No space left on device" in line
    assert [file for file in tmp_path.rglob("*") if ".partial" in file.name] == []
    # With room again the run is finished as if nothing had been.
    assert cli(arguments_of_unlearning(place, "run")) == 0
    assert cli(arguments_of_unlearning(place, "whole")) == 0
    for one, other in zip(
        read_run(tmp_path / "run")[:3], read_run(tmp_path / "whole")[:3], strict=True
    ):
        pd.testing.assert_frame_equal(one, other, check_flags=False)


def test_a_model_of_another_vocabulary_is_refused(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = by_pieces()
    sizes: dict[str, Any] = dict(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=512, **sizes
    )
    model = transformers.LlamaForCausalLM(config)
    other = LanguageModel(model=model, tokenizer=tokenizer, template=LLAMA2_CHAT, name="other")
    save(other, tmp_path / "other", {})
    for field in ("reference", "retrained"):
        assert (
            cli([*arguments_of_unlearning(place, "run"), f"--{field}", str(tmp_path / "other")])
            == 2
        )
        assert capsys.readouterr().err.strip().splitlines()[-1].startswith(f"error: {field} = ")
    assert not (tmp_path / "run").exists()


def test_the_figures_take_a_model_of_the_users_own(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = replace(runs.study(Scale(quick=True)), epochs=1)
    monkeypatch.setattr(runs, "study", lambda _: small)
    monkeypatch.setenv("SIMNPO_LAB_CACHE", str(tmp_path / "cache"))
    data = ["--data", str(place / "forget10.json"), "--retain-data", str(place / "retain90.json")]
    chosen = ["--model", str(place / "model"), *data, "--learning-rate", "1e-3", "--out", "out"]
    assert (
        figures_cli(
            [
                "llm_weights_epoch1",
                "llm_bias",
                "llm_truth_ratio",
                *chosen,
                "--retrained",
                str(place / "retrained"),
            ]
        )
        == 0
    )
    frame = storage.read_table(tmp_path / "out" / "llm_weights_epoch1.parquet")
    assert set(frame["method"]) == set(CORNERS)
    assert set(frame["source"]) == {"model, forget10"}
    folders = sorted((tmp_path / "cache" / "unlearning").iterdir())
    assert len(folders) == 4
    for run in map(read_run, folders):
        # Each starts from the model itself, not from what the run before made of it.
        start = run.examples[run.examples["epoch"] == 0]
        own = scores(
            load(place / "model", device="cpu"),
            tofu.read(place / "forget10.json"),
            progress=False,
        )
        np.testing.assert_allclose(start["logp"], own["logp"], rtol=1e-5)
        assert run.settings["unlearning"]["optimization"]["learning_rate"] == 1e-3
    truth = storage.read_table(tmp_path / "out" / "llm_truth_ratio.parquet")
    assert {"original", "retrained", *CORNERS} == set(truth["model"])
    assert figures_cli(["llm_bias", *chosen]) == 2
    assert "error: retrained = None is not allowed" in capsys.readouterr().err
    assert figures_cli(["llm_bias", *chosen, "--runs", str(folders[0])]) == 2


def test_weights_that_cannot_be_told_are_not_written(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def untold(frame: pd.DataFrame) -> str:
        raise InvalidInput("examples", len(frame), "more than one, of unequal weights")

    monkeypatch.setattr("llm.commands.weights.report", untold)
    scores = pd.DataFrame({"index": [0, 1], "logp": [-1.0, -2.0], "length": [2, 3]})
    scores.to_parquet("scores.parquet")
    assert cli(["weights", "--scores", "scores.parquet", "--reference", "scores.parquet"]) == 2
    assert "examples" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["scores.parquet"]


@pytest.mark.parametrize("field", ["reference", "retrained"])
def test_a_table_of_other_examples_is_refused_before_a_model_is_read(
    field: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def read(*_: object, **__: object) -> None:
        raise AssertionError("a model was read")

    monkeypatch.setattr("llm.commands.unlearn.load_model", read)
    frame = pd.DataFrame({"index": [7000], "logp": [-1.0], "length": [2]})
    frame.to_parquet("scores.parquet")
    given = ["unlearn", *with_model(place), "--retain-data", str(place / "retain90.json")]
    assert cli([*given, f"--{field}", "scores.parquet", "--out", "run"]) == 2
    assert f"error: {field} = " in capsys.readouterr().err and not Path("run").exists()


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (["unlearn", "--objective", ""], "objective"),
        (["sweep", "--retrained", ""], "retrained"),
        (["muse", "--data", ""], "data"),
    ],
)
def test_a_word_without_letters_is_not_one_that_was_left_out(
    words: list[str], field: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(words) == 2
    assert capsys.readouterr().err.startswith(f"error: {field} = ''")
