"""The table of architectures: the name in config.json to the class that runs it, imported when it is needed."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from difflib import get_close_matches

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
    "LlavaForConditionalGeneration": "llava",
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


def find_class(facts: ModelFacts) -> Callable[[ModelFacts, Build], nn.Module] | None:
    """The class of a checkpoint, or None: making it gives a model with empty parameters, that has forward(batch),
    logits(hidden), kv_specs(), weight_map()."""
    for architecture in facts.architectures:
        if architecture in MODELS:
            module = importlib.import_module(f"quire.worker.models.{MODELS[architecture]}")
            return getattr(module, architecture)  # type: ignore[no-any-return]
    return None


def unknown(facts: ModelFacts) -> ConfigError:
    """What to say of an architecture that is not in the table."""
    asked = ", ".join(facts.architectures)
    near = get_close_matches(facts.architectures[0], MODELS, 1, cutoff=0.5)
    return ConfigError(
        f"{facts.config.where}: architecture {asked} is not known."
        + (f" The nearest one is {near[0]}." if near else "")
        + f" Known: {', '.join(sorted(MODELS))}. Others run where transformers has code for them, with"
        " quire[transformers] and --model-impl auto or transformers."
    )
