"""How much memory there is: of the machine, or of the container that this process was put in."""

from __future__ import annotations

import os
from pathlib import Path

PROC, GROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def available(meminfo: Path = PROC, group: Path = GROUP) -> tuple[int, int]:
    """Return bytes that can be had without pushing anything out, and bytes in all; (0, 0) where nobody says."""
    free, total = _machine(meminfo)
    limit, used = _number(group / "memory.max"), _number(group / "memory.current")
    if limit is not None and used is not None and (not total or limit < total):
        cached = _field(group / "memory.stat", "inactive_file ") or 0  # file pages that go when they must
        return min(free or limit, max(0, limit - used + cached)), limit
    return free, total


def _machine(meminfo: Path) -> tuple[int, int]:
    free, total = _field(meminfo, "MemAvailable:"), _field(meminfo, "MemTotal:")
    if free is not None and total is not None:
        return free * 1024, total * 1024
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        return os.sysconf("SC_AVPHYS_PAGES") * page, os.sysconf("SC_PHYS_PAGES") * page
    except (AttributeError, ValueError, OSError):
        return 0, 0


def _field(path: Path, name: str) -> int | None:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.removeprefix(name).split()[0]) for line in lines if line.startswith(name)), None)


def _number(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
