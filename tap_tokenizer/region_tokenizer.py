"""`TapRegionTokenizer`: picture + prompts → `RegionTokens`, and TAP's own words for them.

The door of the package: loads a model with its processor, concept bank and caption vocabulary from wherever they lie,
and works in the user's pixels. Never trains: encoding is always in evaluation mode and without gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .concept_projector import ConceptBank, check_bank
from .everything import Crop, EverythingOptions, clean_mask, crops_of, is_cut_off, mask_nms, stability_scores
from .image_processing_tap import ImageInput, TapImageProcessor, as_image_list, load_rgb
from .mask_boxes import boxes_of_masks
from .modeling_tap import TapModel
from .pretrained_files import CONCEPTS_FILE, TEXT_TOKENIZER_FOLDER, load_text_tokenizer, locate
from .processing_tap import TapProcessor
from .prompt_encoder import PointLabel
from .prompts import RegionPrompt, read_prompts
from .region_tokens import PendingMask, RegionTokens
from .weight_files import check_device


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """Encoded pictures, to be asked about many times.

    embeddings (B, D, G, G); original_sizes and reshaped_input_sizes (B, 2) as from `TapImageProcessor`; is_batch: whether
    a list of pictures was given, so that prompts are expected per picture.
    """

    embeddings: Tensor
    original_sizes: Tensor
    reshaped_input_sizes: Tensor
    is_batch: bool
    fingerprint: str

    def __len__(self) -> int:
        return len(self.embeddings)

    def __repr__(self) -> str:
        sizes = [f"{width} × {height}" for height, width in self.original_sizes[:3].tolist()]
        more = ", …" if len(self) > 3 else ""
        return f"ImageFeatures({len(self)} images of {', '.join(sizes)}{more} pixels, fingerprint={self.fingerprint!r})"

    def __getitem__(self, index: int) -> ImageFeatures:
        """The features of one picture, as a batch of one."""
        row = slice(index, index + 1) if index >= 0 else slice(len(self) + index, len(self) + index + 1)
        if not len(self.embeddings[row]):
            raise IndexError(f"Got image {index} of {len(self)}.")
        parts = (self.embeddings[row], self.original_sizes[row], self.reshaped_input_sizes[row])
        return ImageFeatures(*parts, is_batch=True, fingerprint=self.fingerprint)

    @classmethod
    def concatenate(cls, parts: Sequence[ImageFeatures]) -> ImageFeatures:
        """Join the pictures of several calls into one batch."""
        if len({part.fingerprint for part in parts}) != 1:
            raise ValueError("Got features of different tokenizers, or none: embed the pictures with one.")
        return cls(
            embeddings=torch.cat([part.embeddings for part in parts]),
            original_sizes=torch.cat([part.original_sizes for part in parts]),
            reshaped_input_sizes=torch.cat([part.reshaped_input_sizes for part in parts]),
            is_batch=True,
            fingerprint=parts[0].fingerprint,
        )


class TapRegionTokenizer:
    """A frozen TAP with everything around it.

    >>> tokenizer = TapRegionTokenizer.from_pretrained("tap-tiny")
    >>> regions = tokenizer.encode("picture.png", boxes=[[177, 392, 271, 470]])
    >>> tokenizer.caption(regions), tokenizer.classify(regions)

    image_batch_size and region_batch_size bound memory: how many pictures, and how many regions, go through the model at
    once. They change no result.
    """

    def __init__(
        self,
        model: TapModel,
        processor: TapProcessor | None = None,
        *,
        text_tokenizer: PreTrainedTokenizerBase | None = None,
        concepts: ConceptBank | None = None,
        image_batch_size: int = 4,
        region_batch_size: int = 64,
    ) -> None:
        self.model = model
        self.processor = processor or TapProcessor(TapImageProcessor(image_size=model.config.image_size))
        self.text_tokenizer = text_tokenizer
        self.concepts = concepts
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
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        attn_implementation: str | None = None,
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
        `pretrained_files.DEFAULT_TEXT_TOKENIZER`. Checked by its md5. Without it everything but `caption` works.
        dtype: default float32. revision, cache_dir, token, local_files_only: as everywhere in transformers.

        Nothing in the files is executed: pickles are read by a reader that admits arrays and plain containers only, and
        Python code that lies in a folder is left alone.
        """
        hub = {"revision": revision, "cache_dir": cache_dir, "token": token, "local_files_only": local_files_only}
        check_device(device)
        if concepts is not None and not isinstance(concepts, (str, Path)):
            check_bank(concepts)
        files = locate(source, variant=variant, concepts=concepts, hub=hub)
        model, processor = files.load_model(dtype=_as_dtype(dtype), attn_implementation=attn_implementation)
        tokenizer = cls(
            model.to(device) if device is not None else model,
            processor,
            concepts=files.load_concepts(),
            text_tokenizer=load_text_tokenizer(
                text_tokenizer, files, vocab_size=model.config.text_decoder_config.vocab_size, hub=hub
            ),
        )
        tokenizer.model.requires_grad_(False).eval()
        named = {
            "source": source,
            "variant": variant,
            "concepts": concepts,
            "text_tokenizer": text_tokenizer,
            "revision": revision,
        }
        tokenizer.source = {name: str(value) for name, value in named.items() if isinstance(value, (str, Path))}
        return tokenizer

    @property
    def limitation(self) -> str | None:
        """What these weights cannot do, in a sentence for users; None for weights that come without a warning."""
        return self.model.config.limitation

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model, processor, concept bank and caption vocabulary to a folder that `from_pretrained` reads."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        if self.concepts is not None:
            self.concepts.save(folder / CONCEPTS_FILE)
        if self.text_tokenizer is not None:
            self.text_tokenizer.save_pretrained(folder / TEXT_TOKENIZER_FOLDER)

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, token: str | bool | None = None) -> str:
        """Upload what `save_pretrained` writes to a repository on the Hub; gives its address."""
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
        """Which weights make the tokens; equal for equal checkpoints, whatever the dtype they are loaded in.

        A checkpoint that was saved in half precision holds other numbers, and has a fingerprint of its own.
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
        """Encode one picture or a list once, for many calls of `encode(features=…)`."""
        pictures = as_image_list(images)
        parts, originals, reshaped = [], [], []
        with self._frozen():
            for start in range(0, len(pictures), self.image_batch_size):
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
        )

    def encode(
        self,
        images: ImageInput | Sequence[ImageInput] | None = None,
        *,
        boxes: Any = None,
        points: Any = None,
        point_labels: Any = None,
        masks: Any = None,
        prompts: Any = None,
        features: ImageFeatures | None = None,
        with_masks: bool = False,
    ) -> RegionTokens:
        """Tokens of the prompted regions, in the order of the prompts, picture by picture.

        images: one picture (prompts are lists of regions) or a list (prompts are lists of such lists); see
        `TapImageProcessor` for what a picture may be and `TapProcessor` for what prompts may be. Coordinates are pixels
        of the original picture, boxes xyxy. Instead of lists of each kind, give `prompts`: a `RegionPrompt` for each region,
        for a list of pictures in a list of its own for each. Instead of pictures, give `features` from `embed_image`.
        with_masks: compute masks in the same pass; otherwise the first reading of `RegionTokens.masks` costs a second one for
        regions that were given by boxes or masks. (Of others the mask's logits are kept: their boxes are read off them.)

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
        given = read_prompts(len(sizes) if is_batch else None, prompts=prompts, **lists)
        prepared = self.processor.prepare_prompts(sizes, given, is_batch=is_batch)
        features = self.embed_image(pictures) if features is None else features
        return self._decode(features, prepared, with_masks)

    def encode_everything(
        self, image: ImageInput | None = None, *, features: ImageFeatures | None = None, **options: Any
    ) -> RegionTokens:
        """Tokens of all objects that a grid of points finds in one picture, the surest first, with their masks.

        image: one picture; or its `features` from `embed_image`, which searches without crops.
        options: fields of `EverythingOptions` (points_per_crop, pred_iou_thresh, crops_n_layers, …).

        Every region comes as the point that found it told it: its expert is one of those that answer points, its box is
        the box around its mask. `RegionTokens` of no regions where nothing passes the filters.
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
        size = (int(whole.original_sizes[0, 0]), int(whole.original_sizes[0, 1]))
        parts = []
        for layer, crop in crops_of(size, search):
            seen = whole
            if layer:
                assert picture is not None
                seen = self.embed_image(picture[crop[1] : crop[3], crop[0] : crop[2]])
            parts.append(self._search(seen, crop, size, layer, search))
        found = RegionTokens.concatenate(parts, same_images=True)
        if search.min_mask_region_area:
            found = _cleaned(found, search.min_mask_region_area)
        if len(parts) > 1 or search.min_mask_region_area:  # what several crops found, or what cleaning made alike
            masks = [mask for mask in found.mask_parts if isinstance(mask, Tensor)]
            found = found[mask_nms(masks, found.scores, search.crops_nms_thresh)]
        return found

    def _search(
        self, features: ImageFeatures, crop: Crop, size: tuple[int, int], layer: int, search: EverythingOptions
    ) -> RegionTokens:
        """Regions of one crop, placed in its picture of (height, width) `size`."""
        height, width = features.original_sizes[0].tolist()
        side = search.points_per_side(layer)
        ticks = (torch.arange(side) + 0.5) / side
        y, x = torch.meshgrid(ticks * height, ticks * width, indexing="ij")
        grid = [
            RegionPrompt(points=((px, py),), point_labels=(PointLabel.FOREGROUND,))
            for px, py in zip(x.flatten().tolist(), y.flatten().tolist())
        ]
        prepared = self.processor.prepare_prompts(features.original_sizes, [grid], is_batch=features.is_batch)
        kept: list[dict[str, Tensor]] = []
        with self._frozen():
            for rows in torch.arange(len(grid)).split(self.region_batch_size):
                output = self._run(features, prepared, rows, output_masks=True)
                answer = torch.arange(len(rows)), output.expert
                logits, score = output.pred_masks[answer].float(), output.iou_scores[answer]
                passes = (
                    (score >= search.pred_iou_thresh)
                    & (stability_scores(logits, search.stability_score_offset) >= search.stability_score_thresh)
                    & (logits > 0).amax(dim=(1, 2))
                )
                values = (output.semantic_tokens, output.semantic_embeds, output.iou_scores, output.expert, logits)
                kept.append({name: value[passes] for name, value in zip(_SEARCHED, values)})
            found = {name: torch.cat([part[name] for part in kept]) for name in _SEARCHED}
            if layer:
                index = torch.zeros(len(found["logits"]), dtype=torch.long)
                corner = index.new_tensor([crop[0], crop[1], crop[0], crop[1]]).to(self.device)
                boxes = corner + self._boxes_of_masks(found["logits"], features, index)
                cell = max(height, width) / found["logits"].shape[-1]
                whole = ~is_cut_off(boxes, crop, size, cell)
                found = {name: value[whole] for name, value in found.items()}
            scores = found["iou_scores"].gather(1, found["expert"][:, None]).squeeze(1)
            best = mask_nms(found["logits"] > 0, scores, search.crops_nms_thresh)
            found = {name: value[best] for name, value in found.items()}
            index = torch.zeros(len(best), dtype=torch.long)
            masks = self._masks_to_pictures(found.pop("logits"), features, index)
        masks = [_placed(mask, crop, size) for mask in masks]
        regions = RegionTokens(
            **found,
            boxes=_boxes_around(masks, self.device),
            image_index=index.to(self.device),
            image_sizes=torch.tensor([size]),
            fingerprint=self.fingerprint,
            mask_parts=list(masks),
        )
        seen = regions.boxes.any(dim=1).cpu()  # a speck may vanish at the picture's own size
        return regions if seen.all() else regions[seen]

    def _decode(self, features: ImageFeatures, prepared: dict[str, Tensor], with_masks: bool) -> RegionTokens:
        parts: dict[str, list[Tensor]] = {name: [] for name in ("tokens", "embeds", "iou", "expert", "boxes")}
        masks: list[Tensor | PendingMask | None] = []
        source = _MaskSource(self, features, prepared)
        count = len(prepared["image_index"])
        without_box = prepared["prompt_boxes"].isnan().any(dim=1)
        with self._frozen():
            for start in range(0, max(count, 1), self.region_batch_size):
                rows = torch.arange(start, min(start + self.region_batch_size, count))
                needs_masks = with_masks or bool(without_box[rows].any())
                output = self._run(features, prepared, rows, output_masks=needs_masks)
                box = prepared["prompt_boxes"][rows].to(self.device)
                if needs_masks:
                    routed = output.pred_masks[torch.arange(len(rows)), output.expert]
                    index = prepared["image_index"][rows]
                    lacking = without_box[rows].nonzero().squeeze(1)
                    if with_masks:
                        found = self._masks_to_pictures(routed, features, index)
                        masks += found
                        around = _boxes_around([found[i] for i in lacking.tolist()], self.device)
                    else:
                        source.keep(rows[lacking], routed[lacking])
                        around = self._boxes_of_masks(routed[lacking], features, index[lacking])
                    box[lacking] = self._or_whole_picture(around, features, index[lacking])
                for name, value in zip(parts, (output.semantic_tokens, output.semantic_embeds, output.iou_scores,
                                               output.expert, box)):  # fmt: skip
                    parts[name].append(value)
        tokens, embeds, iou, expert, boxes = (torch.cat(value) for value in parts.values())
        return RegionTokens(
            semantic_tokens=tokens,
            semantic_embeds=embeds,
            iou_scores=iou,
            expert=expert,
            boxes=boxes,
            image_index=prepared["image_index"].to(self.device),
            image_sizes=features.original_sizes,
            fingerprint=self.fingerprint,
            mask_parts=masks or [PendingMask(source, row) for row in range(count)],
        )

    def _run(self, features: ImageFeatures, prepared: dict[str, Tensor], rows: Tensor, output_masks: bool) -> Any:
        """The image decoder on some rows; prompts of equal length need no mask."""
        mask = prepared["prompt_mask"][rows]
        longest = int(mask.sum(dim=1).max()) if len(rows) else mask.shape[1]
        mask = mask[:, :longest]
        return self.model(
            image_embeddings=features.embeddings.to(self.device, self.dtype),  # the model may have moved since
            input_points=prepared["input_points"][rows, :longest].to(self.device),
            input_labels=prepared["input_labels"][rows, :longest].to(self.device),
            prompt_mask=None if bool(mask.all()) else mask.to(self.device),
            image_index=prepared["image_index"][rows].to(self.device),
            output_masks=output_masks,
        )

    def _masks_to_pictures(self, logits: Tensor, features: ImageFeatures, image_index: Tensor) -> list[Tensor]:
        """Mask logits (R, h, w) of the answering experts → a boolean mask of its picture's size for each."""
        masks = []
        for row, image in zip(logits, image_index.tolist()):
            original, reshaped = (
                s[image : image + 1] for s in (features.original_sizes, features.reshaped_input_sizes)
            )
            full = self.processor.image_processor.post_process_masks([row[None, None]], original, reshaped)
            masks.append(full[0][0, 0])
        return masks

    def _boxes_of_masks(self, logits: Tensor, features: ImageFeatures, image_index: Tensor) -> Tensor:
        """Boxes (R, 4), in the user's pixels, around the masks that `_masks_to_pictures` gives; zeros if one is empty."""
        boxes = torch.zeros(len(logits), 4, device=logits.device)
        for image in image_index.unique().tolist():
            mine = (image_index == image).nonzero().squeeze(1)
            sizes = features.original_sizes[image], features.reshaped_input_sizes[image]
            boxes[mine] = self.processor.image_processor.boxes_of_masks(logits[mine], *sizes).float()
        return boxes

    @staticmethod
    def _or_whole_picture(boxes: Tensor, features: ImageFeatures, image_index: Tensor) -> Tensor:
        """Boxes (R, 4), with the whole picture where a mask is empty and has none."""
        sizes = features.original_sizes[image_index].to(boxes)
        whole = torch.cat([torch.zeros_like(sizes), sizes.flip(1)], dim=1)
        return torch.where(boxes.any(dim=1, keepdim=True), boxes, whole)

    @contextmanager
    def _frozen(self) -> Iterator[None]:
        """Evaluation mode without gradients, whatever mode someone has put the model in; the mode comes back after."""
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.model.train(was_training)

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
        """A caption of each region by the native decoder: greedy, or sampled if `temperature` is above 0.

        max_length: ids of a caption, bos included; at most, and by default, `max_position_embeddings - 1` = 39.
        return_ids: give ids (R, max_length), bos first, padded after eos, instead of strings. (The original goes on
        writing behind an eos until the last caption of the batch has ended; those ids depend on the batch.)
        Further options go to transformers' `generate` (num_beams, top_p, …). Raises `ValueError` without a vocabulary.
        """
        config = self.model.config.text_decoder_config
        if self.text_tokenizer is None and not return_ids:
            raise ValueError(
                "This tokenizer has no caption vocabulary, which is not part of a TAP checkpoint: load it with "
                "text_tokenizer=… (LLaMA-1's tokenizer.model, a folder or a Hub repository that holds it), or take "
                "return_ids=True."
            )
        self._check_origin(regions)
        longest = config.max_position_embeddings - 1
        max_length = longest if max_length is None else max_length
        if not 2 <= max_length <= longest:
            raise ValueError(f"max_length is {max_length}, expected 2 to {longest}: bos and at least one id.")
        if temperature < 0:
            raise ValueError(f"temperature is {temperature}, expected 0 (greedy) or more.")
        if taken := sorted(_CAPTIONS_OWN & generate_options.keys()):
            raise ValueError(
                f"Got {', '.join(taken)}, which caption sets itself: give max_length, temperature, num_beams, …."
            )
        if generate_options.get("num_return_sequences", 1) != 1:
            raise ValueError(
                f"num_return_sequences is {generate_options['num_return_sequences']}, expected 1: each region gets one "
                "caption. To get others, call caption again with a temperature."
            )
        if temperature:
            generate_options |= {"do_sample": True, "temperature": temperature}
        parts = []
        with self._frozen():
            for tokens in regions.tokens.to(self.device).split(64):
                if generate_options:
                    options = {"do_sample": False, **generate_options}
                    parts.append(self.model.text_decoder.caption(tokens, max_length, **options))
                else:
                    parts.append(self.model.greedy_captions(tokens, max_length))
        ids = torch.cat(parts)
        if return_ids:
            return ids
        assert self.text_tokenizer is not None
        return [self._words(row) for row in ids.tolist()]

    def _words(self, ids: list[int]) -> str:
        """Ids after bos, up to eos, as text."""
        end = self.model.config.text_decoder_config.eos_token_id
        words = ids[1 : ids.index(end)] if end in ids else ids[1:]
        assert self.text_tokenizer is not None
        return self.text_tokenizer.decode(words).strip()

    def classify(
        self, regions: RegionTokens, top_k: int = 5, *, concepts: ConceptBank | None = None
    ) -> list[list[tuple[str, float]]]:
        """The `top_k` most probable concepts of each region with their scores, best first.

        concepts: a bank of your own instead of the tokenizer's. Raises `ValueError` if there is neither, and for mere names:
        `ConceptBank.from_text_encoder` makes a bank of them.
        """
        if concepts is not None:
            check_bank(concepts)
        bank = self.concepts if concepts is None else concepts
        if bank is None:
            raise ValueError(
                "This tokenizer has no concept bank: load it with concepts=… (a file of the original or of "
                "ConceptBank.save), or give classify a ConceptBank."
            )
        self._check_origin(regions)
        return bank.top(regions.embeds, min(top_k, len(bank)) if top_k > 0 else top_k)

    def _check_features(self, features: ImageFeatures) -> None:
        if features.fingerprint != self.fingerprint:
            raise ValueError("These image features come from another tokenizer: embed the pictures with this one.")

    def _check_origin(self, regions: RegionTokens) -> None:
        if regions.fingerprint != self.fingerprint:
            raise ValueError(
                f"These region tokens were made by the tokenizer {regions.fingerprint}, this one is {self.fingerprint}: "
                "encode the regions with this tokenizer."
            )


_SEARCHED = ("semantic_tokens", "semantic_embeds", "iou_scores", "expert", "logits")


_CAPTIONS_OWN = {"input_ids", "inputs_embeds", "attention_mask", "max_new_tokens", "return_dict_in_generate"}
"""What `caption` says to `generate`, or counts on."""


def _boxes_around(masks: Sequence[Tensor], device: torch.device) -> Tensor:
    """Boxes (R, 4) around masks (H, W) of any sizes; zeros where one is empty."""
    found = [boxes_of_masks(mask[None]) for mask in masks]
    return torch.cat([torch.zeros(0, 4, dtype=torch.long, device=device), *found]).float()


def _placed(mask: Tensor, crop: Crop, size: tuple[int, int]) -> Tensor:
    """A crop's mask in its picture of (height, width) `size`."""
    if tuple(mask.shape) == size:
        return mask
    full = torch.zeros(size, dtype=torch.bool, device=mask.device)
    full[crop[1] : crop[3], crop[0] : crop[2]] = mask
    return full


def _cleaned(regions: RegionTokens, area: int) -> RegionTokens:
    """The same regions with specks and holes of fewer than `area` pixels taken out of their masks, and boxes to match."""
    given = [mask for mask in regions.mask_parts if isinstance(mask, Tensor)]
    device = regions.boxes.device
    masks = [torch.from_numpy(clean_mask(mask.cpu().numpy(), area)).to(device) for mask in given]
    return replace(regions, boxes=_boxes_around(masks, device), mask_parts=list(masks))


class _MaskSource:
    """Computes masks of one `encode` call later: from logits that were kept, or by asking the image decoder again.

    Logits are kept where a region's box was read off them, for box and mask must agree to the pixel, and a decoder that is
    asked in other company rounds otherwise.
    """

    def __init__(self, tokenizer: TapRegionTokenizer, features: ImageFeatures, prepared: dict[str, Tensor]) -> None:
        self.tokenizer, self.features, self.prepared = tokenizer, features, prepared
        self.logits: dict[int, Tensor] = {}

    def keep(self, rows: Tensor, logits: Tensor) -> None:
        """Keep mask logits (N, h, w) of the answering experts of some rows."""
        self.logits.update(zip(rows.tolist(), logits))

    def __call__(self, rows: list[int]) -> list[Tensor]:
        found = dict(self.logits)
        asked = [row for row in rows if row not in found]
        with self.tokenizer._frozen():
            for part in torch.tensor(asked, dtype=torch.long).split(self.tokenizer.region_batch_size):
                if len(part):
                    output = self.tokenizer._run(self.features, self.prepared, part, output_masks=True)
                    found |= zip(part.tolist(), output.pred_masks[torch.arange(len(part)), output.expert])
            logits = torch.stack([found[row].to(self.tokenizer.device) for row in rows])
            return self.tokenizer._masks_to_pictures(logits, self.features, self.prepared["image_index"][rows])


def _as_dtype(dtype: torch.dtype | str | None) -> torch.dtype:
    if dtype is None:
        return torch.float32
    value = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(value, torch.dtype) or not value.is_floating_point:
        raise ValueError(f"dtype is {dtype!r}, expected float32, bfloat16 or float16.")
    return value
