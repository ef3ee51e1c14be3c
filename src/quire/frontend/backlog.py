"""What several steps brought, as if it had been one: an API that is behind catches up with fewer, larger pieces."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from quire.messages import Outputs, TokenOutput


def joined(messages: Sequence[Outputs]) -> Iterable[TokenOutput]:
    """One output per request, in the order in which each first appears."""
    found: dict[int, TokenOutput] = {}
    for message in messages:
        for output in message.outputs:
            earlier = found.get(output.id)
            found[output.id] = output if earlier is None else _both(earlier, output)
    return found.values()


def _both(earlier: TokenOutput, later: TokenOutput) -> TokenOutput:
    logprobs = earlier.logprobs
    if later.logprobs is not None:
        logprobs = [*(logprobs or ()), *later.logprobs]
    return TokenOutput(
        later.id,
        earlier.token_ids + later.token_ids,
        later.finish_reason,
        max(earlier.num_cached_tokens, later.num_cached_tokens),
        logprobs,
        earlier.queued_s,  # sent with the first output only
        later.error,
    )
