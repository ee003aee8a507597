"""Pages from the templates beside this file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from optimag_dist.files import atomic


def write_page(out: Path, template: str, **values: Any) -> Path:
    """Write the page of ``template`` with ``values``, all of them escaped, to ``out``; an older one is replaced."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template(template).render(**values)
    with atomic(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return out


def shortened(text: str, longest: int) -> str:
    """At most ``longest`` letters of ``text``."""
    return text if len(text) <= longest else text[: longest - 1].rstrip() + "…"


def spread(values: Sequence[Any] | np.ndarray, count: int) -> list[Any]:
    """At most ``count`` of ``values``, evenly spread, for the first few may be all of one kind."""
    return [values[i] for i in np.linspace(0, len(values) - 1, min(len(values), count)).round().astype(int)]
