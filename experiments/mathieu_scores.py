"""Scores of mathieu.py on test images: who can read what from the codes, and what swaps show.

codes: (s, mu, sigma) of the test images. decode: (z, s) -> images float in [0, 1]; `evaluate` takes
mathieu.py's own functions. Every score is in percent unless its text says otherwise.
"""

import functools

from common import figure_grid, say, to_float
from data.sprites import ATTRIBUTES, draw_sprites
from experiments import scores
from experiments.scores import percent

import torch


def noise_like(mu, seed):
    """Standard normal numbers in the shape of mu, the same on every device."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(mu.shape, generator=rng).to(mu)


def shuffled(test):
    """For each image a, a random image b of `test`: int64 [N], the same every time."""
    rng = torch.Generator().manual_seed(0)
    return torch.randperm(len(test.y), generator=rng).to(test.y.device)


def swap_scores(codes, decode, test, judge):
    """Does the decoder take the class from s, and only from s? A judge of real images reads it.

    swap_accuracy: Dec(z_a, s_b) shows b's class, over pairs of two classes, z_a ~ q(z|x_a).
    swap_accuracy_mean: the same, z_a the posterior mean. swap_z_leak: it shows a's class.
    prior_accuracy: Dec(z, s_b) shows b's class, z ~ N(0, I)."""
    s, mu, sigma = codes
    b = shuffled(test)
    other = test.y != test.y[b]
    shown = judge.classify(decode(mu + sigma * noise_like(mu, 0), s[b]))
    shown_mean = judge.classify(decode(mu, s[b]))
    drawn = judge.classify(decode(noise_like(mu, 1), s))
    return {
        "swap_accuracy": percent((shown == test.y[b])[other]),
        "swap_accuracy_mean": percent((shown_mean == test.y[b])[other]),
        "swap_z_leak": percent((shown == test.y)[other]),
        "prior_accuracy": percent(drawn == test.y),
    }


def true_swap_scores(codes, decode, test):
    """Sprites have a right answer to a swap: b's character in a's pose, which can be drawn.

    swap_mse: Dec(mu_a, s_b) against it, the mean square over pixels in [0, 1]. swap_mse_ignore_s,
    swap_mse_ignore_z: of a perfect decoder that ignores s (shows a) or z (shows b)."""
    s, mu, _ = codes
    b = shuffled(test)
    truth = to_float(draw_sprites(test.attributes[b].cpu(), test.pose.cpu())).to(mu)
    return {
        "swap_mse": mean_square(decode(mu, s[b]), truth),
        "swap_mse_ignore_s": mean_square(to_float(test.x), truth),
        "swap_mse_ignore_z": mean_square(to_float(test.x[b]), truth),
    }


def mean_square(a, b):
    """Mean of (a - b)^2 over all numbers."""
    return (a - b).square().mean().item()


def reconstruction_scores(codes, decode, test):
    """reconstruction_mse: mean square over pixels in [0, 1] of Dec(z, s) against x, z the posterior
    mean; _sample: z ~ q(z|x). kl_nats: KL(q(z|x) || N(0, I))."""
    s, mu, sigma = codes
    x = to_float(test.x)
    kl = 0.5 * (mu.square() + sigma.square() - 1 - 2 * sigma.log()).sum(1).mean().item()
    return {
        "reconstruction_mse": mean_square(decode(mu, s), x),
        "reconstruction_mse_sample": mean_square(decode(mu + sigma * noise_like(mu, 0), s), x),
        "kl_nats": kl,
    }


def probe_scores(train_codes, train, codes, test, epochs=20):
    """Table 1: test error of a two-layer network that reads the label from s, from the mean of
    q(z|x), from samples of q(z|x). On sprites the characters are new to it: the mean error of seven
    attributes, the error of each, R2 of the pose.

    chance_error: always the commonest training label. guess_error: guessing, 1 - 1 / labels, as
    the paper's "random chance" of NORB (5 kinds, 80.0) and YaleB (28 people, 96.4)."""
    s, mu, sigma = train_codes
    s_test, mu_test, sigma_test = codes
    y, y_test, groups = train.y[:, None], test.y[:, None], None
    if train.attributes is not None:
        y, y_test, groups = train.attributes, test.attributes, train.y
    read = functools.partial(scores.probe, epochs=epochs, groups=groups)
    errors = {
        "s_error": read(s, y, s_test, y_test),
        "z_mean_error": read(mu, y, mu_test, y_test),
        "z_sample_error": read(mu, y, mu_test, y_test, noise=(sigma, sigma_test)),
        "chance_error": scores.chance_error(y, y_test),
        "guess_error": 100 - 100 / torch.tensor([float(len(v.unique())) for v in y.t()]),
    }
    found = {name: error.mean().item() for name, error in errors.items()}
    if train.attributes is not None:
        for name, error in errors.items():
            for word, value in zip(ATTRIBUTES, error.tolist()):
                found[f"{name}_{word}"] = value
        found["pose_r2_z"] = read(mu, train.pose, mu_test, test.pose).mean().item()
        found["pose_r2_s"] = read(s, train.pose, s_test, test.pose).mean().item()
    return found


def retrieval_scores(codes, test):
    """Figure 4 as a number: share of the 8 nearest test images that have the query's class."""
    found = {}
    for name, code in (("retrieval_s", codes[0]), ("retrieval_z", codes[1])):
        near = scores.nearest(code, code, 8, exclude_self=True)
        found[name] = percent(test.y[near] == test.y[:, None])
    return found


def figure_retrieval(codes, test, path, k=8):
    """Figure 4: the k nearest test images to the one on the left, by s and by the mean of z."""
    labels = test.y.unique()[:5]
    queries = torch.stack([(test.y == label).nonzero()[0, 0] for label in labels])
    rows = []
    for code in codes[:2]:
        near = scores.nearest(code, code, k, exclude_self=True)[queries]
        rows.append(test.x[near.flatten()])
    left = test.x[queries].repeat(2, 1, 1, 1)
    words = "Retrieval (Fig. 4)", "nearest first", "by z      |      by s"
    figure_grid(path, torch.cat(rows), k, *words, left=left)


def judge_of(settings):
    """The classifier that reads digits, or None for sprites."""
    if settings.dataset == "sprites":
        return None
    return scores.judge_of(settings)


def evaluate(nets, encode, decode, data, test, settings, folder):
    """Scores, name -> number, and the rows of the printed table: (words, name, paper, compare).
    Draws Figure 4 into the folder."""
    say("scoring")
    judge, decode = judge_of(settings), functools.partial(decode, nets)
    train_codes, codes = encode(nets, data.x), encode(nets, test.x)
    figure_retrieval(codes, test, folder / "retrieval.png")
    found = {
        **reconstruction_scores(codes, decode, test),
        **probe_scores(train_codes, data, codes, test, epochs=1 if settings.dry_run else 20),
        **retrieval_scores(codes, test),
    }
    if judge is None:
        found.update(true_swap_scores(codes, decode, test))
        return found, sprites_table(found, settings.validation)
    found.update(swap_scores(codes, decode, test, judge))
    found["judge_accuracy"] = scores.judge_accuracy(judge, test)
    return found, mnist_table(found, f"{found['judge_accuracy']:.1f} (real images)")


def mnist_table(found, real):
    """The paper has no numbers on MNIST."""
    guess = f"{found['guess_error']:.1f} (guessing)"
    return [
        ("swap shows the class of the s donor, %", "swap_accuracy", "-", real),
        ("swap shows the class of the z donor, %", "swap_z_leak", "-", "0 at best"),
        ("z of the prior: class of the s donor, %", "prior_accuracy", "-", real),
        ("error of a probe on s, %", "s_error", "-", guess),
        ("error of a probe on z, mean, %", "z_mean_error", "-", guess),
        ("error of a probe on z, sample, %", "z_sample_error", "-", guess),
        ("reconstruction, mean square", "reconstruction_mse", "-", ""),
        ("KL, nats", "kl_nats", "-", ""),
        ("8 nearest by s of the query's class, %", "retrieval_s", "-", ""),
        scores.JUDGE_ROW,
    ]


def sprites_table(found, validation=False):
    """The paper's numbers are of its own sprites. It does not say if z is a mean or a sample."""
    of_s, of_z = ("-", "-") if validation else ("5.2", "59.8")
    guess = f"{found['guess_error']:.1f} (guessing)"
    ignores = f"{found['swap_mse_ignore_s']:.4f} (a decoder that ignores s)"
    return [
        ("error of a probe on s, %", "s_error", of_s, guess),
        ("error of a probe on z, mean, %", "z_mean_error", of_z, guess),
        ("error of a probe on z, sample, %", "z_sample_error", of_z, guess),
        ("R2 of the pose read from z", "pose_r2_z", "-", "1 at best"),
        ("R2 of the pose read from s", "pose_r2_s", "-", "0 at best"),
        ("swap against the true picture, mean square", "swap_mse", "-", ignores),
        ("reconstruction, mean square", "reconstruction_mse", "-", ""),
        ("KL, nats", "kl_nats", "-", ""),
        ("8 nearest by s of the query's class, %", "retrieval_s", "-", ""),
    ]
