"""The model's tokenizer under the names that scripts know from transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quire.frontend.templates import ChatTemplate
from quire.frontend.tokenizer import Tokenizer

Conversation = Sequence[Mapping[str, Any]]


class PublicTokenizer:
    """What `LLM.get_tokenizer` returns. Defaults are those of transformers.

    Args:
        tokenizer: the model's.
        template: its chat template.

    Attributes:
        bos_token, eos_token, pad_token, unk_token: texts, None where there is none; the same with _id for their ids.
    """

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        self._tokenizer = tokenizer
        self._template = template
        texts = tokenizer.special_tokens
        self.bos_token, self.eos_token = texts.get("bos_token"), texts.get("eos_token")
        self.pad_token, self.unk_token = texts.get("pad_token"), texts.get("unk_token")
        self.bos_token_id, self.eos_token_id = self._id(self.bos_token), self._id(self.eos_token)
        self.pad_token_id, self.unk_token_id = self._id(self.pad_token), self._id(self.unk_token)

    def __len__(self) -> int:
        return self._tokenizer.vocab_size

    def __call__(self, text: str | Sequence[str], add_special_tokens: bool = True) -> dict[str, Any]:
        """{"input_ids": ..., "attention_mask": ...} of a text or a list of texts."""
        if isinstance(text, str):
            ids = self.encode(text, add_special_tokens)
            return {"input_ids": ids, "attention_mask": [1] * len(ids)}
        many = [self.encode(one, add_special_tokens) for one in text]
        return {"input_ids": many, "attention_mask": [[1] * len(ids) for ids in many]}

    # ---- text and ids --------------------------------------------------------------------------------------------

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text."""
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def decode(self, token_ids: int | Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of token ids."""
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        return self._tokenizer.decode(ids, skip_special_tokens)

    def batch_decode(self, sequences: Sequence[Sequence[int]], skip_special_tokens: bool = False) -> list[str]:
        """The texts of several lists of token ids."""
        return [self.decode(ids, skip_special_tokens) for ids in sequences]

    def tokenize(self, text: str) -> list[str]:
        """A text's tokens in the vocabulary's own spelling."""
        return [self._tokenizer.id_to_token(i) or "" for i in self.encode(text, add_special_tokens=False)]

    def apply_chat_template(
        self,
        conversation: Conversation,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = True,
        **kwargs: Any,
    ) -> str | list[int]:
        """The prompt of one conversation: token ids, or its text with tokenize=False.

        Raises:
            RequestError: as `LLM.chat` has it.
        """
        special = self._tokenizer.special_tokens
        template = self._template if chat_template is None else ChatTemplate(chat_template, special)
        text = template.render(
            conversation,
            tools=tools,
            documents=documents,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            kwargs=kwargs,
        )
        return self.encode(text, add_special_tokens=False) if tokenize else text

    # ---- the vocabulary ------------------------------------------------------------------------------------------

    @property
    def vocab_size(self) -> int:
        """Number of tokens, without those that were added later."""
        return len(self) - self._tokenizer.num_added

    @property
    def chat_template(self) -> str | None:
        """The source of the chat template."""
        return self._template.source

    @property
    def all_special_ids(self) -> list[int]:
        """Ids that skip_special_tokens leaves out."""
        return self._tokenizer.special_ids

    @property
    def all_special_tokens(self) -> list[str]:
        """Their texts."""
        return [self._tokenizer.id_to_token(i) or "" for i in self.all_special_ids]

    def get_vocab(self) -> dict[str, int]:
        """Token → id, of all tokens."""
        tokens = ((self._tokenizer.id_to_token(i), i) for i in range(len(self)))
        return {token: i for token, i in tokens if token is not None}

    def convert_ids_to_tokens(self, ids: int | Sequence[int]) -> str | list[str | None] | None:
        """Tokens in the vocabulary's own spelling; None for an id without one."""
        if isinstance(ids, int):
            return self._tokenizer.id_to_token(ids)
        return [self._tokenizer.id_to_token(i) for i in ids]

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> int | list[int | None] | None:
        """Ids of tokens; that of the unknown token, if there is one, for a text that is none."""
        if isinstance(tokens, str):
            found = self._tokenizer.token_to_id(tokens)
            return self.unk_token_id if found is None else found
        return [self.convert_tokens_to_ids(token) for token in tokens]  # type: ignore[misc]

    def is_special(self, token_id: int) -> bool:
        """Whether skip_special_tokens leaves this token out."""
        return self._tokenizer.is_special(token_id)

    def token_text(self, token_id: int) -> str:
        """The text of one token on its own; U+FFFD where it is part of a character."""
        return self._tokenizer.token_text(token_id)

    def _id(self, token: str | None) -> int | None:
        return None if token is None else self._tokenizer.token_to_id(token)
