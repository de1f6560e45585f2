"""The old run folder and figures, of experiments/before.py."""

import csv
import json
import math
import os
import random
import types

from experiments import before

import numpy as np
import pytest
import torch
from conftest import ROOT
from kills import same
from torch import nn


def test_own_random_numbers_disturb_nobody():
    draw = lambda: (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random())  # noqa: E731
    state = before._get_rng()
    first = draw()
    before._set_rng(state)
    inside = []
    for _ in range(2):
        with before.own_random_numbers(5):
            inside.append(torch.rand(3).tolist())
            draw()
    assert draw() == first and inside[0] == inside[1] != first[0]


def test_scatter_draws_each_class_in_its_place(monkeypatch, tmp_path):
    import matplotlib.figure

    kept = []
    save = matplotlib.figure.Figure.savefig
    monkeypatch.setattr(
        matplotlib.figure.Figure,
        "savefig",
        lambda self, path: kept.append(self) or save(self, path),
    )
    codes, y = torch.randn(30, 2), torch.arange(30) % 3
    curve, marks = torch.randn(5, 2), torch.randn(2, 2)
    before.figure_scatter(tmp_path / "x.png", codes, y, "title", [curve], marks)
    (axes,) = kept[0].axes
    for k in range(3):
        assert (
            np.allclose(axes.lines[k].get_xydata(), codes[y == k])
            and axes.lines[k].get_color() == f"C{k}"
            and axes.lines[k].get_label() == str(k)
        )
    assert (
        np.allclose(axes.lines[3].get_xydata(), curve)
        and np.allclose(axes.lines[4].get_xydata(), marks)
        and axes.get_aspect() == 1
    )


def test_tile_puts_images_where_they_belong():
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 1, 2, 3) / 10
    picture = before.tile(images, columns=3, gap=1, after_column=0)
    assert picture.shape == (2 * 2 + 1, 3 * 3 + 2 + 4, 3)
    assert (
        picture[0, 0, 0] == 0
        and picture[0, 3, 0] == 1
        and torch.isclose(picture[0, 8, 0], torch.tensor(0.1))
    )
    assert torch.isclose(picture[3, 8, 0], torch.tensor(0.4)) and torch.isclose(
        picture[4, 14, 2], torch.tensor(0.5)
    )


def test_tile_has_a_wider_gap_at_each_place_named():
    images = torch.zeros(8, 1, 2, 2)
    assert before.tile(images, 4).shape == (5, 11, 3) and before.tile(
        images, 4, after_column=[0, 2]
    ).shape == (5, 11 + 8, 3)
    white = (before.tile(images, 4, after_column=[0, 2], after_row=0) == 1).all(2)
    assert [k for k, column in enumerate(white.all(0).tolist()) if not column] == [
        0,
        1,
        7,
        8,
        10,
        11,
        17,
        18,
    ]
    assert [k for k, row in enumerate(white.all(1).tolist()) if not row] == [0, 1, 7, 8]


def test_batch_norm_is_settled_as_a_plain_average():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=0.3))
    net[1].running_mean.fill_(5.0)
    net[1].num_batches_tracked.fill_(10_000)  # a long training
    x = torch.randn(60, 3)
    before.settle_batch_norm(net, ((part,) for part in x.split(20)))
    h = net[0](x).detach()
    assert (
        torch.allclose(net[1].running_mean, h.mean(0), atol=1e-6)
        and not net.training
        and not net[1].training
        and net[1].momentum == 0.3
    )
    assert torch.allclose(
        net[1].running_var, torch.stack([part.var(0) for part in h.split(20)]).mean(0), atol=1e-6
    )
    before.settle_batch_norm(nn.Linear(3, 4), iter(()))  # nothing to do


def test_a_run_of_the_same_settings_is_found_a_finished_one_first():
    opt = options(out=None)
    assert before.find_run("toy", opt, "mnist") is None
    first = before.Run("toy", opt, "mnist").folder
    assert (
        before.find_run("toy", opt, "mnist") == first
        and before.find_run("toy", options(out=None, batch_size=5), "mnist") is None
    )
    second = before.Run("toy", opt, "mnist").folder
    (second / "metrics.json").write_text("{}")
    assert second != first and before.find_run("toy", opt, "mnist") == second
    (first / "config.json").write_text("{")  # damaged: passed over
    assert before.find_run("toy", opt, "mnist") == second


def options(**changes):
    values = dict(
        dataset="mnist",
        epochs=3,
        batch_size=4,
        seed=0,
        device="cpu",
        precision="fp32",
        data=None,
        out="run",
        resume=False,
        dry_run=False,
        validation=False,
    )
    return types.SimpleNamespace(**{**values, **changes})


def toy(opt, break_at=None, stop_at=None):
    """A small training with batches, noise and momentum: all that a resume must restore."""
    run = before.Run("toy", opt)
    net = nn.Linear(3, 1)
    optimiser = torch.optim.Adam(net.parameters(), 0.1)
    run.track(net=net, optimiser=optimiser)
    for epoch in run.epochs():
        for index in run.batches(torch.randperm(20), opt.batch_size):
            if stop_at == run.step:
                before.signal.raise_signal(before.signal.SIGINT)
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
    assert (
        config["script"] == "toy"
        and config["settings"]["epochs"] == 3
        and {"command", "device", "commit", "versions"} <= set(config)
    )
    rows = list(csv.DictReader(open(run.folder / "log.csv")))
    assert (
        [row["epoch"] for row in rows] == ["1", "2", "3"]
        and float(rows[0]["loss"]) > 0
        and float(rows[0]["other"]) == 0
    )
    metrics = json.loads((run.folder / "metrics.json").read_text())
    assert {"score", "seconds", "images_per_second", "epochs"} == set(metrics) and metrics[
        "epochs"
    ] == 3
    assert torch.load(run.folder / "checkpoint.pt", weights_only=True)["epoch"] == 3
    out, err = capsys.readouterr()
    assert "a score" in out and "1.0" in out and "into run" in err


@pytest.mark.parametrize("step", [0, 2, 5, 9, 14])
def test_stopped_run_goes_on_bit_for_bit(step):
    toy(options(out="whole"))
    with pytest.raises(KeyboardInterrupt):
        toy(options(out="part"), stop_at=step)
    torch.manual_seed(99)  # whatever happened in between
    toy(options(out="part", resume=True))
    whole, part = (
        torch.load(f"{name}/checkpoint.pt", weights_only=True) for name in ("whole", "part")
    )
    for key in ("states", "history", "epoch", "step", "rng", "images"):
        assert same(whole[key], part[key]), key
    assert open("whole/log.csv").read() == open("part/log.csv").read()


def test_a_run_stopped_twice_in_one_epoch(monkeypatch):
    toy(options(out="whole"))
    for stop_at, resume in ((6, False), (8, True)):
        with pytest.raises(KeyboardInterrupt):
            toy(options(out="part", resume=resume), stop_at=stop_at)
    toy(options(out="part", resume=True))
    whole, part = (
        torch.load(f"{name}/checkpoint.pt", weights_only=True) for name in ("whole", "part")
    )
    assert same(
        {k: whole[k] for k in ("states", "history", "rng", "step")},
        {k: part[k] for k in ("states", "history", "rng", "step")},
    )


def test_a_run_killed_before_its_first_checkpoint_begins_again():
    toy(options())
    before.Path("run/checkpoint.pt").rename("whole.pt")
    toy(options(resume=True))
    assert same(
        torch.load("whole.pt", weights_only=True)["states"],
        torch.load("run/checkpoint.pt", weights_only=True)["states"],
    )


def test_ctrl_c_ends_with_one_line(monkeypatch, capsys):
    def main(opt):
        raise KeyboardInterrupt

    monkeypatch.setattr(before.sys, "argv", ["toy.py"])
    with pytest.raises(SystemExit) as stop:
        before.run_main(main, before.Parser("toy"))
    assert stop.value.code == 130 and "--resume" in capsys.readouterr().err


def test_a_write_that_fails_leaves_the_old_file(monkeypatch):
    before.write_atomic("file", "old")

    def fail(*_):
        raise OSError(28, "disk full")

    monkeypatch.setattr(before.os, "replace", fail)
    with pytest.raises(OSError):
        before.write_atomic("file", "new")
    assert open("file").read() == "old" and not before.Path("file.part").exists()


def test_a_full_disk_keeps_the_last_checkpoint_and_says_so(monkeypatch):
    run = before.Run("toy", options(epochs=2, out="run"))
    next(iter(run.epochs()))
    run.save()
    kept = open("run/checkpoint.pt", "rb").read()

    def fail(*_):
        raise OSError(28, "disk full")

    monkeypatch.setattr(before.os, "fsync", fail)
    with pytest.raises(before.UserError, match=r"checkpoint.pt' \(disk full\).*--resume"):
        run.save()
    assert open("run/checkpoint.pt", "rb").read() == kept and not list(
        before.Path("run").glob("*.part")
    )


def test_a_folder_that_was_killed_in_its_first_write_is_empty():
    before.Path("run").mkdir()
    before.Path("run/config.json.part").write_text("{")
    before.Run("toy", options(out="run"))
    assert before.read_config("run")["script"] == "toy"


def test_a_run_of_an_older_version_is_told_from_one_of_now():
    toy(options(newer=None))
    config = before.read_config("run")
    del config["settings"][
        "newer"
    ]  # a setting that is None today, and that the old run does not know
    before.Path("run/config.json").write_text(json.dumps(config))
    with pytest.raises(
        before.UserError, match=r"other settings \(newer is None there, None here\)"
    ):
        toy(options(newer=None, resume=True))
    for broken in (
        lambda: options().absent,
        lambda: {}["enc"],
        lambda: nn.Linear(2, 1).load_state_dict(nn.Linear(3, 1).state_dict()),
    ):
        with (
            pytest.raises(before.UserError, match="'run' is of another version"),
            before.same_version("run"),
        ):
            broken()


def test_idle_flags_are_refused_unless_they_ask_for_nothing():
    given = types.SimpleNamespace(rate=0.1, weight=0.0, switch=True, absent=None, steps=2)
    for idle, names in (
        (False, ("rate", "switch")),
        (True, ("weight", "absent")),
        (True, ("steps",)),
    ):
        before.refuse_idle(given, [(idle, names, "here")], {"steps": 2})
    for name in ("rate", "switch", "steps"):
        with pytest.raises(before.UserError, match=f"--{name} would do nothing here"):
            before.refuse_idle(given, [(True, ("absent", name), "here")])


def test_folders_and_files_one_cannot_read_are_one_line(monkeypatch):
    toy(options())
    refuse = lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))  # noqa: E731
    for name, words in (
        ("iterdir", "cannot look into 'run' .Permission denied.: choose another --out"),
        ("read_text", "cannot read 'run/config.json' .Permission denied.: choose"),
    ):
        with monkeypatch.context() as patch, pytest.raises(before.UserError, match=words):
            patch.setattr(before.Path, name, refuse)
            toy(options())
    with (
        monkeypatch.context() as patch,
        pytest.raises(
            before.UserError, match="cannot read 'run/checkpoint.pt' .Permission denied."
        ),
    ):
        patch.setattr(before.Path, "open", refuse)
        before.read_checkpoint("run", "toy")
    if not torch.cuda.is_available():
        with pytest.raises(before.UserError, match="no cuda device"):
            before.read_checkpoint("run", "toy", "cuda")
    with pytest.raises(before.UserError, match="cannot write 'absent/x.png'.*--resume"):
        before.figure_curves(
            before.Path("absent/x.png"), [{"epoch": 1, "a": 1.0}], [("a", ("a",), "nats")], "A"
        )
    for settings in ([], None, "x"):
        before.Path("run/config.json").write_text(
            json.dumps({"script": "toy", "settings": settings})
        )
        with pytest.raises(before.UserError, match="'run/config.json' is damaged"):
            toy(options(resume=True))


def test_other_data_are_another_run():
    toy(options())
    with pytest.raises(
        before.UserError, match=r"other settings \(data is None there, elsewhere here\)"
    ):
        toy(options(data="elsewhere", resume=True))


@pytest.mark.parametrize("n, parts", [(1001, 3), (3, 1), (20_000, 40), (20_400, 40)])
def test_settling_leaves_no_image_alone(n, parts):
    sizes = [
        len(part) for part in before.settling_parts(torch.zeros(n, 1, 2, 2, dtype=torch.uint8))
    ]
    assert (
        len(sizes) == parts
        and sum(sizes) == min(n, 20_000)
        and max(sizes) - min(sizes) <= 1
        and max(sizes) <= 500
        and min(sizes) > 1
    )


def test_a_path_one_cannot_look_at_is_one_line():
    class Closed:
        def exists(self):
            raise PermissionError(13, "Permission denied")

    with pytest.raises(
        before.UserError, match=r"cannot look at '.*' \(Permission denied\): choose another --data"
    ):
        before.exists(Closed(), "--data")


def test_log_holds_means_over_the_epoch():
    opt = options(epochs=1, batch_size=5)
    run = before.Run("toy", opt)
    for epoch in run.epochs():
        for index in run.batches(torch.arange(20), 5):
            run.log(first=index.float().mean(), last=index.max())
    (row,) = csv.DictReader(open("run/log.csv"))
    assert float(row["first"]) == 9.5 and float(row["last"]) == (4 + 9 + 14 + 19) / 4


def test_broken_weights_are_not_saved():
    opt = options(epochs=2)
    run, net = before.Run("toy", opt), nn.Linear(2, 1)
    run.track(net=net)
    with pytest.raises(before.UserError, match="weights of 'net' is not finite|weights of 'net'"):
        for epoch in run.epochs():
            for index in run.batches(torch.arange(8), 4):
                run.log(loss=torch.zeros(()))
            if epoch == 1:
                net.weight.data[0, 0] = math.inf
    assert torch.load("run/checkpoint.pt", weights_only=True)["epoch"] == 1


def test_nan_is_refused_and_the_last_good_checkpoint_kept():
    with pytest.raises(before.UserError, match=r"loss 'loss' is not finite at step 8"):
        toy(options(), break_at=7)  # steps are counted from 1 in words
    state = torch.load("run/checkpoint.pt", weights_only=True)
    assert state["epoch"] == 1 and all(
        torch.isfinite(t).all() for t in state["states"]["net"].values()
    )


def test_finished_run_is_not_overwritten_and_default_folders_count_up():
    toy(options())
    with pytest.raises(before.UserError, match="holds this run already"):
        toy(options())
    with pytest.raises(before.UserError, match=r"other settings \(seed is 0 there, 1 here\)"):
        toy(options(seed=1))
    first, second = toy(options(out=None))[0], toy(options(out=None))[0]
    assert (str(first.folder), str(second.folder)) == (
        "runs/toy/mnist-seed0",
        "runs/toy/mnist-seed0-2",
    )
    assert toy(options(out=None, resume=True))[0].folder == second.folder


def test_a_name_taken_at_the_same_moment_leads_to_the_next(monkeypatch):
    real, first = before.Run._choose_folder, []

    def choose(run, settings):  # another process makes the folder right after it was chosen
        folder = real(run, settings)
        if not first:
            first.append(folder)
            folder.mkdir(parents=True)
        return folder

    monkeypatch.setattr(before.Run, "_choose_folder", choose)
    run, _ = toy(options(out=None))
    assert (
        str(run.folder) == "runs/toy/mnist-seed0-2"
        and first[0].name == "mnist-seed0"
        and not list(first[0].iterdir())
    )


def test_going_on_by_other_code_is_said(capsys):
    toy(options())
    toy(options(resume=True))
    assert "has changed" not in capsys.readouterr().err
    config = json.loads(before.Path("run/config.json").read_text())
    before.Path("run/config.json").write_text(json.dumps({**config, "code": "other"}))
    toy(options(resume=True))
    assert (
        "toy.py or experiments/before.py has changed since this run began"
        in capsys.readouterr().err
    )
    before.Path("run/checkpoint.pt").unlink()  # begun anew, so by the code of now
    toy(options(resume=True))
    assert json.loads(before.Path("run/config.json").read_text())["code"] == config["code"]


def test_damaged_checkpoints_are_told_apart():
    toy(options())
    content = open("run/checkpoint.pt", "rb").read()
    for broken in (b"", content[:100], content[: len(content) // 2], b"not a checkpoint"):
        open("run/checkpoint.pt", "wb").write(broken)
        with pytest.raises(before.UserError, match="damaged"):
            toy(options(resume=True))
    open("run/checkpoint.pt", "wb").write(content)
    with pytest.raises(before.UserError, match="written by toy.py, not by other.py"):
        before.read_checkpoint("run", "other")


def test_scripts_import_common_before_torch():
    """It sets what torch reads at import, for Apple's GPUs."""
    assert os.environ["PYTORCH_ENABLE_MPS_FALLBACK"]
    first = {"common": "os.environ.setdefault", "experiments/before": "from common import"}
    first.update(dict.fromkeys(("aae", "infogan"), "from experiments import before"))
    for file, words in first.items():
        text = (ROOT / f"{file}.py").read_text()
        assert 0 < text.index(f"\n{words}") < text.index("\nimport torch"), file
