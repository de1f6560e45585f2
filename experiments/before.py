"""What aae.py and infogan.py need until they are rewritten: the old command line, run and
figures. Data and scores are those of common.py and experiments/scores.py, by the same names."""

import argparse
import contextlib
import csv
import hashlib
import io
import json
import math
import os
import platform
import random
import signal
import sys
import time
from pathlib import Path

from common import (  # noqa: F401
    DATASETS,
    HERE,
    Split,
    UserError,
    choose_device,
    choose_precision,
    commit,
    hardware,
    load_dataset,
    to_float,
)
from experiments.scores import (  # noqa: F401
    chance_error,
    cluster_error,
    k_means,
    load_judge,
    match_clusters,
    name_clusters,
    nearest,
    nn_error,
    normalized_mutual_information,
    parzen_log_likelihood,
    probe,
)

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

TORCHVISION = tuple(name for name in DATASETS if name not in ("mnist", "sprites"))


def exists(path, flag):
    """Whether there is such a file; `UserError` where one cannot look (a folder closed to us, a name too long)."""
    try:
        return path.exists()
    except OSError as error:
        raise UserError(f"cannot look at '{path}' ({error.strerror}): choose another {flag}")


# ------------------------------------------------------------------------------------------------------------ runs


def _number(kind, low, high, words):
    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:  # NaN fails this too
            raise argparse.ArgumentTypeError(f"'{text}' is not {words}")
        return value

    return parse


count = _number(int, 1, 10**9, "a whole number of at least 1")
whole = _number(int, 0, 10**9, "a whole number of at least 0")
weight = _number(float, 0, 1e9, "a number of at least 0")
positive = _number(float, 1e-12, 1e9, "a number above 0")
fraction = _number(float, 0, 1, "a number from 0 to 1")
below_one = _number(float, 0, 0.9999, "a number from 0 to below 1")


class Parser(argparse.ArgumentParser):
    """The flags all scripts share; a wrong flag ends with one line and exit status 2."""

    def __init__(self, description, dataset="mnist", epochs=50, batch_size=256):
        super().__init__(
            description=description,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
            allow_abbrev=False,
        )
        add = self.add_argument
        add(
            "--dataset",
            default=dataset,
            help=f"one of {', '.join(DATASETS)}; mnist and sprites need no network",
        )
        add("--epochs", type=count, default=epochs, help="passes over the training images")
        add("--batch-size", type=count, default=batch_size, help="images in a step")
        add(
            "--seed",
            type=_number(int, 0, 2**31, "a whole number of at least 0"),
            default=0,
            help="seeds weights, batches and noise; on one CPU, with the same threads, precision and versions, the same seed gives the same run bit for bit",
        )
        add(
            "--device",
            choices=("auto", "cpu", "cuda", "mps"),
            default="auto",
            help="auto takes the GPU where there is one",
        )
        add(
            "--precision",
            choices=("auto", "fp32", "bf16"),
            default="auto",
            help="of convolutions and matrix products; auto is bf16 on CPUs that multiply it (AVX512-BF16 or AMX), else fp32; on other CPUs bf16 is emulated, "
            "many times slower, and on a GPU these small networks wait for launches, of which bf16 has more; fp32 is as torch has it, on CUDA with convolutions "
            "in TF32",
        )
        add(
            "--data",
            default=None,
            metavar="DIR",
            help="folder of the data files; None is the repository's data/",
        )
        add(
            "--out",
            default=None,
            metavar="DIR",
            help="run folder; None is runs/SCRIPT/NAME-seedN, with a number where taken",
        )
        add(
            "--resume",
            action="store_true",
            help="go on with the run in --out, or with the latest run of these settings",
        )
        add(
            "--dry-run",
            action="store_true",
            help="every line of the script, on a few images, in seconds; the numbers mean nothing",
        )
        add(
            "--validation",
            action="store_true",
            help="score on a part of the training set that is held out: for tuning",
        )

    def error(self, message):
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


FREE_ON_RESUME = ("resume", "out", "device")  # settings that do not change what is computed


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
    except OSError:  # a full disk: what fitted must not keep it full
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
        raise UserError(
            f"cannot read '{folder}/config.json' ({error.strerror}): choose another --out"
        )
    except (ValueError, KeyError, TypeError):
        raise UserError(f"'{folder}/config.json' is damaged: choose another --out")


def read_checkpoint(folder, script, device="cpu", finished=False):
    """The checkpoint of a run folder as a dict; `UserError` where it is missing, damaged or another script's.

    finished: also where the run is not, for networks that are averaged, or whose batch norm is settled, after the last epoch."""
    path = Path(folder) / "checkpoint.pt"
    if not path.exists():
        raise UserError(
            f"no checkpoint in '{folder}': nothing was saved there yet; start without --resume in a new folder"
        )
    choose_device(torch.device(device).type)  # absent is not damaged
    try:
        path.open("rb").close()
    except OSError as error:
        raise UserError(f"cannot read '{path}' ({error.strerror})")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        owner = state["script"]
        if not {"states", "epoch", "history"} <= set(state):
            raise KeyError("states")
    except Exception as error:  # a damaged file fails in many ways inside zip and pickle
        raise UserError(
            f"'{path}' is damaged ({type(error).__name__}): start again in a new folder"
        )
    if owner != script:
        raise UserError(f"'{path}' was written by {owner}.py, not by {script}.py")
    if finished and not (Path(folder) / "metrics.json").exists():
        raise UserError(
            f"the run in '{folder}' is not finished (no metrics.json): its networks are settled at the end; go on with it by --resume"
        )
    return state


@contextlib.contextmanager
def same_version(run_dir):
    """Turns what goes wrong when networks are built by another version's settings, or filled with its weights, into a `UserError`."""
    try:
        yield
    except (AttributeError, KeyError, RuntimeError) as error:
        raise UserError(
            f"the run in '{run_dir}' is of another version of its script ({str(error).splitlines()[0]}): its config.json names the commit"
        )


def settings_of(options, precision):
    """What makes a run this run, for its config.json: all options but those of FREE_ON_RESUME."""
    return {
        **{key: value for key, value in vars(options).items() if key not in FREE_ON_RESUME},
        "precision": precision,
    }


def find_run(script, options, name):
    """The folder in runs/SCRIPT of a run with these settings, a finished one if there is any, or None."""
    settings = settings_of(
        options, choose_precision(options.precision, choose_device(options.device))
    )
    found = []
    for folder in sorted(
        (Path("runs") / script).glob(
            f"{name}-seed{options.seed}*" if not options.dry_run else "dry-run*"
        )
    ):
        with contextlib.suppress(UserError):  # a damaged neighbour is no reason to stop
            if read_config(folder)["settings"] == settings:
                found.append(folder)
    return next(
        (folder for folder in found if (folder / "metrics.json").exists()),
        found[0] if found else None,
    )


def code_checksum(script):
    """Of SCRIPT.py and this file as they are: whether a run that was cut off goes on by the same code."""
    return hashlib.sha256(
        b"".join(
            path.read_bytes()
            for path in (HERE / f"{script}.py", HERE / "experiments" / "before.py")
            if path.exists()
        )
    ).hexdigest()[:16]


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
        self.seconds_before, self.train_seconds, self.images = 0.0, 0.0, 0
        self.rows, self.names, self.middle, self.stop = [], None, None, False
        self.started = time.time()
        random.seed(options.seed)
        np.random.seed(options.seed)
        torch.manual_seed(options.seed)
        begun = (
            options.resume and (self.folder / "checkpoint.pt").exists()
        )  # stopped before the first checkpoint: from the start
        self.saved = read_checkpoint(self.folder, script) if begun else None
        if not begun:
            self._create(settings)
        elif read_config(self.folder).get("code") != code_checksum(script):
            print(
                f"{script}: {script}.py or experiments/before.py has changed since this run began: what it learned so far is of the older code",
                file=sys.stderr,
            )
        print(
            f"{script}: {settings}\n{script}: {self.device}, {self.precision}, into {self.folder}",
            file=sys.stderr,
        )

    # -- the folder

    def _choose_folder(self, settings):
        script, options = self.script, self.options
        same = lambda folder: read_config(folder)["settings"] == settings  # noqa: E731
        if options.out is not None:
            folder = Path(options.out)
            if exists(folder, "--out") and not folder.is_dir():
                raise UserError(f"--out '{folder}' is a file, not a folder")
            try:
                used = folder.is_dir() and any(
                    file.suffix != ".part" for file in folder.iterdir()
                )  # .part: killed in its first write
            except OSError as error:
                raise UserError(
                    f"cannot look into '{folder}' ({error.strerror}): choose another --out"
                )
            if used:
                if read_config(folder)["script"] != script:
                    raise UserError(
                        f"--out '{folder}' holds a run of {read_config(folder)['script']}.py"
                    )
                if not same(folder):
                    old, absent = read_config(folder)["settings"], object()
                    key = next(
                        k
                        for k in {**old, **settings}
                        if old.get(k, absent) != settings.get(k, absent)
                    )
                    raise UserError(
                        f"--out '{folder}' holds a run with other settings ({key} is {old.get(key)} there, "
                        f"{settings.get(key)} here): choose another folder"
                    )
                if not options.resume:
                    raise UserError(
                        f"--out '{folder}' holds this run already: add --resume to go on, or choose another folder"
                    )
            elif options.resume:
                raise UserError(f"nothing to resume in '{folder}'")
            return folder
        stem = "dry-run" if options.dry_run else f"{self.name}-seed{options.seed}"
        parent = Path("runs") / script
        taken = [
            f
            for f in parent.glob(f"{stem}*")
            if f.name == stem or f.name[len(stem) + 1 :].isdigit()
        ]
        if options.resume:
            mine = []
            for folder in taken:
                with contextlib.suppress(UserError):  # a damaged neighbour is no reason to stop
                    if same(folder):
                        mine.append(folder)
            if not mine:
                raise UserError(
                    f"nothing to resume: no run with these settings in '{parent}'; name its folder with --out"
                )
            return max(mine, key=lambda f: (f / "config.json").stat().st_mtime)
        number = next(
            n
            for n in range(1, len(taken) + 2)
            if parent / (stem if n == 1 else f"{stem}-{n}") not in taken
        )
        return parent / (stem if number == 1 else f"{stem}-{number}")

    def _create(self, settings):
        try:
            self.folder.mkdir(
                parents=True, exist_ok=self.options.resume or self.options.out is not None
            )
            write_atomic(
                self.folder / "config.json",
                json.dumps(
                    {
                        "script": self.script,
                        "settings": settings,
                        "command": " ".join(["python", Path(sys.argv[0]).name, *sys.argv[1:]]),
                        "device": self.device.type,
                        "hardware": hardware(self.device),
                        "commit": commit(),
                        "code": code_checksum(self.script),
                        "versions": {
                            "python": platform.python_version(),
                            "torch": torch.__version__,
                            "numpy": np.__version__,
                        },
                    },
                    indent=1,
                ),
            )
        except FileExistsError:  # another run took the name just now
            self.folder = self._choose_folder(settings)
            self._create(settings)
        except OSError as error:
            raise UserError(
                f"cannot write to '{self.folder}' ({error.strerror}): choose another --out"
            )

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
                raise UserError(
                    f"the checkpoint in '{self.folder}' does not fit these networks: it is of another version or net"
                )
        for key in (
            "history",
            "epoch",
            "step",
            "train_seconds",
            "images",
            "middle",
            "rows",
            "names",
        ):
            setattr(self, key, self.saved[key])
        self.rows = list(self.rows.to(self.device)) if self.rows is not None else []
        self.seconds_before = self.saved["seconds"]

    def save(self):
        """Write the checkpoint and log.csv, both atomically. Refuses weights that are not finite."""
        for name, thing in self.tracked.items():
            if isinstance(thing, nn.Module) and not all(
                torch.isfinite(t).all() for t in thing.state_dict().values()
            ):
                raise UserError(self._nan_message(f"weights of '{name}'", self.step))
        state = {
            "script": self.script,
            "states": {name: thing.state_dict() for name, thing in self.tracked.items()},
            "rng": _get_rng() if self.middle is None else self.epoch_rng,
            "seconds": self.seconds(),
            "rows": torch.stack(self.rows) if self.rows else None,
        }
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
            raise UserError(
                f"cannot write '{self.folder / name}' ({error.strerror}): the last checkpoint, if there is one, is kept; "
                "the same command with --resume goes on from it"
            )

    def _nan_message(self, what, step):
        kept = (
            f"the last good checkpoint is kept in '{self.folder}'"
            if (self.folder / "checkpoint.pt").exists()
            else "nothing was saved yet"
        )
        return (
            f"training broke: {what} is not finite at step {step}; {kept}; "
            "try a lower learning rate or --precision fp32"
        )

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
        self.bar = tqdm(
            total=self.options.epochs,
            initial=self.epoch,
            desc=self.script,
            unit="epoch",
            disable=None,
            file=sys.stderr,
        )
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
            raise UserError(
                self._nan_message(
                    f"the loss '{self.names[bad[0, 1]]}'",
                    self.step - len(values) + int(bad[0, 0]) + 1,
                )
            )
        self.epoch += 1
        self.train_seconds += (
            time.time() - self.begun
        )  # after the losses were read, so that the device has finished
        self.history.append(
            {"epoch": self.epoch, **dict(zip(self.names, values.double().mean(0).tolist()))}
        )
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
        if self.middle is not None:  # stopped inside this epoch: skip what was done
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
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.precision == "bf16", cache_enabled=cached
        )

    def finish(self, metrics, table=()):
        """Write metrics.json (flat name -> number) and print the table: rows (words, metric's name, the paper's value, compare).

        With --validation the paper's value, which is of test images, is left out."""
        metrics = {
            **metrics,
            "epochs": self.epoch,
            "seconds": round(self.seconds(), 1),
            "images_per_second": round(self.images / max(self.train_seconds, 1e-9), 1),
        }
        self._write_log()
        self._write("metrics.json", json.dumps(metrics, indent=1))
        lines = [("score", "this run", "paper", "to compare")]
        lines += [
            (
                words,
                f"{metrics[name]:.4g}",
                "-" if self.options.validation else str(paper),
                str(compare),
            )
            for words, name, paper, compare in table
        ]
        widths = [max(len(line[k]) for line in lines) for k in range(4)]
        for line in lines:
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
        print(
            f"{self.script}: {metrics['seconds']:.0f} s, {metrics['images_per_second']:.0f} images/s; all of it in {self.folder}",
            file=sys.stderr,
        )
        return metrics


def _get_rng():
    """State of every generator (CPU, CUDA, Apple's GPU, numpy, Python), as tensors and plain values (so that `weights_only=True` loads it)."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "mps": torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "python": random.getstate(),
    }


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
        norm.momentum = None  # a plain average
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
        sys.exit(
            _complain(
                parser,
                "stopped; the same command with --resume (and the same --out) goes on from the last checkpoint, if there is one",
                130,
            )
        )


def _complain(parser, words, status):
    print(f"{parser.prog}: {words}", file=sys.stderr)
    return status


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
    before = lambda k, places: (
        4 * gap * sum(k > place for place in ([places] if isinstance(places, int) else places))
    )  # noqa: E731
    top = [r * (h + gap) + before(r, after_row) for r in range(rows)]
    left = [k * (w + gap) + before(k, after_column) for k in range(columns)]
    picture = torch.ones(top[-1] + h, left[-1] + w, 3)
    for number, image in enumerate(images.detach().float().cpu().clamp(0, 1)):
        y, x = top[number // columns], left[number % columns]
        picture[y : y + h, x : x + w] = image.permute(1, 2, 0).expand(h, w, 3)
    return picture


def save_figure(figure, path):
    """Write a figure of matplotlib as PNG and close it; `UserError` where that fails."""
    try:
        figure.savefig(path)
    except OSError as error:
        raise UserError(
            f"cannot write '{path}' ({error.strerror}): the checkpoint is kept; the same command with --resume goes on from it"
        )
    finally:
        pyplot().close(figure)


def figure_grid(path, images, columns, title, x_label=None, y_label=None, zoom=2, **gaps):
    """A grid of images as PNG, each pixel `zoom` wide, with a title and words beside rows and columns."""
    plt = pyplot()
    picture = tile(images, columns, **gaps)
    h, w = picture.shape[:2]
    top, side = 0.6, 0.35  # inches for the words
    width, height = max(w * zoom / 100, 4.2) + side, h * zoom / 100 + top
    figure = plt.figure(figsize=(width, height), dpi=100)
    axes = figure.add_axes((side / width, 0, w * zoom / 100 / width, h * zoom / 100 / height))
    axes.imshow(picture.numpy(), interpolation="nearest", aspect="auto")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.xaxis.set_label_position("top")
    axes.set_xlabel(x_label or "", fontsize=9)
    axes.set_ylabel(y_label or "", fontsize=9)
    figure.suptitle(title, fontsize=10, y=1 - 0.08 / height, va="top")
    save_figure(figure, path)


def figure_curves(path, history, groups, title):
    """Losses over epochs as PNG: a panel for each of `groups`, (title, names, unit)."""
    plt = pyplot()
    figure, panels = plt.subplots(
        1, len(groups), figsize=(4 * len(groups), 3), dpi=100, squeeze=False
    )
    epochs = [row["epoch"] for row in history]
    for axes, (words, names, unit) in zip(panels[0], groups):
        for name in names:
            axes.plot(
                epochs,
                [row[name] for row in history],
                label=name.replace("_", " "),
                marker="." if len(epochs) < 10 else None,
            )
        axes.set(title=words, xlabel="epoch", ylabel=unit)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, framealpha=0.4)  # curves stay visible behind it
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
        axes.plot(
            *codes[y == label].t(),
            ".",
            color=f"C{label}" if label < 10 else None,
            markersize=2.5,
            alpha=0.6,
            label=str(label),
            zorder=1,
            markeredgewidth=0,
        )
    for curve in outline:
        axes.plot(*curve.cpu().t(), color=".25", linewidth=0.8, zorder=2)
    if marks is not None:
        axes.plot(*marks.cpu().t(), "kx", markersize=7, zorder=3)
    axes.set_aspect("equal")
    axes.legend(
        markerscale=5, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False
    )
    axes.set_title(title, fontsize=10)
    figure.tight_layout()
    save_figure(figure, path)


def figure_scatters(path, columns, rows, limits):
    """Scatters side by side as PNG. columns: title -> for each of `rows` (words) the points [N, 2] and their colours' number int64 [N]; limits:
    half-width of the axes for each row."""
    plt = pyplot()
    figure, panels = plt.subplots(
        len(rows),
        len(columns),
        figsize=(1.7 * len(columns) + 0.3, 1.7 * len(rows) + 0.3),
        dpi=90,
        squeeze=False,
    )
    for j, (title, cells) in enumerate(columns.items()):
        panels[0, j].set_title(title, fontsize=9)
        for i, (points, number) in enumerate(cells):
            axes = panels[i, j]
            axes.scatter(*points.cpu().t(), c=number.cpu(), cmap="gist_rainbow", s=1, linewidths=0)
            axes.set(xlim=(-limits[i], limits[i]), ylim=(-limits[i], limits[i]), aspect="equal")
            axes.tick_params(labelsize=6, length=2)
            if j == 0:
                axes.set_ylabel(rows[i], fontsize=8)
    figure.tight_layout(pad=0.5)
    save_figure(figure, path)
