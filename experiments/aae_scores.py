"""Scores of aae.py: does q(z) have the prior's shape, does z leave out the label; Tables 1 to 3.

encode: (nets, images, sample=False) -> logits of q(y|x), or None, and z. decode: (nets, y, z) ->
images in [0, 1]. A score is in percent unless its text says otherwise. What is drawn comes from
torch's generator, as the training left it; Parzen samples come from the run's seed.
"""

import math

from common import UserError, say, to_float
from experiments import aae_figures, aae_priors, batch_norm, machine, scores
from experiments.scores import in_parts, judge_of, percent

import torch
import torch.nn.functional as F

SUPERVISED = "semi", "semi-all", "embed"


# ---- The protocol --------------------------------------------------------------------------------
def check(o, priors):
    """`UserError` for settings that cannot be, before anything is written."""
    if o.prior not in priors:
        raise UserError(f"unknown prior '{o.prior}': choose one of {', '.join(priors)}")
    if not o.prior_std:
        raise UserError("--prior-std must be above 0")
    if o.prior != "gaussian" and o.z_dim != 2:
        raise UserError(f"--prior {o.prior} lies in the plane: it needs --z-dim 2")
    if o.task == "prior-labels" and not aae_priors.has_components(priors[o.prior]):
        raise UserError(f"--prior {o.prior} has no components that labels could name")
    if o.head_distance is not None and o.z_dim < 2:
        raise UserError("the heads of clusters need --z-dim 2 or more")
    if o.dataset == "sprites":
        raise UserError("sprites do not have ten classes: choose another --dataset")
    if o.task == "style":
        judge_of(o)  # a damaged file should fail now, not after the training


def split(data, o):
    """The training images, those held out, or None, and the indices of the labelled ones.

    The last sixth is held out where something is chosen on it: the Parzen width, the clusters'
    names. Figures 2 and 4 leave it out, too: Figure 4 is of 10,000 labelled and 40,000 unlabelled
    images."""
    held_out = None
    if o.task in SUPERVISED and len(data.y.unique()) != 10:
        raise UserError(f"--task {o.task} needs images of ten classes")
    if o.task != "style" and o.task not in SUPERVISED:
        count = len(data.y) // 6
        held_out, data = data.take(slice(-count, None)), data.take(slice(None, -count))
    count = len(data.y) if o.task == "style" else o.labels or 0
    if o.dry_run and count < len(data.y):  # as many as its few images have
        _, sizes = data.y.unique(return_counts=True)
        count = min(count // len(sizes), int(sizes.min())) * len(sizes)
    return data, held_out, labelled(data.y, count, o.seed)


def labelled(y, count, seed=0):
    """Indices of the images whose label may be seen, as many of each class, drawn by the seed.
    `UserError` where a class has too few."""
    _, sizes = y.unique(return_counts=True)
    most = len(sizes) * int(sizes.min())
    if count < len(y) and (count % len(sizes) or count > most):
        words = f"say a multiple of {len(sizes)} up to {most}, or {len(y)} for all"
        raise UserError(f"--labels {count}: {words}")
    return scores.balanced(y, count, seed)


def name(o):
    """Of a run's folder: prior, semi-100, cluster-16, likelihood-kl, prior-kmnist, ..."""
    parts = [o.task, o.labels, o.clusters, getattr(o, "regularizer", None)]
    parts.append(None if o.dataset == "mnist" else o.dataset)
    return "-".join(str(part) for part in parts if part is not None)


def draw_prior(nets, count, device):
    """Samples [count, z_dim] of p(z)."""
    return nets.prior.sample(torch.randint(0, 10, (count,), device=device))


# ---- Figures 2 and 4 -----------------------------------------------------------------------------
def mmd_loss(z, prior, std=1.0, scales=(1.0,)):
    """MMD^2(q(z), p(z)), unbiased, from codes z [n, d] and as many samples of the prior [n, d].

    It is WAE-MMD's penalty (Tolstikhin et al., Algorithm 2). Kernel: C / (C + |a - b|^2), summed
    over scales, with C = 2 d std^2 times the scale: the expected squared distance of two samples of
    a Gaussian prior. Near 0 where the two agree, then as often negative. No matrix product, which
    bf16 would round."""
    n, d = z.shape

    def distances(a, b):  # in parts: all differences at once would be n n d numbers
        return torch.cat([(part[:, None] - b).square().sum(2) for part in a.split(500)])

    within_z, within_prior, across = distances(z, z), distances(prior, prior), distances(z, prior)
    total = 0.0
    for scale in scales:
        c = 2 * d * std**2 * scale
        # - n: the diagonal, where k = 1, is out
        inner = sum((c / (c + distance)).sum() - n for distance in (within_z, within_prior))
        total = total + inner / (n * (n - 1)) - 2 * (c / (c + across)).mean()
    return total


def prior_scores(nets, encode, decode, data, test, o):
    """Does q(z) have the shape of p(z)? Of samples of q(z|x), but for reconstruction_mse.

    code_test: accuracy, 50 at best, of a classifier that tells codes of test images from samples of
    the prior, trained on those of training images. code_mmd: mmd_loss of 5,000 codes;
    code_mmd_prior: of another draw of the prior. component_accuracy: share of codes that lie in the
    component of their label. reconstruction_mse: over pixels in [0, 1], z the mean of q(z|x)."""
    device = data.x.device
    (_, z), (_, z_test) = encode(nets, data.x, sample=True), encode(nets, test.x, sample=True)
    p, p_test = draw_prior(nets, len(z), device), draw_prior(nets, len(z_test), device)
    which = torch.arange(2, device=device).repeat_interleave(len(z))
    which_test = torch.arange(2, device=device).repeat_interleave(len(z_test))
    codes, codes_test = torch.cat([z, p]), torch.cat([z_test, p_test])
    epochs = 1 if o.dry_run else 20
    error = scores.probe(codes, which, codes_test, which_test, epochs=epochs)
    some, some_prior = z_test[:5000], p_test[:5000]
    another = draw_prior(nets, len(some), device)
    found = {
        "code_test": 100 - error.item(),
        "reconstruction_mse": reconstruction_mse(nets, encode, decode, test),
        "code_mmd": mmd_loss(some, some_prior, o.prior_std).item(),
        "code_mmd_prior": mmd_loss(another, some_prior, o.prior_std).item(),
    }
    if aae_priors.has_components(nets.prior):
        right = aae_priors.component(nets.prior, z_test) == test.y
        found["component_accuracy"] = percent(right)
    return found


def reconstruction_mse(nets, encode, decode, test, y=None):
    """Mean square over pixels in [0, 1] of images from the means of q(z|x), y inferred or given."""
    logits, z = encode(nets, test.x)
    if y is None and logits is not None:
        y = logits.softmax(1)
    return (decode(nets, y, z) - to_float(test.x)).square().mean().item()


# ---- Table 1 -------------------------------------------------------------------------------------
def parzen_scores(name, nets, decode, x, held_out, o, parts, sigmas):
    """NAME: mean log-likelihood in nats of images x [N, D] under a Parzen window on `parts` times
    10,000 samples. _sem: its standard error. _sigma: the width; held-out images choose it."""
    size = 500 if o.dry_run else 10_000

    def density(images, widths):  # in parts; the same samples at each call
        with torch.random.fork_rng():
            torch.manual_seed(o.seed)
            each = []
            for _ in range(parts):
                samples = decode(nets, None, draw_prior(nets, size, x.device)).flatten(1)
                each.append(scores.parzen_log_likelihood(images, samples, widths))
        return torch.stack(each).logsumexp(0) - math.log(parts)

    sigma = sigmas[density(held_out, sigmas).mean(1).argmax()]
    log_p = density(x, [sigma])[0]
    error = (log_p.std() / len(x) ** 0.5).item()
    return {name: log_p.mean().item(), f"{name}_sem": error, f"{name}_sigma": sigma}


def likelihood_scores(nets, encode, decode, held_out, test, o):
    """parzen_10k: the paper's first column. parzen_1m, of the AAE only: one million samples. The
    paper's second column has ten million (from memory). Its width comes from 500 held-out images,
    and is at most that of parzen_10k. _sem: standard error; _sigma: width."""
    x, held = to_float(test.x).flatten(1), to_float(held_out.x).flatten(1)
    sigmas = [0.08 * 1.06**k for k in range(24)]
    found = parzen_scores("parzen_10k", nets, decode, x, held, o, 1, sigmas)
    if not hasattr(o, "regularizer"):  # more samples want a narrower window
        sigmas = [found["parzen_10k_sigma"] * 1.06**-k for k in range(10)]
        parts = 2 if o.dry_run else 100
        found |= parzen_scores("parzen_1m", nets, decode, x, held[:500], o, parts, sigmas)
    found["reconstruction_mse"] = reconstruction_mse(nets, encode, decode, test)
    return found


# ---- Figure 7 ------------------------------------------------------------------------------------
def style_scores(nets, encode, decode, judge, data, test, o):
    """style_accuracy: Dec(y, z), z from the prior, shows the digit y to a judge. z_error: of a
    probe that reads the digit from z. chance_error: of always the commonest digit.
    reconstruction_mse: with the true label."""
    y = data.y.unique().repeat(100 if o.dry_run else 1000)
    images = decode(nets, F.one_hot(y, 10).float(), draw_prior(nets, len(y), y.device))
    (_, z), (_, z_test) = encode(nets, data.x), encode(nets, test.x)
    probe = scores.probe(z, data.y, z_test, test.y, epochs=1 if o.dry_run else 20)
    labels = F.one_hot(test.y, 10).float()
    return {
        "style_accuracy": percent(judge.classify(images) == y),
        "judge_accuracy": scores.judge_accuracy(judge, test),
        "z_error": probe.item(),
        "chance_error": scores.chance_error(data.y, test.y).item(),
        "reconstruction_mse": reconstruction_mse(nets, encode, decode, test, labels),
    }


# ---- Table 2 -------------------------------------------------------------------------------------
def supervised_scores(nets, encode, data, test, labelled, o):
    """test_error: of argmax q(y|x). baseline_error: of such an encoder, trained on labels alone."""
    logits, _ = encode(nets, test.x)
    error = percent(logits.argmax(1) != test.y)
    inputs, norm = data.x[0].numel(), o.batch_norm
    alone = type(nets.enc)(inputs, 1, 10, o.hidden, norm=norm, dropout=o.dropout)
    return {
        "test_error": error,
        "baseline_error": baseline_error(alone.to(data.x.device), data, test, labelled, o),
    }


def baseline_error(enc, data, test, labelled, o):
    """Table 2's first row (from memory): test error of `enc`, trained on labelled images, with the
    same noise. No autoencoder, no warps, nothing of unlabelled images but batch norm's averages.

    Ten passes over the labels, at least 1,000 steps, at most 100 images in a step. The rate falls
    from lr_labels to 0."""
    parameters = [*enc.body.parameters(), *enc.to_y.parameters()]
    optimiser = torch.optim.Adam(parameters, o.lr_labels, fused=True)
    device = data.x.device
    bf16 = machine.choose_precision(o.precision, device) == "bf16"
    batch = min(100, o.labelled_batch)
    total = 20 if o.dry_run else max(1000, 10 * len(labelled) // batch)
    for step in range(total):
        optimiser.param_groups[0]["lr"] = o.lr_labels * (1 - step / total)
        j = labelled[torch.randint(0, len(labelled), (batch,), device=device)]
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16, cache_enabled=False):
            x = to_float(data.x[j])
            if o.noise:
                x = x + o.noise * torch.randn_like(x)
            loss = F.cross_entropy(enc.classify(x), data.y[j])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    batch_norm.settle(enc, ((x,) for x in batch_norm.image_parts(data.x)))
    return percent(in_parts(enc.classify, test.x).argmax(1) != test.y)


# ---- Table 3 -------------------------------------------------------------------------------------
def cluster_scores(nets, encode, held_out, test):
    """cluster_error: a cluster takes the label of the held-out image it is surest of (the paper's
    rule). cluster_error_majority: the commonest of its held-out images. clusters_used: a number."""
    log_q, log_q_test = (
        F.log_softmax(encode(nets, part.x)[0].cpu().double(), 1) for part in (held_out, test)
    )
    found = {}
    for word, rule in (("cluster_error", "exemplar"), ("cluster_error_majority", "majority")):
        names = scores.name_clusters(log_q, held_out.y.cpu(), rule)
        found[word] = scores.cluster_error(log_q_test, test.y.cpu(), names)
    found["clusters_used"] = float(len(log_q_test.argmax(1).unique()))
    return found


# ---- All of a task -------------------------------------------------------------------------------
def evaluate(nets, encode, decode, data, test, o, folder):
    """Scores, name -> number, and the rows of the printed table: (words, name, paper, compare).
    Draws the figures into the folder."""
    say("scoring")
    data, held_out, labelled = split(data, o)
    if o.task in ("prior", "prior-labels"):
        found = prior_scores(nets, encode, decode, data, test, o)
    elif o.task == "likelihood":
        found = likelihood_scores(nets, encode, decode, held_out, test, o)
    elif o.task == "style":
        found = style_scores(nets, encode, decode, judge_of(o), data, test, o)
    elif o.task in SUPERVISED:
        found = supervised_scores(nets, encode, data, test, labelled, o)
    else:
        found = cluster_scores(nets, encode, held_out, test)
    say("figures")
    aae_figures.draw(nets, encode, decode, data, test, o, folder)
    return found, table(found, o)


PAPER = {  # of MNIST; "?": from memory, not checked against the paper
    ("likelihood", "parzen_10k", None): "340 +- 2",
    ("likelihood", "parzen_1m", None): "427 ? (10M)",
    ("semi", "test_error", 100): "1.90",
    ("semi", "test_error", 1000): "1.60 +- 0.08 ?",
    ("semi-all", "test_error", 60_000): "0.85",
    ("semi", "baseline_error", 100): "25.80 ?",
    ("semi", "baseline_error", 1000): "8.73 ?",
    ("semi-all", "baseline_error", 60_000): "1.25 ?",
    ("cluster", "cluster_error", 16): "9.55 +- 2.05",
    ("cluster", "cluster_error", 30): "4.10 +- 1.13",
    ("embed", "test_error", 1000): "4.20 ?",
    ("embed", "test_error", 100): "6.08 ?",
    ("embed-clusters", "cluster_error", 20): "13.46 ?",
}


def paper_value(metric, o):
    """The paper's number for a metric of a task with so many labels or clusters, or a dash."""
    if o.dataset != "mnist" or o.data or o.validation or hasattr(o, "regularizer"):
        return "-"
    if o.task.startswith("embed") and o.z_dim != 2:
        return "3.90 ?" if (o.z_dim, o.labels, metric) == (10, 100, "test_error") else "-"
    return PAPER.get((o.task, metric, o.labels or o.clusters), "-")


def table(found, o):
    """The rows of the printed table, of what was found."""
    warped = ", images warped" if o.warp else ", images moved" if o.neighbours else ""
    lines = {
        "component_accuracy": ("code in its label's component, %", "about 10 without labels"),
        "code_test": ("codes told from the prior, accuracy in %", "50 at best"),
        "code_mmd": ("squared MMD of codes and prior", "prior and prior {code_mmd_prior:.2g}"),
        "parzen_10k": ("Parzen log-likelihood, 10K, nats", "standard error {parzen_10k_sem:.1f}"),
        "parzen_1m": ("Parzen log-likelihood, 1M, nats", "standard error {parzen_1m_sem:.1f}"),
        "style_accuracy": ("image shows the label asked for, z of the prior, %", "100 at best"),
        "z_error": ("error of a probe on z, %", "commonest label {chance_error:.1f}"),
        "test_error": (f"test error{warped}, %", ""),
        "baseline_error": ("the encoder alone, same labels, no warps, %", ""),
        "cluster_error": ("error, clusters named by their surest image, %", ""),
        "cluster_error_majority": ("error, named by majority, %", "{clusters_used:.0f} in use"),
        "reconstruction_mse": ("reconstruction, mean square", ""),
    }
    rows = []
    for metric, (words, beside) in lines.items():
        if metric not in found:
            continue
        compare = beside.format(**found)
        paper = paper_value(metric, o)
        if "?" in paper:
            compare = "; ".join(filter(None, [compare, "?: from memory, not checked"]))
        rows.append((words, metric, paper, compare))
    return [*rows, scores.JUDGE_ROW] if "judge_accuracy" in found else rows
