"""The sample form and its readers: files of preferences in, groups (a prompt, its images, N completions) out.

The documented schema is TRL's: columns `prompt`, `chosen`, `rejected`, plain strings or conversational, with optional
`image` or `images`, `margin`, `source`, `kind`, `id`; a `rejected` list holds several completions, best to worst.
Unlike in TRL's text-only trainers, plain text is laid out with the chat template: the prompt is a user turn, the
completion an assistant turn, and a plain caption (no prompt) answers an empty user turn. So an implicit prompt is
looked for in conversations only: two captions that begin alike share no prompt.

Normal form of a message: `{"role", "content"}` whose content is a list of `{"type": "image"}` and
`{"type": "text", "text": ...}` parts, for every role; an empty text gives no part. Images are kept apart, in the order
of their placeholders, as unread sources (path, `{"bytes", "path"}`, PIL or array): they are decoded late, by workers.

Left out: tool calls and reasoning fields (an error, not dropped), images in completions, streaming data sets.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

ImageSource = Any  # as in `imagery`: path, bytes, {"bytes", "path"}, PIL image or array
COLUMNS = "prompt, chosen, rejected, image or images, margin, source, kind, id"
ROLES = ("system", "user", "assistant", "tool")
FORM_VERSION = 1  # of the stored normal form: raise it when `_normal_rows` changes, so that caches go stale
_PLACEHOLDER = re.compile(r"\n?<image>\n?")
_UNREAD = ("tool_calls", "reasoning_content", "thinking")  # templates render these: not to be dropped
_RSRM_KEYS = ("question", "image_name", "image_path")


class DataError(ValueError):
    """A row or file that cannot be used as it is.

    Args:
        detail (`str`): What is wrong, what was expected, what to do.
        key (`str`): The column at fault, if one is.
        where (`str`): File and row, such as `"train.jsonl, line 12"`.
    """

    def __init__(self, detail: str, key: str = "", where: str = "") -> None:
        """See the class."""
        super().__init__(f"{where}: {detail}" if where else detail)
        self.detail, self.key = detail, key


@dataclass
class Group:
    """One prompt, its images and N completions: everything that is scored is a group.

    Args:
        prompt (`list[dict]`): Messages in the normal form; at least a (possibly empty) user turn.
        completions (`list[list[dict]]`): N completions, each a list of messages; best to worst in preference data.
        images (`list`): One unread source per `{"type": "image"}` part of the prompt, in order.
        margin (`float`): By how much the chosen completion should win.
        source (`str`): Name of the data source.
        kind (`str`): Kind of sample, such as `"caption"`.
        row (`int`): Line (JSONL, from 1) or row (others, from 0) in the file, -1 if unknown; not compared.
        where (`str`): File and row in words, for messages; not compared.
    """

    prompt: list[dict]
    completions: list[list[dict]]
    images: list[ImageSource] = field(default_factory=list)
    margin: float = 0.0
    source: str = ""
    kind: str = ""
    row: int = field(default=-1, compare=False)
    where: str = field(default="", compare=False)


def completion_text(messages: Sequence[Mapping]) -> str:
    """Returns the plain text of messages, one line break between two messages, images left out."""
    texts = []
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        texts.append("".join(part["text"] for part in parts if part["type"] == "text"))
    return "\n".join(text for text in texts if text)


def prompt_text(messages: Sequence[Mapping]) -> str:
    """Returns the plain text of a prompt: all its turns, images left out."""
    return completion_text(messages)


def make_group(prompt: Any, completions: Sequence[Any], images: Any = None, **meta: Any) -> Group:
    """Brings a prompt, its completions and images into the normal form.

    Placeholders are `{"type": "image"}` parts and literal `<image>` strings (with a line break on either side) of the
    prompt; without any, the images are put at the start of the first user turn. A part's own image
    (`{"type": "image", "image": source}`) fills its placeholder. Where completions are whole conversations (the first
    turn is not the assistant's) and the prompt is a string or missing, their longest common prefix is the prompt.
    A literal `<image>` in a completion stays text here, since a policy may write it; preference rows refuse it.

    Args:
        prompt (`str`, `list[dict]` or `None`): The question; empty or `None` for a plain caption.
        completions (sequence of `str` or `list[dict]`): N completions; may be empty strings.
        images (source or `list` of sources, *optional*): Paths, `{"bytes", "path"}`, PIL images or arrays.
        **meta: `margin`, `source`, `kind`, `row`, `where` of the [`Group`].

    Raises:
        DataError: If a type or role is wrong, a completion holds an image, or placeholders and images differ
            in number.

    Example:
        >>> make_group("Rural or urban?", ["urban"], "a.png").prompt
        [{'role': 'user', 'content': [{'type': 'image'}, {'type': 'text', 'text': 'Rural or urban?'}]}]
    """
    return _build(prompt, completions, [f"completions[{i}]" for i in range(len(completions))], _sources(images), meta)


def group_from_row(row: Mapping[str, Any], row_number: int = -1, where: str = "") -> Group:
    """Turns one preference row into a group whose completions are `[chosen, *rejected]`.

    Args:
        row (`dict`): A raw row of the documented schema, or a row of [`load_preferences`].
        row_number (`int`): Becomes [`Group`]'s `row`; by default the `row` that [`load_preferences`] has written.
        where (`str`): File and row for messages; by default the `where` that [`load_preferences`] has written.

    Raises:
        DataError: The first of the row's problems, with where, column, what was expected and what to do.
    """
    group, errors = inspect_row(row, row_number, where)
    if errors or group is None:
        raise errors[0]
    return group


def inspect_row(row: Any, row_number: int = -1, where: str = "") -> tuple[Group | None, list[DataError]]:
    """Like [`group_from_row`], but returns the group (`None` if unusable) and *all* problems, for the data check."""
    if not isinstance(row, Mapping):
        return None, [DataError(f"the row is {_short(row)}, expected an object with {COLUMNS}", "", where)]
    if row_number < 0 and isinstance(row.get("row"), int):
        row_number = row["row"]
    where = where or str(row.get("where") or "") or (f"row {row_number}" if row_number >= 0 else "")
    errors: list[DataError] = []

    def attempt(function: Callable, *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except DataError as error:
            errors.append(DataError(error.detail, error.key, where))
            return None

    meta = {"row": row_number, "where": where, "margin": attempt(_margin, row) or 0.0}
    meta |= {key: attempt(_string, row, key) or "" for key in ("source", "kind")}
    attempt(_string, row, "id")
    images = attempt(_row_images, row)
    keyed = attempt(_row_completions, row)
    if keyed is None or images is None:
        return None, errors
    keys, completions = zip(*keyed, strict=True)
    group = attempt(_build, row.get("prompt"), completions, keys, images, meta)
    if group is not None:
        for key, completion in zip(keys, group.completions, strict=True):
            attempt(_check_completion, key, completion)
    return (None if errors else group), errors


def _row_completions(row: Mapping) -> list[tuple[str, Any]]:
    missing = [key for key in ("chosen", "rejected") if key not in row]
    if missing:
        raise DataError(f"no column {' and '.join(f'`{k}`' for k in missing)}; the columns are "
                        f"{', '.join(map(str, row)) or 'none'}, expected {COLUMNS}; rename them", missing[0])
    chosen, rejected = row["chosen"], row["rejected"]
    if not isinstance(chosen, str) and not _is_conversation(chosen):
        raise DataError(f"`chosen` is {_short(chosen)}, expected one text or one list of messages", "chosen")
    if isinstance(rejected, str) or _is_conversation(rejected):
        return [("chosen", chosen), ("rejected", rejected)]
    if isinstance(rejected, (list, tuple)) and rejected:
        if len({isinstance(one, str) for one in rejected}) == 1 and all(
            isinstance(one, str) or _is_conversation(one) for one in rejected
        ):
            return [("chosen", chosen), *((f"rejected[{i}]", one) for i, one in enumerate(rejected))]
    raise DataError(f"`rejected` is {_short(rejected)}, expected one completion or a list, best to worst: texts, or "
                    "lists of messages", "rejected")


def _is_conversation(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(isinstance(m, Mapping) for m in value)


def _check_completion(key: str, completion: list[dict]) -> None:
    text = completion_text(completion)
    if not text.strip():
        raise DataError(f"`{key}` is empty, expected a text; remove the row", key)
    if "<image>" in text:
        raise DataError(f"`{key}` has an image placeholder; images belong to the prompt, move or remove it", key)


def _margin(row: Mapping) -> float:
    value = row.get("margin")
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e300:
        raise DataError(f"`margin` is {_short(value)}, expected a finite number; correct or remove it", "margin")
    return float(value)


def _string(row: Mapping, key: str) -> str:
    value = row.get(key)
    if key == "id" and isinstance(value, int):
        value = str(value)
    if value is not None and not isinstance(value, str):
        raise DataError(f"`{key}` is {_short(value)}, expected a string; write it in quotes or remove it", key)
    return value or ""


def _row_images(row: Mapping) -> list[ImageSource]:
    unread = [key for key in ("image_name", "image_path") if row.get(key) is not None]
    if unread:
        raise DataError(f"`{unread[0]}` is not read beside `prompt`; rename it to `image`", unread[0])
    if row.get("image") is not None and row.get("images") is not None:
        raise DataError("both `image` and `images` are given; keep one of them", "images")
    return _sources(row["image"], "image") if row.get("image") is not None else _sources(row.get("images"))


def _sources(images: Any, key: str = "images") -> list[ImageSource]:
    if images is None:
        return []
    return [_source(one, key) for one in (images if isinstance(images, (list, tuple)) else [images])]


def _source(source: Any, key: str) -> ImageSource:
    if isinstance(source, Mapping) and set(source) <= {"bytes", "path"}:
        if source.get("bytes") is not None:
            return dict(source)
        source = source.get("path")  # an undecoded HF `Image` that is only a path
    if isinstance(source, os.PathLike):
        source = os.fspath(source)
    if (isinstance(source, (str, bytes)) and source) or hasattr(source, "shape") or hasattr(source, "getbands"):
        return source
    raise DataError(f"`{key}` holds {_short(source)}, expected a path, {{bytes, path}}, a PIL image or an array; "
                    "leave the column out or null for a text-only row", key)


def _messages(value: Any, key: str, role: str) -> list[dict]:
    """Messages in the normal form, images still inside their parts; a string becomes one message of `role`."""
    if isinstance(value, str):
        value = [{"role": role, "content": value}]
    if not isinstance(value, (list, tuple)):
        raise DataError(f"`{key}` is {_short(value)}, expected a string or a list of messages", key)
    messages = []
    for message in value:
        if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
            raise DataError(f"`{key}` holds {_short(message)}, expected messages {{role, content}}", key)
        if message["role"] not in ROLES:
            raise DataError(f"`{key}` has the unknown role {message['role']!r}, expected {', '.join(ROLES)}", key)
        unread = [name for name in _UNREAD if message.get(name)]
        if unread:
            raise DataError(f"`{key}` has a message with `{unread[0]}`, which is not read; write it as text", key)
        content = message["content"]
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        if not isinstance(content, (list, tuple)):
            raise DataError(f"`{key}` has the content {_short(content)}, expected a string or a list of parts", key)
        parts = [_part(part, key) for part in content]
        messages.append({"role": message["role"], "content": [p for p in parts if p.get("text") != ""]})
    return messages


def _part(part: Any, key: str) -> dict:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if kind == "image":
        payload = next((part[name] for name in ("image", "path", "url") if part.get(name) is not None), None)
        return {"type": "image"} if payload is None else {"type": "image", "image": _source(payload, key)}
    raise DataError(f'`{key}` has the part {_short(part)}, expected {{"type": "image"}} or '
                    '{"type": "text", "text": a string}', key)


def _build(prompt: Any, completions: Sequence[Any], keys: Sequence[str], images: list, meta: Mapping) -> Group:
    normal = [_messages(one, key, "assistant") for key, one in zip(keys, completions, strict=True)]
    given = prompt
    implicit = (given is None or isinstance(given, str)) and any(m and m[0]["role"] != "assistant" for m in normal)
    if implicit:
        messages, normal = _split_prompt(normal)
        if given and given.strip() not in prompt_text(messages):
            raise DataError("`prompt` is a string that is not part of the prompt turns in `chosen` and `rejected`; "
                            "remove those turns or the column", "prompt")
    else:
        messages = _messages("" if given is None else given, "prompt", "user")
    for key, completion in zip(keys, normal, strict=True):
        if not completion or completion[0]["role"] != "assistant":
            start = f"begins with a {completion[0]['role']!r} turn" if completion else "has no messages"
            raise DataError(f"`{key}` {start} after the prompt, expected an assistant turn: all completions must "
                            "answer the same prompt", key)
        if any(part["type"] == "image" for message in completion for part in message["content"]):
            raise DataError(f"`{key}` has an image placeholder; images belong to the prompt, move or remove it", key)
    messages, ordered = _place_images(messages, images)
    return Group(messages, normal, ordered, **meta)


def _split_prompt(conversations: list[list[dict]]) -> tuple[list[dict], list[list[dict]]]:
    """Longest common prefix as TRL's `extract_prompt`, but the last message is always left as the completion."""
    end, first = 0, conversations[0]
    while all(end < len(c) - 1 and _same(c[end], first[end]) for c in conversations):
        end += 1
    return first[:end], [conversation[end:] for conversation in conversations]


def _same(a: dict, b: dict) -> bool:
    if a["role"] != b["role"] or len(a["content"]) != len(b["content"]):
        return False
    for p, q in zip(a["content"], b["content"], strict=True):
        images = p.get("image"), q.get("image")
        same_image = images[0] is images[1] or not hasattr(images[0], "shape") and bool(images[0] == images[1])
        if (p["type"], p.get("text")) != (q["type"], q.get("text")) or not same_image:
            return False
    return True


def _place_images(messages: list[dict], images: list) -> tuple[list[dict], list]:
    """Turns literal placeholders into parts, and lists the images in the order of all placeholders."""
    for message in messages:
        parts = []
        for part in message["content"]:
            pieces = _PLACEHOLDER.split(part["text"]) if part["type"] == "text" else []
            for i, piece in enumerate(pieces):
                parts += [{"type": "image"}] * bool(i) + [{"type": "text", "text": piece}] * bool(piece)
            parts += [] if pieces else [part]
        message["content"] = [dict(part) for part in parts]
    slots = [part for message in messages for part in message["content"] if part["type"] == "image"]
    user = next((message for message in messages if message["role"] == "user"), None)
    if user is None and (not messages or images):
        user = {"role": "user", "content": []}
        messages.append(user)
    if images and not slots and user is not None:
        slots = [{"type": "image"} for _ in images]
        user["content"][:0] = slots
    empty = sum("image" not in part for part in slots)
    if empty != len(images):
        raise DataError(
            f"{empty} image placeholder{'s' * (empty != 1)} in the prompt but {len(images)} "
            f"image{'s' * (len(images) != 1)}; give one image per placeholder, or remove the placeholders to have the "
            "images put at the start of the first user turn", "images")
    supply = iter(images)
    return messages, [part.pop("image") if "image" in part else next(supply) for part in slots]


def _short(value: Any) -> str:
    text = "null" if value is None else repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})" if value is not None else text


# Files


def load_preferences(
    path_or_paths: str | os.PathLike | Sequence[str | os.PathLike],
    split: str | None = None,
    image_root: str | os.PathLike | None = None,
) -> Dataset:
    """Loads preference files as one data set in the normal form, so that rows of any shape and file fit together.

    Columns: `prompt`, `chosen` (messages), `rejected` (list of completions), `images` (`{bytes, path}`),
    `margin`, `source` (by default the file's stem), `kind`, `id`, `row`, `where` (the row in its file).
    `group_from_row` of such a row equals that of the raw row. The rows are written once to the `datasets` cache.
    RSRM rows (no `prompt`, but `question`, `image_name` or `image_path`; or Parquet `text` + `image`) are recognised
    by their keys, see [`read_rsrm`]; `rsrm:PATH` reads a text-only file without these keys as RSRM.

    Args:
        path_or_paths (`str`, path or list): `.jsonl`, `.json` (a list of rows), `.parquet`, a `save_to_disk` folder, a
            folder of Parquet or JSONL files, or a Hub id; several as a list or separated by commas.
        split (`str`, *optional*): Split of a folder, saved `DatasetDict` or Hub id (default: the only one, or
            `"train"`). A plain file is one split.
        image_root (`str`, *optional*): Relative image paths become absolute paths below it; by default they stay
            as written, and [`ImageOptions`]'s `image_root` or the working folder applies.

    Raises:
        DataError: At the first bad row or file; `rs-rlhf data check` lists them all.
    """
    from datasets import Dataset
    from datasets.exceptions import DatasetGenerationError
    from datasets.fingerprint import Hasher

    files = tuple(split_paths(path_or_paths))
    root = None if image_root is None else os.path.abspath(image_root)  # the reader may join its own root again
    parts = tuple((name, part) for file in files for name, part in _parts_of(file, split))
    stamps = [(n, part._fingerprint if hasattr(part, "_fingerprint") else _stamp(part)) for n, part in parts]
    try:
        return Dataset.from_generator(
            _normal_rows,
            features=_features(),
            gen_kwargs={"files": files, "split": split, "image_root": root},
            fingerprint=Hasher.hash([files, stamps, split, root, FORM_VERSION]),
        )
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, DataError):
            raise error.__cause__ from None
        raise


def read_rsrm(path: str | os.PathLike, image_folder: str | os.PathLike | None = None) -> list[dict]:
    """Reads an RSRM file (the preference data of ScoreRS) as rows of the documented schema, one pair per rejected.

    JSON: a list of `{question?, chosen, rejected, image_name | image_path}`, images in a folder named like the file
    without its suffix; without image keys a row is text-only. Parquet: `image` = `{bytes, path}`, `text` = a JSON
    string with `chosen`, `rejected` and possibly `question`.

    Args:
        path (`str`): The `.json` or `.parquet` file.
        image_folder (`str`, *optional*): Where the images are, if not beside the file.

    Raises:
        DataError: If the file or a row cannot be read, or images are named but their folder does not exist.
    """
    rows = []
    for _, _, row in iter_rows(f"rsrm:{os.fspath(path)}", image_folder=image_folder):
        if isinstance(row, DataError):
            raise row
        rows.append(row)
    return rows


def split_paths(paths: str | os.PathLike | Sequence[str | os.PathLike]) -> list[str]:
    """Returns one path or id per file of a path, a comma-separated string, or a list of those."""
    if isinstance(paths, (str, os.PathLike)):
        text = os.fspath(paths)
        return [text] if Path(text).exists() else [part.strip() for part in text.split(",") if part.strip()]
    return [one for path in paths for one in split_paths(path)]


def row_label(file: str, number: int) -> str:
    """Names a row: lines of JSONL files count from 1 ("line 12"), rows of other files from 0 ("row 11")."""
    return f"{file}, {'line' if file.endswith('.jsonl') else 'row'} {number}" if number >= 0 else file


def iter_rows(
    file: str, split: str | None = None, image_folder: str | os.PathLike | None = None
) -> Iterator[tuple[str, int, Any]]:
    """Yields `(file, row number, row)` of a file, folder or Hub id; what cannot be read comes as a [`DataError`].

    RSRM rows are already in the documented schema (several rows with one number), and `source` is filled in.
    """
    for name, part in _parts_of(file, split):
        stem = re.sub(r"-\d+-of-\d+$", "", PurePath(name).stem)
        folder = Path(image_folder) if image_folder is not None else Path(name).with_suffix("")
        for number, row in _raw_rows(name, part):
            where = row_label(name, number)
            try:
                if isinstance(row, DataError):
                    raise row
                if not isinstance(row, Mapping):
                    raise DataError(f"the row is {_short(row)}, expected an object with {COLUMNS}")
                for one in _rsrm_rows(row, folder) if file.startswith("rsrm:") or _is_rsrm(row) else [row]:
                    # A row without `chosen` stays as it is: the message about it lists its columns.
                    named = one.get("source") is not None or "chosen" not in one
                    yield name, number, one if named else {**one, "source": stem}
            except DataError as error:
                yield name, number, DataError(error.detail, error.key, where)


def _parts_of(file: str, split: str | None) -> list[tuple[str, Any]]:
    """A file, folder or Hub id as (name, path or data set) pairs."""
    file = file.removeprefix("rsrm:")
    path = Path(file)
    if path.is_file():
        if path.suffix not in (".jsonl", ".json", ".parquet"):
            raise DataError(f"the suffix is '{path.suffix}', expected .jsonl, .json or .parquet", "", file)
        return [(file, path)]
    if path.is_dir() and not (path / "state.json").exists() and not (path / "dataset_dict.json").exists():
        found = sorted([*path.glob("*.parquet"), *path.glob("*.jsonl")])
        names = {re.split(r"[-_.]", one.name)[0] for one in found}
        if split is None and len(names) > 1 and names & {"train", "test", "validation", "valid", "val", "dev", "eval"}:
            raise DataError(f"the folder has several splits ({', '.join(sorted(names))}); name one of them", "", file)
        chosen = [one for one in found if split is None or split == re.split(r"[-_.]", one.name)[0]]
        if not chosen:
            raise DataError(f"no .parquet or .jsonl file{f' of the split {split!r}' if split else ''} in the folder, "
                            f"which has {', '.join(sorted(names)) or 'none'}", "", file)
        return [(str(one), one) for one in chosen]
    return [(file, _dataset(file, split))]


def _dataset(file: str, split: str | None) -> Any:
    from datasets import load_dataset, load_from_disk

    local = Path(file).is_dir()
    hub_id = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", file) and Path(file).suffix not in (".jsonl", ".json", ".parquet")
    if not local and not hub_id:
        raise DataError("no such file or folder; correct the path", "", file)
    try:
        data: Any = load_from_disk(file) if local else load_dataset(file)
    except Exception as error:
        kind = "a folder written by save_to_disk" if local else "a file, a folder, or a data set on the Hub"
        raise DataError(f"cannot be read as {kind} ({_line(error)})", "", file) from error
    if isinstance(data, Mapping):  # a DatasetDict
        name = split or (next(iter(data)) if len(data) == 1 else "train")
        if name not in data:
            raise DataError(f"no split {name!r}, it has {', '.join(data)}; name one of them", "", file)
        data = data[name]
    return data


def _raw_rows(name: str, part: Any) -> Iterator[tuple[int, Any]]:
    """Yields (number, row) as stored: images undecoded, and a [`DataError`] in place of what cannot be read."""
    if not isinstance(part, Path):
        batches = part.with_format("arrow").iter(batch_size=64)  # Arrow rows: HF images stay {bytes, path}
        yield from enumerate(row for batch in batches for row in batch.to_pylist())
    elif part.suffix == ".jsonl":
        with part.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    try:
                        yield number, json.loads(line)
                    except ValueError as error:
                        yield number, DataError(f"not JSON ({_line(error)}); write one object a line")
    elif part.suffix == ".json":
        try:
            rows = json.loads(part.read_bytes())
        except ValueError as error:
            yield -1, DataError(f"not JSON ({_line(error)}); one object a line is a .jsonl file")
            return
        if isinstance(rows, list):
            yield from enumerate(rows)
        else:
            yield -1, DataError(f"the file holds {_short(rows)}, expected a list of rows")
    else:
        import pyarrow.parquet

        try:
            batches = pyarrow.parquet.ParquetFile(part).iter_batches(batch_size=64)
            yield from enumerate(row for batch in batches for row in batch.to_pylist())
        except (OSError, ValueError) as error:
            yield -1, DataError(f"cannot be read as Parquet ({_line(error)}); write the file again")


def _is_rsrm(row: Mapping) -> bool:
    if "prompt" in row:
        return False
    return any(row.get(key) is not None for key in _RSRM_KEYS) or {"text", "image"} <= set(row) and "chosen" not in row


def _rsrm_rows(row: Mapping, folder: Path) -> list[dict]:
    data = row
    if "chosen" not in row and "text" in row:
        try:
            data = json.loads(row["text"])
        except (TypeError, ValueError) as error:
            raise DataError(f"`text` is not JSON ({_line(error)}), expected chosen, rejected", "text") from None
        if not isinstance(data, Mapping):
            raise DataError(f"`text` holds {_short(data)}, expected an object with chosen, rejected", "text")
    image = row.get("image")
    key = next((key for key in ("image_name", "image_path") if row.get(key) is not None), None)
    if key is not None:
        name = row[key]
        if not isinstance(name, str) or not name or PurePath(name).is_absolute() or ".." in PurePath(name).parts:
            raise DataError(f"`{key}` is {_short(name)}, expected a path inside the image folder", key)
        if not folder.is_dir():
            raise DataError(f"`{key}` names '{name}' but there is no image folder {folder}; put the images there", key)
        image = str(folder.absolute() / name)  # so that an image_root elsewhere does not move it
    base = {k: data[k] for k in ("chosen", "margin", "source", "kind", "id") if data.get(k) is not None}
    base |= {"prompt": data.get("question") or "", "image": image}
    if "rejected" not in data:
        return [base]
    rejected = data["rejected"]
    several = isinstance(rejected, list) and rejected and all(isinstance(one, str) for one in rejected)
    return [{**base, "rejected": one} for one in (rejected if several else [rejected])]


def _normal_rows(files: Sequence[str], split: str | None, image_root: str | None) -> Iterator[dict]:
    empty = True
    for file in files:
        for name, number, row in iter_rows(file, split):
            if isinstance(row, DataError):
                raise row
            group = group_from_row(row, number, row_label(name, number))
            empty = False
            yield {
                "prompt": group.prompt, "chosen": group.completions[0], "rejected": group.completions[1:],
                "images": [_stored(source, image_root) for source in group.images], "margin": group.margin,
                "source": group.source, "kind": group.kind, "id": _string(row, "id"), "row": number,
                "where": group.where,
            }
    if empty:
        raise DataError("no rows; give a file that has some", "", ", ".join(files))


def _stored(source: Any, image_root: str | None) -> dict:
    if isinstance(source, bytes):
        return {"bytes": source, "path": None}
    if isinstance(source, str):
        url = "://" in source
        return {"bytes": None, "path": source if image_root is None or url else os.path.join(image_root, source)}
    return {"bytes": source["bytes"], "path": source.get("path")}


def _features() -> Any:
    from datasets import Features, List, Value

    text = Value("string")
    message = {"role": text, "content": List({"type": text, "text": text})}
    columns = {"prompt": List(message), "chosen": List(message), "rejected": List(List(message))}
    # Not `Image(decode=False)`: saving that would open every path and URL, past `ImageOptions`.
    columns |= {"images": List({"bytes": Value("binary"), "path": text})}
    columns |= {"margin": Value("float64"), "row": Value("int64")}
    return Features(columns | {key: text for key in ("source", "kind", "id", "where")})


def _stamp(path: Path) -> tuple:
    stat = path.stat()
    return str(path.resolve()), stat.st_mtime_ns, stat.st_size


def _line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
