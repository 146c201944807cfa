"""Fashion-MNIST: 60,000 and 10,000 grey 28x28 images of clothes, 10 classes, in the IDX files of MNIST, gzipped or not.

IDX is a big-endian header (two zero bytes, a type code, the rank, one uint32 per axis) and the array.
"""

import gzip
from pathlib import Path

import numpy as np

from benchmarks import data


def load(part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images, uint8 `[n, 28, 28]`, and classes, int32 `[n]`, of `"train"` or of the official test set, `"t10k"`."""
    images, labels = (
        read_idx(data.locate("fashion-mnist", f"{part}-{kind}-ubyte.gz", f"{part}-{kind}-ubyte"))
        for kind in ("images-idx3", "labels-idx1")
    )
    return images, labels.astype(np.int32)


def read_idx(path: Path) -> np.ndarray:
    """The array in an IDX file of unsigned bytes."""
    raw = path.read_bytes()
    if path.suffix == ".gz":
        raw = gzip.decompress(raw)
    if raw[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path} is not an IDX file of unsigned bytes.")
    rank = raw[3]
    shape = np.frombuffer(raw, ">u4", rank, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)
