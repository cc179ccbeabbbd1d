"""A source of models for FiftyOne's zoo: TAP with the boxes of samples as prompts, and embeddings.

    model = foz.load_zoo_model("tap-tiny")
    dataset.apply_model(model, label_field="tap", prompt_field="ground_truth")
    dataset.compute_patch_embeddings(model, "ground_truth", embeddings_field="region_embedding")

FiftyOne loads this folder by itself, so it imports nothing that lies beside it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import fiftyone.core.labels as fol
import fiftyone.core.models as fom
from tap_tokenizer import RegionTokens, TapRegionTokenizer, box_problems

logger = logging.getLogger(__name__)

MODELS: dict[str, dict[str, str]] = {
    "tap-tiny": {"source": "tap-tiny"},
    "tap-vit-l": {"source": "BAAI/tokenize-anything", "variant": "tap_vit_l_v1_1"},
}
"""Arguments of `TapRegionTokenizer.from_pretrained`, by the names in the manifest."""


def download_model(model_name: str, model_path: str) -> None:
    """Fetch the weights into the Hub's cache, and write down how they are found."""
    TapRegionTokenizer.from_pretrained(**_known(model_name))
    Path(model_path).write_text(json.dumps(MODELS[model_name]), encoding="utf-8")


def load_model(model_name: str, model_path: str, **options: Any) -> TapModel:
    """The model. options: those of `TapModel`, and of `TapRegionTokenizer.from_pretrained` (device, text_encoder, …)."""
    own = {name: options.pop(name) for name in ("vocabulary", "captions", "vectors", "search") if name in options}
    return TapModel(TapRegionTokenizer.from_pretrained(**{**_known(model_name), **options}), **own)


def _known(model_name: str) -> dict[str, Any]:
    if model_name not in MODELS:
        raise ValueError(f"Got the model {model_name}, expected one of {', '.join(MODELS)}.")
    return dict(MODELS[model_name])


class TapModel(fom.Model, fom.SamplesMixin, fom.EmbeddingsMixin):
    """A region tokenizer as FiftyOne calls models.

    Detections of a sample's `prompt_field` are the prompts, and keep their labels' ids and boxes; without that field, all that
    a search finds. A label is the best concept, or the prompt's label without concepts; the confidence is the mask's quality.
    Boxes are clipped to their picture. Those that have no area there are left out, which the log says.
    vocabulary: concepts of your own. captions: whether "caption" is written. vectors: whether "region_embedding" is.
    search: fields of `EverythingOptions`.
    """

    def __init__(
        self,
        tokenizer: TapRegionTokenizer,
        *,
        vocabulary: list[str] | None = None,
        captions: bool = True,
        vectors: bool = False,
        search: dict[str, Any] | None = None,
    ) -> None:
        fom.SamplesMixin.__init__(self)
        self.tokenizer = tokenizer
        if vocabulary is not None:
            tokenizer.concepts = tokenizer.concept_bank(vocabulary)
        self.captions = captions and tokenizer.text_tokenizer is not None
        self.vectors = vectors
        self.search = search or {}
        self._last: np.ndarray | None = None

    config = None  # FiftyOne asks it which thresholds the model applies by itself
    media_type = "image"
    has_logits = False
    has_embeddings = True
    ragged_batches = False  # pictures of any size go into one batch, and FiftyOne keeps the batch_size that it is given
    transforms = None
    preprocess = False

    def predict(self, arg: np.ndarray, sample: Any = None) -> Any:
        """Detections of a picture (H, W, 3), uint8, each with a mask, "caption" and "mask_quality".

        Raises `ValueError` if `prompt_field` holds labels of another type.
        """
        return self.predict_all([arg], None if sample is None else [sample])[0]

    def predict_all(self, args: Any, samples: Any = None) -> list[Any]:
        """`predict` of each picture; where boxes are the prompts, all pictures and boxes go through TAP together."""
        pictures = list(args)
        field = self.needs_fields.get("prompt_field") if samples is not None else None
        if field is None:
            return [
                fol.Detections(detections=self._labels(self.tokenizer.encode_everything(picture, **self.search), []))
                for picture in pictures
            ]
        prompts = [self._prompts(picture, sample, field) for picture, sample in zip(pictures, samples)]
        asked = [i for i, (given, _) in enumerate(prompts) if given]
        labels: Iterator[Any] = iter(())
        if asked:
            boxes = [prompts[i][1].tolist() for i in asked]
            regions = self.tokenizer.encode([pictures[i] for i in asked], boxes=boxes, with_masks=True)
            labels = iter(self._labels(regions, [one for i in asked for one in prompts[i][0]]))
        return [fol.Detections(detections=[next(labels) for _ in given]) for given, _ in prompts]

    def _prompts(self, picture: np.ndarray, sample: Any, field: str) -> tuple[list[Any], np.ndarray]:
        """The detections of a sample whose boxes have an area in its picture, and these boxes, as `_boxes_of` gives them."""
        given = _detections_of(sample[field.removeprefix("frames.")], field)  # of a video, the sample is a frame
        boxes = _boxes_of(given, picture.shape[:2])
        useless = box_problems(boxes, picture.shape[:2])
        if useless:
            logger.warning(
                "Left out %d of %d boxes of %s in sample %s: they have no area in the picture.",
                len(useless), len(boxes), field, getattr(sample, "id", None),
            )  # fmt: skip
        kept = [row for row in range(len(given)) if row not in useless]
        return [given[row] for row in kept], boxes[kept]

    def _labels(self, regions: RegionTokens, given: list[Any]) -> list[Any]:
        """A detection for each region, picture by picture. given: the detections that were the prompts, if any were."""
        count = len(regions)
        captions = self.tokenizer.caption(regions) if self.captions and count else [None] * count
        has_names = self.tokenizer.concepts is not None and count
        names = [own[0][0] for own in self.tokenizer.classify(regions, 1)] if has_names else [None] * count
        masks = [mask.cpu().numpy() for i in range(regions.num_images) for mask in regions.of_image(i).masks]
        embeds = regions.embeds.float().cpu().numpy() if self.vectors else None
        made = []
        for i, (box, quality) in enumerate(zip(regions.boxes.tolist(), regions.quality.tolist())):
            x1, y1, x2, y2 = box
            height, width = masks[i].shape
            left, top, right, bottom = (
                round(x1),
                round(y1),
                max(round(x2), round(x1) + 1),
                max(round(y2), round(y1) + 1),
            )
            own: dict[str, Any] = {"caption": captions[i], "mask_quality": quality}
            if embeds is not None:
                own["region_embedding"] = embeds[i]  # an array, which FiftyOne keeps as a vector
            if given:
                own["prompt_id"] = str(given[i].id)
            made.append(
                fol.Detection(
                    label=names[i] or (given[i].label if given else None),
                    bounding_box=[x1 / width, y1 / height, (x2 - x1) / width, (y2 - y1) / height],
                    mask=masks[i][top:bottom, left:right],
                    confidence=quality,
                    **own,
                )
            )
        return made

    def embed(self, arg: np.ndarray) -> np.ndarray:
        """The semantic embedding (E,) of a picture as one region; of a patch, that is the embedding of what it shows."""
        self._last = self.embed_all([arg])
        return self._last[0]

    def embed_all(self, args: Any) -> np.ndarray:
        """`embed` of each, (N, E), float32."""
        pictures = list(args)
        boxes = [[[0, 0, picture.shape[1], picture.shape[0]]] for picture in pictures]
        return self.tokenizer.encode(pictures, boxes=boxes).embeds.float().cpu().numpy()

    def get_embeddings(self) -> np.ndarray:
        """What `embed` gave last, (1, E)."""
        if self._last is None:
            raise ValueError("Nothing has been embedded yet: call embed first.")
        return self._last


def _detections_of(label: Any, field: str) -> list[Any]:
    """The detections of a label, none if there is no label. Raises `ValueError` for a label of another type."""
    if label is None:
        return []
    if not isinstance(label, (fol.Detection, fol.Detections)):
        raise ValueError(
            f"The field {field} holds a label of type {type(label).__name__}, expected Detections, whose boxes are the "
            "prompts: give a field of detections as prompt_field, or leave it out, and everything is searched for."
        )
    return label.detections if isinstance(label, fol.Detections) else [label]


def _boxes_of(detections: list[Any], size: tuple[int, int]) -> np.ndarray:
    """Their boxes (N, 4), xyxy in pixels of a picture of (height, width) `size`, clipped to it."""
    height, width = size
    shares = np.array([one.bounding_box for one in detections], dtype=np.float64).reshape(-1, 4)
    corners = np.hstack([shares[:, :2], shares[:, :2] + shares[:, 2:]])
    return corners.clip(0, 1) * [width, height, width, height]
