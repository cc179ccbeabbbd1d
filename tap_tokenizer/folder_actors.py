"""What a command says of the pictures of a folder, said by this process or by actors of Ray."""

from __future__ import annotations

import argparse
import hashlib
import json
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .cluster import Work, cluster_for, run_chunks
from .picture_folders import Outcome, PictureRegions, outcome, outcomes
from .tokenizer_flags import load_tokenizer

if TYPE_CHECKING:  # loaded where work begins, so that --help needs no torch
    import numpy as np

    from .region_tokenizer import TapRegionTokenizer

Record = Callable[["PictureRegions", "np.ndarray"], dict[str, Any]]
"""What is said of a picture and its pixels (H, W, 3)."""


def outcomes_here_or_on_ray(
    make_record: Callable[[TapRegionTokenizer], Record],
    tokenizer: TapRegionTokenizer,
    arguments: argparse.Namespace,
    pictures: Sequence[PictureRegions],
) -> Iterator[tuple[PictureRegions, Outcome]]:
    """The outcomes of pictures, in order; or with --ray, in whatever order the actors are through with them.

    make_record: what is said with a tokenizer, this one or an actor's own; can be pickled.
    """
    if not arguments.ray or not pictures:
        yield from outcomes(make_record(tokenizer), pictures)
        return
    with cluster_for(arguments) as device:
        own = argparse.Namespace(**{**vars(arguments), "device": device})
        make = _Elsewhere(make_record, _parts(tokenizer), own, pictures)
        for number, text in run_chunks(make, range(len(pictures)), arguments.ray, gpu=device == "cuda"):
            yield pictures[number], json.loads(text)


@dataclass(frozen=True)
class _Elsewhere:
    """What an actor needs to know."""

    make_record: Callable[[TapRegionTokenizer], Record]
    parts: dict[str, str | None]
    arguments: argparse.Namespace
    pictures: Sequence[PictureRegions]

    def __call__(self) -> Work:
        """Load the tokenizer. Raises `ValueError` if any part of it is another one here, or without the pictures."""
        here, arguments = socket.gethostname(), self.arguments
        if not arguments.image.is_dir():
            raise ValueError(
                f"{here} sees no folder {arguments.image}: put the pictures on a disk that all machines share."
            )
        tokenizer = load_tokenizer(arguments)
        for name, found in _parts(tokenizer).items():
            if found != self.parts[name]:
                raise ValueError(
                    f"{here} has the {name} {found} under the name {arguments.model}, expected {self.parts[name]}: have all "
                    "machines read the same files."
                )
        record = self.make_record(tokenizer)
        return lambda number: json.dumps(outcome(self.pictures[number], record), ensure_ascii=False)


def _parts(tokenizer: TapRegionTokenizer) -> dict[str, str | None]:
    """What tells a tokenizer's parts from others, by what they are: all that is said of a picture depends on them."""
    words = tokenizer.text_tokenizer
    vocabulary = None if words is None else json.dumps(sorted(words.get_vocab().items()))
    return {
        "tokenizer": tokenizer.fingerprint,
        "concept bank": None if tokenizer.concepts is None else tokenizer.concepts.digest,
        "caption vocabulary": None if vocabulary is None else hashlib.sha256(vocabulary.encode()).hexdigest()[:16],
    }
