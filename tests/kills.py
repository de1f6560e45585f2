"""Kills trainings, the first between two epochs, the others at random moments, and checks that each, resumed, ends bit-identical to an undisturbed one.

    python tests/kills.py 20                                   # twenty in a row of mathieu.py, a few minutes; prints a line a kill
    python tests/kills.py 3 bigan.py --dry-run --device cpu    # of another command
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
    """All that must not depend on kills: weights, optimisers, random state, log and metrics; not the times."""
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    metrics = json.loads((folder / "metrics.json").read_text())
    return {**{k: state[k] for k in ("states", "rng", "history", "epoch", "step", "images")}, "log": (folder / "log.csv").read_text(),
            "metrics": {k: v for k, v in metrics.items() if k not in ("seconds", "images_per_second")}}


def words(command):
    """A script and its arguments as the words of a process."""
    return [sys.executable, str(ROOT / command[0]), *command[1:]]


def run(command, folder, *more):
    subprocess.run([*words(command), "--out", str(folder), *more], check=True, capture_output=True)


def kill_and_resume(folder, times, rng, tell=lambda line: None, command=COMMAND):
    """Raises AssertionError when a killed and resumed run differs from the whole one."""
    folder = Path(folder)
    begun = time.time()
    run(command, folder / "whole")
    length = time.time() - begun
    truth = outcome(folder / "whole")
    for number in range(times):
        place = folder / f"killed-{number}"
        process = subprocess.Popen([*words(command), "--out", str(place)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.time() + 100
        if number == 0:                                   # between two epochs: this one is sure to resume a training
            while not (place / "checkpoint.pt").exists() and time.time() < deadline:
                time.sleep(0.0005)
        elif number % 2:                                  # at a write: the moment a checkpoint's temporary file is there, or soon after
            while not list(place.glob("checkpoint.pt*")) and time.time() < deadline:
                time.sleep(0.0005)
            time.sleep(rng.random() * 0.02)
        else:                                             # anywhere in training or evaluation, but after the folder was made
            while not (place / "config.json").exists() and time.time() < deadline:
                time.sleep(0.005)
            time.sleep(rng.random() * length * 0.8)
        process.kill()
        process.wait()
        saved = (place / "checkpoint.pt").exists()
        epoch = torch.load(place / "checkpoint.pt", weights_only=True)["epoch"] if saved else 0      # what is there must load
        if saved:
            run(command, place, "--resume")
        else:                                             # killed before anything was saved: begin again elsewhere
            place = folder / f"killed-{number}-again"
            run(command, place)
        assert same(truth, outcome(place)), f"kill {number} after epoch {epoch}"
        tell(f"kill {number + 1}: after {epoch} epochs saved, {'resumed' if saved else 'begun again'}, identical")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        kill_and_resume(scratch, int(sys.argv[1]) if len(sys.argv) > 1 else 20, random.Random(), print, sys.argv[2:] or COMMAND)
