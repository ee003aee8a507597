"""Options of the PPR computation."""

from typing import Literal

from pydantic import Field

from optimag_dist.options import Options


class PPROptions(Options):
    """Attributes:
    teleport: β in (0, 1), the probability to jump back to the source at each step.
    eps: residual allowed per degree; each entry is at most eps·degree too small. Ten times smaller is about ten
        times slower.
    k: entries kept per node. What follows changes neither the result nor the artefact's key.
    block_size: nodes per task and per file.
    placement: replicated maps the whole topology on every host; sharded has actors that own parts of it and fetch
        the rest, for a graph larger than a host. It needs ``optimag partition``.
    partition: which partition of the store the actors share out; default: the only one there is.
    actors: of a sharded run; default: the cores of the cluster.
    row_cache_mb: memory of an actor for adjacency rows, of which it keeps the newest.
    in_flight_mb: rows an actor asks others for at a time.
    """

    teleport: float = Field(0.15, gt=0, lt=1)
    eps: float = Field(1e-4, gt=0, allow_inf_nan=False)
    k: int = Field(32, ge=1, le=65536)
    block_size: int = Field(8192, ge=1, le=32767)
    placement: Literal["replicated", "sharded"] = "replicated"
    partition: str | None = None
    actors: int | None = Field(None, ge=1)
    row_cache_mb: float = Field(256, gt=0, le=8191)
    in_flight_mb: float = Field(16, gt=0, allow_inf_nan=False)
