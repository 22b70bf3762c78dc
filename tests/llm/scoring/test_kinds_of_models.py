"""Kinds of models: what each writes and scores in company is what it does alone, whatever it
does with padding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from llm.scoring import logprobs
from llm.scoring.encoding import Encoded
from llm.scoring.logprobs import check_model, score_encoded
from llm.writing.continuations import _write, continuations
from llm.writing.ways import WAYS, Way, way_of
from markov.errors import InvalidInput
from tests.llm.models.test_generation import Ends, slow_continuation

VOCAB, EOS = 97, 2
SIZES: dict[str, Any] = dict(
    vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, intermediate_size=48
)
HEADS: dict[str, Any] = dict(num_attention_heads=4, max_position_embeddings=64, **SIZES)
DECODER: dict[str, Any] = dict(
    vocab_size=VOCAB,
    d_model=32,
    decoder_layers=2,
    decoder_attention_heads=4,
    decoder_ffn_dim=48,
    is_decoder=True,
)
TEXT: dict[str, Any] = dict(bos_token_id=1, eos_token_id=EOS, pad_token_id=0)
GRIFFIN: dict[str, Any] = dict(
    num_attention_heads=4, lru_width=32, block_types=["recurrent", "attention"]
)
CPM: dict[str, Any] = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    num_attention_heads=4,
    dim_head=8,
    dim_ff=48,
    num_hidden_layers=2,
    prompt_length=4,
)

# Recurrent, with states or with windows; with positions that are learnt, rotated, or counted from a
# padding token.
KINDS: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**HEADS)),
    "mamba": lambda: transformers.MambaForCausalLM(transformers.MambaConfig(state_size=8, **SIZES)),
    "mpt": lambda: transformers.MptForCausalLM(
        transformers.MptConfig(
            vocab_size=VOCAB, d_model=32, n_layers=2, n_heads=4, logit_scale="inv_sqrt_d_model"
        )
    ),
    "bart": lambda: transformers.BartForCausalLM(transformers.BartConfig(**DECODER)),
    "rwkv": lambda: transformers.RwkvForCausalLM(
        transformers.RwkvConfig(attention_hidden_size=32, **SIZES)
    ),
    "recurrent_gemma": lambda: transformers.RecurrentGemmaForCausalLM(
        transformers.RecurrentGemmaConfig(attention_window_size=8, **GRIFFIN, **SIZES)
    ),
    "roberta": lambda: transformers.RobertaForCausalLM(
        transformers.RobertaConfig(is_decoder=True, **(HEADS | TEXT))
    ),
}


def loud(kind: str, seed: int = 0) -> Any:
    """Weights large enough that every prediction depends on what was read."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = KINDS[kind]()
        for module in model.modules():
            weight = getattr(module, "weight", None)
            if isinstance(weight, nn.Parameter) and weight.ndim == 2:
                nn.init.normal_(weight, std=0.25)
        model.tie_weights()
    # some kinds name token 0, which would end a text too
    model.generation_config.eos_token_id = EOS
    return model.eval()


MODELS = {kind: loud(kind) for kind in KINDS}
kinds = pytest.mark.parametrize("kind", KINDS)


def drawn(*lengths: int, seed: int = 1) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCAB, (length,), generator=generator).tolist() for length in lengths]


PROMPTS = drawn(14, 5, 9, 2, 5)


def by_hand(model: Any, prompt: list[int], count: int) -> list[int]:
    return slow_continuation(model, prompt, count, (EOS,))


def written(model: Any, prompts: list[list[int]], count: int = 8, **more: Any) -> list[list[int]]:
    return continuations(model, Ends(EOS), prompts, max_new_tokens=count, progress=False, **more)


# --- writing ---


@kinds
@settings(max_examples=4)
@example(lengths=[2], seed=1, budget=40)  # rwkv writes a token 0
@given(
    lengths=st.lists(st.integers(1, 16), min_size=1, max_size=5),
    seed=st.integers(0, 99),
    budget=st.sampled_from([40, 10_000]),
)
def test_a_model_writes_in_company_what_it_writes_alone(
    kind: str, lengths: list[int], seed: int, budget: int
) -> None:
    model, prompts = MODELS[kind], drawn(*lengths, seed=seed)
    assert written(model, prompts, budget=budget) == [
        by_hand(model, prompt, 8) for prompt in prompts
    ]


WANTED = {
    "llama": 0,
    "mamba": 0,
    "mpt": 0,
    "bart": 1,
    "rwkv": 2,
    "recurrent_gemma": 1,
    "roberta": 3,
}


@kinds
def test_the_quickest_way_that_changes_nothing_is_taken(kind: str) -> None:
    with torch.no_grad():
        assert way_of(MODELS[kind], PROMPTS, 4) == WAYS[WANTED[kind]]


def test_a_prompt_alone_needs_no_company_tried() -> None:
    with torch.no_grad():
        assert (
            way_of(MODELS["rwkv"], PROMPTS[:1], 4)
            == way_of(MODELS["llama"], PROMPTS[:1], 4)
            == WAYS[2]
        )


class Forgetful(nn.Module):
    """A block that, where something was kept, loses what lies further back than a window."""

    def __init__(self, block: nn.Module, window: int) -> None:
        super().__init__()
        self.block, self.window = block, window
        self.attention_type = getattr(block, "attention_type", "full_attention")

    def forward(self, hidden: Any, *args: Any, position_ids: Any = None, **more: Any) -> Any:
        found = self.block(hidden, *args, position_ids=position_ids, **more)
        late = (
            hidden.shape[1] == 1
            and position_ids is not None
            and int(position_ids.max()) >= self.window
        )
        return found * 0.0 if late else found


def test_what_goes_wrong_only_beyond_a_window_is_found_when_the_texts_are_read_again() -> None:
    model, want = loud("llama"), [by_hand(MODELS["llama"], prompt, 20) for prompt in PROMPTS]
    model.model.layers[0] = Forgetful(model.model.layers[0], window=22)
    with torch.no_grad():
        assert way_of(model, PROMPTS, 4) == WAYS[0]
    assert written(model, PROMPTS, 20) == want
    # The batch alone would not have told.
    plain = Way(True, True, True)
    assert _write(model, PROMPTS, 20, [EOS], plain, lambda _rows, _places, logits: logits) != want


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_rounding_is_no_reason_to_write_slowly(dtype: torch.dtype) -> None:
    model = loud("llama").to(dtype)
    with torch.no_grad():
        assert way_of(model, PROMPTS, 4) == WAYS[0]


def test_nor_is_a_model_of_no_numbers() -> None:
    model = loud("llama")
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)
        assert way_of(model, PROMPTS, 4) == WAYS[0]
    assert len(written(model, PROMPTS)) == len(PROMPTS)


def test_settings_stay_as_they_were_when_a_model_is_tried() -> None:
    model = loud("rwkv").train()
    own = model.generation_config
    written(model, PROMPTS)
    assert model.generation_config is own and model.training


# --- scoring ---


@kinds
@pytest.mark.parametrize("elements", [2**25, 1])
def test_a_score_is_that_of_the_text_alone(kind: str, elements: int) -> None:
    model = MODELS[kind]
    encoded = [
        Encoded((*prompt, *drawn(4, seed=row)[0]), len(prompt))
        for row, prompt in enumerate(PROMPTS)
    ]
    found = score_encoded(model, encoded, elements=elements, progress=False).logp
    with torch.no_grad():
        for one, got in zip(encoded, found.tolist(), strict=True):
            law = model(torch.tensor([one.tokens])).logits[0].double().log_softmax(-1)
            want = sum(
                float(law[place - 1, one.tokens[place]])
                for place in range(one.prompt, len(one.tokens))
            )
            assert got == pytest.approx(want, rel=1e-5, abs=1e-4)


@pytest.mark.parametrize("field", ["logit_scale", "logits_scaling", "final_logit_softcapping"])
def test_a_word_where_a_number_scales_logits_is_not_taken_for_one(field: str) -> None:
    config = transformers.LlamaConfig(**HEADS)
    setattr(config, field, "inv_sqrt_d_model")
    found = logprobs._finish(config)(torch.ones(1, VOCAB))
    assert torch.equal(found, torch.ones(1, VOCAB))


def cpm_ant() -> Any:
    """Looks at what comes later, and takes token 0 for padding wherever it stands."""
    config = transformers.CpmAntConfig(
        prompt_types=4, segment_types=4, position_bias_num_buckets=16, **CPM
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.CpmAntForCausalLM(config).eval()
        for parameter in model.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.3)
    return model


class CountsTheTokens(nn.Module):
    """A final norm that every text changes by how long its batch is: padding behind is not
    nothing.
    """

    def __init__(self, norm: nn.Module, masks: list[torch.Tensor]) -> None:
        super().__init__()
        self.norm, self.masks = norm, masks

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.norm(hidden) * (1 + self.masks[-1].sum(-1)[:, None, None])


def counting() -> Any:
    model, masks = loud("llama"), [torch.ones(1, 1)]
    model.model.norm = CountsTheTokens(model.model.norm, masks)
    model.model.register_forward_pre_hook(
        lambda _, args, more: (
            masks.append(more["attention_mask"]) if more.get("attention_mask") is not None else None
        ),
        with_kwargs=True,
    )
    return model


@pytest.mark.parametrize(("make", "what"), [(cpm_ant, "comes later"), (counting, "padding behind")])
def test_models_that_batches_would_change_are_refused_by_name(
    make: Callable[[], Any], what: str
) -> None:
    with pytest.raises(InvalidInput, match=what) as caught:
        check_model(make())
    assert (caught.value.field, caught.value.value) == ("model", type(make()).__name__)
    with pytest.raises(InvalidInput, match=what):
        score_encoded(make(), [Encoded((5, 6, 7, 8), 2)], progress=False)


@pytest.mark.parametrize("vocab", [2, 3, 7])
def test_models_of_few_words_can_be_checked(vocab: int) -> None:
    sizes: dict[str, Any] = {**HEADS, "vocab_size": vocab}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
    assert score_encoded(model, [Encoded((0, 1, 0), 1)], progress=False).length.tolist() == [2]
