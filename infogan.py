"""InfoGAN (Chen, Duan, Houthooft, Schulman, Sutskever, Abbeel 2016, arXiv 1606.03657) on MNIST.

    python infogan.py                                     # the paper's MNIST model: ten categories, two continuous codes; Figures 1 and 2
    python infogan.py --baseline                          # Figure 1's regular GAN by itself: its Q reads along and rewards nobody
    python infogan.py --table leak                        # how much of the result does K = 10 give away?

A generator makes images of noise z and a code c = (a category, continuous codes); a head Q on the discriminator's body reads c back from the image, and both
are rewarded when it succeeds. We choose the code's prior, so the reward is a lower bound on the mutual information of code and image
("variational information maximisation", InfoMax with a bound in place of the information; Barber and Agakov 2003):

    I(c; G(z,c)) = H(c) - H(c|x) = H(c) + E_x E_{c'~P(c'|x)} log P(c'|x)
                 = H(c) + E_x [ KL(P(.|x) || Q(.|x)) + E_{c'~P(c'|x)} log Q(c'|x) ]
                >= H(c) + E_x E_{c'~P(c'|x)} log Q(c'|x)                                     (eq. 4: a KL is never negative)
                 = H(c) + E_{c~P(c), x=G(z,c)} log Q(c|x)  =  L_I(G, Q)                       (eq. 5)

The last step is why no posterior is ever sampled: to draw c, make x of it and draw c' of P(c'|x) gives the same pairs (c', x) as to draw c' and make x of it. So the
c that made the image is the one to score. H(c) is a constant, since the prior is fixed (log K for a category, log 2 for a code uniform in [-1, 1]) and no
network can change it: what is left to minimise is -log Q(c|x), a cross-entropy and a Gaussian's negative log-likelihood. log K less the cross-entropy is the
curve of Figure 1. That it reaches log K says that Q can tell ten kinds of image apart, not that the kinds are the ten digits: see cluster_scores.

Where to find what
    eq. 1, 6                          discriminator_loss, generator_loss; discriminator_step, generator_step
    eq. 4, 5                          category_loss, continuous_loss; mutual_information
    Table 1 (appendix C.1)            Trunk, QHead, Generator
    Figure 1                          figure_information; the regular GAN beside it is trained for --regular-epochs, or whole by --baseline
    Figure 2                          figure_categories (a, b), figure_sweep (c, d)
    section 7.2, "5 % error"          cluster_scores
    not in the paper                  code_scores, probe_scores, --table leak

Differences from the paper
 1. What trains the category (Q, the trunk and G) is read from warped copies of the generated images (warp), so that a category may not be a slant or a size: without
    it categories are mixtures of digits that lean alike. I(c; warp(x)) <= I(c; x), so it is a bound on the same information. The curve of Figure 1 is of the
    images as they are. --warp 0 leaves it out.
 2. The continuous codes weigh 5, and join after 600 updates: from the start they take up the digit, before the categories have it. --continuous-weight 1 --continuous-start 0.
 3. Figure 2 sweeps continuous codes from -2 to 2, twice as far as their prior reaches, and the digit changes on the way. A third of the images in training therefore have continuous
    codes that are uniform in [-2, 2]. --wide 0.
 4. 5 epochs of 60,000 images in batches of 128, 2,345 updates, with rates that fall in the second half; the released code has 5,000 at constant rates. --recipe paper
    has its length and rates and none of 1 to 3.
 5. The paper's 5 % is one model's error, without the matching, the split or the choice. Here the matching is fitted on the training images and the error is of the test
    images; nothing is chosen by labels.

Where the released code does otherwise, and what went wrong elsewhere
 - The code has a slope of 0.01 and deviations fixed at 1; the paper's appendix says 0.1 and learned deviations (--learned-std). Here: 0.1 and 1.
 - The paper's weight of the continuous codes is "smaller"; the code's is 1, like the category's.
 - The information trains the trunk and Q by D's optimiser and G by G's, with the same sign: nobody plays against it. Ports that give Q's head to G's optimiser
   leave the trunk out.
 - The code draws a fresh (z, c) for G's step; here both steps share one batch of generated images, which saves a pass.
 - A softmax before a cross-entropy that has one already caps L_I at 0.84. An entropy term that is forgotten puts the curve's end at 0.
 - The released grids are drawn with batch statistics of a batch of 128; here with settled ones (settle), in evaluation mode.
 - To set lambda to 0 is no baseline: it leaves Q untrained, and an untrained Q's L_I is below 0.
"""
import json
import math
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

import common

# -------------------------------------------------------------------------------------------------------- networks


class Trunk(nn.Module):
    """What D and Q share (Table 1): images [B, channels, size, size] -> features [B, 1024]. size: a multiple of 4."""

    def __init__(self, channels=1, size=28, slope=0.1):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(channels, 64, 4, 2, 1), nn.LeakyReLU(slope),
            nn.Conv2d(64, 128, 4, 2, 1), nn.BatchNorm2d(128), nn.LeakyReLU(slope), nn.Flatten(),
            nn.Linear(128 * (size // 4) ** 2, 1024), nn.BatchNorm1d(1024), nn.LeakyReLU(slope))

    def forward(self, x):
        return self.net(x)


class QHead(nn.Module):
    """Q(c|x) of the trunk's features [B, 1024]: logits [B, categories], means and log deviations [B, continuous], None where they are fixed at 1."""

    def __init__(self, categories=10, continuous=2, learned_std=False, slope=0.1):
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(1024, 128), nn.BatchNorm1d(128), nn.LeakyReLU(slope))
        self.sizes = [categories, continuous, continuous if learned_std else 0]
        self.out = nn.Linear(128, sum(self.sizes))

    def forward(self, features):
        logits, mean, log_std = self.out(self.hidden(features)).float().split(self.sizes, 1)
        return logits, mean, log_std if self.sizes[2] else None


class Generator(nn.Module):
    """G: noise and code side by side [B, inputs] -> logits of the pixels [B, channels, size, size] (Table 1).

    The second batch norm is one of 6,272 features, not of 128 channels."""

    def __init__(self, inputs=74, channels=1, size=28):
        super().__init__()
        self.side = size // 4
        self.dense = nn.Sequential(nn.Linear(inputs, 1024), nn.BatchNorm1d(1024), nn.ReLU(),
                                   nn.Linear(1024, 128 * self.side ** 2), nn.BatchNorm1d(128 * self.side ** 2), nn.ReLU())
        self.up = nn.Sequential(nn.ConvTranspose2d(128, 64, 4, 2, 1), nn.BatchNorm2d(64), nn.ReLU(), nn.ConvTranspose2d(64, channels, 4, 2, 1))

    def forward(self, z_and_c):
        return self.up(self.dense(z_and_c).unflatten(1, (128, self.side, self.side))).float()


# ---------------------------------------------------------------------------------------------------------- losses


def discriminator_loss(logits_real, logits_fake):
    """-log D(x) - log(1 - D(G(z, c))) (eq. 1), means over the batch; 2 log 2 at chance. Logits [B]."""
    return F.softplus(-logits_real).mean() + F.softplus(logits_fake).mean()


def generator_loss(logits_fake):
    """-log D(G(z, c)), the non-saturating side of eq. 1, mean over the batch; log 2 at chance. Logits [B]."""
    return F.softplus(-logits_fake).mean()


def category_loss(logits, category):
    """-log Q(category|x) in nats, mean over the batch; log K when Q knows nothing. Logits [B, K], not probabilities; category int64 [B], the one that made x."""
    return F.cross_entropy(logits, category)


def continuous_loss(mean, code, log_std=None):
    """-log Q(code|x) in nats, Q = N(mean, exp(log_std)^2), summed over the codes, mean over the batch. All [B, n]; log_std None: deviations of 1.

    With deviations of 1 it is half the squared error and log(2 pi) / 2 a code, as in the released code; the paper's appendix learns them."""
    log_std = torch.zeros_like(mean) if log_std is None else log_std
    return (0.5 * ((code - mean) / log_std.exp()).square() + log_std + 0.5 * math.log(2 * math.pi)).sum(1).mean()


def mutual_information(logits, category):
    """L_I of the category in nats (eq. 5): log K - E[-log Q(category|x)], at most log K. Logits [B, K], category int64 [B], the one that made x."""
    return math.log(logits.shape[1]) - category_loss(logits, category)


# -------------------------------------------------------------------------------------------------------- training


def build(options, channels=1, size=28):
    """The networks of a GAN: trunk, head (of D), q, gen. Weights N(0, 0.02^2), batch norm's gains N(1, 0.02^2), biases 0 (released code)."""
    o = options
    nets = SimpleNamespace(trunk=Trunk(channels, size, o.slope), head=nn.Linear(1024, 1), q=QHead(o.categories, o.continuous, o.learned_std, o.slope),
                           gen=Generator(o.noise + o.categories + o.continuous, channels, size))
    for layer in (m for net in vars(nets).values() for m in net.modules() if hasattr(m, "weight")):
        nn.init.normal_(layer.weight, 1. if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)) else 0., 0.02)
        nn.init.zeros_(layer.bias)
    return nets


def draw_code(options, n, device, wide=0):
    """(category, continuous, noise) of the prior: int64 [n], uniform (None for K = 0); float [n, continuous] and [n, noise], uniform in [-1, 1] (released
    code). The continuous codes of the first `wide` are uniform in [-2, 2]."""
    o = options
    category = torch.randint(o.categories, (n,), device=device) if o.categories else None
    continuous, noise = (2 * torch.rand(n, size, device=device) - 1 for size in (o.continuous, o.noise))
    continuous[:wide] *= 2
    return category, continuous, noise


def code_input(options, category, continuous, noise):
    """G's input: noise, one-hot category, continuous codes side by side, [B, 74]."""
    return torch.cat([noise, *([] if category is None else [F.one_hot(category, options.categories).to(noise)]), continuous], 1)


def warp(x, amount=1.0):
    """Small random affine maps, another for each image [B, C, H, W]: up to 9 degrees, 15 % of either side, a shear of 0.3 and 2 pixels of 28, times amount."""
    n, device = len(x), x.device
    angle, shear, wide, high = (amount * c * (2 * torch.rand(n, device=device) - 1) for c in (0.15, 0.3, 0.15, 0.15))
    cos, sin, wide, high = angle.cos(), angle.sin(), 1 + wide, 1 + high
    linear = torch.stack([torch.stack([cos * wide, (shear - sin) * wide], 1), torch.stack([sin * high, cos * high], 1)], 1)
    shift = amount / 7 * (2 * torch.rand(n, 2, 1, device=device) - 1)
    return F.grid_sample(x, F.affine_grid(torch.cat([linear, shift], 2), x.shape, align_corners=False), align_corners=False)


def information(nets, fake, features, code, weight, options):
    """-lambda log Q(c|x) of the codes that made x, and L_I of the category in nats, without gradient.

    fake: [B, C, H, W], made of code (draw_code); features [B, 1024]: the trunk's, of fake. The continuous codes, and the L_I that is returned, are read from them; what
    trains the category is read from warped copies of fake (difference 1): a bound all the same, as I(c; warp(x)) <= I(c; x). weight: of the continuous codes."""
    category, continuous, _ = code
    logits, mean, log_std = nets.q(features)
    loss = lower_bound = features.new_zeros((), dtype=torch.float32)
    if category is not None:
        lower_bound = mutual_information(logits.detach(), category)
        if options.warp:
            logits = nets.q(nets.trunk(warp(fake, options.warp)))[0]
        loss = options.category_weight * category_loss(logits, category)
    if options.continuous:
        loss = loss + weight * continuous_loss(mean, continuous, log_std)
    return loss, lower_bound


def descend(optimiser, loss):
    """One step of an optimiser's own parameters down a loss whose gradient would reach others too."""
    loss.backward(inputs=[p for group in optimiser.param_groups for p in group["params"]])
    optimiser.step()
    optimiser.zero_grad()


def discriminator_step(nets, optimiser, x, fake, code, weight, options):
    """Trunk, D's head and Q: minimise  -log D(x) - log(1 - D(G(z,c))) - lambda log Q(c|G(z,c)).

    x, fake: [B, C, H, W], fake without G's graph. Each goes through the trunk apart, with batch norm's statistics of its own. --baseline: the last term reaches Q
    alone, from features without a way back. Returns D's loss and L_I."""
    real = nets.head(nets.trunk(x)).float().squeeze(1)
    features = nets.trunk(fake)
    loss_d = discriminator_loss(real, nets.head(features).float().squeeze(1))
    info, lower_bound = information(nets, fake, features.detach() if options.baseline else features, code, weight, options)
    descend(optimiser, loss_d + info)
    return loss_d, lower_bound


def generator_step(nets, optimiser, fake, code, weight, options):
    """G: minimise  -log D(G(z,c)) - lambda log Q(c|G(z,c));  --baseline: without the second term. fake: with G's graph. Returns -log D."""
    features = nets.trunk(fake)
    loss_g = generator_loss(nets.head(features).float().squeeze(1))
    info = 0. if options.baseline else information(nets, fake, features, code, weight, options)[0]
    descend(optimiser, loss_g + info)
    return loss_g


def make_optimiser(parameters, lr, options):
    return torch.optim.Adam(parameters, lr, betas=(options.beta1, 0.999), fused=parameters[0].device.type != "mps")


def schedule(done, options):
    """Share of the full rate when a share `done` of the updates is done. linear: constant for the first half, then straight down to 1 %."""
    return min(1., max(0.01, 2 * (1 - done))) if options.schedule == "linear" else 1.


class Player:
    """A GAN in training: its networks, both optimisers, and the curve of Figure 1, L_I in nats of each update."""

    def __init__(self, nets, options, device, updates):
        for net in vars(nets).values():
            net.to(device).train()
        self.nets, self.options = nets, options
        self.d = make_optimiser([p for net in (nets.trunk, nets.head, nets.q) for p in net.parameters()], options.lr_discriminator, options)
        self.g = make_optimiser(list(nets.gen.parameters()), options.lr, options)
        self.curve = nn.Module()                          # so that checkpoints hold it
        self.curve.register_buffer("nats", torch.zeros(updates, device=device))

    def parts(self):
        return {**vars(self.nets), "optimiser_d": self.d, "optimiser_g": self.g, "curve": self.curve}


def update(player, x, step, autocast=nullcontext):
    """One update of a GAN on real images x [B, C, H, W]: D and Q, then G against the new D, on the same generated images. Returns loss_d, loss_g, L_I.

    autocast: makes the context of each part; weights change at its end alone."""
    nets, opt = player.nets, player.options
    for optimiser, rate in ((player.d, opt.lr_discriminator), (player.g, opt.lr)):
        optimiser.param_groups[0]["lr"] = rate * schedule(step / len(player.curve.nats), opt)
    code = draw_code(opt, len(x), x.device, round(opt.wide * len(x)))
    weight = opt.continuous_weight * (step >= opt.continuous_start)
    with autocast():
        fake = torch.sigmoid(nets.gen(code_input(opt, *code)))
    with autocast():
        loss_d, lower_bound = discriminator_step(nets, player.d, x, fake.detach(), code, weight, opt)
    with autocast():
        loss_g = generator_step(nets, player.g, fake, code, weight, opt)
    player.curve.nats[step] = lower_bound
    return loss_d, loss_g, lower_bound


def train(run, nets, regular, data):
    """Section 6's game, and in the first epochs beside it, on the same real images, Figure 1's regular GAN. data: a common.Split on the device.

    nets, regular: see build; regular None for none. Returns the curves of both: L_I in nats of each update."""
    opt = run.options
    updates = math.ceil(len(data.y) / opt.batch_size)
    players = [Player(nets, opt, run.device, opt.epochs * updates)]
    if regular is not None:
        players.append(Player(regular, SimpleNamespace(**{**vars(opt), **REGULAR}), run.device, min(opt.regular_epochs, opt.epochs) * updates))
    run.track(**{f"{prefix}{name}": part for prefix, player in zip(("", "regular_"), players) for name, part in player.parts().items()})

    for epoch in run.epochs():
        for i in run.batches(torch.randperm(len(data.y)), opt.batch_size):
            x = common.to_float(data.x[i])
            losses = [update(player, x, run.step, partial(run.autocast, cached=True)) for player in players if run.step < len(player.curve.nats)]
            loss_d, loss_g, lower_bound = losses[0]
            run.log(discriminator=loss_d, generator=loss_g, mutual_information=lower_bound)
    for player in players:
        settle(player.nets, data.x, opt)
    run.save()
    return [player.curve.nats for player in players]


@torch.no_grad()
def settle(nets, images, options, batch_size=500):
    """Batch norm's statistics anew with the final weights, then eval mode: G's from the prior; the trunk's and Q's from 20,000 real training images (uint8
    [N, C, H, W]), since real images are what they are scored on, and in training the trunk's are a mixture and Q has seen generated images alone."""
    parts = [common.to_float(part) for part in images[:20_000].split(batch_size)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        common.settle_batch_norm(nets.gen, ((code_input(options, *draw_code(options, len(part), images.device)),) for part in parts))
    common.settle_batch_norm(nets.trunk, ((part,) for part in parts))
    common.settle_batch_norm(nets.q, ((nets.trunk(part),) for part in parts))
    nets.head.eval()


# ------------------------------------------------------------------------------------------------------ evaluation


@torch.no_grad()
def generate(nets, options, category, continuous, noise):
    """G(z, c): images [N, C, H, W] in [0, 1], with settled batch norm, for parts as draw_code gives them."""
    return torch.cat([torch.sigmoid(nets.gen(part)) for part in code_input(options, category, continuous, noise).split(1000)])


@torch.no_grad()
def encode(nets, x):
    """What Q says of uint8 images [N, C, H, W]: logits [N, K] of the categories, means [N, continuous] of the codes, both float32."""
    assert x.dtype == torch.uint8, "encode takes uint8 images; common.to_float is done here"
    device = nets.head.weight.device
    logits, means = zip(*(nets.q(nets.trunk(common.to_float(part.to(device))))[:2] for part in x.split(1000)))
    return torch.cat(logits), torch.cat(means)


def image_moments(images):
    """Slant and stroke width of images [N, 1, H, W] in [0, 1]: [N] each.

    slant: mu_11 / mu_02 of the ink, the tangent of the angle by which the strokes lean to the right; width: twice the ink over the length of all edges (the total
    variation), for a long even stroke its width in pixels."""
    ink = images[:, 0]
    y, x = torch.meshgrid(*(torch.arange(n, device=ink.device, dtype=ink.dtype) for n in ink.shape[1:]), indexing="ij")
    mass = ink.sum((1, 2)).clamp(min=1e-6)

    def mean(f):
        return (ink * f).sum((1, 2)) / mass
    dx, dy = x - mean(x)[:, None, None], y - mean(y)[:, None, None]
    padded = F.pad(ink, (1, 1, 1, 1))
    gx, gy = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2], padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
    edges = (gx.square() + gy.square()).sqrt().sum((1, 2)) / 2
    return -mean(dx * dy) / mean(dy * dy).clamp(min=1e-6), 2 * mass / edges.clamp(min=1e-6)          # y points down


def within_group_r2(code, measure, group):
    """Share of the variance of `measure` within groups that straight lines in `code`, one a group, explain. Float [N], [N], int64 [N]."""
    left = total = 0.
    for k in group.unique():
        c, m = code[group == k].double(), measure[group == k].double()
        c, m = c - c.mean(), m - m.mean()
        slope = (c * m).sum() / c.square().sum().clamp(min=1e-12)
        left, total = left + (m - slope * c).square().sum().item(), total + m.square().sum().item()
    return 1 - left / max(total, 1e-12)


def code_scores(nets, options, judge, device, n=10_000):
    """What the codes do to n generated images, by a digit classifier (judge) and by image_moments.

    generated_purity: percent of a category's images that show its commonest digit, mean over the categories; generated_digits: how many digits are so shown, 10 at
    best, 1 where G has collapsed and purity means nothing. slant_r2, width_r2: how much of the variance of
    slant and stroke width within a category a straight line in one continuous code explains, the better code, all else drawn at random. identity_leak: percent of
    sweeps of one continuous code from -2 to 2 in ten steps, all else fixed, along which the judge's digit changes anywhere, n / 10 sweeps of each
    code; identity_leak_inside: the same from -1 to 1, the codes' range in training."""
    category, continuous, noise = draw_code(options, n, device)
    images = generate(nets, options, category, continuous, noise)
    scores, group = {}, torch.zeros(n, dtype=torch.long, device=device) if category is None else category
    if category is not None:
        shown = [judge.classify(images[category == k]) for k in category.unique()]
        commonest = [digits.mode().values for digits in shown]
        scores["generated_purity"] = sum((digits == digit).float().mean().item() for digits, digit in zip(shown, commonest)) / len(shown) * 100
        scores["generated_digits"] = len(torch.stack(commonest).unique())
    if options.continuous:
        for word, measure in zip(("slant", "width"), image_moments(images)):
            scores[f"{word}_r2"] = max(within_group_r2(continuous[:, j], measure, group) for j in range(options.continuous))
        for name, reach in (("identity_leak", 2), ("identity_leak_inside", 1)):
            sweeps = [sweep(options, j, reach, 10, *draw_code(options, n // 10, device)) for j in range(options.continuous)]
            digits = torch.cat([judge.classify(generate(nets, options, *codes)).view(-1, 10) for codes in sweeps])
            scores[name] = (digits != digits[:, :1]).any(1).float().mean().item() * 100
    return scores


def sweep(options, which, reach, columns, category, continuous, noise):
    """Parts of a code (draw_code), each row repeated `columns` times with continuous code `which` going from -reach to reach."""
    rows = len(noise)
    category, continuous, noise = (None if part is None else part.repeat_interleave(columns, 0) for part in (category, continuous, noise))
    continuous[:, which] = torch.linspace(-reach, reach, columns, device=noise.device).repeat(rows)
    return category, continuous, noise


def cluster_scores(nets, data, test, dry=False):
    """The categories as a classifier of real images; all errors in percent of the test images, all names from the training images.

    cluster_error: a digit for each category and a category for each digit, by the matching that is right most often; cluster_error_majority: each category takes
    its commonest digit; nmi: normalised mutual information of category and digit, 0 to 1. kmeans_*: the same of k-means on the pixels with as many clusters."""
    x, x_ = (common.to_float(part.x).flatten(1) for part in (data, test))
    centres = common.k_means(x, nets.q.sizes[0], tries=1 if dry else 5)
    scores = {}
    for prefix, train_scores, test_scores in (("", encode(nets, data.x)[0], encode(nets, test.x)[0]), ("kmeans_", -torch.cdist(x, centres), -torch.cdist(x_, centres))):
        for name, names in (("", common.match_clusters(train_scores, data.y)), ("_majority", common.name_clusters(train_scores, data.y, "majority"))):
            scores[f"{prefix}cluster_error{name}"] = common.cluster_error(test_scores, test.y, names)
        scores[f"{prefix}nmi"] = common.normalized_mutual_information(test_scores.argmax(1), test.y)
    return scores


def probe_scores(nets, data, test, dry=False):
    """Test errors in percent of linear classifiers with 100, 1,000 and all training labels (as many of each class, the same ones always).

    probe_error_LAYER_LABELS; LAYER is trunk (1,024 numbers), q_hidden (128), q_out (logits and means), untrained (a trunk with initial weights), pixels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        blank = build(SimpleNamespace(slope=0.1, categories=0, continuous=1, learned_std=False, noise=1), *data.x.shape[1:3]).trunk.to(data.x.device)
    common.settle_batch_norm(blank, ((common.to_float(part),) for part in data.x[:20_000].split(500)))
    layers = {"trunk": nets.trunk, "q_hidden": lambda x: nets.q.hidden(nets.trunk(x)), "q_out": lambda x: torch.cat(nets.q(nets.trunk(x))[:2], 1),
              "untrained": blank, "pixels": lambda x: x.flatten(1)}
    scores = {}
    for name, layer in layers.items():
        with torch.no_grad():
            codes, test_codes = (torch.cat([layer(common.to_float(part)) for part in x.split(1000)]) for x in (data.x, test.x))
        for labels in sorted({n for n in (100, 1000, len(data.y)) if n <= len(data.y)}):
            chosen = balanced(data.y, labels)
            scores[f"probe_error_{name}_{'all' if labels == len(data.y) else labels}"] = common.probe(
                codes[chosen], data.y[chosen], test_codes, test.y, hidden=0, epochs=1 if dry else max(20, 200_000 // labels)).item()
    return scores


def balanced(y, count):
    """Indices of `count` examples, as many of each class, drawn by a fixed seed; of all of them where there are no more."""
    if count >= len(y):
        return torch.arange(len(y), device=y.device)
    rng = torch.Generator().manual_seed(0)
    of_class = [(y == k).nonzero()[:, 0] for k in y.unique()]
    return torch.cat([index[torch.randperm(len(index), generator=rng)[:count // len(of_class)].to(index.device)] for index in of_class])


def curve_scores(curve, options):
    """Of L_I in nats of each update [updates]: its mean over the last 100, log K beside it, and the first update at which the mean of 20 reaches 2.25 nats, if any
    does ("steps_to_2.25"; K = 10)."""
    scores = {"mutual_information": curve[-100:].mean().item(), "log_k": math.log(options.categories)}
    reached = (curve.unfold(0, min(20, len(curve)), 1).mean(1) >= 2.25).nonzero()
    if len(reached):
        scores["steps_to_2.25"] = reached[0].item() + min(20, len(curve))
    return scores


# --------------------------------------------------------------------------------------------------------- figures


def figure_categories(nets, options, path, order, words, rows=5):
    """Figure 2(a), 2(b): a category a column, in `order` [K]; noise and continuous codes are fixed along a row."""
    device = nets.head.weight.device
    _, continuous, noise = (None if part is None else part.repeat_interleave(len(order), 0) for part in draw_code(options, rows, device))
    common.figure_grid(path, generate(nets, options, order.to(device).repeat(rows), continuous, noise), len(order), words, "the category c1", "other codes and noise")


def figure_sweep(nets, options, path, which, order, columns=11):
    """Figure 2(c), 2(d): a continuous code from -reach to reach along a row; a category a row in `order` [K], other codes and noise fixed along it."""
    device = nets.head.weight.device
    category, continuous, noise = draw_code(options, len(order), device)
    codes = sweep(options, which, options.sweep, columns, None if category is None else order.to(device), continuous, noise)
    common.figure_grid(path, generate(nets, options, *codes), columns, f"Continuous code c{which + 2} from {-options.sweep:g} to {options.sweep:g} (Fig. 2)",
                       f"c{which + 2}", "a category a row" if category is not None else "other codes and noise")


def figure_information(curves, options, path, smooth=10):
    """Figure 1: L_I in nats over updates for each of `curves`, {words: [updates]}, mean of ten updates; log K dotted."""
    plt = common._pyplot()
    figure, axes = plt.subplots(figsize=(5.2, 3.4), dpi=100)
    for words, curve in curves.items():
        mean = curve.cpu().unfold(0, min(smooth, len(curve)), 1).mean(1)
        axes.plot(torch.arange(len(mean)) + min(smooth, len(curve)), mean, label=words)
    axes.axhline(math.log(options.categories), color=".5", linestyle=":", label=f"log {options.categories} = {math.log(options.categories):.2f}")
    axes.set(xlabel="update", ylabel="L_I of the category, nats", title="Lower bound on the mutual information (Fig. 1)",
             xlim=(0, min(1500, max(map(len, curves.values())))), ylim=(-.2, 1.1 * math.log(options.categories)))
    axes.legend(fontsize=8)
    axes.grid(alpha=.3)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def display_order(nets, options, data):
    """Categories [K] in the order of the digits they are matched with, those that are left over at the end: for display alone."""
    if not options.categories:
        return torch.arange(5)
    names = common.match_clusters(encode(nets, data.x)[0], data.y)
    return torch.argsort(torch.where(names < 0, names.max() + 1, names), stable=True)


def evaluate(run, nets, regular, data, test, curves):
    """Scores and figures. Returns the flat metrics and the rows of the printed table."""
    opt = run.options
    judge = common.load_judge(opt.dataset, opt.data, run.device, quick=opt.dry_run)
    at = lambda name: run.folder / f"{name}.png"  # noqa: E731
    scores, order = code_scores(nets, opt, judge, run.device, 1000 if opt.dry_run else 10_000), display_order(nets, opt, data)
    if opt.categories:
        scores.update(**curve_scores(curves[0], opt), **cluster_scores(nets, data, test, opt.dry_run))
        figure_categories(nets, opt, at("categories"), order, "Regular GAN: nothing rewards c1 (Fig. 2b)" if opt.baseline else "InfoGAN: a category a column (Fig. 2a)")
        figure_information(dict(zip(("regular GAN",) if opt.baseline else ("InfoGAN", "regular GAN"), curves)), opt, at("information"))
        if regular is not None:
            scores["baseline_mutual_information"] = curve_scores(curves[1], opt)["mutual_information"]
            figure_categories(regular, opt, at("categories-regular"), order, f"Regular GAN after {len(curves[1])} updates (Fig. 2b)")
    for which in range(opt.continuous):
        figure_sweep(nets, opt, at(f"continuous-{which + 1}"), which, order)
    scores.update(probe_scores(nets, data, test, opt.dry_run))
    common.figure_curves(at("losses"), run.history, [("the game", ("discriminator", "generator"), "nats"), ("L_I of the category", ("mutual_information",), "nats")], "Training")
    return scores, table_rows(scores)


def table_rows(scores):
    """Rows of the printed table: words, metric, the paper's value, what to compare with."""
    of = lambda name: f"{scores.get(name, math.nan):.4g}"  # noqa: E731
    rows = [("L_I of the category, nats", "mutual_information", "2.30", f"log K {of('log_k')}"),
            ("L_I of the regular GAN, nats", "baseline_mutual_information", "near 0", ""),
            ("updates until L_I is 2.25", "steps_to_2.25", "-", ""),
            ("error, a category a digit, %", "cluster_error", "5", f"k-means {of('kmeans_cluster_error')}"),
            ("error, category's commonest digit, %", "cluster_error_majority", "-", f"k-means {of('kmeans_cluster_error_majority')}"),
            ("normalised mutual information", "nmi", "-", f"k-means {of('kmeans_nmi')}"),
            ("generated: shows its category's digit, %", "generated_purity", "-", "100 at best"),
            ("generated: digits that a category shows", "generated_digits", "10", "10 at best"),
            ("generated: slant by one code, R2", "slant_r2", "-", "1 at best"), ("generated: stroke width by one code, R2", "width_r2", "-", "1 at best"),
            ("sweeps -2..2 that change the digit, %", "identity_leak", "-", "0 at best"), ("sweeps -1..1 that change the digit, %", "identity_leak_inside", "-", "0 at best")]
    for labels, words in ((100, "100 labels"), (1000, "1,000 labels"), ("all", "all labels")):
        beside = f"pixels {of(f'probe_error_pixels_{labels}')}, untrained trunk {of(f'probe_error_untrained_{labels}')}"
        rows += [(f"linear probe, {layer.replace('_', ' ')}, {words}, %", f"probe_error_{layer}_{labels}", "-", beside if layer == "trunk" else "") for layer in ("trunk", "q_hidden", "q_out")]
    return [row for row in rows if row[1] in scores]


def load(run_dir, device="cpu"):
    """Trained networks of a run folder in eval mode: trunk, head, q, gen, and options.

    For notebooks: nets = load("runs/infogan/mnist-seed0"); logits, means = encode(nets, test.x);
    images = generate(nets, nets.options, *draw_code(nets.options, 100, "cpu"))."""
    options = SimpleNamespace(**common.read_config(run_dir)["settings"])
    state = common.read_checkpoint(run_dir, "infogan", device)["states"]
    if not (Path(run_dir) / "metrics.json").exists():
        raise common.UserError(f"the run in '{run_dir}' is not finished: batch norm is settled at the end; go on with it by --resume")
    with torch.random.fork_rng(devices=[]):               # initial weights that are overwritten must not disturb the caller's generator
        nets = build(options, *input_shape(state))
    for name, net in vars(nets).items():
        net.load_state_dict(state[name])
        net.to(device).eval()
    nets.options = options
    return nets


def input_shape(state):
    """Channels and size of the images of a checkpoint's networks."""
    return state["trunk"]["net.0.weight"].shape[1], 4 * round((state["trunk"]["net.6.weight"].shape[1] / 128) ** 0.5)


# ------------------------------------------------------------------------------------------------------------ main

OURS = dict(epochs=5, warp=1.0, wide=0.33, continuous_weight=3.0, continuous_start=600, schedule="linear")
PAPER = dict(epochs=11, warp=0.0, wide=0.0, continuous_weight=1.0, continuous_start=0, schedule="constant")         # the released code's 5,000 updates, and its weights
REGULAR = dict(baseline=True, warp=0.0, wide=0.0, continuous_weight=1.0, continuous_start=0)   # Q reads the images as they are, and everything from the start
LEAK_CATEGORIES = (0, 2, 5, 10, 20, 30, 50)


def make_parser():
    def told(name):                                       # the defaults in words
        return f"; None is {OURS[name]}, {PAPER[name]} with --recipe paper"

    cli = common.Parser(__doc__.split("\n\n")[0], epochs=None, batch_size=128)
    next(action for action in cli._actions if action.dest == "epochs").help += told("epochs")

    def add(flag, words, **more):
        name = flag[2:].replace("-", "_")
        cli.add_argument(flag, default=more.pop("default", None), help=words + (told(name) if name in OURS else ""), **more)
    add("--categories", "K, values of the categorical code; 0: none", type=common.whole, default=10)
    add("--continuous", "number of continuous codes, uniform in [-1, 1]", type=common.whole, default=2)
    add("--noise", "size of the incompressible noise z, uniform in [-1, 1] too", type=common.whole, default=62)
    add("--learned-std", "Q learns the deviations of the continuous codes (the paper's appendix); else they are 1 (the released code)", action="store_true", default=False)
    add("--baseline", "the regular GAN of Figure 1: Q is trained on features without a way back, and G gets nothing for it", action="store_true", default=False)
    add("--regular-epochs", "epochs in which a regular GAN is trained beside InfoGAN, for Figures 1 and 2(b); None is 2, 0 where K is not 10", type=common.whole)
    add("--table", "leak: train K = " + ", ".join(map(str, LEAK_CATEGORIES)) + " and the regular GAN (with this seed and the flags beside it), and print them side by side",
        choices=("leak",))
    add("--recipe", "paper: the released code's length and weights, no warps; flags beside it still count", choices=("ours", "paper"), default="ours")
    add("--category-weight", "lambda of the category", type=common.weight, default=1.0)
    add("--continuous-weight", "lambda of the continuous codes (difference 2)", type=common.weight)
    add("--continuous-start", "update from which on they have it (difference 2)", type=common.whole)
    add("--warp", "size of the warps that the category must survive, a share of those in `warp` (difference 1); 0: none", type=common.weight)
    add("--wide", "share of the images whose continuous codes are drawn from [-2, 2] (difference 3)", type=common.fraction)
    add("--lr", "Adam's rate of G", type=common.positive, default=1e-3)
    add("--lr-discriminator", "Adam's rate of D and Q", type=common.positive, default=2e-4)
    add("--schedule", "linear: rates are constant for half the run, then fall straight to 1 %%; constant", choices=("linear", "constant"))
    add("--beta1", "Adam's", type=common.below_one, default=0.5)
    add("--slope", "of the leaky ReLUs; the released code has 0.01", type=common.weight, default=0.1)
    add("--sweep", "the figures' range of a continuous code; the released code has 1", type=common.positive, default=2.0)
    return cli


def resolve(options):
    """Fill in what depends on the recipe; refuse what cannot be."""
    o = options
    if o.dataset in ("sprites", "svhn", "cifar10"):
        raise common.UserError(f"--dataset {o.dataset} does not go with infogan.py, whose networks and scores are for grey images of 28 x 28: choose mnist, fashion or kmnist")
    if o.categories == 1 or not o.categories + o.continuous:
        raise common.UserError("a code needs information: --categories 0 or at least 2, and not 0 together with --continuous 0")
    if o.batch_size < 3:
        raise common.UserError("--batch-size must be at least 3, so that the last batch of an epoch has two images")
    defaults = {**OURS, **(PAPER if o.recipe == "paper" else {}), **(REGULAR if o.baseline else {})}
    for name, value in defaults.items():
        if getattr(o, name) is None:
            setattr(o, name, value)
    if o.baseline or not o.categories:
        o.regular_epochs = 0
    elif o.regular_epochs is None:
        o.regular_epochs = 2 if o.categories == 10 else 0
    if o.dry_run:
        o.epochs, o.regular_epochs = min(o.epochs, 2), min(o.regular_epochs, 1)
    return o


def run_name(options):
    """Name of a run's folder: mnist, baseline, mnist-k20, fashion, ..."""
    o = options
    return "-".join([*([o.dataset] if o.dataset != "mnist" or not o.baseline else []), *(["baseline"] if o.baseline else []),
                     *([f"k{o.categories}"] if o.categories != 10 else [])])


def train_and_score(options):
    """One run; returns its metrics."""
    data, test = common.load_dataset(options.dataset, options.data, options.validation)
    if options.dry_run:
        data, test = (part.take(torch.arange(len(part.y)) < n) for part, n in ((data, 600), (test, 300)))
    run = common.Run("infogan", options, run_name(options))
    data, test = data.to(run.device), test.to(run.device)
    nets = build(options, *data.x.shape[1:3])
    regular = build(options, *data.x.shape[1:3]) if options.regular_epochs else None
    curves = train(run, nets, regular, data)
    return run.finish(*evaluate(run, nets, regular, data, test, curves))


def table(options):
    """How much does K give away? Runs on file with these settings count, the others are trained now."""
    if options.out is not None or options.baseline or options.categories != 10:
        raise common.UserError("--table makes a folder for each K in runs/infogan: leave --out, --baseline and --categories out")
    lines = []
    for k in (None, *LEAK_CATEGORIES):                    # None: the regular GAN
        mine = resolve(SimpleNamespace(**{**vars(options), "table": None, "resume": False, "baseline": k is None, "categories": 10 if k is None else k}))
        folder = common.find_run("infogan", mine, run_name(mine))
        if folder is not None and (folder / "metrics.json").exists():
            metrics = json.loads((folder / "metrics.json").read_text())
        else:
            mine.out, mine.resume = folder and str(folder), folder is not None
            metrics = train_and_score(mine)
        lines.append(("regular GAN" if k is None else f"K = {k}", metrics))
    names = [("cluster_error", "one to one"), ("cluster_error_majority", "majority"), ("kmeans_cluster_error_majority", "k-means"), ("nmi", "nmi"), ("kmeans_nmi", "k-means"),
             ("probe_error_trunk_100", "trunk, 100"), ("probe_error_trunk_1000", "1,000"), ("probe_error_trunk_all", "all"),
             ("probe_error_q_hidden_100", "Q, 100"), ("probe_error_q_hidden_1000", "1,000"), ("probe_error_q_hidden_all", "all")]
    print("errors in %; one to one, majority: of the categories as a classifier, and of k-means on pixels with as many clusters; nmi: normalised mutual information\n"
          "with the digit; trunk, Q: a linear probe on the trunk and on Q's hidden layer with 100, 1,000 and all labels")
    print("".join(word.ljust(12) for word in ["", *(words for _, words in names)]).rstrip())
    beside = {name.replace("_untrained_", "_trunk_"): value for name, value in lines[0][1].items() if "_untrained_" in name}
    pixels = {name.replace("_pixels_", "_trunk_"): value for name, value in lines[0][1].items() if "_pixels_" in name}
    for words, metrics in [*lines, ("untrained", beside), ("pixels", pixels)]:
        print("".join(cell.ljust(12) for cell in [words, *(f"{metrics[name]:.2f}" if name in metrics else "-" for name, _ in names)]).rstrip())


def main(options):
    if options.table:
        return table(options)
    train_and_score(resolve(options))


if __name__ == "__main__":
    common.run_main(main, make_parser())
