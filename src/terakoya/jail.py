"""Put a sandbox up around this process and become a Python interpreter in it. Run by sandbox.py, never imported.

    python -I -S jail.py WORK PYTHON PREFIX SECONDS MEMORY DISK STATUS < length and code

What cannot be put up is written to the file STATUS, and nothing is run. Standard library only; see landlock(7),
seccomp(2), user_namespaces(7).
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import signal
import struct
import sys
from typing import NoReturn

LIBC = ctypes.CDLL(None, use_errno=True)
NAMESPACES = {"user": 0x10000000, "mount": 0x20000, "network": 0x40000000, "IPC": 0x08000000, "process": 0x20000000}
MS_REC, MS_PRIVATE, MS_NOSUID, MS_NODEV, MS_NOEXEC = 0x4000, 0x40000, 2, 4, 8
MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, RDONLY = 442, -100, 0x8000, 1
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP = 1, 38, 22
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
WITHIN = WRITE_FILE | READ_FILE | READ_DIR | 0b1_1011_1011_0000 | 1 << 14  # make, remove and cut, but no devices
THREAD = 0x10000  # CLONE_THREAD

# What is refused besides new processes, by number: (x86_64, aarch64). One line a purpose.
REFUSED = (
    (41, 198), (425, 425), (426, 426), (427, 427),  # socket, io_uring
    (101, 117), (310, 270), (311, 271), (312, 272), (434, 434), (438, 438), (424, 424),  # ptrace, other processes
    (165, 40), (166, 39), (155, 41), (161, 51), (272, 97), (308, 268),  # mounts, roots, namespaces
    (428, 428), (429, 429), (430, 430), (431, 431), (432, 432), (433, 433), (442, 442),  # mounts, the new way
    (303, 264), (304, 265), (319, 279), (322, 281),  # files by handle, files without a name, execveat
    (29, 194), (64, 190), (68, 186), (240, 180),  # memory, semaphores, messages that outlive a process
    (248, 217), (249, 218), (250, 219),  # keys
    (321, 280), (298, 241), (323, 282), (135, 92),  # bpf, perf, userfaultfd, personality
    (246, 104), (175, 105), (313, 273), (176, 106), (169, 142), (167, 224), (168, 225), (103, 116), (163, 89),
    (164, 170), (227, 112), (159, 171), (305, 266), (179, 60),  # the machine itself: modules, clocks, swap
)  # fmt: skip
NEW = {"x86_64": (0xC000003E, 56, 435, (57, 58)), "aarch64": (0xC00000B7, 220, 435, ())}  # clone, clone3, fork
EPERM, ENOSYS = 1, 38


class Absent(Exception):
    """A part that this kernel does not give."""


def call(name: str, result: int) -> int:
    if result < 0:
        raise Absent(f"{name} ({os.strerror(ctypes.get_errno())})")
    return result


def namespaces() -> None:
    """Leave the user, mounts, network, IPC and processes of the machine."""
    user, group = os.getuid(), os.getgid()
    for name, flag in NAMESPACES.items():
        call(f"{name} namespaces", LIBC.unshare(flag))
        if name == "user":
            for file, text in (("setgroups", "deny"), ("uid_map", f"65534 {user} 1"), ("gid_map", f"65534 {group} 1")):
                with open(f"/proc/self/{file}", "w", encoding="ascii") as out:
                    out.write(text)


def mounts(work: str, disk: int) -> None:
    """Make all that is mounted read-only, and WORK a small folder in memory."""
    call("private mounts", LIBC.mount(None, b"/", None, MS_REC | MS_PRIVATE, None))
    attributes = struct.pack("QQQQ", RDONLY, 0, 0, 0)
    call("read-only mounts", LIBC.syscall(MOUNT_SETATTR, AT_FDCWD, b"/", AT_RECURSIVE, attributes, len(attributes)))
    options = f"size={disk},nr_inodes=512,mode=700".encode()
    flags = MS_NOSUID | MS_NODEV | MS_NOEXEC
    call("a folder in memory", LIBC.mount(b"tmpfs", os.fsencode(work), b"tmpfs", flags, options))


def landlock(read: list[str], run: list[str], write: list[str]) -> None:
    """Let files be opened only below the given places."""
    version = LIBC.syscall(CREATE_RULESET, None, 0, 1)
    if version < 3:
        raise Absent("Landlock of version 3 (Linux 6.2)")
    every = (1 << (16 if version >= 5 else 15)) - 1
    attributes = struct.pack("QQQ", every, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    attributes = attributes[: 24 if version >= 6 else 16 if version >= 4 else 8]
    ruleset = call("Landlock", LIBC.syscall(CREATE_RULESET, attributes, len(attributes), 0))
    for paths, rights in ((read, READ_FILE | READ_DIR), (run, EXECUTE | READ_FILE | READ_DIR), (write, WITHIN)):
        for path in paths:
            if os.path.exists(path):
                place = os.open(path, os.O_PATH | os.O_CLOEXEC)
                given = rights if os.path.isdir(path) else rights & (EXECUTE | READ_FILE | WRITE_FILE)
                call("Landlock rules", LIBC.syscall(ADD_RULE, ruleset, 1, struct.pack("=Qi", given, place), 0))
                os.close(place)
    call("Landlock", LIBC.syscall(RESTRICT_SELF, ruleset, 0))
    os.close(ruleset)


def instructions(machine: str) -> bytes:
    """Return the filter: (code, jump if true, jump if false, value), 8 bytes each."""
    if machine not in NEW:
        raise Absent(f"a system-call filter for {machine}")
    arch, clone, clone3, forks = NEW[machine]
    refused = [*forks, *(pair[0 if machine == "x86_64" else 1] for pair in REFUSED)]
    load, equal, above, bit, end = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, kill, deny = 0x7FFF0000, 0x80000000, 0x00050000
    made = [(load, 0, 0, 4), (equal, 1, 0, arch), (end, 0, 0, kill), (load, 0, 0, 0)]
    if machine == "x86_64":
        made += [(above, 0, 1, 0x40000000), (end, 0, 0, kill)]  # the numbers of x32
    made += [(equal, 0, 1, clone3), (end, 0, 0, deny | ENOSYS)]  # its flags lie in memory: the old one is taken instead
    made += [(equal, 0, 4, clone), (load, 0, 0, 16), (bit, 0, 1, THREAD), (end, 0, 0, allow), (end, 0, 0, deny | EPERM)]
    for number in refused:
        made += [(equal, 0, 1, number), (end, 0, 0, deny | EPERM)]
    made.append((end, 0, 0, allow))
    return b"".join(struct.pack("=HBBI", *each) for each in made)


def calls_filtered() -> None:
    """Refuse new processes, sockets and the calls that a program for tests never needs."""
    code = instructions(platform.machine())
    held = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("=HxxxxxxQ", len(code) // 8, ctypes.addressof(held))
    held_program = ctypes.create_string_buffer(program, len(program))
    call("seccomp", LIBC.prctl(PR_SET_SECCOMP, 2, ctypes.c_void_p(ctypes.addressof(held_program)), 0, 0))


def limits(seconds: int, memory: int, disk: int) -> None:
    """Set what the process may use at most."""
    for kind, most in (
        (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, disk),
        (resource.RLIMIT_NOFILE, 64), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_MEMLOCK, 0),
    ):  # fmt: skip
        resource.setrlimit(kind, (most, most))


def inside(work: str, python: str, prefix: str, seconds: int, memory: int, disk: int) -> NoReturn:
    """Close the last doors and become the interpreter."""
    system = ["/usr", "/lib", "/lib64", prefix, os.path.realpath(prefix), "/dev/urandom", "/dev/null"]
    call("no new privileges", LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    landlock(system, [python, "/lib", "/lib64"], [work])
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    limits(seconds, memory, disk)
    calls_filtered()
    env = {"LANG": "C.UTF-8", "HOME": work, "TMPDIR": work}
    os.execve(python, [python, "-I", "-S", "-B", "-X", "utf8", f"{work}/main.py"], env)


def waited(child: int) -> NoReturn:
    """Wait for a child and end as it ended."""
    _, status = os.waitpid(child, 0)
    os._exit(os.waitstatus_to_exitcode(status) % 256 if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))


def main() -> None:
    work, python, prefix, *numbers = sys.argv[1:]
    seconds, memory, disk, status = map(int, numbers)
    os.set_inheritable(status, False)
    with os.fdopen(0, "rb", closefd=False) as file:
        code = file.read(struct.unpack("<Q", file.read(8))[0])
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    try:
        namespaces()
        mounts(work, disk)
        os.chdir(work)
        with open("main.py", "wb") as out:
            out.write(code)
        if first := os.fork():  # the first of the new processes: all others end with it
            os.close(status)
            waited(first)
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if second := os.fork():
            os.close(status)
            waited(second)
        inside(work, python, prefix, seconds, memory, disk)
    except (Absent, OSError) as error:
        os.write(status, str(error).encode()[:4000])
        os._exit(97)


if __name__ == "__main__":
    main()
