"""`LLM.generate`: MODEL PROMPTS.json ROUNDS [SETTING=VALUE ...] -> one line of JSON."""

import json
import sys
import time
from pathlib import Path

import quire


def main() -> None:
    """Seconds per round of all prompts together, and of one prompt."""
    work, rounds = json.loads(Path(sys.argv[2]).read_text()), int(sys.argv[3])
    settings = dict(setting.split("=", 1) for setting in sys.argv[4:])
    with quire.LLM(model=sys.argv[1], max_model_len=2048, enable_prefix_caching=False, **settings) as llm:

        def seconds(prompts: list[list[int]], length: int) -> float:
            params = quire.SamplingParams(temperature=0, max_tokens=length, ignore_eos=True)
            start = time.perf_counter()
            outputs = llm.generate(prompts, params, use_tqdm=False)
            took = time.perf_counter() - start
            assert all(len(output.outputs[0].token_ids) == length for output in outputs)
            return took

        many = [seconds(work["many"], work["many_len"]) for _ in range(rounds)]
        one = [seconds(work["many"][:1], work["one_len"]) for _ in range(rounds)]
    print("RESULT " + json.dumps({"version": quire.__version__, "many": many, "one": one}))


if __name__ == "__main__":
    main()
