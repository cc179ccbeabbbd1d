"""Labels of masks (LVIS, PACO): how near an answer is to a category's name, as three published scripts measure it.

There are two scores: the semantic IoU of words, and the cosine of sentence vectors (SS), by whatever sentence encoder is given.
Each script cleans words in its own way. Numbers with different cleaning do not compare, so they carry the script's name.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import AutoModel, AutoTokenizer
from transformers.utils import cached_file

from tap_tokenizer import load_pretrained

from ..data.json_files import read_json
from ..data.osprey import read_named_masks
from .items import EvaluationSet, Item, Place
from .predictions import Line, match_answers
from .task import Published, Task


def _osprey_prediction(text: str) -> str:
    parts = text.strip().split(":")
    return re.sub("[.:,]", " ", parts[1] if len(parts) > 1 else text)


def _pixelrefer(text: str) -> str:
    return re.sub(r"[_:,.()]", " ", text).strip().lower()


def _wow_seg(text: str) -> str:
    return re.sub("[_:]", " ", text)


NORMALISATIONS: dict[str, tuple[Callable[[str], str], Callable[[str], str]]] = {
    "osprey": (_osprey_prediction, lambda name: re.sub("[_:]", " ", name)),
    "pixelrefer": (_pixelrefer, _pixelrefer),
    "wow-seg": (_wow_seg, lambda name: _wow_seg(re.sub(r"_\(.*?\)", "", name))),
}
"""What each script makes of the prediction and of the category's name (with its underscores) before it compares their
words or their sentence vectors.

osprey (lvis_paco_eval.py): of a prediction with a colon, only what follows it; its . : , and the name's _ : become blanks;
parentheses of names stay. pixelrefer (eval_paco_lvis.py): _ : , . ( ) become blanks on both sides, all in lower case.
wow-seg (semantic_eval.py): _ : become blanks on both sides, and a name loses its parentheses with what is in them.
"""


@dataclass(kw_only=True)
class Labels(Task):
    """Labels in Osprey's layout: a list of {file_name, height, width, categories, annotations}, or in COCO's."""

    version: int = 2
    rules: str = (
        "semantic IoU of words, and cosine of sentence vectors (SS), cleaned as each named script does; instances and mean "
        "of classes"
    )
    max_new_tokens: int = 20

    kind = "labels"
    columns = (
        *(f"SS ({name})" for name in NORMALISATIONS),
        *(f"S-IoU ({name})" for name in NORMALISATIONS),
        "S-IoU (osprey), mean of classes",
    )
    takes = frozenset({"sentence_encoder"})
    is_percent = True

    def read_file(self, path: Path, found: EvaluationSet, limit: int | None) -> None:
        content = read_json(path)
        if isinstance(content, dict):
            found.take_coco(content, self.title, limit)
            return
        content = [entry if isinstance(entry, dict) else {} for entry in content]
        found.places = [
            Place(f"{number}/{i}", {"Answer": name, "image": entry.get("file_name")})
            for number, entry in enumerate(content)
            for i, name in enumerate(entry.get("categories") or [])
        ]
        found.records = list(islice(read_named_masks(content, self.title, found.problems), limit))

    @cached_property
    def encoder(self) -> SentenceEncoder | None:
        """The sentence encoder that was chosen, once there are answers."""
        source = self.options.sentence_encoder
        return None if source is None else SentenceEncoder(source, self.device)

    def score(self, row: str, lines: Sequence[Line], items: Sequence[Item], found: EvaluationSet) -> dict[str, Any]:
        by_id = match_answers(lines, items, row, found.problems)
        said, true = [by_id[item.id]["answer"] for item in items], [item.references[0] for item in items]
        values = {f"S-IoU ({n})": [semantic_iou(a, b, n) for a, b in zip(said, true)] for n in NORMALISATIONS}
        if self.encoder is not None:
            values |= {f"SS ({n})": semantic_similarity(said, true, self.encoder, n) for n in NORMALISATIONS}
        scores: dict[str, float] = {}
        for name, each in values.items():
            scores[name] = float(np.mean(each))
            scores[f"{name}, mean of classes"] = mean_by_class(each, true)
        return scores

    def notes(self) -> list[str]:
        missing = self.options.sentence_encoder is None
        return ["semantic similarity was not measured: give --sentence_encoder"] if missing else []


def _published(system: str, similarity: float, iou: float) -> Published:
    return Published(system, {"SS (osprey)": similarity, "S-IoU (osprey)": iou}, "table 2 of CircleRadon/Osprey")


LVIS_LABELS = Labels(
    name="lvis_labels", title="LVIS region recognition", whole=4004,
    published=(
        _published("LLaVA-1.5 on the crop", 0.4895, 0.1981),
        _published("Kosmos-2", 0.3895, 0.0867),
        _published("GPT4RoI-7B", 0.5132, 0.1199),
        _published("Ferret-7B", 0.6378, 0.3657),
        _published("Osprey-7B", 0.6524, 0.3819),
    ),
)  # fmt: skip
PACO_LABELS = Labels(
    name="paco_labels", title="PACO region recognition", whole=4263,
    published=(
        _published("LLaVA-1.5 on the crop", 0.4220, 0.1456),
        _published("Kosmos-2", 0.3209, 0.0479),
        _published("GPT4RoI-7B", 0.4804, 0.1208),
        _published("Ferret-7B", 0.5868, 0.2596),
        _published("Osprey-7B", 0.7306, 0.5272),
    ),
)  # fmt: skip


def semantic_iou(prediction: str, category: str, normalisation: str = "osprey") -> float:
    """Shared words over all words of prediction and category, both lower-cased; 0 if neither has any.

    category: the data set's own spelling, such as `apple_(fruit)`.
    """
    of_prediction, of_name = _normalisation(normalisation)
    said = set(of_prediction(prediction).lower().split())
    true = set(of_name(category).lower().split())
    return len(said & true) / len(said | true) if said | true else 0.0


def _normalisation(name: str) -> tuple[Callable[[str], str], Callable[[str], str]]:
    if name not in NORMALISATIONS:
        raise ValueError(f"normalisation is {name!r}, expected one of {', '.join(NORMALISATIONS)}.")
    return NORMALISATIONS[name]


def mean_by_class(values: Sequence[float], categories: Sequence[str]) -> float:
    """Mean over categories of the mean within each."""
    groups: dict[str, list[float]] = defaultdict(list)
    for value, category in zip(values, categories):
        groups[category].append(value)
    return sum(sum(group) / len(group) for group in groups.values()) / len(groups)


class SentenceEncoder:
    """Sentences → unit vectors: the mean over a transformer's last states, as sentence-transformers' MiniLM models do.

    source: folder or Hub name of the encoder; Osprey's protocol takes sentence-transformers/all-MiniLM-L6-v2.
    """

    def __init__(self, source: str, device: str = "cpu") -> None:
        self.source = source
        self.tokenizer = load_pretrained(AutoTokenizer, source)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token or self.tokenizer.unk_token
        self.model = load_pretrained(AutoModel, source).to(device).eval()
        note = cached_file(source, "sentence_bert_config.json", _raise_exceptions_for_missing_entries=False)
        longest = None if note is None else read_json(note).get("max_seq_length")
        self.longest: int | None = longest  # tokens of a sentence; sentence-transformers cuts there, too

    @torch.no_grad()
    def __call__(self, texts: Sequence[str], batch_size: int = 64) -> torch.Tensor:
        """Unit vectors (N, E) of N texts."""
        rows = []
        for start in tqdm(range(0, len(texts), batch_size), desc="sentences", disable=len(texts) <= batch_size):
            part = [text or " " for text in texts[start : start + batch_size]]
            inputs = self.tokenizer(part, padding=True, truncation=True, max_length=self.longest, return_tensors="pt")
            inputs = inputs.to(self.model.device)
            states = self.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
            mask = inputs["attention_mask"].unsqueeze(-1).float()
            mean = (states.last_hidden_state.float() * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1e-9)
            rows.append(F.normalize(mean, dim=-1).cpu())
        return torch.cat(rows)


def semantic_similarity(
    predictions: Sequence[str],
    categories: Sequence[str],
    encoder: Callable[[Sequence[str]], torch.Tensor],
    normalisation: str = "osprey",
) -> list[float]:
    """Cosine between the sentence vectors of each prediction and its category's name, cleaned as a script does.

    encoder: N texts → unit vectors (N, E), such as a `SentenceEncoder`.
    """
    of_prediction, of_name = _normalisation(normalisation)
    said, true = [of_prediction(text) for text in predictions], [of_name(name) for name in categories]
    distinct = list(dict.fromkeys([*said, *true]))
    vectors = dict(zip(distinct, encoder(distinct)))
    return [float(vectors[a] @ vectors[b]) for a, b in zip(said, true)]
