"""The table of architectures: the name in config.json to the class that runs it, imported when it is needed."""

from __future__ import annotations

import importlib

from torch import nn

from quire.checkpoint import ModelFacts
from quire.errors import ConfigError
from quire.worker.layers.build import Build

MODELS = {
    "FalconForCausalLM": "falcon:FalconForCausalLM",
    "Gemma2ForCausalLM": "gemma:Gemma2ForCausalLM",
    "Gemma3ForCausalLM": "gemma:Gemma3ForCausalLM",
    "GemmaForCausalLM": "gemma:GemmaForCausalLM",
    "LlamaForCausalLM": "llama:LlamaForCausalLM",
    "MixtralForCausalLM": "moe:MixtralForCausalLM",
    "MistralForCausalLM": "llama:MistralForCausalLM",
    "Phi3ForCausalLM": "phi3:Phi3ForCausalLM",
    "PhiForCausalLM": "phi:PhiForCausalLM",
    "Qwen2MoeForCausalLM": "moe:Qwen2MoeForCausalLM",
    "Qwen3MoeForCausalLM": "moe:Qwen3MoeForCausalLM",
    "Qwen2ForCausalLM": "qwen2:Qwen2ForCausalLM",
    "Qwen3ForCausalLM": "qwen3:Qwen3ForCausalLM",
}


def build_model(facts: ModelFacts, build: Build) -> nn.Module:
    """The model with empty parameters: forward(batch), logits(hidden), kv_specs(), weight_map().

    Raises:
        ConfigError: an architecture that is not in the table, or a config that cannot be.
    """
    for architecture in facts.architectures:
        if architecture in MODELS:
            module, name = MODELS[architecture].split(":")
            return getattr(importlib.import_module(f"quire.worker.models.{module}"), name)(facts, build)
    asked = ", ".join(facts.architectures)
    raise ConfigError(f"{facts.config.where}: architecture {asked} is not known. Known: {', '.join(sorted(MODELS))}.")
