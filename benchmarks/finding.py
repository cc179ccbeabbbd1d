"""Finding by words: what `RegionChat.find` takes with eight and with fifty candidates, stage by stage, and in rounds.

    python benchmarks/finding.py
    python benchmarks/finding.py --threads 1 --rounds 5 --model runs/mine/model

CPU seconds, medians of rounds in which all ways take turns, on one picture of glyphs, which is new each time.
Stages: the picture's features; the candidates' tokens, or the search for everything; the context and the words of the prompt;
reading it; writing the answer; the probabilities of names. "next phrase" is a second phrase for the same candidates.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from machine import describe_machine
from side_by_side import arguments_of

from finetune.glyphs.scenes import draw_scene, make_scene
from llm_bridge import Candidates, RegionBridgeProcessor, RegionChat, find_among
from tap_tokenizer import RegionPrompt

FIRST, NEXT = "the red umbrella", "the largest thing left of the star"
STAGES = ("picture", "candidates", "context, words", "read", "answer", "probabilities")
Result = TypeVar("Result")


@dataclass
class Stopwatch:
    """CPU seconds of stages."""

    seconds: dict[str, float] = field(default_factory=dict)

    def time(self, stage: str, work: Callable[[], Result]) -> Result:
        """Do it, and add what it takes to the stage."""
        begun = time.process_time()
        result = work()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.process_time() - begun
        return result


class TimedSpeaker:
    """The language model of a conversation, whose work is timed; a prompt is read before it is answered."""

    def __init__(self, chat: RegionChat, watch: Stopwatch) -> None:
        self.chat, self.watch, self.own = chat, watch, chat.speaker
        self.config, self.processor = self.own.config, self.own.processor
        self.read_each, self.say_each, self.stream = self.own.read_each, self.own.say_each, self.own.stream

    def read(self, messages: Sequence[dict[str, Any]], *, thinking: bool) -> Mapping[str, Any]:
        return self.watch.time("context, words", lambda: self.own.read(messages, thinking=thinking))

    def say(self, prompt: Mapping[str, Any], **options: Any) -> str:
        length = prompt["input_ids"].shape[1] - 1
        self.watch.time("read", lambda: self.chat.memory.read(self.chat.model, self.own, prompt, length))
        return self.watch.time("answer", lambda: self.own.say(prompt, **options))

    def log_probabilities(self, prompt: Mapping[str, Any], wanted: Mapping[Any, Collection[int]]) -> Any:
        return self.watch.time("probabilities", lambda: self.own.log_probabilities(prompt, wanted))


@dataclass(frozen=True)
class Way:
    """Candidates of the picture, boxes or all that is found in it, and how many are shown at once."""

    name: str
    boxes: list[RegionPrompt] | None
    most: int | None = None


def boxes_on_a_grid(count: int, height: int, width: int) -> list[RegionPrompt]:
    """So many boxes, each of which overlaps the next ones, on a picture of so many pixels."""
    columns = int(np.ceil(np.sqrt(count)))
    high, wide = height / columns, width / columns
    corners = [(wide * (i % columns), high * (i // columns)) for i in range(count)]
    return [RegionPrompt(box=(x, y, min(x + 1.2 * wide, width), min(y + 1.2 * high, height))) for x, y in corners]


def main() -> None:
    """Measure and print."""
    arguments = arguments_of(
        __doc__,
        model={"default": "region-chat-tiny", "help": "name or folder of the bridge"},
        rounds={"type": int, "default": 3, "help": "how often each way is timed"},
    )
    rounds, model = (1, "region-chat-tiny") if arguments.quick else (arguments.rounds, arguments.model)
    loaded = RegionChat.from_pretrained(model, device=arguments.device)
    picture = draw_scene(make_scene(10, "test", 0), 256).image
    few, many = (boxes_on_a_grid(count, *picture.shape[:2]) for count in (8, 50))
    ways = [
        Way("8 boxes", few),
        Way("50 boxes", many),
        Way("50 boxes, 25 at once", many, 25),
        Way("50 boxes, 10 at once", many, 10),
        Way("everything mode", None),
    ]
    taken: dict[str, list[dict[str, float]]] = {way.name: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            taken[way.name].append(timed(loaded, picture, way))
    middle = {
        name: {stage: statistics.median(one[stage] for one in own) for stage in own[0]} for name, own in taken.items()
    }
    head = f"{describe_machine()}; {model}, float32; medians of {rounds}"
    text = f"{head}\n\n{table(middle)}\n"
    print(f"\n{text}")
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "finding.md").write_text(text)
    (arguments.output / "finding.json").write_text(json.dumps({"machine": head, "ways": middle}, indent=1))


def timed(loaded: RegionChat, picture: np.ndarray, way: Way) -> dict[str, float]:
    """CPU seconds of every stage of finding a phrase, and of a second one in all; how many candidates, how often asked."""
    words, tokenizer = loaded.processor.tokenizer, loaded.region_tokenizer
    processor = RegionBridgeProcessor.for_bridge(loaded.model.config, words, tokenizer)  # has seen no picture
    chat, watch = RegionChat(loaded.model, processor), Stopwatch()
    speaker = TimedSpeaker(chat, watch)
    watch.time("picture", lambda: processor.embed_image(picture))
    candidates = watch.time("candidates", lambda: Candidates.of(processor, picture, way.boxes))
    found = find_among(speaker, processor, picture, FIRST, candidates, most=way.most)
    stages = {stage: watch.seconds.get(stage, 0.0) for stage in STAGES}
    next_phrase = Stopwatch()
    next_phrase.time("all", lambda: find_among(chat.speaker, processor, picture, NEXT, candidates, most=way.most))
    return {
        "candidates shown": len(candidates.prompts), "asked": found.rounds, **stages, "in all": sum(stages.values()),
        "next phrase": next_phrase.seconds["all"],
    }  # fmt: skip


def table(ways: Mapping[str, Mapping[str, float]]) -> str:
    """CPU seconds of each way, in Markdown."""
    columns = list(next(iter(ways.values())))
    rows = [
        f"| {name} | " + " | ".join(f"{own[c]:.0f}" if c in columns[:2] else f"{own[c]:.2f}" for c in columns) + " |"
        for name, own in ways.items()
    ]
    return "\n".join([f"| CPU s | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|", *rows])


if __name__ == "__main__":
    main()
