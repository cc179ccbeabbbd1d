"""Who may import whom, read from the imports; and that the packages work without what they do not need."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tap_tokenizer import help_is_wanted

ROOT = Path(__file__).parents[1]
PACKAGES = ("tap_tokenizer", "llm_bridge", "finetune")
MAY_IMPORT = {"tap_tokenizer": set(), "llm_bridge": {"tap_tokenizer"}, "finetune": {"tap_tokenizer", "llm_bridge"}}
"""Packages of ours that each package may import."""

# What each package may import of others when it is imported; commands and optional parts import more inside functions.
LIBRARIES = {
    "tap_tokenizer": {
        "torch",
        "transformers",
        "huggingface_hub",
        "safetensors",
        "einops",
        "numpy",
        "PIL",
        "tqdm",
        "filelock",
    },
    "llm_bridge": {"torch", "transformers", "huggingface_hub", "safetensors", "einops", "numpy", "PIL", "tqdm"},
}

LAYERS = {
    "tap_tokenizer": [
        {"command_line", "everything_options", "output_files", "coordinates", "mask_boxes", "bundled"},
        {"configuration_tap", "attention", "everything", "trial", "weight_files"},
        {"foreign_files"},
        {"restricted_pickle"},
        {"image_encoder", "prompt_encoder", "image_decoder", "text_decoder", "concept_projector"},
        {"fast_inference"},
        {"modeling_tap", "image_processing_tap"},
        {"prompts"},
        {"processing_tap", "region_tokens", "checkpoint_conversion", "picture_folders"},
        {"pretrained_files"},
        {"region_tokenizer"},
        {"visualization"},
        {"__init__", "__main__"},
    ],
    "llm_bridge": [
        {"configuration_bridge", "description", "generation", "region_features", "region_prompt"},
        {
            "chat_template",
            "language_model",
            "projector",
            "chat_markup",
            "uploading",
            "picture_context",
            "page_input",
            "page_turns",
        },
        {"modeling_bridge", "processing_bridge"},
        {"adapters", "processing_described", "page_guard"},
        {"chat", "pipelines"},
        {"page_conversation"},
        {"app"},
        {"__init__"},
        {"__main__"},
    ],
}
"""Files from the ground up: each imports only from layers below its own."""


def imports(path: Path, *, top_level_only: bool = False) -> list[tuple[int, str]]:
    """(relative level, module) of every import of a file."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found = []
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or ""))
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_downwards_and_through_the_door(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        for level, module in imports(path):
            ours = module.split(".")[0]
            if level or ours not in PACKAGES:
                continue
            assert ours == package or ours in MAY_IMPORT[package], f"{path} imports {module}"
            assert ours == package or module == ours, f"{path} reaches inside {module}: import from {ours}"


@pytest.mark.parametrize("package", sorted(LIBRARIES))
def test_packages_need_no_other_libraries(package: str) -> None:
    for path in (ROOT / package).glob("*.py"):
        for level, module in imports(path, top_level_only=True):
            name = module.split(".")[0]
            allowed = LIBRARIES[package] | MAY_IMPORT[package] | set(sys.stdlib_module_names)
            assert level or name in allowed, f"{path} imports {module}"


@pytest.mark.parametrize("package", sorted(LAYERS))
def test_files_import_from_layers_below(package: str) -> None:
    layers = LAYERS[package]
    height = {name: i for i, layer in enumerate(layers) for name in layer}
    assert {path.stem for path in (ROOT / package).glob("*.py")} == set(height)
    for path in (ROOT / package).glob("*.py"):
        for level, module in imports(path, top_level_only=True):
            if level:
                assert height[module] < height[path.stem], f"{path} imports {module}"


@pytest.mark.parametrize("package", ["tap_tokenizer", "llm_bridge"])
def test_packages_are_flat_and_relative(package: str) -> None:
    """transformers' saver of remote code follows `from .x import` in one folder and nothing else."""
    for path in (ROOT / package).glob("*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1, path
                assert node.module, f"{path}: write `from .module import name`"
                assert "." not in node.module, path


@pytest.mark.parametrize("package", ["tap_tokenizer", "llm_bridge"])
def test_packages_import_without_optional_libraries(package: str) -> None:
    absent = ["peft", "accelerate", "datasets", "matplotlib", "gradio", "pycocotools", "bitsandbytes", "sentencepiece",
              "torchvision", "flash_attn", "tensorboard"]  # fmt: skip
    code = f"import sys\nsys.modules.update({{name: None for name in {absent!r}}})\nimport {package}\nprint('fine')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.strip() == "fine", done.stderr


@pytest.mark.parametrize("command", ["tap_tokenizer", "tap_tokenizer describe", "llm_bridge", "llm_bridge ask"])
def test_help_is_shown_without_torch(command: str) -> None:
    words = [sys.executable, "-X", "importtime", "-m", *command.split(), "--help"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True, cwd=ROOT)
    assert "usage:" in done.stdout
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "argparse" in imported
    assert not imported & {"torch", "transformers", "gradio"}


def test_scripts_are_told_from_other_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    for argv, wanted in (
        (["/usr/bin/tap-tokenizer", "describe", "--help"], True),
        (["region-chat.exe", "-h"], True),
        (["region-chat", "ask", "picture.png", "--", "--help"], False),
        (["region-chat", "ask", "picture.png", "help"], False),
        (["/usr/bin/pytest", "--help"], False),
        (["-m", "--help"], False),
    ):
        monkeypatch.setattr(sys, "argv", argv)
        monkeypatch.setattr(sys, "orig_argv", ["python", *argv])
        assert help_is_wanted() is wanted, argv
