"""Label Studio's run lengths of a brush: a stream of bits, in bytes.

Bits, the highest first: the number of values (32), the bits of a value less one (5), four widths of run lengths less one
(4 each). Then runs: a bit that says whether one value is repeated, the number of a width (2), the length less one in that
width, and the value once, or as many values as the length says. A pixel is four values, RGBA, which are equal in a mask.
"""

from __future__ import annotations

import numpy as np

WIDTHS = (3, 4, 8, 16)
"""Of run lengths, as Label Studio's own converter chooses them."""


def brush_of_mask(mask: np.ndarray) -> list[int]:
    """A boolean mask (H, W) as Label Studio stores it."""
    values = mask.ravel()
    ends = np.flatnonzero(np.append(values[1:] != values[:-1], True)) + 1
    lengths = 4 * np.diff(ends, prepend=0)
    bits = [f"{4 * values.size:032b}", f"{8 - 1:05b}", *(f"{width - 1:04b}" for width in WIDTHS)]
    for end, length in zip(ends.tolist(), lengths.tolist()):
        value = f"{255 * int(values[end - 1]):08b}"
        whole, rest = divmod(length, 1 << WIDTHS[-1])
        bits += [f"111{(1 << WIDTHS[-1]) - 1:016b}{value}"] * whole
        if rest:
            number = next(i for i, width in enumerate(WIDTHS) if rest <= 1 << width)
            bits.append(f"1{number:02b}{rest - 1:0{WIDTHS[number]}b}{value}")
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return np.packbits(np.frombuffer(text.encode(), np.uint8) - 48).tolist()
