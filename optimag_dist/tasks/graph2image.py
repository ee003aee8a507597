"""Picture of a node from its other modalities and its neighbourhood: tokens that a diffusion model attends to."""

from collections import ChainMap
from collections.abc import Mapping
from io import BytesIO
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from optimag_dist.layerwise import LayerwiseForward
from optimag_dist.models import MultimodalModel
from optimag_dist.models.diffusion import ConditionalDiffusion, DiffusionOptions, check_diffusion
from optimag_dist.models.pretrained import PictureReader
from optimag_dist.sampling.pictures import BadPictures
from optimag_dist.store import GraphStore
from optimag_dist.tasks.generation import Generation, GenerationOptions
from optimag_dist.tasks.graph_tokens import GraphTokens
from optimag_dist.tasks.image_metrics import FeatureSpace, SpaceName, feature_metrics, nearest
from optimag_dist.tasks.metrics import Metric
from optimag_dist.tasks.task import Evaluation, Part, TaskContext, TaskHead, gather, my_chunks, sum_over_ranks
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

    kind: str = "graph2image"
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
        return self.diffusion.loss(centred(batch.labels["pixels"]), tokens, there)


class GraphToImage(Generation[ImageHead]):
    """Also raises ``InputError`` where the model cannot be had."""

    attribute_kind = "image"
    noun = "picture"
    options_class = GraphToImageOptions
    metrics = (
        Metric("denoising", "denoising error", "min", is_share=False),
        Metric("frechet", "Fréchet distance", "min", is_share=False),
        Metric("cosine", "cosine", is_share=False),
        Metric("copies", "near copies of training pictures", "min"),
    )
    val_metrics = ("denoising",)
    monitor = "denoising"

    def __init__(self, store: GraphStore, options: GraphToImageOptions, context: TaskContext) -> None:
        super().__init__(store, options, context)
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

    @torch.no_grad()
    def evaluate(self, part: Part, head: ImageHead, forward: LayerwiseForward) -> Evaluation:
        """The denoising error; of the test part pictures are drawn too."""
        nodes = self.val if part == "val" else self.test
        states, forward = forward.masked_states(nodes, [self.masked])[:, 0], forward.alone()
        sums = torch.zeros(2, dtype=torch.float64, device=forward.device)
        drawn: dict[int, np.ndarray] = {}
        for rows in my_chunks(len(nodes), _CHUNK):
            pixels, some = self.pictures(nodes[rows])
            if not len(some):
                continue
            kept = torch.from_numpy(rows.start + np.flatnonzero(np.isin(nodes[rows], some)))
            tokens, there = head.tokens.of_nodes(some, states[kept.to(states.device)], forward, self.masked)
            keys = torch.from_numpy(some).to(forward.device)
            real = centred(torch.from_numpy(pixels).to(forward.device))
            errors = head.diffusion.denoising_error(real, tokens, there, keys)
            sums += torch.stack([errors.double().sum(), sums.new_tensor(len(errors))])
            if part == "test":
                drawn |= self._draw(head, tokens, there, keys)
        sums = sum_over_ranks(sums)
        metrics = {"denoising": float(sums[0] / sums[1])}
        return Evaluation(metrics) if part == "val" else self._judge(metrics, drawn, forward.device)

    def _draw(self, head: ImageHead, tokens: Tensor, there: Tensor, keys: Tensor) -> dict[int, np.ndarray]:
        """The pictures of those of the test nodes ``keys`` that are drawn."""
        spread = np.linspace(0, len(self.test) - 1, min(len(self.test), self.options.samples)).round().astype(int)
        mine = torch.isin(keys, torch.from_numpy(self.test[spread]).to(keys.device))
        if not mine.any():
            return {}
        drawn = head.diffusion.sample(tokens[mine], there[mine], keys[mine])
        pixels = ((drawn + 1) * 127.5).round().to(torch.uint8).cpu().numpy()
        return dict(zip(keys[mine].tolist(), pixels, strict=True))

    def _judge(self, metrics: dict[str, float], mine: dict[int, np.ndarray], device: torch.device) -> Evaluation:
        """With the metrics of all ranks' drawn pictures, and these beside the real and the nearest training ones."""
        made = dict(sorted(ChainMap(*gather(mine)).items()))
        references, _ = self.pictures(np.array(list(made)))
        training, _ = self.pictures(self.train[:: -(-len(self.train) // _COMPARED)])
        space = FeatureSpace(self.options.feature_space, device)
        drawn = np.stack(list(made.values()))
        features = [space(torch.from_numpy(pixels)) for pixels in (drawn, references, training)]
        near = training[nearest(features[0], features[2])[1].numpy()]
        columns = {"reference": references, "output": drawn, "nearest": near}
        files = {name: [png(pixels) for pixels in pictures] for name, pictures in columns.items()}
        table = pa.table({"id": self.store.ids(np.array(list(made))), **files})
        return Evaluation(metrics | feature_metrics(*features), table)


def centred(pixels: Tensor) -> Tensor:
    """uint8 → float32 in [−1, 1]."""
    return pixels.float() / 127.5 - 1


def png(pixels: np.ndarray) -> bytes:
    """(3, S, S) uint8 as a PNG file."""
    content = BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(content, format="PNG")
    return content.getvalue()
