"""Adversarial feature learning. Donahue, Krähenbühl, Darrell 2016, arXiv 1605.09782: BiGAN.
Adversarially learned inference. Dumoulin et al. 2016, arXiv 1606.00704: ALI; its E(x) is random.
ALICE. Li et al. 2017, arXiv 1709.01215: ALI with cycle terms.

    python bigan.py                      # BiGAN on MNIST
    python bigan.py --model ali          # or alice

A generator G makes an image from a code z. An encoder E finds a code for a real image x. One
discriminator D sees pairs, (x, E(x)) or (G(z), z); E and G learn to mislead it. If both kinds of
pairs have one distribution, BiGAN's E and G are inverses of each other. Training stops short of
that, and G(E(x)) is often another digit. ALICE also compares x with G(E(x)), z with E(G(z)).

Where the papers' things are
    BiGAN section 4, released code      Encoder, Generator, Discriminator
    BiGAN section 3, ALI eq. 1          discriminator_loss
    BiGAN section 3.4, ALI eq. 4        swapped_loss; train: E, G and D step together
    ALI eq. 2, Algorithm 1              GaussianEncoder, train
    ALICE's explicit cycle terms        squared_error in train
    BiGAN Figure 2, ALI's samples       figure_reconstructions, figure_samples
    BiGAN Table 1; its other columns    experiments/bigan_scores.py; experiments/bigan_baselines.py
    ALI's 25 Gaussians; interpolations  experiments/gaussians.py; experiments/bigan_scores.py

Differences        the papers, released code            here
    epochs         400 (BiGAN, released)                30
    rates          2e-4, exponential fall (ALI: 1e-4)   5e-4, short rise, linear fall
    weight decay   2.5e-5, losses halved (released)     2.5e-5, losses whole: half as strong
    batch norm     epsilon 1e-8 (BiGAN), 1e-4 (ALI)     epsilon 1e-5
    ALI's data     photos; convolutions; dropout in D   MNIST, BiGAN's networks, codes of 50
    ALI's D        both kinds of pairs in one batch     a batch of each kind, as in BiGAN
    ALI's E        mu and sigma without bounds          batch norm on mu, sigma below 1
    ALICE          several kinds of cycle terms         summed squared errors, in x and in z
    ALI's figures  G(E(x)) of a sample of q(z|x)        of its mean
Left out: ImageNet, PASCAL VOC; ALI's semi-supervised and conditional models.
Three additions of ours, a flag each: penalty, skip_fade, average. "# ours" marks a line,
"# ours: X" only X. --recipe paper turns them off, and takes BiGAN's epochs, rates, decay for all.
"""

import copy
import dataclasses
import functools
import math
from typing import Literal

import common
from common import Batch, Beta, Count, Rate, Share, Weight

import torch
import torch.nn.functional as F
from torch import nn


# ---- Settings: a field is a flag, its comment the help; "released": the default of BiGAN's code --
@dataclasses.dataclass
class Settings(common.RunSettings):
    model: Literal["bigan", "ali", "alice"] = "bigan"  # ali: E draws samples; alice: ali and cycles
    recipe: Literal["ours", "paper"] = "ours"  # paper: no additions; rates, decay, epochs released
    epochs: Count = 30  # passes over the training images (released: 400)
    batch_size: Batch = 128  # images in a step, and as many codes
    lr: Rate = 5e-4  # Adam's rate for G and E (released: 2e-4)
    lr_disc: Rate = 5e-4  # Adam's rate for D (released: 2e-4)
    schedule: Literal["linear", "exponential"] = "linear"  # of all rates (released: exponential)
    beta1: Beta = 0.5  # Adam's beta1
    weight_decay: Weight = 2.5e-5  # gradient += this * weight (released: in effect 5e-5)
    z_dim: Count = 50  # numbers in a code
    hidden: Count = 1024  # units of a hidden layer
    cycle_weight: Weight = 0.0  # lambda of ALICE's summed squared errors; alice's 0.05 is ours
    penalty: Weight = 0.5  # ours: gamma of the penalty on D's slope (paper: 0)
    skip_fade: Share = 0.5  # ours: share of the run in which D's skip fades (paper: 0, no skip)
    average: Share = 0.999  # ours: decay of the average of the weights (paper: 0, the last weights)


MODELS = {
    "bigan": Settings(),
    "ali": Settings(model="ali", skip_fade=0.0),  # needs no skip
    "alice": Settings(model="alice", skip_fade=0.0, cycle_weight=0.05),  # 0.05: ours
}
RELEASED = dict(epochs=400, lr=2e-4, lr_disc=2e-4, schedule="exponential", weight_decay=5e-5)
OFF = {"penalty": 0.0, "skip_fade": 0.0, "average": 0.0}


def recipe(model="bigan", recipe="ours"):
    """The settings of a model. A new model: its name in Settings.model, its settings in MODELS, its
    networks in `build` and prior in `draw_prior` (else it gets ALI's), its terms in `train`."""
    settings = MODELS.get(model, MODELS["bigan"])  # the command line refuses other names later
    if recipe == "paper":
        settings = dataclasses.replace(settings, **RELEASED, **OFF)
    return dataclasses.replace(settings, recipe=recipe)


# ---- Networks (BiGAN section 4, released code): no biases, batch norm without gain and bias ------
class Network(nn.Module):
    """What the three have in common: weights ~ N(0, 0.02^2), once you call `initialise`."""

    def initialise(self):
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)


class Encoder(Network):
    """E(x): images [B, C, H, W] in [0, 1] -> codes [B, z_dim] in [-1, 1]. `sample` is for ALI's."""

    def __init__(self, shape=(1, 28, 28), z_dim=50, hidden=1024):
        super().__init__()
        self.layer1 = nn.Linear(math.prod(shape), hidden, bias=False)
        self.layer2 = nn.Linear(hidden, hidden, bias=False)
        self.norm = nn.BatchNorm1d(hidden, affine=False)
        self.out = nn.Linear(hidden, z_dim, bias=False)

    def features(self, x):
        """The last hidden layer [B, hidden]: probably what Table 1 compares."""
        h = F.leaky_relu(self.layer1(x.flatten(1)), 0.2)
        return F.leaky_relu(self.norm(self.layer2(h)), 0.2)

    def forward(self, x, sample=True):
        logits = self.out(self.features(x)).float()  # layers may compute in bf16, losses must not
        return torch.tanh(logits / 2)  # which is 2 sigmoid(logit) - 1


class GaussianEncoder(Encoder):
    """ALI's E: a sample [B, z_dim] of q(z|x) = N(mu, sigma^2) (eq. 2), or its mean mu.

    Changed from ALI: mu has variance 1, sigma is below 1. Else sigma grows and training breaks: D's
    batch norm hides much of z's scale. The price: z has variance 1 + sigma^2, not 1."""

    def __init__(self, shape=(1, 28, 28), z_dim=50, hidden=1024):
        super().__init__(shape, 2 * z_dim, hidden)
        self.norm_mu = nn.BatchNorm1d(z_dim, affine=False)  # not ALI's

    def forward(self, x, sample=True):
        mu, width = self.out(self.features(x)).float().chunk(2, 1)
        mu, sigma = self.norm_mu(mu), torch.sigmoid(width)  # ALI: mu, width.exp()
        return mu + torch.randn_like(mu) * sigma if sample else mu


class Generator(Network):
    """G(z): codes [B, z_dim] -> images [B, C, H, W] in [0, 1]. As in the released code, both layers
    have batch norm, and the second sees z once more, by a linear map that is added."""

    def __init__(self, shape=(1, 28, 28), z_dim=50, hidden=1024):
        super().__init__()
        self.shape = shape
        self.layer1 = nn.Linear(z_dim, hidden, bias=False)
        self.layer2 = nn.Linear(hidden, hidden, bias=False)
        self.from_z = nn.Linear(z_dim, hidden, bias=False)
        self.norm1 = nn.BatchNorm1d(hidden, affine=False)
        self.norm2 = nn.BatchNorm1d(hidden, affine=False)
        self.out = nn.Linear(hidden, math.prod(shape), bias=False)

    def forward(self, z):
        h = F.relu(self.norm1(self.layer1(z)))
        h = F.relu(self.norm2(self.layer2(h) + self.from_z(z)))
        return torch.sigmoid(self.out(h).float()).unflatten(1, self.shape)


class Discriminator(Network):
    """The logit [B] of D(x, z): high for (x, E(x)), low for (G(z), z).

    x [B, C, H, W] in [0, 1], z [B, z_dim]. z enters at the second layer, by a linear map that is
    added (BiGAN section 4, released code). skip: see "Beyond the paper"."""

    def __init__(self, shape=(1, 28, 28), z_dim=50, hidden=1024, skip=False):
        super().__init__()
        self.layer1 = nn.Linear(math.prod(shape), hidden, bias=False)
        self.layer2 = nn.Linear(hidden, hidden, bias=False)
        self.from_z = nn.Linear(z_dim, hidden, bias=False)
        self.norm = nn.BatchNorm1d(hidden, affine=False)
        self.out = nn.Linear(hidden, 1, bias=False)
        self.skip = nn.Linear(hidden, 1, bias=False) if skip else None  # ours
        self.register_buffer("skip_share", torch.ones(()) if skip else None)  # ours

    def initialise(self):
        """As the others, but the logit starts at 0, as released: E and G learn from step 2 on."""
        super().initialise()
        nn.init.zeros_(self.out.weight)
        if self.skip is not None:  # ours
            nn.init.zeros_(self.skip.weight)  # ours

    def forward(self, x, z):
        h1 = F.leaky_relu(self.layer1(x.flatten(1)), 0.2)
        h2 = F.leaky_relu(self.norm(self.layer2(h1) + self.from_z(z)), 0.2)
        logit = self.out(h2).float().squeeze(1)
        if self.skip is not None:  # ours
            logit = logit + self.skip_share * self.skip(h1).float().squeeze(1)  # ours
        return logit


# ---- Losses, means over the batch: -log D = softplus(-logit), -log(1 - D) = softplus(logit) ------
def discriminator_loss(logits_real, logits_fake):
    """-log D(x, E(x)) - log(1 - D(G(z), z)), of logits [B] each; 2 log 2 at chance."""
    return F.softplus(-logits_real).mean() + F.softplus(logits_fake).mean()


def swapped_loss(logits_real, logits_fake):
    """-log(1 - D(x, E(x))) - log D(G(z), z): D's loss with swapped labels. So the
    gradient of E and G stays large where D wins. Logits [B] each; 2 log 2 at chance."""
    return F.softplus(logits_real).mean() + F.softplus(-logits_fake).mean()


def squared_error(a, b):
    """|a - b|^2, summed over pixels or the numbers of a code. Both [B, ...]."""
    return (a - b).square().flatten(1).sum(1).mean()


# ---- Training ------------------------------------------------------------------------------------
def update(optimiser, loss, keep=False):
    """A step on `loss`, of this optimiser's weights alone. Others get no gradient. keep: the graph
    stays for the next loss. That one must not lead back to the weights that moved here."""
    parameters = [p for group in optimiser.param_groups for p in group["params"] if p.requires_grad]
    loss.backward(inputs=parameters, retain_graph=keep)
    optimiser.step()
    optimiser.zero_grad()


def rate(step, steps, schedule):
    """Factor of the rates at `step` of `steps`. First half: 1, but "linear" rises to it in at most
    100 steps. Then down to 0.01, linearly or (released) exponentially."""
    done = (step - 1) / steps
    if schedule == "exponential":
        return 0.01 ** max(0.0, 2 * done - 1)
    return min(1, step / min(100, steps / 10)) * min(1, max(0.01, 2 - 2 * done))


def draw_prior(model, count, z_dim, device):
    """z ~ p(z) [count, z_dim]: uniform in [-1, 1] for BiGAN, N(0, I) for ALI and ALICE."""
    if model == "bigan":
        return 2 * torch.rand(count, z_dim, device=device) - 1
    return torch.randn(count, z_dim, device=device)


def train(run, nets, data):
    """ALI's Algorithm 1; BiGAN's section 3.4 is the same. data: a `common.Split`. run: a
    `common.Run`: `epochs` saves after each epoch, `batches` gives the indices of a step, `step`
    counts from 1, `log` fills log.csv. Call `settle` afterwards."""
    o, enc, gen, disc = run.settings, nets.enc, nets.gen, nets.disc
    steps = o.epochs * math.ceil(len(data.x) / o.batch_size)
    nets.train()
    adam = {"betas": (o.beta1, 0.999), "weight_decay": o.weight_decay, "fused": True}
    opt_ge = torch.optim.Adam([*gen.parameters(), *enc.parameters()], o.lr, **adam)
    opt_d = torch.optim.Adam(disc.parameters(), o.lr_disc, **adam)
    average = copy.deepcopy(nets)  # ours
    run.track(nets=nets, average=average, opt_ge=opt_ge, opt_d=opt_d)  # ours: average

    for _ in run.epochs():
        for index in run.batches(torch.randperm(len(data.x)), o.batch_size):
            opt_ge.param_groups[0]["lr"] = o.lr * rate(run.step, steps, o.schedule)
            opt_d.param_groups[0]["lr"] = o.lr_disc * rate(run.step, steps, o.schedule)
            if o.skip_fade:  # ours (the skip fades)
                disc.skip_share.fill_(max(0, 1 - (run.step - 1) / (o.skip_fade * steps)))  # ours

            # Images [B, C, H, W]: real x; x_z = G(z). Codes [B, z_dim]: random z; z_x = E(x).
            x = common.to_float(data.x[index])
            z = draw_prior(o.model, len(x), o.z_dim, x.device)
            z_x, x_z = enc(x), gen(z)
            logits_real, logits_fake = disc(x, z_x), disc(x_z, z)  # each normalised alone

            # E minimises  - log(1 - D(x, E(x)));  G minimises  - log D(G(z), z);  in ALICE both
            # + lambda (|x - G(E(x))|^2 + |z - E(G(z))|^2).  E(x) is a sample, E(G(z)) a mean
            swapped = swapped_loss(logits_real, logits_fake)
            cycle = x.new_zeros(())
            if o.cycle_weight:
                cycle = squared_error(gen(z_x), x) + squared_error(enc(x_z, sample=False), z)
            update(opt_ge, swapped + o.cycle_weight * cycle, keep=True)

            # D minimises  - log D(x, E(x)) - log(1 - D(G(z), z))
            # The logits are from before E and G moved: all three step as if at once.
            loss_d = discriminator_loss(logits_real, logits_fake)
            slope = 0.0  # ours
            if o.penalty and run.step % 4 == 1:  # ours (every fourth step, so times 4 below)
                slope = slope_penalty(disc, x, z_x) + slope_penalty(disc, x_z, z)  # ours
            update(opt_d, loss_d + 4 * (o.penalty / 2) * slope)  # ours: 4 * ...
            move_average(average, nets, run.step, o.average)  # ours
            run.log(disc=loss_d, swapped=swapped, cycle=cycle)
    move_average(nets, average, step=1, decay=0.0)  # ours (copies; nets = average)


@torch.no_grad()
def settle(nets, data, o):
    """New statistics for batch norm, of the final weights (as released); then eval mode. E's: up to
    20,000 training images. D's: the same x with E(x). G's: as many z."""
    from experiments import batch_norm

    parts = batch_norm.image_parts(data.x)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        codes = [draw_prior(o.model, len(x), o.z_dim, x.device) for x in parts]
        batch_norm.settle(nets.gen, [(z,) for z in codes])
        batch_norm.settle(nets.enc, [(x,) for x in parts])
        batch_norm.settle(nets.disc, [(x, nets.enc(x)) for x in parts])


# ---- Figures -------------------------------------------------------------------------------------
def figure_reconstructions(nets, test, path, judge, pairs=8):
    """BiGAN's Figure 2 without G(z): x beside G(E(x)), a class a row; red: judged another class."""
    rows = [(test.y == label).nonzero()[:, 0] for label in test.y.unique()]
    pairs = min(pairs, *map(len, rows))
    chosen = torch.cat([row[:pairs] for row in rows])
    x, y = common.to_float(test.x[chosen]), test.y[chosen]
    again = decode(nets, encode(nets, x))
    wrong = judge.classify(again) != y
    both = torch.stack([x, again], 1).expand(-1, -1, 3, -1, -1).clone()  # grey becomes RGB
    both[wrong, 1, 1:] *= 0.35  # less green and blue
    title = f"x and G(E(x)) in turn; red: {int(wrong.sum())} of {len(y)} changed their class"
    common.figure_grid(path, both.flatten(0, 1), 2 * pairs, title)


def figure_samples(nets, z, path):
    """G(z) of codes z [N, z_dim] of the prior."""
    common.figure_grid(path, decode(nets, z), 16, "Samples G(z), z from the prior")


# ---- Beyond the paper ----------------------------------------------------------------------------
# What each addition gains is in results/NOTES.md, under "Donahue et al. and Dumoulin et al.".
# penalty: on D's slope. Else BiGAN's codes crowd into the corners of [-1, 1]^50. The prior has
# almost no mass there, and fewer reconstructions keep their digit.
# skip: batch norm removes what a batch shares. So D hardly sees that G makes one image for all z.
# The skip adds to the logit a linear map of D's first layer, which sees x alone. It fades.
# average: with averaged weights more G(E(x)) show x's digit than with the last ones.


def slope_penalty(disc, x, z):
    """|d(sum of logits) / d(x, z)|^2, a mean over the pairs. Only D learns from it.
    R1 on (x, E(x)), R2 on (G(z), z) (1801.04406), but batch norm lets pairs act on each other."""
    pair = x.detach().requires_grad_(), z.detach().requires_grad_()
    slopes = torch.autograd.grad(disc(*pair).sum(), pair, create_graph=True)
    return sum(slope.flatten(1).square().sum(1) for slope in slopes).mean()


@torch.no_grad()
def move_average(average, nets, step, decay):
    """average = decay * average + (1 - decay) * nets, of weights; batch norm's means and variances
    come from `settle`. Early, the decay is smaller: step / (step + 9), 0 in step 1."""
    decay = min(decay, step / (step + 9)) if step > 1 else 0.0
    torch._foreach_lerp_([*average.parameters()], [*nets.parameters()], 1 - decay)


# ---- For notebooks, and the command line ---------------------------------------------------------
def build(o, discriminator=Discriminator):
    """Untrained networks. For new data, extend common.load_dataset, and set shape here."""
    shape = (1, 28, 28) if o.dataset in common.GREY else (3, 32, 32)
    nets = nn.Module()
    nets.shape = shape
    encoder = Encoder if o.model == "bigan" else GaussianEncoder
    nets.enc = encoder(shape, o.z_dim, o.hidden)
    nets.gen = Generator(shape, o.z_dim, o.hidden)
    nets.disc = discriminator(shape, o.z_dim, o.hidden, skip=o.skip_fade > 0)  # ours: skip
    for net in nets.children():
        net.initialise()
    return nets


def load(folder, device="cpu"):
    """Trained networks in eval mode: load("runs/bigan/bigan-mnist-seed0")."""
    return common.load(folder, recipe, build, device)


@torch.no_grad()
def encode(nets, x):
    """Images [N, C, H, W] -> codes [N, z_dim]: E(x), or the mean of q(z|x). Nets in eval mode."""
    return torch.cat([nets.enc(part, sample=False) for part in common.image_batches(x, nets)])


@torch.no_grad()
def decode(nets, z):
    """Codes [N, z_dim] -> images float [N, C, H, W] in [0, 1]. Nets in eval mode."""
    return torch.cat([nets.gen(part) for (part,) in common.code_batches(nets, z)])


@torch.random.fork_rng()
def evaluate(nets, data, test, settings, folder):
    """Figures into the run's folder; returns the scores and the rows of the printed table."""
    from experiments import bigan_scores

    judge = bigan_scores.judge_of(settings)
    call = [functools.partial(function, nets) for function in (encode, decode)]
    draw = functools.partial(draw_prior, settings.model, z_dim=settings.z_dim, device=data.x.device)
    found, table = bigan_scores.evaluate(settings, data, test, judge, nets.enc, *call, draw)
    common.say("figures")
    figure_samples(nets, draw(160), folder / "samples.png")
    figure_reconstructions(nets, test, folder / "reconstructions.png", judge)
    bigan_scores.figure_interpolation(*call, test, folder / "interpolation.png")
    return found, table


def main(settings, script="bigan", build=build):
    """Train, then score. To train only, drop bigan_scores and end with run.finish({})."""
    from experiments import bigan_scores

    bigan_scores.judge_of(settings)  # fails now, not after training, if the judge's file is bad
    data, test = common.load_data(settings)
    run = common.Run(script, settings, f"{settings.model}-{settings.dataset}")
    nets = build(settings).to(run.device)
    with run.autocast():  # bf16 where an x86 CPU has it (cache_enabled=False), else fp32
        train(run, nets, data)
    settle(nets, data, settings)
    run.finish(*evaluate(nets, data, test, settings, run.folder))


if __name__ == "__main__":
    common.run_main(main, recipe)
