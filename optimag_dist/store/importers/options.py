"""What a user may say about a graph whose layout has no place for it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from optimag_dist.imported import absolute
from optimag_dist.options import Options
from optimag_dist.store.arrays import ArrayFeatures, NpyRows


class ImportOptions(Options):
    """Changes to what an importer finds, given as ``key=value``.

    Attributes:
        importer: what reads the source, a layout of ours or ``file.py:name`` (docs/extending.md); by default found out.
        name: the graph's; by default that of the file or folder.
        directed: whether source and target differ in meaning; by default what the layout says.
        features: modality → ``.npy`` file of shape (nodes, width), relative to the source's folder, in place of the
            modality found or beside it.
        encoder: MM-Graph: whose features to take, such as ``t5vit`` for ``t5vit_feat.pt``.
        split: OGB: folder under ``split/``, where there are several.
    """

    importer: Annotated[str, AfterValidator(absolute)] | None = None
    name: str | None = None
    directed: bool | None = None
    features: Mapping[str, str] = {}
    encoder: str | None = None
    split: str | None = None

    def given_features(self, folder: Path, num_nodes: int) -> dict[str, ArrayFeatures]:
        """The modalities of ``features``, opened."""
        return {
            name: ArrayFeatures(folder / file, NpyRows(folder / file), num_nodes, "the graph")
            for name, file in self.features.items()
        }

    def feature_files(self, folder: Path) -> tuple[Path, ...]:
        return tuple(folder / file for file in self.features.values())
