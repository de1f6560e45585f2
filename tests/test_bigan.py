"""bigan.py: losses against independent answers, simultaneous steps by hand, scores that catch degenerate models, the command line."""

import copy
import json
import math
import sys
import types

import bigan
from experiments import before as common

import pytest
import torch
import torch.nn.functional as F
from torch import nn


def options(*arguments):
    return bigan.resolve(
        bigan.make_parser().parse_args(
            [str(a) for a in ("--precision", "fp32", "--device", "cpu", *arguments)]
        )
    )


def mnist(n, part=0):
    return common.load_dataset("mnist")[part].take(slice(0, n))


def state(nets):
    return {
        f"{k}.{n}": p.detach().clone()
        for k, net in vars(nets).items()
        if isinstance(net, nn.Module)
        for n, p in net.named_parameters()
    }


def moved(before, after):
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


# ---------------------------------------------------------------------------------------------------------- losses


def test_adversarial_losses_against_their_formulas():
    torch.manual_seed(0)
    real, made = (torch.randn(7, dtype=torch.float64, requires_grad=True) for _ in range(2))
    D = torch.sigmoid
    assert torch.allclose(
        bigan.discriminator_loss(real, made), -D(real).log().mean() - (1 - D(made)).log().mean()
    )
    assert torch.allclose(
        bigan.inverse_loss(real, made), -(1 - D(real)).log().mean() - D(made).log().mean()
    )
    assert torch.allclose(bigan.generator_loss(made), -D(made).log().mean())
    for loss, logits in (
        (bigan.discriminator_loss, (real, made)),
        (bigan.inverse_loss, (real, made)),
        (bigan.generator_loss, (made,)),
    ):
        assert torch.autograd.gradcheck(loss, logits)
    zero = torch.zeros(4)
    assert (
        bigan.discriminator_loss(zero, zero).item()
        == bigan.inverse_loss(zero, zero).item()
        == pytest.approx(2 * math.log(2))
    )
    assert bigan.generator_loss(zero).item() == pytest.approx(math.log(2))
    assert math.isfinite(
        bigan.inverse_loss(torch.full((2,), 500.0), torch.full((2,), -500.0))
    )  # log(1 - D) would be infinite


def test_the_penalty_is_the_squared_slope():
    """Of a D that is quadratic the slope is known; its gradient is that of finite differences."""
    torch.manual_seed(0)
    x, z = (
        torch.randn(5, 3, dtype=torch.float64, requires_grad=True),
        torch.randn(5, 2, dtype=torch.float64, requires_grad=True),
    )
    w = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    value = bigan.gradient_penalty(x.square().sum(1) + z @ w, [x, z])
    assert torch.allclose(value, (4 * x.square().sum(1)).mean() + 5)
    assert torch.allclose(torch.autograd.grad(value, w)[0], 2 * w)


def test_d_is_blind_to_a_batch_of_equal_images():
    torch.manual_seed(0)
    disc = (
        bigan.Discriminator(z_dim=0, hidden=64).double().train()
    )  # difference 2: why a GAN can collapse
    image = torch.rand(1, 784, dtype=torch.double)
    assert (
        disc(image.expand(32, -1)).abs().max() < 1e-6
        and disc(torch.rand(32, 784, dtype=torch.double)).abs().mean() > 0.1
    )
    assert bigan.generator_loss(disc(image.expand(32, -1))).item() == pytest.approx(
        math.log(2), abs=1e-6
    )
    seeing = bigan.Discriminator(z_dim=0, hidden=64, skip=True).double().train()
    assert (
        seeing(image.expand(32, -1)).std() < 1e-6
        and seeing(image.expand(32, -1)).abs().mean() > 0.01
    )  # and with --skip 1 it is not
    z, other = torch.rand(32, 50, dtype=torch.double), torch.rand(1, 784, dtype=torch.double)
    for skip in (
        False,
        True,
    ):  # a joint D's logits differ, by z, but not from those of another image
        disc = bigan.Discriminator(hidden=64, skip=skip).double().train()
        one, two = (disc(x.expand(32, -1), z) for x in (image, other))
        assert one.std() > 0.01 and (
            (one - two).abs().max() > 0.01 if skip else torch.allclose(one, two, atol=1e-6)
        )


def test_the_swapped_labels_do_not_saturate():
    """Where D wins, the minimax game's gradient for G and E vanishes; the swapped-label loss keeps it."""
    real, made = (
        torch.full((1,), 12.0, requires_grad=True),
        torch.full((1,), -12.0, requires_grad=True),
    )
    minimax = torch.autograd.grad(-bigan.discriminator_loss(real, made), (real, made))
    swapped = torch.autograd.grad(bigan.inverse_loss(real, made), (real, made))
    assert all(g.abs() < 1e-4 for g in minimax) and all(g.abs() > 0.99 for g in swapped)
    assert all(a.sign() == b.sign() for a, b in zip(minimax, swapped))


def test_regression_is_a_cross_entropy_of_the_mapped_code():
    torch.manual_seed(0)
    logits, z = (
        torch.randn(6, 4, dtype=torch.float64),
        2 * torch.rand(6, 4, dtype=torch.float64) - 1,
    )
    u, p = (z + 1) / 2, torch.sigmoid(logits)
    truth = -(u * p.log() + (1 - u) * (1 - p).log()).sum(1).div(4).mean()
    assert torch.allclose(bigan.regression_loss(logits, z), truth)
    assert bigan.regression_loss(torch.zeros(2, 3), torch.rand(2, 3)).item() == pytest.approx(
        math.log(2)
    )
    best = torch.logit(u).requires_grad_()  # least where the bounded code is z itself
    (gradient,) = torch.autograd.grad(bigan.regression_loss(best, z), best)
    assert gradient.abs().max() < 1e-12 and torch.allclose(bigan.bounded_code(best), z)


@pytest.mark.parametrize("power", [1, 2])
def test_pixel_loss_against_a_double_loop(power):
    torch.manual_seed(0)
    a, b = torch.rand(3, 5, dtype=torch.float64), torch.rand(3, 5, dtype=torch.float64)
    truth = sum(abs(a[n, k] - b[n, k]).item() ** power for n in range(3) for k in range(5)) / 3
    assert math.isclose(bigan.pixel_loss(a, b, power).item(), truth, rel_tol=1e-12)


def test_codes():
    logits = torch.linspace(-5, 5, 11, dtype=torch.float64)
    assert torch.allclose(bigan.bounded_code(logits), 2 * torch.sigmoid(logits) - 1)
    torch.manual_seed(0)
    mu, log_sigma = (
        torch.tensor([1.0, -2.0]).expand(100_000, 2),
        torch.tensor([-1.0, 0.3]).expand(100_000, 2),
    )
    z = bigan.sample_code(mu, log_sigma)
    assert torch.allclose(z.mean(0), mu[0], atol=0.02) and torch.allclose(
        z.std(0), log_sigma[0].exp(), rtol=0.02
    )
    log_sigma = log_sigma[:4].clone().requires_grad_()
    bigan.sample_code(mu[:4], log_sigma).sum().backward()
    assert log_sigma.grad.abs().sum() > 0  # reparametrised: the deviation is learned
    assert bigan.code_of(mu, log_sigma, sample=False) is mu
    for model in bigan.JOINT:
        z = bigan.draw_prior(options("--model", model), 20_000, "cpu")
        assert (
            z.shape == (20_000, 50)
            and abs(z.square().mean() - (1 / 3 if model == "bigan" else 1)) < 0.01
            and (z.abs().max() <= 1) == (model == "bigan")
        )


# --------------------------------------------------------------------------------------------------------- updates


def small(model, *arguments):
    torch.manual_seed(0)
    opt = options("--model", model, "--hidden", 12, "--z-dim", 5, *arguments)
    nets = bigan.build(opt, 784)
    for net in bigan.present(nets):  # with weights that matter
        for p in net.parameters():
            nn.init.normal_(p, std=0.2)
    return opt, nets


def test_the_posterior_has_the_priors_scale_whatever_the_weights():
    """The D of these networks does not see a code's scale; without this sigma grew to 1e12 in an epoch."""
    opt, nets = small("ali")
    nn.init.normal_(nets.enc.out.weight, std=50.0)
    mu, log_sigma = nets.enc(torch.rand(64, 784))
    assert log_sigma.max() <= 0 and log_sigma.min() < -5
    assert torch.allclose(mu.mean(0), torch.zeros(opt.z_dim), atol=1e-3) and torch.allclose(
        mu.var(0, unbiased=False), torch.ones(opt.z_dim), atol=1e-3
    )


def test_gradient_reaches_e_from_real_pairs_and_g_from_generated_ones():
    opt, nets = small("bigan")
    x, z = torch.rand(8, 784), bigan.draw_prior(opt, 8, "cpu")
    real = nets.disc(x, bigan.code_of(*nets.enc(x)))
    made = nets.disc(torch.sigmoid(nets.gen(z)), z)
    for logits, reached, spared in ((real, nets.enc, nets.gen), (made, nets.gen, nets.enc)):
        loss = bigan.inverse_loss(
            *((logits, made.detach()) if logits is real else (real.detach(), logits))
        )
        assert all(
            g is not None and g.abs().sum() > 0
            for g in torch.autograd.grad(loss, list(reached.parameters()), retain_graph=True)
        )
        assert all(
            g is None
            for g in torch.autograd.grad(
                loss, list(spared.parameters()), retain_graph=True, allow_unused=True
            )
        )


def by_hand(opt, nets, x, model, penalised):
    """Losses of D and of the others written again, spelled out, at the parameters as they are; the caller takes the gradients."""

    def lrelu(h):
        return torch.where(h > 0, h, 0.2 * h)

    def norm(h):
        return (h - h.mean(0)) / (h.var(0, unbiased=False) + 1e-5).sqrt()

    def enc(x):
        h = (
            lrelu(norm(lrelu(x @ nets.enc.layer1.weight.t()) @ nets.enc.layer2.weight.t()))
            @ nets.enc.out.weight.t()
        )
        if model in ("ali", "alice"):
            mu, width = h[:, : opt.z_dim], h[:, opt.z_dim :]
            return norm(mu), torch.log(1 / (1 + torch.exp(-width)))
        return 2 / (1 + torch.exp(-h)) - 1, h

    def code(x):
        first, second = enc(x)
        return (
            first + torch.randn(first.shape) * torch.exp(second)
            if model in ("ali", "alice")
            else first
        )

    def gen(z):
        h = norm(z @ nets.gen.layer1.weight.t()).clamp(min=0)
        h = norm(h @ nets.gen.layer2.weight.t() + z @ nets.gen.from_z.weight.t()).clamp(min=0)
        return 1 / (1 + torch.exp(-h @ nets.gen.out.weight.t()))

    def D(x, z=None):
        h1 = lrelu(x @ nets.disc.layer1.weight.t())
        h = h1 @ nets.disc.layer2.weight.t()
        h = lrelu(norm(h if z is None else h + z @ nets.disc.from_z.weight.t()))
        logit = (h @ nets.disc.out.weight.t())[:, 0]
        if opt.bilinear:
            logit = logit + ((h1 @ nets.disc.u.weight.t()) * (z @ nets.disc.v.weight.t())).sum(
                1
            ) / math.sqrt(opt.bilinear)
        if opt.skip:
            logit = logit + (h1 @ nets.disc.skip.weight.t())[:, 0]
        return 1 / (1 + torch.exp(-logit))

    def steep(*pair):  # 4 gamma / 2 E |dD|^2, the norm over pixels and code together
        pair = [part.detach().clone().requires_grad_() for part in pair]
        gradients = torch.autograd.grad(
            torch.logit(D(*pair).double()).sum(), pair, create_graph=True
        )
        return 60 * sum((g**2).sum() for g in gradients) / len(x) if penalised else 0.0

    torch.manual_seed(5)
    z = (
        torch.randn(len(x), opt.z_dim)
        if model in ("ali", "alice")
        else 2 * torch.rand(len(x), opt.z_dim) - 1
    )
    if model in bigan.JOINT:
        z_x, x_z = code(x), gen(z)
        real, made = D(x, z_x), D(x_z, z)
        loss_d, loss = (
            -(real.log() + (1 - made).log()).mean(),
            -((1 - real).log() + made.log()).mean(),
        )
        cycle = ((gen(z_x) - x) ** 2).sum() / len(x) + ((enc(x_z)[0] - z) ** 2).sum() / len(x)
        return (
            loss_d + steep(x, z_x) + steep(x_z, z),
            loss + opt.cycle_weight * cycle,
            (loss_d, loss, cycle),
        )
    if model in bigan.PIXEL:
        error = (gen(code(x)) - x).abs()
        loss = (error**2 if model == "ae-l2" else error).sum() / len(x)
        return None, loss, (loss,)
    x_z = gen(z)
    loss_d, loss = -(D(x).log() + (1 - D(x_z)).log()).mean(), -D(x_z).log().mean()
    if model == "gan":
        return loss_d + steep(x) + steep(x_z), loss, (loss_d, loss)
    p, u = 1 / (1 + torch.exp(-enc(x_z if model == "jlr" else x_z.detach())[1])), (z + 1) / 2
    regression = -(u * p.log() + (1 - u) * (1 - p).log()).mean()
    return (
        loss_d + steep(x) + steep(x_z),
        loss + (0.25 if model == "jlr" else 1) * regression,
        (loss_d, loss, regression),
    )


@pytest.mark.parametrize("number", [3, 8])
@pytest.mark.parametrize("model", [*bigan.JOINT, "gan", *bigan.LATENT, *bigan.PIXEL])
def test_a_step_is_simultaneous_and_the_papers(model, number):
    """Step 8 has a gradient penalty, step 3 has not."""
    more = {"alice": ["--cycle-weight", 0.3], "bigan": ["--bilinear", 3], "ali": ["--skip", 1]}.get(
        model, []
    )
    opt, nets = small(model, *([] if model in bigan.PIXEL else ["--penalty", 30]), *more)
    x = torch.rand(16, 784)
    mine = copy.deepcopy(nets)
    before = state(nets)
    others = [net for net in (mine.gen, mine.enc) if net is not None]
    loss_d, loss, told = by_hand(opt, mine, x, model, number == 8)
    truth = {}
    for names, value, lr in (
        (["disc"], loss_d, 0.02),
        ([k for k in ("gen", "enc") if getattr(mine, k) is not None], loss, 0.05),
    ):
        named = (
            {
                f"{k}.{n}": p
                for k in names
                if getattr(mine, k) is not None
                for n, p in getattr(mine, k).named_parameters()
            }
            if value is not None
            else {}
        )
        for (name, p), g in zip(
            named.items(),
            torch.autograd.grad(value, list(named.values()), retain_graph=True) if named else (),
        ):
            truth[name] = (p - lr * g).detach()  # all gradients at the old parameters
    opt_d = torch.optim.SGD(bigan.parameters(nets.disc), 0.02) if nets.disc is not None else None
    opt_ge = torch.optim.SGD(bigan.parameters(nets.gen, nets.enc), 0.05)
    torch.manual_seed(5)
    if model in bigan.JOINT:
        losses = bigan.joint_step(nets, opt_d, opt_ge, x, bigan.penalty_weight(number, opt), opt)
    elif model in bigan.PIXEL:
        losses = (bigan.autoencoder_step(nets, opt_ge, x, opt),)
    else:
        losses = bigan.gan_step(nets, opt_d, opt_ge, x, bigan.penalty_weight(number, opt), opt)
    for k, (a, b) in enumerate(zip(losses, told)):
        assert math.isclose(a.item(), b.item(), rel_tol=1e-4) or (
            k == 2 and model in ("bigan", "ali") and a == 0
        ), k
    after = state(nets)
    assert set(truth) == set(before) and moved(before, after) == {
        name.split(".")[0] for name in truth
    }
    for name in truth:
        size = (truth[name] - before[name]).abs().max().item()
        assert size > 1e-9 and torch.allclose(after[name], truth[name], atol=3e-3 * size), name
    assert all(p.grad is None for net in bigan.present(nets) for p in net.parameters()) and len(
        others
    ) == len(bigan.present(nets)) - (nets.disc is not None)


def test_the_latent_regressor_gives_g_nothing():
    """lr's G moves exactly as a plain GAN's; jlr's does not."""
    weights = {}
    for model in ("gan", "lr", "jlr"):
        opt, nets = small("jlr")
        opt.model = model
        if model == "gan":
            nets.enc = None
        torch.manual_seed(1)
        bigan.gan_step(
            nets,
            torch.optim.SGD(bigan.parameters(nets.disc), 0.1),
            torch.optim.SGD(bigan.parameters(nets.gen, nets.enc), 0.1),
            torch.rand(16, 784),
            0.0,
            opt,
        )
        weights[model] = state(nets)
    assert all(torch.equal(weights["gan"][name], weights["lr"][name]) for name in weights["gan"])
    assert not torch.equal(weights["gan"]["gen.layer1.weight"], weights["jlr"]["gen.layer1.weight"])


def test_real_and_generated_batches_have_their_own_statistics():
    """D of the real pairs does not depend on which generated ones stand in the same step."""
    opt, nets = small("bigan")
    x = torch.rand(16, 784)
    seen = []
    real_forward = nets.disc.forward
    nets.disc.forward = lambda *pair: seen.append(real_forward(*pair)) or seen[-1]
    still = [
        torch.optim.SGD(p, 0.0)
        for p in (bigan.parameters(nets.disc), bigan.parameters(nets.gen, nets.enc))
    ]
    for seed in (1, 2):
        torch.manual_seed(seed)
        bigan.joint_step(nets, *still, x, 0.0, opt)
    assert torch.equal(seen[0], seen[2]) and not torch.equal(seen[1], seen[3])
    joined = real_forward(torch.cat([x, torch.rand(16, 784) * 5]), bigan.draw_prior(opt, 32, "cpu"))
    assert not torch.allclose(
        joined[:16], seen[0]
    )  # which it does where both go through as one batch


def test_batch_norm_is_settled_with_the_final_weights():
    opt, nets = small("bigan")
    data = mnist(300)
    assert [bigan.penalty_weight(step, opt) for step in range(6)] == [1, 0, 0, 0, 1, 0]
    for net in bigan.present(nets):
        for m in net.modules():
            if isinstance(m, nn.BatchNorm1d):
                m.running_mean.fill_(7.0)
    bigan.settle(nets, data.x, opt)
    x = common.to_float(data.x).flatten(1)
    h = nets.enc.layer2(F.leaky_relu(nets.enc.layer1(x), 0.2))
    assert torch.allclose(nets.enc.norm.running_mean, h.mean(0), atol=1e-4) and torch.allclose(
        nets.enc.norm.running_var, h.var(0), rtol=1e-3
    )
    assert not any(net.training for net in bigan.present(nets)) and not any(
        m.training for m in nets.gen.modules()
    )
    w = nets.gen.layer1.weight  # codes of the prior: mean 0, variance 1/3
    assert (nets.gen.norm1.running_mean.abs() < 0.3 * w.norm(dim=1)).all() and torch.allclose(
        nets.gen.norm1.running_var, w.square().sum(1) / 3, rtol=0.35
    )
    z = bigan.encode(nets, data.x)
    pair = nets.disc.layer2(F.leaky_relu(nets.disc.layer1(x), 0.2)) + nets.disc.from_z(z)
    assert torch.allclose(nets.disc.norm.running_mean, pair.mean(0), atol=1e-4)


def test_an_autoencoders_generator_is_settled_on_codes_and_a_gans_discriminator_on_images():
    data = mnist(300)
    opt, nets = small("ae-l2")
    bigan.settle(nets, data.x, opt)
    h = bigan.encode(nets, data.x) @ nets.gen.layer1.weight.t()
    assert torch.allclose(nets.gen.norm1.running_mean, h.mean(0), atol=1e-4) and torch.allclose(
        nets.gen.norm1.running_var, h.var(0), rtol=1e-3
    )
    assert not torch.allclose(
        nets.gen.norm1.running_var, nets.gen.layer1.weight.square().sum(1) / 3, rtol=0.2
    )  # the prior's
    opt, nets = small("gan")
    bigan.settle(nets, data.x, opt)
    h = nets.disc.layer2(F.leaky_relu(nets.disc.layer1(common.to_float(data.x).flatten(1)), 0.2))
    assert torch.allclose(nets.disc.norm.running_mean, h.mean(0), atol=1e-4)


def test_defaults():
    assert [options("--model", model).cycle_weight > 0 for model in bigan.JOINT] == [
        False,
        False,
        True,
    ]
    assert (options().penalty, options().average, options("--model", "jlr").regressor_weight) == (
        0.5,
        0.999,
        0.25,
    )
    assert [options("--model", model).bilinear for model in (*bigan.JOINT, "gan")] == [0, 0, 0, 0]
    assert [options("--model", model).skip for model in (*bigan.JOINT, "gan", *bigan.LATENT)] == [
        1,
        0,
        0,
        1,
        1,
        1,
    ]
    assert [
        options("--model", "lr", *words).skip
        for words in (("--skip", 0), ("--recipe", "paper"), ("--recipe", "paper", "--skip", 1))
    ] == [0, 0, 1]
    assert [options("--dataset", "grid", *words).skip for words in ((), ("--random-setting",))] == [
        0,
        0,
    ]
    assert [
        options("--model", model).skip_fade for model in (*bigan.JOINT, "gan", *bigan.LATENT)
    ] == [0.5, 0, 0, 0, 0, 0]
    assert [
        options(*words).skip_fade
        for words in (
            ("--skip", 0),
            ("--skip-fade", 0),
            ("--model", "gan", "--skip-fade", 0.2),
            ("--recipe", "paper"),
        )
    ] == [0, 0, 0.2, 0]
    drawn = options("--dataset", "grid", "--random-setting", "--lr", 0.01)
    assert (drawn.lr, drawn.lr_discriminator) == (0.01, 0.01) and options(
        "--dataset", "grid", "--random-setting"
    ).lr_discriminator < 0.0011
    assert [
        options(*words).skip
        for words in (("--bilinear", 8), ("--bilinear", 8, "--skip", 1), ("--recipe", "paper"))
    ] == [0, 1, 0]
    for model in ("gan", "lr", "jlr"):
        opt = options("--model", model)
        assert (opt.lr, opt.lr_discriminator, opt.penalty) == (2e-4, 2e-4, 0) and options(
            "--model", model, "--penalty", 1
        ).penalty == 1
    assert options("--dataset", "grid").precision == "fp32"
    assert (bigan.build(options("--model", "jlr"), 784).enc.out.weight == 0).all() and (
        bigan.build(options(), 784).enc.out.weight != 0
    ).any()


def test_schedules_and_the_papers_recipe():
    opt = options()
    assert [
        bigan.schedule(step, 10_000, opt) for step in (0, 99, 5000, 7500, 9999)
    ] == pytest.approx([0.01, 1, 1, 0.5, 0.01], abs=2e-3)
    opt = options("--recipe", "paper")
    assert [bigan.schedule(step, 400, opt) for step in (0, 199, 200, 250, 400)] == pytest.approx(
        [1, 1, 1, 6.2e-5 / 2e-4, 0.01], rel=0.03
    )
    assert (
        opt.epochs,
        opt.batch_size,
        opt.lr,
        opt.lr_discriminator,
        opt.beta1,
        opt.weight_decay,
        opt.z_dim,
        opt.hidden,
        opt.penalty,
        opt.average,
    ) == (400, 128, 2e-4, 2e-4, 0.5, 2.5e-5, 50, 1024, 0, 0)
    opt = options("--dataset", "grid", "--recipe", "paper")
    assert (
        opt.epochs,
        opt.batch_size,
        opt.lr,
        opt.beta1,
        opt.weight_decay,
        opt.hidden,
        opt.maxout,
        opt.pieces,
        opt.init_std,
    ) == (250, 100, 1e-4, 0.2, 0, 400, 200, 5, 0.02)
    assert bigan.schedule(7, 10, opt) == 1
    adam = bigan.make_optimiser([torch.zeros(1, requires_grad=True)], options(), 0.1).param_groups[
        0
    ]
    assert (adam["betas"], adam["weight_decay"], adam["lr"]) == ((0.5, 0.999), 2.5e-5, 0.1)


def test_what_is_scored_is_the_average_of_the_weights():
    for decay in (0.0, 0.5):
        torch.manual_seed(0)
        opt = options(
            "--hidden",
            8,
            "--epochs",
            1,
            "--batch-size",
            10,
            "--average",
            decay,
            "--out",
            f"run{decay}",
        )
        run = common.Run("bigan", opt)
        nets = bigan.build(opt, 784)
        seen = []
        real = bigan.step_together
        bigan.step_together = lambda *words: (real(*words), seen.append(state(nets)))
        try:
            bigan.train(run, nets, mnist(40))
        finally:
            bigan.step_together = real
        truth = seen[0]
        for k, now in enumerate(seen[1:], 1):
            d = min(decay, (1 + k) / (10 + k))  # smaller at first
            truth = {name: d * truth[name] + (1 - d) * now[name] for name in truth}
        assert len(seen) == 4 and all(
            torch.allclose(value, truth[name], atol=1e-7) for name, value in state(nets).items()
        )


@pytest.mark.parametrize("fade, shares", [(0.5, [1, 0.75, 0.5, 0.25, 0, 0, 0, 0]), (0, [1] * 8)])
def test_the_map_against_collapse_fades(fade, shares, monkeypatch):
    """Falls straight to nothing in that share of the run; what is kept is D as it is at the end, the published one."""
    opt = options(
        "--hidden", 8, "--epochs", 2, "--batch-size", 10, "--skip-fade", fade, "--out", "run"
    )
    run, nets, seen = common.Run("bigan", opt), bigan.build(opt, 784), []
    real = bigan.step_together
    monkeypatch.setattr(
        bigan,
        "step_together",
        lambda *words: (seen.append(nets.disc.skip_share.item()), real(*words)),
    )
    bigan.train(run, nets, mnist(40))
    assert seen == shares
    kept = torch.load("run/checkpoint.pt", weights_only=True)["states"]
    assert kept["disc"]["skip_share"] == kept["average_disc"]["module.skip_share"] == shares[-1]
    x, z = torch.rand(4, 784), torch.rand(4, 50)
    published = nets.disc.out(nets.disc.features(x, z))[:, 0]
    assert (
        torch.equal(nets.disc(x, z), published) == (fade > 0) and (nets.disc.skip.weight != 0).all()
    )
    nets.disc.skip_share.fill_(0.25)
    first = F.leaky_relu(x @ nets.disc.layer1.weight.t(), 0.2)
    assert torch.allclose(
        nets.disc(x, z), published + 0.25 * (first @ nets.disc.skip.weight.t())[:, 0], atol=1e-6
    )


def test_networks_have_the_papers_sizes():
    nets = bigan.build(options("--skip", 0), 784)
    assert [tuple(p.shape) for p in nets.enc.parameters()] == [
        (1024, 784),
        (1024, 1024),
        (50, 1024),
    ]
    assert sorted(tuple(p.shape) for p in nets.gen.parameters()) == [
        (784, 1024),
        (1024, 50),
        (1024, 50),
        (1024, 1024),
    ]
    assert sorted(tuple(p.shape) for p in nets.disc.parameters()) == [
        (1, 1024),
        (1024, 50),
        (1024, 784),
        (1024, 1024),
    ]
    assert bigan.build(options("--bilinear", 256), 784).disc.u.weight.shape == (256, 1024)
    assert nets.disc.skip is None
    for disc in (
        bigan.build(options(), 784).disc,
        bigan.build(options("--model", "gan"), 784).disc,
    ):  # difference 2
        assert disc.skip.weight.shape == (1, 1024) and (disc.skip.weight == 0).all()
    assert (nets.disc.out.weight == 0).all() and abs(nets.enc.layer1.weight.std() - 0.02) < 1e-3
    assert (bigan.build(options("--model", "lr"), 784).enc.out.weight == 0).all()
    assert bigan.build(options("--model", "ali"), 784).enc.out.weight.shape == (100, 1024)
    paper = bigan.build_grid(options("--dataset", "grid", "--recipe", "paper"))
    assert [m.out_features for m in paper.ali_gen if isinstance(m, nn.Linear)] == [
        400,
        400,
        400,
        400,
        2,
    ]
    assert [m.in_features for m in paper.ali_enc.net if isinstance(m, nn.Linear)] == [4, 400, 400]
    assert [layer.out_features for layer in paper.ali_disc.layers] == [1000, 1000, 1000]
    assert abs(paper.ali_gen[3].weight.std() - 0.02) < 1e-3


# ---------------------------------------------------------------------------------------------------------- scores


def test_nearest_neighbour_against_brute_force_with_ties():
    torch.manual_seed(0)
    references, queries = (
        torch.randint(0, 3, (60, 3)).float(),
        torch.randint(0, 3, (40, 3)).float(),
    )  # many exact ties
    y, y_ = torch.randint(0, 4, (60,)), torch.randint(0, 4, (40,))
    wrong = 0
    for q, label in zip(queries, y_):
        distances = [sum((a - b) ** 2 for a, b in zip(q.tolist(), r.tolist())) for r in references]
        wrong += (
            y[distances.index(min(distances))].item() != label.item()
        )  # the first of the nearest
    assert common.nn_error(references, y, queries, y_) == pytest.approx(100 * wrong / 40)
    once = references.unique(dim=0)
    names = torch.arange(len(once))
    assert common.nn_error(once, names, once, names) == 0


def test_modes_of_hand_made_samples():
    means = bigan.grid_means()
    assert (
        means.shape == (25, 2)
        and sorted(set(means.flatten().tolist())) == [-4, -2, 0, 2, 4]
        and len({tuple(m) for m in means.tolist()}) == 25
    )
    torch.manual_seed(0)
    x, y = bigan.draw_grid(20_000)
    perfect = bigan.mode_scores(x)
    assert (
        perfect["modes_hit"] == perfect["modes_good"] == 25
        and abs(perfect["samples_good"] - 100 * (1 - math.exp(-4.5))) < 0.3
    )
    assert (
        torch.allclose(torch.stack([x[y == k].mean(0) for k in range(25)]), means, atol=0.02)
        and abs((x - means[y]).std() - 0.05) < 0.002
    )
    assert bigan.mode_scores(torch.zeros(1000, 2)) == {
        "modes_hit": 1,
        "modes_good": 1,
        "samples_good": 100,
    }  # collapsed
    smeared = bigan.mode_scores(torch.rand(20_000, 2) * 10 - 5)
    assert (
        smeared["modes_hit"] == 25 and smeared["samples_good"] < 3
    )  # ALI's rule is content with noise; the share is not
    between = bigan.mode_scores(means + 1)
    assert between["modes_good"] == 0 == between["samples_good"]
    assert (
        bigan.mode_scores(means[:7] + torch.tensor([0.149, 0.0]))["modes_good"] == 7
        and bigan.mode_scores(means[:7] + torch.tensor([0.151, 0.0]))["modes_good"] == 0
    )


def fake_judge(logits):
    """Reads the class number that stands in an image's first pixel; answers with that row of logits."""
    return lambda images: logits[images[:, 0, 0, 0].long()]


def test_image_quality_sees_collapse_and_doubt():
    sure = fake_judge(20 * torch.eye(10))
    every, one = torch.arange(10.0).repeat(20)[:, None, None, None], torch.zeros(200, 1, 1, 1)
    best = bigan.image_quality(sure, every)
    assert (
        best["sample_confidence"] == pytest.approx(100, abs=0.01)
        and best["sample_classes"] == pytest.approx(10)
        and best["sample_quality"] == pytest.approx(10, abs=0.01)
    )
    collapsed = bigan.image_quality(sure, one)
    assert collapsed["sample_classes"] == pytest.approx(1) == collapsed[
        "sample_quality"
    ] and collapsed["sample_confidence"] == pytest.approx(100, abs=0.01)
    doubtful = bigan.image_quality(fake_judge(torch.zeros(10, 10) + 0.001 * torch.eye(10)), every)
    assert (
        doubtful["sample_confidence"] < 11
        and doubtful["sample_quality"] == pytest.approx(1, abs=0.01)
        and doubtful["sample_classes"] == pytest.approx(10)
    )


class Identity(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.f, self.place = f, nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return self.f(x)

    def features(self, x):
        return x.flatten(1)


def test_table_scores_of_models_that_are_known():
    """An encoder that keeps the pixels and a generator that returns them score as raw pixels and perfectly; one that ignores its code, badly."""
    data, test = mnist(2000), mnist(300, 1)
    opt = options("--dry-run", "--z-dim", 784)
    judge = common.load_judge("mnist")
    keeps = types.SimpleNamespace(
        enc=Identity(lambda x: (torch.logit((x.flatten(1) * 0.98 + 0.01)), None)),
        gen=Identity(lambda z: torch.logit((((z + 1) / 2 - 0.01) / 0.98).clamp(1e-6, 1 - 1e-6))),
        disc=None,
    )
    scores = bigan.table_scores(keeps, opt, judge, data, test)
    pixels = bigan.table_scores(
        types.SimpleNamespace(enc=None, gen=None, disc=None),
        options("--model", "pixels"),
        judge,
        data,
        test,
    )
    x, x_ = (common.to_float(part.x).flatten(1) for part in (data, test))
    brute = (
        100
        * sum(
            int(data.y[(x - q).square().sum(1).argmin()] != label) for q, label in zip(x_, test.y)
        )
        / len(x_)
    )
    assert (
        scores["nn_error_features"] == pixels["nn_error_features"] == pytest.approx(brute, abs=0.34)
    )
    assert (
        scores["nn_error_code"] == pytest.approx(brute, abs=0.7)
        and scores["reconstruction_mse"] < 1e-6
        and scores["reconstruction_l2"] < 0.02
    )
    assert scores["reconstruction_digit"] > 99 and scores[
        "reconstruction_l2_mismatched"
    ] == pytest.approx((x_ - x_.roll(1, 0)).norm(dim=1).mean().item(), rel=1e-3)
    assert (
        pixels["sample_confidence"] > 98
        and "reconstruction_mse" not in pixels
        and "nn_error_code" not in pixels
    )
    one = torch.logit(x[:1].clamp(1e-4, 1 - 1e-4))
    ignores = types.SimpleNamespace(
        enc=keeps.enc, gen=Identity(lambda z: one.expand(len(z), -1)), disc=None
    )
    bad = bigan.table_scores(ignores, opt, judge, data, test)
    assert (
        scores["code_mse"] < 1e-3
        and scores["code_prior_square"] == pytest.approx(1 / 3, abs=0.01)
        and scores["code_square"] == pytest.approx((2 * x_ - 1).square().mean().item(), rel=0.1)
    )
    assert (
        bad["reconstruction_digit"] < 20
        and bad["reconstruction_l2"] > 8
        and bad["sample_classes"] == pytest.approx(1)
        and bad["reconstruction_l2_mismatched"] == pytest.approx(bad["reconstruction_l2"], rel=0.05)
    )


def test_features_are_those_of_the_layer_before_the_output():
    for model, net in (("bigan", "enc"), ("gan", "disc"), ("untrained", "enc")):
        opt, nets = small(
            model, *(["--skip", 0] if model == "gan" else [])
        )  # with the map the logit is not of this layer alone
        data = mnist(40)
        bigan.settle(nets, data.x, opt)
        h = bigan.features(nets, data.x)
        assert h.shape == (40, 12)
        x = common.to_float(data.x)
        truth = bigan.code_of(*nets.enc(x)) if net == "enc" else nets.disc(x)
        made = h @ getattr(nets, net).out.weight.t()
        assert torch.allclose(
            torch.tanh(made / 2) if net == "enc" else made[:, 0], truth, atol=1e-5
        )
    with pytest.raises(AssertionError, match="uint8"):
        bigan.features(nets, x)


# ------------------------------------------------------------------------------------------------------------ grid


def toy():
    torch.manual_seed(0)
    opt = options("--dataset", "grid", "--hidden", 16, "--maxout", 8)
    return opt, bigan.build_grid(opt)


def test_toy_steps_move_whom_they_should():
    opt, nets = toy()
    x, z = torch.randn(32, 2), torch.randn(32, 2)
    sgd = lambda *n: torch.optim.SGD(bigan.parameters(*n), 0.1)  # noqa: E731
    steps = {
        ("ali_enc", "ali_gen", "ali_disc"): lambda: bigan.toy_joint_step(
            nets.ali_enc,
            nets.ali_gen,
            nets.ali_disc,
            sgd(nets.ali_disc),
            sgd(nets.ali_enc, nets.ali_gen),
            x,
            z,
        ),
        ("posthoc_enc", "posthoc_disc"): lambda: bigan.toy_joint_step(
            nets.posthoc_enc,
            nets.gan_gen,
            nets.posthoc_disc,
            sgd(nets.posthoc_disc),
            sgd(nets.posthoc_enc),
            x,
            z,
        ),
        ("gan_gen", "gan_disc"): lambda: bigan.toy_gan_step(
            nets.gan_gen, nets.gan_disc, sgd(nets.gan_disc), sgd(nets.gan_gen), x, z
        ),
        ("inverse_enc",): lambda: bigan.toy_inverse_step(
            nets.inverse_enc, nets.gan_gen, sgd(nets.inverse_enc), z
        ),
        ("vae_enc", "vae_gen"): lambda: bigan.toy_vae_step(
            nets.vae_enc, nets.vae_gen, sgd(nets.vae_enc, nets.vae_gen), x, 0.1
        ),
    }
    for players, step in steps.items():
        before = state(nets)
        step()
        assert moved(before, state(nets)) == set(players)
        assert all(p.grad is None for net in vars(nets).values() for p in net.parameters())


def test_toy_steps_are_the_papers_with_the_penalty_of_both_kinds():
    """Losses spelled out; D moves along the hand-taken gradient of its loss and both slopes."""
    opt, nets = toy()
    for net in vars(nets).values():
        net.eval()
    x, z = torch.randn(64, 2), torch.randn(64, 2)
    still = lambda *n: torch.optim.SGD(bigan.parameters(*n), 0.0)  # noqa: E731
    D = lambda disc, *pair: torch.sigmoid(disc(torch.cat(pair, 1)))  # noqa: E731
    for kind in ("ali", "gan"):
        disc = getattr(nets, f"{kind}_disc")
        mine = copy.deepcopy(disc)
        torch.manual_seed(1)
        if kind == "ali":
            pairs = [
                t.detach()
                for t in (torch.cat([x, nets.ali_enc(x)], 1), torch.cat([nets.ali_gen(z), z], 1))
            ]
        else:
            pairs = [x, nets.gan_gen(z).detach()]
        real, made = (D(mine, pair) for pair in pairs)
        loss_d = -(real.log() + (1 - made).log()).mean()
        other = -((1 - real).log() + made.log()).mean() if kind == "ali" else -made.log().mean()
        slope = 0.0
        for pair in pairs:
            pair = pair.clone().requires_grad_()
            slope = (
                slope
                + (torch.autograd.grad(mine(pair).sum(), pair, create_graph=True)[0] ** 2).sum()
                / 64
            )
        truth = [
            p - 0.1 * g
            for p, g in zip(
                mine.parameters(),
                torch.autograd.grad(
                    loss_d + 30 * slope, list(mine.parameters()), allow_unused=True
                ),
            )
            if g is not None
        ]
        torch.manual_seed(1)
        mover = torch.optim.SGD(disc.parameters(), 0.1)
        if kind == "ali":
            told = bigan.toy_joint_step(
                nets.ali_enc,
                nets.ali_gen,
                disc,
                mover,
                still(nets.ali_enc, nets.ali_gen),
                x,
                z,
                weight=30.0,
            )
        else:
            told = bigan.toy_gan_step(
                nets.gan_gen, disc, mover, still(nets.gan_gen), x, z, weight=30.0
            )
        assert torch.allclose(told[0], loss_d) and torch.allclose(told[1], other)
        assert len(truth) == len(list(disc.parameters())) and all(
            torch.allclose(p, q, atol=1e-5) for p, q in zip(disc.parameters(), truth)
        )
    torch.manual_seed(1)
    loss = bigan.toy_inverse_step(nets.inverse_enc, nets.gan_gen, still(nets.inverse_enc), z)
    torch.manual_seed(1)
    assert torch.allclose(loss, (nets.inverse_enc(nets.gan_gen(z)) - z).square().sum(1).mean())
    assert not torch.equal(nets.ali_enc(x), nets.ali_enc(x))  # stochastic
    torch.manual_seed(2)
    loss = bigan.toy_vae_step(nets.vae_enc, nets.vae_gen, still(nets.vae_enc, nets.vae_gen), x, 0.3)
    torch.manual_seed(2)
    mu, log_sigma = nets.vae_enc(x).chunk(2, 1)
    q = torch.distributions.Normal(mu, log_sigma.exp())
    code = mu + torch.randn_like(mu) * log_sigma.exp()
    truth = (
        torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum(1).mean()
        - torch.distributions.Normal(nets.vae_gen(code), 0.3).log_prob(x).sum(1).mean()
        + 2 * math.log(1 / (0.3 * math.sqrt(2 * math.pi)))
    )
    assert torch.allclose(loss, truth, rtol=1e-4)


def train_toy(monkeypatch, **spies):
    opt = options(
        "--dataset",
        "grid",
        "--hidden",
        16,
        "--maxout",
        8,
        "--epochs",
        5,
        "--batch-size",
        50,
        "--average",
        0.5,
        "--lr",
        1e-3,
        "--lr-discriminator",
        3e-3,
        "--out",
        "run",
    )
    for name, spy in spies.items():
        monkeypatch.setattr(bigan, name, spy(getattr(bigan, name)))
    torch.manual_seed(0)
    run = common.Run("bigan", opt)
    nets = bigan.build_grid(opt)
    bigan.train_grid(run, nets, bigan.draw_grid(200)[0])
    return opt, run, nets


def test_the_gans_encoders_are_learned_for_a_finished_gan(monkeypatch):
    seen = {"toy_inverse_step": [], "toy_joint_step": []}

    def spy_on(name):
        def wrap(real):
            def call(enc, gen, *rest):
                seen[name].append(
                    (enc, gen, gen.training, {k: v.clone() for k, v in gen.state_dict().items()})
                )
                return real(enc, gen, *rest)

            return call

        return wrap

    opt, run, nets = train_toy(
        monkeypatch,
        toy_inverse_step=spy_on("toy_inverse_step"),
        toy_joint_step=spy_on("toy_joint_step"),
    )
    posthoc = [call for call in seen["toy_joint_step"] if call[0] is nets.posthoc_enc]
    assert (
        len(seen["toy_joint_step"]) == 20 and len(posthoc) == len(seen["toy_inverse_step"]) == 4
    )  # the last fifth
    for calls in (posthoc, seen["toy_inverse_step"]):
        assert all(gen is nets.gan_gen and not training for _, gen, training, _ in calls)
        assert all(
            torch.equal(value, nets.gan_gen.state_dict()[name])
            for call in calls
            for name, value in call[3].items()
        )
    columns = bigan.grid_models(nets)
    assert columns["ali"] == (nets.ali_enc, nets.ali_gen) and columns["inverse"] == (
        nets.inverse_enc,
        nets.gan_gen,
    )
    assert (
        columns["posthoc"] == (nets.posthoc_enc, nets.gan_gen) and columns["vae"][1] is nets.vae_gen
    )
    assert not any(net.training for net in vars(nets).values())


def test_toy_networks_are_averages_with_statistics_of_their_own_inputs(monkeypatch):
    weights, encoders = [], []

    def spy(real):
        def call(enc, gen, disc, *rest):
            done = real(enc, gen, disc, *rest)
            weights.append(gen[0].weight.detach().clone())
            encoders.append(enc.net[0].weight.detach().clone())
            return done

        return call

    opt, run, nets = train_toy(monkeypatch, toy_joint_step=spy)
    truth = weights[0]
    for k, now in enumerate(weights[1:16], 1):
        d = min(0.5, (1 + k) / (10 + k))
        truth = d * truth + (1 - d) * now
    assert torch.allclose(nets.ali_gen[0].weight, truth, atol=1e-7)
    truth = encoders[16]  # the last four steps: the encoder for the GAN, whose average begins there
    for k, now in enumerate(encoders[17:], 1):
        d = min(0.5, (1 + k) / (10 + k))
        truth = d * truth + (1 - d) * now
    assert len(encoders) == 20 and torch.allclose(nets.posthoc_enc.net[0].weight, truth, atol=1e-7)
    w = nets.ali_gen[0].weight
    assert (
        torch.allclose(nets.ali_gen[1].running_var, w.square().sum(1), rtol=0.3)
        and (nets.ali_gen[1].running_mean.abs() < 0.3 * w.norm(dim=1) + 1e-3).all()
    )
    w = nets.vae_enc[0].weight  # of data: variance 8 in each direction
    assert torch.allclose(nets.vae_enc[1].running_var, 8 * w.square().sum(1), rtol=0.4)
    z = (
        bigan.sample_code(*nets.vae_enc(bigan.draw_grid(5000)[0]).chunk(2, 1))
        @ nets.vae_gen[0].weight.t()
    )
    assert torch.allclose(nets.vae_gen[1].running_var, z.var(0), rtol=0.3)


@pytest.mark.parametrize("grid", [False, True])
def test_every_optimiser_has_its_rate_and_schedule(grid, monkeypatch):
    rates = []
    real = bigan.step_together
    monkeypatch.setattr(
        bigan,
        "step_together",
        lambda d, ge, *losses: (
            rates.append((d.param_groups[0]["lr"], ge.param_groups[0]["lr"]))
            or real(d, ge, *losses)
        ),
    )
    if grid:
        opt, run, nets = train_toy(monkeypatch)
        share = [bigan.schedule(k, 16, opt) for k in range(16)]
        assert rates[:32:2] == rates[1:32:2]  # ALI and the GAN
        rates, share = (
            [*rates[:32:2], *rates[32:]],
            [*share, *(bigan.schedule(k, 4, opt) for k in range(4))],
        )
    else:
        opt = options(
            "--hidden",
            8,
            "--epochs",
            2,
            "--batch-size",
            10,
            "--lr",
            1e-3,
            "--lr-discriminator",
            3e-3,
            "--out",
            "run",
        )
        run = common.Run("bigan", opt)
        bigan.train(run, bigan.build(opt, 784), mnist(40))
        share = [bigan.schedule(k, 8, opt) for k in range(8)]
    assert [d for d, _ in rates] == pytest.approx([3e-3 * s for s in share]) and [
        ge for _, ge in rates
    ] == pytest.approx([1e-3 * s for s in share])


def test_grid_scores_of_known_networks():
    nets = types.SimpleNamespace(
        **{f"{k}_enc": (lambda x: x) for k in ("ali", "inverse", "posthoc")},
        gan_gen=nn.Identity(),
        vae_gen=nn.Identity(),
        vae_enc=lambda x: torch.cat([x, torch.full_like(x, -20.0)], 1),
        ali_gen=nn.Linear(2, 2),
    )
    for shift, mse, mode in ((0.1, 0.01, 100), (2.0, 4.0, 0)):
        with torch.no_grad():
            nets.ali_gen.weight.copy_(torch.eye(2))
            nets.ali_gen.bias.copy_(torch.tensor([shift, 0.0]))
        scores = bigan.grid_scores(nets, 2000)
        assert (
            scores["ali_reconstruction_mse"] == pytest.approx(mse, rel=1e-3)
            and abs(scores["ali_reconstruction_mode"] - mode) < 21
        )
    assert (
        scores["ali_reconstruction_mode"] < 21
    )  # only the last column's points stay, where there is no mode to fall into
    assert (
        scores["vae_reconstruction_mse"] < 1e-6
        and scores["posthoc_reconstruction_mode"] == 100
        and scores["gan_samples_good"] < 30
    )


def test_maxout_takes_the_largest_piece():
    torch.manual_seed(0)
    net = bigan.MaxoutDiscriminator(3, 4, 5)
    x = torch.randn(6, 3)
    h = x
    for layer in net.layers:
        linear = h @ layer.weight.t() + layer.bias
        h = torch.stack([linear[:, 5 * u : 5 * u + 5].max(1).values for u in range(4)], 1)
    assert torch.allclose(net(x), (h @ net.out.weight.t() + net.out.bias)[:, 0], atol=1e-6)


def test_a_random_setting_is_drawn_by_the_seed():
    drawn = [options("--dataset", "grid", "--random-setting", "--seed", s) for s in range(20)]
    assert all(
        1e-4 <= o.lr <= 1e-3
        and o.lr == o.lr_discriminator
        and 0.2 <= o.beta1 <= 0.8
        and 0.01 <= o.init_std <= 0.1
        for o in drawn
    )
    assert (
        len({o.lr for o in drawn}) == 20
        and drawn[3].lr == options("--dataset", "grid", "--random-setting", "--seed", 3).lr
    )
    assert max(o.lr for o in drawn) > 5e-4 and min(o.lr for o in drawn) < 2e-4
    assert set(vars(bigan.build_grid(drawn[0]))) == {
        "ali_enc",
        "ali_gen",
        "ali_disc",
        "gan_gen",
        "gan_disc",
    }
    assert abs(bigan.build_grid(drawn[0]).ali_gen[3].weight.std() / drawn[0].init_std - 1) < 0.05


# ---------------------------------------------------------------------------------------------------- command line

EVERY_MODEL = {
    "bigan": (
        [],
        {
            "nn_error_features",
            "nn_error_code",
            "probe_error_code",
            "reconstruction_digit",
            "sample_quality",
        },
        {"samples", "reconstructions", "interpolation", "losses"},
    ),
    "ali": (["--model", "ali"], {"reconstruction_l2"}, {"reconstructions"}),
    "alice": (["--model", "alice", "--validation"], {"reconstruction_l2"}, {"reconstructions"}),
    "gan": (
        ["--model", "gan", "--recipe", "paper"],
        {"nn_error_features", "sample_quality"},
        {"samples", "losses"},
    ),
    "lr": (["--model", "lr"], {"nn_error_code"}, {"reconstructions", "losses"}),
    "jlr": (["--model", "jlr"], {"nn_error_code"}, {"reconstructions", "losses"}),
    "ae-l1": (["--model", "ae-l1"], {"nn_error_code"}, {"reconstructions", "losses"}),
    "pixels": (["--model", "pixels"], {"nn_error_features", "probe_error_code"}, set()),
    "untrained": (["--model", "untrained"], {"nn_error_code"}, {"reconstructions"}),
    "grid": (
        ["--dataset", "grid"],
        {"ali_modes_hit", "gan_samples_good", "vae_modes_good", "posthoc_reconstruction_mode"},
        {"grid", "losses"},
    ),
    "random": (
        ["--dataset", "grid", "--random-setting", "--recipe", "paper"],
        {"ali_modes_hit", "gan_modes_hit", "ali_reconstruction_mode"},
        {"losses"},
    ),
}


@pytest.mark.parametrize("name", EVERY_MODEL)
def test_every_model_runs_through(name, monkeypatch, capsys):
    arguments, metrics, figures = EVERY_MODEL[name]
    monkeypatch.setattr(sys, "argv", ["bigan.py", "--dry-run", "--hidden", "64", *arguments])
    common.run_main(bigan.main, bigan.make_parser())
    (folder,) = common.Path("runs/bigan").iterdir()
    scores = json.loads((folder / "metrics.json").read_text())
    assert metrics <= set(scores) and all(
        isinstance(v, (int, float)) and math.isfinite(v) for v in scores.values()
    )
    assert {f.stem for f in folder.glob("*.png")} >= figures and all(
        f.stat().st_size > 2000 for f in folder.glob("*.png")
    )
    table = capsys.readouterr().out.splitlines()
    assert (
        table[0].split() == ["score", "this", "run", "paper", "to", "compare"] and len(table) >= 3
    )
    nets = bigan.load(folder)
    assert not any(net.training for net in vars(nets).values() if isinstance(net, nn.Module))
    if name in ("bigan", "ali", "untrained"):
        data, test = mnist(1200), mnist(500, 1)
        again = common.nn_error(
            bigan.encode(nets, data.x), data.y, bigan.encode(nets, test.x), test.y
        )
        assert again == pytest.approx(
            scores["nn_error_code"], abs=0.41
        )  # as it was scored, batch norm and all
        mse = (
            (bigan.decode(nets, bigan.encode(nets, test.x)) - common.to_float(test.x).flatten(1))
            .square()
            .mean()
            .item()
        )
        assert mse == pytest.approx(scores["reconstruction_mse"], rel=1e-3)
    if name == "gan":
        data, test = mnist(1200), mnist(500, 1)
        assert common.nn_error(
            bigan.features(nets, data.x), data.y, bigan.features(nets, test.x), test.y
        ) == pytest.approx(scores["nn_error_features"], abs=0.21)
    if name == "grid":
        torch.manual_seed(0)
        assert bigan.grid_scores(nets, 1000)["vae_samples_good"] == pytest.approx(
            scores["vae_samples_good"], abs=12
        )


def test_the_table_trains_what_is_missing(monkeypatch, capsys):
    def call(*more):
        monkeypatch.setattr(
            sys, "argv", ["bigan.py", "--table", "1", "--dry-run", "--hidden", "32", *more]
        )
        common.run_main(bigan.main, bigan.make_parser())
        return capsys.readouterr().out

    first = call()
    lines = first.split("model ")[1].splitlines()
    assert [line.split()[0] for line in lines[1:]] == [
        "pixels",
        "untrained",
        *bigan.PAPER_TABLE1,
        "ali",
        "alice",
    ]
    metrics = {
        json.loads((f / "config.json").read_text())["settings"]["model"]: json.loads(
            (f / "metrics.json").read_text()
        )
        for f in common.Path("runs/bigan").iterdir()
    }
    names = [
        "nn_error_features",
        "nn_error_code",
        "probe_error_code",
        "reconstruction_l2",
        "reconstruction_digit",
        "sample_quality",
    ]
    for line in lines[1:]:
        model, paper, *cells = line.split()
        assert paper == {
            "bigan": "2.61",
            "gan": "2.70",
            "lr": "2.56",
            "jlr": "2.87",
            "ae-l2": "2.42",
            "ae-l1": "2.37",
        }.get(model, "-")
        assert cells == [
            f"{metrics[model][name]:.2f}" if name in metrics[model] else "-" for name in names
        ]
    folders = sorted(common.Path("runs/bigan").iterdir())
    times = [f.stat().st_mtime_ns for f in folders]
    (folders[0] / "metrics.json").unlink()  # one that was cut off
    second = call()
    assert (
        sorted(common.Path("runs/bigan").iterdir()) == folders
        and (folders[0] / "metrics.json").exists()
    )
    assert [f.stat().st_mtime_ns for f in folders][1:] == times[1:] and second.endswith(
        first[first.index("model ") :]
    )


def test_tiny_training_learns_inference_and_a_frozen_encoder_does_not():
    """Four Gaussians, seconds: nothing compares x with G(E(x)), yet the game brings x back to its own Gaussian."""
    kept = {}
    for frozen in (False, True):
        torch.manual_seed(0)
        enc, gen, disc = (
            bigan.ToyEncoder(2, 64),
            bigan.mlp(2, 64, 2, 2),
            bigan.MaxoutDiscriminator(4, 32, 2),
        )
        centres = torch.tensor([[2.0, 2.0], [2.0, -2.0], [-2.0, 2.0], [-2.0, -2.0]])
        adam = lambda *nets: torch.optim.Adam(bigan.parameters(*nets), 3e-3, betas=(0.0, 0.999))  # noqa: E731
        players = adam(disc), adam(gen) if frozen else adam(gen, enc)
        for _ in range(800):
            y = torch.randint(4, (128,))
            bigan.toy_joint_step(
                enc,
                gen,
                disc,
                *players,
                centres[y] + 0.2 * torch.randn(128, 2),
                torch.randn(128, 2),
                weight=0.01,
            )
        y = torch.randint(4, (2000,))
        with torch.no_grad():
            again = gen(enc(centres[y] + 0.2 * torch.randn(2000, 2)))
        kept[frozen] = (torch.cdist(again, centres).argmin(1) == y).float().mean().item()
    assert kept[False] > 0.8 > 0.75 > kept[True], kept


SNIPPETS = {
    "Encoder": ([], lambda f: f(gaussian=True)(torch.rand(4, 784))[1].shape == (4, 50)),
    "Generator": ([], lambda f: f()(torch.rand(4, 50)).shape == (4, 784)),
    "Discriminator": ([], lambda f: f()(torch.rand(4, 784), torch.rand(4, 50)).shape == (4,)),
    "ToyEncoder": (["mlp"], lambda f: f()(torch.rand(4, 2)).shape == (4, 2)),
    "MaxoutDiscriminator": ([], lambda f: f()(torch.rand(4, 4)).shape == (4,)),
    "discriminator_loss": ([], lambda f: f(torch.zeros(2), torch.zeros(2)) > 1),
    "inverse_loss": ([], lambda f: f(torch.zeros(2), torch.zeros(2)) > 1),
    "generator_loss": ([], lambda f: f(torch.zeros(2)) > 0.5),
    "regression_loss": ([], lambda f: f(torch.zeros(2, 3), torch.zeros(2, 3)) > 0.5),
    "pixel_loss": ([], lambda f: f(torch.zeros(2, 3), torch.ones(2, 3)) == 3),
    "bounded_code": ([], lambda f: f(torch.zeros(2, 3)).abs().sum() == 0),
    "sample_code": ([], lambda f: f(torch.zeros(2, 3), torch.zeros(2, 3)).shape == (2, 3)),
}


@pytest.mark.parametrize("name", SNIPPETS)
def test_snippets_stand_alone(name):
    """Pasted with the companions that its docstring names, a class or a loss needs torch, and nothing else."""
    import inspect

    companions, works = SNIPPETS[name]
    space = {"torch": torch, "nn": nn, "F": F}
    for part in (*companions, name):
        exec(inspect.getsource(getattr(bigan, part)), space)
    assert works(space[name])
    if inspect.isclass(getattr(bigan, name)):
        assert all(f"Uses {c}" in getattr(bigan, name).__doc__ for c in companions)


def test_an_unfinished_run_is_not_loaded():
    opt = options("--hidden", 8, "--epochs", 1, "--out", "run", "--batch-size", 10)
    run = common.Run("bigan", opt)
    bigan.train(run, bigan.build(opt, 784), mnist(20))  # killed before its scores
    with pytest.raises(common.UserError, match="not finished"):
        bigan.load("run")


def test_kill_then_resume_is_bit_identical(survives_kills):
    survives_kills("bigan")


MISTAKES = [
    (["--model", "wgan"], "invalid choice"),
    (["--dataset", "sprites"], "choose another --dataset"),
    (["--dataset", "grid", "--model", "ali"], "leave --model"),
    (["--random-setting"], "needs --dataset grid"),
    (["--dataset", "grid", "--random-setting", "--vae-std", "1"], "trains no VAE"),
    (["--table", "2"], "invalid choice"),
    (["--table", "1", "--dataset", "grid"], "does not go with it"),
    (["--table", "1", "--out", "x"], "leave --out and"),
    (["--dataset", "grid", "--precision", "bf16"], "in fp32"),
    (["--table", "1", "--model", "ali"], "--model out"),
    (["--dataset", "grid", "--z-dim", "3"], "--z-dim does not go with"),
    (["--maxout", "3"], "--maxout does not go with"),
    (["--model", "gan", "--cycle-weight", "1"], "--cycle-weight is for"),
    (["--model", "ae-l2", "--penalty", ".1"], "--penalty is for"),
    (["--regressor-weight", "1"], "--regressor-weight is for --model jlr"),
    (["--batch-size", "2"], "at least 3"),
    (["--dataset", "grid", "--epochs", "1"], "at least 2"),
    (["--dataset", "nothing"], "unknown data set"),
    (["--lr", "0"], "above 0"),
    (["--skip", "0", "--skip-fade", ".5"], "nothing without --skip 1"),
    (["--model", "ali", "--skip-fade", ".5"], "--skip-fade is for"),
    (["--dataset", "grid", "--skip-fade", ".5"], "--skip-fade does not go with"),
    (["--model", "ae-l1", "--skip-fade", ".5"], "--skip-fade is for"),
    (["--skip-fade", "2"], "from 0 to 1"),
    (["--table", "1", "--skip", "0", "--skip-fade", ".3"], "nothing without --skip 1"),
    (["--dataset", "grid", "--data", "."], "--data out"),
]


@pytest.mark.parametrize(
    "arguments, words", MISTAKES, ids=lambda v: " ".join(v) if isinstance(v, list) else str(v)
)
def test_mistakes_end_with_one_line(arguments, words, complains):
    complains(bigan, arguments, words)


def test_a_training_that_breaks_says_where(command):
    done = command(
        "bigan.py",
        "--dry-run",
        "--lr",
        "1e9",
        "--model",
        "ali",
        "--precision",
        "fp32",
        "--out",
        "run",
        "--hidden",
        "32",
    )
    assert (
        done.returncode == 2
        and "is not finite at step" in done.stderr
        and "Traceback" not in done.stderr
    )
    assert not common.Path("run/metrics.json").exists()


def test_help_tells_every_flag(command):
    text = " ".join(command("bigan.py", "--help").stdout.split())
    for action in bigan.make_parser()._actions:
        assert action.help and action.option_strings[-1] in text, action.dest
