"""MovieLens-100K: 100,000 ratings of 1,682 films by 943 people (Harper and Konstan, 2015)."""

import numpy as np

from benchmarks import data


def load() -> list[np.ndarray]:
    """Per user, in the order of user ids, the ids of the films rated, oldest first; ids start at 1.

    Reads the official `u.data` (user, item, rating, time; tab-separated) or the same columns under a header line.
    """
    path = data.locate("ml-100k", "u.data", "ml-100k.inter")
    table = np.loadtxt(path, delimiter="\t", skiprows=1 if path.suffix == ".inter" else 0).astype(np.int64)
    user, item, time = table[:, 0], table[:, 1], table[:, 3]
    # Three of four ratings share their second with another. A fixed random order settles it: the file's is no part of
    # the data, and from that of the ids the next film could be guessed.
    tie = np.empty(len(table))
    tie[np.lexsort((item, user))] = np.random.default_rng(0).random(len(table))
    order = np.lexsort((tie, time, user))
    starts = np.flatnonzero(np.diff(user[order])) + 1
    return np.split(item[order], starts)
