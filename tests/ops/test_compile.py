"""Where there is a compiler the library is built, with every set of kernels that this processor can run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from terakoya.ops import native
from terakoya.ops.compile import COMPILERS

CPU = Path("/proc/cpuinfo")
NEEDS = {
    "portable": set(),
    "avx2": {"avx2", "fma", "f16c"},
    "avx512": {"avx512f", "avx512bw", "avx512vl", "avx512dq"},
    "vnni": {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"},
}


@pytest.mark.skipif(not any(map(shutil.which, COMPILERS)), reason="no C compiler")
@pytest.mark.skipif(not CPU.exists(), reason="no /proc/cpuinfo that names what the processor can do")
def test_every_set_of_kernels_compiles() -> None:
    can = set(CPU.read_text(encoding="utf-8").split())
    assert set(native.isas()) == {isa for isa, needs in NEEDS.items() if needs <= can}
