"""Messages in the normal form, for tests."""

IMAGE = {"type": "image"}


def text(value):
    """A text part."""
    return {"type": "text", "text": value}


def user(*parts):
    """A user turn of these parts."""
    return {"role": "user", "content": list(parts)}


def assistant(value):
    """An assistant turn with one text."""
    return {"role": "assistant", "content": [text(value)]}
