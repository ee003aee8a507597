"""What a fresh interpreter has loaded after importing a part of the package: Ray nowhere but at the boundary, and what
takes long only where it is needed."""

import subprocess
import sys
from collections.abc import Collection

import pytest

LIST = "import sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"


def _loaded(*imports: str) -> Collection[str]:
    code = "; ".join([*imports, LIST])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_kernels_data_and_the_training_loop_load_without_ray() -> None:
    # All in one interpreter: none of them, alone or after the others, may load it.
    modules = (
        "ufgw",
        "store",
        "ppr",
        "datasets",
        "sampling",
        "models",
        "tasks",
        "train.fit",
        "inference.trained",
        "report",
    )
    loaded = _loaded("from optimag_dist import OptiMAG", *(f"import optimag_dist.{name}" for name in modules))
    assert "torch" in loaded
    assert "ray" not in loaded


@pytest.mark.parametrize(
    ("statement", "slow"),
    [
        ("from optimag_dist import OptiMAG", {"numba", "pandas", "pyarrow", "pydantic", "ray", "rich", "typer"}),
        ("import optimag_dist.datasets, optimag_dist.store, optimag_dist.ppr.driver", {"dgl", "pandas", "torch"}),
        ("import optimag_dist.cli", {"dgl", "numba", "numpy", "pandas", "pyarrow", "pydantic", "ray", "torch"}),
    ],
)
def test_nothing_is_loaded_that_takes_long_and_is_not_needed(statement: str, slow: set[str]) -> None:
    assert not slow & _loaded(statement)
