"""No code that lies in a model's folder runs, whoever opens it and whatever stands on the standard input."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from foreign_folders import BRIDGE, TAP, WORDS, make_foreign_folders
from limited import run_python

ROOT = Path(__file__).parents[1]
DOORS = """
import json, sys, warnings
warnings.simplefilter("ignore")
from pathlib import Path
import finetune.evaluate, finetune.train
from llm_bridge import RegionBridgeForConditionalGeneration as Bridge, RegionBridgeProcessor as Processor, RegionChat
from llm_bridge.__main__ import main as region_chat
from tap_tokenizer import TapRegionTokenizer
from tap_tokenizer.__main__ import main as tap_tokenizer

folders, demo, output = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
box = ["--box", "10", "10", "60", "60"]
doors = {
    "tap": [
        lambda f: TapRegionTokenizer.from_pretrained(f),
        lambda f: tap_tokenizer(["describe", demo, "--model", f, *box]),
        lambda f: finetune.train.main(["--language_model", folders["plain"], "--region_tokenizer", f, "--data", "no.jsonl",
                                       "--output_dir", output]),
    ],
    "bridge": [
        lambda f: Bridge.from_pretrained(f),
        lambda f: Processor.from_pretrained(f),
        lambda f: RegionChat.from_pretrained(f),
        lambda f: region_chat(["ask", demo, "What is it?", "--model", f, *box]),
        lambda f: region_chat(["chat", demo, "--model", f]),
        lambda f: finetune.evaluate.main(["--benchmark", "glyphs", "--model", f, "--output_dir", output]),
    ],
    "words": [
        lambda f: RegionChat.from_pretrained(f, mode="described", region_tokenizer="tap-tiny"),
        lambda f: Bridge.from_language_model(f, region_tokenizer="tap-tiny"),
        lambda f: region_chat(["ask", demo, "What is it?", "--model", f, "--mode", "described", "--region_tokenizer",
                               "tap-tiny", *box]),
    ],
    "adapter": [
        lambda f: Bridge.from_pretrained(f),
        lambda f: RegionChat.from_pretrained(f),
        lambda f: region_chat(["ask", demo, "What is it?", "--model", f, *box]),
    ],
}
for kind, tried in doors.items():
    for folder in folders[kind]:
        for number, door in enumerate(tried):
            try:
                said = f"rc {door(folder)}"[:40]
            except SystemExit as end:
                said = f"rc {end.code}"
            except (ValueError, OSError, ImportError) as error:
                said = f"{type(error).__name__}: {error}"
            print(json.dumps([Path(folder).name, number, said]), flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("stdin", ["y\n" * 500, None], ids=["yes", "silence"])
def test_nothing_in_a_folder_runs_and_nobody_is_asked(tmp_path: Path, stdin: str | None) -> None:
    """Every place where transformers looks for code, through every door, with "y" or nothing on the standard input."""
    import json

    witness = tmp_path / "witness"
    folders = {kind: list(map(str, own)) for kind, own in make_foreign_folders(tmp_path, witness).items()}
    folders["plain"] = str(WORDS)  # type: ignore[assignment]
    done = run_python(DOORS, json.dumps(folders), BRIDGE / "demo.png", tmp_path / "out", stdin=stdin, cpu_seconds=120)
    assert not witness.exists(), witness.read_text()
    assert done.code == 0, done.errors[-2000:]
    assert "Do you wish to run" not in done.output + done.errors
    said = [json.loads(line) for line in done.output.splitlines() if line.startswith("[")]
    assert len(said) == sum(
        len(folders[kind]) * doors for kind, doors in (("tap", 3), ("bridge", 6), ("words", 3), ("adapter", 3))
    )
    for name, door, words in said:
        print(name, door, words)
