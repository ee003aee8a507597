import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.sparse import coo_array

from optimag_dist import LocalOptions, OptiMAG, RobustOptions, UFGWOptions
from optimag_dist.ppr import PPRArtefact, PPROptions, ppr_topk
from optimag_dist.ppr.artefact import artefact_key, block_name, write_block
from optimag_dist.types import InputError
from optimag_dist.ufgw import LocalRegulariser, RobustRegulariser, UFGWRegulariser

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
    ("make", "options"),
    [
        (UFGWRegulariser, UFGWOptions(rho=0.2, weight=0.5)),
        (RobustRegulariser, RobustOptions(rho=0.2, weight=0.5, agreement=0.7, stiffness=10)),
        (
            LocalRegulariser,
            LocalOptions(rho=0.2, weight=0.5, agreement=0.7, consistency=0.4, differentiate=True),
        ),
    ],
)
def test_it_is_the_regulariser_on_the_priors_submatrix(make, options):
    prior, ids = dense_prior(), torch.tensor([7, 2, 11, 0, 5])
    Z = {name: z.requires_grad_() for name, z in embeddings(5).items()}
    optimag = OptiMAG(prior, options)
    loss = optimag(Z, ids)
    expected = make(options)(Z, prior[ids][:, ids])
    torch.testing.assert_close(loss, expected, rtol=0, atol=0)
    torch.testing.assert_close(OptiMAG(Lookup(prior), options)(Z, ids), expected, rtol=0, atol=0)
    loss.backward()
    assert all((z.grad != 0).any() for z in Z.values())
    assert optimag.diagnostics().kept_mass["image"].shape == (5,)


def test_presence_is_handed_on():
    present = torch.tensor([True, True, False, True])
    optimag = OptiMAG(dense_prior())
    optimag(embeddings(4), torch.arange(4), {"image": present})
    assert optimag.diagnostics().kept_mass["image"].isnan().tolist() == [False, False, True, False]


def test_a_dense_prior_is_no_state_and_nothing_that_ranks_send_each_other():
    optimag = OptiMAG(dense_prior())
    assert optimag.state_dict() == {}
    assert not list(optimag.buffers())
    assert not list(optimag.parameters())
    Z, ids = embeddings(5), torch.tensor([7, 2, 11, 0, 5])
    torch.testing.assert_close(copy.deepcopy(optimag)(Z, ids), optimag(Z, ids), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_of_a_dense_prior_the_top_entries_of_an_artefact_are_kept(tmp_path, dtype):
    # A ring with a chord: many equal entries, of which the smaller ids stay.
    nodes, k = 24, 5
    ring = np.arange(nodes)
    pairs = np.concatenate([np.stack([ring, (ring + 1) % nodes], 1), [[0, nodes // 2]]])
    adjacency = coo_array((np.ones(2 * len(pairs)), np.concatenate([pairs, pairs[:, ::-1]]).T)).tocsr()
    indptr, columns, values = ppr_topk(adjacency.indptr, adjacency.indices, ring, eps=1e-9, k=nodes)
    rows = np.repeat(ring, np.diff(indptr))
    whole = torch.zeros(nodes, nodes)
    whole[rows, columns] = torch.as_tensor(values)
    # In PPR itself the diagonal is always among them.
    cut = OptiMAG(whole.to(dtype), k=k).prior.submatrix(ring)
    indptr, columns, values = ppr_topk(adjacency.indptr, adjacency.indices, ring, eps=1e-9, k=k)
    expected = np.zeros((nodes, nodes), np.float32)
    expected[np.repeat(ring, np.diff(indptr)), columns] = values
    np.testing.assert_array_equal(cut, expected)
    assert cut.dtype == np.zeros(0, str(dtype).removeprefix("torch.")).dtype


def test_of_a_dense_prior_the_diagonal_is_kept_even_where_it_is_small():
    prior = torch.ones(6, 6) - 0.9 * torch.eye(6)
    others = torch.tensor([[0, 1, 1, 0, 0, 0], [1, 0, 1, 0, 0, 0]] + [[1, 1, 0, 0, 0, 0]] * 4)
    kept = OptiMAG(prior, k=2).prior.submatrix(np.arange(6))
    np.testing.assert_allclose(kept, others + 0.1 * torch.eye(6), rtol=1e-6)
    assert (OptiMAG(prior).prior.submatrix(np.arange(6)) == prior.numpy()).all()
    assert (OptiMAG(torch.ones(40, 40)).prior.submatrix(np.arange(40)) > 0).sum(1).tolist() == [32] * 32 + [33] * 8


def test_an_embedding_of_length_zero_is_an_absent_one():
    Z = embeddings(5)
    Z["image"][3] = 0
    present = torch.tensor([True, True, True, False, True])
    for options in (RobustOptions(), LocalOptions(), UFGWOptions()):
        optimag, marked = OptiMAG(dense_prior(), options), OptiMAG(dense_prior(), options)
        loss = optimag(Z, torch.arange(5))
        torch.testing.assert_close(loss, marked(Z, torch.arange(5), {"image": present}), rtol=0, atol=0)
        found = optimag.diagnostics()
        assert found.kept_mass["image"].isnan().tolist() == (~present).tolist()
        assert {name: int(count) for name, count in found.without_direction.items()} == {"text": 0, "image": 1}
        assert int(marked.diagnostics().without_direction["image"]) == 0


def test_it_works_in_a_compiled_model():
    optimag = OptiMAG(dense_prior())
    linear = torch.nn.Linear(3, 4)

    def loss(z):
        return optimag({"text": linear(z)}, torch.arange(6)) + z.square().sum()

    z = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(torch.compile(loss, backend="eager")(z), loss(z))


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


def test_options_of_another_class_are_named():
    with pytest.raises(InputError, match="options: got dict, needed RobustOptions, UFGWOptions or LocalOptions"):
        OptiMAG(dense_prior(), {"rho": 0.2})


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([0, 1, 12], "0 ≤ id < 12"),
        ([-1, 1, 2], "range from -1"),
        ([3, 1, 3], "node 3 comes more than once"),
        ([3], "at least 2"),
        ([0.0, 1.0, 2.0], "LongTensor"),
        ([True, False, True], "bool"),
        (np.array([0, 1, 2]), "ndarray.*torch.as_tensor"),
        (None, "NoneType"),
    ],
)
def test_bad_node_ids_are_named(ids, message):
    with pytest.raises(InputError, match=message):
        OptiMAG(dense_prior())(embeddings(3), torch.tensor(ids) if isinstance(ids, list) else ids)


def test_node_ids_may_be_any_integers():
    Z, optimag = embeddings(4), OptiMAG(dense_prior())
    expected = optimag(Z, torch.arange(4))
    torch.testing.assert_close(optimag(Z, torch.arange(4, dtype=torch.int32)), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        (torch.zeros(3, 4), r"\(3, 4\)"),
        (torch.full((3, 3), math.nan), "NaN"),
        (-torch.eye(3), "minimum is -1"),
        (torch.zeros(3, 3, dtype=torch.int64), "int64"),
        (np.zeros((3, 3)), "torch.as_tensor"),
        (None, "NoneType"),
        ([[0.1]], "list"),
        (torch.zeros(0, 0), r"\(0, 0\)"),
        (torch.eye(3).to_sparse(), r"sparse_coo.*to_dense"),
        (torch.eye(3, dtype=torch.complex64), "complex64"),
        (torch.eye(3, requires_grad=True), "gradient.*detach"),
        (torch.eye(3, device="meta"), "meta"),
    ],
)
def test_bad_priors_are_named(prior, message):
    with pytest.raises(InputError, match=message):
        OptiMAG(prior)


@pytest.mark.parametrize("k", [0, 2.5, None])
def test_a_bad_number_of_entries_is_named(k):
    with pytest.raises(InputError, match=f"k={k}"):
        OptiMAG(dense_prior(), k=k)


@pytest.mark.parametrize("submatrix", [None, np.ones((4, 4), object), [[1.0], [1.0, 2.0]]])
def test_what_a_prior_of_ones_own_gives_is_checked(submatrix):
    prior = SimpleNamespace(submatrix=lambda node_ids: submatrix)
    with pytest.raises(InputError, match="prior: its submatrix"):
        OptiMAG(prior)({"a": torch.ones(4, 3)}, torch.arange(4))


def test_empty_embeddings_are_refused():
    with pytest.raises(InputError, match="at least one"):
        OptiMAG(dense_prior())({}, torch.arange(3))
