"""aae.py: losses and priors against independent answers, the phases by hand, scores that catch degenerate models, the command line."""

import copy
import itertools
import json
import math
import re
import sys
import types

import aae
from experiments import before as common

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from torch import nn

# ---------------------------------------------------------------------------------------------------------- losses


def test_reconstruction_is_half_the_squared_error():
    torch.manual_seed(0)
    a, b = torch.rand(3, 5, dtype=torch.float64), torch.rand(3, 5, dtype=torch.float64)
    truth = sum(0.5 * (a[n, k] - b[n, k]).item() ** 2 for n in range(3) for k in range(5)) / 3
    assert math.isclose(aae.reconstruction_loss(a, b).item(), truth, rel_tol=1e-12)


def test_adversarial_losses_against_their_formulas():
    torch.manual_seed(0)
    prior, code = (torch.randn(7, dtype=torch.float64, requires_grad=True) for _ in range(2))
    D = torch.sigmoid
    assert torch.allclose(
        aae.discriminator_loss(prior, code), -D(prior).log().mean() - (1 - D(code)).log().mean()
    )
    assert torch.allclose(aae.encoder_loss(code), -D(code).log().mean())
    assert torch.autograd.gradcheck(
        aae.discriminator_loss, (prior, code)
    ) and torch.autograd.gradcheck(aae.encoder_loss, (code,))
    zero = torch.zeros(4)
    assert math.isclose(aae.discriminator_loss(zero, zero).item(), 2 * math.log(2), rel_tol=1e-6)
    assert math.isclose(aae.encoder_loss(zero).item(), math.log(2), rel_tol=1e-6)


@pytest.mark.parametrize("std", [1.0, 5.0])
def test_kl_against_torch_distributions(std):
    torch.manual_seed(0)
    mu, logvar = (torch.randn(5, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    q = torch.distributions.Normal(mu, (logvar / 2).exp())
    truth = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, std)).sum(1).mean()
    assert torch.allclose(aae.kl_loss(mu, logvar, std), truth)
    assert torch.autograd.gradcheck(lambda m, v: aae.kl_loss(m, v, std), (mu, logvar))
    at_prior = aae.kl_loss(torch.zeros(2, 3), torch.full((2, 3), 2 * math.log(std)), std)
    assert at_prior.abs() < 1e-6


def test_sampled_kl_is_the_kl_on_average():
    torch.manual_seed(0)
    mu, logvar = torch.tensor([[1.0, -2.0]]).double(), torch.tensor([[-1.0, 0.5]]).double()
    mu, logvar = mu.expand(400_000, 2), logvar.expand(400_000, 2)
    z = mu + torch.randn_like(mu) * (logvar / 2).exp()
    log_prior = torch.distributions.Normal(0.0, 2.0).log_prob(z).sum(1)
    assert (
        abs(aae.sampled_kl_loss(z, mu, logvar, log_prior) - aae.kl_loss(mu[:1], logvar[:1], 2.0))
        < 0.01
    )


def naive_mmd(a, b, std, scales):
    n, d = a.shape
    total = 0.0
    for scale in scales:
        c = 2 * d * std**2 * scale

        def k(p, q):
            return c / (c + sum((p[m] - q[m]).item() ** 2 for m in range(d)))

        total += sum(
            k(a[i], a[j]) + k(b[i], b[j]) for i in range(n) for j in range(n) if i != j
        ) / (n * (n - 1))
        total -= 2 * sum(k(a[i], b[j]) for i in range(n) for j in range(n)) / n**2
    return total


@pytest.mark.parametrize("std, scales", [(1.0, (1.0,)), (5.0, (0.1, 1.0, 10.0))])
def test_mmd_against_a_naive_double_loop(std, scales):
    torch.manual_seed(0)
    a, b = (
        std * torch.randn(9, 3, dtype=torch.float64),
        std * torch.randn(9, 3, dtype=torch.float64) + 1,
    )
    assert math.isclose(
        aae.mmd_loss(a, b, std, scales).item(), naive_mmd(a, b, std, scales), rel_tol=1e-9
    )
    assert torch.autograd.gradcheck(
        lambda z: aae.mmd_loss(z, b, std, scales), (a.requires_grad_(True),)
    )


def test_mmd_is_unbiased_at_the_null_and_sees_a_difference():
    torch.manual_seed(0)
    draws = torch.stack(
        [
            aae.mmd_loss(torch.randn(20, 2).double(), torch.randn(20, 2).double())
            for _ in range(1500)
        ]
    )
    error = draws.std() / len(draws) ** 0.5
    assert (
        draws.mean().abs() < 4 * error and (draws < 0).float().mean() > 0.3
    )  # the biased estimator is never negative:
    assert 20 * error < 2 / 20 * (1 - aae_kernel_mean())  # its bias, 2/n (1 - E k), would be seen
    assert aae.mmd_loss(torch.randn(500, 2), torch.randn(500, 2) + 1) > 0.03


def aae_kernel_mean():
    a, b = torch.randn(4000, 2), torch.randn(4000, 2)
    return (4 / (4 + (a - b).square().sum(1))).mean().item()


def test_smoothness_finds_the_direction_that_changes_the_answer_most():
    """For softmax(w x) with two classes the worst direction is known: along w_1 - w_0, to one side or the other."""
    torch.manual_seed(0)
    weight = torch.randn(2, 6, dtype=torch.float64)
    classify = lambda x: x @ weight.t()  # noqa: E731
    x = torch.randn(40, 6, dtype=torch.float64)
    along = F.normalize(weight[1] - weight[0], dim=0)
    kl = lambda r: (
        classify(x).softmax(1) * (classify(x).log_softmax(1) - classify(x + r).log_softmax(1))
    ).sum(1)  # noqa: E731
    low, high = (
        torch.minimum(kl(0.5 * along), kl(-0.5 * along)).mean(),
        torch.maximum(kl(0.5 * along), kl(-0.5 * along)).mean(),
    )
    found = aae.smoothness_loss(classify, x, radius=0.5, probe=1e-3)
    assert (
        low - 1e-9 <= found <= high + 1e-9
        and found > 3 * kl(0.5 * F.normalize(torch.randn(40, 6).double(), dim=1)).mean() / 2
    )
    assert (
        aae.smoothness_loss(lambda x: torch.zeros(len(x), 3, dtype=torch.float64) + 0 * x[:, :3], x)
        == 0
    )
    w = weight.clone().requires_grad_(
        True
    )  # the target is fixed: the gradient is that of -sum p log q alone
    torch.manual_seed(1)
    (gradient,) = torch.autograd.grad(aae.smoothness_loss(lambda x: x @ w.t(), x, 0.5), w)
    torch.manual_seed(1)
    d = F.normalize(torch.randn_like(x), dim=1).requires_grad_()
    p = classify(x).softmax(1)
    (g,) = torch.autograd.grad(-(p * classify(x + d).log_softmax(1)).sum(1).mean(), d)
    moved = x + 0.5 * F.normalize(g, dim=1)
    truth = ((moved @ weight.t()).softmax(1) - p).t() @ moved / len(x)
    assert torch.allclose(gradient, truth, atol=1e-9)


def test_invariance_is_a_kl_whose_target_is_fixed():
    torch.manual_seed(0)
    a, b = (torch.randn(6, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    q = [torch.distributions.Categorical(logits=t) for t in (a, b)]
    assert torch.allclose(aae.invariance_loss(a, b), torch.distributions.kl_divergence(*q).mean())
    assert torch.autograd.grad(aae.invariance_loss(a, b), a, allow_unused=True)[0] is None
    (gradient,) = torch.autograd.grad(aae.invariance_loss(a, b), b)
    assert torch.allclose(gradient, (b.softmax(1) - a.softmax(1)) / 6)


def test_balance_is_a_kl_whose_gradient_revives_the_dead():
    """0 where clusters are equally frequent, however sure each image is; the logits of one that has next to nothing have 1/K in all."""
    torch.manual_seed(0)
    assert abs(aae.balance_loss(torch.eye(4).repeat(5, 1))) < 1e-6
    y = torch.randn(6, 4, dtype=torch.float64).softmax(1)
    uniform, mean = (
        torch.distributions.Categorical(p)
        for p in (torch.full((4,), 0.25, dtype=torch.float64), y.mean(0))
    )
    assert torch.allclose(aae.balance_loss(y), torch.distributions.kl_divergence(uniform, mean))
    logits = 3 * torch.randn(6, 4, dtype=torch.float64)
    logits[:, 3] -= 40  # dead: 1e-18 of each image
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(aae.balance_loss(logits.softmax(1)), logits)
    assert (
        math.isclose(gradient[:, 3].sum(), -1 / 4, rel_tol=1e-6)
        and gradient[:, 3].argmin() == logits[:, 3].sub(logits.logsumexp(1)).argmax()
    )
    assert aae.balance_loss(torch.tensor([[1.0, 0.0]])).isfinite()


def test_warps_are_not_rounded_in_bf16():
    x, warped = common.to_float(mnist(50).x), []
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            warped.append(aae.warp(x))
    assert torch.equal(*warped)


def test_warps_are_small_and_each_image_has_its_own():
    torch.manual_seed(0)
    x = common.to_float(mnist(300).x)
    assert torch.allclose(aae.warp(x, 0.0), x, atol=1e-5)
    same = aae.warp(x[:1].expand(300, 1, 28, 28), 1.0)
    assert same.shape == (300, 1, 28, 28) and not torch.allclose(same[0], same[1], atol=1e-2)
    grid = torch.arange(28.0) - 13.5
    mass = same.sum((1, 2, 3))
    center = (
        torch.stack([(same[:, 0] * grid).sum((1, 2)), (same[:, 0] * grid[:, None]).sum((1, 2))], 1)
        / mass[:, None]
    )
    assert 0.3 < (center - center.mean(0)).std() < 1.5  # pixels
    assert (
        common.load_judge("mnist").classify(aae.warp(x, 1.0)) == mnist(300).y
    ).float().mean() > 0.97  # it stays the digit it was


def test_head_distances_are_pushed_apart_below_the_threshold_only():
    heads = torch.tensor(
        [[0.0, 0.0], [3.0, 0.0], [0.0, 10.0]], dtype=torch.float64, requires_grad=True
    )
    pairs = [math.dist(a, b) for a, b in itertools.combinations(heads.tolist(), 2)]
    loss = aae.head_distance_loss(heads, 4.0)
    assert math.isclose(loss.item(), sum(max(0, 4 - d) for d in pairs)) and math.isclose(
        loss.item(), 1
    )
    (gradient,) = torch.autograd.grad(loss, heads)
    assert torch.allclose(
        gradient, torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]]).double()
    )  # linear, and the far one is left alone


# ---------------------------------------------------------------------------------------------------------- priors


def test_gaussian_prior_has_its_moments():
    torch.manual_seed(0)
    z = aae.gaussian(100_000, 3, 5.0)
    assert z.shape == (100_000, 3) and z.mean(0).abs().max() < 0.1
    assert torch.allclose(z.t().cov(), 25 * torch.eye(3), atol=0.6)
    assert torch.equal(
        torch.tensor(aae.sample_prior("gaussian", torch.zeros(4, dtype=torch.long), 7, 2.0).shape),
        torch.tensor([4, 7]),
    )


def test_mixture_has_the_moments_of_its_components():
    torch.manual_seed(0)
    for k in (0, 3, 7):
        z = aae.mixture(torch.full((50_000,), k))
        angle = 2 * math.pi * k / 10
        turn = torch.tensor(
            [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        )
        assert torch.allclose(z.mean(0), 10 * turn[:, 0], atol=0.08)
        assert torch.allclose(
            z.t().cov(), turn @ torch.diag(torch.tensor([9.0, 0.49])) @ turn.t(), atol=0.2
        )


def test_mixture_density_against_torch_distributions():
    torch.manual_seed(0)
    means, covariances = [], []
    for k in range(10):
        a = 2 * math.pi * k / 10
        turn = torch.tensor([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]])
        (
            means.append(10 * turn[:, 0]),
            covariances.append(turn @ torch.diag(torch.tensor([9.0, 0.49])) @ turn.t()),
        )
    normal = torch.distributions.MultivariateNormal(torch.stack(means), torch.stack(covariances))
    truth = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.ones(10)), normal
    )
    z = 8 * torch.randn(50, 2)
    assert torch.allclose(
        aae.mixture_log_density(z).logsumexp(1), truth.log_prob(z), atol=1e-2, rtol=1e-4
    )


@pytest.mark.parametrize("prior, share", [("mixture", 0.97), ("swiss-roll", 0.96)])
def test_samples_lie_in_the_component_they_were_drawn_for(prior, share):
    torch.manual_seed(0)
    component = torch.randint(0, 10, (5000,))
    z = aae.sample_prior(prior, component)
    assert (aae.component_of(prior, z) == component).float().mean() > share
    assert (aae.component_of(prior, z[torch.randperm(5000)]) == component).float().mean() < 0.15


def test_swiss_roll_runs_outwards_to_its_radius():
    torch.manual_seed(0)
    radius = [aae.swiss_roll(torch.full((2000,), k), noise=0.0).norm(dim=1) for k in range(10)]
    assert (
        all(a.max() <= b.min() + 1e-4 for a, b in zip(radius, radius[1:]))
        and 14.9 < radius[-1].max() < 15.001
    )
    u = (radius[4] / 15).square()  # u is uniform within its tenth
    assert abs(u.mean() - 0.45) < 0.003 and 0.4 <= u.min() and u.max() <= 0.5


# -------------------------------------------------------------------------------------------------------- networks


def test_networks_have_the_papers_sizes_and_return_logits():
    enc, dec, disc = aae.Encoder(classes=10, z_dim=10), aae.Decoder(20), aae.Discriminator(10)
    for net, sizes in (
        (enc.body, [(784, 1000), (1000, 1000)]),
        (dec.net, [(20, 1000), (1000, 1000), (1000, 784)]),
        (disc.net, [(10, 1000), (1000, 1000), (1000, 1)]),
    ):
        assert [
            (m.in_features, m.out_features) for m in net.modules() if isinstance(m, nn.Linear)
        ] == sizes
    y, z, logvar = enc(torch.rand(4, 1, 28, 28))
    assert y.shape == z.shape == (4, 10) and logvar is None
    assert dec(torch.cat([y, z], 1)).shape == (4, 784) and disc(z).shape == (4,)
    assert (dec(100 * torch.randn(4, 20)).abs() > 1).any() and (
        y.sum(1) - 1
    ).abs().min() > 1e-3  # nothing is squashed


def test_the_three_posteriors():
    torch.manual_seed(0)
    x = torch.rand(6, 784)
    nets = {
        kind: types.SimpleNamespace(enc=aae.Encoder(z_dim=3, kind=kind, hidden=50))
        for kind in ("deterministic", "gaussian", "universal")
    }
    first, second = ({kind: aae.posterior(n, x)[1] for kind, n in nets.items()} for _ in range(2))
    assert torch.equal(first["deterministic"], second["deterministic"])
    assert not torch.allclose(first["gaussian"], second["gaussian"]) and not torch.allclose(
        first["universal"], second["universal"]
    )
    many = torch.stack([aae.posterior(nets["gaussian"], x)[1] for _ in range(20_000)])
    _, mu, logvar = nets["gaussian"].enc(x)
    assert torch.allclose(many.mean(0), mu, atol=0.05) and torch.allclose(
        many.std(0), (logvar / 2).exp(), atol=0.03
    )


def test_mmd_is_not_rounded_under_autocast():
    torch.manual_seed(0)
    a, b = 30 + 5 * torch.randn(64, 2), 5 * torch.randn(64, 2)
    with torch.autocast("cpu", torch.bfloat16):
        low = aae.mmd_loss(a, b, 5.0, (0.1, 1.0))
    assert math.isclose(
        low.item(), aae.mmd_loss(a.double(), b.double(), 5.0, (0.1, 1.0)).item(), rel_tol=1e-4
    )


def test_batch_norm_is_settled_on_clean_images():
    torch.manual_seed(0)
    enc = aae.Encoder(hidden=20, batch_norm="hidden", dropout=0.5)
    x = mnist(1000).x.flatten(1)
    for _ in range(5):
        enc(torch.randn(50, 784))
    aae.settle_batch_norm(enc, x, batch_size=1000)
    h = enc.body[0](common.to_float(x))
    assert not enc.training and torch.allclose(enc.body[1].running_mean, h.mean(0), atol=1e-4)
    assert torch.allclose(enc.body[1].running_var, h.var(0), rtol=1e-3)
    h = enc.body[4](torch.relu(enc.body[1](h)))  # the second layer sees no dropout
    assert torch.allclose(enc.body[5].running_mean, h.mean(0), atol=1e-2)


@pytest.mark.parametrize("kind, count", [("none", 0), ("hidden", 2), ("all", 4)])
def test_batch_norm_where_asked(kind, count):
    enc = aae.Encoder(classes=10, batch_norm=kind)
    assert sum(isinstance(m, nn.BatchNorm1d) for m in enc.modules()) == count
    assert (
        isinstance(enc.to_y[-1], nn.BatchNorm1d)
        == isinstance(enc.to_z[-1], nn.BatchNorm1d)
        == (kind == "all")
    )


def test_codes_of_the_decoder():
    y, z = torch.eye(3)[:2], torch.randn(2, 2)
    plain = types.SimpleNamespace(heads=None)
    assert torch.equal(aae.decoder_code(plain, None, z), z) and torch.equal(
        aae.decoder_code(plain, y, z), torch.cat([y, z], 1)
    )
    heads = aae.ClusterHeads(3, 2)
    assert torch.allclose(
        aae.decoder_code(types.SimpleNamespace(heads=heads), y, z), heads.weight[:2] + z
    )


def test_corruption_is_of_the_size_asked():
    torch.manual_seed(0)
    x = torch.ones(200, 784)
    assert torch.equal(aae.corrupt(x, types.SimpleNamespace(noise=0.0, input_dropout=0.0)), x)
    noisy = aae.corrupt(x, types.SimpleNamespace(noise=0.3, input_dropout=0.0))
    assert abs(noisy.std() - 0.3) < 0.01 and abs(noisy.mean() - 1) < 0.01
    dropped = aae.corrupt(x, types.SimpleNamespace(noise=0.0, input_dropout=0.2))
    assert abs((dropped == 0).float().mean() - 0.2) < 0.01 and abs(dropped.mean() - 1) < 0.01


# --------------------------------------------------------------------------------------------------- a step, by hand


def options(*arguments):
    return aae.resolve(
        aae.make_parser().parse_args(
            ["--precision", "fp32", "--device", "cpu", "--epochs", "1", *map(str, arguments)]
        )
    )


def mnist(n, part=0):
    return common.load_dataset("mnist")[part].take(torch.arange(n))


PLAIN = [
    "--balance-weight",
    0,
    "--smooth-weight",
    0,
    "--warp",
    0,
    "--warp-weight",
    0,
    "--y-weight",
    1,
    "--code-noise",
    0,
]
CASES = [
    ["--task", "prior"],
    ["--task", "prior", "--prior", "mixture", "--labels", 20],
    ["--task", "likelihood"],
    ["--task", "style"],
    ["--task", "semi", "--labels", 20],
    ["--task", "semi", "--labels", 20, *PLAIN],
    ["--task", "semi", "--labels", 20, "--smooth-weight", 0.5],
    ["--task", "cluster"],
    ["--task", "cluster", *PLAIN],
    ["--task", "cluster", "--warp-weight", 0],
    ["--task", "cluster", "--balance-weight", 3],
    ["--task", "embed", "--labels", 20],
    ["--task", "embed", "--labels", 0],
    ["--task", "prior", "--regularizer", "kl"],
    ["--task", "prior", "--prior", "mixture", "--regularizer", "kl"],
    ["--task", "likelihood", "--regularizer", "mmd", "--regularizer-weight", 3],
    ["--task", "likelihood", "--regularizer", "wae-gan", "--regularizer-weight", 2],
]


@pytest.mark.parametrize("arguments", CASES, ids=lambda a: " ".join(map(str, a)))
def test_a_step_is_the_papers(monkeypatch, arguments):
    """One step of `train` moves every weight as the phases written again plainly do, each by its own SGD at its own rate, in the paper's order."""
    n = 30
    opt = options(
        *arguments,
        "--batch-size",
        n,
        "--hidden",
        12,
        "--optimiser",
        "sgd",
        "--schedule",
        "steps",
        "--out",
        "run",
        "--dropout",
        0,
    )
    opt.lr, opt.lr_adversary, opt.lr_encoder, opt.lr_labels = 0.03, 0.02, 0.05, 0.07
    data = mnist(n)
    torch.manual_seed(0)
    nets = aae.build(opt, 784)
    shuffle = torch.randperm(n, generator=torch.Generator().manual_seed(3))
    labelled = torch.randperm(n, generator=torch.Generator().manual_seed(4))[
        : n if opt.task == "style" else 20
    ]
    mine = copy.deepcopy(nets)

    def seeded(x, options):  # the step's draws follow from here
        if len(x) == n and not warped.count(n) == 2:
            torch.manual_seed(5)
        return x + 0.1

    monkeypatch.setattr(aae, "corrupt", seeded)
    monkeypatch.setattr(torch, "randperm", lambda count, **_: shuffle)
    warped = []  # the first warp of the images darkens them, the second more, the labelled ones otherwise

    def fake_warp(x, amount):
        warped.append(len(x))
        return x * (0.8 if len(x) != n else 0.9 if warped.count(n) == 1 else 0.5)

    monkeypatch.setattr(aae, "warp", fake_warp)
    run = common.Run("aae", opt)
    aae.train(run, nets, data, labelled)
    monkeypatch.undo()
    logged = run.history[0]
    losses = by_hand(opt, mine, data, labelled, shuffle)
    for name, value in losses.items():
        assert math.isclose(logged[name], value, rel_tol=2e-4, abs_tol=1e-5), name
    before = aae_state(mine.start)
    after, truth = aae_state(nets), aae_state(mine)
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == set(mine.players), moved
    for name in truth:
        step = (truth[name] - before[name]).abs().max().item()
        assert torch.allclose(after[name], truth[name], atol=2e-3 * max(step, 1e-4)), name


def aae_state(nets):
    return {
        f"{k}.{n}": p.detach().clone()
        for k, net in vars(nets).items()
        if isinstance(net, nn.Module)
        for n, p in net.named_parameters()
    }


def by_hand(opt, nets, data, labelled, shuffle):
    """The phases written again: sigmoids and logarithms spelled out, every pass on its own, plain gradient steps."""
    nets.start = copy.deepcopy(types.SimpleNamespace(**{k: v for k, v in vars(nets).items()}))
    image = data.x[shuffle].flatten(1).float() / 255
    x = image * 0.9 if opt.warp else image
    noisy = x + 0.1
    n, k = len(x), opt.clusters
    D = lambda net, *parts: torch.sigmoid(net(torch.cat(parts, 1)))  # noqa: E731
    told, used = {}, []
    hidden_label = torch.tensor(
        [int(data.y[i]) if i in labelled.tolist() else 10 for i in shuffle.tolist()]
    )

    def step(lr, loss, *names):
        params = [p for name in names for p in getattr(nets, name).parameters()]
        for p, g in zip(params, torch.autograd.grad(loss, params, allow_unused=True)):
            if g is not None:
                p.data -= lr * g
        used.extend(names)

    def code(z_only=False):
        logits, mu, logvar = nets.enc(noisy)
        z = mu if logvar is None else mu + torch.randn(mu.shape) * torch.exp(logvar / 2)
        return (
            (
                None
                if logits is None
                else torch.exp(logits) / torch.exp(logits).sum(1, keepdim=True)
            ),
            z,
            mu,
            logvar,
        )

    def positives():
        component = torch.randint(0, 10, (n,))
        return (
            torch.where(hidden_label < 10, hidden_label, component)
            if opt.task == "prior" and opt.labels
            else component
        )

    def prior(component):
        return (
            aae.mixture(component)
            if opt.prior == "mixture"
            else torch.randn(n, opt.z_dim) * opt.prior_std
        )

    torch.manual_seed(5)
    y, z, mu, logvar = code()
    if opt.task == "style":
        y = torch.eye(10)[hidden_label.clamp(max=9)]
    into = (
        z
        if y is None
        else y @ nets.heads.weight + z
        if opt.task == "embed"
        else torch.cat([y, z], 1)
    )
    told["reconstruction"] = 0.5 * ((torch.sigmoid(nets.dec(into)) - x) ** 2).sum() / n
    total, extra = told["reconstruction"], 0.0
    if opt.regularizer == "kl":
        q = torch.distributions.Normal(mu, torch.exp(logvar / 2))
        if opt.prior == "mixture":
            extra = (
                q.log_prob(z).sum(1) - torch.logsumexp(aae.mixture_log_density(z), 1)
            ).sum() / n
        else:
            extra = (
                torch.distributions.kl_divergence(
                    q, torch.distributions.Normal(0.0, opt.prior_std)
                ).sum()
                / n
            )
    elif opt.regularizer == "mmd":
        extra = 0.0
        sample = prior(torch.randint(0, 10, (n,)))
        off = ~torch.eye(n, dtype=torch.bool)
        for scale in (0.1, 0.2, 0.5, 1, 2, 5, 10):
            c = 2 * opt.z_dim * opt.prior_std**2 * scale
            kernel = lambda a, b: c / (c + ((a[:, None] - b[None]) ** 2).sum(2))  # noqa: E731
            extra = extra + (
                kernel(z, z)[off].mean()
                + kernel(sample, sample)[off].mean()
                - 2 * kernel(z, sample).mean()
            )
    elif opt.regularizer == "wae-gan":
        extra = -torch.log(D(nets.disc, z / opt.prior_std)).mean()
    total = total + opt.regularizer_weight * extra
    if opt.task == "embed":
        for a, b in itertools.combinations(nets.heads.weight, 2):
            total = total + opt.head_weight * torch.clamp(
                opt.head_distance - (a - b).square().sum().sqrt(), min=0
            )
    told["regularizer"] = extra
    step(0.03, total, "enc", "dec", *(["heads"] if opt.task == "embed" else []))

    if opt.regularizer in ("gan", "wae-gan"):
        y, z, _, _ = code()  # with the encoder as it is now
        y = clean = None if nets.disc_y is None else y
        component = positives()
        sample, z = prior(component) / opt.prior_std, z / opt.prior_std
        drawn = torch.eye(k)[torch.randint(0, k, (n,))] if y is not None else None
        if y is not None and opt.code_noise:
            drawn = drawn + opt.code_noise * torch.randn(drawn.shape)
            y = y + opt.code_noise * torch.randn(y.shape)
        label = torch.eye(11)[hidden_label]
        if opt.task == "style":
            fake, real = (z, label), (sample, label)
        elif opt.task == "prior" and opt.labels:
            known = hidden_label < 10
            assert (
                known.sum() == 20
                and (component[known] == data.y[shuffle][known]).all()
                and (label[~known, 10] == 1).all()
            )
            fake, real = (z, label), (sample, label)
        else:
            fake, real = (z,), (sample,)
        loss = (
            -torch.log(D(nets.disc, *real)).mean()
            - torch.log(1 - D(nets.disc, *(t.detach() for t in fake))).mean()
        )
        if y is not None:
            loss = (
                loss
                - torch.log(D(nets.disc_y, drawn)).mean()
                - torch.log(1 - D(nets.disc_y, y.detach())).mean()
            )
        told["discriminator"] = loss
        step(0.02, loss, "disc", *(["disc_y"] if y is not None else []))

    def steady():  # difference 3, on two copies of the images that the test has made
        told["smoothness"] = opt.smooth_weight and aae.smoothness_loss(
            lambda x: nets.enc(x)[0], x, opt.smooth_radius
        )
        told["invariance"] = 0.0
        if opt.warp_weight:
            p, q = (
                torch.softmax(nets.enc(noisy)[0].detach(), 1),
                torch.softmax(nets.enc(image * 0.5 + 0.1)[0], 1),
            )
            told["invariance"] = (p * torch.log(p / q)).sum() / n
        return opt.smooth_weight * told["smoothness"] + opt.warp_weight * told["invariance"]

    labels = opt.task in ("semi", "embed") and opt.labels
    if opt.regularizer == "gan":
        loss = -torch.log(D(nets.disc, *fake)).mean()  # with the new discriminator
        if y is not None:
            loss = loss - opt.y_weight * torch.log(D(nets.disc_y, y)).mean()
            told["balance"] = (1 / k * torch.log((1 / k) / clean.mean(0))).sum()
        told["encoder"] = loss
        step(
            0.05,
            loss
            + opt.balance_weight * told.get("balance", 0)
            + (steady() if y is not None and not labels else 0),
            "enc",
        )
    if labels:
        j = labelled[torch.randint(0, len(labelled), (opt.labelled_batch,))]
        few = data.x[j].flatten(1).float() / 255
        logits = nets.enc(few * (0.8 if opt.warp else 1) + 0.1)[0]
        told["classification"] = -(logits - logits.exp().sum(1, keepdim=True).log())[
            torch.arange(len(j)), data.y[j]
        ].mean()
        step(0.07, told["classification"] + steady(), "enc")
    nets.players = used
    return {name: float(torch.as_tensor(value).detach()) for name, value in told.items()}


@pytest.mark.parametrize("task", ["prior", "semi", "embed"])
def test_each_phase_touches_only_its_own_networks(task):
    torch.manual_seed(0)
    opt = options("--task", task, "--hidden", 12)
    nets = aae.build(opt, 784)
    data = mnist(30)
    x = common.to_float(data.x).flatten(1)
    networks = [k for k, net in vars(nets).items() if net is not None]
    optimiser = {k: torch.optim.SGD(getattr(nets, k).parameters(), 0.1) for k in networks}
    both = torch.optim.SGD(
        [
            *nets.enc.parameters(),
            *nets.dec.parameters(),
            *(nets.heads.parameters() if nets.heads else ()),
        ],
        0.1,
    )
    judges = torch.optim.SGD(
        [*nets.disc.parameters(), *(nets.disc_y.parameters() if nets.disc_y else ())], 0.1
    )
    phases = [
        (
            lambda: aae.reconstruction_phase(nets, both, x, x, None, opt),
            {"enc", "dec", "heads"} & set(networks),
        ),
        (
            lambda: aae.regularisation_phase(
                nets, judges, optimiser["enc"], x, None, (x, x, x), opt
            ),
            {"enc", "disc", "disc_y"} & set(networks),
        ),
        (
            lambda: aae.regularisation_phase(nets, judges, None, x, None, None, opt),
            {"disc", "disc_y"} & set(networks),
        ),
    ]
    if task != "prior":
        phases.append(
            (
                lambda: aae.classification_phase(nets, optimiser["enc"], x, data.y, (x, x, x), opt),
                {"enc"},
            )
        )
    for phase, expected in phases:
        before = aae_state(nets)
        phase()
        after = aae_state(nets)
        assert {k.split(".")[0] for k in before if not torch.equal(before[k], after[k])} == expected
        assert all(
            p.grad is None for net in aae.present(nets) for p in net.parameters()
        )  # nothing is left for the next phase


def test_the_encoder_learns_to_fool_and_the_discriminator_to_tell():
    torch.manual_seed(0)
    opt = options("--task", "likelihood", "--hidden", 50)
    nets = aae.build(opt, 784)
    x = common.to_float(mnist(200).x).flatten(1)
    judges = torch.optim.Adam(nets.disc.parameters(), 1e-3)
    first = aae.regularisation_phase(nets, judges, None, x, None, None, opt)[0]
    for _ in range(250):
        last = aae.regularisation_phase(nets, judges, None, x, None, None, opt)[0]
    assert last < 0.3 < 1.0 < first  # codes of an untrained encoder are easily told from N(0, 25 I)
    frozen = torch.optim.SGD(nets.disc.parameters(), 0.0)
    encoder = torch.optim.Adam(nets.enc.parameters(), 1e-3)
    with torch.no_grad():
        begin = nets.disc(nets.enc(x)[1] / 5).mean()
    for _ in range(30):
        aae.regularisation_phase(nets, frozen, encoder, x, None, None, opt)
    assert nets.disc(nets.enc(x)[1] / 5).mean() > begin + 1


def test_labels_are_drawn_balanced_by_the_seed():
    y = common.load_dataset("mnist")[0].y
    first, again, other = (aae.choose_labelled(y, 100, seed) for seed in (0, 0, 1))
    assert (
        torch.equal(first, again) and not torch.equal(first, other) and len(first.unique()) == 100
    )
    assert (torch.bincount(y[first]) == 10).all() and (
        torch.bincount(y[aae.choose_labelled(y, 1000, 3)]) == 100
    ).all()
    assert torch.equal(aae.choose_labelled(y, 60000, 0), torch.arange(60000))
    with pytest.raises(
        common.UserError,
        match="--labels 55000 asks for more of a class than there are: the smallest has 5421; for all say 60000",
    ):
        aae.choose_labelled(y, 55000, 0)


def test_a_dry_run_takes_as_many_labels_as_its_images_have(command):
    done = command("aae.py", "--dry-run", "--task", "semi", "--labels", 1190, "--batch-size", 400)
    assert done.returncode == 0, done.stderr
    assert common.read_config("runs/aae/dry-run")["settings"]["labels"] == 1190


def test_no_other_label_is_ever_seen(monkeypatch):
    """Training with the true labels of all but the labelled images scrambled gives the same weights."""
    states = []
    for scramble in (False, True):
        for task, labels in (("semi", 20), ("prior", 20)):
            opt = options(
                "--task",
                task,
                "--labels",
                labels,
                "--hidden",
                12,
                "--batch-size",
                50,
                "--out",
                f"{task}{scramble}",
                *(["--prior", "mixture"] if task == "prior" else []),
            )
            data = mnist(100)
            labelled = torch.arange(20)
            if scramble:
                data = data._replace(y=torch.cat([data.y[:20], 9 - data.y[20:]]))
            run = common.Run("aae", opt)
            nets = aae.build(opt, 784)
            aae.train(run, nets, data, labelled)
            states.append(aae_state(nets))
    for a, b in ((0, 2), (1, 3)):
        assert all(torch.equal(states[a][k], states[b][k]) for k in states[a])


def test_schedules():
    opt = options("--task", "semi")
    share = [aae.schedule(step, 10_000, 0, opt) for step in (0, 49, 99, 4000, 5000, 7500, 9990)]
    assert share == pytest.approx([0.01, 0.5, 1, 1, 1, 0.5, 0.01])
    assert [
        aae.schedule(step, 10_000, 0, opt, 0.3) for step in (0, 7500, 9000, 9990)
    ] == pytest.approx([0.01, 0.5, 0.3, 0.3])
    opt.schedule = "steps"
    assert [aae.schedule(0, 1, epoch, opt) for epoch in (0, 49, 50, 999, 1000)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01]
    )
    for clusters in (["--task", "cluster"], ["--task", "embed", "--labels", 0]):
        opt = options(*clusters, "--schedule", "steps")
        assert [aae.schedule(0, 1, epoch, opt) for epoch in (49, 50, 1000)] == pytest.approx(
            [1, 0.1, 0.1]
        )


def test_every_optimiser_has_its_rate_and_momentum(monkeypatch):
    made = []
    real = aae.make_optimiser
    monkeypatch.setattr(
        aae,
        "make_optimiser",
        lambda parameters, options, lr, momentum: (
            made.append((lr, momentum)) or real(parameters, options, lr, momentum)
        ),
    )
    asked = []
    monkeypatch.setattr(
        aae,
        "schedule",
        lambda step, total, epoch, opt, end: asked.append((step, total, epoch, end)) or 0.5,
    )
    opt = options(
        "--task",
        "semi",
        "--labels",
        20,
        "--hidden",
        12,
        "--batch-size",
        10,
        "--out",
        "run",
        "--lr",
        0.001,
        "--lr-adversary",
        0.002,
        "--lr-encoder",
        0.003,
        "--lr-labels",
        0.004,
        "--beta1",
        0.25,
        "--adversary-end",
        0.3,
    )
    opt.epochs = 2
    run = common.Run("aae", opt)
    aae.train(run, aae.build(opt, 784), mnist(30), torch.arange(20))
    assert made == [(0.001, 0.9), (0.002, 0.25), (0.003, 0.25), (0.004, 0.9)]
    assert asked == [
        (step, 6, step // 3, end) for step in range(6) for end in (0.01, 0.3, 0.01, 0.01)
    ]  # the discriminators' alone
    halves = sorted(
        o.param_groups[0]["lr"] for name, o in run.tracked.items() if name.startswith("optimiser")
    )
    assert halves == pytest.approx([0.0005, 0.001, 0.0015, 0.002])
    assert aae.make_optimiser([torch.zeros(1, requires_grad=True)], opt, 0.1, 0.5).param_groups[0][
        "betas"
    ] == (0.5, 0.999)


def test_defaults_of_what_stands_between_the_tasks():
    parse = lambda *words: aae.resolve(aae.make_parser().parse_args(list(words)))  # noqa: E731
    free, cluster = parse("--task", "embed", "--labels", "0"), parse("--task", "cluster")
    assert (free.clusters, free.z_dim, free.epochs, free.code_noise) == (
        20,
        2,
        cluster.epochs,
        cluster.code_noise,
    )
    paper = parse("--task", "embed", "--labels", "0", "--recipe", "paper")
    assert (paper.hidden, paper.batch_norm, paper.input_dropout, paper.epochs) == (
        3000,
        "all",
        0.2,
        1500,
    )
    assert [
        parse("--task", "likelihood", "--regularizer", name).encoder
        for name in ("gan", "wae-gan", "mmd")
    ] == ["gaussian", "gaussian", "deterministic"]
    assert (
        parse("--task", "likelihood", "--regularizer", "mmd", "--encoder", "gaussian").encoder
        == "gaussian"
    )
    assert (
        parse("--task", "likelihood", "--regularizer", "kl").encoder == "gaussian"
        and parse("--task", "likelihood", "--recipe", "paper").encoder == "deterministic"
    )
    assert [
        sum(isinstance(m, nn.Dropout) for m in net.modules())
        for net in (lambda n: (n.enc, n.dec, n.disc))(aae.build(parse("--task", "likelihood"), 784))
    ] == [2, 2, 0]
    many, hundred = parse("--task", "semi", "--labels", "60000"), parse("--task", "semi")
    assert (many.epochs, many.labelled_batch, hundred.epochs, hundred.labelled_batch) == (
        30,
        400,
        20,
        100,
    )
    edge, few = (
        parse("--task", "semi", "--labels", "10000"),
        parse("--task", "semi", "--labels", "9990"),
    )
    assert (edge.epochs, edge.labelled_batch, few.epochs, few.labelled_batch) == (30, 400, 20, 100)
    assert (
        parse("--task", "semi", "--labels", "60000", "--epochs", "5").epochs == 5
        and parse("--task", "semi", "--labels", "60000", "--recipe", "paper").epochs == 5000
    )
    assert (
        parse("--task", "semi", "--labels", "60000", "--labelled-batch", "50").labelled_batch == 50
    )
    assert (
        parse("--task", "semi", "--labels", "60000", "--recipe", "paper").labelled_batch
        == parse("--task", "embed", "--labels", "60000").labelled_batch
        == 100
    )
    names = {
        (): "prior-gaussian",
        ("--prior", "mixture", "--labels", "10000"): "prior-mixture-10000",
        ("--task", "semi"): "semi-100",
        ("--task", "cluster", "--clusters", "30"): "cluster-30",
        ("--task", "likelihood", "--regularizer", "mmd"): "likelihood-mmd",
        ("--task", "embed", "--labels", "0"): "embed-0",
        ("--task", "embed", "--labels", "100", "--z-dim", "10"): "embed-100-z10",
        ("--task", "style", "--dataset", "fashion"): "style-fashion",
    }
    assert all(aae.run_name(parse(*words)) == name for words, name in names.items())


def test_networks_return_float32_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        outputs = [
            *aae.Encoder(classes=3, kind="gaussian")(torch.rand(2, 784)),
            aae.Decoder()(torch.rand(2, 8)),
            aae.Discriminator()(torch.rand(2, 8)),
        ]
    assert len(outputs) == 5 and all(out.dtype == torch.float32 for out in outputs)


def test_what_is_held_out_and_what_is_labelled(monkeypatch):
    seen = {}
    monkeypatch.setattr(
        aae, "train", lambda run, nets, data, labelled: seen.update(data=data, labelled=labelled)
    )
    monkeypatch.setattr(
        aae,
        "evaluate",
        lambda run, nets, data, held_out, test, labelled: (
            seen.update(held_out=held_out, test=test) or ({}, [])
        ),
    )
    whole, test = common.load_dataset("mnist")
    for task, held in (("cluster", True), ("likelihood", True), ("semi", False), ("style", False)):
        aae.main(
            aae.make_parser().parse_args(
                ["--device", "cpu", "--epochs", "1", "--task", task, "--out", task, "--hidden", "5"]
            )
        )
        assert len(seen["data"].y) == (50_000 if held else 60_000) and torch.equal(
            seen["test"].x, test.x
        )
        assert (
            torch.equal(seen["held_out"].x, whole.x[-10_000:]) if held else seen["held_out"] is None
        )
        assert torch.equal(seen["data"].x[:100], whole.x[:100])
        if task == "semi":
            assert (torch.bincount(seen["data"].y[seen["labelled"]]) == 10).all()
    assert len(seen["labelled"]) == 60_000  # style knows every label


def test_the_papers_recipe():
    semi = options("--task", "semi", "--recipe", "paper", "--epochs", 5000)
    assert (
        semi.optimiser,
        semi.lr,
        semi.lr_adversary,
        semi.lr_encoder,
        semi.lr_labels,
        semi.beta1,
    ) == ("sgd", 0.01, 0.1, 0.1, 0.1, 0.1)
    assert (
        semi.batch_size,
        semi.noise,
        semi.init_std,
        semi.schedule,
        semi.warp,
        semi.batch_norm,
        semi.hidden,
        semi.z_dim,
    ) == (100, 0.3, 0.01, "steps", 0, "none", 1000, 10)
    cluster = options("--task", "cluster", "--recipe", "paper", "--clusters", 30)
    assert (
        cluster.hidden,
        cluster.batch_norm,
        cluster.input_dropout,
        cluster.z_dim,
        cluster.clusters,
        cluster.noise,
    ) == (3000, "all", 0.2, 5, 30, 0)
    nets = aae.build(cluster, 784)
    weights = torch.cat(
        [m.weight.flatten() for m in nets.dec.modules() if isinstance(m, nn.Linear)]
    )
    assert abs(weights.std() - 0.01) < 1e-4
    assert (
        aae.make_optimiser([torch.zeros(1, requires_grad=True)], cluster, 0.1, 0.1).param_groups[0][
            "momentum"
        ]
        == 0.1
    )


# ---------------------------------------------------------------------------------------------------------- scores


def test_the_classifier_of_codes_sees_what_it_should():
    """Codes drawn from the prior are not told from it; a shifted, a collapsed and a slightly too narrow q(z) are."""
    opt = options("--task", "prior")
    data, test = mnist(6000), mnist(3000, 1)

    def score(make):
        torch.manual_seed(0)

        class Codes(nn.Module):
            def __init__(self):
                super().__init__()
                self.unused = nn.Parameter(torch.zeros(()))

            def forward(self, x):
                return None, make(len(x)), None

        nets = types.SimpleNamespace(
            enc=Codes(), dec=lambda code: torch.zeros(len(code), 784), heads=None
        )
        return aae.prior_scores(nets, opt, data, test)

    good = score(lambda n: 5 * torch.randn(n, 2))
    assert good["code_test"] < 52.5 and abs(good["code_mmd"]) < 0.001
    for bad, least in (
        (lambda n: 5 * torch.randn(n, 2) + 4, 60),
        (lambda n: torch.zeros(n, 2), 80),
        (lambda n: 3.5 * torch.randn(n, 2), 56),
    ):
        worse = score(bad)
        assert worse["code_test"] > least and worse["code_mmd"] > good["code_mmd"] + 0.003


def test_codes_of_a_stochastic_encoder_are_sampled_where_asked():
    torch.manual_seed(0)
    enc = aae.Encoder(z_dim=3, hidden=20, kind="gaussian")
    nn.init.constant_(enc.to_logvar.bias, -1.0)
    x = mnist(1).x.expand(20_000, 1, 28, 28)
    _, mu, logvar = enc(common.to_float(x[:1]))
    nets = types.SimpleNamespace(enc=enc)
    assert torch.allclose(aae.encode(nets, x[:5])[1], mu.expand(5, 3), atol=1e-6)
    z = aae.encode(nets, x, sample=True)[1]
    assert torch.allclose(z.std(0), (logvar / 2).exp()[0], rtol=0.03) and torch.allclose(
        z.mean(0), mu[0], atol=0.03
    )

    class Wide(
        nn.Module
    ):  # every posterior is the prior: its samples are not told from it, its means would be
        def __init__(self):
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(()))

        def forward(self, x):
            return None, torch.zeros(len(x), 2), torch.full((len(x), 2), 2 * math.log(5.0))

    opt = options("--task", "prior")
    scores = aae.prior_scores(
        types.SimpleNamespace(enc=Wide(), dec=lambda code: torch.zeros(len(code), 784), heads=None),
        opt,
        mnist(3000),
        mnist(2000, 1),
    )
    assert scores["code_test"] < 53


def test_the_baseline_learns_from_its_labels_alone():
    opt = options(
        "--task", "semi", "--hidden", 100, "--batch-norm", "none", "--dry-run", "--out", "run"
    )
    opt.dry_run = False
    data, test = mnist(5000), mnist(1000, 1)
    labelled = aae.choose_labelled(data.y, 100, 1)
    run = common.Run("aae", opt)
    torch.manual_seed(0)
    assert 15 < aae.baseline_error(run, data, test, labelled) < 45
    shuffled = data._replace(y=data.y[torch.randperm(5000)])
    assert aae.baseline_error(run, shuffled, test, labelled) > 75


def test_the_baseline_takes_ten_passes_over_the_labels_whatever_the_batch(monkeypatch):
    batches = []
    monkeypatch.setattr(aae, "update", lambda optimiser, loss: None)
    monkeypatch.setattr(aae, "corrupt", lambda x, opt: batches.append(len(x)) or x)
    data, test = mnist(12000), mnist(100, 1)
    for count, batch, steps, size in (
        (100, 100, 1000, 100),
        (11000, 100, 1100, 100),
        (11000, 400, 1100, 100),
        (11000, 50, 2200, 50),
    ):
        opt = options(
            "--task", "semi", "--labelled-batch", batch, "--hidden", 5, "--out", f"{count}-{batch}"
        )
        batches.clear()
        aae.baseline_error(common.Run("aae", opt), data, test, torch.arange(count))
        assert batches == steps * [size]


def test_component_accuracy_needs_the_label():
    opt = options("--task", "prior", "--prior", "mixture")
    test = mnist(1000, 1)
    torch.manual_seed(0)
    known = {
        image.flatten().sum().item(): y
        for image, y in zip(common.to_float(test.x), test.y.tolist())
    }

    class Codes(nn.Module):
        def __init__(self, shift):
            super().__init__()
            self.shift, self.unused = shift, nn.Parameter(torch.zeros(()))

        def forward(self, x):
            return (
                None,
                aae.mixture(
                    (torch.tensor([known[image.sum().item()] for image in x]) + self.shift) % 10
                ),
                None,
            )

    for shift, low, high in ((0, 95, 100), (1, 0, 5)):
        nets = types.SimpleNamespace(
            enc=Codes(shift), dec=lambda code: torch.zeros(len(code), 784), heads=None
        )
        assert low <= aae.prior_scores(nets, opt, test, test)["component_accuracy"] <= high


class Oracle(nn.Module):
    """An encoder that knows: logits of given scores [N, K] in the order of the images it is asked about."""

    def __init__(self, logits, z_dim=2):
        super().__init__()
        self.logits, self.z_dim, self.place, self.unused = (
            logits,
            z_dim,
            0,
            nn.Parameter(torch.zeros(())),
        )

    def forward(self, x):
        part = self.logits[self.place : self.place + len(x)]
        self.place += len(x)
        return part, torch.zeros(len(x), self.z_dim), None


def test_clusters_score_as_they_deserve():
    held, test = mnist(500), mnist(500, 1)
    torch.manual_seed(0)
    y = torch.cat([held.y, test.y])
    perfect = F.one_hot(y + 10 * torch.randint(0, 2, y.shape), 20).float() * 9
    nets = lambda logits: types.SimpleNamespace(enc=Oracle(logits))  # noqa: E731
    scores = aae.cluster_scores(nets(perfect), held, test)
    assert scores == {"cluster_error": 0.0, "cluster_error_majority": 0.0, "clusters_used": 20.0}
    shifted = held._replace(
        y=(held.y + 1) % 10
    )  # names come from the held-out labels, not from the test's
    scores = aae.cluster_scores(nets(perfect), shifted, test)
    assert scores["cluster_error"] == scores["cluster_error_majority"] == 100
    odd = int((held.y == 3).nonzero()[0])  # one exception, of which its cluster is surest
    exception = F.one_hot(y, 10).float() * 9
    exception[odd] = F.one_hot(torch.tensor(8), 10) * 50.0
    scores = aae.cluster_scores(nets(exception), held, test)
    assert scores["cluster_error"] > 5 and scores["cluster_error_majority"] == 0
    collapsed = torch.zeros(1000, 20)
    collapsed[:, 7] = 5
    scores = aae.cluster_scores(nets(collapsed), held, test)
    assert (
        scores["cluster_error"] > 80
        and scores["cluster_error_majority"] > 80
        and scores["clusters_used"] == 1
    )
    assert aae.cluster_scores(nets(torch.randn(1000, 20)), held, test)["cluster_error"] > 80


def test_style_score_catches_a_decoder_that_ignores_the_label():
    judge = common.load_judge("mnist")
    train, test = mnist(3000), mnist(500, 1)
    pictures = torch.stack(
        [
            common.to_float(train.x[train.y == k][: 1000 // 10].repeat(10, 1, 1, 1)[:100])
            for k in range(10)
        ]
    ).flatten(2)  # [10, 100, 784]
    opt = options("--task", "style", "--dry-run")

    class Draws(nn.Module):
        def __init__(self, heed):
            super().__init__()
            self.heed = heed

        def forward(self, code):
            k = code[:, :10].argmax(1) if self.heed else torch.zeros(len(code), dtype=torch.long)
            return torch.logit(pictures[k, torch.arange(len(code)) % 100].clamp(1e-4, 1 - 1e-4))

    class Blank(nn.Module):
        def __init__(self, leak):
            super().__init__()
            self.leak, self.unused = leak, nn.Parameter(torch.zeros(()))

        def forward(self, x):
            z = torch.randn(len(x), 15)
            if self.leak:
                z[:, :10] = 5 * F.one_hot(judge.classify(x.view(-1, 1, 28, 28)), 10)
            return None, z, None

    good = aae.style_scores(
        types.SimpleNamespace(enc=Blank(False), dec=Draws(True), heads=None),
        opt,
        judge,
        train,
        test,
    )
    bad = aae.style_scores(
        types.SimpleNamespace(enc=Blank(True), dec=Draws(False), heads=None),
        opt,
        judge,
        train,
        test,
    )
    assert good["style_accuracy"] > 97 and good["z_error"] > 80
    assert bad["style_accuracy"] < 11 and bad["z_error"] < 30


def test_likelihood_of_good_samples_beats_that_of_bad_ones(monkeypatch):
    train, held, test = (
        part.take(torch.randperm(len(part.y), generator=torch.Generator().manual_seed(0))[:3000])
        for part in (
            mnist(20000),
            common.load_dataset("mnist")[0].take(slice(50000, None)),
            common.load_dataset("mnist")[1],
        )
    )
    held, test = held.take(slice(0, 300)), test.take(slice(0, 200))
    pictures = common.to_float(train.x).flatten(1)
    opt = options("--task", "likelihood", "--dry-run")

    def score(make):
        torch.manual_seed(0)
        nets = types.SimpleNamespace(
            enc=Oracle(None, 8),
            dec=lambda code: torch.logit(make(len(code)).clamp(1e-4, 1 - 1e-4)),
            heads=None,
        )
        nets.enc.forward = lambda x: (None, torch.zeros(len(x), 8), None)
        return aae.likelihood_scores(nets, opt, held, test)

    real = score(lambda n: pictures[torch.randint(0, 3000, (n,))])
    one = score(lambda n: pictures[:1].expand(n, 784))
    mean = score(lambda n: pictures.mean(0, keepdim=True).expand(n, 784))
    assert real["parzen_10k"] > mean["parzen_10k"] + 30 > one["parzen_10k"] + 60
    x = common.to_float(test.x).flatten(1)
    alone = common.parzen_log_likelihood(
        x, pictures[:1].clamp(1e-4, 1 - 1e-4), [one["parzen_10k_sigma"]]
    )[0]
    assert math.isclose(one["parzen_10k"], alone.mean(), abs_tol=0.05) and math.isclose(
        one["parzen_10k_sem"], alone.std() / 200**0.5, rel_tol=1e-3
    )
    wide = common.parzen_log_likelihood(
        x, pictures[:1].clamp(1e-4, 1 - 1e-4), [one["parzen_1m_sigma"]]
    )[0]
    assert math.isclose(
        one["parzen_1m"], wide.mean(), abs_tol=0.05
    )  # parts of the samples are averaged, not added
    torch.manual_seed(0)
    asked = []
    nets = types.SimpleNamespace(
        enc=types.SimpleNamespace(),
        dec=lambda code: (
            asked.append(code)
            or torch.logit(
                common.to_float(held.x)
                .flatten(1)[torch.arange(len(code)) % 300]
                .clamp(1e-4, 1 - 1e-4)
            )
        ),
        heads=None,
    )
    monkeypatch.setattr(aae, "reconstructions", lambda nets, test: x)
    assert (
        aae.likelihood_scores(nets, opt, held, test)["parzen_10k_sigma"] == 0.08
    )  # narrow where the held-out images lie; the test's do not
    assert torch.equal(asked[0], asked[1])  # the same samples choose the width and are scored
    assert (
        real["parzen_1m"] > real["parzen_10k"] + 5
    )  # more samples, a tighter bound (1,000 against 500 in a dry run)
    assert abs(one["parzen_1m"] - one["parzen_10k"]) < 5 and 0.08 < real["parzen_10k_sigma"] < 0.3


# --------------------------------------------------------------------------------------------------------- figures


def test_figures_show_what_they_say(monkeypatch):
    seen = {}
    monkeypatch.setattr(
        common,
        "figure_grid",
        lambda path, images, columns, *_, **__: seen.update({path: (images, columns)}),
    )
    test = mnist(300, 1)
    torch.manual_seed(0)

    opt = options("--task", "style")
    nets = types.SimpleNamespace(dec=nn.Linear(25, 784), heads=None)
    aae.figure_style(nets, opt, test, "style", rows=3)
    images, columns = seen["style"]
    flat = torch.logit(images.flatten(1)).view(3, 10, 784)
    assert columns == 10 and images.shape == (30, 1, 28, 28)
    weight = nets.dec.weight.detach()
    assert torch.allclose(
        flat[0, 7] - flat[0, 2], weight[:, 7] - weight[:, 2], atol=1e-3
    )  # column j is label j
    by_label = (
        flat - flat[:, :1]
    )  # a linear decoder: the label's part is the same in every row, the z's along every row
    assert torch.allclose(by_label[0], by_label[2], atol=1e-3) and not torch.allclose(
        flat[0], flat[1], atol=1e-2
    )

    k = 4
    opt = options("--task", "cluster", "--clusters", k)
    logits = F.one_hot(test.y.clamp(max=2), k).float()  # nobody falls into cluster 3
    nets = types.SimpleNamespace(enc=Oracle(logits), dec=nn.Linear(k + 5, 784), heads=None)
    aae.figure_clusters(nets, opt, test, "clusters", shown=6)
    images, columns = seen["clusters"]
    rows = images.view(3, 7, 1, 28, 28)
    assert columns == 7
    assert torch.allclose(
        rows[1, 0].flatten(), torch.sigmoid(nets.dec.weight[:, 1] + nets.dec.bias), atol=1e-5
    )  # y one-hot, z = 0
    assert torch.equal(rows[1, 1:], common.to_float(test.x[test.y == 1][:6]))

    opt = options("--task", "likelihood")
    train = mnist(500)
    nets = types.SimpleNamespace(
        dec=lambda code: torch.logit(
            (common.to_float(train.x[100 : 100 + len(code)]).flatten(1) + 0.01).clamp(0.01, 0.99)
        ),
        heads=None,
    )
    aae.figure_samples(nets, opt, train, "samples", rows=2)
    rows = seen["samples"][0].view(2, 11, 1, 28, 28)
    assert torch.equal(rows[0, 10], common.to_float(train.x[109])) and torch.equal(
        rows[1, 10], common.to_float(train.x[119])
    )

    opt = options("--task", "prior")
    nets = types.SimpleNamespace(dec=nn.Linear(2, 784), heads=None)
    aae.figure_manifold(nets, opt, test, "manifold")
    images, columns = seen["manifold"]
    corner = 5 * torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor([0.05, 0.95]))
    assert columns == 16 and torch.allclose(
        images[0].flatten(), torch.sigmoid(nets.dec(corner)), atol=1e-4
    )  # left, top


def test_manifolds_walk_where_they_say(monkeypatch):
    monkeypatch.setattr(common, "figure_grid", lambda *_, **__: None)
    seen = []
    nets = types.SimpleNamespace(dec=lambda code: seen.append(code) or torch.zeros(len(code), 784))
    aae.figure_manifold(nets, options("--prior", "mixture"), mnist(10, 1), "x")
    codes = torch.cat(seen).view(10, 30, 2)
    assert torch.equal(aae.component_of("mixture", codes[4]), torch.arange(3).repeat_interleave(10))
    assert codes[5, :10].norm(dim=1).diff().min() > 0  # outwards along a petal
    seen.clear()
    aae.figure_manifold(nets, options("--prior", "swiss-roll"), mnist(10, 1), "x")
    assert torch.equal(aae.component_of("swiss-roll", torch.cat(seen)), torch.arange(100) // 10)


def test_outlines_lie_where_the_priors_do():
    assert [round(c.norm(dim=1).mean().item(), 3) for c in aae.outline(options())] == [5, 10, 15]
    for k, curve in enumerate(aae.outline(options("--prior", "mixture"))):
        peak = aae.mixture_log_density(aae.petals()[0])[k, k]
        assert torch.allclose(
            aae.mixture_log_density(curve)[:, k], (peak - 2).expand(100), atol=1e-3
        )  # two deviations
    (roll,) = aae.outline(options("--prior", "swiss-roll"))
    assert torch.allclose(roll[-1].norm(), torch.tensor(15.0), atol=1e-3)


def test_codes_are_drawn_where_they_are(monkeypatch):
    seen = {}
    monkeypatch.setattr(
        common,
        "figure_scatter",
        lambda path, codes, y, words, outline=(), marks=None: seen.update(
            codes=codes, y=y, outline=outline, marks=marks
        ),
    )
    test = mnist(100, 1)
    torch.manual_seed(0)
    opt = options("--task", "embed", "--labels", 0)
    heads = aae.ClusterHeads(20, 2)
    logits = 50 * F.one_hot(torch.arange(100) % 20, 20).float()
    aae.figure_codes(types.SimpleNamespace(enc=Oracle(logits), heads=heads), opt, test, "x", "")
    assert torch.allclose(
        seen["codes"], heads.weight[torch.arange(100) % 20], atol=1e-4
    ) and torch.equal(seen["marks"], heads.weight.detach())
    assert torch.equal(seen["y"], test.y) and torch.allclose(
        (seen["outline"][3] - heads.weight[3].detach()).norm(dim=1), torch.tensor(2.0), atol=1e-4
    )
    flat = aae.ClusterHeads(
        10, 10
    )  # Figure 11(d): ten fixed corners, evenly on a circle in the picture
    assert torch.equal(flat.weight, 10 * torch.eye(10)) and not flat.weight.requires_grad
    aae.figure_codes(
        types.SimpleNamespace(enc=Oracle(logits[:, :10], 10), heads=flat), opt, test, "x", ""
    )
    assert torch.allclose(seen["marks"].norm(dim=1), torch.full((10,), 10.0), atol=1e-2)
    gaps = (seen["marks"] - seen["marks"].roll(1, 0)).norm(dim=1)
    assert torch.allclose(gaps, gaps.mean().expand(10), atol=1e-2)


def test_tiny_training_matches_the_prior_and_without_its_game_does_not():
    """256 images 31 times an epoch, seconds: codes are as wide as the prior, and stay small without the regularisation phase."""
    spread, error = {}, {}
    for name in ("whole", "ablated"):
        opt = options(
            "--task",
            "prior",
            "--hidden",
            200,
            "--batch-size",
            64,
            "--epochs",
            8,
            "--out",
            name,
            "--lr-adversary",
            1e-3,
            "--lr-encoder",
            1e-3 if name == "whole" else 1e-9,
        )
        data = mnist(256).take(torch.arange(256).repeat(31))
        run = common.Run("aae", opt)
        nets = aae.build(opt, 784)
        aae.train(run, nets, data, torch.arange(0))
        for net in aae.present(nets):
            net.eval()
        z = aae.encode(nets, data.x[:1024])[1]
        spread[name] = aae.mmd_loss(z, aae.gaussian(1024, 2, 5.0), 5.0).item()
        error[name] = (
            (aae.reconstructions(nets, data) - common.to_float(data.x).flatten(1))
            .square()
            .mean()
            .item()
        )
    print(spread, error)
    assert (
        spread["whole"] < 0.03
        and spread["ablated"] > 2 * spread["whole"]
        and error["whole"] < 0.055
    )


# ---------------------------------------------------------------------------------------------------- command line

EVERY_TASK = {
    "default": (
        [],
        {"code_test", "code_mmd", "code_mmd_prior", "reconstruction_mse"},
        {"codes", "manifold"},
    ),
    "mixture": (
        ["--prior", "mixture", "--labels", 200],
        {"code_test", "component_accuracy"},
        {"codes", "manifold"},
    ),
    "roll": (
        ["--prior", "swiss-roll", "--labels", 200, "--encoder", "universal"],
        {"component_accuracy"},
        {"codes", "manifold"},
    ),
    "vae": (["--regularizer", "kl", "--prior", "mixture"], {"code_test"}, {"codes"}),
    "likelihood": (
        ["--task", "likelihood"],
        {"parzen_10k", "parzen_10k_sem", "parzen_1m"},
        {"samples"},
    ),
    "wae": (["--task", "likelihood", "--regularizer", "wae-gan"], {"parzen_10k"}, {"samples"}),
    "style": (["--task", "style"], {"style_accuracy", "z_error"}, {"style"}),
    "semi": (
        ["--task", "semi", "--recipe", "paper", "--hidden", 100],
        {"test_error", "baseline_error"},
        {"style"},
    ),
    "cluster": (
        ["--task", "cluster", "--clusters", 16],
        {"cluster_error", "cluster_error_majority"},
        {"clusters"},
    ),
    "embed": (
        ["--task", "embed", "--labels", 100, "--z-dim", 10, "--validation"],
        {"test_error", "baseline_error"},
        {"codes"},
    ),
    "unsupervised": (
        ["--task", "embed", "--labels", 0],
        {"test_error", "cluster_error"},
        {"codes", "clusters"},
    ),
}


@pytest.mark.parametrize("name", EVERY_TASK)
def test_every_task_runs_through(name, monkeypatch, capsys):
    arguments, metrics, figures = EVERY_TASK[name]
    monkeypatch.setattr(sys, "argv", ["aae.py", "--dry-run", *map(str, arguments)])
    common.run_main(aae.main, aae.make_parser())
    (folder,) = common.Path("runs/aae").iterdir()
    scores = json.loads((folder / "metrics.json").read_text())
    assert metrics <= set(scores) and all(
        isinstance(v, (int, float)) and math.isfinite(v) for v in scores.values()
    )
    for figure in figures | {"losses"}:
        assert (folder / f"{figure}.png").stat().st_size > 2000
    table = capsys.readouterr().out.splitlines()
    assert (
        table[0].split() == ["score", "this", "run", "paper", "to", "compare"] and len(table) >= 3
    )
    nets = aae.load(folder)
    assert not nets.enc.training and nets.options.task == (
        arguments[1] if "--task" in arguments else "prior"
    )
    test = mnist(500, 1)
    if name == "semi":
        assert math.isclose(
            (aae.encode(nets, test.x)[0].argmax(1) != test.y).float().mean().item() * 100,
            scores["test_error"],
            abs_tol=0.21,
        )
    if name == "likelihood":
        mse = (
            (aae.reconstructions(nets, test) - common.to_float(test.x).flatten(1))
            .square()
            .mean()
            .item()
        )
        assert math.isclose(
            mse, scores["reconstruction_mse"], rel_tol=1e-4
        )  # scored without dropout, as loaded
    if name == "cluster":
        held = mnist(1200).take(slice(1000, None))
        again = aae.cluster_scores(nets, held, test)
        assert all(
            math.isclose(again[k], scores[k], abs_tol=0.41) for k in again if k != "clusters_used"
        )  # batch norm as it was scored
        assert not torch.equal(nets.enc.body[1].running_mean, torch.zeros(1000))
    saved = common.read_checkpoint(folder, "aae")["states"]
    for part in ("enc", "dec", "disc", "disc_y", "heads"):
        if getattr(nets, part) is not None:
            assert all(
                torch.equal(v, saved[part][k]) for k, v in getattr(nets, part).state_dict().items()
            )
    if name in ("default", "roll"):
        torch.manual_seed(0)
        assert math.isclose(
            (aae.reconstructions(nets, test) - common.to_float(test.x).flatten(1))
            .square()
            .mean()
            .item(),
            scores["reconstruction_mse"],
            rel_tol=0.02,
        )
    (folder / "metrics.json").unlink()  # as a run that was stopped: batch norm is not settled
    with pytest.raises(common.UserError, match="not finished"):
        aae.load(folder)


SNIPPETS = {
    "Encoder": (
        ["mlp"],
        lambda f: (
            f(classes=3, kind="gaussian", batch_norm="all")(torch.rand(4, 784))[0].shape == (4, 3)
        ),
    ),
    "Decoder": (["mlp"], lambda f: f(5)(torch.rand(4, 5)).shape == (4, 784)),
    "Discriminator": (["mlp"], lambda f: f(5)(torch.rand(4, 5)).shape == (4,)),
    "ClusterHeads": ([], lambda f: f(3, 2)(torch.eye(3), torch.rand(3, 2)).shape == (3, 2)),
    "reconstruction_loss": ([], lambda f: f(torch.rand(2, 3), torch.rand(2, 3)) > 0),
    "discriminator_loss": ([], lambda f: f(torch.zeros(2), torch.zeros(2)) > 1),
    "encoder_loss": ([], lambda f: f(torch.zeros(2)) > 0.5),
    "kl_loss": ([], lambda f: f(torch.ones(2, 3), torch.zeros(2, 3), 1.0) == 1.5),
    "sampled_kl_loss": (
        [],
        lambda f: f(torch.ones(2, 3), torch.ones(2, 3), torch.zeros(2, 3), torch.zeros(2)) < 0,
    ),
    "mmd_loss": ([], lambda f: f(torch.rand(5, 2), torch.rand(5, 2) + 3) > 0),
    "smoothness_loss": (["invariance_loss"], lambda f: f(lambda x: 3 * x, torch.rand(4, 3)) > 0),
    "balance_loss": ([], lambda f: f(torch.eye(3)) == 0),
    "head_distance_loss": ([], lambda f: f(torch.zeros(3, 2), 1.0) == 3),
    "mixture": (["petals"], lambda f: f(torch.arange(10)).shape == (10, 2)),
    "swiss_roll": (["roll_curve"], lambda f: f(torch.arange(10)).shape == (10, 2)),
    "warp": ([], lambda f: f(torch.rand(2, 1, 28, 28)).shape == (2, 1, 28, 28)),
}


@pytest.mark.parametrize("name", SNIPPETS)
def test_snippets_stand_alone(name):
    """Pasted with the companions that its docstring names, a class or a loss needs torch and math, and nothing else."""
    import inspect

    companions, works = SNIPPETS[name]
    space = {"torch": torch, "nn": nn, "F": F, "math": math}
    for part in (*companions, name):
        exec(inspect.getsource(getattr(aae, part)), space)
    assert works(space[name])
    if inspect.isclass(getattr(aae, name)):
        assert all(f"Uses {c}" in getattr(aae, name).__doc__ for c in companions)


def test_kill_then_resume_is_bit_identical(survives_kills):
    survives_kills("aae")


MISTAKES = [
    (["--prior", "mixture", "--task", "semi"], "are for --task prior"),
    (["--prior", "mixture", "--z-dim", "3"], "--z-dim 2"),
    (["--batch-size", "2"], "at least 3"),
    (["--prior", "swiss-roll", "--regularizer", "kl"], "needs a density of the prior"),
    (["--regularizer", "kl", "--encoder", "deterministic"], "needs"),
    (["--task", "semi", "--labels", "55"], "multiple of 10"),
    (["--task", "semi", "--labels", "0"], "at least 10"),
    (["--task", "semi", "--labels", "-1"], "at least 0"),
    (["--task", "nothing"], "invalid choice"),
    (["--dropout", "1"], "below 1"),
    (["--regularizer", "mmd", "--task", "semi"], "--task prior or likelihood"),
    (["--dataset", "sprites", "--task", "semi"], "ten classes"),
    (["--labels", "100"], "--prior mixture or swiss-roll"),
    (["--task", "semi", "--clusters", "30"], "--task cluster, and for embed"),
    (["--task", "embed", "--clusters", "30"], "--labels 0"),
    (["--regularizer-weight", "2"], "kl, mmd and wae-gan"),
    (
        ["--task", "likelihood", "--regularizer", "wae-gan", "--lr-encoder", "1e-3"],
        "--lr-encoder would do nothing",
    ),
    (["--regularizer", "mmd", "--lr-adversary", "1e-3"], "would do nothing"),
    (["--task", "style", "--balance-weight", "1"], "--balance-weight would do nothing"),
    (["--task", "semi", "--labelled-batch", "1"], "--labelled-batch at least 2"),
    (
        ["--task", "embed", "--labels", "0", "--labelled-batch", "50"],
        "--labelled-batch would do nothing with --task embed --regularizer gan --labels 0",
    ),
    (["--task", "cluster", "--lr-labels", "1e-3"], "--lr-labels would do nothing"),
    (["--regularizer", "kl", "--beta1", ".9"], "--beta1 would do nothing"),
    (["--task", "semi", "--head-weight", "2"], "--head-weight would do nothing"),
    (["--recipe", "authors"], "invalid choice"),
    (
        ["--task", "embed", "--labels", "100", "--z-dim", "10", "--head-distance", "9"],
        "--head-distance would do nothing where heads are fixed",
    ),
    (
        ["--task", "embed", "--head-weight", "0", "--head-distance", "9"],
        "--head-distance would do nothing with --head-weight 0",
    ),
    (
        ["--recipe", "paper", "--task", "embed", "--smooth-radius", "5"],
        "--smooth-radius would do nothing",
    ),
    (["--schedule", "steps", "--adversary-end", ".5"], "--adversary-end would do nothing"),
]


@pytest.mark.parametrize(
    "arguments, words", MISTAKES, ids=lambda v: " ".join(v) if isinstance(v, list) else str(v)
)
def test_mistakes_end_with_one_line(arguments, words, complains):
    complains(aae, arguments, words)


def test_a_checkpoint_of_another_script_is_refused():
    common.Path("taken").mkdir()
    torch.save(
        {"script": "mathieu", "states": {}, "epoch": 1, "history": []}, "taken/checkpoint.pt"
    )
    with pytest.raises(common.UserError, match="written by mathieu.py"):
        common.read_checkpoint("taken", "aae")


def test_a_training_that_breaks_says_where(command):
    done = command("aae.py", "--dry-run", "--lr", "1e9", "--precision", "fp32", "--out", "run")
    assert (
        done.returncode == 2
        and "is not finite at step" in done.stderr
        and "Traceback" not in done.stderr
    )
    assert not common.Path("run/metrics.json").exists()


def test_help_tells_every_flag_with_its_default(command):
    text = " ".join(command("aae.py", "--help").stdout.split())
    for action in aae.make_parser()._actions:
        assert action.help and action.option_strings[-1] in text, action.dest
    for name, value in aae.OURS.items():
        action = next(a for a in aae.make_parser()._actions if a.dest == name)
        assert action.default is None
    for words in (
        "None is 0.001, prior 0.0006, likelihood 0.0003, style 0.0004; --recipe paper: 0.1",  # --lr-encoder
        "None is 20, prior 15, style 72, cluster 25, embed 12; --recipe paper: 5000, prior 1000, likelihood 1000, cluster 1500",  # --epochs
        "None is 0.1, prior 0.0, likelihood 0.0; --recipe paper: 0.0, style 0.3, semi 0.3, embed 0.3",
    ):  # --noise
        assert words in text, words


def test_numbers_of_the_paper_from_memory_are_marked_as_such():
    from experiments import reproduce

    told = set(re.findall(r"([0-9.]+)(?: ± [0-9.]+)? †", reproduce.aae_table()))  # in the README
    printed = set(
        re.findall(r'"([0-9.]+)(?: \+- [0-9.]+)? \?', (ROOT / "aae.py").read_text())
    )  # by the script
    assert len(told) >= 8 and printed == told | {"3.90"}  # Figure 11(d) has no row in the README
