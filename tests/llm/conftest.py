"""What tests of language models share: two tiny models, and data that they have read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from llm.data import tofu
from llm.data.authors.corpus import Authors, splits
from llm.models.language_model import LanguageModel
from llm.models.saving import save
from llm.scoring.encoding import encode_examples
from llm.scoring.templates import LLAMA2_CHAT
from llm.training.fine_tuning import fine_tune
from llm.training.loop import Optimization
from tests.llm.scoring.test_encoding import by_bytes


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, another one of the same vocabulary, and splits of a small
    corpus.
    """
    folder = tmp_path_factory.mktemp("place")
    tokenizer = by_bytes(words=True)
    data = {name: part[:6] for name, part in splits(Authors(authors=10, questions=4)).items()}
    for name in ("forget10", "retain90"):
        tofu.write(data[name], folder / f"{name}.json")
    known = {"model": (*data["forget10"], *data["retain90"]), "retrained": data["retain90"]}
    sizes: dict[str, Any] = dict(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    for number, name in enumerate(("model", "retrained")):
        torch.manual_seed(number)
        config = transformers.LlamaConfig(
            vocab_size=len(tokenizer), max_position_embeddings=512, **sizes
        )
        model = transformers.LlamaForCausalLM(config)
        # Better than guessing, or the runs would be reported as collapsed from the start.
        fine_tune(
            model,
            encode_examples(tokenizer, LLAMA2_CHAT, known[name]),
            Optimization(epochs=5, batch=4, learning_rate=1e-2, seed=number),
        )
        language = LanguageModel(model=model, tokenizer=tokenizer, template=LLAMA2_CHAT, name=name)
        save(language, folder / name, {"seed": number})
    return folder
