"""Bands of a raster: what their labels say, which of them is transparency, and which become red, green and blue.

A TIFF's flag for alpha is weak evidence, since GDAL sets it on the fourth band of any 8-bit file: near infrared would
wash the picture out. So an alpha band of a raster is believed by its values. Formats whose fourth channel is alpha by
definition (PNG, WebP, GIF) are believed as they are. Left out: labels that give a wavelength, and band numbers of
sensors other than Sentinel-2 and Landsat 8 and 9.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from ..errors import ImageError
from .sources import ImageOptions

RGB = ("red", "green", "blue")
SOFT_SHARE = 0.05  # of an alpha band's pixels, which antialiased edges may take
LISTED = 16  # bands named in a message
# Words of bands that no eye sees, some of which have a colour's name beside them, and of other known bands.
_UNSEEN = set("nir infra infrared edge rededge swir mir mwir lwir tir thermal coastal aerosol cirrus i".split())
_OTHERS = set("n y cb cr hue saturation lightness cyan magenta yellow black pan panchromatic vv vh hh hv".split())
_OTHERS |= set("ndvi ndwi ndbi evi dem".split())
_FILLERS = set("band channel layer b tci sr toa boa reflectance".split())
_OF_MASKS = set("alpha mask data datamask valid validity opacity transparency".split())  # of a band flagged as alpha
_NAME_TAGS = ("name", "band", "bandname", "band_name", "long_name")


class Label(NamedTuple):
    """A band's colour (`"red"`, `"green"`, `"blue"`, `"alpha"`, `"other"`, or `""` if unknown) and name."""

    colour: str = ""
    name: str = ""


def label_of(texts: Sequence[str | None], flag: str = "") -> Label:
    """Returns a band's label by its descriptions, the first that is understood; else by its colour interpretation."""
    known = [text.strip() for text in texts if text and text.strip()]
    flag = "" if flag in ("gray", "undefined", "palette") else flag
    colour = next(filter(None, map(_colour_of, known)), "")
    if not colour and flag:
        masks = all(_words(text) <= _OF_MASKS | _FILLERS for text in known)  # not "cloud mask"
        colour = flag if flag in RGB or flag == "alpha" and masks else "other"
    return Label(colour, known[0] if known else flag)


def _words(text: str) -> set[str]:
    return set(re.findall("[a-z]+", re.sub("(?<=[a-z])(?=[A-Z])", " ", text).lower()))


def _colour_of(text: str) -> str:
    """Returns the colour that a description names, such as "Red (band 3)" or "B04", or `""`."""
    words = _words(text)
    if words & _UNSEEN:
        return "other"
    if words & {"alpha", "datamask"} or {"data", "mask"} <= words:
        return "alpha"
    if colours := words & set(RGB):
        return colours.pop() if len(colours) == 1 else ""
    if code := re.match(r"(?:s2_|sr_)?b0?(\d{1,2}a?)(?![a-z0-9])", text.lower()):
        return {"2": "blue", "3": "green", "4": "red"}.get(code[1], "other")
    if words & _OTHERS:
        return "other"
    letters = words - (_FILLERS - {"b"})
    letter = letters.pop() if len(letters) == 1 and not re.search(r"\d", text) else ""
    return {"r": "red", "g": "green", "b": "blue", "a": "alpha"}.get(letter, "")


def gdal_labels(count: int, metadata: str, flags: Sequence[str]) -> list[Label]:
    """Returns the labels of a TIFF's bands by GDAL's own tag, an XML text, and by flags where that has none."""
    try:
        items = ElementTree.fromstring(metadata.strip("\0 \n")).iter("Item") if metadata.strip("\0 \n") else ()
    except ElementTree.ParseError:
        items = ()
    texts: list[dict[str, str]] = [{} for _ in range(count)]
    kinds = dict(enumerate(flags))
    for item in items:
        key, band, role = str(item.get("name")).lower(), item.get("sample", ""), item.get("role", "")
        if role == "colorinterp" and band.isdigit():
            kinds[int(band)] = (item.text or "").lower()
        elif band.isdigit() and int(band) < count:
            texts[int(band)][role or key] = item.text or ""
        elif (number := re.fullmatch(r"band_(\d+)", key)) and 1 <= int(number[1]) <= count:
            texts[int(number[1]) - 1][key] = item.text or ""
    return [band_label(texts[i], i + 1, kinds.get(i, "")) for i in range(count)]


def band_label(tags: dict[str, str], band: int, flag: str, description: str | None = None) -> Label:
    """Returns the label of a band (from 1) by its description, its tags, and its colour interpretation."""
    lower = {key.lower(): value for key, value in tags.items()}
    texts = [description, *(lower.get(name) for name in ("description", *_NAME_TAGS, f"band_{band}"))]
    return label_of([text for text in texts if text != f"b{band}"], flag)  # which says the place alone


# --- transparency -----------------------------------------------------------------------------------------------


def opacity_of(alpha: np.ndarray, certain: bool = False) -> np.ndarray | None:
    """Returns the 8-bit opacity `(H, W)` of a band that may be alpha, or `None` if its values are not those of one.

    They are if nearly all are 0 or full; full is 1, or the largest number of 8 or more bits. With `certain` any are.
    """
    if alpha.dtype == bool:
        return alpha.astype(np.uint8) * 255
    largest = int(np.iinfo(alpha.dtype).max) if alpha.dtype.kind in "ui" else 65535
    top, fulls = alpha.max(), (1, *(2**bits - 1 for bits in range(8, largest.bit_length() + 1)))
    full = next((full for full in fulls if 0.98 * full <= top <= full), None)  # lossy: nearly full
    if full is not None:
        opaque = np.count_nonzero(alpha >= 0.98 * full)
        soft = alpha.size - opaque - np.count_nonzero((alpha >= 0) & (alpha <= 0.02 * full))
        # Of a small shape its edge is a large part; of near infrared that is mostly 0 the rest is all soft.
        if soft <= SOFT_SHARE * alpha.size and soft <= opaque:
            return alpha if full == largest == 255 else np.rint(alpha * (255 / full)).astype(np.uint8)
    if not certain:
        return None
    return alpha if largest == 255 else np.rint(np.clip(alpha, 0, largest) * (255 / largest)).astype(np.uint8)


# --- the choice -------------------------------------------------------------------------------------------------


def choose_bands(
    labels: Sequence[Label],
    read: Callable[[int], np.ndarray],
    dtype: np.dtype | str,
    options: ImageOptions,
    name: str,
    certain: bool = False,
) -> tuple[tuple[int, ...], np.ndarray | None]:
    """Returns the bands to show, counted from 1, and the 8-bit opacity `(H, W)` or `None`; or says how to choose.

    `read` gives the values `(H, W)` of a band. `certain` says that a band labelled alpha is one whatever its values.
    """
    dtype = np.dtype("complex64" if "complex" in str(dtype) else dtype)  # numpy does not know GDAL's complex_int16
    if dtype.kind not in "buif":
        raise ImageError(f"{name}: holds {dtype} values, expected real numbers; save their magnitude as a raster")
    if options.bands is not None:
        if max(options.bands) > len(labels):
            raise ImageError(
                f"{name}: option `bands: {list(options.bands)}` names a band that is not there; it has {len(labels)}"
            )
        _refuse(labels, options.bands, dtype, options, name)
        return options.bands, None
    labels, opacity = list(labels), None
    for i, label in enumerate(labels):
        if label.colour == "alpha" and len(labels) > 1:
            found = None if opacity is not None else opacity_of(read(i + 1), certain)
            if found is None:
                labels[i] = Label("other", f"{label.name or 'alpha'} by its flag but not by its values")
            else:
                opacity, labels[i] = found, Label("alpha", label.name)
    data_bands = tuple(i for i, label in enumerate(labels, 1) if label.colour != "alpha")
    bands = _true_colour(labels) if len(data_bands) == 3 else data_bands
    _refuse(labels, bands, dtype, options, name)
    return bands, opacity


def _true_colour(labels: Sequence[Label]) -> tuple[int, ...]:
    """Returns the bands that are red, green and blue by their labels; three in the file's order if nothing is against
    it; or none.
    """
    places: list[int] = []
    for colour in RGB:
        found = [i for i, label in enumerate(labels, 1) if label.colour == colour]
        exact = [i for i in found if labels[i - 1].name.lower() == colour]
        places += found if len(found) == 1 else exact if len(exact) == 1 else []
    if len(places) == 3:
        return tuple(places)
    shown = [(i, label.colour) for i, label in enumerate(labels, 1) if label.colour != "alpha"]
    expected = all(colour in ("", own) for (_, colour), own in zip(shown, RGB, strict=False))
    unnamed = not any(colour in RGB for _, colour in shown)
    return tuple(i for i, _ in shown) if len(shown) == 3 and (expected or unnamed) else ()


def _refuse(labels: Sequence[Label], bands: Sequence[int], dtype: np.dtype, options: ImageOptions, name: str) -> None:
    """Raises `ImageError` if a choice of bands or of a stretch is missing."""
    count = sum(label.colour != "alpha" for label in labels)
    asks = []
    if len(bands) not in (1, 3):
        natural = _true_colour(labels) if any(label.colour in RGB for label in labels) else ()
        example = list(natural) or ([1] if count < 3 else [1, 2, 3] if count < 5 else [4, 3, 2])
        meaning = "red, green and blue by their labels" if natural else "three for R, G, B or one for gray"
        asks.append(f"`bands: {example}` ({meaning}, counted from 1)")
    if options.stretch is None and dtype.name not in ("uint8", "bool"):
        asks.append("`stretch: percentile` or `stretch: fixed` with `stretch_range: [low, high]`")
    if asks:
        raise ImageError(
            f"{name}: has {count} band(s) of {dtype.name}{_listed(labels)}, which is not 8-bit gray or RGB; choose "
            f"how to show it with the image options {' and '.join(asks)}"
        )


def _listed(labels: Sequence[Label]) -> str:
    if len(labels) < 2 or not any(label.name for label in labels):
        return ""
    names = [f"{i} {label.name[:60] or 'unnamed'}" for i, label in enumerate(labels[:LISTED], 1)]
    return f" ({', '.join(names)}{', …' * (len(labels) > LISTED)})"
