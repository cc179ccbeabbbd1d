"""What a saved processor says about itself, and where its region tokenizer is: in its folder, or where it came from."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import snapshot_download
from transformers import AutoTokenizer, ProcessorMixin
from transformers.utils import cached_file

from tap_tokenizer import (
    TapRegionTokenizer,
    check_chat_template,
    check_findable,
    load_pretrained,
    misfits_told,
    read_json_object,
)

from .configuration_bridge import HUB_OPTIONS, bundled_or_given
from .uploading import push_folder

CONFIG_FILE = "processor_config.json"
REGION_TOKENIZER_FOLDER = "region_tokenizer"
"""Where a region tokenizer lies that is saved with its processor."""
_KEYS = {"source", "variant", "concepts", "text_tokenizer", "text_encoder", "revision", "fingerprint"}
"""What a reference says: arguments that load the region tokenizer, and its fingerprint."""
Made = TypeVar("Made", bound="SavedProcessor")


class SavedProcessor(ProcessorMixin):
    """A processor that is saved with its text tokenizer, and with its region tokenizer whole or by reference."""

    region_tokenizer: TapRegionTokenizer | None

    @classmethod
    def get_attributes(cls) -> list[str]:
        """Only the text tokenizer is a sub-processor of transformers. We save the region tokenizer ourselves."""
        return ["tokenizer"]

    @property
    def required_tokenizer(self) -> TapRegionTokenizer:
        """The region tokenizer. Raises `ValueError` if there is none."""
        if self.region_tokenizer is None:
            raise ValueError(
                "This processor has no region tokenizer: load it with region_tokenizer=…, a TapRegionTokenizer."
            )
        return self.region_tokenizer

    def _saved_options(self) -> dict[str, Any]:
        """Arguments that a loaded processor is made with, beside its two tokenizers."""
        return {}

    def to_dict(self) -> dict[str, Any]:
        return {
            "processor_class": type(self).__name__,
            **self._saved_options(),
            "region_tokenizer": _reference_to(self.region_tokenizer),
        }

    def save_pretrained(self, save_directory: str | Path, *, whole: bool | None = None, **kwargs: Any) -> list[str]:
        """Save the processor and its text tokenizer, and the region tokenizer whole or by reference to where it came from.

        whole: by default True only for a region tokenizer that was put together by hand, to which there is no reference.
        """
        folder = Path(save_directory)
        if whole is None:
            whole = self.region_tokenizer is not None and not self.region_tokenizer.source
        if not whole and self.region_tokenizer is not None and not self.region_tokenizer.source:
            raise ValueError(
                "This region tokenizer was not loaded from anywhere, so it has no reference: save whole=True."
            )
        files = super().save_pretrained(str(folder), **kwargs)
        if whole:
            self.required_tokenizer.save_pretrained(folder / REGION_TOKENIZER_FOLDER)
        return files

    def push_to_hub(self, repo_id: str, *, whole: bool | None = None, **options: Any) -> str:
        """Upload what `save_pretrained` writes. Returns the address of the commit. options: as in transformers."""
        return push_folder(lambda folder: self.save_pretrained(folder, whole=whole), repo_id, **options)

    @classmethod
    def from_pretrained(
        cls: type[Made],
        pretrained_model_name_or_path: str | Path,
        *,
        region_tokenizer: TapRegionTokenizer | str | None = None,
        device: torch.device | str | None = None,
        **kwargs: Any,
    ) -> Made:
        """Load a processor with its text tokenizer and its region tokenizer.

        region_tokenizer: use this one (or load it from there) instead of the one that was saved. device: where it runs.
        """
        hub: dict[str, Any] = {key: kwargs[key] for key in HUB_OPTIONS if key in kwargs}
        check_findable(pretrained_model_name_or_path, hub)
        source = bundled_or_given(pretrained_model_name_or_path)
        path, options, reference = _read_config(cls, source, hub)
        if isinstance(region_tokenizer, str):
            region_tokenizer = TapRegionTokenizer.from_pretrained(region_tokenizer, device=device)
        elif region_tokenizer is None and reference is not None:
            region_tokenizer = _load_region_tokenizer(source, reference, hub, device)
        trusted = kwargs.get("trust_remote_code", False)
        tokenizer = load_pretrained(AutoTokenizer, source, trust_remote_code=trusted, **hub)
        with misfits_told(path):
            return cls(tokenizer, region_tokenizer, **options)


def _reference_to(tokenizer: TapRegionTokenizer | None) -> dict[str, str] | None:
    """Where a region tokenizer came from, and its fingerprint; None for none."""
    return None if tokenizer is None else {**tokenizer.source, "fingerprint": tokenizer.fingerprint}


def _read_config(made_by: type, source: str, hub: dict[str, Any]) -> tuple[str, dict[str, Any], Any]:
    """A processor's file: its path, the arguments of the class `made_by`, and the reference to its region tokenizer.

    source: a folder or a repository, which is asked with the options `hub`. Raises `ValueError` for what another class has
    saved, for arguments that the class does not take, and for a chat template that does too much.
    """
    path = cached_file(source, CONFIG_FILE, **hub)
    options = read_json_object(path)
    saved_by = options.pop("processor_class", made_by.__name__)
    if saved_by != made_by.__name__:
        raise ValueError(f"{source} was saved by {saved_by}: load it with that class.")
    reference = options.pop("region_tokenizer", None)
    if unknown := sorted(set(options) - set(inspect.signature(made_by).parameters)):
        raise ValueError(
            f"{path} has {', '.join(unknown)[:200]}, which {made_by.__name__} does not know: copy or download it again."
        )
    if isinstance(options.get("chat_template"), str):
        check_chat_template(options["chat_template"], str(path))
    return path, options, reference


def _load_region_tokenizer(
    name: str, reference: dict[str, str], hub: dict[str, Any], device: torch.device | str | None
) -> TapRegionTokenizer:
    """The region tokenizer that lies in the processor's folder `name`, or else the one that is referred to.

    Raises `ValueError` for a reference that is none, and for a region tokenizer with another fingerprint.
    """
    if not isinstance(reference, dict) or "fingerprint" not in reference or not _KEYS.issuperset(reference):
        raise ValueError(
            f"{name} has a {CONFIG_FILE} that does not refer to a region tokenizer: got {reference!r:.80}, expected "
            f"{', '.join(sorted(_KEYS))}. Copy it again, or give region_tokenizer=…."
        )
    whole = Path(name)
    if not whole.is_dir():
        whole = Path(snapshot_download(name, allow_patterns=[f"{REGION_TOKENIZER_FOLDER}/*"], **hub))
    folder = whole / REGION_TOKENIZER_FOLDER
    arguments: dict[str, Any] = {key: value for key, value in reference.items() if key != "fingerprint"}
    if folder.is_dir():
        arguments = {"source": str(folder)}
    tokenizer = TapRegionTokenizer.from_pretrained(**arguments, device=device)
    if tokenizer.fingerprint != reference["fingerprint"]:
        raise ValueError(
            f"{name} was saved with the region tokenizer {reference['fingerprint']}, but {arguments['source']} now holds "
            f"{tokenizer.fingerprint}: give region_tokenizer=…."
        )
    return tokenizer
