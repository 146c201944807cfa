"""The quick start runs, and shows what it prints and draws."""

import re
import struct

import matplotlib

matplotlib.use("Agg")

import numpy as np
import test_guides

PAGE = test_guides.ROOT / "docs" / "quick-start.md"
PICTURE = test_guides.ROOT / "docs" / "assets" / "quick-start.png"
OUTPUT = re.compile(r"^```\{\.text \.output\}\n(.*?)^```", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?")


def words_and_numbers(text):
    """What a text says apart from its numbers, and these. The status of the last probe is up to chance."""
    text = re.sub(r"(?<=the last one: )\w+", "", text)
    return NUMBER.sub("#", text), [float(number) for number in NUMBER.findall(text)]


def size(png):
    """Width and height in pixels."""
    return struct.unpack(">II", png[16:24])


def test_the_page_shows_what_it_prints_and_draws(tmp_path, monkeypatch, capsys):
    """To renew the picture, copy the file that the page writes. Rounding differs between machines."""
    monkeypatch.chdir(tmp_path)
    test_guides.run_page(PAGE)
    (shown,) = OUTPUT.findall(PAGE.read_text())
    words, numbers = words_and_numbers(shown)
    lines = capsys.readouterr().out.splitlines(keepends=True)  # what comes later is the report
    printed_words, printed = words_and_numbers("".join(lines[: shown.count("\n")]))
    assert words == printed_words
    np.testing.assert_allclose(numbers, printed, rtol=0.3)
    drawn = (tmp_path / PICTURE.name).read_bytes()
    assert size(PICTURE.read_bytes()) == size(drawn)
    assert PICTURE.stat().st_size < 60_000
    assert f"(assets/{PICTURE.name})" in PAGE.read_text()


def test_what_is_compared():
    words, numbers = words_and_numbers("accuracy 0.965\nmedian rate 5.3e-03\nthe last one: ACCEPTED\n")
    assert words == "accuracy #\nmedian rate #\nthe last one: \n"
    assert numbers == [0.965, 5.3e-3]
