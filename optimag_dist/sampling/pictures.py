"""Stored pictures that do not decode: fatal, or counted and named when all is done."""

from collections.abc import Collection, Sequence
from typing import Literal

import numpy as np

from optimag_dist.store import GraphStore
from optimag_dist.types import InputError

_NAMED = 5


class BadPictures:
    """Of one attribute, the ``nodes`` met so far whose picture does not decode; several threads may note some.

    Such a picture counts as none (``on_bad`` is ``mask``), or is an error, as ``key`` of the configuration says.
    """

    def __init__(self, store: GraphStore, attribute: str, on_bad: Literal["mask", "error"], key: str) -> None:
        self._store, self.attribute, self._on_bad, self._key = store, attribute, on_bad, key
        self.nodes: set[int] = set()

    def note(self, nodes: np.ndarray, values: Sequence[bytes | None], decoded: np.ndarray) -> None:
        """Take note of those of k nodes' pictures that are there and have not ``decoded``, (k,) bool, or raise
        InputError for the first where ``on_bad`` is ``error``."""
        bad = [int(node) for node, value, good in zip(nodes, values, decoded, strict=True) if value and not good]
        if bad and self._on_bad == "error":
            raise bad_picture_error(self._store, self.attribute, bad[0], self._key)
        self.nodes.update(bad)


def bad_picture_error(store: GraphStore, attribute: str, node: int, key: str) -> InputError:
    """The error that names a picture that does not decode, and the ``key`` that would pass it over."""
    id_ = store.ids(np.array([node]))[0]
    return InputError(
        f"{store.path}: the {attribute!r} of node {id_!r} does not decode as a picture; mend it, or set {key}=mask"
    )


def told_bad_pictures(store: GraphStore, attribute: str, nodes: Collection[int]) -> str:
    """The sentence that counts and names pictures that did not decode and were passed over."""
    first = sorted(nodes)[:_NAMED]
    named = ", ".join(repr(str(id_)) for id_ in store.ids(np.array(first))) + ", …" * (len(nodes) > _NAMED)
    return f"pictures: {attribute!r} does not decode for {len(nodes):,} nodes, which counted as nodes without: {named}"
