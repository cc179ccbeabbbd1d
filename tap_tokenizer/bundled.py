"""The models that come with the packages, by name."""

from __future__ import annotations

from pathlib import Path

BUNDLED = Path(__file__).parent / "pretrained"
_BUNDLES = [BUNDLED]


def add_bundled(folder: Path) -> None:
    """Let the models in the subfolders of a folder be loaded by their names, too."""
    _BUNDLES.append(folder)


def bundled_names() -> list[str]:
    """The names of all bundled models."""
    return sorted(file.parent.name for bundle in _BUNDLES for file in bundle.glob("*/config.json"))


def bundled_or_given(source: str | Path) -> str:
    """The folder of a bundled model, or the folder or repository that was named."""
    folders = [bundle / str(source) for bundle in _BUNDLES]
    found = next((folder for folder in folders if (folder / "config.json").is_file()), None)
    return str(source) if found is None or Path(source).is_dir() else str(found)
