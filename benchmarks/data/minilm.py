"""all-MiniLM-L6-v2: a BERT encoder of 6 layers, 384 wide, with its tokenizer (Wang et al., 2020)."""

import numpy as np

from benchmarks import data


def load_weights() -> dict[str, np.ndarray]:
    """The arrays of `model.safetensors` by their names there."""
    from safetensors.numpy import load_file

    return load_file(data.locate("minilm", "model.safetensors"))


def tokenize(texts: list[str], max_length: int) -> np.ndarray:
    """Token ids int32 `[n, max_length]`: [CLS], the text, [SEP], cut or padded with 0."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(data.locate("minilm", "tokenizer.json")))
    tokenizer.enable_truncation(max_length)
    tokenizer.enable_padding(length=max_length)
    return np.array([encoding.ids for encoding in tokenizer.encode_batch(texts)], np.int32)
