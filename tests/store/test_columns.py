"""Mean and spread of a modality's columns against numpy in double precision."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from optimag_dist.store import GraphStore, ingest
from optimag_dist.store.columns import ColumnSums
from optimag_dist.store.layout import read_meta, write_meta

from ..tables import write_tables

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(rows=arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 3)), elements=FLOATS), cut=st.integers(0, 9))
def test_they_are_those_of_the_rows_however_these_come(rows: np.ndarray, cut: int) -> None:
    sums = ColumnSums()
    for block in (rows[:cut], rows[cut:]):
        # What is absent does not count.
        with_absent = np.concatenate([np.full_like(block[:1], 7), block])
        sums.add(with_absent, np.arange(len(with_absent)) > (0 if len(block) else -1))
    columns, exact = sums.columns(), rows.astype(np.float64)
    scale = np.abs(exact).max()
    np.testing.assert_allclose(columns.mean, exact.mean(axis=0), rtol=1e-12, atol=1e-15 * scale)
    np.testing.assert_allclose(columns.spread, exact.std(axis=0), rtol=1e-9, atol=1e-15 * scale)


def test_a_constant_column_has_no_spread_and_a_far_mean_costs_none() -> None:
    sums = ColumnSums()
    year = 2**24 + np.array([0, 2, 0, 2], np.float32)
    sums.add(np.stack([np.full(4, np.float32(0.1)), year], axis=1), np.ones(4, bool))
    assert sums.columns().spread.tolist() == [0, 1]


@pytest.fixture
def store(tmp_path: Path) -> GraphStore:
    rng = np.random.default_rng(0)
    price = [None if i == 1 else [float(x), 5.0] for i, x in enumerate(rng.lognormal(3, 1, 30))]
    nodes = {"id": range(30), "facts": price}
    return ingest(write_tables(tmp_path, nodes, [(0, 1)], ["facts"]), tmp_path / "store", say=lambda line: None)


def test_a_store_has_them_and_one_of_an_earlier_version_is_read_through(store: GraphStore) -> None:
    rows = store.gather("facts", np.flatnonzero(store.present("facts"))).astype(np.float64)
    assert store.columns("facts").mean == pytest.approx(rows.mean(axis=0))
    assert store.columns("facts").spread == pytest.approx(rows.std(axis=0))
    store.verify()
    meta = read_meta(store.path)
    file = store.modalities["facts"].columns_file
    (store.path / file).unlink()
    write_meta(store.path, meta.model_copy(update={"files": {k: v for k, v in meta.files.items() if k != file}}))
    old = GraphStore.open(store.path)
    assert old.content_hash == store.content_hash
    for ours, theirs in zip(vars(old.columns("facts")).values(), vars(store.columns("facts")).values(), strict=True):
        assert np.array_equal(ours, theirs)
