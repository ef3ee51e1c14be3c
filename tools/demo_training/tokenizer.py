"""The demo model's tokenizer: byte-level BPE whose vocabulary is bytes and whole words.

The model is asked to repeat and to reverse words that it never saw.  Both are
easy to learn if a word is cut the same way wherever it stands, and if unknown
words are cut into letters.  So every space, digit and punctuation mark is a
piece of its own; the commonest words of the training text are single tokens;
and there are no merges: any other word falls apart into its bytes.  All text,
in any script, round-trips.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from .exchange import Pen
from .text import END, PAD, SPECIAL_TOKENS, training_document

VOCABULARY_SIZE = 1024
_SAMPLE_DOCUMENTS = 40_000
_PIECES = r"\p{L}+|\p{N}|\s|[^\p{L}\p{N}\s]"

# The layout of `demo_text.Conversation.segments`.  Content may be a string or a
# list of parts, of which the text is used; tools are ignored.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
  {%- if message['role'] in ['system', 'developer'] -%}
    {{- '<|system|>' -}}
  {%- elif message['role'] == 'assistant' -%}
    {{- '<|assistant|>' -}}
  {%- else -%}
    {{- '<|user|>' -}}
  {%- endif -%}
  {%- if message['content'] is string -%}
    {{- message['content'] | trim -}}
  {%- elif message['content'] -%}
    {%- for part in message['content'] if part['type'] == 'text' -%}
      {{- part['text'] | trim -}}
    {%- endfor -%}
  {%- endif -%}
  {{- '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|assistant|>' -}}
{%- endif -%}
"""


def _common_words(seed: str, number: int) -> list[str]:
    """The words of two letters or more that a sample of the training text uses most."""
    pen = Pen.make(f"{seed}/tokenizer")
    counts: Counter[str] = Counter()
    for _ in range(_SAMPLE_DOCUMENTS):
        for text, _ in training_document(pen).segments:
            counts.update(re.findall(r"[A-Za-z]{2,}", re.sub(r"<\|\w+\|>", " ", text)))
    # Ties are broken by the alphabet, so that a seed always gives the same tokenizer.
    return sorted(sorted(counts), key=counts.__getitem__, reverse=True)[:number]


def build_tokenizer(seed: str) -> Tokenizer:
    """The tokenizer for the training text of a seed."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = _common_words(seed, VOCABULARY_SIZE - len(SPECIAL_TOKENS) - len(alphabet))
    vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *alphabet, *words])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer


def whole_words(tokenizer: Tokenizer) -> frozenset[str]:
    """The words that are single tokens."""
    return frozenset(token for token in tokenizer.get_vocab() if re.fullmatch(r"[A-Za-z]{2,}", token))


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the tokenizer, its configuration and the chat template as Hugging Face lays them out."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": END,
        "pad_token": PAD,
        "model_max_length": 2048,
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",
    }
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
