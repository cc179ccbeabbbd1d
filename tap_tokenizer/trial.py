"""Tries chat templates and patterns from files once, in a separate process, before they are used in this one.

A chat template is a program, and a pattern may take forever; you only find out by running them. The process that tries
them (this file, run as a script) may use two seconds of processor time and a gigabyte of memory. If the operating system
cannot limit a process, only time is limited.
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

CPU_SECONDS = 2
MEMORY = 1 << 30
LONGEST_TEXT = 4_000_000
"""Characters that a template may make of a short conversation."""

_WAIT = 60  # seconds on the clock, for machines that are busy with other things
_TOO_MUCH = 3  # how the process ends that found a template or a pattern to be endless


def check_chat_template(template: str, source: str) -> None:
    """Refuse (`ValueError`) a chat template that does not end, or writes far more text than it was given."""
    if not _ends(json.dumps({"template": template})):
        raise ValueError(
            f"{source} has a chat template that does not finish within {CPU_SECONDS} seconds and {MEMORY >> 30} GB of memory: "
            "use the template that its language model was published with."
        )


def check_patterns(patterns: Sequence[str], names: Sequence[str], source: str) -> None:
    """Refuse (`ValueError`) invalid regular expressions, and those that take forever on these names."""
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"{source} has {pattern[:80]!r}, which is not a regular expression: {error}.") from None
    if patterns and not _ends(json.dumps({"patterns": list(patterns), "names": list(names)})):
        raise ValueError(
            f"{source} has regular expressions that take more than {CPU_SECONDS} seconds on the names of its modules "
            f"({', '.join(patterns)[:80]!r}): list the modules one by one."
        )


@lru_cache(maxsize=256)
def _ends(task: str) -> bool:
    """Whether a task comes to its end in a process of its own."""
    words = json.dumps({"path": sys.path, **json.loads(task)})
    command = [sys.executable, "-I", __file__]  # -I: nothing of the current folder is imported
    try:
        tried = subprocess.run(command, input=words.encode(), timeout=_WAIT, capture_output=True, check=False)
    except subprocess.TimeoutExpired:
        return False
    return tried.returncode == 0


# --- in the process that tries ----------------------------------------------------------------------------------------


def _limit_this_process() -> None:
    with suppress(ImportError):  # there is none on Windows
        import resource

        for which, limit in ((resource.RLIMIT_CPU, CPU_SECONDS), (resource.RLIMIT_AS, MEMORY)):
            with suppress(ValueError, OSError):  # stricter limits hold already, or the system has no such limit
                resource.setrlimit(which, (limit, limit))


def _conversations() -> Iterator[dict[str, Any]]:
    """Arguments of a template: conversations of every shape that we use, with and without what a template may ask for."""
    tool = {"type": "function", "function": {"name": "look", "description": "Look.", "parameters": {
        "type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]}}}  # fmt: skip
    user, answer = (
        {"role": "user", "content": "What is region1 <|region|>?"},
        {"role": "assistant", "content": "A cat."},
    )
    parts = {"role": "user", "content": [{"type": "text", "text": "What is it?"}]}
    system = {"role": "system", "content": "You see regions."}
    talks = [
        [user],
        [user, answer],
        [system, user],
        [system, user, answer, user],
        [parts],
        [user, answer] * 10 + [user],
    ]
    for messages, prompt, thinking in itertools.product(talks, (True, False), (True, False)):
        special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
        yield {"messages": messages, "add_generation_prompt": prompt, "enable_thinking": thinking, **special}
    yield {"messages": talks[3], "tools": [tool], "add_generation_prompt": True}


def _try_template(source: str) -> None:
    """Render every conversation; what a template finds wrong with one is of no interest here."""
    from datetime import datetime

    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """The tag by which transformers finds the assistant's words."""

        tags = {"generation"}

        def parse(self, parser: Any) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = lambda value, ensure_ascii=False, **options: json.dumps(
        value, ensure_ascii=ensure_ascii, **options
    )
    environment.globals |= {"raise_exception": refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
    for arguments in _conversations():
        try:
            pieces = environment.from_string(source).generate(**arguments)
            length = 0
            for piece in pieces:
                length += len(piece)
                if length > LONGEST_TEXT:
                    sys.exit(_TOO_MUCH)
        except (MemoryError, RecursionError):
            sys.exit(_TOO_MUCH)
        except Exception:  # whatever a template says of a conversation, rendering it says again
            continue


def _main() -> None:
    task = json.load(sys.stdin)
    sys.path[:] = task["path"]
    _limit_this_process()
    if "template" in task:
        _try_template(task["template"])
    for pattern in task.get("patterns", ()):
        compiled = re.compile(pattern)
        for name in task["names"]:
            compiled.fullmatch(name)
            compiled.match(name)


if __name__ == "__main__":
    _main()
