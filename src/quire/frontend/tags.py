"""Structural tags: free text in which some parts, between tags, follow a schema. Written as a grammar in Lark.

Two forms are taken, both as vLLM has them:

    {"type": "structural_tag", "structures": [{"begin", "schema", "end"}, …], "triggers": ["<function="]}
    {"type": "structural_tag", "format": {"type": "sequence" | "or" | "tag" | "triggered_tags" | …}}
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from quire.errors import RequestError
from quire.frontend.tokenizer import Tokenizer

MAX_DEPTH = 16
_ANY = "TEXT"
_HEAD = "%llguidance {}\n"
_TEXT = "TEXT: /(.|\\n)*/\n"


class TagWriter:
    """Writes one grammar.

    Args:
        tokenizer: special tokens in tags are named by their ids, since no text can spell them.
        space: between the parts of JSON, as a regular expression; None for none.
        check: returns a schema that is within the limits.
        lenient: leave out what a schema asks for and cannot be held to.
    """

    def __init__(
        self, tokenizer: Tokenizer, space: str | None, check: Callable[[Any], Any], *, lenient: bool = False
    ) -> None:
        self._special = tokenizer.special_by_text()
        self._tags = re.compile("|".join(map(re.escape, sorted(self._special, key=len, reverse=True))) or "(?!)")
        self._space = space
        self._check = check
        self._lenient = lenient
        self._rules: list[str] = []
        self._source = ""

    def write(self, tag: Mapping[str, Any], source: str) -> str:
        """The grammar of a whole answer.

        Args:
            tag: as in a request.
            source: the field to name in errors.

        Raises:
            RequestError: it is not as it should be.
        """
        self._source = source
        if "structures" in tag:
            body = self._old_form(tag)
        elif isinstance(tag.get("format"), Mapping):
            body = self._part(tag["format"], "format", 0)
        else:
            self._refuse("structural_tag", "'structures' and 'triggers', or 'format'")
        return self.grammar(body)

    def grammar(self, body: str) -> str:
        """A whole grammar around an expression of this writer's."""
        return f"{_HEAD}start: {body}\n{''.join(self._rules)}{_TEXT}"

    # ---- pieces --------------------------------------------------------------------------------------------------

    def text(self, text: str) -> str:
        """An expression for a text, which may have special tokens in it."""
        pieces, at = [], 0
        for match in self._tags.finditer(text):
            if match.start() > at:
                pieces.append(json.dumps(text[at : match.start()], ensure_ascii=False))
            pieces.append(f"<[{self._special[match.group()]}]>")
            at = match.end()
        if at < len(text):
            pieces.append(json.dumps(text[at:], ensure_ascii=False))
        return " ".join(pieces)

    def schema(self, schema: Any) -> str:
        """An expression for JSON."""
        schema = self._check(schema)
        if isinstance(schema, bool):
            schema = {} if schema else {"enum": []}
        options: dict[str, Any] = {"lenient": self._lenient, "coerce_one_of": self._lenient}
        if self._space is None:
            options["whitespace_flexible"] = False
        else:
            options["whitespace_pattern"] = self._space
        return "%json " + json.dumps({**schema, "x-guidance": options}, ensure_ascii=False)

    def triggered(
        self, tags: Sequence[tuple[str, str, str]], *, at_least_one: bool = False, only_first: bool = False
    ) -> str:
        """Free text with tags in it.

        Args:
            tags: of each the text that triggers it, the rest of its beginning, and an expression for what follows.
            at_least_one: the text has a tag.
            only_first: it ends with the first.
        """
        names = []
        for trigger, rest, content in tags:
            names.append(self._rule(f"{self._up_to(trigger)} {self.text(rest)} {content}"))
        any_tag = f"({' | '.join(names)})"
        if only_first:
            return any_tag if at_least_one else f"({any_tag} | {_ANY})"
        return f"{any_tag}{'+' if at_least_one else '*'} {_ANY}"

    def _up_to(self, end: str) -> str:
        """Free text, and what ends it."""
        if self._tags.match(end):
            return f"{_ANY} {self.text(end)}"
        cut = self._tags.search(end)
        head, tail = (end[: cut.start()], end[cut.start() :]) if cut else (end, "")
        name = self._rule(f"{_ANY} {json.dumps(head, ensure_ascii=False)}", "[lazy]")
        return f"{name} {self.text(tail)}"

    def _rule(self, body: str, attributes: str = "") -> str:
        name = f"part_{len(self._rules)}"
        self._rules.append(f"{name}{attributes}: {body}\n")
        return name

    # ---- what requests say ---------------------------------------------------------------------------------------

    def _old_form(self, tag: Mapping[str, Any]) -> str:
        triggers = self._texts(tag.get("triggers"), "triggers")
        tags = []
        for i, structure in enumerate(self._list(tag["structures"], "structures")):
            where = f"structures[{i}]"
            begin = self._string(structure, "begin", where)
            content = f"{self.schema(structure.get('schema', {}))} {self._end(structure, where)}"
            tags.append((*self._split(begin, triggers, where), content))
        return self.triggered(tags)

    def _part(self, part: Any, where: str, depth: int) -> str:
        if depth > MAX_DEPTH:
            self._refuse(where, f"nested at most {MAX_DEPTH} deep")
        kind = part.get("type") if isinstance(part, Mapping) else None
        method = _PARTS.get(kind) if isinstance(kind, str) else None
        if method is None:
            self._refuse(f"{where}.type", f"one of {', '.join(_PARTS)}")
        return method(self, part, where, depth)

    def _const_string(self, part: Mapping[str, Any], where: str, depth: int) -> str:
        return self.text(self._string(part, "value", where))

    def _json_schema(self, part: Mapping[str, Any], where: str, depth: int) -> str:
        return self.schema(part.get("json_schema", {}))

    def _regex(self, part: Mapping[str, Any], where: str, depth: int) -> str:
        pattern = self._string(part, "pattern", where).replace("\n", "\\n")
        return "/" + re.sub(r"(?<!\\)/", r"\\/", pattern) + "/"

    def _any_text(self, part: Mapping[str, Any], where: str, depth: int) -> str:
        return _ANY

    def _sequence(self, part: Mapping[str, Any], where: str, depth: int) -> str:
        elements = self._list(part.get("elements"), f"{where}.elements")
        found = [self._part(element, f"{where}.elements[{i}]", depth + 1) for i, element in enumerate(elements)]
        return " ".join(f"({one})" for one in found)

    def _or(self, part: Mapping[str, Any], where: str, depth: int) -> str:
        elements = self._list(part.get("elements"), f"{where}.elements")
        found = [self._part(element, f"{where}.elements[{i}]", depth + 1) for i, element in enumerate(elements)]
        return "(" + " | ".join(found) + ")"

    def _tag(self, part: Mapping[str, Any], where: str, depth: int) -> str:
        return f"{self.text(self._string(part, 'begin', where))} {self._tag_rest(part, where, depth)}"

    def _tag_rest(self, part: Mapping[str, Any], where: str, depth: int) -> str:
        """Content and end of a tag. Free text ends where its end comes first."""
        content = part.get("content")
        if isinstance(content, Mapping) and content.get("type") == "any_text" and part.get("end"):
            return self._up_to(self._string(part, "end", where))
        return f"({self._part(content, f'{where}.content', depth + 1)}) {self._end(part, where)}"

    def _triggered_tags(self, part: Mapping[str, Any], where: str, depth: int) -> str:
        triggers = self._texts(part.get("triggers"), f"{where}.triggers")
        tags = []
        for i, tag in enumerate(self._list(part.get("tags"), f"{where}.tags")):
            inside = f"{where}.tags[{i}]"
            split = self._split(self._string(tag, "begin", inside), triggers, inside)
            tags.append((*split, self._tag_rest(tag, inside, depth + 1)))
        at_least_one, only_first = bool(part.get("at_least_one")), bool(part.get("stop_after_first"))
        return self.triggered(tags, at_least_one=at_least_one, only_first=only_first)

    def _tags_with_separator(self, part: Mapping[str, Any], where: str, depth: int) -> str:
        tags = self._list(part.get("tags"), f"{where}.tags")
        found = [self._tag(tag, f"{where}.tags[{i}]", depth + 1) for i, tag in enumerate(tags)]
        one = f"({' | '.join(found)})"
        separator = self.text(self._string(part, "separator", where))
        several = one if part.get("stop_after_first") else f"{one} ({separator} {one})*"
        return several if part.get("at_least_one") else f"({several})?"

    # ---- checks --------------------------------------------------------------------------------------------------

    def _split(self, begin: str, triggers: Sequence[str], where: str) -> tuple[str, str]:
        trigger = next((trigger for trigger in triggers if begin.startswith(trigger)), None)
        if trigger is None:
            self._refuse(f"{where}.begin", f"a text that begins with one of the triggers; got {begin[:60]!r}")
        return trigger, begin[len(trigger) :]

    def _end(self, part: Mapping[str, Any], where: str) -> str:
        return self.text(self._string(part, "end", where)) if part.get("end") else ""

    def _string(self, part: Any, name: str, where: str) -> str:
        value = part.get(name) if isinstance(part, Mapping) else None
        if not isinstance(value, str) or not value:
            self._refuse(f"{where}.{name}", "text that is not empty")
        return value

    def _texts(self, value: Any, where: str) -> list[str]:
        texts = self._list(value, where)
        if not all(isinstance(text, str) and text for text in texts):
            self._refuse(where, "a list of texts that are not empty")
        return texts

    def _list(self, value: Any, where: str) -> list[Any]:
        if not isinstance(value, list) or not value:
            self._refuse(where, "a list that is not empty")
        return value

    def _refuse(self, where: str, allowed: str) -> NoReturn:
        raise RequestError(f"{self._source}: {where} must be {allowed}.", param=self._source)


_PARTS: dict[str, Callable[[TagWriter, Mapping[str, Any], str, int], str]] = {
    "const_string": TagWriter._const_string,
    "json_schema": TagWriter._json_schema,
    "regex": TagWriter._regex,
    "any_text": TagWriter._any_text,
    "sequence": TagWriter._sequence,
    "or": TagWriter._or,
    "tag": TagWriter._tag,
    "triggered_tags": TagWriter._triggered_tags,
    "tags_with_separator": TagWriter._tags_with_separator,
}
