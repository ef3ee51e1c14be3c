"""bfloat16 on a CPU agrees with transformers, by the demo model: it was trained, so it has preferences among its tokens
where a random one has next to none. Teacher-forced: transformers reads our tokens and says what it would choose."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import AutoModelForCausalLM

from quire import LLM, SamplingParams
from quire.demo import model_path

SENTENCE = "Tell me a story about a fox and the sea . Count from three to nine . What is 12 + 30 ?"


@pytest.mark.parametrize("kernels", [pytest.param("native", marks=pytest.mark.native), "torch"])
def test_bfloat16_agrees_with_transformers(kernels: str) -> None:
    reference = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.bfloat16).eval()
    rng = random.Random(0)
    texts = ["Once upon a time", *(" ".join(rng.choices(SENTENCE.split(), k=rng.randint(3, 20))) for _ in range(39))]
    chats = [[{"role": "user", "content": text}] for text in texts]
    with LLM("demo", dtype="bfloat16", device="cpu", cpu_kernels=kernels) as llm:
        outputs = llm.chat(chats, SamplingParams(temperature=0, max_tokens=64), use_tqdm=False)
    same = total = 0
    for output in outputs:
        prompt, tokens = list(output.prompt_token_ids), output.outputs[0].token_ids
        with torch.inference_mode():
            logits = reference(torch.tensor([prompt + list(tokens)])).logits[0, len(prompt) - 1 : -1]
        same += int((logits.argmax(dim=1) == torch.tensor(tokens)).sum())
        total += len(tokens)
    print(f"{same} of {total} tokens agree, {same / total:.4f}")
    assert total > 500
    assert same / total >= 0.99
