"""Open-vocabulary recognition: semantic embeddings × a bank of concept vectors → scores.

A bank may be the original's, the bundled one, or the user's own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .foreign_files import check_regular_file
from .output_files import save_tensors
from .text_encoder import TEMPLATE, TextEncoder, as_text_encoder, phrase_vectors
from .weight_files import damage_told


@dataclass(frozen=True, eq=False)
class ConceptBank:
    """N named concepts in the space of TAP's semantic embeddings.

    names: N distinct strings.
    weights (E, N): a unit vector per concept times the temperature exp(logit_scale), float32. The matrix includes the
    temperature, as it does in the files that the original publishes.
    """

    names: tuple[str, ...]
    weights: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "weights", self.weights.detach().to(torch.float32))
        if self.weights.ndim != 2 or self.weights.shape[1] != len(self.names):
            raise ValueError(
                f"Got {len(self.names)} concept names and weights of shape {tuple(self.weights.shape)}, expected "
                f"(embedding size, {len(self.names)}): one column per name."
            )
        if not self.names:
            raise ValueError("Got no concepts, expected at least one name.")
        if self.weights.is_meta:
            raise ValueError("The weights are on the meta device, where they have no values: load them first.")
        strangers = [name for name in self.names if not isinstance(name, str) or not name]
        if strangers or len(set(self.names)) < len(self.names):
            raise ValueError("Concept names must be distinct, non-empty strings: remove duplicates and blanks.")
        if not torch.isfinite(self.weights).all():
            raise ValueError("Concept weights hold NaN or infinite values: build the bank again.")

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        names = ", ".join(repr(name if len(name) <= 24 else name[:23] + "…") for name in self.names[:3])
        more = ", …" if len(self) > 3 else ""
        return f"ConceptBank({len(self)} concepts: {names}{more}; width={self.embed_size}, digest={self.digest!r})"

    @property
    def embed_size(self) -> int:
        """Width E of the vectors; the model's `semantic_embed_size` must equal it."""
        return self.weights.shape[0]

    @property
    def logit_scale(self) -> float:
        """The factor of the softmax: the length of the columns of `weights`."""
        return float(self.weights.norm(dim=0).mean())

    @property
    def digest(self) -> str:
        """SHA-256 of names and weights, 16 hex digits: identifies the concepts."""
        content = json.dumps(self.names).encode() + self.weights.contiguous().numpy().tobytes()
        return hashlib.sha256(content).hexdigest()[:16]

    def scores(self, semantic_embeds: Tensor) -> Tensor:
        """Probability of every concept: semantic embeddings (..., E) → (..., N), float32 (section 3.1 of the paper)."""
        if semantic_embeds.shape[-1] != self.embed_size:
            raise ValueError(
                f"Semantic embeddings have width {semantic_embeds.shape[-1]}, this concept bank {self.embed_size}: "
                "use a bank made for this model."
            )
        weights = self.weights.to(semantic_embeds.device)
        return (F.normalize(semantic_embeds.float(), dim=-1) @ weights).softmax(dim=-1)

    def top(self, semantic_embeds: Tensor, k: int = 5) -> list[list[tuple[str, float]]]:
        """The k most probable (name, score) pairs of each embedding (R, E), best first."""
        if not 1 <= k <= len(self):
            raise ValueError(f"top_k is {k}, expected 1 to {len(self)}, the number of concepts in the bank.")
        best = self.scores(semantic_embeds).topk(k, dim=-1)
        return [
            [(self.names[index], score) for index, score in zip(indices, scores)]
            for indices, scores in zip(best.indices.tolist(), best.values.tolist())
        ]

    @classmethod
    def from_vectors(cls, names: Sequence[str], vectors: Tensor, logit_scale: float = 100.0) -> ConceptBank:
        """A bank from one vector per name (N, E) of any length; `logit_scale` is the factor of the softmax, e.g. 100."""
        return cls(tuple(names), F.normalize(torch.as_tensor(vectors).float(), dim=-1).T.contiguous() * logit_scale)

    @classmethod
    def from_text_encoder(
        cls,
        names: Sequence[str],
        text_encoder: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        template: str = TEMPLATE,
        logit_scale: float | None = None,
        batch_size: int = 256,
    ) -> ConceptBank:
        """A bank from a CLIP-like text encoder of transformers.

        `text_encoder` has `get_text_features` (CLIPModel, SiglipModel …) or returns `text_embeds`
        (CLIPTextModelWithProjection …). TAP's weights were trained to match EVA02-CLIP-bigE-14-plus and need that
        encoder. A bank of any other encoder is of use only to a TAP that was trained to match that one.
        `logit_scale` defaults to the encoder's own exp(logit_scale).
        """
        if logit_scale is None:
            own = getattr(text_encoder, "logit_scale", None)
            if own is None:
                raise ValueError(
                    f"{type(text_encoder).__name__} has no logit_scale: give logit_scale=…, the factor of the softmax "
                    "(100 for most CLIP models)."
                )
            logit_scale = float(own.detach().exp())
        vectors = phrase_vectors(names, text_encoder, tokenizer, template=template, batch_size=batch_size)
        return cls.from_vectors(names, vectors, logit_scale)

    @classmethod
    def from_words(
        cls, names: Sequence[str], text_encoder: TextEncoder | str | Path, *, logit_scale: float = 100.0
    ) -> ConceptBank:
        """A bank of words, by a `TextEncoder` or the folder or Hub repository of one; vectors that were made once are kept.

        logit_scale: the factor of the softmax, 100 for most CLIP models.
        """
        if isinstance(names, str) or not len(names):
            raise ValueError(f"Got the names {names!r}, expected a list with at least one.")
        return cls.from_vectors(names, as_text_encoder(text_encoder).encode(names), logit_scale)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, completely or not at all."""
        save_tensors(path, {"weights": self.weights.contiguous()}, {"names": json.dumps(self.names)})

    @classmethod
    def load(cls, path: str | Path) -> ConceptBank:
        """Read what `save` wrote."""
        check_regular_file(path)
        with damage_told(path), safe_open(path, framework="pt") as file:
            names = (file.metadata() or {}).get("names")
            if names is None or "weights" not in file.keys():  # noqa: SIM118 - safe_open is no mapping
                raise ValueError(f"{path} is not a concept bank: expected the file that ConceptBank.save writes.")
            listed = json.loads(names)
            if not isinstance(listed, list):
                raise ValueError(f"{path} has names that are not a list: expected a file that ConceptBank.save wrote.")
            return cls(tuple(listed), file.get_tensor("weights"))


def check_bank(concepts: Any) -> None:
    """Refuse what is not a concept bank. Most often it is a list of names."""
    if not isinstance(concepts, ConceptBank):
        raise ValueError(
            f"concepts is a {type(concepts).__name__}, expected a ConceptBank: names need a text encoder. "
            "ConceptBank.from_text_encoder(names, text_encoder, tokenizer) makes a bank of them, "
            "ConceptBank.from_words(names, folder) does so with the folder or repository of one, "
            "ConceptBank.from_vectors(names, vectors) makes one of their vectors, ConceptBank.load(path) reads a saved one. "
            "A region tokenizer that was loaded with text_encoder=… takes lists of names in classify."
        )


def bank_of(concepts: Any, text_encoder: TextEncoder | None, own: ConceptBank | None) -> ConceptBank:
    """A bank of names, by the encoder, with the temperature of `own`, else 100; what is a bank stays as it is."""
    if isinstance(concepts, (list, tuple)) and concepts and text_encoder is not None:
        return ConceptBank.from_words(concepts, text_encoder, logit_scale=100.0 if own is None else own.logit_scale)
    check_bank(concepts)
    return concepts


def vectors_of(phrases: Sequence[str], text_encoder: TextEncoder | None, own: ConceptBank | None, width: int) -> Tensor:
    """Unit vectors (N, `width`) of phrases, by the encoder, or else of those that are names in the bank `own`."""
    if text_encoder is not None:
        vectors = text_encoder.encode(phrases)
        if vectors.shape[-1] != width:
            raise ValueError(
                f"The text encoder makes vectors of width {vectors.shape[-1]}, the model's semantic embeddings have {width}: "
                "give the encoder that its weights were trained to match."
            )
        return vectors
    names = {} if own is None else {name: i for i, name in enumerate(own.names)}
    if own is None or any(phrase not in names for phrase in phrases):
        unknown = next(phrase for phrase in phrases if phrase not in names)
        known = f" Its {len(names)} names lack {unknown!r}." if names else ""
        raise ValueError(
            f"Words need a text encoder, or a concept bank that has them as names.{known} Load the region tokenizer with "
            "text_encoder=…, the folder or Hub repository of the encoder that its weights were trained to match."
        )
    return F.normalize(own.weights.T[[names[phrase] for phrase in phrases]], dim=-1)
