"""A policy whose answers are written already, in sample files of lmms-eval: `rs-rlhf best-of-n` chooses among them.

Left out: boxes, which are read by the size of the image as the model saw it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from ...data.group import Group, completion_text, short
from ...errors import DataError, OptionError
from ...models.policies.policy import Policy
from ...models.policies.sampling import SamplingOptions, consecutive_batches
from ...runs.files import read_lines
from .samples import answers_of


def answer_files(names: str) -> list[Path]:
    """Returns the sample files that an option names, separated by commas; none if it names a model."""
    files = [Path(name.strip()) for name in names.split(",")]
    return files if all(file.suffix == ".jsonl" and file.is_file() for file in files) else []


class WrittenAnswers(Policy):
    """Answers that lmms-eval has sampled, in place of a policy that samples: the line with the `doc_id` of a row.

    Args:
        files (sequence of `Path`): Sample files: of greedy answers, one a question, and of N sampled ones.

    Raises:
        DataError: A file cannot be used, or its number of answers differs from line to line.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.answers: dict[int, dict[int, list[str]]] = {}
        self.inputs: dict[int, str] = {}
        for file in files:
            read: dict[int, list[str]] = {}
            for number, line in enumerate(read_lines(file), start=1):
                where = f"{file}, line {number}"
                if not isinstance(line.get("doc_id"), int):
                    raise DataError(f"`doc_id` is {short(line.get('doc_id'))}, expected a number", "doc_id", where)
                read[line["doc_id"]] = answers_of(line, where)
                self.inputs[line["doc_id"]] = str(line.get("input") or "")
            counts = {len(texts) for texts in read.values()}
            if len(counts) != 1:
                raise DataError(
                    f"questions have {sorted(counts)} responses, expected as many of each", "resps", str(file)
                )
            self.answers[counts.pop()] = read

    def _answers(self, groups: Sequence[Group], places: Sequence[int], sampling: SamplingOptions) -> list[list[str]]:
        count = 1 if sampling.temperature == 0 else sampling.n
        if count not in self.answers:
            has = ", ".join(map(str, sorted(self.answers)))
            raise OptionError(
                f"the sample files have {has} responses a question, and {count} are needed; give a file of greedy "
                "answers (one response) and one of sampled ones, separated by a comma, and -n as many as it has.",
                "policy",
            )
        return [self._of(groups[place], place, self.answers[count]) for place in places]

    def _of(self, group: Group, place: int, read: Mapping[int, list[str]]) -> list[str]:
        number = group.row if group.row >= 0 else place
        if number not in read:
            raise DataError(f"no line has the doc_id {number}; run lmms-eval on the whole task", "doc_id", group.where)
        asked, given = (" ".join(text.split()) for text in (completion_text(group.prompt), self.inputs[number]))
        if asked not in given:
            raise DataError(
                f"doc_id {number} was asked {given!r:.80}, and the benchmark asks {asked!r:.80}; run lmms-eval on the "
                "task that `rs-rlhf eval export --tasks` writes",
                "input",
                group.where,
            )
        return list(read[number])

    def _batches(
        self, groups: Sequence[Group], sampling: SamplingOptions, share: tuple[int, int], done: Collection[int]
    ) -> Iterator[list[int]]:
        return consecutive_batches(len(groups), 256, share, done)

    def pixels(self, group: Group) -> list[tuple[int, int]]:
        """Returns no sizes: the files do not say how large the model saw an image."""
        return []
