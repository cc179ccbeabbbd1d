"""The benchmarks: what is asked, by which protocol it is scored, and how large the whole is.

A benchmark is a task with a fixed reading of a published file; every task runs on records of one's own, too. A protocol that
changes gets a new version. Published figures are in `published`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from ..data.source import CAPTION_QUESTION, LABEL_QUESTION

Task: TypeAlias = Literal["captions", "labels", "detections", "masks", "prompts", "questions", "yes_no", "descriptions"]

Layout: TypeAlias = Literal["coco", "lvis", "osprey", "gar_bench", "pope", "glyph_scenes", "records"]


@dataclass(frozen=True)
class Benchmark:
    """One protocol.

    layout: how the published annotations are read; whole, whole_pictures: how many items and pictures the published
    benchmark has, where that is fixed and known; question: what language models are asked of each region, where the
    benchmark itself asks nothing.
    """

    name: str
    title: str
    task: Task
    version: int
    layout: Layout
    protocol: str
    question: str = LABEL_QUESTION
    whole: int | None = None
    whole_pictures: int | None = None
    max_new_tokens: int = 40
    federated: bool = False
    history: Literal["true", "none"] = "none"


DETAIL_QUESTION = "Describe <region> in detail."
ONE_REFERENCE = "boxes, one reference for each, greedy, corpus scores"
AP_OF_LABELS = "AP of boxes; boxes given, score √(p · IoU), labels above .001, NMS .5 within a category, top 300"
LABELS = "semantic IoU of words in three normalisations, and cosine of sentence vectors; instances and mean of classes"

BENCHMARKS = {
    b.name: b
    for b in (
        Benchmark("vg_full", "Visual Genome, full test set", "captions", 1, "coco", ONE_REFERENCE, CAPTION_QUESTION, 232935),
        Benchmark("vg_glamm", "Visual Genome, GLaMM's subset", "captions", 1, "coco", ONE_REFERENCE, CAPTION_QUESTION, 5000),
        Benchmark("refcocog", "RefCOCOg captions (GLaMM)", "captions", 1, "coco", ONE_REFERENCE, CAPTION_QUESTION),
        Benchmark("lvis_labels", "LVIS region recognition", "labels", 1, "osprey", LABELS, whole=4004, max_new_tokens=20),
        Benchmark("paco_labels", "PACO region recognition", "labels", 1, "osprey", LABELS, whole=4263, max_new_tokens=20),
        Benchmark("coco_classification", "COCO classification of given boxes", "detections", 1, "coco", AP_OF_LABELS,
                  whole_pictures=5000, max_new_tokens=20),
        Benchmark("lvis_classification", "LVIS classification of given boxes", "detections", 1, "lvis", AP_OF_LABELS,
                  whole=244707, max_new_tokens=20, federated=True),
        Benchmark("coco_masks", "COCO masks from boxes", "masks", 1, "coco", "AP of masks (pycocotools); boxes given",
                  whole_pictures=5000),
        Benchmark("lvis_masks", "LVIS masks from boxes", "masks", 1, "lvis", "AP of masks, LVIS's rules; boxes given",
                  whole_pictures=19809, federated=True),
        Benchmark("prompted_masks", "Masks from boxes, points and clicks", "prompts", 1, "coco",
                  "mean IoU over regions; points drawn on the mask; clicks into the larger error's middle"),
        Benchmark("gar_bench", "GAR-Bench-VQA", "questions", 1, "gar_bench", "letter of the choice", whole=424),
        Benchmark("glyph_scenes", "GlyphScenes", "questions", 1, "glyph_scenes", "exact answers 1, a question of each family"),
        Benchmark("answers", "Answers to the records' questions", "questions", 2, "records", "exact answers 1, or the letter",
                  max_new_tokens=64, history="true"),
        Benchmark("pope", "POPE", "yes_no", 2, "pope",
                  "the whole picture as region; yes unless the first sentence says no, silence is neither", whole=3000),
        Benchmark("dlc_bench", "DLC-Bench", "descriptions", 1, "coco", "mean of positive and negative score by a judge",
                  DETAIL_QUESTION, whole=100, max_new_tokens=512),
    )
}  # fmt: skip
"""By the name that `--benchmark` takes."""
