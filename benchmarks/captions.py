"""Native captions of region tokens: transformers' `generate` on the plain decoder, and the fast loop.

    python benchmarks/captions.py
    python benchmarks/captions.py --device cuda --dtype bfloat16 --regions 1 64 512

The decoder is the same in every size of TAP. With random weights hardly a caption ends before its 20 words; in a second kind
of rows the ending is made likelier, by stretching its row of the output matrix, and captions end when they will.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from original import Original
from side_by_side import Row, arguments_of, compare, make_tap, ours
from torch import Tensor

from tap_tokenizer import TapModel

WORDS = 20
STRETCH = 3.2


def main() -> None:
    """Measure and print."""
    arguments = arguments_of(
        __doc__, regions={"type": int, "nargs": "+", "default": [1, 16, 64], "help": "how many at once"}
    )
    counts = [3] if arguments.quick else arguments.regions
    model = make_tap(arguments)
    decoder = model.text_decoder
    original = arguments.original and Original(arguments.original, arguments.size, arguments.device, arguments.dtype)
    weights = sum(p.numel() * p.element_size() for p in (*decoder.layers.parameters(), decoder.lm_head.weight))
    usual = decoder.lm_head.weight[decoder.config.eos_token_id].clone()
    rows = []
    for ends in (False, True):
        for count in counts[1 if ends and len(counts) > 1 else 0 :]:
            generator = torch.Generator().manual_seed(count)
            tokens = torch.randn(count, decoder.config.region_size, generator=generator).to(model.device, model.dtype)
            caption = captioning(model, tokens, usual * (STRETCH if ends else 1))
            ways = ours(model, caption)
            if original and not ends:
                ways["original"] = original.captions(tokens)
            name = f"{count} caption{'s' * (count > 1)} of {WORDS} words"
            if ends:
                lengths = (caption() != decoder.config.pad_token_id).sum(dim=1).float() - 1
                name = f"{count} of {lengths.mean():.0f} words, {lengths.min():.0f} to {lengths.max():.0f}"
            rows.append(Row(name, ways, WORDS * weights))
    compare("captions", rows, arguments)


@torch.no_grad()
def captioning(model: TapModel, tokens: Tensor, wanted: Tensor) -> Callable[[], Tensor]:
    """A way of captioning regions (R, D), where the ending has the row `wanted` of the output matrix."""
    weight, end = model.text_decoder.lm_head.weight, model.text_decoder.config.eos_token_id

    @torch.no_grad()
    def caption() -> Tensor:
        if not torch.equal(weight[end], wanted):  # writing would have the fast way lay out all weights again
            weight[end] = wanted
        return model.greedy_captions(tokens, WORDS + 1)

    return caption


if __name__ == "__main__":
    main()
