"""`tap-tokenizer describe FOLDER --coco …`: a detector's regions, with TAP's masks and words, as COCO's JSON."""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .counts import counted
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
    from .output_files import write_whole
    from .picture_folders import digest_of, write_outcomes

    given = CocoDetections.read(arguments.coco, arguments.image, arguments.results)
    for what, reason in given.left_out.items():
        sys.stderr.write(f"{what}: {reason}\n")
    wanted = [picture for picture in given.pictures if picture.regions]
    if not wanted:
        raise ValueError(f"{arguments.results or arguments.coco} has no region that can be used.")
    tokenizer = load_tokenizer(arguments)
    lines = arguments.output.with_name(arguments.output.name + ".lines")
    options = [None if tokenizer.concepts is None else tokenizer.concepts.digest, arguments.top_k, arguments.dtype]
    options += [arguments.encoder_precision, arguments.text_tokenizer, arguments.replace_masks]
    regions = [[picture.image, picture.regions] for picture in wanted]
    settings = {"region_tokenizer": tokenizer.fingerprint, "made_from": digest_of([options, regions])}
    unread: dict[str, str] = {}
    if not lines.exists():
        make_record = partial(_annotated, given, arguments.top_k, arguments.replace_masks)
        outcomes_of = partial(outcomes_here_or_on_ray, make_record, tokenizer, arguments)
        unread = write_outcomes(lines, wanted, settings, outcomes_of, options, arguments.skip_unreadable)
    tell_limitation(tokenizer.limitation)
    if unread and not arguments.skip_unreadable:
        return tell_folder(lines, len(wanted), unread)
    made = _annotations_in(lines, settings)
    annotations = [one for own in made.values() for one in own]
    for picture in wanted:
        if picture.image not in made:
            given.pass_over(picture)
            unread.setdefault(picture.image, "It could not be read before an interruption.")
    if unread and not arguments.skip_unreadable:
        raise ValueError(f"{lines} was made with --skip_unreadable true: give it again, or remove the file.")
    if arguments.as_results:
        write_whole(arguments.output, json.dumps(given.as_results(annotations), ensure_ascii=False))
    else:
        given.write(arguments.output, annotations)
    lines.unlink()
    if given.left_out:
        be = "is" if len(given.left_out) == 1 else "are"
        kept = "; annotations among them are written as they were" * bool(given.unused and not arguments.as_results)
        sys.stderr.write(f"{counted(len(given.left_out), 'entry', 'entries')} {be} left out, as named above{kept}.\n")
    print(f"Wrote {counted(len(annotations), 'annotation')}.")
    return tell_folder(arguments.output, len(wanted), unread, arguments.skip_unreadable)


def _annotations_in(lines: Path, settings: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The annotations of each picture in a file of lines.

    Raises `ValueError` if a call that was interrupted made them with other settings.
    """
    made: dict[str, list[dict[str, Any]]] = {}
    with open(lines, encoding="utf-8") as file:
        for line in map(json.loads, file):
            if any(line.get(name) != value for name, value in settings.items()):
                raise ValueError(
                    f"{lines} was made with other regions, models or options: go on as it was made, or remove it."
                )
            made[line["image"]] = line["annotations"]
    return made


def _annotated(given: CocoDetections, top_k: int, replace_masks: bool, tokenizer: TapRegionTokenizer) -> Record:
    """The annotations of a picture's regions."""

    def record(picture: PictureRegions, pixels: np.ndarray) -> dict[str, Any]:
        regions = tokenizer.encode(pixels, prompts=picture.prompts, with_masks=True)
        captions = tokenizer.caption(regions) if tokenizer.text_tokenizer is not None else None
        concepts = tokenizer.classify(regions, top_k) if tokenizer.concepts is not None else None
        own = given.annotations_of(picture, regions, captions=captions, concepts=concepts, replace_masks=replace_masks)
        return {"annotations": own}

    return record
