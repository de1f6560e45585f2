"""Kills trainings and checks that each, resumed, ends bit-identical to an undisturbed one.

python tests/kills.py 20                                   # of mathieu.py, a few minutes
python tests/kills.py 3 bigan.py --dry-run --device cpu    # of another command

The first is killed between two epochs, the others while a checkpoint is written and at random.
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
COMMAND = ["mathieu.py", "--dry-run", "--device", "cpu", "--batch-size", "64", "--z-dim", "4"]


def same(a, b):
    """Equal to the last bit: nested dicts, lists, tensors and plain values."""
    if torch.is_tensor(a):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def outcome(folder):
    """All that must not depend on kills: weights, random state, log and metrics; not the times."""
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    metrics = json.loads((folder / "metrics.json").read_text())
    return {
        **{k: state[k] for k in ("states", "rng", "history", "epoch", "step", "images")},
        "log": (folder / "log.csv").read_text(),
        "metrics": {k: v for k, v in metrics.items() if k not in ("seconds", "images_per_second")},
    }


def words(command, folder):
    """The words of a process that begins a run in `folder`."""
    return [sys.executable, str(ROOT / command[0]), *command[1:], "--out", str(folder)]


def words_of_resume(command, folder):
    """The words of a process that goes on with it: the folder has the settings."""
    device = command[command.index("--device") :][:2] if "--device" in command else []
    return [sys.executable, str(ROOT / command[0]), "--resume", str(folder), *device]


def run(words):
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def wait_for(condition):
    deadline = time.time() + 100
    while not condition() and time.time() < deadline:
        time.sleep(0.0005)


def wait_for_a_moment(folder, number, length, rng):
    """The moment of kill `number`, of a run in `folder` that takes `length` seconds."""
    if number == 0:  # between two epochs: this one is sure to resume a training
        wait_for((folder / "checkpoint.pt").exists)
    elif number % 2:  # a checkpoint's temporary file is there, or was a moment ago
        wait_for(lambda: list(folder.glob("checkpoint.pt*")))
        time.sleep(rng.random() * 0.02)
    else:  # anywhere in training or evaluation, but after the folder was made
        wait_for((folder / "config.json").exists)
        time.sleep(rng.random() * length * 0.8)


def kill_and_resume(folder, times, rng, tell=lambda line: None, command=COMMAND, run=run):
    """Raises AssertionError when a killed and resumed run differs from the whole one. run: how the
    words of a process that is not killed are run."""
    folder = Path(folder)
    begun = time.time()
    run(words(command, folder / "whole"))
    length = time.time() - begun
    truth = outcome(folder / "whole")
    for number in range(times):
        place = folder / f"killed-{number}"
        process = subprocess.Popen(
            words(command, place), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_for_a_moment(place, number, length, rng)
        process.kill()
        process.wait()
        epoch, way = 0, "begun again"
        if (place / "checkpoint.pt").exists():  # what is there must load
            epoch = torch.load(place / "checkpoint.pt", weights_only=True)["epoch"]
            way = "resumed"
        if not (place / "metrics.json").exists():
            run(words_of_resume(command, place))
        assert same(truth, outcome(place)), f"kill {number} after epoch {epoch}"
        tell(f"kill {number + 1}: after {epoch} epochs saved, {way}, identical")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        kill_and_resume(
            scratch,
            int(sys.argv[1]) if len(sys.argv) > 1 else 20,
            random.Random(),
            print,
            sys.argv[2:] or COMMAND,
        )
