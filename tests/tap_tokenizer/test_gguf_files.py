"""GGUF files: what they hold comes out of them, once, and nothing else does."""

from __future__ import annotations

import struct
from functools import partial
from pathlib import Path

import pytest
import torch
from huggingface_hub import cached_assets_path
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tap_tokenizer import foreign_files, gguf_files, load_pretrained
from tap_tokenizer.gguf_files import check_gguf, gguf_of

pytest.importorskip("gguf", reason="needs the extra smollm2")
from tiny_gguf import CHAT_TEMPLATE, PACKED, write_gguf


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(gguf_files, "cached_assets_path", partial(cached_assets_path, assets_dir=folder))
    return folder


def test_a_gguf_file_gives_the_model_that_was_written(tmp_path: Path) -> None:
    path = tmp_path / "lm" / "tiny.gguf"
    path.parent.mkdir()
    weights = write_gguf(path)
    for source in (path, path.parent):
        model = load_pretrained(AutoModelForCausalLM, source)
        assert model.dtype == torch.float32
        assert model.config.name_or_path == str(source)
        assert all(torch.equal(model.state_dict()[name], weight) for name, weight in weights.items())
    half = load_pretrained(AutoModelForCausalLM, path, dtype=torch.bfloat16)
    assert torch.equal(half.state_dict()[f"model.layers.1.{PACKED}"], weights[f"model.layers.1.{PACKED}"].bfloat16())
    tokenizer = load_pretrained(AutoTokenizer, path)
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert tokenizer.decode(tokenizer("hehe, the äpple<|im_end|>").input_ids) == "hehe, the äpple<|im_end|>"
    assert tokenizer.convert_ids_to_tokens(tokenizer("he<|im_end|>").input_ids) == ["he", "<|im_end|>"]
    config = load_pretrained(AutoConfig, path)
    assert (config.num_hidden_layers, config.max_position_embeddings) == (2, 512)
    assert not any("quant" in key for key in model.config.to_dict())
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "saved").lm_head.weight, model.lm_head.weight)


def test_a_gguf_file_is_unpacked_once_and_again_after_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unpacked = []
    unpack = foreign_files._unpack
    monkeypatch.setattr(foreign_files, "_unpack", lambda *paths: (unpacked.append(paths), unpack(*paths)))
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    for auto_class in (AutoConfig, AutoModelForCausalLM, AutoTokenizer):
        load_pretrained(auto_class, path)
    assert len(unpacked) == 1
    weights = write_gguf(path, seed=1)
    assert torch.equal(load_pretrained(AutoModelForCausalLM, path).lm_head.weight, weights["lm_head.weight"])
    assert len(unpacked) == 2


def test_of_several_gguf_files_one_must_be_given(tmp_path: Path) -> None:
    for name in ("a.Q4_1.gguf", "b.Q8_0.gguf"):
        write_gguf(tmp_path / name)
    with pytest.raises(ValueError, match=r"holds 2 GGUF files \(a\.Q4_1\.gguf, b\.Q8_0\.gguf\): give one of them"):
        load_pretrained(AutoModelForCausalLM, tmp_path)
    model = load_pretrained(AutoModelForCausalLM, tmp_path / "b.Q8_0.gguf")
    assert model.config.name_or_path.endswith("b.Q8_0.gguf")


def test_nothing_that_lies_beside_a_gguf_file_is_read(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    for name in ("config", "adapter_config", "tokenizer_config", "generation_config", "tokenizer"):
        (tmp_path / f"{name}.json").write_text('{"auto_map": {"AutoTokenizer": "evil.Evil"}, "damaged": ')
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    assert load_pretrained(AutoModelForCausalLM, tmp_path).config.num_hidden_layers == 2
    assert load_pretrained(AutoTokenizer, tmp_path)("he").input_ids


def test_folders_with_weights_of_another_form_are_not_taken_for_gguf(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    assert gguf_of(tmp_path) == tmp_path / "tiny.gguf"
    (tmp_path / "model.safetensors").touch()
    assert gguf_of(tmp_path) is None
    assert gguf_of(tmp_path / "model.safetensors") is None
    assert gguf_of(tmp_path / "missing.gguf") is None
    assert gguf_of("owner/name") is None


@pytest.mark.parametrize("size", [0, 3, 20, 60, 1500, 6000, -20_000])
def test_a_gguf_file_that_ends_too_early_is_refused(tmp_path: Path, cache: Path, size: int) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"tiny\.gguf"):
        load_pretrained(AutoModelForCausalLM, path)
    assert not any(cache.rglob("*.safetensors"))


def test_other_files_and_folders_that_are_called_gguf_are_refused(tmp_path: Path) -> None:
    (tmp_path / "words.gguf").write_text("These are words, and there are more than twenty-four of them.")
    with pytest.raises(ValueError, match=r"words\.gguf is not a GGUF file: it begins with b'Thes'"):
        load_pretrained(AutoTokenizer, tmp_path / "words.gguf")
    (tmp_path / "later.gguf").write_bytes(struct.pack("<4sIQQ", b"GGUF", 9, 0, 0))
    with pytest.raises(ValueError, match="has GGUF version 9, expected 2 or 3"):
        load_pretrained(AutoTokenizer, tmp_path / "later.gguf")


@pytest.mark.parametrize("kind", [0, 8])
def test_lists_that_would_fill_memory_are_refused_unread(tmp_path: Path, kind: int) -> None:
    path = tmp_path / "long.gguf"
    field = struct.pack("<Q4sIIQ", 4, b"many", 9, kind, 1 << 33)
    path.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + field)
    with pytest.raises(ValueError, match=r"lists of more than 8,000,000 values"):
        check_gguf(path)


def test_a_gguf_file_that_says_too_much_of_its_model_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "deep.gguf", layers=5000)
    with pytest.raises(ValueError, match="num_hidden_layers 5000, expected at most 1000"):
        load_pretrained(AutoModelForCausalLM, tmp_path / "deep.gguf")
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    write_gguf(tmp_path / "endless.gguf", template=endless)
    with pytest.raises(ValueError, match=r"endless\.gguf"):
        load_pretrained(AutoTokenizer, tmp_path / "endless.gguf")


def test_without_the_package_gguf_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    monkeypatch.setattr(foreign_files, "is_gguf_available", lambda: False)
    with pytest.raises(ImportError, match=r"tiny\.gguf is read by gguf and accelerate: pip install gguf accelerate"):
        load_pretrained(AutoModelForCausalLM, tmp_path)
