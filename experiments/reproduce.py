"""Runs the commands behind the tables and files what they gave in results/.

    python -m experiments.reproduce --only mathieu/mnist --seeds 0 1 2   # one row, of --help's list
    python -m experiments.reproduce --jobs 2      # two runs beside each other, half the cores each
    python -m experiments.reproduce --plan        # what is left to run, and about how long it takes
    python -m experiments.reproduce --file runs/mathieu/mnist-seed0    # a run that is finished
    python -m experiments.reproduce --only aae/style --seeds 0 --again    # anew, beside the filed
    python -m experiments.reproduce --pages       # the tables of all pages anew from results/

A seed on file is skipped. A run that was cut off goes on where it stopped; its folder is
runs/results/ROW-seedN. It begins anew where the code may have changed since: where git knows no
commit of it, or there are changes that are not committed. No number of ours in a page's table is
typed by hand, but mathieu.md's "released recipe". --again only compares. With --keep it also files
the run in results/again/, which the tables' means leave out.
"""

import importlib
import io
import json
import math
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path

import common
from experiments import command_line, run_folder
from experiments.machine import commit

import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
WRITING = threading.Lock()  # a row's file is read, changed and written by one run at a time

NO_ADVERSARY = "--swap-weight 0 --prior-weight 0 --code-weight 0"
# aae.py without warps: few labels or many, slow rates, late smoothness.
FEW = "--warp 0 --neighbours 3 --smooth-weight 6 --smooth-rise 0.8 --y-weight 1"
MANY = "--warp 0 --warp-weight 0 --y-weight 1"
SLOW, LATE = "--lr 1e-4 --lr-encoder 1e-4", "--smooth-weight 3 --smooth-rise 0.5"
TABLE1 = {  # BiGAN's Table 1: names of rows and of their models
    "gan": "gan",
    "lr": "latent-regressor",
    "jlr": "joint-latent-regressor",
    "ae-l2": "ae-l2",
    "ae-l1": "ae-l1",
}
ROWS = {  # what stands behind `python` in a row's command
    "mathieu/mnist": "mathieu.py --epochs 50",
    "mathieu/mnist-paper-terms": "mathieu.py --epochs 50 --recipe paper",
    "mathieu/sprites": "mathieu.py --dataset sprites --epochs 50",
    "mathieu/sprites-paper-terms": "mathieu.py --dataset sprites --epochs 50 --recipe paper",
    "mathieu/mnist-short": "mathieu.py --epochs 4",
    "mathieu/mnist-short-paper-terms": "mathieu.py --epochs 4 --recipe paper",
    "mathieu/mnist-no-code-discriminator": "mathieu.py --epochs 4 --code-weight 0",
    "mathieu/mnist-no-dead-zone": "mathieu.py --epochs 4 --dead-zone 0",
    "mathieu/mnist-prior-std-1": "mathieu.py --epochs 4 --prior-std 1",
    "mathieu/mnist-constant-kl": "mathieu.py --epochs 4 --kl-start 2.4",
    "mathieu/mnist-no-prior-term": "mathieu.py --epochs 4 --prior-weight 0",
    "mathieu/mnist-no-adversary": f"mathieu.py --epochs 4 {NO_ADVERSARY}",
    "mathieu/mnist-weak-kl": "mathieu.py --epochs 4 --kl-start 0.15 --kl-weight 0.15",
    "mathieu/mnist-weak-kl-no-adversary": "mathieu.py --epochs 4 --kl-start 0.15 --kl-weight 0.15"
    f" {NO_ADVERSARY}",
    "mathieu/mnist-pretrained-s": "-m experiments.mathieu_pretrained_s --epochs 4",
    "aae/prior-gaussian": "aae.py",
    "aae/prior-gaussian-kl": "-m experiments.aae_compared --regularizer kl",
    "aae/prior-gaussian-mmd": "-m experiments.aae_compared --regularizer mmd",
    "aae/prior-mixture-10000": "aae.py --task prior-labels --prior mixture",
    "aae/prior-swiss-roll-10000": "aae.py --task prior-labels --prior swiss-roll",
    "aae/likelihood": "aae.py --task likelihood",
    "aae/likelihood-50-epochs": "aae.py --task likelihood --epochs 50",
    "aae/likelihood-noise": "aae.py --task likelihood --epochs 100 --noise 0.5",
    "aae/likelihood-6d": "aae.py --task likelihood --epochs 50 --z-dim 6",
    "aae/likelihood-kl": "-m experiments.aae_compared --task likelihood --regularizer kl",
    "aae/likelihood-wae-gan": "-m experiments.aae_compared --task likelihood --regularizer wae-gan",
    "aae/likelihood-mmd": "-m experiments.aae_compared --task likelihood --regularizer mmd",
    "aae/style": "aae.py --task style",
    "aae/semi-100": "aae.py --task semi --labels 100",
    "aae/semi-100-no-warps": f"aae.py --task semi --labels 100 {FEW}",
    "aae/semi-1000": "aae.py --task semi --labels 1000",
    "aae/semi-1000-no-warps": f"aae.py --task semi --labels 1000 {MANY} {LATE}",
    "aae/semi-60000": "aae.py --task semi-all",
    "aae/semi-60000-no-warps": f"aae.py --task semi-all --epochs 25 {MANY} {SLOW}",
    "aae/cluster-16": "aae.py --task cluster --clusters 16",
    "aae/cluster-30": "aae.py --task cluster --clusters 30",
    "aae/semi-100-paper-terms": "aae.py --task semi --labels 100 --recipe paper",
    "aae/cluster-16-paper-terms": "aae.py --task cluster --clusters 16 --recipe paper"
    " --batch-norm all",
    "aae/embed-1000": "aae.py --task embed --labels 1000",
    "aae/embed-100": "aae.py --task embed --labels 100",
    "aae/embed-0": "aae.py --task embed-clusters",
    "bigan/mnist": "bigan.py",
    **{
        f"bigan/{name}": f"-m experiments.bigan_baselines --model {model}"
        for name, model in TABLE1.items()
    },
    "bigan/ali": "bigan.py --model ali",
    "bigan/alice": "bigan.py --model alice",
    "bigan/pixels": "-m experiments.bigan_baselines --model pixels",
    "bigan/untrained": "-m experiments.bigan_baselines --model untrained",
    "bigan/bilinear": "-m experiments.bigan_product",
    "bigan/released": "-m experiments.bigan_released",
    **{
        f"bigan/released-{name}": f"-m experiments.bigan_released --model {model}"
        for name, model in TABLE1.items()
    },
    "bigan/released-held-out": "-m experiments.bigan_released --validation",
    **{
        f"bigan/released-{name}-held-out": f"-m experiments.bigan_released --model {model}"
        " --validation"
        for name, model in TABLE1.items()
    },
    "bigan/mnist-held-out": "bigan.py --validation",
    **{
        f"bigan/{name}-held-out": f"-m experiments.bigan_baselines --model {model} --validation"
        for name, model in {"pixels": "pixels", "untrained": "untrained", **TABLE1}.items()
    },
    "bigan/grid": "-m experiments.gaussians",
    "bigan/grid-random": "-m experiments.gaussians --setting random",
    "infogan/mnist": "infogan.py",
    "infogan/weight-2": "infogan.py --continuous-weight 2",
    "infogan/long": "infogan.py --epochs 8 --far 1 --far-judged 0",
    "infogan/baseline": "-m experiments.infogan_regular",
    "infogan/paper": "infogan.py --recipe paper",
    "infogan/k0": "infogan.py --categories 0 --warp 0 --continuous-start 0",
    "infogan/k10": "infogan.py --far-judged 0",
    **{f"infogan/k{k}": f"infogan.py --categories {k} --far-judged 0" for k in (2, 5, 20, 30, 50)},
}
FIGURES = {
    "mathieu/mnist": ("swap", "interpolation", "generation", "retrieval", "losses"),
    "mathieu/sprites": ("swap", "generation", "retrieval"),
    "mathieu/mnist-short": ("swap",),
    "mathieu/mnist-weak-kl-no-adversary": ("swap",),
    "mathieu/mnist-pretrained-s": ("swap",),
    "aae/prior-gaussian": ("codes", "manifold"),
    "aae/prior-gaussian-kl": ("codes",),
    "aae/prior-mixture-10000": ("codes", "manifold"),
    "aae/prior-swiss-roll-10000": ("codes", "manifold"),
    "aae/likelihood": ("samples",),
    "aae/style": ("style",),
    "aae/cluster-16": ("clusters",),
    "aae/cluster-30": ("clusters",),
    **{f"aae/embed-{labels}": ("codes",) for labels in (1000, 100, 0)},
    "bigan/mnist": ("reconstructions", "samples"),
    "bigan/bilinear": ("reconstructions",),
    "bigan/ali": ("reconstructions", "interpolation"),
    "bigan/alice": ("reconstructions",),
    "bigan/grid": ("grid",),
    "infogan/mnist": ("categories", "continuous-1", "continuous-2"),
    "infogan/baseline": ("information", "categories"),
    "infogan/paper": ("categories",),
    "infogan/k20": ("categories",),
}


# ---- Rows on file --------------------------------------------------------------------------------
def read(row):
    """Entries on file of a row, one a seed."""
    path = RESULTS / f"{row}.json"
    return run_folder.read_json(path) if path.exists() else []


def write(row, entries):
    """All entries of a row, in the order of their seeds."""
    path = RESULTS / f"{row}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(sorted(entries, key=lambda entry: entry["seed"]), indent=1)
    common.write_atomic(path, f"{text}\n".encode())


def parts_of(row):
    """The words of a row's command that name the program, and its flags."""
    words = ROWS[row].split()
    count = 2 if words[0] == "-m" else 1
    return words[:count], words[count:]


def paper_of(script):
    """The paper whose rows a script trains."""
    names = (f"{script}.py", f"experiments.{script}")
    return next((row.split("/")[0] for row in ROWS if parts_of(row)[0][-1] in names), script)


def command(row, seed=None):
    return f"python {ROWS[row]}" + ("" if seed is None else f" --seed {seed}")


def is_of(row, seed, config):
    """Whether a run with this config.json is a run of this row and seed."""
    program, flags = parts_of(row)
    module = program[-1].removesuffix(".py")
    script = module.removeprefix("experiments.")
    recipe = importlib.import_module(module).recipe
    wanted = vars(command_line.parse(recipe, [*flags, "--seed", str(seed)]))
    free = {"resume", "out", "device", "precision", "beside"}  # an entry names its precision
    ran, wanted = (
        {k: v for k, v in one.items() if k not in free} for one in (config["settings"], wanted)
    )
    return config["script"] == script and ran == wanted


def entry_of(row, seed, folder):
    """What is kept of a finished run folder."""
    config = run_folder.read_config(folder)
    if not is_of(row, seed, config):
        raise common.UserError(f"'{folder}' is no run of: {command(row, seed)}")
    metrics = run_folder.read_json(folder / "metrics.json")
    return {
        "seed": seed,
        "command": command(row, seed),
        "metrics": {k: v for k, v in metrics.items() if k not in ("seconds", "images_per_second")},
        "seconds": metrics["seconds"],
        "images_per_second": metrics["images_per_second"],
        **{k: config[k] for k in ("device", "hardware", "versions", "commit", "precision")},
        **{k: config[k] for k in ("resumed",) if k in config},  # parts on another machine or code
    }


def collect(row, seed, folder):
    """Put a finished run folder into the row's file, and copy its figures (first seed only)."""
    entry, names = entry_of(row, seed, folder), FIGURES.get(row, ()) if seed == 0 else ()
    absent = [f"{name}.png" for name in names if not (folder / f"{name}.png").exists()]
    if absent:
        words = f"python -m experiments.score {folder} draws it"
        raise common.UserError(f"'{folder}' has no {absent[0]}: {words}")
    for name in names:
        path = RESULTS / f"{row}-{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        common.write_atomic(path, shrunk(folder / f"{name}.png"))
    write(row, [e for e in read(row) if e["seed"] != seed] + [entry])


def shrunk(path, limit=200_000):
    """A figure's PNG as bytes, with as many levels a colour as bring it under the limit; a small
    one as it is. (A palette of 256 colours is smaller still, and turned green faces grey.)"""
    content, image = path.read_bytes(), Image.open(path).convert("RGB")
    for levels in (256, 64, 32, 16):
        if len(content) >= limit:
            step, buffer = 255 / (levels - 1), io.BytesIO()
            levelled = image.point(lambda v: round(round(v / step) * step))
            levelled.save(buffer, "png", optimize=True)
            content = buffer.getvalue()
    return content


def file_folder(folder):
    """File a finished run folder named ROW-seedN, wherever it lies; nothing is run."""
    folder = Path(folder).resolve()
    paper = paper_of(run_folder.read_config(folder)["script"])
    row, _, seed = f"{paper}/{folder.name}".rpartition("-seed")
    if row not in ROWS or not seed.isdecimal():
        raise common.UserError(f"'{folder}' is not named ROW-seedN by a row of {paper}")
    if not (folder / "metrics.json").exists():
        raise common.UserError(f"the run in '{folder}' is not finished")
    collect(row, int(seed), folder)
    print(f"filed: {command(row, int(seed))}")


# ---- Running rows --------------------------------------------------------------------------------
def changed_since(folder):
    """Whether the code may differ from that which began the run in this folder."""
    begun = run_folder.read_config(folder)["commit"]
    unknown = begun == "unknown" or begun.endswith("+")  # uncommitted changes, then or now
    return unknown or begun != commit()


def words_of(row, seed, folder):
    """The words of the process that begins a run in this folder, or goes on with it."""
    if (folder / "config.json").exists():
        return [sys.executable, *parts_of(row)[0], "--resume", str(folder)]
    return [sys.executable, *command(row, seed).split()[1:], "--out", str(folder)]


def train(row, seed, place, threads=None, anew=False):
    """Run one row with one seed into a folder of `place`, or go on with it there: the folder.

    A finished run is taken as it is, or set aside where `anew`; one of other code is set aside.
    threads: torch's, when other runs go on beside. Its output then goes to FOLDER.txt."""
    folder = ROOT / place / f"{row}-seed{seed}"
    if (folder / "config.json").exists():
        if changed_since(folder) or (anew and (folder / "metrics.json").exists()):
            aside = folder.with_name(f"{folder.name}-before-{time.strftime('%Y%m%d-%H%M%S')}")
            run_folder.lock(folder).release()  # not while a process is at work in it
            print(f"{folder} is an earlier run, or one of other code: moved to {aside}")
            folder.rename(aside)
    if (folder / "metrics.json").exists():  # finished, but not filed
        return folder
    words = words_of(row, seed, folder)
    if threads is None:
        status, where = subprocess.call(words, cwd=ROOT), ""
    else:
        log = folder.with_name(f"{folder.name}.txt")
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        with open(log, "a") as file:
            streams = {"stdout": file, "stderr": subprocess.STDOUT}
            status = subprocess.call(words, cwd=ROOT, env=environment, **streams)
        where = f", see {log}"
    if status:
        how = "the same command goes on with it"
        if (folder / "config.json").exists() and changed_since(folder):
            how = f"python {' '.join(parts_of(row)[0])} --resume {folder} goes on with it"
        sys.exit(f"{row} seed {seed} did not finish{where}; {how}")
    return folder


def reproduce(row, seed, threads=None):
    """Run one row with one seed and file it."""
    folder = train(row, seed, "runs/results", threads)
    with WRITING:
        collect(row, seed, folder)


def compare(row, entry):
    """An entry's scores beside those on file: (name, mean, deviation, now, deviations away), None
    where there is no such number; infinitely many where all seeds agree and this one does not."""
    lines, filed = [], [entry["metrics"] for entry in read(row)]
    for name in sorted(set().union(*filed)):
        values = [metrics[name] for metrics in filed if name in metrics]
        spread = statistics.stdev(values) if len(values) > 1 else None
        mean, now = statistics.mean(values), entry["metrics"].get(name)
        away = None
        if spread is not None and now is not None:
            same = math.isclose(now, mean, rel_tol=1e-6)
            away = 0.0 if same else abs(now - mean) / spread if spread else math.inf
        lines.append((name, mean, spread, now, away))
    return lines


def cell(value, form):
    return "–" if value is None else format(value, form)


def again(row, seed, threads=None, keep=False):
    """Run one row with one seed, on file or not, and print its scores beside those on file.

    keep: file it among the repeats."""
    entry = entry_of(row, seed, train(row, seed, "runs/again", threads, anew=True))
    lines = []
    for name, *values in compare(row, entry):
        lines.append([name, *map(cell, values, (".4g", ".2g", ".4g", ".1f"))])
    with WRITING:
        if keep:
            mine = (seed, machine(entry))
            others = [e for e in read(f"again/{row}") if (e["seed"], machine(e)) != mine]
            write(f"again/{row}", [*others, entry])
        print(f"{row} seed {seed}, {len(read(row))} seeds on file")
        print(table(["score", "on file", "std", "now", "std away"], lines), flush=True)


def cpu_seconds(row):
    """Of each run of a row that is on file and ran on a CPU."""
    return [e["seconds"] for e in read(row) + read(f"again/{row}") if threads(e)]


def expected(row):
    """Seconds that a run of this row takes on a CPU, by those on file: of the row, of the same with
    other images, of the same in 30 epochs, or of its paper's rows; 300 where there are none."""
    found = cpu_seconds(row) or cpu_seconds(row.removesuffix("-held-out"))
    if not found and row.startswith("bigan/released"):  # 400 epochs where ours has 30
        ours = row.replace("released-", "").replace("released", "mnist")
        return expected(ours) * 400 / 30
    if not found:
        beside = [other for other in ROWS if other.split("/")[0] == row.split("/")[0]]
        found = [seconds for other in beside for seconds in cpu_seconds(other)]
    return statistics.mean(found) if found else 300.0


def seeds_of(row):
    """The seeds of the tables."""
    if row == "bigan/grid-random":
        return range(10)  # as many as the paper's
    if row.startswith("bigan/released"):  # hours each
        return range(2 if row == "bigan/released" else 1)
    if row.endswith("held-out"):
        return range(1)
    slow = row in ("aae/semi-1000-no-warps", "aae/semi-60000-no-warps", "infogan/weight-2")
    variant = row.startswith("mathieu/") and row not in ("mathieu/mnist", "mathieu/sprites")
    return range(3 if slow or variant or row.endswith("paper-terms") else 5)


def asked(rows, seeds):
    """(row, seed) of each run, in the order in which it will be run, first seeds first.

    seeds: None for those of the tables."""
    each = {row: seeds or seeds_of(row) for row in rows}
    every = sorted(set().union(*each.values()))
    return [(row, seed) for seed in every for row in each if seed in each[row]]


def plan(rows, seeds):
    """Those of `asked` that are not on file."""
    filed = {(row, entry["seed"]) for row in rows for entry in read(row)}
    return [run for run in asked(rows, seeds) if run not in filed]


def in_words(seconds):
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def run_all(todo, jobs=1, run=reproduce):
    """Run (row, seed) after (row, seed), `jobs` beside each other. Before each: how far it is, and
    how long the rest will take at the speed so far.

    What fails or is interrupted ends it all; runs beside come to their end first, unless they are
    interrupted too."""
    guess = [expected(row) for row, _ in todo]  # before new runs move the means
    cores = max(1, torch.get_num_threads() // jobs) if jobs > 1 else None
    start, ended, stop = time.monotonic(), [], threading.Event()

    def one(k):
        if stop.is_set():
            return
        row, seed = todo[k]
        guessed = sum(guess[j] for j, _ in ended)
        speed = sum(took for _, took in ended) / guessed if ended else 1.0
        so_far, rest = time.monotonic() - start, speed * sum(guess[k:]) / jobs
        place = f"[{k + 1} of {len(todo)}, {in_words(so_far)} so far]"
        print(f"{place} {row} seed {seed}: with the rest about {in_words(rest)}")
        print(command(row, seed), flush=True)
        begun = time.monotonic()
        try:
            run(row, seed, cores)
        except BaseException:
            stop.set()
            raise
        ended.append((k, time.monotonic() - begun))

    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(one, k) for k in range(len(todo))]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            stop.set()
            raise


# ---- Words for entries, here and in tables.py ----------------------------------------------------
def threads(entry):
    """Of torch on a CPU; 0 on a GPU."""
    found = re.search(r"(\d+) threads$", entry["hardware"])
    return int(found[1]) if found else 0


def machine(entry):
    """What an entry was computed on, and in which precision: 'AMD EPYC, AVX2, in fp32'."""
    return f"{re.sub(r', [0-9]+ threads$', '', entry['hardware'])}, in {entry['precision']}"


def table(head, lines):
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in rows)


# ---- The command line ----------------------------------------------------------------------------
def make_parser():
    words = "Runs the commands behind the tables and files what they gave in results/."
    cli = command_line.Parser(prog="python -m experiments.reproduce", description=words)
    words = f"rows to run (default: all, many hours): {', '.join(ROWS)}"
    cli.add_argument(
        "--only", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=words
    )
    words = "seeds to run (default: those of the tables, from 1 to 10 by the row)"
    cli.add_argument("--seeds", nargs="+", type=int, metavar="N", help=words)
    words = "runs beside each other, each with its share of the cores (default: 1)"
    cli.add_argument("--jobs", type=int, choices=range(1, 65), default=1, metavar="N", help=words)
    words = "run nothing, print what is not on file and the time it would take"
    cli.add_argument("--plan", action="store_true", help=words)
    words = "run nothing, file finished runs, in folders named ROW-seedN"
    cli.add_argument("--file", nargs="+", metavar="FOLDER", help=words)
    words = "run what is asked for, on file or not, and compare; nothing is filed"
    cli.add_argument("--again", action="store_true", help=words)
    words = "with --again: file the run in results/again/, for the table of repeats"
    cli.add_argument("--keep", action="store_true", help=words)
    words = "run nothing, write the tables of README.md and results/*.md from what is on file"
    cli.add_argument("--pages", action="store_true", help=words)
    return cli


def obey(o):
    """Do what the flags ask for."""
    try:
        for folder in o.file or ():
            file_folder(folder)
        if not (o.file or o.pages):
            run_asked(o)
    finally:  # the tables and what is on file agree, whatever happened
        if not o.plan and (o.keep or not o.again):
            from experiments import tables  # which imports this module

            tables.write_pages()


def run_asked(o):
    """Run the rows that the flags ask for."""
    todo = (asked if o.again else plan)(o.only, o.seeds)
    if o.plan:
        for row, seed in todo:
            print(f"{command(row, seed)}  # {row}, about {in_words(expected(row))}")
    seconds = sum(expected(row) for row, _ in todo) / o.jobs
    if todo:
        print(f"{len(todo)} runs, about {in_words(seconds)}")
    else:
        print("all on file; --again runs it anew and compares")
    if not o.plan:
        run_all(todo, o.jobs, partial(again, keep=o.keep) if o.again else reproduce)


def main(words=None):
    cli = make_parser()
    o = cli.parse_args(words)
    if o.keep and not o.again:
        cli.error("--keep goes with --again")
    obey(o)


if __name__ == "__main__":
    command_line.exit_on_mistake(main, "the same command goes on with it")
