import inspect
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from optimag_dist import OptiMAG
from optimag_dist.ppr import PPRArtefact, PPROptions
from optimag_dist.ppr.artefact import artefact_key
from optimag_dist.ppr.block import block_name, write_block
from optimag_dist.types import InputError
from optimag_dist.ufgw import UFGWRegulariser

torch.set_num_threads(1)


def dense_prior(nodes: int = 12) -> torch.Tensor:
    walk = torch.rand(nodes, nodes, generator=torch.Generator().manual_seed(0)) ** 8
    return 0.5 * torch.eye(nodes) + 0.5 * walk / walk.sum(1, keepdim=True)


class Lookup:
    """A user's own prior."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values.numpy()

    def submatrix(self, node_ids: np.ndarray) -> np.ndarray:
        return self.values[np.ix_(node_ids, node_ids)]


def embeddings(nodes: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {"text": torch.randn(nodes, 3, generator=generator), "image": torch.randn(nodes, 4, generator=generator)}


@pytest.mark.parametrize(
    "options",
    [
        {"plan": "transport", "rho": 0.2, "weight": 0.5},
        {"plan": "local", "rho": 0.2, "weight": 0.5, "agreement": 0.7, "consistency": 0.4, "differentiate": True},
    ],
)
def test_it_is_the_regulariser_on_the_priors_submatrix(options):
    prior, ids = dense_prior(), torch.tensor([7, 2, 11, 0, 5])
    Z = {name: z.requires_grad_() for name, z in embeddings(5).items()}
    optimag = OptiMAG(prior, **options)
    loss = optimag(Z, ids)
    expected = UFGWRegulariser(**options)(Z, prior[ids][:, ids])
    torch.testing.assert_close(loss, expected, rtol=0, atol=0)
    torch.testing.assert_close(OptiMAG(Lookup(prior), **options)(Z, ids), expected, rtol=0, atol=0)
    loss.backward()
    assert all((z.grad != 0).any() for z in Z.values())
    assert optimag.diagnostics().kept_mass["image"].shape == (5,)


def test_presence_is_handed_on():
    present = torch.tensor([True, True, False, True])
    optimag = OptiMAG(dense_prior())
    optimag(embeddings(4), torch.arange(4), {"image": present})
    assert optimag.diagnostics().kept_mass["image"].isnan().tolist() == [False, False, True, False]


def test_a_dense_prior_moves_with_the_module_and_stays_out_of_the_state():
    optimag = OptiMAG(dense_prior())
    assert optimag.state_dict() == {}
    assert [name for name, _ in optimag.named_buffers()] == ["dense"]
    assert not list(optimag.parameters())


def test_reads_an_artefact_by_its_path(tmp_path):
    prior, options = dense_prior(), PPROptions()
    rows, columns = np.meshgrid(np.arange(12), np.arange(12), indexing="ij")
    key = artefact_key("some graph", options)
    values, bounds = prior[rows, columns].numpy().ravel(), np.zeros(12, np.float32)
    checksum = write_block(tmp_path / block_name(0), key, 0, np.arange(13) * 12, columns.ravel(), values, bounds)
    PPRArtefact.finish(tmp_path, 12, options, "some graph", [checksum])
    Z, ids = embeddings(4), torch.tensor([7, 2, 11, 0])
    expected = OptiMAG(prior)(Z, ids)
    for given in (tmp_path, str(tmp_path), PPRArtefact.open(tmp_path)):
        torch.testing.assert_close(OptiMAG(given)(Z, ids), expected, rtol=0, atol=0)
    with pytest.raises(InputError, match="0 ≤ id < 12"):
        OptiMAG(tmp_path)(Z, ids + 5)
    with pytest.raises(InputError, match="nothing"):
        OptiMAG(tmp_path / "nothing")


def test_defaults_are_the_regularisers():
    ours = inspect.signature(OptiMAG).parameters
    theirs = inspect.signature(UFGWRegulariser).parameters
    assert {name: p.default for name, p in ours.items() if name not in ("prior", "anchor")} == {
        name: p.default for name, p in theirs.items() if name != "prior"
    }
    assert ours["anchor"].default == theirs["prior"].default


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([0, 1, 12], "0 ≤ id < 12"),
        ([-1, 1, 2], "range from -1"),
        ([3, 1, 3], "node 3 comes more than once"),
        ([3], "at least 2"),
        ([0.0, 1.0, 2.0], "LongTensor"),
    ],
)
def test_bad_node_ids_are_named(ids, message):
    with pytest.raises(InputError, match=message):
        OptiMAG(dense_prior())(embeddings(len(ids)), torch.tensor(ids))


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        (torch.zeros(3, 4), r"\(3, 4\)"),
        (torch.full((3, 3), math.nan), "NaN"),
        (-torch.eye(3), "minimum is -1"),
        (torch.zeros(3, 3, dtype=torch.int64), "int64"),
        (np.zeros((3, 3)), "torch.as_tensor"),
    ],
)
def test_bad_priors_are_named(prior, message):
    with pytest.raises(InputError, match=message):
        OptiMAG(prior)


@pytest.mark.parametrize("submatrix", [None, np.ones((4, 4), object), [[1.0], [1.0, 2.0]]])
def test_what_a_prior_of_ones_own_gives_is_checked(submatrix):
    prior = SimpleNamespace(submatrix=lambda node_ids: submatrix)
    with pytest.raises(InputError, match="prior: its submatrix"):
        OptiMAG(prior)({"a": torch.ones(4, 3)}, torch.arange(4))


def test_empty_embeddings_are_refused():
    with pytest.raises(InputError, match="at least one"):
        OptiMAG(dense_prior())({}, torch.arange(3))
