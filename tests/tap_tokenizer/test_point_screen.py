"""The screen of points: the same regions as a thorough search, for fewer questions; and what it may leave out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tap_tokenizer import EverythingOptions, TapRegionTokenizer
from tap_tokenizer.point_screen import PointScreen, is_screened
from tap_tokenizer.region_decoder import ANSWERS, RegionDecoder


@pytest.fixture(scope="module")
def bundled() -> TapRegionTokenizer:
    return TapRegionTokenizer.from_pretrained("tap-tiny")


def scene(index: int) -> Image.Image:
    pytest.importorskip("matplotlib")
    from finetune.glyphs.scenes import draw_scene, make_scene

    return Image.fromarray(draw_scene(make_scene(index, "test", 0), 256).image)


def test_a_screened_search_finds_what_a_thorough_one_finds_with_fewer_questions(
    bundled: TapRegionTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    usual = RegionDecoder.run

    def run(
        self: RegionDecoder, features: Any, prepared: Any, rows: torch.Tensor, output_masks: bool, **options: Any
    ) -> Any:
        asked[-1] += len(rows) * output_masks
        return usual(self, features, prepared, rows, output_masks, **options)

    monkeypatch.setattr(RegionDecoder, "run", run)
    features = bundled.embed_image(scene(1))
    found = []
    for thorough in (True, False):
        asked.append(0)
        found.append(bundled.encode_everything(features=features, points_per_crop=16, thorough=thorough))
    assert len(found[0]) > 1
    masks = [regions.masks.flatten(1).float() for regions in found]
    both = masks[0] @ masks[1].T
    overlap = both / (masks[0].sum(dim=1)[:, None] + masks[1].sum(dim=1) - both)
    assert (overlap.amax(dim=1) >= 0.9).all()
    assert (overlap.amax(dim=0) >= 0.9).all()
    assert asked[0] == 256
    assert asked[1] < 64


def test_answers_are_those_at_full_resolution(bundled: TapRegionTokenizer) -> None:
    image = scene(6)  # in which both searches keep the same points
    features = bundled.embed_image(image)
    screened, thorough = (
        bundled.encode_everything(features=features, points_per_crop=16, thorough=is_thorough)
        for is_thorough in (False, True)
    )
    assert len(screened) > 1
    for i in range(len(screened)):
        nearest = (thorough.tokens - screened.tokens[i]).abs().amax(dim=1).argmin()
        for name in ANSWERS[:3]:
            ours, theirs = getattr(screened, name)[i], getattr(thorough, name)[nearest]
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_a_search_below_the_default_thresholds_asks_every_point(bundled: TapRegionTokenizer) -> None:
    features = bundled.embed_image(scene(2))
    assert is_screened(features, EverythingOptions())
    for options in ({"pred_iou_thresh": 0.87}, {"stability_score_thresh": 0.9}, {"thorough": True}):
        assert not is_screened(features, EverythingOptions(**options))


def screen_of(scores: list[float], tokens: list[list[float]], places: list[list[float]], **options: Any) -> PointScreen:
    """A screen after its first look, which is given."""
    screen = PointScreen.__new__(PointScreen)
    screen.begin(
        torch.tensor(scores), torch.tensor(tokens), torch.ones(len(scores), dtype=torch.long), torch.tensor(places),
        EverythingOptions(**options),
    )  # fmt: skip
    return screen


PLACES = [[0.1, 0.1], [0.2, 0.2], [0.9, 0.9], [0.5, 0.5]]
TOKENS = [[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]


def corner(filled: bool = True) -> torch.Tensor:
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[:, :4, :4] = filled
    return mask


def test_a_found_region_speaks_for_points_like_it_within_its_box_alone() -> None:
    screen = screen_of([0.95, 0.94, 0.93, 0.92], TOKENS, PLACES)
    rows = screen.take(10)
    assert rows.tolist() == [0, 3]  # the best of each kind
    screen.learn(rows[:1], torch.tensor([0.95]), torch.tensor([True]), corner())
    assert screen.take(10).tolist() == [2]  # as the first one, but elsewhere


def test_a_failure_speaks_for_points_that_promise_less() -> None:
    screen = screen_of([0.95, 0.94, 0.86, 0.1], TOKENS, PLACES)
    screen.learn(screen.take(1), torch.tensor([0.85]), torch.tensor([False]), corner()[:0])
    assert screen.take(10).tolist() == []  # 0.94 and 0.86 less what the first was off by


def test_points_that_promise_nothing_are_left_out() -> None:
    screen = screen_of([0.95, 0.2, 0.84, 0.1], [[1.0, 0], [0, 1.0], [-1.0, 0], [0, -1.0]], PLACES)
    assert screen.take(10).tolist() == [0, 2]  # 0.84 may turn out to be 0.88


def test_no_point_speaks_for_another_if_nearly_equal_regions_are_wanted() -> None:
    screen = screen_of([0.95, 0.94, 0.93, 0.92], TOKENS, PLACES, crops_nms_thresh=0.95)
    rows = screen.take(2)
    screen.learn(rows, torch.tensor([0.95, 0.94]), torch.tensor([True, True]), corner().expand(2, -1, -1))
    assert [*rows.tolist(), *screen.take(9).tolist()] == [0, 1, 2, 3]


def test_an_empty_picture_is_searched(bundled: TapRegionTokenizer) -> None:
    found = bundled.encode_everything(np.zeros((40, 60, 3), dtype=np.uint8), points_per_crop=4, pred_iou_thresh=1.0)
    assert found.masks.shape[1:] == (40, 60)
