"""Tables as users have them: what is read, what is refused, and what is said about what is kept."""

import gzip
import os
import re
import unicodedata

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from optimag_dist.inference.ids import read_ids
from optimag_dist.store import ingest
from optimag_dist.store.derive import read_changes
from optimag_dist.types import InputError

NODES = "id,p\na,1\nb,2\nc,3\n"
EDGES = "src,dst\na,b\n"


def write(path, content):
    """Text as UTF-8, bytes as they are, columns as Parquet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes | str):
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    else:
        pq.write_table(pa.table(content), path)


@pytest.fixture
def make(tmp_path):
    """Ingest tables; ``said`` holds what ingest said."""

    def ingest_files(files=(), nodes="nodes.csv", edges="edges.csv", x=("p",), attributes=(), unknown="refuse", **keys):
        for name, content in {"nodes.csv": NODES, "edges.csv": EDGES, **dict(files)}.items():
            write(tmp_path / name, content)
        schema = {
            "name": "g",
            "nodes": {"file": nodes, "id": "id", **keys},
            "modalities": {"m": {"columns": list(x)} if isinstance(x, tuple) else x},
            "attributes": dict(attributes),
            "edges": {"file": edges, "source": "src", "target": "dst", "unknown": unknown},
        }
        (tmp_path / "schema.yaml").write_text(yaml.safe_dump(schema), encoding="utf-8")
        ingest_files.said = said = []
        store = ingest(tmp_path / "schema.yaml", tmp_path / "store", say=said.append, overwrite=True)
        ingest_files.notes = [line for line in said if not line.startswith("needs up to")]
        return store

    return ingest_files


def column(store):
    return dict(
        zip(store.ids(np.arange(store.num_nodes)), store.gather("m", np.arange(store.num_nodes)).T[0], strict=True)
    )


ABC = {"a": 1.0, "b": 2.0, "c": 3.0}
LINES = '{"id": "a", "p": 1}\n\n{"p": 2, "id": "b"}\n{"id": "c", "p": 3.0, "q": [null]}\n'
P = [1, 2, 3]
BYTES = pa.ExtensionArray.from_storage(pa.bool8(), pa.array(P, pa.int8()))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("n.CSV", NODES),
        ("n.csv.gz", gzip.compress(NODES[:9].encode(), mtime=0) + gzip.compress(NODES[9:].encode(), mtime=0)),
        ("n.csv.zst", pa.Codec("zstd").compress(NODES.encode(), asbytes=True)),
        ("n.csv", NODES.replace(",", ";")),
        ("n.csv", NODES.replace(",", "|")),
        ("n.csv", NODES.replace(",", "\t")),
        ("n.tsv", NODES.replace(",", "\t")),
        ("n.csv", "\ufeff" + NODES),
        ("n.csv", '\ufeff"id","p"\n"a",1\n"b",2\n"c",3'),
        ("n.csv", NODES.encode("utf-16")),
        ("n.csv", NODES.replace("\n", "\r\n")),
        ("n.csv", NODES.replace("\n", "\r")),
        ("n.jsonl", LINES),
        ("n.JSON.gz", gzip.compress(LINES.encode(), mtime=0)),
        ("n.PARQUET", {"id": list("abc"), "p": P}),
        ("n.parquet", {"id": pa.array(list("abc")).dictionary_encode(), "p": P}),
        (
            "n.parquet",
            {"id": pa.array(list("abc")), "p": pa.ExtensionArray.from_storage(pa.bool8(), pa.array(P, pa.int8()))},
        ),
    ],
)
def test_every_way_to_write_a_table(make, file, content):
    assert column(make({file: content}, nodes=file)) == ABC


TENSOR = pa.FixedShapeTensorArray.from_numpy_ndarray(np.array([[1, 2], [3, 4], [5, 6]], np.float32))
NOT_NULL = pa.list_(pa.field("item", pa.float64(), nullable=False))


def test_tensors_of_parquet(make):
    store = make({"n.parquet": {"id": list("abc"), "x": TENSOR}}, nodes="n.parquet", x={"column": "x"})
    assert store.gather("m", np.arange(3)).tolist() == [[1, 2], [3, 4], [5, 6]]


@pytest.mark.parametrize(
    ("folder", "file"),
    [
        (
            {
                "t/part-0.parquet": {"id": ["a"], "p": [1]},
                "t/part-1.parquet": {"id": ["b", "c"], "p": [2, 3]},
                "t/_SUCCESS": "",
                "t/.part-0.crc": "x",
            },
            "t",
        ),
        ({"p0.csv": "id,p\na,1\n", "p1.csv": "id,p\n", "p2.csv": "", "p3.csv": "id,p\nb,2\nc,3\n"}, "p*.csv"),
        ({"p0.csv": "id,p\na,1\n", "p1.tsv": "p\tid\n2\tb\n3\tc\n"}, ["p0.csv", "p1.tsv"]),
        (
            {
                "p0.jsonl": '{"id": "a", "p": 1}\n',
                "p1.jsonl": "",
                "p2.jsonl": LINES.replace('{"id": "a", "p": 1}\n', ""),
            },
            "p?.jsonl",
        ),
        (
            {
                "p0.parquet": {"id": ["a"], "p": pa.array([1], pa.int8())},
                "p1.parquet": {"id": ["b", "c"], "p": [2.0, 3.0]},
            },
            "p?.parquet",
        ),
        (
            {"p0.parquet": {"id": pa.nulls(0), "p": pa.nulls(0)}, "p1.parquet": {"id": list("abc"), "p": P}},
            "p?.parquet",
        ),
    ],
)
def test_parts_of_a_table(make, folder, file):
    assert column(make(folder, nodes=file)) == ABC


def test_a_parquet_file_whose_counts_disagree_is_refused(make, tmp_path):
    rows = 60
    columns = {"id": [f"n{row}" for row in range(rows)], "p": np.arange(rows), "title": ["words"] * rows}
    files = {"nodes.parquet": columns, "edges.csv": "src,dst\nn0,n1\n"}
    attributes = {"title": {"column": "title", "kind": "text"}}
    make(files, nodes="nodes.parquet", attributes=attributes)
    good = (tmp_path / "nodes.parquet").read_bytes()
    footer = len(good) - 8 - int.from_bytes(good[-8:-4], "little")
    refused = []
    # Counts of values and rows stand in the footer as zigzag varints: 60 as 120, 28 as 56.
    for at in (at for at in range(footer, len(good)) if good[at] == 2 * rows):
        files["nodes.parquet"] = good[:at] + bytes([2 * 28]) + good[at + 1 :]
        try:
            assert make(files, nodes="nodes.parquet", attributes=attributes).num_nodes == rows
        except InputError as error:
            refused.append(str(error))
    for held, declared in ((rows, 28), (28, rows)):
        assert any(f"holds {held} rows where the file declares {declared}" in text for text in refused)


def test_lists_that_differ_in_what_may_be_null(make):
    parts = {
        "p0.parquet": {"id": ["a"], "x": pa.array([[1.0, 2.0]], NOT_NULL)},
        "p1.parquet": {"id": ["b"], "x": pa.array([[3.0, 4.0]], pa.list_(pa.float32(), 2))},
        "p2.parquet": {"id": ["c"], "x": pa.nulls(1)},
    }
    store = make(parts, nodes="p?.parquet", x={"column": "x"})
    assert store.gather("m", np.arange(3)).tolist() == [[1, 2], [3, 4], [0, 0]]
    assert store.present("m").tolist() == [True, True, False]


BIG = 2**63
REFUSED = {
    # name: (files, keys of the schema, what the message says)
    "swallowed rows": (
        {"nodes.csv": 'id,n,p,q\n0,a,1,1\n1,"5 inch nail,1,1\n2,hammer,2,2\n3,bolt 6",3,3\n'},
        {},
        "nodes.csv, row 2: a quote opens .*closes 2 lines below",
    ),
    "text after a quote": (
        {"nodes.csv": 'id,n,p\n1,"saw"s,1\n'},
        {},
        "nodes.csv, row 1: there is text after a closing quote",
    ),
    "text after another row's quote": (
        {"nodes.csv": 'id,n,p\n1,"nail,1\n2,"saw",1\n'},
        {},
        "nodes.csv, row 1: a quote opens .*closes 1 lines below, before other text",
    ),
    "open quote": ({"nodes.csv": 'id,n,p\n1,a,1\n2,"nail,1\n3,saw,1\n'}, {}, "nodes.csv, row 2: .*is not closed"),
    "quote with a backslash": ({"nodes.csv": 'id,n,p\n1,"6\\" nail",1\n'}, {}, "row 1: .*not with a backslash"),
    "gap in columns": ({"edges.csv": 'src,dst\na,"b\nb,c"\n'}, {}, "edges.csv, row 1: a quote opens"),
    "underscore in a number": ({"nodes.csv": "id,p\na,2\nb,2019_01\n"}, {}, "'p', row 2: '2019_01' is not a number"),
    "digits of another script": ({"nodes.csv": "id,p\na,2\nb,١٢\n"}, {}, "'p', row 2: '١٢' is not a number"),
    "underscore in a list": ({"nodes.csv": "id,p\na,1 2\nb,1_0 2\n"}, {"x": {"column": "p"}}, "'p', row 2: '1_0 2'"),
    "numbers as text in a list": ({"nodes.csv": 'id,p\na,[1]\nb,"[""1_0""]"\n'}, {"x": {"column": "p"}}, "'p', row 2"),
    "number without end in a list": (
        {"nodes.csv": f"id,p\na,[1]\nb,[{10**400}]\n"},
        {"x": {"column": "p"}},
        "'p', row 2: .*…",
    ),
    "word for nothing as a class": (
        {"nodes.csv": "id,p,y\na,1,u\nb,2,NaN\nc,3,None\n"},
        {"label": "y"},
        "'y', row 2: the label is the text 'NaN'.*unlabelled.*1 more",
    ),
    "the same in Parquet": (
        {"n.parquet": {"id": ["a", "b"], "p": [1, 2], "y": ["u", "<NA>"]}},
        {"label": "y", "nodes": "n.parquet"},
        "'y', row 2: the label is the text '<NA>'",
    ),
    "class that looks the same": (
        {"nodes.csv": "id,p,y\na,1,e\u0301\n"},
        {"label": "y", "classes": ["é"]},
        r"differs from '\\xe9'.*accents",
    ),
    "ids beyond 64 bits": (
        {"n.parquet": {"id": pa.array([1, BIG], pa.uint64()), "p": [1, 2]}},
        {"nodes": "n.parquet"},
        f"'id', row 2: the id {BIG} does not fit 64 bits",
    ),
    "dates as ids": (
        {"n.parquet": {"id": pa.array([1, 2], pa.timestamp("s")), "p": [1, 2]}},
        {"nodes": "n.parquet"},
        "'id': ids must be strings or integers, got timestamp",
    ),
    "fractions as labels": (
        {"n.parquet": {"id": ["a"], "p": [1], "y": pa.array([1.5]).cast(pa.decimal128(5, 1))}},
        {"nodes": "n.parquet", "label": "y"},
        "'y': labels must be",
    ),
    "duplicate in another part": (
        {"p0.csv": "id,p\na,1\nb,1\n", "p1.csv": "id,p\nc,1\na,2\n"},
        {"nodes": "p?.csv"},
        r"p1.csv, column 'id', row 2: .*row 1 of p0\.csv has it",
    ),
    "width in another part": (
        {"p0.csv": "id,x\na,1 2\n", "p1.csv": "id,x\nb,1\n"},
        {"nodes": "p?.csv", "x": {"column": "x"}},
        r"p1\.csv, column 'x', row 1: 1 numbers, but row 1 of p0\.csv has 2",
    ),
    "type in another row": (
        {"e.parquet": {"src": [None, 1], "dst": ["a", "b"]}},
        {"edges": "e.parquet"},
        "'src', row (1: the id of a node is empty|2: holds int64 such as 1)",
    ),
    "folder of partitions": (
        {"t/y=1/p.parquet": {"id": ["a"]}},
        {"nodes": "t"},
        "y=1: is a folder within the folder of a table",
    ),
    "folder without files": ({"t/_SUCCESS": ""}, {"nodes": "t"}, "t: is a folder without files"),
    "cut archive": (
        {"n.csv.gz": gzip.compress(NODES.encode(), mtime=0)[:-12]},
        {"nodes": "n.csv.gz"},
        r"n\.csv\.gz: cannot be read",
    ),
    "no archive": ({"n.csv.gz": NODES}, {"nodes": "n.csv.gz"}, r"n\.csv\.gz: cannot be read"),
    "JSON array": ({"n.json": '[{"id": "a"}]'}, {"nodes": "n.json"}, "n.json, row 1: .*one a line"),
    "no JSON": ({"n.jsonl": LINES + "{"}, {"nodes": "n.jsonl"}, "n.jsonl, row 4: not a JSON object"),
    "JSON key twice": (
        {"n.jsonl": LINES + '{"id": "d", "id": "e"}'},
        {"nodes": "n.jsonl"},
        "row 4: .*'id' is there twice",
    ),
    "JSON of two types": (
        {"n.jsonl": LINES + '{"id": 7}'},
        {"nodes": "n.jsonl"},
        "'id', row 4: 7 does not go with the string",
    ),
    "JSON without the column": ({"n.jsonl": '{"Id": "a", "p": 1}'}, {"nodes": "n.jsonl"}, "no column 'id'.*'Id'"),
    "header that looks the same": ({"nodes.csv": "id ,p\na,1\n"}, {}, "no column 'id'.*blanks around it"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(make, tmp_path, name):
    files, keys, words = REFUSED[name]
    with pytest.raises(InputError, match=words):
        make(files, **keys)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    "text",
    [
        'id,n,p\na,"one\ntwo, three",1\nb,,2\nc,"a ""b"" c",3\n',
        'id,n,p\r\na,"one,\r\n\r\ntwo,",1\r\nb,"x",2\r\nc,y,3\r\n',
        'id,n,p\na,6" nail,1\nb,"",2\nc,"""",3\n',
        'n,p,id\n"- red, blue\n- green, grey",1,a\nx,2,b\nx,3,c',
    ],
)
def test_quotes_that_enclose_cells_stay_legal(make, text):
    assert column(make({"nodes.csv": text})) == ABC


@pytest.mark.parametrize(
    ("ids", "end", "words"),
    [
        (["e\u0301", "b"], "é", r"'\xe9' differs from 'e\u0301', which is there, only in how accents are composed"),
        (["a ", "b"], "a", "it differs from 'a ', which is there, only in blanks around it"),
        (["SKU-1", "b"], "sku-1", "'SKU-1', which is there, only in upper and lower case"),
        ([1, 2], "1.0", "'1', which is there, only in how the number is written"),
        (["007", "b"], " 7", "'007', which is there, only in blanks around it and how the number is written"),
    ],
)
def test_ids_that_nearly_are_one(make, ids, end, words):
    nodes = "id,p\n" + "".join(f"{name},1\n" for name in ids)
    with pytest.raises(InputError) as caught:
        make({"nodes.csv": nodes, "edges.csv": f"src,dst\n{ids[1]},{end}\n"})
    assert f"({words}" in str(caught.value) or f"(it differs from {words}" in str(caught.value)
    assert "edges.csv, column 'dst', row 1" in str(caught.value)


def test_unsigned_and_decimal_labels(make):
    for labels in (pa.array([BIG, 5, None], pa.uint64()), pa.array([7, 5, None]).cast(pa.decimal128(20, 0))):
        store = make(
            {"n.parquet": {"id": P, "p": P, "y": labels}, "edges.csv": "src,dst\n1,2\n"}, nodes="n.parquet", label="y"
        )
        assert store.classes == tuple(str(label) for label in sorted(labels[:2].to_pylist()))
        assert store.labels.tolist() == [1, 0, -1]


def test_words_for_nothing_are_classes_where_they_are_listed(make):
    store = make({"nodes.csv": "id,p,y\na,1,none\nb,2,mild\nc,3,\n"}, label="y", classes=["none", "mild"])
    assert store.labels.tolist() == [0, 1, -1]


@pytest.mark.parametrize(
    ("dtype", "numbers", "words"),
    [
        (
            "float32",
            pa.array([1, 2**24 + 1, 2**24 + 3]),
            "row 2: the number is 16777217; which becomes 16777216.*1 more",
        ),
        (
            "float32",
            pa.array([1, 2**53 + 1, None]),
            "row 2: the number is 9007199254740993; which becomes 9007199254740992",
        ),
        ("float32", pa.array([1, 2.0**24 + 1, None]), "row 2: the number is 16777217"),
        ("float32", ["1", "16777217", "3"], "row 2: the number is 16777217"),
        (
            "float16",
            pa.array([1, 2049, 3], pa.int16()),
            "row 2: the number is 2049; which becomes 2048.*use dtype: float32",
        ),
        ("float16", pa.array([1, 1e-9, 3], pa.float32()), "row 2: the number is .*e-10; which float16 keeps as 0"),
        ("float32", pa.array([1, 1e-60, 3]), "row 2: the number is 1e-60; which float32 keeps as 0"),
    ],
)
def test_what_a_dtype_loses_is_said(make, dtype, numbers, words):
    source = {"columns": ["p"], "dtype": dtype}
    kept = {"n.parquet": {"id": list("abc"), "p": [0.1, 2.0**24, 70.0] if dtype == "float32" else [0.1, 2048.0, 70.0]}}
    make(kept, nodes="n.parquet", x=source)
    assert make.notes == []
    store = make({"n.parquet": {"id": list("abc"), "p": numbers}}, nodes="n.parquet", x=source)
    note = make.notes[0]
    assert re.search(rf"modality m: .*n\.parquet, column 'p', {words}", note), note
    assert store.num_nodes == 3


def test_zeros_are_counted_and_present(make):
    store = make({"nodes.csv": "id,p,q\na,0,-0.0\nb,0,1\nc,,\nd,0,0\n"}, x=("p", "q"))
    assert store.present("m").tolist() == [True, True, False, True]
    [note] = make.notes
    assert re.search(
        r"modality m: .*nodes\.csv, row 1: every number is 0, .*leave the cell empty.*\(1 more such rows\)", note
    )


def test_doubtful_columns_are_said(make):
    make({"nodes.csv": "id,p,y\na,1,5\nnan,2,6\nc,3,7\n", "edges.csv": "src,dst\na,nan\n"}, x=("p", "y"), label="y")
    assert [re.sub(r"warning: .*(?=nodes)", "", note) for note in make.notes] == [
        "warning: column 'y' is the label and among the features of modality 'm', so a model is given what it is to "
        "predict; leave it out there",
        "nodes.csv, column 'id', row 2: the id is the text 'nan'; if it means that there is none, drop the row",
    ]


def test_edges_to_strangers_are_dropped_where_asked(make):
    edges = "src,dst\na,b\na,x\ny,x\nb,c\n"
    assert make({"edges.csv": edges}, unknown="drop").num_arcs == 4
    [note] = make.notes
    assert re.search(r"edges\.csv: dropped 2 of 4 edges, .*: 'y', 'x'|'x', 'y'; the first: .*row 2: 'x'", note)
    with pytest.raises(InputError, match=r"'src', row 3: 'y' is not the id .*unknown: drop"):
        make({"edges.csv": edges})
    with pytest.raises(InputError, match="row 1: the id of a node is empty"):
        make({"edges.csv": "src,dst\n,b\n"}, unknown="drop")


PHOTO = {"photo": {"column": "file", "kind": "image_path"}}


@pytest.fixture
def pictures(tmp_path):
    for place in ("secret", "other/far.png", "in/near.png"):
        write(tmp_path.parent / f"{tmp_path.name}-{place}" if place == "secret" else tmp_path / place, place)
    (tmp_path / "in/link.png").symlink_to("near.png")
    (tmp_path / "in/out.png").symlink_to(tmp_path.parent / f"{tmp_path.name}-secret")
    (tmp_path / "elsewhere").symlink_to(tmp_path.parent)
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)
    return tmp_path.parent / f"{tmp_path.name}-secret"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("../{secret}", "lies outside"),
        ("{folder}/{secret}", "lies outside"),
        ("in/../../{secret}", "lies outside"),
        ("in/out.png", "lies outside"),
        ("elsewhere/{secret}", "lies outside"),
        ("..", "lies outside"),
        ("/dev/zero", "lies outside"),
        ("pipe", "no regular file"),
        ("in", "Is a directory"),
        ("huge", "larger than 64 MB"),
        ("none.png", "No such file"),
        ("x" * 5000, "File name too long"),
        ("a\0b", "null byte"),
    ],
)
def test_pictures_that_must_not_be_read(make, tmp_path, pictures, path, words):
    path = path.format(secret=pictures.name, folder=pictures.parent)
    nodes = {"id": ["a", "b"], "p": [1, 2], "file": ["in/near.png", path]}
    with pytest.raises(InputError, match=rf"n\.parquet, column 'file', row 2: the picture .*{words}"):
        make({"n.parquet": nodes}, nodes="n.parquet", attributes=PHOTO)


def test_pictures_in_the_schemas_folder_and_in_allowed_ones(make, tmp_path, pictures):
    paths = ["in/near.png", "in/link.png", f"{tmp_path}/in/near.png"]
    store = make({"n.parquet": {"id": list("abc"), "p": P, "file": paths}}, nodes="n.parquet", attributes=PHOTO)
    assert store.attribute("photo", np.arange(3)) == [b"in/near.png"] * 3
    nodes = {"id": ["a", "b"], "p": [1, 2], "file": [f"../{pictures.name}", "in/out.png"]}
    allowed = {"photo": {**PHOTO["photo"], "allow": [".."]}}
    store = make({"n.parquet": nodes}, nodes="n.parquet", attributes=allowed)
    assert store.attribute("photo", np.arange(2)) == [b"secret"] * 2


@pytest.fixture
def numbered(make):
    """A store of the nodes 1, 2, 7 and 10."""
    return make({"nodes.csv": "id,p\n1,1\n2,1\n7,1\n10,1\n", "edges.csv": "src,dst\n1,2\n"})


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("ids.txt", "7\n1\n"),
        ("ids", "\ufeff7\r\n1\r\n\r\n"),
        ("ids.txt", "7\n1".encode("utf-16")),
        ("ids.txt.gz", gzip.compress(b"7\n1\n", mtime=0)),
        ("ids.csv", "id,n\n7,a\n1,b\n\n"),
        ("ids.tsv", "n\tid\na\t7\nb\t1\n"),
        ("ids.jsonl", '{"id": 7}\n{"id": 1}\n'),
        ("ids.PARQUET", {"id": pa.array([7, 1], pa.uint8())}),
    ],
)
def test_lists_of_nodes_are_read_as_tables_are(numbered, tmp_path, file, content):
    write(tmp_path / file, content)
    assert read_ids(tmp_path / file, numbered) == [7, 1]


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        (
            "ids.parquet",
            {"id": [1.5, 2.0]},
            r"ids\.parquet, column 'id', row 1: holds double such as 1\.5, but the ids",
        ),
        ("ids.txt", "1\n1_0\n", r"ids\.txt, column 'id', row 2: '1_0' is not the id of any node in store"),
        ("ids.txt", "007\n", r"row 1: '007' is not .*differs from '7'.*how the number is written"),
        ("ids.txt", "+7\n", "row 1: '[+]7' is not"),
        ("ids.txt", "٧\n", "row 1: '٧' is not"),
        ("ids.csv", "id\n7\n1.0\n", r"row 2: '1\.0' is not .*differs from '1'"),
        ("ids.csv", "7\n1\n", r"ids\.csv: no column 'id', which --nodes names; .*'7'"),
        ("ids.csv", "id,n\n,a\n1,b\n", "row 1: the id of a node is empty"),
        ("ids.txt", "1\n7\n1\n", "row 3: '1' is listed in an earlier row too"),
        ("ids.txt", "\n\n", "holds no line"),
        ("ids.txt", b"\xff1\n", "line 1: the byte 0xff is not UTF-8"),
        ("ids.parquet", b"PAR1", r"ids\.parquet: cannot be read"),
    ],
)
def test_lists_of_nodes_that_are_refused(numbered, tmp_path, file, content, words):
    write(tmp_path / file, content)
    with pytest.raises(InputError, match=words):
        read_ids(tmp_path / file, numbered)


def test_lookup_takes_no_number_for_another(numbered):
    assert numbered.lookup(["7", "10"], is_text=True).tolist() == [2, 3]
    assert numbered.lookup(np.array([7, 10], np.uint64)).tolist() == [2, 3]
    for wrong in ([1.0], [True], ["7"], [None]):
        with pytest.raises(InputError):
            numbered.lookup(wrong)
    for text in ("007", "1_0", "7.0", " 7"):
        with pytest.raises(InputError, match="no node has the id"):
            numbered.lookup([text], is_text=True)


def test_changes_are_read_as_tables_are(numbered, tmp_path):
    write(
        tmp_path / "changes.CSV.gz",
        gzip.compress("\ufeffsource;target;op\n10;7;insert\n2;1;delete\n".encode(), mtime=0),
    )
    changes = read_changes(tmp_path / "changes.CSV.gz", numbered)
    assert (changes.inserted.tolist(), changes.deleted.tolist()) == ([[2, 3]], [[0, 1]])
    write(tmp_path / "changes.csv", "source,target,op\n10,07,insert\n")
    with pytest.raises(InputError, match="'target', row 1: '07' is not the id"):
        read_changes(tmp_path / "changes.csv", numbered)


def test_composed_and_decomposed_ids_stay_two(make):
    names = [unicodedata.normalize(form, "é") for form in ("NFC", "NFD")]
    store = make({"nodes.csv": f"id,p\n{names[0]},1\n{names[1]},2\n", "edges.csv": f"src,dst\n{names[0]},{names[1]}\n"})
    assert store.lookup(names).tolist() == [0, 1]
