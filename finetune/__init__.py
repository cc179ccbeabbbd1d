"""Finetune teaches: records → checkpoint → numbers."""

from importlib.util import find_spec as _find_spec

if _lacking := [name for name in ("accelerate", "datasets", "matplotlib", "peft") if _find_spec(name) is None]:
    raise ModuleNotFoundError(f"finetune needs {', '.join(_lacking)}: pip install 'tap-bridge[train]'")
