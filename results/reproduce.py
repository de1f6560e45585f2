"""Runs the commands behind the README's tables and writes what they gave to results/; nothing in results/ is typed by hand.

    python results/reproduce.py --only mathieu/mnist --seeds 0 1 2      # one row; without --only every row
    python results/reproduce.py --jobs 2                                # two runs beside each other, half of the cores each
    python results/reproduce.py --only aae/style --seeds 0 --again      # a row on file once more, its scores beside those on file
    python results/reproduce.py --only aae/style --seeds 0 --again --keep   # and into the README's table of repeats
    python results/reproduce.py --plan                                  # what is left to run, and about how long it takes
    python results/reproduce.py --readme                                # the README's tables anew from results/

A seed that is on file is skipped; a run that was cut off goes on where it stopped (its folder is runs/results/SCRIPT/ROW-seedN), unless the script has changed since.
--again runs what is on file anew, in another folder, and prints both numbers side by side; it changes nothing in results/. With --keep the run is also
filed, in results/again/, apart from the runs whose means the tables show.
"""
import argparse
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

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import common  # noqa: E402

RESULTS, README = ROOT / "results", ROOT / "README.md"
CHILDREN = set()                                          # runs under way
WRITING = threading.Lock()                                # a row's file is read, changed and written by one run at a time

ROWS = {
    "mathieu/mnist": "--epochs 50",
    "mathieu/sprites": "--dataset sprites --epochs 50",
    "mathieu/sprites-paper-terms": "--dataset sprites --epochs 50 --code-weight 0 --code-prior-weight 0 --dead-zone 0",
    "mathieu/mnist-short": "--epochs 4",
    "mathieu/mnist-no-adversary": "--epochs 4 --no-adversary",
    "mathieu/mnist-weak-kl": "--epochs 4 --kl-start 0.15 --kl-weight 0.15",
    "mathieu/mnist-weak-kl-no-adversary": "--epochs 4 --kl-start 0.15 --kl-weight 0.15 --no-adversary",
    "mathieu/mnist-no-prior-term": "--epochs 4 --prior-weight 0 --code-prior-weight 0",
    "mathieu/mnist-no-code-adversary": "--epochs 4 --code-weight 0 --code-prior-weight 0 --dead-zone 0 --prior-std 1",
    "mathieu/mnist-pretrained-s": "--epochs 4 --pretrained-s",
    "aae/prior-gaussian": "",
    "aae/prior-gaussian-kl": "--regularizer kl --regularizer-weight 1",
    "aae/prior-gaussian-mmd": "--regularizer mmd",
    "aae/prior-mixture-10000": "--prior mixture --labels 10000",
    "aae/prior-swiss-roll-10000": "--prior swiss-roll --labels 10000",
    "aae/likelihood": "--task likelihood",
    "aae/likelihood-50-epochs": "--task likelihood --epochs 50",
    "aae/likelihood-noise": "--task likelihood --epochs 100 --noise 0.5",
    "aae/likelihood-6d": "--task likelihood --epochs 50 --z-dim 6",
    "aae/likelihood-kl": "--task likelihood --regularizer kl",
    "aae/likelihood-wae-gan": "--task likelihood --regularizer wae-gan",
    "aae/likelihood-mmd": "--task likelihood --regularizer mmd",
    "aae/style": "--task style",
    "aae/semi-100": "--task semi --labels 100",
    "aae/semi-100-no-warps": "--task semi --labels 100 --warp 0 --warp-weight 0 --lr-encoder 3e-4 --noise 0.3",
    "aae/semi-1000": "--task semi --labels 1000",
    "aae/semi-60000": "--task semi --labels 60000",
    "aae/cluster-16": "--task cluster --clusters 16",
    "aae/cluster-30": "--task cluster --clusters 30",
    "aae/embed-1000": "--task embed --labels 1000",
    "aae/embed-100": "--task embed --labels 100",
    "aae/embed-0": "--task embed --labels 0",
    "bigan/mnist": "",
    **{f"bigan/{model}": f"--model {model}" for model in ("gan", "lr", "jlr", "ae-l2", "ae-l1", "ali", "alice", "pixels", "untrained")},
    "bigan/bilinear": "--bilinear 256",
    "bigan/grid": "--dataset grid",
    "bigan/grid-long": "--dataset grid --epochs 52",
    "bigan/grid-random": "--dataset grid --random-setting",
    "infogan/mnist": "",
    "infogan/long": "--epochs 8 --far 1",
    "infogan/baseline": "--baseline",
    "infogan/paper": "--recipe paper",
    **{f"infogan/k{k}": f"--categories {k}" for k in (0, 2, 5, 20, 30, 50)},
}
FIGURES = {"mathieu/mnist": ("swap", "interpolation", "generation", "retrieval", "losses"),
           "mathieu/sprites": ("swap", "generation", "retrieval"),
           "mathieu/mnist-weak-kl-no-adversary": ("swap",), "mathieu/mnist-pretrained-s": ("swap",),
           "aae/prior-gaussian": ("codes", "manifold"), "aae/prior-gaussian-kl": ("codes",), "aae/prior-mixture-10000": ("codes", "manifold"),
           "aae/prior-swiss-roll-10000": ("codes", "manifold"), "aae/likelihood": ("samples",), "aae/style": ("style",),
           "aae/cluster-16": ("clusters",), "aae/cluster-30": ("clusters",),
           **{f"aae/embed-{labels}": ("codes",) for labels in (1000, 100, 0)},
           "bigan/mnist": ("reconstructions", "samples"), "bigan/bilinear": ("reconstructions",), "bigan/alice": ("reconstructions",), "bigan/grid": ("grid",),
           "infogan/mnist": ("information", "categories", "categories-baseline", "continuous-1", "continuous-2"), "infogan/paper": ("categories",), "infogan/k20": ("categories",)}


def read(row):
    """Entries on file of a row, one a seed."""
    path = RESULTS / f"{row}.json"
    return json.loads(path.read_text()) if path.exists() else []


def entry_of(seed, folder):
    """What is kept of a finished run folder."""
    config, metrics = (json.loads((folder / name).read_text()) for name in ("config.json", "metrics.json"))
    return {"seed": seed, "command": config["command"].split(" --out ")[0],
            "metrics": {k: v for k, v in metrics.items() if k not in ("seconds", "images_per_second")},
            "seconds": metrics["seconds"], "images_per_second": metrics["images_per_second"],
            **{key: config[key] for key in ("device", "hardware", "versions", "commit")}, "precision": config["settings"]["precision"]}


def write(row, entries):
    """All entries of a row, in the order of their seeds."""
    path = RESULTS / f"{row}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".tmp").write_text(json.dumps(sorted(entries, key=lambda e: e["seed"]), indent=1) + "\n")
    path.with_suffix(".tmp").replace(path)


def collect(row, seed, folder):
    """Put a finished run folder into the row's file, and copy its figures (first seed only)."""
    entry = entry_of(seed, folder)
    write(row, [e for e in read(row) if e["seed"] != seed] + [entry])
    if seed == 0:
        for name in FIGURES.get(row, ()):
            shutil.copyfile(folder / f"{name}.png", RESULTS / f"{row}-{name}.png")
            shrink(RESULTS / f"{row}-{name}.png")


def shrink(path, limit=200_000):
    """Write a figure anew with as many levels a colour as bring it under the limit; leave it where it is small already.

    (A palette of 256 colours is smaller still, and turned green faces grey.)"""
    image = np.asarray(Image.open(path).convert("RGB")).astype(float)
    for levels in (256, 64, 32, 16):
        if path.stat().st_size >= limit:
            Image.fromarray((np.round(image / 255 * (levels - 1)) * 255 / (levels - 1)).round().astype(np.uint8)).save(path, optimize=True)


def command(row, seed):
    return " ".join(["python", f"{row.split('/')[0]}.py", *ROWS[row].split(), "--seed", str(seed)])


def changed_since(folder, script):
    """Whether the script or common.py differ from those that began the run in this folder."""
    return json.loads((folder / "config.json").read_text()).get("code") != common.code_checksum(script)


def train(row, seed, place, threads=None, anew=False):
    """Run one row with one seed into a folder of `place`, or go on with it there; returns the folder. A finished run is taken as it is, or set aside where
    `anew`; one of other code is set aside.

    threads: torch's, when other runs go on beside; the run's words then go into a file next to the folder."""
    script, name = row.split("/")
    folder = Path(place) / script / f"{name}-seed{seed}"
    if (ROOT / folder / "config.json").exists() and (changed_since(ROOT / folder, script) or anew and (ROOT / folder / "metrics.json").exists()):
        aside = f"{folder}-before-{time.strftime('%Y%m%d-%H%M%S')}"
        print(f"{folder} is an earlier run, or one of other code: moved to {aside}")
        (ROOT / folder).rename(ROOT / aside)
    if (ROOT / folder / "metrics.json").exists():         # finished, but not filed
        return ROOT / folder
    words = [sys.executable, str(ROOT / f"{script}.py"), *ROWS[row].split(), "--seed", str(seed), "--out", str(folder)]
    if (ROOT / folder / "config.json").exists():
        words.append("--resume")
    log, more = ROOT / f"{folder}.txt", {}
    if threads is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        more = {"stdout": open(log, "a"), "stderr": subprocess.STDOUT, "env": {**os.environ, "OMP_NUM_THREADS": str(threads)}}
    with subprocess.Popen(words, cwd=ROOT, **more) as child:
        CHILDREN.add(child)
        status = child.wait()
        CHILDREN.discard(child)
    if status:
        sys.exit(f"{row} seed {seed} did not finish{f', see {log}' if more else ''}; the same command goes on with it")
    return ROOT / folder


def reproduce(row, seed, threads=None):
    """Run one row with one seed and file it."""
    folder = train(row, seed, "runs/results", threads)
    with WRITING:
        collect(row, seed, folder)


def compare(row, entry):
    """Scores of an entry beside those on file: (name, mean, deviation, now, deviations away), None where there is no such number."""
    lines = []
    for name in sorted({name for e in read(row) for name in e["metrics"]}):
        values = [e["metrics"][name] for e in read(row) if name in e["metrics"]]
        mean, spread, now = statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0., entry["metrics"].get(name)
        lines.append((name, mean, spread or None, now, abs(now - mean) / spread if spread and now is not None else None))
    return lines


def again(row, seed, threads=None, keep=False):
    """Run one row with one seed, whether it is on file or not, and print its scores beside those on file; `keep`: file it among the repeats."""
    entry = entry_of(seed, train(row, seed, "runs/again", threads, anew=True))
    word = lambda value, form: "–" if value is None else format(value, form)  # noqa: E731
    lines = [[name, f"{mean:.4g}", word(spread, ".2g"), word(now, ".4g"), word(away, ".1f")] for name, mean, spread, now, away in compare(row, entry)]
    with WRITING:
        if keep:
            write(f"again/{row}", [e for e in read(f"again/{row}") if (e["seed"], machine(e)) != (seed, machine(entry))] + [entry])
        print(f"{row} seed {seed}, {len(read(row))} seeds on file\n{table(['score', 'on file', 'std', 'now', 'std away'], lines)}", flush=True)


def expected(row):
    """Seconds that a run of this row takes on a CPU by those on file: of the row, or else of its script's rows; 300 where there are none."""
    seconds = lambda row: [e["seconds"] for e in read(row) + read(f"again/{row}") if threads(e)]  # noqa: E731
    mine = seconds(row) or [s for other in ROWS if other.split("/")[0] == row.split("/")[0] for s in seconds(other)]
    return statistics.mean(mine) if mine else 300.


def asked(rows, seeds):
    """(row, seed) of each run, in the order in which it will be run, first seeds first; seeds None: those of the tables, five, ten of grid-random."""
    each = {row: seeds or range(10 if row == "bigan/grid-random" else 5) for row in rows}
    return [(row, seed) for seed in sorted({seed for some in each.values() for seed in some}) for row in rows if seed in each[row]]


def plan(rows, seeds):
    """Those of `asked` that are not on file."""
    return [(row, seed) for row, seed in asked(rows, seeds) if all(e["seed"] != seed for e in read(row))]


def in_words(seconds):
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def run_all(todo, jobs=1, run=reproduce):
    """Run (row, seed) after (row, seed), `jobs` beside each other, and say before each how far it is and how long the rest will take, at the speed so far.

    What fails or is interrupted ends it all; runs beside come to their end first, unless they are interrupted too."""
    guess = [expected(row) for row, _ in todo]            # before new runs move the means
    start, ended, stop = time.monotonic(), [], threading.Event()

    def one(k):
        if stop.is_set():
            return
        row, seed = todo[k]
        speed = sum(took for _, took in ended) / sum(guess[j] for j, _ in ended) if ended else 1.
        print(f"[{k + 1} of {len(todo)}, {in_words(time.monotonic() - start)} so far] {row} seed {seed}: with the rest about {in_words(speed * sum(guess[k:]) / jobs)}\n"
              f"{command(row, seed)}", flush=True)
        begun = time.monotonic()
        try:
            run(row, seed, max(1, (os.cpu_count() or 1) // jobs) if jobs > 1 else None)
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
    """A terminal tells its whole group of Ctrl-C; a `kill` of this process alone must be passed on. The runs save and end."""
    for child in list(CHILDREN):
        child.send_signal(signal.SIGINT)
    sys.exit(128 + signal_number)


# ---------------------------------------------------------------------------------------------------------- README


def ours(row, metric, digits=1):
    """'mean ± deviation' over the seeds on file (sample standard deviation), or the one value, or a dash."""
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
    """Mean minutes on the fastest machine, with an asterisk where a run had one thread and another run beside it; in parentheses on a GPU, where there are such runs."""
    kinds = {}
    for e in read(row) + read(f"again/{row}"):
        kinds.setdefault((machine(e), threads(e)), []).append(e["seconds"] / 60)
    mean = {kind: statistics.mean(took) for kind, took in kinds.items()}
    best = lambda kinds: min(kinds, key=mean.get, default=None)  # noqa: E731
    cpu, gpu = best([kind for kind in mean if kind[1]]), best([kind for kind in mean if not kind[1]])
    words = f"{mean[cpu]:.0f}{'*' if cpu[1] == 1 else ''}" if cpu else "–"
    return f"{words} ({mean[gpu]:.1f})" if gpu else words


def seeds(row):
    return len(read(row))


def counted(row):
    return f"{seeds(row)} seed{'' if seeds(row) == 1 else 's'}"


def table(head, lines):
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in [head, ["---"] * len(head), *lines])


def not_run(rows):
    """A sentence that names the rows without any seed on file, or nothing."""
    left = [f"`{command(row, 0).removesuffix(' --seed 0')}`" for row in dict.fromkeys(rows) if not seeds(row)]
    return f"\n\nNot run yet: {', '.join(left)}." if left else ""


def mnist_table():
    row = "mathieu/mnist"
    scores = [("swap shows the class of the s donor, %", "swap_accuracy", 2, "96.0", "88.8"), ("swap shows the class of the z donor, %", "swap_z_leak", 2, "0.8", "6.7"),
              ("z from the prior: class of the s donor, %", "prior_accuracy", 2, "25", "94.4"), ("error of a probe on s, %", "s_error", 2, "1.48", "1.2"),
              ("error of a probe on z, sampled, %", "z_sample_error", 1, "33.2", "3.7"), ("error of a probe on z, mean, %", "z_mean_error", 1, "16.3", "3.3"),
              ("(always the commonest label, %)", "chance_error", 1, "–", "–"), ("reconstruction, MSE in [0, 1], mean of z", "reconstruction_mse", 4, "–", "–"),
              ("reconstruction, MSE in [0, 1], sampled z", "reconstruction_mse_sample", 4, "–", "0.012"), ("KL, nats", "kl_nats", 1, "19", "34.7"),
              ("8 nearest by s of the query's class, %", "retrieval_s", 1, "–", "–")]
    return table(["MNIST, test set", "public checkpoint", "released recipe, z = s = 16, 6,000 steps", f"ours (mean ± std, {counted(row)})"],
                 [[words, checkpoint, released, ours(row, name, digits)] for words, name, digits, checkpoint, released in scores])


def sprites_table():
    row = "mathieu/sprites"
    scores = [("error of a probe on s, %", "s_error", 2, "5.2"), ("error of a probe on z, sampled, %", "z_sample_error", 2, "59.8 (mean or sample not said)"),
              ("error of a probe on z, mean, %", "z_mean_error", 2, "59.8 (mean or sample not said)"), ("(guessing, %; the paper's \"random chance\", not said how)", "guess_error", 2, "60.7"),
              ("(always the commonest label, %)", "chance_error", 2, "–"),
              ("R² of the pose read from z", "pose_r2_z", 3, "–"), ("R² of the pose read from s", "pose_r2_s", 3, "–"),
              ("swap against the true picture, MSE", "swap_mse", 4, "–"), ("the same for a decoder that ignores s, MSE", "swap_mse_ignore_s", 4, "–"), ("the same for one that ignores z, MSE", "swap_mse_ignore_z", 4, "–"),
              ("reconstruction, MSE in [0, 1], mean of z", "reconstruction_mse", 4, "–")]
    alone = "mathieu/sprites-paper-terms"
    return table(["sprites, identities never seen", "paper (its own sprites)", f"ours (mean ± std, {counted(row)})", f"the paper's terms alone, without differences 3 and 7 ({counted(alone)})"],
                 [[words, paper, ours(row, name, digits), ours(alone, name, digits)] for words, name, digits, paper in scores])


def ablation_table():
    names = {"mathieu/mnist-short": "the whole", "mathieu/mnist-no-adversary": "no adversary",
             "mathieu/mnist-weak-kl": "the released weight of the KL",
             "mathieu/mnist-weak-kl-no-adversary": "the released weight of the KL, no adversary: the decoder ignores s",
             "mathieu/mnist-pretrained-s": "s pre-trained, frozen (Fig. 10a)",
             "mathieu/mnist-no-prior-term": "no prior samples, of images and codes",
             "mathieu/mnist-no-code-adversary": "the paper's terms alone (without differences 3 and 7, z of deviation 1)"}
    columns = [("swap_accuracy", 1), ("swap_z_leak", 1), ("prior_accuracy", 1), ("s_error", 2), ("z_sample_error", 1), ("z_mean_error", 1), ("reconstruction_mse", 4)]
    return table(["MNIST", *(name.replace("_", " ") for name, _ in columns), "seeds", "minutes (on a GPU)", "command"],
                 [[words, *(ours(row, name, digits) for name, digits in columns), seeds(row), minutes(row), f"`python mathieu.py {ROWS[row]}`"]
                  for row, words in names.items()])


def aae_table():
    lines = [
        ("Fig. 2a: a 2-D Gaussian; codes told from the prior, % (50 at best)", "prior-gaussian", "code_test", 1, "figure", "–"),
        ("the same of a VAE", "prior-gaussian-kl", "code_test", 1, "figure", "–"),
        ("the same of a WAE-MMD", "prior-gaussian-mmd", "code_test", 1, "–", "–"),
        ("Fig. 4a: mixture of ten, 10,000 labels; code in its label's component, %", "prior-mixture-10000", "component_accuracy", 1, "figure", "–"),
        ("Fig. 4c: swiss roll, 10,000 labels; code in its label's tenth, %", "prior-swiss-roll-10000", "component_accuracy", 1, "figure", "–"),
        ("Table 1: Parzen log-likelihood, nats, 10,000 samples", "likelihood", "parzen_10k", 1, "340 ± 2", "377 ± 4 (1henrypage)"),
        ("the same, 1,000,000 samples", "likelihood", "parzen_1m", 1, "427 † (ten million)", "412 (1henrypage, 500,000)"),
        ("10,000 samples, 50 epochs instead of 20", "likelihood-50-epochs", "parzen_10k", 1, "340 ± 2", "377 ± 4 (1henrypage)"),
        ("1,000,000 samples, 50 epochs", "likelihood-50-epochs", "parzen_1m", 1, "427 † (ten million)", "412 (1henrypage, 500,000)"),
        ("10,000 samples, 100 epochs, noise on the encoder's input", "likelihood-noise", "parzen_10k", 1, "340 ± 2", "377 ± 4 (1henrypage)"),
        ("1,000,000 samples, the same", "likelihood-noise", "parzen_1m", 1, "427 † (ten million)", "412 (1henrypage, 500,000)"),
        ("10,000 samples, 50 epochs, a z of 6 numbers instead of 8", "likelihood-6d", "parzen_10k", 1, "340 ± 2", "377 ± 4 (1henrypage)"),
        ("1,000,000 samples, 50 epochs, a z of 6 numbers", "likelihood-6d", "parzen_1m", 1, "427 † (ten million)", "412 (1henrypage, 500,000)"),
        ("10,000 samples, VAE", "likelihood-kl", "parzen_10k", 1, "–", "–"),
        ("10,000 samples, WAE-GAN", "likelihood-wae-gan", "parzen_10k", 1, "–", "–"),
        ("10,000 samples, WAE-MMD", "likelihood-mmd", "parzen_10k", 1, "–", "–"),
        ("Fig. 7: image shows the label asked for, z from the prior, %", "style", "style_accuracy", 2, "figure", "–"),
        ("error of a probe on z, % (commonest label 88.7)", "style", "z_error", 1, "–", "–"),
        ("Table 2: error with 100 labels, %; images warped", "semi-100", "test_error", 2, "1.90 ± 0.10", "about 4 (musyoku)"),
        ("the encoder alone, not warped", "semi-100", "baseline_error", 2, "25.80 †", "–"),
        ("100 labels, images not warped (permutation-invariant, as the paper's)", "semi-100-no-warps", "test_error", 2, "1.90 ± 0.10", "–"),
        ("Table 2: 1,000 labels; images warped", "semi-1000", "test_error", 2, "1.60 ± 0.08 †", "5 (Naresh1318)"),
        ("the encoder alone, not warped", "semi-1000", "baseline_error", 2, "8.73 †", "–"),
        ("Table 2: all labels; images warped", "semi-60000", "test_error", 2, "0.85 ± 0.02", "–"),
        ("the encoder alone, not warped", "semi-60000", "baseline_error", 2, "1.25 †", "–"),
        ("Table 3: 16 clusters, error, %", "cluster-16", "cluster_error", 2, "9.55 ± 2.05", "–"),
        ("clusters in use", "cluster-16", "clusters_used", 1, "–", "–"),
        ("Table 3: 30 clusters, error, %", "cluster-30", "cluster_error", 2, "4.10 ± 1.13", "–"),
        ("clusters in use", "cluster-30", "clusters_used", 1, "–", "–"),
        ("Fig. 11: 2-D, 1,000 labels, error, %", "embed-1000", "test_error", 2, "4.20 †", "–"),
        ("Fig. 11: 2-D, 100 labels, error, %", "embed-100", "test_error", 2, "6.08 †", "–"),
        ("Fig. 11: 2-D, no labels, 20 clusters, error, %", "embed-0", "test_error", 2, "13.46 †", "–")]
    return table(["MNIST, test set", "paper", "best public", "ours (mean ± std)", "seeds", "minutes (on a GPU)", "command"],
                 [[words, paper, public, ours(f"aae/{row}", metric, digits), seeds(f"aae/{row}"), minutes(f"aae/{row}"), "`" + f"python aae.py {ROWS['aae/' + row]}".strip() + "`"]
                  for words, row, metric, digits, paper, public in lines if seeds(f"aae/{row}")]) + not_run(f"aae/{line[1]}" for line in lines)


def bigan_table():
    lines = [("raw pixels", "pixels", "–"), ("untrained E", "untrained", "–"), ("BiGAN", "mnist", "2.61"), ("BiGAN, D with a product of image and code", "bilinear", "–"),
             ("D of a GAN", "gan", "2.70"),
             ("latent regressor (LR)", "lr", "2.56"), ("joint latent regressor (JLR)", "jlr", "2.87"), ("autoencoder, l2", "ae-l2", "2.42"),
             ("autoencoder, l1", "ae-l1", "2.37"), ("ALI", "ali", "–"), ("ALICE: ALI with cycle terms", "alice", "–")]
    columns = [("nn_error_features", 2), ("nn_error_code", 2), ("probe_error_code", 2), ("reconstruction_l2", 2), ("reconstruction_digit", 1), ("sample_quality", 2)]
    head = ["MNIST, test set", "paper: 1-NN error, hidden layer, %", "ours", "1-NN error, code, %", "linear probe's error, code, %", "length of x - G(E(x))",
            "G(E(x)) shows x's digit, %", "inception score of the judge", "seeds", "minutes (on a GPU)", "command"]
    return table(head, [[words, paper, *(ours(f"bigan/{row}", metric, digits) for metric, digits in columns), seeds(f"bigan/{row}"), minutes(f"bigan/{row}"),
                         "`" + f"python bigan.py {ROWS['bigan/' + row]}".strip() + "`"] for words, row, paper in lines if seeds(f"bigan/{row}")]) + not_run(f"bigan/{line[1]}" for line in lines)


def grid_table():
    lines = [("ALI", "grid", "ali", "ali", "25 (best of 10)"), ("GAN (with post-hoc ALI as E)", "grid", "gan", "posthoc", "22 (best of 10)"),     # the generator's and the encoder's name
             ("GAN (with a learned inverse)", "grid", "gan", "inverse", "22 (best of 10)"), ("VAE", "grid", "vae", "vae", "–"),
             ("ALI, twice as long", "grid-long", "ali", "ali", "25 (best of 10)"), ("GAN, twice as long (with post-hoc ALI as E)", "grid-long", "gan", "posthoc", "22 (best of 10)"),
             ("ALI, a random setting each seed", "grid-random", "ali", "ali", "13.4 ± 5.8"),
             ("GAN, a random setting each seed", "grid-random", "gan", "none", "10.4 ± 9.2")]
    return table(["25 Gaussians", "paper: modes hit", "modes hit", "modes with a good sample", "good samples, %", "reconstructed in the same mode, %", "seeds", "minutes (on a GPU)", "command"],
                 [[words, paper, *(ours(f"bigan/{row}", f"{gen}_{metric}") for metric in ("modes_hit", "modes_good", "samples_good")),
                   ours(f"bigan/{row}", f"{enc}_reconstruction_mode"), seeds(f"bigan/{row}"), minutes(f"bigan/{row}"), f"`python bigan.py {ROWS['bigan/' + row]}`"]
                  for words, row, gen, enc, paper in lines])


def infogan_table():
    names = {"mnist": "ours", "long": "ours, twice as long", "paper": "about the released recipe", "baseline": "regular GAN"}
    columns = [row for row in names if seeds(f"infogan/{row}")]
    lines = [("L_I of the category, nats (log 10 = 2.303)", "mutual_information", 3, "2.30", "–"),
             ("updates until it is 2.25 (mean of the seeds that reach it)", "steps_to_2.25", 0, "–", "–"),
             ("error, a category a digit, %", "cluster_error", 2, "5", "9.0 ± 4.0"),
             ("error, category's commonest digit, %", "cluster_error_majority", 2, "–", "–"),
             ("normalised mutual information", "nmi", 3, "–", "0.854 ± 0.036"),
             ("k-means on pixels: error, a cluster a digit, %", "kmeans_cluster_error", 2, "–", "–"),
             ("generated: shows its category's digit, %", "generated_purity", 2, "figure", "–"),
             ("generated: different digits among categories", "generated_digits", 1, "figure", "–"), ("generated: variance within a category, real digits 1", "generated_diversity", 2, "–", "–"),
             ("generated: slant by one code, R²", "slant_r2", 2, "figure", "–"), ("generated: stroke width by one code, R²", "width_r2", 2, "figure", "–"),
             ("sweeps from -2 to 2 that change the digit, %", "identity_leak", 1, "–", "–"), ("the same from -1 to 1, %", "identity_leak_inside", 1, "–", "–")]
    head = ["MNIST, test set", "paper", "ClusterGAN (another model, 10 seeds)", *(f"{names[row]} ({counted(f'infogan/{row}')})" for row in columns)]
    return table(head, [[words, paper, public, *(ours(f"infogan/{row}", metric, digits) for row in columns)] for words, metric, digits, paper, public in lines]
                 + [["minutes (on a GPU)", "–", "–", *(minutes(f"infogan/{row}") for row in columns)],
                    ["command", "", "", *(f"`{('python infogan.py ' + ROWS[f'infogan/{row}']).strip()}`" for row in columns)]]) + not_run(f"infogan/{row}" for row in names)


def leak_table():
    rows = [("0", "k0"), ("2", "k2"), ("5", "k5"), ("10", "mnist"), ("10, about the released recipe", "paper"), ("20", "k20"), ("30", "k30"), ("50", "k50"), ("regular GAN", "baseline")]
    columns = [("cluster_error", "a category a digit, %"), ("cluster_error_majority", "commonest digit, %"), ("kmeans_cluster_error_majority", "k-means, commonest digit, %"),
               ("nmi", "nmi"), ("kmeans_nmi", "k-means' nmi"), ("probe_error_trunk_100", "probe on the trunk, 100 labels, %"), ("probe_error_trunk_1000", "1,000"), ("probe_error_trunk_all", "all"),
               ("probe_error_q_hidden_100", "on Q's hidden layer, 100 labels, %"), ("probe_error_q_hidden_1000", "1,000"), ("probe_error_q_hidden_all", "all")]
    # infogan/mnist has them by an earlier probe
    beside = [[words, *["–"] * 5, *(ours("infogan/long", f"probe_error_{name}_{labels}", 2) for labels in ("100", "1000", "all")), *["–"] * 3, seeds("infogan/long")]
              for words, name in (("untrained trunk", "untrained"), ("raw pixels", "pixels"))]
    return table(["K", *(words for _, words in columns), "seeds"],
                 [[words, *(ours(f"infogan/{row}", name, 3 if "nmi" in name else 2) for name, _ in columns), seeds(f"infogan/{row}")] for words, row in rows if seeds(f"infogan/{row}")]
                 + beside) + not_run(f"infogan/{row}" for _, row in rows)


def repeats_table():
    """What --again --keep filed: how far a run lies from those behind the tables."""
    lines = []
    for row in ROWS:
        for e in read(f"again/{row}"):
            far = [line for line in compare(row, e) if line[4] is not None]
            if not far:                                   # fewer than two seeds on file: no deviation
                continue
            name, mean, spread, now, _ = max(far, key=lambda line: line[4])
            lines.append([f"`{command(row, e['seed'])}`", seeds(row), "; ".join(sorted({machine(x) for x in read(row)})), machine(e), f"{e['seconds'] / 60:.0f}{'*' if threads(e) == 1 else ''}",
                          f"{sum(line[4] <= 2 for line in far)} of {len(far)}", f"{name.replace('_', ' ')}: {now:.4g} ({mean:.4g} ± {spread:.2g})"])
    return table(["run anew", "seeds on file", "on file by", "anew by", "minutes", "scores within two deviations", "furthest off: now (on file)"], lines)


def hardware():
    """Machines, precisions and versions behind the tables, with the number of runs."""
    entries = [(row, e) for row in ROWS for e in read(row)]
    machines = {}
    for _, e in entries:
        machines.setdefault(machine(e), []).append(e)
    parts = []
    for name, mine in sorted(machines.items(), key=lambda item: -len(item[1])):
        counts = sorted({threads(e) for e in mine} - {0})
        beside = f" ({' or '.join(map(str, counts))} thread{'' if counts == [1] else 's'})" if counts else ""
        parts.append(f"{len(mine)} on {name}{beside}")
    versions = sorted({e["versions"]["torch"] for _, e in entries})
    return f"The tables hold {len(entries)} runs: {'; '.join(parts)}; torch {', '.join(versions)}."


def speed_table():
    """What tests/benchmark.py wrote, of every machine on file."""
    path = RESULTS / "benchmark.json"
    found = {(machine(e), e["step"]): e for e in (json.loads(path.read_text()) if path.exists() else [])}
    kinds = list(dict.fromkeys(kind for kind, _ in found))
    names = {"mathieu": "mathieu.py", "aae": "aae.py", "aae-semi": "aae.py --task semi", "aae-small": "aae.py, 512 units, batches of 64", "bigan": "bigan.py", "infogan": "infogan.py"}
    share = lambda ratio: f"{ratio:.2f}" if ratio >= .1 else f"{ratio:.1g}"  # noqa: E731
    cells = lambda e: (f"{e['images_per_second']:,.0f}", share(e["ratio"])) if e else ("–", "–")  # noqa: E731
    lines = [[words, *(cell for kind in kinds for cell in cells(found.get((kind, name))))] for name, words in names.items()]
    return table(["training step", *(words for kind in kinds for words in (f"{kind}: images/s", "share of its matmul rate"))], lines)


PARTS = {"mnist": mnist_table, "sprites": sprites_table, "ablations": ablation_table, "aae": aae_table, "bigan": bigan_table, "grid": grid_table, "infogan": infogan_table, "leak": leak_table, "repeats": repeats_table, "speed": speed_table, "hardware": hardware}


def rendered(text):
    """The README's text with every part between its markers written anew."""
    for name, make in PARTS.items():
        begin, end = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
        head, rest = text.split(begin, 1)
        text = head + begin + make() + end + rest.split(end, 1)[1]
    return text


def main():
    cli = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    cli.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=f"rows to run (default: all, many hours): {', '.join(ROWS)}")
    cli.add_argument("--seeds", nargs="+", type=int, help="seeds to run (default: 0 1 2 3 4, of bigan/grid-random 0 to 9)")
    cli.add_argument("--jobs", type=int, choices=range(1, 65), default=1, metavar="N",
                     help="runs beside each other, each with its share of the cores (default: 1); on two cores 2 are faster by 8 %% (infogan.py) to 47 %% (aae.py)")
    cli.add_argument("--plan", action="store_true", help="run nothing, print what is not on file and the time it would take")
    cli.add_argument("--again", action="store_true", help="run what is asked for whether it is on file or not, and compare; results/ stays as it is")
    cli.add_argument("--keep", action="store_true", help="with --again: file the run in results/again/, for the README's table of repeats")
    cli.add_argument("--readme", action="store_true", help="run nothing, write the README's tables from what is on file")
    words = cli.parse_args()
    if words.keep and not words.again:
        cli.error("--keep goes with --again")
    todo = (asked if words.again else plan)(words.only, words.seeds)
    if words.plan:
        for row, seed in todo:
            print(f"{command(row, seed)}  # {row}, about {in_words(expected(row))}")
    if not words.readme:
        print(f"{len(todo)} runs, about {in_words(sum(expected(row) for row, _ in todo) / words.jobs)}" if todo else "all on file; --again runs it anew and compares")
    if words.plan:
        return
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt_children)
    try:
        if not words.readme:
            run_all(todo, words.jobs, partial(again, keep=words.keep) if words.again else reproduce)
    finally:                                              # the tables and what is on file agree, whatever happened
        README.write_text(rendered(README.read_text()))


if __name__ == "__main__":
    main()
