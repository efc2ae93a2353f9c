"""Numbers about the server in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
Labels = tuple[tuple[str, str], ...]


@dataclass
class Histogram:
    """How often a time was at most so long."""

    bounds: tuple[float, ...] = SECONDS
    counts: list[int] = field(default_factory=list)
    sum: float = 0.0
    total: int = 0

    def add(self, value: float) -> None:
        """Take one more."""
        self.counts = self.counts or [0] * len(self.bounds)
        self.sum, self.total = self.sum + value, self.total + 1
        for i, bound in enumerate(self.bounds):
            self.counts[i] += value <= bound

    def lines(self, name: str) -> Iterable[str]:
        """Write it down."""
        for bound, count in zip(self.bounds, self.counts or [0] * len(self.bounds), strict=True):
            yield f'{name}_bucket{{le="{bound:g}"}} {count}'
        yield f'{name}_bucket{{le="+Inf"}} {self.total}'
        yield f"{name}_sum {self.sum:.6f}"
        yield f"{name}_count {self.total}"


@dataclass
class Metrics:
    """Everything that is counted; touched by the event loop alone."""

    requests: dict[Labels, int] = field(default_factory=dict)
    finishes: dict[Labels, int] = field(default_factory=dict)
    rejected: int = 0
    disconnected: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    answer_tokens: int = 0
    open: int = 0
    first: Histogram = field(default_factory=Histogram)
    between: Histogram = field(default_factory=Histogram)
    whole: Histogram = field(default_factory=Histogram)

    def request(self, route: str, status: int) -> None:
        """Count one HTTP request."""
        key = (("route", route), ("status", str(status)))
        self.requests[key] = self.requests.get(key, 0) + 1

    def finish(self, reason: str) -> None:
        """Count one answer by how it ended."""
        key = (("reason", reason),)
        self.finishes[key] = self.finishes.get(key, 0) + 1

    def text(self, gauges: Iterable[tuple[str, str, Labels, float]]) -> str:
        """Write everything down; `gauges` are (name, what it is, labels, value) read elsewhere."""
        lines: list[str] = []
        _family(lines, "requests_total", "counter", "HTTP requests", self.requests.items())
        _family(lines, "answers_total", "counter", "answers by how they ended", self.finishes.items())
        for name, about, value in (
            ("rejected_total", "requests refused because the queue was full", self.rejected),
            ("disconnected_total", "clients that left before the end", self.disconnected),
            ("prompt_tokens_total", "tokens of prompts", self.prompt_tokens),
            ("cached_tokens_total", "tokens of prompts that were known already", self.cached_tokens),
            ("answer_tokens_total", "tokens of answers", self.answer_tokens),
        ):
            _family(lines, name, "counter", about, [((), value)])
        _family(lines, "open_requests", "gauge", "requests being answered", [((), self.open)])
        seen: dict[str, list[tuple[Labels, float]]] = {}
        about = {}
        for name, what, labels, value in gauges:
            seen.setdefault(name, []).append((labels, value))
            about[name] = what
        for name, rows in seen.items():
            _family(lines, name, "counter" if name.endswith("_total") else "gauge", about[name], rows)
        for name, what, histogram in (
            ("first_token_seconds", "from the request to the first token", self.first),
            ("between_tokens_seconds", "from one token to the next", self.between),
            ("answer_seconds", "from the request to the end of the answer", self.whole),
        ):
            lines += [f"# HELP terakoya_{name} {what}", f"# TYPE terakoya_{name} histogram"]
            lines += histogram.lines(f"terakoya_{name}")
        return "\n".join(lines) + "\n"


def _family(lines: list[str], name: str, kind: str, about: str, rows: Iterable[tuple[Labels, float]]) -> None:
    lines += [f"# HELP terakoya_{name} {about}", f"# TYPE terakoya_{name} {kind}"]
    for labels, value in rows:
        inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels)
        lines.append(f"terakoya_{name}{{{inside}}} {value:g}" if inside else f"terakoya_{name} {value:g}")


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
