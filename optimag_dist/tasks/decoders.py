"""From the hidden states of two nodes to the score of an edge between them; higher is likelier. All are symmetric."""

from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

DecoderName = Literal["dot", "mlp"]
# Numbers that the table of all pairs may hold at once.
_ENTRIES = 1 << 20
# Products with fewer columns end in other kernels for the last rows (seen on AMD EPYC, widths 1 and 5 to 11).
_WHOLE = 16


class DotDecoder(nn.Module):
    """h_u · h_v."""

    def forward(self, h_u: Tensor, h_v: Tensor) -> Tensor:
        """(…, d) and (…, d), broadcast → (…)."""
        return (h_u * h_v).sum(-1)

    def score_all(self, h_q: Tensor, h_c: Tensor) -> Tensor:
        """Of all pairs: (b, d), (c, d) → (b, c)."""
        return h_q @ h_c.mT


class MLPDecoder(nn.Module):
    """A network with one hidden layer of ``hidden`` = d units on h_u ∘ h_v, as the link predictors of OGB's examples
    (arXiv 2005.00687)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, h_u: Tensor, h_v: Tensor) -> Tensor:
        """(…, d) and (…, d), broadcast → (…)."""
        return self.layers(h_u * h_v).squeeze(-1)

    def score_all(self, h_q: Tensor, h_c: Tensor) -> Tensor:
        """Of all pairs: (b, d), (c, d) → (b, c). Without gradients, memory is a few (c, d) or 2²⁰ numbers."""
        at_once = max(1, _ENTRIES // max(1, h_c.numel()))
        return torch.cat([self._score_alike(some[:, None] * h_c) for some in h_q.split(at_once)])

    def _score_alike(self, pairs: Tensor) -> Tensor:
        """(…, d) → (…), rounded alike wherever a pair stands."""
        hidden, activation, out = (cast(nn.Linear, layer) for layer in self.layers)
        return _product(activation(_product(pairs, hidden)), out).squeeze(-1)


def _product(x: Tensor, layer: nn.Linear) -> Tensor:
    """``layer`` of ``x``, computed at a width at which every row is rounded alike."""
    width = layer.out_features
    return (x @ pad(layer.weight, (0, 0, 0, -width % _WHOLE)).mT)[..., :width] + layer.bias


Decoder = DotDecoder | MLPDecoder


def make_decoder(name: DecoderName, hidden: int) -> Decoder:
    """The decoder called ``name`` for states of ``hidden`` numbers."""
    return DotDecoder() if name == "dot" else MLPDecoder(hidden)
