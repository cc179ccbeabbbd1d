"""Evaluates what models say about regions, by published protocols.

    python -m finetune.evaluate --model runs/mine/model --data mine_val.jsonl --output runs/mine_eval
    python -m finetune.evaluate --benchmark vg_full --annotations vg/test.json --images vg/images --output runs/vg
    accelerate launch -m finetune.evaluate …          # every process takes its share of the pictures

Without a benchmark, every question of the records is asked, with the true turns before it. The command writes
predictions.jsonl (an unedited line for each item and row), metrics.json, table.md and plot.png, and environment.json, the
only file in which two equal runs differ. If it was stopped, run it again: it does what is left. The protocols are described
in finetune/EVALUATION.md.
"""

from __future__ import annotations

import json
import resource
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import PartialState

from llm_bridge import Candidates, PictureContext
from tap_tokenizer import RegionTokens, only_writer, write_whole

from .answerers import CONTROLS, ROWS, Cast, load_cast
from .batches import picture_size
from .cache import RegionCache, data_checksum, encode_regions, file_checksum
from .checkpoints import joined_chunks, write_chunks
from .config import knob, parse_arguments, run_command
from .data.json_files import read_json, read_json_lines
from .data.validation import UNREADABLE
from .records import Record, WrongSizeError, check_size, open_image
from .run_log import describe_environment
from .tasks import TASKS
from .tasks.expressions import ExpressionItem, ExpressionTask
from .tasks.items import EvaluationSet, Item, Seen, refuse_doubles
from .tasks.predictions import Line
from .tasks.report import as_markdown, draw
from .tasks.task import MASKS, DrawnTask, Task, TaskOptions


@dataclass
class EvaluateArguments(TaskOptions):
    """Measure a bridge and its baselines by a benchmark's protocol, or on records of your own."""

    model: str = knob(default="region-chat-tiny", help="the bridge: a name, folder, or Hub repository; or none")
    benchmark: str = knob(default="answers", help=f"protocol: {', '.join(TASKS)}")
    region_tokenizer: str | None = knob(default=None, help="name, folder or Hub repository; default: the bridge's own")
    variant: str | None = knob(default=None, help="checkpoint in the original's repository, e.g. tap_vit_l_v1_1")
    concepts: str | None = knob(default=None, help="concept bank; default: the one that came with the region tokenizer")
    described_model: str | None = knob(
        default=None, help="instruct model that is told in words what TAP sees; for GlyphScenes, region-words-tiny"
    )
    rows: str = knob(default=";".join((*ROWS, *CONTROLS)), help="rows of the table, separated by semicolons")
    cache: str | None = knob(default=None, help="cache of the records (--data); default: their pictures are encoded")
    question: str | None = knob(
        default=None, help="what is asked about each <region>; default: the benchmark's question"
    )
    history: Literal["true", "none"] | None = knob(
        default=None,
        help="true: the earlier turns come before a question, with their true answers; none: it is asked alone",
    )
    batch_size: int = knob(default=16, help="questions asked at once, and records in a chunk")
    max_new_tokens: int | None = knob(default=None, help="tokens of an answer, at most; default: the benchmark's limit")
    device: str | None = knob(default=None, help="where to run; default: this process's accelerator, or CPU")


def main(argv: list[str] | None = None) -> None:
    """Read the arguments, predict, score, report."""
    arguments = parse_arguments(EvaluateArguments, argv, description=__doc__)
    state = PartialState(cpu=not torch.cuda.is_available() and arguments.device in (None, "cpu"))
    with only_writer(arguments.output, state.is_main_process):
        _evaluate(arguments, state)


def _evaluate(arguments: EvaluateArguments, state: PartialState) -> None:
    began = time.perf_counter()
    device = arguments.device or str(state.device)
    task = _check(arguments)
    found = task.read()
    by_record = [task.items(record, found.problems) for record in found.records]
    items = [item for some in by_record for item in some]
    _check_content(task, found, items)
    task.prepare(items, found, device)
    output = Path(arguments.output)
    if arguments.predictions is not None:
        if not state.is_main_process:
            return
        cast, lines = None, task.read_predictions(arguments.predictions, found.places)
        about = _about(arguments, task, None)
        refuse_others(output, about)
        output.mkdir(parents=True, exist_ok=True)
    else:
        refuse_changed(output)
        cast = _load(arguments, task, found, device)
        about = _about(arguments, task, cast)
        complete = False
        if state.is_main_process:
            complete = prepare_output(output, about)
        state.wait_for_everyone()
        if not (complete or (output / PREDICTIONS).is_file()):
            predictor = Predictor(task, found, by_record, cast, arguments.batch_size, arguments.cache)
            run_chunks(output, predictor.chunks, predictor.work, state)
        if not state.is_main_process:
            return
        lines = list(read_json_lines(output / PREDICTIONS))
    metrics = _metrics(arguments, task, found, items, cast, lines)
    prepare_output(output, about)  # of given predictions only now: those that cannot be scored leave no trace
    write_whole(output / METRICS, json.dumps(metrics, indent=1, ensure_ascii=False))
    table = as_markdown(metrics, task)
    write_whole(output / "table.md", table)
    draw(metrics, task, output / "plot.png")
    took = {"seconds": round(time.perf_counter() - began, 1), "peak_memory_mib": _peak()}
    environment = {**describe_environment(state.num_processes, device), **took}
    write_whole(output / "environment.json", json.dumps(environment, indent=1))
    print(table)


def _check(arguments: EvaluateArguments) -> Task:
    """The run's own copy of the task. Arguments that do not fit it are refused before anything is read."""
    if arguments.benchmark not in TASKS:
        raise ValueError(f"benchmark is {arguments.benchmark}, expected one of {', '.join(TASKS)}.")
    chosen = {name: value for name in ("question", "history", "max_new_tokens") if (value := getattr(arguments, name))}
    task = replace(TASKS[arguments.benchmark], **chosen)
    for other in TASKS.values():
        for name in other.takes - task.takes:
            if getattr(arguments, name) is not None:
                raise ValueError(f"Got {name}, but {task.name} is not about {other.kind}: leave it out.")
    if arguments.cache is not None and (arguments.data is None or isinstance(task, (DrawnTask, ExpressionTask))):
        raise ValueError("cache needs data, the records it was made of, and a task of words.")
    if (arguments.limit is not None and arguments.limit < 1) or arguments.batch_size < 1:
        raise ValueError("limit and batch_size are 1 or more.")
    task.configure(arguments)
    return task


def _check_content(task: Task, found: EvaluationSet, items: list[Item]) -> None:
    """Refuse what cannot be scored, before any model is loaded."""
    asked = [r for record in found.records for r in record.regions] if isinstance(task, DrawnTask) else items
    if not asked and task.options.boxes is None:
        wrong = "; ".join(f"{kind}: {names['count']}" for kind, names in found.problems.as_dict().items())
        raise ValueError(
            "There are no answered questions, and no regions with a reference: nothing can be scored"
            f"{f' ({wrong})' if wrong else ''}."
        )
    refuse_doubles(items)


def _load(arguments: EvaluateArguments, task: Task, found: EvaluationSet, device: str) -> Cast:
    return load_cast(
        task, found, model=None if arguments.model == "none" else arguments.model,
        region_tokenizer=arguments.region_tokenizer, variant=arguments.variant, concepts=arguments.concepts,
        described_model=arguments.described_model, rows=[row.strip() for row in arguments.rows.split(";")],
        batch_size=arguments.batch_size, device=device,
    )  # fmt: skip


def _about(arguments: EvaluateArguments, task: Task, cast: Cast | None) -> dict[str, Any]:
    """What the predictions are of: all that, if it changes, makes them others. No cast: they are given."""
    chosen = ["benchmark", "data", "annotations", "boxes", "limit", "seed"]
    source = next((Path(p) for p in (arguments.data, arguments.annotations) if p is not None), None)
    about = {
        "version": task.version, "question": task.question, "history": task.history,
        "data_checksum": data_checksum(source) if source is not None and source.exists() else "",
    }  # fmt: skip
    for name in ("boxes", "references", "candidates"):
        value = getattr(arguments, name)
        if value is not None and Path(value).is_file():
            about[f"{name}_checksum"] = file_checksum(Path(value))
    if cast is not None:
        chosen += ["model", "cache", "batch_size", "rows"]
        about["max_new_tokens"] = task.max_new_tokens
        about["fingerprints"] = cast.fingerprints
    elif arguments.predictions is not None:
        about["predictions_checksum"] = file_checksum(Path(arguments.predictions))
    given = asdict(arguments)
    about |= {name: given[name] for name in ("references", "split", "candidates") if given[name] is not None}
    return {**{name: value for name, value in given.items() if name in chosen}, **about}


def _metrics(
    arguments: EvaluateArguments, task: Task, found: EvaluationSet, items: list[Item], cast: Cast | None,
    lines: list[Line],
) -> dict[str, Any]:  # fmt: skip
    """All that `metrics.json` holds."""
    is_own = arguments.data is not None
    if cast is None:
        order = list(dict.fromkeys(line["row"] for line in lines))
    else:
        answering = [row.name for row in cast.rows] + [row.name for row in cast.finders]
        order = [MASKS] if isinstance(task, DrawnTask) else answering
    rows = {row: task.score(row, [line for line in lines if line["row"] == row], items, found) for row in order}
    notes = task.notes()
    if cast is None:
        notes.append("predictions were given; only you know how, and by what model, they were made")
    if is_own:
        notes.append("your own records: published figures are for other data")
    name, rules = task.protocol
    pictures = len({record.image for record in found.records})
    count = len(items) if items else sum(len(record.regions) for record in found.records)
    whole, whole_pictures = (None, None) if is_own else (task.whole_of(count), task.whole_pictures)
    return {
        "benchmark": task.name, "title": task.title, "task": task.kind,
        "protocol": {"name": name, "version": task.version, "rules": rules},
        "n": {"items": count, "pictures": pictures, "whole": whole, "whole_pictures": whole_pictures},
        "subset": arguments.limit is not None or count < (whole or 0) or pictures < (whole_pictures or 0),
        "own_records": is_own,
        "seed": arguments.seed,
        "question": task.question,
        "history": task.history,
        "decoding": f"greedy, at most {task.max_new_tokens} tokens" if cast else None,
        "model": arguments.model if cast else None, "fingerprints": cast.fingerprints if cast else {},
        "rows": rows, "not_run": cast.not_run if cast else {}, "notes": notes, "problems": found.problems.as_dict(),
    }  # fmt: skip


def _peak() -> int:
    """Most memory that this process held, in MiB."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(used / (2**20 if sys.platform == "darwin" else 2**10))


# --- predictions ------------------------------------------------------------------------------------------------------
#
# Each chunk of records is encoded once, and every system answers. A chunk is the unit of work. It is written to a file of its
# own, completely or not at all, and when all are there, they become `predictions.jsonl`. A run that was stopped does what is
# left, on any number of processes. A chunk's content depends on its records alone, so the bytes are the same however the work
# was split.


PREDICTIONS, ABOUT, PARTS, METRICS = "predictions.jsonl", "about.json", "parts", "metrics.json"
CHECKSUM = "predictions.sha256"
"""Beside finished predictions, in the form of `sha256sum --check`, so that a file that was edited since is not scored."""


def refuse_changed(output: Path) -> None:
    """Raises `ValueError` if finished predictions are not as their run wrote them, or a part of unfinished ones is torn."""
    path, note = output / PREDICTIONS, output / CHECKSUM
    if path.is_file():
        written = note.read_text(encoding="utf-8").split()[:1] if note.is_file() else []
        found = file_checksum(path)
        if written != [found]:
            expected = f"{written[0][:16]}… as it was written" if written else f"that of {CHECKSUM}, which is not there"
            raise ValueError(
                f"{path} has checksum {found[:16]}…, expected {expected}: delete it to predict again, or score it as it "
                "is with --predictions and another output."
            )
    for part in sorted((output / PARTS).glob("*.jsonl")):
        try:
            torn = bool(list(read_json_lines(part))) and not part.read_bytes().endswith(b"\n")
            why = "ends within a line"
        except ValueError as error:
            torn, why = True, str(error).removeprefix(f"{part}, ").rstrip(".")
        if torn:
            raise ValueError(f"{part} is not a complete part of predictions ({why}): delete it to have it made again.")


def refuse_others(output: Path, about: dict[str, Any]) -> None:
    """Raises `ValueError` if the folder holds predictions or results of something else than `about`."""
    note = output / ABOUT
    if not note.is_file():
        if (output / METRICS).is_file():
            raise ValueError(
                f"{output} holds {METRICS} without {ABOUT}, expected both: choose another output, or delete it."
            )
        return
    old, plain = read_json(note), json.loads(json.dumps(about))
    changed = [key for key in {**plain, **old} if key not in old or key not in plain or old[key] != plain[key]]
    if changed:
        raise ValueError(
            f"{output} holds predictions with other {', '.join(changed)}: choose another output, or delete it."
        )


def prepare_output(output: Path, about: dict[str, Any]) -> bool:
    """Make the folder, or find it as an earlier run of the same left it; gives whether its predictions are complete.

    Raises `ValueError` if it holds predictions of something else.
    """
    refuse_others(output, about)
    output.mkdir(parents=True, exist_ok=True)
    write_whole(output / ABOUT, json.dumps(about, indent=1, ensure_ascii=False))
    return (output / PREDICTIONS).is_file()


def run_chunks(output: Path, chunks: int, work: Callable[[int], list[Line]], state: PartialState) -> None:
    """Do this process's share of the missing chunks, and join all of them once every process is done."""
    parts = output / PARTS
    write_chunks(parts, chunks, work, state, "evaluating")
    if state.is_main_process:
        text = joined_chunks(parts, chunks)
        write_whole(output / CHECKSUM, f"{sha256(text.encode()).hexdigest()}  {PREDICTIONS}\n")
        write_whole(output / PREDICTIONS, text)
        shutil.rmtree(parts)
    state.wait_for_everyone()


class Predictor:
    """The work of an evaluation, chunk by chunk; a chunk's lines depend on its records alone."""

    def __init__(
        self, task: Task, found: EvaluationSet, items: list[list[Item]], cast: Cast, size: int, cache: str | None = None
    ) -> None:
        """items: of each record; size: records of a chunk; cache: of the task's own records."""
        self.task, self.found, self.items, self.cast, self.size = task, found, items, cast, size
        self.cache: RegionCache | None = None
        if cache is not None:
            self.cache = RegionCache(cache)
            context = cast.context or PictureContext(0, 0)
            self.cache.check(Path(str(task.options.data)), cast.tokenizer.fingerprint, context)
            if any(row.needs_picture for row in cast.rows):
                raise ValueError("A cache has no pictures, which the described row needs: leave one of them out.")

    @property
    def chunks(self) -> int:
        return -(-len(self.found.records) // self.size)

    def work(self, chunk: int) -> list[Line]:
        """The lines of one chunk, row by row."""
        numbers = list(range(chunk * self.size, min((chunk + 1) * self.size, len(self.found.records))))
        if isinstance(self.task, DrawnTask):
            return [line for n in numbers for line in self._masks(self.task, self.found.records[n])]
        if isinstance(self.task, ExpressionTask):
            return [line for n in numbers for line in self._finds(self.task, self.found.records[n], self.items[n])]
        seen, failed = self._see(numbers)
        lines: list[Line] = []
        for row in self.cast.rows:
            with torch.no_grad():
                said = row.answer(seen, self.task) if seen else []
            lines += [_line(row.name, item.item, words) for item, words in zip(seen, said)]
            lines += [_line(row.name, item, {"answer": "", "problem": why}) for item, why in failed]
        return lines

    def _masks(self, task: DrawnTask, record: Record) -> list[Line]:
        keys = task.names(record, self.found)
        if not keys:
            return []
        picture = self._open(record)
        if isinstance(picture, str):
            return [{"row": MASKS, "id": key, "problem": picture} for key in keys]
        features = self.cast.tokenizer.embed_image([picture])
        return [{"row": MASKS, **line} for line in task.lines(self.cast.tokenizer, features, record, self.found)]

    def _finds(self, task: ExpressionTask, record: Record, items: Sequence[Item]) -> list[Line]:
        own = [item for item in items if isinstance(item, ExpressionItem)]
        picture = self._open(record) if own else ""
        if isinstance(picture, str):
            return [_line(row.name, item, {"problem": picture}) for row in self.cast.finders for item in own]
        lines: list[Line] = []
        if not self.cast.finders:
            return lines
        candidates = Candidates.of(self.cast.finders[0].chat.processor, picture, task.prompts(record))
        for row in self.cast.finders:
            found = row.find(picture, [item.phrase for item in own], candidates, task.max_new_tokens)
            lines += [_line(row.name, item, task.found_line(one, record.size)) for item, one in zip(own, found)]
        return lines

    def _see(self, numbers: list[int]) -> tuple[list[Seen], list[tuple[Item, str]]]:
        """Items with what is seen of them, and those whose picture does not open with why."""
        numbers = [n for n in numbers if self.items[n]]
        if self.cache is not None:
            cached = [(n, None, self._cached(self.cache, n), self.cache.context(n)) for n in numbers]
            for n, _, own, _ in cached:
                check_size(self.found.records[n], picture_size(own))
            return [
                Seen(i, picture, r[i.rows], context) for n, picture, r, context in cached for i in self.items[n]
            ], []
        opened = {n: self._open(self.found.records[n]) for n in numbers}
        failed = [(item, p) for n, p in opened.items() if isinstance(p, str) for item in self.items[n]]
        pictures = {n: p for n, p in opened.items() if isinstance(p, np.ndarray)}
        if not pictures:
            return [], failed
        features = self.cast.tokenizer.embed_image(list(pictures.values()))
        regions = encode_regions(self.cast.tokenizer, features, [self.found.records[n] for n in pictures])
        context = self.cast.context
        contexts = context.encode(self.cast.tokenizer, features) if context else [None] * len(pictures)
        return [
            Seen(item, picture, own[item.rows], shown)
            for (n, picture), own, shown in zip(pictures.items(), regions, contexts)
            for item in self.items[n]
        ], failed

    def _cached(self, cache: RegionCache, number: int) -> RegionTokens:
        """The tokens of a record's regions; those that the task has no use for were left out of the record."""
        regions, kept = cache.regions(number), self.found.kept.get(number)
        return regions if kept is None else regions[kept]

    def _open(self, record: Record) -> np.ndarray | str:
        """The picture, or the error of opening it."""
        try:
            return open_image(record, self.found.root)
        except WrongSizeError:
            return "picture has another size than the annotations say"
        except UNREADABLE:
            return "picture does not open"


def _line(row: str, item: Item, said: Line) -> Line:
    return {"id": item.id, "row": row, "asked": item.asked, **said, "truth": item.references}


if __name__ == "__main__":
    sys.exit(run_command(main))
