"""Run Python text that nobody has read, as a process of its own that can compute and nothing else.

Namespaces (user, mounts, network, IPC, processes), everything read-only but a small folder in memory, Landlock, a
system-call filter, limits of time, memory, files and output, no environment, no inherited files. `jail.py` puts it all
up and then becomes the interpreter. Where the kernel lacks a part, nothing is run: there is no weaker mode.

It is for code that checks itself, such as unit tests of generated functions: one process, threads but no children.
What it does not hide: the clock, the processor's kind, and which files exist (their content it does).
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from terakoya.errors import TerakoyaError

JAIL = Path(__file__).with_name("jail.py")
LARGEST = 2**20  # bytes of code

End = Literal["exit", "wall", "output"]


@dataclass(frozen=True)
class Limits:
    """What a run may use."""

    seconds: float = 5.0  # of the processor
    wall: float = 10.0  # seconds from start to end
    memory: int = 512 * 2**20  # bytes of address space
    disk: int = 16 * 2**20  # bytes of files, all together, kept in memory
    output: int = 2**20  # bytes printed

    def __post_init__(self) -> None:
        for name in ("seconds", "wall", "memory", "disk", "output"):
            if not 0 < getattr(self, name) < 2**50:
                raise TerakoyaError(f"limits.{name}", given=getattr(self, name), allowed="more than 0")


@dataclass(frozen=True)
class Ran:
    """What came of it: exit status (minus the signal where one ended it), what was printed, how it ended, seconds."""

    code: int
    output: str
    end: End
    seconds: float


class Lacks(TerakoyaError):
    """The kernel, or who set this machine up, does not let a part of the sandbox be."""


@functools.cache
def missing() -> str | None:
    """Name the part of the sandbox that this machine lacks; None: code can be run."""
    try:
        _run("pass", Limits())
    except Lacks as error:
        return error.problem
    return None


def run(code: str, limits: Limits = Limits()) -> Ran:
    """Run Python code. Raises TerakoyaError where the sandbox cannot be put up: code is never run without it."""
    if (lack := missing()) is not None:
        raise TerakoyaError("sandbox", f"cannot be put up: this machine lacks {lack}", hint="nothing was run")
    return _run(code, limits)


def token() -> str:
    """Return a text that no program can guess."""
    return f"passed-{secrets.token_hex(16)}"


def _run(code: str, limits: Limits) -> Ran:
    try:
        text = code.encode()
    except UnicodeEncodeError as error:
        raise TerakoyaError("code", f"is not Unicode ({error.reason})") from None
    if len(text) > LARGEST:
        raise TerakoyaError("code", given=f"{len(text)} bytes", allowed=f"{LARGEST} bytes at most")
    if not sys.platform.startswith("linux"):
        raise Lacks("sandbox", f"Linux (this is {sys.platform})")
    with tempfile.TemporaryDirectory(prefix="terakoya-") as work:
        return _jailed(text, limits, work)


def _jailed(text: bytes, limits: Limits, work: str) -> Ran:
    said, tell = os.pipe()
    python = os.path.realpath(sys.executable)
    numbers = (max(1, round(limits.seconds)), limits.memory, limits.disk, tell)
    began = time.monotonic()
    try:
        process = subprocess.Popen(
            [python, "-I", "-S", str(JAIL), work, python, sys.base_prefix, *map(str, numbers)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={"LANG": "C.UTF-8"},
            pass_fds=(tell,), start_new_session=True,
        )  # fmt: skip
    finally:
        os.close(tell)
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(struct.pack("<Q", len(text)) + text)
            process.stdin.close()
        except BrokenPipeError:  # it ended before it read; the status says why
            pass
        problem = _read(said, 4096, began + limits.wall)[0]
        if problem:
            raise Lacks("sandbox", problem.decode("utf-8", "replace"))
        output, end = _read(process.stdout.fileno(), limits.output, began + limits.wall)
        if end == "exit":
            try:
                process.wait(max(0.0, began + limits.wall - time.monotonic()))
            except subprocess.TimeoutExpired:
                end = "wall"
    finally:
        os.close(said)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # whoever is left; the namespace of processes goes with its first
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
    code = process.returncode
    code = 128 - code if code > 128 else code  # jail.py tells of a signal as a shell does
    return Ran(code if end == "exit" else -signal.SIGKILL, output.decode("utf-8", "replace"), end,
               time.monotonic() - began)  # fmt: skip


def _read(file: int, most: int, until: float) -> tuple[bytes, End]:
    """Read to the end, to `most` bytes or to the moment `until`."""
    seen = b""
    while len(seen) < most:
        ready, _, _ = select.select([file], [], [], max(0.0, until - time.monotonic()))
        if not ready:
            return seen, "wall"
        part = os.read(file, min(65536, most - len(seen)))
        if not part:
            return seen, "exit"
        seen += part
    return seen, "output"
