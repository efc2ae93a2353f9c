"""CLIP learns from captioned drawings: what it has seen in other places and sizes it names among all captions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from terakoya.config import override
from terakoya.errors import TerakoyaError
from terakoya.model import spec
from terakoya.train.towers import Towers
from terakoya.zoo import lineage
from tests.train.objective_fakes import tokenizer

COLOURS = {"赤い": (1.0, -1.0, -1.0), "青い": (-1.0, -1.0, 1.0), "白い": (1.0, 1.0, 1.0), "黄色い": (1.0, 1.0, -1.0)}
SHAPES = ("四角", "縦の棒", "横の棒")
CAPTIONS = [f"{colour}{shape}" for colour in COLOURS for shape in SHAPES]


def drawing(colour: str, shape: str, rng: np.random.Generator) -> torch.Tensor:
    """A shape of random size somewhere on grey: (3, 24, 24)."""
    x = rng.normal(0, 0.1, (3, 24, 24))
    high, wide = {"四角": (9, 9), "縦の棒": (14, 3), "横の棒": (3, 14)}[shape]
    high, wide = high + int(rng.integers(3)), wide + int(rng.integers(3))
    top, left = int(rng.integers(24 - high)), int(rng.integers(24 - wide))
    x[:, top : top + high, left : left + wide] = np.array(COLOURS[colour])[:, None, None]
    return torch.from_numpy(x).float()


def batch(seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.stack([drawing(colour, shape, rng) for colour in COLOURS for shape in SHAPES])


def texts() -> tuple[torch.Tensor, list[int]]:
    ids = [tokenizer().encode(caption) for caption in CAPTIONS]
    return torch.tensor([i for row in ids for i in row]), [len(row) for row in ids]


def towers() -> Towers:
    s = override(lineage.rescale(lineage.base("gpt2"), 48, 2, 16), {"vocab": tokenizer().vocab_size, "context": 40})
    eye = spec.Sight(24, 4, 48, 2, 3, 96, "gelu", cut=1, whole=True, join=None)
    return Towers(override(s, {"sight": eye}), 32).start(0)


def test_captions_find_pictures_that_were_never_seen() -> None:
    torch.set_num_threads(1)
    model, (tokens, lengths) = towers(), texts()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    for i in range(250):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, (i + 1) / 10, (250 - i) / 80)
        loss = model.loss(batch(i), tokens, lengths)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        words = F.normalize(model.caption(tokens, lengths), dim=-1)
        right = [(F.normalize(model.look(batch(1000 + i)), dim=-1) @ words.T).argmax(1).tolist() for i in range(8)]
    share = np.mean([np.array(row) == np.arange(len(CAPTIONS)) for row in right])
    assert share > 0.6, share  # by chance: one in twelve


def test_the_loss_is_the_papers_and_every_weight_learns() -> None:
    model, (tokens, lengths) = towers(), texts()
    loss = model.loss(batch(0), tokens, lengths)
    with torch.no_grad():
        a = model.look(batch(0)).double().numpy()
        b = model.caption(tokens, lengths).double().numpy()
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    scores = a @ b.T / 0.07
    both = [-np.log(np.exp(s).diagonal() / np.exp(s).sum(1)).mean() for s in (scores, scores.T)]
    assert loss.item() == pytest.approx(np.mean(both), rel=1e-5)
    loss.backward()
    unused = {"text.sight.join.up.weight", "text.sight.join.up.bias"}  # what LLaVA would learn
    for name, p in model.named_parameters():
        assert (p.grad is not None and bool(p.grad.any())) == (name not in unused), name


def test_without_an_eye_it_says_so() -> None:
    with pytest.raises(TerakoyaError, match=r"model\.sight"):
        Towers(lineage.sized("gpt2/nano"), 8)
