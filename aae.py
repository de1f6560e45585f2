"""Adversarial autoencoders (Makhzani, Shlens, Jaitly, Goodfellow, Frey 2015, arXiv 1511.05644), beside the VAE and Wasserstein autoencoders.

    python aae.py                                         # Figure 2: a two-dimensional code in the shape of a Gaussian, in two minutes
    python aae.py --task semi --labels 100                # Table 2; the other tasks: likelihood, style, cluster, embed

An encoder gives the code z of an image x, a decoder gives the image back; a discriminator compares the codes of a batch with samples of a
prior p(z), and the encoder learns to fool it, until the aggregated posterior q(z), the codes of all images together, has the prior's shape.
Samples of the prior are all it needs, no density. With a second, categorical code y (and a second discriminator) the same net classifies from
few labels, or clusters without any.

Where the paper's things are
    Figure 1, the minimax game        Encoder, Decoder, Discriminator; discriminator_loss, encoder_loss; reconstruction_phase, regularisation_phase
    section 2, three kinds of q(z|x)  Encoder(kind=...), sample_code; the VAE's bound: kl_loss, sampled_kl_loss
    Figure 3, labels for the game     sees_labels, `ids` in regularisation_phase
    Figures 2, 3, 4                   --task prior [--prior mixture|swiss-roll] [--labels 10000]
    Table 1, Figure 5                 --task likelihood
    Figures 6, 7                      --task style
    Table 2, Figure 8                 --task semi --labels 100|1000|60000; classification_phase
    Table 3, Figure 9                 --task cluster --clusters 16|30
    Figures 10, 11                    --task embed --labels 1000|100|0, 11(d) --labels 100 --z-dim 10; ClusterHeads
    compared with it                  --regularizer kl (VAE), mmd (WAE-MMD), wae-gan (Tolstikhin et al. 2018, arXiv 1711.01558)

What makes WAE-GAN the AAE: it minimises  E c(x, G(z)) + lambda * D(q(z), p(z))  with c the squared error (here half of it) and D the same
game. The AAE takes turns, a step on each term with an optimiser of its own; WAE-GAN takes one step on the sum, with an explicit lambda
(--regularizer-weight).

Differences from the paper
 1. Adam for SGD, 12 to 72 epochs for thousands (rates warm up over 100 steps, stay for half the run, then fall, but for one: 5), batches of
    200, beside 100 labelled images (in `semi` with 10,000 labels or more 400), PyTorch's initial weights, 1000 hidden units also for clustering.
    `--recipe paper` takes the appendix's, as far as known (what we borrowed or guessed stands beside PAPER_BY_TASK); the scaled codes of 4,
    the label that style's discriminator sees (5), the held-out images of 7 and the re-estimated statistics of 2 stay. The encoder's
    adversarial loss is the non-saturating -log D; the paper prints the minimax only.
 2. Batch norm in the encoder's hidden layers but in `likelihood` and in `prior` without labels, in `style` in the head of z too; the paper found no
    use for it with labels, and for clustering has it in the heads (`--batch-norm all`). Its statistics are re-estimated on 20,000 clean training
    images after training.
 3. In `semi`, `cluster` and `embed` q(y|x) is kept steady by two terms in the encoder's step, of the classification phase or, without labels, of
    the regularisation phase: it must bear small perturbations of an unlabelled image (smoothness_loss, Miyato et al. 2015), and be the
    same for two small affine maps of it (warp). The training images are warped too, so this is no longer permutation-invariant as the
    paper is; `--warp 0 --warp-weight 0 --lr-encoder 3e-4 --noise .3` is, `--smooth-weight 0` leaves out the other.
 4. Noise is added to what the discriminator of y sees, one-hots and probabilities alike, which it tells apart too easily otherwise, and fooling
    it weighs 4. Without labels the batch's mean of q(y|x) is drawn to p(y) directly, too (balance_loss), or about half of the clusters die. The
    discriminator of z sees codes divided by `--prior-std`. The images' noise is .1, none in `prior` and `likelihood`; the paper has .3 in
    Table 2, and for clustering drops pixels.
 5. `likelihood` has a Gaussian encoder and dropout; the paper a deterministic one and, as far as known, no dropout (`--encoder
    deterministic --dropout 0`). In `style` the discriminator sees the label beside z, as in Figure 3, so that z must have the prior's shape
    within every class. Its rate is ten times the encoder's there, and does not fall with the others: of codes that move faster than it can
    follow it sees nothing. With labels `prior` trains on warped images.
 6. The priors of Figures 2 and 4 are given as pictures: their formulas are ours. So are the threshold of Figure 10's penalty and its weight.
 7. The last 10,000 training images are held out where something is chosen on them (the Parzen width, the names of clusters), and in `prior`, which
    trains on the other 50,000, as many as Figure 4's 10,000 labelled and 40,000 other images.
    Table 1 is computed with a million samples where the paper has ten million. TFD and SVHN's own networks are left out. Figure 9 shows the
    first test images of a cluster.
 8. The VAE's decoder is a Gaussian whose variance is lambda; WAE-MMD sums the kernel over seven scales as its released code does (its paper
    has one), and lambda stands beside half the squared error: for mmd that code's in these units, for kl and wae-gan ours, not tuned.
    WAE-MMD's encoder is deterministic, as in the paper's experiments; WAE-GAN's is that of the AAE beside it. All have this file's
    networks instead of convolutions.

The authors released no code.
"""

import math
from types import SimpleNamespace

from experiments import before as common  # before torch: it sets what torch reads at import

import torch
import torch.nn.functional as F
from torch import nn

# -------------------------------------------------------------------------------------------------------- networks


def mlp(inputs, hidden, batch_norm=False, dropout=0.0):
    """Two hidden ReLU layers, as everywhere in the paper: [B, inputs] -> [B, hidden]."""
    layers = []
    for n in (inputs, hidden):
        layers += [
            nn.Linear(n, hidden),
            *([nn.BatchNorm1d(hidden)] if batch_norm else []),
            nn.ReLU(),
            *([nn.Dropout(dropout)] if dropout else []),
        ]
    return nn.Sequential(*layers)


class Encoder(nn.Module):
    """q(y|x), q(z|x): images [B, ...] -> logits of y [B, classes] or None, mean of z [B, z_dim], log variance of z or None.

    kind (section 2): "deterministic": z is the mean; "gaussian": N(mean, exp(logvar)); "universal": z = f(x, eta), eta ~ N(0, I) of ten numbers
    (ours) beside the pixels. batch_norm: "none", "hidden" layers, or "all", the two heads included (the paper's for clustering). Uses mlp."""

    def __init__(
        self,
        inputs=784,
        z_dim=8,
        classes=0,
        hidden=1000,
        kind="deterministic",
        batch_norm="none",
        dropout=0.0,
    ):
        super().__init__()
        self.noise = 10 if kind == "universal" else 0
        self.body = mlp(inputs + self.noise, hidden, batch_norm != "none", dropout)
        head = lambda n: nn.Sequential(
            nn.Linear(hidden, n), *([nn.BatchNorm1d(n)] if batch_norm == "all" else [])
        )  # noqa: E731
        self.to_z = head(z_dim)
        self.to_logvar = nn.Linear(hidden, z_dim) if kind == "gaussian" else None
        self.to_y = head(classes) if classes else None

    def forward(self, x):
        x = x.flatten(1)
        if self.noise:
            x = torch.cat([x, torch.randn(len(x), self.noise, device=x.device)], 1)
        h = self.body(x)
        y, logvar = (head(h).float() if head else None for head in (self.to_y, self.to_logvar))
        return y, self.to_z(h).float(), logvar


class Decoder(nn.Module):
    """p(x|code): code [B, code_dim] -> logits of the pixels [B, outputs]. The code is z, or y and z side by side, or W_C^T y + z
    (ClusterHeads). Uses mlp."""

    def __init__(self, code_dim=8, outputs=784, hidden=1000, dropout=0.0):
        super().__init__()
        self.net = nn.Sequential(mlp(code_dim, hidden, dropout=dropout), nn.Linear(hidden, outputs))

    def forward(self, code):
        return self.net(code).float()


class Discriminator(nn.Module):
    """Logit [B] that a code [B, inputs] is a sample of the prior. Uses mlp.

    Beside a code the caller may put the label as a one-hot of classes + 1, the extra class for an unknown one (Figure 3)."""

    def __init__(self, inputs=8, hidden=1000):
        super().__init__()
        self.net = nn.Sequential(mlp(inputs, hidden), nn.Linear(hidden, 1))

    def forward(self, code):
        return self.net(code).float().squeeze(1)


class ClusterHeads(nn.Module):
    """Figure 10: the code W_C^T y + z [B, dim] of cluster probabilities y [B, clusters] and style z [B, dim]; row i of W_C is cluster i's head.

    W_C is learned, or, with as many dimensions as clusters, fixed at 10 I, the corners of a simplex (Figure 11d)."""

    def __init__(self, clusters=20, dim=2):
        super().__init__()
        fixed = dim == clusters
        self.weight = nn.Parameter(
            10 * torch.eye(dim) if fixed else 3 * torch.randn(clusters, dim),
            requires_grad=not fixed,
        )

    def forward(self, y, z):
        return y @ self.weight + z


# ---------------------------------------------------------------------------------------------------------- losses


def reconstruction_loss(reconstruction, x):
    """Half the squared Euclidean error (the appendix's), summed over pixels, mean over the batch. Both [B, D] in [0, 1]."""
    return 0.5 * (reconstruction - x).square().sum(1).mean()


def discriminator_loss(logits_prior, logits_code):
    """-log D(z) - log(1 - D(Enc(x))), z ~ p(z): the prior is the positive class. Means over the batch; 2 log 2 at chance. Logits [B] of D."""
    return F.softplus(-logits_prior).mean() + F.softplus(logits_code).mean()


def encoder_loss(logits_code):
    """-log D(Enc(x)), the non-saturating side of the generator, which the encoder is: mean over the batch; log 2 at chance. Logits [B]."""
    return F.softplus(-logits_code).mean()


def kl_loss(mu, logvar, std=1.0):
    """KL(N(mu, exp(logvar)) || N(0, std^2 I)) in nats, summed over dimensions, mean over the batch: the VAE's regulariser. mu, logvar [B, d]."""
    return (
        0.5 * ((mu.square() + logvar.exp()) / std**2 - 1 - logvar + 2 * math.log(std)).sum(1).mean()
    )


def sampled_kl_loss(z, mu, logvar, log_prior):
    """The same for any prior with a density, from one sample z [B, d] of q(z|x): log q(z|x) - log p(z), mean over the batch. log_prior: [B]."""
    log_q = -0.5 * ((z - mu).square() / logvar.exp() + logvar + math.log(2 * math.pi)).sum(1)
    return (log_q - log_prior).mean()


def mmd_loss(z, prior, std=1.0, scales=(1.0,)):
    """WAE-MMD's penalty: the unbiased U-statistic of MMD^2(q(z), p(z)) from codes z [n, d] and as many samples of the prior [n, d] (Algorithm 2).

    Kernel: inverse multiquadric C / (C + |a - b|^2), C = 2 d std^2 times each of `scales`, summed; the paper has the one scale, its code
    (.1, .2, .5, 1, 2, 5, 10). C is the expected squared distance of two samples of the Gaussian prior; that of the mixture and of the swiss
    roll is about twice the C of a deviation of 5. Near 0 when the two agree, and then as often negative."""
    n, d = z.shape
    total = 0.0
    square = lambda a, b: (a[:, None] - b).square().sum(2)  # noqa: E731       (not by a product, which bf16 would round)
    within_z, within_prior, across = square(z, z), square(prior, prior), square(z, prior)
    for scale in scales:
        c = 2 * d * std**2 * scale
        inner = sum(
            (c / (c + distance)).sum() - n for distance in (within_z, within_prior)
        )  # less the diagonal, where k = 1
        total = total + inner / (n * (n - 1)) - 2 * (c / (c + across)).mean()
    return total


def invariance_loss(target, logits):
    """KL(softmax(target) || softmax(logits)), mean over the batch: how far the answer to a changed copy (logits [B, K]) is from that to the
    image. The target gets no gradient."""
    target = target.detach()
    return (target.softmax(1) * (target.log_softmax(1) - logits.log_softmax(1))).sum(1).mean()


def balance_loss(y):
    """KL(p(y) || mean of q(y|x) over the batch), p(y) uniform, in nats. y: probabilities [B, K].

    An empty cluster gets hardly any gradient of its discriminator through the softmax, so it stays empty. Under this loss its logits receive -1/K in
    all, however small its share (down to 1e-30), most of it at the images that come nearest to it."""
    return -y.mean(0).clamp(min=1e-30).log().mean() - math.log(y.shape[1])


def smoothness_loss(classify, x, radius=2.0, probe=1.0):
    """KL(q(y|x) || q(y|x + r)), mean over the batch, for the r of length `radius` that (nearly) changes q most: virtual adversarial training.

    Miyato et al. 2015, arXiv 1507.00677, with one power iteration from a random direction of length `probe`. classify: x [B, D] -> logits.
    No gradient goes through the target q(y|x)."""
    with torch.no_grad():
        target = classify(x)
    direction = (probe * F.normalize(torch.randn_like(x), dim=1)).requires_grad_()
    (gradient,) = torch.autograd.grad(
        len(x) * invariance_loss(target, classify(x + direction)), direction
    )
    gradient = gradient / (
        gradient.abs().amax(1, keepdim=True) + 1e-30
    )  # some are too small for normalize alone
    return invariance_loss(target, classify(x + radius * F.normalize(gradient, dim=1)))


def head_distance_loss(heads, threshold):
    """Pushes cluster heads [K, dim] apart: sum over pairs of max(0, threshold - distance) (Figure 10; linear below a threshold, zero above)."""
    return (threshold - F.pdist(heads)).clamp(min=0).sum()


# ---------------------------------------------------------------------------------------------------------- priors
# Figures 2 and 4 show pictures of the priors, without formulas; the shapes here have the pictures' proportions.


def gaussian(n, dim=2, std=5.0, device="cpu"):
    """Samples [n, dim] of N(0, std^2 I)."""
    return std * torch.randn(n, dim, device=device)


def petals(device="cpu"):
    """The ten Gaussians of the mixture: means [10, 2], unit axes [10, 2, 2] (radial, tangential) and deviations [2] along them."""
    angle = torch.arange(10, device=device) * 2 * math.pi / 10
    radial = torch.stack([angle.cos(), angle.sin()], 1)
    tangential = torch.stack([-angle.sin(), angle.cos()], 1)
    return (
        10 * radial,
        torch.stack([radial, tangential], 1),
        torch.tensor([3.0, 0.7], device=device),
    )


def mixture(component):
    """Samples [n, 2] of the mixture of ten Gaussians laid out like petals, each of its `component` int64 [n] in 0..9."""
    mean, axes, std = petals(component.device)
    along = torch.randn(len(component), 2, device=component.device) * std
    return mean[component] + (along[:, :, None] * axes[component]).sum(1)


def mixture_log_density(z):
    """log p(z, component) of the mixture: [n, 2] -> [n, 10]; its logsumexp is log p(z), its argmax the component that z lies in."""
    mean, axes, std = petals(z.device)
    along = ((z[:, None] - mean)[:, :, None] * axes).sum(3) / std  # [n, 10, 2]
    return -0.5 * along.square().sum(2) - std.log().sum() - math.log(2 * math.pi) - math.log(10)


def swiss_roll(component, noise=0.3):
    """Samples [n, 2] of a swiss roll of outer radius 15; `component` int64 [n] says which tenth of the roll."""
    u = (component + torch.rand(len(component), device=component.device)) / 10
    return roll_curve(u) + noise * torch.randn(len(component), 2, device=component.device)


def roll_curve(u):
    """The middle of the roll at u in [0, 1]: [n] -> [n, 2]."""
    radius, angle = 15 * u.sqrt(), 4 * math.pi * u.sqrt()
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1)


def sample_prior(prior, component, dim=2, std=5.0):
    """Samples [n, dim] of the prior named, on the device of `component`: int64 [n], heeded by the priors that have components."""
    if prior == "gaussian":
        return gaussian(len(component), dim, std, component.device)
    return mixture(component) if prior == "mixture" else swiss_roll(component)


def draw_prior(options, n, device, component=None):
    """Samples [n, z_dim] of a run's prior; component: int64 [n], by default at random."""
    component = torch.randint(0, 10, (n,), device=device) if component is None else component
    return sample_prior(options.prior, component, options.z_dim, options.prior_std)


def component_of(prior, z):
    """The component int64 [n] of a two-dimensional prior that each code [n, 2] lies in: the likeliest, or the nearest tenth of the roll."""
    if prior == "mixture":
        return mixture_log_density(z).argmax(1)
    u = (torch.arange(2000, device=z.device) + 0.5) / 2000
    return torch.cat([torch.cdist(part, roll_curve(u)).argmin(1) for part in z.split(1000)]) // 200


# -------------------------------------------------------------------------------------------------------- training


def build(options, pixels):
    """The networks of a run: enc, dec, disc (of z; kl and mmd do not use it), disc_y (where there is a y, else None), heads (of `embed`,
    else None)."""
    o = options
    classes = (
        o.clusters if unsupervised(o) else 10 if supervised(o) else 0
    )  # style's label is given, not inferred
    code_dim = o.z_dim + (0 if o.task == "embed" else 10 if o.task == "style" else classes)
    beside = 11 if sees_labels(o) else 0
    nets = SimpleNamespace(
        enc=Encoder(pixels, o.z_dim, classes, o.hidden, o.encoder, o.batch_norm, o.dropout),
        dec=Decoder(code_dim, pixels, o.hidden, o.dropout),
        disc=Discriminator(o.z_dim + beside, o.hidden),
        disc_y=Discriminator(classes, o.hidden) if classes else None,
        heads=ClusterHeads(classes, o.z_dim) if o.task == "embed" else None,
    )
    if o.init_std:
        for net in present(nets):
            for layer in net.modules():
                if isinstance(layer, nn.Linear):
                    nn.init.normal_(layer.weight, std=o.init_std)
                    nn.init.zeros_(layer.bias)
    return nets


def present(nets):
    return [
        net for net in (nets.enc, nets.dec, nets.disc, nets.disc_y, nets.heads) if net is not None
    ]


def decoder_code(nets, y, z):
    """What the decoder sees: z alone, or y (probabilities or one-hot) beside it, or W_C^T y + z."""
    if y is None:
        return z
    return torch.cat([y, z], 1) if nets.heads is None else nets.heads(y, z)


def corrupt(x, options):
    """The encoder's input in training: Gaussian noise and dropped pixels (the appendix's); the target stays clean."""
    if options.input_dropout:
        x = F.dropout(x, options.input_dropout)
    return x + options.noise * torch.randn_like(x) if options.noise else x


def warp(x, amount=1.0):
    """Small random affine maps, another for each image [B, C, H, W]: up to 9 degrees, 10 % of the size, a shear of 0.2 and a pixel of 28,
    times amount."""
    n, device = len(x), x.device
    angle, size, shear = (
        amount * c * (2 * torch.rand(n, device=device) - 1) for c in (0.15, 0.1, 0.2)
    )
    cos, sin, size = angle.cos(), angle.sin(), 1 + size
    linear = torch.stack(
        [
            torch.stack([size * cos, shear - size * sin], 1),
            torch.stack([size * sin, size * cos], 1),
        ],
        1,
    )
    shift = amount / 14 * (2 * torch.rand(n, 2, 1, device=device) - 1)
    with torch.autocast(
        device.type, enabled=False
    ):  # bf16 would round the grid, by up to .14 pixels
        return F.grid_sample(
            x,
            F.affine_grid(torch.cat([linear, shift], 2), x.shape, align_corners=False),
            align_corners=False,
        )


def sample_code(mu, logvar):
    """z ~ q(z|x) [B, d]: the mean where q is deterministic (logvar None)."""
    return mu if logvar is None else mu + torch.randn_like(mu) * (logvar / 2).exp()


def posterior(nets, x):
    """Probabilities of y (or None), a sample of q(z|x), its mean (of a universal encoder: the sample again) and log variance (or None)."""
    logits, mu, logvar = nets.enc(x)
    z = sample_code(mu, logvar)
    return logits if logits is None else logits.softmax(1), z, mu, logvar


def update(optimiser, loss):
    """One step of `optimiser` on `loss`; the gradient reaches its own parameters and nothing else."""
    loss.backward(inputs=[p for group in optimiser.param_groups for p in group["params"]])
    optimiser.step()
    optimiser.zero_grad()


def reconstruction_phase(nets, optimiser, x, noisy, given, options):
    """Enc, Dec (and heads): minimise  1/2 |x - Dec(y, z)|^2,  y, z from Enc(noisy x), or y the label where it is given (Figure 6).

    The VAE and the WAEs add their regulariser here, times lambda, and have no other phase for the encoder. Returns loss and regulariser."""
    y, z, mu, logvar = posterior(nets, noisy)
    loss = reconstruction_loss(
        torch.sigmoid(nets.dec(decoder_code(nets, y if given is None else given, z))), x
    )
    extra = loss.new_zeros(())
    if options.regularizer == "kl" and options.prior == "mixture":
        extra = sampled_kl_loss(z, mu, logvar, mixture_log_density(z).logsumexp(1))
    elif options.regularizer == "kl":
        extra = kl_loss(mu, logvar, options.prior_std)
    elif options.regularizer == "mmd":
        extra = mmd_loss(
            z,
            draw_prior(options, len(z), z.device),
            options.prior_std,
            (0.1, 0.2, 0.5, 1, 2, 5, 10),
        )
    elif options.regularizer == "wae-gan":
        extra = encoder_loss(nets.disc(z / options.prior_std))
    total = loss + options.regularizer_weight * extra
    if nets.heads is not None:
        total = total + options.head_weight * head_distance_loss(
            nets.heads.weight, options.head_distance
        )
    update(optimiser, total)
    return loss, extra


def regularisation_phase(nets, optimiser_d, optimiser_e, noisy, ids, views, options):
    """Disc: minimise  -log D(z) - log(1 - D(Enc(x))),  z ~ p(z);  then Enc: minimise  -log D(Enc(x)).  With a y the same game on y, p(y) uniform,
    weighed by --y-weight for the encoder, which keeps q(y|x) steady here (difference 3) where no classification phase does.

    ids: class of each image, 10 where unknown, for the label-aware discriminator; else None. views: see steadiness.
    Returns the losses of Disc and Enc, smoothness, invariance and balance."""
    with torch.set_grad_enabled(
        optimiser_e is not None
    ):  # without an encoder's step (WAE-GAN) the codes need no graph
        y, z, _, _ = posterior(nets, noisy)
    component = torch.randint(0, 10, (len(z),), device=z.device)
    if ids is not None:  # a labelled image's positive is a sample of its own component
        component = torch.where(ids < 10, ids, component)
    prior = draw_prior(options, len(z), z.device, component)
    real, fake = (
        prior / options.prior_std,
        z / options.prior_std,
    )  # numbers of about 1 beside a one-hot
    if y is not None:
        real_y, fake_y = (
            F.one_hot(torch.randint(0, y.shape[1], (len(y),), device=y.device), y.shape[1]).to(y),
            y,
        )
        if options.code_noise:  # difference 4
            real_y, fake_y = (
                code + options.code_noise * torch.randn_like(code) for code in (real_y, fake_y)
            )
    if ids is not None:  # Figure 3: the label, or the extra class, beside the code
        real, fake = (torch.cat([code, F.one_hot(ids, 11).to(z)], 1) for code in (real, fake))

    loss_d = discriminator_loss(
        *nets.disc(torch.cat([real, fake.detach()])).chunk(2)
    )  # D(prior), D(code)
    if y is not None:
        loss_d = loss_d + discriminator_loss(
            *nets.disc_y(torch.cat([real_y, fake_y.detach()])).chunk(2)
        )
    update(optimiser_d, loss_d)
    if optimiser_e is None:  # WAE-GAN: the encoder's side stands in the reconstruction phase
        zero = loss_d.new_zeros(())
        return loss_d, zero, zero, zero, zero
    loss_e = encoder_loss(nets.disc(fake))  # the same codes, the new discriminator
    balance = loss_e.new_zeros(())
    if y is not None:
        loss_e = loss_e + options.y_weight * encoder_loss(nets.disc_y(fake_y))
        balance = balance_loss(y)
    smooth, same = steadiness(nets, views, options)
    update(
        optimiser_e,
        loss_e
        + options.balance_weight * balance
        + options.smooth_weight * smooth
        + options.warp_weight * same,
    )
    return loss_d, loss_e, smooth, same, balance


def steadiness(nets, views, options):
    """Difference 3: q(y|x) must change little under the small perturbation of x that changes it most, and be the same for two noisy warps
    of an image.

    views: (x, noisy, again) [B, D] each, a warp of the images, the same with noise, another warp with noise; None for no such terms. Returns both."""
    smooth = same = torch.zeros((), device=next(nets.enc.parameters()).device)
    if views is None:
        return smooth, same
    x, noisy, again = views
    classify = lambda x: nets.enc(x)[0]  # noqa: E731
    if options.smooth_weight:
        smooth = smoothness_loss(classify, x, options.smooth_radius)
    if options.warp_weight:
        with torch.no_grad():
            target = classify(noisy)
        same = invariance_loss(target, classify(again))
    return smooth, same


def classification_phase(nets, optimiser, x, y, views, options):
    """Enc: minimise  -log q(y|x)  on a labelled batch (section 5), and keep q(y|x) steady (difference 3). Returns loss, smoothness, invariance."""
    loss = F.cross_entropy(nets.enc(x)[0], y)
    smooth, same = steadiness(nets, views, options)
    update(optimiser, loss + options.smooth_weight * smooth + options.warp_weight * same)
    return loss, smooth, same


def make_optimiser(parameters, options, lr, momentum):
    """Adam with beta1 = momentum, or the paper's SGD with it."""
    parameters = [p for p in parameters if p.requires_grad]
    if options.optimiser == "sgd":
        return torch.optim.SGD(parameters, lr, momentum=momentum)
    return torch.optim.Adam(
        parameters, lr, betas=(momentum, 0.999), fused=parameters[0].device.type != "mps"
    )


def schedule(step, total, epoch, options, end=0.01):
    """Share of the full rates. linear (ours): warm-up over 100 steps, constant to half the run, linear to `end`; steps (paper): / 10 after epochs
    50 and, but for clustering, 1000."""
    if options.schedule == "steps":
        return 0.1 ** ((epoch >= 50) + (epoch >= 1000 and not unsupervised(options)))
    return min(1, (step + 1) / min(100, total / 10)) * min(1, max(end, 2 * (1 - step / total)))


def train(run, nets, data, labelled):
    """Sections 2 and 5: the phases in turn on every batch. data: a common.Split on the device; labelled: indices of the images whose label
    is used."""
    opt, device = run.options, run.device
    for net in present(nets):
        net.to(device).train()
    autoencoder = [
        *nets.enc.parameters(),
        *nets.dec.parameters(),
        *(nets.heads.parameters() if nets.heads else ()),
    ]
    judges = [*nets.disc.parameters(), *(nets.disc_y.parameters() if nets.disc_y else ())]
    opt_r = make_optimiser(autoencoder, opt, opt.lr, 0.9)
    opt_d = make_optimiser(judges, opt, opt.lr_adversary, opt.beta1)
    opt_e = (
        make_optimiser(nets.enc.parameters(), opt, opt.lr_encoder, opt.beta1)
        if opt.regularizer == "gan"
        else None
    )
    opt_c = (
        make_optimiser(nets.enc.parameters(), opt, opt.lr_labels, 0.9) if supervised(opt) else None
    )
    rates = [
        (o, o.param_groups[0]["lr"], opt.adversary_end if o is opt_d else 0.01)
        for o in (opt_r, opt_d, opt_e, opt_c)
        if o is not None
    ]
    run.track(
        **{name: net for name, net in vars(nets).items() if net is not None},
        **{f"optimiser_{k}": o for k, (o, _, _) in enumerate(rates)},
    )
    known = torch.full_like(data.y, 10)  # the label, or 10 for one that the method must not see
    known[labelled] = data.y[labelled]
    total = opt.epochs * math.ceil(len(data.y) / opt.batch_size)
    zero = torch.zeros((), device=device)

    for epoch in run.epochs():
        for i in run.batches(torch.randperm(len(data.y)), opt.batch_size):
            for optimiser, rate, end in rates:
                optimiser.param_groups[0]["lr"] = rate * schedule(run.step, total, epoch, opt, end)
            x = image = common.to_float(data.x[i])
            if opt.warp:
                x = warp(image, opt.warp)
            x = x.flatten(1)
            noisy = corrupt(x, opt)
            given = (
                F.one_hot(known[i], 10).float() if opt.task == "style" else None
            )  # Figure 6: y is the label
            ids = known[i] if sees_labels(opt) else None
            views = None  # difference 3: for the classification phase, or, without labels, the regularisation phase
            if nets.disc_y is not None:
                again = corrupt(warp(image, opt.warp).flatten(1), opt) if opt.warp_weight else noisy
                views = x, noisy, again
            with run.autocast():
                loss, extra = reconstruction_phase(nets, opt_r, x, noisy, given, opt)
                loss_d = loss_e = loss_c = smooth = same = balance = zero
                if opt.regularizer in ("gan", "wae-gan"):
                    loss_d, loss_e, smooth, same, balance = regularisation_phase(
                        nets, opt_d, opt_e, noisy, ids, None if supervised(opt) else views, opt
                    )
                if supervised(opt):
                    j = labelled[
                        torch.randint(0, len(labelled), (opt.labelled_batch,), device=device)
                    ]
                    few = common.to_float(data.x[j])
                    few = corrupt((warp(few, opt.warp) if opt.warp else few).flatten(1), opt)
                    loss_c, smooth, same = classification_phase(
                        nets, opt_c, few, known[j], views, opt
                    )
            run.log(
                reconstruction=loss,
                regularizer=extra,
                discriminator=loss_d,
                encoder=loss_e,
                classification=loss_c,
                smoothness=smooth,
                invariance=same,
                balance=balance,
            )
    settle_batch_norm(nets.enc, data.x)
    run.save()


def settle_batch_norm(enc, x, batch_size=500):
    """Batch norm's statistics anew, from clean images: in training they mix clean, noisy and perturbed ones. x: uint8 [N, ...]. Leaves it
    in eval mode."""
    with common.own_random_numbers():
        common.settle_batch_norm(enc, ((part,) for part in common.settling_parts(x, batch_size)))


def sees_labels(options):
    """Does the discriminator of z see labels? In Figure 4, and in `style` (difference 5)."""
    return options.task == "style" or options.task == "prior" and options.labels > 0


def unsupervised(options):
    """A y without labels: clusters, to be named after training."""
    return options.task == "cluster" or options.task == "embed" and not options.labels


def supervised(options):
    """Does this task have the classification phase?"""
    return options.task in ("semi", "embed") and options.labels > 0


def choose_labelled(y, count, seed):
    """Indices of `count` training images, as many of every class, drawn by the seed; all images where count is at least their number."""
    if count >= len(y):
        return torch.arange(len(y), device=y.device)
    if count // 10 > torch.bincount(y).min():
        raise common.UserError(
            f"--labels {count} asks for more of a class than there are: the smallest has {int(torch.bincount(y).min())}; "
            f"for all say {-(-len(y) // 10) * 10}"
        )
    rng = torch.Generator().manual_seed(seed)
    of_class = [(y.cpu() == label).nonzero()[:, 0] for label in range(10)]
    return torch.cat(
        [index[torch.randperm(len(index), generator=rng)[: count // 10]] for index in of_class]
    ).to(y.device)


# ------------------------------------------------------------------------------------------------------ evaluation


@torch.no_grad()
def encode(nets, x, sample=False):
    """Codes of uint8 images [N, C, H, W]: logits of y [N, classes] or None, and z [N, z_dim], its mean or, on request (of a
    universal encoder always), a sample of q(z|x)."""
    assert x.dtype == torch.uint8, "encode takes uint8 images; common.to_float is done here"
    parts, device = [], next(nets.enc.parameters()).device
    for part in x.split(1000):
        logits, mu, logvar = nets.enc(common.to_float(part.to(device)))
        parts.append((logits, sample_code(mu, logvar) if sample else mu))
    y, z = zip(*parts)
    return None if y[0] is None else torch.cat(y), torch.cat(z)


@torch.no_grad()
def decode(nets, code):
    """Images [N, pixels] in [0, 1] of decoder codes [N, code_dim] (`decoder_code` makes them of y and z)."""
    return torch.cat([torch.sigmoid(nets.dec(part)) for part in code.split(1000)])


def prior_scores(nets, options, data, test):
    """Does q(z) have the shape of p(z)? Codes of test images; samples of q(z|x) where it is not deterministic.

    code_test: accuracy in percent (50 at best) of a two-layer classifier that tells codes from samples of the prior, trained on the training images'
    codes; code_mmd: squared MMD of the first 5,000 codes against the prior; code_mmd_prior: of one more draw of the prior against it;
    component_accuracy: share of codes in the component of their label; reconstruction_mse: over pixels in [0, 1]."""
    device = data.x.device
    (_, z), (_, z_) = encode(nets, data.x, sample=True), encode(nets, test.x, sample=True)
    prior, prior_ = draw_prior(options, len(z), device), draw_prior(options, len(z_), device)
    which = lambda codes: torch.arange(2, device=device).repeat_interleave(len(codes))  # noqa: E731
    error = common.probe(
        torch.cat([z, prior]),
        which(z),
        torch.cat([z_, prior_]),
        which(z_),
        epochs=1 if options.dry_run else 20,
    )
    mean = reconstructions(nets, test)
    scores = {
        "code_test": 100 - error.item(),
        "reconstruction_mse": (mean - common.to_float(test.x).flatten(1)).square().mean().item(),
        "code_mmd": mmd_loss(z_[:5000], prior_[:5000], options.prior_std).item(),
        "code_mmd_prior": mmd_loss(
            draw_prior(options, len(z_[:5000]), device), prior_[:5000], options.prior_std
        ).item(),
    }
    if options.prior != "gaussian":
        scores["component_accuracy"] = (
            component_of(options.prior, z_) == test.y
        ).float().mean().item() * 100
    return scores


def reconstructions(nets, test):
    """Images [N, pixels] decoded from the test images' own codes."""
    y, z = encode(nets, test.x)
    return decode(nets, decoder_code(nets, None if y is None else y.softmax(1), z))


def likelihood_scores(nets, options, held_out, test):
    """Table 1: mean log-likelihood in nats of the test images under a Parzen window on decoded samples of the prior, with its standard error.

    The width is chosen on held-out training images (all, or 500 for the million), for each number of samples anew: parzen_10k (.._sem, .._sigma) with
    10,000 samples as in the paper's first column, of the AAE parzen_1m with a million (its second has ten million). More samples are a tighter lower
    bound."""
    device = test.x.device
    x, held = (common.to_float(part.x).flatten(1) for part in (test, held_out))
    scores = {}
    # (name, parts of 10,000 samples, held-out images that choose the width)
    for name, parts, used in (("10k", 1, len(held)), ("1m", 100, 500))[
        : 2 if options.regularizer == "gan" else 1
    ]:
        parts, size = (min(parts, 2), 500) if options.dry_run else (parts, 10_000)

        def density(images, sigmas):  # samples are drawn in parts, the same ones at each call
            with common.own_random_numbers(options.seed):
                each = [
                    common.parzen_log_likelihood(
                        images, decode(nets, draw_prior(options, size, device)), sigmas
                    )
                    for _ in range(parts)
                ]
            return torch.stack(each).logsumexp(0) - math.log(parts)

        # more samples want a narrower window
        sigmas = (
            [0.08 * 1.06**k for k in range(24)]
            if parts == 1
            else [scores["parzen_10k_sigma"] * 1.06**-k for k in range(10)]
        )
        sigma = sigmas[density(held[:used], sigmas).mean(1).argmax()]
        log_p = density(x, [sigma])[0]
        scores.update(
            {
                f"parzen_{name}": log_p.mean().item(),
                f"parzen_{name}_sem": (log_p.std() / len(x) ** 0.5).item(),
                f"parzen_{name}_sigma": sigma,
            }
        )
    return {
        **scores,
        "reconstruction_mse": (reconstructions(nets, test) - x).square().mean().item(),
    }


def style_scores(nets, options, judge, data, test):
    """Figure 7 as numbers, percent. style_accuracy: Dec(y, z), z ~ p(z), shows the digit y (a judge reads it); z_error: test error of a
    probe that reads the digit from z; chance_error: of always answering the commonest digit, which z_error reaches when z says nothing;
    reconstruction_mse: with the true label."""
    y = torch.arange(10, device=test.x.device).repeat(100 if options.dry_run else 1000)
    images = decode(
        nets, torch.cat([F.one_hot(y, 10).float(), draw_prior(options, len(y), y.device)], 1)
    ).view(-1, *test.x.shape[1:])
    (_, z), (_, z_) = encode(nets, data.x), encode(nets, test.x)
    own = decode(nets, torch.cat([F.one_hot(test.y, 10).float(), z_], 1))
    return {
        "style_accuracy": (judge.classify(images) == y).float().mean().item() * 100,
        "z_error": common.probe(z, data.y, z_, test.y, epochs=1 if options.dry_run else 20).item(),
        "chance_error": common.chance_error(data.y, test.y).item(),
        "reconstruction_mse": (own - common.to_float(test.x).flatten(1)).square().mean().item(),
    }


def baseline_error(run, data, test, labelled):
    """Table 2's first row: the encoder alone, with the same labels and noise; no autoencoder, no warps, nothing from unlabelled images but
    batch norm's statistics. Test error, percent.

    Ten passes over the labels, at least 1,000 steps, of at most 100 images, at rates that fall to 0, with PyTorch's initial weights, whatever the recipe."""
    opt = run.options
    net = Encoder(
        data.x[0].numel(), 1, 10, opt.hidden, batch_norm=opt.batch_norm, dropout=opt.dropout
    ).to(data.x.device)
    optimiser = make_optimiser(
        [*net.body.parameters(), *net.to_y.parameters()], opt, opt.lr_labels, 0.9
    )
    batch = min(100, opt.labelled_batch)
    total = 20 if opt.dry_run else max(1000, 10 * len(labelled) // batch)
    for step in range(total):
        optimiser.param_groups[0]["lr"] = opt.lr_labels * (1 - step / total)
        j = labelled[torch.randint(0, len(labelled), (batch,), device=data.x.device)]
        with run.autocast():
            update(
                optimiser,
                F.cross_entropy(
                    net(corrupt(common.to_float(data.x[j]).flatten(1), opt))[0], data.y[j]
                ),
            )
    settle_batch_norm(net, data.x.flatten(1))
    return (
        encode(SimpleNamespace(enc=net), test.x)[0].argmax(1) != test.y
    ).float().mean().item() * 100


def cluster_scores(nets, held_out, test):
    """Table 3, percent: every cluster is named after the held-out image it is surest of (the paper's rule), and after the majority of its images."""
    scores, scores_ = (
        F.log_softmax(encode(nets, part.x)[0].cpu().double(), 1) for part in (held_out, test)
    )
    errors = {
        word: common.cluster_error(
            scores_, test.y.cpu(), common.name_clusters(scores, held_out.y.cpu(), rule)
        )
        for word, rule in (("cluster_error", "exemplar"), ("cluster_error_majority", "majority"))
    }
    return {
        **errors,
        "clusters_used": float(
            (torch.bincount(scores_.argmax(1), minlength=scores_.shape[1]) > 0).sum()
        ),
    }


# --------------------------------------------------------------------------------------------------------- figures


def circles(center, std, deviations=(1, 2, 3)):
    """Circles of so many deviations around a point: curves [100, 2] for a scatter figure."""
    t = torch.linspace(0, 2 * math.pi, 100)
    return [center + k * std * torch.stack([t.cos(), t.sin()], 1) for k in deviations]


def outline(options):
    """Curves [n, 2] that show where a prior lies."""
    if options.prior == "gaussian":
        return circles(torch.zeros(2), options.prior_std)
    if options.prior == "swiss-roll":
        return [roll_curve(torch.linspace(0, 1, 400))]
    mean, axes, std = petals()
    (ellipse,) = circles(torch.zeros(2), 1, (2,))
    return [m + (ellipse * std) @ a for m, a in zip(mean, axes)]


def percentiles(n):
    """The n numbers that cut a standard normal into parts of equal weight, from 5 to 95 percent."""
    return torch.distributions.Normal(0.0, 1.0).icdf(torch.linspace(0.05, 0.95, n))


def grid_of(a, b):
    """All pairs of a [n] (right) and b [m] (up, as in the scatter): [m * n, 2], row by row from the top."""
    return torch.stack([a.repeat(len(b)), b.flip(0).repeat_interleave(len(a))], 1)


def figure_codes(nets, options, test, path, words):
    """Figures 2(a-d), 4(a, c), 11: codes of the test images."""
    y, z = encode(nets, test.x, sample=True)
    if nets.heads is None:
        return common.figure_scatter(path, z, test.y, words, outline(options))
    heads = nets.heads.weight.detach().cpu()
    codes = nets.heads(y.softmax(1), z).detach()
    if codes.shape[1] > 2:  # Figure 11(d): heads that are simplex corners, mapped onto a circle
        angle = torch.arange(len(heads)) * 2 * math.pi / len(heads)
        to_circle = torch.linalg.lstsq(
            heads, 10 * torch.stack([angle.cos(), angle.sin()], 1)
        ).solution
        return common.figure_scatter(
            path, codes.cpu() @ to_circle, test.y, words, marks=heads @ to_circle
        )
    common.figure_scatter(
        path,
        codes,
        test.y,
        words,
        [c for head in heads for c in circles(head, options.prior_std, (2,))],
        heads,
    )


def figure_manifold(nets, options, test, path):
    """Figures 2(e) and 4(b, d): images along the prior's percentiles; of the first three components; along the roll."""
    shape, device = test.x.shape[1:], test.x.device
    if options.prior == "gaussian":
        z, columns, words = (
            options.prior_std * grid_of(percentiles(16), percentiles(16)),
            16,
            "Images at the prior's percentiles (Fig. 2e)",
        )
    elif options.prior == "mixture":
        mean, axes, std = petals()
        square = grid_of(percentiles(10), percentiles(10)) * std
        z = torch.stack(
            [(m + square @ a).view(10, 10, 2) for m, a in zip(mean[:3], axes[:3])], 1
        ).reshape(-1, 2)  # side by side
        columns, words = (
            30,
            "Components 0, 1, 2: along the petal to the right, across it upwards (Fig. 4b)",
        )
    else:
        z, columns, words = (
            roll_curve((torch.arange(100) + 0.5) / 100),
            20,
            "A walk along the roll, from its centre (Fig. 4d)",
        )
    gaps = (9, 19) if options.prior == "mixture" else ()
    common.figure_grid(
        path, decode(nets, z.to(device)).view(-1, *shape), columns, words, after_column=gaps
    )


def figure_samples(nets, options, data, path, rows=8):
    """Figure 5: samples; the last column is the training image nearest to the sample left of it (Euclidean)."""
    shape = data.x.shape[1:]
    images = decode(nets, draw_prior(options, rows * 10, data.x.device)).view(rows, 10, -1)
    pixels = common.to_float(data.x).flatten(1)
    near = pixels[common.nearest(images[:, -1], pixels)[:, 0]]
    common.figure_grid(
        path,
        torch.cat([images, near[:, None]], 1).view(-1, *shape),
        11,
        "Samples; right: the training image nearest to the last (Fig. 5)",
        after_column=9,
    )


def figure_style(nets, options, test, path, rows=10):
    """Figure 7: a fixed z ~ p(z) a row, the label along the columns."""
    k = 10
    z = draw_prior(options, rows, test.x.device).repeat_interleave(k, 0)
    code = decoder_code(nets, torch.eye(k, device=z.device).repeat(rows, 1), z)
    common.figure_grid(
        path,
        decode(nets, code).view(-1, *test.x.shape[1:]),
        k,
        "Style and content (Fig. 7)",
        "y: the label",
        "z from the prior, one a row",
    )


def figure_clusters(nets, options, test, path, shown=14):
    """Figure 9: a cluster a row; left its head (y one-hot, z = 0), then the first test images that fall into it. Clusters without any are
    left out."""
    logits, _ = encode(nets, test.x)
    k, shape = options.clusters, test.x.shape[1:]
    heads = decode(
        nets,
        decoder_code(
            nets,
            torch.eye(k, device=logits.device),
            torch.zeros(k, options.z_dim, device=logits.device),
        ),
    ).view(k, 1, *shape)
    members = torch.ones(k, shown, *shape, device=logits.device)
    used = logits.argmax(1).unique()
    for cluster in used:
        mine = common.to_float(test.x[logits.argmax(1) == cluster][:shown])
        members[cluster, : len(mine)] = mine
    common.figure_grid(
        path,
        torch.cat([heads, members], 1)[used].flatten(0, 1),
        shown + 1,
        f"Clusters (Fig. 9), {len(used)} of {k} in use: the head, then test images",
        after_column=0,
    )


def evaluate(run, nets, data, held_out, test, labelled):
    """Scores and figures of a task. Returns the flat metrics and the rows of the printed table."""
    opt, task = run.options, run.options.task
    for net in present(nets):
        net.eval()
    at = lambda name: run.folder / f"{name}.png"  # noqa: E731
    if task == "prior":
        scores = prior_scores(nets, opt, data, test)
        figure_codes(
            nets,
            opt,
            test,
            at("codes"),
            f"Codes of test images, {opt.regularizer}, prior: {opt.prior} (Fig. 2, 4)",
        )
        figure_manifold(nets, opt, test, at("manifold"))
        rows = [
            ("codes told from the prior, accuracy in %", "code_test", "-", "50 at best"),
            (
                "squared MMD of codes and prior",
                "code_mmd",
                "-",
                f"prior and prior {scores['code_mmd_prior']:.2g}",
            ),
            ("reconstruction MSE", "reconstruction_mse", "-", ""),
        ]
        if "component_accuracy" in scores:
            rows.insert(
                0,
                (
                    "code in its label's component, %",
                    "component_accuracy",
                    "-",
                    "unaware of labels: about 10",
                ),
            )
    elif task == "likelihood":
        scores = likelihood_scores(nets, opt, held_out, test)
        figure_samples(nets, opt, data, at("samples"))
        ours = opt.regularizer == "gan" and opt.dataset == "mnist"
        rows = [
            (
                "Parzen log-likelihood, 10K samples, nats",
                "parzen_10k",
                "340 +- 2" if ours else "-",
                f"standard error {scores['parzen_10k_sem']:.1f}",
            ),
            ("reconstruction MSE", "reconstruction_mse", "-", ""),
        ]
        if "parzen_1m" in scores:
            rows.insert(
                1,
                (
                    "Parzen log-likelihood, 1M samples, nats",
                    "parzen_1m",
                    "427 ? (10M)" if ours else "-",
                    f"standard error {scores['parzen_1m_sem']:.1f}",
                ),
            )
    elif task == "style":
        scores = style_scores(
            nets,
            opt,
            common.load_judge(opt.dataset, opt.data, run.device, quick=opt.dry_run),
            data,
            test,
        )
        figure_style(nets, opt, test, at("style"))
        rows = [
            ("image shows the label asked for, z ~ prior, %", "style_accuracy", "-", "100 at best"),
            (
                "error of the probe on z, %",
                "z_error",
                "-",
                f"commonest label {scores['chance_error']:.1f}",
            ),
            ("reconstruction MSE", "reconstruction_mse", "-", ""),
        ]
    elif supervised(opt):
        logits, _ = encode(nets, test.x)
        scores = {
            "test_error": (logits.argmax(1) != test.y).float().mean().item() * 100,
            "baseline_error": baseline_error(run, data, test, labelled),
        }
        table2 = {
            ("semi", 10, 100): ("1.90 +- 0.10", "25.80 ?"),
            ("semi", 10, 1000): ("1.60 +- 0.08 ?", "8.73 ?"),
            ("semi", 10, 60000): ("0.85 +- 0.02", "1.25 ?"),
            ("embed", 2, 1000): ("4.20 ?", "-"),
            ("embed", 2, 100): ("6.08 ?", "-"),
            ("embed", 10, 100): ("3.90 ?", "-"),
        }
        paper, plain = (
            table2.get((task, opt.z_dim, opt.labels), ("-", "-"))
            if opt.dataset == "mnist"
            else ("-", "-")
        )
        rows = [
            (
                f"test error{', images warped' if opt.warp or opt.warp_weight else ''}, %",
                "test_error",
                paper,
                "",
            ),
            ("the encoder alone, same labels, no warps, %", "baseline_error", plain, ""),
        ]
    else:
        scores = cluster_scores(nets, held_out, test)
        if task == "embed":
            scores["test_error"] = scores["cluster_error"]
        table3 = {
            ("cluster", 16, 5): "9.55 +- 2.05",
            ("cluster", 30, 5): "4.10 +- 1.13",
            ("embed", 20, 2): "13.46 ?",
        }
        paper = table3.get((task, opt.clusters, opt.z_dim), "-") if opt.dataset == "mnist" else "-"
        rows = [
            ("error, clusters named by their surest image, %", "cluster_error", paper, ""),
            (
                "error, clusters named by majority, %",
                "cluster_error_majority",
                "-",
                f"clusters in use {scores['clusters_used']:.0f}",
            ),
        ]
        figure_clusters(nets, opt, test, at("clusters"))
    if task == "embed":
        figure_codes(
            nets,
            opt,
            test,
            at("codes"),
            f"Codes W_C^T y + z of test images, {opt.labels or 'no'} labels (Fig. 11)",
        )
    if task == "semi":
        figure_style(nets, opt, test, at("style"))
    panels = [("reconstruction", ("reconstruction",), "half squared error, summed over pixels")]
    if opt.regularizer != "gan":
        panels.append(("regulariser", ("regularizer",), "before its weight lambda"))
    if "gan" in opt.regularizer:
        panels.append(
            (
                "adversaries",
                ("discriminator", *(["encoder"] if opt.regularizer == "gan" else [])),
                "nats",
            )
        )
    if nets.disc_y is not None:
        panels.append(
            (
                f"{'labels' if supervised(opt) else 'balance'} and steadiness of y",
                ("classification" if supervised(opt) else "balance", "smoothness", "invariance"),
                "nats",
            )
        )
    common.figure_curves(at("losses"), run.history, panels, "Training losses")
    told = lambda paper, beside: "; ".join(
        filter(
            None,
            [beside, "?: from memory, not checked" if "?" in paper and not opt.validation else ""],
        )
    )  # noqa: E731
    return scores, [
        (words, name, paper, told(paper, beside)) for words, name, paper, beside in rows
    ]


def load(run_dir, device="cpu"):
    """Trained networks of a run folder in eval mode: enc, dec, disc, disc_y, heads (None where the task has none), and options. Batch norm is settled.

    For notebooks: nets = load("runs/aae/semi-100-seed0"); logits, z = encode(nets, images)."""
    options = SimpleNamespace(**common.read_config(run_dir)["settings"])
    state = common.read_checkpoint(run_dir, "aae", device, finished=True)["states"]
    with (
        common.same_version(run_dir),
        common.own_random_numbers(),
    ):  # initial weights, which are overwritten
        nets = build(options, state["dec"]["net.1.weight"].shape[0])
        for name, net in vars(nets).items():
            if net is not None:
                net.load_state_dict(state[name])
                net.to(device).eval()
    nets.options = options
    return nets


# ------------------------------------------------------------------------------------------------------------ main

OURS = dict(
    optimiser="adam",
    lr=1e-3,
    lr_adversary=3e-4,
    lr_encoder=3e-4,
    lr_labels=1e-3,
    adversary_end=0.01,
    beta1=0.5,
    schedule="linear",
    init_std=0.0,
    hidden=1000,
    batch_size=200,
    batch_norm="none",
    dropout=0.0,
    noise=0.0,
    input_dropout=0.0,
    prior="gaussian",
    prior_std=1.0,
    labels=0,
    clusters=10,
    encoder="deterministic",
    code_noise=0.0,
    smooth_weight=0.0,
    smooth_radius=2.0,
    warp=0.0,
    warp_weight=0.0,
    y_weight=1.0,
    balance_weight=0.0,
    labelled_batch=100,
    head_distance=8.0,
    head_weight=1.0,
)
LAMBDA = {"kl": 0.1, "mmd": 100.0, "wae-gan": 1.0}
# What the tasks with an inferred y add.
Y_GAME = dict(
    noise=0.1,
    batch_norm="hidden",
    smooth_weight=1.0,
    warp=1.0,
    warp_weight=4.0,
    y_weight=4.0,
    code_noise=0.3,
    lr_encoder=1e-3,
)
OURS_BY_TASK = {
    "prior": dict(epochs=15, z_dim=2, prior_std=5.0, lr_adversary=1e-3, lr_encoder=6e-4),
    "likelihood": dict(epochs=20, z_dim=8, prior_std=5.0, encoder="gaussian", dropout=0.2),
    "style": dict(
        epochs=72,
        z_dim=15,
        noise=0.1,
        batch_norm="all",
        lr=2e-4,
        lr_adversary=4e-3,
        adversary_end=1.0,
        lr_encoder=4e-4,
    ),
    "semi": dict(epochs=20, z_dim=10, labels=100, **Y_GAME),
    "cluster": dict(epochs=25, z_dim=5, clusters=16, balance_weight=0.25, **Y_GAME),
    "embed": dict(epochs=12, z_dim=2, labels=1000, **Y_GAME),
}
AWARE = dict(
    epochs=25, batch_norm="hidden", warp=1.0, lr=2e-4, lr_encoder=1e-3
)  # of `prior` with labels
MANY_LABELS = dict(
    epochs=30, labelled_batch=400
)  # of `semi` with 10,000 or more: 20 epochs of 100 a step show each of 60,000 ten times
PAPER = dict(
    optimiser="sgd",
    lr=0.01,
    lr_adversary=0.1,
    lr_encoder=0.1,
    lr_labels=0.1,
    beta1=0.1,
    schedule="steps",
    init_std=0.01,
    batch_size=100,
    batch_norm="none",
    dropout=0.0,
    noise=0.0,
    code_noise=0.0,
    input_dropout=0.0,
    encoder="deterministic",
    smooth_weight=0.0,
    warp=0.0,
    warp_weight=0.0,
    y_weight=1.0,
    balance_weight=0.0,
)
# Not known and ours: the epochs of prior and likelihood. Borrowed from likelihood: the initial weights of all other tasks. Borrowed from semi: the schedule
# of prior, likelihood and style, momenta and rates of prior and style, and style's epochs and noise.
PAPER_BY_TASK = {
    "prior": dict(epochs=1000),
    "likelihood": dict(epochs=1000),
    "style": dict(epochs=5000, noise=0.3),
    "semi": dict(epochs=5000, noise=0.3),
    "cluster": dict(epochs=1500, hidden=3000, batch_norm="all", input_dropout=0.2),
    "embed": dict(epochs=5000, noise=0.3),
}


def defaults_of(task, recipe="ours"):
    """What `resolve` fills in where no flag says otherwise."""
    return {
        **OURS,
        **OURS_BY_TASK[task],
        **({**PAPER, **PAPER_BY_TASK[task]} if recipe == "paper" else {}),
    }


def make_parser():
    def by_task(name):  # the defaults in words: the commonest value, then the tasks that differ
        words = []
        for recipe in ("ours", "paper"):
            values = {task: defaults_of(task, recipe)[name] for task in OURS_BY_TASK}
            common_value = max(values.values(), key=list(values.values()).count)
            words.append(
                ", ".join(
                    [
                        str(common_value),
                        *(
                            f"{task} {value}"
                            for task, value in values.items()
                            if value != common_value
                        ),
                    ]
                )
            )
        return f"None is {words[0]}" + (
            f"; --recipe paper: {words[1]}" if words[1] != words[0] else ""
        )

    cli = common.Parser(__doc__.split("\n\n")[0], epochs=None, batch_size=None)
    for action in cli._actions:
        if action.dest in ("epochs", "batch_size"):
            action.help += f"; {by_task(action.dest)}"

    def add(flag, words, **more):
        name = flag[2:].replace("-", "_")
        if name in OURS or name == "z_dim":
            words += f"; {by_task(name)}"
        cli.add_argument(flag, default=more.pop("default", None), help=words, **more)

    add(
        "--task",
        "which of the paper's experiments: Figures 2 and 4, Table 1, Figure 7, Table 2, Table 3, Figure 11",
        choices=tuple(OURS_BY_TASK),
        default="prior",
    )
    add(
        "--recipe",
        "paper: the optimiser, rates, schedule, initial weights, batch and epochs, noise, sizes of the paper's appendix, as far as known "
        "(difference 1); flags beside it still count",
        choices=("ours", "paper"),
        default="ours",
    )
    add(
        "--prior",
        "shape of p(z); the last two are for --task prior",
        choices=("gaussian", "mixture", "swiss-roll"),
    )
    add(
        "--labels",
        "labelled training images, as many of each class; 60000 (as many as there are, or more): all. In embed 0 means without labels, "
        "with the defaults of cluster. In prior they are known to the discriminator, of a mixture or a swiss roll (then, with --recipe ours, None is "
        "25 epochs, batch norm, warp 1, --lr 2e-4, --lr-encoder 1e-3). In semi from 10,000 on, with --recipe ours, None is 30 epochs, --labelled-batch 400",
        type=common.whole,
    )
    add(
        "--clusters",
        "values of y in --task cluster, and in embed without labels, where None is 20",
        type=common.count,
    )
    add(
        "--regularizer",
        "gan: the AAE; in prior and likelihood also kl: a VAE, mmd and wae-gan: Wasserstein autoencoders",
        choices=("gan", "kl", "mmd", "wae-gan"),
        default="gan",
    )
    add(
        "--regularizer-weight",
        "lambda of kl, mmd and wae-gan beside half the squared error; None is "
        + ", ".join(f"{value} for {name}" for name, value in LAMBDA.items()),
        type=common.weight,
    )
    add(
        "--encoder",
        "q(z|x), section 2; kl has gaussian, mmd deterministic unless said otherwise",
        choices=("deterministic", "gaussian", "universal"),
    )
    add("--z-dim", "size of z", type=common.count)
    add(
        "--prior-std",
        "standard deviation of the Gaussian prior; the unit in which the discriminator sees z",
        type=common.positive,
    )
    add("--hidden", "units of every hidden layer", type=common.count)
    add(
        "--batch-norm",
        "in the encoder's hidden layers, or in all with the heads",
        choices=("none", "hidden", "all"),
    )
    add(
        "--noise",
        "standard deviation of the Gaussian noise on the encoder's input",
        type=common.weight,
    )
    add(
        "--code-noise",
        "standard deviation of the noise on what the discriminator of y sees (difference 4)",
        type=common.weight,
    )
    add("--y-weight", "of fooling the discriminator of y beside that of z", type=common.weight)
    add(
        "--balance-weight",
        "of the batch's mean of q(y|x) being uniform (difference 4)",
        type=common.weight,
    )
    add("--smooth-weight", "of the smoothness of q(y|x) (difference 3)", type=common.weight)
    add(
        "--smooth-radius",
        "length of the perturbations that q(y|x) must bear, in pixel values",
        type=common.positive,
    )
    add(
        "--warp",
        "size of the random affine maps of the training images, a share of those in `warp` (difference 3); 0: none",
        type=common.weight,
    )
    add(
        "--warp-weight",
        "of q(y|x) being the same for two warps of an image (difference 3)",
        type=common.weight,
    )
    add(
        "--input-dropout",
        "share of the encoder's input pixels that are dropped",
        type=common.below_one,
    )
    add(
        "--dropout",
        "share of the hidden units that are dropped, encoder and decoder",
        type=common.below_one,
    )
    add("--optimiser", "of every phase", choices=("adam", "sgd"))
    add("--lr", "rate of the reconstruction phase", type=common.positive)
    add("--lr-adversary", "rate of the discriminators", type=common.positive)
    add(
        "--adversary-end",
        "share of --lr-adversary to which --schedule linear lets it fall; the other rates fall to 1 %%",
        type=common.weight,
    )
    add("--lr-encoder", "rate of the encoder against them", type=common.positive)
    add("--lr-labels", "rate of the classification phase", type=common.positive)
    add(
        "--beta1",
        "beta1 or momentum of the adversaries; the other phases have 0.9",
        type=common.below_one,
    )
    add(
        "--schedule",
        "linear: 100 steps up, constant for half the run, then down to 1 %%; steps: / 10 after epochs 50 and (not when clustering) 1000",
        choices=("linear", "steps"),
    )
    add("--init-std", "of Gaussian initial weights; 0 leaves PyTorch's", type=common.weight)
    add(
        "--labelled-batch",
        "labelled images in a step, drawn with replacement (see --labels)",
        type=common.count,
    )
    add(
        "--head-distance",
        "cluster heads nearer than this are pushed apart (Figure 10; the paper gives no number)",
        type=common.weight,
    )
    add("--head-weight", "of that push", type=common.weight)
    return cli


def resolve(options):
    """Fill in what depends on the task and the recipe; refuse what cannot be."""
    o = options
    if o.dataset == "sprites":
        raise common.UserError(
            "sprites do not have ten classes: choose another --dataset for aae.py"
        )
    if o.clusters not in (None, OURS["clusters"]) and not (
        o.task == "cluster" or o.task == "embed" and o.labels == 0
    ):
        raise common.UserError("--clusters is for --task cluster, and for embed with --labels 0")
    if o.regularizer == "gan" and o.regularizer_weight:
        raise common.UserError("--regularizer-weight is for --regularizer kl, mmd and wae-gan")
    why = f"with --task {o.task} --regularizer {o.regularizer}" + (
        f" --labels {o.labels}" if o.labels is not None else ""
    )
    common.refuse_idle(
        o,
        (
            (o.regularizer != "gan", ("lr_encoder",), why),
            (o.regularizer in ("kl", "mmd"), ("lr_adversary", "adversary_end", "beta1"), why),
            (
                o.task in ("prior", "likelihood", "style"),
                (
                    "code_noise",
                    "y_weight",
                    "balance_weight",
                    "smooth_weight",
                    "smooth_radius",
                    "warp_weight",
                ),
                why,
            ),
            (
                o.task != "semi" and not (o.task == "embed" and o.labels != 0),
                ("lr_labels", "labelled_batch"),
                why,
            ),
            (o.task != "embed", ("head_distance", "head_weight"), why),
        ),
    )
    without_labels = (
        dict(clusters=20, z_dim=2) if o.task == "embed" and o.labels == 0 else {}
    )  # trained as a clustering is
    defaults = {
        **defaults_of("cluster" if without_labels else o.task, o.recipe),
        **without_labels,
        "regularizer_weight": LAMBDA.get(o.regularizer, 0.0),
    }
    if o.task == "prior" and o.labels and o.recipe == "ours":
        defaults.update(AWARE)
    if o.task == "semi" and (o.labels or 0) >= 10_000 and o.recipe == "ours":
        defaults.update(MANY_LABELS)
    if o.regularizer == "kl":
        defaults["encoder"] = "gaussian"
    if (
        o.regularizer == "mmd"
    ):  # with a Gaussian q a dimension of pure noise satisfies the MMD, and stays unused
        defaults["encoder"] = "deterministic"
    for name, value in defaults.items():
        if getattr(o, name) is None:
            setattr(o, name, value)
    fixed = o.task == "embed" and o.z_dim == (
        10 if o.labels else o.clusters
    )  # heads that are corners of a simplex (ClusterHeads)
    common.refuse_idle(
        o,
        (
            (not o.smooth_weight, ("smooth_radius",), "with --smooth-weight 0"),
            (o.schedule == "steps", ("adversary_end",), "with --schedule steps"),
            (not o.head_weight, ("head_distance",), "with --head-weight 0"),
            (fixed, ("head_distance", "head_weight"), "where heads are fixed"),
        ),
        defaults,
    )
    if o.prior != "gaussian" and o.task != "prior":
        raise common.UserError("--prior mixture and swiss-roll are for --task prior")
    if o.task == "prior" and o.z_dim != 2 or o.task == "embed" and o.z_dim < 2:
        raise common.UserError(
            "the figures of --task prior and embed need --z-dim 2 (embed: or more)"
        )
    if o.batch_size < 3 or o.labelled_batch < 2:
        raise common.UserError(
            "--batch-size must be at least 3, so that every batch has two images"
            + (", and --labelled-batch at least 2" if supervised(o) else "")
        )
    if o.labels and (o.labels % 10 or o.task in ("likelihood", "style", "cluster")):
        raise common.UserError(
            "--labels must be a multiple of 10, and is for --task prior, semi and embed"
        )
    if o.task == "semi" and not o.labels:
        raise common.UserError(
            "--task semi needs --labels of at least 10; without labels it is --task cluster"
        )
    if o.task == "prior" and o.labels and o.prior == "gaussian":
        raise common.UserError(
            "--labels needs a prior with components: --prior mixture or swiss-roll"
        )
    if o.regularizer != "gan" and (o.task not in ("prior", "likelihood") or o.labels):
        raise common.UserError(
            f"--regularizer {o.regularizer} is for --task prior or likelihood, without labels"
        )
    if o.regularizer == "kl" and (o.prior == "swiss-roll" or o.encoder != "gaussian"):
        raise common.UserError(
            "--regularizer kl needs a density of the prior in closed form (no swiss-roll) and --encoder gaussian"
        )
    if o.dry_run:
        o.epochs = min(o.epochs, 2)
    return o


def run_name(options):
    """Name of a run's folder: semi-100, cluster-30, likelihood, likelihood-mmd, prior-mixture-10000, ..."""
    o = options
    parts = [
        o.task,
        *([o.prior] if o.task == "prior" else []),
        *([o.clusters] if o.task == "cluster" else []),
        *([o.labels] if o.task in ("semi", "embed") or o.labels else []),
        *([f"z{o.z_dim}"] if o.task == "embed" and o.z_dim != 2 else []),
        *([o.regularizer] if o.regularizer != "gan" else []),
        *([o.dataset] if o.dataset != "mnist" else []),
    ]
    return "-".join(map(str, parts))


def main(options):
    options = resolve(options)
    data, test = common.load_dataset(options.dataset, options.data, options.validation)
    if options.dry_run:
        data, test = (
            part.take(torch.arange(len(part.y)) < n) for part, n in ((data, 1200), (test, 500))
        )
    held_out = None
    if options.task != "style" and not supervised(options):
        count = (
            len(data.y) // 6
        )  # 10,000 of MNIST's 60,000: names the clusters, chooses the Parzen width
        held_out, data = data.take(slice(-count, None)), data.take(slice(None, -count))
    count = options.labels if options.task != "style" else len(data.y)
    if options.dry_run:  # of its few images as many as there are of the rarest class
        count = (
            count if count >= len(data.y) else min(count, 10 * int(torch.bincount(data.y).min()))
        )
    labelled = choose_labelled(data.y, count, options.seed)
    run = common.Run("aae", options, run_name(options))
    data, test, labelled = data.to(run.device), test.to(run.device), labelled.to(run.device)
    held_out = held_out and held_out.to(run.device)
    if options.task == "style":  # what is wrong with it should not show after training
        common.check_judge(options, run.device)
    nets = build(options, data.x[0].numel())
    train(run, nets, data, labelled)
    run.finish(*evaluate(run, nets, data, held_out, test, labelled))


if __name__ == "__main__":
    common.run_main(main, make_parser())
