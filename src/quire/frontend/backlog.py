"""What several steps brought, as if it had been one: an API that is behind catches up with fewer, larger pieces."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from quire.messages import Outputs, TokenLogprobs, TokenOutput


def joined(messages: Sequence[Outputs]) -> Iterable[TokenOutput]:
    """One output per request, in the order in which each first appears."""
    found: dict[int, TokenOutput] = {}
    for message in messages:
        for output in message.outputs:
            earlier = found.get(output.id)
            found[output.id] = output if earlier is None else _both(earlier, output)
    return found.values()


def _both(earlier: TokenOutput, later: TokenOutput) -> TokenOutput:
    return TokenOutput(
        id=later.id,
        token_ids=earlier.token_ids + later.token_ids,
        finish_reason=later.finish_reason,
        num_cached_tokens=max(earlier.num_cached_tokens, later.num_cached_tokens),
        logprobs=_chained(earlier.logprobs, later.logprobs),
        queued_s=earlier.queued_s or later.queued_s,  # sent with the first token only
        error=later.error,
        prompt_logprobs=_chained(earlier.prompt_logprobs, later.prompt_logprobs),
        param=later.param,
        late=later.late,
    )


def _chained(earlier: list[TokenLogprobs] | None, later: list[TokenLogprobs] | None) -> list[TokenLogprobs] | None:
    return earlier if later is None else [*(earlier or ()), *later]
