"""The metrics that tasks report, and how to read them.

A run's tables call a metric ``test/NAME``, or ``test/TASK/NAME`` where a run has several tasks.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """Attributes:
    title: for people.
    better: which way is better.
    is_share: between 0 and 1, shown in per cent, differences in points.
    """

    title: str
    better: Literal["max", "min"] = "max"
    is_share: bool = True

    @property
    def sign(self) -> int:
        """Times this, greater is better."""
        return 1 if self.better == "max" else -1


METRICS = {
    "accuracy": Metric("accuracy"),
    "macro_f1": Metric("macro-F1"),
    "mrr": Metric("MRR"),
    "hits@1": Metric("Hits@1"),
    "hits@10": Metric("Hits@10"),
    "mrr_all": Metric("MRR, all nodes"),
    "hits@10_all": Metric("Hits@10, all nodes"),
    "recall@1": Metric("recall@1"),
    "recall@5": Metric("recall@5"),
    "recall@10": Metric("recall@10"),
    "median_rank": Metric("median rank", "min", is_share=False),
    "matching": Metric("matching accuracy"),
    "nll": Metric("nats per token", "min", is_share=False),
    "bleu4": Metric("BLEU-4", is_share=False),
    "rouge_l": Metric("ROUGE-L"),
    "cider": Metric("CIDEr", is_share=False),
    "denoising": Metric("denoising error", "min", is_share=False),
    "frechet": Metric("Fréchet distance", "min", is_share=False),
    "cosine": Metric("cosine", is_share=False),
    "copies": Metric("near copies of training pictures", "min"),
}


def metric_of(column: str) -> Metric:
    """Of ``accuracy``, ``test/accuracy`` or ``val/TASK/accuracy``; a metric unknown here is shown as it is."""
    name = column.rpartition("/")[2]
    return METRICS.get(name) or Metric(name, is_share=False)
