"""On a real GPU: the same outputs as transformers, and the memory promise kept, measured from outside by NVML."""

from __future__ import annotations

import ctypes
import json
import random
import threading
import time
from pathlib import Path

import checkpoints
import pytest
import torch
from transformers import AutoModelForCausalLM

from quire import LLM, BeamSearchParams, SamplingParams
from quire.checkpoint import read_facts
from quire.config import build_engine_config
from quire.demo import model_path
from quire.errors import ConfigError
from quire.messages import NewBlocks, NewRow, StepPlan, pack_ids
from quire.worker.worker import Worker

STEPS = 64


class Nvml:
    """Used and total bytes of GPU 0, all processes together."""

    class _Memory(ctypes.Structure):
        _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]

    def __init__(self) -> None:
        self._lib = ctypes.CDLL("libnvidia-ml.so.1")
        self._lib.nvmlInit_v2()
        self._handle = ctypes.c_void_p()
        assert self._lib.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(self._handle)) == 0

    def read(self) -> tuple[int, int]:
        memory = self._Memory()
        assert self._lib.nvmlDeviceGetMemoryInfo(self._handle, ctypes.byref(memory)) == 0
        return memory.used, memory.total


class Peak(threading.Thread):
    """The most memory in use while it runs."""

    def __init__(self, nvml: Nvml) -> None:
        super().__init__(daemon=True)
        self._nvml, self._on, self.used = nvml, True, 0
        self.start()

    def run(self) -> None:
        while self._on:
            self.used = max(self.used, self._nvml.read()[0])
            time.sleep(0.005)

    def stop(self) -> int:
        self._on = False
        self.join()
        return self.used


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shape of Llama-3.1-8B, 8 layers of it: config and tokenizer only, for dummy weights."""
    folder = tmp_path_factory.mktemp("wide")
    checkpoints.write("llama31", folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 8,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 32768,
        "dtype": "bfloat16", "torch_dtype": "bfloat16",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("utilization", [0.3, 0.6, 0.9, 0.97])
def test_the_peak_stays_below_the_promise_and_all_comes_back(wide_model: Path, utilization: float) -> None:
    nvml = Nvml()
    before, total = nvml.read()
    rng = random.Random(0)
    peak = Peak(nvml)
    with LLM(model=str(wide_model), load_format="dummy", gpu_memory_utilization=utilization, max_model_len=8192) as llm:
        for count, length, params in (
            (256, 500, {"temperature": 0.8, "top_p": 0.9, "presence_penalty": 0.1, "logprobs": 5}),
            (32, 7000, {"temperature": 0}),
        ):
            prompts = [[rng.randrange(100_000) for _ in range(length)] for _ in range(count)]
            outputs = llm.generate(prompts, SamplingParams(max_tokens=8, ignore_eos=True, **params), use_tqdm=False)
            assert all(len(o.outputs[0].token_ids) == 8 for o in outputs)
    used = peak.stop()
    print(f"peak {(used - before) >> 20} MiB of {int(utilization * total) >> 20} promised, {before >> 20} before")
    assert used - before <= utilization * total
    assert used - before >= (utilization - 0.05) * total, "and it is not left unused"
    time.sleep(0.5)
    assert nvml.read()[0] - before < 50 << 20


def test_a_share_that_others_hold_is_refused_with_a_number(wide_model: Path) -> None:
    total = torch.cuda.mem_get_info()[1]
    hog = torch.empty(int(total * 0.5), dtype=torch.uint8, device="cuda")
    try:
        with pytest.raises(ConfigError, match=r"--gpu-memory-utilization 0\.4\d"):
            LLM(model=str(wide_model), load_format="dummy", gpu_memory_utilization=0.9)
        with LLM(model=str(wide_model), load_format="dummy", gpu_memory_utilization=0.4, max_model_len=1024) as llm:
            assert llm.generate([[1, 2, 3]], SamplingParams(max_tokens=4, ignore_eos=True), use_tqdm=False)[0].finished
    finally:
        del hog
        torch.cuda.empty_cache()


@pytest.mark.parametrize("family", checkpoints.FAMILIES)
def test_greedy_and_logprobs(family: str, tmp_path: Path) -> None:
    """As on the CPU; where two logits differ by less than float32 noise, either may be taken."""
    checkpoints.write(family, tmp_path)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager")
    reference = reference.eval().cuda()
    rng = random.Random(0)
    prompts = [[rng.randrange(4, 500) for _ in range(rng.randint(1, 90))] for _ in range(50)]
    params = SamplingParams(temperature=0, max_tokens=STEPS, ignore_eos=True, logprobs=3, detokenize=False)
    small = {"max_num_batched_tokens": 40, "max_num_seqs": 32, "num_gpu_blocks_override": 60, "block_size": 8}
    for settings in ({}, small):
        with LLM(str(tmp_path), dtype="float32", max_model_len=256, gpu_memory_utilization=0.2, **settings) as llm:
            outputs = llm.generate(prompts, params, use_tqdm=False)
        for output in outputs:
            completion = output.outputs[0]
            ids = torch.tensor([output.prompt_token_ids + completion.token_ids], device="cuda")
            with torch.inference_mode():
                logits = reference(ids).logits[0, len(output.prompt_token_ids) - 1 : -1].float()
            expected = torch.log_softmax(logits, dim=1)
            chosen = expected.gather(1, torch.tensor(completion.token_ids, device="cuda")[:, None])[:, 0]
            assert float((expected.amax(dim=1) - chosen).max()) < 1e-4
            for position, entry in enumerate(completion.logprobs):
                for token, logprob in entry.items():
                    assert abs(logprob.logprob - float(expected[position, token])) < 1e-4


def generate(folder: Path, prompts: list[list[int]], steps: int = STEPS, **settings: object) -> list[list[int]]:
    """Greedy tokens, from an engine of these settings."""
    params = SamplingParams(temperature=0, max_tokens=steps, ignore_eos=True, detokenize=False)
    with LLM(str(folder), max_model_len=512, gpu_memory_utilization=0.2, **settings) as llm:
        return [o.outputs[0].token_ids for o in llm.generate(prompts, params, use_tqdm=False)]


def test_bfloat16_agrees_with_transformers() -> None:
    """Teacher-forced: the share of our tokens that transformers chooses at the same place, in bfloat16 too.

    By the demo model, which was trained: a random one has next to no preference among its tokens.
    """
    reference = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.bfloat16).eval().cuda()
    rng = random.Random(0)
    sentence = "Tell me a story about a fox and the sea . Count from three to nine . What is 12 + 30 ?"
    words = sentence.split()
    texts = ["Once upon a time", *(" ".join(rng.choices(words, k=rng.randint(3, 20))) for _ in range(127))]
    chats = [[{"role": "user", "content": text}] for text in texts]
    with LLM("demo", dtype="bfloat16", gpu_memory_utilization=0.2) as llm:
        outputs = llm.chat(chats, SamplingParams(temperature=0, max_tokens=64), use_tqdm=False)
    same = total = 0
    for output in outputs:
        prompt, tokens = list(output.prompt_token_ids), output.outputs[0].token_ids
        with torch.inference_mode():
            logits = reference(torch.tensor([prompt + list(tokens)], device="cuda")).logits[0, len(prompt) - 1 : -1]
        same += int((logits.argmax(dim=1).cpu() == torch.tensor(tokens)).sum())
        total += len(tokens)
    print(f"{same} of {total} tokens agree, {same / total:.4f}")
    assert same / total >= 0.99


@pytest.mark.parametrize("family", ["llama31", "qwen3", "mistral"])
def test_ways_that_must_not_matter(family: str, tmp_path: Path) -> None:
    """Captured or not, prompts whole or in pieces, prefix found or not: the same tokens, in float32."""
    checkpoints.write(family, tmp_path)
    rng = random.Random(1)
    shared = [rng.randrange(4, 500) for _ in range(100)]
    prompts = [shared + [rng.randrange(4, 500) for _ in range(rng.randint(1, 90))] for _ in range(40)]
    first = generate(tmp_path, prompts, dtype="float32")
    ways = (
        {"enforce_eager": True},
        {"max_num_batched_tokens": 64, "max_num_seqs": 16},
        {"enable_prefix_caching": False},
        {"mixed_step_tokens": 0},
        {"block_size": 32},
    )
    for way in ways:
        assert generate(tmp_path, prompts, dtype="float32", **way) == first, way


def test_twenty_rounds_leave_the_memory_as_it_was(tmp_path: Path) -> None:
    checkpoints.write("llama31", tmp_path)
    nvml = Nvml()
    generate(tmp_path, [[5, 6, 7]], steps=4)
    time.sleep(0.5)
    before = nvml.read()[0]
    for _ in range(20):
        generate(tmp_path, [[5, 6, 7]], steps=4)
    time.sleep(0.5)
    assert abs(nvml.read()[0] - before) < 20 << 20


def test_no_step_waits_for_the_gpu(tmp_path: Path) -> None:
    """CUDA's own check, over captured and eager steps with prompts, decodes and every kind of sampling."""
    checkpoints.write("qwen3", tmp_path)
    config = build_engine_config({"model": str(tmp_path), "max_model_len": 256, "gpu_memory_utilization": 0.1})
    worker = Worker(config, tmp_path, read_facts(tmp_path), lambda *_: None)
    kinds = [{"temperature": 0}, {"temperature": 0.9, "top_p": 0.9}, {"presence_penalty": 0.5}, {"logprobs": 2}]

    def plan(number: int, *, new: bool, rows: int) -> StepPlan:
        counts, starts = ([40] * rows, [0] * rows) if new else ([1] * rows, [39 + number] * rows)
        new_rows, new_blocks = [], []
        for row in range(rows if new else 0):
            params = SamplingParams(max_tokens=50, seed=1, **kinds[row % 4])
            new_rows.append(NewRow(row, pack_ids(range(5, 45)), 40, 0, params, [2]))
            new_blocks.append(NewBlocks(row, 0, list(range(1 + row * 6, 7 + row * 6))))
        rows_list = list(range(rows))
        return StepPlan(number, new_rows, new_blocks, rows_list, starts, counts, rows_list)

    for checked in (False, True):  # the first round compiles and captures, which may wait
        for rows in (1, 3, 4, 8):
            pending = []
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error" if checked else "default")
            try:
                for number in range(4):
                    step = plan(number, new=number == 0, rows=rows)
                    worker.forward(step)
                    pending.append(worker.sample(step, {}))
                    if len(pending) > 2:
                        pending.pop(0)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            for left in pending:
                left.wait()


def test_prompt_scores_and_candidates(tmp_path: Path) -> None:
    """Scores of prompts longer than one pass, in chunks, beside requests whose steps are captured."""
    theirs = checkpoints.write("llama31", tmp_path)
    rng = random.Random(3)
    prompts = [[rng.randrange(4, checkpoints.VOCAB) for _ in range(length)] for length in (1, 30, 400, 300, 60)]
    shared = {"temperature": 0, "max_tokens": 8, "ignore_eos": True}
    params = [SamplingParams(**shared, prompt_logprobs=most) for most in (2, 0, 5, None, -1)]
    with LLM(model=str(tmp_path), dtype="float32", max_num_batched_tokens=320, max_num_seqs=64, max_logprobs=-1) as llm:
        for output, asked in zip(llm.generate(prompts, params, use_tqdm=False), params, strict=True):
            ids = output.prompt_token_ids
            if asked.prompt_logprobs is None:
                assert output.prompt_logprobs is None
                continue
            with torch.inference_mode():
                expected = torch.log_softmax(theirs(torch.tensor([ids])).logits[0].float(), dim=1)
            assert len(output.prompt_logprobs) == len(ids)
            for position, entry in enumerate(output.prompt_logprobs[1:]):
                line = expected[position]
                for token, found in entry.items():
                    assert abs(found.logprob - float(line[token])) < 1e-3
                assert ids[position + 1] in entry
                assert abs(entry[ids[position + 1]].rank - 1 - int((line > line[ids[position + 1]]).sum())) <= 1
        llm.reset_prefix_cache()
        before, size = llm.stats().num_step_tokens, llm.ready.block_size
        sampled = SamplingParams(n=8, best_of=16, temperature=1, seed=1, max_tokens=4, ignore_eos=True)
        [output] = llm.generate([prompts[2]], sampled, use_tqdm=False)
        found = [completion.cumulative_logprob for completion in output.outputs]
        assert len(found) == 8 and found == sorted(found, reverse=True)
        assert llm.stats().num_step_tokens - before <= 400 + 15 * size + 16 * 5
        beams = llm.beam_search([prompts[1]], BeamSearchParams(beam_width=4, max_tokens=6, ignore_eos=True))
        assert len(beams[0].sequences) == 4
        for beam in beams[0].sequences:
            with torch.inference_mode():
                line = torch.log_softmax(theirs(torch.tensor([beam.tokens])).logits[0].float(), dim=1)
            total = sum(float(line[i, beam.tokens[i + 1]]) for i in range(len(prompts[1]) - 1, len(beam.tokens) - 1))
            assert abs(beam.cum_logprob - total) < 1e-2
