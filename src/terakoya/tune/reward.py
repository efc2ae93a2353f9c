"""A head that gives an answer one number, and how such a model is kept."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from terakoya.data.batch import Batch
from terakoya.errors import TerakoyaError
from terakoya.model.build import generator
from terakoya.model.model import Model
from terakoya.quant.source import opened
from terakoya.tokenizer import Tokenizer
from terakoya.train.objective import context_of
from terakoya.tune.samples import Sample
from terakoya.zoo import convert, lineage
from terakoya.zoo.convert import Loaded
from terakoya.zoo.weights import open_weights

NAME = "score.weight"  # as transformers calls it


def add_head(model: Model, seed: int) -> None:
    """Put a trainable head on a model: `model.score`, (D,) -> 1."""
    like = next(model.parameters())
    head = nn.Linear(model.spec.out_dim, 1, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator(seed, NAME)) * 0.02)
    model.add_module("score", head.to(like.device))


def rewards(model: Model, batch: Batch) -> Tensor:
    """Score each piece by what its last token has seen: -> (N,)."""
    last = model(batch.tokens, context_of(batch))[batch.cu[1:].long() - 1]
    return model.get_submodule("score")(last)[:, 0].float()


def read_to_the_end(sample: Sample) -> Sample:
    """Let the model read the last id too, which is otherwise only predicted."""
    return Sample(sample.place, (*sample.ids, sample.ids[-1]), (*sample.weights, 1.0))


def described(config: bytes, tokenizer: Tokenizer) -> bytes:
    """Turn a language model's config.json into that of a sequence classifier with one label."""
    said = json.loads(config)
    names = [n.replace("ForCausalLM", "ForSequenceClassification") for n in said["architectures"]]
    labels = {"id2label": {"0": "reward"}, "label2id": {"reward": 0}}
    # transformers scores the last token that is not the pad: a pad that also ends answers would hide their end
    pad = None if tokenizer.pad in tokenizer.stops else tokenizer.pad
    said |= labels | {"architectures": names, "pad_token_id": pad}
    return (json.dumps(said, indent=2, ensure_ascii=False) + "\n").encode()


def open_reward(folder: Path) -> Loaded:
    """Open a reward model that a run has written: the model, and its head as `model.score`."""
    said = convert.read_json(folder / "config.json")
    family, s = convert.spec_of(said, str(folder / "config.json"))
    weights = open_weights(folder)
    if NAME not in weights:
        raise TerakoyaError(str(folder), f"is no reward model: it has no {NAME}")
    names = set(weights.keys()) - {NAME}
    model = convert.fill(s, lineage.rules(family), names, opened(weights, None, str(folder)), str(folder))
    add_head(model, 0)
    with torch.no_grad():
        model.get_parameter(NAME).copy_(weights.get(NAME))
    return Loaded(model, Tokenizer.load(folder), family, said)
