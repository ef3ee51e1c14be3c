"""One GPU: is the memory promise kept, how soon is it ready, how fast is a step.

    python benchmarks/gpu_baseline.py MODEL [MODEL ...] [--out FILE.md]

Each MODEL is a folder with config.json and a tokenizer; weights are random. For the first, `--gpu-memory-utilization`
is swept: 256 prompts of 512 tokens with penalties, top-p and log-probabilities, then 64 of 4,000, while NVML is read
every 10 ms from outside (needs `nvidia-ml-py`). Then for each model, decode steps at 1, 32 and 256 requests.
"""

from __future__ import annotations

import argparse
import platform
import random
import threading
import time
from pathlib import Path

import pynvml

from quire import LLM, SamplingParams, __version__

UTILIZATIONS = (0.3, 0.6, 0.9, 0.97)
BATCHES = (1, 32, 256)
STEPS = 64


class Memory:
    """Used memory of GPU 0, all processes together, and its highest value since `watch`."""

    def __init__(self) -> None:
        pynvml.nvmlInit()
        self._gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
        self.total = int(pynvml.nvmlDeviceGetMemoryInfo(self._gpu).total)
        self.name = pynvml.nvmlDeviceGetName(self._gpu)
        self.peak = 0
        threading.Thread(target=self._poll, daemon=True).start()

    def used(self) -> int:
        """Bytes now."""
        return int(pynvml.nvmlDeviceGetMemoryInfo(self._gpu).used)

    def _poll(self) -> None:
        while True:
            self.peak = max(self.peak, self.used())
            time.sleep(0.01)


def generate(llm: LLM, count: int, length: int, output: int, **params: float) -> float:
    """Seconds for `count` random prompts."""
    rng = random.Random(count)
    vocab = llm.ready.vocab_size
    prompts = [[rng.randrange(vocab - 300) for _ in range(length)] for _ in range(count)]
    wanted = SamplingParams(max_tokens=output, ignore_eos=True, detokenize=False, **params)
    start = time.perf_counter()
    llm.generate(prompts, wanted, use_tqdm=False)
    return time.perf_counter() - start


def memory_rows(model: str, memory: Memory) -> list[str]:
    """One line per utilization."""
    rows = []
    for utilization in UTILIZATIONS:
        before, memory.peak = memory.used(), 0
        start = time.perf_counter()
        with LLM(model, load_format="dummy", gpu_memory_utilization=utilization, max_model_len=8192) as llm:
            ready = time.perf_counter() - start
            generate(llm, 256, 512, 16, temperature=0.8, top_p=0.9, presence_penalty=0.1, logprobs=5)
            generate(llm, 64, 4000, 16, temperature=0)
            tokens = (llm.ready.num_blocks - 1) * llm.ready.block_size
            seconds = ", ".join(f"{stage} {took:.1f}" for stage, took in llm.ready.seconds.items())
        peak = memory.peak - before
        time.sleep(0.5)
        left = (memory.used() - before) / (1 << 20)
        rows.append(
            f"| {utilization} | {tokens:,} | {peak / memory.total:.3f} | {left:+.0f} MiB | {ready:.1f} ({seconds}) |"
        )
        print(rows[-1], flush=True)
    return rows


def step_rows(model: str) -> list[str]:
    """One line per batch size: 512 tokens in, greedy."""
    rows = []
    with LLM(model, load_format="dummy", max_model_len=4096) as llm:
        for batch in BATCHES:
            generate(llm, batch, 512, 8, temperature=0)
            seconds = generate(llm, batch, 512, STEPS, temperature=0)
            name = Path(model).name
            rows.append(f"| {name} | {batch} | {batch * STEPS / seconds:,.0f} | {seconds / STEPS * 1000:.1f} |")
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Measure, print, and write the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="+")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    import torch

    memory = Memory()
    name = Path(args.models[0]).name
    lines = [
        f"| utilization ({name}) | KV tokens | peak, share of the device | after close() | seconds to ready |",
        "|---|---|---|---|---|",
        *memory_rows(args.models[0], memory),
        "",
        "| model | requests | output tok/s, prompts included | ms per step, prompts included |",
        "|---|---|---|---|",
        *[row for model in args.models for row in step_rows(model)],
        "",
        f"{memory.name}, quire {__version__}, torch {torch.__version__}, Python {platform.python_version()}.",
        f"Command: `python benchmarks/gpu_baseline.py {' '.join(Path(m).name for m in args.models)}`",
    ]
    if args.out:
        args.out.write_text("# One GPU, reference path\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
