"""Captions of boxes (Visual Genome, RefCOCOg): BLEU, METEOR, ROUGE-L and CIDEr-D against one reference each.

There are two protocols, which are never mixed. "ptb" is what papers report: Stanford's PTB tokenizer and METEOR, both in Java,
and pycocoevalcap's scorers. "plain" has `plain_tokens` and the same formulas, implemented here, without METEOR; for equal
tokens, its numbers equal pycocoevalcap's. What pycocoevalcap calls CIDEr is CIDEr-D: n-grams of 1 to 4 words, clipped counts
and a Gaussian penalty on length (σ = 6), times 10. Its idf comes from the references at hand, so the score of a subset says
nothing about the whole.
"""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Literal, TypeAlias

from ..data.source import CAPTION_QUESTION
from ..records import Region
from .items import EvaluationSet, Item
from .predictions import Line, match_answers
from .task import Published, Task, TaskOptions

Tokens: TypeAlias = list[str]
Scorer: TypeAlias = Literal["ptb", "plain"]

PROTOCOLS: dict[str, str] = {
    "ptb": "PTB tokenizer (Stanford CoreNLP 3.4.1), pycocoevalcap BLEU, METEOR 1.5, ROUGE-L, CIDEr-D",
    "plain": "plain tokens 1 (no PTB tokenizer), BLEU, ROUGE-L, CIDEr-D in Python, no METEOR",
}


@dataclass(kw_only=True)
class Captions(Task):
    """Captions in COCO's layout, or, as in MDETR and GLaMM, with each picture's entry."""

    rules: str = "boxes, one reference for each, greedy, corpus scores"
    question: str = CAPTION_QUESTION
    scorer: Scorer = field(init=False, default="plain")

    kind = "captions"
    coco = frozenset({"captions"})
    columns = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr")
    is_percent = True
    may_be_partial = True

    def configure(self, options: TaskOptions) -> None:
        super().configure(options)
        self.scorer = choose_scorer(options.caption_scorer)

    def references(self, region: Region) -> list[Any]:
        captions: Any = region.captions
        if not captions:
            return super().references(region)
        return list(captions) if isinstance(captions, list) else [captions]

    def score(self, row: str, lines: Sequence[Line], items: Sequence[Item], found: EvaluationSet) -> dict[str, Any]:
        said = match_answers(lines, items, row, found.problems)
        predictions = {item.id: said[item.id]["answer"] for item in items}
        return dict(caption_scores(predictions, {item.id: item.references for item in items}, self.scorer))

    @property
    def protocol(self) -> tuple[str, str]:
        return f"{self.name} ({self.scorer})", f"{self.rules}; {PROTOCOLS[self.scorer]}"

    def notes(self) -> list[str]:
        missing = missing_for_ptb() if self.scorer == "plain" else None
        compare = "these numbers are of the plain protocol, and do not compare with published ones"
        return [f"{missing}: {compare}"] if missing else []


def _published(system: str, meteor: float, cider: float, source: str, **more: float) -> Published:
    other = {name.replace("_", "-"): value for name, value in more.items()}
    return Published(system, {"METEOR": meteor, "CIDEr": cider, **other}, source)


_TAP = "notebooks of baaivision/tokenize-anything"
_SCA = "docs/MODEL_ZOO.md of xk-huang/segment-caption-anything"
_GLAMM = "docs of mbzuai-oryx/groundingLMM"
_CONTROLCAP = "table of callsys/ControlCap"
_OSPREY = "table 6 of CircleRadon/Osprey"

VG_FULL = Captions(
    name="vg_full", title="Visual Genome, full test set", whole=232935,
    published=(
        _published("GRiT", 0.171, 1.420, _OSPREY),
        _published("SCA (LLaMA-3B); raw Visual Genome text", 0.174, 1.498, _SCA),
        _published("TAP-L v1.0", 0.1750, 1.5070, _TAP, BLEU_4=0.1199, ROUGE_L=0.3566),
        _published("TAP-B v1.1", 0.1771, 1.5235, _TAP, BLEU_4=0.1223, ROUGE_L=0.3595),
        _published("TAP-L v1.1", 0.1787, 1.5471, _TAP, BLEU_4=0.1240, ROUGE_L=0.3624),
        _published("TAP-H v1.1", 0.1780, 1.5424, _TAP, BLEU_4=0.1238, ROUGE_L=0.3620),
    ),
)  # fmt: skip
VG_GLAMM = Captions(
    name="vg_glamm", title="Visual Genome, GLaMM's subset", whole=5000,
    published=(
        _published("GLaMM-7B, fine-tuned", 0.197, 1.805, _GLAMM + "; ControlCap's table has .186 / 1.578"),
        _published("Alpha-CLIP + LLaVA-7B", 0.189, 1.603, _CONTROLCAP),
        _published("ControlCap", 0.204, 1.819, _CONTROLCAP),
    ),
)  # fmt: skip
REFCOCOG = Captions(
    name="refcocog", title="RefCOCOg captions (GLaMM)",
    published=(
        _published("Kosmos-2", 0.141, 0.623, _OSPREY),
        _published("GRiT", 0.152, 0.716, _OSPREY),
        _published("GLaMM-7B, fine-tuned", 0.162, 1.060, _GLAMM + "; other tables have 1.050"),
        _published("Osprey-7B, fine-tuned", 0.166, 1.083, _OSPREY),
        _published("ControlCap", 0.170, 1.114, _CONTROLCAP),
    ),
)  # fmt: skip


_TOKEN = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


def plain_tokens(text: str) -> Tokens:
    """Lower-case words of letters and digits. Apostrophes inside words are kept; all other characters separate words."""
    return _TOKEN.findall(text.lower())


def missing_for_ptb() -> str | None:
    """Why the "ptb" protocol cannot run here, in one line; None if it can."""
    lacking = []
    if find_spec("pycocoevalcap") is None:
        lacking.append("pycocoevalcap (pip install 'tap-bridge[eval]')")
    if not _java_runs():
        lacking.append("Java (for instance apt-get install default-jre-headless)")
    return f"PTB tokens and METEOR need {' and '.join(lacking)}" if lacking else None


def choose_scorer(wanted: Literal["auto", "ptb", "plain"] = "auto") -> Scorer:
    """The protocol to score by. Raises `ValueError` if "ptb" is requested and cannot run."""
    missing = missing_for_ptb()
    if wanted == "ptb" and missing:
        raise ValueError(f"caption_scorer is ptb: {missing}. Install it, or use caption_scorer plain.")
    return "plain" if wanted == "plain" or missing else "ptb"


def caption_scores(
    predictions: Mapping[str, str], references: Mapping[str, Sequence[str]], scorer: Scorer = "ptb"
) -> dict[str, float]:
    """Corpus scores of one caption per id against its references: BLEU-1 … BLEU-4, METEOR, ROUGE-L, CIDEr; shares, not ×100.

    Raises `ValueError` if the ids differ, or if there are none; an empty caption counts and matches nothing.
    """
    if not references or set(predictions) != set(references):
        raise ValueError(
            f"Got captions of {len(predictions)} ids and references of {len(references)}: give one caption for each id."
        )
    if scorer == "plain":
        return plain_scores(
            {key: plain_tokens(text) for key, text in predictions.items()},
            {key: [plain_tokens(text) for text in texts] for key, texts in references.items()},
        )
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    order = list(references)  # a caption on a line: an empty one still has its line
    tokenizer = PTBTokenizer()
    true = tokenizer.tokenize({key: [{"caption": _line(text)} for text in references[key]] for key in order})
    said = tokenizer.tokenize({key: [{"caption": _line(predictions[key])}] for key in order})
    return {**reference_scores(said, true), "METEOR": meteor(said, true)}


def reference_scores(said: Mapping[str, Sequence[str]], true: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """pycocoevalcap's BLEU, ROUGE-L and CIDEr of tokenized captions: words separated by single spaces."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    bleu, _ = Bleu(4).compute_score(true, said, verbose=0)
    scores = {f"BLEU-{n}": float(value) for n, value in enumerate(bleu, 1)}
    scores["ROUGE-L"] = float(Rouge().compute_score(true, said)[0])
    scores["CIDEr"] = float(Cider().compute_score(true, said)[0])
    return scores


def meteor(said: Mapping[str, Sequence[str]], true: Mapping[str, Sequence[str]]) -> float:
    """METEOR 1.5 of tokenized captions; needs Java."""
    from pycocoevalcap.meteor.meteor import Meteor

    return float(Meteor().compute_score(true, said)[0])


def plain_scores(said: Mapping[str, Tokens], true: Mapping[str, Sequence[Tokens]]) -> dict[str, float]:
    """BLEU, ROUGE-L and CIDEr-D of tokens, without any library."""
    keys = list(true)
    scores = {f"BLEU-{n}": value for n, value in enumerate(_bleu([(said[k], true[k]) for k in keys]), 1)}
    scores["ROUGE-L"] = sum(_rouge(said[k], true[k]) for k in keys) / len(keys)
    scores["CIDEr"] = _cider([(said[k], true[k]) for k in keys])
    return scores


def _line(text: str) -> str:
    """A caption on one line. An empty one becomes a character that the tokenizer drops, because it skips empty last lines."""
    return " ".join(text.split()) or "."


def _java_runs() -> bool:
    if shutil.which("java") is None:
        return False
    return subprocess.run(["java", "-version"], capture_output=True, check=False).returncode == 0


def _grams(tokens: Tokens, longest: int = 4) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[i : i + n]) for n in range(1, longest + 1) for i in range(len(tokens) - n + 1))


def _bleu(pairs: Sequence[tuple[Tokens, Sequence[Tokens]]]) -> list[float]:
    """Corpus BLEU-1 … 4: clipped counts over all captions, brevity against the reference of the closest length."""
    correct, guessed = [0] * 4, [0] * 4
    length = target = 0
    for tokens, references in pairs:
        most: Counter[tuple[str, ...]] = Counter()
        for reference in references:
            most |= _grams(reference)
        for gram, count in _grams(tokens).items():
            correct[len(gram) - 1] += min(count, most[gram])
        for n in range(4):
            guessed[n] += max(0, len(tokens) - n)
        length += len(tokens)
        target += min((abs(len(r) - len(tokens)), len(r)) for r in references)[1]
    product, scores = 1.0, []
    for n in range(4):
        product *= (correct[n] + 1e-15) / (guessed[n] + 1e-9)  # pycocoevalcap's guards against nothing at all
        scores.append(product ** (1 / (n + 1)))
    ratio = (length + 1e-15) / (target + 1e-9)
    return [score * math.exp(1 - 1 / ratio) for score in scores] if ratio < 1 else scores


def _rouge(tokens: Tokens, references: Sequence[Tokens], beta: float = 1.2) -> float:
    """ROUGE-L: best precision and best recall of the longest common subsequence, over all references."""
    said, common = tokens or [""], []
    for reference in references:
        words = reference or [""]  # pycocoevalcap counts an empty text as one empty word
        found = _common_subsequence(said, words)
        common.append((found / len(said), found / len(words)))
    precision, recall = max(p for p, _ in common), max(r for _, r in common)
    if not precision or not recall:
        return 0.0
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


def _common_subsequence(a: Tokens, b: Tokens) -> int:
    row = [0] * (len(b) + 1)
    for word in a:
        diagonal = 0
        for j, other in enumerate(b, 1):
            diagonal, row[j] = row[j], diagonal + 1 if word == other else max(row[j], row[j - 1])
    return row[-1]


def _cider(pairs: Sequence[tuple[Tokens, Sequence[Tokens]]], sigma: float = 6.0) -> float:
    """CIDEr-D with the references' own document frequencies; a caption's length is counted in bigrams, as the original does."""
    seen: Counter[tuple[str, ...]] = Counter()
    for _, references in pairs:
        seen.update({gram for reference in references for gram in _grams(reference)})
    documents = math.log(len(pairs))

    def weigh(tokens: Tokens) -> tuple[dict[tuple[str, ...], float], list[float], int]:
        weights = {gram: count * (documents - math.log(max(1, seen[gram]))) for gram, count in _grams(tokens).items()}
        norms = [0.0] * 4
        for gram, weight in weights.items():
            norms[len(gram) - 1] += weight**2
        return weights, [math.sqrt(norm) for norm in norms], max(0, len(tokens) - 1)

    total = 0.0
    for tokens, references in pairs:
        weights, norms, length = weigh(tokens)
        own = 0.0
        for reference in references:
            true_weights, true_norms, true_length = weigh(reference)
            products = [0.0] * 4
            for gram, weight in weights.items():
                true = true_weights.get(gram, 0.0)
                products[len(gram) - 1] += min(weight, true) * true
            penalty = math.exp(-((length - true_length) ** 2) / (2 * sigma**2))
            similar = [p / (a * b) if a and b else p for p, a, b in zip(products, norms, true_norms)]
            own += penalty * sum(similar) / 4
        total += 10 * own / len(references)
    return total / len(pairs)
