"""Conversations → what a server reads: words as text, and projected rows in the places of regions.

Only the projector and the processor of a bridge are needed for that, and no layer of its language model.
"""

from __future__ import annotations

import base64
import io
import re
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from tap_tokenizer import TapRegionTokenizer, check_source, misfits_told

from ..adapter_folder import ADAPTER_FOLDER, find_adapter
from ..adapters import has_adapter
from ..configuration_bridge import REGION_TOKEN, RegionBridgeConfig, bundled_or_given
from ..generation import Ids, question_inputs
from ..modeling_bridge import RegionBridgeForConditionalGeneration
from ..processing_bridge import RegionBridgeProcessor
from ..projector import make_projector
from ..projector_files import read_projector, read_projector_of_whole
from ..prompt_checks import check_features

RESERVED = "<prompt_embeds>"
"""What vLLM writes in the places of rows, so that it must not occur in anybody's words."""
_LATEST_ROWS = 4096
"""How many projected rows are remembered."""
_PLACES = re.compile(rf"((?:{re.escape(REGION_TOKEN)})+)")


class ServedPrompt(TypedDict):
    """A prompt as ids (1, L), of which only the length matters, and as content parts in OpenAI's form."""

    input_ids: Tensor
    parts: list[dict[str, str]]


class PromptWriter:
    """Writes prompts with a bridge's processor and projector. It can be shared by conversations in several threads.

    projector: in float32; a server rounds the rows to its own dtype. generation_config: of the bridge, for the tokens on
    which answers end. adapter: the folder of the bridge's adapter, if it has one that lies in a folder. has_adapter: whether
    it has one; by default, whether there is a folder. name: what the bridge is called, if it was loaded from somewhere.
    """

    def __init__(
        self,
        config: RegionBridgeConfig,
        projector: nn.Module,
        processor: RegionBridgeProcessor,
        generation_config: GenerationConfig,
        adapter: Path | None = None,
        *,
        has_adapter: bool | None = None,
        name: str | None = None,
    ) -> None:
        self.config, self.projector, self.processor = config, projector.float().eval(), processor
        self.generation_config, self.adapter, self.name = generation_config, adapter, name
        self.has_adapter = adapter is not None if has_adapter is None else has_adapter
        self._rows: OrderedDict[bytes, Tensor] = OrderedDict()
        self._lock = Lock()

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        region_tokenizer: TapRegionTokenizer | str | None = None,
        device: torch.device | str | None = None,
        **hub: Any,
    ) -> PromptWriter:
        """From a bridge's name, folder or repository, in whatever form it was saved."""
        folder = find_adapter(source, **hub)
        name = str(folder or bundled_or_given(source))
        check_source(name, **hub)
        with misfits_told(name):
            config = RegionBridgeConfig.from_pretrained(name, **hub)
            projector = make_projector(config)
            found = read_projector(folder, projector) if folder else read_projector_of_whole(name, projector, hub)
            projector.load_state_dict(found)
            generation = GenerationConfig.from_pretrained(name, **hub)
        processor = RegionBridgeProcessor.from_pretrained(
            source, region_tokenizer=region_tokenizer, device=device, **hub
        )
        adapter = folder / ADAPTER_FOLDER if folder and (folder / ADAPTER_FOLDER).is_dir() else None
        own_name = folder.resolve().name if folder else None
        return cls(config, projector.to(device), processor, generation, adapter, name=own_name)

    @classmethod
    def of(cls, bridge: RegionBridgeForConditionalGeneration, processor: RegionBridgeProcessor) -> PromptWriter:
        """From a bridge that is loaded; its projector is copied."""
        projector = make_projector(bridge.config).to(bridge.device)
        projector.load_state_dict(bridge.projector.state_dict())
        own_name = Path(bridge.config.name_or_path).name or None
        return cls(
            bridge.config,
            projector,
            processor,
            bridge.generation_config,
            has_adapter=has_adapter(bridge),
            name=own_name,
        )

    def write(self, messages: Sequence[dict[str, Any]], *, thinking: bool = False) -> ServedPrompt:
        """A conversation that ends with a question → the prompt that the bridge itself would read, token for token."""
        with self._lock:
            text = self.processor.apply_chat_template(messages, add_generation_prompt=True, enable_thinking=thinking)
            batch = question_inputs(self.processor, messages, thinking=thinking)
            rows = self._project(batch["region_features"]) if "region_features" in batch else torch.empty(0, 0)
        if RESERVED in text:
            raise ValueError(
                f"The conversation holds {RESERVED}, which servers keep for regions: write it differently."
            )
        parts: list[dict[str, str]] = []
        used = 0
        for piece in filter(None, _PLACES.split(text)):
            if not piece.startswith(REGION_TOKEN):
                parts.append({"type": "text", "text": piece})
                continue
            count = len(piece) // len(REGION_TOKEN)
            parts.append({"type": "prompt_embeds", "data": _packed(rows[used : used + count])})
            used += count
        return {"input_ids": batch["input_ids"], "parts": parts}

    def begun(self, prompt: ServedPrompt, ids: Ids) -> ServedPrompt:
        """A prompt and the beginning of an answer to it, given as ids, which the server must read from their text."""
        if not ids:
            return prompt
        *before, last = prompt["parts"]
        known = prompt["input_ids"][0]
        tail = known[-8:]  # enough to join the ids to
        words = self.processor.tokenizer
        joined = words.decode(torch.cat([tail, tail.new_tensor(ids)])).removeprefix(words.decode(tail))
        own, longer = (
            words(text, add_special_tokens=False)["input_ids"] for text in (last["text"], last["text"] + joined)
        )
        if longer != [*own, *ids]:
            raise ValueError(
                f"The text tokenizer reads {joined!r} differently alone than within a longer word, so a server cannot be asked "
                "for its probability: load the bridge here, with RegionChat.from_pretrained."
            )
        whole = torch.cat([known, known.new_tensor(ids)]).unsqueeze(0)
        return {"input_ids": whole, "parts": [*before, {"type": "text", "text": last["text"] + joined}]}

    @torch.no_grad()
    def _project(self, features: Tensor) -> Tensor:
        """Features (1, S, F) → rows (S, hidden_size), float32, on the CPU.

        Equal features have equal rows, bit for bit, whatever else was projected at the same time: that is how servers
        recognise prompts.
        """
        check_features(self.config, features, None)
        keys = [row.numpy().tobytes() for row in features[0]]
        if new := [i for i, key in enumerate(keys) if key not in self._rows]:
            device = next(self.projector.parameters()).device
            projected = self.projector(features[0, new].to(device)).cpu()
            for i, row in zip(new, projected):
                self._rows.setdefault(keys[i], row.clone())
        rows = torch.stack([self._rows[key] for key in keys])
        for key in keys:
            self._rows.move_to_end(key)
        while len(self._rows) > _LATEST_ROWS:
            self._rows.popitem(last=False)
        return rows


def _packed(rows: Tensor) -> str:
    """Rows (n, hidden_size) as a server reads them: base64 of what `torch.save` writes."""
    file = io.BytesIO()
    torch.save(rows.clone(), file)  # part of a tensor would be saved together with the rest
    return base64.b64encode(file.getvalue()).decode()
