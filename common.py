"""What the four scripts share: data, pairs, settings, a run, figures. No network, no loss.

A data set is a `Split` of uint8 images [N, C, H, W]; a batch is an index into it; `to_float` maps
bytes to [0, 1]. A mistake by the user raises `UserError`, which `run_main` prints as one line.
"""

import argparse
import contextlib
import csv
import dataclasses
import difflib
import functools
import inspect
import io
import json
import math
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Optional, get_args, get_origin, get_type_hints

import matplotlib

matplotlib.use("Agg")  # figures go into files
os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")  # torch reads it at import

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

HERE = Path(__file__).resolve().parent


class UserError(Exception):
    """A mistake that the user can mend. Its text is the one line that is shown."""


# --------------------------------------------------------------------------------------------
# Data


class Split(NamedTuple):
    """Part of a data set. Sprites have attributes and a pose, the others have `None` there."""

    x: torch.Tensor  # images, uint8 [N, C, H, W]
    y: torch.Tensor  # class of each image, int64 [N]
    attributes: Optional[torch.Tensor] = None  # int64 [N, 7]
    pose: Optional[torch.Tensor] = None  # float32 [N, 6] in [-1, 1]

    def to(self, device):
        return Split(*(None if t is None else t.to(device) for t in self))

    def take(self, index):
        return Split(*(None if t is None else t[index] for t in self))

    def one_hot_labels(self):
        """float [N, labels]: the class of ten, or the seven attributes side by side (23)."""
        if self.attributes is None:
            return F.one_hot(self.y, 10).float()
        from data.sprites import ATTRIBUTE_SIZES

        columns = zip(self.attributes.t(), ATTRIBUTE_SIZES)
        return torch.cat([F.one_hot(column, size) for column, size in columns], 1).float()


GREY = ("mnist", "fashion", "kmnist")  # 28 x 28 pixels
COLOUR = ("sprites", "svhn", "cifar10")  # 3 x 32 x 32
DATASETS = (*GREY, *COLOUR)


def to_float(x):
    """Images uint8 [0, 255] to float32 [0, 1]; floats stay as they are."""
    return x.float() / 255 if x.dtype == torch.uint8 else x


def load_dataset(name, root=None, validation=False):
    """Training and test `Split`. mnist is embedded, sprites are drawn; for the others torchvision
    finds the files in `root` (the repository's data/) or downloads them.

    validation: hold out part of the training set and return it as the test set (the last 10,000
    images, at most a sixth; of the sprites 72 characters).
    """
    root = Path(root or HERE / "data")
    if name == "sprites":
        from data.sprites import sprites

        parts = ("train", "validation" if validation else "test")
        return tuple(Split(*sprites(part)) for part in parts)
    if name not in DATASETS:
        raise UserError(f"unknown data set '{name}': choose one of {', '.join(DATASETS)}")
    from data import files

    read = files.mnist if name == "mnist" else files.by_torchvision
    train, test = (Split(*read(name, root, part)) for part in ("train", "test"))
    if validation:
        held_out = min(10_000, len(train.y) // 6)
        index = torch.arange(len(train.y))
        train, test = train.take(index[:-held_out]), train.take(index[-held_out:])
    return train, test


def load_data(settings):
    """Training and test `Split` for the settings of a run, on its device. A dry run has 1,024 and
    512 images."""
    train, test = load_dataset(settings.dataset, settings.data, settings.validation)
    if settings.dry_run:
        train, test = train.take(slice(1024)), test.take(slice(512))
    device = choose_device(settings.device)
    return train.to(device), test.to(device)


def image_parts(images, count=20_000, size=500):
    """The first `count` images as floats, in nearly equal parts of at most `size`: none has a
    single image, which batch norm refuses."""
    images = images[:count]
    return [to_float(part) for part in images.tensor_split(math.ceil(len(images) / size))]


def pair_same_class(y):
    """Random pairs of different images of one class: int64 [P, 2], shuffled.

    y: labels int64 [N]. Every image is in a pair, and in one only, but for the last of a class of
    odd size, whose partner is in two. `UserError` names a class with a single image.
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
    partner = order[start + (rank + 1) % size]
    pairs = torch.stack([order, partner], 1)[rank % 2 == 0]
    return pairs[torch.randperm(len(pairs))]


# --------------------------------------------------------------------------------------------
# Settings: a dataclass, whose fields are the flags and whose comments are their help

Count = Annotated[int, 1, 10**9]  # a type, its smallest and its largest value
Whole = Annotated[int, 0, 2**31]
Weight = Annotated[float, 0, 1e9]
Rate = Annotated[float, 1e-12, 1e3]
Share = Annotated[float, 0, 1]
Beta = Annotated[float, 0, 0.9999]
Batch = Annotated[int, 3, 10**9]  # in equal parts of an epoch none is then alone in batch norm
Size = Annotated[float, 0, 1e3]


@dataclasses.dataclass
class RunSettings:
    """Settings that all scripts have; each adds its own."""

    dataset: str = "mnist"  # mnist and sprites need no network; fashion, kmnist, svhn, cifar10
    epochs: Count = 50  # passes over the training images
    seed: Whole = 0  # of weights, batches and noise: same seed, same run, bit for bit on one CPU
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # auto: a GPU where there is one
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 on CPUs that multiply it
    data: str = ""  # folder of the data files (empty: the repository's data/)
    out: str = ""  # run folder (empty: runs/SCRIPT/NAME-seedN, numbered where that is taken)
    validation: bool = False  # score on a held-out part of the training set, for tuning
    dry_run: bool = False  # every line of the script on a few images; the numbers mean nothing
    resume: str = ""  # run folder to go on with, by the settings it has


@functools.cache
def field_comments(kind):
    """The comment of each field of a dataclass, read from its source: {name: words}."""
    found = {}
    for cls in reversed(kind.__mro__[:-1]):
        found.update(re.findall(r"^    (\w+): [^#]*#\s*(.*)$", inspect.getsource(cls), re.M))
    return found


def value_parser(hint):
    """A function from a flag's text to a checked value of this type."""
    if get_origin(hint) is not Annotated:
        return str
    kind, low, high = get_args(hint)

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:  # false for nan, too
            words = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"'{text}' is not {words} from {low:g} to {high:g}")
        return value

    return parse


class Parser(argparse.ArgumentParser):
    """argparse, but a wrong flag ends in one line that names the nearest right one."""

    def error(self, message):
        unknown = re.match(r"unrecognized arguments: (--[\w-]+)", message)
        if unknown:
            near = difflib.get_close_matches(unknown[1], self._option_string_actions, 1)
            message = f"there is no {unknown[1]} here" + (
                f"; did you mean {near[0]}?" if near else ""
            )
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


def make_parser(settings):
    """The flags of a dataclass instance: a flag a field, the instance's values as defaults. A field
    that is None has no flag."""
    doc = sys.modules["__main__"].__doc__ or ""
    parser = Parser(description=doc.split("\n\n")[0], allow_abbrev=False)
    comments, hints = (
        field_comments(type(settings)),
        get_type_hints(type(settings), include_extras=True),
    )
    for name, hint in hints.items():
        default = getattr(settings, name)
        if default is None:  # these settings do not have it
            continue
        words = {"help": f"{comments[name]} [{default}]".replace("%", "%%"), "default": default}
        if hint is bool:
            words["action"] = "store_true"
        elif get_origin(hint) is Literal:
            words["choices"] = get_args(hint)
        else:
            words["type"] = value_parser(hint)
        parser.add_argument(f"--{name.replace('_', '-')}", **words)
    return parser


def parse(recipe, words):
    """Settings from a command line's words: `recipe` gives an instance by the flags in its
    signature, the other flags change it. With --resume all come from that folder's config.json."""
    first = Parser(add_help=False, allow_abbrev=False)
    names = list(inspect.signature(recipe).parameters)
    for name in ["resume", *names]:
        first.add_argument(f"--{name}")
    chosen = {k: v for k, v in vars(first.parse_known_args(words)[0]).items() if v is not None}
    folder = chosen.pop("resume", "")
    if not folder:
        settings = recipe(**chosen)
        settings = dataclasses.replace(settings, **vars(make_parser(settings).parse_args(words)))
        settings.epochs = min(settings.epochs, 2) if settings.dry_run else settings.epochs
        return settings
    given = [word.split("=")[0] for word in words if word.startswith("--")]
    if set(given) - {"--resume", "--device"}:
        raise UserError("beside --resume only --device may stand: the folder has the settings")
    config = read_config(folder)
    saved = {**config["settings"], "precision": config.get("precision", "auto")}
    try:
        settings = dataclasses.replace(recipe(**{name: saved[name] for name in names}), **saved)
    except (TypeError, KeyError):
        raise UserError(f"'{folder}' is of another version: its config.json names the commit")
    return dataclasses.replace(settings, **vars(make_parser(settings).parse_args(words)))


def run_main(main, recipe):
    """Read the flags and call main(settings)."""
    exit_on_mistake(lambda: main(parse(recipe, sys.argv[1:])))


def exit_on_mistake(call):
    """Call; a mistake by the user ends in one line on stderr and exit status 2."""
    try:
        return call()
    except UserError as error:
        words, status = error, 2
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # nothing is flushed into the closed pipe at exit
        words, status = "stdout was closed: the table is not printed", 1
    except KeyboardInterrupt:
        words, status = "stopped; --resume RUN goes on from the last whole epoch", 130
    print(f"{Path(sys.argv[0]).name}: {words}", file=sys.stderr)
    sys.exit(status)


# --------------------------------------------------------------------------------------------
# A run


def choose_device(name):
    """torch.device for `--device`; `UserError` where it is absent."""
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next((kind for kind in present if present[kind]), "cpu")
    if not present.get(name, name == "cpu"):
        raise UserError(f"no {name} device on this machine: leave --device out")
    return torch.device(name)


def choose_precision(name, device):
    """'fp32' or 'bf16' for `--precision`. auto: bf16 on a CPU that multiplies it, else fp32 (small
    networks on a GPU wait for launches, of which bf16 has more)."""
    if name != "auto":
        return name
    features = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
    return "bf16" if features.get("avx512_bf16") or features.get("amx_tile") else "fp32"


def write_atomic(path, content):
    """Write bytes so that a kill at any moment leaves the old file or the new one."""
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()  # what fitted must not keep a full disk full
        raise UserError(f"cannot write '{path}' ({error.strerror}); what was saved before is kept")


def read_config(folder):
    """config.json of a run folder; `UserError` where it is missing or damaged."""
    try:
        config = json.loads((Path(folder) / "config.json").read_text())
        return {**config, "script": str(config["script"]), "settings": dict(config["settings"])}
    except OSError as error:
        raise UserError(f"'{folder}' is no run folder: config.json: {error.strerror}")
    except (ValueError, KeyError, TypeError):
        raise UserError(f"'{folder}/config.json' is damaged")


def read_checkpoint(folder, device="cpu", finished=False):
    """checkpoint.pt of a run folder, a dict. finished: `UserError` where the run is not."""
    path = Path(folder) / "checkpoint.pt"
    if finished and not (Path(folder) / "metrics.json").exists():
        raise UserError(f"the run in '{folder}' is not finished: go on with --resume {folder}")
    try:
        saved = torch.load(path, map_location=device, weights_only=True)
        return {key: saved[key] for key in ("states", "rng", *Run.COUNTERS)}
    except (FileNotFoundError, PermissionError) as error:
        raise UserError(f"cannot read '{path}' ({error.strerror})")
    except Exception as error:  # zip and pickle fail in many ways
        raise UserError(
            f"'{path}' is damaged ({type(error).__name__}): start again in a new folder"
        )


def hardware(device):
    """The processor in words: 'NAME, AVX2, 2 threads', with the vector instructions in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(": ")[1] for line in lines if line.startswith("model name")), name)
    if device.type == "mps":
        return f"{name}, GPU"
    vectors = torch.backends.cpu.get_cpu_capability()
    return f"{name}, {vectors}, {torch.get_num_threads()} threads"


def commit():
    """Short hash of the repository's commit, '+' behind it where code or data changed since."""
    git = ["git", "-C", str(HERE)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        )
        status = [*git, "status", "--porcelain", "-uno", "--", "*.py", "data"]
        changed = subprocess.run(status, capture_output=True, text=True).stdout.strip()
    except OSError:
        return "unknown"
    return head.stdout.strip() + ("+" if changed else "") if head.returncode == 0 else "unknown"


def get_rng():
    """State of torch's generators, from which all random numbers here come."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    return {"cpu": torch.get_rng_state(), "cuda": cuda, "mps": mps}


def set_rng(state):
    torch.set_rng_state(state["cpu"].cpu())
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
    if torch.backends.mps.is_available() and state["mps"] is not None:
        torch.mps.set_rng_state(state["mps"].cpu())


def say(words):
    """A line on stderr, with the script's name before it."""
    print(f"{Path(sys.argv[0]).stem}: {words}", file=sys.stderr, flush=True)


class Run:
    """Bookkeeping of one training: folder, seed, progress, log, checkpoint, resume.

    run = Run("mathieu", settings)
    run.track(nets=nets, optimiser=optimiser)  # restored here when the run is resumed
    for epoch in run.epochs():  # saves after each
        for index in run.batches(order, size):
            ...
            run.log(loss=loss)  # tensors, read from the device once an epoch
    run.finish(metrics, table)
    """

    COUNTERS = ("epoch", "step", "images", "seconds", "train_seconds", "history")

    def __init__(self, script, settings, name=None):
        """name: of the folder in runs/SCRIPT where no --out is given; the data set's by default."""
        self.script, self.settings = script, settings
        self.device = choose_device(settings.device)
        self.precision = choose_precision(settings.precision, self.device)
        self.epoch, self.step, self.images, self.seconds, self.train_seconds = 0, 0, 0, 0.0, 0.0
        self.history, self.rows, self.tracked, self.saved = [], [], {}, None
        self.progress = 0.0  # share of the run's steps that are done, with the one under way
        self.started = time.time()
        torch.manual_seed(settings.seed)
        if settings.resume:
            self._open(Path(settings.resume))
        else:
            name = (
                "dry-run" if settings.dry_run else f"{name or settings.dataset}-seed{settings.seed}"
            )
            self._create(Path("runs", script, name))
        say(f"{self.device}, {self.precision}, into {self.folder}")

    # -- the folder

    def _open(self, folder):
        self.folder = folder
        script = read_config(folder)["script"]
        if script != self.script:
            raise UserError(f"'{folder}' is a run of {script}, not of {self.script}")
        if (folder / "metrics.json").exists():
            raise UserError(
                f"already finished: {folder}; python -m experiments.score scores it again"
            )
        self._lock()
        if (folder / "checkpoint.pt").exists():  # else it was cut off in its first epoch
            self.saved = read_checkpoint(folder, self.device)
            say(f"resumed at epoch {self.saved['epoch']} of {self.settings.epochs}")

    def _create(self, stem):
        out, number = self.settings.out, 1
        self.folder = Path(out or stem)
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            while True:  # until a name is free; another run may take one at the same moment
                try:
                    self.folder.mkdir(exist_ok=bool(out))
                    break
                except FileExistsError:
                    if out:
                        raise
                    number += 1
                    self.folder = stem.with_name(f"{stem.name}-{number}")
            # What a run leaves that was cut off in its first epoch may be overwritten.
            files = {file.name for file in self.folder.iterdir()} - {"lock", "config.json.part"}
            if files and (files != {"config.json"} or not read_config(self.folder)):
                raise UserError(f"'{out}' is not empty: choose another --out, or --resume {out}")
            self._lock()
        except OSError as error:
            raise UserError(
                f"cannot write to '{self.folder}' ({error.strerror}): choose another --out"
            )
        settings = dataclasses.asdict(self.settings)
        config = {
            "script": self.script,
            "settings": {k: v for k, v in settings.items() if k not in ("resume", "out", "device")},
            "precision": self.precision,
            "command": " ".join(["python", *sys.orig_argv[1:]]),
            "device": self.device.type,
            "hardware": hardware(self.device),
            "commit": commit(),
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
        }
        self.write("config.json", json.dumps(config, indent=1))

    def _lock(self):
        """A run folder belongs to one process at a time (not enforced where there is no fcntl)."""
        try:
            self.lock = open(self.folder / "lock", "a")
        except OSError as error:
            raise UserError(f"cannot write to '{self.folder}' ({error.strerror})")
        with contextlib.suppress(ImportError):
            import fcntl

            try:
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"another process is at work in '{self.folder}'")

    def write(self, name, text):
        write_atomic(self.folder / name, text.encode())

    # -- checkpoints

    def track(self, **objects):
        """Name what has a `state_dict`: saved in every checkpoint, restored when resumed."""
        self.tracked.update(objects)
        for name, thing in objects.items() if self.saved else ():
            try:
                thing.load_state_dict(self.saved["states"][name])
            except (KeyError, RuntimeError, ValueError):
                raise UserError(f"the checkpoint in '{self.folder}' is of another version")

    def save(self, finished=False):
        """Write checkpoint.pt; of a finished run without the optimisers."""
        kept = {k: v for k, v in self.tracked.items() if isinstance(v, nn.Module) or not finished}
        state = {"states": {name: thing.state_dict() for name, thing in kept.items()}}
        state.update({key: getattr(self, key) for key in self.COUNTERS}, rng=get_rng())
        state["seconds"] += time.time() - self.started
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomic(self.folder / "checkpoint.pt", buffer.getvalue())

    # -- the loop

    def autocast(self):
        """Context in which convolutions and matrix products have this run's precision."""
        bf16 = self.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=bf16, cache_enabled=False)

    def epochs(self):
        """Yields the epochs that are left, from 0. After each: log.csv, checkpoint.pt."""
        if self.saved:
            for key in self.COUNTERS:
                setattr(self, key, self.saved[key])
            set_rng(self.saved["rng"])
        self.bar = tqdm(desc=self.script, unit=" images", unit_scale=True, disable=None)
        with self.bar:
            while self.epoch < self.settings.epochs:
                begun = time.time()
                yield self.epoch
                self._close_epoch(begun)

    def batches(self, index, size):
        """Yields an epoch's index [N, ...] in the order given, in nearly equal parts of at most
        `size` rows. Draw it inside the epoch: a resumed run draws it again."""
        parts = index.to(self.device).tensor_split(math.ceil(len(index) / size))
        self.bar.total = self.settings.epochs * index.numel()
        self.bar.initial = self.bar.n = self.bar.n or self.epoch * index.numel()
        for done, part in enumerate(parts, 1):
            self.step += 1
            self.progress = (self.epoch + done / len(parts)) / self.settings.epochs
            yield part
            self.images += part.numel()
            self.bar.update(part.numel())

    def log(self, **losses):
        """Record a step's losses, scalar tensors, without waiting for the device."""
        self.names = list(losses)
        self.rows.append(torch.stack([loss.detach().float() for loss in losses.values()]))

    def _close_epoch(self, begun):
        values = torch.stack(self.rows).cpu()
        for row, column in (~values.isfinite()).nonzero().tolist():
            step = self.step - len(values) + row + 1
            self._broke(f"the loss '{self.names[column]}' is not finite at step {step}")
        for name, thing in self.tracked.items():
            if isinstance(thing, nn.Module) and not all(
                t.isfinite().all() for t in thing.state_dict().values()
            ):
                self._broke(f"a weight of '{name}' is not finite at step {self.step}")
        self.rows, self.epoch = [], self.epoch + 1
        self.train_seconds += time.time() - begun
        self.history.append({"epoch": self.epoch, **dict(zip(self.names, values.mean(0).tolist()))})
        text = io.StringIO()
        table = csv.DictWriter(text, self.history[-1])
        table.writeheader()
        table.writerows(self.history)
        self.write("log.csv", text.getvalue())
        self.save()
        losses = ", ".join(f"{k} {v:.3g}" for k, v in list(self.history[-1].items())[1:])
        left = (self.settings.epochs - self.epoch) * self.train_seconds / self.epoch / 60
        speed = self.images / self.train_seconds
        self.bar.set_postfix_str(losses)
        if self.bar.disable:  # stderr is a file: a line an epoch
            say(f"epoch {self.epoch}, {speed:.0f} images/s, {left:.0f} min left, {losses}")

    def _broke(self, words):
        kept = (
            f"--resume {self.folder} goes on from epoch {self.epoch}"
            if self.epoch
            else "nothing was saved yet"
        )
        raise UserError(f"training broke: {words}; try a lower rate in a new run; {kept}")

    def finish(self, metrics, table=()):
        """Write metrics.json (name -> number) and the last checkpoint; print the table.

        table: rows (words, name of the metric, the paper's value, what to compare it with)."""
        seconds = self.seconds + time.time() - self.started
        speed = self.images / max(self.train_seconds, 1e-9)
        if self.history:  # none where nothing was trained
            figure_losses(self.folder / "losses.png", self.history)
        more = {
            "epochs": self.epoch,
            "seconds": round(seconds, 1),
            "images_per_second": round(speed),
        }
        self.write("metrics.json", json.dumps({**metrics, **more}, indent=1))
        self.save(finished=True)  # last: without optimisers it could not be resumed
        print_table(table, metrics)
        sys.stdout.flush()
        say(f"{seconds:.0f} s, {speed:.0f} images/s; all of it is in {self.folder}")


def print_table(table, metrics):
    """On stdout: rows (words, name of the metric, the paper's value, what to compare with)."""
    lines = [("score", "this run", "paper", "to compare")]
    for words, name, paper, compare in table:
        lines.append((words, f"{metrics[name]:.4g}", paper, compare))
    widths = [max(len(line[k]) for line in lines) for k in range(4)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())


# --------------------------------------------------------------------------------------------
# After the training


@torch.no_grad()
def settle_batch_norm(net, batches):
    """Batch norm's averages anew: the plain mean over `batches`, each the inputs of one call. Those
    of the training lag behind the weights. Leaves the network in eval mode."""
    norms = [m for m in net.eval().modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean
        norm.train()
    for inputs in batches if norms else ():
        net(*inputs)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
    net.eval()


@contextlib.contextmanager
def own_random_numbers(seed=None):
    """What is drawn inside changes nothing outside. seed: draw from it; None: go on as outside."""
    state = get_rng()
    if seed is not None:
        torch.manual_seed(seed)
    try:
        yield
    finally:
        set_rng(state)


# --------------------------------------------------------------------------------------------
# Figures


def tile(images, columns, left=None, top=None):
    """Images [N, C, H, W] row by row as one picture float [h, w, 3] on white.

    left, top: one more image before each row, above each column, set apart by a wider gap."""
    n, _, h, w = images.shape
    rows = math.ceil(n / columns)
    x0 = 0 if left is None else w + 5
    y0 = 0 if top is None else h + 5
    picture = torch.ones(y0 + rows * (h + 1) - 1, x0 + columns * (w + 1) - 1, 3)

    def paste(image, y, x):
        image = to_float(image.detach()).float().cpu().clamp(0, 1)
        picture[y : y + h, x : x + w] = image.permute(1, 2, 0).expand(h, w, 3)

    for number, image in enumerate(images):
        paste(image, y0 + number // columns * (h + 1), x0 + number % columns * (w + 1))
    for row, image in enumerate(left if left is not None else ()):
        paste(image, y0 + row * (h + 1), 0)
    for column, image in enumerate(top if top is not None else ()):
        paste(image, 0, x0 + column * (w + 1))
    return picture


def save_figure(figure, path):
    """Write a figure of matplotlib as PNG and close it."""
    buffer = io.BytesIO()
    figure.savefig(buffer)
    plt.close(figure)
    write_atomic(Path(path), buffer.getvalue())


def figure_grid(path, images, columns, title, x_label="", y_label="", **sides):
    """A grid of images [N, C, H, W] as PNG, with words beside it; sides: left, top of `tile`."""
    picture = tile(images, columns, **sides)
    h, w = picture.shape[0] / 50, picture.shape[1] / 50  # inches: two dots a pixel, 100 an inch
    width, height = max(w, 4.2) + 0.35, h + 0.6
    figure = plt.figure(figsize=(width, height), dpi=100)
    axes = figure.add_axes((0.35 / width, 0, w / width, h / height))
    axes.imshow(picture.numpy(), interpolation="nearest", aspect="auto")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.xaxis.set_label_position("top")
    axes.set_xlabel(x_label, fontsize=9)
    axes.set_ylabel(y_label, fontsize=9)
    figure.suptitle(title, fontsize=10, y=1 - 0.08 / height, va="top")
    save_figure(figure, path)


def figure_losses(path, history):
    """Every column of log.csv over the epochs as PNG, a panel each."""
    names = [name for name in history[0] if name != "epoch"]
    figure, panels = plt.subplots(2, math.ceil(len(names) / 2), figsize=(10, 5), squeeze=False)
    for name, axes in zip(names, panels.flat):
        axes.plot([row["epoch"] for row in history], [row[name] for row in history], marker=".")
        axes.set_title(name, fontsize=9)
        axes.grid(alpha=0.3)
    for axes in panels.flat[len(names) :]:
        axes.axis("off")
    figure.supxlabel("epoch")
    figure.tight_layout()
    save_figure(figure, path)


def figure_scatter(path, points, y, title, outline=(), marks=None):
    """Points [N, 2] as PNG, a colour for each class y [N]. outline: curves [n, 2]; marks: crosses
    [K, 2]."""
    figure, axes = plt.subplots(figsize=(5.4, 4.8), dpi=100)
    points, y = points.cpu(), y.cpu()
    style = {"markersize": 2.5, "alpha": 0.6, "zorder": 1, "markeredgewidth": 0}
    for label in y.unique().tolist():
        axes.plot(*points[y == label].t(), ".", color=f"C{label}", label=str(label), **style)
    for curve in outline:
        axes.plot(*curve.cpu().t(), color=".25", linewidth=0.8, zorder=2)
    if marks is not None:
        axes.plot(*marks.cpu().t(), "kx", markersize=7, zorder=3)
    axes.set_aspect("equal")
    place = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
    axes.legend(markerscale=5, fontsize=8, frameon=False, **place)
    axes.set_title(title, fontsize=10)
    figure.tight_layout()
    save_figure(figure, path)
