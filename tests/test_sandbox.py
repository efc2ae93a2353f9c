"""Code that nobody has read runs apart: what hostile programs try, and that none of it leaves the sandbox."""

from __future__ import annotations

import os
import socket
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from terakoya import jail, sandbox
from terakoya.errors import TerakoyaError
from terakoya.sandbox import Limits, run

pytestmark = pytest.mark.skipif(
    (lack := sandbox.missing()) is not None, reason=f"no sandbox on this machine: it lacks {lack}"
)
QUICK = Limits(seconds=1, wall=4, memory=256 * 2**20, disk=2**20, output=2**16)
DONE = "ESCAPED"


def ran(code: str, limits: Limits = QUICK) -> sandbox.Ran:
    return run(textwrap.dedent(code), limits)


def escaped(seen: sandbox.Ran) -> bool:
    """Whether a program said so; tracebacks quote it, indented."""
    return any(line.startswith(DONE) for line in seen.output.splitlines())


@pytest.fixture
def secret(tmp_path: Path) -> Iterator[Path]:
    """A file of ours that anybody on the machine may read and write."""
    folder = tmp_path / "open"
    folder.mkdir(mode=0o777)
    path = folder / "secret.txt"
    path.write_text("himitsu 秘密", encoding="utf-8")
    path.chmod(0o666)
    for parent in (folder, *folder.parents):
        if os.access(parent, os.W_OK) and parent.stat().st_uid == os.getuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o005)
    yield path
    assert path.read_text(encoding="utf-8") == "himitsu 秘密"
    assert path.stat().st_mode & 0o777 == 0o666
    assert sorted(p.name for p in folder.iterdir()) == ["secret.txt"]


def test_a_program_computes_and_says_so() -> None:
    seen = ran("print(sum(range(10)), '寺子屋 👩🏽‍🏫')")
    assert (seen.code, seen.output, seen.end) == (0, "45 寺子屋 👩🏽‍🏫\n", "exit")
    seen = ran("open('x', 'w').write('1'); import json, math, re, itertools; print(open('x').read())")
    assert (seen.code, seen.output) == (0, "1\n")
    seen = ran("import threading; t = threading.Thread(target=print, args=('side',)); t.start(); t.join()")
    assert (seen.code, seen.output) == (0, "side\n")
    assert ran("raise SystemExit(3)").code == 3
    assert "ZeroDivisionError" in ran("1 / 0").output


FILES = {
    "read": "print(open({secret!r}).read())",
    "read bytes by a link": "import os; os.symlink({secret!r}, 'l'); print(open('l').read())",
    "hard link": "import os; os.link({secret!r}, 'h'); print(open('h').read())",
    "write": "open({secret!r}, 'w').write('1'); print('ESCAPED')",
    "append": "open({secret!r}, 'a').write('1'); print('ESCAPED')",
    "cut": "import os; os.truncate({secret!r}, 0); print('ESCAPED')",
    "remove": "import os; os.remove({secret!r}); print('ESCAPED')",
    "rename": "import os; os.rename({secret!r}, 'mine'); print('ESCAPED')",
    "mode": "import os; os.chmod({secret!r}, 0o600); print('ESCAPED')",
    "times": "import os; os.utime({secret!r}, (0, 0)); print('ESCAPED')",
    "beside": "open({secret!r} + '.new', 'w').write('1'); print('ESCAPED')",
    "folder": "import os; print('ESCAPED', os.listdir(os.path.dirname({secret!r})))",
    "mkfifo": "import os; os.mkfifo({secret!r} + '.fifo'); print('ESCAPED')",
    "ctypes": "import ctypes; print('ESCAPED' if ctypes.CDLL(None).open({secret!r}.encode(), 1) >= 0 else 'no')",
    "race of links": """
        import os, threading
        os.mkdir('d'); os.mkdir('e'); open('d/secret.txt', 'w').write('mine')
        os.symlink(os.path.dirname({secret!r}), 'real')
        def swap():
            for _ in range(2000):
                try: os.rename('d', 'k'); os.rename('real', 'd'); os.rename('d', 'real'); os.rename('k', 'd')
                except OSError: pass
        t = threading.Thread(target=swap); t.start()
        for _ in range(2000):
            try: text = open('d/secret.txt').read()
            except OSError: continue
            if text != 'mine': print('ESCAPED'); break
        t.join()
        """,
}


@pytest.mark.parametrize("name", FILES)
def test_files_stay_closed(name: str, secret: Path) -> None:
    seen = ran(FILES[name].replace("{secret!r}", repr(str(secret))))
    assert not escaped(seen)
    assert "himitsu" not in seen.output


SYSTEM = {
    "passwd": "print('ESCAPED', open('/etc/passwd').read())",
    "home": "import os; print('ESCAPED', os.listdir('/root' if os.path.exists('/root') else '/home'))",
    "parent's environment": "import os; print('ESCAPED', open(f'/proc/{os.getppid()}/environ').read())",
    "own maps": "print('ESCAPED', open('/proc/self/maps').read())",
    "memory": "print('ESCAPED', open('/proc/self/mem', 'rb+'))",
    "shell": "import os; os.execv('/bin/sh', ['sh', '-c', 'echo ESC''APED'])",
    "shell by the loader": "import os, glob; os.execv(glob.glob('/lib64/ld-*')[0], ['ld', '/bin/cat', '/etc/passwd'])",
    "child": "import os; os.fork(); print('ESCAPED')",
    "subprocess": "import subprocess; subprocess.run(['/usr/bin/id']); print('ESCAPED')",
    "spawn": "import os; os.posix_spawn('/usr/bin/id', ['id'], {}); print('ESCAPED')",
    "tcp": "import socket; socket.create_connection(('127.0.0.1', {port}), 1); print('ESCAPED')",
    "udp": "import socket; socket.socket(2, 2).sendto(b'x', ('8.8.8.8', 53)); print('ESCAPED')",
    "abstract socket": "import socket; socket.socket(1).connect('\\0terakoya-test'); print('ESCAPED')",
    "raw socket": "import socket; socket.socket(2, 3, 1); print('ESCAPED')",
    "names": "import socket; socket.gethostbyname('example.com'); print('ESCAPED')",
    "signal to the parent": "import os; os.kill(os.getppid(), 0); os.kill({pid}, 0); print('ESCAPED')",
    "signal to all": "import os, signal; os.kill(-1, signal.SIGTERM); os.kill(-1, 9); print('gone')",
    "ptrace": "import ctypes; print('ESCAPED' if ctypes.CDLL(None).ptrace(0, 0, 0, 0) == 0 else 'no')",
    "memory of another": """
        import ctypes
        b = ctypes.create_string_buffer(8)
        r = ctypes.CDLL(None).process_vm_readv({pid}, b, 1, b, 1, 0)
        print('ESCAPED' if r > 0 else 'no')""",
    "user namespace": "import ctypes; print('ESCAPED' if ctypes.CDLL(None).unshare(0x10000000) == 0 else 'no')",
    "mount": "import ctypes; print('ESCAPED' if ctypes.CDLL(None).mount(b'x', b'.', b'tmpfs', 0, None) == 0 else 'no')",
    "chroot": "import os; os.chroot('.'); print('ESCAPED')",
    "io_uring": """
        import ctypes
        print('ESCAPED' if ctypes.CDLL(None).syscall(425, 1, ctypes.create_string_buffer(256)) >= 0 else 'no')""",
    "keys": "import ctypes; print('ESCAPED' if ctypes.CDLL(None).syscall({keyctl}, 0, -3, 1) >= 0 else 'no')",
    "shared memory": "open('/dev/shm/x', 'w').write('1'); print('ESCAPED')",
    "temporary files": "open('/tmp/escaped', 'w').write('1'); open('/var/tmp/escaped', 'w'); print('ESCAPED')",
    "device": "import os; os.mknod('d', 0o20666, os.makedev(1, 8)); print('ESCAPED', os.read(os.open('d', 0), 1))",
    "root": "import os; os.setuid(0); print('ESCAPED')",
    "more than the limits": "import resource as r; r.setrlimit(r.RLIMIT_AS, (2**40, 2**40)); print('ESCAPED')",
    "clock": "import time; time.clock_settime(0, 0); print('ESCAPED')",
    "host's name": "import socket; socket.sethostname('escaped'); print('ESCAPED')",
    "run from the folder": """
        import os, shutil
        shutil.copy('/usr/bin/id', 'id'); os.chmod('id', 0o755); os.execv('id', ['id']); print('ESCAPED')""",
}


@pytest.mark.parametrize("name", SYSTEM)
def test_the_system_stays_closed(name: str) -> None:
    with socket.socket(socket.AF_UNIX) as ours, socket.socket() as port:
        ours.bind("\0terakoya-test")
        ours.listen()
        port.bind(("127.0.0.1", 0))
        port.listen()
        known = {
            "pid": os.getpid(),
            "port": port.getsockname()[1],
            "keyctl": 250 if os.uname().machine == "x86_64" else 219,
        }
        code = SYSTEM[name]
        for key, value in known.items():
            code = code.replace(f"{{{key}}}", str(value))
        seen = ran(code)
    assert not escaped(seen)
    assert "uid=" not in seen.output
    assert "root:" not in seen.output


def test_open_files_and_the_environment_are_not_handed_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TERAKOYA_SECRET", "himitsu")
    with (tmp_path / "held").open("w+", encoding="utf-8") as file:
        os.set_inheritable(file.fileno(), True)
        seen = ran(
            """
            import os
            print(dict(os.environ))
            for f in range(3, 200):
                try: os.fstat(f); print('ESCAPED', f)
                except OSError: pass
            """
        )
    assert seen.code == 0
    assert "himitsu" not in seen.output
    assert not escaped(seen)


def test_every_limit_holds() -> None:
    assert ran("x = bytearray(1 << 30); print('ESCAPED')").output.rstrip().endswith("MemoryError")
    seen = ran("while True: pass")
    assert seen.code == -9
    assert seen.seconds < 30  # of the clock; the limit is of CPU time
    seen = ran("import time; time.sleep(60)", Limits(wall=0.5))
    assert (seen.end, seen.code) == ("wall", -9)
    seen = ran("import os, time; os.close(1); os.close(2); time.sleep(60)", Limits(wall=0.5))
    assert (seen.end, seen.code) == ("wall", -9)
    seen = ran("while True: print('A' * 65536)")
    assert seen.end == "output"
    assert len(seen.output) == QUICK.output
    assert not escaped(ran("open('big', 'wb').write(bytes(2 << 20)); print('ESCAPED')"))
    full = ran("for i in range(64): open(f'f{i}', 'wb').write(bytes(1 << 16))\nprint('ESCAPED')")
    assert "No space left" in full.output
    many = ran("for i in range(100000): open(f'f{i}', 'w').close()\nprint('ESCAPED')")
    assert "No space left" in many.output
    held = ran("k = [open('main.py') for _ in range(100)]; print('ESCAPED')")
    assert "Too many open files" in held.output
    bomb = ran("import os\nwhile True:\n  try: os.fork()\n  except OSError as e: print(e); break")
    assert "not permitted" in bomb.output


def test_threads_end_with_their_program() -> None:
    began = time.monotonic()
    seen = ran(
        "import threading, time\nfor _ in range(5): threading.Thread(target=time.sleep, args=(60,)).start()",
        Limits(wall=0.7),
    )
    assert seen.end == "wall"
    assert time.monotonic() - began < 5


def test_without_a_part_nothing_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "jail.py"
    text = Path(jail.__file__).read_text(encoding="utf-8")
    for old, new, lack in (
        ("if version < 3:", "if version < 300:", "Landlock"),
        ("platform.machine()", "'pdp11'", "filter for pdp11"),
        ("LIBC.unshare(flag)", "LIBC.unshare(flag | 1)", "user namespaces"),
    ):
        assert old in text
        broken.write_text(text.replace(old, new), encoding="utf-8")
        monkeypatch.setattr(sandbox, "JAIL", broken)
        sandbox.missing.cache_clear()
        assert lack in (sandbox.missing() or "")
        with pytest.raises(TerakoyaError, match=f"{lack}.*nothing was run"):
            run("print(1)")
    sandbox.missing.cache_clear()


def test_code_that_is_no_text_is_refused() -> None:
    with pytest.raises(TerakoyaError, match="Unicode"):
        run("print('\ud800')")
    with pytest.raises(TerakoyaError, match="bytes at most"):
        run("#" * (sandbox.LARGEST + 1))
    with pytest.raises(TerakoyaError, match=r"limits.wall"):
        Limits(wall=0)


def test_the_filter_is_whole_for_both_kinds_of_processor() -> None:
    for machine in jail.NEW:
        code = jail.instructions(machine)
        assert len(code) % 8 == 0
        for at in range(0, len(code), 8):  # every jump lands inside
            kind, yes, no = int.from_bytes(code[at : at + 2], "little"), code[at + 2], code[at + 3]
            assert kind not in (0x15, 0x35, 0x45) or at // 8 + 1 + max(yes, no) < len(code) // 8
        assert int.from_bytes(code[-4:], "little") == 0x7FFF0000
