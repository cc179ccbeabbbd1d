"""Folders of models with Python code beside the weights, which writes a file if it is ever run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TAP = ROOT / "tap_tokenizer" / "pretrained" / "tap-tiny"
BRIDGE = ROOT / "llm_bridge" / "pretrained" / "region-chat-tiny"

_CLASSES = (
    "AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoProcessor", "AutoImageProcessor",
    "AutoFeatureExtractor",
)  # fmt: skip
AUTO_MAP = {name: "evil.Evil" for name in _CLASSES} | {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}  # noqa: C420


def copied(folder: Path, target: Path) -> Path:
    """A copy of a model's folder, without what was written down of its training."""
    return Path(shutil.copytree(folder, target, ignore=shutil.ignore_patterns("training", "*.md")))


def make_words(folder: Path) -> Path:
    """A random language model of the sizes of the small bundled bridge's, with its words and its chat template."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copy(BRIDGE / name, folder)
    config = LlamaConfig.from_dict(json.loads((BRIDGE / "config.json").read_text())["text_config"])
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def changed(path: Path, **values: Any) -> None:
    """Set values of a JSON file, or make one of them."""
    before = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**before, **values}))


def with_code(folder: Path, witness: Path) -> Path:
    """Put code wherever transformers looks for it."""
    code = f"open({str(witness)!r}, 'a').write(__name__ + chr(10))\nclass Evil: pass\n"
    for place in (folder, folder / "text_tokenizer", folder / "custom_generate"):
        place.mkdir(exist_ok=True)
        (place / "evil.py").write_text(code)
    (folder / "custom_generate" / "generate.py").write_text(code + "def generate(*a, **k): pass\n")
    return folder


def _tap_words(tap: Path) -> None:
    changed(tap / "text_tokenizer" / "tokenizer_config.json", tokenizer_class="Evil", auto_map=AUTO_MAP)


def _tap_words_config(tap: Path) -> None:
    changed(tap / "text_tokenizer" / "config.json", model_type="evil", auto_map=AUTO_MAP)


def _tap_config(tap: Path) -> None:
    changed(tap / "config.json", auto_map=AUTO_MAP)


def _tap_processor(tap: Path) -> None:
    changed(tap / "processor_config.json", auto_map=AUTO_MAP, processor_class="Evil")


def _tap_pictures(tap: Path) -> None:
    (tap / "processor_config.json").unlink()
    changed(tap / "preprocessor_config.json", auto_map=AUTO_MAP, image_processor_type="Evil", image_size=256)


def _words(folder: Path) -> None:
    changed(folder / "tokenizer_config.json", tokenizer_class="Evil", auto_map=AUTO_MAP)


def _config(folder: Path) -> None:
    changed(folder / "config.json", model_type="evil", auto_map=AUTO_MAP)


def _known_config(folder: Path) -> None:
    changed(folder / "config.json", auto_map=AUTO_MAP)


def _kernel(folder: Path) -> None:
    changed(folder / "config.json", _attn_implementation="evil/kernel", attn_implementation="evil/kernel")


def _text_config(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    values["text_config"] |= {"model_type": "clip", "auto_map": AUTO_MAP, "_name_or_path": str(folder)}
    (folder / "config.json").write_text(json.dumps(values))


def _processor(folder: Path) -> None:
    changed(folder / "processor_config.json", auto_map=AUTO_MAP, trust_remote_code=True)


def _reference(folder: Path) -> None:
    entry = json.loads((folder / "processor_config.json").read_text())["region_tokenizer"]
    changed(folder / "processor_config.json", region_tokenizer={**entry, "trust_remote_code": True})


KINDS: dict[str, dict[str, Callable[[Path], None]]] = {
    "tap": {
        f.__name__: f for f in (_tap_words, _tap_words_config, _tap_config, _tap_processor, _tap_pictures, _kernel)
    },
    "bridge": {f.__name__: f for f in (_words, _config, _known_config, _text_config, _processor, _reference, _kernel)},
    "words": {f.__name__: f for f in (_words, _config, _known_config, _kernel)},
}
"""What is changed in a copy of each kind of model."""


def make_foreign_folders(root: Path, witness: Path) -> dict[str, list[Path]]:
    """Folders of each kind: tap, bridge, words (a language model), and adapter, whose language model has code."""
    found: dict[str, list[Path]] = {}
    for kind, base in (("tap", TAP), ("bridge", BRIDGE), ("words", make_words(root / "words"))):
        for name, change in KINDS[kind].items():
            folder = with_code(copied(base, root / f"{kind}{name}"), witness)
            change(folder)
            found.setdefault(kind, []).append(folder)
    found["adapter"] = [_adapter(root / f"adapter-of-{folder.name}", folder) for folder in found["words"][:2]]
    return found


def _adapter(folder: Path, language_model: Path) -> Path:
    """A folder that holds a projector and names its language model."""
    from safetensors.torch import load_file, save_file

    copied(BRIDGE, folder)
    weights = load_file(folder / "model.safetensors")
    projector = {k.removeprefix("projector."): v for k, v in weights.items() if k.startswith("projector.")}
    save_file(projector, folder / "projector.safetensors")
    (folder / "model.safetensors").unlink()
    changed(folder / "config.json", language_model=str(language_model), trust_remote_code=True)
    return folder
