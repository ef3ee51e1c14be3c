"""Small random LLaVA checkpoints, written by transformers itself, with tokenizer, template and image processor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    Qwen2Config,
)

SIDE, PATCH = 28, 7
NUM_TOKENS = (SIDE // PATCH) ** 2
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": PATCH,
    "projection_dim": 16,
    "initializer_range": 0.2,
}
LANGUAGE = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config}
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""In the shape of the one that LLaVA 1.5 comes with: it reads a message's content as parts."""


def write(
    folder: Path,
    *,
    text: str = "llama",
    vision: dict[str, Any] | None = None,
    language: dict[str, Any] | None = None,
    seed: int = 0,
    **overrides: Any,
) -> LlavaForConditionalGeneration:
    """Write a checkpoint and return transformers' model of it, in float32.

    Args:
        text: kind of the language model.
        vision, language, overrides: keys of the three configs.
    """
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(write_configs(folder, text, vision, language, **overrides)).eval()
    with torch.no_grad():  # transformers starts norms at 1, biases and the class token at 0, which would hide mistakes
        for name, param in model.named_parameters():
            if param.dim() == 1 or "multi_modal_projector" in name or "embeddings" in name:
                param.normal_(1.0 if param.dim() == 1 and not name.endswith("bias") else 0.0, 0.2)
    model.save_pretrained(folder)
    return model


def write_configs(
    folder: Path,
    text: str = "llama",
    vision: dict[str, Any] | None = None,
    language: dict[str, Any] | None = None,
    **overrides: Any,
) -> LlavaConfig:
    """All but the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints.write_tokenizer(folder)
    path = str(folder / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    tokenizer.add_special_tokens(["<image>"])
    tokenizer.save(path)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": TEMPLATE}))
    made = LlavaConfig(
        architectures=["LlavaForConditionalGeneration"],
        vision_config=CLIPVisionConfig(**{**VISION, **(vision or {})}),
        text_config=LANGUAGE[text](**{**checkpoints.SIZES, **(language or {})}),
        image_token_index=tokenizer.token_to_id("<image>"),
        **overrides,
    )
    made.save_pretrained(folder)
    processor().save_pretrained(folder)
    return made


def processor() -> CLIPImageProcessorPil:
    """transformers' own, for pictures of this size."""
    return CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})


def pixel_values(*images: Image.Image) -> torch.Tensor:
    """What transformers' model is given."""
    return processor()(list(images), return_tensors="pt")["pixel_values"]


def picture(seed: int = 0, size: tuple[int, int] = (SIDE, SIDE)) -> Image.Image:
    """Noise."""
    numbers = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(numbers)
