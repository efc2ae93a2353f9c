"""Where and in what precision to compute, and what the machine really reaches. Nothing is probed at import."""

from __future__ import annotations

import ctypes
import platform
import time
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from terakoya.errors import TerakoyaError, nearest

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Device:
    """A place to compute, and the type that matrix products use there."""

    name: str  # cpu | cuda | cuda:1
    precision: str  # fp32 | bf16

    @property
    def cuda(self) -> bool:
        return self.name.startswith("cuda")


def choose(name: str = "auto", precision: str = "auto") -> Device:
    """Pick a device: CUDA with bf16 where there is one, else the CPU with fp32 (bf16 is slower on most CPUs)."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda") and not (name.startswith("cuda:") and name[5:].isdecimal()):
        known = ["auto", "cpu", "cuda", "cuda:0"]
        raise TerakoyaError("device", given=name, allowed=known, hint=nearest(name, known))
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name.startswith("cuda") and int(name[5:] or 0) >= count:
        raise TerakoyaError("device", f"is not here: this machine has {count} CUDA devices", given=name)
    if precision == "auto":
        precision = "bf16" if name.startswith("cuda") else "fp32"
    return Device(name, precision)


@cache
def keep_memory() -> bool:
    """Tell glibc to keep large freed buffers instead of returning and re-faulting them every step.

    Worth 1.2x in training on two cores; freed memory stays with the process. False where the C library has no mallopt.
    """
    if platform.system() != "Linux":
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return False
    mmap_threshold, trim_threshold, most = -3, -1, 2**31 - 1
    return bool(libc.mallopt(mmap_threshold, most)) and bool(libc.mallopt(trim_threshold, most))


def measured_peak(device: Device, size: int = 1024, seconds: float = 0.5) -> float:
    """Measure the best matrix product rate (FLOP/s) of this machine now, in the device's precision."""
    import torch

    dtype = torch.bfloat16 if device.precision == "bf16" else torch.float32
    a = torch.randn(size, size, device=device.name, dtype=dtype)
    torch.mm(a, a)
    synchronise(device)
    best, end = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < end:  # once at least, however busy the machine
        start = time.perf_counter()
        torch.mm(a, a)
        synchronise(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def synchronise(device: Device) -> None:
    """Wait for the device."""
    if device.cuda:
        import torch

        torch.cuda.synchronize()


def peak_memory(device: Device) -> int:
    """Return the most bytes that this process has held: on a GPU there, else in the machine's memory."""
    if device.cuda:
        import torch

        return torch.cuda.max_memory_allocated(device.name)
    import resource

    unit = 1 if platform.system() == "Darwin" else 1024  # of ru_maxrss
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def compute_dtype(device: Device) -> torch.dtype:
    """Return the torch type of matrix products."""
    import torch

    return torch.bfloat16 if device.precision == "bf16" else torch.float32


def environment() -> dict[str, str]:
    """Describe what a run stood on: versions, processor, threads."""
    import torch

    from terakoya import __version__

    return {
        "terakoya": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": _processor(),
        "threads": str(torch.get_num_threads()),
    } | ({"cuda": torch.cuda.get_device_name()} if torch.cuda.is_available() else {})


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), platform.machine())
    except OSError:
        return platform.machine()
