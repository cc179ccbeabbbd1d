"""The image encoder: shapes, windows, and that nothing but the bottlenecks crosses them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tap_tokenizer import TapModel
from tap_tokenizer.image_encoder import relative_position_index


def test_shape(make_tap: Callable[..., TapModel]) -> None:
    encoder = make_tap().image_encoder
    assert encoder(torch.randn(2, 3, 64, 64)).shape == (2, 32, 8, 8)


def test_other_picture_sizes_are_refused(make_tap: Callable[..., TapModel]) -> None:
    with pytest.raises(ValueError, match=r"expected \(B, 3, 64, 64\): prepare pictures with TapImageProcessor"):
        make_tap().image_encoder(torch.randn(1, 3, 32, 64))


def test_windows_come_back_in_place(make_tap: Callable[..., TapModel]) -> None:
    encoder = make_tap().image_encoder
    grid = torch.randn(2, 8, 8, 32)
    assert torch.equal(encoder.merge_windows(encoder.split_windows(grid)), grid)
    first = encoder.split_windows(grid)[1]  # windows go by rows: the second is the upper right one
    assert torch.equal(first.view(4, 4, 32), grid[0, :4, 4:])


def test_only_bottlenecks_cross_windows(make_tap: Callable[..., TapModel]) -> None:
    encoder = make_tap().image_encoder
    picture = torch.randn(1, 3, 64, 64)
    changed = picture.clone()
    changed[..., :8, :8] += 1  # one patch of the upper left window

    def differs(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a != b).any(dim=1)[0]

    with torch.no_grad():
        assert differs(encoder(picture), encoder(changed))[4:, 4:].any()
        for layer in encoder.cross_window_layers:
            layer.norm3.weight.zero_(), layer.norm3.bias.zero_()
        encoder.neck.output_conv.weight[..., [0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 2, 0, 2, 0, 1, 2]] = 0
        silent = differs(encoder(picture), encoder(changed))
    assert silent[:4, :4].all()
    assert not silent[4:, :].any()
    assert not silent[:, 4:].any()


def test_relative_position_index_is_query_minus_key() -> None:
    index = relative_position_index(3, torch.device("cpu")).view(9, 9)
    query, key = 1 * 3 + 2, 2 * 3 + 0  # (y 1, x 2) looks at (y 2, x 0)
    assert index[query, key] == (1 - 2 + 2) * 5 + (2 - 0 + 2)
    assert index.min() == 0
    assert index.max() == 24


def test_stochastic_depth_only_in_training(make_tap: Callable[..., TapModel]) -> None:
    encoder = make_tap(drop_path_rate=0.5).image_encoder
    layer, windows = encoder.layers[0], torch.randn(64, 16, 32)
    assert torch.equal(layer(windows), layer(windows))
    layer.train()
    out = layer(windows)
    untouched = (out == windows).all(dim=2).all(dim=1)
    assert 0.05 < untouched.float().mean() < 0.6  # both branches dropped: about a quarter
