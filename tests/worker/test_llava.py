"""LLaVA's vision side against transformers on the same random checkpoint, float32 on the CPU."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import llava_checkpoints
import numpy as np
import pytest
import torch
from llava_checkpoints import NUM_TOKENS, picture, pixel_values
from paged import Driver, Sequence
from safetensors.torch import load_file, save_file

from quire.checkpoint import read_facts
from quire.config import MediaConfig
from quire.errors import ConfigError
from quire.pictures import PictureFacts, picture_facts
from quire.worker.pictures import pick_room

VARIANTS: dict[str, dict[str, Any]] = {
    "as 1.5": {},
    "last layer, class token": {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"},
    "embedding": {"vision_feature_layer": [0]},
    "several layers": {"vision_feature_layer": [-2, 1, 3], "multimodal_projector_bias": False},
    "other activations": {"projector_hidden_act": "gelu_pytorch_tanh", "vision": {"hidden_act": "gelu"}},
    "mistral": {"text": "mistral", "language": {"sliding_window": None}},
    "qwen2, tied": {"text": "qwen2", "language": {"tie_word_embeddings": True}},
}


def pixels(*images: Any) -> torch.Tensor:
    return torch.from_numpy(np.stack([np.asarray(image) for image in images]))


@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_vectors_and_logprobs(variant: str, tmp_path: Path) -> None:
    theirs = llava_checkpoints.write(tmp_path, **VARIANTS[variant])
    ours = Driver(tmp_path)
    images = [picture(1), picture(2)]
    vectors = ours.model.encode(pixels(*images))
    wanted = torch.stack(list(theirs.get_image_features(pixel_values(*images), return_dict=True).pooler_output))
    facts = picture_facts(read_facts(tmp_path))
    assert facts is not None and vectors.shape == wanted.shape and vectors.shape[1] == facts.num_tokens
    assert (vectors - wanted).abs().max() < 1e-4
    ids = [7, 8, *[facts.token_id] * facts.num_tokens, 9, *[facts.token_id] * facts.num_tokens, 10, 11]
    batch = ours.pages.batch([(Sequence(ids), len(ids))])
    places = torch.tensor([i for i, token in enumerate(ids) if token == facts.token_id])
    logits = ours.model.logits(ours.model(replace(batch, inserts=((places, vectors.flatten(0, 1)),))))
    expected = theirs(torch.tensor([ids]), pixel_values=pixel_values(*images)).logits[0]
    assert (torch.log_softmax(logits, -1) - torch.log_softmax(expected, -1)).abs().max() < 1e-4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")
@torch.inference_mode()
def test_vectors_on_a_gpu(tmp_path: Path) -> None:
    theirs = llava_checkpoints.write(tmp_path)
    images = [picture(1), picture(2)]
    vectors = Driver(tmp_path, device="cuda").model.encode(pixels(*images).cuda()).cpu()
    wanted = torch.stack(list(theirs.get_image_features(pixel_values(*images), return_dict=True).pooler_output))
    assert (vectors - wanted).abs().max() < 1e-3


def names_of_4_36(name: str) -> str:
    """A tensor's name as the first LLaVA checkpoints have it."""
    name = name.removeprefix("model.")
    if name.startswith("language_model."):
        return name.replace("language_model.", "language_model.model.", 1)
    return name.replace("lm_head", "language_model.lm_head")


def names_of_5(name: str) -> str:
    """As newer ones have it."""
    if name.startswith(("language_model.lm_head", "lm_head")):
        return "lm_head.weight"
    name = name.removeprefix("model.").replace("language_model.model.", "language_model.")
    return f"model.{name}"


@pytest.mark.parametrize("rename", [names_of_4_36, names_of_5])
@torch.inference_mode()
def test_both_spellings_of_names(rename: Any, tmp_path: Path) -> None:
    llava_checkpoints.write(tmp_path)
    plain = Driver(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = {rename(names_of_5(name)): tensor.clone() for name, tensor in load_file(file).items()}
    assert any(name.startswith("language_model.model.layers") for name in tensors) == (rename is names_of_4_36)
    save_file(tensors, file, metadata={"format": "pt"})
    renamed = Driver(tmp_path)
    image = pixels(picture(3))
    assert torch.equal(plain.model.encode(image), renamed.model.encode(image))
    [one], [other] = (driver.step([(Sequence([7, 8, 9]), 3)]) for driver in (plain, renamed))
    assert torch.equal(one, other)


def changed(folder: Path, name: str, **values: Any) -> None:
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**content, **values}))


def test_what_a_config_need_not_say(tmp_path: Path) -> None:
    """llava-1.5-7b names seven keys of its language model and none of what ViT-L and Llama have anyway."""
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "architectures": ["LlavaForConditionalGeneration"],
                "image_token_index": 32000,
                "model_type": "llava",
                "text_config": {"max_position_embeddings": 4096, "model_type": "llama", "vocab_size": 32064},
                "torch_dtype": "float16",
                "vision_config": {"image_size": 336, "model_type": "clip_vision_model", "patch_size": 14},
            }
        )
    )
    steps = {"crop_size": 336, "size": 336, "do_center_crop": True, "do_resize": True, "resample": 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(steps))
    facts = read_facts(tmp_path)
    assert (facts.vocab_size, facts.max_model_len, facts.dtype) == (32064, 4096, "float16")
    found = picture_facts(facts)
    assert found is not None
    assert (found.num_tokens, found.height, found.width, found.shortest_edge) == (576, 336, 336, 336)


@pytest.mark.parametrize(
    ("file", "values", "word"),
    [
        ("config.json", {"vision_config": {"model_type": "siglip_vision_model"}}, "model_type"),
        ("config.json", {"vision_feature_select_strategy": "some"}, "vision_feature_select_strategy"),
        ("config.json", {"vision_feature_layer": 9}, "vision_feature_layer"),
        ("config.json", {"image_token_index": 512, "image_token_id": None}, "vocabulary"),
        ("config.json", {"projector_hidden_act": "tan"}, "projector_hidden_act"),
        (
            "config.json",
            {"text_config": {"model_type": "gpt2", "vocab_size": 512, "max_position_embeddings": 9}},
            "gpt2",
        ),
        ("preprocessor_config.json", {"crop_size": {"height": 14, "width": 14}}, "14 x 14"),
        ("preprocessor_config.json", {"do_center_crop": False}, "any size"),
        ("preprocessor_config.json", {"image_mean": [0.5]}, "image_mean"),
        ("preprocessor_config.json", {"resample": 9}, "resample"),
    ],
)
def test_configs_that_cannot_be(file: str, values: dict[str, Any], word: str, tmp_path: Path) -> None:
    llava_checkpoints.write_configs(tmp_path)
    changed(tmp_path, file, **values)
    with pytest.raises(ConfigError, match=word):
        Driver(tmp_path, load_format="dummy")


def test_no_word_of_pictures(tmp_path: Path) -> None:
    llava_checkpoints.write_configs(tmp_path)
    content = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(ConfigError, match=r"preprocessor_config\.json"):
        Driver(tmp_path, load_format="dummy")
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": content}))
    assert picture_facts(read_facts(tmp_path)) is not None, "where newer ones have it"


def test_room_for_pictures() -> None:
    facts = PictureFacts(5, 16, 28, 28, 28, None, 3, 1 / 255, (0.0,) * 3, (1.0,) * 3)

    def room(device: str, chunked: bool = True, **settings: Any) -> tuple[int, int]:
        found = pick_room(MediaConfig(**settings), facts, torch.device(device), 256, chunked=chunked)
        return found.num_slots, found.per_step

    assert room("cpu") == (32, 1) and room("cuda") == (32, 8)
    assert room("cpu", max_pictures_per_step=40) == (40, 40), "no fewer slots than one step fills"
    assert room("cpu", picture_cache_slots=1, max_pictures_per_step=1) == (1, 1)
    few = {"picture_cache_slots": 1, "max_pictures_per_step": 1}
    assert room("cpu", False, **few) == (16, 16), "all that a prompt can have, where it runs in one step"
    assert room("cpu", False, **few, limit_mm_per_prompt={"image": 5}) == (5, 5)


@torch.inference_mode()
def test_random_weights_from_the_config_alone(tmp_path: Path) -> None:
    llava_checkpoints.write_configs(tmp_path)
    vectors = Driver(tmp_path, load_format="dummy").model.encode(pixels(picture()))
    assert vectors.shape == (1, NUM_TOKENS, 64) and vectors.isfinite().all()
