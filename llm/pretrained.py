"""What transformers reads from a folder or the hub, with one line of complaint where it is nothing for this lab.

Configuration and tokenizer come before the weights, so that what is wrong is known before gigabytes have been read.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from markov.errors import InvalidInput, require

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def check_folder(folder: Path) -> None:
    """Raise `InvalidInput` unless there is a configuration and weights that are no pickles."""
    kinds = {file.suffix for file in folder.iterdir()}
    require((folder / "config.json").is_file(), "model", str(folder), "a folder with a config.json, as of transformers")
    reason = "" if kinds.isdisjoint(PICKLES) else ", not as pickles, which can run code when they are read"
    require(".safetensors" in kinds, "model", str(folder), f"a folder with weights as safetensors{reason}")


def read_config(where: str, options: Mapping[str, Any]) -> Any:
    """The configuration of a causal language model; raises `InvalidInput` if there is none, or it is of another kind.

    Told by the architecture that it names: encoders could be built as causal models too, but were not trained as such.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

    config = _fetch("model", where, lambda: AutoConfig.from_pretrained(where, **options))
    heads = config.architectures or ["none"]
    causal = options["trust_remote_code"] or not {*heads}.isdisjoint(KNOWN.values())
    allowed = f"a causal language model (architecture in its config.json: {', '.join(heads)})"
    require(causal and not config.is_encoder_decoder, "model", where, allowed)
    return config


def read_tokenizer(where: str, config: Any, options: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """A tokenizer; raises `InvalidInput` unless it ends sequences and knows no more tokens than the model."""
    from transformers import AutoTokenizer

    found = _fetch("tokenizer", where, lambda: AutoTokenizer.from_pretrained(where, **options))
    require(found.eos_token_id is not None, "tokenizer", where, "one that has an end-of-sequence token")
    limit, top = config.get_text_config().vocab_size, max(vocabulary(found).values())
    require(top < limit, "tokenizer", where, f"one for this model, which has {limit} tokens (its last is {top})")
    return found


def read_weights(where: str, config: Any, dtype: torch.dtype | None, options: Mapping[str, Any]) -> PreTrainedModel:
    """The model in evaluation mode, in its own dtype if none is given; raises `InvalidInput` if weights are missing."""
    import transformers

    read, own = transformers.AutoModelForCausalLM.from_pretrained, "auto" if dtype is None else dtype
    renamed = tuple(map(int, transformers.__version__.split(".")[:2])) >= (4, 56)
    settings = {"dtype" if renamed else "torch_dtype": own, "config": config, "output_loading_info": True, **options}
    with quiet():
        model, report = _fetch("model", where, lambda: read(where, use_safetensors=True, **settings))
    lost = ", ".join(sorted(report["missing_keys"])[:1])
    require(not lost, "model", where, f"one whose weights are all there ({lost} is not)")
    return model.eval()


def vocabulary(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Tokens and their numbers, without one that only pads: many are added for training, and nothing here uses them."""
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    return {word: number for word, number in tokenizer.get_vocab().items() if number != pad or pad == end}


def _fetch(field: str, where: str, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        offline = f"one on the hub that can be fetched ({reason}); offline, the path of a folder can be given instead"
        allowed = f"a folder that transformers can read ({reason})" if Path(where).is_dir() else offline
        raise InvalidInput(field, where, allowed) from None


@contextmanager
def quiet() -> Iterator[None]:
    """Without the bars of transformers where the output is not a terminal."""
    from transformers.utils import logging

    with ExitStack() as afterwards:
        if logging.is_progress_bar_enabled() and not sys.stderr.isatty():
            logging.disable_progress_bar()
            afterwards.callback(logging.enable_progress_bar)
        yield
