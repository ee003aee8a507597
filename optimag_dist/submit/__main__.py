"""Entry point of a Ray job: ``python -m optimag_dist.submit FILE`` in the folder of the job's own files."""

import json
import sys
from pathlib import Path

from optimag_dist.console import end, unfailing_output
from optimag_dist.submit.steps import run_steps

with unfailing_output():
    try:
        content = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
        status = run_steps(content["steps"], Path(content["directory"]), Path.cwd())
    except Exception as error:
        end(error)
sys.exit(status)
