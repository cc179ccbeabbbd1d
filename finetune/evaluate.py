"""A bridge's own answers to the questions of records, beside the true ones.

    python -m finetune.evaluate --model runs/mine/model --data mine_val.jsonl --output runs/mine_eval

Writes `predictions.jsonl`, a line for each question with what the model said, unedited, and `metrics.json`. Every
question is asked greedily with the true turns before it. A run that was stopped goes on with the records that are left.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm.auto import tqdm

from llm_bridge import PictureContext, RegionBridgeForConditionalGeneration, RegionBridgeProcessor

from .arguments import knob, parse_arguments, run_command
from .conversations import answer_last
from .data.collator import CachedSample
from .data.sample import Sample, cut_turns, iterate, load_samples, open_image
from .environment import describe_environment
from .metrics import accuracy, majority
from .region_cache import RegionCache, file_checksum
from .region_encoding import encode_regions

PROTOCOL = "exact answers 1"
"""An answer is right if it is the true one after `metrics.normalise_answer`; change it, and this gets a new number."""


@dataclass
class EvaluateArguments:
    """Ask a bridge every question of a set of records."""

    model: str = knob(help="the bridge: region-chat-tiny, a folder, or a Hub repository")
    data: str = knob(help="records: JSONL or parquet")
    output: str = knob(help="folder of predictions and numbers")
    cache: str | None = knob(default=None, help="cache of the records; default: their pictures are encoded")
    history: Literal["true", "none"] = knob(
        default="true", help="true: earlier turns stand before a question, with true answers; none: it stands alone"
    )
    limit: int | None = knob(default=None, help="records to ask about, from the first")
    batch_size: int = knob(default=16, help="questions asked at once")
    max_new_tokens: int = knob(default=64, help="longest answer")
    device: str | None = knob(default=None, help="where to run; default: CUDA if there is one, else CPU")


def main(argv: list[str] | None = None) -> None:
    """Read the arguments, ask, and write predictions and numbers."""
    arguments = parse_arguments(EvaluateArguments, argv, description=__doc__)
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    bridge = RegionBridgeForConditionalGeneration.from_pretrained(arguments.model).to(device).eval()
    processor = RegionBridgeProcessor.from_pretrained(arguments.model, device=device)
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    about = _about(arguments, bridge)
    done = _resume(output, about)
    cache = None if arguments.cache is None else _cache(arguments, bridge)
    samples = load_samples(arguments.data, streaming=True)
    start = 1 + max((line["record"] for line in done), default=-1)
    waiting: list[tuple[int, int, CachedSample]] = []
    path = output / "predictions.jsonl"
    total = None if cache is None else min(cache.plan.samples, arguments.limit or cache.plan.samples)
    with (
        path.open("a", encoding="utf-8") as file,
        tqdm(desc="asking", unit="record", initial=start, total=total) as bar,
    ):

        def answer() -> None:
            said = answer_last(bridge, processor, [item for *_, item in waiting], arguments.max_new_tokens)
            for (record, turn, item), words in zip(waiting, said):
                question, truth = item.sample["conversations"][-2:]
                line = {
                    "record": record, "question": turn, "source": item.sample.get("source"), "asked": question["content"],
                    "answer": words, "truth": truth["content"],
                }  # fmt: skip
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
            waiting.clear()

        for number, sample in enumerate(iterate(samples, start), start):
            if arguments.limit is not None and number >= arguments.limit:
                break
            seen = _seen(sample, number, cache, Path(arguments.data), processor)
            waiting += [(number, turn, item) for turn, item in enumerate(_questions(seen, arguments.history))]
            bar.update()
            if len(waiting) >= arguments.batch_size:
                answer()
        if waiting:
            answer()
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    metrics = {**about, **score(lines), "environment": describe_environment(device=device)}
    partial = output / "metrics.json.partial"
    partial.write_text(json.dumps(metrics, indent=1))
    partial.replace(output / "metrics.json")
    print(table(metrics))


def score(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Share of exact answers, of all and by source, with the commonest answer's share beside it."""
    if not lines:
        raise ValueError("Got no answered questions: do the records have conversations with answers?")
    by_source: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        by_source[line["source"] or "records"].append(line)

    def row(some: list[dict[str, Any]]) -> dict[str, float]:
        said, true = [line["answer"] for line in some], [line["truth"] for line in some]
        return {"questions": len(some), "exact": accuracy(said, true), "majority": majority(true)}

    return {**row(lines), "by_source": {source: row(some) for source, some in sorted(by_source.items())}}


def table(metrics: dict[str, Any]) -> str:
    """The numbers as a Markdown table."""
    rows = {"all": metrics, **(metrics["by_source"] if len(metrics["by_source"]) > 1 else {})}
    lines = ["| | questions | exact | commonest answer |", "|---|---|---|---|"]
    lines += [f"| {name} | {r['questions']} | {r['exact']:.3f} | {r['majority']:.3f} |" for name, r in rows.items()]
    return "\n".join(lines)


def _about(arguments: EvaluateArguments, bridge: RegionBridgeForConditionalGeneration) -> dict[str, Any]:
    """What the predictions are of: all that, if it changes, makes them others."""
    chosen = {key: value for key, value in asdict(arguments).items() if key in ("model", "data", "history", "limit")}
    data = Path(arguments.data)
    return {
        "protocol": PROTOCOL,
        **chosen,
        "data_checksum": file_checksum(data) if data.is_file() else "",
        "region_tokenizer": bridge.config.fingerprint,
        "decoding": f"greedy, at most {arguments.max_new_tokens} tokens",
    }


def _resume(output: Path, about: dict[str, Any]) -> list[dict[str, Any]]:
    """Predictions that an earlier run made of the same; the last record's may be incomplete, and are made again."""
    note, path = output / "about.json", output / "predictions.jsonl"
    if note.is_file() and json.loads(note.read_text()) != about:
        old = json.loads(note.read_text())
        changed = ", ".join(key for key in about if old.get(key) != about[key])
        raise ValueError(f"{output} holds predictions with other {changed}: choose another output, or delete it.")
    note.write_text(json.dumps(about, indent=1))
    if not path.is_file():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:  # the torn end of a run that was killed
            break
    finished = (output / "metrics.json").is_file()
    last = max((line["record"] for line in lines), default=-1)
    kept = lines if finished else [line for line in lines if line["record"] < last]
    partial = path.with_name(path.name + ".partial")
    partial.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept), encoding="utf-8")
    partial.replace(path)
    return kept


def _cache(arguments: EvaluateArguments, bridge: RegionBridgeForConditionalGeneration) -> RegionCache:
    cache = RegionCache(str(arguments.cache))
    cache.check(Path(arguments.data), bridge.config.fingerprint, PictureContext.of(bridge.config))
    return cache


def _seen(
    sample: Sample, number: int, cache: RegionCache | None, data: Path, processor: RegionBridgeProcessor
) -> CachedSample:
    """A record with its region tokens, from the cache or from its picture."""
    if cache is not None:
        return CachedSample(sample, cache.regions(number), cache.grid(number))
    tokenizer = processor.region_tokenizer
    if tokenizer is None:
        raise ValueError("The bridge's folder has no region tokenizer: give cache=….")
    context = processor.context
    features = tokenizer.embed_image([open_image(sample, data if data.is_dir() else data.parent)])
    (regions,) = encode_regions(tokenizer, features, [sample])
    return CachedSample(sample, regions, context.encode(tokenizer, features)[0] if context.slots else None)


def _questions(seen: CachedSample, history: str) -> list[CachedSample]:
    """A record for each of its questions that has an answer, which comes last."""
    turns = seen.sample["conversations"]
    asked = [i for i, turn in enumerate(turns) if turn["role"] == "user"]
    found = []
    for place, i in enumerate(asked):
        if i + 1 >= len(turns):
            continue
        if history == "none":
            sample, rows = cut_turns(seen.sample, place, 1)
            found.append(CachedSample(sample, seen.regions[rows], seen.grid))
        else:
            found.append(CachedSample({**seen.sample, "conversations": list(turns[: i + 2])}, seen.regions, seen.grid))
    return found


if __name__ == "__main__":
    sys.exit(run_command(main))
