"""Models in transformers' own code over the paged cache, against transformers alone."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import checkpoints
import pytest
import torch
import transformers
from paged import Driver, Sequence

from quire.errors import ConfigError

SMALL = {"vocab_size": 512, "pad_token_id": 0}
GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512, "bos_token_id": 1, "eos_token_id": 2}
OPT = {"hidden_size": 64, "ffn_dim": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "word_embed_proj_dim": 64}
SCALED = {"logits_scaling": 3.0, "embedding_multiplier": 2.0, "residual_multiplier": 0.5, "attention_multiplier": 0.2}
FAMILIES: dict[str, dict[str, Any]] = {
    "GPT2": {**SMALL, **GPT2},
    "OPT": {**SMALL, **OPT, "max_position_embeddings": 512},
    "GPTNeoX": checkpoints.SIZES,
    "Olmo2": {**checkpoints.SIZES, "pad_token_id": 0},
    "Granite": {**checkpoints.SIZES, **SCALED},
    "Starcoder2": {**checkpoints.SIZES, "sliding_window": 24},
    "StableLm": checkpoints.SIZES,
    "Cohere": {**checkpoints.SIZES, "pad_token_id": 0},
    "Llama": checkpoints.SIZES,
}


def write(family: str, folder: Path) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**FAMILIES[family])
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, param in model.named_parameters():
            param.normal_(1.0 if param.dim() == 1 and not name.endswith("bias") else 0.0, 0.15)
    model.save_pretrained(folder)
    checkpoints.write_tokenizer(folder)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_in_chunks_and_beside_others(family: str, tmp_path: Path) -> None:
    reference = write(family, tmp_path)
    driver = Driver(tmp_path, impl="transformers")
    rng = random.Random(0)
    texts = [[rng.randrange(4, 500) for _ in range(n)] for n in (70, 33)]
    one, two = (Sequence(text) for text in texts)
    steps = [[(one, 40)], [(one, 10), (two, 30)], *[[(one, 1), (two, 1)]] * 3, [(one, 17)]]
    found: dict[int, list[torch.Tensor]] = {id(one): [], id(two): []}
    for work in steps:
        for (sequence, _), logits in zip(work, driver.step(work), strict=True):
            found[id(sequence)].append(logits)
    for sequence, text in ((one, texts[0]), (two, texts[1])):
        with torch.inference_mode():
            expected = reference(torch.tensor([text])).logits[0].log_softmax(-1)
        assert (torch.cat(found[id(sequence)]).log_softmax(-1) - expected).abs().max() < 1e-4


def test_what_it_refuses(tmp_path: Path) -> None:
    write("Olmo2", tmp_path)
    with pytest.raises(ConfigError, match=r"Olmo2ForCausalLM is not known.*--model-impl"):
        Driver(tmp_path, impl="quire")
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"auto_map": {"AutoModelForCausalLM": "evil.Model"}}))
    with pytest.raises(ConfigError, match="--trust-remote-code"):
        Driver(tmp_path)
    path.write_text(json.dumps(config | {"model_type": "bloom", "architectures": ["BloomForCausalLM"]}))
    with pytest.raises(ConfigError, match="BloomForCausalLM"):
        Driver(tmp_path)
    path.write_text(json.dumps(config | {"model_type": "nothing", "architectures": ["NothingForCausalLM"]}))
    with pytest.raises(ConfigError, match=r"transformers cannot run it|not known"):
        Driver(tmp_path)
