"""Tests run from anywhere: the scripts are imported from the folder above.

Two processes of pytest-xdist share the tests, with one thread each. Each test begins with the same
random state, in a folder of its own.
"""

import copy
import dataclasses
import functools
import gc
import os
import random
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, and for processes that tests start

import pytest  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import common  # noqa: E402
import infogan  # noqa: E402
import mathieu  # noqa: E402
from experiments import command_line, machine, run_folder, scores  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
from kills import kill_and_resume, same  # noqa: E402
from torch import nn  # noqa: E402


def pytest_collection_finish():
    gc.freeze()  # what was imported stays: `gc.collect` need not look at it again


@pytest.fixture(scope="session", autouse=True)
def read_once():
    """MNIST as embedded is read once, the sprites are drawn once: every call gets a copy. The
    commit is asked for once."""
    real = common.load_dataset
    kept = functools.cache(real)

    def load_dataset(name, root=None, validation=False):
        embedded = name in ("mnist", "sprites") and root in (None, "", ROOT / "data")
        if embedded:
            return copy.deepcopy(kept(name, validation=validation))
        return real(name, root, validation)

    for module in (common, scores):  # wherever the name is bound
        module.load_dataset = load_dataset
    machine.commit = functools.cache(machine.commit)  # which starts git, twice


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda file: None)  # no test cuts the power
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs `python SCRIPT ARGUMENTS` in the test's folder and returns exit status and output. It
    does so in this process, which spares seconds of imports."""

    def call(script, *arguments):
        monkeypatch.setattr(sys, "argv", [str(ROOT / script), *map(str, arguments)])
        capsys.readouterr()
        status = 0
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as stop:
            status = stop.code or 0
        return SimpleNamespace(
            returncode=status, **dict(zip(("stdout", "stderr"), capsys.readouterr()))
        )

    return call


@pytest.fixture
def survives_a_kill(tmp_path, command):
    """Checks that a training, killed after an epoch and resumed, ends as an undisturbed one. Only
    the one to be killed is a process of its own."""

    def run(words):
        done = command(*words[1:])
        assert done.returncode == 0, done.stderr

    def call(*words):
        lines = []
        words = [*words, "--dry-run", "--device", "cpu"]
        kill_and_resume(tmp_path, 1, random.Random(0), lines.append, words, run)
        # One epoch of two: a training was resumed, not its evaluation alone.
        assert lines == ["kill 1: after 1 epochs saved, resumed, identical"]

    return call


@pytest.fixture
def goes_on_bit_for_bit(monkeypatch):
    """Checks that a training, stopped in its second epoch and resumed, ends as an undisturbed one.
    Returns what it saved."""

    def call(script, settings, images):
        monkeypatch.setattr(common, "load_data", lambda settings: (images, images))
        monkeypatch.setattr(script, "evaluate", lambda *words: ({}, ()))
        monkeypatch.setattr(run_folder, "figure_losses", lambda *words: None)
        script.main(dataclasses.replace(settings, out="whole"))
        log = common.Run.log

        def stop(run, **losses):
            if run.epoch == 1:
                raise KeyboardInterrupt
            log(run, **losses)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(common.Run, "log", stop)
            script.main(dataclasses.replace(settings, out="part"))
        gc.collect()
        torch.manual_seed(99)
        recipe = getattr(script, "recipe", mathieu.recipe)
        script.main(command_line.parse(recipe, ["--resume", "part", "--device", "cpu"]))
        whole, part = (run_folder.read_checkpoint(name) for name in ("whole", "part"))
        assert same(whole["states"], part["states"]) and same(whole["rng"], part["rng"])
        assert part["epoch"] == 2
        return part

    return call


def fake_nets(shape=(1, 28, 28), **parts):
    """What `encode` and `decode` need of networks."""
    return SimpleNamespace(shape=shape, parameters=lambda: iter([torch.zeros(1)]), **parts)


def narrow(o, per_epoch=1):
    """Networks as `infogan.build` gives them, of a few units: their checkpoints are small."""
    nets = nn.Module()
    nets.shape = 1, 28, 28
    nets.trunk = nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.BatchNorm1d(8), nn.LeakyReLU())
    nets.d, nets.q = infogan.DHead(8, 1), infogan.QHead(o.categories, o.continuous)
    nets.q.hidden = nn.Sequential(nn.Linear(8, 128), nn.BatchNorm1d(128))
    inputs = o.z_dim + o.categories + o.continuous
    nets.gen = infogan.Generator(inputs)
    nets.gen.net = nn.Sequential(nn.Linear(inputs, 784), nn.BatchNorm1d(784))
    nets.gen.net.append(nn.Unflatten(1, nets.shape))
    nets.register_buffer("curve", torch.zeros(o.epochs * per_epoch))
    return nets
