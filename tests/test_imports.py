"""Who may import whom, read from the imports; and that the packages work without what they do not need."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

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
        "scipy",
        "PIL",
        "tqdm",
        "filelock",
    },
    "llm_bridge": {
        "torch",
        "transformers",
        "huggingface_hub",
        "safetensors",
        "einops",
        "numpy",
        "PIL",
        "tqdm",
        "httpx",
    },
}

EXTRAS = {"llm_bridge.serving.": {"starlette", "pydantic", "uvicorn", "h11", "contourpy", "cvat_sdk"}}
"""What files whose names begin so may import, too: the commands that load them say what to install."""

LAYERS = {
    "tap_tokenizer": [
        {
            "lazy_imports",
            "everything_options",
            "output_files",
            "coordinates",
            "counts",
            "interruption",
            "mask_boxes",
            "nearest",
            "coco_masks",
            "cpu_abilities",
            "cluster",
        },
        {"bundled", "gguf_files"},
        {"configuration_tap", "attention", "trial", "weight_files", "pickled_values"},
        {"foreign_files"},
        {"restricted_pickle"},
        {"image_encoder", "prompt_encoder", "image_decoder", "text_decoder", "text_encoder"},
        {"concept_projector", "int8_linear"},
        {"fast_inference"},
        {"fast_captions"},
        {"modeling_tap", "image_processing_tap"},
        {"masks"},
        {"prompts"},
        {"flags", "detections"},
        {"processing_tap", "region_tokens", "checkpoint_conversion", "picture_folders"},
        {"pretrained_files", "region_decoder"},
        {"point_screen", "captions"},
        {"everything"},
        {"region_tokenizer"},
        {"visualization", "region_index", "tokenizer_flags", "onnx_export"},
        {"contact_sheet", "folder_index", "coco_files", "folder_actors", "browser_page"},
        {"index_commands", "coco_command", "export_command"},
        {"cli", "__init__"},
        {"__main__"},
    ],
    "llm_bridge": [
        {"default_bridge", "description", "region_records", "uploading", "listening", "serving.__init__"},
        {"configuration_bridge", "projector_files"},
        {"chat_template", "language_model", "projector", "chat_markup", "feature_rows"},
        {"picture_context", "text_batch", "processor_files", "prompt_memory"},
        {"pictures", "bridge_parts"},
        {"samples", "adapters", "prompt_checks"},
        {"model_card"},
        {"adapter_folder"},
        {"modeling_bridge", "processing_bridge"},
        {"processing_described"},
        {"generation", "chat_sources", "serving.served_adapter"},
        {"grounding", "serving.served_prompts"},
        {"serving.client"},
        {"chat", "pipelines", "phrase_table", "serving.vllm_command"},
        {"terminal_chat", "model_flags", "page.__init__", "page.input", "page.turns", "page.scene"},
        {"find_command", "describe_command", "demo_command", "page.guard", "page.conversation"},
        {"page.sessions"},
        {"page.handlers"},
        {"page.app"},
        {"page.app_command"},
        {"serving.errors", "serving.limits", "serving.marks", "serving.outlines", "serving.brush"},
        {"serving.worker", "serving.answers", "serving.chat_requests", "serving.label_studio_files", "serving.cvat"},
        {"serving.conversations", "serving.annotations", "serving.service", "serving.guard"},
        {"serving.completions", "serving.x_anylabeling", "serving.label_studio"},
        {"serving.server"},
        {"serving.serve_commands"},
        {"cli", "__init__"},
        {"__main__"},
    ],
}
"""Files from the ground up: each imports only from layers below its own."""


def modules(package: str) -> dict[str, Path]:
    """The files of a package by their dotted names."""
    files = sorted((ROOT / package).rglob("*.py"))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in files}


def imports(name: str, path: Path, *, top_level_only: bool = False) -> Iterator[tuple[str, list[str]]]:
    """(absolute module, names) of every import of a file, those inside functions and those for type checkers, too."""
    tree = ast.parse(path.read_text())
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = name.split(".")[: -node.level] if node.level else []
            yield ".".join([*above, *filter(None, [node.module])]), [alias.name for alias in node.names]


def imported_modules(package: str) -> dict[str, set[str]]:
    """Which files of a package each of its files imports."""
    files = modules(package)
    graph: dict[str, set[str]] = {}
    for name, path in files.items():
        targets = {
            target
            for module, names in imports(name, path)
            for target in (module, f"{module}.__init__", *(f"{module}.{one}" for one in names))
        }
        graph[name] = targets & set(files) - {name, f"{name.rpartition('.')[0]}.__init__"}
    return graph


def names_under_type_checking(package: str) -> list[set[str]]:
    """The names in each block of an `__init__.py` that type checkers read: those that are exported, and those shared."""
    blocks = [
        node
        for node in ast.parse((ROOT / package / "__init__.py").read_text()).body
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    ]
    return [
        {alias.name for line in block.body if isinstance(line, ast.ImportFrom) for alias in line.names}
        for block in blocks
    ]


# --- between packages -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_downwards_and_only_what_another_lists(package: str) -> None:
    for name, path in modules(package).items():
        for module, names in imports(name, path):
            other = module.split(".")[0]
            if other not in PACKAGES or other == package:
                continue
            assert other in MAY_IMPORT[package], f"{path} imports {module}"
            assert module == other, f"{path} reaches inside {module}: import from {other}"
            init = imports(f"{other}.__init__", ROOT / other / "__init__.py")
            listed = {one for origin, ones in init if origin.startswith(f"{other}.") for one in ones}
            assert set(names) <= listed, (
                f"{path} imports {set(names) - listed}, which {other}/__init__.py does not list"
            )


@pytest.mark.parametrize("package", sorted(LIBRARIES))
def test_packages_need_no_other_libraries(package: str) -> None:
    allowed = LIBRARIES[package] | MAY_IMPORT[package] | {package} | set(sys.stdlib_module_names)
    for name, path in modules(package).items():
        extra = {one for start, libraries in EXTRAS.items() if name.startswith(start) for one in libraries}
        for module, _ in imports(name, path, top_level_only=True):
            assert module.split(".")[0] in allowed | extra, f"{path} imports {module}"


# --- inside a package -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_in_no_circle(package: str) -> None:
    """Not even inside functions, or for types."""
    TopologicalSorter(imported_modules(package)).prepare()  # CycleError names the files


@pytest.mark.parametrize("package", sorted(LAYERS))
def test_files_import_from_layers_below(package: str) -> None:
    height = {f"{package}.{name}": i for i, layer in enumerate(LAYERS[package]) for name in layer}
    graph = imported_modules(package)
    assert set(graph) == set(height)
    for name, targets in graph.items():
        for target in targets:
            assert height[target] < height[name], f"{name} imports {target}"


@pytest.mark.parametrize("package", ["tap_tokenizer", "llm_bridge"])
def test_packages_are_flat_and_relative(package: str) -> None:
    """transformers' saver of remote code follows `from .x import` in one folder and nothing else."""
    for path in (ROOT / package).glob("*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1, path
                assert node.module, f"{path}: write `from .module import name`"
                assert "." not in node.module or path.name == "cli.py", path


# --- what importing a package costs and brings ------------------------------------------------------------------------


def run(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("package", ["tap_tokenizer", "llm_bridge"])
def test_exports_are_what_type_checkers_see(package: str) -> None:
    module = import_module(package)
    exported, *shared = names_under_type_checking(package)
    assert set(module.__all__) == exported
    assert exported.isdisjoint(*shared)
    for name in exported.union(*shared):
        assert name in dir(module)
        assert f"{package}.{name}" not in modules(package), f"{name} is a module, which would hide the export"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = module.nothing


@pytest.mark.parametrize("package", ["tap_tokenizer", "llm_bridge"])
def test_everything_is_imported_without_optional_libraries_and_whatever_the_command_line_says(package: str) -> None:
    absent = ["peft", "accelerate", "datasets", "matplotlib", "starlette", "uvicorn", "pycocotools", "bitsandbytes",
              "sentencepiece", "torchvision", "flash_attn", "tensorboard", "supervision", "fiftyone", "cv2"]  # fmt: skip
    code = (
        f"import sys\nsys.modules.update({{name: None for name in {absent!r}}})\nfrom {package} import *\nprint('fine')"
    )
    assert run(code, "--help") == "fine"


@pytest.mark.parametrize("package", ["tap_tokenizer", "llm_bridge"])
def test_a_package_is_imported_without_torch(package: str) -> None:
    assert run(f"import sys, {package}\nprint({{'torch', 'transformers'}} & set(sys.modules))") == "set()"


@pytest.mark.parametrize(
    "imported",
    [
        "import llm_bridge\nfrom transformers import AutoModel, pipeline",
        "from transformers import AutoModel, pipeline\nimport llm_bridge",
        "from llm_bridge.feature_rows import region_features\nfrom transformers import AutoModel, pipeline",
        "import llm_bridge, importlib.util\nimportlib.util.find_spec('transformers')\nfrom transformers.models.auto "
        "import AutoModel\nfrom transformers.pipelines import pipeline",
    ],
    ids=["before transformers", "after transformers", "by a module of ours", "submodules"],
)
def test_transformers_knows_our_models_whichever_is_imported_first(imported: str) -> None:
    code = f"""{imported}
print(type(AutoModel.from_pretrained("region-chat-tiny")).__name__)
print(type(pipeline("region-captioning", model="tap-tiny")).__name__)
from llm_bridge import region_features
print(region_features.__name__)"""
    assert run(code).split() == ["RegionBridgeForConditionalGeneration", "RegionCaptioningPipeline", "region_features"]


@pytest.mark.parametrize("command", ["tap_tokenizer", "tap_tokenizer describe", "llm_bridge", "llm_bridge ask"])
def test_help_is_shown_without_torch(command: str) -> None:
    words = [sys.executable, "-X", "importtime", "-m", *command.split(), "--help"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True, cwd=ROOT)
    assert "usage:" in done.stdout
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "argparse" in imported
    assert not imported & {"torch", "transformers", "uvicorn"}
