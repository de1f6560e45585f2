"""aae.py and its three files in experiments/.

Losses and priors against independent answers, a step of training against a second implementation,
who gets which gradient, scores that catch degenerate models, the command line.
"""

import copy
import dataclasses
import functools
import gc
import inspect
import itertools
import json
import math
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import aae
import common
from experiments import (
    aae_compared,
    aae_figures,
    aae_priors,
    aae_scores,
    batch_norm,
    command_line,
    run_folder,
    score,
    scores,
)

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, fake_nets
from torch import nn

D = torch.sigmoid


def settings(words="", recipe=aae.recipe, **changes):
    plain = ["--device", "cpu", "--precision", "fp32", "--epochs", "1", "--out", "run"]
    o = command_line.parse(recipe, [*plain, *words.split()])
    return dataclasses.replace(o, **changes)


@functools.cache
def mnist():
    return common.load_dataset("mnist")


def images(count, part=0):
    return mnist()[part].take(slice(count))


# ---- Losses --------------------------------------------------------------------------------------
def test_reconstruction_is_half_the_squared_error():
    torch.manual_seed(0)
    a, b = torch.rand(2, 3, 1, 2, 5, dtype=torch.float64)
    truth = 0.0
    for x, y in zip(a.flatten().tolist(), b.flatten().tolist()):
        truth += 0.5 * (x - y) ** 2 / 3  # a sum over pixels, a mean over the three images
    assert aae.reconstruction_loss(a, b).item() == pytest.approx(truth, rel=1e-12)


def test_adversarial_losses_against_their_formulas():
    torch.manual_seed(0)
    prior, code = torch.randn(2, 7, dtype=torch.float64)
    truth = -D(prior).log().mean() - (1 - D(code)).log().mean()
    assert torch.allclose(aae.discriminator_loss(prior, code), truth)
    assert torch.allclose(aae.adversarial_loss(code), -D(code).log().mean())
    inputs = prior.requires_grad_(), code.requires_grad_()
    assert torch.autograd.gradcheck(aae.discriminator_loss, inputs)
    zero = torch.zeros(4)
    assert aae.discriminator_loss(zero, zero).item() == pytest.approx(2 * math.log(2))
    assert aae.adversarial_loss(zero).item() == pytest.approx(math.log(2))


def test_head_distances_are_pushed_apart_below_the_threshold_only():
    heads = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 10.0]], dtype=torch.float64)
    loss = aae.head_distance_loss(heads.requires_grad_(), 4.0)
    pairs = [math.dist(a, b) for a, b in itertools.combinations(heads.tolist(), 2)]
    assert loss.item() == pytest.approx(sum(max(0, 4 - d) for d in pairs)) == 1
    (gradient,) = torch.autograd.grad(loss, heads)
    assert gradient.tolist() == [[1, 0], [-1, 0], [0, 0]]  # linear, the far one is left alone


def test_heads_part_within_a_run():
    """Adam moves a number by about its rate a step, and the heads have some ten to go."""
    torch.manual_seed(0)
    heads = aae.ClusterHeads(10, 2)
    optimiser = torch.optim.Adam(heads.parameters(), aae.recipe("embed").lr)
    for _ in range(1500):
        aae.update(optimiser, aae.head_distance_loss(heads.positions(), 8.0))
    assert F.pdist(heads.positions()).min() > 7.9


def test_heads_stay_without_a_push():
    nets = aae.build(dataclasses.replace(aae.recipe("embed"), head_distance=0.0))
    assert nets.dec.heads is not None and nets.dec.body[0].in_features == 2


def test_invariance_is_a_kl_whose_target_is_fixed():
    torch.manual_seed(0)
    a, b = (torch.randn(6, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    p, q = torch.distributions.Categorical(logits=a), torch.distributions.Categorical(logits=b)
    loss = aae.invariance_loss(a, b)
    assert torch.allclose(loss, torch.distributions.kl_divergence(p, q).mean())
    to_a, to_b = torch.autograd.grad(loss, (a, b), allow_unused=True)
    assert to_a is None and torch.allclose(to_b, (b.softmax(1) - a.softmax(1)) / 6)


def test_smoothness_finds_the_direction_that_changes_the_answer_most():
    """For two classes, softmax(W x), it is known: along w_1 - w_0, to one side or the other."""
    torch.manual_seed(0)
    weight = torch.randn(2, 6, dtype=torch.float64)
    x = torch.randn(40, 6, dtype=torch.float64)

    def classify(x):
        return x.flatten(1) @ weight.t()

    def kl(r):
        p = classify(x).softmax(1)
        return (p * (classify(x).log_softmax(1) - classify(x + r).log_softmax(1))).sum(1)

    along = 0.5 * F.normalize(weight[1] - weight[0], dim=0)
    low, high = torch.minimum(kl(along), kl(-along)), torch.maximum(kl(along), kl(-along))
    found = aae.smoothness_loss(classify, x.view(40, 1, 2, 3), radius=0.5)
    assert low.mean() - 1e-9 <= found <= high.mean() + 1e-9
    other = 0.5 * F.normalize(torch.randn(40, 6).double(), dim=1)
    assert found > 1.5 * kl(other).mean()


def test_smoothness_has_the_gradient_of_a_fixed_target():
    torch.manual_seed(0)
    weight, x = torch.randn(3, 6, dtype=torch.float64), torch.randn(9, 6, dtype=torch.float64)
    w = weight.clone().requires_grad_()
    torch.manual_seed(1)
    (gradient,) = torch.autograd.grad(aae.smoothness_loss(lambda x: x @ w.t(), x, 0.5), w)
    torch.manual_seed(1)
    d = F.normalize(torch.randn_like(x), dim=1).requires_grad_()
    p = (x @ weight.t()).softmax(1)
    (g,) = torch.autograd.grad(-(p * ((x + d) @ weight.t()).log_softmax(1)).sum(1).mean(), d)
    moved = x + 0.5 * F.normalize(g, dim=1)
    truth = ((moved @ weight.t()).softmax(1) - p).t() @ moved / len(x)
    assert torch.allclose(gradient, truth, atol=1e-9)


def test_balance_is_a_kl_whose_gradient_revives_the_dead():
    torch.manual_seed(0)
    assert abs(aae.balance_loss(torch.eye(4).repeat(5, 1))) < 1e-6  # sure, and equally frequent
    y = torch.randn(6, 4, dtype=torch.float64).softmax(1)
    uniform = torch.distributions.Categorical(torch.full((4,), 0.25, dtype=torch.float64))
    mean = torch.distributions.Categorical(y.mean(0))
    assert torch.allclose(aae.balance_loss(y), torch.distributions.kl_divergence(uniform, mean))
    logits = 3 * torch.randn(6, 4, dtype=torch.float64)
    logits[:, 3] -= 40  # dead: 1e-18 of each image
    (gradient,) = torch.autograd.grad(aae.balance_loss(logits.requires_grad_().softmax(1)), logits)
    assert gradient[:, 3].sum().item() == pytest.approx(-1 / 4)
    assert aae.balance_loss(torch.tensor([[1.0, 0.0]])).isfinite()


def test_warps_are_small_and_each_image_has_its_own():
    torch.manual_seed(0)
    few = images(300)
    x = common.to_float(few.x)
    assert aae.warp(x, 0.0) is x
    assert torch.allclose(aae.warp(x, 1e-6), x, atol=1e-4)
    same = aae.warp(x[:1].expand(300, 1, 28, 28), 1.0)
    assert same.shape == (300, 1, 28, 28) and not torch.allclose(same[0], same[1], atol=1e-2)
    grid = torch.arange(28.0) - 13.5
    mass = same.sum((1, 2, 3))
    across = (same[:, 0] * grid).sum((1, 2)) / mass
    assert 0.3 < across.std() < 1.5  # pixels
    assert (scores.load_judge("mnist").classify(aae.warp(x, 1.0)) == few.y).float().mean() > 0.97


def test_warps_have_the_sizes_they_name(monkeypatch):
    """The maps, read from what the sampling grid is made of."""
    maps, affine_grid = [], F.affine_grid

    def spy(theta, *words, **more):
        maps.append(theta)
        return affine_grid(theta, *words, **more)

    shares = torch.tensor([[0.5, -0.4], [0.0, 0.8], [0.6, -1.0]])
    shift = torch.tensor([[[0.5], [-1.0]], [[1.0], [0.0]]])
    feed = [*shares, shift]  # angle, size, shear, each a share of its range
    monkeypatch.setattr(F, "affine_grid", spy)
    monkeypatch.setattr(torch, "rand", lambda *shape, **more: (feed.pop(0) + 1) / 2)
    aae.warp(torch.zeros(2, 1, 28, 28), 2.0)
    for n in range(2):
        angle, size, shear = (2 * shares[:, n] * torch.tensor([0.15, 0.1, 0.2])).tolist()
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        truth = (1 + size) * turn + [[0, shear], [0, 0]]
        assert np.allclose(maps[0][n, :, :2], truth, atol=1e-6)
        assert np.allclose(maps[0][n, :, 2], 2 * shift[n, :, 0] * 2 / 28)  # 1 of 28; 2 units wide


def test_noise_has_the_deviation_asked_for():
    x = torch.full((100, 400), 0.5)
    noise = aae.add_noise(x, 0.3) - x
    assert abs(noise.std() - 0.3) < 0.01 and abs(noise.mean()) < 0.01
    assert aae.add_noise(x, 0.0) is x


def test_variants_lie_between_an_image_and_near_ones(monkeypatch):
    o, data = settings(f"--task semi {NEAR}"), images(400)
    pixels = data.x.float().flatten(1) / 255
    distance = torch.cdist(pixels.double(), pixels.double()).fill_diagonal_(math.inf)
    near = aae.nearest(data.x, 3)
    assert torch.equal(near.sort(1).values, distance.topk(3, largest=False).indices.sort(1).values)
    torch.manual_seed(0)
    i = torch.randint(400, (3000,))
    x = aae.vary(data.x, i, near, o).flatten(1)
    way = pixels[near[i]] - pixels[i][:, None]  # to each of the three
    step = (x - pixels[i])[:, None]
    part = (step * way).sum(2) / way.square().sum(2)
    off, which = (step - part[..., None] * way).norm(dim=2).min(1)
    part = part.gather(1, which[:, None])
    assert off.max() < 1e-3 and 0 <= part.min() and part.max() <= 1
    assert abs(part.mean() - 0.5) < 0.02 and abs(part.var() - 1 / 12) < 0.01
    assert (which.bincount(minlength=3) > 900).all()
    warped = dataclasses.replace(o, warp=1.0)
    monkeypatch.setattr(aae, "warp", lambda x, amount: x * (1 - amount / 2))
    assert torch.allclose(aae.vary(data.x, i, None, warped), data.x[i] / 510)
    assert torch.allclose(aae.vary(data.x, i, None, o), data.x[i] / 255)
    both = aae.vary(data.x, i, near, warped).flatten(1)  # from the warped image on
    ways = pixels[near[i]] - pixels[i][:, None] / 2
    step = both[:, None] - pixels[i][:, None] / 2
    part = (step * ways).sum(2) / ways.square().sum(2)
    assert (step - part[..., None] * ways).norm(dim=2).min(1).values.max() < 1e-3
    assert aae.nearest(data.x[:3], 5).shape == (3, 2)  # no more than there are


def test_smoothness_rises_to_its_weight(monkeypatch):
    one = torch.ones(())
    monkeypatch.setattr(aae, "smoothness_loss", lambda classify, x: one)
    monkeypatch.setattr(aae, "invariance_loss", lambda a, b: 100 * one)
    enc, x = SimpleNamespace(classify=lambda x: x), torch.zeros(1)
    for rise, truth in ((0.6, [1, 2, 3, 3]), (0.0, [3, 3, 3, 3])):
        o = settings(f"--task semi --smooth-weight 3 --smooth-rise {rise} --warp-weight 2")
        found, losses = [], {}
        for progress in (0.2, 0.4, 0.6, 1.0):
            run = SimpleNamespace(settings=o, progress=progress)
            found.append(aae.steady_loss(enc, x, x, x, run, losses).item() - 200)
        assert found == pytest.approx(truth, abs=1e-3) and losses["smoothness"] == 1


def test_warps_and_the_mmd_are_not_rounded_in_bf16():
    x, found = common.to_float(images(50).x), []
    a, b = 30 + 5 * torch.randn(64, 2), 5 * torch.randn(64, 2)
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found.append((aae.warp(x, 1.0), aae_scores.mmd_loss(a, b, 5.0, (0.1, 1.0))))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("std", [1.0, 5.0])
def test_kl_against_torch_distributions(std):
    torch.manual_seed(0)
    mu, logvar = (torch.randn(5, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    q, prior = torch.distributions.Normal(mu, (logvar / 2).exp()), aae.Gaussian(3, std)
    truth = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, std)).sum(1).mean()
    assert torch.allclose(aae_compared.kl_loss(mu, logvar, std), truth)
    many, widths = mu[:1].detach().expand(400_000, 3), logvar[:1].detach().expand(400_000, 3)
    z = many + torch.randn_like(many) * (widths / 2).exp()
    sampled = aae_compared.sampled_kl_loss(z, many, widths, aae_priors.log_density(prior, z))
    assert abs(sampled - aae_compared.kl_loss(mu[:1], logvar[:1], std)) < 0.01


def naive_mmd(a, b, std, scales):
    n, d = a.shape
    total = 0.0
    for scale in scales:
        c = 2 * d * std**2 * scale

        def k(p, q):
            return c / (c + math.dist(p.tolist(), q.tolist()) ** 2)

        for i, j in itertools.product(range(n), range(n)):
            total -= 2 * k(a[i], b[j]) / n**2
            if i != j:
                total += (k(a[i], a[j]) + k(b[i], b[j])) / (n * (n - 1))
    return total


@pytest.mark.parametrize("std, scales", [(1.0, (1.0,)), (5.0, (0.1, 1.0, 10.0))])
def test_mmd_against_a_naive_double_loop(std, scales):
    torch.manual_seed(0)
    a, b = std * torch.randn(2, 9, 3, dtype=torch.float64)
    truth = naive_mmd(a, b + 1, std, scales)
    assert aae_scores.mmd_loss(a, b + 1, std, scales).item() == pytest.approx(truth, rel=1e-9)


def test_mmd_is_unbiased_at_the_null_and_sees_a_difference():
    torch.manual_seed(0)
    draws = [aae_scores.mmd_loss(*torch.randn(2, 20, 2).double()) for _ in range(1000)]
    draws = torch.stack(draws)
    error = draws.std() / len(draws) ** 0.5
    assert draws.mean().abs() < 4 * error < 0.01 and (draws < 0).float().mean() > 0.3
    assert aae_scores.mmd_loss(torch.randn(500, 2), torch.randn(500, 2) + 1) > 0.03


# ---- Priors --------------------------------------------------------------------------------------
def petal(k):
    """Mean and covariance of the mixture's component k, turned by matrices."""
    a = 2 * math.pi * k / 10
    turn = torch.tensor([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]])
    return 10 * turn[:, 0], turn @ torch.diag(torch.tensor([9.0, 0.49])) @ turn.t()


def test_priors_have_their_moments():
    torch.manual_seed(0)
    z = aae.Gaussian(3, 5.0).sample(torch.zeros(100_000))
    assert z.shape == (100_000, 3) and z.mean(0).abs().max() < 0.1
    assert torch.allclose(z.t().cov(), 25 * torch.eye(3), atol=0.6)
    for k in (0, 3, 7):
        z = aae.Mixture().sample(torch.full((50_000,), k))
        mean, covariance = petal(k)
        assert torch.allclose(z.mean(0), mean, atol=0.08)
        assert torch.allclose(z.t().cov(), covariance, atol=0.2)


def test_densities_against_torch_distributions_and_their_integral():
    torch.manual_seed(0)
    z = 8 * torch.randn(50, 2)
    normal = torch.distributions.MultivariateNormal(torch.zeros(2), 25 * torch.eye(2))
    assert torch.allclose(
        aae_priors.log_density(aae.Gaussian(2, 5.0), z), normal.log_prob(z), atol=1e-4
    )
    means, covariances = (torch.stack(part) for part in zip(*map(petal, range(10))))
    petals = torch.distributions.MultivariateNormal(means, covariances)
    which = torch.distributions.Categorical(torch.ones(10))
    truth = torch.distributions.MixtureSameFamily(which, petals).log_prob(z)
    assert torch.allclose(aae_priors.log_density(aae.Mixture(), z), truth, atol=1e-2, rtol=1e-4)
    line = torch.linspace(-18, 18, 121)
    square = torch.cartesian_prod(line, line)
    mass = aae_priors.log_density(aae.SwissRoll(), square).exp().sum() * 0.3**2
    assert mass.item() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("name, share", [("mixture", 0.97), ("swiss-roll", 0.96)])
def test_samples_lie_in_the_component_they_were_drawn_for(name, share):
    torch.manual_seed(0)
    prior, component = aae.PRIORS[name](), torch.randint(0, 10, (5000,))
    z = prior.sample(component)
    assert (aae_priors.component(prior, z) == component).float().mean() > share
    assert (aae_priors.component(prior, z[torch.randperm(5000)]) == component).float().mean() < 0.15


def test_the_roll_runs_outwards_to_its_radius():
    roll = aae.SwissRoll()
    radius = roll.curve(torch.linspace(0, 1, 1001)).norm(dim=1)
    assert (radius.diff() > 0).all() and radius[-1].item() == pytest.approx(15)
    torch.manual_seed(0)
    middle = roll.sample(torch.full((5000,), 4)).norm(dim=1)
    assert abs((middle / 15).square().mean() - 0.45) < 0.01


def test_outlines_lie_where_the_priors_do():
    circles = aae_priors.outline(aae.Gaussian(2, 5.0))
    assert [round(c.norm(dim=1).mean().item(), 3) for c in circles] == [5, 10, 15]
    mixture = aae.Mixture()
    for k, curve in enumerate(aae_priors.outline(mixture)):
        peak = aae_priors.mixture_log_joint(mixture, petal(k)[0][None])[0, k]
        assert torch.allclose(
            aae_priors.mixture_log_joint(mixture, curve)[:, k], (peak - 2).expand(100), atol=1e-3
        )
    (roll,) = aae_priors.outline(aae.SwissRoll())
    assert roll[-1].norm().item() == pytest.approx(15, abs=1e-3)


# ---- Networks ------------------------------------------------------------------------------------
def test_networks_have_the_papers_sizes_and_return_logits():
    torch.manual_seed(0)
    enc, dec, disc = aae.Encoder(classes=10, z_dim=10), aae.Decoder(20), aae.Discriminator(10)
    sizes = {
        enc.body: [(784, 1000), (1000, 1000)],
        nn.ModuleList([dec.body, dec.to_image]): [(20, 1000), (1000, 1000), (1000, 784)],
        disc.net: [(10, 1000), (1000, 1000), (1000, 1)],
    }
    for net, truth in sizes.items():
        layers = [m for m in net.modules() if isinstance(m, nn.Linear)]
        assert [(m.in_features, m.out_features) for m in layers] == truth
    logits, z, logvar = enc(torch.rand(4, 1, 28, 28))
    assert logits.shape == z.shape == (4, 10) and logvar is None
    image = dec(logits, z)
    assert image.shape == (4, 1, 28, 28) and 0 < image.min() and image.max() < 1
    assert disc(100 * z).shape == (4,) and (logits.sum(1) - 1).abs().min() > 1e-3


def test_the_two_posteriors():
    torch.manual_seed(0)
    x = torch.rand(6, 784)
    plain, gaussian = (
        aae.Encoder(z_dim=3, hidden=50),
        aae.Encoder(z_dim=3, hidden=50, gaussian=True),
    )
    assert torch.equal(plain.sample(x)[1], plain(x)[1]) and plain.sample(x)[0] is None
    many = gaussian.sample(x.repeat(20_000, 1))[1].view(20_000, 6, 3)
    _, mu, logvar = gaussian(x)
    assert torch.allclose(many.mean(0), mu, atol=0.05)
    assert torch.allclose(many.std(0), (logvar / 2).exp(), atol=0.03)


@pytest.mark.parametrize("norm, count", [("none", 0), ("hidden", 2), ("all", 4)])
def test_batch_norm_and_dropout_where_asked(norm, count):
    enc = aae.Encoder(classes=10, norm=norm, dropout=0.2)
    assert sum(isinstance(m, nn.BatchNorm1d) for m in enc.modules()) == count
    assert isinstance(enc.to_y[-1], nn.BatchNorm1d) == (norm == "all")
    assert [m.p for m in enc.modules() if isinstance(m, nn.Dropout)] == [0.2, 0.2]
    with torch.autocast("cpu", torch.bfloat16):
        outputs = enc(torch.rand(3, 784))[:2]
    assert all(output.dtype == torch.float32 for output in outputs)


def test_the_decoder_sees_y_beside_z_or_the_heads():
    torch.manual_seed(0)
    y, z = torch.eye(3)[:2], torch.randn(2, 2)
    dec = aae.Decoder(5, (1, 2, 2), 20)
    truth = D(dec.to_image(dec.body(torch.cat([y, z], 1))))
    assert torch.equal(dec(y, z), truth)
    flat = aae.Decoder(2, (1, 2, 2), 20)
    assert torch.equal(flat(None, z), D(flat.to_image(flat.body(z))))
    flat.heads = aae.ClusterHeads(3, 2)
    assert torch.allclose(flat(y, z), D(flat.to_image(flat.body(flat.heads.positions()[:2] + z))))
    fixed = aae.ClusterHeads(10, 10).positions()
    assert torch.equal(fixed, 10 * torch.eye(10)) and not fixed.requires_grad


# ---- A step, by hand -----------------------------------------------------------------------------
N = 30
RATES = {"r": 0.03, "d": 0.02, "e": 0.05, "c": 0.07}
NEAR = "--warp 0 --neighbours 3 --smooth-weight 3 --smooth-rise 0.6"
PLAIN = "--smooth-weight 0 --warp 0 --warp-weight 0 --y-weight 1 --code-noise 0"
CASES = [
    "--task prior",
    "--task prior --prior swiss-roll",
    "--task prior-labels",
    "--task likelihood --dropout 0",
    "--task style",
    "--task semi",
    f"--task semi {PLAIN}",
    "--task semi --smooth-weight 0.5",
    f"--task semi {NEAR}",
    "--task cluster",
    f"--task cluster --balance-weight 0 {PLAIN}",
    "--task cluster --warp-weight 0 --balance-weight 3",
    "--task embed",
    "--task embed --z-dim 10",
    "--task embed-clusters",
]


def players_of(o):
    """Who takes a step, in which order: the optimiser, the networks that move."""
    order = [("r", {"enc", "dec"}), ("d", {"disc"}), ("e", {"enc"})]
    if o.y_weight is not None:
        order[1] = ("d", {"disc", "disc_y"})
    return order + ([("c", {"enc"})] if o.lr_labels else [])


def plain_step(nets, loss, lr, names):
    """A step of plain gradient descent, of the networks named."""
    mine = [p for n, p in nets.named_parameters() if n.split(".")[0] in names and p.requires_grad]
    for p, g in zip(mine, torch.autograd.grad(loss, mine, retain_graph=True, allow_unused=True)):
        if g is not None:
            p.data -= lr * g


@pytest.mark.parametrize("words", CASES)
def test_a_step_is_the_papers(monkeypatch, words):
    """One step of `train` moves every weight as the phases written again plainly do, each by a
    gradient step of its own, in the paper's order."""
    o = settings(f"{words} --batch-size {N} --hidden 12")
    data, calls, sizes = images(N), [], []
    shuffle = torch.randperm(N, generator=torch.Generator().manual_seed(3))
    labelled = torch.randperm(N, generator=torch.Generator().manual_seed(4))
    labelled = labelled if o.task == "style" else labelled[:20] if o.labels else labelled[:0]
    torch.manual_seed(0)
    nets = aae.build(o)
    mine, start = copy.deepcopy(nets), copy.deepcopy(nets.state_dict())

    def vary(
        pixels, i, near, o
    ):  # darker images: the first, the second more, the labelled otherwise
        assert (near is None) != bool(o.neighbours) and (near is None or near.shape == (N, 3))
        sizes.append(len(i))
        share = 0.8 if len(i) != N else 0.9 if sizes.count(N) == 1 else 0.5
        return pixels[i] / 255 * (share if o.warp or o.neighbours else 1)

    def add_noise(x, std):
        if x.dim() == 2:  # a code
            return x + std * torch.randn_like(x) if std else x
        assert std == o.noise
        if len(x) == N:
            torch.manual_seed(5)  # the step's draws follow from here
        return x + 0.1

    def update(optimiser, loss):
        (group,) = optimiser.param_groups
        names = {p: name.split(".")[0] for name, p in nets.named_parameters()}
        moved = {names[p] for p in group["params"]}
        name, truth = players_of(o)[len(calls)]
        assert moved == truth
        calls.append(group["betas"])
        if name == "d":  # codes reach the discriminators detached
            encoder = list(nets.enc.parameters())
            found = torch.autograd.grad(loss, encoder, retain_graph=True, allow_unused=True)
            assert all(gradient is None for gradient in found)
        plain_step(nets, loss, RATES[name], moved)

    for name, fake in (("vary", vary), ("add_noise", add_noise), ("update", update)):
        monkeypatch.setattr(aae, name, fake)
    monkeypatch.setattr(torch, "randperm", lambda count, **_: shuffle)
    run = common.Run("aae", o)
    aae.train(run, nets, data, labelled)
    monkeypatch.undo()
    calm, wild = (0.9, 0.999), (0.5, 0.999)
    assert calls == [calm, wild, wild, calm][: len(players_of(o))]
    losses = by_hand(o, mine, data, labelled, shuffle)
    assert run.history[0] == pytest.approx({"epoch": 1, **losses}, rel=2e-4, abs=1e-5)
    found = dict(nets.named_parameters())
    for name, truth in mine.named_parameters():
        step = (truth - start[name]).abs().max().item()
        assert torch.allclose(found[name], truth, atol=2e-3 * max(step, 1e-4)), name
    changed = {n.split(".")[0] for n, p in found.items() if not torch.equal(p, start[n])}
    assert changed == set().union(*(names for _, names in players_of(o)))


def by_hand(o, nets, data, labelled, shuffle):
    """The phases again: sigmoids and logarithms spelled out, every pass on its own."""
    image = data.x[shuffle].float() / 255
    varied = o.warp or o.neighbours
    x = image * 0.9 if varied else image
    noisy, again = x + 0.1, image * (0.5 if varied else 1) + 0.1
    k, told = o.clusters or 10, {}
    known = [int(data.y[i]) if i in labelled.tolist() else 10 for i in shuffle.tolist()]
    known = torch.tensor(known)
    label = torch.eye(11)[known] if o.task in ("style", "prior-labels") else torch.zeros(N, 0)

    def codes():
        logits, mu, logvar = nets.enc(noisy)
        z = mu if logvar is None else mu + torch.randn(mu.shape) * torch.exp(logvar / 2)
        return None if logits is None else logits.exp() / logits.exp().sum(1, keepdim=True), z

    def steady():
        told["smoothness"] = told["invariance"] = torch.zeros(())
        if o.smooth_weight:
            told["smoothness"] = aae.smoothness_loss(lambda x: nets.enc(x)[0], x)
        if o.warp_weight:
            p, q = (nets.enc(part)[0].softmax(1) for part in (noisy, again))
            told["invariance"] = (p.detach() * torch.log(p.detach() / q)).sum() / N
        return o.smooth_weight * told["smoothness"] + o.warp_weight * told["invariance"]

    torch.manual_seed(5)
    y, z = codes()
    if o.task == "style":
        y = torch.eye(10)[known]
    code, apart = z if y is None else torch.cat([y, z], 1), 0.0
    if o.head_distance is not None:
        heads = nets.dec.heads.positions()
        code = y @ heads + z
        for a, b in itertools.combinations(heads, 2):
            apart = apart + torch.clamp(o.head_distance - (a - b).square().sum().sqrt(), min=0)
    made = D(nets.dec.to_image(nets.dec.body(code)))
    told["reconstruction"] = 0.5 * ((made - x) ** 2).sum() / N
    plain_step(nets, told["reconstruction"] + apart, RATES["r"], {"enc", "dec"})

    y, z = codes()  # of the encoder as it is now
    component = torch.randint(0, 10, (N,))
    if o.task == "prior-labels":
        component = torch.where(known < 10, known, component)
        assert (component[known < 10] == data.y[shuffle][known < 10]).all()
    sample = nets.prior.sample(component)
    real, fake = (torch.cat([part / o.prior_std, label], 1) for part in (sample, z))
    loss = -D(nets.disc(real)).log().mean() - (1 - D(nets.disc(fake.detach()))).log().mean()
    if o.y_weight is not None:
        drawn, seen = torch.eye(k)[torch.randint(0, k, (N,))], y
        if o.code_noise:
            drawn = drawn + o.code_noise * torch.randn(drawn.shape)
            seen = seen + o.code_noise * torch.randn(seen.shape)
        loss = loss - D(nets.disc_y(drawn)).log().mean()
        loss = loss - (1 - D(nets.disc_y(seen.detach()))).log().mean()
    told["disc"] = loss
    plain_step(nets, loss, RATES["d"], {"disc", "disc_y"})

    loss = -D(nets.disc(fake)).log().mean()  # by the discriminator as it is now
    if o.y_weight is not None:
        loss = loss - o.y_weight * D(nets.disc_y(seen)).log().mean()
    told["encoder"] = loss
    if o.clusters:
        told["balance"] = -torch.log(k * y.mean(0)).mean()
        loss = loss + o.balance_weight * told["balance"] + steady()
    plain_step(nets, loss, RATES["e"], {"enc"})

    if o.lr_labels:
        j = labelled[torch.randint(0, len(labelled), (o.labelled_batch,))]
        few = data.x[j].float() / 255 * (0.8 if varied else 1) + 0.1
        log_q = nets.enc(few)[0].log_softmax(1)
        told["classification"] = -log_q[torch.arange(len(j)), data.y[j]].mean()
        plain_step(nets, told["classification"] + steady(), RATES["c"], {"enc"})
    return {name: value.item() for name, value in told.items()}


def test_update_is_a_step_on_the_gradient_of_its_own_parameters():
    a, b = nn.Parameter(torch.tensor([1.0, 2.0])), nn.Parameter(torch.tensor([3.0, 4.0]))
    frozen = nn.Parameter(torch.tensor([5.0, 6.0]), requires_grad=False)
    optimiser = torch.optim.SGD([a, frozen], lr=0.1)
    for _ in range(2):  # twice: gradients do not pile up
        aae.update(optimiser, (a * b * frozen).sum())
    assert torch.allclose(a, torch.tensor([1 - 0.2 * 15, 2 - 0.2 * 24]))
    assert b.tolist() == [3, 4] and b.grad is None and frozen.tolist() == [5, 6]


def test_rates_rise_hold_and_fall():
    steps = (1, 50, 100, 4001, 5001, 7501, 9991)
    found = [aae.rate(step, 10_000) for step in steps]
    assert found == pytest.approx([0.01, 0.5, 1, 1, 1, 0.5, 0.01])
    found = [aae.rate(step, 10_000, 0.3) for step in (1, 7501, 9001, 9991)]
    assert found == pytest.approx([0.01, 0.5, 0.3, 0.3])


def test_every_optimiser_has_its_rate_along_the_run(monkeypatch):
    rates = []
    monkeypatch.setattr(aae, "update", lambda opt, loss: rates.append(opt.param_groups[0]["lr"]))
    o = settings("--task semi --labels 20 --hidden 12 --batch-size 10 --lr 0.001 --lr-disc 0.002")
    o = dataclasses.replace(o, lr_encoder=0.003, lr_labels=0.004, lr_disc_end=0.9, epochs=2)
    aae.train(common.Run("aae", o), aae.build(o), images(32), torch.arange(20))  # 4 steps an epoch
    for k, (lr, end) in enumerate(((0.001, 0.01), (0.002, 0.9), (0.003, 0.01), (0.004, 0.01))):
        truth = [lr * aae.rate(step, 8, end) for step in range(1, 9)]
        assert rates[k::4] == pytest.approx(truth)


def test_no_other_label_is_ever_seen():
    """With the true labels of all but the labelled images changed, the weights are the same."""
    for task in ("semi", "prior-labels"):
        states = []
        for change in (0, 1):
            o = settings(f"--task {task} --hidden 12 --batch-size 50", out=f"{task}{change}")
            data = images(100)
            y = torch.cat([data.y[:20], 9 - data.y[20:] if change else data.y[20:]])
            nets, run = None, common.Run("aae", o)
            nets = aae.build(o)
            aae.train(run, nets, data._replace(y=y), torch.arange(20))
            states.append(nets.state_dict())
        assert all(torch.equal(a, b) for a, b in zip(*(s.values() for s in states)))


# ---- Settings and the protocol -------------------------------------------------------------------
def test_a_task_has_the_flags_that_it_reads():
    only = {
        "labels": {"prior-labels", "semi", "semi-all", "embed"},
        "lr_labels": {"semi", "semi-all", "embed"},
        "labelled_batch": {"semi", "semi-all", "embed"},
        "clusters": {"cluster", "embed-clusters"},
        "balance_weight": {"cluster", "embed-clusters"},
        "head_distance": {"embed", "embed-clusters"},
    }
    with_y = {"semi", "semi-all", "cluster", "embed", "embed-clusters"}
    only.update(
        dict.fromkeys(
            ("y_weight", "code_noise", "smooth_weight", "warp_weight", "neighbours", "smooth_rise"),
            with_y,
        )
    )
    for task in aae.TASKS:
        o = aae.recipe(task)
        assert o.task == task
        flags = command_line.make_parser(o)._option_string_actions
        for field in dataclasses.fields(o):
            has = getattr(o, field.name) is not None
            assert has == (task in only.get(field.name, aae.TASKS)), (task, field.name)
            assert has == (f"--{field.name.replace('_', '-')}" in flags)


def test_the_papers_recipe_turns_off_what_is_ours_and_nothing_else():
    comments = command_line.field_comments(aae.Settings)
    ours = {name for name, words in comments.items() if words.startswith("ours:")}
    assert len(ours) == 8
    for task in aae.TASKS:
        default, paper = vars(aae.recipe(task)), vars(aae.recipe(task, "paper"))
        assert {name for name in paper if paper[name] != default[name]} <= ours | {"recipe"}
        assert {paper[name] for name in ours - {"y_weight"}} <= {0, None}
        assert paper["y_weight"] in (1, None)


def test_recipes_have_the_sizes_that_their_rows_need():
    semi, style, embed = aae.recipe("semi"), aae.recipe("style"), aae.recipe("embed-clusters")
    assert (semi.epochs, semi.labels, semi.labelled_batch, semi.z_dim) == (20, 100, 100, 10)
    assert (aae.recipe("semi-all").epochs, aae.recipe("semi-all").labelled_batch) == (30, 400)
    assert (style.batch_norm, style.lr_disc_end, style.lr_disc) == ("all", 1.0, 4e-3)
    assert (embed.clusters, embed.z_dim, embed.epochs, embed.balance_weight) == (20, 2, 25, 0.25)
    assert aae.recipe("prior-labels").prior == "mixture"
    compared = aae_compared.recipe
    assert compared("likelihood", "mmd").encoder == "deterministic"
    assert compared("likelihood", "kl").regularizer_weight == 0.1
    assert compared("prior", "kl").regularizer_weight == 1 and compared("prior").lr_disc is None
    assert compared("likelihood", "wae-gan").encoder == "gaussian"
    assert compared("prior", "wae-gan").lr_disc == 1e-3


def test_networks_are_built_as_the_settings_say():
    for task, code, seen in (("style", 25, 26), ("semi", 20, 10), ("embed", 2, 2), ("prior", 2, 2)):
        nets = aae.build(aae.recipe(task))
        assert nets.dec.body[0].in_features == code and nets.disc.net[0][0].in_features == seen
        assert (nets.dec.heads is not None) == (task == "embed")
        assert isinstance(nets.disc_y, aae.Discriminator) == (task in ("semi", "embed"))
    nets = aae.build(aae.recipe("likelihood"))
    for net in (nets.enc, nets.dec):
        assert [m.p for m in net.modules() if isinstance(m, nn.Dropout)] == [0.2, 0.2]
    colour = dataclasses.replace(aae.recipe("cluster"), dataset="svhn")
    assert aae.build(colour).dec(torch.eye(16), torch.zeros(16, 5)).shape == (16, 3, 32, 32)


def test_what_is_held_out_and_what_is_labelled():
    whole = mnist()[0]
    for task in ("cluster", "likelihood", "prior-labels", "semi", "style"):
        o = aae.recipe(task)
        data, held_out, labelled = aae_scores.split(whole, o)
        if task in ("semi", "style"):
            assert held_out is None and len(data.y) == 60_000
        else:
            assert len(data.y) == 50_000 and torch.equal(held_out.x, whole.x[-10_000:])
        count = {"semi": 10, "prior-labels": 1000}.get(task)
        assert count is None or (torch.bincount(data.y[labelled]) == count).all()
        assert len(labelled) == {"style": 60_000, "cluster": 0}.get(task, len(labelled))
    with pytest.raises(common.UserError, match="--task semi needs images of ten classes"):
        aae_scores.split(whole.take(whole.y < 3), aae.recipe("semi"))
    seventh = aae_scores.split(whole, dataclasses.replace(aae.recipe("semi"), seed=7))[2]
    assert torch.equal(seventh, aae_scores.labelled(whole.y, 100, 7))


def test_labels_are_drawn_balanced_by_the_seed():
    y = mnist()[0].y
    first, again, other = (aae_scores.labelled(y, 100, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert len(first.unique()) == 100 and (torch.bincount(y[first]) == 10).all()
    assert torch.equal(aae_scores.labelled(y, 60_000), torch.arange(60_000))
    for count in (55_000, 55):
        with pytest.raises(common.UserError, match="up to 54210, or 60000 for all"):
            aae_scores.labelled(y, count)


def test_batch_norm_is_settled_on_clean_images():
    torch.manual_seed(0)
    enc, x = aae.Encoder(hidden=20, norm="hidden", dropout=0.5), images(1000).x
    for _ in range(5):
        enc(torch.randn(50, 784))
    batch_norm.settle(enc, ((part,) for part in batch_norm.image_parts(x, size=1000)))
    h = enc.body[0](common.to_float(x).flatten(1))
    assert not enc.training and torch.allclose(enc.body[1].running_mean, h.mean(0), atol=1e-4)
    h = enc.body[4](torch.relu(enc.body[1](h)))  # the second layer sees no dropout
    assert torch.allclose(enc.body[5].running_mean, h.mean(0), atol=1e-2)


@pytest.mark.parametrize(
    "script, words", [(aae, "--task semi --labels 50"), (aae_compared, "--batch-norm hidden")]
)
def test_a_run_ends_with_batch_norm_settled(script, words, monkeypatch):
    """To settle it again changes nothing."""
    data = images(300)
    monkeypatch.setattr(common, "load_data", lambda o: (data, data))
    monkeypatch.setattr(script, "evaluate", lambda *_: ({}, ()))
    o = settings(f"{words} --hidden 20", script.recipe, dry_run=True)
    script.main(o)
    nets = common.load("run", script.recipe, script.build)
    before = copy.deepcopy(nets.state_dict())
    used = aae_scores.split(data, o)[0]
    batch_norm.settle(nets.enc, ((x,) for x in batch_norm.image_parts(used.x)))
    assert "enc.body.1.running_mean" in before
    for name, value in nets.state_dict().items():
        assert torch.allclose(value, before[name], atol=1e-6), name


@pytest.mark.parametrize("task", ["prior", "cluster", "likelihood"])
def test_what_is_held_out_neither_trains_nor_settles(task, monkeypatch):
    whole, used = images(600), []
    monkeypatch.setattr(common, "load_data", lambda o: (whole, images(100, 1)))
    monkeypatch.setattr(aae, "train", lambda run, nets, data, labelled: used.append(data.x))
    monkeypatch.setattr(batch_norm, "image_parts", lambda x: used.append(x) or [])
    monkeypatch.setattr(aae, "evaluate", lambda *_: ({}, ()))
    aae.main(settings(f"--task {task} --hidden 10"))
    assert len(used) == 2 and all(torch.equal(x, whole.x[:500]) for x in used)


# ---- Scores --------------------------------------------------------------------------------------
class Codes(nn.Module):
    """An encoder of given answers: a function of the images -> logits, mu, logvar."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x):
        return self.answer(x)

    sample = aae.Encoder.sample


def blank(y, z):
    return torch.zeros(len(z), 1, 28, 28)


def model(answer, prior=None, dec=blank):
    """Networks whose encoder and decoder are functions."""
    nets = fake_nets(enc=Codes(answer), dec=dec, prior=prior or aae.Gaussian())
    return nets


def prior_scores(answer, o, count=2000, prior=None):
    torch.manual_seed(0)
    nets = model(answer, prior)
    train, test = images(2 * count), images(count, 1)
    return aae_scores.prior_scores(nets, aae.encode, aae.decode, train, test, o)


def test_the_classifier_of_codes_sees_what_it_should():
    """Codes of the prior are not told from it; a shifted, collapsed, too narrow q(z) is."""
    o = settings()
    good = prior_scores(lambda x: (None, 5 * torch.randn(len(x), 2), None), o)
    assert good["code_test"] < 53 and abs(good["code_mmd"]) < 0.001
    bad = (
        (lambda n: 5 * torch.randn(n, 2) + 4, 60),
        (lambda n: torch.zeros(n, 2), 80),
        (lambda n: 3.5 * torch.randn(n, 2), 56),
    )
    for make, least in bad:
        worse = prior_scores(lambda x: (None, make(len(x)), None), o)
        assert worse["code_test"] > least and worse["code_mmd"] > good["code_mmd"] + 0.003
    far = prior_scores(lambda x: (None, torch.zeros(len(x), 2), None), o)["code_mmd"]
    p = 5 * torch.randn(2000, 2)
    truth = aae_scores.mmd_loss(torch.zeros(2000, 2), p, 5.0).item()  # its kernel has p's width
    assert far == pytest.approx(truth, rel=0.05)


def test_codes_of_a_gaussian_encoder_are_sampled():
    """Every posterior is the prior: samples are not told from it, means would be."""
    width = 2 * math.log(5.0)
    found = prior_scores(
        lambda x: (None, torch.zeros(len(x), 2), torch.full((len(x), 2), width)), settings()
    )
    assert found["code_test"] < 54


def test_component_accuracy_needs_the_label():
    test, o = images(1000, 1), settings("--prior mixture")
    known = {x.sum().item(): y for x, y in zip(common.to_float(test.x), test.y.tolist())}
    for shift, low, high in ((0, 95, 100), (1, 0, 5)):

        def answer(x):
            labels = torch.tensor([known.get(image.sum().item(), 0) for image in x])
            return None, aae.Mixture().sample((labels + shift) % 10), None

        found = prior_scores(answer, o, 500, aae.Mixture())
        assert low <= found["component_accuracy"] <= high


def cluster_model(logits):
    """An encoder that gives these logits to the images in the order in which it is asked."""
    place = [0]

    def answer(x):
        place[0] += len(x)
        return logits[place[0] - len(x) : place[0]], torch.zeros(len(x), 2), None

    return model(answer)


def test_clusters_score_as_they_deserve():
    held, test = images(500), images(500, 1)
    torch.manual_seed(0)
    y = torch.cat([held.y, test.y])
    perfect = F.one_hot(y + 10 * torch.randint(0, 2, y.shape), 20).float() * 9

    def score_of(logits, held=held):
        return aae_scores.cluster_scores(cluster_model(logits), aae.encode, held, test)

    best = {"cluster_error": 0.0, "cluster_error_majority": 0.0, "clusters_used": 20.0}
    assert score_of(perfect) == best
    shifted = held._replace(y=(held.y + 1) % 10)  # names come from the held-out labels
    assert score_of(perfect, shifted)["cluster_error"] == 100
    odd = int((held.y == 3).nonzero()[0])  # one exception, of which its cluster is surest
    exception = F.one_hot(y, 10).float() * 9
    exception[odd] = F.one_hot(torch.tensor(8), 10) * 50.0
    found = score_of(exception)
    assert found["cluster_error"] > 5 and found["cluster_error_majority"] == 0
    collapsed = torch.zeros(1000, 20)
    collapsed[:, 7] = 5
    found = score_of(collapsed)
    assert found["cluster_error"] > 80 and found["clusters_used"] == 1
    assert score_of(torch.randn(1000, 20))["cluster_error"] > 80


WHO = {
    "prior": ("prior", "data test"),
    "likelihood": ("likelihood", "held test"),  # which chooses the width
    "style": ("style", "data test"),
    "semi": ("supervised", "data test"),
    "cluster": ("cluster", "held test"),  # which names the clusters
}


@pytest.mark.parametrize("task", WHO)
def test_every_score_gets_its_data(task, monkeypatch):
    called, (name, parts) = [], WHO[task]
    monkeypatch.setattr(aae_scores, f"{name}_scores", lambda *words: called.extend(words) or {})
    monkeypatch.setattr(aae_scores.aae_figures, "draw", lambda *_: None)
    o, whole, test = settings(f"--task {task}", dry_run=True), images(600), images(50, 1)
    data, held, _ = aae_scores.split(whole, o)
    aae_scores.evaluate("nets", "encode", "decode", whole, test, o, "folder")
    got = [part.x for part in called if isinstance(part, common.Split)]
    truth = {"data": data, "held": held, "test": test}
    assert len(got) == 2
    for x, part in zip(got, parts.split()):
        assert torch.equal(x, truth[part].x), part


def test_errors_are_in_percent_and_the_baseline_has_the_labels(monkeypatch):
    test, o, asked = images(50, 1), settings("--task semi --hidden 10", dry_run=True), []
    monkeypatch.setattr(aae_scores, "baseline_error", lambda *words: asked.extend(words) or 12.0)
    guess = test.y.clone()
    guess[:5] = (guess[:5] + 1) % 10  # five of fifty are wrong
    nets, j = aae.build(o), torch.arange(20)
    encode = lambda nets, x: (F.one_hot(guess, 10).float(), None)  # noqa: E731
    found = aae_scores.supervised_scores(nets, encode, images(40), test, j, o)
    assert found == pytest.approx({"test_error": 10.0, "baseline_error": 12.0})
    assert asked[3] is j and torch.equal(asked[2].x, test.x)


def test_reconstruction_is_the_mean_square_over_pixels():
    test = images(50, 1)
    nets = model(lambda x: (None, torch.zeros(len(x), 2), None))  # which draws black
    found = aae_scores.reconstruction_mse(nets, aae.encode, aae.decode, test)
    assert found == pytest.approx((test.x / 255).square().mean().item(), rel=1e-5)


def test_the_prior_is_drawn_from_all_its_components():
    prior = aae.Mixture()
    z = aae_scores.draw_prior(SimpleNamespace(prior=prior), 5000, "cpu")
    found = torch.bincount(aae_priors.component(prior, z), minlength=10)
    assert found.min() > 400 and found.max() < 600


def test_style_scores_catch_a_decoder_that_ignores_the_label():
    judge, train, test = scores.load_judge("mnist"), images(1500), images(500, 1)
    pictures = [common.to_float(train.x[train.y == k][:100]) for k in range(10)]
    o = settings("--task style", dry_run=True)

    def draws(heed):
        def dec(y, z):
            labels = y.argmax(1) if heed else torch.zeros(len(y), dtype=torch.long)
            return torch.stack([pictures[k][n % 100] for n, k in enumerate(labels.tolist())])

        return dec

    def codes(leak):
        def answer(x):
            z = torch.randn(len(x), 15)
            if leak:
                z[:, :10] = 5 * F.one_hot(judge.classify(x), 10)
            return None, z, None

        return answer

    def score_of(leak, heed):
        nets = model(codes(leak), aae.Gaussian(15, 1.0), draws(heed))
        return aae_scores.style_scores(nets, aae.encode, aae.decode, judge, train, test, o)

    good, bad = score_of(False, True), score_of(True, False)
    assert good["style_accuracy"] > 97 and good["z_error"] > 80
    assert bad["style_accuracy"] < 11 and bad["z_error"] < 30


def test_likelihood_of_good_samples_beats_that_of_bad_ones():
    train, held, test = images(3000), images(60_000).take(slice(50_000, 50_300)), images(200, 1)
    pictures, o = common.to_float(train.x), settings("--task likelihood", dry_run=True)

    def score_of(make):
        torch.manual_seed(0)
        nets = model(
            lambda x: (None, torch.zeros(len(x), 8), None), None, lambda y, z: make(len(z))
        )
        return aae_scores.likelihood_scores(nets, aae.encode, aae.decode, held, test, o)

    real = score_of(lambda n: pictures[torch.randint(0, 3000, (n,))])
    one = score_of(lambda n: pictures[:1].expand(n, 1, 28, 28))
    mean = score_of(lambda n: pictures.mean(0, keepdim=True).expand(n, 1, 28, 28))
    assert real["parzen_10k"] > mean["parzen_10k"] + 30 > one["parzen_10k"] + 60
    assert real["parzen_1m"] > real["parzen_10k"] + 5 and 0.08 < real["parzen_10k_sigma"] < 0.3
    x, picture = common.to_float(test.x).flatten(1), pictures[:1].flatten(1)
    alone = scores.parzen_log_likelihood(x, picture, [one["parzen_10k_sigma"]])[0]
    assert one["parzen_10k"] == pytest.approx(alone.mean().item(), abs=0.05)
    assert one["parzen_10k_sem"] == pytest.approx(alone.std().item() / 200**0.5, rel=1e-3)
    wide = scores.parzen_log_likelihood(x, picture, [one["parzen_1m_sigma"]])[0]
    assert one["parzen_1m"] == pytest.approx(wide.mean().item(), abs=0.05)  # parts are averaged
    cheat = score_of(lambda n: common.to_float(held.x)[torch.arange(n) % 300])
    assert cheat["parzen_10k_sigma"] == 0.08  # held-out images choose the width, not the test's


def test_the_baseline_learns_from_its_labels_alone(monkeypatch):
    o = settings("--task semi --hidden 100 --batch-norm none --labelled-batch 20")
    data, test = images(5000), images(1000, 1)
    labelled = aae_scores.labelled(data.y, 100, 1)

    def error(y, o):
        torch.manual_seed(0)
        enc, other = aae.Encoder(784, 1, 10, 100), data._replace(y=y)
        return aae_scores.baseline_error(enc, other, test, labelled, o)

    assert 15 < error(data.y, o) < 45
    quick = dataclasses.replace(o, dry_run=True)
    others, wrong = data.y[torch.randperm(5000)], data.y.clone()
    wrong[labelled] = others[labelled]
    others[labelled] = data.y[labelled]
    assert error(others, quick) == error(data.y, quick) != error(wrong, quick)


def test_the_baselines_rate_falls_to_0(monkeypatch):
    rates, step = [], torch.optim.Adam.step
    monkeypatch.setattr(
        torch.optim.Adam, "step", lambda o: (rates.append(o.param_groups[0]["lr"]), step(o))
    )
    o = settings("--task semi --hidden 10 --lr-labels 0.002", dry_run=True)
    enc, data = aae.Encoder(784, 1, 10, 10), images(50)
    aae_scores.baseline_error(enc, data, data, torch.arange(20), o)
    assert rates == pytest.approx([0.002 * (1 - k / 20) for k in range(20)])


# ---- Figures -------------------------------------------------------------------------------------
@pytest.fixture
def drawn(monkeypatch):
    """Figures are not drawn but kept: path -> what was to be drawn."""
    seen = {}

    def grid(path, shown, columns, *words, left=None):
        seen[path] = SimpleNamespace(images=shown, columns=columns, left=left)

    def scatter(path, points, y, title, curves=(), marks=None):
        seen[path] = SimpleNamespace(points=points, y=y, title=title, curves=curves, marks=marks)

    monkeypatch.setattr(aae_figures, "figure_grid", grid)
    monkeypatch.setattr(aae_figures, "figure_scatter", scatter)
    return seen


def test_style_and_clusters_show_what_they_say(drawn):
    torch.manual_seed(0)
    test, nets = images(300, 1), aae.build(settings("--task style --hidden 30"))
    aae_figures.figure_style(nets, aae.decode, test, "style", rows=3)
    rows = drawn["style"].images.view(3, 10, 784)
    z = torch.zeros(1, 15)
    assert drawn["style"].columns == 10 and not torch.allclose(rows[0, 0], rows[1, 0])
    nets.prior.sample = lambda component: z.expand(len(component), 15)
    aae_figures.figure_style(nets, aae.decode, test, "style", rows=3)
    truth = aae.decode(nets, torch.eye(10), z.expand(10, 15))
    assert torch.allclose(drawn["style"].images[10:20], truth, atol=1e-6)
    nets = aae.build(settings("--task cluster --clusters 4 --hidden 30"))
    logits = F.one_hot(test.y.clamp(max=2), 4).float()  # nobody falls into cluster 3
    nets.enc = Codes(lambda x: (logits, torch.zeros(len(x), 5), None))
    aae_figures.figure_clusters(nets, aae.encode, aae.decode, test, "clusters", shown=6)
    shown = drawn["clusters"]
    heads = aae.decode(nets, torch.eye(4)[:3], torch.zeros(3, 5))
    assert shown.columns == 6 and torch.allclose(shown.left, heads)
    assert torch.equal(shown.images[6:12], common.to_float(test.x[test.y == 1][:6]))


def test_samples_have_the_nearest_training_image_beside_them(drawn):
    train = images(500)
    pictures = common.to_float(train.x[100:120]) * 0.98
    nets = model(None, dec=lambda y, z: pictures)
    aae_figures.figure_samples(nets, aae.decode, train, "samples", rows=2)
    rows = drawn["samples"].images.view(2, 11, 1, 28, 28)
    assert torch.equal(rows[0, 10], common.to_float(train.x[109]))
    assert torch.equal(rows[1, 10], common.to_float(train.x[119]))


def test_manifolds_walk_where_they_say():
    z, columns, _ = aae_figures.walk(aae.Gaussian(2, 5.0))
    corner = 5 * torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor([0.05, 0.95]))
    assert columns == 16 and torch.allclose(z[0], corner, atol=1e-4)  # left, top
    mixture, roll = aae.Mixture(), aae.SwissRoll()
    codes = aae_figures.walk(mixture)[0].view(10, 30, 2)
    assert torch.equal(
        aae_priors.component(mixture, codes[4]), torch.arange(3).repeat_interleave(10)
    )
    assert codes[5, :10].norm(dim=1).diff().min() > 0  # outwards along a petal
    codes = aae_figures.walk(roll)[0]
    assert torch.equal(aae_priors.component(roll, codes), torch.arange(100) // 10)


def test_codes_are_drawn_where_they_are(drawn):
    test = images(100, 1)
    logits = 50 * F.one_hot(torch.arange(100) % 20, 20).float()
    nets = aae.build(settings("--task embed-clusters --hidden 30"))
    nets.enc = Codes(lambda x: (logits, torch.zeros(len(x), 2), None))
    aae_figures.figure_codes(nets, aae.encode, test, "x")
    heads = nets.dec.heads.positions().detach()
    assert torch.allclose(drawn["x"].points, heads[torch.arange(100) % 20], atol=1e-4)
    assert torch.equal(drawn["x"].marks, heads) and torch.equal(drawn["x"].y, test.y)
    around = (drawn["x"].curves[3] - heads[3]).norm(dim=1)
    assert torch.allclose(around, torch.tensor(2.0), atol=1e-4)
    nets = aae.build(settings("--task embed --z-dim 10 --hidden 30"))
    nets.enc = Codes(lambda x: (logits[:, :10], torch.zeros(len(x), 10), None))
    aae_figures.figure_codes(nets, aae.encode, test, "x")  # ten corners, evenly on a circle
    marks = drawn["x"].marks
    assert torch.allclose(marks.norm(dim=1), torch.full((10,), 10.0), atol=1e-2)
    gaps = (marks - marks.roll(1, 0)).norm(dim=1)
    assert torch.allclose(gaps, gaps.mean().expand(10), atol=1e-2)


# ---- The comparison ------------------------------------------------------------------------------
@pytest.mark.parametrize("words", ["kl", "kl --prior mixture", "mmd", "wae-gan"])
def test_a_step_of_what_is_compared(monkeypatch, words):
    """Enc and Dec descend the sum; only then, and only for wae-gan, Disc takes its step."""
    o = settings(f"--regularizer {words} --hidden 12 --batch-size {N}", aae_compared.recipe)
    o = dataclasses.replace(o, regularizer_weight=3.0)
    data, got, logged = images(N), [], {}
    monkeypatch.setattr(torch, "randperm", lambda count, **_: torch.arange(count))
    monkeypatch.setattr(common.Run, "log", lambda run, **losses: logged.update(losses))
    monkeypatch.setattr(common.Run, "_close_epoch", lambda run, begun: setattr(run, "epoch", 1))
    torch.manual_seed(0)
    nets = aae.build(o)

    def update(optimiser, loss):
        (group,) = optimiser.param_groups
        got.append(torch.autograd.grad(loss, group["params"], allow_unused=True))

    monkeypatch.setattr(aae_compared, "update", update)
    run = common.Run("aae_compared", o)
    torch.manual_seed(5)
    aae_compared.train(run, nets, data)
    torch.manual_seed(5)
    x = data.x.float() / 255
    _, mu, logvar = nets.enc(x)
    z = mu if logvar is None else mu + torch.randn(mu.shape) * torch.exp(logvar / 2)
    loss = 0.5 * ((nets.dec(None, z) - x) ** 2).sum() / N
    if o.regularizer == "mmd":
        p, extra = nets.prior.sample(torch.randint(0, 10, (N,))), 0.0
        for scale in (0.1, 0.2, 0.5, 1, 2, 5, 10):
            extra = extra + aae_scores.mmd_loss(z, p, 5.0, (scale,))
    elif o.regularizer == "wae-gan":
        extra = -D(nets.disc(z / 5)).log().mean()
    else:
        q = torch.distributions.Normal(mu, torch.exp(logvar / 2))
        normal = torch.distributions.Normal(0.0, 5.0)
        extra = torch.distributions.kl_divergence(q, normal).sum() / N
        if o.prior == "mixture":
            extra = (q.log_prob(z).sum(1) - aae_priors.log_density(nets.prior, z)).mean()
    truth = torch.autograd.grad(loss + 3 * extra, [*nets.enc.parameters(), *nets.dec.parameters()])
    for found, gradient in zip(got[0], truth):
        assert torch.allclose(found, gradient, atol=2e-3 * gradient.abs().max().item())
    assert logged["regularizer"].item() == pytest.approx(extra.item(), rel=1e-4)
    assert len(got) == 1 + (o.regularizer == "wae-gan")
    if len(got) == 2:
        z = nets.enc(x)[1].detach() / 5
        p = nets.prior.sample(torch.randint(0, 10, (N,))) / 5
        loss = -D(nets.disc(p)).log().mean() - (1 - D(nets.disc(z))).log().mean()
        assert logged["disc"].item() == pytest.approx(loss.item(), rel=1e-4)
        truth = torch.autograd.grad(loss, list(nets.disc.parameters()))
        for found, gradient in zip(got[1], truth):
            assert torch.allclose(found, gradient, atol=2e-3 * gradient.abs().max().item())


# ---- A tiny training -----------------------------------------------------------------------------
def test_a_tiny_training_matches_the_prior_and_without_its_game_does_not():
    """Codes get the prior's shape; where Enc does not learn from Disc, they take any other."""
    spread, error = {}, {}
    data = images(256).take(torch.arange(256).repeat(31))
    words = "--hidden 200 --batch-size 64 --prior-std 2"
    for name, lr in (("whole", 6e-4), ("ablated", 1e-9)):
        o = settings(words, epochs=2, out=name, lr_encoder=lr)
        run, torch_nets = common.Run("aae", o), aae.build(o)
        aae.train(run, torch_nets, data, torch.arange(0))
        nets = torch_nets.eval()
        z = aae.encode(nets, data.x[:1024])[1]
        prior = aae_scores.draw_prior(nets, 1024, z.device)
        spread[name] = aae_scores.mmd_loss(z, prior, 5.0).item()
        some = data.take(slice(256))
        error[name] = aae_scores.reconstruction_mse(nets, aae.encode, aae.decode, some)
    print(spread, error)
    assert spread["whole"] < 0.01 and spread["ablated"] > 0.1
    assert max(error.values()) < 0.06  # both learn to make the images


# ---- The command line ----------------------------------------------------------------------------
RUNS = {
    "prior": ("", "code_test code_mmd code_mmd_prior reconstruction_mse", "codes manifold"),
    "prior-labels": ("--prior swiss-roll", "code_test component_accuracy", "codes manifold"),
    "likelihood": ("", "parzen_10k parzen_10k_sem parzen_1m reconstruction_mse", "samples"),
    "style": ("", "style_accuracy z_error chance_error", "style"),
    "semi": ("--validation", "test_error baseline_error", "style"),
    "cluster": ("", "cluster_error cluster_error_majority clusters_used", "clusters"),
    "embed": ("--z-dim 10 --labels 100", "test_error baseline_error", "codes"),
    "embed-clusters": ("", "cluster_error", "codes clusters"),
}


def numbers(folder):
    return json.loads((Path(folder) / "metrics.json").read_text())


def test_a_kill_then_resume_is_bit_identical(survives_a_kill):
    survives_a_kill("aae.py", "--batch-size", "20", "--hidden", "100")


@pytest.mark.parametrize("task", RUNS)
def test_every_task_runs_through(task, command, capsys):
    words, metrics, figures = RUNS[task]
    small = ["--dry-run", "--device", "cpu", "--hidden", 100, "--out", "run"]
    done = command("aae.py", "--task", task, *small, *words.split())
    assert done.returncode == 0, done.stderr
    found = numbers("run")
    assert set(metrics.split()) <= set(found)
    assert all(math.isfinite(value) for value in found.values())
    for figure in (*figures.split(), "losses"):
        assert Path(f"run/{figure}.png").stat().st_size > 2000
    table = done.stdout.splitlines()
    assert table[0].split() == ["score", "this", "run", "paper", "to", "compare"] and len(table) > 2
    legend = (
        (ROOT / "results/aae.md").read_text("utf-8").split("| column of aae.py")[1].split("\n\n")[0]
    )
    told = set(re.findall(r"\w+", " ".join(re.findall(r"^\| (.*?) \|", legend, re.MULTILINE))))
    assert set(Path("run/log.csv").read_text().splitlines()[0].split(",")) <= told | {"epoch"}
    nets = aae.load("run")
    saved = run_folder.read_checkpoint("run")["states"]
    assert set(saved) == {"nets"} and not any(m.training for m in nets.modules())
    assert all(torch.equal(v, saved["nets"][k]) for k, v in nets.state_dict().items())
    if task in ("prior-labels", "likelihood", "semi"):
        gc.collect()
        score.main("run", "cpu")  # scored again: the same numbers, the same table
        assert numbers("run") == pytest.approx(found, rel=1e-5)
        assert capsys.readouterr().out == done.stdout


def test_what_is_compared_runs_through(command):
    for words in ("--regularizer kl", "--task likelihood --regularizer wae-gan"):
        shutil.rmtree("run", ignore_errors=True)
        small = ["--dry-run", "--device", "cpu", "--hidden", 100, "--out", "run"]
        done = command("experiments/aae_compared.py", *words.split(), *small)
        assert done.returncode == 0, done.stderr
        found = numbers("run")
        assert "parzen_1m" not in found and ("parzen_10k" in found) == ("likelihood" in words)
        gc.collect()
        score.main("run", "cpu")
        assert numbers("run") == pytest.approx(found, rel=1e-5)


def test_encode_and_decode_are_the_networks_part_by_part():
    torch.manual_seed(0)
    nets, x = aae.build(aae.recipe("semi")).eval(), images(1500).x
    logits, z = aae.encode(nets, x)
    with torch.no_grad():
        last, mu, _ = nets.enc(common.to_float(x[1200:]))
        made = nets.dec(last.softmax(1), mu)
    assert torch.allclose(logits[1200:], last, atol=1e-5)
    assert torch.allclose(z[1200:], mu, atol=1e-5)
    decoded = aae.decode(nets, logits.softmax(1), z)
    assert decoded.shape == (1500, 1, 28, 28) and torch.allclose(decoded[1200:], made, atol=1e-5)
    plain = aae.build(aae.recipe("likelihood")).eval()
    assert aae.encode(plain, x)[0] is None
    assert aae.decode(plain, None, torch.zeros(1500, 8)).shape == (1500, 1, 28, 28)
    first, second = (aae.encode(plain, x[:5], sample=True)[1] for _ in range(2))
    assert not torch.allclose(first, second)


SNIPPETS = {
    "Encoder": "mlp",
    "Decoder": "mlp",
    "Discriminator": "mlp",
    "ClusterHeads": "",
    "Mixture": "Gaussian",
    "SwissRoll": "Gaussian",
    "reconstruction_loss": "",
    "adversarial_loss": "",
    "discriminator_loss": "",
    "head_distance_loss": "",
    "warp": "",
    "smoothness_loss": "invariance_loss",
    "balance_loss": "",
}


@pytest.mark.parametrize("name", SNIPPETS)
def test_snippets_stand_alone(name):
    """Pasted with its companion, a class or a loss needs torch and math, and nothing else."""
    space = {"torch": torch, "nn": nn, "F": F, "math": math}
    for part in (*SNIPPETS[name].split(), name):
        exec(inspect.getsource(getattr(aae, part)), space)
    z, x = torch.rand(4, 2), torch.rand(4, 1, 28, 28)
    calls = {
        "Encoder": lambda f: f()(x),
        "Decoder": lambda f: f(4)(z, z),
        "Discriminator": lambda f: f(2)(z),
        "ClusterHeads": lambda f: f(2, 3)(z, torch.rand(4, 3)),
        "reconstruction_loss": lambda f: f(x, x),
        "discriminator_loss": lambda f: f(z, z),
        "head_distance_loss": lambda f: f(z, 1.0),
        "warp": lambda f: f(x, 1.0),
        "smoothness_loss": lambda f: f(lambda x: 3 * x, z),
    }
    if name in ("Mixture", "SwissRoll"):
        prior = space[name]()
        assert prior.sample(torch.arange(10)).shape == (10, 2)
    else:
        calls.get(name, lambda f: f(z))(space[name])


def test_a_new_prior_is_a_class_and_a_name(monkeypatch, command):
    class Ring(aae.Gaussian):
        def sample(self, component):
            return 5 * F.normalize(torch.randn(len(component), 2), dim=1)

        def log_density(self, z):
            return z[:, 0]

        def component(self, z):
            return z[:, 1].long()

        def outline(self):
            return ["a ring"]

    ring, z = Ring(2, 1.0), torch.rand(4, 2)
    assert torch.equal(aae_priors.log_density(ring, z), z[:, 0])
    assert aae_priors.has_components(Ring) and not aae_priors.has_components(aae.Gaussian)
    assert torch.equal(aae_priors.component(ring, z), torch.zeros(4, dtype=torch.long))
    assert aae_priors.outline(ring) == ["a ring"]
    del Ring.log_density, Ring.component, Ring.outline  # it need not have them
    assert len(aae_priors.outline(ring)) == 3
    monkeypatch.setitem(aae.PRIORS, "ring", Ring)
    o = settings("--prior ring --hidden 50", dry_run=True, epochs=2)
    aae.main(o)
    assert numbers("run")["code_test"] >= 0 and Path("run/manifold.png").exists()


@pytest.mark.parametrize(
    "words, recipe, name",
    [("", aae.recipe, "AAE"), ("--regularizer kl", aae_compared.recipe, "VAE")],
)
def test_the_title_of_codes_names_their_model(words, recipe, name, drawn, tmp_path):
    o = settings(f"{words} --hidden 10", recipe)
    nets, test = aae.build(o).eval(), images(20)
    aae_figures.draw(nets, aae.encode, aae.decode, test, test, o, tmp_path)
    assert name in drawn[tmp_path / "codes.png"].title


@pytest.mark.parametrize("prior", ["mixture", "swiss-roll"])
def test_heads_are_drawn_with_any_prior(prior, drawn):
    o = settings(f"--task embed --prior {prior} --hidden 20")
    nets = aae.build(o).eval()
    aae_figures.figure_codes(nets, aae.encode, images(50), "codes")
    curves = 10 if prior == "mixture" else 1
    assert len(drawn["codes"].curves) == 10 * curves and len(drawn["codes"].marks) == 10


def test_a_stopped_training_goes_on_bit_for_bit(goes_on_bit_for_bit):
    words = f"--task semi --hidden 20 --batch-size 30 --labels 50 {NEAR}"
    o = settings(words, dry_run=True, epochs=2)
    assert goes_on_bit_for_bit(aae, o, images(120))["step"] == 8


def complaint_of(words, monkeypatch, capsys, script=aae):
    """The one line that the script says about these words, exit status 2."""
    monkeypatch.setattr(sys, "argv", ["aae.py", *words])
    with pytest.raises(SystemExit) as stop:
        common.run_main(script.main, script.recipe)
    gc.collect()
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if not line.startswith("aae: ")]  # its own echo
    assert stop.value.code == 2 and out == "" and len(lines) == 1, err
    return lines[0]


MISTAKES = [
    ("--task nothing", "invalid choice: 'nothing'"),
    ("--prior star", "unknown prior 'star': choose one of gaussian, mixture, swiss-roll"),
    ("--prior mixture --z-dim 3", "needs --z-dim 2"),
    ("--task prior-labels --prior gaussian", "has no components"),
    ("--batch-size 2", "'2' is not a whole number from 3"),
    ("--task semi --labels 55", "--labels 55: say a multiple of 10"),
    ("--task semi --labels -1", "'-1' is not a whole number"),
    ("--task embed --z-dim 1", "need --z-dim 2"),
    ("--dataset sprites", "sprites do not have ten classes"),
    ("--prior-std 0", "--prior-std must be above 0"),
    ("--labels 100", "there is no --labels here"),
    ("--task cluster --lr-labels 1", "there is no --lr-labels here"),
    ("--task semi --clusters 30", "there is no --clusters here"),
    ("--task semi --head-distance 2", "there is no --head-distance here"),
    ("--task style --warp-weight 2", "there is no --warp-weight here"),
    ("--recipe large", "argument --recipe: invalid choice: 'large'"),
]


@pytest.mark.parametrize("words, complaint", MISTAKES, ids=[words for words, _ in MISTAKES])
def test_a_mistake_is_one_line_and_leaves_nothing(words, complaint, monkeypatch, capsys):
    dry = [] if "55" in words else ["--dry-run"]
    assert complaint in complaint_of([*words.split(), *dry], monkeypatch, capsys)
    assert not list(Path(".").iterdir())


COMPARED = [
    ("--regularizer kl --lr-disc 1", "there is no --lr-disc here"),
    ("--regularizer wae-gan --lr-encoder 1", "there is no --lr-encoder here"),
    ("--regularizer kl --encoder deterministic", "is of --encoder gaussian"),
    ("--regularizer gan", "invalid choice: 'gan'"),
    ("--task semi", "invalid choice: 'semi'"),
]


@pytest.mark.parametrize("words, complaint", COMPARED, ids=[words for words, _ in COMPARED])
def test_a_mistake_in_the_comparison_is_one_line(words, complaint, monkeypatch, capsys):
    found = complaint_of([*words.split(), "--dry-run"], monkeypatch, capsys, aae_compared)
    assert complaint in found and not list(Path(".").iterdir())


def test_a_training_that_breaks_says_where(monkeypatch, capsys):
    monkeypatch.setattr(aae, "rate", lambda *words: 1e30)
    words = "--dry-run --hidden 20 --precision fp32 --device cpu --out run"
    complaint = complaint_of(words.split(), monkeypatch, capsys)
    assert "training broke" in complaint and "is not finite at step" in complaint
    assert not Path("run/metrics.json").exists()


def test_help_tells_the_flags_of_a_task_with_comments_and_defaults(monkeypatch, capsys):
    for task in ("prior", "semi", "cluster"):
        monkeypatch.setattr(sys, "argv", ["aae.py", "--help", "--task", task])
        with pytest.raises(SystemExit):
            common.run_main(aae.main, aae.recipe)
        words, o = " ".join(capsys.readouterr().out.split()), aae.recipe(task)
        comments = command_line.field_comments(aae.Settings)
        for field in dataclasses.fields(o):
            flag, value = f"--{field.name.replace('_', '-')} ", getattr(o, field.name)
            assert (flag in words) == (value is not None), flag
            if value is not None:
                assert f"{comments[field.name]} [{value}]" in words, flag


def test_numbers_of_the_paper_from_memory_are_marked_as_such():
    page = (ROOT / "results/aae.md").read_text("utf-8")
    told = set(re.findall(r"([0-9.]+)(?: ± [0-9.]+)? †", page))
    source = (ROOT / "experiments/aae_scores.py").read_text("utf-8")
    printed = set(re.findall(r'"([0-9.]+)(?: \+- [0-9.]+)? \?', source))
    assert len(told) >= 8 and printed == told | {"3.90"}  # Figure 11(d) has no row
