"""What is asked of the engine and what comes back: requests, deltas, completions, and why something failed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from terakoya.engine.sampling import Sampling
from terakoya.errors import TerakoyaError

if TYPE_CHECKING:
    from terakoya.engine.grammar import Grammar
    from terakoya.engine.vectors import Vectors

Finish = Literal["stop", "length", "end", "abort", "deadline", "error"]
Kind = Literal["overloaded", "too long", "closed", "step", "numbers", "grammar", "memory"]
MOST_CHOICES, MOST_LOGPROBS, MOST_BAD = 128, 100, 1024


class EngineError(TerakoyaError):
    """Why a request was refused or broke off. `kind` is for programs: a server turns it into a status."""

    def __init__(self, kind: Kind, place: str, problem: str = "", **more: object) -> None:
        super().__init__(place, problem, given=more.get("given"), allowed=more.get("allowed"))
        self.kind: Kind = kind


@dataclass(frozen=True)
class Request:
    """A prompt in ids, and what to do with it.

    `logprobs`: None for none, else how many of the best ids to tell beside the one taken; `logprobs_of` says of which
    distribution: the model's own, or the one that was drawn from. `show` are control tokens that the text names
    (they are otherwise not in it). `deadline` is in seconds from submission. `salt` keeps prefixes apart that must not
    be shared (a tenant, an adapter). `draft`: tokens proposed per step by looking the last ones up in the prompt; they
    change the speed and nothing else. `source` is what an encoder reads, where the model has one; the prompt is then
    how its answer begins. `vectors` stand in the place of some of the prompt's tokens (pictures).
    """

    prompt: tuple[int, ...]
    sampling: Sampling = field(default_factory=Sampling)
    n: int = 1
    logprobs: int | None = None
    logprobs_of: Literal["raw", "processed"] = "raw"
    stop_ids: frozenset[int] = frozenset()
    ignore_end: bool = False
    bad_words: tuple[tuple[int, ...], ...] = ()
    show: frozenset[int] = frozenset()
    grammar: Grammar | None = None
    deadline: float | None = None
    salt: str = ""
    draft: int = 0
    vectors: Vectors | None = None
    source: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, tuple):
            object.__setattr__(self, "prompt", tuple(self.prompt))
        if self.source is not None and not isinstance(self.source, tuple):
            object.__setattr__(self, "source", tuple(self.source))
        _within("n", self.n, 1, MOST_CHOICES)
        _within("draft", self.draft, 0, 64)
        if self.logprobs is not None:
            _within("logprobs", self.logprobs, 0, MOST_LOGPROBS)
        if self.logprobs_of not in ("raw", "processed"):
            raise TerakoyaError("request.logprobs_of", given=self.logprobs_of, allowed=("raw", "processed"))
        if len(self.bad_words) > MOST_BAD or not all(self.bad_words):
            raise TerakoyaError("request.bad_words", allowed=f"up to {MOST_BAD} tuples of ids that are not empty")
        if self.deadline is not None and not self.deadline > 0:
            raise TerakoyaError("request.deadline", given=self.deadline, allowed="more than 0 seconds")


def _within(name: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise TerakoyaError(f"request.{name}", given=value, allowed=f"{low} to {high}")


@dataclass(frozen=True)
class Usage:
    """Tokens of one choice: of prompt and source, how many of the prompt were known already, and of the answer.

    `proposed` and `accepted` count drafted tokens.
    """

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    proposed: int = 0
    accepted: int = 0


@dataclass(frozen=True)
class Logprob:
    """The log-probability of one token, and of the best at its place."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Delta:
    """News of one choice. The last has `finish` and `usage`, and `error` where it broke off."""

    index: int
    ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[Logprob, ...] = ()
    finish: Finish | None = None
    usage: Usage | None = None
    error: EngineError | None = None


@dataclass
class Completion:
    """One choice, whole: the deltas joined. `ids` has end tokens and those of a stop string too; `text` has neither."""

    index: int
    ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[Logprob] = field(default_factory=list)
    finish: Finish | None = None
    usage: Usage = Usage()
    error: EngineError | None = None

    def add(self, delta: Delta) -> None:
        """Take one more delta."""
        self.ids += delta.ids
        self.text += delta.text
        self.logprobs += delta.logprobs
        self.finish, self.error = delta.finish, delta.error
        self.usage = delta.usage or self.usage
