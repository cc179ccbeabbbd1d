"""Chunks of work on a cluster of Ray: actors that hold a model, do one chunk after the other, and are replaced if they die."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Protocol
from warnings import catch_warnings, filterwarnings

from safetensors import SafetensorError

RETRIES = 3
"""How often a chunk is done again after its actor died: machines go, but a chunk that kills every actor would never end."""

_MOST_BLOCKS = 10_000
"""Into how many pieces Ray divides the chunks at most. It does a piece at a time, and keeps account of all of them."""

_CHUNKS_IN_HAND = 2
"""How many chunks an actor is given at a time: the one that it does, and the next one. With one alone it would stand idle after
each chunk, since Ray looks for what is done only ten times a second while other actors are still at work."""

RAY_HELP = "actors of Ray that share the work, each with a CPU, or with a GPU if there are any; 0: this process"
RAY_ADDRESS_HELP = "with ray: address of a cluster, e.g. auto; default: RAY_ADDRESS, or this machine alone"
"""What the help of commands says of --ray and --ray_address."""

Work = Callable[[int], "str | None"]
"""Does the chunk of a number; a text that it returns is brought back. If it is done again, which it is if its actor died, it
must return and leave the same."""


class RayFlags(Protocol):
    """The flags of a command that can share its work among actors of Ray."""

    ray: int
    ray_address: str | None
    device: str | None


def check_ray_flags(flags: RayFlags, processes: int = 1) -> None:
    """Refuse flags of Ray that make no sense, before anything is loaded. processes: how many run this command together."""
    if flags.ray < 0:
        raise ValueError(f"Got ray {flags.ray}: expected at least 0.")
    if not flags.ray:
        if flags.ray_address:
            raise ValueError(f"Got --ray_address {flags.ray_address} without --ray: say how many actors, e.g. --ray 8.")
        return
    if processes > 1:
        raise ValueError(f"Got --ray in {processes} processes: start it without accelerate, as one process.")
    if find_spec("ray") is None:
        raise ValueError("Got --ray, which needs Ray: pip install 'tap-bridge[ray]', or leave --ray out.")
    if flags.device not in (None, "cpu", "cuda"):
        raise ValueError(f"Got --device {flags.device} with --ray, expected cpu or cuda: Ray chooses which GPU.")


@contextmanager
def cluster_for(flags: RayFlags) -> Iterator[str]:
    """The cluster that checked flags ask for, while the block runs; gives the device of its actors, "cpu" or "cuda"."""
    address = flags.ray_address or os.environ.get("RAY_ADDRESS")
    with ray_cluster(address) as resources:
        device = flags.device or ("cuda" if resources.get("GPU") else "cpu")
        kind = "GPU" if device == "cuda" else "CPU"
        if flags.ray > (count := int(resources.get(kind, 0))) and not address:  # a cluster may grow
            raise ValueError(f"Got --ray {flags.ray}, but there are {count} {kind}s here: give at most {count}.")
        yield device


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


def run_chunks(
    make: Callable[[], Work], chunks: Sequence[int], actors: int, *, gpu: bool = False
) -> Iterator[tuple[int, str]]:
    """Have `actors` actors of the connected cluster do the chunks; gives each chunk that has been done, and its text.

    make: called once in every actor, which has one CPU, and one GPU if `gpu`, and works in the folder in which this process
    does, if its machine has it. An actor that dies is replaced, and its chunk is done again. A `ValueError` or `OSError` of
    `make` or of the work ends it all, as a `ValueError` of the same words, and so does a chunk at which actors keep dying, as
    `OSError`.
    """
    import ray.data
    from ray.exceptions import RayActorError

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    blocks = min(len(chunks), _MOST_BLOCKS)
    work = ray.data.from_items([{"chunk": chunk} for chunk in chunks], override_num_blocks=blocks)
    with catch_warnings():
        filterwarnings("ignore", message="`ray_remote_args`")  # the only way to limit retries
        done = work.map_batches(
            _Actor,
            fn_constructor_kwargs={"make": make, "folder": os.getcwd()},
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(
                size=min(actors, len(chunks)), max_tasks_in_flight_per_actor=_CHUNKS_IN_HAND
            ),
            num_cpus=1,
            num_gpus=1 if gpu else None,
            max_task_retries=RETRIES,
        )
    try:
        for row in done.iter_rows():
            if row["error"]:
                raise ValueError(row["error"])
            yield row["chunk"], row["text"]
    except RayActorError as error:
        raise OSError(
            f"An actor of Ray died, and so did {RETRIES} more at the same chunk: look at Ray's logs for why, which is often a "
            "lack of memory, and run the same command again. What has been done is kept."
        ) from error


class _Actor:
    """What Ray keeps alive. What people can mend is handed back: raised, it would come wrapped in Ray's own words."""

    def __init__(self, make: Callable[[], Work], folder: str) -> None:
        self.make = make
        self.work: Work | None = None
        if os.path.isdir(folder):  # else absolute paths may still be right
            os.chdir(folder)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        (chunk,) = batch["chunk"].tolist()
        text = error = ""
        try:
            self.work = self.work or self.make()
            text = self.work(chunk) or ""
        except (ValueError, OSError, SafetensorError) as found:
            error = str(found) or type(found).__name__
        return {"chunk": [chunk], "text": [text], "error": [error]}
