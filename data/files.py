"""Reads a data set: (images uint8 [N, C, H, W], labels int64 [N]), of sprites two arrays more.

name: of the data set; part: "train" or "test"; root: the folder of its files.
"""

import contextlib
import sys

from common import UserError

import numpy as np
import torch

KINDS = {"fashion": "FashionMNIST", "kmnist": "KMNIST", "svhn": "SVHN", "cifar10": "CIFAR10"}


def read(name, part, root):
    """One part of a data set. The sprites are drawn; they have a part "validation", too."""
    if name == "sprites":
        from data.sprites import sprites

        return sprites(part)
    return mnist(part, root) if name == "mnist" else by_torchvision(name, part, root)


def mnist(part, root):
    """mnist.npz in `root`, with the keys of Keras; `UserError` where it is missing or damaged."""
    path = root / "mnist.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            x, y = file[f"x_{part}"], file[f"y_{part}"]
    except FileNotFoundError:
        raise UserError(f"no mnist.npz in '{root}': leave --data out to use the embedded copy")
    except KeyError as error:
        raise UserError(
            f"'{path}' lacks the array {str(error).split()[0].strip(chr(34) + chr(39))}"
        )
    except Exception as error:  # zipfile, zlib and numpy each raise their own kinds
        raise UserError(f"'{path}' cannot be read ({type(error).__name__}): git checkout data")
    if x.dtype != np.uint8 or x.shape[1:] != (28, 28):
        raise UserError(f"'{path}': x_{part} must be uint8 [N, 28, 28], not {x.dtype} {x.shape}")
    if (
        y.shape != x.shape[:1]
        or not np.issubdtype(y.dtype, np.integer)
        or not set(y) <= set(range(10))
    ):
        raise UserError(f"'{path}': y_{part} must hold a label from 0 to 9 for each image")
    return torch.from_numpy(x)[:, None], torch.from_numpy(y.astype(np.int64))


def by_torchvision(name, part, root):
    """What torchvision finds in `root` or downloads; `UserError` where it can do neither."""
    import torchvision.datasets

    kind = KINDS[name]
    words = {"split": part} if name == "svhn" else {"train": part == "train"}
    try:
        try:
            data = getattr(torchvision.datasets, kind)(root, download=False, **words)
        except RuntimeError:  # not there yet
            with contextlib.redirect_stdout(sys.stderr):
                data = getattr(torchvision.datasets, kind)(root, download=True, **words)
    except Exception as error:  # URLError, RuntimeError, OSError, ...
        folder = {"svhn": root, "cifar10": root / "cifar-10-batches-py"}.get(
            name, root / kind / "raw"
        )
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{kind} could not be loaded or downloaded ({reason}): put its files into '{folder}'"
        )
    x = torch.as_tensor(np.asarray(data.data))
    y = torch.as_tensor(np.asarray(data.labels if name == "svhn" else data.targets)).long()
    if x.dim() == 3:  # grey
        x = x[:, None]
    if name == "cifar10":
        x = x.permute(0, 3, 1, 2).contiguous()
    return x, y
