"""Longer texts than a model was trained on: its rotary positions scaled, its context raised. The weights stay."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch

from terakoya.config import override, select
from terakoya.errors import TerakoyaError
from terakoya.model import spec
from terakoya.model.attention import Attention, Latent
from terakoya.zoo.convert import Loaded

SORTS = ("none", "linear", "dynamic", "yarn", "llama3")
MOST = 64.0


def parsed(text: str, trained: int) -> tuple[spec.Scaling | None, float]:
    """Read `yarn:2`: (the scaling for a model trained on `trained` tokens, how many times as long texts may be)."""
    sort, colon, number = text.partition(":")
    try:
        factor = float(number) if colon else float("nan")
    except ValueError:
        factor = float("nan")
    if sort not in SORTS or not 1 <= factor <= MOST:
        raise TerakoyaError("rope", given=text, allowed=f"{', '.join(SORTS)}, and a factor of 1 to {MOST:g}: yarn:2")
    found: dict[str, spec.Scaling | None] = {
        "none": None,
        "linear": spec.Linear(factor),
        "dynamic": spec.Dynamic(factor, trained),
        "yarn": spec.Yarn(factor, trained),
        "llama3": spec.Llama3(factor, trained=trained),
    }
    return found[sort], factor


def stretched(loaded: Loaded, text: str) -> Loaded:
    """Return the model with its rotary positions scaled as `text` says (`yarn:2`), the tensors being the same.

    Raises TerakoyaError for a model without rotary positions, or whose positions are scaled already.
    """
    scaling, factor = parsed(text, loaded.spec.context)
    ropes = select(loaded.spec, "rope")
    if not ropes:
        raise TerakoyaError("rope", "this model has no rotary positions to scale", given=text)
    if any(rope.scaling is not None for rope in ropes):
        raise TerakoyaError("rope", "this model's positions are scaled already", given=type(ropes[0].scaling).__name__)
    if loaded.spec.embed.position is not None:
        raise TerakoyaError("rope", "this model has a table of positions too, which is not longer", given=text)
    kept = {id(t): t for t in (*loaded.model.parameters(), *loaded.model.buffers())}
    with torch.no_grad():
        model = copy.deepcopy(loaded.model, kept)
    changes = {"rope.scaling": scaling} if scaling is not None else {}
    model.spec = override(loaded.spec, {**changes, "context": int(loaded.spec.context * factor)})
    for module in model.modules():
        if isinstance(module, Attention | Latent) and isinstance(module.spec.position, spec.Rope):
            position = replace(module.spec.position, scaling=scaling)
            module.spec = replace(module.spec, position=position)  # type: ignore[arg-type]
    return replace(loaded, model=model, config={})
