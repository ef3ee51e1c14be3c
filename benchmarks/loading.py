"""How fast weights are read, as a share of what the files give.

    python benchmarks/loading.py --gigabytes 8 --folder /tmp/x          # page cache: written just before
    python benchmarks/loading.py --gigabytes 60 --device cuda --cold    # disk: dropped from the cache each time

Makes a Llama of random weights in several shards, then times, each in a process of its own and in turns:

    floor   the files read by as many threads as the loader has, each into one buffer that it uses again
    fresh   the same into memory that is touched for the first time, as parameters are
    load    `load_model`: headers, parameters, reading, casting, and what each layer makes of its weights (--pack)

Prints the share of load in floor and in fresh, and the largest resident memory beyond the weights themselves.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

PIECE = 16 << 20
HIDDEN, INTERMEDIATE, VOCAB = 4096, 14336, 32000
LAYER_BYTES = 2 * (HIDDEN * HIDDEN * 2 + 2 * HIDDEN * 1024 + 3 * HIDDEN * INTERMEDIATE + 2 * HIDDEN)
KINDS = ("floor", "fresh", "load")
TOUCH = "import sys, numpy; numpy.ones(int(sys.argv[1]), numpy.uint8)"
"""Before memory is measured that nobody has touched, somebody has: a virtual machine may have given it to others, and
getting it back would be the slowest part by far."""


def make(folder: Path, gigabytes: float) -> None:
    """A checkpoint of about this size, one shard per four layers."""
    import torch
    from safetensors.torch import save_file

    layers = max(1, round((gigabytes * 1e9 - 4 * VOCAB * HIDDEN) / LAYER_BYTES))
    folder.mkdir(parents=True)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCAB, "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE, "num_hidden_layers": layers, "num_attention_heads": 32,
        "num_key_value_heads": 8, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    noise = torch.randn(1 << 24).mul_(0.02).bfloat16()

    def values(*shape: int) -> torch.Tensor:
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        return noise.repeat(-(-count // noise.numel()))[:count].view(*shape)

    index: dict[str, str] = {}
    for first in range(-1, layers, 4):
        part: dict[str, torch.Tensor] = {}
        if first < 0:
            part = {"model.embed_tokens.weight": values(VOCAB, HIDDEN), "lm_head.weight": values(VOCAB, HIDDEN),
                    "model.norm.weight": values(HIDDEN)}  # fmt: skip
        for layer in range(max(first, 0), min(max(first, 0) + (3 if first < 0 else 4), layers)):
            part |= {f"model.layers.{layer}.{name}.weight": values(*shape) for name, shape in _LAYER.items()}
        name = f"model-{first + 1:05d}.safetensors"
        save_file(part, folder / name)
        index |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


_LAYER = {
    "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (1024, HIDDEN), "self_attn.v_proj": (1024, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN), "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
    "mlp.up_proj": (INTERMEDIATE, HIDDEN), "mlp.down_proj": (HIDDEN, INTERMEDIATE),
    "input_layernorm": (HIDDEN,), "post_attention_layernorm": (HIDDEN,),
}  # fmt: skip


def read_all(folder: Path, *, fresh: bool) -> float:
    """Seconds in which plain threads read every byte."""
    import numpy as np

    from quire.worker.loading.stream import Stream

    with Stream(lambda count: None) as stream:
        threads = stream._num_threads
    files = [(os.open(path, os.O_RDONLY), path.stat().st_size) for path in sorted(folder.glob("*.safetensors"))]
    pieces = [(fd, at, min(PIECE, size - at)) for fd, size in files for at in range(0, size, PIECE)]
    whole = np.empty(sum(count for _, _, count in pieces), np.uint8) if fresh else None
    starts = [0]
    for _, _, count in pieces:
        starts.append(starts[-1] + count)

    def read(share: int) -> None:
        own = np.ones(PIECE, np.uint8)
        for number in range(share, len(pieces), threads):
            fd, at, count = pieces[number]
            target = own[:count] if whole is None else whole[starts[number] : starts[number] + count]
            view = memoryview(target)
            while view:
                done = os.preadv(fd, [view], at)
                view, at = view[done:], at + done

    begun = time.monotonic()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, range(threads)))
    return time.monotonic() - begun


def load(folder: Path, device: str, *, pack: bool) -> tuple[float, int]:
    """Seconds of `load_model`, and the bytes of all parameters."""
    import torch

    from quire.checkpoint import read_facts
    from quire.worker.attention.select import select_backend
    from quire.worker.kernels.select import kernels_for, native_library
    from quire.worker.layers.build import Build
    from quire.worker.models.load import load_model
    from quire.worker.quantization.none import Unquantized
    from quire.worker.quantization.select import select_scheme

    class AsItIs(Unquantized):
        def finish(self, layer: torch.nn.Module) -> None:
            pass

    place = torch.device(device)
    native = native_library(place, torch.bfloat16, "auto") if pack else None
    scheme = select_scheme(None, place, native) if pack else AsItIs()
    build = Build(torch.bfloat16, place, select_backend(place), scheme, kernels_for(place, native))
    if place.type == "cuda":
        torch.zeros(1, device=place)
    begun = time.monotonic()
    model = load_model(folder, read_facts(folder), build)
    if place.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.monotonic() - begun
    return seconds, sum(param.numel() * param.element_size() for param in model.parameters())


def drop_cache(folder: Path) -> None:
    """Ask the system to forget the files' pages."""
    for path in folder.glob("*.safetensors"):
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def run_one(options: argparse.Namespace) -> dict[str, Any]:
    """One measurement, in this process."""
    num_bytes = sum(path.stat().st_size for path in options.folder.glob("*.safetensors"))
    if options.one != "floor" and options.device == "cpu":
        subprocess.run([sys.executable, "-c", TOUCH, str(num_bytes)], check=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if options.one == "load":
        import torch  # noqa: F401 - its import is no loading

        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        seconds, param_bytes = load(options.folder, options.device, pack=options.pack)
        held = param_bytes if options.device == "cpu" else 0
    else:
        seconds, held = read_all(options.folder, fresh=options.one == "fresh"), 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "rate": num_bytes / seconds, "beyond": (peak - before) * 1024 - held}


def main() -> None:
    """Measure in turns."""
    from quire.launch.start import ENVIRONMENT

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=8)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/quire-loading"), help="kept if it is there before")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pack", action="store_true", help="let layers pack their weights, as serving on a CPU does")
    parser.add_argument("--cold", action="store_true", help="drop the files from the page cache before each run")
    parser.add_argument("--one", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(run_one(options)))
        return
    made = not options.folder.exists()
    if made:
        make(options.folder, options.gigabytes)
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    try:
        for _ in range(options.rounds):
            for kind in KINDS:
                if options.cold:
                    drop_cache(options.folder)
                command = [sys.executable, *sys.argv, "--one", kind]
                env = {**ENVIRONMENT, **os.environ}  # as the engine process has it
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=env)
                found[kind].append(json.loads(done.stdout))
                print(
                    f"{kind:6} {found[kind][-1]['seconds']:7.2f} s  {found[kind][-1]['rate'] / 1e9:6.2f} GB/s",
                    flush=True,
                )
    finally:
        if made:
            shutil.rmtree(options.folder, ignore_errors=True)
    rate = {kind: statistics.median(one["rate"] for one in found[kind]) for kind in KINDS}
    shares = {kind: rate["load"] / rate[kind] for kind in KINDS}
    beyond = max(one["beyond"] for one in found["load"]) / 1e6
    print(f"load is {shares['floor']:.0%} of the floor, {shares['fresh']:.0%} of fresh memory;"
          f" memory beyond weights {beyond:.0f} MB")  # fmt: skip


if __name__ == "__main__":
    main()
