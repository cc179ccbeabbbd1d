"""The bundled tap-tiny is what its card says: small, whole, and seeing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tap_tokenizer import TapRegionTokenizer

FOLDER = Path(__file__).parents[2] / "tap_tokenizer" / "pretrained" / "tap-tiny"


def test_the_card_and_its_numbers_belong_to_the_weights() -> None:
    card = (FOLDER / "README.md").read_text()
    for word in ("seed", "steps", "GlyphScenes", "mask mIoU", "concept", "caption", "python -m finetune"):
        assert word in card, word
    measured = json.loads((FOLDER / "training" / "metrics.json").read_text())
    assert measured["of"]["region_tokenizer_fingerprint"] == TapRegionTokenizer.from_pretrained("tap-tiny").fingerprint


def test_the_cards_table_has_the_measured_numbers() -> None:
    names = {
        "native caption, every word right": "native caption exact",
        "concept top-1: kind, of 40": "concept top-1 (kind)",
        "concept top-1: colour, of 10": "concept top-1 (colour)",
        "concept top-1: size, of 3": "concept top-1 (size)",
    }
    measured = json.loads((FOLDER / "training" / "metrics.json").read_text())
    lines = (FOLDER / "README.md").read_text().partition("## Measured")[2].splitlines()
    (_, *splits), *rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines if line.startswith("| ")]
    assert splits == ["test", "compositional", "crowded"]
    for name, *cells in rows:
        for split, cell in zip(("test", "test-compositional", "test-crowded"), cells):
            assert float(cell) == pytest.approx(measured[split][names.get(name, name)], abs=6e-4), (name, split)
    told = [name.partition(":")[0] for name, *_ in rows]
    for way in ("semantic embedding", "semantic token", "caption words", "words"):
        assert told.count(f"found again by {way}") == 2  # recall@10 and mAP


def test_masks_concepts_and_captions_are_near_what_was_measured() -> None:
    """On 12 scenes that the card's measurement begins with; the margin is four standard errors of so few."""
    pytest.importorskip("matplotlib")
    from finetune.glyphs.language import caption
    from finetune.glyphs.scenes import draw_scene, make_scene

    measured = json.loads((FOLDER / "training" / "metrics.json").read_text())["test"]
    tokenizer = TapRegionTokenizer.from_pretrained("tap-tiny")
    iou, kind, words = [], [], []
    for index in range(12):
        scene = make_scene(index, "test", 0)
        picture = draw_scene(scene, 512)
        seen = np.flatnonzero(picture.masks.any(axis=(1, 2)))
        regions = tokenizer.encode(picture.image, boxes=picture.boxes[seen], with_masks=True)
        masks = regions.masks.numpy()
        truth = picture.masks[seen]
        iou += list((masks & truth).sum((1, 2)) / (masks | truth).sum((1, 2)))
        kind += [top[0][0] == scene.objects[i].kind for top, i in zip(tokenizer.classify(regions, 1), seen)]
        words += [said == caption(scene.objects[i]) for said, i in zip(tokenizer.caption(regions), seen)]
    for values, name in (
        (iou, "mask mIoU from a box"),
        (kind, "concept top-1 (kind)"),
        (words, "native caption exact"),
    ):
        error = np.sqrt(measured[name] * (1 - measured[name]) / len(values))  # the most that shares can scatter
        assert abs(np.mean(values) - measured[name]) <= 4 * error + 1e-3, (name, np.mean(values), measured[name])
