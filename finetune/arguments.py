"""Every knob of a command as a dataclass field with a line of help: a YAML recipe first, flags override.

Knows how to read and show arguments; what they mean belongs to the command that declares them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, asdict, field, fields
from pathlib import Path
from typing import Any, TypeVar

import yaml
from safetensors import SafetensorError
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from tap_tokenizer import write_whole

Arguments = TypeVar("Arguments")

RECIPES = Path(__file__).parent / "recipes"

MAX_RECIPE = 100_000
"""Bytes of a recipe, which is read by a slow parser. The longest that ships has about a thousand."""


def knob(*, help: str, default: Any = MISSING, default_factory: Any = MISSING) -> Any:
    """A field of an arguments dataclass, with its line of help."""
    return field(default=default, default_factory=default_factory, metadata={"help": help})


def parse_arguments(
    arguments_type: type[Arguments], argv: Sequence[str] | None = None, *, description: str | None = None
) -> Arguments:
    """Read `--config recipe.yaml` and flags into a dataclass, and print where each value came from.

    A recipe is a flat mapping of field names; it may be given by path or by the name of a shipped one. Unknown names
    and values of the wrong type end the program with a message, before anything is done.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    finder = argparse.ArgumentParser(add_help=False)
    finder.add_argument("--config")
    config, flags = finder.parse_known_args(argv)
    parser = HfArgumentParser(
        arguments_type, description=description or arguments_type.__doc__, formatter_class=argparse.HelpFormatter
    )
    parser.add_argument("--config", metavar="RECIPE", help="YAML file, or name of a shipped recipe; flags override it")
    for action in parser._actions:
        if action.type is string_to_bool:
            action.nargs, action.const = "?", True  # a bare flag says true, also where the default is neither
        if action.default not in (None, argparse.SUPPRESS, MISSING, []) and "default" not in (action.help or ""):
            action.help = f"{action.help} (default: {str(action.default).replace('%', '%%')})"
    recipe = _read_recipe(config.config, parser, arguments_type) if config.config else {}
    values = parser.parse_args([*_as_flags(recipe), *flags])
    named = {action.dest for action in parser._actions for option in action.option_strings if _given(option, flags)}
    arguments = arguments_type(**{f.name: getattr(values, f.name) for f in fields(arguments_type) if f.init})  # type: ignore[arg-type]
    _show(arguments, recipe, named, config.config)
    return arguments


def run_command(main: Callable[[], None]) -> int:
    """Run a command's `main`; bad input and files that fail end it with one line and exit code 2, not with a traceback."""
    try:
        main()
    except KeyboardInterrupt:
        print(
            "stopped: run the same command again to continue from the last state on disk, if there is one",
            file=sys.stderr,
        )
        return 130
    except (ValueError, OSError, SafetensorError) as error:
        name = getattr(sys.modules["__main__"].__spec__, "name", "finetune")
        print(f"python -m {name}: {error}", file=sys.stderr)
        return 2
    return 0


def check_counts(arguments: Any, *names: str, least: int = 1) -> None:
    """Refuse numbers that are lower than they can be."""
    if low := [name for name in names if getattr(arguments, name) < least]:
        values = ", ".join(f"{name} {getattr(arguments, name)}" for name in low)
        raise ValueError(f"Got {values}: expected at least {least}.")


def refuse_other_arguments(arguments: Any, path: Path, free: Sequence[str]) -> None:
    """Refuse to go on with a run whose saved arguments were others, but for those that may change (`free`)."""
    if not path.is_file():
        return
    new = asdict(arguments)
    try:
        old = _read_mapping(path)
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}), so it cannot show whether this run is the same: restore it, or use another "
            "output_dir."
        ) from None
    changed = [
        f"{key} {old[key]!r}, now {new[key]!r}"
        for key in new
        if key in old and key not in free and old[key] != new[key]
    ]
    if changed:
        raise ValueError(
            f"{path.parent} holds a run with other arguments ({'; '.join(changed)}): use another output_dir."
        )


def save_arguments(arguments: Any, path: Path) -> None:
    """Write the resolved values as a recipe, which `--config` reads again."""
    write_whole(path, yaml.safe_dump(asdict(arguments), sort_keys=False, allow_unicode=True))


def _read_recipe(name: str, parser: argparse.ArgumentParser, arguments_type: type) -> dict[str, Any]:
    path = Path(name)
    if not path.is_file():
        path = RECIPES / f"{name.removesuffix('.yaml')}.yaml"
    if not path.is_file():
        shipped = ", ".join(sorted(p.stem for p in RECIPES.glob("*.yaml")))
        parser.error(f"found no recipe {name}: give a YAML file or one of {shipped}")
    try:
        values = _read_mapping(path)
    except ValueError as error:
        parser.error(str(error))
    unknown = sorted(map(str, set(values) - {f.name for f in fields(arguments_type)}))
    if unknown:
        parser.error(f"{path} has unknown names {', '.join(unknown)}: see --help for those that exist")
    return values


def _read_mapping(path: Path) -> dict[str, Any]:
    """A YAML file of names with plain values or lists of them.

    Raises `ValueError` for any other, before it is unfolded: aliases inside of lists can make terabytes of a few lines.
    """
    if path.stat().st_size > MAX_RECIPE:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes, expected a recipe of at most {MAX_RECIPE:,}.")
    try:
        text = path.read_text(encoding="utf-8-sig")
        line = _nested_line(text)
        values = yaml.safe_load(text) if line is None else None
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from None
    if line is not None:
        raise ValueError(f"{path}, line {line}: expected a plain value, or a list of plain values.")
    if not isinstance(values, dict) or any(isinstance(value, dict) for value in values.values()):
        raise ValueError(f"{path} holds a {type(values).__name__}, expected a mapping of names to plain values.")
    return values


def _nested_line(text: str) -> int | None:
    """The line of YAML in which anything but a plain value lies inside a value, itself or by its alias."""
    depth = 0
    collections = set()
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            if depth > 1 or (depth and isinstance(event, yaml.MappingStartEvent)):
                return int(event.start_mark.line) + 1
            collections.add(event.anchor)
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.AliasEvent) and depth > 1 and event.anchor in collections:
            return int(event.start_mark.line) + 1
    return None


def _as_flags(recipe: dict[str, Any]) -> list[str]:
    """A recipe as command-line words, so that both are read and checked in one way."""
    words: list[str] = []
    for name, value in recipe.items():
        if value is None or value == []:
            continue
        words.append(f"--{name}")
        words += [str(item) for item in value] if isinstance(value, list) else [str(value)]
    return words


def _given(option: str, flags: Sequence[str]) -> bool:
    return any(flag == option or flag.startswith(option + "=") for flag in flags)


def _show(arguments: Any, recipe: dict[str, Any], named: set[str], source: str | None) -> None:
    shown = [f for f in fields(arguments) if f.init]
    width = max(len(f.name) for f in shown)
    print("arguments:")
    for f in shown:
        origin = "flag" if f.name in named else source if f.name in recipe else "default"
        print(f"  {f.name:<{width}}  {getattr(arguments, f.name)!r:<32} ({origin})")
