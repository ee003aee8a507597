"""``optimag_dist.ufgw`` needs torch and nothing else; numba only makes it faster."""

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
import torch
from optimag_dist.ufgw import CosineCost, LocalRegulariser, SparseCost, solve_ufgw

z = torch.randn(12, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
proximity = 0.7 * torch.eye(12) + 0.3 * torch.eye(12).roll(1, 0)
C_m, C_G = CosineCost.from_embeddings(z), SparseCost.from_proximity(proximity)
for marginal in ("kl", "kl_tensor"):
    solution = solve_ufgw(C_m, C_G, C_G.anchor_cost(), marginal=marginal)
    assert solution.status.healthy.all() and solution.objective.isfinite()
loss = LocalRegulariser()({"text": z}, proximity)
loss.backward()
assert loss.isfinite() and z.grad.isfinite().all() and (z.grad != 0).any()

ours = {name for name in sys.modules if name.startswith("optimag_dist")}
foreign = {name for name in ours if name != "optimag_dist" and not name.startswith("optimag_dist.ufgw")}
assert not foreign, foreign
assert not {name for name in ours if name.startswith("optimag_dist.ufgw.compiled")}
print(float(solution.objective))
"""


def test_imports_and_solves_with_torch_alone():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0
