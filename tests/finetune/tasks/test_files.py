"""Files that people bring: a byte-order mark is read over, other encodings are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.tasks.files import read_json, read_json_lines, read_text


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
