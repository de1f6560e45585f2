"""Data, pairing, run folder, scores and figures of common.py."""
import csv
import gzip
import itertools
import json
import math
import os
import pickle
import random
import struct
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

import common
from conftest import ROOT
from kills import same

# ------------------------------------------------------------------------------------------------------------ data


def test_mnist_is_embedded_and_whole():
    train, test = common.load_dataset("mnist")
    assert train.x.shape == (60000, 1, 28, 28) and test.x.shape == (10000, 1, 28, 28) and train.x.dtype == torch.uint8
    assert torch.bincount(test.y).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]      # LeCun's test set
    assert torch.bincount(train.y).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert abs(common.to_float(train.x).mean().item() - 0.1307) < 1e-4


def test_validation_is_held_out_of_training():
    whole, test = common.load_dataset("mnist")
    train, held = common.load_dataset("mnist", validation=True)
    assert len(train.y) == 50000 and len(held.y) == 10000
    assert torch.equal(torch.cat([train.x, held.x]), whole.x) and not torch.equal(held.x, test.x)


def write_idx(path, array):
    with gzip.open(str(path) + ".gz", "wb") as packed, open(path, "wb") as plain:
        content = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
        packed.write(content)
        plain.write(content)


@pytest.mark.parametrize("name, folder", [("fashion", "FashionMNIST"), ("kmnist", "KMNIST")])
def test_torchvision_idx_files(tmp_path, name, folder):
    raw = tmp_path / folder / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    images = {part: rng.integers(0, 256, (n, 28, 28), dtype=np.uint8) for part, n in (("train", 12), ("t10k", 7))}
    for part, x in images.items():
        write_idx(raw / f"{part}-images-idx3-ubyte", x)
        write_idx(raw / f"{part}-labels-idx1-ubyte", (np.arange(len(x)) % 10).astype(np.uint8))
    train, test = common.load_dataset(name, tmp_path)
    assert torch.equal(train.x[:, 0], torch.from_numpy(images["train"])) and test.x.shape == (7, 1, 28, 28)
    assert train.y.tolist() == [*range(10), 0, 1]


def test_svhn(tmp_path, monkeypatch):
    """Its files are Matlab's, which torchvision reads with scipy: without it one line that says so, with it labels and layout as torchvision has them."""
    import torchvision.datasets
    monkeypatch.setattr(common.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(common.UserError, match="pip install scipy"):
        common.load_dataset("svhn", tmp_path)
    monkeypatch.setattr(common.importlib.util, "find_spec", lambda name: name)
    images = {"train": np.random.default_rng(0).integers(0, 256, (5, 3, 32, 32), np.uint8), "test": np.zeros((2, 3, 32, 32), np.uint8)}

    class SVHN:
        def __init__(self, root, split, download):
            self.data, self.labels = images[split], np.arange(len(images[split])).astype(np.int64)
    monkeypatch.setattr(torchvision.datasets, "SVHN", SVHN)
    train, test = common.load_dataset("svhn", tmp_path)
    assert torch.equal(train.x, torch.from_numpy(images["train"])) and train.y.tolist() == [0, 1, 2, 3, 4] and test.x.shape == (2, 3, 32, 32)


def test_torchvision_cifar_files(tmp_path, monkeypatch):
    import torchvision.datasets
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]:
        (folder / name).write_bytes(pickle.dumps({"data": rng.integers(0, 256, (4, 3072), dtype=np.uint8), "labels": [3, 1, 4, 1]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    train, test = common.load_dataset("cifar10", tmp_path)
    stored = pickle.loads((folder / "test_batch").read_bytes())["data"]
    assert train.x.shape == (20, 3, 32, 32) and test.y.tolist() == [3, 1, 4, 1]
    assert torch.equal(test.x, torch.from_numpy(stored).view(4, 3, 32, 32))


def test_failed_download_is_one_line_that_names_the_folder(tmp_path, monkeypatch):
    import torchvision.datasets

    def refuse(self):
        raise OSError("network is unreachable")
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "download", refuse)
    with pytest.raises(common.UserError) as caught:
        common.load_dataset("fashion", tmp_path)
    words = str(caught.value)
    assert str(tmp_path / "FashionMNIST/raw") in words and "use mnist" in words and "unreachable" in words and "\n" not in words


def test_sprites_are_a_pure_function_with_disjoint_identities():
    parts = {name: common.sprites(name, images_per_identity=2) for name in common.IDENTITIES}
    again = common.sprites("test", images_per_identity=2)
    assert torch.equal(parts["test"].x, again.x) and torch.equal(parts["test"].pose, again.pose)
    identities = {name: {tuple(a) for a in part.attributes.tolist()} for name, part in parts.items()}
    assert {name: len(i) for name, i in identities.items()} == common.IDENTITIES
    assert len(set.union(*identities.values())) == 672
    attributes = parts["train"].attributes
    assert (attributes.amax(0) + 1).tolist() == list(common.ATTRIBUTE_SIZES)
    for label in (0, 7, 499):                             # a class is an identity
        assert len(attributes[parts["train"].y == label].unique(dim=0)) == 1
    assert not torch.equal(parts["train"].pose[:100], parts["test"].pose[:100])
    train = parts["train"]
    for k in (0, 99, 100, 999):                           # drawn with others or alone
        assert torch.equal(common.draw_sprites(train.attributes[k:k + 1], train.pose[k:k + 1])[0], train.x[k])


def test_every_factor_of_a_sprite_is_visible():
    rng = torch.Generator().manual_seed(0)
    pose = torch.rand(20, 6, generator=rng) * 1.6 - 0.8
    base = torch.stack([torch.randint(0, n, (20,), generator=rng) for n in common.ATTRIBUTE_SIZES], 1)
    picture = common.draw_sprites(base, pose).float()
    for k, size in enumerate(common.ATTRIBUTE_SIZES):
        changed = base.clone()
        changed[:, k] = (changed[:, k] + 1) % size
        difference = (common.draw_sprites(changed, pose).float() - picture).abs().amax(1) > 40
        assert difference.flatten(1).sum(1).min() >= 3, common.ATTRIBUTES[k]
    for k in range(6):
        moved = pose.clone()
        moved[:, k] += 0.5
        assert ((common.draw_sprites(base, moved).float() - picture).abs().flatten(1).sum(1) > 200).all(), common.POSE[k]


# --------------------------------------------------------------------------------------------------------- pairing


def test_pairs_are_two_different_images_of_one_class_and_cover_all():
    torch.manual_seed(0)
    y = torch.tensor([0] * 7 + [1] * 2 + [3] * 10 + [4] * 3)[torch.randperm(22)]
    for _ in range(50):
        pairs = common.pair_same_class(y)
        assert pairs.shape == (4 + 1 + 5 + 2, 2)
        assert (y[pairs[:, 0]] == y[pairs[:, 1]]).all() and (pairs[:, 0] != pairs[:, 1]).all()
        times = torch.bincount(pairs.flatten(), minlength=22)
        assert times.min() == 1 and times.sum() == 24     # only the odd classes repeat one image each


def test_partners_are_uniform():
    torch.manual_seed(1)
    y = torch.zeros(6, dtype=torch.long)
    table = torch.zeros(6, 6)
    for _ in range(3000):
        for a, b in common.pair_same_class(y).tolist():
            table[a, b] += 1
            table[b, a] += 1
    off = table[~torch.eye(6, dtype=torch.bool)] / 3000
    assert (off - 1 / 5).abs().max() < 0.03 and table.diagonal().sum() == 0


def test_a_class_with_one_image_is_named():
    with pytest.raises(common.UserError, match="class 2 has a single image"):
        common.pair_same_class(torch.tensor([0, 0, 2, 1, 1]))


# ---------------------------------------------------------------------------------------------------------- scores


def blobs(n, gap, seed=0):
    rng = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 3, (n,), generator=rng)
    return torch.randn(n, 4, generator=rng) + gap * torch.eye(3, 4)[y], y


def test_probe_reads_what_is_there_and_nothing_else():
    train, test = blobs(3000, 8.), blobs(2000, 8., seed=1)
    assert common.probe(*train, *test, epochs=3).item() < 0.5
    train, test = blobs(3000, 0.), blobs(2000, 0., seed=1)
    assert 62 < common.probe(*train, *test, epochs=3).item() < 71      # chance is 66.7


def test_probe_is_nonlinear_where_it_should_be():
    x = torch.rand(4000, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    y = (x.prod(1) > 0).long()                            # exclusive or
    assert common.probe(x[:3000], y[:3000], x[3000:], y[3000:]).item() < 5
    assert common.probe(x[:3000], y[:3000], x[3000:], y[3000:], hidden=0).item() > 35


def test_probe_on_samples_meets_the_bayes_error():
    y = torch.arange(20000) % 2                           # codes at -1 and 1 with noise 1: error is Phi(-1) = 15.87 %
    codes, std = (y * 2. - 1)[:, None], torch.ones(20000, 1)
    half = slice(0, 10000), slice(10000, None)
    error = common.probe(codes[half[0]], y[half[0]], codes[half[1]], y[half[1]], noise=(std[half[0]], std[half[1]]), epochs=5).item()
    assert abs(error - 15.87) < 1.2
    assert common.probe(codes[half[0]], y[half[0]], codes[half[1]], y[half[1]], epochs=2).item() == 0


def test_probe_of_attributes_and_of_targets():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 3, generator=rng)
    y = torch.stack([(x[:, 0] > 0).long(), torch.randint(0, 4, (4000,), generator=rng)], 1)
    errors = common.probe(x[:3000], y[:3000], x[3000:], y[3000:], epochs=10)
    assert errors.shape == (2,) and errors[0] < 4 and 68 < errors[1] < 82
    targets = torch.stack([x[:, 0] * x[:, 1], torch.randn(4000, generator=rng)], 1)
    r2 = common.probe(x[:3000], targets[:3000], x[3000:], targets[3000:])
    assert r2[0] > 0.9 and abs(r2[1]) < 0.1


def test_probe_of_a_handful():
    train, test = blobs(6, 8.), blobs(100, 8., seed=1)
    assert 0 <= common.probe(*train, *test, epochs=1).item() <= 100


def test_probe_bears_a_dimension_that_is_nearly_always_zero():
    rng = torch.Generator().manual_seed(0)
    target, extra = torch.rand(6000, 1, generator=rng) * 2 - 1, torch.zeros(6000, 1)
    extra[7], extra[5000:5020] = 0.01, 1.                 # in training's deviations: up to thousands
    x = torch.cat([target, extra], 1)
    assert common.probe(x[:5000], target[:5000], x[5000:], target[5000:]).item() > 0.9


def test_probe_stops_before_it_learns_characters_by_heart():
    """Where groups are given: their offsets cannot be known of other groups, as the held-out groups show and held-out rows do not."""
    rng = torch.Generator().manual_seed(0)
    group = torch.arange(9000) % 300
    name, offset = torch.randn(300, 20, generator=rng), torch.randn(300, 1, generator=rng)
    seen = torch.randn(9000, 1, generator=rng)
    x, target = torch.cat([seen, name[group]], 1), seen + offset[group]
    train, test = group < 200, group >= 200
    by_row, by_group = (common.probe(x[train], target[train], x[test], target[test], groups=groups).item() for groups in (None, group[train]))
    assert by_group > by_row + 0.1


def test_own_random_numbers_disturb_nobody():
    draw = lambda: (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random())  # noqa: E731
    state = common._get_rng()
    before = draw()
    common._set_rng(state)
    inside = []
    for _ in range(2):
        with common.own_random_numbers(5):
            inside.append(torch.rand(3).tolist())
            draw()
    assert draw() == before and inside[0] == inside[1] != before[0]


def test_imports_do_nothing(tmp_path):
    done = subprocess.run([sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); import common, mathieu, aae, bigan, infogan"], cwd=tmp_path,
                          capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "") and not list(tmp_path.iterdir())


def test_scripts_import_common_before_torch():
    """It sets what torch reads at import, for Apple's GPUs."""
    assert os.environ["PYTORCH_ENABLE_MPS_FALLBACK"]
    for script in ("mathieu", "aae", "bigan", "infogan"):
        text = (ROOT / f"{script}.py").read_text()
        assert 0 < text.index("\nimport common") < text.index("\nimport torch"), script
    text = (ROOT / "common.py").read_text()
    assert text.index("PYTORCH_ENABLE_MPS_FALLBACK") < text.index("\nimport torch")


def test_probe_repeats_and_leaves_the_generator_alone():
    train, test = blobs(1000, 2.), blobs(500, 2., seed=1)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = common.probe(*train, *test, epochs=2)
    assert torch.equal(first, common.probe(*train, *test, epochs=2)) and torch.equal(before, torch.get_rng_state())


def test_chance_error():
    train, test = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 2, 2])
    assert common.chance_error(train, test).tolist() == [80.0]


def test_nearest_against_brute_force():
    rng = torch.Generator().manual_seed(0)
    a, b = torch.randn(30, 5, generator=rng), torch.randn(40, 5, generator=rng)
    found = common.nearest(a, b, 3)
    for i in range(30):
        order = sorted(range(40), key=lambda j: sum((a[i, d] - b[j, d]).item() ** 2 for d in range(5)))
        assert found[i].tolist() == order[:3]
    many = torch.randn(1500, 3, generator=rng)            # more than one block
    itself = torch.arange(1500)[:, None]
    assert (common.nearest(many, many, 2, exclude_self=True) != itself).all() and torch.equal(common.nearest(many, many, 1), itself)


def test_clusters_are_named_by_both_rules():
    torch.manual_seed(0)
    scores, y = torch.randn(60, 7), torch.randint(0, 4, (60,))
    for rule in ("exemplar", "majority"):
        names = []
        for k in range(7):
            members = [n for n in range(60) if scores[n].argmax() == k]
            surest = max(range(60), key=lambda n: scores[n, k].item())
            votes = [sum(y[n] == c for n in members) for c in range(4)]
            names.append(votes.index(max(votes)) if rule == "majority" and members else y[surest].item())
        assert common.name_clusters(scores, y, rule).tolist() == names
        wrong = sum(names[scores[n].argmax()] != y[n] for n in range(60))
        assert math.isclose(common.cluster_error(scores, y, torch.tensor(names)), 100 * wrong / 60, rel_tol=1e-5)


def test_the_two_rules_differ_where_the_surest_example_is_an_exception():
    scores = torch.tensor([[.9, .1], [.8, .2], [.99, .01], [.1, .9]]).log()
    y = torch.tensor([3, 3, 5, 1])
    assert common.name_clusters(scores, y, "exemplar").tolist() == [5, 1] and common.name_clusters(scores, y, "majority").tolist() == [3, 1]
    assert common.cluster_error(scores, y, torch.tensor([5, 1])) == 50 and common.cluster_error(scores, y, torch.tensor([3, 1])) == 25
    empty = torch.tensor([[.9, .1], [.8, .2]]).log()      # nobody falls into cluster 1: its exemplar names it, for what it is worth
    assert common.name_clusters(empty, torch.tensor([2, 4]), "majority").tolist()[1] == 4


@pytest.mark.parametrize("k, classes", [(4, 4), (3, 5), (6, 4), (1, 3)])
def test_matching_against_every_permutation(k, classes):
    torch.manual_seed(k)
    for _ in range(5):
        scores, y = torch.randn(80, k), torch.randint(classes, (80,))
        y[:classes] = torch.arange(classes)
        names = common.match_clusters(scores, y)
        member = scores.argmax(1)
        padded = [*range(classes), *[-1] * max(0, k - 1)]
        best = max(sum(int(member[n]) == j and int(y[n]) == c for n in range(80) for j, c in enumerate(choice)) for choice in set(itertools.permutations(padded, k)))
        assert int((names[member] == y).sum()) == best
        used = names[names >= 0].tolist()
        assert len(used) == len(set(used)) == min(k, classes)                                 # no class twice, none left out that could be had
        assert common.cluster_error(scores, y, names) == pytest.approx(100 * (80 - best) / 80)


def test_assignment_of_negative_and_equal_costs():
    torch.manual_seed(0)
    for n in (1, 2, 5, 6):
        for cost in (torch.randn(n, n), torch.randint(-2, 3, (n, n)).float(), torch.zeros(n, n)):
            column = common.assign(cost)
            best = min(sum(cost[i, p[i]].item() for i in range(n)) for p in itertools.permutations(range(n)))
            assert sorted(column.tolist()) == list(range(n)) and cost[range(n), column].sum().item() == pytest.approx(best, abs=1e-5)


def test_a_head_that_always_answers_one_category_scores_as_it_deserves():
    y = torch.arange(10).repeat(30)
    collapsed = torch.nn.functional.one_hot(torch.full((300,), 3), 10).float()
    assert common.cluster_error(collapsed, y, common.match_clusters(collapsed, y)) == pytest.approx(90)
    assert common.cluster_error(collapsed, y, common.name_clusters(collapsed, y, "majority")) == pytest.approx(90)
    assert common.normalized_mutual_information(collapsed.argmax(1), y) == pytest.approx(0, abs=1e-9)
    merged = torch.nn.functional.one_hot(torch.where(y == 9, 4, y), 10).float()               # 4 and 9 in one
    assert common.cluster_error(merged, y, common.match_clusters(merged, y)) == pytest.approx(10)


def test_normalized_mutual_information_against_its_definition():
    torch.manual_seed(0)
    a, b = torch.randint(4, (300,)), torch.randint(3, (300,))
    b = torch.where(torch.rand(300) < .5, a.clamp(max=2), b)
    p = [[((a == i) & (b == j)).double().mean().item() for j in range(3)] for i in range(4)]
    pa, pb = [sum(row) for row in p], [sum(row[j] for row in p) for j in range(3)]
    shared = sum(p[i][j] * math.log(p[i][j] / pa[i] / pb[j]) for i in range(4) for j in range(3) if p[i][j])
    h = lambda q: -sum(v * math.log(v) for v in q if v)  # noqa: E731
    assert common.normalized_mutual_information(a, b) == pytest.approx(2 * shared / (h(pa) + h(pb)))
    assert common.normalized_mutual_information(a, (a + 2) % 4) == pytest.approx(1)           # names do not count
    assert common.normalized_mutual_information(a * 0, a * 0) == 1


def test_k_means_finds_blobs_and_ends_where_no_point_moves():
    torch.manual_seed(0)
    centres = torch.tensor([[0., 0.], [10., 0.], [0., 10.], [10., 10.]])
    y = torch.arange(4).repeat(50)
    x = centres[y] + torch.randn(200, 2)
    found = common.k_means(x, 4)
    order = torch.cdist(centres, found).argmin(1)
    assert sorted(order.tolist()) == [0, 1, 2, 3] and torch.allclose(found[order], torch.stack([x[y == k].mean(0) for k in range(4)]), atol=1e-4)
    x = torch.rand(500, 5)
    found = common.k_means(x, 7)
    member = torch.cdist(x, found).argmin(1)
    assert torch.allclose(found, torch.stack([x[member == k].mean(0) for k in range(7)]), atol=1e-5)       # a fixed point of Lloyd's algorithm
    loss = [torch.cdist(x, common.k_means(x, 7, tries=n)).min(1).values.square().sum().item() for n in (1, 2, 4, 8)]
    assert loss == sorted(loss, reverse=True) and loss[3] < loss[0]          # more tries are never worse
    assert torch.equal(found, common.k_means(x, 7)) and not torch.equal(found, common.k_means(x, 7, seed=1))


def test_parzen_against_a_naive_double_loop():
    torch.manual_seed(0)
    x, samples, sigma = torch.rand(5, 3, dtype=torch.float64), torch.rand(11, 3, dtype=torch.float64), 0.3
    truth = [math.log(sum(math.exp(-sum((a - b) ** 2 for a, b in zip(p, q)) / 2 / sigma ** 2) / (2 * math.pi * sigma ** 2) ** 1.5
                          for q in samples.tolist()) / 11) for p in x.tolist()]
    ours = common.parzen_log_likelihood(x, samples, [0.1, sigma])
    assert ours.shape == (2, 5) and torch.allclose(ours[1], torch.tensor(truth, dtype=torch.float64), rtol=1e-10)
    assert torch.allclose(common.parzen_log_likelihood(x, samples, [sigma, 0.1]), ours.flip(0))
    big, many = torch.rand(1500, 784), torch.rand(10_500, 784)                                       # more than a block of each, in float32
    ours = common.parzen_log_likelihood(big, many, [0.2])[0, [0, 1200]]
    rows = big[[0, 1200]].double()
    distance = (rows[:, None] - many.double()[None]).square().sum(2)
    truth = (-distance / 2 / 0.04).logsumexp(1) - math.log(10_500) - 392 * math.log(2 * math.pi * 0.04)
    assert torch.allclose(ours.double(), truth, atol=0.02)


def test_parzen_of_a_gaussian_has_a_known_answer():
    """Samples of N(0, s^2) under a window of width h estimate N(0, s^2 + h^2)."""
    torch.manual_seed(0)
    x, samples = torch.randn(50, 2).double(), 1.5 * torch.randn(200_000, 2).double()
    truth = torch.distributions.Normal(0., math.hypot(1.5, 0.4)).log_prob(x).sum(1)
    assert torch.allclose(common.parzen_log_likelihood(x, samples, [0.4])[0], truth, atol=0.05)


def test_judge_is_good_enough_to_judge():
    judge, test = common.load_judge("mnist"), common.load_dataset("mnist")[1]
    right = (judge.classify(common.to_float(test.x)) == test.y).float().mean().item()
    assert right >= 0.993
    maps = torch.rand(2, 64, 4, 4)                        # of a colour image
    assert torch.allclose(common.Judge(3).net[12](maps), nn.AdaptiveAvgPool2d(3)(maps)) and common.Judge(3)(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    assert (common.HERE / "data" / "judge-mnist.pt").stat().st_size < 1_000_000


def test_whoever_trains_the_judge_goes_on_with_the_same_random_numbers(monkeypatch, tmp_path):
    data = common.Split(torch.zeros(4, 1, 28, 28, dtype=torch.uint8), torch.arange(4))
    monkeypatch.setattr(common, "load_dataset", lambda *_: (data, data))
    monkeypatch.setattr(common, "train_judge", lambda train: common.Judge(1, 4))
    after = []
    for _ in range(2):                                    # makes the file; finds it
        torch.manual_seed(0)
        common.load_judge("fashion", tmp_path)
        after.append(torch.rand(1).item())
    assert after[0] == after[1] and (tmp_path / "judge-fashion.pt").exists()


# --------------------------------------------------------------------------------------------------------- figures


def test_scatter_draws_each_class_in_its_place(monkeypatch, tmp_path):
    import matplotlib.figure
    kept = []
    save = matplotlib.figure.Figure.savefig
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", lambda self, path: kept.append(self) or save(self, path))
    codes, y = torch.randn(30, 2), torch.arange(30) % 3
    curve, marks = torch.randn(5, 2), torch.randn(2, 2)
    common.figure_scatter(tmp_path / "x.png", codes, y, "title", [curve], marks)
    axes, = kept[0].axes
    for k in range(3):
        assert np.allclose(axes.lines[k].get_xydata(), codes[y == k]) and axes.lines[k].get_color() == f"C{k}" and axes.lines[k].get_label() == str(k)
    assert np.allclose(axes.lines[3].get_xydata(), curve) and np.allclose(axes.lines[4].get_xydata(), marks) and axes.get_aspect() == 1


def test_tile_puts_images_where_they_belong():
    images = torch.arange(6.).view(6, 1, 1, 1).expand(6, 1, 2, 3) / 10
    picture = common.tile(images, columns=3, gap=1, after_column=0)
    assert picture.shape == (2 * 2 + 1, 3 * 3 + 2 + 4, 3)
    assert picture[0, 0, 0] == 0 and picture[0, 3, 0] == 1 and torch.isclose(picture[0, 8, 0], torch.tensor(.1))
    assert torch.isclose(picture[3, 8, 0], torch.tensor(.4)) and torch.isclose(picture[4, 14, 2], torch.tensor(.5))


def test_tile_has_a_wider_gap_at_each_place_named():
    images = torch.zeros(8, 1, 2, 2)
    assert common.tile(images, 4).shape == (5, 11, 3) and common.tile(images, 4, after_column=[0, 2]).shape == (5, 11 + 8, 3)
    white = (common.tile(images, 4, after_column=[0, 2], after_row=0) == 1).all(2)
    assert [k for k, column in enumerate(white.all(0).tolist()) if not column] == [0, 1, 7, 8, 10, 11, 17, 18]
    assert [k for k, row in enumerate(white.all(1).tolist()) if not row] == [0, 1, 7, 8]


def test_batch_norm_is_settled_as_a_plain_average():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=.3))
    net[1].running_mean.fill_(5.)
    net[1].num_batches_tracked.fill_(10_000)              # a long training
    x = torch.randn(60, 3)
    common.settle_batch_norm(net, ((part,) for part in x.split(20)))
    h = net[0](x).detach()
    assert torch.allclose(net[1].running_mean, h.mean(0), atol=1e-6) and not net.training and not net[1].training and net[1].momentum == .3
    assert torch.allclose(net[1].running_var, torch.stack([part.var(0) for part in h.split(20)]).mean(0), atol=1e-6)
    common.settle_batch_norm(nn.Linear(3, 4), iter(()))   # nothing to do


def test_a_run_of_the_same_settings_is_found_a_finished_one_first():
    opt = options(out=None)
    assert common.find_run("toy", opt, "mnist") is None
    first = common.Run("toy", opt, "mnist").folder
    assert common.find_run("toy", opt, "mnist") == first and common.find_run("toy", options(out=None, batch_size=5), "mnist") is None
    second = common.Run("toy", opt, "mnist").folder
    (second / "metrics.json").write_text("{}")
    assert second != first and common.find_run("toy", opt, "mnist") == second
    (first / "config.json").write_text("{")               # damaged: passed over
    assert common.find_run("toy", opt, "mnist") == second


# ------------------------------------------------------------------------------------------------------ run folder


def options(**changes):
    values = dict(dataset="mnist", epochs=3, batch_size=4, seed=0, device="cpu", precision="fp32", data=None, out="run", resume=False,
                  dry_run=False, validation=False)
    return types.SimpleNamespace(**{**values, **changes})


def toy(opt, break_at=None, stop_at=None):
    """A small training on a Run, with batches, noise and momentum: all that a resume must restore."""
    run = common.Run("toy", opt)
    net = nn.Linear(3, 1)
    optimiser = torch.optim.Adam(net.parameters(), 0.1)
    run.track(net=net, optimiser=optimiser)
    for epoch in run.epochs():
        for index in run.batches(torch.randperm(20), opt.batch_size):
            if stop_at == run.step:
                common.signal.raise_signal(common.signal.SIGINT)
            x = torch.randn(len(index), 3) + index[:, None] + float(np.random.rand())
            loss = net(x).square().mean() * (math.nan if run.step == break_at else 1)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            run.log(loss=loss, other=loss * 0)
    run.finish({"score": net.weight.sum().item()}, [("a score", "score", "1.0", "chance 0")])
    return run, net


def test_run_folder_holds_its_contract(capsys):
    run, net = toy(options())
    config = json.loads((run.folder / "config.json").read_text())
    assert config["script"] == "toy" and config["settings"]["epochs"] == 3 and {"command", "device", "commit", "versions"} <= set(config)
    rows = list(csv.DictReader(open(run.folder / "log.csv")))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"] and float(rows[0]["loss"]) > 0 and float(rows[0]["other"]) == 0
    metrics = json.loads((run.folder / "metrics.json").read_text())
    assert {"score", "seconds", "images_per_second", "epochs"} == set(metrics) and metrics["epochs"] == 3
    assert torch.load(run.folder / "checkpoint.pt", weights_only=True)["epoch"] == 3
    out, err = capsys.readouterr()
    assert "a score" in out and "1.0" in out and "into run" in err


@pytest.mark.parametrize("step", [0, 2, 5, 9, 14])
def test_stopped_run_goes_on_bit_for_bit(step):
    toy(options(out="whole"))
    with pytest.raises(KeyboardInterrupt):
        toy(options(out="part"), stop_at=step)
    torch.manual_seed(99)                                 # whatever happened in between
    toy(options(out="part", resume=True))
    whole, part = (torch.load(f"{name}/checkpoint.pt", weights_only=True) for name in ("whole", "part"))
    for key in ("states", "history", "epoch", "step", "rng", "images"):
        assert same(whole[key], part[key]), key
    assert open("whole/log.csv").read() == open("part/log.csv").read()


def test_a_run_stopped_twice_in_one_epoch(monkeypatch):
    toy(options(out="whole"))
    for stop_at, resume in ((6, False), (8, True)):
        with pytest.raises(KeyboardInterrupt):
            toy(options(out="part", resume=resume), stop_at=stop_at)
    toy(options(out="part", resume=True))
    whole, part = (torch.load(f"{name}/checkpoint.pt", weights_only=True) for name in ("whole", "part"))
    assert same({k: whole[k] for k in ("states", "history", "rng", "step")}, {k: part[k] for k in ("states", "history", "rng", "step")})


def test_a_run_killed_before_its_first_checkpoint_begins_again():
    toy(options())
    common.Path("run/checkpoint.pt").rename("whole.pt")
    toy(options(resume=True))
    assert same(torch.load("whole.pt", weights_only=True)["states"], torch.load("run/checkpoint.pt", weights_only=True)["states"])


def test_ctrl_c_ends_with_one_line(monkeypatch, capsys):
    def main(opt):
        raise KeyboardInterrupt
    monkeypatch.setattr(common.sys, "argv", ["toy.py"])
    with pytest.raises(SystemExit) as stop:
        common.run_main(main, common.Parser("toy"))
    assert stop.value.code == 130 and "--resume" in capsys.readouterr().err


def test_a_write_that_fails_leaves_the_old_file(monkeypatch):
    common.write_atomic("file", "old")

    def fail(*_):
        raise OSError(28, "disk full")
    monkeypatch.setattr(common.os, "replace", fail)
    with pytest.raises(OSError):
        common.write_atomic("file", "new")
    assert open("file").read() == "old" and not common.Path("file.part").exists()


def test_a_full_disk_keeps_the_last_checkpoint_and_says_so(monkeypatch):
    run = common.Run("toy", options(epochs=2, out="run"))
    next(iter(run.epochs()))
    run.save()
    before = open("run/checkpoint.pt", "rb").read()

    def fail(*_):
        raise OSError(28, "disk full")
    monkeypatch.setattr(common.os, "fsync", fail)
    with pytest.raises(common.UserError, match=r"checkpoint.pt' \(disk full\).*--resume"):
        run.save()
    assert open("run/checkpoint.pt", "rb").read() == before and not list(common.Path("run").glob("*.part"))


def test_a_folder_that_was_killed_in_its_first_write_is_empty():
    common.Path("run").mkdir()
    common.Path("run/config.json.part").write_text("{")
    common.Run("toy", options(out="run"))
    assert common.read_config("run")["script"] == "toy"


def test_a_run_of_an_older_version_is_told_from_one_of_now():
    toy(options(newer=None))
    config = common.read_config("run")
    del config["settings"]["newer"]                       # a setting that is None today, and that the old run does not know
    common.Path("run/config.json").write_text(json.dumps(config))
    with pytest.raises(common.UserError, match=r"other settings \(newer is None there, None here\)"):
        toy(options(newer=None, resume=True))
    for broken in (lambda: options().absent, lambda: {}["enc"], lambda: nn.Linear(2, 1).load_state_dict(nn.Linear(3, 1).state_dict())):
        with pytest.raises(common.UserError, match="'run' is of another version"), common.same_version("run"):
            broken()


def test_idle_flags_are_refused_unless_they_ask_for_nothing():
    given = types.SimpleNamespace(rate=.1, weight=0., switch=True, absent=None, steps=2)
    for idle, names in ((False, ("rate", "switch")), (True, ("weight", "absent")), (True, ("steps",))):
        common.refuse_idle(given, [(idle, names, "here")], {"steps": 2})
    for name in ("rate", "switch", "steps"):
        with pytest.raises(common.UserError, match=f"--{name} would do nothing here"):
            common.refuse_idle(given, [(True, ("absent", name), "here")])


def test_folders_and_files_one_cannot_read_are_one_line(monkeypatch):
    toy(options())
    refuse = lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))  # noqa: E731
    for name, words in (("iterdir", "cannot look into 'run' .Permission denied.: choose another --out"), ("read_text", "cannot read 'run/config.json' .Permission denied.: choose")):
        with monkeypatch.context() as patch, pytest.raises(common.UserError, match=words):
            patch.setattr(common.Path, name, refuse)
            toy(options())
    with monkeypatch.context() as patch, pytest.raises(common.UserError, match="cannot read 'run/checkpoint.pt' .Permission denied."):
        patch.setattr(common.Path, "open", refuse)
        common.read_checkpoint("run", "toy")
    if not torch.cuda.is_available():
        with pytest.raises(common.UserError, match="no cuda device"):
            common.read_checkpoint("run", "toy", "cuda")
    with pytest.raises(common.UserError, match="cannot write 'absent/x.png'.*--resume"):
        common.figure_curves(common.Path("absent/x.png"), [{"epoch": 1, "a": 1.}], [("a", ("a",), "nats")], "A")
    for settings in ([], None, "x"):
        common.Path("run/config.json").write_text(json.dumps({"script": "toy", "settings": settings}))
        with pytest.raises(common.UserError, match="'run/config.json' is damaged"):
            toy(options(resume=True))


def test_other_data_are_another_run():
    toy(options())
    with pytest.raises(common.UserError, match=r"other settings \(data is None there, elsewhere here\)"):
        toy(options(data="elsewhere", resume=True))


@pytest.mark.parametrize("n, parts", [(1001, 3), (3, 1), (20_000, 40), (20_400, 40)])
def test_settling_leaves_no_image_alone(n, parts):
    sizes = [len(part) for part in common.settling_parts(torch.zeros(n, 1, 2, 2, dtype=torch.uint8))]
    assert len(sizes) == parts and sum(sizes) == min(n, 20_000) and max(sizes) - min(sizes) <= 1 and max(sizes) <= 500 and min(sizes) > 1


def test_a_path_one_cannot_look_at_is_one_line():
    class Closed:
        def exists(self):
            raise PermissionError(13, "Permission denied")
    with pytest.raises(common.UserError, match=r"cannot look at '.*' \(Permission denied\): choose another --data"):
        common.exists(Closed(), "--data")


def test_log_holds_means_over_the_epoch():
    opt = options(epochs=1, batch_size=5)
    run = common.Run("toy", opt)
    for epoch in run.epochs():
        for index in run.batches(torch.arange(20), 5):
            run.log(first=index.float().mean(), last=index.max())
    row, = csv.DictReader(open("run/log.csv"))
    assert float(row["first"]) == 9.5 and float(row["last"]) == (4 + 9 + 14 + 19) / 4


def test_broken_weights_are_not_saved():
    opt = options(epochs=2)
    run, net = common.Run("toy", opt), nn.Linear(2, 1)
    run.track(net=net)
    with pytest.raises(common.UserError, match="weights of 'net' is not finite|weights of 'net'"):
        for epoch in run.epochs():
            for index in run.batches(torch.arange(8), 4):
                run.log(loss=torch.zeros(()))
            if epoch == 1:
                net.weight.data[0, 0] = math.inf
    assert torch.load("run/checkpoint.pt", weights_only=True)["epoch"] == 1


def test_nan_is_refused_and_the_last_good_checkpoint_kept():
    with pytest.raises(common.UserError, match=r"loss 'loss' is not finite at step 8"):
        toy(options(), break_at=7)                        # steps are counted from 1 in words
    state = torch.load("run/checkpoint.pt", weights_only=True)
    assert state["epoch"] == 1 and all(torch.isfinite(t).all() for t in state["states"]["net"].values())


def test_finished_run_is_not_overwritten_and_default_folders_count_up():
    toy(options())
    with pytest.raises(common.UserError, match="holds this run already"):
        toy(options())
    with pytest.raises(common.UserError, match=r"other settings \(seed is 0 there, 1 here\)"):
        toy(options(seed=1))
    first, second = toy(options(out=None))[0], toy(options(out=None))[0]
    assert (str(first.folder), str(second.folder)) == ("runs/toy/mnist-seed0", "runs/toy/mnist-seed0-2")
    assert toy(options(out=None, resume=True))[0].folder == second.folder


def test_a_name_taken_at_the_same_moment_leads_to_the_next(monkeypatch):
    real, first = common.Run._choose_folder, []

    def choose(run, settings):                            # another process makes the folder right after it was chosen
        folder = real(run, settings)
        if not first:
            first.append(folder)
            folder.mkdir(parents=True)
        return folder
    monkeypatch.setattr(common.Run, "_choose_folder", choose)
    run, _ = toy(options(out=None))
    assert str(run.folder) == "runs/toy/mnist-seed0-2" and first[0].name == "mnist-seed0" and not list(first[0].iterdir())


def test_going_on_by_other_code_is_said(capsys):
    toy(options())
    toy(options(resume=True))
    assert "has changed" not in capsys.readouterr().err
    config = json.loads(common.Path("run/config.json").read_text())
    common.Path("run/config.json").write_text(json.dumps({**config, "code": "other"}))
    toy(options(resume=True))
    assert "toy.py or common.py has changed since this run began" in capsys.readouterr().err
    common.Path("run/checkpoint.pt").unlink()             # begun anew, so by the code of now
    toy(options(resume=True))
    assert json.loads(common.Path("run/config.json").read_text())["code"] == config["code"]


def test_damaged_checkpoints_are_told_apart():
    toy(options())
    content = open("run/checkpoint.pt", "rb").read()
    for broken in (b"", content[:100], content[:len(content) // 2], b"not a checkpoint"):
        open("run/checkpoint.pt", "wb").write(broken)
        with pytest.raises(common.UserError, match="damaged"):
            toy(options(resume=True))
    open("run/checkpoint.pt", "wb").write(content)
    with pytest.raises(common.UserError, match="written by toy.py, not by other.py"):
        common.read_checkpoint("run", "other")


def test_precision_follows_the_hardware(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    assert common.choose_precision("auto", torch.device("cpu")) == "bf16"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True}, raising=False)
    assert common.choose_precision("auto", torch.device("cpu")) == "fp32"
    assert common.choose_precision("bf16", torch.device("cpu")) == "bf16"
    assert common.choose_precision("auto", torch.device("cuda")) == "fp32"
