"""The schema against the server: Schemathesis asks thousands of odd things, allowed by the schema and not."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from terakoya.serve.settings import Limits
from terakoya.serve.shelf import Shelf
from tests.serve.conftest import Running, listening, tiny_loaded

CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance",
    "negative_data_rejection",  # what the schema does not allow is refused, not ignored
)  # fmt: skip


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    openers = {"tiny": tiny_loaded, "base": lambda: tiny_loaded(1, template=None)}
    with listening(Shelf(openers, Limits(answer=16, seconds=20))) as found:
        yield found


def test_errors_look_as_the_schema_says(running: Running) -> None:
    schema = running.http.get("/openapi.json").json()
    for path, methods in schema["paths"].items():
        for route in methods.values():
            assert {"4XX", "5XX"} <= set(route["responses"]), path
            assert "422" not in route["responses"]
    chat = schema["paths"]["/v1/chat/completions"]["post"]["responses"]["200"]["content"]
    assert set(chat) == {"application/json", "text/event-stream"}


@pytest.mark.parametrize("examples", [pytest.param(4, id="few"), pytest.param(150, id="many", marks=pytest.mark.slow)])
def test_schemathesis(running: Running, tmp_path: Path, examples: int) -> None:
    """By its command line, in a process of its own; models and roles are narrowed to what is there, to get further."""
    if importlib.util.find_spec("schemathesis") is None:
        pytest.skip("schemathesis is not installed")
    schema = running.http.get("/openapi.json").json()
    for known in schema["components"]["schemas"].values():
        fields = known.get("properties", {})
        if "model" in fields:
            nullable = any(kind.get("type") == "null" for kind in fields["model"].get("anyOf", ()))
            fields["model"] = {"enum": ["tiny", "base", *([None] if nullable else [])]}
        if "role" in fields and "enum" not in fields["role"]:
            fields["role"] = {"enum": ["system", "user", "assistant", "tool"]}
    file = tmp_path / "openapi.json"
    file.write_text(json.dumps(schema), encoding="utf-8")
    command = [sys.executable, "-m", "schemathesis.cli", "run", str(file), "--url", running.url, "--no-color"]
    phases = "coverage,fuzzing" if examples > 50 else "fuzzing"
    how = ["--phases", phases, "--max-examples", str(examples), "--generation-deterministic", "--continue-on-failure"]
    ended = subprocess.run(
        [*command, *how, "--checks", ",".join(CHECKS)],
        capture_output=True, encoding="utf-8", timeout=280, cwd=tmp_path, env=os.environ | {"PYTHONUTF8": "1"},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-2000:]
    assert running.http.get("/health").status_code == 200
    running.idle()
    assert 'status="500"' not in running.http.get("/metrics").text
