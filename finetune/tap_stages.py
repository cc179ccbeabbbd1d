"""The stages of TAP's training (dense patches, prompts, the heads that read its tokens) and their options.

A stage is a module that gives the losses of a batch of pictures with masks; `pretrain_tap` trains it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from tap_tokenizer import ConceptBank, TapModel

from .config import knob
from .data.masked_pictures import MaskedBatch
from .loop import RunArguments
from .losses import concept_loss, enlarged, prompted_losses
from .prompt_sampling import PromptSampler, TrainingPrompts


@dataclass(kw_only=True)
class PretrainArguments(RunArguments):
    """Train TAP on pictures whose regions have masks, concepts and captions."""

    stage: Literal["dense", "prompt", "heads"] = knob(
        help="what to train: patches, prompts, or what reads the tokens (heads): the concept head and the caption decoder"
    )
    init_from: str | None = knob(
        default=None, help="folder of the region tokenizer to start from; default: a fresh one"
    )
    model_config: str = knob(
        default="tap_tiny_model.json", help="sizes of a fresh model: a TapConfig file, or a shipped one's name"
    )
    splits: str = knob(default="train", help="splits of GlyphScenes to learn from, taken in turn; separated by commas")
    steps: int = knob(
        default=1000,
        free=True,
        help="optimizer steps; a different number in a continued run changes the learning rates of the steps that are left",
    )
    batch_size: int = knob(default=8, help="pictures in a step of each process")
    muon_learning_rate: float = knob(default=1e-2, help="peak learning rate of Muon")
    box_probability: float = knob(default=0.5, help="how likely a prompt begins with a box rather than a point")
    max_points: int = knob(default=9, help="points of a prompt at most, both rounds together")
    dice_weight: float = knob(default=1.0, help="stage prompt: weight of the dice loss; focal has 20, and concept 1")
    iou_weight: float = knob(default=1.0, help="stage prompt: weight of the squared error of predicted IoUs")
    mask_enlargement: int = knob(
        default=1, help="stage prompt: factor by which masks are enlarged before they are compared"
    )
    refined_share: float = knob(
        default=1.0,
        help="stage prompt: share of the regions that get a second prompt, with points where the first answer was wrong",
    )
    dense_weight: float = knob(default=0.0, help="stage prompt: weight of the dense loss beside the others")
    recolour_probability: float = knob(
        default=0.5,
        help="stage heads: how likely a token is moved to another colour, as if its object had that colour",
    )
    regions_per_picture: int = knob(
        default=0, help="stage prompt: regions of a picture on average, at most, drawn anew in each step; 0 for all"
    )
    compile_encoder: bool = knob(
        default=False, free=True, help="torch.compile the image encoder (needs a C++ compiler)"
    )
    save_steps: int = knob(default=200, free=True, help="steps between checkpoints")
    eval_scenes: int = knob(default=64, free=True, help="pictures in each evaluation")


def is_named(semantic_embeds: Tensor, batch: MaskedBatch, bank: ConceptBank) -> Tensor:
    """Whether a bank gives each region's embedding (R, E) its true name → (R,)."""
    return bank.scores(semantic_embeds).argmax(dim=1) == bank.scores(batch.concepts).argmax(dim=1)


class DenseTargets:
    """The targets of every patch of the encoder's grid, from the masks of the regions.

    A patch belongs to the region that covers most of it, if that is more than `least_cover`; others are background.
    """

    least_cover = 0.15

    def __init__(self, batch: MaskedBatch, banks: list[ConceptBank], grid: int, image_size: int) -> None:
        pictures, cells = len(batch.pixel_values), 4
        masks = F.adaptive_avg_pool2d(batch.masks, grid * cells)
        cover = F.avg_pool2d(masks, cells)
        classes = [bank.scores(batch.concepts).argmax(dim=1) for bank in banks]
        device = batch.masks.device
        self.labels = [torch.full((pictures, grid, grid), len(bank), device=device) for bank in banks]
        self.cells = torch.zeros(pictures, cells * cells, grid, grid, device=device)
        self.edges = torch.zeros(pictures, 4, grid, grid, device=device)
        best = torch.full((pictures, grid, grid), self.least_cover, device=device)
        fine = F.pixel_unshuffle(masks[:, None], cells)
        centre = (torch.arange(grid, device=device) + 0.5) * image_size / grid
        for region, picture in enumerate(batch.image_index.tolist()):
            owned = cover[region] > best[picture]
            best[picture][owned] = cover[region][owned]
            for label, index in zip(self.labels, classes):
                label[picture][owned] = index[region]
            self.cells[picture][:, owned] = fine[region][:, owned]
            x1, y1, x2, y2 = batch.boxes[region]
            sides = (centre[None, :] - x1, centre[:, None] - y1, x2 - centre[None, :], y2 - centre[:, None])
            edges = torch.stack([side.expand(grid, grid) for side in sides]) * (4 / image_size)
            self.edges[picture][:, owned] = edges[:, owned]
        self.is_region = self.labels[0] != len(banks[0])


class DenseHead(nn.Module):
    """One linear reading of each patch: its class in every bank, its mask cells, and the distances to its box's edges."""

    background_weight = 0.2

    def __init__(self, width: int, banks: list[ConceptBank], cells: int) -> None:
        super().__init__()
        self.sizes = [*(len(bank) + 1 for bank in banks), cells * cells, 4]
        self.linear = nn.Conv2d(width, sum(self.sizes), 1)

    def forward(self, image_embeddings: Tensor, targets: DenseTargets) -> dict[str, Tensor]:
        *classes, cells, edges = self.linear(image_embeddings).float().split(self.sizes, dim=1)
        weight = torch.where(targets.is_region, 1.0, self.background_weight)
        entropy = sum((F.cross_entropy(x, y, reduction="none") * weight).sum() for x, y in zip(classes, targets.labels))
        miss = ((edges - targets.edges).abs() * targets.is_region[:, None]).sum() / targets.is_region.sum().clamp(min=1)
        right = [((x.argmax(dim=1) == y) & targets.is_region).sum() for x, y in zip(classes, targets.labels)]
        return {
            "patch_class": entropy / weight.sum(),
            "patch_mask": 4 * F.binary_cross_entropy_with_logits(cells, targets.cells),
            "patch_box": 0.5 * miss,
            "patch_kind_accuracy": right[0] / targets.is_region.sum().clamp(min=1),
        }


class DenseStage(nn.Module):
    """The image encoder under the dense head."""

    def __init__(self, model: TapModel, banks: list[ConceptBank], arguments: PretrainArguments) -> None:
        super().__init__()
        config = model.config.image_encoder_config
        self.image_encoder = model.image_encoder
        self.dense_head = DenseHead(config.output_size, banks, cells=4)
        self.banks, self.image_size = banks, config.image_size

    def forward(self, batch: MaskedBatch, step: int) -> dict[str, Tensor]:
        embeddings = self.image_encoder(batch.pixel_values)
        return self.dense_head(embeddings, DenseTargets(batch, self.banks, embeddings.shape[-1], self.image_size))


class PromptStage(nn.Module):
    """Everything but the caption decoder, prompted twice per step; the dense loss may stay on beside it."""

    def __init__(self, model: TapModel, banks: list[ConceptBank], arguments: PretrainArguments) -> None:
        super().__init__()
        self.image_encoder = model.image_encoder
        self.prompt_encoder = model.prompt_encoder
        self.image_decoder = model.image_decoder
        width = model.config.image_encoder_config.output_size
        self.dense_head = DenseHead(width, banks, cells=4) if arguments.dense_weight else None
        self.dense_weight, self.regions_per_picture = arguments.dense_weight, arguments.regions_per_picture
        self.refined_share = arguments.refined_share
        self.weights = (20.0, arguments.dice_weight, arguments.iou_weight, 1.0)
        self.banks, self.image_size, self.seed = banks, model.config.image_size, arguments.seed
        self.sampler = PromptSampler(self.image_size, arguments.box_probability, arguments.max_points)

    def forward(self, batch: MaskedBatch, step: int) -> dict[str, Tensor]:
        self.sampler.reseed(_seed_of_draws(self.seed, step))
        embeddings = self.image_encoder(batch.pixel_values)
        asked = batch
        if self.regions_per_picture:
            asked = batch.select(self.sampler.some(len(batch.boxes), self.regions_per_picture * len(embeddings)))
        target = asked.masks > 0.5
        prompts = self.sampler.first(target, asked.boxes)
        first, nearest, masks = self._ask(embeddings, prompts, asked)
        answer = enlarged(masks[torch.arange(len(nearest)), nearest][:, None], target.shape[-1])[:, 0] > 0
        again = self.sampler.some(len(target), max(1, round(self.refined_share * len(target))))
        prompts = self.sampler.refine(prompts.select(again), target[again], answer[again])
        second, _, _ = self._ask(embeddings, prompts, asked.select(again))
        share = len(again) / (len(target) + len(again))
        losses = {name: (1 - share) * first[name] + share * second[name] for name in first}
        if self.dense_head is not None:
            targets = DenseTargets(batch, self.banks, embeddings.shape[-1], self.image_size)
            for name, value in self.dense_head(embeddings, targets).items():
                losses[name] = value if name.endswith("accuracy") else self.dense_weight * value
        return losses

    def _ask(
        self, embeddings: Tensor, prompts: TrainingPrompts, batch: MaskedBatch
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        output = self.image_decoder(
            image_embeddings=embeddings[batch.image_index],
            image_positions=self.prompt_encoder.encode_grid(embeddings.shape[-1]),
            prompt_embeddings=self.prompt_encoder(prompts.points, prompts.labels),
        )
        losses, nearest = prompted_losses(
            output.pred_masks.float(), output.iou_scores, output.semantic_embeds, prompts.is_box,
            batch.masks, batch.concepts, self.banks, self.weights,
        )  # fmt: skip
        return losses, nearest, output.pred_masks.detach()


def _seed_of_draws(seed: int, step: int) -> int:
    """The seed that the prompts of a step are drawn with: another for every step, and for each of several processes."""
    return seed * 1_000_003 + step + 7_919_000_003 * PartialState().process_index


class FrozenTokens:
    """Routed semantic tokens of a model that does not learn: of a box or a point, as the expert that answers it gives them."""

    def __init__(self, model: TapModel, arguments: PretrainArguments) -> None:
        self.model, self.seed = model, arguments.seed
        self.sampler = PromptSampler(model.config.image_size, arguments.box_probability, arguments.max_points)

    @torch.no_grad()
    def __call__(self, batch: MaskedBatch, step: int) -> tuple[Tensor, Tensor]:
        """Tokens (R, D) of a batch's regions, prompted as this step draws it, and their experts (R,)."""
        self.sampler.reseed(_seed_of_draws(self.seed, step))
        model = self.model.to(batch.pixel_values.device)
        for part in (model.image_encoder, model.prompt_encoder, model.image_decoder):
            part.eval()
        prompts = self.sampler.first(batch.masks > 0.5, batch.boxes)
        output = model(
            batch.pixel_values, input_points=prompts.points, input_labels=prompts.labels,
            image_index=batch.image_index, output_masks=False,
        )  # fmt: skip
        return output.semantic_tokens[torch.arange(len(output.expert)), output.expert].float(), output.expert


class Recolouring(nn.Module):
    """Tokens moved from their colour to another by the difference of the two colours' mean tokens.

    Means are of all tokens that the (first) process has seen so far, for each expert by itself. What a kind looks like in
    a colour that it never came in is thereby said without a picture of it.
    """

    sums: Tensor
    counts: Tensor

    def __init__(self, bank: ConceptBank, num_experts: int, size: int, probability: float) -> None:
        super().__init__()
        self.bank, self.probability = bank, probability
        self.register_buffer("sums", torch.zeros(num_experts, len(bank), size))
        self.register_buffer("counts", torch.zeros(num_experts, len(bank)))

    def forward(
        self, tokens: Tensor, experts: Tensor, concepts: Tensor, captions: Sequence[str]
    ) -> tuple[Tensor, Tensor, list[str]]:
        """Tokens (R, D) and what they should say, concept vectors (R, E) and captions, some of all three moved."""
        old = self.bank.scores(concepts).argmax(dim=1)
        self.sums.index_put_((experts, old), tokens, accumulate=True)
        self.counts.index_put_((experts, old), torch.ones_like(tokens[:, 0]), accumulate=True)
        new = torch.randint(len(self.bank), old.shape, device=old.device)
        moved = (torch.rand(old.shape, device=old.device) < self.probability) & (self.counts[experts, new] > 0)
        new = torch.where(moved, new, old)
        means = self.sums / self.counts.clamp(min=1)[..., None]
        directions = F.normalize(self.bank.weights.to(concepts.device).T, dim=-1)
        share = (concepts * directions[old]).sum(dim=1, keepdim=True)
        names = self.bank.names
        return (
            tokens + means[experts, new] - means[experts, old],
            concepts + share * (directions[new] - directions[old]),
            [re.sub(rf"\b{names[i]}\b", names[j], text) for text, i, j in zip(captions, old.tolist(), new.tolist())],
        )


class ConceptHead(nn.Module):
    """The concept head, and what moves the tokens that it and the caption decoder learn from to other colours."""

    def __init__(self, model: TapModel, banks: list[ConceptBank], recolour_probability: float) -> None:
        super().__init__()
        self.semantic_head, self.banks = model.image_decoder.semantic_head, banks
        config = model.config.image_decoder_config
        self.recolouring = Recolouring(banks[1], config.num_experts, config.hidden_size, recolour_probability)

    def forward(self, tokens: Tensor, concepts: Tensor) -> Tensor:
        """Mean concept loss of tokens (R, D) that should say concept vectors (R, E)."""
        return concept_loss(self.semantic_head(tokens), concepts, self.banks).mean()


class CaptionDecoder(nn.Module):
    """The caption decoder under its loss."""

    def __init__(self, model: TapModel, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.text_decoder, self.tokenizer = model.text_decoder, tokenizer

    def forward(self, tokens: Tensor, captions: Sequence[str]) -> Tensor:
        """Cross entropy of R captions' words, and of their ends, after tokens (R, D)."""
        config = self.text_decoder.config
        rows = [
            [config.bos_token_id, *self.tokenizer(text, add_special_tokens=False)["input_ids"], config.eos_token_id]
            for text in captions
        ]
        longest = max(len(row) for row in rows)
        ids = torch.tensor([row + [config.pad_token_id] * (longest - len(row)) for row in rows], device=tokens.device)
        ids = ids[:, : config.max_position_embeddings - 1]
        labels = ids.masked_fill(ids == config.pad_token_id, -100)
        labels = torch.cat([torch.full_like(labels[:, :1], -100), labels], dim=1)  # position 0 is the region
        labels[:, 1] = -100  # bos is given, not predicted
        loss: Tensor = self.text_decoder(inputs_embeds=self.text_decoder.embed(tokens, ids), labels=labels).loss
        return loss


class HeadsStage(nn.Module):
    """What reads the tokens of the frozen rest, in the colours that they have and in others."""

    def __init__(
        self,
        model: TapModel,
        banks: list[ConceptBank],
        tokenizer: PreTrainedTokenizerBase,
        arguments: PretrainArguments,
    ) -> None:
        super().__init__()
        self.tokens = FrozenTokens(model, arguments)
        self.concept = ConceptHead(model, banks, arguments.recolour_probability)
        self.caption = CaptionDecoder(model, tokenizer)

    def forward(self, batch: MaskedBatch, step: int) -> dict[str, Tensor]:
        tokens, experts = self.tokens(batch, step)
        tokens, concepts, captions = self.concept.recolouring(tokens, experts, batch.concepts, batch.captions)
        return {"concept": self.concept(tokens, concepts), "caption": self.caption(tokens, captions)}
