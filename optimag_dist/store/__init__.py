"""The graph store: a memory-mapped directory made from a user's tables."""

from optimag_dist.store.ingest import ingest
from optimag_dist.store.reader import GraphStore
from optimag_dist.store.schema import IngestSchema

__all__ = ["GraphStore", "IngestSchema", "ingest"]
