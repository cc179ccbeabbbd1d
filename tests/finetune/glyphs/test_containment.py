"""Free answers: right ones in many words, wrong ones, and those that say two things at once."""

from __future__ import annotations

import numpy as np
import pytest

from finetune.glyphs.containment import says_truth
from finetune.glyphs.free_questions import KNOWLEDGE_OPEN, KNOWLEDGE_WHICH, KNOWLEDGE_YES_NO, PHRASING, reword
from finetune.glyphs.questions import FAMILIES, draw_question
from finetune.glyphs.scenes import make_scene

PAIR = ("umbrella", "anchor")

RIGHT = [
    ("kind", "umbrella", "umbrella"),
    ("kind", "umbrella", "It's a small red Umbrella."),
    ("kind", "telephone", "That would be a phone!"),
    ("colour", "red", "The umbrella is red."),
    ("colour", "blue", "It is not red but blue."),
    ("colour", "orange", "Orange"),
    ("size", "medium", "It is medium-sized."),
    ("size", "large", "Quite big, I would say."),
    ("place", "top left", "In the upper left-hand corner."),
    ("place", "left", "At the center left of the picture."),
    ("place", "center", "It is in the middle."),
    ("caption", "a small red umbrella", "region1 shows an umbrella, which is small and red."),
    ("caption_place", "a small red umbrella at the bottom", "A small red umbrella, at the lower edge."),
    ("statement", "yes", "Yes, it is a red umbrella."),
    ("side", "no", "No."),
    ("same_kind", "no", "Nope, they are different."),
    ("statement", "yes", "Right."),
    ("larger", "region2", "region2"),
    ("larger", "region2", "Region 2 is larger than region1."),
    ("larger", "region2", "The anchor is larger than the umbrella."),
    ("larger", "region2", "region1 is the smaller one, and region2 is bigger."),
    ("nearest", "a small red umbrella", "It is a small red umbrella."),
    ("count_kind", "two", "There are 2 objects like region1."),
    ("count_kind", "zero", "There are none."),
    ("count_kind", "zero", "There are no others."),
    ("count_colour", "one", "Only one other object is like this one."),
    (PHRASING + "colour", "red", "I see red."),
    (KNOWLEDGE_YES_NO, "yes", "Yes, a hammer is a tool."),
    (KNOWLEDGE_WHICH, "region1", "region1, because it keeps the rain off."),
    (KNOWLEDGE_WHICH, "region1", "The umbrella."),
    (KNOWLEDGE_OPEN, "rain | post office", "You take it to the Post Office."),
    (KNOWLEDGE_OPEN, "mobility | cannot walk", "People who cannot walk use it."),
    (KNOWLEDGE_OPEN, "mobility | not able to walk", "People who are not able to walk."),
]
WRONG = [
    ("kind", "umbrella", ""),
    ("kind", "umbrella", "It's an anchor."),
    ("kind", "wheel", "A wheelchair."),
    ("kind", "umbrella", "It's not an umbrella."),
    ("kind", "umbrella", "It's an umbrella or an anchor."),
    ("colour", "red", "It isn't red."),
    ("colour", "red", "Reddish"),
    ("colour", "red", "Red, or maybe orange."),
    ("size", "small", "Small, medium or large."),
    ("place", "top left", "At the top."),
    ("place", "top", "At the top left."),
    ("place", "left", "On the left or on the right."),
    ("place", "center", "In the middle of the left side."),
    ("caption", "a small red umbrella", "A red umbrella."),
    ("caption", "a small red umbrella", "A small red umbrella and a large blue anchor."),
    ("caption_place", "a small red umbrella at the bottom", "A small red umbrella."),
    ("statement", "yes", "No, it is not."),
    ("statement", "yes", "It is hard to say yes."),
    ("statement", "yes", "Yes and no."),
    ("statement", "no", ""),
    ("larger", "region2", "region1 is larger than region2."),
    ("larger", "region2", "region2 is smaller than region1."),
    ("larger", "region2", "region1 or region2"),
    ("larger", "region2", "Not region2."),
    ("larger", "region2", "The heart is larger."),
    ("larger", "region2", "They are equal."),
    ("nearest", "a small red umbrella", "It is a small red anchor."),
    ("count_kind", "two", "One or two."),
    ("count_kind", "two", "region2"),
    ("count_kind", "zero", "There are 12."),
    ("count_kind", "zero", "No."),
    (KNOWLEDGE_YES_NO, "no", "Yes, a hammer is a tool."),
    (KNOWLEDGE_WHICH, "region1", "The anchor."),
    (KNOWLEDGE_WHICH, "region1", "region1 and region2."),
    (KNOWLEDGE_OPEN, "rain | sun", "You use it when you are training."),
    (KNOWLEDGE_OPEN, "rain | sun", "It is not for rain."),
    (KNOWLEDGE_OPEN, "letter | note", "You do not put a note into it."),
]


@pytest.mark.parametrize(("family", "truth", "answer"), RIGHT)
def test_answers_that_say_the_truth_are_right(family: str, truth: str, answer: str) -> None:
    assert says_truth(answer, truth, family, PAIR)


@pytest.mark.parametrize(("family", "truth", "answer"), WRONG)
def test_answers_that_say_something_else_or_two_things_are_wrong(family: str, truth: str, answer: str) -> None:
    assert not says_truth(answer, truth, family, PAIR)


def test_a_kind_that_two_regions_share_chooses_neither() -> None:
    assert not says_truth("The umbrella.", "region1", "larger", ("umbrella", "umbrella"))


def test_what_is_offered_by_the_question_and_repeated_is_rejected() -> None:
    assert says_truth("It is hot.", "hot", KNOWLEDGE_OPEN, reject=["cold"])
    assert says_truth("It is not cold, it is hot.", "hot", KNOWLEDGE_OPEN, reject=["cold"])
    assert not says_truth("Is it hot or cold?", "hot", KNOWLEDGE_OPEN, reject=["cold"])


def test_true_answers_are_right_in_words_and_in_sentences() -> None:
    """Of every family, in all phrasings of answers that training records may have."""
    random = np.random.RandomState(5)
    for index in range(40):
        scene = make_scene(index, "train")
        for family in FAMILIES:
            question = draw_question(scene, family, random)
            if question is None:
                continue
            kinds = [scene.objects[i].kind for i in question.objects]
            for answer in (question.answer, *(reword(question, 0, 1, random).answer for _ in range(4))):
                assert says_truth(answer, question.answer, family, kinds), (family, question.answer, answer)
