"""The model that is trained: encoders per modality, fusion, backbone, head."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from optimag_dist.models.backbones import make_backbone
from optimag_dist.models.encoders import ConcatFusion, FrozenEncoder, ModalityEncoder
from optimag_dist.options import Options
from optimag_dist.types import GroupBatch


class ModelOptions(Options):
    """Sizes of the model.

    Attributes:
        backbone: ``sage``, ``gcn``, ``gat``, ``mmgcn`` and ``mgat`` (a network per modality), or ``mlp`` (no messages,
            the graph unused).
        encoder: ``mlp``, trained on the stored features; ``frozen`` leaves these as they are: nothing for the
            regulariser to move.
        hidden: units of the encoders' and the backbone's hidden layers.
        embedding: width of each modality's embedding Z_m, the one the regulariser sees.
        dropout: probability in encoders and backbone.
    """

    backbone: Literal["sage", "gcn", "gat", "mmgcn", "mgat", "mlp"] = "sage"
    encoder: Literal["mlp", "frozen"] = "mlp"
    hidden: int = Field(128, ge=1)
    embedding: int = Field(64, ge=1)
    dropout: float = Field(0.5, ge=0, lt=1)


class MultimodalModel(nn.Module):
    """Features of several modalities → one output row per destination node, and the embeddings on the way.

    Args:
        widths: modality → width of its stored features.
        num_outputs: width of the output (classes).
        num_layers: message-passing layers, equal to the number of sampled blocks.
    """

    def __init__(self, widths: Mapping[str, int], num_outputs: int, num_layers: int, options: ModelOptions) -> None:
        super().__init__()
        self._names = list(widths)
        self.encoders = nn.ModuleList(
            FrozenEncoder(width, options.embedding)
            if options.encoder == "frozen"
            else ModalityEncoder(width, options.hidden, options.embedding, options.dropout)
            for width in widths.values()
        )
        self.fusion = ConcatFusion(self._names, options.embedding)
        self.backbone = make_backbone(
            options.backbone, len(widths), options.embedding, options.hidden, num_layers, options.dropout
        )
        self.head = nn.Linear(options.hidden, num_outputs)

    @property
    def passes_messages(self) -> bool:
        return self.backbone.passes_messages

    def encode(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Modality → (U, width) features to modality → (U, embedding)."""
        return {m: encoder(features[m]) for m, encoder in zip(self._names, self.encoders, strict=True)}

    def represent(self, embeddings: Mapping[str, Tensor], batch: GroupBatch) -> Tensor:
        """Embeddings of the batch's U nodes → (A, hidden), what the head sees of each anchor."""
        fused = self.fusion(embeddings, batch.present)
        if not self.passes_messages:
            fused = fused[: batch.num_anchors]
        return self.backbone(fused, batch.blocks, batch.degrees)

    def predict(self, embeddings: Mapping[str, Tensor], batch: GroupBatch) -> Tensor:
        """Embeddings of the batch's U nodes → (A, outputs), one row per anchor."""
        return self.head(self.represent(embeddings, batch))
