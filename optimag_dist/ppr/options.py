"""Options of the PPR computation."""

from pydantic import Field

from optimag_dist.options import Options


class PPROptions(Options):
    """Attributes:
    teleport: β in (0, 1), the probability to jump back to the source at each step.
    eps: residual allowed per degree; each entry is at most eps·degree too small. Ten times smaller is about ten
        times slower.
    k: entries kept per node.
    block_size: nodes per task and per file. It changes neither the result nor the artefact's key.
    """

    teleport: float = Field(0.15, gt=0, lt=1)
    eps: float = Field(1e-4, gt=0, allow_inf_nan=False)
    k: int = Field(32, ge=1, le=65536)
    block_size: int = Field(8192, ge=1, le=32767)
