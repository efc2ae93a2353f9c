"""Examples that a model writes: new tasks after a few known ones (Wang 2022), explained answers (Mukherjee 2023), or
answers that are put below those of the examples (Chen 2024).

Every row says who wrote it, how, from what and with which seed.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from terakoya.errors import TerakoyaError
from terakoya.tokenizer import Message
from terakoya.tune.rollout import seed_of
from terakoya.tune.sieve import Language, Sieve
from terakoya.tune.work import Prompt, said
from terakoya.tune.writers import Writer

SHOWN = 4  # tasks in a prompt for new ones
NEW = re.compile(r"^\s*(?:\d+\s*[.．:：)）、]|[-*・])\s*(.+)$", re.MULTILINE)
ASK = {
    "ja": "次のような指示を考えています。\n{tasks}\nこれらと違う内容の新しい指示を{count}個、番号を付けて日本語で書いて"
    "ください。指示だけを書き、答えは書かないでください。",
    "en": "Here are some tasks.\n{tasks}\nWrite {count} new tasks about other things, numbered. Write only the tasks, "
    "not the answers.",
}
EXPLAIN = {
    "ja": "あなたは親切な先生です。考え方を一段ずつ説明してから、最後に答えを書いてください。",
    "en": "You are a patient teacher. Explain step by step how you think, then give the answer.",
}


@dataclass(frozen=True)
class Plan:
    """What is made, and how much."""

    way: Literal["instruct", "explain", "prefer"] = "instruct"
    language: Language = "ja"
    count: int = 100  # rows
    tokens: int = 256  # of an answer at most
    temperature: float = 0.8
    at_once: int = 8
    rounds: int = 0  # requests at most; 0: four times as many as would do if every row were kept
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("count", "tokens", "at_once"):
            if getattr(self, name) < 1:
                raise TerakoyaError(f"synth.{name}", given=getattr(self, name), allowed="1 or more")
        if self.temperature < 0 or self.rounds < 0:
            raise TerakoyaError("synth", given=(self.temperature, self.rounds), allowed="0 or more")

    @property
    def most(self) -> int:
        return self.rounds or 4 * -(-self.count // self.at_once)


def rows(plan: Plan, writer: Writer, seeds: Sequence[Prompt], sieve: Sieve) -> Iterator[dict[str, Any]]:
    """Yield rows {id, messages, made} until there are enough, or `plan.most` rounds have been asked for."""
    if not seeds:
        raise TerakoyaError("seeds", "hold no prompt to begin with")
    make = _tasks if plan.way == "instruct" else _questions
    if plan.way == "instruct":
        for prompt in seeds:
            sieve.remember(prompt[-1].content)
    done = 0
    for turn in range(plan.most):
        asked = make(plan, writer, seeds, turn)
        if not asked:
            if plan.way == "explain":
                return
            continue
        numbers = [seed_of(plan.seed, turn, i) for i in range(len(asked))]
        prompts = [prompt for prompt, _ in asked]
        answers = writer.write(prompts, numbers, tokens=plan.tokens, temperature=plan.temperature)
        for (prompt, sources), seed, answer in zip(asked, numbers, answers, strict=True):
            if not answer.finished:
                sieve.counts["without an end"] += 1
                continue
            text = answer.text.strip()
            if not sieve.passes(prompt[-1].content, text):
                continue
            kept = [m for m in prompt if m.role != "system"] if plan.way == "explain" else list(prompt)
            told = [{"role": m.role, "content": m.content} for m in (*kept, Message("assistant", text))]
            yield _row(plan, writer, prompt, text, seed, sources) | {"messages": told}
            done += 1
            if done == plan.count:
                return


def pairs(plan: Plan, writer: Writer, talks: Sequence[Prompt], sieve: Sieve) -> Iterator[dict[str, Any]]:
    """Yield rows {id, prompt, chosen, rejected, made}: the last answer of each conversation, and the model's own.

    The answer that was given is preferred to what the model says now (SPIN, Chen 2024).
    """
    done = 0
    for first in range(0, len(talks), plan.at_once):
        some = [t for t in talks[first : first + plan.at_once] if len(t) > 1 and t[-1].role == "assistant"]
        numbers = [seed_of(plan.seed, first, i) for i in range(len(some))]
        answers = writer.write([t[:-1] for t in some], numbers, tokens=plan.tokens, temperature=plan.temperature)
        sieve.counts["without an answer to prefer"] += len(talks[first : first + plan.at_once]) - len(some)
        for talk, seed, answer in zip(some, numbers, answers, strict=True):
            text, given = answer.text.strip(), talk[-1].content
            if not answer.finished or text == given:
                sieve.counts["the same" if answer.finished else "without an end"] += 1
                continue
            if not sieve.passes(talk[-2].content, text):
                continue
            asked = [{"role": m.role, "content": m.content} for m in talk[:-1]]
            row = _row(plan, writer, talk[:-1], text, seed, [_mark(said(talk))])
            yield row | {"prompt": asked, "chosen": given, "rejected": text}
            done += 1
            if done == plan.count:
                return


def _row(plan: Plan, writer: Writer, prompt: Prompt, text: str, seed: int, sources: list[str]) -> dict[str, Any]:
    made = {
        "by": writer.name, "way": plan.way, "seed": seed, "temperature": plan.temperature,
        "from": sources, "prompt": _mark(said(prompt)),
    }  # fmt: skip
    return {"id": f"{plan.way}.{_mark(said(prompt) + text)}", "made": made}


def _tasks(plan: Plan, writer: Writer, seeds: Sequence[Prompt], turn: int) -> list[tuple[Prompt, list[str]]]:
    """Ask for new tasks, some known ones shown: -> (task, marks of those shown)."""
    rng = random.Random(seed_of(plan.seed, turn, -2))
    shown = rng.sample(list(seeds), min(SHOWN, len(seeds)))
    listed = "\n".join(f"{i}. {' '.join(p[-1].content.split())}" for i, p in enumerate(shown, 1))
    text = ASK[plan.language].format(tasks=listed, count=plan.at_once)
    ask = (Message("user", text),)
    (answer,) = writer.write([ask], [seed_of(plan.seed, turn, -3)], tokens=plan.tokens, temperature=plan.temperature)
    found = [m.strip() for m in NEW.findall(answer.text)]
    if not answer.finished:
        found = found[:-1]  # the last one was cut short
    sources = [_mark(said(p)) for p in shown]
    return [((Message("user", task),), sources) for task in dict.fromkeys(found)][: plan.at_once]


def _questions(plan: Plan, writer: Writer, seeds: Sequence[Prompt], turn: int) -> list[tuple[Prompt, list[str]]]:
    """Take the next questions, with the request to explain before them."""
    some = seeds[turn * plan.at_once : (turn + 1) * plan.at_once]
    system = Message("system", EXPLAIN[plan.language])
    return [((system, *(m for m in p if m.role != "system")), [_mark(said(p))]) for p in some]


def _mark(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
