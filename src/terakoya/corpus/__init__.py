"""Text in, documents out."""

from terakoya.corpus.document import Document, Skipped
from terakoya.corpus.read import read
from terakoya.corpus.split import cut, held_out, split
from terakoya.corpus.stdlib import python_stdlib

__all__ = ["Document", "Skipped", "cut", "held_out", "python_stdlib", "read", "split"]
