"""`quire bench serve` under the name that scripts of old call.

    python benchmarks/benchmark_serving.py --backend openai-chat --model M --dataset-name sharegpt \
        --dataset-path ShareGPT_V3_unfiltered_cleaned_split.json --num-prompts 1000 --request-rate 10
"""

import sys

from quire.cli import main

if __name__ == "__main__":
    main(["bench", "serve", *sys.argv[1:]])
