"""Reports of runs that are not about classes: made-up results over a small real store (see conftest)."""

import base64
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from optimag_dist.report import comparison_table, render_comparison, write_report
from optimag_dist.report.figures import learning_curves, variant_colours
from optimag_dist.report.outputs import Samples, read_samples
from optimag_dist.report.run import read_run
from optimag_dist.store import GraphStore

from .conftest import image_file

OFF = {"regulariser.weight": 0}
MakeStore = Callable[..., GraphStore]
MakeRun = Callable[..., Path]
SEEDS = (0, 1, 2)
# Of a terminal's headings.
LAST = ["s", "per", "fit", "seeds", "difference", "from"]


def captions(nll: float, **more: float) -> dict[str, Any]:
    """As of graph2text: validation knows less than the test."""
    tested = {"test/bleu4": 0.12 + nll / 100, "test/rouge_l": 0.3, "test/cider": 0.5, "test/nll": nll}
    return {"decisive": "nll", "val/nll": nll - 0.1, **tested, **more}


def links(mrr: float) -> dict[str, Any]:
    return {"decisive": "mrr", "val/mrr": mrr, "val/hits@10": 0.6, "test/hits@10": 0.7, "test/mrr": mrr}


@pytest.fixture(scope="module")
def captioned(make_store: MakeStore, make_run: MakeRun) -> Path:
    """Where less is better: ``b`` is better than ``a``, and ``c`` worse."""
    finished = {
        (variant, seed): captions(3.0 + 0.1 * seed + gap + 0.003 * seed)
        for variant, gap in (("a", 0.0), ("b", -0.25), ("c", 0.2))
        for seed in SEEDS
    }
    return make_run(make_store(), finished, variants={"a": OFF, "b": OFF, "c": OFF}, seeds=SEEDS)


@pytest.fixture(scope="module")
def mixed(make_store: MakeStore, make_run: MakeRun) -> Path:
    """Two variants about classes, two about links; the last one has one seed more to go."""
    finished: dict[tuple[str, int], Any] = {}
    for seed in SEEDS:
        finished |= {("classes", seed): 0.5 + seed / 100, ("classes+", seed): 0.6 + seed / 90}
        finished |= {("links", seed): links(0.2 + seed / 100), ("links+", seed): links(0.3 + seed / 90)}
    del finished["links+", 2]
    variants = {"classes": OFF, "classes+": OFF, "links": OFF, "links+": OFF}
    compare_to = {"classes+": "classes", "links": "classes", "links+": "links"}
    return make_run(make_store(), finished, variants=variants, seeds=SEEDS, compare_to=compare_to)


def _shown(run: Path, width: int = 80) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    render_comparison(run, console)
    return console.export_text()


def _tables(page: str) -> list[list[list[str]]]:
    """Table → row → cells, headings first, without markup."""
    return [
        [
            [re.sub(r"<[^>]*>", " ", cell).strip() for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)]
            for row in re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
        ]
        for table in re.findall(r"<table[^>]*>(.*?)</table>", page, re.DOTALL)
    ]


# -- comparison --------------------------------------------------------------------------------------------------------


def test_less_is_better_where_the_figure_says_so(captioned: Path) -> None:
    table = comparison_table(captioned)
    assert list(table.measures) == ["test/nll", "test/bleu4", "test/rouge_l", "test/cider", "val/nll"]
    first, better, worse = table.rows
    assert first.metrics["test/nll"].mean == pytest.approx(3.103)
    assert better.difference is not None
    assert worse.difference is not None
    assert (better.difference.mean, worse.difference.mean) == pytest.approx((-0.25, 0.2))
    said = table.sentences
    assert said[0].startswith("b against a: test nats per token −0.250 (95 % interval −0.250 to −0.250, paired over 3")
    assert said[0].endswith("it is lower, which is better.")
    assert "test nats per token +0.200 (95" in said[1]
    assert said[1].endswith("it is higher, which is worse.")
    assert "accuracy" not in " ".join(said)
    assert "points" not in " ".join(said)


def test_a_page_has_every_test_metric_the_monitored_one_first(captioned: Path) -> None:
    page = write_report(captioned).read_text(encoding="utf-8")
    headings, *rows = _tables(page)[0]
    assert headings == [
        "variant",
        "compared with",
        "difference in test nats per token",
        "test nats per token",
        "test BLEU-4",
        "test ROUGE-L, %",
        "test CIDEr",
        "validation nats per token",
        "epochs",
        "seconds per fit",
        "seeds",
    ]
    assert [row[0] for row in rows] == ["a", "b", "c"]
    assert rows[1][3:8] == ["2.85 ± 0.26", "0.149 ± 0.003", "30.0 ± 0.0", "0.500 ± 0.000", "2.75 ± 0.26"]
    assert rows[0][1:3] == ["", ""]
    assert rows[1][1:3] == ["a", "−0.250 ± 0.000"]
    assert '<td class="better">−0.250' in page
    assert '<td class="worse">+0.200' in page
    assert "Less is better: nats per token." in page
    assert "percentage points" not in page
    assert "accuracy" not in page


def test_a_terminal_has_what_fits_and_never_less_than_the_monitored_metric(captioned: Path) -> None:
    narrow, wide, tiny = (_shown(captioned, width) for width in (80, 200, 40))
    assert narrow.splitlines()[0].split() == ["variant", "nats", "per", "token", "BLEU-4", *LAST]
    assert max(map(len, narrow.splitlines()[:4])) <= 80
    assert all(name in wide.splitlines()[0] for name in ("nats per token", "BLEU-4", "ROUGE-L", "CIDEr"))
    assert "nats" in tiny
    assert "BLEU" not in tiny.partition("Test set")[0]
    assert "ROUGE-L in per cent; of nats per token less is better; differences in nats per token" in wide
    assert "per cent" not in narrow
    assert "accuracy" not in narrow + wide + tiny


def test_node_classification_reads_as_before(make_store: MakeStore, make_run: MakeRun) -> None:
    finished = {("a", 0): 0.5, ("a", 1): 0.52, ("b", 0): 0.61, ("b", 1): 0.64}
    run = make_run(make_store(), finished, variants={"a": OFF, "b": OFF}, seeds=(0, 1))
    first, *rows = _shown(run).splitlines()
    assert first.split() == ["variant", "accuracy", "macro-F1", *LAST]
    assert rows[1].split()[:4] == ["b", "62.5", "±", "19.1"]
    assert comparison_table(run).sentences == (
        "b against a: test accuracy +11.50 points (95 % interval +5.15 to +17.85, paired over 2 seeds). The interval "
        "excludes 0: on this graph with these settings it is higher.",
    )


def test_variants_of_different_tasks_are_not_compared_and_lack_each_others_figures(mixed: Path) -> None:
    table = comparison_table(mixed)
    tested = [measure.title for column, measure in table.measures.items() if column.startswith("test/")]
    assert tested == ["accuracy", "MRR", "macro-F1", "Hits@10"]
    assert [row.compared_by for row in table.rows] == ["test/accuracy", "test/accuracy", "test/mrr", "test/mrr"]
    gaps = [row.difference for row in table.rows]
    assert gaps[0] is None
    assert gaps[2] is None
    assert gaps[1] is not None
    assert gaps[3] is not None
    assert (gaps[1].mean, gaps[3].n) == (pytest.approx(0.1 + 1 / 90 - 0.01), 2)
    assert "links against classes: they have different tasks, so they are not compared." in table.sentences
    assert any(s.startswith("links+ against links: test MRR +10.06 points") for s in table.sentences)

    headings, *table_rows = _tables(write_report(mixed).read_text(encoding="utf-8"))[0]
    cells = [dict(zip(headings, row, strict=True)) for row in table_rows]
    assert [row["test MRR, %"] for row in cells] == ["", "", "21.0 ± 2.5", "30.6 ± 7.1"]
    assert [row["test Hits@10, %"] for row in cells] == ["", "", "70.0 ± 0.0", "70.0 ± 0.0"]
    assert [row["test accuracy, %"][:4] for row in cells] == ["51.0", "61.1", "", ""]
    assert [(row["compared with"], row["in"]) for row in cells] == [
        ("", ""),
        ("classes", "test accuracy"),
        ("", ""),
        ("links", "test MRR"),
    ]
    first, *rows = _shown(mixed, 120).splitlines()
    assert first.split() == ["variant", "metric", "test", "macro-F1", "Hits@10", *LAST]
    assert [row.split()[:3] for row in rows[:4:3]] == [["classes", "accuracy", "51.0"], ["links+", "MRR", "30.6"]]
    assert rows[3].split()[-1] == "links"
    assert "accuracy, MRR, macro-F1, Hits@10 in per cent; differences in the metric named" in _shown(mixed, 300)
    narrow = _shown(mixed, 80)
    assert "Hits" not in narrow
    assert "accuracy, MRR in per cent" in narrow.replace("\n", " ")


def test_the_same_figure_of_another_task_is_not_compared(make_store: MakeStore, make_run: MakeRun) -> None:
    kinds = {"links": "link_prediction", "dot": "link_prediction", "pairs": "modality_retrieval"}
    variants = {variant: {**OFF, "task": {"kind": kind}} for variant, kind in kinds.items()}
    finished = {(variant, seed): links(0.2) for variant in variants for seed in (0, 1)}
    table = comparison_table(make_run(make_store(), finished, variants=variants, seeds=(0, 1)))
    assert {row.compared_by for row in table.rows} == {"test/mrr"}
    assert [row.difference is not None for row in table.rows] == [False, True, False]


def test_figures_of_several_tasks_have_their_names(make_store: MakeStore, make_run: MakeRun) -> None:
    tasks = {"classes": {"kind": "node_classification"}, "links": {"kind": "link_prediction"}}
    figures = {"val/classes/accuracy": 0.5, "test/links/mrr": 0.2, "test/classes/accuracy": 0.5, "val/links/mrr": 0.4}
    finished = {(variant, 0): {"decisive": "classes/accuracy", **figures} for variant in ("a", "b")}
    variants = {variant: {**OFF, "task": {"kind": "several", "tasks": tasks}} for variant in ("a", "b")}
    run = make_run(make_store(), finished, variants=variants, seeds=(0,))
    page = write_report(run).read_text(encoding="utf-8")
    headings = _tables(page)[0][0]
    assert headings[3:6] == ["test classes accuracy, %", "test links MRR, %", "validation classes accuracy, %"]
    assert "difference in test classes accuracy" in headings
    assert "<dd>node classification, link prediction</dd>" in page
    assert "5 train, 5 validation, 4 test" in page


def test_curves_are_of_what_each_variant_is_compared_by(captioned: Path, mixed: Path) -> None:
    for path, titles in (
        (captioned, "validation nats per token and training loss of the task"),
        (mixed, "validation accuracy and validation MRR and training loss of the task"),
    ):
        run = read_run(path)
        drawn = learning_curves(run, variant_colours(list(run.variants)))
        assert drawn is not None
        assert drawn.alt.startswith(f"Curves by epoch of {titles}. Mean at the end: ")
    # A variant has a line where it has the figure.
    assert "links+, validation MRR: 0.3" in drawn.alt
    assert "links+, validation accuracy" not in drawn.alt


def test_best_epochs_are_marked_where_their_figure_is_drawn(captioned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    marked: list[tuple[str, float, float]] = []
    plot = Axes.plot

    def noting(self: Axes, *args: Any, **kwargs: Any) -> Any:
        if isinstance(args[-1], str) and args[-1] == "o":
            marked.append((self.get_title(), args[0], args[1]))
        return plot(self, *args, **kwargs)

    monkeypatch.setattr(Axes, "plot", noting)
    run = read_run(captioned)
    learning_curves(run, variant_colours(list(run.variants)))
    # Drawn for light pages and for dark ones.
    expected = [("validation nats per token", 2, fit.result["val/nll"]) for fit in run.finished if fit.result] * 2
    assert marked == expected


# -- outputs -----------------------------------------------------------------------------------------------------------


def _write(run: Path, place: str, columns: Mapping[str, Any], name: str = "outputs.parquet") -> None:
    pq.write_table(pa.table(dict(columns)), run / place / name)


@pytest.fixture
def two(make_store: MakeStore, make_run: MakeRun) -> Path:
    finished = {(variant, seed): captions(3.0) for variant in ("a", "b") for seed in (0, 1)}
    run = make_run(make_store(), finished, variants={"a": OFF, "b": OFF}, seeds=(0, 1))
    for path in run.glob("*/*/metrics.jsonl"):
        path.unlink()  # curves take their time
    return run


def _samples(run: Path) -> list[Samples]:
    return read_samples(read_run(run))


def test_texts_stand_beside_their_references(two: Path) -> None:
    ids = [f"n{i:02}" for i in range(45)]
    texts = [f"<b>node {i}</b>" for i in range(45)]
    for variant in ("a", "b"):
        said = [f"{variant} says {i}" for i in range(45)]
        _write(two, f"{variant}/seed-0", {"id": ids, "reference": texts, "output": said})
        _write(two, f"{variant}/seed-1", {"id": ids, "reference": texts, "output": ["another seed"] * 45})
    (part,) = _samples(two)
    assert (part.task, part.seed, part.variants, part.nearest, part.total) == ("", 0, ("a", "b"), (), 45)
    # Twelve, evenly spread from the first to the last.
    assert [row.id for row in part.rows] == [f"n{i:02}" for i in (0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44)]
    page = write_report(two).read_text(encoding="utf-8")
    table = next(table for table in _tables(page) if table[0][0] == "node")
    assert table[0] == ["node", "reference", "a", "b"]
    assert table[2] == ["n04", "&lt;b&gt;node 4&lt;/b&gt;", "a says 4", "b says 4"]
    assert "12 of 45 test nodes" in page
    assert "another seed" not in page
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    assert titles[:2] == ["Comparison", "Generated outputs"]
    assert "<code>outputs.parquet</code>" in page[page.index("<h2>Files") :]


def test_images_and_what_is_nearest_to_them_are_in_the_page(two: Path) -> None:
    images = [image_file(i) for i in range(9)]
    columns = {"id": [7, 8, 9], "reference": images[:3], "output": images[3:6]}
    _write(two, "a/seed-0", columns | {"nearest": images[6:9]})
    _write(two, "b/seed-0", columns | {"output": [images[8], None, b"no picture"]})
    (part,) = _samples(two)
    assert part.nearest == ("a",)
    page = write_report(two).read_text(encoding="utf-8")
    section = page[page.index("Generated outputs") : page.index("<h2>Kept mass")]
    headings, *rows = next(table for table in _tables(section) if table[0][0] == "node")
    assert headings == ["node", "reference", "a", "nearest", "b"]
    assert [row[0] for row in rows] == ["7", "8", "9"]
    assert [row[-1] for row in rows[1:]] == ["none", "not a readable image"]
    shown = [base64.b64decode(each) for each in re.findall(r'src="data:image/png;base64,([^"]*)"', section)]
    expected = [images[i] for i in (0, 3, 6, 8, 1, 4, 7, 2, 5, 8)]
    assert shown == expected
    assert "to tell copies" in section


def test_tasks_have_tables_of_their_own_and_only_finished_fits_are_shown(two: Path) -> None:
    texts = {"id": ["x"], "reference": ["of a"], "output": ["made by a"]}
    _write(two, "a/seed-0", texts, "outputs-words.parquet")
    _write(two, "b/seed-1", {**texts, "output": ["made by b"]}, "outputs-words.parquet")
    _write(
        two, "b/seed-0", {"id": ["x"], "reference": [image_file(1)], "output": [image_file(2)]}, "outputs-faces.parquet"
    )
    parts = {part.task: part for part in _samples(two)}
    assert {task: (part.seed, part.variants) for task, part in parts.items()} == {
        "words": (0, ("a",)),
        "faces": (0, ("b",)),
    }
    page = write_report(two).read_text(encoding="utf-8")
    assert "<h3>words</h3>" in page
    assert "made by a" in page
    assert "made by b" not in page
    (two / "a" / "seed-0" / "result.json").unlink()
    assert {part.task: (part.seed, part.variants) for part in _samples(two)}["words"] == (1, ("b",))


def test_rows_are_those_that_all_variants_have_where_there_are_any(two: Path) -> None:
    for variant, ids in (("a", ["p", "q", "r"]), ("b", ["r", "q", "s"])):
        _write(two, f"{variant}/seed-0", {"id": ids, "reference": ids, "output": [f"{variant}:{i}" for i in ids]})
    (part,) = _samples(two)
    made = [(row.id, {v: sample.text for v, sample in row.outputs.items() if sample}) for row in part.rows]
    assert made == [("q", {"a": "a:q", "b": "b:q"}), ("r", {"a": "a:r", "b": "b:r"})]
    _write(two, "b/seed-0", {"id": ["z"], "reference": ["z"], "output": ["b:z"]})
    (part,) = _samples(two)
    assert [(row.id, list(row.outputs)) for row in part.rows] == [("p", ["a"]), ("q", ["a"]), ("r", ["a"])]


def test_words_and_images_of_one_name_are_not_put_into_one_table(two: Path) -> None:
    _write(two, "a/seed-0", {"id": ["x"], "reference": ["word"], "output": ["other"]})
    _write(two, "b/seed-0", {"id": ["x"], "reference": [image_file(1)], "output": [image_file(2)]})
    assert [part.variants for part in _samples(two)] == [("a",), ("b",)]
    page = write_report(two).read_text(encoding="utf-8")
    assert "<h3>a</h3>" in page
    assert "<h3>b</h3>" in page


def test_long_texts_are_cut_and_empty_ones_and_empty_tables_are_said_to_be(two: Path) -> None:
    _write(two, "a/seed-0", {"id": ["x", "y"], "reference": ["word " * 400, "y"], "output": ["", None]})
    (part,) = _samples(two)
    reference = part.rows[0].reference
    assert reference is not None
    assert len(reference.text) <= 500
    assert reference.text.endswith("word…")
    page = write_report(two).read_text(encoding="utf-8")
    assert '<span class="quiet">empty</span>' in page
    assert '<span class="quiet">none</span>' in page
    _write(two, "a/seed-0", {"id": pa.array([], pa.string()), "reference": pa.array([], pa.string()), "output": []})
    assert "0 of 0 test nodes" in write_report(two).read_text(encoding="utf-8")


def test_rows_are_found_among_many(two: Path) -> None:
    n = 5000
    order = np.random.default_rng(0).permutation(n)
    _write(two, "a/seed-0", {"id": np.arange(n), "reference": list(map(str, range(n))), "output": ["o"] * n})
    theirs = {"id": order, "reference": list(map(str, order)), "output": [f"of {i}" for i in order]}
    pq.write_table(pa.table(theirs), two / "b" / "seed-0" / "outputs.parquet", row_group_size=512)
    (part,) = _samples(two)
    for row in part.rows:
        made = row.outputs["b"]
        assert made is not None
        assert made.text == f"of {row.id}"
    assert len(part.rows) == 12
