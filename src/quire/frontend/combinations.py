"""Fields of a generation request that exclude each other, and values that are brought into range with a word about it.

Tables first: what a beam search leaves no room for, and what a stream cannot have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quire.errors import RequestError
from quire.ranges import MIN_TEMPERATURE

if TYPE_CHECKING:
    from quire.frontend.validate import GenerateRequest

_NO_BEAMS: dict[str, tuple[Any, ...]] = {
    "best_of": (None,),
    "temperature": (None, 0, 1),
    "top_p": (None, 1),
    "top_k": (None, 0, -1),
    "min_p": (None, 0),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (None, 1),
    "min_tokens": (0,),
    "stop": ([], ""),
    "logit_bias": ({},),
    "allowed_token_ids": (None,),
    "bad_words": ([],),
    "prompt_logprobs": (None,),
    "logprob_token_ids": (None, []),
    "thinking_token_budget": (None, -1),
    "repetition_detection": (None,),
    "stream": (False,),
    "structured_outputs": (None,),
    "response_format": (None, {"type": "text"}),
    **dict.fromkeys(("guided_json", "guided_regex", "guided_choice", "guided_grammar"), (None,)),
}
"""What has no place in a beam search, with the values that ask for nothing: it ranks by the model's probabilities."""


def check_together(request: GenerateRequest) -> None:
    """What one field says about another.

    Raises:
        RequestError: naming the one to change.
    """
    if not -10 <= request.length_penalty <= 10:
        seen = request.length_penalty
        raise RequestError(f"length_penalty must be in [-10, 10], got {seen}.", param="length_penalty")
    if request.use_beam_search:
        _check_beams(request)
    if request.logprob_token_ids and (request.wanted_logprobs() is None or request.only_prompt):
        raise RequestError(
            "logprob_token_ids needs logprobs, and tokens that are generated.", param="logprob_token_ids"
        )
    if request.stream and request.num_candidates > request.n:
        raise RequestError(
            f"best_of ({request.best_of}) above n ({request.n}) cannot be streamed: the best are known at the end.",
            param="best_of",
        )
    if request.stream and request.prompt_logprobs is not None:
        raise RequestError("prompt_logprobs cannot be streamed: use stream=false.", param="prompt_logprobs")


def _check_beams(request: GenerateRequest) -> None:
    for name, neutral in _NO_BEAMS.items():
        value = getattr(request, name, None)
        if not any(value == one for one in neutral):
            raise RequestError(
                f"{name} cannot be combined with use_beam_search, got {str(value)[:100]}; leave it out.", param=name
            )
    if request.echo and request.wanted_logprobs() is not None:
        raise RequestError("echo with logprobs cannot be combined with use_beam_search.", param="echo")


def adjusted(request: GenerateRequest) -> list[str]:
    """Bring values into range, and name those without effect; sentences for the caller."""
    said = []
    if request.temperature is not None and 0 < request.temperature < MIN_TEMPERATURE:
        said.append(f"temperature {request.temperature} is raised to {MIN_TEMPERATURE}; use 0 for greedy.")
        request.temperature = MIN_TEMPERATURE
    if request.length_penalty != 1 and not request.use_beam_search:
        said.append("length_penalty has no effect without use_beam_search.")
    return said
