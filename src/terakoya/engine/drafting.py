"""Guessing ahead with a smaller model that has the same words (Leviathan 2023, arXiv:2211.17192; Chen 2023).

A guess is drawn from the small model with the very number that decides the draw of the large one at that place, and
stands where both draws give the same id. So an answer is the same with and without guesses, greedy or not, which the
accept-and-resample rule of the papers only promises of its distribution; theirs accepts a little more often.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from terakoya.engine import sampler
from terakoya.engine.paged import Part
from terakoya.engine.request import Request
from terakoya.engine.runner import Runner
from terakoya.engine.sampling import History, alone
from terakoya.engine.sequence import Choice
from terakoya.engine.store import Held, Shape, Store
from terakoya.errors import TerakoyaError
from terakoya.zoo.convert import Loaded

log = logging.getLogger("terakoya.engine")
AHEAD = 4  # tokens guessed where a request does not say how many


@dataclass
class Track:
    """How far the small model has read one choice: the ids that its memory holds."""

    held: Held
    plain: Request
    ids: list[int] = field(default_factory=list)


class Drafter:
    """The small model, and its memory of every choice that it guesses for."""

    def __init__(self, runner: Runner, shapes: dict[int, Shape], vocab: int) -> None:
        self.runner, self.shapes, self.vocab = runner, shapes, vocab
        self.tracks: dict[Choice, Track] = {}
        self.broken = False
        self.budget, self.store = 0, Store({}, 0, sequences=1, step=1)

    def furnish(self, memory: int, beside: dict[int, Shape], running: int, budget: int, poison: bool) -> int:
        """Take a share of `memory`, so that both models remember as many tokens -> bytes taken."""
        mine, other = (sum(s.bytes for s in shapes.values()) for shapes in (self.shapes, beside))
        share = memory * mine // (mine + other)
        self.budget, device = budget, self.runner.device
        self.store = Store(
            self.shapes, share, sequences=running, step=budget, device=device, poison=poison, whole=self.runner.whole
        )
        return share

    def describe(self) -> str:
        """Return in words who guesses."""
        return f"draft up to {AHEAD} ahead ({self.runner.weights}, {self.runner.words})"

    def guess(self, asks: Sequence[tuple[Choice, int]]) -> list[list[int]]:
        """Return up to `most` ids that may follow each choice; none where its text is not read yet, or has no room.

        A small model that fails is not asked again, and nobody else fails.
        """
        if not self.broken:
            try:
                return self._guess(asks)
            except Exception:  # guesses change the speed and nothing else
                log.exception("the draft model failed; answers go on without it")
                self.broken = True
                self.tracks.clear()
                self.store.clear()
        return [[] for _ in asks]

    def close(self, choice: Choice) -> None:
        """Forget a choice."""
        track = self.tracks.pop(choice, None)
        if track is not None:
            self.store.close(track.held)

    def clear(self) -> None:
        """Forget all."""
        self.tracks.clear()
        self.store.clear()

    def _guess(self, asks: Sequence[tuple[Choice, int]]) -> list[list[int]]:
        found: list[list[int]] = [[] for _ in asks]
        going, left = [], self.budget
        for number, (choice, most) in enumerate(asks):
            track = self._opened(choice, most)
            if track is None:
                continue
            behind = len(choice.ids) - len(track.ids)
            if behind > left:  # a long text is read over several steps
                self._read([(track, choice.ids[len(track.ids) : len(track.ids) + left])] if left else [])
                left = 0
                continue
            left -= behind
            going.append((number, choice, most, track))
        new = {number: choice.ids[len(track.ids) :] for number, choice, _, track in going}
        while going:
            logits = self._read([(track, new[number]) for number, _, _, track in going])
            peaks, still = sampler.peaks(logits), []
            with alone():
                for (number, choice, most, track), x, peak in zip(going, logits, peaks, strict=True):
                    found[number].append(sampler.draw(x, peak, self._turn(choice, track, found[number])).id)
                    new[number] = found[number][-1:]
                    if len(found[number]) < most:
                        still.append((number, choice, most, track))
            going = still
        for choice, _ in asks:
            if (track := self.tracks.get(choice)) is not None:
                self.store.settle(track.held, choice.ids, min(len(track.ids), len(choice.ids)))
        return found

    def _opened(self, choice: Choice, most: int) -> Track | None:
        """Return the choice's track, cut back to what the choice really says, with room for `most` more."""
        end = len(choice.ids) + most
        if end > self.runner.spec.context or choice.request.vectors is not None:
            return None
        track = self.tracks.get(choice)
        if track is None:
            held = self.store.open(choice.ids, salt=choice.request.salt.encode(), more=choice.most - choice.said)
            if held is None:
                return None
            track = Track(held, replace(choice.request, logprobs=None), choice.ids[: self.store.found(held)])
            self.tracks[choice] = track
        same = next((i for i, (a, b) in enumerate(zip(track.ids, choice.ids, strict=False)) if a != b), None)
        same = min(len(track.ids), len(choice.ids) - 1) if same is None else same
        del track.ids[same:]
        if self.store.extend(track.held, end) < end:
            self.close(choice)
            return None
        return track

    @torch.inference_mode()
    def _read(self, new: Sequence[tuple[Track, list[int]]]) -> torch.Tensor:
        """Append ids to tracks -> (N, V) logits after the last of each."""
        parts = [Part(track.held, len(track.ids), len(ids)) for track, ids in new]
        ends = torch.tensor([len(ids) for _, ids in new]).cumsum(0) - 1
        logits = self.runner.compute(self.store, parts, [ids for _, ids in new], ends.tolist()) if new else None
        for track, ids in new:
            track.ids += ids
        return torch.empty(0, self.vocab) if logits is None else logits[:, : self.vocab].float()

    def _turn(self, choice: Choice, track: Track, guessed: list[int]) -> sampler.Row:
        """Return what the draw of the large model will depend on, if the guesses so far are right."""
        history = choice.history
        if guessed and sampler.touched(track.plain.sampling):
            history = History()
            history.times = dict(choice.history.times)
            for id in guessed:
                history.add(id)
        position = choice.said + len(guessed)
        early = position < track.plain.sampling.min_tokens
        tail = [*choice.ids, *guessed] if track.plain.bad_words else ()
        return sampler.Row(
            track.plain, history, choice.seed, choice.index, position, choice.stops if early else (), None, tail
        )


def drafter_of(loaded: Loaded, draft: Loaded, runner: Runner, shapes: dict[int, Shape]) -> Drafter:
    """Make the drafter of a model; `runner` computes the draft model, `shapes` is what the large one remembers."""
    check_pair(loaded, draft)
    mine = runner.shapes()
    for name, found in (("model", shapes), ("draft", mine)):
        if any(s.reach is None for s in found.values()):
            raise TerakoyaError(name, "has recurrent layers, which cannot take back a wrong guess")
    words = loaded.tokenizer.vocab_size if loaded.tokenizer is not None else 1 << 40
    return Drafter(runner, mine, min(loaded.spec.vocab, draft.spec.vocab, words))


def check_pair(loaded: Loaded, draft: Loaded) -> None:
    """Refuse a draft model whose ids are not the same words, or that cannot take back what it has read."""
    for name, one in (("model", loaded), ("draft", draft)):
        if one.spec.sort != "decoder":
            raise TerakoyaError(name, f"is an {one.spec.sort}; a draft needs two decoders")
    a, b = loaded.tokenizer, draft.tokenizer
    if (a is None) != (b is None):
        raise TerakoyaError("draft", "has no tokenizer to compare" if b is None else "has one, and the model has none")
    if a is None or b is None:
        if loaded.spec.vocab != draft.spec.vocab:
            raise TerakoyaError("draft", "tokens", given=draft.spec.vocab, allowed=loaded.spec.vocab)
        return
    if a.vocab_size != b.vocab_size:
        raise TerakoyaError("draft", "has another vocabulary: tokens", given=b.vocab_size, allowed=a.vocab_size)
    if a.hash() == b.hash():
        return
    differ = [i for i in range(a.vocab_size) if a.token_bytes(i) != b.token_bytes(i)]
    if differ or a.specials != b.specials:
        what = f"{len(differ):,} tokens are other words" if differ else "its control tokens are others"
        raise TerakoyaError("draft", f"has another vocabulary: {what}", hint="both must have the same tokenizer")
