"""No code that lies in a model's folder runs, whoever opens it and whatever stands on the standard input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from foreign_folders import BRIDGE, make_foreign_folders
from limited import run_python

from finetune.data.source import convert
from finetune.glyphs.records import GlyphScenesSource

DOORS = """
import json, sys, warnings
warnings.simplefilter("ignore")
from pathlib import Path
import finetune.cache_regions, finetune.evaluate, finetune.train
from llm_bridge import RegionBridgeForConditionalGeneration as Bridge, RegionBridgeProcessor as Processor, RegionChat
from llm_bridge.cli import main as region_chat
from tap_tokenizer import TapRegionTokenizer
from tap_tokenizer.cli import main as tap_tokenizer

folders, demo, output, every = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4] == "every"
records = output + ".jsonl"
box = ["--box", "10", "10", "60", "60"]
def train(flags):
    return finetune.train.main([*flags, "--data", records, "--caches", output + "none", "--output_dir", output])


doors = {
    "tap": [
        lambda f: TapRegionTokenizer.from_pretrained(f),
        lambda f: tap_tokenizer(["describe", demo, "--model", f, *box]),
        lambda f: finetune.cache_regions.main(["--data", records, "--region_tokenizer", f, "--output", output + "cache"]),
    ],
    "bridge": [
        lambda f: Bridge.from_pretrained(f),
        lambda f: Processor.from_pretrained(f),
        lambda f: RegionChat.from_pretrained(f),
        lambda f: region_chat(["ask", demo, "What is it?", "--model", f, *box]),
        lambda f: region_chat(["chat", demo, "--model", f]),
        lambda f: finetune.evaluate.main(["--data", records, "--model", f, "--output", output]),
        lambda f: train(["--init_from", f]),
    ],
    "words": [
        lambda f: RegionChat.from_pretrained(f, mode="described", region_tokenizer="tap-tiny"),
        lambda f: Bridge.from_language_model(f, region_tokenizer="tap-tiny"),
        lambda f: region_chat(["ask", demo, "What is it?", "--model", f, "--mode", "described", "--region_tokenizer",
                               "tap-tiny", *box]),
        lambda f: train(["--language_model", f, "--region_tokenizer", "tap-tiny"]),
    ],
    "adapter": [
        lambda f: Bridge.from_pretrained(f),
        lambda f: RegionChat.from_pretrained(f),
        lambda f: region_chat(["ask", demo, "What is it?", "--model", f, *box]),
    ],
}
for kind, tried in doors.items():
    for folder in folders[kind]:
        for number, door in enumerate(tried if every else tried[:1]):
            try:
                said = f"rc {door(folder)}"[:40]
            except SystemExit as end:
                said = f"rc {end.code}"
            except (ValueError, OSError, ImportError) as error:
                said = f"{type(error).__name__}: {error}"
            print(json.dumps([Path(folder).name, number, said]), flush=True)
"""


REFUSED = {
    "tap_tap_words", "tap_kernel", "bridge_words", "bridge_text_config", "bridge_processor", "bridge_reference",
    "bridge_kernel", "words_words", "words_config", "words_kernel", "adapter-of-words_config",
}  # fmt: skip
"""Folders that cannot be used without their code; the others are used, and their code is left alone."""


def open_every_folder(root: Path, stdin: str | None, doors: str) -> list[tuple[str, int, str]]:
    """What each door said of each folder: the name of the folder, the number of the door, and the words."""
    witness = root / "witness"
    folders = {kind: list(map(str, own)) for kind, own in make_foreign_folders(root, witness).items()}
    scene = GlyphScenesSource(output=str(root / "out.jsonl"), scenes=1, long_side=96, workers=1)
    convert(scene)
    done = run_python(
        DOORS, json.dumps(folders), BRIDGE / "demo.png", root / "out", doors, stdin=stdin, cpu_seconds=120
    )
    assert not witness.exists(), witness.read_text()
    assert done.code == 0, done.errors[-2000:]
    assert "Do you wish to run" not in done.output + done.errors
    return [json.loads(line) for line in done.output.splitlines() if line.startswith("[")]


@pytest.mark.slow
def test_nothing_in_a_folder_runs_whatever_is_piped_in(tmp_path: Path) -> None:
    """Every place where transformers looks for code, through every door, with "y" on the standard input."""
    said = open_every_folder(tmp_path, "y\n" * 1000, "every")
    assert {name for name, _, _ in said} > REFUSED
    for name, door, words in said:
        if name in REFUSED and words.startswith("rc "):  # a door that another file of the folder is enough for
            assert words == "rc 2" or (door, name) in OTHER_FILES, (name, door, words)
        elif name in REFUSED:
            assert words.startswith("ValueError"), (name, door, words)


OTHER_FILES = {(0, "bridge_words"), (0, "bridge_processor"), (0, "bridge_reference"), (1, "bridge_text_config")}
"""The model without its processor's files, and the other way round."""


def test_no_prompt_waits_for_an_answer(tmp_path: Path) -> None:
    """A standard input that says nothing: transformers would wait for fifteen seconds, folder by folder."""
    said = open_every_folder(tmp_path, None, "first")
    assert {name for name, _, words in said if words.startswith("ValueError")} == REFUSED - {
        name for _, name in OTHER_FILES if name != "bridge_text_config"
    }
