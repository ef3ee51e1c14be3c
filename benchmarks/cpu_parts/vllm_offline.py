"""vLLM offline, run by the Python of its own environment: MODEL PROMPTS.json ROUNDS -> one line of JSON.

PROMPTS.json: {"many": [[ids]], "many_len": int, "one_len": int}; the first prompt alone is the single stream.
"""

import json
import sys
import time


def main() -> None:
    """Seconds per round of all prompts together, and of one prompt."""
    from vllm import LLM, SamplingParams, __version__

    model, path, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
    with open(path) as file:  # noqa: PTH123
        work = json.load(file)
    llm = LLM(model=model, dtype="bfloat16", max_model_len=2048, enable_prefix_caching=False)

    def seconds(prompts: list[list[int]], length: int) -> float:
        params = SamplingParams(temperature=0, max_tokens=length, ignore_eos=True)
        start = time.perf_counter()
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        took = time.perf_counter() - start
        assert all(len(output.outputs[0].token_ids) == length for output in outputs)
        return took

    many = [seconds(work["many"], work["many_len"]) for _ in range(rounds)]
    one = [seconds(work["many"][:1], work["one_len"]) for _ in range(rounds)]
    print("RESULT " + json.dumps({"version": __version__, "many": many, "one": one}))


if __name__ == "__main__":
    main()
