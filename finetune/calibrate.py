"""Makes the probabilities of `RegionChat.find` mean what they say, and chooses when nothing is found.

    python -m finetune.calibrate --model runs/mine/model --data runs/expressions_val.jsonl

On held-out questions, it fits one temperature, by the likelihood of the true answers, and one threshold for none: the
one that best tells questions that mean something from those that mean nothing, where the shares of both that are
answered correctly count equally. Temperature and threshold go into the bridge's config and its card. `finetune.train`
does the same at its end, if it taught a bridge to find regions and its eval_data asks for some.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from tqdm.auto import tqdm

from llm_bridge import (
    RegionBridgeForConditionalGeneration,
    RegionBridgeProcessor,
    asked_phrase,
    bridge_card,
    first_names,
    likelihoods,
)
from tap_tokenizer import counted, in_fast_dtype, only_writer, write_whole

from .batches import CachedRecord, ConversationCollator
from .cache import RegionCache
from .config import knob, parse_arguments, run_command
from .data.grounding import each_shown, meant_numbers
from .records import Record, cut_turns, load_records

TEMPERATURES = (0.05, 20.0)
"""The lowest and the highest temperature that is tried."""


@dataclass
class CalibrateArguments:
    """Fit the temperature and the threshold of `RegionChat.find` to held-out records, and write them into a bridge's folder."""

    model: str = knob(help="folder of the bridge, whose config.json and README.md are rewritten")
    data: str = knob(help="records that the bridge did not learn from, with questions that ask to find regions")
    cache: str | None = knob(default=None, help="cache of data; default: the pictures are encoded")
    limit: int | None = knob(default=None, help="read at most this many records")
    device: str = knob(default="cpu", help="where to run: cpu, cuda, mps")


@dataclass(frozen=True)
class Calibration:
    """What was fitted, and how well it does on the questions that it was fitted to.

    loss: mean negative log-likelihood of the true answers' first names, before and after. threshold: None if the questions
    do not ask both for something and for nothing. none_right, none_wrong: how often none is said where there is none, and
    where there is something. unread: answers of further questions, which neither name regions of theirs nor say none.
    """

    temperature: float
    threshold: float | None
    questions: int
    loss: tuple[float, float]
    none_right: float
    none_wrong: float
    unread: tuple[str, ...] = ()

    def __str__(self) -> str:
        said = (
            f"calibrated on {counted(self.questions, 'question')}: temperature {self.temperature:.3g} "
            f"(loss {self.loss[0]:.3f}, then {self.loss[1]:.3f})"
        )
        if self.unread:
            said += (
                f"; without {counted(len(self.unread), 'question')} whose answers neither name regions of theirs nor say none, "
                f"such as {self.unread[0]!r:.60}"
            )
        if self.threshold is None:
            return f"{said}; no threshold for none, because the questions are all of one kind"
        return (
            f"{said}; none if that is more probable than {self.threshold:.3g}: said of {self.none_right:.1%} where there is "
            f"none, of {self.none_wrong:.1%} where there is something"
        )


def questions_to_find(items: Iterable[CachedRecord]) -> Iterator[CachedRecord]:
    """Each question of records that asks to find regions, alone with its candidates and its answer."""
    for item in items:
        whole = each_shown(item.record)
        asked = [turn for turn in whole.conversations if turn.role == "user"]
        for place, turn in enumerate(asked):
            if asked_phrase(turn.content) is None:
                continue
            record, rows = cut_turns(whole, place, 1)
            if record.regions and record.conversations[-1].role == "assistant":
                yield replace(item, record=record, regions=None if item.regions is None else item.regions[rows])


@torch.no_grad()
def calibrate(
    bridge: RegionBridgeForConditionalGeneration,
    processor: RegionBridgeProcessor,
    questions: Iterable[CachedRecord | Record],
    images: str | Path = ".",
) -> Calibration | None:
    """Fit temperature and threshold, and set them in the bridge's config; None if there are no questions that can be read.

    questions: records of one question to find regions, with its answer, and their cached tokens; or records alone, whose
    pictures are opened from the folder `images`.
    """
    collator = ConversationCollator(processor, images=images)
    logs: list[Tensor] = []
    truths: list[int] = []
    unread: list[str] = []
    for item in tqdm(questions, desc="calibrating", unit="question"):
        record = item.record if isinstance(item, CachedRecord) else item
        *before, answer = record.conversations
        count = len(record.regions)
        numbers = meant_numbers(answer.content, count)
        if numbers is None:
            unread.append(answer.content)
            continue
        asked = replace(record, conversations=before)
        inputs = collator.prompts([replace(item, record=asked) if isinstance(item, CachedRecord) else asked])
        logs.append(likelihoods(bridge, processor, inputs.to(bridge.device), first_names(count)).cpu())
        truths.append(numbers[0] - 1 if numbers else count)
    if not logs:
        return None
    found = replace(fit(logs, truths), unread=tuple(unread))
    bridge.config.find_temperature, bridge.config.find_threshold = found.temperature, found.threshold
    return found


def fit(logs: list[Tensor], truths: list[int]) -> Calibration:
    """The calibration of questions; logs: (N + 1,) of each, of its N candidates and none; truths: which of these is true."""

    def loss(temperature: float) -> float:
        own = [-(log / temperature).log_softmax(dim=0)[truth] for log, truth in zip(logs, truths)]
        return float(torch.stack(own).mean())

    low, high = (float(np.log(edge)) for edge in TEMPERATURES)
    best = minimize_scalar(lambda power: loss(float(np.exp(power))), bounds=(low, high), method="bounded")
    temperature = round(float(np.exp(best.x)), 4)
    none = np.array([float((log / temperature).softmax(dim=0)[-1]) for log in logs])
    is_none = np.array([truth == len(log) - 1 for log, truth in zip(logs, truths)])
    threshold = None
    if is_none.any() and not is_none.all():
        threshold = round(_best_threshold(none, is_none), 6)
    said = none > (0.5 if threshold is None else threshold)
    right, wrong = (float(said[own].mean()) if own.any() else float("nan") for own in (is_none, ~is_none))
    return Calibration(temperature, threshold, len(logs), (loss(1.0), loss(temperature)), right, wrong)


def _best_threshold(none: np.ndarray, is_none: np.ndarray) -> float:
    """Where to cut probabilities of none (N,) so that most are on the right side, each kind of question counting one half.

    Of several places that are as good, the middle of the widest.
    """
    edges = np.unique(np.concatenate([[0.0], none, [1.0]]))
    middles, widths = (edges[:-1] + edges[1:]) / 2, np.diff(edges)
    scores = [((none > cut)[is_none].mean() + (none <= cut)[~is_none].mean()) / 2 for cut in middles]
    best = np.isclose(scores, max(scores))
    return float(middles[best][widths[best].argmax()])


def main(argv: list[str] | None = None) -> None:
    """Read the arguments, calibrate, write the config and the card."""
    arguments = parse_arguments(CalibrateArguments, argv, description=__doc__)
    folder, data = Path(arguments.model), Path(arguments.data)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no config.json: give the folder of a bridge.")
    with only_writer(folder):
        records = load_records(data)
        chosen = islice(records, arguments.limit)
        bridge = RegionBridgeForConditionalGeneration.from_pretrained(folder, dtype="auto").to(arguments.device)
        bridge = in_fast_dtype(bridge).eval()
        processor = RegionBridgeProcessor.from_pretrained(folder, device=arguments.device)
        items = (CachedRecord(record, None) for record in chosen)
        if arguments.cache is not None:
            cache = RegionCache(arguments.cache)
            cache.check(data, bridge.config.fingerprint, processor.context)
            items = (CachedRecord(r, cache.regions(i), cache.context(i)) for i, r in enumerate(chosen))
        asked = questions_to_find(items)
        root = data if data.is_dir() else data.parent
        before = bridge_card(bridge)
        alone = asked if arguments.cache is not None else (item.record for item in asked)
        found = calibrate(bridge, processor, alone, root)
        if found is None:
            raise ValueError(
                f"{data} has no question that asks to find regions, with an answer that names some or says none: give records "
                "of expressions."
            )
        print(found)
        _write(bridge, folder, before)


def _write(bridge: RegionBridgeForConditionalGeneration, folder: Path, card_before: str) -> None:
    """Write config and card, unless somebody has rewritten the card."""
    with TemporaryDirectory(dir=folder) as partial:
        bridge.config.save_pretrained(partial)
        shutil.move(Path(partial) / "config.json", folder / "config.json")
    card = folder / "README.md"
    if not card.is_file() or card.read_text(encoding="utf-8") == card_before:
        write_whole(card, bridge_card(bridge))
    else:
        print(f"{card} is not the card that was written with the bridge, and is left as it is")


if __name__ == "__main__":
    sys.exit(run_command(main))
