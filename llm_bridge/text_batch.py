"""Texts with placeholders, and feature rows, of several samples → padded tensors; and ids on their way back to words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import BatchEncoding, PreTrainedTokenizerBase
from transformers.utils import to_py_obj

from .chat_template import Span


def give_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a tokenizer without a padding token pad with another of its special tokens, in place."""
    if tokenizer.pad_token is None:
        substitute = tokenizer.eos_token or tokenizer.bos_token or tokenizer.unk_token
        if substitute is None:
            raise ValueError("The text tokenizer has no padding, end, begin or unknown token: set tokenizer.pad_token.")
        tokenizer.pad_token = substitute


def without_tokens(ids: Any, unwanted: Sequence[int]) -> list[Any]:
    """Ids, or lists of them, without those that are unwanted."""
    dropped = set(unwanted)

    def kept(values: Any) -> list[Any]:
        nested = [one if isinstance(one, int) else kept(one) for one in values]
        return [one for one in nested if isinstance(one, list) or one not in dropped]

    plain = to_py_obj(ids)
    return kept([plain] if isinstance(plain, int) else plain)


def encode_texts(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    spans: Sequence[Sequence[Span]] | None = None,
    **options: Any,
) -> dict[str, Tensor]:
    """input_ids and attention_mask (B, L), padded on the left unless `options`, which go to the tokenizer, say otherwise.

    spans: characters of each text, which assistant_masks (B, L) then marks; a turn's end must be a token on which generation
    stops.
    """
    options = {"padding": True, "padding_side": "left", **options}
    encoded = tokenizer(
        list(texts),
        return_tensors="pt",
        return_offsets_mapping=spans is not None,
        return_token_type_ids=False,
        **options,
    )
    if not encoded["input_ids"].shape[1]:
        raise ValueError("The text is empty, and so is what the tokenizer makes of it: give at least a word.")
    offsets = encoded.pop("offset_mapping", None)
    batch: dict[str, Tensor] = dict(encoded)
    if spans is not None:
        batch["assistant_masks"] = _mask_spans(offsets, batch["attention_mask"], spans)
        _check_ends(tokenizer, encoded, spans)
    return batch


def _mask_spans(offsets: Tensor, attention_mask: Tensor, spans: Sequence[Sequence[Span]]) -> Tensor:
    """1 where a token overlaps one of its text's spans."""
    marked = torch.zeros_like(attention_mask)
    for i, own in enumerate(spans):
        for start, end, _ in own:
            marked[i] |= ((offsets[i, :, 0] < end) & (offsets[i, :, 1] > start)).long()
    return marked * attention_mask


def _check_ends(tokenizer: PreTrainedTokenizerBase, encoded: BatchEncoding, spans: Sequence[Sequence[Span]]) -> None:
    """Refuse to teach a turn whose end is not read as the token on which generation stops."""
    for i, own in enumerate(spans):
        for span in own:
            place = encoded.char_to_token(i, span.end - 1)
            if span.end_id is None or place is None:  # where the text was cut, there is no end to read
                continue
            end, read = tokenizer.convert_ids_to_tokens([span.end_id, int(encoded["input_ids"][i, place])])
            if end != read:
                raise ValueError(
                    f"The text tokenizer joins {end!r}, which ends the assistant's turn, with its neighbours and reads "
                    f"{read!r}, so a model could not learn to stop: make it a separate token with "
                    "tokenizer.add_special_tokens."
                )


def pad_rows(rows: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
    """Rows (S, F) of each sample, None for one without any but not for all → features (B, S, F), and a mask (B, S) of them."""
    some = next(own for own in rows if own is not None and len(own))
    longest = max(len(own) for own in rows if own is not None)
    features = some.new_zeros(len(rows), longest, some.shape[-1])
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for i, own in enumerate(rows):
        if own is not None:
            features[i, : len(own)] = own
            mask[i, : len(own)] = 1
    return features, mask
