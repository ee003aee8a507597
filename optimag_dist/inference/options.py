"""What to compute of every node, and how."""

from typing import Any, Literal

from pydantic import Field, field_validator

from optimag_dist.options import Options


class InferenceOptions(Options):
    """What embedding, predicting and evaluating have in common.

    Attributes:
        fanouts: neighbours drawn per node and layer, input side first; -1 takes all. Default: the checkpoint's
            ``sampling.eval_fanouts``.
        device: ``cuda`` gives each task a GPU; ``auto`` does so where there is one.
        allow_other_store: use the checkpoint on another graph than it was trained on, if the features fit.
    """

    fanouts: tuple[int, ...] | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    allow_other_store: bool = False

    @field_validator("fanouts")
    @classmethod
    def _usable(cls, fanouts: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if any(fanout < -1 or fanout == 0 for fanout in fanouts or ()):
            raise ValueError("fan-outs must be positive, or -1 for all neighbours")
        return fanouts


class BlockOptions(InferenceOptions):
    """What embedding and predicting have in common: nodes per task and per Parquet part, and the seed of the draws,
    where fan-outs are not -1."""

    block_size: int = Field(65_536, ge=1)
    seed: int = Field(0, ge=0)


class EmbedOptions(BlockOptions):
    """``per_modality`` also writes each modality's own embedding Z_m as ``embedding:<modality>``, null where absent."""

    per_modality: bool = False
    dtype: Literal["float32", "float16"] = "float32"


class EvaluateOptions(InferenceOptions):
    """Attributes:
    split: the fit's own nodes to evaluate on; of no use with a list of nodes. ``train`` is for classes alone.
    seed: of the draws, where fan-outs are not -1; default: the fit's own.
    task: changes to the options of the task: ``task.beams=4``; where there are several, ``task.tasks.NAME.beams=4``.
    """

    split: Literal["train", "val", "test"] = "test"
    seed: int | None = Field(None, ge=0)
    task: dict[str, Any] = Field(default_factory=dict)


class PredictOptions(BlockOptions):
    """``probabilities`` also writes those of all classes, in the order of ``classes`` in ``_meta.json``."""

    probabilities: bool = False
