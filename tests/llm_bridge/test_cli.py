"""region-chat in the shell: ask of pictures and folders, a conversation line by line, and exit codes."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image
from shell import BOXES, DEMO, FLAGS, LARGER, Shell, folder_of_two

from llm_bridge import RegionChat
from llm_bridge.cli import main
from llm_bridge.terminal_chat import COMMANDS, HELP

said, refused = Shell("region-chat", main).said, Shell("region-chat", main).refused


@pytest.fixture(scope="module")
def chat() -> RegionChat:
    return RegionChat.from_pretrained("region-chat-tiny")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return folder_of_two(tmp_path)


def test_ask_answers(capsys: pytest.CaptureFixture[str], chat: RegionChat, tmp_path: Path) -> None:
    chat.reset()
    answer = chat.ask(LARGER, image=DEMO, boxes=BOXES)
    assert said(capsys, "ask", DEMO, LARGER, *FLAGS) == f"{answer}\n"
    record = json.loads(said(capsys, "ask", DEMO, LARGER, *FLAGS, "--json", "--save", tmp_path / "out.png"))
    assert record["answer"] == answer
    assert record["question"] == LARGER
    assert [region["name"] for region in record["regions"]] == ["region1", "region2"]
    assert record["mentioned"] == list(chat.mentioned(answer)) != []
    assert [region["mask"] for region in record["regions"]] == chat.regions().coco_rle()
    assert [region["box"] for region in record["regions"]] == BOXES
    assert [region["caption"] for region in record["regions"]] == [own.caption for own in chat.baseline()]
    with Image.open(tmp_path / "out.png") as drawn:
        assert drawn.size == (512, 512)


def test_points_and_masks_in_their_order(capsys: pytest.CaptureFixture[str], chat: RegionChat, tmp_path: Path) -> None:
    mask = Image.new("1", (512, 512))
    mask.paste(1, (190, 400, 260, 460))
    mask.save(tmp_path / "mask.png")
    flags = ["--point", 398, 240, "--mask", tmp_path / "mask.png"]
    chat.reset()
    answer = chat.ask(LARGER, image=DEMO, points=[[[398, 240]], None], masks=[None, mask])
    assert said(capsys, "ask", DEMO, LARGER, *flags) == f"{answer}\n"


def test_ask_of_a_folder(capsys: pytest.CaptureFixture[str], chat: RegionChat, folder: Path) -> None:
    flags = ["--boxes", folder / "boxes.csv", "--output"]
    said(capsys, "ask", folder / "pictures", LARGER, *flags, folder / "both.jsonl")
    lines = [json.loads(line) for line in (folder / "both.jsonl").read_text().splitlines()]
    chat.reset()
    assert [line["image"] for line in lines] == ["a.png", "b.png"]
    assert [entry["answer"] for entry in lines[1]["answers"]] == [chat.ask(LARGER, image=DEMO, boxes=BOXES)]
    (entry,) = lines[1]["answers"]
    assert [region["box"] for region in entry["regions"]] == BOXES
    assert [region["name"] for region in entry["regions"]] == ["region1", "region2"]
    assert [region["mask"] for region in entry["regions"]] == chat.regions().coco_rle()
    assert entry["mentioned"] == list(chat.mentioned()) != []
    said(capsys, "ask", folder / "pictures", "What is <region>?", *flags, folder / "each.jsonl")
    line = json.loads((folder / "each.jsonl").read_text().splitlines()[0])
    for entry, box in zip(line["answers"], BOXES):
        chat.reset()
        assert entry["answer"] == chat.ask("What is <region>?", image=DEMO, boxes=[box])
    three = "<region>, <region> or <region>?"
    assert "3 <region> and a.png has 2" in refused(
        capsys, "ask", folder / "pictures", three, *flags, folder / "x.jsonl"
    )


def test_a_conversation_line_by_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, chat: RegionChat, tmp_path: Path
) -> None:
    box = " ".join(str(x) for x in BOXES[1])
    lines = [
        "What is <region>?", "/box 1 2", "/save nothing.txt", f"/box {box}", "/box 600 600 700 700", "/box 9 9 5 5",
        "/point 5 5", "/undo", "Is region1 larger than <region>?",
        "What is <region>?", "/undo", "Is region1 larger than <region>?",
        "/json talk.json", "/save talk.png", "/new", f"/box {box}", "What is <region>?",
        "/quit", "never",
    ]  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    out = said(capsys, "chat", DEMO, "--box", *BOXES[0])
    chat.reset()
    first = chat.ask("What is <region>?", image=DEMO, boxes=BOXES[:1])
    second = chat.ask("Is region1 larger than <region>?", boxes=BOXES[1:])
    talk = [{"role": role, "content": words} for role, words in chat.history]
    chat.reset()
    third = chat.ask("What is <region>?", image=DEMO, boxes=BOXES[1:])
    answers = out.splitlines()[4:]
    assert answers[0] == first
    assert "expected 4 numbers" in answers[1]
    assert "what kind of picture" in answers[2]
    assert answers[3].startswith("Region 3: box")  # outside: does not wait for a question
    assert "9" in answers[4]
    assert answers[5:7] == ["Took back /point 5 5.", second]
    assert answers[7].startswith(
        "The question has 1 <region>, and no new region is marked: /box X1 Y1 X2 Y2, /point X Y or"
    )
    assert answers[7].endswith("or speak of one that you asked about before by its name, as in region1.")
    assert answers[8] == f'Took back "Is region1 larger than region2?" and its answer. /box {box} waits again.'
    assert answers[9:] == [second, "Wrote talk.json.", "Wrote talk.png.", third]
    assert json.loads((tmp_path / "talk.json").read_text()) == {"messages": talk}
    assert (tmp_path / "talk.png").is_file()


def test_what_is_read_is_not_overwritten(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    picture = tmp_path / "p.png"
    shutil.copyfile(DEMO, picture)
    (tmp_path / "link.png").symlink_to(picture)
    before = picture.read_bytes()
    monkeypatch.chdir(tmp_path)
    for output in (picture, "p.png", "link.png"):
        assert "would overwrite" in refused(capsys, "ask", picture, LARGER, *FLAGS, "--save", output)
    assert "would overwrite" in refused(capsys, "demo", "--output", DEMO)
    lines = ["Which is larger, <region> or <region>?", "/save link.png", "/json p.png", "/quit"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    assert said(capsys, "chat", picture, *FLAGS).count("would overwrite") == 2
    assert picture.read_bytes() == before
    assert (tmp_path / "link.png").is_symlink()


def test_a_truncated_picture_in_a_folder_is_named(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    command = ["ask", folder / "pictures", LARGER, "--boxes", folder / "boxes.csv", "--output", folder / "o.jsonl"]
    whole = (folder / "pictures" / "a.png").read_bytes()
    (folder / "pictures" / "a.png").write_bytes(whole[:9000])
    assert main([str(word) for word in command]) == 3
    assert re.search(r"^a.png: .*decoded.*\n1 of 2 pictures", capsys.readouterr().err, re.MULTILINE)
    (folder / "pictures" / "a.png").write_bytes(whole)
    said(capsys, *command)
    lines = [json.loads(line) for line in (folder / "o.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines] == ["a.png", "b.png"]


def test_bad_input_is_one_line_and_code_2(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    assert "--port 0: expected 1 to 65535" in refused(capsys, "app", "--port", 0)
    pictures, table, output = folder / "pictures", folder / "boxes.csv", folder / "o.jsonl"
    (folder / "one.csv").write_text("image,x1,y1,x2,y2\na.png,1,1,90,90\n")
    for message, arguments in (
        ("no image file", ["ask", folder / "none.png", "what", *FLAGS]),
        ("Found 1 <region> placeholder but 2 regions", ["ask", DEMO, "What is <region>?", *FLAGS]),
        ("Got no region", ["ask", DEMO, "What is region1?"]),
        ("Got no region", ["ask", DEMO, "what", "--save", folder / "out.png", "--model", "not-asked-for"]),
        (
            "there are regions 1 to 2",
            ["ask", DEMO, "Is <region> <region> <region9>?", *FLAGS, "--model", "not-asked-for"],
        ),
        ("for a folder", ["ask", DEMO, "what", "--boxes", table]),
        ("needs its regions", ["ask", pictures, "what", "--output", output]),
        ("exists", ["ask", pictures, "what", "--boxes", table, "--output", table, "--model", "not-asked-for"]),
        ("are for one picture", ["ask", pictures, "what", "--boxes", table, "--output", output, "--json"]),
        (
            "a.png has 1 region in the table",
            [
                "ask",
                pictures,
                "Is <region1> like <region2>?",
                "--boxes",
                folder / "one.csv",
                "--output",
                output,
                "--model",
                "not-asked-for",
            ],
        ),
        ("--max_new_tokens is 0", ["ask", DEMO, "what", *FLAGS, "--max_new_tokens", 0]),
        ("no folder at", ["ask", DEMO, "what", *FLAGS, "--model", folder / "none"]),
        ("needs a region tokenizer", ["ask", DEMO, "what", *FLAGS, "--mode", "described", "--model", "some/model"]),
        ("no image file", ["find", folder / "none.png", "the red umbrella", "--model", "not-asked-for"]),
        ("A folder needs --output found.jsonl", ["find", pictures, "the red umbrella", "--model", "not-asked-for"]),
        ("A folder needs a phrase", ["find", pictures, "--output", folder / "f.json", "--model", "not-asked-for"]),
        ("--phrases is for a folder", ["find", DEMO, "--phrases", folder / "p.csv", "--model", "not-asked-for"]),
        (
            "for a folder of pictures",
            ["find", DEMO, "umbrella", "--output", folder / "f.json", "--model", "not-asked-for"],
        ),
        ("expected words", ["find", DEMO, " ", "--model", "not-asked-for"]),
        ("names a region", ["find", DEMO, "what is left of region1", *FLAGS, "--model", "not-asked-for"]),
        ("--most is 1, expected 2", ["find", DEMO, "the red umbrella", "--most", 1, "--model", "not-asked-for"]),
        ("--threshold is 2.0", ["find", DEMO, "the red umbrella", "--threshold", 2, "--model", "not-asked-for"]),
        ("no folder", ["find", DEMO, "umbrella", "--save", folder / "none" / "x.png", "--model", "not-asked-for"]),
        ("no image file", ["chat", DEMO, "--mask", folder / "none.png"]),
        ("queue is 0", ["app", "--queue", 0]),
        ("no folder", ["demo", "--output", folder / "none" / "x.png"]),
    ):
        assert message in refused(capsys, *arguments), arguments
    assert not output.exists()


def test_help_says_what_a_command_takes(capsys: pytest.CaptureFixture[str]) -> None:
    shown = {}
    for command in ("ask", "find", "chat"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        shown[command] = " ".join(capsys.readouterr().out.split())
        assert "--box and --point together are two regions" in shown[command]
    assert "folder of pictures" not in shown["chat"]
    assert "everything in the picture" in shown["find"]
    assert "--boxes CSV" in shown["ask"]
    assert "to continue after an interruption" in shown["ask"]


@pytest.mark.slow
def test_the_examples_of_help_work(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each as it is printed; the first and the page, until its address is written, in processes of their own, as in a shell."""
    shutil.copyfile(DEMO, folder / "picture.png")
    seen = 0
    for command in ("ask", "find", "chat", "demo", "app"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        shown = capsys.readouterr().out
        for line in re.findall(r"^  (region-chat .*)$", shown, re.MULTILINE):
            seen += 1
            if command == "app":
                pytest.importorskip("uvicorn")
                line = re.sub(r" --port \d+", "", line)  # which may be taken here: the first free one
            if command != "demo":
                line += " --model region-chat-tiny"  # the default needs a second more to load
            if seen > 1 and command != "app":
                monkeypatch.chdir(folder)
                monkeypatch.setattr("sys.stdin", io.StringIO("What is region1?\n"))
                assert main(shlex.split(line)[1:]) == 0, f"{line}: {capsys.readouterr().err}"
                assert capsys.readouterr().out.strip(), line
                continue
            with begun(line, folder) as shell:
                if command == "app":
                    assert shell.stdout is not None
                    assert "http://127.0.0.1:" in shell.stdout.readline()
                    shell.send_signal(signal.SIGINT)
                    shell.communicate(timeout=60)
                    assert "0 when Ctrl+C ends the page" in shown
                    assert shell.returncode == 0
                    continue
                out, err = shell.communicate("What is region1?\n", timeout=120)
            assert shell.returncode == 0, f"{line}: {err}"
            assert out.strip(), line
    assert seen == 8
    assert len((folder / "answers.jsonl").read_text().splitlines()) == 2  # a line of each picture


@contextmanager
def begun(line: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """The command in a process of its own, which hears Ctrl+C even if the tests run in the background; killed at the end."""
    root = str(Path(__file__).parents[2])
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        f"sys.path.insert(0, {root!r}); from llm_bridge.cli import main; sys.exit(main())"
    )
    pipe = subprocess.PIPE
    words = [sys.executable, "-u", "-c", code, *shlex.split(line)[1:]]
    with subprocess.Popen(words, cwd=folder, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_errors_in_chat_mention_its_own_commands(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["What is <region>?", "What is it?", "/box 177 392 271 470", "/point 5 5", "What is <region>?"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    assert said(capsys, "chat", DEMO).splitlines()[4:] == [
        *["No region is marked yet: /box X1 Y1 X2 Y2, /point X Y or /mask PICTURE marks one; then ask."] * 2,
        "The question has 1 <region>, and 2 new regions are marked: write <region> once for each, or take the others back "
        "with /undo.",
    ]


def test_commands_of_a_chat_are_named_to_those_who_guess(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(["/undo", "/foo", "/save", "/help"])))
    nothing, unknown, incomplete, *helped = said(capsys, "chat", DEMO).splitlines()[4:]
    assert nothing.startswith("There is nothing to take back")
    assert unknown == (
        "There is no command /foo: there are /box, /point, /mask, /undo, /save, /json, /new, /help, /quit."
    )
    assert incomplete == "/save needs more: /save PICTURE."
    assert helped == HELP.splitlines()
    assert all(f"/{command}" in HELP for command in COMMANDS if command != "help")


def test_a_question_without_a_region_says_of_which_it_is_asked(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    for question, words in (("What are these?", "about all of the regions together"), (LARGER, None)):
        assert main(["ask", str(DEMO), question, *map(str, FLAGS)]) == 0
        told = capsys.readouterr().err
        assert (f"Note: The question has no <region>, so it is asked {words}." in told) == (words is not None)
    command = ["ask", folder / "pictures", "What are these?", "--boxes", folder / "boxes.csv", "--output", folder / "o"]
    assert main([str(word) for word in command]) == 0
    assert "it is asked in each picture about all of its regions together" in capsys.readouterr().err


def test_an_unknown_flag_is_refused_beside_its_commands_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["ask", "picture.png", "What is <region>?", "--colour", "red"])
    told = capsys.readouterr().err
    assert told.startswith("usage: region-chat ask ")
    assert told.endswith("region-chat ask: error: unrecognized arguments: --colour red\n")


def test_what_the_bundled_models_cannot_do_is_said_beside_every_answer(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["ask", str(DEMO), "What is <region>?", "--box", "177", "392", "271", "470"]) == 0
    assert capsys.readouterr().err.count("it misreads photographs") == 1
    lines = ["What is <region>?", "What colour is region1?", "/quit"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    assert main(["chat", str(DEMO), "--box", "177", "392", "271", "470"]) == 0
    assert capsys.readouterr().err.count("it misreads photographs") == 2
