"""`ChatTemplate` writes conversations with a chat template, and finds where the assistant speaks and what ends its turns.

It finds both by looking at what the template writes. A template therefore needs no marks, and no model family is special.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, takewhile
from typing import Any, NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging
from transformers.utils.chat_template_utils import render_jinja_template

from .configuration_bridge import REGION_TOKEN

logger = logging.get_logger(__name__)

DEFAULT_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] | capitalize + ': ' + message['content'] | trim }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""For a language model whose tokenizer has no chat template: "User: …" and "Assistant: …", a turn a line."""

_GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")


class Span(NamedTuple):
    """The characters of a text that the assistant writes, up to the token that ends its turn, `end_id`."""

    start: int
    end: int
    end_id: int | None


@dataclass
class WrittenChat:
    """A conversation as text, and the parts of it that the assistant learns to write."""

    text: str
    spans: list[Span]


class _Turn(NamedTuple):
    """Where the assistant's words stand in a text, and whether an end is appended if the template writes none."""

    start: int
    end: int
    needs_end: bool


class _RefusalError(ValueError):
    """What a template says when it refuses a conversation."""


class ChatTemplate:
    """One chat template, with the text tokenizer that reads what it writes.

    eos_token_id: the tokens on which the language model stops, as in its generation config. A turn ends on the first added
    token (special or not) that the template writes after the assistant's words, or on a token with which the language model
    or the tokenizer ends a text.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, template: str, eos_token_id: int | Sequence[int] | None = None
    ) -> None:
        self.tokenizer, self.template = tokenizer, template
        self._is_marked = _GENERATION_MARK.search(template) is not None
        known = [*token_ids(tokenizer.eos_token_id), *token_ids(eos_token_id)]
        self._ends = {text: i for i in known if (text := _text_of(tokenizer, i))}
        self.lead = ""
        """White space before the assistant's words, which is the assistant's to write."""
        self._prompt_alone = self._lesson_alone = ""
        """What only a prompt has before the assistant's words, and what only a training example has."""
        self._unthought = ""
        """What only a prompt has because the model was asked not to think; training examples are given it, too."""
        self._takes_parts = False
        """Whether the template reads content as a list of texts and pictures, and loses content that is a plain text."""
        self._closing: str | None = None
        """What stands between the assistant's words and the end of its turn, with the token that ends it."""
        self._end: str | None = None
        """That token."""
        self._leaves_turns_open = self._leaves_history_open = False
        self._look()

    @property
    def stop_token_ids(self) -> list[int]:
        """Every token that may end one of the assistant's turns."""
        return list(dict.fromkeys(self._ends.values()))

    @property
    def end(self) -> str | None:
        """What is appended to a turn that the template leaves open; None if no token is known to end one."""
        return self._end or next(iter(self._ends), None)

    def check_end(self) -> None:
        """Refuse to teach answers that nothing ends; say so, once, if the template leaves ends out."""
        if self.end is None:
            raise ValueError(
                "The chat template writes no end of a turn and the text tokenizer has no end token, so a model could not "
                "learn to stop: set tokenizer.eos_token."
            )
        if self._leaves_turns_open:
            self._say_appended()

    def write(
        self, messages: list[dict[str, Any]], options: dict[str, Any], name: str, *, learn: bool, as_taught: bool
    ) -> WrittenChat:
        """A conversation as the template writes it with its `options`.

        learn: find what the assistant writes, and append the end of each of its turns that the template leaves open.
        as_taught: write prompts like training examples: with the ends that were appended, and, if the model is asked not to
        think, with what the template writes before the assistant's words. Errors begin with `name`.
        """
        with_ends = learn or (as_taught and self._leaves_history_open)
        text, turns = self._render(messages, options, name, marked=with_ends and self._is_marked)
        if any(m["role"] == "system" and (m.get("content") or "").strip() not in text for m in messages):
            logger.warning_once(
                "The chat template drops the words of system turns: put them at the beginning of the first user turn."
            )
        if sum((m.get("content") or "").count(REGION_TOKEN) for m in messages) != text.count(REGION_TOKEN):
            raise ValueError(
                f"{name}: the chat template leaves out or changes what is said about regions, so they cannot be shown: give "
                "another chat_template=…."
            )
        spans: list[Span] = []
        if with_ends:
            found = turns or self._find_turns(messages, text, options, name)
            if found is None and learn:
                raise ValueError(
                    f"{name}: the chat template changes the assistant's words, so they cannot be found in its text. Mark them "
                    "in the template with {% generation %}…{% endgeneration %}."
                )
            goes_on = messages[-1]["role"] == "assistant" and (not learn or options.get("continue_final_message"))
            if learn and found and messages[-1]["role"] == "assistant" and options.get("enable_thinking") is False:
                text, found[-1] = self._unthinking(text, found[-1])
            text, spans = self._with_ends(text, found or [], goes_on=bool(goes_on), learn=learn)
        if as_taught and options.get("add_generation_prompt") and options.get("enable_thinking") is False:
            text = text.removesuffix(self._prompt_alone) + self._lesson_alone
        return WrittenChat(text, spans if learn else [])

    # --- what the template writes -------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Find, in two turns of strange words, what stands before the assistant's words and what ends them."""
        words = [f"\u2063{n}\u2063" for n in range(4)]
        talk = [{"role": ("user", "assistant")[n % 2], "content": word} for n, word in enumerate(words)]
        text = self._in_a_form_that_is_read(words, talk)
        if text is None:  # a template for other conversations: the tokens that are known must do
            return
        try:
            asked, _ = self._apply(talk[:3], {"enable_thinking": False, "add_generation_prompt": True})
            is_obeyed = asked != self._apply(talk[:3], {"add_generation_prompt": True})[0]
        except _RefusalError:  # of a talk that goes on
            return
        pieces = _around(words, text)
        if pieces is None:
            return
        before, _, between, _, after = pieces
        self._compare(asked, text, text.index(words[2]) + len(words[2]), text.index(words[3]), is_obeyed)
        tokens = self._candidates()
        found = _find_token(after, tokens)
        self._closing = after[: found.end()] if found else _end_before_next_turn(before, between, tokens)
        if self._closing is not None:
            self._end = max((token for token in tokens if self._closing.endswith(token)), key=len)
            self._ends[self._end] = tokens[self._end]
        if self._is_marked:
            self._closing = None  # for what stands there may be marked itself
        is_ended = [self._ending(text, text.index(word) + len(word)) > 0 for word in words[1::2]]
        self._leaves_history_open, self._leaves_turns_open = not is_ended[0], not all(is_ended)

    def _in_a_form_that_is_read(self, words: Sequence[str], talk: list[dict[str, Any]]) -> str | None:
        """The talk as the template writes it, given as texts or as lists of items; None if its words are lost in both."""
        for takes_parts in (False, True):
            self._takes_parts = takes_parts
            try:
                text, _ = self._apply(talk, {"enable_thinking": False})
            except (_RefusalError, TypeError):
                continue
            if any(word in text for word in words):
                return text
        self._takes_parts = False
        return None

    def _compare(self, asked: str, text: str, question: int, answer: int, is_obeyed: bool) -> None:
        """Compare what stands between a question and its answer in a prompt and in a training example.

        is_obeyed: whether the template follows the request not to think; what it writes for that stays in the prompt.
        """
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(asked, text)))
        if shared < question:
            return
        if is_obeyed and shared < len(asked):
            self._unthought = asked[shared:] if shared == answer and not self._is_marked else ""
            return
        self._prompt_alone = asked[shared:]
        if text[shared:answer].strip():
            self._lesson_alone = text[shared:answer]
        else:
            self.lead = text[shared:answer]

    def _candidates(self) -> dict[str, int]:
        """Tokens that may end a turn, by their text: special or not, with a name or without."""
        added = {token.content: i for i, token in self.tokenizer.added_tokens_decoder.items()}
        named = {token: int(self.tokenizer.convert_tokens_to_ids(token)) for token in self.tokenizer.all_special_tokens}
        never = {REGION_TOKEN, self.tokenizer.bos_token}
        found = {token: i for token, i in {**named, **added}.items() if token.strip() and token not in never}
        return {**found, **self._ends}

    @cached_property
    def _any_end(self) -> re.Pattern[str]:
        """White space and a token that ends a turn."""
        longest_first = sorted(self._ends, key=len, reverse=True)
        return re.compile(rf"\s*?(?:{'|'.join(map(re.escape, longest_first))})")

    @cached_property
    def _greedy(self) -> tuple[str, ...]:
        """Tokens that absorb the white space after them, so that nobody has to write it."""
        return tuple(token.content for token in self.tokenizer.added_tokens_decoder.values() if token.rstrip)

    def _ending(self, text: str, place: int) -> int:
        """How many characters from a position on end a turn there; 0 if none do."""
        if self._closing is not None and text.startswith(self._closing, place):
            return len(self._closing)
        found = self._any_end.match(text, place) if self._ends else None
        return len(found[0]) if found else 0

    def _end_id(self, text: str) -> int | None:
        """The token that ends a turn with which a text ends."""
        found = [end for end in self._ends if text.endswith(end)]
        return self._ends[max(found, key=len)] if found else None

    # --- where the assistant speaks -----------------------------------------------------------------------------------

    def _find_turns(
        self, messages: list[dict[str, Any]], text: str, options: dict[str, Any], name: str
    ) -> list[_Turn] | None:
        """Where the assistant's words stand, by one more rendering that has strange words in their place; None if unclear.

        What both renderings share lies around the words, so the template may trim or rewrite them, and may write earlier
        turns differently. White space that follows what is asked is the assistant's to write as well.
        """
        speaking = [i for i, m in enumerate(messages) if m["role"] == "assistant" and (m.get("content") or "").strip()]
        if not speaking:
            return []
        mark = next(chr(code) for code in range(0x2063, 0x10000) if chr(code) not in text)
        strange = {i: f"{mark}{n}{mark}" for n, i in enumerate(speaking)}
        changed = [{**m, "content": strange[i]} if i in strange else m for i, m in enumerate(messages)]
        pieces = _around(list(strange.values()), self._render(changed, options, name)[0])
        places = None if pieces is None else _between(pieces, text)
        if places is None:
            return None
        turns = []
        for start, end in places:
            asked = text[:start].removesuffix(self.lead)
            turns.append(_Turn(start if asked.endswith(self._greedy) else len(asked), end, needs_end=True))
        return turns

    def _with_ends(self, text: str, turns: Sequence[_Turn], *, goes_on: bool, learn: bool) -> tuple[str, list[Span]]:
        """The text with an end for every turn that needs one, except a last turn that `goes_on`; and all its turns."""
        parts: list[str] = []
        spans: list[Span] = []
        done = added = 0
        for number, (start, end, needs_end) in enumerate(turns, start=1):
            words = text[start:end].rstrip()
            stop = end + self._ending(text, end) if self._end_id(words) is None else start + len(words)
            is_open = self._end_id(text[start:stop]) is None and needs_end and not (goes_on and number == len(turns))
            extra = (self.end or "") if is_open else ""
            if extra and learn:
                self._say_appended()
            parts += [text[done:stop], extra]
            spans.append(Span(start + added, stop + added + len(extra), self._end_id(text[start:stop] + extra)))
            done, added = stop, added + len(extra)
        return "".join([*parts, text[done:]]), spans

    def _unthinking(self, text: str, turn: _Turn) -> tuple[str, _Turn]:
        """A training example whose last answer is preceded by what a prompt contains when the model is asked not to think."""
        own, start = self._unthought, turn.start
        return f"{text[:start]}{own}{text[start:]}", turn._replace(start=start + len(own), end=turn.end + len(own))

    def _say_appended(self) -> None:
        logger.warning_once(
            f"The chat template does not end the assistant's turns: training appends {self.end!r} to them, and answers stop "
            "there."
        )

    # --- rendering ----------------------------------------------------------------------------------------------------

    def _apply(
        self, messages: list[dict[str, Any]], options: dict[str, Any], marked: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        """What the template writes and, if `marked`, which parts of it stand in `{% generation %}` blocks."""
        from jinja2 import TemplateError

        if self._takes_parts:
            messages = [
                {**m, "content": [{"type": "text", "text": m["content"]}]} if isinstance(m.get("content"), str) else m
                for m in messages
            ]
        try:
            if not marked:
                text = self.tokenizer.apply_chat_template(
                    messages, chat_template=self.template, tokenize=False, **options
                )
                return str(text), []
            texts, blocks = render_jinja_template(
                conversations=[[{k: v for k, v in message.items() if v is not None} for message in messages]],
                chat_template=self.template,
                return_assistant_tokens_mask=True,
                **{**self.tokenizer.special_tokens_map, **options},
            )
        except (
            TemplateError,
            TypeError,
            ArithmeticError,
            LookupError,
            AttributeError,
        ) as error:  # a template is a program
            raise _RefusalError(str(error)) from error
        return texts[0], [(start, end) for start, end in blocks[0] if start < end]

    def _render(
        self, messages: list[dict[str, Any]], options: dict[str, Any], name: str, marked: bool = False
    ) -> tuple[str, list[_Turn]]:
        """What the template writes, and the turns that it marks; a refusal says what is wrong and what to do."""
        try:
            text, blocks = self._apply(messages, options, marked)
        except _RefusalError as error:
            raise ValueError(f"{name}: the chat template refuses {self._refused(messages, options, error)}") from error
        others = [(m.get("content") or "").strip() for m in messages if m["role"] != "assistant"]
        nexts = [start for start, _ in blocks[1:]]
        between = [text[end:start] for (_, end), start in zip(blocks, nexts)]  # words of others there end a turn
        ends_turn = [any(words and words in gap for words in others) for gap in between]
        return text, [_Turn(*block, needs_end) for block, needs_end in zip(blocks, [*ends_turn, True])]

    def _refused(self, messages: list[dict[str, Any]], options: dict[str, Any], said: _RefusalError) -> str:
        roles = [message["role"] for message in messages]
        others = [message for message in messages if message["role"] != "system"]
        if 0 < len(others) < len(messages):
            try:
                self._apply(others, options)
            except _RefusalError:
                pass
            else:
                return f'a system turn ("{said}"): put its words at the beginning of the first user turn instead.'
        asked = "give the turns that it expects, or a different chat_template=…."
        if roles[0] == "assistant" or any(one == other for one, other in pairwise(roles)):
            asked = "alternate turns of user and assistant, user first, and join neighbouring turns of the same role."
        return f'turns of {", ".join(roles)} ("{said}"): {asked}'


def add_stop_tokens(model: PreTrainedModel, ids: int | Sequence[int] | None) -> None:
    """Let a model's `generate` stop on these tokens, as well as on those in its generation config."""
    known = token_ids(model.generation_config.eos_token_id)
    if lacking := [i for i in token_ids(ids) if i not in known]:
        model.generation_config.eos_token_id = [*known, *lacking]


def token_ids(value: int | Sequence[int] | None) -> list[int]:
    """Token ids as configs hold them: one, several, or none."""
    if value is None:
        return []
    return [value] if isinstance(value, int) else [int(i) for i in value]


def _text_of(tokenizer: PreTrainedTokenizerBase, token_id: int) -> str:
    """A token as it stands in a text; "" for an id that the tokenizer does not have."""
    if not 0 <= token_id < len(tokenizer):
        return ""
    added = tokenizer.added_tokens_decoder.get(token_id)
    return added.content if added is not None else str(tokenizer.decode([token_id]))


def _around(words: Sequence[str], text: str) -> list[str] | None:
    """The text before, between and after words; None unless each word occurs in the text exactly once, in this order."""
    pieces = []
    for word in words:
        if text.count(word) != 1:
            return None
        piece, _, text = text.partition(word)
        pieces.append(piece)
    return [*pieces, text]


def _between(pieces: Sequence[str], text: str) -> list[tuple[int, int]] | None:
    """Where the text between consecutive pieces lies; None if they do not occur in this order, or in more than one way."""
    first, *middle, last = pieces
    begin, stop = len(first), len(text) - len(last)
    if begin > stop or not text.startswith(first) or not text.endswith(last):
        return None
    earliest, latest = [], []
    place = begin
    for piece in middle:
        found = text.find(piece, place, stop)
        if found < 0:
            return None
        earliest.append(found)
        place = found + len(piece)
    place = stop
    for piece in reversed(middle):
        place = text.rfind(piece, begin, place)
        latest.append(place)
    if earliest != latest[::-1]:
        return None
    starts = [begin, *(found + len(piece) for found, piece in zip(earliest, middle))]
    return list(zip(starts, [*earliest, stop]))


def _find_token(text: str, tokens: dict[str, int], start: int = 0) -> re.Match[str] | None:
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))).search(text, start) if tokens else None


def _end_before_next_turn(before: str, between: str, tokens: dict[str, int]) -> str | None:
    """What ends a turn that is not the last: up to the first token between two turns, unless that begins the next turn.

    before: what stands before the first user's words; between: what stands between the assistant's and the next user's.
    What begins a turn stands before the first one, too; a token that others follow is an end even there, of a system turn.
    """
    found = _find_token(between, tokens)
    if found is None:
        return None
    begins_turn = before.endswith(between[found.start() :]) and not _find_token(between, tokens, found.end())
    return None if begins_turn else between[: found.end()]
