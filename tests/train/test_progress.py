"""What a run's terminal says of fits whose tasks go by this or that figure."""

import io
from typing import Any

from rich.console import Console

from optimag_dist.train.launch import ProgressView


def _drawn(current: dict[str, Any], finished: list[dict[str, Any]], *, terminal: bool) -> str:
    """All that was drawn when it was told ``current`` and ``finished``."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=200, color_system=None)
    with ProgressView(3, console) as view:
        for result in finished:
            view.result(result)
        view.epoch(current["fit"], current["record"], 9)
    return file.getvalue()


def test_figures_are_named_and_the_decisive_one_comes_first() -> None:
    base = {"seed": 0, "best_epoch": 3, "epochs": 7, "advice": ""}
    finished = [
        {**base, "variant": "words", "decisive": "nll", "val/nll": 3.0, "test/bleu4": 0.125, "test/nll": 3.25},
        {**base, "variant": "old", "val/accuracy": 0.5, "test/accuracy": 0.5, "test/macro_f1": 0.25},
    ]
    current = {"fit": "links seed 1", "record": {"epoch": 4, "loss": 1.5, "val/mrr": 0.375, "val/hits@10": 0.75}}
    lines = [" ".join(line.split()) for line in _drawn(current, finished, terminal=False).splitlines()]
    assert lines == [
        "1/3 words seed 0 nll 3.250 bleu4 0.125 epoch 4/7",
        "2/3 old seed 0 accuracy 0.500 macro_f1 0.250 epoch 4/7",
    ]
    assert "loss 1.500 val mrr 0.375" in " ".join(_drawn(current, [], terminal=True).split())
    unvalidated = {"fit": "links seed 1", "record": {"epoch": 4, "loss": 1.5}}
    assert "val" not in _drawn(unvalidated, [], terminal=True)
