"""`RegionBridgeProcessor`: text or chat, pictures and regions → ids with placeholders + region features.

The region tokenizer is part of the processor, as speech models keep their neural codec there. The output goes straight
to `model.generate(**inputs)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoTokenizer, BatchFeature, PreTrainedModel, PreTrainedTokenizerBase

from tap_tokenizer import (
    ImageFeatures,
    TapRegionTokenizer,
    load_pretrained,
)

from .chat_markup import Layout, MarkerExpander, Shown, place_images, read_chat
from .chat_template import DEFAULT_CHAT_TEMPLATE, ChatTemplate, Span, add_stop_tokens, token_ids
from .configuration_bridge import (
    FeatureLayout,
    RegionBridgeConfig,
    fingerprint_number,
    region_token_id,
)
from .picture_context import PictureContext
from .processor_files import SavedProcessor
from .samples import Sample, SampleEncoder, read_sample, read_samples, rows_in_order
from .text_batch import encode_texts, give_padding, pad_rows, without_tokens


class RegionBridgeProcessor(SavedProcessor):
    """Text, pictures and regions → what `RegionBridgeForConditionalGeneration` reads.

    In text, `<region>` stands for the next region, `<region2>` for the second, and `<image>` for a picture's context
    tokens if the bridge was built with `image_grid` or `image_regions`; a picture that the text does not mention comes
    first. Regions have names, region1, region2, …, which answers can use. A chat turn that mentions an earlier region
    (`<region1>`) shows it once more.

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
        give_padding(tokenizer)
        self.cached_images = cached_images
        self._encoder: SampleEncoder | None = None
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
        """Make a processor for a bridge. By default, the text tokenizer is the one saved under the language model's
        name.

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
        """Refuse a bridge that cannot read the output of this processor."""
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
                f"{self.region_tokenizer.fingerprint}: load that one, or set config.accept_any_tokenizer to try anyway."
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
        """All tokens that may end one of the assistant's turns: what the chat template writes there, and eos_token_id."""
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

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "region_features", "region_mask", "region_source"]

    @staticmethod
    def _placeholder(tokenizer: PreTrainedTokenizerBase) -> int:
        return region_token_id(tokenizer)

    @property
    def layout(self) -> Layout:
        """How many placeholders an image and a region take."""
        slots = self.feature_layout.num_experts if self.experts == "all" else 1
        return Layout(image_slots=self.context.slots, region_slots=slots)

    @property
    def feature_layout(self) -> FeatureLayout:
        """Where the parts of a feature row are."""
        return self.encoder.layout

    @property
    def encoder(self) -> SampleEncoder:
        """What encodes pictures and regions with the region tokenizer. Raises `ValueError` if there is none."""
        tokenizer = self.required_tokenizer
        if self._encoder is None or self._encoder.tokenizer is not tokenizer:
            self._encoder = SampleEncoder(tokenizer, self.experts, self.context, self.cached_images)
        return self._encoder

    def _saved_options(self) -> dict[str, Any]:
        """Arguments that a loaded processor is made with, beside its two tokenizers."""
        shown = {"experts": self.experts, "image_grid": self.image_grid, "image_regions": self.image_regions}
        return {**shown, "eos_token_id": self.eos_token_id} if self.eos_token_id else shown

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
        prompts = {"boxes": boxes, "points": points, "point_labels": point_labels, "masks": masks}
        if isinstance(text, str):
            texts, samples = [text], [read_sample(images, prompts)]
        else:
            texts = list(text)
            if not texts:
                raise ValueError("Got no texts: give at least one.")
            samples = read_samples(len(texts), images, prompts)
        expanded, shown = [], []
        for i, (words, sample) in enumerate(zip(texts, samples)):
            name = f"Sample {i}" if len(texts) > 1 else "The text"
            expander = self._expander(sample, len(sample.images), len(sample.regions), name)
            (message,) = place_images([{"role": "user", "content": words}], len(sample.images))
            expanded.append(expander.expand(message["content"]))
            shown.append(expander.finish())
        return self._batch(expanded, self._feature_rows(samples, shown), **text_options)

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
        chats = [read_chat(messages, name) for messages, name in zip(conversations, names)]
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
        text_options = {"add_special_tokens": False, **(processor_kwargs or {})}
        if return_tensors not in (None, "auto", "pt"):
            raise ValueError(f"return_tensors is {return_tensors!r}, expected 'pt'.")
        text_options.pop("return_tensors", None)
        batch = self._batch(texts, self._feature_rows(samples, shown), spans, **text_options)
        return batch if return_dict else batch["input_ids"]

    def chat_batch(
        self,
        conversations: Sequence[Sequence[dict[str, Any]]],
        regions: Sequence[Tensor],
        contexts: Sequence[Tensor | None],
        sizes: Sequence[tuple[int, int]],
        *,
        return_assistant_tokens_mask: bool = False,
        **text_options: Any,
    ) -> BatchFeature:
        """Conversations whose content is text with markers, and their ready-made features → the batch of `apply_chat_template`.

        regions: features (R, slots, F) of each conversation's regions, from `region_features`. contexts: context features
        (slots, F) of its picture, which are shown with the last question, or None. sizes: (height, width) of its picture in
        pixels, needed to sort the context's objects around the regions of that question. Models that can think are asked
        not to.
        """
        texts, shown, spans = self._chat_texts(
            conversations,
            [
                self._expander(None, int(context is not None), len(own), f"Conversation {i}")
                for i, (own, context) in enumerate(zip(regions, contexts))
            ],
            self._template(),
            {"add_generation_prompt": not return_assistant_tokens_mask, "enable_thinking": False},
            with_spans=return_assistant_tokens_mask,
        )
        rows = []
        for one, own, context, size in zip(shown, regions, contexts, sizes):
            beside = [] if context is None else [self.encoder.beside(context, own[one.asked], size)]
            rows.append(rows_in_order(one, beside, own))
        return self._batch(texts, rows, spans, **{"add_special_tokens": False, **text_options})

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
            expanded = [
                {**m, "content": expander.expand(m["content"], again=m["role"] == "user")} if "content" in m else m
                for m in place_images(messages, expander.images)
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
        """Decode as the text tokenizer does. If special tokens are skipped, so are tokens that end a turn."""
        ids = without_tokens(token_ids, self.stop_token_ids) if skip_special_tokens else token_ids
        return self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens, **options)

    def batch_decode(self, sequences: Any, skip_special_tokens: bool = False, **options: Any) -> list[str]:
        """Decode several sequences."""
        ids = without_tokens(sequences, self.stop_token_ids) if skip_special_tokens else sequences
        return self.tokenizer.batch_decode(ids, skip_special_tokens=skip_special_tokens, **options)

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **options: Any
    ) -> Any:
        """The texts of generated sequences, for transformers' image-text-to-text pipeline."""
        return self.decode(generated_outputs, skip_special_tokens, **options)

    # --- the batch ----------------------------------------------------------------------------------------------------

    def _batch(
        self,
        texts: Sequence[str],
        rows: Sequence[Tensor | None],
        spans: Sequence[Sequence[Span]] | None = None,
        **text_options: Any,
    ) -> BatchFeature:
        """Texts whose placeholders are in place, and the feature rows (S, F) of each; see `encode_texts` for the rest."""
        data = encode_texts(self.tokenizer, texts, spans, **text_options)
        if any(own is not None and len(own) for own in rows):
            data |= self.pad_features(rows)
        return BatchFeature(data)

    def pad_features(self, rows: Sequence[Tensor | None]) -> dict[str, Tensor]:
        """Pad the features (S, F) of each sample to the batch that the bridge reads. Some may be None, but not all."""
        features, mask = pad_rows(rows)
        source = torch.full((len(rows),), fingerprint_number(self.encoder.tokenizer.fingerprint, self.experts))
        return {"region_features": features, "region_mask": mask, "region_source": source}

    def _feature_rows(self, samples: Sequence[Sample], shown: Sequence[Shown]) -> list[Tensor | None]:
        """Feature rows (S, F) of each sample, in the order of its placeholders."""
        if not any(one.order for one in shown):  # words alone need no region tokenizer
            return [None] * len(samples)
        return self.encoder.feature_rows(samples, shown)

    def answer_ids(self, prompt_ids: Tensor, words: str) -> list[int]:
        """The ids with which an answer that begins with `words` goes on after the ids (L,) of a prompt."""
        before = self.tokenizer.decode(prompt_ids[-8:], skip_special_tokens=False)  # enough to join the words to
        said = self._template().lead + words
        known, whole = (self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (before, before + said))
        if whole[: len(known)] == known:
            return list(whole[len(known) :])
        return list(self.tokenizer(said, add_special_tokens=False)["input_ids"])

    def embed_image(self, image: Any) -> ImageFeatures:
        """The features of one picture. Those of the latest pictures are cached and cost nothing."""
        return self.encoder.embed_image(image)
