"""The benchmarks: what is asked, by which protocol it is scored, and how large the whole is.

A benchmark is a task with a fixed reading of a published file; every task runs on records of one's own, too. A protocol that
changes gets a new version. Published figures are in `published`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from ..data.source import CAPTION_QUESTION, LABEL_QUESTION

Task: TypeAlias = Literal[
    "captions", "labels", "detections", "masks", "prompts", "questions", "yes_no", "descriptions", "judged"
]
"""What is said of regions, and how it is scored; descriptions and answers ("judged") are a judge's to score."""

Layout: TypeAlias = Literal[
    "coco",
    "lvis",
    "osprey",
    "gar_bench",
    "gar_bench_cap",
    "mdvp_bench",
    "paradlc_bench",
    "pope",
    "glyph_scenes",
    "records",
]


@dataclass(frozen=True)
class Benchmark:
    """One protocol.

    layout: how the published annotations are read; whole, whole_pictures: how many items and pictures the published
    benchmark has, where that is fixed and known; other_wholes: how many items other published sets of it have;
    question: what language models are asked of each region, where the benchmark itself asks nothing.
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
    other_wholes: tuple[int, ...] = ()
    max_new_tokens: int = 40
    federated: bool = False
    history: Literal["true", "none"] = "none"

    def whole_of(self, count: int) -> int | None:
        """How many items the published set has of which there are `count`; None where no size is known."""
        return count if count in self.other_wholes else self.whole


QUESTION_TASKS = ("questions", "yes_no", "judged")
"""Tasks whose items are the questions of a record's conversation; of others, every region is an item."""

DETAIL_QUESTION = "Describe <region> in detail."
ONE_REFERENCE = "boxes, one reference for each, greedy, corpus scores"
AP_OF_LABELS = "AP of boxes; boxes given, score √(p · IoU), labels above .001, NMS .5 within a category, top 300"
LABELS = (
    "semantic IoU of words, and cosine of sentence vectors (SS), cleaned as each named script does; instances and mean of "
    "classes"
)
GAR_CAP = "share of answers that a judge who sees the regions calls True"

BENCHMARKS = {
    b.name: b
    for b in (
        Benchmark("vg_full", "Visual Genome, full test set", "captions", 1, "coco", ONE_REFERENCE, CAPTION_QUESTION, 232935),
        Benchmark("vg_glamm", "Visual Genome, GLaMM's subset", "captions", 1, "coco", ONE_REFERENCE, CAPTION_QUESTION, 5000),
        Benchmark("refcocog", "RefCOCOg captions (GLaMM)", "captions", 1, "coco", ONE_REFERENCE, CAPTION_QUESTION),
        Benchmark("lvis_labels", "LVIS region recognition", "labels", 2, "osprey", LABELS, whole=4004, max_new_tokens=20),
        Benchmark("paco_labels", "PACO region recognition", "labels", 2, "osprey", LABELS, whole=4263, max_new_tokens=20),
        Benchmark("coco_classification", "COCO classification of given boxes", "detections", 1, "coco", AP_OF_LABELS,
                  whole_pictures=5000, max_new_tokens=20),
        Benchmark("lvis_classification", "LVIS classification of given boxes", "detections", 1, "lvis", AP_OF_LABELS,
                  whole=244707, max_new_tokens=20, federated=True),
        Benchmark("coco_masks", "COCO masks from boxes", "masks", 1, "coco", "AP of masks (pycocotools)",
                  whole_pictures=5000),
        Benchmark("lvis_masks", "LVIS masks from boxes", "masks", 1, "lvis", "AP of masks, LVIS's rules",
                  whole_pictures=19809, federated=True),
        Benchmark("prompted_masks", "Masks from boxes, points and clicks", "prompts", 1, "coco",
                  "mean IoU over regions; points drawn on the mask; clicks into the larger error's middle"),
        Benchmark("gar_bench", "GAR-Bench-VQA", "questions", 2, "gar_bench",
                  "the answer is the right choice's letter and nothing else; as meant: or begins with it, or is its words",
                  whole=424),
        Benchmark("gar_bench_cap_simple", "GAR-Bench-Cap, simple", "judged", 1, "gar_bench_cap", GAR_CAP, whole=97,
                  max_new_tokens=512),
        Benchmark("gar_bench_cap_detailed", "GAR-Bench-Cap, detailed", "judged", 1, "gar_bench_cap", GAR_CAP,
                  "Describe <region1> in detail, and tell how it relates to <region2>.", whole=107, max_new_tokens=512),
        Benchmark("glyph_scenes", "GlyphScenes", "questions", 2, "glyph_scenes", "exact answers 1, balanced questions"),
        Benchmark("answers", "Answers to the records' questions", "questions", 2, "records", "exact answers 1, or the letter",
                  max_new_tokens=64, history="true"),
        Benchmark("pope", "POPE", "yes_no", 3, "pope",
                  "the whole picture as region; by POPE's script yes unless a word before the first full stop, between "
                  "blanks, is No, no or not; as meant: words between any white space, silence is neither",
                  whole=3000, other_wholes=(2910,)),
        Benchmark("dlc_bench", "DLC-Bench", "descriptions", 1, "coco", "mean of positive and negative score by a judge",
                  DETAIL_QUESTION, whole=100, max_new_tokens=512),
        Benchmark("paradlc_bench", "ParaDLC-Bench", "descriptions", 1, "paradlc_bench",
                  "mean of positive and negative score by a judge who sees the region; every region described by itself",
                  DETAIL_QUESTION, whole=299, whole_pictures=100, max_new_tokens=512),
        Benchmark("mdvp_bench", "MDVP-Bench", "judged", 1, "mdvp_bench",
                  "mean rating of the answers over that of the true ones, by a judge who sees the marks", max_new_tokens=512),
    )
}  # fmt: skip
"""By the name that `--benchmark` takes."""
