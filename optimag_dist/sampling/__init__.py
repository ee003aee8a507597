"""From a graph store and a PPR artefact to training batches."""

from optimag_dist.sampling.batcher import SamplingOptions, SeedBatcher
from optimag_dist.sampling.loader import GroupLoader
from optimag_dist.sampling.neighbours import BlockSampler

__all__ = ["BlockSampler", "GroupLoader", "SamplingOptions", "SeedBatcher"]
