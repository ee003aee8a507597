"""From a graph store and a PPR artefact to training batches."""

from optimag_dist.sampling.batcher import SamplingOptions, SeedBatcher
from optimag_dist.sampling.loader import GroupLoader
from optimag_dist.sampling.neighbours import BlockSampler
from optimag_dist.sampling.rows import GraphRows, StoreRows
from optimag_dist.sampling.sharded import ShardedRows, ShardOwner

__all__ = [
    "BlockSampler",
    "GraphRows",
    "GroupLoader",
    "SamplingOptions",
    "SeedBatcher",
    "ShardOwner",
    "ShardedRows",
    "StoreRows",
]
