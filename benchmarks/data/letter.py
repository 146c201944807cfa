"""Letter recognition: 20,000 distorted printed capitals, 16 integer features each (0 to 15), 26 classes.

Read from `letter-recognition.data` (the original: the letter, then the features, comma-separated) or from the
`LetterRecognition.rda` of R's mlbench, the same rows in the same order.
"""

import warnings

import numpy as np

from benchmarks import data


def load() -> tuple[np.ndarray, np.ndarray]:
    """Features, float32 `[n, 16]`, and classes, int32 `[n]`; the last 4,000 are the customary test set."""
    path = data.locate("letter", "letter-recognition.data", "LetterRecognition.rda")
    if path.suffix == ".data":
        rows = np.loadtxt(path, dtype=str, delimiter=",", ndmin=2)
        letters, features = rows[:, 0], rows[:, 1:]
    else:
        import rdata

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Unknown encoding")
            frame = rdata.read_rda(str(path))["LetterRecognition"]
        letters, features = frame.iloc[:, 0].to_numpy(str), frame.iloc[:, 1:].to_numpy()
    labels = np.array([ord(letter) - ord("A") for letter in letters], np.int32)
    return features.astype(np.float32), labels
