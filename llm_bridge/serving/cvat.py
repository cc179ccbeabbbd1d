"""An interactor for CVAT's agents: a picture is encoded once, and each click gives a mask.

    cvat-cli function create-native "TAP" --function-module llm_bridge.serving.cvat -p model=str:tap-tiny
    cvat-cli function run-agent ID --function-module llm_bridge.serving.cvat -p model=str:tap-tiny

It needs CVAT's cvat-cli, which brings cvat-sdk; it does not need our server.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cvat_sdk.auto_annotation as cvataa
from cvat_sdk.masks import encode_mask
from cvat_sdk.models import AttributeValRequest
from PIL import Image

from tap_tokenizer import ImageFeatures, RegionPrompt, TapRegionTokenizer

from .marks import Marks


class RegionInteractor:
    """What CVAT calls: one region from points on and off it, or from a box, or from both."""

    def __init__(self, tokenizer: TapRegionTokenizer) -> None:
        self.tokenizer = tokenizer
        self.spec = cvataa.InteractionFunctionSpec(min_pos_points=0, min_neg_points=0, min_bounding_boxes=0)

    def preprocess_image(self, context: cvataa.InteractionFunctionContext, image: Image.Image) -> ImageFeatures:
        """Encode a picture, which CVAT's agent remembers for the clicks to come."""
        return self.tokenizer.embed_image(image)

    def detect(
        self,
        context: cvataa.InteractionFunctionContext,
        pp_image: ImageFeatures,
        prompts: cvataa.InteractionPrompts,
    ) -> list[cvataa.InteractionResultShape]:
        """The mask of what is marked, with how sure TAP is; none if it is empty."""
        regions = self.tokenizer.encode(features=pp_image, prompts=_prompts(prompts), with_masks=True)
        return [
            cvataa.InteractionResultShape(
                type="mask",
                points=encode_mask(mask.numpy()),
                attributes=[
                    AttributeValRequest(
                        spec_id=int(cvataa.InteractionResultAttributes.CONFIDENCE), value=f"{score:.4f}"
                    )
                ],
            )
            for mask, score in zip(regions.masks.cpu(), regions.quality.tolist())
            if mask.any()
        ]


def _prompts(given: cvataa.InteractionPrompts) -> list[RegionPrompt]:
    points = [*given.pos_points, *given.neg_points]
    labels = [1] * len(given.pos_points) + [0] * len(given.neg_points)
    boxes: Sequence[Any] = [] if given.bounding_box is None else [[*given.bounding_box[0], *given.bounding_box[1]]]
    return [RegionPrompt.read(region) for region in Marks(points, labels, boxes).regions()]


def create(model: str = "tap-tiny", device: str = "cpu") -> RegionInteractor:
    """The interactor of a region tokenizer: a name, a folder or a Hub repository."""
    return RegionInteractor(TapRegionTokenizer.from_pretrained(model, device=device))
