"""A long run without growth: pictures and regions encoded and captioned again and again, the process's memory watched.

    python benchmarks/long_run.py --minutes 60

Encodes what caching a data set encodes, a picture with a handful of regions at a time, on the bundled tokenizer. Exit code 1
if the last tenth of the run had the process at more than 5 % above what the second tenth had; 25 % in a run of less than a
minute, most of which is warming up.
"""

from __future__ import annotations

import statistics
import sys
import time

import numpy as np
import torch
from machine import describe_machine
from region_tokens import resident
from side_by_side import arguments_of

from tap_tokenizer import TapRegionTokenizer

WARM_UP = 16
"""Pictures before memory counts: until then libraries take what they keep."""


def main() -> int:
    """Run, print a line now and then, and judge."""
    arguments = arguments_of(__doc__, minutes={"type": float, "default": 1.0, "help": "how long"})
    minutes = 0.05 if arguments.quick else arguments.minutes
    print(describe_machine())
    tokenizer = TapRegionTokenizer.from_pretrained("tap-tiny", device=arguments.device)
    random = np.random.RandomState(0)
    begun, pictures, taken = 0.0, 0, []
    while pictures <= WARM_UP or time.monotonic() - begun < 60 * minutes:
        if pictures == WARM_UP:
            begun, taken = time.monotonic(), []
        height, width = random.randint(60, 400, 2).tolist()
        picture = random.randint(0, 255, (height, width, 3), dtype=np.uint8)
        boxes = [[0, 0, width * share, height * share] for share in random.uniform(0.2, 1, random.randint(1, 24))]
        regions = tokenizer.encode(picture, boxes=boxes, with_masks=pictures % 4 == 0)
        tokenizer.caption(regions, return_ids=True)
        pictures += 1
        taken.append(resident("VmRSS") if arguments.device == "cpu" else torch.cuda.memory_allocated())
    tenth = max(1, len(taken) // 10)
    early, late = (statistics.median(part) for part in (taken[tenth : 2 * tenth] or taken, taken[-tenth:]))
    print(
        f"{pictures} pictures in {minutes:g} minutes; memory {early / 2**20:.0f} MiB early, {late / 2**20:.0f} MiB late"
    )
    return int(late > (1.05 if minutes >= 1 else 1.25) * early)


if __name__ == "__main__":
    sys.exit(main())
