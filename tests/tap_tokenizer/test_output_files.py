"""Files that are written: one process at a time, whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tap_tokenizer import ConceptBank, only_writer, write_records, write_whole
from tap_tokenizer.output_files import made_once
from tap_tokenizer.picture_folders import pictures_of

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time
from tap_tokenizer.output_files import only_writer
with only_writer(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_and_a_killed_one_holds_nothing(folder: Path) -> None:
    output = folder / "new" / "out.jsonl"
    command = [sys.executable, "-c", HOLD, str(output)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=r"Another process is writing .*out\.jsonl"), only_writer(output):
            pass
        with pytest.raises(ValueError, match="Another process is writing"):
            write_records(output, pictures_of(folder / "pictures"), {}, lambda picture, pixels: {})
        process.send_signal(signal.SIGKILL)
    write_records(output, pictures_of(folder / "pictures"), {}, lambda picture, pixels: {})
    assert sorted(path.name for path in output.parent.iterdir()) == ["out.jsonl"]


def test_an_output_is_free_again_after_an_error(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), only_writer(tmp_path / "run"):
            1 / 0  # noqa: B018
    assert not list(tmp_path.iterdir())


def test_processes_that_share_a_run_leave_the_lock_to_the_main_one(tmp_path: Path) -> None:
    with only_writer(tmp_path / "run"), only_writer(tmp_path / "run", wanted=False):
        pass


def test_a_text_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "best.json"
    write_whole(path, "é" * 100)
    code = (
        "import resource, signal, sys\n"
        "from tap_tokenizer.output_files import write_whole\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"  # what a full disk does: writing fails midway
        f"write_whole({str(path)!r}, 'x' * 100_000)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert path.read_text(encoding="utf-8") == "é" * 100
    assert [found.name for found in tmp_path.iterdir()] == ["best.json"]


def test_tensors_that_cannot_be_written_leave_the_old_ones(tmp_path: Path) -> None:
    path = tmp_path / "concepts.safetensors"
    ConceptBank(["a"], torch.zeros(3, 1)).save(path)
    old = path.read_bytes()
    code = (
        "import resource, signal, sys, torch\n"
        "from tap_tokenizer import ConceptBank\n"
        "from tap_tokenizer.cli import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        f"    ConceptBank(list('abcdefghi'), torch.zeros(1000, 9)).save({str(path)!r})\n"
        "except OSError as error:\n"
        "    print(error)\n"
        f"sys.exit(main(['convert', 'tap-tiny', {str(tmp_path / 'tap')!r}]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "concepts.safetensors could not be written" in done.stdout
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert path.read_bytes() == old
    assert [found.name for found in tmp_path.iterdir()] == ["concepts.safetensors"]


@pytest.mark.skipif(not hasattr(os, "setuid") or os.geteuid() != 0, reason="only root can become someone else")
def test_a_folder_without_write_permission_is_named(tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(0o755)
    child = os.fork()
    if not child:
        os.setuid(65534)
        try:
            with only_writer(tmp_path / "out.jsonl"):
                os._exit(1)
        except PermissionError as error:
            os._exit(0 if str(error).startswith(f"You may not write in {tmp_path}") else 2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_folder_is_made_once_and_completely(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "first").touch()
        raise OSError("the disk is full")

    folder = tmp_path / "new" / "made.v1"
    with pytest.raises(OSError, match="the disk is full"):
        made_once(folder, fail)
    assert not folder.exists()
    assert not (tmp_path / "new" / "made.v1.partial").exists()
    (tmp_path / "new" / "made.v1.partial").mkdir()  # as a process leaves it that was killed
    assert made_once(folder, lambda partial: (partial / "whole").touch()) == folder
    assert made_once(folder, fail) == folder
    assert [path.name for path in folder.iterdir()] == ["whole"]


@pytest.mark.slow
def test_processes_wait_for_the_one_that_makes_a_folder(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from tap_tokenizer.output_files import made_once\n"
        "def make(folder):\n    time.sleep(1)\n    (folder / 'by').write_text(sys.argv[2])\n"
        "print((made_once(Path(sys.argv[1]), make) / 'by').read_text())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "made")]
    both = [subprocess.Popen([*command, name], cwd=ROOT, stdout=subprocess.PIPE, text=True) for name in "ab"]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert said[0] == said[1]
    assert said[0].strip() in ("a", "b")
