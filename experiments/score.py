"""Scores a finished run again and draws its figures. The model is not trained again.

python -m experiments.score runs/mathieu/mnist-seed0
"""

import importlib
import json
import sys
from pathlib import Path

import common
from experiments import command_line, machine, run_folder


def main(*words):
    """Prints the table; the new scores replace those of the same name in metrics.json."""
    if len(words) not in (1, 2):
        raise common.UserError("name a run folder, and if you like a device: score RUN cpu")
    folder, device = Path(words[0]), words[1] if len(words) == 2 else "auto"
    name = run_folder.read_config(folder)["script"]
    beside = (common.HERE / f"{name}.py").exists()
    try:
        script = importlib.import_module(name if beside else f"experiments.{name}")
    except ModuleNotFoundError:
        raise run_folder.of_another_version(folder)
    settings = command_line.parse(script.recipe, ["--resume", str(folder), "--device", device])
    device = machine.choose_device(settings.device)
    if hasattr(script, "load"):
        nets = script.load(folder, device)
    else:
        nets = common.load(folder, script.recipe, script.build, device)
    data, test = getattr(script, "load_data", common.load_data)(settings)
    old = run_folder.read_json(folder / "metrics.json")  # a damaged file should fail now
    rng = run_folder.read_checkpoint(folder)["rng"]  # as after training: some scores are of samples
    machine.set_rng(rng, device)
    metrics, table = script.evaluate(nets, data, test, settings, folder)
    common.write_atomic(folder / "metrics.json", json.dumps({**old, **metrics}, indent=1).encode())
    command_line.print_table(table, metrics)


if __name__ == "__main__":
    command_line.exit_on_mistake(lambda: main(*sys.argv[1:]), "the same command begins it anew")
