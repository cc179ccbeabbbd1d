"""`RegionBridgeProcessor`: text or chat, pictures and regions → ids with placeholders + region features.

The region tokenizer lives here, as speech models keep their neural codec in the processor: what comes out goes to
`model.generate(**inputs)` as it is. Knows the text tokenizer and the region tokenizer; knows no language model.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import inspect
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from huggingface_hub import get_session, snapshot_download
from torch import Tensor
from transformers import (
    AutoTokenizer,
    BatchEncoding,
    BatchFeature,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.utils import cached_file, to_py_obj

from tap_tokenizer import (
    ImageFeatures,
    RegionTokens,
    TapRegionTokenizer,
    check_chat_template,
    check_findable,
    load_pretrained,
    load_rgb,
    misfits_told,
    open_image,
    read_json_object,
)

from .chat_markup import (
    Layout,
    MarkerExpander,
    Shown,
    flatten_chat,
    with_image_markers,
    with_images_last,
)
from .chat_template import DEFAULT_CHAT_TEMPLATE, ChatTemplate, Span, add_stop_tokens, token_ids
from .configuration_bridge import HUB_OPTIONS, RegionBridgeConfig, bundled_or_given, fingerprint_number, region_token_id
from .picture_context import PictureContext
from .region_features import region_features
from .region_prompt import prompt_columns

CONFIG_FILE = "processor_config.json"
REGION_TOKENIZER_FOLDER = "region_tokenizer"


@dataclass
class Sample:
    """One prompt's pictures and regions: each region is its picture's number and one prompt (box, points, mask)."""

    images: list[Any] = field(default_factory=list)
    regions: list[tuple[int, dict[str, Any]]] = field(default_factory=list)


@dataclass
class _Seen:
    """Encoded samples: content keys of each one's pictures; features and regions of all; where each region stands."""

    keys: list[list[str]]
    features: ImageFeatures
    regions: RegionTokens
    rows: dict[tuple[int, int], int]

    def sizes(self) -> dict[str, tuple[int, int]]:
        """(height, width) of each picture, by its key."""
        keys = dict.fromkeys(key for own in self.keys for key in own)
        return {key: (height, width) for key, (height, width) in zip(keys, self.features.original_sizes.tolist())}


class RegionBridgeProcessor(ProcessorMixin):
    """Text, pictures and regions → what `RegionBridgeForConditionalGeneration` reads.

    In text, `<region>` stands for the next region, `<region2>` for the second, and `<image>` for a picture's context
    tokens if the bridge was built with `image_grid` or `image_regions`; a picture that the text does not mention comes
    first. Regions have names, region1, region2, …, by which answers can speak of them. A turn of a chat that speaks of an
    earlier region (`<region1>`) shows it once more.

    tokenizer: the language model's text tokenizer; it is given the placeholder token.
    region_tokenizer: makes the region tokens; without one, only text and ready-made `RegionTokens` can be processed.
    experts, image_grid and image_regions: as in the bridge's config; `for_bridge` takes them from there.
    eos_token_id: the tokens on which the language model stops, one or several, by which the ends of the assistant's turns
    are known; `for_bridge` takes them from the config, and `attach` from the model.
    """

    _is_taught = True
    """Whether the language model is taught to read what is written here, so that prompts are written as its lessons are."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        region_tokenizer: TapRegionTokenizer | None = None,
        chat_template: str | None = None,
        experts: Literal["routed", "all"] = "routed",
        image_grid: int = 0,
        image_regions: int = 0,
        eos_token_id: int | Sequence[int] | None = None,
        cached_images: int = 8,
    ) -> None:
        if isinstance(tokenizer, TapRegionTokenizer) or isinstance(region_tokenizer, PreTrainedTokenizerBase):
            raise ValueError("Got text and region tokenizer in the wrong order: give tokenizer=…, region_tokenizer=….")
        super().__init__(tokenizer, chat_template=chat_template or tokenizer.chat_template or DEFAULT_CHAT_TEMPLATE)
        self.region_tokenizer = region_tokenizer
        self.experts = experts
        self.image_grid, self.image_regions = image_grid, image_regions
        self.context = PictureContext(image_grid, image_regions)
        self.eos_token_id = token_ids(eos_token_id)
        self.region_token_id = self._placeholder(tokenizer)
        self._give_padding(tokenizer)
        self._cache = _ImageCache(cached_images)
        self._templates: dict[Any, ChatTemplate] = {}

    @classmethod
    def for_bridge(
        cls,
        config: RegionBridgeConfig,
        tokenizer: PreTrainedTokenizerBase | None = None,
        region_tokenizer: TapRegionTokenizer | str | None = None,
        *,
        trust_remote_code: bool = False,
        **options: Any,
    ) -> RegionBridgeProcessor:
        """A processor that suits a bridge; the text tokenizer defaults to the one saved under the language model's name.

        region_tokenizer: the region tokenizer, or where to load it from.
        trust_remote_code: run Python code that lies beside that text tokenizer, if it needs any.
        """
        if isinstance(region_tokenizer, str):
            region_tokenizer = TapRegionTokenizer.from_pretrained(region_tokenizer)
        if tokenizer is None:
            name = config.text_config.name_or_path
            if not name:
                raise ValueError("The language model has no name to find its tokenizer by: give tokenizer=….")
            tokenizer = load_pretrained(AutoTokenizer, name, trust_remote_code=trust_remote_code)
        taken = {name: getattr(config, name) for name in ("experts", "image_grid", "image_regions", "eos_token_id")}
        processor = cls(tokenizer, region_tokenizer, **{**taken, **options})
        processor.check_bridge(config)
        return processor

    def check_bridge(self, config: RegionBridgeConfig) -> None:
        """Refuse a bridge that does not read what this processor makes."""
        for name in ("experts", "image_grid", "image_regions", "region_token_id"):
            if getattr(self, name) != getattr(config, name):
                raise ValueError(
                    f"The processor has {name} = {getattr(self, name)!r}, the bridge {getattr(config, name)!r}: load the "
                    "processor that was saved with the bridge, or build one with RegionBridgeProcessor.for_bridge."
                )
        if self.region_tokenizer is None or config.fingerprint is None or config.accept_any_tokenizer:
            return
        if self.region_tokenizer.fingerprint != config.fingerprint:
            raise ValueError(
                f"The bridge was built on the region tokenizer {config.fingerprint}, this is "
                f"{self.region_tokenizer.fingerprint}: load that one, or set config.accept_any_tokenizer to try all the same."
            )

    def attach(self, model: PreTrainedModel) -> None:
        """Check that a model fits this processor, and let its answers stop where the chat template ends a turn.

        Our own classes call this for you; call it yourself after you have changed the chat template. The model keeps the
        tokens on which it already stops. Raises `ValueError` for a model that does not read what this processor makes.
        """
        self.check_bridge(model.config)
        stops = token_ids(model.generation_config.eos_token_id)
        self.eos_token_id = list(dict.fromkeys([*self.eos_token_id, *stops]))
        add_stop_tokens(model, self.stop_token_ids)
        if isinstance(model.config, RegionBridgeConfig):
            model.config.eos_token_id = model.generation_config.eos_token_id

    @property
    def stop_token_ids(self) -> list[int]:
        """Every token that may end one of the assistant's turns: what the chat template writes there, and eos_token_id."""
        return self._template().stop_token_ids

    def check_turn_ends(self) -> None:
        """Refuse a text tokenizer from which a model could not learn where its answers end.

        Warns once if the chat template leaves the assistant's turns open, so that an end is appended.
        """
        if not self.tokenizer.is_fast:
            raise ValueError(
                f"{type(self.tokenizer).__name__} does not say which characters its tokens stand for, so the assistant's words "
                "cannot be found among its tokens: give a fast tokenizer (a PreTrainedTokenizerFast)."
            )
        self._template().check_end()

    @classmethod
    def get_attributes(cls) -> list[str]:
        """Only the text tokenizer is one of transformers' sub-processors; the region tokenizer we save ourselves."""
        return ["tokenizer"]

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "region_features", "region_mask", "region_source"]

    @staticmethod
    def _placeholder(tokenizer: PreTrainedTokenizerBase) -> int:
        return region_token_id(tokenizer)

    @staticmethod
    def _give_padding(tokenizer: PreTrainedTokenizerBase) -> None:
        if tokenizer.pad_token is None:
            substitute = tokenizer.eos_token or tokenizer.bos_token or tokenizer.unk_token
            if substitute is None:
                raise ValueError(
                    "The text tokenizer has no padding, end, begin or unknown token: set tokenizer.pad_token."
                )
            tokenizer.pad_token = substitute

    @property
    def layout(self) -> Layout:
        """How many placeholders an image and a region take."""
        slots = self._region_tokenizer().model.config.image_decoder_config.num_experts if self.experts == "all" else 1
        return Layout(image_slots=self.context.slots, region_slots=slots)

    # --- from text ----------------------------------------------------------------------------------------------------

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        images: Any = None,
        boxes: Any = None,
        points: Any = None,
        point_labels: Any = None,
        masks: Any = None,
        *,
        return_tensors: str | None = "pt",
        **text_options: Any,
    ) -> BatchFeature:
        """Text with markers, and the pictures and regions that they stand for, → a batch.

        One text: `images` is a picture or a list of them, prompts as for `TapRegionTokenizer.encode`. A list of texts:
        `images` has an entry per text (a picture, a list, or None), and so has each kind of prompt.
        Points without point_labels all lie on their region.
        text_options go to the text tokenizer; texts are padded on the left unless `padding_side` says otherwise.

        Gives input_ids and attention_mask (B, L), and if there are regions, region_features (B, S, F), region_mask
        (B, S) and region_source (B,); see `RegionBridgeForConditionalGeneration.embed`.
        """
        if text is None:
            raise ValueError("Got no text: give text=… with a <region> for every region.")
        if return_tensors != "pt":
            raise ValueError(f"return_tensors is {return_tensors!r}, expected 'pt'.")
        prompts = {"box": boxes, "points": points, "point_labels": point_labels, "mask": masks}
        if isinstance(text, str):
            texts, samples = [text], [_as_sample(images, prompts, "The text")]
        else:
            texts = list(text)
            if not texts:
                raise ValueError("Got no texts: give at least one.")
            samples = _as_samples(len(texts), images, prompts)
        expanded, shown = [], []
        for i, (words, sample) in enumerate(zip(texts, samples)):
            name = f"Sample {i}" if len(texts) > 1 else "The text"
            expander = self._expander(sample, len(sample.images), len(sample.regions), name)
            expanded.append(
                expander.expand(with_image_markers(words, len(sample.images)) if self.context.slots else words)
            )
            shown.append(self._finished(expander, words))
        return self.pack(expanded, self._feature_rows(samples, shown), **text_options)

    def _finished(self, expander: MarkerExpander, words: str) -> Shown:
        if not self.context.slots and "<image>" not in words:
            expander.images = 0  # pictures need no marker if they give no tokens of their own
        return expander.finish()

    # --- from chat ----------------------------------------------------------------------------------------------------

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        chat_template: str | None = None,
        *,
        tokenize: bool = False,
        return_dict: bool = False,
        return_tensors: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        return_assistant_tokens_mask: bool = False,
        processor_kwargs: dict[str, Any] | None = None,
        **template_options: Any,
    ) -> Any:
        """A conversation, or a list of them, in the language model's own chat format.

        Message content is a string or a list of items: text, {"type": "image", "image": …} and {"type": "region", "box":
        …} (or "points" with "point_labels", or "mask"), which belongs to the last image before it.
        Gives text, or with `tokenize` ids, or with `return_dict` the batch that `__call__` gives;
        `return_assistant_tokens_mask` adds assistant_masks (B, L), 1 on the assistant's words and on the token that ends
        its turn. template_options reach the template (enable_thinking, …), processor_kwargs the text tokenizer.
        """
        is_batch = (
            isinstance(conversation, (list, tuple)) and bool(conversation) and not isinstance(conversation[0], dict)
        )
        conversations = list(conversation) if is_batch else [conversation]
        names = [f"Conversation {i}" if is_batch else "The conversation" for i in range(len(conversations))]
        chats = [flatten_chat(messages, name) for messages, name in zip(conversations, names)]
        samples = [Sample(chat.images, chat.regions) for chat in chats]
        options = {
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
            **template_options,
        }
        texts, shown, spans = self._chat_texts(
            [chat.messages for chat in chats],
            [self._expander(s, len(s.images), len(s.regions), name) for s, name in zip(samples, names)],
            self._template(chat_template),
            options,
            with_spans=return_assistant_tokens_mask,
        )
        if not tokenize:
            return texts if is_batch else texts[0]
        words = {"add_special_tokens": False, **(processor_kwargs or {})}
        if return_tensors not in (None, "auto", "pt"):
            raise ValueError(f"return_tensors is {return_tensors!r}, expected 'pt'.")
        words.pop("return_tensors", None)
        batch = self.pack(texts, self._feature_rows(samples, shown), spans=spans, **words)
        return batch if return_dict else batch["input_ids"]

    def chat_batch(
        self,
        conversations: Sequence[Sequence[dict[str, Any]]],
        regions: Sequence[Tensor],
        grids: Sequence[Tensor | None],
        sizes: Sequence[tuple[int, int]],
        *,
        return_assistant_tokens_mask: bool = False,
        **text_options: Any,
    ) -> BatchFeature:
        """Conversations whose content is text with markers, and ready-made features, → the batch of `apply_chat_template`.

        regions: features (R, slots, F) of each conversation's regions, from `region_features`; grids: context features
        (slots, F) of its picture, shown by `<image>`, or None; sizes: (height, width) of its picture, in pixels, by which
        a context's objects are ordered around the regions of the last question. Models that can think are asked not to.
        """
        texts, shown, spans = self._chat_texts(
            conversations,
            [
                self._expander(None, int(grid is not None), len(rows), f"Conversation {i}")
                for i, (rows, grid) in enumerate(zip(regions, grids))
            ],
            self._template(),
            {"add_generation_prompt": not return_assistant_tokens_mask, "enable_thinking": False},
            with_spans=return_assistant_tokens_mask,
        )
        rows: list[Tensor | None] = []
        for one, own, grid, size in zip(shown, regions, grids, sizes):
            context = None if grid is None else self._context_beside(grid, own[one.asked], size)
            parts = [context if kind == "image" else own[number] for kind, number in one.order]
            rows.append(torch.cat([part for part in parts if part is not None]) if parts else None)
        return self.pack(texts, rows, spans=spans, **{"add_special_tokens": False, **text_options})

    def _chat_texts(
        self,
        conversations: Sequence[Sequence[dict[str, Any]]],
        expanders: Sequence[MarkerExpander],
        template: ChatTemplate,
        options: dict[str, Any],
        with_spans: bool,
    ) -> tuple[list[str], list[Shown], list[list[Span]] | None]:
        """Rendered conversations with placeholders, what these stand for, and what the assistant writes of them."""
        if with_spans:
            self.check_turn_ends()
        chats, shown = [], []
        for messages, expander in zip(conversations, expanders):
            if self.context.slots:
                messages = with_images_last(messages)
            expanded = [
                {**m, "content": expander.expand(m["content"], again=m["role"] == "user")} if "content" in m else m
                for m in messages
            ]
            shown.append(expander.finish())
            chats.append(template.write(expanded, options, expander.name, learn=with_spans, as_taught=self._is_taught))
        return [chat.text for chat in chats], shown, [chat.spans for chat in chats] if with_spans else None

    def _template(self, given: str | None = None) -> ChatTemplate:
        """The chat template that was given, by its text or by its name among several, or the processor's own."""
        template = given or self.chat_template
        if isinstance(self.chat_template, dict):
            names = ", ".join(self.chat_template)
            template = self.chat_template.get(given or "default", given)
            if template is None:
                raise ValueError(f"The tokenizer has the chat templates {names} but no default: give chat_template=….")
        words = self.tokenizer
        key = (template, *self.eos_token_id, words.eos_token_id, len(words))  # the tokenizer may be given new tokens
        if key not in self._templates:
            self._templates[key] = ChatTemplate(words, template, self.eos_token_id)
        return self._templates[key]

    def _expander(self, sample: Sample | None, images: int, regions: int, name: str) -> MarkerExpander:
        """What replaces the markers of one sample; `sample` is None where features are ready-made."""
        layout = self.layout if images or regions else Layout(0, 0)  # text alone needs no region tokenizer
        return MarkerExpander(layout, images, regions, name)

    # --- from answers -------------------------------------------------------------------------------------------------

    def decode(self, token_ids: Any, skip_special_tokens: bool = False, **options: Any) -> Any:
        """Decode as the text tokenizer does; with the special tokens, skip those that end a turn, too."""
        ids = self._without_ends(token_ids) if skip_special_tokens else token_ids
        return self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens, **options)

    def batch_decode(self, sequences: Any, skip_special_tokens: bool = False, **options: Any) -> list[str]:
        """`decode` of several."""
        ids = self._without_ends(sequences) if skip_special_tokens else sequences
        return self.tokenizer.batch_decode(ids, skip_special_tokens=skip_special_tokens, **options)

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **options: Any
    ) -> Any:
        """The texts of generated sequences, for transformers' image-text-to-text pipeline."""
        return self.decode(generated_outputs, skip_special_tokens, **options)

    def _without_ends(self, ids: Any) -> list[Any]:
        """Ids, or lists of them, without those that end a turn."""
        ends = set(self.stop_token_ids)

        def kept(values: Any) -> list[Any]:
            nested = [one if isinstance(one, int) else kept(one) for one in values]
            return [one for one in nested if isinstance(one, list) or one not in ends]

        plain = to_py_obj(ids)
        return kept([plain] if isinstance(plain, int) else plain)

    # --- the batch ----------------------------------------------------------------------------------------------------

    def pack(
        self,
        texts: Sequence[str],
        feature_rows: Sequence[Tensor | None],
        *,
        spans: Sequence[Sequence[Span]] | None = None,
        **text_options: Any,
    ) -> BatchFeature:
        """Texts whose placeholders are in place, and the feature rows (S, F) of each, → a batch.

        The last step of `__call__`; called directly where features were computed before. `spans`: characters of each
        text to be marked in assistant_masks; a turn's end must be a token on which generation stops.
        """
        options = {"padding": True, "padding_side": "left", **text_options}
        encoded = self.tokenizer(
            list(texts),
            return_tensors="pt",
            return_offsets_mapping=spans is not None,
            return_token_type_ids=False,
            **options,
        )
        if not encoded["input_ids"].shape[1]:
            raise ValueError("The text is empty, and so is what the tokenizer makes of it: give at least a word.")
        offsets = encoded.pop("offset_mapping", None)
        data: dict[str, Tensor] = dict(encoded)
        if spans is not None:
            data["assistant_masks"] = _mask_spans(offsets, data["attention_mask"], spans)
            self._check_ends(encoded, spans)
        if any(rows is not None and len(rows) for rows in feature_rows):
            data |= self.pad_features(feature_rows)
        return BatchFeature(data)

    def _check_ends(self, encoded: BatchEncoding, spans: Sequence[Sequence[Span]]) -> None:
        """Refuse to teach a turn whose end is not read as the token on which generation stops."""
        for i, own in enumerate(spans):
            for span in own:
                place = encoded.char_to_token(i, span.end - 1)
                if span.end_id is None or place is None:  # where the text was cut, there is no end to read
                    continue
                end, read = self.tokenizer.convert_ids_to_tokens([span.end_id, int(encoded["input_ids"][i, place])])
                if end != read:
                    raise ValueError(
                        f"The text tokenizer joins {end!r}, which ends the assistant's turn, with its neighbours and reads "
                        f"{read!r}, so a model could not learn to stop: make it a separate token with "
                        "tokenizer.add_special_tokens."
                    )

    def pad_features(self, feature_rows: Sequence[Tensor | None]) -> dict[str, Tensor]:
        """Features (S, F) of each sample, None for one without regions but not for all, as the batch that the bridge reads."""
        tokenizer = self._region_tokenizer()
        some = next(rows for rows in feature_rows if rows is not None and len(rows))
        longest = max(len(rows) for rows in feature_rows if rows is not None)
        features = some.new_zeros(len(feature_rows), longest, some.shape[-1])
        mask = torch.zeros(len(feature_rows), longest, dtype=torch.long)
        for i, rows in enumerate(feature_rows):
            if rows is not None:
                features[i, : len(rows)] = rows
                mask[i, : len(rows)] = 1
        source = torch.full((len(feature_rows),), fingerprint_number(tokenizer.fingerprint, self.experts))
        return {"region_features": features, "region_mask": mask, "region_source": source}

    def _feature_rows(self, samples: list[Sample], shown: list[Shown]) -> list[Tensor | None]:
        """Feature rows (S, F) of each sample, in the order of its placeholders; each picture is encoded once."""
        if not any(one.order for one in shown):
            return [None] * len(samples)
        seen = self._see(samples)
        regions = region_features(seen.regions, self.experts)
        grids, sizes = self._grids(seen) if self.context.slots else {}, seen.sizes()
        rows: list[Tensor | None] = []
        for i, (sample, one) in enumerate(zip(samples, shown)):
            asked = {
                n: [seen.rows[i, m] for m in one.asked if sample.regions[m][0] == n] for n in range(len(sample.images))
            }
            parts = [
                self._context_beside(grids[seen.keys[i][number]], regions[asked[number]], sizes[seen.keys[i][number]])
                if kind == "image"
                else regions[seen.rows[i, number]]
                for kind, number in one.order
            ]
            rows.append(torch.cat(parts) if parts else None)
        return rows

    def _context_beside(self, context: Tensor, regions: Tensor, size: tuple[int, int]) -> Tensor:
        """Context features (slots, F) of a picture of a (height, width) beside features (R, slots, F) of asked regions."""
        experts = self._region_tokenizer().model.config.image_decoder_config.num_experts
        return self.context.beside(context, regions[:, 0], experts, size)

    def _see(self, samples: Sequence[Sample]) -> _Seen:
        """Encode all pictures and regions of some samples, each picture once and all regions in one go."""
        tokenizer = self._region_tokenizer()
        pictures: dict[str, Any] = {}
        keys: list[list[str]] = []
        for sample in samples:
            opened = [open_picture(image) for image in sample.images]
            keys.append([_content_key(picture) for picture in opened])
            pictures.update(zip(keys[-1], opened))
        features = self._cache.features(tokenizer, pictures)
        prompts: dict[str, list[dict[str, Any]]] = {key: [] for key in pictures}
        place: dict[tuple[int, int], tuple[str, int]] = {}
        for i, sample in enumerate(samples):
            for n, (image, prompt) in enumerate(sample.regions):
                key = keys[i][image]
                place[i, n] = (key, len(prompts[key]))
                prompts[key].append(prompt)
        starts = dict(zip(prompts, np.cumsum([0, *(len(own) for own in prompts.values())]).tolist()))
        return _Seen(
            keys=keys,
            features=features,
            regions=tokenizer.encode(features=features, **as_batch(list(prompts.values()))),
            rows={name: starts[key] + number for name, (key, number) in place.items()},
        )

    def embed_image(self, image: Any) -> ImageFeatures:
        """The features of one picture. Those of the latest pictures are cached and cost nothing."""
        picture = open_picture(image)
        features = self._cache.features(self._region_tokenizer(), {_content_key(picture): picture})
        return replace(features, is_batch=False)

    def encode_sample(self, sample: Sample) -> tuple[RegionTokens, list[tuple[int, int]]]:
        """Region tokens of one sample's regions in their order, and the (height, width) of its pictures."""
        seen = self._see([sample])
        sizes = seen.sizes()
        regions = seen.regions[[seen.rows[0, n] for n in range(len(sample.regions))]]
        return regions, [sizes[key] for key in seen.keys[0]]

    def _grids(self, seen: _Seen) -> dict[str, Tensor]:
        """Context features (slots, F) of each picture; computed once per picture."""
        found = {}
        for i, key in enumerate(dict.fromkeys(key for own in seen.keys for key in own)):
            grid = self._cache.grid(key)
            if grid is None:
                grid = self.context.encode(self._region_tokenizer(), seen.features[i])[0]
                self._cache.keep_grid(key, grid)
            found[key] = grid
        return found

    def _region_tokenizer(self) -> TapRegionTokenizer:
        if self.region_tokenizer is None:
            raise ValueError(
                "This processor has no region tokenizer: load it with region_tokenizer=…, a TapRegionTokenizer."
            )
        return self.region_tokenizer

    # --- loading and saving -------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        return {
            "processor_class": type(self).__name__,
            **self._saved_options(),
            "region_tokenizer": self._region_tokenizer_entry(),
        }

    def _saved_options(self) -> dict[str, Any]:
        """Arguments that a loaded processor is made with, beside its two tokenizers."""
        shown = {"experts": self.experts, "image_grid": self.image_grid, "image_regions": self.image_regions}
        return {**shown, "eos_token_id": self.eos_token_id} if self.eos_token_id else shown

    def _region_tokenizer_entry(self) -> dict[str, str] | None:
        if self.region_tokenizer is None:
            return None
        return {**self.region_tokenizer.source, "fingerprint": self.region_tokenizer.fingerprint}

    def save_pretrained(self, save_directory: str | Path, *, whole: bool | None = None, **kwargs: Any) -> list[str]:
        """Save the processor and its text tokenizer; the region tokenizer whole, or by reference to where it came from.

        whole: default True only for a region tokenizer that was put together by hand, which has no reference.
        """
        folder = Path(save_directory)
        if whole is None:
            whole = self.region_tokenizer is not None and not self.region_tokenizer.source
        if not whole and self.region_tokenizer is not None and not self.region_tokenizer.source:
            raise ValueError(
                "This region tokenizer was not loaded from anywhere, so it has no reference: save whole=True."
            )
        files = super().save_pretrained(str(folder), **kwargs)
        if whole:
            self._region_tokenizer().save_pretrained(folder / REGION_TOKENIZER_FOLDER)
        return files

    def push_to_hub(self, repo_id: str, *, whole: bool | None = None, **options: Any) -> str:
        """Upload what `save_pretrained` writes; gives the address of the commit. options: as in transformers' own."""
        from .uploading import push_folder

        return push_folder(lambda folder: self.save_pretrained(folder, whole=whole), repo_id, **options)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        region_tokenizer: TapRegionTokenizer | str | None = None,
        device: torch.device | str | None = None,
        **kwargs: Any,
    ) -> RegionBridgeProcessor:
        """Load a processor with its text tokenizer and its region tokenizer.

        region_tokenizer: use this one (or load it from there) instead of the one that was saved. device: where it runs.
        """
        hub: dict[str, Any] = {key: kwargs[key] for key in HUB_OPTIONS if key in kwargs}
        check_findable(pretrained_model_name_or_path, hub)
        pretrained_model_name_or_path = bundled_or_given(pretrained_model_name_or_path)
        path = cached_file(pretrained_model_name_or_path, CONFIG_FILE, **hub)
        values = read_json_object(path)
        made_by = values.get("processor_class", cls.__name__)
        if made_by != cls.__name__:
            raise ValueError(f"{pretrained_model_name_or_path} was saved by {made_by}: load it with that class.")
        entry = values.get("region_tokenizer")
        if isinstance(region_tokenizer, str):
            region_tokenizer = TapRegionTokenizer.from_pretrained(region_tokenizer, device=device)
        elif region_tokenizer is None and entry is not None:
            region_tokenizer = _load_region_tokenizer(str(pretrained_model_name_or_path), entry, hub, device)
        tokenizer = load_pretrained(
            AutoTokenizer,
            pretrained_model_name_or_path,
            trust_remote_code=kwargs.get("trust_remote_code", False),
            **hub,
        )
        options = {key: value for key, value in values.items() if key not in ("processor_class", "region_tokenizer")}
        if unknown := sorted(set(options) - set(inspect.signature(cls).parameters)):
            raise ValueError(
                f"{path} has {', '.join(unknown)[:200]}, which {cls.__name__} does not know: copy or download it again."
            )
        if isinstance(options.get("chat_template"), str):
            check_chat_template(options["chat_template"], str(path))
        with misfits_told(path):
            return cls(tokenizer, region_tokenizer, **options)


_REFERENCE = {"source", "variant", "concepts", "text_tokenizer", "revision", "fingerprint"}
"""What a saved processor says of its region tokenizer: arguments that load it, and its fingerprint."""


def _load_region_tokenizer(
    name: str, entry: dict[str, str], hub: dict[str, Any], device: torch.device | str | None
) -> TapRegionTokenizer:
    """The region tokenizer that lies in the folder, or else the one that the folder refers to; it must be the same."""
    if not isinstance(entry, dict) or "fingerprint" not in entry or not _REFERENCE.issuperset(entry):
        raise ValueError(
            f"{name} has a processor_config.json that does not refer to a region tokenizer: got {entry!r:.80}, expected "
            f"{', '.join(sorted(_REFERENCE))}. Copy it again, or give region_tokenizer=…."
        )
    folder = Path(name) / REGION_TOKENIZER_FOLDER
    if not Path(name).is_dir():
        folder = (
            Path(snapshot_download(name, allow_patterns=[f"{REGION_TOKENIZER_FOLDER}/*"], **hub))
            / REGION_TOKENIZER_FOLDER
        )
    reference = {key: value for key, value in entry.items() if key != "fingerprint"}
    if folder.is_dir():
        reference = {"source": str(folder)}
    tokenizer = TapRegionTokenizer.from_pretrained(**reference, device=device)  # type: ignore[arg-type]
    if tokenizer.fingerprint != entry["fingerprint"]:
        raise ValueError(
            f"{name} was saved with the region tokenizer {entry['fingerprint']}, but {reference['source']} now holds "
            f"{tokenizer.fingerprint}: give region_tokenizer=…."
        )
    return tokenizer


# --- pictures ---------------------------------------------------------------------------------------------------------


class _ImageCache:
    """Features and grids of the pictures seen last, by content, so that a second question costs no second look."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._features: OrderedDict[str, ImageFeatures] = OrderedDict()
        self._grid: dict[str, Tensor] = {}

    def features(self, tokenizer: TapRegionTokenizer, pictures: dict[str, Any]) -> ImageFeatures:
        """Features of all pictures, in their order; only new ones are encoded."""
        known = {k: f for k, f in self._features.items() if f.fingerprint == tokenizer.fingerprint}
        new = [key for key in pictures if key not in known]
        if new:
            encoded = tokenizer.embed_image([pictures[key] for key in new])
            known |= {key: encoded[i] for i, key in enumerate(new)}
        for key in pictures:
            self._features[key] = known[key]
            self._features.move_to_end(key)
        result = ImageFeatures.concatenate([known[key] for key in pictures])
        while len(self._features) > self.size:
            old, _ = self._features.popitem(last=False)
            self._grid.pop(old, None)
        return result

    def grid(self, key: str) -> Tensor | None:
        return self._grid.get(key)

    def keep_grid(self, key: str, grid: Tensor) -> None:
        if key in self._features:
            self._grid[key] = grid


def as_batch(prompts: Sequence[Sequence[dict[str, Any]]]) -> dict[str, Any]:
    """Prompts of the regions of each picture → the lists of lists that `TapRegionTokenizer.encode` takes."""
    columns = [prompt_columns(own) for own in prompts]
    kinds = sorted({kind for column in columns for kind in column})
    lists = {kind: [column.get(kind, [None] * len(own)) for column, own in zip(columns, prompts)] for kind in kinds}
    return lists or {"boxes": [[] for _ in prompts]}


def open_picture(image: Any) -> np.ndarray:
    """A picture as RGB bytes; addresses and base64 text, which transformers' pipelines pass on, are fetched first."""
    if isinstance(image, str) and image.startswith("data:image/"):
        try:
            image = open_image(base64.b64decode(image.partition(",")[2], validate=True))
        except binascii.Error as error:
            raise ValueError(f"The picture in a data: address is not valid base64: {error}.") from None
    elif isinstance(image, str) and image.startswith(("http://", "https://")):
        answer = get_session().get(image, timeout=60, follow_redirects=True)
        answer.raise_for_status()
        image = open_image(answer.content)
    return load_rgb(image)


def _content_key(picture: np.ndarray) -> str:
    return hashlib.sha1(picture.tobytes() + repr(picture.shape).encode(), usedforsecurity=False).hexdigest()


# --- inputs as people give them ---------------------------------------------------------------------------------------


def _as_samples(count: int, images: Any, prompts: dict[str, Any]) -> list[Sample]:
    """Pictures and prompts of a list of texts, one entry each."""
    for name, value in {"images": images, **prompts}.items():
        if value is not None and (not isinstance(value, (list, tuple)) or len(value) != count):
            got = len(value) if isinstance(value, (list, tuple)) else "one"
            raise ValueError(
                f"Got {count} texts and {name} for {got}: give one entry per text, None where there is none."
            )
    return [
        _as_sample(
            images[i] if images is not None else None,
            {name: value[i] if value is not None else None for name, value in prompts.items()},
            f"Sample {i}",
        )
        for i in range(count)
    ]


def _as_sample(images: Any, prompts: dict[str, Any], name: str) -> Sample:
    """Pictures and prompts of one text. Prompts are lists of regions for one picture, lists of such lists for several."""
    prompts = {key: value for key, value in prompts.items() if value is not None}
    if images is None:
        if any(len(value) for value in prompts.values()):
            raise ValueError(f"{name} has regions but no picture: give images=….")
        return Sample()
    pictures = list(images) if isinstance(images, (list, tuple)) else [images]
    if not isinstance(images, (list, tuple)):
        prompts = {key: [value] for key, value in prompts.items()}
    for key, value in prompts.items():
        if len(value) != len(pictures):
            raise ValueError(f"{name} has {len(pictures)} images and {key} for {len(value)}: give one list per image.")
    regions = []
    for number in range(len(pictures)):
        lists = {key: value[number] for key, value in prompts.items() if value[number] is not None}
        for key, value in lists.items():
            if isinstance(value, (dict, str)) or not hasattr(value, "__len__"):
                raise ValueError(
                    f"{name}: {key} is a {type(value).__name__}, expected a list with an entry for each region."
                )
        counts = {len(value) for value in lists.values()}
        if len(counts) > 1:
            raise ValueError(
                f"{name} has {' and '.join(lists)} of different numbers: give one of each per region, or None."
            )
        for i in range(counts.pop() if counts else 0):
            prompt = {key: value[i] for key, value in lists.items() if value[i] is not None}
            regions.append((number, prompt))
    return Sample(pictures, regions)


def _mask_spans(offsets: Tensor, attention_mask: Tensor, spans: Sequence[Sequence[Span]]) -> Tensor:
    """1 where a token overlaps one of its text's spans."""
    marked = torch.zeros_like(attention_mask)
    for i, own in enumerate(spans):
        for start, end, _ in own:
            marked[i] |= ((offsets[i, :, 0] < end) & (offsets[i, :, 1] > start)).long()
    return marked * attention_mask
