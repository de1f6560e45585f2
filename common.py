"""What the four scripts share: data, pairs, settings, a run, figures. No model, no loss.

A data set is two `Split`s: uint8 images [N, C, H, W]. A batch: a tensor of row numbers. `to_float`
maps bytes to [0, 1]. A mistake by the user raises `UserError`, which ends a script with one line.
Flags: experiments/command_line.py. A run's folder on disk: experiments/run_folder.py.
"""

import contextlib
import dataclasses
import io
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Optional

os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")  # torch reads it at import
backend = "matplotlib" not in sys.modules and os.environ.pop("MPLBACKEND", "")  # Jupyter's

import torch
import torch.nn.functional as F
from matplotlib import rcParams
from matplotlib.figure import Figure
from torch import nn
from tqdm import tqdm

if backend:
    os.environ["MPLBACKEND"] = backend
    with contextlib.suppress(ValueError):  # if unknown, matplotlib would have refused its import
        rcParams["backend"] = backend
HERE = Path(__file__).resolve().parent


class UserError(Exception):
    """A mistake that the user can mend. Its text is the one line that is shown."""


# ---- Data ----------------------------------------------------------------------------------------
class Split(NamedTuple):
    """Part of a data set. Only sprites have attributes, a pose, and more than ten classes."""

    x: torch.Tensor  # images, uint8 [N, C, H, W]
    y: torch.Tensor  # class of each image, int64 [N], 0 to 9; of sprites the character's number
    attributes: Optional[torch.Tensor] = None  # int64 [N, 7], data.sprites.ATTRIBUTES
    pose: Optional[torch.Tensor] = None  # float32 [N, 6] in [-1, 1]

    def to(self, device):
        return Split(*(None if t is None else t.to(device) for t in self))

    def take(self, index):
        return Split(*(None if t is None else t[index] for t in self))

    def one_hot_labels(self):
        """float [N, 10]: the class; of sprites [N, 23]: the seven attributes side by side."""
        if self.attributes is None:
            return F.one_hot(self.y, 10).float()
        from data.sprites import ATTRIBUTE_SIZES

        columns = zip(self.attributes.t(), ATTRIBUTE_SIZES)
        return torch.cat([F.one_hot(column, size) for column, size in columns], 1).float()


GREY = ("mnist", "fashion", "kmnist", "grey")  # 28 x 28 pixels; the others are 3 x 32 x 32


def to_float(x):
    """Images uint8 [0, 255] to float32 [0, 1]; floats keep their values."""
    return x.float() / 255 if x.dtype == torch.uint8 else x.float()


def image_batches(x, nets, size=1000):
    """Yields at most `size` images at a time, as floats in [0, 1] on the device of `nets`. x: of
    torch or numpy, [N, C, H, W] or one [C, H, W], of nets.shape; uint8, or floats in [0, 1].
    `ValueError` for others, and for uint8 with a maximum of 1: they may be meant as floats."""
    x, device = torch.as_tensor(x), next(nets.parameters()).device
    batch = x[None] if x.dim() == 3 else x
    if batch.dim() != 4 or batch.shape[1:] != nets.shape or not len(batch):
        words = ", ".join(map(str, nets.shape))
        raise ValueError(f"images must be [N, {words}] or [{words}], not {list(x.shape)}")
    floats = x.is_floating_point() and 0 <= x.min() and x.max() <= 1
    if not floats and (x.dtype != torch.uint8 or x.max() == 1):
        kind = f"{x.dtype} from {x.cpu().double().min():g} to {x.cpu().double().max():g}"
        raise ValueError(f"images must be uint8 up to 255, or floats in [0, 1], not {kind}")
    return (to_float(part).to(device) for part in batch.split(size))


def code_batches(nets, *codes, size=1000):
    """Yields tuples: at most `size` rows of each code, float32 on nets' device; None stays None."""
    to = {"dtype": torch.float32, "device": next(nets.parameters()).device}
    codes = [None if code is None else torch.as_tensor(code, **to) for code in codes]
    rows = {len(code) for code in codes if code is not None}
    if len(rows) > 1:
        raise ValueError(f"codes have different numbers of rows: {sorted(rows)}")
    count = math.ceil(max(rows) / size) or 1
    return zip(*([None] * count if code is None else code.split(size) for code in codes))


def load_dataset(name, root=None, validation=False):
    """Training and test `Split`. Sprites are drawn. Others are files in `root` (default: data/).
    mnist is there; grey, colour are your own images; torchvision downloads the rest. validation: a
    held-out part of the training set in place of the test set; of sprites 72 other characters."""
    from data.files import read

    train, test = read(name, Path(root or HERE / "data"), validation)
    return Split(*train), Split(*test)


def load_data(settings):
    """Training and test `Split` of a run, on its device. A dry run: at most 1,000 and 256."""
    from experiments.machine import choose_device

    train, test = load_dataset(settings.dataset, settings.data, settings.validation)
    if settings.dry_run:  # as many of each class
        labels = train.y.unique()
        few = [(train.y == label).nonzero()[: math.ceil(512 / len(labels)), 0] for label in labels]
        train, test = train.take(torch.cat(few).sort().values), test.take(slice(256))
    device = choose_device(settings.device)
    return train.to(device), test.to(device)


def pair_same_class(y):
    """Random pairs of row numbers: two images of one class. int64 [P, 2] on the CPU, shuffled.

    y: labels int64 [N]. Every image is in a pair; of a class of odd size one image is in two.
    `UserError` names a class with a single image.
    """
    y = y.cpu()
    counts = torch.bincount(y)
    if (counts == 1).any():
        alone = int((counts == 1).nonzero()[0])
        raise UserError(f"class {alone} has a single image: pairs need at least two of each class")
    shuffled = torch.randperm(len(y))
    order = shuffled[torch.argsort(y[shuffled], stable=True)]  # grouped by class, shuffled within
    size = counts[y[order]]
    start = (counts.cumsum(0) - counts)[y[order]]
    rank = torch.arange(len(y)) - start  # position within its class
    partner = order[start + (rank + 1) % size]  # the next of its class; of the last, the first
    pairs = torch.stack([order, partner], 1)[rank % 2 == 0]  # ranks (0, 1), (2, 3), ...
    return pairs[torch.randperm(len(pairs))]


# ---- Settings: a dataclass, whose fields are the flags and whose comments are their help ---------
Count = Annotated[int, 1, 10**9]  # a type, its smallest and its largest value
Whole = Annotated[int, 0, 2**31]
Weight = Annotated[float, 0, 1e9]
Rate = Annotated[float, 1e-12, 1e3]
Share = Annotated[float, 0, 1]
Beta = Annotated[float, 0, 0.9999]
Batch = Annotated[int, 3, 10**9]  # from 2, `batches` may leave a single row: batch norm refuses it
Size = Annotated[float, 0, 1e3]


@dataclasses.dataclass
class RunSettings:
    """Settings that all scripts have; each adds its own."""

    dataset: str = "mnist"  # or sprites, fashion, kmnist, svhn, cifar10; grey, colour: your own
    epochs: Count = 50  # passes over the training images
    seed: Whole = 0  # of weights, batches, noise; on one CPU model and thread count bit for bit
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # auto: the first GPU, or else the CPU
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 on x86 CPUs that have it
    data: str = ""  # folder of the images, see data/files.py (empty: the repository's data/)
    out: str = ""  # run folder (empty: runs/SCRIPT/NAME-seedN, numbered where that is taken)
    validation: bool = False  # score on a held-out part of the training set, for tuning
    dry_run: bool = False  # every line of the script on a few images; the numbers mean nothing
    resume: str = ""  # run folder to go on with, by the settings saved in it


def run_main(main, recipe):
    """Call main(settings). `recipe` gets the flags that its parameters name, and returns settings.
    The other flags change these. A mistake ends with one line."""
    from experiments.command_line import exit_on_mistake, parse

    exit_on_mistake(lambda: main(parse(recipe, sys.argv[1:])))


# ---- A run ---------------------------------------------------------------------------------------
def say(words):
    """A line on stderr, with the script's name before it."""
    with contextlib.suppress(OSError):  # a closed pipe does not end a training
        print(f"{Path(sys.argv[0]).stem}: {words}", file=sys.stderr, flush=True)


def write_atomic(path, content):
    """Write bytes so that a kill at any moment leaves the old file or the new one."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()  # half a file must not keep a full disk full
        raise UserError(f"cannot write '{path}' ({error.strerror}); what was saved before is kept")


class Run:
    """Bookkeeping of one training: folder, seed, progress, log, checkpoint, resume.

    run = Run("mathieu", settings)  # seeds torch: build the networks after it
    run.track(nets=nets, optimiser=optimiser)  # restored here when the run is resumed
    for epoch in run.epochs():  # the loop stands in `with run.autocast():`; saves after each epoch
        for index in run.batches(torch.randperm(count), size):
            ...
            run.log(loss=loss)  # tensors, read from the device once an epoch
    run.finish(metrics, table)  # a row: words, key of a metric, paper's value, comparison
    """

    COUNTERS = ("epoch", "step", "images", "seconds", "train_seconds", "history")

    def __init__(self, script, settings, name=None):
        """name: of the folder in runs/SCRIPT where no --out is given; the data set's by default."""
        from experiments import machine, run_folder

        self.script, self.settings, self.machine = script, settings, machine
        machine.keep_memory()
        self.device = machine.choose_device(settings.device)
        self.precision = machine.choose_precision(settings.precision, self.device)
        self.epoch, self.step, self.images, self.seconds, self.train_seconds = 0, 0, 0, 0.0, 0.0
        self.history, self.rows, self.tracked, self.saved = [], [], {}, None
        self.progress = 0.0  # share of the run's steps, the current one counted
        self.started = time.time()
        torch.manual_seed(settings.seed)
        if settings.resume:
            self.folder, self.lock, self.saved = run_folder.open_again(self)
        else:
            self.folder, self.lock = run_folder.create(self, name or settings.dataset)
        dry = ": a dry run, its numbers mean nothing" if settings.dry_run else ""
        say(f"{self.device}, {self.precision}, into {self.folder}{dry}")
        if self.saved:
            say(f"resumed at epoch {self.saved['epoch']} of {settings.epochs}")

    def track(self, **objects):
        """Name what has a `state_dict`: saved each epoch, restored when resumed."""
        self.tracked.update(objects)
        for name, thing in objects.items() if self.saved else ():
            try:
                thing.load_state_dict(self.saved["states"][name])
            except (KeyError, RuntimeError, ValueError):
                raise UserError(f"the checkpoint in '{self.folder}' is of another version")

    def save(self, finished=False):
        """Write checkpoint.pt; of a finished run without the optimisers."""
        kept = {k: v for k, v in self.tracked.items() if isinstance(v, nn.Module) or not finished}
        state = {key: getattr(self, key) for key in self.COUNTERS}
        state["seconds"] += time.time() - self.started
        state["states"] = {name: thing.state_dict() for name, thing in kept.items()}
        state["rng"] = self.machine.get_rng(self.device)
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomic(self.folder / "checkpoint.pt", buffer.getvalue())

    @contextlib.contextmanager
    def autocast(self):
        """Context of the training: convolutions and matrix products have this run's precision. An
        error in it frees the folder's lock, so that a notebook can resume the run in a new Run."""
        enabled = self.precision == "bf16"
        try:  # without a cache, which would keep bf16 copies of old weights
            with torch.autocast(self.device.type, torch.bfloat16, enabled, cache_enabled=False):
                yield
        except BaseException:
            self.lock.release()
            raise

    def epochs(self):
        """Yields the epochs left, by number; the first is 0. After each: log.csv, checkpoint."""
        if self.saved:
            for key in self.COUNTERS:
                setattr(self, key, self.saved[key])
            self.machine.set_rng(self.saved["rng"], self.device)
        self.bar = tqdm(desc=self.script, unit=" images", unit_scale=True, disable=None)
        with self.bar:
            while self.epoch < self.settings.epochs:
                begun = time.time()
                yield self.epoch
                self._close_epoch(begun)

    def batches(self, index, size):
        """Yields an epoch's index [N, ...] in the order given, in nearly equal parts of at most
        `size` rows. Draw the index inside the epoch, so that a resumed run draws the same."""
        parts = index.to(self.device).tensor_split(math.ceil(len(index) / size))
        self.bar.total = self.settings.epochs * index.numel()
        if not self.bar.n:  # a resumed bar starts where it was
            self.bar.initial = self.bar.n = self.bar.last_print_n = self.epoch * index.numel()
        for done, part in enumerate(parts, 1):
            self.step += 1
            self.progress = (self.epoch + done / len(parts)) / self.settings.epochs
            yield part
            self.images += part.numel()
            self.bar.update(part.numel())

    def log(self, **losses):
        """Keep a step's losses, scalar tensors. Call it once in each step, with the same names."""
        self.names = list(losses)
        self.rows.append(torch.stack([loss.detach().float() for loss in losses.values()]))

    def _close_epoch(self, begun):
        values = torch.stack(self.rows).cpu()
        self._refuse_nan(values)
        self.rows, self.epoch = [], self.epoch + 1
        self.train_seconds += time.time() - begun
        means = dict(zip(self.names, values.mean(0).tolist()))
        self.history.append({"epoch": self.epoch, **means})
        lines = [",".join(map(str, row.values())) for row in self.history]
        text = "\n".join([",".join(self.history[0]), *lines, ""])
        write_atomic(self.folder / "log.csv", text.encode())
        self.save()
        losses = ", ".join(f"{name} {mean:.3g}" for name, mean in means.items())
        left = (self.settings.epochs - self.epoch) * self.train_seconds / self.epoch / 60
        speed = self.images / max(self.train_seconds, 1e-9)
        self.bar.set_postfix_str(losses)
        if self.bar.disable:  # stderr is a file: a line an epoch
            say(f"epoch {self.epoch}, {speed:.0f} images/s, {left:.0f} min left, {losses}")

    def _refuse_nan(self, values):
        """`UserError` where a loss or a weight is not finite. values: losses [steps, names]."""
        broken = []
        for row, column in (~values.isfinite()).nonzero().tolist():
            step = self.step - len(values) + row + 1
            broken.append(f"the loss '{self.names[column]}' is not finite at step {step}")
        for name, thing in self.tracked.items():
            weights = thing.state_dict().values() if isinstance(thing, nn.Module) else ()
            if not all(weight.isfinite().all() for weight in weights):
                broken.append(f"a weight of '{name}' is not finite at step {self.step}")
        if broken:
            kept = f"{self.folder} keeps epoch {self.epoch}" if self.epoch else "nothing is saved"
            raise UserError(f"training broke: {broken[0]}; try a lower rate in a new run; {kept}")

    def finish(self, metrics, table=()):
        """Write metrics (name -> number), losses.png, checkpoint; print `table`; free the lock."""
        from experiments import command_line, run_folder

        seconds = round(self.seconds + time.time() - self.started, 1)
        speed = round(self.images / max(self.train_seconds, 1e-9))
        if self.history:  # none where nothing was trained
            run_folder.figure_losses(self.folder / "losses.png", self.history)
        more = {"epochs": self.epoch, "seconds": seconds, "images_per_second": speed}
        self.save()  # the networks as scored, before metrics.json says that the run is finished
        write_atomic(self.folder / "metrics.json", json.dumps(metrics | more, indent=1).encode())
        self.save(finished=True)  # last: without optimisers it could not be resumed
        command_line.print_table(table, metrics)
        say(f"{seconds:.0f} s, {speed} images/s; all of it is in {self.folder}")
        self.lock.release()


def load(folder, recipe, build, device="cpu"):
    """The trained networks of a finished run, in eval mode. recipe, build: of its script."""
    from experiments import run_folder

    return run_folder.load(folder, recipe, build, device)


# ---- Figures -------------------------------------------------------------------------------------
def tile(images, columns, left=(), top=()):
    """Images [N, C, H, W], bytes or floats, cut to [0, 1], C 1 or 3, row by row as one picture on
    white, float [height, width, 3].

    left, top: one more image before each row, above each column, set apart by a wider gap."""
    h, w = images.shape[2:]
    x0, y0 = w + 5 if len(left) else 0, h + 5 if len(top) else 0
    rows = math.ceil(len(images) / columns)
    picture = torch.ones(y0 + rows * (h + 1) - 1, x0 + columns * (w + 1) - 1, 3)
    places = [(y0 + n // columns * (h + 1), x0 + n % columns * (w + 1)) for n in range(len(images))]
    cells = list(zip(images, places))
    cells += [(image, (y0 + n * (h + 1), 0)) for n, image in enumerate(left)]
    cells += [(image, (0, x0 + n * (w + 1))) for n, image in enumerate(top)]
    for image, (y, x) in cells:
        image = to_float(image.detach()).cpu().clamp(0, 1)
        picture[y : y + h, x : x + w] = image.permute(1, 2, 0)
    return picture


def save_figure(figure, path):
    """Write a figure of matplotlib as PNG; in a run folder with a caption that names the run."""
    from experiments.run_folder import caption

    figure.text(0.995, 0.005, caption(Path(path).parent), ha="right", fontsize=6, color="grey")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_atomic(Path(path), buffer.getvalue())


def figure_grid(path, images, columns, title, x_label="", y_label="", **sides):
    """tile(images, columns, **sides) as PNG: title and x_label stand above, y_label on the left."""
    picture = tile(images, columns, **sides)
    h, w = picture.shape[0] / 50, picture.shape[1] / 50  # inches: two dots a pixel, 100 an inch
    width, height = max(w, 4.2) + 0.35, h + (0.75 if x_label else 0.55)  # 0.15 for the caption
    figure = Figure(figsize=(width, height), dpi=100)
    place = 0.35 / width, 0.15 / height, w / width, h / height
    axes = figure.add_axes(place, xticks=[], yticks=[], frame_on=False)
    axes.imshow(picture.numpy(), interpolation="nearest", aspect="auto")
    axes.xaxis.set_label_position("top")
    axes.set(xlabel=x_label, ylabel=y_label)
    figure.suptitle(title, fontsize=10, y=1 - 0.08 / height, va="top")
    save_figure(figure, path)
