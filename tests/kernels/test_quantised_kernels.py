"""Products with quantized weights in Triton against the matrix that the weights mean; outputs start as NaN."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from quire.worker.kernels import float_product, group_product
from quire.worker.kernels.fused import TritonKernels
from quire.worker.kernels.group_product import GroupTiles
from quire.worker.kernels.plain import PlainKernels
from quire.worker.kernels.weights import FloatWeights, GroupWeights, PlainWeights, TableWeights, widened

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
FORMATS = [(torch.float32, 1e-5), (torch.float16, 3e-3), *([(torch.bfloat16, 2e-2)] if GPU else [])]


@pytest.fixture(autouse=True)
def _outputs_start_as_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = torch.empty

    def full(*args: object, **how: object) -> torch.Tensor:
        made = empty(*args, **how)  # type: ignore[call-overload]
        return made.fill_(torch.nan) if made.dtype.is_floating_point and made.element_size() > 1 else made

    monkeypatch.setattr(torch, "empty", full)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def groups(outs: int, inputs: int, bits: int, group: int, *, zeros: bool, order: bool = False) -> GroupWeights:
    generator = torch.Generator().manual_seed(outs + inputs + bits)
    q = torch.randint(0, 1 << bits, (outs, inputs), generator=generator, dtype=torch.uint8)
    scales = torch.rand(outs, inputs // group, generator=generator).half() * 0.02 + 0.001
    made = torch.rand(outs, inputs // group, generator=generator).half() * (1 << bits)
    by = torch.randperm(inputs, generator=generator).to(DEVICE) if order else None
    return GroupWeights.make(
        q.to(DEVICE), scales.to(DEVICE), made.to(DEVICE) if zeros else None, bits=bits, group=group, order=by
    )


def floats(outs: int, inputs: int, tile: tuple[int, int] | None) -> FloatWeights:
    q = (draw(outs, inputs) * 60).clamp(-448, 448)
    q[0, :4] = torch.tensor([448.0, -448.0, 2**-9, -(2**-7)])
    tile = tile or (1, inputs)
    scales = draw(-(-outs // tile[0]), -(-inputs // tile[1]), seed=1).abs() * 1e-3
    return FloatWeights(q.to(torch.float8_e4m3fn), scales, *tile)


def check(found: torch.Tensor, x: torch.Tensor, weights: object, bias: torch.Tensor | None, tolerance: float) -> None:
    dense = weights.dense(torch.float32)  # type: ignore[attr-defined]
    expected = torch.nn.functional.linear(x.float(), dense, None if bias is None else bias.float())
    assert found.dtype == x.dtype and found.shape == expected.shape
    assert float((found.float() - expected).abs().max() / expected.abs().max()) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), FORMATS)
@pytest.mark.parametrize(
    ("rows", "outs", "inputs", "bits", "group"),
    [(1, 96, 256, 4, 128), (3, 40, 128, 4, 32), (17, 72, 192, 4, 64), (64, 64, 256, 4, 256), (5, 48, 128, 8, 128),
     (33, 80, 192, 8, 192), (70, 50, 128, 4, 128)],
)  # fmt: skip
def test_groups(rows: int, outs: int, inputs: int, bits: int, group: int, dtype: torch.dtype, tolerance: float) -> None:
    x, bias = draw(rows, inputs, seed=2).to(dtype), draw(outs, seed=3).to(dtype)
    for zeros in (False, True):
        weights = groups(outs, inputs, bits, group, zeros=zeros, order=zeros)
        tiled = group_product.tile(weights)
        check(group_product.product(x, tiled, bias), x, weights, bias, tolerance)
        for tiles in (GroupTiles(32, 1, 4, 2), GroupTiles(32, 4, 4, 2)):
            check(group_product.product(x, tiled, None, tiles), x, weights, None, tolerance)


@pytest.mark.parametrize(("bits", "group"), [(4, 32), (4, 128), (8, 64)])
def test_the_dense_matrix(bits: int, group: int) -> None:
    weights = groups(72, 128, bits, group, zeros=True, order=True)
    found = group_product.dense(group_product.tile(weights), torch.float32)
    assert torch.allclose(found, weights.dense(torch.float32), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("dtype", "tolerance"), FORMATS)
@pytest.mark.parametrize(
    ("rows", "outs", "inputs", "tile"),
    [(1, 96, 256, None), (7, 40, 192, None), (33, 72, 256, (64, 128)), (64, 64, 128, (16, 32)), (70, 48, 64, None)],
)
def test_floats(
    rows: int, outs: int, inputs: int, tile: tuple[int, int] | None, dtype: torch.dtype, tolerance: float
) -> None:
    x, bias = draw(rows, inputs, seed=2).to(dtype), draw(outs, seed=3).to(dtype)
    weights = floats(outs, inputs, tile)
    check(float_product.product(x, weights, bias), x, weights, bias, tolerance)
    for tiles in (GroupTiles(32, 1, 4, 2), GroupTiles(32, 2, 4, 2)):
        check(float_product.product(x, weights, None, tiles), x, weights, None, tolerance)


def test_every_fp8_number_is_widened_exactly() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    codes[[0x7F, 0xFF]] = 0  # NaN
    q = codes.view(torch.float8_e4m3fn).repeat(1, 1).expand(32, 256).contiguous().to(DEVICE)
    weights = FloatWeights(q, torch.ones(32, 1, device=DEVICE), 1, 256)
    found = float_product.product(torch.eye(256, device=DEVICE)[:64], weights, None)
    assert torch.equal(found[:, 0], q[0, :64].float())


@pytest.mark.parametrize("rows", [0, 1, 9])
def test_all_kinds_through_the_kernels(rows: int) -> None:
    kernels, plain, x = TritonKernels(), PlainKernels(), draw(rows, 96, seed=2)
    table = TableWeights(torch.randint(0, 256, (40, 48), dtype=torch.uint8, device=DEVICE), draw(1, 16), None, 96, 96)
    odd = groups(40, 96, 4, 48, zeros=True)
    for weights in (groups(40, 96, 4, 32, zeros=True), odd, floats(40, 96, None), table, PlainWeights(draw(40, 96))):
        kept, other = kernels.keep(weights, gated=True), plain.keep(weights, gated=True)
        assert torch.allclose(kernels.product(x, kept, None), plain.product(x, other, None), rtol=1e-4, atol=1e-4)
        found = kernels.gated_product(x, kept, None, "silu")
        assert torch.allclose(found, plain.gated_product(x, other, None, "silu"), rtol=1e-4, atol=1e-4)


def test_experts() -> None:
    kernels, plain, x = TritonKernels(), PlainKernels(), draw(9, 64, seed=2)
    gate_up, down = groups(4 * 2 * 32, 64, 4, 32, zeros=True), groups(4 * 64, 32, 4, 32, zeros=False)
    chosen = torch.rand(9, 4, generator=torch.Generator().manual_seed(0)).topk(2, 1).indices.to(DEVICE)
    weights = torch.rand(9, 2).to(DEVICE)
    how = {"experts": 4}
    found = kernels.kept_experts(
        x, (kernels.keep(gate_up, **how),), (kernels.keep(down, **how),), chosen, weights, "silu", 4
    )
    expected = plain.kept_experts(x, (gate_up,), (down,), chosen, weights, "silu", 4)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_fp8_is_widened_on_cpus_as_torch_does() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    codes[[0x7F, 0xFF]] = 0  # NaN
    q = codes.view(torch.float8_e4m3fn)
    assert torch.equal(widened(q).view(torch.int16), q.bfloat16().view(torch.int16))
    weights, x = floats(40, 64, None), draw(5, 64, seed=2).bfloat16()
    bias = draw(40, seed=3).bfloat16()
    expected = x.float() @ weights.dense(torch.float32).T + bias.float()
    found = PlainKernels().product(x, weights, bias).float()
    assert float((found - expected).norm() / expected.norm()) < 6e-3
