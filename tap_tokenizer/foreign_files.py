"""Checks models and other files that somebody else made before a library opens them, and loads models safely.

No code in a folder runs. transformers' Auto classes would ask on the standard input whether they may run Python code that
they find there. All calls of them go through this module, which says no unless the caller says `trust_remote_code=True`.
"""

from __future__ import annotations

import json
import logging
import stat
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.utils import CONFIG_NAME, cached_file, is_accelerate_available, is_gguf_available

from .bundled import absence_told, bundled_or_given
from .gguf_files import check_gguf, gguf_of, unpacked_folder
from .output_files import made_once
from .trial import check_chat_template
from .weight_files import check_weight_count

logger = logging.getLogger(__name__)

HUB_OPTIONS = ("cache_dir", "revision", "token", "local_files_only")
"""Options of `from_pretrained` that say how files come from a model hub."""

MAX_LAYERS = 1000
"""Layers of one kind in one model; no published one has a fourth of them."""

MAX_EXPERTS = 4096
"""Experts of a mixture; the largest published ones have hundreds."""

LARGEST_CONFIG = 16_000_000
"""Bytes of a JSON file that is no vocabulary."""

_LIMITS = {
    "layer": MAX_LAYERS, "block": MAX_LAYERS, "expert": MAX_EXPERTS, "num_labels": 1_000_000, "beam": 256,
    "return_sequences": 256,
}  # fmt: skip
"""What words in the name of a number say of it: these numbers are loops in the making of a model, or copies in its use."""


def check_regular_file(path: str | Path) -> None:
    """Refuse (`ValueError`) anything but a regular file: a folder, a pipe, a socket, a device, or a path with nothing there."""
    try:
        mode = Path(path).stat().st_mode
    except FileNotFoundError:
        raise ValueError(f"Found no file at {path}.") from None
    except ValueError as error:  # a null byte in a name
        raise ValueError(f"{str(path)!r} is not a path: {error}.") from None
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        raise ValueError(f"{path} is {kinds.get(stat.S_IFMT(mode), 'a device')}, expected a file.")


def stays_inside(name: str) -> bool:
    """Whether a file's name, as some file lists it, is one in the folder that it belongs to: relative, and without `..`."""
    return not Path(name).is_absolute() and ".." not in Path(name).parts


def read_json_object(path: str | Path) -> dict[str, Any]:
    """The object in a model's JSON file; `ValueError` names the file if it does not hold one."""
    values = _read_json(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path} is not a JSON object: copy or download it again.")
    return values


def _read_json(path: str | Path) -> Any:
    """The value in a JSON file that belongs to a model."""
    check_regular_file(path)
    if (size := Path(path).stat().st_size) > LARGEST_CONFIG:
        raise ValueError(f"{path} has {size} bytes, expected at most {LARGEST_CONFIG}: it is not a configuration.")
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # JSON, UTF-8 or a number that are damaged, brackets without end
        raise ValueError(
            f"{Path(path).parent} holds a damaged {Path(path).name} ({error}): copy or download it again."
        ) from None
    return values


def check_config(values: Any, source: str | Path) -> None:
    """Refuse a model's configuration (as JSON) if it asks for millions of layers or for code from elsewhere."""
    if isinstance(values, (list, tuple)):
        for value in values:
            check_config(value, source)
    if not isinstance(values, dict):
        return
    for name, value in values.items():
        limit = next((limit for word, limit in _LIMITS.items() if word in str(name)), None)
        if limit is not None and isinstance(value, (int, float)) and value > limit:
            raise ValueError(
                f"{source} has {name} {value!r:.20}, expected at most {limit}: no trained model is that large."
            )
        if str(name).endswith("attn_implementation") and ("/" in str(value) or "flex" in str(value)):
            raise ValueError(
                f"{source} asks for the attention {str(value)[:80]!r}, which is code from elsewhere, or is compiled first: "
                "remove it."
            )
        if name == "assistant_early_exit" and value is not None:  # beyond the last layer it never ends
            raise ValueError(f"{source} sets assistant_early_exit, which no model here needs: remove it.")
        check_config(value, source)


def check_folder(folder: str | Path) -> None:
    """Refuse a model's folder if its configuration is refused, or if a library would open anything but regular files in it."""
    if (Path(folder) / "adapter_config.json").exists():  # transformers would put it on the model, whatever it says
        raise ValueError(
            f"{folder} holds an adapter beside its model (adapter_config.json): merge it into the model first, or remove it."
        )
    for path in sorted(Path(folder).iterdir()):
        if path.suffix in (".json", ".jinja", ".safetensors", ".model", ".txt", ".bin"):
            check_regular_file(path)
        if path.name.endswith("config.json"):
            check_config(_read_json(path), path)  # some, as of sentence-transformers, hold a list
        if path.suffix == ".bin" and zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                    raise ValueError(
                        f"{path} is compressed, which torch never does, and may unpack to any size: download it again."
                    )


def check_source(source: str | Path, **hub: Any) -> None:
    """Check a folder with `check_folder`; of a Hub repository, check only the configuration. hub: some of `HUB_OPTIONS`."""
    if Path(source).is_dir():
        check_folder(source)
        return
    found = cached_file(str(source), CONFIG_NAME, _raise_exceptions_for_missing_entries=False, **hub)
    if found is not None:
        check_config(read_json_object(found), source)


_MISFITS = (
    RuntimeError, KeyError, TypeError, AttributeError, IndexError, ArithmeticError, AssertionError, StrictDataclassError,
)  # fmt: skip
"""What transformers raises when a configuration has values that it does not expect, or weights that it does not fit."""


@contextmanager
def misfits_told(source: str | Path) -> Iterator[None]:
    """Turn what goes wrong while a model is made from a configuration and weights into a `ValueError` that names `source`."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"{source} needs its own Python code, which is not run: use a model that transformers knows. If it is a language "
            "model whose code you have read and trust, give trust_remote_code=True in Python."
        ) from None
    except _MISFITS as error:
        sizes = "the sizes of its weights differ from its configuration"
        reason = sizes if "ignore_mismatched_sizes" in str(error) else f"{type(error).__name__}: {str(error)[:300]}"
        raise ValueError(
            f"{source} cannot be loaded ({reason}): its files are damaged or do not belong together. Copy or download it again."
        ) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # what tokenizers raises beside all of Python's kinds
            raise
        raise ValueError(
            f"{source} holds a tokenizer.json that cannot be read ({error}): copy or download it again."
        ) from None


def load_pretrained(auto_class: Any, source: str | Path, *, trust_remote_code: bool = False, **options: Any) -> Any:
    """Load a folder, a GGUF file or a Hub repository with `auto_class.from_pretrained`, after checking it.

    A GGUF file, or a folder with no other weights, is unpacked first (`unpacked_gguf`).
    trust_remote_code: run Python code that lies there. Otherwise, a model that needs it is refused (`ValueError`).
    Weights are read from safetensors. With `use_safetensors=False` they are read from torch's pickles; a hostile one can
    crash the process.
    """
    given, source = source, bundled_or_given(source)
    gguf = gguf_of(source)
    if gguf is not None:
        loaded = load_pretrained(auto_class, unpacked_gguf(gguf), **options)
        getattr(loaded, "config", loaded).name_or_path = str(given)  # what it is saved and found again by
        return loaded
    with absence_told(given):
        check_source(source, **{name: options[name] for name in HUB_OPTIONS if name in options})
    if auto_class in (AutoModel, AutoModelForCausalLM) and not trust_remote_code:
        no_code = {"trust_remote_code": False}
        check_model_size(
            source, lambda: auto_class.from_config(AutoConfig.from_pretrained(source, **no_code), **no_code)
        )
    is_chosen = "use_safetensors" in options
    if auto_class in (AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText):
        options.setdefault("use_safetensors", True)
    try:
        with absence_told(given), misfits_told(source):
            loaded = auto_class.from_pretrained(source, trust_remote_code=trust_remote_code, **options)
    except OSError as error:
        if is_chosen or "model.safetensors" not in str(error):
            raise
        raise OSError(
            f"{source} has no weights in safetensors ({error}): convert them, or give use_safetensors=False in Python if you "
            "trust whoever made the others."
        ) from error
    if isinstance(loaded, PreTrainedTokenizerBase):
        check_tokenizer(loaded, source)
    return loaded


def unpacked_gguf(gguf: Path) -> Path:
    """The folder that holds what a GGUF file holds, in float32; it is made once, in the user's cache.

    Raises `ValueError` for a file that is damaged or of a kind that transformers does not read, and `ImportError` without
    the package gguf.
    """
    check_regular_file(gguf)
    return made_once(unpacked_folder(gguf), lambda folder: _unpack(gguf, folder))


def _unpack(gguf: Path, folder: Path) -> None:
    if not (is_gguf_available() and is_accelerate_available()):
        raise ImportError(f"{gguf} is read by gguf and accelerate: pip install gguf accelerate")
    logger.warning("Unpacking %s into %s; this is done once.", gguf, folder.parent)
    check_gguf(gguf)
    file = str(gguf.resolve())  # beside a folder that is empty, so that nothing that lies beside the file is read
    try:
        with misfits_told(gguf):
            config = AutoConfig.from_pretrained(folder, gguf_file=file, trust_remote_code=False)
            check_config(config.to_dict(), gguf)
            check_model_size(gguf, lambda: AutoModelForCausalLM.from_config(config, trust_remote_code=False))
            tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file, trust_remote_code=False)
            check_tokenizer(tokenizer, gguf)
            model = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                gguf_file=file,
                dtype=torch.float32,
                quantization_config=GgufConfig(dequantize=True),  # else the model could not be saved
                trust_remote_code=False,
            )
    except ValueError as error:
        if str(gguf) in str(error):
            raise
        raise ValueError(f"{gguf} cannot be read: {error}") from error
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, source: str | Path) -> None:
    """Refuse a text tokenizer if its chat template does not end."""
    templates = tokenizer.chat_template
    for template in templates.values() if isinstance(templates, dict) else [templates]:
        if template is not None:
            check_chat_template(template, str(source))


def check_model_size(source: str | Path, make: Callable[[], nn.Module]) -> None:
    """Refuse a folder or a GGUF file if its configuration makes a model far larger than its weights.

    make: makes the model, on the meta device.
    """
    if Path(source).exists():
        with misfits_told(source), torch.device("meta"):
            model = make()
        check_weight_count(source, model)


def model_from_config(auto_class: Any, config: PreTrainedConfig) -> Any:
    """Make a model with `auto_class.from_config` from a configuration that may come from a file, without running its code."""
    source = f"The configuration of a {config.model_type}"
    check_config(config.to_dict(), source)
    with misfits_told(source):
        return auto_class.from_config(config, trust_remote_code=False)
