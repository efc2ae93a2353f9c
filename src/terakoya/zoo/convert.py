"""Checkpoints in and out: Hugging Face folders and GGUF files to models and back, bit for bit."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from terakoya.config import select
from terakoya.errors import TerakoyaError
from terakoya.model import spec
from terakoya.model.build import build, stored
from terakoya.model.model import Model
from terakoya.quant.linear import PREFIX, packed_layers, shell, unpacked
from terakoya.quant.source import Source, described, of_gguf, opened
from terakoya.tokenizer import Tokenizer, from_gguf
from terakoya.tokenizer.japanese import is_japanese
from terakoya.zoo import lineage
from terakoya.zoo.config_json import is_own, make_config, spec_of
from terakoya.zoo.gguf import GGUF, is_gguf
from terakoya.zoo.names import Layout, Match, Rule, placed
from terakoya.zoo.weights import open_weights, save_weights

# Buffers that old files carry and no model needs.
PASSENGERS = re.compile(
    r".*(\.attn\.(masked_)?bias|rotary_emb\.inv_freq|\.attention\.(masked_)?bias|position_ids|mask_value_float(16|32))$"
)
# Heads that tuning, or another objective, put on an encoder.
TASKS = re.compile(r"(classifier|qa_outputs|pre_classifier|mask_predictions|lm_predictions)\b.*")


@dataclass
class Loaded:
    """A model with its tokenizer, and what is needed to write it back as it came."""

    model: Model
    tokenizer: Tokenizer | None
    family: str
    config: dict[str, Any] = field(default_factory=dict)
    heads: dict[str, Tensor] = field(default_factory=dict)  # a task's head that came along, under its own names
    source: Path | None = None  # the GGUF file whose blocks the weights still are

    @property
    def spec(self) -> spec.Model:
        return self.model.spec

    def continuing(self) -> Loaded:
        """Return itself; an error where it does not continue texts. What generates asks this first."""
        spec.continues(self.spec, self.family)
        return self


def load(path: Path, *, dtype: torch.dtype = torch.float32, device: str = "cpu", packed: bool = False) -> Loaded:
    """Open a model: a GGUF file, or a folder with config.json and safetensors.

    `packed`: keep the blocks of a GGUF file, and make numbers of them as they are used. Folders say themselves.
    """
    if path.is_file() and is_gguf(path):
        return load_gguf(path, dtype=dtype, device=device, packed=packed)
    if (path / "config.json").is_file():
        return load_folder(path, dtype=dtype, device=device)
    if not path.exists():
        raise TerakoyaError(str(path), "no such file or folder")
    raise TerakoyaError(
        str(path), "holds no model", allowed="a folder with config.json and safetensors, or a .gguf file"
    )


def load_folder(path: Path, *, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Loaded:
    """Open a Hugging Face folder; weights that its `quantization_config` says are packed stay so where they can."""
    config = read_json(path / "config.json")
    told = config.pop("quantization_config", None)
    name, s = spec_of(config, str(path / "config.json"))
    weights = opened(open_weights(path), told, str(path / "config.json"))
    table = lineage.rules(name)
    theirs = weights.keys() - _predictors(weights.keys(), config, s)
    if is_own(config):
        config = {}  # says no more than the spec; written anew, it may have become Hugging Face's
    else:
        s = _settle_parts(s, name, theirs)
        s = _settle_tie(s, table, theirs, weights.get)
        theirs -= _twice(lineage.copies(name), theirs, weights.get, str(path))
    heads = {k: weights.get(k) for k in sorted(theirs) if s.sort == "encoder" and TASKS.match(k)}
    theirs -= heads.keys()
    model = fill(s, table, theirs, weights, str(path), dtype=dtype, device=device)
    readable = (path / "tokenizer.json").is_file() or is_japanese(path)
    tokenizer = Tokenizer.load(path) if readable else None
    _check_vocabulary(s, tokenizer, path)
    return Loaded(model, tokenizer, name, config, heads=heads)


def load_gguf(path: Path, *, dtype: torch.dtype = torch.float32, device: str = "cpu", packed: bool = False) -> Loaded:
    """Open a GGUF file; quantised blocks become numbers of `dtype`, or stay as they are (`packed`)."""
    file = GGUF.open(path)
    name, s = _gguf_spec(file, path)
    table = lineage.rules(name, "gguf")
    model = fill(s, table, set(file.tensors), of_gguf(file, packed), str(path), dtype=dtype, device=device)
    tokenizer = from_gguf(file.metadata)
    _check_vocabulary(s, tokenizer, path)
    return Loaded(model, tokenizer, name, source=path)


def save(loaded: Loaded, folder: Path, *, dtype: torch.dtype | None = None) -> None:
    """Write a folder that `load` and transformers open with equal logits; `load` alone if weights are packed."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in config_files(loaded, dtype).items():
        (folder / name).write_bytes(data)
    if loaded.tokenizer is not None:
        loaded.tokenizer.save(folder)
    kept = described(packed_layers(loaded.model))[1]
    save_weights(folder, tensors(loaded.model, loaded.family, dtype, heads=loaded.heads) | kept)


def plain(loaded: Loaded) -> Loaded:
    """Return the model with numbers for packed weights, as other programs read it."""
    return replace(loaded, model=unpacked(loaded.model)) if packed_layers(loaded.model) else loaded


def config_files(loaded: Loaded, dtype: torch.dtype | None = None) -> dict[str, bytes]:
    """Return the JSON files that stand beside the weights, by name."""
    config = loaded.config or make_config(loaded.spec, loaded.family, loaded.tokenizer, _spoken(dtype))
    if dtype is not None:  # what the file came with says how it was, not how it is written now
        config = {k: v for k, v in config.items() if k != "torch_dtype"} | {"dtype": _spoken(dtype)}
    if layers := packed_layers(loaded.model):
        config = config | {"quantization_config": described(layers)[0]}
    return {"config.json": (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()}


def _spoken(dtype: torch.dtype | None) -> str:
    return str(dtype or torch.float32).removeprefix("torch.")


def tensors(
    model: Model, name: str, dtype: torch.dtype | None = None, *, heads: Mapping[str, Tensor] = MappingProxyType({})
) -> dict[str, Tensor]:
    """Return the weights as the family's checkpoints keep them, or under our own names, and a task's head beside."""
    own = {name: t for name, t in stored(model).items() if f".{PREFIX}" not in name}
    bare = model.spec.sort == "encoder" and model.spec.head.scores == "nothing" and not heads
    out: dict[str, Tensor] = {}
    for match in placed(lineage.rules(name), list(own)):
        whole = fuse([own[n].detach() for n in match.ours], match.layout, model.spec)
        whole = whole if dtype is None else whole.to(dtype)
        if "{e}" in match.theirs:
            out |= {match.theirs.replace("{e}", str(e)): whole[e] for e in range(whole.shape[0])}
        else:
            out[match.theirs.partition(".")[2] if bare else match.theirs] = whole
    return out | dict(heads)


def fill(
    s: spec.Model,
    table: Iterable[Rule],
    theirs: set[str],
    source: Source,
    place: str,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Model:
    """Build the model and copy in every weight; missing, left-over and misshapen tensors are named.

    Nothing is allocated before the file is known to hold as many numbers as the model wants. Packed weights stay so
    where the family's layout only moves rows.
    """
    empty = stored(build(s, device="meta"))
    source.check(empty, place)
    held = dict(source.held)
    empty = {name: p for name, p in empty.items() if name not in held}
    plan, missing, used = _locate(placed(table, list(empty)), theirs, s)
    if missing:
        raise TerakoyaError(place, f"lacks {len(missing)} tensors", given=", ".join(missing[:8]))
    extra = sorted(k for k in theirs - used if not (PASSENGERS.match(k) or source.idle(k)))
    if extra:
        raise TerakoyaError(
            place, f"holds {len(extra)} tensors this family has no place for", given=", ".join(extra[:8])
        )
    for match in plan:
        count = sum(math.prod(source.shape(name)) for name in _expert_names(match.theirs, match, s))
        if count != sum(empty[n].numel() for n in match.ours):
            raise _misshapen(place, match, source.shape(_expert_names(match.theirs, match, s)[0]), empty)
        shapes = [empty[n].shape for n in match.ours]
        if not (match.layout.dim or match.layout.transpose or "{e}" in match.theirs) and len(shapes[0]) == 2:
            parts = source.rows(match.theirs, lambda t, m=match, n=shapes: split(t, n, m.layout, s))
            held |= zip(match.ours, parts, strict=True) if parts else {}
    model = shell(s, held, device=device, dtype=dtype) if held else build(s, device=device, dtype=dtype)
    own = stored(model)
    for match in plan:
        if match.ours[0] in held:
            continue
        whole = _stack(match, source.get, s)
        try:
            parts = split(whole, [own[n].shape for n in match.ours], match.layout, s)
        except (RuntimeError, IndexError):
            parts = []
        for name, part in zip(match.ours, parts, strict=False):
            if part.shape == own[name].shape:
                own[name].data.copy_(part)
                continue
            parts = []
            break
        if not parts:
            raise _misshapen(place, match, tuple(whole.shape), own)
    return model


@dataclass(frozen=True)
class _Held:
    """Weights that are in memory already, where files are expected."""

    table: Mapping[str, Tensor]

    def keys(self) -> tuple[str, ...]:
        return tuple(self.table)

    def get(self, name: str) -> Tensor:
        return self.table[name]

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.table[name].shape)


def restored(s: spec.Model, family: str, weights: Mapping[str, Tensor], place: str) -> Model:
    """Build a model from what `tensors` returned of it."""
    return fill(s, lineage.rules(family), set(weights), opened(_Held(weights), None, place), place)


def _misshapen(place: str, match: Match, given: tuple[int, ...], own: Mapping[str, Tensor]) -> TerakoyaError:
    expected = " + ".join(str(tuple(own[n].shape)) for n in match.ours)
    return TerakoyaError(f"{place}: {match.theirs}", "has the wrong shape", given=given, allowed=expected)


def _locate(plan: list[Match], theirs: set[str], s: spec.Model) -> tuple[list[Match], list[str], set[str]]:
    """Find each rule's tensor, with or without the outer prefix that some files leave away (gpt2, bloom)."""
    out, missing, used = [], [], set()
    for match in plan:
        older = match.theirs.replace("vision_tower.", "vision_tower.vision_model.", 1)
        for name in (match.theirs, match.theirs.partition(".")[2], older):
            wanted = _expert_names(name, match, s)
            if name and theirs.issuperset(wanted):
                used.update(wanted)
                out.append(Match(match.ours, name, match.layout))
                break
        else:
            missing += [match.theirs] * (match.ours != ("head.shift",))  # zeros, unless a file says otherwise
    return out, missing, used


def _predictors(names: Iterable[str], config: Mapping[str, Any], s: spec.Model) -> set[str]:
    """Return the weights of DeepSeek-V3's extra layers, which guess the tokens after the next: no part of the model."""
    if not config.get("num_nextn_predict_layers"):
        return set()
    found = {name: re.match(r"model\.layers\.(\d+)\.", name) for name in names}
    return {name for name, layer in found.items() if layer and int(layer[1]) >= s.depth}


def _expert_names(name: str, match: Match, s: spec.Model) -> list[str]:
    if "{e}" not in name:
        return [name]
    count = select(s, "moe")[0].count if ".experts." in match.ours[0] else select(s, "attention")[0].heads
    if match.ours[0].endswith(".k_norm.weight"):
        count = select(s, "attention")[0].kv_heads or count
    return [name.replace("{e}", str(e)) for e in range(count)]


def _stack(match: Match, get: Callable[[str], Tensor], s: spec.Model) -> Tensor:
    names = _expert_names(match.theirs, match, s)
    return torch.stack([get(n) for n in names]) if "{e}" in match.theirs else get(names[0])


def split(whole: Tensor, shapes: list[torch.Size], layout: Layout, s: spec.Model) -> list[Tensor]:
    """Cut one of their tensors into ours."""
    d = layout.dim
    whole = whole.flatten(1) if layout.cube else whole
    if layout.transpose and whole.dim() >= 2 + d:
        whole = whole.transpose(-1, -2)
    if layout.paired:
        n = _heads(layout.paired, s)
        return [whole.unflatten(0, (n, -1, 2)).transpose(1, 2).flatten(0, 2)]
    if layout.tiled:
        g = _heads("kv_heads", s)
        return [whole.unflatten(d, (_heads("heads", s) // g, g, -1)).transpose(d, d + 1).flatten(d, d + 2)]
    if len(shapes) == 1:
        return [whole]
    sizes = [shape[d] for shape in shapes]
    g = sizes[0] if layout.groups == "rows" else _heads(layout.groups, s)
    return [p.flatten(d, d + 1) for p in whole.unflatten(d, (g, -1)).split([n // g for n in sizes], d + 1)]


def fuse(parts: list[Tensor], layout: Layout, s: spec.Model) -> Tensor:
    """Join ours into one of theirs; the inverse of `split`."""
    d = layout.dim
    if layout.paired:
        n = _heads(layout.paired, s)
        return parts[0].unflatten(0, (n, 2, -1)).transpose(1, 2).flatten(0, 2)
    if layout.tiled:
        g = _heads("kv_heads", s)
        return parts[0].unflatten(d, (g, _heads("heads", s) // g, -1)).transpose(d, d + 1).flatten(d, d + 2)
    whole = parts[0]
    if len(parts) > 1:
        g = parts[0].shape[d] if layout.groups == "rows" else _heads(layout.groups, s)
        whole = torch.cat([p.unflatten(d, (g, -1)) for p in parts], d + 1).flatten(d, d + 1)
    whole = whole.transpose(-1, -2).contiguous() if layout.transpose and whole.dim() >= 2 + d else whole
    return whole.unflatten(1, (_heads("heads", s), -1)) if layout.cube else whole


def _heads(groups: int | str, s: spec.Model) -> int:
    if isinstance(groups, int):
        return groups
    attention: spec.Attention = select(s, "attention")[0]
    return attention.heads if groups == "heads" else attention.kv_heads or attention.heads


def _settle_tie(s: spec.Model, table: Iterable[Rule], theirs: set[str], get: Callable[[str], Tensor]) -> spec.Model:
    """Let the file decide: a stored head that differs from the token table is no tied head."""
    from terakoya.config import override

    names = {rule[0]: rule[1] for rule in reversed(tuple(table))}  # the first rule counts
    head = names.get("head.*", names.get("head.weight", "")).replace("*", "weight")
    if s.encoder and not s.head.tied and head not in theirs:  # T5 v1.1 as transformers writes it
        return override(s, {"head.tied": True})
    if s.head.tied and head in theirs:
        token = names["embed.token.weight"]
        token = token if token in theirs else token.partition(".")[2]
        if token in theirs and not torch.equal(get(head), get(token)):
            return override(s, {"head.tied": False})
        theirs.remove(head)  # a copy of the token table
    return s


def _settle_parts(s: spec.Model, name: str, theirs: set[str]) -> spec.Model:
    """Let the file decide which of the family's parts it has."""
    for part in lineage.parts(name):
        there = any(k == part.tensor or k.endswith(f".{part.tensor}") for k in theirs)
        s = replace(s, **(part.there if there else part.absent))
    return s


def _twice(copies: Mapping[str, str], theirs: set[str], get: Callable[[str], Tensor], place: str) -> set[str]:
    """Return the tensors that are copies of others; one that should be and is not, is another model."""
    found = {k for k, original in copies.items() if k in theirs and original in theirs}
    for k in found:
        if not torch.equal(get(k), get(copies[k])):
            raise TerakoyaError(f"{place}: {k}", f"differs from {copies[k]}, which this family has in its place")
    return found


def _check_vocabulary(s: spec.Model, tokenizer: Tokenizer | None, path: Path) -> None:
    if tokenizer is not None and tokenizer.vocab_size > s.vocab:
        raise TerakoyaError(
            str(path),
            "the tokenizer belongs to another model",
            given=f"{tokenizer.vocab_size} tokens",
            allowed=f"at most the model's {s.vocab}",
        )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; one line says what is wrong with the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TerakoyaError(str(path), f"cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise TerakoyaError(str(path), "is not a JSON object", given=type(value).__name__)
    return value


GGUF_KEYS = {  # llama.cpp's metadata under the architecture's prefix, as config.json says it
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "context_length": "max_position_embeddings",
    "rope.freq_base": "rope_theta",
}


def _gguf_spec(file: GGUF, path: Path) -> tuple[str, spec.Model]:
    arch = str(file.metadata.get("general.architecture"))
    f = lineage.by_model_type(arch)
    if f is None or not f.gguf:
        known = [g.model_type for g in lineage.families().values() if g.model_type and g.gguf]
        raise TerakoyaError(f"{path}: general.architecture", given=arch, allowed=known)
    scaled = file.metadata.get(f"{arch}.rope.scaling.type", "none")
    if scaled != "none":
        raise TerakoyaError(f"{path}: {arch}.rope.scaling.type", given=scaled, allowed=["none"])
    config: dict[str, Any] = {"model_type": arch}
    for key, name in GGUF_KEYS.items():
        if (value := file.metadata.get(f"{arch}.{key}")) is not None:
            config[name] = _shortest(value)
    tied = "output.weight" not in file.tensors
    config |= {"vocab_size": file.tensors["token_embd.weight"].shape[0], "tie_word_embeddings": tied}
    return spec_of(config, str(path))


def _shortest(value: Any) -> Any:
    """Return the decimal that a 32-bit float was written from: 9.99999974e-06 means 1e-05."""
    return float(str(torch.tensor(value, dtype=torch.float32).numpy())) if isinstance(value, float) else value
