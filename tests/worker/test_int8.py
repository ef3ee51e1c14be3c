"""--quantization int8 on a CPU: how near it stays to the unquantized model; weights are never whole in memory."""

from __future__ import annotations

import math
import random
import sys
from pathlib import Path

import checkpoints
import pytest
import torch
import torch.nn.functional as F
from paged import Driver, Sequence
from tokenizers import Tokenizer

from quire.config import build_engine_config
from quire.demo import model_path
from quire.errors import ConfigError
from quire.worker.kernels import native
from quire.worker.layers.linear import Linear
from quire.worker.quantization.int8 import Int8Weights
from quire.worker.quantization.protocol import Scheme
from quire.worker.quantization.select import made_at_load, select_scheme

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
from demo_training.exchange import Pen
from demo_training.text import chat
from demo_training.tokenizer import whole_words

SCHEMES = {"native": lambda: Int8Weights(native.library()), "torch": lambda: Int8Weights(None)}
NAMES = [pytest.param("native", marks=pytest.mark.native), "torch"]


Text = list[tuple[int, bool]]
"""Token ids, each with whether the model was taught to say it."""


def held_out_texts(tokenizer: Tokenizer, num: int) -> list[Text]:
    """Conversations that training never showed in any wording."""
    pen = Pen.make("perplexity", whole_words(tokenizer))
    conversations = [chat(pen, 2, held_out=True) for _ in range(num)]
    return [
        [(token, learned) for text, learned in conversation.segments() for token in tokenizer.encode(text).ids]
        for conversation in conversations
    ]


def perplexity(driver: Driver, texts: list[Text]) -> float:
    """Of the tokens that the model was taught to say."""
    losses = []
    for text in texts:
        [logits] = driver.step([(Sequence([token for token, _ in text]), len(text))])
        said = torch.tensor([learned for _, learned in text[1:]])
        losses.append(F.cross_entropy(logits[:-1], torch.tensor([t for t, _ in text[1:]]), reduction="none")[said])
    return math.exp(float(torch.cat(losses).mean()))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_perplexity_of_held_out_text_stays_within_one_percent(name: str, dtype: torch.dtype) -> None:
    texts = held_out_texts(Tokenizer.from_file(str(model_path() / "tokenizer.json")), 30)
    plain = perplexity(Driver(model_path(), num_blocks=2000), texts)
    quantized = perplexity(Driver(model_path(), num_blocks=2000, dtype=dtype, scheme=SCHEMES[name]()), texts)
    assert 1 < plain < 3
    assert abs(quantized / plain - 1) < 0.01


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("family", ["llama32", "qwen2", "qwen3"])
def test_logits_stay_near(name: str, family: str, tmp_path: Path) -> None:
    """Random weights, biases, a tied head."""
    checkpoints.write(family, tmp_path)
    text = [random.Random(1).randrange(100) for _ in range(70)]
    expected = Driver(tmp_path).step([(Sequence(text), 70)])[0]
    found = Driver(tmp_path, scheme=SCHEMES[name]()).step([(Sequence(text), 70)])[0]
    assert float((found - expected).norm() / expected.norm()) < 0.05


@pytest.mark.native
def test_each_layer_is_quantized_before_the_last_is_read(tmp_path: Path) -> None:
    """At no time do two layers hold plain weights that were filled."""
    checkpoints.write("qwen3", tmp_path)
    waiting: list[int] = []

    class Watching(Int8Weights):
        def finish(self, layer: torch.nn.Module) -> None:
            super().finish(layer)
            others = [
                m for m in made if m is not layer and m.packed is None and bool(m.weight.detach().abs().sum() > 0)
            ]
            waiting.append(len(others))

        def params(self, layer: torch.nn.Module) -> None:
            super().params(layer)
            layer.weight.data.zero_()
            made.append(layer)

    made: list[torch.nn.Module] = []
    driver = Driver(tmp_path, scheme=Watching(native.library()))
    layers = [m for m in driver.model.modules() if isinstance(m, Linear)]
    assert len(waiting) >= len(layers)
    assert max(waiting) <= 3  # of one decoder layer, whose tensors come in the order of their names
    assert all(layer.weight.dtype == torch.int8 for layer in layers)


def test_it_has_a_scheme_of_its_own_on_cpus_only() -> None:
    scheme: Scheme = select_scheme("int8", torch.device("cpu"), None)
    assert isinstance(scheme, Int8Weights)
    assert made_at_load("int8", scheme) is None
    on_gpu = select_scheme("int8", torch.device("cuda"), None)
    assert not isinstance(on_gpu, Int8Weights)
    assert made_at_load("int8", on_gpu) is not None


def test_an_unknown_scheme_is_named() -> None:
    with pytest.raises(ConfigError, match="quantization"):
        build_engine_config({"quantization": "int3"})
