"""Speed of each script's training step, beside the machine's own matrix-product rate measured in the same run.

    python tests/benchmark.py                             # every step; what it prints goes into results/benchmark.json, beside other machines' (about four minutes)
    python tests/benchmark.py mathieu aae aae-semi aae-small bigan infogan        # some of them, printed only

aae is its default run, aae-semi Table 2's, aae-small the sizes of PyTorch-GAN's aae.py (512 hidden units, batches of 64, a Gaussian encoder).

A step's floor is its multiply-adds over the rate of a 2048 x 2048 matrix product (on a GPU 8192 x 8192, which fills it) in the same precision. In bf16 only
where the hardware multiplies it. No test asserts a time.
"""
import json
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import aae
import bigan
import common
import infogan
import mathieu


def best_time(call, seconds=3.):
    """Fastest of repeated calls, in seconds, after two to warm up."""
    call(), call()
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return min(times)


def matmul_rate(device, dtype):
    """Floating-point operations a second of an n x n matrix product, large enough to fill the device."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))

    def product():
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
    return 2 * n ** 3 / best_time(product)


def time_mathieu(precision, steps=60):
    """Seconds and floating-point operations of a training step at the default settings, and its images."""
    with tempfile.TemporaryDirectory() as folder:
        opt = mathieu.resolve(mathieu.make_parser().parse_args(["--epochs", "1", "--precision", precision, "--out", folder + "/run"]))

        def train(images, name):
            opt.out = f"{folder}/{name}"
            data = common.load_dataset("mnist")[0].take(torch.arange(images))
            run = common.Run("mathieu", opt)
            data = data.to(run.device)
            mathieu.train(run, mathieu.build(opt, 1, 28, 10), data, mathieu.labels_of(data))
            return run
        train(20 * opt.batch_size, "warm")
        run = train(steps * opt.batch_size, "timed")
        seconds = run.train_seconds / run.step
        fast = mathieu.Conv5.forward, mathieu.ConvTranspose5.forward
        mathieu.Conv5.forward, mathieu.ConvTranspose5.forward = nn.Conv2d.forward, nn.ConvTranspose2d.forward      # count the paper's own
        with FlopCounterMode(display=False) as counter:
            counted = train(2 * opt.batch_size, "counted")
        mathieu.Conv5.forward, mathieu.ConvTranspose5.forward = fast
        return seconds, counter.get_total_flops() / counted.step, opt.batch_size, run.device


AAE = {"aae": [], "aae-semi": ["--task", "semi"], "aae-small": ["--task", "likelihood", "--dropout", "0", "--encoder", "gaussian", "--z-dim", "10", "--hidden", "512", "--batch-size", "64"]}


def time_script(script, words, precision, steps, counted_steps, train):
    """The same for a script with flags `words`; train(run, data) is one epoch of it."""
    with tempfile.TemporaryDirectory() as folder:
        opt = script.resolve(script.make_parser().parse_args([*words, "--epochs", "1", "--precision", precision]))

        def epoch(steps, place):
            opt.out = f"{folder}/{place}"
            data = common.load_dataset("mnist")[0].take(torch.arange(steps * opt.batch_size))
            run = common.Run(script.__name__, opt)
            train(run, data.to(run.device))
            return run
        epoch(20, "warm")
        run = epoch(steps, "timed")
        opt.penalty = 0.                                  # timed but not counted: the counter cannot follow its second derivatives
        with FlopCounterMode(display=False) as counter:
            counted = epoch(counted_steps, "counted")
        return run.train_seconds / run.step, counter.get_total_flops() / counted.step, opt.batch_size, run.device


def time_aae(name, precision):
    """Images are counted without the labelled ones."""
    def train(run, data):
        aae.train(run, aae.build(run.options, 784), data, aae.choose_labelled(data.y, run.options.labels, 0))
    return time_script(aae, AAE[name], precision, 200, 4, train)


def time_bigan(precision):
    """The default model."""
    return time_script(bigan, [], precision, 200, 4, lambda run, data: bigan.train(run, bigan.build(run.options, 784), data))


INFOGAN = ["--baseline-epochs", "0", "--continuous-start", "0"]


def time_infogan(precision):
    """InfoGAN alone, all its terms in force, without the regular GAN beside it."""
    return time_script(infogan, INFOGAN, precision, 60, 4, lambda run, data: infogan.train(run, infogan.build(run.options), None, data))


TIMES = {"mathieu": time_mathieu, **{name: partial(time_aae, name) for name in AAE}, "bigan": time_bigan, "infogan": time_infogan}


def measure(name, precision):
    """One step's speed and its share of the matrix-product rate of the same moments."""
    seconds, flops, images, device = TIMES[name](precision)
    rate = matmul_rate(device, torch.bfloat16 if precision == "bf16" else torch.float32)
    return {"step": name, "precision": precision, "images": images, "images_per_second": images / seconds, "milliseconds": seconds * 1e3, "gflop": flops / 1e9,
            "gflop_per_second": flops / seconds / 1e9, "matmul_gflop_per_second": rate / 1e9, "ratio": flops / seconds / rate,
            "hardware": common.hardware(device), "torch": torch.__version__}


def main(names):
    device = common.choose_device("auto")
    precisions = ("fp32", "bf16") if device.type == "cuda" or common.choose_precision("auto", device) == "bf16" else ("fp32",)    # no emulation
    rows = []
    for name in names or TIMES:
        for precision in precisions:
            rows.append(measure(name, precision))
            print("{step} {precision}: {images_per_second:.0f} images/s, {milliseconds:.1f} ms a step of {images}; {gflop:.2f} GFLOP a step, {gflop_per_second:.0f} GFLOP/s; "
                  "matmul {matmul_gflop_per_second:.0f} GFLOP/s; ratio {ratio:.2f}".format(**rows[-1]), flush=True)
    if not names:
        path = Path(__file__).resolve().parent.parent / "results/benchmark.json"
        others = [e for e in (json.loads(path.read_text()) if path.exists() else []) if e["hardware"] != rows[0]["hardware"]]
        path.write_text(json.dumps(others + rows, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
