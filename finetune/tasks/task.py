"""`Task`, a protocol: what it reads, what it asks about, how it scores answers, and the columns of its table.

A benchmark is a `Task` in a file of its own and a row in the table of this package's `__init__`. Every task runs on your own
records, too. If a protocol changes, it gets a new version. Scores are shares, both ours and published ones.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from tap_tokenizer import ImageFeatures, TapRegionTokenizer

from ..config import knob
from ..data.entries import EntryError, Problems, is_number
from ..data.json_files import read_json
from ..data.source import LABEL_QUESTION
from ..records import Record, Region, Turn, cut_turns
from .items import EvaluationSet, Item, Place, Seen, read_own
from .predictions import Line, lacking, read_predictions

MASKS = "mask decoder"
"""The only row of a task in which masks are drawn."""


@dataclass
class TaskOptions:
    """Options of `python -m finetune.evaluate` that tasks read."""

    output: str = knob(help="folder for predictions and numbers")
    data: str | None = knob(default=None, help="records of your own, JSONL or parquet, instead of the benchmark's file")
    annotations: str | None = knob(default=None, help="the benchmark's published file")
    images: str | None = knob(default=None, help="folder of the benchmark's pictures")
    references: str | None = knob(
        default=None, help="rec, res, grefcoco: the references beside annotations: refs(unc).p, grefs(unc).json, …"
    )
    split: str | None = knob(default=None, help="rec, res, grefcoco: val, test, testA, testB or train; default: val")
    candidates: str | None = knob(
        default=None,
        help="rec, res, grefcoco: what an expression's object is chosen from: true (annotated objects, the default), "
        "everything (everything mode), or a file of regions, as for `finetune.data convert refcoco --candidates`",
    )
    boxes: str | None = knob(default=None, help="masks: detections in COCO's result format; default: the true boxes")
    qa: str | None = knob(
        default=None,
        help="dlc_bench, paradlc_bench: qa.json, with class_names.json beside it; paradlc_bench finds it beside annotations",
    )
    judge: str | None = knob(
        default=None,
        help="benchmarks with a judge: the instruct model that judges, or its name on the server of judge_url",
    )
    judge_url: str | None = knob(default=None, help="address of the judge's OpenAI-compatible server, ending in /v1")
    judge_key: str | None = knob(default=None, help="file that holds the server's key")
    judge_prompt: str | None = knob(
        default=None, help="file with the judge's prompt; EVALUATION.md lists the fields that it needs"
    )
    recognition_question: str | None = knob(
        default=None,
        help="dlc_bench, paradlc_bench: file with the first question, which has {class_name} or {a_class_name}",
    )
    verdicts: str | None = knob(default=None, help="file with a judge's replies, instead of a judge")
    predictions: str | None = knob(
        default=None,
        help="file of answers to score instead of asking a model: lines with id and answer, or a system's own answer file; "
        "masks: COCO's result format",
    )
    caption_scorer: Literal["auto", "ptb", "plain"] = knob(
        default="auto", help="captions: ptb needs Java and pycocoevalcap; auto uses it if both are there"
    )
    sentence_encoder: str | None = knob(
        default=None, help="labels: folder or Hub name of the encoder for semantic similarity"
    )
    limit: int | None = knob(
        default=None, help="evaluate only the first records, up to this many; scores are marked as those of a subset"
    )
    seed: int = knob(default=0, help="seed for drawn points and for GlyphScenes")


@dataclass(frozen=True)
class Published:
    """Figures of another system by the same protocol, and their source."""

    system: str
    scores: dict[str, float]
    source: str


@dataclass(kw_only=True)
class Task(ABC):
    """One protocol.

    An evaluation works on its own copy of the task, which keeps the run's options. It calls `configure`, `read` and `prepare`,
    and then `score` for each row.

    rules: how scores are measured, in words. question: what language models are asked about each region, if the benchmark
    itself asks nothing. history: whether earlier turns come before a question. max_new_tokens: length of an
    answer, at most; None: as long as `RegionChat.find` lets it be. whole, whole_pictures: how many items and
    pictures the published benchmark has, if that is fixed and known; other_wholes: how many items its other published sets
    have.
    """

    name: str
    title: str
    rules: str
    version: int = 1
    question: str = LABEL_QUESTION
    history: Literal["true", "none"] = "none"
    max_new_tokens: int | None = 40
    whole: int | None = None
    whole_pictures: int | None = None
    other_wholes: tuple[int, ...] = ()
    published: Sequence[Published] = ()

    options: TaskOptions = field(init=False, repr=False)
    device: str = field(init=False, default="cpu")

    kind: ClassVar[str]
    """What is said about regions and how it is scored: the "task" in `metrics.json`."""
    columns: ClassVar[Sequence[str]]
    """Columns of the table. `metrics.json` has more numbers."""
    coco: ClassVar[frozenset[str]] = frozenset()
    """What a published file in COCO's layout is read for: fields of `CocoTruth`."""
    takes: ClassVar[frozenset[str]] = frozenset()
    """Options that this task takes and some others do not."""
    needs: ClassVar[frozenset[str]] = frozenset()
    """What a region must have so that it can be used: "mask", "label", "box"."""
    asks_questions: ClassVar[bool] = False
    """Whether the items are the questions of a record's conversation; otherwise every region is an item."""
    needs_references: ClassVar[bool] = True
    """Whether a region without a true answer is left out. A judge may not need one."""
    is_percent: ClassVar[bool] = False
    """Whether papers print the scores times 100."""
    may_be_partial: ClassVar[bool] = False
    """Whether a file may be a part of a benchmark whose complete size is unknown; the table then says so."""

    def configure(self, options: TaskOptions) -> None:
        """Keep the options of a run. Raises `ValueError` for options that do not fit the task, before anything is read."""
        self.options = options

    def read(self) -> EvaluationSet:
        """The records that the options name: the user's own, or the first of a published file.

        Raises `ValueError` for files that are missing, or not of the benchmark's form, before anything runs.
        """
        options = self.options
        if options.data is not None and options.annotations is not None:
            raise ValueError("Got data and annotations: give records of your own, or the benchmark's file.")
        found = self.read_own(options.data, options.limit) if options.data is not None else self.read_published()
        if not found.records:
            raise ValueError(
                f"There is nothing to evaluate, because the file holds no records: is it the file of {self.name}?"
            )
        return found

    def read_own(self, data: str, limit: int | None) -> EvaluationSet:
        """The user's own records."""
        return read_own(data, self.needs, limit)

    def read_published(self) -> EvaluationSet:
        """The benchmark's own records."""
        annotations, images = self.options.annotations, self.options.images
        if annotations is None or images is None:
            raise ValueError(f"{self.name} needs its annotations=… with images=…, or data=… with records of your own.")
        if not Path(annotations).is_file() or not Path(images).is_dir():
            missing = annotations if not Path(annotations).is_file() else images
            raise ValueError(
                f"Found nothing at {missing}: give the file and the folder of pictures that the benchmark offers."
            )
        found = EvaluationSet([], Path(images))
        try:
            self.read_file(Path(annotations), found, self.options.limit)
        except (KeyError, TypeError, AttributeError, EntryError) as error:
            raise ValueError(f"{annotations} is not the file of {self.name}: {error!r}.") from error
        return found

    def read_file(self, path: Path, found: EvaluationSet, limit: int | None) -> None:
        """Fill `found` with the first `limit` records of the published file and with whatever else it has.

        By default, the file is in COCO's layout. Raises `KeyError`, `TypeError` or `EntryError` for a file of another form.
        """
        found.take_coco(read_json(path), self.title, limit, **dict.fromkeys(self.coco, True))

    def items(self, record: Record, problems: Problems) -> list[Item]:
        """The items of one record. Those without a true answer are named in `problems`."""
        if self.asks_questions:
            return self._questions(record, problems)
        items = []
        for row, region in enumerate(record.regions):
            references = self.references(region)
            truth = [words for words in references if isinstance(words, str) and words.strip()]
            if not truth and self.needs_references:
                problems.add("region without a reference", str(region.id))
                continue
            if len(truth) < len(references):
                problems.add("empty reference", str(region.id))
            turn = Turn("user", self.question.replace("<region>", "<region1>"))
            alone = replace(record, regions=[region], conversations=[turn])
            items.append(Item(str(region.id), alone, [row], truth, record.source or ""))
        return items

    def references(self, region: Region) -> list[Any]:
        """A region's true answers, whether or not they are texts."""
        return [region.label] if region.label else []

    def _questions(self, record: Record, problems: Problems) -> list[Item]:
        """Every question of a record that has an answer. The others are named."""
        turns = record.conversations
        items = []
        for place, i in enumerate(i for i, turn in enumerate(turns) if turn.role == "user"):
            key = f"{record.image_id}/q{place}"
            answer = turns[i + 1].content if turns[i + 1 : i + 2] and turns[i + 1].role == "assistant" else None
            if not isinstance(answer, str) or not answer.strip():
                problems.add("question without an answer", key)
                continue
            if fault := self.truth_fault(answer):
                problems.add(fault, key)
                continue
            try:
                cut, rows = cut_turns(record, place, 1) if self.history == "none" else cut_turns(record, 0, place + 1)
            except ValueError:
                problems.add("question about candidates that only an earlier one shows", key)
                continue
            last = max(n for n, turn in enumerate(cut.conversations) if turn.role == "user")
            truth = cut.conversations[last + 1].content
            cut.conversations = cut.conversations[: last + 1]
            kind = turns[i].type or record.source or "records"
            items.append(Item(key, cut, rows, [truth], kind, turns[i].options or []))
        return items

    def truth_fault(self, answer: str) -> str | None:
        """Why a true answer cannot be used; None if it can."""
        return None

    def read_predictions(self, path: str, places: Sequence[Place]) -> list[Line]:
        """Predictions that were made elsewhere. Raises `ValueError` for lines that lack what the score needs."""
        return read_predictions(path, self.line_fault, places)

    def line_fault(self, line: Line) -> str | None:
        """What keeps a prediction's line from being scored, in words; None if nothing does."""
        if "id" not in line or ("answer" not in line and "labels" not in line):
            return lacking(line, "id") or "lacks answer"
        if not isinstance(line.get("answer"), (str, int, float, type(None))):
            return f"has a {type(line['answer']).__name__} for an answer, expected text"
        labels = line.get("labels", {})
        if not isinstance(labels, dict) or not all(is_number(p) for p in (line.get("iou", 1.0), *labels.values())):
            return "has labels or an iou that are not finite numbers"
        return None

    def answer(self, seen: Seen, words: str) -> Line:
        """A line's content for an answer in words."""
        return {"answer": words}

    def answer_unasked(self, seen: Seen, words: str) -> Line:
        """A line's content for a caption or a concept, which do not depend on the question."""
        return self.answer(seen, words)

    def categories(self, found: EvaluationSet) -> dict[str, Any]:
        """Ids, by plain name, of the categories that a concept head chooses from; {} if it names the most probable concept."""
        return {}

    def prepare(self, items: Sequence[Item], found: EvaluationSet, device: str) -> None:
        """Read the other files that the options name, and refuse what cannot be scored, before any model is loaded.

        device: where models that score may run.
        """
        self.device = device

    @abstractmethod
    def score(self, row: str, lines: Sequence[Line], items: Sequence[Item], found: EvaluationSet) -> dict[str, Any]:
        """The numbers of one row, by column. What is wrong with its lines is named in `found.problems`.

        A line that is missing, or whose picture did not open, counts as an empty answer.
        """

    @property
    def protocol(self) -> tuple[str, str]:
        """The protocol's name and rules, as `metrics.json` has them."""
        return self.name, self.rules

    def notes(self) -> list[str]:
        """What readers should know about the scores."""
        return []

    def whole_of(self, count: int) -> int | None:
        """How many items the complete published set has, if there are `count` here; None if its size is unknown."""
        return count if count in self.other_wholes else self.whole


class DrawnTask(Task):
    """A task in which a model draws masks instead of answering in words."""

    def read_predictions(self, path: str, places: Sequence[Place]) -> list[Line]:
        return read_predictions(path, self.line_fault, None)

    def names(self, record: Record, found: EvaluationSet) -> list[str]:
        """What a picture's lines are called."""
        return [str(region.id) for region in record.regions]

    @abstractmethod
    def lines(
        self, tokenizer: TapRegionTokenizer, features: ImageFeatures, record: Record, found: EvaluationSet
    ) -> list[Line]:
        """The mask decoder's lines of a picture, in the order of `names`."""
