"""Options about images: from flags to what the reader takes, each documented once."""

import dataclasses

import pytest

from rs_rlhf.errors import ImageError
from rs_rlhf.imagery.arguments import READING, ImageArguments, ReadingOptions, RenderingOptions
from rs_rlhf.imagery.sources import ImageOptions
from rs_rlhf.options import parse, to_flags


def test_flags_reach_the_reader_and_come_back():
    argv = ["--image_root", "r", "--image-hosts", "a.org", "b.org", "--bands", "4", "3", "2", "--nodata", "0"]
    options = parse(ReadingOptions, [*argv, "--stretch", "fixed", "--stretch-range", "0", "9"], "x")
    expected = ImageOptions(
        image_root="r",
        allowed_hosts=("a.org", "b.org"),
        bands=(4, 3, 2),
        stretch="fixed",
        stretch_range=(0.0, 9.0),
        nodata=0.0,
    )
    assert options.reader_options() == expected
    assert parse(ReadingOptions, to_flags(options), "x") == options and to_flags(ReadingOptions()) == []
    assert ReadingOptions().reader_options() == RenderingOptions().reader_options() == ImageOptions()


def test_options_that_do_not_go_together_are_refused():
    with pytest.raises(ImageError, match="needs `stretch_range"):
        RenderingOptions(stretch="fixed").reader_options()


def test_every_option_has_a_help_and_reading_names_those_of_the_reader():
    fields = dataclasses.fields(ImageArguments)
    assert all(field.metadata["help"] for field in fields)
    assert {field.name for field in fields} - set(READING) == {"min_pixels", "max_pixels", "augment"}
