"""TAP's own training in miniature: all stages run, the loss falls, and a stopped run goes on as if it had not been."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("accelerate")
pytest.importorskip("matplotlib")

from interrupted import interrupt_after_saving

from finetune.data.masked_pictures import GlyphPictures, MaskedPictures, boxes_of, collate
from finetune.glyphs.language import CONCEPT_SIZE, build_text_tokenizer, caption, concept_banks, concept_vector
from finetune.glyphs.scenes import COLOURS, KINDS, make_scene
from finetune.pretrain_tap import main
from finetune.tap_stages import DenseTargets, Recolouring
from tap_tokenizer import TapConfig, TapImageProcessor, TapModel, TapRegionTokenizer

SIZES: dict[str, Any] = {
    "image_encoder_config": {
        "image_size": 64, "patch_size": 8, "window_size": 4, "hidden_size": 24, "num_hidden_layers": 4,
        "num_attention_heads": 2, "intermediate_size": 48, "output_size": 32, "drop_path_rate": 0.1,
    },
    "image_decoder_config": {
        "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48, "semantic_embed_size": CONCEPT_SIZE,
    },
    "text_decoder_config": {
        "region_size": 32, "vocab_size": 58, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 48, "pad_token_id": 57,
    },
}  # fmt: skip


@pytest.fixture
def model_config(tmp_path: Path) -> Path:
    path = tmp_path / "model.json"
    path.write_text(json.dumps({"model_type": "tap", **SIZES}))
    return path


def train(output: Path, stage: str, steps: int, *flags: str) -> list[dict[str, float]]:
    common = ["--batch_size", "2", "--workers", "0", "--log_steps", "1", "--save_steps", "2", "--eval_steps", "1000",
              "--eval_scenes", "2", "--warmup_steps", "2"]  # fmt: skip
    main(["--stage", stage, "--output_dir", str(output), "--steps", str(steps), *common, *flags])
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return TapRegionTokenizer.from_pretrained(folder / "model").model.state_dict()


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "optimizer"), [("prompt", "adamw"), ("prompt", "muon"), ("heads", "adamw")])
def test_resumed_equals_uninterrupted(tmp_path: Path, model_config: Path, stage: str, optimizer: str) -> None:
    if optimizer == "muon" and not hasattr(torch.optim, "Muon"):
        pytest.skip("needs PyTorch 2.9")
    flags = ["--model_config", str(model_config), "--optimizer", optimizer, "--dense_weight", "0.3",
             "--regions_per_picture", "3"]  # fmt: skip
    whole = train(tmp_path / "whole", stage, 4, *flags)
    interrupt_after_saving(lambda: train(tmp_path / "cut", stage, 4, *flags))
    assert [path.name for path in (tmp_path / "cut" / "checkpoints").iterdir()] == ["step-2"]
    resumed = train(tmp_path / "cut", stage, 4, *flags)
    for a, b in zip(whole, resumed):
        assert {k: v for k, v in a.items() if k != "seconds_per_step"} == {
            k: v for k, v in b.items() if k != "seconds_per_step"
        }
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    for name in one:
        torch.testing.assert_close(one[name].float(), other[name].float(), rtol=0, atol=1e-6, msg=name)


@pytest.mark.slow
def test_all_stages_train_one_after_the_other(tmp_path: Path, model_config: Path) -> None:
    dense = train(tmp_path / "dense", "dense", 12, "--model_config", str(model_config), "--learning_rate", "3e-3")
    assert dense[-2]["loss"] < dense[0]["loss"]
    assert {"val_patch_class", "val_patch_kind_accuracy"} <= set(dense[-1])
    prompt = train(tmp_path / "prompt", "prompt", 3, "--init_from", str(tmp_path / "dense" / "model"))
    assert {"focal", "dice", "iou", "concept"} <= set(prompt[0])
    assert {"val_iou_box", "val_iou_point", "val_kind_box", "val_colour_point"} <= set(prompt[-1])
    before = weights(tmp_path / "prompt")
    both = train(tmp_path / "heads", "heads", 40, "--init_from", str(tmp_path / "prompt" / "model"))
    for name in ("loss", "concept", "caption"):
        losses = [line[name] for line in both if name in line]
        assert sum(losses[-10:]) < sum(losses[:10]), name
    assert {"val_kind_box", "val_caption_box", "val_caption_point"} <= set(both[-1])
    after = weights(tmp_path / "heads")
    for name in before:  # what reads the tokens learns, and the tokens stay as they are
        assert torch.equal(before[name], after[name]) != (
            "semantic_head" in name or name.startswith("text_decoder.")
        ), name


def test_recoloured_tokens_get_recoloured_concepts_and_captions() -> None:
    _, colours, _ = concept_banks()
    names = list(COLOURS)
    phrases = [(kind, colour) for kind in list(KINDS)[:3] for colour in names[:2]]
    captions = [f"a small {colour} {kind}" for kind, colour in phrases]
    truth = torch.from_numpy(np.stack([concept_vector(text) for text in captions]))
    tokens = truth[:, :16] * 3 + 1  # a world in which colours do add up
    experts = torch.tensor([0, 0, 1, 1, 0, 0])
    recolouring = Recolouring(colours, 2, 16, probability=1.0)
    torch.manual_seed(0)
    moved, said, told = recolouring(tokens, experts, truth, captions)
    now = colours.scores(said).argmax(dim=1)
    assert set(now.tolist()) == {0, 1}  # no colour that this expert has not seen
    assert (now != torch.tensor([names.index(colour) for _, colour in phrases])).any()
    assert told == [f"a small {names[int(new)]} {kind}" for new, (kind, _) in zip(now, phrases)]
    wanted = torch.from_numpy(np.stack([concept_vector(text) for text in told]))
    torch.testing.assert_close(said, wanted)
    torch.testing.assert_close(moved, wanted[:, :16] * 3 + 1)
    still, same, kept = Recolouring(colours, 2, 16, probability=0.0)(tokens, experts, truth, captions)
    torch.testing.assert_close(still, tokens)
    torch.testing.assert_close(same, truth)
    assert kept == captions


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("max_points", "1"),
        ("eval_steps", "0"),
        ("refined_share", "0"),
        ("refined_share", "1.5"),
        ("mask_enlargement", "0"),
        ("mask_enlargement", "3"),
    ],
)
def test_impossible_options_are_refused_before_training(
    tmp_path: Path, model_config: Path, flag: str, value: str
) -> None:
    with pytest.raises(ValueError, match=f"{flag} {value}"):
        train(tmp_path / "out", "prompt", 1, "--model_config", str(model_config), f"--{flag}", value)
    assert not (tmp_path / "out" / "log.jsonl").exists()


@pytest.mark.slow
def test_a_run_continues_with_the_same_arguments_or_is_refused(tmp_path: Path, model_config: Path) -> None:
    flags = ["--model_config", str(model_config)]
    train(tmp_path / "run", "prompt", 4, *flags)
    saved = (tmp_path / "run" / "arguments.yaml").read_bytes()
    for stage, steps, more, message in (
        ("prompt", 6, ["--seed", "1"], "seed 0, now 1"),
        ("dense", 6, [], "stage 'prompt', now 'dense'"),
        ("prompt", 2, [], "past the last of 2 steps"),
    ):
        with pytest.raises(ValueError, match=message):
            train(tmp_path / "run", stage, steps, *flags, *more)
    assert (tmp_path / "run" / "arguments.yaml").read_bytes() == saved
    assert train(tmp_path / "run", "prompt", 6, *flags)[-1]["step"] == 6


@pytest.mark.slow
def test_masks_at_the_size_of_the_frame_and_fewer_refined(tmp_path: Path, model_config: Path) -> None:
    common = ["--model_config", str(model_config), "--refined_share", "0.3", "--iou_weight", "10"]
    small = train(tmp_path / "small", "prompt", 1, *common)[0]
    large = train(tmp_path / "large", "prompt", 1, *common, "--mask_enlargement", "2", "--dense_weight", "1")
    assert large[0]["dice"] != small["dice"]
    assert large[0]["loss"] > 0
    light = train(tmp_path / "light", "prompt", 1, *common, "--iou_weight", "1")[0]
    assert small["iou"] == pytest.approx(10 * light["iou"], rel=1e-3)


@pytest.mark.slow
def test_two_processes_train_prompts(tmp_path: Path, model_config: Path) -> None:
    """What the losses do not reach (without a dense loss, some parameters) must not stop their exchange of gradients."""
    flags = ["--stage", "prompt", "--model_config", str(model_config), "--output_dir", str(tmp_path / "two"), "--steps", "2",
             "--batch_size", "1", "--workers", "0", "--log_steps", "1", "--eval_steps", "2", "--eval_scenes", "1"]  # fmt: skip
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*command, "-m", "finetune.pretrain_tap", *flags], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in (tmp_path / "two" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 2]
    assert "val_iou_point" in lines[-1]
    assert weights(tmp_path / "two")


def test_pictures_in_the_model_frame() -> None:
    processor = TapImageProcessor(image_size=64)
    data = MaskedPictures(GlyphPictures(("train", "val"), 0, 64), range(4), processor, mask_size=32)
    batch = collate([data[i] for i in range(4)])
    assert batch.pixel_values.shape == (4, 3, 64, 64)
    assert batch.masks.shape == (len(batch.image_index), 32, 32)
    assert batch.masks.min() >= 0
    assert batch.masks.max() == 1
    assert len(batch.captions) == len(batch.masks) == len(batch.concepts)
    inner = boxes_of(batch.masks > 0.5) * 2
    assert (batch.boxes[:, :2] <= inner[:, :2] + 2).all()
    assert (batch.boxes[:, 2:] >= inner[:, 2:] - 2).all()

    assert batch.captions[0] in [caption(o) for o in make_scene(0, "train").objects]
    assert set(collate([data[1]]).captions) <= {caption(o) for o in make_scene(1, "val").objects}


def test_boxes_of_masks() -> None:
    masks = torch.zeros(2, 4, 6, dtype=torch.bool)
    masks[0, 1:3, 2:5] = True
    assert boxes_of(masks).tolist() == [[2, 1, 5, 3], [0, 0, 0, 0]]


def test_dense_targets_give_each_patch_to_its_region() -> None:
    processor = TapImageProcessor(image_size=64)
    batch = MaskedPictures(GlyphPictures(("train",), 0, 64), range(1), processor, mask_size=32)[0]
    banks = concept_banks()
    targets = DenseTargets(batch, banks, grid=8, image_size=64)
    cover = torch.nn.functional.avg_pool2d(batch.masks, 4)
    for y in range(8):
        for x in range(8):
            best = cover[:, y, x].max(dim=0)
            if best.values <= 0.15:
                assert targets.labels[0][0, y, x] == len(banks[0])
                assert not targets.is_region[0, y, x]
                continue
            owner = int(best.indices)
            kind = banks[0].names[int(targets.labels[0][0, y, x])]
            assert batch.captions[owner].endswith(kind)
            cells = targets.cells[0, :, y, x].view(4, 4)
            torch.testing.assert_close(cells, batch.masks[owner, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4])
            x1, y1, x2, y2 = batch.boxes[owner].tolist()
            want = torch.tensor([8 * x + 4 - x1, 8 * y + 4 - y1, x2 - 8 * x - 4, y2 - 8 * y - 4]) / 16
            torch.testing.assert_close(targets.edges[0, :, y, x], want)


def test_the_caption_vocabulary_fits_the_model() -> None:
    words = build_text_tokenizer()
    config = TapConfig(**SIZES).text_decoder_config
    assert len(words) == config.vocab_size
    assert (words.bos_token_id, words.eos_token_id, words.pad_token_id) == (1, 2, 57)
    assert words.decode(words("a small red umbrella", add_special_tokens=False)["input_ids"]) == "a small red umbrella"
    assert isinstance(TapModel(TapConfig(**SIZES)), TapModel)
