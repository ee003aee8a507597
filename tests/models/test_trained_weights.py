"""State dicts without what is frozen."""

import pytest
import torch
from torch import nn

from optimag_dist.models.trained_weights import leave_out_frozen


def _made_of_all(seed: int) -> nn.Module:
    """A frozen part with a batch normalisation and a bare buffer, an adapted one, and a trained one with statistics."""
    torch.manual_seed(seed)
    frozen = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.BatchNorm1d(3, affine=False))
    frozen.requires_grad_(False)
    adapted = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3, bias=False))
    adapted[0].requires_grad_(False)
    trained = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3, affine=False), nn.Linear(3, 3))
    trained.register_buffer("scratchpad", torch.zeros(2), persistent=False)
    frozen.register_buffer("mask", torch.full((2,), float(seed)))
    frozen.register_buffer("positions", torch.zeros(2), persistent=False)
    return nn.ModuleDict({"frozen": frozen, "adapted": adapted, "trained": trained})


_KEPT = {"adapted.1.weight", "trained.2.weight", "trained.2.bias", "trained.0.weight", "trained.0.bias"} | {
    f"trained.{i}.{name}" for i in (0, 1) for name in ("running_mean", "running_var", "num_batches_tracked")
}


def test_what_is_trained_stays_and_nothing_else() -> None:
    module = _made_of_all(0)
    whole = module.state_dict()
    leave_out_frozen(module)
    state = module.state_dict()
    assert set(state) == _KEPT
    assert all(state[name].data_ptr() == whole[name].data_ptr() for name in state)


def test_it_goes_back_into_the_same_frozen_weights() -> None:
    ours, theirs, outer = _made_of_all(1), _made_of_all(2), nn.Module()
    for module in (ours, theirs):
        leave_out_frozen(module)
    outer.register_module("inner", theirs)
    before = {name: value.clone() for name, value in [*theirs.named_parameters(), *theirs.named_buffers()]}
    state = {f"inner.{name}": value for name, value in ours.state_dict().items()}
    outer.load_state_dict(state)
    after = dict([*theirs.named_parameters(), *theirs.named_buffers()])
    source = dict([*ours.named_parameters(), *ours.named_buffers()])
    for name, value in after.items():
        torch.testing.assert_close(value, (source if name in _KEPT else before)[name], rtol=0, atol=0)
    # The caller's dictionary is as it was.
    assert set(state) == {f"inner.{name}" for name in _KEPT}


def test_missing_trained_weights_are_still_an_error() -> None:
    module = _made_of_all(0)
    leave_out_frozen(module)
    state = module.state_dict()
    del state["adapted.1.weight"]
    with pytest.raises(RuntimeError, match=r"Missing key.*adapted\.1\.weight"):
        module.load_state_dict(state)


def test_a_state_with_the_frozen_weights_is_loaded_whole() -> None:
    module, whole = _made_of_all(1), _made_of_all(2).state_dict()
    leave_out_frozen(module)
    module.load_state_dict(whole)
    torch.testing.assert_close(module["frozen"][0].weight.data, whole["frozen.0.weight"], rtol=0, atol=0)
    torch.testing.assert_close(module["frozen"].mask, whole["frozen.mask"], rtol=0, atol=0)


def test_what_thaws_comes_back() -> None:
    module = _made_of_all(0)
    leave_out_frozen(module)
    module.requires_grad_(True)
    assert {"frozen.0.weight", "frozen.mask", "adapted.0.bias"} < set(module.state_dict())


def test_tied_weights_are_saved_under_both_names() -> None:
    tied = nn.ModuleDict({"embed": nn.Embedding(3, 2), "read": nn.Linear(2, 3, bias=False)})
    tied["read"].weight = tied["embed"].weight
    leave_out_frozen(tied)
    state = {name: value + 1 for name, value in tied.state_dict().items()}
    assert set(state) == {"embed.weight", "read.weight"}
    tied.load_state_dict(state)
    torch.testing.assert_close(tied["embed"].weight.data, state["embed.weight"], rtol=0, atol=0)
