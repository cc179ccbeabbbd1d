"""The image decoder: shapes, absent points, and that masks are extra."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tap_tokenizer import TapModel


def decode(model: TapModel, regions: int, points: int, **options: object) -> object:
    torch.manual_seed(3)
    side = model.config.image_encoder_config.grid_size
    return model.image_decoder(
        image_embeddings=torch.randn(regions, 32, side, side),
        image_positions=model.prompt_encoder.encode_grid(side),
        prompt_embeddings=torch.randn(regions, points, 32),
        **options,
    )


def test_outputs_have_a_row_for_each_region_and_expert(make_tap: Callable[..., TapModel]) -> None:
    out = decode(make_tap(), 3, 2)
    assert out.iou_scores.shape == (3, 4)
    assert out.semantic_tokens.shape == (3, 4, 32)
    assert out.semantic_embeds.shape == (3, 4, 16)
    assert out.pred_masks.shape == (3, 4, 32, 32)


def test_tokens_do_not_need_masks(make_tap: Callable[..., TapModel]) -> None:
    model = make_tap()
    with_masks, without = decode(model, 2, 3), decode(model, 2, 3, output_masks=False)
    assert without.pred_masks is None
    assert torch.equal(with_masks.semantic_tokens, without.semantic_tokens)


def test_masked_points_change_nothing(make_tap: Callable[..., TapModel]) -> None:
    model = make_tap()
    side = model.config.image_encoder_config.grid_size
    torch.manual_seed(0)
    image, prompt = torch.randn(1, 32, side, side), torch.randn(1, 5, 32)
    arguments = {"image_embeddings": image, "image_positions": model.prompt_encoder.encode_grid(side)}
    mask = torch.tensor([[True, True, False, False, False]])
    padded = model.image_decoder(**arguments, prompt_embeddings=prompt, prompt_mask=mask)
    short = model.image_decoder(**arguments, prompt_embeddings=prompt[:, :2])
    for name in ("semantic_tokens", "iou_scores", "pred_masks"):
        torch.testing.assert_close(getattr(padded, name), getattr(short, name), rtol=0, atol=1e-5)
