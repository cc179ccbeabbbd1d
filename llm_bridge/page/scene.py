"""A picture on the page and all that was said and seen of it; what a browser is sent of it, and what is downloaded."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from tap_tokenizer import (
    ImageFeatures,
    RegionPrompt,
    RegionTokens,
    box_and_points,
    box_of_mask,
    draw_regions,
    mask_to_rle,
)

from ..chat import RegionChat

SHOWN_SIDE = 1280
"""The longest side, in pixels, of the picture that a browser is sent. Masks that are shown on it have its size."""

SEARCH_POINTS = 16
"""Points along each side of the grid by which the page finds everything: a quarter of the default's work."""

AGREEMENT = 0.8
"""Intersection over union with a region that was found, above which its box stands for it. Bridges are taught to read boxes."""

LUMA = np.array([0.299, 0.587, 0.114])
"""How bright red, green and blue look (ITU-R BT.601)."""

NOT_ASKED = "(not asked about)"
"""What a drawing says of regions that were only marked."""


@dataclass
class Look:
    """What TAP says of one region, and its mask cut out of the picture, as the address of a small JPEG."""

    name: str
    caption: str | None
    concepts: list[tuple[str, float]]
    cutout: str

    def as_dict(self) -> dict[str, Any]:
        """As the page shows it."""
        return vars(self)


@dataclass
class Scene:
    """A picture and its conversation; another picture or a new beginning is another scene."""

    picture: np.ndarray
    chat: RegionChat
    features: ImageFeatures | None = None
    boxes: list[list[float]] = field(default_factory=list)
    masks: list[np.ndarray] = field(default_factory=list)
    """Of the conversation's regions as TAP sees them, eight pixels a byte."""
    looks: list[Look] = field(default_factory=list)
    prompts: list[RegionPrompt] = field(default_factory=list)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the picture."""
        return self.picture.shape[0], self.picture.shape[1]

    @property
    def shown_size(self) -> tuple[int, int]:
        """Height and width of the picture as browsers are sent it."""
        scale = min(1.0, SHOWN_SIDE / max(self.size))
        return max(1, round(self.size[0] * scale)), max(1, round(self.size[1] * scale))

    @property
    def memory(self) -> int:
        """How much memory the scene holds, in bytes: the picture, what TAP made of it, and masks."""
        arrays = [self.picture, self.chat.image, *self.masks]
        held = sum({id(array): array.nbytes for array in arrays if array is not None}.values())
        return held + (self.features.embeddings.nbytes if self.features is not None else 0)

    # --- what TAP sees ------------------------------------------------------------------------------------------------

    def encode(self) -> ImageFeatures:
        """The picture as TAP has encoded it, once."""
        if self.features is None:
            self.features = self.chat.processor.embed_image(self.picture)
        return self.features

    def see(self, prompts: Sequence[RegionPrompt]) -> RegionTokens:
        """Regions by their prompts, with masks."""
        return self.chat.region_tokenizer.encode(features=self.encode(), with_masks=True, prompts=prompts)

    def glance(self, prompts: Sequence[RegionPrompt]) -> list[dict[str, Any]]:
        """What is shown of regions while one points at them: the mask of each, its box, and its best concept."""
        if not prompts:
            return []
        shown = [_resized(prompt, self.size, self.shown_size) for prompt in prompts]
        return self._shown(self._seen_shown(shown))

    def everything(self) -> list[dict[str, Any]]:
        """All objects that TAP finds by itself, as `glance` shows regions, each with the `prompt` to ask about it by."""
        return self._offered(self._search())

    def find(self, words: str) -> list[dict[str, Any]]:
        """What the language model takes a phrase to mean, among everything, as `everything` shows regions.

        Each has the `probability` that the language model gives it. The conversation is left as it is: the regions only join
        it when something is asked about them.
        """
        prompts = self._search()
        if not prompts:
            return []
        alone = self.chat.another()
        alone.warns_of_limitation = False
        shown = [_resized(prompt, self.size, self.shown_size) for prompt in prompts]
        found = alone.find(words, image=np.asarray(self._shown_image()), prompts=shown)
        offered = self._offered([prompts[row] for row in found.rows])
        return [one | {"probability": share} for one, share in zip(offered, found.probabilities.tolist())]

    def _offered(self, prompts: Sequence[RegionPrompt]) -> list[dict[str, Any]]:
        return [one | {"prompt": prompt.as_dict()} for one, prompt in zip(self.glance(prompts), prompts)]

    def _search(self) -> list[RegionPrompt]:
        """Everything that TAP finds, by prompts of the picture that bring each region back: its box, or a point in it.

        TAP finds a region from a point. Asked about its box, it answers by another expert, and may mean something else inside:
        then the point that lies deepest in the region stands for it, if that agrees better.
        """
        tokenizer = self.chat.region_tokenizer
        found = tokenizer.encode_everything(features=self._shown_features(), points_per_crop=SEARCH_POINTS)
        if not len(found):
            return []
        masks = found.masks.cpu().numpy()
        own = [box_and_points(mask) for mask in masks]
        boxes = [RegionPrompt(box=one.box) for one in own]
        points = [RegionPrompt(points=(one.points or ())[:1], point_labels=(1,)) for one in own]
        again = self._seen_shown([*boxes, *points]).masks.cpu().numpy()
        by_box, by_point = (_agreement(masks, seen) for seen in np.split(again, 2))
        is_box = (by_box >= AGREEMENT) | (by_box >= by_point)
        chosen = [box if fits else point for box, point, fits in zip(boxes, points, is_box)]
        return [_resized(prompt, self.shown_size, self.size) for prompt in chosen]

    def _seen_shown(self, prompts: Sequence[RegionPrompt]) -> RegionTokens:
        """Regions by their prompts in the shown picture, with masks of it."""
        return self.chat.region_tokenizer.encode(features=self._shown_features(), with_masks=True, prompts=prompts)

    def _shown_features(self) -> ImageFeatures:
        """The encoded picture in the frame of the shown one, where masks of a large picture take no longer to draw."""
        return replace(self.encode(), original_sizes=torch.tensor([self.shown_size]))

    def _shown(self, regions: RegionTokens) -> list[dict[str, Any]]:
        """Regions of the shown picture for a browser: masks of that picture, boxes in pixels of the original."""
        tokenizer, (height, width) = self.chat.region_tokenizer, self.shown_size
        stretch = np.array([self.size[1] / width, self.size[0] / height] * 2)
        masks = regions.masks.cpu().numpy()
        shown = [
            {"box": (np.array(box) * stretch).round(1).tolist(), "mask": mask_runs(mask)}
            for box, mask in zip(regions.boxes.tolist(), masks)
        ]
        if tokenizer.concepts is not None and shown:
            for one, best in zip(shown, tokenizer.classify(regions, 1)):
                one["concept"] = best[0]
        return shown

    def look(self, regions: RegionTokens, first: int) -> list[Look]:
        """What TAP says of regions, the first of which has the number `first` in the conversation."""
        tokenizer = self.chat.region_tokenizer
        captions = tokenizer.caption(regions) if tokenizer.text_tokenizer is not None else [None] * len(regions)
        return [
            Look(f"region{i}", caption, best, cutout(self.picture, mask.numpy()))
            for i, (caption, best, mask) in enumerate(
                zip(captions, self._concepts(regions), regions.masks.cpu()), start=first
            )
        ]

    def _concepts(self, regions: RegionTokens) -> list[list[tuple[str, float]]]:
        """The best concepts of each region, with their scores; none from a tokenizer without concepts."""
        tokenizer = self.chat.region_tokenizer
        return tokenizer.classify(regions, 3) if tokenizer.concepts is not None else [[]] * len(regions)

    # --- what is shown and downloaded ---------------------------------------------------------------------------------

    def known(self) -> list[dict[str, Any]]:
        """The conversation's regions, to be drawn by a browser."""
        return [
            {"name": f"region{i + 1}", "box": box, "mask": mask_runs(_at_size(self._mask(i), self.shown_size))}
            for i, box in enumerate(self.boxes)
        ]

    def shown_picture(self) -> str:
        """The address of the picture without regions, for a browser to draw on."""
        return data_address(self._shown_image())

    def _shown_image(self) -> Image.Image:
        height, width = self.shown_size
        picture = Image.fromarray(self.picture)
        return picture if self.size == self.shown_size else picture.resize((width, height), Image.Resampling.LANCZOS)

    def drawing(self, marked: RegionTokens | None = None) -> Image.Image:
        """The picture with its regions, at its own size, each with its name and TAP's caption.

        marked: regions that were marked and not asked about yet, which follow with their best concepts, and are said to be so.
        """
        picture = Image.fromarray(self.picture)
        masks = [self._mask(i) for i in range(len(self.masks))]
        labels = [look.caption or "" for look in self.looks]
        if marked is not None:
            masks += [*marked.masks.cpu().numpy()]
            labels += [" ".join([*(name for name, _ in best[:1]), NOT_ASKED]) for best in self._concepts(marked)]
        return draw_regions(picture, masks=np.stack(masks), labels=labels) if masks else picture

    def _mask(self, index: int) -> np.ndarray:
        """The mask (H, W) of one of the conversation's regions."""
        height, width = self.size
        return np.unpackbits(self.masks[index], count=height * width).reshape(height, width).astype(bool)

    def record(self, prompts: Sequence[RegionPrompt] = (), marked: RegionTokens | None = None) -> dict[str, Any]:
        """The conversation for a script: picture, models, regions with masks as COCO RLE, and what was said.

        prompts, marked: of regions that were marked and not asked about yet, the record's `marks`, which have no captions.
        """
        height, width = self.size
        regions = [
            _recorded(look.name, prompt, box, look.caption, look.concepts, self._mask(i))
            for i, (look, prompt, box) in enumerate(zip(self.looks, self.prompts, self.boxes))
        ]
        marks = []
        if marked is not None:
            seen = zip(prompts, marked.boxes.tolist(), self._concepts(marked), marked.masks.cpu().numpy())
            marks = [
                _recorded(f"region{i}", prompt, box, None, best, mask)
                for i, (prompt, box, best, mask) in enumerate(seen, start=len(regions) + 1)
            ]
        return {
            "picture": {"width": width, "height": height},
            "region_tokenizer": self.chat.region_tokenizer.fingerprint,
            "mode": self.chat.mode,
            "regions": regions,
            "marks": marks,
            "messages": [{"role": role, "content": words} for role, words in self.chat.history],
        }


def _recorded(
    name: str,
    prompt: RegionPrompt,
    box: list[float],
    caption: str | None,
    concepts: list[tuple[str, float]],
    mask: np.ndarray,
) -> dict[str, Any]:
    """A region as records have it."""
    return {
        "name": name,
        "prompt": prompt.as_dict(),
        "box": [round(x, 2) for x in box],
        "caption": caption,
        "concepts": [{"name": concept, "score": round(score, 4)} for concept, score in concepts],
        "mask": mask_to_rle(mask),
    }


def _resized(prompt: RegionPrompt, size: tuple[int, int], shown: tuple[int, int]) -> RegionPrompt:
    """A prompt in a picture of (height, width) `size` → the same in one of the size `shown`."""
    if size == shown:
        return prompt
    x, y = shown[1] / size[1], shown[0] / size[0]
    box = prompt.box and (prompt.box[0] * x, prompt.box[1] * y, prompt.box[2] * x, prompt.box[3] * y)
    points = prompt.points and tuple((px * x, py * y) for px, py in prompt.points)
    return replace(prompt, box=box, points=points)


def _agreement(masks: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union (R,) of masks (R, H, W) with others, none of which is empty in both."""
    return (masks & others).sum(axis=(1, 2)) / (masks | others).sum(axis=(1, 2))


def _at_size(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask (H, W) at another size; one that would vanish keeps a pixel."""
    if mask.shape == size:
        return mask
    resized = np.asarray(Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST))
    if mask.any() and not resized.any():
        y, x = np.argwhere(mask)[0]
        resized = resized.copy()
        resized[min(y * size[0] // mask.shape[0], size[0] - 1), min(x * size[1] // mask.shape[1], size[1] - 1)] = True
    return resized


# --- what goes to a browser -------------------------------------------------------------------------------------------


def mask_runs(mask: np.ndarray) -> dict[str, Any]:
    """A mask as a browser reads it: its box, and inside it, row by row, lengths of runs, of which the first is outside."""
    x1, y1, x2, y2 = (int(x) for x in box_of_mask(mask))
    flat = mask[y1:y2, x1:x2].ravel()
    edges = np.flatnonzero(np.diff(flat.astype(np.int8), prepend=0))
    runs = np.diff(edges, prepend=0, append=len(flat)).tolist()
    return {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1, "runs": runs}


def data_address(image: Image.Image, kind: str = "JPEG") -> str:
    """A picture as a data URL."""
    file = io.BytesIO()
    image.save(file, kind, **({"quality": 90} if kind == "JPEG" else {}))
    return f"data:image/{kind.lower()};base64," + base64.b64encode(file.getvalue()).decode()


def cutout(picture: np.ndarray, mask: np.ndarray) -> str:
    """A picture where a mask is, with some of what surrounds it, faded, as the address of a small JPEG.

    The surroundings fade towards white, or towards black if the region itself is light, so that it stands out.
    """
    x1, y1, x2, y2 = box_of_mask(mask)
    if x2:
        pad = 4 + (max(x2 - x1, y2 - y1) - 1) // 10
        part = slice(max(0, y1 - pad), y2 + pad), slice(max(0, x1 - pad), x2 + pad)
        picture, mask = picture[part], mask[part]
    step = max(1, max(mask.shape) // 384)  # the rest is for a small picture
    picture, mask = picture[::step, ::step], mask[::step, ::step]
    is_light = mask.any() and picture[mask].mean(0) @ LUMA > 160
    faded = np.where(mask[..., None], picture, picture // 5 if is_light else 255 - (255 - picture) // 5)
    cut = Image.fromarray(faded.astype(np.uint8))
    cut.thumbnail((96, 96))
    return data_address(cut)
