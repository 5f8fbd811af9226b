"""Request forms of the reward server (pydantic), and the way from a request to groups.

A picture that several groups share is sent once, in the request's table of `images`. With `"on_error": "return"` a
group that cannot be scored has `{"error": sentence, "kind": ...}` in place of scores; else the request is refused.

Nothing here trusts its input: unknown keys, wrong types, and texts beyond the limits are refused in one sentence, and
no string of a request reaches the image reader as a path or URL except below the image root.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SkipValidation, ValidationError

from ...data.group import Group, ImageSource, make_group
from ...declarations import did_you_mean
from ...errors import DataError, ImageError, RequestError
from ...imagery.raster import read_image
from ...imagery.sources import ImageOptions, resolve_path
from ..http import Limits, needs_options

MESSAGE_COST = 32  # characters that a message or part counts beside its text: an empty one has tokens too
NAME_LENGTH = 500


class Form(BaseModel):
    """A JSON object of a request; types are not converted and unknown keys are refused."""

    model_config = ConfigDict(strict=True, extra="forbid")
    sentences: ClassVar[Mapping[str, str]]
    """What is wrong if a field is of another type (without a sentence: not a string); `""`: the object as such."""


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
        "ref": "an image's `ref` is not a place in the request's table of {table} images",
    }


# `make_group` checks prompts and completions. Items of lists are checked one by one, so that an error is its group's.
Text = SkipValidation[str | list[dict]]


class GroupForm(Form):
    """A prompt with its images and completions, each a text or messages in conversational form."""

    completions: list[Text] = Field(min_length=1)
    prompt: Text | None = Field(None, description="By default empty: the completions are captions.")
    images: list[SkipValidation[ImageForm]] | None = Field(None, description="In the order of their placeholders.")
    name: str | None = Field(None, max_length=NAME_LENGTH, description="How messages name the group.")
    sentences = {
        "": "expected an object with `completions`, a list of at least one text",
        "images": "`images` is not a list of at most {images} images",
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
    sentences = {"": "expected an object with problem_description, completion1 and completion2."}


F = TypeVar("F", bound=Form)


def _checked(form: type[F], data: object, refuse: Callable[[str, str], Exception], **numbers: int) -> F:
    """Returns JSON as a form; `refuse` makes the error of the key at fault (empty: the whole) and a sentence."""
    known = {key: data[key] for key in form.model_fields if key in data} if isinstance(data, dict) else data
    try:
        return form.model_validate(known)
    except ValidationError as error:
        place = error.errors(include_url=False, include_context=False, include_input=False)[0]["loc"]
    key = str(place[0]) if place else ""
    sentence = form.sentences.get(key, form.sentences[""])
    if key not in form.sentences and form.model_fields[key].annotation in (str, str | None):
        sentence = f"`{key}` is {'missing or ' if form.model_fields[key].is_required() else ''}not a string."
    raise refuse(key, sentence.format(**numbers))


def _refuse_unknown(data: Any, form: type[Form], what: str) -> None:
    for key in data:
        if key not in form.model_fields:
            key = key[:60]
            raise RequestError(422, f"{what} has the unknown key {key!r}{did_you_mean(key, form.model_fields)}")


def parse_request(
    data: object, limits: Limits, options: ImageOptions, parts: Mapping[str, bytes]
) -> tuple[ScoreForm, list[Group | Exception]]:
    """Returns a request's form and its groups, with the error in place of a group that cannot be used.

    `image_root` of the options allows paths; `parts` are the files of a multipart form. Raises RequestError if the
    request as a whole cannot be used.
    """
    form = _checked(ScoreForm, data, lambda _, sentence: RequestError(422, sentence))
    _refuse_unknown(data, ScoreForm, "the request")
    count, most = len(form.groups), limits.max_groups
    if count > most:
        raise RequestError(422, f"{count} groups in one request, at most {most} are taken; send less.")
    images = _Images(options, parts, form.images or [])
    groups: list[Group | Exception] = []
    for index, group in enumerate(form.groups):
        try:
            groups.append(_group(group, f"group {index}", limits, images))
        except (DataError, ImageError) as error:
            groups.append(error)
    return form, groups


def rewards_request(data: object) -> dict[str, Any]:
    """Turns a [`RewardsForm`] into a request of `/v1/score`; as there, the text comes before the image."""
    form = _checked(RewardsForm, data, lambda _, sentence: RequestError(422, sentence))
    image = form.image_data or ""
    head, comma, rest = image[:100].partition(",")
    if head.startswith("data:image") and comma:
        image = rest + image[100:]
    prompt: str | list[dict] = form.problem_description
    if image and "<image>" not in prompt:
        prompt = [{"role": "user", "content": [{"type": "text", "text": prompt}, {"type": "image"}]}]
    group = {"prompt": prompt, "completions": [form.completion1, form.completion2]}
    return {"groups": [group | {"images": [{"base64": image}] if image else [], "name": "the request"}]}


def _group(data: object, name: str, limits: Limits, images: _Images) -> Group:
    """Turns one group of a request, called `name` unless it has its own, into a [`Group`]."""

    def refuse(key: str, sentence: str) -> DataError:
        return DataError(sentence, key or "completions", name)

    form = _checked(GroupForm, data, refuse, images=limits.max_images)
    _refuse_unknown(data, GroupForm, name)
    name = form.name or name
    if (count := len(form.completions)) > (most := limits.max_completions):
        raise refuse("completions", f"{count} completions, at most {most} are taken; split the group")
    if len(form.images or []) > limits.max_images:
        raise refuse("images", GroupForm.sentences["images"].format(images=limits.max_images))
    _check_text(name, "name", name, NAME_LENGTH)
    _check_text(form.prompt, "prompt", name, limits.max_text)
    for completion in form.completions:
        _check_text(completion, "completions", name, limits.max_text)
    try:
        sources = [images.source(image, name) for image in form.images or []]
        return make_group(form.prompt, form.completions, sources, where=name)
    except DataError as error:
        raise error if error.where else DataError(error.detail, error.key, name) from None


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


@dataclass
class _Images:
    """Turns a request's image objects into sources for the reader."""

    options: ImageOptions
    parts: Mapping[str, bytes]
    table: list[ImageForm]
    read: dict[int, ImageSource] = field(default_factory=dict)

    def source(self, data: Any, name: str, in_table: bool = False) -> ImageSource:
        """Returns the source of one image object of a group, or of the table, where there is no `ref`."""

        def refuse(_: str, sentence: str) -> DataError:
            return DataError(sentence, "images", name)

        form = _checked(ImageForm, data, refuse, table=len(self.table))
        kinds = form.model_fields_set - {"ready"}
        if len(kinds) != 1 or not set(data) <= set(ImageForm.model_fields):
            raise refuse("", ImageForm.sentences[""])
        if "ref" in kinds:
            if in_table or not 0 <= form.ref < len(self.table):
                raise refuse("ref", ImageForm.sentences["ref"].format(table=len(self.table)))
            if form.ref not in self.read:
                self.read[form.ref] = self.source(self.table[form.ref], name, in_table=True)
            return self.read[form.ref]
        source: ImageSource
        if "path" in kinds:
            if self.options.image_root is None:
                raise ImageError(f"{name}: the server reads no paths; start it with --image_root, or send base64")
            source = str(resolve_path(form.path, self.options, name))
        elif "part" in kinds:
            if form.part not in self.parts:
                raise refuse("", f"no file part {form.part[:60]!r} in the form")
            source = {"bytes": self.parts[form.part]}
        else:
            try:
                source = {"bytes": base64.b64decode(form.base64, validate=True)}
            except ValueError:
                raise refuse("", "an image's `base64` is not base64; URLs are not read") from None
        return read_image(source, self.options, name) if needs_options(self.options) and not form.ready else source
