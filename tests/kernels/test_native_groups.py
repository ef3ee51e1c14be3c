"""Weights of 4 and 8 bits in groups in C++: against the matrix that they mean and rounded inputs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from quire.worker.kernels import native, native_groups
from quire.worker.kernels.native import NativeKernels, NativeLibrary
from quire.worker.kernels.weights import GroupWeights

pytestmark = pytest.mark.native

ROWS = [1, 2, 3, 5, 7, 8, 9, 23, 24, 31, 97]


def draw(outs: int, inputs: int, bits: int, group: int, *, zeros: bool, order: bool) -> GroupWeights:
    generator = torch.Generator().manual_seed(outs * inputs)
    q = torch.randint(0, 1 << bits, (outs, inputs), generator=generator, dtype=torch.uint8)
    scales = torch.rand(outs, inputs // group, generator=generator).half() * 0.02
    made = torch.rand(outs, inputs // group, generator=generator).half() * (1 << bits) if zeros else None
    by = torch.randperm(inputs, generator=generator) if order else None
    return GroupWeights.make(q, scales, made, bits=bits, group=group, order=by)


def rounded(x: torch.Tensor, group: int, order: torch.Tensor | None) -> torch.Tensor:
    """Each group of inputs to 127 steps of its largest, back in the order that they came in."""
    columns = torch.arange(x.shape[1]) if order is None else order
    each = x.double()[:, columns].view(len(x), -1, group)
    step = each.abs().amax(2, keepdim=True) / 127
    made = torch.where(step > 0, (each / step.clamp(min=1e-30)).round() * step, 0).flatten(1)
    return torch.empty_like(made).index_copy_(1, columns, made)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("outs", "inputs", "bits", "group", "zeros", "order"),
    [(64, 256, 4, 128, False, False), (100, 128, 4, 32, True, False), (96, 192, 4, 64, True, True),
     (32, 256, 8, 256, False, False), (48, 64, 8, 16, True, True), (64, 384, 4, 384, True, False)],
)  # fmt: skip
def test_products(
    library: NativeLibrary, outs: int, inputs: int, bits: int, group: int, zeros: bool, order: bool, dtype: torch.dtype
) -> None:
    weights = draw(outs, inputs, bits, group, zeros=zeros, order=order)
    small = native_groups.packed_group(weights)
    plain, gated = (native_groups.pack(library, weights, gated=wanted) for wanted in (False, True))
    assert plain.layout == 0 and gated.layout == (outs % 32 == 0) and plain.group == small <= 128
    matrix = weights.dense(torch.float64)
    bias = torch.randn(outs, generator=torch.Generator().manual_seed(1)).to(dtype)
    tolerance = 6e-3 if dtype == torch.bfloat16 else 2e-3  # float32: a rounding may fall to the other side
    for rows in ROWS:
        x = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(rows)).to(dtype)
        x[0, :small] = 0
        expected = rounded(x, small, weights.order) @ matrix.T + bias.double()
        for packed in (plain, gated):
            found = native_groups.product(library, x, packed, bias)
            assert found.dtype == dtype
            assert float((found.double() - expected).norm() / expected.norm()) < tolerance
        if gated.layout:
            gate, up = expected.chunk(2, dim=1)
            found = native_groups.product(library, x, gated, bias, gate=True)
            wanted = F.silu(gate) * up
            assert float((found.double() - wanted).norm() / wanted.norm()) < 2 * tolerance


def test_what_has_no_panels_stays_as_it_is() -> None:
    kernels = NativeKernels(native.library())
    for weights in (
        draw(32, 48, 4, 24, zeros=True, order=False),
        GroupWeights.make(
            torch.ones(32, 72, dtype=torch.uint8), torch.ones(32, 2), torch.zeros(32, 2), bits=4, group=64
        ),
    ):
        kept, x = kernels.keep(weights), torch.randn(3, weights.inputs)
        assert kept is weights
        assert torch.allclose(kernels.product(x, kept, None), x @ weights.dense(torch.float32).T, atol=1e-4)


@pytest.mark.parametrize("kind", ["silu", "gelu"])
def test_experts(kind: str) -> None:
    kernels = NativeKernels(native.library())
    gate_up, down = (draw(*size, 4, 32, zeros=True, order=False) for size in ((4 * 2 * 32, 64), (4 * 64, 32)))
    x = torch.randn(9, 64, generator=torch.Generator().manual_seed(0))
    chosen = torch.rand(9, 4, generator=torch.Generator().manual_seed(0)).topk(2, 1).indices
    shares = torch.rand(9, 2)
    kept = (kernels.keep(gate_up, experts=4),), (kernels.keep(down, experts=4),)
    assert len(kept[0][0].experts) == 4
    found = kernels.kept_experts(x, *kept, chosen, shares, kind, 4)
    expected = native.PlainKernels().kept_experts(x, (gate_up,), (down,), chosen, shares, kind, 4)
    assert float((found - expected).norm() / expected.norm()) < 0.04  # inputs are rounded twice
