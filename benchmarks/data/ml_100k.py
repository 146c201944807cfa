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
    # Many ratings share a second: the item id settles the order, so that it does not depend on the file's.
    order = np.lexsort((item, time, user))
    starts = np.flatnonzero(np.diff(user[order])) + 1
    return np.split(item[order], starts)
