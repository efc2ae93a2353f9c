"""The nodes of history: families (structure), tunings (same network, other data), closed and planned. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from terakoya.model import spec
from terakoya.zoo.codec import Key
from terakoya.zoo.names import Rule


@dataclass(frozen=True)
class Note:
    """One sentence in both languages."""

    en: str
    ja: str

    def __str__(self) -> str:
        return self.en

    def text(self, lang: str) -> str:
        """Return the sentence in "en" or "ja"."""
        return self.ja if lang == "ja" else self.en


@dataclass(frozen=True)
class Size:
    """One released size: what differs from the family's spec, and a parameter count as a checksum.

    It is the published one where a paper or card gives it to the last digit, else that of the published shape.
    """

    parameters: int
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """A part that some files of a family have and some have not: told by the end of a tensor's name."""

    tensor: str
    there: Mapping[str, Any] = field(default_factory=dict)  # what the spec has where it is there
    absent: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Family:
    """A structure: its parent's spec plus `changes`. `parent` is where the diff starts, `takes` names influences."""

    name: str
    born: str  # YYYY-MM
    note: Note
    parent: str | None = None
    root: spec.Model | None = None  # the spec itself, where there is no parent to differ from
    changes: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, Size] = field(default_factory=dict)
    takes: tuple[str, ...] = ()
    title: str = ""  # as its authors write it, where that is not the name
    paper: str = ""
    licence: str = ""
    proof: str = ""  # what the parity test compares with; empty: transformers, if it has the model_type
    model_type: str | None = None  # of Hugging Face's config.json
    architecture: str = ""  # its class there
    when: Mapping[str, Any] = field(default_factory=dict)  # what config.json says where families share a model_type
    fresh: bool = False  # keys and names start anew: its files look nothing like its parent's
    inside: str = ""  # the table of config.json where its ancestors' keys lie; its own lie outside (LLaVA)
    keys: Mapping[str, Key | None] = field(default_factory=dict)  # config.json -> spec, over the parent's
    defaults: Mapping[str, Any] = field(default_factory=dict)  # what config.json leaves out
    names: tuple[Rule, ...] = ()  # where its checkpoints keep each weight, before the parent's rules
    gguf: tuple[Rule, ...] = ()  # the same in GGUF, before the parent's
    parts: tuple[Part, ...] = ()  # read in order, over what config.json says
    architectures: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # other classes, and what they have
    copies: Mapping[str, str] = field(default_factory=dict)  # tensors that files may hold twice: name -> original


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """The same network as `parent`, taught other data or another objective."""

    name: str
    born: str
    parent: str
    note: Note
    title: str = ""
    takes: tuple[str, ...] = ()
    data: Note | None = None
    method: Note | None = None
    recipe: str = ""  # the recipe here that does the same
    paper: str = ""
    licence: str = ""


@dataclass(frozen=True, kw_only=True)
class Closed:
    """History without public structure: closed models, bots, tools."""

    name: str
    born: str  # YYYY or YYYY-MM, as far as it is known
    note: Note
    title: str = ""
    sort: str = "closed"  # closed | bot | tool
    parent: str | None = None
    takes: tuple[str, ...] = ()
    paper: str = ""


@dataclass(frozen=True, kw_only=True)
class Built:
    """A structure that runs here but is no stack of blocks: tables of counts and of words, pairs, two directions."""

    name: str
    born: str  # YYYY or YYYY-MM
    note: Note
    train: str  # the command, or what to call
    proof: Note  # what its tests compare it with
    title: str = ""
    parent: str | None = None
    takes: tuple[str, ...] = ()
    paper: str = ""
    licence: str = ""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A known structure that is not built here yet; a Family of the same name takes its place."""

    name: str
    born: str
    note: Note
    title: str = ""
    parent: str | None = None
    takes: tuple[str, ...] = ()
    paper: str = ""
    licence: str = ""


Node = Family | Built | Tuning | Closed | Planned
