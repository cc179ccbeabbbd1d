"""Caption scores: the reference implementation's known answers, with Java and without."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from finetune.tasks import captions
from finetune.tasks.captions import (
    caption_scores,
    choose_scorer,
    meteor,
    missing_for_ptb,
    plain_scores,
    plain_tokens,
    reference_scores,
)

needs_java = pytest.mark.skipif(missing_for_ptb() is not None, reason=missing_for_ptb() or "")

SAID = {
    "a": "a black dog on the grass",
    "b": "two red cups, side by side.",
    "c": "",
    "d": "the man's left hand holds a cup",
}
TRUE = {
    "a": ["a dog lying on green grass", "the black dog rests on the grass"],
    "b": ["two cups on a table"],
    "c": ["a window"],
    "d": ["left hand of the man", "a hand with a cup"],
}


@pytest.fixture(scope="module")
def known(shared: Path) -> Path:
    return shared / "data" / "metrics_known_answers"


def expected_of(known: Path, name: str) -> dict[str, Any]:
    return dict(json.loads((known / "expected.json").read_text())[name])


def check(scores: dict[str, float], expected: dict[str, Any]) -> None:
    for n, value in enumerate(expected["Bleu"], 1):
        assert scores[f"BLEU-{n}"] == pytest.approx(value, abs=1e-4)
    for ours, theirs in (("METEOR", "METEOR"), ("ROUGE-L", "ROUGE_L"), ("CIDEr", "CIDEr")):
        if ours in scores:
            assert scores[ours] == pytest.approx(expected[theirs], abs=1e-4)


def test_plain_tokens_are_words_of_letters_and_digits() -> None:
    assert plain_tokens("The man's T-shirt, No. 42: a “blue_ish” one!") == [
        "the", "man's", "t", "shirt", "no", "42", "a", "blue", "ish", "one",
    ]  # fmt: skip
    assert plain_tokens(" .,;") == []


def test_scores_equal_those_worked_out_by_hand() -> None:
    """One caption of five words, four of them right in order: numbers that fit on paper."""
    said, true = (
        {"x": ["a", "big", "dog", "runs", "fast"], "y": ["cat"]},
        {"x": [["a", "dog", "runs", "fast"]], "y": [["cat"]]},
    )
    scores = plain_scores(said, true)
    assert scores["BLEU-1"] == pytest.approx(5 / 6)
    assert scores["BLEU-2"] == pytest.approx(math.sqrt(5 / 6 * 2 / 4))
    precision, recall = 4 / 5, 1.0
    rouge = (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision)
    assert scores["ROUGE-L"] == pytest.approx((rouge + 1) / 2)
    # every word is in one of two references: idf log 2 for all. x: 4 of 5 words, 2 of 4 bigrams, 1 of 3 trigrams, no 4-gram
    similar = [4 / math.sqrt(5 * 4), 2 / math.sqrt(4 * 3), 1 / math.sqrt(3 * 2), 0.0]
    cider = (10 * math.exp(-1 / 72) * sum(similar) / 4 + 10 / 4) / 2
    assert scores["CIDEr"] == pytest.approx(cider)


def test_plain_equals_pycocoevalcap_on_the_same_tokens() -> None:
    pytest.importorskip("pycocoevalcap")
    said = {key: plain_tokens(text) for key, text in SAID.items()}
    true = {key: [plain_tokens(text) for text in texts] for key, texts in TRUE.items()}
    theirs = reference_scores(
        {key: [" ".join(words)] for key, words in said.items()},
        {key: [" ".join(words) for words in texts] for key, texts in true.items()},
    )
    ours = plain_scores(said, true)
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, abs=1e-6), name


@needs_java
def test_scores_with_java_are_those_that_pycocoevalcap_printed() -> None:
    """Printed by pycocoevalcap 1.2 itself, on Java 17, for the captions above; one of them is empty."""
    golden = {
        "BLEU-1": 0.7,
        "BLEU-2": 0.49705,
        "BLEU-3": 0.26035,
        "METEOR": 0.293547,
        "ROUGE-L": 0.402496,
        "CIDEr": 1.389032,
    }
    scores = caption_scores(SAID, TRUE, "ptb")
    for name, value in golden.items():
        assert scores[name] == pytest.approx(value, abs=1e-4), name


def test_scores_of_known_captions_without_a_tokenizer(known: Path) -> None:
    pytest.importorskip("pycocoevalcap")
    expected = expected_of(known, "single_image")
    said = {"0": expected["hypothesis"].split()}
    check(plain_scores(said, {"0": [text.split() for text in expected["references"]]}), expected)
    files = {
        name: (known / "nlg_eval_examples" / f"{name}.txt").read_text().splitlines() for name in ("hyp", "ref1", "ref2")
    }
    expected = expected_of(known, "two_sentences_two_references_no_ptb")
    hypotheses = {str(i): line.split() for i, line in enumerate(files["hyp"])}
    references = {str(i): [a.split(), b.split()] for i, (a, b) in enumerate(zip(files["ref1"], files["ref2"]))}
    check(plain_scores(hypotheses, references), expected)


@needs_java
def test_meteor_of_known_captions(known: Path) -> None:
    expected = expected_of(known, "single_image")
    assert meteor({"0": [expected["hypothesis"]]}, {"0": expected["references"]}) == pytest.approx(
        expected["METEOR"], abs=1e-4
    )


@needs_java
def test_scores_equal_published_ones_of_coco_captions(known: Path) -> None:
    folder = known.parent / "coco_tiny" / "annotations"
    references: dict[str, list[str]] = {}
    for split in ("train", "val"):
        for a in json.loads((folder / f"captions_{split}2017.json").read_text())["annotations"]:
            references.setdefault(str(a["image_id"]), []).append(a["caption"])
    everything = json.loads((known / "captions_val2014_fakecap_results.json").read_text())
    said = {str(p["image_id"]): p["caption"] for p in everything if str(p["image_id"]) in references}
    scores = caption_scores(said, references, "ptb")
    assert "METEOR" in scores
    check(scores, expected_of(known, "fakecap_on_coco_tiny"))
    plain = caption_scores(said, references, "plain")
    assert "METEOR" not in plain
    assert plain["CIDEr"] == pytest.approx(scores["CIDEr"], abs=0.05)  # near, but another protocol


def test_without_java_one_line_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captions.shutil, "which", lambda name: None)
    missing = missing_for_ptb()
    assert missing is not None
    assert "Java" in missing
    assert "\n" not in missing
    assert choose_scorer("auto") == "plain"
    with pytest.raises(ValueError, match=r"caption_scorer is ptb: .*Java"):
        choose_scorer("ptb")


def test_captions_and_references_need_the_same_ids() -> None:
    with pytest.raises(ValueError, match="one caption for each id"):
        caption_scores({"a": "x"}, {"a": ["x"], "b": ["y"]}, "plain")
