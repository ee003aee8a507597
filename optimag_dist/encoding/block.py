"""Pretrained features of a block of nodes. Does no output and knows nothing of Ray."""

from collections.abc import Iterator
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field

from optimag_dist.models.pretrained import PADDING, FeatureOptions, load_features, make_reader
from optimag_dist.sampling.pictures import bad_picture_error
from optimag_dist.sampling.raw import attribute_kind
from optimag_dist.store import GraphStore
from optimag_dist.store.layout import StoredDtype
from optimag_dist.types import InputError

#: Whether a node has features; ``BAD``: it has a picture that does not decode.
ABSENT, PRESENT, BAD = range(3)
# Texts are padded to a multiple of so many tokens, so that few shapes occur and little of them is padding.
_TOKENS = 8


class EncodeOptions(FeatureOptions):
    """Attributes:
    modality: name of the features that are written; ones of that name are replaced.
    dtype: of the features in the store.
    block_size: nodes that are computed, and kept when the run is killed, together.
    batch_size: texts or pictures that the network sees at once.
    concurrency: actors at most, with a core or a GPU each.
    device: ``cuda`` gives each actor a GPU; ``auto`` does so where the cluster has one.
    """

    modality: str
    dtype: StoredDtype = "float16"
    block_size: int = Field(4096, ge=1, le=65_536)
    batch_size: int = Field(64, ge=1)
    concurrency: int = Field(1, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"


class BlockEncoder:
    """Encodes nodes of a store by ``network``, of ``width`` features, from what ``reader`` makes of their attribute.

    The network always sees ``batch_size`` rows, the last batch filled up with rows it has seen, and a text padded to a
    length that depends on the text alone: what comes out for a node does not depend on its block but by the rounding of
    matrix products. ``InputError``: the store has no such attribute, or the model cannot be loaded or does not fit it.
    """

    def __init__(self, store: GraphStore, options: EncodeOptions, device: torch.device) -> None:
        kind = attribute_kind(store, options.attribute)
        network, self.width = load_features(options, kind)
        self.network = network.to(device)
        self.reader = make_reader(options, kind)
        self._store, self._options, self._device = store, options, device
        self._batches = self._texts if kind == "text" else self._pictures

    @torch.inference_mode()
    def encode(self, nodes: np.ndarray) -> pa.RecordBatch:
        """(k,) int64 node ids → ``features`` (lists of ``width`` numbers, zeros where there is none) and ``state``."""
        dtype = self._options.dtype
        features = np.zeros((len(nodes), self.width), dtype)
        state = np.full(len(nodes), ABSENT, np.uint8)
        for rows, raw in self._batches(nodes, state):
            full = raw[np.resize(np.arange(len(raw)), self._options.batch_size)]
            out = self.network(torch.from_numpy(full).to(self._device))[: len(rows)]
            with np.errstate(over="ignore"):
                features[rows] = out.cpu().numpy().astype(dtype)
        self._check_finite(nodes, features)
        lists = pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), self.width)
        return pa.record_batch({"features": lists, "state": pa.array(state)})

    def _texts(self, nodes: np.ndarray, state: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows of ``nodes`` and their token ids, those of one padded length after the other; fills in ``state``."""
        tokens, present = self.reader.read(self._store.attribute(self._options.attribute, nodes))
        state[present] = PRESENT
        longest = self._options.max_length
        lengths = np.minimum(-(-(tokens != PADDING).sum(1) // _TOKENS) * _TOKENS, longest)
        tokens = np.pad(tokens, ((0, 0), (0, longest - tokens.shape[1])), constant_values=PADDING)
        for length in np.unique(lengths[present]):
            rows = np.flatnonzero(present & (lengths == length))
            for some in self._cut(rows):
                yield some, tokens[some, :length]

    def _pictures(self, nodes: np.ndarray, state: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows of ``nodes`` and their pixels, as few at a time as the network sees; fills in ``state``."""
        for rows in self._cut(np.arange(len(nodes))):
            values = self._store.attribute(self._options.attribute, nodes[rows])
            pixels, present = self.reader.read(values)
            bad = np.array([bool(value) for value in values]) & ~present
            if bad.any() and self._options.on_bad_picture == "error":
                raise bad_picture_error(self._store, self._options.attribute, nodes[rows][bad][0], "on_bad_picture")
            state[rows[present]], state[rows[bad]] = PRESENT, BAD
            if present.any():
                yield rows[present], pixels[present]

    def _cut(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        size = self._options.batch_size
        return (rows[start : start + size] for start in range(0, len(rows), size))

    def _check_finite(self, nodes: np.ndarray, features: np.ndarray) -> None:
        wrong = np.flatnonzero(~np.isfinite(features).all(1))
        if len(wrong):
            remedy = "float16 ends at 65504; write them with dtype=float32" if features.itemsize == 2 else "a bad model"
            node = self._store.ids(nodes[wrong[:1]])[0]
            raise InputError(f"{self._options.model}: the features of node {node!r} are not finite: {remedy}")
