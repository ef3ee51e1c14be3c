"""LLaVA end to end against transformers on a random checkpoint, fp32 on the CPU: offline, over HTTP, and the docs."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import llava_checkpoints
import openai
import pytest
import torch
from llava_checkpoints import NUM_TOKENS, picture, pixel_values
from picture_files import saved, url
from PIL import Image
from test_serve import Server

from quire import LLM, BeamSearchParams, RequestOutput, SamplingParams
from quire.errors import RequestError

ROOT = Path(__file__).parents[2]
STEPS = 12
GREEDY = SamplingParams(temperature=0, max_tokens=STEPS, ignore_eos=True, logprobs=3, detokenize=False)
WORDS = ("quick", "brown fox", "jumps", "over", "lazy dogs", "seven", "wise owls", "old oak tree", "and", "hoot")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    folder = tmp_path_factory.mktemp("llava")
    return folder, llava_checkpoints.write(folder)


def check(output: RequestOutput, theirs: Any, images: Sequence[Image.Image]) -> None:
    """Greedy tokens are those of transformers, given the same, and log-probabilities are near."""
    [completion] = output.outputs
    assert len(completion.token_ids) == STEPS
    assert output.prompt_token_ids.count(theirs.config.image_token_id) == NUM_TOKENS * len(images)
    ids = torch.tensor([output.prompt_token_ids + list(completion.token_ids)])
    with torch.inference_mode():
        seen = {"pixel_values": pixel_values(*images)} if images else {}
        logits = theirs(ids, **seen).logits[0, len(output.prompt_token_ids) - 1 : -1].float()
    expected = torch.log_softmax(logits, dim=1)
    assert logits.argmax(dim=1).tolist() == list(completion.token_ids)
    for position, entry in enumerate(completion.logprobs):
        for token, logprob in entry.items():
            assert abs(logprob.logprob - float(expected[position, token])) < 1e-4


def prompt(rng: random.Random, num_pictures: int) -> str:
    parts = [" ".join(rng.choices(WORDS, k=rng.randint(0, 12))) for _ in range(num_pictures + 1)]
    return "USER: " + "<image>\n".join(parts) + " ASSISTANT:"


def test_parity_cut_batched_preempted_and_cached(checkpoint: tuple[Path, Any]) -> None:
    folder, theirs = checkpoint
    rng = random.Random(0)
    images = [picture(1), picture(2), picture(3, (50, 31)), picture(4, (20, 64))]
    few = {"max_num_batched_tokens": 22, "max_num_seqs": 8, "num_gpu_blocks_override": 27, "block_size": 8}
    room = {"max_pictures_per_step": 1, "picture_cache_slots": 2}
    with LLM(str(folder), dtype="float32", max_model_len=200, **few, **room) as llm:
        chosen = [
            [images[i] for i in choice] for choice in ((), (0,), (0, 1), (2,), (1, 0, 3), (), (3, 3), (2, 1), (0,))
        ]
        prompts = [{"prompt": prompt(rng, len(own)), "multi_modal_data": {"image": own}} for own in chosen]
        prompts[1]["multi_modal_data"] = {"image": chosen[1][0]}
        outputs = llm.generate(prompts, GREEDY, use_tqdm=False)
        for output, own in zip(outputs, chosen, strict=True):
            check(output, theirs, own)
        assert llm.stats().num_preemptions > 0

        # the same picture hits, one that differs in a pixel does not
        text = "USER: the quick brown fox <image> jumps over the lazy dog ASSISTANT:"
        other = images[0].copy()
        other.putpixel((5, 5), tuple(255 - colour for colour in other.getpixel((5, 5))))
        llm.reset_prefix_cache()
        found = []
        for image in (images[0], images[0], other, other):
            [output] = llm.generate({"prompt": text, "multi_modal_data": {"image": image}}, GREEDY, use_tqdm=False)
            check(output, theirs, [image])
            found.append(output.num_cached_tokens)
        start = output.prompt_token_ids.index(theirs.config.image_token_id)
        whole = (len(output.prompt_token_ids) - 1) // 8 * 8
        assert found == [0, whole, start // 8 * 8, whole]

        # several answers of one prompt, a beam search, scores of the prompt
        many = SamplingParams(n=3, temperature=1.0, seed=1, max_tokens=4)
        [output] = llm.generate({"prompt": text, "multi_modal_data": {"image": other}}, many, use_tqdm=False)
        assert len(output.outputs) == 3
        beams = BeamSearchParams(beam_width=2, max_tokens=3)
        [found_beams] = llm.beam_search({"prompt": text, "multi_modal_data": {"image": other}}, beams)
        assert len(found_beams.sequences) == 2

        _chat(llm, theirs, images)
        _refusals(llm, images[0])


def _chat(llm: LLM, theirs: Any, images: list[Image.Image]) -> None:
    """Parts in both forms are the same prompt as the template's text."""
    ask = {"type": "text", "text": "what is this"}
    as_url = {"type": "image_url", "image_url": {"url": url(saved(images[2]))}}
    as_pil = {"type": "image_pil", "image_pil": images[2]}
    conversations = [[{"role": "user", "content": [part, ask]}] for part in (as_url, as_pil)]
    outputs = llm.chat([*conversations, [{"role": "user", "content": "what is this"}]], GREEDY, use_tqdm=False)
    text = {"prompt": "USER: <image>\nwhat is this ASSISTANT:", "multi_modal_data": {"image": images[2]}}
    [plain] = llm.generate(text, GREEDY, use_tqdm=False)
    for output in outputs[:2]:
        check(output, theirs, [images[2]])
        assert output.outputs[0].token_ids == plain.outputs[0].token_ids
    check(outputs[2], theirs, [])


def _refusals(llm: LLM, image: Image.Image) -> None:
    for wrong, word in (
        ({"prompt": "no place", "multi_modal_data": {"image": image}}, "0 placeholders"),
        ({"prompt": "<image>"}, "1 placeholders"),
        ({"prompt": "<image>", "multi_modal_data": {"image": [image, image]}}, "2 pictures"),
        ({"prompt": "<image>", "multi_modal_data": {"image": "http://127.0.0.1/"}}, "nothing is fetched"),
        ({"prompt": "<image>", "multi_modal_data": {"image": 5}}, "PIL image"),
        ({"prompt": "<image>", "multi_modal_data": {"audio": [1]}}, "audio"),
        ({"prompt": "<image>", "multi_modal_data": [image]}, "dict"),
        ({"prompt": "<image>" * 17, "multi_modal_data": {"image": [image] * 17}}, "context"),
    ):
        with pytest.raises(RequestError, match=word):
            llm.generate(wrong, GREEDY, use_tqdm=False)
    cut = GREEDY.clone()
    cut.truncate_prompt_tokens = 5
    with pytest.raises(RequestError, match="truncate_prompt_tokens"):
        llm.generate({"prompt": "<image>", "multi_modal_data": {"image": image}}, cut, use_tqdm=False)


# ---- over HTTP -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(checkpoint: tuple[Path, Any]) -> Iterator[Server]:
    server = Server(str(checkpoint[0]), "--dtype", "float32", "--limit-mm-per-prompt", "image=3").wait_ready()
    yield server
    code, log = server.stop()
    assert code == 0, log


def test_the_official_client(server: Server, checkpoint: tuple[Path, Any]) -> None:
    theirs = checkpoint[1]
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
    image = picture(9, (60, 40))
    part = {"type": "image_url", "image_url": {"url": url(saved(image)), "detail": "low"}}
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "what is this"}, part]},
    ]
    more = {"return_token_ids": True, "ignore_eos": True, "return_prompt_text": True}
    asked = {"model": str(checkpoint[0]), "messages": messages, "temperature": 0, "max_completion_tokens": 8}
    answer = client.chat.completions.create(**asked, logprobs=True, extra_body=more)
    assert answer.prompt_text == "be brief USER: <image>\nwhat is this ASSISTANT:"
    ids = answer.prompt_token_ids
    assert answer.usage.prompt_tokens == len(ids) and ids.count(theirs.config.image_token_id) == NUM_TOKENS
    assert any("detail has no effect" in warning for warning in answer.warnings)
    whole = torch.tensor([ids + answer.choices[0].token_ids])
    with torch.inference_mode():
        logits = theirs(whole, pixel_values=pixel_values(image)).logits[0, len(ids) - 1 : -1].float()
    assert logits.argmax(dim=1).tolist() == answer.choices[0].token_ids
    wanted = torch.log_softmax(logits, 1).max(dim=1).values
    found = torch.tensor([entry.logprob for entry in answer.choices[0].logprobs.content])
    assert (found - wanted).abs().max() < 1e-4
    stream = client.chat.completions.create(**asked, stream=True, extra_body={"ignore_eos": True})
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert text == answer.choices[0].message.content
    counted = client.post("/../tokenize", body={"messages": messages}, cast_to=dict[str, Any])
    assert counted["tokens"] == ids and counted["count"] == answer.usage.prompt_tokens
    with pytest.raises(openai.BadRequestError, match="limit-mm-per-prompt"):
        client.chat.completions.create(**{**asked, "messages": [{"role": "user", "content": [part] * 4}]})
    with pytest.raises(openai.BadRequestError, match="placeholder"):
        client.completions.create(model=str(checkpoint[0]), prompt="<image>")


def run(command: list[str]) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example(server: Server, tmp_path: Path) -> None:
    picture(1).save(tmp_path / "a.png")
    picture(2).save(tmp_path / "b.jpg")
    files = [str(tmp_path / name) for name in ("a.png", "b.jpg")]
    flags = ["--base-url", server.url + "/v1", "--max-tokens", "5"]
    out = run([sys.executable, str(ROOT / "examples" / "picture_chat.py"), *files, *flags])
    assert int(re.findall(r"(\d+) tokens of prompt", out)[0]) > 2 * NUM_TOKENS


BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "multimodal.md").read_text(), re.S)


@pytest.mark.parametrize("block", BLOCKS)
def test_blocks_of_the_page(block: str, server: Server, checkpoint: tuple[Path, Any]) -> None:
    block = block.replace("localhost:8000", f"localhost:{server.port}")
    assert run([sys.executable, "-c", block.replace("llava-hf/llava-1.5-7b-hf", str(checkpoint[0]))]).strip()
