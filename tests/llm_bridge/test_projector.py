"""Feature rows have named parts, and the config says which projector reads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from llm_bridge import (
    FeatureLayout,
    MlpProjector,
    RegionBridgeConfig,
    RegionBridgeForConditionalGeneration,
    region_features,
)
from llm_bridge.projector import PROJECTORS
from tap_tokenizer import TapRegionTokenizer

BOX = [5.0, 5.0, 40.0, 30.0]


class LinearProjector(nn.Module):
    """One linear layer over the semantic token."""

    def __init__(self, config: RegionBridgeConfig) -> None:
        super().__init__()
        self.layout = config.feature_layout
        self.linear = nn.Linear(config.token_size, config.hidden_size)

    def forward(self, region_features: Tensor) -> Tensor:
        return self.linear(region_features[..., self.layout.token].to(self.linear.weight.dtype))


def test_the_parts_of_a_row_stand_side_by_side_and_fill_it() -> None:
    layout = FeatureLayout(token_size=32, embed_size=16, num_experts=4)
    parts = [layout.token, layout.embed, layout.box, layout.area, layout.score, layout.expert, layout.context]
    assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])]
    assert layout.position == slice(layout.box.start, layout.score.stop)
    assert layout.size == parts[-1].stop == 32 + 16 + 6 + 4 + 1


def test_a_row_holds_what_its_layout_says(tiny_tokenizer: TapRegionTokenizer, picture: Image.Image) -> None:
    regions = tiny_tokenizer.encode(picture, boxes=[BOX])
    layout = FeatureLayout.of(tiny_tokenizer.model.config)
    (row,) = region_features(regions, "routed", is_context=True)[0]
    expert = int(regions.expert[0])
    torch.testing.assert_close(row[layout.token], regions.semantic_tokens[0, expert])
    torch.testing.assert_close(row[layout.embed], regions.semantic_embeds[0, expert])
    x1, y1, x2, y2 = row[layout.box].tolist()
    assert [x1 * 90, y1 * 60, x2 * 90, y2 * 60] == pytest.approx(BOX)
    assert row[layout.area].item() == pytest.approx((x2 - x1) * (y2 - y1))
    torch.testing.assert_close(row[layout.score], regions.iou_scores[0, expert : expert + 1])
    assert row[layout.expert].argmax() == expert
    assert row[layout.context].tolist() == [1]


def test_the_config_names_the_projector(
    make_bridge: Callable[..., Any], picture: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PROJECTORS, "linear", LinearProjector)
    bridge, processor = make_bridge(projector_type="linear")
    assert isinstance(bridge.projector, LinearProjector)
    bridge.save_pretrained(tmp_path)
    loaded = RegionBridgeForConditionalGeneration.from_pretrained(tmp_path)
    assert isinstance(loaded.projector, LinearProjector)
    inputs = processor("what is <region> ?", picture, boxes=[BOX])
    torch.testing.assert_close(loaded(**inputs).logits, bridge(**inputs).logits)


def test_a_config_without_a_projector_type_is_of_the_mlp(make_bridge: Callable[..., Any]) -> None:
    bridge, _ = make_bridge()
    values = bridge.config.to_dict()
    del values["projector_type"]
    config = RegionBridgeConfig.from_dict(values)
    assert isinstance(RegionBridgeForConditionalGeneration(config).projector, MlpProjector)


def test_an_unknown_projector_is_refused(make_bridge: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="projector_type is 'resampler', expected one of mlp"):
        make_bridge(projector_type="resampler")
