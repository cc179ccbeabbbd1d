"""The card of a saved bridge."""

from __future__ import annotations

from pathlib import Path

from .adapters import has_adapter
from .bridge_parts import RegionBridgePreTrainedModel
from .configuration_bridge import RegionBridgeConfig
from .picture_context import PictureContext


def bridge_card(
    bridge: RegionBridgePreTrainedModel, name: str = "path/or/name/of/this/folder", whole: bool = False
) -> str:
    """The README.md of a saved bridge: what it is, what it needs, how it is loaded by `name`."""
    config = bridge.config
    base = config.language_model or "(no name)"
    peft = bridge.language_model.peft_config[bridge.language_model.active_adapter] if has_adapter(bridge) else None
    held = "language model and projector" if whole else "the projector"
    if peft:
        held += f", and LoRA of rank {peft.r} for the language model: `adapter/` is a peft adapter of that model alone"
    context = str(PictureContext.of(config))
    found = _finding(config)
    header = "\n".join(
        ["---", "library_name: transformers", "pipeline_tag: image-text-to-text"]
        + ([f"base_model: {base}"] if config.language_model and not Path(base).exists() else [])
        + ["tags: [region-captioning, tap, llm_bridge]", "---"]
    )
    return f"""{header}

# A language model that reads regions

A bridge from the region tokenizer `{config.fingerprint}` to `{base}`: it answers questions about regions of a picture.

| | |
|---|---|
| language model | `{base}` |
| region tokenizer | fingerprint `{config.fingerprint}` |
| holds | {held} |
| a region gives | {config.slots_per_region} token(s), experts: {config.experts} |
| the projector reads | token{", semantic embedding" * config.use_semantic_embeds}{", position" * config.use_position} |
| picture context | {context} |
| finds regions by words | {found} |

```python
from llm_bridge import RegionChat

chat = RegionChat.from_pretrained("{name}")
print(chat.ask("What is <region>?", image="picture.png", boxes=[[40, 60, 310, 420]]))
```
"""


def _finding(config: RegionBridgeConfig) -> str:
    """Whether a bridge finds regions by words, and what its probabilities were calibrated with."""
    if not config.taught_to_find:
        return "not taught"
    said = [f"temperature {config.find_temperature:.3g}"] * (config.find_temperature != 1)
    if config.find_threshold is not None:
        said.append(f"none if that is more probable than {config.find_threshold:.3g}")
    return f"taught; {', '.join(said) or 'not calibrated'}"
