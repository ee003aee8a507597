"""Which nodes a task is trained, validated and tested on."""

from typing import Literal, TypeAlias

import numpy as np
from pydantic import Field, model_validator

from optimag_dist.options import Options
from optimag_dist.store import GraphStore
from optimag_dist.types import InputError


class RandomSplit(Options):
    """A new split for every seed: shares of the task's nodes; the rest is the test set."""

    train: float = Field(gt=0, lt=1)
    val: float = Field(gt=0, lt=1)

    @model_validator(mode="after")
    def _leaves_a_test_set(self) -> "RandomSplit":
        if self.train + self.val >= 1:
            raise ValueError(f"train + val = {self.train + self.val:g} leaves no test nodes; make the sum less than 1")
        return self


NodeSplit: TypeAlias = Literal["stored"] | RandomSplit


def split_nodes(
    store: GraphStore, split: NodeSplit, usable: np.ndarray, *, seed: int, what: str, strata: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Train, validation and test nodes, each ascending int64, from the store's own split, or at random; an InputError
    where there is none or a part is empty.

    Args:
        usable: (n,) bool nodes that the task can use at all.
        what: such nodes are called in messages: "labelled node".
        strata: (n,) int64 classes ≥ 0 of usable nodes, each of which gives its share and at least one node to training;
            default: one class.
    """
    if split == "stored":
        if store.split is None:
            raise InputError(
                f"{store.path}: task.split=stored but the store has no split; name its column under nodes.split in the "
                f"schema and ingest again, or set task.split={{train: 0.6, val: 0.2}}"
            )
        parts = [np.flatnonzero((store.split == part) & usable) for part in range(3)]
    else:
        parts = _random(np.where(usable, 0 if strata is None else strata, -1), split, seed)
    for name, part in zip(("train", "val", "test"), parts, strict=True):
        if len(part) == 0:
            raise InputError(f"{store.path}: the {name} split has no {what}; split used: {split}")
    return parts[0], parts[1], parts[2]


def _random(strata: np.ndarray, split: RandomSplit, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng((seed, 0x5911))
    parts: tuple[list[np.ndarray], ...] = ([], [], [])
    for stratum in range(strata.max() + 1):
        members = rng.permutation(np.flatnonzero(strata == stratum))
        first = max(1, round(split.train * len(members)))
        second = first + round(split.val * len(members))
        for part, piece in zip(parts, np.split(members, [first, second]), strict=True):
            part.append(piece)
    return [np.sort(np.concatenate(part)) if part else np.empty(0, np.int64) for part in parts]
