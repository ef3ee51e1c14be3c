"""The table of architectures: the name in config.json to the class that runs it, imported when it is needed."""

from __future__ import annotations

import importlib

from torch import nn

from quire.checkpoint import ModelFacts
from quire.errors import ConfigError
from quire.worker.layers.build import Build

MODELS = {
    "FalconForCausalLM": "falcon",
    "Gemma2ForCausalLM": "gemma",
    "Gemma3ForCausalLM": "gemma",
    "GemmaForCausalLM": "gemma",
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "MixtralForCausalLM": "mistral",
    "Phi3ForCausalLM": "phi3",
    "PhiForCausalLM": "phi",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen2MoeForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3",
}
"""Architecture, which is the name of its class, to the file it is in."""


def build_model(facts: ModelFacts, build: Build) -> nn.Module:
    """The model with empty parameters: forward(batch), logits(hidden), kv_specs(), weight_map().

    Raises:
        ConfigError: an architecture that is not in the table, or a config that cannot be.
    """
    for architecture in facts.architectures:
        if architecture in MODELS:
            module = importlib.import_module(f"quire.worker.models.{MODELS[architecture]}")
            return getattr(module, architecture)(facts, build)
    asked = ", ".join(facts.architectures)
    raise ConfigError(f"{facts.config.where}: architecture {asked} is not known. Known: {', '.join(sorted(MODELS))}.")
