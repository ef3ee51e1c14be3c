"""The demo model that ships with Quire, and a draft model of it for speculative decoding.

A Llama of 2.5 million parameters in the Hugging Face layout, with its own
tokenizer and chat template.  It greets, counts, adds small numbers, repeats and
reverses words, tells short stories, answers in JSON, and says so when it does
not know.  It is there to try and to test Quire without a download, not to know
anything.  The draft, a sixth of its size, shares its tokenizer and was trained
to agree with it.

Both were made from nothing by `tools/train_demo_model.py`, on text that the
script writes itself; `EVALUATION.md` beside this file says how good they are.
"""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).resolve().parent


def model_path() -> Path:
    """The folder of the demo model: weights, configuration, tokenizer, chat template."""
    return _HERE / "model"


def draft_path() -> Path:
    """The folder of the draft model: weights and configuration; its tokenizer is the demo model's."""
    return _HERE / "draft"
