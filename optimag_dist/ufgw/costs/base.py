"""What the solver asks of a cost."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

#: Up to this N the square of a cost is written out: one read of N² (measured: docs/ufgw.md).
WRITE_SQUARE_OUT_UP_TO = 512


class Cost(ABC):
    """A symmetric (N, N) cost for each of b problems; b is 1 for a cost that all problems of a batch share."""

    @property
    @abstractmethod
    def numbers(self) -> Tensor:
        """What it is stored as, (b, N, …), or the largest part of that."""

    @property
    def batch_size(self) -> int:
        return len(self.numbers)

    @property
    def nodes(self) -> int:
        return self.numbers.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.numbers.dtype

    @property
    def device(self) -> torch.device:
        return self.numbers.device

    @abstractmethod
    def dense(self) -> Tensor:
        """(b, N, N) the matrix itself."""

    @abstractmethod
    def to(self, dtype: torch.dtype) -> "Cost": ...

    @abstractmethod
    def select(self, entries: Tensor) -> "Cost":
        """The problems of the batch that ``entries`` (int64) names; a shared cost stays shared."""

    @abstractmethod
    def shifted(self, shift: Tensor) -> "Cost":
        """This cost less a 0-dim ``shift`` everywhere."""

    @abstractmethod
    def mean(self, weights: Tensor) -> Tensor:
        """(b, N) → wᵀCw / (Σw)² (b,)."""

    @abstractmethod
    def right_matmul(self, x: Tensor) -> Tensor:
        """(b, k, N) → x C (b, k, N)."""

    @abstractmethod
    def squared_times(self, v: Tensor) -> Tensor:
        """(b, N) → (C∘C) v (b, N)."""


def rows_times(v: Tensor, matrix: Tensor) -> Tensor:
    """(b, K) times (1 or b, K, N). Symmetric matrices too are multiplied from the left: torch's batched product is
    several times slower on (N, 1) columns than on (1, N) rows."""
    if len(matrix) == 1:
        return v @ matrix[0]
    return (v[:, None, :] @ matrix)[:, 0]
