"""Names of models → rows that answer, with their fingerprints; and of each row that cannot be had, why not.

Knows models; records and scores are not its business.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import torch

from llm_bridge import PictureContext, RegionBridgeForConditionalGeneration, RegionBridgeProcessor, RegionChat
from tap_tokenizer import ConceptBank, TapRegionTokenizer

from .benchmarks import QUESTION_TASKS, Benchmark
from .reading import EvaluationSet
from .rows import (
    CAPTIONS,
    CONCEPTS,
    CONTROLS,
    DESCRIBED,
    LANGUAGE,
    MASKS,
    ROWS,
    BridgeRow,
    CaptionRow,
    ConceptRow,
    DescribedRow,
    Row,
    plain_name,
)


@dataclass
class Cast:
    """Who takes part: the region tokenizer, the rows that answer in order, and why others do not."""

    tokenizer: TapRegionTokenizer
    rows: list[Row] = field(default_factory=list)
    not_run: dict[str, str] = field(default_factory=dict)
    fingerprints: dict[str, str | None] = field(default_factory=dict)
    context: PictureContext | None = None
    """What the language model's `<image>` shows, if it reads any."""


def load_cast(
    benchmark: Benchmark,
    found: EvaluationSet,
    *,
    model: str | None,
    region_tokenizer: str | None,
    variant: str | None,
    concepts: str | None,
    described_model: str | None,
    rows: list[str],
    max_new_tokens: int,
    batch_size: int,
    device: str,
) -> Cast:
    """Load what the rows that are wanted need. Raises `ValueError` for names of rows that do not exist."""
    if unknown := [name for name in rows if name not in (*ROWS, *CONTROLS)]:
        raise ValueError(f"rows has {', '.join(unknown)}, expected some of {', '.join((*ROWS, *CONTROLS))}.")
    tokenizer = bank = None
    if region_tokenizer is not None:
        tokenizer = TapRegionTokenizer.from_pretrained(
            region_tokenizer, variant=variant, concepts=concepts, device=device
        )
    elif concepts is not None:
        bank = ConceptBank.load(concepts)
    bridge = processor = None
    if model is not None and benchmark.task not in ("masks", "prompts"):
        bridge = RegionBridgeForConditionalGeneration.from_pretrained(model).to(device).eval()
        processor = RegionBridgeProcessor.from_pretrained(model, region_tokenizer=tokenizer, device=device)
        processor.attach(bridge)
        tokenizer = processor.region_tokenizer
    elif model is not None and tokenizer is None:
        tokenizer = RegionBridgeProcessor.from_pretrained(model, device=device).region_tokenizer
    if tokenizer is None:
        raise ValueError("No region tokenizer was saved with the model: give region_tokenizer=….")
    cast = Cast(tokenizer, fingerprints={"region tokenizer": tokenizer.fingerprint})
    if benchmark.task in ("masks", "prompts"):
        cast.not_run = dict.fromkeys(ROWS, f"it says words and draws no mask; the {MASKS} is the only row")
        return cast
    _own_words(cast, benchmark, found, bank or tokenizer.concepts, rows)
    _described(cast, described_model, rows, max_new_tokens, device)
    if bridge is not None and processor is not None:
        views = {LANGUAGE: "full", CONTROLS[0]: "question only", CONTROLS[1]: "shuffled"}
        for name, view in views.items():
            asks = benchmark.task in QUESTION_TASKS
            if name in rows and (name == LANGUAGE or asks):
                cast.rows.append(BridgeRow(bridge, processor, max_new_tokens, batch_size, view))  # type: ignore[arg-type]
        cast.context = processor.context if processor.context.slots else None
        cast.fingerprints[LANGUAGE] = fingerprint(bridge)
    elif LANGUAGE in rows:
        cast.not_run[LANGUAGE] = "give --model"
    return cast


def _own_words(
    cast: Cast, benchmark: Benchmark, found: EvaluationSet, bank: ConceptBank | None, rows: list[str]
) -> None:
    """The caption decoder's and the concept head's rows."""
    if CAPTIONS in rows:
        if cast.tokenizer.text_tokenizer is None:
            cast.not_run[CAPTIONS] = "the region tokenizer has no caption vocabulary"
        else:
            cast.rows.append(CaptionRow(cast.tokenizer))
    if CONCEPTS not in rows:
        return
    if bank is None:
        cast.not_run[CONCEPTS] = "the region tokenizer has no concept bank: give --concepts"
        return
    categories: dict[str, Any] = {}
    if benchmark.task == "detections" and found.reference is not None:
        categories = {plain_name(str(c["name"])): c["id"] for c in found.reference["categories"]}
        names = {plain_name(name) for name in bank.names}
        lacking = [name for name in categories if name not in names]
        if len(lacking) == len(categories):
            cast.not_run[CONCEPTS] = "the concept bank has none of the categories: give --concepts of this benchmark"
            return
        found.problems.extend(f"{CONCEPTS}: category that the concept bank lacks, never found", lacking)
    cast.rows.append(ConceptRow(bank, categories))
    cast.fingerprints["concepts"] = bank.digest


def _described(cast: Cast, described_model: str | None, rows: list[str], max_new_tokens: int, device: str) -> None:
    """The row of the instruct model that is told what TAP sees."""
    if DESCRIBED not in rows:
        return
    if described_model is None:
        cast.not_run[DESCRIBED] = "give any instruct model by --described_model"
        return
    chat = RegionChat.from_pretrained(described_model, mode="described", region_tokenizer=cast.tokenizer, device=device)
    cast.rows.append(DescribedRow(chat, max_new_tokens))
    cast.fingerprints[DESCRIBED] = fingerprint(chat.model)


def fingerprint(model: torch.nn.Module) -> str:
    """Which weights a model has: SHA-256, 16 hex digits, over names, shapes and 64 values of every tensor."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().flatten()
        values = flat[:: max(1, flat.numel() // 64)][:64].float().cpu()
        digest.update(f"{name}{tuple(tensor.shape)}".encode() + values.numpy().tobytes())
    return digest.hexdigest()[:16]
