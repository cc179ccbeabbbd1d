"""The source of models for FiftyOne's zoo, by its contract, and with the real package where it is installed."""

from __future__ import annotations

import json
import logging
import os
import sys
from importlib.metadata import version
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tap_tokenizer import TapRegionTokenizer

FOLDER = Path(__file__).parents[1] / "docs" / "fiftyone"
DEMO = Path(__file__).parents[1] / "llm_bridge" / "pretrained" / "region-chat-tiny" / "demo.png"
BOXES = [[361, 233, 436, 307], [177, 392, 271, 470]]
os.environ.setdefault("FIFTYONE_DISABLE_SERVICES", "1")  # its database is no part of what is tested


class SamplesMixin:
    """As FiftyOne's."""

    def __init__(self) -> None:
        self.needs_fields: dict[str, str] = {}


class Label(SimpleNamespace):
    """As FiftyOne's: any attributes, and an id."""

    id = "0123"


LABELS = {name: type(name, (Label,), {}) for name in ("Detection", "Detections", "Keypoints")}


@pytest.fixture(params=["by contract", "installed"])
def zoo(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The folder as FiftyOne loads it."""
    if request.param == "installed" and find_spec("fiftyone") is None:
        pytest.skip("needs fiftyone")
    if request.param == "by contract":
        models, labels = ModuleType("fiftyone.core.models"), ModuleType("fiftyone.core.labels")
        vars(models).update(Model=type("Model", (), {}), SamplesMixin=SamplesMixin, EmbeddingsMixin=type("E", (), {}))
        vars(labels).update(LABELS)
        core, top = ModuleType("fiftyone.core"), ModuleType("fiftyone")
        vars(core).update(models=models, labels=labels)
        vars(top).update(core=core)
        for module in (top, core, models, labels):
            monkeypatch.setitem(sys.modules, module.__name__, module)
    spec = spec_from_file_location("tap_zoo", FOLDER / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "tap_zoo", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def picture() -> np.ndarray:
    return np.asarray(Image.open(DEMO).convert("RGB"))


def sample_with(zoo: Any, boxes: list[list[int]]) -> dict[str, Any]:
    size = 512
    made = [
        zoo.fol.Detection(label="thing", bounding_box=[x1 / size, y1 / size, (x2 - x1) / size, (y2 - y1) / size])
        for x1, y1, x2, y2 in boxes
    ]
    return {"ground_truth": zoo.fol.Detections(detections=made)}


def test_the_manifest_lists_what_the_folder_loads(zoo: Any, tmp_path: Path) -> None:
    listed = json.loads((FOLDER / "manifest.json").read_text())["models"]
    assert [model["base_name"] for model in listed] == list(zoo.MODELS)
    zoo.download_model("tap-tiny", str(tmp_path / "tap-tiny.json"))
    model = zoo.load_model("tap-tiny", str(tmp_path / "tap-tiny.json"), device="cpu")
    assert model.tokenizer.fingerprint == TapRegionTokenizer.from_pretrained("tap-tiny").fingerprint
    assert (model.media_type, model.has_embeddings, model.transforms) == ("image", True, None)
    with pytest.raises(ValueError, match="expected one of tap-tiny, tap-vit-l"):
        zoo.load_model("tap-huge", "")


def test_the_packages_that_the_manifest_requires_are_distributions() -> None:
    """FiftyOne looks them up by `importlib.metadata`, not by importing them."""
    for model in json.loads((FOLDER / "manifest.json").read_text())["models"]:
        for package in model["requirements"]["packages"]:
            assert version(package)


def test_boxes_of_the_sample_are_the_prompts(zoo: Any, picture: np.ndarray) -> None:
    model = zoo.load_model("tap-tiny", "", vectors=True, vocabulary=["umbrella", "face", "cloud"])
    model.needs_fields = {"prompt_field": "ground_truth"}
    sample = sample_with(zoo, BOXES)
    found = model.predict(picture, sample=sample).detections
    regions = model.tokenizer.encode(picture, boxes=BOXES, with_masks=True)
    assert [one.caption for one in found] == model.tokenizer.caption(regions)
    assert [one.label for one in found] == ["face", "cloud"]
    assert [one.prompt_id for one in found] == [str(one.id) for one in sample["ground_truth"].detections]
    for i, (x1, y1, x2, y2) in enumerate(BOXES):
        assert np.allclose(np.array(found[i].bounding_box) * 512, [x1, y1, x2 - x1, y2 - y1])
        assert np.array_equal(found[i].mask, regions.masks[i, y1:y2, x1:x2].numpy())
        assert isinstance(found[i].region_embedding, np.ndarray)  # of a list, FiftyOne would make no vector field
        assert np.allclose(found[i].region_embedding, regions.embeds[i])
        assert found[i].confidence == pytest.approx(float(regions.quality[i]))
    assert model.predict(picture, sample=sample_with(zoo, [])).detections == []


def test_boxes_are_clipped_to_the_picture_and_those_without_area_are_counted(
    zoo: Any, picture: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    model = zoo.load_model("tap-tiny", "", captions=False)
    model.needs_fields = {"prompt_field": "ground_truth"}
    sample = sample_with(zoo, [[-20, 233, 436, 540], [100, 100, 100, 200], [600, 10, 700, 90], BOXES[1]])
    with caplog.at_level(logging.WARNING):
        found = model.predict(picture, sample=sample).detections
    assert "Left out 2 of 4 boxes of ground_truth" in caplog.text
    given = sample["ground_truth"].detections
    assert [one.prompt_id for one in found] == [str(given[0].id), str(given[3].id)]
    boxes = [np.array(one.bounding_box) * 512 for one in found]
    assert np.allclose(boxes, [[0, 233, 436, 279], [177, 392, 94, 78]])


def test_a_single_detection_is_a_prompt_and_other_labels_are_refused(zoo: Any, picture: np.ndarray) -> None:
    model = zoo.load_model("tap-tiny", "", captions=False)
    model.needs_fields = {"prompt_field": "frames.ground_truth"}  # of a video, whose frames have the field without it
    one = sample_with(zoo, BOXES[:1])["ground_truth"].detections[0]
    assert len(model.predict(picture, sample={"ground_truth": one}).detections) == 1
    assert model.predict(picture, sample={"ground_truth": None}).detections == []
    with pytest.raises(ValueError, match=r"frames\.ground_truth holds a label of type Keypoints, expected Detections"):
        model.predict(picture, sample={"ground_truth": zoo.fol.Keypoints(keypoints=[])})


def test_pictures_of_different_sizes_go_through_tap_in_one_batch(
    zoo: Any, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FiftyOne ignores the batch_size that `apply_model` is given if a model says that its batches are ragged."""
    model = zoo.load_model("tap-tiny", "", vectors=True)
    assert not model.ragged_batches
    model.needs_fields = {"prompt_field": "ground_truth"}
    pictures = [picture, picture[:300], picture, picture[:, :400]]
    samples = [sample_with(zoo, BOXES), sample_with(zoo, BOXES[:1]), sample_with(zoo, []), {"ground_truth": None}]
    samples[1]["ground_truth"].detections[0].bounding_box = [0.7, 0.75, 0.15, 0.25]  # shares of a lower picture
    alone = [model.predict(one, sample=sample) for one, sample in zip(pictures, samples)]
    encode, given = model.tokenizer.encode, []

    def counted(images: Any, **rest: Any) -> Any:
        given.append([image.shape for image in images])
        return encode(images, **rest)

    monkeypatch.setattr(model.tokenizer, "encode", counted)
    together = model.predict_all(pictures, samples=samples)
    assert given == [[(512, 512, 3), (300, 512, 3)]]  # the others hold no box
    assert [len(one.detections) for one in together] == [2, 1, 0, 0]
    for one, other in zip(alone, together):
        for a, b in zip(one.detections, other.detections, strict=True):
            assert (a.label, a.caption, a.prompt_id) == (b.label, b.caption, b.prompt_id)
            assert np.allclose(a.bounding_box, b.bounding_box)
            assert a.mask.shape == b.mask.shape
            assert np.mean(a.mask != b.mask) < 1e-3
            assert np.allclose(a.region_embedding, b.region_embedding, atol=1e-4)


def test_fiftyone_can_ask_whether_the_model_filters_by_itself(zoo: Any) -> None:
    """As `apply_model` does, with confidence_thresh and with classes."""
    model = zoo.load_model("tap-tiny", "")
    assert not hasattr(model.config, "confidence_thresh")
    assert not hasattr(model.config, "filter_classes")


def test_without_prompts_everything_is_found(zoo: Any, picture: np.ndarray) -> None:
    options = {"points_per_crop": 4, "pred_iou_thresh": 0.5, "stability_score_thresh": 0.6}
    model = zoo.load_model("tap-tiny", "", search=options, captions=False)
    (found,) = model.predict_all([picture])
    assert len(found.detections) == len(model.tokenizer.encode_everything(picture, **options)) > 1
    assert found.detections[0].caption is None


def test_a_patch_is_embedded_as_one_region(zoo: Any, picture: np.ndarray) -> None:
    model = zoo.load_model("tap-tiny", "")
    patch = picture[233:307, 361:436]
    alone = model.embed(patch)
    assert np.allclose(alone, model.tokenizer.encode(patch, boxes=[[0, 0, 75, 74]]).embeds[0])
    assert np.allclose(model.get_embeddings(), alone[None])
    assert np.allclose(model.embed_all([patch, picture])[0], alone, atol=1e-4)
