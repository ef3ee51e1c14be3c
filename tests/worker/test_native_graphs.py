"""Repeated steps on a CPU give what steps run one by one give, whatever rows come and go."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from quire.checkpoint import read_facts
from quire.config import build_engine_config
from quire.demo import model_path
from quire.messages import NewBlocks, NewRow, StepPlan, StepResult, pack_ids
from quire.params import SamplingParams
from quire.worker.native_graphs import SIZES, NativeGraphs
from quire.worker.worker import Worker

PROMPT, STEPS, BLOCK, ROWS = 20, 25, 16, 18


def worker(**settings: object) -> Worker:
    values = {"model": str(model_path()), "max_model_len": 128, "num_gpu_blocks_override": 400, "max_num_seqs": ROWS}
    config = build_engine_config({**values, **settings})
    return Worker(config, model_path(), read_facts(model_path()), lambda *_: None)


def plans(seed: int, logprobs: int | None = 3) -> list[StepPlan]:
    """All rows read a prompt, then some of them decode in each step, in any order."""
    rng = random.Random(seed)
    params = SamplingParams(temperature=0, logprobs=logprobs)
    rows = list(range(ROWS))
    new = [NewRow(row, pack_ids([rng.randrange(5, 90) for _ in range(PROMPT)]), PROMPT, 0, params, []) for row in rows]
    per_row = 128 // BLOCK
    blocks = [NewBlocks(row, 0, list(range(1 + row * per_row, 1 + (row + 1) * per_row))) for row in rows]
    made = [StepPlan(0, new, blocks, rows, [0] * ROWS, [PROMPT] * ROWS, rows)]
    lens = [PROMPT] * ROWS
    for step in range(1, STEPS):
        chosen = rng.sample(rows, rng.choice([1, 1, 2, 3, 5, 8, 11, 16, 18]))
        made.append(
            StepPlan(step, [], [], chosen, [lens[r] for r in chosen], [1] * len(chosen), list(range(len(chosen))))
        )
        for row in chosen:
            lens[row] += 1
    return made


def run(one: Worker, steps: list[StepPlan]) -> list[StepResult]:
    results = []
    for plan in steps:
        one.forward(plan)
        results.append(one.sample(plan, {}).wait())
    return results


@pytest.mark.native
@pytest.mark.parametrize(
    "settings", [{"dtype": "float32"}, {}, {"quantization": "int8"}, {"quantization": "awq"}, {"cpu_kernels": "torch"}]
)
def test_repeated_steps_are_those_run_one_by_one(settings: dict[str, str]) -> None:
    repeating, plain = worker(**settings), worker(**settings, enforce_eager=True)
    graphs = repeating._runner.graphs
    assert len(graphs) == (settings.get("cpu_kernels") != "torch")
    assert plain._runner.graphs == ()
    for seed, logprobs in enumerate((3, None, 3)):  # without any the most likely token is found in the same call
        steps = plans(seed, logprobs)
        for found, expected in zip(run(repeating, steps), run(plain, steps), strict=True):
            assert found.token_ids == expected.token_ids
            for sample, logprobs in expected.logprobs.items():
                assert found.logprobs[sample].logprobs == pytest.approx(logprobs.logprobs, abs=1e-4)
    if graphs:
        assert isinstance(graphs[0], NativeGraphs)
        assert set(graphs[0]._programs) == set(SIZES)


FIRST_STEPS = """
import sys
sys.path.insert(0, {folder!r})
import test_native_graphs as here
one = here.worker()
here.run(one, here.plans(0))
assert one._runner.graphs[0]._programs, "a step was captured"
print([name for name in ("torch._dynamo", "torch._inductor", "sympy") if name in sys.modules])
"""


def test_the_first_steps_import_no_compiler() -> None:
    """It is a thousand modules: the first request would wait a second for them."""
    if worker()._runner.graphs == ():
        pytest.skip("no native kernels here")
    code = FIRST_STEPS.format(folder=str(Path(__file__).parent))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
