"""Chunks of work on a cluster of Ray: actors that hold a model, do one chunk after the other, and are replaced if they die."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any
from warnings import catch_warnings, filterwarnings

from safetensors import SafetensorError

RETRIES = 3
"""How often a chunk is done again after its actor died: machines go, but a chunk that kills every actor would never end."""

Work = Callable[[int], object]
"""Does the chunk of a number. If it is done again, which it is if its actor died, it must leave the same."""


def refuse_without_ray() -> None:
    """Raises `ValueError` if Ray is not installed."""
    if find_spec("ray") is None:
        raise ValueError("Got --ray, which needs Ray: pip install 'tap-bridge[ray]', or leave --ray out.")


@contextmanager
def ray_cluster(address: str | None = None) -> Iterator[dict[str, float]]:
    """Connect to a cluster, or start one on this machine while the block runs; gives its resources, such as "CPU" and "GPU".

    address: as for `ray.init`; None: this machine alone. If Ray is already connected, that connection is used, and kept.
    """
    import ray

    own = not ray.is_initialized()
    if own:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else Ray reports to its makers
        options: dict[str, Any] = {} if address else {"include_dashboard": False}
        try:
            ray.init(address or "local", log_to_driver=False, logging_level=logging.WARNING, **options)
        except ConnectionError as error:
            raise ValueError(
                f"Found no Ray cluster at {address} ({error}): start one with `ray start --head`. If there is one, set "
                "RAY_AUTH_MODE and its token here as it is set there."
            ) from None
    try:
        yield ray.cluster_resources()
    finally:
        if own:
            ray.shutdown()


def run_chunks(make: Callable[[], Work], chunks: Sequence[int], actors: int, *, gpu: bool = False) -> Iterator[int]:
    """Have `actors` actors of the connected cluster do the chunks; gives the number of each chunk that has been done.

    make: called once in every actor, which has one CPU, and one GPU if `gpu`. An actor that dies is replaced, and its chunk
    is done again. A `ValueError` or `OSError` of `make` or of the work ends it all, as a `ValueError` of the same words, and so
    does a chunk at which actors keep dying, as `OSError`.
    """
    import ray.data
    from ray.exceptions import RayActorError

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    work = ray.data.from_items([{"chunk": chunk} for chunk in chunks], override_num_blocks=len(chunks))
    with catch_warnings():
        filterwarnings("ignore", message="`ray_remote_args`")  # the only way to limit retries
        done = work.map_batches(
            _Actor,
            fn_constructor_kwargs={"make": make},
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(actors, len(chunks)), max_tasks_in_flight_per_actor=1),
            num_cpus=1,
            num_gpus=1 if gpu else None,
            max_task_retries=RETRIES,
        )
    try:
        for row in done.iter_rows():
            if row["error"]:
                raise ValueError(row["error"])
            yield row["chunk"]
    except RayActorError as error:
        raise OSError(
            f"An actor of Ray died, and so did {RETRIES} more at the same chunk: look at Ray's logs for why, which is often a "
            "lack of memory, and run the same command again. What has been done is kept."
        ) from error


class _Actor:
    """What Ray keeps alive. What people can mend is handed back: raised, it would come wrapped in Ray's own words."""

    def __init__(self, make: Callable[[], Work]) -> None:
        self.make = make
        self.work: Work | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        (chunk,) = batch["chunk"].tolist()
        error = ""
        try:
            self.work = self.work or self.make()
            self.work(chunk)
        except (ValueError, OSError, SafetensorError) as found:
            error = str(found) or type(found).__name__
        return {"chunk": [chunk], "error": [error]}
