"""Figures 2, 4, 5, 7, 9 and 11 of adversarial autoencoders, drawn for aae.py into a run's folder.

encode: (nets, images, sample=False) -> logits of y, or None, and z. decode: (nets, y, z) ->
images. A prior is drawn by its `outline`; its grid of images (Figures 2e, 4b, 4d) comes from
`walk`.
"""

from common import figure_grid, save_figure, to_float
from experiments import scores
from experiments.aae_priors import has_components, is_mixture, is_roll, outline

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

MODELS = {"kl": "VAE", "mmd": "WAE-MMD", "wae-gan": "WAE-GAN"}


def percentiles(n):
    """n x n points [n * n, 2] at equal steps of a standard normal's percentiles, from 5 to 95. Row
    by row from the top: the first number grows to the right, the second upwards."""
    t = torch.special.ndtri(torch.linspace(0.05, 0.95, n))
    return torch.stack([t.repeat(n), t.flip(0).repeat_interleave(n)], 1)


def walk(prior):
    """Codes [n, 2] for a grid of images, the grid's columns, and words."""
    if is_mixture(prior):  # the mixture: its first three components side by side
        places = [prior.place(percentiles(10), torch.full((100,), k)) for k in range(3)]
        codes = torch.cat([place.view(10, 10, 2) for place in places], 1).view(-1, 2)
        return codes, 30, "Components 0, 1, 2 (Fig. 4b): outwards, across"
    if is_roll(prior):
        u = (torch.arange(100) + 0.5) / 100
        return prior.curve(u), 20, "A walk along the roll, from its centre (Fig. 4d)"
    if type(prior).__name__ == "Gaussian":
        return prior.std * percentiles(16), 16, "Images at the prior's percentiles (Fig. 2e)"
    return prior.sample(torch.arange(100) // 10), 10, "Samples of the prior, a component a row"


def figure_manifold(nets, decode, path):
    """Figures 2e, 4b, 4d: images along the prior."""
    z, columns, words = walk(nets.prior)
    figure_grid(path, decode(nets, None, z), columns, words)


def on_a_circle(heads):
    """A linear map [d, 2] that puts heads [K, d] on a circle of radius 10 (Figure 11d)."""
    angle = torch.arange(len(heads)) * 2 * torch.pi / len(heads)
    circle = 10 * torch.stack([angle.cos(), angle.sin()], 1)
    return torch.linalg.lstsq(heads.cpu(), circle).solution.to(heads)


def figure_codes(nets, encode, test, path, model="AAE"):
    """Figures 2(a, c), 4(a, c): codes of test images, over the prior. Figure 11: W_C^T y + z."""
    logits, z = encode(nets, test.x, sample=True)
    if nets.dec.heads is None:
        words = f"Codes of test images, {model} (Fig. 2, 4)"
        return figure_scatter(path, z, test.y, words, outline(nets.prior))
    heads = nets.dec.heads.positions().detach()
    codes = nets.dec.heads(logits.softmax(1), z).detach()
    words = "Codes W_C^T y + z of test images (Fig. 11)"
    if heads.shape[1] > 2:
        flat = on_a_circle(heads)
        return figure_scatter(path, codes @ flat, test.y, words, marks=heads @ flat)
    curves = outline(nets.prior)
    if not has_components(nets.prior):
        curves = curves[1:2]  # a Gaussian's: two deviations of z
    around = [head.cpu() + curve for head in heads for curve in curves]
    return figure_scatter(path, codes, test.y, words, around, heads)


def figure_samples(nets, decode, data, path, rows=8):
    """Figure 5: samples. The last column is the training image nearest to the one left of it."""
    component = torch.randint(0, 10, (10 * rows,), device=data.x.device)
    images = decode(nets, None, nets.prior.sample(component))
    pixels = to_float(data.x)
    near = scores.nearest(images[9::10].flatten(1), pixels.flatten(1))[:, 0]
    shown = torch.cat([images.view(rows, 10, *images.shape[1:]), pixels[near][:, None]], 1)
    words = "Samples; right: the training image nearest to the last (Fig. 5)"
    figure_grid(path, shown.flatten(0, 1), 11, words)


def figure_style(nets, decode, test, path, rows=10):
    """Figure 7: a z from the prior a row, the label along the columns."""
    z = nets.prior.sample(torch.randint(0, 10, (rows,), device=test.x.device))
    classes = test.y.unique()
    labels = F.one_hot(classes, 10).float().repeat(rows, 1)
    images = decode(nets, labels, z.repeat_interleave(len(classes), 0))
    words = "Style and content (Fig. 7)", "y: the label", "z from the prior, one a row"
    figure_grid(path, images, len(classes), *words)


def figure_clusters(nets, encode, decode, test, path, shown=14):
    """Figure 9: a cluster a row. Left its head, y one-hot and z = 0; then the first test images in
    it. Clusters without any are left out."""
    logits, z = encode(nets, test.x)
    member = logits.argmax(1)
    used, count = member.unique(), logits.shape[1]
    y = F.one_hot(used, count).float()
    heads = decode(nets, y, torch.zeros(len(used), z.shape[1], device=z.device))
    rows = torch.ones(len(used), shown, *test.x.shape[1:], device=z.device)
    for row, cluster in zip(rows, used):
        mine = to_float(test.x[member == cluster][:shown])
        row[: len(mine)] = mine
    words = f"Clusters (Fig. 9), {len(used)} of {count} in use: the head, then test images"
    figure_grid(path, rows.flatten(0, 1), shown, words, left=heads)


def draw(nets, encode, decode, data, test, o, folder):
    """The figures of a task."""
    task, model = o.task, MODELS.get(getattr(o, "regularizer", None), "AAE")
    plane = task.startswith("prior") and nets.prior.dim == 2
    if plane or nets.dec.heads is not None:
        figure_codes(nets, encode, test, folder / "codes.png", model)
    if plane:
        figure_manifold(nets, decode, folder / "manifold.png")
    if task == "likelihood":
        figure_samples(nets, decode, data, folder / "samples.png")
    if task in ("style", "semi", "semi-all"):
        figure_style(nets, decode, test, folder / "style.png")
    if task in ("cluster", "embed-clusters"):
        figure_clusters(nets, encode, decode, test, folder / "clusters.png")


def figure_scatter(path, points, y, title, curves=(), marks=None):
    """Points [N, 2] as PNG, a colour for each class y [N]. curves [n, 2] in grey; marks: crosses
    [K, 2]."""
    figure = Figure(figsize=(5.4, 4.8), dpi=100)
    axes = figure.subplots()
    points, y = points.cpu(), y.cpu()
    style = {"markersize": 2.5, "alpha": 0.6, "zorder": 1, "markeredgewidth": 0}
    for label in y.unique().tolist():
        axes.plot(*points[y == label].t(), ".", color=f"C{label}", label=str(label), **style)
    for curve in curves:
        axes.plot(*curve.cpu().t(), color=".25", linewidth=0.8, zorder=2)
    if marks is not None:
        axes.plot(*marks.cpu().t(), "kx", markersize=7, zorder=3)
    axes.set_aspect("equal")
    axes.set(xlabel="first number", ylabel="second number")
    place = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
    axes.legend(markerscale=5, fontsize=8, frameon=False, **place)
    axes.set_title(title, fontsize=10)
    figure.tight_layout()
    save_figure(figure, path)
