"""One way from a picture's file to the last word of an answer, in a process of its own; `whole_way.py` starts it.

Each way is a list of steps, one for each stage, which hand on what they made in a dictionary.
"""

from __future__ import annotations

import time

FIRST_LINE = time.time()  # before torch is imported, which is a stage

import json  # noqa: E402
import resource  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

PICTURE = Path(__file__).parents[1] / "llm_bridge" / "pretrained" / "region-chat-tiny" / "demo.png"
BOX = [177.0, 392.0, 271.0, 470.0]
QUESTION = "What is this?"
STAGES = ("start", "import", "load", "picture", "context", "tokens", "prefill", "words")
Kept = dict[str, Any]
Steps = dict[str, Callable[[Kept], None]]


def main() -> None:
    """Make a bridge, or walk one way and print what its stages took, as JSON."""
    task, options = sys.argv[1], json.loads(sys.argv[2])
    if task == "make":
        make_bridge(**options)
    else:
        print(json.dumps(walk(**options)))


def walk(way: str, source: str, words: int, begun: float, counts: bool = False) -> dict[str, Any]:
    """Seconds and CPU seconds of each stage since `begun`; with `counts`, the operations of those after loading instead."""
    kept: Kept = {"source": source, "words": words}
    found: dict[str, Any] = {"start": {"seconds": FIRST_LINE - begun, "cpu": cpu_seconds()}}
    for stage, step in WAYS[way].items():
        clock, cpu = time.time(), cpu_seconds()
        if counts and stage in STAGES[3:]:
            found[stage] = operations_of_step(step, kept)
        else:
            step(kept)
            found[stage] = {"seconds": time.time() - clock, "cpu": cpu_seconds() - cpu}
    if counts:
        return {**found, "words": found["words"] - found["prefill"], "bytes": kept["bytes"]}
    found["words"] = {kind: value - found["prefill"][kind] for kind, value in found["words"].items()}
    return found


def operations_of_step(step: Callable[[Kept], None], kept: Kept) -> int:
    """The operations of a step, which runs."""
    from side_by_side import operations_of

    return operations_of(lambda: step(kept))[1]


def cpu_seconds() -> float:
    """What this process has used, including what Python took before its first line."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


# --- bridges ----------------------------------------------------------------------------------------------------------


def make_bridge(folder: str, shape: str | None, language: str) -> None:
    """Write a bridge with a fresh projector: of tap-tiny or of a random TAP, and of a language model or Qwen3-0.6B's shape."""
    import torch
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    from llm_bridge import RegionBridgeForConditionalGeneration, RegionBridgeProcessor
    from tap_tokenizer import TapConfig, TapModel, TapRegionTokenizer, load_pretrained

    torch.manual_seed(0)
    if shape is None:
        tokenizer = TapRegionTokenizer.from_pretrained("tap-tiny")
    else:
        tokenizer = TapRegionTokenizer(TapModel(getattr(TapConfig, f"tap_vit_{shape}")()).eval())
    model: Any = language
    if language == "0.6b":
        model = Qwen3ForCausalLM(Qwen3Config(
            hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8,
            head_dim=128, tie_word_embeddings=True,
        ))  # fmt: skip
    text = load_pretrained(AutoTokenizer, "smollm2-135m" if language == "0.6b" else language)
    bridge = RegionBridgeForConditionalGeneration.from_language_model(
        model, region_tokenizer=tokenizer, text_tokenizer=text
    )
    bridge.save_pretrained(folder, whole=True)
    RegionBridgeProcessor.for_bridge(bridge.config, text, tokenizer).save_pretrained(folder, whole=True)


def import_bridge(kept: Kept) -> None:
    """All that a bridge's user imports."""
    from llm_bridge import RegionChat

    kept["class"] = RegionChat


def load_bridge(kept: Kept) -> None:
    """A bridge by name or from its folder."""
    chat = kept["class"].from_pretrained(kept["source"])
    kept |= {"model": chat.model, "processor": chat.processor}
    kept["bytes"] = {"load": bytes_of(chat.model, chat.region_tokenizer.model), "words": bytes_of(chat.model)}


def encode_picture(kept: Kept) -> None:
    """Open and encode the picture, which the processor keeps."""
    from PIL import Image

    kept["picture"] = Image.open(PICTURE).convert("RGB")
    kept["processor"].embed_image(kept["picture"])


def see_context(kept: Kept) -> None:
    """What the bridge's prompts show of the whole picture, once for all questions about it, if they show any of it."""
    if kept["processor"].context.slots:
        content = [{"type": "image", "image": kept["picture"]}]
        kept["processor"].apply_chat_template([{"role": "user", "content": content}], tokenize=True, return_dict=True)


def encode_regions(kept: Kept) -> None:
    """The region and the question, as the language model reads them."""
    content = [
        {"type": "image", "image": kept["picture"]},
        {"type": "region", "box": BOX},
        {"type": "text", "text": QUESTION},
    ]
    kept["prompt"] = kept["processor"].apply_chat_template(
        [{"role": "user", "content": content}], tokenize=True, return_dict=True, add_generation_prompt=True
    )


def answer(words: int | None) -> Callable[[Kept], None]:
    """So many words, or as many as were asked for. The second call begins anew: `walk` takes off what the first one took."""

    def step(kept: Kept) -> None:
        count = words or kept["words"]
        ids = kept["model"].generate(**kept["prompt"], max_new_tokens=count, min_new_tokens=count, do_sample=False)
        kept["said"] = ids

    return step


# --- what one would take instead; random weights ----------------------------------------------------------------------


def import_crop(kept: Kept) -> None:
    """What the language model of a bridge needs, and a vision encoder."""
    from transformers import SiglipVisionModel  # noqa: F401 - it is what is timed

    from llm_bridge import RegionBridgeForConditionalGeneration

    kept["class"] = RegionBridgeForConditionalGeneration


def load_crop(kept: Kept) -> None:
    """The language model of a bridge, without TAP, beside a vision encoder of SigLIP-B's shape at 224 pixels: 256 tokens."""
    import torch
    from transformers import AutoTokenizer, SiglipVisionConfig, SiglipVisionModel

    source = Path(kept["source"])
    folder = source if source.is_dir() else PICTURE.parents[1] / source  # a bundled bridge by its name
    kept["model"] = kept["class"].from_pretrained(folder, dtype="auto").eval()
    kept["text"] = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    kept["bytes"] = {"load": bytes_of(kept["model"]), "words": bytes_of(kept["model"])}
    config = SiglipVisionConfig(image_size=224, patch_size=14)
    width = kept["model"].get_input_embeddings().weight.shape[1]
    kept["sight"] = SiglipVisionModel(config).eval().to(kept["model"].dtype)
    kept["projector"] = torch.nn.Linear(config.hidden_size, width).to(kept["model"].dtype)
    kept["bytes"]["load"] += bytes_of(kept["sight"])


def open_picture(kept: Kept) -> None:
    """Open the picture; nothing looks at all of it."""
    from PIL import Image

    kept["picture"] = Image.open(PICTURE).convert("RGB")


def encode_crop(kept: Kept) -> None:
    """The region's crop, and the question after it."""
    import torch

    model = kept["model"].language_model
    with torch.no_grad():
        pixels = pixels_of(kept["picture"].crop(BOX).resize((224, 224))).to(model.dtype)
        seen = kept["projector"](kept["sight"](pixels).last_hidden_state)
        question = kept["text"](QUESTION, return_tensors="pt").input_ids
        prompt = torch.cat([seen, model.get_input_embeddings()(question)], dim=1)
    kept["prompt"] = {"inputs_embeds": prompt, "attention_mask": prompt.new_ones(prompt.shape[:2], dtype=torch.long)}
    kept["model"] = model


def import_transformers(kept: Kept) -> None:
    """What SAM and a captioner need."""
    from transformers import BlipForConditionalGeneration, SamModel  # noqa: F401 - they are what is timed


def load_captioner(kept: Kept) -> None:
    """transformers' SAM (ViT-B) and BLIP (base); made, not read."""
    from transformers import BlipConfig, BlipForConditionalGeneration, SamConfig, SamModel

    kept["sam"] = SamModel(SamConfig()).eval()
    kept["model"] = BlipForConditionalGeneration(BlipConfig()).eval()
    kept["bytes"] = {"load": bytes_of(kept["sam"], kept["model"]), "words": bytes_of(kept["model"].text_decoder)}


def encode_for_sam(kept: Kept) -> None:
    """Open and encode the picture."""
    import torch

    open_picture(kept)
    with torch.no_grad():
        kept["embedding"] = kept["sam"].get_image_embeddings(pixels_of(kept["picture"].resize((1024, 1024))))


def cut_out(kept: Kept) -> None:
    """The region's mask, with what lies outside it blackened, as a picture for the captioner."""
    import numpy as np
    import torch
    from PIL import Image

    width, height = kept["picture"].size
    corners = torch.tensor([[BOX]]) * torch.tensor([1024 / width, 1024 / height] * 2)
    with torch.no_grad():
        output = kept["sam"](image_embeddings=kept["embedding"], input_boxes=corners, multimask_output=False)
        mask = torch.nn.functional.interpolate(output.pred_masks[0], (height, width))[0, 0] > 0
    pixels = np.asarray(kept["picture"]) * mask.numpy()[..., None].astype(np.uint8)
    side = kept["model"].config.vision_config.image_size
    kept["prompt"] = {"pixel_values": pixels_of(Image.fromarray(pixels).crop(BOX).resize((side, side)))}


# --- TAP's own code, from the original's repository; random weights ---------------------------------------------------


def import_original(kept: Kept) -> None:
    """What the original's code imports."""
    sys.path.insert(0, str(kept["source"]))
    from tokenize_anything import model_registry

    kept["registry"] = model_registry


def load_original(kept: Kept) -> None:
    """Its TAP-B; made, not read. Words are those of its caption decoder."""
    kept["model"] = kept["registry"]["tap_vit_b"](device="cpu", dtype="float32")
    weights = bytes_of(kept["model"]) if hasattr(kept["model"], "parameters") else 0
    kept["bytes"] = {"load": weights, "words": 0}


def encode_for_original(kept: Kept) -> None:
    """Open and encode the picture."""
    import numpy as np

    open_picture(kept)
    picture = np.asarray(kept["picture"].resize((1024, 1024)))[None]
    inputs = kept["model"].get_inputs({"img": picture})
    kept["inputs"] = {**inputs, **kept["model"].get_features(inputs)}


def ask_original(kept: Kept) -> None:
    """Masks and tokens of the region; it always makes both."""
    import numpy as np

    width, height = kept["picture"].size
    left, top, right, bottom = BOX
    corners = [[left / width * 1024, top / height * 1024, 2.0], [right / width * 1024, bottom / height * 1024, 3.0]]
    kept["model"].get_outputs({**kept["inputs"], "points": np.array([corners], dtype=np.float32)})


def caption_by_original(kept: Kept) -> None:
    """A caption of a random token, as long as it makes it."""
    import torch

    kept["model"].generate_text(torch.randn(1, 1, 256, generator=torch.Generator().manual_seed(0)))


def nothing(kept: Kept) -> None:
    """A stage that a way does without."""


def pixels_of(picture: Any) -> Any:
    """A picture → (1, 3, H, W), about −1 … 1."""
    import numpy as np
    import torch

    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1


def bytes_of(*models: Any) -> int:
    """The bytes of models' weights."""
    return sum(weight.nbytes for model in models for weight in model.parameters())


WAYS: dict[str, Steps] = {
    "bridge": {"import": import_bridge, "load": load_bridge, "picture": encode_picture, "context": see_context,
               "tokens": encode_regions},
    "crop": {"import": import_crop, "load": load_crop, "picture": open_picture, "context": nothing, "tokens": encode_crop},
    "captioner": {
        "import": import_transformers, "load": load_captioner, "picture": encode_for_sam, "context": nothing, "tokens": cut_out,
    },
}  # fmt: skip
for way in WAYS.values():
    way |= {"prefill": answer(1), "words": answer(None)}
WAYS["original"] = {
    "import": import_original, "load": load_original, "picture": encode_for_original, "context": nothing,
    "tokens": ask_original, "prefill": nothing, "words": caption_by_original,
}  # fmt: skip

if __name__ == "__main__":
    main()
