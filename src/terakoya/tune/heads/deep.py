"""Two layers in the place of one: the block that ULMFiT puts on a model (Howard and Ruder 2018, section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from terakoya.model.build import generator
from terakoya.model.noise import Noise


class Deep(nn.Module):
    """Scores through a layer between: each layer after batch normalisation and dropout, a ReLU between them.

    It is training where the noise is on: then the batch itself gives mean and variance, else what was seen of batches.
    """

    def __init__(self, sizes: tuple[int, int, int], drop: float, noise: Noise) -> None:
        """`sizes`: of a vector, of the layer between, of the scores."""
        super().__init__()
        self.drop, self.noise = drop, noise
        wide, hidden, scores = sizes
        self.norms = nn.ModuleList([Norm(wide), Norm(hidden)])
        self.layers = nn.ModuleList([nn.Linear(wide, hidden), nn.Linear(hidden, scores)])

    @torch.no_grad()
    def start(self, seed: int) -> None:
        """Set the products from the seed alone."""
        for name, p in self.layers.named_parameters():
            values = torch.randn(p.shape, generator=generator(seed, f"head.{name}"))
            p.copy_(values * p.shape[-1] ** -0.5 if p.dim() > 1 else torch.zeros_like(p))

    def forward(self, x: Tensor) -> Tensor:
        """Score: x (N, D) -> (N, C)."""
        for i, (norm, layer) in enumerate(zip(self.norms, self.layers, strict=True)):
            x = layer(self.noise.drop(norm.train(self.noise.on)(x), self.drop))
            x = x.relu() if i == 0 else x
        return x


class Norm(nn.BatchNorm1d):
    """Batch normalisation whose running mean and variance are of batches alone from the first one on.

    PyTorch's begin at 0 and 1, of which after fifty steps more may be left than the states of an LSTM vary.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise: (N, D) -> (N, D)."""
        assert self.num_batches_tracked is not None
        self.momentum = max(0.1, 1 / (1 + int(self.num_batches_tracked)))
        return super().forward(input)
