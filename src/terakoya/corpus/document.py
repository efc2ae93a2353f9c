"""A document: text and where it came from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Document:
    """One text with its provenance.

    `source` names the place ("path" or "path#line"). Documents with the same non-empty `group` hold parts of the same
    text and must stay on the same side of a split.
    """

    text: str
    source: str
    licence: str = ""
    language: str = ""
    group: str = ""


@dataclass(frozen=True)
class Skipped:
    """Something a reader passed over, and why."""

    source: str
    reason: str
