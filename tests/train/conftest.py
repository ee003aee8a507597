"""The planted graph's PPR."""

import pytest

from optimag_dist.ppr import PPRArtefact, PPROptions
from optimag_dist.ppr.driver import compute_ppr
from optimag_dist.store import GraphStore


@pytest.fixture(scope="session")
def planted_ppr(planted_store: GraphStore, ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> PPRArtefact:
    return compute_ppr(planted_store, PPROptions(), tmp_path_factory.mktemp("ppr") / "artefact")
