"""JSON as people bring it: what Python's parser takes is taken, wherever a file is cut; what is none is named by its place."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("datasets")

import finetune.data.json_files as json_files
from finetune.data.json_files import MAX_DEPTH, JsonError, JsonFile, parse_json, read_json, read_json_lines, read_text


def test_a_byte_order_mark_is_not_part_of_the_text(tmp_path: Path) -> None:
    assert parse_json(b'\xef\xbb\xbf{"a": "\xc3\xa9"}') == {"a": "é"}
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf [1, 2]\n")
    assert parse_json((tmp_path / "a.json").read_bytes()) == [1, 2]
    with closing(JsonFile(tmp_path / "a.json")) as file:
        assert list(file.items()) == [1, 2]


@pytest.mark.parametrize(("text", "words"), [
    ("", "character|char 0"), ("{", "char 1"), ("[1, 2] x", "there is more text after its end, at character 7"),
    ("[1,,2]", "char 3"),
    ('["a]', "Unterminated"), (b"\xff\xfe", "not UTF-8: invalid start byte at byte 0"),
])  # fmt: skip
def test_invalid_json_is_refused_with_its_position(text: str | bytes, words: str) -> None:
    with pytest.raises(JsonError, match=words):
        parse_json(text)


@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"a":'])
def test_nesting_is_limited(opening: str, tmp_path: Path) -> None:
    closing_marks = "".join({"[": "]", "{": "}"}[mark] for mark in reversed(opening) if mark in "[{")
    marks = len(closing_marks)
    for times in (MAX_DEPTH // marks, MAX_DEPTH // marks + 1, 10_000):
        text = opening * times + "0" + closing_marks * times
        (tmp_path / "deep.json").write_text(f"[{text}]")
        if times * marks <= MAX_DEPTH:
            assert parse_json(text)
            with closing(JsonFile(tmp_path / "deep.json")) as file:
                assert list(file.items()) == [parse_json(text)]
            continue
        with pytest.raises(JsonError, match="nested more than 100 deep"):
            parse_json(text)
        with closing(JsonFile(tmp_path / "deep.json")) as file, pytest.raises(ValueError, match=r"deep\.json.*nested"):
            list(file.items())


def test_brackets_in_strings_do_not_count_as_nesting() -> None:
    text = json.dumps(["[" * 500, '"[{\\', {"[": "{" * 500}])
    assert parse_json(text) == json.loads(text)


def test_numbers_of_any_size_are_read() -> None:
    assert parse_json("[1e400, -Infinity]") == [float("inf"), float("-inf")]
    assert parse_json(f"[{10**30}]") == [10**30]
    assert parse_json(f"[{'9' * 5000}, 1.5, 2]") == [float("inf"), 1.5, 2]
    assert parse_json("NaN") != parse_json("NaN")


def some_value(random_: random.Random, depth: int = 0) -> Any:
    kind = random_.randrange(8 if depth < 3 else 6)
    if kind == 6:
        return [some_value(random_, depth + 1) for _ in range(random_.randrange(4))]
    if kind == 7:
        return {some_text(random_): some_value(random_, depth + 1) for _ in range(random_.randrange(4))}
    numbers = (random_.randrange(-(10**6), 10**25), random_.uniform(-1, 1) * 10.0 ** random_.randrange(-30, 30))
    return (None, True, some_text(random_), some_text(random_), *numbers)[kind]


def some_text(random_: random.Random) -> str:
    return "".join(random_.choice('ab"\\[]{},:\n/é€😀 \ud83d') for _ in range(random_.randrange(12)))


def test_reading_does_not_depend_on_chunk_borders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random_ = random.Random(0)
    path = tmp_path / "cut.json"
    for number in range(400):
        items = [some_value(random_) for _ in range(random_.randrange(6))]
        indent = random_.choice([None, 1])
        text = json.dumps({"before": [[1], 2], "wanted": items}, ensure_ascii=number % 2 == 0, indent=indent)
        path.write_text(text, encoding="utf-8", errors="replace")
        expected = json.loads(path.read_text(encoding="utf-8"))["wanted"]
        monkeypatch.setattr(json_files, "_CHUNK", random_.randrange(1, 9))
        with closing(JsonFile(path)) as file:
            found = {name: list(file.items()) for name in file.members()}
            file.end()
        assert found["wanted"] == expected


def test_a_truncated_file_is_always_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = json.dumps([{"id": 12, "box": [1.5, -2e30, True, None], "name": 'a "b" \\ é'}, "c"])
    for chunk in (3, 1 << 20):
        monkeypatch.setattr(json_files, "_CHUNK", chunk)
        for end in range(len(text)):
            (tmp_path / "torn.json").write_text(text[:end])
            with (
                closing(JsonFile(tmp_path / "torn.json")) as file,
                pytest.raises(ValueError, match=r"torn\.json.*character"),
            ):
                list(file.items())


@pytest.mark.parametrize(("data", "words"), [
    (b"\x1f\x8b\x08\x00", "compressed: unpack it"), (b"PK\x03\x04", "zip archive: unpack it"),
    ('["a"]'.encode("utf-16"), "UTF-16: save it as UTF-8"), (b'["\xff"]', "not UTF-8"),
])  # fmt: skip
def test_files_of_other_forms_are_named(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "other.json").write_bytes(data)
    with pytest.raises(ValueError, match=words):
        list(JsonFile(tmp_path / "other.json").items())
    with pytest.raises(ValueError, match="no file"):
        JsonFile(tmp_path)


BOMBED = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
import finetune.data.__main__ as data
from finetune.records import load_rows
from finetune.data.json_files import read_json
resource.setrlimit(resource.RLIMIT_DATA, (2 << 30, 2 << 30))
folder = Path(sys.argv[1])
deep = "[" * 10**6 + "]" * 10**6
(folder / "coco.json").write_text('{"images": [{"id": 1, "extra": ' + deep + "}]}")
(folder / "list.json").write_text(deep)
record = '{"image": "a.jpg", "width": 6, "height": 4, "conversations": [], "regions": ' + deep + "}"
(folder / "records.jsonl").write_text(record)
common = ["--images", str(folder), "--output", str(folder / "o.jsonl")]
for name in ("coco", "lvis", "grit"):
    assert data.main(["convert", name, "--annotations", str(folder / "coco.json"), *common]) == 2
for name in ("osprey", "pixelrefer", "gar_bench", "ferret_bench"):
    flags = ["--kind", "conversation"] if name == "osprey" else []
    assert data.main(["convert", name, "--annotations", str(folder / "list.json"), *common, *flags]) == 2
assert data.main(["validate", "--data", str(folder / "records.jsonl")]) == 1
for read, path in ((load_rows, "records.jsonl"), (read_json, "list.json")):
    try:
        read(folder / path)
    except ValueError as error:
        assert path in str(error)
    else:
        raise AssertionError(path)
# VmHWM, since ru_maxrss begins with what the process held that started this one
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
assert peak < 2 << 20, f"{peak} KiB"
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
def test_a_million_brackets_take_little_memory_in_every_command(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BOMBED, str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=300, env={**os.environ, "HF_HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    assert done.stderr.count("nested more than 100 deep") == 7


def test_a_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf" + '{"a": "ü"}'.encode())
    assert read_json(path) == {"a": "ü"}
    assert list(read_json_lines(path)) == [{"a": "ü"}]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_another_encoding_is_named_with_its_file(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes('{"a": "ü"}'.encode(encoding))
    for read in (read_text, read_json, lambda path: list(read_json_lines(path))):
        with pytest.raises(ValueError, match=r"a\.json is not UTF-8 text .*: save it as UTF-8"):
            read(path)


def test_truncated_and_missing_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": 1')
    with pytest.raises(ValueError, match=r"a\.json is not JSON"):
        read_json(path)
    path.write_text('{"a": 1}\n\n[1]\n')
    with pytest.raises(ValueError, match=r"a\.json, line 3 holds a list, expected an object"):
        list(read_json_lines(path))
    path.write_text('{"a": 1}\n{"b')
    with pytest.raises(ValueError, match=r"a\.json, line 2 is not JSON"):
        list(read_json_lines(path))
    for nothing in (tmp_path / "none.json", tmp_path):
        with pytest.raises(ValueError, match="Found no file at"):
            read_text(nothing)


def test_only_a_line_feed_ends_a_line(tmp_path: Path) -> None:
    """Answers hold what a model says, and Unicode has more ends of lines than JSON lines have."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"answer": "one\u2028two\x85three"}\n', encoding="utf-8")
    assert list(read_json_lines(path)) == [{"answer": "one\u2028two\x85three"}]
