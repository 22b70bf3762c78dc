"""Files that are valid but for one or two changes: of structure, of values, of bytes.

Every change says whether what it leaves has to be refused by whatever reads the file. It has to be
if no reading of the file makes sense, such as one that ends in the middle.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

DEEP = 2000
RAW = "@RAW{}@"  # stands for text that json would not write
TEXTS = (
    *("1e400", "-1e400", f"{'[' * DEEP}{']' * DEEP}", '{"a":' * DEEP + "1" + "}" * DEEP),
    *("NaN", "Infinity", "-Infinity", f"1{'0' * 5000}", "-0.0", "1E-999"),
)
VALUES: tuple[Any, ...] = (
    *(None, 5, -1, 0, True, "text", "", [], {}, [[]], [None], {"": None}, 10**400, -(10**30)),
    *("\ud800", "x" * 5000, 1.5, 10**12, "../x", "NaN", "\x00", [1, "a", None], 2**63, "0"),
    *("{{ x }}", "{% for i in range(10 ** 9) %}x{% endfor %}", "{{ [].__class__ }}", "{"),
    *(RAW.format(number) for number in range(len(TEXTS))),
)
KEYS = ("-1", "1e30", "00", "9" * 30, "\ud800", "", "0", "x", "None", "1.5")


def json_text(content: Any) -> str:
    """A value as JSON, in which what stands for raw text is replaced by it."""
    text = json.dumps(content)
    for number, raw in enumerate(TEXTS):
        text = text.replace(json.dumps(RAW.format(number)), raw)
    return text


def walk(content: Any, rng: random.Random) -> tuple[Any, Any]:
    """A place in a nested value at random: what holds it, and its key there."""
    holder, key = [content], 0
    while True:
        inner = holder[key]
        keys = (
            list(inner)
            if isinstance(inner, dict)
            else range(len(inner))
            if isinstance(inner, list)
            else ()
        )
        if not keys or (holder is not content and rng.random() < 0.2):
            return holder, key
        holder, key = inner, rng.choice(list(keys))


def changed_json(content: Any, rng: random.Random) -> Any:
    """The value with one place in it replaced, left out, renamed, wrapped or repeated."""
    root = [json.loads(json.dumps(content))]
    holder, key = walk(root[0], rng)
    if holder[key] is root[0] or (isinstance(holder, list) and len(holder) == 1):
        holder = root if holder[key] is root[0] else holder
    way = rng.choices(("replace", "drop", "rename", "wrap", "repeat", "swap"), (10, 3, 2, 1, 1, 1))
    if way == ["drop"] and holder is not root:
        del holder[key]
    elif way == ["rename"] and isinstance(holder, dict):
        holder[rng.choice(KEYS)] = holder.pop(key)
    elif way == ["wrap"]:
        holder[key] = rng.choice(([holder[key]], {"a": holder[key]}, [[holder[key]]]))
    elif way == ["repeat"] and isinstance(holder, list):
        holder.insert(0, holder[key])
    elif way == ["swap"] and isinstance(holder, dict) and len(holder) > 1:
        other = rng.choice(list(holder))
        holder[key], holder[other] = holder[other], holder[key]
    else:
        holder[key] = rng.choice(VALUES)
    return root[0]


def change_json(path: Path, rng: random.Random) -> tuple[str, bool]:
    """Change a JSON file, of one value or of one per line; return how, and if it has to be
    refused.
    """
    text = path.read_text("utf-8")
    if rng.random() < 0.2:
        return change_bytes(path, rng)
    try:
        content, lines = json.loads(text), False
    except ValueError:
        content, lines = [json.loads(line) for line in text.splitlines() if line.strip()], True
    for _ in range(rng.choices((1, 2), (5, 1))[0]):
        content = changed_json(content, rng)
    if lines and isinstance(content, list) and rng.random() < 0.8:
        written = "\n".join(json_text(one) for one in content)
    else:
        written = json_text(content)
    if rng.random() < 0.03 and isinstance(content, dict) and content:
        name = rng.choice(list(content))
        written = f"{{{json_text(name)}: {json_text(rng.choice(VALUES))}, {written[1:]}"
    path.write_bytes(written.encode("utf-8", "surrogatepass"))
    return f"JSON that begins {json_text(content)[:60]!r}", False


def change_bytes(path: Path, rng: random.Random) -> tuple[str, bool]:
    """Change the bytes of any text: cut it, mark it, turn its line ends, put other bytes in."""
    content = path.read_bytes()
    middle = rng.randrange(1, max(2, len(content)))
    ways: dict[str, tuple[bytes, bool]] = {
        "cut": (content[: len(content) // 2], False),
        "cut anywhere": (content[:middle], False),
        "empty": (b"", True),
        "blank": (b"  \n\n ", True),
        "with a mark": (b"\xef\xbb\xbf" + content, False),
        "in UTF-16": (content.decode("utf-8", "replace").encode("utf-16"), False),
        "with CRLF": (content.replace(b"\n", b"\r\n"), False),
        "of zeros": (bytes(len(content)), True),
        "with zeros in it": (content[:middle] + bytes(3) + content[middle:], False),
        "with odd bytes": (content[:middle] + b"\xff\xfe\x80" + content[middle:], False),
        "twice": (content + content, False),
        "with more behind it": (content + b"}]x", False),
        "gzip, cut": (b"\x1f\x8b\x08\x00" + content[:100], True),
        "null": (b"null", False),
        "5": (b"5", False),
        "a text": (b'"text"', False),
        "a list": (b"[]", False),
        "an object": (b"{}", False),
        "deep": (b"[" * 100_000, True),
    }
    name = rng.choice(list(ways))
    path.write_bytes(ways[name][0])
    return name, ways[name][1]


def change_bit(path: Path, rng: random.Random) -> tuple[str, bool]:
    """Change one bit of a file, as a disk may do."""
    content = bytearray(path.read_bytes())
    place = rng.randrange(len(content))
    content[place] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    return f"a bit of byte {place} of {len(content)}", False


def change_weights(path: Path, rng: random.Random) -> tuple[str, bool]:
    """Change a safetensors file: its header, its tensors, or its bytes."""
    import torch
    from safetensors.torch import load_file, save_file

    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])

    def framed(text: bytes, length: int | None = None) -> bytes:
        return struct.pack("<Q", len(text) if length is None else length) + text

    way = rng.choice(("bytes", "header", "length", "dtype", "number", "drop", "shape", "extra"))
    if way == "bytes":
        return change_bytes(path, rng)
    if way == "header":
        other = json_text(changed_json(header, rng)).encode("utf-8", "surrogatepass")
        path.write_bytes(framed(other) + content[8 + size :])
        return "its header changed", False
    if way == "length":
        length = rng.choice((0, 1, 2**63, 2**64 - 1, len(content), 10**9))
        path.write_bytes(struct.pack("<Q", length) + content[8:])
        return f"its header of {length} bytes", True
    tensors, name = load_file(path), rng.choice([key for key in header if key[:2] != "__"])
    refused = way in ("drop", "shape")
    if way == "dtype":
        kinds = (torch.int32, torch.bool, torch.float64, torch.complex64, torch.int8)
        tensors[name] = tensors[name].to(rng.choice(kinds))
    elif way == "number":
        tensors[name] = torch.full_like(tensors[name], rng.choice((np.nan, np.inf, 1e38, 0.0)))
    elif way == "drop":
        del tensors[name]
    elif way == "shape":
        tensors[name] = rng.choice((tensors[name][:0], tensors[name][:1], tensors[name][None]))
        tensors[name] = tensors[name].contiguous()
    else:
        tensors["model.more.weight"] = torch.zeros(3)
    save_file(tensors, path, {"format": "pt"})
    return f"{way} of {name}", refused


def change_gguf(path: Path, rng: random.Random) -> tuple[str, bool]:
    """Change a GGUF file: a number of its header, a length, or its bytes.

    Format: four letters, a version, the counts of tensors and of what is known, and then each of
    these with the length of its name before it.
    """
    if rng.random() < 0.4:
        return rng.choice((change_bytes, change_bit))(path, rng)
    content = bytearray(path.read_bytes())
    place = rng.choice((4, 8, 16, 24, rng.randrange(24, len(content) // 2)))
    number = rng.choice((0, 1, 2**31, 2**32, 2**40, 2**63, 2**64 - 1, len(content)))
    content[place : place + 8] = struct.pack("<Q", number)
    path.write_bytes(content)
    return f"{number} at byte {place}", False


# Columns of a table of scores, and values that none may have.
WRONG: dict[str, tuple[Any, ...]] = {
    "logp": (np.nan, np.inf, -np.inf, 1.0, "text", None, -1e300),
    "length": (0, -1, 1.5, np.nan, np.inf, "3", 2**40),
    "index": (-1, 1.5, np.nan, "0", 2**60),
}


def change_scores(path: Path, rng: random.Random) -> tuple[str, bool]:
    """Change a table of scores."""
    frame = pd.read_parquet(path)
    way = rng.choice(("value", "value", "type", "shape", "known", "bytes"))
    if way == "bytes":
        how, _ = change_bytes(path, rng)
        # A table is read from its end, whose places count from the beginning.
        return how, how not in ("with more behind it", "twice")
    if way == "value":
        name = rng.choice(list(WRONG))
        value = rng.choice(WRONG[name])
        column = frame[name].astype(object)
        column.iloc[rng.randrange(len(column))] = value
        whole = column if not isinstance(value, str) else column.astype(str)
        try:
            kept = pd.array(whole.tolist())
        except (TypeError, ValueError, OverflowError):
            kept = whole
        frame.assign(**{name: kept}).to_parquet(path)
        return f"{name} of {value}", True
    table = pa.Table.from_pandas(frame)
    if way == "known":
        text = json_text(rng.choice(VALUES)).encode("utf-8", "surrogatepass")
        known = {**(table.schema.metadata or {}), b"provenance": text, b"pandas": text}
        pq.write_table(table.replace_schema_metadata(known), path)
        return "provenance and what pandas knows changed", False
    return _other_table(path, frame, rng)


def _other_table(path: Path, frame: pd.DataFrame, rng: random.Random) -> tuple[str, bool]:
    shapes: dict[str, Callable[[], Any]] = {
        "no rows": lambda: frame.iloc[:0],
        "no columns": lambda: frame[[]],
        "a column less": lambda: frame.drop(columns=rng.choice(list(WRONG))),
        "rows twice": lambda: pd.concat([frame, frame]),
        "text": lambda: frame.astype(str),
        "truth": lambda: frame.assign(length=True),
        "dates": lambda: frame.assign(logp=pd.Timestamp(0)),
        "lists": lambda: frame.assign(logp=frame["logp"].map(lambda value: [value])),
        "objects": lambda: frame.assign(logp=frame["logp"].map(lambda value: {"a": value})),
    }
    way = rng.choice(list(shapes))
    shapes[way]().to_parquet(path)
    return way, True
