"""What a quantization scheme is, and how a parameter says how it is cut. One file per scheme beside this one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn


@dataclass(frozen=True, slots=True)
class Shard:
    """How one parameter is composed, and where several devices would cut it.

        dim 0 of qkv_proj.weight   | q_proj: parts[0] | k_proj: parts[1] | v_proj: parts[2] |

    Args:
        dim: the dimension along which the parts lie, and each part is cut.
        parts: size of each part of the checkpoint that is fused into this parameter; sizes are of this device.
    """

    dim: int
    parts: tuple[int, ...]

    def part(self, tensor: torch.Tensor, index: int | None) -> torch.Tensor:
        """The view that one part fills; None is the whole."""
        if index is None:
            return tensor
        return tensor.narrow(self.dim, sum(self.parts[:index]), self.parts[index])


class Scheme(Protocol):
    """How a linear layer keeps its weights and multiplies by them. Schemes have no state of their own."""

    def params(self, layer: nn.Module) -> None:
        """Give the layer its empty parameters, each made by `parameter`.

        The layer says what they are for: in_features, out_parts (widths of the fused outputs), has_bias, dtype (of
        the activations), device, kernels, is_gated (a gate and an up projection), and cut, the dimension of
        [out, in] along which several devices share it.
        """

    def finish(self, layer: nn.Module) -> None:
        """Called once, when the layer's parameters are filled, before others are: bring them into the form that
        `apply` wants. A layer that shares another's weight has had no `params`, only a plain tensor `weight`."""

    def apply(self, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """x [..., in] to [..., out], bias included."""

    def apply_gated(self, layer: nn.Module, x: torch.Tensor, kind: str) -> torch.Tensor:
        """act(gate) * up of the two halves of `apply`, in one kernel where there is one."""


def parameter(
    shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device, shard: Shard | None = None
) -> nn.Parameter:
    """An empty parameter for the loader to fill; `shard` says how it is composed, None is one whole part."""
    made = nn.Parameter(torch.empty(shape, dtype=dtype, device=device), requires_grad=False)
    if shard is not None:
        made.shard = shard  # type: ignore[attr-defined]
    return made


def shard_of(param: torch.Tensor) -> Shard:
    """How a parameter is composed."""
    found = getattr(param, "shard", None)
    return found if found is not None else Shard(0, (param.shape[0] if param.dim() else 1,))
