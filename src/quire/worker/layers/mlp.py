"""The parts of a decoder layer between its attentions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from quire.worker.layers.build import Build
from quire.worker.layers.linear import Linear
from quire.worker.layers.shape import Shape


class GatedMLP(nn.Module):
    """down(act(gate(x)) * up(x)) (Shazeer 2020), gate and up in one product."""

    def __init__(self, shape: Shape, build: Build, *, bias: bool = False) -> None:
        super().__init__()
        width = shape.intermediate_size
        self.gate_up_proj = Linear(shape.hidden_size, (width, width), build, bias=bias, is_gated=True)
        self.down_proj = Linear(width, (shape.hidden_size,), build, bias=bias, cut=1)
        self.activation = shape.activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [tokens, hidden] -> [tokens, hidden]
        return self.down_proj(self.gate_up_proj.gated(x, self.activation))


class PlainMLP(nn.Module):
    """down(act(up(x)))."""

    def __init__(self, shape: Shape, build: Build, *, bias: bool = False) -> None:
        super().__init__()
        self.up_proj = Linear(shape.hidden_size, (shape.intermediate_size,), build, bias=bias)
        self.down_proj = Linear(shape.intermediate_size, (shape.hidden_size,), build, bias=bias, cut=1)
        self.activation = shape.activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [tokens, hidden] -> [tokens, hidden]
        return self.down_proj(_ACTIVATIONS[self.activation](self.up_proj(x)))


_ACTIVATIONS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}
