"""Scores of infogan.py: do the categories name digits, what do the codes change, what can a linear
classifier read. Errors are in percent of the test images.

draw: (count, device, far) -> (z, c1, c2), codes of the prior, and `far` from beyond it. decode:
(z, c1, c2) -> images float in [0, 1]. `evaluate` takes infogan.py's own functions. Codes come from
torch's generator as the training left it, everything else from seeds.
"""

import functools
import math

from common import save_figure, say, to_float
from experiments import batch_norm, scores
from experiments.scores import in_parts, judge_of, percent

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from sklearn.metrics import normalized_mutual_info_score


# ---- What the codes do to generated images -------------------------------------------------------
def image_moments(images):
    """Slant and stroke width [N] each of images [N, 1, H, W] in [0, 1].

    slant: mu_11 / mu_02 of the ink, the tangent of the angle by which strokes lean to the right.
    width: twice the ink over the length of all edges (the total variation): for a long even stroke
    its width in pixels, or about 2 where that is less."""
    ink = images[:, 0]
    y = torch.arange(ink.shape[1], device=ink.device, dtype=ink.dtype)[:, None]
    x = torch.arange(ink.shape[2], device=ink.device, dtype=ink.dtype)
    mass = ink.sum((1, 2)).clamp(min=1e-6)

    def mean(f):
        return (ink * f).sum((1, 2)) / mass

    dx, dy = x - mean(x)[:, None, None], y - mean(y)[:, None, None]
    slant = -mean(dx * dy) / mean(dy * dy).clamp(min=1e-6)  # y points down
    gy, gx = torch.gradient(F.pad(ink, (1, 1, 1, 1)), dim=(1, 2))
    edges = (gx.square() + gy.square())[:, 1:-1, 1:-1].sqrt().sum((1, 2))
    return slant, 2 * mass / edges.clamp(min=1e-6)


def within_group_r2(code, measure, group):
    """Share of the variance of `measure` within groups that straight lines in `code`, one a group,
    explain; 0 where nothing varies. Float [N], [N], int64 [N]."""
    code, measure, group = code.cpu().double(), measure.cpu().double(), group.cpu()
    explained = total = 0.0
    for k in group.unique():
        c, m = code[group == k], measure[group == k]
        c, m = c - c.mean(), m - m.mean()
        explained += ((c * m).sum().square() / c.square().sum().clamp(min=1e-12)).item()
        total += m.square().sum().item()
    return explained / max(total, 1e-12)


def within_group_variance(images, group):
    """Variance of images [N, ...] within a group, summed over pixels; the mean over the groups."""
    parts = [images[group == k].var(0, unbiased=False).sum().item() for k in group.unique()]
    return sum(parts) / len(parts)


def sweep(codes, which, reach, columns):
    """Codes (z, c1, c2), each repeated `columns` times, with number `which` of c2 going from -reach
    to reach."""
    z, c1, c2 = (code.repeat_interleave(columns, 0) for code in codes)
    values = torch.linspace(-reach, reach, columns, device=z.device)
    c2[:, which] = values.repeat(len(z) // columns)
    return z, c1, c2


def category_scores(images, group, judge, test):
    """Of images [N, 1, H, W] generated with the category `group` [N].

    generated_purity: percent of a category's images that show its commonest digit, the mean over
    categories. generated_digits: how many digits are so shown; 1 where G has collapsed and purity
    means nothing. generated_diversity: pixel variance within a category over that of test images
    within a class. It is 0 for a G that makes one image of a category. c2 varies, too, so it does
    not show that z is used."""
    purity, commonest = [], []
    for k in group.unique():
        digits = judge.classify(images[group == k])
        commonest.append(torch.bincount(digits).argmax().item())
        purity.append(percent(digits == commonest[-1]))
    real = within_group_variance(to_float(test.x), test.y)
    return {
        "generated_purity": sum(purity) / len(purity),
        "generated_digits": len(set(commonest)),
        "generated_diversity": within_group_variance(images, group) / real,
    }


def code_scores(draw, decode, judge, test, count=10_000):
    """`category_scores` of `count` images, and what c2 does to them.

    slant_r2, width_r2: share of a category's variance of slant or width that a line in one number
    of c2 explains. Each takes its better number; one number may serve both. identity_leak: a sweep
    takes one number of c2 from -2 to 2 in ten values; percent of sweeps in which the judge's digit
    changes, count / 10 sweeps of each number. identity_leak_inside: the same from -1 to 1."""
    device = test.x.device
    z, c1, c2 = draw(count, device)
    images, found = decode(z, c1, c2), {}
    group = torch.zeros(count, dtype=torch.long, device=device)
    if c1.shape[1]:
        group = c1.argmax(1)
        found.update(category_scores(images, group, judge, test))
    numbers = range(c2.shape[1])
    if not numbers:
        return found
    for word, measure in zip(("slant", "width"), image_moments(images)):
        found[f"{word}_r2"] = max(within_group_r2(c2[:, j], measure, group) for j in numbers)
    for name, reach in (("identity_leak", 2), ("identity_leak_inside", 1)):
        changes = []
        for codes in [sweep(draw(count // 10, device), j, reach, 10) for j in numbers]:
            digits = judge.classify(decode(*codes)).view(-1, 10)
            changes.append((digits != digits[:, :1]).any(1))
        found[name] = percent(torch.cat(changes))
    return found


# ---- Categories as a classifier of real images ---------------------------------------------------
def cluster_scores(logits, test_logits, data, test, tries=5):
    """From Q's logits [N, K] of the training and the test images; names from the training images.

    cluster_error: categories and digits are matched one to one, so that most images are right.
    Images of a category left over are errors. cluster_error_majority: each category takes its
    commonest digit. nmi: normalised mutual information of category and digit.
    kmeans_*: the same of k-means on the pixels with as many clusters."""
    x, test_x = to_float(data.x).flatten(1), to_float(test.x).flatten(1)
    centres = scores.k_means(x, min(logits.shape[1], len(x)), tries=tries)
    distances = -torch.cdist(x, centres), -torch.cdist(test_x, centres)
    found = {}
    for prefix, (answers, test_answers) in (("", (logits, test_logits)), ("kmeans_", distances)):
        matched = scores.match_clusters(answers, data.y)
        commonest = scores.name_clusters(answers, data.y, "majority")
        found[f"{prefix}cluster_error"] = scores.cluster_error(test_answers, test.y, matched)
        error = scores.cluster_error(test_answers, test.y, commonest)
        found[f"{prefix}cluster_error_majority"] = error
        nmi = normalized_mutual_info_score(test.y.cpu(), test_answers.argmax(1).cpu())
        found[f"{prefix}nmi"] = float(nmi)
    return found


def display_order(logits, y):
    """Categories [K] in the order of the digits they match. Then those left over, by the commonest
    digit of each."""
    names, votes = scores.match_clusters(logits, y), scores.count_votes(logits, y).argmax(1)
    return torch.argsort(torch.where(names < 0, names.max() + 1 + votes, names), stable=True)


# ---- The bound, and linear probes ----------------------------------------------------------------
def curve_scores(curve, categories):
    """mutual_information: the mean L_I, in nats, of the last 100 updates. log_k: log K.
    steps_to_2.25, where K is 10: the first update at which the mean of 20 reaches 2.25."""
    found = {"mutual_information": curve[-100:].mean().item(), "log_k": math.log(categories)}
    mean = curve.unfold(0, min(20, len(curve)), 1).mean(1)
    reached = (mean >= 2.25).nonzero()
    if categories == 10 and len(reached):
        found["steps_to_2.25"] = reached[0].item() + min(20, len(curve))
    return found


def figure_information(curves, categories, path):
    """Figure 1: L_I of the first 1,500 updates, each a mean of ten.
    curves: {words: nats [updates]}."""
    figure = Figure(figsize=(5.2, 3.4), dpi=100)
    axes = figure.subplots()
    for words, curve in curves.items():
        mean = curve.cpu().unfold(0, min(10, len(curve)), 1).mean(1)
        axes.plot(torch.arange(len(mean)) + min(10, len(curve)), mean, label=words)
    ceiling = math.log(categories)
    words = f"log {categories} = {ceiling:.2f}"
    axes.axhline(ceiling, color="grey", linestyle=":", label=words)
    longest = max(len(curve) for curve in curves.values())
    axes.set(xlim=(0, min(1500, longest)), ylim=(-0.2, 1.1 * ceiling))
    axes.set(xlabel="update", ylabel="nats", title="L_I of the category (Fig. 1)")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    save_figure(figure, path)


def probe_scores(layers, data, test, dry=False):
    """Test errors of linear classifiers with 100, 1,000 and all training labels.

    layers: {name: (features of the training images [N, d], of the test images)}."""
    found = {}
    for name, (features, test_features) in layers.items():
        for count in sorted({100, 1000, len(data.y)}):
            if count > len(data.y):
                break
            index = scores.balanced(data.y, count)
            epochs = 1 if dry else max(20, 200_000 // count)
            arrays = features[index], data.y[index], test_features, test.y
            error = scores.probe(*arrays, hidden=0, epochs=epochs).item()
            found[f"probe_error_{name}_{'all' if count == len(data.y) else count}"] = error
    return found


def untrained_trunk(build, settings, images):
    """A trunk with initial weights, always the same; its batch norm is settled on the images."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        trunk = build(settings).trunk.to(images.device)
    batch_norm.settle(trunk, [[x] for x in batch_norm.image_parts(images)])
    return trunk


# ---- All of it -----------------------------------------------------------------------------------
@torch.no_grad()
def settle(nets, draw, images, settings):
    """Batch norm's averages by the final weights, before anything is scored: G's of codes like
    those of the training, the trunk's and Q's of real training images. (The released code draws
    its grids with the statistics of a batch. Q has seen generated images alone.)"""
    parts, far = batch_norm.image_parts(images), settings.far if settings.warp else 0.0
    with torch.random.fork_rng():
        torch.manual_seed(0)
        codes = [draw(len(x), x.device, round(far * len(x))) for x in parts]
    batch_norm.settle(nets.gen, codes)
    batch_norm.settle(nets.trunk, [[x] for x in parts])
    batch_norm.settle(nets.q, [[nets.trunk(x)] for x in parts])
    nets.eval()


def evaluate(nets, build, draw_codes, decode, data, test, settings):
    """Scores, name -> number, and the categories [K] in the order of their digits (five zeros
    where there is no category). Settles batch norm first."""
    say("scoring")
    draw = functools.partial(draw_codes, settings)
    settle(nets, draw, data.x, settings)
    judge, decode, dry = judge_of(settings), functools.partial(decode, nets), settings.dry_run
    found = code_scores(draw, decode, judge, test, 200 if dry else 10_000)
    found["judge_accuracy"] = scores.judge_accuracy(judge, test)
    trunk = in_parts(nets.trunk, data.x), in_parts(nets.trunk, test.x)
    hidden = in_parts(nets.q.hidden, trunk[0]), in_parts(nets.q.hidden, trunk[1])
    order = torch.zeros(5, dtype=torch.long, device=data.x.device)
    if settings.categories:
        logits, test_logits = (nets.q.out(h)[:, : settings.categories].detach() for h in hidden)
        order = display_order(logits, data.y)
        found.update(cluster_scores(logits, test_logits, data, test, 1 if dry else 5))
        found.update(curve_scores(nets.curve, settings.categories))
    fresh = untrained_trunk(build, settings, data.x)
    layers = {
        "trunk": trunk,
        "q_hidden": hidden,
        "untrained": (in_parts(fresh, data.x), in_parts(fresh, test.x)),
        "pixels": (to_float(data.x).flatten(1), to_float(test.x).flatten(1)),
    }
    found.update(probe_scores(layers, data, test, dry))
    return found, order


def table(found, settings, classes=10, regular=False):
    """The rows of which there is a score. The paper's numbers are of MNIST with K = 10. regular:
    of the regular GAN."""
    on_test_set = settings.dataset == "mnist" and not (settings.data or settings.validation)
    papers = on_test_set and settings.categories == 10
    told, five = ("2.30", "5") if papers else ("-", "-")
    if regular:
        told, five = "near 0" if papers else "-", "-"

    def beside(words, metric):
        return f"{words} {found.get(metric, math.nan):.4g}"

    most = min(classes, settings.categories)
    rows = [
        ("L_I of the category, nats", "mutual_information", told, beside("log K", "log_k")),
        ("updates until L_I is 2.25", "steps_to_2.25", "-", ""),
        (
            "error, a category a digit, %",
            "cluster_error",
            five,
            beside("k-means", "kmeans_cluster_error"),
        ),
        (
            "error, category's commonest digit, %",
            "cluster_error_majority",
            "-",
            beside("k-means", "kmeans_cluster_error_majority"),
        ),
        ("normalised mutual information", "nmi", "-", beside("k-means", "kmeans_nmi")),
        ("generated: shows its category's digit, %", "generated_purity", "-", "100 at best"),
        ("generated: different digits shown", "generated_digits", "-", f"{most} at best"),
        ("generated: variance in a category", "generated_diversity", "-", "1 for real digits"),
        ("generated: slant by one code, R2", "slant_r2", "-", "1 at best"),
        ("generated: stroke width by one code, R2", "width_r2", "-", "1 at best"),
        ("sweeps -2..2 that change the digit, %", "identity_leak", "-", "0 at best"),
        ("sweeps -1..1 that change the digit, %", "identity_leak_inside", "-", "0 at best"),
        scores.JUDGE_ROW,
    ]
    for labels, words in ((100, "100 labels"), (1000, "1,000 labels"), ("all", "all labels")):
        pixels = beside("pixels", f"probe_error_pixels_{labels}")
        fresh = beside("untrained trunk", f"probe_error_untrained_{labels}")
        trunk, hidden = f"linear probe, trunk, {words}, %", f"Q's hidden layer, {words}, %"
        rows.append((trunk, f"probe_error_trunk_{labels}", "-", f"{pixels}, {fresh}"))
        rows.append((hidden, f"probe_error_q_hidden_{labels}", "-", ""))
    return [row for row in rows if row[1] in found]
