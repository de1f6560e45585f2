"""Scores of bigan.py on test images: what features and codes say of the class, what G(E(x)) keeps.

encode: images -> codes. decode: codes -> images float in [0, 1]. Errors and shares are in percent.
How Table 1 is measured the paper says in part. Here the references are all 60,000 training images
(the released code: 50,000). The layer is E's last hidden one, with batch norm as in evaluation: the
released log agrees with that. 1-NN on the code is on E's bounded output (in that log: on logits).
"""

from common import UserError, figure_grid, say, to_float
from experiments import machine, scores

import torch
from torch.special import entr  # entr(p) = - p log p

PAPER_TABLE1 = {
    "bigan": 97.39,
    "gan": 97.30,
    "latent-regressor": 97.44,
    "joint-latent-regressor": 97.13,
    "ae-l2": 97.58,
    "ae-l1": 97.63,
}


def load_judge(settings):
    """The classifier that reads digits."""
    if settings.dataset == "sprites":
        words = "the test characters of sprites are in no training image, so 1-NN means nothing"
        raise UserError(f"{words}: choose another --dataset")
    device = machine.choose_device(settings.device)
    return scores.load_judge(settings.dataset, settings.data, device, quick=settings.dry_run)


def image_quality(judge, images):
    """What the judge says of images [N, C, H, W] in [0, 1].

    sample_confidence: mean probability of the class it names. sample_classes: exp of the entropy of
    the classes named, 10 when ten digits are equally frequent. sample_quality: its inception score,
    exp E KL(p(y|x) || p(y)), high when both are, 10 at best."""
    with torch.no_grad():
        p = torch.cat([judge(part).cpu().double().softmax(1) for part in images.split(1000)])
    named = torch.bincount(p.argmax(1), minlength=p.shape[1]) / len(p)
    doubt = entr(p).sum(1).mean()
    return {
        "sample_confidence": p.amax(1).mean().item() * 100,
        "sample_classes": entr(named).sum().exp().item(),
        "sample_quality": (entr(p.mean(0)).sum() - doubt).exp().item(),
    }


@torch.no_grad()
def features(net, x):
    """The last hidden layer [N, hidden] of a network, for images uint8 [N, C, H, W]."""
    return torch.cat([net.features(to_float(part)) for part in x.split(1000)])


def neighbour_scores(h, y, h_test, y_test):
    """nn_error_features: of the class of the nearest training image, by Table 1's layer [N, d]."""
    return {"nn_error_features": scores.nn_error(h, y, h_test, y_test)}


def code_scores(z, y, z_test, y_test):
    """nn_error_code: of the class of the nearest training image by the code [N, z_dim].
    code_square: mean square of the code's numbers."""
    return {
        "nn_error_code": scores.nn_error(z, y, z_test, y_test),
        "code_square": z_test.square().mean().item(),
    }


def probe_score(z, y, z_test, y_test, epochs=20):
    """probe_error_code: of a linear classifier on the code [N, d]."""
    error = scores.probe(z, y, z_test, y_test, hidden=0, epochs=epochs)
    return {"probe_error_code": error.item()}


def reconstruction_scores(again, test, judge):
    """How G(E(x)), images `again`, compares with x.

    reconstruction_mse: per pixel in [0, 1]. reconstruction_l2: mean length of x - G(E(x)), and of
    x' - G(E(x)) for another image x' (_mismatched). reconstruction_digit: share of G(E(x)) in which
    the judge reads the class of x."""
    x = to_float(test.x)
    right = judge.classify(again) == test.y
    return {
        "reconstruction_mse": (again - x).square().mean().item(),
        "reconstruction_l2": (again - x).flatten(1).norm(dim=1).mean().item(),
        "reconstruction_l2_mismatched": (again - x.roll(1, 0)).flatten(1).norm(dim=1).mean().item(),
        "reconstruction_digit": right.float().mean().item() * 100,
    }


def inverse_scores(z, z_again):
    """code_mse: E(G(z)) against z, a number. An answer of 0 would have code_prior_square; a code
    that has nothing to do with z would have about that and code_square together."""
    return {
        "code_mse": (z_again - z).square().mean().item(),
        "code_prior_square": z.square().mean().item(),
    }


def figure_interpolation(encode, decode, test, path, rows=8, steps=12):
    """ALI's interpolations: G of the straight line between the codes of two test images, which
    stand left and right of it."""
    left, right = test.x[: 2 * rows : 2], test.x[1 : 2 * rows : 2]
    t = torch.linspace(0, 1, steps, device=left.device)[:, None]
    images = []
    for a, b, end in zip(encode(left), encode(right), to_float(right)):
        images += [*decode(torch.lerp(a, b, t)), end]
    title = "G of the straight line between the codes of two test images"
    figure_grid(path, torch.stack(images), steps + 1, title, left=left)


def evaluate(settings, data, test, judge, net=None, encode=None, decode=None, draw=None):
    """Scores, name -> number, and the rows of the printed table: (words, name, paper, compare).

    net: whose `features` Table 1 compares; without it, pixels. encode, decode: None where the model
    has no E or G. draw: count -> codes of the prior."""
    say("scoring")
    epochs = 1 if settings.dry_run else 20
    x, x_test = to_float(data.x).flatten(1), to_float(test.x).flatten(1)
    h, h_test = (features(net, data.x), features(net, test.x)) if net else (x, x_test)
    found = neighbour_scores(h, data.y, h_test, test.y)
    samples = to_float(test.x)
    if encode:
        z, z_test = encode(data.x), encode(test.x)
        found.update(code_scores(z, data.y, z_test, test.y))
        found.update(probe_score(z, data.y, z_test, test.y, epochs))
        found.update(reconstruction_scores(decode(z_test), test, judge))
        prior = draw(5000)
        found.update(inverse_scores(prior, encode(decode(prior))))
    elif not net:
        found.update(probe_score(x, data.y, x_test, test.y, epochs))
    if decode:
        samples = decode(draw(300 if settings.dry_run else 10_000))
    found.update(image_quality(judge, samples), judge_accuracy=scores.judge_accuracy(judge, test))
    chance = scores.chance_error(data.y, test.y).item()
    return found, table_rows(found, settings, chance)


def table_rows(found, settings, chance):
    """Rows of the printed table of one run: words, metric, the paper's value, compare."""
    on_test_set = settings.dataset == "mnist" and not (settings.data or settings.validation)
    paper = f"{100 - PAPER_TABLE1[settings.model]:.2f}" if settings.model in PAPER_TABLE1 else "-"
    square, prior = found.get("code_square", 0), found.get("code_prior_square", 0)
    unrelated = f"0 would have {prior:.2f}, an unrelated code about {prior + square:.2f}"
    another = f"another x: {found.get('reconstruction_l2_mismatched', 0):.2f}"
    rows = [
        (
            "error of 1-NN, last hidden layer, %",
            "nn_error_features",
            paper if on_test_set else "-",
            "pixels 3.09" if on_test_set and not settings.dry_run else "",
        ),
        ("error of 1-NN, code, %", "nn_error_code", "-", ""),
        ("linear probe, code, %", "probe_error_code", "-", f"commonest label {chance:.1f}"),
        ("reconstruction MSE", "reconstruction_mse", "-", ""),
        ("length of x - G(E(x)), mean", "reconstruction_l2", "-", another),
        ("G(E(x)) shows x's class, %", "reconstruction_digit", "-", "100 at best"),
        ("E(G(z)) against z, MSE", "code_mse", "-", unrelated),
        ("mean square of E(x)", "code_square", "-", f"the prior's {prior:.2f}"),
        ("samples: judge's confidence, %", "sample_confidence", "-", ""),
        ("samples: classes in effect", "sample_classes", "-", "10 at best"),
        ("samples: inception score of the judge", "sample_quality", "-", "10 at best"),
        scores.JUDGE_ROW,
    ]
    return [row for row in rows if row[1] in found]
