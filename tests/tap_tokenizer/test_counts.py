"""Numbers have the noun that fits them."""

from __future__ import annotations

from tap_tokenizer import counted


def test_counts_have_singular_or_plural_nouns() -> None:
    assert [counted(n, "picture") for n in (0, 1, 2000)] == ["0 pictures", "1 picture", "2,000 pictures"]
    assert [counted(n, "category", "categories") for n in (1, 2)] == ["1 category", "2 categories"]
