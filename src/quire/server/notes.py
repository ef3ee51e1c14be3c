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
from quire.ranges import MAX_LISTED, MAX_LOGPROBS, describe_range

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
    "best_of": f"Generate so many, n..{MAX_CHOICES}, and return the n likeliest; not with stream.",
    "cache_salt": "Shares cached prefixes only with the same salt: 1..128 letters, digits, '_', '.' and '-'.",
    "chat_template": "A Jinja template for this request; needs --trust-request-chat-template.",
    "chat_template_kwargs": f"Variables for the template: up to {MAX_TEMPLATE_KWARGS} scalars.",
    "continue_final_message": "Go on with the last message; needs add_generation_prompt=false.",
    "continuous_usage_stats": "Usage in every chunk.",
    "documents": "Handed to the template.",
    "ChatRequest.echo": "The last message in front of the answer, if it is the assistant's.",
    "CompletionRequest.echo": "The prompt in front of the answer, with its log-probabilities if those are asked for.",
    "guided_choice": "Old name of structured_outputs.choice.",
    "guided_grammar": "Old name of structured_outputs.grammar.",
    "guided_json": "Old name of structured_outputs.json.",
    "guided_regex": "Old name of structured_outputs.regex.",
    "guided_whitespace_pattern": "Old name of structured_outputs.whitespace_pattern; needs guided_json.",
    "ignore_eos": "Go on after the model's end token.",
    "include_reasoning": "false leaves reasoning out of the answer.",
    "include_stop_str_in_output": "Keep the text that stopped the answer.",
    "include_usage": "A last chunk with token counts.",
    "length_penalty": "Of a beam search, in [-10, 10]: hypotheses are ranked by log-probability / length ** penalty.",
    "logprob_token_ids": f"Up to {MAX_LISTED} tokens that logprobs tell of instead of the likeliest; needs logprobs.",
    "logit_bias": "Added to the logits of tokens, by token id.",
    "max_completion_tokens": "As many as fit if not given.",
    "messages": f"role and content (text, or parts: text, image_url) each; JSON at most {MAX_DEPTH} levels deep.",
    "min_tokens": "No end before so many tokens.",
    "model": "One of the served names; may be left out.",
    "n": f"Answers per prompt, in 1..{MAX_CHOICES}.",
    "parallel_tool_calls": "false: at most one call.",
    "priority": "Smaller runs earlier, with --scheduling-policy priority.",
    "prompt": f"Text, token ids, or up to {MAX_PROMPTS} of either; n times prompts at most {MAX_PROMPTS}.",
    "prompt_logprobs": f"So many alternatives per token of the prompt, in 0..{MAX_LOGPROBS}; not with stream.",
    "repetition_detection": "max_pattern_size, min_pattern_size, min_count: ends an answer whose last tokens are a "
    "pattern of such a size, so many times in a row, with finish_reason repetition.",
    "request_id": "For logs, and the answer's x-request-id: 1..128 letters, digits, '_', '.', ':' and '-'.",
    "response_format": "type text, json_object, json_schema or structural_tag: what the answer must look like.",
    "return_prompt_text": "The rendered prompt as prompt_text.",
    "return_token_ids": "token_ids of each choice or chunk, and prompt_token_ids.",
    "return_tokens_as_token_ids": "Tokens of logprobs as token_id:N.",
    "reasoning_effort": "Handed to the template; a warning where it does not read it.",
    "return_token_strs": "The text of each token as well.",
    "seed": "The same seed gives the same answer. A 64-bit integer.",
    "skip_special_tokens": "false keeps special tokens in the text.",
    "spaces_between_special_tokens": "false puts nothing between special tokens in a row.",
    "structured_outputs": "Exactly one of json, regex, choice, grammar, json_object, structural_tag, and options.",
    "thinking_token_budget": "Most tokens to think, then the thoughts are closed; -1 is no bound.",
    "truncate_prompt_tokens": "Keep so many of the prompt's tokens; -1: as many as fit beside max_tokens.",
    "truncation_side": "The end that is cut off.",
    "use_beam_search": "The n likeliest answers by beam search, n its width; not with fields that sample, nor stream.",
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
