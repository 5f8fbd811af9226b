"""`ImageOptions`: how images are found and become RGB, for all images or for those of each sensor.

A row may hold a Sentinel-2 and a Sentinel-1 image, which no single choice of bands and stretch can show. So a YAML
file names sensors, and the path of an image says of which it is: by a pattern, or by `#sensor` at its end, which a
column of the row may have added (`--columns sensor=…`). Left out: guessing the sensor from the pixels.
"""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from fnmatch import translate
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..declarations import did_you_mean
from ..errors import ImageError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".jp2", ".j2k")
STRETCHES = ("percentile", "fixed")
RENDERING = ("max_image_pixels", "bands", "stretch", "stretch_range", "nodata", "sensors")  # what pixels depend on


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@dataclass(frozen=True)
class ImageOptions:
    """How images are found and turned into RGB.

    Args:
        image_root: Folder that relative paths start from and that no path may leave. `None`: paths are used as given.
        allowed_hosts: Host names that `http(s)://` images may come from. Empty: no downloads.
        max_image_pixels: Largest width x height, in pixels; a larger image is refused before it is decoded.
        bands: The bands to show, 1-based as in GDAL: three for R, G, B, or one for gray. Exactly these bands are
            shown, so an alpha band is then not applied (which also rescues a near-infrared band flagged as alpha).
        stretch: `"percentile"`, `"fixed"`, or `None` for 8-bit values as they are.
        stretch_range: The two percentiles (default 2 and 98, per band), or for `"fixed"` the two values that become
            0 and 255.
        nodata: Value that stands for "no data", over the file's own. A pixel is nodata when every shown band has
            it, or any is NaN or infinite; it is left out of the percentiles and painted black.
        sensors: How the images of each sensor are read: a tuple of [`Sensor`], or a YAML file or its content (see
            [`read_sensors`]). The first that matches an image replaces `bands`, `stretch`, `stretch_range`, `nodata`.

    Raises:
        ImageError: An option is of the wrong kind or contradicts another.
    """

    image_root: str | None = None
    allowed_hosts: tuple[str, ...] = ()
    max_image_pixels: int = 100_000_000
    bands: tuple[int, ...] | None = None
    stretch: str | None = None
    stretch_range: tuple[float, float] | None = None
    nodata: float | None = None
    sensors: tuple["Sensor", ...] = ()

    def __post_init__(self) -> None:
        """Validate, and turn the lists and mappings that YAML gives into tuples."""
        if not isinstance(self.sensors, tuple):
            given = read_sensors(self.sensors) if isinstance(self.sensors, str | os.PathLike) else self.sensors
            object.__setattr__(self, "sensors", _sensors(given))
        if self.image_root is not None:
            object.__setattr__(self, "image_root", os.fspath(self.image_root))
        for field in ("allowed_hosts", "bands", "stretch_range"):
            value = getattr(self, field)
            if isinstance(value, list):
                object.__setattr__(self, field, tuple(value))
            elif value is not None and not isinstance(value, tuple):
                raise ImageError(f"image option `{field}` must be a list, got {value!r}")
        for host in self.allowed_hosts:
            if not isinstance(host, str) or not re.fullmatch(r"[\w.-]+", host):
                raise ImageError(f"image option `allowed_hosts` takes bare host names (`example.org`), got {host!r}")
        object.__setattr__(self, "allowed_hosts", tuple(host.lower() for host in self.allowed_hosts))
        if type(self.max_image_pixels) is not int or self.max_image_pixels < 1:
            raise ImageError(f"image option `max_image_pixels` must be a whole number, got {self.max_image_pixels!r}")
        if self.bands is not None:
            whole = all(type(band) is int and band >= 1 for band in self.bands)
            if not whole or len(self.bands) not in (1, 3):
                raise ImageError(
                    f"image option `bands` takes one or three band numbers counted from 1, got {list(self.bands)}"
                )
        if self.nodata is not None and not _is_number(self.nodata):
            raise ImageError(f"image option `nodata` must be a number, got {self.nodata!r}")
        self._check_stretch()

    def _check_stretch(self) -> None:
        if self.stretch is not None and self.stretch not in STRETCHES:
            raise ImageError(f"image option `stretch` must be one of {', '.join(STRETCHES)}, got {self.stretch!r}")
        span = self.stretch_range
        if span is None:
            if self.stretch == "fixed":
                raise ImageError("image option `stretch: fixed` needs `stretch_range: [low, high]`")
            return
        if self.stretch is None:
            raise ImageError(f"image option `stretch_range` needs `stretch`, one of {', '.join(STRETCHES)}")
        if len(span) != 2 or not all(_is_number(v) and math.isfinite(v) for v in span) or span[0] >= span[1]:
            raise ImageError(f"image option `stretch_range` must be two numbers [low, high], got {list(span)}")
        if self.stretch == "percentile" and not 0 <= span[0] < span[1] <= 100:
            raise ImageError(f"image option `stretch_range` must lie in 0..100 for percentiles, got {list(span)}")

    def recorded(self) -> dict[str, Any]:
        """Returns what pixels depend on, by the names of [`RENDERING`], as JSON can hold it and `ImageOptions` takes
        it.
        """
        values: dict[str, Any] = {name: getattr(self, name) for name in RENDERING}
        return values | {"sensors": [sensor.recorded() for sensor in self.sensors] or None}

    def plain(self) -> "ImageOptions":
        """Returns these limits for pictures that have been read already: no bands, no stretch, no downloads."""
        rendering: dict[str, Any] = dict.fromkeys(("bands", "stretch", "stretch_range", "nodata"))
        return replace(self, **rendering, sensors=(), allowed_hosts=())

    def of_image(self, source: object) -> "ImageOptions":
        """Returns how one image is read: as those of the sensor that its path names after `#`, else of the first of
        which a pattern matches its path, else as given.

        The path of `{"bytes", "path"}` and of an opened picture counts; an image without one matches `*` alone.
        """
        if not self.sensors:
            return self
        path = source.get("path") if isinstance(source, Mapping) else getattr(source, "filename", source)
        name = os.fspath(path).replace("\\", "/") if isinstance(path, str | os.PathLike) else ""
        bare = name.rpartition("#")[0] or name
        named = [sensor for sensor in self.sensors if name.endswith(with_sensor("", sensor.name))]
        for sensor in named or self.sensors:
            if named or any(_pattern(pattern).match(text) for pattern in sensor.path for text in (name, bare)):
                return replace(self, sensors=(), **{name: getattr(sensor, name) for name in _OF_SENSOR})
        return replace(self, sensors=())


_OF_SENSOR = ("bands", "stretch", "stretch_range", "nodata")
_NOT_IN_NAMES = str.maketrans("/\\#", "---")  # of sensors, where a path ends in one


@dataclass(frozen=True)
class Sensor:
    """How the images of one sensor are told and read.

    Args:
        name: The sensor's name.
        path: Patterns of an image's path, such as `"s1/*"` or `"*_VV_*"`: `*` is any text, slashes too; a pattern may
            begin at any folder of the path; upper and lower case are the same. Without one only a path that names the
            sensor (see [`with_sensor`]) is of it.
        bands, stretch, stretch_range, nodata: As in [`ImageOptions`], of which nothing is inherited.

    Raises:
        ImageError: An option is of the wrong kind.
    """

    name: str
    path: tuple[str, ...] = ()
    bands: tuple[int, ...] | None = None
    stretch: str | None = None
    stretch_range: tuple[float, float] | None = None
    nodata: float | None = None

    def __post_init__(self) -> None:
        """Validate, and turn texts and lists into tuples."""
        patterns = [self.path] if isinstance(self.path, str) else self.path
        if not isinstance(patterns, list | tuple) or not all(isinstance(text, str) and text for text in patterns):
            raise ImageError(f"sensor {self.name!r}: `path` is {self.path!r}, expected a pattern or a list", "path")
        object.__setattr__(self, "path", tuple(patterns))
        try:
            checked = ImageOptions(**{name: getattr(self, name) for name in _OF_SENSOR})
        except ImageError as error:
            raise ImageError(f"sensor {self.name!r}: {error.detail}", error.key) from None
        for name in _OF_SENSOR:
            object.__setattr__(self, name, getattr(checked, name))

    def recorded(self) -> dict[str, Any]:
        """Returns what is given, in lists, which JSON can hold; a list of these keeps the order of the sensors."""
        given = {key: value for key, value in asdict(self).items() if value not in (None, ())}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in given.items()}


def with_sensor(path: str, sensor: str) -> str:
    """Returns a path that names its sensor at the end, `"a.tif#sentinel-1"`, as the reader of images takes it."""
    return f"{path}#{sensor.translate(_NOT_IN_NAMES)}"


def split_sensor(path: str, root: str = "") -> tuple[str, str]:
    """Splits a path into that of the file, which starts from `root`, and the `"#sensor"` at its end, or `""`."""
    bare, mark, sensor = path.rpartition("#")
    return (path, "") if not mark or os.path.exists(os.path.join(root, path)) else (bare, mark + sensor)


def read_sensors(path: str | os.PathLike) -> dict[str, Any]:
    """Returns the content of a YAML file of sensors: a name for each, and the arguments of [`Sensor`] below it.

    Raises:
        ImageError: The file cannot be read, or says something else; names the file and the key.
    """
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise ImageError(f"cannot be read as YAML ({reason})", "image_options", str(path)) from None
    try:
        _sensors({} if content is None else content)
    except ImageError as error:
        raise ImageError(error.detail, error.key, str(path)) from None
    return content


def _sensors(content: object) -> tuple[Sensor, ...]:
    """Returns the sensors of a YAML file's mapping, or of a recorded list; `None` is none."""
    if content is None or content == []:
        return ()
    if isinstance(content, list) and all(isinstance(sensor, Mapping) and "name" in sensor for sensor in content):
        content = {sensor["name"]: {key: sensor[key] for key in sensor if key != "name"} for sensor in content}
    if not isinstance(content, Mapping) or not content:
        raise ImageError(f"holds {type(content).__name__}, expected sensors by name")
    known = [field.name for field in fields(Sensor)][1:]
    for name, given in content.items():
        if not isinstance(given, Mapping):
            raise ImageError(f"sensor {name!r} is {given!r}, expected keys and values: {', '.join(known)}", str(name))
        for key in given:
            if key not in known:
                raise ImageError(
                    f"sensor {name!r} has the unknown key {key!r}{did_you_mean(str(key), known)}", str(key)
                )
    return tuple(Sensor(str(name), **given) for name, given in content.items())


@lru_cache(1000)
def _pattern(pattern: str) -> re.Pattern[str]:
    return re.compile("(?:.*/)?" + translate(pattern), re.IGNORECASE | re.DOTALL)


DEFAULTS = ImageOptions()
