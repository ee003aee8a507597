"""What is said of results that were written by hand, against scipy's own tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats

from optimag_dist.experiments.analysis import Row, area, chosen_by_validation, findings, measures_of, summarise
from optimag_dist.experiments.detection import KEPT, MISMATCH, NEIGHBOURS
from optimag_dist.experiments.figures import draw_study
from optimag_dist.experiments.recipe import ExperimentOptions
from optimag_dist.options import validate_options

Summarise = Callable[..., list[Row]]


@pytest.fixture
def summarised(tmp_path: Path) -> Summarise:
    """Rows of ``results.parquet``, and keys of the study ``asked`` → what is made of them."""

    def summarise_(fits: list[dict[str, Any]], **study: Any) -> list[Row]:
        path = tmp_path / "results.parquet"
        columns = dict.fromkeys(key for fit in fits for key in fit)
        pq.write_table(pa.table({key: [fit.get(key) for fit in fits] for key in columns}), path)
        return summarise(_experiment(**study), path)["asked"]

    return summarise_


def _experiment(**study: Any) -> ExperimentOptions:
    data = {
        "name": "toy",
        "title": "Toy",
        "question": "?",
        "seeds": [0, 1, 2],
        "graphs": {"g": {"planted": {}}, "h": {"planted": {}}},
        "arms": {"plain": {}, "new": {}, "old": {}},
        "studies": {
            "asked": {"question": "?", "graphs": ["g", "h"], **study},
            "other": {"question": "?", "graphs": ["g"]},
        },
    }
    return validate_options(ExperimentOptions, data, "toy.yaml")


def _fits(arm: str, test: dict[int, float], val: float = 0.5, graph: str = "g", **others: Any) -> list[dict[str, Any]]:
    """A fit per seed with its test accuracy."""
    return [
        {"study": "asked", "graph": graph, "arm": arm, "seed": seed, "test/accuracy": accuracy, "val/accuracy": val}
        | {"seconds": 1.0 + seed, **others}
        for seed, accuracy in test.items()
    ]


def _detected(arm: str, seed: int, kept: float, mismatch: float, neighbours: float, **others: Any) -> dict[str, Any]:
    ways = {KEPT: kept, MISMATCH: mismatch, NEIGHBOURS: neighbours}
    row = {"study": "asked", "graph": "g", "arm": arm, "seed": seed, "seconds": 1.0}
    return row | {f"auc/{way}": value for way, value in ways.items()} | others


PLAIN = {0: 0.61, 1: 0.64, 2: 0.58, 3: 0.66, 4: 0.6}
NEW = {0: 0.66, 1: 0.67, 2: 0.63, 3: 0.7, 4: 0.68}


def test_means_come_with_students_interval(summarised: Summarise) -> None:
    (row,) = summarised(_fits("plain", PLAIN, val=0.7))
    values = list(PLAIN.values())
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert row.score is not None
    assert row.score.mean == pytest.approx(np.mean(values))
    assert (row.score.low, row.score.high) == pytest.approx((expected.low, expected.high))
    assert row.score.n == 5
    assert list(row.metrics) == ["test/accuracy", "val/accuracy"]
    validation = row.metrics["val/accuracy"]
    assert (validation.mean, validation.half_width) == pytest.approx((0.7, 0))
    assert row.seconds.mean == 3
    assert (row.study, row.graph, row.arm, dict(row.at), row.tuned) == ("asked", "g", "plain", {}, {})
    assert (row.difference, row.compared_with, row.areas, row.advantage) == (None, None, {}, None)


def test_fits_that_diverged_are_counted_and_in_no_mean(summarised: Summarise) -> None:
    lost = {"study": "asked", "graph": "g", "seconds": 1.0, "diverged": "loss nan"}
    fits = [*_fits("plain", PLAIN), *_fits("new", {0: 0.7}), {**lost, "arm": "new", "seed": 1}]
    fits += [{**lost, "arm": "old", "seed": seed} for seed in (0, 1)]
    plain, new, old = summarised(fits, compare={"new": "plain", "old": "plain"})
    assert [(row.diverged, row.score and row.score.n) for row in (plain, new, old)] == [(0, 5), (1, 1), (2, None)]
    assert new.difference is not None
    assert (new.difference.n, old.difference, old.seconds.n) == (1, None, 0)
    assert "Fits that diverged are in no mean and no difference: 1 of new on g; 2 of old on g." in findings(
        [plain, new, old]
    )
    assert draw_study(_experiment().studies["asked"], [plain, new, old])


def test_differences_are_paired_by_seed_whatever_their_order(summarised: Summarise) -> None:
    fits = [*_fits("plain", PLAIN), *_fits("new", NEW)[::-1]]
    plain, new = summarised(fits, compare={"new": "plain"})
    expected = stats.ttest_rel(list(NEW.values()), list(PLAIN.values())).confidence_interval(0.95)
    assert new.difference is not None
    assert (new.difference.low, new.difference.high) == pytest.approx((expected.low, expected.high))
    assert (new.compared_with, new.difference.n) == ("plain", 5)
    assert plain.difference is None
    # Unpaired the interval would be far wider.
    apart = stats.ttest_ind(list(NEW.values()), list(PLAIN.values())).confidence_interval(0.95)
    assert new.difference.half_width < (apart.high - apart.low) / 3


def test_a_seed_that_only_one_arm_has_counts_for_its_mean_and_for_no_difference(summarised: Summarise) -> None:
    fewer = {seed: value for seed, value in PLAIN.items() if seed not in (1, 4)}
    more = {**NEW, 9: 0.1}
    plain, new = summarised([*_fits("new", more), *_fits("plain", fewer)], compare={"new": "plain"})
    assert new.score is not None
    assert new.score.n == 6
    assert new.difference is not None
    gaps = [NEW[seed] - PLAIN[seed] for seed in (0, 2, 3)]
    expected = stats.ttest_1samp(gaps, 0).confidence_interval(0.95)
    assert (new.difference.low, new.difference.high) == pytest.approx((expected.low, expected.high))
    assert new.difference.n == 3
    # Rows are in the recipe's order, not the table's.
    assert [plain.arm, new.arm] == ["plain", "new"]


def test_without_a_common_seed_there_is_no_difference(summarised: Summarise) -> None:
    _, new = summarised([*_fits("plain", {0: 0.5}), *_fits("new", {1: 0.5})], compare={"new": "plain"})
    assert (new.difference, new.compared_with) == (None, None)
    (new,) = summarised(_fits("new", {1: 0.5}), compare={"new": "plain"})
    assert (new.difference, new.compared_with) == (None, None)


def test_settings_and_graphs_are_kept_apart(summarised: Summarise) -> None:
    fits = [
        fit
        for graph, step in (("g", 0.0), ("h", 0.2))
        for rho, gap in ((0.1, 0.03), (1.0, -0.02))
        for arm, more in (("plain", 0.0), ("new", gap))
        for fit in _fits(
            arm, {s: a + step + more for s, a in PLAIN.items()}, graph=graph, **{"at/regulariser.rho": rho}
        )
    ]
    np.random.default_rng(0).shuffle(fits)
    rows = summarised(fits, vary={"regulariser.rho": [0.1, 1.0]}, compare={"new": "plain"})
    assert len(rows) == 8
    found = {(row.graph, row.at["regulariser.rho"], row.arm): row for row in rows}
    for (graph, rho, arm), row in found.items():
        assert row.score is not None
        assert row.score.n == 5
        gap = {0.1: 0.03, 1.0: -0.02}[rho]
        middle = np.mean(list(PLAIN.values())) + (0.2 if graph == "h" else 0)
        assert row.score.mean == pytest.approx(middle + (gap if arm == "new" else 0))
        if arm == "new":
            assert row.difference is not None
            assert row.difference.mean == pytest.approx(gap)
            assert row.difference.half_width == pytest.approx(0, abs=1e-9)


def test_labels_and_two_axes_are_kept_apart(summarised: Summarise) -> None:
    fits = [
        fit
        for size in ("small", "big")
        for lr in (0.1, 0.2)
        for fit in _fits("plain", {0: 0.5 + lr + (size == "big") / 10}, **{"at/size": size, "at/optim.lr": lr})
    ]
    rows = summarised(fits, vary={"optim.lr": [0.1, 0.2], "size": {"small": {}, "big": {}}})
    assert [(row.at["size"], row.at["optim.lr"], row.score.mean) for row in rows if row.score] == [
        ("small", 0.1, pytest.approx(0.6)),
        ("small", 0.2, pytest.approx(0.7)),
        ("big", 0.1, pytest.approx(0.7)),
        ("big", 0.2, pytest.approx(0.8)),
    ]


def test_other_studies_are_not_read_and_an_unasked_one_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "results.parquet"
    pq.write_table(pa.Table.from_pylist(_fits("plain", PLAIN)), path)
    experiment = _experiment()
    assert [len(rows) for rows in summarise(experiment, path).values()] == [1, 0]
    assert list(summarise(experiment.model_copy(update={"only": ("other",)}), path)) == ["other"]


def test_tuned_values_are_those_of_the_arm(summarised: Summarise) -> None:
    fits = [*_fits("plain", PLAIN, **{"tuned/optim.lr": 0.5}), *_fits("new", NEW, **{"tuned/model.backbone": "gcn"})]
    plain, new = summarised(fits)
    assert (plain.tuned, new.tuned) == ({"optim.lr": 0.5}, {"model.backbone": "gcn"})


# -- sentences ---------------------------------------------------------------------------------------------------------


def test_findings_name_every_difference_and_count_the_others(summarised: Summarise) -> None:
    worse = {seed: value - 0.02 - 0.001 * seed for seed, value in PLAIN.items()}
    fits = [*_fits("plain", PLAIN), *_fits("new", NEW), *_fits("old", worse)]
    rows = summarised(fits, compare={"new": "plain", "old": "plain"})
    assert findings(rows) == [
        "new is better than plain on g: +5.00 ± 2.32 points of test accuracy, 5 seeds.",
        "old is worse than plain on g: −2.20 ± 0.20 points of test accuracy, 5 seeds.",
        "0 of 2 comparisons show no difference: their intervals include 0.",
    ]


def test_findings_say_where_and_warn_of_many_comparisons(summarised: Summarise) -> None:
    fits = [
        fit
        for rho in (0.1, 0.2, 0.3, 0.4)
        for arm in ("plain", "new")
        for fit in _fits(
            arm,
            {0: 0.5, 1: 0.6, 2: 0.7} if arm == "plain" or rho < 0.4 else {0: 0.61, 1: 0.7, 2: 0.8},
            **{"at/regulariser.rho": rho},
        )
    ]
    rows = summarised(fits, vary={"regulariser.rho": [0.1, 0.2, 0.3, 0.4]}, compare={"new": "plain"})
    assert findings(rows) == [
        "new is better than plain on g at regulariser.rho=0.4: +10.33 ± 1.43 points of test accuracy, 3 seeds.",
        "3 of 4 comparisons show no difference: their intervals include 0.",
        "Each interval stands alone: of twenty comparisons of equals about one leaves 0 out by chance.",
    ]


def test_one_seed_shows_nothing_and_without_comparisons_nothing_is_said(summarised: Summarise) -> None:
    rows = summarised([*_fits("plain", {0: 0.1}), *_fits("new", {0: 0.9})], compare={"new": "plain"})
    assert findings(rows) == ["1 of 1 comparisons show no difference: their intervals include 0."]
    assert findings(summarised(_fits("plain", PLAIN))) == []


def test_numbers_as_they_are_shown(summarised: Summarise) -> None:
    _, new = summarised([*_fits("plain", NEW), *_fits("new", PLAIN)], compare={"new": "plain"})
    assert new.score is not None
    assert new.difference is not None
    measure = measures_of([new])["test/accuracy"]
    assert measure.show(new.score) == "61.8 ± 4.0"
    assert measure.show_difference(new.difference) == "−5.00 ± 2.32"
    assert area(new.score) == "0.618 ± 0.040"


# -- chosen by validation ----------------------------------------------------------------------------------------------


def test_the_best_is_chosen_by_validation_and_not_by_test(summarised: Summarise) -> None:
    grid = [
        # rho, arm, graph, validation, test
        (0.1, "plain", "g", 0.7, 0.5),
        (0.2, "plain", "g", 0.6, 0.9),
        (0.3, "plain", "g", 0.7, 0.8),
        (0.1, "new", "g", 0.5, 0.9),
        (0.2, "new", "g", 0.55, 0.1),
        (0.1, "plain", "h", 0.2, 0.3),
        (0.3, "plain", "h", 0.3, 0.2),
    ]
    fits = [
        fit
        for rho, arm, graph, val, test in grid
        for fit in _fits(arm, {0: test, 1: test}, val=val, graph=graph, **{"at/regulariser.rho": rho})
    ]
    rows = summarised(fits, vary={"regulariser.rho": [0.1, 0.2, 0.3]})
    chosen = {(row.graph, row.arm): row for row in chosen_by_validation(rows)}
    assert {key: row.at["regulariser.rho"] for key, row in chosen.items()} == {
        ("g", "plain"): 0.1,  # the first of equals
        ("g", "new"): 0.2,
        ("h", "plain"): 0.3,
    }
    tested = chosen["g", "plain"].score
    assert tested is not None
    assert tested.mean == 0.5


def test_nothing_is_chosen_where_nothing_was_trained(summarised: Summarise) -> None:
    assert chosen_by_validation(summarised([_detected("new", 0, 0.9, 0.8, 0.7)], detect=True)) == []


# -- areas -------------------------------------------------------------------------------------------------------------


def test_kept_mass_is_compared_with_the_better_other_way_seed_by_seed(summarised: Summarise) -> None:
    fits = [
        _detected("new", 0, 0.9, 0.8, 0.7),
        _detected("new", 1, 0.8, 0.6, 0.75),
        _detected("new", 2, 0.95, 0.8, 0.8),
    ]
    (row,) = summarised(fits, detect=True)
    assert (row.score, row.metrics, row.difference) == (None, {}, None)
    assert {way: interval.mean for way, interval in row.areas.items()} == pytest.approx(
        {KEPT: 2.65 / 3, MISMATCH: 2.2 / 3, NEIGHBOURS: 0.75}
    )
    expected = stats.ttest_1samp([0.1, 0.05, 0.15], 0).confidence_interval(0.95)
    assert row.advantage is not None
    assert (row.advantage.low, row.advantage.high) == pytest.approx((expected.low, expected.high))
    assert findings([row]) == []


def test_an_arm_without_kept_mass_has_the_other_ways_and_no_advantage(summarised: Summarise) -> None:
    fits = _fits("plain", PLAIN, **{f"auc/{MISMATCH}": 0.7, f"auc/{NEIGHBOURS}": 0.8})
    fits += _fits("new", NEW, **{f"auc/{MISMATCH}": 0.7, f"auc/{NEIGHBOURS}": 0.8, f"auc/{KEPT}": 0.9})
    plain, new = summarised(fits)
    assert list(plain.areas) == [MISMATCH, NEIGHBOURS]
    assert plain.advantage is None
    assert list(new.areas) == [KEPT, MISMATCH, NEIGHBOURS]
    assert new.advantage is not None
    assert new.advantage.mean == pytest.approx(0.1)


def test_a_draw_without_a_conflict_has_no_area_and_does_not_spoil_the_others(summarised: Summarise) -> None:
    nan = float("nan")
    key = {"at/planted.conflicts": 0.1}
    fits = [_detected("new", 0, 0.9, 0.8, 0.7, **key), _detected("new", 1, nan, nan, nan, **key)]
    fits += [_detected("new", seed, nan, nan, nan, **{"at/planted.conflicts": 0.0}) for seed in (0, 1)]
    few, none = summarised(fits, detect=True, vary={"planted.conflicts": [0.1, 0.0]})
    assert {way: (interval.mean, interval.n) for way, interval in few.areas.items()} == {
        KEPT: (0.9, 1),
        MISMATCH: (0.8, 1),
        NEIGHBOURS: (0.7, 1),
    }
    assert few.advantage is not None
    assert (few.advantage.mean, few.advantage.n) == (pytest.approx(0.1), 1)
    assert few.seconds.n == 2
    assert (none.areas, none.advantage) == ({}, None)


# -- drawings ----------------------------------------------------------------------------------------------------------


def test_a_map_leaves_cells_without_an_area_empty(summarised: Summarise) -> None:
    vary = {"planted.conflicts": [0.0, 0.2], "regulariser.rho": [0.1, 1.0]}
    fits = [
        _detected(arm, 0, *[conflicts + rho / 10 if arm == "new" and conflicts else float("nan")] * 3)
        | {"at/planted.conflicts": conflicts, "at/regulariser.rho": rho}
        for arm in ("plain", "new")
        for conflicts in (0.0, 0.2)
        for rho in (0.1, 1.0)
    ]
    rows = summarised(fits, detect=True, vary=vary)
    ((drawn, _),) = draw_study(_experiment(detect=True, vary=vary).studies["asked"], rows)
    assert drawn.light.startswith("data:image/png;base64,")
    assert drawn.alt.startswith("g, new by planted.conflicts and regulariser.rho. area under the curve: highest 0.3 at")
    assert "at planted.conflicts=0.2, regulariser.rho=1.0" in drawn.alt


@pytest.mark.parametrize(
    ("vary", "words"),
    [
        ({}, ["difference in test accuracy (points)"]),
        ({"regulariser.rho": [0.1, 1.0]}, ["test accuracy (%)", "difference in test accuracy (points)"]),
        ({"regulariser.rho": [0.1, 1.0], "size": {"small": {}, "big": {}}}, ["g, plain by", "g, new by"]),
    ],
)
def test_a_study_is_drawn_by_how_much_it_varies(vary: dict, words: list[str], summarised: Summarise) -> None:
    settings = [{}]
    for key, values in vary.items():
        settings = [{**setting, f"at/{key}": value} for setting in settings for value in values]
    fits = [f for at in settings for arm, test in (("plain", PLAIN), ("new", NEW)) for f in _fits(arm, test, **at)]
    rows = summarised(fits, vary=vary, compare={"new": "plain"})
    drawn = draw_study(_experiment(vary=vary, compare={"new": "plain"}).studies["asked"], rows)
    assert [any(drawing.alt.startswith(start) for start in words) for drawing, _ in drawn] == [True] * len(words)
    assert draw_study(_experiment().studies["asked"], []) == []
