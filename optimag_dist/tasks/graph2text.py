"""Text of a node from its other modalities and its neighbourhood: a soft prefix to a causal language model.

A node's own text, and the modalities made from it, are withheld from its prefix; those of validation and test nodes
are not seen anywhere, neither by their neighbours nor by the regulariser.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field
from torch import Tensor

from optimag_dist.models import MultimodalModel
from optimag_dist.models.language_model import (
    LanguageModelOptions,
    PrefixLanguageModel,
    Tokeniser,
    check_language_model,
    make_tokeniser,
)
from optimag_dist.store import GraphStore
from optimag_dist.tasks.generation import Generation, GenerationOptions
from optimag_dist.tasks.graph_tokens import GraphTokens
from optimag_dist.tasks.task import Evaluation, Part, Setting, TaskHead, gather_dict, sum_over_ranks
from optimag_dist.tasks.text_metrics import text_metrics
from optimag_dist.types import Examples, GroupBatch

_CHUNK = 64


class GraphToTextOptions(GenerationOptions):
    """Attributes:
    language_model: which, and what of it is trained.
    beams: 1 takes the likeliest token each time, more search.
    """

    kind: Literal["graph2text"] = "graph2text"
    language_model: LanguageModelOptions = LanguageModelOptions()
    beams: int = Field(1, ge=1)


class TextHead(TaskHead):
    """The prefix and the language model."""

    def __init__(self, model: MultimodalModel, withheld: tuple[str, ...], options: GraphToTextOptions) -> None:
        super().__init__()
        self.language_model = PrefixLanguageModel(options.language_model)
        embeddings = self.language_model.lm.get_input_embeddings().weight
        self.tokens = GraphTokens(
            model,
            withheld,
            options.tokens,
            width=self.language_model.width,
            scale=float(embeddings.detach().float().square().mean().sqrt()),
        )

    def loss(self, model: MultimodalModel, embeddings: Mapping[str, Tensor], batch: GroupBatch) -> Tensor:
        """Nats per token of the group, once for each of its texts."""
        prefix, there = self.tokens(model, embeddings, batch)
        nats, count = self.language_model.loss(prefix, there, batch.targets["ids"], batch.targets["mask"])
        return nats / count * batch.num_anchors


class GraphToText(Generation[TextHead]):
    """Also raises ``InputError`` where the model cannot be had."""

    attribute_kind = "text"
    noun = "text"
    validated = ("nll",)
    decisive = "nll"

    def __init__(self, store: GraphStore, options: GraphToTextOptions, setting: Setting) -> None:
        super().__init__(store, options, setting)
        check_language_model(options.language_model)
        self.tokenise: Tokeniser = make_tokeniser(options.language_model)

    def examples(self, items: np.ndarray, rng: np.random.Generator) -> Examples:
        ids, mask = self.tokenise(self.store.attribute(self.attribute, items))
        return Examples(items, {"ids": ids.numpy(), "mask": mask.numpy()})

    def head(self, model: MultimodalModel) -> TextHead:
        return TextHead(model, self.withheld, self.options)

    def evaluation(self, part: Part) -> "_Evaluation":
        return _Evaluation(self, self.val if part == "val" else self.test, generates=part == "test")


class _Evaluation(Evaluation[TextHead]):
    chunk = _CHUNK

    def __init__(self, task: GraphToText, nodes: np.ndarray, *, generates: bool) -> None:
        self.nodes = nodes
        self._task, self._generates = task, generates
        self._sums: list[tuple[float, int]] = []
        self._texts: dict[int, str] = {}

    def ask(self, nodes: np.ndarray, rng: np.random.Generator) -> Examples:
        return self._task.examples(nodes, rng)

    def update(
        self, model: MultimodalModel, head: TextHead, embeddings: Mapping[str, Tensor], batch: GroupBatch
    ) -> None:
        prefix, there = head.tokens(model, embeddings, batch)
        nats, count = head.language_model.loss(prefix, there, batch.targets["ids"], batch.targets["mask"])
        self._sums.append((float(nats), int(count)))
        if self._generates:
            texts = head.language_model.generate(prefix, there, beams=self._task.options.beams)
            self._texts |= dict(zip(batch.node_ids[: batch.num_anchors].tolist(), texts, strict=True))

    def compute(self, head: TextHead) -> dict[str, float]:
        device = next(head.parameters()).device
        sums = torch.tensor(self._sums, dtype=torch.float64, device=device).reshape(-1, 2).sum(0)
        sums = sum_over_ranks(sums)
        figures = {"nll": float(sums[0] / sums[1])}
        if self._generates:
            self._texts = gather_dict(self._texts)
            candidates = [self._texts[node] for node in self.nodes.tolist()]
            figures |= text_metrics(candidates, self._references())
        return figures

    def outputs(self) -> pa.Table | None:
        if not self._generates:
            return None
        return pa.table(
            {
                "id": self._task.store.ids(self.nodes),
                "reference": self._references(),
                "output": [self._texts[node] for node in self.nodes.tolist()],
            }
        )

    def _references(self) -> list[str]:
        return self._task.store.attribute(self._task.attribute, self.nodes)
