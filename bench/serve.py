"""Measure servers side by side: throughput and time to the first token at 1, 4 and 16 clients.

    python bench/serve.py http://127.0.0.1:8484 NAME [http://127.0.0.1:8000 NAME …]

Each address speaks OpenAI's chat completions. Servers take turns, so that what else the machine does hits all alike;
the prompts differ by a number at their beginning, so that no cache of prefixes helps. Standard library alone.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import threading
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

PROMPT = "({number}) Tell a story about a village school, where a teacher shows the children how to count with beads."


@dataclass(frozen=True)
class Answer:
    """One answer: seconds to its first token and in all, and its tokens."""

    first: float
    whole: float
    tokens: int


def ask(address: str, model: str, number: int, tokens: int) -> Answer:
    """Ask once, as a stream."""
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname or "127.0.0.1", parts.port or 80, timeout=600)
    body = {
        "model": model,
        "messages": [{"role": "user", "content": PROMPT.format(number=number)}],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
    }
    begun = time.perf_counter()
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
    reply = connection.getresponse()
    if reply.status != 200:
        raise SystemExit(f"{address}: {reply.status} {reply.read()[:300]!r}")
    first, count = 0.0, 0
    for line in reply:
        if not line.startswith(b"data: {"):
            continue
        choices = json.loads(line[6:]).get("choices")
        if choices and choices[0]["delta"].get("content"):
            count += 1
            first = first or time.perf_counter() - begun
    connection.close()
    return Answer(first, time.perf_counter() - begun, count)


def measure(address: str, model: str, clients: int, tokens: int, start: int) -> tuple[float, float]:
    """Let all clients ask at once -> (tokens per second together, median seconds to the first token)."""
    answers: list[Answer] = []

    def one(number: int) -> None:
        answers.append(ask(address, model, number, tokens))

    threads = [threading.Thread(target=one, args=(start + i,)) for i in range(clients)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - begun
    if len(answers) < clients:
        raise SystemExit(f"{address}: {clients - len(answers)} of {clients} answers failed")
    return sum(a.tokens for a in answers) / took, statistics.median(a.first for a in answers)


def main() -> None:
    """Print one line per number of clients and server, with ratios to the first."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("servers", nargs="+", help="address and model name, in pairs")
    p.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    p.add_argument("--tokens", type=int, default=48)
    p.add_argument("--rounds", type=int, default=3)
    args = p.parse_args()
    servers = list(zip(args.servers[::2], args.servers[1::2], strict=True))
    number = 0
    for address, model in servers:
        ask(address, model, 0, 4)  # warm
    for clients in args.clients:
        found: dict[str, list[tuple[float, float]]] = {address: [] for address, _ in servers}
        for _ in range(args.rounds):
            for address, model in servers:
                number += clients
                found[address].append(measure(address, model, clients, args.tokens, number))
        base = None
        for address, _ in servers:
            rate = statistics.median(r for r, _ in found[address])
            first = statistics.median(f for _, f in found[address])
            base = base or (rate, first)
            ratio = f"   {rate / base[0]:.2f}x, {first / base[1]:.2f}x" if base != (rate, first) else ""
            print(f"{clients:3} clients  {address:28} {rate:8.1f} tokens/s   first after {first * 1e3:7.0f} ms{ratio}")


if __name__ == "__main__":
    main()
