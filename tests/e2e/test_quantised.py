"""Quantized models through the whole engine, and what the program says of those that cannot be."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from quire import LLM, SamplingParams
from quire.demo import model_path

GREEDY = SamplingParams(temperature=0, max_tokens=40)
QUESTION = [{"role": "user", "content": "What is 3 plus 4?"}]


@pytest.mark.parametrize("name", ["awq", "fp8"])
def test_made_while_loading(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Captured steps and others."""
    with LLM(model="demo", quantization=name) as llm:
        answers = llm.chat([QUESTION] * 3, GREEDY, use_tqdm=False)
    assert all("7" in answer.outputs[0].text for answer in answers)


def serve(*args: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "quire", "serve", *args, "--port", "0", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def test_another_method_than_the_checkpoint_has_ends_the_start(tmp_path: Path) -> None:
    shutil.copytree(model_path(), tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    section = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    config.write_text(json.dumps({**json.loads(config.read_text()), "quantization_config": section}))
    code, said = serve(str(config.parent), "--quantization", "awq")
    assert code != 0 and "Traceback" not in said
    assert "--quantization awq" in said and "says gptq" in said
