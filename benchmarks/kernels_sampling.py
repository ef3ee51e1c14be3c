"""The sampling kernels on a GPU: first right, then how fast.

    python benchmarks/kernels_sampling.py [--splits N]

Checks the kernels beside their plain twins at real sizes (bf16 and fp32; flat, peaked and tied logits; mixed rows),
then times them in CUDA graphs: medians over replays, with inputs rotated so that the L2 cache holds none of them.
The last lines are a table. Any difference beyond rounding ends the run with an error.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from quire import SamplingParams
from quire.messages import NewRow, pack_ids
from quire.worker.kernels import sampling as kernels
from quire.worker.kernels import sampling_fused as fused_kernels
from quire.worker.sampling.fused import FusedSampler
from quire.worker.sampling.logprobs import gather_logprobs
from quire.worker.sampling.protocol import SamplingBatch
from quire.worker.sampling.sampler import Sampler

DEVICE = torch.device("cuda")
VOCABS = (128_256, 151_936)
BATCHES = (1, 8, 64, 256)
KINDS = ("flat", "peaked", "tied")
PLAIN = [
    {"temperature": 0},
    {},
    {"temperature": 0.6},
    {"top_k": 50},
    {"top_p": 0.9},
    {"min_p": 0.05},
    {"top_k": 1},
    {"top_k": 20_000, "top_p": 0.95},
    {"temperature": 0.7, "top_p": 0.8, "top_k": 20},
    {"temperature": 1.5, "top_p": 0.99, "min_p": 0.001},
]
ADJUSTED = [
    *PLAIN,
    {"presence_penalty": 1.0, "top_p": 0.9},
    {"repetition_penalty": 1.2, "temperature": 0},
    {"frequency_penalty": 0.3, "top_k": 100},
    {"min_tokens": 12, "top_p": 0.95},
]
REPLAYS = 15
POSITION = 48
"""Of the next token of every row."""


def logits_of(rows: int, vocab: int, dtype: torch.dtype, kind: str, seed: int = 0) -> torch.Tensor:
    """flat: the nucleus is most of the vocabulary | peaked: some tokens stand out, as in text | tied: few values."""
    torch.manual_seed(seed)
    x = torch.randn(rows, vocab, device=DEVICE)
    if kind == "peaked":
        x = x * 2
        x[:, torch.randint(vocab, (40,), device=DEVICE)] += 8 + 4 * torch.rand(40, device=DEVICE)
    elif kind == "tied":
        x = (x * 2).round()
    return x.to(dtype)


def new_row(row: int, vocab: int, params: dict) -> NewRow:
    """A row with a prompt and some output."""
    tokens = [(row * 7919 + 31 * i) % vocab for i in range(40)]
    return NewRow(row, pack_ids([*tokens, *tokens[:7], 3]), 40, 0, SamplingParams(**{"seed": row, **params}), [5, 9])


def filled(samplers: list, rows: int, vocab: int, wishes: list[dict]) -> None:
    """Give each row a wish, in turn."""
    for row in range(rows):
        for sampler in samplers:
            sampler.start_row(new_row(row, vocab, wishes[row % len(wishes)]))


def batch_of(rows: list[int], position: int) -> SamplingBatch:
    """The rows at one position."""
    index = torch.tensor(rows, device=DEVICE)
    return SamplingBatch(index, torch.full_like(index, position), tuple(rows), {})


def check(vocab: int, dtype: torch.dtype) -> list[str]:
    """What differs from the twins, and how often, over all kinds and batch sizes."""
    rows = max(BATCHES)
    drawn = different = uneven = 0
    for wishes in (PLAIN, ADJUSTED):
        plain, fused = Sampler(rows, vocab, DEVICE), FusedSampler(rows, vocab, DEVICE)
        scratch = fused._fused_scratch
        for kind in KINDS:
            logits = logits_of(rows, vocab, dtype, kind)
            for buffer in (scratch.sums, scratch.masses, scratch.candidates):
                buffer.fill_(torch.nan)
            filled([plain, fused], rows, vocab, wishes)
            together = fused(logits, batch_of([*range(rows)], POSITION)).token_ids
            expected = plain(logits, batch_of([*range(rows)], POSITION)).token_ids
            drawn += rows
            different += int((together != expected).sum())
            for n in BATCHES[:-1]:
                filled([fused], rows, vocab, wishes)  # what was sampled counts for penalties
                some = [(37 * i + n) % rows for i in range(n)]
                alone = fused(logits[some], batch_of(some, POSITION)).token_ids
                uneven += int((alone != together[some]).sum())
        assert not scratch.counters.any()
    for kind in KINDS:
        for n in BATCHES:
            logits = logits_of(n, vocab, dtype, kind, seed=1)
            scratch = kernels.Scratch(n, DEVICE)
            tokens = torch.empty(n, dtype=torch.int64, device=DEVICE)
            assert torch.equal(kernels.argmax(logits, scratch, tokens), kernels.argmax_twin(logits)), (kind, n)
            lines = torch.arange(n, device=DEVICE)
            found = kernels.logprobs(logits, lines, tokens, scratch)
            twin = kernels.logprobs_twin(logits, lines, tokens)
            torch.testing.assert_close(found[0], twin[0], atol=1e-4, rtol=1e-4)
            assert torch.equal(found[2], twin[2])
    assert uneven == 0, f"{uneven} tokens depend on the batch"
    assert different <= max(2, drawn // 500), f"{different} of {drawn} tokens differ from the twin's"
    return [f"vocab {vocab} {str(dtype)[6:]}: {drawn} tokens, {different} differ from the twin, 0 depend on the batch"]


def check_law(vocab: int) -> str:
    """60,000 draws of one peaked row with top-p fall where the probabilities say."""
    from scipy.stats import chisquare

    fused = FusedSampler(256, vocab, DEVICE)
    fused.start_row(new_row(0, vocab, {"top_p": 0.9, "temperature": 0.9}))
    row = logits_of(1, vocab, torch.bfloat16, "peaked", seed=3)
    logits = row.expand(256, vocab).contiguous()
    rows = torch.zeros(256, dtype=torch.int64, device=DEVICE)
    draws = 240
    counts = torch.zeros(vocab, device=DEVICE)
    for step in range(draws):
        positions = torch.arange(256, device=DEVICE) + 256 * step
        batch = SamplingBatch(rows, positions, (0,) * 256, {})
        counts += torch.bincount(fused(logits, batch).token_ids, minlength=vocab)
    probabilities, order = (row[0].double() / 0.9).softmax(0).sort(descending=True)
    kept = (probabilities.cumsum(0) - probabilities < 0.9).sum()
    smallest = probabilities[kept - 1]
    law = torch.zeros(vocab, dtype=torch.float64, device=DEVICE)
    law[order] = probabilities.where(probabilities >= smallest, 0)
    expected = law / law.sum() * draws * 256
    assert counts[expected == 0].sum() == 0, "a token was drawn that was cut off"
    large = expected >= 5
    observed, wanted = counts[large].cpu().numpy(), expected[large].cpu().numpy()
    chance = chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue
    assert chance > 1e-5, chance
    return f"law over {int(large.sum())} tokens: chi-square p = {chance:.3f}"


def microseconds(calls: list[Callable[[], object]]) -> float:
    """Median time of one call, from a graph of at least 16, each input in turn."""
    inside = -(-16 // len(calls))
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(inside):
            for call in calls:
                call()
    graph.replay()
    times = []
    for _ in range(REPLAYS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1000)
    return statistics.median(times) / (inside * len(calls))


def timings(vocab: int, dtype: torch.dtype) -> list[str]:
    """A line for each kernel, kind of logits and batch size."""
    cases: list[tuple[str, str, dict]] = [
        ("greedy", "flat", {"temperature": 0}),
        ("fused: temperature", "flat", {"temperature": 0.8}),
        ("fused: top_p 0.9", "peaked", {"top_p": 0.9}),
        ("fused: top_p 0.9", "flat", {"top_p": 0.9}),
        ("fused: top_k 50", "flat", {"top_k": 50}),
        ("fused: k 20, p 0.8, t 0.7", "peaked", {"temperature": 0.7, "top_p": 0.8, "top_k": 20}),
        ("fused: min_p 0.05", "peaked", {"min_p": 0.05}),
        ("adjusted: presence, top_p 0.9", "peaked", {"presence_penalty": 1.0, "top_p": 0.9}),
        ("adjusted: greedy, presence", "flat", {"presence_penalty": 1.0, "temperature": 0}),
    ]
    lines = []
    bytes_each = vocab * torch.finfo(dtype).bits // 8
    copies = {n: max(2, -(-100_000_000 // (n * bytes_each))) for n in BATCHES}  # twice what the L2 cache holds
    inputs = {
        (kind, n): [logits_of(n, vocab, dtype, kind, seed=i) for i in range(copies[n])]
        for kind in ("flat", "peaked")
        for n in BATCHES
    }
    for name, kind, params in cases:
        cells = []
        for n in BATCHES:
            fused = FusedSampler(n, vocab, DEVICE)
            filled([fused], n, vocab, [params])
            fused.flush()
            variant = fused.variant(range(n))
            rows = torch.arange(n, device=DEVICE)
            lens = torch.full((n + 1,), 48, dtype=torch.int32, device=DEVICE)
            calls = [lambda x=x, f=fused, v=variant, r=rows, s=lens: f.sample(v, x, r, s) for x in inputs[kind, n]]
            us = microseconds(calls)
            cells.append(f"{us:8.1f} {n * bytes_each / us / 1e3:6.0f}")
        lines.append(f"{name:30s} {kind:7s} {str(dtype)[6:]:9s} " + " |".join(cells))
    return lines


def plain_times(vocab: int) -> list[str]:
    """The plain sampler on this GPU, for comparison; not in a graph."""
    n = 256
    lines = []
    logits = logits_of(n, vocab, torch.bfloat16, "flat")
    for name, params in (("greedy", {"temperature": 0}), ("top_p 0.9", {"top_p": 0.9})):
        plain = Sampler(n, vocab, DEVICE)
        filled([plain], n, vocab, [params])
        batch = batch_of([*range(n)], 48)
        times = []
        for _ in range(6):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            plain(logits, batch)
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) * 1000)
        lines.append(f"plain sampler, {name}, n = {n}: {statistics.median(times):.0f} us")
    return lines


def host_times(vocab: int) -> list[str]:
    """What a launch costs the host outside of graphs, and what `variant` and `flush` do."""
    n = 64
    fused = FusedSampler(n, vocab, DEVICE)
    logits = logits_of(n, vocab, torch.bfloat16, "flat")
    rows, lens = torch.arange(n, device=DEVICE), torch.full((n + 1,), 48, dtype=torch.int32, device=DEVICE)
    lines = []
    for variant, params in (("greedy", {"temperature": 0}), ("fused", {"top_p": 0.9})):
        filled([fused], n, vocab, [params])
        fused.flush()

        def call(variant: str = variant) -> None:
            fused.sample(variant, logits, rows, lens)

        def look() -> None:
            fused.variant(range(n))

        cells = []
        for action in (call, look):
            action()
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(50):
                action()
            cells.append((time.perf_counter() - start) / 50 * 1e6)
            torch.cuda.synchronize()
        lines.append(f"host, n = {n}, {variant}: launch {cells[0]:.0f} us, variant() {cells[1]:.0f} us")
    return lines


def check_gathered() -> str:
    """Log-probabilities as a whole, beside the plain way."""
    sampler = FusedSampler(8, VOCABS[0], DEVICE)
    logits = logits_of(8, VOCABS[0], torch.bfloat16, "peaked")
    tokens = logits.float().argmax(1)
    wanted = ((0, 5), (3, 20), (7, 0))
    found, twin = sampler._logprobs(logits, tokens, wanted), gather_logprobs(logits, tokens, wanted)
    torch.testing.assert_close(found.logprobs, twin.logprobs, atol=1e-4, rtol=1e-4)
    assert torch.equal(found.ranks, twin.ranks)
    return "log-probabilities as the twin's"


@torch.inference_mode()
def main() -> None:
    """Check, then time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=int, help="programs per row in every fused launch (1, 2, 4, 8 or 16)")
    parser.add_argument("--times-only", action="store_true", help="skip the checks")
    arguments = parser.parse_args()
    if arguments.splits:
        fused_kernels.splits_for = lambda *_: arguments.splits
    begin = time.perf_counter()
    report: list[str] = []
    if not arguments.times_only:
        for vocab in VOCABS:
            for dtype in (torch.bfloat16, torch.float32) if vocab == VOCABS[0] else (torch.bfloat16,):
                report += check(vocab, dtype)
                print(report[-1], flush=True)
        report += [check_law(VOCABS[0]), check_gathered()]
        print("\n".join(report[-2:]), flush=True)
    notes = host_times(VOCABS[0]) + plain_times(VOCABS[0])
    print("\n".join(notes), flush=True)
    table = timings(VOCABS[0], torch.bfloat16)
    fp32 = timings(VOCABS[0], torch.float32)
    print(f"checked and timed in {time.perf_counter() - begin:.0f} s on {torch.cuda.get_device_name()}, torch "
          f"{torch.__version__}, vocabulary {VOCABS[0]}")  # fmt: skip
    print("us per call, and GB/s if the logits were read once")
    print(f"{'':48s} " + " |".join(f"{'n = ' + str(n):>15s}" for n in BATCHES))
    print("\n".join(table + fp32))


if __name__ == "__main__":
    main()
