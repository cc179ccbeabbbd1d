"""A recipe's script, run with something in place of Python that only writes down what it was asked to do."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


def commands_of(script: Path, folder: Path, stand_in: str, *flags: str, **variables: str) -> list[str]:
    """The lines that `stand_in`, a bash script, has written to `commands` when the recipe's script has run in `folder`."""
    python = folder / "python"
    python.write_text(stand_in)
    python.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "PYTHON": "./python", **variables}
    subprocess.run(["bash", str(script), *flags], cwd=folder, env=environment, check=True, timeout=60)
    return (folder / "commands").read_text().splitlines()
