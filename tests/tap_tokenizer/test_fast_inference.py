"""What is computed with less work is what the plain formulation computes: pictures, regions and masks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial

import pytest
import torch
from PIL import Image

from tap_tokenizer import TapConfig, TapModel, TapRegionTokenizer, fast_inference
from tap_tokenizer.modeling_tap import TapOutput

CLOSE = {"rtol": 0, "atol": 1e-5}
PICTURES_CLOSE = {"rtol": 1e-5, "atol": 1e-5}
"""The tiny encoder's embeddings reach 20, where neighbouring float32 numbers are 2e-6 apart."""


def ask(model: TapModel, *, plain: bool, regions: int = 7, pictures: int = 3, **options: object) -> TapOutput:
    """Prompts of different lengths about several pictures, whose regions lie in no order."""
    generator = torch.Generator().manual_seed(5)
    side, width = model.config.image_encoder_config.grid_size, model.config.image_encoder_config.output_size
    embeddings = torch.randn(pictures, width, side, side, generator=generator)
    points = torch.rand(regions, 4, 2, generator=generator) * model.config.image_size
    labels = torch.randint(0, 2, (regions, 4), generator=generator)
    labels[::2, :2] = torch.tensor([2, 3])
    mask = torch.arange(4) < torch.randint(2, 5, (regions, 1), generator=generator)
    index = torch.randint(0, pictures, (regions,), generator=generator)
    model.is_plain = plain
    with torch.no_grad():
        return model(
            image_embeddings=embeddings.to(model.dtype), input_points=points, input_labels=labels, prompt_mask=mask,
            image_index=index, **options,
        )  # fmt: skip


def with_weights_that_matter(model: TapModel) -> TapModel:
    """As training leaves them: no norm at one, no bias at zero."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in model.image_decoder.parameters():
            if tensor.dim() == 1:
                tensor.add_(0.2 * torch.randn(tensor.shape, generator=generator))
    return model.eval()


@pytest.fixture(scope="module")
def paper_sized() -> TapModel:
    """An image decoder of the paper's width behind an encoder of no account, on a grid of 16 × 16."""
    torch.manual_seed(0)
    encoder = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
    text = {"num_hidden_layers": 1, "vocab_size": 8, "pad_token_id": 7}
    return with_weights_that_matter(
        TapModel(TapConfig(image_encoder_config={**encoder, "image_size": 256}, text_decoder_config=text))
    )


@pytest.mark.parametrize("output_masks", [False, True])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_regions_equal_those_of_the_plain_path(
    make_tap: Callable[..., TapModel], layers: int, output_masks: bool
) -> None:
    config = make_tap().config
    config.image_decoder_config.num_hidden_layers = layers
    torch.manual_seed(layers)
    model = with_weights_that_matter(TapModel(config))
    plain, fast = (ask(model, plain=plain, output_masks=output_masks) for plain in (True, False))
    assert (fast.pred_masks is not None) == output_masks
    for name in ("iou_scores", "semantic_tokens", "semantic_embeds", *["pred_masks"] * output_masks):
        torch.testing.assert_close(fast[name], plain[name], **CLOSE)
    assert torch.equal(fast.expert, plain.expert)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0, 2.0])
def test_masks_of_confident_answers_are_those_among_all_masks(
    make_tap: Callable[..., TapModel], monkeypatch: pytest.MonkeyPatch, plain: bool, share: float
) -> None:
    """Of regions of several pictures, which come a few at a time and in no order; for the highest share, there are none."""
    model = with_weights_that_matter(make_tap())
    monkeypatch.setattr(fast_inference, "_ROWS_AT_ONCE", 3 * model.config.image_encoder_config.grid_size**2)
    whole = ask(model, plain=plain, regions=13)
    answer = torch.arange(13), whole.expert
    scores = whole.iou_scores[answer]
    threshold = float(scores.sort().values[int(13 * share)]) if share < 1 else float(scores.max()) + share - 1
    chosen = ask(model, plain=plain, regions=13, mask_iou_thresh=threshold)
    expected = whole.pred_masks[answer][scores >= threshold]
    assert len(expected) == {0.0: 13, 0.5: 7, 1.0: 1, 2.0: 0}[share]
    torch.testing.assert_close(chosen.pred_masks, expected, **CLOSE)
    for name in ("iou_scores", "semantic_tokens", "semantic_embeds"):
        torch.testing.assert_close(chosen[name], whole[name], **CLOSE)
    assert ask(model, plain=plain, mask_iou_thresh=threshold, output_masks=False).pred_masks is None


def test_regions_at_the_papers_width(paper_sized: TapModel) -> None:
    plain, fast = (ask(paper_sized, plain=plain) for plain in (True, False))
    for name in ("iou_scores", "semantic_tokens", "semantic_embeds", "pred_masks"):
        torch.testing.assert_close(fast[name], plain[name], **CLOSE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_no_worse_than_plain(paper_sized: TapModel, dtype: torch.dtype) -> None:
    """Neither formulation is exact there: the fast one may be no further from float32 than 1.25 times the plain one."""
    exact = ask(paper_sized, plain=True)
    half = TapModel(paper_sized.config).eval()
    half.load_state_dict(paper_sized.state_dict())
    half.to(dtype)
    plain, fast = (ask(half, plain=plain) for plain in (True, False))
    for name in ("iou_scores", "semantic_tokens", "semantic_embeds", "pred_masks"):
        error, allowed = (((got[name].float() - exact[name]) ** 2).mean().sqrt() for got in (fast, plain))
        assert error <= 1.25 * allowed, name


def test_regions_do_not_depend_on_each_other(make_tap: Callable[..., TapModel]) -> None:
    model = with_weights_that_matter(make_tap())
    together = ask(model, plain=False)
    places = model.config.image_encoder_config.grid_size**2
    for at_once in (1, 3):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fast_inference, "_ROWS_AT_ONCE", at_once * places)
            alone = ask(model, plain=False)
        torch.testing.assert_close(alone.semantic_tokens, together.semantic_tokens, **CLOSE)
        torch.testing.assert_close(alone.pred_masks, together.pred_masks, **CLOSE)


@pytest.mark.parametrize("at_once", [1, 4, 5])
def test_pictures_equal_those_of_the_plain_path(
    make_tap: Callable[..., TapModel], monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(fast_inference, "_WINDOWS_AT_ONCE", at_once)
    model = make_tap(num_hidden_layers=8)
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        fast = model.get_image_embeddings(pixels)
        torch.testing.assert_close(fast, model.image_encoder(pixels), **PICTURES_CLOSE)


def test_weights_that_change_are_noticed(make_tap: Callable[..., TapModel]) -> None:
    model = make_tap()
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, seen = ask(model, plain=False), model.get_image_embeddings(pixels)
        model.image_decoder.transformer.layers[0].norm4.weight.mul_(2)
        model.prompt_encoder.coord_matrix.mul_(1.1)
        model.image_encoder.layers[1].attention.relative_position_bias.mul_(2)
        model.greedy_captions(torch.ones(2, 32), 5)
        model.text_decoder.layers[0].mlp[0].weight.mul_(-3)
        ids = model.greedy_captions(torch.ones(2, 32), 11)
        assert torch.equal(ids, model.text_decoder.caption(torch.ones(2, 32), 11, do_sample=False))
        assert torch.equal(ids, deepcopy(model).greedy_captions(torch.ones(2, 32), 11))
        changed, anew = ask(model, plain=False), model.get_image_embeddings(pixels)
        torch.testing.assert_close(anew, model.image_encoder(pixels), **PICTURES_CLOSE)
    assert not torch.allclose(changed.semantic_tokens, before.semantic_tokens, atol=1e-3)
    assert not torch.allclose(anew, seen, atol=1e-3)
    torch.testing.assert_close(changed.semantic_tokens, ask(model, plain=True).semantic_tokens, **CLOSE)


def test_weights_changed_by_a_fused_optimizer_are_noticed(make_tap: Callable[..., TapModel]) -> None:
    """A fused optimizer changes weights in place, and counts no change."""
    model = with_weights_that_matter(make_tap())
    ask(model, plain=False)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    optimizer.step()
    model.eval()
    fast, plain = (ask(model, plain=is_plain) for is_plain in (False, True))
    torch.testing.assert_close(fast.semantic_tokens, plain.semantic_tokens, rtol=1e-4, atol=1e-4)
    pictures = torch.randn(1, 3, model.config.image_size, model.config.image_size)
    with torch.no_grad():
        seen = []
        for model.is_plain in (False, True):
            seen.append(model.get_image_embeddings(pictures))
    torch.testing.assert_close(seen[0], seen[1], rtol=1e-4, atol=1e-3)


def test_the_fast_path_is_used_only_without_gradients(make_tap: Callable[..., TapModel]) -> None:
    """Never where gradients are asked for, in training mode or autocast, or where the formula itself is wanted."""
    model = make_tap()
    assert not model.is_fast
    with torch.no_grad():
        assert model.is_fast
        with torch.autocast("cpu", torch.bfloat16):
            assert not model.is_fast
            ask(model, plain=False)
        assert not model.train().is_fast
        model.eval().set_attn_implementation("eager")
        assert not model.is_fast
        model.set_attn_implementation("sdpa")
        model.is_plain = True
        assert not model.is_fast
        assert make_tap().to("meta").is_fast  # a device that knows no autocast


def test_the_region_tokenizer_uses_the_fast_path(
    tiny_tokenizer: TapRegionTokenizer, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for kind in ("image_encoder", "image_decoder", "text_decoder"):
        part = getattr(tiny_tokenizer.model, kind)
        monkeypatch.setattr(type(part), "forward", lambda *_, kind=kind, **__: calls.append(kind))
    tiny_tokenizer.caption(tiny_tokenizer.encode(picture, boxes=[[1, 2, 30, 40], [5, 5, 20, 20]]), return_ids=True)
    assert calls == []


# --- by torch.compile ---------------------------------------------------------------------------------------------------


@pytest.fixture(params=["traced", pytest.param("compiled", marks=pytest.mark.slow)])
def compiler(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`torch.compile`, which must get all of it in one piece; without the machine's compiler, or with it."""
    if request.param == "compiled" and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        pytest.skip("torch.compile needs a C++ compiler")
    backend = {"traced": "eager", "compiled": "inductor"}[request.param]
    fast_inference._compiled_encoding.cache_clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend, fullgraph=True))
    yield
    fast_inference._compiled_encoding.cache_clear()


@pytest.mark.usefixtures("compiler")
@torch.no_grad()
def test_a_compiled_encoder_gives_the_same_pictures(make_tap: Callable[..., TapModel]) -> None:
    model = make_tap().eval()
    pixels = torch.randn(2, 3, model.config.image_size, model.config.image_size)
    wanted = model.get_image_embeddings(pixels)
    other = deepcopy(model)
    for layer in other.image_encoder.layers:
        layer.mlp[2].weight.mul_(-1)
    others = other.get_image_embeddings(pixels)
    for copied, result in ((model, wanted), (deepcopy(model), wanted), (other, others)):
        copied.compile_encoder()
        torch.testing.assert_close(copied.get_image_embeddings(pixels), result, **PICTURES_CLOSE)
    assert not torch.allclose(others, wanted, atol=1e-2)


def test_an_encoder_is_compiled_or_in_int8(make_tap: Callable[..., TapModel]) -> None:
    model = make_tap().eval()
    model.encoder_precision = "int8"
    with pytest.raises(ValueError, match="expected one of them: leave out the other"):
        model.compile_encoder()
    model.encoder_precision = "float32"
    model.compile_encoder()
    with pytest.raises(ValueError, match="Got encoder_precision 'int8' and compile_encoder"):
        model.encoder_precision = "int8"
    assert model.encoder_precision == "float32"
