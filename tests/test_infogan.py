"""infogan.py and its files in experiments/.

The bound against channels whose information is known, a step of training against a second
implementation, who gets which gradient, scores that catch degenerate models, the command line.
"""

import copy
import dataclasses
import functools
import gc
import inspect
import json
import math
import sys
from pathlib import Path

import common
import infogan
from experiments import command_line, infogan_regular, infogan_scores, run_folder, score, scores

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import fake_nets, narrow
from kills import same
from torch import nn

BODY = {"trunk", "d", "q"}
DRAW = infogan.draw_codes  # which tests replace


def settings(recipe="ours", categories=10, **changes):
    regular = recipe == "regular"
    plain = infogan_regular.recipe() if regular else infogan.recipe(recipe=recipe)
    plain = dataclasses.replace(plain, device="cpu", precision="fp32", out="run")
    return dataclasses.replace(plain, categories=categories, **changes)


def digits(count, test=False):
    return common.load_dataset("mnist")[test].take(slice(count))


# ---- Losses --------------------------------------------------------------------------------------


def test_adversarial_losses_against_their_formulas():
    torch.manual_seed(0)
    real, fake = torch.randn(2, 7, 1, dtype=torch.float64)
    D = torch.sigmoid
    assert torch.allclose(infogan.adversarial_loss(fake), -D(fake).log().mean())
    truth = -D(real).log().mean() - (1 - D(fake)).log().mean()
    assert torch.allclose(infogan.discriminator_loss(real, fake), truth)
    inputs = real.requires_grad_(), fake.requires_grad_()
    assert torch.autograd.gradcheck(infogan.discriminator_loss, inputs)
    zero = torch.zeros(4, 1)
    assert infogan.adversarial_loss(zero).item() == pytest.approx(math.log(2))
    assert infogan.discriminator_loss(zero, zero).item() == pytest.approx(2 * math.log(2))
    assert infogan.adversarial_loss(torch.tensor([-200.0])) == 200  # no overflow


def channel(seed, k=4, images=5, denominator=24):
    """P(x|c) of a channel from k equally likely codes to a few images, in 24ths, and every pair
    (c, x) as often as it happens."""
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(denominator, rng.dirichlet(np.full(images, 0.5)), size=k)
    pairs = []
    for c in range(k):
        for x in range(images):
            pairs += [(c, x)] * counts[c, x]
    return counts / denominator, *torch.tensor(pairs).t()


@pytest.mark.parametrize("seed", range(5))
def test_the_bound_is_tight_for_the_posterior_and_a_bound_for_any_other_q(seed):
    p, c, x = channel(seed)
    joint, information = p / len(p), 0.0
    for i in range(4):
        for j in range(5):
            if joint[i, j]:
                ratio = joint[i, j] / joint[i].sum() / joint[:, j].sum()
                information += joint[i, j] * math.log(ratio)
    posterior = torch.tensor(joint / joint.sum(0).clip(1e-300)).t()  # [images, k]
    c1 = infogan.one_hot(c, 4).double()
    bound = infogan.mutual_information((posterior + 1e-300).log()[x], c1).item()
    assert bound == pytest.approx(information, abs=1e-9)
    torch.manual_seed(seed)
    others = []
    for _ in range(50):
        logits = torch.randn(5, 4, dtype=torch.float64)
        others.append(infogan.mutual_information(logits[x], c1).item())
    assert max(others) < information and min(others) < 0


def test_the_bound_at_its_ends():
    c1 = torch.eye(4)
    assert infogan.mutual_information(torch.zeros(4, 4), c1).item() == pytest.approx(0, abs=1e-6)
    assert infogan.mutual_information(100 * c1, c1).item() == pytest.approx(math.log(4))
    assert infogan.mutual_information(100 * c1.roll(1, 0), c1) < -90  # sure and wrong: no floor


def test_category_loss_takes_logits_not_probabilities():
    torch.manual_seed(0)
    logits, c = torch.randn(6, 10, dtype=torch.float64), torch.randint(10, (6,))
    c1 = infogan.one_hot(c, 10).double()
    truth = 0.0
    for row, k in zip(logits.tolist(), c.tolist()):
        truth -= math.log(math.exp(row[k]) / sum(map(math.exp, row))) / 6
    assert infogan.category_loss(logits, c1).item() == pytest.approx(truth)
    assert torch.autograd.gradcheck(infogan.category_loss, (logits.requires_grad_(), c1))
    twice = infogan.category_loss((50 * c1).softmax(1), c1).item()  # a softmax too many
    assert twice == pytest.approx(math.log(1 + 9 / math.e), abs=1e-4)
    assert infogan.category_loss(50 * c1, c1) < 1e-6
    assert infogan.category_loss(torch.zeros(3, 0), torch.zeros(3, 0)) == 0  # no category


def test_lambda_4_gives_the_gradient_of_a_deviation_of_one_half():
    mean, c2 = torch.randn(5, 2, requires_grad=True), torch.rand(5, 2)
    narrow = -torch.distributions.Normal(mean, 0.5).log_prob(c2).sum(1).mean()
    (wanted,) = torch.autograd.grad(narrow, mean)
    (found,) = torch.autograd.grad(4 * infogan.continuous_loss(mean, c2), mean)
    torch.testing.assert_close(found, wanted)


def test_continuous_loss_against_torch_distributions():
    torch.manual_seed(0)
    mean, c2 = torch.randn(2, 8, 3, dtype=torch.float64)
    truth = -torch.distributions.Normal(mean, 1.0).log_prob(c2).sum(1).mean()
    assert torch.allclose(infogan.continuous_loss(mean, c2), truth)
    assert torch.autograd.gradcheck(infogan.continuous_loss, (mean.requires_grad_(), c2))
    assert infogan.continuous_loss(c2, c2).item() == pytest.approx(3 * 0.9189385)
    assert infogan.continuous_loss(torch.zeros(3, 0), torch.zeros(3, 0)) == 0


def test_split_loss_reads_the_first_number_from_upright_copies_and_the_rest_from_leaning_ones():
    torch.manual_seed(0)
    mean, c2 = torch.randn(2, 7, 3, dtype=torch.float64)
    normal = torch.distributions.Normal(mean, 1.0).log_prob(c2)
    truth = -normal[[0, 2, 4, 6], 0].mean() - normal[[1, 3, 5], 1:].sum(1).mean()
    assert torch.allclose(infogan.split_loss(mean, c2), truth)


# ---- Codes and warps -----------------------------------------------------------------------------


def test_codes_are_of_the_prior():
    torch.manual_seed(0)
    z, c1, c2 = infogan.draw_codes(settings(categories=5), 10_000, "cpu", far=5000)
    assert z.shape == (15_000, 62) and c1.shape == (15_000, 5) and c2.shape == (15_000, 2)
    assert torch.equal(c1.sum(1), torch.ones(15_000)) and set(c1.unique().tolist()) == {0, 1}
    assert (c1.mean(0) - 0.2).abs().max() < 0.015
    for part, reach in ((c2[:10_000], 1), (c2[10_000:], 2), (z, 1)):
        assert abs(part.mean()) < 0.03 and abs(part.var() - reach**2 / 3) < 0.03 * reach**2
        assert reach * 0.99 < part.abs().max() <= reach
    z, c1, c2 = infogan.draw_codes(settings(categories=0, continuous=3), 4, "cpu")
    assert z.shape == (4, 62) and c1.shape == (4, 0) and c2.shape == (4, 3)


def test_warps_are_small_and_another_for_each_image():
    torch.manual_seed(0)
    x = common.to_float(digits(300).x)
    with torch.autocast("cpu", torch.bfloat16):  # the grid is not rounded
        assert torch.allclose(infogan.warp(x, 0.0), x, atol=1e-5)
    warped, judge = infogan.warp(x), scores.load_judge("mnist")
    assert warped.shape == x.shape and (warped[0] - infogan.warp(x)[0]).abs().max() > 0.1
    assert (judge.classify(warped) == judge.classify(x)).float().mean() > 0.97  # the digit survives


def test_images_of_even_index_stay_upright_and_the_others_lean():
    torch.manual_seed(0)
    rows, columns = torch.zeros(2, 1, 28, 28), torch.zeros(2, 1, 28, 28)
    rows[..., 10:18, :] = 1  # as long as the image: a turn or a shear would show
    columns[..., 10:18] = 1
    along_rows, along_columns = infogan.warp(rows)[..., 4:24], infogan.warp(columns)[..., 4:24, :]
    for part, dim in ((along_rows, 3), (along_columns, 2)):
        spread = (part.amax(dim) - part.amin(dim)).amax((1, 2))
        assert spread[0] < 1e-4 and spread[1] > 0.2


def test_warps_have_the_sizes_they_name(monkeypatch):
    """The maps, read from what the sampling grid is made of."""
    maps, affine_grid = [], F.affine_grid

    def spy(theta, *words, **more):
        maps.append(theta)
        return affine_grid(theta, *words, **more)

    shares = torch.tensor([[0.5, -0.4], [0.0, 0.8], [0.6, -1.0], [-0.2, 0.7]])
    shift = torch.tensor([[[0.5], [-1.0]], [[1.0], [0.0]]])
    feed = [*shares, shift]  # angle, shear, wide, high, each a share of its range
    monkeypatch.setattr(F, "affine_grid", spy)
    monkeypatch.setattr(torch, "rand", lambda *shape, **more: (feed.pop(0) + 1) / 2)
    infogan.warp(torch.zeros(2, 1, 28, 28), 2.0)
    for n, lean in ((0, 0.0), (1, 1.0)):
        ranges = torch.tensor([0.15 * lean, 0.3 * lean, 0.15, 0.15])
        angle, shear, wide, high = (2 * shares[:, n] * ranges).tolist()
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        truth = np.diag([1 + wide, 1 + high]) @ (turn + [[0, shear], [0, 0]])
        assert np.allclose(maps[0][n, :, :2], truth, atol=1e-6)
        assert np.allclose(maps[0][n, :, 2], 2 * shift[n, :, 0] * 2 / 14)  # 2 of 28; 2 units wide


# ---- Networks ------------------------------------------------------------------------------------


def test_networks_have_the_papers_sizes():
    nets = infogan.build(settings())
    sizes = {}
    for name in ("trunk", "d", "q", "gen"):
        sizes[name] = sum(p.numel() for p in getattr(nets, name).parameters())
    convs = 64 * 16 + 64 + 128 * 64 * 16 + 128 + 256
    assert sizes["trunk"] == convs + 6272 * 1024 + 1024 + 2048
    assert sizes["d"] == 1025 and sizes["q"] == 1024 * 128 + 128 + 256 + 128 * 12 + 12
    dense = 74 * 1024 + 1024 + 2048 + 1024 * 6272 + 6272 + 2 * 6272
    assert sizes["gen"] == dense + 128 * 64 * 16 + 64 + 128 + 64 * 16 + 1
    rectifiers = [m for m in nets.modules() if isinstance(m, nn.LeakyReLU)]
    assert {m.negative_slope for m in rectifiers} == {0.1} and len(rectifiers) == 4
    assert sum(isinstance(m, nn.ReLU) for m in nets.gen.modules()) == 3
    for m in nets.modules():
        if hasattr(m, "weight"):
            norm = float(hasattr(m, "running_mean"))
            assert abs(m.weight.mean() - norm) < 0.02 and (m.bias == 0).all()
            assert norm or abs(m.weight.std() - 0.02) < 2e-3
    assert nets.curve.shape == (4,)


def test_networks_give_floats_in_bf16():
    with torch.autocast("cpu", torch.bfloat16):
        h = infogan.Trunk(3, 32)(torch.rand(4, 3, 32, 32))
        logits, mean = infogan.QHead(7, 3)(h)
        image = infogan.Generator(20, 3, 32)(torch.rand(4, 10), torch.eye(7)[:4], torch.rand(4, 3))
        real = infogan.DHead(1024, 1)(h)
    assert h.dtype == torch.bfloat16 and h.shape == (4, 1024)
    assert logits.shape == (4, 7) and mean.shape == (4, 3) and real.shape == (4,)
    assert image.shape == (4, 3, 32, 32) and 0 < image.min() and image.max() < 1
    assert {t.dtype for t in (logits, mean, image, real)} == {torch.float32}


def test_the_generator_reads_z_then_c1_then_c2():
    torch.manual_seed(0)
    gen, (z, c1, c2) = infogan.Generator().eval(), infogan.draw_codes(settings(), 3, "cpu")
    truth = torch.sigmoid(gen.net(torch.cat([z, c1, c2], 1)))
    assert torch.equal(gen(z, c1, c2), truth)


# ---- A step, by hand -----------------------------------------------------------------------------

B = 6
SEED = 5  # of the warps of a step, behind its codes
RATE = 0.05


class Enough(Exception):
    pass


def nets_of(o):
    """Networks in full for the paper's step; the others' are narrow."""
    torch.manual_seed(0)
    nets = (infogan.build if o.recipe == "paper" else narrow)(o, per_epoch=10)
    for p in nets.gen.parameters():
        p.data.mul_(3)  # images that differ, so that the information matters
    return nets


def codes_of(o, far):
    torch.manual_seed(4)
    codes = DRAW(o, B, "cpu", far)
    torch.manual_seed(SEED)
    return codes


def one_step(monkeypatch, o):
    """Train one step, plain gradient descent in the place of `update`. Returns for each update the
    gradients by name and the rate, and the losses that are logged."""
    found, logged, nets = [], {}, nets_of(o)
    names = {p: name for name, p in nets.named_parameters()}

    def update(optimiser, loss):
        (group,) = optimiser.param_groups
        gradients = torch.autograd.grad(loss, group["params"], retain_graph=True)
        found.append(({names[p]: g for p, g in zip(group["params"], gradients)}, group))
        for p, g in zip(group["params"], gradients):
            p.data.sub_(RATE * g)

    def log(run, **losses):
        logged.update({name: loss.item() for name, loss in losses.items()})

    def stop(run, begun):
        raise Enough

    data, script = digits(B), infogan if o.recipe else infogan_regular
    monkeypatch.setattr(infogan, "draw_codes", lambda o, count, device, far=0: codes_of(o, far))
    monkeypatch.setattr(script, "update", update)
    monkeypatch.setattr(common.Run, "log", log)
    monkeypatch.setattr(common.Run, "_close_epoch", stop)
    with pytest.raises(Enough):
        script.train(common.Run("infogan", o), nets, data)
    assert nets.curve[0].item() == pytest.approx(logged["bound"])
    return found, logged, nets


def by_hand(gan, o, weight_c2, far, rewarded=True, judged=0):
    """The step of eq. 6 again, with sigmoids, logarithms and sums spelled out: the gradients of the
    two updates by name, and the losses. gan is changed as `one_step` changes it."""
    x = digits(B).x.float() / 255
    z, c1, c2 = codes_of(o, far)
    k = c1.shape[1]

    def D(h):
        return torch.sigmoid(gan.d(h))

    def told(images, h):
        """-log Q of c1, of c2."""
        if o.warp:
            h = gan.trunk(infogan.warp(images, o.warp))
        out = gan.q.out(gan.q.hidden(h if rewarded else h.detach()))
        p = out[:, :k].exp() / out[:, :k].exp().sum(1, keepdim=True)
        category = -sum(p[n, c1[n].argmax()].log() for n in range(len(p))) / len(p)
        total = 0.0
        for j in range(c2.shape[1]):
            chosen = [n for n in range(B) if not o.warp or n % 2 == (j > 0)]
            for n in chosen:
                density = math.log(2 * math.pi) / 2 + (out[n, k + j] - c2[n, j]) ** 2 / 2
                total = total + density / len(chosen)
        return category, total

    made = gan.gen(z, c1, c2)
    fake = made.detach()
    h = gan.trunk(fake[: B + judged])
    loss_d = -D(gan.trunk(x)).log().mean() - (1 - D(h)).log().mean()
    category, continuous = told(fake, h)
    answers = gan.q.out(gan.q.hidden(h))[:B, :k].log_softmax(1)
    bound = math.log(k) + (answers * c1[:B]).sum(1).mean()
    losses = {"disc": loss_d, "category": category, "continuous": continuous}
    weight = o.category_weight if rewarded else 1
    total = loss_d + weight * category + weight_c2 * continuous
    body = {n: p for n, p in gan.named_parameters() if n.split(".")[0] in BODY}
    of_d = dict(zip(body, torch.autograd.grad(total, list(body.values()))))
    for name, p in body.items():
        p.data.sub_(RATE * of_d[name])
    h = gan.trunk(made[: B + judged])  # by the new discriminator
    losses["gen"] = total = -D(h).log().mean()
    if rewarded:
        category, continuous = told(made, h)
        total = total + o.category_weight * category + weight_c2 * continuous
    gen = {n: p for n, p in gan.named_parameters() if n.split(".")[0] == "gen"}
    of_g = dict(zip(gen, torch.autograd.grad(total, list(gen.values()))))
    return [of_d, of_g], {**losses, "bound": bound}


VARIANTS = {
    "ours": (settings(continuous_start=0.0, warp=0.5, category_weight=2.0), 4.0, 3, True, 3),
    "ours, c2 not yet": (settings(), 0.0, 3, True, 3),
    "D judges some of far": (settings(continuous_start=0.0, far_judged=0.7), 4.0, 3, True, 2),
    "D judges none of far": (settings(continuous_start=0.0, far_judged=0.0), 4.0, 3, True),
    "no warps": (settings(warp=0.0, continuous_start=0.0), 4.0, 0, True),
    "paper": (settings("paper"), 1.0, 0, True),
    "regular": (settings("regular"), 1.0, 0, False),
}


def agree(found, truth):
    assert found.keys() == truth.keys()
    for name, gradient in found.items():
        # A bias before batch norm has no gradient but for rounding.
        scale = max(truth[name].abs().max().item(), 0.01)
        assert torch.allclose(gradient, truth[name], atol=2e-3 * scale), name


@pytest.mark.parametrize("name", VARIANTS)
def test_a_step_is_eq_6_and_moves_whom_it_should(name, monkeypatch):
    o, *words = VARIANTS[name]
    o = dataclasses.replace(o, batch_size=B, epochs=10)
    found, logged, _ = one_step(monkeypatch, o)
    truth, losses = by_hand(nets_of(o), o, *words)
    assert len(found) == 2  # D with Q, then G, and nobody else
    for (gradients, _), right in zip(found, truth):
        agree(gradients, right)
    assert {n.split(".")[0] for n in truth[0]} == BODY
    assert logged == pytest.approx({n: v.item() for n, v in losses.items()}, rel=1e-3, abs=1e-5)
    assert [group["lr"] for _, group in found] == [2e-4, 1e-3]
    assert [group["betas"] for _, group in found] == [(0.5, 0.999)] * 2


def test_an_update_reaches_its_player_alone():
    torch.manual_seed(0)
    a, b = nn.Linear(3, 2), nn.Linear(2, 1)
    optimiser = torch.optim.SGD(a.parameters(), 0.1)
    before = copy.deepcopy(a.weight), copy.deepcopy(b.weight)
    x = torch.rand(5, 3)
    infogan.update(optimiser, b(a(x)).sum())
    assert torch.allclose(a.weight, before[0] - 0.1 * (b.weight.t() @ x.sum(0)[None]))
    assert torch.equal(b.weight, before[1])
    assert all(p.grad is None for p in (*a.parameters(), *b.parameters()))


def test_rates_and_late_codes(monkeypatch):
    o = settings(batch_size=5, epochs=4, continuous_start=0.5, far=0.4)
    nets, seen, drawn, late = narrow(o, 2), [], [], []
    draw = infogan.draw_codes

    def update(optimiser, loss):
        (group,) = optimiser.param_groups
        mine = [name for name, p in nets.named_parameters() if p is group["params"][0]]
        seen.append((mine[0].split(".")[0], group["lr"]))
        late.append(loss.item() > 3000)

    def draw_codes(o, count, device, far=0):
        drawn.append((count, far))
        return draw(o, count, device, far)

    monkeypatch.setattr(infogan, "update", update)
    monkeypatch.setattr(infogan, "draw_codes", draw_codes)
    monkeypatch.setattr(infogan, "split_loss", lambda mean, c2: torch.tensor(1000.0))  # times 4
    infogan.train(common.Run("infogan", o), nets, digits(10))
    assert late == [False] * 8 + [True] * 8  # D's and G's, in four steps each
    rates = {name: [lr for who, lr in seen if who == name] for name, _ in seen}
    falling = [1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    assert rates["trunk"] == pytest.approx([2e-4 * share for share in falling])
    assert rates["gen"] == pytest.approx([1e-3 * share for share in falling])
    assert drawn == [(5, 2)] * 8 and (nets.curve != 0).all()
    constant = settings("paper", batch_size=5, epochs=2)
    seen.clear()
    infogan.train(common.Run("infogan", dataclasses.replace(constant, out="b")), nets, digits(10))
    assert {lr for _, lr in seen} == {2e-4, 1e-3}
    seen.clear()
    monkeypatch.setattr(infogan_regular, "update", update)
    o = settings("regular", batch_size=5, epochs=4)
    infogan_regular.train(common.Run("infogan", dataclasses.replace(o, out="c")), nets, digits(10))
    assert [lr for _, lr in seen[0::2]] == pytest.approx(rates["trunk"])
    assert [lr for _, lr in seen[1::2]] == pytest.approx(rates["gen"])


def test_the_same_code_scores_the_image_it_made():
    """A G that writes its category into a pixel, and a Q that reads it there: L_I is log K."""

    class Writer(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, z, c1, c2):
            pixel = c1.argmax(1) / 9
            return self.weight * pixel[:, None, None, None].expand(-1, 1, 28, 28)

    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(9.0))  # right with probability .999

        def forward(self, h):
            category = (h[:, 0] * 9).round().long()
            return self.weight * infogan.one_hot(category, 10), h[:, :1] * self.weight

    class Body(nn.Flatten):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return super().forward(x) * self.weight

    o = settings("paper", batch_size=400, epochs=1, continuous=1)
    nets = infogan.build(o, 1)
    nets.trunk, nets.d, nets.q, nets.gen = Body(), nn.Linear(784, 1), Reader(), Writer()
    infogan.train(common.Run("infogan", o), nets, digits(400))
    assert nets.curve.item() == pytest.approx(math.log(10), abs=0.02)


def test_settling_is_on_what_is_scored(monkeypatch):
    torch.manual_seed(0)
    o, data, drawn = settings(), digits(300), []
    nets = infogan.build(o)
    for m in nets.modules():
        if hasattr(m, "running_mean"):
            m.running_mean.fill_(7.0)

    def draw(count, device, far=0):
        drawn.append((count, far))
        return infogan.draw_codes(o, count, device, far)

    before = torch.get_rng_state()
    infogan_scores.settle(nets, draw, data.x, o)
    assert torch.equal(before, torch.get_rng_state()) and drawn == [(300, 150)]
    x = common.to_float(data.x)
    h = nets.trunk[2](nets.trunk[1](nets.trunk[0](x)))
    assert torch.allclose(nets.trunk[3].running_mean, h.mean((0, 2, 3)), atol=1e-5)
    h = nets.q.hidden[0](nets.trunk(x))  # of real images: Q has seen none in training
    assert torch.allclose(nets.q.hidden[1].running_mean, h.mean(0), atol=1e-4)
    assert torch.allclose(nets.q.hidden[1].running_var, h.var(0), rtol=0.02)
    infogan_scores.settle(nets, draw, data.x, settings("regular"))  # far is None: the prior alone
    assert drawn[1:] == [(300, 0)]
    w = nets.gen.net[0].weight  # of the prior: uniform numbers of variance 1/3, one-hot ones
    uniform = (w[:, :62].square().sum(1) + w[:, 72:].square().sum(1)) / 3
    variance = uniform + w[:, 62:72].var(1, unbiased=False)
    assert torch.allclose(nets.gen.net[1].running_var, variance, rtol=0.4)
    assert not any(m.training for m in nets.modules())


def test_recipes():
    ours, paper, regular = settings(), settings("paper"), settings("regular")
    assert paper.epochs * math.ceil(60_000 / paper.batch_size) == 5159
    assert ours.epochs * math.ceil(60_000 / ours.batch_size) == 1876
    names = ["category_weight", "continuous_weight", *infogan.OFF, "schedule"]
    assert [getattr(paper, name) for name in names] == [1, 1, 0, 0, 0, 0, "constant"]
    assert [getattr(regular, name) for name in names] == [None] * 6 + ["linear"]
    shared = {f.name for f in dataclasses.fields(ours)} - {*names, "recipe"}
    assert all(getattr(regular, name) == getattr(ours, name) for name in shared)


def test_a_tiny_training_informs_and_the_regular_gan_does_not():
    """Four kinds of picture: the code ends up saying which, unless G is not rewarded for it. The
    networks are narrow."""
    x = torch.zeros(20, 1, 28, 28, dtype=torch.uint8)
    for k in range(4):
        y = slice(14 * (k // 2), 14 * (k // 2) + 14)
        x[k::4, :, y, 14 * (k % 2) : 14 * (k % 2) + 14] = 255
    data = common.Split(x.repeat(80, 1, 1, 1), torch.arange(4).repeat(400))
    bounds = []
    for script, recipe in ((infogan, "paper"), (infogan_regular, "regular")):
        o = settings(
            recipe, 4, epochs=1, batch_size=20, continuous=0, z_dim=40, schedule="constant"
        )
        o = dataclasses.replace(o, out=recipe)
        torch.manual_seed(0)
        nets = narrow(o, 80)
        script.train(common.Run("infogan", o), nets, data)
        bounds.append(nets.curve[-10:].mean())
    assert bounds[0] > 0.8 and bounds[1] < 0.3  # log 4 = 1.39


@pytest.mark.parametrize("script", [infogan, infogan_regular])
def test_a_stopped_training_goes_on_bit_for_bit(script, goes_on_bit_for_bit, monkeypatch):
    monkeypatch.setattr(infogan, "build", narrow)
    recipe = "ours" if script is infogan else "regular"
    o = settings(recipe, batch_size=20, epochs=2, dry_run=True)
    saved = goes_on_bit_for_bit(script, o, digits(20))
    assert saved["step"] == 2 and (saved["states"]["nets"]["curve"] != 0).all()


# ---- Scores --------------------------------------------------------------------------------------


def bar(lean, width, length=24):
    """A stroke that leans by the tangent `lean`, `width` pixels wide, with soft edges."""
    y, x = torch.meshgrid(torch.arange(28.0) - 13.5, torch.arange(28.0) - 13.5, indexing="ij")
    across = (x + lean * y).abs()  # y points down: positive leans to the right
    ink = (width / 2 + 0.5 - across).clamp(0, 1) * (length / 2 + 0.5 - y.abs()).clamp(0, 1)
    return ink[None, None]


@pytest.mark.parametrize("lean", [-0.4, 0.0, 0.25])
@pytest.mark.parametrize("width", [2.0, 4.0])
def test_moments_of_bars(lean, width):
    slant, measured = infogan_scores.image_moments(bar(lean, width))
    assert slant.item() == pytest.approx(lean, abs=0.02)
    assert measured.item() == pytest.approx(width / math.sqrt(1 + lean**2), rel=0.25)
    assert infogan_scores.image_moments(bar(lean, width + 1))[1] > measured + 0.5


def test_moments_of_thin_bars_and_of_no_ink():
    for width in (0.5, 1.0, 1.5):  # two pixels is the least it can say
        assert infogan_scores.image_moments(bar(0.0, width))[1].item() == pytest.approx(2, abs=0.2)
    black = infogan_scores.image_moments(torch.zeros(2, 1, 28, 28))
    assert all(torch.isfinite(value).all() for value in black)


def test_within_group_r2_against_numpy():
    rng = np.random.default_rng(0)
    group, code = rng.integers(0, 3, 600), rng.uniform(-1, 1, 600)
    measure = np.array([0.5, -2.0, 0.0])[group] * code + 10 * group + 0.3 * rng.normal(size=600)
    left = total = 0
    for k in range(3):
        c, m = code[group == k], measure[group == k]
        left += ((m - np.polyval(np.polyfit(c, m, 1), c)) ** 2).sum()
        total += ((m - m.mean()) ** 2).sum()
    group, measure = torch.tensor(group), torch.tensor(measure)
    found = infogan_scores.within_group_r2(torch.tensor(code), measure, group)
    assert found == pytest.approx(1 - left / total) and 0.3 < found < 0.95
    other = torch.tensor(rng.uniform(-1, 1, 600))
    assert infogan_scores.within_group_r2(other, measure, group) < 0.03


def test_code_scores_of_generators_that_are_known():
    data, judge = digits(500), scores.load_judge("mnist")
    right = judge.classify(common.to_float(data.x)) == data.y
    kept = [data.x[(data.y == k) & right][:20] for k in range(10)]
    real = common.Split(torch.cat(kept), torch.arange(10).repeat_interleave(20))
    images = common.to_float(torch.stack(kept))  # [10, 20, 1, 28, 28]

    def steady(z, c, c2):
        return images[c, (z[:, 0].abs() * 19.99).long()]

    def leaning(z, c, c2):
        theta = torch.eye(2, 3).repeat(len(c), 1, 1)
        theta[:, 0, 1] = 0.5 * c2[:, 1]  # the second number shears
        grid = F.affine_grid(theta, (len(c), 1, 28, 28), align_corners=False)
        return F.grid_sample(steady(0 * z, c, c2), grid, align_corners=False)

    cases = {
        "steady": steady,
        "leaning": leaning,
        "leaky": lambda z, c, c2: steady(0 * z, (c + (c2[:, 0] > 0)) % 10, c2),
        "beyond": lambda z, c, c2: steady(0 * z, (c + (c2[:, 0] > 1.2)) % 10, c2),
        "collapsed": lambda z, c, c2: steady(z, 0 * c + 3, c2),
        "template": lambda z, c, c2: steady(0 * z, c, c2),
        "merged": lambda z, c, c2: steady(z, torch.where(z[:, 1] > 0, c, (c + 1) % 10), c2),
    }
    draw, found = functools.partial(infogan.draw_codes, settings()), {}
    for name, show in cases.items():
        torch.manual_seed(0)

        def decode(z, c1, c2):
            return show(z, c1.argmax(1), c2)

        found[name] = infogan_scores.code_scores(draw, decode, judge, real, 200)
    good = found["steady"]
    assert good["generated_purity"] == 100 and good["generated_digits"] == 10
    assert good["generated_diversity"] == pytest.approx(1, abs=0.1)
    assert good["identity_leak"] == good["identity_leak_inside"] == 0
    assert good["slant_r2"] < 0.1 and good["width_r2"] < 0.1
    assert found["leaning"]["slant_r2"] > 0.95 and found["leaning"]["identity_leak_inside"] < 25
    leaky, beyond = found["leaky"], found["beyond"]  # one of two numbers
    assert leaky["identity_leak"] == leaky["identity_leak_inside"] == 50
    assert beyond["identity_leak"] == 50 and beyond["identity_leak_inside"] == 0
    assert found["collapsed"]["generated_purity"] == 100
    assert found["collapsed"]["generated_digits"] == 1
    assert found["template"]["generated_purity"] == 100
    assert found["template"]["generated_diversity"] < 1e-6
    assert found["template"]["slant_r2"] < 1e-6 and found["template"]["width_r2"] < 1e-6
    assert 45 < found["merged"]["generated_purity"] < 62


def test_cluster_scores_of_heads_that_are_known():
    data, test, judge = digits(1500), digits(400, test=True), scores.load_judge("mnist")
    with torch.no_grad():
        answers = [judge(common.to_float(part.x)) for part in (data, test)]
    merged = torch.eye(10)[[0, 1, 2, 3, 4, 3, 6, 7, 8, 4]]  # 5 goes to 3, 9 to 4
    heads = {
        "reads": lambda h: h,
        "renamed": lambda h: h.roll(3, 1),
        "one": lambda h: F.one_hot(torch.full((len(h),), 4), 10).float(),
        "merged": lambda h: h @ merged,
    }
    found = {}
    for name, head in heads.items():
        found[name] = infogan_scores.cluster_scores(*map(head, answers), data, test, tries=1)
    assert found["reads"]["cluster_error"] < 2 and found["reads"]["nmi"] > 0.96
    assert found["renamed"] == found["reads"] and found["merged"]["cluster_error"] > 10
    deserved = 100 * (test.y != torch.bincount(data.y).argmax()).float().mean().item()
    one = found["one"]
    assert one["cluster_error"] == one["cluster_error_majority"] == pytest.approx(deserved)
    assert one["nmi"] == pytest.approx(0, abs=1e-6)
    x, test_x = common.to_float(data.x).flatten(1), common.to_float(test.x).flatten(1)
    centres = scores.k_means(x, 10, tries=1)
    member, test_member = torch.cdist(x, centres).argmin(1), torch.cdist(test_x, centres).argmin(1)
    names = [torch.bincount(data.y[member == k], minlength=10).argmax() for k in range(10)]
    wrong = (torch.stack(names)[test_member] != test.y).float().mean().item()
    assert one["kmeans_cluster_error_majority"] == pytest.approx(100 * wrong)
    logits = heads["renamed"](answers[0])
    order = infogan_scores.display_order(logits, data.y)
    assert scores.match_clusters(logits, data.y)[order].tolist() == list(range(10))


def test_the_answers_scored_are_those_for_the_category(monkeypatch):
    """Q's outputs are the category's logits, then c2: the first ten, not the last."""
    data, test, asked = digits(60), digits(40, test=True), []
    o = settings(dry_run=True)
    nets = narrow(o)
    monkeypatch.setattr(infogan_scores, "code_scores", lambda *_: {})
    monkeypatch.setattr(infogan_scores, "probe_scores", lambda *_: {})
    monkeypatch.setattr(infogan_scores, "untrained_trunk", lambda *_: nets.trunk)
    monkeypatch.setattr(infogan_scores, "cluster_scores", lambda *w: asked.extend(w) or {})
    words = infogan.draw_codes, infogan.decode, data, test, o
    _, order = infogan_scores.evaluate(nets, infogan.build, *words)
    logits, test_logits = (infogan.encode(nets, part.x)[0] for part in (data, test))
    assert torch.allclose(asked[0], logits, atol=1e-5) and asked[2] is data and asked[3] is test
    assert torch.allclose(asked[1], test_logits, atol=1e-5)
    assert torch.equal(order, infogan_scores.display_order(logits, data.y))


def test_categories_left_over_stand_in_the_order_of_their_digits():
    y = torch.tensor([0, 0, 1, 1, 2, 2, 2, 0, 1])
    member = torch.tensor([3, 3, 4, 4, 0, 0, 2, 1, 5])  # 2, 1, 5 are second kinds of 2, 0, 1
    order = infogan_scores.display_order(F.one_hot(member, 6).float(), y)
    assert order.tolist() == [3, 4, 0, 1, 5, 2]


def test_more_categories_than_images_are_scored():
    data = digits(20)
    found = infogan_scores.cluster_scores(torch.eye(20, 30), torch.eye(20, 30), data, data, tries=1)
    assert found["cluster_error_majority"] == found["kmeans_cluster_error_majority"] == 0
    assert found["cluster_error"] == pytest.approx(100 - 5 * len(data.y.unique()))


def test_curve_scores():
    curve = torch.cat([torch.linspace(0, 2.3, 200), torch.full((150,), 2.29)])
    found = infogan_scores.curve_scores(curve, 10)
    assert found["mutual_information"] == pytest.approx(2.29)
    assert found["log_k"] == pytest.approx(2.302585)
    means = [sum(curve[n - 20 : n].tolist()) / 20 for n in range(20, 351)]
    first = next(k for k, value in enumerate(means) if value >= 2.25)
    assert found["steps_to_2.25"] == 20 + first
    assert "steps_to_2.25" not in infogan_scores.curve_scores(torch.full((50,), 0.1), 10)
    assert "steps_to_2.25" not in infogan_scores.curve_scores(curve, 20)  # log 20 is 3.0


def test_probes_read_the_layers_they_are_given(monkeypatch):
    data, test, asked = digits(1000), digits(300, test=True), []

    def probe(codes, y, test_codes, test_y, hidden, epochs):
        asked.append((codes, y, test_codes, test_y, hidden, epochs))
        return torch.tensor([float(len(asked))])

    monkeypatch.setattr(scores, "probe", probe)
    layers = {name: (torch.randn(1000, 2), torch.randn(300, 2)) for name in ("a", "b")}
    found = infogan_scores.probe_scores(layers, data, test)
    names = [f"probe_error_{name}_{count}" for name in "ab" for count in (100, "all")]
    assert found == {name: k + 1 for k, name in enumerate(names)}
    few, every = scores.balanced(data.y, 100), torch.arange(1000)
    for call, (name, index) in zip(asked, [("a", few), ("a", every), ("b", few), ("b", every)]):
        assert torch.equal(call[0], layers[name][0][index]) and torch.equal(
            call[2], layers[name][1]
        )
        assert torch.equal(call[1], data.y[index]) and torch.equal(call[3], test.y)
    assert [call[4:] for call in asked] == [(0, 2000), (0, 200)] * 2
    infogan_scores.probe_scores(layers, data, test, dry=True)
    assert [call[5] for call in asked[4:]] == [1] * 4


def test_the_untrained_trunk_is_always_the_same():
    o, x = settings(), digits(60).x
    before = torch.get_rng_state()
    a, b = (infogan_scores.untrained_trunk(infogan.build, o, x) for _ in range(2))
    assert same(a.state_dict(), b.state_dict()) and not a.training
    assert torch.equal(before, torch.get_rng_state()) and a[3].running_mean.abs().max() > 0


def test_the_papers_numbers_stand_beside_the_runs_they_belong_to():
    found = dict.fromkeys(("mutual_information", "cluster_error", "nmi"), 1.0)

    def paper(o, **more):
        return [row[2] for row in infogan_scores.table(found, o, **more)]

    assert paper(settings()) == paper(settings("paper")) == ["2.30", "5", "-"]
    assert paper(settings("regular"), regular=True) == ["near 0", "-", "-"]
    for o in (settings(categories=20), settings(dataset="fashion"), settings(validation=True)):
        assert set(paper(o) + paper(o, regular=True)) == {"-"}


# ---- Figures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("figure", ["categories", "sweep"])
def test_what_varies_in_figure_2(figure, monkeypatch):
    """Along a row z is the same, and all of the code but what the figure is about."""
    drawn = []
    monkeypatch.setattr(common, "figure_grid", lambda *words: drawn.append(words[1:3]))

    def gen(z, c1, c2):
        parts = [c1.argmax(1).float(), c2[:, 0], c2[:, 1], z[:, 0]]
        return torch.stack(parts, 1).view(-1, 1, 2, 2)

    nets, order = fake_nets(gen=gen), torch.tensor([3, 1, 4, 0, 5, 9, 2, 6, 8, 7])
    if figure == "categories":
        infogan.figure_categories(nets, settings(), None, order, "words")
    else:
        infogan.figure_continuous(nets, settings(), None, 1, order)
    ((images, columns),) = drawn
    c, u, v, z = images.view(-1, columns, 4).unbind(2)

    def steady(x):
        return torch.equal(x, x[:, :1].expand_as(x))

    assert steady(z) and steady(u)
    assert len(z[:, 0].unique()) == len(z) == (5 if figure == "categories" else 10)
    if figure == "categories":
        assert torch.equal(c, order.float().expand(5, 10)) and steady(v)
    else:
        assert torch.equal(c[:, 0], order.float()) and steady(c)
        assert torch.allclose(v, torch.linspace(-2, 2, 11).expand(10, 11))


# ---- The command line ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def few():
    """The data of the runs below."""
    data, test = common.load_dataset("mnist")
    return data.take(slice(300)), test.take(slice(200))


@pytest.fixture
def run(monkeypatch, capsys, few):
    """A dry run from the command line, on few images: its metrics, and what it printed."""

    def call(*words, script=infogan, out="run"):
        monkeypatch.setattr(common, "load_data", lambda settings: few)
        words = ["--dry-run", "--epochs", "1", "--device", "cpu", "--out", out, *words]
        monkeypatch.setattr(sys, "argv", ["infogan.py", *words])
        common.run_main(script.main, script.recipe)
        gc.collect()
        return json.loads(Path(out, "metrics.json").read_text()), capsys.readouterr().out

    return call


ALWAYS = {"slant_r2", "identity_leak", "probe_error_trunk_100", "probe_error_q_hidden_all"}
GRIDS = {"continuous-1.png", "continuous-2.png"}


def test_a_run_makes_everything_loads_and_is_scored_again(run, monkeypatch, capsys):
    monkeypatch.setattr(infogan, "build", narrow)
    metrics, printed = run()
    told = {"mutual_information", "cluster_error", "nmi"}
    assert ALWAYS | told | {"generated_purity", "width_r2"} <= set(metrics)
    assert all(math.isfinite(value) for value in metrics.values())
    pictures = {file.name for file in Path("run").glob("*.png")}
    assert pictures == {"information.png", "categories.png", "losses.png"} | GRIDS
    assert f"{metrics['mutual_information']:.4g}" in printed and "2.30" in printed
    log = Path("run/log.csv").read_text().splitlines()
    assert log[0] == "epoch,disc,gen,category,continuous,bound" and len(log) == 2
    saved = run_folder.read_checkpoint("run")["states"]
    assert set(saved) == {"nets"}
    bound = saved["nets"]["curve"].mean().item()
    assert metrics["mutual_information"] == pytest.approx(bound, rel=1e-4)
    nets, x = infogan.load("run"), digits(5).x
    assert same(nets.state_dict(), saved["nets"])
    assert not any(m.training for m in nets.modules())
    logits, mean = infogan.encode(nets, x)
    assert logits.shape == (5, 10) and mean.shape == (5, 2) and not logits.requires_grad
    with pytest.raises(common.UserError, match="'absent' is no run folder"):
        infogan.load("absent")
    codes = infogan.draw_codes(infogan.recipe(), 1005, "cpu")
    images = infogan.decode(nets, *codes)
    last = nets.gen(*(code[1000:] for code in codes))
    assert images.shape == (1005, 1, 28, 28) and torch.allclose(images[1000:], last, atol=1e-5)
    torch.manual_seed(99)  # another process
    score.main("run", "cpu")
    again = json.loads(Path("run/metrics.json").read_text())
    assert again == pytest.approx(metrics, rel=1e-3) and capsys.readouterr().out == printed
    config = json.loads(Path("run/config.json").read_text())
    config["settings"]["categories"] = 9  # as if written by other code
    Path("run/config.json").write_text(json.dumps(config))
    with pytest.raises(common.UserError, match="'run', a run of infogan, is of another version"):
        infogan.load("run")


def test_the_regular_gan_and_both_curves_of_figure_1(run, monkeypatch, capsys):
    monkeypatch.setattr(infogan, "build", narrow)
    run("--categories", "12", "--continuous", "0", out="beside")
    drawn, draw = [], infogan_scores.figure_information
    monkeypatch.setattr(
        infogan_scores, "figure_information", lambda *w: (drawn.append(w[0]), draw(*w))
    )
    words = "--categories", "12", "--continuous", "0", "--beside", "beside"
    metrics, printed = run(*words, script=infogan_regular)
    assert {"mutual_information", "cluster_error_majority"} <= set(metrics)
    assert "slant_r2" not in metrics and "near 0" not in printed  # K is not 10
    pictures = {file.name for file in Path("run").glob("*.png")}
    assert pictures == {"information.png", "categories.png", "losses.png"}
    curves = {"InfoGAN": infogan.load("beside"), "regular GAN": infogan_regular.load("run")}
    assert list(drawn[0]) == list(curves)
    assert all(torch.equal(drawn[0][words], nets.curve) for words, nets in curves.items())
    torch.manual_seed(99)
    score.main("run", "cpu")
    again = json.loads(Path("run/metrics.json").read_text())
    assert again == pytest.approx(metrics, rel=1e-3) and capsys.readouterr().out == printed
    for folder, complaint in (("absent", "no run folder"), ("beside", "another data set or --cat")):
        words = ["infogan_regular.py", "--beside", folder, "--dry-run"]  # K is 10 here
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit, match="^2$"):
            common.run_main(infogan_regular.main, infogan_regular.recipe)
        assert complaint in capsys.readouterr().err


def test_without_a_category(run, monkeypatch):
    monkeypatch.setattr(infogan, "build", narrow)
    metrics, printed = run("--categories", "0", "--validation")
    assert ALWAYS <= set(metrics) and "nmi" not in metrics
    assert {file.name for file in Path("run").glob("*.png")} == GRIDS | {"losses.png"}
    assert infogan.encode(infogan.load("run"), digits(5).x)[0].shape == (5, 0)


MISTAKES = [
    ("--dataset sprites", "invalid choice: 'sprites'"),
    ("--recipe released", "invalid choice: 'released'"),
    ("--batch-size 2", "'2' is not a whole number from 3"),
    ("--categories -1", "'-1' is not a whole number"),
    ("--categories many", "'many' is not a whole number"),
    ("--far 2", "'2' is not a number from 0 to 1"),
    ("--warp nan", "'nan' is not a number"),
    ("--recipe baseline", "invalid choice: 'baseline'"),
    ("--continuous-weigt 1", "did you mean --continuous-weight?"),
    ("--data nowhere", "no mnist.npz in 'nowhere'"),
]


@pytest.mark.parametrize("words, complaint", MISTAKES, ids=[words for words, _ in MISTAKES])
def test_a_mistake_is_one_line_and_leaves_nothing(words, complaint, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["infogan.py", "--dry-run", *words.split()])
    with pytest.raises(SystemExit, match="^2$"):
        common.run_main(infogan.main, infogan.recipe)
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and complaint in err, err
    assert not list(Path(".").iterdir())


def test_help_tells_every_flag_with_its_comment(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["infogan.py", "--help"])
    with pytest.raises(SystemExit, match="^0$"):
        common.run_main(infogan.main, infogan.recipe)
    words = " ".join(capsys.readouterr().out.split())
    comments = command_line.field_comments(infogan.Settings)
    for field in dataclasses.fields(infogan.Settings):
        flag = f"--{field.name.replace('_', '-')}"
        assert f"{flag} " in words and " ".join(comments[field.name].split()) in words, flag


SNIPPETS = {
    "Trunk": lambda f: f()(torch.rand(4, 1, 28, 28)).shape == (4, 1024),
    "DHead": lambda f: f(1024, 1)(torch.rand(4, 1024)).shape == (4,),
    "QHead": lambda f: f()(torch.rand(4, 1024))[0].shape == (4, 10),
    "Generator": lambda f: (
        f()(torch.rand(4, 62), torch.rand(4, 10), torch.rand(4, 2)).shape == (4, 1, 28, 28)
    ),
    "initialise": lambda f: f(nn.Linear(3, 4)).weight.std() < 0.1,
    "adversarial_loss": lambda f: f(torch.zeros(2)) > 0.5,
    "discriminator_loss": lambda f: f(torch.zeros(2), torch.zeros(2)) > 1,
    "category_loss": lambda f: f(torch.zeros(2, 10), torch.eye(10)[:2]) > 2,
    "continuous_loss": lambda f: f(torch.zeros(2, 3), torch.ones(2, 3)) > 1,
    "split_loss": lambda f: f(torch.zeros(4, 2), torch.ones(4, 2)) > 1,
    "mutual_information": lambda f: f(torch.zeros(2, 10), torch.eye(10)[:2]).abs() < 1e-6,
    "warp": lambda f: f(torch.rand(3, 1, 28, 28)).shape == (3, 1, 28, 28),
}
NEEDS = {"mutual_information": ["category_loss"], "split_loss": ["continuous_loss"]}


@pytest.mark.parametrize("name", SNIPPETS)
def test_snippets_stand_alone(name):
    space = {"torch": torch, "nn": nn, "F": F, "math": math}
    for part in [*NEEDS.get(name, ()), name]:
        exec(inspect.getsource(getattr(infogan, part)), space)
    assert SNIPPETS[name](space[name])
