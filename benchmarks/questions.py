"""Questions about one picture: what a second one reads, eight regions asked about in one batch, and eight in one prompt.

    python benchmarks/questions.py
    python benchmarks/questions.py --threads 1 --rounds 9 --language smollm2-135m

tap-tiny with a language model and a fresh projector, which costs what a trained one does. CPU seconds, medians of rounds in
which the ways take turns; answers must be the same, word for word. In the last table they need not be: the same question
about eight objects of a crowded scene is read with what TAP says of them in words, or with a token for each.
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
from llm_bridge import (
    DescribedRegionProcessor,
    PromptMemory,
    RegionBridgeForConditionalGeneration,
    RegionBridgeProcessor,
    RegionChat,
)
from tap_tokenizer import RegionPrompt, TapRegionTokenizer

FIRST = "What are <region>, <region>, <region> and <region>, and how do they stand to each other?"
SECOND = "Which of region1 and region3 is further to the left in the picture?"
TOGETHER = f"What are {', '.join(['<region>'] * 7)} and <region>?"
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
    text_tokenizer = AutoTokenizer.from_pretrained(bridge.config.language_model, trust_remote_code=False)
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
    processors = {
        "in words": DescribedRegionProcessor(text_tokenizer, tokenizer),
        "as region tokens": RegionBridgeProcessor.for_bridge(bridge.config, text_tokenizer, tokenizer),
    }
    tables.append(eight_in_one_prompt(bridge, processors, rounds))
    head = f"{describe_machine()}; tap-tiny, {arguments.language}, float32; medians of {rounds}"
    text = "\n\n".join([head, *(table for table, _ in tables)]) + "\n"
    print(f"\n{text}")
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "questions.md").write_text(text)
    found = {"machine": head, "seconds": [seconds for _, seconds in tables]}
    (arguments.output / "questions.json").write_text(json.dumps(found, indent=1))


def eight_in_one_prompt(
    bridge: RegionBridgeForConditionalGeneration,
    processors: Mapping[str, DescribedRegionProcessor | RegionBridgeProcessor],
    rounds: int,
) -> tuple[str, dict[str, Sequence[float]]]:
    """A table of reading a question about eight regions, up to the first word of the answer."""
    drawn = draw_scene(make_scene(0, "test-crowded", 0), 512)
    regions = [{"type": "region", "box": box} for box in drawn.boxes[:8].tolist()]
    chat = [{"role": "user", "content": [{"type": "image", "image": drawn.image}, *_mixed(TOGETHER, regions)]}]
    options = {"tokenize": True, "return_dict": True, "add_generation_prompt": True}

    def to_read(inputs: Any) -> Callable[[], Callable[[], Any]]:
        return lambda: lambda: bridge.generate(**inputs, max_new_tokens=1)

    read = {way: processor.apply_chat_template(chat, **options) for way, processor in processors.items()}
    ways = {f"{way}: {inputs['input_ids'].shape[1]} tokens": to_read(inputs) for way, inputs in read.items()}
    return timed("a question about eight regions, to the first word", rounds, ways, are_same=False)


def _mixed(text: str, regions: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Text with a region in place of each marker, as content of a message."""
    first, *rest = text.split("<region>")
    return [
        {"type": "text", "text": first},
        *(
            item
            for region, words in zip(regions, rest, strict=True)
            for item in (region, {"type": "text", "text": words})
        ),
    ]


def timed(
    name: str, rounds: int, ways: Mapping[str, Callable[[], Callable[[], Any]]], *, are_same: bool = True
) -> tuple[str, dict[str, Sequence[float]]]:
    """A table, and the CPU seconds, of ways in turns; each is set up, and then timed, in every round.

    are_same: whether the ways must give the same answers.
    """
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    answers = {}
    for _ in range(rounds):
        for way, prepare in ways.items():
            ask = prepare()
            begun = time.process_time()
            answers[way] = ask()
            seconds[way].append(time.process_time() - begun)
    if are_same and len({str(answer) for answer in answers.values()}) > 1:
        raise SystemExit(f"{name}: the answers differ: {answers}")
    middle = {way: statistics.median(times) for way, times in seconds.items()}
    slowest = next(iter(middle.values()))
    rows = [f"| {way} | {taken:.3f} | **{slowest / taken:.2f}** |" for way, taken in middle.items()]
    return "\n".join([f"| {name} | CPU s | times as fast |", "|---|---|---|", *rows]), dict(seconds)


if __name__ == "__main__":
    main()
