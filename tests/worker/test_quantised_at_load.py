"""--quantization on a plain checkpoint: errors beside rounding to nearest, perplexity, and no more memory than said."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import checkpoints
import pytest
import torch
from paged import Driver, Sequence
from test_int8 import held_out_texts, perplexity
from tokenizers import Tokenizer

from quire.demo import model_path
from quire.worker.kernels import native
from quire.worker.kernels.native import NativeKernels
from quire.worker.layers.experts import ExpertStack
from quire.worker.layers.linear import Linear
from quire.worker.quantization import fitted
from quire.worker.quantization.packed import PackedWeights

NAMES = ["awq", "gptq", "squeezellm", "bitsandbytes", "fp8"]
TEXT = [(7 * i * i + 3 * i) % 500 for i in range(40)]


def weights(outs: int = 64, inputs: int = 512, *, seed: int = 0) -> torch.Tensor:
    """A normal law with a few large ones."""
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(outs, inputs, generator=generator) * 0.02
    return torch.where(torch.rand(outs, inputs, generator=generator) < 2e-3, made * 6, made)


def to_nearest(weight: torch.Tensor, group: int = 128) -> float:
    """The error of 4 bits whose steps span the group's range, zero a whole number."""
    w = weight.view(len(weight), -1, group)
    low, high = w.amin(2, keepdim=True).clamp(max=0), w.amax(2, keepdim=True).clamp(min=0)
    scale = (high - low) / 15
    zero = (-low / scale).round()
    made = (((w / scale + zero).round().clamp(0, 15) - zero) * scale).flatten(1)
    return float((made - weight).norm() / weight.norm())


@pytest.mark.parametrize("seed", range(3))
def test_four_bits_are_nearer_than_rounding_to_nearest(seed: int) -> None:
    weight = weights(seed=seed)
    assert fitted.error_of(fitted.int4(weight), weight) < 0.95 * to_nearest(weight)


def test_other_forms_are_as_near_as_their_bits_allow() -> None:
    weight = weights()
    nearest = to_nearest(weight)
    assert fitted.error_of(fitted.int8(weight), weight) < nearest / 6
    assert fitted.error_of(fitted.fp8(weight), weight) < 0.03
    assert fitted.error_of(fitted.nf4(weight), weight) < nearest
    assert fitted.error_of(fitted.tables(weight), weight) < nearest


@pytest.mark.parametrize("fit", [fitted.int4, fitted.int8, fitted.fp8, fitted.nf4, fitted.tables])
@pytest.mark.parametrize("inputs", [128, 80, 96, 56])
def test_awkward_weights(fit: object, inputs: int) -> None:
    """Zeros, all equal, one large; sizes that no group divides."""
    weight = weights(8, inputs)
    weight[0], weight[1], weight[2] = 0, 0.03, -1e-6
    weight[3, 5] = 8
    made = fit(weight).dense(torch.float32)  # type: ignore[operator]
    assert bool(torch.isfinite(made).all()) and made.shape == weight.shape
    assert bool((made[0] == 0).all())
    assert torch.allclose(made[1], weight[1], rtol=0.05)


@pytest.mark.parametrize("fit", [fitted.int4, fitted.fp8, fitted.nf4, fitted.tables, fitted.int8])
def test_pieces_of_a_matrix_are_fitted_as_the_whole(fit: object, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = weights(40, 256)
    expected = fit(weight).dense(torch.float32)  # type: ignore[operator]
    monkeypatch.setattr(fitted, "CHUNK", {"cpu": 7 * 256})
    assert torch.equal(fit(weight).dense(torch.float32), expected)  # type: ignore[operator]


@pytest.mark.parametrize("name", NAMES)
def test_all_layers_but_the_head(name: str, tmp_path: Path) -> None:
    checkpoints.write("mixtral", tmp_path)
    plain = Driver(tmp_path).step([(Sequence(TEXT), 40)])[0]
    driver = Driver(tmp_path, quantization=name)
    found = driver.step([(Sequence(TEXT), 40)])[0]
    assert 1e-4 < float((found - plain).norm() / plain.norm()) < 0.6
    for layer_name, layer in driver.model.named_modules():
        if isinstance(layer, Linear | ExpertStack):
            assert bool(getattr(layer, "kept", ())) == (layer_name != "lm_head")
            assert getattr(layer, "pieces", None) is None
    assert driver.model.weights_note == f"{name} weights made at load"


@pytest.mark.parametrize(
    ("name", "limit"), [("fp8", 0.01), ("awq", 0.05), ("squeezellm", 0.05), ("bitsandbytes", 0.05)]
)
def test_perplexity_of_held_out_text(name: str, limit: float) -> None:
    texts = held_out_texts(Tokenizer.from_file(str(model_path() / "tokenizer.json")), 8)
    plain = perplexity(Driver(model_path(), num_blocks=2000), texts)
    driver = Driver(model_path(), num_blocks=2000, quantization=name)
    assert perplexity(driver, texts) / plain - 1 < limit


@pytest.mark.native
@pytest.mark.parametrize("family", ["llama2", "llama32"])
def test_the_head_of_4_bit_models_has_8_on_cpus(family: str, tmp_path: Path) -> None:
    """Tied or not; other forms leave it."""
    checkpoints.write(family, tmp_path)
    library = native.library()
    how = {"scheme": PackedWeights(library), "kernels": NativeKernels(library), "dtype": torch.bfloat16}
    model = Driver(tmp_path, quantization="awq", **how).model
    assert model.lm_head.weight.dtype == (torch.int8 if library.fast_int8 else torch.bfloat16)
    assert model.model.embed_tokens.weight.dtype == torch.bfloat16
    assert Driver(tmp_path, quantization="fp8", **how).model.lm_head.weight.dtype == torch.bfloat16


@pytest.mark.native
def test_perplexity_with_cpp_kernels() -> None:
    texts = held_out_texts(Tokenizer.from_file(str(model_path() / "tokenizer.json")), 8)
    plain = perplexity(Driver(model_path(), num_blocks=2000), texts)
    kernels = NativeKernels(native.library())
    assert perplexity(Driver(model_path(), num_blocks=2000, quantization="awq", kernels=kernels), texts) / plain < 1.05


PEAK = """
import json, sys
from pathlib import Path
import psutil, torch
sys.path.insert(0, sys.argv[2])
from paged import Driver
before = psutil.Process().memory_info().rss
driver = Driver(Path(sys.argv[1]), quantization=sys.argv[3], dtype=torch.bfloat16, num_blocks=2)
kept = sum(p.numel() * p.element_size() for p in driver.model.parameters())
[peak] = [int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line]
print(json.dumps({"peak": 1024 * peak - before, "kept": kept}))
"""


@pytest.mark.parametrize("name", ["fp8", pytest.param("awq", marks=pytest.mark.soak)])
def test_the_unquantized_model_is_never_in_memory(name: str, tmp_path: Path) -> None:
    """Beside what is kept, the process needs room for a few layers, of many."""
    sizes = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 20, "vocab_size": 600}
    checkpoints.write("llama2", tmp_path, **sizes)
    stored = (tmp_path / "model.safetensors").stat().st_size  # float32
    said = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path), str(Path(__file__).parent), name],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = json.loads(said.splitlines()[-1])
    assert found["kept"] < stored / 3
    assert found["peak"] < found["kept"] + 0.4 * stored, (found, stored)
