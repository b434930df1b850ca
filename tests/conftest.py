"""Options of the suite."""

from __future__ import annotations

import signal

import pytest

# A shell starts what is to run in the background with Ctrl-C ignored, and so would all that is started here.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite", action="store_true", help="write the output of the scenarios down anew (tests/scenarios/*.txt)"
    )
