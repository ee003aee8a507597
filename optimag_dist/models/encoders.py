"""From stored features to one embedding per modality, and from those to one input of the backbone."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class ModalityEncoder(nn.Sequential):
    """Two-layer perceptron over the stored features of one modality: (U, width) → (U, embedding)."""

    def __init__(self, width: int, hidden: int, embedding: int, dropout: float) -> None:
        super().__init__(
            nn.LayerNorm(width),
            nn.Linear(width, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, embedding),
        )


class FrozenEncoder(nn.Sequential):
    """Stored features as they are, brought to one width by a random projection that is not trained (Johnson and
    Lindenstrauss 1984): (U, width) → (U, embedding)."""

    def __init__(self, width: int, embedding: int) -> None:
        projection = nn.Linear(width, embedding, bias=False)
        nn.init.normal_(projection.weight, std=width**-0.5)
        super().__init__(nn.LayerNorm(width, elementwise_affine=False), projection.requires_grad_(False))


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
