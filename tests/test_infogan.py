"""infogan.py: the bound against known channels, who moves in each update, scores that catch degenerate models, the command line."""

import copy
import inspect
import json
import math
import sys
import types

import infogan
from experiments import before as common

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from kills import same
from torch import nn


def options(*arguments):
    return infogan.resolve(
        infogan.make_parser().parse_args(
            [str(a) for a in ("--precision", "fp32", "--device", "cpu", *arguments)]
        )
    )


def mnist(n, part=0):
    return common.load_dataset("mnist")[part].take(slice(0, n))


def state(nets):
    return {
        f"{k}.{n}": p.detach().clone()
        for k, net in vars(nets).items()
        for n, p in net.named_parameters()
    }


def moved(before, after):
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


# ---------------------------------------------------------------------------------------------------------- losses


def test_adversarial_losses_against_their_formulas():
    torch.manual_seed(0)
    real, fake = (torch.randn(7, dtype=torch.float64, requires_grad=True) for _ in range(2))
    D = torch.sigmoid
    assert torch.allclose(
        infogan.discriminator_loss(real, fake), -D(real).log().mean() - (1 - D(fake)).log().mean()
    )
    assert torch.allclose(infogan.generator_loss(fake), -D(fake).log().mean())
    assert torch.autograd.gradcheck(
        infogan.discriminator_loss, (real, fake)
    ) and torch.autograd.gradcheck(infogan.generator_loss, (fake,))
    zero = torch.zeros(4)
    assert infogan.discriminator_loss(zero, zero).item() == pytest.approx(
        2 * math.log(2)
    ) and infogan.generator_loss(zero).item() == pytest.approx(math.log(2))
    assert infogan.generator_loss(torch.tensor([-500.0])).item() == pytest.approx(
        500
    )  # log D would be infinite


def channel(seed, k=4, images=5, denominator=24):
    """P(x|c) of a channel from k equally likely codes to a few images, in 24ths, and every pair (c, x) as often as it happens."""
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(denominator, rng.dirichlet(np.full(images, 0.5)), size=k)
    pairs = [(c, x) for c in range(k) for x in range(images) for _ in range(counts[c, x])]
    return (
        counts / denominator,
        torch.tensor([c for c, _ in pairs]),
        torch.tensor([x for _, x in pairs]),
    )


@pytest.mark.parametrize("seed", range(5))
def test_the_bound_is_tight_for_the_posterior_and_a_bound_for_any_other_q(seed):
    p, c, x = channel(seed)
    joint = p / len(p)
    information = sum(
        joint[i, j] * math.log(joint[i, j] / joint[i].sum() / joint[:, j].sum())
        for i in range(4)
        for j in range(5)
        if joint[i, j]
    )
    posterior = torch.tensor(joint / joint.sum(0).clip(1e-300)).t()  # [images, k]
    assert infogan.mutual_information((posterior + 1e-300).log()[x], c).item() == pytest.approx(
        information, abs=1e-9
    )
    torch.manual_seed(seed)
    others = [
        infogan.mutual_information(torch.randn(5, 4, dtype=torch.float64)[x], c).item()
        for _ in range(50)
    ]
    assert max(others) < information and min(others) < 0
    assert infogan.mutual_information(torch.zeros(len(c), 4), c).item() == pytest.approx(
        0, abs=1e-6
    )  # Q knows nothing
    assert infogan.mutual_information(100.0 * F.one_hot(c, 4), c).item() == pytest.approx(
        math.log(4)
    )  # Q knows all
    wrong = 100.0 * F.one_hot((c + 1) % 4, 4)
    assert infogan.mutual_information(wrong, c) < -90  # no floor: a Q that is sure and wrong


def test_category_loss_takes_logits_not_probabilities():
    torch.manual_seed(0)
    logits, c = torch.randn(6, 10, dtype=torch.float64, requires_grad=True), torch.randint(10, (6,))
    v = logits.tolist()
    truth = -sum(math.log(math.exp(v[n][c[n]]) / sum(map(math.exp, v[n]))) for n in range(6)) / 6
    assert infogan.category_loss(logits, c).item() == pytest.approx(
        truth
    ) and torch.autograd.gradcheck(lambda t: infogan.category_loss(t, c), logits)
    twice = infogan.category_loss((50.0 * F.one_hot(c, 10)).softmax(1), c).item()
    assert (
        twice == pytest.approx(math.log(1 + 9 / math.e), abs=1e-4)
        and infogan.category_loss(50.0 * F.one_hot(c, 10), c) < 1e-6
    )  # the double softmax of others


@pytest.mark.parametrize("learned", [False, True])
def test_continuous_loss_against_torch_distributions(learned):
    torch.manual_seed(0)
    mean, code, log_std = (
        torch.randn(8, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)
    )
    truth = (
        -torch.distributions.Normal(mean, log_std.exp() if learned else 1.0)
        .log_prob(code)
        .sum(1)
        .mean()
    )
    arguments = (mean, code, log_std) if learned else (mean, code)
    assert torch.allclose(infogan.continuous_loss(*arguments), truth) and torch.autograd.gradcheck(
        infogan.continuous_loss, arguments
    )
    assert infogan.continuous_loss(code, code).item() == pytest.approx(3 * 0.9189385)


# ---------------------------------------------------------------------------------------------------------- prior


def test_the_prior_and_the_generators_input():
    torch.manual_seed(0)
    opt = options("--categories", 5)
    category, continuous, noise = infogan.draw_prior(opt, 10_000, "cpu", far=5000)
    assert (
        category.shape == (15_000,)
        and continuous.shape == (15_000, 2)
        and noise.shape == (15_000, 62)
    )
    assert (torch.bincount(category, minlength=5) / 15_000 - 0.2).abs().max() < 0.015
    for part, reach in ((continuous[:10_000], 1), (continuous[10_000:], 2), (noise, 1)):
        assert (
            abs(part.mean()) < 0.03
            and abs(part.var() - reach**2 / 3) < 0.03 * reach**2
            and reach * 0.99 < part.abs().max() <= reach
        )
    made = infogan.generator_input(opt, category, continuous, noise)
    assert (
        made.shape == (15_000, 62 + 5 + 2)
        and torch.equal(made[:, :62], noise)
        and torch.equal(made[:, 62:67].argmax(1), category)
    )
    assert torch.equal(made[:, 62:67].sum(1), torch.ones(15_000)) and torch.equal(
        made[:, 67:], continuous
    )
    opt = options("--categories", 0, "--continuous", 3)
    category, continuous, noise = infogan.draw_prior(opt, 4, "cpu")
    assert category is None and infogan.generator_input(opt, category, continuous, noise).shape == (
        4,
        65,
    )


def test_warps_are_small_and_another_for_each_image():
    torch.manual_seed(0)
    x = common.to_float(mnist(300).x)
    with torch.autocast("cpu", torch.bfloat16):  # the grid is not rounded
        assert torch.allclose(infogan.warp(x, 0.0), x, atol=1e-5)
    warped = infogan.warp(x)
    assert warped.shape == x.shape and (warped[0] - infogan.warp(x)[0]).abs().max() > 0.1
    judge = common.load_judge("mnist")
    assert (judge.classify(warped) == judge.classify(x)).float().mean() > 0.97  # the digit survives


def test_warps_of_no_lean_move_rows_and_columns_alone():
    torch.manual_seed(0)
    bars, lines = torch.zeros(2, 1, 28, 28), torch.zeros(2, 1, 28, 28)
    bars[..., 10:18, :] = 1  # as long as the image: a turn or a shear would show
    lines[..., :, 10:18] = 1
    upright = [infogan.warp(x, 1.0, torch.tensor([0.0, 1.0])) for x in (bars, lines)]
    middle = [upright[0][..., 4:24], upright[1][..., 4:24, :]]
    spread = [(part.amax(d) - part.amin(d)).amax((1, 2)) for part, d in zip(middle, (3, 2))]
    assert all(s[0] < 1e-4 and s[1] > 0.2 for s in spread)


@pytest.mark.parametrize("lean", [1.0, torch.tensor([1.0, 0.0])], ids=["all", "the first"])
def test_warps_have_the_sizes_they_name(monkeypatch, lean):
    """The map of each of two images, read from what the sampling grid is made of."""
    maps = []
    affine_grid = F.affine_grid
    monkeypatch.setattr(
        infogan.F,
        "affine_grid",
        lambda theta, *words, **more: maps.append(theta) or affine_grid(theta, *words, **more),
    )
    draws = torch.tensor(
        [[0.5, -0.4], [0.0, 0.8], [0.6, -1.0], [-0.2, 0.7]]
    )  # angle, shear, wide, high, each a share of its range
    shift = torch.tensor([[[0.5], [-1.0]], [[1.0], [0.0]]])
    feed = [*draws, shift]
    monkeypatch.setattr(infogan.torch, "rand", lambda *shape, **more: (feed.pop(0) + 1) / 2)
    infogan.warp(torch.zeros(2, 1, 28, 28), 2.0, lean)
    for n in range(2):
        share = float(lean if isinstance(lean, float) else lean[n])
        angle, shear, wide, high = (
            draws[:, n] * torch.tensor([0.15 * share, 0.3 * share, 0.15, 0.15]) * 2
        ).tolist()
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        assert np.allclose(
            maps[0][n, :, :2],
            np.diag([1 + wide, 1 + high]) @ (turn + [[0, shear], [0, 0]]),
            atol=1e-6,
        )
        assert np.allclose(
            maps[0][n, :, 2], 2 * shift[n, :, 0] * 2 / 14
        )  # two pixels of 28, the image being two wide


# --------------------------------------------------------------------------------------------------------- updates


def by_hand(nets, x, generated, code, opt, weights):
    """Losses of D with Q, and of G, spelled out; the caller takes gradients."""
    D = lambda h: torch.sigmoid(nets.head(h)[:, 0])  # noqa: E731
    category, continuous, n = code[0], code[1][: len(x)], len(x)
    features = nets.trunk(generated[:n])
    loss_d = -(D(nets.trunk(x)).log() + (1 - D(features)).log()).mean()
    loss_g = -D(features).log().mean()
    out = nets.q.out(nets.q.hidden(features.detach() if opt.baseline else features))
    logits, rest = out[:, :10], out[:, 10:]
    told = math.log(10) + logits.log_softmax(1).gather(1, category[:n, None]).mean()
    scored = torch.full(
        (n, 2), 1 / n
    )  # each image's share in the mean over the images from which a code is read
    if opt.warp:
        even = (torch.arange(len(generated)) % 2 == 0).float()
        h = nets.trunk(infogan.warp(generated, opt.warp, 1 - even))
        out = nets.q.out(nets.q.hidden(h.detach() if opt.baseline else h))
        logits, rest = out[:, :10], out[:n, 10:]
        scored = torch.stack(
            [even[:n] / even[:n].sum(), (1 - even[:n]) / (1 - even[:n]).sum()], 1
        )  # the slant from upright copies, the other from leaning ones
    std = rest[:, 2:].exp() if opt.learned_std else torch.ones(2)
    continuous = -(torch.distributions.Normal(rest[:, :2], std).log_prob(continuous) * scored).sum()
    return (
        loss_d,
        -weights[0] * logits.log_softmax(1).gather(1, category[: len(logits), None]).mean()
        + weights[1] * continuous,
        loss_g,
        told,
        continuous,
    )


@pytest.mark.parametrize(
    "words",
    [
        ["--warp", ".5"],
        ["--learned-std"],
        ["--baseline"],
        ["--baseline", "--warp", "1"],
        ["--recipe", "paper", "--learned-std"],
    ],
    ids=["ours", "ours-learned", "baseline", "baseline-warp", "paper"],
)
def test_steps_are_the_papers_and_move_whom_they_should(words):
    """D, the trunk and Q go down D's loss and the information; G down its own and the information; the baseline's G gets nothing, its trunk nothing of Q."""
    torch.manual_seed(0)
    opt = options(*words)
    nets = infogan.build(opt)
    for p in nets.gen.parameters():  # images that differ, so that the information matters
        p.data.mul_(3)
    x, code = torch.rand(8, 1, 28, 28), infogan.draw_prior(opt, 8, "cpu", 4 if opt.warp else 0)
    fake = torch.sigmoid(nets.gen(infogan.generator_input(opt, *code))).detach()
    mine, before = copy.deepcopy(nets), state(nets)
    torch.manual_seed(3)
    loss_d, info, _, told, continuous = by_hand(mine, x, fake, code, opt, (2.0, 0.7))
    body = {
        f"{k}.{n}": p
        for k in ("trunk", "head", "q")
        for n, p in getattr(mine, k).named_parameters()
    }
    truth = {
        name: (p - 0.1 * g).detach()
        for (name, p), g in zip(
            body.items(), torch.autograd.grad(loss_d + info, list(body.values()))
        )
    }
    torch.manual_seed(3)
    answer = infogan.discriminator_step(
        nets,
        torch.optim.SGD(
            [p for net in (nets.trunk, nets.head, nets.q) for p in net.parameters()], 0.1
        ),
        x,
        fake,
        code,
        (2.0, 0.7),
        opt,
    )
    assert (
        torch.allclose(answer[0], loss_d)
        and torch.allclose(answer[1], continuous)
        and torch.allclose(answer[2], told, atol=1e-5)
        and not answer[2].requires_grad
    )
    assert torch.allclose(2 * answer[3] + 0.7 * answer[1], info, atol=1e-5)
    after = state(nets)
    assert moved(before, after) == {"trunk", "head", "q"} and close(before, after, truth)

    mine, before = copy.deepcopy(nets), after
    torch.manual_seed(4)
    fake = torch.sigmoid(mine.gen(infogan.generator_input(opt, *code)))
    _, info, loss_g, _, _ = by_hand(mine, x, fake, code, opt, (2.0, 0.7))
    gen = {f"gen.{n}": p for n, p in mine.gen.named_parameters()}
    truth = {
        name: (p - 0.1 * g).detach()
        for (name, p), g in zip(
            gen.items(),
            torch.autograd.grad(loss_g + (0 if opt.baseline else info), list(gen.values())),
        )
    }
    torch.manual_seed(4)
    fake = torch.sigmoid(nets.gen(infogan.generator_input(opt, *code)))
    answer = infogan.generator_step(
        nets, torch.optim.SGD(nets.gen.parameters(), 0.1), fake, 8, code, (2.0, 0.7), opt
    )
    after = state(nets)
    assert (
        torch.allclose(answer, loss_g)
        and moved(before, after) == {"gen"}
        and close(before, after, truth)
    )
    assert all(p.grad is None for net in vars(nets).values() for p in net.parameters())


def close(before, after, truth):
    return all(
        torch.allclose(
            after[name],
            truth[name],
            atol=max(2e-3 * (truth[name] - before[name]).abs().max().item(), 1e-6),
        )
        for name in truth
    )


def test_the_informations_gradient_reaches_g_trunk_and_q_and_not_ds_head():
    torch.manual_seed(0)
    for words in ([], ["--recipe", "paper"]):
        opt = options(*words)
        nets = infogan.build(opt)
        code = infogan.draw_prior(opt, 6, "cpu", 2 if opt.far else 0)
        fake = torch.sigmoid(nets.gen(infogan.generator_input(opt, *code)))
        loss = sum(infogan.information_losses(nets, fake, nets.trunk(fake[:6]), code, opt))
        for name, net in vars(nets).items():
            gradients = torch.autograd.grad(
                loss, list(net.parameters()), retain_graph=True, allow_unused=True
            )
            assert (
                all(g is None for g in gradients)
                if name == "head"
                else all(g is not None and g.abs().sum() > 0 for g in gradients)
            ), name


def test_the_same_code_scores_the_image_it_made(monkeypatch):
    """A G that writes its category into a pixel and a trunk and Q that read it there: L_I is log K in an update, and about 0 or less when the codes are shuffled."""
    opt = options("--recipe", "paper", "--continuous", 1)

    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(9.0))  # right with probability .999

        def forward(self, features):
            return (
                self.weight * F.one_hot((features[:, 0] * 9).round().long(), 10),
                features[:, :1] * self.weight,
                None,
            )

    class Writer(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, z_and_c):
            pixel = torch.logit((z_and_c[:, 62:72].argmax(1) / 9).clamp(1e-4, 1 - 1e-4))
            return self.weight * pixel[:, None, None, None].expand(-1, 1, 28, 28)

    nets = types.SimpleNamespace(
        trunk=nn.Flatten(), head=nn.Linear(784, 1), q=Reader(), gen=Writer()
    )
    game = infogan.Game(nets, opt, torch.device("cpu"), 3)
    right = infogan.update(game, torch.rand(400, 1, 28, 28), 0)[3]
    assert right.item() == pytest.approx(math.log(10), abs=0.02) and game.curve.nats.tolist() == [
        right.item(),
        0,
        0,
    ]
    shuffled = infogan.discriminator_step
    monkeypatch.setattr(
        infogan,
        "discriminator_step",
        lambda nets, o, x, fake, code, *rest: shuffled(
            nets, o, x, fake, (code[0].roll(1), *code[1:]), *rest
        ),
    )
    assert infogan.update(game, torch.rand(400, 1, 28, 28), 1)[3] < 0.1


def test_real_and_generated_images_have_their_own_statistics():
    torch.manual_seed(0)
    opt = options()
    nets = infogan.build(opt)
    seen = []
    nets.trunk.register_forward_hook(
        lambda net, inputs, output: seen.append((len(inputs[0]), output.detach()))
    )
    x, still = (
        torch.rand(8, 1, 28, 28),
        torch.optim.SGD(
            [p for net in (nets.trunk, nets.head, nets.q) for p in net.parameters()], 0.0
        ),
    )
    for fake in (torch.rand(12, 1, 28, 28), 5 * torch.rand(12, 1, 28, 28)):
        infogan.discriminator_step(
            nets, still, x, fake, infogan.draw_prior(opt, 8, "cpu", 4), (1.0, 1.0), opt
        )
    assert [n for n, _ in seen] == [
        8,
        8,
        12,
    ] * 2  # generated, real; of the far codes' images warped ones alone
    assert torch.equal(seen[1][1], seen[4][1]) and not torch.allclose(seen[0][1], seen[3][1])


def trained(*words, images=40):
    opt = options("--batch-size", 10, "--out", "run", *words)
    run = common.Run("infogan", opt)
    data = mnist(images)
    nets = infogan.build(opt)
    baseline = infogan.build(opt) if opt.baseline_epochs else None
    return opt, run, nets, baseline, infogan.train(run, nets, baseline, data)


def test_g_is_judged_by_the_new_discriminator_in_bf16(monkeypatch):
    """Converted weights are kept within a part of an update, not from D's step to G's."""
    opt = options("--lr-discriminator", 0.01)
    game = infogan.Game(infogan.build(opt), opt, torch.device("cpu"), 1)
    old, seen = copy.deepcopy(game.nets), {}
    real = infogan.generator_step

    def spy(nets, optimiser, fake, n, *rest):
        seen["fake"], seen["new"] = fake[:n].detach().float(), copy.deepcopy(nets)
        return real(nets, optimiser, fake, n, *rest)

    monkeypatch.setattr(infogan, "generator_step", spy)
    loss = infogan.update(
        game,
        torch.rand(16, 1, 28, 28),
        0,
        lambda: torch.autocast("cpu", torch.bfloat16, cache_enabled=True),
    )[1].item()
    new, stale = (
        infogan.generator_loss(nets.head(nets.trunk(seen["fake"]))[:, 0]).item()
        for nets in (seen["new"], old)
    )
    assert abs(loss - new) < 0.1 * abs(new - stale), (loss, new, stale)


def test_continuous_codes_join_late_and_the_regular_gan_ends_early(monkeypatch):
    calls = []
    real = infogan.discriminator_step

    def spy(nets, optimiser, x, generated, code, weights, opt):
        calls.append(
            types.SimpleNamespace(
                nets=nets,
                n=len(generated),
                far=code[1].abs().amax(1) > 1,
                weights=weights,
                opt=opt,
                optimiser=optimiser,
                lr=optimiser.param_groups[0]["lr"],
            )
        )
        return real(nets, optimiser, x, generated, code, weights, opt)

    monkeypatch.setattr(infogan, "discriminator_step", spy)
    settled, settle = [], infogan.settle
    monkeypatch.setattr(
        infogan,
        "settle",
        lambda nets, images, opt: settled.append((nets, opt.far)) or settle(nets, images, opt),
    )
    opt, run, nets, baseline, curves = trained(
        "--epochs",
        2,
        "--baseline-epochs",
        1,
        "--continuous-start",
        0.75,
        "--continuous-weight",
        4,
        "--far",
        0.5,
        "--category-weight",
        2,
        images=20,
    )
    ours, others = ([call for call in calls if call.nets is which] for which in (nets, baseline))
    assert [(c.n, c.weights) for c in ours] == [
        (15, (2, 0)),
        (15, (2, 0)),
        (15, (2, 0)),
        (15, (2, 4)),
    ] and [(c.n, c.weights) for c in others] == [(10, (2, 1))] * 2
    assert sum(c.far[10:].sum() for c in ours) > 6 and not any(
        c.far[:10].any() for c in (*ours, *others)
    )
    assert settled == [(nets, 0.5), (baseline, 0)]  # each on codes like those it was trained with
    assert all(c.opt.baseline and not c.opt.warp for c in others) and not any(
        c.opt.baseline for c in ours
    )
    assert [len(curve) for curve in curves] == [4, 2] and all(
        (curve != 0).all() for curve in curves
    )
    assert [c.lr for c in ours] == pytest.approx([2e-4, 2e-4, 2e-4, 1e-4]) and [
        c.lr for c in others
    ] == pytest.approx([2e-4, 2e-4])  # a half, then down, each its own
    assert run.tracked["optimiser_g"].param_groups[0]["lr"] == pytest.approx(5e-4) and ours[
        0
    ].optimiser.param_groups[0]["betas"] == (0.5, 0.999)
    assert ours[0].optimiser is run.tracked["optimiser_d"]
    for which, prefix in ((nets, ""), (baseline, "baseline_")):  # who moves whom
        for optimiser, moving in (
            ("optimiser_d", (which.trunk, which.head, which.q)),
            ("optimiser_g", (which.gen,)),
        ):
            (group,) = run.tracked[prefix + optimiser].param_groups
            assert {id(p) for p in group["params"]} == {
                id(p) for net in moving for p in net.parameters()
            }
    assert not any(
        m.training
        for side in (nets, baseline)
        for net in vars(side).values()
        for m in net.modules()
    )


def test_the_log_and_the_precision_are_what_they_say(monkeypatch):
    seen, kinds = [], set()
    real, trunk = infogan.update, infogan.Trunk.forward

    def forward(net, x):
        h = trunk(net, x)
        if net.training and torch.is_grad_enabled():
            kinds.add(h.dtype)
        return h

    monkeypatch.setattr(infogan, "update", lambda *words: seen.append(real(*words)) or seen[-1])
    monkeypatch.setattr(infogan.Trunk, "forward", forward)
    opt, run, *_ = trained("--epochs", 1, "--precision", "bf16", "--baseline-epochs", 0, images=20)
    mean = (
        torch.stack([torch.stack([v.detach() for v in losses]) for losses in seen]).mean(0).tolist()
    )
    assert [
        run.history[0][k]
        for k in ("discriminator", "generator", "continuous", "mutual_information", "category")
    ] == pytest.approx(mean, rel=1e-4) and kinds == {torch.bfloat16}


def test_batch_norm_is_settled_on_what_is_scored(monkeypatch):
    torch.manual_seed(0)
    opt = options("--far", 0)
    nets, data = infogan.build(opt), mnist(300)
    for net in vars(nets).values():
        for m in net.modules():
            if hasattr(m, "running_mean"):
                m.running_mean.fill_(7.0)
                m.num_batches_tracked.fill_(10_000)
    infogan.settle(nets, data.x, opt)
    x = common.to_float(data.x)
    h = nets.trunk.net[2](nets.trunk.net[1](nets.trunk.net[0](x)))
    assert torch.allclose(nets.trunk.net[3].running_mean, h.mean((0, 2, 3)), atol=1e-5)
    h = nets.q.hidden[0](nets.trunk(x))  # of real images: Q has seen none in training
    assert torch.allclose(nets.q.hidden[1].running_mean, h.mean(0), atol=1e-4) and torch.allclose(
        nets.q.hidden[1].running_var, h.var(0), rtol=0.02
    )
    w = nets.gen.dense[
        0
    ].weight  # of the prior: uniform parts of variance 1/3, one-hot parts of .09
    variance = (w[:, :62].square().sum(1) + w[:, 72:].square().sum(1)) / 3 + w[:, 62:72].var(
        1, unbiased=False
    ) / 1.0
    assert torch.allclose(nets.gen.dense[1].running_var, variance, rtol=0.4)
    before, drawn = torch.get_rng_state(), []
    draw = infogan.draw_prior
    monkeypatch.setattr(
        infogan,
        "draw_prior",
        lambda opt, n, device, far: drawn.append((n, far)) or draw(opt, n, device, far),
    )
    infogan.settle(nets, data.x, options())
    assert torch.equal(before, torch.get_rng_state()) and drawn == [(300, 150)]


def test_networks_have_the_papers_sizes():
    nets = infogan.build(options())
    sizes = {name: sum(p.numel() for p in net.parameters()) for name, net in vars(nets).items()}
    assert sizes == {
        "trunk": 64 * 16 + 64 + 128 * 64 * 16 + 128 + 256 + 6272 * 1024 + 1024 + 2048,
        "head": 1025,
        "q": 1024 * 128 + 128 + 256 + 128 * 12 + 12,
        "gen": 74 * 1024
        + 1024
        + 2048
        + 1024 * 6272
        + 6272
        + 2 * 6272
        + 128 * 64 * 16
        + 64
        + 128
        + 64 * 16
        + 1,
    }
    assert nets.trunk(torch.rand(3, 1, 28, 28)).shape == (3, 1024) and nets.gen(
        torch.rand(3, 74)
    ).shape == (3, 1, 28, 28)
    assert (
        abs(nets.trunk.net[6].weight.std() - 0.02) < 1e-3
        and abs(nets.gen.dense[4].weight.mean() - 1) < 0.002
        and (nets.gen.dense[0].bias == 0).all()
    )
    assert all(
        abs(m.weight.mean() - 1) < 0.02
        for net in vars(nets).values()
        for m in net.modules()
        if hasattr(m, "running_mean")
    )
    assert sum(isinstance(m, nn.ReLU) for m in nets.gen.modules()) == 3 and not any(
        isinstance(m, nn.LeakyReLU) for m in nets.gen.modules()
    )
    logits, mean, log_std = infogan.QHead(7, 3, learned_std=True)(torch.rand(4, 1024))
    assert logits.shape == (4, 7) and mean.shape == log_std.shape == (4, 3)
    assert infogan.QHead(7, 3)(torch.rand(4, 1024))[2] is None
    slopes = {
        m.negative_slope
        for net in (nets.trunk, nets.q)
        for m in net.modules()
        if isinstance(m, nn.LeakyReLU)
    }
    assert slopes == {0.1} and {
        m.negative_slope
        for m in infogan.build(options("--slope", 0.01)).trunk.modules()
        if isinstance(m, nn.LeakyReLU)
    } == {0.01}


def test_defaults_and_the_papers_recipe():
    opt = options("--recipe", "paper")
    assert (
        opt.epochs * math.ceil(60_000 / opt.batch_size),
        opt.batch_size,
        opt.lr,
        opt.lr_discriminator,
        opt.beta1,
    ) == (5159, 128, 1e-3, 2e-4, 0.5)
    assert (
        opt.category_weight,
        opt.continuous_weight,
        opt.continuous_start,
        opt.warp,
        opt.far,
        opt.learned_std,
        opt.schedule,
    ) == (1, 1, 0, 0, 0, False, "constant")
    assert (opt.noise, opt.categories, opt.continuous) == (62, 10, 2)
    assert [infogan.schedule(done, opt) for done in (0, 0.9, 1)] == [1, 1, 1] and [
        infogan.schedule(done, options()) for done in (0, 0.5, 0.75, 1)
    ] == [1, 1, 0.5, 0.01]
    assert (
        options("--warp", 0, "--far", 0.3).far
        == 0
        == options("--baseline", "--far", 0.3).far
        == options("--categories", 0, "--warp", 1, "--far", 0.3).far
        == options("--continuous", 0, "--far", 0.3).far
        and options().far > 0
    )
    assert options("--categories", 0, "--warp", 1).warp == 0
    assert (
        options("--baseline").baseline_epochs == 0 == options("--categories", 5).baseline_epochs
        and options("--baseline").warp == 0
        and options().baseline_epochs == 2
    )
    assert (
        options("--epochs", 1).baseline_epochs
        == 1
        == options("--epochs", 1, "--baseline-epochs", 5).baseline_epochs
    )
    assert (
        options("--categories", 0).continuous_start == 0
        and f"lambda = {options().continuous_weight:g}" in infogan.__doc__
        and f" {options().epochs} epochs" in infogan.__doc__
    )
    assert options("--recipe", "paper", "--warp", 0.5).warp == 0.5
    names = {
        infogan.run_name(options(*words))
        for words in (
            [],
            ["--baseline"],
            ["--categories", 20],
            ["--dataset", "fashion"],
            ["--dataset", "fashion", "--baseline"],
            ["--recipe", "paper"],
        )
    }
    assert names == {"mnist", "baseline", "mnist-k20", "fashion", "fashion-baseline", "mnist-paper"}


def test_tiny_training_informs_and_the_regular_gan_does_not():
    """Four kinds of picture, seconds: the code ends up saying which, unless G is not rewarded for it."""
    told = {}
    for words in (["--recipe", "paper"], ["--baseline"]):
        torch.manual_seed(0)
        opt = options("--categories", 4, "--continuous", 0, "--noise", 40, *words)
        game = infogan.Game(infogan.build(opt), opt, torch.device("cpu"), 30)
        for step in range(30):
            x = torch.zeros(20, 1, 28, 28)
            for k in range(4):
                x[k::4, :, 14 * (k // 2) :, 14 * (k % 2) :][:, :, :14, :14] = 1
            infogan.update(game, x, step)
        told[opt.baseline] = game.curve.nats[-10:].mean().item()
    assert told[False] > 0.8 and told[True] < 0.3, told  # log 4 = 1.39


# ---------------------------------------------------------------------------------------------------------- scores


def bar(lean, width, length=24):
    """A stroke that leans by the tangent `lean`, `width` pixels wide, with soft edges."""
    y, x = torch.meshgrid(torch.arange(28.0) - 13.5, torch.arange(28.0) - 13.5, indexing="ij")
    across = (x + lean * y).abs()  # y points down: positive leans to the right
    return ((width / 2 + 0.5 - across).clamp(0, 1) * (length / 2 + 0.5 - y.abs()).clamp(0, 1))[
        None, None
    ]


@pytest.mark.parametrize("lean", [-0.4, 0.0, 0.25])
@pytest.mark.parametrize("width", [2.0, 4.0])
def test_moments_of_bars(lean, width):
    slant, measured = infogan.image_moments(bar(lean, width))
    assert slant.item() == pytest.approx(lean, abs=0.02)
    assert infogan.image_moments(bar(lean, width + 1))[
        1
    ] > measured + 0.5 and measured.item() == pytest.approx(
        width / math.sqrt(1 + lean**2), rel=0.25
    )
    assert all(torch.isfinite(v).all() for v in infogan.image_moments(torch.zeros(2, 1, 28, 28)))


def test_within_group_r2_against_numpy():
    rng = np.random.default_rng(0)
    group, code = rng.integers(0, 3, 600), rng.uniform(-1, 1, 600)
    measure = np.array([0.5, -2.0, 0.0])[group] * code + 10 * group + 0.3 * rng.normal(size=600)
    left = total = 0
    for k in range(3):
        c, m = code[group == k], measure[group == k]
        left, total = (
            left + ((m - np.polyval(np.polyfit(c, m, 1), c)) ** 2).sum(),
            total + ((m - m.mean()) ** 2).sum(),
        )
    ours = infogan.within_group_r2(*(torch.tensor(v) for v in (code, measure, group)))
    assert ours == pytest.approx(1 - left / total) and 0.3 < ours < 0.95
    assert (
        infogan.within_group_r2(
            torch.tensor(code),
            torch.tensor(group) * 5.0 + 0 * torch.tensor(code),
            torch.tensor(group),
        )
        <= 1
    )
    assert (
        infogan.within_group_r2(
            torch.tensor(rng.uniform(-1, 1, 600)), torch.tensor(measure), torch.tensor(group)
        )
        < 0.03
    )


class Puppet(nn.Module):
    """A generator of real digits: show(category, continuous, noise) -> images in [0, 1]."""

    def __init__(self, show):
        super().__init__()
        self.show = show

    def forward(self, z_and_c):
        return torch.logit(
            self.show(z_and_c[:, 62:72].argmax(1), z_and_c[:, 72:], z_and_c[:, :62]).clamp(
                1e-4, 1 - 1e-4
            )
        )


def test_code_scores_of_generators_that_are_known():
    data, judge, opt = mnist(2000), common.load_judge("mnist"), options()
    assert (
        infogan.within_group_variance(
            torch.tensor([[0.0], [2.0], [5.0], [9.0]]), torch.tensor([0, 0, 1, 1])
        )
        == 2.5
    )
    right = judge.classify(common.to_float(data.x)) == data.y
    examples = torch.stack(
        [common.to_float(data.x[(data.y == k) & right][:20]) for k in range(10)]
    )  # [10, 20, 1, 28, 28]

    real = types.SimpleNamespace(
        x=(examples.flatten(0, 1) * 255).round().to(torch.uint8),
        y=torch.arange(10).repeat_interleave(20),
    )

    def digits(category, continuous, noise):
        return examples[category, (noise[:, 0].abs() * 19.99).long()]

    def leaning(category, continuous, noise):
        theta = torch.zeros(len(category), 2, 3)
        theta[:, 0, 0] = theta[:, 1, 1] = 1
        theta[:, 0, 1] = 0.5 * continuous[:, 1]  # the second code shears
        return F.grid_sample(
            digits(category, continuous, 0 * noise),
            F.affine_grid(theta, (len(category), 1, 28, 28), align_corners=False),
            align_corners=False,
        )

    cases = {
        "steady": digits,
        "leaning": leaning,
        "leaky": lambda c, u, z: digits((c + (u[:, 0] > 0)) % 10, u, 0 * z),
        "beyond": lambda c, u, z: digits((c + (u[:, 0] > 1.2)) % 10, u, 0 * z),
        "collapsed": lambda c, u, z: digits(0 * c + 3, u, z),
        "template": lambda c, u, z: digits(c, u, 0 * z),
        "merged": lambda c, u, z: digits(torch.where(z[:, 1] > 0, c, (c + 1) % 10), u, z),
    }
    scores = {}
    for name, show in cases.items():
        torch.manual_seed(0)
        scores[name] = infogan.code_scores(
            types.SimpleNamespace(gen=Puppet(show), head=nn.Linear(1, 1)), opt, judge, real, 600
        )
    assert (
        scores["steady"]["generated_purity"] == 100
        and scores["steady"]["identity_leak"] == 0 == scores["steady"]["identity_leak_inside"]
        and scores["steady"]["slant_r2"] < 0.06 > scores["steady"]["width_r2"]
    )
    assert scores["leaning"]["slant_r2"] > 0.95 and scores["leaning"]["identity_leak_inside"] < 25
    assert (
        scores["leaky"]["identity_leak"] == 50 == scores["leaky"]["identity_leak_inside"]
    )  # one of two codes, always
    assert (
        scores["beyond"]["identity_leak"] == 50
        and scores["beyond"]["identity_leak_inside"] == 0
        and scores["beyond"]["generated_purity"] == 100
    )
    assert (
        scores["collapsed"]["generated_purity"] == 100
        and scores["collapsed"]["generated_digits"] == 1
        and scores["steady"]["generated_digits"] == 10
    )
    assert (
        scores["steady"]["generated_diversity"] == pytest.approx(1, abs=0.08)
        and scores["template"]["generated_diversity"] < 1e-6
        and scores["template"]["generated_purity"] == 100
    )
    assert 45 < scores["merged"]["generated_purity"] < 58


def test_a_sweep_changes_one_code_alone():
    opt = options()
    category, continuous, noise = infogan.draw_prior(opt, 3, "cpu")
    kept = continuous.clone()
    c, u, z = infogan.sweep(opt, 1, 2.0, 5, category, continuous, noise)
    assert torch.equal(c.view(3, 5), category[:, None].expand(3, 5)) and torch.equal(
        z.view(3, 5, -1), noise[:, None].expand(3, 5, -1)
    )
    assert torch.equal(u.view(3, 5, 2)[..., 0], kept[:, :1].expand(3, 5)) and torch.equal(
        u.view(3, 5, 2)[..., 1], torch.linspace(-2, 2, 5).expand(3, 5)
    )
    assert torch.equal(continuous, kept)


def test_a_stroke_thinner_than_two_pixels_measures_about_two():
    assert [
        infogan.image_moments(bar(0.0, width))[1].item() for width in (0.5, 1.0, 1.5)
    ] == pytest.approx([2, 2, 2], abs=0.2)


def test_more_categories_than_images_are_scored():
    data = mnist(20)
    scores = infogan.cluster_scores(torch.eye(20, 30), torch.eye(20, 30), data, data, tries=1)
    assert scores["cluster_error_majority"] == 0 == scores[
        "kmeans_cluster_error_majority"
    ] and scores["cluster_error"] == pytest.approx(100 - 5 * len(data.y.unique()))


def test_cluster_scores_of_heads_that_are_known():
    data, test, judge = mnist(1500), mnist(400, 1), common.load_judge("mnist")
    with torch.no_grad():
        answers = [judge(common.to_float(part.x)) for part in (data, test)]
    heads = {
        "reads": lambda h: h,
        "renamed": lambda h: h.roll(3, 1),
        "one": lambda h: F.one_hot(torch.full((len(h),), 4), 10).float(),
        "merged": lambda h: h @ torch.eye(10)[[0, 1, 2, 3, 4, 3, 6, 7, 8, 4]],
    }  # 5 goes to 3, 9 to 4
    scores = {
        name: infogan.cluster_scores(*map(f, answers), data, test, tries=1)
        for name, f in heads.items()
    }
    assert (
        scores["reads"]["cluster_error"] < 2
        and scores["renamed"] == scores["reads"]
        and scores["reads"]["nmi"] > 0.96
    )
    commonest = torch.bincount(data.y).argmax()
    deserved = 100 * (test.y != commonest).float().mean().item()
    assert scores["one"]["cluster_error"] == pytest.approx(deserved) == scores["one"][
        "cluster_error_majority"
    ] and scores["one"]["nmi"] == pytest.approx(0, abs=1e-6)
    assert scores["merged"]["cluster_error"] > 10
    x, x_ = (common.to_float(part.x).flatten(1) for part in (data, test))
    centres = common.k_means(x, 10, tries=1)
    members, members_ = (torch.cdist(v, centres).argmin(1) for v in (x, x_))
    names = torch.stack(
        [torch.bincount(data.y[members == k], minlength=10).argmax() for k in range(10)]
    )
    assert scores["one"]["kmeans_cluster_error_majority"] == pytest.approx(
        100 * (names[members_] != test.y).float().mean().item()
    )
    names = common.match_clusters(-torch.cdist(x, centres), data.y)
    assert scores["one"]["kmeans_cluster_error"] == pytest.approx(
        100 * (names[members_] != test.y).float().mean().item()
    )
    order = infogan.display_order(heads["renamed"](answers[0]), data.y)
    assert common.match_clusters(heads["renamed"](answers[0]), data.y)[order].tolist() == list(
        range(10)
    )


def test_probes_are_of_the_layers_they_name(monkeypatch):
    torch.manual_seed(0)
    nets, data, test = infogan.build(options()), mnist(1000), mnist(300, 1)
    infogan.settle(nets, data.x, options())
    trunk = lambda: [infogan.features(nets, part.x) for part in (data, test)]  # noqa: E731
    scores = infogan.probe_scores(nets, trunk(), data, test, dry=True)
    assert set(scores) == {
        f"probe_error_{layer}_{labels}"
        for layer in ("trunk", "q_hidden", "untrained", "pixels")
        for labels in (100, "all")
    }
    x, x_ = (common.to_float(part.x) for part in (data, test))
    with torch.no_grad():
        codes = {
            "pixels": (x.flatten(1), x_.flatten(1)),
            "trunk": (nets.trunk(x), nets.trunk(x_)),
            "q_hidden": tuple(nets.q.hidden(nets.trunk(v)) for v in (x, x_)),
        }
    for name, (a, b) in codes.items():
        assert scores[f"probe_error_{name}_all"] == pytest.approx(
            common.probe(a, data.y, b, test.y, hidden=0, epochs=1).item(), abs=2.1
        ), name
    chosen = infogan.balanced(data.y, 100)
    assert scores["probe_error_pixels_100"] == pytest.approx(
        common.probe(
            x.flatten(1)[chosen], data.y[chosen], x_.flatten(1), test.y, hidden=0, epochs=1
        ).item(),
        abs=1,
    )
    asked = []
    with monkeypatch.context() as patch:
        patch.setattr(
            common, "probe", lambda *words, epochs, **more: asked.append(epochs) or torch.zeros(1)
        )
        infogan.probe_scores(nets, trunk(), data, test)
    assert asked == [2000, 200] * 4
    torch.manual_seed(1)
    nets = infogan.build(options())
    infogan.settle(nets, data.x, options())
    again = infogan.probe_scores(nets, trunk(), data, test, dry=True)
    assert (
        again["probe_error_untrained_all"] == scores["probe_error_untrained_all"]
        and again["probe_error_trunk_all"] != scores["probe_error_trunk_all"]
    )


def test_balanced_labels():
    y = mnist(3000).y
    chosen = infogan.balanced(y, 100)
    assert (
        torch.bincount(y[chosen]).tolist() == [10] * 10
        and len(set(chosen.tolist())) == 100
        and torch.equal(chosen, infogan.balanced(y, 100))
    )
    assert torch.equal(infogan.balanced(y, 3000), torch.arange(3000))


def test_curve_scores():
    opt = options()
    curve = torch.cat([torch.linspace(0, 2.3, 200), torch.full((150,), 2.29)])
    scores = infogan.curve_scores(curve, opt)
    assert scores["mutual_information"] == pytest.approx(2.29) and scores["log_k"] == pytest.approx(
        2.302585
    )
    means = [sum(curve[n - 20 : n].tolist()) / 20 for n in range(20, 351)]
    assert scores["steps_to_2.25"] == 20 + next(k for k, v in enumerate(means) if v >= 2.25)
    assert "steps_to_2.25" not in infogan.curve_scores(torch.full((50,), 0.1), opt)
    assert "steps_to_2.25" not in infogan.curve_scores(
        curve, options("--categories", 20)
    )  # log 20 is 3.0: no milestone there


def test_the_papers_numbers_stand_beside_the_runs_they_belong_to():
    names = ("mutual_information", "baseline_mutual_information", "cluster_error", "nmi")
    paper = lambda *words: {
        name: value
        for _, name, value, _ in infogan.table_rows(dict.fromkeys(names, 1.0), options(*words))
    }  # noqa: E731
    assert paper() == {
        "mutual_information": "2.30",
        "baseline_mutual_information": "near 0",
        "cluster_error": "5",
        "nmi": "-",
    }
    assert paper("--baseline") == {
        "mutual_information": "near 0",
        "baseline_mutual_information": "near 0",
        "cluster_error": "-",
        "nmi": "-",
    }
    assert (
        set(paper("--categories", 20).values())
        == set(paper("--dataset", "fashion").values())
        == {"-"}
    )


# ---------------------------------------------------------------------------------------------------- command line

RUNS = {
    "plain": (
        [],
        {
            "mutual_information",
            "baseline_mutual_information",
            "cluster_error",
            "nmi",
            "generated_purity",
            "slant_r2",
            "width_r2",
            "identity_leak",
            "probe_error_trunk_100",
            "probe_error_q_hidden_all",
            "probe_error_pixels_all",
        },
        {
            "information",
            "categories",
            "categories-baseline",
            "continuous-1",
            "continuous-2",
            "losses",
        },
    ),
    "baseline": (
        ["--baseline", "--recipe", "paper", "--categories", "12", "--continuous", "0"],
        {"mutual_information", "cluster_error_majority"},
        {"information", "categories"},
    ),
    "zero": (
        ["--categories", "0", "--learned-std", "--validation"],
        {"slant_r2", "probe_error_trunk_all"},
        {"continuous-1", "continuous-2"},
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_every_setting_runs_through(name, monkeypatch, capsys):
    arguments, metrics, figures = RUNS[name]
    drawn = {}
    for figure in ("figure_categories", "figure_information"):
        real = getattr(infogan, figure)
        monkeypatch.setattr(
            infogan,
            figure,
            lambda *words, real=real, figure=figure: (
                drawn.setdefault(figure, []).append(words[0]) or real(*words)
            ),
        )
    monkeypatch.setattr(sys, "argv", ["infogan.py", "--dry-run", *arguments])
    common.run_main(infogan.main, infogan.make_parser())
    (folder,) = common.Path("runs/infogan").iterdir()
    scores = json.loads((folder / "metrics.json").read_text())
    assert metrics <= set(scores) and all(
        isinstance(v, (int, float)) and math.isfinite(v) for v in scores.values()
    )
    assert {f.stem for f in folder.glob("*.png")} >= figures and all(
        f.stat().st_size > 2000 for f in folder.glob("*.png")
    )
    assert ("cluster_error" in scores) == (name != "zero") and ("slant_r2" in scores) == (
        name != "baseline"
    )
    table = capsys.readouterr().out.splitlines()
    assert (
        table[0].split() == ["score", "this", "run", "paper", "to", "compare"] and len(table) >= 9
    )
    nets = infogan.load(folder)
    assert not any(net.training for net in (nets.trunk, nets.head, nets.q, nets.gen))
    if name == "plain":  # as it was scored, batch norm and all
        data, test = mnist(300), mnist(200, 1)
        names = common.match_clusters(infogan.encode(nets, data.x)[0], data.y)
        assert common.cluster_error(
            infogan.encode(nets, test.x)[0], test.y, names
        ) == pytest.approx(scores["cluster_error"], abs=0.51)
        saved = common.read_checkpoint(folder, "infogan")["states"]
        (curves,) = drawn["figure_information"]
        assert torch.equal(curves["InfoGAN"].cpu(), saved["curve"]["nats"]) and torch.equal(
            curves["regular GAN"].cpu(), saved["baseline_curve"]["nats"]
        )
        assert [
            torch.equal(side.gen.up[3].bias.cpu(), saved[name]["up.3.bias"])
            for side, name in zip(drawn["figure_categories"], ("gen", "baseline_gen"))
        ] == [True, True]
        assert (
            scores["mutual_information"]
            == pytest.approx(saved["curve"]["nats"][-100:].mean().item())
            != scores["baseline_mutual_information"]
        )
        assert scores["baseline_mutual_information"] == pytest.approx(
            saved["baseline_curve"]["nats"][-100:].mean().item()
        )
        torch.manual_seed(0)
        again = infogan.code_scores(nets, nets.options, common.load_judge("mnist"), test, 500)
        assert again["width_r2"] == pytest.approx(
            scores["width_r2"], abs=0.09
        ) and infogan.generate(nets, nets.options, *infogan.draw_prior(nets.options, 3)).shape == (
            3,
            1,
            28,
            28,
        )


def test_the_leak_table_trains_what_is_missing(monkeypatch, capsys):
    trained = []

    def pretend(opt):  # a finished run, without the training
        trained.append((opt.baseline, opt.categories))
        opt.out = opt.out or f"runs/infogan/{'dry-run'}-{len(trained) + 1}"
        run = common.Run("infogan", opt, infogan.run_name(opt))
        return run.finish(
            {
                "cluster_error_majority": 10.0 + opt.categories,
                "probe_error_trunk_100": 5.0,
                "probe_error_untrained_100": 7.0,
                "probe_error_pixels_100": 9.0,
            }
        )

    def call():
        monkeypatch.setattr(sys, "argv", ["infogan.py", "--table", "leak", "--dry-run"])
        common.run_main(infogan.main, infogan.make_parser())
        return capsys.readouterr().out.split("trunk, 100")[1]  # behind what the runs print

    monkeypatch.setattr(infogan, "train_and_score", pretend)
    first = call()
    assert trained == [(True, 10), *((False, k) for k in (0, 2, 5, 10, 20, 30, 50))]
    lines = {line[:12].strip(): line[12:].split() for line in first.splitlines()[1:]}
    assert list(lines) == [
        "regular GAN",
        *(f"K = {k}" for k in infogan.LEAK_CATEGORIES),
        "untrained",
        "pixels",
    ]
    assert (
        lines["K = 50"][1] == "60.00"
        and lines["K = 2"][5] == "5.00"
        and lines["untrained"][5] == "7.00"
        and lines["pixels"][5] == "9.00"
    )
    folder = next(
        f
        for f in common.Path("runs/infogan").iterdir()
        if json.loads((f / "config.json").read_text())["settings"]["categories"] == 5
    )
    (folder / "metrics.json").unlink()  # one that was cut off
    assert all(
        json.loads((f / "config.json").read_text())["settings"]["table"] is None
        for f in common.Path("runs/infogan").iterdir()
    )  # plain commands find them
    assert call() == first and trained[8:] == [(False, 5)] and (folder / "metrics.json").exists()


@pytest.mark.parametrize(
    "words, sentence",
    [
        ([], "K = 0 and the regular GAN are trained without warps"),
        (["--warp", "1"], "K = 0 is trained without warps"),
        (["--recipe", "paper"], "no row is trained with warps"),
        (["--warp", "0", "--far", "0"], "no row is trained with warps"),
    ],
    ids=str,
)
def test_the_leak_table_says_which_rows_have_warps(words, sentence, monkeypatch, capsys):
    monkeypatch.setattr(infogan, "train_and_score", lambda opt: {})
    options = infogan.make_parser().parse_args(["--table", "leak", *words])
    infogan.refuse_idle(options)
    infogan.table(options)
    assert sentence in capsys.readouterr().out


@pytest.mark.parametrize("figure", ["categories", "sweep"])
def test_what_varies_in_figure_2(figure, monkeypatch):
    """Along a row the noise is the same, and all of the code but the one that the figure is about."""
    drawn = []
    monkeypatch.setattr(
        common,
        "figure_grid",
        lambda path, images, columns, *words, **more: drawn.append((images, columns)),
    )
    nets = types.SimpleNamespace(
        gen=Puppet(
            lambda c, u, z: torch.stack(
                [c / 9, (u[:, 0] + 2) / 4, (u[:, 1] + 2) / 4, (z[:, 0] + 1) / 2], 1
            ).view(-1, 1, 2, 2)
        ),
        head=nn.Linear(1, 1),
    )
    order = torch.tensor([3, 1, 4, 0, 5, 9, 2, 6, 8, 7])
    if figure == "categories":
        infogan.figure_categories(nets, options(), None, order, "words")
    else:
        infogan.figure_sweep(nets, options("--sweep", 1), None, 1, order)
    ((images, columns),) = drawn
    c, u, v, z = images.view(-1, columns, 4).unbind(2)
    same = lambda x: torch.allclose(
        x, x[:, :1].expand_as(x), atol=1e-6
    )  # the sigmoid's last bit depends on where in memory a number lies
    assert (
        same(z)
        and same(u)
        and len(z[:, 0].unique()) == len(z) == (5 if figure == "categories" else 10)
    )
    if figure == "categories":
        assert torch.allclose(c * 9, order.float().expand(5, 10), atol=2e-3) and same(v)
    else:
        assert (
            torch.allclose(c[:, 0] * 9, order.float(), atol=2e-3)
            and same(c)
            and torch.allclose(v, torch.linspace(0.25, 0.75, 11).expand(10, 11), atol=2e-3)
        )


SNIPPETS = {
    "Trunk": lambda f: (
        f()(torch.rand(4, 1, 28, 28)).shape == (4, 1024)
        and f(3, 32)(torch.rand(4, 3, 32, 32)).shape == (4, 1024)
    ),
    "QHead": lambda f: f()(torch.rand(4, 1024))[0].shape == (4, 10),
    "Generator": lambda f: (
        f()(torch.rand(4, 74)).shape == (4, 1, 28, 28)
        and f(20, 3, 32)(torch.rand(4, 20)).shape == (4, 3, 32, 32)
    ),
    "discriminator_loss": lambda f: f(torch.zeros(2), torch.zeros(2)) > 1,
    "generator_loss": lambda f: f(torch.zeros(2)) > 0.5,
    "category_loss": lambda f: f(torch.zeros(2, 10), torch.tensor([1, 2])) > 2,
    "mutual_information": lambda f: f(torch.zeros(2, 10), torch.tensor([1, 2])).abs() < 1e-6,
    "warp": lambda f: f(torch.rand(3, 1, 28, 28)).shape == (3, 1, 28, 28),
    "continuous_loss": lambda f: f(torch.zeros(2, 3), torch.ones(2, 3)) > 1,
}


@pytest.mark.parametrize("name", SNIPPETS)
def test_snippets_stand_alone(name):
    space = {"torch": torch, "nn": nn, "F": F, "math": math}
    for part in (["category_loss"] if name == "mutual_information" else []) + [name]:
        exec(inspect.getsource(getattr(infogan, part)), space)
    assert SNIPPETS[name](space[name])


def test_an_unfinished_run_is_not_loaded():
    trained("--epochs", 1, images=20)  # killed before its scores
    with pytest.raises(common.UserError, match="not finished"):
        infogan.load("run")


def test_a_stopped_training_goes_on_bit_for_bit(monkeypatch):
    """Stopped inside the first epoch, while the regular GAN is trained, too."""
    real = infogan.update

    def update(game, x, step, autocast):
        if step == 1 and not game.options.baseline and common.Path("part").exists() and not resumed:
            common.signal.raise_signal(common.signal.SIGINT)
        return real(game, x, step, autocast)

    monkeypatch.setattr(infogan, "update", update)
    resumed = False

    def go(folder, *more):
        opt = options(
            "--epochs",
            2,
            "--batch-size",
            10,
            "--baseline-epochs",
            1,
            "--continuous-start",
            0.5,
            "--precision",
            "auto",
            "--out",
            folder,
            *more,
        )
        run, data = common.Run("infogan", opt), mnist(20)
        infogan.train(run, infogan.build(opt), infogan.build(opt), data)

    go("whole")
    with pytest.raises(KeyboardInterrupt):
        go("part")
    resumed = True
    torch.manual_seed(99)  # whatever happened in between
    go("part", "--resume")
    whole, part = (
        torch.load(f"{name}/checkpoint.pt", weights_only=True) for name in ("whole", "part")
    )
    assert part["step"] == 4 and all(
        same(whole[key], part[key])
        for key in ("states", "history", "epoch", "step", "rng", "images")
    )


MISTAKES = [
    (["--categories", "1"], "0 or at least 2"),
    (["--categories", "0", "--continuous", "0"], "needs information"),
    (["--table", "leak", "--continuous", "0"], "row of K = 0"),
    (["--categories", "-1"], "at least 0"),
    (["--dataset", "sprites"], "grey images"),
    (["--dataset", "nothing"], "choose mnist, fashion or kmnist"),
    (["--batch-size", "2"], "at least 3"),
    (["--far", "2"], "from 0 to 1"),
    (["--table", "1"], "invalid choice"),
    (["--table", "leak", "--baseline"], "leave --out"),
    (["--table", "leak", "--categories", "5"], "--categories out"),
    (["--lr", "0"], "above 0"),
    (["--slope", "nan"], "at least 0"),
    (["--recipe", "paper", "--far", ".5"], "--far would do nothing"),
    (["--table", "leak", "--warp", "0", "--far", ".5"], "--far would do nothing"),
    (["--categories", "0", "--warp", "1"], "--warp would do nothing with --categories 0"),
    (["--categories", "0", "--category-weight", "2"], "--category-weight would do nothing"),
    (["--categories", "0", "--far", ".5"], "--far would do nothing with --categories 0"),
    (["--continuous", "0", "--sweep", "1"], "--sweep would do nothing with --continuous 0"),
    (["--continuous", "0", "--learned-std"], "--learned-std would do nothing"),
    (
        ["--continuous-weight", "0", "--continuous-start", ".5"],
        "--continuous-start would do nothing",
    ),
    (["--baseline", "--baseline-epochs", "1"], "--baseline-epochs would do nothing"),
]


@pytest.mark.parametrize(
    "arguments, words", MISTAKES, ids=lambda v: " ".join(v) if isinstance(v, list) else str(v)
)
def test_mistakes_end_with_one_line(arguments, words, complains):
    complains(infogan, arguments, words)


def test_a_training_that_breaks_says_where(command):
    done = command(
        "infogan.py",
        "--dry-run",
        "--lr",
        "1e9",
        "--precision",
        "fp32",
        "--out",
        "run",
        "--baseline-epochs",
        "0",
        "--epochs",
        "1",
    )
    assert (
        done.returncode == 2
        and "is not finite at step" in done.stderr
        and "Traceback" not in done.stderr
    )
    assert not common.Path("run/metrics.json").exists()


def test_help_tells_every_flag(command):
    text = " ".join(command("infogan.py", "--help").stdout.split())
    for action in infogan.make_parser()._actions:
        assert action.help and action.option_strings[-1] in text, action.dest
