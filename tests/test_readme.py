"""The README's commands parse, its snippet runs as printed, and its tables are those of results/."""
import json
import re
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import aae
import bigan
import common
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
    monkeypatch.setattr(common, "choose_device", lambda name: torch.device("cpu"))     # on a GPU both precisions are always measured
    monkeypatch.setattr(common, "choose_precision", lambda name, device: "bf16")
    monkeypatch.setattr(benchmark, "__file__", str(tmp_path / "tests/benchmark.py"))
    monkeypatch.setattr(reproduce, "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()
    benchmark.main(["aae"])
    assert "aae bf16: 200 images/s, 500.0 ms a step of 100; 4.00 GFLOP a step, 8 GFLOP/s; matmul 40 GFLOP/s; ratio 0.20" in capsys.readouterr().out
    assert "200" not in reproduce.speed_table()
    benchmark.main([])
    lines = reproduce.speed_table().splitlines()[2:]
    assert len(lines) == len(benchmark.TIMES) and all(line.endswith("| 200 | 0.80 | 200 | 0.20 |") for line in lines)
    monkeypatch.setattr(common, "choose_precision", lambda name, device: "fp32")                                   # another machine, one without bf16
    monkeypatch.setattr(common, "hardware", lambda device: "Other, 2 threads")
    benchmark.main([])
    lines = reproduce.speed_table().splitlines()[2:]
    assert all(line.endswith("| 200 | 0.80 | 200 | 0.20 | 200 | 0.80 |") for line in lines)


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
    (tmp_path / "aae/style.json").write_text('[{"seed": 0, "seconds": 600, "hardware": "A, 2 threads"}]')
    ran, clock = [], iter([0., 0., 0., 300., 300., 300., 600., 600., 600., 900.])               # each takes half of what is on file for its script
    monkeypatch.setattr(reproduce.time, "monotonic", lambda: next(clock))
    assert reproduce.expected("aae/semi-100") == 600 and reproduce.expected("bigan/ali") == 300
    todo = reproduce.plan(["aae/style", "aae/semi-100"], [0, 1])
    assert todo == [("aae/semi-100", 0), ("aae/style", 1), ("aae/semi-100", 1)]
    reproduce.run_all(todo, 1, lambda *job: ran.append(job))
    assert ran == [(*job, None) for job in todo]
    words = capsys.readouterr().out
    assert "[1 of 3, 0 s so far] aae/semi-100 seed 0: with the rest about 30 min\npython aae.py --task semi --labels 100 --seed 0" in words
    assert "[2 of 3, 5 min so far] aae/style seed 1: with the rest about 10 min" in words


class Child:
    """In place of a run: writes its folder, as the scripts do; some fail."""
    failing, seen, both = (), [], None

    def __init__(self, words, cwd, env=None, **more):
        self.folder, self.words = Path(cwd) / words[words.index("--out") + 1], words
        self.row, self.seed = self.folder.name.rsplit("-seed", 1)
        Child.seen.append((self.row, int(self.seed), (env or {}).get("OMP_NUM_THREADS"), "--resume" in words))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def wait(self):
        if Child.both:
            Child.both.wait()                             # nobody gets on alone
            time.sleep(.3 * ((self.row, self.seed) not in Child.failing))
        self.folder.mkdir(parents=True, exist_ok=True)
        config = {"command": "python aae.py --out x", "device": "cpu", "hardware": "A, 1 threads", "versions": {}, "commit": "HEAD", "settings": {"precision": "bf16"}}
        (self.folder / "config.json").write_text(json.dumps(config))
        if (self.row, self.seed) in Child.failing:
            return 1
        (self.folder / "metrics.json").write_text(json.dumps({"z_error": 40. + int(self.seed), "seconds": 5., "images_per_second": 7.}))
        return 0


@pytest.fixture
def pretended(tmp_path, monkeypatch):
    """Runs that are pretended, and an empty results/ and runs/."""
    for name in ("RESULTS", "ROOT"):
        monkeypatch.setattr(reproduce, name, tmp_path)
    monkeypatch.setattr(reproduce, "FIGURES", {})
    monkeypatch.setattr(reproduce.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(reproduce.subprocess, "Popen", Child)
    monkeypatch.setattr(reproduce, "changed_since", lambda folder, script: False)
    monkeypatch.setattr(Child, "failing", ())
    monkeypatch.setattr(Child, "seen", [])
    monkeypatch.setattr(Child, "both", None)
    return tmp_path


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_fails_ends_it_and_the_next_call_goes_on(pretended, monkeypatch, jobs):
    todo = reproduce.plan(["aae/style", "aae/semi-100"], [0, 1, 2])
    monkeypatch.setattr(Child, "failing", {("style", "0")})
    monkeypatch.setattr(Child, "both", threading.Barrier(2, timeout=20) if jobs == 2 else None)
    with pytest.raises(SystemExit, match="aae/style seed 0 did not finish"):
        reproduce.run_all(todo, jobs)
    begun = [("style", 0, None, False)] if jobs == 1 else [("semi-100", 0, "2", False), ("style", 0, "2", False)]     # half of four cores each
    assert sorted(Child.seen) == begun and len(reproduce.plan(["aae/style", "aae/semi-100"], [0, 1, 2])) == (6 if jobs == 1 else 5)
    monkeypatch.setattr(Child, "failing", ())
    monkeypatch.setattr(Child, "both", None)
    monkeypatch.setattr(Child, "seen", [])
    reproduce.run_all(reproduce.plan(["aae/style"], [0]), 1)
    assert Child.seen == [("style", 0, None, True)] and [e["metrics"] for e in reproduce.read("aae/style")] == [{"z_error": 40.}]


def test_an_interrupt_begins_no_further_run(pretended, monkeypatch):
    monkeypatch.setattr(Child, "wait", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    for jobs in (1, 2):
        monkeypatch.setattr(Child, "seen", [])
        with pytest.raises(KeyboardInterrupt):
            reproduce.run_all(reproduce.plan(["aae/style"], range(6)), jobs)
        assert len(Child.seen) <= jobs


def test_a_finished_folder_is_filed_and_one_of_other_code_set_aside(pretended, monkeypatch):
    folder = reproduce.train("aae/style", 3, "runs/results")
    reproduce.reproduce("aae/style", 3)
    assert len(Child.seen) == 1 and [e["seed"] for e in reproduce.read("aae/style")] == [3]
    monkeypatch.setattr(reproduce, "changed_since", lambda folder, script: True)
    assert reproduce.train("aae/style", 3, "runs/results") == folder and len(Child.seen) == 2 and not Child.seen[1][3]
    assert len(list(folder.parent.glob("style-seed3-before-*"))) == 1


def test_again_compares_and_files_nothing(pretended, capsys):
    for seed in (0, 1, 2):
        reproduce.reproduce("aae/style", seed)
    before = (pretended / "aae/style.json").read_text()
    reproduce.again("aae/style", 5)
    assert "| z_error | 41 | 1 | 45 | 4.0 |" in capsys.readouterr().out and (pretended / "aae/style.json").read_text() == before
    reproduce.again("aae/style", 5)                       # a second time it runs, too
    assert len(Child.seen) == 5 and len(list((pretended / "runs/again/aae").glob("style-seed5-before-*"))) == 1
    assert not (pretended / "again").exists()


def test_again_keep_files_it_among_the_repeats(pretended):
    for seed in (0, 1, 2):
        reproduce.reproduce("aae/style", seed)
    reproduce.again("aae/semi-100", 0, keep=True)        # nothing to compare with: filed, no line
    before = (pretended / "aae/style.json").read_text()
    for seed in (5, 1, 5):                                # the third takes the first's place
        reproduce.again("aae/style", seed, keep=True)
    assert (pretended / "aae/style.json").read_text() == before and [e["seed"] for e in reproduce.read("again/aae/style")] == [1, 5]
    near, far = reproduce.repeats_table().splitlines()[2:]
    assert near == "| `python aae.py --task style --seed 1` | 3 | A, in bf16 | A, in bf16 | 0* | 1 of 1 | z error: 41 (41 ± 1) |" and far.endswith("| 0 of 1 | z error: 45 (41 ± 1) |")


def test_seeds_are_those_of_the_tables():
    assert [seed for _, seed in reproduce.asked(["bigan/grid"], None)] == list(range(5)) and [seed for _, seed in reproduce.asked(["bigan/grid-random"], None)] == list(range(10))
    assert reproduce.asked(["aae/style", "bigan/grid"], [3, 1, 3]) == [("aae/style", 1), ("bigan/grid", 1), ("aae/style", 3), ("bigan/grid", 3)]


def test_changed_since_compares_the_code(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps({"commit": "abc+", "code": common.code_checksum("aae")}))
    assert not reproduce.changed_since(tmp_path, "aae") and reproduce.changed_since(tmp_path, "bigan")
    monkeypatch.setattr(common, "HERE", tmp_path)
    for name in ("aae", "common"):
        (tmp_path / f"{name}.py").write_text((ROOT / f"{name}.py").read_text())
    assert not reproduce.changed_since(tmp_path, "aae")
    (tmp_path / "common.py").write_text("")
    assert reproduce.changed_since(tmp_path, "aae")


def test_minutes_are_of_the_fastest_machine(monkeypatch):
    entries = [{"seconds": 600, "hardware": "A, B, 1 threads", "precision": "bf16"}, {"seconds": 300, "hardware": "A, B, 2 threads", "precision": "bf16"},
               {"seconds": 900, "hardware": "A, B, 2 threads", "precision": "fp32"}, {"seconds": 60, "hardware": "NVIDIA H200", "precision": "bf16"}]
    monkeypatch.setattr(reproduce, "read", lambda row: entries)
    assert reproduce.minutes("aae/style") == "5 (1.0)"
    del entries[1]
    assert reproduce.minutes("aae/style") == "10* (1.0)"
    assert [reproduce.machine(entry) for entry in entries] == ["A, B, in bf16", "A, B, in fp32", "NVIDIA H200, in bf16"]
    assert reproduce.expected("aae/style") == 750
    del entries[:2]
    assert reproduce.minutes("aae/style") == "– (1.0)" and reproduce.expected("aae/style") == 300
    del entries[:]
    assert reproduce.minutes("aae/style") == "–"


def test_linked_files_exist():
    headings = {"#" + heading.lower().replace(" ", "-") for heading in re.findall(r"^#+ (.*)$", README, re.MULTILINE)}
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert target in headings or (ROOT / target).exists(), target


@pytest.mark.parametrize("script, count", [("mathieu", 9), ("aae", 8), ("bigan", 15), ("infogan", 5)])
def test_log_legend_names_every_column(script, count):
    source = (ROOT / f"{script}.py").read_text()
    calls = []
    for rest in source.split("run.log(")[1:]:             # up to the parenthesis that closes the call
        depth = [1 + rest[:k + 1].count("(") - rest[:k + 1].count(")") for k in range(len(rest))]
        calls.append(rest[:depth.index(0)])
    logged = re.findall(r"(\w+)=", " ".join(calls))
    legend = README.split(f"| in log.csv of {script}.py")[1].split("\n\n")[0]
    assert len(logged) == count and all(name in legend for name in logged)
