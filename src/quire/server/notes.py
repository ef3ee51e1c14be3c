"""What the API's description says about fields: one sentence each, where type, default and name do not say it all."""

from __future__ import annotations

from quire.frontend.decode import MAX_DEPTH
from quire.frontend.validate import (
    MAX_CHOICES,
    MAX_PROMPTS,
    MAX_STOP_BYTES,
    MAX_TEMPLATE_KWARGS,
    MAX_TIMEOUT,
    Request,
)
from quire.params import MAX_LOGPROBS, describe_range

NOTES: dict[str, str] = {
    "ChatRequest.logprobs": "Log-probability of each token of the answer.",
    "ChatRequest.max_tokens": "Old name of max_completion_tokens, which wins.",
    "CompletionRequest.logprobs": f"In 0..{MAX_LOGPROBS}: so many alternatives per token.",
    "CompletionRequest.max_tokens": "16 if not given.",
    "TokenizeRequest.prompt": "A text; or give messages.",
    "add_generation_prompt": "Let the template open the assistant's turn.",
    "add_special_tokens": "Put the checkpoint's tokens around the text; in a chat the template has done so.",
    "allowed_token_ids": "Only these tokens may come.",
    "bad_words": "Texts that must not come.",
    "cache_salt": "Shares cached prefixes only with the same salt: 1..128 letters, digits, '_', '.' and '-'.",
    "chat_template_kwargs": f"Variables for the template: up to {MAX_TEMPLATE_KWARGS} scalars.",
    "continue_final_message": "Go on with the last message; needs add_generation_prompt=false.",
    "continuous_usage_stats": "Usage in every chunk.",
    "documents": "Handed to the template.",
    "ignore_eos": "Go on after the model's end token.",
    "include_reasoning": "false leaves reasoning out of the answer.",
    "include_stop_str_in_output": "Keep the text that stopped the answer.",
    "include_usage": "A last chunk with token counts.",
    "logit_bias": "Added to the logits of tokens, by token id.",
    "max_completion_tokens": "As many as fit if not given.",
    "messages": f"role and content (text, or text parts) each; JSON at most {MAX_DEPTH} levels deep.",
    "min_tokens": "No end before so many tokens.",
    "model": "One of the served names; may be left out.",
    "n": f"Answers per prompt, in 1..{MAX_CHOICES}.",
    "parallel_tool_calls": "false: at most one call.",
    "priority": "Smaller runs earlier, with --scheduling-policy priority.",
    "prompt": f"Text, token ids, or up to {MAX_PROMPTS} of either; n times prompts at most {MAX_PROMPTS}.",
    "reasoning_effort": "Handed to the template; a warning where it does not read it.",
    "return_token_strs": "The text of each token as well.",
    "seed": "The same seed gives the same answer. A 64-bit integer.",
    "skip_special_tokens": "false keeps special tokens in the text.",
    "stop": f"Up to 16 texts of up to {MAX_STOP_BYTES} bytes that end the answer and are cut from it.",
    "stop_token_ids": "Token ids that end the answer, up to 256.",
    "stream": "Server-sent events instead of one answer.",
    "stream_options": "Needs stream=true.",
    "timeout": f"Seconds, up to {MAX_TIMEOUT}: not done by then it ends, 504. The same as x-request-timeout.",
    "tokens": "Token ids.",
    "tool_choice": "Whether one of them may or must be called, and which.",
    "tools": "Functions that the model may call.",
    "top_logprobs": f"Alternatives per token, in 0..{MAX_LOGPROBS}; needs logprobs=true.",
}
"""By field, or by type and field where types differ."""


def note_on(kind: type[Request] | str, field: str) -> str:
    """What is to be said about a field; empty if nothing."""
    name = kind if isinstance(kind, str) else kind.__name__
    found = NOTES.get(f"{name}.{field}") or NOTES.get(field)
    if found is None and (allowed := describe_range(field)) is not None and allowed != "true or false":
        found = f"{allowed[0].upper()}{allowed[1:]}."
    return found or ""
