"""The graph store: a memory-mapped directory made from a user's tables."""

from optimag_dist.store.ingest import ingest
from optimag_dist.store.link_queries import LinkQueries, LinkSplit
from optimag_dist.store.link_split import LinkSplitOptions, check_no_leak, split_links
from optimag_dist.store.partition import PartitionOptions, partition_store
from optimag_dist.store.reader import GraphStore
from optimag_dist.store.schema import IngestSchema
from optimag_dist.store.shards import Partition
