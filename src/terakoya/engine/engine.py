"""The engine: requests in, deltas out; one step after another over whatever is waiting and running."""

from __future__ import annotations

import logging
import os
import secrets
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType

import torch
from torch import Tensor

from terakoya.engine import sampler
from terakoya.engine.compact import Kept
from terakoya.engine.drafting import drafter_of
from terakoya.engine.generate import allowed
from terakoya.engine.handle import Handle
from terakoya.engine.paged import Part
from terakoya.engine.request import Completion, EngineError, Request
from terakoya.engine.runner import By, runner
from terakoya.engine.sampling import alone
from terakoya.engine.scheduler import Row, Scheduler
from terakoya.engine.sequence import Choice
from terakoya.engine.steady import steady
from terakoya.engine.store import BLOCK, Shape, Store
from terakoya.engine.vectors import Vectors
from terakoya.errors import TerakoyaError
from terakoya.model.spec import Model as Spec
from terakoya.ops.lower import Weights
from terakoya.zoo.convert import Loaded

log = logging.getLogger("terakoya.engine")


@dataclass
class Counts:
    """What the engine has done since it started."""

    steps: int = 0
    computed: int = 0  # tokens through the model
    cached: int = 0  # prompt tokens that were known already
    drawn: int = 0
    proposed: int = 0
    accepted: int = 0
    failures: int = 0


class Engine:
    """Answer many requests at once with one model.

    `weights`: None: as they came; int8 or int4: smaller and a little worse. `by`: who computes (see `runner`);
    `threads` of the native program (None: as many as PyTorch has). `kept`: int8 or fp8 remember keys and values in
    half the memory of float16, by PyTorch. `draft`: a smaller model with the same tokenizer that guesses ahead: answers
    are the same, sooner where it guesses well. `memory_bytes` is the budget for keys, values and
    states (None: a quarter of what is free, and no more than `max_running` whole contexts need). A step computes at
    most `max_tokens_per_step` tokens. `deterministic`: the same request gives the same bits whatever else is going
    on; it costs speed when few run. `threaded=False`: nobody steps but the caller, by `step` or by waiting for a
    result. Closes with `close` or at the end of a `with`.
    """

    def __init__(
        self,
        loaded: Loaded,
        *,
        weights: Weights | None = None,
        by: By = "auto",
        threads: int | None = None,
        kept: Kept = "full",
        draft: Loaded | None = None,
        memory_bytes: int | None = None,
        max_tokens_per_step: int = 512,
        max_running: int = 64,
        max_waiting: int = 1024,
        max_waiting_tokens: int = 4_000_000,
        deterministic: bool = False,
        threaded: bool = True,
        poison: bool = False,
    ) -> None:
        loaded = loaded if loaded.spec.sort == "encoder-decoder" else loaded.continuing()
        self.model, self.tokenizer = loaded.model, loaded.tokenizer
        self.runner = runner(loaded, by=by, weights=weights, threads=threads, kept=kept, deterministic=deterministic)
        self.device = self.runner.device
        self.vocab = min(self.model.spec.vocab, loaded.tokenizer.vocab_size if loaded.tokenizer else 1 << 40)
        self.max_waiting, self.max_waiting_tokens = max_waiting, max_waiting_tokens
        budget = max(max_tokens_per_step, 2 * BLOCK if deterministic else 1)
        unit = max(BLOCK, budget // 2 // BLOCK * BLOCK) if deterministic else None
        running = max(1, min(max_running, budget - (unit or 0)))
        shapes = self.runner.shapes()
        if memory_bytes is None:
            memory_bytes = _memory(self.device, shapes, self.model.spec, running)
        drafter = None
        if draft is not None:
            if deterministic:
                raise TerakoyaError("draft", "is not used where every bit matters", hint="leave out deterministic")
            drafter = drafter_of(loaded, draft, runner(draft, by=by, threads=threads), shapes)
            memory_bytes -= drafter.furnish(memory_bytes, shapes, running, budget, poison)
        self.store = Store(
            shapes, memory_bytes, sequences=running, step=budget, device=self.device, poison=poison,
            whole=self.runner.whole,
        )  # fmt: skip
        self.context = min(self.model.spec.context, self.store.longest)
        self.scheduler = Scheduler(self.store, budget=budget, running=running, unit=unit)
        self.scheduler.drafter = drafter
        self.multiple: int | None = 1  # rows of a step are padded to a multiple of it; None: each choice by itself
        if deterministic:
            self.multiple = steady(self.runner, shapes)
        self.counts = Counts()
        self._inbox: deque[Choice] = deque()
        self._news = threading.Condition()
        self._stepping = threading.Lock()
        self._closed: EngineError | None = None
        self._thread: threading.Thread | None = None
        self._threaded = threaded
        log.info("%s", self.describe())

    def describe(self) -> str:
        """Return one line: where, in what, for how much, and what falls back."""
        kinds = sorted({str(d).removeprefix("torch.") for s in self.store.shapes.values() for d in s.dtypes})
        whole = self.model.spec.context
        facts = [
            f"device {self.device}",
            f"weights {self.runner.weights}",
            f"memory {self.store.bytes / 2**20:,.0f} MiB for {self.store.capacity:,} tokens in {' and '.join(kinds)}",
            f"context {self.context:,}" + (f" of {whole:,}" if self.context < whole else ""),
            f"threads {self.runner.threads}",
            self.runner.words,
        ]
        if self.scheduler.unit is not None:
            how = "each choice by itself" if self.multiple is None else f"rows in multiples of {self.multiple}"
            facts.append(f"deterministic ({how}, no drafts)")
        if self.store.sources is not None:
            facts.append(f"{self.store.longest_source:,} tokens of sources")
        if self.scheduler.drafter is not None:
            facts.append(self.scheduler.drafter.describe())
        if self.store.states is not None:
            facts.append("recurrent layers (no drafts)")
        return " · ".join(facts)

    # ---- asking

    def submit(self, request: Request) -> Handle:
        """Queue a request; safe from any thread.

        Raises TerakoyaError for what cannot be done, EngineError ("too long", "overloaded", "closed") where it is
        the size or the moment that does not fit.
        """
        if self._closed is not None:
            raise self._closed
        self._check(request)
        handle = Handle(request, None if self._threaded else self._drive, self._wake)
        seed = secrets.randbits(63) if request.sampling.seed is None else request.sampling.seed
        most = min(request.sampling.max_tokens, self.context - len(request.prompt))
        choices = [Choice(handle, i, seed, self.tokenizer, most) for i in range(request.n)]
        for choice in choices[1:]:
            choice.leader = choices[0]
        with self._news:
            waiting = [*self._inbox, *list(self.scheduler.waiting)]
            tokens = sum(len(c.ids) for c in waiting) + request.n * len(request.prompt)
            seats = max(0, self.scheduler.most - len(self.scheduler.running))  # free now: who takes one does not wait
            if len(waiting) + request.n > self.max_waiting + seats or (waiting and tokens > self.max_waiting_tokens):
                raise EngineError("overloaded", "engine", f"is full: {len(waiting)} wait already, try again later")
            if self._closed is not None:
                raise self._closed
            self._inbox.extend(choices)
            self._news.notify_all()
            if self._threaded and self._thread is None:
                self._thread = threading.Thread(target=self._loop, name="terakoya-engine", daemon=True)
                self._thread.start()
        return handle

    def generate(self, requests: Iterable[Request]) -> list[list[Completion]]:
        """Answer all, in order, however many; the choices of each."""
        handles: deque[Handle] = deque()
        done: list[list[Completion]] = []
        try:
            for request in requests:
                while True:
                    try:
                        handles.append(self.submit(request))
                        break
                    except EngineError as error:
                        if error.kind != "overloaded" or not handles:
                            raise
                        done.append(handles.popleft().result())
        except BaseException:
            for handle in handles:
                handle.cancel()
            raise
        return done + [h.result() for h in handles]

    def _check(self, request: Request) -> None:
        if len(request.prompt) >= self.context:
            raise EngineError(
                "too long",
                "prompt",
                f"has {len(request.prompt)} tokens; prompt and answer have room for {self.context}",
            )
        how = request.sampling
        if self.tokenizer is not None:
            allowed(self.model, self.tokenizer, request.prompt, how)
        elif how.stop or request.grammar:
            raise TerakoyaError("request", "has stop strings or a grammar, but the model has no tokenizer")
        ids = [*request.prompt, *request.stop_ids, *(i for word in request.bad_words for i in word)]
        for id in ids:
            if not 0 <= id < self.model.spec.vocab:
                raise TerakoyaError("request", "has an id that is none of this model's", given=id)
        if not request.prompt:
            raise TerakoyaError("prompt", "is empty")
        if request.vectors is not None:
            self._check_vectors(request.vectors, len(request.prompt))
        self._check_source(request.source)

    def _check_source(self, source: tuple[int, ...] | None) -> None:
        encoder = self.model.spec.encoder
        if encoder is None:
            if source is not None:
                raise TerakoyaError("request.source", "is for models with an encoder, and this one has none")
            return
        if not source:
            raise TerakoyaError("request.source", "is missing: this model writes one text from another")
        most = min(encoder.context, self.store.longest_source)
        if len(source) > most:
            raise EngineError("too long", "source", f"has {len(source)} tokens; there is room for {most}")
        for id in source:
            if not 0 <= id < encoder.vocab:
                raise TerakoyaError("request.source", "has an id that is none of this model's", given=id)

    def _check_vectors(self, vectors: Vectors, prompt: int) -> None:
        width = self.model.embed.token.embedding_dim
        if not self.runner.vectors:
            raise TerakoyaError(
                "request.vectors", f"are read by PyTorch only; here: {self.runner.words}", hint="by=torch"
            )
        if vectors.rows.shape[1] != width:
            raise TerakoyaError("request.vectors", "width", given=vectors.rows.shape[1], allowed=width)
        if vectors.places and vectors.places[-1] >= prompt:
            raise TerakoyaError("request.vectors", "stand behind the prompt", given=vectors.places[-1], allowed=prompt)

    # ---- stepping

    def step(self) -> bool:
        """Do one step; False where there is nothing left to do."""
        with self._stepping:
            with self._news:
                self.scheduler.waiting.extend(self._inbox)
                self._inbox.clear()
            try:
                rows = self.scheduler.plan()
            except Exception as error:
                self._begin_anew(error)
                rows = []
            try:
                if rows:
                    self._run(rows)
            finally:
                self._settle()
            return bool(self.scheduler.waiting or self.scheduler.running or self._inbox)

    def _run(self, rows: list[Row]) -> None:
        groups = [rows] if self.multiple is not None else [[row] for row in rows]
        for group in groups:
            try:
                self._advance(group, self._compute([_part(r) for r in group], [_ids(r) for r in group], _picks(group)))
            except Exception as error:  # whatever it was, these requests end and the next one works
                for row in group:
                    self._broke(row.choice, error)
        self.counts.steps += 1
        self.counts.computed += sum(row.count for row in rows)

    def _compute(self, parts: Sequence[Part], ids: Sequence[Sequence[int]], picks: Sequence[int]) -> Tensor:
        return self.runner.compute(self.store, parts, ids, picks, self.multiple or 1)[:, : self.vocab].float()

    def _advance(self, rows: list[Row], logits: Tensor) -> None:
        """Draw for the rows that caught up, and take note of what is computed; a row that fails fails alone."""
        peaks, at = sampler.peaks(logits), 0
        with alone():
            for row in rows:
                try:
                    if row.caught_up:
                        begin, at = at, at + 1 + row.draft
                        self._take(row, list(zip(logits[begin:at], peaks[begin:at], strict=True)))
                    else:
                        row.choice.computed = row.start + row.count
                    self._note(row.choice)
                except Exception as error:
                    self._broke(row.choice, error)

    def _take(self, row: Row, places: list[tuple[Tensor, sampler.Peak]]) -> None:
        """Draw the next id, and go on as long as the guesses prove right."""
        choice, right = row.choice, 0
        for logits, peak in places:
            drawn = sampler.draw(logits, peak, _turn(choice, self.vocab))
            if choice.matcher is not None:
                choice.matcher.take(drawn.id)
            choice.add(drawn.id, drawn.logprob)
            self.counts.drawn += 1
            if choice.ending is not None or right == row.draft or choice.draft[right] != drawn.id:
                break
            right += 1
        choice.computed = row.start + row.count - row.draft + right
        choice.proposed, choice.accepted = choice.proposed + row.draft, choice.accepted + right
        self.counts.proposed, self.counts.accepted = self.counts.proposed + row.draft, self.counts.accepted + right

    def _note(self, choice: Choice) -> None:
        if choice.held is None or choice.error is not None:
            return
        unit = self.scheduler.unit
        named = None if unit is None else choice.prompt // unit * unit
        self.store.settle(choice.held, choice.keys, choice.computed, named=named)

    def _settle(self) -> None:
        """End what has ended: the one place where stop, cancellation and deadline take effect."""
        for choice in [*self.scheduler.running, *self.scheduler.waiting]:
            if choice.ending is None and choice.handle.cancelled:
                choice.end("abort")
            elif choice.ending is None and choice.handle.late:
                choice.end("deadline")
            if choice.ending is not None:
                self.scheduler.close(choice, spoilt=choice.error is not None)
                self.counts.cached += choice.cached

    def _begin_anew(self, error: Exception) -> None:
        """End everything and empty the memory: where planning broke off, nobody knows who holds what."""
        for choice in [*self.scheduler.running, *self.scheduler.waiting]:
            self._broke(choice, error)
        self.scheduler.clear()

    def _broke(self, choice: Choice, error: Exception) -> None:
        """End a choice with the reason, in one line and typed."""
        if choice.ending is not None:
            return
        self.counts.failures += 1
        if not isinstance(error, EngineError):
            log.error("a request broke off", exc_info=error)
            kind = "memory" if isinstance(error, MemoryError | torch.OutOfMemoryError) else "step"
            error = EngineError(kind, "engine", f"broke off: {type(error).__name__}: {error}"[:300])
        choice.end("error", error)

    # ---- threads

    def _drive(self) -> None:
        self.step()

    def _wake(self) -> None:
        with self._news:
            self._news.notify_all()

    def _loop(self) -> None:
        try:
            busy = False
            while True:
                with self._news:
                    while not (busy or self._inbox or self._closed):
                        self._news.wait()
                if self._closed is not None:
                    return
                busy = self.step()
        except BaseException as error:  # nobody may wait for a thread that is gone
            log.exception("the engine stopped")
            self._end(EngineError("closed", "engine", f"stopped: {type(error).__name__}: {error}"[:300]))

    def close(self) -> None:
        """Refuse what comes and end what runs with "abort"."""
        self._end(EngineError("closed", "engine", "is closed"))
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _end(self, reason: EngineError) -> None:
        with self._news:
            if self._closed is not None:
                return
            self._closed = reason
            self._news.notify_all()
        mine = self._thread is not threading.current_thread()
        if mine:
            self._stepping.acquire()
        try:
            stopped = "stopped" in reason.problem
            for choice in [*self.scheduler.running, *self.scheduler.waiting, *self._inbox]:
                if choice.ending is None:
                    choice.end("error" if stopped else "abort", reason if stopped else None)
                if choice.held is not None:
                    self.store.close(choice.held, spoilt=True)
                    choice.held = None
            self.scheduler.running.clear()
            self.scheduler.waiting.clear()
            self._inbox.clear()
        finally:
            if mine:
                self._stepping.release()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _part(row: Row) -> Part:
    assert row.choice.held is not None
    return Part(row.choice.held, row.start, row.count, row.choice.request.vectors)


def _ids(row: Row) -> list[int]:
    ids = row.choice.ids[row.start : row.start + row.count]
    return ids + row.choice.draft[: row.draft] if row.draft else ids


def _picks(rows: Sequence[Row]) -> list[int]:
    """Return which tokens of the step need logits: the last of each row that caught up, and its guesses."""
    picks, end = [], 0
    for row in rows:
        end += row.count
        if row.caught_up:
            picks += range(end - 1 - row.draft, end)
    return picks


def _turn(choice: Choice, vocab: int) -> sampler.Row:
    allowed = None if choice.matcher is None else choice.matcher.mask(vocab)
    tail = choice.ids if choice.request.bad_words else ()
    request, said = choice.request, choice.said
    return sampler.Row(request, choice.history, choice.seed, choice.index, said, choice.banned, allowed, tail)


def _memory(device: torch.device, shapes: dict[int, Shape], s: Spec, running: int) -> int:
    """A quarter of the memory that is free, and no more than `running` whole contexts need."""
    context = max(s.context, s.encoder.context if s.encoder is not None else 0)
    need = sum(s.bytes * (context + BLOCK if s.reach is not None else 4) for s in shapes.values()) * running
    return max(1, min(need, free_memory(device) // 4))


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
