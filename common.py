"""What the four scripts share: data and pairing, the run folder, scores and figures. The only training here is that of scores: judge and probes.

    python common.py --train-judge      # makes data/judge-mnist.pt, the digit judge that the scores use (one minute)

Images are held whole in memory as uint8 tensors [N, C, H, W]; a batch is an index, and `to_float` maps it to [0, 1].
A mistake by the user raises `UserError`, which `run_main` turns into one line on stderr and exit status 2.
"""
import argparse
import contextlib
import copy
import csv
import hashlib
import importlib.util
import io
import json
import math
import os
import platform
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple, Optional

import numpy as np
from tqdm import tqdm

os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")                    # an operation that Apple's GPUs lack runs on the CPU; read at import
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

HERE = Path(__file__).resolve().parent


class UserError(Exception):
    """A mistake that the user can mend; its text is the one line that is shown."""


# ------------------------------------------------------------------------------------------------------------ data


class Split(NamedTuple):
    """Part of a data set. x: images uint8 [N, C, H, W]; y: class of each image, int64 [N].

    Sprites have more: attributes int64 [N, 7] and pose float32 [N, 6] in [-1, 1]; `None` elsewhere."""
    x: torch.Tensor
    y: torch.Tensor
    attributes: Optional[torch.Tensor] = None
    pose: Optional[torch.Tensor] = None

    def to(self, device):
        return Split(*(None if t is None else t.to(device) for t in self))

    def take(self, index):
        return Split(*(None if t is None else t[index] for t in self))


TORCHVISION = {"fashion": ("FashionMNIST", {}), "kmnist": ("KMNIST", {}), "svhn": ("SVHN", {}), "cifar10": ("CIFAR10", {})}
DATASETS = ("mnist", "sprites", *TORCHVISION)


def load_dataset(name, root=None, validation=False):
    """Training and test `Split` of a data set.

    name: one of `DATASETS`. `mnist` is embedded and `sprites` is drawn, so neither needs a network; the others come through
    torchvision, downloaded into `root` or found there. root: folder of the data files, the repository's data/ by default.
    validation: hold out part of the training set and return it in the place of the test set (the last 10,000 images,
    at most a sixth; on sprites the 72 validation identities): for tuning, so that the test set is seen once.
    """
    root = Path(root) if root is not None else HERE / "data"
    if name == "mnist":
        train, test = _load_mnist(root)
    elif name == "sprites":
        return sprites("train"), sprites("validation" if validation else "test")
    elif name in TORCHVISION:
        train, test = (_load_torchvision(name, root, part) for part in (True, False))
    else:
        raise UserError(f"unknown data set '{name}': choose one of {', '.join(DATASETS)}")
    if validation:
        held_out = min(10_000, len(train.y) // 6)
        index = torch.arange(len(train.y))
        train, test = train.take(index[:-held_out]), train.take(index[-held_out:])
    return train, test


def exists(path, flag):
    """Whether there is such a file; `UserError` where one cannot look (a folder closed to us, a name too long)."""
    try:
        return path.exists()
    except OSError as error:
        raise UserError(f"cannot look at '{path}' ({error.strerror}): choose another {flag}")


def _load_mnist(root):
    path = root / "mnist.npz"
    if not exists(path, "--data"):
        raise UserError(f"no mnist.npz in '{root}': leave --data out to use the embedded copy")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in ("x_train", "y_train", "x_test", "y_test")}
    except KeyError as error:
        raise UserError(f"'{path}' lacks the array {error.args[0].split()[0]}: it needs x_train, y_train, x_test and y_test")
    except Exception as error:                            # of many kinds: zipfile's, zlib's, numpy's
        raise UserError(f"'{path}' cannot be read ({str(error) or type(error).__name__}): it is damaged or not an .npz file; "
                        "restore it with git checkout data/mnist.npz")
    splits = []
    for part in ("train", "test"):
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if x.dtype != np.uint8 or x.ndim != 3 or x.shape[1:] != (28, 28):
            raise UserError(f"'{path}': x_{part} must be uint8 [N, 28, 28], found {x.dtype} {list(x.shape)}")
        if y.shape != x.shape[:1] or not np.issubdtype(y.dtype, np.integer) or not len(y) or y.min() < 0 or y.max() > 9:
            raise UserError(f"'{path}': y_{part} must hold one label from 0 to 9 for each of the {len(x)} images")
        splits.append(Split(torch.from_numpy(x)[:, None], torch.from_numpy(y.astype(np.int64))))
    return splits


def _load_torchvision(name, root, train):
    import torchvision.datasets
    if name == "svhn" and importlib.util.find_spec("scipy") is None:
        raise UserError("--dataset svhn needs scipy to read its files: pip install scipy")
    class_name, extra = TORCHVISION[name]
    part = {"split": "train" if train else "test"} if name == "svhn" else {"train": train}
    build = getattr(torchvision.datasets, class_name)
    try:
        try:
            data = build(root, download=False, **part, **extra)
        except RuntimeError:                              # not there yet
            with contextlib.redirect_stdout(sys.stderr):
                data = build(root, download=True, **part, **extra)
    except Exception as error:                            # torchvision raises many kinds: URLError, RuntimeError, OSError, ...
        folder = root if name == "svhn" else root / ("cifar-10-batches-py" if name == "cifar10" else class_name + "/raw")
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{class_name} could not be loaded or downloaded ({reason}): put torchvision's files into '{folder}' "
                        "(damaged ones must be deleted), or use mnist, which needs no network")
    x = torch.as_tensor(np.asarray(data.data))
    y = torch.as_tensor(np.asarray(data.labels if name == "svhn" else data.targets)).long()
    x = x[:, None] if x.dim() == 3 else x if name == "svhn" else x.permute(0, 3, 1, 2)
    return Split(x.contiguous(), y)


def to_float(x):
    """uint8 [0, 255] to float32 [0, 1]."""
    return x.float() / 255


# --------------------------------------------------------------------------------------------------------- sprites

ATTRIBUTES = ("body", "gender", "hair", "armor", "arm", "greaves", "weapon")
ATTRIBUTE_SIZES = (7, 2, 4, 3, 2, 2, 3)                   # 2,016 possible identities, of which 672 are used
POSE = ("facing", "left arm", "right arm", "stride", "x", "y")
IDENTITIES = {"train": 500, "validation": 72, "test": 100}  # the split of Reed et al. 2015

_SKIN = ((.99, .87, .77), (.93, .73, .56), (.71, .49, .33), (.42, .27, .19), (.52, .73, .38), (.55, .62, .85), (.84, .45, .42))
_HAIR = ((.35, .20, .10), (.97, .85, .30), (.85, .15, .15), (.10, .10, .12))
_ARMOR = ((.55, .36, .18), (.66, .69, .74), (.48, .20, .58))
_ARM = (None, (.90, .70, .15))                            # bare, gauntlets
_GREAVES = ((.30, .25, .22), (.25, .45, .75))
_BACKGROUND = (.93, .94, .92)


def sprites(part, images_per_identity=40, seed=0):
    """Characters of 32 x 32 RGB pixels with known factors, a pure function of the arguments.

    An identity is a tuple of the paper's seven attributes (`ATTRIBUTES`); the identities of the three parts ("train",
    "validation", "test") are disjoint. A pose is six numbers, uniform in [-1, 1] (`POSE`), independent of the identity. The class
    y of an image is the number of its identity within the part.
    """
    rng = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(math.prod(ATTRIBUTE_SIZES), generator=rng)[:sum(IDENTITIES.values())]
    start = {"train": 0, "validation": 500, "test": 572}[part]
    chosen = chosen[start:start + IDENTITIES[part]]
    columns = []
    for size in reversed(ATTRIBUTE_SIZES):                # the number of an identity, written in mixed radix
        columns.insert(0, chosen % size)
        chosen = chosen // size
    y = torch.arange(IDENTITIES[part]).repeat_interleave(images_per_identity)
    attributes = torch.stack(columns, 1)[y]
    rng.manual_seed(1_000_003 * (seed + 1) + start)
    pose = torch.rand(len(y), len(POSE), generator=rng) * 2 - 1
    return Split(draw_sprites(attributes, pose), y, attributes, pose)


def draw_sprites(attributes, pose):
    """Images uint8 [N, 3, 32, 32] of characters with attributes int64 [N, 7] in pose float [N, 6]."""
    if len(pose) > 100:                                   # so many stay in a processor's cache: four times as fast as thousands
        return torch.cat([draw_sprites(*part) for part in zip(attributes.split(100), pose.split(100))])
    body, gender, hair, armor, arm, greaves, weapon = (a[:, None, None] for a in attributes.unbind(1))
    facing, left, right, stride, dx, dy = (p[:, None, None] for p in pose.unbind(1))
    py, px = torch.meshgrid(torch.arange(32.) + .5, torch.arange(32.) + .5, indexing="ij")
    px, py = px - (16 + 2.5 * dx), py - (16 + 1.5 * dy)   # pixel coordinates relative to the character's centre
    image = torch.tensor(_BACKGROUND)[:, None, None].expand(len(pose), 3, 32, 32).clone()

    def paint(distance, colour, where=True):              # signed distance in pixels: inside negative, one pixel of edge
        alpha = (.5 - distance).clamp(0, 1) * where
        if not torch.is_tensor(colour):
            colour = torch.tensor(colour)[:, None, None]
        image.add_(alpha[:, None] * (colour - image))

    def pick(table, index):
        return torch.tensor(table)[index[:, 0, 0]][:, :, None, None]

    def circle(cx, cy, r):
        return ((px - cx) ** 2 + (py - cy) ** 2).sqrt() - r

    def box(cx, cy, w, h):
        return torch.maximum((px - cx).abs() - w, (py - cy).abs() - h)

    def limb(ax, ay, bx, by, r):                          # distance to a segment, less its half-width
        ex, ey = bx - ax, by - ay
        t = (((px - ax) * ex + (py - ay) * ey) / (ex * ex + ey * ey)).clamp(0, 1)
        return ((px - ax - t * ex) ** 2 + (py - ay - t * ey) ** 2).sqrt() - r

    skin, female = pick(_SKIN, body), gender == 1
    shoulder = torch.where(female, 3.3, 4.6)
    for side in (-1, 1):                                  # legs, swinging against each other
        foot = 2 * side + 3.0 * stride * side
        paint(limb(2. * side, 4., foot, 12.5, 1.5), skin)
        paint(limb(2 * side + .4 * (foot - 2 * side), 7.5, foot, 12.5, 1.7), pick(_GREAVES, greaves))
    paint(limb(0., -11., 0., -2.5, 4.6), pick(_HAIR, hair), hair == 1)                       # long hair falls behind the body
    paint(box(0., .5, shoulder, 5.), pick(_ARMOR, armor))
    paint(box(0., -1., shoulder, .8), (.35, .38, .45), armor == 1)                           # a steel plate's seam
    paint(box(0., .5, .8, 5.), (.95, .85, .45), armor == 2)                                  # a robe's trim
    paint(torch.maximum((px.abs() - .55 * (py - 1)).clamp(min=-9) - 2.2, (py - 5.5).abs() - 2.6), pick(_ARMOR, armor) * .8, female)
    hands = []
    for side, angle in ((-1, left), (1, right)):
        turn = .2 + 1.3 * (angle + 1) / 2 * 1.4           # radians from hanging down to above the shoulder
        hx, hy = side * (shoulder + .4 + 6 * turn.sin()), -3 + 6 * turn.cos()
        sx = side * (shoulder + .4)
        hands.append((hx, hy, side * turn.sin(), turn.cos()))
        paint(limb(sx, -3., hx, hy, 1.3), skin)
        paint(limb(sx + .45 * (hx - sx), -3 + .45 * (hy + 3), hx, hy, 1.6), _ARM[1], arm == 1)
    hx, hy, ux, uy = hands[1]                             # weapons stand across the right hand's arm
    ux, uy = uy, -ux
    paint(limb(hx - ux, hy - uy, hx + 7 * ux, hy + 7 * uy, .8), (.45, .50, .60), weapon == 0)         # sword
    paint(limb(hx - 2 * ux, hy - 2 * uy, hx + 4 * ux, hy + 4 * uy, .6), (.40, .25, .10), weapon == 1)  # axe
    paint(circle(hx + 4 * ux, hy + 4 * uy, 2.1), (.75, .20, .20), weapon == 1)
    paint(limb(hx - 6 * ux, hy - 6 * uy, hx + 5 * ux, hy + 5 * uy, .6), (.20, .45, .20), weapon == 2)  # staff
    paint(circle(hx + 5 * ux, hy + 5 * uy, 1.5), (.20, .85, .75), weapon == 2)
    paint(circle(0., -8.5, 4.3), skin)
    paint(torch.maximum(circle(0., -8.8, 4.7), py + 9.5), pick(_HAIR, hair), hair != 2)
    paint(box(0., -11.8, .9, 2.6), pick(_HAIR, hair), hair == 2)                             # mohawk
    paint(circle(-3.6 * facing, -13.2, 1.9), pick(_HAIR, hair), hair == 3)                   # bun
    for side in (-1.5, 1.5):
        paint(circle(side + 2.2 * facing, -8., .7), (.05, .05, .10))
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)


# --------------------------------------------------------------------------------------------------------- pairing


def pair_same_class(y):
    """A fresh random pairing within classes: int64 [P, 2], two different images of one class in each row.

    Every image stands in at least one pair; in a class of odd size one image stands in two. y: labels int64 [N], classes of
    any size; `UserError` names a class with a single image. Draws from torch's global generator.
    """
    y = y.cpu()
    counts = torch.bincount(y)
    if (counts == 1).any():
        raise UserError(f"class {int((counts == 1).nonzero()[0])} has a single image: pairs need at least two of each class")
    shuffled = torch.randperm(len(y))
    order = shuffled[torch.argsort(y[shuffled], stable=True)]                # grouped by class, shuffled within
    size = counts[y[order]]
    start = (counts.cumsum(0) - counts)[y[order]]
    rank = torch.arange(len(y)) - start                                      # position within its class
    pairs = torch.stack([order, order[start + (rank + 1) % size]], 1)[rank % 2 == 0]
    return pairs[torch.randperm(len(pairs))]


# ------------------------------------------------------------------------------------------------------------ runs


def _number(kind, low, high, words):
    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:                      # NaN fails this too
            raise argparse.ArgumentTypeError(f"'{text}' is not {words}")
        return value
    return parse


count = _number(int, 1, 10 ** 9, "a whole number of at least 1")
even = lambda text: _even(count(text), text)              # noqa: E731
whole = _number(int, 0, 10 ** 9, "a whole number of at least 0")
weight = _number(float, 0, 1e9, "a number of at least 0")
positive = _number(float, 1e-12, 1e9, "a number above 0")
fraction = _number(float, 0, 1, "a number from 0 to 1")
share = _number(float, 1e-6, 1, "a number above 0, at most 1")
below_one = _number(float, 0, 0.9999, "a number from 0 to below 1")


def _even(value, text):
    if value % 2 or value < 8:
        raise argparse.ArgumentTypeError(f"'{text}' is not an even number of at least 8: images are trained in pairs")
    return value


class Parser(argparse.ArgumentParser):
    """The flags all scripts share; a wrong flag ends with one line and exit status 2."""

    def __init__(self, description, dataset="mnist", epochs=50, batch_size=256, batch_type=count):
        super().__init__(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False)
        add = self.add_argument
        add("--dataset", default=dataset, help=f"one of {', '.join(DATASETS)}; mnist and sprites need no network")
        add("--epochs", type=count, default=epochs, help="passes over the training images")
        add("--batch-size", type=batch_type, default=batch_size, help="images in a step")
        add("--seed", type=_number(int, 0, 2 ** 31, "a whole number of at least 0"), default=0,
            help="seeds weights, batches and noise; on one CPU, with the same threads, precision and versions, the same seed gives the same run bit for bit")
        add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="auto takes the GPU where there is one")
        add("--precision", choices=("auto", "fp32", "bf16"), default="auto",
            help="of convolutions and matrix products; auto is bf16 on CPUs that multiply it (AVX512-BF16 or AMX), else fp32; on other CPUs bf16 is emulated, "
                 "many times slower, and on a GPU these small networks wait for launches, of which bf16 has more; fp32 is as torch has it, on CUDA with convolutions "
                 "in TF32")
        add("--data", default=None, metavar="DIR", help="folder of the data files; None is the repository's data/")
        add("--out", default=None, metavar="DIR", help="run folder; None is runs/SCRIPT/NAME-seedN, with a number where taken")
        add("--resume", action="store_true", help="go on with the run in --out, or with the latest run of these settings")
        add("--dry-run", action="store_true", help="every line of the script, on a few images, in seconds; the numbers mean nothing")
        add("--validation", action="store_true", help="score on a part of the training set that is held out: for tuning")

    def error(self, message):
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


FREE_ON_RESUME = ("resume", "out", "device")              # settings that do not change what is computed


def choose_device(name):
    """torch.device for `--device`; `UserError` where it is absent."""
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if present[kind])
    if not present.get(name):
        raise UserError(f"no {name} device on this machine: leave --device out, or say --device cpu")
    return torch.device(name)


def choose_precision(name, device):
    """'fp32' or 'bf16' for `--precision`: auto is bf16 on a CPU that multiplies it; on a GPU all six steps of tests/benchmark.py are faster in fp32."""
    if name != "auto":
        return name
    if device.type != "cpu":
        return "fp32"
    if hasattr(torch.cpu, "get_capabilities"):
        features = torch.cpu.get_capabilities()
        return "bf16" if features.get("avx512_bf16") or features.get("amx_tile") else "fp32"
    older = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")          # torch without get_capabilities
    return "bf16" if any(getattr(torch.cpu, name, bool)() for name in older) else "fp32"


def write_atomic(path, content):
    """Write bytes or text so that a kill at any moment leaves the old file or the new one, never a part."""
    path = Path(path)
    temporary = path.with_name(path.name + ".part")
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:                                       # a full disk: what fitted must not keep it full
        temporary.unlink(missing_ok=True)
        raise


def read_config(folder):
    """config.json of a run folder; `UserError` where it is missing or damaged."""
    try:
        config = json.loads((Path(folder) / "config.json").read_text())
        if not isinstance(config["script"], str) or not isinstance(config["settings"], dict):
            raise ValueError
        return config
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"'{folder}' is no run folder: it has no config.json")
    except OSError as error:
        raise UserError(f"cannot read '{folder}/config.json' ({error.strerror}): choose another --out")
    except (ValueError, KeyError, TypeError):
        raise UserError(f"'{folder}/config.json' is damaged: choose another --out")


def read_checkpoint(folder, script, device="cpu", finished=False):
    """The checkpoint of a run folder as a dict; `UserError` where it is missing, damaged or another script's.

    finished: also where the run is not, for networks that are averaged, or whose batch norm is settled, after the last epoch."""
    path = Path(folder) / "checkpoint.pt"
    if not path.exists():
        raise UserError(f"no checkpoint in '{folder}': nothing was saved there yet; start without --resume in a new folder")
    choose_device(torch.device(device).type)              # absent is not damaged
    try:
        path.open("rb").close()
    except OSError as error:
        raise UserError(f"cannot read '{path}' ({error.strerror})")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        owner = state["script"]
        if not {"states", "epoch", "history"} <= set(state):
            raise KeyError("states")
    except Exception as error:                            # a damaged file fails in many ways inside zip and pickle
        raise UserError(f"'{path}' is damaged ({type(error).__name__}): start again in a new folder")
    if owner != script:
        raise UserError(f"'{path}' was written by {owner}.py, not by {script}.py")
    if finished and not (Path(folder) / "metrics.json").exists():
        raise UserError(f"the run in '{folder}' is not finished (no metrics.json): its networks are settled at the end; go on with it by --resume")
    return state


@contextlib.contextmanager
def same_version(run_dir):
    """Turns what goes wrong when networks are built by another version's settings, or filled with its weights, into a `UserError`."""
    try:
        yield
    except (AttributeError, KeyError, RuntimeError) as error:
        raise UserError(f"the run in '{run_dir}' is of another version of its script ({str(error).splitlines()[0]}): its config.json names the commit")


def settings_of(options, precision):
    """What makes a run this run, for its config.json: all options but those of FREE_ON_RESUME."""
    return {**{key: value for key, value in vars(options).items() if key not in FREE_ON_RESUME}, "precision": precision}


def find_run(script, options, name):
    """The folder in runs/SCRIPT of a run with these settings, a finished one if there is any, or None."""
    settings = settings_of(options, choose_precision(options.precision, choose_device(options.device)))
    found = []
    for folder in sorted((Path("runs") / script).glob(f"{name}-seed{options.seed}*" if not options.dry_run else "dry-run*")):
        with contextlib.suppress(UserError):              # a damaged neighbour is no reason to stop
            if read_config(folder)["settings"] == settings:
                found.append(folder)
    return next((folder for folder in found if (folder / "metrics.json").exists()), found[0] if found else None)


def commit():
    """Short hash of the repository's commit, '+' behind it when code or data were changed since, or 'unknown' outside git."""
    call = lambda *words: subprocess.run(["git", "-C", str(HERE), *words], capture_output=True, text=True)  # noqa: E731
    try:
        head = call("rev-parse", "--short", "HEAD")
        changed = call("status", "--porcelain", "--untracked-files=no", "--", "*.py", "data").stdout.strip()
        return head.stdout.strip() + ("+" if changed else "") if head.returncode == 0 else "unknown"
    except OSError:
        return "unknown"


def code_checksum(script):
    """Of SCRIPT.py and common.py as they are: whether a run that was cut off goes on by the same code."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in (HERE / f"{script}.py", HERE / "common.py") if path.exists())).hexdigest()[:16]


def hardware(device):
    """The processor that trains, in words, with the vector instructions that torch uses on it: 'NAME, AVX2, 2 threads'."""
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    if device.type == "mps":
        return f"{name}, GPU"
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"


class Run:
    """Bookkeeping of one training and nothing else: run folder, seeds, progress, log, checkpoints, exact resume.

        run = Run("mathieu", options)
        run.track(net=net, optimiser=optimiser)           # restored here when the run is resumed
        for epoch in run.epochs():                        # saves after each
            for index in run.batches(order, size):
                ...
                run.log(loss=loss)                        # tensors; read from the device once an epoch
        run.finish(metrics, rows)
    """

    def __init__(self, script, options, name=None):
        """name: of the folder in runs/SCRIPT where --out names none, before -seedN; the data set's by default."""
        self.script, self.options, self.name = script, options, name or options.dataset
        self.device = choose_device(options.device)
        self.precision = choose_precision(options.precision, self.device)
        settings = settings_of(options, self.precision)
        self.folder = self._choose_folder(settings)
        self.tracked, self.history, self.epoch, self.step = {}, [], 0, 0
        self.seconds_before, self.train_seconds, self.images = 0., 0., 0
        self.rows, self.names, self.middle, self.stop = [], None, None, False
        self.started = time.time()
        random.seed(options.seed)
        np.random.seed(options.seed)
        torch.manual_seed(options.seed)
        begun = options.resume and (self.folder / "checkpoint.pt").exists()     # stopped before the first checkpoint: from the start
        self.saved = read_checkpoint(self.folder, script) if begun else None
        if not begun:
            self._create(settings)
        elif read_config(self.folder).get("code") != code_checksum(script):
            print(f"{script}: {script}.py or common.py has changed since this run began: what it learned so far is of the older code", file=sys.stderr)
        print(f"{script}: {settings}\n{script}: {self.device}, {self.precision}, into {self.folder}", file=sys.stderr)

    # -- the folder

    def _choose_folder(self, settings):
        script, options = self.script, self.options
        same = lambda folder: read_config(folder)["settings"] == settings  # noqa: E731
        if options.out is not None:
            folder = Path(options.out)
            if exists(folder, "--out") and not folder.is_dir():
                raise UserError(f"--out '{folder}' is a file, not a folder")
            try:
                used = folder.is_dir() and any(file.suffix != ".part" for file in folder.iterdir())             # .part: killed in its first write
            except OSError as error:
                raise UserError(f"cannot look into '{folder}' ({error.strerror}): choose another --out")
            if used:
                if read_config(folder)["script"] != script:
                    raise UserError(f"--out '{folder}' holds a run of {read_config(folder)['script']}.py")
                if not same(folder):
                    old, absent = read_config(folder)["settings"], object()
                    key = next(k for k in {**old, **settings} if old.get(k, absent) != settings.get(k, absent))
                    raise UserError(f"--out '{folder}' holds a run with other settings ({key} is {old.get(key)} there, "
                                    f"{settings.get(key)} here): choose another folder")
                if not options.resume:
                    raise UserError(f"--out '{folder}' holds this run already: add --resume to go on, or choose another folder")
            elif options.resume:
                raise UserError(f"nothing to resume in '{folder}'")
            return folder
        stem = "dry-run" if options.dry_run else f"{self.name}-seed{options.seed}"
        parent = Path("runs") / script
        taken = [f for f in parent.glob(f"{stem}*") if f.name == stem or f.name[len(stem) + 1:].isdigit()]
        if options.resume:
            mine = []
            for folder in taken:
                with contextlib.suppress(UserError):      # a damaged neighbour is no reason to stop
                    if same(folder):
                        mine.append(folder)
            if not mine:
                raise UserError(f"nothing to resume: no run with these settings in '{parent}'; name its folder with --out")
            return max(mine, key=lambda f: (f / "config.json").stat().st_mtime)
        number = next(n for n in range(1, len(taken) + 2) if parent / (stem if n == 1 else f"{stem}-{n}") not in taken)
        return parent / (stem if number == 1 else f"{stem}-{number}")

    def _create(self, settings):
        try:
            self.folder.mkdir(parents=True, exist_ok=self.options.resume or self.options.out is not None)
            write_atomic(self.folder / "config.json", json.dumps({
                "script": self.script, "settings": settings, "command": " ".join(["python", Path(sys.argv[0]).name, *sys.argv[1:]]),
                "device": self.device.type, "hardware": hardware(self.device), "commit": commit(), "code": code_checksum(self.script),
                "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}}, indent=1))
        except FileExistsError:                           # another run took the name just now
            self.folder = self._choose_folder(settings)
            self._create(settings)
        except OSError as error:
            raise UserError(f"cannot write to '{self.folder}' ({error.strerror}): choose another --out")

    # -- checkpoints

    def track(self, **objects):
        """Name what has a `state_dict` (networks, optimisers): saved in every checkpoint, restored on resume."""
        self.tracked.update(objects)
        if self.saved is None:
            return
        for name, thing in objects.items():
            try:
                thing.load_state_dict(self.saved["states"][name])
            except (KeyError, RuntimeError, ValueError):
                raise UserError(f"the checkpoint in '{self.folder}' does not fit these networks: it is of another version or net")
        for key in ("history", "epoch", "step", "train_seconds", "images", "middle", "rows", "names"):
            setattr(self, key, self.saved[key])
        self.rows = list(self.rows.to(self.device)) if self.rows is not None else []
        self.seconds_before = self.saved["seconds"]

    def save(self):
        """Write the checkpoint and log.csv, both atomically. Refuses weights that are not finite."""
        for name, thing in self.tracked.items():
            if isinstance(thing, nn.Module) and not all(torch.isfinite(t).all() for t in thing.state_dict().values()):
                raise UserError(self._nan_message(f"weights of '{name}'", self.step))
        state = {"script": self.script, "states": {name: thing.state_dict() for name, thing in self.tracked.items()},
                 "rng": _get_rng() if self.middle is None else self.epoch_rng, "seconds": self.seconds(),
                 "rows": torch.stack(self.rows) if self.rows else None}
        for key in ("history", "epoch", "step", "train_seconds", "images", "middle", "names"):
            state[key] = getattr(self, key)
        buffer = io.BytesIO()
        torch.save(state, buffer)
        self._write("checkpoint.pt", buffer.getvalue())
        self._write_log()

    def _write_log(self):
        text = io.StringIO()
        if self.history:
            writer = csv.DictWriter(text, self.history[0])
            writer.writeheader()
            writer.writerows(self.history)
        self._write("log.csv", text.getvalue())

    def _write(self, name, content):
        try:
            write_atomic(self.folder / name, content)
        except OSError as error:
            raise UserError(f"cannot write '{self.folder / name}' ({error.strerror}): the last checkpoint, if there is one, is kept; "
                            "the same command with --resume goes on from it")

    def _nan_message(self, what, step):
        kept = f"the last good checkpoint is kept in '{self.folder}'" if (self.folder / "checkpoint.pt").exists() else "nothing was saved yet"
        return (f"training broke: {what} is not finite at step {step}; {kept}; "
                "try a lower learning rate or --precision fp32")

    # -- the loop

    def seconds(self):
        """Wall-clock seconds of this run so far, over all its parts."""
        return self.seconds_before + time.time() - self.started

    def epochs(self):
        """Yields the epochs that are left, from 0; logs and saves after each. Ctrl-C and SIGTERM save between two steps."""
        def ask_to_stop(number, frame):
            if self.stop:
                raise KeyboardInterrupt
            self.stop = True
        handlers = {s: signal.signal(s, ask_to_stop) for s in (signal.SIGINT, signal.SIGTERM)}
        if self.saved is not None:
            _set_rng(self.saved["rng"])
        self.bar = tqdm(total=self.options.epochs, initial=self.epoch, desc=self.script, unit="epoch", disable=None, file=sys.stderr)
        try:
            while self.epoch < self.options.epochs:
                self.begun, self.epoch_rng = time.time(), _get_rng()
                yield self.epoch
                self._close_epoch()
            if self.stop:
                raise KeyboardInterrupt
        finally:
            self.bar.close()
            for s, handler in handlers.items():
                signal.signal(s, handler)

    def _close_epoch(self):
        if not self.rows:
            raise RuntimeError("an epoch without a call of log()")
        values = torch.stack(self.rows).cpu()
        bad = (~torch.isfinite(values)).nonzero()
        if len(bad):
            raise UserError(self._nan_message(f"the loss '{self.names[bad[0, 1]]}'", self.step - len(values) + int(bad[0, 0]) + 1))
        self.epoch += 1
        self.train_seconds += time.time() - self.begun    # after the losses were read, so that the device has finished
        self.history.append({"epoch": self.epoch, **dict(zip(self.names, values.double().mean(0).tolist()))})
        self.rows, self.middle = [], None
        self.save()
        self.bar.update()
        self.bar.set_postfix({k: f"{v:.3g}" for k, v in self.history[-1].items() if k != "epoch"})

    def batches(self, index, size):
        """Yields an epoch's index in parts of nearly equal length, at most `size` rows each, in the order given.

        Draw `index` inside the epoch, from torch's global generator: a run that was stopped inside an epoch draws it again."""
        index = index.to(self.device)
        parts = index.tensor_split(math.ceil(len(index) / size))
        done = 0
        if self.middle is not None:                       # stopped inside this epoch: skip what was done
            done = self.middle["done"]
            _set_rng(self.middle["rng"])
        for number, part in enumerate(parts):
            if number < done:
                continue
            if self.stop:
                self.middle = {"done": number, "rng": _get_rng()}
                self.train_seconds += time.time() - self.begun
                self.save()
                raise KeyboardInterrupt
            yield part
            self.step += 1
            self.images += part.numel()

    def log(self, **losses):
        """Record a step's losses (scalar tensors), without waiting for the device."""
        self.names = list(losses)
        self.rows.append(torch.stack([loss.detach().float() for loss in losses.values()]))

    def autocast(self, cached=False):
        """Context in which convolutions and matrix products run in this run's precision. cached: weights used several times are converted
        once; only where none of them changes before a later use inside the context."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16", cache_enabled=cached)

    def finish(self, metrics, table=()):
        """Write metrics.json (flat name -> number) and print the table: rows (words, metric's name, the paper's value, compare).

        With --validation the paper's value, which is of test images, is left out."""
        metrics = {**metrics, "epochs": self.epoch, "seconds": round(self.seconds(), 1),
                   "images_per_second": round(self.images / max(self.train_seconds, 1e-9), 1)}
        self._write_log()
        self._write("metrics.json", json.dumps(metrics, indent=1))
        lines = [("score", "this run", "paper", "to compare")]
        lines += [(words, f"{metrics[name]:.4g}", "-" if self.options.validation else str(paper), str(compare)) for words, name, paper, compare in table]
        widths = [max(len(line[k]) for line in lines) for k in range(4)]
        for line in lines:
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
        print(f"{self.script}: {metrics['seconds']:.0f} s, {metrics['images_per_second']:.0f} images/s; all of it in {self.folder}",
              file=sys.stderr)
        return metrics


def _get_rng():
    """State of every generator (CPU, CUDA, Apple's GPU, numpy, Python), as tensors and plain values (so that `weights_only=True` loads it)."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return {"torch": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "mps": torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
            "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached], "python": random.getstate()}


def _set_rng(state):
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
    if torch.backends.mps.is_available() and state.get("mps") is not None:
        torch.mps.set_rng_state(state["mps"].cpu())
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])


@contextlib.contextmanager
def own_random_numbers(seed=0):
    """Context in which torch's random numbers come from `seed`; afterwards every generator (numpy's and Python's, too) goes on as if
    nothing had been drawn."""
    state = _get_rng()
    torch.manual_seed(seed)
    try:
        yield
    finally:
        _set_rng(state)


@torch.no_grad()
def settle_batch_norm(net, batches):
    """Batch norm's statistics of a network anew, a plain average over `batches` (tuples of its inputs): those kept in training lag behind
    the weights and may come from other inputs. Leaves it in eval mode."""
    norms = [m for m in net.eval().modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None                              # a plain average
        norm.train()
    for inputs in batches if norms else ():
        net(*inputs)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
    net.eval()


def settling_parts(images, size=500):
    """Up to 20,000 images uint8 [N, ...] as floats, in parts of nearly equal length, at most `size`: none has a single image, which batch norm refuses."""
    images = images[:20_000]
    return [to_float(part) for part in images.tensor_split(math.ceil(len(images) / size))]


def refuse_idle(options, cases, unset=None):
    """`UserError` for a flag that would do nothing. A flag of 0 asks for nothing, so it passes.

    cases: tuples of whether they are idle, the names of settings, and the reason in words. unset: dict of what a setting is without its flag,
    None or False where it is not in there."""
    for idle, names, why in cases:
        for name in names:
            if idle and getattr(options, name) not in (None, False, (unset or {}).get(name)):
                raise UserError(f"--{name.replace('_', '-')} would do nothing {why}")


def run_main(main, parser, recipes=None):
    """Parse the command line and run; mistakes of the user become one line on stderr and exit status 2.

    recipes: for each value of `--recipe`, the defaults it changes; flags on the command line still count."""
    recipe = parser.parse_args().recipe if recipes else None
    parser.set_defaults(**(recipes or {}).get(recipe, {}))
    options = parser.parse_args()
    try:
        main(options)
    except UserError as error:
        sys.exit(_complain(parser, error, 2))
    except KeyboardInterrupt:
        sys.exit(_complain(parser, "stopped; the same command with --resume (and the same --out) goes on from the last checkpoint, if there is one", 130))


def _complain(parser, words, status):
    print(f"{parser.prog}: {words}", file=sys.stderr)
    return status


# ---------------------------------------------------------------------------------------------------------- scores


def probe(train, train_y, test, test_y, hidden=256, noise=None, epochs=20, seed=0, groups=None):
    """What a small network can read from codes: the protocol of Mathieu et al.'s Table 1, with early stopping.

    train, test: codes float [N, d], standardised here by the training codes' mean and deviation, at most 10 of these from the mean.
    train_y, test_y: int64 labels [N], or several attributes [N, A] (a softmax each), or float targets [N, A] (squared error). hidden: units
    of the hidden ReLU layer, 0 for a linear probe. noise: (train, test) standard deviations [N, d] of a Gaussian added afresh each time a
    code is used, to probe samples of a posterior. A random tenth of `train` is the validation set that picks the epoch; with groups, int64
    [N] (the characters, where the test has others), a tenth of the groups. Returns the test error in percent for each attribute, a tensor
    [A]; for float targets R² for each, at most 1."""
    rng = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(train), generator=rng).to(train.device)
    noisy = noise is not None
    noise = (torch.zeros(()),) * 2 if noise is None else noise
    deviation = [n.to(train) if n.dim() else n.to(train).expand(len(c), 1) for n, c in zip(noise, (train, test))]
    mean, scale = train.mean(0), (train.var(0) + deviation[0].square().mean(0)).sqrt()
    scale = torch.where(scale > 1e-5 * scale.max(), scale, math.inf)         # a dimension that is constant in training says nothing

    def sample(codes, std, index):
        codes, std = codes[index], std[index]
        if noisy:
            codes = codes + std * torch.randn(codes.shape, generator=rng).to(codes)
        return ((codes - mean) / scale).clamp(-10, 10)    # a dimension that is nearly always 0 is hundreds of its deviations away when it is not

    regression = train_y.is_floating_point()
    train_y, test_y = (y[:, None] if y.dim() == 1 else y for y in (train_y, test_y))
    if regression:
        sizes = [1] * train_y.shape[1]
        center, spread = train_y.mean(0), train_y.std(0) + 1e-6
    else:
        sizes = (train_y.amax(0) + 1).tolist()

    def loss_of(output, y):
        if regression:
            return (output - (y - center) / spread).square().mean()
        return sum(F.cross_entropy(part, y[:, k]) for k, part in enumerate(output.split(sizes, 1)))

    with own_random_numbers(seed):
        layers = [nn.Linear(train.shape[1], hidden), nn.ReLU(), nn.Linear(hidden, sum(sizes))] if hidden else \
            [nn.Linear(train.shape[1], sum(sizes))]
        net = nn.Sequential(*layers).to(train.device)
    optimiser = torch.optim.Adam(net.parameters(), 2e-3, fused=train.device.type != "mps")
    held, used = order[:max(1, len(order) // 10)], order[max(1, len(order) // 10):]
    if groups is not None:
        names = groups.unique()
        chosen = torch.isin(groups, names[torch.randperm(len(names), generator=rng).to(names.device)[:len(names) // 10]])
        held, used = (part.nonzero()[:, 0] for part in (chosen, ~chosen))
    everything = torch.arange(len(test), device=test.device)
    best, kept = math.inf, None
    if not torch.isfinite(train).all():
        raise UserError("the codes are not finite: the training broke")
    for _ in range(epochs):
        for index in used[torch.randperm(len(used), generator=rng).to(used.device)].split(500):
            optimiser.zero_grad()
            loss_of(net(sample(train, deviation[0], index)), train_y[index]).backward()
            optimiser.step()
        with torch.no_grad():
            value = loss_of(net(sample(train, deviation[0], held)), train_y[held]).item()
            if value < best:
                best, kept = value, copy.deepcopy(net.state_dict())
    net.load_state_dict(kept)
    with torch.no_grad():
        answer = net(sample(test, deviation[1], everything))
    if regression:
        residual = (answer * spread + center - test_y).square().mean(0)
        return 1 - residual / test_y.var(0, unbiased=False)
    return torch.stack([(part.argmax(1) != test_y[:, k]).float().mean() * 100 for k, part in enumerate(answer.split(sizes, 1))])


def chance_error(train_y, test_y):
    """Test error in percent of always answering the commonest training label, for each attribute: tensor [A]."""
    train_y, test_y = (y[:, None] if y.dim() == 1 else y for y in (train_y, test_y))
    return torch.stack([(test_y[:, k] != torch.bincount(train_y[:, k]).argmax()).float().mean() * 100 for k in range(train_y.shape[1])])


def nearest(queries, references, k=1, exclude_self=False):
    """Indices int64 [N, k] of the k nearest rows of `references` [M, d] to each of `queries` [N, d], nearest first, Euclidean;
    with k = 1 the first of several that are equally near. exclude_self: queries are the references, and no row is its own neighbour."""
    out = []
    for start in range(0, len(queries), 1000):
        distance = torch.cdist(queries[start:start + 1000].float(), references.float())
        if exclude_self:
            row = torch.arange(len(distance), device=distance.device)
            distance[row, row + start] = math.inf
        out.append(distance.argmin(1, keepdim=True) if k == 1 else distance.topk(k, largest=False).indices)
    return torch.cat(out)


def nn_error(references, reference_y, queries, query_y):
    """Error in percent of giving each of `queries` [N, d] the label of its nearest row of `references` [M, d], Euclidean. Labels int64 [M], [N]."""
    return (reference_y[nearest(queries, references)[:, 0]] != query_y).float().mean().item() * 100


def name_clusters(scores, y, rule="exemplar"):
    """Class int64 [K] of each of K clusters, from labelled examples.

    scores: log q(cluster|x) float [N, K]; y: int64 [N]. rule "exemplar": the class of the one example that the cluster is surest of (Makhzani et
    al.'s); "majority": the commonest class among the examples for which the cluster is the likeliest (an empty one takes its exemplar's)."""
    exemplar = y[scores.argmax(0)]
    if rule == "exemplar":
        return exemplar
    votes = torch.zeros(scores.shape[1], int(y.max()) + 1, device=y.device).index_put_((scores.argmax(1), y), torch.ones(len(y), device=y.device), True)
    return torch.where(votes.sum(1) > 0, votes.argmax(1), exemplar)


def cluster_error(scores, y, names):
    """Error in percent when every example takes the class `names` [K] of its likeliest cluster. scores [N, K], y [N]."""
    return (names[scores.argmax(1)] != y).float().mean().item() * 100


def match_clusters(scores, y):
    """Class int64 [K] of each of K clusters, every class for one cluster at most, by the matching with the most examples right; -1 for a
    cluster left over.

    scores: float [N, K], the largest says the cluster; y: int64 [N]."""
    k, classes = scores.shape[1], int(y.max()) + 1
    counts = torch.zeros(k, classes).index_put_((scores.argmax(1).cpu(), y.cpu()), torch.ones(len(y)), True)
    size = max(k, classes)
    cost = torch.zeros(size, size)
    cost[:k, :classes] = -counts
    column = assign(cost)[:k]
    return torch.where(column < classes, column, torch.full_like(column, -1)).to(y.device)


def assign(cost):
    """Column int64 [n] of each row in the assignment of least total cost [n, n], each column once: the Hungarian method by shortest
    augmenting paths, O(n^3)."""
    cost = cost.double().tolist()
    n = len(cost)
    u, v, row_of = [0.] * (n + 1), [0.] * (n + 1), [0] * (n + 1)             # potentials; row_of[j]: the row in column j, 1-based, 0 none
    for i in range(1, n + 1):
        row_of[0], j = i, 0
        best, back, seen = [math.inf] * (n + 1), [0] * (n + 1), [False] * (n + 1)
        while row_of[j]:
            seen[j], row, delta, following = True, row_of[j], math.inf, 0
            for k in range(1, n + 1):
                if not seen[k]:
                    reduced = cost[row - 1][k - 1] - u[row] - v[k]
                    if reduced < best[k]:
                        best[k], back[k] = reduced, j
                    if best[k] < delta:
                        delta, following = best[k], k
            for k in range(n + 1):
                if seen[k]:
                    u[row_of[k]] += delta
                    v[k] -= delta
                else:
                    best[k] -= delta
            j = following
        while j:
            row_of[j] = row_of[back[j]]
            j = back[j]
    column = [0] * n
    for k in range(1, n + 1):
        column[row_of[k] - 1] = k - 1
    return torch.tensor(column)


def normalized_mutual_information(a, b):
    """Mutual information of two labellings int64 [N], over the mean of their entropies: from 0 (independent) to 1 (the same but for names)."""
    joint = torch.zeros(int(a.max()) + 1, int(b.max()) + 1, dtype=torch.float64)
    joint = joint.index_put_((a.cpu(), b.cpu()), torch.ones(len(a), dtype=torch.float64), True) / len(a)
    entropy = lambda p: -(p[p > 0] * p[p > 0].log()).sum()  # noqa: E731
    h_a, h_b, h = entropy(joint.sum(1)), entropy(joint.sum(0)), entropy(joint)
    return ((h_a + h_b - h) / ((h_a + h_b) / 2)).item() if h_a + h_b > 0 else 1.


def k_means(x, k, seed=0, tries=5, iterations=100):
    """Centres [k, d] of k-means on x [N, d]: Lloyd's algorithm from k-means++ seeds, the best of `tries` by the total squared distance."""
    rng = torch.Generator().manual_seed(seed)
    best, least = None, math.inf
    for _ in range(tries):
        centres = x[torch.randint(len(x), (1,), generator=rng).to(x.device)]
        distance = (x - centres).square().sum(1)
        for _ in range(k - 1):                            # the next seed: far points are likelier
            chosen = torch.multinomial(distance.cpu().double(), 1, generator=rng).to(x.device)
            centres = torch.cat([centres, x[chosen]])
            distance = torch.minimum(distance, (x - x[chosen]).square().sum(1))
        member = None
        for _ in range(iterations):
            previous = member
            distance, member = (torch.cat(parts) for parts in zip(*(torch.cdist(part, centres).min(1) for part in x.split(5000))))
            if previous is not None and torch.equal(previous, member):
                break
            number = torch.bincount(member, minlength=k)[:, None]
            centres = torch.where(number > 0, torch.zeros_like(centres).index_add_(0, member, x) / number.clamp(min=1), centres)
        if distance.square().sum() < least:
            best, least = centres, distance.square().sum()
    return best


def parzen_log_likelihood(x, samples, sigmas):
    """Log density in nats of each x under a Gaussian Parzen window on the samples, for each width: float [len(sigmas), N].

    x [N, d], samples [M, d] in the same units as sigmas. log p(x) = log 1/M sum_j N(x; sample_j, sigma^2 I), in blocks, so M may be a million."""
    sigmas = torch.as_tensor(sigmas, dtype=x.dtype, device=x.device)
    center = x.mean(0)                                    # smaller numbers, smaller rounding errors
    x = x - center
    total = torch.full((len(sigmas), len(x)), -math.inf, dtype=x.dtype, device=x.device)
    for part in samples.split(2000):                      # small blocks stay in the processor's cache
        part = part.to(x) - center
        norms = part.square().sum(1)
        for begin in range(0, len(x), 500):
            rows = x[begin:begin + 500]
            distance = torch.addmm(norms + rows.square().sum(1, keepdim=True), rows, part.t(), alpha=-2)
            least = distance.amin(1, keepdim=True)
            for k, sigma in enumerate(sigmas.tolist()):
                mass = ((least - distance) * (0.5 / sigma ** 2)).exp_().sum(1).log() - least[:, 0] * (0.5 / sigma ** 2)
                total[k, begin:begin + 500] = torch.logaddexp(total[k, begin:begin + 500], mass)
    return total - math.log(len(samples)) - x.shape[1] * (sigmas.log() + 0.5 * math.log(2 * math.pi))[:, None]


class Judge(nn.Module):
    """Says which class an image shows: a small convolutional classifier, trained once and never together with a model.

    images float [N, channels, H, W] in [0, 1], grey ones of 28 x 28 or colour ones of 32 x 32 -> logits [N, classes]."""

    def __init__(self, channels=1, classes=10):
        super().__init__()
        layers, inputs = [], channels
        for width in (32, 64, 64):
            layers += [nn.Conv2d(inputs, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
            inputs = width
        to_3 = nn.AvgPool2d(2, 1) if channels == 3 else nn.Identity()        # from 4 x 4; AdaptiveAvgPool2d(3), its equal, fails on Apple GPUs
        self.net = nn.Sequential(*layers, to_3, nn.Flatten(), nn.Dropout(.3),
                                 nn.Linear(9 * 64, 128), nn.ReLU(), nn.Linear(128, classes))

    def forward(self, x):
        return self.net(x)

    @torch.no_grad()
    def classify(self, images):
        """Class int64 [N] of float images in [0, 1]."""
        return torch.cat([self(part).argmax(1) for part in images.split(1000)])


def train_judge(train, epochs=8, batch_size=250, seed=0):
    """A `Judge` of a data set, in eval mode: 8 epochs with shifts of up to 2 pixels, about a minute on two cores."""
    judge = Judge(train.x.shape[1], int(train.y.max()) + 1).to(train.x.device)
    optimiser = torch.optim.AdamW(judge.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5e-3, epochs * math.ceil(len(train.y) / batch_size))
    rng = torch.Generator().manual_seed(seed)
    h, w = train.x.shape[2:]
    for _ in tqdm(range(epochs), desc="judge", disable=None, file=sys.stderr):
        judge.train()
        for index in torch.randperm(len(train.y), generator=rng).split(batch_size):
            dy, dx = torch.randint(0, 5, (2,), generator=rng).tolist()
            x = F.pad(to_float(train.x[index]), (2, 2, 2, 2))[:, :, dy:dy + h, dx:dx + w]
            optimiser.zero_grad()
            F.cross_entropy(judge(x.contiguous()), train.y[index]).backward()
            optimiser.step()
            schedule.step()
    return judge.eval()


def save_judge(judge, path):
    """Write a judge's weights; `UserError` where the folder is not writable."""
    buffer = io.BytesIO()
    torch.save({"channels": judge.net[0].in_channels, "classes": judge.net[-1].out_features, "net": judge.state_dict()}, buffer)
    try:
        write_atomic(path, buffer.getvalue())
    except OSError as error:
        raise UserError(f"cannot write '{path}' ({error.strerror}): choose another --data")


def load_judge(name, root=None, device="cpu", quick=False):
    """The `Judge` of a data set in eval mode, from `root`/judge-NAME.pt (MNIST's is committed); trained and stored there if absent, on all training
    images, so that with --validation it has seen the held-out ones.

    quick: for a dry run; one that is absent is left untrained."""
    root = Path(root) if root is not None else HERE / "data"
    path = next((p for p in (root / f"judge-{name}.pt", HERE / "data" / f"judge-{name}.pt") if exists(p, "--data")), None)
    if path is None and quick:
        train = load_dataset(name, root)[0]
        return Judge(train.x.shape[1], int(train.y.max()) + 1).to(device).eval()
    if path is None:
        with own_random_numbers():
            judge = train_judge(load_dataset(name, root)[0].to(device))
        path = root / f"judge-{name}.pt"
        save_judge(judge, path)                           # and read back: who makes the file and who finds it draw the same random numbers
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        judge = Judge(state["channels"], state["classes"])
        judge.load_state_dict(state["net"])
    except Exception as error:                            # zip, pickle and shape errors of a damaged file
        raise UserError(f"'{path}' is damaged ({type(error).__name__}): delete it to have it made anew (for MNIST, git checkout data)")
    return judge.to(device).eval()


def check_judge(options, device):
    """Load the judge and forget it: for scripts whose evaluation needs it, so that what is wrong with it shows before the training."""
    with own_random_numbers():
        load_judge(options.dataset, options.data, device, quick=options.dry_run)


# --------------------------------------------------------------------------------------------------------- figures


def pyplot():
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    return plt


def tile(images, columns, gap=1, after_row=(), after_column=()):
    """Images float [N, C, H, W] in [0, 1] as one picture float [h, w, 3], row by row, on white; a wider gap after a row or column, or several."""
    n, c, h, w = images.shape
    rows = math.ceil(n / columns)
    before = lambda k, places: 4 * gap * sum(k > place for place in ([places] if isinstance(places, int) else places))  # noqa: E731
    top = [r * (h + gap) + before(r, after_row) for r in range(rows)]
    left = [k * (w + gap) + before(k, after_column) for k in range(columns)]
    picture = torch.ones(top[-1] + h, left[-1] + w, 3)
    for number, image in enumerate(images.detach().float().cpu().clamp(0, 1)):
        y, x = top[number // columns], left[number % columns]
        picture[y:y + h, x:x + w] = image.permute(1, 2, 0).expand(h, w, 3)
    return picture


def save_figure(figure, path):
    """Write a figure of matplotlib as PNG and close it; `UserError` where that fails."""
    try:
        figure.savefig(path)
    except OSError as error:
        raise UserError(f"cannot write '{path}' ({error.strerror}): the checkpoint is kept; the same command with --resume goes on from it")
    finally:
        pyplot().close(figure)


def figure_grid(path, images, columns, title, x_label=None, y_label=None, zoom=2, **gaps):
    """A grid of images as PNG, each pixel `zoom` wide, with a title and words beside rows and columns."""
    plt = pyplot()
    picture = tile(images, columns, **gaps)
    h, w = picture.shape[:2]
    top, side = .6, .35                                   # inches for the words
    width, height = max(w * zoom / 100, 4.2) + side, h * zoom / 100 + top
    figure = plt.figure(figsize=(width, height), dpi=100)
    axes = figure.add_axes((side / width, 0, w * zoom / 100 / width, h * zoom / 100 / height))
    axes.imshow(picture.numpy(), interpolation="nearest", aspect="auto")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.xaxis.set_label_position("top")
    axes.set_xlabel(x_label or "", fontsize=9)
    axes.set_ylabel(y_label or "", fontsize=9)
    figure.suptitle(title, fontsize=10, y=1 - .08 / height, va="top")
    save_figure(figure, path)


def figure_curves(path, history, groups, title):
    """Losses over epochs as PNG: a panel for each of `groups`, (title, names, unit)."""
    plt = pyplot()
    figure, panels = plt.subplots(1, len(groups), figsize=(4 * len(groups), 3), dpi=100, squeeze=False)
    epochs = [row["epoch"] for row in history]
    for axes, (words, names, unit) in zip(panels[0], groups):
        for name in names:
            axes.plot(epochs, [row[name] for row in history], label=name.replace("_", " "), marker="." if len(epochs) < 10 else None)
        axes.set(title=words, xlabel="epoch", ylabel=unit)
        axes.grid(alpha=.3)
        axes.legend(fontsize=8, framealpha=.4)            # curves stay visible behind it
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    save_figure(figure, path)


def figure_scatter(path, codes, y, title, outline=(), marks=None):
    """Two-dimensional codes [N, 2] as PNG, a colour for each class y [N], equal axes; outline: curves [n, 2] of the prior in grey.

    marks: points [K, 2], drawn as crosses."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(5.4, 4.8), dpi=100)
    codes, y = codes.cpu(), y.cpu()
    for label in y.unique().tolist():
        axes.plot(*codes[y == label].t(), ".", color=f"C{label}" if label < 10 else None, markersize=2.5, alpha=.6, label=str(label), zorder=1,
                  markeredgewidth=0)
    for curve in outline:
        axes.plot(*curve.cpu().t(), color=".25", linewidth=.8, zorder=2)
    if marks is not None:
        axes.plot(*marks.cpu().t(), "kx", markersize=7, zorder=3)
    axes.set_aspect("equal")
    axes.legend(markerscale=5, fontsize=8, loc="center left", bbox_to_anchor=(1, .5), frameon=False)
    axes.set_title(title, fontsize=10)
    figure.tight_layout()
    save_figure(figure, path)


def figure_scatters(path, columns, rows, limits):
    """Scatters side by side as PNG. columns: title -> for each of `rows` (words) the points [N, 2] and their colours' number int64 [N]; limits:
    half-width of the axes for each row."""
    plt = pyplot()
    figure, panels = plt.subplots(len(rows), len(columns), figsize=(1.7 * len(columns) + .3, 1.7 * len(rows) + .3), dpi=90, squeeze=False)
    for j, (title, cells) in enumerate(columns.items()):
        panels[0, j].set_title(title, fontsize=9)
        for i, (points, number) in enumerate(cells):
            axes = panels[i, j]
            axes.scatter(*points.cpu().t(), c=number.cpu(), cmap="gist_rainbow", s=1, linewidths=0)
            axes.set(xlim=(-limits[i], limits[i]), ylim=(-limits[i], limits[i]), aspect="equal")
            axes.tick_params(labelsize=6, length=2)
            if j == 0:
                axes.set_ylabel(rows[i], fontsize=8)
    figure.tight_layout(pad=.5)
    save_figure(figure, path)


# ------------------------------------------------------------------------------------------------------------ main


def main(options):
    if not options.train_judge:
        raise UserError("nothing to do: python common.py --train-judge makes the digit judge")
    torch.manual_seed(0)
    train, test = load_dataset("mnist")
    judge = train_judge(train)
    save_judge(judge, HERE / "data" / "judge-mnist.pt")
    print(f"judge-mnist.pt: {(judge.classify(to_float(test.x)) == test.y).float().mean() * 100:.2f} % of the test images")


if __name__ == "__main__":
    cli = argparse.ArgumentParser(description="Makes the digit judge that the scores use.")
    cli.add_argument("--train-judge", action="store_true", help="train it on MNIST and write data/judge-mnist.pt")
    run_main(main, cli)
