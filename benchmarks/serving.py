"""A bridge served by vLLM: the same answers as here, many users at once, and how many answers a second.

    make serving-test
    python benchmarks/serving.py --engine .venv-vllm/bin/python --bridge my-bridge --users 32 --seconds 60
    python benchmarks/serving.py --engine .venv-vllm/bin/python --dtype bfloat16 --seconds 0

Starts vLLM on this machine alone, with the language model of a bridge and its adapter. Then it asks 50 questions about
GlyphScenes of the bridge with its adapter, and of the language model without it, here and through the server, greedily: every
answer must be the same, and every prompt must have the same length. `find` must give the same regions in the same order, with
the same probabilities, for an object of each of `--phrases` scenes. Then `--users` conversations go on at once for
`--seconds`; every question must be answered, and with the answer that the model gives here. Last, the same questions are
answered here, one by one and in batches. Exit code 1 if an answer differs in float32, under load or not, or is lost.
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
    DEFAULT_BRIDGE,
    FoundRegions,
    RegionBridgeForConditionalGeneration,
    RegionBridgeProcessor,
    RegionChat,
    adapter_off,
    generate_text,
    has_adapter,
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
ALIKE = 1e-3
"""How much a probability may differ in float32, which two programs round differently."""


@dataclass
class Task:
    """A picture with the boxes of two of its objects, and what is asked about them."""

    image: np.ndarray
    boxes: list[list[float]]
    question: str
    objects: list[list[float]]
    """The boxes of all its objects."""
    phrase: str
    """What one of them is."""
    answers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """What is answered here, and to the follow-up if there is one, by who is asked."""
    found: dict[str, FoundRegions] = field(default_factory=dict)
    """What is found here by the phrase, by who is asked."""

    def turn(self) -> dict[str, Any]:
        """The question as a message."""
        return {"role": "user", "content": content(self.image, self.question, self.boxes)}

    def ask(self, chat: RegionChat, *, follow: bool) -> tuple[str, ...]:
        """The answers of a chat to the question, and to the follow-up."""
        chat.reset()
        first = chat.ask(self.question, image=self.image, boxes=self.boxes, max_new_tokens=WORDS)
        more = (chat.ask(FOLLOW_UP, max_new_tokens=WORDS),) if follow else ()
        return tuple(map(str, (first, *more)))

    def find(self, chat: RegionChat) -> FoundRegions:
        """What a chat finds by the phrase among all objects: the most probable one, at least."""
        return chat.find(self.phrase, image=self.image, boxes=self.objects, threshold=1.0, max_new_tokens=WORDS)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", type=Path, required=True, help="the Python in whose environment vLLM is")
    parser.add_argument(
        "--bridge", default=DEFAULT_BRIDGE, help="name or folder of a bridge with an adapter (default: %(default)s)"
    )
    parser.add_argument("--questions", type=int, default=50)
    parser.add_argument("--phrases", type=int, default=20, help="what is found by its name, in as many scenes")
    parser.add_argument("--users", type=int, default=32, help="conversations at once")
    parser.add_argument("--seconds", type=float, default=60, help="how long they go on; 0: not at all")
    parser.add_argument("--dtype", default="float32", help="of the served language model; here it is float32")
    parser.add_argument("--port", type=int, default=8932)
    parser.add_argument("--output", type=Path, default=Path("runs/serving"), help="where the server's log goes")
    arguments = parser.parse_args()
    print(describe_machine(), flush=True)
    arguments.output.mkdir(parents=True, exist_ok=True)
    bridge = RegionBridgeForConditionalGeneration.from_pretrained(arguments.bridge, dtype="float32")
    processor = RegionBridgeProcessor.from_pretrained(arguments.bridge)
    remembered = processor.cached_images = max(arguments.questions, 32)
    if not has_adapter(bridge):
        parser.error(f"--bridge {arguments.bridge} has no adapter: give a bridge that a LoRA run has saved.")
    tasks = make_tasks(arguments.questions)
    here = RegionChat(bridge, processor)
    here.warns_of_limitation = here.warns_of_finding = False
    started = time.monotonic()

    def answer_here(task: Task, number: int, who: str) -> None:
        task.answers[who] = task.ask(here, follow=number % 5 == 4)
        if number < arguments.phrases:
            task.found[who] = task.find(here)

    for number, task in enumerate(tasks):
        answer_here(task, number, "adapter")
        with adapter_off(bridge):
            answer_here(task, number, "bare")
    print(f"{2 * len(tasks)} conversations here took {time.monotonic() - started:.0f} s", flush=True)
    command = vllm_command(arguments.bridge, port=arguments.port)
    with engine(arguments.engine, command[2:], arguments) as (address, took):
        print(f"the server took {took:.0f} s to start", flush=True)
        patient = {
            "bridge": arguments.bridge,
            "timeout": 900.0,
        }  # how long it takes on a busy machine is counted, and no loss
        served = RegionChat.from_server(address, **patient)
        bare = RegionChat.from_server(address, model=base_of(address), **patient)
        served.processor.cached_images = bare.processor.cached_images = remembered  # no row pays for pictures
        failed = False
        for who, chat in (("adapter", served), ("bare", bare)):
            failed |= compare(who, chat, tasks, arguments.dtype) | compare_found(who, chat, tasks, arguments.dtype)
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


def compare_found(who: str, chat: RegionChat, tasks: Sequence[Task], dtype: str) -> bool:
    """Find through the server and print how much is the same; whether something should be and is not."""
    chat.warns_of_limitation = chat.warns_of_finding = False
    pairs = [(task.found[who], task.find(chat)) for task in tasks if who in task.found]
    same = sum((one.rows, one.answer) == (other.rows, other.answer) for one, other in pairs)
    gaps = [float((_probabilities(one) - _probabilities(other)).abs().max()) for one, other in pairs]
    print(
        f"{who}: find gives the same regions for {same} of {len(pairs)} phrases; probabilities differ by at most "
        f"{max(gaps, default=0):.1e}",
        flush=True,
    )
    return dtype == "float32" and (same < len(pairs) or max(gaps, default=0) > ALIKE)


def _probabilities(found: FoundRegions) -> torch.Tensor:
    return torch.tensor([*found.candidate_probabilities.tolist(), found.none_probability])


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
        objects = [picture.boxes[i].tolist() for i in picture.visible]
        tasks.append(Task(picture.image, boxes, question, objects, caption(scene.objects[picture.visible[0]])))
        if len(tasks) == count:
            break
    return tasks


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
        "--max-model-len", "1024", "--max-num-seqs", "32", "--enforce-eager",
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
    """Many users at once, then the same questions here; whether anything was lost, or answered otherwise in float32."""
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
    return bool(lost) or (arguments.dtype == "float32" and others > 0)


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
    """Answers a second of the bridge in this process, to so many questions at once, about pictures that were read before."""
    asked = [tasks[i % len(tasks)] for i in range(max(8, together))]

    def prompts(some: Sequence[Task]) -> Any:
        options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
        return processor.apply_chat_template([[task.turn()] for task in some], **options)

    prompts(asked)
    start = time.monotonic()
    for first in range(0, len(asked), together):
        generate_text(bridge, processor, prompts(asked[first : first + together]), max_new_tokens=WORDS)
    return len(asked) / (time.monotonic() - start)


if __name__ == "__main__":
    raise SystemExit(main())
