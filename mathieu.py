"""Disentangling factors of variation in deep representations using adversarial training.
Mathieu, Zhao, Sprechmann, Ramesh, LeCun 2016, arXiv 1611.03383.

    python mathieu.py --epochs 50                        # MNIST; 50 is the default
    python mathieu.py --dataset sprites --epochs 50      # Table 1, on sprites of our own

An encoder Enc splits an image x into two codes: s tells its class, z tells the rest. A decoder Dec
makes an image from a z and an s. It must rebuild x from x's z and the s of x, or of another image
of its class. But Dec could ignore s. So Disc gets an image and a class. Is it a real image of that
class? Swaps (z of another image) and samples (random z) are not. Enc and Dec must fool Disc.

Where the paper's things are
    Eq. 5, Algorithm 1, Figure 1    train, and the losses above it
    Supplement, networks            Encoder, Decoder, Discriminator
    Figures 2a 3a, 2b 3b, 5         figure_swap, figure_interpolation, figure_generation
    Table 1, Figure 4               experiments/mathieu_scores.py
    Figure 10(a)                    experiments/mathieu_pretrained_s.py

Differences           the paper (released: its code)       here
    optimiser         SGD; released: Adam, constant rates  Adam, rates rise, then fall
    channels          not given                            16, 32, 64 in all three networks
    weights           lambda, not given; the others 1      one for each term, in Settings
    weight of KL      constant                             grows for 60 % of the run
    to fool Disc      log(1 - Disc); released: -log Disc   -log Disc (released: "real" is 0.95)
    Disc's fakes      swaps of a fresh pair                this step's swaps (as released), samples
    prior samples     in Algorithm 1; 4.2: unstable        stable; Disc sees them, too
    x2                Figure 1: any class; 4.3: another    any class: the x1 of another pair
    sprites           672 characters, discrete poses       672 others, continuous poses
Three additions of ours: prior_std, dead_zone, CodeDiscriminator. See "Beyond the paper". "# ours"
marks a line, "# ours: X" only X. --recipe paper turns these three off. Left out: NORB, YaleB.
"""

import dataclasses
import math
from typing import Literal

import common
from common import Batch, Beta, Count, Rate, Size, Weight

import torch
import torch.nn.functional as F
from torch import nn


# ---- Settings: each field is a flag, its comment the help. In Python start from recipe() ---------
# "released": the authors' code. Its squared errors are means over pixels in [-1, 1]. Ours are sums
# over pixels in [0, 1]: on MNIST 196 times as large. So below its KL and lambda are times 196, too.
@dataclasses.dataclass
class Settings(common.RunSettings):
    recipe: Literal["ours", "paper"] = "ours"  # paper: the three additions are off; all else stays
    batch_size: Batch = 128  # pairs in a step (released: 16 triplets)
    lr: Rate = 2e-3  # Adam's rate, for Enc, Dec and CodeDiscriminator (released: 0.01)
    lr_disc: Rate = 1e-3  # Adam's rate for Disc (released: 0.01)
    beta1: Beta = 0.5  # Adam's beta1 (released: 0.5)
    z_dim: Count = 16  # numbers in z (paper: 16 on MNIST, 512 on sprites; released: 512)
    s_dim: Count = 16  # numbers in s (paper: 16 on MNIST, 64 on sprites; released: 64)
    own_weight: Weight = 0.2  # weight of |x1 - Dec(z1,s1)|^2 (released: 0.5)
    same_weight: Weight = 1.3  # weight of |x1 - Dec(z1,s1')|^2 (released: 1)
    kl_start: Weight = 0.3  # weight of the KL in nats at the start (released: about 0.15, constant)
    kl_weight: Weight = 2.4  # weight of the KL from 60 % of the run on
    swap_weight: Weight = 6.5  # lambda of eq. 5 for Dec(z1,s2) (released, MNIST: 1.96)
    prior_weight: Weight = 6.5  # lambda of eq. 5 for Dec(z,s2), a prior sample (released: 0)
    prior_std: Size = 2.0  # ours: deviation of z in prior samples; p(z) stays N(0, I) (paper: 1)
    dead_zone: Size = 0.5  # ours: means of z shrink by this, smaller ones to 0 (paper: 0)
    code_weight: Weight = 15.0  # ours: weight of Enc's loss against CodeDiscriminator (paper: 0)


MNIST = Settings()
SPRITES = Settings(
    dataset="sprites",
    z_dim=512,
    s_dim=64,
    kl_weight=1.0,
    swap_weight=4.0,
    prior_weight=4.0,
    prior_std=1.0,  # as in the paper
    kl_start=0.05,
    dead_zone=1.0,  # ours
    code_weight=5.0,  # ours
)


def recipe(dataset="mnist", recipe="ours"):
    """MNIST's settings for grey data sets (common.GREY), the sprites' for colour ones."""
    settings = dataclasses.replace(MNIST if dataset in common.GREY else SPRITES, dataset=dataset)
    if recipe == "paper":  # without ours
        settings = dataclasses.replace(settings, prior_std=1.0, dead_zone=0.0, code_weight=0.0)
    return dataclasses.replace(settings, recipe=recipe)


# ---- Networks (supplement) -----------------------------------------------------------------------
def down(inputs, outputs):
    """5 x 5 convolution, stride 2: from n to n / 2 pixels a side, rounded up. BN, ReLU."""
    conv = nn.Conv2d(inputs, outputs, kernel_size=5, stride=2, padding=2)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


def up(inputs, outputs, side):
    """BN, ReLU, transposed convolution: from ceil(side / 2) pixels a side to `side`."""
    extra = 1 - side % 2  # an even side needs one more row and column
    conv = nn.ConvTranspose2d(inputs, outputs, 5, stride=2, padding=2, output_padding=extra)
    return nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(), conv)


class Encoder(nn.Module):
    """Enc(x) = (s, mu, logvar). q(z|x) = N(mu, exp(logvar)) is the paper's q(z|x,s): x gives s.

    x [B, C, H, W] in [0, 1] -> s [B, s_dim], mu and logvar [B, z_dim]."""

    def __init__(self, channels=1, size=28, z_dim=16, s_dim=16, dead_zone=0.0):
        super().__init__()
        features = 64 * math.ceil(size / 8) ** 2
        self.features = nn.Sequential(down(channels, 16), down(16, 32), down(32, 64), nn.Flatten())
        self.to_s = nn.Linear(features, s_dim)
        self.to_mu = nn.Linear(features, z_dim)
        self.to_logvar = nn.Linear(features, z_dim)
        self.dead_zone = dead_zone  # ours

    def forward(self, x):
        h = self.features(x)
        s, mu, logvar = self.to_s(h).float(), self.to_mu(h).float(), self.to_logvar(h).float()
        mu = F.softshrink(mu, self.dead_zone)  # ours
        return s, mu, logvar  # float, because layers may compute in bf16 and losses must not


class Decoder(nn.Module):
    """Dec(z, s): z [B, z_dim] and s [B, s_dim] -> image [B, C, H, W] in [0, 1].

    z and s pass a linear layer each. Their sum passes BN, ReLU (released: none), Enc's mirror."""

    def __init__(self, channels=1, size=28, z_dim=16, s_dim=16):
        super().__init__()
        side = math.ceil(size / 8)
        self.from_z = nn.Linear(z_dim, 64 * side**2)
        self.from_s = nn.Linear(s_dim, 64 * side**2)
        self.to_image = nn.Sequential(
            nn.Unflatten(1, (64, side, side)),
            up(64, 32, math.ceil(size / 4)),
            up(32, 16, math.ceil(size / 2)),
            up(16, channels, size),
        )

    def forward(self, z, s):
        return torch.sigmoid(self.to_image(self.from_z(z) + self.from_s(s)).float())


class Discriminator(nn.Module):
    """The logit [B] of Disc(x, id): is x [B, C, H, W] a real image that has the label id?

    id [B, labels], float, is one-hot, or for several attributes their one-hots side by side. Each
    convolution has a lookup table (supplement): 4 x 4 maps (released), resized and added."""

    def __init__(self, channels=1, size=28, labels=10):
        super().__init__()
        self.convs, self.norms, self.tables = nn.ModuleList(), nn.ModuleList(), nn.ParameterList()
        for inputs, outputs in ((channels, 16), (16, 32), (32, 64)):
            self.convs.append(nn.Conv2d(inputs, outputs, kernel_size=5, stride=2, padding=2))
            self.norms.append(nn.BatchNorm2d(outputs))
            self.tables.append(nn.Parameter(torch.randn(labels, outputs, 4, 4)))
        self.out = nn.Linear(64 * math.ceil(size / 8) ** 2, 1)

    def forward(self, x, id):
        for conv, norm, table in zip(self.convs, self.norms, self.tables):
            x = conv(x)
            maps = torch.einsum("bl,lchw->bchw", id, table)  # sum of id's maps (released: joined)
            x = x + F.interpolate(maps, x.shape[2:])
            x = F.leaky_relu(norm(x), 0.2)
        return self.out(x.flatten(1)).float().squeeze(1)


# ---- A sample of z; losses, means over the batch: -log Disc = softplus(-logit) -------------------
def reparametrise(mu, logvar):
    """z = mu + sigma * eps with eps ~ N(0, I): a sample of q(z|x), [B, z_dim]."""
    return mu + torch.exp(logvar / 2) * torch.randn_like(mu)


def reconstruction_loss(image, x):
    """|x - image|^2, summed over pixels: -log p(x|z,s) of eq. 5, up to a factor and a constant.
    Both [B, C, H, W] in [0, 1]."""
    return (image - x).square().flatten(1).sum(1).mean()


def kl_loss(mu, logvar):
    """KL(q(z|x) || N(0, I)) of eq. 5, in nats: 1/2 sum(mu^2 + sigma^2 - 1 - log sigma^2)."""
    return 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum(1).mean()


def adversarial_loss(logits):
    """-log Disc(fake), of logits [B]: what Enc and Dec minimise; log 2 at chance."""
    return F.softplus(-logits).mean()


def discriminator_loss(logits_real, logits_fake):
    """-log Disc(real) - log(1 - Disc(fake)), of logits [B] each; 2 log 2 at chance."""
    return F.softplus(-logits_real).mean() + F.softplus(logits_fake).mean()


# ---- Training ------------------------------------------------------------------------------------
def update(optimiser, loss, keep=False):
    """A step on `loss`, of this optimiser's weights alone. Others get no gradient. keep: the graph
    stays for the next loss. That one must not lead back to the weights that moved here."""
    parameters = [p for group in optimiser.param_groups for p in group["params"] if p.requires_grad]
    loss.backward(inputs=parameters, retain_graph=keep)
    optimiser.step()
    optimiser.zero_grad()


def rate(progress):
    """Factor of the rates (released: 1): rises in the first 2 %, falls to 0.02 in the last half."""
    return min(progress / 0.02, 1, max(2 - 2 * progress, 0.02))


def train(run, nets, data):
    """Algorithm 1. data: a `common.Split`. run: a `common.Run`: `epochs` saves after
    each epoch, `batches` gives index pairs [B, 2], `progress` grows to 1, `log` fills log.csv."""
    o, ids = run.settings, data.one_hot_labels()
    nets.train()
    enc, dec, disc = nets.enc, nets.dec, nets.disc
    adam = {"betas": (o.beta1, 0.999), "fused": True}
    opt_ed = torch.optim.Adam([*enc.parameters(), *dec.parameters()], o.lr, **adam)
    opt_d = torch.optim.Adam(disc.parameters(), o.lr_disc, **adam)
    opt_c = torch.optim.Adam(nets.code_disc.parameters(), o.lr, **adam)  # ours
    run.track(nets=nets, opt_ed=opt_ed, opt_d=opt_d, opt_c=opt_c)  # ours: opt_c

    for _ in run.epochs():
        for pairs in run.batches(common.pair_same_class(data.y), o.batch_size):
            opt_ed.param_groups[0]["lr"] = o.lr * rate(run.progress)
            opt_d.param_groups[0]["lr"] = o.lr_disc * rate(run.progress)
            opt_c.param_groups[0]["lr"] = o.lr * max(rate(run.progress), 0.3)  # ours (0.3 or more)
            weight_kl = o.kl_start + (o.kl_weight - o.kl_start) * min(run.progress / 0.6, 1)

            # x1 and x1p (the paper's x1') [B, C, H, W] share a class. id1 [B, labels] names it. Row
            # i of x2, id2, s2 is row i - 1 of x1, id1, s1: another pair of this shuffled batch.
            x1, x1p = common.to_float(data.x[pairs[:, 0]]), common.to_float(data.x[pairs[:, 1]])
            id1 = ids[pairs[:, 0]]
            s1, mu1, logvar1 = enc(x1)
            s1p, _, _ = enc(x1p)
            x2, id2, s2 = x1.roll(1, 0), id1.roll(1, 0), s1.roll(1, 0)
            z1 = reparametrise(mu1, logvar1)
            z = o.prior_std * torch.randn_like(z1)  # ours: prior_std (paper: 1)

            # One call decodes all four batches, so batch norm uses one mean and variance for all.
            z_all, s_all = torch.cat([z1, z1, z1, z]), torch.cat([s1, s1p, s2, s2])
            x_own, x_same, x_swap, x_prior = dec(z_all, s_all).chunk(4)
            # Disc normalises each batch alone, as released. loss_ed and loss_d share its logits.
            d_real, d_swap, d_prior = disc(x2, id2), disc(x_swap, id2), disc(x_prior, id2)

            # Enc and Dec minimise, each term with its weight,
            #     |x1 - Dec(z1,s1)|^2 + |x1 - Dec(z1,s1')|^2 + KL(q(z|x1) || N(0,I))
            #     - log Disc(Dec(z1,s2), id2) - log Disc(Dec(z,s2), id2)
            # (The last two train Enc, too: the swap through z1 and s2, the sample through s2.)
            own, same = reconstruction_loss(x_own, x1), reconstruction_loss(x_same, x1)
            kl = kl_loss(mu1, logvar1)
            swap, prior = adversarial_loss(d_swap), adversarial_loss(d_prior)
            hide = nets.code_disc.loss(mu1, id2, id1)  # ours (id1, id2 exchanged to mislead it)
            loss_ed = o.own_weight * own + o.same_weight * same + weight_kl * kl
            loss_ed = loss_ed + o.swap_weight * swap + o.prior_weight * prior
            loss_ed = loss_ed + o.code_weight * hide  # ours
            update(opt_ed, loss_ed, keep=True)

            # Disc minimises  - log Disc(x2, id2) - log(1 - Disc(fake, id2))
            loss_d = discriminator_loss(d_real, d_swap)
            if o.prior_weight:  # both fakes, half each (Algorithm 1, released: swaps only)
                loss_d = (loss_d + discriminator_loss(d_real, d_prior)) / 2
            update(opt_d, loss_d)

            update(opt_c, nets.code_disc.loss(mu1.detach(), id1, id2))  # ours
            run.log(own=own, same=same, kl=kl, swap=swap, prior=prior, disc=loss_d, hide=hide)


# ---- Figures, of test images ---------------------------------------------------------------------
def examples(test, count=10):
    """One image of each of the first `count` classes: the first in the file."""
    return torch.stack([test.x[test.y == label][0] for label in test.y.unique()[:count]])


def figure_swap(nets, test, path):
    """Figures 2(a), 3(a): z from the image on the left, s from the image above."""
    x = examples(test)
    s, mu, _ = encode(nets, x)
    images = decode(nets, mu.repeat_interleave(len(x), 0), s.repeat(len(x), 1))
    words = "Swaps of test images (Fig. 2a, 3a)", "s from this image", "z from this image"
    common.figure_grid(path, images, len(x), *words, left=x, top=x)


def figure_interpolation(nets, test, path, steps=10):
    """Figures 2(b), 3(b): two test images in the corners (on MNIST a 1 and an 8). Their codes move
    on straight lines: s along a row, z along a column."""
    x = examples(test)
    x = x[[1, 8]] if len(x) == 10 else x[[0, -1]]
    s, mu, _ = encode(nets, x)
    t = torch.linspace(0, 1, steps, device=s.device)[:, None]
    z = torch.lerp(mu[0], mu[1], t).repeat_interleave(steps, 0)
    images = decode(nets, z, torch.lerp(s[0], s[1], t).repeat(steps, 1))
    images[0], images[-1] = common.to_float(x)
    words = "Interpolation of two test images (Fig. 2b, 3b)", "s changes", "z changes"
    common.figure_grid(path, images, steps, *words)


def figure_generation(nets, test, path, count=10):
    """Figure 5: s from the image on the left, z ~ N(0, I), one z a column."""
    x = examples(test)
    s, mu, _ = encode(nets, x)
    z = torch.randn(count, mu.shape[1], generator=torch.Generator().manual_seed(0)).to(mu)
    images = decode(nets, z.repeat(len(x), 1), s.repeat_interleave(count, 0))
    words = "Generation (Fig. 5)", "z from the prior, one a column", "s from this image"
    common.figure_grid(path, images, count, *words, left=x)


# ---- Beyond the paper ----------------------------------------------------------------------------
# prior_std: a z far from 0 sometimes decodes to the wrong class. Such z are rare under N(0, I), so
# Dec seldom learns from them. So on MNIST samples have deviation 2. Swaps still cover N(0, I).
# dead_zone: where Dec ignores one of z's numbers, Enc still gives it a tiny mean, and a classifier
# reads the class there. Means move by dead_zone towards 0; within it they are 0, with no gradient.
# CodeDiscriminator: z can hold traces of the class. Dec ignores them. The losses above hardly stop
# them. So a network learns to read the label from the mean of z, and Enc learns to mislead it.


class CodeDiscriminator(nn.Module):
    """M(mu, id) = sigmoid(net(mu) . id): is id the label of mu's image? It sees true ids and,
    as often, ids of another image. So M is 1/2 where mu tells nothing. mu [B, z_dim]."""

    def __init__(self, z_dim=16, labels=10, hidden=256):
        super().__init__()
        self.net = nn.Sequential(
            nn.BatchNorm1d(z_dim, affine=False),  # makes tiny differences visible, too
            nn.Linear(z_dim, hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, labels),
        )

    def loss(self, mu, id, other):
        """-log M(mu, id) - log(1 - M(mu, other)); 2 log 2 at chance. id, other: [B, labels]."""
        logits = self.net(mu).float()
        return discriminator_loss((logits * id).sum(1), (logits * other).sum(1))


# ---- For notebooks, and the command line ---------------------------------------------------------
def build(o):
    """Untrained networks. For new data, extend common.load_dataset, Split; set size, labels."""
    channels, size = (1, 28) if o.dataset in common.GREY else (3, 32)
    labels = 23 if o.dataset == "sprites" else 10  # 7 + 2 + 4 + 3 + 2 + 2 + 3 values
    nets = nn.Module()
    nets.shape = channels, size, size
    nets.enc = Encoder(channels, size, o.z_dim, o.s_dim, o.dead_zone)  # ours: dead_zone
    nets.dec = Decoder(channels, size, o.z_dim, o.s_dim)
    nets.disc = Discriminator(channels, size, labels)
    nets.code_disc = CodeDiscriminator(o.z_dim, labels)  # ours
    return nets.to(memory_format=torch.channels_last)  # a layout of memory, for speed


def load(folder, device="cpu"):
    """Trained networks in eval mode: load("runs/mathieu/mnist-seed0")."""
    return common.load(folder, recipe, build, device)


@torch.no_grad()
def encode(nets, x):
    """Images [N, C, H, W] -> s [N, s_dim], mean and deviation of q(z|x) [N, z_dim]. Eval mode."""
    parts = [nets.enc(part) for part in common.image_batches(x, nets)]
    s, mu, logvar = (torch.cat(part) for part in zip(*parts))
    return s, mu, torch.exp(logvar / 2)


@torch.no_grad()
def decode(nets, z, s):
    """z [N, z_dim], s [N, s_dim] (encode: s first) -> images. Nets in eval mode."""
    return torch.cat([nets.dec(*codes) for codes in common.code_batches(nets, z, s)])


def evaluate(nets, data, test, settings, folder):
    """Figures into the run's folder; returns the scores and the rows of the printed table."""
    from experiments import mathieu_scores

    nets.eval()
    common.say("figures")
    figure_swap(nets, test, folder / "swap.png")
    figure_interpolation(nets, test, folder / "interpolation.png")
    figure_generation(nets, test, folder / "generation.png")
    return mathieu_scores.evaluate(nets, encode, decode, data, test, settings, folder)


def main(settings):
    """Train, then score. To train only, drop mathieu_scores and end with run.finish({})."""
    from experiments import mathieu_scores

    data, test = common.load_data(settings)
    common.pair_same_class(data.y)  # fails now where a class has one image
    mathieu_scores.judge_of(settings)  # the judge scores later; a bad file fails now
    run = common.Run("mathieu", settings)
    nets = build(settings).to(run.device)
    with run.autocast():  # bf16 where an x86 CPU has it (cache_enabled=False), else fp32
        train(run, nets, data)
    run.finish(*evaluate(nets, data, test, settings, run.folder))


if __name__ == "__main__":
    common.run_main(main, recipe)
