"""Finds the files of a region tokenizer: bundled, in a folder, in an original checkpoint, or on the Hub."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from huggingface_hub import (
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    list_repo_files,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging

from .bundled import BUNDLED, absence_told, bundled_names, bundled_or_given
from .concept_projector import ConceptBank
from .configuration_tap import TapConfig
from .foreign_files import (
    check_folder,
    check_regular_file,
    load_pretrained,
    misfits_told,
    read_json_object,
    unpacked_gguf,
)
from .image_processing_tap import TapImageProcessor
from .modeling_tap import TapModel
from .processing_tap import TapProcessor
from .text_encoder import TextEncoder
from .weight_files import check_weights, damage_told, weight_shapes

logger = logging.get_logger(__name__)

CONCEPTS_FILE = "concepts.safetensors"
TEXT_TOKENIZER_FOLDER = "text_tokenizer"
TEXT_ENCODER_FOLDER = "text_encoder"

DEFAULT_CONCEPTS = "merged_2560"
"""The concept file of the original's repository that is loaded by default."""

DEFAULT_TEXT_TOKENIZER = "TinyLlama/TinyLlama-1.1B-Chat-v1.0"
"""An open Hub repository whose `tokenizer.model` is LLaMA-1's, the vocabulary of every published TAP."""

LLAMA_VOCABULARY_SIZE = 32000
LLAMA_TOKENIZER_MD5 = "eeec4125e9c7560836b4873b6f8e3025"

Hub = dict[str, Any]
"""Keyword arguments of every download: revision, cache_dir, token, local_files_only."""


# --- names of bundled models ------------------------------------------------------------------------------------------


def check_findable(source: str | Path, hub: Hub, *, may_lack_owner: bool = False) -> None:
    """Refuse a model at once if it is not bundled, not on this machine, and not on a Hub that can be reached.

    may_lack_owner: whether a repository's name may have no owner, like those of some old language models ("gpt2").
    Raises `ValueError` if `source` is not the name of a repository, and `OSError` as `check_hub` does.
    """
    name = bundled_or_given(source)
    if Path(name).exists():
        return
    bundled = ", ".join(bundled_names())
    is_repository = name.count("/") == 1 or (may_lack_owner and "/" not in name)
    if not is_repository or name.startswith((".", "~", "/")):
        raise ValueError(
            f"Found neither a folder nor a bundled model {source}: expected a bundled model ({bundled}), a folder, or a Hub "
            "repository as owner/name."
        )
    with absence_told(source):
        try:
            check_hub(name, "config.json", hub)
        except OSError as error:
            raise OSError(f"{error} The bundled models are {bundled}.") from None


def take_bundled_names(*classes: Any, checked: bool = False) -> None:
    """Let `from_pretrained` of these classes accept the names of bundled models instead of asking the Hub for them.

    checked: refuse unknown names at once; for classes that read no models but ours.
    """
    for one in classes:
        plain = one.from_pretrained.__func__

        def from_pretrained(
            cls: Any, pretrained_model_name_or_path: Any, *args: Any, _plain: Any = plain, **kwargs: Any
        ) -> Any:
            source = pretrained_model_name_or_path
            if isinstance(source, (str, Path)):
                if checked:
                    check_findable(source, kwargs)
                source = bundled_or_given(source)
                if (gguf := Path(source)).suffix == ".gguf" and gguf.is_file():
                    source = str(unpacked_gguf(gguf))
            return _plain(cls, source, *args, **kwargs)

        one.from_pretrained = classmethod(wraps(plain)(from_pretrained))


@dataclass(frozen=True)
class TokenizerFiles:
    """The files of one region tokenizer, from a folder that we saved or from a checkpoint of the original."""

    folder: Path | None = None
    checkpoint: Path | None = None
    concepts: ConceptBank | Path | None = None
    text_tokenizer: str | Path | None = None
    """The vocabulary to load if the user names none. A string is a Hub repository, which may be out of reach."""

    def load_model(self, dtype: torch.dtype, attn_implementation: str | None) -> tuple[TapModel, TapProcessor | None]:
        """The model, in evaluation mode, and its processor if one was saved with it."""
        if self.checkpoint is not None:
            from .checkpoint_conversion import load_original  # here, because it is a command as well

            model = load_original(self.checkpoint, dtype)
            if attn_implementation is not None:
                model.set_attn_implementation(attn_implementation)
            return model, None
        options = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
        assert self.folder is not None
        _check_is_tap(self.folder)
        check_folder(self.folder)
        with damage_told(self.folder), misfits_told(self.folder):
            with torch.device("meta"):
                expected = TapModel(TapConfig.from_pretrained(self.folder)).state_dict()
            check_weights(weight_shapes(self.folder.glob("model*.safetensors")), expected, self.folder, "a TAP")
            model = TapModel.from_pretrained(self.folder, dtype=dtype, use_safetensors=True, **options)
            processor = TapProcessor(
                TapImageProcessor.from_pretrained(self.folder)
            )  # no Auto class, which may ask for code
        return model, processor

    def load_concepts(self) -> ConceptBank | None:
        """The concept bank, if there is one."""
        if self.concepts is None or isinstance(self.concepts, ConceptBank):
            return self.concepts
        if not self.concepts.exists():
            raise ValueError(f"Found no concept file at {self.concepts}.")
        check_regular_file(self.concepts)
        from .checkpoint_conversion import load_original_concepts

        return load_original_concepts(self.concepts) if _is_pickle(self.concepts) else ConceptBank.load(self.concepts)

    def load_text_encoder(self, wanted: str | Path | TextEncoder | None, hub: Hub) -> TextEncoder | None:
        """The text encoder that the user named, or the one that was saved with the model, if there is one."""
        if isinstance(wanted, (str, Path)):
            options = {} if Path(wanted).is_dir() else {name: hub[name] for name in hub if name != "revision"}
            return TextEncoder.from_pretrained(wanted, **options)
        saved = None if self.folder is None else self.folder / TEXT_ENCODER_FOLDER
        if wanted is not None or saved is None or not saved.is_dir():
            return wanted
        return TextEncoder.from_pretrained(saved)


def locate(
    source: str | Path, *, variant: str | None, concepts: str | Path | ConceptBank | None, hub: Hub
) -> TokenizerFiles:
    """Find the files that `source` names, and download them if necessary; see `TapRegionTokenizer.from_pretrained`."""
    path = Path(source)
    if path.is_file():
        if not _is_pickle(path):
            raise ValueError(f"{source} is a file, expected one of the original's .pkl checkpoints, or a folder.")
        return TokenizerFiles(checkpoint=path, concepts=_local_concepts(concepts))
    for folder in (path, BUNDLED / str(source)):
        if (folder / "config.json").is_file():
            if variant is not None:
                raise ValueError(
                    f"{source} is a converted model, which has no variants: leave variant={variant!r} out."
                )
            return _saved_folder(folder, concepts)
    if path.is_dir():
        if variant is not None and (path / _checkpoint_name(variant)).is_file():  # a clone of the original's repository
            named = path / "concepts" / f"{concepts or DEFAULT_CONCEPTS}.pkl"
            bank = named if named.is_file() else _local_concepts(concepts)
            return TokenizerFiles(checkpoint=path / _checkpoint_name(variant), concepts=bank)
        raise ValueError(
            f"The folder {source} has no config.json: expected what save_pretrained or the conversion writes, or a clone of "
            "the original's repository together with variant=…."
        )
    if path.is_absolute() or str(source).count("/") != 1:
        bundled = ", ".join(sorted(folder.name for folder in BUNDLED.iterdir() if folder.is_dir()))
        raise ValueError(
            f"Found nothing at {source}: expected a bundled model ({bundled}), a folder, a .pkl checkpoint, or a Hub "
            "repository as owner/name."
        )
    return _on_the_hub(str(source), variant, concepts, hub)


def _on_the_hub(
    repository: str, variant: str | None, concepts: str | Path | ConceptBank | None, hub: Hub
) -> TokenizerFiles:
    if variant is None:
        try:
            _download(repository, "config.json", hub)
        except EntryNotFoundError:
            raise ValueError(
                f"{repository} has no config.json, so it is not a converted model. If it holds the original's checkpoints, "
                f"say which: variant=… ({', '.join(_variants(repository, hub)) or 'none found'})."
            ) from None
        options = {key: value for key, value in hub.items() if key != "revision"}
        folder = snapshot_download(
            repository, revision=hub.get("revision"), ignore_patterns=["*.pkl", "*.py"], **options
        )
        return _saved_folder(Path(folder), concepts)
    try:
        checkpoint = _download(repository, _checkpoint_name(variant), hub)
    except EntryNotFoundError:
        found = ", ".join(_variants(repository, hub)) or "none"
        raise ValueError(f"{repository} has no variant {variant!r}; it has: {found}.") from None
    bank: ConceptBank | Path | None
    if concepts is None or (isinstance(concepts, str) and not Path(concepts).exists()):
        try:
            bank = _download(repository, f"concepts/{concepts or DEFAULT_CONCEPTS}.pkl", hub)
        except EntryNotFoundError:
            raise ValueError(
                f"{repository} has no concepts {concepts or DEFAULT_CONCEPTS!r}, and no such file is here."
            ) from None
    else:
        bank = _local_concepts(concepts)
    return TokenizerFiles(checkpoint=checkpoint, concepts=bank, text_tokenizer=DEFAULT_TEXT_TOKENIZER)


def _saved_folder(folder: Path, concepts: str | Path | ConceptBank | None) -> TokenizerFiles:
    bank = _local_concepts(concepts)
    if bank is None and (folder / CONCEPTS_FILE).is_file():
        bank = folder / CONCEPTS_FILE
    vocabulary = folder / TEXT_TOKENIZER_FOLDER
    return TokenizerFiles(folder=folder, concepts=bank, text_tokenizer=vocabulary if vocabulary.is_dir() else None)


def _check_is_tap(folder: Path) -> None:
    """Refuse the folder of another model before its weights are read."""
    kind = read_json_object(folder / "config.json").get("model_type")
    if kind != TapConfig.model_type:
        raise ValueError(
            f"{folder} holds a model of type {kind}, not a region tokenizer (type {TapConfig.model_type}): give the "
            "folder of one."
        )


def _local_concepts(concepts: str | Path | ConceptBank | None) -> ConceptBank | Path | None:
    return Path(concepts) if isinstance(concepts, str) else concepts


def _checkpoint_name(variant: str) -> str:
    return f"models/{variant.removesuffix('.pkl')}.pkl"


def _is_pickle(path: Path) -> bool:
    return path.suffix in (".pkl", ".pickle")


def _variants(repository: str, hub: Hub) -> list[str]:
    """The names of the checkpoints in the original's repository; empty if they cannot be listed."""
    try:
        names = list_repo_files(repository, revision=hub.get("revision"), token=hub.get("token"))
    except Exception:  # only for a message, which says enough without
        return []
    return sorted(Path(name).stem for name in names if name.startswith("models/") and name.endswith(".pkl"))


def check_hub(repository: str, name: str, hub: Hub) -> None:
    """Ask the Hub once, briefly, for a file that has not been downloaded yet; a download would ask again and again.

    Raises `ValueError` if `repository` is not the name of a repository, and `OSError` if there is no such repository or the
    Hub cannot be reached. If the repository lacks the file, the download reports it.
    """
    place = {key: hub.get(key) for key in ("revision", "cache_dir")}
    try:
        if hub.get("local_files_only") or isinstance(try_to_load_from_cache(repository, name, **place), str):
            return
        get_hf_file_metadata(hf_hub_url(repository, name, revision=hub.get("revision")), token=hub.get("token"))
    except HFValidationError as error:
        raise ValueError(f"{repository} is neither a file or folder here nor a Hub repository: {error}") from None
    except RepositoryNotFoundError:
        raise OSError(
            f"Found no {repository}, here or on the Hub (or you have no access to it): correct the name, or give a folder."
        ) from None
    except EntryNotFoundError:
        return
    except Exception as error:  # no network, no Hub, an offline mode: each has an exception of its own
        raise OSError(
            f"Found no {repository} here, and the Hub cannot be reached ({error}): correct the name, or download it where "
            "there is a network and give its folder."
        ) from None


def _download(repository: str, name: str, hub: Hub) -> Path:
    check_hub(repository, name, hub)
    try:
        return Path(hf_hub_download(repository, name, **hub))
    except LocalEntryNotFoundError as error:  # is an EntryNotFoundError too, but says that the Hub was out of reach
        raise OSError(
            f"Could not download {name} of {repository}, and no earlier download is here: {error}. Download the file "
            "where there is a network and give its path."
        ) from error
    except EntryNotFoundError:
        raise
    except HfHubHTTPError as error:
        raise OSError(f"Could not download {name} of {repository}: {error}") from error


# --- the caption vocabulary -------------------------------------------------------------------------------------------


def load_text_tokenizer(
    wanted: str | Path | PreTrainedTokenizerBase | None, files: TokenizerFiles, *, vocab_size: int, hub: Hub
) -> PreTrainedTokenizerBase | None:
    """The vocabulary that the user named, or the model's own; None if there is none or it cannot be reached."""
    if isinstance(wanted, PreTrainedTokenizerBase):
        return _checked_size(wanted, vocab_size)
    if wanted is not None:
        return _checked_size(_read_text_tokenizer(wanted, vocab_size, hub), vocab_size)
    if files.text_tokenizer is None:
        return None
    try:
        return _checked_size(_read_text_tokenizer(files.text_tokenizer, vocab_size, hub), vocab_size)
    except (OSError, ImportError) as error:
        logger.warning(
            f"Captions will not be available: the vocabulary {files.text_tokenizer} could not be loaded ({error})."
        )
        return None


def _read_text_tokenizer(wanted: str | Path, vocab_size: int, hub: Hub) -> PreTrainedTokenizerBase:
    path = Path(wanted)
    if path.is_file():
        return _read_sentencepiece(path, vocab_size)
    if path.is_dir():
        if (path / "tokenizer.json").is_file():
            return _told(path, lambda: load_pretrained(AutoTokenizer, path))
        if (path / "tokenizer.model").is_file():
            return _read_sentencepiece(path / "tokenizer.model", vocab_size)
        raise ValueError(
            f"The folder {wanted} holds neither tokenizer.json nor tokenizer.model: give a tokenizer's folder."
        )
    if path.is_absolute() or str(wanted).count("/") > 1:
        raise ValueError(f"Found no text tokenizer at {wanted}.")
    try:
        return _read_sentencepiece(_download(str(wanted), "tokenizer.model", hub), vocab_size)
    except EntryNotFoundError:
        return load_pretrained(AutoTokenizer, str(wanted), **hub)


def _read_sentencepiece(path: Path, vocab_size: int) -> PreTrainedTokenizerBase:
    """Read a `tokenizer.model`. If its vocabulary has LLaMA's size, it must be LLaMA-1's, byte for byte."""
    digest = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    if vocab_size == LLAMA_VOCABULARY_SIZE and digest != LLAMA_TOKENIZER_MD5:
        raise ValueError(
            f"{path} has md5 {digest}, expected {LLAMA_TOKENIZER_MD5}: captions need LLaMA-1's tokenizer.model, for example "
            f"that of {DEFAULT_TEXT_TOKENIZER}."
        )
    try:
        import google.protobuf  # noqa: F401
        import sentencepiece  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"Reading {path.name} needs sentencepiece and protobuf: pip install 'tap-bridge[bridge]'."
        ) from error
    with TemporaryDirectory() as folder:  # transformers wants the file alone in a folder, under this very name
        shutil.copyfile(path, Path(folder) / "tokenizer.model")
        return _told(path, lambda: LlamaTokenizer.from_pretrained(folder))


def _told(path: Path, read: Callable[[], PreTrainedTokenizerBase]) -> PreTrainedTokenizerBase:
    """The result of `read`, or an error that names the files."""
    try:
        return read()
    except Exception as error:  # tokenizers raises no class of its own
        raise ValueError(
            f"{path} holds no text tokenizer that can be read ({error}): copy or download it again."
        ) from None


def _checked_size(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> PreTrainedTokenizerBase:
    if len(tokenizer) != vocab_size:
        raise ValueError(
            f"The text tokenizer has {len(tokenizer)} words, the caption decoder {vocab_size}: give the vocabulary that the "
            "decoder was trained with."
        )
    return tokenizer
