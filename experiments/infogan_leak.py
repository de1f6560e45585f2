"""How much of a good result does K = 10 give away? A table of finished runs (not in the paper).

    python infogan.py --categories 20              # and so on
    python -m experiments.infogan_regular
    python -m experiments.infogan_leak runs/infogan/mnist-seed0 runs/infogan/mnist-seed0-2

K = 10 with equal shares tells the category how many digits there are, and that they are about
equally frequent: so much of the labels is known. The rows k0 to k50 of experiments/reproduce.py
have the commands. With K = 0 and in the regular GAN nothing is warped, so part of their distance
from the others is the warps.
"""

import json
import sys
from pathlib import Path

import common
from experiments import command_line, run_folder

COLUMNS = {
    "cluster_error": "one to one",
    "cluster_error_majority": "majority",
    "kmeans_cluster_error_majority": "k-means",
    "nmi": "nmi",
    "kmeans_nmi": "k-means",
    "probe_error_trunk_100": "trunk, 100",
    "probe_error_trunk_1000": "1,000",
    "probe_error_trunk_all": "all",
    "probe_error_q_hidden_100": "Q, 100",
    "probe_error_q_hidden_1000": "1,000",
    "probe_error_q_hidden_all": "all",
}
LEGEND = """errors in %; one to one, majority: of the categories as a classifier, and of k-means on
pixels with as many clusters; nmi: normalised mutual information with the digit; trunk, Q: a linear
probe on the trunk and on Q's hidden layer, with 100, 1,000 and all labels"""


def name_of(settings):
    """Of a run: its K, and its recipe where that is not ours. The regular GAN has none."""
    words = {"ours": "", "paper": " (paper)", None: " (regular)", "baseline": " (regular)"}[
        settings["recipe"]
    ]
    return f"K = {settings['categories']}{words}"


def read(folders):
    """{words: metrics} of run folders, in order of K; then the untrained trunk and the pixels,
    whose probes stand in the trunk's columns."""
    found, beside = [], {}
    for folder in folders:
        config, path = run_folder.read_config(folder), Path(folder) / "metrics.json"
        if config["script"] not in ("infogan", "infogan_regular") or not path.exists():
            raise common.UserError(f"'{folder}' is no finished run of InfoGAN")
        metrics = json.loads(path.read_text())
        found.append((config["settings"]["categories"], name_of(config["settings"]), metrics))
        for words in ("untrained", "pixels"):
            beside[words] = {}
            for name, value in metrics.items():
                if name.startswith(f"probe_error_{words}_"):
                    beside[words][name.replace(words, "trunk")] = value
    ordered = sorted(found, key=lambda line: line[0])
    return [(words, metrics) for _, words, metrics in ordered] + list(beside.items())


def lines(found):
    """Lines of the table of what `read` gives."""
    rows = [["", *COLUMNS.values()]]
    for words, metrics in found:
        cells = [f"{metrics[name]:.2f}" if name in metrics else "-" for name in COLUMNS]
        rows.append([words, *cells])
    return [f"{row[0]:18}" + "".join(f"{cell:>12}" for cell in row[1:]) for row in rows]


def main(folders):
    if not folders:
        raise common.UserError("name run folders of InfoGAN")
    table = lines(read(folders))
    print(LEGEND, *table, sep="\n")


if __name__ == "__main__":
    command_line.exit_on_mistake(lambda: main(sys.argv[1:]))
