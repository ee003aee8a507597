"""The pure parts of the script that builds openmoji; the encoders need not be installed."""

import importlib.util
import io
import json
import sys
import tarfile
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimag_dist.types import InputError

SCRIPT = Path(__file__).parents[2] / "jobs" / "data" / "build_openmoji.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("build_openmoji", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their own module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def record(code, group="food-drink", tags="", own="", skintone=""):
    return {
        "hexcode": code,
        "annotation": f"name of {code}",
        "group": group,
        "tags": tags,
        "openmoji_tags": own,
        "skintone": skintone,
    }


def package(path, records, missing=()):
    contents = {
        "package/package.json": json.dumps({"version": "17.0.0"}),
        "package/data/openmoji.json": json.dumps(records),
        **{f"package/color/svg/{r['hexcode']}.svg": f"<svg>{r['hexcode']}</svg>" for r in records},
    }
    with tarfile.open(path, "w:gz") as archive:
        for name, text in contents.items():
            if name not in missing:
                member = tarfile.TarInfo(name)
                member.size = len(text.encode())
                archive.addfile(member, io.BytesIO(text.encode()))
    return path


def test_edges_of_a_table_made_by_hand(script):
    codes = ["1F34E", "1F34F", "1F9C3", "1F3F3-1F308", "1F308"]
    tags = [["fruit", "food"], ["fruit"], ["food", "juice"], ["flags", "pride"], ["rain"]]
    groups = ["food-drink", "food-drink", "food-drink", "flags", "travel-places"]
    keys = script.link_keys(codes, tags, groups)
    assert keys[0] == {"fruit", "U+1F34E"}  # "food" is a word of a group's name
    # 0-1 share "fruit"; 3-4 share the code point of the rainbow.
    assert script.edges_by_shared_keys(keys).tolist() == [[0, 1], [3, 4]]


def test_a_tag_that_looks_like_a_code_point_is_none(script):
    assert script.link_keys(["0023", "1F600"], [[], ["0023"]], ["symbols", "flags"]) == [
        {"U+0023"},
        {"U+1F600", "0023"},
    ]


@pytest.mark.parametrize(("holders", "edges"), [(20, 190), (21, 0)])
def test_a_key_of_more_than_twenty_nodes_links_nothing(script, holders, edges):
    assert len(script.edges_by_shared_keys([{"face"}] * holders)) == edges


def test_no_shared_key_gives_no_edge(script):
    assert script.edges_by_shared_keys([{"a"}, {"b"}]).shape == (0, 2)


@settings(deadline=None, max_examples=30)
@given(keys=st.lists(st.sets(st.sampled_from("abcdef"), max_size=4), max_size=12), max_size=st.integers(2, 5))
def test_edges_are_what_every_pair_says(script, keys, max_size):
    """Oracle: ask each pair of nodes by itself."""
    allowed = {key for key in "abcdef" if sum(key in own for own in keys) <= max_size}
    expected = [[u, v] for u, v in combinations(range(len(keys)), 2) if keys[u] & keys[v] & allowed]
    assert script.edges_by_shared_keys(keys, max_size).tolist() == expected


@settings(deadline=None, max_examples=30)
@given(groups=st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=60))
def test_the_split_is_stratified_and_reproducible(script, groups):
    split = script.stratified_split(groups)
    np.testing.assert_array_equal(split, script.stratified_split(groups))
    for group in set(groups):
        parts = [str(s) for s, g in zip(split, groups, strict=True) if g == group]
        for name, share in script.SPLIT_SHARES.items():
            assert abs(parts.count(name) - share * len(parts)) <= 1  # two rounded cuts, each off by at most one half


def test_the_package_is_read_without_variants_and_components(script, tmp_path):
    records = [
        record("1F44B", tags="Hand, wave, ", own="wave, Hi"),
        record("1F44B-1F3FB", skintone="1"),
        record("1F3FB", group="component"),
        record("1F34E"),
    ]
    version, emojis = script.read_package(package(tmp_path / "openmoji.tgz", records))
    assert version == "17.0.0"
    assert [(e.code, e.name, e.svg) for e in emojis] == [
        ("1F44B", "name of 1F44B", "<svg>1F44B</svg>"),
        ("1F34E", "name of 1F34E", "<svg>1F34E</svg>"),
    ]
    assert [e.tags for e in emojis] == [("hand", "hi", "wave"), ()]


def test_a_tarball_that_cannot_be_used_is_named(script, tmp_path):
    broken = package(tmp_path / "openmoji.tgz", [record("1F34E")], missing=["package/color/svg/1F34E.svg"])
    with pytest.raises(InputError, match=r"openmoji\.tgz: 'package/color/svg/1F34E\.svg' is not in it"):
        script.read_package(broken)
    other = tmp_path / "other.tgz"
    other.write_bytes(b"not a tarball")
    with pytest.raises(InputError, match=r"other\.tgz: needed the npm tarball of openmoji@17\.0\.0"):
        script.read_package(other)
    with pytest.raises(InputError, match=r"absent\.tgz: needed the npm tarball"):
        script.read_package(tmp_path / "absent.tgz")


def test_an_output_folder_in_use_is_left_alone(script, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="needed a new or an empty folder"):
        script.build(tmp_path / "openmoji.tgz", tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
