"""The page under load: many users at once, each with pictures and questions of their own, on this machine alone.

    python benchmarks/app_load.py --users 20 --seconds 120
    python benchmarks/app_load.py --users 20 --seconds 60 --hostile

Starts the page on region-chat-tiny in a process of its own; then every user loads a picture, asks about a region, asks
a follow-up, and begins again until the time is over, over HTTP as a browser does. Nothing may be lost or mixed up: every
question must get the answer that the model gives to it alone. Prints a table of latencies; exit code 1 if anything was lost.

With --hostile everything is done twice more, in turns without and with one more user who asks for as much as the limits
allow and more: the largest pictures and regions, a full queue, invented sessions, answers that are never read. Prints by how
much that slows the others down, as a ratio of their questions a second; exit code 1 also if it is by more than a half.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from threading import Event, Thread
from typing import Any

import httpx
import numpy as np
from machine import describe_machine
from PIL import Image

from finetune.glyphs.scenes import draw_scene, make_scene
from llm_bridge import RegionChat
from tap_tokenizer import counted

ROOT = Path(__file__).parents[1]
BRIDGE = "region-chat-tiny"
"""Which bridge the page asks, and whose answers are expected of it."""

QUESTIONS = ("What is <region>, and where is it?", "What colour is region1?")
LOADED, ENCODED, POINTED, CLICKED, SEEN, ANSWERED, FOLLOWED = STEPS = (
    "picture loaded",
    "picture encoded",
    "mask while pointing",
    "TAP's words at a click",
    "TAP's words after a question",
    "answer",
    "answer to a follow-up",
)


@dataclass
class Task:
    """A picture, a region of it, and the answers that the model gives to `QUESTIONS` alone."""

    address: str
    box: list[float]
    answers: list[str]


class Browser:
    """One session with the page, over HTTP as its scripts speak it."""

    def __init__(self, address: str) -> None:
        self.session = uuid.uuid4().hex
        self.http = httpx.Client(base_url=address, timeout=120)

    def close(self) -> None:
        """Close its connections, as a tab that is closed does."""
        self.http.close()

    def call(self, name: str, **sent: Any) -> dict[str, Any]:
        """What the page answers to a request; an exception if it was refused or broke."""
        answer = self.http.post(f"/{name}", json={"session": self.session, **sent})
        answer.raise_for_status()
        return answer.json()

    def ask(self, question: str, regions: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The steps of an answer; an exception if the question was refused or the answer broke off."""
        sent = {"session": self.session, "question": question, "regions": regions}
        with self.http.stream("POST", "/ask", json=sent) as answer:
            answer.raise_for_status()
            for line in answer.iter_lines():
                step = json.loads(line)
                if "error" in step:
                    raise RuntimeError(step["error"])
                yield step
                if "done" in step or "stopped" in step:
                    return
        raise RuntimeError("the stream ended before the answer")


@dataclass
class Tally:
    """What one user has seen: seconds of each step, and what went wrong."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {step: [] for step in STEPS})
    asked: int = 0
    wrong: list[str] = field(default_factory=list)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=20, help="users at once")
    parser.add_argument("--seconds", type=float, default=120, help="how long users go on beginning conversations")
    parser.add_argument("--pictures", type=int, default=12, help="different pictures among them")
    parser.add_argument("--port", type=int, default=7899)
    parser.add_argument("--hostile", action="store_true", help="measure how far one hostile user slows the others down")
    arguments = parser.parse_args()
    print(describe_machine())
    tasks = make_tasks(arguments.pictures)
    with served(arguments.port, arguments.users) as address:
        clients = [Browser(address) for _ in range(arguments.users)]
        if not arguments.hostile:
            return report(*crowd(clients, tasks, arguments.seconds), arguments.users)
        failed, rates = 0, []
        for is_hostile in (False, True, False, True):
            print(f"\n## {'With' if is_hostile else 'Without'} a hostile user")
            end = Event()
            attackers = [Thread(target=attack, args=(address, end), daemon=True) for attack in ATTACKS if is_hostile]
            for attacker in attackers:
                attacker.start()
            tallies, took = crowd(clients, tasks, arguments.seconds)
            end.set()
            for attacker in attackers:
                attacker.join(timeout=60)
            failed |= report(tallies, took, arguments.users)
            rates.append(sum(tally.asked for tally in tallies) / took)
    ratio = (rates[0] + rates[2]) / (rates[1] + rates[3])
    print(f"\nBeside a hostile user, the others' questions take {ratio:.2f} times as long.")
    return failed | int(ratio > 1.5)


def crowd(clients: list[Browser], tasks: list[Task], seconds: float) -> tuple[list[Tally], float]:
    """Users who ask until the time is over; what each has seen, and how long it took."""
    start = time.monotonic()
    with ThreadPoolExecutor(len(clients)) as pool:
        at_work = [
            pool.submit(use, client, tasks[i % len(tasks) :] + tasks[: i % len(tasks)], start + seconds)
            for i, client in enumerate(clients)
        ]
        tallies = [user.result() for user in at_work]
    return tallies, time.monotonic() - start


# --- one hostile user -------------------------------------------------------------------------------------------------


def ask_for_the_most(address: str, end: Event) -> None:
    """The largest picture, and questions about as many regions of as many points as are allowed, again and again."""
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (250, 250, 3), np.uint8)
    Image.fromarray(noise).resize((4000, 4000)).save(file, "JPEG")
    picture = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
    points = [[40.0 * i + 20, 2000.0] for i in range(64)]
    regions = [{"points": points, "point_labels": [1] * 64}] * 24
    client = Browser(address)
    while not end.is_set():
        try:
            client.call("load", upload=picture)
            client.call("encode")
            client.call("glance", regions=regions)
            client.call("everything")
            for _ in client.ask("What are these?", regions):
                if end.is_set():
                    return
        except Exception:  # refused, which is what should happen
            end.wait(0.05)


def fill_the_queue(address: str, end: Event) -> None:
    """Questions of one session, sent as fast as they are taken, whose answers nobody reads; every tenth is too large."""
    client = Browser(address)
    client.call("load", example=0)
    for number in count():
        if end.is_set():
            return
        body = {"session": client.session, "question": "What?", "regions": [{"box": [1, 1, 500, 500]}] * 24}
        try:
            if number % 10:
                with client.http.stream("POST", "/ask", json=body):
                    pass
            else:
                client.http.post("/ask", content=(b" " * 2**20 for _ in range(30)))
        except httpx.HTTPError:  # refused, which is what should happen
            end.wait(0.05)
        end.wait(0.01)


def invent_sessions(address: str, end: Event) -> None:
    """A session for every request, each with the example picture and a region of 40,000 points."""
    while not end.is_set():
        client = Browser(address)
        try:
            client.call("load", example=0)
            points = [[float(i % 500), 5.0] for i in range(40_000)]
            list(client.ask("What is <region>?", [{"points": points, "point_labels": [1] * 40_000}]))
        except Exception:  # refused, which is what should happen
            end.wait(0.05)
        client.close()
        end.wait(0.5)


ATTACKS = (ask_for_the_most, fill_the_queue, invent_sessions)
"""What the hostile user does, all at once."""


# --- the others -------------------------------------------------------------------------------------------------------


def make_tasks(count: int) -> list[Task]:
    """GlyphScenes, and what the bundled model says of one object of each."""
    chat = RegionChat.from_pretrained(BRIDGE)
    tasks = []
    for index in range(count):
        drawn = draw_scene(make_scene(index, "test", 0), 512)
        box = [float(x) for x in drawn.boxes[0]]
        chat.reset()
        first = chat.ask(QUESTIONS[0], image=drawn.image, boxes=[box])
        answers = [first, chat.ask(QUESTIONS[1])]
        file = io.BytesIO()
        Image.fromarray(drawn.image).save(file, "PNG")
        address = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
        tasks.append(Task(address, box, [str(answer) for answer in answers]))
    return tasks


@contextmanager
def served(port: int, users: int) -> Iterator[str]:
    """The page in a process of its own, while the block runs."""
    command = [sys.executable, "-m", "llm_bridge", "app", "--model", BRIDGE, "--port", str(port)]
    command += ["--queue", str(2 * users)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("The page is at "):
                    yield line.split()[4]
                    break
            else:
                raise SystemExit("the page did not start")
        finally:
            process.terminate()


def use(client: Browser, tasks: list[Task], end: float) -> Tally:
    """One user's conversations, until the time is over; the last is finished."""
    tally = Tally()
    while time.monotonic() < end:
        task = tasks[tally.asked // 2 % len(tasks)]
        begun = time.monotonic()
        try:
            state = client.call("load", upload=task.address)
        except Exception as error:  # whatever it is, a picture was lost
            tally.wrong.append(f"picture: {type(error).__name__}: {error}")
            continue
        tally.seconds[LOADED].append(time.monotonic() - begun)
        if state["regions"] or state["messages"]:
            tally.wrong.append("the picture came with another one's talk")
        begun = time.monotonic()
        try:
            client.call("encode")
            tally.seconds[ENCODED].append(time.monotonic() - begun)
            for name, step in (("glance", POINTED), ("look", CLICKED)):
                begun = time.monotonic()
                client.call(name, regions=[{"box": task.box}])
                tally.seconds[step].append(time.monotonic() - begun)
        except Exception as error:  # whatever it is, a mask was lost
            tally.wrong.append(f"mask: {type(error).__name__}: {error}")
        ask(client, task, 0, [{"box": task.box}], tally)
        ask(client, task, 1, [], tally)
    return tally


def ask(client: Browser, task: Task, turn: int, regions: list[dict[str, Any]], tally: Tally) -> None:
    """Ask the question of a turn, and note how long it took and whether the answer is the model's own."""
    tally.asked += 1
    begun = time.monotonic()
    answer = ""
    has_looks = False
    try:
        for step in client.ask(QUESTIONS[turn], regions):
            if turn == 0 and step.get("looks") and not has_looks:
                has_looks = True
                tally.seconds[SEEN].append(time.monotonic() - begun)
            answer = step.get("answer", answer)
    except Exception as error:  # whatever it is, an answer was lost
        tally.wrong.append(f"{type(error).__name__}: {error}")
        return
    tally.seconds[(ANSWERED, FOLLOWED)[turn]].append(time.monotonic() - begun)
    if answer != task.answers[turn]:
        tally.wrong.append(f"expected {task.answers[turn]!r}, got {answer!r}")


def report(tallies: list[Tally], took: float, users: int) -> int:
    """Print the table; gives 1 if anything was lost."""
    asked = sum(tally.asked for tally in tallies)
    wrong = [words for tally in tallies for words in tally.wrong]
    print(
        f"\n{counted(users, 'user')} for {took:.0f} s: {counted(asked, 'question')}, {asked / took:.1f} a second, "
        f"{len(wrong)} lost or wrong\n"
    )
    print("| | times | median s | 95 % s | longest s |\n|---|---|---|---|---|")
    for step in STEPS:
        seconds = np.array([value for tally in tallies for value in tally.seconds[step]] or [np.nan])
        middle, high = np.percentile(seconds, [50, 95])
        print(f"| {step} | {len(seconds)} | {middle:.2f} | {high:.2f} | {seconds.max():.2f} |")
    for words in wrong[:10]:
        print(f"lost: {words}", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
