"""What caching costs: measured per picture and per region on this machine, then on paper for large data sets.

    python benchmarks/caching_cost.py --shape tap_vit_l

Random weights in the shape of the original's checkpoints: the cost does not depend on what they hold. Operations are
counted by PyTorch; hours on a GPU are those operations at a rate that is given, not measured: `--gpu_rate`.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from machine import describe_machine, interleaved
from side_by_side import operations_of

from tap_tokenizer import TapConfig, TapModel, TapRegionTokenizer

SETS = (
    ("Visual Genome", 108_077, 3_800_000),
    ("Osprey-724K, pictures of COCO 2017", 118_287, 724_000),
    ("100 M regions, 50 a picture", 2_000_000, 100_000_000),
)
"""Name, pictures, regions; Osprey-724K: at most COCO 2017's pictures, one region an entry."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="tap_vit_l", choices=("tap_vit_b", "tap_vit_l", "tap_vit_h"))
    parser.add_argument("--regions", type=int, default=64, help="regions encoded at once")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each; the median counts")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch")
    parser.add_argument("--gpu_rate", type=float, default=100e12, help="operations a second of one GPU, assumed")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    print(describe_machine())
    config = getattr(TapConfig, arguments.shape)()
    tokenizer = TapRegionTokenizer(TapModel(config).eval())
    picture = np.random.RandomState(0).randint(0, 255, (768, 1024, 3), dtype=np.uint8)
    boxes = [[8 * (i % 60), 6 * (i % 50), 8 * (i % 60) + 200, 6 * (i % 50) + 200] for i in range(arguments.regions)]
    features = tokenizer.embed_image(picture)
    ways = {
        "picture": lambda: tokenizer.embed_image(picture),
        "regions": lambda: tokenizer.encode(features=features, boxes=boxes),
    }
    seconds = interleaved(ways, arguments.rounds)
    operations = {name: operations_of(way)[1] for name, way in ways.items()}
    each = seconds["regions"] / len(boxes)
    kilobytes = 2 * config.image_decoder_config.num_experts * (
        config.image_decoder_config.hidden_size + config.image_decoder_config.semantic_embed_size
    ) / 1024  # fmt: skip
    print(f"\n{arguments.shape}: {sum(p.numel() for p in tokenizer.model.parameters()) / 1e6:.0f} M parameters\n")
    print("| | seconds here | 10⁹ operations |\n|---|---|---|")
    print(f"| a picture | {seconds['picture']:.2f} | {operations['picture'] / 1e9:.0f} |")
    print(f"| a region, {len(boxes)} at once | {each:.4f} | {operations['regions'] / len(boxes) / 1e9:.1f} |")
    print(
        f"\nOn paper, {kilobytes:.0f} KiB a region in float16, one GPU at {arguments.gpu_rate / 1e12:.0f} · 10¹² a second:\n"
    )
    print("| data | pictures | regions | days on this CPU | hours on one GPU | cache, GB |\n|---|---|---|---|---|---|")
    for name, pictures, regions in SETS:
        days = (pictures * seconds["picture"] + regions * each) / 86400
        work = pictures * operations["picture"] + regions * operations["regions"] / len(boxes)
        hours = work / arguments.gpu_rate / 3600
        print(
            f"| {name} | {pictures:,} | {regions:,} | {days:.1f} | {hours:.1f} | {regions * kilobytes * 1024 / 1e9:.0f} |"
        )


if __name__ == "__main__":
    main()
