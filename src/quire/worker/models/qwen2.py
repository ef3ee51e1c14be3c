"""Qwen 2 and 2.5 (Yang et al. 2024): a pre-norm decoder whose q, k and v have a bias; deep layers may have a window."""

from __future__ import annotations

from torch import nn

from quire.checkpoint import ModelFacts
from quire.worker.layers.blocks import CausalLM, DecoderLayer, Shape, layer_windows
from quire.worker.layers.build import Build
from quire.worker.loading.names import Fuse, Rule, Skip


class Qwen2ForCausalLM(CausalLM):
    """Qwen 2."""

    def __init__(self, facts: ModelFacts, build: Build) -> None:
        shape = Shape.read(facts.config, kv_heads=32)
        windows = layer_windows(facts.config, shape.num_layers)

        def layer(index: int) -> nn.Module:
            return DecoderLayer(shape, index, build, qkv_bias=True, window=windows[index])

        super().__init__(shape, facts.config, build, layer)

    def weight_map(self) -> tuple[Rule, ...]:
        """Checkpoint names to ours."""
        return (
            Fuse("qkv_proj", "q_proj", "k_proj", "v_proj"),
            Fuse("gate_up_proj", "gate_proj", "up_proj"),
            Skip("rotary_emb.inv_freq"),
            *((Skip("lm_head"),) if self.tied else ()),
        )
