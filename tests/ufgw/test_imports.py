"""``optimag_dist.ufgw`` needs torch and nothing else."""

import subprocess
import sys

SCRIPT = """
import sys

class Forbid:
    names = {"numba", "pyarrow", "ray", "dgl", "pydantic", "yaml", "scipy", "pandas", "typer", "rich", "torchmetrics"}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ImportError(f"{name} must not be needed")

sys.meta_path.insert(0, Forbid())
import optimag_dist.ufgw
ours = {name for name in sys.modules if name.startswith("optimag_dist")}
foreign = {name for name in ours if name != "optimag_dist" and not name.startswith("optimag_dist.ufgw")}
assert not foreign, foreign
"""


def test_imports_with_torch_alone():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
