"""What a generator is told of a node: tokens made of its neighbourhood and of those of its modalities that it shows."""

from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from optimag_dist.models import MultimodalModel, withhold
from optimag_dist.options import Options
from optimag_dist.types import GroupBatch


class TokenOptions(Options):
    """Attributes:
    state: tokens made of a node's state, which the backbone computes over the neighbourhood.
    neighbours: at most so many sampled neighbours get a token each.
    """

    state: int = Field(4, ge=1)
    neighbours: int = Field(8, ge=0)


class GraphTokens(nn.Module):
    """Tokens of the anchors: ``state`` of the backbone's, one of each modality that is not withheld, and one of each of
    a few neighbours in the last block. Each is a linear map with a bias per kind, brought to one length.

    Args:
        model: whose embeddings and states are mapped.
        withheld: modalities that an anchor does not show, to itself or to others.
        width: of a token.
        scale: root mean square of a token's numbers.
    """

    def __init__(
        self, model: MultimodalModel, withheld: Sequence[str], options: TokenOptions, *, width: int, scale: float
    ) -> None:
        super().__init__()
        self._withheld, self._options, self._width, self._scale = tuple(withheld), options, width, scale
        self._shown = [m for m in model.names if m not in withheld]
        self.state = nn.Linear(model.hidden, options.state * width)
        self.modalities = nn.ModuleList(nn.Linear(model.embedding, width) for _ in self._shown)
        tells_neighbours = options.neighbours > 0 and model.passes_messages
        self.neighbour = nn.Linear(len(model.names) * model.embedding, width) if tells_neighbours else None

    def forward(
        self, model: MultimodalModel, embeddings: Mapping[str, Tensor], batch: GroupBatch
    ) -> tuple[Tensor, Tensor]:
        """(A, T, width) tokens, and (A, T) bool: which of them are there."""
        count, present = batch.num_anchors, withhold(batch, self._withheld)
        state = self.state(model.represent(embeddings, batch, present)).view(count, -1, self._width)
        tokens, there = [state], [state.new_ones(state.shape[:2], dtype=torch.bool)]
        for layer, m in zip(self.modalities, self._shown, strict=True):
            tokens.append(layer(embeddings[m][:count])[:, None])
            there.append(present[m][:count, None])
        if self.neighbour is not None:
            rows, mask = _first_neighbours(batch, self._options.neighbours)
            fused = model.fusion(embeddings, present)
            tokens.append(self.neighbour(fused)[rows])
            there.append(mask)
        return layer_norm(torch.cat(tokens, 1), (self._width,)) * self._scale, torch.cat(there, 1)


def _first_neighbours(batch: GroupBatch, count: int) -> tuple[Tensor, Tensor]:
    """(A, count) rows of each anchor's first sampled neighbours, 0 where it has no more, and which are neighbours."""
    block = batch.blocks[-1]
    places = block.indptr[:-1, None] + torch.arange(count, device=block.indptr.device)
    there = places < block.indptr[1:, None]
    rows = torch.zeros_like(places)
    rows[there] = block.indices[places[there]]
    return rows, there
