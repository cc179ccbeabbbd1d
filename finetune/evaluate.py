"""Evaluates what models say about regions, by published protocols.

    python -m finetune.evaluate --model runs/mine/model --data mine_val.jsonl --output runs/mine_eval
    python -m finetune.evaluate --benchmark vg_full --annotations vg/test.json --images vg/images --output runs/vg
    accelerate launch -m finetune.evaluate …          # every process takes its share of the pictures
    python -m finetune.evaluate … --ray 8             # so do eight actors of Ray, here or (--ray_address) on a cluster

Without a benchmark, every question of the records is asked, with the true turns before it. The command writes
predictions.jsonl (an unedited line for each item and row), metrics.json, table.md and plot.png, and environment.json, the
only file in which two equal runs differ. If it was stopped, run it again: it does what is left. The protocols are described
in finetune/EVALUATION.md.
"""

from __future__ import annotations

import json
import resource
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import PartialState

from llm_bridge import DEFAULT_BRIDGE
from tap_tokenizer import (
    RAY_ADDRESS_HELP,
    RAY_HELP,
    check_ray_flags,
    cluster_for,
    only_writer,
    run_chunks,
    write_whole,
)

from .answerers import CONTROLS, ROWS, Cast, load_cast
from .cache import data_checksum, file_checksum
from .config import knob, parse_arguments, run_command
from .data.json_files import read_json_lines
from .predictor import (
    METRICS,
    PREDICTIONS,
    Predictor,
    prepare_output,
    refuse_changed,
    refuse_others,
    write_predictions,
)
from .run_log import describe_environment
from .tasks import TASKS
from .tasks.expressions import ExpressionTask
from .tasks.items import EvaluationSet, Item, refuse_doubles
from .tasks.predictions import Line
from .tasks.report import as_markdown, draw
from .tasks.task import MASKS, DrawnTask, Task, TaskOptions


@dataclass
class EvaluateArguments(TaskOptions):
    """Measure a bridge and its baselines by a benchmark's protocol, or on records of your own."""

    model: str = knob(default=DEFAULT_BRIDGE, help="the bridge: a name, folder, or Hub repository; or none")
    benchmark: str = knob(default="answers", help=f"protocol: {', '.join(TASKS)}")
    region_tokenizer: str | None = knob(default=None, help="name, folder or Hub repository; default: the bridge's own")
    variant: str | None = knob(default=None, help="checkpoint in the original's repository, e.g. tap_vit_l_v1_1")
    concepts: str | None = knob(default=None, help="concept bank; default: the one that came with the region tokenizer")
    described_model: str | None = knob(
        default=None, help="instruct model that is told in words what TAP sees; e.g. smollm2-135m"
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
    ray: int = knob(default=0, help=RAY_HELP)
    ray_address: str | None = knob(default=None, help=RAY_ADDRESS_HELP)


def main(argv: list[str] | None = None) -> None:
    """Read the arguments, predict, score, report."""
    arguments = parse_arguments(EvaluateArguments, argv, description=__doc__)
    state = PartialState(cpu=not torch.cuda.is_available() and arguments.device in (None, "cpu"))
    check_ray_flags(arguments, state.num_processes)
    with only_writer(arguments.output, state.is_main_process):
        _evaluate(arguments, state)


def _evaluate(arguments: EvaluateArguments, state: PartialState) -> None:
    began = time.perf_counter()
    device = "cpu" if arguments.ray else arguments.device or str(state.device)
    task, found, by_record = _read(arguments, device)
    items = [item for some in by_record for item in some]
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
            texts_of = partial(_texts_on_ray, arguments, about) if arguments.ray else predictor.texts
            write_predictions(output, predictor.chunks, texts_of, state)
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
    ran = (arguments.ray, "actors of Ray") if arguments.ray else (state.num_processes, device)
    environment = {**describe_environment(*ran), **took}
    write_whole(output / "environment.json", json.dumps(environment, indent=1))
    print(table)


def _read(arguments: EvaluateArguments, device: str) -> tuple[Task, EvaluationSet, list[list[Item]]]:
    """The run's own copy of the task, the records, and what is asked about each; all is checked. No model is loaded."""
    task = _check(arguments)
    found = task.read()
    by_record = [task.items(record, found.problems) for record in found.records]
    items = [item for some in by_record for item in some]
    _check_content(task, found, items)
    task.prepare(items, found, device)
    return task, found, by_record


def _texts_on_ray(
    arguments: EvaluateArguments, about: dict[str, Any], chunks: Sequence[int]
) -> Iterator[tuple[int, str]]:
    """Chunks of the predictions that `about` tells of, in whatever order the actors of --ray are through with them."""
    if chunks:
        with cluster_for(arguments) as device:
            make = _Elsewhere(arguments, about, device)
            yield from run_chunks(make, chunks, arguments.ray, gpu=device == "cuda")


@dataclass(frozen=True)
class _Elsewhere:
    """What an actor needs to know."""

    arguments: EvaluateArguments
    about: dict[str, Any]
    device: str

    def __call__(self) -> Callable[[int], str]:
        """Read the records and load the models. Raises `ValueError` if this machine has others."""
        arguments = self.arguments
        task, found, by_record = _read(arguments, self.device)
        cast = _load(arguments, task, found, self.device)
        own = _about(arguments, task, cast)
        if others := [name for name, value in self.about.items() if own.get(name) != value]:
            raise ValueError(
                f"{socket.gethostname()} has other {', '.join(others)}: have all machines read the same files."
            )
        return Predictor(task, found, by_record, cast, arguments.batch_size, arguments.cache).text


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
    if arguments.ray and arguments.predictions is not None:
        raise ValueError("Got ray with predictions, which are answers already: leave --ray out.")
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
    most = task.max_new_tokens
    limit = "enough tokens to name all candidates" if most is None else f"at most {most} tokens"
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
        "decoding": f"greedy, {limit}" if cast else None,
        "model": arguments.model if cast else None, "fingerprints": cast.fingerprints if cast else {},
        "rows": rows, "not_run": cast.not_run if cast else {}, "notes": notes, "problems": found.problems.as_dict(),
    }  # fmt: skip


def _peak() -> int:
    """Most memory that this process held, in MiB."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(used / (2**20 if sys.platform == "darwin" else 2**10))


if __name__ == "__main__":
    from .evaluate import main  # by this module's own name, under which actors of Ray find what they are sent

    sys.exit(run_command(main))
