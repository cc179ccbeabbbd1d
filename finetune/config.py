"""Every option of a command is a dataclass field with a line of help. A YAML recipe comes first, and flags override it.

All values are words, numbers or lists of them, except for a `Source`: records to learn from.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from safetensors import SafetensorError
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from tap_tokenizer import write_whole

Arguments = TypeVar("Arguments")

RECIPES = Path(__file__).parent / "recipes"

MAX_RECIPE = 100_000
"""The most bytes that a recipe may have, because the parser is slow. The longest shipped recipe has a few thousand."""

_GONE, _GONE_FROM_SOURCES = ("anchor_weight", "mask_history", "new_region_tokenizer", "same_region"), ("questions",)
"""Options of earlier versions. Saved arguments hold them still: a value that turned one off is passed over."""


def knob(*, help: str, default: Any = MISSING, default_factory: Any = MISSING, free: bool = False) -> Any:
    """A field of an arguments dataclass, with its line of help.

    free: the value may change when a run is continued, because it changes nothing that is learned.
    """
    return field(default=default, default_factory=default_factory, metadata={"help": help, "free": free})


@dataclass(frozen=True)
class Source:
    """Records to learn from."""

    records: str = knob(help="record file")
    cache: str | None = knob(
        default=None, help="its cache; none for records without pictures, which are conversations in words"
    )
    weight: float | None = knob(default=None, help="how often it is drawn; default: in proportion to its size")
    turns: int = knob(
        default=0,
        help="how many questions of a record are asked in a row; 0 for all; only if its questions do not refer to each other",
    )
    loss: Literal["answers", "teacher"] = knob(
        default="answers",
        help="answers: learn the answers as they stand; teacher: learn how likely the language model without its adapter finds "
        "each of their words when it is told in words what the regions are (see finetune.distill). A conversation is then cut "
        "to questions in a row that it was told in the same form",
    )

    def __post_init__(self) -> None:
        if self.loss not in ("answers", "teacher"):
            raise ValueError(f"loss is {self.loss!r} for {self.records}, expected answers or teacher.")
        if self.turns < 0:
            raise ValueError(f"Got turns {self.turns} for {self.records}: give a number, or 0 for all.")


_SOURCE = {"records": str, "cache": str, "weight": float, "turns": int, "loss": str}

COLUMNS = {"data": "records", "caches": "cache", "weights": "weight", "turns": "turns", "losses": "loss"}
"""Flags that give one field of every source, in order: `--data a.jsonl b.jsonl --caches a_cache b_cache`."""


def read_source(text: str) -> Source:
    """A source from a JSON object of its fields."""
    try:
        row = {name: value for name, value in json.loads(text).items() if value is not None}
        return Source(**{name: _SOURCE[name](str(value)) for name, value in row.items()})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise argparse.ArgumentTypeError(
            f"got the source {text} ({error}), expected records, and maybe cache, weight, turns and loss"
        ) from None


def sources_of(sources: Sequence[Source], columns: Mapping[str, Sequence[Any] | None]) -> list[Source]:
    """The sources, with the fields that columns give them (see `COLUMNS`) in place of those that they had."""
    given = {name: values for name, values in columns.items() if values}
    count = len(given.get("data", sources))
    rows = [asdict(source) for source in sources] if len(sources) == count else [{} for _ in range(count)]
    for name, values in given.items():
        if len(values) != count:
            raise ValueError(f"Got {len(values)} {name} for {count} data: give one for each.")
        for row, value in zip(rows, values):
            row[COLUMNS[name]] = value
    return [Source(**row) for row in rows]


def check_sources(sources: Sequence[Source]) -> None:
    """Refuse an empty list of sources, and weights for only some of them."""
    if not sources:
        raise ValueError("Got no sources: give data, and a cache for each file of records with pictures.")
    weighted = sum(source.weight is not None for source in sources)
    if weighted not in (0, len(sources)):
        raise ValueError(f"Got {weighted} weights for {len(sources)} data: give one for each, or none.")


class _Parser(HfArgumentParser):
    """Passes a field's metadata to argparse, except for `free`, which argparse does not know."""

    def add_argument(self, *names: str, free: bool = False, **options: Any) -> argparse.Action:
        return super().add_argument(*names, **options)


def parse_arguments(
    arguments_type: type[Arguments], argv: Sequence[str] | None = None, *, description: str | None = None
) -> Arguments:
    """Read `--config recipe.yaml` and flags into a dataclass, and print where each value came from.

    A recipe is a mapping of field names to plain values, and `sources` to a list of mappings; it may be given by path or by
    the name of a shipped one. Unknown names and values of the wrong type end the program with a message, before anything is
    done.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    finder = argparse.ArgumentParser(add_help=False)
    finder.add_argument("--config")
    config, flags = finder.parse_known_args(argv)
    parser = _Parser(
        arguments_type,
        description=description or arguments_type.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="RECIPE", help="YAML file, or name of a shipped recipe; flags override it")
    own_names = {f.name for f in fields(arguments_type)}  # type: ignore[arg-type]
    has_columns = "sources" in own_names and "data" not in own_names  # else sources are given whole
    if has_columns:
        for name, own in COLUMNS.items():
            help_ = next(f.metadata["help"] for f in fields(Source) if f.name == own)
            parser.add_argument(f"--{name}", nargs="+", type=_SOURCE[own], help=f"for each source: {help_}")
    for action in parser._actions:
        if action.dest == "sources":
            action.type, action.metavar = read_source, "JSON"
        if action.type is string_to_bool:
            action.nargs, action.const = "?", True  # a bare flag says true, also where the default is neither
        if action.default not in (None, argparse.SUPPRESS, MISSING, []) and "default" not in (action.help or ""):
            action.help = f"{action.help} (default: {str(action.default).replace('%', '%%')})"
    recipe = _read_recipe(config.config, parser, arguments_type) if config.config else {}
    values = parser.parse_args([*_as_flags(recipe), *flags])
    if has_columns:
        values.sources = sources_of(values.sources, {name: getattr(values, name) for name in COLUMNS})
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


def refuse_other_arguments(arguments: Any, path: Path) -> None:
    """Refuse to continue a run whose saved arguments differ, except for those that may change (`knob(free=True)`)."""
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
    if "data" in old and "sources" not in old:  # saved before there were sources
        old["sources"] = [asdict(source) for source in sources_of([], {name: old.get(name) for name in COLUMNS})]
    if "sources" in old:  # one that was saved before a field existed has its default
        old["sources"] = [{**asdict(Source("")), **source} for source in old["sources"]]
    free = {f.name for f in fields(arguments) if f.metadata.get("free")}
    changed = [f"{key} {old[key]!r}, which no longer exists" for key in _GONE if key in old]
    changed += [
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


def shipped_recipes() -> list[str]:
    """The names of the recipes in this package, e.g. `bundled/tap_dense`; those for accelerate are none of ours."""
    found = (path.relative_to(RECIPES).with_suffix("").as_posix() for path in RECIPES.rglob("*.yaml"))
    return sorted(name for name in found if not name.startswith("accelerate/"))


def shipped_file(name: str) -> Path:
    """The file by this path or, if there is none, the shipped one by this name, with or without its folder."""
    shipped = (
        path for path in sorted(RECIPES.rglob("*")) if f"/{path.relative_to(RECIPES).as_posix()}".endswith(f"/{name}")
    )
    return path if (path := Path(name)).is_file() else next(shipped, path)


def _read_recipe(name: str, parser: argparse.ArgumentParser, arguments_type: type) -> dict[str, Any]:
    path = Path(name)
    if not path.is_file():
        path = shipped_file(f"{name.removesuffix('.yaml')}.yaml")
    if not path.is_file():
        parser.error(f"found no recipe {name}: give a YAML file or one of {', '.join(shipped_recipes())}")
    try:
        values = _read_mapping(path)
    except ValueError as error:
        parser.error(str(error))
    names = {f.name for f in fields(arguments_type)}
    columns = set(COLUMNS) if "sources" in names and "data" not in names else set()
    unknown = sorted(map(str, set(values) - names - columns))
    if unknown:
        parser.error(f"{path} has unknown names {', '.join(unknown)}: see --help for those that exist")
    return values


def _read_mapping(path: Path) -> dict[str, Any]:
    """A YAML file of names with plain values or lists of them, and of `sources` with a list of mappings to plain values.

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
    if not isinstance(values, dict) or any(
        isinstance(item, dict)
        for name, value in values.items()
        for item in ([value] if not isinstance(value, list) else [] if name == "sources" else value)
    ):
        raise ValueError(f"{path} holds a {type(values).__name__}, expected a mapping of names to plain values.")
    sources = values["sources"] if isinstance(values.get("sources"), list) else []
    for mapping in filter(lambda one: isinstance(one, dict), [values, *sources]):
        for name in _GONE if mapping is values else _GONE_FROM_SOURCES:
            if not mapping.get(name):
                mapping.pop(name, None)
    return values


def _nested_line(text: str) -> int | None:
    """The line of YAML in which more than a plain value lies where there should be one, itself or by its alias.

    A mapping of names may hold lists, and these may hold mappings; nothing lies deeper.
    """
    depth = 0
    collections = set()
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            if depth > 2 or (depth and isinstance(event, yaml.MappingStartEvent) != (depth == 2)):
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
        items = value if isinstance(value, list) else [value]
        words += [json.dumps(item) if isinstance(item, dict) else str(item) for item in items]
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
