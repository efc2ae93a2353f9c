"""Build the C library of `csrc` with the system's compiler, once per user, source and compiler."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

from terakoya.errors import TerakoyaError

COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-std=gnu11", "-O3", "-fPIC", "-pthread", "-fno-math-errno", "-Wno-psabi")
WIDE = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx2", "-mfma", "-mf16c")
X86 = {"avx2": ("-mavx2", "-mfma", "-mf16c"), "avx512": WIDE, "vnni": (*WIDE, "-mavx512vnni")}
EACH = ("kernels.c", "recur.c")  # compiled once per set
SECONDS = 600  # a compiler that takes longer hangs


class NoCompiler(TerakoyaError):
    """The native library cannot be had here; PyTorch does the work."""


def library() -> Path:
    """Return the path of the built library, building it first where it is not in the cache.

    The cache is $XDG_CACHE_HOME/terakoya (~/.cache/terakoya). Raise NoCompiler, saying why, where nothing can be built.
    """
    if sys.platform == "win32":
        raise NoCompiler("native library", "is not built on Windows")
    compiler = next((found for name in COMPILERS if (found := shutil.which(os.environ.get("CC") or name))), None)
    if compiler is None:
        raise NoCompiler("native library", "needs a C compiler to be built once", allowed=COMPILERS)
    folder = _cache()
    target = folder / f"native-{_key(compiler)}.so"
    if target.exists():
        return target
    with _locked(folder / "build.lock"):
        if not target.exists():
            _build(compiler, target)
    return target


def _sources() -> list[Path]:
    return sorted(Path(str(files("terakoya.ops") / "csrc")).glob("*.[ch]"))


def _kinds() -> dict[str, tuple[str, ...]]:
    """Return the flags of each set of kernels."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return {"portable": ()}
    return {"portable": ("-O2",), **X86}  # a last resort there: not worth a long build


def _key(compiler: str) -> str:
    version = _run([compiler, "--version"])
    digest = hashlib.sha256(repr((compiler, version, FLAGS, _kinds(), platform.machine())).encode())
    for path in _sources():
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:20]


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(base) if base else Path.home() / ".cache") / "terakoya"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        held = folder.stat()
    except OSError as error:
        raise NoCompiler(str(folder), f"cannot hold the native library: {error.strerror or error}") from None
    if held.st_uid != os.getuid() or held.st_mode & stat.S_IWOTH:  # what others can write, we do not load
        raise NoCompiler(str(folder), "belongs to others or can be written by them")
    return folder


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    import fcntl

    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(compiler: str, target: Path) -> None:
    """Compile into a folder of its own, then move the library into place at once."""
    with tempfile.TemporaryDirectory(dir=target.parent) as made:
        folder = Path(made)
        plain = [path for path in _sources() if path.suffix == ".c"]
        vector = [path for path in plain if path.name in EACH]
        kinds = _kinds()
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            jobs = [
                (kind, pool.submit(_compile, compiler, path, folder / f"{path.stem}-{kind}.o", _named(kind, flags)))
                for kind, flags in kinds.items()
                for path in vector
            ]
        errors = {kind: error for kind, job in jobs if (error := job.exception())}
        if "portable" in errors:
            raise errors["portable"]
        have = tuple(f"-DTK_HAVE_{kind.upper()}" for kind in kinds if kind not in errors)
        for path in plain:
            if path not in vector:
                _compile(compiler, path, folder / f"{path.stem}.o", have)
        whole = [path for path in folder.glob("*.o") if path.stem.rpartition("-")[2] not in errors]
        objects = [str(path) for path in sorted(whole)]
        _run([compiler, "-shared", "-pthread", "-o", str(folder / "library.so"), *objects, "-lm"])
        (folder / "library.so").replace(target)


def _named(kind: str, flags: tuple[str, ...]) -> tuple[str, ...]:
    return (f"-DTK_ISA=tk_{kind}", f'-DTK_NAME="{kind}"', *flags)


def _compile(compiler: str, source: Path, target: Path, more: tuple[str, ...]) -> None:
    _run([compiler, *FLAGS, *more, "-c", str(source), "-o", str(target)])


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoCompiler("native library", f"{command[0]} does not run: {error}") from None
    if done.returncode:
        first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[:200])
        raise NoCompiler("native library", f"{command[0]} fails: {first}")
    return done.stdout
