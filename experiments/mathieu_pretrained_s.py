"""Figure 10(a) of Mathieu et al.: s comes from a classifier, trained first, then frozen.

    python -m experiments.mathieu_pretrained_s --epochs 4

All else is mathieu.py's. The paper does not say how it trains its classifier. Here: five epochs of
one-vs-all cross-entropy at a rate of 1e-3. Each s is scaled to mean 0 and deviation 1. Unscaled, it
drowns z in the decoder's sum.
"""

import common
import mathieu
from experiments import mathieu_scores
from mathieu import evaluate, recipe, update  # experiments.score asks for the first two

import torch
import torch.nn.functional as F
from torch import nn


class FrozenS(nn.Module):
    """An encoder whose s is a classifier's. Same inputs and outputs as `mathieu.Encoder`."""

    def __init__(self, enc, classifier):
        super().__init__()
        self.enc, self.classifier = enc, classifier

    def forward(self, x):
        _, mu, logvar = self.enc(x)
        s, _, _ = self.classifier(x)
        return F.layer_norm(s, s.shape[1:]), mu, logvar

    def train(self, mode=True):
        super().train(mode)
        self.classifier.eval()  # frozen: its batch norm, too
        return self


def pretrain(encoder, data, settings, epochs=5):
    """Train the s of an encoder to tell the labels of a Split, then freeze it."""
    ids = data.one_hot_labels()
    head = nn.Linear(settings.s_dim, ids.shape[1]).to(ids.device)
    parameters = [*encoder.parameters(), *head.parameters()]
    optimiser = torch.optim.Adam(parameters, 1e-3)
    for _ in range(epochs):
        order = torch.randperm(len(data.y)).to(ids.device)
        for index in order.split(2 * settings.batch_size):
            s, _, _ = encoder(common.to_float(data.x[index]))
            logits = head(F.layer_norm(s, s.shape[1:])).float()
            update(optimiser, F.binary_cross_entropy_with_logits(logits, ids[index]))
    return encoder.requires_grad_(False)


def build(settings):
    """mathieu.py's networks, with FrozenS for an encoder, untrained."""
    nets = mathieu.build(settings)
    nets.enc = FrozenS(nets.enc, mathieu.build(settings).enc)
    return nets


def main(settings):
    data, test = common.load_data(settings)
    common.pair_same_class(data.y)  # a class with one image should fail now
    mathieu_scores.judge_of(settings)
    run = common.Run("mathieu_pretrained_s", settings)
    nets = build(settings).to(run.device)
    with run.autocast():
        if not run.saved:
            common.say("training the classifier")
            pretrain(nets.enc.classifier, data, settings, 1 if settings.dry_run else 5)
        nets.enc.classifier.requires_grad_(False)
        mathieu.train(run, nets, data)
    run.finish(*evaluate(nets, data, test, settings, run.folder))


if __name__ == "__main__":
    common.run_main(main, recipe)
