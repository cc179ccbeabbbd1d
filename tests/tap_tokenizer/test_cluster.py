"""Chunks on a Ray cluster of two workers: all are done whoever dies, and errors come back in their own words."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tap_tokenizer.cluster import RETRIES, ray_cluster, run_chunks

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'tap-bridge[ray]'")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def note(folder: Path, deadly: tuple[int, int] = (-1, 0)) -> Callable[[int], str]:
    """Work that writes down who did a chunk; the chunk deadly[0] kills as many of its actors as deadly[1] says."""

    def work(chunk: int) -> str:
        with (folder / "tried").open("a") as file:
            file.write(f"{chunk} {os.getpid()}\n")
        killed = (folder / "tried").read_text().split("\n")
        if chunk == deadly[0] and sum(line.startswith(f"{chunk} ") for line in killed) <= deadly[1]:
            os.kill(os.getpid(), signal.SIGKILL)
        (folder / f"{chunk}.done").write_text(str(os.getpid()))
        return f"{chunk} is done"

    return work


def refuse(chunk: int) -> None:
    if chunk == 2:
        raise OSError("picture.png is no picture.")


def refuser() -> Callable[[int], None]:
    return refuse


def no_model() -> Callable[[int], None]:
    raise ValueError("Found no weights.")


def test_every_chunk_is_done_once_although_an_actor_was_killed(tmp_path: Path) -> None:
    told = list(run_chunks(partial(note, tmp_path, (3, 1)), range(10, 0, -1), actors=1))
    assert sorted(told) == [(chunk, f"{chunk} is done") for chunk in range(1, 11)]
    tried = [int(line.split()[0]) for line in (tmp_path / "tried").read_text().splitlines()]
    assert sorted(tried) == sorted([*range(1, 11), 3])
    assert len({path.read_text() for path in tmp_path.glob("*.done")}) == 2, "the actor was not replaced"


def test_a_chunk_that_kills_every_actor_ends_the_work(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=rf"An actor of Ray died, and so did {RETRIES} more at the same chunk"):
        list(run_chunks(partial(note, tmp_path, (1, 99)), [1], actors=1))
    assert len((tmp_path / "tried").read_text().splitlines()) == RETRIES + 1


@pytest.mark.parametrize(
    ("make", "words"), [(refuser, "^picture.png is no picture.$"), (no_model, "^Found no weights.$")]
)
def test_errors_that_people_can_mend_keep_their_words(make: Callable[[], Callable[[int], None]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        list(run_chunks(make, range(4), actors=2))


def test_a_connection_of_others_is_used_and_kept() -> None:
    with ray_cluster() as resources:
        assert resources["CPU"] == 2
    assert ray.is_initialized()
