"""Whatever is in a file: the command succeeds or refuses it with a sentence.

Never a traceback, a crash of the process, a hang, an answer from damaged bytes, or half a store. The examples are the
same each time, as many as fit into a case's share of five minutes; ``make fuzz`` looks for an hour and draws others.
"""

import json
import random
import time
from collections.abc import Iterator
from itertools import count

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from .cases import CASES, PROBES
from .pool import Child, Outcome

pytestmark = pytest.mark.slow

_SECONDS = 280.0
_AT_ONCE = 40
# So that a faster machine meets no examples that have not been looked at here.
_MOST_ROUNDS = 12
_NUMBERS = st.lists(st.lists(st.integers(0, 1 << 16), min_size=10, max_size=10), min_size=1, max_size=3)


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    child = Child(tmp_path_factory.mktemp("fuzz") / "child")
    yield child
    child.close()


@pytest.mark.parametrize("case", CASES)
def test_every_input_is_taken_or_refused(case: str, child: Child, request: pytest.FixtureRequest) -> None:
    example = request.config.getoption("--fuzz-example", default=None)
    if example is not None:
        _look_again(case, child, *json.loads(example))
        return
    for command in range(len(CASES[case].commands)):
        good = child.run(case, command, [])
        assert good.kind == "success", f"the good input: {good.command}: {good.text}"
    wanted = request.config.getoption("--fuzz-seconds", default=None)
    first = 0 if wanted is None else random.SystemRandom().getrandbits(32)
    rounds = _MOST_ROUNDS if wanted is None else None
    found = _explore(case, child, (wanted or _SECONDS) / len(CASES), first, rounds)
    assert not found, "\n\n".join(found.values())


@pytest.mark.parametrize("kind", sorted(PROBES.commands))
def test_what_goes_wrong_is_seen(kind: str, child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "seconds", 2.0)
    outcome = child.run("probes", sorted(PROBES.commands).index(kind), [[0]])
    assert (outcome.kind, outcome.command) == (kind, kind)


def _explore(case: str, child: Child, seconds: float, first: int, rounds: int | None) -> dict[str, str]:
    """Signature → the first example of each defect that is met."""
    found: dict[str, str] = {}
    end = time.monotonic() + seconds

    def meet(command: int, numbers: list[list[int]]) -> None:
        if time.monotonic() < end:
            outcome = child.run(case, command, numbers)
            if not outcome.right:
                found.setdefault(outcome.signature, _told(case, command, numbers, outcome))

    chosen = settings(
        max_examples=_AT_ONCE,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    for number in count() if rounds is None else range(rounds):
        if time.monotonic() >= end:
            break
        seed(first + number)(chosen(given(st.integers(0, 1 << 16), _NUMBERS)(meet)))()
    return found


def _told(case: str, command: int, numbers: list[list[int]], outcome: Outcome) -> str:
    example = json.dumps([case, command, numbers])
    return (
        f"{outcome.signature}\n  {case}, {outcome.command}: {'; '.join(outcome.what)}\n"
        f"  again: pytest tests/fuzz -m slow --fuzz-example '{example}'\n{outcome.text[-3000:]}"
    )


def _look_again(case: str, child: Child, wanted: str, command: int, numbers: list[list[int]]) -> None:
    if case != wanted:
        pytest.skip("another case")
    outcome = child.run(case, command, numbers)
    print(outcome.kind, outcome.command, *outcome.what, outcome.text, sep="\n")
    assert outcome.right, _told(case, command, numbers, outcome)
