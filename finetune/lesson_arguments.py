"""How lessons are made, as `finetune.distill` is told: of which pictures, and what is asked."""

from __future__ import annotations

from dataclasses import dataclass

from .config import knob
from .instructions import SHIPPED


@dataclass(kw_only=True)
class LessonArguments:
    """What lessons are made of."""

    data: str | None = knob(
        default=None, help="records whose regions are asked about: JSONL, or parquet beside pictures"
    )
    pictures: str | None = knob(default=None, help="folder of pictures, in which everything mode finds the regions")
    regions: int = knob(default=8, help="pictures: how many regions of each, the most confident ones that are found")
    points_per_crop: int = knob(default=32, help="pictures: points along each side of the grid that searches them")
    concepts: str | None = knob(
        default=None,
        help="concept bank by which the teacher is told what regions show; default: the one that came with region_tokenizer",
    )
    text_tokenizer: str | None = knob(
        default=None,
        help="caption vocabulary with which the teacher is told what regions show: a file, folder or Hub repository; default: "
        "the one that came with region_tokenizer",
    )
    true_words: bool = knob(
        default=True,
        help="data: tell the teacher a region's own caption and label, where it has them, instead of TAP's",
    )
    questions: int = knob(default=4, help="questions asked about each picture")
    instructions: list[str] = knob(
        default_factory=lambda: [SHIPPED],
        help="YAML files of instructions; shipped is the pool that comes with this project",
    )
    kinds: list[str] = knob(
        default_factory=list,
        help="kinds of instructions to ask, one that is named twice twice as often; default: all in the files",
    )
    own_questions: float = knob(
        default=0.1,
        help="share of the questions that the language model thinks up itself, when told what a region shows",
    )
    held_out: float = knob(
        default=0.05, help="share of the pictures that are kept for evaluation; one is kept at least"
    )
    answer_tokens: int = knob(
        default=48, help="longest answer of the teacher, in tokens; also the longest turn of a talk"
    )
    teacher_batch_size: int = knob(default=32, help="questions that the teacher answers at once")
    lesson_chunk: int = knob(default=16, help="pictures that are written to disk together")
