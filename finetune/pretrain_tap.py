"""Trains TAP itself, stage after stage: dense patches, prompts, then the heads that read its tokens.

    accelerate launch -m finetune.pretrain_tap --config bundled/tap_dense
    accelerate launch -m finetune.pretrain_tap --config bundled/tap_prompt
    accelerate launch -m finetune.pretrain_tap --config bundled/tap_heads

`dense` gives a fresh encoder a cheap start, as MAE did for the original: every patch learns to say what object it shows,
where the object's outline runs and where its box ends. `prompt` is the promptable training of the paper, with focal, dice,
IoU and concept losses. `heads` trains the concept head and the caption decoder on routed semantic tokens, while everything
else is frozen. If a run was stopped, give the same command again: it continues from the last checkpoint, and the result is
that of a run without a stop.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tap_tokenizer import ConceptBank, TapConfig, TapImageProcessor, TapModel, TapRegionTokenizer

from .checkpoints import save_whole
from .config import check_counts, parse_arguments, run_command, shipped_file
from .data.masked_pictures import GlyphPictures, MaskedBatch, MaskedPictures, collate
from .glyphs.language import build_text_encoder, build_text_tokenizer, concept_banks
from .loop import Training, build_optimizers, ignore_ctrl_c, mean_of, run
from .losses import enlarged, mask_iou
from .prompt_sampling import PromptSampler
from .tap_stages import DenseStage, HeadsStage, PretrainArguments, PromptStage, is_named


class TapTraining(Training):
    """One stage in training a region tokenizer, on scenes that are drawn when they are needed."""

    def __init__(self, arguments: PretrainArguments, accelerator: Accelerator) -> None:
        self.arguments, self.accelerator, self.name = arguments, accelerator, arguments.stage
        self.tokenizer = _starting_point(arguments)
        _check_enlargement(arguments, self.tokenizer)
        self.banks = concept_banks()
        self.tokenizer.model.requires_grad_(True)
        self.model = _stage(arguments, self.tokenizer, self.banks)
        if arguments.compile_encoder:
            self.tokenizer.model.image_encoder.compile()
        named = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        self.optimizers = build_optimizers(
            [(named, arguments.learning_rate)],
            arguments.optimizer,
            arguments.muon_learning_rate,
            arguments.weight_decay,
        )

    def batches(self, start: int) -> Iterable[MaskedBatch]:
        """Scenes are numbered, so a step's pictures depend on its number alone."""
        per_step = self.arguments.batch_size * self.accelerator.num_processes
        numbers = range(start * per_step, self.arguments.steps * per_step)
        return self.accelerator.prepare(_loader(self.arguments, self.tokenizer, self.arguments.splits, numbers))

    def loss(self, batch: MaskedBatch, step: int) -> dict[str, Tensor]:
        losses = self.model(batch, step)
        return {"loss": sum(value for name, value in losses.items() if not name.endswith("accuracy")), **losses}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Measures the first scenes of split val, on the main process alone: `val_…`."""
        if not self.accelerator.is_main_process:
            return {}
        model = self.tokenizer.model.eval()
        batches = _loader(self.arguments, self.tokenizer, "val", range(self.arguments.eval_scenes))
        if self.arguments.stage == "dense":
            plain = self.accelerator.unwrap_model(self.model).eval()
            return mean_of(
                [{f"val_{k}": v.item() for k, v in plain(batch.to(model.device), 0).items()} for batch in batches]
            )
        return mean_of([line for batch in batches for line in self._evaluate_prompts(batch)])

    def _evaluate_prompts(self, batch: MaskedBatch) -> Iterator[dict[str, float]]:
        """Mask IoU and concept accuracy from tight boxes and from one point each, and exact captions where they are learned."""
        model = self.tokenizer.model
        batch = batch.to(model.device)
        embeddings = model.get_image_embeddings(batch.pixel_values)
        point = PromptSampler(model.config.image_size, box_probability=0.0).first(batch.masks > 0.5, batch.boxes)
        corners = torch.tensor([[2, 3]], device=model.device).expand(len(batch.boxes), -1)
        for name, points, labels in (
            ("box", batch.boxes.view(-1, 2, 2), corners),
            ("point", point.points, point.labels),
        ):
            output = model(
                image_embeddings=embeddings, input_points=points, input_labels=labels, image_index=batch.image_index
            )
            rows = torch.arange(len(output.expert))
            embeds = output.semantic_embeds[rows, output.expert]
            masks = enlarged(output.pred_masks[rows, output.expert][:, None], batch.masks.shape[-1])[:, 0] > 0
            line = {f"val_iou_{name}": mask_iou(masks, batch.masks > 0.5).mean().item()}
            for bank, what in zip(self.banks, ("kind", "colour", "size")):
                line[f"val_{what}_{name}"] = is_named(embeds, batch, bank).float().mean().item()
            if self.arguments.stage == "heads":
                tokens = output.semantic_tokens[rows, output.expert]
                said = _captions(self.tokenizer, tokens)
                line[f"val_caption_{name}"] = sum(a == b for a, b in zip(said, batch.captions)) / len(said)
            yield line

    def save(self, folder: Path) -> None:
        if self.accelerator.is_main_process:
            save_whole(folder, self.tokenizer.save_pretrained)


def main(argv: list[str] | None = None) -> None:
    """Read the arguments, train, and write a region tokenizer to `output_dir`."""
    arguments = parse_arguments(PretrainArguments, argv, description=__doc__)
    check_counts(arguments, "eval_scenes")
    check_counts(arguments, "max_points", least=2)
    if not 0 < arguments.refined_share <= 1:
        raise ValueError(f"refined_share {arguments.refined_share}: expected a share above 0 and up to 1.")
    run(arguments, lambda accelerator: TapTraining(arguments, accelerator))


def _check_enlargement(arguments: PretrainArguments, tokenizer: TapRegionTokenizer) -> None:
    sizes = tokenizer.model.config.image_encoder_config
    most = sizes.image_size // (4 * sizes.grid_size)
    if not 1 <= arguments.mask_enlargement <= most:
        raise ValueError(
            f"mask_enlargement {arguments.mask_enlargement}: expected 1 to {most}, which brings masks of "
            f"{4 * sizes.grid_size}² to the model frame of {sizes.image_size}²."
        )


def _starting_point(arguments: PretrainArguments) -> TapRegionTokenizer:
    """The region tokenizer to train: one that was saved, or a fresh one with this world's words and concepts."""
    if arguments.init_from is not None:
        tokenizer = TapRegionTokenizer.from_pretrained(arguments.init_from)
        tokenizer.model.config.limitation = None  # it was true of the weights before this run
        return tokenizer
    config = TapConfig.from_json_file(shipped_file(arguments.model_config))
    return TapRegionTokenizer(
        TapModel(config),
        text_tokenizer=build_text_tokenizer(),
        concepts=concept_banks()[0],
        text_encoder=build_text_encoder(),
    )


def _stage(arguments: PretrainArguments, tokenizer: TapRegionTokenizer, banks: list[ConceptBank]) -> nn.Module:
    if arguments.stage == "heads":
        if tokenizer.text_tokenizer is None:
            raise ValueError(f"{arguments.init_from} has no caption vocabulary, which stage heads trains on.")
        return HeadsStage(tokenizer.model, banks, tokenizer.text_tokenizer, arguments)
    stage = {"dense": DenseStage, "prompt": PromptStage}[arguments.stage]
    return stage(tokenizer.model, banks, arguments)


def _loader(
    arguments: PretrainArguments, tokenizer: TapRegionTokenizer, splits: str, indices: range
) -> DataLoader[MaskedBatch]:
    processor: TapImageProcessor = tokenizer.processor.image_processor
    grid = tokenizer.model.config.image_encoder_config.grid_size
    enlargement = arguments.mask_enlargement if arguments.stage == "prompt" else 1
    source = GlyphPictures(tuple(splits.split(",")), arguments.seed, processor.image_size)
    return DataLoader(
        MaskedPictures(source, indices, processor, mask_size=4 * grid * enlargement),
        batch_size=arguments.batch_size,
        collate_fn=collate,
        num_workers=arguments.workers,
        worker_init_fn=ignore_ctrl_c,
        prefetch_factor=4 if arguments.workers else None,
    )


def _captions(tokenizer: TapRegionTokenizer, tokens: Tensor) -> list[str]:
    decoder = tokenizer.model.text_decoder
    bos = torch.full((len(tokens), 1), decoder.config.bos_token_id, device=tokens.device)
    prompt = decoder.embed(tokens, bos)
    mask = torch.ones(prompt.shape[:2], dtype=torch.long, device=tokens.device)
    ids = decoder.generate(inputs_embeds=prompt, attention_mask=mask, max_new_tokens=12, do_sample=False)
    assert tokenizer.text_tokenizer is not None
    return [text.strip() for text in tokenizer.text_tokenizer.batch_decode(ids, skip_special_tokens=True)]


if __name__ == "__main__":
    sys.exit(run_command(main))
