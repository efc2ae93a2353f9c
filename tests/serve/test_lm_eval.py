"""lm-eval over HTTP, on tasks of our own: what it finds is what our own evaluation finds on the same items."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from terakoya.eval.perplexity import score
from terakoya.serve.settings import Limits
from terakoya.serve.shelf import Shelf
from terakoya.zoo import convert
from tests.serve.conftest import listening, tiny_loaded

ITEMS = [
    {"question": "寺子屋では", "choices": ["読み書きを習う", "船を造る"], "answer": 0},
    {"question": "2 + 3 =", "choices": [" 4", " 5", " 55"], "answer": 1},
    {"question": "The teacher said:", "choices": [" good morning", " 👩‍👩‍👧", "\n\n"], "answer": 0},
]
CHOICES = """
task: school
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
doc_to_choice: "{{{{choices}}}}"
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""
TEXTS = """
task: reading
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metric_list: [{{metric: bits_per_byte}}]
"""


class Bare:
    """A tokenizer that puts nothing round a text but what lm-eval does."""

    def __init__(self, tokenizer: Any, begin: list[int]) -> None:
        self.encode, self.token_bytes, self._begin = tokenizer.encode, tokenizer.token_bytes, begin

    def wrap(self) -> tuple[list[int], list[int]]:
        return self._begin, []


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")
def test_local_completions(tmp_path: Path) -> None:
    """Choices one by one, and whole texts; no hub: the tasks and the tokenizer are files."""
    loaded = tiny_loaded(template=None)
    convert.save(loaded, tmp_path / "model")
    (tmp_path / "items.jsonl").write_text(
        "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in ITEMS), encoding="utf-8"
    )
    for name, task in (("school", CHOICES), ("reading", TEXTS)):
        text = task.format(data=tmp_path / "items.jsonl")
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    quiet = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache"), "PYTHONUTF8": "1"}
    with listening(Shelf({"tiny": lambda: loaded}, Limits())) as running:
        where = f"base_url={running.url}/v1/completions,model=tiny,tokenizer={tmp_path / 'model'}"
        how = f"{where},tokenizer_backend=huggingface,num_concurrent=2,max_retries=1,max_length=256"
        command = ["-m", "lm_eval", "run", "--model", "local-completions", "--model_args", how]
        files = ["--include_path", str(tmp_path), "--output_path", str(tmp_path / "out"), "--log_samples"]
        ended = subprocess.run(
            [sys.executable, *command, "--tasks", "school,reading", *files],
            capture_output=True, encoding="utf-8", timeout=250, env=os.environ | quiet,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr[-3000:]

    def told(task: str) -> list[dict]:
        (file,) = (tmp_path / "out").rglob(f"samples_{task}_*.jsonl")
        lines = file.read_text(encoding="utf-8").splitlines()
        return sorted((json.loads(line) for line in lines), key=lambda row: row["doc_id"])

    def nats(text: str, begin: list[int]) -> float:
        return score(loaded.model, Bare(loaded.tokenizer, begin), [text]).nats  # type: ignore[arg-type]

    rows = told("school")
    assert len(rows) == len(ITEMS)
    for item, row in zip(ITEMS, rows, strict=True):
        wanted = [nats(item["question"], []) - nats(item["question"] + c, []) for c in item["choices"]]
        found = [float(value) for value, _ in row["filtered_resps"]]
        assert found == pytest.approx(wanted, abs=2e-3)
        assert row["acc"] == float(wanted.index(max(wanted)) == item["answer"])
    begin = loaded.tokenizer.eos if loaded.tokenizer.bos is None else loaded.tokenizer.bos
    for item, row in zip(ITEMS, told("reading"), strict=True):
        (found,) = row["filtered_resps"]
        assert float(found) == pytest.approx(-nats(item["question"], [begin]), abs=2e-3)
