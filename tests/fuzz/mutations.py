"""Changes to files, each made of a list of numbers: the same numbers make the same change."""

import copy
import json
import os
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import yaml

Item = TypeVar("Item")


class Dice:
    """Numbers that decide, one after the other; 0 when they are used up."""

    def __init__(self, numbers: Iterable[int]) -> None:
        self._numbers = iter(numbers)

    def below(self, n: int) -> int:
        return next(self._numbers, 0) % max(1, n)

    def pick(self, items: Sequence[Item]) -> Item:
        return items[self.below(len(items))]


INTEGERS = [0, 1, -1, 2, 5, 255, 10**6, 2**31 - 1, -(2**31), 2**31, 2**32, 2**62, 2**63 - 1, -(2**63)]
FLOATS = [float("nan"), float("inf"), -1.0, 0.0, 1e-30, 1e30, 4e37, 3.4e38, 1e300, 0.5]
VALUES: list[Any] = [
    None,
    True,
    False,
    *INTEGERS,
    2**64,
    10**400,
    *FLOATS,
    "",
    "nan",
    "../x",
    "/",
    "a" * 5000,
    "x\x00y",
    "é[/b]",
    "nodes.csv",
    "id",
    "~",
    [],
    {},
    [[]],
    {"a": 1},
    [1, "a"],
    {"kind": "sage"},
    [None],
]


# -- trees: JSON, YAML, the states of models ---------------------------------------------------------------------------


def change_tree(tree: Any, dice: Dice) -> tuple[Any, str]:
    """A copy of ``tree`` with one value replaced, removed, renamed or doubled, and what was done."""
    tree = copy.deepcopy(tree)
    parent, key, at = _place(tree, dice)
    if parent is None:
        value = dice.pick(VALUES)
        return value, f"the whole is {_short(value)}"
    what = dice.pick(["set", "set", "set", "nudge", "remove", "rename", "double", "swap"])
    if what == "remove":
        del parent[key]
    elif what in ("rename", "double") and isinstance(parent, dict):
        new = dice.pick([f"{key}2", "", "id", "a.b", "..", 1, None, str(key).upper()])
        parent[new] = parent[key] if what == "double" else parent.pop(key)
        what = f"{what} to {new!r}"
    elif what == "swap":
        other, other_key, where = _place(tree, dice)
        if other is None:
            return tree, "nothing"
        parent[key] = copy.deepcopy(other[other_key])
        what = f"= {where}"
    elif what == "nudge" and isinstance(parent[key], (int, float)) and not isinstance(parent[key], bool):
        parent[key] += dice.pick([1, -1, 0.5, 1000])
        what = f"= {_short(parent[key])}"
    else:
        value = dice.pick(VALUES)
        parent[key] = value
        what = f"= {_short(value)}"
    return tree, f"{at} {what}"


def _place(tree: Any, dice: Dice) -> tuple[Any, Any, str]:
    """A random value's container, its key there, and how to say where that is."""
    places: list[tuple[Any, Any, str]] = []

    def visit(node: Any, at: str) -> None:
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            places.append((node, key, f"{at}/{key}"))
            # Aliases of aliases have no end.
            if len(places) < 1000 and isinstance(value, (dict, list)):
                visit(value, f"{at}/{key}")

    if isinstance(tree, (dict, list)):
        visit(tree, "")
    # Once in a while the root itself.
    return dice.pick(places) if places and dice.below(40) else (None, None, "")


def change_json(path: Path, dice: Dice) -> str:
    tree, what = change_tree(json.loads(path.read_text()), dice)
    path.write_text(json.dumps(tree))
    return f"{path.name}: {what}"


YAML_TEXTS = [
    "[" * 5000,
    "{" * 5000,
    "2020-13-45",
    "!!int abc",
    "!!python/object/apply:os.system [true]",
    "!!binary x",
    "!!timestamp x",
    "!unknown 1",
    "&a [*a, *a]",
    "*nothing",
    "off",
    "1_0",
    "0o17",
    "1:30:30",
    ".nan",
    "'",
    '"',
    "\t",
    "- - -",
    "? a",
    "<<: 1",
    "|",
    "%TAG",
    "1" * 5000,
    "\u2028",
]


def change_yaml(path: Path, dice: Dice) -> str:
    tree, what = change_tree(yaml.safe_load(path.read_text()), dice)
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    if dice.below(3) == 2:
        lines = text.splitlines()
        row, token = dice.below(len(lines)), dice.pick(YAML_TEXTS)
        lines[row] = dice.pick([f"{lines[row].split(':')[0]}: {token}", f"{lines[row]}{token}", token])
        what, text = f"{what}; line {row + 1} {token[:20]!r}", "\n".join(lines)
    if dice.below(30) == 29:
        layers = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9))
        what, text = f"{what}; aliases of aliases", f"{text}\na0: &a0 [x]\n{layers}\n"
    path.write_bytes(_encoded(text, dice))
    return f"{path.name}: {what}"


def _encoded(text: str, dice: Dice) -> bytes:
    return text.encode(dice.pick(["utf-8"] * 8 + ["utf-16", "latin-1", "utf-8-sig"]), "replace")


# -- bytes -------------------------------------------------------------------------------------------------------------


def change_bytes(path: Path, dice: Dice) -> str:
    """Damage within a region of the file that its format knows: a buffer of Arrow, a member of an archive, an end."""
    content = bytearray(path.read_bytes())
    if not content:
        return "nothing"
    name, start, stop = dice.pick(_regions(path, len(content)))
    at = start + (dice.below(1 << 16) * 65537 + dice.below(1 << 16)) % max(1, stop - start)
    what = dice.pick(["flip", "flip", "byte", "number", "number", "float", "zeros", "cut", "drop", "insert", "copy"])
    if what == "flip":
        content[at] ^= 1 << dice.below(8)
    elif what == "byte":
        content[at] = dice.pick([0, 1, 0x7F, 0x80, 0xFF])
    elif what == "number":
        size = dice.pick([4, 8])
        at = start + (at - start) // size * size
        content[at : at + size] = struct.pack("<q", dice.pick(INTEGERS))[:size]
    elif what == "float":
        at = start + (at - start) // 4 * 4
        content[at : at + 4] = np.float32(min(dice.pick(FLOATS), 3.4e38)).tobytes()
    elif what == "zeros":
        content[at : at + 16] = bytes(16)
    elif what == "cut":
        del content[at:]
    elif what == "drop":
        del content[at : at + dice.pick([1, 8, 64])]
    elif what == "insert":
        content[at:at] = bytes(dice.pick([1, 8, 64]))
    else:
        content[at : at + 8] = content[start : start + 8]
    # A new file and not the old one's pages: others may have it mapped, or linked.
    path.unlink()
    path.write_bytes(content)
    return f"{path.name}, {name}: {what} at {at}"


def _regions(path: Path, size: int) -> list[tuple[str, int, int]]:
    regions = [("anywhere", 0, size), ("end", max(0, size - 64), size)]
    try:
        if path.suffix == ".arrow":
            regions += _arrow_regions(path)
        elif path.suffix in (".npz", ".pt"):
            with zipfile.ZipFile(path) as archive:
                for info in archive.infolist():
                    regions.append((info.filename, info.header_offset, info.header_offset + 100 + info.compress_size))
        elif path.suffix == ".parquet":
            regions.append(("footer", size - 8 - struct.unpack("<i", path.read_bytes()[-8:-4])[0], size))
    except Exception:  # a second change meets what the first has left
        pass
    return [(name, min(start, size - 1), min(max(stop, 1), size)) for name, start, stop in regions]


def _arrow_regions(path: Path) -> list[tuple[str, int, int]]:
    regions = []
    with pa.memory_map(str(path)) as source:
        base = source.read_buffer().address
        reader = pa.ipc.open_file(source)
        for number in range(min(3, reader.num_record_batches)):
            batch = reader.get_batch(number)
            for column, array in zip(batch.schema.names, batch.columns, strict=True):
                for index, buffer in enumerate(array.buffers()):
                    if buffer is not None and buffer.size:
                        begin = buffer.address - base
                        regions += [(f"batch {number}, {column}, buffer {index}", begin, begin + buffer.size)] * 3
    return regions


def change_file(folder: Path, names: Sequence[str], dice: Dice) -> str:
    """Something else stands where one of the files ``names`` was."""
    path, other = folder / dice.pick(names), folder / dice.pick(names)
    what = dice.pick(["swap", "remove", "empty", "folder", "pipe", "copy", "dangling link", "garbage", "longer"])
    if what == "swap":
        aside = path.with_name("aside")
        path.rename(aside)
        if other.exists():
            other.rename(path)
        aside.rename(other)
    elif what == "copy":
        content = other.read_bytes()
        path.unlink()
        path.write_bytes(content)
    elif what == "longer":
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content + bytes(100))
    else:
        path.unlink()
        made: dict[str, Callable[[], Any]] = {
            "remove": lambda: None,
            "empty": path.touch,
            "folder": path.mkdir,
            "pipe": lambda: os.mkfifo(path),
            "dangling link": lambda: path.symlink_to("nowhere"),
            "garbage": lambda: path.write_bytes(b"\x80garbage\x00\xff" * 9),
        }
        made[what]()
    return f"{path.name}: {what} {other.name if what in ('swap', 'copy') else ''}"


# -- tables and arrays -------------------------------------------------------------------------------------------------

CELLS = [
    "",
    "nan",
    "NaN",
    "None",
    "NA",
    "inf",
    "1e400",
    "-1",
    "1.5",
    "1_0",
    "007",
    "+7",
    " 7",
    "٣",
    "99999999999999999999",
    "0x10",
    "TRUE",
    "true",
    "train",
    "n1",
    "a,b",
    'a"b',
    '"a',
    '"a"b',
    '"5 inch nail',
    "a\nb",
    "x\x00y",
    "é",
    "[/b]",
    "[1, 2]",
    "0.1;0.2;x",
    "[1, null]",
    "a" * 5000,
    "../secret",
]


def change_csv(path: Path, dice: Dice) -> str:
    """Cells, rows, the header, separators, ends of lines or the encoding."""
    rows = [line.split(",") for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    row = dice.below(len(rows))
    what = dice.pick(["cell"] * 8 + ["header", "lacking", "extra", "row", "twice", "blank", "separator", "line ends"])
    separator, ends = ",", "\n"
    if what in ("cell", "header"):
        row = 0 if what == "header" else row
        column, value = dice.below(len(rows[row])), dice.pick(CELLS)
        rows[row][column] = value
        what = f"column {column + 1} = {value[:20]!r}"
    elif what == "lacking":
        rows[row] = rows[row][:-1]
    elif what == "extra":
        rows[row].append(dice.pick(CELLS))
    elif what == "row":
        del rows[row]
    elif what == "twice":
        rows.insert(row, rows[row])
    elif what == "blank":
        rows.insert(row, [""])
    elif what == "separator":
        separator = dice.pick(["\t", ";", ", ", "|"])
    else:
        ends = dice.pick(["\r\n", "\r", "\n\n", "\n\r"])
    path.write_bytes(_encoded(ends.join(separator.join(cells) for cells in rows) + ends, dice))
    return f"{path.name}: line {row + 1} {what}"


_TYPES: list[Callable[[pa.Array], pa.Array]] = [
    lambda array: pa.nulls(len(array)),
    lambda array: pa.array([None] * len(array), pa.string()),
    lambda array: pa.array(np.arange(len(array)), pa.int64()),
    lambda array: pa.array(np.arange(len(array)), pa.uint64()),
    lambda array: pa.array(np.arange(len(array), dtype=np.uint64) + 2**63, pa.uint64()),
    lambda array: pa.array(np.arange(len(array)) % 100, pa.int8()),
    lambda array: pa.array(np.arange(len(array)) * 1.5, pa.float64()),
    lambda array: pa.array(np.arange(len(array), dtype=np.float16)),
    lambda array: pa.array([True] * len(array)),
    lambda array: pa.array([str(i) for i in range(len(array))]).dictionary_encode(),
    lambda array: pa.array([b"\xff"] * len(array), pa.binary()),
    lambda array: pa.array(range(len(array)), pa.timestamp("us")),
    lambda array: pa.array(range(len(array)), pa.date32()),
    lambda array: pa.array(range(len(array)), pa.duration("s")),
    lambda array: pa.array([i for i in range(len(array))], pa.decimal128(20, 2)),
    lambda array: pa.array([[1.0, None]] * len(array)),
    lambda array: pa.array([[]] * len(array), pa.list_(pa.float32())),
    lambda array: pa.array([["a"]] * len(array)),
    lambda array: pa.array([[[1.0]]] * len(array)),
    lambda array: pa.array([{"a": 1}] * len(array)),
    lambda array: pa.array([[1.0, 2.0]] * len(array), pa.list_(pa.float64(), 2)),
    lambda array: pa.FixedShapeTensorArray.from_numpy_ndarray(np.ones((len(array), 2, 2), np.float32)),
    lambda array: pa.array([[("a", 1)]] * len(array), pa.map_(pa.string(), pa.int64())),
    lambda array: pa.array([float("nan")] * len(array)),
    lambda array: pa.array([3e38] * len(array)),
    lambda array: array.cast(pa.large_string()) if pa.types.is_string(array.type) else array,
]


def change_parquet(path: Path, dice: Dice) -> str:
    """The type of a column, single cells, or the columns there are."""
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    number = dice.below(table.num_columns)
    name, column = table.schema.names[number], pa.concat_arrays(table.column(number).chunks)
    what = dice.pick(["type"] * 4 + ["cell"] * 4 + ["drop", "rename", "rows", "double"])
    if what == "type":
        kind = dice.below(len(_TYPES))
        column = _TYPES[kind](column)
        table = table.set_column(number, name, column)
        what = f"type {column.type}"
    elif what == "cell":
        values, row = column.to_pylist(), dice.below(len(column))
        value = dice.pick([None, *INTEGERS, *FLOATS, "", "x", "n1", [], [1.0], [None], [float("nan")]])
        if isinstance(values[row], list) and isinstance(value, (int, float)):
            value = [value, *values[row][1:]]
        try:
            table = table.set_column(number, name, pa.array([*values[:row], value, *values[row + 1 :]]))
        except (pa.ArrowException, OverflowError):
            return "nothing"
        what = f"row {row + 1} = {_short(value)}"
    elif what == "drop":
        table = table.remove_column(number)
    elif what == "rename":
        names = list(table.schema.names)
        names[number] = dice.pick(["", "id", name.upper(), "x", names[0]])
        table = table.rename_columns(names)
    elif what == "rows":
        table = table.slice(0, dice.pick([0, 1, 2]))
    else:
        table = pa.concat_tables([table, table])
    pq.write_table(table, path, row_group_size=dice.pick([1000, 7]), compression=dice.pick(["snappy", "none", "zstd"]))
    return f"{path.name}: {name} {what}"


_DTYPES = [
    *("i1", "i4", "i8", "u1", "u8", "f2", "f4", "f8", ">i8", ">f4", "?", "c8", "U4", "S4", "m8[s]", "f4,f4"),
    "g",
]


def change_arrays(arrays: dict[str, Any], dice: Dice) -> tuple[dict[str, Any], str]:
    """Another type, shape, order or name of one of ``arrays``, or other numbers in it."""
    arrays = dict(arrays)
    key = dice.pick(sorted(arrays))
    array = np.asarray(arrays[key])
    what = dice.pick(["type", "type", "shape", "shape", "value", "value", "value", "name", "remove", "rows", "other"])
    if what == "type":
        dtype = dice.pick(_DTYPES)
        with np.errstate(all="ignore"):
            array = array.astype("f8").astype(dtype) if array.dtype.kind in "iufb" else array
        what = dtype
    elif what == "shape":
        change = dice.pick([np.ravel, np.transpose, np.asfortranarray, lambda a: a[None], lambda a: a[..., None]])
        array = dice.pick([change, lambda a: a[:0], lambda a: a[:, :0] if a.ndim > 1 else a[:1], lambda a: a.sum()])(
            array
        )
        array = np.asarray(array)
        what = f"shape {array.shape}"
    elif what == "value" and array.size and array.dtype.kind in "iuf":
        array = array.copy()
        value = dice.pick([*INTEGERS, *FLOATS])
        with np.errstate(all="ignore"):
            array.reshape(-1)[dice.below(array.size)] = np.array(value).astype(array.dtype)
        what = f"a number is {value}"
    elif what == "name":
        new = dice.pick(
            ["x_", "x_a/b", "x_..", "x_ID", f"{key}_2", "x_x", "x", "val_idx", "classes", "names", "y", "é"]
        )
        arrays[new] = arrays.pop(key)
        return arrays, f"{key} is {new!r}"
    elif what == "remove":
        del arrays[key]
        return arrays, f"{key} removed"
    elif what == "rows":
        array = dice.pick([lambda a: a[:-1], lambda a: np.concatenate([a, a]), lambda a: a[::-1]])(np.atleast_1d(array))
    else:
        array = np.asarray(arrays[dice.pick(sorted(arrays))])
        what = "another array"
    arrays[key] = array
    return arrays, f"{key}: {what}"


def copy_tree(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, symlinks=True)


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**30 else "10**400"
    return text if len(text) < 60 else text[:57] + "…"
