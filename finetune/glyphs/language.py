"""GlyphScenes in words: captions, concept vectors and the vocabulary of captions.

Everything here follows from the list of a scene's objects, and nothing from its picture. Questions are in `questions`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from functools import lru_cache

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, PreTrainedTokenizerFast

from tap_tokenizer import ConceptBank, RegionTokens, TextEncoder

from .scenes import COLOURS, KINDS, SIZES, GlyphObject

ATTRIBUTES: dict[str, Collection[str]] = {"kind": KINDS, "colour": COLOURS, "size": SIZES}
"""What a caption says of an object, and the words for it."""

CONCEPT_SIZE = 128
"""Width of the concept vectors, hence of the semantic embeddings of a TAP trained on GlyphScenes."""

# How much of a description's vector is its kind, its colour and its size; the squares add up to one.
_SHARES = {"kind": 0.7, "colour": 0.55, "size": 0.455}
CONCEPT_LOGIT_SCALE = 20.0


def caption(glyph: GlyphObject) -> str:
    """The one true caption, e.g. "a small red umbrella"."""
    return f"a {glyph.size} {glyph.colour} {glyph.kind}"


@lru_cache(maxsize=1)
def _word_vectors() -> dict[str, np.ndarray]:
    """A unit vector for each kind, colour and size, all orthogonal: rows of a Hadamard matrix."""
    matrix = np.ones((1, 1), dtype=np.float32)
    while len(matrix) < CONCEPT_SIZE:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    rows = matrix / np.sqrt(np.float32(CONCEPT_SIZE))
    return dict(zip([*KINDS, *COLOURS, *SIZES], rows))


def concept_vector(phrase: str) -> np.ndarray:
    """Unit vector (CONCEPT_SIZE,) of a phrase of kind, colour and size words: this world's text encoder.

    The words "a" and "the" count for nothing, so "umbrella", "a red umbrella" and "small" are all phrases. Plays the
    part that CLIP's text encoder plays for the original: what a picture shows and what a phrase says share one space.
    """
    total = np.zeros(CONCEPT_SIZE, dtype=np.float32)
    for word in phrase.split():
        if word in ("a", "the"):
            continue
        share = next((_SHARES[k] for k, names in ATTRIBUTES.items() if word in names), None)
        if share is None:
            raise ValueError(f"Got {word!r} in {phrase!r}, expected kinds, colours and sizes of GlyphScenes.")
        total += share * _word_vectors()[word]
    length = float(np.linalg.norm(total))
    if not length:
        raise ValueError(f"Got {phrase!r}, expected at least one kind, colour or size of GlyphScenes.")
    return total / np.float32(length)


def concept_bank(names: Sequence[str]) -> ConceptBank:
    """A bank of phrases of this world, for `TapRegionTokenizer.classify` or training."""
    vectors = torch.from_numpy(np.stack([concept_vector(name) for name in names]))
    return ConceptBank.from_vectors(names, vectors, CONCEPT_LOGIT_SCALE)


def concept_banks() -> list[ConceptBank]:
    """The banks of kinds, of colours and of sizes."""
    return [concept_bank(list(names)) for names in ATTRIBUTES.values()]


def phrase_cosines(regions: RegionTokens, phrase: str) -> torch.Tensor:
    """How alike each region's semantic embedding and a phrase are, (R,): what TAP's concept head alone can find by words.

    Words that are no kinds, colours or sizes are passed over: such a vector has no place for them. Raises `ValueError` if none
    is left.
    """
    known = [
        word for word in re.findall(r"[\w-]+", phrase.lower()) if any(word in names for names in ATTRIBUTES.values())
    ]
    vector = torch.from_numpy(concept_vector(" ".join(known) or phrase)).to(regions.embeds.device)
    return torch.nn.functional.normalize(regions.embeds.float(), dim=-1) @ vector


def build_text_tokenizer() -> PreTrainedTokenizerFast:
    """The caption vocabulary: one id per word, laid out as LLaMA's (unknown 0, bos 1, eos 2, padding last)."""
    words = ["<unk>", "<s>", "</s>", "a", *SIZES, *COLOURS, *KINDS, "<pad>"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def build_text_encoder() -> TextEncoder:
    """A CLIP text model that says of a phrase what `concept_vector` does, up to rounding.

    Its weights follow from the word vectors. A word's embedding is its vector and, beside it, the same with the other sign,
    so that layer norms only scale it. Attention is even over all words, and gives each kind of word its share; special words,
    "a" and "the" are zeros. The projection is the first half of what is then at the end.
    """
    listed = [
        "<pad>",
        "<s>",
        "<unk>",
        "</s>",
        "a",
        "the",
        *SIZES,
        *COLOURS,
        *KINDS,
    ]  # CLIP takes an end of id 2 for another
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(listed)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("<s>", listed.index("<s>")), ("</s>", listed.index("</s>"))]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    words = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=2 * CONCEPT_SIZE,
        intermediate_size=8,
        projection_dim=CONCEPT_SIZE,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=16,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    model = CLIPTextModelWithProjection(config).eval().requires_grad_(False)
    state = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    half = torch.eye(CONCEPT_SIZE)
    mirrored = torch.cat([half, -half])  # a vector → itself and its negative
    shares = torch.zeros(CONCEPT_SIZE, CONCEPT_SIZE)
    for kind, names in ATTRIBUTES.items():
        for name in names:
            vector = torch.from_numpy(_word_vectors()[name])
            shares += _SHARES[kind] * torch.outer(vector, vector)
            _part(state, "token_embedding.weight")[words.convert_tokens_to_ids(name)] = mirrored @ vector
    for norm in ("layer_norm1", "layer_norm2", "final_layer_norm"):
        _part(state, f"{norm}.weight").fill_(1.0)
    _part(state, "v_proj.weight").copy_(mirrored @ shares @ mirrored.T / 2)
    _part(state, "out_proj.weight").copy_(torch.eye(2 * CONCEPT_SIZE))
    _part(state, "text_projection.weight")[:, :CONCEPT_SIZE] = half
    model.load_state_dict(state)
    return TextEncoder(model, words)


def _part(state: dict[str, Tensor], name: str) -> Tensor:
    """The only tensor of a state whose name ends so."""
    (found,) = [value for full, value in state.items() if full.endswith(name)]
    return found
