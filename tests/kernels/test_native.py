"""The C++ kernels beside plain torch: products in every shape and layout, norms, and how they are built."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from quire.errors import ConfigError
from quire.worker.kernels import native, select
from quire.worker.kernels.native import NativeKernels, NativeLibrary
from quire.worker.kernels.native_build import Build, BuildError
from quire.worker.kernels.plain import PlainKernels
from quire.worker.quantization.int8 import quantize_rows

pytestmark = pytest.mark.native

ROWS = [1, 2, 3, 4, 5, 7, 9, 11, 12, 13, 16, 23, 24, 25, 31, 32, 33, 47, 95, 96, 97, 130]


def draw(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize(("inputs", "outs"), [(64, 32), (128, 100), (2, 64), (256, 48), (768, 160)])
def test_bf16_products(library: NativeLibrary, inputs: int, outs: int) -> None:
    weight, bias = draw(outs, inputs, dtype=torch.bfloat16), draw(outs, dtype=torch.bfloat16, seed=1)
    plain, gated = library.pack(weight, gated=False), library.pack(weight, gated=True)
    assert gated.layout == (outs % 32 == 0)
    for rows in ROWS:
        x = draw(rows, inputs, dtype=torch.bfloat16, seed=rows)
        expected = x.double() @ weight.double().T + bias.double()
        assert error(library.linear(x, plain, bias), expected) < 4e-3
        assert error(library.linear(x, gated, bias), expected) < 4e-3
        assert error(library.linear(x, plain, None), expected - bias.double()) < 4e-3
        if gated.layout:
            gate, up = expected.chunk(2, dim=1)
            assert error(library.linear(x, gated, bias, gate=True), F.silu(gate) * up) < 6e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("inputs", "outs"), [(64, 32), (128, 100), (16, 64), (768, 48)])
def test_int8_products_are_those_of_the_rounded_numbers(
    library: NativeLibrary, dtype: torch.dtype, inputs: int, outs: int
) -> None:
    weight, bias = draw(outs, inputs, dtype=dtype), draw(outs, dtype=dtype, seed=1)
    weight[3] = 0
    packed = library.pack(weight, gated=outs % 32 == 0, int8=True)
    whole, scales = quantize_rows(weight)
    for rows in ROWS:
        x = draw(rows, inputs, dtype=dtype, seed=rows)
        x[0] = 0
        x_whole, x_scales = quantize_rows(x)
        expected = (x_whole.double() @ whole.double().T) * x_scales[:, None] * scales + bias.double()
        found = library.linear(x, packed, bias)
        assert found.dtype == dtype
        assert error(found, expected) < 6e-3
        assert torch.equal(found[0], bias)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("rows", "size"), [(1, 64), (3, 80), (9, 1000), (40, 16), (2, 7)])
def test_norms(library: NativeLibrary, dtype: torch.dtype, rows: int, size: int) -> None:
    kernels, plain = NativeKernels(library), PlainKernels()
    x, residual, weight = (draw(*shape, dtype=dtype, seed=i) for i, shape in enumerate([(rows, size)] * 2 + [(size,)]))
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-6
    assert error(kernels.rms_norm(x, weight, 1e-5), plain.rms_norm(x, weight, 1e-5)) < tolerance
    expected, total = plain.add_rms_norm(x, residual, weight, 1e-5)
    found, new_residual = kernels.add_rms_norm(x, residual.clone(), weight, 1e-5)
    assert error(found, expected) < tolerance
    assert torch.equal(new_residual, total)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_first_of_the_largest_is_most_likely(library: NativeLibrary, dtype: torch.dtype) -> None:
    logits = torch.randint(-9, 9, (50, 333), generator=torch.Generator().manual_seed(0)).to(dtype)
    logits[7] = -torch.inf
    logits[8, :-1] = -torch.inf
    expected = (logits == logits.amax(1, keepdim=True)).int().argmax(1)
    assert torch.equal(NativeKernels(library).most_likely(logits), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("half", [32, 24, 5])
def test_angles_far_out(library: NativeLibrary, dtype: torch.dtype, half: int) -> None:
    positions = torch.tensor([0, 1, 2, 77, 4095, 131_071])
    frequency = 1 / 10_000 ** (torch.arange(half) / half)
    found = NativeKernels(library).turns(positions, frequency, 1.3, dtype)
    expected = PlainKernels().turns(positions, frequency, 1.3, dtype)
    tolerance = 1e-2 if dtype == torch.bfloat16 else 3e-7
    assert all(torch.allclose(a, b, rtol=0, atol=tolerance) for a, b in zip(found, expected, strict=True))


def test_inputs_of_a_mixed_step(library: NativeLibrary) -> None:
    generator = torch.Generator().manual_seed(0)
    counts, rows = [1, 40, 1, 7], torch.tensor([2, 0, 5, 3], dtype=torch.int32)
    computed = torch.randint(0, 50, (6,), generator=generator, dtype=torch.int32)
    tokens = torch.randint(0, 999, (6, 101), generator=generator, dtype=torch.int32)
    tables = torch.randint(1, 30, (6, 7), generator=generator, dtype=torch.int32)
    starts = torch.tensor([0, 1, 41, 42, 49], dtype=torch.int32)
    requests = torch.arange(4, dtype=torch.int32).repeat_interleave(torch.tensor(counts))
    expected = PlainKernels().gather(rows, starts, requests, computed, tokens, tables, 16)
    found = NativeKernels(library).gather(rows, starts, requests, computed, tokens, tables, 16)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    before = computed.clone()
    kv_lens = library.gather(rows, starts, 49, computed, tokens, tables, 16, advance=True)[3]
    before[rows.long()] = kv_lens
    assert torch.equal(computed, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_look_ups(library: NativeLibrary, dtype: torch.dtype) -> None:
    ids, weight = torch.tensor([3, 0, 3, 9], dtype=torch.int32), draw(10, 20, dtype=dtype)
    for wanted in (ids, ids.long()):
        assert torch.equal(NativeKernels(library).embed(wanted, weight), weight[ids.long()])


def test_other_formats_and_strides_go_through_torch() -> None:
    kernels = NativeKernels(native.library())
    x, weight = draw(4, 32, dtype=torch.float64), draw(32, dtype=torch.float64)
    assert torch.equal(kernels.rms_norm(x, weight, 1e-5), PlainKernels().rms_norm(x, weight, 1e-5))
    assert kernels.most_likely(x.T).tolist() == x.T.max(1).indices.tolist()


# ---- building ------------------------------------------------------------------------------------------


def test_without_kernels_one_line_says_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def none() -> NativeLibrary:
        raise BuildError("no C++ compiler here (g++)")

    monkeypatch.setattr(select, "library", none)
    cpu = torch.device("cpu")
    assert select.native_library(cpu, torch.bfloat16, "auto") is None
    assert caplog.messages == ["the slower kernels of torch are used: no C++ compiler here (g++)."]
    assert select.native_library(cpu, torch.bfloat16, "torch") is None
    assert len(caplog.messages) == 1, "who asked for them knows"
    with pytest.raises(ConfigError, match="--cpu-kernels native: no C\\+\\+ compiler here"):
        select.native_library(cpu, torch.bfloat16, "native")


def test_builds_at_the_same_time_agree_and_leave_nothing_behind(tmp_path: Path) -> None:
    builds = [Build(tmp_path) for _ in range(3)]
    assert len({build.wait() for build in builds}) == 1
    assert [path.suffix for path in tmp_path.iterdir()] == [".so"]
    before = builds[0].wait().stat().st_mtime_ns
    assert Build(tmp_path).wait().stat().st_mtime_ns == before


def test_other_flags_are_another_library(tmp_path: Path) -> None:
    assert Build(tmp_path).wait() != Build(tmp_path, more_flags=("-DSOMETHING",)).wait()


def test_without_a_compiler_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(BuildError, match="no C\\+\\+ compiler here \\(nothing-like-it\\)"):
        Build(tmp_path, compilers=["nothing-like-it"]).wait()


def test_a_compiler_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken-c++"
    broken.write_text("#!/bin/sh\necho 'x.cpp:1: error: no such thing' >&2\nexit 1\n")
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(BuildError, match=r"failed: x\.cpp:1: error"):
        Build(tmp_path / "out").wait()


def test_threads_of_callers_do_not_share_working_memory() -> None:
    library = native.library()
    weight = draw(64, 128, dtype=torch.bfloat16)
    packed, errors = library.pack(weight, gated=False, int8=True), []

    def work(seed: int) -> None:
        x = draw(20 + seed, 128, dtype=torch.bfloat16, seed=seed)
        for _ in range(30):
            errors.append(error(library.linear(x, packed, None), x.double() @ weight.double().T))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 90
    assert max(errors) < 2e-2
