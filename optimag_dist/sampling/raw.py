"""Raw texts and pictures of a store as rows of a batch, read for the encoders that are in the run."""

from collections.abc import Mapping
from threading import Lock
from typing import Any

import numpy as np

from optimag_dist.models.encoder_networks import Kind
from optimag_dist.models.pretrained import PretrainedOptions, check_pretrained, make_reader
from optimag_dist.sampling.pictures import BadPictures
from optimag_dist.sampling.rows import GraphDataSource
from optimag_dist.store import GraphStore
from optimag_dist.store.layout import Modality
from optimag_dist.types import InputError

_UNKNOWN, _ABSENT, _PRESENT = range(3)


def check_encoders(store: GraphStore, encoders: Mapping[str, PretrainedOptions]) -> dict[str, Kind]:
    """Check that the store has what each modality's encoder reads, and that there is such a model, without its weights.

    Returns:
        Modality → what its encoder reads.

    Raises:
        InputError: the store has no such attribute, or the model is missing, cannot be fetched or reads something else.
    """
    kinds: dict[str, Kind] = {}
    for name, options in encoders.items():
        try:
            kinds[name] = attribute_kind(store, options.attribute)
            check_pretrained(options, kinds[name])
        except InputError as error:
            raise InputError(f"model.encoders.{name}: {error}") from error
    return kinds


def attribute_kind(store: GraphStore, attribute: str) -> Kind:
    """What the store's ``attribute`` is; raises InputError where it has none of this name."""
    if attribute not in store.attributes:
        there = ", ".join(f"{name} ({kind})" for name, kind in store.attributes.items()) or "none"
        raise InputError(
            f"{store.path} has no attribute {attribute!r}, it has {there}; add it under attributes in the schema and "
            "ingest again"
        )
    return "text" if store.attributes[attribute] == "text" else "image"


class RawRows:
    """A :class:`GraphDataSource` with raw values where a modality has an encoder: token ids (k, L) int64 or pixels (k,
    3, S, S) uint8, see :mod:`optimag_dist.models.pretrained`. A node without text or picture lacks the modality.

    A picture that does not decode is none, and is noted; or it is an ``InputError`` (``on_bad_picture``). Raises as
    :func:`check_encoders`.

    Attributes:
        modalities: as of ``rows``, and after them those that only have an encoder; the width of raw ones is 0.
        bad_pictures: modality → what did not decode, of those that read pictures.
    """

    def __init__(self, rows: GraphDataSource, store: GraphStore, encoders: Mapping[str, PretrainedOptions]) -> None:
        kinds = check_encoders(store, encoders)
        self._rows, self._store, self._encoders = rows, store, encoders
        self._readers = {name: make_reader(options, kinds[name]) for name, options in encoders.items()}
        self._known = {name: np.full(store.num_nodes, _UNKNOWN, np.uint8) for name in encoders}
        # All of each is read in the end: verified now, and not bit by bit in every process.
        for options in encoders.values():
            store.has_attribute(options.attribute)
        self._lock = Lock()
        self.bad_pictures = {
            name: BadPictures(store, o.attribute, o.on_bad_picture, f"model.encoders.{name}.on_bad_picture")
            for name, o in encoders.items()
            if kinds[name] == "image"
        }
        raw = {name: Modality(name=name, width=0, dtype="float32") for name in encoders}
        self.modalities: Mapping[str, Modality] = {**rows.modalities, **raw}
        self.topology = rows.topology
        self.neighbours, self.degrees = rows.neighbours, rows.degrees

    def __reduce__(self) -> tuple[Any, ...]:
        return RawRows, (self._rows, self._store, self._encoders)

    def features(self, modality: str, nodes: np.ndarray) -> np.ndarray:
        if modality not in self._readers:
            return self._rows.features(modality, nodes)
        options = self._encoders[modality]
        # One file is read by one thread at a time; the work comes after.
        with self._lock:
            values = self._store.attribute(options.attribute, nodes)
        read, present = self._readers[modality].read(values)
        self._known[modality][nodes] = np.where(present, _PRESENT, _ABSENT)
        if modality in self.bad_pictures:
            self.bad_pictures[modality].note(nodes, values, present)
        return read

    def present(self, modality: str, nodes: np.ndarray) -> np.ndarray:
        if modality not in self._readers:
            return self._rows.present(modality, nodes)
        known = self._known[modality]
        unknown = nodes[known[nodes] == _UNKNOWN]
        if len(unknown):
            self.features(modality, unknown)
        return known[nodes] == _PRESENT
