"""Picture of a node from its other modalities and its neighbourhood: tokens that a diffusion model attends to.

A node's own picture, and the modalities made from it, are withheld from its tokens; those of validation and test nodes
are not seen anywhere, neither by their neighbours nor by the regulariser.
"""

from collections.abc import Mapping
from io import BytesIO
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from optimag_dist.models import MultimodalModel
from optimag_dist.models.diffusion import ConditionalDiffusion, DiffusionOptions, check_diffusion
from optimag_dist.models.pretrained import PictureReader
from optimag_dist.sampling.pictures import BadPictures
from optimag_dist.store import GraphStore
from optimag_dist.tasks.generation import Generation, GenerationOptions
from optimag_dist.tasks.graph_tokens import GraphTokens
from optimag_dist.tasks.image_metrics import FeatureSpace, SpaceName, feature_metrics, nearest
from optimag_dist.tasks.task import Evaluation, Part, Setting, TaskHead, gather_dict, sum_over_ranks
from optimag_dist.types import Examples, GroupBatch

_CHUNK = 64
# Training pictures that a generated one is compared with, at most.
_COMPARED = 4096


class GraphToImageOptions(GenerationOptions):
    """Attributes:
    diffusion: the model that draws.
    samples: test nodes whose picture is drawn at the end, at most, evenly spread.
    feature_space: in which drawn pictures are compared with real ones.
    on_bad_picture: a picture that does not decode is passed over (``mask``), or ends the run (``error``).
    """

    kind: Literal["graph2image"] = "graph2image"
    diffusion: DiffusionOptions = DiffusionOptions()
    samples: int = Field(256, ge=2)
    feature_space: SpaceName = "efficientnet-lite0"
    on_bad_picture: Literal["mask", "error"] = "mask"


class ImageHead(TaskHead):
    """The condition and the diffusion model."""

    def __init__(self, model: MultimodalModel, withheld: tuple[str, ...], options: GraphToImageOptions) -> None:
        super().__init__()
        self.diffusion = ConditionalDiffusion(options.diffusion)
        self.tokens = GraphTokens(model, withheld, options.tokens, width=self.diffusion.width, scale=1.0)

    def loss(self, model: MultimodalModel, embeddings: Mapping[str, Tensor], batch: GroupBatch) -> Tensor:
        """Mean squared error of the denoising of each picture."""
        tokens, there = self.tokens(model, embeddings, batch)
        return self.diffusion.loss(centred(batch.targets["pixels"]), tokens, there)


class GraphToImage(Generation[ImageHead]):
    """Also raises ``InputError`` where the model cannot be had."""

    attribute_kind = "image"
    noun = "picture"
    validated = ("denoising",)
    decisive = "denoising"

    def __init__(self, store: GraphStore, options: GraphToImageOptions, setting: Setting) -> None:
        super().__init__(store, options, setting)
        check_diffusion(options.diffusion)
        self._reader = PictureReader(options.diffusion.size)
        self.bad_pictures = (BadPictures(store, self.attribute, options.on_bad_picture, "task.on_bad_picture"),)

    def pictures(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(k', 3, S, S) uint8 pictures, and the (k',) nodes whose picture decodes."""
        contents = self.store.attribute(self.attribute, nodes)
        pixels, decoded = self._reader.read(contents)
        self.bad_pictures[0].note(nodes, contents, decoded)
        return pixels[decoded], nodes[decoded]

    def examples(self, items: np.ndarray, rng: np.random.Generator) -> Examples:
        pixels, nodes = self.pictures(items)
        return Examples(nodes, {"pixels": pixels})

    def head(self, model: MultimodalModel) -> ImageHead:
        return ImageHead(model, self.withheld, self.options)

    def evaluation(self, part: Part) -> "_Evaluation":
        return _Evaluation(self, self.val if part == "val" else self.test, draws=part == "test")


class _Evaluation(Evaluation[ImageHead]):
    chunk = _CHUNK

    def __init__(self, task: GraphToImage, nodes: np.ndarray, *, draws: bool) -> None:
        self.nodes = nodes
        self._task, self._draws = task, draws
        spread = np.linspace(0, len(nodes) - 1, min(len(nodes), task.options.samples)).round().astype(int)
        self._drawn = torch.from_numpy(nodes[spread])
        self._errors: list[tuple[float, int]] = []
        self._pictures: dict[int, np.ndarray] = {}
        self._references = self._nearest = np.empty((0, 3, 0, 0), np.uint8)

    def ask(self, nodes: np.ndarray, rng: np.random.Generator) -> Examples:
        return self._task.examples(nodes, rng)

    def update(
        self, model: MultimodalModel, head: ImageHead, embeddings: Mapping[str, Tensor], batch: GroupBatch
    ) -> None:
        keys = batch.node_ids[: batch.num_anchors]
        tokens, mask = head.tokens(model, embeddings, batch)
        errors = head.diffusion.denoising_error(centred(batch.targets["pixels"]), tokens, mask, keys)
        self._errors.append((float(errors.double().sum()), len(errors)))
        if self._draws:
            mine = torch.isin(keys, self._drawn.to(keys.device))
            if not mine.any():
                return
            drawn = head.diffusion.sample(tokens[mine], mask[mine], keys[mine])
            pixels = ((drawn + 1) * 127.5).round().to(torch.uint8).cpu().numpy()
            self._pictures |= dict(zip(keys[mine].tolist(), pixels, strict=True))

    def compute(self, head: ImageHead) -> dict[str, float]:
        sums = torch.tensor(self._errors, dtype=torch.float64, device=head.diffusion.null.device).reshape(-1, 2).sum(0)
        sums = sum_over_ranks(sums)
        figures = {"denoising": float(sums[0] / sums[1])}
        if self._draws:
            self._pictures = dict(sorted(gather_dict(self._pictures).items()))
            self._references, _ = self._task.pictures(np.array(list(self._pictures)))
            training, _ = self._task.pictures(self._task.train[:: -(-len(self._task.train) // _COMPARED)])
            space = FeatureSpace(self._task.options.feature_space, head.diffusion.null.device)
            drawn = np.stack(list(self._pictures.values()))
            features = [space(torch.from_numpy(pixels)) for pixels in (drawn, self._references, training)]
            figures |= feature_metrics(*features)
            self._nearest = training[nearest(features[0], features[2])[1].numpy()]
        return figures

    def outputs(self) -> pa.Table | None:
        if not self._draws:
            return None
        drawn = np.stack(list(self._pictures.values()))
        columns = {"reference": self._references, "output": drawn, "nearest": self._nearest}
        files = {name: [png(pixels) for pixels in pictures] for name, pictures in columns.items()}
        return pa.table({"id": self._task.store.ids(np.array(list(self._pictures))), **files})


def centred(pixels: Tensor) -> Tensor:
    """uint8 → float32 in [−1, 1]."""
    return pixels.float() / 127.5 - 1


def png(pixels: np.ndarray) -> bytes:
    """(3, S, S) uint8 as a PNG file."""
    content = BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(content, format="PNG")
    return content.getvalue()
