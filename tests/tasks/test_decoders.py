"""Decoders against their formulae in float64, pair by pair."""

import itertools

import pytest
import torch
from torch import Tensor

from optimag_dist.tasks import link_prediction
from optimag_dist.tasks.link_prediction import Decoder, DotDecoder, MLPDecoder, make_decoder

WIDTH = 7
NAMES = ("dot", "mlp")


def _decoder(name: link_prediction.DecoderName) -> Decoder:
    torch.manual_seed(0)
    return make_decoder(name, WIDTH).double()


def _by_hand(decoder: Decoder, u: Tensor, v: Tensor) -> float:
    if isinstance(decoder, DotDecoder):
        return sum(float(a) * float(b) for a, b in zip(u, v, strict=True))
    first, _, last = decoder.layers
    return (last.weight[0] @ (first.weight @ (u * v) + first.bias).clamp(min=0) + last.bias).item()


def test_names_are_kinds() -> None:
    assert (type(_decoder("dot")), type(_decoder("mlp"))) == (DotDecoder, MLPDecoder)


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_the_formula_one_by_one_and_all_at_once(
    name: link_prediction.DecoderName, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, u, v = _decoder(name), torch.randn(6, WIDTH).double(), torch.randn(5, WIDTH).double()
    expected = torch.tensor([[_by_hand(decoder, a, b) for b in v] for a in u], dtype=torch.float64)
    torch.testing.assert_close(decoder(u[:5], v), expected.diagonal(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(decoder(u[:, None], v), expected, rtol=1e-12, atol=1e-12)
    # All queries at once, four and then two, one by one.
    for entries in (1 << 20, 4 * v.numel(), 1):
        monkeypatch.setattr(link_prediction, "_ENTRIES", entries)
        torch.testing.assert_close(decoder.score_all(u, v), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_an_edge_scores_the_same_from_both_ends(name: link_prediction.DecoderName) -> None:
    decoder, h = _decoder(name), torch.randn(9, WIDTH).double()
    table = decoder.score_all(h, h)
    torch.testing.assert_close(table, table.T, rtol=1e-13, atol=1e-13)
    for i, j in itertools.combinations(range(9), 2):
        assert torch.equal(decoder(h[i], h[j]), decoder(h[j], h[i]))


def test_the_table_of_all_pairs_is_made_in_bounded_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, sizes = MLPDecoder(WIDTH), []
    decoder.layers[1].register_forward_pre_hook(lambda module, inputs: sizes.append(inputs[0].numel()))
    monkeypatch.setattr(link_prediction, "_ENTRIES", 1000)
    decoder.score_all(torch.randn(50, WIDTH), torch.randn(40, WIDTH))
    assert sum(sizes) == 50 * 40 * WIDTH
    assert max(sizes) <= 1000


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_states_and_weights(name: link_prediction.DecoderName) -> None:
    decoder, u, v = _decoder(name), torch.randn(4, WIDTH).double(), torch.randn(4, WIDTH).double()
    assert torch.autograd.gradcheck(decoder, (u.requires_grad_(), v.requires_grad_()))
    decoder(u, v).sum().backward()
    assert all(parameter.grad is not None for parameter in decoder.parameters())
