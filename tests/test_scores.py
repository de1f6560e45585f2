"""The scores, against independent answers and against models that must fail them."""

import itertools
import math
from pathlib import Path

import aae
import bigan
import common
import infogan
import mathieu
from experiments import (
    bigan_baselines,
    bigan_released,
    command_line,
    infogan_regular,
    infogan_scores,
    mathieu_pretrained_s,
    scores,
)

import pytest
import torch
import torch.nn.functional as F
from torch import nn


def blobs(n, gap, seed=0):
    rng = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 3, (n,), generator=rng)
    return torch.randn(n, 4, generator=rng) + gap * torch.eye(3, 4)[y], y


def test_probe_reads_what_is_there_and_nothing_else():
    train, test = blobs(3000, 8.0), blobs(2000, 8.0, seed=1)
    assert scores.probe(*train, *test, epochs=3).item() < 0.5
    train, test = blobs(3000, 0.0), blobs(2000, 0.0, seed=1)
    assert 62 < scores.probe(*train, *test, epochs=3).item() < 71  # chance is 66.7


def test_probe_is_nonlinear_where_it_should_be():
    x = torch.rand(4000, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    y = (x.prod(1) > 0).long()  # exclusive or
    assert scores.probe(x[:3000], y[:3000], x[3000:], y[3000:]).item() < 5
    assert scores.probe(x[:3000], y[:3000], x[3000:], y[3000:], hidden=0).item() > 35


def test_probe_on_samples_meets_the_bayes_error():
    y = torch.arange(10000) % 2  # codes at -1 and 1 with noise 1: error is Phi(-1) = 15.87 %
    codes, std = (y * 2.0 - 1)[:, None], torch.ones(10000, 1)
    error = scores.probe(codes, y, codes, y, noise=(std, std), epochs=5).item()
    assert abs(error - 15.87) < 1.2
    assert scores.probe(codes, y, codes, y, epochs=2).item() == 0


def test_probe_of_attributes_and_of_targets():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 3, generator=rng)
    y = torch.stack([(x[:, 0] > 0).long(), torch.randint(0, 4, (4000,), generator=rng)], 1)
    errors = scores.probe(x[:3000], y[:3000], x[3000:], y[3000:], epochs=10)
    assert errors.shape == (2,) and errors[0] < 4 and 68 < errors[1] < 82
    targets = torch.stack([x[:, 0] * x[:, 1], torch.randn(4000, generator=rng)], 1)
    r2 = scores.probe(x[:3000], targets[:3000], x[3000:], targets[3000:])
    assert r2[0] > 0.9 and abs(r2[1]) < 0.1


def test_probe_of_a_handful():
    train, test = blobs(6, 8.0), blobs(100, 8.0, seed=1)
    assert 0 <= scores.probe(*train, *test, epochs=1).item() <= 100


def test_probe_of_few_codes_trains_long_enough():
    train, test = blobs(100, 5.0), blobs(1000, 5.0, seed=1)
    assert scores.probe(*train, *test, epochs=1).item() > 5 > scores.probe(*train, *test).item()


def test_probe_bears_a_dimension_that_is_nearly_always_zero():
    rng = torch.Generator().manual_seed(0)
    target, extra = torch.rand(6000, 1, generator=rng) * 2 - 1, torch.zeros(6000, 1)
    extra[7], extra[5000:5020] = 0.01, 1.0  # in training's deviations: up to thousands
    x = torch.cat([target, extra], 1)
    assert scores.probe(x[:5000], target[:5000], x[5000:], target[5000:]).item() > 0.9


def test_probe_stops_before_it_learns_characters_by_heart():
    """A group's offset says nothing of other groups: held-out groups show it, rows do not."""
    rng = torch.Generator().manual_seed(0)
    group = torch.arange(9000) % 300
    name, offset = torch.randn(300, 20, generator=rng), torch.randn(300, 1, generator=rng)
    seen = torch.randn(9000, 1, generator=rng)
    x, target = torch.cat([seen, name[group]], 1), seen + offset[group]
    train, test = group < 200, group >= 200
    by_row, by_group = (
        scores.probe(x[train], target[train], x[test], target[test], groups=groups).item()
        for groups in (None, group[train])
    )
    assert by_group > by_row + 0.1


def test_probe_repeats_and_leaves_the_generator_alone():
    train, test = blobs(1000, 2.0), blobs(500, 2.0, seed=1)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = scores.probe(*train, *test, epochs=2)
    assert torch.equal(first, scores.probe(*train, *test, epochs=2))
    assert torch.equal(before, torch.get_rng_state())


def test_probe_refuses_codes_that_are_not_finite():
    for broken in range(4):  # training codes, test codes, the noise of each
        train, test = blobs(100, 2.0), blobs(100, 2.0)
        noise = torch.ones_like(train[0]), torch.ones_like(test[0])
        (train[0], test[0], *noise)[broken][3, 1] = math.nan
        with pytest.raises(common.UserError, match="not finite"):
            scores.probe(*train, *test, noise=noise)


def test_chance_error():
    train, test = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 2, 2])
    assert scores.chance_error(train, test).tolist() == [80.0]


def naive_neighbours(query, references, k, without=None):
    """Indices of the k rows nearest to one query, by a loop; `without` is left out."""
    distances = []
    for j, row in enumerate(references.tolist()):
        if j != without:
            distances.append((sum((a - b) ** 2 for a, b in zip(query.tolist(), row)), j))
    return [j for _, j in sorted(distances)[:k]]


def test_nearest_against_a_loop():
    rng = torch.Generator().manual_seed(0)
    a, b = torch.randn(30, 5, generator=rng), torch.randn(40, 5, generator=rng)
    found = scores.nearest(a, b, 3)
    alone = scores.nearest(a, a, 3, exclude_self=True)
    assert found.dtype == alone.dtype == torch.int64
    for i in range(30):
        assert found[i].tolist() == naive_neighbours(a[i], b, 3)
        assert alone[i].tolist() == naive_neighbours(a[i], a, 3, without=i)
    assert torch.equal(scores.nearest(a, a)[:, 0], torch.arange(30))  # itself, where it may


def test_nearest_of_equal_rows():
    rng = torch.Generator().manual_seed(0)
    a, b = (torch.randint(0, 3, (n, 4), generator=rng).float() for n in (200, 700))
    found = scores.nearest(a, b)
    assert [row[0] for row in found.tolist()] == [naive_neighbours(q, b, 1)[0] for q in a]
    twice = torch.rand(50, 6, generator=rng).repeat(2, 1)
    other = scores.nearest(twice, twice, 1, exclude_self=True)[:, 0]
    assert torch.equal(other, torch.arange(100).roll(50))  # its copy, never itself
    same = scores.nearest(torch.ones(1500, 3), torch.ones(1500, 3), 2, exclude_self=True)
    assert (same != torch.arange(1500)[:, None]).all()


def test_nearest_does_not_move_by_rounding():
    """Distances of pixels are whole numbers, so the answer is exact; far from 0, too."""
    train, test = common.load_dataset("mnist")
    x, x_test = train.x[:2000].flatten(1).int(), test.x[:50].flatten(1).int()
    truth = [(x - row).square().sum(1).argmin().item() for row in x_test]
    for shift in (0, 10_000):
        assert scores.nearest(x_test + shift, x + shift)[:, 0].tolist() == truth
    wrong = [train.y[j].item() != y for j, y in zip(truth, test.y[:50].tolist())]
    pixels, pixels_test = common.to_float(x), common.to_float(x_test)
    error = scores.nn_error(pixels, train.y[:2000], pixels_test, test.y[:50])
    assert error == pytest.approx(2 * sum(wrong)) and 0 < error < 30


def test_nn_error_counts_the_labels_that_differ():
    references, y = torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([7, 2, 4])
    queries = torch.tensor([[0.2], [0.9], [9.0], [4.0]])
    assert scores.nn_error(references, y, queries, torch.tensor([7, 7, 4, 4])) == 25


def test_clusters_are_named_by_both_rules():
    torch.manual_seed(0)
    logits, y = torch.randn(60, 7), torch.randint(0, 4, (60,))
    likeliest = logits.argmax(1).tolist()
    for rule in ("exemplar", "majority"):
        names = []
        for k in range(7):
            members = [n for n in range(60) if likeliest[n] == k]
            surest = max(range(60), key=lambda n: logits[n, k].item())
            votes = [sum(y[n] == c for n in members) for c in range(4)]
            by_vote = rule == "majority" and members
            names.append(votes.index(max(votes)) if by_vote else y[surest].item())
        assert scores.name_clusters(logits, y, rule).tolist() == names
        wrong = sum(names[likeliest[n]] != y[n].item() for n in range(60))
        error = scores.cluster_error(logits, y, torch.tensor(names))
        assert error == pytest.approx(100 * wrong / 60)


def test_the_exemplar_names_a_cluster_that_is_empty():
    logits = torch.tensor([[0.9, 0.1], [0.8, 0.2]]).log()
    assert scores.name_clusters(logits, torch.tensor([2, 4]), "majority").tolist()[1] == 4


@pytest.mark.parametrize("k, classes", [(4, 4), (3, 5), (6, 4), (1, 3)])
def test_matching_against_every_permutation(k, classes):
    torch.manual_seed(k)
    for _ in range(5):
        logits, y = torch.randn(80, k), torch.randint(classes, (80,))
        y[:classes] = torch.arange(classes)
        names = scores.match_clusters(logits, y)
        member = logits.argmax(1)
        padded = [*range(classes), *[-1] * max(0, k - 1)]
        choices = torch.tensor(sorted(set(itertools.permutations(padded, k))))
        best = int((choices[:, member] == y).sum(1).max())
        assert int((names[member] == y).sum()) == best
        used = names[names >= 0].tolist()
        assert len(used) == len(set(used)) == min(k, classes)  # none twice, none left out
        assert scores.cluster_error(logits, y, names) == pytest.approx(100 * (80 - best) / 80)


def test_a_head_that_always_answers_one_category_scores_as_it_deserves():
    y = torch.arange(10).repeat(30)
    collapsed = F.one_hot(torch.full((300,), 3), 10).float()
    for names in (
        scores.match_clusters(collapsed, y),
        scores.name_clusters(collapsed, y, "majority"),
    ):
        assert scores.cluster_error(collapsed, y, names) == pytest.approx(90)
    merged = F.one_hot(torch.where(y == 9, 4, y), 10).float()  # 4 and 9 in one
    assert scores.cluster_error(merged, y, scores.match_clusters(merged, y)) == pytest.approx(10)


def naive_nmi(a, b):
    """Mutual information of two labellings over the mean of their entropies."""
    shared = entropies = 0.0
    for i in a.unique():
        for j in b.unique():
            p = ((a == i) & (b == j)).double().mean().item()
            apart = (a == i).double().mean().item() * (b == j).double().mean().item()
            shared += p * math.log(p / apart) if p else 0.0
    for labels in (a, b):
        for count in labels.unique(return_counts=True)[1].tolist():
            entropies -= count / len(labels) * math.log(count / len(labels))
    return shared / (entropies / 2)


def test_nmi_of_cluster_scores_against_its_definition():
    rng = torch.Generator().manual_seed(0)
    parts, heads = [], []
    for n in (300, 200):  # five categories, of which two are rare, and three classes
        y = torch.multinomial(torch.tensor([0.6, 0.3, 0.1]), n, True, generator=rng)
        x = 80 * y[:, None] + torch.randint(0, 90, (n, 4), generator=rng)
        parts.append(common.Split(x.view(n, 1, 2, 2).byte(), y))
        heads.append(torch.randn(n, 5, generator=rng) + 2 * F.one_hot(y, 5))
    data, test = parts
    found = infogan_scores.cluster_scores(*heads, data, test)
    assert found["nmi"] == pytest.approx(naive_nmi(heads[1].argmax(1), test.y), rel=1e-9)
    assert 0.1 < found["nmi"] < 0.9
    x, x_test = (common.to_float(part.x).flatten(1) for part in parts)
    member = torch.cdist(x_test, scores.k_means(x, 5)).argmin(1)
    assert found["kmeans_nmi"] == pytest.approx(naive_nmi(member, test.y), rel=1e-9)
    assert all(type(value) is float for value in found.values())


def test_k_means_finds_blobs():
    torch.manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    y = torch.arange(4).repeat(50)
    x = centres[y] + torch.randn(200, 2)
    found = scores.k_means(x, 4)
    order = torch.cdist(centres, found).argmin(1)
    means = torch.stack([x[y == k].mean(0) for k in range(4)])
    assert sorted(order.tolist()) == [0, 1, 2, 3]
    assert torch.allclose(found[order], means, atol=1e-4)


def squares(x, centres):
    """Sum of the squared distances of rows to their nearest centre, and its number int64 [N]."""
    least = torch.cdist(x.double(), centres.double()).min(1)
    return least.values.square().sum().item(), least.indices


def lloyd(x, k, rng):
    """Lloyd's algorithm from k random rows, until no row changes its centre."""
    centres, member, previous = x[torch.randperm(len(x), generator=rng)[:k]], None, None
    while previous is None or not torch.equal(member, previous):
        previous = member
        member = squares(x, centres)[1]
        centres = torch.stack([x[member == i].mean(0) for i in range(k)])
    return centres


def at_rest(x, centres):
    """Every centre is the mean of the rows nearest to it."""
    member = squares(x, centres)[1]
    means = torch.stack([x[member == i].mean(0) for i in range(len(centres))])
    return torch.allclose(centres, means, atol=1e-5)


def test_k_means_of_pixels_against_lloyd():
    """How far a published number may move: k-means ends in one of many minima. Of five naive tries
    the best is as good within 1 %, and its clusters say as much of the digits within 0.05."""
    data = common.load_dataset("mnist")[0].take(slice(1000))
    x, rng = common.to_float(data.x).flatten(1), torch.Generator().manual_seed(0)
    naive = min((lloyd(x, 10, rng) for _ in range(5)), key=lambda centres: squares(x, centres)[0])
    for seed in (0, 1):
        found = scores.k_means(x, 10, seed)
        (ours, member), (theirs, naive_member) = squares(x, found), squares(x, naive)
        assert ours == pytest.approx(theirs, rel=0.01)
        assert naive_nmi(member, data.y) == pytest.approx(naive_nmi(naive_member, data.y), abs=0.05)
        assert at_rest(x, found)


def test_k_means_repeats_and_more_tries_are_better():
    torch.manual_seed(0)
    x = torch.rand(3000, 5)
    before = torch.get_rng_state()
    found = scores.k_means(x, 7)
    assert torch.allclose(found, scores.k_means(x, 7), atol=1e-5)
    assert not torch.allclose(found, scores.k_means(x, 7, seed=1), atol=1e-2)
    assert at_rest(x, found)
    losses = [squares(x, scores.k_means(x, 7, tries=tries))[0] for tries in (1, 2, 4, 8)]
    assert losses == sorted(losses, reverse=True) and losses[3] < losses[0]
    assert torch.equal(before, torch.get_rng_state())


class Far(torch.Tensor):
    """Like a tensor on a GPU it becomes an array by force or on the CPU alone."""

    def __array__(self, *words, **more):
        raise TypeError("can't convert a far tensor to numpy")

    def numpy(self, *, force=False):
        return self.cpu().numpy() if force else self.__array__()

    def cpu(self):
        return self.as_subclass(torch.Tensor)


def far(x):
    return x.cuda() if torch.cuda.is_available() else x.as_subclass(Far)


def test_scores_of_tensors_on_a_gpu():
    x, y = blobs(100, 8.0)
    z, labels = far(x), far(y)
    assert torch.equal(
        scores.nearest(z, z, 3, exclude_self=True).cpu(), scores.nearest(x, x, 4)[:, 1:]
    )
    assert scores.nn_error(z, labels, z, labels) == 0
    centres = scores.k_means(z, 3)
    assert centres.device == z.device and torch.equal(centres.cpu(), scores.k_means(x, 3))
    names = scores.match_clusters(-torch.cdist(z, centres), labels)
    assert names.device == z.device
    assert scores.cluster_error(-torch.cdist(z, centres), labels, names) == 0


@pytest.mark.parametrize("number", [math.inf, math.nan])
def test_neighbours_and_clusters_refuse_codes_that_are_not_finite(number):
    good, bad = torch.rand(20, 2), torch.rand(20, 2)
    bad[3, 1] = number
    for call in (
        lambda: scores.nearest(bad, good),
        lambda: scores.nearest(good, bad),
        lambda: scores.k_means(bad, 2),
    ):
        with pytest.raises(common.UserError, match="not finite"):
            call()


def test_parzen_against_a_naive_double_loop():
    torch.manual_seed(0)
    x, samples = torch.rand(5, 3).double(), torch.rand(11, 3).double()
    sigma = 0.3
    truth = []
    for p in x:
        density = 0.0
        for q in samples:
            squared = (p - q).square().sum().item()
            density += math.exp(-squared / 2 / sigma**2) / (2 * math.pi * sigma**2) ** 1.5 / 11
        truth.append(math.log(density))
    ours = scores.parzen_log_likelihood(x, samples, [0.1, sigma])
    assert ours.shape == (2, 5)
    assert torch.allclose(ours[1], torch.tensor(truth, dtype=torch.float64), rtol=1e-10)
    assert torch.allclose(scores.parzen_log_likelihood(x, samples, [sigma, 0.1]), ours.flip(0))


def test_parzen_in_blocks_of_float32():
    torch.manual_seed(0)
    x, samples = torch.rand(600, 784), torch.rand(4100, 784)  # several blocks of each
    ours = scores.parzen_log_likelihood(x, samples, [0.2])[0, [0, 550]]
    rows = x[[0, 550]].double()
    squared = (rows[:, None] - samples.double()[None]).square().sum(2)
    log_volume = 392 * math.log(2 * math.pi * 0.2**2)
    truth = (-squared / 2 / 0.2**2).logsumexp(1) - math.log(4100) - log_volume
    assert torch.allclose(ours.double(), truth, atol=0.02)


def test_parzen_of_a_gaussian_has_a_known_answer():
    """Samples of N(0, s^2) under a window of width h estimate N(0, s^2 + h^2)."""
    torch.manual_seed(0)
    x, samples = torch.randn(50, 2).double(), 1.5 * torch.randn(200_000, 2).double()
    truth = torch.distributions.Normal(0.0, math.hypot(1.5, 0.4)).log_prob(x).sum(1)
    assert torch.allclose(scores.parzen_log_likelihood(x, samples, [0.4])[0], truth, atol=0.05)


def test_judge_is_good_enough_to_judge():
    judge, test = scores.load_judge("mnist"), common.load_dataset("mnist")[1]
    test = test.take(slice(0, None, 3))
    right = (judge.classify(common.to_float(test.x)) == test.y).float().mean().item()
    assert right >= 0.993 and not judge.training
    assert (common.HERE / "data" / "judge-mnist.pt").stat().st_size < 1_000_000


def test_judge_of_colour_images():
    judge = scores.Judge(channels=3)
    maps = torch.rand(2, 64, 4, 4)
    assert torch.allclose(judge.net[12](maps), nn.AdaptiveAvgPool2d(3)(maps))
    assert judge(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def small_judge(train):
    return scores.Judge(1, 4)


@pytest.fixture
def few_images(monkeypatch, tmp_path):
    """A data set of four images, a judge that needs no training, a cache of the test's own."""
    data = common.Split(torch.zeros(4, 1, 28, 28, dtype=torch.uint8), torch.arange(4))
    monkeypatch.setattr(scores, "load_dataset", lambda *_: (data, data))
    monkeypatch.setattr(scores, "train_judge", small_judge)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return data


def kept(tmp_path):
    return sorted((tmp_path / "cache").rglob("judge-*"))


def test_whoever_trains_the_judge_goes_on_with_the_same_random_numbers(few_images, tmp_path):
    after = []
    for _ in range(2):  # makes the file; finds it
        torch.manual_seed(0)
        scores.load_judge("fashion", tmp_path)
        after.append(torch.rand(1).item())
    assert after[0] == after[1] and len(kept(tmp_path)) == 1


def test_a_run_is_not_mistaken_for_a_wish_for_a_new_judge():
    with pytest.raises(common.UserError, match="experiments.score RUN scores a run"):
        scores.main("runs/mathieu/mnist-seed0")


def test_a_judge_belongs_to_the_images_not_to_their_name(few_images, tmp_path):
    judges = [scores.load_judge(name, tmp_path) for name in ("mnist", "fashion", "grey")]
    assert len(kept(tmp_path)) == 1 and all(judge.net[-1].out_features == 4 for judge in judges)
    few_images.x[0] = 1
    scores.load_judge("mnist", tmp_path)
    assert len(kept(tmp_path)) == 2 and {path.parent.parent for path in kept(tmp_path)} == (
        {tmp_path / "cache"}
    )
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]  # nothing beside the images


def test_mnist_from_another_folder_has_the_committed_judge(few_images, tmp_path, monkeypatch):
    monkeypatch.setattr(scores, "is_mnist", lambda x, y: True)
    assert scores.load_judge("grey", tmp_path).net[-1].out_features == 10
    assert not kept(tmp_path)


def test_a_dry_run_writes_no_judge(few_images, tmp_path):
    scores.load_judge("fashion", tmp_path, quick=True)
    assert not kept(tmp_path)


def test_a_cache_that_cannot_be_written_leads_to_the_next(few_images, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert scores.cache_folder() == tmp_path / "home/.cache/adversarial-disentangling"
    monkeypatch.setenv("HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(scores.tempfile, "gettempdir", lambda: str(tmp_path / "cache"))
    with pytest.raises(common.UserError, match="name one in XDG_CACHE_HOME"):
        scores.load_judge("fashion", tmp_path)
    monkeypatch.delenv("XDG_CACHE_HOME")

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(scores.Path, "home", no_home)
    monkeypatch.setattr(scores.tempfile, "gettempdir", lambda: str(tmp_path))
    assert scores.cache_folder() == tmp_path / "adversarial-disentangling"


def test_a_judge_that_cannot_be_read_is_one_line(few_images, tmp_path):
    scores.load_judge("fashion", tmp_path)
    (path,) = kept(tmp_path)
    path.write_bytes(b"no judge")
    with pytest.raises(common.UserError, match="judge-.*.pt' is damaged"):
        scores.load_judge("fashion", tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(common.UserError, match="cannot read "):
        scores.load_judge("fashion", tmp_path)


def test_judge_accuracy_is_of_the_real_images():
    test = common.load_dataset("mnist")[1].take(slice(1000))
    judge = scores.load_judge("mnist")
    assert scores.judge_accuracy(judge, test) > 99
    wrong = common.Split(test.x, (test.y + (torch.arange(1000) < 400)) % 10)
    assert abs(scores.judge_accuracy(judge, wrong) - 59.7) < 1


def test_a_judge_of_few_images_is_better_than_neighbours():
    train, test = common.load_dataset("mnist")
    train, test = train.take(slice(80)), test.take(slice(250))
    torch.manual_seed(0)
    judge = scores.train_judge(train)
    assert not judge.training
    a, b = (common.to_float(part.x).flatten(1) for part in (test, train))
    nearest = (train.y[torch.cdist(a, b).argmin(1)] == test.y).float().mean().item() * 100
    assert scores.judge_accuracy(judge, test) > nearest + 10


@pytest.mark.parametrize(
    "script, words",
    [
        (mathieu, ""),
        (mathieu_pretrained_s, ""),
        (aae, "--task style"),
        (bigan, ""),
        (bigan_baselines, "--model gan"),
        (bigan_released, ""),
        (infogan, ""),
        (infogan_regular, ""),
    ],
)
def test_a_damaged_judge_is_told_before_the_training(script, words, monkeypatch):
    def load_judge(*_, **__):
        raise common.UserError("damaged")

    monkeypatch.setattr(scores, "load_judge", load_judge)
    more = ["--dry-run", "--device", "cpu", "--out", "run"]
    settings = command_line.parse(script.recipe, [*words.split(), *more])
    with pytest.raises(common.UserError, match="damaged"):
        script.main(settings)
    assert not Path("run").exists()
