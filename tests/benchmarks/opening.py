"""How a page has to begin: with a picture, and what it shows in a few plain sentences."""

import re

MOST_SENTENCES, MOST_WORDS = 5, 25


def sentences_of(text: str) -> list[str]:
    """The sentences under the picture that a page begins with."""
    picture, words, *_ = text.split("\n\n")
    assert re.fullmatch(r"!\[[^\]]+\]\(\w+\.png\)", picture), picture
    found = re.split(r"(?<=[.]) (?=[A-Z])", words)
    assert len(found) <= MOST_SENTENCES, words
    for sentence in found:
        assert re.match(r"[A-Z].*\.$", sentence), sentence
        assert not re.search(r"\bnan\b|∞|None| - ", sentence), sentence
        assert len(re.findall(r"\S*\w\S*", sentence)) <= MOST_WORDS, sentence
    return found
