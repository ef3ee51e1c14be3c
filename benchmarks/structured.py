"""What structured output costs: the same load free, constrained, and half of each, in turn on one engine.

    python benchmarks/structured.py                                        # a 125 M shape on the CPU, random weights
    python benchmarks/structured.py --vocabulary tokenizer.json            # the same with a larger vocabulary
    python benchmarks/structured.py --model FOLDER --load-format dummy     # any model, for GPUs

Every request gets exactly --output tokens: free ones ignore the end token, constrained ones write a JSON list that is
never long enough. `one schema` is the same for all requests, `own schemas` gives each its own. Rounds alternate, and
the cost is the median of the ratios of neighbouring rounds. Processor time is of the engine and all grammar workers
together: on a machine that others use as well it says more than the clock.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import tokenizers

from quire import LLM, SamplingParams, StructuredOutputsParams

DEMO = Path(__file__).parents[1] / "src" / "quire" / "demo" / "model"
ITEM = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 24},
        "kind": {"enum": ["red", "green", "blue"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 9999},
        "tags": {"type": "array", "items": {"type": "string", "pattern": "^[a-z]{2,9}$"}, "maxItems": 4},
    },
    "required": ["name", "kind", "count", "tags"],
    "additionalProperties": False,
}


def write_shape(folder: Path, vocabulary: str | None) -> None:
    """A checkpoint without weights: 12 layers of 768."""
    source = Path(vocabulary) if vocabulary else DEMO / "tokenizer.json"
    shutil.copy(source, folder / "tokenizer.json")
    core = tokenizers.Tokenizer.from_file(str(source))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": core.get_vocab_size(),
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))


def params(output: int, seed: int, schema: dict[str, Any] | None) -> SamplingParams:
    """Exactly `output` tokens."""
    form = None if schema is None else StructuredOutputsParams(json=schema)
    return SamplingParams(max_tokens=output, seed=seed, ignore_eos=schema is None, structured_outputs=form)


def schema_of(index: int) -> dict[str, Any]:
    """A list that is never long enough; each index has its own."""
    return {"type": "array", "items": ITEM, "minItems": 900 + index}


def loads(concurrency: int, output: int) -> dict[str, list[SamplingParams]]:
    """The parameters of all requests, by name of the load."""
    several = range(concurrency)
    return {
        "free": [params(output, i, None) for i in several],
        "one schema": [params(output, i, schema_of(0)) for i in several],
        "own schemas": [params(output, i, schema_of(i)) for i in several],
        "half of each": [params(output, i, schema_of(0) if i % 2 else None) for i in several],
    }


def main() -> None:
    """Run the rounds and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a checkpoint; default: a 125 M shape with random weights")
    parser.add_argument("--load-format", default="auto", choices=["auto", "dummy"])
    parser.add_argument("--vocabulary", help="tokenizer.json for the default shape")
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=64, help="tokens")
    parser.add_argument("--output", type=int, default=64, help="tokens")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if options.model is None:
            write_shape(Path(name), options.vocabulary)
        model, form = (name, "dummy") if options.model is None else (options.model, options.load_format)
        with LLM(model, load_format=form, max_num_seqs=options.concurrency, max_model_len=2048) as llm:
            vocab_size = llm.ready.vocab_size
            print(f"{llm.ready.device}, vocabulary {vocab_size}, {options.concurrency} at once, "
                  f"{options.prompt} in / {options.output} out, {options.rounds} rounds\n")  # fmt: skip
            found = run(llm, options, vocab_size)
    tokens = options.concurrency * options.output
    print(
        "| load | output tok/s, median | against free | processor us per token | against free | best round, ms a step |"
    )
    print("|---|---|---|---|---|---|")
    for name, rounds in found.items():
        columns = []
        for index, scale in ((0, 1.0), (1, 1e6)):
            own = [one[index] for one in rounds]
            free = [one[index] for one in found["free"]]
            ratio = statistics.median(b / a for a, b in zip(free, own, strict=True))
            middle = statistics.median(own)
            value = tokens / middle if index == 0 else scale * middle / tokens
            change = 1 / ratio - 1 if index == 0 else ratio - 1
            columns += [f"{value:,.0f}", f"{100 * change:+.1f} %"]
        best = 1000 * min(took for took, _ in rounds) / options.output
        print(f"| {name} | {' | '.join(columns)} | {best:.1f} |")


def processor_seconds() -> float:
    """Of the engine and its grammar workers, so far; workers stay for the whole run."""
    times = (child.cpu_times() for child in psutil.Process().children(recursive=True))
    return sum(time.user + time.system for time in times)


def run(llm: LLM, options: argparse.Namespace, vocab_size: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds by the clock and of the processors, of each round of each load; the first round is not counted."""
    rng = random.Random(0)
    seconds: dict[str, list[tuple[float, float]]] = {}
    for number in range(options.rounds + 1):
        for name, each in loads(options.concurrency, options.output).items():
            prompts = [[rng.randrange(10, vocab_size) for _ in range(options.prompt)] for _ in each]
            worked, begun = processor_seconds(), time.perf_counter()
            outputs = llm.generate(prompts, each, use_tqdm=False)
            took, worked = time.perf_counter() - begun, processor_seconds() - worked
            print(f"round {number}, {name}: {took:.2f} s, processors {worked:.2f} s", file=sys.stderr, flush=True)
            short = [len(o.outputs[0].token_ids) for o in outputs if len(o.outputs[0].token_ids) != options.output]
            assert not short, f"{name}: answers of {short} tokens"
            if number:
                seconds.setdefault(name, []).append((took, worked))
    return seconds


if __name__ == "__main__":
    main()
