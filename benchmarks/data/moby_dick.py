"""Moby Dick by Herman Melville, a single text of 1.2 million characters."""

from benchmarks import data


def load() -> str:
    """The whole book."""
    return data.locate("moby-dick", "data.txt", "moby-dick.txt").read_text("utf-8")
