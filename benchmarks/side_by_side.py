"""Servers beside each other: the same machine, model folder and load, one engine after the other, floors beside them.

    python benchmarks/side_by_side.py MODEL --loads 1:8:512:128 32:256:512:128 \\
        --engine "quire=quire serve {model} --load-format dummy --max-model-len 4096 --port {port}" \\
        --engine "vllm=vllm serve {model} --load-format dummy --max-model-len 4096 --port {port}" --out result.md

A load is concurrency:prompts:input:output, `:` and further flags of `quire bench serve` if any, with commas between
them. A first run of every load, with other and fewer prompts, warms up and does not count. Floors come from the chip's
own rates, measured first: a large sum for reading weights and KV, a large bf16 product for arithmetic.
The table is written anew after every load, so that what was measured stays if the time runs out; a plot beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

PORT = 8300
READY_TIMEOUT_S = 600
COLUMNS = (
    ("output tok/s", "output_throughput"),
    ("req/s", "request_throughput"),
    ("TPOT p50 ms", "median_tpot_ms"),
    ("TTFT p50 ms", "median_ttft_ms"),
    ("TTFT p99 ms", "p99_ttft_ms"),
    ("ITL p99 ms", "p99_itl_ms"),
)
RATES = """
import torch, time
def rate(f, work):
    f(); torch.cuda.synchronize(); best = 1e9
    for _ in range(5):
        t = time.perf_counter(); f(); torch.cuda.synchronize(); best = min(best, time.perf_counter() - t)
    return work / best
big = torch.randn(1 << 31, device="cuda", dtype=torch.bfloat16)
a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
print(torch.cuda.get_device_name(), rate(lambda: big.sum(), 2 << 31), rate(lambda: a @ a, 2 * 8192**3), sep="|")
"""


@dataclass(frozen=True)
class Load:
    """One shape of traffic."""

    concurrency: int
    prompts: int
    input: int
    output: int
    flags: tuple[str, ...]

    @staticmethod
    def parse(text: str) -> Load:
        parts = text.split(":", 4)
        return Load(*(int(n) for n in parts[:4]), tuple(parts[4].split(",")) if len(parts) > 4 else ())

    def _flag(self, name: str, default: int) -> int:
        return int(self.flags[self.flags.index(name) + 1]) if name in self.flags else default

    @property
    def computed(self) -> int:
        """Prompt tokens of a request that no other has computed."""
        return self._flag("--prefix-repetition-suffix-len", self.input)

    @property
    def context(self) -> int:
        """Prompt tokens of a request."""
        shared = self._flag("--prefix-repetition-prefix-len", 0)
        return shared + self.computed

    @property
    def name(self) -> str:
        return f"c={self.concurrency}, {self.input} in, {self.output} out {' '.join(self.flags)}".strip()


@dataclass(frozen=True)
class Floor:
    """What a dense model costs at the rates of the chip, prompts and attention included.

    Every step reads the weights once; prompts are arithmetic; a generated token also reads its request's KV.
    """

    weights_bytes: float
    kv_bytes: float
    flops: float
    read: float
    rate: float

    @staticmethod
    def of(folder: Path, read: float, rate: float) -> Floor:
        c = json.loads((folder / "config.json").read_text())
        heads, hidden = c["num_attention_heads"], c["hidden_size"]
        dim = c.get("head_dim") or hidden // heads
        kv = 2 * c.get("num_key_value_heads", heads) * dim
        layer = hidden * (heads * dim + kv) + heads * dim * hidden + 3 * hidden * c["intermediate_size"]
        params = c["num_hidden_layers"] * layer
        return Floor(2 * (params + c["vocab_size"] * hidden), 2 * kv * c["num_hidden_layers"], 2 * params, read, rate)

    def step_s(self, load: Load) -> float:
        """A step in which all generate."""
        context = load.context + load.output / 2
        return (self.weights_bytes + load.concurrency * context * self.kv_bytes) / self.read

    def output_rate(self, load: Load) -> float:
        """Tokens per second if prompts hide nothing and nothing hides them."""
        prompt = load.computed * self.flops / self.rate
        return load.concurrency * load.output / (load.concurrency * prompt + load.output * self.step_s(load))


@contextlib.contextmanager
def engine(command: str, log: Path) -> Any:
    """A server from exec to the end; yields the seconds until /health answered."""
    start = time.monotonic()
    with log.open("w") as out:
        process = subprocess.Popen(shlex.split(command), stdout=out, stderr=out, start_new_session=True)
    try:
        while True:
            if process.poll() is not None or time.monotonic() - start > READY_TIMEOUT_S:
                raise SystemExit(f"{command}\ndid not come up:\n{log.read_text()[-2000:]}")
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health", timeout=1):
                break
            time.sleep(0.1)
        yield time.monotonic() - start
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=15)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def drive(model: str, load: Load, seed: int, folder: Path) -> dict[str, Any]:
    """One run of our load generator against whatever listens."""
    flags = {
        "--port": PORT,
        "--model": model,
        "--dataset-name": "random",
        "--random-input-len": load.input,
        "--random-output-len": load.output,
        "--num-prompts": load.prompts,
        "--max-concurrency": load.concurrency,
        "--seed": seed,
        "--percentile-metrics": "ttft,tpot,itl",
        "--metric-percentiles": "50,99",
        "--result-dir": folder,
        "--result-filename": f"{seed}.json",
    }
    command = [sys.executable, "-m", "quire", "bench", "serve", "--ignore-eos", "--disable-tqdm", "--save-result"]
    command += [str(part) for item in flags.items() for part in item]
    command += [*(() if "--temperature" in load.flags else ("--temperature", "0")), *load.flags]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{shlex.join(command)}\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}")
    found: dict[str, Any] = json.loads((folder / f"{seed}.json").read_text())
    return found


def measure(
    model: str, command: str, loads: list[Load], folder: Path, settle_s: float, results: dict[str, Any]
) -> Iterator[str]:
    """Enter ready time and the figures of every load into `results`; yields a line after each."""
    with engine(command.format(model=model, port=PORT), folder / "server.txt") as ready_s:
        results["ready_s"] = ready_s
        time.sleep(settle_s)
        for index, load in enumerate(loads):
            drive(model, replace(load, prompts=min(load.prompts, 2 * load.concurrency)), 2 * index + 1, folder)
            results["loads"].append(drive(model, load, 2 * index + 2, folder))
            last = results["loads"][-1]
            yield f"  {load.name}: " + ", ".join(f"{name} {last[key]:,.2f}" for name, key in COLUMNS)


def render(model: Path, loads: list[Load], results: dict[str, dict[str, Any]], rates: list[str]) -> str:
    """The table, floors in their own line."""
    floor = Floor.of(model, float(rates[1]), float(rates[2]))
    lines = [f"| {model.name} | engine | {' | '.join(name for name, _ in COLUMNS)} | failed |", "|---" * 9 + "|"]
    for index, load in enumerate(loads):
        for name, found in results.items():
            if index >= len(found["loads"]):
                continue
            row = found["loads"][index]
            values = " | ".join(f"{row[key]:,.2f}" for _, key in COLUMNS)
            lines.append(f"| {load.name} | {name} | {values} | {row['failed']} |")
        rate, step = floor.output_rate(load), floor.step_s(load) * 1000
        ttft = load.computed * floor.flops / floor.rate * 1000
        lines.append(f"| | floor | {rate:,.0f} | {rate / load.output:,.2f} | {step:.2f} | {ttft:.1f} | | | |")
    lines += ["", "| engine | exec to healthy, s |", "|---|---|"]
    lines += [f"| {name} | {found['ready_s']:.1f} |" for name, found in results.items()]
    lines += [
        "",
        f"{rates[0]}: reads {float(rates[1]) / 1e12:.2f} TB/s, bf16 product {float(rates[2]) / 1e12:.0f} TFLOP/s.",
    ]
    return "\n".join(lines)


def draw(model: Path, loads: list[Load], results: dict[str, dict[str, Any]], rates: list[str], path: Path) -> None:
    """Output tokens per second of every load as a share of its floor, one bar for each engine."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    floor = Floor.of(model, float(rates[1]), float(rates[2]))
    figure, axis = pyplot.subplots(figsize=(8, 0.7 * len(loads) + 1.2))
    height = 0.8 / len(results)
    for number, (name, found) in enumerate(results.items()):
        shares = [
            row["output_throughput"] / floor.output_rate(load) for load, row in zip(loads, found["loads"], strict=False)
        ]
        places = [index + number * height for index in range(len(shares))]
        bars = axis.barh(places, shares, height, label=name)
        axis.bar_label(
            bars, [f"{row['output_throughput']:,.0f} tok/s" for row in found["loads"]], padding=3, fontsize=8
        )
    axis.set_yticks(
        [index + 0.4 - height / 2 for index in range(len(loads))], [_short(load) for load in loads], fontsize=8
    )
    axis.invert_yaxis()
    axis.set(xlim=(0, 1.35), xlabel="share of what the chip's bandwidth and arithmetic allow", title=model.name)
    axis.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _short(load: Load) -> str:
    """A load in a few words; lengths that its flags change are not said."""
    kind = {"--dataset-name": "shared prefix", "--random-range-ratio": "mixed lengths", "--temperature": "sampled"}
    words = [kind[flag] for flag in load.flags if flag in kind]
    lengths = "" if "shared prefix" in words else f", {load.input:,} in, {load.output} out"
    return f"c={load.concurrency}{lengths}{''.join(', ' + word for word in words)}"


def main() -> None:
    """Measure, print, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--engine", action="append", required=True, metavar="NAME=COMMAND")
    parser.add_argument("--loads", nargs="+", default=["1:8:512:128", "32:256:512:128", "256:1024:512:128"])
    parser.add_argument("--settle", type=float, default=6, help="seconds between ready and the first load")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rates = subprocess.run([sys.executable, "-c", RATES], capture_output=True, text=True, check=True).stdout.split("|")
    loads = [Load.parse(text) for text in args.loads]
    results: dict[str, dict[str, Any]] = {}
    commands = "\n".join(f"    {item}" for item in args.engine)
    below = f"\n\nPython {platform.python_version()}; loads {' '.join(args.loads)}; engines:\n\n{commands}\n"
    for item in args.engine:
        name, _, command = item.partition("=")
        print(name, flush=True)
        results[name] = {"loads": [], "ready_s": float("nan")}
        with tempfile.TemporaryDirectory() as folder:
            for line in measure(args.model, command, loads, Path(folder), args.settle, results[name]):
                print(line, flush=True)
                if args.out:
                    args.out.write_text(render(Path(args.model), loads, results, rates) + below)
                    draw(Path(args.model), loads, results, rates, args.out.with_suffix(".png"))
    print(render(Path(args.model), loads, results, rates) + below)


if __name__ == "__main__":
    main()
