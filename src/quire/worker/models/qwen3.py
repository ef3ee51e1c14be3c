"""Qwen 3, dense (Yang et al. 2025): q and k are normalised per head; biases only where the config says so."""

from __future__ import annotations

from torch import nn

from quire.checkpoint import ModelFacts
from quire.worker.layers.blocks import CausalLM, DecoderLayer, Shape, layer_windows
from quire.worker.layers.build import Build
from quire.worker.loading.names import Fuse, Rule, Skip


class Qwen3ForCausalLM(CausalLM):
    """Qwen 3; its head_dim is its own number, not hidden_size / heads."""

    def __init__(self, facts: ModelFacts, build: Build) -> None:
        shape = Shape.read(facts.config, kv_heads=32, head_dim=128)
        windows = layer_windows(facts.config, shape.num_layers)
        bias = facts.config.flag("attention_bias", False)

        def layer(index: int) -> nn.Module:
            return DecoderLayer(shape, index, build, qkv_bias=bias, out_bias=bias, qk_norm=True, window=windows[index])

        super().__init__(shape, facts.config, build, layer)

    def weight_map(self) -> tuple[Rule, ...]:
        """Checkpoint names to ours."""
        return (
            Fuse("qkv_proj", "q_proj", "k_proj", "v_proj"),
            Fuse("gate_up_proj", "gate_proj", "up_proj"),
            Skip("rotary_emb.inv_freq"),
            *((Skip("lm_head"),) if self.tied else ()),
        )
