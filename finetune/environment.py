"""What a run was made with: versions, the project's commit, processes. Knows no more of a run than that."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("tap-bridge", "torch", "transformers", "peft", "accelerate", "datasets", "bitsandbytes")


def describe_environment(processes: int = 1, device: str = "cpu") -> dict[str, Any]:
    """Versions of Python and of what matters here, the commit of this project's checkout, processes and device."""
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "commit": _commit(),
        "processes": processes,
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else device,
        "threads": torch.get_num_threads(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def record_environment(folder: Path, step: int, environment: dict[str, Any]) -> None:
    """Append a line to `environment.jsonl`: a run that was resumed may have gone on with other versions."""
    with (folder / "environment.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, **environment}) + "\n")


def in_words(environment: dict[str, Any]) -> str:
    """The environment in one line."""
    versions = ", ".join(f"{name} {environment[name]}" for name in PACKAGES if environment[name])
    place = (
        f"{environment['processes']} process{'es' if environment['processes'] > 1 else ''} on {environment['device']}"
    )
    return f"{versions}; commit {environment['commit'] or 'unknown'}; {place}"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the checkout that this file lies in, marked if files were changed since; None outside of one."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # else it is the checkout of someone else's project
        return git("rev-parse", "HEAD") + ("-changed" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
