"""bigan.py and its files in experiments/.

Losses against independent answers, simultaneous steps against a second implementation, scores that
catch degenerate models, the command line.
"""

import copy
import dataclasses
import inspect
import json
import math
import sys
from pathlib import Path

import bigan
import common
from experiments import (
    bigan_baselines,
    bigan_product,
    bigan_released,
    bigan_scores,
    command_line,
    gaussians,
    run_folder,
    score,
    scores,
)

import pytest
import torch
import torch.nn.functional as F
from kills import same
from torch import nn


def settings(script=bigan, model="bigan", recipe="ours", **changes):
    plain = script.recipe(model, recipe)
    small = {"device": "cpu", "precision": "fp32", "out": "run", "hidden": 12, "z_dim": 5}
    return dataclasses.replace(plain, **{**small, **changes})


def mnist(count, part=0):
    return common.load_dataset("mnist")[part].take(slice(0, count))


def weights(nets):
    return {name: p.detach().clone() for name, p in nets.named_parameters()}


# ---- Losses --------------------------------------------------------------------------------------
def test_adversarial_losses_against_their_formulas():
    torch.manual_seed(0)
    real, made = torch.randn(2, 7, dtype=torch.float64)
    D = torch.sigmoid
    loss_d = -D(real).log().mean() - (1 - D(made)).log().mean()
    assert torch.allclose(bigan.discriminator_loss(real, made), loss_d)
    swapped = -(1 - D(real)).log().mean() - D(made).log().mean()
    assert torch.allclose(bigan.swapped_loss(real, made), swapped)
    assert torch.allclose(bigan_baselines.generator_loss(made), -D(made).log().mean())
    zero = torch.zeros(4)
    for loss in (bigan.discriminator_loss, bigan.swapped_loss):
        assert loss(zero, zero).item() == pytest.approx(2 * math.log(2))
    assert bigan_baselines.generator_loss(zero).item() == pytest.approx(math.log(2))
    far = torch.full((2,), 500.0)
    assert bigan.swapped_loss(far, -far).isfinite()  # log(1 - D) alone is infinite


def test_the_swapped_labels_do_not_saturate():
    real, made = torch.tensor([12.0], requires_grad=True), torch.tensor([-12.0], requires_grad=True)
    minimax = torch.autograd.grad(-bigan.discriminator_loss(real, made), (real, made))
    swapped = torch.autograd.grad(bigan.swapped_loss(real, made), (real, made))
    for a, b in zip(minimax, swapped):
        assert a.abs() < 1e-4 and b.abs() > 0.99 and a.sign() == b.sign()


def test_regression_is_a_cross_entropy_of_the_mapped_code():
    torch.manual_seed(0)
    logits, z = torch.randn(6, 4).double(), 2 * torch.rand(6, 4).double() - 1
    u, p = (z + 1) / 2, torch.sigmoid(logits)
    truth = -(u * p.log() + (1 - u) * (1 - p).log()).sum(1).div(4).mean()
    loss = bigan_baselines.regression_loss
    assert torch.allclose(loss(logits, z), truth)
    assert loss(torch.zeros(2, 3), torch.rand(2, 3)).item() == pytest.approx(math.log(2))
    best = torch.logit(u).requires_grad_()  # least where the bounded code is z itself
    assert torch.autograd.grad(loss(best, z), best)[0].abs().max() < 1e-12


@pytest.mark.parametrize("power", [1, 2])
def test_errors_against_a_double_loop(power):
    torch.manual_seed(0)
    a, b = torch.rand(2, 3, 1, 2, 4, dtype=torch.float64)
    error = (bigan_baselines.absolute_error, bigan.squared_error)[power - 1]
    truth = 0.0
    for x, y in zip(a.flatten().tolist(), b.flatten().tolist()):
        truth += abs(x - y) ** power / 3
    assert error(a, b).item() == pytest.approx(truth, rel=1e-12)


def test_the_penalty_is_the_squared_slope_of_each_pair():
    torch.manual_seed(0)
    w = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    x, z = torch.randn(5, 3).double().requires_grad_(), torch.randn(5, 2).double()

    def disc(x, z):
        return x.square().sum(1) + z @ w

    value = bigan.slope_penalty(disc, x, z)
    assert torch.allclose(value, (4 * x.square().sum(1)).mean() + 5)
    to_w, to_x = torch.autograd.grad(value, (w, x), allow_unused=True)
    assert torch.allclose(to_w, 2 * w) and to_x is None
    twice = gaussians.slope(lambda x: x.square().sum(1), 3.0, x, 2 * x)
    assert torch.allclose(twice, 3 * (4 * x.square().sum(1)).mean() * 5)
    assert gaussians.slope(None, 0.0, x) == 0


# ---- Networks ------------------------------------------------------------------------------------
def shapes(net):
    return sorted(tuple(p.shape) for p in net.parameters())


def test_networks_have_the_papers_sizes_and_initial_weights():
    nets = bigan.build(bigan.recipe("bigan", "paper"))
    assert shapes(nets.enc) == [(50, 1024), (1024, 784), (1024, 1024)]
    assert shapes(nets.gen) == [(784, 1024), (1024, 50), (1024, 50), (1024, 1024)]
    assert shapes(nets.disc) == [(1, 1024), (1024, 50), (1024, 784), (1024, 1024)]
    assert nets.disc.skip is None and (nets.disc.out.weight == 0).all()
    for p in nets.parameters():
        assert p is nets.disc.out.weight or p.std().item() == pytest.approx(0.02, abs=1e-3)
    ours = bigan.build(bigan.recipe())
    assert ours.disc.skip.weight.shape == (1, 1024) and (ours.disc.skip.weight == 0).all()
    assert bigan.build(bigan.recipe("ali")).enc.out.weight.shape == (100, 1024)
    product = bigan_product.build(bigan_product.recipe())
    assert product.disc.u.weight.shape == (256, 1024) and product.disc.skip is None


def test_initial_weights_of_the_baselines():
    for model in ("latent-regressor", "joint-latent-regressor", "untrained"):
        nets = bigan_baselines.build(bigan_baselines.recipe(model))
        assert (nets.enc.out.weight == 0).all() == (model != "untrained")
    nets = bigan_baselines.build(bigan_baselines.recipe("gan"))
    assert not hasattr(nets, "enc") and (nets.disc.skip.weight == 0).all()
    assert shapes(nets.disc) == [(1, 1024), (1, 1024), (1024, 784), (1024, 1024)]
    assert bigan_baselines.build(bigan_baselines.recipe("gan", "paper")).disc.skip is None


def test_codes_and_their_priors():
    torch.manual_seed(0)
    x, enc = torch.rand(8, 1, 28, 28), bigan.Encoder(hidden=16)
    logits = enc.features(x) @ enc.out.weight.t()
    assert torch.allclose(enc(x), 2 * torch.sigmoid(logits) - 1, atol=1e-6)
    for model, square in (("bigan", 1 / 3), ("ali", 1), ("alice", 1)):
        z = bigan.draw_prior(model, 20_000, 50, "cpu")
        assert z.shape == (20_000, 50) and abs(z.square().mean() - square) < 0.01
        assert (z.abs().max() <= 1) == (model == "bigan")


def test_the_posterior_has_the_priors_scale_whatever_the_weights():
    torch.manual_seed(0)
    enc, x = bigan.GaussianEncoder(z_dim=5, hidden=12), torch.rand(64, 1, 28, 28)
    nn.init.normal_(enc.out.weight, std=50.0)
    mu = enc(x, sample=False)
    assert torch.allclose(mu.mean(0), torch.zeros(5), atol=1e-3)
    assert torch.allclose(mu.var(0, unbiased=False), torch.ones(5), atol=1e-3)
    noise = torch.stack([enc(x) - mu for _ in range(500)])
    width = enc.out(enc.features(x))[:, 5:]
    assert torch.allclose(noise.std(0), torch.sigmoid(width), rtol=0.2, atol=1e-3)  # at most 1
    enc(x).sum().backward()
    assert enc.out.weight.grad[5:].abs().sum() > 0  # the deviation is learned


@pytest.mark.parametrize("skip", [False, True])
def test_d_is_blind_to_a_batch_of_equal_images_but_for_the_skip(skip):
    torch.manual_seed(0)
    one, other = torch.rand(2, 1, 784, dtype=torch.float64).expand(2, 32, 784)
    disc = bigan_baselines.ImageDiscriminator(hidden=64, skip=skip).double()
    assert disc(torch.rand(32, 784).double()).abs().mean() > 0.1
    assert (disc(one).abs().mean() > 0.01) == skip
    disc, z = bigan.Discriminator(hidden=64, skip=skip).double(), torch.rand(32, 50).double()
    assert disc(one, z).std() > 0.01  # of z
    assert torch.allclose(disc(one, z), disc(other, z), atol=1e-6) != skip


SNIPPETS = {
    "Encoder": lambda f: f()(torch.rand(4, 784)).shape == (4, 50),
    "Generator": lambda f: f()(torch.rand(4, 50)).shape == (4, 1, 28, 28),
    "Discriminator": lambda f: f()(torch.rand(4, 784), torch.rand(4, 50)).shape == (4,),
    "GaussianEncoder": lambda f: f()(torch.rand(4, 784)).shape == (4, 50),
    "discriminator_loss": lambda f: f(torch.zeros(2), torch.zeros(2)) > 1,
    "swapped_loss": lambda f: f(torch.zeros(2), torch.zeros(2)) > 1,
    "squared_error": lambda f: f(torch.zeros(2, 3), torch.ones(2, 3)) == 3,
}


@pytest.mark.parametrize("name", SNIPPETS)
def test_snippets_need_torch_alone(name):
    space = {"torch": torch, "nn": nn, "F": F, "math": math}
    for part in ("Network", "Encoder", name):
        exec(inspect.getsource(getattr(bigan, part)), space)
    assert SNIPPETS[name](space[name])


# ---- A step, by hand -----------------------------------------------------------------------------
BASELINES = ("gan", "latent-regressor", "joint-latent-regressor", "ae-l2", "ae-l1")
CASES = [
    (bigan, "bigan", {}),
    (bigan, "ali", {"skip_fade": 0.5}),
    (bigan, "alice", {"cycle_weight": 0.3}),
    (bigan, "bigan", {"recipe": "paper"}),
    (bigan_product, "bigan", {"product": 3}),
    (bigan_baselines, "gan", {"recipe": "paper"}),
    *((bigan_baselines, model, {}) for model in BASELINES),
]


class Enough(Exception):
    pass


def ready(script, o):
    """Networks whose weights matter, a batch of 16 in the order of the data."""
    torch.manual_seed(0)
    nets = script.build(o)
    for p in nets.parameters():
        nn.init.normal_(p, std=0.2)
    return nets, mnist(16)


def run_steps(script, o, nets, data, monkeypatch, stop_at=None):
    """Train; `order` is that of the data, noise follows seed 5. Returns the losses of each step."""
    logged = []

    def log(run, **losses):
        logged.append({name: loss.item() for name, loss in losses.items()})
        run.rows, run.names = [torch.zeros(1)], ["none"]
        if len(logged) == stop_at:
            raise Enough

    def randperm(n):
        torch.manual_seed(5)
        return torch.arange(n)

    train = getattr(script, "train", bigan.train)
    with monkeypatch.context() as patch:
        patch.setattr(common.Run, "log", log)
        patch.setattr(torch, "randperm", randperm)
        run = common.Run("bigan", dataclasses.replace(o, out=""))
        try:
            train(run, nets, data)
        except Enough:
            pass
    return logged


def lrelu(h):
    return torch.where(h > 0, h, 0.2 * h)


def norm(h):
    return (h - h.mean(0)) / (h.var(0, unbiased=False) + 1e-5).sqrt()


def linear(net, name, h):
    return h @ getattr(net, name).weight.t()


class ByHand:
    """The networks' functions again, spelled out."""

    def __init__(self, nets, o):
        self.nets, self.o = nets, o

    def enc(self, x, sample=True):
        """The code, and E's output."""
        e = self.nets.enc
        h = lrelu(norm(linear(e, "layer2", lrelu(linear(e, "layer1", x)))))
        out = linear(e, "out", h)
        if self.o.model not in ("ali", "alice"):
            return 2 / (1 + torch.exp(-out)) - 1, out
        mu = norm(out[:, : self.o.z_dim])
        sigma = 1 / (1 + torch.exp(-out[:, self.o.z_dim :]))
        return mu + sigma * torch.randn(mu.shape) if sample else mu, out

    def gen(self, z):
        g = self.nets.gen
        h = norm(linear(g, "layer1", z)).clamp(min=0)
        h = norm(linear(g, "layer2", h) + linear(g, "from_z", z)).clamp(min=0)
        return 1 / (1 + torch.exp(-linear(g, "out", h)))

    def logit(self, x, z=None):
        d = self.nets.disc
        h1 = lrelu(linear(d, "layer1", x))
        h2 = linear(d, "layer2", h1)
        h2 = h2 if z is None else h2 + linear(d, "from_z", z)
        logit = linear(d, "out", lrelu(norm(h2)))[:, 0]
        if d.skip is not None:  # in step 1 its share is 1
            logit = logit + linear(d, "skip", h1)[:, 0]
        if hasattr(d, "u"):
            product = linear(d, "u", h1) * linear(d, "v", z)
            logit = logit + product.sum(1) / math.sqrt(3)
        return logit

    def D(self, *pair):
        return torch.sigmoid(self.logit(*pair))

    def steep(self, *pair):
        """4 gamma / 2 times the mean of |dD|^2, the norm over pixels and code together."""
        pair = [part.detach().clone().requires_grad_() for part in pair]
        slopes = torch.autograd.grad(self.logit(*pair).sum(), pair, create_graph=True)
        return 2 * self.o.penalty * sum((s**2).sum() for s in slopes) / len(pair[0])

    def joint(self, x):
        """Losses of D, of E and G, and what is logged."""
        o = self.o
        torch.manual_seed(5)
        z = torch.rand(len(x), 5) * 2 - 1 if o.model == "bigan" else torch.randn(len(x), 5)
        z_x, x_z = self.enc(x)[0], self.gen(z)
        real, made = self.D(x, z_x), self.D(x_z, z)
        loss_d = -(real.log() + (1 - made).log()).mean()
        swapped = -((1 - real).log() + made.log()).mean()
        cycle = torch.zeros(())
        if o.model == "alice":
            z_again = self.enc(x_z, sample=False)[0]
            cycle = (((self.gen(z_x) - x) ** 2).sum() + ((z_again - z) ** 2).sum()) / len(x)
        steep = self.steep(x, z_x) + self.steep(x_z, z) if o.penalty else 0
        told = {"disc": loss_d, "swapped": swapped, "cycle": cycle}
        return loss_d + steep, swapped + o.cycle_weight * cycle, told

    def baseline(self, x):
        o = self.o
        torch.manual_seed(5)
        if o.model in ("ae-l1", "ae-l2"):
            error = (self.gen(self.enc(x)[0]) - x).abs()
            loss = (error**2 if o.model == "ae-l2" else error).sum() / len(x)
            return None, loss, {"pixel": loss}
        z = torch.rand(len(x), 5) * 2 - 1
        x_z = self.gen(z)
        real, made = self.D(x), self.D(x_z)
        loss_d, loss_g = -(real.log() + (1 - made).log()).mean(), -made.log().mean()
        regression, weight = torch.zeros(()), 1.0
        if o.model != "gan":
            joint = o.model == "joint-latent-regressor"
            weight = 0.25 if joint else 1.0
            p, u = torch.sigmoid(self.enc(x_z if joint else x_z.detach())[1]), (z + 1) / 2
            regression = -(u * p.log() + (1 - u) * (1 - p).log()).mean()
        told = {"disc": loss_d, "gen": loss_g, "regression": regression}
        return loss_d, loss_g + weight * regression, told


@pytest.mark.parametrize(
    "script, model, changes", CASES, ids=lambda v: str(getattr(v, "__name__", v))
)
def test_a_step_is_simultaneous_and_the_papers(script, model, changes, monkeypatch):
    changes = dict(changes)
    o = settings(script, model, changes.pop("recipe", "ours"), batch_size=16, **changes)
    if getattr(o, "penalty", 0):
        o.penalty = 3.0
    nets, data = ready(script, o)
    mine, before = copy.deepcopy(nets), weights(nets)
    steps = []

    class Plain(torch.optim.SGD):  # in place of Adam: a weight moves by its gradient
        def __init__(self, parameters, lr, betas, weight_decay, fused):
            steps.append((betas, weight_decay))
            super().__init__(parameters, lr)

    monkeypatch.setattr(torch.optim, "Adam", Plain)
    (logged,) = run_steps(script, o, nets, data, monkeypatch, stop_at=1)
    hand = ByHand(mine, o)
    x = data.x.flatten(1) / 255
    loss_d, loss_ge, told = hand.baseline(x) if script is bigan_baselines else hand.joint(x)
    assert logged == pytest.approx({k: v.item() for k, v in told.items()}, rel=1e-4, abs=1e-7)
    decays = [5e-5 if o.recipe == "paper" else 2.5e-5] * 2
    if script is bigan_baselines:  # released: D's loss alone is halved
        decays[0] = 2.5e-5
    assert steps == [((0.5, 0.999), decay) for decay in decays][: len(steps)]
    first = bigan.rate(1, o.epochs, o.schedule)
    for loss, of_d in ((loss_d, True), (loss_ge, False)):
        named = {n: p for n, p in mine.named_parameters() if n.startswith("disc") == of_d}
        if loss is None:
            assert not named
            continue
        slopes = torch.autograd.grad(loss, list(named.values()), retain_graph=True)
        for (name, p), slope in zip(named.items(), slopes):  # all at the old parameters
            by = first * (o.lr_disc if of_d else o.lr) * slope
            moved = before[name] - dict(nets.named_parameters())[name].detach()
            assert by.abs().max() > 0, name
            assert torch.allclose(moved, by, atol=3e-3 * by.abs().max() + 6e-8), name
    assert all(p.grad is None for p in nets.parameters())


def test_update_is_a_step_on_the_gradient_of_its_own_parameters():
    a, b = nn.Parameter(torch.tensor([1.0, 2.0])), nn.Parameter(torch.tensor([3.0, 4.0]))
    optimiser = torch.optim.SGD([a], lr=0.1)
    for _ in range(2):  # twice: gradients do not pile up
        bigan.update(optimiser, (a * b).sum())
    assert torch.allclose(a, torch.tensor([1 - 0.6, 2 - 0.8]))
    assert b.tolist() == [3, 4] and b.grad is None
    product = 2 * a * b  # two losses of the same calls
    bigan.update(optimiser, product.sum(), keep=True)
    bigan.update(torch.optim.SGD([b], lr=0.1), -product.sum())
    assert torch.allclose(a, torch.tensor([0.4 - 0.6, 1.2 - 0.8]))
    assert torch.allclose(b, torch.tensor([3 + 0.08, 4 + 0.24])) and a.grad is b.grad is None


# ---- Along a run ---------------------------------------------------------------------------------
def test_rates_and_the_papers_recipe():
    def rates(steps, of, schedule):
        return [bigan.rate(step, of, schedule) for step in steps]

    linear = rates((1, 50, 100, 5001, 7501, 10_000), 10_000, "linear")
    assert linear == pytest.approx([0.01, 0.5, 1, 1, 0.5, 0.01])
    assert rates((1, 2, 3), 20, "linear") == pytest.approx([0.5, 1, 1])  # short: a tenth
    exponential = rates((1, 200, 201, 251, 301, 400), 400, "exponential")
    released = [1, 1, 1, 6.2e-5 / 2e-4, 0.1, 0.01]
    assert exponential == pytest.approx(released, rel=0.03)
    for model in ("bigan", "ali", "alice"):
        ours, paper = bigan.recipe(model), bigan.recipe(model, "paper")
        assert (paper.epochs, paper.batch_size, paper.lr, paper.lr_disc) == (400, 128, 2e-4, 2e-4)
        assert (paper.penalty, paper.skip_fade, paper.average) == (0, 0, 0)
        assert paper.weight_decay == 2 * ours.weight_decay  # losses are twice the released ones
        assert (ours.penalty, ours.average, ours.epochs) == (0.5, 0.999, 30)
        assert (ours.skip_fade > 0) == (model == "bigan")
        assert (ours.cycle_weight, ours.model) == (0.05 if model == "alice" else 0, model)
        assert ours.beta1 == 0.5 and ours.weight_decay == 2.5e-5 and ours.z_dim == 50
    gan, joint = bigan_baselines.recipe("gan"), bigan_baselines.recipe("joint-latent-regressor")
    assert (gan.lr, gan.lr_disc, gan.skip, joint.regressor_weight) == (2e-4, 2e-4, "yes", 0.25)
    assert bigan_baselines.recipe("ae-l1").lr == 5e-4
    paper = bigan_baselines.recipe("ae-l1", "paper")
    assert (paper.lr, paper.epochs, paper.average, paper.weight_decay) == (2e-4, 400, 0, 2.5e-5)
    gan = bigan_baselines.recipe("gan", "paper")
    assert (gan.weight_decay, gan.decay_disc, gan.skip) == (2.5e-5, 5e-5, "no")
    for model in ("bigan", *BASELINES):  # the settings of the model's own script
        script = bigan if model == "bigan" else bigan_baselines
        assert bigan_released.recipe(model) == script.recipe(model, "paper")


def spied(monkeypatch, script=bigan, **changes):
    """Eight steps; at each update the rate, the share of D's skip, whether D's loss has a penalty;
    after each step the weights."""
    seen, after = [], []
    real, penalty = bigan.update, bigan.slope_penalty
    penalties = []

    def update(optimiser, loss, **words):
        share = nets.disc.skip_share.item() if script is bigan else 1
        seen.append((optimiser.param_groups[0]["lr"], share, len(penalties)))
        penalties.clear()
        real(optimiser, loss, **words)
        after.append(weights(nets))

    def slope_penalty(*words):
        penalties.append(words)
        return penalty(*words)

    o = settings(script, script.recipe().model, epochs=2, batch_size=10, **changes)
    torch.manual_seed(0)
    nets = script.build(o)
    for module, name, spy in ((script, "update", update), (bigan, "slope_penalty", slope_penalty)):
        monkeypatch.setattr(module, name, spy)
    script.train(common.Run("bigan", o), nets, mnist(38))  # four steps an epoch
    return nets, seen, after[1::2]


@pytest.mark.parametrize("script", [bigan, bigan_baselines])
def test_rates_skip_and_penalty_along_a_run(script, monkeypatch):
    _, seen, _ = spied(monkeypatch, script, lr=1e-3, lr_disc=3e-3)
    factors = [bigan.rate(step, 8, "linear") for step in range(1, 9)]
    assert [lr for lr, _, _ in seen[0::2]] == pytest.approx([1e-3 * f for f in factors])
    assert [lr for lr, _, _ in seen[1::2]] == pytest.approx([3e-3 * f for f in factors])
    if script is bigan:
        assert [share for _, share, _ in seen[0::2]] == [1, 0.75, 0.5, 0.25, 0, 0, 0, 0]
        assert [count for _, _, count in seen] == [0, 2, 0, 0, 0, 0, 0, 0] * 2


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_what_is_scored_is_the_average_of_the_weights(decay, monkeypatch):
    nets, _, after = spied(monkeypatch, average=decay)
    truth = after[0]
    for t, now in enumerate(after[1:], 1):
        d = min(decay, (1 + t) / (10 + t))  # smaller at first
        truth = {name: d * truth[name] + (1 - d) * now[name] for name in truth}
    found = weights(nets)
    assert all(torch.allclose(found[name], truth[name], atol=1e-7) for name in truth)
    x, z = torch.rand(4, 784), torch.rand(4, 5)  # the skip has faded: D is the published one
    disc = nets.disc
    assert (disc.skip.weight != 0).all() and disc.skip_share == 0
    faded = disc(x, z)
    disc.skip = None
    assert torch.allclose(faded, disc(x, z), atol=1e-6)


def test_the_released_recipe_holds_out_random_training_images(monkeypatch):
    data, test = mnist(24).take(slice(20)), mnist(24).take(slice(20, 24))
    monkeypatch.setattr(common, "load_data", lambda o: (data, test))
    o = bigan_released.recipe()
    assert bigan_released.load_data(o) == (data, test)
    held = dataclasses.replace(o, validation=True)
    torch.manual_seed(1)
    other = dataclasses.replace(held, seed=3)  # the same images for every seed
    (train, queries), again = bigan_released.load_data(held), bigan_released.load_data(other)
    assert torch.equal(train.x, again[0].x) and torch.equal(queries.x, again[1].x)
    assert len(train.y) == 20 and len(queries.y) == 4 and not torch.equal(queries.x, test.x)

    def pairs(*splits):
        return sorted((int(y), x.flatten().tolist()) for s in splits for x, y in zip(s.x, s.y))

    assert pairs(train, queries) == pairs(data, test)


@pytest.mark.parametrize("model", ["bigan", "gan"])
def test_the_released_recipe_measures_its_error_on_the_way(model, monkeypatch):
    """Twice in three epochs: by the weights of then, after a cut as without, and no training draws
    other numbers for it."""
    data = mnist(200)
    monkeypatch.setattr(common, "load_data", lambda o: (data.take(slice(120)), data))
    for script in (bigan, bigan_baselines):
        monkeypatch.setattr(script, "evaluate", lambda *_: ({"score": 1.0}, ()))
    small = {"epochs": 3, "batch_size": 40, "hidden": 8, "device": "cpu", "precision": "fp32"}
    o = dataclasses.replace(bigan_released.recipe(model), dry_run=True, **small)

    def trained(stop_at=None, every=1, **changes):
        monkeypatch.setattr(bigan_released.Run, "every", every)
        save, count = common.Run.save, [0]

        def counted(run, finished=False):
            save(run, finished)
            count[0] += 1
            if count[0] == stop_at:
                raise Enough

        monkeypatch.setattr(common.Run, "save", counted)
        try:
            bigan_released.main(dataclasses.replace(o, **changes))
        except Enough:
            pass
        monkeypatch.setattr(common.Run, "save", save)

    def found(folder):
        return json.loads(Path(folder, "metrics.json").read_text())

    names = ["nn_error_features_1", "nn_error_features_2"]
    trained(out="whole")
    trained(out="without", every=50)
    states = [run_folder.read_checkpoint(folder)["states"] for folder in ("whole", "without")]
    assert same(*states)
    assert not set(names) & set(found("without")) and found("whole")["score"] == 1
    trained(out="cut", stop_at=2)
    nets = bigan_released.build(o)
    nets.load_state_dict(torch.load("cut/checkpoint.pt")["states"]["nets"])
    before = copy.deepcopy(nets.state_dict())
    now = bigan_released.error_so_far(nets, data.take(slice(120)), data, o)
    assert same(before, nets.state_dict())
    trained(resume="cut")
    assert [found("cut")[name] for name in names] == [found("whole")[name] for name in names]
    assert found("whole")[names[1]] == now


def test_the_error_on_the_way_is_that_of_the_table(monkeypatch):
    """In fp32, whatever the training's precision; by the training images, of the test images."""
    o, data, test, seen = bigan_released.recipe(), mnist(60), mnist(20, 1), []

    def layer_error(net, *splits):
        h = net.features(common.to_float(data.x))
        seen.append((h.dtype, net.training, splits))

    monkeypatch.setattr(bigan_scores, "layer_error", layer_error)
    nets = bigan_released.build(dataclasses.replace(o, hidden=8))
    with torch.autocast("cpu", torch.bfloat16):
        bigan_released.error_so_far(nets, data, test, o)
    ((dtype, training, splits),) = seen
    assert dtype == torch.float32 and not training
    assert splits[0] is data and splits[1] is test


@pytest.mark.parametrize("script, model", [(bigan, "ali"), (bigan_baselines, "ae-l2")])
def test_a_run_ends_with_batch_norm_settled(script, model, monkeypatch):
    """To settle it again changes nothing."""
    data = mnist(300)
    monkeypatch.setattr(common, "load_data", lambda o: (data, data))
    monkeypatch.setattr(script, "evaluate", lambda *_: ({}, ()))
    o = settings(script, model, dry_run=True, epochs=1)
    script.main(o)
    nets = common.load("run", script.recipe, script.build)
    before = copy.deepcopy(nets.state_dict())
    script.settle(nets, data, o)
    for name, value in nets.state_dict().items():
        assert torch.allclose(value, before[name], atol=1e-6), name


def test_batch_norm_is_settled_with_the_final_weights_on_what_is_scored():
    baselines = (bigan_baselines, "ae-l2"), (bigan_baselines, "gan")
    for script, model in ((bigan, "bigan"), (bigan, "ali"), *baselines):
        o = settings(script, model)
        nets, _ = ready(script, o)
        data, state = mnist(300), torch.get_rng_state()
        script.settle(nets, data, o)
        assert torch.equal(state, torch.get_rng_state())
        assert not any(m.training for m in nets.children())
        x = data.x.flatten(1) / 255
        w, norm1 = nets.gen.layer1.weight, nets.gen.norm1
        if model == "gan":
            h = nets.disc.layer2(F.leaky_relu(nets.disc.layer1(x), 0.2))
            assert torch.allclose(nets.disc.norm.running_mean, h.mean(0), atol=1e-4)
        else:
            h = nets.enc.layer2(F.leaky_relu(nets.enc.layer1(x), 0.2))
            assert torch.allclose(nets.enc.norm.running_mean, h.mean(0), atol=1e-4)
            assert torch.allclose(nets.enc.norm.running_var, h.var(0), rtol=1e-3)
        if model == "ae-l2":
            h = bigan.encode(nets, data.x) @ w.t()
            assert torch.allclose(norm1.running_mean, h.mean(0), atol=1e-4)
        else:  # codes of the prior: mean 0, variance 1/3, or 1
            variance = 1 if model == "ali" else 1 / 3
            assert torch.allclose(norm1.running_var, w.square().sum(1) * variance, rtol=0.35)
        if model == "bigan":
            h = nets.disc.layer2(F.leaky_relu(nets.disc.layer1(x), 0.2))
            h = h + nets.disc.from_z(bigan.encode(nets, data.x))
            assert torch.allclose(nets.disc.norm.running_mean, h.mean(0), atol=1e-4)


# ---- Scores --------------------------------------------------------------------------------------
def fake_judge(logits):
    """Reads the class that stands in an image's first pixel; answers with that row of logits."""
    return lambda images: logits[images[:, 0, 0, 0].long()]


def test_image_quality_sees_collapse_and_doubt():
    sure = fake_judge(20 * torch.eye(10))
    every, one = torch.arange(10.0).repeat(20)[:, None, None, None], torch.zeros(200, 1, 1, 1)
    best = bigan_scores.image_quality(sure, every)
    assert best["sample_confidence"] == pytest.approx(100, abs=0.01)
    assert best["sample_classes"] == pytest.approx(10)
    assert best["sample_quality"] == pytest.approx(10, abs=0.01)
    collapsed = bigan_scores.image_quality(sure, one)
    assert collapsed["sample_confidence"] == pytest.approx(100, abs=0.01)
    assert collapsed["sample_classes"] == pytest.approx(1) == collapsed["sample_quality"]
    unsure = fake_judge(0.001 * torch.eye(10))
    doubtful = bigan_scores.image_quality(unsure, every)
    assert doubtful["sample_confidence"] < 11
    assert doubtful["sample_quality"] == pytest.approx(1, abs=0.01)


class Pixels(nn.Module):
    def features(self, x):
        return x.flatten(1)


def test_scores_of_models_that_are_known():
    """A code that is the image scores as raw pixels do; a G that ignores its code, badly."""
    data, test = mnist(2000), mnist(300, 1)
    o, judge = settings(dry_run=True), scores.load_judge("mnist")

    def encode(x):
        return common.to_float(x).flatten(1) * 2 - 1

    def decode(z):
        return ((z + 1) / 2).view(-1, 1, 28, 28)

    def draw(count):
        return torch.rand(count, 784) * 2 - 1

    def evaluate(*call):
        return bigan_scores.evaluate(o, data, test, judge, *call)[0]

    found, pixels = evaluate(Pixels(), encode, decode, draw), evaluate()
    x, x_test = data.x.flatten(1) / 255, test.x.flatten(1) / 255
    wrong = 0
    for query, label in zip(x_test, test.y):
        wrong += int(data.y[(x - query).square().sum(1).argmin()] != label)
    for value in (found["nn_error_features"], found["nn_error_code"], pixels["nn_error_features"]):
        assert value == pytest.approx(wrong / 3, abs=0.34)
    assert found["reconstruction_l2"] < 0.001 and found["reconstruction_digit"] > 99
    other = (x_test - x_test.roll(1, 0)).norm(dim=1).mean().item()
    assert found["reconstruction_l2_mismatched"] == pytest.approx(other, rel=1e-3)
    assert found["code_mse"] < 1e-6 and found["code_prior_square"] == pytest.approx(1 / 3, abs=0.01)
    assert found["code_square"] == pytest.approx((2 * x_test - 1).square().mean().item(), rel=1e-4)
    assert pixels["sample_confidence"] > 98 and "probe_error_code" in pixels
    assert "nn_error_code" not in pixels and "reconstruction_mse" not in pixels
    one = common.to_float(data.x[:1])
    bad = evaluate(Pixels(), encode, lambda z: one.expand(len(z), -1, -1, -1), draw)
    assert bad["reconstruction_digit"] < 20 and bad["reconstruction_l2"] > 8
    assert bad["sample_classes"] == pytest.approx(1)
    mse = (one.flatten(1) - x_test).square().mean().item()
    assert bad["reconstruction_mse"] == pytest.approx(mse, rel=1e-4)
    prior = (2 * one - 1).square().mean().item() + 1 / 3  # of E(G(z)) - z, which are unrelated
    assert bad["code_mse"] == pytest.approx(prior, rel=0.01)


@pytest.mark.parametrize("dry, epochs", [(True, 1), (False, 20)])
def test_a_linear_probe_reads_the_training_codes(dry, epochs, monkeypatch):
    data, test, asked = mnist(30), mnist(20, 1), []

    def probe(*words, **more):
        asked.append((words, more))
        return torch.tensor(1.0)

    monkeypatch.setattr(scores, "probe", probe)
    flat = lambda x: common.to_float(x).flatten(1)  # noqa: E731
    o, judge = settings(dry_run=dry), scores.load_judge("mnist")
    for call in (
        (Pixels(), flat, lambda z: z.view(-1, 1, 28, 28), lambda n: torch.rand(n, 784)),
        (),
    ):
        bigan_scores.evaluate(o, data, test, judge, *call)
        words, more = asked.pop()
        assert same(words, (flat(data.x), data.y, flat(test.x), test.y))
        assert more == {"hidden": 0, "epochs": epochs}


@pytest.mark.parametrize("model", ["ali", "alice"])
def test_the_code_of_an_image_is_the_mean(model):
    nets, x = bigan.build(bigan.recipe(model)).eval(), mnist(8).x
    mean = nets.enc(common.to_float(x), sample=False)
    assert torch.allclose(bigan.encode(nets, x), mean, atol=1e-5)


def test_an_interpolation_goes_from_the_left_image_to_the_right(monkeypatch):
    drawn, x = [], common.to_float(mnist(6, 1).x)

    def figure_grid(path, images, columns, title, left):
        drawn.extend((images.view(3, columns, 1, 28, 28), left))

    def encode(images):
        return common.to_float(images).flatten(1)

    def decode(z):
        return z.view(-1, 1, 28, 28)

    monkeypatch.setattr(bigan_scores, "figure_grid", figure_grid)
    bigan_scores.figure_interpolation(encode, decode, mnist(20, 1), "x.png", rows=3, steps=5)
    images, left = drawn
    assert images.shape[1] == 6 and torch.equal(common.to_float(left), x[0::2])
    for k, share in enumerate((0, 0.25, 0.5, 0.75, 1, 1)):  # the last is the image itself
        assert torch.allclose(images[:, k], torch.lerp(x[0::2], x[1::2], share), atol=1e-6)


def test_figures_mark_what_changed_its_class(monkeypatch):
    o, test, drawn = settings(), mnist(300, 1), []
    nets = bigan.build(o).eval()
    judge = scores.load_judge("mnist")
    monkeypatch.setattr(common, "figure_grid", lambda *words: drawn.append(words))
    bigan.figure_reconstructions(nets, test, "x.png", judge)
    _, images, columns, title = drawn[0]
    again = bigan.decode(nets, bigan.encode(nets, test.x[test.y == 0][:1]))
    wrong = judge.classify(again) != 0
    assert columns == 16 and images.shape == (160, 3, 28, 28)
    assert torch.equal(images[0], common.to_float(test.x[test.y == 0][0]).expand(3, -1, -1))
    assert torch.allclose(images[1, 0], again[0, 0], atol=1e-6)
    red = torch.allclose(images[1, 1], 0.35 * again[0, 0], atol=1e-6)
    assert red == wrong.item() and " of 80 changed" in title
    few = torch.cat([(test.y == label).nonzero()[:count, 0] for label, count in ((1, 3), (4, 9))])
    bigan.figure_reconstructions(nets, test.take(few), "x.png", judge)
    _, images, columns, title = drawn[1]
    assert columns == 6 and len(images) == 12 and " of 6 changed" in title
    assert torch.equal(images[6, 0], common.to_float(test.x[few[3]])[0])  # a new class, a new row


def test_the_table_says_what_is_best_for_these_classes_and_compares_like_with_like():
    found = dict.fromkeys(("nn_error_features", "sample_classes", "sample_quality"), 1.0)

    def rows(o, classes=10):
        return [row[2:] for row in bigan_scores.table_rows(found, o, 90.0, classes)]

    assert rows(bigan.recipe())[0][0] == "2.61"
    assert rows(dataclasses.replace(bigan.recipe(), validation=True))[0][0] == "-"
    assert rows(bigan_product.recipe())[0][0] == "-"  # not the paper's model
    assert [beside for _, beside in rows(bigan.recipe(), classes=3)[1:]] == ["3 at best"] * 2


# ---- The 25 Gaussians ----------------------------------------------------------------------------
def toy(**changes):
    plain = gaussians.recipe(changes.pop("setting", "ours"))
    small = {"device": "cpu", "hidden": 16, "maxout": 8, "epochs": 5, "batch_size": 50}
    return dataclasses.replace(plain, **{**small, "out": "run", **changes})


def test_points_and_their_networks():
    means = gaussians.means()
    assert sorted(set(means.flatten().tolist())) == [-4, -2, 0, 2, 4]
    assert len(set(map(tuple, means.tolist()))) == 25
    torch.manual_seed(0)
    x, y = gaussians.draw_points(20_000)
    assert abs((x - means[y]).std() - 0.05) < 0.002 and len(y.unique()) == 25
    paper = gaussians.build(gaussians.recipe("paper"))
    sizes = [m.out_features for m in paper.ali_gen if isinstance(m, nn.Linear)]
    assert sizes == [400, 400, 400, 400, 2]
    assert [layer.out_features for layer in paper.ali_disc.linear] == [1000] * 3
    assert abs(paper.ali_gen[3].weight.std() - 0.02) < 1e-3
    disc, h = gaussians.MaxoutDiscriminator(3, 4, 5), torch.randn(6, 3)
    found = disc(h)
    for layer in disc.linear:
        flat = layer(h)
        h = torch.stack([flat[:, u::4].max(1).values for u in range(4)], 1)  # units of five pieces
    assert torch.allclose(found, disc.out(h)[:, 0], atol=1e-6)


def test_modes_of_hand_made_samples():
    torch.manual_seed(0)
    means = gaussians.means()
    perfect = gaussians.mode_scores(gaussians.draw_points(20_000)[0])
    assert perfect["modes_hit"] == perfect["modes_good"] == 25
    assert perfect["samples_good"] == pytest.approx(100 * (1 - math.exp(-4.5)), abs=0.3)
    collapsed = gaussians.mode_scores(torch.zeros(1000, 2))
    assert collapsed == {"modes_hit": 1, "modes_good": 1, "samples_good": 100}
    smeared = gaussians.mode_scores(torch.rand(20_000, 2) * 10 - 5)
    assert smeared["modes_hit"] == 25 and smeared["samples_good"] < 3  # ALI's rule is lenient
    assert gaussians.mode_scores(means + 1)["modes_good"] == 0
    near = means[:7] + torch.tensor([0.149, 0.0]), means[:7] + torch.tensor([0.151, 0.0])
    assert [gaussians.mode_scores(samples)["modes_good"] for samples in near] == [7, 0]


def test_a_random_setting_is_drawn_by_the_seed():
    words = "--setting random --seed"
    drawn = [command_line.parse(gaussians.recipe, [*words.split(), str(s)]) for s in range(20)]
    assert len({o.lr for o in drawn}) == 20 and drawn[3] == command_line.parse(
        gaussians.recipe, ["--seed", "3", "--setting", "random"]
    )
    for o in drawn:
        assert 1e-4 <= o.lr == o.lr_disc <= 1e-3 and 0.2 <= o.beta1 <= 0.8
        assert 0.01 <= o.init_std <= 0.1 and o.epochs == 12
    assert max(o.lr for o in drawn) > 5e-4 and min(o.lr for o in drawn) < 2e-4
    assert not hasattr(gaussians.build(drawn[0]), "vae_enc")


def test_toy_steps_are_the_papers_and_move_whom_they_should(monkeypatch):
    torch.manual_seed(0)
    o = toy()
    nets, x, z = gaussians.build(o).eval(), torch.randn(64, 2), torch.randn(64, 2)

    def moved(step):
        """Losses, and by how much each network's weights moved with a rate of 0.1."""
        before = weights(nets)
        torch.manual_seed(1)
        losses = step()
        change = {n: before[n] - p.detach() for n, p in nets.named_parameters()}
        nets.load_state_dict({**nets.state_dict(), **before})
        assert all(p.grad is None for p in nets.parameters())
        return losses, {n: c for n, c in change.items() if c.any()}

    def sgd(*names):
        return torch.optim.SGD([p for n in names for p in getattr(nets, n).parameters()], 0.1)

    def players(change):
        return {name.split(".")[0] for name in change}

    for kind, enc, gen in (("ali", "ali_enc", "ali_gen"), ("posthoc", "posthoc_enc", "gan_gen")):
        disc = getattr(nets, f"{kind}_disc")
        g_players = ("ali_gen", "ali_enc") if kind == "ali" else ("posthoc_enc",)
        words = getattr(nets, enc), getattr(nets, gen), disc, sgd(f"{kind}_disc"), sgd(*g_players)
        losses, change = moved(lambda: gaussians.joint_step(*words, x, z, weight=30.0))
        assert players(change) == {f"{kind}_disc", *g_players}
        torch.manual_seed(1)
        real = torch.cat([x, getattr(nets, enc)(x)], 1).detach().requires_grad_()
        made = torch.cat([getattr(nets, gen)(z), z], 1).detach().requires_grad_()
        D = torch.sigmoid(disc(real)), torch.sigmoid(disc(made))
        loss_d = -(D[0].log() + (1 - D[1]).log()).mean()
        other = -((1 - D[0]).log() + D[1].log()).mean()
        assert torch.allclose(torch.stack(losses), torch.stack([loss_d, other]))
        slopes = torch.autograd.grad(
            disc(real).sum() + disc(made).sum(), (real, made), create_graph=True
        )
        loss_d = loss_d + 30 * sum((s**2).sum() for s in slopes) / 64
        (truth,) = torch.autograd.grad(loss_d, disc.linear[0].weight)
        found = change[f"{kind}_disc.linear.0.weight"]
        assert torch.allclose(found, 0.1 * truth, atol=1e-5)
    words = nets.gan_gen, nets.gan_disc, sgd("gan_disc"), sgd("gan_gen")
    losses, change = moved(lambda: gaussians.gan_step(*words, x, z, weight=30.0))
    D = torch.sigmoid(nets.gan_disc(x)), torch.sigmoid(nets.gan_disc(nets.gan_gen(z)))
    truth = [-(D[0].log() + (1 - D[1]).log()).mean(), -D[1].log().mean()]
    assert torch.allclose(torch.stack(losses), torch.stack(truth))
    assert players(change) == {"gan_gen", "gan_disc"}
    made = nets.gan_gen(z).detach().requires_grad_()
    real = x.clone().requires_grad_()
    both = nets.gan_disc(real).sum() + nets.gan_disc(made).sum()
    slopes = torch.autograd.grad(both, (real, made), create_graph=True)
    loss_d = truth[0] + 30 * sum((s**2).sum() for s in slopes) / 64
    (truth,) = torch.autograd.grad(loss_d, nets.gan_disc.linear[0].weight)
    assert torch.allclose(change["gan_disc.linear.0.weight"], 0.1 * truth, atol=1e-5)
    words = nets.inverse_enc, nets.gan_gen, sgd("inverse_enc"), z
    loss, change = moved(lambda: gaussians.inverse_step(*words))
    torch.manual_seed(1)
    truth = (nets.inverse_enc(nets.gan_gen(z)) - z).square().sum(1).mean()
    assert torch.allclose(loss, truth) and players(change) == {"inverse_enc"}
    words = nets.vae_enc, nets.vae_gen, sgd("vae_enc", "vae_gen"), x, 0.3
    loss, change = moved(lambda: gaussians.vae_step(*words))
    torch.manual_seed(1)
    mu, log_sigma = nets.vae_enc.posterior(x)
    q, prior = torch.distributions.Normal(mu, log_sigma.exp()), torch.distributions.Normal(0.0, 1.0)
    log_p = torch.distributions.Normal(nets.vae_gen(mu + torch.randn_like(mu) * q.scale), 0.3)
    truth = torch.distributions.kl_divergence(q, prior).sum(1) - log_p.log_prob(x).sum(1)
    constant = 2 * math.log(1 / (0.3 * math.sqrt(2 * math.pi)))
    assert torch.allclose(loss, truth.mean() + constant, rtol=1e-4)
    assert players(change) == {"vae_enc", "vae_gen"}


def test_the_gans_encoders_are_learned_for_a_finished_gan(monkeypatch):
    """Four epochs of games, one of the encoders; averages, and statistics of their own inputs."""
    seen, gan, first, weights_seen = [], [], [], []
    real = gaussians.joint_step

    def joint_step(enc, gen, disc, opt_d, opt_ge, *rest):
        done = real(enc, gen, disc, opt_d, opt_ge, *rest)
        seen.append((enc is nets.posthoc_enc, gen.training, opt_d.param_groups[0]["lr"]))
        weights_seen.append(rest[-1])
        if seen[-1][0]:
            gan.append(copy.deepcopy(gen.state_dict()))
        else:
            first.append(gen[0].weight.detach().clone())
        return done

    torch.manual_seed(0)
    o = toy(average=0.5)
    nets, x = gaussians.build(o), gaussians.draw_points(200)[0]
    monkeypatch.setattr(gaussians, "joint_step", joint_step)
    gaussians.train(common.Run("gaussians", o), nets, x)
    assert [(post, training) for post, training, _ in seen] == [(False, True)] * 16 + [
        (True, False)
    ] * 4
    assert weights_seen == [2 * o.penalty, 0, 0, 0] * 5 and o.penalty > 0
    factors = [bigan.rate(k, 16, "linear") for k in range(1, 17)]
    factors += [bigan.rate(k, 4, "linear") for k in range(1, 5)]
    assert [lr for _, _, lr in seen] == pytest.approx([2e-3 * f for f in factors])
    assert all(same(state, dict(nets.gan_gen.state_dict())) for state in gan)
    truth = first[0]
    for t, now in enumerate(first[1:], 1):
        d = min(0.5, (1 + t) / (10 + t))
        truth = d * truth + (1 - d) * now
    w = nets.ali_gen[0].weight
    assert torch.allclose(w, truth, atol=1e-7)
    assert torch.allclose(nets.ali_gen[1].running_var, w.square().sum(1), rtol=0.3)
    w, layer = nets.vae_enc.net[0].weight, nets.vae_enc.net[1]  # of data: variance 8
    assert torch.allclose(layer.running_var, 8 * w.square().sum(1), rtol=0.4)
    assert not any(m.training for m in nets.modules() if m is not nets)


def test_grid_scores_of_known_networks():
    nets = nn.Module()
    for name in ("ali_enc", "inverse_enc", "posthoc_enc", "vae_enc", "gan_gen", "vae_gen"):
        setattr(nets, name, nn.Identity())
    nets.ali_gen = nn.Linear(2, 2)
    for shift, mse, kept in ((0.1, 0.01, 100), (2.0, 4.0, 20)):
        with torch.no_grad():
            nets.ali_gen.weight.copy_(torch.eye(2))
            nets.ali_gen.bias.copy_(torch.tensor([shift, 0.0]))
        found = gaussians.score(nets, 2000)
        assert found["ali_reconstruction_mse"] == pytest.approx(mse, rel=1e-3)
        assert found["ali_reconstruction_mode"] == pytest.approx(kept, abs=3)
    assert found["posthoc_reconstruction_mode"] == 100 and found["gan_samples_good"] < 30


@pytest.mark.parametrize("frozen", [False, True])
def test_a_tiny_game_learns_inference_and_a_frozen_encoder_does_not(frozen):
    """Nothing compares x with G(E(x)), yet the game brings x back to its own Gaussian."""
    torch.manual_seed(0)
    enc, gen = gaussians.NoisyEncoder(64), gaussians.mlp(2, 64, 2, 2)
    disc = gaussians.MaxoutDiscriminator(4, 32, 2)
    centres = torch.tensor([[2.0, 2.0], [2.0, -2.0], [-2.0, 2.0], [-2.0, -2.0]])
    moving = [*gen.parameters()] if frozen else [*gen.parameters(), *enc.parameters()]
    opt_d = torch.optim.Adam(disc.parameters(), 3e-3, betas=(0.0, 0.999))
    opt_ge = torch.optim.Adam(moving, 3e-3, betas=(0.0, 0.999))
    for _ in range(400):
        x = centres[torch.randint(4, (128,))] + 0.2 * torch.randn(128, 2)
        gaussians.joint_step(enc, gen, disc, opt_d, opt_ge, x, torch.randn(128, 2), 0.01)
    y = torch.randint(4, (2000,))
    with torch.no_grad():
        again = gen(enc(centres[y] + 0.2 * torch.randn(2000, 2)))
    kept = (torch.cdist(again, centres).argmin(1) == y).float().mean().item()
    assert kept < 0.75 if frozen else kept > 0.8


# ---- The command line ----------------------------------------------------------------------------
def call(script, monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", [f"{script.__name__.split('.')[-1]}.py", *words])
    main = script.main
    if script is bigan_product:

        def main(settings):
            return bigan.main(settings, "bigan_product", bigan_product.build)

    common.run_main(main, script.recipe)


EVERY = {
    "bigan": (bigan, [], {"nn_error_code", "reconstruction_digit", "sample_quality"}),
    "alice": (bigan, ["--model", "alice", "--validation"], {"reconstruction_l2"}),
    "product": (bigan_product, ["--product", "8"], {"nn_error_code"}),
    "gan": (bigan_baselines, ["--recipe", "paper"], {"nn_error_features", "sample_quality"}),
    "ae-l1": (bigan_baselines, ["--model", "ae-l1"], {"nn_error_code"}),
    "released": (bigan_released, ["--validation"], {"nn_error_features"}),
    "pixels": (bigan_baselines, ["--model", "pixels"], {"nn_error_features", "probe_error_code"}),
    "untrained": (bigan_baselines, ["--model", "untrained"], {"nn_error_code"}),
    "gaussians": (gaussians, [], {"ali_modes_hit", "posthoc_reconstruction_mode"}),
    "random": (gaussians, ["--setting", "random"], {"ali_modes_hit", "gan_modes_hit"}),
}


@pytest.mark.parametrize("name", EVERY)
def test_every_model_runs_through_and_is_scored_again(name, monkeypatch, capsys):
    script, words, metrics = EVERY[name]
    small = ["--dry-run", "--device", "cpu", "--out", "run", "--hidden", "32", *words]
    call(script, monkeypatch, *small)
    found = json.loads(Path("run/metrics.json").read_text())
    assert metrics <= set(found) and all(math.isfinite(value) for value in found.values())
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["score", "this", "run", "paper", "to", "compare"]
    nets = common.load("run", script.recipe, script.build)
    assert not any(net.training for net in nets.modules() if net is not nets)
    score.main("run", "cpu")
    assert json.loads(Path("run/metrics.json").read_text()) == found
    assert capsys.readouterr().out.splitlines() == table
    if name == "bigan":
        x = mnist(6).x
        z = bigan.encode(nets, x)
        assert z.shape == (6, 50) and bigan.decode(nets, z).shape == x.shape
        figures = {path.stem for path in Path("run").glob("*.png")}
        assert figures == {"samples", "reconstructions", "interpolation", "losses"}


@pytest.mark.parametrize("script", [bigan, bigan_baselines, gaussians])
def test_a_resumed_training_ends_as_the_undisturbed_one(script, monkeypatch):
    """Cut off after one epoch of three: of gaussians between its two phases."""
    small = {"epochs": 3, "batch_size": 50, "hidden": 8, "device": "cpu", "precision": "fp32"}
    if script is gaussians:
        small.update(maxout=4, epochs=2)
    o = dataclasses.replace(script.recipe(), **small)

    def train(o, stop=False):
        run = common.Run("bigan", o)
        nets = script.build(o)
        data = gaussians.draw_points(200)[0] if script is gaussians else mnist(200)
        if stop:
            save = run.save
            run.save = lambda finished=False: (save(), (_ for _ in ()).throw(Enough))
        try:
            script.train(run, nets, data)
        except Enough:
            run.lock.release()
        return nets.state_dict()

    whole = train(dataclasses.replace(o, out="whole"))
    train(dataclasses.replace(o, out="cut"), stop=True)
    assert same(whole, train(dataclasses.replace(o, resume="cut")))


def test_a_broken_training_of_gaussians_frees_its_folder(monkeypatch):
    def train(run, nets, x_train):
        raise common.UserError("broken")

    monkeypatch.setattr(gaussians, "train", train)
    o = dataclasses.replace(gaussians.recipe(), dry_run=True, out="run", device="cpu")
    with pytest.raises(common.UserError, match="broken") as caught:
        gaussians.main(o)
    again = common.Run("gaussians", dataclasses.replace(o, resume="run"))
    assert again.folder.exists() and caught.tb  # the traceback still holds the first Run


MISTAKES = [
    (bigan, ["--model", "lr"], "invalid choice"),
    (bigan, ["--dataset", "sprites"], "choose another --dataset"),
    (bigan, ["--dataset", "nothing"], "unknown data set"),
    (bigan, ["--batch-size", "2"], "from 3"),
    (bigan, ["--lr", "0"], "not a number from"),
    (bigan, ["--skip-fade", "2"], "from 0 to 1"),
    (bigan, ["--cycle", "1"], "did you mean --cycle-weight?"),
    (bigan_baselines, ["--model", "wgan"], "invalid choice"),
    (bigan_baselines, ["--model", "ae-l2", "--lr-disc", ".1"], "there is no --lr-disc"),
    (bigan_baselines, ["--regressor-weight", "1"], "there is no --regressor-weight"),
    (bigan_baselines, ["--model", "pixels", "--lr", "1"], "there is no --lr"),
    (gaussians, ["--setting", "other"], "invalid choice"),
    (gaussians, ["--setting", "random", "--vae-std", "1"], "there is no --vae-std"),
    (gaussians, ["--setting", "random", "--seed", "x"], "not a whole number"),
    (gaussians, ["--precision", "bf16"], "invalid choice"),
    (gaussians, ["--epochs", "1"], "from 2"),
    (gaussians, ["--data", "."], "there is no --data"),
]


@pytest.mark.parametrize("script, words, told", MISTAKES, ids=lambda v: str(v)[:40])
def test_mistakes_end_with_one_line(script, words, told, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        call(script, monkeypatch, "--dry-run", *words)
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == "" and err.count("\n") == 1 and told in err, err
    assert not list(Path(".").iterdir())


def test_help_tells_every_flag(command):
    for script, file in ((bigan, "bigan.py"), (gaussians, "experiments/gaussians.py")):
        text = " ".join(command(file, "--help").stdout.split())
        for field in dataclasses.fields(script.Settings):
            assert f"--{field.name.replace('_', '-')}" in text
        assert all(word in text for word in ("--dry-run", "ours:"))
