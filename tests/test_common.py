"""common.py: data, pairs, settings, the run folder, figures."""

import contextlib
import csv
import dataclasses
import functools
import gc
import gzip
import io
import json
import math
import multiprocessing
import os
import pickle
import shutil
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Literal

import aae
import bigan
import common
import infogan
import mathieu
from data import files
from data.sprites import sprites
from experiments import batch_norm, command_line, infogan_regular, machine, run_folder, score

import numpy as np
import pytest
import torch
from conftest import ROOT
from kills import same
from PIL import Image
from torch import nn

# fork spares the imports, but is not safe on macOS
PROCESSES = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")

# ---- Data ----------------------------------------------------------------------------------------


def test_mnist_is_embedded_and_whole():
    train, test = common.load_dataset("mnist")
    assert train.x.shape == (60000, 1, 28, 28) and train.x.dtype == torch.uint8
    assert test.x.shape == (10000, 1, 28, 28) and test.y.dtype == torch.int64
    of_test = "980 1135 1032 1010 982 892 958 1028 974 1009"  # LeCun's
    of_train = "5923 6742 5958 6131 5842 5421 5918 6265 5851 5949"
    assert " ".join(map(str, torch.bincount(test.y).tolist())) == of_test
    assert " ".join(map(str, torch.bincount(train.y).tolist())) == of_train
    assert abs(common.to_float(train.x).mean().item() - 0.1307) < 1e-4


def test_validation_is_held_out_of_training():
    whole, test = common.load_dataset("mnist")
    train, held = common.load_dataset("mnist", validation=True)
    assert len(train.y) == 50000 and len(held.y) == 10000
    assert torch.equal(torch.cat([train.x, held.x]), whole.x) and not torch.equal(held.x, test.x)
    assert torch.equal(torch.cat([train.y, held.y]), whole.y)


def test_validation_of_sprites_has_characters_of_its_own(monkeypatch):
    few = functools.partial(sprites, images_per_identity=1)
    monkeypatch.setattr("data.sprites.sprites", few)
    names = {}
    for validation in (False, True):
        parts = common.load_dataset("sprites", "elsewhere", validation)
        names[validation] = [{tuple(row) for row in part.attributes.tolist()} for part in parts]
    assert [len(part) for part in names[False]] == [500, 100]
    assert [len(part) for part in names[True]] == [500, 72]
    assert not names[True][1] & (names[False][0] | names[False][1])


def test_a_dry_run_has_few_images_and_the_settings_reach_the_data(monkeypatch):
    train, test = common.load_data(Toy(dry_run=True))
    assert train.y.bincount().tolist() == [52] * 10 and len(test.y) == 256
    first = common.load_dataset("mnist")[0]
    assert torch.equal(train.x[train.y == 3], first.x[first.y == 3][:52])
    assert torch.equal(train.y[:200], first.y[:200])  # in their order
    rare = torch.arange(3000) % 9  # class 9 has few images, and late
    rare[2500:2503] = 9
    whole = common.Split(torch.zeros(3000, 1, 28, 28).byte(), rare)
    monkeypatch.setattr(common, "load_dataset", lambda *words: (whole, test))
    assert common.load_data(Toy(dry_run=True))[0].y.bincount().tolist() == [52] * 9 + [3]
    seen = []
    monkeypatch.setattr(common, "load_dataset", lambda *words: seen.append(words) or (train, test))
    assert len(common.load_data(Toy(dataset="kmnist", data="d", validation=True))[0].y) == 520
    assert seen == [("kmnist", "d", True)]


def test_to_float_maps_bytes_to_one_and_leaves_floats_alone():
    assert common.to_float(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == (
        pytest.approx([0, 0.2, 1])
    )
    floats = torch.rand(3)
    assert common.to_float(floats) is floats


def test_a_part_of_a_split_is_a_part_of_all_it_has():
    whole = common.Split(*torch.arange(24).view(4, 6, 1).unbind())
    part = whole.take(torch.tensor([5, 3])).to("cpu")
    assert [t.flatten().tolist() for t in part] == [[5, 3], [11, 9], [17, 15], [23, 21]]
    plain = common.Split(whole.x, whole.y).take(slice(2)).to("cpu")
    assert plain.attributes is None and plain.pose is None and len(plain.x) == len(plain.y) == 2


def write_idx(path, array):
    head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    Path(path).write_bytes(head + array.tobytes())
    Path(f"{path}.gz").write_bytes(gzip.compress(head + array.tobytes()))


@pytest.fixture
def as_they_lie(monkeypatch):
    """Data sets may be tiny, and stay in their order."""
    monkeypatch.setattr(files, "LEAST", (1, 1))
    monkeypatch.setattr(files, "shuffled", lambda x, y: (x, y))


@pytest.mark.parametrize("name, folder", [("fashion", "FashionMNIST"), ("kmnist", "KMNIST")])
def test_torchvision_idx_files(tmp_path, name, folder, as_they_lie):
    raw = tmp_path / folder / "raw"
    raw.mkdir(parents=True)
    rng, images = np.random.default_rng(0), {}
    for part, count in (("train", 12), ("t10k", 7)):
        images[part] = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        write_idx(raw / f"{part}-images-idx3-ubyte", images[part])
        write_idx(raw / f"{part}-labels-idx1-ubyte", (np.arange(count) % 10).astype(np.uint8))
    train, test = common.load_dataset(name, tmp_path)
    assert torch.equal(train.x[:, 0], torch.from_numpy(images["train"]))
    assert torch.equal(test.x[:, 0], torch.from_numpy(images["t10k"]))
    assert train.y.tolist() == [*range(10), 0, 1]
    train, held = common.load_dataset(name, tmp_path, validation=True)
    assert len(train.y) == 10 and torch.equal(held.x[:, 0], torch.from_numpy(images["train"][10:]))


def test_torchvision_cifar_files(tmp_path, monkeypatch, as_they_lie):
    import torchvision.datasets

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]:
        pixels = rng.integers(0, 256, (4, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": [3, 1, 4, 1]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    train, test = common.load_dataset("cifar10", tmp_path)
    stored = pickle.loads((folder / "test_batch").read_bytes())["data"]
    assert train.x.shape == (20, 3, 32, 32) and test.y.tolist() == [3, 1, 4, 1]
    assert torch.equal(test.x, torch.from_numpy(stored).view(4, 3, 32, 32))


def test_svhn_has_labels_and_layout_as_torchvision_has_them(tmp_path, monkeypatch, as_they_lie):
    import torchvision.datasets

    images = {"train": np.random.default_rng(0).integers(0, 256, (5, 3, 32, 32), np.uint8)}
    images["test"] = np.zeros((2, 3, 32, 32), np.uint8)

    class SVHN:
        def __init__(self, root, split, download):
            self.data, self.labels = images[split], np.arange(len(images[split]))

    monkeypatch.setattr(torchvision.datasets, "SVHN", SVHN)
    train, test = common.load_dataset("svhn", tmp_path)
    assert torch.equal(train.x, torch.from_numpy(images["train"]))
    assert train.y.tolist() == [0, 1, 2, 3, 4] and test.x.shape == (2, 3, 32, 32)


def test_a_failed_download_is_one_line_that_names_the_folder(tmp_path, monkeypatch):
    import torchvision.datasets

    def refuse(self):
        raise OSError("network is unreachable\nsecond line")

    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "download", refuse)
    with pytest.raises(common.UserError) as caught:
        common.load_dataset("fashion", tmp_path)
    words = str(caught.value)
    assert str(tmp_path / "FashionMNIST/raw") in words and "unreachable" in words
    assert "\n" not in words


def write_images(folder, classes, each, mode="RGB", size=(40, 30)):
    """`each` PNG files a class in folder/CLASS: class k has the level 20 k, with a little noise."""
    rng = np.random.default_rng(0)
    for k, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for n in range(each):
            level = np.uint8(20 * k + rng.integers(0, 3))
            Image.new("L", size, int(level)).convert(mode).save(folder / name / f"{n}.png")


@pytest.mark.parametrize("name, shape", [("grey", (1, 28, 28)), ("colour", (3, 32, 32))])
def test_own_images_in_a_folder_a_class(tmp_path, name, shape, capsys):
    write_images(tmp_path / "train", "abc", 40, mode="P" if name == "grey" else "RGBA")
    write_images(tmp_path / "test", "abc", 10)
    train, test = common.load_dataset(name, tmp_path)
    assert train.x.shape == (120, *shape) and test.x.shape == (30, *shape)
    for part in (train, test):
        level = part.x.float().mean((1, 2, 3))
        assert part.x.dtype == torch.uint8 and ((level / 20).round() == part.y).all()
    assert len(train.y[:20].unique()) == 3  # shuffled: the first ones are a sample
    told = capsys.readouterr().err
    assert "120 training images of 3 classes, [%d, %d, %d]" % shape in told


def test_own_images_without_a_test_set_give_a_random_sixth(tmp_path):
    write_images(tmp_path, ["cat", "dog"], 100)
    train, test = common.load_dataset("grey", tmp_path)
    assert len(train.y) == 167 and len(test.y) == 33
    assert 5 < test.y.sum() < 28 and torch.equal(test.y, common.load_dataset("grey", tmp_path)[1].y)


def test_an_image_that_is_added_moves_next_to_none_from_training_to_test(tmp_path):
    rng = np.random.default_rng(0)
    for k in range(300):
        path = tmp_path / "ab"[k % 2] / f"{k}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (28, 28), np.uint8)).save(path)
    trained = {bytes(x.numpy()) for x in common.load_dataset("grey", tmp_path)[0].x}
    shutil.copy(tmp_path / "a/0.png", tmp_path / "a/again.png")
    test = common.load_dataset("grey", tmp_path)[1]
    assert sum(bytes(x.numpy()) in trained for x in test.x) <= 2


LEVELS = np.linspace(0, 255, 28 * 28).round().astype(np.uint8).reshape(28, 28)
KINDS = {
    "eight bits": Image.fromarray(LEVELS),
    "sixteen bits": Image.fromarray(LEVELS.astype(np.uint16) * 257),
    "thirty-two bits": Image.fromarray(LEVELS.astype(np.int32) * 257),
    "black ink, transparent paper": Image.merge(
        "LA", (Image.new("L", (28, 28)), Image.fromarray(255 - LEVELS))
    ),
    "a palette": Image.fromarray(LEVELS).convert("P"),
    "of a camera on its side": Image.fromarray(np.rot90(LEVELS).copy()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_file_is_read_as_a_viewer_shows_it(tmp_path, kind):
    path = tmp_path / ("x.tif" if "thirty" in kind or "side" in kind else "x.png")
    exif = Image.Exif()
    if "side" in kind:
        exif[0x0112] = 6  # turn it clockwise
    KINDS[kind].save(path, exif=exif)
    found = np.asarray(files.eight_bits(path))
    assert found.shape == (28, 28, 3) and found.dtype == np.uint8
    assert abs(found.astype(int) - LEVELS[:, :, None]).max() <= 1


BYTES = np.full((200, 28, 28), 9, np.uint8)
BYTES[:, 0] = 0


def own_npz(path, **changes):
    """An .npz with Keras's keys and labels in order; class k has the level 20 k."""
    arrays = {}
    for part, count in (("train", 200), ("test", 50)):
        y = np.arange(count) * 10 // count
        arrays[f"y_{part}"] = y.astype(np.uint8)
        arrays[f"x_{part}"] = np.broadcast_to(20 * y[:, None, None], (count, 28, 28)).astype("u1")
    arrays.update(changes)
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


def test_a_sorted_file_is_shuffled_and_its_validation_part_has_all_classes(tmp_path):
    own_npz(tmp_path / "mine.npz")
    for validation in (False, True):
        train, test = common.load_dataset("grey", tmp_path, validation)
        for part in (train, test):
            assert (part.x[:, 0, 0, 0] == 20 * part.y).all()  # each with its label
            assert len(part.y[: len(part.y) // 2].unique()) >= 8
    assert len(test.y) == 33
    own_npz(tmp_path / "mine.npz", x_train=BYTES[:110], y_train=np.arange(110) % 10)
    assert len(common.load_dataset("grey", tmp_path)[0].y) == 110
    with pytest.raises(common.UserError, match="has 92 training images: at least 100"):
        common.load_dataset("grey", tmp_path, validation=True)


def test_keras_layouts(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (200, 32, 32, 3), np.uint8), np.arange(200)[:, None] % 10
    own_npz(tmp_path / "c.npz", x_train=x, y_train=y, x_test=x[:50], y_test=y[:50])
    train, _ = common.load_dataset("colour", tmp_path)
    truth = files.shuffled(torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(y[:, 0]))
    assert torch.equal(train.x, truth[0]) and torch.equal(train.y, truth[1])


def test_the_order_of_images_is_that_of_their_contents_whatever_was_added():
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.integers(0, 256, (500, 1, 4, 4), np.uint8))
    x[100:200] = 7  # copies
    y = torch.arange(500)
    order = files.shuffled(x, y)[1]
    assert not torch.equal(order, y) and torch.equal(order.sort().values, y)
    mixed = torch.randperm(500)
    assert torch.equal(files.shuffled(x[mixed], y[mixed])[0], files.shuffled(x, y)[0])
    fewer = files.shuffled(x[10:], y[10:])[1]
    assert torch.equal(fewer, order[order >= 10])
    place = order.argsort()[100:200].float()  # of the copies
    assert place.std() > 100 and abs(place.mean() - 250) < 50  # they are spread


def test_mnist_is_known_by_its_images_not_by_its_name(tmp_path):
    (x, y), _ = files.npz(ROOT / "data/mnist.npz")
    assert files.is_mnist(x, y) and not files.is_mnist(x.flip(0), y)
    assert not files.is_mnist(x[1:], y[1:]) and not files.is_mnist(x, y % 2)
    train, _ = common.load_dataset("mnist")
    assert torch.equal(train.x, x) and torch.equal(train.y, y)  # not shuffled


FAULTS = [
    ({"x_train": BYTES[:, :20]}, "training set: images must be uint8 [N, 1, 28, 28], not uint8"),
    ({"x_train": BYTES.astype(np.float32)}, "not float32 [200, 1, 28, 28]"),
    ({"x_train": BYTES.astype(np.uint16)}, "not uint16 [200, 1, 28, 28]"),
    ({"x_train": BYTES[:, :1].repeat(28, 1)}, "pixels go from 0 to 0, but bytes from 0 to 255"),
    ({"y_train": np.arange(250) % 10}, "training set: 200 images, but labels of the shape [250]"),
    ({"y_train": np.arange(200) % 10 + 1}, "a label is a whole number from 0 to 9, here 1 to 10"),
    ({"y_train": np.arange(200) % 2 - 1}, "a label is a whole number from 0 to 9, here -1 to 0"),
    (
        {"y_train": np.arange(200) / 200},
        "a label is a whole number from 0 to 9, not of torch.float",
    ),
    ({"x_test": BYTES[:0], "y_test": np.array([])}, "a label is a whole number from 0 to 9"),
    ({"y_train": np.zeros(200, int)}, "no training image has the class 1 of a test image"),
    ({"x_train": BYTES[:50], "y_train": np.arange(50) % 10}, "has 50 training images: at least"),
    ({"x_test": BYTES[:8], "y_test": np.arange(8)}, "has 8 test images: at least"),
    ({"y_test": None}, "lacks the array y_test"),
    ({"y_train": np.array(["cat", "dog"] * 100)}, "can't convert np.ndarray of type numpy.str_"),
    ({"x_train": BYTES // 9}, "pixels go from 0 to 1, but bytes from 0 to 255"),
    (
        {"y_train": np.zeros(200, int), "y_test": np.zeros(50, int)},
        "all training images are of one class",
    ),
]


@pytest.mark.parametrize("changes, complaint", FAULTS, ids=[words for _, words in FAULTS])
def test_faults_of_an_npz_are_one_line(changes, complaint, tmp_path):
    own_npz(tmp_path / "mine.npz", **changes)
    with pytest.raises(common.UserError) as caught:
        common.load_dataset("grey", tmp_path)
    assert complaint in str(caught.value) and "\n" not in str(caught.value)


def test_what_torchvision_gives_is_checked_too(tmp_path, monkeypatch):
    import torchvision.datasets

    class Fashion:
        def __init__(self, root, train, download):
            self.data, self.targets = torch.zeros(300, 28, 28).byte(), torch.arange(250) % 10

    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", Fashion)
    with pytest.raises(common.UserError, match="300 images, but labels of the shape .250."):
        common.load_dataset("fashion", tmp_path)


def test_faults_of_folders_are_one_line(tmp_path, capsys):
    def complaint(root):
        with pytest.raises(common.UserError) as caught:
            common.load_dataset("grey", root)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "name their folder with --data" in complaint(None)
    assert "name their folder with --data" in complaint(ROOT / "tests/../data")
    assert "no images in" in complaint(tmp_path / "absent")
    (tmp_path / "empty/a").mkdir(parents=True)
    assert "empty/a' has no images" in complaint(tmp_path / "empty")
    write_images(tmp_path / "many", "abcdefghijk", 10)
    assert "has 11 classes: ten at most" in complaint(tmp_path / "many")
    write_images(tmp_path / "other/train", "ab", 60)
    write_images(tmp_path / "other/test", "ac", 20)
    assert "must have the same folders of classes" in complaint(tmp_path / "other")
    (tmp_path / "deep").mkdir()
    (tmp_path / "other").rename(tmp_path / "deep/Training")
    write_images(tmp_path / "deep/Testing", "ab", 20)
    assert "/Testing' has its images in folders below" in complaint(tmp_path / "deep")
    write_images(tmp_path / "mine", "ab", 60)
    (tmp_path / "mine/.thumbnails").mkdir()
    (tmp_path / "mine/a/.1.png").write_bytes(b"no image")
    (tmp_path / "mine/a/notes.txt").write_text("no image")
    (tmp_path / "mine/a/latest").symlink_to(".")
    (tmp_path / "mine/a/features.h5").write_bytes(b"no image")
    assert len(common.load_dataset("grey", tmp_path / "mine")[0].y) == 100
    said = capsys.readouterr().err
    assert "a: 60 images in folders below are left out" in said
    assert "a: 2 files of another kind are left out: " in said
    assert "name their folder with --data" in complaint(tmp_path / "mine/b/2.png")
    picture = (tmp_path / "mine/b/2.png").read_bytes()
    floats = io.BytesIO()
    Image.new("F", (5, 5)).save(floats, "TIFF")
    for broken in (b"no image", picture[:60], picture.replace(b"IDAT", b"\0\0\0\0")):
        (tmp_path / "mine/b/2.png").write_bytes(broken)
        assert "mine/b/2.png' cannot be read" in complaint(tmp_path / "mine")
    (tmp_path / "mine/b/2.png").write_bytes(floats.getvalue())
    assert "2.png' cannot be read (floating-point pixels)" in complaint(tmp_path / "mine")
    (tmp_path / "mine/b/2.png").write_bytes(picture)
    (tmp_path / "mine/c").mkdir()
    assert "mine/c' has no images" in complaint(tmp_path / "mine")
    own_npz(tmp_path / "mine/1.npz")
    own_npz(tmp_path / "mine/._1.npz")
    assert len(common.load_dataset("grey", tmp_path / "mine")[0].y) == 200
    own_npz(tmp_path / "mine/2.npz")
    assert "has 2 .npz files: keep one there" in complaint(tmp_path / "mine")
    assert "x" * 300 in complaint(tmp_path / ("x" * 300))


@pytest.mark.parametrize("script", [mathieu, aae, bigan, infogan])
def test_encode_takes_images_of_any_usual_kind_and_refuses_others(script):
    torch.manual_seed(0)
    nets = script.build(command_line.parse(script.recipe, [])).eval()
    x = torch.randint(0, 256, (3, 1, 28, 28), dtype=torch.uint8)

    def codes(images):
        found = script.encode(nets, images)
        found = found if isinstance(found, tuple | list) else [found]
        return [code for code in found if code is not None]

    truth = codes(x)
    for images in (x.numpy(), x.float() / 255, (x.double() / 255).numpy()):
        for code, right in zip(codes(images), truth):
            assert torch.allclose(code, right, atol=1e-6) and len(code) == 3
    for code, right in zip(codes(x[1]), truth):
        assert torch.allclose(code, right[1:2], atol=1e-5)
    for wrong in (x[0, 0], x[:, :, :27], x.repeat(1, 1, 2, 2), x.repeat(1, 3, 1, 1), x[:0]):
        with pytest.raises(
            ValueError, match=r"images must be \[N, 1, 28, 28\] or \[1, 28, 28\], not"
        ):
            script.encode(nets, wrong)
    for wrong in (
        x.float(),
        x.float() / 255 - 0.01,
        x.long(),
        torch.full((1, 1, 28, 28), math.nan),
        x // 128,  # zeros and ones
        x.numpy().astype(np.uint16),
    ):
        with pytest.raises(ValueError, match=r"must be uint8 up to 255, or floats in \[0, 1\]"):
            script.encode(nets, wrong)


def test_decode_takes_codes_of_torch_and_numpy():
    torch.manual_seed(0)
    nets = {
        script: script.build(command_line.parse(script.recipe, [])).eval()
        for script in (mathieu, bigan)
    }
    nets[aae] = aae.build(aae.recipe("style")).eval()
    codes = {
        mathieu: (torch.randn(1200, 16), torch.randn(1200, 16)),
        bigan: (torch.randn(1200, 50),),
    }
    codes[aae] = torch.eye(10).repeat(120, 1), torch.randn(1200, 15)
    for script, tensors in codes.items():
        images = script.decode(nets[script], *tensors)
        assert images.shape == (1200, 1, 28, 28) and 0 <= images.min() and images.max() <= 1
        arrays = [code.double().numpy() for code in tensors]
        assert torch.equal(images, script.decode(nets[script], *arrays))
        one = script.decode(nets[script], *(code[1100:1101] for code in tensors))
        assert torch.allclose(one, images[1100:1101], atol=1e-5)
    for wrong in (1000, 1999, 1):
        with pytest.raises(ValueError, match="codes have different numbers of rows"):
            mathieu.decode(nets[mathieu], torch.randn(2000, 16), torch.randn(wrong, 16))
    plain = aae.build(aae.recipe("prior")).eval()
    assert aae.decode(plain, None, torch.randn(1200, 2)).shape == (1200, 1, 28, 28)


# ---- Pairs ---------------------------------------------------------------------------------------


def test_pairs_are_two_different_images_of_one_class_and_cover_all():
    torch.manual_seed(0)
    y = torch.tensor([0] * 7 + [1] * 2 + [3] * 10 + [4] * 3)[torch.randperm(22)]
    for _ in range(50):
        pairs = common.pair_same_class(y)
        assert pairs.shape == (4 + 1 + 5 + 2, 2)
        assert (y[pairs[:, 0]] == y[pairs[:, 1]]).all() and (pairs[:, 0] != pairs[:, 1]).all()
        times = torch.bincount(pairs.flatten(), minlength=22)
        assert times.min() == 1 and times.sum() == 24  # only the odd classes repeat one image each


def test_partners_are_uniform():
    torch.manual_seed(1)
    table = torch.zeros(6, 6)
    for _ in range(3000):
        for a, b in common.pair_same_class(torch.zeros(6, dtype=torch.long)).tolist():
            table[a, b] += 1
            table[b, a] += 1
    off = table[~torch.eye(6, dtype=torch.bool)] / 3000
    assert (off - 1 / 5).abs().max() < 0.03 and table.diagonal().sum() == 0


def test_classes_are_mixed_in_every_part_of_an_epoch():
    torch.manual_seed(0)
    y = torch.arange(2).repeat_interleave(500)
    first = y[common.pair_same_class(y)[:100, 0]].float().mean()
    assert 0.35 < first < 0.65


def test_a_class_with_one_image_is_named():
    with pytest.raises(common.UserError, match="class 2 has a single image"):
        common.pair_same_class(torch.tensor([0, 0, 2, 1, 1]))


# ---- Settings and flags --------------------------------------------------------------------------


@dataclasses.dataclass
class Toy(common.RunSettings):
    recipe: str = "small"  # small or large
    epochs: common.Count = 3  # passes over twenty numbers
    device: Literal["auto", "cpu", "cuda", "mps"] = "cpu"  # where it runs
    precision: Literal["auto", "fp32", "bf16"] = "fp32"  # of products
    size: common.Count = 4  # rows of a step (paper: 100 %)
    rate: common.Rate = 0.1  # of the optimiser
    weight: common.Weight = 1.0  # of the loss
    part: common.Share = 0.5  # of the whole


def recipe(recipe="small"):
    return Toy(recipe=recipe, size=8 if recipe == "large" else 4)


def parse(*words):
    return command_line.parse(recipe, list(words))


def test_flags_change_the_fields_of_a_recipe():
    assert parse() == Toy()
    assert parse("--recipe", "large") == Toy(recipe="large", size=8)
    assert parse("--size", "2", "--recipe=large") == Toy(recipe="large", size=2)
    values = parse("--rate", "1e-3", "--epochs", "7", "--validation", "--data", "d", "--part", "1")
    assert values == Toy(rate=0.001, epochs=7, validation=True, data="d", part=1.0)
    assert type(parse("--weight", "2").weight) is float and type(parse("--size", "2").size) is int


def test_a_dry_run_has_two_epochs_at_most():
    assert [parse("--dry-run", "--epochs", n).epochs for n in ("1", "2", "9")] == [1, 2, 2]


def test_help_is_the_comments_of_the_fields_with_their_defaults():
    words = " ".join(command_line.make_parser(recipe("large")).format_help().split())
    assert "--size SIZE rows of a step (paper: 100 %) [8]" in words
    assert "--epochs EPOCHS passes over twenty numbers [3]" in words  # its own, not RunSettings'
    assert "--dry-run every line of the script on a few images" in words
    for field in dataclasses.fields(Toy):
        assert f"--{field.name.replace('_', '-')} " in words


def test_help_begins_with_commands_and_has_three_groups(monkeypatch):
    monkeypatch.setitem(sys.modules, "__main__", mathieu)
    lines = command_line.make_parser(mathieu.MNIST).format_help().splitlines()
    assert (
        "python mathieu.py --epochs 50 " in lines[1] and "python mathieu.py --dataset" in lines[2]
    )
    groups, name = {}, None
    for line in lines:
        if line.endswith(":") and not line.startswith(" "):
            name = line
        elif line.startswith("  --"):
            groups.setdefault(name, []).append(line.split()[0])
    assert groups["ours, beyond the paper:"] == ["--prior-std", "--dead-zone", "--code-weight"]
    assert {"--lr", "--z-dim"} <= set(groups["the paper:"])
    assert {"--epochs", "--seed", "--resume"} <= set(groups["all scripts:"])


WRONG = [
    ("--epoch 3", "there is no --epoch here; did you mean --epochs?"),
    ("--wieght=3", "there is no --wieght here; did you mean --weight?"),
    ("--zzz", "there is no --zzz here"),
    ("--epochs 0", "'0' is not a whole number from 1 to"),
    ("--epochs 1.5", "'1.5' is not a whole number"),
    ("--epochs many", "'many' is not a whole number"),
    ("--seed -1", "'-1' is not a whole number from 0 to"),
    ("--rate 0", "'0' is not a number from 1e-12 to 1000"),
    ("--rate nan", "'nan' is not a number"),
    ("--rate 1001", "'1001' is not a number"),
    ("--weight -0.1", "'-0.1' is not a number from 0 to"),
    ("--weight inf", "'inf' is not a number"),
    ("--part 1.01", "'1.01' is not a number from 0 to 1"),
    ("--device tpu", "invalid choice: 'tpu'"),
    ("--precision fp8", "invalid choice: 'fp8'"),
    ("--rate", "expected one argument"),
    ("--resume", "expected one argument"),
    ("stray", "unrecognized arguments: stray"),
]


@pytest.mark.parametrize("words, complaint", WRONG, ids=[words for words, _ in WRONG])
def test_a_wrong_flag_is_one_line(words, complaint, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(*words.split())
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == "" and err.count("\n") == 1 and complaint in err


def test_a_resumed_run_takes_its_settings_from_the_folder():
    settings = Toy(recipe="large", size=3, rate=0.2, epochs=9, seed=5, validation=True, out="run")
    common.Run("toy", settings)
    known = dataclasses.replace(settings, out="", resume="run")
    assert parse("--resume", "run") == known and parse("--resume=run", "--device=auto") == (
        dataclasses.replace(known, device="auto")
    )


def test_an_empty_word_is_no_run_folder():
    with pytest.raises(common.UserError, match="--resume needs a run folder"):
        parse("--resume", "")


def test_a_run_finds_its_images_from_anywhere():
    Path("mine").mkdir()
    common.Run("toy", Toy(out="run", data="mine"))
    assert parse("--resume", "run").data == str(Path("mine").resolve())
    o = dataclasses.replace(infogan_regular.recipe(), device="cpu", out="other", beside="mine")
    common.Run("infogan_regular", o)  # nor does it matter from where a run beside it is named
    assert run_folder.read_config("other")["settings"]["beside"] == str(Path("mine").resolve())


def test_in_python_a_run_is_not_resumed_by_other_settings():
    common.Run("toy", Toy(out="run"))
    right = run_folder.read_settings("run", recipe)
    for change in ({"epochs": 9}, {"seed": 1}, {"dataset": "kmnist"}):
        name, value = next(iter(change.items()))
        with pytest.raises(common.UserError, match=f"'run' has {name} .*, not {value}: resume it"):
            common.Run("toy", dataclasses.replace(right, **change))
    assert common.Run("toy", dataclasses.replace(right, device="cpu")).folder == Path("run")


def test_no_other_flag_may_stand_beside_resume():
    common.Run("toy", Toy(out="run"))
    for more in (["--epochs", "9"], ["--out", "other"], ["--recipe=large"], ["--dry-run"]):
        with pytest.raises(common.UserError, match="beside --resume only --device may stand"):
            parse("--resume", "run", *more)


def test_a_folder_that_cannot_be_resumed_is_one_line():
    with pytest.raises(common.UserError, match="'absent' is no run folder"):
        parse("--resume", "absent")
    common.Run("toy", Toy(out="run"))
    whole = run_folder.read_config("run")
    for broken in ("", "{", "[]", "{}", '{"script": "toy", "settings": 3}', '{"script": "toy"}'):
        Path("run/config.json").write_text(broken)
        with pytest.raises(common.UserError, match="'run/config.json' is damaged"):
            parse("--resume", "run")
    for settings in ({**whole["settings"], "unknown": 1}, {}):
        Path("run/config.json").write_text(json.dumps({**whole, "settings": settings}))
        with pytest.raises(common.UserError, match="'run', a run of toy, is of another version"):
            parse("--resume", "run")


# ---- A run ---------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def name(request, monkeypatch):
    """Runs are called toy.py. losses.png is drawn where a test looks at it; it takes its time."""
    monkeypatch.setattr(sys, "argv", ["toy.py"])
    if "drawn" not in request.fixturenames and "contract" not in request.node.name:
        draw = lambda path, _: common.write_atomic(path, b"")  # noqa: E731
        monkeypatch.setattr(run_folder, "figure_losses", draw)


def toy(settings, break_at=None, stop_at=None):
    """A training on a Run, with batches, noise and momentum: all that a resume must restore."""
    run = common.Run("toy", settings)
    net = nn.Linear(3, 1)
    optimiser = torch.optim.Adam(net.parameters(), settings.rate)
    run.track(net=net, optimiser=optimiser)
    for _ in run.epochs():
        for index in run.batches(torch.randperm(20), settings.size):
            if run.step == stop_at:
                raise KeyboardInterrupt
            x = torch.randn(len(index), 3) + index[:, None] / 10
            loss = net(x).square().mean() * (math.nan if run.step == break_at else 1)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            run.log(loss=loss, other=run.progress * torch.ones(()))
    run.finish({"score": net.weight.sum().item()}, [("a score", "score", "1.0", "chance 0")])
    return run


def interrupted(settings, stop_at):
    """The same, stopped by Ctrl-C in a step; then the folder is free, as when a process ends."""
    with pytest.raises(KeyboardInterrupt):
        toy(settings, stop_at=stop_at)
    gc.collect()


def resume(folder):
    torch.manual_seed(99)  # whatever happened in between
    return toy(parse("--resume", str(folder), "--device", "cpu"))


def state(folder):
    """All of a finished run that must not depend on interruptions."""
    saved = torch.load(Path(folder) / "checkpoint.pt", weights_only=True)
    found = {k: v for k, v in saved.items() if k not in ("seconds", "train_seconds")}
    score = json.loads((Path(folder) / "metrics.json").read_text())["score"]
    return {**found, "log": (Path(folder) / "log.csv").read_text(), "score": score}


def test_config_names_each_machine_and_code_of_a_resumed_run(monkeypatch):
    machines = []
    monkeypatch.setattr(machine, "hardware", lambda device: machines[-1])

    def parts():
        config = run_folder.read_config("run")
        return [(part["epoch"], part["hardware"]) for part in config.get("resumed", [])]

    machines.append("A, 1 threads")
    interrupted(Toy(out="run"), stop_at=3)
    for name, stop_at in (("A, 1 threads", 8), ("A, 2 threads", 9), ("A, 2 threads", 12)):
        machines.append(name)
        interrupted(parse("--resume", "run", "--device", "cpu"), stop_at)
    assert run_folder.read_config("run")["hardware"] == "A, 1 threads"
    assert parts() == [(1, "A, 2 threads")]
    machines.append("A, 1 threads")
    resume("run")
    assert parts() == [(1, "A, 2 threads"), (2, "A, 1 threads")]


def test_a_run_folder_holds_its_contract(capsys):
    folder = toy(Toy(out="run")).folder
    config = json.loads((folder / "config.json").read_text())
    assert config["script"] == "toy" and config["precision"] == "fp32"
    assert config["settings"]["epochs"] == 3 and config["settings"]["size"] == 4
    assert not {"resume", "out", "device"} & set(config["settings"])
    assert config["device"] == "cpu" and config["hardware"] and config["commit"]
    assert config["command"].startswith("python ") and config["versions"]["torch"]
    rows = list(csv.DictReader(open(folder / "log.csv")))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert list(rows[0]) == ["epoch", "loss", "other"] and float(rows[0]["loss"]) > 0
    metrics = json.loads((folder / "metrics.json").read_text())
    assert set(metrics) == {"score", "epochs", "seconds", "images_per_second"}
    assert metrics["epochs"] == 3 and metrics["images_per_second"] > 0
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert saved["epoch"] == 3 and saved["step"] == 15 and saved["images"] == 60
    assert set(saved["states"]) == {"net"}  # the optimisers are not needed any more
    assert (folder / "losses.png").stat().st_size > 2000
    assert {file.name for file in folder.iterdir()} == set(
        "config.json log.csv metrics.json checkpoint.pt losses.png lock owner".split()
    )
    out, err = capsys.readouterr()
    assert [line.split("  ")[0] for line in out.splitlines()] == ["score", "a score"]
    assert f"{metrics['score']:.4g}" in out and "1.0" in out and "chance 0" in out
    assert "toy: cpu, fp32, into run" in err
    told = [line for line in err.splitlines() if line.startswith("toy: epoch")]
    assert len(told) == 3  # stderr is no terminal: a line an epoch
    assert "images/s" in told[1] and "loss" in told[1] and "min left" in told[1]


def test_on_a_terminal_a_bar_tells_the_progress_inside_an_epoch(monkeypatch):
    class Terminal(io.StringIO):
        isatty = lambda self: True  # noqa: E731

    monkeypatch.setattr(sys, "stderr", Terminal())
    toy(Toy(out="run"))
    told = sys.stderr.getvalue()
    assert "60.0/60.0" in told and "images" in told and "toy: epoch" not in told


def test_the_log_holds_means_over_an_epoch_and_progress_runs_from_0_to_1():
    run = common.Run("toy", Toy(out="run", epochs=2))
    seen = []
    for _ in run.epochs():
        for index in run.batches(torch.arange(20), 5):
            seen.append(run.progress)
            run.log(first=index.float().mean(), last=index.max())
    row, _ = csv.DictReader(open("run/log.csv"))
    assert float(row["first"]) == 9.5 and float(row["last"]) == (4 + 9 + 14 + 19) / 4
    assert seen == pytest.approx([k / 8 for k in range(1, 9)])


def test_batches_are_in_order_and_nearly_equal():
    run = common.Run("toy", Toy(out="run", epochs=1))
    for _ in run.epochs():
        parts = list(run.batches(torch.arange(22).view(11, 2), 4))
        run.log(loss=torch.zeros(()))
    assert [len(part) for part in parts] == [4, 4, 3]  # no small rest
    assert torch.equal(torch.cat(parts), torch.arange(22).view(11, 2))
    assert run.images == run.bar.total == 22  # of a pair both count


@pytest.mark.parametrize("step", [1, 3, 6, 10, 15])
def test_a_stopped_run_goes_on_bit_for_bit(step, capsys):
    toy(Toy(out="whole"))
    interrupted(Toy(out="part"), stop_at=step)
    capsys.readouterr()
    resume("part")
    assert same(state("whole"), state("part"))
    epoch = (step - 1) // 5  # from the last whole epoch
    assert (f"resumed at epoch {epoch} of 3" in capsys.readouterr().err) == (epoch > 0)


def test_a_run_stopped_twice_goes_on_bit_for_bit():
    toy(Toy(out="whole"))
    interrupted(Toy(out="part"), stop_at=7)
    interrupted(parse("--resume", "part"), stop_at=8)
    interrupted(parse("--resume", "part"), stop_at=13)
    resume("part")
    assert same(state("whole"), state("part"))


class Killed(BaseException):
    pass


def kill_at_write(settings, number, monkeypatch):
    """A toy run that dies in write `number`: its temporary file stays, the old file too."""
    count, real = [0], os.replace

    def replace(part, path):
        if count[0] == number:
            raise Killed
        count[0] += 1
        real(part, path)

    with monkeypatch.context() as patch:
        patch.setattr(common.os, "replace", replace)
        try:
            toy(settings)
            return False
        except Killed:
            return True
        finally:
            gc.collect()


def test_a_kill_in_any_write_of_a_run_can_be_mended(monkeypatch):
    """The next command ends as an undisturbed run: --resume, or the first one where nothing is
    there to resume."""
    toy(Toy(out="whole"))
    number = 0
    while kill_at_write(Toy(out=f"killed-{number}"), number, monkeypatch):
        folder = Path(f"killed-{number}")
        if not (folder / "config.json").exists():
            toy(Toy(out=str(folder)))
        elif not (folder / "metrics.json").exists():
            resume(folder)
        truth, found = state("whole"), state(folder)
        found["states"].pop("optimiser", None)  # of a run that died in its very last write
        assert same(truth, found), number
        number += 1
    assert number == 1 + 2 * 3 + 4  # config; log, checkpoint; losses, three of the end


def test_a_run_cut_off_before_its_first_checkpoint_may_be_begun_again_in_its_folder():
    toy(Toy(out="whole", rate=0.2))
    interrupted(Toy(out="run"), stop_at=4)
    toy(Toy(out="run", rate=0.2))
    assert same(state("whole"), state("run"))
    assert run_folder.read_config("run")["settings"]["rate"] == 0.2


def test_time_spent_before_an_interruption_counts(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(common.time, "time", lambda: now[0])
    real = common.Run.log
    monkeypatch.setattr(
        common.Run, "log", lambda run, **w: real(run, **w) or now.__setitem__(0, now[0] + 10)
    )
    interrupted(Toy(out="run"), stop_at=11)  # two epochs of five steps of ten seconds
    now[0] += 5000
    resume("run")
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert metrics["seconds"] == pytest.approx(150) and metrics["images_per_second"] == 0
    assert torch.load("run/checkpoint.pt", weights_only=True)["train_seconds"] == 150


def test_a_finished_run_is_neither_overwritten_nor_resumed():
    toy(Toy(out="run"))
    before = {file.name: file.read_bytes() for file in Path("run").iterdir()}
    with pytest.raises(common.UserError, match="already finished: run"):
        resume("run")
    with pytest.raises(common.UserError, match="'run' is not empty: choose another --out$"):
        toy(Toy(out="run"))
    assert before == {file.name: file.read_bytes() for file in Path("run").iterdir()}


@pytest.mark.parametrize("names", [["notes.txt"], ["lock", "notes.txt"], ["config.json"]])
def test_a_folder_of_the_user_is_left_as_it_is(names):
    Path("mine").mkdir()
    for name in names:
        Path("mine", name).write_text("dear diary")
    with pytest.raises(common.UserError, match="'mine' is not empty|'mine/config.json' is damaged"):
        common.Run("toy", Toy(out="mine"))
    assert {file.name: file.read_text() for file in Path("mine").iterdir()} == (
        dict.fromkeys(names, "dear diary")
    )


def test_a_file_of_the_user_is_left_as_it_is():
    Path("file").write_text("mine")
    for out in ("file", "file/deeper"):
        with pytest.raises(common.UserError, match=f"cannot write to '{out}' .*another --out"):
            common.Run("toy", Toy(out=out))
    assert Path("file").read_text() == "mine"


def test_folders_count_up_where_no_out_is_given():
    names = []
    for settings in (Toy(seed=3), Toy(seed=3), Toy(seed=3)):
        names.append(str(common.Run("toy", settings).folder))
    names.append(str(common.Run("toy", Toy(seed=3), name="grid").folder))
    assert names == [
        "runs/toy/mnist-seed3",
        "runs/toy/mnist-seed3-2",
        "runs/toy/mnist-seed3-3",
        "runs/toy/grid-seed3",
    ]


def test_dry_runs_share_one_folder_and_say_what_they_are(capsys, drawn):
    for _ in range(2):
        folder = toy(Toy(dry_run=True)).folder
        (folder / "swap.png").write_bytes(b"of the run before")
        assert "a dry run, its numbers mean nothing" in capsys.readouterr().err
    toy(Toy(dry_run=True))
    assert os.listdir("runs/toy") == ["dry-run"] and not Path("runs/toy/dry-run/swap.png").exists()
    assert [words.get_text() for words in drawn[-1].texts if "DRY" in words.get_text()] == [
        "DRY RUN, means nothing: dry-run: mnist, 3 epochs, seed 0"
    ]
    with pytest.raises(common.UserError, match="'mine' is not empty"):
        for _ in range(2):
            toy(Toy(dry_run=True, out="mine"))


def test_a_figure_says_of_which_run_it_is(drawn):
    folder = common.Run("toy", Toy(epochs=7, seed=4)).folder
    for path in (folder / "x.png", "x.png"):
        common.figure_grid(path, torch.rand(6, 1, 4, 4), 3, "title")
    Path("config.json").write_text("of another program")
    common.figure_grid("x.png", torch.rand(6, 1, 4, 4), 3, "title")
    assert [figure.texts[-1].get_text() for figure in drawn] == [
        "mnist-seed4: mnist, 7 epochs, seed 4",
        "",
        "",
    ]


def test_a_run_of_another_script_is_not_resumed():
    interrupted(Toy(out="run"), stop_at=7)
    with pytest.raises(common.UserError, match="another --out, or --resume run$"):
        common.Run("other", Toy(out="run"))
    before = {file.name: file.read_bytes() for file in Path("run").iterdir()}
    with pytest.raises(common.UserError, match="toy"):
        common.Run("other", parse("--resume", "run"))
    assert before == {file.name: file.read_bytes() for file in Path("run").iterdir()}


def hold_a_folder(ready, enough):
    run = common.Run("toy", Toy(out="run"))
    ready.set()
    enough.wait(60)
    assert run.folder.exists()


def test_a_run_folder_belongs_to_one_process_at_a_time():
    ready, enough = PROCESSES.Event(), PROCESSES.Event()
    process = PROCESSES.Process(target=hold_a_folder, args=(ready, enough))
    process.start()
    assert ready.wait(60)
    for settings in (Toy(out="run"), parse("--resume", "run")):
        who = rf"another process is at work in 'run' \(pid {process.pid}, since 20"
        with pytest.raises(common.UserError, match=who):
            common.Run("toy", settings)
    enough.set()
    process.join()
    common.Run("toy", Toy(out="run"))  # free again


def test_a_folder_with_nothing_but_hidden_files_is_empty():
    Path("run").mkdir()
    for name in (".DS_Store", "checkpoint.pt.123.part"):
        Path("run", name).write_text("x")
    common.Run("toy", Toy(out="run"))
    assert Path("run/.DS_Store").exists() and not list(Path("run").glob("*.part"))
    Path("mine").mkdir()
    Path("mine/film.part").write_text("of a download")
    with pytest.raises(common.UserError, match="'mine' is not empty"):
        common.Run("toy", Toy(out="mine"))
    assert Path("mine/film.part").exists()


def test_a_link_to_nowhere_is_one_line():
    Path("runs").symlink_to("nowhere")
    for settings in (Toy(), Toy(out="runs/deeper")):
        with pytest.raises(common.UserError, match="cannot write to 'runs/.*another --out"):
            common.Run("toy", settings)
    assert not Path("nowhere").exists()


def test_a_name_that_is_taken_at_the_same_moment_leads_to_the_next(monkeypatch):
    real = Path.mkdir

    def mkdir(path, *words, **more):
        if path.name == "mnist-seed0" and not path.exists():
            real(path, *words, **more)  # another run, a moment earlier
        real(path, *words, **more)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    assert common.Run("toy", Toy(dataset="mnist")).folder == Path("runs/toy/mnist-seed0-2")


def test_a_folder_without_a_lock_that_can_be_written_is_one_line():
    interrupted(Toy(out="run"), stop_at=8)
    Path("run/lock").unlink()
    Path("run/lock").mkdir()
    with pytest.raises(common.UserError, match="cannot write to 'run'"):
        resume("run")


def test_a_resumed_run_keeps_its_precision():
    interrupted(Toy(out="run"), stop_at=8)
    config = json.loads(Path("run/config.json").read_text())
    config["settings"]["precision"], config["precision"] = "auto", "bf16"  # of another processor
    Path("run/config.json").write_text(json.dumps(config))
    assert parse("--resume", "run").precision == "bf16"


def test_a_closed_stderr_does_not_end_a_training():
    with stream("stderr", closed_pipe):
        command_line.exit_on_mistake(lambda: toy(Toy(out="run")))
    assert Path("run/metrics.json").exists()


@contextlib.contextmanager
def stream(name, opened):
    """Meanwhile sys.stdout or sys.stderr is a file that cannot be written."""
    kept, file = getattr(sys, name), opened()
    setattr(sys, name, file)
    try:
        yield
    finally:
        setattr(sys, name, kept)
        with contextlib.suppress(OSError):  # what waits in it cannot be written, either
            file.close()


def closed_pipe():
    read, write = os.pipe()
    os.close(read)
    return open(write, "w")


def full_disk():
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    return open("/dev/full", "w")


@pytest.mark.parametrize("stdout", [full_disk, closed_pipe])
def test_a_table_that_cannot_be_printed_is_one_line(stdout, capsys):
    with stream("stdout", stdout), pytest.raises(SystemExit) as stop:
        command_line.exit_on_mistake(lambda: toy(Toy(out="run")))
    assert stop.value.code == 1 and Path("run/metrics.json").exists()
    assert "cannot print the table" in capsys.readouterr().err.splitlines()[-1]


def test_a_missing_file_is_not_taken_for_stdout():
    with pytest.raises(FileNotFoundError):
        command_line.exit_on_mistake(lambda: open("absent"))


def test_a_run_needs_neither_stdout_nor_stderr(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    command_line.exit_on_mistake(lambda: toy(Toy(out="run")))
    assert Path("run/metrics.json").exists()


def test_a_run_may_be_made_in_a_thread_and_one_may_follow_another():
    settings, threads = Toy(), []
    for _ in range(2):
        call = lambda: toy(settings)  # noqa: E731
        threads.append(threading.Thread(target=command_line.exit_on_mistake, args=[call]))
        threads[-1].start()
        threads[-1].join()
    assert Path("runs/toy/mnist-seed0/metrics.json").exists()
    assert same(state("runs/toy/mnist-seed0"), state("runs/toy/mnist-seed0-2"))


def test_a_script_sees_one_gpu_the_first_or_the_one_chosen(monkeypatch):
    name = "CUDA_VISIBLE_DEVICES"
    seen = lambda: command_line.exit_on_mistake(lambda: os.environ[name])  # noqa: E731
    monkeypatch.setenv(name, "3")
    assert seen() == "3"
    monkeypatch.delenv(name)
    assert seen() == "0"


def test_sigterm_ends_with_a_line_and_its_status(capsys):
    kept = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as stop:
            command_line.exit_on_mistake(lambda: signal.raise_signal(signal.SIGTERM))
    finally:
        signal.signal(signal.SIGTERM, kept)
    assert stop.value.code == 143 and "goes on with --resume RUN" in capsys.readouterr().err


def write_often(letter, ready):
    ready.set()
    for _ in range(20):
        common.write_atomic(Path("file"), letter * 100_000)
        assert len(set(Path("file").read_bytes())) == 1


def test_two_may_write_a_file_at_the_same_moment():
    ready = PROCESSES.Event()
    other = PROCESSES.Process(target=write_often, args=(b"b", ready))
    other.start()
    assert ready.wait(60)
    write_often(b"a", ready)
    other.join()
    assert other.exitcode == 0 and not list(Path().glob("*.part"))


def test_a_loss_that_is_not_finite_is_named_and_the_last_good_checkpoint_kept():
    with pytest.raises(common.UserError) as caught:
        toy(Toy(out="run"), break_at=8)
    words = str(caught.value)
    assert "the loss 'loss' is not finite at step 8" in words and "run keeps epoch 1" in words
    saved = torch.load("run/checkpoint.pt", weights_only=True)
    assert saved["epoch"] == 1 and all(t.isfinite().all() for t in saved["states"]["net"].values())
    assert len(open("run/log.csv").readlines()) == 2
    with pytest.raises(common.UserError, match="step 2; .*nothing is saved"):
        toy(Toy(out="first"), break_at=2)
    assert not Path("first/checkpoint.pt").exists()


def test_weights_that_are_not_finite_are_not_saved():
    run, net = common.Run("toy", Toy(out="run", epochs=2)), nn.BatchNorm1d(2)
    run.track(net=net)
    with pytest.raises(common.UserError, match="a weight of 'net' is not finite at step 4"):
        for epoch in run.epochs():
            for _ in run.batches(torch.arange(8), 4):
                run.log(loss=torch.zeros(()))
            net.running_var[0] = math.inf if epoch == 1 else 1
    assert torch.load("run/checkpoint.pt", weights_only=True)["epoch"] == 1


def fails(*_):
    raise OSError(28, "No space left on device")


def test_a_full_disk_keeps_the_last_checkpoint_and_says_so(monkeypatch):
    interrupted(Toy(out="run"), stop_at=7)
    before = Path("run/checkpoint.pt").read_bytes()
    with monkeypatch.context() as patch, pytest.raises(common.UserError) as caught:
        patch.setattr(common.os, "fsync", fails)
        toy(parse("--resume", "run"))
    assert "cannot write 'run/" in str(caught.value) and "No space left" in str(caught.value)
    assert Path("run/checkpoint.pt").read_bytes() == before and not list(Path("run").glob("*.part"))


def test_a_write_that_fails_leaves_the_old_file(monkeypatch):
    common.write_atomic(Path("file"), b"old")
    for step in ("fsync", "replace"):
        with monkeypatch.context() as patch, pytest.raises(common.UserError, match="'file'"):
            patch.setattr(common.os, step, fails)
            common.write_atomic(Path("file"), b"new")
        assert open("file").read() == "old" and not list(Path().glob("*.part"))
    common.write_atomic(Path("file"), b"new")
    assert open("file").read() == "new"


def test_a_damaged_checkpoint_is_one_line():
    interrupted(Toy(out="run"), stop_at=7)
    content = Path("run/checkpoint.pt").read_bytes()
    buffer = io.BytesIO()
    torch.save({"epoch": 3}, buffer)
    for broken in (b"", content[:100], content[: len(content) // 2], b"text", buffer.getvalue()):
        Path("run/checkpoint.pt").write_bytes(broken)
        with pytest.raises(common.UserError, match="'run/checkpoint.pt' is damaged"):
            resume("run")
    Path("run/checkpoint.pt").write_bytes(content)
    run = common.Run("toy", parse("--resume", "run"))
    for other in (nn.Linear(4, 1), nn.Linear(3, 1, bias=False)):
        with pytest.raises(common.UserError, match="'run' is of another version"):
            run.track(net=other)
    with pytest.raises(common.UserError, match="'run' is of another version"):
        run.track(absent=nn.Linear(3, 1))


def test_a_lack_of_memory_is_no_damage(monkeypatch):
    interrupted(Toy(out="run"), stop_at=7)

    def fails(*args, **kwargs):
        raise RuntimeError("DefaultCPUAllocator: not enough memory")

    monkeypatch.setattr(torch, "load", fails)
    with pytest.raises(common.UserError, match="no memory is left on cpu"):
        resume("run")


def test_an_unfinished_or_absent_run_is_not_loaded():
    interrupted(Toy(out="run"), stop_at=7)
    with pytest.raises(common.UserError, match="'run' is not finished: go on with --resume run"):
        run_folder.read_checkpoint("run", finished=True)
    assert run_folder.read_checkpoint("run")["epoch"] == 1
    Path("run/metrics.json").write_text("{}")
    assert run_folder.read_checkpoint("run", finished=True)["epoch"] == 1
    Path("run/checkpoint.pt").unlink()
    with pytest.raises(common.UserError, match="cannot read 'run/checkpoint.pt' .No such file"):
        run_folder.read_checkpoint("run")


def test_networks_of_other_code_are_not_loaded():
    run = common.Run("toy", Toy(out="run"))
    run.track(nets=nn.Linear(3, 1))
    run.finish({})
    assert not common.load("run", recipe, lambda o: nn.Linear(3, 1)).training
    for other in (nn.Linear(3, 1, bias=False), nn.Sequential(nn.Linear(3, 1)), nn.Linear(4, 1)):
        with pytest.raises(common.UserError, match="'run', a run of toy, is of another version"):
            common.load("run", recipe, lambda o: other)


def test_a_run_whose_last_write_fails_keeps_the_networks_that_it_scored(monkeypatch):
    save = common.Run.save

    def full_at_the_end(run, finished=False):
        if finished:
            raise common.UserError("cannot write")
        save(run)

    run = common.Run("toy", Toy(out="run", epochs=0))
    net = nn.Linear(3, 1)
    run.track(net=net)
    run.save()
    nn.init.ones_(net.weight)  # as `settle` changes networks after the last epoch
    monkeypatch.setattr(common.Run, "save", full_at_the_end)
    with pytest.raises(common.UserError, match="cannot write"):
        run.finish({})
    saved = run_folder.read_checkpoint("run", finished=True)["states"]
    assert torch.equal(saved["net"]["weight"], torch.ones(1, 3))


def test_ctrl_c_and_mistakes_end_with_one_line_and_their_status(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["toy.py", "--recipe", "large"])
    for error, status, words in (
        (KeyboardInterrupt(), 130, "toy.py: stopped; a training goes on with --resume RUN"),
        (common.UserError("no such thing"), 2, "toy.py: no such thing\n"),
        (MemoryError(), 2, "toy.py: no memory is left: choose smaller settings"),
        (torch.OutOfMemoryError("CUDA"), 2, "toy.py: no memory is left: choose smaller settings"),
        (RuntimeError("MPS backend out of memory"), 2, "toy.py: no memory is left"),
        (RuntimeError("DefaultCPUAllocator: not enough memory"), 2, "toy.py: no memory is left"),
    ):

        def main(settings):
            assert settings == Toy(recipe="large", size=8)
            raise error

        with pytest.raises(SystemExit) as stop:
            common.run_main(main, recipe)
        out, err = capsys.readouterr()
        assert stop.value.code == status and out == "" and err.count("\n") == 1 and words in err


def test_networks_larger_than_the_memory_have_no_traceback(monkeypatch, capsys):
    monkeypatch.setattr(bigan.Encoder, "__init__", lambda *_, **__: torch.empty(2**55))
    with pytest.raises(SystemExit) as stop:
        command_line.exit_on_mistake(lambda: bigan.main(bigan.recipe()))
    err = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and "no memory is left: choose smaller settings" in err[-1]
    assert not any("Traceback" in line for line in err)
    with pytest.raises(RuntimeError, match="another"):
        command_line.exit_on_mistake(lambda: (_ for _ in ()).throw(RuntimeError("another")))


def test_a_run_without_scores_prints_no_table(capsys):
    common.Run("toy", Toy(out="run")).finish({})
    assert capsys.readouterr().out == ""


def test_what_breaks_a_training_frees_its_folder_for_the_same_process():
    run = common.Run("toy", Toy(out="run"))
    with pytest.raises(KeyboardInterrupt), run.autocast():
        raise KeyboardInterrupt
    again = common.Run("toy", parse("--resume", "run"))  # while `run` still exists
    held = r"a Run of this process holds 'run': call its lock.release\(\)"
    with again.autocast(), pytest.raises(common.UserError, match=held):
        common.Run("toy", parse("--resume", "run"))
    again.lock.release()
    assert common.Run("toy", parse("--resume", "run")).folder.exists()


# ---- Devices and imports -------------------------------------------------------------------------


def test_precision_follows_the_hardware(monkeypatch):
    cpu = torch.device("cpu")
    for features, precision in (
        ({"avx512_bf16": True}, "bf16"),
        ({"amx_tile": True}, "bf16"),
        ({"avx2": True}, "fp32"),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features, raising=False)
        assert machine.choose_precision("auto", cpu) == precision
        assert machine.choose_precision("auto", torch.device("cuda")) == "fp32"
    assert machine.choose_precision("bf16", cpu) == "bf16"
    assert machine.choose_precision("fp32", cpu) == "fp32"


NEW_PAGES = """
import dataclasses, resource, aae, common
common.Run("aae", dataclasses.replace(aae.recipe(), out="run"))
for size in (2**24, 2**27):  # glibc may map the first on its own, and always maps the second
    bytearray(size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(size)
    new = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    print(new * resource.getpagesize() / size)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the C library of Linux is asked")
def test_a_run_keeps_the_memory_that_it_frees(tmp_path):
    words = [sys.executable, "-c", NEW_PAGES]
    path = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=tmp_path, env=path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(float(share) < 0.1 for share in done.stdout.split())


def test_products_have_the_precision_of_the_run():
    layer = nn.Linear(2, 2)
    for precision, kind in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with common.Run("toy", Toy(precision=precision)).autocast():
            assert layer(torch.ones(1, 2)).dtype == kind


def test_a_product_in_bf16_is_of_the_weights_of_now():
    layer, x = nn.Linear(2, 2, bias=False), torch.ones(1, 2)
    with common.Run("toy", Toy(precision="bf16")).autocast():
        before = layer(x)
        layer.weight.data.add_(1)  # as an optimiser does
        assert torch.allclose(layer(x), before + 2, atol=0.05)


def test_what_the_losses_see_is_fp32():
    x, z, y = torch.rand(4, 1, 28, 28), torch.rand(4, 50), torch.eye(10)[:4]
    with torch.autocast("cpu", torch.bfloat16):
        answers = [
            *mathieu.Encoder()(x),
            mathieu.Decoder(z_dim=50, s_dim=50)(z, z),
            mathieu.Discriminator()(x, y),
            mathieu.CodeDiscriminator(50).loss(z, y, y.roll(1, 0)),
            *aae.Encoder(classes=10, gaussian=True)(x),
            aae.Decoder(50)(None, z),
            aae.Discriminator(50)(z),
            bigan.Encoder()(x),
            bigan.GaussianEncoder()(x, sample=False),
            bigan.Generator()(z),
            bigan.Discriminator(skip=True)(x, z),
        ]
    assert {answer.dtype for answer in answers} == {torch.float32}


@pytest.mark.parametrize("seed", [3, 7])
def test_the_seed_is_the_runs(seed):
    common.Run("toy", Toy(seed=seed))
    assert torch.initial_seed() == seed


@pytest.mark.parametrize("script", [mathieu, aae, bigan, infogan])
def test_each_epoch_has_an_order_of_its_own(script, monkeypatch):
    orders = []

    def batches(run, order, size):
        orders.append(order)
        return ()

    monkeypatch.setattr(common.Run, "batches", batches)
    monkeypatch.setattr(
        common.Run, "_close_epoch", lambda run, _: setattr(run, "epoch", run.epoch + 1)
    )
    o = dataclasses.replace(script.recipe(), epochs=3, device="cpu")
    data = common.Split(torch.zeros(60, 1, 28, 28, dtype=torch.uint8), torch.arange(60) % 10)
    more = (torch.arange(0),) if script is aae else ()
    script.train(common.Run(script.__name__, o), script.build(o), data, *more)
    assert len(orders) == 3
    for order, other in zip(orders, orders[1:] + orders[:1]):
        assert torch.equal(order.unique(), torch.arange(60)) and not torch.equal(order, other)


def test_an_absent_device_is_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert machine.choose_device("auto") == machine.choose_device("cpu") == torch.device("cpu")
    for name in ("cuda", "mps"):
        with pytest.raises(common.UserError, match=f"no {name} device"):
            machine.choose_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert (
        machine.choose_device("auto").type == "cuda" and machine.choose_device("cpu").type == "cpu"
    )


def test_imports_do_nothing_and_set_what_torch_reads(tmp_path):
    modules = "common, mathieu, aae, bigan, infogan, experiments.mathieu_scores"
    modules += ", experiments.mathieu_pretrained_s, experiments.score, data.sprites"
    modules += ", experiments.aae_scores, experiments.aae_figures, experiments.aae_compared"
    modules += ", experiments.bigan_baselines, experiments.bigan_product, experiments.gaussians"
    modules += ", experiments.bigan_released"
    code = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
import {modules}
assert os.environ["PYTORCH_ENABLE_MPS_FALLBACK"] == "1"
assert "matplotlib.pyplot" not in sys.modules  # no window, no notebook's backend
for name in [*sys.modules]:  # once more, with a backend that is there and must stay
    if name.split(".")[0] in ("common", "matplotlib"):
        del sys.modules[name]
os.environ["MPLBACKEND"] = "svg"
import common, matplotlib
assert matplotlib.get_backend() == os.environ["MPLBACKEND"] == "svg"
"""
    backend = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, **backend},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())
    for name in ("mathieu.py", "experiments/mathieu_pretrained_s.py"):
        text = (ROOT / name).read_text("utf-8")
        assert 0 < text.index("\nimport common") < text.index("\nimport torch"), name


# ---- Figures -------------------------------------------------------------------------------------


def test_tile_puts_images_where_they_belong():
    images = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 1, 2, 3) / 10
    picture = common.tile(images, columns=3)
    truth = torch.ones(2 * 2 + 1, 3 * 3 + 2)  # a gap of one pixel, white
    for n, (y, x) in enumerate(((0, 0), (0, 4), (0, 8), (3, 0), (3, 4))):
        truth[y : y + 2, x : x + 3] = n / 10
    assert torch.allclose(picture, truth[:, :, None].expand(-1, -1, 3))


def test_tile_sets_images_apart_on_the_left_and_above():
    images = torch.zeros(4, 1, 2, 2)
    left, top = torch.full((2, 1, 2, 2), 0.3), torch.full((2, 1, 2, 2), 0.6)
    left[1], top[1] = 0.4, 0.7
    picture = common.tile(images, 2, left=left, top=top)
    truth = torch.ones(7 + 5, 7 + 5)
    truth[7:9, 0:2], truth[10:12, 0:2] = 0.3, 0.4  # before each row
    truth[0:2, 7:9], truth[0:2, 10:12] = 0.6, 0.7  # above each column
    for y in (7, 10):
        for x in (7, 10):
            truth[y : y + 2, x : x + 2] = 0
    assert torch.allclose(picture, truth[:, :, None].expand(-1, -1, 3))
    assert torch.allclose(common.tile(images, 2, left=left), picture[7:])
    assert torch.allclose(common.tile(images, 2, top=top), picture[:, 7:])


def test_tile_keeps_colours_and_reads_bytes():
    image = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    assert common.tile(image, 1)[0, 0].tolist() == pytest.approx([0, 0.2, 1])
    assert common.tile(torch.tensor([-1.0, 0.5, 2]).view(1, 3, 1, 1), 1)[0, 0].tolist() == (
        [0, 0.5, 1]
    )


@pytest.fixture
def drawn(monkeypatch):
    """The matplotlib figures that were saved, which stay readable."""
    import matplotlib.figure

    kept, save = [], matplotlib.figure.Figure.savefig

    def keep(figure, *words, **options):
        kept.append(figure)
        save(figure, *words, **options)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", keep)
    monkeypatch.setitem(matplotlib.rcParams, "savefig.format", "pdf")  # as some have it: still PNG
    return kept


def test_a_grid_shows_its_tiles_and_words(drawn):
    images, left = torch.rand(6, 3, 4, 4), torch.rand(2, 3, 4, 4)
    common.figure_grid("x.png", images, 3, "title", "across", "down", left=left)
    (axes,) = drawn[0].axes
    assert np.allclose(axes.images[0].get_array(), common.tile(images, 3, left=left))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("across", "down")
    assert drawn[0].get_suptitle() == "title" and Path("x.png").read_bytes()[1:4] == b"PNG"


def test_losses_have_a_panel_each(drawn):
    history = [{"epoch": n + 1, "a": 1.0 * n, "b": 2.0 * n, "c": 3.0 * n} for n in range(4)]
    run_folder.figure_losses("x.png", history)
    panels = {axes.get_title(): axes.lines[0].get_xydata() for axes in drawn[0].axes if axes.lines}
    assert list(panels) == ["a", "b", "c"]
    for k, name in enumerate("abc"):
        assert panels[name].tolist() == [[n + 1, (k + 1) * n] for n in range(4)]


def test_settled_batch_norm_has_the_statistics_of_all_batches():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.Dropout(0.5))
    net(torch.randn(50, 3) + 7)  # what training left
    x = 2 * torch.randn(40, 3)
    batch_norm.settle(net, [(part,) for part in x.split(20)])
    norm = net[0]
    assert torch.allclose(norm.running_mean, x.mean(0), atol=1e-6)
    assert torch.allclose(norm.running_var, (x[:20].var(0) + x[20:].var(0)) / 2)
    assert norm.momentum == 0.1 and not norm.training and not net[1].training


def test_batch_norm_is_settled_on_parts_of_the_first_20000_images():
    x = torch.arange(20_501)[:, None]
    parts = batch_norm.image_parts(x)
    assert torch.equal(torch.cat(parts), x[:20_000].float()) and len(parts) == 40
    assert [len(part) for part in batch_norm.image_parts(x[:501])] == [251, 250]  # none alone


@pytest.mark.parametrize("words", [(), ("run", "cpu", "more")])
def test_scoring_again_asks_for_a_run(words):
    with pytest.raises(common.UserError, match="name a run folder"):
        score.main(*words)


def test_a_run_of_a_script_that_is_gone_is_not_scored():
    Path("run").mkdir()
    Path("run/config.json").write_text(json.dumps({"script": "gone", "settings": {}}))
    with pytest.raises(common.UserError, match="a run of gone, is of another version"):
        score.main("run")
