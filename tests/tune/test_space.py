"""Search spaces: what is drawn from them, and what is checked before a sweep."""

import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from optimag_dist.options import dump_options, load_options, validate_options
from optimag_dist.train.options import RunConfig
from optimag_dist.tune.options import SchedulerOptions, SweepOptions, load_sweep, metrics_of
from optimag_dist.tune.search import ParzenSearch
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
        ({"optim.lr": {"uniform": [0.1]}}, {}, r"uniform needs \[low, high\], low below high"),
        ({"optim.lr": {"uniform": [0.9, 0.1]}}, {}, "low below high"),
        ({"optim.lr": {"loguniform": [0, 1]}}, {}, "both above 0"),
        ({"optim.lr": {"normal": [0, 1]}}, {}, "unknown distribution 'normal'; known: uniform"),
        ({"optim.lr": 0.1}, {}, "needed one of uniform"),
        ({"model.backbone": {"choice": []}}, {}, "choice needs a list of values"),
        ({"model.hidden": {"randint": ["a", "b"]}}, {}, "randint needs"),
        ({"model.hidden": {"randint": [1.5, 4]}}, {}, "whole numbers"),
        ({"optim.lr": {"uniform": [0, float("inf")]}}, {}, "finite"),
        ({"optim.lr": {"grid": [1, 1]}}, {"search": {"method": "grid"}}, "lists a value twice"),
        ({"optim.lr": {"choice": [1]}}, {"search": {"trials": 0}}, "search.trials"),
        ({"optim.lr": {"choice": [1]}}, {"search": {"concurrency": -1}}, "search.concurrency"),
        ({"optim.lr": {"choice": [1]}}, {"search": {"time_budget_s": 0}}, "search.time_budget_s"),
        ({"optim.lr": {"choice": [1]}}, {"search": {"time_budget_s": float("inf")}}, "search.time_budget_s"),
        ({"ppr.teleport": {"uniform": [0.1, 0.5]}}, {}, "ppr.teleport is searched by uniform; every value is an artef"),
        ({"optim.lr": {"uniform": [0, 1]}}, {"search": {"method": "grid"}}, "needs lists, and optim.lr is uniform"),
        ({"optim.lr": {"grid": [0.1]}}, {}, "optim.lr: grid needs search.method=grid"),
        ({"optim.lr": {"grid": [1]}}, {"search": {"method": "grid", "trials": 3}}, "leave search.trials out"),
        ({}, {}, "space"),
        ({"optim.lr": {"choice": [1]}}, {"metrics": {"val/accuracy": "most"}}, "metrics.val/accuracy"),
        ({"optim.lr": {"choice": [1]}}, {"sheduler": {}}, "did you mean 'scheduler'"),
        ({"variant": {"uniform": [0, 1]}}, {}, "variant is searched by name: list the names with choice or grid"),
        ({"variant": {"randint": [0, 2]}}, {}, "variant is searched by name: list the names with choice or grid"),
        ({"variant": {"choice": ["a", "b"]}}, {"variant": "a"}, "space searches variant, so variant=a cannot be set"),
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
        ({"workers.count": 1}, "workers.count cannot be searched: all trials ask for the same places"),
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
    alone = known_points(_options({"model.hidden": SPACE["model.hidden"]}, search={"trials": 400, "seed": 3}))
    assert [point["model.hidden"] for point in alone or []] == columns["model.hidden"]
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
    points = [from_optuna(options.space, study.ask(as_optuna(options.space)).params) for _ in range(50)]
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


def test_a_search_that_is_written_down_keeps_the_secrets_of_a_place_to_itself(tmp_path: Path) -> None:
    secret = "hunter2"
    data = {"name": "a", "store": f"s3://me:{secret}@bucket/store", "out": str(tmp_path)}
    run = validate_options(RunConfig, data, "test")
    search = ParzenSearch(run, _options({"optim.lr": {"choice": [0.1, 0.2]}}, search={"method": "tpe", "trials": 2}))
    search.suggest("a")
    search.save(str(tmp_path / "searcher-state.pkl"))
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(written) == 2
    assert not any(secret.encode() in file.read_bytes() for file in written)


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
    run = {"name": "toy", "store": "nowhere", "variants": {"a": {"optim.lr": 0.5}, "b": {}}, "compare_to": {"a": "b"}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    options = _options({"regulariser.alpha": {"uniform": [0, 1]}, "train.epochs": {"choice": [3]}})
    dump_options(options, tmp_path / "space.yaml")
    assert load_options(SweepOptions, tmp_path / "space.yaml") == options
    endless = _options({"regulariser.rho": {"choice": [0.1, math.inf]}})
    dump_options(endless, tmp_path / "endless.yaml")
    assert load_options(SweepOptions, tmp_path / "endless.yaml") == endless

    files = tmp_path / "run.yaml", tmp_path / "space.yaml"
    config, sweep = load_sweep(*files, ["search.trials=4", "variant=a", "train.patience=2", "seeds=[1, 2]"])
    assert (config.optim.lr, config.train.patience, config.seeds, config.variants) == (0.5, 2, (1, 2), {})
    assert sweep.search.trials == 4
    with pytest.raises(InputError, match="add variant=NAME, one of a, b"):
        load_sweep(*files, [])
    with pytest.raises(InputError, match="has no variants; leave it out"):
        load_sweep(*files, ["variant=a", "variants={}", "compare_to={}"])


def test_variants_are_listed_as_they_are_spelt(tmp_path: Path) -> None:
    files = tmp_path / "run.yaml", tmp_path / "space.yaml"
    files[0].write_text(
        "name: toy\nstore: nowhere\nregulariser: {kind: local}\nvariants: {off: {regulariser.weight: 0}, on: {}}\n"
    )
    files[1].write_text(
        "space: {variant: {grid: [off, on]}, regulariser.differentiate: {grid: [no, yes]}}\nsearch: {method: grid}\n"
    )
    config, sweep = load_sweep(*files, [])
    points = known_points(sweep)
    assert points is not None
    assert [point["variant"] for point in points] == ["off", "off", "on", "on"]
    found = [configure(config, point, "space").regulariser for point in points]
    assert [(r.active, r.differentiate) for r in found] == list(itertools.product((False, True), repeat=2))
    files[1].write_text("space: {variant: {grid: [true]}}\nsearch: {method: grid}\n")
    with pytest.raises(InputError, match=r"variant lists True; .* has off, on \(YAML reads true and false as booleans"):
        load_sweep(*files, [])


@pytest.fixture
def varied() -> RunConfig:
    """Variants that change a backbone, a section at once, and nothing."""
    variants = {
        "gcn": {"model.backbone": "gcn", "optim.lr": 0.5},
        "plain": {"regulariser": {"weight": 0.0, "alpha": 0.2}},
        "base": {},
    }
    return RunConfig(name="toy", store=Path("nowhere"), variants=variants)


def test_a_grid_has_every_variant_by_name_with_every_other_value(varied: RunConfig) -> None:
    space = {"variant": {"grid": ["gcn", "plain", "base"]}, "optim.lr": {"grid": [0.1, 0.2]}}
    options = _options(space, search={"method": "grid"})
    points = known_points(options)
    assert points == [{"variant": v, "optim.lr": lr} for v in ("gcn", "plain", "base") for lr in (0.1, 0.2)]
    found = [configure(varied, point, "space") for point in points]
    weight = varied.regulariser.weight
    assert varied.regulariser.active
    assert [(c.model.backbone, c.regulariser.weight, c.optim.lr) for c in found] == [
        ("gcn", weight, 0.1),
        ("gcn", weight, 0.2),
        ("sage", 0.0, 0.1),
        ("sage", 0.0, 0.2),
        ("sage", weight, 0.1),
        ("sage", weight, 0.2),
    ]
    assert {point["variant"] for point in corners(options)} == {"gcn", "plain", "base"}


def test_variants_are_drawn_by_name_at_random_and_by_optuna() -> None:
    import optuna

    names = {"gcn", "plain"}
    random = known_points(_options({"variant": {"choice": ["gcn", "plain"]}}, search={"trials": 20}))
    assert random is not None
    assert {point["variant"] for point in random} == names
    options = _options({"variant": {"choice": ["gcn", "plain"]}}, search={"method": "tpe"})
    study = optuna.create_study()
    asked = [from_optuna(options.space, study.ask(as_optuna(options.space)).params) for _ in range(20)]
    assert {point["variant"] for point in asked} == names


def test_a_trial_takes_its_variant_and_then_the_other_keys(varied: RunConfig) -> None:
    assert configure(varied, {"variant": "gcn"}, "space") == varied.resolve()["gcn"]
    assert configure(varied, {"variant": "base"}, "space") == varied.resolve()["base"]
    # The point's own keys win, in whatever order, and leave the variant's others.
    for point in ({"variant": "gcn", "optim.lr": 0.01}, {"optim.lr": 0.01, "variant": "gcn"}):
        trial = configure(varied, point, "space")
        assert (trial.optim.lr, trial.model.backbone) == (0.01, "gcn")
    assert configure(varied, {"variant": "gcn", "regulariser.rho": math.inf}, "space").regulariser.rho == math.inf
    trial = configure(varied, {"variant": "plain", "regulariser.rho": 0.7}, "space")
    assert (trial.regulariser.weight, trial.regulariser.alpha, trial.regulariser.rho) == (0.0, 0.2, 0.7)
    assert trial.regulariser.agreement == varied.regulariser.agreement
    with pytest.raises(InputError, match=r"did you mean 'optim\.lr'"):
        configure(varied, {"variant": "gcn", "optim.lrr": 0.01}, "space")


def test_the_values_of_a_trial_leave_its_variant_out(varied: RunConfig) -> None:
    point = {"variant": "gcn", "train.epochs": 3}
    trial = configure(varied, point, "space")
    assert values_of(trial, [*point, "optim.lr"]) == {"train.epochs": 3, "optim.lr": 0.5}
    assert values_of(trial, ["variant"]) == {}


def test_priors_are_those_of_the_variants_that_need_one(varied: RunConfig) -> None:
    variants = {**varied.variants, "far": {"ppr.teleport": 0.05}}
    config = varied.model_copy(update={"variants": variants})
    options = _options({"variant": {"grid": ["gcn", "plain", "far"]}}, search={"method": "grid"})
    found = priors_needed(config, options, known_points(options))
    assert [ppr.teleport for ppr in found] == [config.ppr.teleport, 0.05]


def test_a_search_that_learns_has_the_priors_of_every_variant(varied: RunConfig) -> None:
    variants = {**varied.variants, "far": {"ppr.teleport": 0.05}}
    config = varied.model_copy(update={"variants": variants})
    names = {"variant": {"choice": ["gcn", "plain", "far"]}, "optim.lr": {"uniform": [0.1, 0.2]}}
    found = priors_needed(config, _options(names, search={"method": "tpe"}), None)
    assert [ppr.teleport for ppr in found] == [config.ppr.teleport, 0.05]
    assert priors_needed(config, _options({"variant": {"choice": ["plain"]}}, search={"method": "tpe"}), None) == []
    # A variant without the regulariser may get it from the search; then its prior is one more.
    weighted = {"variant": {"choice": ["plain", "far"]}, "regulariser.weight": {"uniform": [0, 1]}}
    found = priors_needed(config, _options(weighted, search={"method": "tpe"}), None)
    assert [ppr.teleport for ppr in found] == [config.ppr.teleport, 0.05]
    # What is searched beside it wins over what the variant says.
    searched = {"variant": {"choice": ["gcn", "far"]}, "ppr.teleport": {"choice": [0.1, 0.3]}}
    found = priors_needed(config, _options(searched, search={"method": "tpe"}), None)
    assert [ppr.teleport for ppr in found] == [0.1, 0.3]


def test_a_sweep_among_variants_keeps_them_and_refuses_unknown_ones(tmp_path: Path, varied: RunConfig) -> None:
    files = tmp_path / "run.yaml", tmp_path / "space.yaml"
    dump_options(varied, files[0])
    space = {"variant": {"grid": ["gcn", "plain"]}, "optim.lr": {"grid": [0.1, 0.2]}}
    dump_options(_options(space, search={"method": "grid"}), files[1])
    config, options = load_sweep(*files, ["train.patience=2"])
    assert list(config.variants) == ["gcn", "plain", "base"]
    assert config.train.patience == 2
    assert configure(config, {"variant": "gcn"}, "space").train.patience == 2
    assert options.space["variant"].arguments == ("gcn", "plain")

    dump_options(_options({"variant": {"choice": ["gcn", "gnc"]}}), files[1])
    with pytest.raises(InputError, match=r"space.yaml: variant lists 'gnc'; .*run.yaml has gcn, plain, base"):
        load_sweep(*files, [])
    for odd in (["gcn", "plain"], {"gcn": 1}, 5, None):
        dump_options(_options({"variant": {"choice": ["gcn", odd]}}), files[1])
        with pytest.raises(InputError, match=rf"space.yaml: variant lists {re.escape(repr(odd))}; .* has gcn, plain"):
            load_sweep(*files, [])
    dump_options(_options({"variant": {"choice": ["gcn", "gnc"]}}), files[1])
    with pytest.raises(InputError, match=r"variant lists 'gcn'; .*run.yaml has no variants"):
        load_sweep(*files, ["variants={}"])
    with pytest.raises(InputError, match="variant=gcn cannot be set beside it"):
        load_sweep(*files, ["variant=gcn"])


def test_without_metrics_a_sweep_goes_by_what_its_task_goes_by(tmp_path: Path, varied: RunConfig) -> None:
    files = tmp_path / "run.yaml", tmp_path / "space.yaml"
    files[1].write_text("space: {optim.lr: {choice: [0.1]}}")

    def metrics(task: dict, *overrides: str) -> dict[str, str]:
        dump_options(varied.model_copy(update={"variants": {}, "compare_to": {}}), files[0])
        run = yaml.safe_load(files[0].read_text())
        files[0].write_text(yaml.safe_dump({**run, "task": task}, sort_keys=False))
        return load_sweep(*files, list(overrides))[1].metrics

    links = {"kind": "link_prediction"}
    assert metrics({}) == {"val/accuracy": "max"}
    assert metrics(links) == {"val/mrr": "max"}
    assert metrics({"kind": "several", "tasks": {"l": links, "c": {"kind": "node_classification"}}}) == {
        "val/l/mrr": "max"
    }
    # What is named is taken as it is.
    assert metrics(links, "metrics={seconds: min}") == {"seconds": "min"}
    files[1].write_text("{space: {optim.lr: {choice: [0.1]}}, metrics: {val/accuracy: max}}")
    assert metrics({}) == {"val/accuracy": "max"}


def test_a_sweep_among_variants_goes_by_what_they_all_go_by(tmp_path: Path, varied: RunConfig) -> None:
    files = tmp_path / "run.yaml", tmp_path / "space.yaml"
    variants = {**varied.variants, "links": {"task": {"kind": "link_prediction"}}}
    dump_options(varied.model_copy(update={"variants": variants}), files[0])
    for names, expected in ((["links"], "val/mrr"), (["gcn", "plain"], "val/accuracy")):
        files[1].write_text(f"space: {{variant: {{choice: {names}}}}}")
        assert load_sweep(*files, [])[1].metrics == {expected: "max"}
    files[1].write_text("space: {optim.lr: {choice: [0.1]}}\nvariant: links")
    assert load_sweep(*files, [])[1].metrics == {"val/mrr": "max"}
    files[1].write_text("space: {variant: {choice: [gcn, links]}}")
    with pytest.raises(InputError, match=r"space.yaml: the variants searched have .* accuracy, mrr; say under metrics"):
        load_sweep(*files, [])
    assert load_sweep(*files, ["metrics={seconds: min}"])[1].metrics == {"seconds": "min"}


def test_less_is_better_where_the_figure_says_so() -> None:
    assert metrics_of("nll") == {"val/nll": "min"}
    assert metrics_of("words/bleu4") == {"val/words/bleu4": "max"}


def test_the_space_that_comes_with_the_project_fits_the_demo() -> None:
    root = Path(__file__).parents[2]
    config, options = load_sweep(
        root / "optimag_dist/datasets/openmoji/demo.yaml", root / "jobs/tune_space.yaml", ["seeds=[0]"]
    )
    for point in corners(options):
        configure(config, point, "space")
    assert options.scheduler.milestones(config.train.epochs)
