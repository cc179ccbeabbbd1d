"""The prompt encoder: geometry in the model frame, and the meaning of labels."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tap_tokenizer import PointLabel, TapModel


def test_the_grid_is_the_same_code_as_points(make_tap: Callable[..., TapModel]) -> None:
    encoder = make_tap().prompt_encoder
    grid = encoder.encode_grid(8)
    centre = torch.tensor([[[8 * 3 + 3.5, 8 * 5 + 3.5]]])  # the middle of column 3, row 5, in pixels
    point = encoder(centre, torch.tensor([[PointLabel.FOREGROUND]]))[0, 0]
    foreground = encoder.label_embed.weight[PointLabel.FOREGROUND]
    torch.testing.assert_close(point - foreground, grid[5 * 8 + 3], rtol=0, atol=1e-5)


def test_padding_points_have_no_position(make_tap: Callable[..., TapModel]) -> None:
    encoder = make_tap().prompt_encoder
    points = torch.tensor([[[3.0, 4.0], [50.0, 60.0]]])
    out = encoder(points, torch.full((1, 2), int(PointLabel.PADDING)))
    assert torch.equal(out[0, 0], out[0, 1])
    assert torch.equal(out[0, 0], encoder.label_embed.weight[PointLabel.PADDING])


def test_points_outside_the_frame_count_as_its_edge(make_tap: Callable[..., TapModel]) -> None:
    encoder = make_tap().prompt_encoder
    label = torch.tensor([[1]])
    outside, edge = encoder(torch.tensor([[[-40.0, 999.0]]]), label), encoder(torch.tensor([[[-0.5, 63.5]]]), label)
    assert torch.equal(outside, edge)


def test_positions_stay_exact_in_half_precision(make_tap: Callable[..., TapModel]) -> None:
    model = make_tap()
    exact = model.prompt_encoder.coord_matrix.clone()
    for dtype in (torch.bfloat16, torch.float16):
        moved = model.to(dtype).prompt_encoder
        assert moved.coord_matrix.dtype == torch.float32
        assert torch.equal(moved.coord_matrix, exact)
        assert moved.encode_grid(4).dtype == dtype
