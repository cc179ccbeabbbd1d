r"""Teaches a language model to read region tokens from pictures alone: it learns to say what it would say of a description.

    python -m finetune.distill --language_model Qwen/Qwen3-0.6B --region_tokenizer BAAI/tokenize-anything \
        --variant tap_vit_l_v1_1 --pictures my_pictures --output_dir runs/mine

TAP can also say in words what it sees in a region, and a language model knows what to do with words. So the language model
is its own teacher: with its adapter off, it is told in words what the regions are, and answers instructions about them;
then it learns to give the same answers when it reads region tokens in place of the words. This takes no questions, answers
or labels.

One command runs three steps, each of which leaves ordinary files for the next one to read. If it is stopped, run it again
and it continues where it left off:

1. `output_dir/lessons/lessons.jsonl`: records whose answers are the teacher's, each question with what the teacher was
   `told`; `held_out.jsonl`, the same for pictures that are kept for evaluation, half of it with instructions that are never
   learned; `talks.jsonl`, what the language model says to itself when no region is mentioned, so that it keeps its language;
   `counts.json`, how many answers and talks were kept, and why others were left out; `about.json`, what they were made of.
   Look at them:
   `python -m finetune.data show --data runs/mine/lessons/lessons.jsonl --output lessons.png`.
2. `lessons/cache` and `lessons/held_out_cache`: their region tokens, as `finetune.cache_regions` makes them.
3. `finetune.train` on a source with `loss: teacher`: at each word of an answer, the student's distribution over all words
   is drawn towards the teacher's (KL). The teacher's pass is made afresh with the weights at hand and the adapter off, so no
   distribution has to be stored or cut short. What the teacher knows about a kind of thing, it says when it continues a
   text, not in a chat; such answers are learned as they stand (`teacher.py` says why). `sources` of a recipe are learned
   along with them.

What learns is a projector alone (`--mode projector`), LoRA (the default) or QLoRA (`--quantize 4bit`). During training,
log.jsonl says how close the student is on held-out pictures: `val_kl`, in nats per word, and `val_same`, the share of
answers that are the same word for word. It gives both for known instructions, for new ones (`…_new`), and with the regions
of another picture (`…_shuffled`, `…_new_shuffled`), which shows how much the answers owe to seeing. `val_kl_answers` and
`val_same_answers` count the answers. If you give `eval_data`, it is evaluated as well, as in `finetune.train`: `val_loss` and
`val_answer` are then about it, and otherwise about the held-out lessons.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import set_seed

from tap_tokenizer import TapRegionTokenizer, counted, tell_limitation, write_whole

from .batches import CachedRecord
from .cache import MANIFEST, RegionCache
from .cache_regions import CacheArguments, fill_cache
from .checkpoints import joined_chunks, write_chunks
from .config import Source, check_counts, knob, parse_arguments, run_command
from .examples import read_texts
from .instructions import Instruction, load_instructions, never_held_out
from .lesson_arguments import LessonArguments
from .lesson_pictures import LessonPictures, checksums
from .loop import run
from .losses import word_losses
from .own_talks import OwnTalks
from .records import load_records
from .teacher import NEW, Teacher
from .train import BridgeTraining, load_bridge
from .train_arguments import TrainArguments, check_arguments

LESSONS, HELD_OUT, TALKS, COUNTS, ABOUT = "lessons.jsonl", "held_out.jsonl", "talks.jsonl", "counts.json", "about.json"

CACHES = {LESSONS: "cache", HELD_OUT: "held_out_cache"}
"""The caches of the region tokens of lessons, by their files."""

_VIEWS = ("", "_new", "_shuffled", "_new_shuffled")


@dataclass(kw_only=True)
class DistillArguments(LessonArguments, TrainArguments):
    """Teach a bridge what its language model says when it is told in words what regions are."""

    lessons: str | None = knob(
        default=None,
        help="folder of the lessons, which several runs may share; made if it does not exist; default: lessons in output_dir",
    )
    lessons_weight: float | None = knob(
        default=None, help="how often lessons are drawn, next to other sources; default: in proportion to their number"
    )
    talks: int = knob(
        default=500,
        help="how many talks the language model has with itself, in words alone; 0 for none. They are learned along with the "
        "lessons so that it forgets none of its language (see own_talks.py). Mode projector has nothing to forget: no talks",
    )
    talks_weight: float | None = knob(
        default=None, help="how often talks are drawn; default: lessons_weight, or else in proportion to their number"
    )
    eval_max_new_tokens: int = knob(default=64, free=True, help="longest answer in an evaluation")

    @property
    def folder(self) -> Path:
        """Where the lessons and their caches lie."""
        return Path(self.output_dir) / "lessons" if self.lessons is None else Path(self.lessons)

    @property
    def held_out_lessons(self) -> tuple[Path, Path]:
        """The lessons that are kept for evaluation, and their cache."""
        return self.folder / HELD_OUT, self.folder / CACHES[HELD_OUT]

    @property
    def has_talks(self) -> bool:
        """Whether talks are learned: where there is an adapter, which can forget."""
        return self.talks > 0 and self.mode != "projector"

    def complete(self) -> None:
        """Add the lessons to what is learned and evaluated, and refuse what does not go together."""
        if (self.data is None) == (self.pictures is None):
            raise ValueError("Got both or neither of data and pictures: give records, or a folder of pictures.")
        if not 0 < self.held_out < 1 or not 0 <= self.own_questions <= 1:
            raise ValueError(
                f"Got held_out {self.held_out} and own_questions {self.own_questions}: expected shares from 0 to 1."
            )
        names = ("regions", "points_per_crop", "questions", "answer_tokens", "teacher_batch_size", "lesson_chunk")
        check_counts(self, *names)
        check_counts(self, "talks", least=0)
        if self.talks_weight is not None and (not self.has_talks or self.lessons_weight is None):
            raise ValueError(
                "Got talks_weight without talks that are learned, or without lessons_weight: leave it out."
            )
        lessons = Source(
            str(self.folder / LESSONS), str(self.folder / CACHES[LESSONS]), self.lessons_weight, turns=1, loss="teacher"
        )
        weight = self.lessons_weight if self.talks_weight is None else self.talks_weight
        talks = Source(str(self.folder / TALKS), weight=weight, loss="teacher")
        own = [lessons, talks] if self.has_talks else [lessons]
        others = [source for source in self.sources if source not in own]
        weighted = sum(source.weight is not None for source in others)
        if others and weighted != (0 if self.lessons_weight is None else len(others)):
            raise ValueError(
                f"Got lessons_weight {self.lessons_weight} beside {counted(len(others), 'source')}, {weighted} of them with a "
                "weight: give lessons_weight and a weight for each source, or none at all."
            )
        self.sources = [*own, *others]
        if self.eval_data is None and self.eval_cache is None:
            self.eval_data, self.eval_cache = map(str, self.held_out_lessons)
        check_arguments(self)


class DistillTraining(BridgeTraining):
    """The training of a bridge that is also measured by how near it is to its teacher."""

    def __init__(self, arguments: DistillArguments, accelerator: Accelerator) -> None:
        super().__init__(arguments, accelerator)
        self.lessons, self.lessons_cache = arguments.held_out_lessons
        self.evaluates_lessons = Path(str(arguments.eval_data)) == self.lessons
        self.pictures = [(record.image, len(record.regions)) for record in load_records(self.lessons)]
        if len({image for image, _ in self.pictures}) < 2:
            accelerator.print("one picture is kept for evaluation: no other has regions to shuffle with its own")

    def held_out(self) -> Iterator[list[CachedRecord]]:
        """As in every training; of lessons, single questions, each of which the teacher read in a form of its own."""
        return self._held_out_lessons() if self.evaluates_lessons else super().held_out()

    def _held_out_lessons(self) -> Iterator[list[CachedRecord]]:
        return self._by_batches(self.lessons, self.lessons_cache, turns=1)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Beside what every training measures, KL a word and equal answers, on what is never learned; see the module."""
        found = {} if self.evaluates_lessons else super().evaluate()
        self.model.eval()
        measured, sums = torch.zeros(4, dtype=torch.float64), torch.zeros(len(_VIEWS), 5, dtype=torch.float64)
        random = np.random.RandomState(self.arguments.seed)
        for items in self._held_out_lessons():
            said = self._last_answers(items)
            if self.evaluates_lessons:
                measured += self._measured(items, said)
            self._add(sums, items, said, "")
            if swapped := self._with_others_regions(items, random):
                self._add(sums, swapped, self._last_answers(swapped), "_shuffled")
        if self.evaluates_lessons:
            found = self._means(measured)
        for view, (kl, words, chats, same, answers) in zip(_VIEWS, self._over_processes(sums).tolist()):
            if chats:
                found |= {f"val_kl{view}": kl / max(words, 1), f"val_kl_answers{view}": chats}
            if answers:
                found |= {f"val_same{view}": same / answers, f"val_same_answers{view}": answers}
        return found

    def _with_others_regions(self, items: Sequence[CachedRecord], random: np.random.RandomState) -> list[CachedRecord]:
        """Items with regions of another held-out picture in place of their own; without those for which none has as many."""
        cache, swapped = RegionCache(self.lessons_cache), []
        for item in items:
            own, wanted = item.record.image, len(item.record.regions)
            rows = [row for row, (image, count) in enumerate(self.pictures) if image != own and count >= wanted]
            if rows:
                row = rows[random.randint(len(rows))]
                swapped.append(replace(item, regions=cache.regions(row)[:wanted], context=cache.context(row)))
        return swapped

    def _add(self, sums: torch.Tensor, items: list[CachedRecord], said: list[str], regions: str) -> None:
        """Add to the sums of each item's view: KL, words and answers, where its teacher read a chat; equal answers and answers.

        Items are single questions with the teacher's answer; said: the student's. regions: how the names of views end.
        """
        views = [_VIEWS.index("_new" * (item.record.conversations[-2].type == NEW) + regions) for item in items]
        for words, item, view in zip(said, items, views):
            sums[view, 3:] += torch.tensor([words == item.record.conversations[-1].content, 1])
        chats = [i for i, item in enumerate(items) if not read_texts(item.record)]
        if not chats:
            return
        bridge = self.accelerator.unwrap_model(self.model)
        batch = _to(self.collator([replace(items[i], is_taught=True) for i in chats]), bridge.device)
        _, kl, _ = word_losses(bridge, batch, self.teacher_logits(batch["told"]))
        rows = (batch["labels"][:, 1:] != -100).nonzero()[:, 0]
        for row, i in enumerate(chats):
            own = kl[rows == row]
            sums[views[i], :3] += torch.tensor([float(own.sum()), len(own), 1])


def _to(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {name: _to(value, device) if isinstance(value, dict) else value.to(device) for name, value in batch.items()}


# --- the lessons --------------------------------------------------------------------------------------------------------


def make_lessons(arguments: DistillArguments, accelerator: Accelerator) -> None:
    """Write the lessons, their caches and the talks, as far as they are not there yet; every process does a part.

    Raises `ValueError` if there is nothing to make lessons of, or if the folder holds those of something else; where that can
    be, before a model is loaded.
    """
    folder, state = arguments.folder, PartialState()
    needs_talks = arguments.has_talks and not (folder / TALKS).is_file()
    needs_lessons = not all((folder / name).is_file() for name in CACHES)
    begun = _begun(arguments)
    if not (needs_talks or needs_lessons) and all((folder / cache / MANIFEST).is_file() for cache in CACHES.values()):
        return
    asked = _what_is_asked(arguments, accelerator) if needs_lessons else None
    bridge, processor = load_bridge(arguments, accelerator)
    if arguments.quantize == "no":
        bridge.to(accelerator.device)
    tokenizer = processor.region_tokenizer = _with_words(processor.encoder.tokenizer, arguments).to(accelerator.device)
    if accelerator.is_main_process:
        tell_limitation(tokenizer.limitation)
    seed = begun["seed"]
    talks = OwnTalks(bridge, processor, arguments.talks, arguments.answer_tokens, seed) if needs_talks else None
    teacher = Teacher(bridge, processor, *asked, arguments, seed) if asked is not None else None
    if accelerator.is_main_process:  # only now, when nothing is refused any more
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / ABOUT, json.dumps(begun, indent=1, ensure_ascii=False))
    if teacher is not None:
        parts = folder / "parts"
        write_chunks(parts, teacher.chunks, lambda chunk: teacher.work(chunk, folder), state, "asking the teacher")
        if accelerator.is_main_process:
            _join(folder, joined_chunks(parts, teacher.chunks))
        accelerator.wait_for_everyone()
    if talks is not None:
        parts = folder / "talk_parts"
        write_chunks(parts, talks.chunks, talks.work, state, "talking with itself")
        if accelerator.is_main_process:
            _join_talks(folder, joined_chunks(parts, talks.chunks))
        accelerator.wait_for_everyone()
    for name, cache in CACHES.items():
        variants = "exact" if name == HELD_OUT else "exact,jitter"
        fill_cache(
            CacheArguments(
                data=str(folder / name),
                output=str(folder / cache),
                variants=variants,
                image_grid=bridge.config.image_grid,
                image_regions=bridge.config.image_regions,
            ),
            tokenizer,
            state,
        )


def _what_is_asked(arguments: LessonArguments, accelerator: Accelerator) -> tuple[LessonPictures, list[Instruction]]:
    """The pictures that lessons are about, and the pool of instructions, both checked."""
    pictures, pool = LessonPictures(arguments), load_instructions(arguments.instructions, arguments.kinds)
    if accelerator.is_main_process:
        pictures.check_regions()
        if kinds := never_held_out(pool):
            print(
                f"too few instructions to keep one for evaluation: {', '.join(kinds)} (every eighth of a kind is kept)"
            )
    return pictures, pool


def _with_words(tokenizer: TapRegionTokenizer, arguments: LessonArguments) -> TapRegionTokenizer:
    """A region tokenizer, or the same one with the concepts and the caption vocabulary that are given, if any are."""
    wanted = {"concepts": arguments.concepts, "text_tokenizer": arguments.text_tokenizer}
    given = {name: value for name, value in wanted.items() if value is not None}
    options: dict[str, Any] = {**tokenizer.source, **given}
    return TapRegionTokenizer.from_pretrained(**options) if given else tokenizer


def _join(folder: Path, text: str) -> None:
    """Write the lessons of all chunks in their files, and how many there are."""
    records: dict[bool, list[str]] = {False: [], True: []}
    counts: Counter[str] = Counter()
    for line in map(json.loads, text.splitlines()):
        counts.update(line["lessons"])
        if line["record"] is not None:
            records[line["held_out"]].append(json.dumps(line["record"], ensure_ascii=False) + "\n")
    told = {"lessons": dict(counts), "records": len(records[False]), "held-out records": len(records[True])}
    write_whole(folder / COUNTS, json.dumps(told, indent=1))
    print("lessons: " + ", ".join(f"{count} {name}" for name, count in counts.most_common()))
    for is_held_out, name in ((False, LESSONS), (True, HELD_OUT)):
        if not records[is_held_out]:
            raise ValueError(
                f"No lesson is left for {name}, and {folder / COUNTS} says why answers were left out: delete {folder}, and "
                "give more pictures, or a larger share of held_out."
            )
        write_whole(folder / name, "".join(records[is_held_out]))


def _join_talks(folder: Path, text: str) -> None:
    """Write the talks of all chunks in their file, and how many there are beside how many lessons."""
    lines = list(map(json.loads, text.splitlines()))
    records = [json.dumps(line["record"], ensure_ascii=False) + "\n" for line in lines if line["record"] is not None]
    counts = Counter(line["talk"] for line in lines)
    told = json.loads((folder / COUNTS).read_text(encoding="utf-8"))
    write_whole(folder / COUNTS, json.dumps({**told, "talks": dict(counts)}, indent=1))
    print("talks: " + ", ".join(f"{count} {name}" for name, count in counts.most_common()))
    if not records:
        raise ValueError(f"No talk is left of {len(lines)} ({COUNTS} says why): give talks 0 to learn lessons alone.")
    write_whole(folder / TALKS, "".join(records))


def _begun(arguments: DistillArguments) -> dict[str, Any]:
    """What `about.json` says of the folder's lessons, or will say: the arguments they are made by, and what they are made of.

    Raises `ValueError` if the folder holds lessons of other pictures, of another teacher, or made otherwise. Where runs share a
    folder, their seeds may differ: the lessons are those of the first.
    """
    names = [f.name for f in fields(LessonArguments) if f.name != "teacher_batch_size"]
    names += ["language_model", "init_from", "region_tokenizer", "variant", "seed"]
    about = {name: value for name, value in asdict(arguments).items() if name in names}
    talks = {"talks": arguments.talks} if arguments.has_talks else {}
    made_of, folder, path = checksums(arguments), arguments.folder, arguments.folder / ABOUT
    if not path.is_file():
        return {**about, **talks, "made_of": made_of}
    old = json.loads(path.read_text(encoding="utf-8"))
    shared = () if arguments.lessons is None else ("seed",)
    another = "lessons" if shared else "output_dir"
    if changed := [name for name in about if name not in shared and old.get(name) != about[name]]:
        raise ValueError(
            f"{folder} holds lessons with other {', '.join(changed)}: choose another {another}, or delete it."
        )
    known = old.get("made_of", {})  # earlier versions did not note it
    if edited := [name for name, checksum in made_of.items() if known.get(name, checksum) != checksum]:
        raise ValueError(
            f"{folder} holds lessons made of {', '.join(edited)}, which had other content then: bring that back, or choose "
            f"another {another}, or delete {folder}."
        )
    if talks and old.get("talks", arguments.talks) != arguments.talks:
        raise ValueError(
            f"{folder} holds {old['talks']} talks, got talks {arguments.talks}: give the same number, or 0, or choose another "
            "folder."
        )
    return {**talks, **old}


def main(argv: list[str] | None = None) -> None:
    """Read the arguments, make the lessons, train, and write bridge and processor to `output_dir/model`."""
    arguments = parse_arguments(DistillArguments, argv, description=__doc__)
    arguments.complete()

    def begin(accelerator: Accelerator) -> DistillTraining:
        make_lessons(arguments, accelerator)
        set_seed(arguments.seed)  # a new projector is the same, whether the lessons were there or not
        return DistillTraining(arguments, accelerator)

    run(arguments, begin)


if __name__ == "__main__":
    sys.exit(run_command(main))
