"""What others made is looked at before a library opens it: files without end, sizes without measure."""

from __future__ import annotations

import ast
import json
import os
import re
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_folders import TAP, changed, copied, make_words
from limited import GIGABYTE, run_python
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tap_tokenizer import (
    TapConfig,
    TapRegionTokenizer,
    check_config,
    check_regular_file,
    load_pretrained,
    model_from_config,
    read_json_object,
)

ROOT = Path(__file__).parents[2]


def test_only_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        os.chdir(tmp_path)  # names of sockets are short
        listening.bind("socket")
    for path, kind in ((tmp_path / "pipe", "a pipe"), (tmp_path / "socket", "a socket"), (tmp_path, "a folder"),
                       (Path("/dev/zero"), "a device")):  # fmt: skip
        with pytest.raises(ValueError, match=rf"is {kind}, expected a file\."):
            check_regular_file(path)
    with pytest.raises(ValueError, match="Found no file at nowhere"):
        check_regular_file("nowhere")
    with pytest.raises(ValueError, match="is not a path"):
        check_regular_file("a\0b")


@pytest.mark.parametrize(
    "content", ["[" * 1_000_000, '{"a":' * 1_000_000, "[]", "", '{"a": ' + "9" * 5000 + "}", "\xff", "null", '{"a": 1'],
    ids=["brackets", "braces", "list", "empty", "digits", "no UTF-8", "null", "torn"],
)  # fmt: skip
def test_json_that_is_not_an_object_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_bytes(content.encode("latin1"))
    with pytest.raises(ValueError, match=r"config\.json .*copy or download it again\.$"):
        read_json_object(tmp_path / "config.json")


@pytest.mark.parametrize(
    "values",
    [
        {"num_hidden_layers": 10**6}, {"n_layer": 10**9}, {"text_config": {"num_layers": 1e300}}, {"num_experts": 10**7},
        {"a": [{"encoder_layers": 10**5}]}, {"num_labels": 10**9}, {"num_hidden_layers": 10**400},
        {"num_beams": 10**6}, {"num_return_sequences": 10**7},
        {"_attn_implementation": "flex_attention"}, {"assistant_early_exit": 10**6},
        {"_attn_implementation": "someone/kernel"}, {"attn_implementation": {"": "someone/kernel"}},
    ],
)  # fmt: skip
def test_configurations_that_ask_for_too_much_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(
        ValueError, match=r"^here (has \w+ .*expected at most|asks for the attention|sets assistant_early_exit)"
    ):
        check_config(values, "here")
    check_config({"num_hidden_layers": 126, "n_routed_experts": 384, "layer_types": ["full"] * 126}, "here")


@pytest.mark.parametrize(
    ("part", "values"),
    [
        ("image_encoder_config", {"num_hidden_layers": 10**6, "num_cross_window_layers": 10**6}),
        ("image_encoder_config", {"patch_size": 0}),
        ("image_encoder_config", {"image_size": 1 << 30}),
        ("image_decoder_config", {"num_experts": 10**6}),
        ("image_decoder_config", {"hidden_size": -8}),
        ("text_decoder_config", {"vocab_size": 10**12}),
    ],
)
def test_sizes_that_no_tap_has_are_refused(part: str, values: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"is .*, expected 1 to \d+"):
        TapConfig(**{part: values})


LOAD_ALL = """
import json, sys, time
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from tap_tokenizer import TapRegionTokenizer, load_pretrained

for folder in sorted(Path(sys.argv[1]).iterdir()):
    start = time.process_time()
    try:
        if folder.name.startswith("tap"):
            said = repr(TapRegionTokenizer.from_pretrained(folder))
        else:
            load_pretrained(AutoTokenizer, folder)
            said = repr(load_pretrained(AutoModelForCausalLM, folder))
    except ValueError as error:
        said = f"refused: {error}"
    print(json.dumps([folder.name, time.process_time() - start, said]), flush=True)
"""


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a language model."""
    return make_words(tmp_path_factory.mktemp("plain") / "words")


def _damaged_folders(root: Path, plain: Path) -> None:
    """Folders whose files say more than they hold, or hold what is no file."""

    def part(folder: Path, name: str, values: dict[str, Any]) -> None:
        before = json.loads((folder / "config.json").read_text())
        changed(folder / "config.json", **{name: {**before[name], **values}})

    def tap(name: str) -> Path:
        return copied(TAP, root / f"tap-{name}")

    def words(name: str) -> Path:
        return copied(plain, root / f"words-{name}")

    part(tap("many-layers"), "image_decoder_config", {"num_hidden_layers": 200})
    part(tap("wide"), "text_decoder_config", {"hidden_size": 16384})
    part(tap("no-number"), "image_encoder_config", {"num_attention_heads": None})
    changed(tap("picture-size") / "processor_config.json", image_processor={"image_size": 10**6})
    changed(tap("no-part") / "config.json", image_encoder_config=[1])
    for name, file in (("pipe", "processor_config.json"), ("weights-pipe", "model.safetensors")):
        folder = tap(name)
        (folder / file).unlink()
        os.mkfifo(folder / file)
    changed(words("layers") / "config.json", num_hidden_layers=10**6)
    changed(words("wide") / "config.json", num_hidden_layers=300, intermediate_size=10**7)
    changed(words("vocabulary") / "config.json", vocab_size=10**10)
    changed(words("heads") / "config.json", num_attention_heads=0)
    changed(words("kind") / "config.json", model_type=["llama"])
    changed(words("dtype") / "config.json", dtype="__import__('os')")
    changed(words("quantized") / "config.json", quantization_config=5)
    changed(words("labels") / "config.json", num_labels=10**9)
    (words("brackets") / "tokenizer_config.json").write_text('{"a":' * 10**6)
    (words("template") / "chat_template.jinja").write_text("{{ 'a' * 10 ** 10 }}")


def test_folders_that_would_fill_memory_are_refused(plain: Path, tmp_path: Path) -> None:
    _damaged_folders(tmp_path, plain)
    done = run_python(LOAD_ALL, tmp_path, cpu_seconds=60, memory=2 * GIGABYTE)
    assert done.code == 0, done.output[-300:] + done.errors[-2000:]
    said = [json.loads(line) for line in done.output.splitlines()]
    assert len(said) == len(list(tmp_path.iterdir()))
    for name, seconds, words in said:
        assert words.startswith("refused: "), (name, words)
        assert seconds < 5, name
    assert done.peak_memory < GIGABYTE


def test_weights_packed_by_a_pickle_are_refused(plain: Path, tmp_path: Path) -> None:
    folder = copied(plain, tmp_path / "words")
    (folder / "model.safetensors").unlink()
    torch.save({"x": torch.zeros(1 << 20)}, tmp_path / "plain.bin")
    import zipfile

    with (
        zipfile.ZipFile(tmp_path / "plain.bin") as stored,
        zipfile.ZipFile(folder / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
    with pytest.raises(ValueError, match="is compressed, which torch never does"):
        load_pretrained(AutoModelForCausalLM, folder)


def test_pickled_weights_are_not_read(plain: Path, tmp_path: Path) -> None:
    """torch's own reader goes down with the whole process at a key of 300,000 tuples."""
    folder = copied(plain, tmp_path / "words")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02})" + b"\x85" * 300_000 + b"Ns.")
    with pytest.raises(OSError, match=r"model\.safetensors"):
        load_pretrained(AutoModelForCausalLM, folder)


def test_valid_folders_load(plain: Path) -> None:
    assert load_pretrained(AutoTokenizer, plain).chat_template
    model = load_pretrained(AutoModelForCausalLM, plain)
    assert type(model_from_config(AutoModelForCausalLM, model.config)) is type(model)
    assert TapRegionTokenizer.from_pretrained(TAP).text_tokenizer is not None


def test_auto_classes_never_trust_remote_code_by_default() -> None:
    """Where transformers picks a class by what a file says, it may ask for code; `load_pretrained` answers for us."""
    for path in (path for package in ("tap_tokenizer", "llm_bridge", "finetune", "benchmarks", "docs")
                 for path in (ROOT / package).rglob("*.py")):  # fmt: skip
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                called = ast.unparse(node.func)
                if re.fullmatch(r"Auto\w+\.from_(pretrained|config)", called):
                    given = {word.arg: ast.unparse(word.value) for word in node.keywords}
                    assert given.get("trust_remote_code") == "False" or given.get(None) == "no_code", (
                        f"{path}: {called}"
                    )
            if isinstance(node, ast.Constant) and node.value == "trust_remote_code":
                names = (
                    "foreign_files.py",
                    "language_model.py",
                    "chat_sources.py",
                    "adapter_folder.py",
                    "processor_files.py",
                )
                assert path.name in names, path


def test_a_tokenizer_at_which_its_library_panics_is_named(plain: Path, tmp_path: Path) -> None:
    folder = copied(plain, tmp_path / "words")
    changed(folder / "tokenizer.json", normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"})
    with pytest.raises(ValueError, match=r"holds a tokenizer\.json that cannot be read"):
        load_pretrained(AutoTokenizer, folder)


def test_other_weights_than_safetensors_are_read_only_on_request(tmp_path: Path) -> None:
    config = LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=16)
    model = LlamaForCausalLM(config)
    config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match=r"has no weights in safetensors .* give use_safetensors=False"):
        load_pretrained(AutoModelForCausalLM, tmp_path)
    (tmp_path / "data_config.json").write_text('[{"name": "pairs", "lines": 5}]')  # as sentence encoders have it
    loaded = load_pretrained(AutoModelForCausalLM, tmp_path, use_safetensors=False)
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
