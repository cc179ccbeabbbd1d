"""How near a word is to a category's name: semantic IoU in three published normalisations, and semantic similarity.

Numbers of different normalisations are not comparable, so each has its name. Knows words; the sentence encoder of semantic
similarity is whatever folder is given.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import AutoModel, AutoTokenizer

from tap_tokenizer import load_pretrained


def _osprey_prediction(text: str) -> str:
    parts = text.split(":")
    return re.sub("[.:,]", " ", parts[1] if len(parts) > 1 else text)


def _pixelrefer(text: str) -> str:
    return re.sub(r"[_:,.()]", " ", text).strip()


NORMALISATIONS: dict[str, tuple[Callable[[str], str], Callable[[str], str]]] = {
    "osprey": (_osprey_prediction, lambda name: re.sub("[_:]", " ", name)),
    "pixelrefer": (_pixelrefer, _pixelrefer),
    "wow-seg": (
        lambda text: re.sub("[_:]", " ", text),
        lambda name: re.sub("[_:]", " ", re.sub(r"_?\(.*?\)", "", name)),
    ),
}
"""What becomes of the prediction and of the category's name (with its underscores) before words are compared.

osprey: of a prediction with a colon, only what follows it; full stops and commas go; parentheses of names stay.
pixelrefer: all of _ : , . ( ) go on both sides. wow-seg: a name loses its parentheses with what is in them.
"""


def semantic_iou(prediction: str, category: str, normalisation: str = "osprey") -> float:
    """Shared words over all words of prediction and category, both lower-cased; 0 if neither has any.

    category: the data set's own spelling, such as `apple_(fruit)`.
    """
    if normalisation not in NORMALISATIONS:
        raise ValueError(f"normalisation is {normalisation!r}, expected one of {', '.join(NORMALISATIONS)}.")
    of_prediction, of_name = NORMALISATIONS[normalisation]
    said = set(of_prediction(prediction).lower().split())
    true = set(of_name(category).lower().split())
    return len(said & true) / len(said | true) if said | true else 0.0


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

    @torch.no_grad()
    def __call__(self, texts: Sequence[str], batch_size: int = 64) -> torch.Tensor:
        """Unit vectors (N, E) of N texts."""
        rows = []
        for start in tqdm(range(0, len(texts), batch_size), desc="sentences", disable=len(texts) <= batch_size):
            part = [text or " " for text in texts[start : start + batch_size]]
            inputs = self.tokenizer(part, padding=True, truncation=True, return_tensors="pt").to(self.model.device)
            states = self.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
            mask = inputs["attention_mask"].unsqueeze(-1).float()
            mean = (states.last_hidden_state.float() * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1e-9)
            rows.append(F.normalize(mean, dim=-1).cpu())
        return torch.cat(rows)


def semantic_similarity(predictions: Sequence[str], categories: Sequence[str], encoder: SentenceEncoder) -> list[float]:
    """Cosine between the sentence vectors of each prediction and its category's name, as both are spelled (Osprey)."""
    distinct = list(dict.fromkeys([*predictions, *categories]))
    vectors = dict(zip(distinct, encoder(distinct)))
    return [float(vectors[said] @ vectors[true]) for said, true in zip(predictions, categories)]
