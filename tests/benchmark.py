"""Speed of each script's training step, beside the machine's matrix-product rate in the same run.

    python tests/benchmark.py              # every step; into results/benchmark.json, four minutes
    python tests/benchmark.py mathieu aae  # some of them, printed only
    python tests/benchmark.py mathieu --against ../before  # beside another checkout, in turn

Steps: mathieu, aae, bigan and infogan by default settings; aae-semi, Table 2's; aae-small, the
sizes of PyTorch-GAN's aae.py (512 hidden units, batches of 64, a Gaussian encoder).

A step's floor is its multiply-adds over the rate of a 2048 x 2048 matrix product (on a GPU
8192 x 8192, which fills it) in the same precision. In bf16 only where the hardware multiplies it.
No test asserts a time.
"""

import argparse
import dataclasses
import json
import math
import re
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import aae  # noqa: E402
import bigan  # noqa: E402
import common  # noqa: E402
import infogan  # noqa: E402
import mathieu  # noqa: E402
from experiments import command_line, machine, scores  # noqa: E402


def best_time(call, seconds=3.0):
    """Fastest of repeated calls, in seconds, after two to warm up."""
    call(), call()
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return min(times)


def matmul_rate(device, dtype):
    """Floating-point operations a second of a matrix product large enough to fill the device."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))

    def product():
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()

    return 2 * n**3 / best_time(product)


def time_default(script, rows, steps, counted_steps, precision):
    """Seconds and floating-point operations of a training step by default settings, its images,
    the device. rows: images in a row of a batch. It is timed over `steps`, and its operations are
    counted over `counted_steps`."""
    with tempfile.TemporaryDirectory() as folder:

        def train(steps, name, **changes):
            words = ["--epochs", "1", "--precision", precision, "--out", f"{folder}/{name}"]
            settings = dataclasses.replace(command_line.parse(script.recipe, words), **changes)
            run = common.Run(script.__name__, settings)
            chosen = torch.arange(rows * settings.batch_size * steps)
            data = common.load_dataset("mnist")[0].take(chosen).to(run.device)
            nets = script.build(settings).to(run.device)
            with run.autocast():
                script.train(run, nets, data)
            return run

        train(10, "warm")
        run = train(steps, "timed")
        # bigan.py's penalty is timed but not counted: the counter cannot follow its derivatives.
        off = {"penalty": 0.0} if script is bigan else {}
        with FlopCounterMode(display=False) as counter:
            counted = train(counted_steps, "counted", **off)
        images = rows * run.settings.batch_size  # of a whole step; an epoch's are a bit smaller
        seconds = run.train_seconds / run.images * images
        return seconds, counter.get_total_flops() / counted.images * images, images, run.device


def time_settings(script, words, precision, steps, counted_steps, train):
    """The same of a script by the flags `words`; train(run, data) is one epoch of it. It is timed
    over `steps`, and its operations are counted over `counted_steps`."""
    with tempfile.TemporaryDirectory() as folder:

        def epoch(steps, place):
            more = ["--epochs", "1", "--precision", precision, "--out", f"{folder}/{place}"]
            settings = command_line.parse(script.recipe, [*words, *more])
            data = common.load_dataset("mnist")[0].take(slice(steps * settings.batch_size))
            run = common.Run(script.__name__, settings)
            with run.autocast():
                train(run, data.to(run.device))
            return run

        epoch(20, "warm")
        run = epoch(steps, "timed")
        with FlopCounterMode(display=False) as counter:
            counted = epoch(counted_steps, "counted")
        flops = counter.get_total_flops() / counted.step
        return run.train_seconds / run.step, flops, run.settings.batch_size, run.device


SMALL = "--task likelihood --dropout 0 --encoder gaussian --z-dim 10 --hidden 512 --batch-size 64"
AAE = {"aae": [], "aae-semi": ["--task", "semi"], "aae-small": SMALL.split()}


def time_aae(name, precision):
    """AAE. Images are counted without the labelled ones."""

    def train(run, data):
        labelled = scores.balanced(data.y, run.settings.labels or 0)
        aae.train(run, aae.build(run.settings).to(run.device), data, labelled)

    return time_settings(aae, AAE[name], precision, 200, 4, train)


INFOGAN = ["--continuous-start", "0"]


def time_infogan(precision):
    """InfoGAN, all its terms in force."""

    def train(run, data):
        steps = math.ceil(len(data.y) / run.settings.batch_size)
        infogan.train(run, infogan.build(run.settings, steps).to(run.device), data)

    return time_settings(infogan, INFOGAN, precision, 60, 4, train)


TIMES = {
    "mathieu": partial(time_default, mathieu, 2, 60, 2),
    **{name: partial(time_aae, name) for name in AAE},
    "bigan": partial(time_default, bigan, 1, 200, 4),
    "infogan": time_infogan,
}


def measure(name, precision):
    """One step's speed and its share of the matrix-product rate of the same moments."""
    seconds, flops, images, device = TIMES[name](precision)
    rate = matmul_rate(device, torch.bfloat16 if precision == "bf16" else torch.float32)
    return {
        "step": name,
        "precision": precision,
        "images": images,
        "images_per_second": images / seconds,
        "milliseconds": seconds * 1e3,
        "gflop": flops / 1e9,
        "gflop_per_second": flops / seconds / 1e9,
        "matmul_gflop_per_second": rate / 1e9,
        "ratio": flops / seconds / rate,
        "hardware": machine.hardware(device),
        "torch": torch.__version__,
    }


WORDS = (
    "{step} {precision}: {images_per_second:.0f} images/s, {milliseconds:.1f} ms a step of"
    " {images}; {gflop:.2f} GFLOP a step, {gflop_per_second:.0f} GFLOP/s;"
    " matmul {matmul_gflop_per_second:.0f} GFLOP/s; ratio {ratio:.2f}"
)


def speeds(folder, name):
    """{precision: images/s} of a step, by the benchmark of the checkout in `folder`."""
    command = [sys.executable, "tests/benchmark.py", name]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    found = re.findall(rf"^{name} (\w+): (\d+) images/s", done.stdout, re.MULTILINE)
    if done.returncode or not found:
        raise SystemExit(f"no speed of {name} in {folder}: {done.stderr[-1000:]}")
    return {precision: int(speed) for precision, speed in found}


def compare(names, other, rounds=3):
    """Each step here and in the checkout `other`, in turn, so that both meet the same moods of the
    machine. Prints the best of each and their quotient."""
    for name in names or TIMES:
        runs = [(speeds(ROOT, name), speeds(other, name)) for _ in range(rounds)]
        for precision in runs[0][0]:
            here, there = (max(run[side][precision] for run in runs) for side in (0, 1))
            print(
                f"{name} {precision}: here {here} images/s, there {there},"
                f" {here / there:.2f} times as many (best of {rounds} each)",
                flush=True,
            )


def main(names):
    machine.keep_memory()  # as in a run
    device = machine.choose_device("auto")
    bf16 = device.type == "cuda" or machine.choose_precision("auto", device) == "bf16"
    rows = []
    for name in names or TIMES:
        for precision in ("fp32", "bf16") if bf16 else ("fp32",):  # no emulation
            rows.append(measure(name, precision))
            print(WORDS.format(**rows[-1]), flush=True)
    if not names:
        path = ROOT / "results/benchmark.json"
        on_file = json.loads(path.read_text()) if path.exists() else []
        others = [entry for entry in on_file if entry["hardware"] != rows[0]["hardware"]]
        common.write_atomic(path, (json.dumps(others + rows, indent=1) + "\n").encode())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("steps", nargs="*", metavar="STEP", help=", ".join(TIMES))
    parser.add_argument("--against", metavar="FOLDER", help="another checkout, timed in turn")
    words = parser.parse_args()
    if unknown := set(words.steps) - set(TIMES):
        parser.error(f"no such step: {', '.join(unknown)}")
    compare(words.steps, words.against) if words.against else main(words.steps)
