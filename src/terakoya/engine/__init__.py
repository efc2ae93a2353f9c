"""Text in, text out: sampling, generation, conversations."""

from __future__ import annotations

from terakoya.engine.chat import Chat, Reply
from terakoya.engine.generate import Completion, Token, complete, generate
from terakoya.engine.sampling import History, Sampling, draw, process
from terakoya.engine.stop import Stop

__all__ = [
    "Chat",
    "Completion",
    "History",
    "Reply",
    "Sampling",
    "Stop",
    "Token",
    "complete",
    "draw",
    "generate",
    "process",
]
