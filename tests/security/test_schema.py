"""schemathesis against our own /openapi.json: whatever the description allows, and what it does not, in any order.

Positive and negative data, edge cases of each field, zero bytes too. No answer may be a 5xx, none may have another form
than is described.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

schemathesis = pytest.importorskip("schemathesis")
from hypothesis import HealthCheck, Phase, settings  # noqa: E402
from schemathesis import GenerationMode  # noqa: E402
from schemathesis.checks import not_a_server_error  # noqa: E402
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance  # noqa: E402

sys.path[:0] = [str(Path(__file__).parents[1] / "server"), str(Path(__file__).parents[1] / "frontend")]

from fake_engine import FakeClient, Running, running  # noqa: E402

from quire.server.admission import Bounds  # noqa: E402
from quire.server.app import ROUTES  # noqa: E402
from quire.server.openapi import document  # noqa: E402

EXAMPLES = int(os.environ.get("QUIRE_TEST_EXAMPLES", "40"))
config = schemathesis.config.SchemathesisConfig.from_dict({"generation": {"mode": "all", "allow-x00": True}})
schema = schemathesis.openapi.from_dict(document(ROUTES), config=config)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(FakeClient("Hi."), bounds=Bounds(1000, 10**6)) as server:
        yield server
        assert server.admission.counts == (0, 0) and server.client.num_in_flight == 0


@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
    derandomize=True,
)
def test_every_operation(case: schemathesis.Case, server: Running) -> None:
    answer = case.call(base_url=server.url, timeout=20)
    case.validate_response(answer, checks=[not_a_server_error, content_type_conformance, response_schema_conformance])


def test_both_kinds_are_sent() -> None:
    modes = config.projects.default.generation.modes
    assert set(modes) == {GenerationMode.POSITIVE, GenerationMode.NEGATIVE}
