"""One choice on its way: its ids, how far they are computed, its text, and why it ended."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from terakoya.engine.handle import Handle
from terakoya.engine.request import Delta, EngineError, Finish, Logprob, Usage
from terakoya.engine.sampling import History
from terakoya.engine.stop import Stop
from terakoya.engine.store import Held
from terakoya.tokenizer import Stream

if TYPE_CHECKING:
    from terakoya.engine.grammar import Matcher
    from terakoya.tokenizer import Tokenizer


class Choice:
    """The state of one choice of a request; touched by the stepping thread alone."""

    def __init__(self, handle: Handle, index: int, seed: int, tokenizer: Tokenizer | None, most: int) -> None:
        request = handle.request
        self.handle, self.request, self.index, self.seed = handle, request, index, seed
        self.ids = list(request.prompt)
        # What the prefix cache knows the tokens by: themselves, but for vectors that stand in their place.
        self.keys = self.ids if request.vectors is None else request.vectors.named(request.prompt)
        self.prompt = len(request.prompt)
        self.most = most  # tokens of the answer
        self.computed = 0
        self.cached = 0
        self.held: Held | None = None
        self.leader: Choice | None = None  # the choice that computes the prompt for all
        self.draft: list[int] = []
        self.proposed = self.accepted = 0
        self.history = History(request.prompt)
        self.stops: Collection[int] = request.stop_ids
        if tokenizer is not None and not request.ignore_end:
            self.stops = request.stop_ids | tokenizer.stops
        self.matcher: Matcher | None = request.grammar.matcher() if request.grammar else None
        self.text = Text(tokenizer, request.prompt, request.sampling.stop, request.show)
        self.ending: Finish | None = None
        self.error: EngineError | None = None

    @property
    def said(self) -> int:
        """Tokens of the answer so far."""
        return len(self.ids) - self.prompt

    @property
    def behind(self) -> int:
        """Tokens that are still to be computed."""
        return len(self.ids) - self.computed

    @property
    def banned(self) -> Collection[int]:
        """Ids that must not come now, because they would end the answer too early."""
        return self.stops if self.said < self.request.sampling.min_tokens else ()

    def add(self, id: int, logprob: Logprob | None) -> None:
        """Take the next id, tell of it, and see whether that was the end."""
        early = self.said < self.request.sampling.min_tokens
        self.ids.append(id)
        if self.keys is not self.ids:
            self.keys.append(id)
        self.history.add(id)
        ended = id in self.stops or (self.matcher is not None and self.matcher.ended)
        text = self.text.push(id, early, last=ended or self.said >= self.most)
        if self.text.stopped:
            self.ending = "stop"
        elif ended:
            self.ending = "end"
        elif self.said >= self.most:
            self.ending = "length"
        told = () if logprob is None else (logprob,)
        self.handle.put(Delta(self.index, (id,), text, told, **self._last(self.ending)))

    def end(self, finish: Finish, error: EngineError | None = None) -> None:
        """End without another token."""
        self.ending, self.error = finish, error
        last = self._last(finish)
        self.handle.put(Delta(self.index, text=self.text.finish(), error=error, finish=finish, usage=last["usage"]))

    def _last(self, finish: Finish | None) -> dict:
        if finish is None:
            return {}
        usage = Usage(
            self.prompt + len(self.request.source or ()), self.cached, self.said, self.proposed, self.accepted
        )
        return {"finish": finish, "usage": usage}


class Text:
    """Ids to text that may be shown: whole characters, and nothing that may yet become a stop string."""

    def __init__(
        self, tokenizer: Tokenizer | None, prompt: Sequence[int], stop: Sequence[str], show: Collection[int]
    ) -> None:
        self._stop = Stop(stop)
        self._stream: Stream | None = None
        if tokenizer is not None:
            controls = set(tokenizer.specials.values())
            self._stream = tokenizer.stream(start=all(id in controls for id in prompt))
        names = {} if tokenizer is None else {i: n for n, i in tokenizer.specials.items() if i in show}
        self._names = names

    @property
    def stopped(self) -> bool:
        return self._stop.found is not None

    def push(self, id: int, early: bool, last: bool) -> str:
        """Take one id; `early`: stop strings do not count yet; `last`: nothing follows."""
        if self._stream is None:
            return ""
        piece = self._names[id] if id in self._names else self._stream.push(id)
        piece += self._stream.finish() if last else ""
        shown = piece if early else self._stop.push(piece)
        return shown + self._stop.finish() if last and not self.stopped else shown

    def finish(self) -> str:
        """Return what was held back."""
        if self._stream is None or self.stopped:
            return ""
        return self._stop.push(self._stream.finish()) + self._stop.finish()
