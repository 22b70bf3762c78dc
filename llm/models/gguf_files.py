"""GGUF files: one file with weights, configuration, tokenizer and chat template of a model.

transformers reads them with the package `gguf`. The weights are dequantised, so that the model is
a plain one, which can be trained and saved. What a file is and whether it is whole is found out
from its header, before anything else is read. The header is walked here: `gguf.GGUFReader` makes
an array of every word of the vocabulary, which takes seconds, and fails in many ways on a file that
is cut short. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import struct
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, NamedTuple, NoReturn

from llm.data.words import checked_word
from markov.errors import InvalidInput, require, shown
from markov.files import inputs

MAGIC, SUFFIX, VERSIONS = b"GGUF", ".gguf", (2, 3)
INSTALL = "pip install 'gguf>=0.10'"
LINK = "model.gguf"
# How values of the header are stored, by the number of their type.
NUMBERS: dict[int, str] = dict(
    zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True)
)
TEXT, ARRAY = 8, 9
DIMENSIONS = 8  # of a tensor, at most
# Settings that are used here, with their type and the least that they may be.
KINDS: dict[str, tuple[type, int]] = {
    "general.type": (str, 0),
    "general.architecture": (str, 0),
    "general.alignment": (int, 1),
    "split.count": (int, 0),
    "tokenizer.ggml.tokens": (int, 0),  # as many as the array has
}
PLAIN = ("F64", "F32", "F16", "BF16")
PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)  # of a model in several files


class Stored(NamedTuple):
    """A tensor of a file: its name, the name of its type, and how many numbers it has."""

    name: str
    kind: str
    numbers: int


class Header(NamedTuple):
    """What a file says of itself: settings, with the length in place of an array, and tensors."""

    settings: dict[str, Any]
    tensors: tuple[Stored, ...]


def is_gguf(word: str | os.PathLike[str]) -> bool:
    """Return whether a word is the path of a file that begins as a GGUF file does."""
    if not inputs.is_file(word):  # a pipe would never end
        return False
    try:
        with open(os.path.expanduser(word), "rb") as stream:
            return stream.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def find_gguf(word: str | os.PathLike[str], field: str = "model") -> Path | None:
    """Return the GGUF file that a path names, or the one in a folder without other weights.

    Returns None if it names neither. Raises `InvalidInput` for a path that ends in .gguf and is no
    GGUF file, and for a folder with several of them.
    """
    name = checked_word(word, field)
    place = Path(name)
    if place.is_dir():
        files = sorted(file for file in place.iterdir() if file.suffix.lower() == SUFFIX)
        if not files or any(place.glob("*.safetensors")):
            return None
        names = ", ".join(file.name for file in files)
        allowed = f"a folder with one GGUF file, or the path of one of {names}"
        if all(PART.search(file.name) for file in files):
            allowed = _in_parts(len(files))
        require(len(files) == 1, field, name, allowed)
        place = files[0]
    elif place.suffix.lower() == SUFFIX:
        require(place.is_file(), field, name, "the path of a GGUF file that exists")
    elif not is_gguf(place):
        return None
    require(is_gguf(place), field, str(place), f"a GGUF file, which begins with {MAGIC.decode()}")
    return place


def read_header(file: Path) -> Header:
    """Return the header of a GGUF file that holds a whole model.

    Raises `InvalidInput` if the package `gguf` is missing, and for a file that is cut short, is of
    a version or has a type of numbers that cannot be read, or holds something else: an adapter, a
    vocabulary, a part of a model.
    """
    _check_package(file)
    with open(file, "rb") as stream:
        try:
            settings, tensors, end = _walk(stream)
        except EOFError:
            _refuse(file, "a whole file: it is cut short within its header")
        except (struct.error, OverflowError, ValueError, KeyError, RecursionError) as error:
            _refuse(file, f"a file whose header can be read ({error})")
    _check_settings(file, settings)
    kind = settings.get("general.type", "model")
    what = f"it holds a {kind}, which is not a model by itself"
    require(kind == "model", "model", str(file), f"a file with a whole model: {what}")
    if settings.get("split.count", 1) > 1:
        _refuse(file, _in_parts(settings["split.count"]))
    _check_tensors(file, tensors)
    size = os.path.getsize(file)
    allowed = f"a whole file: its header asks for {end:,} bytes, and it has {size:,}"
    require(size >= end, "model", str(file), allowed)
    return Header(settings, tuple(Stored(name, kind, count) for name, kind, count, _ in tensors))


def quantised(header: Header) -> str:
    """Return in words which tensors of a file were quantised, and how many parameters they hold."""
    total = sum(one.numbers for one in header.tensors)
    by_kind: dict[str, list[Stored]] = defaultdict(list)
    for one in header.tensors:
        if one.kind not in PLAIN:
            by_kind[one.kind].append(one)
    if not by_kind:
        kinds = " and ".join(sorted({one.kind for one in header.tensors}))
        return f"nothing was quantised ({kinds})"
    said = []
    for kind, ones in sorted(by_kind.items(), key=lambda pair: -len(pair[1])):
        share = sum(one.numbers for one in ones) / total
        which = ones[0].name if len(ones) == 1 else f"{len(ones)} tensors such as {ones[0].name}"
        said.append(f"{which} ({kind}, {share:.1%} of the parameters)")
    return f"{' and '.join(said)} {'were' if len(said) > 1 or len(ones) > 1 else 'was'} quantised"


@contextmanager
def alone(file: Path) -> Iterator[str]:
    """Give a folder that holds the file and nothing else, as `LINK`.

    transformers would also read a tokenizer or an adapter that lies beside the file. Raises
    `InvalidInput` under the name of the file.
    """
    with TemporaryDirectory() as folder:
        Path(folder, LINK).symlink_to(file.resolve())
        try:
            yield folder
        except InvalidInput as error:
            inside = os.path.join(folder, LINK)
            value, allowed = (
                str(one).replace(inside, str(file)).replace(folder, str(file))
                for one in (error.value, error.allowed)
            )
            raise InvalidInput(error.field, value, allowed) from None


def keep_to(header: Header, tokenizer: Any) -> None:
    """Drop tokens that are not in the file from its tokenizer, and begin and end as the file says.

    transformers reads it as that of GPT-2, for instance, and adds that one's special tokens; and
    its version 5.17 takes the first token of a text for the last one, and never writes it. Such a
    tokenizer could not be compared with that of the same model elsewhere.
    """
    from tokenizers import Tokenizer

    count = header.settings.get("tokenizer.ggml.tokens", 0)
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    own = [one for one in content["added_tokens"] if one["id"] < count]
    if len(own) < len(content["added_tokens"]):
        content["added_tokens"] = own
        tokenizer._tokenizer = Tokenizer.from_str(json.dumps(content))
    found = {}
    for role in ("bos_token", "eos_token"):
        number = header.settings.get(f"tokenizer.ggml.{role}_id")
        # Some files write a number beyond all tokens, or below 0, for none.
        if type(number) is int and 0 <= number < count:
            found[role] = tokenizer.convert_ids_to_tokens(number)
    changed = any(getattr(tokenizer, role) != word for role, word in found.items())
    if changed:
        tokenizer.add_special_tokens(found)
    begins = header.settings.get("tokenizer.ggml.add_bos_token")
    if type(begins) is bool and getattr(tokenizer, "add_bos_token", begins) != begins:
        tokenizer.add_bos_token, changed = begins, True
    if changed:
        tokenizer.update_post_processor()  # which writes the first token, where one is written


def _check_settings(file: Path, settings: dict[str, Any]) -> None:
    """Raise `InvalidInput` for settings of another type than the format has."""
    for name, (kind, least) in KINDS.items():
        value = settings.get(name)
        good = value is None or isinstance(value, kind)
        if good and isinstance(value, int):
            good = not isinstance(value, bool) and least <= value < 2**31
        what = "text" if kind is str else f"a whole number from {least}"
        if not good:
            _refuse(file, f"a file whose header says {name} as {what}, not {shown(value)}")


def _check_package(file: Path) -> None:
    there = importlib.util.find_spec("gguf") is not None
    require(there, "model", str(file), f"read with the package gguf, which is missing: {INSTALL}")


def _check_tensors(file: Path, tensors: list[tuple[str, str, int, int]]) -> None:
    """Raise `InvalidInput` unless there are weights, all of them of types that can be read."""
    import numpy as np
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

    allowed = "a file with weights: it holds a vocabulary alone"
    require(len(tensors) > 0, "model", str(file), allowed)
    for kind in sorted({kind for _, kind, _, _ in tensors}):
        number = GGMLQuantizationType[kind]
        blank = np.zeros((1, GGML_QUANT_SIZES[number][1]), dtype=np.uint8)
        blank = blank.view({"F32": np.float32, "F16": np.float16}.get(kind, np.uint8))
        try:
            dequantize(blank, number)
        except Exception:  # a kind of blocks that this version does not know, or knows in part
            name = next(name for name, own, _, _ in tensors if own == kind)
            _refuse(file, f"a file whose tensors the package gguf can dequantise ({name}: {kind})")


def _walk(stream: BinaryIO) -> tuple[dict[str, Any], list[tuple[str, str, int, int]], int]:
    """Return settings, tensors (name, type, numbers, bytes) and the bytes that the file needs.

    Raises `EOFError` if the file ends before its header does.
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    stream.seek(len(MAGIC))
    (version,) = _take(stream, "I")
    if version not in VERSIONS:
        big = version & 0xFFFF == 0
        said = "its numbers are stored big end first" if big else f"it is of version {version}"
        raise ValueError(f"{said}; versions 2 and 3, little end first, can be read")
    tensors_there, settings_there = _take(stream, "QQ")
    settings = {}
    for _ in range(settings_there):
        name = _text(stream)
        settings[name] = _value(stream, *_take(stream, "I"))
    tensors, needed = [], 0
    for _ in range(tensors_there):
        name = _text(stream)
        (dimensions,) = _take(stream, "I")
        if dimensions > DIMENSIONS:
            raise ValueError(f"{name} has {dimensions} dimensions")
        shape = _take(stream, f"{dimensions}Q")
        number, offset = _take(stream, "IQ")
        if number not in list(GGMLQuantizationType):
            raise ValueError(f"{name} is of a type that this version of gguf lacks, {number}")
        kind, numbers = GGMLQuantizationType(number), prod(shape)
        block, size = GGML_QUANT_SIZES[kind]
        needed = max(needed, offset + numbers // block * size)
        tensors.append((name, kind.name, numbers, numbers // block * size))
    step = settings.get("general.alignment", 32)
    step = step if isinstance(step, int) and step > 0 else 32  # what is wrong with it is said later
    start = -(-stream.tell() // step) * step
    return settings, tensors, start + needed if tensors else 0


def _value(stream: BinaryIO, kind: int) -> Any:
    """Return a value of the header, or how many there are if it is an array."""
    if kind == TEXT:
        return _text(stream)
    if kind != ARRAY:
        return _take(stream, NUMBERS[kind])[0]
    inner, count = _take(stream, "IQ")
    if inner == TEXT:
        for _ in range(count):
            _skip(stream, *_take(stream, "Q"))
    elif inner == ARRAY:
        for _ in range(count):
            _value(stream, ARRAY)
    else:
        _skip(stream, count * struct.calcsize("<" + NUMBERS[inner]))
    return count


def _take(stream: BinaryIO, what: str) -> tuple[Any, ...]:
    size = struct.calcsize("<" + what)
    read = stream.read(size)
    if len(read) < size:
        raise EOFError
    return struct.unpack("<" + what, read)


def _text(stream: BinaryIO) -> str:
    (length,) = _take(stream, "Q")
    _skip(stream, length)
    stream.seek(-length, os.SEEK_CUR)
    return stream.read(length).decode("utf-8", "replace")


def _skip(stream: BinaryIO, count: int) -> None:
    """Pass over so many bytes; raises `EOFError` if there are fewer."""
    if count > os.fstat(stream.fileno()).st_size - stream.tell():
        raise EOFError
    stream.seek(count, os.SEEK_CUR)


def _in_parts(count: int) -> str:
    return (
        f"a model in one file: this one is in {count} parts, which llama.cpp's "
        "`llama-gguf-split --merge FIRST OUT` joins"
    )


def _refuse(file: Path, allowed: str) -> NoReturn:
    raise InvalidInput("model", str(file), allowed)
