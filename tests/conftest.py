"""Fixtures that several packages' tests share."""

from collections.abc import Iterator

import pytest
import ray


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One embedded Ray for the whole test run; with its dashboard, which Ray Train needs to clean up after itself."""
    ray.init(address="local", num_cpus=2, log_to_driver=False)
    yield
    ray.shutdown()
