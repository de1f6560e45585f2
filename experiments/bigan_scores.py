"""Scores of bigan.py on test images: what features and codes say of the class, what G(E(x)) keeps.

encode: images -> codes. decode: codes -> images float in [0, 1]. Errors and shares are in percent.
The paper says only in part how Table 1 is measured. Here the references are all training
images, 60,000 (the released code: 50,000). The layer is E's last hidden one, with batch norm as in
evaluation; the authors' log agrees. 1-NN by the code: E's bounded output (their log: logits).
"""

from common import UserError, figure_grid, say, to_float
from experiments import scores
from experiments.scores import in_parts, percent

import torch
from torch.special import entr  # entr(p) = - p log p

PAPER_TABLE1 = {  # errors in %: 100 less the paper's accuracies
    "bigan": 2.61,
    "gan": 2.70,
    "latent-regressor": 2.56,
    "joint-latent-regressor": 2.87,
    "ae-l2": 2.42,
    "ae-l1": 2.37,
}


def judge_of(settings):
    """The classifier that reads digits."""
    if settings.dataset == "sprites":
        words = "the test characters of sprites are in no training image, so 1-NN means nothing"
        raise UserError(f"{words}: choose another --dataset")
    return scores.judge_of(settings)


def image_quality(judge, images):
    """What the judge says of images [N, C, H, W] in [0, 1].

    sample_confidence: mean probability of the class it names, in percent. sample_classes: exp of
    the entropy of the classes named, 10 when ten digits are equally frequent. sample_quality: its
    inception score, exp E KL(p(y|x) || p(y)), high when the two others are; at best the number of
    classes."""
    p = in_parts(judge, images).cpu().double().softmax(1)
    named = torch.bincount(p.argmax(1), minlength=p.shape[1]) / len(p)
    doubt = entr(p).sum(1).mean()
    return {
        "sample_confidence": p.amax(1).mean().item() * 100,
        "sample_classes": entr(named).sum().exp().item(),
        "sample_quality": (entr(p.mean(0)).sum() - doubt).exp().item(),
    }


def layer_error(net, data, test):
    """Error in percent of 1-NN by the last hidden layer of a network, or by pixels without one."""
    if net:
        h, h_test = (in_parts(net.features, part.x) for part in (data, test))
    else:
        h, h_test = (to_float(part.x).flatten(1) for part in (data, test))
    return scores.nn_error(h, data.y, h_test, test.y)


def reconstruction_scores(again, test, judge):
    """How G(E(x)), images `again`, compares with x.

    reconstruction_mse: per pixel in [0, 1]. reconstruction_l2: mean length of x - G(E(x)), and of
    x' - G(E(x)) for another image x' (_mismatched). reconstruction_digit: share of G(E(x)) in which
    the judge reads the class of x."""
    x = to_float(test.x)
    return {
        "reconstruction_mse": (again - x).square().mean().item(),
        "reconstruction_l2": (again - x).flatten(1).norm(dim=1).mean().item(),
        "reconstruction_l2_mismatched": (again - x.roll(1, 0)).flatten(1).norm(dim=1).mean().item(),
        "reconstruction_digit": percent(judge.classify(again) == test.y),
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
    has no E or G. draw: count -> codes of the prior.

    nn_error_features, nn_error_code: of 1-NN by Table 1's layer and by the code. probe_error_code:
    of a linear classifier on the code. code_square: mean square of the code's numbers. In ALI
    and ALICE the code is the mean, and batch norm makes this about 1. code_mse: mean square of
    E(G(z)) - z over the code's numbers. It is code_prior_square if E says 0, about
    code_prior_square + code_square if E(G(z)) has nothing of z. Without net, E and G:
    probe_error_code is of pixels, sample_... of the test images."""
    say("scoring")
    found = {"nn_error_features": layer_error(net, data, test)}
    samples, codes = to_float(test.x), None
    if encode:
        codes = encode(data.x), encode(test.x)
        found["nn_error_code"] = scores.nn_error(codes[0], data.y, codes[1], test.y)
        found["code_square"] = codes[1].square().mean().item()
        found.update(reconstruction_scores(decode(codes[1]), test, judge))
        prior = draw(5000)
        found["code_mse"] = (encode(decode(prior)) - prior).square().mean().item()
        found["code_prior_square"] = prior.square().mean().item()
    elif not net:
        codes = to_float(data.x).flatten(1), to_float(test.x).flatten(1)
    if codes:
        arrays, epochs = (codes[0], data.y, codes[1], test.y), 1 if settings.dry_run else 20
        found["probe_error_code"] = scores.probe(*arrays, hidden=0, epochs=epochs).item()
    if decode:
        samples = decode(draw(300 if settings.dry_run else 10_000))
    found.update(image_quality(judge, samples), judge_accuracy=scores.judge_accuracy(judge, test))
    chance = scores.chance_error(data.y, test.y).item()
    return found, table_rows(found, settings, chance, len(data.y.unique()))


def table_rows(found, settings, chance, classes):
    """Rows of the printed table of one run: words, metric, the paper's value, compare."""
    on_test_set = settings.dataset == "mnist" and not (settings.data or settings.validation)
    theirs = on_test_set and settings.model in PAPER_TABLE1 and not hasattr(settings, "product")
    paper = f"{PAPER_TABLE1[settings.model]:.2f}" if theirs else "-"
    pixels = "pixels 3.09" if on_test_set and not settings.dry_run else ""
    square, prior = found.get("code_square", 0), found.get("code_prior_square", 0)
    unrelated = f"0 would have {prior:.2f}, an unrelated code about {prior + square:.2f}"
    another = f"another x: {found.get('reconstruction_l2_mismatched', 0):.2f}"
    rows = [
        ("error of 1-NN, last hidden layer, %", "nn_error_features", paper, pixels),
        ("error of 1-NN, code, %", "nn_error_code", "-", ""),
        ("linear probe, code, %", "probe_error_code", "-", f"commonest label {chance:.1f}"),
        ("reconstruction MSE", "reconstruction_mse", "-", ""),
        ("length of x - G(E(x)), mean", "reconstruction_l2", "-", another),
        ("G(E(x)) shows x's class, %", "reconstruction_digit", "-", "100 at best"),
        ("E(G(z)) against z, MSE", "code_mse", "-", unrelated),
        ("mean square of E(x)", "code_square", "-", f"the prior's {prior:.2f}"),
        ("samples: judge's confidence, %", "sample_confidence", "-", ""),
        ("samples: classes in effect", "sample_classes", "-", f"{classes} at best"),
        ("samples: inception score of the judge", "sample_quality", "-", f"{classes} at best"),
        scores.JUDGE_ROW,
    ]
    return [row for row in rows if row[1] in found]
