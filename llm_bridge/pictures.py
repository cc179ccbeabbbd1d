"""Pictures as people give them → RGB bytes; and what was made of the latest ones, by their content."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from threading import RLock
from typing import Any

import numpy as np
from huggingface_hub import get_session
from torch import Tensor

from tap_tokenizer import ImageFeatures, TapRegionTokenizer, load_rgb, open_image

from .picture_context import PictureContext


def open_picture(image: Any) -> np.ndarray:
    """A picture as RGB bytes (H, W, 3); addresses and base64 text, which transformers' pipelines pass on, are fetched first."""
    if isinstance(image, str) and image.startswith("data:image/"):
        try:
            image = open_image(base64.b64decode(image.partition(",")[2], validate=True))
        except binascii.Error as error:
            raise ValueError(f"The picture in a data: address is not valid base64: {error}.") from None
    elif isinstance(image, str) and image.startswith(("http://", "https://")):
        answer = get_session().get(image, timeout=60, follow_redirects=True)
        answer.raise_for_status()
        image = open_image(answer.content)
    return load_rgb(image)


def content_key(picture: np.ndarray) -> str:
    """A name that equal pictures share, and that nobody can make two pictures share: users of a server share its cache."""
    return hashlib.sha256(picture.tobytes() + repr(picture.shape).encode()).hexdigest()


class PictureCache:
    """Features and contexts of the pictures seen last, by content, so that a second question costs no second look.

    size: how many pictures are kept; most_bytes: how many bytes of features and contexts, if that is limited, too.
    """

    def __init__(
        self, tokenizer: TapRegionTokenizer, context: PictureContext, size: int, most_bytes: int | None = None
    ) -> None:
        self.tokenizer, self.context, self.size, self.most_bytes = tokenizer, context, size, most_bytes
        self._features: OrderedDict[str, ImageFeatures] = OrderedDict()
        self._contexts: dict[str, Tensor] = {}
        self._lock = RLock()

    def features(self, pictures: Mapping[str, np.ndarray]) -> ImageFeatures:
        """Features of all pictures, in their order; only new ones are encoded. Threads may share the cache."""
        with self._lock:
            return self._features_of(pictures)

    def _features_of(self, pictures: Mapping[str, np.ndarray]) -> ImageFeatures:
        now = (self.tokenizer.fingerprint, self.tokenizer.model.encoder_precision)
        known = {k: f for k, f in self._features.items() if (f.fingerprint, f.encoder_precision) == now}
        new = [key for key in pictures if key not in known]
        if new:
            encoded = self.tokenizer.embed_image([pictures[key] for key in new])
            known |= {key: _alone(encoded[i]) for i, key in enumerate(new)}
        for key in new:
            self._contexts.pop(key, None)  # of features that were made by other weights, or in another precision
        for key in pictures:
            self._features[key] = known[key]
            self._features.move_to_end(key)
        self._make_room()
        return ImageFeatures.concatenate([known[key] for key in pictures])

    def _make_room(self) -> None:
        """Forget the pictures that were seen longest ago, until the others fit."""
        while len(self._features) > self.size or self._is_over_bytes():
            old, _ = self._features.popitem(last=False)
            self._contexts.pop(old, None)

    def _is_over_bytes(self) -> bool:
        if self.most_bytes is None or not self._features:
            return False
        kept = [*(features.embeddings for features in self._features.values()), *self._contexts.values()]
        return sum(tensor.nbytes for tensor in kept) > self.most_bytes

    def context_of(self, key: str, features: ImageFeatures) -> Tensor:
        """Context features (slots, F) of the picture with a key and `features`; computed once."""
        with self._lock:
            if key in self._contexts:
                return self._contexts[key]
            (context,) = self.context.encode(self.tokenizer, features)
            if key in self._features:
                self._contexts[key] = context
                self._make_room()
            return context

    def clear(self) -> None:
        """Forget all pictures."""
        self._features.clear()
        self._contexts.clear()


def _alone(features: ImageFeatures) -> ImageFeatures:
    """Features that share no memory with others: part of a batch would keep the whole batch in memory."""
    return replace(features, embeddings=features.embeddings.clone())
