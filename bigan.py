"""BiGAN (Donahue, Krähenbühl, Darrell 2016, arXiv 1605.09782), which is ALI (Dumoulin et al. 2016, arXiv 1606.00704), with ALICE (Li et al. 2017).

    python bigan.py                                       # BiGAN on MNIST: a column of Table 1, samples and reconstructions
    python bigan.py --table 1                             # all of Table 1, with baselines it lacks
    python bigan.py --dataset grid                        # ALI's mixture of 25 Gaussians

A generator G makes an image of a code z ~ p(z), an encoder E finds a code for a real image x, and one discriminator D sees pairs, (x, E(x))
or (G(z), z). Neither E nor G ever sees the other's output; but when the best possible D cannot tell the pairs apart, E and G are inverses
of each other (a stochastic E: q(z|x) = p(z|x)). The price is that nothing compares x with G(E(x)): reconstructions are often another
digit's, and E(G(z)) is only loosely z. Table 1 is also easily misread: nearest neighbours on raw pixels, and on an encoder that was never
trained, lie close to all of its columns. Both rows are here, and so are scores that tell more. Some ask a judge (common.Judge), a
classifier trained once on the labels.

Where to find what
    BiGAN's objective, ALI eq. 1      discriminator_loss, joint_step
    BiGAN section 3.4, ALI eq. 4      inverse_loss, step_together: both players at the same moment
    BiGAN section 4, Table 1          --model bigan, gan (its D), lr, jlr, ae-l2, ae-l1; --table 1; table_scores
    Table 1's baselines               gan_step, regression_loss (lr, jlr), autoencoder_step
    ALI Algorithm 1, section 2.2      joint_step; the regressors for a GAN it is compared with: toy_inverse_step, toy_joint_step
    BiGAN Figure 2, ALI's figures     figure_reconstructions, figure_samples, figure_interpolation
    ALI section 2 (stochastic E)      --model ali: sample_code
    ALI's 2-D mixture                 --dataset grid: train_grid, figure_mixture; its ten settings: --random-setting --seed 0, 1, ... 9
    ALICE (arXiv 1709.01215)          --model alice: joint_step's cycle terms
    not in the papers                 --model pixels, untrained; --bilinear 256, a D that sees at once whether a code belongs to its image; --skip 1

Differences from the papers
 1. 30 epochs, rates of 5e-4 (not all: see 2) that rise over 100 steps and fall linearly in the second half; BiGAN's code has 400 epochs
    and 2e-4, with an exponential fall. --recipe paper takes that code's setting: its epochs, rate and schedule, no penalty, no average;
    its weight decay counts half (see below).
 2. In the joint models a penalty on the slope of D, of either kind of pair, every fourth step (gradient_penalty). Without it
    reconstructions collapse at rates of 6e-4, and after 10 epochs at 2e-4 half the digits are lost: E's codes crowd into the corners of
    [-1, 1]^50, where the prior has almost no mass. (The authors' 400 epochs without it keep the digit of 73.5 % of 200 training images, by
    the nearest neighbour of G(E(x)); our 30 that of 76 to 77 % of the test images, by the judge. Averaging, 3, helps as much.) gan, lr and
    jlr have no penalty and rates of 2e-4: a plain GAN with it, at 5e-4, collapsed onto one image (one run). Without it, too, two of six runs
    of gan and lr did, and with it one of five of bigan. D's batch norm subtracts what a batch has in common, so nothing is left of equal
    images: a GAN's logits of them are 0, a joint D's the same for any other image, whatever its weights. Thus a G that is losing has a way
    out which D cannot close: to make one image (in log.csv gan's and lr's G has a loss of log 2 from the next epoch on; bigan's D one below
    0.75 in the second epoch, and falling, where others have 1.1 to 1.3). So in bigan, gan, lr and jlr the logit also sees D's first hidden
    layer, and none of twenty runs collapsed (--skip 1 --skip-fade 0; --skip 0 is the published D: a GAN's is then closer to the paper's
    number). In bigan, which collapsed in its first epochs alone, this map fades to nothing in the first half of the run (--skip-fade; none
    of five collapsed): where it stays, the code says less. ali and alice, none of whose ten runs collapsed, and --bilinear have no such map;
    the grid's GAN has the penalty.
 3. The scores are of running averages of the weights (decay at most (1 + t) / (10 + t) in update t, for short runs); --average 0 takes the
    last weights.
 4. ali and alice have BiGAN's networks and 50 dimensions on MNIST, which the ALI paper leaves out. D's batch norm does not see the scale of
    z, so E's is held: batch norm on the mean, and a deviation of at most 1, the prior's; unbounded it grew until training broke. All codes
    together are then wider than the prior, by the variance of q(z|x). Reconstructions and interpolations are of the mean of q(z|x), the
    paper's of a sample. Of ALICE only the explicit cycle loss is here: squared errors summed over pixels and dimensions, one weight for
    both; x by a sample of q(z|x), z by its mean. Left out: BiGAN's ImageNet and PASCAL VOC, ALI's natural images and its semi-supervised
    and conditional models.
 5. 1-NN has all 60,000 training images as its reference; BiGAN's code takes 50,000. The paper does not say which layer Table 1 compares; the code's
    log agrees with the last hidden layer, with batch norm as in evaluation. 1-NN on the code is on E's bounded output, in that log on its logits.
 6. The latent regressor (lr) learns from G(z) alone, while G learns; it learns nothing from a real x and sends nothing to G, as in BiGAN's
    code. In jlr G and E share the weighted loss, as there. Scored is E with batch norm's statistics of real images, in both (settle).
 7. Grid: other sizes, batches, rates, epochs, schedule, beta1 (0) and initial weights than ALI's code (--recipe paper has them),
    differences 2 and 3 also here, in the random settings too; the three models that ALI's is compared with are not in that code, and are
    ours. ALI draws its ten settings from ranges it does not give (ours stand with --random-setting), and shows the best of ten; the
    figure here is of one fixed setting.
 8. Batch norm's epsilon is 1e-5; BiGAN's code has 1e-8, ALI's (of images) 1e-4.

What is taken from BiGAN's released code
 - No biases, batch norm without gain and bias, z added (not concatenated) in G's second hidden layer, as the paper has it in D's; the real and the
   generated batch go through D apart, each with batch norm's statistics of its own. ALI's code joins the two. At least the statistics and the
   place of z decide whether D wins: with joint statistics, or z behind the batch norm, it wins at once here.

Where released code does otherwise, and what went wrong elsewhere
 - BiGAN's code halves the losses of the joint game (chance: log 2 each), and D's of a plain GAN; here they are summed (2 log 2), so that
   the same weight decay counts half as much under Adam, which otherwise ignores the factor.
 - ALI's "beta2 = 10^-3" is 1 - beta2: its library stored 1 - beta then. beta1 = 0.8 of its mixture is 0.2 in --recipe paper.
 - A discriminator's loss far below chance is no failure: in BiGAN's own log it falls to a tenth of chance while samples still get better.
"""

import json
import math
from types import SimpleNamespace

from experiments import before as common  # before torch: it sets what torch reads at import

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

# -------------------------------------------------------------------------------------------------------- networks


class Encoder(nn.Module):
    """E: images [B, ...] -> logits of the code [B, z_dim] and None, or mean and log deviation [B, z_dim] each of q(z|x) = N(mu, sigma^2),
    sigma at most 1, the prior's.

    Two hidden layers; batch norm, without gain and bias, in the second, and on the mean of q (difference 4). No biases anywhere
    (BiGAN's released code, --nobias --nogain)."""

    def __init__(self, inputs=784, z_dim=50, hidden=1024, gaussian=False):
        super().__init__()
        self.layer1 = nn.Linear(inputs, hidden, bias=False)
        self.layer2 = nn.Linear(hidden, hidden, bias=False)
        self.norm = nn.BatchNorm1d(hidden, affine=False)
        self.out = nn.Linear(hidden, 2 * z_dim if gaussian else z_dim, bias=False)
        self.norm_mean = nn.BatchNorm1d(z_dim, affine=False) if gaussian else None

    def features(self, x):
        """The last hidden layer [B, hidden], presumably what Table 1 compares (difference 5)."""
        h = F.leaky_relu(self.layer1(x.flatten(1)), 0.2)
        return F.leaky_relu(self.norm(self.layer2(h)), 0.2)

    def forward(self, x):
        code = self.out(self.features(x)).float()
        if self.norm_mean is None:
            return code, None
        mean, width = code.chunk(2, 1)
        return self.norm_mean(mean), F.logsigmoid(width)  # difference 4


class Generator(nn.Module):
    """G: codes [B, z_dim] -> logits of the pixels [B, outputs]. The second hidden layer sees z once more, by addition (released code)."""

    def __init__(self, z_dim=50, outputs=784, hidden=1024):
        super().__init__()
        self.layer1 = nn.Linear(z_dim, hidden, bias=False)
        self.layer2 = nn.Linear(hidden, hidden, bias=False)
        self.from_z = nn.Linear(z_dim, hidden, bias=False)
        self.norm1, self.norm2 = (
            nn.BatchNorm1d(hidden, affine=False),
            nn.BatchNorm1d(hidden, affine=False),
        )
        self.out = nn.Linear(hidden, outputs, bias=False)

    def forward(self, z):
        h = F.relu(self.norm1(self.layer1(z)))
        return self.out(F.relu(self.norm2(self.layer2(h) + self.from_z(z)))).float()


class Discriminator(nn.Module):
    """D: images [B, ...] and codes [B, z_dim] -> logit [B] that the pair is (x, E(x)) rather than (G(z), z). z_dim=0: a GAN's D, of images alone.

    z enters at the second hidden layer, by a linear map that is added (BiGAN section 4), not beside the pixels. bilinear=n (ours): the logit gains
    <U h, V z> / sqrt(n), h the first hidden layer, U h and V z of n numbers: whether a code belongs to its image is then seen at once (projection
    discriminator, Miyato and Koyama 2018, arXiv 1802.05637). skip=True (ours): the logit gains a linear map of h, which no batch norm hides: D then
    sees what image it is of which a batch has nothing else (difference 2); times skip_share, which training may let fall from 1 to 0."""

    def __init__(self, inputs=784, z_dim=50, hidden=1024, bilinear=0, skip=False):
        super().__init__()
        self.layer1 = nn.Linear(inputs, hidden, bias=False)
        self.layer2 = nn.Linear(hidden, hidden, bias=False)
        self.from_z = nn.Linear(z_dim, hidden, bias=False) if z_dim else None
        self.norm = nn.BatchNorm1d(hidden, affine=False)
        self.out = nn.Linear(hidden, 1, bias=False)
        self.u = nn.Linear(hidden, bilinear, bias=False) if bilinear else None
        self.v = nn.Linear(z_dim, bilinear, bias=False) if bilinear else None
        self.skip = nn.Linear(hidden, 1, bias=False) if skip else None
        self.register_buffer("skip_share", torch.ones(()) if skip else None)

    def layers(self, x, z):
        h1 = F.leaky_relu(self.layer1(x.flatten(1)), 0.2)
        h2 = self.layer2(h1)
        return h1, F.leaky_relu(self.norm(h2 if z is None else h2 + self.from_z(z)), 0.2)

    def features(self, x, z=None):
        """The last hidden layer [B, hidden]."""
        return self.layers(x, z)[1]

    def forward(self, x, z=None):
        h1, h2 = self.layers(x, z)
        logit = self.out(h2).float().squeeze(1)
        if self.u is not None:
            logit = logit + (self.u(h1) * self.v(z)).float().sum(1) / self.u.out_features**0.5
        if self.skip is not None:
            logit = logit + self.skip_share * self.skip(h1).float().squeeze(1)
        return logit


# ---------------------------------------------------------------------------------------------------------- losses


def discriminator_loss(logits_real, logits_generated):
    """-log D(x, E(x)) - log(1 - D(G(z), z)) (BiGAN section 3, ALI eq. 1), means over the batch; 2 log 2 at chance. Logits [B] of either
    kind of pair."""
    return F.softplus(-logits_real).mean() + F.softplus(logits_generated).mean()


def inverse_loss(logits_real, logits_generated):
    """-log(1 - D(x, E(x))) - log D(G(z), z): the same with the labels swapped, for E and G, instead of maximising discriminator_loss (BiGAN
    3.4, ALI eq. 4).

    E's gradient comes through the first term alone and G's through the second. Means over the batch; 2 log 2 at chance. Logits [B]."""
    return F.softplus(logits_real).mean() + F.softplus(-logits_generated).mean()


def generator_loss(logits_generated):
    """-log D(G(z)): the generator's side of an ordinary GAN, mean over the batch; log 2 at chance. Logits [B]."""
    return F.softplus(-logits_generated).mean()


def regression_loss(logits, z):
    """The latent regressor's: cross-entropy of sigmoid(logits) and z mapped from [-1, 1] to [0, 1], mean over batch and dimensions. Both [B, z_dim].

    log 2 for logits of 0; at best 1/2, the mean entropy of a coin whose bias is uniform."""
    return F.binary_cross_entropy_with_logits(logits, (z + 1) / 2)


def gradient_penalty(logits, inputs):
    """|d D / d inputs|^2, summed over all `inputs` (tensors [B, ...] of the B examples), mean over the batch; differentiable. Logits [B].

    Zero-centred, Mescheder et al. 2018, arXiv 1801.04406, R1 and R2 without their gamma / 2. Where D has batch norm the examples of a batch are not
    independent, and the slope is that of the batch's sum."""
    gradients = torch.autograd.grad(logits.sum(), inputs, create_graph=True)
    return sum(g.flatten(1).square().sum(1) for g in gradients).mean()


def pixel_loss(reconstruction, x, power=2):
    """Squared (power 2) or absolute (1) error, summed over the pixels (or a code's numbers), mean over the batch. Both [B, D]."""
    return (reconstruction - x).abs().pow(power).sum(1).mean()


def bounded_code(logits):
    """The deterministic encoder's code in [-1, 1]: 2 sigmoid(logit) - 1."""
    return torch.tanh(logits / 2)


def sample_code(mu, log_sigma):
    """A sample of N(mu, sigma^2), sigma = exp(log_sigma), through which the gradient flows (ALI eq. 2). All [B, z_dim]."""
    return mu + torch.randn_like(mu) * log_sigma.exp()


# -------------------------------------------------------------------------------------------------------- training

JOINT, LATENT, PIXEL = ("bigan", "ali", "alice"), ("lr", "jlr"), ("ae-l2", "ae-l1")
MODELS = (*JOINT, "gan", *LATENT, *PIXEL, "pixels", "untrained")


def build(options, pixels):
    """The networks of a run: enc, gen, disc; None for one that the model does not have."""
    o = options
    if o.model == "pixels":
        return SimpleNamespace(enc=None, gen=None, disc=None)
    nets = SimpleNamespace(
        enc=None
        if o.model == "gan"
        else Encoder(pixels, o.z_dim, o.hidden, o.model in ("ali", "alice")),
        gen=Generator(o.z_dim, pixels, o.hidden),
        disc=Discriminator(pixels, o.z_dim if o.model in JOINT else 0, o.hidden, o.bilinear, o.skip)
        if o.model in (*JOINT, "gan", *LATENT)
        else None,
    )
    gaussian_weights(present(nets), 0.02)
    if nets.disc is not None:
        nn.init.zeros_(nets.disc.out.weight)  # so the first losses are those of chance
        if o.skip:
            nn.init.zeros_(nets.disc.skip.weight)
    if o.model in LATENT:
        nn.init.zeros_(nets.enc.out.weight)
    return nets


def gaussian_weights(nets, std):
    """Linear layers: weights N(0, std^2), biases 0."""
    for layer in (m for net in nets for m in net.modules() if isinstance(m, nn.Linear)):
        nn.init.normal_(layer.weight, std=std)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def present(nets):
    return [net for net in (nets.enc, nets.gen, nets.disc) if net is not None]


def parameters(*nets):
    return [p for net in nets if net is not None for p in net.parameters()]


def draw_prior(options, n, device):
    """Codes [n, z_dim] of the prior: uniform in [-1, 1] (BiGAN), or N(0, I) for ALI."""
    if options.model in ("ali", "alice"):
        return torch.randn(n, options.z_dim, device=device)
    return 2 * torch.rand(n, options.z_dim, device=device) - 1


def code_of(logits_or_mu, log_sigma, sample=True):
    """The code [B, z_dim] from what E returns: a sample of q(z|x) (or its mean), or the bounded code of a deterministic E."""
    if log_sigma is None:
        return bounded_code(logits_or_mu)
    return sample_code(logits_or_mu, log_sigma) if sample else logits_or_mu


def step_together(optimiser_d, optimiser_ge, loss_d, loss_ge):
    """One simultaneous step of both players: all gradients are taken before any weight moves, as in both papers' code.

    Each loss reaches its own optimiser's parameters and nothing else, so no detach() is needed. (To step D between the two backward passes
    is the in-place error that users of other code met: the second pass would go through weights that have changed.)"""
    loss_d.backward(
        inputs=[p for group in optimiser_d.param_groups for p in group["params"]], retain_graph=True
    )
    loss_ge.backward(inputs=[p for group in optimiser_ge.param_groups for p in group["params"]])
    for optimiser in (optimiser_d, optimiser_ge):
        optimiser.step()
        optimiser.zero_grad()


def penalty(disc, *kinds):
    """Difference 2: gradient_penalty of each of `kinds` of input, (x, z) or (x,), which is passed through D anew, without a way back to E and G."""
    total = 0.0
    for kind in kinds:
        inputs = [part.detach().requires_grad_() for part in kind]
        total = total + gradient_penalty(disc(*inputs), inputs)
    return total


def penalty_weight(step, options):
    """Of the penalty in a step's loss: its gamma / 2, every fourth step and there four times as heavy; 0 in the others."""
    return 4 * options.penalty / 2 if step % 4 == 0 else 0.0


def joint_step(nets, optimiser_d, optimiser_ge, x, weight, options):
    """BiGAN and ALI. D: minimise  -log D(x, E(x)) - log(1 - D(G(z), z));  E, G: the same with the labels swapped, at the same moment.

    ALICE adds for E and G  lambda (|x - G(E(x))|^2 + |z - E(G(z))|^2), the first E(x) a sample, the second the mean of q.  x: [B, D] in [0,
    1]; weight: of D's penalty. Returns loss_d, loss_ge, cycle."""
    z = draw_prior(options, len(x), x.device)
    z_x = code_of(*nets.enc(x))
    x_z = torch.sigmoid(nets.gen(z))
    logits = (
        nets.disc(x, z_x),
        nets.disc(x_z, z),
    )  # two passes, each with batch norm's statistics of its own
    loss_d, loss_ge = discriminator_loss(*logits), inverse_loss(*logits)
    cycle = x.new_zeros(())
    if options.cycle_weight:
        cycle = pixel_loss(torch.sigmoid(nets.gen(z_x)), x) + pixel_loss(
            code_of(*nets.enc(x_z), sample=False), z
        )
    slope = weight * penalty(nets.disc, (x, z_x), (x_z, z)) if weight else 0.0
    step_together(optimiser_d, optimiser_ge, loss_d + slope, loss_ge + options.cycle_weight * cycle)
    return loss_d, loss_ge, cycle


def gan_step(nets, optimiser_d, optimiser_ge, x, weight, options):
    """The GAN and its latent regressors. D: minimise  -log D(x) - log(1 - D(G(z)));  G: minimise  -log D(G(z)).

    lr: E minimises  L(z, E(G(z)))  and G gets nothing of it; E learns nothing from an x. jlr: G minimises --regressor-weight times it too
    (and E the same). Returns loss_d, loss_g, regression."""
    z = draw_prior(options, len(x), x.device)
    x_z = torch.sigmoid(nets.gen(z))
    logits = nets.disc(x), nets.disc(x_z)
    loss_d, loss_g = discriminator_loss(*logits), generator_loss(logits[1])
    regression, share = x.new_zeros(()), 1.0
    if options.model == "lr":
        regression = regression_loss(nets.enc(x_z.detach())[0], z)
    elif options.model == "jlr":
        regression, share = regression_loss(nets.enc(x_z)[0], z), options.regressor_weight
    slope = weight * penalty(nets.disc, (x,), (x_z,)) if weight else 0.0
    step_together(optimiser_d, optimiser_ge, loss_d + slope, loss_g + share * regression)
    return loss_d, loss_g, regression


def descend(optimiser, loss):
    """One step down a loss whose gradient may reach every network behind it."""
    loss.backward()
    optimiser.step()
    optimiser.zero_grad()
    return loss


def autoencoder_step(nets, optimiser_ge, x, options):
    """Table 1's autoencoders. E, G: minimise  |x - G(E(x))|^2  (ae-l2) or  |x - G(E(x))|  (ae-l1). Returns the loss."""
    return descend(
        optimiser_ge,
        pixel_loss(
            torch.sigmoid(nets.gen(code_of(*nets.enc(x)))), x, 2 if options.model == "ae-l2" else 1
        ),
    )


def make_optimiser(params, options, lr):
    """Adam with the L2 penalty in the gradient, as in BiGAN's code."""
    return torch.optim.Adam(
        params,
        lr,
        betas=(options.beta1, 0.999),
        weight_decay=options.weight_decay,
        fused=params[0].device.type != "mps",
    )


def schedule(step, total, options):
    """Share of the full rate. linear (ours): 100 steps up, constant to half the run, then straight down to 1 %; exponential (BiGAN): constant for
    half the run, then down to 1 %; constant (ALI's grid)."""
    done = step / total
    if options.schedule == "constant":
        return 1.0
    if options.schedule == "exponential":
        return 0.01 ** max(0.0, 2 * done - 1)
    return min(1, (step + 1) / min(100, total / 10)) * min(1, max(0.01, 2 * (1 - done)))


def averages_of(run, nets, first_step=lambda name: 0):
    """Running averages of the weights by network's name (none with --average 0), tracked by the run. Their decay is smaller at first, so
    that a short run is not scored by its first weights. first_step: of each network's training."""

    def mean_since(first):
        def mean(averaged, current, _):
            t = run.step - first
            get_ema_multi_avg_fn(min(run.options.average, (1 + t) / (10 + t)))(
                averaged, current, None
            )

        return mean

    averages = {
        name: AveragedModel(net, multi_avg_fn=mean_since(first_step(name)))
        for name, net in vars(nets).items()
        if net is not None and run.options.average
    }
    run.track(**{f"average_{name}": average for name, average in averages.items()})
    return averages


def train(run, nets, data):
    """Every model of Table 1: the one step that it takes on each batch. data: a common.Split on the device."""
    opt, device = run.options, run.device
    for net in present(nets):
        net.to(device).train()
    opt_d = (
        make_optimiser(parameters(nets.disc), opt, opt.lr_discriminator)
        if nets.disc is not None
        else None
    )
    opt_ge = (
        make_optimiser(parameters(nets.gen, nets.enc), opt, opt.lr)
        if nets.gen is not None
        else None
    )
    rates = [(o, o.param_groups[0]["lr"]) for o in (opt_d, opt_ge) if o is not None]
    run.track(
        **{name: net for name, net in vars(nets).items() if net is not None},
        **{f"optimiser_{k}": o for k, (o, _) in enumerate(rates)},
    )
    averages = averages_of(run, nets)
    total = opt.epochs * math.ceil(len(data.y) / opt.batch_size)

    for epoch in run.epochs():
        for i in run.batches(torch.randperm(len(data.y)), opt.batch_size):
            for optimiser, rate in rates:
                optimiser.param_groups[0]["lr"] = rate * schedule(run.step, total, opt)
            if opt.skip_fade:  # difference 2
                nets.disc.skip_share.fill_(max(0, 1 - run.step / (opt.skip_fade * total)))
            x = common.to_float(data.x[i]).flatten(1)
            with run.autocast():
                if opt.model in JOINT:
                    loss_d, loss_ge, cycle = joint_step(
                        nets, opt_d, opt_ge, x, penalty_weight(run.step, opt), opt
                    )
                    run.log(discriminator=loss_d, inverse=loss_ge, cycle=cycle)
                elif opt.model in PIXEL:
                    run.log(pixel=autoencoder_step(nets, opt_ge, x, opt))
                else:
                    loss_d, loss_g, regression = gan_step(
                        nets, opt_d, opt_ge, x, penalty_weight(run.step, opt), opt
                    )
                    run.log(discriminator=loss_d, generator=loss_g, regression=regression)
            for name, average in averages.items():
                average.update_parameters(getattr(nets, name))
    for name, average in averages.items():  # difference 3: the networks from here on
        getattr(nets, name).load_state_dict(average.module.state_dict())
    settle(nets, data.x, opt)
    run.save()


@torch.no_grad()
def settle(nets, images, options, batch_size=500):
    """Recompute batch norm's statistics with the final weights, from the inputs on which each network is scored, then eval mode. Those of
    training will not do: D's mix real and generated input, and a latent regressor's E has seen no real image until here.

    E's from 20,000 training images (uint8 [N, ...]), G's from the prior (an autoencoder's from codes), D's from pairs (x, E(x)) or from
    images alone."""
    parts = [part.flatten(1) for part in common.settling_parts(images, batch_size)]
    code = lambda x: code_of(*nets.enc(x))  # noqa: E731
    with common.own_random_numbers():
        if nets.enc is not None:
            common.settle_batch_norm(nets.enc, ((x,) for x in parts))
        if nets.gen is not None:
            common.settle_batch_norm(
                nets.gen,
                (
                    (code(x) if options.model in PIXEL else draw_prior(options, len(x), x.device),)
                    for x in parts
                ),
            )
        if nets.disc is not None:
            common.settle_batch_norm(
                nets.disc, ((x, code(x)) if options.model in JOINT else (x,) for x in parts)
            )


# ------------------------------------------------------------------------------------------------------ evaluation


def device_of(net):
    return next(net.parameters()).device


@torch.no_grad()
def features(nets, x):
    """The last hidden layer, float [N, hidden], of E, or of D where there is no E, or the pixels, for uint8 images [N, C, H, W] (Table 1)."""
    assert x.dtype == torch.uint8, "features takes uint8 images; common.to_float is done here"
    net = nets.enc or nets.disc
    if net is None:
        return common.to_float(x).flatten(1)
    return torch.cat(
        [net.features(common.to_float(part.to(device_of(net)))) for part in x.split(1000)]
    )


@torch.no_grad()
def encode(nets, x, sample=False):
    """Codes [N, z_dim] of uint8 images [N, C, H, W]: E(x), the mean of q(z|x) where E is stochastic, or on request a sample of it."""
    assert x.dtype == torch.uint8, "encode takes uint8 images; common.to_float is done here"
    return torch.cat(
        [
            code_of(*nets.enc(common.to_float(part.to(device_of(nets.enc)))), sample)
            for part in x.split(1000)
        ]
    )


@torch.no_grad()
def decode(nets, z):
    """Images [N, pixels] in [0, 1] of codes [N, z_dim]."""
    return torch.cat(
        [torch.sigmoid(nets.gen(part.to(device_of(nets.gen)))) for part in z.split(1000)]
    )


def image_quality(judge, images):
    """What the judge says of images [N, C, H, W] in [0, 1].

    sample_confidence: mean probability of the class it names, in percent; sample_classes: exp of the entropy of the classes named, 10 when
    the ten digits are equally frequent; sample_quality: its inception score, exp E KL(p(y|x) || p(y)), which is high when both are, 10 at
    best."""
    with torch.no_grad():
        p = torch.cat([judge(part).cpu().double().softmax(1) for part in images.split(1000)])
    named = torch.bincount(p.argmax(1), minlength=p.shape[1]) / len(p)
    entropy = lambda q: -(q * q.clamp(min=1e-12).log()).sum(-1)  # noqa: E731
    return {
        "sample_confidence": p.amax(1).mean().item() * 100,
        "sample_classes": entropy(named).exp().item(),
        "sample_quality": (entropy(p.mean(0)) - entropy(p).mean()).exp().item(),
    }


@torch.no_grad()
def table_scores(nets, options, judge, data, test):
    """A row of Table 1, with what the table leaves out. All errors in percent, on the test images.

    nn_error_features, nn_error_code: of the class of the nearest training image, Euclidean, in the last hidden layer (presumably the
    table's) and in the code; probe_error_code: of a linear classifier on the code; reconstruction_mse: per pixel in [0, 1];
    reconstruction_l2: mean length of x - G(E(x)), and of x' - G(E(x)) for another image x' (_mismatched); reconstruction_digit: share of
    G(E(x)) in which the judge reads x's class; code_mse: E(G(z)) against z, a number (an answer of 0 would have code_prior_square, a code
    that has nothing to do with z about that and code_square together); code_square: mean square of E(x)'s numbers (code_prior_square: of
    the prior's); sample_*: see image_quality, for 10,000 images of the prior, or the test images themselves for the model `pixels`."""
    shape = test.x.shape[1:]
    scores = {
        "nn_error_features": common.nn_error(
            features(nets, data.x), data.y, features(nets, test.x), test.y
        )
    }
    x = common.to_float(test.x).flatten(1)
    if nets.enc is not None or options.model == "pixels":
        z, z_ = (
            encode(nets, part.x) if nets.enc else common.to_float(part.x).flatten(1)
            for part in (data, test)
        )
        if nets.enc is not None:
            scores["nn_error_code"] = common.nn_error(z, data.y, z_, test.y)
        with torch.enable_grad():
            scores["probe_error_code"] = common.probe(
                z, data.y, z_, test.y, hidden=0, epochs=1 if options.dry_run else 20
            ).item()
    if nets.enc is not None:
        again, prior = decode(nets, z_), draw_prior(options, 5000, x.device)
        scores.update(
            reconstruction_mse=(again - x).square().mean().item(),
            reconstruction_l2=(again - x).norm(dim=1).mean().item(),
            reconstruction_l2_mismatched=(again - x.roll(1, 0)).norm(dim=1).mean().item(),
            code_square=z_.square().mean().item(),
            code_prior_square=prior.square().mean().item(),
            code_mse=(code_of(*nets.enc(decode(nets, prior)), sample=False) - prior)
            .square()
            .mean()
            .item(),
            reconstruction_digit=(judge.classify(again.view(-1, *shape)) == test.y)
            .float()
            .mean()
            .item()
            * 100,
        )
    samples = (
        x
        if nets.gen is None
        else decode(nets, draw_prior(options, 300 if options.dry_run else 10_000, x.device))
    )
    return {**scores, **image_quality(judge, samples.view(-1, *shape))}


PAPER_TABLE1 = {
    "bigan": 97.39,
    "gan": 97.30,
    "lr": 97.44,
    "jlr": 97.13,
    "ae-l2": 97.58,
    "ae-l1": 97.63,
}


def table_rows(scores, options, chance):
    """Rows of the printed table of one run: words, metric, the paper's value, what to compare with."""
    paper = PAPER_TABLE1.get(options.model) if options.dataset == "mnist" else None
    pixels = (
        "pixels 3.09"
        if options.dataset == "mnist" and not (options.validation or options.dry_run)
        else ""
    )
    rows = [
        (
            "error of 1-NN, last hidden layer, %",
            "nn_error_features",
            f"{100 - paper:.2f}" if paper else "-",
            pixels,
        ),
        ("error of 1-NN, code, %", "nn_error_code", "-", ""),
        (
            "error of a linear probe, code, %",
            "probe_error_code",
            "-",
            f"commonest label {chance:.1f}",
        ),
        ("reconstruction MSE", "reconstruction_mse", "-", ""),
        (
            "length of x - G(E(x)), mean",
            "reconstruction_l2",
            "-",
            f"another x: {scores.get('reconstruction_l2_mismatched', 0):.2f}",
        ),
        ("G(E(x)) shows x's class, %", "reconstruction_digit", "-", "100 at best"),
        (
            "E(G(z)) against z, MSE",
            "code_mse",
            "-",
            f"0 would have {scores.get('code_prior_square', 0):.2f}, "
            f"an unrelated code about {scores.get('code_prior_square', 0) + scores.get('code_square', 0):.2f}",
        ),
        (
            "mean square of E(x)",
            "code_square",
            "-",
            "held near 1 by batch norm"
            if options.model in ("ali", "alice")
            else f"the prior's {scores.get('code_prior_square', 0):.2f}",
        ),
        ("samples: judge's confidence, %", "sample_confidence", "-", ""),
        ("samples: classes in effect", "sample_classes", "-", "10 at best"),
        ("samples: inception score of the judge", "sample_quality", "-", "10 at best"),
    ]
    return [row for row in rows if row[1] in scores]


def tinted(images, wrong):
    """Images [N, C, H, W] as RGB, those marked wrong (bool [N]) in red."""
    rgb = images.expand(-1, 3, -1, -1).clone() if images.shape[1] == 1 else images.clone()
    rgb[wrong, 1:] *= 0.35
    return rgb


def figure_reconstructions(nets, judge, test, path, pairs=8):
    """BiGAN's Figure 2, ALI's reconstructions: test images, a class a row, each with G(E(x)) right of it; red where the judge reads another class."""
    chosen = torch.cat([(test.y == label).nonzero()[:pairs, 0] for label in range(10)])
    x, again = (
        common.to_float(test.x[chosen]),
        decode(nets, encode(nets, test.x[chosen])).view(-1, *test.x.shape[1:]),
    )
    wrong = judge.classify(again) != test.y[chosen]
    both = torch.stack([tinted(x, torch.zeros_like(wrong)), tinted(again, wrong)], 1).flatten(0, 1)
    common.figure_grid(
        path,
        both,
        2 * pairs,
        f"x and G(E(x)) in turn; red: {int(wrong.sum())} of {len(wrong)} changed their class",
    )


def figure_samples(nets, options, test, path):
    """G(z), z from the prior."""
    images = decode(nets, draw_prior(options, 160, test.x.device))
    common.figure_grid(
        path, images.view(-1, *test.x.shape[1:]), 16, "Samples G(z), z from the prior"
    )


def figure_interpolation(nets, test, path, rows=8, columns=12):
    """ALI's interpolations: images along the straight line between the codes of two test images, which stand at both ends."""
    ends = test.x[: 2 * rows]
    a, b = encode(nets, ends).view(rows, 2, -1).unbind(1)
    t = torch.linspace(0, 1, columns, device=a.device)[:, None]
    images = decode(nets, torch.cat([p + t * (q - p) for p, q in zip(a, b)])).view(
        rows, columns, *ends.shape[1:]
    )
    x = common.to_float(ends).view(rows, 2, *ends.shape[1:])
    common.figure_grid(
        path,
        torch.cat([x[:, :1], images, x[:, 1:]], 1).flatten(0, 1),
        columns + 2,
        "Between two test images: G of the straight line between their codes",
        after_column=[0, columns],
    )


def evaluate(run, nets, data, test):
    """Scores and figures of a row of Table 1. Returns the flat metrics and the rows of the printed table."""
    opt = run.options
    judge = common.load_judge(opt.dataset, opt.data, run.device, quick=opt.dry_run)
    scores = table_scores(nets, opt, judge, data, test)
    at = lambda name: run.folder / f"{name}.png"  # noqa: E731
    if nets.gen is not None:
        figure_samples(nets, opt, test, at("samples"))
    if nets.enc is not None:
        figure_reconstructions(nets, judge, test, at("reconstructions"))
        figure_interpolation(nets, test, at("interpolation"))
    if run.history:
        panels = [
            ("the game", ("discriminator", "inverse", "generator"), "nats"),
            ("latent regressor", ("regression",), "nats"),
            ("errors", ("cycle", "pixel"), "summed over pixels and code"),
        ]
        drawn = [
            (words, [name for name in names if run.history[0].get(name)], unit)
            for words, names, unit in panels
        ]
        common.figure_curves(
            at("losses"), run.history, [panel for panel in drawn if panel[1]], "Training losses"
        )
    return scores, table_rows(scores, opt, common.chance_error(data.y, test.y).item())


def load(run_dir, device="cpu"):
    """Trained networks of a run folder in eval mode: enc, gen, disc (None where the model has none), and options.

    For notebooks: nets = load("runs/bigan/bigan-seed0"); images = decode(nets, encode(nets, test.x)). A run on the grid gives its toy networks."""
    options = SimpleNamespace(**common.read_config(run_dir)["settings"])
    saved = common.read_checkpoint(run_dir, "bigan", device, finished=True)
    state = saved["states"]
    with (
        common.same_version(run_dir),
        common.own_random_numbers(),
    ):  # initial weights, which are overwritten
        nets = (
            build_grid(options)
            if options.dataset == "grid"
            else build(options, state["gen"]["out.weight"].shape[0] if "gen" in state else 784)
        )
        for name, net in vars(nets).items():
            if net is not None:
                net.load_state_dict(state[name])
                net.to(device).eval()
    nets.options = options
    return nets


# --------------------------------------------------------------------------------------------- the 25 Gaussians
# A plane of data, a plane of codes, and networks of their own (ALI's released code); the losses are those above.


def mlp(inputs, hidden, layers, outputs):
    """`layers` hidden layers with batch norm and ReLU, then a linear one: [B, inputs] -> [B, outputs]."""
    sizes = [inputs, *[hidden] * layers]
    body = [
        part
        for a, b in zip(sizes, sizes[1:])
        for part in (nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), nn.ReLU())
    ]
    return nn.Sequential(*body, nn.Linear(hidden, outputs))


class ToyEncoder(nn.Module):
    """z = f(x, eps), eps ~ N(0, I) (ALI eq. 3): points [B, 2] -> codes [B, 2], a sampler without a density, as in ALI's code. Uses mlp."""

    def __init__(self, dim=2, hidden=400):
        super().__init__()
        self.net = mlp(2 * dim, hidden, 2, dim)

    def forward(self, x):
        return self.net(torch.cat([x, torch.randn_like(x)], 1))


class MaxoutDiscriminator(nn.Module):
    """Three maxout layers (each unit the largest of `pieces` linear ones, five in ALI's code): points and codes side by side [B, inputs] ->
    logit [B]."""

    def __init__(self, inputs=4, hidden=200, pieces=5):
        super().__init__()
        self.pieces = pieces
        self.layers = nn.ModuleList(nn.Linear(n, hidden * pieces) for n in (inputs, hidden, hidden))
        self.out = nn.Linear(hidden, 1)

    def forward(self, pair):
        for layer in self.layers:
            pair = layer(pair).unflatten(1, (-1, self.pieces)).amax(2)
        return self.out(pair).squeeze(1)


GRID_STD = 0.05


def grid_means(device="cpu"):
    """Centres [25, 2] of the mixture: a 5 x 5 grid from -4 to 4."""
    along = torch.arange(-4.0, 5.0, 2.0, device=device)
    return torch.cartesian_prod(along, along)


def draw_grid(n, device="cpu"):
    """Points [n, 2] of the mixture of 25 equally likely Gaussians of deviation 0.05, and their components int64 [n]."""
    y = torch.randint(0, 25, (n,), device=device)
    return grid_means(device)[y] + GRID_STD * torch.randn(n, 2, device=device), y


def mode_scores(samples):
    """How well samples [N, 2] cover the grid.

    modes_hit: components nearest to any sample, ALI's lenient rule (all are equally wide, so the nearest has the highest responsibility);
    modes_good: components with a sample within three deviations; samples_good: share of samples within three deviations of a mean, percent
    (98.9 for the data)."""
    distance, nearest = torch.cdist(samples, grid_means(samples.device)).min(1)
    good = distance < 3 * GRID_STD
    return {
        "modes_hit": float(len(nearest.unique())),
        "modes_good": float(len(nearest[good].unique())),
        "samples_good": good.float().mean().item() * 100,
    }


def build_grid(options):
    """The toy networks: ali_{enc,gen,disc}; gan_{gen,disc}; inverse_enc, posthoc_{enc,disc}, both for the GAN; vae_{enc,gen}, whose E is Gaussian.

    With --random-setting ALI's and the GAN's alone, with Gaussian initial weights of --init-std."""
    o, layers = options, options.generator_layers
    encoder, generator = lambda: ToyEncoder(2, o.hidden), lambda: mlp(2, o.hidden, layers, 2)  # noqa: E731
    disc = lambda inputs: MaxoutDiscriminator(inputs, o.maxout, o.pieces)  # noqa: E731
    nets = SimpleNamespace(
        ali_enc=encoder(),
        ali_gen=generator(),
        ali_disc=disc(4),
        gan_gen=generator(),
        gan_disc=disc(2),
    )
    if not o.random_setting:
        vars(nets).update(
            inverse_enc=encoder(),
            posthoc_enc=encoder(),
            posthoc_disc=disc(4),
            vae_enc=mlp(2, o.hidden, 2, 4),
            vae_gen=generator(),
        )
    if o.init_std:
        gaussian_weights(vars(nets).values(), o.init_std)
    return nets


def toy_joint_step(enc, gen, disc, optimiser_d, optimiser_ge, x, z, weight=0.0):
    """ALI on the plane, as joint_step. optimiser_ge may hold E alone: then G stays as it is, inference learned post hoc. Returns both losses."""
    real, made = torch.cat([x, enc(x)], 1), torch.cat([gen(z), z], 1)
    logits = disc(real), disc(made)
    loss_d, loss_ge = discriminator_loss(*logits), inverse_loss(*logits)
    step_together(
        optimiser_d,
        optimiser_ge,
        loss_d + (weight * penalty(disc, (real,), (made,)) if weight else 0.0),
        loss_ge,
    )
    return loss_d, loss_ge


def toy_gan_step(gen, disc, optimiser_d, optimiser_g, x, z, weight=0.0):
    """The GAN that is given an encoder afterwards. Returns both losses."""
    made = gen(z)
    logits = disc(x), disc(made)
    loss_d, loss_g = discriminator_loss(*logits), generator_loss(logits[1])
    step_together(
        optimiser_d,
        optimiser_g,
        loss_d + (weight * penalty(disc, (x,), (made,)) if weight else 0.0),
        loss_g,
    )
    return loss_d, loss_g


def toy_inverse_step(enc, gen, optimiser, z):
    """The learned inverse mapping (ALI section 2.2): E minimises  |z - E(G(z))|^2  on samples of a finished GAN. Returns the loss."""
    with torch.no_grad():
        x = gen(z)
    return descend(optimiser, pixel_loss(enc(x), z))


def toy_vae_step(enc, gen, optimiser, x, std):
    """E, G: minimise  |x - G(z)|^2 / (2 std^2) + KL(q(z|x) || N(0, I)),  z ~ q(z|x). Returns the loss in nats, without the Gaussian's constant."""
    mu, log_sigma = enc(x).chunk(2, 1)
    kl = 0.5 * (mu.square() + (2 * log_sigma).exp() - 1 - 2 * log_sigma).sum(1).mean()
    return descend(optimiser, pixel_loss(gen(sample_code(mu, log_sigma)), x) / (2 * std**2) + kl)


def train_grid(run, nets, x_train):
    """ALI, the GAN and the VAE side by side, then, in the last fifth of the epochs, the two encoders for the GAN, which stays as it is.

    x_train: [N, 2] on the device."""
    opt, device = run.options, run.device
    for net in vars(nets).values():
        net.to(device).train()
    posthoc_epochs = 0 if opt.random_setting else max(1, opt.epochs // 5)
    optimisers = {
        "ali_d": parameters(nets.ali_disc),
        "ali_ge": parameters(nets.ali_gen, nets.ali_enc),
        "gan_d": parameters(nets.gan_disc),
        "gan_g": parameters(nets.gan_gen),
    }
    if posthoc_epochs:
        optimisers.update(
            inverse=parameters(nets.inverse_enc),
            posthoc_d=parameters(nets.posthoc_disc),
            posthoc_e=parameters(nets.posthoc_enc),
            vae=parameters(nets.vae_enc, nets.vae_gen),
        )
    rate = lambda name: opt.lr_discriminator if name.endswith("_d") else opt.lr  # noqa: E731
    optimisers = {
        name: make_optimiser(params, opt, rate(name)) for name, params in optimisers.items()
    }
    run.track(**vars(nets), **{f"optimiser_{name}": o for name, o in optimisers.items()})
    by = SimpleNamespace(**optimisers)
    phase2_names = [name for name in vars(nets) if name.startswith(("inverse", "posthoc"))]
    phase1_names = [name for name in vars(nets) if name not in phase2_names]
    per_epoch = math.ceil(len(x_train) / opt.batch_size)
    phase2_start = (opt.epochs - posthoc_epochs) * per_epoch
    # nothing is read from a D
    averages = averages_of(
        run,
        SimpleNamespace(
            **{name: net for name, net in vars(nets).items() if not name.endswith("disc")}
        ),
        lambda name: phase2_start if name in phase2_names else 0,
    )
    zero = torch.zeros((), device=device)

    def conclude(
        names,
    ):  # these networks are finished: the average of the weights, and its statistics
        for name in names:
            if name in averages:
                getattr(nets, name).load_state_dict(averages[name].module.state_dict())
        settle_grid(nets, x_train, names)

    for epoch in run.epochs():
        for i in run.batches(torch.randperm(len(x_train)), opt.batch_size):
            x, z = x_train[i], torch.randn(len(i), 2, device=device)
            in_phase2 = run.step >= phase2_start
            share = (
                schedule(run.step - phase2_start, posthoc_epochs * per_epoch, opt)
                if in_phase2
                else schedule(run.step, phase2_start, opt)
            )
            for name, optimiser in optimisers.items():
                optimiser.param_groups[0]["lr"] = rate(name) * share
            weight = penalty_weight(run.step, opt)
            ali_d = ali_ge = gan_d = gan_g = vae = inverse = posthoc_d = posthoc_e = zero
            if not in_phase2:
                ali_d, ali_ge = toy_joint_step(
                    nets.ali_enc, nets.ali_gen, nets.ali_disc, by.ali_d, by.ali_ge, x, z, weight
                )
                gan_d, gan_g = toy_gan_step(
                    nets.gan_gen, nets.gan_disc, by.gan_d, by.gan_g, x, z, weight
                )
                if posthoc_epochs:
                    vae = toy_vae_step(nets.vae_enc, nets.vae_gen, by.vae, x, opt.vae_std)
            else:
                nets.gan_gen.eval()
                inverse = toy_inverse_step(nets.inverse_enc, nets.gan_gen, by.inverse, z)
                posthoc_d, posthoc_e = toy_joint_step(
                    nets.posthoc_enc,
                    nets.gan_gen,
                    nets.posthoc_disc,
                    by.posthoc_d,
                    by.posthoc_e,
                    x,
                    z,
                    weight,
                )
            for name in averages.keys() & (phase2_names if in_phase2 else phase1_names):
                averages[name].update_parameters(getattr(nets, name))
            run.log(
                ali_d=ali_d,
                ali_ge=ali_ge,
                gan_d=gan_d,
                gan_g=gan_g,
                vae=vae,
                learned_inverse=inverse,
                posthoc_d=posthoc_d,
                posthoc_e=posthoc_e,
            )
        if run.step == phase2_start:
            conclude(phase1_names)
    if posthoc_epochs:
        conclude(phase2_names)
    for net in vars(nets).values():
        net.eval()
    run.save()


@torch.no_grad()
def settle_grid(nets, x_train, names, batches=20, size=1000):
    """As `settle`, for the toy networks named: from data, or from the prior for a generator (the VAE's: from codes)."""
    parts = x_train[: batches * size].split(size)
    inputs = {
        "vae_gen": lambda x: sample_code(*nets.vae_enc(x).chunk(2, 1)),
        "gen": lambda x: torch.randn(len(x), 2, device=x.device),
        "enc": lambda x: x,
    }
    with common.own_random_numbers():
        for name in names:
            make = inputs.get(name) or inputs.get(name.split("_")[1])
            common.settle_batch_norm(
                getattr(nets, name), ((make(x),) for x in parts) if make else ()
            )


def grid_models(nets):
    """The four columns of ALI's figure: for each, E (points -> a sample of q(z|x)) and G."""
    columns = {"ali": (nets.ali_enc, nets.ali_gen)}
    if hasattr(nets, "vae_enc"):  # not with --random-setting
        columns.update(
            inverse=(nets.inverse_enc, nets.gan_gen),
            posthoc=(nets.posthoc_enc, nets.gan_gen),
            vae=(lambda x: sample_code(*nets.vae_enc(x).chunk(2, 1)), nets.vae_gen),
        )
    return columns


@torch.no_grad()
def grid_scores(nets, n=10_000):
    """Coverage (mode_scores) of 10,000 samples of each generator; of the four columns also, on 10,000 fresh points, reconstruction_mse
    (squared distance of x and G(z), z ~ q(z|x)) and reconstruction_mode, share in percent that stays in its component. Names are
    MODEL_SCORE."""
    device = device_of(nets.ali_gen)
    x, y = draw_grid(n, device)
    scores = {}
    generators = {
        "ali": nets.ali_gen,
        "gan": nets.gan_gen,
        **({"vae": nets.vae_gen} if hasattr(nets, "vae_gen") else {}),
    }
    for name, gen in generators.items():
        scores.update(
            {
                f"{name}_{key}": value
                for key, value in mode_scores(gen(torch.randn(n, 2, device=device))).items()
            }
        )
    for name, (enc, gen) in grid_models(nets).items():
        again = gen(enc(x))
        scores[f"{name}_reconstruction_mse"] = (again - x).square().sum(1).mean().item()
        scores[f"{name}_reconstruction_mode"] = (
            torch.cdist(again, grid_means(device)).argmin(1) == y
        ).float().mean().item() * 100
    return scores


@torch.no_grad()
def figure_mixture(nets, path, n=2500):
    """ALI's figure of the mixture: five rows, four columns; colours are the component of the test example, of the sample the nearest one's."""
    device = device_of(nets.ali_gen)
    x, y = draw_grid(n, device)
    z = torch.randn(n, 2, device=device)
    columns = {}
    titles = {
        "ali": "ALI",
        "inverse": "GAN, learned inverse",
        "posthoc": "GAN, post-hoc ALI",
        "vae": "VAE",
    }
    for name, (enc, gen) in grid_models(nets).items():
        codes, samples = enc(x), gen(z)
        made = torch.cdist(samples, grid_means(device)).argmin(1)
        columns[titles[name]] = [(x, y), (codes, y), (gen(codes), y), (z, made), (samples, made)]
    common.figure_scatters(
        path,
        columns,
        [
            "test examples x",
            "codes z ~ q(z|x)",
            "reconstructions G(z)",
            "prior samples z",
            "samples G(z)",
        ],
        [6, 4, 6, 4, 6],
    )


def evaluate_grid(run, nets):
    """Scores and figure of the mixture. Returns the flat metrics and the rows of the printed table."""
    scores = grid_scores(nets, 1000 if run.options.dry_run else 10_000)
    paper = (
        {"ali_modes_hit": "13.4 +- 5.8 (10 settings)", "gan_modes_hit": "10.4 +- 9.2 (10 settings)"}
        if run.options.random_setting
        else {"ali_modes_hit": "25 (best of 10)", "gan_modes_hit": "22 (best of 10)"}
    )
    words = {
        "modes_hit": "modes hit (nearest to any sample)",
        "modes_good": "modes with a sample within 3 s.d.",
        "samples_good": "samples within 3 s.d., %",
        "reconstruction_mse": "reconstruction, squared distance",
        "reconstruction_mode": "reconstruction in x's mode, %",
    }
    best = {
        "modes_hit": "25 at best",
        "modes_good": "25 at best",
        "samples_good": "98.9 for the data",
        "reconstruction_mode": "100 at best, 4 by chance",
    }
    rows = []
    for name in scores:
        model, score = name.split("_", 1)
        rows.append((f"{model}: {words[score]}", name, paper.get(name, "-"), best.get(score, "")))
    if not run.options.random_setting:
        figure_mixture(nets, run.folder / "grid.png")
    history = [
        row for row in run.history if row["ali_d"]
    ]  # without the epochs of the GAN's encoders
    common.figure_curves(
        run.folder / "losses.png",
        history,
        [("joint and GAN", ("ali_d", "ali_ge", "gan_d", "gan_g"), "nats")],
        "Training losses",
    )
    return scores, rows


# ------------------------------------------------------------------------------------------------------------ main

OURS = dict(
    lr=5e-4,
    lr_discriminator=5e-4,
    beta1=0.5,
    weight_decay=2.5e-5,
    schedule="linear",
    hidden=1024,
    penalty=0.5,
    average=0.999,
)
OURS_IMAGES = dict(epochs=30, batch_size=128, z_dim=50, regressor_weight=0.25, bilinear=0)
PAPER_IMAGES = dict(
    epochs=400,
    batch_size=128,
    lr=2e-4,
    lr_discriminator=2e-4,
    schedule="exponential",
    penalty=0.0,
    average=0.0,
)
OURS_GAN = dict(lr=2e-4, lr_discriminator=2e-4, penalty=0.0)  # of gan, lr, jlr (difference 2)
# Grid: the last fifth of the epochs trains the GAN's encoders: 21 + 5, in the paper's recipe 200 (ALI's code) + 50.
OURS_GRID = dict(
    epochs=26,
    batch_size=256,
    hidden=256,
    generator_layers=4,
    maxout=128,
    pieces=2,
    init_std=0.0,
    weight_decay=0.0,
    lr=5e-4,
    lr_discriminator=1e-3,
    beta1=0.0,
    penalty=0.015,
    average=0.998,
    vae_std=0.1,
)
PAPER_GRID = dict(
    epochs=250,
    batch_size=100,
    hidden=400,
    generator_layers=4,
    maxout=200,
    pieces=5,
    init_std=0.02,
    lr=1e-4,
    lr_discriminator=1e-4,
    beta1=0.2,
    schedule="constant",
    penalty=0.0,
    average=0.0,
)
# Flags of some models alone.
FLAGS_OF = {
    "cycle_weight": JOINT,
    "bilinear": JOINT,
    "regressor_weight": ("jlr",),
    "skip": (*JOINT, "gan", *LATENT),
    "skip_fade": ("bigan", "gan", *LATENT),
    "penalty": (*JOINT, "gan", *LATENT),
    "lr_discriminator": (*JOINT, "gan", *LATENT),
}


def make_parser():
    def told(name):  # the defaults in words
        kinds = {
            "images": {**OURS, **OURS_IMAGES},
            "gan, lr and jlr": OURS_GAN,
            "--recipe paper": {**OURS, **OURS_IMAGES, **PAPER_IMAGES},
            "grid": {**OURS, **OURS_GRID},
            "grid --recipe paper": {**OURS, **OURS_GRID, **PAPER_GRID},
        }
        same = {
            "--recipe paper": "images",
            "grid --recipe paper": "grid",
        }  # said only where they differ
        return "; None is " + ", ".join(
            f"{values[name]} ({kind})"
            for kind, values in kinds.items()
            if name in values and values[name] != kinds.get(same.get(kind), {}).get(name)
        )

    cli = common.Parser(__doc__.split("\n\n")[0], epochs=None, batch_size=None)
    for action in cli._actions:
        if action.dest in ("epochs", "batch_size"):
            action.help += told(action.dest)
        if action.dest == "dataset":
            action.help = (
                "grid, ALI's 25 Gaussians, or one of mnist (which needs no network), "
                + ", ".join(common.TORCHVISION)
            )

    def add(flag, words, **more):
        name = flag[2:].replace("-", "_")
        if name in {**OURS, **OURS_IMAGES, **OURS_GRID}:
            words += told(name)
        cli.add_argument(flag, default=more.pop("default", None), help=words, **more)

    add(
        "--model",
        "a method of Table 1, ALI, ALICE, or a baseline that the table lacks: pixels and untrained, for which flags of the training do nothing",
        choices=MODELS,
        default="bigan",
    )
    add(
        "--table",
        "train what is missing of Table 1 (with this seed and the flags beside it) and print the whole",
        choices=(1,),
        type=int,
    )
    add(
        "--recipe",
        "paper: the released code's epochs, rates, schedule, sizes, the published D, without penalty and average; flags beside it "
        "still count",
        choices=("ours", "paper"),
        default="ours",
    )
    add(
        "--random-setting",
        "with --dataset grid: ALI and the GAN alone, 12 epochs (200 with --recipe paper), with lr, beta1 and --init-std drawn by the seed "
        "(10^-4 to 10^-3, 0.2 to 0.8, 0.01 to 0.1); --lr in place of the drawn one is D's, too",
        action="store_true",
        default=False,
    )
    add(
        "--cycle-weight",
        "lambda of ALICE's cycle terms; also for bigan and ali; None is 0.05 for alice, 0 for the others",
        type=common.weight,
    )
    add(
        "--bilinear",
        "joint models: size of a product of image and code in D, by which G(E(x)) keeps more digits (see Discriminator)",
        type=common.whole,
    )
    add(
        "--skip",
        "1: D's logit sees the first hidden layer too, against collapse (difference 2); None is 1, 0 for ali and alice, with "
        "--bilinear and with --recipe paper",
        choices=(0, 1),
        type=int,
    )
    add(
        "--skip-fade",
        "share of the run in which the map of --skip fades to nothing; 0: it stays; None is 0.5 for bigan, 0 for the others",
        type=common.fraction,
    )
    add(
        "--regressor-weight",
        "of the latent regressor's loss for G in jlr; 1 is degenerate, the authors say",
        type=common.weight,
    )
    add("--lr", "Adam's rate of G and E", type=common.positive)
    add("--lr-discriminator", "Adam's rate of D", type=common.positive)
    add("--beta1", "Adam's", type=common.below_one)
    add("--weight-decay", "L2 penalty of all weights, in the gradient", type=common.weight)
    add("--penalty", "gamma of D's gradient penalty (difference 2)", type=common.weight)
    add(
        "--average",
        "decay of the running average of the weights that is scored (difference 3); 0: the last weights",
        type=common.below_one,
    )
    add(
        "--schedule",
        "linear: 100 steps up, constant for half the run, then straight down to 1 %%; exponential: constant for half the run, then "
        "down to 1 %%; constant",
        choices=("linear", "exponential", "constant"),
    )
    add("--z-dim", "size of the code", type=common.count)
    add("--hidden", "units of a hidden layer", type=common.count)
    add("--generator-layers", "grid: hidden layers of G", type=common.count)
    add("--maxout", "grid: units of D's maxout layers", type=common.count)
    add("--pieces", "grid: linear pieces of a maxout unit", type=common.count)
    add("--init-std", "grid: of Gaussian initial weights; 0 leaves PyTorch's", type=common.weight)
    add("--vae-std", "grid: deviation of the VAE's decoder", type=common.positive)
    return cli


def resolve(options):
    """Fill in what depends on the data, the model and the recipe; refuse what cannot be."""
    o = options
    grid = o.dataset == "grid"
    if o.dataset == "sprites":
        raise common.UserError(
            "the test identities of sprites are in no training image, so that 1-NN means nothing: choose another --dataset for bigan.py"
        )
    if o.random_setting and not grid:
        raise common.UserError("--random-setting needs --dataset grid")
    if grid and (
        o.model != "bigan"
        or o.cycle_weight
        or o.validation
        or o.precision == "bf16"
        or o.data is not None
    ):
        raise common.UserError(
            "--dataset grid trains all its models side by side, on points drawn afresh, in fp32: "
            "leave --model, --cycle-weight, --validation, --precision and --data out"
        )
    if grid:
        o.precision = "fp32"  # bf16 would round a coordinate of 4 to steps of 0.03, and the Gaussians are 0.05 wide
    for name in (
        ("z_dim", "regressor_weight", "bilinear", "skip", "skip_fade")
        if grid
        else ("maxout", "pieces", "generator_layers", "init_std", "vae_std")
    ):
        if getattr(o, name) is not None:
            raise common.UserError(
                f"--{name.replace('_', '-')} does not go with --dataset {o.dataset}"
            )
    for name, models in FLAGS_OF.items():
        if getattr(o, name) is not None and o.model not in models:
            raise common.UserError(f"--{name.replace('_', '-')} is for --model {', '.join(models)}")
    if o.random_setting and o.vae_std is not None:
        raise common.UserError("--vae-std does not go with --random-setting, which trains no VAE")
    skip = (
        int(
            o.model in ("bigan", "gan", *LATENT) and not (grid or o.bilinear or o.recipe == "paper")
        )
        if o.skip is None
        else o.skip
    )
    common.refuse_idle(o, ((not skip, ("skip_fade",), "without --skip 1"),))
    defaults = {
        **OURS,
        **(OURS_GRID if grid else OURS_IMAGES),
        "cycle_weight": 0.05 if o.model == "alice" else 0.0,
        "skip": skip,
        "skip_fade": 0.5 if o.model == "bigan" and skip else 0.0,
    }
    if o.model in ("gan", *LATENT):
        defaults.update(OURS_GAN)
    if o.recipe == "paper":
        defaults.update(PAPER_GRID if grid else PAPER_IMAGES)
    if o.random_setting:
        rng = torch.Generator().manual_seed(o.seed)
        lr, beta1, std = torch.rand(3, generator=rng).tolist()
        lr, beta1, init_std = 1e-4 * 10**lr, 0.2 + 0.6 * beta1, 0.01 * 10**std
        defaults.update(
            epochs=200 if o.recipe == "paper" else 12,
            lr=lr,
            lr_discriminator=o.lr or lr,
            beta1=beta1,
            init_std=init_std,
        )
    for name, value in defaults.items():
        if getattr(o, name) is None:
            setattr(o, name, value)
    if o.model in ("pixels", "untrained"):
        o.epochs = 0
    if o.dry_run:
        o.epochs = min(o.epochs, 2)
    if grid and o.epochs < 2 and not o.random_setting:
        raise common.UserError(
            "--dataset grid needs --epochs of at least 2: the GAN's encoders are trained after the GAN"
        )
    if o.batch_size < 3:
        raise common.UserError(
            "--batch-size must be at least 3, so that every batch has two images, which batch norm needs"
        )
    return o


def run_name(options):
    """Name of a run's folder: bigan, alice, ae-l2, grid, bigan-fashion, ..."""
    o = options
    if o.dataset == "grid":
        return "grid-random" if o.random_setting else "grid"
    return "-".join(
        [
            o.model,
            *(["bilinear"] if o.bilinear else []),
            *([o.dataset] if o.dataset != "mnist" else []),
        ]
    )


def train_and_score(options):
    """One run of the images; returns its metrics."""
    data, test = common.load_dataset(options.dataset, options.data, options.validation)
    if options.dry_run:
        data, test = (
            part.take(torch.arange(len(part.y)) < n) for part, n in ((data, 1200), (test, 500))
        )
    run = common.Run("bigan", options, run_name(options))
    data, test = data.to(run.device), test.to(run.device)
    common.check_judge(options, run.device)  # what is wrong with it should not show after training
    nets = build(options, data.x[0].numel())
    train(run, nets, data)
    return run.finish(*evaluate(run, nets, data, test))


def train_and_score_grid(options):
    run = common.Run("bigan", options, run_name(options))
    nets = build_grid(options)
    x_train, _ = draw_grid(
        2000 if options.dry_run else 100_000
    )  # on the CPU: the same points for every device
    train_grid(run, nets, x_train.to(run.device))
    run.finish(*evaluate_grid(run, nets))


def table(options):
    """Table 1, whole: runs on file with these settings count, the others are trained now."""
    if options.dataset == "grid":
        raise common.UserError("--table is of the images: --dataset grid does not go with it")
    if options.out is not None or options.model != "bigan":
        raise common.UserError(
            "--table makes a folder for each model in runs/bigan: leave --out and --model out"
        )
    lines, todo = [], {}
    for model in (
        "pixels",
        "untrained",
        *PAPER_TABLE1,
        "ali",
        "alice",
    ):  # all before the first is trained: a mistake shows at once
        own = {
            name: getattr(options, name) if model in models else None
            for name, models in {**FLAGS_OF, "cycle_weight": ("alice",)}.items()
        }
        todo[model] = resolve(
            SimpleNamespace(
                **{**vars(options), **own, "model": model, "table": None, "resume": False}
            )
        )
    for model, mine in todo.items():
        folder = common.find_run("bigan", mine, run_name(mine))
        if folder is not None and (folder / "metrics.json").exists():
            metrics = json.loads((folder / "metrics.json").read_text())
        else:
            mine.out, mine.resume = folder and str(folder), folder is not None
            metrics = train_and_score(mine)
        lines.append((model, metrics))
    names = [
        ("nn_error_features", "1-NN hidden"),
        ("nn_error_code", "1-NN code"),
        ("probe_error_code", "probe code"),
        ("reconstruction_l2", "L2"),
        ("reconstruction_digit", "digit kept"),
        ("sample_quality", "samples"),
    ]
    print(
        "errors in %; L2: mean length of x - G(E(x)); digit kept: %; samples: the judge's inception score"
    )
    print(
        "".join(word.ljust(13) for word in ["model", "paper: 1-NN", *(words for _, words in names)])
    )
    for model, metrics in lines:
        paper = (
            f"{100 - PAPER_TABLE1[model]:.2f}"
            if model in PAPER_TABLE1 and options.dataset == "mnist" and not options.validation
            else "-"
        )
        print(
            "".join(
                cell.ljust(13)
                for cell in [
                    model,
                    paper,
                    *(f"{metrics[name]:.2f}" if name in metrics else "-" for name, _ in names),
                ]
            ).rstrip()
        )


def main(options):
    if options.table:
        return table(options)
    options = resolve(options)
    (train_and_score_grid if options.dataset == "grid" else train_and_score)(options)


if __name__ == "__main__":
    common.run_main(main, make_parser())
