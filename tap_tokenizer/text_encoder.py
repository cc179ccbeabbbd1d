"""`TextEncoder`: phrases → vectors in the space of TAP's semantic embeddings, by a CLIP-like text encoder of transformers.

Vectors are kept: in memory, and for encoders that come from files also in the user's cache, so that a vocabulary is encoded
once and an encoder of gigabytes is not even loaded the second time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import cached_assets_path
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import CONFIG_NAME, cached_file

from .foreign_files import HUB_OPTIONS, check_model_size, load_pretrained, misfits_told, read_json_object
from .output_files import made_once, save_tensors

TEMPLATE = "a {}"
"""The words around a phrase, by default."""


class TextEncoder:
    """A text encoder that loads when it is first needed, and remembers what it has encoded.

    >>> encoder = TextEncoder.from_pretrained("openai/clip-vit-large-patch14")
    >>> encoder.encode(["cat", "red umbrella"])

    TAP's weights were trained to match one encoder, and need it. The vectors of any other lie in another space, even if they
    are as wide. The authors' weights need EVA02-CLIP-bigE-14-plus, which is published for open_clip rather than transformers:
    `docs/official_weights.md` says how to make a `ConceptBank` of its vectors instead.
    """

    def __init__(
        self, model: PreTrainedModel | None, tokenizer: PreTrainedTokenizerBase | None, *, template: str = TEMPLATE
    ) -> None:
        self.template = _checked_template(template)
        self.source: str | None = None
        self._parts = model, tokenizer
        self._hub: dict[str, Any] = {}
        self._known: dict[str, Tensor] = {}

    def __repr__(self) -> str:
        name = self.source if self.source is not None else type(self._parts[0]).__name__
        return f"TextEncoder({name!r}, template={self.template!r})"

    @classmethod
    def from_pretrained(cls, source: str | Path, *, template: str | None = None, **hub: Any) -> TextEncoder:
        """An encoder in a folder or a Hub repository: a whole CLIP or SigLIP, or a text model with a projection. Of a whole
        CLIP, only the text encoder is loaded.

        Its configuration is read now, its weights when they are needed. template: what is said of a phrase; default: what it
        was saved with, else "a {}". hub: cache_dir, revision, token, local_files_only. No code in the files is run.
        """
        if unknown := sorted(set(hub) - set(HUB_OPTIONS)):
            raise ValueError(f"Got {', '.join(unknown)}, expected some of {', '.join(HUB_OPTIONS)}.")
        encoder = cls(None, None)
        encoder.source = str(source)
        encoder._hub = hub
        encoder._model_class()  # refused now rather than when the first phrase comes
        saved = read_json_object(encoder._folder() / CONFIG_NAME).get("phrase_template", TEMPLATE)
        encoder.template = _checked_template(saved if template is None else template)
        return encoder

    def encode(self, phrases: Sequence[str], *, batch_size: int = 256) -> Tensor:
        """Unit vectors (N, E) of phrases, float32, on the CPU.

        Raises `ValueError` for a phrase with a word that the encoder's vocabulary lacks.
        """
        if strangers := [phrase for phrase in phrases if not isinstance(phrase, str) or not phrase.strip()]:
            raise ValueError(f"Got the phrase {strangers[0]!r}, expected words.")
        fresh = [phrase for phrase in dict.fromkeys(phrases) if phrase not in self._known]
        if fresh:
            vectors = self._encode(fresh, batch_size) if self.source is None else self._kept(fresh, batch_size)
            self._known.update(zip(fresh, vectors))
        return torch.stack([self._known[phrase] for phrase in phrases])

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model, tokenizer and template to a folder that `from_pretrained` and `TapRegionTokenizer` read."""
        model, tokenizer = self._loaded()
        model.config.phrase_template = self.template
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    # --- what it is made of ---------------------------------------------------------------------------------------------

    def _encode(self, phrases: Sequence[str], batch_size: int) -> Tensor:
        model, tokenizer = self._loaded()
        return phrase_vectors(phrases, model, tokenizer, template=self.template, batch_size=batch_size)

    def _kept(self, phrases: Sequence[str], batch_size: int) -> Tensor:
        """What the user's cache has of these phrases, after it was filled if need be."""
        place = cached_assets_path("tap-bridge", "phrases", self._digest(phrases)) / "vectors"

        def fill(folder: Path) -> None:
            save_tensors(folder / "vectors.safetensors", {"vectors": self._encode(phrases, batch_size)}, {})

        return load_file(made_once(place, fill) / "vectors.safetensors")["vectors"]

    def _digest(self, phrases: Sequence[str]) -> str:
        """Identifies encoder, template and phrases; an encoder by its files, which are not read for it."""
        folder = self._folder()
        weights = sorted(folder.glob("*.safetensors"))
        if not weights:  # of a Hub repository, nothing but the configuration is here yet
            self._loaded()
            weights = sorted(folder.glob("*.safetensors"))
        files = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in weights]
        content = [files, (folder / CONFIG_NAME).read_text(), self.template, list(phrases)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]

    def _folder(self) -> Path:
        """Where its files lie: the folder that was named, or that of a download."""
        assert self.source is not None
        if Path(self.source).is_dir():
            return Path(self.source)
        found = cached_file(self.source, CONFIG_NAME, **self._hub)
        return Path(found).parent

    def _model_class(self) -> Any:
        """The class that the configuration names: one that makes vectors of texts."""
        config = read_json_object(self._folder() / CONFIG_NAME)
        names = config.get("architectures") or [None]
        kind = getattr(transformers, str(names[0]), None)
        if not hasattr(kind, "get_text_features") and not str(names[0]).endswith("TextModelWithProjection"):
            raise ValueError(
                f"{self.source} is a {names[0] or config.get('model_type')}, which makes no vectors of texts to compare "
                "pictures with: give a CLIP, a SigLIP, or a text model with a projection."
            )
        return kind

    def _loaded(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        model, tokenizer = self._parts
        if model is None or tokenizer is None:
            assert self.source is not None
            kind = self._model_class()
            with misfits_told(self.source):
                config = kind.config_class.from_pretrained(self.source, **self._hub)
            if kind.__name__ == "CLIPModel":
                kind, config = _text_half(), _text_config(config)
            check_model_size(self.source, lambda: kind(config))
            options = {"config": config, "use_safetensors": True, "dtype": torch.float32, **self._hub}
            model = load_pretrained(kind, self.source, **options).eval()
            tokenizer = load_pretrained(AutoTokenizer, self.source, **self._hub)
            self._parts = model, tokenizer
        return model, tokenizer


def _text_half() -> Any:
    """The class of a CLIP's text encoder, which passes over the other half's weights without a word."""

    class CLIPTextModelWithProjection(transformers.CLIPTextModelWithProjection):  # named as what it is saved as
        _keys_to_ignore_on_load_unexpected = [r"^vision_model\.", r"^visual_projection\.", r"^logit_scale$"]

    return CLIPTextModelWithProjection


def _text_config(config: Any) -> Any:
    """What a whole CLIP's configuration says of its text encoder, with the width of vectors that both halves share."""
    config.text_config.projection_dim = config.projection_dim
    return config.text_config


def _checked_template(template: Any) -> str:
    if not isinstance(template, str) or template.count("{}") != 1 or len(template) > 1000:
        raise ValueError(f"template is {template!r:.100}, expected words with one {{}}, where the phrase goes.")
    return template


def as_text_encoder(encoder: Any) -> TextEncoder:
    """A `TextEncoder`, which may be given as the folder or the Hub repository of one."""
    if isinstance(encoder, (str, Path)):
        return TextEncoder.from_pretrained(encoder)
    if not isinstance(encoder, TextEncoder):
        raise ValueError(
            f"text_encoder is a {type(encoder).__name__}, expected a TextEncoder, a folder or a Hub repository. "
            "TextEncoder(model, tokenizer) makes one from a model of transformers."
        )
    return encoder


@torch.no_grad()
def phrase_vectors(
    phrases: Sequence[str],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    template: str = TEMPLATE,
    batch_size: int = 256,
) -> Tensor:
    """Unit vectors (N, E), float32, of phrases in a template; the model has `get_text_features` or gives `text_embeds`."""
    kind = getattr(getattr(model, "config", None), "model_type", "")
    padding = "max_length" if kind.startswith("siglip") else True  # SigLIP reads the last position of its full length
    parts = []
    for start in tqdm(range(0, len(phrases), batch_size), desc="concepts", disable=len(phrases) <= batch_size):
        texts = [template.replace("{}", phrase) for phrase in phrases[start : start + batch_size]]
        _check_words(texts, tokenizer)
        inputs = tokenizer(texts, padding=padding, truncation=True, return_tensors="pt").to(model.device)
        parts.append(F.normalize(_text_features(model, inputs).float(), dim=-1).cpu())
    return torch.cat(parts)


def _check_words(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse texts with words that the vocabulary lacks; most vocabularies lack none, since they spell them."""
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown in (tokenizer.eos_token_id, tokenizer.pad_token_id):
        return
    for text in texts:
        for word in text.split():
            if unknown in tokenizer(word, add_special_tokens=False)["input_ids"]:
                known = [name for name in sorted(tokenizer.get_vocab()) if name.isalpha()]
                some = f" (it knows {', '.join(known)})" if len(known) <= 100 else ""
                raise ValueError(
                    f"The text encoder does not know the word {word!r} in {text!r}: choose other words{some}."
                )


def _text_features(model: PreTrainedModel, inputs: Any) -> Tensor:
    if hasattr(model, "get_text_features"):
        output = model.get_text_features(**inputs)
        return output if isinstance(output, Tensor) else output.pooler_output
    output = model(**inputs)
    if getattr(output, "text_embeds", None) is None:
        raise ValueError(
            f"{type(model).__name__} has no get_text_features and returns no text_embeds: use a CLIP-like text "
            "encoder with a projection, for example CLIPTextModelWithProjection."
        )
    return output.text_embeds
