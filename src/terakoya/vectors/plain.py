"""What words.c does, in numpy: the definition, and the way where no C compiler is at hand (some 500 times slower)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Plan:
    """One epoch of word2vec or fastText. Arrays as in words.c; `negative` 0 means hierarchical softmax."""

    ids: np.ndarray
    ends: np.ndarray
    rows: np.ndarray
    first: np.ndarray
    keep: np.ndarray
    chance: np.ndarray
    other: np.ndarray
    path: np.ndarray
    code: np.ndarray
    branch: np.ndarray
    inputs: np.ndarray  # (rows, D) float32, changed in place
    outputs: np.ndarray  # (V, D) float32, changed in place
    window: int
    negative: int
    cbow: bool
    rate: tuple[float, float]  # at the beginning and at the end of all epochs
    done: int  # words read before this epoch
    total: int  # words of all epochs
    seed: int
    threads: int = 1


Draw = Callable[[], int]


def draws(seed: int) -> Draw:
    """Return word2vec.c's generator of 32-bit numbers."""
    state = seed

    def draw() -> int:
        nonlocal state
        state = (state * 25214903917 + 11) & 0xFFFFFFFFFFFFFFFF
        return (state >> 16) & 0xFFFFFFFF

    for _ in range(4):  # small seeds are alike at first
        draw()
    return draw


def epoch(p: Plan) -> None:
    """Read all sentences once."""
    draw, whole = draws(p.seed), int(p.ends[-1])
    for begin, end in zip(p.ends[:-1], p.ends[1:], strict=True):
        share = (p.done + int(begin) / whole * whole) / p.total
        rate = p.rate[0] + (p.rate[1] - p.rate[0]) * share
        kept = [word for word in p.ids[begin:end].tolist() if draw() <= p.keep[word]]
        for i, word in enumerate(kept):
            span = 1 + draw() % p.window
            near = kept[max(0, i - span) : i] + kept[i + 1 : i + span + 1]
            if near and p.cbow:
                _pair(p, near, [word], rate, draw)
            elif near:
                _pair(p, [word], near, rate, draw)


def _pair(p: Plan, given: list[int], wanted: list[int], rate: float, draw: Draw) -> None:
    """Predict each wanted word from the mean of the given words' rows."""
    rows = np.concatenate([p.rows[p.first[w] : p.first[w + 1]] for w in given])
    h = p.inputs[rows].mean(0)
    e = np.zeros_like(h)
    for word in wanted:
        for row, label in _judged(p, word, draw):
            o = p.outputs[row]
            g = np.float32((label - 1 / (1 + math.exp(-float(h @ o)))) * rate)
            e += g * o
            o += g * h
    np.add.at(p.inputs, rows, e)


def _judged(p: Plan, word: int, draw: Draw) -> list[tuple[int, float]]:
    """Return the outputs to compare with, and 1 for what is true."""
    if not p.negative:
        path = slice(int(p.branch[word]), int(p.branch[word + 1]))
        return [(node, 1.0 - way) for node, way in zip(p.path[path].tolist(), p.code[path].tolist(), strict=True)]
    found = [(word, 1.0)]
    for _ in range(p.negative):
        noise = (draw() * len(p.outputs)) >> 32
        noise = noise if draw() <= p.chance[noise] else int(p.other[noise])
        if noise != word:
            found.append((noise, 0.0))
    return found


@dataclass(frozen=True)
class Glove:
    """One pass over co-occurrences. w, c (V, D + 1): vectors and contexts, biases last; gw, gc squared gradients."""

    w: np.ndarray
    c: np.ndarray
    gw: np.ndarray
    gc: np.ndarray
    i: np.ndarray
    j: np.ndarray
    x: np.ndarray
    order: np.ndarray
    rate: float
    most: float  # co-occurrences that count fully
    power: float


def glove_epoch(p: Glove) -> None:
    """Follow the gradient of f(x) (w · c + b + b' - log x)² / 2 by AdaGrad, pair after pair, as GloVe's glove.c."""
    for k in p.order.tolist():
        i, j, x = int(p.i[k]), int(p.j[k]), float(p.x[k])
        a, b = p.w[i], p.c[j]
        miss = float(a[:-1] @ b[:-1]) + float(a[-1]) + float(b[-1]) - math.log(x)
        g = min(1.0, (x / p.most) ** p.power) * miss
        to_a, to_b = np.append(b[:-1], np.float32(1)), np.append(a[:-1], np.float32(1))
        for vector, squares, slope in ((a, p.gw[i], to_a), (b, p.gc[j], to_b)):
            step = np.float32(p.rate) * np.clip(np.float32(g) * slope, -100, 100)
            vector -= step / np.sqrt(squares)
            squares += step * step
