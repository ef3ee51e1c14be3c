"""What layers ask of a set of kernels. `plain.PlainKernels` is the reference, `fused.TritonKernels` the GPU's."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from quire.worker.kernels.weights import AnyWeights


class Kernels(Protocol):
    """Operations on activations; x is contiguous, in the model's number format. None of them waits for the device."""

    name: str
    wide_norms: bool
    """Weights of norms may be float32 whatever x is."""

    def measure_next(self) -> bool | None:
        """Use spare time to measure a choice: whether one changed; None if nothing is left."""

    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x [tokens, in] @ weight [out, in].T + bias [out]."""

    def gated_linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, kind: str) -> torch.Tensor:
        """`gated` of `linear`."""

    def keep(self, weights: AnyWeights, *, gated: bool = False, experts: int = 0) -> Any:
        """Bring quantized weights into the form that these kernels multiply by; it has dense() and tensors().

        Args:
            gated: a gate above an up projection.
            experts: so many experts' matrices lie one below the other, for `kept_experts`; 0 is none.
        """

    def product(self, x: torch.Tensor, kept: Any, bias: torch.Tensor | None) -> torch.Tensor:
        """x [tokens, in] @ weights [out, in].T + bias [out], of what `keep` made."""

    def gated_product(self, x: torch.Tensor, kept: Any, bias: torch.Tensor | None, kind: str) -> torch.Tensor:
        """`gated` of `product`."""

    def kept_experts(
        self,
        x: torch.Tensor,
        gate_up: tuple[Any, ...],
        down: tuple[Any, ...],
        chosen: torch.Tensor,
        weights: torch.Tensor,
        kind: str,
        num: int,
    ) -> torch.Tensor:
        """`experts` of what `keep` made: one matrix of all `num` experts, or each expert's gate, up and down alone."""

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """weight * x / sqrt(mean(x^2) + eps) over the last dimension."""

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(rms_norm(x + residual), x + residual); the sum may take the place of `residual`."""

    def gated(self, x: torch.Tensor, kind: str) -> torch.Tensor:
        """act(gate) * up of x [tokens, gate | up]; kind is silu, gelu, gelu_tanh or relu."""

    def embed(self, ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Lines of weight [vocab, hidden] by ids [tokens]."""

    def route(
        self, logits: torch.Tensor, k: int, rescale: bool, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The k largest of softmax(logits [tokens, num]): which [tokens, k], and how large [tokens, k].

        rescale: the k sum to one.
        """

    def experts(
        self,
        x: torch.Tensor,
        gate_up: torch.Tensor,
        down: torch.Tensor,
        chosen: torch.Tensor,
        weights: torch.Tensor,
        kind: str,
    ) -> torch.Tensor:
        """Sum over k of weights[:, k] * down[e] @ gated(gate_up[e] @ x), e = chosen[:, k].

        x [tokens, hidden], gate_up [num, 2 * width, hidden], down [num, hidden, width], chosen and weights [tokens, k].
        """

    def turns(
        self, positions: torch.Tensor, frequency: torch.Tensor, scale: float, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin [tokens, head_dim / 2] of positions [tokens] * frequency [head_dim / 2], times scale."""

    def gather(
        self,
        rows: torch.Tensor,
        query_starts: torch.Tensor,
        requests: torch.Tensor,
        computed: torch.Tensor,
        tokens: torch.Tensor,
        tables: torch.Tensor,
        block_size: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """(input_ids, positions, slots) of a step's tokens and kv_lens of its requests, from the row tables.

        rows [requests], query_starts [requests + 1], requests [tokens] of each token; computed [rows],
        tokens [rows, length], tables [rows, blocks].
        """
