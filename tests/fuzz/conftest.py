"""How long to look for inputs that are not handled, and one input to look at again."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    # Only where this folder is named, as by make fuzz: else the defaults hold.
    parser.addoption("--fuzz-seconds", type=float, help="for all cases together, with numbers drawn anew")
    parser.addoption("--fuzz-example", help="one example, as a failure prints it")
