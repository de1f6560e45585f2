"""Figures 1 and 2(b) of Chen et al.: a regular GAN, without a reward for its code.

    python -m experiments.infogan_regular
    python -m experiments.infogan_regular --beside runs/infogan/mnist-seed0     # Figure 1 of both

Networks, scores and the other settings are infogan.py's. D and G play eq. 1. Q learns to read the
code from the trunk's features, but neither the trunk nor G gets Q's gradient. Figure 1 is this
run's information.png; with --beside it has both curves.
"""

import dataclasses
import math

import common
import infogan
from experiments import infogan_scores, scores
from infogan import update

import torch

# Settings of infogan.py that mean nothing here: None, so there is no such flag.
NONE = "recipe category_weight continuous_weight continuous_start warp far far_judged".split()


@dataclasses.dataclass
class Settings(infogan.Settings):
    beside: str = ""  # a finished run of infogan.py, whose L_I is drawn, too


def recipe():
    """infogan.py's settings without rewards, additions and recipes."""
    return Settings(**dict.fromkeys(NONE))


def train(run, nets, data):
    """Eq. 1, and Q beside it."""
    o, trunk, d, q, gen = run.settings, nets.trunk, nets.d, nets.q, nets.gen
    adam = {"betas": (o.beta1, 0.999), "fused": True}
    d_and_q = [*trunk.parameters(), *d.parameters(), *q.parameters()]
    opt_d = torch.optim.Adam(d_and_q, o.lr_disc, **adam)
    opt_g = torch.optim.Adam(gen.parameters(), o.lr, **adam)
    run.track(nets=nets, opt_d=opt_d, opt_g=opt_g)
    nets.train()

    for _ in run.epochs():
        for index in run.batches(torch.randperm(len(data.y)), o.batch_size):
            done = (run.step - 1) / len(nets.curve)
            opt_d.param_groups[0]["lr"] = o.lr_disc * infogan.rate(done, o.schedule)
            opt_g.param_groups[0]["lr"] = o.lr * infogan.rate(done, o.schedule)
            x = common.to_float(data.x[index])
            z, c1, c2 = infogan.draw_codes(o, len(x), x.device)
            fake = gen(z, c1, c2)

            # D minimises  - log D(x) - log(1 - D(G(z,c))).  Q alone:  - log Q(c|G(z,c))
            h = trunk(fake.detach())
            loss_d = infogan.discriminator_loss(d(trunk(x)), d(h))
            logits, mean = q(h.detach())
            category = infogan.category_loss(logits, c1)
            continuous = infogan.continuous_loss(mean, c2)
            update(opt_d, loss_d + category + continuous)

            # G minimises  - log D(G(z,c))
            loss_g = infogan.adversarial_loss(d(trunk(fake)))
            update(opt_g, loss_g)

            bound = nets.curve[run.step - 1] = infogan.mutual_information(logits, c1).detach()
            run.log(disc=loss_d, gen=loss_g, category=category, continuous=continuous, bound=bound)


def load(folder, device="cpu"):
    """The trained networks of a finished run, in eval mode."""
    return infogan.load(folder, device, recipe)


@torch.random.fork_rng()
def evaluate(nets, data, test, o, folder):
    """Figures into the run's folder; returns the scores and the rows of the printed table."""
    functions = infogan.build, infogan.draw_codes, infogan.decode
    found, order = infogan_scores.evaluate(nets, *functions, data, test, o)
    common.say("figures")
    if o.categories:
        curves = {"InfoGAN": infogan.load(o.beside).curve} if o.beside else {}
        curves["regular GAN"] = nets.curve
        infogan_scores.figure_information(curves, o.categories, folder / "information.png")
        path, words = folder / "categories.png", "Categories of a regular GAN (Fig. 2b)"
        infogan.figure_categories(nets, o, path, order.sort().values, words)
    return found, infogan_scores.table(found, o, len(data.y.unique()), regular=True)


def main(settings):
    data, test = common.load_data(settings)
    scores.judge_of(settings)  # a damaged file should fail now, not after the training
    if settings.beside:  # a wrong folder should fail now
        other = infogan.load(settings.beside).settings
        if (other.dataset, other.categories) != (settings.dataset, settings.categories):
            raise common.UserError(f"'{settings.beside}' has another data set or --categories")
    run = common.Run("infogan_regular", settings)
    steps = math.ceil(len(data.y) / settings.batch_size)
    nets = infogan.build(settings, steps).to(run.device)
    with run.autocast():
        train(run, nets, data)
    run.finish(*evaluate(nets, data, test, settings, run.folder))


if __name__ == "__main__":
    common.run_main(main, recipe)
