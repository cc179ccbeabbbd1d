"""What mkdocs does to a page before it reads it.

`no-run` behind a fence's language is for the test that runs the blocks, and means nothing to a reader.
"""

from __future__ import annotations

import re
from typing import Any


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page without the test's marks."""
    return re.sub(r"^```(\w+) no-run$", r"```\1", markdown, flags=re.MULTILINE)
