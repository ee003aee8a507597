"""From a graph store and a PPR artefact to training batches."""

from optimag_dist.sampling.batcher import SamplingOptions, SeedBatcher
from optimag_dist.sampling.loader import Ask, GroupLoader, nodes_alone
from optimag_dist.sampling.neighbours import BlockSampler
from optimag_dist.sampling.raw import RawRows, check_encoders
from optimag_dist.sampling.rows import GraphRows, HidingRows, StoreRows
from optimag_dist.sampling.sharded import ShardedRows, ShardOwner

__all__ = [
    "Ask",
    "BlockSampler",
    "GraphRows",
    "GroupLoader",
    "HidingRows",
    "RawRows",
    "SamplingOptions",
    "SeedBatcher",
    "ShardOwner",
    "ShardedRows",
    "StoreRows",
    "check_encoders",
    "nodes_alone",
]
