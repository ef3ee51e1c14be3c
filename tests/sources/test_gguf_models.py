"""Random checkpoints of transformers as GGUF files: the same config, the same tensors, the same tokens."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import checkpoints
import gguf
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf_files import write_gguf
from paged import Driver, Sequence
from safetensors.torch import load_file, save_file

from quire import LLM, SamplingParams
from quire.config import ModelConfig
from quire.errors import ConfigError, QuireError, StartupError
from quire.frontend.text_side import load_text_side
from quire.sources import model_facts, resolve, tokenizer_folder
from quire.sources.gguf.architectures import ARCHITECTURES
from quire.worker.loading.files import find_tensors

FAMILIES = [name for name in checkpoints.FAMILIES if name not in ("phi2", "falcon_rw")]
"""All but those that GGUF, or its graph of the family, does not have."""
MORE: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": None},
    "falcon40": {"bias": False},
    "qwen3_moe": {"mlp_only_layers": []},
}
"""Mistral's files have no window, Falcon's no biases, Qwen's with experts have them in every layer."""


def prompts(count: int) -> list[list[int]]:
    rng = random.Random(0)
    return [[rng.randrange(5, checkpoints.VOCAB) for _ in range(rng.randint(1, 60))] for _ in range(count)]


def logits(folder: Path, **options: Any) -> list[torch.Tensor]:
    driver = Driver(folder, **options)
    return driver.step([(Sequence(prompt), len(prompt)) for prompt in prompts(6)])


def written(family: str, tmp_path: Path, **options: Any) -> tuple[Path, Path]:
    checkpoints.write(family, tmp_path / family, **MORE.get(family, {}))
    write_gguf(tmp_path / family, tmp_path / f"{family}.gguf", **options)
    return tmp_path / family, tmp_path / f"{family}.gguf"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_logits_as_the_checkpoint(family: str, tmp_path: Path) -> None:
    folder, path = written(family, tmp_path)
    made = resolve(str(path), weights=True)
    assert sorted(file.name for file in made.iterdir()) == [
        "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    for ours, theirs in zip(logits(made), logits(folder), strict=True):
        assert (ours - theirs).abs().max() < 2e-4  # a rope's factors, rounded to 32 bits


def test_every_family_is_tried() -> None:
    from_here = {checkpoints.FAMILIES[family][1].__name__ for family in FAMILIES}
    assert {row.name for row in ARCHITECTURES.values()} <= from_here


@pytest.mark.parametrize("kind", [Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q5_1])
def test_number_formats(kind: Kind, tmp_path: Path) -> None:
    """As the checkpoint whose matrices the package has dequantized."""
    folder, path = written("llama31", tmp_path, kind=kind)
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if tensor.dim() > 1:
            rows = tensor.numpy()
            if name.endswith(("q_proj.weight", "k_proj.weight")):  # rows as the file has them; back below
                heads = 4 if "q_proj" in name else 2
                rows = rows.reshape(heads, 2, -1, 64).swapaxes(1, 2).reshape(rows.shape)
            back = gguf.quants.dequantize(gguf.quants.quantize(rows, kind), kind).astype("float32")
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                back = back.reshape(heads, -1, 2, 64).swapaxes(1, 2).reshape(rows.shape)
            tensors[name] = torch.from_numpy(back.copy())
    save_file(tensors, folder / "model.safetensors")
    for ours, theirs in zip(logits(resolve(str(path), weights=True)), logits(folder), strict=True):
        assert (ours - theirs).abs().max() < 2e-4
    wanted = {Kind.F16: "float16"}.get(kind, "bfloat16")
    assert model_facts(ModelConfig(model=str(path))).dtype == wanted


def test_parts(tmp_path: Path) -> None:
    folder = tmp_path / "llama"
    checkpoints.write("llama31", folder)
    (tmp_path / "many").mkdir()
    parts = write_gguf(folder, tmp_path / "many" / "m.gguf", split_max_tensors=7)
    assert len(parts) == 4 and parts[0].name == "m-00001-of-00004.gguf"
    for name in (str(tmp_path / "many"), str(parts[0]), str(parts[2])):
        made = resolve(name, weights=True)
        assert [place.name for place in find_tensors(made)] == [part.name for part in parts]
    for ours, theirs in zip(logits(made), logits(folder), strict=True):
        assert (ours - theirs).abs().max() < 2e-4
    parts[1].unlink()
    with pytest.raises(ConfigError, match=r"part of 4 files; missing: 00002"):
        resolve(str(parts[0]), weights=True)


def test_the_engine_says_the_same_from_text(tmp_path: Path) -> None:
    """Tokenizer, template, end tokens and weights, all from the file."""
    folder, path = written("llama31", tmp_path, kind=Kind.F16)
    texts = ["the quick brown fox", "seven wise owls watch", "<|im_start|>user\nhoot<|im_end|>"]
    greedy = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    with LLM(model=str(path), dtype="float32", max_model_len=256, cpu_kernels="torch") as llm:
        chat = llm.chat([{"role": "user", "content": "hoot"}], greedy, use_tqdm=False)
        found = [*llm.generate(texts, greedy, use_tqdm=False), *chat]
    tokenizer, template = load_text_side(ModelConfig(model=str(folder)))
    asked = template.render([{"role": "user", "content": "hoot"}], add_generation_prompt=True)
    prompts = [tokenizer.encode(text) for text in [*texts, asked]]
    assert [output.prompt_token_ids for output in found] == prompts
    tokens = Driver(folder).greedy(prompts, 24)
    assert [output.outputs[0].token_ids for output in found] == tokens
    assert found[0].outputs[0].text == tokenizer.decode(tokens[0])


def test_settings_of_a_gguf(tmp_path: Path) -> None:
    folder, path = written("qwen3", tmp_path)
    facts = model_facts(ModelConfig(model=str(path), hf_overrides={"rope_theta": 5e5, "max_position_embeddings": 64}))
    assert facts.config.number("rope_theta") == 5e5 and facts.max_model_len == 64
    assert facts.architectures == ("Qwen3ForCausalLM",) and facts.eos_token_ids == (2, 4)  # </s>, <|im_end|>
    assert facts.bos_token_id == 1 and facts.dtype == "float32"
    with pytest.raises(ConfigError, match="excludes"):
        model_facts(ModelConfig(model=str(path), load_format="safetensors"))
    path.rename(folder / "x.gguf")
    (folder / "model.safetensors").rename(tmp_path / "kept")
    assert "/gguf/" in model_facts(ModelConfig(model=str(folder))).config.where  # nothing else to take
    (tmp_path / "kept").rename(folder / "model.safetensors")
    assert model_facts(ModelConfig(model=str(folder))).config.where == str(folder / "config.json")
    assert "/gguf/" in model_facts(ModelConfig(model=str(folder), load_format="gguf")).config.where
    with pytest.raises(ConfigError, match="own code only"):
        Driver(resolve(str(folder), weights=True, load_format="gguf"), impl="transformers")


def test_the_folder_is_made_once(tmp_path: Path, own_cache: Path) -> None:
    _, path = written("qwen3", tmp_path)
    made = resolve(str(path), weights=True)
    stamp = (made / "config.json").stat().st_mtime_ns
    assert resolve(str(path), weights=False) == made and (made / "config.json").stat().st_mtime_ns == stamp
    path.write_bytes(path.read_bytes() + b"\0")
    assert resolve(str(path), weights=True) != made
    kept = tmp_path / "kept"
    assert resolve(str(path), weights=True, download_dir=str(kept)).is_relative_to(kept)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--download-dir"):
        resolve(str(path), weights=True, download_dir=str(tmp_path / "file"))


BAD: dict[str, tuple[Any, type[QuireError], str]] = {
    "architecture": (lambda w: _set(w, "general.architecture", "lama"), ConfigError, "nearest one is llama"),
    "no layers": (lambda w: _set(w, "qwen3.block_count", 0), ConfigError, "qwen3.block_count must be"),
    "half a head": (lambda w: _set(w, "qwen3.attention.head_count_kv", 3), ConfigError, "must divide"),
    "too few layers": (lambda w: _set(w, "qwen3.block_count", 1), StartupError, "no place for"),
    "too many layers": (lambda w: _set(w, "qwen3.block_count", 3), StartupError, "lack"),
    "another width": (lambda w: _set(w, "qwen3.embedding_length", 128), StartupError, "has shape"),
    "key missing": (lambda w: w.kv_data[0].pop("qwen3.context_length"), ConfigError, "context_length is missing"),
    "pre": (lambda w: _set(w, "tokenizer.ggml.pre", "mystery"), ConfigError, "'mystery'"),
    "end token": (lambda w: _set(w, "tokenizer.ggml.eos_token_id", 5000), ConfigError, "must be below"),
    "merges": (lambda w: w.kv_data[0]["tokenizer.ggml.merges"].value.append("x yz"), StartupError, "cannot be built"),
    "merge of one": (lambda w: w.kv_data[0]["tokenizer.ggml.merges"].value.append("x"), StartupError, "no merge"),
    "kinds": (lambda w: w.kv_data[0]["tokenizer.ggml.token_type"].value.pop(), ConfigError, "must have 334"),
}


def _set(writer: Any, key: str, value: Any) -> None:
    writer.kv_data[0][key].value = value


@pytest.mark.parametrize("case", BAD)
def test_metadata_that_cannot_be(case: str, tmp_path: Path) -> None:
    change, kind, words = BAD[case]
    _, path = written("qwen3", tmp_path, change=change)
    with pytest.raises(kind, match=words) as caught:
        made = resolve(str(path), weights=True)
        tokenizer_folder(ModelConfig(model=str(path)))
        Driver(made)
    message = caught.value.message
    assert "\n" not in message and (str(path) in message or "config.json" in message)


def test_no_tokenizer_in_the_file(tmp_path: Path) -> None:
    folder, path = written("qwen3", tmp_path, tokenizer=False)
    with pytest.raises(ConfigError, match="has no tokenizer; name the model's own with --tokenizer"):
        load_text_side(ModelConfig(model=str(path)))
    tokenizer, _ = load_text_side(ModelConfig(model=str(path), tokenizer=str(folder)))
    assert tokenizer.decode(tokenizer.encode("the fox")) == "the fox"


def test_what_a_config_of_a_stretched_rope_says(tmp_path: Path) -> None:
    def yarn(writer: Any) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(128)

    _, path = written("qwen3", tmp_path, change=yarn)
    config = json.loads((resolve(str(path), weights=True) / "config.json").read_text())
    assert config["rope_scaling"] == {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
