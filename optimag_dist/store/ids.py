"""Users' ids: which cells are numbers, which node an id names, and which one it nearly names."""

import re
import unicodedata
from collections.abc import Callable
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# An integer as a machine writes it: '007' and '+7' stay strings, so that no id is destroyed.
_PLAIN_INTEGER = r"^(0|-?[1-9][0-9]*)$"
# Sign and digits of a whole number, however it is written.
_NUMBER = r"^\+?(-?)0*([0-9]+)(?:\.0*)?$"
# Blanks that are not seen: no break, zero width, byte order mark.
_BLANKS = " \t\r\n\u00a0\u200b\u200c\u200d\u2060\ufeff"


def integers_if_plain(strings: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """Text cells as int64 when every one is an integer as a machine writes it (no leading zero or plus), else as is."""
    if strings.null_count == len(strings) or not pc.all(pc.match_substring_regex(strings, _PLAIN_INTEGER)).as_py():
        return strings
    try:
        return strings.cast(pa.int64())
    except pa.ArrowInvalid:  # beyond 64 bits
        return strings


class NodeIds:
    """The ids of all nodes, (n,) int64 or large_string, to look others up in."""

    def __init__(self, ids: pa.Array) -> None:
        self.ids = ids
        self.kind = "integers" if pa.types.is_integer(ids.type) else "strings"
        # 0, 1, …, n − 1, so that nothing needs looking up.
        self.counting = self.kind == "integers" and bool(np.array_equal(ids.to_numpy(), np.arange(len(ids))))

    def find(self, values: pa.Array, is_text: bool) -> tuple[np.ndarray, np.ndarray] | None:
        """Positions of ``values`` and which of them are unknown (position 0); None if they are of another type.
        ``is_text`` tells that they are cells of a file without types, which names an integer by its digits."""
        compared = self._comparable(values, is_text)
        if compared is None:
            return None
        keys, ids = compared
        if self.counting and pa.types.is_int64(keys.type):
            numbers = keys.fill_null(0).to_numpy()
            unknown = (numbers < 0) | (numbers >= len(ids))
            return np.where(unknown, 0, numbers) if unknown.any() else numbers, unknown
        found = pc.index_in(keys, value_set=ids)
        unknown = found.is_null().to_numpy(zero_copy_only=False)
        return found.fill_null(0).to_numpy().astype(np.int64), unknown

    def near_miss(self, value: object) -> str:
        return near_miss(value, self._text) if isinstance(value, str) else ""

    def _comparable(self, values: pa.Array, is_text: bool) -> tuple[pa.Array, pa.Array] | None:
        if self.kind == "integers":
            keys = integers_if_plain(values) if is_text else values
            if pa.types.is_uint64(keys.type):
                return keys.cast(pa.large_string()), self._text
            if pa.types.is_integer(keys.type):
                return keys.cast(pa.int64()), self.ids
            # Compare as text: '007' is no way to write node 7, and 'x' is simply no node.
            return (keys.cast(pa.large_string()), self._text) if is_text else None
        if pa.types.is_string(values.type):
            values = values.cast(pa.large_string())
        return (values, self.ids) if values.type == self.ids.type else None

    @cached_property
    def _text(self) -> pa.Array:
        return self.ids.cast(pa.large_string())


_ACCENTS = "how accents are composed (NFC, NFD)"
_STEPS: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("blanks around it", lambda text: text.strip(_BLANKS)),
    (_ACCENTS, lambda text: unicodedata.normalize("NFD", text)),
    ("upper and lower case", str.lower),
    ("how the number is written", lambda text: re.sub(_NUMBER, r"\1\2", text)),
)


def near_miss(value: str, known: pa.Array) -> str:
    """A remark on the text of ``known`` (large_string) that differs from ``value`` in what is hard to see, if any."""
    # Composed (NFC) would do as well, but pyarrow before 26 decomposes whatever it is asked for.
    plain = pc.utf8_lower(pc.utf8_normalize(pc.utf8_trim(known, _BLANKS), "NFD"))
    plain = pc.replace_substring_regex(plain, _NUMBER, r"\1\2")
    alike = known.filter(pc.equal(plain, _normal(value)))
    if len(alike) == 0:
        return ""
    other = alike[0].as_py()
    ways = [name for name, _ in _STEPS if _normal(value, without=name) != _normal(other, without=name)]
    # What looks the same is told by its code points.
    show = ascii if _ACCENTS in ways else repr
    both = f"{show(value)} differs from {show(other)}" if show is ascii else f"it differs from {show(other)}"
    return f" ({both}, which is there, only in {' and '.join(ways) or 'how it is written'})"


def _normal(text: str, without: str = "") -> str:
    for name, step in _STEPS:
        if name != without:
            text = step(text)
    return text
