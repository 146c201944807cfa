"""The State of the Union: addresses of the presidents of the United States since 1790, one text file each."""

from benchmarks import data


def load() -> list[str]:
    """The speeches in the order of their years."""
    folder = data.locate("sotu", "1790_george_washington_n.txt").parent
    return [path.read_text("utf-8") for path in sorted(folder.glob("[12][0-9][0-9][0-9]_*.txt"))]
