"""A bridge served by vLLM: the same answers as here, many users at once, and how many answers a second.

    make serving-test
    python benchmarks/serving.py --engine .venv-vllm/bin/python --bridge my-bridge --users 32 --seconds 60
    python benchmarks/serving.py --engine .venv-vllm/bin/python --dtype bfloat16 --seconds 0

Starts vLLM on this machine alone, with the language model of a bridge and its adapter. Then it asks 50 questions about
GlyphScenes of the bridge with its adapter, and of the language model without it, here and through the server, greedily: every
answer must be the same, and every prompt must have the same length. Then `--users` conversations go on at once for
`--seconds`; every question must be answered, and with the answer that the model gives here. Last, the same questions are
answered here, one by one and in batches. Exit code 1 if an answer differs in float32, or is lost.

Without --bridge, one is made first: an adapter on SmolLM2, trained on a few pictures for a few steps. It answers badly, and
differently from the bare model, which is all that is needed here.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from machine import describe_machine

from finetune.glyphs.language import caption
from finetune.glyphs.scenes import draw_scene, make_scene
from llm_bridge import (
    RegionBridgeForConditionalGeneration,
    RegionBridgeProcessor,
    RegionChat,
    adapter_off,
    add_lora,
    generate_text,
    has_adapter,
    set_trainable,
)
from llm_bridge.serving.vllm_command import vllm_command

ASKED = (
    "What is <region>?",
    "What colour is <region>, and how large is it?",
    "Where is <region>? Answer with a sentence.",
    "Is <region> to the left of <region>?",
    "What do <region> and <region> have in common?",
)
FOLLOW_UP = "Tell me more about region1."
WORDS = 16
"""Length of an answer, at most."""


@dataclass
class Task:
    """A picture with the boxes of two of its objects, and what is asked about them."""

    image: np.ndarray
    boxes: list[list[float]]
    question: str
    answers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """What is answered here, and to the follow-up if there is one, by who is asked."""

    def turn(self) -> dict[str, Any]:
        """The question as a message."""
        return {"role": "user", "content": content(self.image, self.question, self.boxes)}

    def ask(self, chat: RegionChat, *, follow: bool) -> tuple[str, ...]:
        """The answers of a chat to the question, and to the follow-up."""
        chat.reset()
        first = chat.ask(self.question, image=self.image, boxes=self.boxes, max_new_tokens=WORDS)
        more = (chat.ask(FOLLOW_UP, max_new_tokens=WORDS),) if follow else ()
        return tuple(map(str, (first, *more)))


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", type=Path, required=True, help="the Python in whose environment vLLM is")
    parser.add_argument("--bridge", type=Path, help="folder of a bridge with an adapter (default: one is made)")
    parser.add_argument("--questions", type=int, default=50)
    parser.add_argument("--users", type=int, default=32, help="conversations at once")
    parser.add_argument("--seconds", type=float, default=60, help="how long they go on; 0: not at all")
    parser.add_argument("--dtype", default="float32", help="of the served language model; here it is float32")
    parser.add_argument("--port", type=int, default=8932)
    parser.add_argument("--output", type=Path, default=Path("runs/serving"), help="what is made, and the server's log")
    arguments = parser.parse_args()
    print(describe_machine(), flush=True)
    arguments.output.mkdir(parents=True, exist_ok=True)
    folder = arguments.bridge or make_bridge(arguments.output / "bridge")
    bridge = RegionBridgeForConditionalGeneration.from_pretrained(folder, dtype="float32")
    processor = RegionBridgeProcessor.from_pretrained(folder)
    if not has_adapter(bridge):
        parser.error(f"--bridge {folder} has no adapter: give the folder of a bridge that a LoRA run has saved.")
    tasks = make_tasks(arguments.questions)
    here = RegionChat(bridge, processor)
    here.warns_of_limitation = False
    started = time.monotonic()
    for number, task in enumerate(tasks):
        task.answers["adapter"] = task.ask(here, follow=number % 5 == 4)
        with adapter_off(bridge):
            task.answers["bare"] = task.ask(here, follow=number % 5 == 4)
    print(f"{2 * len(tasks)} conversations here took {time.monotonic() - started:.0f} s", flush=True)
    command = vllm_command(folder)
    with engine(arguments.engine, command[2:], arguments) as (address, took):
        print(f"the server took {took:.0f} s to start", flush=True)
        patient = {"bridge": folder, "timeout": 900.0}  # how long it takes on a busy machine is counted, and no loss
        served = RegionChat.from_server(address, **patient)
        bare = RegionChat.from_server(address, model=base_of(address), **patient)
        failed = compare("adapter", served, tasks, arguments.dtype) | compare("bare", bare, tasks, arguments.dtype)
        if arguments.seconds:
            failed |= load(served, bridge, processor, tasks, arguments)
    return int(failed)


def base_of(address: str) -> str:
    """The server's name of the language model without an adapter."""
    return next(card["id"] for card in httpx.get(f"{address}/models").json()["data"] if not card.get("parent"))


# --- the same answers -------------------------------------------------------------------------------------------------


def compare(who: str, chat: RegionChat, tasks: Sequence[Task], dtype: str) -> bool:
    """Ask everything through the server and print how many answers are the same; whether some should be and are not."""

    def ask(task: Task) -> list[tuple[str, str]]:
        own = chat.another()
        own.warns_of_limitation = False
        expected = task.answers[who]
        return list(zip(expected, task.ask(own, follow=len(expected) > 1)))

    with ThreadPoolExecutor(8) as pool:
        pairs = [pair for own in pool.map(ask, tasks) for pair in own]
    same = sum(one == other for one, other in pairs)
    others = sum(task.answers["adapter"] != task.answers["bare"] for task in tasks)
    print(
        f"{who}: {same} of {len(pairs)} answers are the same through the server in {dtype} as here in float32",
        flush=True,
    )
    for one, other in [pair for pair in pairs if pair[0] != pair[1]][:3]:
        print(f"    here: {one!r}\n    there: {other!r}")
    if who == "bare":
        print(f"the adapter changes the answers to {others} of {len(tasks)} questions", flush=True)
    return dtype == "float32" and same < len(pairs)


def make_tasks(count: int) -> list[Task]:
    """Questions about objects of GlyphScenes that no bridge was trained on."""
    tasks: list[Task] = []
    for index in range(10 * count):
        scene = make_scene(index, "test", seed=0)
        picture = draw_scene(scene, 512)
        if len(picture.visible) < 2:
            continue
        question = ASKED[len(tasks) % len(ASKED)]
        boxes = [picture.boxes[i].tolist() for i in picture.visible[: question.count("<region>")]]
        tasks.append(Task(picture.image, boxes, question))
        if len(tasks) == count:
            break
    return tasks


def make_bridge(folder: Path, steps: int = 12) -> Path:
    """A bridge with an adapter on SmolLM2 that has seen a few GlyphScenes, unless the folder holds it already."""
    if (folder / "config.json").is_file():
        return folder
    print("making a bridge …", flush=True)
    torch.manual_seed(0)
    bridge = RegionBridgeForConditionalGeneration.from_language_model(
        "smollm2-135m", region_tokenizer="tap-tiny", dtype=torch.float32
    )
    processor = RegionBridgeProcessor.for_bridge(bridge.config, region_tokenizer="tap-tiny")
    add_lora(bridge, r=8)
    set_trainable(bridge, "lora")
    optimizer = torch.optim.AdamW([p for p in bridge.parameters() if p.requires_grad], lr=1e-3)
    bridge.train()
    for step in range(steps):
        batch = processor.apply_chat_template(
            [lesson(2 * step + row) for row in range(2)],
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        learned = batch.pop("assistant_masks").bool()
        loss = bridge(**batch, labels=batch["input_ids"].masked_fill(~learned, -100)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    print(f"loss after {steps} steps: {loss.item():.2f}", flush=True)
    bridge.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def lesson(index: int) -> list[dict[str, Any]]:
    """A question about an object of a scene, and its answer."""
    scene = make_scene(index, "train", seed=0)
    picture = draw_scene(scene, 512)
    first = picture.visible[0]
    asked = content(picture.image, "What is <region>?", [picture.boxes[first].tolist()])
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": caption(scene.objects[first])}]


def content(image: np.ndarray, question: str, boxes: Sequence[list[float]]) -> list[dict[str, Any]]:
    """A question with a `<region>` for each box, as content items."""
    items: list[dict[str, Any]] = [{"type": "image", "image": image}]
    for number, words in enumerate(question.split("<region>")):
        items += [{"type": "region", "box": boxes[number - 1]}] if number else []
        items += [{"type": "text", "text": words.strip()}] if words.strip() else []
    return items


# --- the server -------------------------------------------------------------------------------------------------------


@contextmanager
def engine(python: Path, words: Sequence[str], arguments: argparse.Namespace) -> Iterator[tuple[str, float]]:
    """vLLM in a process of its own; its address, and how many seconds it took to start. Its words go to a file."""
    address = f"http://127.0.0.1:{arguments.port}"
    log = arguments.output / "server.log"
    command = [
        str(python.absolute()), "-m", "vllm.entrypoints.openai.api_server", "--model", *words, "--dtype", arguments.dtype,
        "--max-model-len", "1024", "--max-num-seqs", "32", "--enforce-eager", "--host", "127.0.0.1",
        "--port", str(arguments.port),
    ]  # fmt: skip
    own = {
        "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }  # fmt: skip
    rest = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    start = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env={**rest, **own}, start_new_session=True
        )
    try:
        while True:
            if process.poll() is not None or time.monotonic() > start + 900:
                raise RuntimeError(f"The server did not start; its last words:\n{log.read_text()[-3000:]}")
            try:
                if httpx.get(f"{address}/health").status_code == httpx.codes.OK:
                    break
            except httpx.TransportError:
                pass
            time.sleep(1)
        yield f"{address}/v1", time.monotonic() - start
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


# --- many users -------------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """What one user has seen."""

    seconds: list[float] = field(default_factory=list)
    other: int = 0
    lost: list[str] = field(default_factory=list)


def load(
    served: RegionChat,
    bridge: Any,
    processor: RegionBridgeProcessor,
    tasks: Sequence[Task],
    arguments: argparse.Namespace,
) -> bool:
    """Many users at once, then the same questions here; whether anything was lost."""
    start = time.monotonic()
    with ThreadPoolExecutor(arguments.users) as pool:
        work = [
            pool.submit(use, served, [*tasks[i % len(tasks) :], *tasks[: i % len(tasks)]], start + arguments.seconds)
            for i in range(arguments.users)
        ]
        tallies = [user.result() for user in work]
    took = time.monotonic() - start
    seconds = sorted(second for tally in tallies for second in tally.seconds)
    lost = [words for tally in tallies for words in tally.lost]
    others = sum(tally.other for tally in tallies)
    print(
        f"\n{arguments.users} users for {took:.0f} s: {len(seconds)} questions answered, {len(lost)} lost, {others} answered "
        f"otherwise than here; half of the answers within {seconds[len(seconds) // 2]:.1f} s, 95 % within "
        f"{seconds[int(0.95 * len(seconds))]:.1f} s"
    )
    for words in lost[:3]:
        print(f"    {words}")
    rates = {f"vLLM, {arguments.users} users": len(seconds) / took}
    for together in (1, 8, 32):
        rates[f"here, {together} at once"] = rate_here(bridge, processor, tasks, together)
    alone = rates["here, 1 at once"]
    print("\n| who answers | answers a second | beside one by one here |\n|---|---|---|")
    for name, rate in rates.items():
        print(f"| {name} | {rate:.2f} | **{rate / alone:.2f}** |")
    return bool(lost)


def use(served: RegionChat, tasks: Sequence[Task], end: float) -> Tally:
    """One user, who asks in a conversation of its own until the time is over."""
    chat = RegionChat(served.model, served.processor)
    chat.warns_of_limitation = False
    tally = Tally()
    while True:
        for task in tasks:
            if time.monotonic() > end:
                return tally
            start = time.monotonic()
            try:
                (answer,) = task.ask(chat, follow=False)
            except Exception as error:  # counted and printed
                tally.lost.append(f"{type(error).__name__}: {error}")
                continue
            tally.seconds.append(time.monotonic() - start)
            tally.other += answer != task.answers["adapter"][0]


def rate_here(bridge: Any, processor: RegionBridgeProcessor, tasks: Sequence[Task], together: int) -> float:
    """Answers a second of the bridge in this process, to so many questions at once."""
    asked = [tasks[i % len(tasks)] for i in range(max(8, together))]
    start = time.monotonic()
    for first in range(0, len(asked), together):
        inputs = processor.apply_chat_template(
            [[task.turn()] for task in asked[first : first + together]],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
        )
        generate_text(bridge, processor, inputs, max_new_tokens=WORDS)
    return len(asked) / (time.monotonic() - start)


if __name__ == "__main__":
    raise SystemExit(main())
