"""`tap-tokenizer describe FOLDER --coco …`: a detector's regions, with TAP's masks and words, as COCO's JSON."""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from .flags import tell_folder, tell_limitation
from .tokenizer_flags import load_tokenizer

if TYPE_CHECKING:  # loaded where work begins, so that --help needs no torch
    import numpy as np

    from .coco_files import CocoDetections
    from .folder_actors import Record
    from .picture_folders import PictureRegions
    from .region_tokenizer import TapRegionTokenizer


def run_coco(arguments: argparse.Namespace) -> int:
    """Describe the regions of a file in COCO's layout, and write them in this layout; gives the exit code.

    Lines of annotations grow beside the output, so that a call that comes after an interruption goes on there.
    """
    from .coco_files import CocoDetections
    from .folder_actors import outcomes_here_or_on_ray
    from .picture_folders import write_outcomes

    given = CocoDetections.read(arguments.coco, arguments.image, arguments.results)
    for what, reason in given.left_out.items():
        sys.stderr.write(f"{what}: {reason}\n")
    wanted = [picture for picture in given.pictures if picture.regions]
    if not wanted:
        raise ValueError(f"{arguments.results or arguments.coco} has no region that can be used.")
    tokenizer = load_tokenizer(arguments)
    lines = arguments.output.with_name(arguments.output.name + ".lines")
    settings = {"region_tokenizer": tokenizer.fingerprint}
    options = [None if tokenizer.concepts is None else tokenizer.concepts.digest, arguments.top_k, arguments.dtype]
    unread: dict[str, str] = {}
    if not lines.exists():
        make_record = partial(_annotated, given, arguments.top_k)
        outcomes_of = partial(outcomes_here_or_on_ray, make_record, tokenizer, arguments)
        unread = write_outcomes(lines, wanted, settings, outcomes_of, options, arguments.skip_unreadable)
    tell_limitation(tokenizer.limitation)
    if unread and not arguments.skip_unreadable:
        return tell_folder(lines, len(wanted), unread)
    with open(lines, encoding="utf-8") as file:
        annotations = [one for line in file for one in json.loads(line)["annotations"]]
    given.write(arguments.output, annotations)
    lines.unlink()
    if given.left_out:
        sys.stderr.write(f"{len(given.left_out)} entries are left out, which are named above.\n")
    print(f"Wrote {len(annotations)} annotations.")
    return tell_folder(arguments.output, len(wanted), unread, arguments.skip_unreadable)


def _annotated(given: CocoDetections, top_k: int, tokenizer: TapRegionTokenizer) -> Record:
    """The annotations of a picture's regions."""

    def record(picture: PictureRegions, pixels: np.ndarray) -> dict[str, Any]:
        regions = tokenizer.encode(pixels, prompts=picture.prompts, with_masks=True)
        captions = tokenizer.caption(regions) if tokenizer.text_tokenizer is not None else None
        concepts = tokenizer.classify(regions, top_k) if tokenizer.concepts is not None else None
        return {"annotations": given.annotations_of(picture, regions, captions=captions, concepts=concepts)}

    return record
