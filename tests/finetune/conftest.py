"""The miniature stage that tests of training share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory, make_tokenizer: Any) -> Path:
    """A folder with a language model, two region tokenizers, records and their cache; see `tiny_stage`."""
    for name in ("accelerate", "datasets", "peft"):
        pytest.importorskip(name)
    from tiny_stage import make_stage

    return make_stage(tmp_path_factory.mktemp("stage"), make_tokenizer)
