"""Build: what every layer of one model is made with. Frozen, passed to constructors."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from quire.worker.attention.protocol import AttentionBackend
from quire.worker.kernels.protocol import Kernels
from quire.worker.quantization.protocol import Scheme


@dataclass(frozen=True, slots=True)
class Build:
    """Args:
    dtype: number format of weights and activations.
    device: where parameters are made.
    backend: attention for every layer.
    scheme: how linear layers keep their weights.
    kernels: the operations between them.
    max_model_len: the longest request that is served; 0 is what the checkpoint names.
    """

    dtype: torch.dtype
    device: torch.device
    backend: AttentionBackend
    scheme: Scheme
    kernels: Kernels
    max_model_len: int = 0
