"""Perfect answers: a box in pixels of the image, written in the form and the unit of each profile."""

from rs_rlhf.models.profiles import load_profile

FORMS = {
    "qwen2-vl": "<|box_start|>({},{}),({},{})<|box_end|>",
    "qwen2.5-vl": '```json\n[\n\t{{"bbox_2d": [{}, {}, {}, {}], "label": "ship"}}\n]\n```',
    "qwen3-vl": '[{{"bbox_2d": [{}, {}, {}, {}], "label": "ship"}}]',
    "internvl": "<ref>ship</ref><box>[[{}, {}, {}, {}]]</box>",
    "geochat": "{{<{}><{}><{}><{}>|<0>}}",
    "llava": "[{}, {}, {}, {}]",
    "fractions": "It is at [{}, {}, {}, {}].",
    "brackets": "[{}, {}, {}, {}]",
}


def in_unit(name, box, size, seen_size):
    """Returns a box's values in the unit of a profile, and the decimal digits that models write them with."""
    unit = load_profile(name).unit
    width, height = size
    across, down = {
        "pixel": (1, 1),
        "pixel of the resized image": (seen_size[0] / width, seen_size[1] / height),
        "0-1 of the padded square": (1 / max(size), 1 / max(size)),
    }.get(unit) or [float(unit.split("-")[1]) / side for side in size]
    left, top = ((max(size) - side) / 2 if "square" in unit else 0 for side in size)
    values = [(box[0] + left) * across, (box[1] + top) * down, (box[2] + left) * across, (box[3] + top) * down]
    return values, 3 if unit.startswith("0-1") and "0-1000" not in unit and "0-100" not in unit else 0


def write_box(name, box, size, seen_size, digits=None):
    """Writes a box with so many decimal digits, by default as models do: whole pixels, or thousandths."""
    values, usual = in_unit(name, box, size, seen_size)
    digits = usual if digits is None else digits
    return FORMS[name].format(*(f"{value:.{digits}f}" for value in values))
