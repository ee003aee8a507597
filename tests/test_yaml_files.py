"""YAML as users have it: every file is a value or a sentence with its line."""

from pathlib import Path
from typing import Any

import pytest

from optimag_dist.options import Options, load_options, parse_options
from optimag_dist.types import InputError
from optimag_dist.yaml_files import parse_yaml, read_yaml

_LAUGHS = "a0: &a0 [ha]\n" + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
_CHAIN = "a0: &a0 [ha]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 2000))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 2020-13-45", "2020-13-45"),
        ("a: 2020-01-02", "2020-01-02"),
        ("a: 12:30", "12:30"),
        ("a: 010", "010"),
        ("a: -0x1f", -31),
        ("a: 1_000", 1000),
        ("a: 1.5e-3", 0.0015),
        ("a: -.inf", float("-inf")),
        ("a: off", "off"),
        ("a: [on, NO, Yes, y]", ["on", "NO", "Yes", "y"]),
        ("a: {off: {}, no: {}}", {"off": {}, "no": {}}),
        ("a: [true, False]", [True, False]),
        ("a: =", "="),
        ("b: &b {x: 1, y: 2}\na: {<<: *b, x: 3}", {"x": 3, "y": 2}),
        ("\ufeffa: ü", "ü"),
    ],
)
def test_a_value_is_what_people_mean(text: str, value: Any) -> None:
    assert parse_yaml(text, "f")["a"] == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: 2\na: 3", r"line 3, column 1: .*the key 'a' stands twice, first in line 1"),
        ("a:\n  b: {c: 1, c: 2}", r"line 2, column 13: .*the key 'c' stands twice"),
        ("a: 1\n1: 2\n1.0: 3", r"line 3, .*stands twice"),
        ("variants:\n  True: {}", r"line 2, column 3: .*the key True as true or false; put it in quotes: 'True'"),
        ("a:\n\tb: 1", r"line 2, .*'\\t'.*indent by blanks"),
        ("a: !!int abc", r"line 1, column 4: .*'abc' is none of int"),
        ("a: !!timestamp abc", r"line 1, column 4: "),
        ("a: !!map [1]", r"line 1, column 4: "),
        ("a: !!python/object:os.system ls", r"line 1, column 4: "),
        ("a: " + "9" * 5000, r"line 1, column 4: "),
        ("a: " + "[" * 20_000, r"line 1, column \d+: .*nested more than 100 deep"),
        (_LAUGHS, r"line 6, .*values"),
        (_CHAIN, r"line 10\d, .*nested"),
        ("a: &a [*a]", r"line 1, "),
        ('a: "\\uD800"', r"line 1, .*cannot be stored"),
        ('a: "\\0"', r"line 1, .*cannot be stored"),
        ("a: 1\nb: \0", r"line 2: the character U\+0000"),
        ("a: 1\n---\nb: 2", r"line 2, .*another document"),
        ("? [1]\n: 2", r"line 1, "),
        ("a: *b", r"line 1, "),
        ("a: 'b", r"line 1, "),
        ("<<: 3", r"line 1, "),
    ],
)
def test_what_cannot_be_read_is_told_by_line(text: str, words: str) -> None:
    with pytest.raises(InputError, match=rf"^f: not valid YAML, {words}") as raised:
        parse_yaml(text, "f")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "value"),
    [(b"", None), (b"# nothing\n", None), (b"\xef\xbb\xbfa: 1\r\n", {"a": 1}), ("a: ü".encode("utf-16"), {"a": "ü"})],
)
def test_a_file_is_read_in_each_encoding_of_yaml(content: bytes, value: Any, tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_bytes(content)
    assert read_yaml(tmp_path / "f.yaml", "a file") == value


def test_another_encoding_is_told_by_line(tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_bytes("a: 1\nname: Läden\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"f\.yaml: line 2: the byte 0xe4 is not UTF-8; save the file as UTF-8"):
        read_yaml(tmp_path / "f.yaml", "a file")
    (tmp_path / "f.yaml").write_bytes("a: 1".encode("utf-16-le"))
    with pytest.raises(InputError, match=r"f\.yaml: not valid YAML, line 1: "):
        read_yaml(tmp_path / "f.yaml", "a file")


def test_what_is_no_small_file_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder; needed a schema"):
        read_yaml(tmp_path, "a schema")
    with pytest.raises(InputError, match="no such file; needed a schema"):
        read_yaml(tmp_path / "f.yaml", "a schema")
    with pytest.raises(InputError, match="is a pipe or a device"):
        read_yaml(Path("/dev/zero"), "a schema")
    with (tmp_path / "nodes.parquet").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(InputError, match=r"nodes.parquet: 1,073,741,824 bytes, .*needed a schema"):
        read_yaml(tmp_path / "nodes.parquet", "a schema")


class _Small(Options):
    name: str = "x"
    seeds: tuple[int, ...] = ()
    fast: bool = False


def test_options_and_overrides_are_read_by_it(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_text("name: a\nseeds: [1]\nname: b\n")
    with pytest.raises(InputError, match=r"f\.yaml: not valid YAML, line 3, .*'name' stands twice"):
        load_options(_Small, file)
    with pytest.raises(InputError, match=r"^override 'seeds=\[1': not valid YAML, line 1, column \d+: "):
        parse_options(_Small, ["seeds=[1"], "optimag x")
    with pytest.raises(InputError, match=r"key 'name': .*got False \(YAML reads true and false as booleans"):
        parse_options(_Small, ["name=false"], "optimag x")
    with pytest.raises(InputError, match=r"key 'name': .*…$"):
        parse_options(_Small, [f"name={list(range(10_000))}"], "optimag x")
    with pytest.raises(InputError, match=r"key 'fast': .*got 'later'"):
        parse_options(_Small, ["fast=later"], "optimag x")
    read = parse_options(_Small, ["name=2020-01-02", "seeds=[010]", "fast=yes"], "optimag x")
    assert read == _Small(name="2020-01-02", seeds=(10,), fast=True)
    assert parse_options(_Small, ["name=NO", "fast=off"], "optimag x") == _Small(name="NO", fast=False)
