"""Models that are known by name: those that come with our packages, and those that other packages bring."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

BUNDLED = Path(__file__).parent / "pretrained"
_BUNDLES = [BUNDLED]


@dataclass(frozen=True)
class PackagedModel:
    """A model that another Python package brings as a GGUF file, and that lies on the Hub as well.

    package: name of the module, which is found without being imported. repository: its name on the Hub. install: the
    command that installs the package and what reads its file. readers: the modules that read its file.
    """

    package: str
    repository: str
    install: str
    readers: tuple[str, ...] = ("gguf", "accelerate")

    @property
    def is_installed(self) -> bool:
        """Whether the package is there with all that reads its file."""
        return self.place() != self.repository and all(find_spec(name) is not None for name in self.readers)

    def place(self) -> str:
        """The package's GGUF file if the package is installed, else the repository."""
        spec = find_spec(self.package)
        folders = spec.submodule_search_locations or [] if spec is not None else []
        files = [str(file) for folder in folders for file in sorted(Path(folder).glob("*.gguf"))]
        return files[0] if files else self.repository


_PACKAGED: dict[str, PackagedModel] = {}


def add_bundled(folder: Path) -> None:
    """Let the models in the subfolders of a folder be loaded by their names, too."""
    _BUNDLES.append(folder)


def add_packaged(name: str, model: PackagedModel) -> None:
    """Let a model of another package be loaded by a name, too."""
    _PACKAGED[name] = model


def bundled_names() -> list[str]:
    """The names of all bundled models."""
    return sorted(file.parent.name for bundle in _BUNDLES for file in bundle.glob("*/config.json"))


def bundled_or_given(source: str | Path) -> str:
    """The folder, file or repository of a model that is known by name, or the folder or repository that was named.

    A folder of that name comes first.
    """
    if Path(source).is_dir():
        return str(source)
    folders = [bundle / str(source) for bundle in _BUNDLES]
    if found := next((folder for folder in folders if (folder / "config.json").is_file()), None):
        return str(found)
    packaged = _PACKAGED.get(str(source))
    return str(source) if packaged is None else packaged.place()


def is_here(source: str | Path) -> bool:
    """Whether a model of another package is on this machine: as a folder of its name, or in the package, with all that reads
    its file. True for all other names.
    """
    packaged = _PACKAGED.get(str(source))
    return packaged is None or Path(source).is_dir() or packaged.is_installed


def install_command(source: str | Path) -> str | None:
    """What installs the package that brings a model of this name and what reads it; None if all is there, or not needed."""
    return None if is_here(source) else _PACKAGED[str(source)].install


@contextmanager
def absence_told(source: str | Path) -> Iterator[None]:
    """Around a search on the Hub: if it fails for a model of another package, `OSError` says how to install that package."""
    try:
        yield
    except OSError as error:
        command = install_command(source)
        if command is None:
            raise
        raise OSError(
            f"Found no {source}: there is no folder of that name, the package that brings it is not installed, and "
            f"{bundled_or_given(source)} did not come from the Hub. Install it: {command}"
        ) from error
