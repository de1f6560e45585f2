"""mathieu.py: losses against independent answers, who gets which gradient, scores that catch degenerate models, the command line."""
import copy
import json
import math
import shutil
import subprocess
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import common
import mathieu
from conftest import ROOT

from kills import same

# ---------------------------------------------------------------------------------------------------------- losses


def test_kl_against_torch_distributions_and_its_gradient():
    torch.manual_seed(0)
    mu, logvar = (torch.randn(5, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    q = torch.distributions.Normal(mu, (logvar / 2).exp())
    truth = torch.distributions.kl_divergence(q, torch.distributions.Normal(0., 1.)).sum(1).mean()
    loss = mathieu.kl_loss(mu, logvar)
    assert loss.shape == () and torch.allclose(loss, truth)
    d_mu, d_logvar = torch.autograd.grad(loss, (mu, logvar))
    assert torch.allclose(d_mu, mu / 5) and torch.allclose(d_logvar, (logvar.exp() - 1) / 2 / 5)     # not the released exp(2l) - 1
    assert torch.autograd.gradcheck(mathieu.kl_loss, (mu, logvar))
    assert mathieu.kl_loss(torch.zeros(2, 3), torch.zeros(2, 3)) == 0


def test_reconstruction_against_a_naive_loop():
    torch.manual_seed(0)
    a, b = torch.rand(3, 2, 4, 5, dtype=torch.float64), torch.rand(3, 2, 4, 5, dtype=torch.float64)
    truth = sum((a[n, c, i, j] - b[n, c, i, j]).item() ** 2 for n in range(3) for c in range(2) for i in range(4) for j in range(5)) / 3
    assert math.isclose(mathieu.reconstruction_loss(a, b).item(), truth, rel_tol=1e-12)


def test_adversarial_losses_against_their_formulas():
    torch.manual_seed(0)
    real, fake = (torch.randn(7, dtype=torch.float64, requires_grad=True) for _ in range(2))
    D = torch.sigmoid
    assert torch.allclose(mathieu.adversarial_loss(fake), -D(fake).log().mean())
    assert torch.allclose(mathieu.discriminator_loss(real, fake), -D(real).log().mean() - (1 - D(fake)).log().mean())
    smooth = -(0.95 * D(real).log() + 0.05 * (1 - D(real)).log()).mean()
    assert torch.allclose(mathieu.adversarial_loss(real, 0.95), smooth)
    assert torch.allclose(mathieu.discriminator_loss(real, fake, 0.95), smooth - (1 - D(fake)).log().mean())   # one-sided
    assert torch.autograd.gradcheck(mathieu.discriminator_loss, (real, fake))
    zero = torch.zeros(4)
    assert math.isclose(mathieu.adversarial_loss(zero).item(), math.log(2), rel_tol=1e-6)
    assert math.isclose(mathieu.discriminator_loss(zero, zero).item(), 2 * math.log(2), rel_tol=1e-6)


def test_reparametrise_has_the_posterior_moments():
    torch.manual_seed(0)
    z = mathieu.reparametrise(torch.full((200000, 1), 2.), torch.full((200000, 1), math.log(0.25)))
    assert abs(z.mean() - 2) < 0.01 and abs(z.std() - 0.5) < 0.01


# -------------------------------------------------------------------------------------------------------- networks


@pytest.mark.parametrize("inputs, size", [(1, 28), (3, 32), (1, 14), (1, 7), (16, 14)])
def test_conv5_is_a_plain_convolution(inputs, size):
    torch.manual_seed(0)
    fast, plain = mathieu.Conv5(inputs, 6).double(), nn.Conv2d(inputs, 6, 5, stride=2, padding=2).double()
    plain.load_state_dict(fast.state_dict())
    compare(fast, plain, torch.randn(2, inputs, size, size, dtype=torch.float64))


@pytest.mark.parametrize("outputs, size, odd", [(1, 14, False), (3, 16, False), (16, 7, False), (32, 4, True), (1, 4, True)])
def test_conv_transpose5_is_a_plain_transposed_convolution(outputs, size, odd):
    torch.manual_seed(0)
    fast = mathieu.ConvTranspose5(5, outputs, odd).double()
    plain = nn.ConvTranspose2d(5, outputs, 5, stride=2, padding=2, output_padding=0 if odd else 1).double()
    plain.load_state_dict(fast.state_dict())
    compare(fast, plain, torch.randn(2, 5, size, size, dtype=torch.float64))


def compare(fast, plain, x):
    x = x.requires_grad_(True)
    a, b = fast(x), plain(x)
    weight = torch.randn_like(b)
    assert a.shape == b.shape and torch.allclose(a, b)
    for g, h in zip(torch.autograd.grad((a * weight).sum(), [x, *fast.parameters()]),
                    torch.autograd.grad((b * weight).sum(), [x, *plain.parameters()])):
        assert torch.allclose(g, h)


@pytest.mark.parametrize("net", ["paper", "released"])
@pytest.mark.parametrize("channels, size", [(1, 28), (3, 32)])
def test_shapes_of_the_networks(net, channels, size):
    x = torch.rand(4, channels, size, size)
    s, mu, logvar = mathieu.Encoder(channels, size, z_dim=6, s_dim=5, net=net)(x)
    assert s.shape == (4, 5) and mu.shape == logvar.shape == (4, 6)
    assert mathieu.Decoder(channels, size, 6, 5, net)(mu, s).shape == x.shape
    assert mathieu.Discriminator(channels, size, 9, net)(x, torch.eye(9)[:4]).shape == (4,)
    assert mathieu.CodeDiscriminator(6, 9)(mu).shape == (4, 9)


def test_dead_zone_is_a_soft_threshold_of_the_means():
    torch.manual_seed(0)
    plain, shrunk = mathieu.Encoder().eval(), mathieu.Encoder(dead_zone=0.25).eval()
    nn.init.normal_(plain.to_z.weight, std=0.3)
    shrunk.load_state_dict(plain.state_dict())
    x = torch.rand(50, 1, 28, 28)
    (s, mu, logvar), (s_, mu_, logvar_) = plain(x), shrunk(x)
    assert torch.equal(s, s_) and torch.equal(logvar, logvar_) and (mu_ == 0).any() and (mu_ != 0).any()
    assert torch.allclose(mu_, mu.sign() * (mu.abs() - 0.25).clamp(min=0))


def test_paper_sizes_are_the_defaults():
    x = torch.rand(2, 1, 28, 28)
    s, mu, _ = mathieu.Encoder()(x)
    assert s.shape == mu.shape == (2, 16)
    kinds = [layer for layer in mathieu.Encoder().features if isinstance(layer, nn.Conv2d)]
    assert [(c.kernel_size, c.stride) for c in kinds] == [((5, 5), (2, 2))] * 3


def test_discriminator_adds_a_table_at_three_resolutions():
    torch.manual_seed(0)
    disc = mathieu.Discriminator(labels=7).eval()
    x, y = torch.rand(5, 1, 28, 28), torch.tensor([3, 0, 6, 3, 1])
    h = x
    for conv, norm, table in zip(disc.convs, disc.norms, disc.tables):
        h = conv(h)
        h = F.leaky_relu(norm(h + F.interpolate(table[y], h.shape[2:], mode="nearest")), 0.2)
    assert torch.allclose(disc(x, F.one_hot(y, 7).float()), disc.out(h.flatten(1)).squeeze(1), atol=1e-5)
    both = F.one_hot(torch.tensor([1, 2]), 7).sum(0, keepdim=True).float()              # two attributes: their tables add up
    summed = mathieu.Discriminator(labels=1).eval()
    summed.load_state_dict({**disc.state_dict(), **{f"tables.{k}": t[1:2] + t[2:3] for k, t in enumerate(disc.tables)}})
    assert torch.allclose(disc(x[:1], both), summed(x[:1], torch.ones(1, 1)), atol=1e-5)


def test_the_decoder_adds_its_branches():
    dec = mathieu.Decoder().eval()
    z, s = torch.randn(3, 16), torch.randn(3, 16)
    with torch.no_grad():
        dec.from_s.weight.copy_(dec.from_z.weight)
        dec.from_s.bias.copy_(dec.from_z.bias)
    assert torch.allclose(dec(z, s), dec(s, z), atol=1e-5)


# --------------------------------------------------------------------------------------------------- a step, by hand


def options(*arguments):
    return mathieu.resolve(mathieu.make_parser().parse_args(["--precision", "fp32", "--device", "cpu", "--epochs", "1", *map(str, arguments)]))


def pairs_of_two():
    """Zeros and ones, 49 images: in batches of 16 one is left over."""
    data = common.load_dataset("mnist")[0]
    return data.take(torch.nonzero(data.y < 2).flatten()[:49])


def one_step(monkeypatch, *arguments, n=16):
    """Train a single step; returns the gradients that each optimiser got, those of a plain re-implementation, and the parameter names."""
    opt = options("--batch-size", n, "--out", "run", "--lr", 0.003, "--lr-disc", 0.002, "--lr-code", 0.001, "--beta1", 0.4, *arguments)
    opt.epochs = 10
    train = common.load_dataset("mnist")[0].take(torch.arange(n))
    data = common.Split(train.x, torch.arange(n // 2).repeat(2))             # image i and i + n/2 share a class
    ids = F.one_hot(data.y, 10).float()
    pair = torch.stack([torch.arange(n // 2), torch.arange(n // 2) + n // 2], 1)

    def fixed_pairs(y):
        torch.manual_seed(5)                              # the step's draws follow from here
        return pair
    monkeypatch.setattr(common, "pair_same_class", fixed_pairs)
    monkeypatch.setattr(mathieu, "pretrain_s", lambda *_, **__: None)
    torch.manual_seed(0)
    nets = mathieu.build(opt, 1, 28, 10)

    copies = types.SimpleNamespace(**{k: copy.deepcopy(v) for k, v in vars(nets).items()})
    names = {p: f"{k}.{n}" for k, v in vars(nets).items() if v is not None for n, p in v.named_parameters()}
    got, rates = {}, {}

    def spy(optimiser, parameters, loss, **_):
        got.update({names[p]: g for p, g in zip(parameters, torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)) if g is not None})
        group, = optimiser.param_groups
        assert {id(p) for p in group["params"]} == {id(p) for p in parameters} and group["betas"] == (0.4, 0.999)
        rates[names[parameters[-1]].split(".")[0]] = group["lr"]
    monkeypatch.setattr(mathieu, "update", spy)
    logged = {}

    class Enough(Exception):
        pass

    def log(self, **losses):
        logged.update({k: v.item() for k, v in losses.items()})
        raise Enough
    monkeypatch.setattr(common.Run, "log", log)
    with pytest.raises(Enough):
        mathieu.train(common.Run("mathieu", opt), nets, data, ids)
    truth, losses = by_hand(opt, copies, common.to_float(data.x), ids, n // 2, grown=1 / 10 / 0.6)
    return got, truth, set(names.values()), rates, logged, losses


def by_hand(opt, nets, x1, id1, h, grown):
    """The step of Algorithm 1 written again, plainly: every pass on its own, index by index, sigmoids and logarithms spelled out."""
    fixed = lambda net: net.train()  # noqa: E731
    fixed(nets.enc), fixed(nets.dec), fixed(nets.disc), fixed(nets.mean_disc), fixed(nets.prior_disc)
    torch.manual_seed(5)
    k = int(torch.randint(1, h, ()))
    third = [(i - k) % (2 * h) for i in range(2 * h)]
    partner = [(i + h) % (2 * h) for i in range(2 * h)]
    s1, mu, logvar = nets.enc(x1)
    if nets.class_enc is not None:                        # Figure 10(a): s from the frozen classifier
        s1 = nets.class_enc.eval()(x1)[0].detach()
        s1 = (s1 - s1.mean(1, keepdim=True)) / (s1.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    z1 = mu + torch.randn(mu.shape) * torch.exp(0.5 * logvar)
    zp = 2 * torch.randn(h, z1.shape[1]) if opt.prior_weight else None     # wider than the prior (difference 2)
    draws = [torch.randn(z1.shape) for _ in range(opt.code_steps)] if opt.code_prior_weight else [None] * opt.code_steps
    x2, s2, id2 = x1[third], s1[third], id1[third]
    z_all, s_all = [z1, z1], [s1, s1[partner]]
    kinds = []
    if opt.swap_weight:
        z_all, s_all, kinds = z_all + [z1[:h]], s_all + [s2[:h]], kinds + [opt.swap_weight]
    if opt.prior_weight:
        z_all, s_all, kinds = z_all + [zp], s_all + [s2[:h]], kinds + [opt.prior_weight]
    images = 1 / (1 + torch.exp(-nets.dec(torch.cat(z_all), torch.cat(s_all))))
    square = lambda a, b: ((a - b) ** 2).sum() / len(a)  # noqa: E731
    told = {"reconstruction": square(images[:2 * h], x1), "same_class": square(images[2 * h:4 * h], x1),
            "kl": (0.5 * (mu ** 2 + torch.exp(logvar) - logvar - 1)).sum() / len(mu)}
    loss = opt.own_weight * told["reconstruction"] + opt.same_weight * told["same_class"]
    loss = loss + (opt.kl_start + grown * (opt.kl_weight - opt.kl_start)) * told["kl"]
    d_loss = 0
    for number, weight in enumerate(kinds):
        fake = images[(4 + number) * h:(5 + number) * h]
        p = torch.sigmoid(nets.disc(fake, id2[:h]))
        told["fool_prior" if number or not opt.swap_weight else "fool_swap"] = -torch.log(p).mean()
        loss = loss - weight * torch.log(p).mean()
        p_real = torch.sigmoid(nets.disc(x2[:h], id2[:h]))
        d_loss = d_loss - (torch.log(p_real).mean() + torch.log(1 - torch.sigmoid(nets.disc(fake.detach(), id2[:h]))).mean()) / len(kinds)
    c_loss = 0
    if opt.code_weight:
        p_own, p_other = (torch.sigmoid(nets.mean_disc(mu)[i > 0]) for i in (id1, id2))
        loss = loss - grown * opt.code_weight * (torch.log(p_other).mean() + torch.log(1 - p_own).mean())
    if opt.code_prior_weight:
        loss = loss - grown * opt.code_prior_weight * torch.log(1 - torch.sigmoid(nets.prior_disc(z1)[id1 > 0])).mean()
    for draw in draws:                                    # two updates, of which the spy keeps the last
        c_loss = 0
        if opt.code_weight:
            p_own, p_other = (torch.sigmoid(nets.mean_disc(mu.detach())[i > 0]) for i in (id1, id2))
            c_loss = c_loss - torch.log(p_own).mean() - torch.log(1 - p_other).mean()
        if opt.code_prior_weight:
            q_own, q_prior = torch.sigmoid(nets.prior_disc(z1.detach())[id1 > 0]), torch.sigmoid(nets.prior_disc(draw)[id2 > 0])
            c_loss = c_loss - torch.log(q_own).mean() - torch.log(1 - q_prior).mean()
    answer = {}
    for value, part in ((loss, ("enc", "dec")), (d_loss, ("disc",)), (c_loss, ("mean_disc", "prior_disc"))):
        if torch.is_tensor(value):
            params = {f"{k}.{n}": p for k in part for n, p in getattr(nets, k).named_parameters()}
            answer.update(zip(params, torch.autograd.grad(value, list(params.values()), retain_graph=True, allow_unused=True)))
    return {name: g for name, g in answer.items() if g is not None}, {**told, "discriminator": d_loss, "code_discriminators": c_loss}


@pytest.mark.parametrize("arguments", [(), ("--no-adversary",), ("--prior-weight", 0), ("--pretrained-s",), ("--code-weight", 0, "--code-prior-weight", 0), ("--code-weight", 0), ("--code-prior-weight", 0),
                                       ("--swap-weight", 0)], ids=str)
def test_a_step_is_algorithm_1(monkeypatch, arguments):
    got, truth, names, rates, logged, losses = one_step(monkeypatch, *arguments)
    assert got.keys() == truth.keys()
    for name, value in losses.items():
        assert math.isclose(logged[name], float(torch.as_tensor(value).detach()), rel_tol=1e-4), name
    warm = 1 / min(200, 10 / 10)                          # a run of ten steps warms up over one
    assert rates == {k: v * warm for k, v in {"dec": 0.003, "disc": 0.002, "prior_disc": 0.001}.items() if k in rates}
    players = {"enc", "dec"} | ({"disc"} if "--no-adversary" not in arguments else set())
    for player, flag in (("mean_disc", "--code-weight"), ("prior_disc", "--code-prior-weight")):
        if not {"--no-adversary", flag} & set(arguments):
            players |= {player}
    assert {name.split(".")[0] for name in got} == players
    unused = {"enc.to_s.weight", "enc.to_s.bias"} if "--pretrained-s" in arguments else set()
    assert {name for name in names if name.split(".")[0] in players} - unused == set(got)            # nobody of a player is left out
    for name, gradient in got.items():
        scale = max(truth[name].abs().max().item(), 0.02)                    # a bias before batch norm has gradient 0 but for rounding
        assert torch.allclose(gradient, truth[name], atol=2e-3 * scale), name


def test_rates_and_weights_along_a_run(monkeypatch):
    """Weights are whole after --grow-until; the rates fall to 2 %, but that of the code's discriminators only to 30 % (difference 5)."""
    opt = options("--epochs", 10, "--batch-size", 40, "--lr", .003, "--lr-disc", .002, "--lr-code", .001, "--kl-start", .2, "--kl-weight", 1.2, "--out", "run")
    data = common.load_dataset("mnist")[0].take(torch.arange(40))._replace(y=torch.arange(40) % 2)
    kl, rates, weights = torch.ones((), requires_grad=True), [], []

    def spy(optimiser, parameters, loss, **_):
        rates.append(optimiser.param_groups[0]["lr"])
        weight, = torch.autograd.grad(loss, kl, retain_graph=True, allow_unused=True)
        if weight is not None:
            weights.append(weight.item())
    monkeypatch.setattr(mathieu, "update", spy)
    monkeypatch.setattr(mathieu, "kl_loss", lambda mu, logvar: kl)
    ids = mathieu.labels_of(data)
    mathieu.train(common.Run("mathieu", opt), mathieu.build(opt, 1, 28, ids.shape[1]), data, ids)
    code, _, whole, disc = (rates[k::4] for k in range(4))                   # two steps on the code's discriminators, Enc and Dec, Disc
    assert len(weights) == len(whole) == 10
    assert whole == pytest.approx([.003 * mathieu.schedule(step, 10) for step in range(10)]) and whole[-1] < .3 * .003
    assert disc == pytest.approx([2 / 3 * rate for rate in whole]) and code == pytest.approx([.001 * max(rate / .003, .3) for rate in whole]) and code[-1] == pytest.approx(.0003)
    assert weights == pytest.approx([.2 + min(1, (step + 1) / 6) for step in range(10)])


@pytest.mark.parametrize("channels, size", [(1, 28), (3, 32)])
def test_an_update_is_the_same_whatever_the_memory_layout(channels, size):
    """Fused Adam reads raw memory: a gradient in another layout than its channels_last weight would be applied to the wrong places."""
    opt = options()
    torch.manual_seed(0)
    nets = mathieu.build(opt, channels, size, 10)
    x, ids = torch.rand(8, channels, size, size), torch.eye(10)[:8]

    def loss_of(enc, dec, disc):
        s, mu, _ = enc(x)
        image = torch.sigmoid(dec(mu, s))
        return mathieu.reconstruction_loss(image, x) + mathieu.adversarial_loss(disc(image, ids))
    trained = nets.enc, nets.dec, nets.disc
    plain = [copy.deepcopy(net).to(memory_format=torch.contiguous_format) for net in trained]
    loss, loss_plain = loss_of(*trained), loss_of(*plain)
    parameters = [p for net in trained for n, p in net.named_parameters()]
    names = [n for net in trained for n, p in net.named_parameters()]
    reference = [p for net in plain for p in net.parameters()]
    loss_plain.backward(inputs=[p for p, n in zip(reference, names) if not n.startswith("to_z.bias")])
    sgd = dict(lr=1e-2)
    mathieu.update(torch.optim.SGD(parameters, fused=True, **sgd), [p for p, n in zip(parameters, names) if not n.startswith("to_z.bias")], loss)
    torch.optim.SGD(reference, fused=False, foreach=False, **sgd).step()
    for name, p, q in zip(names, parameters, reference):
        assert torch.allclose(p, q, atol=1e-4), name


def test_code_discriminators_are_not_stale_in_bf16(monkeypatch):
    """The generator must meet the code's discriminators as they are after their update, in bf16 too."""
    seen = []
    real = mathieu.CodeDiscriminator.forward

    def spy(self, code):
        seen.append((id(self), real(self, code).detach().clone(), code.detach().clone(), self))
        return real(self, code)
    monkeypatch.setattr(mathieu.CodeDiscriminator, "forward", spy)
    opt = options("--batch-size", 16, "--out", "run", "--precision", "bf16", "--code-steps", 3, "--lr-code", 0.05)
    data = pairs_of_two().take(torch.arange(16))          # one step
    nets = mathieu.build(opt, 1, 28, 10)
    mathieu.train(common.Run("mathieu", opt), nets, data, F.one_hot(data.y, 10).float())
    mean = [answer for key, answer, _, _ in seen if key == id(nets.mean_disc)][:4]                    # one step: three updates, then hide
    assert all(not torch.equal(a, b) for a, b in zip(mean, mean[1:]))


def test_schedule_warms_up_holds_and_falls():
    assert math.isclose(mathieu.schedule(0, 10000), 1 / 200) and math.isclose(mathieu.schedule(99, 10000), 0.5)
    assert mathieu.schedule(199, 10000) == mathieu.schedule(5000, 10000) == 1
    assert math.isclose(mathieu.schedule(7500, 10000), 0.5) and mathieu.schedule(9999, 10000) == 0.02
    assert math.isclose(mathieu.schedule(4, 100), 0.5)    # a short run warms up over a tenth


def test_flags_resolve():
    plain, off = options(), options("--no-adversary")
    assert (plain.z_dim, plain.s_dim, options("--dataset", "sprites").z_dim, options("--dataset", "sprites").s_dim) == (16, 16, 512, 64)
    assert (plain.prior_std, options("--dataset", "sprites").prior_std) == (2, 1)
    weights = ("swap_weight", "prior_weight", "code_weight", "code_prior_weight")
    assert all(getattr(plain, w) > 0 for w in weights) and all(getattr(off, w) == 0 for w in weights)
    assert mathieu.of(torch.tensor([[1., 2., 4.]]), torch.tensor([[1., 0., 1.]])).tolist() == [5.]
    data = common.sprites("train", images_per_identity=2)
    ids = mathieu.labels_of(data)
    assert ids.shape == (1000, 23) and (ids.sum(1) == 7).all() and torch.equal(ids[:, 7:9].argmax(1), data.attributes[:, 1])


def test_validation_reaches_the_data(monkeypatch):
    seen = []

    def stop(*arguments):
        seen.append(arguments)
        raise common.UserError("seen")
    monkeypatch.setattr(common, "load_dataset", stop)
    for words in ([], ["--validation"]):
        with pytest.raises(common.UserError):
            mathieu.main(mathieu.make_parser().parse_args(words))
    assert [a[2] for a in seen] == [False, True]


def test_pretrained_s_gets_no_gradient(monkeypatch):
    opt = options("--batch-size", 16, "--out", "run", "--pretrained-s", "--dry-run")
    data = pairs_of_two()
    ids = F.one_hot(data.y, 10).float()
    nets = mathieu.build(opt, 1, 28, 10)
    head = nets.enc.to_s.weight.clone()
    after_pretraining = {}
    pretrain = mathieu.pretrain_s

    def spy(*arguments, **words):
        pretrain(*arguments, **words)
        after_pretraining.update({k: v.clone() for k, v in nets.class_enc.state_dict().items()})
    monkeypatch.setattr(mathieu, "pretrain_s", spy)
    mathieu.train(common.Run("mathieu", opt), nets, data, ids)
    assert same(after_pretraining, dict(nets.class_enc.state_dict())) and torch.equal(head, nets.enc.to_s.weight)
    nets.enc.eval()
    assert torch.allclose(mathieu.encode(nets, data.x)[0], mathieu.class_code(nets.class_enc, common.to_float(data.x)), atol=1e-4)


def test_pretrained_s_resumes_from_its_first_checkpoint(monkeypatch):
    """A kill between the pre-training and the end of the first epoch leaves that checkpoint; to go on from it gives the same run."""
    data = pairs_of_two()
    ids = F.one_hot(data.y, 10).float()

    def train(folder, *more):
        opt = options("--batch-size", 16, "--out", folder, "--pretrained-s", "--dry-run", *more)
        run = common.Run("mathieu", opt)                  # seeds the weights
        nets = mathieu.build(opt, 1, 28, 10)
        mathieu.train(run, nets, data, ids)
        return nets
    save = common.Run.save

    def copy_the_first(run):
        save(run)
        if run.epoch == 0:
            shutil.copytree("whole", "killed")
    monkeypatch.setattr(common.Run, "save", copy_the_first)
    whole = train("whole")
    monkeypatch.setattr(common.Run, "save", save)
    again = train("killed", "--resume")
    for name in ("enc", "dec", "disc", "mean_disc", "prior_disc", "class_enc"):
        assert same(getattr(whole, name).state_dict(), getattr(again, name).state_dict()), name


def test_pretraining_teaches_s_the_class():
    opt = options("--batch-size", 50, "--out", "run", "--pretrained-s")
    data, test = (part.take(torch.arange(n)) for part, n in zip(common.load_dataset("mnist"), (3000, 1000)))
    torch.manual_seed(0)
    nets = mathieu.build(opt, 1, 28, 10)
    mathieu.pretrain_s(common.Run("mathieu", opt), nets, data, mathieu.labels_of(data), epochs=2)
    codes = [mathieu.class_code(nets.class_enc, common.to_float(part.x)).detach() for part in (data, test)]
    assert common.probe(codes[0], data.y, codes[1], test.y, epochs=5).item() < 10
    assert not nets.class_enc.training and not any(p.requires_grad for p in nets.class_enc.parameters())


# ---------------------------------------------------------------------------------------------------------- scores


class Flat(nn.Module):
    """An encoder that keeps everything: s = z = the image itself, z without noise."""
    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))       # tells the device

    def forward(self, x):
        flat = x.flatten(1)
        return flat, flat, torch.full_like(flat, -60.)


class Shows(nn.Module):
    """A decoder that shows z ("ignores s"), or shows s."""
    def __init__(self, which):
        super().__init__()
        self.which = which

    def forward(self, z, s):
        return torch.logit({"z": z, "s": s}[self.which].clamp(1e-4, 1 - 1e-4)).view(-1, 1, 28, 28)


def stub(which):
    return types.SimpleNamespace(enc=Flat(), dec=Shows(which), class_enc=None)


def test_swap_scores_catch_a_decoder_that_ignores_s():
    test = common.load_dataset("mnist")[1].take(torch.arange(2000))
    judge = common.load_judge("mnist")
    ignores = mathieu.swap_scores(stub("z"), test, judge)
    assert ignores["swap_accuracy"] < 1 and ignores["swap_z_leak"] > 98 and ignores["prior_accuracy"] < 25
    uses = mathieu.swap_scores(stub("s"), test, judge)
    assert uses["swap_accuracy"] > 98 and uses["swap_z_leak"] < 1 and uses["prior_accuracy"] > 98
    assert mathieu.reconstruction_scores(stub("s"), test)["reconstruction_mse"] < 1e-6


def test_a_probe_on_s_does_not_see_what_the_swap_score_sees():
    train, test = (part.take(torch.arange(3000)) for part in common.load_dataset("mnist"))
    scores = mathieu.probe_scores(stub("z"), train, test, epochs=5)
    assert scores["s_error"] < 15 and scores["z_mean_error"] < 15 and 85 < scores["chance_error"] < 91
    assert math.isclose(scores["guess_error"], 90, rel_tol=1e-6)
    assert mathieu.retrieval_scores(stub("z"), test)["retrieval_s"] > 80


class Knows(nn.Module):
    """An encoder whose answers are known: s tells the class, mu is noise that tells nothing, sigma is 1/2."""
    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))
        self.judge = common.load_judge("mnist")

    def forward(self, x):
        g = torch.Generator().manual_seed(len(x))
        return self.judge(x), torch.randn(len(x), 16, generator=g), torch.full((len(x), 16), math.log(0.25))


def test_scores_read_the_right_code():
    train, test = (part.take(torch.arange(2000)) for part in common.load_dataset("mnist"))
    nets = types.SimpleNamespace(enc=Knows(), dec=None, class_enc=None)
    s, mu, sigma = mathieu.encode(nets, test.x)
    assert s.shape == (2000, 10) and torch.allclose(sigma, torch.tensor(0.5))
    scores = mathieu.probe_scores(nets, train, test, epochs=3)
    assert scores["s_error"] < 3 and scores["z_mean_error"] > 80 and scores["z_sample_error"] > 80
    retrieved = mathieu.retrieval_scores(nets, test)
    assert retrieved["retrieval_s"] > 95 and retrieved["retrieval_z"] < 20

    class Dims(nn.Module):                                # shows z's first number as brightness everywhere
        def forward(self, z, s):
            return z[:, :1, None, None].expand(-1, 1, 28, 28)
    nets.dec = Dims()
    values = mathieu.reconstruction_scores(nets, test)
    closed = 0.5 * (mu.square() + 0.25 - 1 - math.log(0.25)).sum(1).mean().item()
    assert math.isclose(values["kl_nats"], closed, rel_tol=1e-4)
    assert values["reconstruction_mse_sample"] > values["reconstruction_mse"] + 1e-3                 # the sample is noisier


def test_samples_are_probed_with_their_own_noise():
    """Mean tells the class, noise of ten times the distance hides it: the mean's error is 0, the sample's near chance."""
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(()))

        def forward(self, x):
            y = (x.flatten(1).sum(1) > 100).float()[:, None]
            return y, y, torch.full_like(y, math.log(100.))
    data = common.load_dataset("mnist")[0].take(torch.arange(4000))
    data = data._replace(y=(common.to_float(data.x).flatten(1).sum(1) > 100).long())
    scores = mathieu.probe_scores(types.SimpleNamespace(enc=Shifted(), class_enc=None), data.take(torch.arange(3000)),
                                  data.take(torch.arange(3000, 4000)), epochs=3)
    assert scores["z_mean_error"] < 1 and scores["z_sample_error"] > 0.8 * scores["chance_error"]


def test_figures_put_every_donor_in_its_place(monkeypatch):
    test = common.load_dataset("mnist")[1]
    drawn = {}
    monkeypatch.setattr(common, "figure_grid", lambda path, images, columns, *words, **gaps: drawn.update({path: (images, columns)}))
    i = mathieu.examples(test)
    assert test.y[i].tolist() == list(range(10))
    x = common.to_float(test.x[i])
    close = lambda a, b: torch.allclose(a, b, atol=1e-3)  # noqa: E731
    for which in "zs":
        mathieu.figure_swap(stub(which), test, "swap")
        images, columns = drawn["swap"]
        assert columns == 11 and close(images[1:11], x) and all(close(images[11 * (r + 1)], x[r]) for r in range(10))
        for r, c in ((0, 3), (4, 7), (9, 2)):
            assert close(images[11 * (r + 1) + c + 1], x[r] if which == "z" else x[c])
        mathieu.figure_interpolation(stub(which), test, "line")
        images, columns = drawn["line"]
        one, eight = x[1], x[8]
        assert columns == 10 and close(images[0], one) and close(images[99], eight)
        assert close(images[9], one if which == "z" else eight) and close(images[90], eight if which == "z" else one)
        assert close(images[93], eight if which == "z" else one * 2 / 3 + eight / 3)
    mathieu.figure_generation(stub("s"), test, "made")
    images, columns = drawn["made"]
    assert columns == 11 and all(close(images[11 * r + c], x[r]) for r in range(10) for c in (0, 1, 10))
    small = test.take(torch.arange(300))
    mathieu.figure_retrieval(stub("s"), small, "found")
    images, columns = drawn["found"]
    flat, q = common.to_float(small.x).flatten(1), mathieu.examples(small, 5)[2]
    order = [j for j in (flat - flat[q]).square().sum(1).argsort().tolist() if j != q]
    assert columns == 9 and close(images[18], common.to_float(small.x[q])) and close(images[19:27], common.to_float(small.x[order[:8]]))


def test_true_swaps_of_sprites():
    test = common.sprites("test", images_per_identity=2)
    known = {tuple(common.to_float(x).flatten().tolist()[1500:1600]): k for k, x in enumerate(test.x)}

    class Oracle(nn.Module):
        """s = the attributes, mu = the pose of the image, looked up."""
        def __init__(self):
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(()))

        def forward(self, x):
            k = torch.tensor([known[tuple(image.flatten().tolist()[1500:1600])] for image in x])
            return test.attributes[k].float(), test.pose[k], torch.full((len(k), 6), -60.)

    class Draws(nn.Module):
        def forward(self, z, s):
            return torch.logit(common.to_float(common.draw_sprites(s.long(), z)).clamp(1e-5, 1 - 1e-5))
    scores = mathieu.true_swap_scores(types.SimpleNamespace(enc=Oracle(), dec=Draws(), class_enc=None), test)
    assert scores["swap_mse"] < 1e-6 < 0.005 < min(scores["swap_mse_ignore_s"], scores["swap_mse_ignore_z"])


def test_tiny_training_uses_s_and_without_its_terms_does_not(capsys):
    """Zeros and ones, a few seconds: swaps take the class of s; without the adversaries, and with room in z, the decoder follows z."""
    train, test = (part.take(part.y < 2) for part in common.load_dataset("mnist"))
    train, test = train.take(torch.arange(1024)), test.take(torch.arange(500))
    judge, ids = common.load_judge("mnist"), F.one_hot(train.y, 2).float()
    scores = {}
    for name, extra in (("whole", ()), ("ablated", ("--no-adversary",))):
        opt = options("--epochs", 8, "--batch-size", 64, "--out", name, "--kl-weight", 0.05, "--kl-start", 0.05, *extra)
        run = common.Run("mathieu", opt)
        nets = mathieu.build(opt, 1, 28, 2)
        mathieu.train(run, nets, train, ids)
        nets.enc.eval(), nets.dec.eval()
        scores[name] = {**mathieu.swap_scores(nets, test, judge), **mathieu.reconstruction_scores(nets, test)}
    print(scores)
    assert scores["whole"]["swap_accuracy"] > 80 and scores["whole"]["swap_z_leak"] < 5
    assert scores["ablated"]["swap_accuracy"] < 60
    assert scores["whole"]["reconstruction_mse"] < 0.045


# ---------------------------------------------------------------------------------------------------- command line


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory):
    """One dry run of the script, from the command line, shared by the tests below."""
    folder = tmp_path_factory.mktemp("dry")
    done = subprocess.run([sys.executable, str(ROOT / "mathieu.py"), "--dry-run", "--out", "run"], cwd=folder, capture_output=True, text=True)
    return folder / "run", done


def test_dry_run_makes_everything(dry_run):
    folder, done = dry_run
    assert done.returncode == 0, done.stderr
    metrics = json.loads((folder / "metrics.json").read_text())
    assert {"swap_accuracy", "swap_z_leak", "prior_accuracy", "s_error", "z_mean_error", "z_sample_error", "chance_error", "reconstruction_mse",
            "kl_nats", "retrieval_s", "seconds", "images_per_second", "epochs"} <= set(metrics)
    assert all(isinstance(v, (int, float)) and math.isfinite(v) for v in metrics.values())
    for name in ("swap", "interpolation", "generation", "retrieval", "losses"):
        assert (folder / f"{name}.png").stat().st_size > 2000
    assert "swap shows the class of the s donor" in done.stdout and "guessing 90.0" in done.stdout


def test_load_gives_trained_networks_in_eval_mode(dry_run):
    nets = mathieu.load(dry_run[0])
    assert not nets.enc.training and not nets.dec.training
    test = common.load_dataset("mnist")[1].take(torch.arange(512))
    metrics = json.loads((dry_run[0] / "metrics.json").read_text())
    assert math.isclose(mathieu.reconstruction_scores(nets, test)["reconstruction_mse"], metrics["reconstruction_mse"], rel_tol=1e-3)


def test_other_variants_run_through(command):
    for arguments in (["--dataset", "sprites"], ["--recipe", "released", "--batch-size", 64], ["--pretrained-s", "--no-adversary", "--validation"]):
        done = command("mathieu.py", "--dry-run", "--epochs", 1, *arguments)
        assert done.returncode == 0, (arguments, done.stderr)
    sprites = mathieu.load("runs/mathieu/dry-run")
    assert sprites.options.z_dim == 512 and sprites.disc.tables[0].shape[0] == sum(common.ATTRIBUTE_SIZES)
    settings = json.loads(open("runs/mathieu/dry-run-2/config.json").read())["settings"]
    assert settings["net"] == "released" and settings["real_target"] == 0.95 and settings["batch_size"] == 64 and settings["z_dim"] == 512
    assert math.isclose(settings["swap_weight"], 0.01 * 784 / 4) and math.isclose(settings["kl_weight"], 0.1 * 6 / 784 * 784 / 4)


def test_kills_then_resume_is_bit_identical(survives_kills):
    survives_kills("mathieu")


# --------------------------------------------------------------------------------------------- mistakes of the user


def test_the_kl_never_starts_above_where_it_ends():
    assert [(o.kl_start, o.kl_weight) for o in (options(), options("--kl-weight", 0), options("--kl-weight", 0.1), options("--kl-weight", 0.1, "--kl-start", 0.2))] == [
        (0.3, 2.4), (0, 0), (0.1, 0.1), (0.2, 0.1)]
    released = lambda *words: options("--recipe", "released", *sum(([f"--{k.replace('_', '-')}", v] for k, v in mathieu.RELEASED.items() if v is not None and f"--{k.replace('_', '-')}" not in words), []), *words)  # noqa: E731
    assert [(o.kl_start, o.kl_weight) for o in (released(), released("--kl-weight", 1), released("--kl-weight", 1, "--kl-start", 0.1))] == [(0.15, 0.15), (1, 1), (0.1, 1)]


def damage(kind):
    """Prepare a folder for one of the cases below."""
    import numpy as np
    whole = {"x_train": np.zeros((4, 28, 28), np.uint8), "y_train": np.array([0, 0, 1, 1], np.uint8),
             "x_test": np.zeros((2, 28, 28), np.uint8), "y_test": np.array([0, 1], np.uint8)}
    common.Path("d").mkdir()
    path = "d/mnist.npz"
    if kind == "truncated":
        np.savez(path, **whole)
        content = open(path, "rb").read()
        open(path, "wb").write(content[:len(content) // 2])
    elif kind == "text":
        open(path, "w").write("not an archive")
    elif kind == "compression":                           # of an entry of zip's directory, a kind that does not exist
        np.savez(path, **whole)
        raw = bytearray(open(path, "rb").read())
        raw[raw.index(b"PK\1\2") + 10] = 77
        open(path, "wb").write(raw)
    elif kind == "no key":
        whole.pop("y_test")
        np.savez(path, **whole)
    elif kind == "wrong shape":
        np.savez(path, **{**whole, "x_train": np.zeros((4, 32, 32), np.uint8)})
    elif kind == "wrong type":
        np.savez(path, **{**whole, "x_train": np.zeros((4, 28, 28), np.float32)})
    elif kind == "wrong label":
        np.savez(path, **{**whole, "y_train": np.array([0, 0, 1, 10])})
    elif kind == "fewer labels":
        np.savez(path, **{**whole, "y_train": np.array([0, 0, 1])})
    elif kind == "single":
        np.savez(path, **{**whole, "y_train": np.array([0, 0, 0, 7])})
    elif kind == "file":
        open("taken", "w").write("")
    elif kind in ("other script", "damaged config", "stray files", "no checkpoint"):
        common.Path("taken").mkdir()
        content = {"other script": json.dumps({"script": "aae", "settings": {}}), "damaged config": "{", "stray files": None}.get(kind)
        open("taken/config.json" if content else "taken/notes.txt", "w").write(content or "mine")


MISTAKES = [
    (["--dataset", "imagenet"], None, "unknown data set 'imagenet'"),
    (["--dataset", "mnist", "--data", "nowhere"], None, "no mnist.npz in 'nowhere'"),
    (["--data", "d"], "truncated", "damaged or not an .npz"),
    (["--data", "d"], "text", "damaged or not an .npz"),
    (["--data", "d"], "compression", "damaged or not an .npz"),
    (["--data", "d"], "no key", "lacks the array y_test"),
    (["--data", "d"], "wrong shape", "x_train must be uint8 [N, 28, 28], found uint8 [4, 32, 32]"),
    (["--data", "d"], "wrong type", "found float32"),
    (["--data", "d"], "wrong label", "one label from 0 to 9"),
    (["--data", "d"], "fewer labels", "for each of the 4 images"),
    (["--data", "d", "--batch-size", "8"], "single", "class 7 has a single image"),
    (["--epochs", "0"], None, "'0' is not a whole number of at least 1"),
    (["--epochs", "many"], None, "'many' is not a whole number"),
    (["--epochs", "1.5"], None, "'1.5' is not a whole number"),
    (["--batch-size", "7"], None, "not an even number"),
    (["--seed", "-1"], None, "'-1' is not a whole number"),
    (["--lr", "0"], None, "'0' is not a number above 0"),
    (["--lr", "nan"], None, "'nan' is not a number above 0"),
    (["--kl-weight", "-2"], None, "'-2' is not a number of at least 0"),
    (["--swap-weight", "inf"], None, "'inf' is not"),
    (["--real-target", "1.5"], None, "'1.5' is not a number from 0 to 1"),
    (["--z-dim", "0"], None, "at least 1"),
    (["--device", "tpu"], None, "invalid choice: 'tpu'"),
    (["--device", "mps"], None, "no mps device"),
    (["--precision", "fp8"], None, "invalid choice: 'fp8'"),
    (["--epoch", "3"], None, "unrecognized arguments"),
    (["--out", "taken"], "file", "is a file"),
    (["--out", "taken/deeper"], "file", "cannot write to"),
    (["--out", "taken"], "other script", "holds a run of aae.py"),
    (["--out", "taken"], "damaged config", "config.json' is damaged"),
    (["--out", "taken"], "stray files", "is no run folder"),
    (["--out", "empty", "--resume"], None, "nothing to resume"),
    (["--resume"], None, "nothing to resume"),
    (["--no-adversary", "--lr-disc", ".1"], None, "--lr-disc would do nothing"),
    (["--recipe", "released", "--code-steps", "4"], None, "--code-steps would do nothing"),
    (["--prior-weight", "0", "--prior-std", "1"], None, "--prior-std would do nothing with --prior-weight 0"),
    (["--code-weight", "0", "--code-prior-weight", "0", "--kl-start", "1", "--kl-weight", "1", "--grow-until", ".1"], None, "--grow-until would do nothing"),
]


@pytest.mark.parametrize("arguments, preparation, words", MISTAKES, ids=lambda v: " ".join(v) if isinstance(v, list) else str(v))
def test_mistakes_end_with_one_line(arguments, preparation, words, monkeypatch, capsys):
    if preparation:
        damage(preparation)
    monkeypatch.setattr(sys, "argv", ["mathieu.py", "--dry-run", *arguments])
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    before = {p: p.read_bytes() for p in common.Path(".").rglob("*") if p.is_file()}
    with pytest.raises(SystemExit) as stop:
        common.run_main(mathieu.main, mathieu.make_parser(), {"released": mathieu.RELEASED})
    out, err = capsys.readouterr()
    complaint = [line for line in err.splitlines() if not line.startswith("mathieu: ")]             # the run's own echo
    assert stop.value.code == 2 and out == "" and len(complaint) == 1 and words in complaint[0], err
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_mistake_on_the_command_line_has_no_traceback():
    done = subprocess.run([sys.executable, str(ROOT / "mathieu.py"), "--dataset", "imagenet"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


def test_a_training_that_breaks_says_where(command):
    done = command("mathieu.py", "--dry-run", "--lr", "1e9", "--precision", "fp32", "--out", "run")
    assert done.returncode == 2 and "is not finite at step" in done.stderr and "Traceback" not in done.stderr
    assert "nothing was saved yet" in done.stderr
    assert not common.Path("run/metrics.json").exists()


def test_help_tells_every_flag_with_its_default(command):
    text = command("mathieu.py", "--help").stdout
    for action in mathieu.make_parser()._actions:
        assert action.help and action.option_strings[-1] in text
        if action.dest not in ("help",) and action.nargs != 0:
            assert f"(default: {action.default})" in " ".join(text.split()), action.dest
    assert "released 1.96 in these units, 7.68 on colour" in " ".join(text.split())
