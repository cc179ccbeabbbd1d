"""A projector's weights on disk: in a file of their own, or among those of a bridge that was saved whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from tap_tokenizer import check_regular_file, check_weights, read_json_object, weight_shapes

PROJECTOR_FILE = "projector.safetensors"
_PREFIX = "projector."
"""What the names of its weights begin with in a whole bridge."""


def read_projector(folder: Path, projector: nn.Module) -> dict[str, Tensor]:
    """The weights in an adapter folder, which must have the names and shapes of `projector`'s."""
    path = folder / PROJECTOR_FILE
    check_regular_file(path)
    check_weights(weight_shapes([path]), projector.state_dict(), path)
    return load_file(path)


def read_projector_of_whole(source: str, projector: nn.Module, hub: Mapping[str, Any]) -> dict[str, Tensor]:
    """The same from a bridge that was saved whole, in a folder or a repository; nothing else of it is read into memory."""
    paths = _paths_of_whole(source, hub)
    shapes = {n.removeprefix(_PREFIX): shape for n, shape in weight_shapes(paths).items() if n.startswith(_PREFIX)}
    check_weights(shapes, projector.state_dict(), source, "the projector")
    weights: dict[str, Tensor] = {}
    for path in paths:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(_PREFIX)]  # noqa: SIM118
            weights |= {name.removeprefix(_PREFIX): file.get_tensor(name) for name in names}
    return weights


def _paths_of_whole(source: str, hub: Mapping[str, Any]) -> list[Path]:
    """The files that hold the projector's weights."""
    index = cached_file(source, SAFE_WEIGHTS_INDEX_NAME, _raise_exceptions_for_missing_entries=False, **hub)
    names = {SAFE_WEIGHTS_NAME}
    if index is not None:
        files = read_json_object(index).get("weight_map")
        held = files.items() if isinstance(files, dict) else ()
        names = {str(file) for weight, file in held if weight.startswith(_PREFIX)}
    paths = [Path(str(cached_file(source, name, **hub))) for name in sorted(names)]
    for path in paths:
        check_regular_file(path)
    return paths
