"""Adapters in the file format of Hugging Face's `peft`: adapter_config.json and adapter_model.safetensors.

Names and layouts go through the family's table of names. Where their layer holds several of ours (GPT-2's c_attn holds
q, k and v), one LoRA of theirs is written with ours side by side: A stacked, B block by block.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terakoya.errors import TerakoyaError
from terakoya.model import spec
from terakoya.model.build import build, parameters
from terakoya.model.model import Model
from terakoya.tune import adapters, peft_ahead
from terakoya.tune.parts import Decomposed, Factors, LowRank, Part, Triplets
from terakoya.tune.plans import IA3, AdaLora, Dora, Lora
from terakoya.zoo import convert, lineage
from terakoya.zoo.names import Layout, placed
from terakoya.zoo.weights import open_weights

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
REFUSED = {  # settings that would change what the adapter computes and have no meaning here
    "bias": ("none", None), "modules_to_save": (None,), "lora_bias": (False, None), "layer_replication": (None,),
    "target_parameters": (None, []), "trainable_token_indices": (None,), "use_qalora": (False, None),
    "use_bdlora": (None, False), "alora_invocation_tokens": (None,), "arrow_config": (None,), "kasa_config": (None,),
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """One linear layer of theirs and the layers of ours that it holds."""

    ours: tuple[str, ...]
    theirs: str
    layout: Layout  # of rows: a transposed weight has the same adapters, marked by fan_in_fan_out
    transposed: bool


def places(s: spec.Model, family: str) -> list[Place]:
    """Return every linear layer of the blocks, as a family's checkpoints name it."""
    bare = build(s, device="meta")
    linear = {f"{n}.weight" for n in adapters.layers(bare)}
    found = []
    for match in placed(lineage.rules(family), list(parameters(bare))):
        if set(match.ours) <= linear and "{e}" not in match.theirs:
            ours = tuple(n.removesuffix(".weight") for n in match.ours)
            plain = replace(match.layout, transpose=False)
            found.append(Place(ours, match.theirs.removesuffix(".weight"), plain, match.layout.transpose))
    return found


def export(
    model: Model, family: str, *, name: str = "default", base: str = ""
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what stands in adapter_config.json, and the tensors by their names."""
    found = adapters.parts(model, name)
    shared = {"base_model_name_or_path": base or None, "task_type": "CAUSAL_LM", "inference_mode": True}
    if (before := adapters.virtual(model, name)) is not None:
        said, tensors = peft_ahead.export(model, before)
        return shared | said, tensors
    table = [p for p in places(model.spec, family) if any(n in found for n in p.ours)]
    left = set(found) - {n for p in table for n in p.ours}
    if left:
        raise TerakoyaError("adapter", "sits on layers that peft has no name for", given=", ".join(sorted(left)[:4]))
    plan = next(iter(found.values())).plan
    if isinstance(plan, IA3):
        return shared | _ia3_config(found, table), _ia3_tensors(found, table, model)
    if isinstance(plan, AdaLora):
        every = [p.theirs for p in places(model.spec, family)]
        said, tensors = _triplets(plan, cast("Mapping[str, Triplets]", found), table, every, model)
        return shared | said, tensors
    tensors = {}
    ranks: dict[str, int] = {}
    for place in table:
        a, b, m = _joined(place, {n: cast("LowRank", p) for n, p in found.items() if n in place.ours}, model)
        ranks[place.theirs] = len(a)
        key = PREFIX + place.theirs
        tensors |= {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}
        tensors |= {f"{key}.lora_magnitude_vector": m} if m is not None else {}
    return shared | _lora_config(plan, table, ranks, places(model.spec, family)), tensors


def files(model: Model, family: str, *, name: str = "default", base: str = "") -> tuple[bytes, dict[str, Tensor]]:
    """Return adapter_config.json as bytes, and the tensors."""
    config, tensors = export(model, family, name=name, base=base)
    text = json.dumps(config, indent=2, ensure_ascii=False, sort_keys=True) + "\n"
    return text.encode(), {n: t.detach().contiguous().cpu() for n, t in tensors.items()}


def save(model: Model, family: str, folder: Path, *, name: str = "default", base: str = "") -> None:
    """Write an adapter into a folder that `peft` opens."""
    from safetensors.torch import save_file

    config, tensors = files(model, family, name=name, base=base)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        (folder / CONFIG).write_bytes(config)
    except OSError as error:
        raise TerakoyaError(str(folder), f"cannot be written: {error.strerror or error}") from None


def load(model: Model, family: str, folder: Path, *, name: str = "default") -> None:
    """Put a saved adapter on the model, active and frozen."""
    where = folder / CONFIG
    config = convert.read_json(where)
    kind = config.get("peft_type")
    if kind not in READERS and kind not in peft_ahead.KINDS:
        raise TerakoyaError(f"{where}: peft_type", given=kind, allowed=[*READERS, *peft_ahead.KINDS])
    for key, fine in REFUSED.items():
        if key in config and config[key] not in fine:
            raise TerakoyaError(f"{where}: {key}", given=config[key], allowed=[str(v) for v in fine])
    if str(config.get("init_lora_weights")).startswith(("pissa", "olora", "corda")):
        problem = "belongs to a base that peft has changed"
        hint = "save it with path_initial_model_for_weight_conversion, which makes a plain LoRA of it"
        raise TerakoyaError(f"{where}: init_lora_weights", problem, given=config["init_lora_weights"], hint=hint)
    if name in adapters.names(model):
        raise TerakoyaError("adapter name", "is taken", given=name)
    file = folder / WEIGHTS
    weights = open_weights(file)
    if kind in peft_ahead.KINDS:
        tensors = {k: weights.get(k) for k in weights}
        part = peft_ahead.read(model, config, tensors, str(where), str(file))
        adapters.attach(model, name, part.requires_grad_(False))
        return
    used: set[str] = set()
    parts: dict[str, Part] = {}
    for place in places(model.spec, family):
        held = {k: weights.get(k) for k in weights if k.startswith(f"{PREFIX}{place.theirs}.")}
        if held:
            parts |= READERS[kind](
                model,
                place,
                config,
                {k.removeprefix(f"{PREFIX}{place.theirs}."): t for k, t in held.items()},
                str(file),
            )
            used |= held.keys()
    extra = sorted(set(weights.keys()) - used)
    if extra or not parts:
        given = ", ".join(extra[:4])
        raise TerakoyaError(str(file), f"holds {len(extra)} tensors this model has no place for", given=given)
    for path, part in parts.items():
        adapters.attach(cast("nn.Linear", model.get_submodule(path)), name, part.requires_grad_(False))


def _joined(place: Place, parts: Mapping[str, LowRank], model: Model) -> tuple[Tensor, Tensor, Tensor | None]:
    """Write ours side by side as one of theirs: A (ΣR, in), B (Σout, ΣR), lengths of rows (Σout,) where DoRA."""
    out = {n: cast("nn.Linear", model.get_submodule(n)).out_features for n in place.ours}
    scale = next(iter(parts.values())).scale
    a_all, b_all = [], []
    for name, part in parts.items():
        a, b = (t.detach() for t in ((part.a, part.b) if isinstance(part, Triplets) else part.whole()))
        if place.layout.dim == 1:
            a_all.append(convert.fuse([a], place.layout, model.spec))
            b_all.append(b)
            continue
        a_all.append(a)
        rows = [b if n == name else b.new_zeros(out[n], b.shape[1]) for n in place.ours]
        b_all.append(convert.fuse(rows, place.layout, model.spec))
    lengths = None
    if any(isinstance(p, Decomposed) for p in parts.values()):
        if len(parts) < len(place.ours):
            raise TerakoyaError(place.theirs, "DoRA on a part of a fused layer cannot be written in peft's format")
        rows = [cast("Decomposed", parts[n]).m.detach() for n in place.ours]
        lengths = rows[0] if place.layout.dim == 1 else convert.fuse(rows, place.layout, model.spec)
    assert all(p.scale == scale for p in parts.values())
    return torch.cat(a_all), torch.cat(b_all, 1), lengths


def _lora_config(plan: Lora, table: list[Place], ranks: Mapping[str, int], every: list[Place]) -> dict[str, Any]:
    def alpha(rank: int) -> float:
        return plan.scale * (rank**0.5 if plan.stabilised else rank)

    common = max(set(ranks.values()), key=list(ranks.values()).count)
    odd = {n: r for n, r in ranks.items() if r != common}
    return {
        "peft_type": "LORA",
        "r": common,
        "lora_alpha": _whole(alpha(common)),
        "rank_pattern": odd,
        "alpha_pattern": {n: _whole(alpha(r)) for n, r in odd.items()},
        "target_modules": _short([p.theirs for p in table], [p.theirs for p in every]),
        "use_rslora": plan.stabilised,
        "use_dora": isinstance(plan, Dora),
        "fan_in_fan_out": any(p.transposed for p in table),
        "lora_dropout": 0.0,
        "bias": "none",
        "init_lora_weights": True,
    }


def _triplets(
    plan: AdaLora, found: Mapping[str, Triplets], table: list[Place], every: list[str], model: Model
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Write P, Λ, Q; every layer gets the rank of the largest, parts without weight filling up."""
    joined: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
    for place in table:
        mine = {n: p for n, p in found.items() if n in place.ours}
        a, b, _ = _joined(place, mine, model)
        joined[PREFIX + place.theirs] = (a, b, torch.cat([p.e.detach() for p in mine.values()]))
    rank = max(len(a) for a, _, _ in joined.values())
    tensors: dict[str, Tensor] = {}
    for key, (a, b, e) in joined.items():
        more = rank - len(a)
        tensors |= {
            f"{key}.lora_A": F.pad(a, (0, 0, 0, more)),
            f"{key}.lora_B": F.pad(b, (0, more)),
            f"{key}.lora_E": F.pad(e, (0, more))[:, None],
        }
    scale = next(iter(found.values())).scale
    said = {
        "peft_type": "ADALORA", "init_r": rank, "target_r": plan.target, "lora_alpha": _whole(scale * (rank + 1e-5)),
        "target_modules": _short([p.theirs for p in table], every),
        "fan_in_fan_out": any(p.transposed for p in table), "lora_dropout": 0.0, "bias": "none",
        "init_lora_weights": True, "deltaT": plan.every, "beta1": plan.memory, "beta2": plan.doubt,
        "orth_reg_weight": plan.orthogonal, "tinit": 0, "tfinal": 0, "total_step": 1,  # peft wants one; it is over
    }  # fmt: skip
    return said, tensors


def _whole(value: float) -> float | int:
    return round(value) if abs(value - round(value)) < 1e-9 * max(1.0, abs(value)) else value


def _short(names: list[str], every: list[str]) -> list[str]:
    """Name layers by their last word where that means no other, by their whole path otherwise."""
    leaves = {n.rpartition(".")[2] for n in names}
    clear = {leaf for leaf in leaves if all(n in names for n in every if n.rpartition(".")[2] == leaf)}
    return sorted(clear | {n for n in names if n.rpartition(".")[2] not in clear})


def _lora_parts(
    model: Model, place: Place, config: Mapping[str, Any], held: Mapping[str, Tensor], file: str
) -> dict[str, Part]:
    if (
        not {"lora_A.weight", "lora_B.weight"}
        <= held.keys()
        <= {"lora_A.weight", "lora_B.weight", "lora_magnitude_vector"}
    ):
        raise TerakoyaError(f"{file}: {place.theirs}", "has other tensors than a LoRA", given=", ".join(sorted(held)))
    a, b, m = held["lora_A.weight"], held["lora_B.weight"], held.get("lora_magnitude_vector")
    rank = len(a)
    said = _pattern(config.get("rank_pattern"), place.theirs, config.get("r"))
    if said != rank:
        raise TerakoyaError(f"{file}: {place.theirs}", f"has rank {rank} where the config says", given=said)
    alpha = _pattern(config.get("alpha_pattern"), place.theirs, config.get("lora_alpha"))
    if not isinstance(alpha, int | float):
        raise TerakoyaError(f"{file}: {place.theirs}", "needs lora_alpha in the config", given=alpha)
    cls = Dora if config.get("use_dora") else Lora
    plan = cls(rank, float(alpha), stabilised=bool(config.get("use_rslora")))
    linear = {n: cast("nn.Linear", model.get_submodule(n)) for n in place.ours}
    a, b_parts, m_parts = _cut(place, a, b, m, [k.out_features for k in linear.values()], model)
    made: dict[str, Part] = {}
    for (name, layer), b_part, m_part in zip(linear.items(), b_parts, m_parts, strict=True):
        part = cast("LowRank", adapters.part_of(layer, plan, name, 0))
        if part.a.shape != a.shape or part.b.shape != b_part.shape:
            given = (tuple(a.shape), tuple(b_part.shape))
            allowed = f"{tuple(part.a.shape)}, {tuple(part.b.shape)}"
            raise TerakoyaError(f"{file}: {place.theirs}", "has the wrong shape", given=given, allowed=allowed)
        part.a.data.copy_(a)
        part.b.data.copy_(b_part)
        if isinstance(part, Decomposed):
            if m_part is None:
                raise TerakoyaError(f"{file}: {place.theirs}", "lacks lora_magnitude_vector")
            part.m.data.copy_(m_part.flatten())
        made[name] = part
    return made


def _triplet_parts(
    model: Model, place: Place, config: Mapping[str, Any], held: Mapping[str, Tensor], file: str
) -> dict[str, Part]:
    if held.keys() != {"lora_A", "lora_B", "lora_E"}:
        raise TerakoyaError(f"{file}: {place.theirs}", "has other tensors than AdaLoRA", given=", ".join(sorted(held)))
    a, b, e = held["lora_A"], held["lora_B"], held["lora_E"].flatten()
    if not len(a):
        return {}  # every part was given up
    first, alpha = config.get("init_r"), config.get("lora_alpha")
    if not isinstance(first, int) or not isinstance(alpha, int | float):
        raise TerakoyaError(
            f"{file}: {place.theirs}", "needs init_r and lora_alpha in the config", given=(first, alpha)
        )
    linear = {n: cast("nn.Linear", model.get_submodule(n)) for n in place.ours}
    a, b_parts, _ = _cut(place, a, b, None, [k.out_features for k in linear.values()], model)
    plan = AdaLora(len(a), min(len(a), max(1, int(config.get("target_r", 1)))), float(alpha))
    made: dict[str, Part] = {}
    for (name, layer), b_part in zip(linear.items(), b_parts, strict=True):
        part = cast("Triplets", adapters.part_of(layer, plan, name, 0))
        given = (tuple(a.shape), tuple(b_part.shape), tuple(e.shape))
        allowed = (tuple(part.a.shape), tuple(part.b.shape), tuple(part.e.shape))
        if given != allowed:
            raise TerakoyaError(f"{file}: {place.theirs}", "has the wrong shape", given=given, allowed=allowed)
        for own, value in ((part.a, a), (part.b, b_part), (part.e, e)):
            own.data.copy_(value)
        part.scale = float(alpha) / (first + 1e-5)
        made[name] = part
    return made


def _cut(
    place: Place, a: Tensor, b: Tensor, m: Tensor | None, sizes: list[int], model: Model
) -> tuple[Tensor, list[Tensor], list[Tensor | None]]:
    """Undo `_joined`, A shared by all parts."""
    if place.layout.dim == 1:
        shape = torch.Size((len(a), a.shape[1]))
        return convert.split(a, [shape], place.layout, model.spec)[0], [b], [m]
    if len(b) != sum(sizes):
        return a, [b] * len(sizes), [m] * len(sizes)  # the caller names the shape
    b_parts = convert.split(b, [torch.Size((n, b.shape[1])) for n in sizes], place.layout, model.spec)
    if m is None:
        return a, b_parts, [None] * len(sizes)
    return a, b_parts, list(convert.split(m.flatten(), [torch.Size((n,)) for n in sizes], place.layout, model.spec))


def _pattern(table: Any, name: str, default: Any) -> Any:
    found = [v for k, v in (table or {}).items() if name == k or name.endswith(f".{k}")]
    return found[0] if found else default


def _ia3_config(found: Mapping[str, Part], table: list[Place]) -> dict[str, Any]:
    fed = [p.theirs for p in table if any(cast("Factors", found[n]).inputs for n in p.ours if n in found)]
    return {
        "peft_type": "IA3", "target_modules": [p.theirs for p in table], "feedforward_modules": fed,
        "fan_in_fan_out": any(p.transposed for p in table),
    }  # fmt: skip


def _ia3_tensors(found: Mapping[str, Part], table: list[Place], model: Model) -> dict[str, Tensor]:
    """Write factors; those of the outputs of a fused layer side by side, 1 for what is not scaled."""
    tensors = {}
    for place in table:
        parts = {n: cast("Factors", found[n]) for n in place.ours if n in found}
        inputs = any(p.inputs for p in parts.values())
        plain = len(place.ours) == 1 and place.layout == Layout()
        if place.layout.dim or (inputs and not plain):
            raise TerakoyaError(place.theirs, "IA3 on this side of a fused layer cannot be written in peft's format")
        if inputs:
            tensors[f"{PREFIX}{place.theirs}.ia3_l"] = parts[place.ours[0]].l[None, :]
            continue
        some = next(iter(parts.values())).l
        sizes = {n: cast("nn.Linear", model.get_submodule(n)).out_features for n in place.ours}
        rows = [parts[n].l if n in parts else some.new_ones(size) for n, size in sizes.items()]
        tensors[f"{PREFIX}{place.theirs}.ia3_l"] = convert.fuse(rows, place.layout, model.spec)[:, None]
    return tensors


def _ia3_parts(
    model: Model, place: Place, config: Mapping[str, Any], held: Mapping[str, Tensor], file: str
) -> dict[str, Part]:
    fed = config.get("feedforward_modules") or []
    inputs = any(place.theirs == f or place.theirs.endswith(f".{f}") for f in fed)
    plain = place.layout == Layout() and len(place.ours) == 1
    if held.keys() != {"ia3_l"} or (inputs and not plain) or place.layout.dim:
        raise TerakoyaError(f"{file}: {place.theirs}", "cannot be read as IA3", given=", ".join(sorted(held)))
    linear = {n: cast("nn.Linear", model.get_submodule(n)) for n in place.ours}
    made: dict[str, Part] = {n: Factors(layer, IA3(), inputs) for n, layer in linear.items()}
    factors = [cast("Factors", p).l for p in made.values()]
    flat = held["ia3_l"].flatten()
    if len(flat) != sum(map(len, factors)):
        raise TerakoyaError(f"{file}: {place.theirs}", "has the wrong shape", given=tuple(held["ia3_l"].shape))
    rows = [flat] if inputs else convert.split(flat, [f.shape for f in factors], place.layout, model.spec)
    for own, value in zip(factors, rows, strict=True):
        own.data.copy_(value)
    return made


READERS = {"LORA": _lora_parts, "ADALORA": _triplet_parts, "IA3": _ia3_parts}
