"""Folders that are malicious, broken or absurd: refused in one line that says where and what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from terakoya.config import override
from terakoya.errors import TerakoyaError
from terakoya.model.build import build, initialise
from terakoya.zoo import convert, lineage

CHANGES = {"vocab": 64, "context": 32}


@pytest.fixture(params=["llama", "qwen3-moe", "deepseek-v3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    s = override(lineage.rescale(lineage.base(request.param), 32, 4, 16), CHANGES)
    convert.save(convert.Loaded(initialise(build(s), 0), None, request.param), tmp_path)
    assert convert.load(tmp_path).spec.vocab == 64
    return tmp_path


def refused(folder: Path) -> str:
    with pytest.raises(TerakoyaError) as caught:
        convert.load(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700 + len(str(folder))
    return message


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    table = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(table), encoding="utf-8")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_missing_tensors_are_listed(folder: Path) -> None:
    held = weights(folder)
    gone = [k for k in held if "layers.1.self_attn" in k][:2]
    save_file({k: v for k, v in held.items() if k not in gone}, folder / "model.safetensors")
    message = refused(folder)
    assert "lacks 2 tensors" in message
    assert all(name in message for name in gone)


def test_tensors_without_a_place_are_listed(folder: Path) -> None:
    save_file(weights(folder) | {"model.layers.0.extra.weight": torch.ones(2)}, folder / "model.safetensors")
    assert "holds 1 tensors this family has no place for" in refused(folder)
    assert "model.layers.0.extra.weight" in refused(folder)


def test_layers_that_guess_ahead_are_told_from_strangers(folder: Path) -> None:
    """DeepSeek-V3's files hold a layer after the last, and say so in config.json."""
    save_file(weights(folder) | {"model.layers.4.eh_proj.weight": torch.ones(2)}, folder / "model.safetensors")
    assert "model.layers.4.eh_proj.weight" in refused(folder)
    edit(folder, num_nextn_predict_layers=1)
    assert convert.load(folder).spec.depth == 4


def test_wrong_shapes_are_named(folder: Path) -> None:
    held = weights(folder)
    name = next(k for k in held if k.endswith("o_proj.weight"))
    for wrong in (held[name][:, :-1].contiguous(), held[name].flatten(), torch.ones(0, 3), torch.tensor(1.0)):
        save_file(held | {name: wrong}, folder / "model.safetensors")
        assert name in refused(folder)
        assert "wrong shape" in refused(folder)


def test_pickles_are_refused_with_the_way_out(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    assert "safetensors" in refused(folder)
    assert not Path("ran").exists()


BAD: dict[str, dict[str, Any]] = {
    "heads text": {"num_attention_heads": "four"},
    "heads zero": {"num_attention_heads": 0},
    "heads negative": {"num_attention_heads": -4},
    "heads float": {"num_attention_heads": 2.5},
    "heads bool": {"num_attention_heads": True},
    "heads list": {"num_attention_heads": [4]},
    "width negative": {"hidden_size": -32},
    "width text": {"hidden_size": "32"},
    "width zero": {"hidden_size": 0},
    "depth zero": {"num_hidden_layers": 0},
    "depth text": {"num_hidden_layers": "x"},
    "depth huge": {"num_hidden_layers": 10**12},
    "vocab negative": {"vocab_size": -1},
    "vocab huge": {"vocab_size": 10**15},
    "vocab beyond 64 bits": {"vocab_size": 10**30},
    "hidden huge": {"intermediate_size": 10**14, "moe_intermediate_size": 10**14},
    "hidden text": {"intermediate_size": "wide"},
    "eps text": {"rms_norm_eps": "small"},
    "act unknown": {"hidden_act": "softsign"},
    "act list": {"hidden_act": ["silu"]},
    "rope text": {"rope_parameters": "yarn"},
    "rope type": {"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}},
    "rope theta": {"rope_parameters": {"rope_type": "default", "rope_theta": "far"}},
    "rope without factors": {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}},
    "unknown key": {"use_magic": True},
    "unknown number": {"magic": 1},
    "tie text": {"tie_word_embeddings": "yes"},
    "model_type": {"model_type": "lama"},
    "model_type list": {"model_type": ["llama"]},
    "model_type none": {"model_type": None},
}


@pytest.mark.parametrize("case", BAD)
def test_config_is_refused_in_one_line(folder: Path, case: str) -> None:
    edit(folder, **BAD[case])
    assert "config.json" in refused(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_key_value_heads": 3},
        {"num_key_value_heads": -1},
        {"head_dim": 0},
        {"head_dim": 10**10},
        {"num_attention_heads": 5, "head_dim": None},
    ],
)
def test_heads_that_do_not_fit(tmp_path: Path, changes: dict[str, Any]) -> None:
    s = override(lineage.rescale(lineage.base("mistral"), 32, 2, 8), CHANGES)
    convert.save(convert.Loaded(initialise(build(s), 0), None, "mistral"), tmp_path)
    edit(tmp_path, **changes)
    assert "config.json" in refused(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_experts_per_tok": 99},
        {"num_experts_per_tok": 0},
        {"num_local_experts": 0},
        {"num_local_experts": 10**12},
        {"num_local_experts": "8"},
        {"mlp_only_layers": "all"},
        {"mlp_only_layers": 3},
        {"moe_intermediate_size": -5},
        {"moe_intermediate_size": 10**13},
        {"norm_topk_prob": "no"},
    ],
)
def test_experts_that_do_not_fit(tmp_path: Path, changes: dict[str, Any]) -> None:
    s = override(lineage.rescale(lineage.base("qwen3-moe"), 32, 2, 16), CHANGES)
    convert.save(convert.Loaded(initialise(build(s), 0), None, "qwen3-moe"), tmp_path)
    table = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    table.pop("num_experts", None)
    (tmp_path / "config.json").write_text(json.dumps(table), encoding="utf-8")
    edit(tmp_path, **changes)
    assert "config.json" in refused(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [{"layer_types": ["full_attention"]}, {"layer_types": ["round_attention"] * 6}, {"layer_types": 7}],
)
def test_layers_that_do_not_fit(tmp_path: Path, changes: dict[str, Any]) -> None:
    s = override(lineage.rescale(lineage.base("gemma3"), 32, 6, 16), CHANGES)
    convert.save(convert.Loaded(initialise(build(s), 0), None, "gemma3"), tmp_path)
    edit(tmp_path, **changes)
    assert "layer_types" in refused(tmp_path)


def test_sizes_that_the_file_does_not_hold_are_refused_before_allocation(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A config may ask for half a terabyte that would pass as a real model: the weights beside it say otherwise."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("allocated")

    edit(folder, vocab_size=10**9)
    monkeypatch.setattr(torch.nn.Module, "to_empty", fail)
    assert "wrong shape" in refused(folder)


def test_config_that_is_no_table(folder: Path) -> None:
    for text in ("", "[]", "{", "3", '{"a":' * 10**5):
        (folder / "config.json").write_text(text, encoding="utf-8")
        assert "config.json" in refused(folder)
    (folder / "config.json").write_bytes(b"\xff\xfe{}")
    assert "config.json" in refused(folder)


def test_an_index_that_points_outside(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "stolen.safetensors")
    index = {"weight_map": dict.fromkeys(weights_of(folder.parent / "stolen.safetensors"), "../stolen.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert "not a plain name" in refused(folder)


def weights_of(path: Path) -> list[str]:
    return list(load_file(path))


# A stranger's config.json: the nearest known family, and what it would not understand


@pytest.mark.parametrize(
    ("model_type", "like", "strange", "nearest"),
    [
        ("swallowtail", "llama", {}, "llama"),
        ("mistralish", "mistral", {"use_flux": True}, "mistral"),
        ("novel_moe", "qwen3_moe", {"expert_dance": 3}, "qwen3_moe"),
        ("gpt2_japanese", "gpt2", {}, "gpt2"),
    ],
)
def test_an_unknown_type_says_what_is_nearest(
    model_type: str, like: str, strange: dict[str, Any], nearest: str
) -> None:
    family = lineage.by_model_type(like)
    assert family is not None
    table = convert.make_config(lineage.base(family.name), family.name, None, "float32")
    with pytest.raises(TerakoyaError) as caught:
        convert.spec_of(table | {"model_type": model_type} | strange, "config.json")
    message = str(caught.value)
    assert f"reads like {nearest!r}" in message
    assert all(key in message for key in strange)
