"""What a run writes about itself: `log.jsonl`, a plot of its losses, and `environment.jsonl` with versions and commit."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from tap_tokenizer import write_whole

PACKAGES = ("tap-bridge", "torch", "transformers", "peft", "accelerate", "datasets", "bitsandbytes")


class RunLog:
    """`log.jsonl` of a run, with a line of numbers after every few steps, which accelerate's trackers get, too."""

    def __init__(self, folder: Path, accelerator: Accelerator) -> None:
        self.path = folder / "log.jsonl"
        self.accelerator = accelerator

    def write(self, values: dict[str, float | int]) -> None:
        """Append a line; floats to five decimals."""
        if self.accelerator.is_main_process:
            line = {name: round(value, 5) if isinstance(value, float) else value for name, value in values.items()}
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        numbers = {name: value for name, value in values.items() if name != "step"}
        self.accelerator.log(numbers, step=int(values["step"]))  # trackers, if the run has any

    def read(self) -> list[dict[str, float]]:
        """All lines so far, except for a last one that a full disk or a kill left incomplete."""
        lines = self.path.read_text().split("\n")[:-1] if self.path.exists() else []
        try:
            return [json.loads(line) for line in lines]
        except ValueError:
            raise ValueError(f"{self.path} is damaged: move it away to continue with a new one.") from None

    def forget_after(self, step: int) -> None:
        """Drop lines of steps after the last checkpoint: they are about to be run again."""
        if self.accelerator.is_main_process and self.path.exists():
            kept = [json.dumps(line) for line in self.read() if line["step"] <= step]
            write_whole(self.path, "".join(line + "\n" for line in kept))


def draw_losses(lines: Sequence[dict[str, float]], path: Path, title: str = "") -> None:
    """Write a PNG of `loss` and `val_loss` over steps, and of shares such as `val_answer` below, if the log has any."""
    from .figure_style import new_figure, save_figure, styled  # here: it takes longer to load than most need it

    shares = [
        name for name in dict.fromkeys(n for line in lines for n in line) if name in ("val_answer", "val_accuracy")
    ]
    count = 1 + bool(shares)
    with styled():
        figure = new_figure(2.9 + 1.9 * bool(shares))
        rows = figure.subplots(count, 1, sharex=True, squeeze=False, height_ratios=[3, 2][:count])[:, 0]
        for name, words in (("loss", "training"), ("val_loss", "held out")):
            _curve(rows[0], lines, name, words)
        rows[0].set_ylabel("loss")
        rows[0].set_title(title)
        for name in shares:
            _curve(rows[1], lines, name, "answers right, held out")
        if shares:
            rows[1].set_ylim(-0.02, 1.02)
        for row in rows:
            row.grid(axis="y")
            if row.lines:
                row.legend()
        rows[-1].set_xlabel("step")
        save_figure(figure, path)


def _curve(axes: object, lines: Sequence[dict[str, float]], name: str, words: str) -> None:
    points = [(line["step"], line[name]) for line in lines if name in line]
    if points:
        marker = "o" if len(points) < 40 else ""
        axes.plot(*zip(*points), marker=marker, label=words)  # type: ignore[attr-defined]


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
