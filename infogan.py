"""InfoGAN: interpretable representation learning by information maximizing generative adversarial
nets. Chen, Duan, Houthooft, Schulman, Sutskever, Abbeel 2016, arXiv 1606.03657.

    python infogan.py                       # MNIST, by our recipe
    python infogan.py --recipe paper        # close to the released recipe, no additions of ours

A generator G makes an image from noise z and a code: a category c1, and numbers c2 (the paper's c2
and c3). A discriminator D tells real images from generated ones. Q reads the code from the image.
D and Q share a trunk; each adds a head of its own. G, Q and the trunk are rewarded when Q is right.
Q can be right only if the image shows the code, say as its digit, slant or stroke width.
No label is used to train; labels helped to choose the settings.

Where the paper's things are
    Eq. 6; eq. 1                  train, and the losses above it
    Eq. 4, 5, Lemma 5.1           the comment above category_loss
    Table 1 (appendix C.1)        Trunk, DHead, QHead, Generator
    Figure 2                      figure_categories (a), figure_continuous (c, d)
    Figure 1                      train fills nets.curve, evaluate draws it
    Figures 1, 2(b), regular GAN  python -m experiments.infogan_regular --beside FOLDER_OF_A_RUN
    The 5 % error                 experiments/infogan_scores.py

K = 10 is the number of c1's values. draw_codes draws one, all equally likely. K sets the sizes of
G's input and Q's output, and log K in L_I. K is the number of digits: a hint from labels.

Differences           paper; released code               here
    length            released: 5,000 updates,           1,876 updates, rates fall in the second
                      constant rates                     half (--recipe paper: 5,159, constant)
    lambda of c2      1, or smaller; released: 1         4 (--recipe paper: 1)
    Q(c2|x)           a Gaussian of learned deviation    of deviation 1, as released
    G's loss          log(1 - D)                         -log D, as released
    fakes             released: fresh ones for G's step  G's step reuses D's fakes
    leaky ReLU        0.1; released: 0.01                0.1
    first weights     released: D's conv. truncated      all normal, none truncated
    Figure 1          trained without c2                 with c2
Additions, marked "# ours": see "Beyond the paper". --recipe paper turns them off. To cut them from
train: far = 0, fake = made, read = h, loss_c2 = continuous_loss, weight_c2 = o.continuous_weight.
Left out: faces, chairs, SVHN, CelebA (Figures 3 to 6).
"""

import dataclasses
import functools
import math
from typing import Literal

import common
from common import Batch, Beta, Count, Rate, Share, Size, Weight, Whole

import torch
import torch.nn.functional as F
from torch import nn


# ---- Settings: each field is a flag, its comment the help. In Python start from recipe() ---------
@dataclasses.dataclass
class Settings(common.RunSettings):
    dataset: Literal["mnist", "fashion", "kmnist", "grey"] = "mnist"  # grey: your own images
    epochs: Count = 4  # passes over the training images (released: 5,000 updates)
    recipe: Literal["ours", "paper"] = "ours"  # paper: no additions; lambda, rates as released
    batch_size: Batch = 128  # real images in a step (released: 128)
    lr: Rate = 1e-3  # Adam's rate for G (paper: 1e-3)
    lr_disc: Rate = 2e-4  # Adam's rate for D and Q (paper, for D: 2e-4)
    schedule: Literal["linear", "constant"] = "linear"  # linear: rates fall (released: constant)
    beta1: Beta = 0.5  # Adam's beta1 (released: 0.5)
    z_dim: Whole = 62  # numbers in z (paper: 62), uniform in [-1, 1] (released: the same)
    categories: Whole = 10  # K, the number of values of c1; 0: no c1 (paper: 10)
    continuous: Whole = 2  # m, how many numbers c2 has, uniform in [-1, 1] (paper: 2)
    category_weight: Weight = 1.0  # lambda of eq. 6 for c1 (paper: 1)
    continuous_weight: Weight = 4.0  # lambda of eq. 6 for c2 (released: 1)
    continuous_start: Share = 0.4  # ours: share of the run before c2's loss starts (paper: 0)
    warp: Size = 1.0  # ours: size of the warps of the images that Q reads (paper: 0)
    far: Share = 0.5  # ours: extra fakes per real image, c2 in [-2, 2]; needs warp (paper: 0)
    far_judged: Share = 1.0  # ours: share of these extra fakes that D sees, too (paper: 0)


OFF = {"warp": 0.0, "far": 0.0, "far_judged": 0.0, "continuous_start": 0.0}  # ours
PAPER = Settings(recipe="paper", epochs=11, schedule="constant", continuous_weight=1.0, **OFF)


def recipe(recipe="ours"):
    return dataclasses.replace(PAPER if recipe == "paper" else Settings())


# ---- Networks (Table 1) --------------------------------------------------------------------------
class Trunk(nn.Sequential):
    """What D and Q share: images [B, C, size, size] in [0, 1] -> features [B, 1024].
    size: a multiple of 4."""

    def __init__(self, channels=1, size=28, slope=0.1):
        super().__init__(
            nn.Conv2d(channels, 64, kernel_size=4, stride=2, padding=1),
            nn.LeakyReLU(slope),
            nn.Conv2d(64, 128, kernel_size=4, stride=2, padding=1),
            nn.BatchNorm2d(128),
            nn.LeakyReLU(slope),
            nn.Flatten(),
            nn.Linear(128 * (size // 4) ** 2, 1024),
            nn.BatchNorm1d(1024),
            nn.LeakyReLU(slope),
        )


class DHead(nn.Linear):
    """DHead(1024, 1): the trunk's features [B, 1024] -> the logit [B] of D(x)."""

    def forward(self, h):
        return super().forward(h).float().squeeze(1)  # layers may compute in bf16, losses must not


class QHead(nn.Module):
    """Q(c|x) of the trunk's features [B, 1024]: logits of c1 [B, K], means of c2 [B, m]."""

    def __init__(self, categories=10, continuous=2, slope=0.1):
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(1024, 128), nn.BatchNorm1d(128), nn.LeakyReLU(slope))
        self.out = nn.Linear(128, categories + continuous)
        self.sizes = [categories, continuous]

    def forward(self, h):
        return self.out(self.hidden(h)).float().split(self.sizes, 1)


class Generator(nn.Module):
    """G(z, c): z [B, z_dim], c1 one-hot [B, K], c2 [B, m] -> image [B, C, H, W] in [0, 1]."""

    def __init__(self, inputs=74, channels=1, size=28):  # 74 = 62 + 10 + 2
        super().__init__()
        side = size // 4
        self.net = nn.Sequential(
            nn.Linear(inputs, 1024),
            nn.BatchNorm1d(1024),
            nn.ReLU(),
            nn.Linear(1024, 128 * side**2),
            nn.BatchNorm1d(128 * side**2),  # 6,272 features, not 128 channels: as released
            nn.ReLU(),
            nn.Unflatten(1, (128, side, side)),
            nn.ConvTranspose2d(128, 64, kernel_size=4, stride=2, padding=1),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.ConvTranspose2d(64, channels, kernel_size=4, stride=2, padding=1),
        )

    def forward(self, z, c1, c2):
        return torch.sigmoid(self.net(torch.cat([z, c1, c2], 1)).float())


def initialise(net):
    """Weights N(0, 0.02^2), batch norm's gains N(1, 0.02^2), biases 0, nearly as released."""
    for name, p in net.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(p)
        else:  # a vector: batch norm's gains
            nn.init.normal_(p, mean=1.0 if p.dim() == 1 else 0.0, std=0.02)
    return net


# ---- Losses, means over the batch: -log D = softplus(-logit), -log(1 - D) = softplus(logit) ------
def adversarial_loss(logits):
    """-log D(fake), of logits [B], for G; log 2 at chance. Eq. 1 has log(1 - D(fake)) instead."""
    return F.softplus(-logits).mean()


def discriminator_loss(logits_real, logits_fake):
    """-log D(real) - log(1 - D(fake)), of logits [B] each (eq. 1); 2 log 2 at chance."""
    return F.softplus(-logits_real).mean() + F.softplus(logits_fake).mean()


# The information that x = G(z, c) has about c, and its bound. P(c'|x): the true, unknown posterior.
#     I(c; x) = H(c) + E_x E_{c' ~ P(c'|x)} log P(c'|x)
#            >= H(c) + E_x E_{c' ~ P(c'|x)} log Q(c'|x)                                   (eq. 4)
#             = H(c) + E_{c ~ P(c), x = G(z,c)} log Q(c|x) = L_I(G, Q)        (Lemma 5.1, eq. 5)
# The gap is KL(P(.|x) || Q(.|x)), a mean over x: 0 where Q is the posterior. Eq. 5 needs no
# posterior: P(x) P(c'|x) = P(x, c'), so the pair (x, c') is distributed as (x, c). So the c to
# score is the one that made x. H(c) does not depend on G or Q. So to maximise L_I is to minimise
# -log Q(c|x). Q takes c1 and c2 as independent given x: the sum of -log Q(c1|x) and -log Q(c2|x),
# each with its lambda. Both steps of train minimise them: G and Q are no adversaries here.
def category_loss(logits, c1):
    """-log Q(c1|x) in nats; log K where Q is uniform. Logits and one-hot c1, both [B, K]."""
    return -(c1 * logits.log_softmax(1)).sum(1).mean()


def continuous_loss(mean, c2):
    """-log Q(c2|x) in nats, Q = N(mean, 1), a sum over the m numbers of c2; both [B, m]. For each
    number: half the squared error plus log(2 pi) / 2 = 0.919. The entropy of a number is log 2 =
    0.693. So L_I of a number is at most -0.226: a valid bound, but loose. continuous_weight 4 has
    the gradient of a Q of deviation 1/2 at lambda 1."""
    return (0.5 * (c2 - mean).square() + 0.5 * math.log(2 * math.pi)).sum(1).mean()


def mutual_information(logits, c1):
    """L_I of a uniform c1 in nats (more is better): log K - category_loss; 0 where Q is uniform."""
    return math.log(max(c1.shape[1], 1)) - category_loss(logits, c1)


# ---- Training ------------------------------------------------------------------------------------
def update(optimiser, loss):
    """A step on `loss`, of this optimiser's weights alone. Other networks get no gradient."""
    parameters = [p for group in optimiser.param_groups for p in group["params"] if p.requires_grad]
    loss.backward(inputs=parameters)
    optimiser.step()
    optimiser.zero_grad()


def rate(done, schedule):
    """Factor of the rates; done: share of the run. linear: 1 until half, then a fall to 0.01."""
    return min(1, max(0.01, 2 - 2 * done)) if schedule == "linear" else 1


def one_hot(value, categories):
    """Values [N] from 0 to categories - 1 -> float [N, categories]; categories may be 0."""
    return (value[:, None] == torch.arange(categories, device=value.device)).float()


def draw_codes(o, count, device, far=0):
    """The prior: z [N, z_dim], c1 one-hot [N, K], c2 [N, m]; N = count + far. z and c2 are uniform
    in [-1, 1], c1 over its K values. Ours: c2 of the last `far` is uniform in [-2, 2]."""
    k, total = o.categories, count + far  # ours: far
    value = torch.randint(k, (total,), device=device) if k else torch.zeros(total, device=device)
    c2 = 2 * torch.rand(total, o.continuous, device=device) - 1
    z = 2 * torch.rand(total, o.z_dim, device=device) - 1
    c2[count:] *= 2  # ours
    return z, one_hot(value, k), c2


def train(run, nets, data):
    """Eq. 6. data: a `common.Split`. run: a `common.Run`: `epochs` saves after each epoch,
    `batches` gives a step's indices, `step` counts from 1. Then call infogan_scores.settle."""
    o, trunk, d, q, gen = run.settings, nets.trunk, nets.d, nets.q, nets.gen
    steps = o.epochs * math.ceil(len(data.x) / o.batch_size)
    adam = {"betas": (o.beta1, 0.999), "fused": True}
    d_and_q = [*trunk.parameters(), *d.parameters(), *q.parameters()]
    opt_d = torch.optim.Adam(d_and_q, o.lr_disc, **adam)
    opt_g = torch.optim.Adam(gen.parameters(), o.lr, **adam)
    run.track(nets=nets, opt_d=opt_d, opt_g=opt_g)
    loss_c2 = split_loss if o.warp else continuous_loss  # ours
    nets.train()

    for _ in run.epochs():
        for index in run.batches(torch.randperm(len(data.x)), o.batch_size):
            done = (run.step - 1) / steps  # share of the run
            opt_d.param_groups[0]["lr"] = o.lr_disc * rate(done, o.schedule)
            opt_g.param_groups[0]["lr"] = o.lr * rate(done, o.schedule)
            weight_c2 = o.continuous_weight if done >= o.continuous_start else 0  # ours

            # made: n fakes with codes of the prior, then `far` more, whose c2 has a wider range
            # (ours). c1 is scored on all of them, c2 on the first n. D sees `fake`.
            x = common.to_float(data.x[index])  # real images [n, 1, 28, 28]
            n = len(x)
            far = round(o.far * n) if o.warp else 0  # ours; 0 without warp: Q then reads h
            z, c1, c2 = draw_codes(o, n, x.device, far)  # ours: far
            made = gen(z, c1, c2)
            fake = made[: n + round(o.far_judged * far)]  # ours (D may see fewer far ones)

            # Trunk, D, Q minimise  - log D(x) - log(1 - D(G(z,c))) - lambda log Q(c|G(z,c))
            h = trunk(fake.detach())
            loss_d = discriminator_loss(d(trunk(x)), d(h))
            read = trunk(warp(made.detach(), o.warp)) if o.warp else h  # ours: warped
            logits, mean = q(read)
            category = category_loss(logits, c1)
            continuous = loss_c2(mean[:n], c2[:n])  # ours: [:n]
            loss_q = o.category_weight * category + weight_c2 * continuous
            bound = mutual_information(q(h)[0][:n], c1[:n]).detach()  # Figure 1: no warps
            update(opt_d, loss_d + loss_q)

            # G minimises  - log D(G(z,c)) - lambda log Q(c|G(z,c));  ours: Q of warped images
            h = trunk(fake)  # once more: the trunk has moved
            loss_g = adversarial_loss(d(h))
            read = trunk(warp(made, o.warp)) if o.warp else h  # ours: warped
            logits, mean = q(read)
            loss_q = o.category_weight * category_loss(logits, c1)
            loss_q = loss_q + weight_c2 * loss_c2(mean[:n], c2[:n])  # ours: [:n]
            update(opt_g, loss_g + loss_q)

            nets.curve[run.step - 1] = bound  # Figure 1
            run.log(disc=loss_d, gen=loss_g, category=category, continuous=continuous, bound=bound)


# ---- Figures -------------------------------------------------------------------------------------
def figure_categories(nets, o, path, order, words, rows=5):
    """Figure 2(a): a column for each category, ordered by digit; a row keeps z and c2."""
    z, _, c2 = draw_codes(o, rows, order.device)
    z, c2 = z.repeat_interleave(len(order), 0), c2.repeat_interleave(len(order), 0)
    images = decode(nets, z, one_hot(order, o.categories).repeat(rows, 1), c2)
    common.figure_grid(path, images, len(order), words, "the category c1", "z and c2")


def figure_continuous(nets, o, path, which, order, columns=11):
    """Figure 2(c), (d): one of c2's numbers from -2 to 2 (prior: -1 to 1); each row a category."""
    from experiments.infogan_scores import sweep

    z, _, c2 = draw_codes(o, len(order), order.device)
    codes = sweep((z, one_hot(order, o.categories), c2), which, 2, columns)
    words = f"Continuous code {which + 1} from -2 to 2 (Fig. 2c, d)"
    common.figure_grid(path, decode(nets, *codes), columns, words, "", "a category a row")


# ---- Beyond the paper ----------------------------------------------------------------------------
# warp: without it, a category often mixes digits of the same slant. So Q reads warped copies of the
# images: c1 must be what a warp leaves alone. At far = 0, log K - category <= I(c1; warp(x)).
# split_loss: c2 is read from warped copies, too. Its first number is scored on copies that are not
# rotated or sheared, so it can be the slant. The others' copies are, which blurs a slant. All are
# stretched, which blurs a digit's width, the paper's Figure 2(d). The stroke's width is left.
# continuous_start: c2's loss starts late, else c2 could take the digit from c1.
# far: Figure 2 goes twice as far as the prior of c2. There the digit can change. So Q must also
# read c1 from images of such c2. Without warp Q has D's images only, and `far` is ignored.
# far_judged: D sees far images, too, else they look wrong. So only the mix of both must look like
# the data, not c2 in [-1, 1] alone. What we tried: results/NOTES.md.


def warp(x, amount=1.0):
    """A random affine map of each image [B, C, H, W], black outside. At most: sides about 15 %
    longer or shorter, a shift of 2 pixels of 28; images 1, 3, ... also a turn of 9 degrees and
    a shear of 0.3. All of it times amount."""
    n, device = len(x), x.device

    def uniform(reach, *shape):
        return amount * reach * (2 * torch.rand(n, *shape, device=device) - 1)

    lean = torch.arange(n, device=device) % 2  # 0: images by which split_loss scores the slant
    angle, shear = lean * uniform(0.15), lean * uniform(0.3)
    wide, high = 1 + uniform(0.15), 1 + uniform(0.15)
    to_x = torch.stack([angle.cos() * wide, (shear - angle.sin()) * wide], 1)
    to_y = torch.stack([angle.sin() * high, angle.cos() * high], 1)
    maps = torch.cat([torch.stack([to_x, to_y], 1), uniform(1 / 7, 2, 1)], 2)
    with torch.autocast(device.type, enabled=False):  # bf16 would round by a tenth of a pixel
        grid = F.affine_grid(maps, x.shape, align_corners=False)
        return F.grid_sample(x.float(), grid, align_corners=False)


def split_loss(mean, c2):
    """`continuous_loss` of warped images, in `warp`'s order: c2's first number on images 0, 2, ...,
    which `warp` does not rotate or shear, its others on images 1, 3, ..."""
    slant = continuous_loss(mean[0::2, :1], c2[0::2, :1])
    return slant + continuous_loss(mean[1::2, 1:], c2[1::2, 1:])


# ---- For notebooks, and the command line ---------------------------------------------------------
def build(o, per_epoch=1):
    """Untrained networks, of grey 28 x 28 images. per_epoch: updates per epoch in `train`.
    curve: the category's L_I in nats, one an update (Figure 1)."""
    nets = nn.Module()
    nets.shape = 1, 28, 28
    nets.trunk, nets.d = initialise(Trunk()), initialise(DHead(1024, 1))
    nets.q = initialise(QHead(o.categories, o.continuous))
    nets.gen = initialise(Generator(o.z_dim + o.categories + o.continuous))
    nets.register_buffer("curve", torch.zeros(o.epochs * per_epoch))
    return nets


def load(folder, device="cpu", recipe=recipe):
    """Trained networks in eval mode: load("runs/infogan/mnist-seed0")."""
    from experiments import run_folder

    saved = run_folder.read_checkpoint(folder, finished=True)
    per_epoch = saved["step"] // saved["epoch"]  # updates
    return common.load(folder, recipe, functools.partial(build, per_epoch=per_epoch), device)


@torch.no_grad()
def encode(nets, x):
    """Images [N, C, H, W] -> Q's logits of c1 [N, K], means of c2 [N, m]. Nets in eval mode."""
    return nets.q(torch.cat([nets.trunk(part) for part in common.image_batches(x, nets)]))


@torch.no_grad()
def decode(nets, z, c1, c2):
    """Codes as `draw_codes` gives them -> images [N, C, H, W] in [0, 1]. Nets in eval mode."""
    return torch.cat([nets.gen(*codes) for codes in common.code_batches(nets, z, c1, c2)])


@torch.random.fork_rng()
def evaluate(nets, data, test, settings, folder):
    """Settles batch norm. Figures into the folder; returns scores and rows of the printed table."""
    from experiments import infogan_scores

    found, order = infogan_scores.evaluate(nets, build, draw_codes, decode, data, test, settings)
    common.say("figures")
    if settings.categories:
        path, curves = folder / "information.png", {"InfoGAN": nets.curve}
        infogan_scores.figure_information(curves, settings.categories, path)
        figure_categories(nets, settings, folder / "categories.png", order, "Categories (Fig. 2a)")
    for k in range(settings.continuous):
        figure_continuous(nets, settings, folder / f"continuous-{k + 1}.png", k, order)
    return found, infogan_scores.table(found, settings, len(data.y.unique()))


def main(settings):
    """Train, then score. To train only, end with infogan_scores.settle(...), run.finish({})."""
    from experiments import scores

    data, test = common.load_data(settings)
    scores.judge_of(settings)  # the judge scores later; a bad file fails now
    run = common.Run("infogan", settings)
    nets = build(settings, math.ceil(len(data.x) / settings.batch_size)).to(run.device)
    with run.autocast():  # bf16 where an x86 CPU has it (cache_enabled=False), else fp32
        train(run, nets, data)
    run.finish(*evaluate(nets, data, test, settings, run.folder))


if __name__ == "__main__":
    common.run_main(main, recipe)
