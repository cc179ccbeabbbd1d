"""Questions about one picture: what a second one reads, and eight regions asked about in one batch.

    python benchmarks/questions.py
    python benchmarks/questions.py --threads 1 --rounds 9 --language smollm2-135m

tap-tiny with a language model and a fresh projector, which costs what a trained one does. CPU seconds, medians of rounds in
which the ways take turns; answers must be the same, word for word.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from machine import describe_machine
from side_by_side import arguments_of
from transformers import AutoTokenizer

from finetune.glyphs.scenes import draw_scene, make_scene
from llm_bridge import PromptMemory, RegionBridgeForConditionalGeneration, RegionBridgeProcessor, RegionChat
from tap_tokenizer import RegionPrompt, TapRegionTokenizer

FIRST = "What are <region>, <region>, <region> and <region>, and how do they stand to each other?"
SECOND = "Which of region1 and region3 is further to the left in the picture?"
ALONE = "What is <region>, and what colour does it have?"


def main() -> None:
    """Measure and print."""
    arguments = arguments_of(
        __doc__,
        language={"default": "smollm2-135m", "help": "the language model"},
        rounds={"type": int, "default": 5, "help": "how often each way is timed"},
        words={"type": int, "default": 16, "help": "words of an answer"},
    )
    rounds, words = (1, 2) if arguments.quick else (arguments.rounds, arguments.words)
    tokenizer = TapRegionTokenizer.from_pretrained("tap-tiny")
    bridge = RegionBridgeForConditionalGeneration.from_language_model(arguments.language, region_tokenizer=tokenizer)
    text_tokenizer = AutoTokenizer.from_pretrained(bridge.config.language_model)
    picture = draw_scene(make_scene(10, "test", 0), 256).image
    boxes = [[8.0 + 16 * n, 20.0 + 20 * n, 56.0 + 16 * n, 90.0 + 20 * n] for n in range(8)]
    length = {"max_new_tokens": words, "min_new_tokens": words}

    def chat(remembers: bool = True) -> RegionChat:
        """A conversation that has seen no picture yet."""
        processor = RegionBridgeProcessor.for_bridge(bridge.config, text_tokenizer, tokenizer)
        return RegionChat(bridge, processor, PromptMemory() if remembers else PromptMemory(most_bytes=0))

    def second(remembers: bool) -> Callable[[], Any]:
        """The first word of the answer to a follow-up."""
        begun = chat(remembers)
        begun.ask(FIRST, image=picture, boxes=boxes[:4], **length)
        return lambda: begun.ask(SECOND, max_new_tokens=1)

    prompts = [[RegionPrompt(box=tuple(box))] for box in boxes]

    def one_by_one(remembers: bool) -> Callable[[], Any]:
        own = chat(remembers)
        return lambda: [own.another().ask(ALONE, image=picture, prompts=region, **length) for region in prompts]

    def together() -> Callable[[], Any]:
        own = chat()
        return lambda: own.ask_each([ALONE] * len(prompts), image=picture, prompts=prompts, **length)

    tables = [
        timed("a second question, to the first word", rounds, {
            "read again": lambda: second(False), "new words only": lambda: second(True),
        }),
        timed(f"eight questions about eight regions, {words} words each", rounds, {
            "eight calls": lambda: one_by_one(False), "eight calls that remember": lambda: one_by_one(True),
            "one batch": together,
        }),
    ]  # fmt: skip
    head = f"{describe_machine()}; tap-tiny, {arguments.language}, float32; medians of {rounds}"
    text = "\n\n".join([head, *(table for table, _ in tables)]) + "\n"
    print(f"\n{text}")
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "questions.md").write_text(text)
    found = {"machine": head, "seconds": [seconds for _, seconds in tables]}
    (arguments.output / "questions.json").write_text(json.dumps(found, indent=1))


def timed(
    name: str, rounds: int, ways: Mapping[str, Callable[[], Callable[[], Any]]]
) -> tuple[str, dict[str, Sequence[float]]]:
    """A table, and the CPU seconds, of ways in turns; each is set up, and then timed, in every round."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    answers = {}
    for _ in range(rounds):
        for way, prepare in ways.items():
            ask = prepare()
            begun = time.process_time()
            answers[way] = ask()
            seconds[way].append(time.process_time() - begun)
    if len({str(answer) for answer in answers.values()}) > 1:
        raise SystemExit(f"{name}: the answers differ: {answers}")
    middle = {way: statistics.median(times) for way, times in seconds.items()}
    slowest = next(iter(middle.values()))
    rows = [f"| {way} | {taken:.3f} | **{slowest / taken:.2f}** |" for way, taken in middle.items()]
    return "\n".join([f"| {name} | CPU s | times as fast |", "|---|---|---|", *rows]), dict(seconds)


if __name__ == "__main__":
    main()
