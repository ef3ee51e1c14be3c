"""instructor, in the mode that reads JSON from the text of an answer; from the extra `clients`."""

from __future__ import annotations

import openai
import pytest
from fake_engine import FakeClient, running

instructor = pytest.importorskip("instructor")


def test_json_in_text() -> None:
    from pydantic import BaseModel

    class Person(BaseModel):
        name: str
        age: int

    with running(FakeClient('```json\n{"name": "Ada", "age": 7}\n```', max_model_len=4096)) as server:
        client = openai.OpenAI(base_url=server.url + "/v1", api_key="x", max_retries=0)
        asking = instructor.from_openai(client, mode=instructor.Mode.MD_JSON)
        messages = [{"role": "user", "content": "x"}]
        found = asking.chat.completions.create(model="fake", messages=messages, response_model=Person, max_retries=0)
        assert (found.name, found.age) == ("Ada", 7)
        partial = asking.chat.completions.create_partial(model="fake", messages=messages, response_model=Person)
        assert list(partial)[-1].age == 7
