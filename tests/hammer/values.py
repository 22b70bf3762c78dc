"""Values that nobody should give: for each kind of option, and whether they have to be refused.

A value has to be refused if no reading of it makes sense. What might be meant, such as no steps at
all or an infinite bound, may be taken or refused, as long as one or the other is done well.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

LONG = "x" * 5000
BYTES = os.fsdecode(b"\xff\xfe\x80name")  # no UTF-8
CONTROL = "a\x01\x1b[31m\x7f\r\tb"
ODD = "../odd"


class Value(NamedTuple):
    """Words that stand behind an option, and whether they have to be refused."""

    words: tuple[str, ...]
    refused: bool = False


def _refused(*words: str) -> list[Value]:
    return [Value((word,), True) for word in words]


def _either(*words: str) -> list[Value]:
    return [Value((word,)) for word in words]


HUGE = ("1000000000000", "100000000000000000000", "9223372036854775808", f"1{'0' * 400}")
NO_NUMBER = ("", "x", "1e", "0x10", "1 2", "True", "½", LONG, BYTES, CONTROL)
INTEGERS = _refused("-1", "-1000000000000", "1.5", "nan", "inf", *NO_NUMBER) + _either("0", *HUGE)
# Negative seeds and -1 jobs have a meaning to somebody.
SEEDS = _refused("1.5", "nan", *NO_NUMBER) + _either("-1", "0", "7", *HUGE)
JOBS = _refused("0", "-2", "1.5", "nan", *NO_NUMBER) + _either("1", *HUGE[:2])
FLOATS = (
    _refused("nan", "-nan", "1,5", *(word for word in NO_NUMBER if word != "1e"))
    + _refused("-1e400", "-inf")
    + _either("inf", "1e400", "5e-324", "-0.0", "0", "-1", "1e30", "-1e30", "1e-30", "1_0")
)
CHOICES = _refused("", "nope", LONG, BYTES, CONTROL, "0") + _either("None")
METHODS = _refused(
    *("", ":", "@", "npo:", "npo:@", "npo@", "npo:nan", "npo:nan@", "npo:0.1@nan", "npo:0.1@"),
    *("npo:0.1:nan", "simnpo:1:2:3", "NPO:0.1", "npo:0.1@1@2", "npo :0.1", "npo:x", "nope:1"),
    *("npo:0,1", "grad_diff:1:1:1", LONG, BYTES, CONTROL, "npo:--1", f"npo:{LONG}"),
) + _either(
    *("npo:0", "npo:-1", "npo:1e400", "npo:inf", "npo:1e30", "npo:5e-324", "npo:-0.0"),
    *("simnpo:2:1e30", "npo:0.1@1e30", "npo:0.1@-1", "npo:0.1@inf", "gradient_ascent"),
)
MODELS = _refused(
    *("authors:", "authors:nope", "authors:original:7", "authors:original:20:-1", "news:"),
    *("news:original:x", "authors:original:20:1:2", "tofu:", "", ":", "nobody/nothing", "/nope"),
    *("gguf:", "authors:original:nan", LONG, BYTES, CONTROL, "a/b/c", "~nobody/model", "\\\\x"),
) + _either("authors:original:20:100000000000000000000")
DATA = _refused(
    *("authors:", "authors:forget999", "authors:forget20:-1", "authors:forget20:x", "tofu:"),
    *("tofu:forget999", "", ":", "nope.json", "authors:forget", LONG, BYTES),
    *(CONTROL, "~nobody/data.json", "tofu:forget10:1"),
)
TEXTS = _either("", LONG, BYTES, CONTROL, "None", "nope", "1", "{{", "{% for x in y %}")
DEVICES = _refused("", "tpu", "cuda:x", "cuda:-1", "cpu:7:1", "CPU ", LONG, BYTES) + _either(
    "meta", "cuda:99", "cpu:1"
)
MEMORIES = _refused(
    "", "x", "-1GB", "nanGB", "GB", "1 2GB", "1e", "24XB", LONG, BYTES, "NaN"
) + _either("0GB", "1GB", "1e400GB", "infGB", "24", "1000000000000TB")
PARTS = _refused(
    *("", "/", "0/0", "1/1", "3/2", "-1/3", "0/", "/2", "a/b", "0/1/2", "0.5/2", "nan/3"),
    *(LONG, BYTES, "0 /2", "9999999999999999/99999999999999999"),
)
SPLITS = _refused("", "nope", LONG, BYTES, "..", "/")
NOT_FILES = _refused(
    *(f"{ODD}/nope", f"{ODD}/fifo", "/dev/zero", "/dev/full", "/dev/null", f"{ODD}/folder"),
    *(f"{ODD}/loop", f"{ODD}/socket", f"{ODD}/empty", f"{ODD}/binary", f"{ODD}/nul", LONG, "/"),
    *(f"{ODD}/empty/below", "~nobody/x", f"{ODD}/dangling", "/proc/self/mem", "/dev/urandom"),
    *("", f"{'y/' * 2500}z", BYTES, CONTROL, f"{ODD}/{'n' * 300}", f"{ODD}/list.json"),
)
NOT_FOLDERS = _refused(
    *(f"{ODD}/empty", f"{ODD}/fifo", f"{ODD}/loop", LONG, f"{ODD}/empty/below", "/dev/null"),
    *("/proc/nope/x", f"{ODD}/{'n' * 300}", f"{ODD}/socket", f"{ODD}/binary", f"{ODD}/kept"),
) + _either("~", "~/x", f"{ODD}/folder", "a b", BYTES, f"{ODD}/dangling", "./x/../y", CONTROL)
NOT_TABLES = _refused(
    *(f"{ODD}/folder", f"{ODD}/fifo", f"{ODD}/loop", LONG, f"{ODD}/empty/below", "/proc/nope/x"),
    *(f"{ODD}/{'n' * 300}", f"{ODD}/socket", f"{ODD}/binary", ".", f"{ODD}/kept/mine"),
) + _either("~/x.parquet", "table", "a b.parquet", BYTES, CONTROL, "x/y/z.parquet", "t.txt")
ADDRESSES = _refused("", "tcp://nowhere", LONG, "a b")
NAMES = _refused("", "nope", "../weights", LONG, BYTES, CONTROL, "weights.png", "WEIGHTS")
BACKENDS = _refused("ray", "nope", "")

# Options that are told by what they are called, before their type.
BY_NAME: Mapping[str, list[Value]] = {
    **dict.fromkeys(("model", "retrained", "reference"), MODELS),
    **dict.fromkeys(("data", "retain_data", "without", "watch"), DATA),
    **dict.fromkeys(("objective", "objectives", "methods", "attacked", "unlearn"), METHODS),
    **dict.fromkeys(("seed", "seeds", "pretrain_seed", "noise_seed", "floor_seeds"), SEEDS),
    **dict.fromkeys(("revision", "system"), TEXTS),
    "jobs": JOBS,
    "device": DEVICES,
    "memory": MEMORIES,
    "part": PARTS,
    "split": SPLITS,
    "scheduler": ADDRESSES,
    "backend": BACKENDS,
    "names": NAMES,
}
# Of these a file that cannot be read is one more wrong value.
FILES = ("data", "retain_data", "without", "watch", "model", "retrained", "reference")
BY_TYPE: Mapping[str, list[Value]] = {
    "int": INTEGERS,
    "float": FLOATS,
    "choice": CHOICES,
    "str": TEXTS,
    "path": NOT_FILES,
}


def make_odd(place: Path) -> None:
    """Fill a folder with what is no regular file, and with files that hold nothing of use."""
    place.mkdir()
    (place / "folder").mkdir()
    os.mkfifo(place / "fifo")
    (place / "loop").symlink_to("loop")
    (place / "dangling").symlink_to("away")
    (place / "empty").touch()
    (place / "binary").write_bytes(bytes(range(256)) * 40)
    (place / "nul").write_bytes(bytes(5000))
    (place / "list.json").write_text("[]")
    (place / "kept").mkdir()
    (place / "kept" / "mine").write_text("of somebody else")
    with socket.socket(socket.AF_UNIX) as one:
        here = os.getcwd()
        os.chdir(place)  # the name of a socket may be no longer than a hundred characters
        try:
            one.bind("socket")
        finally:
            os.chdir(here)
