"""Models that read and do not write: texts to vectors, pooled and made of length one as the model's folder says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from terakoya.engine.request import EngineError
from terakoya.errors import TerakoyaError
from terakoya.model.context import Packed
from terakoya.train.objectives.contrast import Pool, pooled
from terakoya.tune.heads.reading import Reader
from terakoya.zoo.convert import Loaded


@dataclass(frozen=True)
class Encoder:
    """An encoder that is open, and how it makes a vector of a text."""

    loaded: Loaded
    pool: Pool = "mean"
    normalise: bool = False

    @property
    def reader(self) -> Reader:
        """What sets texts between their marks."""
        if self.loaded.tokenizer is None:
            raise TerakoyaError("model", "has no tokenizer beside it", allowed="a folder with tokenizer.json")
        return Reader(self.loaded.tokenizer, self.loaded.spec.context)

    @property
    def room(self) -> int:
        """Tokens of a text, without the marks that stand round it."""
        reader = self.reader
        return reader.context - len(reader.read([np.zeros(0, np.int64)], "text").ids)

    def ids(self, texts: Sequence[str | Sequence[int]], *, cut: bool = False) -> list[list[int]]:
        """Encode texts, and set each between its marks; `cut`: long ones lose their end."""
        reader, room, found = self.reader, self.room, []
        for i, text in enumerate(texts):
            ids = reader.encode([text])[0] if isinstance(text, str) else np.array(text, np.int64)
            ids = ids[:room] if cut else ids
            if len(ids) > room:
                raise EngineError("too long", f"input[{i}]", f"has {len(ids)} tokens; there is room for {room}")
            if len(ids) and not 0 <= ids.min() <= ids.max() < self.loaded.spec.vocab:
                raise TerakoyaError(f"input[{i}]", "has an id that is none of this model's")
            found.append(reader.read([ids], f"input[{i}]").ids.tolist())
        return found

    def describe(self) -> str:
        """Return in words where, in what and by whom it is computed."""
        first = next(self.loaded.model.parameters())
        kind = str(first.dtype).removeprefix("torch.")
        threads = torch.get_num_threads()
        return f"device {first.device} · weights {kind} · context {self.room:,} · threads {threads} · model by PyTorch"

    @torch.inference_mode()
    def embed(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Read texts in ids, together -> (N, D)."""
        model = self.loaded.model
        device = next(model.parameters()).device
        ctx = Packed([len(ids) for ids in texts], device)
        hidden = model(torch.tensor([id for ids in texts for id in ids], device=device), ctx)
        found = pooled(hidden, torch.tensor(ctx.cu, device=device), self.pool).float()
        return F.normalize(found, dim=-1) if self.normalise else found
