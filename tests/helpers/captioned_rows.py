"""Captioned rows of four classes, without images."""

from rs_rlhf.preferences.damage import class_name

CLASSES = {"Airport": "planes", "StorageTanks": "tanks", "Forest": "green trees", "Beach": "white waves"}


def rows(count=40):
    return [
        {
            "image": f"{i}.png",
            "id": f"{i}.png",
            "label": label,
            "captions": [
                f"many {things} are in a {class_name(label)} with {2 + i % 5} white buildings .",
                f"a {class_name(label)} near a long green river .",
            ],
        }
        for i in range(count)
        for label, things in [list(CLASSES.items())[i % 4]]
    ]
