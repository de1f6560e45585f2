"""What measures a trained model: probes, neighbours, clusters, the Parzen window, the digit judge.

    python -m experiments.scores       # makes data/judge-mnist.pt anew, in one minute

Probes, neighbours, clusters and the Parzen window are functions of arrays. Those that draw random
numbers have a seed of their own. The judge reads and writes files.
"""

import contextlib
import copy
import io
import math
import os
import sys
import tempfile
import zlib
from pathlib import Path

from common import HERE, UserError, load_dataset, say, to_float, write_atomic
from data.files import is_mnist
from experiments import machine

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.neighbors import NearestNeighbors
from torch import nn
from tqdm import tqdm


def check_finite(codes):
    """`UserError` for codes with an infinite number or a NaN."""
    if not torch.isfinite(codes).all():
        raise UserError("the codes are not finite: the training broke")


def percent(hits):
    """Share of what is true, in percent."""
    return hits.float().mean().item() * 100


@torch.no_grad()
def in_parts(call, x):
    """call(x), a thousand rows of images or codes x [N, ...] at a time."""
    return torch.cat([call(to_float(part)) for part in x.split(1000)])


def as_array(codes):
    """The numpy array float32 of a tensor on any device, for scikit-learn."""
    check_finite(codes)
    return codes.float().numpy(force=True)


# --------------------------------------------------------------------------------------------
# Probes

PROBE_BATCH = 500


def probe(train, train_y, test, test_y, hidden=256, noise=None, epochs=20, groups=None):
    """Test error in percent of a small network that reads labels from codes: a tensor [A].

    Two layers, 256 units and early stopping are those of Mathieu et al.'s Table 1; they do not tell
    the rest.

    train, test: codes float [N, d]. Both are standardised by the training codes' mean and
    deviation, and cut off at 10 deviations from the mean.
    train_y, test_y: labels int64 [N], or A attributes [N, A], a softmax each. Or
    targets float [N, A]: squared error in training; returns R2 of each, at most 1.
    hidden: units of the hidden ReLU layer; 0 for a linear probe.
    noise: (train, test), standard deviations [N, d] of a Gaussian. It is added afresh each time a
    code is used, to probe samples of a posterior.
    groups: int64 [N], where the test set has other groups (the characters of sprites).
    A random tenth of the training codes, or of the groups, picks the epoch.
    epochs: with few codes there are more, for at least 400 steps. 1 (a dry run) stays 1.
    """
    for codes in (train, test, *(noise or ())):
        check_finite(codes)
    rng = torch.Generator().manual_seed(0)
    used, held = hold_out_a_tenth(len(train), groups, rng)
    std, test_std = (None, None) if noise is None else noise
    mean, variance = train.mean(0), train.var(0)
    if noise is not None:
        variance = variance + std.square().mean(0)
    scale = variance.sqrt()
    scale = torch.where(scale > 1e-5 * scale.max(), scale, math.inf)  # constant: says nothing

    def sample(codes, std, index):
        codes = codes[index]
        if std is not None:
            codes = codes + std[index] * torch.randn(codes.shape, generator=rng).to(codes)
        # A dimension that is nearly always 0 is hundreds of its deviations away when it is not.
        return ((codes - mean) / scale).clamp(-10, 10)

    train_y, test_y = as_columns(train_y), as_columns(test_y)
    regression = train_y.is_floating_point()
    if regression:
        sizes = [1] * train_y.shape[1]
        center, spread = train_y.mean(0), train_y.std(0) + 1e-6
        train_y = (train_y - center) / spread
    else:
        sizes = (train_y.amax(0) + 1).tolist()
    net = probe_network(train.shape[1], hidden, sum(sizes)).to(train.device)

    def loss_of(index):
        output, y = net(sample(train, std, index)), train_y[index]
        if regression:
            return (output - y).square().mean()
        parts = output.split(sizes, 1)
        return sum(F.cross_entropy(part, y[:, k]) for k, part in enumerate(parts))

    if epochs > 1:
        epochs = max(epochs, math.ceil(400 / math.ceil(len(used) / PROBE_BATCH)))
    fit(net, loss_of, used.to(train.device), held.to(train.device), epochs, rng)
    with torch.no_grad():
        output = net(sample(test, test_std, slice(None)))
    if regression:
        residual = (output * spread + center - test_y).square().mean(0)
        return 1 - residual / test_y.var(0, unbiased=False)
    return percent_wrong([part.argmax(1) for part in output.split(sizes, 1)], test_y)


def probe_network(inputs, hidden, outputs):
    """One hidden ReLU layer, or none: [N, inputs] -> [N, outputs]. The same weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if not hidden:
            return nn.Sequential(nn.Linear(inputs, outputs))
        return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


def fit(net, loss_of, used, held, epochs, rng):
    """Train on the rows `used`, and keep the weights of the epoch with the least loss on `held`.

    loss_of: from an index of rows to the network's loss on them.
    """
    optimiser = torch.optim.Adam(net.parameters(), lr=2e-3, fused=True)
    least, best = math.inf, None
    for _ in range(epochs):
        order = torch.randperm(len(used), generator=rng).to(used.device)
        for index in used[order].split(PROBE_BATCH):
            optimiser.zero_grad()
            loss_of(index).backward()
            optimiser.step()
        with torch.no_grad():
            loss = loss_of(held).item()
        if loss < least:
            least, best = loss, copy.deepcopy(net.state_dict())
    net.load_state_dict(best)


def hold_out_a_tenth(count, groups, rng):
    """Two disjoint indices int64 of `count` rows: most of them, and a random tenth.

    groups: int64 [count], or None; with groups the tenth is of whole groups.
    """
    order = torch.randperm(count, generator=rng)
    if groups is None:
        held_out = max(1, count // 10)
        return order[held_out:], order[:held_out]
    names = groups.unique()
    chosen = torch.randperm(len(names), generator=rng)[: max(1, len(names) // 10)]
    held = torch.isin(groups, names[chosen.to(names.device)])
    return (~held).nonzero()[:, 0], held.nonzero()[:, 0]


def balanced(y, count, seed=0):
    """Indices of at most `count` examples drawn by the seed, equally many of each class of y [N]. A
    class with too few gives all it has. All are taken where there are no more than `count`."""
    if count >= len(y):
        return torch.arange(len(y), device=y.device)
    rng, classes = torch.Generator().manual_seed(seed), y.unique().tolist()
    found = []
    for label in classes:
        index = (y.cpu() == label).nonzero()[:, 0]
        found.append(index[torch.randperm(len(index), generator=rng)[: count // len(classes)]])
    return torch.cat(found).to(y.device)


def chance_error(train_y, test_y):
    """Test error in percent of always answering the commonest training label: a tensor [A].

    train_y, test_y: labels int64 [N], or A attributes [N, A].
    """
    train_y = as_columns(train_y)
    commonest = [torch.bincount(column).argmax() for column in train_y.unbind(1)]
    return percent_wrong(commonest, as_columns(test_y))


def as_columns(y):
    """[N] -> [N, 1]; [N, A] stays."""
    return y[:, None] if y.dim() == 1 else y


def percent_wrong(answers, y):
    """Error in percent for each column of y [N, A], whose answers are [N] or a single number."""
    return torch.stack([(y[:, k] != a).float().mean() * 100 for k, a in enumerate(answers)])


# --------------------------------------------------------------------------------------------
# Neighbours


def nearest(queries, references, k=1, exclude_self=False):
    """Index int64 [N, k] of the k nearest rows of `references` [M, d] to each query [N, d].

    The distance is Euclidean, and the nearest comes first. Of several that are equally near, k = 1
    takes the first, a larger k any. exclude_self: the queries are the references, and no row is
    its own neighbour.
    """
    neighbours = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(as_array(references))
    asked = None if exclude_self else as_array(queries)  # None: every reference, without itself
    return torch.from_numpy(neighbours.kneighbors(asked, return_distance=False)).to(queries.device)


def nn_error(references, reference_y, queries, query_y):
    """Error in percent of 1-NN: each query [N, d] takes the label of its nearest reference [M, d].

    reference_y int64 [M], query_y int64 [N].
    """
    return percent(reference_y[nearest(queries, references)[:, 0]] != query_y)


# --------------------------------------------------------------------------------------------
# Clusters


def name_clusters(scores, y, rule="exemplar"):
    """Class int64 [K] of each of K clusters, from labelled examples.

    scores: log q(cluster|x) float [N, K], for "majority" any whose largest says the cluster;
    y: class of each example, int64 [N].
    rule "exemplar": the class of the one example that the cluster is surest of (Makhzani et al.).
    rule "majority": the commonest class among the examples for which the cluster is the likeliest.
    A cluster without examples takes its exemplar's class.
    """
    exemplar = y[scores.argmax(0)]
    if rule == "exemplar":
        return exemplar
    votes = count_votes(scores, y)
    return torch.where(votes.sum(1) > 0, votes.argmax(1), exemplar)


def cluster_error(scores, y, names):
    """Error in percent when every example takes the class of its likeliest cluster.

    scores: float [N, K]; y: int64 [N]; names: class of each cluster, int64 [K].
    """
    return percent(names[scores.argmax(1)] != y)


def match_clusters(scores, y):
    """Class int64 [K] of each of K clusters, no class for two: the matching with most right.

    A cluster that is left over has -1. scores: float [N, K], the largest says the cluster;
    y: int64 [N].
    """
    votes = count_votes(scores, y)
    cluster, label = linear_sum_assignment(votes.cpu(), maximize=True)
    names = torch.full((len(votes),), -1)
    names[cluster] = torch.from_numpy(label)
    return names.to(y.device)


def count_votes(scores, y):
    """How often cluster i is the likeliest of an example of class j: int64 [K, classes]."""
    classes = int(y.max()) + 1
    pairs = scores.argmax(1) * classes + y
    return torch.bincount(pairs, minlength=scores.shape[1] * classes).view(-1, classes)


def k_means(x, k, seed=0, tries=5):
    """Centres [k, d] of k-means on x [N, d]: the best of several tries by k-means++. A try ends
    when no centre moves, or after 300 rounds.

    Several threads add up in any order, so the last digits may differ from run to run.
    """
    found = KMeans(k, n_init=tries, random_state=seed, tol=0).fit(as_array(x))
    return torch.from_numpy(found.cluster_centers_).to(x)


# --------------------------------------------------------------------------------------------
# Likelihood


def parzen_log_likelihood(x, samples, sigmas):
    """Log density in nats of each x under a Parzen window, for each width: [len(sigmas), N].

    log p(x) = log 1/M sum_j N(x; sample_j, sigma^2 I), in blocks, so M may be a million.
    x [N, d], samples [M, d] in the same units as sigmas.
    """
    sigmas = torch.as_tensor(sigmas, dtype=x.dtype, device=x.device)
    center = x.mean(0)  # smaller numbers, smaller rounding errors
    x = x - center
    total = torch.full((len(sigmas), len(x)), -math.inf, dtype=x.dtype, device=x.device)
    for part in samples.split(2000):  # small blocks stay in the processor's cache
        part = part.to(x) - center
        norms = part.square().sum(1)
        for begin in range(0, len(x), 500):
            block = slice(begin, begin + 500)
            rows = x[block]
            distance = norms + rows.square().sum(1, keepdim=True)  # squared
            distance = torch.addmm(distance, rows, part.t(), alpha=-2)
            for k, sigma in enumerate(sigmas.tolist()):
                mass = (distance * (-0.5 / sigma**2)).logsumexp(1)
                total[k, block] = torch.logaddexp(total[k, block], mass)
    log_volume = x.shape[1] * (sigmas.log() + 0.5 * math.log(2 * math.pi))
    return total - math.log(len(samples)) - log_volume[:, None]


# --------------------------------------------------------------------------------------------
# The judge


class Judge(nn.Module):
    """Says which class an image shows. It is trained once, and never together with a model.

    Images float [N, channels, H, W] in [0, 1], grey ones of 28 x 28 or colour ones of 32 x 32
    -> logits [N, classes].
    """

    def __init__(self, channels=1, classes=10):
        super().__init__()
        layers, inputs = [], channels
        for width in (32, 64, 64):
            layers += [
                nn.Conv2d(inputs, width, kernel_size=3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
            inputs = width
        # From 4 x 4 to 3 x 3. AdaptiveAvgPool2d(3) is its equal, but fails on Apple's GPUs.
        to_3 = nn.AvgPool2d(kernel_size=2, stride=1) if channels == 3 else nn.Identity()
        self.net = nn.Sequential(
            *layers,
            to_3,
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(9 * 64, 128),
            nn.ReLU(),
            nn.Linear(128, classes),
        )

    def forward(self, x):
        return self.net(x)

    def classify(self, images):
        """Class int64 [N] of images, uint8 or float in [0, 1]."""
        return in_parts(self, images).argmax(1)


def train_judge(train):
    """A `Judge` of a `Split`, in eval mode. Its images are shifted by up to 2 pixels.

    Eight epochs; of few images the batches are smaller and the epochs more: at least 500 steps.
    About a minute on two cores. Weights and dropout come from torch's global generator.
    """
    judge = new_judge(train).to(train.x.device)
    optimiser = torch.optim.AdamW(judge.parameters(), weight_decay=1e-2)
    batch_size = max(10, min(250, len(train.y) // 8))
    per_epoch = math.ceil(len(train.y) / batch_size)
    epochs = max(8, math.ceil(500 / per_epoch))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5e-3, epochs * per_epoch)
    rng = torch.Generator().manual_seed(0)
    h, w = train.x.shape[2:]
    judge.train()
    for _ in tqdm(range(epochs), desc="judge", disable=None):
        for index in torch.randperm(len(train.y), generator=rng).split(batch_size):
            dy, dx = torch.randint(0, 5, (2,), generator=rng).tolist()
            x = F.pad(to_float(train.x[index]), (2, 2, 2, 2))[:, :, dy : dy + h, dx : dx + w]
            optimiser.zero_grad()
            F.cross_entropy(judge(x.contiguous()), train.y[index]).backward()
            optimiser.step()
            schedule.step()
    return judge.eval()


def new_judge(train):
    """An untrained `Judge` for the images and classes of a `Split`."""
    return Judge(channels=train.x.shape[1], classes=int(train.y.max()) + 1)


def save_judge(judge, path):
    """Write a judge's shape and weights; `UserError` where the folder is not writable."""
    state = {
        "channels": judge.net[0].in_channels,
        "classes": judge.net[-1].out_features,
        "net": judge.state_dict(),
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(Path(path), buffer.getvalue())


def read_judge(path, device="cpu"):
    """The `Judge` in a file, in eval mode."""
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        judge = Judge(state["channels"], state["classes"])
        judge.load_state_dict(state["net"])
    except OSError as error:
        raise UserError(f"cannot read '{path}' ({error.strerror})")
    except Exception as error:  # zip, pickle and shape errors of a damaged file
        if machine.no_memory(error):
            raise
        raise UserError(
            f"'{path}' is damaged ({type(error).__name__}): delete it to have it made anew "
            "(for MNIST, git checkout data)"
        )
    return judge.to(device).eval()


def load_judge(name, root=None, device="cpu", quick=False):
    """The `Judge` of a data set, in eval mode.

    MNIST's is committed. Another one is trained, and kept in `cache_folder` under the checksum of
    its images. Each has seen all training images, with --validation the held-out ones, too.
    quick: for a dry run; one that is absent stays untrained.
    """
    committed = HERE / "data" / "judge-mnist.pt"
    if name == "mnist" and Path(root or HERE / "data") == HERE / "data":
        return read_judge(committed, device)
    train, test = load_dataset(name, root)
    if is_mnist(train.x, train.y):
        return read_judge(committed, device)
    checksum = zlib.crc32(train.y.numpy(), zlib.crc32(train.x.contiguous().numpy()))
    path = cache_folder() / f"judge-{checksum:08x}.pt"
    if path.exists():
        return read_judge(path, device)
    if quick:
        return new_judge(train).to(device).eval()
    say(f"training a judge of these images, once; it is kept in {path.parent}")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        judge = train_judge(train.to(device))
        right = judge_accuracy(judge, test.take(slice(10_000)).to(device))
    say(f"the judge names {right:.0f} % of the test images right")
    save_judge(judge, path)
    return read_judge(path, device)  # Judge() draws random numbers: as many as in a later run


def judge_of(settings):
    """`load_judge` for the images and the device of a run."""
    device = machine.choose_device(settings.device)
    return load_judge(settings.dataset, settings.data, device, quick=settings.dry_run)


def cache_folder():
    """Where files that are made from data are kept: $XDG_CACHE_HOME or ~/.cache, or the folder of
    temporary files where that cannot be written."""
    chosen = os.environ.get("XDG_CACHE_HOME")
    homes = [Path(chosen)] if chosen else []
    with contextlib.suppress(RuntimeError):  # there is no home
        homes.append(Path.home() / ".cache")
    with contextlib.suppress(OSError):  # there is no folder of temporary files
        homes.append(Path(tempfile.gettempdir()))
    for home in homes:
        with contextlib.suppress(OSError):
            folder = home / "adversarial-disentangling"
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):  # it can be written
                return folder
    raise UserError("no folder for a judge can be written: name one in XDG_CACHE_HOME")


def judge_accuracy(judge, test):
    """Percent of the real test images that the judge names right: what its other numbers can be."""
    return percent(judge.classify(test.x) == test.y)


JUDGE_ROW = ("the judge on the real test images, %", "judge_accuracy", "-", "")


def main(*words):
    if words:
        raise UserError("this makes the judge anew; python -m experiments.score RUN scores a run")
    torch.manual_seed(0)
    train, test = load_dataset("mnist")
    judge = train_judge(train)
    save_judge(judge, HERE / "data" / "judge-mnist.pt")
    print(f"judge-mnist.pt: {judge_accuracy(judge, test):.2f} % of the test images")


if __name__ == "__main__":
    from experiments import command_line

    command_line.exit_on_mistake(lambda: main(*sys.argv[1:]), "the same command begins it anew")
