"""The README's commands parse, its snippet runs as printed, and its tables are those of results/."""
import re
import sys
import threading
import types
from pathlib import Path

import numpy as np
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


def test_benchmark_writes_what_the_table_shows(tmp_path, monkeypatch, capsys):
    import benchmark
    monkeypatch.setattr(benchmark, "TIMES", {name: lambda precision: (.5, 4e9, 100, torch.device("cpu")) for name in benchmark.TIMES})
    monkeypatch.setattr(benchmark, "matmul_rate", lambda device, dtype: 1e10 if dtype == torch.float32 else 4e10)
    monkeypatch.setattr(benchmark, "__file__", str(tmp_path / "tests/benchmark.py"))
    monkeypatch.setattr(reproduce, "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()
    benchmark.main(["aae"])
    assert "aae bf16: 200 images/s, 500.0 ms a step of 100; 4.00 GFLOP a step, 8 GFLOP/s; matmul 40 GFLOP/s; ratio 0.20" in capsys.readouterr().out
    assert "200" not in reproduce.speed_table()
    benchmark.main([])
    lines = reproduce.speed_table().splitlines()[2:]
    assert len(lines) == len(benchmark.TIMES) and all(line.endswith("| 200 | 500.0 | 0.80 | 200 | 500.0 | 0.20 |") for line in lines)


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


def test_figures_are_small():
    figures = list((ROOT / "results").glob("*/*.png"))
    assert len(figures) > 30 and all(path.stat().st_size < 200_000 for path in figures)


def test_shrink_keeps_colours(tmp_path):
    from PIL import Image
    noise = np.random.default_rng(0).integers(0, 256, (200, 250, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    Image.fromarray(noise[:4]).save(small := tmp_path / "small.png")
    before = small.read_bytes()
    for name in ("noise", "small"):
        reproduce.shrink(tmp_path / f"{name}.png", 120_000)
    now = np.asarray(Image.open(tmp_path / "noise.png")).astype(int)
    assert (tmp_path / "noise.png").stat().st_size < 120_000 and abs(now - noise).max() <= 5 and small.read_bytes() == before


def test_plan_and_progress(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reproduce, "RESULTS", tmp_path)
    (tmp_path / "aae").mkdir()
    (tmp_path / "aae/style.json").write_text('[{"seed": 0, "seconds": 600}]')
    ran, clock = [], iter([0., 300., 600.])               # the first run takes half of what is on file for its script
    monkeypatch.setattr(reproduce, "reproduce", lambda *job: ran.append(job))
    monkeypatch.setattr(reproduce.time, "monotonic", lambda: next(clock))
    assert reproduce.expected("aae/semi-100") == 600 and reproduce.expected("bigan/ali") == 300
    reproduce.reproduce_all(["aae/style", "aae/semi-100"], [0, 1])
    assert ran == [("aae/semi-100", 0, None), ("aae/style", 1, None), ("aae/semi-100", 1, None)]
    words = capsys.readouterr().out
    assert "3 of 4 runs" in words and "[1 of 3] aae/semi-100 seed 0: with the rest about 30 min" in words
    assert "[2 of 3] aae/style seed 1: with the rest about 10 min" in words


def test_runs_beside_each_other(tmp_path, monkeypatch):
    """Two at a time, each with its threads and its own file of words; what fails ends the call and what has not begun."""
    for name in ("RESULTS", "ROOT"):
        monkeypatch.setattr(reproduce, name, tmp_path)
    monkeypatch.setattr(reproduce.os, "cpu_count", lambda: 4)
    both, seen = threading.Barrier(2, timeout=20), []

    def run(words, cwd, stdout, stderr, env):
        row, seed = Path(words[-1]).name.rsplit("-seed", 1)
        stdout.write(row)
        seen.append((row, int(seed), env["OMP_NUM_THREADS"]))
        both.wait()                                       # nobody gets on alone
        return types.SimpleNamespace(returncode=int(seed == "1" and row == "style"))
    monkeypatch.setattr(reproduce.subprocess, "run", run)
    kept = []
    monkeypatch.setattr(reproduce, "collect", lambda row, seed, folder: kept.append((row, seed)))
    with pytest.raises(SystemExit, match="aae/style seed 1 did not finish"):
        reproduce.reproduce_all(["aae/style", "aae/semi-100"], [0, 1], jobs=2)
    assert sorted(seen) == [(row, seed, "2") for row in ("semi-100", "style") for seed in (0, 1)]
    assert sorted(kept) == [("aae/semi-100", 0), ("aae/semi-100", 1), ("aae/style", 0)]
    assert (tmp_path / "runs/results/aae/style-seed0.txt").read_text() == "style"


def test_minutes_are_those_of_most_threads(monkeypatch):
    entries = [{"seconds": 600, "hardware": "A, B, 1 threads"}, {"seconds": 300, "hardware": "A, B, 2 threads"}]
    monkeypatch.setattr(reproduce, "read", lambda row: entries)
    assert reproduce.minutes("aae/style") == "5"
    entries.pop()
    assert reproduce.minutes("aae/style") == "10*"


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
