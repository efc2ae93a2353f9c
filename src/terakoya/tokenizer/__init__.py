"""Text to ids and back: train, load, encode, decode as it streams, and write conversations down."""

from __future__ import annotations

from terakoya.tokenizer.chat import Conversation, Message, Rendered, conversation, render, written
from terakoya.tokenizer.core import Tokenizer
from terakoya.tokenizer.files import load, save
from terakoya.tokenizer.gguf import from_gguf
from terakoya.tokenizer.measure import SAMPLES, Report, report
from terakoya.tokenizer.stream import Stream
from terakoya.tokenizer.templates import TEMPLATES, Template, Turn
from terakoya.tokenizer.trainer import KINDS, train

__all__ = [
    "KINDS",
    "SAMPLES",
    "TEMPLATES",
    "Conversation",
    "Message",
    "Rendered",
    "Report",
    "Stream",
    "Template",
    "Tokenizer",
    "Turn",
    "conversation",
    "from_gguf",
    "load",
    "render",
    "report",
    "save",
    "train",
    "written",
]
