"""What all tasks share: encoders per modality, fusion, backbone."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import Field, field_validator
from torch import Tensor, nn

from optimag_dist.imported import absolute, path_of
from optimag_dist.models.backbones import BACKBONES, make_backbone
from optimag_dist.models.encoder_networks import Kind
from optimag_dist.models.encoders import ConcatFusion, FrozenEncoder, ModalityEncoder
from optimag_dist.models.pretrained import PretrainedOptions, make_pretrained_encoder
from optimag_dist.options import Options
from optimag_dist.store.columns import Columns
from optimag_dist.types import GroupBatch


class ModelOptions(Options):
    """Sizes of the model.

    Attributes:
        backbone: ``sage``, ``gcn``, ``gat``, ``mmgcn`` and ``mgat`` (a network per modality), ``mixture`` (of experts
            over modalities), ``mlp`` (no messages, the graph unused), or a class of yours: ``package.module:Class`` or
            ``file.py:Class`` (docs/backbones.md).
        backbone_settings: what the backbone's constructor takes besides.
        encoder: ``mlp``, trained on the stored features; ``frozen`` leaves these as they are: nothing for the
            regulariser to move.
        encoders: modality → pretrained encoder of a raw attribute, instead of stored features (docs/encoders.md).
        hidden: units of the encoders' and the backbone's hidden layers.
        embedding: width of each modality's embedding Z_m, the one the regulariser sees.
        dropout: probability in encoders and backbone.
    """

    backbone: str = "sage"
    backbone_settings: dict[str, Any] = Field(default_factory=dict)
    encoder: Literal["mlp", "frozen"] = "mlp"
    encoders: dict[str, PretrainedOptions] = Field(default_factory=dict)
    hidden: int = Field(128, ge=1)
    embedding: int = Field(64, ge=1)
    dropout: float = Field(0.5, ge=0, lt=1)

    @field_validator("backbone")
    @classmethod
    def _known(cls, name: str) -> str:
        path_of(name, BACKBONES, "backbone")
        return absolute(name)


class MultimodalModel(nn.Module):
    """Features of several modalities → an embedding of each, and a hidden state of every destination node.

    Args:
        widths: modality → width of its stored features; not read of what has an encoder in ``options.encoders``.
        kinds: modality → what that encoder reads.
        columns: modality → mean and spread of its stored features, by which the model scales them from then on; they
            are part of its state, so None where that is loaded.
        num_layers: message-passing layers, equal to the number of sampled blocks.

    Attributes:
        names: of the modalities, in the order of the store.
        embedding, hidden: width of a modality's embedding and of a node's hidden state.
    """

    def __init__(
        self,
        widths: Mapping[str, int],
        num_layers: int,
        options: ModelOptions,
        kinds: Mapping[str, Kind] | None = None,
        columns: Mapping[str, Columns] | None = None,
    ) -> None:
        super().__init__()
        self.names = list(widths)
        self.embedding, self.hidden = options.embedding, options.hidden
        self.encoders = nn.ModuleList()
        for name, width in widths.items():
            of_name = (columns or {}).get(name)
            if kinds and name in kinds:
                encoder: nn.Module = make_pretrained_encoder(options.encoders[name], kinds[name], options.embedding)
            elif options.encoder == "frozen":
                encoder = FrozenEncoder(width, options.embedding, of_name)
            else:
                encoder = ModalityEncoder(width, options.hidden, options.embedding, options.dropout, of_name)
            self.encoders.append(encoder)
        self.fusion = ConcatFusion(self.names, options.embedding)
        sizes = len(widths), options.embedding, options.hidden, num_layers, options.dropout
        self.backbone = make_backbone(options.backbone, *sizes, **options.backbone_settings)

    @property
    def passes_messages(self) -> bool:
        return self.backbone.passes_messages

    def encode(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Modality → (U, width) features to modality → (U, embedding)."""
        return {m: encoder(features[m]) for m, encoder in zip(self.names, self.encoders, strict=True)}

    def represent(
        self, embeddings: Mapping[str, Tensor], batch: GroupBatch, present: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Embeddings of the batch's U nodes, modality → (U, embedding), → (A, hidden) state of each target;
        ``present``, modality → (U,) bool, is what is shown: by default all that the batch has."""
        fused = self.fusion(embeddings, batch.present if present is None else present)
        if not self.passes_messages:
            fused = fused[: batch.num_targets]
        return self.backbone(fused, batch.blocks, batch.degrees)


def withhold(batch: GroupBatch, modalities: Iterable[str]) -> dict[str, Tensor]:
    """``batch.present`` with ``modalities`` of the targets gone: as the targets are the first nodes of a batch and each
    node comes once, no path of messages brings back what is withheld."""
    present = dict(batch.present)
    for name in modalities:
        present[name] = present[name].clone()
        present[name][: batch.num_targets] = False
    return present
