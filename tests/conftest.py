"""Fixtures that several tests share: small random models, pictures, and the original's numbers."""

from __future__ import annotations

import json
import os
import pickle
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may depend on a network; those of the Hub bring their own server
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import pytest
import torch
from no_skips import pytest_addoption, pytest_make_collect_report, pytest_runtest_makereport  # noqa: F401
from PIL import Image

from tap_tokenizer import ConceptBank, TapConfig, TapModel, TapRegionTokenizer

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
GOLDEN = Path(__file__).parent / "golden"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that parallel workers, each of which takes whole files, finish together."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference material beside the project, where there is one."""
    folder = Path(__file__).parents[2] / "shared"
    if not (folder / "parity").is_dir():
        pytest.skip("needs ../shared, which is not part of the project")
    return folder


# --- the original's numbers -------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def original_numbers() -> dict[str, Any]:
    """What the original printed for a model whose weights follow `rule_weight`, and where that comes from."""
    return json.loads((GOLDEN / "original_numbers.json").read_text())


def rule_weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A weight that follows from its name: the same wherever it is made, so that no weights need to be shipped."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    noise = random.normal(size=shape)
    is_norm = "norm" in name or name in (
        "image_decoder.output_conv.1.weight",
        "image_encoder.neck.lateral_conv.0.1.weight",
        "image_encoder.neck.output_conv.0.1.weight",
    )
    if name.endswith("running_var"):
        value = random.uniform(0.5, 1.5, shape)
    elif name.endswith("running_mean"):
        value = 0.1 * noise
    elif is_norm and name.endswith("weight"):
        value = 1 + 0.1 * noise
    elif len(shape) == 1:
        value = 0.1 * noise
    elif name.endswith(("coord_matrix", "_token.weight", "_tokens.weight", "_embed.weight", "_embeddings.weight")):
        value = noise
    else:
        value = 1.5 * noise / np.sqrt(np.prod(shape[1:]))
    return value.astype(np.float32)


@pytest.fixture(scope="session")
def original_weights(original_numbers: dict[str, Any]) -> dict[str, np.ndarray]:
    """A checkpoint of the original: its names, and weights by rule."""
    weights = {name: rule_weight(name, tuple(shape)) for name, shape in original_numbers["weights"].items()}
    weights["pixel_mean"] = np.array([103.53, 116.28, 123.675], dtype=np.float32)
    weights["pixel_rsig"] = 1 / np.array([57.375, 57.12, 58.395], dtype=np.float32)
    weights["image_encoder.cross_conv.0.norm1.num_batches_tracked"] = np.array(0)
    weights["image_encoder.blocks.0.attn.rel_pos_embed.index"] = np.zeros((256, 256), dtype=np.int64)
    return weights


@pytest.fixture(scope="session")
def original_checkpoint(original_weights: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a file."""
    path = tmp_path_factory.mktemp("original") / "tap_rule.pkl"
    path.write_bytes(pickle.dumps(original_weights))
    return path


@pytest.fixture(scope="session")
def original_concepts(original_numbers: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A concept file of the original, as its numbers were made with."""
    random = np.random.RandomState(original_numbers["image_seed"])
    random.randint(0, 256, (6, 9, 3))
    weights = random.normal(size=(original_numbers["sizes"]["sem"], 12))
    weights = (weights / np.linalg.norm(weights, axis=0) * 20).astype(np.float32)
    path = tmp_path_factory.mktemp("concepts") / "rule_12.pkl"
    path.write_bytes(pickle.dumps([weights, [f"concept {i}" for i in range(12)]]))
    return path


@pytest.fixture(scope="session")
def original_image(original_numbers: dict[str, Any]) -> np.ndarray:
    """The picture that the original was asked about, RGB."""
    low = np.random.RandomState(original_numbers["image_seed"]).randint(0, 256, (6, 9, 3)).astype(np.uint8)
    return np.ascontiguousarray(np.kron(low, np.ones((15, 15, 1), np.uint8))[:90, :130])


# --- small things of our own ------------------------------------------------------------------------------------------


def tiny_tap_config(**encoder: Any) -> TapConfig:
    """A TAP small enough to run in milliseconds."""
    sizes = {
        "image_size": 64, "patch_size": 8, "window_size": 4, "hidden_size": 32, "num_hidden_layers": 4,
        "num_attention_heads": 2, "intermediate_size": 64, "output_size": 32, **encoder,
    }  # fmt: skip
    return TapConfig(
        image_encoder_config=sizes,
        image_decoder_config={
            "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48, "semantic_embed_size": 16,
        },
        text_decoder_config={
            "region_size": 32, "vocab_size": 20, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "intermediate_size": 48, "max_position_embeddings": 12, "pad_token_id": 19,
        },
    )  # fmt: skip


def make_tiny_tap(seed: int = 0, **encoder: Any) -> TapModel:
    """A tiny random TAP whose parts all matter: nothing is left at zero or one."""
    torch.manual_seed(seed)
    model = TapModel(tiny_tap_config(**encoder)).eval()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and "coord_matrix" not in name:
                noise = torch.randn(tensor.shape, generator=generator)
                tensor.add_(0.2 * noise.abs() if name.endswith("running_var") else 0.2 * noise)
    return model


def make_tiny_tokenizer(seed: int = 0, **encoder: Any) -> TapRegionTokenizer:
    """A region tokenizer around `make_tiny_tap`, with concepts."""
    vectors = torch.randn(8, 16, generator=torch.Generator().manual_seed(seed))
    concepts = ConceptBank.from_vectors([f"thing {i}" for i in range(8)], vectors, 10.0)
    tokenizer = TapRegionTokenizer(make_tiny_tap(seed, **encoder), concepts=concepts)
    tokenizer.model.requires_grad_(False)
    return tokenizer


@pytest.fixture(scope="session")
def tiny_tokenizer() -> TapRegionTokenizer:
    return make_tiny_tokenizer()


@pytest.fixture(scope="session")
def make_tap() -> Callable[..., TapModel]:
    return make_tiny_tap


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., TapRegionTokenizer]:
    return make_tiny_tokenizer


@pytest.fixture(scope="session")
def picture() -> Image.Image:
    """A picture of 90 × 60 pixels with something everywhere."""
    low = np.random.RandomState(1).randint(0, 256, (6, 9, 3)).astype(np.uint8)
    return Image.fromarray(np.kron(low, np.ones((10, 10, 1), np.uint8)))


@pytest.fixture(scope="session")
def other_picture() -> Image.Image:
    """A picture of 40 × 80 pixels, unlike the other."""
    low = np.random.RandomState(2).randint(0, 256, (8, 4, 3)).astype(np.uint8)
    return Image.fromarray(np.kron(low, np.ones((10, 10, 1), np.uint8)))
