"""Disentangling factors of variation with adversarial training (Mathieu, Zhao, Sprechmann, Ramesh, LeCun 2016, arXiv 1611.03383).

    python mathieu.py --epochs 50                         # MNIST: scores, swap grid, interpolation, generation, retrieval
    python mathieu.py --dataset sprites --epochs 50       # Table 1: seven attributes read from s and z, identities never seen

An encoder splits an image x into a code s of its class (the specified factor) and a code z of everything else; a decoder puts any z and
any s together again. Labels pair images and condition the discriminators; no label is an input of the encoder or the decoder. (Difference 3
also uses them to push the class out of z, which is what Table 1's z column measures: README has rows of the paper's terms alone.)

Where the paper's things are
    Eq. 5, Figure 1, Algorithm 1      reconstruction_loss, kl_loss, adversarial_loss, discriminator_loss; wired in train
    Supplement: networks              Encoder, Decoder, Discriminator
    Figure 2(a), 2(b), 3              figure_swap, figure_interpolation
    Figure 4, Figure 5                figure_retrieval, figure_generation (the paper: sprites and others, not MNIST)
    Figure 10(a); 10(b)               --pretrained-s; the plain run
    Table 1                           probe_scores (its test row on sprites, not the train row, NORB or YaleB); on MNIST the paper has no numbers
    The paper's terms alone           --code-weight 0 --code-prior-weight 0 --dead-zone 0 --prior-std 1
    not in the paper                  swap_scores: does the decoder use s? (a probe on s cannot tell)

Differences from the paper
 1. Weights, rates, schedule and batch size are ours, and Adam for the paper's SGD: the paper gives no numbers. Channel counts, also not
    given, are the released code's. `--recipe released` takes the released code's small net, weights, rates and sizes.
 2. The prior-sample term of Figure 1 is on (section 4.2 and the released code leave it out, `--prior-weight 0`), and the discriminator
    is shown these samples too, which Algorithm 1 leaves out: a term that the discriminator never learns to resist teaches little. On grey images
    its z ~ N(0, 2^2 I), not N(0, I) (`--prior-std 1`): otherwise a z from the prior's tails overrides the class of s. Scores draw from N(0, I).
 3. Two small class-conditional discriminators look at the code instead of the image (CodeDiscriminator), on the codes
    behind its two kinds of fake: one tells (mean of z1, id1) from (mean of z1, id2), the swap; one tells (z1, id1) from (z, id2),
    z ~ N(0, I) here, the prior sample. The image discriminator alone teaches the decoder to ignore the class in z, not the encoder
    to leave it out. They take two steps to one of the others. `--code-weight 0 --code-prior-weight 0` switches them off.
 4. Enc, Dec and Disc are updated from the same forward pass, at the weights before the step (the discriminators of difference 3 step first);
    Algorithm 1 draws fresh pairs for the adversary. The adversarial term of the generator is the non-saturating -log D, as in the released code.
 5. The KL weight grows during training from `--kl-start` to `--kl-weight`, and with it the weights of difference 3, from 0. On MNIST it ends at
    16 times the released weight: the KL of an eq. 5 whose pixels have variance 0.8 (released 0.05), which leaves z little room. Hence
    `--no-adversary` alone does not make the decoder ignore s (section 4.1); with `--kl-start 0.15 --kl-weight 0.15` it does.
 6. A step's images come as pairs of one class; each is x1 once with the other as its x1', and x2 is another image of the step,
    of any class (Figure 1's caption; section 4.3 says a different one), one swap a pair. z1 is sampled once a step for all its uses.
 7. The means of z pass a soft threshold: a dimension that the KL has switched off otherwise keeps a tiny mean, which the decoder ignores and
    from which a probe reads the class. `--dead-zone 0` switches it off.
 8. Batch norm and ReLU follow the sum of the z and s branches, as they precede the heads of the encoder (the released net has neither).
 9. The sprites are drawn here (common.sprites): the same seven attributes, 672 characters as in the paper, split 500/72/100 as in Reed et
    al. 2015, other pictures; 40 of a character in continuous poses, where the paper has 20 animations of discrete ones. Their tables in
    the discriminator add up; the released code gives each attribute a seventh of the channels.
10. `--pretrained-s`: how the paper trains its classifier is not said. Ours has five epochs at 1e-3 of one-vs-all cross-entropy, each s scaled to
    deviation 1 (class_code), and all adversaries stay on.

The released code (MichaelMathieu/factors-variation): its default net is a larger one; its small one, here as `--net released`, cannot run as
released, by reading its source. `--recipe released` does not take over: mid-grey padding (here black); a KL gradient that treats the log
variance as log sigma and so pulls about twice as hard where sigma is small (here the KL is exact); pixels in [-1, 1] with tanh; fresh noise
for every decoding; classes drawn uniformly; two swaps in three images (here one in a pair); batch norm's own statistics of each batch when it
is tested (here those kept in training).
"""
import functools
from types import SimpleNamespace

import common                                             # before torch: it sets what torch reads at import
import torch
import torch.nn.functional as F
from torch import nn

# -------------------------------------------------------------------------------------------------------- networks
# Channel counts are not in the paper: 16, 32, 64 are the released code's, and small enough for a laptop.


class Encoder(nn.Module):
    """Enc(x) = (s, mu, logvar): images [B, C, H, W] in [0, 1] -> s [B, s_dim], mean and log variance of q(z|x), [B, z_dim] each
    (the paper's q(z|x,s): s is itself a function of x).

    net "paper": three 5x5 stride-2 convolutions (supplement); "released": the released code's small net, on images padded to 32.
    dead_zone: means nearer to 0 are 0, others move towards 0 by as much (soft threshold), so that a dimension which the KL has
    switched off is exactly 0 and carries nothing, instead of a little of everything. 0 is the paper's. Uses Conv5."""

    def __init__(self, channels=1, size=28, z_dim=16, s_dim=16, net="paper", dead_zone=0.0):
        super().__init__()
        self.dead_zone = dead_zone
        if net == "paper":
            convs, widths, side = [Conv5(channels, 16), Conv5(16, 32), Conv5(32, 64)], (16, 32, 64), (size + 7) // 8
        else:
            convs = [nn.Conv2d(channels, 16, 5, padding=2 + (32 - size) // 2)]
            convs += [nn.Conv2d(n, 2 * n, 4, stride=2, padding=1) for n in (16, 32, 64)]
            widths, side = (16, 32, 64, 128), 4
        layers = [layer for conv, n in zip(convs, widths) for layer in (conv, nn.BatchNorm2d(n), nn.ReLU())]
        self.features = nn.Sequential(*layers, nn.Flatten())
        self.to_z = nn.Linear(widths[-1] * side ** 2, 2 * z_dim)
        self.to_s = nn.Linear(widths[-1] * side ** 2, s_dim)

    def forward(self, x):
        h = self.features(x)
        mu, logvar = self.to_z(h).float().chunk(2, 1)
        return self.to_s(h).float(), F.softshrink(mu, self.dead_zone), logvar


class Decoder(nn.Module):
    """Dec(z, s) -> logits of the pixels [B, C, H, W]: z and s each through a linear layer, added, then the mirrored encoder.

    z [B, z_dim], s [B, s_dim]. Uses ConvTranspose5."""

    def __init__(self, channels=1, size=28, z_dim=16, s_dim=16, net="paper"):
        super().__init__()
        if net == "paper":
            sizes = [(size + 7) // 8, (size + 3) // 4, (size + 1) // 2, size]
            self.shape, start = (64, sizes[0], sizes[0]), [nn.BatchNorm2d(64), nn.ReLU()]
            convs = [ConvTranspose5(a, b, odd=sizes[k + 1] % 2 == 1) for k, (a, b) in enumerate([(64, 32), (32, 16), (16, channels)])]
        else:
            self.shape, start = (128, 4, 4), []
            convs = [nn.ConvTranspose2d(n, n // 2, 4, stride=2, padding=1) for n in (128, 64, 32)]
            convs.append(nn.Conv2d(16, channels, 5, padding=2 - (32 - size) // 2))       # the crop from 32
        inner = [layer for conv in convs[:-1] for layer in (conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU())]
        features = self.shape[0] * self.shape[1] * self.shape[2]
        self.from_z, self.from_s = nn.Linear(z_dim, features), nn.Linear(s_dim, features)
        self.net = nn.Sequential(*start, *inner, convs[-1])

    def forward(self, z, s):
        h = (self.from_z(z) + self.from_s(s)).view(-1, *self.shape)
        return self.net(h.contiguous(memory_format=torch.channels_last)).float()


class Discriminator(nn.Module):
    """Disc(x, id) -> logit [B] that x [B, C, H, W] is a real image of class id.

    id: one-hot float [B, labels]; with several attributes the one-hots side by side, whose tables then add up. At each of three
    resolutions the label is looked up in a table of 4 x 4 maps, enlarged and added before normalisation (supplement, released code).
    Uses Conv5."""

    def __init__(self, channels=1, size=28, labels=10, net="paper"):
        super().__init__()
        if net == "paper":
            convs, side = [Conv5(channels, 16), Conv5(16, 32), Conv5(32, 64)], (size + 7) // 8
        else:
            convs, side = [nn.Conv2d(channels, 16, 4, stride=2, padding=1 + (32 - size) // 2)], 4
            convs += [nn.Conv2d(n, 2 * n, 4, stride=2, padding=1) for n in (16, 32)]
        self.convs = nn.ModuleList(convs)
        self.norms = nn.ModuleList([nn.BatchNorm2d(n) for n in (16, 32, 64)])
        self.tables = nn.ParameterList([nn.Parameter(torch.randn(labels, n, 4, 4)) for n in (16, 32, 64)])
        self.out = nn.Linear(64 * side ** 2, 1)

    def forward(self, x, id):
        for conv, norm, table in zip(self.convs, self.norms, self.tables):
            x = conv(x)
            n, c, h, w = x.shape
            table = F.interpolate(table, (h, w)).permute(0, 2, 3, 1).reshape(len(table), h * w * c)
            x = x + (id @ table).view(n, h, w, c).permute(0, 3, 1, 2)        # a look-up, written as a product
            x = F.leaky_relu(norm(x), 0.2)
        return self.out(x.flatten(1)).float().squeeze(1)


class CodeDiscriminator(nn.Module):
    """For each label the logit [B, labels] that the code [B, code_dim] belongs to an image that has it. Ours, see difference 3.

    normalise: scale each dimension over the batch, because one of tiny variance can carry the class as well as a large one."""

    def __init__(self, code_dim=16, labels=10, hidden=256, normalise=False):
        super().__init__()
        norm = nn.BatchNorm1d(code_dim, affine=False) if normalise else nn.Identity()
        self.net = nn.Sequential(norm, nn.Linear(code_dim, hidden), nn.LeakyReLU(0.2),
                                 nn.Linear(hidden, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, labels))

    def forward(self, code):
        return self.net(code).float()


# The convolutions above are these two, which equal PyTorch's; they are here for speed alone.


class Conv5(nn.Conv2d):
    """nn.Conv2d(inputs, outputs, 5, stride=2, padding=2), exactly; for images of few channels it is computed as a 3x3 convolution over
    2x2 blocks of pixels, which a CPU computes faster where the image needs a gradient."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs, 5, stride=2, padding=2)

    def forward(self, x):
        if self.in_channels > 4 or x.shape[2] % 2 or x.shape[3] % 2:
            return super().forward(x)
        o, i = self.weight.shape[:2]
        w = F.pad(self.weight, (0, 1, 0, 1)).view(o, i, 3, 2, 3, 2).permute(0, 1, 3, 5, 2, 4).reshape(o, i * 4, 3, 3)
        return F.conv2d(F.pixel_unshuffle(x, 2), w, self.bias, padding=1)


class ConvTranspose5(nn.ConvTranspose2d):
    """nn.ConvTranspose2d(inputs, outputs, 5, stride=2, padding=2), exactly; to few channels it is computed as a 3x3 convolution to
    2x2 blocks of pixels. odd: double the size less one (4 -> 7) instead of doubling it."""

    def __init__(self, inputs, outputs, odd=False):
        super().__init__(inputs, outputs, 5, stride=2, padding=2, output_padding=0 if odd else 1)

    def forward(self, x):
        if self.out_channels > 16 or self.output_padding[0] == 0:
            return super().forward(x)
        i, o = self.weight.shape[:2]
        w = F.pad(self.weight, (0, 1, 0, 1)).view(i, o, 3, 2, 3, 2).flip(2, 4).permute(1, 3, 5, 0, 2, 4).reshape(o * 4, i, 3, 3)
        return F.pixel_shuffle(F.conv2d(x, w, self.bias.repeat_interleave(4), padding=1), 2)


# ---------------------------------------------------------------------------------------------------------- losses


def reparametrise(mu, logvar):
    """z = mu + sigma * eps, eps ~ N(0, I): a sample of q(z|x), [B, d]."""
    return mu + torch.randn_like(mu) * (logvar / 2).exp()


def reconstruction_loss(reconstruction, x):
    """-log p(x|z,s) of eq. 5 for a unit-variance Gaussian, doubled, without its constant: the squared error, summed over pixels, mean over
    the batch.

    Both [B, C, H, W] in [0, 1]. Used twice (Algorithm 1): Dec(z1, s1) against x1, and Dec(z1, s1') against x1 with x1' of the same class."""
    return (reconstruction - x).square().flatten(1).sum(1).mean()


def kl_loss(mu, logvar):
    """KL(q(z|x) || N(0, I)) of eq. 5 in nats: summed over dimensions, mean over the batch. mu, logvar: [B, d]."""
    return 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum(1).mean()


def adversarial_loss(logits_fake, real_target=1.0):
    """Generator's side of L_gan: cross-entropy of Disc(Dec(z, s2), id2) against "real", mean over the batch; log 2 at chance.

    logits_fake: [B]. real_target: the released code's 0.95 smooths the label here too. Used for z = z1 (swap) and for z from the prior,
    and, sign turned where "fake" is the aim, for the discriminators of codes (difference 3)."""
    return F.binary_cross_entropy_with_logits(logits_fake, torch.full_like(logits_fake, real_target))


def discriminator_loss(logits_real, logits_fake, real_target=1.0):
    """-log Disc(x2, id2) - log(1 - Disc(fake, id2)), each a mean over its batch; 2 log 2 at chance. Logits [B]; real_target smooths.
    The discriminators of codes have the same loss on codes."""
    return (F.binary_cross_entropy_with_logits(logits_real, torch.full_like(logits_real, real_target))
            + F.binary_cross_entropy_with_logits(logits_fake, torch.zeros_like(logits_fake)))


# -------------------------------------------------------------------------------------------------------- training


def build(options, channels, size, labels):
    """The networks of a run: enc, dec, disc, mean_disc, prior_disc, and class_enc where s comes from a frozen classifier (else None)."""
    dims = dict(z_dim=options.z_dim, s_dim=options.s_dim, net=options.net)
    nets = SimpleNamespace(
        enc=Encoder(channels, size, **dims, dead_zone=options.dead_zone), dec=Decoder(channels, size, **dims),
        disc=Discriminator(channels, size, labels, net=options.net),
        mean_disc=CodeDiscriminator(options.z_dim, labels, normalise=True), prior_disc=CodeDiscriminator(options.z_dim, labels),
        class_enc=Encoder(channels, size, **dims) if options.pretrained_s else None)
    for name in ("enc", "dec", "disc", "class_enc"):
        if getattr(nets, name) is not None:
            getattr(nets, name).to(memory_format=torch.channels_last)
    return nets


def of(logits, id):
    """The logit [B] of each row's own label: logits [B, labels], id one-hot [B, labels] (of several attributes: their sum)."""
    return (logits * id).sum(1)


def update(optimiser, parameters, loss, retain_graph=False):
    """One optimiser step on `loss`, whose gradient reaches `parameters` and nothing else."""
    loss.backward(inputs=parameters, retain_graph=retain_graph)              # not autograd.grad: fused Adam needs the parameters' layout
    optimiser.step()
    optimiser.zero_grad()


def schedule(step, total):
    """Share of the full learning rate: linear warm-up over 200 steps (or a tenth of a short run), constant to half the run, linear to 2 %."""
    return min(1, (step + 1) / min(200, total / 10)) * min(1, max(0.02, 2 * (1 - step / total)))


def class_code(class_enc, x):
    """s [B, s_dim] of the classifier, each code scaled to mean 0 and deviation 1: unscaled it drowns z in the decoder's sum."""
    s = class_enc(x)[0]
    return F.layer_norm(s, s.shape[1:])


def pretrain_s(run, nets, data, ids, epochs):
    """Figure 10(a): train the s branch of a second encoder as a classifier, then freeze it. Here, alone, an encoder is trained to classify."""
    head = nn.Linear(run.options.s_dim, ids.shape[1]).to(run.device)
    optimiser = torch.optim.Adam([*nets.class_enc.parameters(), *head.parameters()], 1e-3)
    for _ in range(epochs):
        for i in torch.randperm(len(data.y)).to(run.device).split(run.options.batch_size):
            with run.autocast():
                s = class_code(nets.class_enc, common.to_float(data.x[i]))
                loss = F.binary_cross_entropy_with_logits(head(s).float(), ids[i])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    nets.class_enc.eval().requires_grad_(False)


def train(run, nets, data, ids):
    """Algorithm 1. data: a common.Split on the device; ids: the discriminator's labels, one-hot float [N, labels].

    Names, for n pairs a step, the first of each pair and then the second: x1 [2n, C, H, W] are the paper's x1 and, n further on, its x1';
    id1 [2n, labels]; x2, id2, s2 the same, shifted by k to other pairs; s1 [2n, s_dim]; z1 [2n, z_dim] ~ N(mu, exp logvar); disc,
    mean_disc, prior_disc are Disc, M and P below."""
    opt, device = run.options, run.device
    enc, dec, disc, mean_disc, prior_disc = (net.to(device).train() for net in (nets.enc, nets.dec, nets.disc, nets.mean_disc, nets.prior_disc))
    if nets.class_enc is not None:
        nets.class_enc.to(device)
        enc.to_s.requires_grad_(False)
    generator = [p for p in (*enc.parameters(), *dec.parameters()) if p.requires_grad]
    adam = dict(betas=(opt.beta1, 0.999), fused=device.type != "mps")
    opt_g = torch.optim.Adam(generator, opt.lr, **adam)
    disc_parameters = list(disc.parameters())
    opt_d = torch.optim.Adam(disc_parameters, opt.lr_disc, **adam)
    code_parameters = [*mean_disc.parameters(), *prior_disc.parameters()]
    opt_c = torch.optim.Adam(code_parameters, opt.lr_code, **adam)
    half = opt.batch_size // 2
    total = opt.epochs * -(-len(common.pair_same_class(data.y)) // half)     # it draws random numbers, so here, resumed or not
    run.track(enc=enc, dec=dec, disc=disc, mean_disc=mean_disc, prior_disc=prior_disc, opt_g=opt_g, opt_d=opt_d, opt_c=opt_c)
    if nets.class_enc is not None:
        run.track(class_enc=nets.class_enc)
        if run.saved is None:
            pretrain_s(run, nets, data, ids, epochs=1 if opt.dry_run else 5)
            run.save()
        nets.class_enc.eval().requires_grad_(False)

    for epoch in run.epochs():
        for pair in run.batches(common.pair_same_class(data.y), half):
            share = schedule(run.step, total) if opt.schedule == "linear" else 1
            # opt_c must keep up with z to the end
            for optimiser, rate in ((opt_g, opt.lr * share), (opt_d, opt.lr_disc * share), (opt_c, opt.lr_code * max(share, 0.3))):
                optimiser.param_groups[0]["lr"] = rate
            grown = min(1, (run.step + 1) / total / opt.grow_until)
            kl_weight = opt.kl_start + (opt.kl_weight - opt.kl_start) * grown

            # [B] = [2n], first of each pair, then second of each: images i and i + n share a class. roll(n) gives x1', the partner;
            # roll(k), 0 < k < n, gives x2, another image of the step, never itself or the partner.
            index = pair.t().reshape(-1)
            n, k = len(pair), int(torch.randint(1, len(pair), ()))
            x1 = common.to_float(data.x[index])
            id1 = ids[index]
            id2, x2 = id1.roll(k, 0), x1.roll(k, 0)
            zero = torch.zeros((), device=device)
            with run.autocast():
                s1, mu, logvar = enc(x1)
                if nets.class_enc is not None:
                    s1 = class_code(nets.class_enc, x1)
                z1 = reparametrise(mu, logvar)
                s2 = s1.roll(k, 0)
                codes, weights = [(z1, s1), (z1, s1.roll(n, 0))], []         # x1 from its own s and from its partner's, s1'
                if opt.swap_weight:
                    codes.append((z1[:n], s2[:n]))                           # swap: one a pair
                    weights.append(opt.swap_weight)
                if opt.prior_weight:
                    codes.append((opt.prior_std * torch.randn_like(z1[:n]), s2[:n]))   # zp, from the prior made wider
                    weights.append(opt.prior_weight)
                z, s = (torch.cat(parts) for parts in zip(*codes))           # one pass for all
                decoded = torch.sigmoid(dec(z, s)).split([len(z) for z, _ in codes])

                # The discriminators of codes, M = mean_disc and P = prior_disc, step first, so that Enc meets them updated. They maximise
                #     log M(mu1, id1) + log(1 - M(mu1, id2)) + log P(z1, id1) + log(1 - P(z, id2)),  z ~ N(0, I)
                loss_c = hide = match = zero
                for _ in range(opt.code_steps if opt.code_weight or opt.code_prior_weight else 0):
                    loss_c = zero
                    if opt.code_weight:
                        m = mean_disc(mu.detach())
                        loss_c = loss_c + discriminator_loss(of(m, id1), of(m, id2))
                    if opt.code_prior_weight:
                        p, p_prior = prior_disc(z1.detach()), prior_disc(torch.randn_like(z1))
                        loss_c = loss_c + discriminator_loss(of(p, id1), of(p_prior, id2))
                    update(opt_c, code_parameters, loss_c)

                # Enc, Dec: minimise, each with its weight,
                #     |x1 - Dec(z1,s1)|^2 + |x1 - Dec(z1,s1')|^2 + KL - log Disc(Dec(z1,s2), id2) - log Disc(Dec(zp,s2), id2)
                #     - log M(mu1, id2) - log(1 - M(mu1, id1)) - log(1 - P(z1, id1))
                own, same, kl = reconstruction_loss(decoded[0], x1), reconstruction_loss(decoded[1], x1), kl_loss(mu, logvar)
                loss_g = opt.own_weight * own + opt.same_weight * same + kl_weight * kl
                fakes = [disc(image, id2[:n]) for image in decoded[2:]]
                fool = [adversarial_loss(logits, opt.real_target) for logits in fakes]
                for weight, loss in zip(weights, fool):
                    loss_g = loss_g + weight * loss
                if opt.code_weight:
                    m = mean_disc(mu)
                    hide = adversarial_loss(of(m, id2)) + adversarial_loss(-of(m, id1))          # log(1 - D) = log sigmoid(-logit)
                    loss_g = loss_g + grown * opt.code_weight * hide
                if opt.code_prior_weight:
                    match = adversarial_loss(-of(prior_disc(z1), id1))                           # log(1 - P)
                    loss_g = loss_g + grown * opt.code_prior_weight * match

                # Disc: maximise  log Disc(x2, id2) + log(1 - Disc(fake, id2)), the mean over both fakes, Dec(z1,s2) and Dec(zp,s2).
                # No detach: `update` takes the gradient of Disc's own parameters alone.
                loss_d = zero
                if fakes:
                    real = disc(x2[:n], id2[:n])
                    loss_d = sum(discriminator_loss(real, logits, opt.real_target) for logits in fakes) / len(fakes)

            update(opt_g, generator, loss_g, retain_graph=bool(fakes))       # the fakes' pass through Disc is shared
            if fakes:
                update(opt_d, disc_parameters, loss_d)
            run.log(reconstruction=own, same_class=same, kl=kl, fool_swap=fool[0] if opt.swap_weight else zero,
                    fool_prior=fool[-1] if opt.prior_weight else zero, hide_class=hide, match_prior=match,
                    discriminator=loss_d, code_discriminators=loss_c)


# ------------------------------------------------------------------------------------------------------ evaluation


@torch.no_grad()
def encode(nets, x):
    """Codes of uint8 images [N, C, H, W]: s [N, s_dim], mean and standard deviation of q(z|x) [N, z_dim]."""
    assert x.dtype == torch.uint8, "encode takes uint8 images; common.to_float is done here"
    parts, device = [], next(nets.enc.parameters()).device
    for part in x.split(1000):
        image = common.to_float(part.to(device))
        s, mu, logvar = nets.enc(image)
        parts.append((s if nets.class_enc is None else class_code(nets.class_enc, image), mu, (logvar / 2).exp()))
    return [torch.cat(column) for column in zip(*parts)]


@torch.no_grad()
def decode(nets, z, s):
    """Images [N, C, H, W] in [0, 1] from codes [N, z_dim] and [N, s_dim]."""
    return torch.cat([torch.sigmoid(nets.dec(*codes)) for codes in zip(z.split(1000), s.split(1000))])


def swap_scores(nets, test, judge, seed=0):
    """Does the decoder use s, and only s, for the class? Test images; classes read by a judge that knows real images only. Percent.

    swap_accuracy: Dec(z_a, s_b) shows b's class, z_a ~ q(z|x_a), for random pairs a, b of different class; swap_accuracy_mean: the same with
    z_a the posterior mean; swap_z_leak: it shows a's class; prior_accuracy: Dec(z ~ N(0, I), s_b) shows b's class."""
    rng = torch.Generator().manual_seed(seed)
    s, mu, sigma = encode(nets, test.x)
    z = mu + sigma * torch.randn(mu.shape, generator=rng).to(mu)
    b = torch.randperm(len(test.y), generator=rng).to(test.y.device)
    differ = test.y != test.y[b]
    percent = lambda hit: hit.float().mean().item() * 100  # noqa: E731
    shown, shown_mean = (judge.classify(decode(nets, code, s[b])) for code in (z, mu))
    drawn = judge.classify(decode(nets, torch.randn(mu.shape, generator=rng).to(mu), s))
    return {"swap_accuracy": percent((shown == test.y[b])[differ]), "swap_z_leak": percent((shown == test.y)[differ]),
            "swap_accuracy_mean": percent((shown_mean == test.y[b])[differ]), "prior_accuracy": percent(drawn == test.y)}


def true_swap_scores(nets, test, seed=0):
    """On sprites the right answer of a swap can be drawn: identity of b in the pose of a. Mean squared errors, pixels in [0, 1].

    b is any test image, in one pair of a hundred of a's own identity. swap_mse: Dec(z_a, s_b), z_a the posterior mean, against it;
    swap_mse_ignore_s and swap_mse_ignore_z: what a perfect decoder would get that ignored s (shows a) or z (shows b)."""
    rng = torch.Generator().manual_seed(seed)
    s, mu, _ = encode(nets, test.x)
    b = torch.randperm(len(test.y), generator=rng).to(test.y.device)
    truth = common.to_float(common.draw_sprites(test.attributes[b].cpu(), test.pose.cpu())).to(mu.device)
    error = lambda image: (image - truth).square().mean().item()  # noqa: E731
    return {"swap_mse": error(decode(nets, mu, s[b])), "swap_mse_ignore_s": error(common.to_float(test.x)),
            "swap_mse_ignore_z": error(common.to_float(test.x[b]))}


def reconstruction_scores(nets, test, seed=0):
    """reconstruction_mse: Dec(z, s) against x with z the posterior mean, over pixels in [0, 1]; ..._sample: with z ~ q(z|x);
    kl_nats: KL(q(z|x) || N(0, I)). All on the test set."""
    rng = torch.Generator().manual_seed(seed)
    s, mu, sigma = encode(nets, test.x)
    sample = mu + sigma * torch.randn(mu.shape, generator=rng).to(mu)
    error = lambda z: (decode(nets, z, s) - common.to_float(test.x)).square().mean().item()  # noqa: E731
    return {"reconstruction_mse": error(mu), "reconstruction_mse_sample": error(sample), "kl_nats": kl_loss(mu, 2 * sigma.log()).item()}


def probe_scores(nets, train, test, epochs=20):
    """Table 1: test error in percent of a two-layer probe on s, on the mean of q(z|x) and on samples of it; the mean over the attributes.

    chance_error: always the commonest training label; guess_error: guessing, 1 - 1/labels. (The paper's "random chance" of 80.0 and 96.4 on
    NORB and YaleB would be either; how the 60.7 of its sprites is computed it does not say.) On sprites the probe reads the seven
    attributes of characters it never saw (also one score an attribute) and, as R², the pose."""
    (s, mu, sigma), (s_, mu_, sigma_) = encode(nets, train.x), encode(nets, test.x)
    y, y_ = (train.y, test.y) if train.attributes is None else (train.attributes, test.attributes)
    read = functools.partial(common.probe, epochs=epochs, groups=None if train.attributes is None else train.y)
    errors = {"s": read(s, y, s_, y_), "z_mean": read(mu, y, mu_, y_), "z_sample": read(mu, y, mu_, y_, noise=(sigma, sigma_)),
              "chance": common.chance_error(y, y_), "guess": 100 - 100 / (y.view(len(y), -1).amax(0) + 1.)}
    scores = {f"{name}_error": error.mean().item() for name, error in errors.items()}
    if train.attributes is not None:
        for name, error in errors.items():
            scores.update({f"{name}_error_{word}": e.item() for word, e in zip(common.ATTRIBUTES, error)})
        for name, codes, codes_ in (("z", mu, mu_), ("s", s, s_)):
            scores[f"pose_r2_{name}"] = read(codes, train.pose, codes_, test.pose).mean().item()
    return scores


def retrieval_scores(nets, test):
    """Figure 4 as a number, percent: share of the 8 nearest test images by s, and by the mean of z, that have the query's class."""
    s, mu, _ = encode(nets, test.x)
    shares = []
    for code in (s, mu):
        near = common.nearest(code, code, 8, exclude_self=True)
        shares.append((test.y[near] == test.y[:, None]).float().mean().item() * 100)
    return dict(zip(("retrieval_s", "retrieval_z"), shares))


def examples(test, count=10):
    """Index of one test image of each of the first `count` classes: the first in the file, so nothing is picked by eye."""
    return torch.stack([(test.y == label).nonzero()[0, 0] for label in test.y.unique()[:count]])


def figure_swap(nets, test, path):
    """Figure 2(a), 3(a): z from the row's image, s from the column's image; donors along the edges, reconstructions on the diagonal."""
    i = examples(test)
    n, x = len(i), common.to_float(test.x[i])
    s, mu, _ = encode(nets, test.x[i])
    swapped = decode(nets, mu.repeat_interleave(n, 0), s.repeat(n, 1)).view(n, n, *x.shape[1:])
    rows = torch.cat([torch.cat([torch.ones_like(x[:1]), x])[None], torch.cat([x[:, None], swapped], 1)])
    common.figure_grid(path, rows.flatten(0, 1), n + 1, "Swaps of test images (Fig. 2a, 3a)", "s from this image", "z from this image",
                       after_row=0, after_column=0)


def figure_interpolation(nets, test, path, steps=10):
    """Figure 2(b), 3(b): between two real test images (a 1 and an 8 on MNIST); rows share z, columns share s, both linear."""
    classes = test.y.unique()
    i = torch.stack([(test.y == classes[k]).nonzero()[0, 0] for k in ((1, 8) if len(classes) > 8 else (0, -1))])
    s, mu, _ = encode(nets, test.x[i])
    t = torch.linspace(0, 1, steps, device=s.device)[:, None]
    line = lambda code: code[0] * (1 - t) + code[1] * t  # noqa: E731
    images = decode(nets, line(mu).repeat_interleave(steps, 0), line(s).repeat(steps, 1))
    x = common.to_float(test.x[i])
    images[0], images[-1] = x[0], x[1]                                       # the two real images at their corners
    common.figure_grid(path, images, steps, "Interpolation between the real images at the two corners (Fig. 2b, 3b)", "s changes", "z changes")


def figure_generation(nets, test, path, count=10, seed=0):
    """Figure 5: one test image a row on the left gives s; z ~ N(0, I), the same along a column."""
    i = examples(test)
    s, mu, _ = encode(nets, test.x[i])
    z = torch.randn(count, mu.shape[1], generator=torch.Generator().manual_seed(seed)).to(mu)
    images = decode(nets, z.repeat(len(i), 1), s.repeat_interleave(count, 0)).unflatten(0, (len(i), count))
    rows = torch.cat([common.to_float(test.x[i])[:, None], images], 1)
    common.figure_grid(path, rows.flatten(0, 1), count + 1, "Generation (as Fig. 5)", "z drawn from the prior, one a column", "s from this image",
                       after_column=0)


def figure_retrieval(nets, test, path, queries=5, k=8):
    """Figure 4: the k nearest test images to each query by s (upper half) and by the posterior mean of z (lower half)."""
    i = examples(test, queries)
    s, mu, _ = encode(nets, test.x)
    rows = []
    for code in (s, mu):
        hits = common.nearest(code[i], code, k + 1)
        for query, near in zip(i, hits):
            rows.append(torch.cat([query[None], near[near != query][:k]]))
    common.figure_grid(path, common.to_float(test.x[torch.cat(rows)]), k + 1, "Retrieval (as Fig. 4): query, then its nearest", "nearest first",
                       "by z      |      by s", after_row=queries - 1, after_column=0)


def figure_losses(history, path):
    """Every loss over the epochs, in its own unit."""
    common.figure_curves(path, history, [
        ("reconstruction", ("reconstruction", "same_class"), "squared error, summed over pixels"), ("KL(q(z|x) || N(0, I))", ("kl",), "nats"),
        ("image adversary", ("fool_swap", "fool_prior", "discriminator"), "nats"),
        ("code adversary", ("hide_class", "match_prior", "code_discriminators"), "nats")], "Training losses")


def evaluate(run, nets, data, test, judge):
    """All scores and figures of a trained model. Returns the flat metrics and the rows of the printed table."""
    opt = run.options
    for net in (nets.enc, nets.dec):
        net.eval()
    for name, draw in (("swap", figure_swap), ("interpolation", figure_interpolation), ("generation", figure_generation),
                       ("retrieval", figure_retrieval)):
        draw(nets, test, run.folder / f"{name}.png")
    figure_losses(run.history, run.folder / "losses.png")
    scores = {**reconstruction_scores(nets, test), **probe_scores(nets, data, test, epochs=1 if opt.dry_run else 20),
              **retrieval_scores(nets, test)}
    chance = f"guessing {scores['guess_error']:.1f}, commonest label {scores['chance_error']:.1f}"
    sprites = opt.dataset == "sprites"
    table1 = {"s": "5.2 (its sprites)", "z": "59.8 (chance 60.7; mean or sample not said)"} if sprites else {"s": "-", "z": "-"}
    rows = [("error of the probe on s, %", "s_error", table1["s"], chance),
            ("error of the probe on z, mean, %", "z_mean_error", table1["z"], chance),
            ("error of the probe on z, sample, %", "z_sample_error", table1["z"], chance)]
    if sprites:
        scores.update(true_swap_scores(nets, test))
        rows += [("R2 of the pose read from z", "pose_r2_z", "-", "1 at best"), ("R2 of the pose read from s", "pose_r2_s", "-", "0 at best"),
                 ("swap against the true picture, MSE", "swap_mse", "-", f"decoder that ignores s {scores['swap_mse_ignore_s']:.3f}")]
    else:
        scores.update(swap_scores(nets, test, judge))
        real = (judge.classify(common.to_float(test.x)) == test.y).float().mean().item() * 100
        rows += [("swap shows the class of the s donor, %", "swap_accuracy", "-", f"real images: {real:.1f}"),
                 ("swap shows the class of the z donor, %", "swap_z_leak", "-", "0 at best"),
                 ("z from the prior: class of the s donor, %", "prior_accuracy", "-", f"real images: {real:.1f}")]
    mean_image = (common.to_float(test.x) - common.to_float(data.x).mean(0)).square().mean()
    rows += [("reconstruction MSE, mean of z", "reconstruction_mse", "-", f"the mean training image: {mean_image:.3f}"),
             ("reconstruction MSE, sample of z", "reconstruction_mse_sample", "-", ""), ("KL, nats", "kl_nats", "-", ""),
             ("nearest 8 by s of the same class, %", "retrieval_s", "-", f"by z {scores['retrieval_z']:.1f}")]
    return scores, rows


def load(run_dir, device="cpu"):
    """Trained networks of a run folder in eval mode: enc, dec, disc, mean_disc, prior_disc, class_enc (None unless --pretrained-s), and options.

    For notebooks: nets = load("runs/mathieu/mnist-seed0"); s, mu, sigma = encode(nets, images)."""
    options = SimpleNamespace(**common.read_config(run_dir)["settings"])
    state = common.read_checkpoint(run_dir, "mathieu", device)["states"]
    with common.same_version(run_dir), common.own_random_numbers():          # initial weights, which are overwritten
        conv = state["disc"]["convs.0.weight"]
        nets = build(options, conv.shape[1], 28 if options.dataset in GREY else 32, len(state["disc"]["tables.0"]))
        for name in ("enc", "dec", "disc", "mean_disc", "prior_disc", "class_enc"):
            if getattr(nets, name) is not None:
                getattr(nets, name).load_state_dict(state[name])
                getattr(nets, name).to(device).eval()
    nets.options = options
    return nets


# ------------------------------------------------------------------------------------------------------------ main

GREY = ("mnist", "fashion", "kmnist")                                        # 28 x 28 x 1; the others are 32 x 32 x 3

# Defaults where grey digits and colour sprites need different ones: (grey, colour). The dimensions are the paper's for MNIST and sprites (supplement).
BY_DATASET = dict(z_dim=(16, 512), s_dim=(16, 64), kl_start=(0.3, 0.05), kl_weight=(2.4, 1.0), swap_weight=(6.5, 4.0), prior_weight=(6.5, 4.0),
                  prior_std=(2.0, 1.0), code_weight=(15.0, 5.0), code_prior_weight=(8.0, 3.0), dead_zone=(0.25, 0.5))

# The released code's settings in our units. Its squared errors are means over C*H*W values in [-1, 1]: ours times 4 / (C*H*W). With the whole
# objective multiplied by C*H*W / 4 the reconstruction weights stay 0.5 and 1, the KL's 0.1 * 6 / (C*H*W) becomes 0.15 nats, and the
# adversary's 0.01 becomes 0.01 * C*H*W / 4 (set in `resolve`: 1.96 on grey images, 7.68 on colour). Its 16 triplets are 48 images, here 24 pairs.
RELEASED = dict(net="released", own_weight=0.5, same_weight=1.0, kl_start=None, kl_weight=0.15, swap_weight=None, prior_weight=0.0, prior_std=1.0,
                code_weight=0.0, code_prior_weight=0.0, real_target=0.95, dead_zone=0.0, lr=0.01, lr_disc=0.01, beta1=0.5, batch_size=48,
                schedule="constant", z_dim=512, s_dim=64)


def make_parser():
    both = lambda name: "{}, on colour images {}".format(*BY_DATASET[name])  # noqa: E731
    cli = common.Parser(__doc__.split("\n\n")[0], batch_type=common.even)
    add = cli.add_argument
    add("--recipe", choices=("ours", "released"), default="ours",
        help="released: the released code's small net, z of 512, s of 64, batches of 48, rates and weights, constant schedule and KL, no code adversaries, no "
             "dead zone; epochs stay (that code runs until it is stopped); flags given beside it still count")
    add("--net", choices=("paper", "released"), default="paper",
        help="paper: three 5x5 stride-2 convolutions; released: the released code's small net")
    add("--z-dim", type=common.count, default=None, help=f"size of z; None is {both('z_dim')} (the paper's for MNIST and sprites)")
    add("--s-dim", type=common.count, default=None, help=f"size of s; None is {both('s_dim')} (the paper's for MNIST and sprites)")
    add("--own-weight", type=common.weight, default=0.2, help="of the reconstruction from (z1, s1) (eq. 5; the value is ours, released 0.5)")
    add("--same-weight", type=common.weight, default=1.3,
        help="of the reconstruction from (z1, s1'), same class (Algorithm 1; the value is ours, released 1)")
    add("--kl-weight", type=common.weight, default=None,
        help=f"of the KL in nats (eq. 5; the value is ours, released 0.15 in these units); None is {both('kl_weight')}")
    add("--kl-start", type=common.weight, default=None,
        help=f"weight of the KL at the first step, from where it goes to --kl-weight (ours); None is {both('kl_start')}, at most --kl-weight")
    add("--grow-until", type=common.share, default=0.6,
        help="share of the run after which the weights of the KL and of the codes' adversaries are whole (ours)")
    add("--swap-weight", type=common.weight, default=None,
        help="lambda of eq. 5 for the swap (z1, s2, id2) (the value is ours, the paper gives none; released 1.96 in these units, 7.68 on colour images); "
             f"None is {both('swap_weight')}")
    add("--prior-weight", type=common.weight, default=None,
        help=f"lambda for z from the prior with s2, id2 (Figure 1; the value is ours, released 0); None is {both('prior_weight')}")
    add("--prior-std", type=common.positive, default=None,
        help=f"deviation of these z (difference 2; the prior's, and the paper's, is 1); None is {both('prior_std')}")
    add("--code-weight", type=common.weight, default=None,
        help=f"of hiding the class in the mean of z from its discriminator (ours, difference 3); None is {both('code_weight')}")
    add("--code-prior-weight", type=common.weight, default=None,
        help=f"of making z of every class look like the prior (ours, difference 3); None is {both('code_prior_weight')}")
    add("--code-steps", type=common.count, default=2, help="updates of the discriminators of codes in a step (ours)")
    add("--dead-zone", type=common.weight, default=None,
        help=f"soft threshold of the means of z (ours, difference 7; paper 0); None is {both('dead_zone')}")
    add("--real-target", type=common.fraction, default=1.0, help="label of 'real', for the image discriminator and for the generator (released 0.95)")
    add("--lr", type=common.positive, default=2e-3, help="Adam's rate for encoder and decoder (the value is ours, released 0.01)")
    add("--lr-disc", type=common.positive, default=1e-3, help="Adam's rate for the discriminator (the value is ours, released 0.01)")
    add("--lr-code", type=common.positive, default=2e-3, help="Adam's rate for the discriminators of codes; never below 30 %% of it (ours)")
    add("--beta1", type=common.below_one, default=0.5, help="of all Adams but the classifier's of --pretrained-s (released 0.5)")
    add("--schedule", choices=("linear", "constant"), default="linear",
        help="linear: warm-up, constant for half the run, then down to 2 %% (ours)")
    add("--no-adversary", action="store_true",
        help="ablation: all four adversarial weights 0, ours too, whatever flags say; with a weak KL (--kl-start 0.15 --kl-weight 0.15) the decoder "
             "then ignores s (section 4.1; the paper's words on this ablation say the unspecified part, apparently a slip)")
    add("--pretrained-s", action="store_true", help="ablation: s from a classifier, trained first and frozen (Figure 10(a), difference 10)")
    return cli


def resolve(options):
    """Fill in what depends on the data set or on another flag."""
    grey = options.dataset in GREY
    if options.recipe == "released" and options.swap_weight is None:
        options.swap_weight = 0.01 * (784 if grey else 3072) / 4
    if options.recipe == "released" and options.kl_start is None:
        options.kl_start = options.kl_weight              # constant
    start_given = options.kl_start is not None
    for name, (on_grey, on_colour) in BY_DATASET.items():
        if getattr(options, name) is None:
            setattr(options, name, on_grey if grey else on_colour)
    if not start_given:
        options.kl_start = min(options.kl_start, options.kl_weight)
    if options.pretrained_s and options.s_dim < 2:
        raise common.UserError("--pretrained-s needs --s-dim of at least 2: each s is scaled to deviation 1")
    if options.no_adversary:
        options.swap_weight = options.prior_weight = options.code_weight = options.code_prior_weight = 0.0
    if options.dry_run:
        options.epochs = min(options.epochs, 2)
    return options


def labels_of(data):
    """What conditions the discriminators: one-hot classes [N, classes], or on sprites the one-hots of the seven attributes side by side."""
    labels = data.y[:, None] if data.attributes is None else data.attributes
    return torch.cat([F.one_hot(column, int(column.max()) + 1) for column in labels.t()], 1).float()


def refuse_idle(options):
    """A flag that would do nothing is a mistake: `UserError`. options: resolved. (--no-adversary overrides its four weights, as its help says.)"""
    o = options
    by_dataset = {name: values[o.dataset not in GREY] for name, values in BY_DATASET.items()}
    told = {**vars(make_parser().parse_args([])), **by_dataset, **(RELEASED if o.recipe == "released" else {})}
    image, code = o.swap_weight or o.prior_weight, o.code_weight or o.code_prior_weight
    why = "since the weights that it goes with are 0"
    common.refuse_idle(o, ((not image, ("lr_disc", "real_target"), why), (not code, ("lr_code", "code_steps"), why),
                           (not o.prior_weight, ("prior_std",), "with --prior-weight 0"),
                           (not code and o.kl_start == o.kl_weight, ("grow_until",), why + " or constant")), told)


def main(options):
    options = resolve(options)
    refuse_idle(options)
    data, test = common.load_dataset(options.dataset, options.data, options.validation)
    if options.dry_run:
        data, test = (part.take(torch.arange(len(part.y)) < n) for part, n in ((data, 1024), (test, 512)))
    run = common.Run("mathieu", options)
    data, test = data.to(run.device), test.to(run.device)
    ids = labels_of(data)
    nets = build(options, data.x.shape[1], data.x.shape[2], ids.shape[1])
    judge = None if options.dataset == "sprites" else common.load_judge(options.dataset, options.data, run.device, quick=options.dry_run)
    train(run, nets, data, ids)
    run.finish(*evaluate(run, nets, data, test, judge))


if __name__ == "__main__":
    common.run_main(main, make_parser(), {"released": RELEASED})
