"""What a request must fit: the model's vocabulary and context, and the limits of the settings."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

from quire.errors import RequestError
from quire.params import SamplingParams

CONTEXT_CODE = "context_length_exceeded"


class Fit(NamedTuple):
    """The numbers that requests are checked against.

    Attributes:
        max_model_len: most tokens of prompt and output together.
        vocab_size: number of token ids.
        max_logprobs: most log-probabilities per token; -1 is no limit.
    """

    max_model_len: int
    vocab_size: int
    max_logprobs: int

    def checked_ids(self, ids: Sequence[int], param: str) -> list[int]:
        """Token ids of a prompt, as plain integers.

        Raises:
            RequestError: none, or one outside the vocabulary.
        """
        checked = list(ids)
        if not checked:
            raise RequestError("The prompt has no tokens; at least 1 is needed.", param=param)
        try:
            checked = [token_id.__index__() for token_id in checked] if set(map(type, checked)) != {int} else checked
            low, high = min(checked), max(checked)
        except (AttributeError, TypeError):
            raise RequestError("A prompt of token ids must be a list of integers.", param=param) from None
        if low < 0 or high >= self.vocab_size:
            bad = low if low < 0 else high
            raise RequestError(f"Token id {bad} is outside the vocabulary, 0..{self.vocab_size - 1}.", param=param)
        return checked

    def truncated(self, ids: list[int], params: SamplingParams, default_max_tokens: int | None) -> list[int]:
        """The prompt's tokens, as many as `truncate_prompt_tokens` keeps.

        -1 keeps what leaves room for `max_tokens`, or its default, or for one token where both are open. The left end
        is cut off unless `truncation_side` says otherwise: what was said last matters most to what comes next.
        """
        most = params.truncate_prompt_tokens
        if most == -1:
            most = self.max_model_len - (params.max_tokens or default_max_tokens or max(1, params.min_tokens))
            most = max(1, most)
        if most is None or len(ids) <= most:
            return ids
        return ids[:most] if params.truncation_side == "right" else ids[-most:]

    def max_tokens(self, num_prompt: int, params: SamplingParams, param: str, default: int | None) -> int:
        """How many tokens may be generated: as asked, or what fits.

        Raises:
            RequestError: that is none, or fewer than asked.
        """
        limit = self.max_model_len
        room = limit - num_prompt
        if room < 1:
            raise RequestError(
                f"The prompt has {num_prompt} tokens; the context holds {limit} (--max-model-len), "
                f"and at least 1 is needed for the answer. Shorten it to {limit - 1} tokens or less.",
                param=param,
                code=CONTEXT_CODE,
            )
        if params.max_tokens is None:
            return max(min(room, default or room), min(room, params.min_tokens))
        if params.max_tokens > room:
            raise RequestError(
                f"The prompt has {num_prompt} tokens and max_tokens asks for {params.max_tokens} more; the context "
                f"holds {limit} (--max-model-len). Shorten the prompt or ask for at most {room}.",
                param="max_tokens",
                code=CONTEXT_CODE,
            )
        return params.max_tokens

    def check_params(self, params: SamplingParams) -> None:
        """Token ids must be in the vocabulary, counts in the range that the settings allow.

        Raises:
            RequestError: about the first field that is not.
        """
        for name in ("logprobs", "prompt_logprobs"):
            self.check_logprobs(name, getattr(params, name))
        if params.max_tokens is not None and params.min_tokens > params.max_tokens:
            raise RequestError(
                f"min_tokens is {params.min_tokens}, but there is room for {params.max_tokens} tokens only.",
                param="min_tokens",
            )
        for name, token_ids in (
            ("stop_token_ids", params.stop_token_ids),
            ("logit_bias", params.logit_bias),
            ("allowed_token_ids", params.allowed_token_ids or ()),
            ("logprob_token_ids", params.logprob_token_ids or ()),
            ("bad_words_token_ids", chain.from_iterable(params.bad_words_token_ids)),
        ):
            largest = max(token_ids, default=0)
            if largest >= self.vocab_size:
                raise RequestError(
                    f"{name}: {largest} is outside the vocabulary, 0..{self.vocab_size - 1}.", param=name
                )

    def check_logprobs(self, name: str, count: int | None) -> None:
        """Refuse more log-probabilities than may be asked for; -1 asks for the whole vocabulary's.

        Raises:
            RequestError: about the field of this name.
        """
        most = self.max_logprobs
        if count is None or most == -1 or 0 <= count <= most or (count == -1 and most >= self.vocab_size):
            return
        asked = f"-1 (all {self.vocab_size})" if count == -1 else str(count)
        raise RequestError(
            f"{name} must be in 0..{most}, got {asked}. The limit is --max-logprobs; LLM(max_logprobs=-1) has none.",
            param=name,
        )
