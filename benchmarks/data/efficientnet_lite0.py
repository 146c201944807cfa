"""EfficientNet-Lite0 trained on ImageNet-1k, out of PyTorch's serialized file and without PyTorch."""

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from benchmarks import data

_MAGIC = 0x1950A86A20F9469CFC6C  # opens the files that torch.save wrote before version 1.6
_DTYPES = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}


def load_weights() -> dict[str, np.ndarray]:
    """Arrays by their PyTorch names, e.g. `_blocks.0._depthwise_conv.weight`, in PyTorch's layout."""
    return read_torch_file(data.locate("efficientnet-lite0", "efficientnet-lite0-57934424.pth"))


def read_torch_file(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a state dict in torch.save's format before version 1.6.

    Pickles of a magic number, the format's version, the machine's byte order, the tensors and the keys of the storages;
    then, per key, the number of elements (int64) and the elements.
    """
    with open(path, "rb") as file:
        if _StateDict(file).load() != _MAGIC:
            raise ValueError(f"{path} is not a file of torch.save before version 1.6.")
        _StateDict(file).load()
        if not _StateDict(file).load()["little_endian"]:
            raise ValueError(f"{path} was written on a big-endian machine.")
        index = _StateDict(file)
        tensors = index.load()
        storages = {key: _read_storage(file, index.dtypes[key]) for key in _StateDict(file).load()}
    return {name: tensor.read(storages) for name, tensor in tensors.items()}


class _StateDict(pickle.Unpickler):
    """Unpickles references to tensors, and refuses every other object: a pickle could run any code."""

    def __init__(self, file: BinaryIO):
        super().__init__(file)
        self.dtypes: dict[str, np.dtype] = {}

    def persistent_load(self, identity: tuple) -> str:
        _, storage, key, *_ = identity
        self.dtypes[key] = _DTYPES[storage]
        return key

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _Tensor
        if module == "torch" and name in _DTYPES:
            return name
        raise pickle.UnpicklingError(f"A file of weights has no use for {module}.{name}.")


class _Tensor:
    """A view of a storage: offset, shape and strides, in elements."""

    def __init__(self, storage: str, offset: int, shape: tuple, strides: tuple, *_: Any):
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

    def read(self, storages: dict[str, np.ndarray]) -> np.ndarray:
        elements = storages[self.storage]
        strides = [stride * elements.itemsize for stride in self.strides]
        return np.ndarray(self.shape, elements.dtype, elements, self.offset * elements.itemsize, strides).copy()


def _read_storage(file: BinaryIO, dtype: np.dtype) -> np.ndarray:
    size = int(np.frombuffer(file.read(8), "<i8")[0])
    return np.frombuffer(file.read(size * dtype.itemsize), dtype)
