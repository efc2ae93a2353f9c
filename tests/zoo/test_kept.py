"""Every family can be kept: a model of it, written to a folder and opened again, is the same bits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from terakoya import config
from terakoya.errors import TerakoyaError
from terakoya.model import spec
from terakoya.model.build import build, initialise
from terakoya.zoo import convert, lineage
from terakoya.zoo.config_json import OWN, in_their_words

VOCAB, CONTEXT = 600, 32


def trained(name: str) -> spec.Model:
    """Return the structure that `terakoya train model=NAME/nano` builds: another vocabulary, another context."""
    s = replace(lineage.sized(f"{name}/nano"), vocab=VOCAB, context=CONTEXT)
    return replace(s, encoder=s.encoder and replace(s.encoder, vocab=VOCAB, context=CONTEXT))


@pytest.mark.parametrize("name", lineage.families())
def test_every_family_is_kept_and_opened_bit_for_bit(name: str, tmp_path: Path) -> None:
    s = trained(name)
    made = initialise(build(s), 0)
    loaded = convert.Loaded(made, None, name)
    convert.save(loaded, tmp_path)
    again = convert.load(tmp_path)
    assert again.spec.layers() == s.layers() or in_their_words(s, name) is not None  # theirs may say it shorter
    own = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["model_type"] == OWN
    assert own == (in_their_words(s, name) is None)
    if own:
        assert (again.family, again.spec) == (name, s)
    want, got = made.state_dict(), again.model.state_dict()
    assert want.keys() == got.keys()
    assert all(torch.equal(got[k], v) for k, v in want.items())


@pytest.mark.parametrize("name", lineage.families())
def test_every_checkpoint_is_restored_bit_for_bit(name: str) -> None:
    s = trained(name)
    made = initialise(build(s), 0)
    again = convert.restored(s, name, convert.tensors(made, name), "checkpoint")
    assert all(torch.equal(v, made.state_dict()[k]) for k, v in again.state_dict().items())


THEIRS = [n for n, f in lineage.families().items() if f.model_type]


@pytest.mark.parametrize("name", THEIRS)
def test_what_hugging_face_has_a_class_for_is_written_in_its_words(name: str) -> None:
    assert in_their_words(trained(name), name) is not None


def test_a_changed_structure_is_kept_in_our_words(tmp_path: Path) -> None:
    """No config.json of llama has a word for ALiBi; written as llama it would be another model."""
    s = config.override(trained("llama"), {"attention.position": spec.Alibi()})
    convert.save(convert.Loaded(initialise(build(s), 0), None, "llama"), tmp_path)
    assert convert.load(tmp_path).spec == s


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"family": "lama"}, "llama"),
        ({"family": None}, "family"),
        ({"spec": 3}, "spec"),
        ({"spec": "dim = "}, "spec"),
        ({"spec": "dimm = 3"}, "dim"),
    ],
    ids=["family", "no family", "number", "no TOML", "unknown field"],
)
def test_a_broken_one_says_what_is_wrong(change: dict[str, object], says: str, tmp_path: Path) -> None:
    convert.save(convert.Loaded(build(trained("rnn")), None, "rnn"), tmp_path)
    said = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(said | change), encoding="utf-8")
    with pytest.raises(TerakoyaError, match=says) as caught:
        convert.load(tmp_path)
    assert "config.json" in str(caught.value)
    assert "\n" not in str(caught.value)
