"""Bridges on the Hub, a local one: uploaded with a card, loaded through the Auto classes in a fresh process."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_hub import HubServer, run_with_hub
from PIL import Image

import llm_bridge
from tap_tokenizer import TapRegionTokenizer

HEAD = """
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
from llm_bridge import *
from tap_tokenizer import TapRegionTokenizer
ask = dict(question="is <region> red", image="p.png", boxes=[[5, 5, 40, 30]], max_new_tokens=4)
"""
BUILD = (
    HEAD
    + """
tokenizer = TapRegionTokenizer.from_pretrained("me/tap")
bridge = RegionBridgeForConditionalGeneration.from_language_model("me/lm", region_tokenizer=tokenizer)
processor = RegionBridgeProcessor.for_bridge(bridge.config, region_tokenizer=tokenizer)
"""
)


@pytest.fixture
def hub(
    tmp_path: Path, language_model, text_tokenizer, tiny_tokenizer: TapRegionTokenizer, picture: Image.Image,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[HubServer]:  # fmt: skip
    """A Hub with a language model and a region tokenizer; a picture in the working folder."""
    root = tmp_path / "hub"
    language_model().save_pretrained(root / "me" / "lm")
    text_tokenizer().save_pretrained(root / "me" / "lm")
    tiny_tokenizer.save_pretrained(root / "me" / "tap")
    picture.save(tmp_path / "p.png")
    monkeypatch.chdir(tmp_path)
    server = HubServer(root)
    yield server
    server.server.shutdown()


def said(code: str, hub: HubServer, home: Path) -> list[str]:
    done = run_with_hub(code, hub, home)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_whole_bridge_goes_up_and_comes_down(hub: HubServer, tmp_path: Path) -> None:
    here = said(
        BUILD + """
print(bridge.push_to_hub("me/bridge", tags=["astronauts"]))
processor.push_to_hub("me/bridge")
print(RegionChat(bridge, processor).ask(**ask))
""", hub, tmp_path / "home")  # fmt: skip
    assert here[0].startswith(hub.address)
    card = (hub.root / "me" / "bridge" / "README.md").read_text()
    assert "language model and projector" in card
    assert 'from_pretrained("me/bridge")' in card
    assert "base_model: me/lm" in card
    assert "astronauts" in card
    assert not (hub.root / "me" / "bridge" / "region_tokenizer").exists()  # by reference: it is on the Hub itself
    there = said(
        HEAD + """
print(RegionChat.from_pretrained("me/bridge").ask(**ask))
model, processor = AutoModelForImageTextToText.from_pretrained("me/bridge"), AutoProcessor.from_pretrained("me/bridge")
print(type(model).__name__, type(processor).__name__, processor.region_tokenizer.source)
print(RegionChat(model.eval(), processor).ask(**ask))
""", hub, tmp_path / "another home")  # fmt: skip
    assert there[0] == there[2] == here[1]
    kinds, source = there[1].split(" {")
    assert kinds == "RegionBridgeForConditionalGeneration RegionBridgeProcessor"
    assert ast.literal_eval("{" + source) == {"source": "me/tap"}


def test_an_adapter_goes_up_and_comes_down(hub: HubServer, tmp_path: Path) -> None:
    """Only what was trained is sent; the card of the repository is its owner's."""
    here = said(
        BUILD + """
import torch
add_lora(bridge, r=2)
for name, parameter in bridge.named_parameters():
    if "lora_B" in name:
        torch.nn.init.normal_(parameter)
bridge.push_to_hub("me/adapter")
processor.push_to_hub("me/adapter", whole=True)
print(RegionChat(bridge.eval(), processor).ask(**ask))
bridge.config.language_model = None
bridge.push_to_hub("me/nameless")
""", hub, tmp_path / "home")  # fmt: skip
    repository = hub.root / "me" / "adapter"
    assert "LoRA of rank 2" in (repository / "README.md").read_text()
    assert not (repository / "model.safetensors").exists()
    assert (repository / "region_tokenizer" / "config.json").is_file()
    (repository / "README.md").write_text("---\nlicense: mit\n---\nMy own words.")
    there = said(
        HEAD + """
chat = RegionChat.from_pretrained("me/adapter")
print(chat.ask(**ask))
chat.model.push_to_hub("me/adapter")
model = AutoModelForImageTextToText.from_pretrained("me/adapter")
print(RegionChat(model, AutoProcessor.from_pretrained("me/adapter")).ask(**ask))
model = AutoModelForImageTextToText.from_pretrained("me/nameless")
print(RegionChat(model, AutoProcessor.from_pretrained("me/adapter")).ask(**ask))
""", hub, tmp_path / "another home")  # fmt: skip
    assert there == [here[0], here[0], here[0]]
    assert (repository.with_name("nameless") / "language_model" / "model.safetensors").is_file()
    assert "My own words." in (repository / "README.md").read_text()


NAMES = """
from transformers import AutoModel, AutoProcessor, AutoTokenizer, pipeline
import llm_bridge  # after transformers' pipeline was imported
from tap_tokenizer import TapConfig, TapModel, TapProcessor, TapRegionTokenizer
from transformers import pipeline as named
box = [[177, 392, 271, 470]]
print(pipeline("region-captioning", model="tap-tiny")("p.png", boxes=box)[0]["caption"])
print(pipeline("region-captioning", model="region-chat-tiny")("p.png", boxes=box)[0]["caption"])
print(named("region-text-generation", model="region-chat-tiny")("p.png", text="What is <region>?", boxes=box))
for door, name in (
    (AutoModel, "tap-tiny"), (AutoModel, "region-chat-tiny"), (AutoProcessor, "tap-tiny"), (TapConfig, "tap-tiny"),
    (AutoProcessor, "region-chat-tiny"), (AutoTokenizer, "region-chat-tiny"), (TapProcessor, "tap-tiny"),
    (llm_bridge.RegionBridgeConfig, "region-chat-tiny"),
):
    print(type(door.from_pretrained(name)).__name__)
for door in (TapModel, TapConfig, TapProcessor, TapRegionTokenizer, llm_bridge.RegionBridgeConfig,
             llm_bridge.RegionBridgeForConditionalGeneration, llm_bridge.RegionBridgeProcessor, llm_bridge.RegionChat):
    try:
        door.from_pretrained("region-tiny")
    except ValueError as error:
        print("region-tiny" in str(error), "-tiny" in str(error).replace("region-tiny", ""))
try:
    named("region-captioning", model="tap-tinny")
except ValueError as error:
    print(error)
for load in (
    lambda: named("region-text-generation", model="me/nothing"),
    lambda: llm_bridge.RegionBridgeForConditionalGeneration.from_pretrained("me/nothing"),
    lambda: llm_bridge.RegionBridgeForConditionalGeneration.from_language_model("words-tiny", region_tokenizer="tap-tiny"),
):
    try:
        load()
    except OSError as error:
        print(error)
say = pipeline("image-text-to-text", model="region-chat-tiny")
print(say(images="p.png", text="What is <region>?", boxes=box, return_full_text=False)[0]["generated_text"])
"""


def test_bundled_names_are_never_looked_up_on_the_hub_and_missing_ones_once(hub: HubServer, tmp_path: Path) -> None:
    demo = Path(llm_bridge.__file__).parent / "pretrained" / "region-chat-tiny" / "demo.png"
    shutil.copyfile(demo, tmp_path / "p.png")
    lines = said(NAMES, hub, tmp_path / "home")
    asked = [path.split("/resolve/")[0] for method, path in hub.requests if method == "HEAD"]
    assert asked == ["me/nothing", "me/nothing", "words-tiny"]
    assert lines[:2] == ["a medium pink cloud", "a medium pink cloud"]
    assert "'generated_text': 'cloud'" in lines[2]
    assert lines[3:11] == [
        "TapModel", "RegionBridgeForConditionalGeneration", "TapProcessor", "TapConfig", "RegionBridgeProcessor",
        "TokenizersBackend", "TapProcessor", "RegionBridgeConfig",
    ]  # fmt: skip
    assert lines[11:19] == ["True True"] * 8
    assert lines[19] == (
        "Found neither a folder nor a bundled model tap-tinny: expected a bundled model (region-chat-smollm2, "
        "region-chat-tiny, tap-tiny), a folder, or a Hub repository as owner/name."
    )
    assert lines.pop().strip() == "cloud"
    refused = "\n".join(lines[20:])  # a Hub's own words may have lines
    assert refused.count("Found no me/nothing, here or on the Hub") == 2
    assert refused.count("Found no words-tiny here") == 1
    assert refused.count("The bundled models are region-chat-smollm2, region-chat-tiny, tap-tiny.") == 3
