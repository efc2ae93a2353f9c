"""Checkpoints of other libraries: packed here by the published layouts, one number at a time, and opened by us."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from terakoya.errors import TerakoyaError
from terakoya.quant.linear import nbytes, packed_layers
from terakoya.zoo import convert
from terakoya.zoo.convert import Loaded
from terakoya.zoo.weights import open_weights, save_weights
from tests.quant.small import logits, small, tokenizer

Folder = Path
GROUP = 32
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
FP4 = (0.0, 0.0052083333, 0.66666667, 1.0, 0.33333333, 0.5, 0.16666667, 0.25)  # bitsandbytes' fp4 map, then negatives


def checkpoint(folder: Folder, family: str = "smollm2") -> dict[str, Tensor]:
    """Write a small model as a plain Hugging Face folder; return its tensors."""
    convert.save(Loaded(small(family), tokenizer(), family), folder)
    weights = open_weights(folder)
    return {name: weights.get(name).clone() for name in weights}


def matrices(tensors: dict[str, Tensor]) -> list[str]:
    return [n.removesuffix(".weight") for n in tensors if n.endswith("_proj.weight") and ".layers." in n]


def rewrite(folder: Folder, tensors: dict[str, Tensor], told: dict[str, object] | None) -> Loaded:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("quantization_config", None)
    if told is not None:
        config["quantization_config"] = told
    path.write_text(json.dumps(config), encoding="utf-8")
    save_weights(folder, tensors)
    return convert.load(folder)


def quantised(w: Tensor, index: list[int], seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Integers with odd scales and zeros: codes (K, N), zeros, scales (G, N), and the numbers they stand for (N, K)."""
    g = torch.Generator().manual_seed(seed)
    groups = max(index) + 1
    scales = (w.std() / 4 * (0.5 + torch.rand(groups, len(w), generator=g))).half()
    zeros = torch.randint(1, 16, (groups, len(w)), generator=g)
    per_input = torch.tensor(index)
    codes = ((w.T / scales.float()[per_input]).round() + zeros[per_input]).clamp(0, 15).int()
    dense = (codes.float() - zeros[per_input]) * scales.float()[per_input]
    return codes, zeros, scales, dense.T.contiguous()


def words(rows: Tensor, order: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7)) -> Tensor:
    """Pack eight neighbours of the last axis into a word: nibble i holds neighbour order[i]."""
    out = []
    for row in rows.tolist():
        packed = []
        for a in range(0, len(row), 8):
            word = sum(int(row[a + order[i]]) << 4 * i for i in range(8))
            packed.append(word - (1 << 32) if word >= 1 << 31 else word)
        out.append(packed)
    return torch.tensor(out, dtype=torch.int32)


@pytest.mark.parametrize("form", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("shuffled", [False, True], ids=["in order", "by activation order"])
def test_gptq(form: str, shuffled: bool, tmp_path: Path) -> None:
    plain = checkpoint(tmp_path / "a")
    packed, dense = dict(plain), dict(plain)
    for i, owner in enumerate(matrices(plain)):
        w = packed.pop(f"{owner}.weight")
        index = [k // GROUP for k in range(w.shape[1])]
        if shuffled:
            index = [index[k] for k in torch.randperm(len(index), generator=torch.Generator().manual_seed(i)).tolist()]
        codes, zeros, scales, dense[f"{owner}.weight"] = quantised(w, index, i)
        packed[f"{owner}.qweight"] = words(codes.T).T.contiguous()  # eight inputs of one output a word
        packed[f"{owner}.qzeros"] = words(zeros - int(form == "gptq"))
        packed[f"{owner}.scales"] = scales
        packed[f"{owner}.g_idx"] = torch.tensor(index, dtype=torch.int32)
        packed[f"{owner}.bias"] = torch.zeros(len(w))  # as AutoGPTQ writes it for layers that have none
    told = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": shuffled, "checkpoint_format": form}
    check(tmp_path, packed, dense, told)


def test_awq(tmp_path: Path) -> None:
    plain = checkpoint(tmp_path / "a")
    packed, dense = dict(plain), dict(plain)
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    for i, owner in enumerate(matrices(plain)):
        w = packed.pop(f"{owner}.weight")
        codes, zeros, scales, dense[f"{owner}.weight"] = quantised(w, [k // GROUP for k in range(w.shape[1])], i)
        packed |= {f"{owner}.qweight": words(codes, order), f"{owner}.qzeros": words(zeros, order)}
        packed[f"{owner}.scales"] = scales
    check(tmp_path, packed, dense, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"})


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True], ids=["plain", "double"])
def test_bitsandbytes_four_bits(kind: str, nested: bool, tmp_path: Path) -> None:
    plain = checkpoint(tmp_path / "a")
    packed, dense = dict(plain), dict(plain)
    table = torch.tensor(NF4 if kind == "nf4" else [*FP4, *(-x for x in FP4)])
    for owner in matrices(plain):
        name = f"{owner}.weight"
        w = packed[name]
        blocks = w.reshape(-1, 64)
        absmax = blocks.abs().amax(1)
        state: dict[str, object] = {"quant_type": kind, "blocksize": 64, "dtype": "float32", "shape": list(w.shape)}
        if nested:  # scales less their mean, in 256 levels times the largest of 256 of them
            levels = torch.linspace(-1, 1, 256)
            offset = absmax.mean()
            padded = torch.nn.functional.pad(absmax - offset, (0, -len(absmax) % 256)).view(-1, 256)
            largest = padded.abs().amax(1)
            small_ = ((padded / largest[:, None])[..., None] - levels).abs().argmin(-1).to(torch.uint8)
            used = (levels[small_.long()] * largest[:, None]).flatten()[: len(absmax)] + offset
            packed |= {f"{name}.absmax": small_.flatten()[: len(absmax)], f"{name}.nested_absmax": largest}
            packed[f"{name}.nested_quant_map"] = levels
            state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset.item()}
        else:
            used = absmax
            packed[f"{name}.absmax"] = absmax
        codes = ((blocks / used[:, None])[..., None] - table).abs().argmin(-1).flatten()
        dense[name] = (table[codes].view(-1, 64) * used[:, None]).view(w.shape)
        packed[name] = (codes[0::2] << 4 | codes[1::2]).to(torch.uint8)[:, None]
        packed[f"{name}.quant_map"] = table
        text = json.dumps(state).encode()
        packed[f"{name}.quant_state.bitsandbytes__{kind}"] = torch.tensor(list(text), dtype=torch.uint8)
    told = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
    check(tmp_path, packed, dense, told, smaller=kind == "nf4")


def test_bitsandbytes_eight_bits(tmp_path: Path) -> None:
    plain = checkpoint(tmp_path / "a")
    packed, dense = dict(plain), dict(plain)
    for owner in matrices(plain):
        w = packed[f"{owner}.weight"]
        packed[f"{owner}.SCB"] = w.abs().amax(1)
        packed[f"{owner}.weight"] = (w / packed[f"{owner}.SCB"][:, None] * 127).round().to(torch.int8)
        packed[f"{owner}.weight_format"] = torch.tensor(0, dtype=torch.uint8)
        dense[f"{owner}.weight"] = packed[f"{owner}.weight"].float() * packed[f"{owner}.SCB"][:, None] / 127
    check(tmp_path, packed, dense, {"quant_method": "bitsandbytes", "load_in_8bit": True})


def test_fp8_blocks(tmp_path: Path) -> None:
    plain = checkpoint(tmp_path / "a", "deepseek-v3")
    packed, dense = dict(plain), dict(plain)
    names = [n for n in plain if n.endswith("_proj.weight")]
    for name in names:
        w = plain[name]
        tiles = -(-w.shape[0] // 128), -(-w.shape[1] // 128)
        scales = torch.rand(tiles, generator=torch.Generator().manual_seed(len(name))) * 0.01 + 0.001
        spread = torch.stack([
            torch.stack([scales[r // 128, c // 128] for c in range(w.shape[1])]) for r in range(w.shape[0])
        ])  # fmt: skip
        packed[name] = (w / spread).to(torch.float8_e4m3fn)
        packed[f"{name}_scale_inv"] = scales
        dense[name] = packed[name].float() * spread
    told = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
    check(tmp_path, packed, dense, told, smaller=False)


def test_mxfp4_experts(tmp_path: Path) -> None:
    plain = checkpoint(tmp_path / "a", "gpt-oss")
    packed, dense = dict(plain), dict(plain)
    table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
    names = [n for n in plain if n.endswith(("experts.gate_up_proj", "experts.down_proj"))]
    assert names
    for i, name in enumerate(names):
        count, inner, outer = packed.pop(name).shape
        g = torch.Generator().manual_seed(i)
        blocks = torch.randint(0, 256, (count, outer, inner // 32, 16), dtype=torch.uint8, generator=g)
        scales = torch.randint(119, 125, (count, outer, inner // 32), dtype=torch.uint8, generator=g)
        packed |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        rows = torch.empty(count, outer, inner)
        for at in range(inner):
            byte = blocks[:, :, at // 32, at % 32 // 2].long()
            rows[..., at] = table[byte >> 4 if at % 2 else byte & 15] * 2.0 ** (scales[:, :, at // 32].float() - 127)
        dense[name] = rows.transpose(1, 2).contiguous()
    told = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    check(tmp_path, packed, dense, told, smaller=False)


def check(
    tmp_path: Path,
    packed: dict[str, Tensor],
    dense: dict[str, Tensor],
    told: dict[str, object],
    *,
    smaller: bool = True,
) -> None:
    """The packed folder gives the logits of the dense one; with `smaller` it also stays packed in memory."""
    ours = rewrite(tmp_path / "a", packed, told)
    theirs = rewrite(tmp_path / "a", dense, None)
    assert logits(theirs.model).std() > 0.05
    torch.testing.assert_close(logits(ours.model), logits(theirs.model), atol=2e-4, rtol=2e-4)
    assert bool(packed_layers(ours.model)) == smaller
    if smaller:
        assert nbytes(ours.model) < 0.6 * nbytes(theirs.model)
        convert.save(ours, tmp_path / "again")  # and keeps so in our own folder
        assert torch.equal(logits(convert.load(tmp_path / "again").model), logits(ours.model))


Harm = Callable[[dict[str, Tensor], dict[str, object]], None]


def drop_scales(tensors: dict[str, Tensor], told: dict[str, object]) -> None:
    del tensors["model.layers.0.mlp.up_proj.scales"]


def short_zeros(tensors: dict[str, Tensor], told: dict[str, object]) -> None:
    tensors["model.layers.0.mlp.up_proj.qzeros"] = torch.zeros(1, 2, dtype=torch.int32)


def bad_index(tensors: dict[str, Tensor], told: dict[str, object]) -> None:
    tensors["model.layers.0.mlp.up_proj.g_idx"][3] = 99


def three_bits(tensors: dict[str, Tensor], told: dict[str, object]) -> None:
    told["bits"] = 3


def marlin(tensors: dict[str, Tensor], told: dict[str, object]) -> None:
    told["checkpoint_format"] = "marlin"


def other_group(tensors: dict[str, Tensor], told: dict[str, object]) -> None:
    told["group_size"] = 16


def nothing(tensors: dict[str, Tensor], told: dict[str, object]) -> None:
    told["quant_method"] = "awq"
    for name in [n for n in tensors if n.endswith(".qweight")]:
        del tensors[name]


HARMS = [(drop_scales, "up_proj.scales"), (short_zeros, "qzeros|zeros"), (bad_index, "g_idx"), (three_bits, "bits"),
         (marlin, "marlin"), (other_group, "group_size"), (nothing, "no tensor")]  # fmt: skip


@pytest.mark.parametrize(("harm", "said"), HARMS, ids=[h[0].__name__ for h in HARMS])
def test_damage_is_said_in_one_line(harm: Harm, said: str, tmp_path: Path) -> None:
    packed = checkpoint(tmp_path / "a")
    for i, owner in enumerate(matrices(packed)):
        w = packed.pop(f"{owner}.weight")
        index = [k // GROUP for k in range(w.shape[1])]
        codes, zeros, scales, _ = quantised(w, index, i)
        packed |= {f"{owner}.qweight": words(codes.T).T.contiguous(), f"{owner}.qzeros": words(zeros - 1)}
        packed |= {f"{owner}.scales": scales, f"{owner}.g_idx": torch.tensor(index, dtype=torch.int32)}
    told: dict[str, object] = {"quant_method": "gptq", "bits": 4, "group_size": GROUP}
    harm(packed, told)
    with pytest.raises(TerakoyaError, match=said) as error:
        rewrite(tmp_path / "a", packed, told)
    assert "\n" not in str(error.value)
