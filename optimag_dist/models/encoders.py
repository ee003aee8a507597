"""From stored features to one embedding per modality, and from those to one input of the backbone."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from optimag_dist.store.columns import Columns

# Vectors of more columns come from a text or picture network as a rule, whose rows say all that their columns do.
_NARROW = 64
# So many columns weigh in full beside their row.
_FULL = 32
# A row that so few columns rule is read by column too, however wide it is.
_RULED = 16


class Scaled(nn.Module):
    """Stored features as a network can read them, whatever their units: (U, width) → (U, out_features).

    A row is normalised over itself (LayerNorm), which suits the vectors of a text or picture network. That is blind to
    what columns of different units say: of one column nothing is left, of two a sign. So beside it stand the columns,
    each less its mean over the nodes and divided by its spread, where they may be quantities: up to 64 of them, or more
    if a few rule the row (docs/log.md). One of more than 32 columns weighs 32/width. One without spread is 0.
    ``columns`` are those of the store that the model is fitted to, None where a state dict brings them; ``affine`` says
    whether the normalised row has trained weights.
    """

    def __init__(self, width: int, columns: Columns | None, *, affine: bool) -> None:
        super().__init__()
        self.row = nn.LayerNorm(width, elementwise_affine=affine)
        moments = np.ones(width) if columns is None else columns.spread**2 + columns.mean**2
        # Parameters that are not trained: DDP would send buffers around in every step.
        self.size = _fixed(np.sqrt(np.mean(moments)))
        self.size.masked_fill_(self.size == 0, 1.0)  # after the rounding to float32
        self.mean: nn.Parameter | None = None
        self.spread: nn.Parameter | None = None
        shares = moments / max(np.sum(moments), np.finfo(np.float64).tiny)
        if columns is not None and (width <= _NARROW or np.sum(shares**2) * _RULED > 1):
            self.read_columns(columns.mean, columns.spread)

    @property
    def out_features(self) -> int:
        return self.row.normalized_shape[0] * (1 if self.mean is None else 2)

    def read_columns(self, mean: Any, spread: Any) -> None:
        """Put the columns, of (width,) ``mean`` and ``spread``, beside the row."""
        self.mean, self.spread = _fixed(mean), _fixed(spread)
        self.spread.masked_fill_(self.spread == 0, torch.inf)

    def forward(self, x: Tensor) -> Tensor:
        row = self.row(x / self.size)
        if self.mean is None or self.spread is None:
            return row
        return torch.cat([row, (x - self.mean) / (self.spread * max(1.0, x.shape[1] / _FULL))], 1)


def _fixed(values: Any) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=torch.float32), requires_grad=False)


class StoredEncoder(nn.Sequential):
    """Layers over :class:`Scaled` features, the first of them linear. A state dict decides whether columns are read.
    One of an earlier version, in which the first layer was a LayerNorm, loads as one that computes the same."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.register_load_state_dict_pre_hook(_take_shape)


def _take_shape(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    scaled, linear = module.get_submodule("0"), module.get_submodule("1")
    assert isinstance(scaled, Scaled)
    assert isinstance(linear, nn.Linear)
    if f"{prefix}0.size" not in state and f"{prefix}1.weight" in state:
        for name in ("weight", "bias"):
            if f"{prefix}0.{name}" in state:
                state[f"{prefix}0.row.{name}"] = state.pop(f"{prefix}0.{name}")
        state[f"{prefix}0.size"] = torch.ones(())
    if f"{prefix}0.mean" in state and scaled.mean is None:
        nothing = np.zeros(scaled.row.normalized_shape)
        scaled.read_columns(nothing, nothing)
        wider = nn.Linear(scaled.out_features, linear.out_features, bias=linear.bias is not None)
        module.add_module("1", wider.requires_grad_(linear.weight.requires_grad).to(linear.weight))


class ModalityEncoder(StoredEncoder):
    """Two-layer perceptron over the stored features of one modality: (U, width) → (U, embedding)."""

    def __init__(self, width: int, hidden: int, embedding: int, dropout: float, columns: Columns | None = None) -> None:
        scaled = Scaled(width, columns, affine=True)
        super().__init__(
            scaled,
            nn.Linear(scaled.out_features, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, embedding),
        )


class FrozenEncoder(StoredEncoder):
    """Stored features as they are, brought to one width by a random projection that is not trained (Johnson and
    Lindenstrauss 1984): (U, width) → (U, embedding)."""

    def __init__(self, width: int, embedding: int, columns: Columns | None = None) -> None:
        scaled = Scaled(width, columns, affine=False)
        projection = nn.Linear(scaled.out_features, embedding, bias=False)
        nn.init.normal_(projection.weight, std=width**-0.5)
        super().__init__(scaled, projection.requires_grad_(False))


class ConcatFusion(nn.Module):
    """Modalities side by side; a node that lacks one shows a learned vector in its place. (U, d) per modality → (U,
    M·d)."""

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
