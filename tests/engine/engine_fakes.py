"""Small models and a tokenizer whose ids are bytes, so that characters lie across ids."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn

from terakoya.config import override
from terakoya.model.build import Init, build, initialise
from terakoya.model.context import Context
from terakoya.model.model import Model
from terakoya.tokenizer import Stream, Tokenizer, train
from terakoya.zoo.lineage import sized

VOCAB = 259  # 256 bytes and three control tokens


def byte_tokenizer() -> Tokenizer:
    return train([], "bytes", VOCAB)


def tiny(context: int = 64, seed: int = 0, family: str = "llama2") -> Model:
    """A random model with opinions: its weights are large enough that logits differ."""
    s = override(sized(f"{family}/nano"), {"vocab": VOCAB, "dim": 32, "depth": 2, "context": context})
    s = override(s, {"mlp.hidden": 64})
    return initialise(build(s), seed, Init(std=0.3))


class Actor(nn.Module):
    """Says its script whatever it is asked, then the first id for ever."""

    def __init__(self, script: list[int], prompt: int, vocab: int, context: int = 4096) -> None:
        super().__init__()
        self.spec = SimpleNamespace(vocab=vocab, context=context, sort="decoder", encoder=None, sight=None)
        self.anchor = nn.Parameter(torch.zeros(1))
        self.script, self.prompt, self.vocab = script, prompt, vocab

    def forward(self, tokens: Tensor, ctx: Context) -> Tensor:
        at = (ctx.pos - self.prompt + 1).tolist()
        said = [self.script[i] if 0 <= i < len(self.script) else 0 for i in at]
        return torch.tensor(said)[:, None].float()

    def head(self, hidden: Tensor) -> Tensor:
        return nn.functional.one_hot(hidden[:, 0].long(), self.vocab).float() * 50


class Pieces:
    """A tokenizer of any byte strings: id i stands for pieces[i], the last id ends."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = [*pieces, b""]
        self.vocab_size = len(self.pieces)
        self.eos = len(pieces)
        self.stops = frozenset({self.eos})
        self.specials = {"<end>": self.eos}

    def stream(self, *, start: bool = True) -> Stream:
        return Stream(self.pieces.__getitem__)
