"""DGL, where it is installed: a sampler by option and the files it saved need it, nothing else does.

Version 1.1.3 has no wheel beyond Python 3.11, and 2.x binds to one version of torch.
"""

import sys
from typing import Any

from optimag_dist.types import InputError


def import_dgl(what: str, instead: str) -> Any:
    """The module ``dgl``; takes seconds. Where it is not installed, or does not import, an InputError that says
    ``what`` needs it and what to do ``instead``."""
    try:
        import dgl
    except (ImportError, OSError) as error:  # OSError: a shared library that does not fit this machine or torch
        has_wheel = sys.version_info < (3, 12)
        remedy = "pip install 'dgl>=1.1.3,<2' packaging" if has_wheel else "use Python 3.10 or 3.11"
        raise InputError(f"{what} needs DGL, which does not import here ({error}); {remedy}, or {instead}") from error
    return dgl
