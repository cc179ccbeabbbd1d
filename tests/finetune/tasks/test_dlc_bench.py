"""DLC-Bench's aggregation, worked by hand, and judges of both kinds."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from finetune.tasks.dlc_bench import (
    JUDGE_PROMPT,
    DlcBench,
    benchmark_scores,
    judge_prompt,
    read_choice,
    read_questions,
    read_recognition,
    recognition_question,
    region_scores,
)
from finetune.tasks.judges import ServerJudge, read_template

RECOGNITION = {"question": "Right?", "choices": [["Yes", "correct"], ["No", "incorrect"]], "type": "recognition"}
POSITIVE = {
    "question": "Handle?",
    "choices": [["not told", 0], ["told, wrong", -1], ["told, right", 1]],
    "type": "positive",
}
HALF = {"question": "Lid?", "choices": [["not told", 0], ["told in part", 0.5], ["told", 1]], "type": "positive"}
NEGATIVE = {"question": "Spoon?", "choices": [["told", -1], ["not told", 1]], "type": "negative"}


@pytest.mark.parametrize(
    ("reply", "choices", "index"),
    [
        ("B. told, wrong", ["not told", "told, wrong"], 1),
        ("b", ["x", "y"], 1),
        ("The answer is y, surely", ["x1", "y"], 1),
        ("A. both cup and lid", ["cup", "lid"], 0),
        ("cup and lid", ["cup", "lid"], 1),
        ("a red cup", ["red", "red cup"], 1),
        ("cup", ["a tin", "a cup", "a large cup"], 2),
        ("c\nbecause", ["p", "q", "r"], 2),
        ("none of these", ["p1", "q1"], None),
        ("", ["p", "q"], None),
    ],
)
def test_a_reply_is_read_as_one_of_the_choices(reply: str, choices: list[str], index: int | None) -> None:
    assert read_choice(reply, choices) == index


def test_a_regions_scores() -> None:
    questions = [RECOGNITION, POSITIVE, HALF, NEGATIVE, NEGATIVE]
    assert region_scores(questions, ["Yes", "C", "B", "B", "A"]) == {
        "positive": 0.75,
        "negative": 0.0,
        "recognised": True,
    }
    # what is not recognised gains nothing, and still loses
    assert region_scores(questions, ["No", "C", "B", "B", "A"]) == {
        "positive": 0,
        "negative": -0.5,
        "recognised": False,
    }
    assert region_scores([RECOGNITION, POSITIVE], ["Yes", "what?"]) == {
        "positive": 0,
        "negative": None,
        "recognised": True,
    }
    with pytest.raises(ValueError, match="before the recognition"):
        region_scores([POSITIVE], ["A"])


def test_scores_are_means_over_regions() -> None:
    regions = [
        {"positive": 0.5, "negative": 1.0, "recognised": True},
        {"positive": -0.5, "negative": None, "recognised": False},
        {"positive": 0.75, "negative": 0.5, "recognised": True},
    ]
    scores = benchmark_scores(regions)
    assert scores == pytest.approx({"positive": 0.25, "negative": 0.75, "average": 0.5, "recognised": 2 / 3})
    with pytest.raises(ValueError, match="No region has a negative question"):
        benchmark_scores(regions[1:2])


def test_questions_and_prompts(tmp_path: Path) -> None:
    pytest.importorskip("inflect")
    assert "is the object in the description an apple" in recognition_question("apple")["question"].lower()
    assert "are the objects in the description cups" in recognition_question("cups")["question"].lower()
    assert "a bus" in recognition_question("bus")["question"]
    prompt = judge_prompt("a {question} mug", HALF)
    assert "a {question} mug" in prompt  # what a description holds is no field of the prompt
    assert "Lid?" in prompt
    assert "A. not told\nB. told in part\nC. told" in prompt
    bad = tmp_path / "prompt.txt"
    bad.write_text("Say {question}")
    with pytest.raises(ValueError, match="lacks"):
        read_template(str(bad), JUDGE_PROMPT, DlcBench.fields)


ONE = "Would you say that this is {a_class_name}?"
SEVERAL = "Would you say that these are {class_name}?"


@pytest.mark.parametrize(
    ("template", "name", "asked"),
    [
        (f"{ONE}\n{SEVERAL}\n", "apple", "Would you say that this is an apple?"),
        (f"{ONE}\n{SEVERAL}\n", "slippers", "Would you say that these are slippers?"),
        (f"{ONE}\n{SEVERAL}", "bus", "Would you say that this is a bus?"),
        # so the published prompts have it, for inflect before 7.6 took -ss for a plural
        (f"{ONE}\n{SEVERAL}", "wine glass", "Would you say that these are wine glass?"),
        (ONE, "slippers", "Would you say that this is a slippers?"),
        ("A {class_name}, and again {class_name}?", "cup", "A cup, and again cup?"),
    ],
)
def test_the_first_question_comes_from_a_template(template: str, name: str, asked: str, tmp_path: Path) -> None:
    pytest.importorskip("inflect")
    (tmp_path / "first.txt").write_text(template)
    assert recognition_question(name, read_recognition(str(tmp_path / "first.txt")))["question"] == asked


@pytest.mark.parametrize("template", ["Is it?", f"{ONE}\nAre they?", f"{ONE}\n{SEVERAL}\n{ONE}", ""])
def test_a_file_that_is_no_template_of_the_first_question_is_refused(template: str, tmp_path: Path) -> None:
    (tmp_path / "first.txt").write_text(template)
    with pytest.raises(ValueError, match="is not a template of the first question: expected a line for one object"):
        read_recognition(str(tmp_path / "first.txt"))


def test_prompts_follow_the_given_templates_to_the_byte(tmp_path: Path) -> None:
    """A template may have the names of fields that the benchmark's script has, and keeps its line's end."""
    pytest.importorskip("inflect")
    (tmp_path / "prompt.txt").write_text("Told:\n{pred_caption}\n\nAsked:\n{question_text_str}\n")
    template = read_template(str(tmp_path / "prompt.txt"), JUDGE_PROMPT, DlcBench.fields)
    first = recognition_question("apple", f"{ONE}\n{SEVERAL}")
    for question, asked in ((first, "Would you say that this is an apple?\nA. Yes\nB. No"),
                            (HALF, "Lid?\nA. not told\nB. told in part\nC. told")):  # fmt: skip
        prompt = judge_prompt("a {pred_caption} mug", question, template)
        assert prompt == f"Told:\na {{pred_caption}} mug\n\nAsked:\n{asked}\n"


class Handler(BaseHTTPRequestHandler):
    asked: list[dict[str, Any]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append({**body, "path": self.path, "key": self.headers.get("Authorization")})
        said = {"m": json.dumps({"choices": [{"message": {"content": " Yes \n"}}]}), "other": '{"error": 1}', "list": "[1]",
                "deep": "[" * 100_000, "none": ""}  # fmt: skip
        self.send_response(200)
        self.end_headers()
        self.wfile.write(said[body["model"]].encode())

    def log_message(self, *_: Any) -> None:
        pass


def test_a_judge_behind_a_server() -> None:
    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1"
    assert ServerJudge(url, "m", "secret")("Right?") == "Yes"
    (asked,) = Handler.asked
    assert asked["path"] == "/v1/chat/completions"
    assert asked["temperature"] == 0
    assert asked["key"] == "Bearer secret"
    assert asked["messages"] == [{"role": "user", "content": "Right?"}]
    for model in ("other", "list", "deep", "none"):
        with pytest.raises(ValueError, match="OpenAI-compatible"):
            ServerJudge(url, model)("Right?")
    server.shutdown()
    server.server_close()
    with pytest.raises(ValueError, match="is it running"):
        ServerJudge(url, "m")("Right?")
    with pytest.raises(ValueError, match="expected an address"):
        ServerJudge("localhost:8000", "m")


def test_questions_and_names_that_do_not_belong_together(tmp_path: Path) -> None:
    pytest.importorskip("inflect")
    qa, names = tmp_path / "qa.json", tmp_path / "class_names.json"
    with pytest.raises(ValueError, match=r"Found nothing at .*qa\.json"):
        read_questions(qa)
    qa.write_text(json.dumps({"1": [POSITIVE], "2": [NEGATIVE]}))
    with pytest.raises(ValueError, match=r"Found nothing at .*class_names\.json"):
        read_questions(qa)
    names.write_text(json.dumps({"1": "cup"}))
    with pytest.raises(ValueError, match=r"qa\.json has 1 region that .*class_names\.json lacks \(2\)"):
        read_questions(qa)
    names.write_text(json.dumps(dict.fromkeys("123456", "cup")))
    with pytest.raises(ValueError, match=r"class_names\.json has 4 regions that .*qa\.json lacks \(3, 4, 5, …\)"):
        read_questions(qa)
    names.write_text(json.dumps({"1": "cup", "2": None}))
    with pytest.raises(ValueError, match="has None for region 2, expected the name of its class"):
        read_questions(qa)
    names.write_bytes(b"\xef\xbb\xbf" + json.dumps({"1": "cup", "2": "lid"}).encode())
    questions = read_questions(qa)
    assert [q["type"] for q in questions["2"]] == ["recognition", "negative"]
    for bad in ({**POSITIVE, "choices": []}, {**POSITIVE, "type": "other"}, {"question": "x"}, "x",
                {**POSITIVE, "choices": [["a", None]]}, {**POSITIVE, "choices": [[str(n), 0] for n in range(6)]}):  # fmt: skip
        qa.write_text(json.dumps({"1": [POSITIVE], "2": [bad]}))
        with pytest.raises(ValueError, match="question of another form for region 2"):
            read_questions(qa)
    names.write_bytes('{"1": "tütü"}'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"class_names\.json is not UTF-8"):
        read_questions(qa)
