"""A run's folder on disk: made, locked, read. What is wrong with it is one line for the user."""

import dataclasses
import inspect
import json
import math
import os
import re
import shlex
import sys
import time
from pathlib import Path

import common
from common import UserError, write_atomic
from experiments import machine

import filelock
import torch
from matplotlib.figure import Figure

PART = r"\.\d+\.part$"  # ends the name of a file that a process, by its number, is writing


def create(run, name):
    """The folder of a new `common.Run`, with config.json in it, and its lock. Dry runs of a script
    share one folder, which is emptied."""
    settings = dataclasses.asdict(run.settings)
    again = settings["dry_run"] and not settings["out"]
    name = "dry-run" if settings["dry_run"] else f"{name}-seed{settings['seed']}"
    stem = Path("runs", run.script, name)
    folder = make(stem if again else settings["out"], stem, again)
    held = lock(folder)
    try:
        for file in folder.iterdir() if again else ():
            if file.is_file() and file.name not in ("lock", "owner"):
                file.unlink()
    except OSError as error:
        raise UserError(f"cannot write to '{folder}' ({error.strerror})")
    for key in ("resume", "out", "device"):  # of this process, not of the run
        del settings[key]
    for key in ("data", "beside"):  # found from any folder when the run is resumed
        if settings.get(key):
            settings[key] = str(Path(settings[key]).resolve())
    config = {"script": run.script, "settings": settings, "precision": run.precision}
    config["command"] = shlex.join(["python", *sys.orig_argv[1:]])
    text = json.dumps({**config, **machine.describe(run.device)}, indent=1)
    write_atomic(folder / "config.json", text.encode())
    return folder, held


def open_again(run):
    """The folder of an unfinished `common.Run`, its lock and its checkpoint, None if it has none
    yet. `UserError` where it is another script's, finished, or in use. Where the machine or the
    code is another one than before, config.json gets an entry in "resumed"."""
    folder = Path(run.settings.resume)
    config, now = read_config(folder), dataclasses.asdict(run.settings)
    if config["script"] != run.script:
        raise UserError(f"'{folder}' is a run of {config['script']}, not of {run.script}")
    for key, value in config["settings"].items():  # in Python they may be others
        if key != "precision" and now.get(key, value) != value:
            right = "run_folder.read_settings(folder, recipe)"
            raise UserError(f"'{folder}' has {key} {value}, not {now[key]}: resume it by {right}")
    if (folder / "metrics.json").exists():
        again = "python -m experiments.score scores it again"
        raise UserError(f"already finished: {folder}; {again}")
    held = lock(folder)
    there = (folder / "checkpoint.pt").exists()  # else it was cut off in its first epoch
    saved = read_checkpoint(folder, run.device) if there else None
    parts, now = config.get("resumed", []), machine.describe(run.device)
    if {key: (parts or [config])[-1].get(key) for key in now} != now:
        parts = [*parts, {"epoch": saved["epoch"] if saved else 0, **now}]
        text = json.dumps({**config, "resumed": parts}, indent=1)
        write_atomic(folder / "config.json", text.encode())
    return folder, held, saved


def make(out, stem, again=False):
    """Makes the folder `out`, or the first free of stem, stem-2, stem-3, ..., and returns it.
    again: whether it may hold something already. Else `UserError` for a folder that is not empty;
    a run that was cut off in its first epoch may be overwritten."""
    folder, number = Path(out or stem), 1
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                folder.mkdir(exist_ok=bool(out))
                break
            except FileExistsError:  # an earlier run, or another one at the same moment
                if out:
                    raise
                number += 1
                folder = stem.with_name(f"{stem.name}-{number}")
        names = {file.name for file in folder.iterdir() if not re.search(PART, file.name)}
    except OSError as error:
        raise UserError(f"cannot write to '{folder}' ({error.strerror}): choose another --out")
    # A run that was cut off in its first epoch left nothing but config.json: it may be overwritten.
    names = {name for name in names if name not in ("lock", "owner") and name[0] != "."}
    if names == {"config.json"} and not again:
        read_config(folder)  # which refuses a damaged one
    elif names and not again:
        unfinished = "config.json" in names and "metrics.json" not in names
        words = f", or --resume {shlex.quote(str(folder))}" if unfinished else ""
        raise UserError(f"'{folder}' is not empty: choose another --out{words}")
    return folder


def lock(folder):
    """Locks a run folder for this process, as long as what it returns exists. `UserError` where
    another one has it. Files that a killed process left half written are deleted."""
    held, owner = filelock.FileLock(folder / "lock"), folder / "owner"
    try:
        held.acquire(blocking=False)
        owner.write_text(f"pid {os.getpid()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}")
    except filelock.Timeout:
        who = owner.read_text() if owner.exists() else "unknown"
        if who.startswith(f"pid {os.getpid()},"):
            words = "call its lock.release(), or start Python anew"
            raise UserError(f"a Run of this process holds '{folder}': {words}")
        raise UserError(f"another process is at work in '{folder}' ({who})")
    except OSError as error:
        raise UserError(f"cannot write to '{folder}' ({error.strerror})")
    for file in folder.iterdir():
        if re.search(PART, file.name) and file.is_file():
            file.unlink()
    return held


def read_json(path):
    """What a JSON file holds; `UserError` where it is missing or damaged."""
    try:
        return json.loads(Path(path).read_text())
    except OSError as error:
        raise UserError(f"cannot read '{path}' ({error.strerror})")
    except ValueError:
        raise UserError(f"'{path}' is damaged")


def read_config(folder):
    """config.json of a run folder; `UserError` where it is missing or damaged."""
    try:
        config = json.loads((Path(folder) / "config.json").read_text())
        return {**config, "script": str(config["script"]), "settings": dict(config["settings"])}
    except OSError as error:
        raise UserError(f"'{folder}' is no run folder: config.json: {error.strerror}")
    except (ValueError, KeyError, TypeError):
        raise UserError(f"'{folder}/config.json' is damaged")


def of_another_version(folder):
    script, names = read_config(folder)["script"], "its config.json names the commit"
    return UserError(f"'{folder}', a run of {script}, is of another version or script: {names}")


def read_settings(folder, recipe):
    """The settings of the run in `folder`, by the `recipe` of its script."""
    config = read_config(folder)
    saved = {**config["settings"], "resume": str(folder)}
    saved["precision"] = config.get("precision", "auto")
    names = inspect.signature(recipe).parameters
    try:
        return dataclasses.replace(recipe(**{name: saved[name] for name in names}), **saved)
    except (TypeError, KeyError):
        raise of_another_version(folder)


def read_checkpoint(folder, device="cpu", finished=False):
    """checkpoint.pt of a run folder: {states: {name: state_dict}, rng, and Run.COUNTERS}.
    finished: `UserError` where the run is not."""
    path = Path(folder) / "checkpoint.pt"
    if finished and not (Path(folder) / "metrics.json").exists():
        read_config(folder)  # which says so where it is no run folder
        raise UserError(f"the run in '{folder}' is not finished: go on with --resume {folder}")
    try:
        saved = torch.load(path, map_location=device, weights_only=True)
        return {key: saved[key] for key in ("states", "rng", *common.Run.COUNTERS)}
    except (FileNotFoundError, PermissionError) as error:
        raise UserError(f"cannot read '{path}' ({error.strerror})")
    except Exception as error:  # zip and pickle fail in many ways
        if machine.no_memory(error):
            raise UserError(f"no memory is left on {device} for '{path}'")
        words = f"'{path}' is damaged ({type(error).__name__})"
        raise UserError(f"{words}: start again in a new folder")


def load(folder, recipe, build, device="cpu"):
    """The trained networks of a finished run, in eval mode, with its `settings`. `UserError` where
    the code of today cannot read it."""
    settings = read_settings(folder, recipe)
    nets = build(settings).to(device)
    nets.settings = settings
    saved = read_checkpoint(folder, device, finished=True)
    try:
        nets.load_state_dict(saved["states"]["nets"])
    except (KeyError, RuntimeError):
        raise of_another_version(folder)
    return nets.eval()


def caption(folder):
    """What a figure says of its run: 'ali-mnist-seed0: mnist, 30 epochs, seed 0'; '' outside of a
    run folder."""
    try:
        o = read_config(folder)["settings"]
        words = f"{folder.name}: {o['dataset']}, {o['epochs']} epochs, seed {o['seed']}"
        return f"DRY RUN, means nothing: {words}" if o["dry_run"] else words
    except (UserError, KeyError):
        return ""


def figure_losses(path, history):
    """Every column of log.csv over the epochs as PNG, a panel each."""
    names = [name for name in history[0] if name != "epoch"]
    figure = Figure(figsize=(10, 5), layout="constrained")
    panels = figure.subplots(2, math.ceil(len(names) / 2), squeeze=False)
    epochs = [row["epoch"] for row in history]
    for name, axes in zip(names, panels.flat):
        axes.plot(epochs, [row[name] for row in history], marker=".")
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("epoch")
    for axes in panels.flat[len(names) :]:
        axes.axis("off")
    common.save_figure(figure, path)
