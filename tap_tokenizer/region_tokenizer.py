"""`TapRegionTokenizer`: picture + prompts → `RegionTokens`, and TAP's own words for them.

It loads a model with its processor, concept bank and caption vocabulary, and works in the user's pixels. It never
trains: encoding is always in evaluation mode and without gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .captions import caption_ids, caption_words
from .concept_projector import ConceptBank, bank_of, check_bank, vectors_of
from .cpu_abilities import in_fast_dtype
from .detections import detection_prompts
from .everything import search_picture
from .everything_options import EverythingOptions
from .image_processing_tap import ImageInput, TapImageProcessor, as_image_list, load_rgb
from .interruption import before_step
from .modeling_tap import TapModel
from .pretrained_files import CONCEPTS_FILE, TEXT_ENCODER_FOLDER, TEXT_TOKENIZER_FOLDER, load_text_tokenizer, locate
from .processing_tap import TapProcessor
from .prompts import read_prompts
from .region_decoder import ImageFeatures, RegionDecoder, frozen
from .region_tokens import RegionTokens
from .text_encoder import TextEncoder, as_text_encoder
from .weight_files import check_device


class TapRegionTokenizer:
    """A frozen TAP with its processor, concept bank and caption vocabulary.

    >>> tokenizer = TapRegionTokenizer.from_pretrained("tap-tiny")
    >>> regions = tokenizer.encode("picture.png", boxes=[[177, 392, 271, 470]])
    >>> tokenizer.caption(regions), tokenizer.classify(regions)

    image_batch_size and region_batch_size limit memory: they say how many pictures and how many regions go through the
    model at once. They change no result.
    """

    def __init__(
        self,
        model: TapModel,
        processor: TapProcessor | None = None,
        *,
        text_tokenizer: PreTrainedTokenizerBase | None = None,
        concepts: ConceptBank | None = None,
        text_encoder: TextEncoder | None = None,
        image_batch_size: int = 4,
        region_batch_size: int = 64,
    ) -> None:
        self.model = model
        self.processor = processor or TapProcessor(TapImageProcessor(image_size=model.config.image_size))
        self.text_tokenizer = text_tokenizer
        self.concepts = concepts
        self.text_encoder = None if text_encoder is None else as_text_encoder(text_encoder)
        self.image_batch_size = image_batch_size
        self.region_batch_size = region_batch_size
        self.source: dict[str, str] = {}
        """The arguments of `from_pretrained` that load this tokenizer again; empty if it was put together by hand."""
        self._fingerprint: str | None = None
        self._check_parts()

    def __repr__(self) -> str:
        source = "/".join(Path(self.source.get("source", "")).parts[-2:])
        captions = "with captions" if self.text_tokenizer is not None else "without captions"
        concepts = f"{len(self.concepts.names)} concepts" if self.concepts is not None else "no concepts"
        return f"TapRegionTokenizer({source!r}, {captions}, {concepts}, device='{self.model.device}')"

    # --- loading and saving -------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        variant: str | None = None,
        concepts: str | Path | ConceptBank | None = None,
        text_tokenizer: str | Path | PreTrainedTokenizerBase | None = None,
        text_encoder: str | Path | TextEncoder | None = None,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        attn_implementation: str | None = None,
        encoder_precision: Literal["float32", "int8"] = "float32",
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
    ) -> TapRegionTokenizer:
        """Load a region tokenizer.

        source: the name of the bundled model (`"tap-tiny"`); a folder that `save_pretrained` wrote; one of the original's
        `.pkl` checkpoints; or a repository on the Hub. The original's repository needs a `variant`, as in
        `"BAAI/tokenize-anything", variant="tap_vit_l_v1_1"`; its `.pkl` is downloaded once and converted at each loading
        (convert it to a folder to load faster: `tap-tokenizer convert`).
        concepts: a `ConceptBank`, a file (the original's `.pkl` or one that `ConceptBank.save` wrote), or, for the
        original's repository, one of its names (`"merged_2560"`, the default, `"lvis_1203"`, `"coco_80"`).
        text_tokenizer: the caption vocabulary, which no checkpoint holds: LLaMA-1's `tokenizer.model`, a folder or a Hub
        repository with it, or a tokenizer. Default: what was saved with the model; for the original's repository,
        `pretrained_files.DEFAULT_TEXT_TOKENIZER`. It is checked by its md5. Without it, everything works except `caption`.
        text_encoder: the encoder that the weights were trained to match, for concepts and searches in your own words: its
        folder or Hub repository, or a `TextEncoder`. Default: what was saved with the model.
        dtype: default float32. encoder_precision: with "int8", the image encoder multiplies in it, which on a CPU takes a
        fraction of the time and changes masks and tokens a little; `benchmarks/README.md` says how little.
        revision, cache_dir, token, local_files_only: as everywhere in transformers.

        Nothing in the files is executed: the reader of pickles accepts only arrays and plain containers, and Python
        code in a folder is ignored.
        """
        hub = {"revision": revision, "cache_dir": cache_dir, "token": token, "local_files_only": local_files_only}
        check_device(device)
        if concepts is not None and not isinstance(concepts, (str, Path)):
            check_bank(concepts)
        files = locate(source, variant=variant, concepts=concepts, hub=hub)
        model, processor = files.load_model(dtype=_as_dtype(dtype), attn_implementation=attn_implementation)
        tokenizer = cls(
            in_fast_dtype(model.to(device) if device is not None else model, dtype),
            processor,
            concepts=files.load_concepts(),
            text_encoder=files.load_text_encoder(text_encoder, hub),
            text_tokenizer=load_text_tokenizer(
                text_tokenizer, files, vocab_size=model.config.text_decoder_config.vocab_size, hub=hub
            ),
        )
        tokenizer.model.requires_grad_(False).eval()
        tokenizer.model.encoder_precision = encoder_precision
        named = {
            "source": source,
            "variant": variant,
            "concepts": concepts,
            "text_tokenizer": text_tokenizer,
            "text_encoder": text_encoder,
            "revision": revision,
        }
        tokenizer.source = {name: str(value) for name, value in named.items() if isinstance(value, (str, Path))}
        return tokenizer

    @property
    def limitation(self) -> str | None:
        """A sentence for users about what these weights cannot do; None if there is no warning."""
        return self.model.config.limitation

    def save_pretrained(self, folder: str | Path) -> None:
        """Write all that there is, from the model to the text encoder, to a folder that `from_pretrained` reads."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        if self.concepts is not None:
            self.concepts.save(folder / CONCEPTS_FILE)
        if self.text_tokenizer is not None:
            self.text_tokenizer.save_pretrained(folder / TEXT_TOKENIZER_FOLDER)
        if self.text_encoder is not None:
            self.text_encoder.save_pretrained(folder / TEXT_ENCODER_FOLDER)

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, token: str | bool | None = None) -> str:
        """Upload what `save_pretrained` writes to a repository on the Hub. Returns its address."""
        from tempfile import TemporaryDirectory

        from huggingface_hub import HfApi

        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            api = HfApi(token=token)
            url = api.create_repo(repo_id, private=private, exist_ok=True)
            api.upload_folder(repo_id=url.repo_id, folder_path=folder, commit_message="Upload region tokenizer")
        return str(url)

    def _check_parts(self) -> None:
        config = self.model.config
        if self.processor.image_processor.image_size != config.image_size:
            raise ValueError(
                f"The image processor makes pictures of {self.processor.image_processor.image_size} pixels, the model "
                f"reads {config.image_size}: give the processor that belongs to the model."
            )
        width = config.image_decoder_config.semantic_embed_size
        if self.concepts is not None:
            check_bank(self.concepts)
        if self.concepts is not None and self.concepts.embed_size != width:
            raise ValueError(
                f"The concept bank has vectors of width {self.concepts.embed_size}, the model's semantic embeddings "
                f"{width}: give a bank made for this model."
            )

    # --- where it lives -----------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def fingerprint(self) -> str:
        """Identifies the weights that make the tokens. Equal checkpoints have equal fingerprints, in whatever dtype
        they are loaded.

        A checkpoint that was saved in half precision has different numbers and therefore another fingerprint.
        """
        if self._fingerprint is None:
            self._fingerprint = self.model.fingerprint
        return self._fingerprint

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> TapRegionTokenizer:
        """Move the model, in place; returns self."""
        self.fingerprint  # noqa: B018 - taken before a cast could change the weights
        self.model.to(device=device, dtype=dtype)
        return self

    # --- seeing -------------------------------------------------------------------------------------------------------

    def embed_image(self, images: ImageInput | Sequence[ImageInput]) -> ImageFeatures:
        """Encode one picture or a list of pictures once, for many calls of `encode(features=…)`."""
        pictures = as_image_list(images)
        parts, originals, reshaped = [], [], []
        with frozen(self.model):
            for start in range(0, len(pictures), self.image_batch_size):
                before_step()
                inputs = self.processor.image_processor(pictures[start : start + self.image_batch_size])
                parts.append(self.model.get_image_embeddings(inputs["pixel_values"].to(self.device)))
                originals.append(inputs["original_sizes"])
                reshaped.append(inputs["reshaped_input_sizes"])
        return ImageFeatures(
            embeddings=torch.cat(parts),
            original_sizes=torch.cat(originals),
            reshaped_input_sizes=torch.cat(reshaped),
            is_batch=isinstance(images, (list, tuple)),
            fingerprint=self.fingerprint,
            encoder_precision=self.model.encoder_precision,
        )

    def encode(
        self,
        images: ImageInput | Sequence[ImageInput] | None = None,
        detections: Any = None,
        *,
        boxes: Any = None,
        points: Any = None,
        point_labels: Any = None,
        masks: Any = None,
        prompts: Any = None,
        features: ImageFeatures | None = None,
        with_masks: bool = False,
    ) -> RegionTokens:
        """Encode the prompted regions, in the order of the prompts, picture by picture.

        images: one picture (prompts are lists of regions) or a list (prompts are lists of such lists); see
        `TapImageProcessor` for what a picture may be and `TapProcessor` for what prompts may be. Coordinates are pixels
        of the original picture, boxes xyxy. Instead of these lists, you can give `prompts`: a list of
        `RegionPrompt`s, or a list of such lists. Or give `detections`: what a detector found, as supervision's `Detections`
        (for several pictures, a list of them); their masks are the prompts, or their boxes, clipped to the picture, if they
        have none. Instead of pictures, you can give `features` from `embed_image`.
        with_masks: compute masks in the same pass. Otherwise, when `RegionTokens.masks` is first read, regions given by boxes
        or masks take a second pass. (For other regions, mask logits are kept anyway, because their boxes come from them.)

        Raises `ValueError` for bad pictures or prompts before any work starts.
        """
        if (images is None) == (features is None):
            raise ValueError("Got both or neither of images and features: give one of them.")
        lists = {"boxes": boxes, "points": points, "point_labels": point_labels, "masks": masks}
        pictures: list[Any] = []
        if features is not None:
            self._check_features(features)
            is_batch, sizes = features.is_batch, features.original_sizes
        else:
            assert images is not None
            is_batch = isinstance(images, (list, tuple))
            pictures = [load_rgb(image) for image in as_image_list(images)]  # opened once, before the model runs
            sizes = torch.tensor([picture.shape[:2] for picture in pictures])
        if detections is not None:
            heights_and_widths = [(height, width) for height, width in sizes.tolist()]
            others = {**lists, "prompts": prompts}
            prompts = detection_prompts(detections, heights_and_widths, others, is_batch=is_batch)
        given = read_prompts(len(sizes) if is_batch else None, prompts=prompts, **lists)
        prepared = self.processor.prepare_prompts(sizes, given, is_batch=is_batch)
        features = self.embed_image(pictures) if features is None else features
        return self._decoder.decode(features, prepared, with_masks)

    def encode_everything(
        self, image: ImageInput | None = None, *, features: ImageFeatures | None = None, **options: Any
    ) -> RegionTokens:
        """Encode all objects that a grid of points finds in one picture, the most confident first, with masks.

        image: one picture; or its `features` from `embed_image`, which searches without crops.
        options: fields of `EverythingOptions` (points_per_crop, pred_iou_thresh, crops_n_layers, …).

        A region is what TAP answers to the point that found it: its expert is one of those that answer points, and its
        box is the box around its mask. If nothing passes the filters, the result has no regions.
        """
        search = EverythingOptions.of(options)
        if (image is None) == (features is None):
            raise ValueError("Got both or neither of image and features: give one of them.")
        if isinstance(image, (list, tuple)) or (features is not None and len(features) != 1):
            raise ValueError("Got several pictures, expected one: search them one at a time.")
        if features is not None and search.crops_n_layers:
            raise ValueError("Got features and crops_n_layers: features are of the whole picture, give the picture.")
        if features is not None:
            self._check_features(features)
        picture = None if image is None else load_rgb(image)
        whole = self.embed_image(picture) if features is None else features  # type: ignore[arg-type]
        return search_picture(self._decoder, whole, picture, self.embed_image, search)

    @property
    def _decoder(self) -> RegionDecoder:
        """The decoder. It is made at each call, because its parts may have been exchanged."""
        return RegionDecoder(
            self.model, self.processor, fingerprint=self.fingerprint, batch_size=self.region_batch_size
        )

    # --- TAP's own words ----------------------------------------------------------------------------------------------

    @overload
    def caption(self, regions: RegionTokens, *, return_ids: Literal[False] = False, **options: Any) -> list[str]: ...

    @overload
    def caption(self, regions: RegionTokens, *, return_ids: Literal[True], **options: Any) -> Tensor: ...

    def caption(
        self,
        regions: RegionTokens,
        *,
        temperature: float = 0.0,
        max_length: int | None = None,
        return_ids: bool = False,
        **generate_options: Any,
    ) -> list[str] | Tensor:
        """Write a caption for each region with TAP's own decoder: greedy, or sampled if `temperature` is above 0.

        max_length: ids of a caption, bos included; at most, and by default, `max_position_embeddings - 1` = 39.
        return_ids: give ids (R, max_length), bos first, padded after eos, instead of strings. (The original continues
        after an eos until the last caption of the batch has ended; those ids depend on the batch.) Further options go
        to transformers' `generate` (num_beams, top_p, …). Raises `ValueError` without a vocabulary.
        """
        if self.text_tokenizer is None and not return_ids:
            raise ValueError(
                "This tokenizer has no caption vocabulary, which is not part of a TAP checkpoint: load it with "
                "text_tokenizer=… (LLaMA-1's tokenizer.model, a folder or a Hub repository that holds it), or take "
                "return_ids=True."
            )
        self._check_origin(regions)
        ids = caption_ids(self.model, regions.tokens, temperature, max_length, generate_options)
        return ids if return_ids else caption_words(ids, self.text_tokenizer, self.model.config.text_decoder_config)

    def classify(
        self, regions: RegionTokens, top_k: int = 5, *, concepts: ConceptBank | Sequence[str] | None = None
    ) -> list[list[tuple[str, float]]]:
        """The `top_k` most probable concepts of each region with their scores, best first.

        concepts: a bank of your own instead of the tokenizer's, or names, of which `concept_bank` makes one. Raises
        `ValueError` without any, and for names if there is no text encoder.
        """
        bank = self.concepts if concepts is None else self.concept_bank(concepts)
        if bank is None:
            raise ValueError(
                "This tokenizer has no concept bank: load it with concepts=… (a file of the original or of "
                "ConceptBank.save), or give classify a ConceptBank."
            )
        self._check_origin(regions)
        return bank.top(regions.embeds, min(top_k, len(bank)) if top_k > 0 else top_k)

    def concept_bank(self, concepts: ConceptBank | Sequence[str]) -> ConceptBank:
        """A bank of names, by the text encoder, with the temperature of the tokenizer's own bank; a bank stays as it is."""
        return bank_of(concepts, self.text_encoder, self.concepts)

    def phrase_vectors(self, phrases: Sequence[str]) -> Tensor:
        """Unit vectors (N, E) of phrases in the space of semantic embeddings: by the text encoder, else from the concept bank.

        Raises `ValueError` for phrases that are not in the bank if there is no encoder, and for an encoder of another space.
        """
        width = self.model.config.image_decoder_config.semantic_embed_size
        return vectors_of(phrases, self.text_encoder, self.concepts, width)

    def _check_features(self, features: ImageFeatures) -> None:
        if features.fingerprint != self.fingerprint:
            raise ValueError("These image features come from another tokenizer: embed the pictures with this one.")
        if features.encoder_precision != self.model.encoder_precision:
            raise ValueError(
                f"These image features were encoded in {features.encoder_precision}, and encoder_precision is now "
                f"{self.model.encoder_precision!r}: embed the pictures again, or set it back."
            )

    def _check_origin(self, regions: RegionTokens) -> None:
        if regions.fingerprint != self.fingerprint:
            raise ValueError(
                f"These region tokens were made by the tokenizer {regions.fingerprint}, this one is {self.fingerprint}: "
                "encode the regions with this tokenizer."
            )


def _as_dtype(dtype: torch.dtype | str | None) -> torch.dtype:
    if dtype is None:
        return torch.float32
    value = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(value, torch.dtype) or not value.is_floating_point:
        raise ValueError(f"dtype is {dtype!r}, expected float32, bfloat16 or float16.")
    return value
