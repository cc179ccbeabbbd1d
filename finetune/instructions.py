"""What a language model is asked about regions when it teaches itself: a pool of instructions, and the drawing from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from llm_bridge import region_numbers

SHIPPED = "shipped"
_SHIPPED_FILE = Path(__file__).with_name("instructions.yaml")

UNSEEN = "unseen"
"""The kind of instruction whose right answer is that it cannot be seen."""

JSON = "json"
"""The kind of instruction that asks for JSON alone."""

WHICH = "Which of these"
"""What a question begins with that asks which of several things it is true of."""

THING, PLACE = "{thing}", "{place}"
"""What stands, in a question to be answered with yes or no, for what a region may be and for where it may be."""

_HELD_OUT_EVERY = 8


@dataclass(frozen=True)
class Instruction:
    """Words that ask about `<region1>`, or also about `<region2>`, …; or "Which of these …?", which is asked of any regions.

    Words with `{thing}` or `{place}` ask whether one region is such a thing, or is there.

    hint: what the teacher alone reads after them. is_held_out: whether it is asked in evaluations only. is_of_kinds: whether
    the answer depends on nothing but what kind of thing a region shows. weight: how often its kind is drawn, beside others.
    """

    kind: str
    text: str
    hint: str = ""
    is_held_out: bool = False
    is_of_kinds: bool = False
    weight: int = 1

    @property
    def is_choice(self) -> bool:
        """Whether it asks which of several regions something is true of."""
        return self.text.startswith(WHICH)

    @property
    def is_statement(self) -> bool:
        """Whether it asks if something is true of a region, which is put in the place of its braces."""
        return THING in self.text or PLACE in self.text

    @property
    def regions(self) -> int:
        """How many regions it asks about, at least."""
        return 2 if self.is_choice else max(region_numbers(self.text))


def file_of(name: str) -> Path:
    """The YAML file of this path, or of the shipped pool (`shipped`)."""
    return _SHIPPED_FILE if name == SHIPPED else Path(name)


def load_instructions(names: Sequence[str], kinds: Sequence[str] = ()) -> list[Instruction]:
    """The instructions of YAML files, or of the shipped pool (`shipped`): lists by kind, `hints` by kind, and as `of_kinds` the
    kinds of instructions whose answer depends on nothing but what kind of thing a region shows.

    Every eighth of a kind is held out. kinds: those that are wanted; by default all. A kind that is named twice is asked twice
    as often. Raises `ValueError` for a file of another form, an instruction without a region, or a kind that there is not.
    """
    found: list[Instruction] = []
    for name in names:
        path = file_of(name)
        try:
            pool = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from None
        pool = pool if isinstance(pool, dict) else {}
        hints, of_kinds = pool.pop("hints", {}), pool.pop("of_kinds", [])
        lists = [of_kinds, *pool.values()]
        if not isinstance(hints, dict) or not pool or not all(isinstance(texts, list) for texts in lists):
            raise ValueError(f"{path} holds no lists of instructions by kind, as finetune/instructions.yaml does.")
        for kind, texts in pool.items():
            for number, text in enumerate(texts, 1):
                _check(path, str(text), str(hints.get(kind, "")))
                is_held_out = number % _HELD_OUT_EVERY == 0
                hint = str(hints.get(kind, ""))
                weight = max(1, list(kinds).count(str(kind)))
                found.append(Instruction(str(kind), str(text), hint, is_held_out, kind in of_kinds, weight))
    known = dict.fromkeys(one.kind for one in found)
    if unknown := [kind for kind in kinds if kind not in known]:
        raise ValueError(f"kinds has {', '.join(unknown)}, expected some of {', '.join(known)}.")
    return [one for one in found if not kinds or one.kind in kinds]


def _check(path: Path, text: str, hint: str) -> None:
    """Refuse an instruction that cannot be asked, or whose hint speaks of other regions."""
    numbers, braces = region_numbers(text), text.count(THING) + text.count(PLACE)
    if sorted(numbers) != list(range(1, len(numbers) + 1)) or bool(numbers) == text.startswith(WHICH):
        raise ValueError(
            f"{path} asks {text!r}, expected <region1>, or <region1> and <region2>, … in each instruction, or "
            f'"{WHICH} …?" without any.'
        )
    if braces > 1 or (braces and len(numbers) != 1):
        raise ValueError(f"{path} asks {text!r}, expected {THING} or {PLACE} once, and beside it <region1> alone.")
    if more := set(region_numbers(hint)) - set(numbers):
        raise ValueError(f"{path} has the hint {hint!r} for {text!r}, expected none of <region{min(more)}> in it.")


def never_held_out(pool: Sequence[Instruction]) -> list[str]:
    """The kinds of which no instruction is held out, because they have too few."""
    held_out = {one.kind for one in pool if one.is_held_out}
    return [kind for kind in dict.fromkeys(one.kind for one in pool) if kind not in held_out]


def draw_instruction(
    pool: Sequence[Instruction], regions: int, random: np.random.RandomState, *, held_out: bool = False
) -> Instruction | None:
    """An instruction about at most so many regions: a random one of a kind drawn by weight; None if there is none."""
    fitting = [one for one in pool if one.regions <= regions and one.is_held_out == held_out]
    weights = {one.kind: one.weight for one in fitting}
    kinds = [kind for kind, weight in weights.items() for _ in range(weight)]
    if not kinds:
        return None
    kind = kinds[random.randint(len(kinds))]
    of_kind = [one for one in fitting if one.kind == kind]
    return of_kind[random.randint(len(of_kind))]
