"""Grouped products of experts against the plain twin: any counts, experts nobody chose, one that all chose."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from quire.worker.kernels.experts import experts, route
from quire.worker.kernels.plain import PlainKernels

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
FORMATS = [(torch.float32, 1e-4), (torch.float16, 2e-2), *([(torch.bfloat16, 6e-2)] if GPU else [])]


@pytest.mark.parametrize(("dtype", "tolerance"), FORMATS)
@pytest.mark.parametrize("kind", ["silu", "gelu_tanh"])
@pytest.mark.parametrize(
    ("tokens", "num", "k", "size", "width"),
    [
        (1, 4, 2, 64, 48),
        (5, 8, 3, 48, 80),
        (40, 4, 2, 64, 64),
        (150, 3, 2, 32, 40),
        (7, 60, 4, 64, 32),
        (300, 2, 2, 64, 256),
    ],
)
def test_against_the_plain_twin(
    tokens: int, num: int, k: int, size: int, width: int, kind: str, dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(tokens * num)
    x = torch.randn(tokens, size, dtype=dtype, device=DEVICE)
    gate_up = torch.randn(num, 2 * width, size, dtype=dtype, device=DEVICE) / size**0.5
    down = torch.randn(num, size, width, dtype=dtype, device=DEVICE) / width**0.5
    chosen = torch.rand(tokens, num, device=DEVICE).topk(k, dim=1).indices
    if tokens == 40:
        chosen[:] = torch.tensor([2, 0], device=DEVICE)
    weights = torch.rand(tokens, k, device=DEVICE).to(dtype)
    wanted = PlainKernels().experts(x, gate_up, down, chosen, weights, kind)
    found = experts(x, gate_up, down, chosen, weights, kind)
    assert (found.float() - wanted.float()).abs().max() <= tolerance * wanted.float().abs().max()


def test_nobody() -> None:
    empty = torch.empty(0, 64, device=DEVICE)
    made = experts(
        empty,
        torch.empty(4, 96, 64, device=DEVICE),
        torch.empty(4, 64, 48, device=DEVICE),
        torch.empty(0, 2, dtype=torch.long, device=DEVICE),
        torch.empty(0, 2, device=DEVICE),
        "silu",
    )
    assert made.shape == (0, 64)


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize(("tokens", "num", "k"), [(1, 8, 2), (5, 60, 4), (3, 128, 8), (0, 8, 2)])
def test_routing(tokens: int, num: int, k: int, rescale: bool) -> None:
    torch.manual_seed(num)
    logits = torch.randn(tokens, num, device=DEVICE)
    wanted, found = (f(logits, k, rescale, torch.float32) for f in (PlainKernels().route, route))
    assert torch.equal(wanted[0].int(), found[0])
    assert (wanted[1] - found[1]).abs().max() < 1e-6 if tokens else True


def test_equal_experts_are_taken_in_order() -> None:
    chosen, weights = route(torch.zeros(2, 6, device=DEVICE), 3, True, torch.float32)
    assert chosen.tolist() == [[0, 1, 2]] * 2
    assert torch.allclose(weights, torch.full((2, 3), 1 / 3, device=DEVICE))
