"""Masks as COCO writes them: read, written and filled as pycocotools does, and no file can make the reader crash."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from mask_forms import packed_rle

from tap_tokenizer import as_mask, mask_to_rle


def test_polygons_are_filled_as_pycocotools_fills_them() -> None:
    coco_mask = pytest.importorskip("pycocotools.mask")
    random = np.random.default_rng(0)
    for case in range(2000):
        size = tuple(int(side) for side in random.integers(3, 80, 2))
        polygons = []
        for _ in range(random.integers(1, 4)):
            points = (random.random((random.integers(3, 12), 2)) * 1.4 - 0.2) * size[::-1]
            polygons.append(points.round(int(random.integers(0, 3))).ravel().tolist())
        want = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *size)))
        if np.abs(np.concatenate(polygons)).max() > 1:
            assert np.array_equal(as_mask(polygons, size, may_be_empty=True), want > 0), case


def in_child(code: str, *, megabytes: int, seconds: int) -> str:
    """What Python code prints in a process of its own, which may take so much memory and time of a processor."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))

    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, env=environment, preexec_fn=limit
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_thousands_of_random_run_lengths_are_read_or_refused_and_none_crashes() -> None:
    pytest.importorskip("pycocotools")
    said = in_child(
        """
        import random
        import numpy as np
        from pycocotools import mask as coco_mask
        from tap_tokenizer import as_mask

        draw, pixels = random.Random(0), np.random.default_rng(0)
        valid = read = refused = 0
        for case in range(6000):
            h, w = size = draw.randint(1, 64), draw.randint(1, 64)
            mask = pixels.random(size) < draw.random()
            true = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            if case % 3 == 0:  # what pycocotools writes
                counts = true["counts"] if draw.random() < 0.5 else true["counts"].decode()
                assert np.array_equal(as_mask({"size": list(size), "counts": counts}, size, may_be_empty=True), mask)
                valid += 1
                continue
            given_size = draw.choice([[h, w]] * 9 + [[w, h], [h], [10**9, 10**9], [-h, -w], None, "ab", [h, w, 1]])
            counts = draw.choice([
                [draw.getrandbits(31) for _ in range(draw.randint(0, 8))],
                [draw.randint(-h * w, h * w) for _ in range(draw.randint(0, 8))],
                [draw.choice([0, -1, 2**31, 2**32 - h * w, 2**63, 2**64, 10**40]) for _ in range(4)],
                [draw.choice([1, 1.5, None, "1", True, [], {}]) for _ in range(draw.randint(1, 4))],
                bytes(draw.randint(1, 255) for _ in range(draw.randint(0, 40))),
                "".join(chr(draw.randint(48, 111)) for _ in range(draw.randint(0, 40))),
                bytes(true["counts"][:draw.randint(0, 20)]) + bytes([draw.randint(40, 120)]) + true["counts"][20:],
                draw.choice([None, 7, {}, "", b"", "é", "0" * 5000, "o" * 5000]),
                [h * w],
            ])
            try:
                found = as_mask({"size": given_size, "counts": counts}, size, may_be_empty=True)
            except ValueError:
                refused += 1
                continue
            assert found.shape == size and found.dtype == bool and given_size == [h, w]
            read += 1
        try:
            as_mask({"size": [10**9, 10**9], "counts": [10**18]}, (10**9, 10**9))
        except ValueError as error:
            assert "as of pictures" in str(error), error
        assert valid == 2000 and read > 100 and refused > 3000, (valid, read, refused)
        print("done")
        """,
        megabytes=6000,
        seconds=60,
    )
    assert said == "done\n"


def test_compressed_run_lengths_may_grow_and_shrink() -> None:
    stripes = np.zeros((300, 40), bool)
    stripes[::2, ::3] = True
    stripes[:, 20] = True
    for counts in (packed_rle(stripes)["counts"], packed_rle(stripes)["counts"].decode()):
        assert np.array_equal(as_mask({"size": [300, 40], "counts": counts}, (300, 40)), stripes)


@pytest.mark.parametrize("shape", [(7, 5), (1, 9), (9, 1)])
def test_run_lengths_are_those_of_coco(shape: tuple[int, int]) -> None:
    codec = pytest.importorskip("pycocotools.mask")
    random = np.random.RandomState(0)
    for mask in (random.rand(*shape) > 0.4, np.zeros(shape, bool), np.ones(shape, bool)):
        rle = mask_to_rle(mask)
        packed = codec.frPyObjects(rle, *rle["size"])
        assert packed == codec.encode(np.asfortranarray(mask, dtype=np.uint8))
        assert np.array_equal(codec.decode(packed).astype(bool), mask)
