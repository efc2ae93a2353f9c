"""config.json of a structure: written, read, and proven by reading it back.

Hugging Face's words where these say all of it; where they do not, or no class of theirs is built so, our own: the
family and the whole spec, under the model_type "terakoya".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from difflib import SequenceMatcher
from typing import Any

from terakoya.config import dump, select
from terakoya.config import load as parse
from terakoya.errors import TerakoyaError, nearest
from terakoya.model import spec
from terakoya.tokenizer import Tokenizer
from terakoya.zoo import lineage
from terakoya.zoo.hf import read_config, simplest, unknown, write_config

OWN = "terakoya"  # model_type of a folder that says its structure in our words
LARGEST = 2**41  # parameters; a config that asks for more is refused before anything is allocated


def make_config(s: spec.Model, name: str, tokenizer: Tokenizer | None, dtype: str) -> dict[str, Any]:
    """Return a config.json for a spec; `dtype` as transformers spells it."""
    config: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    words = in_their_words(s, name)
    config |= words or {"model_type": OWN, "family": lineage.family(name).name, "spec": dump(s)}
    config |= {"dtype": dtype}
    if tokenizer is not None:
        config |= {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos}
    return _nested(config, name) if words else config


def is_own(config: Mapping[str, Any]) -> bool:
    """Tell whether a config.json is in our words."""
    return config.get("model_type") == OWN


def in_their_words(s: spec.Model, name: str) -> dict[str, Any] | None:
    """Return the structure as Hugging Face's config.json says it; None where that would say another one."""
    model_type = lineage.model_type(name)[0]
    if model_type is None:
        return None
    config: dict[str, Any] = {"architectures": [lineage.architecture(name, s)], "model_type": model_type}
    try:
        config |= write_config(s, lineage.keys(name))
        reader, again = spec_of(_nested(config, name), "config.json")
    except TerakoyaError:  # a key that has no word for this value
        return None
    told = {path for part in lineage.parts(name) for path in (*part.there, *part.absent)}  # by tensors, not by keys
    same = replace(again, **{path: getattr(s, path) for path in told}) == simplest(s)
    return config if same and lineage.rules(reader) == lineage.rules(name) else None


def _nested(config: dict[str, Any], name: str) -> dict[str, Any]:
    """Put a family's ancestors' keys into the table where its files have them."""
    f = lineage.family(name)
    if not f.inside or not f.parent:
        return config
    outside = {*f.keys, "architectures", "model_type", "dtype"}
    inner = {k: v for k, v in config.items() if k not in outside} | {"model_type": lineage.model_type(f.parent)[0]}
    return {k: v for k, v in config.items() if k in outside} | {f.inside: inner}


def spec_of(config: Mapping[str, Any], place: str) -> tuple[str, spec.Model]:
    """Return (family, spec) of a config.json; an unknown model_type says which known one is nearest."""
    if is_own(config):
        return _own(config, place)
    wanted = config.get("model_type")
    known = [f.model_type for f in lineage.families().values() if f.model_type]
    if not isinstance(wanted, str):
        raise TerakoyaError(f"{place}: model_type", "is missing", allowed=sorted(known))
    f = lineage.by_model_type(wanted, config)
    if f is None:
        hint = _closest(wanted, config)
        raise TerakoyaError(f"{place}: model_type", given=wanted, allowed=sorted(set(known)), hint=hint)
    full = lineage.defaults(f.name) | dict(config) | dict(config.get(f.inside) or {})
    full.pop(f.inside, None)
    s = read_config(lineage.base(f.name), lineage.keys(f.name), full, place)
    _refuse_absurd(s, place)
    return f.name, s


def _own(config: Mapping[str, Any], place: str) -> tuple[str, spec.Model]:
    """Read (family, spec) of a config.json in our words."""
    for key in ("family", "spec"):
        if not isinstance(config.get(key), str):
            raise TerakoyaError(f"{place}: {key}", "is missing or no text", given=config.get(key))
    known = lineage.families()
    if (name := config["family"]) not in known:
        raise TerakoyaError(f"{place}: family", given=name, allowed=list(known), hint=nearest(name, known))
    s = parse(spec.Model, config["spec"], place=f"{place}: spec")
    spec.check(s)
    _refuse_absurd(s, place)
    return name, s


def _closest(wanted: str, config: Mapping[str, Any]) -> str:
    """Say which family's table reads most of a config.json, and what it would not understand."""
    best: tuple[int, float, str, list[str]] | None = None
    for f in lineage.families().values():
        if f.model_type is None or f.when:
            continue
        table = lineage.keys(f.name)
        strange = unknown(table, config)
        lacking = sum(1 for target in table.values() if isinstance(target, str)) - sum(k in config for k in table)
        alike = SequenceMatcher(None, wanted, f.model_type).ratio()
        row = (3 * len(strange) + max(0, lacking), -alike, f.model_type, strange)
        best = row if best is None or row[:2] < best[:2] else best
    if best is None or len(best[3]) > len(config) // 2:
        return nearest(wanted, [f.model_type for f in lineage.families().values() if f.model_type])
    differs = f", but for {', '.join(best[3][:8])}" if best[3] else ", in every key"
    return f"its config.json reads like {best[2]!r}{differs}"


def _refuse_absurd(s: spec.Model, place: str) -> None:
    layers = s.layers() + (s.encoder.layers() if s.encoder else ())
    rough = s.vocab * s.dim + sum(_rough(m, s.dim) for block in layers for b in block.branches for m in b.mix)
    if rough > LARGEST or s.context > 2**31 or any(moe.count > 2**16 for moe in select(s, "moe")):
        raise TerakoyaError(place, "asks for a model larger than any known", given=f"about {rough:.1e} parameters")


def _rough(m: spec.Mixer, dim: int) -> int:
    """Return roughly how many parameters a mixer has."""
    match m:
        case spec.Attention() | spec.Cross():
            return 2 * dim * m.heads * (m.head_dim or max(1, dim // m.heads))
        case spec.Latent():
            return dim * (m.kv_rank + m.rope + (m.q_rank or 0)) + dim * m.heads * (m.nope + m.rope + m.value)
        case spec.MLP():
            return 2 * dim * m.hidden
        case spec.MoE():
            return m.count * _rough(m.expert, dim)
        case _:
            return 8 * dim * dim
