"""README.md and results/*.md: they render whole, their commands parse, their snippets run, their
numbers are those of results/. And reproduce.py, which files the runs behind them."""

import dataclasses
import functools
import importlib
import io
import json
import math
import os
import re
import shutil
import subprocess
import threading
import time
from pathlib import Path

import common
from experiments import (
    aae_scores,
    bigan_scores,
    command_line,
    machine,
    reproduce,
    run_folder,
    tables,
)

import benchmark
import numpy as np
import pytest
import torch
from conftest import ROOT, narrow
from markdown_it import MarkdownIt

PAGES = {page: (ROOT / page).read_text("utf-8") for page in [*tables.PAGES, "results/NOTES.md"]}
README = PAGES["README.md"]
EVERY = "\n".join(PAGES.values()) + reproduce.__doc__


def accept(script, words):
    """Parse the flags of a command; a wrong one ends in SystemExit."""
    return command_line.parse(importlib.import_module(script).recipe, words)


@functools.cache
def parsed(page):
    return MarkdownIt("commonmark").enable("table").parse(PAGES[page])


def inline(page, kind):
    """The tokens of a kind within the paragraphs, cells and headings of a page."""
    every = [token for block in parsed(page) for token in block.children or ()]
    return [token for token in every if token.type == kind]


def prose(page):
    """A page's text without fenced code."""
    return re.sub(r"^ *```.*?^ *```", "", PAGES[page], flags=re.M | re.S)


# ---- Pages render whole --------------------------------------------------------------------------
@pytest.mark.parametrize("page", PAGES)
def test_code_spans_and_tables_survive(page):
    spans = re.findall(r"`([^`]+)`", prose(page))
    shown = [token.content for token in inline(page, "code_inline")]
    assert shown == [" ".join(span.replace("\\|", "|").split("\n")) for span in spans]
    kinds = [token.type for token in parsed(page)]
    rules = re.findall(r"^\|( --- \|)+$", prose(page), re.M)
    assert kinds.count("table_open") == len(rules)
    for block in re.findall(r"(?:^\|.*\|$\n?)+", prose(page), re.M):
        counts = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(counts) == 1, block


@pytest.mark.parametrize("page", PAGES)
def test_no_line_begins_with_an_operator(page):
    before = ""
    for line in prose(page).splitlines():
        words = line.strip()
        assert not re.match(r"[+*/=<>](?!!--|\*)", words), line
        if re.match(r"[-–] ", words):  # an item of a list, and no minus sign
            assert not before.strip() or re.match(r" *- |  ", before), line
        before = line
    html = [token.content for token in parsed(page) if token.type == "html_block"]
    assert all(re.fullmatch(r"\s*<!-- /?[\w-]+ -->\s*", words) for words in html)
    assert not inline(page, "html_inline")


def anchors(page):
    """Of a page's headings, as GitHub makes them."""
    blocks = parsed(page)
    found = set()
    for block, words in zip(blocks, blocks[1:]):
        if block.type == "heading_open":
            found.add(re.sub(r"[^\w -]", "", words.content).lower().replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_exist(page):
    links = [token.attrs["href"] for token in inline(page, "link_open")]
    pictures = [token.attrs["src"] for token in inline(page, "image")]
    for target in links + pictures:
        if not target.startswith("http"):
            path, _, anchor = target.partition("#")
            file = (ROOT / page).parent / path if path else ROOT / page
            assert file.exists(), target
            assert not anchor or anchor in anchors(str(file.resolve().relative_to(ROOT))), target
    assert len(links) == len(re.findall(r"(?<!!)(?<!\]\()\[[^\]]*\]\([^)]+\)", prose(page)))
    assert len(pictures) == prose(page).count("![")


def test_every_figure_is_shown_or_linked():
    targets = {f"results/{target}" for target in re.findall(r"\]\(([^)]+\.png)\)", EVERY)}
    drawn = {str(path.relative_to(ROOT)) for path in results_of("png")}
    assert drawn <= targets


def test_readme_is_short():
    assert len(README.split()) <= 2000 and README.count("\n") <= 250


# ---- Commands and snippets -----------------------------------------------------------------------
MODULES = "mathieu_pretrained_s|aae_compared|bigan_baselines|bigan_product|gaussians"
MODULES += "|infogan_regular|bigan_released"
COMMAND = (
    rf"python (?:(mathieu|aae|bigan|infogan)\.py|-m (experiments\.(?:{MODULES})))([^`\n|&:#]*)"
)


def test_commands_are_accepted():
    found = 0
    for page in PAGES:
        if page == "results/NOTES.md":  # which names flags of then
            continue
        for script, module, arguments in re.findall(COMMAND, PAGES[page]):
            words = arguments.replace("RUN", "run").split()
            found += 1
            if not {"--help", "--resume", "--data"} & set(words):
                accept(script or module, words)
    assert found >= 100
    for row in reproduce.ROWS:
        program, flags = reproduce.parts_of(row)
        accept(program[-1].removesuffix(".py"), flags)
    for arguments in re.findall(r"python -m experiments\.reproduce([^`\n|#]*)", EVERY):
        reproduce.make_parser().parse_args(arguments.split())


def test_commands_name_what_there_is():
    for script in re.findall(r"python ((?:\w+/)*\w+\.py)", EVERY):
        assert (ROOT / script).exists(), script
    modules = re.findall(r"python -m ([\w.]+)", EVERY)
    assert "experiments.reproduce" in modules and "experiments.score" in modules
    for module in set(modules) - {"pytest", "venv"}:
        assert (ROOT / f"{module.replace('.', '/')}.py").exists(), module


def snippets():
    return re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("script", ["mathieu", "aae", "bigan", "infogan"])
def test_snippet_runs_as_printed(script):
    (snippet,) = (text for text in snippets() if f"from {script} import" in text)
    space = {}
    exec(snippet, space)
    losses = [value for name, value in space.items() if name.startswith("loss")]
    assert losses and all(torch.isfinite(loss) for loss in losses)
    for loss in losses:
        if script != "mathieu":  # it has called backward
            loss.backward(retain_graph=True)
    networks = [value for value in space.values() if isinstance(value, torch.nn.Module)]
    assert all(p.grad is not None for net in networks for p in list(net.parameters())[:1])
    if script == "mathieu":
        assert space["image"].shape == (8, 1, 28, 28) and 0 <= space["image"].min()
        assert all(p.grad is not None for p in space["enc"].parameters())
    if script == "infogan":
        assert (space["nats"] + space["loss"]).item() == pytest.approx(np.log(10), rel=1e-5)


def test_notebook_snippet_runs_as_printed(monkeypatch):
    for script in ("mathieu", "aae", "bigan", "infogan"):
        module = importlib.import_module(script)
        settings = module.recipe("semi") if script == "aae" else module.recipe()
        nets = module.build(settings).eval()
        nets.settings = settings
        monkeypatch.setattr(module, "load", lambda folder, nets=nets: nets)
    (snippet,) = (text for text in snippets() if "load_dataset" in text)
    space = {}
    exec(snippet, space)
    assert space["again"].shape == (100, 1, 28, 28) and space["images"].dtype == torch.uint8
    assert space["s"].shape == (100, 16) and space["logits"].shape == (100, 10)
    for folder in re.findall(r'load\("runs/(\w+)/([\w-]+)-seed0"', snippet):
        assert folder[1] in ("mnist", "semi-100", "bigan-mnist")


def test_errors_named_are_those_of_the_code():
    files = "common.py experiments/run_folder.py experiments/command_line.py"
    source = "".join((ROOT / file).read_text("utf-8") for file in files.split())
    errors = README.split("## Errors")[1].split("\n## ")[0]
    for words in re.findall(r"^- `([^`]+)`:", errors, re.M):
        assert words in source, words
    assert len(re.findall(r"^- `([^`]+)`:", errors, re.M)) == 4


TRIES = [
    pytest.param(script or module, arguments.split(), id=f"{page}-{number}")
    for page in ("mathieu", "aae", "bigan", "infogan")
    for number, (script, module, arguments) in enumerate(
        re.findall(COMMAND, PAGES[f"results/{page}.md"].split("## Try this")[1])
    )
]


@pytest.mark.parametrize("script, words", TRIES)
def test_try_this_trains(script, words, monkeypatch):
    """A dry run of the command without its scores, on 200 images and with narrow layers."""
    module = importlib.import_module(script)
    owner = importlib.import_module("bigan") if script == "experiments.bigan_product" else module
    settings = accept(script, words)
    small = {"dry_run": True, "epochs": 1, "batch_size": 100, "device": "cpu"}
    small |= {"hidden": 16} if hasattr(settings, "hidden") else {}
    small |= {"epochs": 2, "maxout": 8, "batch_size": 2000} if "gaussians" in script else {}
    small = {name: value for name, value in small.items() if hasattr(settings, name)}
    settings = dataclasses.replace(settings, **small)

    def few(settings):
        train, test = common.load_dataset("mnist")
        some = torch.cat([(train.y == k).nonzero()[:20, 0] for k in range(10)])
        return train.take(some[torch.randperm(200)]), test.take(slice(64))

    if hasattr(settings, "data"):
        monkeypatch.setattr(common, "load_data", few)
    if "infogan" in script:
        monkeypatch.setattr(importlib.import_module("infogan"), "build", narrow)
    finished = []
    monkeypatch.setattr(owner, "evaluate", lambda *arguments: ({}, ()))
    monkeypatch.setattr(common.Run, "finish", lambda run, *_: finished.append(run.history))
    module.main(settings)
    (history,) = finished
    assert history or "untrained" in words
    assert all(np.isfinite(value) for row in history for value in row.values())


def test_five_things_to_try_on_each_page():
    assert len(TRIES) == 20


# ---- Numbers -------------------------------------------------------------------------------------
@pytest.mark.parametrize("page", tables.PAGES)
def test_tables_are_what_results_say(page):
    assert tables.rendered(PAGES[page]) == PAGES[page], (
        "run python -m experiments.reproduce --pages"
    )


def test_the_papers_numbers_are_the_same_in_scripts_and_on_pages():
    names = {"mnist": "bigan", "gan": "gan", "ae-l2": "ae-l2", "ae-l1": "ae-l1"}
    names |= {"lr": "latent-regressor", "jlr": "joint-latent-regressor"}
    for name, (_, paper) in tables.TABLE1.items():
        assert f"{bigan_scores.PAPER_TABLE1[names[name]]:.2f}" == paper
    for value in aae_scores.PAPER.values():
        assert f"| {re.match(r'[0-9.]+', value)[0]} " in PAGES["results/aae.md"], value


def test_every_table_is_on_a_page():
    for name in tables.PARTS:
        pages = [page for page in tables.PAGES if f"<!-- {name} -->\n" in PAGES[page]]
        assert len(pages) == 1, name


# What may stand in prose: others' numbers, settings, and values that a formula gives.
OTHERS = {
    "README.md": "3.0",
    "results/mathieu.md": "33.2 98.7 0.69 1.39",
    "results/aae.md": ".14 0.5 0.69 1.39",
    "results/bigan.md": "0.11 2.61 7.90 2.65 2.86 3.72 7.2 8.7 9.3 73.5 1.39 0.69 0.6 0.5 0.999",
    "results/infogan.md": "9.0 4.0 .854 .036 0.69 1.39 1.84 2.17 2.25",
}


@pytest.mark.parametrize("page", tables.PAGES)
def test_numbers_of_ours_stand_in_generated_tables_only(page):
    text = re.sub(r"<!-- ([\w-]+) -->\n.*?<!-- /\1 -->", "", prose(page), flags=re.S)
    text = re.sub(r"\]\([^)]*\)|`[^`]*`", "", text)
    found = re.findall(r"(?<![\w.])\d*\.\d+", text.replace("Python 3.10", "").replace("in 4.2", ""))
    found = set(found) - {"4.1"}  # a section
    assert found <= set(OTHERS.get(page, "").split())


def test_benchmark_asks_for_what_there_is():
    for words in benchmark.AAE.values():
        accept("aae", words)
    accept("infogan", benchmark.INFOGAN)


def test_benchmark_of_two_checkouts_takes_the_best_of_each(tmp_path, monkeypatch, capsys):
    for name, speeds in (("here", (100, 150, 120)), ("there", (90, 60, 50))):
        (tmp_path / name / "tests").mkdir(parents=True)
        (tmp_path / name / "tests/benchmark.py").write_text(
            "import pathlib, sys\n"
            "count = pathlib.Path('count')\n"
            "n = int(count.read_text()) if count.exists() else 0\n"
            "count.write_text(str(n + 1))\n"
            "print('benchmark: epoch 1, 7 images/s')\n"
            f"print(f'{{sys.argv[1]}} fp32: {{{speeds}[n]}} images/s, 5 ms a step')\n"
        )
    monkeypatch.setattr(benchmark, "ROOT", tmp_path / "here")
    benchmark.compare(["bigan"], tmp_path / "there")
    words = "bigan fp32: here 150 images/s, there 90, 1.67 times as many (best of 3 each)\n"
    assert capsys.readouterr().out == words
    with pytest.raises(SystemExit, match="no speed of bigan in .*here"):  # its fourth run fails
        benchmark.compare(["bigan"], tmp_path / "there")


def test_benchmark_writes_what_the_table_shows(tmp_path, monkeypatch, capsys):
    timed = {
        name: lambda precision: (0.5, 4e9, 100, torch.device("cpu")) for name in benchmark.TIMES
    }
    monkeypatch.setattr(benchmark, "TIMES", timed)
    rates = {torch.float32: 1e10, torch.bfloat16: 4e10}
    monkeypatch.setattr(benchmark, "matmul_rate", lambda device, dtype: rates[dtype])
    # On a GPU both precisions are always measured.
    monkeypatch.setattr(machine, "choose_device", lambda name: torch.device("cpu"))
    monkeypatch.setattr(machine, "choose_precision", lambda name, device: "bf16")
    monkeypatch.setattr(benchmark, "ROOT", tmp_path)
    monkeypatch.setattr(reproduce, "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()
    benchmark.main(["aae"])
    words = (
        "aae bf16: 200 images/s, 500.0 ms a step of 100; 4.00 GFLOP a step, 8 GFLOP/s;"
        " matmul 40 GFLOP/s; ratio 0.20"
    )
    assert words in capsys.readouterr().out
    assert "200" not in tables.speed_table()
    benchmark.main([])
    lines = tables.speed_table().splitlines()[2:]
    assert len(lines) == 2 * len(benchmark.TIMES)
    for share, precision in (("0.80", "fp32"), ("0.20", "bf16")):
        count = sum(f"in {precision} |" in line and f"| 200 | {share} |" in line for line in lines)
        assert count == len(benchmark.TIMES)
    # Another machine, one without bf16.
    monkeypatch.setattr(machine, "choose_precision", lambda name, device: "fp32")
    monkeypatch.setattr(machine, "hardware", lambda device: "Other, 2 threads")
    benchmark.main([])
    lines = tables.speed_table().splitlines()[2:]
    assert sum("Other" in line for line in lines) == len(benchmark.TIMES)


@pytest.mark.parametrize("row", [row for row in reproduce.ROWS if reproduce.read(row)])
def test_results_say_how_they_were_made(row):
    entries = reproduce.read(row)
    names = "seed command metrics seconds images_per_second device hardware versions commit"
    for entry in entries:
        assert set(names.split()) <= set(entry)
        assert entry["command"] == reproduce.command(row, entry["seed"])
    assert len({e["seed"] for e in entries}) == len(entries)


def test_headlines_are_on_file():
    for row in (
        "mathieu/mnist",
        "mathieu/sprites",
        "aae/prior-gaussian",
        "aae/likelihood",
        "aae/semi-100",
        "aae/cluster-30",
        "bigan/mnist",
        "bigan/alice",
        "bigan/grid",
        "bigan/pixels",
        "bigan/untrained",
        "infogan/mnist",
        "infogan/baseline",
    ):
        assert reproduce.read(row), row
    for row in ("mathieu/mnist", "mathieu/sprites"):
        assert all(entry["metrics"]["epochs"] == 50 for entry in reproduce.read(row))


def test_every_file_of_results_has_its_row():
    filed = {str(path.relative_to(ROOT / "results"))[:-5] for path in results_of("json")}
    assert filed <= set(reproduce.ROWS)
    drawn = {str(path.relative_to(ROOT / "results"))[:-4] for path in results_of("png")}
    assert drawn <= {f"{row}-{name}" for row, names in reproduce.FIGURES.items() for name in names}


def results_of(kind):
    return (ROOT / "results").glob(f"*/*.{kind}")


def test_figures_are_small():
    figures = list(results_of("png"))
    assert len(figures) > 30 and all(path.stat().st_size < 200_000 for path in figures)


def test_shrink_keeps_colours(tmp_path):
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (200, 250, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    Image.fromarray(noise[:4]).save(small := tmp_path / "small.png")
    untouched = small.read_bytes()
    content = reproduce.shrunk(tmp_path / "noise.png", 120_000)
    now = np.asarray(Image.open(io.BytesIO(content))).astype(int)
    assert len(content) < 120_000 and abs(now - noise).max() <= 5
    assert reproduce.shrunk(small, 120_000) == untouched


def test_plan_and_progress(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reproduce, "RESULTS", tmp_path)
    (tmp_path / "aae").mkdir()
    entry = {"seed": 0, "seconds": 600, "hardware": "A, 2 threads"}
    (tmp_path / "aae/style.json").write_text(json.dumps([entry]))
    # Each takes half of what is on file for its script.
    ran, clock = [], iter([0, 0, 0, 300, 300, 300, 600, 600, 600, 900])
    monkeypatch.setattr(reproduce.time, "monotonic", lambda: next(clock))
    assert reproduce.expected("aae/semi-100") == 600 and reproduce.expected("bigan/ali") == 300
    assert reproduce.expected("bigan/released-gan") == 4000  # 400 epochs where bigan/gan has 30
    todo = reproduce.plan(["aae/style", "aae/semi-100"], [0, 1])
    assert todo == [("aae/semi-100", 0), ("aae/style", 1), ("aae/semi-100", 1)]
    reproduce.run_all(todo, 1, lambda *job: ran.append(job))
    assert ran == [(*job, None) for job in todo]
    out = capsys.readouterr().out
    assert "[1 of 3, 0 s so far] aae/semi-100 seed 0: with the rest about 30 min" in out
    assert "\npython aae.py --task semi --labels 100 --seed 0\n" in out
    assert "[2 of 3, 5 min so far] aae/style seed 1: with the rest about 10 min" in out


def config_of(command, script="aae", **settings):
    """config.json as the script of that name writes it for this command."""
    beside = (ROOT / f"{script}.py").exists()
    recipe = importlib.import_module(script if beside else f"experiments.{script}").recipe
    words = re.sub(r"^python (-m )?\S+| --out .*", "", command).split()
    parsed = vars(command_line.parse(recipe, words))
    settings = {k: v for k, v in parsed.items() if k not in ("resume", "out", "device")} | settings
    return {
        "script": script,
        "command": command,
        "settings": settings,
        "precision": "bf16",
        "device": "cpu",
        "hardware": "A, 1 threads",
        "versions": {},
        "commit": "HEAD",
    }


class Child:
    """In place of a run: writes its folder, as the scripts do; some fail."""

    failing, seen, both = (), [], None

    def __init__(self, words, cwd, env=None, **more):
        self.words, self.begins = words, "--out" in words
        self.folder = Path(cwd) / words[words.index("--out" if self.begins else "--resume") + 1]
        self.row, self.seed = self.folder.name.rsplit("-seed", 1)
        threads = (env or {}).get("OMP_NUM_THREADS")
        Child.seen.append((self.row, int(self.seed), threads, "--resume" in words))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def kill(self):
        pass

    def wait(self, timeout=None):
        if Child.both:
            Child.both.wait()  # nobody gets on alone
            time.sleep(0.3 * ((self.row, self.seed) not in Child.failing))
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.begins:
            script = self.words[1].removesuffix(".py")
            config = config_of(" ".join(["python", *self.words[1:]]), script)
            (self.folder / "config.json").write_text(json.dumps(config))
        if (self.row, self.seed) in Child.failing:
            return 1
        metrics = {"z_error": 40.0 + int(self.seed), "seconds": 5.0, "images_per_second": 7.0}
        (self.folder / "metrics.json").write_text(json.dumps(metrics))
        return 0


@pytest.fixture
def pretended(tmp_path, monkeypatch):
    """Runs that are pretended, and an empty results/ and runs/."""
    for name in ("RESULTS", "ROOT"):
        monkeypatch.setattr(reproduce, name, tmp_path)
    monkeypatch.setattr(reproduce, "FIGURES", {})
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(reproduce.subprocess, "Popen", Child)
    monkeypatch.setattr(reproduce, "changed_since", lambda folder: False)
    monkeypatch.setattr(Child, "failing", ())
    monkeypatch.setattr(Child, "seen", [])
    monkeypatch.setattr(Child, "both", None)
    return tmp_path


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_fails_ends_it_and_the_next_call_goes_on(pretended, monkeypatch, jobs):
    rows = ["aae/style", "aae/semi-100"]
    monkeypatch.setattr(Child, "failing", {("style", "0")})
    monkeypatch.setattr(Child, "both", threading.Barrier(2, timeout=20) if jobs == 2 else None)
    with pytest.raises(SystemExit, match="aae/style seed 0 did not finish"):
        reproduce.run_all(reproduce.plan(rows, [0, 1, 2]), jobs)
    begun = [("style", 0, None, False)]
    if jobs == 2:  # half of four cores each
        begun = [("semi-100", 0, "2", False), ("style", 0, "2", False)]
    assert sorted(Child.seen) == begun
    assert len(reproduce.plan(rows, [0, 1, 2])) == (6 if jobs == 1 else 5)
    monkeypatch.setattr(Child, "failing", ())
    monkeypatch.setattr(Child, "both", None)
    monkeypatch.setattr(Child, "seen", [])
    reproduce.run_all(reproduce.plan(["aae/style"], [0]), 1)
    assert Child.seen == [("style", 0, None, True)]
    assert [e["metrics"] for e in reproduce.read("aae/style")] == [{"z_error": 40.0}]


def test_a_run_of_mathieu_goes_on_by_its_folder_alone(pretended, monkeypatch):
    monkeypatch.setattr(Child, "failing", {("mnist-short", "2")})
    with pytest.raises(SystemExit, match="mathieu/mnist-short seed 2 did not finish"):
        reproduce.reproduce("mathieu/mnist-short", 2)
    monkeypatch.setattr(Child, "failing", ())
    folder = pretended / "runs/results/mathieu/mnist-short-seed2"
    words = reproduce.words_of("mathieu/mnist-short", 2, folder)
    assert words[1:] == ["mathieu.py", "--resume", str(folder)]
    words = reproduce.words_of("mathieu/mnist-pretrained-s", 2, folder)
    assert words[1:] == ["-m", "experiments.mathieu_pretrained_s", "--resume", str(folder)]
    reproduce.reproduce("mathieu/mnist-short", 2)
    (entry,) = reproduce.read("mathieu/mnist-short")
    assert entry["command"] == "python mathieu.py --epochs 4 --seed 2"
    assert entry["precision"] == "bf16" and entry["metrics"] == {"z_error": 42.0}


def test_an_interrupt_begins_no_further_run(pretended, monkeypatch):
    def wait(child, timeout=None):
        raise KeyboardInterrupt

    monkeypatch.setattr(Child, "wait", wait)
    for jobs in (1, 2):
        monkeypatch.setattr(Child, "seen", [])
        with pytest.raises(KeyboardInterrupt):
            reproduce.run_all(reproduce.plan(["aae/style"], range(6)), jobs)
        assert len(Child.seen) <= jobs


def test_a_finished_folder_is_filed_and_one_of_other_code_set_aside(pretended, monkeypatch):
    folder = reproduce.train("aae/style", 3, "runs/results")
    reproduce.reproduce("aae/style", 3)
    assert len(Child.seen) == 1 and [e["seed"] for e in reproduce.read("aae/style")] == [3]
    monkeypatch.setattr(reproduce, "changed_since", lambda folder: True)
    assert reproduce.train("aae/style", 3, "runs/results") == folder
    assert len(Child.seen) == 2 and not Child.seen[1][3]
    assert len(list(folder.parent.glob("style-seed3-before-*"))) == 1


def finished(folder, config):
    """A finished run folder, wherever it lies."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    metrics = {"s_error": 1.5, "seconds": 5.0, "images_per_second": 7.0}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def test_file_takes_the_row_from_the_name_of_the_folder(pretended):
    command = "python mathieu.py --epochs 4 --code-weight 0 --seed 1 --out somewhere"
    place = pretended / "elsewhere/mnist-no-code-discriminator-seed1"
    reproduce.file_folder(finished(place, config_of(command, "mathieu")))
    (entry,) = reproduce.read("mathieu/mnist-no-code-discriminator")
    assert entry["seed"] == 1 and entry["metrics"] == {"s_error": 1.5}
    assert entry["command"] == "python mathieu.py --epochs 4 --code-weight 0 --seed 1"
    words = "--seed 2 --epochs 4"  # the order of the flags does not matter
    script = "mathieu_pretrained_s"
    place = pretended / "elsewhere/mnist-pretrained-s-seed2"
    reproduce.file_folder(finished(place, config_of(words, script)))
    (entry,) = reproduce.read("mathieu/mnist-pretrained-s")
    assert entry["command"] == "python -m experiments.mathieu_pretrained_s --epochs 4 --seed 2"
    command = "python aae.py --task style --seed 4 --out somewhere"
    parts = [{"epoch": 3, "hardware": "A, 2 threads"}]
    config = {**config_of(command), "resumed": parts}
    reproduce.file_folder(finished(pretended / "style-seed4", config))
    (entry,) = reproduce.read("aae/style")
    assert entry["seed"] == 4 and entry["resumed"] == parts
    assert not Child.seen


@pytest.mark.parametrize(
    "folder, command, script, words",
    [
        ("mnist-seed0-2", "--epochs 50 --seed 0", "mathieu", "not named ROW-seedN"),
        ("other-seed0", "--epochs 50 --seed 0", "mathieu", "not named ROW-seedN"),
        ("mnist-seed0", "--epochs 4 --seed 0", "mathieu", "is no run of"),
        ("mnist-seed0", "--epochs 50 --seed 1", "mathieu", "is no run of"),
        ("mnist-short-seed0", "--epochs 4 --seed 0", "mathieu_pretrained_s", "is no run of"),
        ("style-seed0", "python aae.py --task semi --seed 0", "aae", "is no run of"),
    ],
)
def test_file_refuses_what_is_no_run_of_a_row(pretended, folder, command, script, words):
    place = finished(pretended / folder, config_of(command, script))
    with pytest.raises(common.UserError, match=words):
        reproduce.file_folder(place)
    assert {path.parent for path in pretended.glob("*/*.json")} <= {place}


def test_file_refuses_what_is_not_finished(pretended):
    place = finished(pretended / "mnist-seed0", config_of("--epochs 50 --seed 0", "mathieu"))
    (place / "metrics.json").unlink()
    with pytest.raises(common.UserError, match="not finished"):
        reproduce.file_folder(place)


def test_a_run_without_its_figure_or_with_a_damaged_file_is_not_filed(pretended, monkeypatch):
    monkeypatch.setattr(reproduce, "FIGURES", {"aae/style": ("style",)})
    place = finished(pretended / "style-seed0", config_of("--task style --seed 0"))
    with pytest.raises(common.UserError, match="has no style.png"):
        reproduce.file_folder(place)
    assert reproduce.read("aae/style") == []
    (place / "metrics.json").write_text('{"z_error": ')
    with pytest.raises(common.UserError, match="metrics.json' is damaged"):
        reproduce.file_folder(place)
    (pretended / "aae").mkdir()
    (pretended / "aae/style.json").write_text("<<<<<<<")
    with pytest.raises(common.UserError, match="style.json' is damaged"):
        reproduce.read("aae/style")


def test_pages_are_written_where_something_was_filed(monkeypatch):
    written = []
    monkeypatch.setattr(tables, "write_atomic", lambda path, content: written.append(path))
    tables.write_pages()
    assert written == []  # the pages agree with what is on file
    monkeypatch.setattr(tables, "write_pages", lambda: written.append("pages"))
    monkeypatch.setattr(reproduce, "run_asked", lambda o: None)
    for words in (["--plan"], ["--again"]):
        reproduce.main(words)
    assert written == []
    for words in ([], ["--again", "--keep"], ["--pages"]):
        reproduce.main(words)
    assert written == ["pages"] * 3


def test_a_run_of_changed_code_goes_on_by_its_own_flag(pretended, monkeypatch):
    monkeypatch.setattr(Child, "failing", {("style", "0")})
    with pytest.raises(SystemExit, match="the same command goes on with it"):
        reproduce.reproduce("aae/style", 0)
    monkeypatch.setattr(reproduce, "changed_since", lambda folder: True)
    with pytest.raises(SystemExit, match="; python aae.py --resume .*style-seed0 goes on with it"):
        reproduce.reproduce("aae/style", 0)


def test_again_compares_and_files_nothing(pretended, capsys):
    for seed in (0, 1, 2):
        reproduce.reproduce("aae/style", seed)
    filed = (pretended / "aae/style.json").read_text()
    reproduce.again("aae/style", 5)
    assert "| z_error | 41 | 1 | 45 | 4.0 |" in capsys.readouterr().out
    assert (pretended / "aae/style.json").read_text() == filed
    reproduce.again("aae/style", 5)  # a second time it runs, too
    assert len(Child.seen) == 5
    assert len(list((pretended / "runs/again/aae").glob("style-seed5-before-*"))) == 1
    assert not (pretended / "again").exists()


def test_a_score_that_moved_where_all_seeds_agree_is_far_off(monkeypatch):
    entries = [{"metrics": {"error": 3.09, "one": float(seed)}} for seed in (1, 2, 3)]
    monkeypatch.setattr(reproduce, "read", lambda row: entries)

    def away(error):
        (_, _, spread, _, far), other = reproduce.compare("row", {"metrics": {"error": error}})
        assert spread == 0 and other[4] is None
        return far

    assert away(3.09) == 0 and away(3.1) == math.inf


def test_a_run_of_other_images_is_of_no_row():
    settings = dataclasses.asdict(importlib.import_module("bigan").recipe())
    config = {"script": "bigan", "settings": settings}
    assert reproduce.is_of("bigan/mnist", 0, config)
    settings["data"] = "/elsewhere"
    assert not reproduce.is_of("bigan/mnist", 0, config)
    settings["data"] = ""
    assert reproduce.is_of("bigan/mnist", 0, config)
    del settings["penalty"]  # a run of code that did not have it
    assert not reproduce.is_of("bigan/mnist", 0, config)


def test_what_a_process_holds_is_not_set_aside(pretended, monkeypatch):
    folder = reproduce.train("aae/style", 3, "runs/results")
    monkeypatch.setattr(reproduce, "changed_since", lambda folder: True)
    held = run_folder.lock(folder)
    with pytest.raises(common.UserError, match="of this process holds"):
        reproduce.train("aae/style", 3, "runs/results")
    held.release()
    assert reproduce.train("aae/style", 3, "runs/results") == folder


def test_again_keep_files_it_among_the_repeats(pretended):
    for seed in (0, 1, 2):
        reproduce.reproduce("aae/style", seed)
    reproduce.again("aae/semi-100", 0, keep=True)  # nothing to compare with: filed, no line
    filed = (pretended / "aae/style.json").read_text()
    for seed in (5, 1, 5):  # the third takes the first's place
        reproduce.again("aae/style", seed, keep=True)
    assert (pretended / "aae/style.json").read_text() == filed
    assert [e["seed"] for e in reproduce.read("again/aae/style")] == [1, 5]
    near, far = tables.repeats_table().splitlines()[2:]
    words = "| aae/style, seed 1, by A, in bf16 | 1 of 1 |"
    assert near == f"{words} z error: 41 (41 ± 1) |"
    assert far.endswith("| 0 of 1 | z error: 45 (41 ± 1) |")


def test_seeds_are_those_of_the_tables():
    for row, count in (
        ("bigan/grid-random", 10),
        ("bigan/grid", 5),
        ("mathieu/mnist", 5),
        ("mathieu/sprites", 5),
        ("mathieu/mnist-short", 3),
        ("mathieu/sprites-paper-terms", 3),
    ):
        assert [seed for _, seed in reproduce.asked([row], None)] == list(range(count)), row
    assert reproduce.asked(["aae/style", "bigan/grid"], [3, 1, 3]) == [
        ("aae/style", 1),
        ("bigan/grid", 1),
        ("aae/style", 3),
        ("bigan/grid", 3),
    ]


@pytest.mark.skipif(not shutil.which("git"), reason="there is no git")
def test_the_commit_is_the_last_one_of_code_or_data(tmp_path, monkeypatch):
    """A filed result is no other version of the code: a run that was cut off goes on."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)  # of a hook that runs the tests
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)  # no signatures, hooks, ignored folders
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]

    def commit_file(name):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
        subprocess.run([*git, "add", "-f", "."], check=True)
        subprocess.run([*git, "commit", "-qm", name], check=True)
        return machine.commit.__wrapped__()  # the tests' own asks once

    assert machine.commit.__wrapped__() == "unknown"
    subprocess.run([*git, "init", "-q"], check=True)
    first = commit_file("experiments/scores.py")
    assert commit_file("results/row.json") == first
    assert commit_file("data/mnist.npz") != first
    last = commit_file("aae.py")
    (tmp_path / "aae.py").write_text("changed")
    assert machine.commit.__wrapped__() == f"{last}+"


def test_changed_since_compares_the_commit(tmp_path, monkeypatch):
    for begun, now, changed in (
        ("abc", "abc", False),
        ("abc", "abd", True),
        ("abc+", "abc+", True),  # what was not committed may have changed again
        ("unknown", "unknown", True),
    ):
        config = {"script": "aae", "settings": {}, "commit": begun}
        (tmp_path / "config.json").write_text(json.dumps(config))
        monkeypatch.setattr(reproduce, "commit", lambda: now)
        assert reproduce.changed_since(tmp_path) == changed


def test_minutes_are_of_the_fastest_machine(monkeypatch):
    entries = [
        {"seconds": 600, "hardware": "A, B, 1 threads", "precision": "bf16"},
        {"seconds": 300, "hardware": "A, B, 2 threads", "precision": "bf16"},
        {"seconds": 900, "hardware": "A, B, 2 threads", "precision": "fp32"},
        {"seconds": 60, "hardware": "NVIDIA H200", "precision": "bf16"},
    ]
    monkeypatch.setattr(reproduce, "read", lambda row: entries)
    assert tables.minutes("aae/style") == "5 min, 1.0 on a GPU"
    assert tables.minutes_on("aae/style", "fp32") == "15"
    del entries[1]
    assert tables.minutes("aae/style") == "10* min, 1.0 on a GPU"
    assert [reproduce.machine(entry) for entry in entries] == [
        "A, B, in bf16",
        "A, B, in fp32",
        "NVIDIA H200, in bf16",
    ]
    assert reproduce.expected("aae/style") == 750
    del entries[:2]
    assert tables.minutes("aae/style") == "1.0 min on a GPU"
    assert reproduce.expected("aae/style") == 300
    del entries[:]
    assert tables.minutes("aae/style") == "–"


def test_a_score_that_some_seeds_lack_says_so(monkeypatch):
    entries = [{"metrics": {"steps": 3.0, "error": 1.0}}, {"metrics": {"error": 2.0}}]
    monkeypatch.setattr(reproduce, "read", lambda row: entries)
    assert tables.ours("row", "steps") == "3.0 (1 of 2)" and tables.ours("row", "none") == "–"
    assert tables.ours("row", "error") == "1.5 ± 0.7"


def test_tables_say_which_rows_were_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "RESULTS", tmp_path)
    for make in tables.PARTS.values():
        make()
    assert "`python mathieu.py --epochs 50`: no finished run" in tables.mnist_table()
    assert tables.ablation_table().count("no finished run") == 11
    assert "98" not in tables.across_table() and "(0)" in tables.across_table()


@pytest.mark.parametrize("script, count", [("mathieu", 7), ("bigan", 3), ("infogan", 5)])
def test_log_legend_names_every_column(script, count):
    source = (ROOT / f"{script}.py").read_text("utf-8")
    calls = []
    for rest in source.split("run.log(")[1:]:  # up to the parenthesis that closes the call
        depth = [1 + rest[: k + 1].count("(") - rest[: k + 1].count(")") for k in range(len(rest))]
        calls.append(rest[: depth.index(0)])
    logged = re.findall(r"(\w+)=", " ".join(calls))
    legend = PAGES[f"results/{script}.md"].split(f"| column of {script}.py")[1].split("\n\n")[0]
    told = set(re.findall(r"\w+", " ".join(re.findall(r"^\| (.*?) \|", legend, re.MULTILINE))))
    assert len(logged) == count and set(logged) <= told
