"""The vision tower of CLIP (Radford et al. 2021): a ViT with a class token, learned positions and pre-norm layers.

    pixels [n, height, width, 3] ── patches, class token, positions, norm ──► layer 0 ──► layer 1 ──► ...
                                                                         hidden 0     hidden 1    hidden 2

Only the layers up to the last hidden state that is asked for are made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from quire.checkpoint import Fields
from quire.pictures import PictureFacts
from quire.worker.layers.build import Build
from quire.worker.layers.linear import Linear
from quire.worker.layers.norm import LayerNorm
from quire.worker.quantization.none import Unquantized
from quire.worker.quantization.protocol import parameter

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}
"""By the names of configs."""


def activation(config: Fields, key: str, absent: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function that a config names.

    Raises:
        ConfigError: it is not known.
    """
    name = config.text(key, absent)
    if name not in ACTIVATIONS:
        config.fail(key, f"must be one of {', '.join(ACTIVATIONS)}", name)
    return ACTIVATIONS[name]


def unquantized(build: Build) -> Build:
    """For parts that keep the checkpoint's format whatever becomes of the language model."""
    return replace(build, scheme=Unquantized())


class ClipVision(nn.Module):
    """The tower.

    Args:
        config: of the tower, with a value for every key.
        facts: how its input is scaled.
        wanted: hidden states to return, each in 0 .. number of layers.
    """

    def __init__(self, config: Fields, facts: PictureFacts, wanted: Sequence[int], build: Build) -> None:
        super().__init__()
        build = unquantized(build)
        self.hidden_size = config.integer("hidden_size")
        self.wanted = tuple(wanted)
        num_heads = config.integer("num_attention_heads", high=1 << 12)
        if self.hidden_size % num_heads:
            config.fail("num_attention_heads", f"must divide hidden_size ({self.hidden_size})", num_heads)
        eps = config.number("layer_norm_eps", high=1.0)
        patch = config.integer("patch_size", high=1 << 12)
        self.embeddings = _Embeddings(self.hidden_size, patch, facts.height // patch, build)
        self.pre_layrnorm = LayerNorm(self.hidden_size, eps, build)  # as checkpoints spell it
        width = config.integer("intermediate_size")
        act = activation(config, "hidden_act", "quick_gelu")
        self.layers = nn.ModuleList(
            _Layer(self.hidden_size, num_heads, width, act, eps, build) for _ in range(max(self.wanted))
        )
        self._dtype = build.dtype
        scale = torch.tensor([facts.factor / std for std in facts.std], dtype=torch.float32, device=build.device)
        shift = torch.tensor(
            [mean / std for mean, std in zip(facts.mean, facts.std, strict=True)],
            dtype=torch.float32,
            device=build.device,
        )
        self._scale, self._shift = scale, shift  # attributes, not buffers: no checkpoint has them

    def scaled(self, pixels: torch.Tensor) -> torch.Tensor:
        """Bytes [n, height, width, 3] to (x * factor - mean) / std [n, 3, height, width], in float32."""
        return (pixels.float() * self._scale - self._shift).permute(0, 3, 1, 2)

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Bytes [n, height, width, 3] to the hidden states that are wanted, each [n, 1 + patches, hidden]."""
        hidden = self.pre_layrnorm(self.embeddings(self.scaled(pixels).to(self._dtype)))
        found = {0: hidden}
        for index, layer in enumerate(self.layers, 1):
            hidden = layer(hidden)
            if index in self.wanted:
                found[index] = hidden
        return [found[index] for index in self.wanted]


class _Embeddings(nn.Module):
    """The class token and one token per patch, each with its position."""

    def __init__(self, hidden_size: int, patch: int, side: int, build: Build) -> None:
        super().__init__()
        how = {"dtype": build.dtype, "device": build.device}
        self.class_embedding = parameter((hidden_size,), **how)
        self.patch_embedding = _Weight((hidden_size, 3, patch, patch), build)
        self.position_embedding = _Weight((side * side + 1, hidden_size), build)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [n, 3, height, width] -> [n, 1 + patches, hidden]
        weight = self.patch_embedding.weight
        patches = F.conv2d(x, weight, stride=weight.shape[-1]).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(x), 1, -1)
        return torch.cat([first, patches], dim=1) + self.position_embedding.weight


class _Weight(nn.Module):
    def __init__(self, shape: tuple[int, ...], build: Build) -> None:
        super().__init__()
        self.weight = parameter(shape, dtype=build.dtype, device=build.device)


class _Layer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        width: int,
        act: Callable[[torch.Tensor], torch.Tensor],
        eps: float,
        build: Build,
    ) -> None:
        super().__init__()
        self.layer_norm1 = LayerNorm(hidden_size, eps, build)
        self.self_attn = _Attention(hidden_size, num_heads, build)
        self.layer_norm2 = LayerNorm(hidden_size, eps, build)
        self.mlp = _MLP(hidden_size, width, act, build)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [n, tokens, hidden]
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class _Attention(nn.Module):
    """Every token of a picture sees every other."""

    def __init__(self, hidden_size: int, num_heads: int, build: Build) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv_proj = Linear(hidden_size, (hidden_size,) * 3, build, bias=True)
        self.out_proj = Linear(hidden_size, (hidden_size,), build, bias=True, cut=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [n, tokens, hidden]
        n, tokens, hidden = x.shape
        qkv = self.qkv_proj(x.reshape(n * tokens, hidden)).view(n, tokens, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [n, heads, tokens, head_dim]
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.out_proj(out.reshape(n * tokens, hidden)).view(n, tokens, hidden)


class _MLP(nn.Module):
    def __init__(self, hidden_size: int, width: int, act: Callable[[torch.Tensor], torch.Tensor], build: Build) -> None:
        super().__init__()
        self.fc1 = Linear(hidden_size, (width,), build, bias=True)
        self.fc2 = Linear(width, (hidden_size,), build, bias=True, cut=1)
        self.act = act

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [n, tokens, hidden]
        return self.fc2(self.act(self.fc1(x)))
