"""Tests run from anywhere: the scripts are imported from the folder above, and each test works in its own folder."""
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def command():
    """Runs `python SCRIPT ARGUMENTS` in the test's folder; returns the finished process."""
    def call(script, *arguments):
        return subprocess.run([sys.executable, str(ROOT / script), *map(str, arguments)], capture_output=True, text=True, timeout=200)
    return call
