"""What is read of the files in a model's folder, declared, and checked before transformers loads.

Only what is declared here is checked; other settings may be there. A number that no model has (no
layer, a width of -1) would otherwise end inside a library, or build something else than is meant:
a decoder of -1 layers is scored as one without any.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_type_hints

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model
from safetensors import SafetensorError, safe_open

from llm.schemas import described
from llm.scoring.templates import SAVED as TEMPLATE
from llm.scoring.templates import Template
from markov.errors import InvalidInput, require, shown
from markov.files import inputs

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
TOKENIZER = "tokenizer_config.json"
# Other files that have to be objects; of the large ones only the first character is looked at.
OBJECTS = ("generation_config.json", "special_tokens_map.json", "added_tokens.json")
LARGE_OBJECTS = ("tokenizer.json", "vocab.json")
TEXTS = ("chat_template.jinja", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model")
# No model comes near these: a width of so many numbers squared is beyond any memory.
MOST, MOST_LAYERS = 2**28, 2**10
# Numbers of layers, and of all else that is counted, in the words of many architectures.
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
COUNTS = (
    *("num_attention_heads", "n_head", "n_heads", "num_heads", "num_key_value_heads"),
    *("hidden_size", "n_embd", "d_model", "intermediate_size", "n_inner", "d_ff", "ffn_dim"),
    *("ffn_hidden_size", "head_dim", "vocab_size", "max_position_embeddings", "n_positions"),
    *("n_ctx", "word_embed_proj_dim", "embedding_size", "moe_intermediate_size"),
)
WIDEST = 10**300  # the longest text of a tokenizer without one is said to have 10**30 tokens
# Weights that a file may hold in fewer numbers than its model has: some follow from settings.
SLACK, LEAST = 2, 10**7


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _bare(value: Any) -> Any:
    return value.removeprefix("torch.") if isinstance(value, str) else value


Count = Annotated[
    int,
    BeforeValidator(_whole),
    Field(strict=True, ge=1, le=MOST, description=f"a whole number from 1 to {MOST}"),
]
Layers = Annotated[
    int,
    BeforeValidator(_whole),
    Field(strict=True, ge=1, le=MOST_LAYERS, description=f"a whole number from 1 to {MOST_LAYERS}"),
]
Text = Annotated[str, Field(strict=True, description="text")]
Texts = Annotated[list[Text], Field(description="a list of texts")]
Finite = Annotated[float, Field(strict=True, allow_inf_nan=False, description="a finite number")]
Positive = Annotated[
    float, Field(strict=True, ge=0, allow_inf_nan=False, description="a finite number >= 0")
]
Object = Annotated[dict[str, Any], Field(description="an object")]
Truth = Annotated[bool, Field(strict=True, description="true or false")]
Token = Annotated[
    int, Field(strict=True, ge=-1, le=MOST, description="the number of a token, or several")
]
Dtype = Annotated[
    Literal["float32", "float16", "bfloat16", "float64", "auto"],
    BeforeValidator(_bare),
    Field(description="float32, float16, bfloat16, float64 or auto"),
]


class Lenient(BaseModel):
    """What files of a model share: they may say more than is declared."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())


class Quantisation(Lenient):
    """How weights were quantised."""

    quant_method: Text | None = None


class Settings(Lenient):
    """The settings of an architecture that are no counts."""

    model_type: Text | None = None
    architectures: Texts | None = None
    dtype: Dtype | Object | None = None
    torch_dtype: Dtype | Object | None = None
    is_encoder_decoder: Truth | None = None
    tie_word_embeddings: Truth | None = None
    eos_token_id: Token | list[Token] | None = None
    bos_token_id: Token | list[Token] | None = None
    pad_token_id: Token | list[Token] | None = None
    rms_norm_eps: Positive | None = None
    initializer_range: Positive | None = None
    hidden_act: Text | None = None
    rope_scaling: Object | None = None
    rope_parameters: Object | None = None
    layer_types: Texts | None = None
    quantization_config: Annotated[Quantisation, Field(description="an object")] | None = None


_counts: dict[str, Any] = {
    **dict.fromkeys(COUNTS, (Count | list[Count] | None, None)),
    **dict.fromkeys(LAYERS, (Layers | None, None)),
}
Architecture: Any = create_model("Architecture", __base__=Settings, **_counts)
# A config.json: an architecture, of which a part may be that of the text.
_part: Any = Annotated[Architecture, Field(description="an object")]
_text: dict[str, Any] = {"text_config": (_part | None, None)}
Config: type[BaseModel] = create_model("Config", __base__=Architecture, **_text)


class Index(Lenient):
    """A model.safetensors.index.json: the file of the same folder that holds each weight."""

    weight_map: Annotated[
        dict[str, Annotated[str, Field(strict=True, pattern=r"^[^/\\]+\.safetensors$")]],
        Field(min_length=1, description="the name of a file of the folder for each weight"),
    ]


class NamedTemplate(Lenient):
    """One of several chat templates."""

    name: Text
    template: Text


class TokenizerConfig(Lenient):
    """A tokenizer_config.json."""

    tokenizer_class: Text | None = None
    chat_template: (
        Annotated[
            Text | list[NamedTemplate] | dict[str, Text],
            Field(description="a template, or several with names"),
        ]
        | None
    ) = None
    added_tokens_decoder: Object | None = None
    eos_token: Text | Object | None = None
    bos_token: Text | Object | None = None
    unk_token: Text | Object | None = None
    pad_token: Text | Object | None = None
    auto_map: Object | None = None


class AdapterConfig(Lenient):
    """An adapter_config.json, as peft writes it."""

    base_model_name_or_path: Text | None = None
    revision: Text | None = None
    peft_type: Text | None = None
    r: Count | None = None
    lora_alpha: Finite | None = None
    lora_dropout: Positive | None = None
    target_modules: Text | Texts | None = None
    modules_to_save: Texts | None = None
    rank_pattern: dict[str, Count] | None = None
    alpha_pattern: dict[str, Finite] | None = None


# A template.json, as `llm.models.saving.save` writes it: the fields of a template, and no others.
_kinds = get_type_hints(Template)
_fields: dict[str, Any] = {
    one.name: (_kinds[one.name], ... if one.default is MISSING else one.default)
    for one in fields(Template)
}
_exactly = ConfigDict(extra="forbid", strict=True)
SavedTemplate: type[BaseModel] = create_model("SavedTemplate", __config__=_exactly, **_fields)


class Stored(NamedTuple):
    """What a weight is in its file: the name of its type, and its shape."""

    kind: str
    shape: tuple[int, ...]

    @property
    def numbers(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


Kind = TypeVar("Kind", bound=BaseModel)


def read_declared(file: Path, schema: type[Kind], field: str, where: str) -> Kind:
    """Return what a JSON file says as its schema declares it.

    `where` is the value that an error names. Raises `InvalidInput` for a file that cannot be read
    or says anything else.
    """
    allowed = f"a folder whose {file.name} can be read"
    data = inputs.read_bytes(file, field, allowed)
    content = inputs.parsed(data, field, where, allowed, widest=WIDEST)
    return declared(content, schema, field, where, file.name)


def declared(content: object, schema: type[Kind], field: str, where: str, name: str) -> Kind:
    """Return content as its schema declares it; `name` is that of its file."""
    allowed = f"a folder whose {name} is an object, not {shown(content)}"
    require(isinstance(content, dict), field, where, allowed)
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
    key = str(first["loc"][0])
    properties = schema.model_json_schema()["properties"]
    said = described(properties.get(key)) or first["msg"]
    value = content.get(key) if isinstance(content, dict) else None
    if key == "text_config" and isinstance(value, dict) and len(first["loc"]) > 1:
        declared(value, Architecture, field, where, f"text_config of {name}")
    has = f"has {shown(value)} as {key}" if key in properties else f"names {key}"
    raise InvalidInput(field, where, f"a folder whose {name} says {key} as {said} (it {has})")


def check_files(folder: Path, field: str = "model") -> None:
    """Raise `InvalidInput` unless what is there of the known files can be read as declared.

    Pipes, devices and links in a circle are refused without being opened.
    """
    where, there = str(folder), {one.name for one in folder.iterdir()}
    for name in (*OBJECTS, *LARGE_OBJECTS, *TEXTS, CONFIG, INDEX, TOKENIZER, TEMPLATE):
        if name in there:
            _existing(folder / name, field, where)
    for file in sorted(folder.glob("*.safetensors")):
        _existing(file, field, where)
    found = {CONFIG: Config, TOKENIZER: TokenizerConfig, **dict.fromkeys(OBJECTS, Lenient)}
    for name, schema in found.items():
        if name in there:
            own = "tokenizer" if name == TOKENIZER else field
            read_declared(folder / name, schema, own, where)
    for name in LARGE_OBJECTS:
        if name in there:
            with open(folder / name, "rb") as stream:
                begins = stream.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
            require(begins == b"{", "tokenizer", where, f"a folder whose {name} is an object")


def _existing(file: Path, field: str, where: str) -> None:
    try:
        inputs.existing_file(file, field)
    except InvalidInput as error:
        raise InvalidInput(field, where, f"a folder whose {file.name} is {error.allowed}") from None


def stored_weights(folder: Path, field: str = "model") -> Mapping[str, Stored]:
    """Return the weights in the files of a folder that transformers would read, by name.

    Only the heads of the files are read. Raises `InvalidInput` for an index that names files
    outside of the folder, or that are not there, and for files that are damaged.
    """
    where, names = str(folder), [WEIGHTS]
    if not (folder / WEIGHTS).exists() and (folder / INDEX).exists():
        known = read_declared(folder / INDEX, Index, field, where).weight_map
        names = sorted({*known.values()})
        lacking = [name for name in names if not (folder / name).is_file()]
        allowed = (
            f"a folder with all files that its {INDEX} names ({', '.join(lacking[:1])} is not)"
        )
        require(not lacking, field, where, allowed)
    elif not (folder / WEIGHTS).exists():
        return {}
    return {name: one for file in names for name, one in stored(folder / file, field).items()}


def stored(file: Path, field: str = "model") -> Mapping[str, Stored]:
    """Return the weights in a file by name; raises `InvalidInput` for one that is damaged."""
    _existing(file, field, str(file.parent))
    try:
        with safe_open(file, framework="pt") as stream:
            slices = ((name, stream.get_slice(name)) for name in stream.keys())  # noqa: SIM118
            return {
                name: Stored(str(one.get_dtype()), tuple(one.get_shape())) for name, one in slices
            }
    except (OSError, SafetensorError):
        allowed = f"a folder of whole files: {file.name} is damaged or cut short"
        raise InvalidInput(field, str(file.parent), allowed) from None


def check_stored(weights: Mapping[str, Stored], config: Any, where: str) -> None:
    """Raise `InvalidInput` for weights that are no floats, or fewer than the layers.

    A layer has at least one weight, so that a number of layers that is beyond all reason is found
    before they are built.
    """
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING as KNOWN

    packed = getattr(config, "quantization_config", None)
    way = packed.get("quant_method") if isinstance(packed, dict) else None
    allowed = f"one quantised in a way that transformers knows (not by {way})"
    known = way is None or not {way, f"{way}_4bit"}.isdisjoint(KNOWN)  # bitsandbytes has two
    require(known, "model", where, allowed)
    odd = [
        f"{name} is of {one.kind}"
        for name, one in weights.items()
        if name.endswith((".weight", "_proj.bias")) and not one.kind.startswith(("F", "BF"))
    ]
    allowed = "a folder whose weights are floating-point numbers, unless its config.json says how"
    allowed += f" they were quantised ({', '.join(odd[:1])})"
    require(packed is not None or not odd, "model", where, allowed)
    check_layers(len(weights), config, where)


def check_layers(weights: int, config: Any, where: str) -> None:
    """Raise `InvalidInput` for more layers than weights, and for heads that share no width."""
    text = config.get_text_config()
    layers = getattr(text, "num_hidden_layers", None)
    allowed = f"one whose weights are all there ({layers} layers have more than {weights})"
    require(not isinstance(layers, int) or layers <= weights, "model", where, allowed)
    width, heads = (getattr(text, name, None) for name in ("hidden_size", "num_attention_heads"))
    if not isinstance(width, int) or not isinstance(heads, int) or heads < 1:
        return
    size = getattr(text, "head_dim", None) or width // heads
    # A width of its own for each head may be any; one that follows is rounded down.
    followed = size == width // heads and width % heads != 0
    allowed = f"one whose heads share its width ({heads} of {width})"
    require(not followed, "model", where, allowed)
    keys = getattr(text, "num_key_value_heads", None)
    good = not isinstance(keys, int) or keys < 1 or heads % keys == 0
    allowed = f"one whose heads share those of keys and values ({heads} heads, {keys} of keys)"
    require(good, "model", where, allowed)


def check_numbers(model: Any, held: int, where: str) -> None:
    """Raise `InvalidInput` for an architecture of far more numbers than its files hold.

    What the files lack would be filled with memory before it is missed.
    """
    count = sum(one.numel() for one in model.parameters())
    allowed = f"one whose weights are all there (its files hold {held:,} of {count:,} numbers)"
    require(count <= SLACK * held + LEAST, "model", where, allowed)
