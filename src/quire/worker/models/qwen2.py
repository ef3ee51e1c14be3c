"""Qwen 2 and 2.5 (Yang et al. 2024): a pre-norm decoder whose q, k and v have a bias; deep layers may have a window."""

from __future__ import annotations

from typing import Any

from quire.checkpoint import ModelFacts
from quire.worker.layers.build import Build
from quire.worker.layers.shape import Shape, layer_windows
from quire.worker.models.llama import LlamaForCausalLM


class Qwen2ForCausalLM(LlamaForCausalLM):
    """Qwen 2."""

    absent = {"num_key_value_heads": 32}

    def attention(self, facts: ModelFacts, shape: Shape, build: Build, index: int) -> dict[str, Any]:
        """See LlamaForCausalLM."""
        return {"qkv_bias": True, "window": layer_windows(facts.config, shape.num_layers)[index]}
