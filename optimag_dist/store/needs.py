"""How much memory and disk an ingest takes, estimated before anything is written."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa

from optimag_dist.store.arrays import block_rows
from optimag_dist.store.edges import BATCH_EDGES
from optimag_dist.store.ids import is_counting
from optimag_dist.store.layout import BATCH_ROWS
from optimag_dist.store.source import GraphSource
from optimag_dist.store.topology import NODE_BYTES, WINDOW_ARCS
from optimag_dist.types import InputError

# Compiled kernels, Arrow's pool and open files.
_PROGRAM_BYTES = 150 << 20


@dataclass(frozen=True)
class Needs:
    """Bytes.

    Attributes:
        memory: most that is resident at one time beside what the process holds already, mapped files included.
        disk: most that is on the disk beside what is there already.
    """

    memory: int
    disk: int


def estimate(source: GraphSource, ids: pa.Array) -> Needs:
    """An upper estimate of what ingesting ``source`` with ``ids`` takes; pictures in files of their own not counted."""
    n, m = source.num_nodes, source.num_edges
    arcs = m if source.directed is not False else 2 * m
    index = 4 if n < 2**31 else 8
    widths = {name: np.dtype(reader.dtype).itemsize * reader.width for name, reader in source.modalities.items()}
    features = n * sum(widths.values())
    # Text in tables is compressed by about three.
    raw = 3 * sum(path.stat().st_size for path in source.inputs) if source.attributes else 0
    nodes = ids.nbytes + n * (5 + len(widths))
    topology = 8 * n + index * arcs

    window = index * min(arcs, WINDOW_ARCS)
    lookup_rows = min(m, max(BATCH_EDGES, n // 2))
    # A hash table of the ids, and two columns of keys and of positions.
    lookup = 0 if is_counting(ids) else 3 * ids.nbytes + lookup_rows * (2 * ids.nbytes // n + 32)
    edges = NODE_BYTES * n + max(lookup, window) + 64 * min(m, BATCH_EDGES)
    # Ids and labels while they are checked.
    checks = (1 if pa.types.is_integer(ids.type) else 3) * ids.nbytes + 24 * n
    # One batch as it is stored, and several copies of the block of it that is checked.
    blocks = max(
        min(n, BATCH_ROWS) * widths[name] + 5 * 8 * min(n, block_rows(reader.width)) * reader.width
        for name, reader in source.modalities.items()
    )
    tables = sum(path.stat().st_size for path in source.inputs if path.suffix.lower() == ".parquet")
    held = _PROGRAM_BYTES + source.resident_bytes + min(tables, 1 << 30) + 2 * nodes
    # The pairs go before the topology is written, the indices after it.
    disk = max(index * (2 * m + arcs), index * arcs + topology, topology + nodes + features + raw)
    return Needs(held + checks + max(edges, topology, blocks), disk)


def check(needs: Needs, target: Path, done: int, say: Callable[[str], None]) -> None:
    """Say what is needed and what there is.

    Args:
        needs: the estimate.
        target: where the store is to stand.
        done: bytes of it that an interrupted run has written already.
        say: takes lines for people.

    Raises:
        InputError: the disk has too little room.
    """
    folder = next(parent for parent in target.parents if parent.exists())
    free = shutil.disk_usage(folder).free
    memory = psutil.virtual_memory().available
    disk = max(0, needs.disk - done)
    say(
        f"needs up to about {_size(needs.memory)} of memory ({_size(memory)} available) and {_size(disk)} of disk "
        f"({_size(free)} free)"
    )
    if disk > free:
        raise InputError(
            f"{target}: needs about {disk:,} bytes of disk and {folder} has {free:,}; free some or name a folder on "
            "another disk"
        )
    if needs.memory > memory:
        say("warning: that is more memory than there is; if it is killed, close other programs and run it again")


def _size(count: int) -> str:
    amount, unit = float(count), "bytes"
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if amount < 1000 or unit == "TB":
            break
        amount /= 1000
    return f"{amount:.3g} {unit}"
