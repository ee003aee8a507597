"""The comparison against scipy's t interval and paired t test, and what may be said about it.

``mean_interval`` takes one quantile, one standard deviation and one product: a few roundings each relative to the
largest value, so 1e-9 relative to the data is far above float64 noise and far below anything shown.
"""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from optimag_dist.report import comparison_table, render_comparison
from optimag_dist.report.measure import mean_interval
from optimag_dist.store import GraphStore
from optimag_dist.types import InputError

OFF = {"regulariser.weight": 0}
SAGE = [0.60, 0.62, 0.59, 0.64, 0.61]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=12).filter(lambda xs: np.std(xs) > 1e-6))
def test_interval_is_scipys(values: list[float]) -> None:
    interval = mean_interval(values)
    low, high = scipy.stats.t.interval(0.95, len(values) - 1, np.mean(values), scipy.stats.sem(values))
    np.testing.assert_allclose([interval.low, interval.high], [low, high], atol=1e-9)


@pytest.mark.parametrize(("n", "quantile"), [(2, 12.706), (3, 4.303), (5, 2.776), (10, 2.262)])
def test_interval_uses_the_printed_t_table(n: int, quantile: float) -> None:
    """Values ±1 around 3: the sample's standard deviation is known, the quantile printed to three decimals."""
    values = [3.0 + (1 if i % 2 else -1) for i in range(n)]
    expected = quantile * np.std(values, ddof=1) / math.sqrt(n)
    assert mean_interval(values).half_width == pytest.approx(expected, rel=0.0005 / quantile + 1e-9)


def test_too_few_values_have_no_interval() -> None:
    one, none = mean_interval([0.5]), mean_interval([])
    assert (one.mean, one.n) == (0.5, 1)
    assert math.isnan(one.half_width)
    assert not one.excludes_zero
    assert math.isnan(none.mean)


def _accuracies(variant: str, values: list[float]) -> dict[tuple[str, int], float]:
    return {(variant, seed): value for seed, value in enumerate(values)}


def test_differences_are_paired(make_store: Callable[..., GraphStore], make_run: Callable[..., Path]) -> None:
    other = [0.61, 0.64, 0.60, 0.65, 0.63]
    run = make_run(
        make_store(),
        _accuracies("a", SAGE) | _accuracies("b", other),
        variants={"a": OFF, "b": OFF},
        seeds=(0, 1, 2, 3, 4),
    )
    table = comparison_table(run)
    assert table.rows[1].compared_with == "a"
    assert table.rows[0].compared_with is None
    gap = table.rows[1].difference
    assert gap is not None
    expected = scipy.stats.ttest_rel(other, SAGE).confidence_interval(0.95)
    np.testing.assert_allclose([gap.low, gap.high], expected, atol=1e-12)
    assert gap.excludes_zero
    assert table.rows[1].metrics["test/macro_f1"].mean == pytest.approx(np.mean(other) / 2)
    assert table.rows[0].epochs.mean == pytest.approx(6)  # 4 + seed
    assert table.rows[0].seconds.mean == pytest.approx(3)  # half a second each
    assert any("b against a" in s and "excludes 0" in s and "higher" in s for s in table.sentences)


def test_the_baseline_is_the_one_asked_for(
    make_store: Callable[..., GraphStore], make_run: Callable[..., Path]
) -> None:
    worse = [0.60, 0.63, 0.58, 0.64, 0.60]
    run = make_run(
        make_store(),
        _accuracies("a", worse) | _accuracies("b", SAGE),
        variants={"a": OFF, "b": OFF},
        seeds=(0, 1, 2, 3, 4),
        compare_to={"a": "b"},
    )
    table = comparison_table(run)
    gap = table.rows[0].difference
    assert gap is not None
    assert gap.mean == pytest.approx(np.mean(worse) - np.mean(SAGE))
    assert table.rows[1].compared_with is None
    assert any("a against b: no difference shown" in s and "includes 0" in s for s in table.sentences)
    assert not any("excludes" in s for s in table.sentences)


def test_only_seeds_finished_for_both_are_paired(
    make_store: Callable[..., GraphStore], make_run: Callable[..., Path]
) -> None:
    accuracy = _accuracies("a", [0.5, 0.6]) | {("b", 1): 0.7, ("b", 2): 0.9}
    run = make_run(make_store(), accuracy, variants={"a": OFF, "b": OFF, "c": OFF}, seeds=(0, 1, 2))
    table = comparison_table(run)
    gap = table.rows[1].difference
    assert gap is not None
    assert (gap.n, gap.mean) == (1, pytest.approx(0.1))
    assert (sum(row.finished for row in table.rows), sum(row.planned for row in table.rows)) == (4, 9)
    assert any("b against a" in s and "one seed: no interval" in s for s in table.sentences)
    assert any("c against a" in s and "cannot be compared yet" in s for s in table.sentences)


def test_terminal_shows_the_same_numbers(make_store: Callable[..., GraphStore], make_run: Callable[..., Path]) -> None:
    run = make_run(
        make_store(),
        _accuracies("a", SAGE) | _accuracies("b", [0.7]),
        variants={"a": OFF, "b": OFF},
        seeds=(0, 1, 2, 3, 4),
    )
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    render_comparison(run, console)
    text = console.export_text()
    low, high = scipy.stats.t.interval(0.95, 4, np.mean(SAGE), scipy.stats.sem(SAGE))
    assert f"{100 * np.mean(SAGE):.1f} ± {50 * (high - low):.1f}" in text
    assert "1 of 5" in text
    assert "6 of 10 fits are finished" in text
    assert "+10.00 points with one seed: no interval" in text


def test_no_run_and_nothing_finished_say_what_to_do(
    make_store: Callable[..., GraphStore], make_run: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"nowhere: no run here.*optimag train"):
        comparison_table(tmp_path / "nowhere")
    run = make_run(make_store(), {}, variants={"a": OFF}, seeds=(0, 1))
    with pytest.raises(InputError, match=r"none of the 2 fits.*--resume"):
        comparison_table(run)
