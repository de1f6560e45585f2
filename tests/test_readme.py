"""The README's commands parse, its snippet runs as printed, and its tables are those of results/."""
import re
import sys

import pytest
import torch

import mathieu
from conftest import ROOT

sys.path.insert(0, str(ROOT / "results"))
import reproduce

README = (ROOT / "README.md").read_text()


def test_commands_are_accepted():
    commands = re.findall(r"python (mathieu)\.py([^`\n|]*)", README)
    assert len(commands) >= 4
    for script in re.findall(r"python ((?:\w+/)*\w+\.py)", README):
        assert (ROOT / script).exists(), script
    for script, arguments in commands:
        if "--help" not in arguments:
            {"mathieu": mathieu}[script].make_parser().parse_args(arguments.split())
    for row, arguments in reproduce.ROWS.items():
        mathieu.make_parser().parse_args(arguments.split())


def test_snippet_runs_as_printed():
    snippet, = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    space = {}
    exec(snippet, space)
    assert space["image"].shape == (8, 1, 28, 28) and torch.isfinite(space["loss"])
    assert all(p.grad is not None for p in space["enc"].parameters())


def test_tables_are_what_results_say():
    assert reproduce.rendered(README) == README, "run python results/reproduce.py --readme"


@pytest.mark.parametrize("row", ["mathieu/mnist", "mathieu/sprites"])
def test_results_say_how_they_were_made(row):
    entries = reproduce.read(row)
    assert entries
    for entry in entries:
        assert {"seed", "command", "metrics", "seconds", "images_per_second", "device", "hardware", "versions", "commit"} <= set(entry)
        assert entry["command"] == reproduce.command(row, entry["seed"]) and entry["metrics"]["epochs"] == 50
    assert len({e["seed"] for e in entries}) == len(entries)


def test_linked_files_exist():
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / target).exists(), target


def test_log_legend_names_every_column():
    source = (ROOT / "mathieu.py").read_text()
    logged = re.findall(r"(\w+)=", source.split("run.log(")[1].split("\n\n")[0])
    legend = README.split("| in log.csv")[1].split("\n\n")[0]
    assert len(logged) == 9 and all(name in legend for name in logged)
