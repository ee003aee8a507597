"""Text of a node from its other modalities and its neighbourhood: a soft prefix to a causal language model."""

from collections import ChainMap
from collections.abc import Mapping, Sequence
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field
from torch import Tensor

from optimag_dist.layerwise import LayerwiseForward
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
from optimag_dist.tasks.metrics import Metric
from optimag_dist.tasks.task import Evaluation, Part, TaskContext, TaskHead, gather, my_chunks, sum_over_ranks
from optimag_dist.types import Examples, GroupBatch, InputError

_CHUNK = 64


class GraphToTextOptions(GenerationOptions):
    """Attributes:
    language_model: which, and what of it is trained.
    beams: 1 takes the likeliest token each time, more search.
    """

    kind: str = "graph2text"
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
        nats, count = self.language_model.loss(prefix, there, batch.labels["ids"], batch.labels["mask"])
        return nats / count * batch.num_targets


class GraphToText(Generation[TextHead]):
    """Also raises ``InputError`` where the model cannot be had."""

    attribute_kind = "text"
    noun = "text"
    options_class = GraphToTextOptions
    metrics = (
        Metric("nll", "nats per token", "min", is_share=False),
        Metric("bleu4", "BLEU-4", is_share=False),
        Metric("rouge_l", "ROUGE-L"),
        Metric("cider", "CIDEr", is_share=False),
    )
    val_metrics = ("nll",)
    monitor = "nll"

    def __init__(self, store: GraphStore, options: GraphToTextOptions, context: TaskContext) -> None:
        super().__init__(store, options, context)
        check_language_model(options.language_model)
        self.tokenise: Tokeniser = make_tokeniser(options.language_model)

    def examples(self, items: np.ndarray, rng: np.random.Generator) -> Examples:
        ids, mask = self.tokenise(self.store.attribute(self.attribute, items))
        return Examples(items, {"ids": ids.numpy(), "mask": mask.numpy()})

    def head(self, model: MultimodalModel) -> TextHead:
        return TextHead(model, self.withheld, self.options)

    @torch.no_grad()
    def evaluate(self, part: Part, head: TextHead, forward: LayerwiseForward) -> Evaluation:
        """Nats per token; of the test part the texts themselves too."""
        nodes = self.val if part == "val" else self.test
        states, forward = forward.masked_states(nodes, [self.masked])[:, 0], forward.alone()
        sums = torch.zeros(2, dtype=torch.float64, device=forward.device)
        texts: dict[int, str] = {}
        for rows in my_chunks(len(nodes), _CHUNK):
            prefix, there = head.tokens.of_nodes(nodes[rows], states[rows], forward, self.masked)
            ids, mask = (x.to(forward.device) for x in self.tokenise(self.store.attribute(self.attribute, nodes[rows])))
            nats, count = head.language_model.loss(prefix, there, ids, mask)
            sums += torch.stack([nats, count]).to(sums)
            if part == "test":
                made = head.language_model.generate(prefix, there, beams=self.options.beams)
                texts |= dict(zip(nodes[rows].tolist(), made, strict=True))
        sums = sum_over_ranks(sums)
        metrics = {"nll": float(sums[0] / sums[1])}
        if part == "val":
            return Evaluation(metrics)
        texts = dict(ChainMap(*gather(texts)))
        outputs, references = [texts[node] for node in nodes.tolist()], self.store.attribute(self.attribute, nodes)
        table = pa.table({"id": self.store.ids(nodes), "reference": references, "output": outputs})
        return Evaluation(metrics | text_metrics(outputs, references), table)


def text_metrics(candidates: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """How near each of k ≥ 1 candidates, of which empty ones match nothing, is to its one reference, of which some have
    words.

    Returns:
        ``bleu4``: BLEU of the corpus, 0 to 100 (Papineni et al. 2002; sacrebleu, signature
            ``nrefs:1|case:lc|eff:no|tok:13a|smooth:exp``).
        ``rouge_l``: mean F1 of the longest common subsequences, 0 to 1 (Lin 2004; rouge-score without stemming).
        ``cider``: mean CIDEr-D, 0 to 10 (Vedantam et al., arXiv 1411.5726; pycocoevalcap), document frequencies from
            the references.
    """
    try:
        from pycocoevalcap.cider.cider import Cider
        from rouge_score.rouge_scorer import RougeScorer
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
    except ImportError as error:
        raise InputError(f"generated texts are judged by {error.name}; pip install 'optimag_dist[generate]'") from error
    split = Tokenizer13a()
    # What rouge-score takes for a tokeniser.
    words = SimpleNamespace(tokenize=lambda text: split(text.lower()).split())
    bleu = BLEU(lowercase=True, tokenize="13a", smooth_method="exp", force=True)
    rouge = RougeScorer(["rougeL"], tokenizer=words)
    overlaps = [rouge.score(r, c)["rougeL"].fmeasure for c, r in zip(candidates, references, strict=True)]
    ours, theirs = (
        {i: [" ".join(words.tokenize(text))] for i, text in enumerate(texts)} for texts in (candidates, references)
    )
    return {
        "bleu4": bleu.corpus_score(candidates, [references]).score,
        "rouge_l": sum(overlaps) / len(overlaps),
        "cider": float(Cider().compute_score(theirs, ours)[0]),
    }
