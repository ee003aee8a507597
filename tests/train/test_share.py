"""The regulariser's share of the encoders' gradient, against what torch says of each of the two losses by itself."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from optimag_dist.train.share import GradientShare

torch.set_num_threads(1)


class Toy:
    """Two encoders, a task's loss and a regulariser of what they put out; nobody trains it, so gradients stay."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.x = {"text": torch.randn(9, 4, generator=generator), "image": torch.randn(9, 3, generator=generator)}
        self.encoders = [torch.randn(x.shape[1], 5, generator=generator).requires_grad_() for x in self.x.values()]
        self.targets = torch.randn(9, 5, generator=generator)

    def encode(self) -> dict[str, Tensor]:
        return {m: torch.tanh(x @ w) for (m, x), w in zip(self.x.items(), self.encoders, strict=True)}

    def task(self, z: dict[str, Tensor], scale: float = 1.0) -> Tensor:
        return scale * sum((each - self.targets).square().sum() for each in z.values())

    def regulariser(self, z: dict[str, Tensor]) -> Tensor:
        return (z["text"] @ z["image"].T).square().mean()

    def slopes(self, scale: float = 1.0) -> tuple[Tensor, Tensor]:
        """Gradients of the two to all that the encoders put out."""
        z = self.encode()
        pair = (
            torch.autograd.grad(f, list(z.values()), retain_graph=True) for f in (self.task(z), self.regulariser(z))
        )
        task, regulariser = (torch.cat([g.flatten() for g in each]).double() for each in pair)
        return scale * task, regulariser

    def step(self, share: GradientShare, epoch: int, scale: float = 1.0) -> tuple[float, list[Tensor]]:
        """λ of a step, and the gradients that reached the encoders."""
        weight = share.begin(epoch, torch.device("cpu"))
        copies = {m: share.split(z) for m, z in self.encode().items()}
        of_task, of_regulariser = ({m: each[i] for m, each in copies.items()} for i in range(2))
        loss = self.task(of_task, scale) + self.regulariser(of_regulariser)
        found = torch.autograd.grad(loss, self.encoders)
        share.settle(1)
        return float(weight), list(found)

    def expected(self, weight: float) -> list[Tensor]:
        z = self.encode()
        return list(torch.autograd.grad(self.task(z) + weight * self.regulariser(z), self.encoders))


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    share=st.floats(0.01, 10),
    strength=st.floats(0.05, 1),
    warm_up=st.integers(0, 6),
    epoch=st.integers(0, 9),
)
def test_lambda_gives_the_regulariser_its_share_of_the_tasks_gradient(
    seed: int, share: float, strength: float, warm_up: int, epoch: int
) -> None:
    toy, held = Toy(seed), GradientShare(share, warm_up, strength)
    task, regulariser = toy.slopes()
    rising = min(1.0, epoch / warm_up) if warm_up else 1.0
    aimed = share * strength * rising
    first, gradients = toy.step(held, epoch)
    # Nothing was measured yet.
    assert first == 0
    weights = [toy.step(held, epoch) for _ in range(3)]
    for weight, found in [(first, gradients), *weights]:
        for mine, theirs in zip(found, toy.expected(weight), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))
    for weight, _ in weights:
        assert weight == pytest.approx(aimed * float(task.norm() / regulariser.norm()), rel=1e-5)
    taken = held.take()
    cosine = float(task @ regulariser / task.norm() / regulariser.norm())
    assert taken["regulariser/weight"] == pytest.approx(sum(w for w, _ in weights) / 4, rel=1e-6)
    assert taken["regulariser/share"] == pytest.approx(aimed * 3 / 4, rel=1e-5)
    assert taken["regulariser/cosine"] == pytest.approx(cosine, abs=1e-5)
    if abs(cosine) > 1e-4:
        assert taken["regulariser/opposed"] == (cosine < 0)
    assert held.take() == {}


def test_lambda_rises_from_nothing_over_the_warm_up_and_stays() -> None:
    toy, held = Toy(0), GradientShare(2.0, warm_up=4)
    toy.step(held, 0)
    weights = [toy.step(held, epoch)[0] for epoch in range(8)]
    assert weights[0] == 0
    assert [weight / weights[-1] for weight in weights] == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1, 1, 1])


def test_lambda_follows_the_gradients_slowly() -> None:
    """A task whose gradient is suddenly ten times as large: the ratio is between that before and that after."""
    toy, held = Toy(1), GradientShare(1.0, warm_up=0)
    (task, regulariser), weights = toy.slopes(), []
    for step in range(200):
        weights.append(toy.step(held, 0, scale=10.0 if step >= 50 else 1.0)[0])
    before = float(task.norm() / regulariser.norm())
    assert weights[1:51] == pytest.approx([before] * 50, rel=1e-5)
    assert before < weights[51] < 5 * before
    assert weights[51:] == sorted(weights[51:])
    assert 9.9 * before < weights[-1] < 10.001 * before


def test_its_state_is_all_that_it_goes_on_from() -> None:
    toy, held, resumed = Toy(2), GradientShare(0.7, warm_up=3), GradientShare(0.7, warm_up=3)
    for step in range(5):
        toy.step(held, 2, scale=1.0 + step)
    # It is saved and taken up as part of whatever module it is in.
    nn.ModuleDict({"share": resumed}).load_state_dict(nn.ModuleDict({"share": held}).state_dict())
    for step in range(3):
        (weight, mine), (again, theirs) = (toy.step(each, 2, scale=3.0 - step) for each in (held, resumed))
        assert weight == again
        assert all(torch.equal(x, y) for x, y in zip(mine, theirs, strict=True))
    assert held.take() == resumed.take() != {}
    assert not list(held.parameters())


@pytest.mark.parametrize("of_regulariser", [None, 0.0, math.nan])
def test_a_step_that_lacks_one_of_the_two_is_not_measured(of_regulariser: float | None) -> None:
    toy, held = Toy(3), GradientShare(1.0, warm_up=0)
    toy.step(held, 0)
    before = {name: x.clone() for name, x in held.state_dict().items()}
    assert float(held.begin(0, torch.device("cpu"))) > 0
    z = toy.encode()
    copies = {m: held.split(x) for m, x in z.items()}
    loss = toy.task({m: each[0] for m, each in copies.items()})
    if of_regulariser is not None:
        loss = loss + of_regulariser * toy.regulariser({m: each[1] for m, each in copies.items()})
    loss.backward()
    held.settle(1)
    assert all(torch.equal(x, before[name]) for name, x in held.state_dict().items())
