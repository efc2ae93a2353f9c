"""Kill a run with SIGKILL at random moments, begin it again, and compare its end with that of an undisturbed one.

The lives are forked from this process, where torch is imported already: a life costs milliseconds, not seconds.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import random
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

OK, FAULT = b"+", b"-"


@dataclass
class Report:
    """How many lives were ended, how many runs came to their end, and how many kills left a half-written save."""

    kills: int = 0
    finished: int = 0
    kills_in_save: int = 0


def torture(
    run: Callable[[Path], bytes],
    folder: Path,
    kills: int,
    *,
    life: float | None = None,
    seed: int = 0,
    hidden: str = ".tmp-*",
) -> Report:
    """Kill `run(folder)` until `kills` lives are spent; every run that ends must return what an undisturbed one does.

    `run` resumes from what it finds in its folder and returns all that must be equal, bit by bit. `life` is the
    longest life in seconds (default: 0.6 of an undisturbed run, so that a run takes a few lives), `hidden` the glob of
    half-written saves in the run's folder. Raises AssertionError when an end differs or a run fails by itself.
    """
    rng, report = random.Random(seed), Report()
    folder.mkdir(parents=True, exist_ok=True)
    _warm(run, _fresh(folder / "warm"))
    began = time.monotonic()
    expected = _lived(run, _fresh(folder / "undisturbed"), None)
    assert expected is not None
    life = life or 0.6 * (time.monotonic() - began)
    place = _fresh(folder / "run0")
    while report.kills < kills:
        result = _lived(run, place, rng.random() * life)
        if result is None:
            report.kills += 1
            report.kills_in_save += any(place.rglob(hidden))
            continue
        assert result == expected, f"the end of {place} differs from the undisturbed one after {report.kills} kills"
        report.finished += 1
        place = _fresh(folder / f"run{report.finished}")
    last = _lived(run, place, None)  # the run that was under way comes to its end too
    assert last == expected, f"the end of {place} differs from the undisturbed one"
    report.finished += 1
    return report


def _warm(run: Callable[[Path], bytes], place: Path) -> None:
    """Import here what a run imports late (optimisers bring a compiler), or each life would spend itself on that.

    The run itself stays in a child: where there is a GPU, autograd does not survive a fork after its first use.
    """

    def modules(inner: Path) -> bytes:
        run(inner)
        return "\n".join(sys.modules).encode()

    names = _lived(modules, place, None)
    assert names is not None
    for name in names.decode().splitlines():
        if name not in sys.modules:
            with contextlib.suppress(ImportError):  # made by hand, not importable by name
                importlib.import_module(name)


def _fresh(place: Path) -> Path:
    place.mkdir()
    return place


def _lived(run: Callable[[Path], bytes], place: Path, seconds: float | None) -> bytes | None:
    """One life: what the run returned, or None if it was killed before."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _live(run, place, writer)
    os.close(writer)
    deadline = None if seconds is None else time.monotonic() + seconds
    answer = b""
    try:
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([reader], [], [], left)[0]:
                return None  # the life is over
            part = os.read(reader, 1 << 16)
            if not part:
                break
            answer += part
    finally:
        os.kill(child, signal.SIGKILL)  # not yet waited for, so the number is still the child's
        os.waitpid(child, 0)
        os.close(reader)
    assert answer[:1] == OK, f"the run failed by itself in {place}:\n{answer[1:].decode(errors='replace') or 'it died'}"
    return answer[1:]


def _live(run: Callable[[Path], bytes], place: Path, writer: int) -> None:
    """In the child: run, answer and end without the parent's clean-up."""
    try:
        try:
            answer = OK + run(place)
        except BaseException:
            answer = FAULT + traceback.format_exc().encode()
        with open(writer, "wb") as pipe:
            pipe.write(answer)
    finally:
        os._exit(0)
