"""RegionPrompt: one value for whatever form a prompt was given in, read as given and then in its picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tap_tokenizer import RegionPrompt, TapRegionTokenizer, prompts_in_picture

SIZE = (60, 90)
MASK = np.zeros(SIZE, bool)
MASK[10:30, 20:50] = True


def test_a_box_with_points_is_read_from_lists_arrays_and_tensors() -> None:
    for form in (list, np.array, torch.tensor):
        prompt = RegionPrompt.read(
            {"box": form([1, 2, 30, 40]), "points": form([[5, 6], [7, 8]]), "point_labels": form([1, 0])}
        )
        assert prompt.box == (1.0, 2.0, 30.0, 40.0)
        assert prompt.points == ((5.0, 6.0), (7.0, 8.0))
        assert prompt.point_labels == (1, 0)
        assert prompt.mask is None


def test_points_without_labels_lie_on_the_region_and_none_is_as_absent() -> None:
    prompt = RegionPrompt.read({"box": None, "points": [[5, 6], [7, 8]], "point_labels": None, "label": "cat"})
    assert (prompt.box, prompt.point_labels) == (None, (1, 1))
    assert RegionPrompt.read({"box": [1, 2, 3, 4], "points": []}).points is None


def test_parallel_lists_give_a_prompt_for_each_region() -> None:
    box, point, mask = RegionPrompt.read_lists(
        boxes=[[1, 2, 3, 4], None, None], points=[None, [[5, 6]], None], masks=[None, None, MASK]
    )
    assert box.as_dict() == {"box": (1, 2, 3, 4)}
    assert point.as_dict() == {"points": ((5, 6),), "point_labels": (1,)}
    assert mask.as_dict() == {"mask": MASK}
    assert RegionPrompt.read_lists() == []


def test_a_prompt_as_a_dictionary_is_read_as_the_same_prompt() -> None:
    for values in ({"box": [1, 2, 3, 4]}, {"points": [[5, 6]], "point_labels": [0]}, {"mask": "mask.png"}):
        prompt = RegionPrompt.read(values)
        assert RegionPrompt.read(prompt.as_dict()).as_dict() == prompt.as_dict()


BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "region7 has no prompt: give it a box, points or a mask"),
    ({"box": None}, "region7 has no prompt"),
    ({"mask": MASK, "box": [1, 2, 3, 4]}, "region7 has a mask and other prompts: a mask stands alone"),
    ({"box": [1, 2, 3, 4], "point_labels": [1]}, "region7 has point_labels but no points"),
    ({"box": [1, 2, 3]}, r"region7: box has shape \(3,\), expected 4 numbers"),
    ({"points": []}, "region7 has neither a box nor points"),
    ({"points": [[1, 2]], "point_labels": [2]}, "region7 has point labels"),
]


@pytest.mark.parametrize(("values", "message"), BAD, ids=str)
def test_what_is_no_prompt_is_refused_by_the_name_of_its_region(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RegionPrompt.read(values, "region7")


def test_in_their_picture_coordinates_are_clipped_and_masks_are_booleans(tmp_path: Path) -> None:
    Image.fromarray(MASK).save(tmp_path / "mask.png")
    given = RegionPrompt.read_lists(
        boxes=[[-0.5, 2, 90.5, 60.2], None, None],
        points=[None, [[90.4, 3]], None],
        masks=[None, None, tmp_path / "mask.png"],
    )
    box, point, mask = prompts_in_picture(given, SIZE)
    assert box.box == (0, 2, 90, 60)
    assert point.points == ((90, 3),)
    assert np.array_equal(mask.mask, MASK)
    again = prompts_in_picture([box, point, mask], SIZE)
    assert [prompt.box for prompt in again] == [(0, 2, 90, 60), None, None]
    with pytest.raises(ValueError, match=r"Image 3: Region 0: box .* leaves the picture of 90 × 60"):
        prompts_in_picture([RegionPrompt.read({"box": [0, 0, 95, 9]})], SIZE, "Image 3: ")


def test_prompts_encode_as_the_lists_that_they_were_read_from(tiny_tokenizer: TapRegionTokenizer) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
    lists: dict[str, Any] = {"boxes": [[1, 2, 30, 40], None], "points": [None, [[5, 6]]]}
    prompts = RegionPrompt.read_lists(**lists)
    want = tiny_tokenizer.encode(picture, **lists)
    assert torch.equal(tiny_tokenizer.encode(picture, prompts=prompts).tokens, want.tokens)
    both = tiny_tokenizer.encode([picture, picture], prompts=[prompts[:1], prompts[1:]])
    assert both.image_index.tolist() == [0, 1]
    torch.testing.assert_close(both.boxes, want.boxes)
    assert len(tiny_tokenizer.encode([picture], prompts=[[]])) == 0


def test_prompts_and_lists_together_are_refused(tiny_tokenizer: TapRegionTokenizer) -> None:
    picture, prompt = np.zeros((*SIZE, 3), np.uint8), RegionPrompt.read({"box": [1, 2, 30, 40]})
    for arguments, message in (
        ({"prompts": [prompt], "boxes": [[1, 2, 3, 4]]}, "Got boxes, prompts: give prompts alone"),
        ({"prompts": [{"box": [1, 2, 3, 4]}]}, "Got a prompt of type dict, expected RegionPrompt"),
        ({"prompts": prompt}, "Got prompts of type RegionPrompt, expected a list"),
    ):
        with pytest.raises(ValueError, match=message):
            tiny_tokenizer.encode(picture, **arguments)
    with pytest.raises(ValueError, match="Got prompts for 1 image, but 2 images"):
        tiny_tokenizer.encode([picture, picture], prompts=[[prompt]])
