"""Gemma (Gemma Team 2024), Gemma 2 (2024) and the text part of Gemma 3 (2025).

Embeddings are scaled by sqrt(hidden_size), norms hold weight - 1, the MLP is GELU-gated, the head is the embedding.
Gemma 2 adds norms after attention and MLP, soft caps, and a window on every other layer; Gemma 3 norms q and k instead
of capping, and turns windowed layers by a base of their own.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from quire.checkpoint import Fields, ModelFacts
from quire.worker.layers.blocks import CausalLM, Decoder, DecoderLayer, SandwichLayer
from quire.worker.layers.build import Build
from quire.worker.layers.norm import RMSNorm
from quire.worker.layers.rope import RotaryEmbedding
from quire.worker.layers.shape import Shape
from quire.worker.loading.names import Fuse, Rule, Skip

LOCAL, GLOBAL = "sliding_attention", "full_attention"
ABSENT = {"head_dim": 256, "tie_word_embeddings": True, "hidden_act": "gelu_pytorch_tanh"}
LOCAL_THETA, GLOBAL_THETA = 10_000.0, 1_000_000.0


class _Gemma(CausalLM):
    """What all three share."""

    def weight_map(self) -> tuple[Rule, ...]:
        """Checkpoint names to ours."""
        return (
            Fuse("qkv_proj", "q_proj", "k_proj", "v_proj"),
            Fuse("gate_up_proj", "gate_proj", "up_proj"),
            Skip("rotary_emb.inv_freq"),
            *((Skip("lm_head"),) if self.tied else ()),
        )


class GemmaForCausalLM(_Gemma):
    """Gemma. Its first configs say gelu and mean the approximation by tanh."""

    def __init__(self, facts: ModelFacts, build: Build) -> None:
        config = facts.config
        if config.text("hidden_act", "gelu") == "gelu":
            named = config.text("hidden_activation", "gelu_pytorch_tanh")
            config = Fields({**config.values, "hidden_act": named}, config.where)
        shape = Shape.read(config, absent=ABSENT)
        norm = _norms(shape, build)
        bias = config.flag("attention_bias", False)

        def layer(index: int) -> nn.Module:
            return DecoderLayer(shape, index, build, norm=norm, qkv_bias=bias, out_bias=bias)

        rope = RotaryEmbedding(shape.head_dim, config, build)
        decoder = Decoder(shape, build, layer, (rope,), norm=norm, embedding_scale=shape.hidden_size**0.5)
        super().__init__(shape, build, decoder)


class Gemma2ForCausalLM(_Gemma):
    """Gemma 2: every other layer, the first among them, has the window."""

    every = 2
    """Each so manieth layer sees everything, where the config does not name its layers."""
    caps = (50.0, 30.0)
    """Soft caps of scores and logits where the config names none."""

    def __init__(self, facts: ModelFacts, build: Build) -> None:
        config = facts.config
        shape = Shape.read(config, names={"hidden_act": "hidden_activation"}, absent=ABSENT)
        kinds = self._kinds(config, shape.num_layers)
        norm = _norms(shape, build)
        bias = config.flag("attention_bias", False)
        window = config.integer("sliding_window", 4096)
        cap = _cap(config, "attn_logit_softcapping", self.caps[0])
        scale = config.number("query_pre_attn_scalar", 256.0, low=1e-6) ** -0.5
        head_norm = self.head_norm(shape, build)

        def layer(index: int) -> nn.Module:
            return SandwichLayer(
                shape, index, build, norm=norm, qkv_bias=bias, out_bias=bias, scale=scale, soft_cap=cap,
                window=window if kinds[index] == LOCAL else None, head_norm=head_norm,
            )  # fmt: skip

        ropes, rope_of = self.ropes(config, shape, build, kinds)
        scaled = shape.hidden_size**0.5
        decoder = Decoder(shape, build, layer, ropes, rope_of=rope_of, norm=norm, embedding_scale=scaled)
        super().__init__(shape, build, decoder, logits_cap=_cap(config, "final_logit_softcapping", self.caps[1]))

    def head_norm(self, shape: Shape, build: Build) -> Callable[[], RMSNorm] | None:
        """What normalises heads."""
        return None

    def ropes(
        self, config: Fields, shape: Shape, build: Build, kinds: tuple[str, ...]
    ) -> tuple[tuple[RotaryEmbedding, ...], tuple[int, ...]]:
        """Rotary embeddings, and which one each layer takes."""
        return (RotaryEmbedding(shape.head_dim, config, build),), (0,) * shape.num_layers

    def _kinds(self, config: Fields, num_layers: int) -> tuple[str, ...]:
        kinds = config.texts("layer_types")
        if not kinds:
            every = config.integer("sliding_window_pattern", self.every)
            return tuple(LOCAL if (index + 1) % every else GLOBAL for index in range(num_layers))
        if len(kinds) != num_layers or not set(kinds) <= {LOCAL, GLOBAL}:
            config.fail("layer_types", f"must name {num_layers} layers, each {LOCAL} or {GLOBAL}", list(kinds))
        return kinds


class Gemma3ForCausalLM(Gemma2ForCausalLM):
    """The text part of Gemma 3: five windowed layers to one that sees everything."""

    every = 6
    caps = (0.0, 0.0)

    def head_norm(self, shape: Shape, build: Build) -> Callable[[], RMSNorm]:
        """See Gemma2ForCausalLM."""
        return lambda: RMSNorm(shape.head_dim, shape.norm_eps, build, from_one=True)

    def ropes(
        self, config: Fields, shape: Shape, build: Build, kinds: tuple[str, ...]
    ) -> tuple[tuple[RotaryEmbedding, ...], tuple[int, ...]]:
        """Windowed layers have their own base, and are not stretched."""
        base = config.number("rope_local_base_freq", LOCAL_THETA, low=1.0)
        plain = {"rope_type": "default", "rope_theta": base}
        named = (config.section("rope_parameters") or Fields({}, config.where)).section(LOCAL)
        local = {"rope_parameters": dict(named.values) if named else plain, "rope_scaling": None, "rope_theta": None}
        ropes = (
            RotaryEmbedding(shape.head_dim, config, build, theta=GLOBAL_THETA, layer_type=GLOBAL),
            RotaryEmbedding(shape.head_dim, Fields({**config.values, **local}, config.where), build, theta=base),
        )
        return ropes, tuple(int(kind == LOCAL) for kind in kinds)


def _norms(shape: Shape, build: Build) -> Callable[[], RMSNorm]:
    return lambda: RMSNorm(shape.hidden_size, shape.norm_eps, build, from_one=True)


def _cap(config: Fields, key: str, absent: float) -> float | None:
    """null is none."""
    return (config.number(key, None, low=1e-6) if config.has(key) else absent) or None
