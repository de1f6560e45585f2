"""BiGAN's Table 1 by the recipe of its released code: 400 epochs, hours on a processor.

    python -m experiments.bigan_released
    python -m experiments.bigan_released --model gan      # a baseline of bigan_baselines.py
    python -m experiments.bigan_released --validation     # on held-out images, as the authors' log

Networks, losses and steps are those of bigan.py and bigan_baselines.py, with `--recipe paper`. What
still differs from the released code is in results/bigan.md. It has no autoencoders.
After each 50 epochs the table's error is measured on a copy of the networks. The results are in
errors.json and among the scores.
"""

import copy
import functools
import json

import bigan
import common
from experiments import bigan_baselines, bigan_scores, run_folder

import torch


def script_of(model):
    """The module that trains a model."""
    return bigan_baselines if model in bigan_baselines.STEPS else bigan


def recipe(model="bigan", recipe="paper"):
    """The settings of a model by its own script."""
    return script_of(model).recipe(model, recipe)


def load_data(settings):
    """As `common.load_data`. With --validation a random sixth of the training images is held out,
    as in the authors' log. Elsewhere it is the last sixth."""
    data, test = common.load_data(settings)
    if not settings.validation:
        return data, test
    x, y = torch.cat([data.x, test.x]), torch.cat([data.y, test.y])
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0)).to(y.device)
    both = common.Split(x, y)
    return both.take(order[len(test.y) :]), both.take(order[: len(test.y)])


class Run(common.Run):
    """Calls `measure()`, which gives the error, after each 50 epochs. errors: the results,
    {nn_error_features_EPOCHS: %}. The time they take counts as training."""

    every = 50

    def epochs(self):
        path = self.folder / "errors.json"  # is there when the run is resumed
        self.errors = run_folder.read_json(path) if self.saved and path.exists() else {}
        for epoch in super().epochs():
            yield epoch
            done = epoch + 1
            if done % self.every == 0 and done < self.settings.epochs:
                self.errors[f"nn_error_features_{done}"] = self.measure()
                common.write_atomic(path, json.dumps(self.errors, indent=1).encode())


@torch.no_grad()
def error_so_far(nets, data, test, settings):
    """nn_error_features of networks in training, in %."""
    nets = copy.deepcopy(nets)
    net = nets.enc if hasattr(nets, "enc") else nets.disc
    with torch.autocast(data.x.device.type, enabled=False):
        script_of(settings.model).settle(nets, data, settings)
        return bigan_scores.layer_error(net, data, test)


def build(o):
    """The networks of a model by its own script."""
    return script_of(o.model).build(o)


def evaluate(nets, data, test, settings, folder):
    """Scores and the rows of the printed table; figures into the run's folder."""
    return script_of(settings.model).evaluate(nets, data, test, settings, folder)


def main(settings):
    script = script_of(settings.model)
    bigan_scores.judge_of(settings)  # a damaged file should fail now, not after the training
    data, test = load_data(settings)
    run = Run("bigan_released", settings, f"{settings.model}-{settings.dataset}")
    nets = build(settings).to(run.device)
    run.measure = functools.partial(error_so_far, nets, data, test, settings)
    with run.autocast():
        script.train(run, nets, data)
    script.settle(nets, data, settings)
    found, table = evaluate(nets, data, test, settings, run.folder)
    run.finish({**found, **run.errors}, table)


if __name__ == "__main__":
    common.run_main(main, recipe)
