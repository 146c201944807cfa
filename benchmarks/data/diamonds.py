"""Diamonds: 53,940 cut stones with their prices in dollars, the table of R's ggplot2.

Read from its `diamonds.csv`, with or without a column of row numbers in front.
"""

import csv

import numpy as np

from benchmarks import data

NUMBERS = ("carat", "depth", "table", "x", "y", "z")
GRADES = {
    "cut": ("Fair", "Good", "Very Good", "Premium", "Ideal"),
    "color": ("D", "E", "F", "G", "H", "I", "J"),
    "clarity": ("I1", "SI2", "SI1", "VS2", "VS1", "VVS2", "VVS1", "IF"),
}


def load() -> dict[str, np.ndarray]:
    """`numbers` float32 `[n, 6]`, `grades` int32 `[n, 3]`, indices into `GRADES`, and `price` float32 `[n]`."""
    with open(data.locate("diamonds", "diamonds.csv"), newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {
        "numbers": np.array([[float(row[name]) for name in NUMBERS] for row in rows], np.float32),
        "grades": np.array([[names.index(row[name]) for name, names in GRADES.items()] for row in rows], np.int32),
        "price": np.array([float(row["price"]) for row in rows], np.float32),
    }
