"""One epoch of training from cached region tokens against one that encodes every picture anew.

    python benchmarks/cached_training.py --records 64
    python benchmarks/cached_training.py --records 4 --batch_size 2 --shape tap_vit_b     # minutes

Both epochs see the same records in the same order with the same bridge and take the same optimizer steps: projector and
LoRA, four questions a record; on the bundled region-chat-tiny, or, with a shape of the original's, on a language model of
100 M random parameters. Opening pictures is charged to the second alone, because
the first has none to open; making the cache is shown, too, as it is paid once.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from machine import describe_machine, interleaved
from transformers import LlamaConfig, LlamaForCausalLM

from finetune import cache_regions
from finetune.batches import CachedRecord, ConversationCollator
from finetune.cache import RegionCache, encode_regions
from finetune.data.source import convert
from finetune.glyphs.records import GlyphScenesSource
from finetune.losses import summed_loss
from finetune.records import cut_turns, load_records, open_image
from llm_bridge import RegionBridgeForConditionalGeneration, RegionBridgeProcessor, add_lora, set_trainable
from tap_tokenizer import TapConfig, TapModel, TapRegionTokenizer

TURNS = 4


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=64, help="records of an epoch")
    parser.add_argument("--batch_size", type=int, default=16, help="records of a step")
    parser.add_argument("--rounds", type=int, default=3, help="epochs of each kind; the median counts")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch")
    parser.add_argument(
        "--shape", choices=("tap_vit_b", "tap_vit_l"), help="random weights of this shape, not tap-tiny"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(describe_machine())
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "records.jsonl"
        convert(GlyphScenesSource(output=str(data), scenes=arguments.records, turns=TURNS, workers=1))
        bridge, processor = bundled() if arguments.shape is None else random_models(arguments.shape, folder)
        tokenizer = processor.region_tokenizer
        assert tokenizer is not None
        start = time.perf_counter()
        cache_regions.main(["--data", str(data), "--output", f"{folder}/cache", "--dtype", "float32",
                            "--region_tokenizer", tokenizer.source["source"]])  # fmt: skip
        making = time.perf_counter() - start
        records, cache = list(load_records(data)), RegionCache(f"{folder}/cache")

        set_trainable(add_lora(bridge), "lora")
        optimizer = torch.optim.AdamW([p for p in bridge.parameters() if p.requires_grad], lr=1e-4)
        collator = ConversationCollator(processor)

        def from_cache(numbers: range) -> list[CachedRecord]:
            return [CachedRecord(records[i], cache.regions(i)) for i in numbers]

        def from_pictures(numbers: range) -> list[CachedRecord]:
            features = tokenizer.embed_image([open_image(records[i], folder) for i in numbers])
            regions = encode_regions(tokenizer, features, [records[i] for i in numbers])
            return [CachedRecord(records[i], own) for i, own in zip(numbers, regions)]

        def first_questions(item: CachedRecord) -> CachedRecord:
            record, rows = cut_turns(item.record, 0, TURNS)
            return CachedRecord(record, item.regions[rows])

        batches = [
            range(start, min(start + arguments.batch_size, len(records)))
            for start in range(0, len(records), arguments.batch_size)
        ]
        same = max(
            float((a.regions.semantic_tokens - b.regions.semantic_tokens).abs().max())
            for a, b in zip(from_cache(batches[0]), from_pictures(batches[0]))
        )
        assert same < 1e-4, f"cached tokens differ from fresh ones by {same}"

        def epoch(read: object) -> None:
            for numbers in batches:
                batch = collator([first_questions(item) for item in read(numbers)])  # type: ignore[operator]
                summed_loss(bridge.train(), batch).backward()
                optimizer.step()
                optimizer.zero_grad()

        epoch(from_cache)  # warm up
        found = interleaved(
            {"cache": lambda: epoch(from_cache), "pictures": lambda: epoch(from_pictures)}, arguments.rounds
        )
    regions = np.mean([len(record.regions) for record in records])
    print(f"\n{len(records)} pictures with {regions:.1f} regions each; medians of {arguments.rounds} epochs\n")
    print("| an epoch | seconds | ratio |\n|---|---|---|")
    print(f"| from the cache | {found['cache']:.2f} | 1 |")
    print(f"| encoding every picture | {found['pictures']:.2f} | {found['pictures'] / found['cache']:.1f} |")
    print(f"| making the cache, once | {making:.2f} | {making / found['cache']:.1f} |")


def bundled() -> tuple[RegionBridgeForConditionalGeneration, RegionBridgeProcessor]:
    """The models that come with the package."""
    bridge = RegionBridgeForConditionalGeneration.from_pretrained("region-chat-tiny")
    return bridge, RegionBridgeProcessor.from_pretrained("region-chat-tiny")


def random_models(shape: str, folder: str) -> tuple[RegionBridgeForConditionalGeneration, RegionBridgeProcessor]:
    """A TAP of a shape of the original's and a language model of 100 M parameters, random."""
    torch.manual_seed(0)
    TapRegionTokenizer(TapModel(getattr(TapConfig, shape)())).save_pretrained(f"{folder}/tap")
    tokenizer = TapRegionTokenizer.from_pretrained(f"{folder}/tap")
    text = RegionBridgeProcessor.from_pretrained("region-chat-tiny").tokenizer
    config = LlamaConfig(vocab_size=32000, hidden_size=768, intermediate_size=2048, num_hidden_layers=8)
    bridge = RegionBridgeForConditionalGeneration.from_language_model(
        LlamaForCausalLM(config), region_tokenizer=tokenizer, text_tokenizer=text
    )
    return bridge, RegionBridgeProcessor.for_bridge(bridge.config, text, tokenizer)


if __name__ == "__main__":
    main()
