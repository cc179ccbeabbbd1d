"""The procedural world: always the same, and what it says of itself is true."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from itertools import pairwise

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from finetune.glyphs.language import caption, concept_bank, concept_banks, concept_vector, phrase_cosines
from finetune.glyphs.scenes import (
    COLOURS,
    HELD_OUT_PAIRS,
    KINDS,
    SIZES,
    SPLITS,
    draw_scene,
    font_path,
    make_scene,
)
from tap_tokenizer import TapRegionTokenizer

FIRST_SCENES = {
    "test": "b3d943b6bbeb49f1",
    "test-compositional": "bac98281d8df75dc",
    "test-crowded": "4beb56f0dbd2e3b8",
    "train": "1f1bf81dbb8e3025",
    "train-packed": "2fc339a4fff86cad",
    "train-scaled": "37c7237632e5836d",
    "val": "1c8b84ce5c36ee09",
}
"""Digest of the first three scenes of each split: a change of the generator is a new version of the world."""


def digest(split: str) -> str:
    scenes = [asdict(make_scene(index, split)) for index in range(3)]
    text = json.dumps(scenes, default=float, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@pytest.mark.parametrize("split", sorted(SPLITS))
def test_scenes_never_change(split: str) -> None:
    assert digest(split) == FIRST_SCENES[split]


def test_scenes_differ_by_index_seed_and_split() -> None:
    scenes = [make_scene(0), make_scene(1), make_scene(0, seed=1), make_scene(0, "val")]
    assert len({str(scene.objects) for scene in scenes}) == 4
    assert make_scene(7, "test", 3) == make_scene(7, "test", 3)


def test_drawing_is_deterministic() -> None:
    one, other = draw_scene(make_scene(3), 128), draw_scene(make_scene(3), 128)
    assert np.array_equal(one.image, other.image)
    assert np.array_equal(one.masks, other.masks)


def test_masks_and_boxes_are_exact() -> None:
    for index in range(20):
        scene = make_scene(index)
        picture = draw_scene(scene, 256)
        assert picture.image.shape == (round(scene.height * 256), round(scene.width * 256), 3)
        assert picture.masks.sum(axis=0).max() <= 1  # visible masks do not overlap
        for mask, box in zip(picture.masks, picture.boxes.astype(int)):
            rows, columns = np.nonzero(mask)
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_masks_show_their_objects_colour() -> None:
    near = []
    for index in range(30):
        scene = make_scene(index)
        picture = draw_scene(scene, 256)
        for glyph, mask in zip(scene.objects, picture.masks):
            seen = picture.image[mask].mean(axis=0)
            distances = {name: np.abs(seen - rgb).sum() for name, rgb in COLOURS.items()}
            near.append(min(distances, key=distances.__getitem__) == glyph.colour)
    assert np.mean(near) > 0.97


def test_a_scene_is_the_same_at_every_size() -> None:
    scene = make_scene(5)
    small, large = draw_scene(scene, 128), draw_scene(scene, 512)
    np.testing.assert_allclose(small.boxes * 4, large.boxes, atol=8)


def test_held_out_pairs_are_held_out() -> None:
    assert len(HELD_OUT_PAIRS) == len(KINDS)
    assert {colour for _, colour in HELD_OUT_PAIRS} == set(COLOURS)
    for split in SPLITS:
        pairs = {(o.kind, o.colour) for index in range(60) for o in make_scene(index, split).objects}
        assert pairs <= HELD_OUT_PAIRS if split == "test-compositional" else not pairs & HELD_OUT_PAIRS


def test_sizes_do_not_overlap_and_crowded_scenes_have_twice_the_objects() -> None:
    ranges = list(SIZES.values())
    assert all(a[1] * 1.2 < b[0] for a, b in pairwise(ranges))
    counts = {split: np.mean([len(make_scene(i, split).objects) for i in range(40)]) for split in SPLITS}
    assert counts["test-crowded"] > 2 * counts["test"]
    seen = [o.size for i in range(300) for o in make_scene(i).objects]
    assert {size: seen.count(size) / len(seen) > 0.25 for size in SIZES} == dict.fromkeys(SIZES, True)


def test_scaled_scenes_are_smaller_and_rename_their_sizes() -> None:
    scenes = [make_scene(i, "train-scaled") for i in range(60)]
    objects = [o for scene in scenes for o in scene.objects]
    least = min(extent for extent, _ in SIZES.values())
    assert 0.7 * least <= min(o.extent for o in objects) < 0.9 * least
    assert max(o.extent for o in objects) <= SIZES["large"][1]
    for glyph in objects:  # whatever lies in the range of a size is called so
        named = [size for size, (low, high) in SIZES.items() if low <= glyph.extent <= high]
        assert named in ([], [glyph.size]), glyph
    for scene in scenes:
        for glyph in scene.objects:
            assert 0.5 * glyph.extent <= glyph.x <= scene.width - 0.5 * glyph.extent
            assert 0.5 * glyph.extent <= glyph.y <= scene.height - 0.5 * glyph.extent


def test_scenes_share_kinds_and_colours() -> None:
    scenes = [make_scene(i, "test").objects for i in range(200)]
    assert np.mean([len({o.kind for o in s}) < len(s) for s in scenes]) > 0.4
    assert np.mean([len({o.colour for o in s}) < len(s) for s in scenes]) > 0.6


def test_the_font_is_matplotlibs() -> None:
    assert font_path().is_file()
    from fontTools.ttLib import TTFont

    known = TTFont(font_path()).getBestCmap()
    assert all(ord(character) in known for character in KINDS.values())


@pytest.mark.parametrize(("index", "split", "seed"), [(-1, "train", 0), (0, "train", -1), (0, "trian", 0)])
def test_bad_numbers_are_refused(index: int, split: str, seed: int) -> None:
    with pytest.raises(ValueError, match="Got"):
        make_scene(index, split, seed)


def test_captions_and_concepts() -> None:
    glyph = make_scene(0).objects[0]
    assert caption(glyph) == f"a {glyph.size} {glyph.colour} {glyph.kind}"
    vector = concept_vector("a small red umbrella")
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
    assert concept_vector("umbrella") @ vector > concept_vector("red") @ vector > concept_vector("small") @ vector > 0.4
    assert concept_vector("umbrella") @ concept_vector("king") == pytest.approx(0, abs=1e-6)
    for words in ("a small dragon", "a the", ""):
        with pytest.raises(ValueError, match="GlyphScenes"):
            concept_vector(words)


def test_concept_banks_have_the_words_of_the_language() -> None:
    import torch

    vector = torch.from_numpy(concept_vector("a small red umbrella"))[None]
    assert [bank.top(vector, 1)[0][0][0] for bank in concept_banks()] == ["umbrella", "red", "small"]
    pairs = concept_bank(["a red umbrella", "a red king", "a blue umbrella"])
    assert pairs.top(vector, 1)[0][0][0] == "a red umbrella"


def test_a_phrase_is_compared_with_what_the_concept_head_says(tiny_tokenizer: TapRegionTokenizer) -> None:
    import torch

    names = ["a small red umbrella", "a large red king", "a blue umbrella"]
    regions = tiny_tokenizer.encode(np.zeros((40, 40, 3), np.uint8), boxes=[[1, 1, 20, 20]] * 3)
    seen = 3 * torch.stack([torch.from_numpy(concept_vector(name)) for name in names])
    regions = replace(regions, semantic_embeds=seen[:, None].expand(-1, regions.semantic_embeds.shape[1], -1))
    for phrase, best in (("The umbrella that is blue", 2), ("the largest red king.", 1), ("small things", 0)):
        cosines = phrase_cosines(regions, phrase)
        assert cosines.shape == (3,)
        assert int(cosines.argmax()) == best
    assert float(phrase_cosines(regions, names[0])[0]) == pytest.approx(1)
    with pytest.raises(ValueError, match="expected kinds"):
        phrase_cosines(regions, "a dragon")
