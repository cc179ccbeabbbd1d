"""The losses of TAP's training (focal and dice on masks, squared error on IoU, KL on concepts) and of a bridge's words.

TAP's formulas are those of the authors' released loss layers (focal: α 0.25, γ 2; dice: ε 1). Focal, dice, IoU and concept
weigh 20 : 1 : 1 : 1. The first three weights are SAM's, which the paper follows; the fourth is not published and is our
choice. Each of TAP's functions gives one number per region.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tap_tokenizer import ConceptBank


def focal_loss(logits: Tensor, target: Tensor, alpha: float = 0.25) -> Tensor:
    """Binary focal loss of mask logits (..., M, M) against cover 0 … 1 of the same shape → (...)."""
    probability = logits.sigmoid()
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    hardness = ((1 - probability) * target + probability * (1 - target)).square()
    weight = alpha * target + (1 - alpha) * (1 - target)
    return (loss * hardness * weight).mean(dim=(-2, -1))


def dice_loss(logits: Tensor, target: Tensor, eps: float = 1.0) -> Tensor:
    """1 − 2·overlap / (sum of both), softened by `eps`: (..., M, M) → (...)."""
    probability = logits.sigmoid()
    overlap = (probability * target).sum(dim=(-2, -1))
    return 1 - (2 * overlap + eps) / (probability.sum(dim=(-2, -1)) + target.sum(dim=(-2, -1)) + eps)


def mask_iou(predicted: Tensor, target: Tensor) -> Tensor:
    """IoU of boolean masks (..., M, M) → (...); 1 where both are empty."""
    overlap = (predicted & target).sum(dim=(-2, -1))
    union = (predicted | target).sum(dim=(-2, -1))
    return torch.where(union > 0, overlap / union.clamp(min=1), 1.0)


def enlarged(logits: Tensor, side: int) -> Tensor:
    """Mask logits (R, K, M, M) → (R, K, `side`, `side`), bilinear, as masks are brought to a picture's size."""
    if logits.shape[-1] == side:
        return logits
    return F.interpolate(logits, (side, side), mode="bilinear", align_corners=False)


def concept_loss(semantic_embeds: Tensor, target: Tensor, banks: Sequence[ConceptBank]) -> Tensor:
    """KL from the target vectors' distribution over concepts to the embeddings', (R, E) each → (R,).

    Section 3.1 of the paper; the sum over banks, so that a name of many words (kind, colour, size) has each learned.
    """
    total = torch.zeros(len(target), device=target.device)
    for bank in banks:
        wanted = bank.scores(target)
        weights = bank.weights.to(target.device)
        logits = F.normalize(semantic_embeds.float(), dim=-1) @ weights
        total = total + F.kl_div(logits.log_softmax(dim=-1), wanted, reduction="none").sum(dim=-1)
    return total


def prompted_losses(
    pred_masks: Tensor,
    iou_scores: Tensor,
    semantic_embeds: Tensor,
    is_box: Tensor,
    masks: Tensor,
    concepts: Tensor,
    banks: Sequence[ConceptBank],
    weights: tuple[float, float, float, float] = (20.0, 1.0, 1.0, 1.0),
) -> tuple[dict[str, Tensor], Tensor]:
    """All four losses of R prompted regions, averaged, and the expert that each one trained, (R,).

    pred_masks (R, K, M, M) and semantic_embeds (R, K, E) of all experts; masks (R, N, N) as cover 0 … 1. Where N is not M,
    logits are enlarged to it, as they are for the user's mask, and that is what is judged.
    A box trains expert 0. A point trains, of the others, the one whose mask is nearest (as SAM does with its three), so
    that they specialise; the IoU scores of all that might have answered are trained.
    """
    may_answer = torch.ones_like(iou_scores, dtype=torch.bool)
    may_answer[:, 0] = is_box
    may_answer[:, 1:] = ~is_box[:, None]
    with torch.no_grad():  # who learns is settled first, so that gradients are kept for that expert alone
        target = F.adaptive_avg_pool2d(masks, pred_masks.shape[-1])[:, None].expand_as(pred_masks)
        distance = weights[0] * focal_loss(pred_masks, target) + weights[1] * dice_loss(pred_masks, target)
        nearest = distance.masked_fill(~may_answer, torch.inf).argmin(dim=1)
        true_iou = mask_iou(enlarged(pred_masks, masks.shape[-1]) > 0, masks[:, None] > 0.5)
    row = torch.arange(len(masks), device=masks.device)
    chosen = enlarged(pred_masks[row, nearest][:, None], masks.shape[-1])[:, 0]
    squared = (iou_scores - true_iou).square() * may_answer
    losses = {
        "focal": weights[0] * focal_loss(chosen, masks).mean(),
        "dice": weights[1] * dice_loss(chosen, masks).mean(),
        "iou": weights[2] * (squared.sum() / may_answer.sum()),
        "concept": weights[3] * concept_loss(semantic_embeds[row, nearest], concepts, banks).mean(),
    }
    return losses, nearest


def words_learned(batch: Mapping[str, Tensor]) -> int:
    """How many words of a batch of conversations are learned."""
    return int((batch["labels"][:, 1:] != -100).sum())


def taught_loss(model: nn.Module, batch: Mapping[str, Tensor], teacher: Tensor, share: float) -> dict[str, Tensor]:
    """The loss of a batch of conversations of which some have a teacher, summed over the words that it learns.

    Of words that have one, it is `share` of KL, which is also given alone, and the rest of cross entropy; see `word_losses`. In
    a conversation `in_words`, all of it is KL: its answers were sampled, and some were cut off.
    """
    entropy, kl, taught = word_losses(model, batch, teacher)
    shares = taught * torch.where(batch["in_words"][_rows_learned(batch)], 1.0, share)
    return {"loss": ((1 - shares) * entropy + shares * kl).sum(), "kl": (shares * kl).sum()}


def word_losses(model: nn.Module, batch: Mapping[str, Tensor], teacher: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each word (N,) that a batch learns, row by row: cross entropy, KL in nats from the teacher's distribution, which is
    0 where the word has no teacher, and whether it has one.

    teacher: logits (M, V) for the words of the rows that `is_taught` (B,) marks.
    """
    logits, words = learned_logits(model, batch)
    taught = batch["is_taught"][_rows_learned(batch)]
    entropy = F.cross_entropy(logits, words, reduction="none")
    wanted = teacher.float().log_softmax(dim=-1)
    kl = F.kl_div(logits[taught].log_softmax(dim=-1), wanted, reduction="none", log_target=True).sum(dim=-1)
    return entropy, torch.zeros_like(entropy).masked_scatter(taught, kl), taught


def _rows_learned(batch: Mapping[str, Tensor]) -> Tensor:
    """The row (N,) of each word that a batch learns."""
    return (batch["labels"][:, 1:] != -100).nonzero()[:, 0]


_TARGETS = ("labels", "is_taught", "in_words", "told")
"""What a batch of conversations holds beside the model's inputs."""


def summed_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Cross entropy summed over the words that a batch of conversations learns."""
    logits, words = learned_logits(model, batch)
    return F.cross_entropy(logits, words, reduction="sum")


def learned_logits(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Logits (N, V), float32, for each word that a batch learns, row by row, and these words (N,).

    No other logits are computed: of a small language model with a large vocabulary, they are a fifth of the work.
    """
    learned = F.pad(batch["labels"][:, 1:] != -100, (0, 1))
    inputs = {name: value for name, value in batch.items() if name not in _TARGETS}
    logits = model(**inputs, logits_to_keep=learned, use_cache=False).logits
    return logits.float(), batch["labels"][:, 1:][learned[:, :-1]]
