"""Perplexity of the bundled model on held-out text, with the weights that each --quantization makes while loading.

    python benchmarks/quantised_quality.py [--texts 60] [--device cpu]

The text is what the tests of int8 use: conversations that training never showed in any wording. The table also has the
error of the weights themselves, and their size.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer

from quire.demo import model_path
from quire.worker.kernels import native
from quire.worker.kernels.native import NativeKernels
from quire.worker.quantization.int8 import Int8Weights

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "worker"))
from paged import Driver
from test_int8 import held_out_texts, perplexity

NAMES = (None, "int8", "fp8", "bitsandbytes", "squeezellm", "awq", "awq, C++")


def drive(name: str | None, device: str) -> Driver:
    """The bundled model with these weights."""
    how = {"num_blocks": 2000, "device": device}
    if name == "int8" and device == "cpu":
        return Driver(model_path(), scheme=Int8Weights(native.library()), **how)
    if name == "awq, C++":
        return Driver(model_path(), quantization="awq", kernels=NativeKernels(native.library()), **how)
    return Driver(model_path(), quantization=name, **how)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--texts", type=int, default=60)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    texts = held_out_texts(Tokenizer.from_file(str(model_path() / "tokenizer.json")), args.texts)
    whole = [[(token, True) for token, _ in text] for text in texts]  # what users say, too: far less certain
    plain: list[float] = []
    print(f"{'weights':16}{'taught text':>12}{'change':>9}{'all text':>12}{'change':>9}{'MB':>8}{'load s':>8}")
    for name in NAMES if args.device == "cpu" else NAMES[:-1]:
        started = time.perf_counter()
        driver = drive(name, args.device)
        loaded = time.perf_counter() - started
        with torch.inference_mode():
            found = [perplexity(driver, texts), perplexity(driver, whole)]
        plain = plain or found
        cells = "".join(f"{new:12.4f}{new / old - 1:+9.2%}" for new, old in zip(found, plain, strict=True))
        held = sum(p.numel() * p.element_size() for p in driver.model.parameters()) / 1e6
        print(f"{name or 'float32':16}{cells}{held:8.1f}{loaded:8.2f}", flush=True)


if __name__ == "__main__":
    main()
