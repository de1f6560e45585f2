"""The priors of aae.py as scores and figures see them: densities, components, outlines.

A new prior may bring them as methods: log_density(z), component(z), outline(). Without them it is
measured and drawn as a Gaussian of deviation `std`, which has no components.
"""

import math

import torch


def is_mixture(prior):
    """Of a prior, or of a class of priors."""
    return hasattr(prior, "place")


def is_roll(prior):
    """Of a prior, or of a class of priors."""
    return hasattr(prior, "curve")


def has_components(prior):
    """Whether there are components that a label can name."""
    return hasattr(prior, "component") or is_mixture(prior) or is_roll(prior)


def log_density(prior, z):
    """log p(z) in nats [n], of codes z [n, d]."""
    if hasattr(prior, "log_density"):
        return prior.log_density(z)
    if is_mixture(prior):
        return mixture_log_joint(prior, z).logsumexp(1)
    if is_roll(prior):
        squares = (roll_distances(prior, z) / prior.width).square()
        count = squares.shape[1]
        return (-0.5 * squares).logsumexp(1) - math.log(count * 2 * math.pi * prior.width**2)
    return torch.distributions.Normal(0.0, prior.std).log_prob(z).sum(1)


def component(prior, z):
    """The component to which each code z [n, 2] most likely belongs: int64 [n]."""
    if hasattr(prior, "component"):
        return prior.component(z)
    if is_mixture(prior):
        return mixture_log_joint(prior, z).argmax(1)
    return roll_distances(prior, z).argmin(1) // 200


def outline(prior):
    """Curves [n, 2] that show where the prior lies."""
    if hasattr(prior, "outline"):
        return prior.outline()
    t = torch.linspace(0, 2 * math.pi, 100)
    circle = torch.stack([t.cos(), t.sin()], 1)
    if is_mixture(prior):  # two deviations of each petal
        return [prior.place(2 * circle, torch.full((100,), k)) for k in range(10)]
    if is_roll(prior):
        return [prior.curve(torch.linspace(0, 1, 400))]
    return [k * prior.std * circle for k in (1, 2, 3)]


def mixture_log_joint(prior, z):
    """log p(z, component): [n, 10]."""
    outwards, across = prior.axes(torch.arange(10, device=z.device))
    a = ((z[:, None] * outwards).sum(2) - prior.centre) / prior.length
    b = (z[:, None] * across).sum(2) / prior.width
    area = 2 * math.pi * prior.length * prior.width
    return -0.5 * (a.square() + b.square()) - math.log(10 * area)


def roll_distances(prior, z):
    """From codes z [n, 2] to 2000 points of the roll's middle: [n, 2000]."""
    u = (torch.arange(2000, device=z.device) + 0.5) / 2000
    return torch.cat([torch.cdist(part, prior.curve(u)) for part in z.split(1000)])
