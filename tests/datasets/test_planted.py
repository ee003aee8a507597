"""Made-up graphs: what was asked for is in the tables, within four standard errors where it is drawn."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from optimag_dist.datasets import planted
from optimag_dist.datasets.planted import PlantedOptions, read_truth, write_planted
from optimag_dist.options import load_options, validate_options
from optimag_dist.store import ingest
from optimag_dist.types import InputError

N = 20_000


def options(**changes: object) -> PlantedOptions:
    return validate_options(PlantedOptions, changes, "planted.yaml")


def tables(folder: Path) -> tuple[pa.Table, pa.Table]:
    return pq.read_table(folder / "nodes.parquet"), pq.read_table(folder / "edges.parquet")


def column(table: pa.Table, name: str) -> np.ndarray:
    return table[name].to_numpy()


def features(nodes: pa.Table, name: str) -> np.ndarray:
    return np.stack(nodes[f"x_{name}"].to_numpy(zero_copy_only=False))


def ends(edges: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    return column(edges, "src"), column(edges, "dst")


def is_share(flags: np.ndarray, share: float) -> bool:
    return abs(flags.mean() - share) <= 4 * np.sqrt(share * (1 - share) / len(flags))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[pa.Table, pa.Table]:
    """Two modalities without noise, so that a row of features is its class's centre itself."""
    asked = options(nodes=N, width=3, noise=0, conflicts=[0.1, 0.4])
    return tables(write_planted(tmp_path_factory.mktemp("large") / "graph", asked))


def test_classes_and_conflicts_have_their_shares(large: tuple[pa.Table, pa.Table]) -> None:
    nodes, _ = large
    labels = column(nodes, "label")
    assert column(nodes, "id").tolist() == list(range(N))
    assert all(is_share(labels == c, 1 / 8) for c in range(8))
    first, second = column(nodes, "conflict_m1"), column(nodes, "conflict_m2")
    assert is_share(first, 0.1)
    assert is_share(second, 0.4)
    # Drawn anew for each modality, whatever the class.
    assert is_share(second[first], 0.4)
    assert all(is_share(second[labels == c], 0.4) for c in range(8))


@pytest.mark.parametrize("name", ["m1", "m2"])
def test_a_conflicting_node_shows_another_class(large: tuple[pa.Table, pa.Table], name: str) -> None:
    nodes, edges = large
    labels, conflicts, x = column(nodes, "label"), column(nodes, f"conflict_{name}"), features(nodes, name)
    centres = np.stack([x[(labels == c) & ~conflicts][0] for c in range(8)])
    shown = (x[:, None, :] == centres).all(2)
    assert (shown.sum(1) == 1).all()
    shown = shown.argmax(1)
    assert ((shown != labels) == conflicts).all()
    # Every other class is as likely.
    assert all(is_share((shown - labels)[conflicts] % 8 == step, 1 / 7) for step in range(1, 8))
    source, target = ends(edges)
    assert (column(edges, f"conflict_{name}") == (shown[source] != shown[target])).all()


def test_degree_and_homophily_are_what_was_asked(large: tuple[pa.Table, pa.Table]) -> None:
    nodes, edges = large
    labels = column(nodes, "label")
    source, target = ends(edges)
    assert is_share(labels[source] == labels[target], 0.7)
    drawn = N * 6 // 2
    # Of two edges both within a class, one pair in n²/16 is the same; likewise across classes.
    repeated = drawn**2 / 2 * (0.7**2 * 16 + 0.3**2 * 16 / 7) / N**2
    lost = 0.7 * drawn * 8 / N + repeated
    assert abs(drawn - len(source) - lost) <= 4 * np.sqrt(lost)
    # Every node expects the same: degrees are spread as Poisson's.
    degrees = np.bincount(np.concatenate([source, target]), minlength=N)
    assert abs(degrees.var() - 6) <= 4 * np.sqrt((6 + 2 * 6**2) / N) + 0.02


def test_a_power_law_has_a_heavy_tail(tmp_path: Path) -> None:
    _, edges = tables(write_planted(tmp_path / "graph", options(nodes=N, width=1, exponent=2.5)))
    degrees = np.bincount(np.concatenate(ends(edges)), minlength=N)
    assert 5.5 < degrees.mean() <= 6
    # P(w > x) = x^-1.5, of mean 3 without the cap: ten times the mean is reached by 0.6 % of the nodes, by none of
    # Poisson's; and half as far by 2^1.5 as many.
    assert 0.003 < (degrees > 60).mean() < 0.012
    assert 2 < (degrees > 40).sum() / (degrees > 80).sum() < 4


@pytest.mark.parametrize("exponent", [None, 2.2])
def test_edges_are_distinct_and_no_loops_across_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exponent: float | None
) -> None:
    monkeypatch.setattr(planted, "_PIECE", 300)
    asked = options(nodes=1000, width=2, degree=20, classes=3, exponent=exponent, conflicts=0.25)
    nodes, edges = tables(write_planted(tmp_path / "graph", asked))
    source, target = ends(edges)
    assert (source < target).all()
    assert source.min() >= 0
    assert target.max() < 1000
    assert len(np.unique(source * 1000 + target)) == len(source) > 5000
    assert column(nodes, "id").tolist() == list(range(1000))
    assert is_share(column(nodes, "conflict_m1"), 0.25)


def test_features_are_the_classes_centres_with_noise(tmp_path: Path) -> None:
    nodes, _ = tables(write_planted(tmp_path / "graph", options(nodes=4000, width=8, noise=0.5, conflicts=0)))
    labels, x = column(nodes, "label"), features(nodes, "m1")
    spread = np.concatenate([x[labels == c] - x[labels == c].mean(0) for c in range(8)])
    assert spread.std() == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(2 * spread.size))
    assert not np.allclose(x, features(nodes, "m2"), atol=1)
    assert not column(nodes, "conflict_m1").any()


def test_all_in_conflict_shows_no_class_and_homophily_may_be_either_end(tmp_path: Path) -> None:
    for homophily in (0.0, 1.0):
        asked = options(nodes=500, classes=2, width=2, homophily=homophily, conflicts=1.0)
        nodes, edges = tables(write_planted(tmp_path / str(homophily), asked))
        labels = column(nodes, "label")
        source, target = ends(edges)
        assert ((labels[source] == labels[target]) == bool(homophily)).all()
        assert column(nodes, "conflict_m1").all()


def test_the_seed_decides_everything(tmp_path: Path) -> None:
    asked = {"nodes": 300, "width": 4, "missing": 0.2, "exponent": 2.5}
    first, again, other = (
        tables(write_planted(tmp_path / name, options(**asked, seed=seed)))
        for name, seed in (("first", 5), ("again", 5), ("other", 6))
    )
    assert first[0].equals(again[0])
    assert first[1].equals(again[1])
    for name in ("label", "x_m1", "x_m2", "conflict_m1", "conflict_m2"):
        assert not first[0][name].equals(other[0][name])
    assert not first[1].equals(other[1])
    assert not first[0]["conflict_m1"].equals(first[0]["conflict_m2"])


def test_what_one_option_is_for_the_others_do_not_change(tmp_path: Path) -> None:
    asked = {"nodes": 300, "width": 4}
    first = tables(write_planted(tmp_path / "first", options(**asked)))
    noisy = tables(write_planted(tmp_path / "noisy", options(**asked, noise=2.0, missing=0.5)))
    assert first[1].equals(noisy[1])
    for name in ("label", "conflict_m1", "conflict_m2"):
        assert first[0][name].equals(noisy[0][name])
    more = tables(write_planted(tmp_path / "more", options(**asked, modalities=3, conflicts=[0.3, 0.3, 0.1])))
    assert more[0].select(first[0].column_names).equals(first[0])
    assert first[0].column_names == ["id", "label", "x_m1", "x_m2", "conflict_m1", "conflict_m2"]


def test_missing_modalities_are_null_in_their_share_and_anew_for_each(tmp_path: Path) -> None:
    nodes, _ = tables(write_planted(tmp_path / "graph", options(nodes=5000, width=2, missing=0.3)))
    absent = [np.array(nodes[f"x_{name}"].is_null()) for name in ("m1", "m2")]
    assert is_share(absent[0], 0.3)
    assert is_share(absent[1], 0.3)
    assert is_share(absent[1][absent[0]], 0.3)
    assert not nodes["conflict_m1"].null_count


def test_the_store_made_of_it_has_the_same_nodes_labels_and_features(tmp_path: Path) -> None:
    folder = write_planted(tmp_path / "graph", options(nodes=400, width=5, missing=0.2, classes=3, exponent=2.5))
    store = ingest(folder / "schema.yaml", tmp_path / "store", say=lambda _: None)
    nodes, edges = tables(folder)
    every = np.arange(400)
    assert store.ids(every) == column(nodes, "id").tolist()
    assert store.labels.tolist() == column(nodes, "label").tolist()
    source, target = ends(edges)
    assert len(store.topology.indices) == 2 * len(source)
    for v in (0, 7, 399):
        neighbours = store.topology.indices[store.topology.indptr[v] : store.topology.indptr[v + 1]]
        assert sorted(neighbours) == sorted([*target[source == v], *source[target == v]])
    truth = read_truth(folder)
    for name in ("m1", "m2"):
        present = store.present(name)
        assert (present == ~np.array(nodes[f"x_{name}"].is_null())).all()
        written = np.stack(nodes[f"x_{name}"].filter(pa.array(present)).to_numpy(zero_copy_only=False))
        np.testing.assert_array_equal(store.gather(name, every)[present], written)
        assert truth[name].shape == (400,)


def test_truth_is_read_by_modality_in_the_order_of_the_ids(tmp_path: Path) -> None:
    folder = write_planted(tmp_path / "graph", options(nodes=200, modalities=3, width=2, conflicts=[0.0, 0.5, 1.0]))
    truth = read_truth(folder)
    assert list(truth) == ["m1", "m2", "m3"]
    nodes, _ = tables(folder)
    for name, flags in truth.items():
        assert flags.dtype == bool
        assert flags.tolist() == nodes.sort_by("id")[f"conflict_{name}"].to_pylist()
    assert not truth["m1"].any()
    assert truth["m3"].all()
    with pytest.raises(InputError, match="no planted graph"):
        read_truth(tmp_path)


def test_its_options_are_written_beside_it(tmp_path: Path) -> None:
    asked = options(nodes=50, width=2, modalities=3, conflicts=[0.1, 0.2, 0.3], exponent=3.0, seed=4)
    folder = write_planted(tmp_path / "a" / "graph", asked)
    assert load_options(PlantedOptions, folder / "planted.yaml") == asked
    assert list(yaml.safe_load((folder / "schema.yaml").read_text())["modalities"]) == ["m1", "m2", "m3"]
    assert sorted(f.name for f in folder.iterdir()) == ["edges.parquet", "nodes.parquet", "planted.yaml", "schema.yaml"]
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"conflicts": [0.1]}, "conflicts lists 1 shares; needed one, or one per modality"),
        ({"conflicts": 1.2}, "conflicts=1.2: needed shares from 0 to 1"),
        ({"conflicts": [0.1, -0.1]}, "needed shares from 0 to 1"),
        ({"conflicts": float("nan")}, "needed shares from 0 to 1"),
        ({"classes": 30, "nodes": 20}, "classes=30 is more than nodes=20"),
        ({"classes": 1}, "'classes'.*greater than or equal to 2"),
        ({"exponent": 2.0}, "'exponent'.*greater than 2"),
        ({"homophily": 1.1}, "'homophily'.*less than or equal to 1"),
        ({"missing": 1.0}, "'missing'.*less than 1"),
        ({"degree": 20, "nodes": 20}, "degree=20 of nodes=20: nobody has that many neighbours"),
        ({"nodes": 10**20}, "'nodes'.*less than or equal to"),
        ({"degree": 0}, "'degree'.*greater than 0"),
        ({"noise": -1}, "'noise'"),
        ({"seed": -1}, "'seed'"),
        ({"modalites": 3}, "did you mean 'modalities'"),
    ],
)
def test_options_that_make_no_graph_are_told(changes: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        options(**changes)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_there_already_stays(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "mine"
    notes = out / "notes.txt" if kind == "folder" else out
    notes.parent.mkdir(exist_ok=True)
    notes.write_text("mine")
    with pytest.raises(InputError, match="is there already"):
        write_planted(out, options(nodes=20, width=2))
    assert notes.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("at", ["nodes.parquet", "edges.parquet"])
def test_a_failed_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str, failure: BaseException
) -> None:
    original, opened = pq.ParquetWriter, []

    def failing(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
        opened.append(path)
        if path.name == at:
            raise failure
        return original(path, schema)

    monkeypatch.setattr(planted.pq, "ParquetWriter", failing)
    told = InputError if isinstance(failure, OSError) else type(failure)
    with pytest.raises(told) as raised:
        write_planted(tmp_path / "graph", options(nodes=20, width=2))
    assert opened[-1].name == at
    assert list(tmp_path.iterdir()) == []
    if told is InputError:
        assert "graph: the graph cannot be written there: No space left on device" in str(raised.value)
