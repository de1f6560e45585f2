"""Adversarial autoencoders.
Makhzani, Shlens, Jaitly, Goodfellow, Frey 2015, arXiv 1511.05644.

    python aae.py                               # Figure 2: codes in the shape of a Gaussian
    python aae.py --task semi --labels 100      # Table 2; the other tasks stand below

An encoder Enc gives the code z of an image x. A decoder Dec gives the image back. A discriminator
Disc tells codes from samples of a prior p(z). Enc learns to fool it, until the codes of all images
together have the prior's shape. With a class y beside z, and its discriminator Disc_y, the same
networks classify from few labels, or cluster without any. The basic model is --task prior: `train`
skips every `if` block, y is None, and `vary` only turns the images into floats.

Where the paper's things are
    Figure 1, the game             train, phases 1 and 2; discriminator_loss, adversarial_loss
    Figure 2                       --task prior [--prior mixture]; VAE: experiments/aae_compared.py
    Figures 3, 4                   --task prior-labels, --prior mixture or swiss-roll; PRIORS
    Table 1, Figure 5              --task likelihood
    Figures 6, 7                   --task style
    Table 2, Figure 8              --task semi --labels 100 or 1000, semi-all; train, phase 3
    Table 3, Figure 9              --task cluster --clusters 16 or 30
    Figures 10, 11                 --task embed --labels 1000 or 100 [d: --z-dim 10]; embed-clusters
    Drawing, scoring               experiments/aae_figures.py, experiments/aae_scores.py

Differences              paper, partly from memory       here
    optimiser            SGD, batch 100, to 5000 epochs  Adam, batch 200, 8 to 72 epochs; own rates
    hidden units, start  clusters: 3000; N(0, 0.01^2)    1000; PyTorch's
    Enc's loss           printed: min max                -log Disc
    batch norm in Enc    semi: none; clusters: all       hidden layers, or none; style: all layers
    noise on the input   semi: 0.3; clusters: dropout    0.1, or none
    Table 1              deterministic q(z|x)            Gaussian q(z|x), dropout
    Disc's input         z                               z / prior_std; style: the label, too
    priors of Figure 4   pictures, no formulas           petals and a roll of our own sizes
Additions: see "Beyond the paper"; --recipe paper turns them off. In train "# ours: X" marks X only,
"# ours" the line or block. To cut them, put common.to_float(images[i]) for vary(images, i, ...), y
for y_code. Always ours: rate, W_C's speed, settle. Left out: TFD, SVHN, universal posterior.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import common
from common import Batch, Beta, Count, Rate, Share, Size, Weight, Whole

import torch
import torch.nn.functional as F
from torch import nn

TASKS = "prior prior-labels likelihood style semi semi-all cluster embed embed-clusters".split()
TOLD = "prior-labels", "style"  # tasks in which Disc is told the label


# ---- Settings. A field is a flag, its comment the help. None: the task has no such flag ----------
@dataclass
class Settings(common.RunSettings):  # which adds dataset, seed and more
    task: Literal[tuple(TASKS)] = "prior"  # the paper's experiment; it picks the other settings
    recipe: Literal["ours", "paper"] = "ours"  # paper: additions off; all else stays
    epochs: Count = 8  # passes over the training images
    batch_size: Batch = 200  # images in a step (paper: 100)
    hidden: Count = 1000  # units of each of the two hidden layers (paper: 1000, clusters 3000)
    z_dim: Count = 2  # numbers in z
    prior: str = "gaussian"  # p(z): gaussian; for a z of two numbers also mixture, swiss-roll
    prior_std: Size = 5.0  # the Gaussian's deviation; for any prior Disc sees z / this
    encoder: Literal["deterministic", "gaussian"] = "deterministic"  # q(z|x) (section 2)
    batch_norm: Literal["none", "hidden", "all"] = "none"  # where in Enc; all: logits, mu, too
    dropout: Share = 0.0  # of the hidden units of Enc and Dec
    noise: Size = 0.0  # deviation of the noise on Enc's input (paper, semi: 0.3)
    lr: Rate = 1e-3  # Adam's rate in phase 1, of Enc and Dec
    lr_disc: Rate = 1e-3  # Adam's rate in phase 2, of the discriminators
    lr_disc_end: Share = 0.01  # share of lr_disc that is left at the end
    lr_encoder: Rate = 6e-4  # Adam's rate in phase 2, of Enc
    beta1: Beta = 0.5  # Adam's beta1 in phase 2; elsewhere 0.9
    warp: Size = 0.0  # ours: size of the random affine maps of images, on black (paper: 0)
    labels: Count = None  # labelled training images, equally many of each class, or all
    labelled_batch: Batch = None  # labelled images in a step, drawn with replacement
    lr_labels: Rate = None  # Adam's rate in phase 3, of Enc without to_z
    clusters: Count = None  # number of clusters: values of an unlabelled y
    head_distance: Size = None  # cluster heads nearer than this are pushed apart
    y_weight: Weight = None  # ours: weight of fooling Disc_y (paper: 1)
    neighbours: Whole = None  # ours: images move towards one of this many near ones (paper: 0)
    code_noise: Size = None  # ours: deviation of the noise on what Disc_y sees (paper: 0)
    smooth_weight: Weight = None  # ours: weight of smoothness_loss (paper: 0)
    smooth_rise: Share = None  # ours: share of the run in which smooth_weight rises from 0
    warp_weight: Weight = None  # ours: weight of invariance_loss (paper: 0)
    balance_weight: Weight = None  # ours: weight of balance_loss (paper: 0)


OURS = {"warp": 1.0, "neighbours": 0, "warp_weight": 4.0, "code_noise": 0.3, "y_weight": 4.0}
OURS |= {"smooth_weight": 1.0, "smooth_rise": 0.0}  # where Enc infers y; --recipe paper has OFF
OFF = dict.fromkeys(OURS, 0.0) | {"neighbours": 0, "y_weight": 1.0, "balance_weight": 0.0}
INFER = dict(OURS, prior_std=1.0, noise=0.1, batch_norm="hidden", lr_disc=3e-4, lr_encoder=1e-3)
PRIOR = Settings()
LABELLED = Settings(epochs=25, prior="mixture", batch_norm="hidden", lr=2e-4, lr_encoder=1e-3)
LABELLED = replace(LABELLED, warp=1.0, labels=10_000)  # ours: warp
LIKELIHOOD = Settings(epochs=20, z_dim=8, encoder="gaussian", dropout=0.2)
LIKELIHOOD = replace(LIKELIHOOD, lr_disc=3e-4, lr_encoder=3e-4)
STYLE = Settings(epochs=72, z_dim=15, prior_std=1.0, noise=0.1, batch_norm="all", lr=2e-4)
STYLE = replace(STYLE, lr_disc=4e-3, lr_disc_end=1.0, lr_encoder=4e-4)
SEMI = Settings(**INFER, epochs=20, z_dim=10, labels=100, labelled_batch=100, lr_labels=1e-3)
SEMI_ALL = replace(SEMI, epochs=30, labels=60_000, labelled_batch=400)
CLUSTER = Settings(**INFER, epochs=25, z_dim=5, clusters=16, balance_weight=0.25)
EMBED = replace(SEMI, epochs=12, z_dim=2, labels=1000, head_distance=8.0)
EMBED_CLUSTERS = replace(CLUSTER, z_dim=2, clusters=20, head_distance=8.0)


def recipe(task="prior", recipe="ours"):
    """A task's settings: `--task TASK --help` lists them. An unknown task gets PRIOR's."""
    every = PRIOR, LABELLED, LIKELIHOOD, STYLE, SEMI, SEMI_ALL, CLUSTER, EMBED, EMBED_CLUSTERS
    settings = dict(zip(TASKS, every)).get(task, PRIOR)
    off = {name: value for name, value in OFF.items() if getattr(settings, name) is not None}
    return replace(settings, **(off if recipe == "paper" else {}), task=task, recipe=recipe)


# ---- Networks: Enc, Dec, Disc have two hidden ReLU layers each -----------------------------------
def mlp(inputs, hidden, batch_norm=False, dropout=0.0):
    """[B, inputs] -> [B, hidden]."""
    norm = nn.BatchNorm1d if batch_norm else nn.Identity
    first = nn.Linear(inputs, hidden), norm(hidden), nn.ReLU(), nn.Dropout(dropout)
    second = nn.Linear(hidden, hidden), norm(hidden), nn.ReLU(), nn.Dropout(dropout)
    return nn.Sequential(*first, *second)


class Encoder(nn.Module):
    """Enc(x) = (logits of q(y|x) [B, classes] or None, mu [B, z_dim], logvar). q(z|x) = N(mu,
    exp(logvar)), or mu where logvar is None. x [B, C, H, W] in [0, 1]. norm: none, hidden, all."""

    def __init__(
        self, inputs=784, z_dim=2, classes=0, hidden=1000, gaussian=False, norm="none", dropout=0.0
    ):
        super().__init__()
        last = nn.BatchNorm1d if norm == "all" else nn.Identity
        self.body = mlp(inputs, hidden, norm != "none", dropout)
        self.to_z = nn.Sequential(nn.Linear(hidden, z_dim), last(z_dim))
        self.to_logvar = nn.Linear(hidden, z_dim) if gaussian else None
        self.to_y = nn.Sequential(nn.Linear(hidden, classes), last(classes)) if classes else None

    def forward(self, x):
        h = self.body(x.flatten(1))
        logits = None if self.to_y is None else self.to_y(h).float()
        logvar = None if self.to_logvar is None else self.to_logvar(h).float()
        return logits, self.to_z(h).float(), logvar  # float: layers may compute in bf16

    def sample(self, x):
        """The logits, and a sample of q(z|x) [B, z_dim]."""
        logits, mu, logvar = self(x)
        return logits, (mu if logvar is None else mu + torch.randn_like(mu) * (logvar / 2).exp())

    def classify(self, x):
        return self(x)[0]


class Decoder(nn.Module):
    """Dec(y, z): image [B, *shape] in [0, 1]. y [B, classes], probabilities, or None; z [B, z_dim].
    Its first layer sees code_dim numbers: [y, z] (Figures 6, 8), z, or heads(y, z) (Figure 10)."""

    def __init__(self, code_dim=2, shape=(1, 28, 28), hidden=1000, dropout=0.0):
        super().__init__()
        self.body = mlp(code_dim, hidden, dropout=dropout)
        self.to_image = nn.Sequential(nn.Linear(hidden, math.prod(shape)), nn.Unflatten(1, shape))
        self.heads = None  # or ClusterHeads

    def forward(self, y, z):
        if y is not None:
            z = torch.cat([y, z], 1) if self.heads is None else self.heads(y, z)
        return torch.sigmoid(self.to_image(self.body(z)).float())


class Discriminator(nn.Module):
    """Codes [B, inputs] -> logits [B]. Disc(code) = sigmoid(logit), high for prior samples."""

    def __init__(self, inputs=2, hidden=1000):
        super().__init__()
        self.net = nn.Sequential(mlp(inputs, hidden), nn.Linear(hidden, 1))

    def forward(self, code):
        return self.net(code).float().squeeze(1)


class ClusterHeads(nn.Module):
    """Figure 10: W_C^T y + z, of y [B, classes] and z [B, z_dim]. The rows of W_C are the heads of
    the classes: learned, or fixed at 10 I if classes == z_dim (Figure 11d)."""

    def __init__(self, classes=20, z_dim=2):
        super().__init__()
        tenth = torch.eye(z_dim) if classes == z_dim else 0.3 * torch.randn(classes, z_dim)
        self.tenth = nn.Parameter(tenth, requires_grad=classes != z_dim)

    def positions(self):
        return 10 * self.tenth  # W_C [classes, z_dim]; ours: it moves ten times as fast as a weight

    def forward(self, y, z):
        return y @ self.positions() + z


# ---- Losses: means over the batch, but the last one ----------------------------------------------
def reconstruction_loss(image, x):
    """1/2 |x - image|^2, summed over pixels (mathieu.py: no 1/2). Both [B, C, H, W] in [0, 1]."""
    return 0.5 * (image - x).square().flatten(1).sum(1).mean()


def adversarial_loss(logits):
    """-log Disc(code) = softplus(-logit), of logits [B]: what Enc minimises; log 2 at chance."""
    return F.softplus(-logits).mean()


def discriminator_loss(logits_prior, logits_code):
    """-log Disc(prior's sample) - log(1 - Disc(code)), of logits [B] each; 2 log 2 at chance."""
    return F.softplus(-logits_prior).mean() + F.softplus(logits_code).mean()


def head_distance_loss(heads, threshold):
    """Sum over pairs of heads [K, d] of max(0, threshold - distance): our reading of Figure 10."""
    return (threshold - F.pdist(heads)).clamp(min=0).sum()


# ---- Priors p(z). A new one goes here: a class, and its name in PRIORS ---------------------------
# Called with (z_dim, prior_std); yours needs z_dim 2. experiments/aae_priors.py: scores, figures.
class Gaussian:
    """N(0, std^2 I). The component counts only for its length and device."""

    def __init__(self, dim=2, std=5.0):
        self.dim, self.std = dim, std

    def sample(self, component):
        """z [n, dim]. component: int64 [n], 0 to 9: the part of p(z), Figure 4's digit."""
        return self.std * torch.randn(len(component), self.dim, device=component.device)


class Mixture(Gaussian):
    """Ten Gaussians laid out like petals, z [n, 2], of fixed size, whatever `dim` and `std`."""

    centre, length, width = 10.0, 3.0, 0.7  # distance from 0; standard deviations

    def axes(self, component):
        """The unit vectors outwards and across, [n, 2] each."""
        angle = component * 2 * math.pi / 10
        cos, sin = angle.cos(), angle.sin()
        return torch.stack([cos, sin], 1), torch.stack([-sin, cos], 1)

    def place(self, t, component):
        """Samples t [n, 2] of N(0, I) -> points of a component [n, 2]."""
        outwards, across = self.axes(component)
        part = self.length * t[:, :1] * outwards + self.width * t[:, 1:] * across
        return self.centre * outwards + part

    def sample(self, component):
        return self.place(torch.randn(len(component), 2, device=component.device), component)


class SwissRoll(Gaussian):
    """A band rolled up, z [n, 2], of fixed size, whatever dim, std. A component: a tenth of it."""

    radius, width = 15.0, 0.3  # of the roll; deviation of the band

    def curve(self, u):
        """The middle of the band: u [n] in [0, 1] -> [n, 2]."""
        radius, angle = self.radius * u.sqrt(), 4 * math.pi * u.sqrt()
        return torch.stack([radius * angle.cos(), radius * angle.sin()], 1)

    def sample(self, component):
        u = (component + torch.rand(len(component), device=component.device)) / 10
        return self.curve(u) + self.width * torch.randn(len(u), 2, device=u.device)


PRIORS = {"gaussian": Gaussian, "mixture": Mixture, "swiss-roll": SwissRoll}


# ---- Training ------------------------------------------------------------------------------------
def update(optimiser, loss):
    """A step on `loss`, of this optimiser's weights alone. Other networks get no gradient."""
    parameters = [p for group in optimiser.param_groups for p in group["params"] if p.requires_grad]
    loss.backward(inputs=parameters)
    optimiser.step()
    optimiser.zero_grad()


def rate(step, steps, end=0.01):
    """Factor of the rates: rises in up to 100 steps, is 1 until half of the run, falls to `end`."""
    return min(1, step / min(100, steps / 10)) * min(1, max(end, 2 * (1 - (step - 1) / steps)))


def add_noise(x, std):
    return x + std * torch.randn_like(x) if std else x


def train(run, nets, data, labelled):
    """The phases in turn, at every step. data: a `common.Split`. labelled: int64, indices of images
    whose label is seen (style: all). run: a `common.Run`; run.step is 1 in the first step."""
    o, enc, dec, disc, disc_y = run.settings, nets.enc, nets.dec, nets.disc, nets.disc_y
    adam = {"betas": (o.beta1, 0.999), "fused": True}  # in phase 2; elsewhere Adam's defaults
    opt_r = torch.optim.Adam([*enc.parameters(), *dec.parameters()], o.lr, fused=True)  # phase 1
    opt_d = torch.optim.Adam([*disc.parameters(), *disc_y.parameters()], o.lr_disc, **adam)
    opt_e = torch.optim.Adam(enc.parameters(), o.lr_encoder, **adam)
    opt_c = torch.optim.Adam(enc.parameters(), o.lr_labels or 0.0, fused=True)  # phase 3, or idle
    run.track(nets=nets, opt_r=opt_r, opt_d=opt_d, opt_e=opt_e, opt_c=opt_c)
    steps = o.epochs * math.ceil(len(data.y) / o.batch_size)
    known = torch.full_like(data.y, 10)  # labels; an eleventh class, 10: unknown
    known[labelled] = data.y[labelled]
    near = nearest(data.x, o.neighbours) if o.neighbours else None  # ours
    nets.train()
    for _ in run.epochs():
        for i in run.batches(torch.randperm(len(data.y)), o.batch_size):
            for opt in (opt_r, opt_d, opt_e, opt_c):
                end = o.lr_disc_end if opt is opt_d else 0.01
                opt.param_groups[0]["lr"] = opt.defaults["lr"] * rate(run.step, steps, end)
            x, label = vary(data.x, i, near, o), known[i]  # ours: vary
            noisy = add_noise(x, o.noise)  # Enc's input
            again = add_noise(vary(data.x, i, near, o), o.noise) if o.warp_weight else None  # ours

            # 1. Reconstruction. Enc, Dec minimise  1/2 |x - Dec(y,z)|^2;  without y it is Dec(z)
            logits, z = enc.sample(noisy)
            y = None if logits is None else logits.softmax(1)  # q(y|x), where Enc infers y
            if o.task == "style":  # Figure 6: all labels are known
                y = F.one_hot(label, 10).float()
            loss_r = reconstruction = reconstruction_loss(dec(y, z), x)
            if dec.heads is not None:  # Figure 10: one more term
                loss_r = loss_r + head_distance_loss(dec.heads.positions(), o.head_distance)
            update(opt_r, loss_r)

            # 2. Regularisation. Disc minimises  - log Disc(z_prior) - log(1 - Disc(z_code))
            logits, z = enc.sample(noisy)  # once more: phase 1 moved Enc
            component = torch.randint(0, 10, i.shape, device=i.device)  # a Gaussian ignores it
            if o.task == "prior-labels":  # a known label names its part of p(z)
                component = torch.where(label < 10, label, component)
            z_prior, z_code = nets.prior.sample(component) / o.prior_std, z / o.prior_std
            if o.task in TOLD:  # Figure 3, and for style (see Differences)
                one_hot = F.one_hot(label, 11).to(z)
                z_prior, z_code = torch.cat([z_prior, one_hot], 1), torch.cat([z_code, one_hot], 1)
            loss_d = discriminator_loss(disc(z_prior), disc(z_code.detach()))
            if logits is not None:  # Enc infers y: the same game with Disc_y; y_prior: one-hots
                y = logits.softmax(1)
                drawn = torch.randint(0, y.shape[1], i.shape, device=i.device)
                y_prior = add_noise(F.one_hot(drawn, y.shape[1]).to(y), o.code_noise)  # ours: noise
                y_code = add_noise(y, o.code_noise)  # ours: noise
                loss_d = loss_d + discriminator_loss(disc_y(y_prior), disc_y(y_code.detach()))
            update(opt_d, loss_d)

            # Enc minimises  - log Disc(z_code) - log Disc_y(y_code);  no q(y|x): first only
            loss_e = adversarial_loss(disc(z_code))
            if logits is not None:
                loss_e = loss_e + o.y_weight * adversarial_loss(disc_y(y_code))  # ours: y_weight
            losses = {"reconstruction": reconstruction, "disc": loss_d, "encoder": loss_e}
            if o.clusters:  # ours. There is no phase 3 to take steady_loss
                losses["balance"] = balance_loss(y)
                steady = steady_loss(enc, x, noisy, again, run, losses)  # fills losses
                loss_e = loss_e + o.balance_weight * losses["balance"] + steady
            update(opt_e, loss_e)

            # 3. Semi-supervised classification. Enc minimises  - log q(y|x)  of labelled images
            if o.lr_labels:  # tasks semi, semi-all, embed
                j = labelled[torch.randint(0, len(labelled), (o.labelled_batch,), device=i.device)]
                few = add_noise(vary(data.x, j, near, o), o.noise)  # ours: vary
                loss_c = losses["classification"] = F.cross_entropy(enc.classify(few), known[j])
                steady = steady_loss(enc, x, noisy, again, run, losses)  # ours, of all images in i
                update(opt_c, loss_c + steady)  # ours: steady
            run.log(**losses)


# ---- Beyond the paper ----------------------------------------------------------------------------
# With few labels, or none, q(y|x) can settle on wrong classes. Small changes of x must not change q
# (smooth_weight). This also freezes early errors, so the weight can rise from 0 (smooth_rise). Two
# variants of an image need the same answer (warp_weight). All phases see variants: warped (warp),
# moved towards a near image (neighbours), or both; by default warped. Without labels Disc_y lets
# classes stay empty: balance_weight. Disc_y tells one-hots from probabilities too easily: both get
# noise (code_noise). y_weight favours y in the layers it shares with z.
def vary(images, i, near, o):
    """The images of index i [B] as floats [B, C, H, W] in [0, 1], warped. With near [N, K] each
    then moves a random part of the way to one of its K near images. Both may be off."""
    x = warp(common.to_float(images[i]), o.warp)
    if near is None:
        return x
    other = near[i, torch.randint(near.shape[1], i.shape, device=i.device)]
    part = torch.rand(len(i), 1, 1, 1, device=i.device)
    return x + part * (common.to_float(images[other]) - x)


def nearest(images, count):
    """Indices [N, count] of the nearest other images, by the Euclidean distance of pixels."""
    from experiments import scores

    common.say("looking for near images")
    pixels = common.to_float(images).flatten(1)
    return scores.nearest(pixels, pixels, min(count, len(pixels) - 1), exclude_self=True)


def warp(x, amount):
    """A random affine map of each image [B, C, H, W]: up to 9 degrees, 10 % in size, a shear of 0.2
    and a shift of 1/28 of the side, times amount. Black outside."""
    if not amount:
        return x
    n, device = len(x), x.device
    angle, size, shear = (
        amount * c * (2 * torch.rand(n, device=device) - 1) for c in (0.15, 0.1, 0.2)
    )
    cos, sin, size = angle.cos(), angle.sin(), 1 + size
    linear = torch.stack([size * cos, shear - size * sin, size * sin, size * cos], 1).view(n, 2, 2)
    shift = amount / 14 * (2 * torch.rand(n, 2, 1, device=device) - 1)  # sides: from -1 to 1
    with torch.autocast(device.type, enabled=False):  # bf16 would round the grid
        grid = F.affine_grid(torch.cat([linear, shift], 2), x.shape, align_corners=False)
        return F.grid_sample(x, grid, align_corners=False)


def invariance_loss(target, logits):
    """KL(softmax(target) || softmax(logits)), [B, K] each. The target gets no gradient."""
    target = target.detach()
    return (target.softmax(1) * (target.log_softmax(1) - logits.log_softmax(1))).sum(1).mean()


def smoothness_loss(classify, x, radius=2.0):
    """KL(q(y|x) || q(y|x + r)) for the r of length `radius` that (nearly) changes q most: virtual
    adversarial training, one step (arXiv 1507.00677). classify: x [B, ...] -> logits [B, K]."""
    target = classify(x)
    r = F.normalize(torch.randn_like(x).flatten(1), dim=1).requires_grad_()
    change = len(x) * invariance_loss(target, classify(x + r.view_as(x)))  # a sum over images
    (gradient,) = torch.autograd.grad(change, r)
    gradient = gradient / (gradient.abs().amax(1, keepdim=True) + 1e-30)  # some are tiny
    r = radius * F.normalize(gradient, dim=1)
    return invariance_loss(target, classify(x + r.view_as(x)))


def balance_loss(y):
    """KL(uniform || mean of y over the batch), in nats, of probabilities y [B, K]."""
    return -y.mean(0).clamp(min=1e-30).log().mean() - math.log(y.shape[1])


def steady_loss(enc, x, noisy, again, run, losses):
    """smoothness_loss and invariance_loss, weighted; `losses` gets both unweighted (0 where off).
    noisy: x with noise; again: another variant, with noise, or None. smoothness_loss is of x."""
    o = run.settings
    risen = min(1, run.progress / o.smooth_rise) if o.smooth_rise else 1
    losses["smoothness"] = losses["invariance"] = x.new_zeros(())
    if o.smooth_weight:
        losses["smoothness"] = smoothness_loss(enc.classify, x)
    if o.warp_weight:
        losses["invariance"] = invariance_loss(enc.classify(noisy), enc.classify(again))
    return o.smooth_weight * risen * losses["smoothness"] + o.warp_weight * losses["invariance"]


# ---- For notebooks, and the command line ---------------------------------------------------------
def build(o):
    """Untrained networks. For your own images of ten classes: data/files.py, and --dataset."""
    shape = (1, 28, 28) if o.dataset in common.GREY else (3, 32, 32)
    classes = o.clusters or (10 if o.lr_labels else 0)  # 0: Enc infers no y
    beside_z = 10 if o.task == "style" else (0 if o.head_distance is not None else classes)
    sizes, gaussian = (math.prod(shape), o.z_dim, classes, o.hidden), o.encoder == "gaussian"
    nets = nn.Module()
    nets.shape = shape
    nets.enc = Encoder(*sizes, gaussian, o.batch_norm, o.dropout)
    nets.dec = Decoder(o.z_dim + beside_z, shape, o.hidden, o.dropout)
    nets.disc = Discriminator(o.z_dim + (11 if o.task in TOLD else 0), o.hidden)
    nets.disc_y = Discriminator(classes, o.hidden) if classes else nn.Identity()
    nets.dec.heads = ClusterHeads(classes, o.z_dim) if o.head_distance is not None else None
    nets.prior = PRIORS[o.prior](o.z_dim, o.prior_std)
    return nets


def load(folder, device="cpu"):
    """Trained networks in eval mode: load("runs/aae/semi-100-seed0")."""
    return common.load(folder, recipe, build, device)


@torch.no_grad()
def encode(nets, x, sample=False):
    """Images [N, C, H, W] -> logits of q(y|x) or None; mean of q(z|x) or sample. In eval mode."""
    call = nets.enc.sample if sample else nets.enc
    logits, z = zip(*(call(part)[:2] for part in common.image_batches(x, nets)))
    return None if logits[0] is None else torch.cat(logits), torch.cat(z)


@torch.no_grad()
def decode(nets, y, z):
    """y [N, classes], probabilities, or None; z [N, z_dim] -> images. Nets in eval mode."""
    return torch.cat([nets.dec(*codes) for codes in common.code_batches(nets, y, z)])


@torch.random.fork_rng()
def evaluate(nets, data, test, settings, folder):
    """Figures into the run's folder; returns the scores and the rows of the printed table."""
    from experiments import aae_scores

    return aae_scores.evaluate(nets.eval(), encode, decode, data, test, settings, folder)


def main(settings):
    """Train, settle batch norm, then score. To train only, end with run.finish({})."""
    from experiments import aae_scores, batch_norm

    aae_scores.check(settings, PRIORS)  # mistakes should fail now, not after the training
    whole, test = common.load_data(settings)
    data, _, labelled = aae_scores.split(whole, settings)  # data: trains; labelled: by the seed
    run = common.Run("aae", settings, aae_scores.name(settings))
    nets = build(settings).to(run.device)
    with run.autocast():  # bf16 where an x86 CPU has it (cache_enabled=False), else fp32
        train(run, nets, data, labelled)
    batch_norm.settle(nets.enc, ((x,) for x in batch_norm.image_parts(data.x)))
    run.finish(*evaluate(nets, whole, test, settings, run.folder))


if __name__ == "__main__":
    common.run_main(main, recipe)
