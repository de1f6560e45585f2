"""mathieu.py and its two files in experiments/.

Losses against independent answers, a step of training against a second implementation, who gets
which gradient, scores that catch degenerate models, the command line.
"""

import contextlib
import copy
import dataclasses
import functools
import gc
import io
import json
import math
import re
import runpy
import shutil
import sys
from pathlib import Path

import common
import mathieu
from data.sprites import ATTRIBUTE_SIZES, draw_sprites, sprites
from experiments import (
    command_line,
    mathieu_pretrained_s,
    mathieu_scores,
    run_folder,
    score,
    scores,
)

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, fake_nets
from kills import same
from torch import nn

PLAYERS = {"enc", "dec"}, {"disc"}, {"code_disc"}  # who is updated together, in this order


def settings(recipe="ours", **changes):
    plain = dataclasses.replace(mathieu.recipe("mnist", recipe), device="cpu", precision="fp32")
    return dataclasses.replace(plain, out="run", **changes)


def digits(count, test=False):
    return common.load_dataset("mnist")[test].take(slice(count))


def zeros_and_ones(count, test=False):
    data = common.load_dataset("mnist")[test]
    return data.take((data.y < 2).nonzero().flatten()[:count])


# ---- Losses --------------------------------------------------------------------------------------


def test_kl_against_torch_distributions_and_its_gradient():
    torch.manual_seed(0)
    mu, logvar = torch.randn(2, 5, 3, dtype=torch.float64).requires_grad_().unbind()
    q, prior = torch.distributions.Normal(mu, (logvar / 2).exp()), torch.distributions.Normal(0, 1)
    truth = torch.distributions.kl_divergence(q, prior).sum(1).mean()
    loss = mathieu.kl_loss(mu, logvar)
    assert loss.shape == () and torch.allclose(loss, truth)
    d_mu, d_logvar = torch.autograd.grad(loss, (mu, logvar))
    assert torch.allclose(d_mu, mu / 5)
    assert torch.allclose(d_logvar, (logvar.exp() - 1) / 2 / 5)  # not the released exp(2l) - 1
    inputs = mu.detach().requires_grad_(), logvar.detach().requires_grad_()
    assert torch.autograd.gradcheck(mathieu.kl_loss, inputs)
    assert mathieu.kl_loss(torch.zeros(2, 3), torch.zeros(2, 3)) == 0


def test_reconstruction_against_a_naive_loop():
    torch.manual_seed(0)
    a, b = torch.rand(2, 3, 2, 4, 5, dtype=torch.float64)
    truth = 0.0
    for x, y in zip(a.flatten().tolist(), b.flatten().tolist()):
        truth += (x - y) ** 2 / 3  # a sum over pixels, a mean over the three images
    assert mathieu.reconstruction_loss(a, b).item() == pytest.approx(truth, rel=1e-12)


def test_adversarial_losses_against_their_formulas():
    torch.manual_seed(0)
    real, fake = torch.randn(2, 7, dtype=torch.float64)
    D = torch.sigmoid
    assert torch.allclose(mathieu.adversarial_loss(fake), -D(fake).log().mean())
    truth = -D(real).log().mean() - (1 - D(fake)).log().mean()
    assert torch.allclose(mathieu.discriminator_loss(real, fake), truth)
    inputs = real.requires_grad_(), fake.requires_grad_()
    assert torch.autograd.gradcheck(mathieu.discriminator_loss, inputs)
    zero = torch.zeros(4)
    assert mathieu.adversarial_loss(zero).item() == pytest.approx(math.log(2))
    assert mathieu.discriminator_loss(zero, zero).item() == pytest.approx(2 * math.log(2))
    assert mathieu.adversarial_loss(torch.tensor([-200.0])) == 200  # no overflow


def test_reparametrise_has_the_posterior_moments():
    torch.manual_seed(0)
    mu, logvar = torch.full((200_000, 1), 2.0), torch.full((200_000, 1), math.log(0.25))
    z = mathieu.reparametrise(mu, logvar)
    assert abs(z.mean() - 2) < 0.01 and abs(z.std() - 0.5) < 0.01


def test_code_discriminator_loss_against_its_formula():
    torch.manual_seed(0)
    critic, mu = mathieu.CodeDiscriminator(z_dim=3, labels=6), torch.randn(5, 3)
    own, other = torch.tensor([0, 2, 5, 1, 1]), torch.tensor([3, 0, 1, 4, 2])
    M = torch.sigmoid(critic.net(mu))
    truth = -torch.stack([M[n, own[n]].log() for n in range(5)]).mean()
    truth = truth - torch.stack([(1 - M[n, other[n]]).log() for n in range(5)]).mean()
    id, id_other = F.one_hot(own, 6), F.one_hot(other, 6)
    assert torch.allclose(critic.loss(mu, id, id_other), truth)
    two = id + F.one_hot(own.roll(1), 6)  # of two attributes the logits add up
    logits = critic.net(mu)
    both = logits.gather(1, own[:, None]) + logits.gather(1, own.roll(1)[:, None])
    wrong = logits.gather(1, other[:, None])
    assert torch.allclose(critic.loss(mu, two, id_other), mathieu.discriminator_loss(both, wrong))
    nn.init.zeros_(critic.net[-1].weight), nn.init.zeros_(critic.net[-1].bias)
    assert critic.loss(mu, id, id_other).item() == pytest.approx(2 * math.log(2))


def test_code_discriminator_sees_dimensions_of_any_size():
    torch.manual_seed(0)
    critic, mu = mathieu.CodeDiscriminator(z_dim=3), torch.randn(50, 3)
    assert torch.allclose(critic.net(mu), critic.net(mu * torch.tensor([1, 100, 1])), atol=1e-3)


# ---- Networks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels, size", [(1, 28), (3, 32)])
def test_shapes_of_the_networks(channels, size):
    x = torch.rand(4, channels, size, size)
    s, mu, logvar = mathieu.Encoder(channels, size, z_dim=6, s_dim=5)(x)
    assert s.shape == (4, 5) and mu.shape == logvar.shape == (4, 6)
    image = mathieu.Decoder(channels, size, 6, 5)(mu, s)
    assert image.shape == x.shape and image.min() > 0 and image.max() < 1
    assert mathieu.Discriminator(channels, size, 9)(x, torch.eye(9)[:4]).shape == (4,)


def test_the_papers_sizes_are_the_defaults():
    s, mu, _ = mathieu.Encoder()(torch.rand(2, 1, 28, 28))
    assert s.shape == mu.shape == (2, 16)
    for net in (mathieu.Encoder(), mathieu.Decoder(), mathieu.Discriminator()):
        kinds = nn.Conv2d, nn.ConvTranspose2d
        convs = [layer for layer in net.modules() if isinstance(layer, kinds)]
        assert [(c.kernel_size, c.stride) for c in convs] == [((5, 5), (2, 2))] * 3
    sprites = mathieu.recipe("sprites")
    assert (sprites.z_dim, sprites.s_dim) == (512, 64)


def test_encoder_reads_its_three_outputs_from_shared_features():
    torch.manual_seed(0)
    enc, x = mathieu.Encoder().eval(), torch.rand(3, 1, 28, 28)
    h = enc.features(x)
    for found, layer in zip(enc(x), (enc.to_s, enc.to_mu, enc.to_logvar)):
        assert torch.equal(found, layer(h))


def test_the_dead_zone_is_a_soft_threshold_of_the_means():
    torch.manual_seed(0)
    plain, shrunk = mathieu.Encoder().eval(), mathieu.Encoder(dead_zone=0.25).eval()
    nn.init.normal_(plain.to_mu.weight, std=0.3)
    shrunk.load_state_dict(plain.state_dict())
    x = torch.rand(50, 1, 28, 28)
    s, mu, logvar = plain(x)
    s_too, mu_shrunk, logvar_too = shrunk(x)
    assert torch.equal(s, s_too) and torch.equal(logvar, logvar_too)
    assert (mu_shrunk == 0).any() and (mu_shrunk != 0).any()
    assert torch.allclose(mu_shrunk, mu.sign() * (mu.abs() - 0.25).clamp(min=0))


def test_discriminator_adds_a_table_of_the_label_at_three_resolutions():
    torch.manual_seed(0)
    disc = mathieu.Discriminator(labels=7).eval()
    x, y = torch.rand(5, 1, 28, 28), torch.tensor([3, 0, 6, 3, 1])
    h = x
    for conv, norm, table in zip(disc.convs, disc.norms, disc.tables):
        assert table.shape[2:] == (4, 4)
        h = conv(h)
        h = norm(h + F.interpolate(table[y], h.shape[2:], mode="nearest"))  # before normalisation
        h = F.leaky_relu(h, 0.2)
    truth = disc.out(h.flatten(1)).squeeze(1)
    assert torch.allclose(disc(x, F.one_hot(y, 7).float()), truth, atol=1e-5)


def test_discriminator_adds_the_tables_of_several_attributes():
    torch.manual_seed(0)
    disc, summed = mathieu.Discriminator(labels=7).eval(), mathieu.Discriminator(labels=1).eval()
    tables = {f"tables.{k}": t[1:2] + t[2:3] for k, t in enumerate(disc.tables)}
    summed.load_state_dict({**disc.state_dict(), **tables})
    x, both = torch.rand(1, 1, 28, 28), torch.tensor([[0.0, 1, 1, 0, 0, 0, 0]])
    assert torch.allclose(disc(x, both), summed(x, torch.ones(1, 1)), atol=1e-5)


def test_decoder_adds_its_branches():
    dec = mathieu.Decoder().eval()
    dec.from_s.load_state_dict(dec.from_z.state_dict())
    z, s = torch.randn(2, 3, 16)
    assert torch.allclose(dec(z, s), dec(s, z), atol=1e-5)
    zero = torch.zeros(3, 16)
    assert torch.allclose(dec(z, s), dec(z + s, zero), atol=1e-5)


# ---- A step, by hand -----------------------------------------------------------------------------

B = 8  # pairs: image k and image k + B share a label
LABELS = torch.tensor([3, 1, 4, 0, 5, 9, 2, 6])
STEP = {"epochs": 100, "batch_size": B, "lr": 0.003, "lr_disc": 0.002}


class Enough(Exception):
    pass


def one_step(monkeypatch, update, o):
    """Train one step with `update` in the place of mathieu.update; returns the losses it logs.

    nets and data as `nets_of` and `paired` make them; the step's noise follows seed 5."""

    def pair_same_class(y):
        torch.manual_seed(5)
        return torch.stack([torch.arange(B), torch.arange(B) + B], 1)

    def log(run, **losses):
        logged.update({name: loss.item() for name, loss in losses.items()})
        raise Enough

    logged, nets = {}, nets_of(o)
    monkeypatch.setattr(common, "pair_same_class", pair_same_class)
    monkeypatch.setattr(mathieu, "update", lambda *words, **more: update(nets, *words, **more))
    monkeypatch.setattr(common.Run, "log", log)
    with pytest.raises(Enough):
        mathieu.train(common.Run("mathieu", o), nets, paired())
    return logged


def nets_of(o):
    torch.manual_seed(0)
    nets = mathieu.build(o)
    nn.init.normal_(nets.enc.to_mu.weight, std=0.1)  # means on both sides of the dead zone
    return nets


def paired():
    return digits(2 * B)._replace(y=LABELS.repeat(2))


def by_hand(o):
    """The step of Algorithm 1 again, pass by pass, with sigmoids and logarithms spelled out.

    Returns the gradient of each player's loss by the name of the parameter, and the losses."""
    nets, x = nets_of(o), paired().x.float() / 255
    torch.manual_seed(5)
    x1, x1p, id1 = x[:B], x[B:], torch.eye(10)[LABELS]
    before = [(k - 1) % B for k in range(B)]  # x2 of a pair is x1 of the pair before it
    x2, id2 = x1[before], id1[before]
    s1, mu, logvar = nets.enc(x1)
    s1p = nets.enc(x1p)[0]
    z1 = mu + torch.randn(B, o.z_dim) * (0.5 * logvar).exp()
    z = o.prior_std * torch.randn(B, o.z_dim)
    codes = [(z1, s1), (z1, s1p), (z1, s1[before]), (z, s1[before])]
    made = nets.dec(torch.cat([z for z, _ in codes]), torch.cat([s for _, s in codes]))
    x_own, x_same, x_swap, x_prior = made[:B], made[B : 2 * B], made[2 * B : 3 * B], made[3 * B :]

    def D(image):
        return torch.sigmoid(nets.disc(image, id2))

    def M(code, id):
        return torch.sigmoid(nets.code_disc.net(code)[id > 0])

    found = {
        "own": ((x_own - x1) ** 2).sum() / B,
        "same": ((x_same - x1) ** 2).sum() / B,
        "kl": (mu**2 + logvar.exp() - logvar - 1).sum() / 2 / B,
        "swap": -D(x_swap).log().mean(),
        "prior": -D(x_prior).log().mean(),
        "hide": -M(mu, id2).log().mean() - (1 - M(mu, id1)).log().mean(),
    }
    weights = {name: getattr(o, f"{name}_weight") for name in ("own", "same", "swap", "prior")}
    weights["kl"] = o.kl_start + (o.kl_weight - o.kl_start) * (1 / 100) / 0.6
    weights["hide"] = o.code_weight
    loss_g = sum(weights[name] * value for name, value in found.items())
    fakes = [x_swap, x_prior] if o.prior_weight else [x_swap]
    loss_d = -D(x2).log().mean()
    for fake in fakes:
        loss_d = loss_d - (1 - D(fake.detach())).log().mean() / len(fakes)
    code = mu.detach()
    loss_c = -M(code, id1).log().mean() - (1 - M(code, id2)).log().mean()
    gradients = {}
    for loss, players in zip((loss_g, loss_d, loss_c), PLAYERS):
        of_them = {n: p for n, p in nets.named_parameters() if n.split(".")[0] in players}
        values = torch.autograd.grad(loss, list(of_them.values()), retain_graph=True)
        gradients.update(zip(of_them, values))
    return gradients, {**found, "disc": loss_d}


VARIANTS = [
    {},
    {"swap_weight": 0.0},
    {"prior_weight": 0.0},
    {"code_weight": 0.0},
    {"dead_zone": 0.0},
    {"prior_std": 1.0},
    {"recipe": "paper"},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_step_is_algorithm_1(monkeypatch, variant):
    o, got, order = settings(**STEP, **variant, beta1=0.4), {}, []

    def spy(nets, optimiser, loss, keep=False):
        names = {p: name for name, p in nets.named_parameters()}
        (group,) = optimiser.param_groups
        mine = [names[p] for p in group["params"]]
        got.update(zip(mine, torch.autograd.grad(loss, group["params"], retain_graph=True)))
        order.append((mine, group["lr"], group["betas"]))
        assert keep == (len(order) == 1)  # Disc's loss is of the same logits
        if len(order) > 2:  # what CodeDiscriminator sees is detached
            others = [nets.enc.to_mu.bias, nets.dec.from_s.bias]
            reached = torch.autograd.grad(loss, others, retain_graph=True, allow_unused=True)
            assert reached == (None, None)

    logged = one_step(monkeypatch, spy, o)
    truth, losses = by_hand(o)
    assert [{name.split(".")[0] for name in mine} for mine, _, _ in order] == list(PLAYERS)
    assert sorted(name for mine, _, _ in order for name in mine) == sorted(truth)  # nobody is left
    assert [lr for _, lr, _ in order] == pytest.approx([0.0015, 0.001, 0.0015])  # of step 1 of 100
    assert [betas for _, _, betas in order] == [(0.4, 0.999)] * 3
    assert logged == pytest.approx({name: loss.item() for name, loss in losses.items()}, rel=1e-4)
    # A bias before batch norm has no gradient but for rounding.
    rounding = re.compile(r"disc.convs.\d.bias|enc.features.\d.0.bias|dec.to_image.[12].2.bias")
    for name, gradient in got.items():
        scale = truth[name].abs().max().item()
        if rounding.fullmatch(name):
            assert max(gradient.abs().max(), scale) < 1e-3, name
        else:
            assert torch.allclose(gradient, truth[name], atol=2e-3 * scale), name


def test_an_update_moves_its_player_and_nobody_else(monkeypatch):
    moved, real = [], mathieu.update

    def spy(nets, optimiser, loss, keep=False):
        before = {name: p.detach().clone() for name, p in nets.named_parameters()}
        real(optimiser, loss, keep)
        assert all(p.grad is None for p in nets.parameters())  # none stays for the next update
        moved.append({n for n, p in nets.named_parameters() if not torch.equal(p, before[n])})

    o = settings(**STEP)
    one_step(monkeypatch, spy, o)
    names = [name for name, _ in nets_of(o).named_parameters()]
    truth = [{name for name in names if name.split(".")[0] in players} for players in PLAYERS]
    assert moved == truth


def test_update_is_a_step_on_the_gradient_of_its_own_parameters():
    a, b = nn.Parameter(torch.tensor([1.0, 2.0])), nn.Parameter(torch.tensor([3.0, 4.0]))
    frozen = nn.Parameter(torch.tensor([5.0, 6.0]), requires_grad=False)
    optimiser = torch.optim.SGD([a, frozen], lr=0.1)
    for _ in range(2):  # twice: gradients do not pile up
        mathieu.update(optimiser, (a * b * frozen).sum())
    assert torch.allclose(a, torch.tensor([1 - 0.2 * 15, 2 - 0.2 * 24]))
    assert b.tolist() == [3, 4] and b.grad is None and frozen.tolist() == [5, 6]


def test_rate_rises_holds_and_falls():
    progress = (0.005, 0.01, 0.02, 0.3, 0.5, 0.6, 0.75, 0.98, 0.99, 1.0)
    factors = (0.25, 0.5, 1, 1, 1, 0.8, 0.5, 0.04, 0.02, 0.02)
    assert [mathieu.rate(p) for p in progress] == pytest.approx(factors)


def test_rates_and_weights_along_a_run(monkeypatch):
    rates, kl_weights, kl = [], [], torch.ones((), requires_grad=True)

    def spy(optimiser, loss, keep=False):
        rates.append(optimiser.param_groups[0]["lr"])
        (weight,) = torch.autograd.grad(loss, kl, retain_graph=True, allow_unused=True)
        if weight is not None:
            kl_weights.append(weight.item())

    monkeypatch.setattr(mathieu, "update", spy)
    monkeypatch.setattr(mathieu, "kl_loss", lambda mu, logvar: kl)
    monkeypatch.setattr(common.Run, "save", lambda run: None)
    two = {"epochs": 5, "batch_size": B // 2}  # steps an epoch: rates move within it
    o = settings(**{**STEP, **two}, kl_start=0.2, kl_weight=1.2)
    mathieu.train(common.Run("mathieu", o), mathieu.build(o), paired())
    factors = [1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0.02]
    assert rates[0::3] == pytest.approx([0.003 * factor for factor in factors])
    assert rates[1::3] == pytest.approx([0.002 * factor for factor in factors])
    assert rates[2::3] == pytest.approx([0.003 * max(factor, 0.3) for factor in factors])
    assert kl_weights == pytest.approx([0.2 + min(1, k / 6) for k in range(1, 11)])


def test_training_mode_is_set_and_batch_norm_averages_fit_what_is_decoded():
    o = settings(**STEP)
    nets = mathieu.build(o).eval()
    mathieu.train(common.Run("mathieu", dataclasses.replace(o, epochs=1)), nets, paired())
    passes = {"enc": 2, "dec": 1, "disc": 3, "code_disc": 2}
    for name, count in passes.items():
        layer = next(m for m in getattr(nets, name).modules() if hasattr(m, "running_mean"))
        assert layer.training and layer.num_batches_tracked == count, name


# ---- Settings, labels, notebooks -----------------------------------------------------------------


def test_the_papers_recipe_has_none_of_our_additions():
    for dataset in (*common.GREY, "sprites", "svhn", "cifar10", "colour"):
        ours, paper = mathieu.recipe(dataset), mathieu.recipe(dataset, "paper")
        off = {"recipe": "paper", "prior_std": 1.0, "dead_zone": 0.0, "code_weight": 0.0}
        assert paper == dataclasses.replace(ours, **off)
        assert ours.code_weight > 0 and ours.dead_zone > 0 and ours.dataset == dataset
    assert mathieu.recipe("kmnist") == dataclasses.replace(mathieu.MNIST, dataset="kmnist")
    assert mathieu.recipe("svhn") == dataclasses.replace(mathieu.SPRITES, dataset="svhn")
    assert mathieu.MNIST == mathieu.Settings() and mathieu.MNIST.prior_std > 1


def test_the_discriminators_are_told_the_class_or_seven_attributes():
    numbers = digits(50)
    assert torch.equal(numbers.one_hot_labels(), F.one_hot(numbers.y, 10).float())
    assert digits(1).one_hot_labels().shape == (1, 10)  # with the classes that are not there
    people = common.Split(*sprites("test", images_per_identity=2))
    assert people.take(slice(1)).one_hot_labels().shape == (1, 23)
    ids, start = people.one_hot_labels(), 0
    assert ids.shape == (200, sum(ATTRIBUTE_SIZES)) and ids.dtype == torch.float32
    for k, size in enumerate(ATTRIBUTE_SIZES):
        truth = F.one_hot(people.attributes[:, k], size)
        assert torch.equal(ids[:, start : start + size], truth.float())
        start += size


def test_networks_are_built_as_the_settings_say():
    for dataset, shape, labels in (("mnist", (1, 28), 10), ("svhn", (3, 32), 10)):
        o = dataclasses.replace(mathieu.recipe(dataset), z_dim=6, s_dim=5, dead_zone=0.125)
        nets = mathieu.build(o)
        x = torch.zeros(2, shape[0], shape[1], shape[1], dtype=torch.uint8)
        s, mu, sigma = mathieu.encode(nets, x)
        assert s.shape == (2, 5) and mu.shape == sigma.shape == (2, 6)
        assert mathieu.decode(nets, mu, s).shape == x.shape
        assert nets.enc.dead_zone == 0.125 and nets.disc.tables[0].shape[0] == labels
    assert mathieu.build(mathieu.SPRITES).code_disc.net[-1].out_features == sum(ATTRIBUTE_SIZES)


def test_encode_and_decode_are_the_networks_part_by_part():
    torch.manual_seed(0)
    nets, x = mathieu.build(mathieu.MNIST).eval(), digits(1500).x
    s, mu, sigma = mathieu.encode(nets, x)
    with torch.no_grad():
        s_last, mu_last, logvar_last = nets.enc(x[1200:].float() / 255)
        last = nets.dec(mu_last, s_last)
    assert len(s) == 1500 and torch.allclose(s[1200:], s_last, atol=1e-5)
    assert torch.allclose(mu[1200:], mu_last, atol=1e-5)
    assert torch.allclose(sigma[1200:] ** 2, logvar_last.exp(), rtol=1e-3)
    made = mathieu.decode(nets, mu, s)
    assert not made.requires_grad and torch.allclose(made[1200:], last, atol=1e-5)


# ---- Scores --------------------------------------------------------------------------------------


def whole_image(x):
    """Codes that keep everything: s = mu = the image, sigma next to 0."""
    flat = common.to_float(x).flatten(1)
    return flat, flat, torch.full_like(flat, 1e-12)


def shows_z(z, s):
    return z.clamp(0, 1).view(-1, 1, 28, 28)


def shows_s(z, s):
    return s.clamp(0, 1).view(-1, 1, 28, 28)


def test_swap_scores_catch_a_decoder_that_ignores_s():
    test, judge = digits(400, test=True), scores.load_judge("mnist")
    codes = whole_image(test.x)
    ignores = mathieu_scores.swap_scores(codes, shows_z, test, judge)
    assert ignores["swap_accuracy"] < 1 and ignores["swap_accuracy_mean"] < 1
    assert ignores["swap_z_leak"] > 98 and ignores["prior_accuracy"] < 25
    uses = mathieu_scores.swap_scores(codes, shows_s, test, judge)
    assert uses["swap_accuracy"] > 98 and uses["swap_accuracy_mean"] > 98
    assert uses["swap_z_leak"] < 1 and uses["prior_accuracy"] > 98


def test_swap_scores_draw_z_from_the_posterior_and_from_the_prior():
    test, seen = digits(500, test=True), []

    def decode(z, s):
        seen.append((z, s))
        return torch.zeros(len(z), 1, 28, 28)

    codes = torch.rand(500, 3), torch.full((500, 4), 5.0), torch.full((500, 4), 0.1)
    mathieu_scores.swap_scores(codes, decode, test, scores.load_judge("mnist"))
    assert [round(z.mean().item(), 1) for z, _ in seen] == pytest.approx([5, 5, 0], abs=0.11)
    assert [z.std().item() for z, _ in seen] == pytest.approx([0.1, 0, 1], abs=0.05)
    assert torch.equal(seen[0][1], seen[1][1]) and torch.equal(seen[2][1], codes[0])


def test_probes_and_retrieval_read_the_right_code():
    torch.manual_seed(0)
    train, test = digits(2000), digits(1000, test=True)
    codes = []
    for part in (train, test):  # s tells the class, mu tells nothing
        s = F.one_hot(part.y, 10) + 0.1 * torch.randn(len(part.y), 10)
        codes.append((s, torch.randn(len(s), 16), torch.full((len(s), 16), 0.5)))
    found = mathieu_scores.probe_scores(codes[0], train, codes[1], test, epochs=3)
    assert found["s_error"] < 3 and found["z_mean_error"] > 80 and found["z_sample_error"] > 80
    assert found["guess_error"] == pytest.approx(90) and 85 < found["chance_error"] < 91
    two = [part.take((part.y == 0) | (part.y == 9)) for part in (train, test)]
    some = [tuple(c[: len(part.y)] for c in code) for code, part in zip(codes, two)]
    words = (some[0], two[0], some[1], two[1])
    assert mathieu_scores.probe_scores(*words, epochs=1)["guess_error"] == pytest.approx(50)
    found = mathieu_scores.retrieval_scores(codes[1], test)
    assert found["retrieval_s"] > 95 and found["retrieval_z"] < 20


def test_the_commonest_label_is_that_of_the_training_images():
    train, test = digits(40), digits(40, test=True)
    train = train._replace(y=torch.tensor([0, 0, 0, 1]).repeat(10))
    test = test._replace(y=torch.tensor([1, 1, 1, 0]).repeat(10))
    codes = (torch.randn(40, 3),) * 2 + (torch.ones(40, 3),)
    found = mathieu_scores.probe_scores(codes, train, codes, test, epochs=1)
    assert found["chance_error"] == 75


def test_retrieval_counts_the_class_among_the_eight_nearest():
    torch.manual_seed(0)
    test = digits(60, test=True)
    codes, hits = (torch.rand(60, 3), torch.rand(60, 2), None), {"retrieval_s": 0, "retrieval_z": 0}
    for name, code in zip(hits, codes):
        for query in range(60):
            near = (code - code[query]).square().sum(1).argsort()[1:9]
            hits[name] += (test.y[near] == test.y[query]).sum().item()
    truth = {name: 100 * count / 480 for name, count in hits.items()}
    assert mathieu_scores.retrieval_scores(codes, test) == pytest.approx(truth)


def test_samples_are_probed_with_their_own_noise():
    """The mean tells the class; noise of ten times the distance hides it in samples."""
    y = torch.arange(4000) % 2
    data = common.Split(torch.zeros(4000, 1), y)
    mu = y.float()[:, None]
    codes = mu, mu, torch.full_like(mu, 10.0)
    train, test = data.take(slice(3000)), data.take(slice(3000, None))
    codes = [[code[:3000] for code in codes], [code[3000:] for code in codes]]
    found = mathieu_scores.probe_scores(codes[0], train, codes[1], test, epochs=3)
    assert found["z_mean_error"] < 1 and found["z_sample_error"] > 0.8 * found["chance_error"]


def test_probes_of_sprites_are_a_mean_over_seven_attributes_and_read_the_pose():
    train = common.Split(*sprites("train", images_per_identity=4))
    test = common.Split(*sprites("test", images_per_identity=4))
    codes = []
    for part in (train, test):  # s has the attributes, mu the pose
        one_hot = part.one_hot_labels()
        codes.append((one_hot, part.pose, torch.full_like(part.pose, 0.01)))
    found = mathieu_scores.probe_scores(codes[0], train, codes[1], test, epochs=10)
    assert found["s_error"] < 5 and found["pose_r2_z"] > 0.9 and found["pose_r2_s"] < 0.1
    of_attributes = [v for k, v in found.items() if k.startswith("z_mean_error_")]
    assert len(of_attributes) == 7
    assert found["z_mean_error"] == pytest.approx(sum(of_attributes) / 7)
    truth = sum(100 - 100 / size for size in ATTRIBUTE_SIZES) / 7
    assert found["guess_error"] == pytest.approx(truth)


def test_reconstruction_scores_against_closed_forms():
    torch.manual_seed(1)
    test = digits(3000, test=True)
    mu, sigma = torch.rand(2, 3000, 4)
    codes = torch.zeros(3000, 2), mu, sigma + 0.1

    def brightness(z, s):
        return z[:, :1, None, None].expand(-1, 1, 28, 28)

    found = mathieu_scores.reconstruction_scores(codes, brightness, test)
    prior = torch.distributions.Normal(0, 1)
    q = torch.distributions.Normal(mu, sigma + 0.1)
    kl = torch.distributions.kl_divergence(q, prior).sum(1).mean().item()
    mse = (mu[:, :1] - test.x.flatten(1) / 255).square().mean().item()
    more = (sigma[:, 0] + 0.1).square().mean().item()
    assert found["kl_nats"] == pytest.approx(kl, rel=1e-4)
    assert found["reconstruction_mse"] == pytest.approx(mse, rel=1e-4)
    assert found["reconstruction_mse_sample"] == pytest.approx(mse + more, rel=0.05)


def test_true_swaps_of_sprites():
    test = common.Split(*sprites("test", images_per_identity=2))
    codes = test.attributes.float(), test.pose, torch.zeros_like(test.pose)

    def draws(z, s):
        return common.to_float(draw_sprites(s.long(), z))

    found = mathieu_scores.true_swap_scores(codes, draws, test)
    assert found["swap_mse"] < 1e-6
    assert min(found["swap_mse_ignore_s"], found["swap_mse_ignore_z"]) > 0.005
    ignores_s = {"codes": (codes[0], common.to_float(test.x), None), "decode": lambda z, s: z}
    ignores_z = {"codes": (common.to_float(test.x), codes[1], None), "decode": lambda z, s: s}
    for name, words in (("ignore_s", ignores_s), ("ignore_z", ignores_z)):
        again = mathieu_scores.true_swap_scores(**words, test=test)
        assert again["swap_mse"] == found[f"swap_mse_{name}"]


@pytest.mark.parametrize("dataset", ["mnist", "sprites"])
def test_every_score_gets_its_data(dataset, monkeypatch, tmp_path):
    def spy(name):
        def call(*words, **more):
            seen[name], told[name] = words, more
            return {name: 1.0}

        return call

    def encode(nets, x):
        return nets, x

    def decode(nets, z, s):
        return nets, z, s

    seen, told, data, test = {}, {}, digits(3), digits(2, test=True)
    names = "reconstruction probe retrieval swap true_swap".split()
    for name in names:
        monkeypatch.setattr(mathieu_scores, f"{name}_scores", spy(name))
    for name in ("mnist_table", "sprites_table"):
        monkeypatch.setattr(mathieu_scores, name, lambda *words, name=name: name)
    monkeypatch.setattr(mathieu_scores, "figure_retrieval", spy("figure"))
    o = settings(dataset=dataset, dry_run=True)
    words = "nets", encode, decode, data, test, o, tmp_path
    found, table = mathieu_scores.evaluate(*words)
    left_out = {"mnist": "true_swap", "sprites": "swap"}[dataset]
    judged = {"judge_accuracy"} if dataset == "mnist" else set()
    assert set(found) == set(names) - {left_out} | judged and table == f"{dataset}_table"
    codes, of_data = ("nets", test.x), ("nets", data.x)
    assert same(seen["probe"], (of_data, data, codes, test)) and same(seen["retrieval"][0], codes)
    for name in set(found) - {"probe", "retrieval", "judge_accuracy"}:
        given = seen[name]
        assert same(given[0], codes) and same(given[2], test)
        assert given[1]("z", "s") == ("nets", "z", "s")
    assert seen["figure"][2] == tmp_path / "retrieval.png" and told["probe"] == {"epochs": 1}
    mathieu_scores.evaluate(*words[:5], dataclasses.replace(o, dry_run=False), tmp_path)
    assert told["probe"] == {"epochs": 20}


# ---- Figures -------------------------------------------------------------------------------------


@pytest.fixture
def grids(monkeypatch):
    """The arguments of every grid: path -> (images, columns, words, {left, top})."""
    found = {}

    def figure_grid(path, images, columns, *words, **sides):
        found[path] = images, columns, words, sides

    monkeypatch.setattr(common, "figure_grid", figure_grid)
    monkeypatch.setattr(mathieu_scores, "figure_grid", figure_grid, raising=False)
    return found


def nets_that(decode):
    def enc(x):
        flat, _, _ = whole_image(x)
        return flat, flat, torch.full_like(flat, -60.0)

    return fake_nets(enc=enc, dec=decode)


def close(a, b):
    return torch.allclose(common.to_float(a), common.to_float(b), atol=1e-5)


def test_figures_put_every_donor_in_its_place(grids):
    test = common.load_dataset("mnist")[1]
    x = mathieu.examples(test)
    labels = [test.y[(test.x == image).flatten(1).all(1)].item() for image in x]
    assert labels == list(range(10))
    one, eight = common.to_float(x[1]), common.to_float(x[8])
    for decode in (shows_z, shows_s):
        mathieu.figure_swap(nets_that(decode), test, "swap")
        images, columns, words, sides = grids["swap"]
        assert columns == 10 and close(sides["left"], x) and close(sides["top"], x)
        assert "s from" in words[1] and "z from" in words[2]  # above; on the left
        for row, column in ((0, 3), (4, 7), (9, 2)):
            donor = x[row] if decode == shows_z else x[column]
            assert close(images[10 * row + column], donor)
        mathieu.figure_interpolation(nets_that(decode), test, "line")
        images, columns, words, sides = grids["line"]
        assert columns == 10 and len(images) == 100 and not sides
        assert words[1].startswith("s") and words[2].startswith("z")  # along a row; a column
        assert close(images[0], one) and close(images[99], eight)
        assert close(images[9], one if decode == shows_z else eight)
        assert close(images[90], eight if decode == shows_z else one)
        third = one * 2 / 3 + eight / 3  # of the way: row 9, column 3
        assert close(images[93], eight if decode == shows_z else third)


def test_the_corners_of_the_interpolation_are_the_test_images(grids):
    test = common.load_dataset("mnist")[1]
    mathieu.figure_interpolation(nets_that(lambda z, s: shows_s(z, s) * 0), test, "line")
    images, x = grids["line"][0], mathieu.examples(test)
    assert close(images[0], x[1]) and close(images[99], x[8]) and images[1:99].sum() == 0


def test_generation_has_an_s_a_row_and_a_z_of_the_prior_a_column(grids):
    test = common.load_dataset("mnist")[1]
    x = mathieu.examples(test)
    mathieu.figure_generation(nets_that(shows_s), test, "made")
    images, columns, _, sides = grids["made"]
    assert columns == 10 and close(sides["left"], x) and sides.get("top") is None
    assert all(close(images[10 * row + column], x[row]) for row in range(10) for column in (0, 9))
    mathieu.figure_generation(nets_that(lambda z, s: z.view(-1, 1, 28, 28)), test, "made")
    z = grids["made"][0].view(10, 10, 784)
    assert torch.equal(z[0], z[7]) and not torch.equal(z[0, 0], z[0, 1])
    assert abs(z.mean()) < 0.05 and abs(z.std() - 1) < 0.05


def test_retrieval_shows_the_nearest_by_each_code(grids):
    torch.manual_seed(0)
    test = digits(300, test=True)
    codes = torch.rand(300, 3), torch.rand(300, 2), None
    mathieu_scores.figure_retrieval(codes, test, "found")
    images, columns, words, sides = grids["found"]
    queries = [test.y.tolist().index(label) for label in range(5)]
    assert columns == 8 and close(sides["left"], test.x[queries * 2]) and len(images) == 80
    for row, (code, query) in enumerate([(c, q) for c in codes[:2] for q in queries]):
        near = (code - code[query]).square().sum(1).argsort().tolist()
        assert near[0] == query and close(images[8 * row : 8 * row + 8], test.x[near[1:9]])


# ---- Figure 10(a): s from a frozen classifier ----------------------------------------------------


def test_pretraining_teaches_s_the_class_and_freezes_it():
    o, data, test = settings(batch_size=25), digits(3000), digits(1000, test=True)
    torch.manual_seed(0)
    nets = mathieu_pretrained_s.build(o)
    mathieu_pretrained_s.pretrain(nets.enc.classifier, data, o, epochs=2)
    assert not any(p.requires_grad for p in nets.enc.classifier.parameters())
    s, mu, _ = mathieu.encode(nets.eval(), test.x)
    assert s.mean(1).abs().max() < 1e-4 and (s.std(1, unbiased=False) - 1).abs().max() < 1e-2
    error = scores.probe(mathieu.encode(nets, data.x)[0], data.y, s, test.y, epochs=5)
    assert error.item() < 10


def test_the_classifier_stays_as_it_was_and_the_rest_learns():
    o, data = settings(epochs=1, batch_size=8, dead_zone=0.0), zeros_and_ones(48)
    nets = mathieu_pretrained_s.build(o)
    mathieu_pretrained_s.pretrain(nets.enc.classifier, data, o, epochs=1)
    before = copy.deepcopy(nets.state_dict())
    mathieu.train(common.Run("mathieu_pretrained_s", o), nets, data)
    moved = {k for k, v in nets.state_dict().items() if not torch.equal(v, before[k])}
    assert not any("classifier" in name for name in moved)  # neither weights nor batch norm
    names = {name for name, _ in nets.named_parameters() if "classifier" not in name}
    assert names - moved == {"enc.enc.to_s.weight", "enc.enc.to_s.bias"}  # which nobody reads
    assert not nets.enc.classifier.training and nets.enc.enc.training


def test_an_encoder_with_frozen_s_gives_the_classifiers_s_and_its_own_z():
    nets, x = mathieu_pretrained_s.build(mathieu.MNIST).eval(), torch.rand(3, 1, 28, 28)
    s, mu, logvar = nets.enc(x)
    assert torch.allclose(s, F.layer_norm(nets.enc.classifier(x)[0], (16,)))
    assert torch.equal(mu, nets.enc.enc(x)[1]) and torch.equal(logvar, nets.enc.enc(x)[2])


def test_a_resumed_run_skips_the_pretraining_and_ends_bit_for_bit(goes_on_bit_for_bit, monkeypatch):
    calls, pretrain = [], mathieu_pretrained_s.pretrain
    monkeypatch.setattr(
        mathieu_pretrained_s, "pretrain", lambda *words: (calls.append(1), pretrain(*words))[1]
    )
    o = settings(batch_size=8, epochs=2, dry_run=True)
    part = goes_on_bit_for_bit(mathieu_pretrained_s, o, zeros_and_ones(64))["states"]
    assert len(calls) == 2  # of the whole run and of the stopped one
    nets = common.load("part", mathieu.recipe, mathieu_pretrained_s.build)
    assert same(nets.state_dict(), part["nets"]) and not nets.enc.training


# ---- A tiny training -----------------------------------------------------------------------------


def test_a_tiny_training_uses_s_and_without_its_terms_does_not():
    """Zeros and ones: swaps take the class of s. Without the adversaries, and with room in z, they
    show neither class (the judge reads an 8), while reconstructions stay right."""
    train, test = zeros_and_ones(512), zeros_and_ones(300, test=True)
    judge, found = scores.load_judge("mnist"), {}
    off = {"swap_weight": 0.0, "prior_weight": 0.0, "code_weight": 0.0}
    for name, epochs, changes in (("whole", 5, {}), ("ablated", 3, off)):
        o = settings(epochs=epochs, batch_size=16, kl_weight=0.05, kl_start=0.05, **changes)
        run = common.Run("mathieu", dataclasses.replace(o, out=name))
        nets = mathieu.build(o)
        mathieu.train(run, nets, train)
        codes, decode = mathieu.encode(nets.eval(), test.x), functools.partial(mathieu.decode, nets)
        found[name] = mathieu_scores.swap_scores(codes, decode, test, judge)
        found[name].update(mathieu_scores.reconstruction_scores(codes, decode, test))
    print(found)
    assert found["whole"]["swap_accuracy"] > 75 and found["whole"]["swap_z_leak"] < 20
    assert found["ablated"]["swap_accuracy"] < 20
    assert all(found[name]["reconstruction_mse"] < 0.04 for name in found)


# ---- The command line ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory):
    """A dry run from the command line, shared by the tests below: its folder, what it said."""
    folder, said = tmp_path_factory.mktemp("dry"), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["mathieu.py", "--dry-run", "--out", "run"])
        runpy.run_path(str(ROOT / "mathieu.py"), run_name="__main__")
    return folder / "run", said.getvalue()


def numbers(folder):
    return json.loads((Path(folder) / "metrics.json").read_text())


def test_a_dry_run_makes_everything(dry_run):
    folder, said = dry_run
    words = "swap_accuracy swap_accuracy_mean swap_z_leak prior_accuracy s_error z_mean_error"
    words += " z_sample_error chance_error guess_error reconstruction_mse kl_nats retrieval_s"
    words += (
        " retrieval_z reconstruction_mse_sample judge_accuracy seconds images_per_second epochs"
    )
    assert set(numbers(folder)) == set(words.split())
    assert all(math.isfinite(value) for value in numbers(folder).values())
    for name in ("swap", "interpolation", "generation", "retrieval", "losses"):
        assert (folder / f"{name}.png").stat().st_size > 2000
    assert "swap shows the class of the s donor" in said and "(guessing)" in said
    assert f"{numbers(folder)['swap_accuracy']:.4g}" in said
    assert run_folder.read_checkpoint(folder)["images"] >= 2 * 512  # of both epochs
    log = (folder / "log.csv").read_text().splitlines()
    assert log[0] == "epoch,own,same,kl,swap,prior,disc,hide" and len(log) == 3


def test_load_gives_the_trained_networks_in_eval_mode(dry_run):
    nets, test = mathieu.load(dry_run[0]), digits(512, test=True)
    assert not any(module.training for module in nets.modules())
    codes = mathieu.encode(nets, test.x)
    decode = functools.partial(mathieu.decode, nets)
    found = mathieu_scores.reconstruction_scores(codes, decode, test)
    truth = numbers(dry_run[0])["reconstruction_mse"]
    assert found["reconstruction_mse"] == pytest.approx(truth, rel=1e-3)
    saved = run_folder.read_checkpoint(dry_run[0])["states"]
    assert set(saved) == {"nets"} and same(nets.state_dict(), saved["nets"])


def test_a_finished_run_can_be_scored_again(dry_run, capsys):
    shutil.copytree(dry_run[0], "again")
    before = numbers("again")
    Path("again/metrics.json").write_text(json.dumps({**before, "s_error": -1, "kl_nats": -1}))
    Path("again/swap.png").unlink()
    score.main("again", "cpu")
    found = numbers("again")
    assert found == pytest.approx(before, rel=1e-4)
    assert capsys.readouterr().out == dry_run[1] and Path("again/swap.png").exists()


def test_other_variants_run_through(command, monkeypatch):
    def few(part):
        return common.Split(*sprites(part, images_per_identity=4))

    digits_too = common.load_dataset
    monkeypatch.setattr(
        common,
        "load_dataset",
        lambda name, *more: (
            (few("train"), few("test")) if name == "sprites" else digits_too(name, *more)
        ),
    )
    for words in (["--dataset", "sprites"], ["--recipe", "paper", "--validation"]):
        done = command("mathieu.py", "--dry-run", "--epochs", 1, "--out", words[1], *words)
        assert done.returncode == 0, (words, done.stderr)
    nets = mathieu.load("sprites")
    assert nets.enc.to_mu.out_features == 512
    assert nets.disc.tables[0].shape[0] == sum(ATTRIBUTE_SIZES)
    assert {"pose_r2_z", "swap_mse", "s_error_weapon"} <= set(numbers("sprites"))
    config = run_folder.read_config("paper")["settings"]
    assert config["recipe"] == "paper" and config["code_weight"] == 0 and config["validation"]


def test_help_tells_every_flag_with_its_comment_and_default(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["mathieu.py", "--help"])
    with pytest.raises(SystemExit) as stop:
        common.run_main(mathieu.main, mathieu.recipe)
    words = " ".join(capsys.readouterr().out.split())
    comments = command_line.field_comments(mathieu.Settings)
    assert stop.value.code == 0
    for field in dataclasses.fields(mathieu.Settings):
        flag, default = f"--{field.name.replace('_', '-')}", getattr(mathieu.MNIST, field.name)
        assert f"{flag} " in words and comments[field.name], flag
        assert f"{' '.join(comments[field.name].split())} [{default}]" in words, flag


# ---- Mistakes of the user ------------------------------------------------------------------------


def complaint_of(words, monkeypatch, capsys):
    """The one line that mathieu.py says about these words, exit status 2."""
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["mathieu.py", *words])
    with pytest.raises(SystemExit, match="^2$"):
        common.run_main(mathieu.main, mathieu.recipe)
    gc.collect()  # the run of a process that ends
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if not line.startswith("mathieu: ")]  # its own echo
    assert out == "" and len(lines) == 1, err
    return lines[0]


def damaged(kind):
    """Makes the folder d with an mnist.npz that has this fault."""
    n = 4 if kind == "few" else 200
    arrays = {"x_train": np.full((n, 28, 28), 9, np.uint8), "y_train": np.arange(n) % 2}
    arrays.update({"x_test": np.full((50, 28, 28), 9, np.uint8), "y_test": np.arange(50) % 2})
    arrays["x_train"][:, 0] = 0
    if kind == "single":
        arrays["y_train"][0] = 7
    if kind == "no key":
        del arrays["y_test"]
    Path("d").mkdir()
    np.savez("d/mnist.npz", **arrays)
    content = bytearray(Path("d/mnist.npz").read_bytes())
    if kind == "truncated":
        content = content[: len(content) // 2]
    if kind == "text":
        content = b"not an archive"
    if kind == "compression":  # of an entry of zip's directory, a kind that does not exist
        content[content.index(b"PK\1\2") + 10] = 77
    Path("d/mnist.npz").write_bytes(content)


MISTAKES = [
    ("--dataset imagenet", "unknown data set 'imagenet': choose one of mnist"),
    ("--data nowhere", "no mnist.npz in 'nowhere'"),
    ("--recipe released", "invalid choice: 'released'"),
    ("--epoch 3", "there is no --epoch here; did you mean --epochs?"),
    ("--kl-wieght 3", "there is no --kl-wieght here; did you mean --kl-weight?"),
    ("--epochs 0", "'0' is not a whole number"),
    ("--epochs many", "'many' is not a whole number"),
    ("--batch-size 2", "'2' is not a whole number from 3"),
    ("--seed -1", "'-1' is not a whole number"),
    ("--lr 0", "'0' is not a number"),
    ("--lr nan", "'nan' is not a number"),
    ("--kl-weight -2", "'-2' is not a number"),
    ("--swap-weight inf", "'inf' is not a number"),
    ("--beta1 1", "'1' is not a number from 0 to 0.9999"),
    ("--z-dim 0", "'0' is not a whole number"),
    ("--device tpu", "invalid choice: 'tpu'"),
    ("--device mps", "no mps device on this machine"),
    ("--precision fp8", "invalid choice: 'fp8'"),
    ("--out file", "cannot write to 'file'"),
    ("--out file/deeper", "cannot write to 'file/deeper'"),
    ("--out taken", "'taken' is not empty: choose another --out"),
    ("--resume", "expected one argument"),
    ("--resume absent", "'absent' is no run folder"),
    ("--resume taken", "'taken' is no run folder"),
    ("--resume aae-run", "'aae-run', a run of aae, is of another version or script"),
    ("--resume frozen-run", "'frozen-run' is a run of mathieu_pretrained_s, not of mathieu"),
    ("--resume broken-run", "'broken-run/config.json' is damaged"),
    ("--resume frozen-run --epochs 9", "beside --resume only --device may stand"),
]


def prepare():
    """Folders that the mistakes above are about."""
    Path("file").write_text("mine")
    for name in ("taken", "aae-run", "broken-run"):
        Path(name).mkdir()
    Path("taken/notes.txt").write_text("mine")
    Path("aae-run/config.json").write_text(json.dumps({"script": "aae", "settings": {"task": "a"}}))
    Path("broken-run/config.json").write_text('{"script": ')
    common.Run("mathieu_pretrained_s", settings(dry_run=True)).lock.release()
    Path("run").rename("frozen-run")


@pytest.mark.parametrize("words, complaint", MISTAKES, ids=[words for words, _ in MISTAKES])
def test_a_mistake_is_one_line_and_leaves_all_as_it_was(words, complaint, monkeypatch, capsys):
    prepare()
    before = {path: path.is_file() and path.read_bytes() for path in Path(".").rglob("*")}
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    more = [] if "--resume" in words else ["--dry-run"]
    assert complaint in complaint_of([*words.split(), *more], monkeypatch, capsys)
    after = {path: path.is_file() and path.read_bytes() for path in Path(".").rglob("*")}
    assert before == after


DAMAGES = [
    ("truncated", "cannot be read"),
    ("text", "cannot be read"),
    ("compression", "cannot be read"),
    ("no key", "lacks the array y_test"),
    ("few", "has 4 training images: at least 100 are needed"),
    ("single", "class 7 has a single image"),
]


@pytest.mark.parametrize("kind, complaint", DAMAGES, ids=[kind for kind, _ in DAMAGES])
def test_damaged_data_are_one_line_and_the_mended_command_works(
    kind, complaint, monkeypatch, capsys
):
    damaged(kind)
    words = ["--data", "d", "--dry-run", "--out", "run", "--device", "cpu"]
    assert complaint in complaint_of(words, monkeypatch, capsys)
    assert not Path("run").exists()
    common.Run("mathieu", command_line.parse(mathieu.recipe, ["--out", "run", "--device", "cpu"]))


def test_three_classes_of_your_own_are_enough(command):
    rng, arrays = np.random.default_rng(0), {}
    for part, count in (("train", 120), ("test", 30)):
        arrays[f"x_{part}"] = rng.integers(0, 256, (count, 28, 28), np.uint8)
        arrays[f"y_{part}"] = np.arange(count) % 3
    Path("mine").mkdir()
    np.savez("mine/a.npz", **arrays)
    words = "--dataset grey --data mine --dry-run --device cpu --z-dim 4".split()
    done = command("mathieu.py", *words)
    assert done.returncode == 0, done.stderr
    assert "the judge on the real test images" in done.stdout
    metrics = json.loads(Path("runs/mathieu/dry-run/metrics.json").read_text())
    assert metrics["guess_error"] == pytest.approx(100 * 2 / 3)
    assert all(math.isfinite(value) for value in metrics.values())
    assert Path("runs/mathieu/dry-run/interpolation.png").exists()


def test_a_training_that_breaks_says_where_and_keeps_what_was_good(monkeypatch, capsys):
    few = zeros_and_ones(64)
    monkeypatch.setattr(common, "load_data", lambda settings: (few, few))
    words = "--precision fp32 --device cpu --batch-size 16 --epochs 3 --out run"
    complaint = complaint_of([*words.split(), "--lr", "1000"], monkeypatch, capsys)
    assert "training broke: the loss '" in complaint and "is not finite at step" in complaint
    assert "try a lower rate" in complaint and not Path("run/metrics.json").exists()
    if Path("run/checkpoint.pt").exists():
        saved = run_folder.read_checkpoint("run")
        assert f"run keeps epoch {saved['epoch']}" in complaint
        assert all(v.isfinite().all() for v in saved["states"]["nets"].values())
    else:
        assert "nothing is saved" in complaint
