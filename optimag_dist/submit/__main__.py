"""Entry point of a Ray job: ``python -m optimag_dist.submit FILE`` in the folder of the job's own files."""

import json
import sys
from pathlib import Path

from optimag_dist.submit.steps import run_steps
from optimag_dist.types import InputError

content = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
try:
    sys.exit(run_steps(content["steps"], Path(content["directory"]), Path.cwd()))
except InputError as error:
    print(f"optimag: {error}", file=sys.stderr)
    sys.exit(2)
