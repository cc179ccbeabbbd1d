"""Losses: their formulas on cases that can be worked out, and who learns from whom."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("accelerate")

from torch import Tensor, nn
from transformers.utils import ModelOutput

from finetune.losses import (
    concept_loss,
    dice_loss,
    enlarged,
    focal_loss,
    mask_iou,
    prompted_losses,
    summed_loss,
    taught_loss,
    word_losses,
)
from tap_tokenizer import ConceptBank


def test_focal_loss_by_hand() -> None:
    logits, target = torch.zeros(1, 2, 2), torch.tensor([[[1.0, 0], [0, 0]]])
    # p is one half everywhere: −log ½ · ¼ · α, with α ¼ on the target and ¾ off it
    want = torch.log(torch.tensor(2.0)) * 0.25 * (0.25 + 3 * 0.75) / 4
    torch.testing.assert_close(focal_loss(logits, target), want[None])


def test_dice_loss_by_hand() -> None:
    target = torch.tensor([[[1.0, 1], [0, 0]]])
    assert dice_loss(100 * (2 * target - 1), target).item() == pytest.approx(0, abs=1e-6)
    assert dice_loss(-100 * (2 * target - 1), target).item() == pytest.approx(1 - 1 / 5)
    torch.testing.assert_close(dice_loss(torch.zeros(1, 2, 2), target), torch.tensor([1 - 3 / 5]))


def test_mask_iou_is_a_share_and_1_for_empty_masks() -> None:
    a, b = torch.tensor([[True, True], [False, False]]), torch.tensor([[True, False], [True, False]])
    assert mask_iou(a[None], b[None]).item() == pytest.approx(1 / 3)
    assert mask_iou(a[None] & False, b[None] & False).item() == 1


def test_concept_loss_is_kl() -> None:
    bank = ConceptBank.from_vectors(["a", "b"], torch.eye(2), 3.0)
    target = torch.tensor([[1.0, 0.0]])
    assert concept_loss(target * 5, target, [bank]).item() == pytest.approx(0, abs=1e-6)  # length does not matter
    other = concept_loss(torch.tensor([[0.0, 1.0]]), target, [bank])
    p, q = torch.softmax(torch.tensor([3.0, 0.0]), 0), torch.softmax(torch.tensor([0.0, 3.0]), 0)
    torch.testing.assert_close(other, (p * (p / q).log()).sum()[None])
    torch.testing.assert_close(concept_loss(torch.tensor([[0.0, 1.0]]), target, [bank, bank]), 2 * other)


def test_boxes_train_expert_0_and_points_their_nearest() -> None:
    torch.manual_seed(0)
    target = torch.zeros(2, 8, 8)
    target[:, 2:6, 2:6] = 1
    logits = torch.randn(2, 4, 8, 8)
    logits[1, 2] = 4 * (2 * target[1] - 1)  # expert 2 has the mask right
    logits[1, 0] = 9 * (2 * target[1] - 1)  # expert 0 even more, but it answers boxes alone
    logits.requires_grad_()
    scores = torch.rand(2, 4, requires_grad=True)
    embeds = torch.randn(2, 4, 3, requires_grad=True)
    bank = ConceptBank.from_vectors(["a", "b", "c"], torch.eye(3), 5.0)
    losses, nearest = prompted_losses(
        logits, scores, embeds, torch.tensor([True, False]), target, torch.eye(3)[:2], [bank]
    )
    assert nearest.tolist() == [0, 2]
    sum(losses.values()).backward()
    assert [bool(g) for g in logits.grad.abs().sum(dim=(2, 3)).flatten() > 0] == [
        True,
        False,
        False,
        False,
        False,
        False,
        True,
        False,
    ]
    assert (scores.grad != 0).tolist() == [[True, False, False, False], [False, True, True, True]]
    assert (embeds.grad.abs().sum(dim=2) > 0).tolist() == [[True, False, False, False], [False, False, True, False]]


def test_masks_are_judged_at_the_size_of_the_truth() -> None:
    target = torch.zeros(1, 8, 8)
    target[:, 2:6, 2:6] = 1
    logits = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    logits[0, 1] = 4 * (2 * target[0, ::2, ::2] - 1)
    scores, embeds = torch.full((1, 4), 0.5), torch.zeros(1, 4, 3)
    bank = ConceptBank.from_vectors(["a", "b", "c"], torch.eye(3), 5.0)
    losses, nearest = prompted_losses(
        logits, scores, embeds, torch.tensor([False]), target, torch.eye(3)[:1], [bank], (1.0, 1.0, 1.0, 1.0)
    )
    assert nearest.tolist() == [1]
    large = torch.nn.functional.interpolate(logits, (8, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(enlarged(logits, 8), large)
    torch.testing.assert_close(losses["focal"], focal_loss(large[0, 1], target[0]))
    torch.testing.assert_close(losses["dice"], dice_loss(large[0, 1], target[0]))
    wanted = mask_iou(large[0, 1:] > 0, target.expand(3, -1, -1) > 0.5)
    torch.testing.assert_close(losses["iou"], (0.5 - wanted).square().mean())
    assert enlarged(logits, 4) is logits


# --- words --------------------------------------------------------------------------------------------------------------


class _Table(nn.Module):
    """A language model whose logits depend on the last word alone."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(7, 7, generator=torch.Generator().manual_seed(0)))

    def forward(self, input_ids: Tensor, logits_to_keep: Tensor, use_cache: bool) -> ModelOutput:
        return ModelOutput(logits=self.table[input_ids[logits_to_keep]])


@pytest.fixture
def taught() -> dict[str, Tensor]:
    """Two conversations of which the second has a teacher: three words are learned of the first, two of the second."""
    ids = torch.tensor([[1, 2, 3, 4, 5], [6, 5, 4, 3, 0]])
    labels = torch.tensor([[-100, -100, 3, 4, 5], [-100, -100, 4, 3, -100]])
    return {
        "input_ids": ids,
        "labels": labels,
        "is_taught": torch.tensor([False, True]),
        "in_words": torch.tensor([False, False]),
    }


def test_a_student_that_is_its_teacher_has_no_kl(taught: dict[str, Tensor]) -> None:
    model = _Table()
    entropy, kl, is_taught = word_losses(model, taught, model.table[[5, 4]])
    assert is_taught.tolist() == [False, False, False, True, True]
    assert kl.abs().max() < 1e-6
    torch.testing.assert_close(entropy.sum(), summed_loss(model, taught))


def test_what_is_taught_mixes_kl_and_cross_entropy_by_its_share(taught: dict[str, Tensor]) -> None:
    model, teacher = _Table(), torch.randn(2, 7)
    student, wanted = model.table[[5, 4]].log_softmax(dim=-1), teacher.softmax(dim=-1)
    kl = (wanted * (wanted.log() - student)).sum()
    alone = {name: value[:1] for name, value in taught.items()}
    own = -student[[0, 1], [4, 3]].sum()
    for share in (0.0, 0.3, 1.0):
        found = taught_loss(model, taught, teacher, share)
        torch.testing.assert_close(found["kl"], share * kl)
        torch.testing.assert_close(found["loss"], summed_loss(model, alone) + share * kl + (1 - share) * own)
        in_words = taught_loss(model, {**taught, "in_words": torch.tensor([True, True])}, teacher, share)
        torch.testing.assert_close(in_words["loss"], summed_loss(model, alone) + kl)  # of what has a teacher, KL alone
