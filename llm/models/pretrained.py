"""Read models from a folder or the hub with transformers, and refuse unusable ones in one line.

Configuration and tokenizer are read before the weights, so that what is wrong is known before
gigabytes have been read. Some problems that transformers only reports in its log are refused here:
weights that the file lacks, and weights of the file that the model has no place for.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext, redirect_stderr
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from llm.models.chat_programs import check_program
from llm.models.digests import WEIGHTS, unchanged
from llm.models.gguf_files import read_header
from llm.models.libraries import fetch, muted, quiet
from markov.errors import require, shown

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
# What older versions saved beside the weights although it follows from the configuration:
# frequencies and tables of rotary embeddings, masks, numbers of positions, and the number of the
# format.
DERIVED = re.compile(
    r"(rotary_emb\.\w+|[._]mask|\.masked_bias|\.(attn|attention)\.bias|\.position_ids|\.embed_positions|\.version)$"
)
CHECKPOINT = re.compile(r"checkpoint-(\d+)")  # of transformers' trainers, by updates
# Files of which a tokenizer has at least one.
WORDS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
)
# What tokenizers disagree on: capitals, digits, runs of blanks, letters beyond ASCII, other
# scripts.
PROBES = (
    'Question: Who wrote "The Salt Road" in 1987?\nAnswer:',
    "  Ünlü şair\tŁódź, 東京 & co. — 12.5%",
    "isn't IT",
)


def check_folder(folder: Path) -> None:
    """Raise `InvalidInput` unless a folder has a configuration and weights that are no pickles.

    What there is of the files that `llm.models.folder_files` declares has to be as declared.
    """
    where, kinds = str(folder), {file.suffix for file in folder.iterdir()}
    names = ("config.json", "adapter_config.json")
    inner = sorted({file.parent.name for name in names for file in folder.glob(f"*/{name}")})
    steps = [int(found[1]) for name in inner if (found := CHECKPOINT.fullmatch(name))]
    instead = f" (there is one in {', '.join(inner)} inside it)" if inner else ""
    if steps:
        newest = folder / f"checkpoint-{max(steps)}"
        instead = f"; it holds {len(steps)} checkpoints of a trainer, the newest is {newest}"
    allowed = f"a folder with a config.json, as of transformers{instead}"
    require((folder / "config.json").is_file(), "model", where, allowed)
    reason = ", not as pickles, which can run code when they are read"
    reason = "" if kinds.isdisjoint(PICKLES) else reason
    allowed = f"a folder with weights as safetensors{reason}"
    require(".safetensors" in kinds, "model", where, allowed)
    # Here and below, because building the schemas takes as long as answering --help.
    from llm.models.folder_files import check_files

    check_files(folder)


def note(text: str) -> None:
    """Print one line on standard error about something that changes a result and is no error."""
    print(f"note: {text}", file=sys.stderr)


def read_config(where: str, options: Mapping[str, Any]) -> Any:
    """Return the configuration of a causal language model.

    Raises `InvalidInput` if there is none, or it is of another kind. The kind follows from the
    architecture that it names: encoders could be built as causal models too, but were not trained
    as such. A GGUF file may name none; what transformers reads of such files are decoders.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

    revision = options.get("revision")
    read = AutoConfig.from_pretrained  # the revision is among the options
    config = fetch("model", where, lambda: read(where, **options), revision)
    heads = config.architectures or ["none"]
    if "gguf_file" in options and not config.architectures:
        heads = [KNOWN.get(config.model_type, "none")]
    causal = options["trust_remote_code"] or not {*heads}.isdisjoint(KNOWN.values())
    allowed = f"a causal language model (architecture in its config.json: {', '.join(heads)})"
    require(causal and not config.is_encoder_decoder, "model", where, allowed)
    return config


def read_tokenizer(where: str, config: Any, options: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """Return a tokenizer; raises `InvalidInput` unless it ends sequences and fits the model.

    It may not be larger than the model's vocabulary.

    Tokens that were added to it, such as one for images, may lie beyond the model's vocabulary: no
    text may contain them, and `llm.scoring.logprobs.check_fits` refuses one that does. The
    end-of-sequence token may not, since every text has it.
    """
    from transformers import AutoTokenizer

    from llm.models.folder_files import check_files

    folder = Path(where)
    there = "gguf_file" in options or any((folder / name).is_file() for name in WORDS)
    allowed = f"a folder with a tokenizer: copy {WORDS[0]} and {WORDS[1]} of the model into it"
    code = options["trust_remote_code"]  # may keep its words in files of other names
    require(there or code or not folder.is_dir(), "tokenizer", where, allowed)

    def read() -> tuple[Any, int, int, list[list[int]]]:
        # The revision is among the options.
        found = AutoTokenizer.from_pretrained(where, **options)  # nosec B615
        allowed = "one that has an end-of-sequence token"
        require(isinstance(found.eos_token_id, int), "tokenizer", where, allowed)
        limit, added = config.get_text_config().vocab_size, set(found.added_tokens_decoder)
        needed = {number for number in vocabulary(found).values() if number not in added}
        cut = [found(text, add_special_tokens=False).input_ids for text in PROBES]
        return found, limit, max({found.eos_token_id, *needed}), cut

    if folder.is_dir() and "gguf_file" not in options:
        check_files(folder, "tokenizer")
    found, limit, top, cut = fetch("tokenizer", where, read)
    allowed = f"one for this model, which has {limit} tokens (its last is {top})"
    require(top < limit, "tokenizer", where, allowed)
    check_program(found, where)
    _compare_with_file(found, cut, Path(where) / "tokenizer.json")
    return found


def _compare_with_file(
    tokenizer: PreTrainedTokenizerBase, cut: Iterable[list[int]], file: Path
) -> None:
    """Print a note if a tokenizer has not `cut` the `PROBES` as its own tokenizer.json does.

    Some classes of transformers build their own rules in place of those of the file, so that a
    folder that names the wrong class has other tokens under one version of transformers than under
    another.
    """
    if not file.is_file():
        return
    from tokenizers import Tokenizer

    def read() -> list[list[int]]:
        own = Tokenizer.from_file(str(file))
        return [own.encode(text, add_special_tokens=False).ids for text in PROBES]

    for text, found, own in zip(PROBES, cut, fetch("tokenizer", str(file), read), strict=True):
        if found != own:
            name = type(tokenizer).__name__
            note(f"transformers reads {file} as a {name}, which cuts {text!r} differently")
            return


def read_weights(
    where: str, config: Any, dtype: torch.dtype | None, options: Mapping[str, Any]
) -> PreTrainedModel:
    """Return the model in evaluation mode, in its own dtype if none is given.

    Raises `InvalidInput` for weights that are missing or of another shape, and for weights that
    belong to a part of the model but have no place in it: a bias that its configuration does not
    have, a layer beyond the last, the scales of a quantised layer. Weights of a part that the model
    lacks as a whole (the value head of a reward model, what reads images) are left out, and a note
    says so.
    """
    import transformers

    read, own = (
        transformers.AutoModelForCausalLM.from_pretrained,
        "auto" if dtype is None else dtype,
    )
    renamed = tuple(map(int, transformers.__version__.split(".")[:2])) >= (4, 56)
    settings = {"dtype" if renamed else "torch_dtype": own, "config": config, **options}
    settings |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    if "gguf_file" in options and hasattr(transformers, "GgufConfig"):
        # Otherwise newer versions keep the weights in their blocks where they have kernels for it,
        # and elsewhere leave a model that they refuse to save.
        settings["quantization_config"] = transformers.GgufConfig(dequantize=True)
    # The bar that is drawn while a GGUF file is dequantised has no switch.
    silent = redirect_stderr(io.StringIO()) if _bars_unwanted(options) else nullcontext()
    with quiet(), silent:
        _check_numbers(where, config, options)
        model, report = fetch("model", where, lambda: read(where, use_safetensors=True, **settings))
    for lost in sorted(report["missing_keys"])[:1]:
        require(False, "model", where, f"one whose weights are all there ({lost} is not)")
    for name, *shapes in sorted(
        [one] if isinstance(one, str) else [*one] for one in report["mismatched_keys"]
    ):
        said = " and ".join(str(list(shape)) for shape in shapes)
        reason = (
            f"{name} has another shape in the file than in its config.json{said and f': {said}'}"
        )
        require(False, "model", where, f"one whose weights fit its configuration ({reason})")
    _check_unexpected(model, sorted(report["unexpected_keys"]), where)
    unchanged(Path(where), WEIGHTS)
    return model.eval()


def _check_numbers(where: str, config: Any, options: Mapping[str, Any]) -> None:
    """Raise `InvalidInput` for an architecture that is far larger than its files.

    It is built without numbers for that. Code that comes with a model is not run twice, and of
    quantised weights it is not known how many numbers they stand for.
    """
    from llm.models import folder_files

    place, file = Path(where), options.get("gguf_file")
    if not place.is_dir():
        return
    if file is not None:
        sizes = [one.numbers for one in read_header(place / file).tensors]
        folder_files.check_layers(len(sizes), config, where)
    else:
        stored = folder_files.stored_weights(place)
        sizes = [one.numbers for one in stored.values()]
        if stored:
            folder_files.check_stored(stored, config, where)
    if options.get("trust_remote_code") or getattr(config, "quantization_config", None) is not None:
        return
    if sizes:
        built = fetch("model", where, lambda: without_numbers(config))
        folder_files.check_numbers(built, sum(sizes), where)


def without_numbers(config: Any) -> Any:
    """Return the model of a configuration on the device "meta", where it takes no memory."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def _bars_unwanted(options: Mapping[str, Any]) -> bool:
    return "gguf_file" in options and not sys.stderr.isatty()


def _check_unexpected(model: PreTrainedModel, names: Iterable[str], where: str) -> None:
    """Refuse weights without a place inside a part that the model has, and note other weights.

    The others are left out.
    """
    parts = {name for name, _ in model.named_modules()} - {"", model.base_model_prefix}
    left = [name for name in names if DERIVED.search(name) is None]
    for name in left:
        above = name.split(".")
        inside = {".".join(above[:count]) for count in range(1, len(above))} & parts
        allowed = (
            f"one whose weights all have a place in the model of its config.json ({name} has none)"
        )
        require(not inside, "model", where, allowed)
    if left:
        note(
            f"{where} holds weights that a causal language model has no use for: {left[0]}, "
            f"{len(left)} in all"
        )


def vocabulary(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return tokens and their numbers, without a token that only pads.

    Many models get such a token for training, and nothing here uses it.
    """
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    return {
        word: number
        for word, number in tokenizer.get_vocab().items()
        if number != pad or pad == end
    }


def mend_generation(model: Any, name: str) -> None:
    """Drop settings for generating texts that transformers would refuse to save, and print which.

    They play no part here: what is generated is the most likely text. A setting that other settings
    make valid (a temperature, if sampling is asked for) is kept with them.
    """
    from transformers import GenerationConfig

    given = getattr(model, "generation_config", None)
    if given is None or _valid(lambda: given):
        return
    own = given.to_diff_dict()
    # What says how texts are generated comes first; the other settings are valid or not under it.
    order = sorted(own, key=lambda key: (key not in ("do_sample", "num_beams"), key))
    kept: dict[str, Any] = {}
    for key in order:
        if _valid(lambda key=key: GenerationConfig(**kept, **{key: own[key]})):
            kept[key] = own[key]
    model.generation_config, plain = GenerationConfig(**kept), GenerationConfig()
    dropped = [key for key in order if key not in kept]
    for key in dropped:
        if hasattr(model.config, key):  # from where older versions would take it back
            setattr(model.config, key, getattr(plain, key))
    said = ", ".join(f"{key} = {shown(own[key])}" for key in dropped)
    note(f"settings for generation of {name} that could not be saved are dropped: {said}")


def _valid(make: Callable[[], Any]) -> bool:
    """Return whether transformers would make these settings, and save them.

    This is tried by writing them, since each version has its own rules.
    """
    with TemporaryDirectory() as folder, muted():
        try:
            make().save_pretrained(folder)
        except Exception:  # settings of any kind
            return False
    return True
