"""Everything mode: grids, crops, filters and cleaning on known shapes, and the search of a picture as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tap_tokenizer import EverythingOptions, RegionTokens, TapRegionTokenizer
from tap_tokenizer.everything import clean_mask, connected_parts, crops_of, is_cut_off, mask_nms, stability_scores
from tap_tokenizer.mask_boxes import boxes_of_masks

LENIENT = {"points_per_crop": 4, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}


def square(x1: int, y1: int, x2: int, y2: int, size: tuple[int, int] = (20, 30)) -> torch.Tensor:
    mask = torch.zeros(size, dtype=torch.bool)
    mask[y1:y2, x1:x2] = True
    return mask


# --- options, grids and crops -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"points_per_crop": 0},
        {"points_per_crop": 2.5},
        {"crops_n_layers": 0.5},
        {"pred_iou_thresh": None},
        {"points_per_crop": 100_000_000},
        {"crops_n_layers": 1000},
        {"crop_n_points_downscale_factor": 10**400},
        {"stability_score_offset": float("nan")},
        {"stability_score_offset": float("inf")},
        {"crops_n_layers": -1},
        {"crop_n_points_downscale_factor": 0},
        {"min_mask_region_area": -1},
        {"stability_score_offset": -0.5},
        {"pred_iou_thresh": 1.5},
        {"stability_score_thresh": -0.1},
        {"crops_nms_thresh": 2.0},
        {"crop_overlap_ratio": float("nan")},
        {"thorough": 1},
    ],
)
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    name, value = next(iter(options.items()))
    with pytest.raises(ValueError, match=f"{name} is {value}, expected"):
        EverythingOptions(**options)


def test_unknown_options_are_refused(tiny_tokenizer: TapRegionTokenizer, picture: Image.Image) -> None:
    for option in ("box_nms_thresh", "foo"):
        with pytest.raises(
            TypeError, match=f"^encode_everything got unknown options {option}: expected some of points_per_crop, "
        ):
            tiny_tokenizer.encode_everything(picture, **{option: 0})


def test_options_are_those_of_transformers_mask_generation() -> None:
    """Names and defaults, read from the image processor that the pipeline asks."""
    import inspect

    from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

    theirs: dict[str, Any] = {}
    for function in (SamImageProcessorPil.generate_crop_boxes, SamImageProcessorPil.filter_masks):
        theirs |= {name: p.default for name, p in inspect.signature(function).parameters.items()}
    ours = vars(EverythingOptions())
    shared = set(ours) & set(theirs)
    assert shared >= {"pred_iou_thresh", "stability_score_thresh", "points_per_crop", "crop_n_points_downscale_factor"}
    for name in shared:
        default = theirs[name][0] if isinstance(theirs[name], list) else theirs[name]
        assert ours[name] == pytest.approx(default), name


def test_points_thin_out_with_the_layers() -> None:
    options = EverythingOptions(points_per_crop=32, crop_n_points_downscale_factor=2)
    assert [options.points_per_side(layer) for layer in range(4)] == [32, 16, 8, 4]
    assert EverythingOptions(points_per_crop=1, crop_n_points_downscale_factor=8).points_per_side(3) == 1


@pytest.mark.parametrize("size", [(400, 600), (601, 333), (97, 41)])
def test_crops_cover_the_picture_and_overlap(size: tuple[int, int]) -> None:
    height, width = size
    found = crops_of(size, EverythingOptions(crops_n_layers=2))
    assert found[0] == (0, (0, 0, width, height))
    assert [layer for layer, _ in found] == [0] + [1] * 4 + [2] * 16
    for layer in (1, 2):
        seen = np.zeros(size, dtype=int)
        for x1, y1, x2, y2 in (crop for n, crop in found if n == layer):
            assert 0 <= x1 < x2 <= width
            assert 0 <= y1 < y2 <= height
            seen[y1:y2, x1:x2] += 1
        assert seen.min() >= 1
    (a, b) = (crop for _, crop in found[1:3])
    assert a[2] - b[0] == int(512 / 1500 * min(size))  # neighbours share the ratio of the shorter side


@pytest.mark.parametrize("size", [(1, 1), (1, 1000), (3, 1), (2, 7), (5000, 20)])
def test_no_crop_is_empty_however_thin_the_picture(size: tuple[int, int]) -> None:
    crops = [crop for _, crop in crops_of(size, EverythingOptions(crops_n_layers=2))]
    assert all(0 <= x1 < x2 <= size[1] and 0 <= y1 < y2 <= size[0] for x1, y1, x2, y2 in crops)


def test_no_overlap_cuts_the_picture_in_four() -> None:
    crops = [crop for _, crop in crops_of((40, 60), EverythingOptions(crops_n_layers=1, crop_overlap_ratio=0.0))]
    assert crops[1:] == [(0, 0, 30, 20), (30, 0, 60, 20), (0, 20, 30, 40), (30, 20, 60, 40)]


def test_boxes_that_a_crop_cuts_through() -> None:
    boxes = torch.tensor([[10.0, 5, 20, 15], [12, 6, 18, 14], [11, 0, 15, 8], [10, 0, 30, 20]])
    cut = is_cut_off(boxes, (10, 0, 30, 20), (20, 60), slack=0.5)
    assert cut.tolist() == [True, False, False, True]  # the picture's own edges cut nothing off


# --- scores and suppression -------------------------------------------------------------------------------------------


def test_stability_is_the_iou_of_two_cuts() -> None:
    logits = torch.full((3, 4, 5), -5.0)
    logits[0, :2] = 5.0  # firm
    logits[1, :1], logits[1, 1:4] = 5.0, 0.0  # 5 pixels surely, 20 at best
    assert stability_scores(logits, 1.0).tolist() == [1.0, 0.25, 0.0]


def test_of_two_similar_masks_the_better_one_is_kept() -> None:
    masks = torch.stack([square(0, 0, 10, 10), square(0, 0, 10, 9), square(15, 5, 25, 15), square(0, 0, 5, 10)])
    scores = torch.tensor([0.8, 0.9, 0.7, 0.95])
    assert mask_nms(masks, scores, 0.7).tolist() == [3, 1, 2]  # IoU .9 is suppressed, .5 is not
    assert mask_nms(masks, scores, 0.95).tolist() == [3, 1, 0, 2]
    assert mask_nms(masks, scores, 0.4).tolist() == [3, 2]
    assert mask_nms(masks[:0], scores[:0], 0.5).tolist() == []


def test_masks_suppress_by_pixels_not_by_boxes() -> None:
    ring = square(0, 0, 20, 20) & ~square(2, 2, 18, 18)
    assert mask_nms([ring, square(0, 0, 20, 20)], torch.tensor([0.9, 0.8]), 0.7).tolist() == [0, 1]


def test_suppression_is_what_all_pairs_say() -> None:
    generator = torch.Generator().manual_seed(0)
    corner = torch.randint(0, 12, (60, 2), generator=generator)
    side = torch.randint(0, 10, (60, 2), generator=generator)  # some are empty
    masks = [square(x, y, x + w, y + h) for (x, y), (w, h) in zip(corner.tolist(), side.tolist())]
    scores = torch.rand(60, generator=generator)
    kept: list[int] = []
    for row in scores.argsort(descending=True).tolist():
        pairs = [((masks[row] & masks[o]).sum() / (masks[row] | masks[o]).sum().clamp(min=1)).item() for o in kept]
        if all(iou <= 0.3 for iou in pairs):
            kept.append(row)
    assert 5 < len(kept) < 55
    assert mask_nms(masks, scores, 0.3).tolist() == kept


# --- cleaning and export ----------------------------------------------------------------------------------------------


def test_connected_parts_touch_at_corners() -> None:
    mask = np.array([[1, 0, 0, 1], [0, 1, 0, 1], [1, 0, 0, 0], [1, 0, 1, 1]], dtype=bool)
    labels, sizes = connected_parts(mask)
    assert sizes.tolist()[0] == 8
    assert sorted(sizes.tolist()[1:]) == [2, 2, 4]
    assert labels[0, 0] == labels[1, 1] == labels[3, 0] != labels[0, 3]


def test_a_spiral_is_one_connected_part() -> None:
    """Parts that meet only far down: runs must be joined, not merely numbered."""
    spiral = np.zeros((9, 9), dtype=bool)
    spiral[0, :], spiral[:, 8], spiral[8, :], spiral[2:, 0], spiral[2, :7], spiral[2:7, 6], spiral[6, 2:7] = [True] * 7
    assert len(connected_parts(spiral)[1]) == 2
    assert len(connected_parts(np.zeros((3, 3), dtype=bool))[1]) == 1


def test_holes_are_filled_and_specks_removed() -> None:
    mask = square(2, 2, 18, 18, (24, 40)).numpy()
    mask[5:7, 5:7] = False  # a hole of 4
    mask[10:14, 10:14] = False  # a hole of 16
    mask[1, 30:33] = True  # a speck of 3
    mask[10:15, 30:35] = True  # a part of 25
    cleaned = clean_mask(mask, 10)
    assert cleaned[5:7, 5:7].all()
    assert not cleaned[10:14, 10:14].any()
    assert not cleaned[1, 30:33].any()
    assert cleaned[10:15, 30:35].all()
    assert cleaned.sum() == 16 * 16 - 16 + 25


def test_the_largest_part_stays_however_small() -> None:
    mask = square(3, 3, 5, 5).numpy() | square(10, 10, 11, 11).numpy()
    assert np.array_equal(clean_mask(mask, 100), square(3, 3, 5, 5).numpy())
    assert not clean_mask(np.zeros((20, 30), dtype=bool), 5).any()


def test_regions_export_their_masks(
    tiny_tokenizer: TapRegionTokenizer, picture: Image.Image, other_picture: Image.Image, tmp_path: Path
) -> None:
    codec = pytest.importorskip("pycocotools.mask")
    regions = tiny_tokenizer.encode(
        [picture, other_picture], boxes=[[[5, 5, 40, 30], [20, 10, 85, 55]], [[1, 2, 30, 70]]]
    )
    rles = regions.coco_rle()  # pending masks, of two sizes
    assert [rle["size"] for rle in rles] == [[60, 90], [60, 90], [80, 40]]
    for i, rle in enumerate(rles):
        mask = codec.decode(codec.frPyObjects(rle, *rle["size"])).astype(bool)
        assert np.array_equal(mask, regions[i].masks[0].numpy())
    assert regions[[]].coco_rle() == []
    regions.save(tmp_path / "r.safetensors")
    with pytest.raises(ValueError, match="kept without masks"):
        RegionTokens.load(tmp_path / "r.safetensors").coco_rle()


# --- the search -------------------------------------------------------------------------------------------------------


def test_every_region_is_what_its_point_says(tiny_tokenizer: TapRegionTokenizer, picture: Image.Image) -> None:
    found = tiny_tokenizer.encode_everything(picture, **LENIENT, crops_nms_thresh=1.0)
    ticks = (np.arange(4) + 0.5) / 4
    points = [[[x * 90, y * 60]] for y in ticks for x in ticks]
    asked = tiny_tokenizer.encode(picture, points=points, point_labels=[[1]] * 16, with_masks=True)
    asked = asked[asked.masks.flatten(1).any(dim=1).tolist()]
    assert 0 < len(found) <= len(asked)
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    for i in range(len(found)):
        same = [j for j in range(len(asked)) if torch.allclose(found.tokens[i], asked.tokens[j], atol=1e-5)]
        assert any(torch.equal(found.masks[i], asked.masks[j]) for j in same)
        assert any(torch.allclose(found.boxes[i], asked.boxes[j], atol=1e-3) for j in same)


@pytest.fixture(scope="module")
def bundled() -> TapRegionTokenizer:
    return TapRegionTokenizer.from_pretrained("tap-tiny")


def scene(index: int) -> tuple[Image.Image, torch.Tensor]:
    """A picture of glyphs and the boxes of its objects."""
    pytest.importorskip("matplotlib")
    from finetune.glyphs.scenes import draw_scene, make_scene

    drawn = draw_scene(make_scene(index, "test", 0), 256)
    return Image.fromarray(drawn.image), torch.as_tensor(np.asarray(drawn.boxes), dtype=torch.float32)


def test_filters_drop_and_suppression_thins(bundled: TapRegionTokenizer) -> None:
    image, _ = scene(1)
    options = {**LENIENT, "points_per_crop": 6}
    every = bundled.encode_everything(image, **options, crops_nms_thresh=1.0)
    middle = float(every.scores.median())
    better = bundled.encode_everything(image, **{**options, "pred_iou_thresh": middle}, crops_nms_thresh=1.0)
    assert len(better) == int((every.scores >= middle).sum()) < len(every)
    firm = bundled.encode_everything(image, **{**options, "stability_score_thresh": 0.8}, crops_nms_thresh=1.0)
    assert 0 < len(firm) < len(every)
    thinned = bundled.encode_everything(image, **options, crops_nms_thresh=0.5)
    assert 0 < len(thinned) < len(every)
    # masks are compared on the model's grid: of specks smaller than a few of its cells the pixels agree by chance
    large = thinned[thinned.masks.flatten(1).sum(dim=1) >= 64]
    assert len(large) > 5
    assert mask_nms(large.masks, large.scores, 0.55).tolist() == list(range(len(large)))
    strict = {"stability_score_thresh": 1.0, "stability_score_offset": 1000.0}  # no logit is above 1000
    nothing = bundled.encode_everything(image, **{**options, **strict})
    assert len(nothing) == 0
    assert nothing.masks.shape == (0, image.height, image.width)
    assert nothing.coco_rle() == []


def test_crops_find_objects_whole_and_in_place(bundled: TapRegionTokenizer) -> None:
    """Each region of a search with crops is one of the picture's or of a crop's own, moved to where the crop lies."""
    image, _ = scene(1)
    options = {**LENIENT, "points_per_crop": 4, "crops_nms_thresh": 1.0}
    found = bundled.encode_everything(image, **options, crops_n_layers=1)
    height, width = image.height, image.width
    whole = bundled.encode_everything(image, **options)
    candidates = [whole.boxes]
    for _, (x1, y1, x2, y2) in crops_of((height, width), EverythingOptions(crops_n_layers=1))[1:]:
        own = bundled.encode_everything(image.crop((x1, y1, x2, y2)), **options)
        candidates.append(own.boxes + torch.tensor([x1, y1, x1, y1]))
    assert found.masks.shape[1:] == (height, width)
    assert len(whole) < len(found) < sum(len(boxes) for boxes in candidates)  # what a crop cuts through is left out
    for mask, box in zip(found.masks, found.boxes):
        assert (torch.cat(candidates) - box).abs().amax(dim=1).min() < 1e-3
        assert box.tolist() == boxes_of_masks(mask[None])[0].tolist()


@pytest.mark.parametrize("options", [{}, {"crops_n_layers": 1}, {"min_mask_region_area": 60}], ids=str)
def test_boxes_are_exactly_those_of_their_masks(bundled: TapRegionTokenizer, options: dict[str, Any]) -> None:
    """On the picture of the demo, on whose mask grid are specks that vanish at the picture's own size."""
    demo = Path(__file__).parents[2] / "llm_bridge" / "pretrained" / "region-chat-tiny" / "demo.png"
    found = bundled.encode_everything(demo, **{**LENIENT, "points_per_crop": 6, "crops_nms_thresh": 0.9, **options})
    assert len(found) > 10
    assert found.boxes.tolist() == boxes_of_masks(found.masks).tolist()


def test_the_bundled_tokenizer_finds_the_objects_of_scenes(bundled: TapRegionTokenizer) -> None:
    hits: list[bool] = []
    for index in range(3):
        image, boxes = scene(index)
        found = bundled.encode_everything(
            image, points_per_crop=8, pred_iou_thresh=0.5, stability_score_thresh=0.6, crops_nms_thresh=0.5
        )
        corner = torch.maximum(boxes[:, None, :2], found.boxes[None, :, :2])
        far = torch.minimum(boxes[:, None, 2:], found.boxes[None, :, 2:])
        both = (far - corner).clamp(min=0).prod(dim=-1)
        area, own = ((b[:, 2:] - b[:, :2]).prod(dim=1) for b in (boxes, found.boxes))
        hits += ((both / (area[:, None] + own[None] - both)).amax(dim=1) > 0.5).tolist()
    assert np.mean(hits) >= 0.6, hits


def test_features_search_like_their_picture(tiny_tokenizer: TapRegionTokenizer, picture: Image.Image) -> None:
    plain = tiny_tokenizer.encode_everything(picture, **LENIENT)
    for features in (tiny_tokenizer.embed_image(picture), tiny_tokenizer.embed_image([picture])[0]):
        again = tiny_tokenizer.encode_everything(features=features, **LENIENT)
        assert torch.equal(plain.boxes, again.boxes)
        assert torch.equal(plain.masks, again.masks)


def test_cleaned_masks_and_boxes_agree(tiny_tokenizer: TapRegionTokenizer, picture: Image.Image) -> None:
    found = tiny_tokenizer.encode_everything(picture, **LENIENT, min_mask_region_area=40)
    assert len(found)
    for mask, box in zip(found.masks, found.boxes.tolist()):
        _, sizes = connected_parts(mask.numpy())
        _, holes = connected_parts(~mask.numpy())
        assert len(sizes) == 2 or min(sizes[1:]) >= 40
        assert len(holes) == 1 or min(holes[1:]) >= 40
        rows, columns = np.nonzero(mask.numpy())
        assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_wrong_calls_are_refused(tiny_tokenizer: TapRegionTokenizer, picture: Image.Image) -> None:
    with pytest.raises(ValueError, match="both or neither"):
        tiny_tokenizer.encode_everything()
    with pytest.raises(ValueError, match="several pictures"):
        tiny_tokenizer.encode_everything([picture, picture])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="give the picture"):
        tiny_tokenizer.encode_everything(features=tiny_tokenizer.embed_image(picture), crops_n_layers=1)
