"""What aae.py is compared with: the VAE (Figure 2) and the Wasserstein autoencoders.

    python -m experiments.aae_compared                                          # Figure 2: a VAE
    python -m experiments.aae_compared --task likelihood --regularizer mmd      # WAE-MMD

Networks, priors, scores and figures are aae.py's. Enc and Dec take one step on a sum,
    1/2 |x - Dec(z)|^2  +  lambda * regulariser,
where the AAE takes a step for each of two losses. The regulariser is
    kl        the VAE's KL(q(z|x) || p(z)); lambda is the variance of its Gaussian decoder
    mmd       WAE-MMD's MMD^2(q(z), p(z)) (Tolstikhin et al. 2018, arXiv 1711.01558, Algorithm 2)
    wae-gan   WAE-GAN's -log Disc(z) (Algorithm 1): the AAE, but for the sum and lambda
The kernel of mmd is summed over seven scales, as in the released code; the paper has one. Its
lambda is that code's in these units; those of kl and wae-gan are ours, not tuned. Figure 2 has 15
epochs, about as many minutes as the AAE's 8: 8 are too few for a VAE (results/NOTES.md).
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import aae
import common
from aae import PRIORS, build, discriminator_loss, evaluate, rate, reconstruction_loss, update
from common import Weight
from experiments import aae_priors, aae_scores, batch_norm
from experiments.aae_scores import draw_prior, mmd_loss

import torch

SCALES = 0.1, 0.2, 0.5, 1, 2, 5, 10


@dataclass
class Settings(aae.Settings):
    task: Literal["prior", "likelihood"] = "prior"  # the paper's experiment
    regularizer: Literal["kl", "mmd", "wae-gan"] = "kl"  # VAE, WAE-MMD, WAE-GAN
    regularizer_weight: Weight = 1.0  # its lambda
    lr_encoder: common.Rate = None  # Enc has one rate: lr
    recipe: Literal["ours", "paper"] = None  # it has none of our additions


WITHOUT_GAME = {"lr_disc": None, "lr_disc_end": None, "beta1": None}
RECIPES = {
    ("prior", "kl"): {"encoder": "gaussian", "regularizer_weight": 1.0, **WITHOUT_GAME},
    ("prior", "mmd"): {"regularizer_weight": 100.0, **WITHOUT_GAME},
    ("prior", "wae-gan"): {"lr_disc": 1e-3},
    ("likelihood", "kl"): {"encoder": "gaussian", "regularizer_weight": 0.1, **WITHOUT_GAME},
    ("likelihood", "mmd"): {"regularizer_weight": 100.0, **WITHOUT_GAME},
    ("likelihood", "wae-gan"): {"encoder": "gaussian"},
}
PRIOR = Settings(epochs=15, lr_disc=3e-4)
LIKELIHOOD = replace(PRIOR, task="likelihood", epochs=20, z_dim=8, dropout=0.2)


def recipe(task="prior", regularizer="kl"):
    """The settings of a task and a regulariser. (The flags' parser refuses unknown ones.)"""
    settings = LIKELIHOOD if task == "likelihood" else PRIOR
    changes = RECIPES.get((task, regularizer), {})
    return replace(settings, task=task, regularizer=regularizer, **changes)


def kl_loss(mu, logvar, std=1.0):
    """KL(N(mu, exp(logvar)) || N(0, std^2 I)) in nats. mu, logvar [B, d]."""
    squares = (mu.square() + logvar.exp()) / std**2
    return 0.5 * (squares - 1 - logvar + 2 * math.log(std)).sum(1).mean()


def sampled_kl_loss(z, mu, logvar, log_prior):
    """KL(q(z|x) || p(z)) in nats, estimated from one sample z [B, d] of q(z|x): the mean of
    log q(z|x) - log p(z). log_prior: log p(z) [B]."""
    log_q = -0.5 * ((z - mu).square() / logvar.exp() + logvar + math.log(2 * math.pi)).sum(1)
    return (log_q - log_prior).mean()


def regulariser(nets, o, z, mu, logvar):
    """The regulariser before lambda: a number. z [B, z_dim]: samples of q(z|x).
    mu, logvar [B, z_dim]; logvar None: z is mu."""
    if o.regularizer == "wae-gan":
        return aae.adversarial_loss(nets.disc(z / o.prior_std))
    if o.regularizer == "mmd":
        return mmd_loss(z, draw_prior(nets, len(z), z.device), o.prior_std, SCALES)
    if o.prior == "gaussian":
        return kl_loss(mu, logvar, o.prior_std)
    return sampled_kl_loss(z, mu, logvar, aae_priors.log_density(nets.prior, z))


def train(run, nets, data):
    """One step of Enc and Dec on every batch, and for wae-gan one of Disc."""
    o, enc, dec, disc = run.settings, nets.enc, nets.dec, nets.disc
    game = o.regularizer == "wae-gan"
    opt_r = torch.optim.Adam([*enc.parameters(), *dec.parameters()], o.lr, fused=True)
    betas = {"betas": (o.beta1 if game else 0.5, 0.999), "fused": True}
    opt_d = torch.optim.Adam(disc.parameters(), o.lr_disc if game else 0.0, **betas)
    run.track(nets=nets, opt_r=opt_r, opt_d=opt_d)
    steps = o.epochs * math.ceil(len(data.y) / o.batch_size)
    nets.train()
    for _ in run.epochs():
        for i in run.batches(torch.randperm(len(data.y)), o.batch_size):
            opt_r.param_groups[0]["lr"] = o.lr * rate(run.step, steps)
            x = aae.warp(common.to_float(data.x[i]), o.warp)
            noisy = aae.add_noise(x, o.noise)

            # Enc, Dec minimise  1/2 |x - Dec(z)|^2 + lambda * regulariser
            _, mu, logvar = enc(noisy)
            z = mu if logvar is None else mu + torch.randn_like(mu) * (logvar / 2).exp()
            loss_r = reconstruction_loss(dec(None, z), x)
            extra = regulariser(nets, o, z, mu, logvar)
            update(opt_r, loss_r + o.regularizer_weight * extra)
            losses = {"reconstruction": loss_r, "regularizer": extra}

            # Disc minimises  - log Disc(z') - log(1 - Disc(z)),  z' from p(z)
            if game:
                opt_d.param_groups[0]["lr"] = o.lr_disc * rate(run.step, steps, o.lr_disc_end)
                with torch.no_grad():
                    _, z = enc.sample(noisy)
                z_prior = draw_prior(nets, len(z), z.device)
                both = torch.cat([z_prior, z]) / o.prior_std
                loss_d = discriminator_loss(*disc(both).chunk(2))
                update(opt_d, loss_d)
                losses["disc"] = loss_d
            run.log(**losses)


def main(o):
    aae_scores.check(o, PRIORS)
    if o.regularizer == "kl" and o.encoder != "gaussian":
        raise common.UserError("--regularizer kl is of --encoder gaussian")
    images, test = common.load_data(o)
    data, _, _ = aae_scores.split(images, o)
    run = common.Run("aae_compared", o, aae_scores.name(o))
    nets = build(o).to(run.device)
    with run.autocast():
        train(run, nets, data)
    batch_norm.settle(nets.enc, ((x,) for x in batch_norm.image_parts(data.x)))
    run.finish(*evaluate(nets, images, test, o, run.folder))


if __name__ == "__main__":
    common.run_main(main, recipe)
