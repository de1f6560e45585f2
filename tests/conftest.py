"""Tests run from anywhere: the scripts are imported from the folder above, and each test works in its own folder."""
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import common  # noqa: E402


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def complains(monkeypatch, capsys):
    """Checks that a script refuses a dry run with these arguments: exit status 2, one line on stderr that has the words, nothing written."""
    def call(script, arguments, words):
        monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", "--dry-run", *arguments])
        with pytest.raises(SystemExit) as stop:
            common.run_main(script.main, script.make_parser())
        out, err = capsys.readouterr()
        assert stop.value.code == 2 and out == "" and err.count("\n") == 1 and words in err, err
        assert not list(Path(".").iterdir())
    return call


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs `python SCRIPT ARGUMENTS` in the test's folder, in this process, which spares seconds of imports; returns exit status and output."""
    def call(script, *arguments):
        monkeypatch.setattr(sys, "argv", [str(ROOT / script), *map(str, arguments)])
        capsys.readouterr()
        status = 0
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as stop:
            status = stop.code or 0
        return SimpleNamespace(returncode=status, **dict(zip(("stdout", "stderr"), capsys.readouterr())))
    return call
