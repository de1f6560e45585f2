"""Reads data sets: MNIST as embedded, torchvision's, the sprites, and images of your own.

Your own images stand in a folder `root` (--dataset grey or colour, --data root) as one of
    root/train/CLASS/*.png, root/test/CLASS/*.png    each class a folder; any format that PIL reads
    root/CLASS/*.png                                 the same; a random sixth is the test set
    root/NAME.npz                                    x_train, y_train, x_test, y_test, as in Keras
Images in folders are resized to 28 x 28 pixels (grey) or 32 x 32 (colour); in an .npz they have
that size. Sixteen bits a pixel become eight. What is transparent becomes white.
"""

import collections
import contextlib
import sys
import zlib
from pathlib import Path

from common import GREY, UserError, say

import numpy as np
import torch
from PIL import Image, ImageOps

KINDS = {"fashion": "FashionMNIST", "kmnist": "KMNIST", "svhn": "SVHN", "cifar10": "CIFAR10"}
SHAPES = {name: (1, 28, 28) for name in GREY}
SHAPES.update({name: (3, 32, 32) for name in ("svhn", "cifar10", "colour")})
MNIST = 4083391318, 2268429886  # checksums of MNIST's training images and labels
LEAST = 100, 20  # the fewest training and test images with which all scores and figures work


def read(name, root, validation=False):
    """A data set's training and test part: (images uint8 [N, C, H, W], labels int64 [N]) each.
    Sprites have two arrays more.

    root: the folder of the files. validation: instead of the test set the last 10,000 training
    images, at most a sixth; of the sprites 72 characters. Files other than
    MNIST's are shuffled, always in the same way: so their first images are a sample, and the last
    ones, too. `UserError` for what is missing, damaged, or too little.
    """
    if name not in (*SHAPES, "sprites"):
        raise UserError(f"unknown data set '{name}': choose one of {', '.join(SHAPES)}, sprites")
    if name == "sprites":
        from data.sprites import sprites

        return sprites("train"), sprites("validation" if validation else "test")
    reader = {"mnist": mnist, "grey": own, "colour": own}.get(name, by_torchvision)
    try:
        parts = reader(name, root)
    except OSError as error:  # a folder that may not be looked into, a name that is too long
        raise UserError(f"'{root}' cannot be read ({error.strerror or error})")
    for (x, y), part in zip(parts, ("training", "test")):
        check(x, y, SHAPES[name], f"'{root}', {part} set")
    train, test = parts
    if not is_mnist(*train):
        train, test = shuffled(*train), shuffled(*test)
    if validation:
        held_out = min(10_000, len(train[1]) // 6)
        cut = len(train[1]) - held_out
        test = [array[cut:] for array in train]
        train = [array[:cut] for array in train]
    for (_, y), part, least in zip((train, test), ("training", "test"), LEAST):
        if len(y) < least:
            raise UserError(f"'{root}' has {len(y)} {part} images: at least {least} are needed")
    unknown = set(test[1].tolist()) - set(train[1].tolist())
    if unknown:
        raise UserError(f"'{root}': no training image has the class {min(unknown)} of a test image")
    if len(train[1].unique()) < 2:
        raise UserError(f"'{root}': all training images are of one class; at least two are needed")
    low, high = train[0].min().item(), train[0].max().item()
    if high <= 1 or low == high:
        raise UserError(f"'{root}': pixels go from {low} to {high}, but bytes from 0 to 255")
    return train, test


def is_mnist(x, y):
    """Whether these are MNIST's training images and labels, whole and in their order."""
    return len(x) == 60_000 and (zlib.crc32(x.contiguous().numpy()), zlib.crc32(y.numpy())) == MNIST


def shuffled(x, y):
    """Images and labels in the order of the images' checksums. It looks random, and
    hardly depends on the order given. New images do not change the order of the old ones."""
    copies, keys = collections.Counter(), []
    for image in x.contiguous().numpy():
        checksum = zlib.crc32(image)
        copies[checksum] += 1  # equal images shall not stay together
        keys.append(zlib.crc32(b"%d" % copies[checksum], checksum))
    order = torch.from_numpy(np.argsort(np.array(keys, np.int64), kind="stable"))
    return x[order], y[order]


def check(x, y, shape, where):
    """`UserError` unless the images have this shape, in bytes, and a label from 0 to 9 each."""
    if x.dtype != torch.uint8 or x.shape[1:] != shape:
        words = f"images must be uint8 [N, {', '.join(map(str, shape))}]"
        kind = str(x.dtype).removeprefix("torch.")
        raise UserError(f"{where}: {words}, not {kind} {list(x.shape)}")
    if y.shape != x.shape[:1]:
        raise UserError(f"{where}: {len(x)} images, but labels of the shape {list(y.shape)}")
    if y.is_floating_point():
        raise UserError(f"{where}: a label is a whole number from 0 to 9, not of {y.dtype}")
    if len(y) and not 0 <= y.min() <= y.max() <= 9:
        raise UserError(
            f"{where}: a label is a whole number from 0 to 9, here {y.min()} to {y.max()}"
        )


def mnist(name, root):
    """mnist.npz in `root`. Other images of its size are read, too; they are not taken for MNIST."""
    if not (root / "mnist.npz").exists():
        raise UserError(f"no mnist.npz in '{root}': leave --data out to use the embedded copy")
    return npz(root / "mnist.npz")


def npz(path):
    """The two parts in a file with the keys of Keras; `UserError` where it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = [file[f"{a}_{part}"] for part in ("train", "test") for a in "xy"]
            native = [array.astype(array.dtype.newbyteorder("="), copy=False) for array in arrays]
            arrays = [torch.from_numpy(array) for array in native]
    except KeyError as error:
        name = str(error).split()[0].strip("\"'")
        raise UserError(f"'{path}' lacks the array {name}")
    except Exception as error:  # zipfile, zlib, numpy and torch each raise their own kinds
        words = " ".join(f"{type(error).__name__} {error}".split())
        raise UserError(f"'{path}' cannot be read ({words})")
    parts = []
    for x, y in (arrays[:2], arrays[2:]):
        y = y.flatten() if y.dim() == 2 and y.shape[1] == 1 else y  # Keras has such of CIFAR-10
        if x.dim() == 3:
            x = x[:, None]
        elif x.dim() == 4 and x.shape[3] in (1, 3):  # channels last
            x = x.permute(0, 3, 1, 2).contiguous()
        parts.append((x, y if y.is_floating_point() else y.long()))
    return parts


def own(name, root):
    """Images of the user, in one of the layouts above."""
    if root.resolve() == Path(__file__).resolve().parent or root.is_file():
        raise UserError(f"--dataset {name} takes your own images: name their folder with --data")
    archives = sorted(path for path in root.glob("*.npz") if path.name[0] != ".")
    if len(archives) > 1:
        raise UserError(f"'{root}' has {len(archives)} .npz files: keep one there")
    if archives:
        parts, where = npz(archives[0]), archives[0]
    else:
        parts, where = folders(name, root), root
    for (x, y), part in zip(parts, ("training", "test")):
        words = f"{len(x)} {part} images of {len(y.unique())} classes, {list(x.shape[1:])}"
        if len(x) and x.dtype == torch.uint8:
            words += f", pixels {x.min()} to {x.max()}"
        say(f"{where}: {words}")
    return parts


def eight_bits(path):
    """The image in a file as RGB, eight bits a channel. What is transparent becomes white. It is
    turned as the camera noted."""
    with Image.open(path) as file:
        file = ImageOps.exif_transpose(file)
        if file.mode.startswith("I"):  # 16 bits; 257 * 255 = 65,535
            array = np.asarray(file)
            if array.min() < 0 or array.max() > 65_535:
                raise ValueError("more than 16 bits a pixel")
            return Image.fromarray((array // 257).astype(np.uint8)).convert("RGB")
        if file.mode == "F":
            raise ValueError("floating-point pixels")
        if "A" not in file.getbands() and "transparency" not in file.info:
            return file.convert("RGB")
        image = file.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def folders(name, root):
    """Images in a folder a class. What begins with a dot is left out."""
    from torchvision.transforms import functional

    channels, *size = SHAPES[name]
    split = (root / "train").is_dir()
    parts, classes = [], None
    for part in ("train", "test") if split else ("",):
        folder, x, y = root / part, [], []
        if not folder.is_dir():
            raise UserError(f"no images in '{folder}' (there is no such folder)")
        found = [place for place in folder.iterdir() if place.is_dir() and shown(place)]
        found.sort(key=lambda place: place.name)
        names = [place.name for place in found]
        if classes not in (None, names):
            raise UserError(f"'{root}': train and test must have the same folders of classes")
        classes = names
        if len(classes) > 10:
            raise UserError(f"'{folder}' has {len(classes)} classes: ten at most")
        for label, place in enumerate(found):
            files = [path for path in place.iterdir() if shown(path) and is_image(path)]
            deeper = [p for p in place.glob("*/*") if shown(p.parent) and shown(p) and is_image(p)]
            if not files:
                words = "has its images in folders below" if deeper else "has no images"
                raise UserError(f"'{place}' {words}: the layout is {folder}/CLASS/*.png")
            if deeper:
                say(f"{place}: {len(deeper)} images in folders below are left out")
            others = [p for p in place.iterdir() if p.is_file() and shown(p) and not is_image(p)]
            if others:
                say(f"{place}: {len(others)} files of another kind are left out: {others[0].name}")
            for path in sorted(files, key=lambda path: path.name):
                try:
                    image = eight_bits(path)
                except Exception as error:  # PIL raises many kinds for damaged files
                    raise UserError(f"'{path}' cannot be read ({error})")
                image = functional.to_grayscale(image) if channels == 1 else image
                image = functional.resize(image, size, antialias=True)
                x.append(functional.pil_to_tensor(image))
                y.append(label)
        if not x:
            raise UserError(f"no images in '{folder}': the layout is {folder}/CLASS/*.png")
        parts.append((torch.stack(x), torch.tensor(y)))
    if not split:
        x, y = shuffled(*parts[0])
        held_out = len(y) // 6
        parts = [(x[held_out:], y[held_out:]), (x[:held_out], y[:held_out])]
    return parts


def shown(path):
    return not path.name.startswith((".", "__MACOSX"))


def is_image(path):
    """By the end of its name: PIL opens such files, and they are images."""
    kind = Image.registered_extensions().get(path.suffix.lower())
    return kind in Image.OPEN and Image.MIME.get(kind, "").startswith("image/")


def by_torchvision(name, root):
    """What torchvision finds in `root` or downloads; `UserError` where it can do neither."""
    import torchvision.datasets

    kind, parts = KINDS[name], []
    for part in ("train", "test"):
        words = {"split": part} if name == "svhn" else {"train": part == "train"}
        try:
            with contextlib.redirect_stdout(sys.stderr):  # it downloads only what is not there
                data = getattr(torchvision.datasets, kind)(root, download=True, **words)
        except Exception as error:  # URLError, RuntimeError, OSError, ...
            places = {"svhn": root, "cifar10": root / "cifar-10-batches-py"}
            folder = places.get(name, root / kind / "raw")
            reason = (str(error) or type(error).__name__).splitlines()[0]
            words = f"{kind} could not be loaded or downloaded ({reason})"
            raise UserError(f"{words}: put its files into '{folder}'")
        x = torch.as_tensor(np.asarray(data.data))
        y = torch.as_tensor(np.asarray(data.labels if name == "svhn" else data.targets)).long()
        if x.dim() == 3:  # grey
            x = x[:, None]
        if name == "cifar10":
            x = x.permute(0, 3, 1, 2).contiguous()
        parts.append((x, y))
    return parts
