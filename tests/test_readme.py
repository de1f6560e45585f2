"""The README's commands parse, its snippet runs as printed, and its tables are those of results/."""
import re
import sys

import pytest
import torch

import aae
import bigan
import infogan
import mathieu
from conftest import ROOT

sys.path.insert(0, str(ROOT / "results"))
import reproduce

README = (ROOT / "README.md").read_text()


def test_commands_are_accepted():
    scripts = {"aae": aae, "bigan": bigan, "infogan": infogan, "mathieu": mathieu}
    commands = re.findall(r"python (mathieu|aae|bigan|infogan)\.py([^`\n|]*)", README)
    assert len(commands) >= 20
    for script in re.findall(r"python ((?:\w+/)*\w+\.py)", README):
        assert (ROOT / script).exists(), script
    for script, arguments in commands:
        if "--help" not in arguments:
            scripts[script].make_parser().parse_args(arguments.replace("NAME", "semi").split())
    for row, arguments in reproduce.ROWS.items():
        script = scripts[row.split("/")[0]]
        script.resolve(script.make_parser().parse_args(arguments.split()))


def test_benchmark_asks_for_what_there_is():
    import benchmark
    for words in benchmark.AAE.values():
        aae.resolve(aae.make_parser().parse_args(words))
    infogan.resolve(infogan.make_parser().parse_args(benchmark.INFOGAN))


def test_snippet_runs_as_printed():
    snippet, = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    space = {}
    exec(snippet, space)
    assert space["image"].shape == (8, 1, 28, 28) and torch.isfinite(space["loss"])
    assert all(p.grad is not None for p in space["enc"].parameters())


def test_tables_are_what_results_say():
    assert reproduce.rendered(README) == README, "run python results/reproduce.py --readme"


@pytest.mark.parametrize("row", [row for row in reproduce.ROWS if reproduce.read(row)])
def test_results_say_how_they_were_made(row):
    entries = reproduce.read(row)
    for entry in entries:
        assert {"seed", "command", "metrics", "seconds", "images_per_second", "device", "hardware", "versions", "commit"} <= set(entry)
        assert entry["command"] == reproduce.command(row, entry["seed"])
    assert len({e["seed"] for e in entries}) == len(entries)


def test_headlines_are_on_file():
    for row in ("mathieu/mnist", "mathieu/sprites", "aae/prior-gaussian", "aae/likelihood", "aae/semi-100", "aae/cluster-30", "bigan/mnist", "bigan/alice", "bigan/grid", "bigan/pixels", "bigan/untrained", "infogan/mnist", "infogan/baseline"):
        assert reproduce.read(row), row
    assert all(entry["metrics"]["epochs"] == 50 for row in ("mathieu/mnist", "mathieu/sprites") for entry in reproduce.read(row))


def test_linked_files_exist():
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("script, count", [("mathieu", 9), ("aae", 7), ("bigan", 15), ("infogan", 4)])
def test_log_legend_names_every_column(script, count):
    source = (ROOT / f"{script}.py").read_text()
    calls = []
    for rest in source.split("run.log(")[1:]:             # up to the parenthesis that closes the call
        depth = [1 + rest[:k + 1].count("(") - rest[:k + 1].count(")") for k in range(len(rest))]
        calls.append(rest[:depth.index(0)])
    logged = re.findall(r"(\w+)=", " ".join(calls))
    legend = README.split(f"| in log.csv of {script}.py")[1].split("\n\n")[0]
    assert len(logged) == count and all(name in legend for name in logged)
