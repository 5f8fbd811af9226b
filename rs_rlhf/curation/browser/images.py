"""Images and questions of scored samples, read again from the data that were scored, with a cache.

A folder of scores holds texts but no images. A sample's shard tells in which unit of the input its row is, so that
reading starts there; one pass over a unit finds all its rows that the page is about to show, since the rows of a tar
file can only be read one after the other. Left out: images of more than [`LARGE`] pixels a side.
"""

from __future__ import annotations

import io
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from ...data.group import prompt_text
from ...data.image_text import ImageTextRow
from ...errors import DataError, ImageError, RequestError
from ...imagery.raster import read_image
from ...runs.report_tables import cut
from ..near_duplicates import read_rows
from .view import TEXTS, Ranked

THUMBNAIL, LARGE = 256, 1280  # longest side, in pixels: in a card, and enlarged
HELD_BYTES, HELD_ROWS = 256 * 2**20, 2000  # of rows, which hold their images as stored
EXPECTED = 500  # rows that one pass looks for
DECODED = 2  # images at a time: one of the largest allowed takes hundreds of megabytes


class Pictures:
    """Reads rows of the data that were scored, and their images; the last rows read stay in memory.

    The image options `given` override those of the scores.
    """

    def __init__(self, ranked: Ranked, given: Mapping[str, Any] | None = None) -> None:
        self.ranked = ranked
        self.options = replace(ranked.options, **(given or {}))  # no root: the reader has found images inside theirs
        self.held: OrderedDict[str, ImageTextRow] = OrderedDict()
        self.expected: OrderedDict[str, int] = OrderedDict()  # row id -> number of its unit
        self.size = 0
        self.reading: dict[int, threading.Lock] = defaultdict(threading.Lock)  # by unit
        self.keeping, self.decoding = threading.Lock(), threading.Semaphore(DECODED)
        self.thumbnail = lru_cache(2000)(self._jpeg)
        self.large = lru_cache(8)(lambda number, place: self._jpeg(number, place, LARGE))

    def expect(self, numbers: Iterable[int]) -> None:
        """Announces the samples that are about to be looked at."""
        with self.keeping:
            for number in numbers:
                unit, lines, _ = self.ranked.sample(number)
                self.expected[lines[0]["row_id"]] = unit
            while len(self.expected) > EXPECTED:
                self.expected.popitem(last=False)

    def row(self, number: int) -> ImageTextRow:
        """Returns the row of a sample. `RequestError`: no such sample, or its row cannot be read."""
        if number >= len(self.ranked.samples.first):
            raise RequestError(404, f"there is no sample {number}, only 0 to {len(self.ranked.samples.first) - 1}.")
        unit, lines, _ = self.ranked.sample(number)
        row_id = lines[0]["row_id"]
        with self.reading[unit]:
            row = self._held(row_id)
            return self._read(unit, row_id) if row is None else row

    def _held(self, row_id: str) -> ImageTextRow | None:
        with self.keeping:
            if row_id in self.held:
                self.held.move_to_end(row_id)
            return self.held.get(row_id)

    def _read(self, unit: int, wanted: str) -> ImageTextRow:
        """Reads the wanted row, and in the same pass all others of its unit that are expected."""
        with self.keeping:
            expected = {row_id for row_id, other in self.expected.items() if other == unit}
            ids = sorted({wanted} | (expected - self.held.keys()), key=lambda row_id: int(row_id.rpartition(":")[2]))
        result = None
        try:
            for _, row in read_rows(self.ranked.inputs, [self.ranked.units[unit]], ids):
                self._hold(row)
                result = row if row.row_id == wanted else result
        except (DataError, OSError) as error:
            if result is None:
                raise RequestError(422, str(error)) from None
        assert result is not None  # it is there, or it was an error
        return result

    def _hold(self, row: ImageTextRow) -> None:
        with self.keeping:
            self.size += _bytes_of(row) - (_bytes_of(self.held.pop(row.row_id)) if row.row_id in self.held else 0)
            self.held[row.row_id] = row
            while len(self.held) > 1 and (len(self.held) > HELD_ROWS or self.size > HELD_BYTES):
                self.size -= _bytes_of(self.held.popitem(last=False)[1])

    def about(self, number: int) -> dict[str, Any]:
        """Returns how many images a sample has, the questions that its texts answer, and the error of its row.

        Raises:
            RequestError: As for [`Pictures.row`].
        """
        row = self.row(number)
        # The last turn of each prompt: the answers before it are texts of the sample themselves.
        prompts = [cut(prompt_text(group.prompt[-1:])) for group in row.groups for _ in group.completions]
        lines = self.ranked.sample(number)[1]
        return {
            "images": len(row.images),
            "prompts": [prompts[line["text_index"]] for line in lines[:TEXTS] if line["text_index"] < len(prompts)],
            "error": None if row.error is None else str(row.error),
        }

    def _jpeg(self, number: int, place: int, side: int = THUMBNAIL) -> bytes:
        """An image of a sample as JPEG, of at most `side` pixels a side; a `RequestError` says why there is none."""
        row = self.row(number)
        if place >= len(row.images):
            raise RequestError(404, f"{row.row_id} has {len(row.images)} images; there is no image {place}.")
        try:
            with self.decoding:
                image = read_image(row.images[place], self.options, row.row_id)
                image.thumbnail((side, side))
        except (ImageError, MemoryError) as error:
            raise RequestError(422, str(error) or f"{row.row_id}: not enough memory for the image.") from None
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=85)
        return stream.getvalue()


def _bytes_of(row: ImageTextRow) -> int:
    sources = [image.get("bytes") if isinstance(image, dict) else image for image in row.images]
    return sum(len(image) for image in sources if isinstance(image, bytes))
