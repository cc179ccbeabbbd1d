"""A Chromium for tests of web pages; tests skip where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless browser of playwright, closed afterwards."""
    pytest.importorskip("playwright", reason="needs playwright: the extra dev")
    from browser import find_chromium, open_chromium

    if find_chromium() is None:
        pytest.skip("needs a Chromium: apt-get install chromium")
    with open_chromium() as browser:
        yield browser
