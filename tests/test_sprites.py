"""The characters that data/sprites.py draws."""

import inspect

import common
import data.sprites
from data import files
from data.sprites import ATTRIBUTE_SIZES, ATTRIBUTES, IDENTITIES, POSE, draw_sprites, sprites

import pytest
import torch
from conftest import ROOT


def test_sprites_are_a_pure_function_of_their_arguments():
    first, again = sprites("test", 2), sprites("test", 2)
    other = sprites("test", 2, seed=1)
    for a, b, c in zip(first, again, other):
        assert torch.equal(a, b) and a.shape == c.shape
    assert not torch.equal(first[0], other[0])


def test_parts_have_disjoint_identities_and_poses_of_their_own():
    identities, poses = {}, {}
    for part, count in IDENTITIES.items():
        x, y, attributes, pose = sprites(part, images_per_identity=2)
        assert x.shape == (2 * count, 3, 32, 32) and x.dtype == torch.uint8
        assert y.tolist() == [k // 2 for k in range(2 * count)]
        assert pose.min() >= -1 and pose.max() <= 1
        assert torch.equal(attributes[::2], attributes[1::2])  # a class is an identity
        identities[part], poses[part] = {tuple(a) for a in attributes.tolist()}, pose
        assert len(identities[part]) == count
        assert (attributes.amax(0) < torch.tensor(ATTRIBUTE_SIZES)).all()
    assert len(set.union(*identities.values())) == 672
    assert not torch.equal(poses["train"][:100], poses["test"][:100])


def test_the_data_set_is_the_one_of_the_results():
    x, _, attributes, pose = sprites("test")
    assert attributes[0].tolist() == [3, 0, 1, 2, 0, 1, 0]
    assert pose[0, :3].tolist() == pytest.approx([-0.714990, 0.848897, -0.365547], abs=1e-6)
    colour = x.double().mean((0, 2, 3)).tolist()
    assert colour == pytest.approx([212.421, 208.383, 200.334], abs=0.002)


def test_load_dataset_wraps_them(monkeypatch):
    """Two parts, each in full: 40 images of a character, of which two are drawn here."""
    count = inspect.signature(sprites).parameters["images_per_identity"].default
    assert (count, IDENTITIES["train"], IDENTITIES["test"]) == (40, 500, 100)
    monkeypatch.setattr(data.sprites, "sprites", lambda part: sprites(part, 2))  # and no other word
    for validation, names in ((False, ("train", "test")), (True, ("train", "validation"))):
        found = files.read("sprites", ROOT / "data", validation)
        for split, name in zip(found, names):
            assert all(torch.equal(a, b) for a, b in zip(common.Split(*split), sprites(name, 2)))


def test_a_sprite_looks_the_same_drawn_with_others_or_alone():
    x, _, attributes, pose = sprites("validation", images_per_identity=3)
    for k in (0, 99, 100, 215):
        assert torch.equal(draw_sprites(attributes[k : k + 1], pose[k : k + 1])[0], x[k])


def test_every_factor_of_a_sprite_is_visible():
    rng = torch.Generator().manual_seed(0)
    pose = torch.rand(20, 6, generator=rng) * 1.6 - 0.8
    base = torch.stack([torch.randint(0, n, (20,), generator=rng) for n in ATTRIBUTE_SIZES], 1)
    picture = draw_sprites(base, pose).float()
    for k, size in enumerate(ATTRIBUTE_SIZES):
        changed = base.clone()
        changed[:, k] = (changed[:, k] + 1) % size
        difference = (draw_sprites(changed, pose).float() - picture).abs().amax(1) > 40
        assert difference.flatten(1).sum(1).min() >= 3, ATTRIBUTES[k]
    for k in range(6):
        moved = pose.clone()
        moved[:, k] += 0.5
        difference = (draw_sprites(base, moved).float() - picture).abs()
        assert (difference.flatten(1).sum(1) > 200).all(), POSE[k]
