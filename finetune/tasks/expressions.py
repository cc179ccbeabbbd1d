"""What the protocols of referring expressions share: which regions of a picture an expression means, found among candidates.

Candidates are the annotated objects, all that everything mode finds, or the regions of a file. Masks are those that TAP draws
of the regions that are found. An expression whose object no candidate covers counts like any other: it cannot be found.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from llm_bridge import FoundRegions, asked_phrase, find_question
from tap_tokenizer import RegionPrompt

from ..data.entries import LeftOut, Problems, is_number, mask_fault
from ..data.grounding import CandidateFile, meant_numbers
from ..data.refcoco import PictureExpressions, RefCocoSource, ReferringSource, names_of
from ..records import Record, Region, Turn, decode_mask, encode_mask
from .items import EvaluationSet, Item
from .predictions import Line, lacking, match_lines
from .task import Published, Task

TRUE, EVERYTHING = "true", "everything"
"""Values of the option `candidates`; any other is a file."""


@dataclass
class ExpressionItem(Item):
    """An expression. Its record has the candidates as regions; targets: the objects that it means; mask: the truth (H, W)."""

    phrase: str = ""
    targets: list[Region] = field(default_factory=list)

    @property
    def mask(self) -> np.ndarray:
        """The union of the targets' masks, booleans (H, W); empty if nothing is meant."""
        size = self.record.size
        masks = [decode_mask(region.mask, size) for region in self.targets]
        return np.logical_or.reduce(masks) if masks else np.zeros(size, dtype=bool)


@dataclass(kw_only=True)
class ExpressionTask(Task):
    """References of RefCOCO's form beside COCO's instances, or records whose questions ask to find regions.

    by_split: published figures by the split that they are of.
    """

    by_split: Mapping[str, Sequence[Published]] = field(default_factory=dict)
    max_new_tokens: int | None = None
    source: ClassVar[type[ReferringSource]] = RefCocoSource
    takes = frozenset({"references", "split", "candidates"})
    is_percent = True
    may_be_partial = True

    def configure(self, options: Any) -> None:
        super().configure(options)
        if options.data is not None and (options.references is not None or options.split is not None):
            raise ValueError("Got data with references or split: give records of your own, or the benchmark's files.")
        if options.data is None and options.references is None:
            raise ValueError(
                f"{self.name} needs its references=… (such as refs(unc).p) beside annotations=…, or data=… with records of "
                "your own."
            )
        self.split = options.split or "val"
        self.candidates = options.candidates or TRUE
        if self.candidates not in (TRUE, EVERYTHING) and not Path(self.candidates).is_file():
            raise ValueError(f"candidates is {self.candidates}, expected {TRUE}, {EVERYTHING}, or a file of regions.")
        self.published = self.by_split.get(self.split, ())
        self._expressions: dict[Any, dict[str, tuple[str, list[Region]]]] = {}

    # --- reading ------------------------------------------------------------------------------------------------------

    def read_file(self, path: Path, found: EvaluationSet, limit: int | None) -> None:
        images = str(found.root)
        source = self.source(
            output=str(found.root / "none.jsonl"), images=images, references=str(self.options.references),
            annotations=str(path), split=self.split, show_all=True,
        )  # fmt: skip
        source.require(source.references)
        for picture in source.pictures():
            if limit is not None and len(found.records) == limit:
                break
            self._take(found, picture)
        self._read_candidates(found)
        found.problems.extend("entry that cannot be used", source.left_out.named)

    def _take(self, found: EvaluationSet, picture: PictureExpressions) -> None:
        regions = [replace(region, id=key) for key, region in picture.objects.items()]
        record = Record(picture.path, picture.size[1], picture.size[0], regions, [], self.title, image_id=picture.id)
        objects = {str(region.id): region for region in regions}
        self._expressions[picture.id] = {
            name: (phrase, [objects[key] for key in keys]) for name, (phrase, keys) in picture.expressions.items()
        }
        found.records.append(record)

    def read_own(self, data: str, limit: int | None) -> EvaluationSet:
        found = super().read_own(data, limit)
        for record in found.records:
            own = self._expressions.setdefault(record.image_id, {})
            turns = record.conversations
            for place, i in enumerate(i for i, turn in enumerate(turns) if turn.role == "user"):
                phrase = asked_phrase(turns[i].content)
                answer = turns[i + 1].content if turns[i + 1 : i + 2] else ""
                key = f"{record.image_id}/q{place}"
                if phrase is None or not answer:
                    found.problems.add("question that does not ask to find regions, or has no answer", key)
                    continue
                numbers = meant_numbers(answer, len(record.regions))
                if numbers is None:
                    found.problems.add("answer that neither names regions of its record nor says none", key)
                    continue
                own[key] = phrase, [record.regions[number - 1] for number in numbers]
        self._read_candidates(found)
        return found

    def _read_candidates(self, found: EvaluationSet) -> None:
        """Give each record its candidates as regions; none, where everything mode is to find them."""
        if self.candidates == TRUE:
            return
        left_out = LeftOut(show_all=True)
        file = None if self.candidates == EVERYTHING else CandidateFile(self.candidates, left_out)
        for record in found.records:
            record.regions = [] if file is None else file.regions(_names(record), record.size)
            if file is not None and not record.regions:
                found.problems.add("picture without candidates", str(record.image_id))
        if file is not None:
            file.close()
            if found.records and not any(record.regions for record in found.records):
                raise ValueError(
                    f"{self.candidates} has regions of none of these pictures: expected pictures that are called by the same "
                    "file names, or by their ids."
                )
        found.problems.extend("candidate that cannot be used", left_out.named)

    def items(self, record: Record, problems: Problems) -> list[Item]:
        found: list[Item] = []
        for key, (phrase, targets) in self._expressions[record.image_id].items():
            if fault := self.target_fault(targets, record.size):
                problems.add(fault, key)
                continue
            asked = replace(record, conversations=[Turn("user", find_question(phrase))])
            truth = [str(region.id) for region in targets] or ["none"]
            rows = list(range(len(record.regions)))
            found.append(ExpressionItem(key, asked, rows, truth, phrase=phrase, targets=targets))
        return found

    def target_fault(self, targets: Sequence[Region], size: tuple[int, int]) -> str | None:
        """Why an expression of these objects cannot be scored; None if it can."""
        return None

    def prompts(self, record: Record) -> list[RegionPrompt] | None:
        """The candidates of a picture; None if everything mode is to find them."""
        return None if self.candidates == EVERYTHING else record.prompts()

    # --- lines and scores ---------------------------------------------------------------------------------------------

    def found_line(self, found: FoundRegions, size: tuple[int, int]) -> Line:
        """A line's content for what was found: boxes xyxy, the best first, the union of masks, and probabilities."""
        mask = found.masks.any(dim=0).cpu().numpy() if len(found) else np.zeros(size, dtype=bool)
        return {
            "answer": found.answer,
            "boxes": [[round(x, 2) for x in box] for box in found.boxes.tolist()],
            "mask": encode_mask(mask),
            "probabilities": [round(share, 4) for share in found.probabilities.tolist()],
            "none_probability": round(found.none_probability, 4),
        }

    def line_fault(self, line: Line) -> str | None:
        if fault := lacking(line, "id"):
            return fault
        if "boxes" not in line and "mask" not in line:
            return "lacks boxes or mask"
        boxes = line.get("boxes", [])
        if not isinstance(boxes, list) or not all(
            isinstance(box, list) and len(box) == 4 and all(map(is_number, box)) for box in boxes
        ):
            return "has boxes that are not lists of four finite numbers"
        return None

    def score(self, row: str, lines: Sequence[Line], items: Sequence[Item], found: EvaluationSet) -> dict[str, Any]:
        """A line that is missing, or whose picture did not open, found nothing, and does not say that there is none."""
        by_id = match_lines(lines, [item.id for item in items], row, found.problems)
        own = [item for item in items if isinstance(item, ExpressionItem)]
        return {**self.scores([by_id[item.id] for item in own], own), "expressions": len(own)}

    @abstractmethod
    def scores(self, lines: Sequence[Line], items: Sequence[ExpressionItem]) -> dict[str, float]:
        """The numbers of one row, by column, from a line for each item."""

    def notes(self) -> list[str]:
        if self.options.predictions is not None:
            return []
        named = {TRUE: "the annotated objects", EVERYTHING: "all that everything mode finds"}
        return [f"candidates are {named.get(self.candidates, f'the regions of {self.candidates}')}"]


def _names(record: Record) -> list[str]:
    """What a file of candidates may call a record's picture."""
    path = str(record.image["path"] if isinstance(record.image, dict) else record.image)
    return names_of(str(record.image_id), path)


def masks_fault(targets: Sequence[Region], size: tuple[int, int]) -> str | None:
    """What is wrong with the masks of objects, in words; None if nothing is."""
    return next((f"expression of an object with {fault}" for r in targets if (fault := mask_fault(r.mask, size))), None)


def predicted_mask(line: Line, size: tuple[int, int]) -> np.ndarray:
    """The mask (H, W) that a line predicts; empty if it has none, or is of a picture that did not open."""
    if line.get("problem") or not line.get("mask"):
        return np.zeros(size, dtype=bool)
    try:
        return decode_mask(line["mask"], size)
    except ValueError as error:
        raise ValueError(f"The prediction for {line['id']} has no mask of its picture: {error}") from None


def areas(lines: Sequence[Line], items: Sequence[ExpressionItem]) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of the intersection and of the union of predicted and true mask, (N,) each."""
    pairs = [(predicted_mask(line, item.record.size), item.mask) for line, item in zip(lines, items)]
    both = np.array([int((said & true).sum()) for said, true in pairs], dtype=np.int64)
    either = np.array([int((said | true).sum()) for said, true in pairs], dtype=np.int64)
    return both, either


SPLITS = {"RefCOCO": ("val", "testA", "testB"), "RefCOCO+": ("val", "testA", "testB"), "RefCOCOg": ("val", "test")}
"""The splits of each data set, in the order in which papers print them."""


def by_split(column: str, *rows: tuple[str, str, dict[str, str]]) -> dict[str, list[Published]]:
    """Published figures by split; rows: a system, the source, and its figures in percent by data set, one for each split as
    papers print them ("85.1/87.1/83.4"), where an empty one is not known.
    """
    found: dict[str, list[Published]] = {}
    for system, source, figures in rows:
        for name, printed in figures.items():
            for split, figure in zip(SPLITS[name], printed.split("/")):
                if figure:
                    one = Published(f"{system}, {name} {split}", {column: round(float(figure) / 100, 6)}, source)
                    found.setdefault(split, []).append(one)
    return found
