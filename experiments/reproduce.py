"""Runs the commands behind the README's tables and files what they gave in results/.

    python -m experiments.reproduce --only mathieu/mnist --seeds 0 1 2   # one row, of --help's list
    python -m experiments.reproduce --jobs 2      # two runs beside each other, half the cores each
    python -m experiments.reproduce --plan        # what is left to run, and about how long it takes
    python -m experiments.reproduce --file runs/mathieu/mnist-seed0    # a run that is finished
    python -m experiments.reproduce --only aae/style --seeds 0 --again    # anew, beside the filed
    python -m experiments.reproduce --readme      # the README's tables anew from results/

A seed on file is skipped. A run that was cut off goes on where it stopped, unless its code has
changed since; its folder is runs/results/SCRIPT/ROW-seedN. Nothing in results/ is typed by hand.
--again changes nothing in results/; with --keep the run is also filed, in results/again/, apart
from those whose means the tables show.
"""

import dataclasses
import importlib
import json
import os
import re
import shutil
import signal
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

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
RESULTS, README = ROOT / "results", ROOT / "README.md"
CHILDREN = set()  # runs under way
WRITING = threading.Lock()  # a row's file is read, changed and written by one run at a time

ROWS = {
    "mathieu/mnist": "--epochs 50",
    "mathieu/mnist-paper-terms": "--epochs 50 --recipe paper",
    "mathieu/sprites": "--dataset sprites --epochs 50",
    "mathieu/sprites-paper-terms": "--dataset sprites --epochs 50 --recipe paper",
    "mathieu/mnist-short": "--epochs 4",
    "mathieu/mnist-short-paper-terms": "--epochs 4 --recipe paper",
    "mathieu/mnist-no-code-discriminator": "--epochs 4 --code-weight 0",
    "mathieu/mnist-no-dead-zone": "--epochs 4 --dead-zone 0",
    "mathieu/mnist-prior-std-1": "--epochs 4 --prior-std 1",
    "mathieu/mnist-constant-kl": "--epochs 4 --kl-start 2.4",
    "mathieu/mnist-no-prior-term": "--epochs 4 --prior-weight 0",
    "mathieu/mnist-no-adversary": "--epochs 4 --swap-weight 0 --prior-weight 0 --code-weight 0",
    "mathieu/mnist-weak-kl": "--epochs 4 --kl-start 0.15 --kl-weight 0.15",
    "mathieu/mnist-weak-kl-no-adversary": "--epochs 4 --kl-start 0.15 --kl-weight 0.15"
    " --swap-weight 0 --prior-weight 0 --code-weight 0",
    "mathieu/mnist-pretrained-s": "--epochs 4",
    "aae/prior-gaussian": "",
    "aae/prior-gaussian-kl": "--regularizer kl",
    "aae/prior-gaussian-mmd": "--regularizer mmd",
    "aae/prior-mixture-10000": "--task prior-labels --prior mixture",
    "aae/prior-swiss-roll-10000": "--task prior-labels --prior swiss-roll",
    "aae/likelihood": "--task likelihood",
    "aae/likelihood-50-epochs": "--task likelihood --epochs 50",
    "aae/likelihood-noise": "--task likelihood --epochs 100 --noise 0.5",
    "aae/likelihood-6d": "--task likelihood --epochs 50 --z-dim 6",
    "aae/likelihood-kl": "--task likelihood --regularizer kl",
    "aae/likelihood-wae-gan": "--task likelihood --regularizer wae-gan",
    "aae/likelihood-mmd": "--task likelihood --regularizer mmd",
    "aae/style": "--task style",
    "aae/semi-100": "--task semi --labels 100",
    "aae/semi-100-no-warps": "--task semi --labels 100 --warp 0 --warp-weight 0"
    " --lr-encoder 3e-4 --noise 0.3",
    "aae/semi-1000": "--task semi --labels 1000",
    "aae/semi-60000": "--task semi-all",
    "aae/cluster-16": "--task cluster --clusters 16",
    "aae/cluster-30": "--task cluster --clusters 30",
    "aae/embed-1000": "--task embed --labels 1000",
    "aae/embed-100": "--task embed --labels 100",
    "aae/embed-0": "--task embed-clusters",
    "bigan/mnist": "",
    "bigan/gan": "--model gan",
    "bigan/lr": "--model latent-regressor",
    "bigan/jlr": "--model joint-latent-regressor",
    "bigan/ae-l2": "--model ae-l2",
    "bigan/ae-l1": "--model ae-l1",
    "bigan/ali": "--model ali",
    "bigan/alice": "--model alice",
    "bigan/pixels": "--model pixels",
    "bigan/untrained": "--model untrained",
    "bigan/bilinear": "",
    "bigan/grid": "",
    "bigan/grid-long": "--epochs 52",
    "bigan/grid-random": "--setting random",
    "infogan/mnist": "",
    "infogan/long": "--epochs 8 --far 1",
    "infogan/baseline": "--recipe baseline",
    "infogan/paper": "--recipe paper",
    "infogan/k0": "--categories 0 --warp 0 --continuous-start 0 --baseline-epochs 0",
    **{f"infogan/k{k}": f"--categories {k} --baseline-epochs 0" for k in (2, 5, 20, 30, 50)},
}
PROGRAMS = {  # rows that are not of their paper's script
    "mathieu/mnist-pretrained-s": "-m experiments.mathieu_pretrained_s",
    "aae/prior-gaussian-kl": "-m experiments.aae_compared",
    "aae/prior-gaussian-mmd": "-m experiments.aae_compared",
    "aae/likelihood-kl": "-m experiments.aae_compared",
    "aae/likelihood-wae-gan": "-m experiments.aae_compared",
    "aae/likelihood-mmd": "-m experiments.aae_compared",
    "bigan/gan": "-m experiments.bigan_baselines",
    "bigan/lr": "-m experiments.bigan_baselines",
    "bigan/jlr": "-m experiments.bigan_baselines",
    "bigan/ae-l2": "-m experiments.bigan_baselines",
    "bigan/ae-l1": "-m experiments.bigan_baselines",
    "bigan/pixels": "-m experiments.bigan_baselines",
    "bigan/untrained": "-m experiments.bigan_baselines",
    "bigan/bilinear": "-m experiments.bigan_product",
    "bigan/grid": "-m experiments.gaussians",
    "bigan/grid-long": "-m experiments.gaussians",
    "bigan/grid-random": "-m experiments.gaussians",
}
FIGURES = {
    "mathieu/mnist": ("swap", "interpolation", "generation", "retrieval", "losses"),
    "mathieu/sprites": ("swap", "generation", "retrieval"),
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
    "bigan/alice": ("reconstructions",),
    "bigan/grid": ("grid",),
    "infogan/mnist": (
        "information",
        "categories",
        "categories-baseline",
        "continuous-1",
        "continuous-2",
    ),
    "infogan/paper": ("categories",),
    "infogan/k20": ("categories",),
}


# ---- Rows on file --------------------------------------------------------------------------------
def read(row):
    """Entries on file of a row, one a seed."""
    path = RESULTS / f"{row}.json"
    return json.loads(path.read_text()) if path.exists() else []


def write(row, entries):
    """All entries of a row, in the order of their seeds."""
    path = RESULTS / f"{row}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(sorted(entries, key=lambda entry: entry["seed"]), indent=1)
    path.with_suffix(".tmp").write_text(text + "\n")
    path.with_suffix(".tmp").replace(path)


def program_of(row):
    """What stands behind `python` in a row's command, before its flags."""
    return PROGRAMS.get(row, f"{row.split('/')[0]}.py").split()


def paper_of(script):
    """The paper whose rows a script trains."""
    for row, program in PROGRAMS.items():
        if program.endswith(f".{script}"):
            return row.split("/")[0]
    return script


def command(row, seed=None):
    words = ["python", *program_of(row), *ROWS[row].split()]
    return " ".join(words if seed is None else [*words, "--seed", str(seed)])


def is_of(row, seed, config):
    """Whether a run with this config.json is a run of this row and seed."""
    module = program_of(row)[-1].removesuffix(".py")
    script = module.removeprefix("experiments.")
    recipe = importlib.import_module(module).recipe
    wanted = command_line.parse(recipe, [*ROWS[row].split(), "--seed", str(seed)])
    wanted = dataclasses.asdict(wanted)
    free = {"precision", "data"}  # an entry names its precision
    same = all(wanted.get(k) == v for k, v in config["settings"].items() if k not in free)
    return same and config["script"] == script


def entry_of(row, seed, folder):
    """What is kept of a finished run folder."""
    config = run_folder.read_config(folder)
    if not is_of(row, seed, config):
        raise common.UserError(f"'{folder}' is no run of: {command(row, seed)}")
    metrics = json.loads((folder / "metrics.json").read_text())
    return {
        "seed": seed,
        "command": command(row, seed),
        "metrics": {k: v for k, v in metrics.items() if k not in ("seconds", "images_per_second")},
        "seconds": metrics["seconds"],
        "images_per_second": metrics["images_per_second"],
        **{key: config[key] for key in ("device", "hardware", "versions", "commit")},
        "precision": config["precision"],
    }


def collect(row, seed, folder):
    """Put a finished run folder into the row's file, and copy its figures (first seed only)."""
    entry = entry_of(row, seed, folder)
    write(row, [e for e in read(row) if e["seed"] != seed] + [entry])
    if seed == 0:
        for name in FIGURES.get(row, ()):
            shutil.copyfile(folder / f"{name}.png", RESULTS / f"{row}-{name}.png")
            shrink(RESULTS / f"{row}-{name}.png")


def shrink(path, limit=200_000):
    """Write a figure anew with as many levels a colour as bring it under the limit; a small one
    stays. (A palette of 256 colours is smaller still, and turned green faces grey.)"""
    image = np.asarray(Image.open(path).convert("RGB")) / 255
    for levels in (256, 64, 32, 16):
        if path.stat().st_size >= limit:
            rounded = np.round(image * (levels - 1)) * 255 / (levels - 1)
            Image.fromarray(rounded.round().astype(np.uint8)).save(path, optimize=True)


def file_folder(folder):
    """File a finished run folder named ROW-seedN, wherever it lies; nothing is run."""
    folder = Path(folder).resolve()
    paper = paper_of(run_folder.read_config(folder)["script"])
    name = re.fullmatch(r"(.+)-seed(\d+)", folder.name)
    if not name or f"{paper}/{name[1]}" not in ROWS:
        raise common.UserError(f"'{folder}' is not named ROW-seedN by a row of {paper}")
    if not (folder / "metrics.json").exists():
        raise common.UserError(f"the run in '{folder}' is not finished")
    collect(f"{paper}/{name[1]}", int(name[2]), folder)
    print(f"filed: {command(f'{paper}/{name[1]}', int(name[2]))}")


# ---- Running rows --------------------------------------------------------------------------------
def changed_since(folder):
    """Whether the code differs from that which began the run in this folder."""
    config = run_folder.read_config(folder)
    return config["commit"] != commit()


def words_of(row, seed, folder):
    """The words of the process that begins a run in this folder, or goes on with it."""
    if (ROOT / folder / "config.json").exists():
        return [sys.executable, *program_of(row), "--resume", str(folder)]
    return [sys.executable, *command(row, seed).split()[1:], "--out", str(folder)]


def train(row, seed, place, threads=None, anew=False):
    """Run one row with one seed into a folder of `place`, or go on with it there: the folder.

    A finished run is taken as it is, or set aside where `anew`; one of other code is set aside.
    threads: torch's, when other runs go on beside; a file next to the folder then has the run's
    words."""
    script, name = row.split("/")
    folder = Path(place) / script / f"{name}-seed{seed}"
    if (ROOT / folder / "config.json").exists():
        finished = (ROOT / folder / "metrics.json").exists()
        if changed_since(ROOT / folder) or (anew and finished):
            aside = f"{folder}-before-{time.strftime('%Y%m%d-%H%M%S')}"
            print(f"{folder} is an earlier run, or one of other code: moved to {aside}")
            (ROOT / folder).rename(ROOT / aside)
    if (ROOT / folder / "metrics.json").exists():  # finished, but not filed
        return ROOT / folder
    words = words_of(row, seed, folder)
    if threads is None:
        status, where = wait_for(words), ""
    else:
        log = ROOT / f"{folder}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        with open(log, "a") as file:
            status = wait_for(words, stdout=file, stderr=subprocess.STDOUT, env=environment)
        where = f", see {log}"
    if status:
        sys.exit(f"{row} seed {seed} did not finish{where}; the same command goes on with it")
    return ROOT / folder


def wait_for(words, **more):
    """Run a process to its end: its exit status."""
    with subprocess.Popen(words, cwd=ROOT, **more) as child:
        CHILDREN.add(child)
        status = child.wait()
        CHILDREN.discard(child)
    return status


def reproduce(row, seed, threads=None):
    """Run one row with one seed and file it."""
    folder = train(row, seed, "runs/results", threads)
    with WRITING:
        collect(row, seed, folder)


def compare(row, entry):
    """An entry's scores beside those on file: (name, mean, deviation, now, deviations away), None
    where there is no such number."""
    lines = []
    for name in sorted({name for e in read(row) for name in e["metrics"]}):
        values = [e["metrics"][name] for e in read(row) if name in e["metrics"]]
        spread = (statistics.stdev(values) if len(values) > 1 else 0) or None
        mean, now = statistics.mean(values), entry["metrics"].get(name)
        away = abs(now - mean) / spread if spread and now is not None else None
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
    """Seconds that a run of this row takes on a CPU, by those on file: of the row, or else of its
    script's rows; 300 where there are none."""
    found = cpu_seconds(row)
    if not found:
        beside = [other for other in ROWS if other.split("/")[0] == row.split("/")[0]]
        found = [seconds for other in beside for seconds in cpu_seconds(other)]
    return statistics.mean(found) if found else 300.0


def seeds_of(row):
    """The seeds of the tables."""
    if row == "bigan/grid-random":
        return range(10)  # as many as the paper's
    headline = row in ("mathieu/mnist", "mathieu/sprites")
    return range(3 if row.startswith("mathieu/") and not headline else 5)


def asked(rows, seeds):
    """(row, seed) of each run, in the order in which it will be run, first seeds first.

    seeds: None for those of the tables."""
    each = {row: seeds or seeds_of(row) for row in rows}
    every = sorted({seed for some in each.values() for seed in some})
    return [(row, seed) for seed in every for row in rows if seed in each[row]]


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
    cores = max(1, (os.cpu_count() or 1) // jobs) if jobs > 1 else None
    start, ended, stop = time.monotonic(), [], threading.Event()

    def one(k):
        if stop.is_set():
            return
        row, seed = todo[k]
        speed = sum(took for _, took in ended) / sum(guess[j] for j, _ in ended) if ended else 1.0
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

    if jobs == 1:
        for k in range(len(todo)):
            one(k)
        return
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(one, k) for k in range(len(todo))]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            stop.set()
            raise


def interrupt_children(signal_number, _):
    """A terminal tells its whole group of Ctrl-C; a `kill` of this process alone must be passed on.
    The runs save and end."""
    for child in list(CHILDREN):
        child.send_signal(signal.SIGINT)
    sys.exit(128 + signal_number)


# ---- The README's tables -------------------------------------------------------------------------
def ours(row, metric, digits=1):
    """'mean ± deviation' over the seeds on file (sample standard deviation), or the one value, or a
    dash."""
    values = [e["metrics"][metric] for e in read(row) if metric in e["metrics"]]
    if not values:
        return "–"
    text = f"{statistics.mean(values):.{digits}f}"
    return text + (f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else "")


def threads(entry):
    """Of torch on a CPU; 0 on a GPU."""
    found = re.search(r"(\d+) threads$", entry["hardware"])
    return int(found[1]) if found else 0


def machine(entry):
    """What an entry was computed on, and in which precision: 'AMD EPYC, AVX2, in fp32'."""
    return f"{re.sub(r', [0-9]+ threads$', '', entry['hardware'])}, in {entry['precision']}"


def minutes(row):
    """Mean minutes on the fastest processor, with an asterisk where a run had one thread and
    another run beside it; in parentheses on a GPU, where there are such runs."""
    took = {}
    for e in read(row) + read(f"again/{row}"):
        took.setdefault((machine(e), threads(e)), []).append(e["seconds"] / 60)
    mean = {kind: statistics.mean(values) for kind, values in took.items()}
    cpu = min((kind for kind in mean if kind[1]), key=mean.get, default=None)
    gpu = min((kind for kind in mean if not kind[1]), key=mean.get, default=None)
    words = f"{mean[cpu]:.0f}{'*' if cpu[1] == 1 else ''}" if cpu else "–"
    return f"{words} ({mean[gpu]:.1f})" if gpu else words


def seeds(row):
    return len(read(row))


def counted(row):
    return f"{seeds(row)} seed{'' if seeds(row) == 1 else 's'}"


def table(head, lines):
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in rows)


def not_run(rows):
    """A sentence that names the rows without any seed on file, or nothing."""
    left = [f"`{command(row)}`" for row in dict.fromkeys(rows) if not seeds(row)]
    return f"\n\nNot run yet: {', '.join(left)}." if left else ""


RUN = ["seeds", "minutes (on a GPU)", "command"]


def run_cells(row):
    """What a table says of the runs of a row, under the heads RUN."""
    return [seeds(row), minutes(row), f"`{command(row)}`"]


def side_by_side(first, published, rows, scores):
    """A table with a score a line: `published` columns, then a column for each of `rows`.

    first: head of the first column. rows: {row: words}. scores: (words, metric, digits, published
    values)."""
    heads = [f"{words} ({counted(row)})" for row, words in rows.items()]
    lines = []
    for words, metric, digits, *values in scores:
        lines.append([words, *values, *(ours(row, metric, digits) for row in rows)])
    empty = ["–"] * len(published)
    lines.append(["minutes (on a GPU)", *empty, *(minutes(row) for row in rows)])
    lines.append(["command", *[""] * len(published), *(f"`{command(row)}`" for row in rows)])
    return table([first, *published, *heads], lines) + not_run(rows)


def mnist_table():
    published = ["public checkpoint", "released recipe, z = s = 16, 6,000 steps"]
    rows = {"mathieu/mnist-paper-terms": "the paper's terms alone", "mathieu/mnist": "ours"}
    scores = [
        ("swap shows the class of the s donor, %", "swap_accuracy", 2, "96.0", "88.8"),
        ("swap shows the class of the z donor, %", "swap_z_leak", 2, "0.8", "6.7"),
        ("z from the prior: class of the s donor, %", "prior_accuracy", 2, "25", "94.4"),
        ("error of a probe on s, %", "s_error", 2, "1.48", "1.2"),
        ("error of a probe on z, sampled, %", "z_sample_error", 1, "33.2", "3.7"),
        ("error of a probe on z, mean, %", "z_mean_error", 1, "16.3", "3.3"),
        ("(always the commonest label, %)", "chance_error", 1, "–", "–"),
        ("reconstruction, MSE in [0, 1], mean of z", "reconstruction_mse", 4, "–", "–"),
        ("reconstruction, MSE in [0, 1], sampled z", "reconstruction_mse_sample", 4, "–", "0.012"),
        ("KL, nats", "kl_nats", 1, "19", "34.7"),
        ("8 nearest by s of the query's class, %", "retrieval_s", 1, "–", "–"),
    ]
    return side_by_side("MNIST, test set", published, rows, scores)


def sprites_table():
    rows = {"mathieu/sprites-paper-terms": "the paper's terms alone", "mathieu/sprites": "ours"}
    guess = '(guessing, %; the paper\'s "random chance", not said how)'
    unsaid = "59.8 (mean or sample not said)"
    scores = [
        ("error of a probe on s, %", "s_error", 2, "5.2"),
        ("error of a probe on z, sampled, %", "z_sample_error", 2, unsaid),
        ("error of a probe on z, mean, %", "z_mean_error", 2, unsaid),
        (guess, "guess_error", 2, "60.7"),
        ("(always the commonest label, %)", "chance_error", 2, "–"),
        ("R² of the pose read from z", "pose_r2_z", 3, "–"),
        ("R² of the pose read from s", "pose_r2_s", 3, "–"),
        ("swap against the true picture, MSE", "swap_mse", 4, "–"),
        ("the same for a decoder that ignores s, MSE", "swap_mse_ignore_s", 4, "–"),
        ("the same for one that ignores z, MSE", "swap_mse_ignore_z", 4, "–"),
        ("reconstruction, MSE in [0, 1], mean of z", "reconstruction_mse", 4, "–"),
    ]
    published = ["paper (its own sprites)"]
    return side_by_side("sprites, identities never seen", published, rows, scores)


def ablation_table():
    names = {
        "short": "the whole",
        "short-paper-terms": "the paper's terms alone",
        "no-code-discriminator": "without the code discriminator",
        "no-dead-zone": "without the dead zone",
        "prior-std-1": "prior samples from N(0, I)",
        "constant-kl": "constant weight of the KL",
        "no-prior-term": "no prior samples",
        "no-adversary": "no adversary",
        "weak-kl": "weak KL (the released weight)",
        "weak-kl-no-adversary": "weak KL, no adversary",
        "pretrained-s": "s pre-trained, frozen (Fig. 10a)",
    }
    columns = {
        "swap_accuracy": 1,
        "swap_z_leak": 1,
        "prior_accuracy": 1,
        "s_error": 2,
        "z_sample_error": 1,
        "z_mean_error": 1,
        "reconstruction_mse": 4,
    }
    rows = {f"mathieu/mnist-{name}": words for name, words in names.items()}
    lines = []
    for row in filter(seeds, rows):
        scores = [ours(row, metric, digits) for metric, digits in columns.items()]
        lines.append([rows[row], *scores, *run_cells(row)])
    head = ["MNIST", *(metric.replace("_", " ") for metric in columns), *RUN]
    return table(head, lines) + not_run(rows)


def aae_table():
    ten_thousand = "parzen_10k", 1, "340 ± 2", "377 ± 4 (1henrypage)"
    million = "parzen_1m", 1, "427 † (ten million)", "412 (1henrypage, 500,000)"
    code = "Fig. 2a: a 2-D Gaussian; codes told from the prior, % (50 at best)"
    mixture = "Fig. 4a: mixture of ten, 10,000 labels; code in its label's component, %"
    swiss_roll = "Fig. 4c: swiss roll, 10,000 labels; code in its label's tenth, %"
    noise = "10,000 samples, 100 epochs, noise on the encoder's input"
    six = "10,000 samples, 50 epochs, a z of 6 numbers instead of 8"
    style = "Fig. 7: image shows the label asked for, z from the prior, %"
    probe = "error of a probe on z, % (commonest label 88.7)"
    flat = "100 labels, images not warped (permutation-invariant, as the paper's)"
    alone = "the encoder alone, not warped"
    hundred = "Table 2: error with 100 labels, %; images warped"
    thousand = "Table 2: 1,000 labels; images warped"
    unlabelled = "Fig. 11: 2-D, no labels, 20 clusters, error, %"
    scores = [
        (code, "prior-gaussian", "code_test", 1, "figure", "–"),
        ("the same of a VAE", "prior-gaussian-kl", "code_test", 1, "figure", "–"),
        ("the same of a WAE-MMD", "prior-gaussian-mmd", "code_test", 1, "–", "–"),
        (mixture, "prior-mixture-10000", "component_accuracy", 1, "figure", "–"),
        (swiss_roll, "prior-swiss-roll-10000", "component_accuracy", 1, "figure", "–"),
        ("Table 1: Parzen log-likelihood, nats, 10,000 samples", "likelihood", *ten_thousand),
        ("the same, 1,000,000 samples", "likelihood", *million),
        ("10,000 samples, 50 epochs instead of 20", "likelihood-50-epochs", *ten_thousand),
        ("1,000,000 samples, 50 epochs", "likelihood-50-epochs", *million),
        (noise, "likelihood-noise", *ten_thousand),
        ("1,000,000 samples, the same", "likelihood-noise", *million),
        (six, "likelihood-6d", *ten_thousand),
        ("1,000,000 samples, 50 epochs, a z of 6 numbers", "likelihood-6d", *million),
        ("10,000 samples, VAE", "likelihood-kl", "parzen_10k", 1, "–", "–"),
        ("10,000 samples, WAE-GAN", "likelihood-wae-gan", "parzen_10k", 1, "–", "–"),
        ("10,000 samples, WAE-MMD", "likelihood-mmd", "parzen_10k", 1, "–", "–"),
        (style, "style", "style_accuracy", 2, "figure", "–"),
        (probe, "style", "z_error", 1, "–", "–"),
        (hundred, "semi-100", "test_error", 2, "1.90 ± 0.10", "about 4 (musyoku)"),
        (alone, "semi-100", "baseline_error", 2, "25.80 †", "–"),
        (flat, "semi-100-no-warps", "test_error", 2, "1.90 ± 0.10", "–"),
        (thousand, "semi-1000", "test_error", 2, "1.60 ± 0.08 †", "5 (Naresh1318)"),
        (alone, "semi-1000", "baseline_error", 2, "8.73 †", "–"),
        ("Table 2: all labels; images warped", "semi-60000", "test_error", 2, "0.85 ± 0.02", "–"),
        (alone, "semi-60000", "baseline_error", 2, "1.25 †", "–"),
        ("Table 3: 16 clusters, error, %", "cluster-16", "cluster_error", 2, "9.55 ± 2.05", "–"),
        ("clusters in use", "cluster-16", "clusters_used", 1, "–", "–"),
        ("Table 3: 30 clusters, error, %", "cluster-30", "cluster_error", 2, "4.10 ± 1.13", "–"),
        ("clusters in use", "cluster-30", "clusters_used", 1, "–", "–"),
        ("Fig. 11: 2-D, 1,000 labels, error, %", "embed-1000", "test_error", 2, "4.20 †", "–"),
        ("Fig. 11: 2-D, 100 labels, error, %", "embed-100", "test_error", 2, "6.08 †", "–"),
        (unlabelled, "embed-0", "test_error", 2, "13.46 †", "–"),
    ]
    lines = []
    for words, name, metric, digits, paper, public in scores:
        row = f"aae/{name}"
        if seeds(row):
            lines.append([words, paper, public, ours(row, metric, digits), *run_cells(row)])
    head = ["MNIST, test set", "paper", "best public", "ours (mean ± std)", *RUN]
    return table(head, lines) + not_run(f"aae/{score[1]}" for score in scores)


def bigan_table():
    models = [
        ("raw pixels", "pixels", "–"),
        ("untrained E", "untrained", "–"),
        ("BiGAN", "mnist", "2.61"),
        ("BiGAN, D with a product of image and code", "bilinear", "–"),
        ("D of a GAN", "gan", "2.70"),
        ("latent regressor (LR)", "lr", "2.56"),
        ("joint latent regressor (JLR)", "jlr", "2.87"),
        ("autoencoder, l2", "ae-l2", "2.42"),
        ("autoencoder, l1", "ae-l1", "2.37"),
        ("ALI", "ali", "–"),
        ("ALICE: ALI with cycle terms", "alice", "–"),
    ]
    columns = [
        ("ours", "nn_error_features", 2),
        ("1-NN error, code, %", "nn_error_code", 2),
        ("linear probe's error, code, %", "probe_error_code", 2),
        ("length of x - G(E(x))", "reconstruction_l2", 2),
        ("G(E(x)) shows x's digit, %", "reconstruction_digit", 1),
        ("inception score of the judge", "sample_quality", 2),
    ]
    lines = []
    for words, name, paper in models:
        row = f"bigan/{name}"
        if seeds(row):
            scores = [ours(row, metric, digits) for _, metric, digits in columns]
            lines.append([words, paper, *scores, *run_cells(row)])
    paper = "paper: 1-NN error, hidden layer, %"
    head = ["MNIST, test set", paper, *(column[0] for column in columns), *RUN]
    return table(head, lines) + not_run(f"bigan/{model[1]}" for model in models)


def grid_table():
    post_hoc = "(with post-hoc ALI as E)"
    models = [  # words, row, its generator, its encoder, the paper's modes hit
        ("ALI", "grid", "ali", "ali", "25 (best of 10)"),
        (f"GAN {post_hoc}", "grid", "gan", "posthoc", "22 (best of 10)"),
        ("GAN (with a learned inverse)", "grid", "gan", "inverse", "22 (best of 10)"),
        ("VAE", "grid", "vae", "vae", "–"),
        ("ALI, twice as long", "grid-long", "ali", "ali", "25 (best of 10)"),
        (f"GAN, twice as long {post_hoc}", "grid-long", "gan", "posthoc", "22 (best of 10)"),
        ("ALI, a random setting each seed", "grid-random", "ali", "ali", "13.4 ± 5.8"),
        ("GAN, a random setting each seed", "grid-random", "gan", "none", "10.4 ± 9.2"),
    ]
    lines = []
    for words, name, generator, encoder, paper in models:
        row = f"bigan/{name}"
        metrics = [f"{generator}_{metric}" for metric in ("modes_hit", "modes_good")]
        metrics += [f"{generator}_samples_good", f"{encoder}_reconstruction_mode"]
        lines.append([words, paper, *(ours(row, metric) for metric in metrics), *run_cells(row)])
    head = ["25 Gaussians", "paper: modes hit", "modes hit", "modes with a good sample"]
    return table([*head, "good samples, %", "reconstructed in the same mode, %", *RUN], lines)


def infogan_table():
    names = {
        "infogan/mnist": "ours",
        "infogan/long": "ours, twice as long",
        "infogan/paper": "about the released recipe",
        "infogan/baseline": "regular GAN",
    }
    updates = "updates until it is 2.25 (mean of the seeds that reach it)"
    kmeans = "k-means on pixels: error, a cluster a digit, %"
    digits = "generated: different digits among categories"
    variance = "generated: variance within a category, real digits 1"
    scores = [
        ("L_I of the category, nats (log 10 = 2.303)", "mutual_information", 3, "2.30", "–"),
        (updates, "steps_to_2.25", 0, "–", "–"),
        ("error, a category a digit, %", "cluster_error", 2, "5", "9.0 ± 4.0"),
        ("error, category's commonest digit, %", "cluster_error_majority", 2, "–", "–"),
        ("normalised mutual information", "nmi", 3, "–", "0.854 ± 0.036"),
        (kmeans, "kmeans_cluster_error", 2, "–", "–"),
        ("generated: shows its category's digit, %", "generated_purity", 2, "figure", "–"),
        (digits, "generated_digits", 1, "figure", "–"),
        (variance, "generated_diversity", 2, "–", "–"),
        ("generated: slant by one code, R²", "slant_r2", 2, "figure", "–"),
        ("generated: stroke width by one code, R²", "width_r2", 2, "figure", "–"),
        ("sweeps from -2 to 2 that change the digit, %", "identity_leak", 1, "–", "–"),
        ("the same from -1 to 1, %", "identity_leak_inside", 1, "–", "–"),
    ]
    rows = {row: words for row, words in names.items() if seeds(row)}
    published = ["paper", "ClusterGAN (another model, 10 seeds)"]
    return side_by_side("MNIST, test set", published, rows, scores) + not_run(names)


def leak_table():
    rows = [
        ("0", "k0"),
        ("2", "k2"),
        ("5", "k5"),
        ("10", "mnist"),
        ("10, about the released recipe", "paper"),
        ("20", "k20"),
        ("30", "k30"),
        ("50", "k50"),
        ("regular GAN", "baseline"),
    ]
    columns = [
        ("cluster_error", "a category a digit, %"),
        ("cluster_error_majority", "commonest digit, %"),
        ("kmeans_cluster_error_majority", "k-means, commonest digit, %"),
        ("nmi", "nmi"),
        ("kmeans_nmi", "k-means' nmi"),
        ("probe_error_trunk_100", "probe on the trunk, 100 labels, %"),
        ("probe_error_trunk_1000", "1,000"),
        ("probe_error_trunk_all", "all"),
        ("probe_error_q_hidden_100", "on Q's hidden layer, 100 labels, %"),
        ("probe_error_q_hidden_1000", "1,000"),
        ("probe_error_q_hidden_all", "all"),
    ]
    lines = []
    for words, name in rows:
        row = f"infogan/{name}"
        if seeds(row):
            scores = [ours(row, metric, 3 if "nmi" in metric else 2) for metric, _ in columns]
            lines.append([words, *scores, seeds(row)])
    beside = "infogan/long"  # infogan/mnist has these by an earlier probe
    for words, name in (("untrained trunk", "untrained"), ("raw pixels", "pixels")):
        metrics = [f"probe_error_{name}_{labels}" for labels in ("100", "1000", "all")]
        scores = [ours(beside, metric, 2) for metric in metrics]
        lines.append([words, *["–"] * 5, *scores, *["–"] * 3, seeds(beside)])
    head = ["K", *(words for _, words in columns), "seeds"]
    return table(head, lines) + not_run(f"infogan/{row}" for _, row in rows)


def repeats_table():
    """What --again --keep filed: how far a run lies from those behind the tables."""
    lines = []
    for row in ROWS:
        for e in read(f"again/{row}"):
            far = [line for line in compare(row, e) if line[4] is not None]
            if not far:  # fewer than two seeds on file: no deviation
                continue
            name, mean, spread, now, _ = max(far, key=lambda line: line[4])
            on_file = "; ".join(sorted({machine(other) for other in read(row)}))
            took = f"{e['seconds'] / 60:.0f}{'*' if threads(e) == 1 else ''}"
            near = f"{sum(line[4] <= 2 for line in far)} of {len(far)}"
            furthest = f"{name.replace('_', ' ')}: {now:.4g} ({mean:.4g} ± {spread:.2g})"
            words = [f"`{command(row, e['seed'])}`", seeds(row), on_file, machine(e), took]
            lines.append([*words, near, furthest])
    head = ["run anew", "seeds on file", "on file by", "anew by", "minutes"]
    head += ["scores within two deviations", "furthest off: now (on file)"]
    return table(head, lines)


def hardware():
    """Machines, precisions and versions behind the tables, with the number of runs."""
    entries = [entry for row in ROWS for entry in read(row)]
    machines = {}
    for entry in entries:
        machines.setdefault(machine(entry), []).append(entry)
    parts = []
    for name, mine in sorted(machines.items(), key=lambda item: -len(item[1])):
        counts = sorted({threads(entry) for entry in mine} - {0})
        plural = "" if counts == [1] else "s"
        words = f" ({' or '.join(map(str, counts))} thread{plural})" if counts else ""
        parts.append(f"{len(mine)} on {name}{words}")
    versions = sorted({entry["versions"]["torch"] for entry in entries})
    return f"The tables hold {len(entries)} runs: {'; '.join(parts)}; torch {', '.join(versions)}."


def speed_cells(entry):
    """Images a second, and the share of the matmul rate, of an entry of benchmark.json or None."""
    if entry is None:
        return ["–", "–"]
    share = entry["ratio"]
    return [
        f"{entry['images_per_second']:,.0f}",
        f"{share:.2f}" if share >= 0.1 else f"{share:.1g}",
    ]


def speed_table():
    """What tests/benchmark.py wrote, of every machine on file."""
    path = RESULTS / "benchmark.json"
    entries = json.loads(path.read_text()) if path.exists() else []
    found = {(machine(entry), entry["step"]): entry for entry in entries}
    machines = list(dict.fromkeys(name for name, _ in found))
    names = {
        "mathieu": "mathieu.py",
        "aae": "aae.py",
        "aae-semi": "aae.py --task semi",
        "aae-small": "aae.py, 512 units, batches of 64",
        "bigan": "bigan.py",
        "infogan": "infogan.py",
    }
    head, lines = ["training step"], [[words] for words in names.values()]
    for name in machines:
        head += [f"{name}: images/s", "share of its matmul rate"]
        for step, line in zip(names, lines):
            line += speed_cells(found.get((name, step)))
    return table(head, lines)


PARTS = {
    "mnist": mnist_table,
    "sprites": sprites_table,
    "ablations": ablation_table,
    "aae": aae_table,
    "bigan": bigan_table,
    "grid": grid_table,
    "infogan": infogan_table,
    "leak": leak_table,
    "repeats": repeats_table,
    "speed": speed_table,
    "hardware": hardware,
}


def rendered(text):
    """The README's text with every part between its markers written anew."""
    for name, make in PARTS.items():
        begin, end = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
        head, rest = text.split(begin, 1)
        text = head + begin + make() + end + rest.split(end, 1)[1]
    return text


# ---- The command line ----------------------------------------------------------------------------
def make_parser():
    words = "Runs the commands behind the README's tables and files what they gave in results/."
    cli = command_line.Parser(prog="python -m experiments.reproduce", description=words)
    words = f"rows to run (default: all, many hours): {', '.join(ROWS)}"
    cli.add_argument(
        "--only", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=words
    )
    words = "seeds to run (default: those of the tables: 3, 5 or 10, by the row)"
    cli.add_argument("--seeds", nargs="+", type=int, metavar="N", help=words)
    words = "runs beside each other, each with its share of the cores (default: 1)"
    cli.add_argument("--jobs", type=int, choices=range(1, 65), default=1, metavar="N", help=words)
    words = "run nothing, print what is not on file and the time it would take"
    cli.add_argument("--plan", action="store_true", help=words)
    words = "run nothing, file finished runs, in folders named ROW-seedN"
    cli.add_argument("--file", nargs="+", metavar="FOLDER", help=words)
    words = "run what is asked for, on file or not, and compare; results/ stays as it is"
    cli.add_argument("--again", action="store_true", help=words)
    words = "with --again: file the run in results/again/, for the README's table of repeats"
    cli.add_argument("--keep", action="store_true", help=words)
    words = "run nothing, write the README's tables from what is on file"
    cli.add_argument("--readme", action="store_true", help=words)
    return cli


def run_asked(o):
    """Run what the flags ask for."""
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
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, interrupt_children)
        run_all(todo, o.jobs, partial(again, keep=o.keep) if o.again else reproduce)


def main(words=None):
    cli = make_parser()
    o = cli.parse_args(words)
    if o.keep and not o.again:
        cli.error("--keep goes with --again")
    try:
        for folder in o.file or ():
            file_folder(folder)
        if not (o.file or o.readme):
            run_asked(o)
    except common.UserError as error:
        cli.error(str(error))
    finally:  # the tables and what is on file agree, whatever happened
        if not o.plan:
            README.write_text(rendered(README.read_text()))


if __name__ == "__main__":
    main()
