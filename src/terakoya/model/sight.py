"""Pictures as words: an image encoder whose vectors stand in the text (LLaVA, Liu 2023, arXiv:2304.08485)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terakoya.errors import TerakoyaError
from terakoya.model import spec
from terakoya.model.context import Packed
from terakoya.model.ffn import ACTS
from terakoya.model.flamingo import Resampler
from terakoya.model.norm import Norm

MEAN, SPREAD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's, per channel


def trunk(s: spec.Sight) -> tuple[spec.Model, spec.Block]:
    """Return the encoder of patches as a spec, and its block: norms before, biases everywhere, nothing hidden."""
    norm = spec.LayerNorm(s.eps)
    attention = spec.Attention(s.heads, bias=True, out_bias=True, causal=False)
    block = spec.pre(norm, attention, spec.MLP(s.hidden, s.act, bias=True))
    return spec.Model(vocab=1, dim=s.dim, depth=s.depth, context=s.places + 1, blocks=(block,)), block


class Join(nn.Module):
    """From the image's width to the words': one linear layer, or two."""

    def __init__(self, s: spec.Sight, dim: int) -> None:
        super().__init__()
        self.act = s.join
        self.up = nn.Linear(s.dim, dim)
        self.down = nn.Linear(dim, dim) if s.join else None

    def forward(self, x: Tensor) -> Tensor:
        """Translate vectors: x (..., D_image) -> (..., D)."""
        x = self.up(x)
        return x if self.down is None or self.act is None else self.down(ACTS[self.act](x))


class Sight(nn.Module):
    """A vision transformer and its join. The last layers that `cut` leaves out, and the norm after, are only kept."""

    def __init__(self, s: spec.Sight, dim: int, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.spec = s
        self.patch = nn.Conv2d(3, s.dim, s.patch, s.patch, bias=False)
        self.first = nn.Parameter(torch.empty(s.dim))
        self.position = nn.Embedding((s.image // s.patch) ** 2 + 1, s.dim)
        self.before = Norm(spec.LayerNorm(s.eps), s.dim)
        self.layers = nn.ModuleList(layers)
        self.after = Norm(spec.LayerNorm(s.eps), s.dim)
        self.join = Resampler(s.resampler, s.dim) if s.resampler else Join(s, dim)

    def forward(self, pixels: Tensor) -> Tensor:
        """Look at N images: pixels (N, 3, height, width), prepared -> (N, places, D), or (N, latents, D_image)."""
        x = self.look(pixels)
        return self.join(x if self.spec.whole else x[:, 1:])

    def look(self, pixels: Tensor) -> Tensor:
        """Read images, the vector of the whole first: pixels (N, 3, height, width) -> (N, 1 + patches, D_image)."""
        s, N = self.spec, pixels.shape[0]
        if pixels.shape[1:] != (3, s.image, s.image):
            raise TerakoyaError("image", given=tuple(pixels.shape[1:]), allowed=f"(3, {s.image}, {s.image})")
        patches = self.patch(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(N, 1, -1), patches], 1) + self.position.weight
        x = self.before(x).flatten(0, 1)
        ctx = Packed([self.position.num_embeddings] * N, x.device)
        for layer in self.layers[: s.depth - s.cut + 1]:
            x = layer(x, ctx)
        return x.unflatten(0, (N, -1))


def prepared(image: Tensor, s: spec.Sight) -> Tensor:
    """Make a picture what CLIP was trained on: image (height, width, 3) of 0 to 255 -> (3, size, size).

    The shorter side gets the wanted length (bicubic), the middle is cut out, channels are centred and scaled.
    """
    x = image.permute(2, 0, 1)[None].float()
    high, wide = x.shape[2:]
    scale = s.image / min(high, wide)
    size = (max(s.image, round(high * scale)), max(s.image, round(wide * scale)))
    x = F.interpolate(x, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 255).round() / 255
    top, left = (size[0] - s.image) // 2, (size[1] - s.image) // 2
    x = x[0, :, top : top + s.image, left : left + s.image]
    return (x - x.new_tensor(MEAN)[:, None, None]) / x.new_tensor(SPREAD)[:, None, None]


def widened(ids: Sequence[int], s: spec.Sight) -> list[int]:
    """Give every picture's mark in a prompt as many places as the picture becomes vectors."""
    return [id for mark in ids for id in ([mark] * s.places if mark == s.token else [mark])]


def placed(tokens: Tensor, vectors: Tensor, s: spec.Sight) -> tuple[Tensor, Tensor]:
    """Say where pictures stand in a step: tokens (T,), vectors (N, places, D) -> places (M,), vectors (M, D).

    A context takes it as `vectors=`; any other source of vectors (PaLM-E's sensors, Gato's patches) enters alike.
    """
    at = (tokens == s.token).nonzero()[:, 0]
    if len(at) != vectors.shape[0] * vectors.shape[1]:
        raise TerakoyaError(
            "prompt", "places for pictures", given=len(at), allowed=f"{vectors.shape[1]} for each of {len(vectors)}"
        )
    return at, vectors.flatten(0, 1)
