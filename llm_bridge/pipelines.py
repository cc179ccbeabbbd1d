"""Three pipeline tasks of transformers: `region-captioning`, `region-text-generation` and `region-grounding`.

    pipe = pipeline("region-captioning", model=tokenizer.model, region_tokenizer=tokenizer)
    pipe("picture.png", boxes=[[177, 392, 271, 470]])

    pipe = pipeline("region-text-generation", model=bridge, processor=processor)
    pipe("picture.png", text="What is <region> doing?", boxes=[[177, 392, 271, 470]])

    pipe = pipeline("region-grounding", model=bridge, processor=processor)
    pipe("picture.png", text="the red umbrella")  # among everything in the picture, or among boxes, points or masks

The model may be a folder or Hub repository as well: processor or region tokenizer are then loaded from there. Pictures may
be one or a list, with their prompts beside them, or dictionaries that hold both, one, a list, or an iterator of them:

    for answer in pipe({"image": path, "text": "What is <region>?", "boxes": boxes} for path, boxes in mine): …

Models may be named as everywhere: a folder, a Hub repository, or a bundled model ("tap-tiny", "region-chat-smollm2").

A bridge also runs in transformers' own `image-text-to-text`, with chats and with plain questions:

    pipe = pipeline("image-text-to-text", model="region-chat-smollm2")
    pipe(images="picture.png", text="What is <region>?", boxes=[[177, 392, 271, 470]])

The pipelines only arrange the steps; the processors do the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from itertools import islice
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoModel, AutoModelForImageTextToText, ImageTextToTextPipeline, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.utils import logging
from transformers.utils.chat_template_utils import Chat

from tap_tokenizer import (
    RegionPrompt,
    TapModel,
    TapRegionTokenizer,
    bundled_or_given,
    check_findable,
    counted,
    in_fast_dtype,
)

from .chat_markup import user_content
from .generation import generate_each, question_inputs, separate, speaker_of
from .grounding import Candidates, find_among, find_question
from .modeling_bridge import RegionBridgeForConditionalGeneration
from .pictures import open_picture
from .processing_bridge import RegionBridgeProcessor

logger = logging.get_logger(__name__)

_PROMPTS = ("boxes", "points", "point_labels", "masks")
_ASKED = ("text", *_PROMPTS)
"""What is asked about a picture."""
CAPTION_REQUEST = "Describe <region>."


def _prompts_of(item: dict[str, Any]) -> list[RegionPrompt]:
    """The prompts of the regions of one of a pipeline's inputs."""
    lists: dict[str, Any] = {name: item.get(name) for name in _PROMPTS}
    return RegionPrompt.read_lists(**lists)


class _RegionPipeline(Pipeline):
    """What the tasks share: a picture and the prompts of its regions as input, one at a time or in lists."""

    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False
    _load_video_processor = False
    _pipeline_calls_generate = True
    _of_results: tuple[str, ...] = ()
    """Options of the results; all others are generation's."""

    def __init__(
        self,
        model: Any,
        processor: RegionBridgeProcessor | str | None = None,
        region_tokenizer: TapRegionTokenizer | str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model=model, **kwargs)
        in_fast_dtype(self.model, "unknown")  # transformers has loaded it, so it stays as it is, but not in silence
        self._generate_options = dict(
            getattr(self, "_generate_kwargs", {})
        )  # transformers takes them out before all else
        of_results = {key: self._generate_options.pop(key) for key in self._of_results if key in self._generate_options}
        self._postprocess_params: dict[str, Any] = {**self._postprocess_params, **of_results}
        name = self.model.config.name_or_path
        if processor is None and name and isinstance(self.model, RegionBridgeForConditionalGeneration):
            processor = name
        if isinstance(processor, str):
            processor = RegionBridgeProcessor.from_pretrained(processor, region_tokenizer=region_tokenizer)
        self.processor = processor
        if processor is not None:
            processor.attach(self.model)
        self.region_tokenizer = self._find_region_tokenizer(region_tokenizer)

    def _find_region_tokenizer(self, given: TapRegionTokenizer | str | None) -> TapRegionTokenizer:
        """The region tokenizer that was given, or the processor's, or one around the model if that is a TAP."""
        if isinstance(given, str):
            given = TapRegionTokenizer.from_pretrained(given, device=self.device)
        if given is None and self.processor is not None:
            given = self.processor.region_tokenizer
        if given is None and isinstance(self.model, TapModel) and self.model.config.name_or_path:
            given = TapRegionTokenizer.from_pretrained(self.model.config.name_or_path, device=self.device)
        if given is None and isinstance(self.model, TapModel):
            given = TapRegionTokenizer(self.model)
        if given is None:
            raise ValueError(
                "This task needs a region tokenizer: give region_tokenizer=…, or a processor that has one."
            )
        return given

    def __call__(self, images: Any, *, batch_size: int | None = None, **kwargs: Any) -> Any:
        """One picture with its prompts, or a list of pictures with a list of prompts for each.

        boxes, points, point_labels, masks: as for `TapRegionTokenizer.encode`. batch_size: pictures at once, by
        default as the pipeline was made with, or 8.
        images may also be a dictionary of all these, a list of such, or an iterator, which gives an iterator of results.
        """
        batch_size = batch_size or self._batch_size or 8
        if isinstance(images, Iterator):
            return self._stream(images, batch_size, kwargs)
        asked = {name: value for name in _ASKED if (value := kwargs.pop(name, None)) is not None}
        is_one = not isinstance(images, (list, tuple))
        given = [images] if is_one else list(images)
        if given and isinstance(given[0], dict):
            items = [{**asked, **_checked(item, number)} for number, item in enumerate(given)]
        else:
            items = _rows(given, asked, is_one)
        results = self._run(items, batch_size, kwargs)
        return results[0] if is_one else results

    def _stream(self, items: Iterator[Any], batch_size: int, options: dict[str, Any]) -> Iterator[Any]:
        while batch := list(islice(items, batch_size)):
            checked = [_checked(item, number) for number, item in enumerate(batch)]
            yield from self(checked, batch_size=batch_size, **options)

    def _run(self, items: list[dict[str, Any]], batch_size: int, kwargs: dict[str, Any]) -> list[Any]:
        """Results of items, some at once; what the pipeline was made with holds where the call does not say otherwise."""
        preprocess, forward, postprocess = self._sanitize_parameters(**kwargs)
        preprocess, postprocess = {**self._preprocess_params, **preprocess}, {**self._postprocess_params, **postprocess}
        made_with = {**self._generate_options, **self._forward_params.get("generate", {})}
        generate = {**made_with, **forward.get("generate", {})}
        forward = {"generate": generate} if generate else {}
        results: list[Any] = []
        for start in range(0, len(items), batch_size):
            inputs = self.preprocess(items[start : start + batch_size], **preprocess)
            results += self.postprocess(self.forward(inputs, **forward), **postprocess)
        return results

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        post = {name: kwargs.pop(name) for name in self._of_results if name in kwargs}
        generate = {**kwargs.pop("generate_kwargs", {}), **kwargs}
        if generate.get("num_return_sequences", 1) != 1:
            raise ValueError("num_return_sequences asks for several answers, expected one for each text.")
        return {}, {"generate": generate} if generate else {}, post

    def _chat(self, conversations: list[list[dict[str, Any]]]) -> Any:
        """Conversations → the language model's inputs, in one batch."""
        if self.processor is None:
            raise ValueError("A language model needs processor=…, the RegionBridgeProcessor that was saved with it.")
        return question_inputs(self.processor, conversations)

    def _say(self, inputs: Any, generate: dict[str, Any] | None) -> list[str]:
        """The language model's answers, greedy by default; what all prompts begin with is read once."""
        assert self.processor is not None
        options = {"max_new_tokens": 64, **(generate or {})}
        return generate_each(self.model, self.processor, separate(inputs), **options)

    def check_model_type(self, supported_models: Any) -> None:
        """Any bridge and any TAP: the classes are ours, and transformers' lists do not know them."""


def _checked(item: Any, number: int) -> dict[str, Any]:
    """An input that holds its picture and all that is asked about it."""
    unknown = set(item) - {"image", *_ASKED} if isinstance(item, dict) else {type(item).__name__}
    if unknown or "image" not in item:
        wrong = ", ".join(sorted(unknown)) or "no image"
        raise ValueError(f"Input {number} has {wrong}, expected image, {', '.join(_ASKED)}.")
    return dict(item)


def _rows(images: list[Any], asked: dict[str, Any], is_one: bool) -> list[dict[str, Any]]:
    """An input for each picture, from lists of what is asked about each; a text alone is for all."""
    if is_one and isinstance(asked.get("text"), (list, tuple)):
        raise ValueError("Got one image and a list of texts: give a list of images, one for each text.")
    columns = {name: [value] if is_one else value for name, value in asked.items()}
    for name, value in columns.items():
        if isinstance(value, (list, tuple)) and len(value) != len(images):
            raise ValueError(
                f"Got {counted(len(images), 'image')} and {name} for {len(value)}: give one entry per image."
            )
    return [
        {"image": image, **{name: v if isinstance(v, str) else v[i] for name, v in columns.items()}}
        for i, image in enumerate(images)
    ]


class RegionCaptioningPipeline(_RegionPipeline):
    """A caption for every region: by TAP's native decoder if the model is a TAP, by the language model if it is a bridge.

    The result for each picture is a list with a dictionary per region: box, caption, and the `top_k` best concepts.
    """

    _of_results = ("top_k",)

    def preprocess(self, inputs: list[dict[str, Any]], **_: Any) -> dict[str, Any]:
        prompts = [_prompts_of(item) for item in inputs]
        if not any(prompts):
            raise ValueError("Got no regions: give boxes, points or masks with the pictures.")
        regions = self.region_tokenizer.encode([item["image"] for item in inputs], prompts=prompts)
        if isinstance(self.model, TapModel):
            return {"regions": regions}
        conversations = [
            [{"role": "user", "content": user_content(CAPTION_REQUEST, [prompt], item["image"])}]
            for item, own in zip(inputs, prompts)
            for prompt in own
        ]
        return {"regions": regions, "inputs": self._chat(conversations) if conversations else None}

    def _forward(self, model_inputs: dict[str, Any], generate: dict[str, Any] | None = None) -> dict[str, Any]:
        regions = model_inputs["regions"]
        if isinstance(self.model, TapModel):
            captions = self.region_tokenizer.caption(regions, **(generate or {}))
        else:
            captions = self._say(model_inputs["inputs"], generate) if model_inputs["inputs"] else []
        return {"regions": regions, "captions": captions}

    def postprocess(self, model_outputs: dict[str, Any], top_k: int = 3, **_: Any) -> list[list[dict[str, Any]]]:
        regions, tokenizer = model_outputs["regions"], self.region_tokenizer
        concepts = (
            tokenizer.classify(regions, top_k) if tokenizer.concepts is not None else [[] for _ in range(len(regions))]
        )
        results: list[list[dict[str, Any]]] = [[] for _ in range(regions.num_images)]
        for image, box, caption, best in zip(
            regions.image_index.tolist(), regions.boxes.tolist(), model_outputs["captions"], concepts
        ):
            results[image].append({"box": box, "caption": caption, "concepts": best})
        return results


class RegionTextGenerationPipeline(_RegionPipeline):
    """An answer to a text with `<region>` markers about each picture: {"text", "generated_text"}."""

    def preprocess(self, inputs: list[dict[str, Any]], **_: Any) -> dict[str, Any]:
        if any(not item.get("text") for item in inputs):
            raise ValueError("Got no text: give text=… with a <region> for every region.")
        conversations = [
            [{"role": "user", "content": user_content(item["text"], _prompts_of(item), item["image"])}]
            for item in inputs
        ]
        return {"texts": [item["text"] for item in inputs], "inputs": self._chat(conversations)}

    def _forward(self, model_inputs: dict[str, Any], generate: dict[str, Any] | None = None) -> dict[str, Any]:
        return {"texts": model_inputs["texts"], "answers": self._say(model_inputs["inputs"], generate)}

    def postprocess(self, model_outputs: dict[str, Any], **_: Any) -> list[dict[str, str]]:
        pairs = zip(model_outputs["texts"], model_outputs["answers"])
        return [{"text": text, "generated_text": answer} for text, answer in pairs]


class RegionGroundingPipeline(_RegionPipeline):
    """What a text such as "the red umbrella" means in each picture: a list of {"box", "mask", "score", "candidate"}, the best
    first, which is empty if it means nothing.

    Boxes are xyxy in pixels, masks booleans (H, W), scores `FoundRegions.probabilities`, `candidate` the number of the box,
    point or mask that was given, from 0. Without any, everything in the picture is a candidate. Options: most, threshold,
    max_new_tokens, as for `RegionChat.find`.
    """

    def preprocess(self, inputs: list[dict[str, Any]], **_: Any) -> dict[str, Any]:
        if self.processor is None:
            raise ValueError("A language model needs processor=…, the RegionBridgeProcessor that was saved with it.")
        for item in inputs:
            find_question(item.get("text") or "")
        if not getattr(self.model.config, "taught_to_find", False):
            logger.warning_once("This model was not taught to find regions by words: do not trust what it finds.")
        given = [_prompts_of(item) if any(item.get(name) is not None for name in _PROMPTS) else None for item in inputs]
        pictures = [open_picture(item["image"]) for item in inputs]
        candidates = [Candidates.of(self.processor, *pair) for pair in zip(pictures, given)]
        return {"pictures": pictures, "texts": [item["text"] for item in inputs], "candidates": candidates}

    def _forward(self, model_inputs: dict[str, Any], generate: dict[str, Any] | None = None) -> dict[str, Any]:
        if unknown := set(generate or {}) - {"most", "threshold", "max_new_tokens"}:
            raise ValueError(f"Got {', '.join(sorted(unknown))}, expected most, threshold and max_new_tokens.")
        rows = zip(model_inputs["pictures"], model_inputs["texts"], model_inputs["candidates"])
        assert self.processor is not None
        speaker = speaker_of(self.model, self.processor)
        return {"found": [find_among(speaker, self.processor, *row, **(generate or {})) for row in rows]}

    def postprocess(self, model_outputs: dict[str, Any], **_: Any) -> list[list[dict[str, Any]]]:
        return [
            [
                {"box": box, "mask": mask, "score": score, "candidate": row}
                for box, mask, score, row in zip(
                    found.boxes.tolist(), found.masks.cpu().numpy(), found.probabilities.tolist(), found.rows
                )
            ]
            for found in model_outputs["found"]
        ]


class RegionImageTextToTextPipeline(ImageTextToTextPipeline):
    """transformers' own task for pictures and text, in which a bridge is asked plain questions in its chat template, too.

    transformers gives a plain text to the processor as it is, which no bridge was trained on: its answer is often empty.
    A text that holds special tokens is a whole prompt already, and is left as it is; so is all that other models get.
    """

    def preprocess(self, inputs: Any = None, timeout: float | None = None, **options: Any) -> Any:
        given = inputs if isinstance(inputs, dict) else {"images": None, "text": inputs}
        texts = given.get("text")
        is_one = isinstance(texts, str)
        if isinstance(inputs, Chat) or not isinstance(self.processor, RegionBridgeProcessor) or not texts:
            return super().preprocess(inputs, timeout=timeout, **options)
        marks = [token for token in self.processor.tokenizer.all_special_tokens if token]
        if any(mark in text for mark in marks for text in ([texts] if is_one else texts)):
            return super().preprocess(inputs, timeout=timeout, **options)
        columns = {"images": given.get("images"), **{name: options.pop(name, None) for name in _PROMPTS}}
        if is_one:
            columns, texts = {name: [value] for name, value in columns.items()}, [texts]
        count = len(texts)
        for name, value in columns.items():
            if value is None:
                columns[name] = [None] * count
            elif not isinstance(value, (list, tuple)) or len(value) != count:
                raise ValueError(f"Got {count} texts, but {name} for a different number: give one entry for each text.")
        conversations = [
            [
                {
                    "role": "user",
                    "content": user_content(text, RegionPrompt.read_lists(**dict(zip(_PROMPTS, lists))), image),
                }
            ]
            for text, image, *lists in zip(texts, *columns.values())
        ]
        model_inputs = question_inputs(self.processor, conversations, **options)
        model_inputs["text"] = given["text"]
        return model_inputs


def _of_bundled(ask: Callable[..., Any]) -> Callable[..., Any]:
    """A question of transformers to the Hub, which for a bundled model is put to its folder."""
    return lambda source, *args, **options: ask(bundled_or_given(source), *args, **options)


TASKS = {
    "region-captioning": RegionCaptioningPipeline,
    "region-text-generation": RegionTextGenerationPipeline,
    "region-grounding": RegionGroundingPipeline,
}


def register_pipelines() -> None:
    """Make the tasks, and the names of bundled models, known to `transformers.pipeline`."""
    plain = transformers.pipelines.pipeline

    @wraps(plain)
    def pipeline(task: Any = None, model: Any = None, *args: Any, **options: Any) -> Any:
        if isinstance(model, (str, Path)):
            if task in TASKS:
                check_findable(model, options)
            model = bundled_or_given(model)
        return plain(task, model, *args, **options)

    transformers.pipeline = transformers.pipelines.pipeline = pipeline
    for name in ("resolve_revision", "find_adapter_config_file"):  # who imported `pipeline` before us has the plain one
        if ask := getattr(transformers.pipelines, name, None):
            setattr(transformers.pipelines, name, _of_bundled(ask))
    PIPELINE_REGISTRY.supported_tasks["image-text-to-text"]["impl"] = RegionImageTextToTextPipeline
    for task, pipeline_class in TASKS.items():
        PIPELINE_REGISTRY.register_pipeline(
            task, pipeline_class=pipeline_class, pt_model=(AutoModel, AutoModelForImageTextToText), type="multimodal"
        )
