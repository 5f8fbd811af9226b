"""Request and reply forms of the reward server (pydantic), and the way from a checked request to groups.

A request is a [`ScoreForm`]: groups of a prompt, completions and images. A picture that several groups share is sent
once, in the request's own table of `images`, and named by its place. With `"on_error": "return"` a group that cannot
be scored has an [`ErrorForm`] in place of its scores; otherwise the first such group refuses the request.

Nothing here trusts its input: unknown keys, wrong types, and texts beyond the limits are refused in one sentence, and
no string of a request reaches the image reader as a path or URL except below the image root. Left out: pydantic's own
messages, which are lists of codes rather than a sentence, and images inside messages.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SkipValidation, ValidationError

from ..data.group import Group, ImageSource, make_group
from ..declarations import did_you_mean
from ..errors import DataError, ImageError, RequestError
from ..imagery.raster import read_image
from ..imagery.sources import ImageOptions, resolve_path
from .http import needs_options

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


# --- forms ----------------------------------------------------------------------------------------------------------


class Form(BaseModel):
    """A JSON object of a request; types are not converted and unknown keys are refused."""

    model_config = ConfigDict(strict=True, extra="forbid")
    sentences: ClassVar[Mapping[str, str]]
    """What is wrong with a field of another type; `""`: with all else."""


class ImageForm(Form):
    """An image: exactly one of `base64`, `path`, `part` and `ref`. URLs are not read."""

    base64: str = Field("", description="The file (PNG, JPEG, TIFF, …) in base64.")
    path: str = Field("", description="A path below the server's image root.")
    part: str = Field("", description="The name of a file of the multipart form.")
    ref: int = Field(0, description="A place, counted from 0, in the request's `images`.")
    ready: bool = Field(False, description="The picture is what the model should see: no bands, no stretch.")
    sentences = {
        "": "an image is not an object with one of base64, path, part or ref (and optionally ready: true); URLs are "
        "not read",
        "base64": "the image's `base64` is not a string",
        "path": "the image's `path` is not a string",
        "part": "the image's `part` is not a string",
        "ref": "an image's `ref` is not a place in the request's table of {table} images",
    }


# Prompts and completions are checked by `make_group`, items of lists one by one so that an error is its group's.
Text = SkipValidation[str | list[dict]]


class GroupForm(Form):
    """A prompt with its images and completions, each a text or messages in conversational form."""

    completions: list[Text] = Field(min_length=1)
    prompt: Text | None = Field(None, description="By default empty: the completions are captions.")
    images: list[SkipValidation[ImageForm]] | None = Field(None, description="In the order of their placeholders.")
    name: str | None = Field(None, max_length=NAME_LENGTH, description="How messages name the group.")
    sentences = {
        "": "expected an object with `completions`, a list of at least one text",
        "images": "`images` is not a list of at most {limit} images",
        "name": "`name` is not a short string",
    }


class ScoreForm(Form):
    """A request of `/v1/score`."""

    groups: list[SkipValidation[GroupForm]]
    images: list[SkipValidation[ImageForm]] | None = Field(None, description="Images that groups name by `ref`.")
    model_hash: str | None = Field(None, description="Refuse the request if the model is another one.")
    on_error: Literal["raise", "return"] = "raise"
    sentences = {
        "": 'expected an object {{"groups": [...]}}.',
        "images": "`images` is not a list of images.",
        "model_hash": "`model_hash` is not a string.",
        "on_error": '`on_error` is neither "raise" nor "return".',
    }


class RewardsForm(Form):
    """A request of `/v1/rewards`, the form of the ScoreRS authors' server; other keys are ignored, as there."""

    model_config = ConfigDict(extra="ignore")
    problem_description: str
    completion1: str
    completion2: str
    image_data: str | None = Field(None, description="base64, or a data URL of base64.")
    model: str | None = None
    sentences = {
        "": "expected an object with problem_description, completion1 and completion2.",
        **{
            key: f"`{key}` is missing or not a string."
            for key in ("problem_description", "completion1", "completion2")
        },
        **{key: f"`{key}` is not a string." for key in ("image_data", "model")},
    }


class ErrorForm(BaseModel):
    """Why a group, or a whole request, was not scored."""

    error: str = Field(description="One sentence.")
    kind: Literal["image", "data", "score", "server"] | None = None


class ScoreReply(BaseModel):
    """For each group the scores of its completions, in order, or with `"on_error": "return"` its error."""

    scores: list[list[float] | ErrorForm]
    model_hash: str


class CompletionScore(BaseModel):
    """The score of one completion."""

    completion_id: Literal["completion1", "completion2"]
    score: float


class RewardsReply(BaseModel):
    """The scores of both completions."""

    model: str
    scores: list[CompletionScore]


F = TypeVar("F", bound=Form)


def checked(form: type[F], data: object, refuse: Callable[[str, str], Exception], **numbers: int) -> F:
    """Returns JSON as its form.

    Args:
        form (`type`): The form.
        data: Parsed JSON.
        refuse (function): Makes the error of a key at fault (empty: the whole) and a sentence.
        **numbers: Stand in the form's sentences.
    """
    known = {key: data[key] for key in form.model_fields if key in data} if isinstance(data, dict) else data
    try:
        return form.model_validate(known)
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_context=False, include_input=False)[0]["loc"]
    key = str(wrong[0]) if wrong else ""
    raise refuse(key, form.sentences.get(key, form.sentences[""]).format(**numbers))


def _refuse_unknown(data: object, form: type[Form], what: str) -> None:
    for key in data if isinstance(data, dict) else ():
        if key not in form.model_fields:
            raise RequestError(
                422, f"{what} has the unknown key {key[:60]!r}{did_you_mean(key[:60], form.model_fields)}"
            )


# --- a request's groups ---------------------------------------------------------------------------------------------


@dataclass
class Request:
    """A checked request.

    Args:
        groups (`list`): For each group the [`Group`], or the `DataError` or `ImageError` why it could not be made.
        model_hash (`str`, *optional*): The model that the client expects.
        on_error (`str`): `"raise"` or `"return"`.
    """

    groups: list[Group | Exception]
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
    table: list[ImageForm] = field(default_factory=list)
    _read: dict[int, ImageSource] = field(default_factory=dict)

    def source(self, data: object, name: str, in_table: bool = False) -> ImageSource:
        """Returns the source of one image object.

        Args:
            data: The object.
            name (`str`): The group, for messages.
            in_table (`bool`): The object stands in the table, where there is no `ref`.

        Raises:
            DataError: The object is not an [`ImageForm`].
            ImageError: The image is not there, or is to be read with the server's options and cannot be.
        """

        def refuse(_: str, sentence: str) -> DataError:
            return DataError(sentence, "images", name)

        form = checked(ImageForm, data, refuse, table=len(self.table))
        kinds = form.model_fields_set - {"ready"}
        if len(kinds) != 1 or not set(data) <= set(ImageForm.model_fields):  # type: ignore[call-overload]  # a dict
            raise refuse("", ImageForm.sentences[""])
        (kind,) = kinds
        if kind == "ref":
            if in_table or not 0 <= form.ref < len(self.table):
                raise refuse("ref", ImageForm.sentences["ref"].format(table=len(self.table)))
            if form.ref not in self._read:
                self._read[form.ref] = self.source(self.table[form.ref], name, in_table=True)
            return self._read[form.ref]
        source: ImageSource = (
            self._path(form.path, name) if kind == "path" else {"bytes": self._bytes(form, kind, name)}
        )
        return read_image(source, self.options, name) if needs_options(self.options) and not form.ready else source

    def _bytes(self, form: ImageForm, kind: str, name: str) -> bytes:
        if kind == "part":
            if form.part not in self.parts:
                raise DataError(f"no file part {form.part[:60]!r} in the form", "images", name)
            return self.parts[form.part]
        try:
            return base64.b64decode(form.base64, validate=True)
        except ValueError:
            raise DataError("an image's `base64` is not base64; URLs are not read", "images", name) from None

    def _path(self, value: str, name: str) -> str:
        if self.options.image_root is None:
            raise ImageError(f"{name}: the server reads no paths; start it with --image_root, or send base64")
        return str(resolve_path(value, self.options, name))


def parse_request(
    data: object, limits: Limits, options: ImageOptions, parts: Mapping[str, bytes] | None = None
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
    form = checked(ScoreForm, data, lambda _, sentence: RequestError(422, sentence))
    _refuse_unknown(data, ScoreForm, "the request")
    count = len(form.groups)
    if count > limits.groups:
        raise RequestError(422, f"{count} groups in one request, at most {limits.groups} are taken; send less.")
    images = Images(options, parts or {}, form.images or [])
    groups: list[Group | Exception] = []
    for index, group in enumerate(form.groups):
        try:
            groups.append(parse_group(group, f"group {index}", limits, images))
        except (DataError, ImageError) as error:
            groups.append(error)
    return Request(groups, form.model_hash, form.on_error)


def parse_group(data: object, name: str, limits: Limits, images: Images) -> Group:
    """Turns one group of a request into a [`Group`].

    Args:
        data: The group's JSON.
        name (`str`): How messages call it, unless it has its own `name`.
        limits ([`Limits`]): What it may ask for.
        images ([`Images`]): Where its images come from.

    Raises:
        RequestError: A key is unknown.
        DataError, ImageError: The group cannot be used.
    """

    def refuse(key: str, sentence: str) -> DataError:
        return DataError(sentence, key or "completions", name)

    form = checked(GroupForm, data, refuse, limit=limits.images)
    _refuse_unknown(data, GroupForm, name)
    name = form.name or name
    if (count := len(form.completions)) > limits.completions:
        sentence = f"{count} completions, at most {limits.completions} are taken; split the group"
        raise refuse("completions", sentence)
    if len(form.images or []) > limits.images:
        raise refuse("images", GroupForm.sentences["images"].format(limit=limits.images))
    for key, value, limit in (
        ("name", name, NAME_LENGTH),
        ("prompt", form.prompt, limits.text),
        *(("completions", value, limits.text) for value in form.completions),
    ):
        _check_text(value, key, name, limit)
    try:
        sources = [images.source(image, name) for image in form.images or []]
        return make_group(form.prompt, form.completions, sources, where=name)
    except DataError as error:
        raise error if str(error).startswith(name) else DataError(error.detail, error.key, name) from None


def _check_text(value: object, key: str, name: str, limit: int) -> None:
    """Refuses a text or messages that are too long, hold half a character, or an image; the rest is `make_group`'s."""
    texts, cost = [value] if isinstance(value, str) else [], 0
    for message in value if isinstance(value, list) else []:
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


def rewards_request(data: object) -> dict[str, object]:
    """Turns a [`RewardsForm`] into a request of `/v1/score`.

    Raises:
        RequestError: A field is missing or not a string.
    """
    form = checked(RewardsForm, data, lambda _, sentence: RequestError(422, sentence))
    image = form.image_data or ""
    head, comma, rest = image[:100].partition(",")
    if head.startswith("data:image") and comma:
        image = rest + image[100:]
    group: dict[str, object] = {
        "prompt": form.problem_description,
        "completions": [form.completion1, form.completion2],
    }
    group |= {"name": "the request"} | ({"images": [{"base64": image}]} if image else {})
    return {"groups": [group]}
