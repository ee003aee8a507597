"""Search spaces: what is drawn from them, and the doors in front of a sweep."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from optimag_dist.options import dump_options, load_options, validate_options
from optimag_dist.train.options import RunConfig
from optimag_dist.tune.options import SchedulerOptions, SweepOptions, load_sweep
from optimag_dist.tune.space import as_optuna, configure, corners, from_optuna, known_points, priors_needed, values_of
from optimag_dist.types import InputError


def _options(space: dict, **others: object) -> SweepOptions:
    return validate_options(SweepOptions, {"space": space, **others}, "space.yaml")


@pytest.fixture
def config() -> RunConfig:
    return RunConfig(name="toy", store=Path("nowhere"))


@pytest.mark.parametrize(
    ("space", "others", "words"),
    [
        ({"train.lr": {"uniform": [0.1]}}, {}, r"uniform needs \[low, high\], low below high"),
        ({"train.lr": {"uniform": [0.9, 0.1]}}, {}, "low below high"),
        ({"train.lr": {"loguniform": [0, 1]}}, {}, "both above 0"),
        ({"train.lr": {"normal": [0, 1]}}, {}, "unknown distribution 'normal'; known: uniform"),
        ({"train.lr": 0.1}, {}, "needed one of uniform"),
        ({"model.backbone": {"choice": []}}, {}, "choice needs a list of values"),
        ({"model.hidden": {"randint": ["a", "b"]}}, {}, "randint needs"),
        ({"ppr.teleport": {"uniform": [0.1, 0.5]}}, {}, "ppr.teleport is searched by uniform; every value is an artef"),
        ({"train.lr": {"uniform": [0, 1]}}, {"search": {"method": "grid"}}, "needs lists, and train.lr is uniform"),
        ({"train.lr": {"grid": [0.1]}}, {}, "train.lr: grid needs search.method=grid"),
        ({"train.lr": {"grid": [1]}}, {"search": {"method": "grid", "trials": 3}}, "leave search.trials out"),
        ({}, {}, "space"),
        ({"train.lr": {"choice": [1]}}, {"metrics": {"val/accuracy": "most"}}, "metrics.val/accuracy"),
        ({"train.lr": {"choice": [1]}}, {"sheduler": {}}, "did you mean 'scheduler'"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused(space: dict, others: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        _options(space, **others)


@pytest.mark.parametrize(
    ("point", "words"),
    [
        ({"regulariser.alpah": 0.1}, "did you mean 'regulariser.alpha'"),
        ({"seeds": [1]}, "unknown key 'seeds'"),
        ({"regulariser.alpha": 1.5}, "key 'regulariser.alpha'.*less than or equal to 1"),
        ({"train.workers": 1}, "train.workers cannot be searched: all trials ask for the same places"),
        ({"regulariser": 1}, "regulariser"),
    ],
)
def test_a_point_that_is_no_configuration_is_refused(point: dict, words: str, config: RunConfig) -> None:
    with pytest.raises(InputError, match=words):
        configure(config, point, "space")


SPACE = {
    "regulariser.alpha": {"uniform": [0.1, 0.9]},
    "regulariser.rho": {"loguniform": ["1e-3", 1]},
    "model.dropout": {"quniform": [0, 0.6, 0.2]},
    "model.hidden": {"randint": [16, 18]},
    "sampling.fanouts": {"choice": [[5, 5], [10, 10]]},
}


def test_random_points_are_drawn_from_their_distributions_and_again_by_the_seed(config: RunConfig) -> None:
    options = _options(SPACE, search={"trials": 400, "seed": 3})
    points = known_points(options)
    assert points is not None
    assert points == known_points(options)
    assert points != known_points(_options(SPACE, search={"trials": 400, "seed": 4}))
    columns = {key: [point[key] for point in points] for key in SPACE}
    assert 0.1 <= min(columns["regulariser.alpha"]) < 0.15
    assert 0.85 < max(columns["regulariser.alpha"]) <= 0.9
    # Half of a log-uniform draw lies below the geometric mean.
    below = np.mean(np.array(columns["regulariser.rho"]) < np.sqrt(1e-3))
    assert 0.4 < below < 0.6
    assert sorted({round(v, 9) for v in columns["model.dropout"]}) == [0, 0.2, 0.4, 0.6]
    assert set(columns["model.hidden"]) == {16, 17}
    assert {tuple(v) for v in columns["sampling.fanouts"]} == {(5, 5), (10, 10)}
    trial = configure(config, points[0], "space")
    assert values_of(trial, ["regulariser.alpha", "sampling.fanouts"]) == {
        "regulariser.alpha": points[0]["regulariser.alpha"],
        "sampling.fanouts": str(points[0]["sampling.fanouts"]),
    }


def test_optuna_draws_from_the_same_space() -> None:
    import optuna

    options = _options(SPACE, search={"method": "tpe"})
    assert known_points(options) is None
    study = optuna.create_study()
    points = [from_optuna(options, study.ask(as_optuna(options)).params) for _ in range(50)]
    assert {p["model.hidden"] for p in points} == {16, 17}
    assert {tuple(p["sampling.fanouts"]) for p in points} == {(5, 5), (10, 10)}
    assert {round(p["model.dropout"], 9) for p in points} == {0, 0.2, 0.4, 0.6}
    assert all(1e-3 <= p["regulariser.rho"] <= 1 for p in points)


def test_a_grid_has_every_combination_and_corners_every_end() -> None:
    options = _options({"a.b": {"grid": [1, 2, 3]}, "c.d": {"choice": ["x", "y"]}}, search={"method": "grid"})
    assert known_points(options) == [{"a.b": n, "c.d": w} for n in (1, 2, 3) for w in ("x", "y")]
    ends = corners(_options(SPACE))
    assert {p["regulariser.alpha"] for p in ends} == {0.1, 0.9}
    assert {p["model.hidden"] for p in ends} == {16, 17}


def test_one_prior_per_distinct_value_and_none_without_the_regulariser(config: RunConfig) -> None:
    space = {"ppr.teleport": {"choice": [0.1, 0.2]}, "regulariser.alpha": {"uniform": [0, 1]}}
    random = _options(space, search={"trials": 20})
    assert sorted(p.teleport for p in priors_needed(config, random, known_points(random))) == [0.1, 0.2]
    tpe = _options({**space, "ppr.k": {"choice": [8, 16]}}, search={"method": "tpe"})
    assert len(priors_needed(config, tpe, None)) == 4
    plain = config.model_copy(update={"regulariser": config.regulariser.model_copy(update={"weight": 0.0})})
    assert priors_needed(plain, random, known_points(random)) == []


def test_milestones_of_successive_halving() -> None:
    assert SchedulerOptions(method="asha", grace=2, reduction=3).milestones(54) == [2, 6, 18]
    assert SchedulerOptions().milestones(54) == []


def test_a_sweep_is_read_with_its_overrides_and_around_one_variant(tmp_path: Path) -> None:
    run = {"name": "toy", "store": "nowhere", "variants": {"a": {"train.lr": 0.5}, "b": {}}, "compare_to": {"a": "b"}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    options = _options({"regulariser.alpha": {"uniform": [0, 1]}, "train.epochs": {"choice": [3]}})
    dump_options(options, tmp_path / "space.yaml")
    assert load_options(SweepOptions, tmp_path / "space.yaml") == options

    files = tmp_path / "run.yaml", tmp_path / "space.yaml"
    config, sweep = load_sweep(*files, ["search.trials=4", "variant=a", "train.patience=2", "seeds=[1, 2]"])
    assert (config.train.lr, config.train.patience, config.seeds, config.variants) == (0.5, 2, (1, 2), {})
    assert sweep.search.trials == 4
    with pytest.raises(InputError, match="add variant=NAME, one of a, b"):
        load_sweep(*files, [])
    with pytest.raises(InputError, match="has no variants; leave it out"):
        load_sweep(*files, ["variant=a", "variants={}", "compare_to={}"])


def test_the_space_that_comes_with_the_project_fits_the_demo() -> None:
    root = Path(__file__).parents[2]
    config, options = load_sweep(
        root / "optimag_dist/datasets/openmoji/demo.yaml", root / "jobs/tune_space.yaml", ["seeds=[0]"]
    )
    for point in corners(options):
        configure(config, point, "space")
    assert options.scheduler.milestones(config.train.epochs)
