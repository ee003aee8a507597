"""From stored features to one embedding per modality, and from those to one input of the backbone."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from optimag_dist.store.columns import Columns

# So many columns weigh in full beside their row.
_FULL = 32


class Scaled(nn.Module):
    """Stored features as a network can read them, whatever their units: (U, width) → (U, 2 · width).

    The first half is the row normalised over itself (LayerNorm), which suits the vectors of a text or picture network.
    It is blind to what columns of different units say: of one column nothing is left, of two a sign. The second half
    is each column less its mean over the nodes, divided by its spread; a column of more than 32 weighs 32/width, as
    those of an embedding are no quantities of equal worth (docs/log.md). A column without spread is 0.

    Args:
        columns: of the store that the model is fitted to; None where a state dict brings them.
        affine: whether the first half has trained weights.
    """

    def __init__(self, width: int, columns: Columns | None, *, affine: bool) -> None:
        super().__init__()
        if columns is None:
            columns = Columns(np.zeros(width), np.zeros(width))
        size = np.sqrt(np.mean(columns.spread**2 + columns.mean**2))
        self.row = nn.LayerNorm(width, elementwise_affine=affine)
        # Parameters that are not trained: DDP would send buffers around in every step.
        self.mean = _fixed(columns.mean)
        self.spread = _fixed(columns.spread)
        self.size = _fixed(size)
        # After the rounding to float32.
        for divisor, nothing in ((self.spread, torch.inf), (self.size, 1.0)):
            divisor.masked_fill_(divisor == 0, nothing)

    def forward(self, x: Tensor) -> Tensor:
        columns = (x - self.mean) / (self.spread * max(1.0, x.shape[1] / _FULL))
        return torch.cat([self.row(x / self.size), columns], 1)


def _fixed(values: Any) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=torch.float32), requires_grad=False)


class StoredEncoder(nn.Sequential):
    """Layers over :class:`Scaled` features, the first of them linear.

    A state of an earlier version, in which the first layer was a LayerNorm, loads as one that computes the same.
    """

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.register_load_state_dict_pre_hook(_upgrade)


def _upgrade(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    weight = f"{prefix}1.weight"
    if f"{prefix}0.mean" in state or weight not in state:
        return
    old = state[weight]
    for name in ("weight", "bias"):
        if f"{prefix}0.{name}" in state:
            state[f"{prefix}0.row.{name}"] = state.pop(f"{prefix}0.{name}")
    state[weight] = torch.cat([old, torch.zeros_like(old)], 1)
    state[f"{prefix}0.mean"] = old.new_zeros(old.shape[1])
    state[f"{prefix}0.spread"] = old.new_full((old.shape[1],), torch.inf)
    state[f"{prefix}0.size"] = old.new_ones(())


class ModalityEncoder(StoredEncoder):
    """Two-layer perceptron over the stored features of one modality: (U, width) → (U, embedding)."""

    def __init__(self, width: int, hidden: int, embedding: int, dropout: float, columns: Columns | None = None) -> None:
        super().__init__(
            Scaled(width, columns, affine=True),
            nn.Linear(2 * width, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, embedding),
        )


class FrozenEncoder(StoredEncoder):
    """Stored features as they are, brought to one width by a random projection that is not trained (Johnson and
    Lindenstrauss 1984): (U, width) → (U, embedding)."""

    def __init__(self, width: int, embedding: int, columns: Columns | None = None) -> None:
        projection = nn.Linear(2 * width, embedding, bias=False)
        nn.init.normal_(projection.weight, std=width**-0.5)
        super().__init__(Scaled(width, columns, affine=False), projection.requires_grad_(False))


class ConcatFusion(nn.Module):
    """Modalities side by side; a node that lacks one shows a learned vector in its place.

    (U, d) per modality → (U, M·d).
    """

    def __init__(self, names: list[str], embedding: int) -> None:
        super().__init__()
        self._names = names
        # A list: the keys of torch's dictionaries of parameters and modules must not be names of their methods.
        self.absent = nn.ParameterList(torch.zeros(embedding) for _ in names)

    def forward(self, embeddings: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        filled = [
            torch.where(present[m][:, None], embeddings[m], absent.to(embeddings[m].dtype))
            for m, absent in zip(self._names, self.absent, strict=True)
        ]
        return torch.cat(filled, dim=1)
