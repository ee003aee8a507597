"""What tasks that generate an attribute have in common: which, of which nodes, and what must not be seen of it.

A node's own, and the modalities made from it, are withheld from what it is generated from; those of validation and test
nodes are not seen anywhere, neither by their neighbours nor by the regulariser.
"""

from typing import Any, ClassVar, Literal

import numpy as np

from optimag_dist.layerwise import Mask
from optimag_dist.store import GraphStore
from optimag_dist.tasks.graph_tokens import TokenOptions
from optimag_dist.tasks.splits import NodeSplit, split_nodes
from optimag_dist.tasks.task import HeadT, Task, TaskContext, TaskOptions
from optimag_dist.types import InputError


class GenerationOptions(TaskOptions):
    """Attributes:
    attribute: the store's text or picture that is generated; None where it has one only.
    withhold: the modalities made from it; ``[]`` where there is none.
    split: ``stored``, or shares of the nodes that have it, at random.
    tokens: what the generator is told of a node.
    """

    attribute: str | None = None
    withhold: tuple[str, ...] | None = None
    split: NodeSplit = "stored"
    tokens: TokenOptions = TokenOptions()


class Generation(Task[HeadT]):
    """A task that generates ``attribute`` of the nodes that have it, ``train``, ``val`` and ``test`` (…,) int64
    ascending, without the ``withheld`` modalities made from it. Raises ``InputError`` where the store has no such
    attribute or no split, or ``withhold`` is not said."""

    attribute_kind: ClassVar[Literal["text", "image"]]
    noun: ClassVar[str]

    def __init__(self, store: GraphStore, options: Any, context: TaskContext) -> None:
        self.store, self.options = store, options
        self.attribute = _find_attribute(store, options.attribute, self.attribute_kind, options.kind)
        self.withheld = _find_withheld(store, options.withhold, self.attribute, context.modalities)
        what, usable = f"node with a {self.noun} in {self.attribute!r}", store.has_attribute(self.attribute)
        self.train, self.val, self.test = split_nodes(store, options.split, usable, seed=context.seed, what=what)

    @property
    def masked(self) -> Mask:
        """What is asked of the nodes that the task is judged on."""
        mask = np.zeros(self.store.num_nodes, bool)
        mask[np.concatenate([self.val, self.test])] = True
        return dict.fromkeys(self.withheld, mask)


def _find_attribute(store: GraphStore, name: str | None, kind: str, task: str) -> str:
    """The attribute of ``kind`` that ``name`` means, or the only one where it is None."""
    there = [attribute for attribute, of_kind in store.attributes.items() if of_kind == kind]
    add = f"name its column under attributes in the schema (kind: {kind}) and run optimag ingest again"
    if not there:
        what = "texts" if kind == "text" else "pictures"
        raise InputError(f"{store.path}: {task} needs the nodes' {what} and this store has none; {add}")
    if name is None and len(there) > 1:
        raise InputError(f"{store.path}: {task} needs task.attribute, one of {', '.join(there)}")
    if name is not None and name not in there:
        raise InputError(
            f"{store.path}: task.attribute={name}, no {kind} of this store; it has {', '.join(there)}; {add}"
        )
    return name or there[0]


def _find_withheld(
    store: GraphStore, withhold: tuple[str, ...] | None, attribute: str, modalities: tuple[str, ...]
) -> tuple[str, ...]:
    names = ", ".join(modalities)
    if withhold is None:
        raise InputError(
            f"{store.path}: say by task.withhold which of its modalities ({names}) are made from {attribute!r}, or the "
            f"answer would be among what is asked with; withhold: [] where none is"
        )
    for name in withhold:
        if name not in modalities:
            raise InputError(f"{store.path}: task.withhold names {name!r}, none of the modalities here: {names}")
    return withhold
