"""How metrics of any task are named, rounded and compared."""

import math

import pytest

from optimag_dist.report.measure import Interval, Measure, columns_of, measures


@pytest.mark.parametrize(
    ("column", "heading", "axis"),
    [
        ("test/accuracy", "test accuracy, %", "test accuracy (%)"),
        ("val/mrr", "validation MRR, %", "validation MRR (%)"),
        ("test/links/hits@10", "test links Hits@10, %", "test links Hits@10 (%)"),
        ("test/nll", "test nats per token", "test nats per token (lower is better)"),
        (
            "test/copies",
            "test near copies of training pictures, %",
            "test near copies of training pictures (%, lower is better)",
        ),
        ("test/words/bleu4", "test words BLEU-4", "test words BLEU-4"),
        ("test/of_my_own", "test of_my_own", "test of_my_own"),
    ],
)
def test_a_column_says_of_which_part_and_task_it_is(column: str, heading: str, axis: str) -> None:
    measure = Measure(column)
    assert (measure.heading, measure.axis()) == (heading, axis)


@pytest.mark.parametrize(
    ("column", "means", "shown"),
    [
        ("test/accuracy", [0.5], "12.3 ± 4.6"),
        ("test/rouge_l", [0.001], "12.3 ± 4.6"),
        # Three digits of the largest, whatever the others are.
        ("test/nll", [0.5], "0.123 ± 0.046"),
        ("test/nll", [0.5, 3.2], "0.12 ± 0.05"),
        ("test/median_rank", [0.5, 32.1, math.nan], "0.1 ± 0.0"),
        ("test/frechet", [321.0], "0 ± 0"),
        ("test/bleu4", [0.00001], "0.1234 ± 0.0456"),
        ("test/bleu4", [0.0], "0.12 ± 0.05"),
        ("test/cider", [math.nan], "0.12 ± 0.05"),
    ],
)
def test_shares_are_in_per_cent_and_numbers_have_the_digits_of_their_column(
    column: str, means: list[float], shown: str
) -> None:
    assert measures({column: means})[column].show(Interval(0.1234, 0.0456, 3)) == shown


def test_a_difference_has_its_sign_one_more_digit_and_a_verdict_by_which_way_is_better() -> None:
    share, down = Measure("test/mrr"), Measure("test/nll", digits=2)
    less, more = Interval(-0.0123, 0.0047, 3), Interval(0.0123, 0.0047, 3)
    assert (share.show_difference(less), down.show_difference(more)) == ("−1.23 ± 0.47", "+0.012 ± 0.005")
    assert (share.of_difference, down.of_difference) == (" points of test MRR", " in test nats per token")
    assert [measure.verdict(gap) for measure in (share, down) for gap in (less, more)] == [
        "worse",
        "better",
        "better",
        "worse",
    ]
    for nothing in (Interval(0.1, 0.2, 3), Interval(0.1, math.nan, 1), Interval(math.nan, math.nan, 0)):
        assert share.verdict(nothing) == down.verdict(nothing) == ""


def test_without_an_interval_or_a_value_there_is_none_shown() -> None:
    one, none = Interval(0.5, math.nan, 1), Interval(math.nan, math.nan, 0)
    measure = Measure("test/nll", digits=2)
    assert (measure.show(one), measure.show_difference(one)) == ("0.50", "+0.500")
    assert (measure.show(none), measure.show_difference(none)) == ("–", "–")


def test_the_column_to_compare_by_comes_first_and_validation_last() -> None:
    old = {"epochs": 3, "val/accuracy": 0.5, "val/macro_f1": 0.4, "test/macro_f1": 0.3, "test/accuracy": 0.4}
    assert columns_of([old]) == ["test/accuracy", "test/macro_f1", "val/accuracy"]
    new = {"decisive": "links/mrr", "test/classes/accuracy": 1.0, "test/links/mrr": 0.1, "val/links/mrr": 0.2}
    assert columns_of([new]) == ["test/links/mrr", "test/classes/accuracy", "val/links/mrr"]
    # In a table of many tasks' results a fit has no values of the others' figures.
    assert columns_of([new | {"test/accuracy": None}] * 2) == columns_of([new])
    # Where what decided was not tested, what was tested first is compared.
    generated = {"decisive": "denoising", "val/denoising": 0.5, "test/frechet": 90.0, "test/cosine": 0.3}
    assert columns_of([generated]) == ["test/frechet", "test/cosine", "val/denoising"]
    assert columns_of([]) == columns_of([{"seconds": 1.0, "decisive": None}]) == []
