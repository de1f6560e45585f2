"""BiGAN whose D also sees a product of image and code.

    python -m experiments.bigan_product

All else is bigan.py's. There D adds a linear map of the code to one of the image. A sum hides
whether they belong together; a product shows it at once (projection discriminator, Miyato and
Koyama 2018, arXiv 1802.05637). G(E(x)) then keeps more digits; E's hidden layer is worse by nearest
neighbours.
"""

import dataclasses
import functools
import math

import bigan
import common
from bigan import evaluate, main  # experiments.score asks for evaluate  # noqa: F401
from common import Count, Share

import torch.nn.functional as F
from torch import nn


@dataclasses.dataclass
class Settings(bigan.Settings):
    skip_fade: Share = 0.0  # ours: as in bigan.py; not needed, as no batch norm hides the product
    product: Count = 256  # numbers of the product


def recipe(model="bigan", recipe="ours"):
    """bigan.py's settings, and the product's."""
    return Settings(**{**vars(bigan.recipe(model, recipe)), "skip_fade": 0.0})


class ProductDiscriminator(bigan.Discriminator):
    """The logit [B] gains <U h, V z> / sqrt(n), h D's first hidden layer, U h and V z [B, n]."""

    def __init__(self, shape=(1, 28, 28), z_dim=50, hidden=1024, skip=False, n=256):
        super().__init__(shape, z_dim, hidden, skip)
        self.u = nn.Linear(hidden, n, bias=False)
        self.v = nn.Linear(z_dim, n, bias=False)

    def forward(self, x, z):
        h1 = F.leaky_relu(self.layer1(x.flatten(1)), 0.2)
        h2 = F.leaky_relu(self.norm(self.layer2(h1) + self.from_z(z)), 0.2)
        logit = self.out(h2).float().squeeze(1)
        product = (self.u(h1) * self.v(z)).float().sum(1) / math.sqrt(self.u.out_features)
        if self.skip is not None:
            logit = logit + self.skip_share * self.skip(h1).float().squeeze(1)
        return logit + product


def build(o):
    """bigan.py's networks, with this D."""
    return bigan.build(o, functools.partial(ProductDiscriminator, n=o.product))


if __name__ == "__main__":
    common.run_main(functools.partial(main, script="bigan_product", build=build), recipe)
