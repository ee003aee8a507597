"""The one reader of YAML: of files and of values typed on the command line.

It is stricter than PyYAML where that would be silent, knows no dates, sexagesimals or octals (what looks like one is
text, or the decimal number it shows), and answers anything with a value or an ``InputError`` that names the line.
``on``, ``off``, ``yes`` and ``no`` are texts, which an option that is true or false takes as well.
"""

import codecs
import re
from collections.abc import Hashable
from contextlib import closing
from pathlib import Path
from typing import Any

import yaml

from optimag_dist.types import InputError

# More is no file of settings, and PyYAML takes a second per megabyte.
_MAX_BYTES = 8 << 20
_MAX_DEPTH = 100
# Values with every alias written out.
_MAX_VALUES = 100_000
# What constructors of PyYAML raise, beside its own errors, for a value that is none of its tag.
_NOT_OF_ITS_TAG = (ValueError, LookupError, TypeError, AttributeError, OverflowError)


def read_yaml(path: Path, needed: str) -> Any:
    """What stands in the YAML file ``path``; ``InputError``, with what was ``needed`` (``a YAML file for RunConfig``),
    where there is no such file, or it is not YAML that this package takes."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is a pipe or a device" if path.exists() else "no such file"
        raise InputError(f"{path}: {what}; needed {needed}")
    if path.stat().st_size > _MAX_BYTES:
        raise InputError(f"{path}: {path.stat().st_size:,} bytes, at most {_MAX_BYTES:,} are read; needed {needed}")
    data = path.read_bytes()
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return parse_yaml(data.decode("utf-16" if wide else "utf-8-sig"), str(path))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}: line {line}: the byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8"
        ) from error


def parse_yaml(text: str, source: str) -> Any:
    """The value that ``text`` means; ``source`` says in errors where it stands. Refused is also a key that stands twice
    and what nobody writes by hand: deep nesting, aliases that multiply."""
    try:
        with closing(_Loader(text)) as loader:
            node = loader.get_single_node()
            if node is None:
                return None
            _refuse_many(node)
            return loader.construct_document(node)
    except _NOT_OF_ITS_TAG as error:
        raise InputError(f"{source}: not valid YAML: a value is not what its tag says: {error}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        character = f"U+{error.character:04X}"
        raise InputError(f"{source}: not valid YAML, line {line}: the character {character} cannot be in it") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        context = f" ({error.context})" if error.context else ""
        hint = "; indent by blanks" if "'\\t'" in (error.problem or "") else ""
        raise InputError(f"{source}: not valid YAML{where}: {error.problem}{context}{hint}") from error


class _Loader(yaml.SafeLoader):
    _depth = 0
    close = yaml.SafeLoader.dispose

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self._depth >= _MAX_DEPTH:
            raise _problem(f"nested more than {_MAX_DEPTH} deep", self.peek_event().start_mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
        except _NOT_OF_ITS_TAG as error:
            shown = f" {node.value[:40]!r}" if isinstance(node, yaml.ScalarNode) else ""
            raise _problem(f"the value{shown} is none of {node.tag.rpartition(':')[2]}", node.start_mark) from error
        if isinstance(value, str) and any(c == "\0" or "\ud800" <= c <= "\udfff" for c in value):
            raise _problem("a text with a character that cannot be stored", node.start_mark)
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        first: dict[Any, yaml.Node] = {}
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.tag == "tag:yaml.org,2002:bool":
                raise _problem(
                    f"YAML reads the key {key.value} as true or false; put it in quotes: '{key.value}'", key.start_mark
                )
            name = self.construct_object(key)
            if name in first:
                line = first[name].start_mark.line + 1
                raise _problem(f"the key {key.value!r} stands twice, first in line {line}; leave one", key.start_mark)
            first[name] = key
        return super().construct_mapping(node, deep)


def _problem(text: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=text, problem_mark=mark)


def _refuse_many(root: yaml.Node) -> None:
    """Refuse what would grow beyond all bounds, or for ever, with its aliases written out."""
    known: dict[int, tuple[int, int]] = {}

    def measure(node: yaml.Node) -> tuple[int, int]:
        """Values in ``node``, and how deep they are nested."""
        if id(node) in known:
            return known[id(node)]
        known[id(node)] = _MAX_VALUES, _MAX_DEPTH  # met again within itself
        pairs = node.value if isinstance(node, yaml.CollectionNode) else ()
        parts = [measure(part) for pair in pairs for part in (pair if isinstance(pair, tuple) else (pair,))]
        size, depth = 1 + sum(size for size, _ in parts), 1 + max((depth for _, depth in parts), default=0)
        if size > _MAX_VALUES or depth > _MAX_DEPTH:
            raise _problem(
                f"more than {_MAX_VALUES:,} values, or {_MAX_DEPTH} nested, once aliases are written out",
                node.start_mark,
            )
        known[id(node)] = size, depth
        return size, depth

    measure(root)


# Leave out of YAML 1.1 what turns text silently into other values: dates, 12:30, 010, a country NO.
_DROPPED = {f"tag:yaml.org,2002:{name}" for name in ("timestamp", "value", "int", "float", "bool")}
_Loader.yaml_implicit_resolvers = {
    letter: [rule for rule in rules if rule[0] not in _DROPPED]
    for letter, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind, _written, _firsts in (
    (
        "float",
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+][0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*|0b[01]+|0x[0-9a-fA-F]+)", "-+0123456789"),
    ("bool", "true|True|TRUE|false|False|FALSE", "tTfF"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"^(?:{_written})$"), list(_firsts))
