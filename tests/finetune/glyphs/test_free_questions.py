"""Questions in the words of people: all are asked, none that measures is taught, and old records stay as they were."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("datasets")

from finetune.glyphs.free_questions import (
    FREE_FAMILIES,
    KNOWLEDGE_FAMILIES,
    KNOWLEDGE_WHICH,
    OR,
    PHRASING,
    FreeQuestion,
    FreeQuestions,
    form_of,
    load_words,
    reword,
)  # fmt: skip
from finetune.glyphs.questions import FAMILIES, Question, draw_question
from finetune.glyphs.records import GlyphScenesSource, QuestionBalance, glyph_record
from finetune.glyphs.scenes import KINDS, GlyphScene, make_scene
from finetune.instructions import SHIPPED, load_instructions

SCENES = 40

CONTRACTIONS = {
    "whats": "what is", "what's": "what is", "that's": "that is", "it's": "it is", "who's": "who is", "where's": "where is",
    "which's": "which is", "isn't": "is not", "aren't": "are not", "doesn't": "does not", "don't": "do not",
    "can't": "cannot", "i'm": "i am", "i'd": "i would", "let's": "let us", "colour": "color", "colours": "colors",
}  # fmt: skip


def plain(text: str) -> str:
    """A text without capitals, punctuation, contractions, and British spelling of colours."""
    words = re.findall(r"\{\w+\}|[a-z0-9']+", text.lower().replace("’", "'"))
    return " ".join(CONTRACTIONS.get(word, word) for word in words).replace("'", "")


def drawn(split: str, seed: int, count: int = SCENES) -> list[tuple[GlyphScene, list[Question]]]:
    balance, free = QuestionBalance(), FreeQuestions(split, seed)
    found = []
    for index in range(count):
        scene = make_scene(index, split, seed)
        visible = list(range(len(scene.objects)))
        found.append((scene, free.about(scene, visible, balance.questions(scene, visible))))
    return found


def test_no_phrasing_that_measures_is_one_that_is_taught() -> None:
    held_out = [plain(text) for texts in load_words("phrasings").values() for text in texts]
    assert len(set(held_out)) == len(held_out) >= 200
    taught = {plain(text) for texts in load_words("training_phrasings")["questions"].values() for text in texts}
    taught |= {plain(one.text) for one in load_instructions([SHIPPED])}
    random = np.random.RandomState(3)
    scenes = [make_scene(index, "train") for index in range(60)]
    own = [question for scene in scenes for family in FAMILIES if (question := draw_question(scene, family, random))]
    for question in own:
        said = form_of(question)[1]
        taught.add(plain(re.sub(r"\ban (?=\{)", "a ", _braced(question.text, said))))
    assert not taught & set(held_out)


def test_no_question_for_knowledge_is_an_instruction() -> None:
    held_out = {plain(entry["ask"]) for entry in load_words("knowledge")}
    assert not held_out & {plain(one.text) for one in load_instructions([SHIPPED])}


def _braced(text: str, said: dict[str, str]) -> str:
    for name, word in said.items():
        text = re.sub(rf"\b{word}\b", f"{{{name}}}", text)
    return text


def test_the_pool_of_training_has_ten_phrasings_of_everything() -> None:
    pool = load_words("training_phrasings")
    forms = {form_of(q)[0] for q in _questions(200)}
    assert forms == set(pool["questions"])
    assert set(pool["answers"]) == set(FAMILIES)
    for form, texts in pool["questions"].items():
        assert len({plain(text) for text in texts}) == len(texts) >= 10, form


def _questions(scenes: int) -> list[Question]:
    random = np.random.RandomState(7)
    drawn = (draw_question(make_scene(i, "train"), family, random) for i in range(scenes) for family in FAMILIES)
    return [question for question in drawn if question is not None]


def test_every_written_question_is_asked() -> None:
    asked: dict[str, set[str]] = defaultdict(set)
    for seed in (0, 1, 2):
        for _, questions in drawn("test", seed):
            for question in questions:
                assert isinstance(question, FreeQuestion)
                assert question.family in FREE_FAMILIES
                asked["knowledge" if question.family in KNOWLEDGE_FAMILIES else "phrasing"].add(question.written)
    assert asked["phrasing"] == {text for texts in load_words("phrasings").values() for text in texts}
    entries = load_words("knowledge")
    assert len(asked["knowledge"]) == sum(len([*entry.get("yes", ()), *entry.get("no", ())]) or 1 for entry in entries)
    assert len(asked["knowledge"]) >= 150


def test_other_words_keep_regions_answer_and_meaning() -> None:
    balance, free = QuestionBalance(), FreeQuestions("test-crowded", 0)
    for index in range(SCENES):
        scene = make_scene(index, "test-crowded")
        own = balance.questions(scene, range(len(scene.objects)))
        by_family = {question.family: question for question in own}
        for question in free.about(scene, range(len(scene.objects)), own):
            plain_one = by_family[question.family.removeprefix(PHRASING)]
            assert (question.answer, question.objects, question.choices) == (
                plain_one.answer, plain_one.objects, plain_one.choices,
            )  # fmt: skip
            for word in form_of(plain_one)[1].values():
                assert word in question.text
            assert "{" not in question.text


def test_only_the_test_split_asks_for_knowledge() -> None:
    for split, asks in (("test", True), ("test-compositional", False)):
        families = {question.family for _, questions in drawn(split, 0) for question in questions}
        assert bool(families & set(KNOWLEDGE_FAMILIES)) == asks


def test_knowledge_is_asked_of_the_right_kind() -> None:
    for scene, questions in drawn("test", 1):
        for question in questions:
            if question.family not in KNOWLEDGE_FAMILIES:
                continue
            kinds = [scene.objects[i].kind for i in question.objects]
            kind, _, ask = question.written.partition(": ")
            if question.family == KNOWLEDGE_WHICH:
                assert kinds[int(question.answer[-1]) - 1] == kind
                assert len(set(kinds)) == 3
                (entry,) = [e for e in load_words("knowledge") if (e.get("kind"), e["ask"]) == (kind, ask)]
                assert not set(kinds) & set(entry.get("not_beside", ()))
            else:
                assert kinds == [kind]


def test_the_file_of_knowledge_is_sound() -> None:
    answers = Counter[str]()
    for entry in load_words("knowledge"):
        assert {*entry.get("yes", ()), *entry.get("no", ()), *entry.get("not_beside", ())} <= set(KINDS)
        assert entry.get("kind", "star") in KINDS
        assert ("<region1>" in entry["ask"]) != ("among" in entry)
        if "accept" in entry:
            assert len(set(entry["accept"])) == len(entry["accept"]), entry
            assert all(
                isinstance(word, str) and word == word.strip().lower() and OR not in word for word in entry["accept"]
            )
            assert entry["kind"] not in entry["accept"], "to name the object is not to know about it"
        elif "among" not in entry:
            assert not set(entry["yes"]) & set(entry["no"])
            answers.update({"yes": len(entry["yes"]), "no": len(entry["no"])})
    assert answers["yes"] == answers["no"] >= 20


def test_the_first_scenes_have_the_same_free_questions_however_many_follow() -> None:
    assert drawn("test", 2)[:5] == drawn("test", 2, 5)


def test_shares_choose_words_and_sentences() -> None:
    plain_record = glyph_record(3, "train", 0)
    assert glyph_record(3, "train", 0, phrasings=0.0, sentences=0.0) == plain_record
    asked = glyph_record(3, "train", 0, phrasings=1.0)
    said = glyph_record(3, "train", 0, sentences=1.0)
    for other, same, changed in (
        (asked, slice(1, None, 2), slice(0, None, 2)),
        (said, slice(0, None, 2), slice(1, None, 2)),
    ):
        assert other.regions == plain_record.regions
        assert other.conversations[same] == plain_record.conversations[same]
        pairs = list(zip(other.conversations[changed], plain_record.conversations[changed], strict=True))
        assert all(mine.content != theirs.content for mine, theirs in pairs)
        assert [mine.type for mine, _ in pairs] == [theirs.type for _, theirs in pairs]
    assert all(turn.content.endswith(".") for turn in said.conversations[1::2])


def test_reworded_questions_are_filled_and_in_good_english() -> None:
    random = np.random.RandomState(11)
    for question in _questions(60):
        new = reword(question, 1, 1, random)
        for text in (new.text, new.answer):
            assert "{" not in text
            assert not re.search(r"\b[Aa] [aeiou]", text), text
        assert "<" not in new.answer
        assert new.text.count("<region1>") == 1
        assert ("<region2>" in new.text) == (len(question.objects) == 2)


@pytest.mark.parametrize("name", ["phrasings", "sentences"])
def test_a_share_above_one_is_refused(name: str, tmp_path: Path) -> None:
    source = GlyphScenesSource(output=str(tmp_path / "x.jsonl"), **{name: 1.5})
    with pytest.raises(ValueError, match=f"{name} is 1.5"):
        next(source.records())
