"""The command that serves a bridge's language model with vLLM, and its adapter if it has one.

What is served is a plain language model. It is the one that the bridge names, unless the bridge holds it itself.
"""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer

from tap_tokenizer import check_new, gguf_of, load_pretrained, unpacked_gguf, weight_shapes

from ..adapter_folder import ADAPTER_FILE, ADAPTER_FOLDER, LANGUAGE_MODEL_FOLDER, find_adapter
from ..configuration_bridge import RegionBridgeConfig, bundled_or_given
from ..modeling_bridge import RegionBridgeForConditionalGeneration
from .client import FLAGS

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as --max-lora-rank."""


def vllm_command(
    bridge: str | Path, output: Path | None = None, *, host: str = "127.0.0.1", port: int = 8000
) -> list[str]:
    """`vllm serve` and its arguments: the language model, where it listens, the flags that let it take regions, the adapter.

    bridge: a name, folder or repository. output: a new folder for what vLLM needs of a bridge that holds its own language
    model. host: by default, only this machine can reach the server; without it, vLLM listens on every address, and its flags
    make it trust whoever reaches it.
    """
    return ["vllm", "serve", *_arguments(bridge, output, ["--host", host, "--port", str(port), *FLAGS.split()])]


def _arguments(bridge: str | Path, output: Path | None, flags: list[str]) -> list[str]:
    folder = find_adapter(bridge)
    if folder is None:
        return [str(_write_whole(bridge, output)), *flags]
    language_model = RegionBridgeConfig.from_pretrained(folder).language_model
    own = folder / LANGUAGE_MODEL_FOLDER
    if language_model is None and own.is_dir():
        arguments = [str(own.resolve()), "--tokenizer", str(_write_tokenizer(folder, _new(bridge, output)))]
    elif language_model is None:
        raise ValueError(f"{folder} does not say which language model it belongs to: save the bridge again.")
    else:
        found = bundled_or_given(language_model)
        gguf = gguf_of(found)
        arguments = [str(unpacked_gguf(gguf) if gguf is not None else found)]
        arguments += ["--served-model-name", Path(language_model).name]
    arguments += flags
    if (folder / ADAPTER_FOLDER).is_dir():
        arguments += _lora_arguments(folder / ADAPTER_FOLDER, folder.resolve().name)
    return arguments


def _lora_arguments(adapter: Path, name: str) -> list[str]:
    """What serves an adapter under a name.

    vLLM would otherwise put an empty adapter on the input embeddings, which it looks up for the words of a prompt alone, and
    count rows of numbers among them: on a CPU, the server crashes at the first question about a region.
    """
    weights = weight_shapes([adapter / ADAPTER_FILE])
    layers = sorted({weight.partition(".lora_")[0].rpartition(".")[2] for weight in weights})
    rank = max(shape[0] for weight, shape in weights.items() if ".lora_A." in weight)
    allowed = next((number for number in RANKS if number >= rank), None)
    if allowed is None:
        raise ValueError(
            f"{adapter} has rank {rank}, and vLLM takes at most {RANKS[-1]}: merge_lora(bridge), and save the bridge whole."
        )
    rank_words = ["--enable-lora", "--max-lora-rank", str(allowed)]
    return [*rank_words, "--lora-target-modules", *layers, "--lora-modules", f"{name}={adapter.resolve()}"]


def _write_whole(bridge: str | Path, output: Path | None) -> Path:
    """Write the language model and the text tokenizer of a bridge that was saved whole."""
    new = _new(bridge, output)
    loaded = RegionBridgeForConditionalGeneration.from_pretrained(bridge, dtype="auto")
    loaded.language_model.save_pretrained(new)
    return _write_tokenizer(bridge, new)


def _write_tokenizer(bridge: str | Path, new: Path) -> Path:
    load_pretrained(AutoTokenizer, bridge).save_pretrained(new)
    return new


def _new(bridge: str | Path, output: Path | None) -> Path:
    if output is None:
        raise ValueError(f"{bridge} holds its own language model: give --output, a new folder for what vLLM needs.")
    check_new(output)
    return output
