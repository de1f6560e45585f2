"""InfoGAN (Chen, Duan, Houthooft, Schulman, Sutskever, Abbeel 2016, arXiv 1606.03657) on MNIST.

    python infogan.py                                     # the paper's MNIST model, a category of ten values and two continuous codes, by our recipe
    python infogan.py --recipe paper                      # the same by about the released recipe: none of differences 1 to 4 below
    python infogan.py --baseline                          # Figure 1's regular GAN by itself: its Q is trained, its G is not rewarded
    python infogan.py --table leak                        # how much of the result does K = 10 give away?

A generator makes images x = G(z, c) of noise z and a code c = (a category, continuous codes); a head Q(c|x) on the discriminator's body
reads c back from the image, and G and Q are rewarded when it succeeds. With P(c|x) the true, unknown posterior of the code, the reward is a
lower bound on the mutual information of code and image ("variational information maximisation", Barber and Agakov 2003: InfoMax with a
bound in place of the information):

    I(c; x) = H(c) - H(c|x) = H(c) + E_x E_{c'~P(c'|x)} log P(c'|x)
            = H(c) + E_x [ KL(P(.|x) || Q(.|x)) + E_{c'~P(c'|x)} log Q(c'|x) ]                (log P = log P/Q + log Q)
           >= H(c) + E_x E_{c'~P(c'|x)} log Q(c'|x)                         (eq. 4; a KL is never negative, and 0 where Q = P)
            = H(c) + E_{c~P(c), z, x=G(z,c)} log Q(c|x)  =  L_I(G, Q)                                              (eq. 5)

The last step (the paper's Lemma 5.1) is why no posterior is ever sampled: P(x) P(c'|x) = P(c') P(x|c'), so drawing c, making x and drawing
c' from P(c'|x) gives the same pairs (c', x) as drawing c' and making x from it. The c that made the image is the one to score. H(c) is a
constant, since we choose P(c) and no network can change it. What is left to minimise is -log Q(c|x), a sum over the codes: a cross-entropy
for the category, a Gaussian's negative log-likelihood for each continuous code.

    min over G, Q  max over D   V(D, G) - lambda L_I(G, Q)                    (eq. 6; V: eq. 1; here with a lambda for each kind of code)

log K less the cross-entropy is Figure 1's curve. That it reaches log K says that Q can tell K kinds of generated image apart, not that the
kinds are digits: see cluster_scores. The continuous codes have no such curve: with a deviation of 1, -log Q is at least log(2 pi) / 2 =
0.919 a code, and H of a uniform code on [-1, 1] is log 2 = 0.693, so that their L_I stays below 0.

Where to find what
    eq. 1, 6                          discriminator_loss, generator_loss; discriminator_step, generator_step, update
    eq. 4, 5                          category_loss, continuous_loss; mutual_information
    the -lambda L_I term              information_losses; warp
    Table 1 (appendix C.1)            Trunk, QHead, Generator
    Figure 1                          figure_information; a regular GAN is trained beside for --baseline-epochs, or for the full length by --baseline
    Figure 2                          figure_categories (a, b), figure_sweep (c, d)
    section 7.2, "5 % error"          cluster_scores
    not in the paper                  code_scores, probe_scores, --table leak

Differences from the paper
 1. In training, Q must name the category of a warped copy of the generated image (warp), not of the image itself: a category that is a
    slant or a size would be misread there. Without that, categories tend to be mixtures of digits of the same slant. I(c; warp(x)) <=
    I(c; x) (data processing), so it is a bound on the same information. Figure 1's curve is of the images as they are. --warp 0.
 2. The continuous codes have lambda = 4 (the paper's section 6: smaller than the category's, its appendix and the released code: 1; 4 at a
    deviation of 1 weighs the squared error as 1 would at a deviation of 1/2) and are rewarded after 40 % of the updates: rewarded from the
    start they compete with the category for the digit. They are read from warped copies, too. Copies with an even index are resized and
    shifted, but neither turned nor sheared: only there is the first code, c2, scored, so it may be the slant. The others lean at random:
    there the other codes are scored, so c3 must survive a change of slant, and becomes the stroke width. Without that both may be slants,
    or mixtures of slant and height. --continuous-weight 1 --continuous-start 0 --warp 0.
 3. Figure 2 sweeps the continuous codes from -2 to 2, twice as far as their prior, and the digit tends to change on the way. So each batch
    has half as many images again, with continuous codes uniform in [-2, 2], whose category Q must name too, in the same mean: two thirds of
    that loss are of the prior's codes. D does not see them, nor are their continuous codes scored. --far 0.
 4. 4 epochs of 60,000 images, 1,876 updates, at rates that fall in the second half; the released code makes 5,000 updates of 128 images,
    11.6 passes over 55,000, at constant rates. --recipe paper has about that length (5,159), and none of 1 to 4.
 5. Deviations of the continuous codes are fixed at 1, as in the released code; the appendix learns them (--learned-std: not tuned, the one
    early try collapsed).
 6. One batch of generated images serves D's step and G's; the released code draws a fresh (z, c) for G. G minimises -log D(G(z, c)) as
    there, not eq. 1's log(1 - D(G(z, c))), whose gradient vanishes where D wins.
 7. Figure 1 is of the plain command's model; the paper's has the category as its only code (--continuous 0 --recipe paper).
 8. The paper gives 5 % without saying of how many runs, how categories were matched, on which images, or how the model was chosen. Here the
    matching is fitted on training images, the error is of the test images, all seeds count, and training uses no labels. The settings of 1
    to 4 were chosen with them: by the error on held-out training images, the digit classifier's scores, R2 of slant and width, one run a
    try. Two earlier versions were scored on the test images before the last settings were chosen; R2 of generated images made us go on, not
    their test errors, but we had seen these (results/NOTES.md).

Where the released code does otherwise, and what went wrong elsewhere
 - The paper does not give batch size and beta1; they are the released code's. That code's leaky ReLUs have a slope of 0.01, the paper's
   (and ours) 0.1.
 - The paper's section 6 calls lambda of the continuous codes "smaller", its appendix has 1 unless noted; the code's is 1, like the category's.
 - The noise is uniform in [-1, 1] in that code, and here; the paper does not say.
 - The information trains the trunk and Q by D's optimiser and G by G's, with the same sign: nobody plays against it. Re-implementations
   that give Q's head to G's optimiser never train the trunk with it.
 - A softmax before a cross-entropy that has one already caps L_I at 0.84. An entropy term that is forgotten puts the curve's end at 0.
 - The released grids are drawn with the batch statistics of 128 images; here with settled ones (settle), in evaluation mode.
 - Setting lambda to 0 gives no baseline: Q stays untrained, and L_I of an untrained Q is below 0.
"""

import json
import math
from contextlib import nullcontext
from types import SimpleNamespace

from experiments import before as common  # before torch: it sets what torch reads at import

import torch
import torch.nn.functional as F
from torch import nn

# -------------------------------------------------------------------------------------------------------- networks


class Trunk(nn.Module):
    """What D and Q share (Table 1): images [B, channels, size, size] in [0, 1] -> features [B, 1024]; size a multiple of 4."""

    def __init__(self, channels=1, size=28, slope=0.1):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(channels, 64, 4, 2, 1),
            nn.LeakyReLU(slope),
            nn.Conv2d(64, 128, 4, 2, 1),
            nn.BatchNorm2d(128),
            nn.LeakyReLU(slope),
            nn.Flatten(),
            nn.Linear(128 * (size // 4) ** 2, 1024),
            nn.BatchNorm1d(1024),
            nn.LeakyReLU(slope),
        )

    def forward(self, x):
        return self.net(x)


class QHead(nn.Module):
    """Q(c|x) of the trunk's features [B, 1024]: logits [B, categories], means [B, continuous], log deviations [B, continuous] or None
    (deviations of 1)."""

    def __init__(self, categories=10, continuous=2, learned_std=False, slope=0.1):
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(1024, 128), nn.BatchNorm1d(128), nn.LeakyReLU(slope))
        self.sizes = [
            categories,
            continuous,
            continuous if learned_std else 0,
        ]  # of the parts of the output
        self.out = nn.Linear(128, sum(self.sizes))

    def forward(self, features):
        logits, mean, log_std = self.out(self.hidden(features)).float().split(self.sizes, 1)
        return logits, mean, (log_std if self.sizes[2] else None)


class Generator(nn.Module):
    """G: noise and code side by side [B, inputs] -> logits of the pixels [B, channels, size, size] (Table 1); inputs 62 + 10 + 2, size a
    multiple of 4.

    The second batch norm is one of 6,272 features, not of 128 channels."""

    def __init__(self, inputs=74, channels=1, size=28):
        super().__init__()
        self.side = size // 4
        self.dense = nn.Sequential(
            nn.Linear(inputs, 1024),
            nn.BatchNorm1d(1024),
            nn.ReLU(),
            nn.Linear(1024, 128 * self.side**2),
            nn.BatchNorm1d(128 * self.side**2),
            nn.ReLU(),
        )
        self.up = nn.Sequential(
            nn.ConvTranspose2d(128, 64, 4, 2, 1),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.ConvTranspose2d(64, channels, 4, 2, 1),
        )

    def forward(self, z_and_c):
        return self.up(self.dense(z_and_c).unflatten(1, (128, self.side, self.side))).float()


# ---------------------------------------------------------------------------------------------------------- losses


def discriminator_loss(logits_real, logits_generated):
    """-log D(x) - log(1 - D(G(z, c))) (eq. 1), means over the batch; 2 log 2 at chance. Logits [B]."""
    return F.softplus(-logits_real).mean() + F.softplus(logits_generated).mean()


def generator_loss(logits_generated):
    """-log D(G(z, c)), the non-saturating side of eq. 1, mean over the batch; log 2 at chance. Logits [B]."""
    return F.softplus(-logits_generated).mean()


def category_loss(logits, category):
    """-log Q(category|x) in nats, mean over the batch; log K when Q knows nothing. Logits [B, K], not probabilities; category int64 [B],
    the one that made x."""
    return F.cross_entropy(logits, category)


def continuous_loss(mean, code, log_std=None):
    """-log Q(code|x) in nats, Q = N(mean, exp(log_std)^2), summed over the codes, mean over the batch. All [B, n]; log_std None: deviations of 1.

    With deviations of 1 it is half the squared error and log(2 pi) / 2 = 0.919 a code, as in the released code; with learned ones it has no
    lower end."""
    log_std = torch.zeros_like(mean) if log_std is None else log_std
    return (
        (0.5 * ((code - mean) / log_std.exp()).square() + log_std + 0.5 * math.log(2 * math.pi))
        .sum(1)
        .mean()
    )


def mutual_information(logits, category):
    """L_I of a uniform category in nats (eq. 5): log K - E[-log Q(category|x)]; log K at most, below 0 where Q is worse than guessing.

    Logits [B, K], category int64 [B], the one that made x."""
    return math.log(logits.shape[1]) - category_loss(logits, category)


# -------------------------------------------------------------------------------------------------------- training


def build(options):
    """The networks of a GAN: trunk, head (of D), q, gen."""
    o = options
    return SimpleNamespace(
        trunk=initialise(Trunk(slope=o.slope)),
        head=initialise(nn.Linear(1024, 1)),
        q=initialise(QHead(o.categories, o.continuous, o.learned_std, o.slope)),
        gen=initialise(Generator(o.noise + o.categories + o.continuous)),
    )


def initialise(net):
    """Weights N(0, 0.02^2), batch norm's gains N(1, 0.02^2), biases 0 (released code, which truncates those of convolutions)."""
    for layer in (m for m in net.modules() if hasattr(m, "weight")):
        nn.init.normal_(
            layer.weight, 1.0 if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)) else 0.0, 0.02
        )
        nn.init.zeros_(layer.bias)
    return net


def draw_prior(options, n, device="cpu", far=0):
    """n codes of the prior and `far` more, with their noise: (category, continuous, noise), int64 [n + far], uniform (None for K = 0); float
    [n + far, continuous] and [n + far, noise], uniform in [-1, 1], but the continuous codes of the last `far` in [-2, 2]."""
    o = options
    category = torch.randint(o.categories, (n + far,), device=device) if o.categories else None
    continuous, noise = (
        2 * torch.rand(n + far, size, device=device) - 1 for size in (o.continuous, o.noise)
    )
    continuous[n:] *= 2
    return category, continuous, noise


def generator_input(options, category, continuous, noise):
    """Noise, one-hot category, continuous codes side by side, [B, noise + K + continuous]."""
    one_hot = [] if category is None else [F.one_hot(category, options.categories).to(noise)]
    return torch.cat([noise, *one_hot, continuous], 1)


def warp(x, amount=1.0, lean=1.0):
    """Small random affine maps, another for each image [B, C, H, W]: up to 9 degrees and a shear of 0.3, both times lean (a number or [B]),
    15 % of either side and 2 pixels of 28; all times amount. With lean 0 an upright line stays upright.

    Zeros (black) come in at the border."""
    n, device = len(x), x.device
    angle, shear, wide, high = (
        amount * c * (2 * torch.rand(n, device=device) - 1) for c in (0.15, 0.3, 0.15, 0.15)
    )
    angle, shear = lean * angle, lean * shear
    cos, sin, wide, high = angle.cos(), angle.sin(), 1 + wide, 1 + high
    linear = torch.stack(
        [
            torch.stack([cos * wide, (shear - sin) * wide], 1),
            torch.stack([sin * high, cos * high], 1),
        ],
        1,
    )
    shift = amount / 7 * (2 * torch.rand(n, 2, 1, device=device) - 1)
    with torch.autocast(
        device.type, enabled=False
    ):  # bf16 would round the grid to a tenth of a pixel
        return F.grid_sample(
            x.float(),
            F.affine_grid(torch.cat([linear, shift], 2), x.shape, align_corners=False),
            align_corners=False,
        )


def d_logits(nets, features):
    """D's logits [B] of the trunk's features [B, 1024]."""
    return nets.head(features).float().squeeze(1)


def information_losses(nets, generated, features, code, options):
    """-log Q(c|x) of the codes that made the images, in nats: of the category, and of the continuous codes (0 without).

    generated: [B + far, C, H, W], made of `code` (draw_prior); features [B, 1024]: the trunk's, of the first B. With --warp 0 Q reads
    these. Otherwise it reads warped copies (differences 1 to 3): the category from all, c2 from those that are neither turned nor sheared,
    the other continuous codes from the rest. The continuous codes of the `far` images are not scored. --baseline: no gradient reaches the
    trunk."""
    category, continuous, _noise = code
    detach = torch.detach if options.baseline else lambda t: t
    n = len(features)
    if options.warp:
        lean = torch.arange(len(generated), device=features.device) % 2
        logits, mean, log_std = nets.q(detach(nets.trunk(warp(generated, options.warp, lean))))
        read = [
            (slice(0, n, 2), slice(0, 1)),
            (slice(1, n, 2), slice(1, None)),
        ]  # images, and the continuous codes read from them
    else:
        logits, mean, log_std = nets.q(detach(features))
        read = [(slice(None), slice(None))]
    loss_category = loss_continuous = features.new_zeros((), dtype=torch.float32)
    if category is not None:
        loss_category = category_loss(
            logits, category[: len(logits)]
        )  # with warps the far images count, too
    if options.continuous:
        loss_continuous = sum(
            continuous_loss(
                mean[images, codes],
                continuous[images, codes],
                None if log_std is None else log_std[images, codes],
            )
            for images, codes in read
        )
    return loss_category, loss_continuous


def descend_own(optimiser, loss):
    """One step of an optimiser's own parameters down a loss whose gradient would reach others too."""
    loss.backward(inputs=[p for group in optimiser.param_groups for p in group["params"]])
    optimiser.step()
    optimiser.zero_grad()


def discriminator_step(nets, optimiser, x, generated, code, weights, options):
    """Trunk, D's head and Q: minimise  -log D(x) - log(1 - D(G(z,c))) - lambda log Q(c|G(z,c)).

    x: [B, C, H, W]; generated: [B + far, C, H, W] without G's graph, of which D sees the first B. Both go through the trunk apart, each
    with batch norm's statistics of its own. weights: the two lambdas, of the category and of the continuous codes. --baseline: the last
    term reaches Q alone. Returns D's loss, the continuous codes' loss, L_I of the images as they are, and the category's loss, which is of the
    images that Q reads."""
    features = nets.trunk(generated[: len(x)])
    loss_d = discriminator_loss(d_logits(nets, nets.trunk(x)), d_logits(nets, features))
    loss_category, loss_continuous = information_losses(nets, generated, features, code, options)
    lower_bound = loss_category.new_zeros(())
    if code[0] is not None:  # Figure 1's curve, of the images as they are
        lower_bound = mutual_information(nets.q(features.detach())[0].detach(), code[0][: len(x)])
    descend_own(optimiser, loss_d + weights[0] * loss_category + weights[1] * loss_continuous)
    return loss_d, loss_continuous, lower_bound, loss_category


def generator_step(nets, optimiser, generated, n, code, weights, options):
    """G: minimise  -log D(G(z,c)) - lambda log Q(c|G(z,c));  --baseline: without the second term.

    generated: [B + far, C, H, W] with G's graph, of which D sees the first n = B. Returns -log D."""
    features = nets.trunk(generated[:n])
    loss_g = total = generator_loss(d_logits(nets, features))
    if not options.baseline:
        loss_category, loss_continuous = information_losses(
            nets, generated, features, code, options
        )
        total = loss_g + weights[0] * loss_category + weights[1] * loss_continuous
    descend_own(optimiser, total)
    return loss_g


def make_optimiser(params, options, lr):
    return torch.optim.Adam(
        params, lr, betas=(options.beta1, 0.999), fused=params[0].device.type != "mps"
    )


def schedule(done, options):
    """Share of the full rate when a share `done` of the updates is done. linear: constant for the first half, then straight down to 1 %."""
    return min(1.0, max(0.01, 2 * (1 - done))) if options.schedule == "linear" else 1.0


class Game:
    """A GAN in training: its networks, both optimisers, and the curve of Figure 1, L_I in nats of each of its updates."""

    def __init__(self, nets, options, device, updates):
        for net in vars(nets).values():
            net.to(device).train()
        self.nets, self.options = nets, options
        self.optimiser_d = make_optimiser(
            [p for net in (nets.trunk, nets.head, nets.q) for p in net.parameters()],
            options,
            options.lr_discriminator,
        )
        self.optimiser_g = make_optimiser(list(nets.gen.parameters()), options, options.lr)
        self.curve = nn.Module()  # a module only so that checkpoints hold its buffer
        self.curve.register_buffer("nats", torch.zeros(updates, device=device))

    def parts(self):
        return {
            **vars(self.nets),
            "optimiser_d": self.optimiser_d,
            "optimiser_g": self.optimiser_g,
            "curve": self.curve,
        }


def update(game, x, step, autocast=nullcontext):
    """One update of a GAN on real images x [B, C, H, W]: D and Q, then G against the new D, on the same generated images.

    autocast: makes a context for each of the three parts, so that bf16 copies of weights are not kept from D's step to G's. Returns the
    losses of D, of G and of the continuous codes, L_I, and the category's loss."""
    nets, opt, done = game.nets, game.options, step / len(game.curve.nats)
    for optimiser, rate in ((game.optimiser_d, opt.lr_discriminator), (game.optimiser_g, opt.lr)):
        optimiser.param_groups[0]["lr"] = rate * schedule(done, opt)
    weights = (
        opt.category_weight,
        opt.continuous_weight if done >= opt.continuous_start else 0.0,
    )  # difference 2
    code = draw_prior(opt, len(x), x.device, round(opt.far * len(x)))  # difference 3
    with autocast():
        generated = torch.sigmoid(nets.gen(generator_input(opt, *code)))
    with autocast():
        loss_d, loss_continuous, lower_bound, loss_category = discriminator_step(
            nets, game.optimiser_d, x, generated.detach(), code, weights, opt
        )
    with autocast():
        loss_g = generator_step(nets, game.optimiser_g, generated, len(x), code, weights, opt)
    game.curve.nats[step] = lower_bound
    return loss_d, loss_g, loss_continuous, lower_bound, loss_category


def train(run, nets, baseline, data):
    """Eq. 6's game, and in the first epochs beside it, on the same real images, Figure 1's regular GAN. data: a common.Split on the device.

    nets, baseline: see build; baseline None for none. Returns the curves of both: L_I in nats of each update."""
    opt = run.options
    updates = math.ceil(len(data.y) / opt.batch_size)
    game, beside = Game(nets, opt, run.device, opt.epochs * updates), None
    run.track(**game.parts())
    if baseline is not None:
        beside = Game(
            baseline,
            SimpleNamespace(**{**vars(opt), **BASELINE}),
            run.device,
            opt.baseline_epochs * updates,
        )
        run.track(**{f"baseline_{name}": part for name, part in beside.parts().items()})
    autocast = lambda: run.autocast(cached=True)  # noqa: E731

    for epoch in run.epochs():
        for i in run.batches(torch.randperm(len(data.y)), opt.batch_size):
            x = common.to_float(data.x[i])
            loss_d, loss_g, loss_continuous, lower_bound, loss_category = update(
                game, x, run.step, autocast
            )
            if beside is not None and run.step < len(beside.curve.nats):
                update(beside, x, run.step, autocast)
            run.log(
                discriminator=loss_d,
                generator=loss_g,
                continuous=loss_continuous,
                mutual_information=lower_bound,
                category=loss_category,
            )
    for one in (game, beside):
        if one is not None:
            settle(one.nets, data.x, one.options)
    run.save()
    return [one.curve.nats for one in (game, beside) if one is not None]


@torch.no_grad()
def settle(nets, images, options, batch_size=500):
    """Batch norm's statistics anew with the final weights, then eval mode: G's from the codes of training; the trunk's and Q's from 20,000
    real training images (uint8 [N, C, H, W]), since real images are what they are scored on, and in training the trunk's are a mixture and
    Q has seen generated images alone.

    So Q's statistics are not those of generated images, which it then reads a little worse."""
    parts = common.settling_parts(images, batch_size)
    with common.own_random_numbers():
        common.settle_batch_norm(
            nets.gen,
            (
                (
                    generator_input(
                        options,
                        *draw_prior(
                            options, len(part), images.device, round(options.far * len(part))
                        ),
                    ),
                )
                for part in parts
            ),
        )
    common.settle_batch_norm(nets.trunk, ((part,) for part in parts))
    common.settle_batch_norm(nets.q, ((nets.trunk(part),) for part in parts))
    nets.head.eval()


# ------------------------------------------------------------------------------------------------------ evaluation


@torch.no_grad()
def generate(nets, options, category, continuous, noise):
    """G(z, c): images [N, C, H, W] in [0, 1], with settled batch norm, for a code as draw_prior gives it."""
    inputs = generator_input(options, category, continuous, noise).to(nets.head.weight.device)
    return torch.cat([torch.sigmoid(nets.gen(part)) for part in inputs.split(1000)])


@torch.no_grad()
def features(nets, x):
    """The trunk's features [N, 1024] of uint8 images [N, C, H, W]."""
    assert x.dtype == torch.uint8, (
        "features and encode take uint8 images: (x * 255).round().to(torch.uint8)"
    )
    return torch.cat(
        [nets.trunk(common.to_float(part.to(nets.head.weight.device))) for part in x.split(1000)]
    )


@torch.no_grad()
def encode(nets, x):
    """What Q says of uint8 images [N, C, H, W]: logits [N, K] of the category, means [N, continuous] of the codes."""
    return nets.q(features(nets, x))[:2]


def image_moments(images):
    """Slant and stroke width of images [N, 1, H, W] in [0, 1]: [N] each.

    slant: mu_11 / mu_02 of the ink, the tangent of the angle by which the strokes lean to the right; width: twice the ink over the length
    of all edges (the total variation), for a long even stroke its width in pixels, or about 2 where that is less."""
    ink = images[:, 0]
    y, x = torch.meshgrid(
        *(torch.arange(n, device=ink.device, dtype=ink.dtype) for n in ink.shape[1:]), indexing="ij"
    )
    mass = ink.sum((1, 2)).clamp(min=1e-6)

    def mean(f):
        return (ink * f).sum((1, 2)) / mass

    dx, dy = x - mean(x)[:, None, None], y - mean(y)[:, None, None]
    padded = F.pad(ink, (1, 1, 1, 1))
    gx, gy = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2], padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
    edges = (gx.square() + gy.square()).sqrt().sum((1, 2)) / 2
    return -mean(dx * dy) / mean(dy * dy).clamp(min=1e-6), 2 * mass / edges.clamp(
        min=1e-6
    )  # y points down


def within_group_r2(code, measure, group):
    """Share of the variance of `measure` within groups that straight lines in `code`, one a group, explain. Float [N], [N], int64 [N]."""
    code, measure, group = code.cpu().double(), measure.cpu().double(), group.cpu()
    left = total = 0.0
    for k in group.unique():
        c, m = code[group == k], measure[group == k]
        c, m = c - c.mean(), m - m.mean()
        slope = (c * m).sum() / c.square().sum().clamp(min=1e-12)
        left, total = left + (m - slope * c).square().sum().item(), total + m.square().sum().item()
    return 1 - left / max(total, 1e-12)


def within_group_variance(images, group):
    """Mean over groups of the variance of images [N, ...] within each of them, summed over the pixels. group int64 [N]."""
    return sum(
        images[group == k].var(0, unbiased=False).sum().item() for k in group.unique()
    ) / len(group.unique())


def sweep(options, which, reach, columns, category, continuous, noise):
    """A code (draw_prior) of which each row is repeated `columns` times, with continuous code `which` going from -reach to reach."""
    category, continuous, noise = (
        None if part is None else part.repeat_interleave(columns, 0)
        for part in (category, continuous, noise)
    )
    continuous[:, which] = torch.linspace(-reach, reach, columns, device=noise.device).repeat(
        len(noise) // columns
    )
    return category, continuous, noise


def code_scores(nets, options, judge, test, n=10_000):
    """What the codes do to n generated images, by a digit classifier (judge) and by image_moments.

    generated_purity: percent of a category's images that show its commonest digit, mean over the categories; generated_digits: how many
    digits are so shown, 10 at best, 1 where G has collapsed and purity means nothing; generated_diversity: pixel variance within a category
    over that of test images within a class, 0 for a G that ignores z. slant_r2, width_r2: how much of the variance of slant and stroke
    width within a category a straight line in one continuous code explains, the better code, all else drawn at random. identity_leak:
    percent of sweeps of one continuous code from -2 to 2 in ten values, all else fixed, along which the judge's digit changes anywhere, n / 10
    sweeps of each code; identity_leak_inside: the same from -1 to 1, the prior's range."""
    device = nets.head.weight.device
    code = category, continuous, _ = draw_prior(options, n, device)
    images, scores, group = (
        generate(nets, options, *code),
        {},
        torch.zeros(n, dtype=torch.long, device=device) if category is None else category,
    )
    if category is not None:
        shown = [judge.classify(images[category == k]) for k in category.unique()]
        commonest = [torch.bincount(digits).argmax() for digits in shown]
        scores["generated_purity"] = (
            sum((digits == digit).float().mean().item() for digits, digit in zip(shown, commonest))
            / len(shown)
            * 100
        )
        scores["generated_digits"] = len(torch.stack(commonest).unique())
        scores["generated_diversity"] = within_group_variance(
            images, category
        ) / within_group_variance(common.to_float(test.x), test.y)
    if options.continuous:
        for word, measure in zip(("slant", "width"), image_moments(images)):
            scores[f"{word}_r2"] = max(
                within_group_r2(continuous[:, j], measure, group) for j in range(options.continuous)
            )
        for name, reach in (("identity_leak", 2), ("identity_leak_inside", 1)):
            sweeps = [
                sweep(options, j, reach, 10, *draw_prior(options, n // 10, device))
                for j in range(options.continuous)
            ]
            digits = torch.cat(
                [judge.classify(generate(nets, options, *code)).view(-1, 10) for code in sweeps]
            )
            scores[name] = (digits != digits[:, :1]).any(1).float().mean().item() * 100
    return scores


def cluster_scores(logits, test_logits, data, test, tries=5):
    """The categories as a classifier of real images, from Q's logits [N, K] of the training and the test images; errors in percent of the
    test images, names from the training images.

    cluster_error: a digit for each category and a category for each digit, by the matching that is right most often (images in a category
    left over are errors); cluster_error_majority: each category takes its commonest digit; nmi: normalised mutual information of category
    and digit, 0 to 1. kmeans_*: the same of k-means on the pixels with as many clusters."""
    x, test_x = (common.to_float(part.x).flatten(1) for part in (data, test))
    centres = common.k_means(x, min(logits.shape[1], len(x)), tries=tries)
    scores = {}
    for prefix, answers, test_answers in (
        ("", logits, test_logits),
        ("kmeans_", -torch.cdist(x, centres), -torch.cdist(test_x, centres)),
    ):
        scores[f"{prefix}cluster_error"] = common.cluster_error(
            test_answers, test.y, common.match_clusters(answers, data.y)
        )
        scores[f"{prefix}cluster_error_majority"] = common.cluster_error(
            test_answers, test.y, common.name_clusters(answers, data.y, "majority")
        )
        scores[f"{prefix}nmi"] = common.normalized_mutual_information(
            test_answers.argmax(1), test.y
        )
    return scores


def probe_scores(nets, trunk, data, test, dry=False):
    """Test errors in percent of linear classifiers with 100, 1,000 and all training labels (as many of each class, the same ones always);
    trunk: `features` of the training and the test images.

    probe_error_LAYER_LABELS; LAYER is trunk (1,024 numbers), q_hidden (128), untrained (a trunk with initial weights), pixels."""
    with common.own_random_numbers():
        untrained = initialise(Trunk(slope=nets.trunk.net[1].negative_slope)).to(data.x.device)
    common.settle_batch_norm(untrained, ((part,) for part in common.settling_parts(data.x)))
    blank = SimpleNamespace(trunk=untrained, head=nets.head)
    with torch.no_grad():
        layers = {
            "trunk": trunk,
            "q_hidden": [nets.q.hidden(h) for h in trunk],
            "untrained": [features(blank, part.x) for part in (data, test)],
            "pixels": [common.to_float(part.x).flatten(1) for part in (data, test)],
        }
    scores = {}
    for name, (codes, test_codes) in layers.items():
        for labels in sorted({n for n in (100, 1000, len(data.y)) if n <= len(data.y)}):
            chosen = balanced(data.y, labels)
            scores[f"probe_error_{name}_{'all' if labels == len(data.y) else labels}"] = (
                common.probe(
                    codes[chosen],
                    data.y[chosen],
                    test_codes,
                    test.y,
                    hidden=0,
                    epochs=1 if dry else max(20, 200_000 // labels),
                ).item()
            )
    return scores


def balanced(y, count):
    """Indices of `count` examples, as many of each class, drawn by a fixed seed; of all of them where there are no more."""
    if count >= len(y):
        return torch.arange(len(y), device=y.device)
    rng = torch.Generator().manual_seed(0)
    of_class = [(y == k).nonzero()[:, 0] for k in y.unique()]
    return torch.cat(
        [
            index[
                torch.randperm(len(index), generator=rng)[: count // len(of_class)].to(index.device)
            ]
            for index in of_class
        ]
    )


def moving_mean(curve, n):
    """Means of n successive values [L] -> [L - n + 1] (of all, where there are fewer)."""
    return curve.unfold(0, min(n, len(curve)), 1).mean(1)


def curve_scores(curve, options):
    """Of L_I in nats of each update [updates]: its mean over the last 100, log K beside it, and, where K is 10, the first update at which
    the mean of 20 reaches 2.25 nats, if any does ("steps_to_2.25"; log 10 is 2.30)."""
    scores = {
        "mutual_information": curve[-100:].mean().item(),
        "log_k": math.log(options.categories),
    }
    reached = (moving_mean(curve, 20) >= 2.25).nonzero()
    if options.categories == 10 and len(reached):
        scores["steps_to_2.25"] = reached[0].item() + min(20, len(curve))
    return scores


# --------------------------------------------------------------------------------------------------------- figures


def display_order(logits, y):
    """Categories [K] in the order of the digits they are matched with, those that are left over at the end: for display alone."""
    names = common.match_clusters(logits, y)
    return torch.argsort(torch.where(names < 0, names.max() + 1, names), stable=True)


def figure_categories(nets, options, path, order, words, rows=5):
    """Figure 2(a), 2(b): a category a column, in `order` [K]; noise and continuous codes are fixed along a row."""
    device = nets.head.weight.device
    _, continuous, noise = (
        None if part is None else part.repeat_interleave(len(order), 0)
        for part in draw_prior(options, rows, device)
    )
    images = generate(nets, options, order.to(device).repeat(rows), continuous, noise)
    common.figure_grid(path, images, len(order), words, "the category c1", "other codes and noise")


def figure_sweep(nets, options, path, which, order=None, columns=11):
    """Figure 2(c), 2(d): a continuous code from -options.sweep to options.sweep along a row, all else fixed; a category a row in `order`
    [K] (None: five rows)."""
    device = nets.head.weight.device
    _, continuous, noise = draw_prior(options, 5 if order is None else len(order), device)
    code = sweep(
        options,
        which,
        options.sweep,
        columns,
        None if order is None else order.to(device),
        continuous,
        noise,
    )
    name = f"c{which + (1 if order is None else 2)}"
    common.figure_grid(
        path,
        generate(nets, options, *code),
        columns,
        f"Continuous code {name} from {-options.sweep:g} to {options.sweep:g} (Fig. 2c, d)",
        name,
        "other codes and noise" if order is None else "a category a row",
    )


def figure_information(curves, options, path):
    """Figure 1: L_I in nats over the first 1,500 updates for each of `curves`, {words: [updates]}, as moving means of ten; log K dotted."""
    plt = common.pyplot()
    figure, axes = plt.subplots(figsize=(5.2, 3.4), dpi=100)
    for words, curve in curves.items():
        mean = moving_mean(curve.cpu(), 10)
        axes.plot(torch.arange(len(mean)) + min(10, len(curve)), mean, label=words)
    ceiling = math.log(options.categories)
    axes.axhline(
        ceiling, color=".5", linestyle=":", label=f"log {options.categories} = {ceiling:.2f}"
    )
    axes.set(
        xlabel="update",
        ylabel="L_I of the category, nats",
        title="Lower bound on the mutual information (Fig. 1)",
        xlim=(0, min(1500, max(map(len, curves.values())))),
        ylim=(-0.2, 1.1 * ceiling),
    )
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    common.save_figure(figure, path)


def evaluate(run, nets, baseline, data, test, curves):
    """Scores and figures. Returns the flat metrics and the rows of the printed table."""
    opt = run.options
    judge = common.load_judge(opt.dataset, opt.data, run.device, quick=opt.dry_run)
    at = lambda name: run.folder / f"{name}.png"  # noqa: E731
    scores, order = code_scores(nets, opt, judge, test, 500 if opt.dry_run else 10_000), None
    trunk = [features(nets, part.x) for part in (data, test)]
    if opt.categories:
        with torch.no_grad():
            logits, test_logits = (nets.q(h)[0] for h in trunk)
        order = display_order(logits, data.y)
        scores.update(
            **curve_scores(curves[0], opt),
            **cluster_scores(logits, test_logits, data, test, 1 if opt.dry_run else 5),
        )
        words = (
            "Regular GAN: nothing rewards c1 (Fig. 2b)"
            if opt.baseline
            else "InfoGAN: a category a column (Fig. 2a)"
        )
        figure_categories(nets, opt, at("categories"), order, words)
        names = ["regular GAN"] if opt.baseline else ["InfoGAN", "regular GAN"]
        figure_information(dict(zip(names, curves)), opt, at("information"))
        if baseline is not None:
            scores["baseline_mutual_information"] = curve_scores(curves[1], opt)[
                "mutual_information"
            ]
            figure_categories(
                baseline,
                opt,
                at("categories-baseline"),
                torch.arange(opt.categories),
                f"Regular GAN after {len(curves[1])} updates (Fig. 2b)",
            )
    for which in range(opt.continuous):
        figure_sweep(nets, opt, at(f"continuous-{which + 1}"), which, order)
    scores.update(probe_scores(nets, trunk, data, test, opt.dry_run))
    panels = [
        ("the game", ("discriminator", "generator"), "nats"),
        ("L_I of the category", ("mutual_information",), "nats"),
        ("-log Q of the codes", ("category", "continuous"), "nats"),
    ]
    common.figure_curves(at("losses"), run.history, panels, "Training")
    return scores, table_rows(scores, opt)


def table_rows(scores, options):
    """Rows of the printed table: words, metric, the paper's value, what to compare with."""
    of = lambda name: f"{scores.get(name, math.nan):.4g}"  # noqa: E731
    papers = options.dataset == "mnist" and options.categories == 10
    rows = [
        (
            "L_I of the category, nats",
            "mutual_information",
            ("near 0" if options.baseline else "2.30") if papers else "-",
            f"log K {of('log_k')}",
        ),
        (
            "L_I of the regular GAN, nats",
            "baseline_mutual_information",
            "near 0" if papers else "-",
            "",
        ),
        ("updates until L_I is 2.25", "steps_to_2.25", "-", ""),
        (
            "error, a category a digit, %",
            "cluster_error",
            "5" if papers and not options.baseline else "-",
            f"k-means {of('kmeans_cluster_error')}",
        ),
        (
            "error, category's commonest digit, %",
            "cluster_error_majority",
            "-",
            f"k-means {of('kmeans_cluster_error_majority')}",
        ),
        ("normalised mutual information", "nmi", "-", f"k-means {of('kmeans_nmi')}"),
        ("generated: shows its category's digit, %", "generated_purity", "-", "100 at best"),
        (
            "generated: different digits among categories",
            "generated_digits",
            "-",
            f"{min(10, options.categories)} at best",
        ),
        ("generated: variance within a category", "generated_diversity", "-", "1 for real digits"),
        ("generated: slant by one code, R2", "slant_r2", "-", "1 at best"),
        ("generated: stroke width by one code, R2", "width_r2", "-", "1 at best"),
        ("sweeps -2..2 that change the digit, %", "identity_leak", "-", "0 at best"),
        ("sweeps -1..1 that change the digit, %", "identity_leak_inside", "-", "0 at best"),
    ]
    for labels, words in ((100, "100 labels"), (1000, "1,000 labels"), ("all", "all labels")):
        beside = f"pixels {of(f'probe_error_pixels_{labels}')}, untrained trunk {of(f'probe_error_untrained_{labels}')}"
        for layer, name in (("trunk", "trunk"), ("q_hidden", "Q's hidden layer")):
            rows.append(
                (
                    f"linear probe, {name}, {words}, %",
                    f"probe_error_{layer}_{labels}",
                    "-",
                    beside if layer == "trunk" else "",
                )
            )
    return [row for row in rows if row[1] in scores]


def load(run_dir, device="cpu"):
    """Trained networks of a run folder in eval mode: trunk, head, q, gen, and options. Batch norm of trunk and q is settled for real images.

    For notebooks: nets = load("runs/infogan/mnist-seed0"); logits, means = encode(nets, test.x);
    images = generate(nets, nets.options, *draw_prior(nets.options, 100))."""
    options = SimpleNamespace(**common.read_config(run_dir)["settings"])
    state = common.read_checkpoint(run_dir, "infogan", device, finished=True)["states"]
    with (
        common.same_version(run_dir),
        common.own_random_numbers(),
    ):  # initial weights, which are overwritten
        nets = build(options)
        for name, net in vars(nets).items():
            net.load_state_dict(state[name])
            net.to(device).eval()
    nets.options = options
    return nets


# ------------------------------------------------------------------------------------------------------------ main

OURS = dict(
    epochs=4,
    warp=1.0,
    far=0.5,
    category_weight=1.0,
    continuous_weight=4.0,
    continuous_start=0.4,
    schedule="linear",
    sweep=2.0,
)
PAPER = dict(
    epochs=11, warp=0.0, far=0.0, continuous_weight=1.0, continuous_start=0.0, schedule="constant"
)  # 5,159 updates; the released code has 5,000
BASELINE = dict(
    baseline=True, warp=0.0, far=0.0, continuous_weight=1.0, continuous_start=0.0
)  # Q reads the images as they are, all codes from the start
LEAK_CATEGORIES = (0, 2, 5, 10, 20, 30, 50)


def make_parser():
    def told(name):  # the defaults in words
        kinds = (("", OURS), (" with --recipe paper", PAPER), (" with --baseline", BASELINE))
        return "; None is " + ", ".join(
            f"{kind[name]}{words}" for words, kind in kinds if name in kind
        )

    cli = common.Parser(__doc__.split("\n\n")[0], epochs=None, batch_size=128)
    for action in cli._actions:
        if action.dest == "epochs":
            action.help += told("epochs")
        if action.dest == "dataset":
            action.help = "mnist (which needs no network), fashion or kmnist"

    def add(flag, words, **more):
        name = flag[2:].replace("-", "_")
        cli.add_argument(
            flag,
            default=more.pop("default", None),
            help=words + (told(name) if name in OURS else ""),
            **more,
        )

    add("--categories", "K, values of the categorical code; 0: none", type=common.whole, default=10)
    add(
        "--continuous",
        "number of continuous codes, uniform in [-1, 1]",
        type=common.whole,
        default=2,
    )
    add(
        "--noise",
        "size of the incompressible noise z, uniform in [-1, 1] too",
        type=common.whole,
        default=62,
    )
    add(
        "--learned-std",
        "Q learns the deviations of the continuous codes (the paper's appendix); else they are 1 (the released code); not tuned, the one "
        "early try collapsed",
        action="store_true",
        default=False,
    )
    add(
        "--baseline",
        "the regular GAN of Figure 1: Q is trained on detached features, and neither G nor the trunk learns from it",
        action="store_true",
        default=False,
    )
    add(
        "--baseline-epochs",
        "epochs in which a regular GAN is trained beside InfoGAN, for Figures 1 and 2(b); it takes part of the time and of the random "
        "numbers; None is 2, 0 where K is not 10; at most --epochs, 0 with --baseline or without a category",
        type=common.whole,
    )
    add(
        "--table",
        f"leak: train K = {', '.join(map(str, LEAK_CATEGORIES))} and the regular GAN (with this seed and the flags beside it) and print them side "
        "by side",
        choices=("leak",),
    )
    add(
        "--recipe",
        "paper: about the released code's length, its rates and weights, and none of differences 1 to 4; flags beside it still count",
        choices=("ours", "paper"),
        default="ours",
    )
    add("--category-weight", "lambda of the category", type=common.weight)
    add("--continuous-weight", "lambda of the continuous codes (difference 2)", type=common.weight)
    add(
        "--continuous-start",
        "share of the updates after which the continuous codes are rewarded (difference 2); None is 0 without a category",
        type=common.fraction,
    )
    add(
        "--warp",
        "size of the random affine maps under which the category must be readable (difference 1); 1 is up to 9 degrees, 15 %%, a shear of 0.3 "
        "and 2 pixels, 0 none, as without a category",
        type=common.weight,
    )
    add(
        "--far",
        "images of continuous codes in [-2, 2] whose category Q must read too, as a share of the batch (difference 3); 0 without warps or "
        "continuous codes",
        type=common.fraction,
    )
    add("--lr", "Adam's rate of G", type=common.positive, default=1e-3)
    add("--lr-discriminator", "Adam's rate of D and Q", type=common.positive, default=2e-4)
    add(
        "--schedule",
        "linear: rates are constant for half the run, then fall straight to 1 %%; constant (difference 4)",
        choices=("linear", "constant"),
    )
    add("--beta1", "Adam's beta1", type=common.below_one, default=0.5)
    add(
        "--slope", "of the leaky ReLUs; the released code has 0.01", type=common.weight, default=0.1
    )
    add(
        "--sweep",
        "the figures sweep continuous codes from minus this to this; the paper has 2, the released code 1",
        type=common.positive,
    )
    return cli


def resolve(options):
    """Fill in what depends on the recipe; refuse what cannot be."""
    o = options
    if o.dataset not in ("mnist", "fashion", "kmnist"):
        raise common.UserError(
            f"--dataset {o.dataset} does not go with infogan.py, whose networks and scores are for grey images of 28 x 28: "
            "choose mnist, fashion or kmnist"
        )
    if o.categories == 1 or not o.categories + o.continuous:
        raise common.UserError(
            "--categories must be 0 or at least 2, and 0 needs --continuous of at least 1: a code needs information"
        )
    if o.batch_size < 3:
        raise common.UserError(
            "--batch-size must be at least 3, so that every batch has two images, which batch norm needs"
        )
    defaults = {
        **OURS,
        **(PAPER if o.recipe == "paper" else {}),
        **(BASELINE if o.baseline else {}),
    }
    if not o.categories:
        defaults.update(continuous_start=0.0)  # there is no category to wait for
        o.warp = 0.0
    for name, value in defaults.items():
        if getattr(o, name) is None:
            setattr(o, name, value)
    o.far = o.far if o.warp and o.continuous else 0.0
    if o.baseline or not o.categories:
        o.baseline_epochs = 0
    elif o.baseline_epochs is None:
        o.baseline_epochs = 2 if o.categories == 10 else 0
    o.baseline_epochs = min(o.baseline_epochs, o.epochs)
    if o.dry_run:
        o.epochs, o.baseline_epochs = min(o.epochs, 2), min(o.baseline_epochs, 1)
    return o


def refuse_idle(options):
    """A flag that would do nothing is a mistake: `UserError`. options: not resolved, since --table gives its rows the flags beside it."""
    o = options
    defaults = {
        **OURS,
        **(PAPER if o.recipe == "paper" else {}),
        **(BASELINE if o.baseline else {}),
    }
    warps = defaults["warp"] if o.warp is None else o.warp
    common.refuse_idle(
        o,
        (
            (
                not o.categories,
                ("category_weight", "warp", "far", "baseline_epochs"),
                "with --categories 0",
            ),
            (
                not o.continuous,
                ("continuous_weight", "continuous_start", "far", "sweep", "learned_std"),
                "with --continuous 0",
            ),
            (o.continuous_weight == 0, ("continuous_start",), "with --continuous-weight 0"),
            (o.baseline, ("baseline_epochs",), "with --baseline"),
            (not warps, ("far",), "with --warp 0, which --recipe paper and --baseline have"),
        ),
    )


def run_name(options):
    """Name of a run's folder: mnist, baseline, mnist-k20, mnist-paper, fashion, ..."""
    o = options
    parts = [
        o.dataset if o.dataset != "mnist" or not o.baseline else "",
        "baseline" if o.baseline else "",
        f"k{o.categories}" if o.categories != 10 else "",
        "paper" if o.recipe == "paper" else "",
    ]
    return "-".join(filter(None, parts))


def train_and_score(options):
    """One run; returns its metrics."""
    data, test = common.load_dataset(options.dataset, options.data, options.validation)
    if options.dry_run:
        data, test = (
            part.take(torch.arange(len(part.y)) < n) for part, n in ((data, 300), (test, 200))
        )
    run = common.Run("infogan", options, run_name(options))
    data, test = data.to(run.device), test.to(run.device)
    common.check_judge(options, run.device)  # what is wrong with it should not show after training
    nets = build(options)
    baseline = build(options) if options.baseline_epochs else None
    curves = train(run, nets, baseline, data)
    return run.finish(*evaluate(run, nets, baseline, data, test, curves))


def table(options):
    """How much does K give away? Finished runs in runs/infogan with these settings count, the others are trained now."""
    if options.out is not None or options.baseline or options.categories != 10:
        raise common.UserError(
            "--table makes a folder for each K in runs/infogan: leave --out, --baseline and --categories out"
        )
    if not options.continuous:
        raise common.UserError("--table has a row of K = 0, which needs --continuous of at least 1")
    settings = {f"K = {k}": {"categories": k} for k in LEAK_CATEGORIES}
    settings = {"regular GAN": {"baseline": True}, **settings}
    settings = {
        words: resolve(SimpleNamespace(**{**vars(options), "table": None, "resume": False, **own}))
        for words, own in settings.items()
    }
    results = {}
    for words, mine in settings.items():
        folder = common.find_run("infogan", mine, run_name(mine))
        if folder is not None and (folder / "metrics.json").exists():
            results[words] = json.loads((folder / "metrics.json").read_text())
        else:
            mine.out, mine.resume = folder and str(folder), folder is not None
            results[words] = train_and_score(mine)
    for words in ("untrained", "pixels"):  # their probes, put under the trunk's columns
        results[words] = {
            name.replace(f"_{words}_", "_trunk_"): value
            for name, value in results["regular GAN"].items()
            if f"_{words}_" in name
        }
    columns = [
        ("cluster_error", "one to one"),
        ("cluster_error_majority", "majority"),
        ("kmeans_cluster_error_majority", "k-means"),
        ("nmi", "nmi"),
        ("kmeans_nmi", "k-means"),
        ("probe_error_trunk_100", "trunk, 100"),
        ("probe_error_trunk_1000", "1,000"),
        ("probe_error_trunk_all", "all"),
        ("probe_error_q_hidden_100", "Q, 100"),
        ("probe_error_q_hidden_1000", "1,000"),
        ("probe_error_q_hidden_all", "all"),
    ]
    print(
        "errors in %; one to one, majority: of the categories as a classifier, and of k-means on pixels with as many clusters; nmi: normalised mutual\n"
        "information with the digit; trunk, Q: a linear probe on the trunk and on Q's hidden layer with 100, 1,000 and all labels.\n"
        + (
            "no row is trained with warps"
            if not settings["K = 10"].warp
            else "K = 0 is trained without warps: part of its distance is that"
            if settings["regular GAN"].warp
            else "K = 0 and the regular GAN are trained without warps: part of their distance is that"
        )
    )
    print("".join(word.ljust(12) for word in ["", *(words for _, words in columns)]).rstrip())
    for words, metrics in results.items():
        print(
            "".join(
                cell.ljust(12)
                for cell in [
                    words,
                    *(f"{metrics[name]:.2f}" if name in metrics else "-" for name, _ in columns),
                ]
            ).rstrip()
        )


def main(options):
    refuse_idle(options)
    if options.table:
        return table(options)
    train_and_score(resolve(options))


if __name__ == "__main__":
    common.run_main(main, make_parser())
