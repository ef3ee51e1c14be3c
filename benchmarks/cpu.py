"""Quire on a CPU beside its peers, in one run: offline, one stream, a streaming server, start, how steps grow.

    pip install '.[test,bench]'
    python benchmarks/cpu.py [--vllm PYTHON] [--llama PYTHON] [--only steps,offline,stream,servers] [--out FOLDER]

Every engine loads the same random checkpoints, which transformers wrote (`cpu_parts/models.py`); each runs in a process
of its own, one after the other, with the same greedy requests and end tokens ignored. `--vllm` and `--llama` name the
Python of an environment that holds vLLM's CPU build, and llama-cpp-python with the gguf package; without them those
rows are left out. The parts can run one at a time: what was measured is kept in OUT/parts.json, and the page is made of
all that is there. A machine that does something else at the same time gives no figures: the load is printed with them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

PARTS = Path(__file__).parent / "cpu_parts"
SMALL, LARGE = "llama-125m", "qwen3-600m"
MANY, MANY_LEN, ONE_LEN, PROMPT_LEN, CONCURRENCY = 64, 64, 128, 128, 16
INT8 = ("--quantization", "int8")
Row = Sequence[str]


class Work(NamedTuple):
    """Files of requests: all of them; one alone."""

    many: Path
    alone: Path


def run(python: str, script: str, *arguments: object, env: dict[str, str] | None = None) -> dict[str, Any]:
    """What a script of `cpu_parts` reports; its errors are shown."""
    command = [python, "-W", "ignore", str(PARTS / script), *map(str, arguments)]
    done = subprocess.run(command, env={**os.environ, **(env or {})}, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    print(f"{script} {' '.join(map(str, arguments))}: done, load {os.getloadavg()[0]:.1f}", flush=True)
    return json.loads(lines[-1].removeprefix("RESULT "))


@contextlib.contextmanager
def served(command: list[str], port: int, env: dict[str, str]) -> Iterator[float]:
    """A server while it runs; yields the seconds from exec to its first healthy answer."""
    start = time.perf_counter()
    server = subprocess.Popen(command, env={**os.environ, **env}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                break
            except OSError:
                if server.poll() is not None:
                    raise SystemExit(f"{' '.join(command)} ended") from None
                time.sleep(0.02)
        yield time.perf_counter() - start
    finally:
        server.terminate()
        server.wait(timeout=60)


def vllm_environment() -> dict[str, str]:
    """All cores: by itself it leaves one to its server, and computes on one core of two."""
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    return {"VLLM_CPU_KVCACHE_SPACE": "4", "VLLM_CPU_OMP_THREADS_BIND": cores}


def serve_rows(args: argparse.Namespace, model: Path, work: Path) -> list[Row]:
    """Start, output rate and time to first token of each server."""
    quire = [sys.executable, "-m", "quire", "serve", str(model), "--max-model-len", "2048"]
    quire += ["--no-enable-prefix-caching", "--port", str(args.port)]
    with tempfile.TemporaryDirectory() as empty:
        cases = [
            ("quire, first start", quire, {"XDG_CACHE_HOME": empty}),
            ("quire", quire, {}),
            ("quire, int8", [*quire, "--quantization", "int8"], {}),
        ]
        if args.vllm:
            vllm = [args.vllm, "-m", "vllm.entrypoints.cli.main", "serve", str(model), "--max-model-len", "2048"]
            vllm += ["--dtype", "bfloat16", "--no-enable-prefix-caching", "--port", str(args.port)]
            cases.append(("vLLM CPU", vllm, vllm_environment()))
        rows = []
        for name, command, env in cases:
            with served(command, args.port, env) as ready:
                url = f"http://127.0.0.1:{args.port}/v1"
                found = run(sys.executable, "load.py", url, model, work, CONCURRENCY, args.rounds)["rounds"]
            rate, ttft = max(r["out_tok_s"] for r in found), min(r["ttft"] for r in found)
            tpot = min(r["tpot"] for r in found)
            rows.append((name, f"{ready:.1f}", f"{rate:,.0f}", f"{ttft * 1e3:,.0f}", f"{tpot * 1e3:.1f}"))
    return rows


def offline_rows(args: argparse.Namespace, model: Path, work: Path) -> list[Row]:
    """All prompts together, and one stream."""
    found = {
        "quire": run(sys.executable, "quire_offline.py", model, work, args.rounds),
        "quire, kernels of torch": run(
            sys.executable, "quire_offline.py", model, work, args.rounds, "cpu_kernels=torch"
        ),
        "quire, int8": run(sys.executable, "quire_offline.py", model, work, args.rounds, "quantization=int8"),
        "transformers": run(sys.executable, "transformers_offline.py", model, work, min(2, args.rounds)),
    }
    if args.vllm:
        env = vllm_environment()
        found["vLLM CPU"] = run(args.vllm, "vllm_offline.py", model, work, args.rounds, env=env)
    if args.llama:
        for kind in ("bf16", "q8_0"):
            arguments = (model, model / f"{kind}.gguf", kind, work, args.rounds)
            found[f"llama.cpp {kind}"] = run(args.llama, "llama_cpp_stream.py", *arguments)
    rows = []
    for name, result in found.items():
        many = f"{MANY * (PROMPT_LEN + MANY_LEN) / min(result['many']):,.0f}" if "many" in result else "-"
        rows.append((f"{name} ({result['version']})", many, f"{ONE_LEN / min(result['one']):.1f}"))
    return rows


def one_stream_rows(args: argparse.Namespace, model: Path, work: Path) -> list[Row]:
    """The larger shape, one stream, prompt included."""
    found = {
        "quire": run(sys.executable, "quire_offline.py", model, work, args.rounds),
        "quire, int8": run(sys.executable, "quire_offline.py", model, work, args.rounds, "quantization=int8"),
    }
    for kind in ("bf16", "q8_0") if args.llama else ():
        arguments = (model, model / f"{kind}.gguf", kind, work, args.rounds)
        found[f"llama.cpp {kind}"] = run(args.llama, "llama_cpp_stream.py", *arguments)
    return [(name, f"{ONE_LEN / min(result['one']):.1f}") for name, result in found.items()]


def step_rows(steps: dict[str, dict[str, Any]], models: Path) -> list[Row]:
    """Decode of one request against the time that reading the weights takes at the measured bandwidth."""
    rows = []
    for name, result in steps.items():
        config = json.loads((models / name.split(",")[0] / "config.json").read_text())
        embedding = 2 * config["vocab_size"] * config["hidden_size"]  # bytes; looked up, not read through
        read = result["weights_bytes"] - embedding
        floor = result["machine"]["read_gb_s"] * 1e9 / read
        rate = 1 / result["batches"][0]["step"]
        prompt = max(case["prompt_tok_s"] for case in (*result["batches"], *result["contexts"]))
        rows.append((name, f"{read / 1e6:.0f}", f"{rate:.1f}", f"{floor:.1f}", f"{rate / floor:.0%}", f"{prompt:,.0f}"))
    return rows


def table(head: Row, rows: list[Row]) -> str:
    """Markdown."""
    lines = [head, ["---" for _ in head], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def draw(steps: dict[str, dict[str, Any]], out: Path) -> None:
    """Two plots: throughput by batch, and by context."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    for key, label, name in (
        ("batches", "requests at once (128 tokens each)", "batch"),
        ("contexts", "tokens of context, one request", "context"),
    ):
        figure, axis = pyplot.subplots(figsize=(6, 4))
        for model, result in steps.items():
            x = [case["requests" if key == "batches" else "context"] for case in result[key]]
            axis.plot(x, [case["requests"] / case["step"] for case in result[key]], marker="o", label=model)
        axis.set(xscale="log", yscale="log", xlabel=label, ylabel="output tokens per second")
        axis.set_xticks(x, [str(n) for n in x])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend()
        figure.tight_layout()
        figure.savefig(out / f"{name}.png", dpi=120)


def steps_part(args: argparse.Namespace, models: Path, work: Work) -> dict[str, Any]:
    """Steps of the worker alone, and what the machine can do."""
    few = ("--batches", "1,2,4,8,16,32,64")
    cases = ((SMALL, ()), (f"{SMALL}, int8", INT8), (LARGE, few), (f"{LARGE}, int8", (*INT8, *few)))
    from quire.launch.start import ENVIRONMENT  # what a worker's process gets

    def steps(name: str, flags: tuple[str, ...]) -> dict[str, Any]:
        return run(sys.executable, "steps.py", models / name.split(",")[0], *flags, env=ENVIRONMENT)

    return {name: steps(name, flags) for name, flags in cases}


PARTS_RUN = {
    "steps": steps_part,
    "offline": lambda args, models, work: offline_rows(args, models / SMALL, work.many),
    "stream": lambda args, models, work: one_stream_rows(args, models / LARGE, work.alone),
    "servers": lambda args, models, work: serve_rows(args, models / SMALL, work.many),
}


def measure(args: argparse.Namespace, models: Path) -> dict[str, Any]:
    """Run the wanted parts; these and what was kept of others."""
    work = write_work(models)
    kept_path = args.out / "parts.json"
    kept: dict[str, Any] = json.loads(kept_path.read_text()) if kept_path.exists() else {}
    for name in args.only:
        before = os.getloadavg()[0]
        found = PARTS_RUN[name](args, models, work)
        when = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
        kept[name] = {
            "found": found,
            "load": f"{name}: {when} UTC, load {before:.1f} before, {os.getloadavg()[0]:.1f} after",
        }
        kept_path.write_text(json.dumps(kept, indent=1))
    return kept


def write_work(models: Path) -> Work:
    """The requests, in files that every engine's script reads."""
    sys.path.append(str(PARTS))
    from models import prompts

    threads = len(os.sched_getaffinity(0))
    sizes = {"many": prompts(MANY, PROMPT_LEN), "many_len": MANY_LEN, "one_len": ONE_LEN, "threads": threads}
    work = Work(models / "prompts.json", models / "prompt.json")
    work.many.write_text(json.dumps(sizes))
    work.alone.write_text(json.dumps({**sizes, "many": sizes["many"][:1], "many_len": 8}))
    return work


def report(args: argparse.Namespace, kept: dict[str, Any], models: Path) -> str:
    """The page and the plots."""
    missing = [name for name in PARTS_RUN if name not in kept]
    if missing:
        return f"Nothing is written until these parts have run too: {', '.join(missing)}."
    found = {name: part["found"] for name, part in kept.items()}
    steps = found["steps"]
    machine = {key: max(s["machine"][key] for s in steps.values()) for key in ("read_gb_s", "bf16_gflop_s")}
    for result in steps.values():
        result["machine"] = machine
    draw(steps, args.out)
    threads = len(os.sched_getaffinity(0))
    page = PAGE.format(
        machine=f"{_processor()}, {threads} cores; reads {machine['read_gb_s']:.1f} GB/s, bf16 products"
        f" {machine['bf16_gflop_s']:,.0f} GFLOP/s (oneDNN's best). {next(iter(steps.values()))['device']}.",
        load="; ".join(kept[name]["load"] for name in PARTS_RUN),
        offline=table(("engine", "64 prompts, total tok/s", "one stream, output tok/s"), found["offline"]),
        larger=table(("engine", "one stream, output tok/s"), found["stream"]),
        servers=table(("server", "exec to ready, s", "output tok/s", "TTFT p50, ms", "TPOT p50, ms"), found["servers"]),
        steps=table(
            ("worker", "weights read, MB", "decode tok/s", "floor", "share of bandwidth", "best prompt tok/s"),
            step_rows(steps, models),
        ),
        python=platform.python_version(),
        rounds=args.rounds,
    )
    (args.out / "README.md").write_text(page)
    return page


PAGE = """# On a CPU

{machine}
Parts: {load}. Best of {rounds} rounds, each engine in its own process, one after the other; Python {python}.

## 125 M Llama shape, bf16: 64 prompts of 128 tokens with 64 new ones; one stream of 128 with 128

{offline}

## The same shape behind a server: 64 streaming requests, 16 at once, the client on the same cores

{servers}

## Qwen3-0.6B shape, one stream of 128 tokens with 128 new ones

{larger}

## The worker alone: one request, against the time that reading its weights takes

{steps}

![throughput by batch](batch.png) ![throughput by context](context.png)

Command: `python benchmarks/cpu.py --vllm PYTHON --llama PYTHON`
"""


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _parts(text: str) -> tuple[str, ...]:
    unknown = set(text.split(",")) - set(PARTS_RUN)
    if unknown:
        raise argparse.ArgumentTypeError(f"{sorted(unknown)[0]!r}: use {', '.join(PARTS_RUN)}")
    return tuple(text.split(","))


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--vllm", help="the Python of an environment with vLLM's CPU build")
    parser.add_argument("--llama", help="the Python of an environment with llama-cpp-python and gguf")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cpu")
    parser.add_argument("--models", type=Path, help="where the checkpoints are kept; default: a folder for this run")
    parser.add_argument("--only", type=_parts, default=tuple(PARTS_RUN), help="some parts, by commas")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--port", type=int, default=8231)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        models = args.models or Path(folder)
        models.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-W", "ignore", str(PARTS / "models.py"), str(models)], check=True)
        print(report(args, measure(args, models), models))


if __name__ == "__main__":
    main()
