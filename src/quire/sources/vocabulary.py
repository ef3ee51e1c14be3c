"""Tokenizers made from their parts: pieces with scores as SentencePiece has them, or byte pairs with merges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Kinds of pieces, as both formats number them."""
SPACE = "\u2581"

_ENGLISH = r"'s|'t|'re|'ve|'m|'ll|'d"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
GPT2 = rf"{_ENGLISH}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    rf"(?i:{_ENGLISH})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
)  # fmt: skip
QWEN2 = LLAMA3.replace("{1,3}", "")
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+(?i:{_ENGLISH})?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*(?i:{_ENGLISH})?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
OLD_SIGNS = r"[\p{P}\$\+<=>\^~\|]+"


@dataclass(frozen=True, slots=True)
class Splitting:
    """How text is cut before byte pairs are merged: by each pattern in turn.

    whole: a word that is a token is taken as it is, whatever the merges say.
    bos: a begin token is added where the file does not say.
    nfc: text is composed first.
    """

    patterns: tuple[str, ...]
    whole: bool = False
    bos: bool = False
    nfc: bool = False


_DEFAULT = Splitting((OLD_SIGNS, GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"))
_GPT2, _LLAMA3 = Splitting((GPT2,)), Splitting((LLAMA3,), whole=True, bos=True)
_QWEN2, _DIGITS = Splitting((QWEN2,), nfc=True), Splitting((r"\p{N}", GPT2))
_GPT4O = Splitting((GPT4O,))
SPLITTINGS: dict[str, Splitting] = {
    "default": _DEFAULT,
    **dict.fromkeys(("gpt-2", "phi-2", "olmo", "mpt", "gigachat", "exaone4", "roberta-bpe"), _GPT2),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3"), _LLAMA3),
    **dict.fromkeys(("dbrx", "smaug-bpe"), Splitting((LLAMA3,))),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "hunyuan"), _QWEN2),
    **dict.fromkeys(("starcoder", "refact", "command-r", "smollm", "codeshell"), _DIGITS),
    **dict.fromkeys(("gpt-4o", "llama4"), _GPT4O),
    "tekken": Splitting((TEKKEN,), whole=True, bos=True),
    "falcon": Splitting((r"[\p{P}\$\+<=>\^~\|`]+", GPT2, r"[0-9][0-9][0-9]")),
}
"""Names of ways to cut text (tokenizer.ggml.pre) to what they mean."""


@dataclass(frozen=True, slots=True)
class Pieces:
    """A SentencePiece vocabulary.

    Attributes:
        texts, scores, kinds: of each id.
        prefix_space: text begins with a space that it does not have.
        trim: runs of spaces become one, those at the ends none.
        charsmap: SentencePiece's own table of normalisation, compiled; b"" is none.
    """

    texts: Sequence[str]
    scores: Sequence[float]
    kinds: Sequence[int]
    prefix_space: bool = True
    trim: bool = False
    charsmap: bytes = b""


@dataclass(frozen=True, slots=True)
class Around:
    """Tokens that are put around a text: ids of those before and after it."""

    before: tuple[int, ...] = field(default=())
    after: tuple[int, ...] = field(default=())


def merging_pieces(pieces: Pieces, around: Around) -> tokenizers.Tokenizer:
    """SentencePiece's BPE: neighbours whose union has the best score are merged first.

    Raises:
        ValueError: the parts do not fit together.
    """
    vocab = _ids(pieces.texts)
    unknown = next((text for text, kind in zip(pieces.texts, pieces.kinds, strict=True) if kind == UNKNOWN), None)
    core = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=_merges(pieces, vocab),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=BYTE in pieces.kinds,
        )
    )
    return _dress(core, pieces, around)


def likely_pieces(pieces: Pieces, around: Around) -> tokenizers.Tokenizer:
    """SentencePiece's unigram model: the most likely cut.

    Raises:
        ValueError: as above.
    """
    unknown = next((i for i, kind in enumerate(pieces.kinds) if kind == UNKNOWN), None)
    scored = list(zip(pieces.texts, map(float, pieces.scores), strict=True))
    core = tokenizers.Tokenizer(models.Unigram(scored, unk_id=unknown, byte_fallback=BYTE in pieces.kinds))
    return _dress(core, pieces, around)


def byte_pairs(
    texts: Sequence[str], kinds: Sequence[int], merges: Sequence[str], how: Splitting, around: Around
) -> tokenizers.Tokenizer:
    """Byte-level BPE.

    Args:
        merges: pairs, best first, with a space between the two.

    Raises:
        ValueError: a merge that is none, or of tokens that are not there.
    """
    wrong = next((merge for merge in merges if merge.count(" ") != 1), None)
    if wrong is not None:
        raise ValueError(f"{wrong[:60]!r} is no merge of two tokens")
    pairs = [merge.partition(" ")[::2] for merge in merges]
    core = tokenizers.Tokenizer(models.BPE(vocab=_ids(texts), merges=pairs, ignore_merges=how.whole))
    if how.nfc:
        core.normalizer = normalizers.NFC()
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in how.patterns]
    core.pre_tokenizer = pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(False, use_regex=False)])
    core.decoder = decoders.ByteLevel()
    _add_tokens(core, texts, kinds)
    _put_around(core, texts, around)
    return core


def _ids(texts: Sequence[str]) -> dict[str, int]:
    """Of equal texts the first one counts."""
    ids: dict[str, int] = {}
    for number, text in enumerate(texts):
        ids.setdefault(text, number)
    return ids


def _merges(pieces: Pieces, vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to put a piece together from two, best pieces first."""
    found: list[tuple[float, int, str, str]] = []
    for text, score, kind in zip(pieces.texts, pieces.scores, pieces.kinds, strict=True):
        if kind not in (NORMAL, UNUSED) or len(text) < 2:
            continue
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in vocab and right in vocab:
                found.append((-score, vocab[left], left, right))
    found.sort(key=lambda entry: entry[:2])
    return [(left, right) for _, _, left, right in found]


def _dress(core: tokenizers.Tokenizer, pieces: Pieces, around: Around) -> tokenizers.Tokenizer:
    """What comes before and after the model itself, for both kinds."""
    steps: list[normalizers.Normalizer] = []
    if pieces.charsmap:
        steps.append(normalizers.Precompiled(pieces.charsmap))
    if pieces.trim:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if pieces.prefix_space:
        steps.append(normalizers.Prepend(SPACE))
    core.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    back = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    core.decoder = decoders.Sequence([*back, *([decoders.Strip(" ", 1, 0)] if pieces.prefix_space else [])])
    _add_tokens(core, pieces.texts, pieces.kinds)
    _put_around(core, pieces.texts, around)
    return core


def _add_tokens(core: tokenizers.Tokenizer, texts: Sequence[str], kinds: Sequence[int]) -> None:
    """Tokens that stand for themselves wherever they appear in a text."""
    found = zip(texts, kinds, strict=True)
    added = [
        AddedToken(text, special=kind in (UNKNOWN, CONTROL), normalized=False)
        for text, kind in found
        if kind in (UNKNOWN, CONTROL, USER_DEFINED) and text
    ]
    core.add_tokens(added)


def _put_around(core: tokenizers.Tokenizer, texts: Sequence[str], around: Around) -> None:
    if not around.before and not around.after:
        return
    before, after = ([texts[i] for i in ids] for ids in (around.before, around.after))
    core.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", *after, *(f"{text}:1" for text in before), "$B:1", *(f"{text}:1" for text in after)],
        special_tokens=[(texts[i], i) for i in dict.fromkeys((*around.before, *around.after))],
    )
