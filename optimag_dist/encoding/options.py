"""What to encode of every node, and how."""

from typing import Literal

from pydantic import Field

from optimag_dist.models.pretrained import FeatureOptions
from optimag_dist.store.layout import StoredDtype


class EncodeOptions(FeatureOptions):
    """Attributes:
    modality: name of the features that are written; ones of that name are replaced.
    dtype: of the features in the store.
    block_size: nodes that are computed, and kept when the run is killed, together.
    batch_size: texts or pictures that the network sees at once.
    concurrency: actors at most, with a core or a GPU each.
    device: ``cuda`` gives each actor a GPU; ``auto`` does so where the cluster has one.
    """

    modality: str
    dtype: StoredDtype = "float16"
    block_size: int = Field(4096, ge=1, le=65_536)
    batch_size: int = Field(64, ge=1)
    concurrency: int = Field(1, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
