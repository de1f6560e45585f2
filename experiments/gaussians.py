"""ALI's mixture of 25 Gaussians on a plane: ALI beside a GAN, two encoders for that GAN, and a VAE.

    python -m experiments.gaussians                            # one fixed setting, all models
    python -m experiments.gaussians --setting random --seed 0  # ALI, GAN; seeds 0 to 9: ten runs

The GAN gets its encoders when it is finished (ALI section 2.2): a learned inverse, and one by ALI's
game with G held still. ALI's and the GAN's networks are of the released code's kind, the losses are
bigan.py's. There is no released code of the VAE and the two encoders. The paper gives no ranges for
its random settings. So the VAE, the encoders and the ranges are ours.

Differences       the released code          here (--setting paper: as released)
    epochs        200 of the games           84, then 21 of the encoders (or 200, then our 50)
    batch         100                        1024
    sizes         400; D 200 of 5 pieces     128; D 64 of 2 pieces
    G's layers    4                          5 hidden ones
    rates         1e-4, constant             5e-4, D 2e-3; bigan.py's linear schedule
    beta1         0.2                        0
    weights       N(0, 0.02^2)               PyTorch's
    additions     none                       bigan.py's penalty (the GAN, too) and average (all)
The random settings: 12 epochs, batches of 256, 256 units, 4 layers in G, D 128 of 2 pieces.
"""

import copy
import dataclasses
import math
from typing import Annotated, Literal

import common
from bigan import discriminator_loss, move_average, rate, squared_error, swapped_loss, update
from common import Batch, Beta, Count, Rate, Share, Size, Weight, Whole
from experiments import batch_norm
from experiments.bigan_baselines import generator_loss

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import nn


# ---- Settings ------------------------------------------------------------------------------------
@dataclasses.dataclass
class RandomSettings:
    """What both kinds of runs read. The points are drawn afresh, so there is no --data."""

    dataset: Literal["gaussians"] = "gaussians"  # 100,000 points
    setting: Literal["ours", "paper", "random"] = "ours"  # random: rate, beta1, weights by the seed
    epochs: Annotated[int, 2, 10**9] = 12  # passes over the points
    seed: Whole = 0  # of weights, points, batches and noise
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # auto: the first GPU, or else the CPU
    precision: Literal["fp32"] = "fp32"  # bf16 rounds 4 to steps of 0.03; a Gaussian is 0.05 wide
    out: str = ""  # run folder (empty: runs/gaussians/SETTING-seedN)
    dry_run: bool = False  # every line on 2,000 points
    resume: str = ""  # run folder to go on with, by the settings it has
    batch_size: Batch = 256  # points in a step, and as many codes
    hidden: Count = 256  # units of a hidden layer of E and G
    generator_layers: Count = 4  # hidden layers of G
    maxout: Count = 128  # units of D's layers
    pieces: Count = 2  # linear pieces of such a unit
    init_std: Size = 0.0  # of Gaussian initial weights; 0: PyTorch's
    lr: Rate = 5e-4  # Adam's rate for E and G
    lr_disc: Rate = 1e-3  # Adam's rate for D
    beta1: Beta = 0.0  # Adam's beta1
    schedule: Literal["linear", "constant"] = "linear"  # of the rates
    penalty: Weight = 0.015  # ours: gamma of the penalty on D's slope (paper: 0)
    average: Share = 0.998  # ours: decay of the average of the weights (paper: 0)


@dataclasses.dataclass
class Settings(RandomSettings):
    epochs: Annotated[int, 2, 10**9] = 105  # the last fifth is of the GAN's encoders
    batch_size: Batch = 1024  # points in a step, and as many codes
    hidden: Count = 128  # units of a hidden layer of E and G
    generator_layers: Count = 5  # hidden layers of G
    maxout: Count = 64  # units of D's layers
    lr_disc: Rate = 2e-3  # Adam's rate for D
    vae_std: Rate = 0.1  # deviation of the VAE's decoder


PAPER = Settings(
    setting="paper",
    epochs=250,
    batch_size=100,
    hidden=400,
    generator_layers=4,
    maxout=200,
    pieces=5,
    init_std=0.02,
    lr=1e-4,
    lr_disc=1e-4,
    beta1=0.2,
    schedule="constant",
    penalty=0.0,
    average=0.0,
)


def recipe(setting="ours", seed=0):
    """Random: rates from 1e-4 to 1e-3, beta1 from 0.2 to 0.8, weights' deviation 0.01 to 0.1."""
    if setting == "paper":
        return PAPER
    if setting != "random":
        return Settings()
    number = int(seed) if str(seed).isdecimal() else 0  # the parser refuses what is no number
    rng = torch.Generator().manual_seed(number)
    lr, beta1, std = torch.rand(3, generator=rng).tolist()
    lr, beta1, std = 1e-4 * 10**lr, 0.2 + 0.6 * beta1, 0.01 * 10**std
    return RandomSettings(setting="random", lr=lr, lr_disc=lr, beta1=beta1, init_std=std)


# ---- Points --------------------------------------------------------------------------------------
STD = 0.05


def means(device="cpu"):
    """Centres [25, 2] of the mixture: a 5 x 5 grid from -4 to 4."""
    along = torch.arange(-4.0, 5.0, 2.0, device=device)
    return torch.cartesian_prod(along, along)


def draw_points(n, device="cpu"):
    """Points [n, 2] of 25 equally likely Gaussians, and their components int64 [n]."""
    y = torch.randint(0, 25, (n,), device=device)
    return means(device)[y] + STD * torch.randn(n, 2, device=device), y


# ---- Networks: data and codes are points [B, 2] --------------------------------------------------
def mlp(inputs, hidden, layers, outputs):
    """`layers` hidden layers with batch norm and ReLU, then a linear one."""
    body = []
    for _ in range(layers):
        body += [nn.Linear(inputs, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU()]
        inputs = hidden
    return nn.Sequential(*body, nn.Linear(hidden, outputs))


class NoisyEncoder(nn.Module):
    """z = f(x, eps), eps ~ N(0, I) (ALI eq. 3): a sampler without a density, as released."""

    def __init__(self, hidden=400):
        super().__init__()
        self.net = mlp(4, hidden, layers=2, outputs=2)

    def forward(self, x):
        return self.net(torch.cat([x, torch.randn_like(x)], 1))


class VaeEncoder(nn.Module):
    """The VAE's q(z|x) = N(mu, sigma^2); forward draws a sample."""

    def __init__(self, hidden=400):
        super().__init__()
        self.net = mlp(2, hidden, layers=2, outputs=4)

    def posterior(self, x):
        """mu and log sigma [B, 2]."""
        return self.net(x).chunk(2, 1)

    def forward(self, x):
        mu, log_sigma = self.posterior(x)
        return mu + torch.randn_like(mu) * log_sigma.exp()


class MaxoutDiscriminator(nn.Module):
    """Three layers, each unit the largest of `pieces` linear ones: [B, inputs] -> logit [B].
    A pair is a point and a code side by side."""

    def __init__(self, inputs=4, hidden=200, pieces=5):
        super().__init__()
        self.pieces = pieces
        self.linear = nn.ModuleList(nn.Linear(n, hidden * pieces) for n in (inputs, hidden, hidden))
        self.out = nn.Linear(hidden, 1)

    def forward(self, x):
        for layer in self.linear:
            x, *others = layer(x).chunk(self.pieces, 1)
            for piece in others:
                x = piece + F.relu(x - piece)  # the larger one; faster than the gradient of amax
        return self.out(x).squeeze(1)


def build(o):
    """ali_enc, ali_gen, ali_disc; gan_gen, gan_disc. Unless the setting is random also inverse_enc,
    posthoc_enc, posthoc_disc, all for the GAN, and vae_enc, vae_gen."""
    nets = nn.Module()
    nets.ali_enc = NoisyEncoder(o.hidden)
    nets.ali_gen = mlp(2, o.hidden, o.generator_layers, 2)
    nets.ali_disc = MaxoutDiscriminator(4, o.maxout, o.pieces)
    nets.gan_gen = mlp(2, o.hidden, o.generator_layers, 2)
    nets.gan_disc = MaxoutDiscriminator(2, o.maxout, o.pieces)
    if o.setting != "random":
        nets.inverse_enc = NoisyEncoder(o.hidden)
        nets.posthoc_enc = NoisyEncoder(o.hidden)
        nets.posthoc_disc = MaxoutDiscriminator(4, o.maxout, o.pieces)
        nets.vae_enc = VaeEncoder(o.hidden)
        nets.vae_gen = mlp(2, o.hidden, o.generator_layers, 2)
    if o.init_std:
        for layer in nets.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=o.init_std)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
    return nets


# ---- Steps: each returns its losses --------------------------------------------------------------
def slope(disc, weight, *kinds):
    """weight times |d logit / dx|^2, x the points or the pairs: a mean over the rows of each kind,
    summed. Only D learns from it. As bigan.slope_penalty."""
    total = 0.0
    for x in kinds if weight else ():
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(disc(x).sum(), x, create_graph=True)
        total = total + gradient.square().sum(1).mean()
    return weight * total


def joint_step(enc, gen, disc, opt_d, opt_ge, x, z, weight):
    """ALI. Where opt_ge has E alone, G stays as it is: post-hoc inference."""
    real, made = torch.cat([x, enc(x)], 1), torch.cat([gen(z), z], 1)
    logits = disc(real), disc(made)
    loss_ge, loss_d = swapped_loss(*logits), discriminator_loss(*logits)
    update(opt_ge, loss_ge, keep=True)
    update(opt_d, loss_d + slope(disc, weight, real, made))
    return loss_d, loss_ge


def gan_step(gen, disc, opt_d, opt_g, x, z, weight):
    """A GAN; as `joint_step`, without codes in D."""
    made = gen(z)
    logits_real, logits_fake = disc(x), disc(made)
    loss_g, loss_d = generator_loss(logits_fake), discriminator_loss(logits_real, logits_fake)
    update(opt_g, loss_g, keep=True)
    update(opt_d, loss_d + slope(disc, weight, x, made))
    return loss_d, loss_g


def inverse_step(enc, gen, opt_e, z):
    """E minimises  |z - E(G(z))|^2  on samples of a finished GAN."""
    with torch.no_grad():
        x = gen(z)
    loss = squared_error(enc(x), z)
    update(opt_e, loss)
    return loss


def vae_step(enc, gen, opt, x, std):
    """E, G minimise  |x - G(z)|^2 / (2 std^2) + KL(q(z|x) || N(0, I)),  z ~ q(z|x)."""
    mu, log_sigma = enc.posterior(x)
    kl = 0.5 * (mu.square() + (2 * log_sigma).exp() - 1 - 2 * log_sigma).sum(1).mean()
    z = mu + torch.randn_like(mu) * log_sigma.exp()
    loss = squared_error(gen(z), x) / (2 * std**2) + kl
    update(opt, loss)
    return loss


# ---- Training ------------------------------------------------------------------------------------
PLAYERS = {  # optimiser: the networks it moves
    "ali_d": ("ali_disc",),
    "ali_ge": ("ali_gen", "ali_enc"),
    "gan_d": ("gan_disc",),
    "gan_g": ("gan_gen",),
    "inverse": ("inverse_enc",),
    "posthoc_d": ("posthoc_disc",),
    "posthoc_e": ("posthoc_enc",),
    "vae": ("vae_enc", "vae_gen"),
}
AFTERWARDS = ("inverse_enc", "posthoc_enc")  # trained when the GAN is finished


def optimisers(nets, o):
    """Name -> Adam, of the players that there are."""
    found = {}
    for name, players in PLAYERS.items():
        if hasattr(nets, players[0]):
            parameters = [p for player in players for p in getattr(nets, player).parameters()]
            lr = o.lr_disc if name.endswith("_d") else o.lr
            found[name] = torch.optim.Adam(parameters, lr, betas=(o.beta1, 0.999), fused=True)
    return found


def train(run, nets, x_train):
    """ALI, the GAN and the VAE side by side. In the last fifth of the epochs only the GAN's two
    encoders learn; a random setting has none. x_train: [N, 2] on the run's device."""
    o, device = run.settings, run.device
    nets.train()
    opt = optimisers(nets, o)
    average = copy.deepcopy(nets)
    run.track(nets=nets, average=average, **{f"opt_{name}": opt[name] for name in opt})
    scored = [name for name, _ in nets.named_children() if not name.endswith("disc")]
    later = [name for name in scored if name in AFTERWARDS]
    first = [name for name in scored if name not in later]
    last_epochs = max(1, o.epochs // 5) if later else 0
    per_epoch = math.ceil(len(x_train) / o.batch_size)
    zero = torch.zeros((), device=device)

    for epoch in run.epochs():
        games = epoch < o.epochs - last_epochs
        begun = 0 if games else (o.epochs - last_epochs) * per_epoch
        steps = (o.epochs - last_epochs if games else last_epochs) * per_epoch
        active = first if games else later
        nets.gan_gen.train(games)
        for index in run.batches(torch.randperm(len(x_train)), o.batch_size):
            x, z = x_train[index], torch.randn(len(index), 2, device=device)
            step = run.step - begun
            factor = rate(step, steps, o.schedule) if o.schedule == "linear" else 1.0
            for player in opt.values():
                player.param_groups[0]["lr"] = player.defaults["lr"] * factor
            weight = 4 * o.penalty / 2 if run.step % 4 == 1 else 0.0  # as in bigan.py
            if games:
                losses = games_step(nets, opt, x, z, weight, o)
            else:
                losses = inference_step(nets, opt, x, z, weight)
            for name in active:
                move_average(getattr(average, name), getattr(nets, name), step, o.average)
            run.log(**dict.fromkeys(LOSSES, zero) | losses)
        if epoch + 1 in (o.epochs - last_epochs, o.epochs):  # these networks are finished
            for name in active:
                move_average(getattr(nets, name), getattr(average, name), step=1, decay=0.0)
            settle(nets, x_train, active)
    nets.eval()


LOSSES = "ali_d ali_ge gan_d gan_g vae learned_inverse posthoc_d posthoc_e".split()


def games_step(nets, opt, x, z, weight, o):
    """A step of ALI, of the GAN and of the VAE, if there is one."""
    ali = nets.ali_enc, nets.ali_gen, nets.ali_disc, opt["ali_d"], opt["ali_ge"]
    losses = dict(zip(("ali_d", "ali_ge"), joint_step(*ali, x, z, weight)))
    gan = nets.gan_gen, nets.gan_disc, opt["gan_d"], opt["gan_g"]
    losses.update(zip(("gan_d", "gan_g"), gan_step(*gan, x, z, weight)))
    if "vae" in opt:
        losses["vae"] = vae_step(nets.vae_enc, nets.vae_gen, opt["vae"], x, o.vae_std)
    return losses


def inference_step(nets, opt, x, z, weight):
    """A step of both encoders for the finished GAN."""
    losses = {"learned_inverse": inverse_step(nets.inverse_enc, nets.gan_gen, opt["inverse"], z)}
    ali = nets.posthoc_enc, nets.gan_gen, nets.posthoc_disc, opt["posthoc_d"], opt["posthoc_e"]
    losses.update(zip(("posthoc_d", "posthoc_e"), joint_step(*ali, x, z, weight)))
    return losses


@torch.no_grad()
def settle(nets, x_train, names):
    """Batch norm's statistics of these networks anew, then eval mode: of E from data, of G from the
    prior, of the VAE's G from codes."""
    parts = x_train[:20_000].split(1000)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name in names:
            net = getattr(nets, name)
            if name == "vae_enc":
                batch_norm.settle(net.net, ((x,) for x in parts))
            elif name.endswith("enc"):
                batch_norm.settle(net, ((x,) for x in parts))
            elif name == "vae_gen":
                batch_norm.settle(net, ((nets.vae_enc(x),) for x in parts))
            else:
                batch_norm.settle(net, ((torch.randn_like(x),) for x in parts))


# ---- Scores --------------------------------------------------------------------------------------
def mode_scores(samples):
    """How well samples [N, 2] cover the grid.

    modes_hit: components that are the nearest one to some sample, ALI's lenient rule. modes_good:
    components with a sample within three deviations. samples_good: share of samples within three
    deviations of a centre, percent (98.9 for the data)."""
    distance, nearest = torch.cdist(samples, means(samples.device)).min(1)
    good = distance < 3 * STD
    return {
        "modes_hit": float(len(nearest.unique())),
        "modes_good": float(len(nearest[good].unique())),
        "samples_good": good.float().mean().item() * 100,
    }


def columns(nets):
    """The columns of ALI's figure: title, E and G by name. A random setting has the first alone."""
    found = {"ali": ("ALI", nets.ali_enc, nets.ali_gen)}
    if hasattr(nets, "vae_enc"):
        found["inverse"] = ("GAN, learned inverse", nets.inverse_enc, nets.gan_gen)
        found["posthoc"] = ("GAN, post-hoc ALI", nets.posthoc_enc, nets.gan_gen)
        found["vae"] = ("VAE", nets.vae_enc, nets.vae_gen)
    return found


@torch.no_grad()
def score(nets, n=10_000):
    """MODEL_SCORE -> number: mode_scores of n samples of each generator; of each column, on n fresh
    points, reconstruction_mse, the squared distance of x and G(z), z ~ q(z|x), and
    reconstruction_mode, the share that stays in its component, percent."""
    device = next(nets.parameters()).device
    x, y = draw_points(n, device)
    scores = {}
    for name in ("ali", "gan", "vae"):
        if hasattr(nets, f"{name}_gen"):
            found = mode_scores(getattr(nets, f"{name}_gen")(torch.randn(n, 2, device=device)))
            scores.update({f"{name}_{key}": value for key, value in found.items()})
    for name, (_, enc, gen) in columns(nets).items():
        again = gen(enc(x))
        kept = torch.cdist(again, means(device)).argmin(1) == y
        scores[f"{name}_reconstruction_mse"] = squared_error(again, x).item()
        scores[f"{name}_reconstruction_mode"] = kept.float().mean().item() * 100
    return scores


def table(scores, setting):
    """Rows of the printed table: words, metric, the paper's value, compare."""
    paper = {"ali_modes_hit": "25 (best of 10)", "gan_modes_hit": "22 (best of 10)"}
    if setting == "random":
        paper = {"ali_modes_hit": "13.4 +- 5.8", "gan_modes_hit": "10.4 +- 9.2"}
    words = {
        "modes_hit": ("modes hit (nearest to any sample)", "25 at best"),
        "modes_good": ("modes with a sample within 3 s.d.", "25 at best"),
        "samples_good": ("samples within 3 s.d., %", "98.9 for the data"),
        "reconstruction_mse": ("reconstruction, squared distance", ""),
        "reconstruction_mode": ("reconstruction in x's mode, %", "100 at best, 4 by chance"),
    }
    rows = []
    for name in scores:
        model, score = name.split("_", 1)
        what, compare = words[score]
        rows.append((f"{model}: {what}", name, paper.get(name, "-"), compare))
    return rows


@torch.no_grad()
def figure_mixture(nets, path, n=2500):
    """ALI's figure: five rows, four columns. The colour is the component of the test example, of a
    sample that of the nearest centre."""
    device = next(nets.parameters()).device
    x, y = draw_points(n, device)
    z = torch.randn(n, 2, device=device)
    words = ["test examples x", "codes z ~ q(z|x)", "reconstructions G(z)"]
    words += ["prior samples z", "samples G(z)"]
    figure = Figure(figsize=(7.1, 8.8), dpi=90)
    panels = figure.subplots(5, 4)
    for column, (title, enc, gen) in zip(panels.T, columns(nets).values()):
        codes, samples = enc(x), gen(z)
        made = torch.cdist(samples, means(device)).argmin(1)
        points = [(x, y), (codes, y), (gen(codes), y), (z, made), (samples, made)]
        column[0].set_title(title, fontsize=9)
        for axes, (place, number), limit in zip(column, points, (6, 4, 6, 4, 6)):
            colour = {"c": number.cpu(), "cmap": "gist_rainbow"}
            axes.scatter(*place.cpu().t(), s=2, linewidths=0, **colour)
            axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
            axes.set(xticks=(-4, -2, 0, 2, 4), yticks=(-4, -2, 0, 2, 4))
            axes.tick_params(labelsize=7, length=2)
    for axes, word in zip(panels[:, 0], words):
        axes.set_ylabel(word, fontsize=8)
    figure.tight_layout(pad=0.5, rect=(0, 0.02, 1, 1))  # below: the caption
    common.save_figure(figure, path)


# ---- The command line ----------------------------------------------------------------------------
def load_data(settings):
    """Nothing: experiments.score asks for it, and the scores draw their points."""
    return None, None


@torch.random.fork_rng()
def evaluate(nets, data, test, settings, folder):
    """Scores and the rows of the printed table; the figure into the run's folder."""
    scores = score(nets, 1000 if settings.dry_run else 10_000)
    if settings.setting != "random":
        figure_mixture(nets, folder / "grid.png")
    return scores, table(scores, settings.setting)


def main(settings):
    run = common.Run("gaussians", settings, settings.setting)
    nets = build(settings)
    x_train, _ = draw_points(2000 if settings.dry_run else 100_000)  # the same for every device
    nets.to(run.device)
    with run.autocast():  # which frees the folder after an error
        train(run, nets, x_train.to(run.device))
    run.finish(*evaluate(nets, None, None, settings, run.folder))


if __name__ == "__main__":
    common.run_main(main, recipe)
