"""A folder with all that training needs, in miniature: a language model, two region tokenizers, records, a cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LM = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
      "num_attention_heads": 2, "tie_word_embeddings": True}  # fmt: skip


def make_stage(folder: Path, make_tokenizer: Any) -> Path:
    from finetune import pretrain_lm
    from finetune.data.source import convert
    from finetune.glyphs.records import GlyphScenesSource

    (folder / "lm.json").write_text(json.dumps(LM))
    pretrain_lm.main(["--output_dir", str(folder / "lm"), "--model_config", str(folder / "lm.json"), "--steps", "2",
                      "--batch_size", "2", "--turns", "2", "--workers", "0", "--eval_texts", "2"])  # fmt: skip
    for seed in (0, 1):
        make_tokenizer(seed).save_pretrained(folder / f"tap{seed}")
    convert(GlyphScenesSource(output=str(folder / "records.jsonl"), scenes=6, long_side=96, workers=1))
    make_cache(folder, "tap0", "cache")
    return folder


def make_cache(folder: Path, tokenizer: str, output: str, *flags: str) -> None:
    from finetune import cache_regions

    cache_regions.main(["--data", str(folder / "records.jsonl"), "--region_tokenizer", str(folder / tokenizer),
                        "--output", str(folder / output), "--variants", "exact,jitter,points", "--shard_size", "2",
                        "--workers", "0", "--image_grid", "2", *flags])  # fmt: skip
