"""Every family against transformers on the same random checkpoint, float32 on the CPU."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import checkpoints
import llava_checkpoints
import pytest
import torch
from paged import Driver, Sequence
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from quire.checkpoint import read_facts
from quire.config import ModelConfig
from quire.errors import ConfigError, StartupError
from quire.pictures import READERS
from quire.worker.attention.cpu_backend import CPUAttention
from quire.worker.attention.torch_backend import TorchAttention
from quire.worker.kernels.plain import PlainKernels
from quire.worker.layers.build import Build
from quire.worker.models.load import load_model
from quire.worker.models.registry import MODELS
from quire.worker.quantization.none import Unquantized

YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 64}
LINEAR = {"rope_type": "linear", "rope_theta": 5_000.0, "factor": 2.0}
WINDOWED = {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{family: (family, {}) for family in checkpoints.FAMILIES},
    "llama-biases": ("llama2", {"attention_bias": True, "mlp_bias": True}),
    "llama-linear-rope": ("llama2", {"rope_parameters": LINEAR}),
    "llama-yarn-rope": ("llama2", {"rope_parameters": YARN}),
    "llama-head-dim": ("llama2", {"head_dim": 24}),
    "mistral-no-window": ("mistral", {"sliding_window": None}),
    "qwen2-windowed": ("qwen2", WINDOWED),
    "qwen2-window-unused": ("qwen2", {**WINDOWED, "use_sliding_window": False}),
    "qwen3-biases": ("qwen3", {"attention_bias": True, "tie_word_embeddings": True}),
    "qwen3-layer-types": (
        "qwen3",
        {**WINDOWED, "layer_types": ["sliding_attention", "full_attention"]},
    ),
}


def prompts(lengths: list[int], seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(4, checkpoints.VOCAB) for _ in range(length)] for length in lengths]


@torch.inference_mode()
def reference(model: torch.nn.Module, tokens: list[int]) -> torch.Tensor:
    return torch.log_softmax(model(torch.tensor([tokens])).logits[0].float(), -1)


def assert_close(logits: torch.Tensor, expected: torch.Tensor) -> None:
    assert (torch.log_softmax(logits, -1) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("backend", [CPUAttention, TorchAttention])
@pytest.mark.parametrize("variant", VARIANTS)
def test_logprobs_whole_chunked_and_mixed(variant: str, backend: type, tmp_path: Path) -> None:
    family, overrides = VARIANTS[variant]
    theirs = checkpoints.write(family, tmp_path, **overrides)
    ours = Driver(tmp_path, backend=backend())
    texts = prompts([150, 90, 40, 33, 1, 17])
    expected = [reference(theirs, text) for text in texts]

    [whole] = ours.step([(Sequence(texts[0]), 150)])
    assert_close(whole, expected[0])

    rng = random.Random(1)
    sequences = [Sequence(text) for text in texts]
    seen: list[list[torch.Tensor]] = [[] for _ in texts]
    while any(s.computed < len(s.tokens) for s in sequences):  # chunks of any length beside single tokens
        chosen = [i for i, s in enumerate(sequences) if s.computed < len(s.tokens) and rng.random() < 0.8]
        work = [
            (sequences[i], min(len(texts[i]) - sequences[i].computed, rng.choice([1, 1, 1, 5, 16, 31]))) for i in chosen
        ]
        for i, logits in zip(chosen, ours.step(work) if work else [], strict=True):
            seen[i].append(logits)
    for logits, wanted in zip(seen, expected, strict=True):
        assert_close(torch.cat(logits), wanted)


@pytest.mark.parametrize("family", checkpoints.FAMILIES)
def test_greedy_64_steps(family: str, tmp_path: Path) -> None:
    theirs = checkpoints.write(family, tmp_path, seed=1)
    texts = prompts([1, 7, 30, 64, 90], seed=2)
    for text, tokens in zip(texts, Driver(tmp_path).greedy(texts, 64), strict=True):
        assert reference(theirs, text + tokens)[len(text) - 1 : -1].argmax(-1).tolist() == tokens


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")
@pytest.mark.parametrize("family", checkpoints.FAMILIES)
def test_logprobs_on_a_gpu(family: str, tmp_path: Path) -> None:
    theirs = checkpoints.write(family, tmp_path)
    ours = Driver(tmp_path, device="cuda")
    texts = prompts([150, 33])
    sequences = [Sequence(text) for text in texts]
    seen: list[list[torch.Tensor]] = [[], []]
    for work in ([100, 20], [49, 1], [1, 1], [0, 11]):
        step = [(s, n) for s, n in zip(sequences, work, strict=True) if n]
        for (s, _), logits in zip(step, ours.step(step), strict=True):
            seen[sequences.index(s)].append(logits.cpu())
    for logits, text in zip(seen, texts, strict=True):
        assert_close(torch.cat(logits), reference(theirs, text))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near(dtype: torch.dtype, tmp_path: Path) -> None:
    theirs = checkpoints.write("llama31", tmp_path, initializer_range=0.05)
    [text] = prompts([80])
    sequence, ours = Sequence(text), Driver(tmp_path, dtype=dtype)
    logits = [ours.step([(sequence, 70)])[0], *(ours.step([(sequence, 1)])[0] for _ in range(10))]
    assert (torch.log_softmax(torch.cat(logits), -1) - reference(theirs, text)).abs().max() < 0.1


def test_a_sharded_checkpoint_is_the_same(tmp_path: Path) -> None:
    checkpoints.write("qwen2", tmp_path / "one")
    checkpoints.write("qwen2", tmp_path / "many", max_shard_size="100KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    [text] = prompts([20])
    one, many = (Driver(tmp_path / name).step([(Sequence(text), 20)])[0] for name in ("one", "many"))
    assert torch.equal(one, many)


def test_rope_keys_of_older_files(tmp_path: Path) -> None:
    checkpoints.write("llama31", tmp_path)
    [text] = prompts([100])
    new = Driver(tmp_path).step([(Sequence(text), 100)])[0]
    config = json.loads((tmp_path / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    rope["type"] = rope.pop("rope_type")
    config["rope_scaling"] = rope
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert torch.equal(new, Driver(tmp_path).step([(Sequence(text), 100)])[0])


def test_tied_embeddings_share_storage(tmp_path: Path) -> None:
    """Unless the scheme packs the matrix; what is multiplied by is the embedding either way."""
    checkpoints.write("llama32", tmp_path)
    model = Driver(tmp_path, dtype=torch.float64).model
    assert [name for name, _ in model.named_parameters() if "lm_head" in name] == []
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    packed = Driver(tmp_path).model
    hidden = torch.randn(2, 64)
    for each in (model, packed):
        expected = hidden.double() @ each.model.embed_tokens.weight.double().T
        assert torch.allclose(each.logits(hidden.to(each.lm_head.dtype)).double(), expected, atol=1e-5)


def test_kv_specs_name_every_layer(tmp_path: Path) -> None:
    checkpoints.write("qwen3", tmp_path)
    specs = Driver(tmp_path).model.kv_specs()
    assert len(specs) == 2
    assert {(s.num_kv_heads, s.head_dim, s.dtype, s.bytes_per_token) for s in specs} == {(2, 32, torch.float32, 512)}


def test_dummy_weights_need_no_files_and_stay_finite(tmp_path: Path) -> None:
    checkpoints.write("qwen3", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    [text] = prompts([50])
    first, again = (Driver(tmp_path, load_format="dummy").step([(Sequence(text), 50)])[0] for _ in range(2))
    assert torch.isfinite(first).all()
    assert first.std() > 1e-3
    assert torch.equal(first, again)


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config.update(changes)
    (folder / "config.json").write_text(json.dumps(config))


BAD_CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"architectures": ["GPT9ForCausalLM"]}, "GPT9ForCausalLM is not known.*LlamaForCausalLM"),
    ({"architectures": None}, "architectures is missing"),
    ({"architectures": "LlamaForCausalLM"}, "architectures must be a list of strings"),
    ({"vocab_size": -1}, "vocab_size"),
    ({"vocab_size": 10**30}, "vocab_size"),
    ({"hidden_size": 0}, "hidden_size"),
    ({"hidden_size": "64"}, "hidden_size"),
    ({"hidden_size": 64.5}, "hidden_size"),
    ({"hidden_size": None}, "hidden_size is missing"),
    ({"num_hidden_layers": True}, "num_hidden_layers"),
    ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
    ({"num_attention_heads": 0}, "num_attention_heads"),
    (
        {"num_attention_heads": 5, "num_key_value_heads": 1, "head_dim": None},
        "num_attention_heads must divide hidden_size",
    ),
    ({"num_key_value_heads": 3}, "num_key_value_heads must divide num_attention_heads"),
    ({"num_key_value_heads": [2]}, "num_key_value_heads"),
    ({"head_dim": 7}, "head_dim must be even"),
    ({"intermediate_size": -96}, "intermediate_size"),
    ({"max_position_embeddings": 0}, "max_position_embeddings"),
    ({"rms_norm_eps": "tiny"}, "rms_norm_eps"),
    ({"hidden_act": "mystery"}, "hidden_act must be one of"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false"),
    ({"eos_token_id": [2, "x"]}, "eos_token_id"),
    ({"rope_parameters": [1]}, "rope_parameters must be an object"),
    (
        {"rope_parameters": {"rope_type": "spiral"}},
        "rope_type must be one of default, dynamic, linear",
    ),
    ({"rope_parameters": {"rope_type": "linear"}}, "factor is missing"),
    ({"rope_parameters": {"rope_type": "linear", "factor": -2}}, "factor must be a number"),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 0}}, "rope_theta"),
    (
        {"rope_parameters": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 1}},
        "high_freq",
    ),
    ({"quantization_config": {"quant_method": "gptq"}}, "bits is missing"),
    ({"quantization_config": {"quant_method": "exl2"}}, "quant_method must be one of awq, bitsandbytes"),
    ({"sliding_window": -5}, "sliding_window"),
    ({"layer_types": "full"}, "layer_types"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_CONFIGS)
def test_a_config_that_cannot_be_is_one_clear_line(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    checkpoints.write("llama31", tmp_path)
    change_config(tmp_path, **changes)
    with pytest.raises(ConfigError, match=message) as caught:
        Driver(tmp_path)
    assert "\n" not in caught.value.message
    assert "config.json" in caught.value.message


def test_every_row_of_the_registry_can_be_built(tmp_path: Path) -> None:
    text, seeing = tmp_path / "text", tmp_path / "seeing"
    checkpoints.write("llama31", text)
    llava_checkpoints.write_configs(seeing)
    for architecture in MODELS:
        folder = seeing if architecture in READERS else text
        change_config(folder, architectures=[architecture], auto_map={"AutoModel": "evil--code.Model"})
        build = Build(torch.float32, torch.device("cpu"), TorchAttention(), Unquantized(), PlainKernels())
        assert load_model(folder, read_facts(folder), build, ModelConfig(model="", load_format="dummy")).kv_specs()


def test_long_rope_takes_its_long_factors_where_long_requests_are_served(tmp_path: Path) -> None:
    """transformers does for texts beyond the original length; so do we, and for all texts then."""
    rope = {**checkpoints.LONG_ROPE, "original_max_position_embeddings": 64}
    checkpoints.write("phi4", tmp_path, rope_parameters=rope, original_max_position_embeddings=64)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    tokens = list(range(4, 94))
    logits = Driver(tmp_path).step([(Sequence(tokens), len(tokens))])[0]
    with torch.inference_mode():
        expected = reference(torch.tensor([tokens])).logits[0].log_softmax(-1)
    assert_close(logits, expected)


def test_an_expert_too_many_is_named(tmp_path: Path) -> None:
    checkpoints.write("mixtral", tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if "experts.3." in name)
    save_file({**tensors, name.replace("experts.3.", "experts.4."): tensors[name].clone()}, path)
    with pytest.raises(StartupError, match=r"no place for.*experts\.4"):
        Driver(tmp_path)
    save_file({other: tensor for other, tensor in tensors.items() if other != name}, path)
    with pytest.raises(StartupError, match=r"lack.*experts"):
        Driver(tmp_path)
