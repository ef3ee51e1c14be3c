"""`LLM` against transformers on random checkpoints of every family, fp32 on the CPU.

Greedy tokens must be identical for 64 steps on 50 prompts, and each log-probability within 1e-4. The reference is one
teacher-forced forward of transformers per output: if its argmax at each position is our token, then by induction its
own greedy generation is ours. The same must hold when 32 requests run batched, in chunks and preempting each other.
"""

from __future__ import annotations

import random
from pathlib import Path

import checkpoints
import pytest
import torch
from transformers import AutoModelForCausalLM

from quire import LLM, RequestOutput, SamplingParams

STEPS = 64
GREEDY = SamplingParams(temperature=0, max_tokens=STEPS, ignore_eos=True, logprobs=3, detokenize=False)


def random_prompts(count: int, vocab: int, seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(4, vocab) for _ in range(rng.randint(1, 90))] for _ in range(count)]


def check(outputs: list[RequestOutput], reference: torch.nn.Module) -> None:
    for output in outputs:
        completion = output.outputs[0]
        assert len(completion.token_ids) == STEPS
        ids = torch.tensor([output.prompt_token_ids + completion.token_ids])
        with torch.inference_mode():
            logits = reference(ids).logits[0, len(output.prompt_token_ids) - 1 : -1].float()
        expected = torch.log_softmax(logits, dim=1)
        assert logits.argmax(dim=1).tolist() == completion.token_ids
        for position, entry in enumerate(completion.logprobs):
            for token, logprob in entry.items():
                assert abs(logprob.logprob - float(expected[position, token])) < 1e-4
        total = float(expected.gather(1, torch.tensor(completion.token_ids)[:, None]).sum())
        assert abs(completion.cumulative_logprob - total) < 1e-4 * STEPS


@pytest.mark.parametrize("family", checkpoints.FAMILIES)
def test_greedy_and_logprobs(family: str, tmp_path: Path) -> None:
    checkpoints.write(family, tmp_path)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    vocab = reference.config.vocab_size
    with LLM(model=str(tmp_path), dtype="float32", max_model_len=256) as llm:
        check(llm.generate(random_prompts(50, vocab, 0), GREEDY, use_tqdm=False), reference)
    # 32 at once, at most 40 tokens a step, a pool that holds a fraction of them, shared prefixes
    small = {"max_num_batched_tokens": 40, "max_num_seqs": 32, "num_gpu_blocks_override": 60, "block_size": 8}
    prompts = random_prompts(32, vocab, 1)
    prompts[16:24] = [prompts[0][:20] + p for p in prompts[16:24]]
    with LLM(model=str(tmp_path), dtype="float32", max_model_len=256, **small) as llm:
        check(llm.generate(prompts, GREEDY, use_tqdm=False), reference)
        assert llm.stats().num_preemptions > 0
