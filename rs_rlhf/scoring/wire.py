"""The reward server's request form: checked JSON in, groups out. Also the answers of both its ends.

A request is `{"groups": [...]}`, each group `{"prompt", "completions", "images", "name"}`. An image is one of
`{"base64": ...}`, `{"path": ...}` (below the server's image root), `{"part": ...}` (a file of a multipart form) and
`{"ref": i}`, the i-th entry of the request's own `images` table, so that a picture that several groups share is sent
once. `"ready": true` marks a picture that already is what the model should see, so that the server's `bands` and
`stretch` are not applied again. With `"on_error": "return"` a group that cannot be scored has
`{"error": sentence, "kind": ...}` in place of its scores; otherwise the first such group refuses the request.

Nothing here trusts its input: unknown keys, wrong types, and texts beyond the limits are refused in one sentence, and
no string of a request reaches the image reader as a path or URL except below the image root.

Left out: pydantic models, whose messages are lists of codes rather than a sentence, and images inside messages.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..data.group import Group, make_group
from ..declarations import did_you_mean
from ..errors import DataError, ImageError, RequestError, ScoreError
from ..imagery.raster import ImageOptions, read_image
from ..imagery.sources import resolve_path

TOKEN = "RS_RLHF_SERVER_TOKEN"  # the environment variable of the bearer token, at both ends
GROUP_KEYS = ("prompt", "completions", "images", "name")
REQUEST_KEYS = ("groups", "images", "model_hash", "on_error")
IMAGE_KINDS = ("base64", "path", "part", "ref")
MESSAGE_COST = 32  # characters that a message or part counts beside its text: an empty one has tokens too
NAME_LENGTH = 500


@dataclass(frozen=True)
class Limits:
    """What one request may ask for.

    Args:
        bytes (`int`): Size of the body.
        groups (`int`): Groups.
        completions (`int`): Completions of one group.
        images (`int`): Images of one group.
        text (`int`): Characters of one prompt or completion.
    """

    bytes: int = 64 * 2**20
    groups: int = 256
    completions: int = 64
    images: int = 64
    text: int = 32_768


def load_json(body: bytes | str) -> Any:
    """Parses JSON, refusing what Python reads beyond the standard.

    Raises:
        RequestError: Not UTF-8, not JSON, NaN or infinity, or nested too deeply.
    """
    try:
        text = body.decode("utf-8") if isinstance(body, bytes) else body
        return json.loads(text, parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        raise RequestError(400, "the body is not UTF-8 text; send JSON.") from None
    except RecursionError:
        raise RequestError(400, "the JSON is nested too deeply.") from None
    except RequestError:
        raise
    except ValueError as error:
        raise RequestError(400, f"the body is not JSON: {error}.") from None


def _refuse_constant(name: str) -> Any:
    raise RequestError(400, f"the body holds {name}, which JSON does not have.")


@dataclass
class Request:
    """A request, read.

    Args:
        groups (`list`): For each group the [`Group`], or the `DataError` or `ImageError` that it could not be made
            for.
        model_hash (`str`, *optional*): The model that the client expects.
        on_error (`str`): `"raise"` or `"return"`.
    """

    groups: list[Any]
    model_hash: str | None = None
    on_error: str = "raise"


@dataclass
class Images:
    """Turns a request's image objects into sources for the reader.

    Args:
        options ([`ImageOptions`]): How the server reads images; `image_root` allows paths.
        parts (`dict`): Files of a multipart form, by name.
        table (`list`): The request's `images`.
    """

    options: ImageOptions
    parts: Mapping[str, bytes] = field(default_factory=dict)
    table: list = field(default_factory=list)
    _read: dict[int, Any] = field(default_factory=dict)

    def source(self, one: Any, name: str, in_table: bool = False) -> Any:
        """Returns the source of one image object.

        Args:
            one: The object.
            name (`str`): The group, for messages.
            in_table (`bool`): The object stands in the table, where there is no `ref`.

        Raises:
            DataError: The object is not of the documented form.
            ImageError: The image is not there, or is to be read with the server's options and cannot be.
        """
        kinds = [kind for kind in IMAGE_KINDS if isinstance(one, dict) and kind in one]
        if len(kinds) != 1 or not set(one) <= {*kinds, "ready"} or not isinstance(one.get("ready", False), bool):
            raise DataError(
                "an image is not an object with one of base64, path, part or ref (and optionally ready: true); URLs "
                "are not read",
                "images",
                name,
            )
        kind, value = kinds[0], one[kinds[0]]
        if kind == "ref":
            return self._of_table(value, name, in_table)
        if not isinstance(value, str):
            raise DataError(f"the image's `{kind}` is not a string", "images", name)
        source = self._from_path(value, name) if kind == "path" else {"bytes": self._bytes(kind, value, name)}
        if needs_options(self.options) and not one.get("ready"):
            return read_image(source, self.options, name)
        return source

    def _of_table(self, index: Any, name: str, in_table: bool) -> Any:
        if type(index) is not int or not 0 <= index < len(self.table) or in_table:
            raise DataError(
                f"an image's `ref` is not a place in the request's table of {len(self.table)} images", "images", name
            )
        if index not in self._read:
            self._read[index] = self.source(self.table[index], name, in_table=True)
        return self._read[index]

    def _bytes(self, kind: str, value: str, name: str) -> bytes:
        if kind == "part":
            if value not in self.parts:
                raise DataError(f"no file part {value[:60]!r} in the form", "images", name)
            return self.parts[value]
        try:
            return base64.b64decode(value, validate=True)
        except ValueError:
            raise DataError("an image's `base64` is not base64; URLs are not read", "images", name) from None

    def _from_path(self, value: str, name: str) -> str:
        if self.options.image_root is None:
            raise ImageError(f"{name}: the server reads no paths; start it with --image_root, or send base64")
        return str(resolve_path(value, self.options, name))


def needs_options(options: ImageOptions) -> bool:
    """Whether the options change what a plain 8-bit image looks like."""
    return options.bands is not None or options.stretch is not None or options.nodata is not None


def parse_request(
    data: Any, limits: Limits, options: ImageOptions, parts: Mapping[str, bytes] | None = None
) -> Request:
    """Turns a request into groups.

    Args:
        data: The parsed JSON.
        limits ([`Limits`]): What it may ask for.
        options ([`ImageOptions`]): How the server reads images.
        parts (`dict`, *optional*): Files of a multipart form, by name.

    Raises:
        RequestError: The request as a whole cannot be used.
    """
    if not isinstance(data, dict) or not isinstance(data.get("groups"), list):
        raise RequestError(422, 'expected an object {"groups": [...]}.')
    _refuse_unknown(data, REQUEST_KEYS, "the request")
    groups, table = data["groups"], data.get("images")
    if len(groups) > limits.groups:
        raise RequestError(422, f"{len(groups)} groups in one request, at most {limits.groups} are taken; send less.")
    if not isinstance(table, list | None):
        raise RequestError(422, "`images` is not a list of images.")
    on_error, model_hash = data.get("on_error", "raise"), data.get("model_hash")
    if on_error not in ("raise", "return"):
        raise RequestError(422, '`on_error` is neither "raise" nor "return".')
    if not isinstance(model_hash, str | None):
        raise RequestError(422, "`model_hash` is not a string.")
    images = Images(options, parts or {}, table or [])
    read: list[Any] = []
    for index, one in enumerate(groups):
        try:
            read.append(parse_group(one, f"group {index}", limits, images))
        except (DataError, ImageError) as error:
            read.append(error)
    return Request(read, model_hash, on_error)


def _refuse_unknown(value: Mapping, keys: tuple[str, ...], what: str) -> None:
    for key in value:
        if key not in keys:
            raise RequestError(422, f"{what} has the unknown key {key[:60]!r}{did_you_mean(key[:60], keys)}")


def parse_group(one: Any, name: str, limits: Limits, images: Images) -> Group:
    """Turns one group of a request into a [`Group`].

    Args:
        one: The group's JSON.
        name (`str`): How messages call it, unless it has its own `name`.
        limits ([`Limits`]): What it may ask for.
        images ([`Images`]): Where its images come from.

    Raises:
        RequestError: A key is unknown.
        DataError, ImageError: The group cannot be used.
    """
    if not isinstance(one, dict) or not isinstance(one.get("completions"), list) or not one["completions"]:
        raise DataError("expected an object with `completions`, a list of at least one text", "completions", name)
    _refuse_unknown(one, GROUP_KEYS, name)
    given, pictures = one.get("name"), one.get("images")
    if not isinstance(given, str | None) or len(given or "") > NAME_LENGTH:
        raise DataError("`name` is not a short string", "name", name)
    name = given or name
    if len(one["completions"]) > limits.completions:
        raise DataError(
            f"{len(one['completions'])} completions, at most {limits.completions} are taken; split the group",
            "completions",
            name,
        )
    if not isinstance(pictures, list | None) or len(pictures or []) > limits.images:
        raise DataError(f"`images` is not a list of at most {limits.images} images", "images", name)
    _check_text(name, "name", name, NAME_LENGTH)
    for key, value in (("prompt", one.get("prompt")), *(("completions", value) for value in one["completions"])):
        _check_text(value, key, name, limits.text)
    try:
        sources = [images.source(picture, name) for picture in pictures or []]
        return make_group(one.get("prompt"), one["completions"], sources, where=name)
    except DataError as error:
        raise error if str(error).startswith(name) else DataError(error.detail, error.key, name) from None


def _check_text(value: Any, key: str, name: str, limit: int) -> None:
    """Refuses a text or messages that are too long, hold half a character, or an image; the rest is `make_group`'s."""
    texts, cost = [value] if isinstance(value, str) else [], 0
    messages = value if isinstance(value, list) else []
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
        cost += MESSAGE_COST * (1 + len(parts))
        for part in parts:
            if not isinstance(part, dict):
                raise DataError(f"`{key}` has a message whose parts are not objects", key, name)
            if part.get("type") == "image" and set(part) != {"type"}:
                text = f'`{key}` has an image inside; write {{"type": "image"}} and list it in `images`'
                raise DataError(text, key, name)
            if isinstance(part.get("text"), str):
                texts.append(part["text"])
    cost += sum(map(len, texts))
    if cost > limit:
        raise DataError(f"`{key}` has {cost} characters, at most {limit} are taken; shorten it", key, name)
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise DataError(f"`{key}` holds half of a surrogate pair, which is no text", key, name) from None


def rewards_request(data: Any) -> dict[str, Any]:
    """Turns a request in the form of the ScoreRS authors' server into one of ours.

    Args:
        data: `problem_description`, `completion1`, `completion2`, and optionally `image_data` (base64, or a data URL
            of base64) and `model`; other keys are ignored, as there.

    Raises:
        RequestError: A field is missing or not a string.
    """
    if not isinstance(data, dict):
        raise RequestError(422, "expected an object with problem_description, completion1 and completion2.")
    for key in ("problem_description", "completion1", "completion2"):
        if not isinstance(data.get(key), str):
            raise RequestError(422, f"`{key}` is missing or not a string.")
    for key in ("image_data", "model"):
        if not isinstance(data.get(key), str | None):
            raise RequestError(422, f"`{key}` is not a string.")
    image = data.get("image_data") or ""
    head, comma, rest = image[:100].partition(",")
    if head.startswith("data:image") and comma:
        image = rest + image[100:]
    completions = [data["completion1"], data["completion2"]]
    group = {"prompt": data["problem_description"], "completions": completions, "name": "the request"}
    return {"groups": [group | ({"images": [{"base64": image}]} if image else {})]}


def error_kind(error: Exception) -> str:
    """Returns what the answer calls an error: `"image"`, `"data"`, `"score"` or `"server"`."""
    kinds = {ImageError: "image", DataError: "data", ScoreError: "score"}
    return next((kind for cls, kind in kinds.items() if isinstance(error, cls)), "server")


def error_from(kind: str, sentence: str) -> Exception:
    """Returns the error that [`error_kind`] has named."""
    classes = {"image": ImageError, "data": DataError}
    return classes.get(kind, ScoreError)(sentence)


def sentence_of(error: Exception | str, limit: int = 500) -> str:
    """Returns an error's message as one line of text that any encoder takes."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = text if len(text) <= limit else text[: limit - 3] + "..."
    return text.encode("utf-8", "replace").decode()
