"""transformers, one static batch without padding: MODEL PROMPTS.json ROUNDS -> one line of JSON."""

import json
import sys
import time
from pathlib import Path

import torch
import transformers


def main() -> None:
    """Seconds per round."""
    work, rounds = json.loads(Path(sys.argv[2]).read_text()), int(sys.argv[3])
    model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16).eval()

    def seconds(prompts: list[list[int]], length: int) -> float:
        ids = torch.tensor(prompts)
        start = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                min_new_tokens=length,
                max_new_tokens=length,
                pad_token_id=0,
            )
        took = time.perf_counter() - start
        assert out.shape == (len(prompts), len(prompts[0]) + length)
        return took

    many = [seconds(work["many"], work["many_len"]) for _ in range(rounds)]
    one = [seconds(work["many"][:1], work["one_len"]) for _ in range(rounds)]
    print("RESULT " + json.dumps({"version": transformers.__version__, "many": many, "one": one}))


if __name__ == "__main__":
    main()
