"""`TapModel` as a citizen of transformers: saving, dtypes, devices, initial weights, attention, and the paper's shapes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModel
from transformers.dynamic_module_utils import get_relative_import_files

from tap_tokenizer import TapConfig, TapModel, TapRegionTokenizer
from tap_tokenizer import attention as attention_module

DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available()


def ask(model: TapModel, seed: int = 0, **options: object) -> object:
    torch.manual_seed(seed)
    size = model.config.image_size
    pixels = torch.randn(2, 3, size, size, device=model.device, dtype=model.dtype)
    points = torch.rand(3, 2, 2, device=model.device) * size
    labels = torch.tensor([[2, 3], [1, 4], [0, 4]], device=model.device)
    index = torch.tensor([0, 1, 1], device=model.device)
    with torch.no_grad():
        return model(pixels, input_points=points, input_labels=labels, image_index=index, **options)


def test_saving_and_auto_class(make_tap: Callable[..., TapModel], tmp_path: Path) -> None:
    model = make_tap()
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    for loaded in (TapModel.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert isinstance(loaded, TapModel)
        assert not loaded.training
        for name, tensor in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor), name
        assert torch.equal(ask(loaded).semantic_tokens, ask(model).semantic_tokens)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("device", DEVICES)
def test_half_precision(make_tap: Callable[..., TapModel], tmp_path: Path, dtype: torch.dtype, device: str) -> None:
    model = make_tap()
    model.save_pretrained(tmp_path)
    exact = ask(model)
    half = TapModel.from_pretrained(tmp_path, dtype=dtype).to(device)
    assert half.dtype == dtype
    assert half.prompt_encoder.coord_matrix.dtype == torch.float32
    got = ask(half)
    assert got.semantic_tokens.dtype == dtype
    assert got.iou_scores.dtype == torch.float32
    scale = exact.semantic_tokens.abs().mean()
    error = (got.semantic_tokens.float().cpu() - exact.semantic_tokens).abs().mean() / scale
    assert error < (0.15 if dtype == torch.bfloat16 else 0.03)  # 8 and 11 bits of mantissa through four layers


@pytest.mark.parametrize("device", DEVICES[1:])
def test_devices_agree(make_tap: Callable[..., TapModel], device: str) -> None:
    torch.testing.assert_close(
        ask(make_tap().to(device)).semantic_tokens.cpu(), ask(make_tap()).semantic_tokens, rtol=0, atol=1e-3
    )


def test_eager_and_sdpa_agree(make_tap: Callable[..., TapModel], monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_tap()
    used: list[str | None] = []
    plain = attention_module.attend

    def spy(*args: torch.Tensor, implementation: str | None, **kwargs: object) -> torch.Tensor:
        used.append(implementation)
        return plain(*args, implementation=implementation, **kwargs)

    for part in ("image_encoder", "image_decoder", "text_decoder"):
        monkeypatch.setattr(f"tap_tokenizer.{part}.attend", spy)
    outputs = []
    for name in ("sdpa", "eager"):
        model.set_attn_implementation(name)
        used.clear()
        outputs.append(ask(model))
        model.text_decoder(inputs_embeds=torch.zeros(1, 2, 32))
        assert set(used) == {name}
    torch.testing.assert_close(outputs[0].semantic_tokens, outputs[1].semantic_tokens, rtol=0, atol=1e-5)
    torch.testing.assert_close(outputs[0].pred_masks, outputs[1].pred_masks, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match='expected "sdpa" or "eager"'):
        model.set_attn_implementation("flash_attention_2")


def test_attention_can_be_chosen_at_loading(make_tap: Callable[..., TapModel], tmp_path: Path) -> None:
    make_tap().save_pretrained(tmp_path)
    model = TapModel.from_pretrained(tmp_path, attn_implementation="eager")
    assert model.image_encoder.config._attn_implementation == "eager"
    assert model.text_decoder.config._attn_implementation == "eager"


def test_box_takes_expert_0_and_points_the_best_of_the_others() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.2, 0.3], [0.9, 0.1, 0.2, 0.3], [0.5, 0.4, 0.1, 0.2]])
    labels = torch.tensor([[2, 3, 1], [1, 0, 4], [0, 4, 4]])
    assert TapModel.route(scores, labels).tolist() == [0, 3, 1]


def test_embeddings_of_an_earlier_call_serve_again(make_tap: Callable[..., TapModel]) -> None:
    model = make_tap()
    first = ask(model)
    torch.manual_seed(0)
    torch.randn(2, 3, 64, 64)
    points = torch.rand(3, 2, 2) * 64
    with torch.no_grad():
        again = model(
            image_embeddings=first.image_embeddings, input_points=points, image_index=torch.tensor([0, 1, 1]),
            input_labels=torch.tensor([[2, 3], [1, 4], [0, 4]]),
        )  # fmt: skip
    assert torch.equal(again.semantic_tokens, first.semantic_tokens)


def test_ambiguous_inputs_are_refused(make_tap: Callable[..., TapModel]) -> None:
    model, points = make_tap(), {"input_points": torch.zeros(1, 2, 2), "input_labels": torch.tensor([[2, 3]])}
    with pytest.raises(ValueError, match="both or neither of pixel_values and image_embeddings"):
        model(**points)
    with pytest.raises(ValueError, match="2 pictures but no image_index"):
        model(torch.zeros(2, 3, 64, 64), **points)


def test_weights_missing_from_a_checkpoint_are_initialised(make_tap: Callable[..., TapModel], tmp_path: Path) -> None:
    """transformers builds models without memory and fills what the file lacks: no buffer may come back as garbage."""
    from safetensors.torch import load_file, save_file

    model = make_tap()
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    lacking = [
        "prompt_encoder.coord_matrix", "image_encoder.neck.lateral_norm.running_var", "image_decoder.iou_token",
        "image_encoder.position_embed", "image_encoder.layers.0.attention.relative_position_bias",
        "image_encoder.cross_window_layers.0.norm1.num_batches_tracked", "text_decoder.lm_head.weight",
    ]  # fmt: skip
    save_file({k: v for k, v in weights.items() if k not in lacking}, tmp_path / "model.safetensors", {"format": "pt"})
    loaded = TapModel.from_pretrained(tmp_path).state_dict()
    for name in lacking:
        assert torch.isfinite(loaded[name].float()).all(), name
        assert loaded[name].abs().max() < 10, name
    assert torch.equal(loaded["image_encoder.neck.lateral_norm.running_var"], torch.ones(32))
    assert loaded["prompt_encoder.coord_matrix"].std() > 0.5
    for name in set(weights) - set(lacking):
        assert torch.equal(loaded[name], weights[name]), name


def test_fingerprint_tells_weights_apart(make_tap: Callable[..., TapModel], tmp_path: Path) -> None:
    model = make_tap()
    first = model.fingerprint
    assert first == make_tap().fingerprint != make_tap(seed=1).fingerprint
    with torch.no_grad():
        model.text_decoder.lm_head.weight.add_(1)
    assert model.compute_fingerprint() == first  # captions are not tokens
    model.save_pretrained(tmp_path)
    for dtype in (torch.float32, torch.bfloat16):
        assert TapModel.from_pretrained(tmp_path, dtype=dtype).fingerprint == first
    with torch.no_grad():
        model.image_decoder.semantic_tokens.add_(1e-3)
    model.save_pretrained(tmp_path)
    assert TapModel.from_pretrained(tmp_path).fingerprint != first


def test_the_hubs_code_saver_finds_every_file() -> None:
    """It follows `from .x import` inside one folder and nothing else."""
    package = Path(__file__).parents[2] / "tap_tokenizer"
    needed = {Path(path).name for path in get_relative_import_files(str(package / "modeling_tap.py"))}
    assert needed == {
        "attention.py", "configuration_tap.py", "counts.py", "fast_captions.py", "fast_inference.py", "image_decoder.py",
        "image_encoder.py", "int8_linear.py", "prompt_encoder.py", "text_decoder.py",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["tap_vit_b", "tap_vit_l", "tap_vit_h"])
def test_the_papers_shapes_run(preset: str) -> None:
    """Entries and parameters counted at their real sizes; then one picture is asked about one box, on random weights, by
    four of the encoder's blocks in their real shapes."""
    config = getattr(TapConfig, preset)()
    with torch.device("meta"):
        model = TapModel(config)
    blocks = config.image_encoder_config.num_hidden_layers
    entries = (
        len(model.state_dict()) + blocks + len(("pixel_mean", "pixel_rsig"))
    )  # the original has an index per block
    assert entries == {"tap_vit_b": 537, "tap_vit_l": 537 + 12 * 14, "tap_vit_h": 537 + 20 * 14}[preset]
    assert sum(p.numel() for p in model.text_decoder.layers.parameters()) == 37_828_608  # the paper's "38M"
    assert sum(p.numel() for p in model.text_decoder.parameters()) == 70_728_704
    config.image_encoder_config.num_hidden_layers = 4
    with torch.device("meta"):
        model = TapModel(config)
    model = model.to_empty(device="cpu").eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.fill_(1) if "norm" in name or not tensor.is_floating_point() else tensor.normal_(std=0.02)
    tokenizer = TapRegionTokenizer(model)
    regions = tokenizer.encode(torch.zeros(60, 90, 3, dtype=torch.uint8), boxes=[[10, 10, 50, 50]])
    assert regions.semantic_tokens.shape == (1, 4, 256)
    assert regions.semantic_embeds.shape == (1, 4, 1024)
    assert torch.isfinite(regions.semantic_embeds).all()
    assert regions.masks.shape == (1, 60, 90)
    assert tokenizer.caption(regions, return_ids=True, max_length=3).shape == (1, 3)
