"""Small image sets for streams: scikit-learn's digits, and the user's files of MNIST, CIFAR or a folder of images.

Nothing is downloaded. A missing or invalid file raises a ValueError of one line that names the file. The unpickler
accepts only arrays and plain containers, so an untrusted file cannot run code.
"""

from __future__ import annotations

import gzip
import pickle
import struct
import warnings
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
TEST_SHARE = 5  # one image in five is for testing, if the set itself has no test images


class Images(NamedTuple):
    """Images and their labels, for training and for testing."""

    train: Array  # [N, C, H, W] uint8
    train_labels: Array  # [N] int64
    test: Array  # [M, C, H, W] uint8
    test_labels: Array  # [M] int64
    high: float  # brightest value
    classes: int


def load(name: str, data: str) -> Images:
    """Load a set by name: Digits, MNIST, FashionMNIST, CIFAR10, CIFAR100, or Images (a folder); `data` is its folder.

    Raises:
        ValueError: A file is missing or invalid, or scikit-learn or Pillow is not installed.
    """
    if name == "Digits":
        return _digits()
    if not data:
        raise ValueError(f"{name} reads your own files and downloads none: give their folder with --env.data")
    folder = Path(data).expanduser()
    if not folder.is_dir():
        raise ValueError(f"{name}: there is no folder {folder}")
    return _read(name, folder.resolve())


@lru_cache(maxsize=2)
def _read(name: str, folder: Path) -> Images:
    return LOADERS[name](name, folder)


def _made(name: str, train: Array, train_labels: Array, test: Array, test_labels: Array, classes: int) -> Images:
    """Check the arrays, and combine them."""
    for images, labels, what in ((train, train_labels, "training"), (test, test_labels, "test")):
        if len(images) != len(labels):
            raise ValueError(f"{name}: {len(images)} {what} images and {len(labels)} labels")
        if not len(images):
            raise ValueError(f"{name}: there are no {what} images")
        if labels.min() < 0 or labels.max() >= classes:
            raise ValueError(f"{name}: a {what} label is not in 0 … {classes - 1}")
    return Images(train, train_labels.astype(np.int64), test, test_labels.astype(np.int64), 255.0, classes)


def _divided(name: str, images: Array, labels: Array, classes: int) -> Images:
    """Divide a set into training and test images, identically in every run."""
    order = np.random.default_rng(0).permutation(len(images))
    some = max(1, len(images) // TEST_SHARE)
    test, train = order[:some], order[some:]
    return _made(name, images[train], labels[train], images[test], labels[test], classes)


# ------------------------------------------------------------------------------------------------ scikit-learn's digits


@lru_cache(maxsize=1)
def _digits() -> Images:
    """1,797 handwritten digits of 8 x 8 pixels with 17 shades (Alpaydin and Kaynak 1998, UCI)."""
    if find_spec("sklearn") is None:
        raise ValueError("the digits need scikit-learn, which is not installed: pip install 'pliant[digits]'")
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 1, 8, 8).astype(np.uint8)
    return _divided("Digits", images, labels.astype(np.int64), 10)._replace(high=16.0)


# -------------------------------------------------------------------------------------------- MNIST and FashionMNIST


def _mnist(name: str, folder: Path) -> Images:
    places = [folder, folder / "raw", folder / name / "raw", folder / name]
    train, train_labels, test, test_labels = (
        _idx(_find(name, places, f"{which}-{what}", f"idx{dimensions}-ubyte"), dimensions)
        for which in ("train", "t10k")
        for what, dimensions in (("images", 3), ("labels", 1))
    )
    return _made(name, train[:, None], train_labels, test[:, None], test_labels, 10)


def _find(name: str, places: list[Path], stem: str, kind: str) -> Path:
    """A file under the name that its authors or an unpacking tool gave it, compressed or not."""
    for place in places:
        for joint in "-.":
            for ending in ("", ".gz"):
                if (file := place / f"{stem}{joint}{kind}{ending}").is_file():
                    return file
    raise ValueError(f"{name}: there is no {stem}-{kind} (or .gz) in {places[0]}")


def _idx(file: Path, dimensions: int) -> Array:
    """An idx file of bytes: two zeros, the type 8, the number of dimensions, their sizes, the data."""
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from None
    start = 4 + 4 * dimensions
    if len(content) < start or content[:4] != bytes((0, 0, 8, dimensions)):
        raise ValueError(f"{file} is not an idx file of bytes with {dimensions} dimensions")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    data = np.frombuffer(content, np.uint8, offset=start)
    if data.size != int(np.prod(shape, dtype=np.int64)):
        raise ValueError(f"{file} is cut short or too long: {data.size:,} bytes for the shape {shape}")
    return data.reshape(shape)


# ------------------------------------------------------------------------------------------------ CIFAR's pickles


class _ArraysOnly(pickle.Unpickler):
    """Reads dictionaries, lists, numbers, text and arrays; anything else is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes in old protocols
            return _bytes
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np._core.multiarray._reconstruct  # type: ignore[attr-defined]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"it needs {module}.{name}")


def _bytes(text: str, encoding: str) -> bytes:
    return text.encode("latin1" if encoding == "latin1" else "ascii")


def _pickled(file: Path) -> dict[bytes, Any]:
    try:
        with file.open("rb") as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy warns about the pickles of 2009
            content = _ArraysOnly(stream, encoding="bytes").load()
    except FileNotFoundError:
        raise ValueError(f"there is no file {file}") from None
    except Exception as error:  # a damaged pickle can fail in any way
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{file} is not a CIFAR batch: {reason}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file} is not a CIFAR batch: it does not contain a dictionary")
    return {key.encode() if isinstance(key, str) else key: value for key, value in content.items()}


def _cifar(name: str, folder: Path) -> Images:
    ten = name == "CIFAR10"
    inner = folder / ("cifar-10-batches-py" if ten else "cifar-100-python")
    place = inner if inner.is_dir() else folder
    train = [f"data_batch_{i}" for i in range(1, 6)] if ten else ["train"]
    key = b"labels" if ten else b"fine_labels"
    parts: list[Array] = []
    for files in (train, ["test_batch" if ten else "test"]):
        images, labels = [], []
        for file in files:
            content = _pickled(place / file)
            data = content.get(b"data")
            if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (3072,):
                raise ValueError(f"{place / file} is not a CIFAR batch: its data are not bytes [N, 3072]")
            if key not in content:
                raise ValueError(f"{place / file} is not a CIFAR batch: it has no {key.decode()}")
            images.append(data.reshape(-1, 3, 32, 32))
            labels.append(np.asarray(content[key], np.int64))
        parts += [np.concatenate(images), np.concatenate(labels)]
    train_images, train_labels, test_images, test_labels = parts
    return _made(name, train_images, train_labels, test_images, test_labels, 10 if ten else 100)


# ------------------------------------------------------------------------------------------------ folders of images


def _folder(name: str, folder: Path) -> Images:
    """CLASS/picture files, or train/CLASS/… and test/CLASS/…; classes are numbered in the order of their names."""
    if (folder / "train").is_dir() and (folder / "test").is_dir():
        classes = _subfolders(folder / "train")
        if _subfolders(folder / "test") != classes:
            raise ValueError(f"{folder}: train and test hold different classes")
        train, test = (_pictures(folder / part, classes) for part in ("train", "test"))
        if train[0].shape[1:] != test[0].shape[1:]:
            raise ValueError(f"{folder}: training images are {_size(train[0])}, test images {_size(test[0])}")
        return _made(name, *train, *test, len(classes))
    classes = _subfolders(folder)
    if len(classes) < 2:
        raise ValueError(f"{folder} must hold a folder of images for each of at least two classes")
    return _divided(name, *_pictures(folder, classes), len(classes))


def _subfolders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _size(images: Array) -> str:
    return "x".join(str(n) for n in images.shape[1:])


def _pictures(folder: Path, classes: list[str]) -> tuple[Array, Array]:
    """All images of some classes, [N, C, H, W] uint8, and their labels [N]."""
    if find_spec("PIL") is None:
        raise ValueError("a folder of images needs Pillow, which is not installed: pip install pillow")
    from PIL import Image, UnidentifiedImageError

    images: list[Array] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        for file in sorted(path for path in (folder / name).iterdir() if path.is_file() and path.name[0] != "."):
            try:
                with Image.open(file) as picture:
                    grey = picture.mode in ("1", "L")
                    pixels = np.asarray(picture.convert("L" if grey else "RGB"))
            except (UnidentifiedImageError, OSError) as error:
                raise ValueError(
                    f"{file} is not an image that Pillow can read: {' '.join(str(error).split())}"
                ) from None
            image = pixels[None] if grey else np.moveaxis(pixels, -1, 0)
            if images and image.shape != images[0].shape:
                raise ValueError(
                    f"{file} is {_size(image[None])} (channels x height x width), but earlier images are "
                    f"{_size(images[0][None])}: give all the same size and channels"
                )
            images.append(image)
            labels.append(label)
    if not images:
        raise ValueError(f"{folder} contains no images")
    return np.stack(images), np.asarray(labels, np.int64)


LOADERS: dict[str, Callable[[str, Path], Images]] = {
    "MNIST": _mnist,
    "FashionMNIST": _mnist,
    "CIFAR10": _cifar,
    "CIFAR100": _cifar,
    "Images": _folder,
}
NAMES = ("Digits", *LOADERS)
