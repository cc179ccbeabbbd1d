"""Damaged files and absent devices are told in a sentence, from Python and in the shell, before work starts."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tap_tokenizer import ConceptBank, RegionTokens, TapRegionTokenizer, check_device, pretrained_files
from tap_tokenizer.cli import main

TAP = Path(__file__).parents[2] / "tap_tokenizer" / "pretrained" / "tap-tiny"
BRIDGE = Path(__file__).parents[2] / "llm_bridge" / "pretrained" / "region-chat-tiny"
DEMO = BRIDGE / "demo.png"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TAP, tmp_path / "copy"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="the machine has a GPU")
def test_missing_devices_are_refused() -> None:
    for device in ("cuda", "meta", "nonsense", torch.device("cuda", 7)):
        with pytest.raises(ValueError, match=r"which PyTorch cannot use here .*expected cpu"):
            check_device(device)
        with pytest.raises(ValueError, match="which PyTorch cannot use here"):
            TapRegionTokenizer.from_pretrained("tap-tiny", device=device)
    check_device("cpu")
    check_device(None)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "concepts.safetensors", "config.json", "text_tokenizer/tokenizer.json"]
)
def test_truncated_files_are_named(copy: Path, name: str) -> None:
    os.truncate(copy / name, (copy / name).stat().st_size // 2)
    with pytest.raises(ValueError, match=r"copy or download .*again\.$"):
        TapRegionTokenizer.from_pretrained(copy)


def test_folders_of_other_models_are_refused_before_reading(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="a model of type region_bridge, not a region tokenizer"):
        TapRegionTokenizer.from_pretrained(BRIDGE)
    assert not caplog.records


def test_incomplete_weights_are_refused(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    del weights["image_decoder.iou_token"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights of a TAP \(image_decoder.iou_token"):
        TapRegionTokenizer.from_pretrained(copy)
    weights["image_decoder.iou_token"] = torch.zeros(1, 3)
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"do not fit its config\.json"):
        TapRegionTokenizer.from_pretrained(copy)


def test_region_tokens_and_concepts(tiny_tokenizer: TapRegionTokenizer, tmp_path: Path) -> None:
    regions = tiny_tokenizer.encode(np.zeros((40, 40, 3), np.uint8), boxes=[[1, 2, 30, 30]])
    with pytest.raises(ValueError, match="There is no folder"):
        regions.save(tmp_path / "none" / "regions.safetensors")
    regions.save(tmp_path / "regions.safetensors")
    os.truncate(tmp_path / "regions.safetensors", 300)
    for reader in (RegionTokens, ConceptBank):
        with pytest.raises(ValueError, match=r"regions\.safetensors is not a whole safetensors file"):
            reader.load(tmp_path / "regions.safetensors")


def test_dtypes_that_cannot_hold_weights_are_refused() -> None:
    for dtype in ("int8", torch.long, "nonsense", 3):
        with pytest.raises(ValueError, match="expected float32, bfloat16 or float16"):
            TapRegionTokenizer.from_pretrained("tap-tiny", dtype=dtype)


class Evil:
    """A pickle that would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def test_the_shell_gives_a_one_line_error(capsys: pytest.CaptureFixture[str], copy: Path, tmp_path: Path) -> None:
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Evil(tmp_path / "made")))
    (tmp_path / "text.pkl").write_text("hello")
    os.truncate(copy / "model.safetensors", 1000)
    for message, flags in (
        ("refused to load posix.mkdir", ["--model", tmp_path / "evil.pkl"]),
        ("refused to load posix.mkdir", ["--concepts", tmp_path / "evil.pkl"]),
        ("expected a pickle of arrays", ["--model", tmp_path / "text.pkl"]),
        ("not a whole safetensors file", ["--model", copy]),
        ("not a whole safetensors file", ["--concepts", DEMO]),
        ("cannot use here", ["--device", "nonsense"]),
        ("no text tokenizer that can be read", ["--text_tokenizer", DEMO]),
    ):
        assert main(["describe", str(DEMO), "--box", "177", "392", "271", "470", *map(str, flags)]) == 2
        got = capsys.readouterr()
        assert got.out == ""
        line = got.err.splitlines()[-1]
        assert line.startswith("tap-tokenizer describe: "), flags
        assert message in line, flags
    assert not (tmp_path / "made").exists()


def test_the_hub_is_asked_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """huggingface_hub itself asks six times for each file, over half a minute."""
    asked = []

    def no_network(url: str, **_: object) -> None:
        asked.append(url)
        raise ConnectionError("no network")

    monkeypatch.setattr(pretrained_files, "get_hf_file_metadata", no_network)
    monkeypatch.setattr(pretrained_files, "hf_hub_download", lambda *_, **__: pytest.fail("must not be called"))
    with pytest.raises(OSError, match=r"Found no some/where here, and the Hub cannot be reached \(no network\)"):
        TapRegionTokenizer.from_pretrained("some/where", cache_dir=tmp_path)
    assert len(asked) == 1
    with pytest.raises(ValueError, match="neither a file or folder here nor a Hub repository"):
        pretrained_files.check_hub("a b/c", "config.json", {})
