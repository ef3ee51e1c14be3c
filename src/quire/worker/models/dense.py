"""DenseCausalLM: pre-norm decoders that differ in options of their attention and in what follows it."""

from __future__ import annotations

from typing import Any

from torch import nn

from quire.checkpoint import ModelFacts
from quire.worker.layers.blocks import CausalLM, Decoder, DecoderLayer
from quire.worker.layers.build import Build
from quire.worker.layers.mlp import GatedMLP
from quire.worker.layers.rope import RotaryEmbedding
from quire.worker.layers.shape import Shape
from quire.worker.loading.names import Fuse, Rule, Skip


class DenseCausalLM(CausalLM):
    """Rotary positions, RMSNorm, grouped-query attention, a gated MLP. A family overrides what it does otherwise."""

    absent: dict[str, Any] = {}
    """Values of the family where a config names none."""

    def __init__(self, facts: ModelFacts, build: Build) -> None:
        shape = Shape.read(facts.config, absent=self.absent)

        def layer(index: int) -> nn.Module:
            where = (facts, shape, build, index)
            return DecoderLayer(shape, index, build, mlp=self.mlp(*where), **self.attention(*where))

        rope = RotaryEmbedding(shape.head_dim, facts.config, build)
        super().__init__(shape, build, Decoder(shape, build, layer, (rope,)))

    def attention(self, facts: ModelFacts, shape: Shape, build: Build, index: int) -> dict[str, Any]:
        """What layer `index` chooses among the options of `SelfAttention`."""
        return {}

    def mlp(self, facts: ModelFacts, shape: Shape, build: Build, index: int) -> nn.Module:
        """What follows the attention of layer `index`."""
        return GatedMLP(shape, build)

    def weight_map(self) -> tuple[Rule, ...]:
        """Checkpoint names to ours."""
        return (
            Fuse("qkv_proj", "q_proj", "k_proj", "v_proj"),
            Fuse("gate_up_proj", "gate_proj", "up_proj"),
            Skip("rotary_emb.inv_freq"),
            *((Skip("lm_head"),) if self.tied else ()),
        )
