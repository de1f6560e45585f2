"""Tests run from anywhere: the scripts are imported from the folder above.

Each test works in a folder of its own.
"""

import copy
import functools
import os
import runpy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import common  # noqa: E402
from experiments import scores  # noqa: E402

import torch  # noqa: E402

THREADS = torch.get_num_threads()


# Of a script: how many kills, of which command.
KILLS = {
    "mathieu": (
        1,
        ["mathieu.py", "--dry-run", "--device", "cpu", "--batch-size", "64", "--z-dim", "4"],
    ),
    "aae": (
        1,
        [
            "aae.py",
            "--dry-run",
            "--task",
            "semi",
            "--device",
            "cpu",
            "--batch-size",
            "32",
            "--hidden",
            "100",
        ],
    ),
}


def pytest_collection_modifyitems(items):
    """Tests that wait for kills.py come last: it works beside the others."""
    items.sort(key=lambda item: "survives_kills" in item.fixturenames)


@pytest.fixture(scope="session", autouse=True)
def read_once():
    """MNIST as embedded is read once, the sprites are drawn once: every call gets a copy."""
    real = common.load_dataset
    kept = functools.cache(real)

    def load_dataset(name, root=None, validation=False):
        embedded = name in ("mnist", "sprites") and root in (None, "", ROOT / "data")
        if embedded:
            return copy.deepcopy(kept(name, validation=validation))
        return real(name, root, validation)

    for module in (common, scores):  # wherever the name is bound
        module.load_dataset = load_dataset


@pytest.fixture(scope="session", autouse=True)
def kills(request):
    """kills.py of each script whose test was chosen, one after the other, beside the tests."""
    names = {
        item.path.stem.removeprefix("test_")
        for item in request.session.items
        if "survives_kills" in item.fixturenames
    }
    with ThreadPoolExecutor(1) as pool:
        yield {
            name: pool.submit(
                subprocess.run,
                [
                    sys.executable,
                    str(ROOT / "tests/kills.py"),
                    str(KILLS[name][0]),
                    *KILLS[name][1],
                ],
                capture_output=True,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            for name in sorted(names)
        }
        pool.shutdown(cancel_futures=True)


@pytest.fixture
def survives_kills(kills):
    """Checks that a script's trainings, killed and resumed, ended as an undisturbed one."""

    def call(name):
        done = kills[name].result()
        assert done.returncode == 0 and done.stdout.count("identical") == KILLS[name][0], (
            done.stdout + done.stderr
        )
        # One epoch of two: a training was resumed, not its evaluation alone.
        assert "kill 1: after 1 epochs saved, resumed" in done.stdout, done.stdout

    return call


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch, kills):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda file: None)  # no test cuts the power
    if THREADS > 1:  # kills.py has a core to itself: a thread that waits for it slows the others
        busy = any(not run.done() for run in kills.values())
        torch.set_num_threads(THREADS - 1 if busy else THREADS)


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


def fake_nets(shape=(1, 28, 28), **parts):
    """What `encode` and `decode` need of networks."""
    return SimpleNamespace(shape=shape, parameters=lambda: iter([torch.zeros(1)]), **parts)
