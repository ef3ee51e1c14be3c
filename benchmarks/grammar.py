"""Two libraries for structured output, side by side on one CPU: llguidance and xgrammar.

    pip install llguidance xgrammar && python benchmarks/grammar.py [--vocabulary tokenizer.json] [--schemas 200]

The same growing JSON schemas, the same tokens: answers are walked through with one random allowed token after another.
Reported per library: seconds to import and to read the vocabulary, memory, compile time and the time from compiled to
the first mask, time of each further mask with the step before it, and how many schemas were refused. Each library runs
in a process of its own, on one thread. Without --vocabulary only the demo model's 1,024 tokens are used.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

DEMO = Path(__file__).parents[1] / "src" / "quire" / "demo" / "model" / "tokenizer.json"
STEPS = 60


def growing_schema(index: int) -> dict[str, Any]:
    """The index-th schema: from three fields to some hundred, with nesting, enums, arrays and references."""
    rng = random.Random(index)
    size = 3 + index // 4
    defs = {f"D{i}": _object(rng, 3, 1, 0) for i in range(index // 40)}
    schema = _object(rng, size, 2, len(defs))
    return {**schema, "$defs": defs} if defs else schema


def _object(rng: random.Random, size: int, depth: int, num_defs: int) -> dict[str, Any]:
    properties = {f"field_{i}": _value(rng, depth, num_defs) for i in range(size)}
    required = [name for name in properties if rng.random() < 0.7]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _value(rng: random.Random, depth: int, num_defs: int) -> dict[str, Any]:
    if num_defs and rng.random() < 0.15:
        return {"$ref": f"#/$defs/D{rng.randrange(num_defs)}"}
    kind = rng.randrange(7 if depth else 5)
    if kind == 0:
        return {"type": "string"}
    if kind == 1:
        return {"type": "integer"}
    if kind == 2:
        return {"enum": [f"option {i}" for i in range(rng.randint(2, 30))]}
    if kind == 3:
        return {"type": "string", "pattern": "^[a-z]{2,8}-[0-9]{1,6}$"}
    if kind == 4:
        return {"type": "boolean"}
    if kind == 5:
        return {"type": "array", "items": _value(rng, depth - 1, num_defs)}
    return _object(rng, 3, depth - 1, num_defs)


# ---- the two libraries, each behind the same three functions ---------------------------------------------------------


class LLGuidance:
    """Derivatives of regular expressions, an Earley parser, everything as late as possible."""

    def __init__(self, path: str) -> None:
        import llguidance

        self._lib = llguidance
        self._vocabulary = llguidance.LLTokenizer(path)
        self.vocab_size = self._vocabulary.vocab_size

    def compile(self, schema: str) -> Any:
        grammar = self._lib.LLMatcher.grammar_from_json_schema(schema)
        matcher = self._lib.LLMatcher(self._vocabulary, grammar, log_level=0)
        if matcher.is_error():
            raise ValueError(matcher.get_error())
        return matcher

    def mask(self, matcher: Any) -> Any:
        return matcher.compute_bitmask()

    def step(self, matcher: Any, token: int) -> bool:
        return bool(matcher.consume_token(token)) and not matcher.is_stopped()


class XGrammar:
    """A pushdown automaton whose masks are prepared when it is compiled."""

    def __init__(self, path: str) -> None:
        import numpy
        import tokenizers
        import torch
        import xgrammar

        torch.set_num_threads(1)
        core = tokenizers.Tokenizer.from_file(path)
        self.vocab_size = core.get_vocab_size()
        vocabulary = [core.id_to_token(i) for i in range(self.vocab_size)]
        info = xgrammar.TokenizerInfo(vocabulary, xgrammar.VocabType.BYTE_LEVEL, stop_token_ids=[0])
        self._lib, self._numpy = xgrammar, numpy
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
        self._mask = xgrammar.allocate_token_bitmask(1, self.vocab_size)

    def compile(self, schema: str) -> Any:
        return self._lib.GrammarMatcher(self._compiler.compile_json_schema(schema))

    def mask(self, matcher: Any) -> Any:
        matcher.fill_next_token_bitmask(self._mask)
        return self._mask.numpy().tobytes()

    def step(self, matcher: Any, token: int) -> bool:
        return bool(matcher.accept_token(token)) and not matcher.is_terminated()


LIBRARIES = {"llguidance": LLGuidance, "xgrammar": XGrammar}


def measure(name: str, path: str, num_schemas: int) -> dict[str, Any]:
    """All figures of one library, in this process."""
    import numpy as np
    import psutil

    process = psutil.Process()
    before, begun = process.memory_info().rss, time.perf_counter()
    library: Any = LIBRARIES[name](path)
    ready, loaded = time.perf_counter() - begun, process.memory_info().rss
    compiles, firsts, masks, refused, kept = [], [], [], 0, []
    for index in range(num_schemas):
        text = json.dumps(growing_schema(index))
        begun = time.process_time()
        try:
            matcher = library.compile(text)
        except Exception:  # noqa: BLE001 - each library has its own kind
            refused += 1
            continue
        compiles.append(time.process_time() - begun)
        begun = time.process_time()
        mask = library.mask(matcher)
        firsts.append(time.process_time() - begun)
        rng = random.Random(index)
        for _ in range(STEPS):
            bits = np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")[: library.vocab_size]
            token = int(rng.choice(np.flatnonzero(bits)))
            begun = time.perf_counter()
            going = library.step(matcher, token)
            if going:
                mask = library.mask(matcher)
            masks.append(time.perf_counter() - begun)
            if not going:
                break
        kept.append(matcher)
    return {
        "library": name,
        "ready_s": ready,
        "vocabulary_mib": (loaded - before) / 2**20,
        "grammars_mib": (process.memory_info().rss - loaded) / 2**20,
        "refused": refused,
        "compile_ms": _spread(compiles, 1e3),
        "first_mask_ms": _spread(firsts, 1e3),
        "mask_us": _spread(masks, 1e6),
    }


def _spread(values: list[float], scale: float) -> list[float]:
    """Median, 99th percentile, largest."""
    ordered = sorted(values)
    return [scale * v for v in (statistics.median(ordered), ordered[int(0.99 * (len(ordered) - 1))], ordered[-1])]


def main() -> None:
    """Each library in a process of its own, then a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", help="a byte-level tokenizer.json to use besides the demo model's")
    parser.add_argument("--schemas", type=int, default=200)
    parser.add_argument("--libraries", nargs="+", choices=LIBRARIES, default=list(LIBRARIES))
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(*options.one, options.schemas)))
        return
    sizes = [len(json.dumps(growing_schema(i))) for i in (0, options.schemas // 2, options.schemas - 1)]
    print(f"{options.schemas} schemas of {sizes[0]} to {sizes[2]} bytes; median / 99 % / largest\n")
    print("| vocabulary | library | ready, s | MiB | compile, ms | first mask, ms | step and mask, us | refused |")
    print("|---|---|---|---|---|---|---|---|")
    for path in [str(DEMO), *([options.vocabulary] if options.vocabulary else [])]:
        for name in options.libraries:
            command = [sys.executable, __file__, "--one", name, path, "--schemas", str(options.schemas)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
            done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
            if done.returncode:
                print(f"| {Path(path).parent.name} | {name} | failed: {done.stderr.strip().splitlines()[-1]} |")
                continue
            found = json.loads(done.stdout.splitlines()[-1])
            spreads = [" / ".join(f"{v:.3g}" for v in found[key]) for key in ("compile_ms", "first_mask_ms", "mask_us")]
            memory = f"{found['vocabulary_mib']:.0f} + {found['grammars_mib']:.0f}"
            print(
                f"| {Path(path).parent.name} | {name} | {found['ready_s']:.2f} | {memory} | {' | '.join(spreads)} "
                f"| {found['refused']} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
