"""The command that serves a bridge with vLLM."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_bridge import RegionBridgeForConditionalGeneration, RegionBridgeProcessor, add_lora
from llm_bridge.cli import main
from llm_bridge.serving.vllm_command import vllm_command

TRUSTING = ["--enable-prompt-embeds", "--trust-request-chat-template"]
FLAGS = ["--host", "127.0.0.1", "--port", "8000", *TRUSTING]
Pair = tuple[RegionBridgeForConditionalGeneration, RegionBridgeProcessor]


@pytest.fixture
def save(make_bridge: Callable[..., Pair], tmp_path: Path) -> Callable[..., Path]:
    def saved(*, rank: int = 0, name: str | None = None, whole: bool = False) -> Path:
        bridge, processor = make_bridge()
        bridge.config.language_model = name
        if rank:
            add_lora(bridge, r=rank)
        bridge.save_pretrained(tmp_path / "mine", whole=whole)
        processor.save_pretrained(tmp_path / "mine")
        return tmp_path / "mine"

    return saved


def test_a_language_model_is_served_under_its_name_with_the_adapter_on_its_own_layers(
    save: Callable[..., Path],
) -> None:
    folder = save(rank=9, name="owner/model-1B")
    layers = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]  # and no embeddings
    assert vllm_command(folder) == [
        "vllm", "serve", "owner/model-1B", "--served-model-name", "model-1B", *FLAGS, "--enable-lora", "--max-lora-rank",
        "16", "--lora-target-modules", *layers, "--lora-modules", f"mine={folder}/adapter",
    ]  # fmt: skip


def test_a_bridge_without_adapter_needs_no_lora(save: Callable[..., Path]) -> None:
    folder = save(name="owner/model-1B")
    assert vllm_command(folder) == ["vllm", "serve", "owner/model-1B", "--served-model-name", "model-1B", *FLAGS]


def test_only_this_machine_reaches_the_server_unless_somebody_says_otherwise(
    save: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Without --host, vLLM listens on every address, and these flags make it trust whoever reaches it."""
    folder = save(name="owner/model-1B")
    plain = ["vllm", "serve", "owner/model-1B", "--served-model-name", "model-1B"]
    for flags, listening in (
        ([], ["--host", "127.0.0.1", "--port", "8000"]),
        (["--port", "8001"], ["--host", "127.0.0.1", "--port", "8001"]),
        (["--host", "10.0.0.5"], ["--host", "10.0.0.5", "--port", "8000"]),
    ):
        assert main(["vllm", str(folder), *flags]) == 0
        assert capsys.readouterr().out.split() == [*plain, *listening, *TRUSTING]
    assert main(["vllm", str(folder), "--port", "0"]) == 2
    assert "Got --port 0: expected 1 to 65535" in capsys.readouterr().err


def test_the_printed_command_is_quoted_for_the_shell(
    save: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save(rank=2, name="owner/model-1B").rename(tmp_path / "a bridge of mine")
    assert main(["vllm", str(folder)]) == 0
    words = shlex.split(capsys.readouterr().out)
    assert words[-1] == f"a bridge of mine={folder}/adapter"


def test_an_adapter_of_too_high_a_rank_is_refused(save: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match="has rank 513, and vLLM takes at most 512: merge_lora"):
        vllm_command(save(rank=513, name="owner/model-1B"))


def test_what_a_whole_bridge_holds_is_written_as_a_plain_language_model(
    save: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = save(whole=True), tmp_path / "served"
    assert main(["vllm", str(folder), "--output", str(output)]) == 0
    assert capsys.readouterr().out.split() == ["vllm", "serve", str(output), *FLAGS]
    assert type(AutoModelForCausalLM.from_pretrained(output)).__name__ == "LlamaForCausalLM"
    assert AutoTokenizer.from_pretrained(output)("a red cat", add_special_tokens=False)["input_ids"] == [11, 12, 14]
    assert main(["vllm", str(folder), "--output", str(output)]) == 2
    assert "exists: give another name" in capsys.readouterr().err


def test_a_folder_that_holds_a_language_model_of_its_own_gets_a_tokenizer_beside_it(
    save: Callable[..., Path], tmp_path: Path
) -> None:
    folder = save(rank=2)
    with pytest.raises(ValueError, match="holds its own language model: give --output"):
        vllm_command(folder)
    command = vllm_command(folder, tmp_path / "words")
    assert command[2:5] == [str(folder / "language_model"), "--tokenizer", str(tmp_path / "words")]
    assert "--enable-lora" in command
    assert AutoTokenizer.from_pretrained(tmp_path / "words").chat_template
