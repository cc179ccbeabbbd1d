# %% [markdown]
# # Any language model, many regions, one batch
#
# A bridge on a causal language model of 100 million random parameters answers a question about each of 32 regions of a
# photo, in one `generate` call on the CPU. The answers are noise, for nothing here was trained: what is shown is that any
# `AutoModelForCausalLM` takes part, and what it costs. Run it as a script, or cell by cell in an editor that knows `# %%`.
#
#     python notebooks/any_language_model.py [photo.jpg]
#
# Without a photo it takes the astronaut of scikit-image (`pip install scikit-image`).

# %%
import resource
import sys
import time
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoModelForCausalLM, LlamaConfig

from llm_bridge import RegionBridgeForConditionalGeneration, RegionBridgeProcessor, RegionChat
from tap_tokenizer import TapRegionTokenizer

REGIONS = 32
paths = [path for path in sys.argv[1:] if Path(path).is_file()]
if paths:
    photo = Image.open(paths[0]).convert("RGB")
else:
    try:
        from skimage import data
    except ImportError:
        sys.exit("Found no photo: give one as the first argument, or pip install scikit-image.")
    photo = Image.fromarray(data.astronaut())


def peak() -> float:
    """Most memory that this process ever held, in MiB."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / 2**20 if sys.platform == "darwin" else used / 2**10


# %% [markdown]
# ## The parts
# Any language model will do: here a Llama of random weights, with the words of the bundled model. For a trained one, give its
# name or folder instead; its own text tokenizer and chat template come with it.

# %%
tokenizer = TapRegionTokenizer.from_pretrained("tap-tiny")
words = RegionChat.from_pretrained("region-chat-tiny").processor.tokenizer
torch.manual_seed(0)
language_model = AutoModelForCausalLM.from_config(
    LlamaConfig(
        vocab_size=len(words), hidden_size=768, intermediate_size=2304, num_hidden_layers=13, num_attention_heads=12,
        max_position_embeddings=1024, bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
)  # fmt: skip
bridge = RegionBridgeForConditionalGeneration.from_language_model(
    language_model, text_tokenizer=words, region_tokenizer=tokenizer
).eval()
processor = RegionBridgeProcessor.for_bridge(bridge.config, region_tokenizer=tokenizer, tokenizer=words)
print(f"language model: {language_model.num_parameters() / 1e6:.0f} M parameters; before work: {peak():.0f} MiB")

# %% [markdown]
# ## 32 boxes of three sizes over the photo, a question each

# %%
width, height = photo.size
boxes = []
for columns, rows, overlap in ((4, 5, 1.0), (3, 3, 1.2), (3, 1, 1.0)):
    for row in range(rows):
        for column in range(columns):
            w, h = overlap * width / columns, overlap * height / rows
            x, y = (column + 0.5) * width / columns, (row + 0.5) * height / rows
            boxes.append([max(x - w / 2, 0), max(y - h / 2, 0), min(x + w / 2, width), min(y + h / 2, height)])
assert len(boxes) == REGIONS
conversations = [
    [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": photo},
                {"type": "region", "box": box},
                {"type": "text", "text": "What is this?"},
            ],
        }
    ]
    for box in boxes
]

# %% [markdown]
# ## One batch in, one batch out
# The photo is one picture for all 32 conversations, so the image encoder runs once.

# %%
start = time.perf_counter()
inputs = processor.apply_chat_template(
    conversations, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
)
seen = time.perf_counter()
with torch.no_grad():
    ids = bridge.generate(**inputs, max_new_tokens=16, min_new_tokens=16, do_sample=False)
said = time.perf_counter()
answers = processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
print(f"{REGIONS} regions of {width} × {height} pixels, {inputs['input_ids'].shape[1]} tokens per question")
print(
    f"seeing {seen - start:.2f} s, 16 words each {said - seen:.2f} s, peak {peak():.0f} MiB, {torch.get_num_threads()} threads"
)
assert len(answers) == REGIONS
