"""Training that is interrupted, so that the next run has to go on from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from finetune import loop


def interrupt_after_saving(train: Callable[[], Any]) -> None:
    """Train until the first checkpoint has been saved, and no further."""
    plain = loop.save_state

    def save_then_die(*arguments: Any) -> None:
        plain(*arguments)
        raise InterruptedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "save_state", save_then_die)
        with pytest.raises(InterruptedError):
            train()
