"""The benchmarks: a file for each, and a table of all. `Task` in `task.py` says what such a file holds."""

from .captions import REFCOCOG, VG_FULL, VG_GLAMM
from .classification import COCO_CLASSIFICATION, LVIS_CLASSIFICATION
from .dlc_bench import DLC_BENCH, PARADLC_BENCH
from .gar_bench import GAR_BENCH, GAR_BENCH_CAP_DETAILED, GAR_BENCH_CAP_SIMPLE
from .glyph_scenes import GLYPH_SCENES
from .grefcoco import GREFCOCO
from .labels import LVIS_LABELS, PACO_LABELS
from .masks import COCO_MASKS, LVIS_MASKS
from .mdvp_bench import MDVP_BENCH
from .pope import POPE
from .prompted_masks import PROMPTED_MASKS
from .questions import ANSWERS
from .rec import REC
from .res import RES
from .task import Task

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        VG_FULL, VG_GLAMM, REFCOCOG, LVIS_LABELS, PACO_LABELS, COCO_CLASSIFICATION, LVIS_CLASSIFICATION, COCO_MASKS,
        LVIS_MASKS, PROMPTED_MASKS, GAR_BENCH, GLYPH_SCENES, ANSWERS, POPE, DLC_BENCH, PARADLC_BENCH, GAR_BENCH_CAP_SIMPLE,
        GAR_BENCH_CAP_DETAILED, MDVP_BENCH, REC, RES, GREFCOCO,
    )
}  # fmt: skip
"""The benchmarks by the names that `--benchmark` takes."""
