"""What a task that generates an attribute must not see of it."""

import numpy as np

from optimag_dist.store import GraphStore
from optimag_dist.types import InputError


def check_attribute(store: GraphStore, name: str | None, kind: str, task: str) -> str:
    """The attribute of ``kind`` (``text`` or ``image``) that ``name`` means, or the only one where it is None.

    Raises:
        InputError: there is none, it is of another kind, or it is not clear which.
    """
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


def check_withheld(
    store: GraphStore, withhold: tuple[str, ...] | None, attribute: str, modalities: tuple[str, ...]
) -> tuple[str, ...]:
    """The modalities made from ``attribute``.

    Raises:
        InputError: they are not named, or named and not there.
    """
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


def hidden_nodes(store: GraphStore, withheld: tuple[str, ...], *judged_on: np.ndarray) -> dict[str, np.ndarray]:
    """Modality → (n,) bool: what is asked of the nodes that the task is ``judged_on``."""
    mask = np.zeros(store.num_nodes, bool)
    mask[np.concatenate(judged_on)] = True
    return dict.fromkeys(withheld, mask)
