"""What a generator is told of a node: tokens made of its neighbourhood and of those of its modalities that it shows."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from optimag_dist.layerwise import LayerwiseForward, Mask
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
    """Tokens of the targets: ``state`` of the backbone's, one of each modality that is not ``withheld``, and one of
    each of a few neighbours in the last block. Each is a linear map with a bias per kind, brought to one length:
    ``width`` numbers whose root mean square is ``scale``."""

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
        """(A, T, width) tokens of a batch's targets, and (A, T) bool: which of them are there."""
        count, present = batch.num_targets, withhold(batch, self._withheld)
        states = model.represent(embeddings, batch, present)
        own, shown = ({m: x[:count] for m, x in of.items()} for of in (embeddings, present))
        tokens, there = self._of_own(states, own, shown)
        if self.neighbour is not None:
            rows, mask = self._first(batch.blocks[-1].indptr, batch.blocks[-1].indices)
            tokens.append(self.neighbour(model.fusion(embeddings, present))[rows])
            there.append(mask)
        return self._joined(tokens), torch.cat(there, 1)

    def of_nodes(
        self, nodes: np.ndarray, states: Tensor, forward: LayerwiseForward, mask: Mask
    ) -> tuple[Tensor, Tensor]:
        """The same of ``nodes`` (k,) outside of a batch, from their (k, hidden) ``states``; ``mask`` is what is not
        seen of the graph, and ``nodes`` show nothing that is withheld."""
        states = states.to(forward.device)
        tokens, there = self._of_own(states, forward.encode(nodes), forward.present(nodes, mask))
        if self.neighbour is not None:
            rows, known = self._first(*map(torch.from_numpy, forward.neighbours(nodes)))
            distinct, places = rows.unique(return_inverse=True)
            tokens.append(self.neighbour(forward.fuse(distinct.numpy(), mask))[places.to(forward.device)])
            there.append(known.to(forward.device))
        return self._joined(tokens), torch.cat(there, 1)

    def _of_own(
        self, states: Tensor, embeddings: Mapping[str, Tensor], present: Mapping[str, Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The tokens of the states and of the nodes' own modalities, and which are there."""
        state = self.state(states).view(len(states), -1, self._width)
        tokens, there = [state], [state.new_ones(state.shape[:2], dtype=torch.bool)]
        for layer, m in zip(self.modalities, self._shown, strict=True):
            tokens.append(layer(embeddings[m])[:, None])
            there.append(present[m][:, None])
        return tokens, there

    def _joined(self, tokens: Sequence[Tensor]) -> Tensor:
        return layer_norm(torch.cat(list(tokens), 1), (self._width,)) * self._scale

    def _first(self, indptr: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        """(A, c) the first of each row's ``indices``, 0 where it has no more, and which are there."""
        places = indptr[:-1, None] + torch.arange(self._options.neighbours, device=indptr.device)
        there = places < indptr[1:, None]
        rows = torch.zeros_like(places)
        rows[there] = indices[places[there]].long()
        return rows, there
