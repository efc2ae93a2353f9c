"""Measure servers side by side: throughput and time to the first token at 1, 4 and 16 clients.

    python bench/serve.py MODEL.gguf [--against xllamacpp llama-cpp-python[=PYTHON] transformers=FOLDER] [--threads 2]
    python bench/serve.py --at terakoya=http://127.0.0.1:8484 --at other=http://127.0.0.1:8000 --model NAME

The first form starts the servers itself, each with the same file (transformers: with a folder of the same model) and
the same number of threads, on free ports; the second asks servers that run already. PYTHON is an interpreter that
has the package, where this one has not. Each number of clients can be measured by itself (`--clients 16 --rounds 2`),
and a server that takes longer than `--patience` seconds for one wave is left out. Servers take turns within each
round, so that what else the machine does hits all alike; the prompts differ by a number at their beginning, so that no
cache of prefixes helps. A ratio above 1 is to the first server's advantage.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

PROMPT = "({number}) Tell a story about a village school, where a teacher shows the children how to count with beads."
SLOTS, CONTEXT = 16, 1024  # of llama.cpp's server: as many as there are clients, and what each may use

LLAMA = """
import sys, time, xllamacpp as x
path, port, threads, slots, context = sys.argv[1], *map(int, sys.argv[2:])
p = x.CommonParams()
p.model.path, p.port, p.n_parallel, p.n_ctx, p.model_alias = path, port, slots, slots * context, {"bench"}
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = threads
p.use_jinja, p.cont_batching, p.endpoint_metrics = True, True, False
server = x.Server(p)
time.sleep(1e6)
"""


@dataclass(frozen=True)
class Server:
    """One server: what to call it, where it listens, how it calls the model."""

    name: str
    address: str
    model: str


@dataclass(frozen=True)
class Answer:
    """One answer: seconds to its first token and in all, and its tokens."""

    first: float
    whole: float
    tokens: int


def command(kind: str, path: str, port: int, threads: int) -> list[str]:
    """Return what starts a server."""
    given = kind.partition("=")[2]
    match kind.partition("=")[0]:
        case "terakoya":
            return [sys.executable, "-m", "terakoya", "serve", f"bench={path}", "--port", str(port)]
        case "xllamacpp":
            return [sys.executable, "-c", LLAMA, path, str(port), str(threads), str(SLOTS), str(CONTEXT)]
        case "llama-cpp-python":
            more = ["--port", str(port), "--n_threads", str(threads), "--n_ctx", str(CONTEXT), "--model_alias", "bench"]
            more += ["--interrupt_requests", "false"]  # or each request ends the one before it
            return [given or sys.executable, "-m", "llama_cpp.server", "--model", path, *more]
        case "transformers" if given:
            program = str(Path(sys.executable).with_name("transformers"))
            return [program, "serve", given, "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    raise SystemExit(f"{kind}: no such server; there are terakoya, xllamacpp, llama-cpp-python, transformers=FOLDER")


@contextlib.contextmanager
def started(kinds: list[str], path: str, threads: int) -> Iterator[list[Server]]:
    """Start servers, wait until each answers, and end them."""
    children: list[subprocess.Popen[bytes]] = []
    found = []
    logs = contextlib.ExitStack()
    folder = Path(logs.enter_context(tempfile.TemporaryDirectory()))
    try:
        for kind in kinds:
            with socket.socket() as s:
                s.bind(("127.0.0.1", 0))
                port = s.getsockname()[1]
            log = logs.enter_context((folder / f"{port}.log").open("w+b"))
            environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
            start = command(kind, path, port, threads)
            children.append(subprocess.Popen(start, stdout=log, stderr=log, env=environment))
            name, _, given = kind.partition("=")
            model = given if name == "transformers" else "bench"
            server = Server(name, f"http://127.0.0.1:{port}", model)
            if wait(server, children[-1], log):
                found.append(server)
        yield found
    finally:
        for child in children:
            child.terminate()
        for child in children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(10)
            child.kill()
        logs.close()


def wait(server: Server, child: subprocess.Popen[bytes], log: IO[bytes]) -> bool:
    """Ask until there is an answer; where none comes, say why, and go on without this server."""
    end = time.monotonic() + 100
    while True:
        try:
            ask(server, 0, 4)
            return True
        except (OSError, http.client.HTTPException, ValueError) as error:
            if child.poll() is not None or time.monotonic() > end:
                log.seek(0)
                said = log.read()[-800:].decode(errors="replace")
                print(f"{server.name} is left out, it does not answer: {error}\n{said}", file=sys.stderr)
                return False
            time.sleep(0.5)


def ask(server: Server, number: int, tokens: int) -> Answer:
    """Ask once, as a stream."""
    parts = urlsplit(server.address)
    connection = http.client.HTTPConnection(parts.hostname or "127.0.0.1", parts.port or 80, timeout=600)
    body = {
        "model": server.model,
        "messages": [{"role": "user", "content": PROMPT.format(number=number)}],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    begun = time.perf_counter()
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
    reply = connection.getresponse()
    if reply.status != 200:
        raise ValueError(f"{reply.status} {reply.read()[:300]!r}")
    first, count, usage = 0.0, 0, None
    for line in reply:  # without counts of its own, one event is one token
        if not line.startswith(b"data: {"):
            continue
        told = json.loads(line[6:])
        if told.get("usage"):
            usage = told["usage"]
            count = usage["completion_tokens"]
        choices = told.get("choices")
        if choices and choices[0]["delta"].get("content"):
            count += usage is None
            first = first or time.perf_counter() - begun
    connection.close()
    return Answer(first, time.perf_counter() - begun, count)


def measure(server: Server, clients: int, tokens: int, start: int, patience: float = 100) -> tuple[float, float]:
    """Let all clients ask at once -> (tokens per second together, median seconds to the first token)."""
    answers: list[Answer] = []
    problems: list[str] = ["not there in time"]

    def one(number: int) -> None:
        try:
            answers.append(ask(server, number, tokens))
        except (OSError, http.client.HTTPException, ValueError) as error:
            problems.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=one, args=(start + i,), daemon=True) for i in range(clients)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(begun + patience - time.perf_counter(), 0))
    took = time.perf_counter() - begun
    if len(answers) < clients:
        raise ValueError(f"{clients - len(answers)} of {clients} answers failed after {took:.0f} s: {problems[-1]}")
    return sum(a.tokens for a in answers) / took, statistics.median(a.first for a in answers)


def compare(servers: list[Server], counts: list[int], tokens: int, rounds: int, patience: float) -> None:
    """Print one line per number of clients and server, with ratios to the first server."""
    number = 1
    servers = list(servers)
    for clients in counts:
        found: dict[str, list[tuple[float, float]]] = {s.name: [] for s in servers}
        for turn in range(rounds):
            for server in servers[turn % len(servers) :] + servers[: turn % len(servers)]:
                number += clients
                try:
                    found[server.name].append(measure(server, clients, tokens, number, patience))
                    rate, first = found[server.name][-1]
                    told = f"{server.name} {rate:.1f} tokens/s, {first * 1e3:.0f} ms"
                    print(f"  round {turn + 1}: {told}", file=sys.stderr, flush=True)
                except ValueError as error:
                    print(f"{server.name} is left out: {error}", file=sys.stderr)
                    servers.remove(server)
        base = None
        for server in servers:
            rate, first = (statistics.median(column) for column in zip(*found[server.name], strict=True))
            base = base or (rate, first)
            ratio = f"   {base[0] / rate:5.2f}x the tokens, {first / base[1]:5.2f}x as soon"
            line = f"{clients:3} clients  {server.name:18} {rate:8.1f} tokens/s   first after {first * 1e3:7.0f} ms"
            print(line + (ratio if server is not servers[0] else ""), flush=True)


def main() -> None:
    """Read the command line, and measure."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("path", nargs="?", help="a GGUF file for servers that are started here")
    p.add_argument("--against", nargs="*", default=["xllamacpp"], help="what else to start")
    p.add_argument("--at", action="append", default=[], metavar="NAME=URL", help="a server that runs already")
    p.add_argument("--model", default="bench", help="how these call the model")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    p.add_argument("--tokens", type=int, default=48)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--patience", type=float, default=60, help="seconds for one wave of requests")
    args = p.parse_args()
    running = [Server(*one.split("=", 1), args.model) for one in args.at]
    if args.path is None:
        compare(running, args.clients, args.tokens, args.rounds, args.patience)
        return
    with started(["terakoya", *args.against], args.path, args.threads) as servers:
        compare(servers + running, args.clients, args.tokens, args.rounds, args.patience)


if __name__ == "__main__":
    main()
