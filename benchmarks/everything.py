"""Everything mode: asking every point, and asking first at half the resolution; on pictures of glyphs with tap-tiny.

    python benchmarks/everything.py
    python benchmarks/everything.py --pictures 20 --threads 1

CPU seconds of both ways in turns (on a GPU, seconds), and how many regions of the thorough search the other one finds, at an
IoU of 0.9 or more.
"""

from __future__ import annotations

import json
import time

import torch
from machine import describe_machine
from PIL import Image
from side_by_side import arguments_of

from finetune.glyphs.scenes import draw_scene, make_scene
from tap_tokenizer import RegionTokens, TapRegionTokenizer


def main() -> None:
    """Measure and print."""
    arguments = arguments_of(__doc__, pictures={"type": int, "default": 6, "help": "how many are searched"})
    pictures = 1 if arguments.quick else arguments.pictures
    options = {"points_per_crop": 8 if arguments.quick else 32}
    tokenizer = TapRegionTokenizer.from_pretrained("tap-tiny", device=arguments.device, dtype=arguments.dtype)
    unit = "CPU s" if arguments.device == "cpu" else "s"
    seconds, counts = {True: 0.0, False: 0.0}, {"thorough": 0, "found": 0, "screened": 0}
    for number in range(10, 10 + pictures):
        image = Image.fromarray(draw_scene(make_scene(number, "test", 0), 256).image)
        features = tokenizer.embed_image(image)
        results = {}
        for thorough in (True, False):
            begun = clock(arguments.device)
            results[thorough] = tokenizer.encode_everything(features=features, thorough=thorough, **options)
            seconds[thorough] += clock(arguments.device) - begun
        counts["thorough"] += len(results[True])
        counts["screened"] += len(results[False])
        counts["found"] += found_again(results[True], results[False])
    text = (
        f"{describe_machine()}; tap-tiny, {arguments.dtype} on {arguments.device}, {options['points_per_crop']}² points, "
        f"{pictures} pictures\n\n"
        f"| | thorough, {unit} | screened, {unit} | thorough / screened | regions | found again | of |\n"
        f"{'|---' * 7}|\n"
        f"| a picture | {seconds[True] / pictures:.2f} | {seconds[False] / pictures:.2f} | "
        f"**{seconds[True] / seconds[False]:.2f}** | {counts['screened']} | {counts['found']} | {counts['thorough']} |\n"
    )
    print(f"\n{text}")
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "everything.md").write_text(text)
    found = {"machine": describe_machine(), "thorough": seconds[True], "screened": seconds[False], **counts}
    (arguments.output / "everything.json").write_text(json.dumps(found, indent=1))


def clock(device: str) -> float:
    """Seconds of CPU, which other work on the machine disturbs less; on a GPU, seconds, when it has finished."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def found_again(regions: RegionTokens, others: RegionTokens) -> int:
    """How many masks of `regions` have one in `others` with an IoU of at least 0.9."""
    if not len(regions) or not len(others):
        return 0
    one, other = (part.masks.flatten(1).float() for part in (regions, others))
    both = one @ other.T
    return int(((both / (one.sum(dim=1)[:, None] + other.sum(dim=1) - both)).amax(dim=1) >= 0.9).sum())


if __name__ == "__main__":
    main()
