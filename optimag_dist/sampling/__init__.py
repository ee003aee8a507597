"""From a graph store and a PPR artefact to training batches."""

from optimag_dist.sampling.batcher import SamplingOptions, SeedBatcher
from optimag_dist.sampling.loader import ExampleFn, GroupLoader, nodes_alone
from optimag_dist.sampling.neighbours import BlockSampler
from optimag_dist.sampling.raw import RawRows, check_encoders
from optimag_dist.sampling.rows import FeaturelessRows, GraphDataSource, LocalSource, MaskedRows
from optimag_dist.sampling.sharded import ShardedSource, ShardServer
