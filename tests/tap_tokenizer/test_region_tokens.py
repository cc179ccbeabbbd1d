"""The value `RegionTokens`: indexing, joining, moving, keeping."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tap_tokenizer import RegionTokens, TapRegionTokenizer

BOXES = [[5, 5, 40, 30], [20, 10, 85, 55], [0, 0, 90, 60]]


@pytest.fixture
def regions(tiny_tokenizer: TapRegionTokenizer, picture: Image.Image) -> RegionTokens:
    return tiny_tokenizer.encode(picture, boxes=BOXES)


def test_tokens_are_those_of_the_answering_expert(regions: RegionTokens) -> None:
    for i in range(3):
        expert = int(regions.expert[i])
        assert torch.equal(regions.tokens[i], regions.semantic_tokens[i, expert])
        assert torch.equal(regions.embeds[i], regions.semantic_embeds[i, expert])
        assert regions.scores[i] == regions.iou_scores[i, expert]


@pytest.mark.parametrize(
    ("index", "want"),
    [
        ([2, 0], [2, 0]),
        (slice(0, 3, 2), [0, 2]),
        (torch.tensor([2, 0]), [2, 0]),
        (np.array([True, False, True]), [0, 2]),
        ([True, False, True], [0, 2]),
        ([], []),
        (-1, [2]),
        (1, [1]),
        (np.int64(1), [1]),
        (torch.tensor(2), [2]),
    ],
)
def test_indexing_selects_regions(regions: RegionTokens, index: object, want: list[int]) -> None:
    got = regions[index]  # type: ignore[index]
    assert torch.equal(got.boxes, regions.boxes[want])
    assert torch.equal(got.masks, regions.masks[want])
    assert len(got) == len(want)


def test_indexing_outside_is_an_error(regions: RegionTokens) -> None:
    with pytest.raises(IndexError, match="Got region 3 of 3"):
        regions[3]
    with pytest.raises(IndexError, match="Got image 1 of 1"):
        regions.of_image(1)
    assert [len(region) for region in regions] == [1, 1, 1]  # iteration stops by IndexError


def test_joined_regions_keep_their_pictures(
    tiny_tokenizer: TapRegionTokenizer, picture: Image.Image, other_picture: Image.Image
) -> None:
    a = tiny_tokenizer.encode(picture, boxes=BOXES[:2])
    b = tiny_tokenizer.encode(other_picture, boxes=[[0, 0, 30, 30]])
    joined = RegionTokens.concatenate([a, b])
    assert joined.image_index.tolist() == [0, 0, 1]
    assert joined.image_sizes.tolist() == [[60, 90], [80, 40]]
    assert torch.equal(joined.of_image(1).masks, b.masks)
    with pytest.raises(ValueError, match=r"pictures of 2 sizes, .*of_image\(i\)"):
        joined.masks  # noqa: B018
    again = RegionTokens.concatenate([a[0], a[1]], same_images=True)
    assert again.image_index.tolist() == [0, 0]
    assert torch.equal(again.masks, a.masks)
    with pytest.raises(ValueError, match="differ in number or size"):
        RegionTokens.concatenate([a, b], same_images=True)
    with pytest.raises(ValueError, match="expected at least one"):
        RegionTokens.concatenate([])


def test_regions_of_different_tokenizers_are_not_joined(regions: RegionTokens) -> None:
    from dataclasses import replace

    with pytest.raises(ValueError, match="tokens of different tokenizers"):
        RegionTokens.concatenate([regions, replace(regions, fingerprint="other")])


def test_tokens_travel_without_the_model(regions: RegionTokens) -> None:
    """What was computed goes along; what the model would compute does not, nor does the model."""
    packed = pickle.dumps(regions)
    assert len(packed) < 20 * sum(getattr(regions, name).nbytes for name in ("semantic_tokens", "semantic_embeds"))
    there = pickle.loads(packed)
    assert torch.equal(there.semantic_tokens, regions.semantic_tokens)
    with pytest.raises(ValueError, match="kept without masks"):
        _ = there.masks
    masks = regions.masks
    assert torch.equal(pickle.loads(pickle.dumps(regions)).masks, masks)
    with pytest.raises(ValueError, match="kept without masks"):
        _ = regions.without_masks().masks
    assert torch.equal(regions.masks, masks)


def test_half_precision_leaves_scores_boxes_and_masks(regions: RegionTokens) -> None:
    half = regions.to("cpu", torch.float16)
    assert half.tokens.dtype == half.embeds.dtype == torch.float16
    assert half.iou_scores.dtype == half.boxes.dtype == torch.float32
    assert torch.equal(half.masks, regions.masks)


def test_saved_tokens_load_unchanged(regions: RegionTokens, tmp_path: Path) -> None:
    regions.save(tmp_path / "plain.safetensors")
    plain = RegionTokens.load(tmp_path / "plain.safetensors")
    assert torch.equal(plain.semantic_tokens, regions.semantic_tokens)
    assert plain.fingerprint == regions.fingerprint
    with pytest.raises(ValueError, match="kept without masks: encode again, or save with_masks=True"):
        plain.masks  # noqa: B018
    regions.save(tmp_path / "masks.safetensors", with_masks=True)
    assert torch.equal(RegionTokens.load(tmp_path / "masks.safetensors").masks, regions.masks)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["masks.safetensors", "plain.safetensors"]


def test_masks_of_pictures_of_several_sizes_are_saved(
    tiny_tokenizer: TapRegionTokenizer, picture: Image.Image, other_picture: Image.Image, tmp_path: Path
) -> None:
    regions = tiny_tokenizer.encode([picture, other_picture], boxes=[BOXES, [[0, 0, 30, 30]]])
    regions.save(tmp_path / "x.safetensors", with_masks=True)
    loaded = RegionTokens.load(tmp_path / "x.safetensors")
    for i in range(2):
        assert torch.equal(loaded.of_image(i).masks, regions.of_image(i).masks)


def test_no_regions_can_be_kept(tiny_tokenizer: TapRegionTokenizer, picture: Image.Image, tmp_path: Path) -> None:
    tiny_tokenizer.encode(picture, boxes=[]).save(tmp_path / "x.safetensors", with_masks=True)
    assert len(RegionTokens.load(tmp_path / "x.safetensors")) == 0


def test_other_files_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="holds no region tokens"):
        RegionTokens.load(tmp_path / "x.safetensors")


def test_repr_says_what_it_is(regions: RegionTokens) -> None:
    assert repr(regions).startswith("RegionTokens(3 regions of 1 image, experts=4, width=32")


@pytest.mark.parametrize("with_masks", [False, True])
def test_a_file_that_save_did_not_write_is_refused(regions: RegionTokens, tmp_path: Path, with_masks: bool) -> None:
    """Tensors that are missing, surplus, of other types and shapes, or that point at what is not there."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = tmp_path / "regions.safetensors"
    regions.save(path, with_masks=True)
    with safe_open(path, framework="pt") as file:
        whole, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    if not with_masks:
        del whole["masks_packed"]

    def told(change: dict[str, torch.Tensor | None], about: dict[str, str] | None = None) -> str:
        tensors = {name: tensor for name, tensor in {**whole, **change}.items() if tensor is not None}
        save_file(tensors, path, metadata=metadata if about is None else about)
        with pytest.raises(ValueError, match=r"^/.*regions\.safetensors ") as refusal:
            RegionTokens.load(path)
        return str(refusal.value)

    assert "lacks ['boxes'] and has unexpected []" in told({"boxes": None})
    assert "has unexpected ['more']" in told({"more": torch.zeros(1)})
    assert "holds expert [99, 99, 99], expected 0 to 3" in told({"expert": torch.full((3,), 99)})
    assert "holds expert" in told({"expert": torch.tensor([0, -1, 0])})
    assert "holds image_index" in told({"image_index": torch.tensor([0, 1, 0])})
    assert "a picture without pixels" in told({"image_sizes": torch.tensor([[0, 90]])})
    for name in ("semantic_tokens", "semantic_embeds", "iou_scores", "expert", "boxes", "image_index"):
        assert f"holds {name}" in told({name: whole[name][:2]}) or "does not fit" in told({name: whole[name][:2]})
        assert f"holds {name} of shape" in told({name: whole[name].to(torch.complex64)})
        assert "does not fit the rest" in told({name: whole[name].unsqueeze(0).contiguous()})
    assert "holds expert of shape (3,) and type torch.float32" in told({"expert": whole["expert"].float()})
    assert "does not say which region tokenizer" in told({}, {**metadata, "fingerprint": "[]"})
    assert "does not say which region tokenizer" in told({}, {"format": metadata["format"]})
    for packed in (torch.zeros(3, dtype=torch.uint8), torch.zeros(10**6, dtype=torch.uint8), torch.zeros(2025)):
        assert "holds masks whose size differs" in told({"masks_packed": packed})
    save_file(whole, path, metadata=metadata)
    assert torch.equal(RegionTokens.load(path).semantic_tokens, regions.semantic_tokens)
