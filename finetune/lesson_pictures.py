"""The pictures that lessons are about, in a folder or in records, and which of them are kept for evaluation."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tap_tokenizer import pictures_of, prompts_in_picture

from .cache import data_checksum, file_checksum
from .instructions import file_of
from .lesson_arguments import LessonArguments
from .records import Record, load_records


class LessonPictures:
    """What lessons are made of, by rows: the pictures of a folder, or records, of which several may be of one picture.

    Raises `ValueError` if there are fewer than two pictures, of which one would teach and one be kept for evaluation, or if the
    records hold the pictures themselves.
    """

    def __init__(self, arguments: LessonArguments) -> None:
        self.arguments = arguments
        if arguments.pictures is not None:
            self.files = pictures_of(Path(arguments.pictures))
            names = [one.image for one in self.files]
        else:
            self.data = Path(str(arguments.data))
            self.root = self.data if self.data.is_dir() else self.data.parent
            self.records = load_records(self.data)
            if getattr(self.records.rows.features["image"], "dtype", "") not in ("string", "large_string"):
                raise ValueError(f"{self.data} holds the pictures themselves: give records of pictures by their paths.")
            names = list(self.records.rows["image"])
        numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
        if len(numbers) < 2:
            raise ValueError(
                f"Got {len(numbers)} picture, expected at least 2, one to learn from and one for evaluation: give more."
            )
        share, last = arguments.held_out, len(numbers) - 1
        kept = {n for n in numbers.values() if int((n + 1) * share) > int(n * share)} or {last}
        self._is_held_out = [numbers[name] in kept for name in names]

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self._is_held_out)

    def is_held_out(self, row: int) -> bool:
        """Whether a row's picture is kept for evaluation: such pictures are spread evenly over all, and there is one."""
        return self._is_held_out[row]

    def record(self, row: int) -> tuple[Record, Path]:
        """A row's record, without regions if the picture is yet to be searched, and the folder that its path starts from."""
        if self.arguments.pictures is not None:
            name = Path(self.arguments.pictures).resolve().name
            return Record(str(self.files[row].path.resolve()), source=name), Path()
        return self.records[row], self.root

    def say_something(self) -> bool:
        """Whether a region has words of its own, which a teacher can be told: a caption or a label."""
        if self.arguments.pictures is not None or not self.arguments.true_words:
            return False
        return any(region.captions or region.label for record in self.records for region in record.regions)

    def check_regions(self) -> None:
        """Raise `ValueError` for the first region that does not fit its picture's size, where the record has one."""
        for row, record in enumerate(self.records if self.arguments.pictures is None else ()):
            try:
                if record.width:
                    prompts_in_picture(record.prompts(), record.size)
            except ValueError as error:
                raise ValueError(
                    f"Record {row} of {self.data}: {error} Correct it, or leave it out: python -m finetune.data validate "
                    f"--data {self.data} names all such records, and its --keep writes those that are whole."
                ) from None


def checksums(arguments: LessonArguments) -> dict[str, str]:
    """By what lessons are made of, what tells whether it is the same: SHA-256 of each file of instructions, of data, or of the
    names and sizes of pictures. Nothing of what is not there, or no longer.
    """
    files = {name: file_of(name) for name in arguments.instructions}
    found = {name: file_checksum(path) for name, path in files.items() if path.is_file()}
    if arguments.data is not None and Path(arguments.data).exists():
        found[arguments.data] = data_checksum(Path(arguments.data))
    if arguments.pictures is not None and Path(arguments.pictures).is_dir():
        paths = {one.image: one.path for one in pictures_of(Path(arguments.pictures))}
        listed = [f"{name} {path.stat().st_size if path.is_file() else None}\n" for name, path in paths.items()]
        found[arguments.pictures] = hashlib.sha256("".join(listed).encode()).hexdigest()
    return found
