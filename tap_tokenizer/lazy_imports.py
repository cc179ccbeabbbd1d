"""What is imported when: a package's names as they are asked for, its registration once transformers is there.

torch and transformers take seconds to import, which `--help` has no use for.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any


def lazy_names(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package (PEP 562) for all names that its file imports, be it only for type checkers."""
    imports = (node for node in ast.walk(ast.parse(Path(file).read_bytes())) if isinstance(node, ast.ImportFrom))
    places = {alias.name: node.module for node in imports if node.level == 1 for alias in node.names}

    def get(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{places[name]}"), name)
        setattr(sys.modules[package], name, value)  # the next time nobody asks here
        return value

    return get, lambda: sorted({*vars(sys.modules[package]), *places})


def once_transformers_is_there(package: str, register: Callable[[], None]) -> None:
    """Call `register` now if transformers is imported; else as soon as it is, by whomever.

    If a module of ours imports it, `register` waits until that module is complete, since it imports them all.
    """
    if "transformers" in sys.modules:
        register()
        return
    if _watch not in sys.meta_path:
        sys.meta_path.insert(0, _watch)
    _watch.waiting[package] = register


class _ImportWatch:
    """A finder that finds nothing by itself: it hears when the imports of transformers, and of packages that wait, are over."""

    def __init__(self) -> None:
        self.waiting: dict[str, Callable[[], None]] = {}
        self.depth = 0

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != "transformers" and name.partition(".")[0] not in self.waiting:
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = partial(self._run, spec.loader.exec_module)  # type: ignore[method-assign]
        return spec

    def _run(self, exec_module: Callable[[Any], None], module: Any) -> None:
        self.depth += 1
        try:
            exec_module(module)
        finally:
            self.depth -= 1
        if not self.depth and "transformers" in sys.modules and self in sys.meta_path:
            sys.meta_path.remove(self)
            for register in self.waiting.values():
                register()


_watch = _ImportWatch()
