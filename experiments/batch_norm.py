"""Batch norm's averages anew, once the training is over."""

import math

from common import to_float

import torch
from torch import nn


def image_parts(images, size=500):
    """The first 20,000 images as floats, in nearly equal parts of at most `size`. No part has a
    single image: batch norm would refuse it."""
    images = images[:20_000]
    return [to_float(part) for part in images.tensor_split(math.ceil(len(images) / size))]


@torch.no_grad()
def settle(net, batches):
    """Batch norm's averages anew: the plain mean over `batches`, each the inputs of one call. Those
    of the training lag behind the weights. Leaves the network in eval mode."""
    norms = [m for m in net.eval().modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean
        norm.train()
    for inputs in batches if norms else ():
        net(*inputs)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
    net.eval()
