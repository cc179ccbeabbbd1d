"""What models say of regions, and what it is worth by the protocols of the field.

    python -m finetune.evaluate --model runs/mine/model --data mine_val.jsonl --output runs/mine_eval
    python -m finetune.evaluate --benchmark vg_full --annotations vg/test.json --images vg/images --output runs/vg
    accelerate launch -m finetune.evaluate …          # every process takes its share of the pictures

Without a benchmark, every question of the records is asked with the true turns before it. Writes predictions.jsonl (a line
for each item and row, unedited), metrics.json, table.md, plot.png, and environment.json, which alone differs between two
runs of the same. A run that was stopped goes on with what is left. `finetune/EVALUATION.md` has the protocols.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import PartialState

from tap_tokenizer import only_writer, write_whole

from .cache import data_checksum, file_checksum
from .config import knob, parse_arguments, run_command
from .evaluation.benchmarks import BENCHMARKS, Benchmark
from .evaluation.caption_metrics import PROTOCOLS, choose_scorer, missing_for_ptb
from .evaluation.given import read_boxes, read_predictions
from .evaluation.items import Item, items_of, refuse_doubles
from .evaluation.judging import JUDGED, JUDGED_TASKS, Judging
from .evaluation.loading import Cast, load_cast
from .evaluation.mask_metrics import missing_for_clicks
from .evaluation.predicting import Predictor
from .evaluation.reading import EvaluationSet, read_set
from .evaluation.recognition_metrics import SentenceEncoder
from .evaluation.report import as_markdown, draw
from .evaluation.rows import CONTROLS, MASKS, ROWS
from .evaluation.running import (
    METRICS,
    PREDICTIONS,
    prepare_output,
    refuse_changed,
    refuse_others,
    run_chunks,
)
from .evaluation.scoring import score_masks, score_prompts, score_row
from .evaluation.text_files import read_json_lines
from .run_log import describe_environment

IMAGE_TASKS = ("masks", "prompts")
"""Tasks in which a model draws and says nothing."""


@dataclass
class EvaluateArguments:
    """Measure a bridge and its baselines by a benchmark's protocol, or on records of your own."""

    output: str = knob(help="folder of predictions and numbers")
    model: str = knob(default="region-chat-tiny", help="the bridge: a name, folder, or Hub repository; or none")
    benchmark: str = knob(default="answers", help=f"protocol: {', '.join(BENCHMARKS)}")
    data: str | None = knob(default=None, help="records of your own, JSONL or parquet, instead of the benchmark's file")
    annotations: str | None = knob(default=None, help="the benchmark's published file")
    images: str | None = knob(default=None, help="folder of its pictures")
    boxes: str | None = knob(default=None, help="masks: detections in COCO's result format; default: the true boxes")
    qa: str | None = knob(
        default=None,
        help="dlc_bench: qa.json, with class_names.json beside it; paradlc_bench: default beside annotations",
    )
    judge: str | None = knob(
        default=None, help="benchmarks with a judge: instruct model that judges, or its name on judge_url's server"
    )
    judge_url: str | None = knob(default=None, help="OpenAI-compatible server of the judge, up to and with /v1")
    judge_key: str | None = knob(default=None, help="file that holds the server's key")
    judge_prompt: str | None = knob(
        default=None, help="file with the judge's prompt, with the fields that EVALUATION.md names for the benchmark"
    )
    recognition_question: str | None = knob(
        default=None, help="dlc_bench, paradlc_bench: file with the first question, for {class_name} or {a_class_name}"
    )
    verdicts: str | None = knob(default=None, help="file of a judge's replies, instead of a judge")
    predictions: str | None = knob(
        default=None,
        help="score these instead of asking: lines with id and answer, or a system's own answer file; masks: COCO's "
        "result format",
    )
    region_tokenizer: str | None = knob(default=None, help="name, folder or Hub repository; default: the bridge's own")
    variant: str | None = knob(default=None, help="which checkpoint of the original's repository, e.g. tap_vit_l_v1_1")
    concepts: str | None = knob(default=None, help="concept bank; default: what came with the region tokenizer")
    described_model: str | None = knob(
        default=None, help="instruct model that is told in words what TAP sees; region-words-tiny knows GlyphScenes"
    )
    rows: str = knob(default=",".join((*ROWS, *CONTROLS)).replace(",", ";").replace("; ", ", "),
                     help="rows of the table, separated by semicolons")  # fmt: skip
    cache: str | None = knob(default=None, help="cache of the records (data); default: their pictures are encoded")
    question: str | None = knob(default=None, help="what is asked of each <region>; default: the benchmark's")
    history: Literal["true", "none"] | None = knob(
        default=None, help="true: earlier turns stand before a question, with true answers; none: it stands alone"
    )
    caption_scorer: Literal["auto", "ptb", "plain"] = knob(
        default="auto", help="captions: ptb needs Java and pycocoevalcap; auto takes it where it can"
    )
    sentence_encoder: str | None = knob(
        default=None, help="labels: encoder for semantic similarity, folder or Hub name"
    )
    limit: int | None = knob(default=None, help="records to evaluate, from the first; scores are marked as a subset's")
    seed: int = knob(default=0, help="of drawn points and of GlyphScenes")
    batch_size: int = knob(default=16, help="questions asked at once, and records of a chunk")
    max_new_tokens: int | None = knob(default=None, help="longest answer; default: the benchmark's")
    device: str | None = knob(default=None, help="where to run; default: this process's accelerator, or CPU")


def main(argv: list[str] | None = None) -> None:
    """Read the arguments, predict, score, report."""
    arguments = parse_arguments(EvaluateArguments, argv, description=__doc__)
    state = PartialState(cpu=not torch.cuda.is_available() and arguments.device in (None, "cpu"))
    with only_writer(arguments.output, state.is_main_process):
        _evaluate(arguments, state)


def _evaluate(arguments: EvaluateArguments, state: PartialState) -> None:
    began = time.perf_counter()
    benchmark = _check(arguments)
    question = arguments.question or benchmark.question
    benchmark = replace(benchmark, question=question)
    found = read_set(
        benchmark, data=arguments.data, annotations=arguments.annotations, images=arguments.images,
        limit=arguments.limit, seed=arguments.seed,
    )  # fmt: skip
    history = arguments.history or benchmark.history
    by_record = [items_of(sample, benchmark, question, history, found.problems) for sample in found.records]
    items = [item for some in by_record for item in some]
    device = arguments.device or str(state.device)
    judging = _check_content(arguments, benchmark, found, items, device)
    output = Path(arguments.output)
    if arguments.predictions is not None:
        if not state.is_main_process:
            return
        cast, lines = None, read_predictions(arguments.predictions, benchmark, found.places)
        about = _about(arguments, benchmark, None, question, history)
        refuse_others(output, about)
        output.mkdir(parents=True, exist_ok=True)
    else:
        refuse_changed(output)
        cast = _load(arguments, benchmark, found, device)
        about = _about(arguments, benchmark, cast, question, history)
        complete = False
        if state.is_main_process:
            complete = prepare_output(output, about)
        state.wait_for_everyone()
        if not (complete or (output / PREDICTIONS).is_file()):
            predictor = Predictor(arguments, benchmark, found, by_record, cast)
            run_chunks(output, predictor.chunks, predictor.work, state)
        if not state.is_main_process:
            return
        lines = list(read_json_lines(output / PREDICTIONS))
    metrics = _metrics(arguments, benchmark, found, items, cast, lines, judging, device)
    prepare_output(output, about)  # of given predictions only now: those that cannot be scored leave no trace
    write_whole(output / METRICS, json.dumps(metrics, indent=1, ensure_ascii=False))
    table = as_markdown(metrics)
    write_whole(output / "table.md", table)
    draw(metrics, output / "plot.png")
    took = {"seconds": round(time.perf_counter() - began, 1), "peak_memory_mib": _peak()}
    environment = {**describe_environment(state.num_processes, device), **took}
    write_whole(output / "environment.json", json.dumps(environment, indent=1))
    print(table)


def _check(arguments: EvaluateArguments) -> Benchmark:
    """The benchmark, if the arguments fit it; refusals come before any model is loaded."""
    if arguments.benchmark not in BENCHMARKS:
        raise ValueError(f"benchmark is {arguments.benchmark}, expected one of {', '.join(BENCHMARKS)}.")
    benchmark = BENCHMARKS[arguments.benchmark]
    judges = ("judge", "judge_url", "judge_key", "judge_prompt", "verdicts")
    only = {"boxes": ("masks",), "sentence_encoder": ("labels",), "qa": ("descriptions",),
            "recognition_question": ("descriptions",), **dict.fromkeys(judges, JUDGED_TASKS)}  # fmt: skip
    for name, tasks in only.items():
        if getattr(arguments, name) is not None and benchmark.task not in tasks:
            raise ValueError(f"Got {name}, but {benchmark.name} is not about {tasks[0]}: leave it out.")
    if arguments.cache is not None and (arguments.data is None or benchmark.task in IMAGE_TASKS):
        raise ValueError("cache needs data, the records it was made of, and a task of words.")
    if (arguments.limit is not None and arguments.limit < 1) or arguments.batch_size < 1:
        raise ValueError("limit and batch_size are 1 or more.")
    _check_judge(arguments, benchmark)
    if benchmark.task == "captions":
        choose_scorer(arguments.caption_scorer)
    if benchmark.task == "prompts" and arguments.predictions is None and (missing := missing_for_clicks()):
        raise ValueError(f"benchmark is {benchmark.name}: {missing}. Install it, or give --predictions made elsewhere.")
    return benchmark


def _check_judge(arguments: EvaluateArguments, benchmark: Benchmark) -> None:
    """Refuse a judge that cannot judge; ParaDLC-Bench's questions lie beside its annotations."""
    judge, verdicts = arguments.judge, arguments.verdicts
    if judge is not None and verdicts is not None:
        raise ValueError("Got both judge and verdicts: give either a judge to ask, or a file of its replies.")
    if benchmark.layout == "paradlc_bench" and arguments.qa is None and arguments.annotations is not None:
        arguments.qa = str(Path(arguments.annotations).with_name("qa.json"))
    elif benchmark.task == "descriptions" and (judge is None and verdicts is None) != (arguments.qa is None):
        raise ValueError("A judge needs qa=… with the benchmark's questions, and qa a judge=… or verdicts=….")
    if judge is not None and arguments.judge_url is None and JUDGED[benchmark.name].sees:
        raise ValueError(f"The judge of {benchmark.name} must see pictures: give one on a server with judge_url=….")


def _check_content(
    arguments: EvaluateArguments, benchmark: Benchmark, found: EvaluationSet, items: list[Item], device: str
) -> Judging | None:
    """Refuse what cannot be scored, and read what else the files are compared with, before any model is loaded."""
    asked = [r for sample in found.records for r in sample["regions"]] if benchmark.task in IMAGE_TASKS else items
    if not asked and arguments.boxes is None:
        wrong = "; ".join(f"{kind}: {names['count']}" for kind, names in found.problems.as_dict().items())
        raise ValueError(
            "There are no answered questions, and no regions with a reference: nothing can be scored"
            f"{f' ({wrong})' if wrong else ''}."
        )
    refuse_doubles(items)
    if arguments.boxes is not None:
        found.boxes = read_boxes(arguments.boxes, found)
    return Judging.of(arguments, benchmark, items, found, device) if benchmark.task in JUDGED_TASKS else None


def _load(arguments: EvaluateArguments, benchmark: Benchmark, found: EvaluationSet, device: str) -> Cast:
    return load_cast(
        benchmark, found, model=None if arguments.model == "none" else arguments.model,
        region_tokenizer=arguments.region_tokenizer, variant=arguments.variant, concepts=arguments.concepts,
        described_model=arguments.described_model, rows=[row.strip() for row in arguments.rows.split(";")],
        max_new_tokens=arguments.max_new_tokens or benchmark.max_new_tokens, batch_size=arguments.batch_size, device=device,
    )  # fmt: skip


def _about(
    arguments: EvaluateArguments, benchmark: Benchmark, cast: Cast | None, question: str, history: str
) -> dict[str, Any]:
    """What the predictions are of: all that, if it changes, makes them others. No cast: they are given."""
    chosen = ["benchmark", "data", "annotations", "boxes", "limit", "seed"]
    source = next((Path(p) for p in (arguments.data, arguments.annotations) if p is not None), None)
    about = {
        "version": benchmark.version, "question": question, "history": history,
        "data_checksum": data_checksum(source) if source is not None and source.exists() else "",
    }  # fmt: skip
    if arguments.boxes is not None:
        about["boxes_checksum"] = file_checksum(Path(arguments.boxes))
    if cast is not None:
        chosen += ["model", "cache", "batch_size", "rows"]
        about["max_new_tokens"] = arguments.max_new_tokens or benchmark.max_new_tokens
        about["fingerprints"] = cast.fingerprints
    elif arguments.predictions is not None:
        about["predictions_checksum"] = file_checksum(Path(arguments.predictions))
    return {**{name: value for name, value in asdict(arguments).items() if name in chosen}, **about}


def _metrics(
    arguments: EvaluateArguments, benchmark: Benchmark, found: EvaluationSet, items: list[Item], cast: Cast | None,
    lines: list[dict[str, Any]], judging: Judging | None, device: str,
) -> dict[str, Any]:  # fmt: skip
    """All that `metrics.json` holds."""
    problems = found.problems
    notes: list[str] = []
    scorer = choose_scorer(arguments.caption_scorer) if benchmark.task == "captions" else "plain"
    if benchmark.task == "captions" and scorer == "plain" and (missing := missing_for_ptb()):
        notes.append(f"{missing}: these numbers are of the plain protocol, and do not compare with published ones")
    if benchmark.task == "labels" and arguments.sentence_encoder is None:
        notes.append("semantic similarity was not measured: give --sentence_encoder")
    encoder = None if arguments.sentence_encoder is None else SentenceEncoder(arguments.sentence_encoder, device)
    rows: dict[str, Any] = {}
    order = [MASKS] if benchmark.task in IMAGE_TASKS else [row.name for row in cast.rows] if cast else []
    if cast is None:
        order = list(dict.fromkeys(line["row"] for line in lines))
    for row in order:
        own = [line for line in lines if line["row"] == row]
        if benchmark.task == "masks":
            rows[row] = score_masks(benchmark, own, found, problems, row)
        elif benchmark.task == "prompts":
            rows[row] = score_prompts(own, found, problems, row)
        elif judging is not None:
            rows[row] = judging.score(row, own, items, problems, Path(arguments.output))
        else:
            rows[row] = score_row(benchmark, row, own, items, problems, scorer=scorer, encoder=encoder, found=found)
    if judging is not None:
        notes.append(judging.note)
    if benchmark.task == "masks" and cast is not None:
        boxes = (
            "the true ones, scores the predicted IoU" if arguments.boxes is None else "a detector's, with its scores"
        )
        notes.append(f"boxes are {boxes}; published rows have a detector's boxes (--boxes)")
    if cast is None:
        notes.append("predictions were given; only you know how, and by what model, they were made")
    rules = f"{benchmark.protocol}; {PROTOCOLS[scorer]}" if benchmark.task == "captions" else benchmark.protocol
    pictures = len({sample["image"] for sample in found.records})
    count = len(items) if items else sum(len(s["regions"]) for s in found.records)
    whole, whole_pictures = benchmark.whole_of(count), benchmark.whole_pictures
    if arguments.data is not None:
        whole = whole_pictures = None
    if arguments.data is not None:
        notes.append("your own records: published figures are for other data")
    return {
        "benchmark": benchmark.name, "title": benchmark.title, "task": benchmark.task,
        "protocol": {"name": benchmark.name if scorer == "plain" and benchmark.task != "captions" else
                     f"{benchmark.name} ({scorer})" if benchmark.task == "captions" else benchmark.name,
                     "version": benchmark.version, "rules": rules},
        "n": {"items": count, "pictures": pictures, "whole": whole, "whole_pictures": whole_pictures},
        "subset": arguments.limit is not None or count < (whole or 0) or pictures < (whole_pictures or 0),
        "own_records": arguments.data is not None,
        "seed": arguments.seed,
        "question": arguments.question or benchmark.question,
        "history": arguments.history or benchmark.history,
        "decoding": f"greedy, at most {arguments.max_new_tokens or benchmark.max_new_tokens} tokens" if cast else None,
        "model": arguments.model if cast else None, "fingerprints": cast.fingerprints if cast else {},
        "rows": rows, "not_run": cast.not_run if cast else {}, "notes": notes, "problems": problems.as_dict(),
    }  # fmt: skip


def _peak() -> int:
    """Most memory that this process held, in MiB."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(used / (2**20 if sys.platform == "darwin" else 2**10))


if __name__ == "__main__":
    sys.exit(run_command(main))
