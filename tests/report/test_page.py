"""The page of made-up runs over a small real store (see conftest)."""

import base64
import html
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from optimag_dist.report import write_report
from optimag_dist.report.kept_mass import gallery, read_kept_mass
from optimag_dist.report.run import read_run
from optimag_dist.store import GraphStore
from optimag_dist.types import InputError

OFF = {"regulariser.weight": 0}
BOTH = {"plain": OFF, "plain+optimag": {}}
EVIL = "<script>alert('x')</script>"
MakeStore = Callable[..., GraphStore]
MakeRun = Callable[..., Path]


def _accuracy(variants: dict[str, dict[str, float]], seeds: tuple[int, ...]) -> dict[tuple[str, int], float]:
    return {(v, s): 0.5 + 0.02 * s + 0.03 * i * (s + 1) for i, v in enumerate(variants) for s in seeds}


@pytest.fixture
def full_run(make_store: MakeStore, make_run: MakeRun) -> Path:
    seeds = (0, 1, 2)
    return make_run(make_store(), _accuracy(BOTH, seeds), variants=BOTH, seeds=seeds)


@pytest.fixture(scope="module")
def full_page(make_store: MakeStore, make_run: MakeRun) -> tuple[Path, str]:
    """A run of two variants and three seeds, and its report."""
    run = make_run(make_store(), _accuracy(BOTH, (0, 1, 2)), variants=BOTH, seeds=(0, 1, 2))
    return run, write_report(run).read_text(encoding="utf-8")


def _section(page: str, title: str) -> str:
    start = page.index(f"<h2>{title}</h2>")
    end = page.find("<h2>", start + 4)
    return page[start : end if end > 0 else None]


def test_sections_come_in_order_and_nothing_is_fetched(full_page: tuple[Path, str]) -> None:
    run, page = full_page
    assert (run / "report.html").exists()
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    assert titles == ["Comparison", "Advice", "Kept mass", "Learning curves", "Configuration", "Files"]
    for source in re.findall(r'(?:src|srcset|href)="([^"]*)"', page):
        assert source.startswith("data:image/")
    assert "url(" not in page
    assert "@import" not in page
    assert "<h1>toy-run</h1>" in page
    assert "5 train, 5 validation, 4 test" in page
    assert "image (2 numbers, missing in 1 node)" in page
    assert "checkpoint.pt" in _section(page, "Files")
    assert "not finished" not in page


def test_figures_have_words(full_page: tuple[Path, str]) -> None:
    run, page = full_page
    alts = [alt for alt in re.findall(r'alt="([^"]*)"', page) if alt]
    assert [alt.split()[0] for alt in alts] == ["Histograms", "Curves", "Curves"]
    mass = read_kept_mass(read_run(run))[0]
    for name in ("text", "image"):
        assert f"{name}: {np.nanmedian(mass.values[name]):.3f}" in alts[0]
    assert "opposed: 0.500" in alts[2]


def test_names_are_escaped(full_page: tuple[Path, str]) -> None:
    page = full_page[1]
    assert "<script" not in page
    assert html.escape(EVIL).replace("&#x27;", "&#39;") in page
    assert "even &amp; co" in page


def test_images_are_the_stores_bytes(full_page: tuple[Path, str]) -> None:
    run, page = full_page
    store = GraphStore.open(read_run(run).config.store)
    shown = {base64.b64decode(x) for x in re.findall(r'class="face" src="data:image/png;base64,([^"]*)"', page)}
    # Seeds of both ends reach the whole ring: all images but the isolated node's.
    assert shown == set(store.attribute("pic", np.arange(13)))


def test_gallery_orders_by_kept_mass_without_isolated_nodes(full_page: tuple[Path, str]) -> None:
    run = read_run(full_page[0])
    result = gallery(read_kept_mass(run)[0], GraphStore.open(run.config.store))
    text, image = result.ends
    assert result.seeds == (0, 1, 2)
    assert [card.node.id for card in text.distrusted] == [f"n{i:02}" for i in range(8)]
    assert [card.node.id for card in text.trusted] == ["n12", "n11", "n10", "n09"]
    # Falling, and node 3 lacks the modality.
    assert [card.node.id for card in image.distrusted] == [f"n{i:02}" for i in range(12, 4, -1)]
    assert [card.node.id for card in image.trusted] == ["n00", "n01", "n02", "n04"]
    lowest = text.distrusted[0]
    assert {node.id for node in lowest.neighbours} == {"n01", "n12"}
    assert (lowest.degree, lowest.labelled, lowest.same_label) == (2, 2, 1)
    mass = lowest.masses[0]
    assert (mass.mean, mass.low, mass.high) == pytest.approx((0.201, 0.2, 0.202))
    assert mass.below == 0
    assert np.isnan(text.distrusted[3].masses[1].mean)


def test_the_page_says_how_many_were_not_judged_and_what_results_advise(full_page: tuple[Path, str]) -> None:
    page = full_page[1]
    assert "1 node was not judged" in _section(page, "Kept mass")
    advice = _section(page, "Advice")
    assert advice.count("<li>") == 1
    assert "plain+optimag, seeds 0, 1, 2: regulariser: neighbours share a class in 40% of pairs" in advice


def test_neighbours_of_a_directed_graph_are_both_ways(make_store: MakeStore, make_run: MakeRun) -> None:
    run = read_run(make_run(make_store(directed=True), {("a", 0): 0.5}, variants={"a": {}}, seeds=(0,)))
    result = gallery(read_kept_mass(run)[0], GraphStore.open(run.config.store))
    for card in result.ends[0].distrusted:
        number = int(card.node.id[1:])
        assert {node.id for node in card.neighbours} == {f"n{(number + 1) % 13:02}", f"n{(number - 1) % 13:02}"}


def test_one_seed_has_no_interval(make_store: MakeStore, make_run: MakeRun) -> None:
    run = make_run(make_store(), _accuracy(BOTH, (0,)), variants=BOTH, seeds=(0,))
    page = write_report(run).read_text(encoding="utf-8")
    comparison = _section(page, "Comparison")
    assert "One seed: no interval" in comparison
    assert "±" not in comparison
    assert "excludes 0" not in comparison
    assert "averaged over 1 seed;" in page


def test_unfinished_run_says_so(make_store: MakeStore, make_run: MakeRun) -> None:
    run = make_run(make_store(), {("plain", 0): 0.5, ("plain", 1): 0.6}, variants=BOTH, seeds=(0, 1))
    page = write_report(run).read_text(encoding="utf-8")
    assert "2 of 4 fits are" in page
    assert "--resume" in page
    assert "No regularised fit is finished yet" in page
    assert _section(page, "Files").count("not finished") == 2


def test_nothing_finished_is_an_error(make_store: MakeStore, make_run: MakeRun) -> None:
    run = make_run(make_store(), {}, variants=BOTH, seeds=(0,))
    with pytest.raises(InputError, match="--resume"):
        write_report(run)
    assert not (run / "report.html").exists()


def test_a_run_without_the_regulariser(make_store: MakeStore, make_run: MakeRun) -> None:
    run = make_run(make_store(), {("a", 0): 0.5}, variants={"a": OFF}, seeds=(0,))
    page = write_report(run).read_text(encoding="utf-8")
    assert "No variant of this run is regularised" in page
    assert "nothing to compare" in page
    assert page.count("<figure>") == 1


def test_a_store_without_attributes_shows_ids(make_store: MakeStore, make_run: MakeRun) -> None:
    run = make_run(make_store(attributes=False), {("a", 0): 0.5}, variants={"a": {}}, seeds=(0,))
    page = write_report(run).read_text(encoding="utf-8")
    assert 'class="face"' not in page
    assert page.count('<article class="card">') == 24
    assert ">n00</h5>" in page


def test_a_store_that_is_gone_costs_only_the_nodes(full_run: Path) -> None:
    store = read_run(full_run).config.store
    store.rename(store.with_name("elsewhere"))
    page = write_report(full_run).read_text(encoding="utf-8")
    assert "The nodes themselves cannot be shown" in page
    assert page.count("<figure>") == 3
    assert "<article" not in page


def test_a_store_that_has_changed_is_not_shown(full_run: Path, make_store: MakeStore) -> None:
    store = read_run(full_run).config.store
    store.rename(store.with_name("elsewhere"))
    make_store(directed=True).path.rename(store)
    page = write_report(full_run).read_text(encoding="utf-8")
    assert "has changed since" in page
    assert "<article" not in page


def test_seeds_over_different_stores_are_refused(full_run: Path) -> None:
    path = full_run / "plain+optimag" / "seed-1" / "kept_mass.parquet"
    pq.write_table(pa.table({"id": ["n00"], "text": [0.5], "image": [0.5]}), path)
    with pytest.raises(InputError, match=r"\[1, 14\] rows"):
        write_report(full_run)


@pytest.mark.parametrize("place", ["values", "footer"])
def test_a_damaged_table_of_kept_mass_is_named(place: str, full_run: Path) -> None:
    path = full_run / "plain+optimag" / "seed-1" / "kept_mass.parquet"
    pq.write_table(pq.read_table(path), path, write_page_checksum=True)
    values, content = pq.read_metadata(path).row_group(0).column(1), bytearray(path.read_bytes())
    start = values.dictionary_page_offset or values.data_page_offset
    content[start + values.total_compressed_size - 1 if place == "values" else -5] ^= 0x80
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"seed-1/kept_mass\.parquet: damaged .*delete it to have a report without it"):
        write_report(full_run)
