"""LLaVA 1.5 (Liu et al. 2023): a CLIP tower's features through two layers stand where the prompt has a picture.

    picture ── tower ── features of some layers, side by side ── linear, act, linear ──► [tokens, hidden] for the slots
    prompt  ── language model's embedding, where no picture is; else what the slots have ──► layers, head

The language model is any of LANGUAGE, as it is; this class is what the runner calls in its place.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from quire.checkpoint import Fields, ModelFacts, language_part
from quire.errors import ConfigError
from quire.pictures import PictureFacts, feature_layers, keeps_class_token, picture_facts, vision_part
from quire.worker.attention.protocol import KVSpec
from quire.worker.batch import Batch
from quire.worker.layers.build import Build
from quire.worker.layers.linear import Linear
from quire.worker.loading.names import Rename, Rule, Skip
from quire.worker.models.clip import ClipVision, activation, unquantized
from quire.worker.models.registry import find_class

LANGUAGE = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM"}
"""The text_config's model_type to its architecture."""


class LlavaForConditionalGeneration(nn.Module):
    """A language model that is given pictures.

    Attributes:
        pictures: what it takes.
        picture_width: of the vectors that stand for a picture.
    """

    launched_only = False

    def __init__(self, facts: ModelFacts, build: Build) -> None:
        super().__init__()
        config, text = facts.config, language_part(facts.config)
        pictures = picture_facts(facts)
        if pictures is None:
            raise ConfigError(f"{config.where}: says nothing of pictures.")
        self.pictures: PictureFacts = pictures
        vision = vision_part(config, "clip_vision_model")
        self._num_vision_layers = vision.integer("num_hidden_layers", high=1000)
        wanted = feature_layers(config, self._num_vision_layers)
        self._first = 0 if keeps_class_token(config) else 1
        self.vision_tower = ClipVision(vision, pictures, wanted, build)
        self.language_model = _language_model(replace(facts, config=text), build)
        width = text.integer("hidden_size")
        self.picture_width = width
        self.multi_modal_projector = _Projector(config, self.vision_tower.hidden_size * len(wanted), width, build)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Bytes [n, height, width, 3] to [n, pictures.num_tokens, picture_width]."""
        features = [hidden[:, self._first :] for hidden in self.vision_tower(pixels)]
        return self.multi_modal_projector(torch.cat(features, dim=-1))

    def forward(self, batch: Batch) -> torch.Tensor:
        """Hidden states after the last norm: [tokens, hidden]."""
        return self.language_model(batch)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[n, hidden] -> [n, vocab]."""
        return self.language_model.logits(hidden)

    @property
    def routes(self) -> bool:
        """As of the language model."""
        return self.language_model.routes

    def kv_specs(self) -> tuple[KVSpec, ...]:
        """As of the language model."""
        return self.language_model.kv_specs()

    def weight_map(self) -> tuple[Rule, ...]:
        """Checkpoint names to ours, in both spellings: language_model.model.layers and model.language_model.layers."""
        made = len(self.vision_tower.layers)
        return (
            Rename("model.language_model", "language_model.model"),
            Rename("model.vision_tower", "vision_tower"),
            Rename("model.multi_modal_projector", "multi_modal_projector"),
            Rename("vision_tower.vision_model", "vision_tower"),
            Rename("vision_tower.encoder", "vision_tower"),
            *(Skip(f"vision_tower.layers.{index}") for index in range(made, self._num_vision_layers)),
            Skip("vision_tower.post_layernorm"),
            Skip("vision_tower.embeddings.position_ids"),
            Rename("language_model.lm_head", "lm_head"),
            Rename("lm_head", "language_model.lm_head"),
            *self.language_model.weight_map(),
        )


class _Projector(nn.Module):
    """Features to vectors of the language model's width."""

    def __init__(self, config: Fields, in_features: int, width: int, build: Build) -> None:
        super().__init__()
        build = unquantized(build)
        bias = config.flag("multimodal_projector_bias", True)
        self.linear_1 = Linear(in_features, (width,), build, bias=bias)
        self.linear_2 = Linear(width, (width,), build, bias=bias)
        self.act = activation(config, "projector_hidden_act", "gelu")

    def forward(self, features: torch.Tensor) -> torch.Tensor:  # [n, tokens, in] -> [n, tokens, width]
        return self.linear_2(self.act(self.linear_1(features)))


def _language_model(facts: ModelFacts, build: Build) -> nn.Module:
    kind = facts.config.text("model_type", "llama")
    if kind not in LANGUAGE:
        facts.config.fail("model_type", f"must be one of {', '.join(LANGUAGE)}", kind)
    made = find_class(replace(facts, architectures=(LANGUAGE[kind],)))
    assert made is not None
    return made(facts, build)
