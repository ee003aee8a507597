"""Held-out links against the edge list they come from, planted leaks, damage, and a store of before there were any."""

import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pyarrow.csv
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from optimag_dist.cli import app
from optimag_dist.options import parse_options
from optimag_dist.ppr.topk import push_sources
from optimag_dist.ppr.update import update_ppr
from optimag_dist.store import (
    GraphStore,
    LinkQueries,
    LinkSplit,
    LinkSplitOptions,
    check_no_leak,
    ingest,
    link_split,
    split_links,
    staging,
)
from optimag_dist.store.arrow_files import write_topology
from optimag_dist.store.csr import graph_hash
from optimag_dist.store.derive import EdgeChanges, apply_changes
from optimag_dist.store.layout import TOPOLOGY, read_meta, write_meta
from optimag_dist.types import CSR, InputError

from ..ppr.ppr_oracle import csr_of_arcs, exact_ppr, undirected_dense

Edge = tuple[int, int]
MakeStore = Callable[..., GraphStore]
SMALL = LinkSplitOptions(val=0.2, test=0.3, negatives=4, seed=5)


def quietly(line: str) -> None:
    """Takes lines for people."""


def split(
    store: GraphStore, out: Path | str, options: LinkSplitOptions = SMALL, *, overwrite: bool = False
) -> GraphStore:
    return split_links(store, out, options, overwrite=overwrite, say=quietly)


@pytest.fixture(scope="module")
def make_store(write_graph, tmp_path_factory) -> MakeStore:
    """make_store(n, edges) → a store of nodes n0 … with edges between them, in a folder of its own."""

    def make(num_nodes: int, edges: Iterable[Edge], **keys) -> GraphStore:
        nodes = {"id": [f"n{node}" for node in range(num_nodes)], "x": [float(node) for node in range(num_nodes)]}
        ends = {side: [f"n{edge[i]}" for edge in sorted(edges)] for i, side in enumerate(("src", "dst"))}
        folder = tmp_path_factory.mktemp("graph")
        schema = write_graph(folder / "in", nodes, ends, {"m": {"columns": ["x"]}}, **keys)
        return ingest(schema, folder / "store", say=quietly)

    return make


def wheel(num_nodes: int) -> set[Edge]:
    """A ring and a chord from every third node."""
    ring = {(node, (node + 1) % num_nodes) for node in range(num_nodes)}
    chords = {(node, (node + num_nodes // 2) % num_nodes) for node in range(0, num_nodes, 3)}
    return {(min(edge), max(edge)) for edge in ring | chords}


@pytest.fixture(scope="module")
def whole(make_store: MakeStore) -> GraphStore:
    return make_store(24, wheel(24))


@pytest.fixture(scope="module")
def held(whole: GraphStore) -> GraphStore:
    return split(whole, whole.path.parent / "split")


def edges_of(store: GraphStore) -> set[Edge]:
    rows = np.repeat(np.arange(store.num_nodes), np.diff(store.topology.indptr))
    arcs = set(zip(rows.tolist(), store.topology.indices.tolist(), strict=True))
    assert arcs == {(v, u) for u, v in arcs}
    return {arc for arc in arcs if arc[0] < arc[1]}


def queries_of(part: LinkQueries) -> list[Edge]:
    return list(zip(part.sources.tolist(), part.targets.tolist(), strict=True))


@st.composite
def problems(draw: st.DrawFn) -> tuple[int, set[Edge], LinkSplitOptions]:
    n = draw(st.integers(6, 20))
    pairs = [(u, v) for v in range(n) for u in range(v)]
    edges = draw(st.sets(st.sampled_from(pairs), min_size=4, max_size=3 * n))
    most = max(sum(node in edge for edge in edges) for node in range(n))
    assume(most < n - 1)
    # The largest leaves some node no choice.
    negatives = draw(st.sampled_from([1, n - 1 - most, max(1, (n - 1 - most) // 2)]))
    val, test = draw(st.floats(0.1, 0.45)), draw(st.floats(0.1, 0.45))
    num_val, num_test = round(val * len(edges)), round(test * len(edges))
    assume(num_val > 0 and num_test > 0 and num_val + num_test < len(edges))
    return n, edges, LinkSplitOptions(val=val, test=test, negatives=negatives, seed=draw(st.integers(0, 2**63 - 1)))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(problem=problems())
def test_parts_and_topology_are_the_graph_and_negatives_are_strangers(
    make_store: MakeStore, problem: tuple[int, set[Edge], LinkSplitOptions]
) -> None:
    n, edges, options = problem
    store = make_store(n, edges)
    made = split(store, store.path.parent / "split", options)
    parts = [made.links.val, made.links.test]
    held_out = []
    for part, share in zip(parts, (options.val, options.test), strict=True):
        queries = queries_of(part)
        held_out.append({query for query in queries if query[0] < query[1]})
        assert queries == sorted({*held_out[-1], *((v, u) for u, v in held_out[-1])})
        assert len(held_out[-1]) == round(share * len(edges))
        assert part.negatives.shape == (len(queries), options.negatives)
        assert {array.dtype for array in (part.sources, part.targets, part.negatives)} == {np.dtype(np.int64)}
        for source, negatives in zip(part.sources.tolist(), part.negatives.tolist(), strict=True):
            neighbours = {u + v - source for u, v in edges if source in (u, v)}
            assert len(set(negatives)) == options.negatives
            assert set(negatives) <= set(range(n)) - neighbours - {source}
    assert sum(map(len, held_out)) + made.num_arcs // 2 == len(edges)
    assert held_out[0] | held_out[1] | edges_of(made) == edges
    check_no_leak(made)
    made.verify()

    again = split(make_store(n, edges, name="another"), store.path.parent / "again", options)
    assert again.content_hash == made.content_hash != store.content_hash


def chi_square(counts: np.ndarray) -> float:
    """Standardised statistic of equal chances; about normal for many cells."""
    expected = counts.sum() / len(counts)
    return ((((counts - expected) ** 2).sum() / expected) - (len(counts) - 1)) / np.sqrt(2 * (len(counts) - 1))


def test_draws_are_uniform(make_store: MakeStore) -> None:
    # A hub whose edges are the first, and a ring in which all nodes but the hub and the neighbours look alike.
    n, spokes = 1001, 400
    ring = {(min(1 + i, 1 + (i + 1) % 1000), max(1 + i, 1 + (i + 1) % 1000)) for i in range(1000)}
    store = make_store(n, ring | {(0, node) for node in range(1, spokes + 1)})
    made = split(store, store.path.parent / "split", LinkSplitOptions(val=0.3, test=0.4, negatives=8, seed=1))
    for part, share in ((made.links.val, 0.3), (made.links.test, 0.4)):
        drawn = np.count_nonzero(part.sources == 0)
        assert abs(drawn - share * spokes) < 4 * np.sqrt(spokes * share * (1 - share))
        smaller = part.sources[(part.sources < part.targets) & (part.sources > 0)]
        assert abs(chi_square(np.histogram(smaller, bins=20, range=(1, n))[0])) < 4
        # Offset on the ring, 0 the node itself: 2 … 998 may be drawn.
        far = part.sources > spokes
        for column in range(8):
            negatives = part.negatives[far, column]
            offset = (negatives[negatives > 0] - part.sources[far][negatives > 0]) % 1000
            assert chi_square(np.bincount(offset - 2, minlength=997)) < 4
    everything = np.concatenate([part.negatives[part.sources > spokes] for part in (made.links.val, made.links.test)])
    counts = np.bincount(everything.ravel(), minlength=n)
    # The hub is nobody's neighbour out there; it and the last node are as likely as the others.
    expected = counts[1 : spokes - 1].mean()
    assert np.abs(counts[[0, n - 1]] - expected).max() < min(4 * np.sqrt(expected), expected)


def test_other_seeds_and_shares_hold_out_other_edges(whole: GraphStore, held: GraphStore, tmp_path: Path) -> None:
    for number, changes in enumerate(({"seed": 6}, {"val": 0.3}, {"negatives": 3})):
        other = split(whole, tmp_path / str(number), SMALL.model_copy(update=changes))
        assert other.content_hash != held.content_hash
        assert (edges_of(other) == edges_of(held)) == ("negatives" in changes)


def test_blocks_do_not_change_the_draws(
    whole: GraphStore, held: GraphStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for numbers in (1, 3 * SMALL.negatives):
        monkeypatch.setattr(link_split, "_BLOCK_NUMBERS", numbers)
        assert split(whole, tmp_path / str(numbers)).content_hash == held.content_hash


def test_all_else_is_shared_and_the_summary_says_it(whole: GraphStore, held: GraphStore) -> None:
    assert whole.links is None
    assert "held-out" not in whole.summary()
    for name in read_meta(whole.path).files:
        assert os.path.samefile(whole.path / name, held.path / name) == (name != TOPOLOGY)
    num_val, num_test = (round(share * len(wheel(24))) for share in (SMALL.val, SMALL.test))
    assert f"  held-out links: val {num_val}, test {num_test}, 4 negatives each\n" in held.summary()
    assert not held.links.val.negatives.flags.owndata
    whole.verify()


def test_a_store_without_links_is_what_it_was_before_there_were_links(write_graph, tmp_path: Path) -> None:
    nodes = {"id": ["a", "b", "c"], "x": [[1.0, 2.0], None, [3.0, 4.0]], "y": ["u", None, "v"]}
    edges = {"src": ["a", "b"], "dst": ["b", "c"]}
    store = ingest(write_graph(tmp_path, nodes, edges, {"m": {"column": "x"}}, label="y"), tmp_path / "s", say=quietly)
    # Both were written down by the version before.
    assert store.content_hash == "c46f46400dd96465305c13b7272e368e4aacb1963b2a4e20682ece14a6dd939c"
    assert " ".join(sorted(json.loads((store.path / "meta.json").read_text()))) == (
        "attributes checksum classes content_hash directed files format has_split id_type modalities name num_arcs "
        "num_nodes version"
    )
    check_no_leak(store)


def with_arcs(store: GraphStore, arcs: Iterable[Edge], folder: Path) -> GraphStore:
    """A copy of ``store`` whose topology has ``arcs`` too."""
    rows = np.repeat(np.arange(store.num_nodes), np.diff(store.topology.indptr))
    all_arcs = sorted([*zip(rows.tolist(), store.topology.indices.tolist(), strict=True), *arcs])
    shutil.copytree(store.path, folder)
    csr = csr_of_arcs(store.num_nodes, all_arcs)
    (folder / TOPOLOGY).unlink()
    meta = read_meta(store.path)
    files = {**meta.files, TOPOLOGY: write_topology(folder / TOPOLOGY, csr)}
    write_meta(folder, meta.model_copy(update={"files": files, "num_arcs": csr.num_arcs}))
    return GraphStore.open(folder)


@pytest.mark.parametrize("ways", [1, 2])
@pytest.mark.parametrize("part", ["val", "test"])
@pytest.mark.parametrize("row", [0, 3, -1])
def test_a_planted_leak_is_caught(held: GraphStore, tmp_path: Path, part: str, row: int, ways: int) -> None:
    queries = getattr(held.links, part)
    u, v = int(queries.sources[row]), int(queries.targets[row])
    leaky = with_arcs(held, [(u, v), (v, u)][:ways], tmp_path / "leaky")
    first = next(query for query in queries_of(queries) if set(query) == {u, v})
    with pytest.raises(InputError, match=rf"held-out {part} link 'n{first[0]}' to 'n{first[1]}' is an edge.*1 more"):
        check_no_leak(leaky)


def test_the_first_of_several_leaks_is_named(held: GraphStore, tmp_path: Path) -> None:
    leaks = [queries_of(held.links.test)[0], queries_of(held.links.val)[2]]
    pairs = np.sort(np.array(leaks), axis=1)
    (tmp_path / "leaky").mkdir()
    leaky = apply_changes(held, EdgeChanges(pairs, np.empty((0, 2), np.int64)), tmp_path / "leaky")
    first = next(query for query in queries_of(held.links.val) if set(query) == set(leaks[1]))
    with pytest.raises(InputError, match=rf"leak: the held-out val link 'n{first[0]}' to 'n{first[1]}'"):
        check_no_leak(leaky)


@pytest.mark.parametrize("column", ["sources", "targets", "negatives"])
def test_verify_notices_damage(held: GraphStore, tmp_path: Path, column: str) -> None:
    shutil.copytree(held.path, tmp_path / "damaged")
    file = tmp_path / "damaged" / "links.arrow"
    content = bytearray(file.read_bytes())
    values = np.concatenate([getattr(part, column) for part in (held.links.val, held.links.test)])
    content[content.index(values.tobytes()) + values.nbytes - 8] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"links\.arrow: damaged"):
        GraphStore.open(tmp_path / "damaged").verify()
    file.write_bytes(content[:-1])
    with pytest.raises(InputError, match=r"links\.arrow: has"):
        GraphStore.open(tmp_path / "damaged")


def test_a_link_moved_to_the_other_part_is_noticed(held: GraphStore, tmp_path: Path) -> None:
    shutil.copytree(held.path, tmp_path / "damaged")
    file = tmp_path / "damaged" / "links.arrow"
    num_val, num_test = len(held.links.val), len(held.links.test)
    file.write_bytes(
        file.read_bytes().replace(b"\1" * num_val + b"\2" * num_test, b"\1" * (num_val - 1) + b"\2" * (num_test + 1))
    )
    with pytest.raises(InputError, match=r"links\.arrow: damaged"):
        GraphStore.open(tmp_path / "damaged").verify()


def test_ppr_is_that_of_the_graph_without_the_links(whole: GraphStore, held: GraphStore, make_store: MakeStore) -> None:
    out = {query for part in (held.links.val, held.links.test) for query in queries_of(part)}
    without = make_store(24, wheel(24) - out)
    assert graph_hash(held.topology) == graph_hash(without.topology)

    def ppr(csr: CSR) -> np.ndarray:
        rows = push_sources(csr, np.arange(24), teleport=0.15, eps=1e-7, k=24)
        dense = np.zeros((24, 24))
        dense[np.repeat(np.arange(24), np.diff(rows.indptr)), rows.indices] = rows.values
        return dense

    edge_list = [arc for u, v in wheel(24) - out for arc in ((u, v), (v, u))]
    exact = exact_ppr(undirected_dense(csr_of_arcs(24, sorted(edge_list))), 0.15)
    np.testing.assert_array_equal(ppr(held.topology), ppr(without.topology))
    np.testing.assert_allclose(ppr(held.topology), exact, atol=1e-6)
    assert np.abs(ppr(whole.topology) - exact).max() > 0.05


def write_changes(path: Path, *rows: tuple[int, int, str]) -> Path:
    columns = [list(column) for column in zip(*rows, strict=True)]
    table = {"source": [f"n{u}" for u in columns[0]], "target": [f"n{v}" for v in columns[1]], "op": columns[2]}
    pyarrow.csv.write_csv(pyarrow.table(table), path)
    return path


@pytest.mark.parametrize("part", ["val", "test"])
@pytest.mark.parametrize("row", [0, -1])
def test_a_held_out_link_cannot_be_inserted(held: GraphStore, tmp_path: Path, part: str, row: int) -> None:
    u, v = queries_of(getattr(held.links, part))[row]
    kept = min(edges_of(held))
    changes = write_changes(tmp_path / "changes.csv", (*kept, "delete"), (u, v, "insert"))
    with pytest.raises(InputError, match=rf"changes\.csv, row 2: the edge 'n{u}' to 'n{v}' is a held-out link"):
        update_ppr(held.path, changes, tmp_path / "new", progress=False, say=quietly)
    assert not (tmp_path / "new").exists()
    with pytest.raises(InputError, match="is not in the graph"):
        update_ppr(held.path, write_changes(changes, (u, v, "delete")), tmp_path / "new", progress=False, say=quietly)


def test_links_stay_when_other_edges_change(held: GraphStore, tmp_path: Path) -> None:
    free = next((u, v) for u in range(24) for v in range(u) if (v, u) not in wheel(24))
    changes = write_changes(tmp_path / "changes.csv", (*min(edges_of(held)), "delete"), (*free, "insert"))
    update_ppr(held.path, changes, tmp_path / "new", progress=False, say=quietly)
    new = GraphStore.open(tmp_path / "new")
    new.verify()
    check_no_leak(new)
    assert edges_of(new) == edges_of(held) - {min(edges_of(held))} | {free[::-1]}
    for part in ("val", "test"):
        old, same = getattr(held.links, part), getattr(new.links, part)
        assert queries_of(old) == queries_of(same)
        np.testing.assert_array_equal(old.negatives, same.negatives)


def test_what_stands_at_the_place_is_left_or_refused(whole: GraphStore, held: GraphStore, tmp_path: Path) -> None:
    split(whole, tmp_path / "out")
    (tmp_path / "out" / "ppr").mkdir()
    lines: list[str] = []
    again = split_links(whole, tmp_path / "out", SMALL, overwrite=True, say=lines.append)
    assert again.content_hash == held.content_hash
    assert (tmp_path / "out" / "ppr").is_dir()
    assert "already" in lines[-1]
    reseeded = SMALL.model_copy(update={"seed": 9})
    with pytest.raises(InputError, match="holds another graph"):
        split(whole, tmp_path / "out", reseeded)
    assert split(whole, tmp_path / "out", reseeded, overwrite=True).content_hash != held.content_hash
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not a graph store"):
        split(whole, tmp_path / "mine", overwrite=True)
    with pytest.raises(InputError, match="is the store to read"):
        split(whole, whole.path, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out"]


def test_a_failure_leaves_nothing(whole: GraphStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("broken disk")

    for module, place in ((link_split, "write_links"), (link_split, "apply_changes"), (staging, "publish")):
        with monkeypatch.context() as patch:
            patch.setattr(module, place, fail)
            with pytest.raises(OSError, match="broken disk"):
                split(whole, tmp_path / "out")
        assert not list(tmp_path.iterdir())


def test_a_uri_holds_the_same_split(
    whole: GraphStore, held: GraphStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = f"memory://{tmp_path.name}/split"
    lines: list[str] = []
    for _ in range(2):
        made = split_links(whole, place, SMALL, say=lines.append)
        assert made.content_hash == held.content_hash
        assert queries_of(made.links.test) == queries_of(held.links.test)
    assert "already" in lines[-1]
    with pytest.raises(InputError, match="holds another graph"):
        split(whole, place, SMALL.model_copy(update={"seed": 9}))
    with pytest.raises(InputError, match="is the store to read"):
        split(made, place)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("val=0.5 test=0.5", r"val \+ test = 1 leaves no edges to train on"),
        ("val=0", "key 'val': Input should be greater than 0; got 0"),
        ("test=1.5", "key 'test': Input should be less than 1"),
        ("negatives=0", "key 'negatives': Input should be greater than or equal to 1"),
        ("negativs=5", "unknown key 'negativs'; did you mean 'negatives'"),
        ("val=0.01 negatives=4", r"val=0\.01 of 28 edges is none; raise val"),
        ("test=0.01 negatives=4", r"test=0\.01 of 28 edges is none; raise test"),
        ("val=0.494 test=0.495 negatives=4", r"val=0\.494 and test=0\.495 of 28 edges leave none"),
        ("negatives=24", r"negatives=24, but only 20 other nodes .* node 'n\d+', .*; lower negatives to 20"),
    ],
)
def test_shares_and_negatives_that_do_not_fit(whole: GraphStore, tmp_path: Path, changes: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        split(whole, tmp_path / "out", parse_options(LinkSplitOptions, changes.split(), "optimag split"))
    assert not list(tmp_path.iterdir())


def test_graphs_that_cannot_be_split(make_store: MakeStore, held: GraphStore, tmp_path: Path) -> None:
    directed = make_store(24, wheel(24), directed=True)
    with pytest.raises(InputError, match=r"is directed.*edges\.directed=false"):
        split(directed, tmp_path / "out")
    with pytest.raises(InputError, match="has held-out links already"):
        split(held, tmp_path / "out")
    star = make_store(9, {(0, node) for node in range(1, 9)})
    with pytest.raises(InputError, match="only 0 other nodes are not neighbours of the node 'n0'"):
        split(star, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_command(whole: GraphStore, held: GraphStore, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["split", str(whole.path), str(out), "val=0.2", "test=0.3", "negatives=4", "seed=5"]
    said = CliRunner().invoke(app, arguments, catch_exceptions=False).output
    made = GraphStore.open(out)
    assert made.content_hash == held.content_hash
    assert said == f"{made.summary()}\nnext: optimag ppr {out}\n"
    assert isinstance(made.links, LinkSplit)
