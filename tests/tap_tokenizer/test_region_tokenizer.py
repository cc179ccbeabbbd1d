"""The laws of the region tokenizer, and its public doors."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tap_tokenizer import ConceptBank, ImageFeatures, RegionTokens, TapRegionTokenizer

CLOSE = {"rtol": 0, "atol": 2e-5}  # the same sums in batches of another size
BOXES = [[5, 5, 40, 30], [20, 10, 85, 55], [0, 0, 90, 60]]
POINTS: dict[str, Any] = {
    "points": [[[10, 10]], [[50, 20], [60, 30], [5, 5]]],
    "point_labels": [[1], [1, 1, 0]],
}


def same(a: RegionTokens, b: RegionTokens) -> None:
    torch.testing.assert_close(a.semantic_tokens, b.semantic_tokens, **CLOSE)
    torch.testing.assert_close(a.semantic_embeds, b.semantic_embeds, **CLOSE)
    torch.testing.assert_close(a.iou_scores, b.iou_scores, **CLOSE)
    torch.testing.assert_close(a.boxes, b.boxes, **CLOSE)
    assert torch.equal(a.expert, b.expert)


# --- laws -------------------------------------------------------------------------------------------------------------


def test_regions_do_not_depend_on_each_other(tiny_tokenizer: TapRegionTokenizer, picture: Image.Image) -> None:
    together = tiny_tokenizer.encode(picture, boxes=BOXES)
    for i, box in enumerate(BOXES):
        same(together[i], tiny_tokenizer.encode(picture, boxes=[box]))


def test_mixed_prompts_do_not_depend_on_each_other(tiny_tokenizer: TapRegionTokenizer, picture: Image.Image) -> None:
    together = tiny_tokenizer.encode(
        picture,
        boxes=[BOXES[0], None, None, BOXES[1]],
        points=[None, *POINTS["points"], [[30, 30]]],
        point_labels=[None, *POINTS["point_labels"], [1]],
    )
    same(together[0], tiny_tokenizer.encode(picture, boxes=BOXES[:1]))
    same(together[1:3], tiny_tokenizer.encode(picture, **POINTS))
    same(together[3], tiny_tokenizer.encode(picture, boxes=BOXES[1:2], points=[[[30, 30]]], point_labels=[[1]]))


def test_pictures_do_not_depend_on_each_other(
    tiny_tokenizer: TapRegionTokenizer, picture: Image.Image, other_picture: Image.Image
) -> None:
    other_boxes = [[1, 2, 30, 70]]
    together = tiny_tokenizer.encode([picture, other_picture, picture], boxes=[BOXES, other_boxes, []])
    assert together.image_index.tolist() == [0, 0, 0, 1]
    same(together.of_image(0), tiny_tokenizer.encode(picture, boxes=BOXES))
    same(together.of_image(1), tiny_tokenizer.encode(other_picture, boxes=other_boxes))
    assert len(together.of_image(2)) == 0


def test_memory_bounds_change_nothing(make_tokenizer: Callable[..., TapRegionTokenizer], picture: Image.Image) -> None:
    tokenizer = make_tokenizer()
    want = tokenizer.encode([picture] * 3, boxes=[BOXES] * 3, with_masks=True)
    tokenizer.image_batch_size, tokenizer.region_batch_size = 1, 2
    got = tokenizer.encode([picture] * 3, boxes=[BOXES] * 3, with_masks=True)
    same(got, want)
    assert (got.masks != want.masks).float().mean() < 1e-3


def test_cached_features_equal_fresh_ones(tiny_tokenizer: TapRegionTokenizer, picture: Image.Image) -> None:
    features = tiny_tokenizer.embed_image(picture)
    same(tiny_tokenizer.encode(features=features, boxes=BOXES), tiny_tokenizer.encode(picture, boxes=BOXES))
    many = tiny_tokenizer.embed_image([picture, picture])
    same(tiny_tokenizer.encode(features=many[1], boxes=[BOXES]), tiny_tokenizer.encode(picture, boxes=BOXES))


def test_masks_asked_later_equal_masks_asked_at_once(tiny_tokenizer: TapRegionTokenizer, picture: Image.Image) -> None:
    early = tiny_tokenizer.encode(picture, boxes=BOXES, with_masks=True)
    late = tiny_tokenizer.encode(picture, boxes=BOXES)
    assert early.masks.shape == (3, 60, 90)
    assert early.masks.dtype == torch.bool
    assert early.masks.any()
    assert not early.masks.all()
    assert torch.equal(late[[2, 0]].masks, early.masks[[2, 0]])
    assert torch.equal(late.masks, early.masks)


def test_training_mode_changes_no_token(
    make_tokenizer: Callable[..., TapRegionTokenizer], picture: Image.Image
) -> None:
    tokenizer = make_tokenizer(drop_path_rate=0.5)
    before = {name: tensor.clone() for name, tensor in tokenizer.model.state_dict().items()}
    want = tokenizer.encode(picture, boxes=BOXES)
    tokenizer.model.train()
    got = tokenizer.encode(picture, boxes=BOXES)
    assert torch.equal(got.semantic_tokens, want.semantic_tokens)
    assert tokenizer.model.training  # as it was found
    for name, tensor in tokenizer.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name  # no BatchNorm statistic moved


def test_tokens_can_be_trained_on(tiny_tokenizer: TapRegionTokenizer, picture: Image.Image) -> None:
    tokens = tiny_tokenizer.encode(picture, boxes=BOXES).tokens
    layer = torch.nn.Linear(32, 1)
    layer(tokens).sum().backward()
    assert layer.weight.grad is not None
    assert not tokens.requires_grad


def test_eager_equals_sdpa(make_tokenizer: Callable[..., TapRegionTokenizer], picture: Image.Image) -> None:
    one, other = make_tokenizer(), make_tokenizer()
    other.model.set_attn_implementation("eager")
    same(one.encode(picture, boxes=BOXES), other.encode(picture, boxes=BOXES))
    same(one.encode(picture, **POINTS), other.encode(picture, **POINTS))


# --- what comes back --------------------------------------------------------------------------------------------------


def test_boxes_are_the_prompts_or_the_masks(tiny_tokenizer: TapRegionTokenizer, picture: Image.Image) -> None:
    assert tiny_tokenizer.encode(picture, boxes=BOXES).boxes.tolist() == [[float(x) for x in box] for box in BOXES]
    for with_masks in (False, True):
        regions = tiny_tokenizer.encode(picture, **POINTS, with_masks=with_masks)
        assert regions.boxes.tolist() == [extent(mask) for mask in regions.masks]
    mixed = tiny_tokenizer.encode(picture, boxes=[BOXES[0], None], points=[None, [[40, 30]]])
    assert mixed.boxes.tolist() == [[float(x) for x in BOXES[0]], extent(mixed.masks[1])]


def test_the_box_of_a_point_is_exactly_the_box_of_its_mask() -> None:
    """Of many points on pictures of several shapes, whichever masks are read, and in whatever company."""
    pytest.importorskip("matplotlib")
    from finetune.glyphs.scenes import draw_scene, make_scene

    bundled = TapRegionTokenizer.from_pretrained("tap-tiny")
    drawn = [draw_scene(make_scene(i, "test", 5), 400).image for i in range(2)]
    pictures = [drawn[0], drawn[1][:150], drawn[0][:, :90]]
    points = [
        [[[(x + 0.5) * picture.shape[1] / 6, (y + 0.5) * picture.shape[0] / 6]] for y in range(6) for x in range(6)]
        for picture in pictures
    ]
    regions = bundled.encode(pictures, points=points)
    for i in range(0, len(regions), 7):
        assert extent(regions[i].masks[0]) in (regions.boxes[i].tolist(), None)
    for i, picture in enumerate(pictures):
        own = regions.of_image(i)
        whole = [0.0, 0.0, float(picture.shape[1]), float(picture.shape[0])]
        assert own.boxes.tolist() == [extent(mask) or whole for mask in own.masks]


def extent(mask: torch.Tensor) -> list[float] | None:
    """The box around a mask's pixels, if it has any."""
    rows, columns = mask.nonzero().unbind(1)
    if not len(rows):
        return None
    return [float(edge) for edge in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)]


def test_the_expert_depends_on_the_prompt(tiny_tokenizer: TapRegionTokenizer, picture: Image.Image) -> None:
    assert tiny_tokenizer.encode(picture, boxes=BOXES).expert.tolist() == [0, 0, 0]
    points = tiny_tokenizer.encode(picture, **POINTS)
    assert torch.equal(points.expert, points.iou_scores[:, 1:].argmax(dim=1) + 1)
    mask = np.zeros((60, 90), bool)
    mask[10:30, 20:50] = True
    assert tiny_tokenizer.encode(picture, masks=[mask]).expert.tolist() == [0]


def test_a_call_without_regions_gives_no_regions(tiny_tokenizer: TapRegionTokenizer, picture: Image.Image) -> None:
    regions = tiny_tokenizer.encode(picture, boxes=[])
    assert len(regions) == 0
    assert regions.semantic_tokens.shape == (0, 4, 32)
    assert regions.masks.shape == (0, 60, 90)
    assert tiny_tokenizer.caption(regions, return_ids=True).shape[0] == 0
    assert tiny_tokenizer.classify(regions) == []
    assert len(tiny_tokenizer.encode([picture, picture], boxes=[[], []])) == 0


def test_captions_do_not_depend_on_their_batch(tiny_tokenizer: TapRegionTokenizer, picture: Image.Image) -> None:
    regions = tiny_tokenizer.encode(picture, boxes=BOXES)
    ids = tiny_tokenizer.caption(regions, return_ids=True)
    assert ids.shape == (3, 11)
    assert (ids[:, 0] == 1).all()
    for i in range(3):
        assert torch.equal(tiny_tokenizer.caption(regions[i], return_ids=True)[0], ids[i])
    assert torch.equal(tiny_tokenizer.caption(regions, return_ids=True, use_cache=False), ids)
    assert tiny_tokenizer.caption(regions, return_ids=True, max_length=4).tolist() == ids[:, :4].tolist()


def test_sampled_captions(tiny_tokenizer: TapRegionTokenizer, picture: Image.Image) -> None:
    regions = tiny_tokenizer.encode(picture, boxes=BOXES * 5)
    torch.manual_seed(0)
    hot = tiny_tokenizer.caption(regions, temperature=5.0, return_ids=True)
    torch.manual_seed(0)
    assert torch.equal(hot, tiny_tokenizer.caption(regions, temperature=5.0, return_ids=True))
    assert len({tuple(row) for row in hot.tolist()}) > 3
    beams = tiny_tokenizer.caption(regions[:2], return_ids=True, num_beams=3)
    assert beams.shape == (2, 11)


def test_classify_gives_the_best_concepts_first(tiny_tokenizer: TapRegionTokenizer, picture: Image.Image) -> None:
    regions = tiny_tokenizer.encode(picture, boxes=BOXES)
    best = tiny_tokenizer.classify(regions, top_k=8)
    assert [len(row) for row in best] == [8, 8, 8]
    assert all(a[1] >= b[1] for row in best for a, b in itertools.pairwise(row))
    assert sum(score for _, score in best[0]) == pytest.approx(1, abs=1e-5)
    own = ConceptBank.from_vectors(["mine"], torch.ones(1, 16))
    assert tiny_tokenizer.classify(regions, concepts=own) == [[("mine", 1.0)]] * 3


# --- what is refused --------------------------------------------------------------------------------------------------


def test_reprs_are_short(make_tokenizer: Callable[..., TapRegionTokenizer], picture: Image.Image) -> None:
    tokenizer = make_tokenizer()
    features = tokenizer.embed_image([picture, picture])
    assert (
        repr(features) == f"ImageFeatures(2 images of 90 × 60, 90 × 60 pixels, fingerprint={tokenizer.fingerprint!r})"
    )
    many = ImageFeatures.concatenate([features] * 50)
    assert repr(many).startswith("ImageFeatures(100 images of 90 × 60, 90 × 60, 90 × 60, … pixels")
    bank = ConceptBank.from_vectors([f"name {i}" * (1 + 9 * i) for i in range(40)], torch.randn(40, 16))
    assert repr(bank).startswith("ConceptBank(40 concepts: 'name 0', 'name 1name 1name 1name …', 'name 2")
    assert repr(bank).endswith(f"width=16, digest={bank.digest!r})")
    assert max(len(repr(value)) for value in (features, many, bank, tokenizer)) < 200
    assert repr(tokenizer).startswith("TapRegionTokenizer(''")
    bundled = repr(TapRegionTokenizer.from_pretrained("tap-tiny"))
    assert bundled == "TapRegionTokenizer('tap-tiny', with captions, 40 concepts, device='cpu')"


def test_a_list_of_names_is_refused_as_a_concept_bank_everywhere(
    make_tokenizer: Callable[..., TapRegionTokenizer], picture: Image.Image, tmp_path: Path
) -> None:
    tokenizer = make_tokenizer()
    regions = tokenizer.encode(picture, boxes=BOXES)
    for names in (["cat", "dog"], ("cat",), [], {"cat": 1}, torch.ones(3)):
        for door in (
            lambda names=names: tokenizer.classify(regions, concepts=names),
            lambda names=names: TapRegionTokenizer(tokenizer.model, concepts=names),
            lambda names=names: TapRegionTokenizer.from_pretrained("tap-tiny", concepts=names),
        ):
            with pytest.raises(ValueError, match=r"names need a text encoder\. ConceptBank\.from_text_encoder\(names"):
                door()


def test_caption_refuses_several_sequences_and_options_that_it_sets_itself(
    tiny_tokenizer: TapRegionTokenizer, picture: Image.Image
) -> None:
    regions = tiny_tokenizer.encode(picture, boxes=BOXES)
    for options in ({"num_beams": 3}, {"temperature": 0.8}, {}):
        with pytest.raises(ValueError, match="num_return_sequences is 3, expected 1: each region gets one caption"):
            tiny_tokenizer.caption(regions, return_ids=True, num_return_sequences=3, **options)
    for option in ({"max_new_tokens": 5}, {"return_dict_in_generate": True}, {"inputs_embeds": None}):
        with pytest.raises(ValueError, match=f"Got {next(iter(option))}, which caption sets itself: give max_length"):
            tiny_tokenizer.caption(regions, return_ids=True, **option)


def test_a_quality_lies_within_0_and_1_and_a_prediction_need_not(
    tiny_tokenizer: TapRegionTokenizer, picture: Image.Image
) -> None:
    regions = replace(
        tiny_tokenizer.encode(picture, boxes=BOXES), iou_scores=torch.tensor([[1.04] * 4, [-0.2] * 4, [0.5] * 4])
    )
    assert regions.quality.tolist() == [1.0, 0.0, 0.5]
    torch.testing.assert_close(regions.scores, torch.tensor([1.04, -0.2, 0.5]))


def test_bad_prompts_are_refused_before_encoding(
    make_tokenizer: Callable[..., TapRegionTokenizer], picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = make_tokenizer()
    monkeypatch.setattr(tokenizer.model, "get_image_embeddings", lambda *_: pytest.fail("the model ran"))
    with pytest.raises(ValueError, match="Image 1: Region 0: box"):
        tokenizer.encode([picture, picture], boxes=[[[0, 0, 9, 9]], [[0, 0, 900, 9]]])


def test_caption_and_classify_need_a_vocabulary_and_concepts(
    make_tokenizer: Callable[..., TapRegionTokenizer], picture: Image.Image
) -> None:
    tokenizer = make_tokenizer()
    regions = tokenizer.encode(picture, boxes=BOXES)
    with pytest.raises(ValueError, match=r"no caption vocabulary, .*text_tokenizer=…"):
        tokenizer.caption(regions)
    tokenizer.concepts = None
    with pytest.raises(ValueError, match="no concept bank: load it with concepts=…"):
        tokenizer.classify(regions)
    for wrong, message in (
        ({"temperature": -1}, "temperature is -1"),
        ({"max_length": 99}, "max_length is 99, expected 2 to 11"),
    ):
        with pytest.raises(ValueError, match=message):
            tokenizer.caption(regions, return_ids=True, **wrong)  # type: ignore[arg-type]


def test_regions_of_another_tokenizer_are_refused(
    make_tokenizer: Callable[..., TapRegionTokenizer], picture: Image.Image
) -> None:
    one, other = make_tokenizer(seed=0), make_tokenizer(seed=5)
    regions = one.encode(picture, boxes=BOXES)
    with pytest.raises(ValueError, match="encode the regions with this tokenizer"):
        other.classify(regions)
    with pytest.raises(ValueError, match="encode the regions with this tokenizer"):
        other.caption(regions, return_ids=True)
    with pytest.raises(ValueError, match="come from another tokenizer"):
        other.encode(features=one.embed_image(picture), boxes=BOXES)
    with pytest.raises(ValueError, match="both or neither of images and features"):
        one.encode(boxes=BOXES)


def test_mismatched_parts_are_refused(make_tokenizer: Callable[..., TapRegionTokenizer]) -> None:
    from tap_tokenizer import TapImageProcessor, TapProcessor

    model = make_tokenizer().model
    with pytest.raises(ValueError, match="makes pictures of 128 pixels, the model reads 64"):
        TapRegionTokenizer(model, TapProcessor(TapImageProcessor(image_size=128)))
    with pytest.raises(ValueError, match="vectors of width 3, the model's semantic embeddings 16"):
        TapRegionTokenizer(model, concepts=ConceptBank.from_vectors(["a"], torch.ones(1, 3)))


# --- saving -----------------------------------------------------------------------------------------------------------


def test_saving(make_tokenizer: Callable[..., TapRegionTokenizer], picture: Image.Image, tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path / "tap")
    loaded = TapRegionTokenizer.from_pretrained(tmp_path / "tap")
    one, other = (t.encode(picture, boxes=BOXES, with_masks=True) for t in (tokenizer, loaded))
    assert torch.equal(one.semantic_tokens, other.semantic_tokens)
    assert torch.equal(one.masks, other.masks)
    assert loaded.classify(other) == tokenizer.classify(one)
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.source == {"source": str(tmp_path / "tap")}
    half = TapRegionTokenizer.from_pretrained(tmp_path / "tap", dtype="bfloat16")
    assert half.dtype == torch.bfloat16
    assert half.fingerprint == tokenizer.fingerprint
    assert half.encode(picture, boxes=BOXES).semantic_tokens.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="dtype is 'fp8', expected float32, bfloat16 or float16"):
        TapRegionTokenizer.from_pretrained(tmp_path / "tap", dtype="fp8")


def test_moving_keeps_the_fingerprint(make_tokenizer: Callable[..., TapRegionTokenizer]) -> None:
    tokenizer = make_tokenizer()
    before = make_tokenizer().fingerprint
    assert tokenizer.to(dtype=torch.bfloat16).fingerprint == before


def test_features_of_another_tokenizer_are_refused(tiny_tokenizer: TapRegionTokenizer, picture: Image.Image) -> None:
    features = replace(tiny_tokenizer.embed_image(picture), fingerprint="another")
    for see in (tiny_tokenizer.encode_everything, lambda features: tiny_tokenizer.encode(features=features, boxes=[])):
        with pytest.raises(ValueError, match="another tokenizer"):
            see(features=features)


def test_features_move_with_the_model(tiny_tokenizer: TapRegionTokenizer, picture: Image.Image) -> None:
    """What was seen in one precision is decoded in another, and masks that were waiting come, too."""
    tokenizer = TapRegionTokenizer(deepcopy(tiny_tokenizer.model))
    features = tokenizer.embed_image(picture)
    waiting = tokenizer.encode(features=features, boxes=[[5, 5, 40, 30]])
    tokenizer.to(dtype=torch.bfloat16)
    assert tokenizer.encode(features=features, boxes=[[5, 5, 40, 30]]).tokens.dtype == torch.bfloat16
    assert waiting.masks.shape == (1, picture.height, picture.width)


def test_a_fingerprint_depends_on_the_values(tiny_tokenizer: TapRegionTokenizer, tmp_path: Path) -> None:
    half = TapRegionTokenizer(deepcopy(tiny_tokenizer.model).to(torch.float16))
    half.save_pretrained(tmp_path / "half")
    wide = TapRegionTokenizer.from_pretrained(tmp_path / "half")
    assert wide.dtype == torch.float32
    before = wide.fingerprint
    wide.save_pretrained(tmp_path / "wide")
    assert TapRegionTokenizer.from_pretrained(tmp_path / "wide").fingerprint == before != tiny_tokenizer.fingerprint
