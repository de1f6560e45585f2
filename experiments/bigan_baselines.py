"""The other columns of BiGAN's Table 1, and two rows that the table lacks.

    python -m experiments.bigan_baselines --model latent-regressor
    python -m experiments.bigan_baselines --model ae-l2

    gan                      D of a GAN; its last hidden layer is compared
    latent-regressor         the paper's LR: E recovers z from G(z); G gets no gradient from it
    joint-latent-regressor   JLR: G minimises that error, too, with a weight
    ae-l2, ae-l1             autoencoders: E, then G
    pixels, untrained        no training: raw pixels; E with its initial weights

Networks and averages are bigan.py's, so are the autoencoders' rates. With a D the rates are those
released, and there is no penalty. D, of images alone, has the skip of bigan.py. Here it does not
fade: without it some runs end with one image for all z (results/NOTES.md). `--recipe paper` drops
it. A new baseline: its name in NAMES, its settings in MODELS, its networks in `build`, its step in
STEPS.
"""

import copy
import dataclasses
import functools
import math
from typing import Literal

import bigan
import common
from bigan import discriminator_loss, draw_prior, move_average, rate, squared_error, update
from common import Batch, Beta, Count, Rate, Share, Weight
from experiments import batch_norm, bigan_scores

import torch
import torch.nn.functional as F
from torch import nn

NAMES = Literal[
    "gan", "latent-regressor", "joint-latent-regressor", "ae-l2", "ae-l1", "pixels", "untrained"
]


# ---- Settings ------------------------------------------------------------------------------------
@dataclasses.dataclass
class Untrained(common.RunSettings):
    model: NAMES = "untrained"  # see above
    recipe: Literal["ours", "paper"] = "ours"  # paper: BiGAN's released epochs, rates, last weights
    epochs: Count = 0  # nothing is trained
    z_dim: Count = 50  # numbers in a code
    hidden: Count = 1024  # units of a hidden layer


@dataclasses.dataclass
class Autoencoder(Untrained):
    epochs: Count = 30  # passes over the training images (released, of BiGAN: 400)
    batch_size: Batch = 128  # images in a step
    lr: Rate = 5e-4  # Adam's rate for G and E (released, of BiGAN: 2e-4)
    schedule: Literal["linear", "exponential"] = "linear"  # of the rates (BiGAN: exponential)
    beta1: Beta = 0.5  # Adam's beta1
    weight_decay: Weight = 2.5e-5  # times each weight, is added to its gradient
    average: Share = 0.999  # ours: decay of the average of the weights (paper: 0, the last weights)


@dataclasses.dataclass
class Gan(Autoencoder):
    lr: Rate = 2e-4  # Adam's rate for G and E (released: 2e-4)
    lr_disc: Rate = 2e-4  # Adam's rate for D (released: 2e-4)
    decay_disc: Weight = 2.5e-5  # weight_decay of D (released: the same, but D's loss is halved)
    skip: Literal["yes", "no"] = "yes"  # ours: D's logit sees its first layer, too (paper: no)


@dataclasses.dataclass
class JointRegressor(Gan):
    regressor_weight: Weight = 0.25  # of the regressor's loss; with 1 it degenerates (authors)


MODELS = {
    "gan": Gan,
    "latent-regressor": Gan,
    "joint-latent-regressor": JointRegressor,
    "ae-l2": Autoencoder,
    "ae-l1": Autoencoder,
    "pixels": Untrained,
    "untrained": Untrained,
}


def recipe(model="gan", recipe="ours"):
    """The settings of a baseline."""
    settings = MODELS.get(model, Gan)(model=model, recipe=recipe)  # the parser refuses other names
    if recipe == "paper" and model in STEPS:
        changes = {**bigan.RELEASED, "average": 0.0, "skip": "no"}
        changes["decay_disc"] = changes.pop("weight_decay")  # released: here only D's is halved
        read = {k: v for k, v in changes.items() if hasattr(settings, k)}
        settings = dataclasses.replace(settings, **read)
    return settings


# ---- Networks and losses -------------------------------------------------------------------------
class ImageDiscriminator(bigan.Encoder):
    """The logit [B] of a GAN's D(x): bigan.py's D without the code. `skip` as there."""

    def __init__(self, shape=(1, 28, 28), hidden=1024, skip=False):
        super().__init__(shape, 1, hidden)
        self.skip = nn.Linear(hidden, 1, bias=False) if skip else None

    def initialise(self):
        super().initialise()
        nn.init.zeros_(self.out.weight)
        if self.skip is not None:
            nn.init.zeros_(self.skip.weight)

    def forward(self, x):
        h1 = F.leaky_relu(self.layer1(x.flatten(1)), 0.2)
        h2 = F.leaky_relu(self.norm(self.layer2(h1)), 0.2)
        logit = self.out(h2).float().squeeze(1)
        if self.skip is not None:
            logit = logit + self.skip(h1).float().squeeze(1)
        return logit


def generator_loss(logits_fake):
    """-log D(G(z)), mean over the batch; log 2 at chance. Logits [B]."""
    return F.softplus(-logits_fake).mean()


def absolute_error(a, b):
    """|a - b|, summed over pixels, mean over the batch. Both [B, ...]."""
    return (a - b).abs().flatten(1).sum(1).mean()


def regression_loss(logits, z):
    """Cross-entropy of sigmoid(logits) and z mapped from [-1, 1] to [0, 1], mean over batch and
    numbers. Both [B, z_dim]. log 2 for logits of 0; at best 1/2 for the uniform prior."""
    return F.binary_cross_entropy_with_logits(logits, (z + 1) / 2)


# ---- Training ------------------------------------------------------------------------------------
# A step takes networks, optimisers, images x [B, C, H, W] and settings, and returns its losses.
def gan_step(nets, opt, x, o):
    """G minimises  - log D(G(z))  [+ the regressor's loss];  E minimises that loss.
    D minimises  - log D(x) - log(1 - D(G(z)))."""
    z = draw_prior("bigan", len(x), o.z_dim, x.device)
    x_z = nets.gen(z)
    logits_real, logits_fake = nets.disc(x), nets.disc(x_z)
    loss_g = generator_loss(logits_fake)
    regression = x.new_zeros(())
    weight = 1.0
    if o.model == "latent-regressor":  # G gets no gradient; E sees no real x
        regression = regression_loss(code_logits(nets.enc, x_z.detach()), z)
    if o.model == "joint-latent-regressor":  # E shares G's weight, as released
        regression = regression_loss(code_logits(nets.enc, x_z), z)
        weight = o.regressor_weight
    update(opt["ge"], loss_g + weight * regression, keep=True)
    loss_d = discriminator_loss(logits_real, logits_fake)
    update(opt["d"], loss_d)
    return {"disc": loss_d, "gen": loss_g, "regression": regression}


def code_logits(enc, x):
    """Of bigan.py's E: its output before it is bounded."""
    return enc.out(enc.features(x)).float()


def autoencoder_step(nets, opt, x, o, error):
    """E, G minimise  error(G(E(x)), x)."""
    loss = error(nets.gen(nets.enc(x)), x)
    update(opt["ge"], loss)
    return {"pixel": loss}


STEPS = {
    "gan": gan_step,
    "latent-regressor": gan_step,
    "joint-latent-regressor": gan_step,
    "ae-l2": functools.partial(autoencoder_step, error=squared_error),
    "ae-l1": functools.partial(autoencoder_step, error=absolute_error),
}


def train(run, nets, data):
    """As bigan.train, with the step of the model. Call `settle` afterwards."""
    o = run.settings
    steps = o.epochs * math.ceil(len(data.y) / o.batch_size)
    nets.train()
    adam = {"betas": (o.beta1, 0.999), "weight_decay": o.weight_decay, "fused": True}
    others = [p for name, p in nets.named_parameters() if not name.startswith("disc")]
    opt = {"ge": torch.optim.Adam(others, o.lr, **adam)}
    if hasattr(nets, "disc"):
        adam["weight_decay"] = o.decay_disc
        opt["d"] = torch.optim.Adam(nets.disc.parameters(), o.lr_disc, **adam)
    average = copy.deepcopy(nets)
    run.track(nets=nets, average=average, **{f"opt_{name}": opt[name] for name in opt})

    for _ in run.epochs():
        for index in run.batches(torch.randperm(len(data.y)), o.batch_size):
            for player in opt.values():
                lr = player.defaults["lr"] * rate(run.step, steps, o.schedule)
                player.param_groups[0]["lr"] = lr
            losses = STEPS[o.model](nets, opt, common.to_float(data.x[index]), o)
            move_average(average, nets, run.step, o.average)
            run.log(**losses)
    move_average(nets, average, step=1, decay=0.0)


@torch.no_grad()
def settle(nets, data, o):
    """As bigan.settle. An autoencoder's G gets codes, a GAN's D images. E's averages are of real
    images, which a latent regressor never saw in training."""
    parts = batch_norm.image_parts(data.x)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if hasattr(nets, "enc"):
            batch_norm.settle(nets.enc, [(x,) for x in parts])
        if o.model in ("ae-l2", "ae-l1"):
            codes = [nets.enc(x) for x in parts]
        else:
            codes = [draw_prior("bigan", len(x), o.z_dim, x.device) for x in parts]
        if hasattr(nets, "gen"):
            batch_norm.settle(nets.gen, [(z,) for z in codes])
        if hasattr(nets, "disc"):
            batch_norm.settle(nets.disc, [(x,) for x in parts])


# ---- The command line ----------------------------------------------------------------------------
def build(o):
    """Untrained networks: enc, gen and disc, as far as the model has them."""
    shape = (1, 28, 28) if o.dataset in common.GREY else (3, 32, 32)
    nets = nn.Module()
    nets.shape = shape
    if o.model not in ("pixels", "gan"):
        nets.enc = bigan.Encoder(shape, o.z_dim, o.hidden)
    if o.model != "pixels":
        nets.gen = bigan.Generator(shape, o.z_dim, o.hidden)
    if hasattr(o, "lr_disc"):
        nets.disc = ImageDiscriminator(shape, o.hidden, o.skip == "yes")
    for net in nets.children():
        net.initialise()
    if o.model in ("latent-regressor", "joint-latent-regressor"):
        nn.init.zeros_(nets.enc.out.weight)  # as released
    return nets


@torch.random.fork_rng()
def evaluate(nets, data, test, settings, folder):
    """Scores and the rows of the printed table; figures into the run's folder."""
    judge = bigan_scores.judge_of(settings)
    encode = functools.partial(bigan.encode, nets) if hasattr(nets, "enc") else None
    decode = functools.partial(bigan.decode, nets) if hasattr(nets, "gen") else None
    net = getattr(nets, "enc", getattr(nets, "disc", None))
    draw = functools.partial(draw_prior, "bigan", z_dim=settings.z_dim, device=data.x.device)
    found, table = bigan_scores.evaluate(settings, data, test, judge, net, encode, decode, draw)
    if decode:
        bigan.figure_samples(nets, draw(160), folder / "samples.png")
    if encode:
        bigan.figure_reconstructions(nets, test, folder / "reconstructions.png", judge)
    return found, table


def main(settings):
    bigan_scores.judge_of(settings)
    data, test = common.load_data(settings)
    name = f"{settings.model}-{settings.dataset}"
    run = common.Run("bigan_baselines", settings, name)
    nets = build(settings).to(run.device)
    if settings.model in STEPS:
        with run.autocast():
            train(run, nets, data)
    else:
        run.track(nets=nets)
    settle(nets, data, settings)
    run.finish(*evaluate(nets, data, test, settings, run.folder))


if __name__ == "__main__":
    common.run_main(main, recipe)
