"""`region-chat describe`: what it prints and draws of a picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from shell import BOXES, DEMO, FLAGS, Shell

from llm_bridge import RegionChat
from llm_bridge.cli import main

said = Shell("region-chat", main).said


def test_a_description_comes_with_its_regions(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """That of the bundled model with a name at its end, because it was not taught to give any."""
    ask = RegionChat.ask

    def named(self: RegionChat, *words: str, **options: object) -> str:
        answer = f"{ask(self, *words, **options)} beside region2"  # type: ignore[arg-type]
        self.messages[-1]["content"] = answer
        return answer

    monkeypatch.setattr(RegionChat, "ask", named)
    chat = RegionChat.from_pretrained("region-chat-tiny")
    answer = chat.describe(DEMO, boxes=BOXES)
    assert said(capsys, "describe", DEMO, *FLAGS) == f"{answer}\n"
    record = json.loads(said(capsys, "describe", DEMO, *FLAGS, "--json", "--save", tmp_path / "out.png"))
    assert (record["answer"], record["mentioned"]) == (answer, ["region2"])
    assert [region["name"] for region in record["regions"]] == ["region1", "region2"]
    assert [region["box"] for region in record["regions"]] == BOXES
    assert [region["mask"] for region in record["regions"]] == chat.regions().coco_rle()
    with Image.open(tmp_path / "out.png") as drawn, Image.open(DEMO) as plain:
        assert drawn.tobytes() != plain.convert("RGB").tobytes()
