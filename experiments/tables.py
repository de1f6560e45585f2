"""The tables of README.md and results/*.md, made from what is on file in results/.

A page has a table between the markers <!-- NAME --> and <!-- /NAME -->, NAME a key of PARTS.
`python -m experiments.reproduce --pages` writes all of them anew. A cell of ours is the mean over
the seeds on file, ± the sample standard deviation. A dash: no entry has that score.
"""

import importlib
import re
import statistics
from collections import Counter

from common import write_atomic
from experiments import reproduce
from experiments.reproduce import ROWS, command, compare, machine, table, threads

PAGES = [
    "README.md",
    *(f"results/{name}.md" for name in "mathieu aae bigan infogan machines".split()),
]
DASH = "–"


# ---- Cells ---------------------------------------------------------------------------------------
def ours(row, metric, digits=1):
    """'mean ± deviation' over the seeds on file, or the one value, or a dash. '(1 of 5)': the
    others have no such score."""
    values = [e["metrics"][metric] for e in reproduce.read(row) if metric in e["metrics"]]
    if not values:
        return DASH
    text = f"{statistics.mean(values):.{digits}f}"
    text += f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return text + (f" ({len(values)} of {seeds(row)})" if len(values) < seeds(row) else "")


def seeds(row):
    return len(reproduce.read(row))


def counted(row):
    return f"{seeds(row)} seed{'' if seeds(row) == 1 else 's'}"


def fastest(row, *kinds):
    """(minutes, machine, threads) of the fastest machine that ran a row, or None. kinds: "GPU",
    "bf16", "fp32". Minutes are the median of its runs, since some stood still for a while. Repeats
    count, too."""
    took = {}
    for e in reproduce.read(row) + reproduce.read(f"again/{row}"):
        kind = e["precision"] if threads(e) else "GPU"
        if kind in kinds:
            took.setdefault((machine(e), threads(e)), []).append(e["seconds"] / 60)
    median = {key: statistics.median(values) for key, values in took.items()}
    best = min(median, key=median.get, default=None)
    return (median[best], *best) if best else None


def minutes_on(row, *kinds):
    """'9' (at least 1), '17*' (on one core, beside another run) or, on a GPU, '2.2'; a dash where
    none ran."""
    found = fastest(row, *kinds)
    if not found:
        return DASH
    took, _, count = found
    if not count:
        return f"{took:.1f}"
    return f"{max(took, 1):.0f}{'*' if count == 1 else ''}"


def minutes(row):
    """'9 min, 2.2 on a GPU': on the fastest processor, and on a GPU where one ran the row."""
    cpu, gpu = minutes_on(row, "bf16", "fp32"), minutes_on(row, "GPU")
    if cpu == DASH:
        return DASH if gpu == DASH else f"{gpu} min on a GPU"
    return f"{cpu} min" if gpu == DASH else f"{cpu} min, {gpu} on a GPU"


def commands(rows):
    """A list of the commands of rows, {row: words, or ""}, with their seeds and minutes."""
    lines = []
    for row, words in rows.items():
        done = f"{counted(row)}, {minutes(row)}" if seeds(row) else "no finished run"
        lines.append(f"- {words}{': ' if words else ''}`{command(row)}`: {done}")
    return "\n".join(lines)


def rows_by_scores(first, rows, scores):
    """A table with a row of results/ a line. rows: {row: (words, *published)}; scores: (head,
    metric, digits); first: heads of the words and the published numbers."""
    lines = []
    for row, (words, *published) in rows.items():
        if seeds(row):
            lines.append([words, *published, *(ours(row, m, digits) for _, m, digits in scores)])
    return table([*first, *(head for head, _, _ in scores)], lines)


def scores_by_rows(first, rows, scores):
    """A table with a score a line. rows: {row: head}; scores: (words, metric, digits, *published);
    first: heads of the words and the published numbers."""
    heads = [f"{words} ({counted(row)})" for row, words in rows.items()]
    lines = []
    for words, metric, digits, *published in scores:
        lines.append([words, *published, *(ours(row, metric, digits) for row in rows)])
    return table([*first, *heads], lines)


# ---- README.md -----------------------------------------------------------------------------------
PLAIN = {"mathieu": "mathieu/mnist", "aae": "aae/prior-gaussian"}
PLAIN |= {"bigan": "bigan/mnist", "infogan": "infogan/mnist"}

ACROSS = [  # method and what it is told, row, scores: words, metric, digits, the paper's, public
    (
        "**Mathieu**, class labels",
        "mathieu/mnist",
        ("swaps that show the digit of s, %", "swap_accuracy", 1, "figure", "96.0"),
        ("error of a probe on a sampled z, % (guessing: 90)", "z_sample_error", 1, DASH, "36.9"),
        ("error of a probe on the mean of z, %", "z_mean_error", 1, DASH, "16.3"),
    ),
    (
        "**Mathieu**, sprites of characters never seen",
        "mathieu/sprites",
        ("error of a probe on s, %", "s_error", 1, "5.2", DASH),
        ("error of a probe on the mean of z, %", "z_mean_error", 1, "59.8", DASH),
        ("error of guessing, % (paper: on its own sprites)", "guess_error", 1, "60.7", DASH),
    ),
    (
        "**AAE**, 100 labels, training images warped",
        "aae/semi-100",
        ("test error, %", "test_error", 2, "1.90", "about 4"),
    ),
    (
        "**AAE**, 100 labels, not warped",
        "aae/semi-100-no-warps",
        ("test error, %", "test_error", 2, "1.90", "about 4"),
    ),
    (
        "**AAE**, 100 labels, the paper's terms",
        "aae/semi-100-paper-terms",
        ("test error, %", "test_error", 2, "1.90", "about 4"),
    ),
    (
        "**AAE**, no labels, 30 clusters, images warped",
        "aae/cluster-30",
        ("test error, %", "cluster_error", 2, "4.10 ± 1.13", DASH),
    ),
    (
        "**AAE**, style, told the label",
        "aae/style",
        ("images that show the digit asked for, %", "style_accuracy", 1, "figure", DASH),
    ),
    (
        "**BiGAN**, no labels",
        "bigan/mnist",
        (
            "error of nearest neighbours in E's hidden layer, %",
            "nn_error_features",
            2,
            "2.61",
            DASH,
        ),
        ("G(E(x)) that show x's digit, %", "reconstruction_digit", 1, "figure", DASH),
    ),
    (
        "**BiGAN**, the authors' recipe, 400 epochs",
        "bigan/released",
        ("the same error, %", "nn_error_features", 2, "2.61", DASH),
    ),
    (
        "**BiGAN**, the same, held-out training images",
        "bigan/released-held-out",
        ("the same error, % (authors' log: 2.65)", "nn_error_features", 2, "2.61", DASH),
    ),
    (
        "**InfoGAN**, no labels, but told that there are ten kinds",
        "infogan/mnist",
        ("error of the categories as a classifier, %", "cluster_error", 2, "5", "about 5"),
        ("slant that one code explains, R²", "slant_r2", 2, "figure", DASH),
    ),
]


def across_table():
    lines = []
    for told, row, *scores in ACROSS:
        took = f"{minutes_on(row, 'bf16', 'fp32')} min"
        lines.append([f"{told}: `{command(row)}`, {took}", "", "", ""])
        for words, metric, digits, paper, public in scores:
            values = paper, public, f"{ours(row, metric, digits)} ({seeds(row)})"
            lines.append([words, *(value.replace(" ", "\u00a0") for value in values)])  # no breaks
    return table(["score", "paper", "public", "ours (seeds)"], lines)


def kept_megabytes(script):
    """Size of the checkpoint of a finished run: weights, and bigan.py's running averages."""
    module = importlib.import_module(script)
    tensors = module.build(module.recipe()).state_dict().values()
    copies = 2 if script == "bigan" else 1
    return copies * sum(t.numel() * t.element_size() for t in tensors) / 1e6


def minutes_table():
    kinds, lines = ("fp32", "bf16"), []
    for script, row in PLAIN.items():
        cells = [minutes_on(row, kind) for kind in kinds]
        lines.append([f"`{script}.py`", *cells, f"{kept_megabytes(script):.0f}"])
    return table(["minutes", "older CPU, fp32", "newer CPU, bf16", "MB"], lines)


# ---- results/mathieu.md --------------------------------------------------------------------------
TERMS = "the paper's terms"


def mnist_table():
    rows = {"mathieu/mnist-paper-terms": TERMS, "mathieu/mnist": "ours"}
    scores = [
        ("swap: digit of the s donor, %", "swap_accuracy", 2, "96.0", "88.8"),
        ("swap: digit of the z donor, %", "swap_z_leak", 2, "0.8", "6.7"),
        ("prior: digit of the s donor, %", "prior_accuracy", 2, "25", "94.4"),
        ("probe on s, error in %", "s_error", 2, "1.7", "1.2"),
        ("probe on z, sampled, error in %", "z_sample_error", 1, "36.9", "3.7"),
        ("probe on z, mean, error in %", "z_mean_error", 1, "16.3", "3.3"),
        ("(always the commonest label, %)", "chance_error", 1, DASH, DASH),
        ("squared error, mean of z", "reconstruction_mse", 4, DASH, DASH),
        ("squared error, sampled z", "reconstruction_mse_sample", 4, DASH, "0.012"),
        ("KL, nats", "kl_nats", 1, "19", "34.7"),
        ("neighbours by s of the same digit, %", "retrieval_s", 1, DASH, DASH),
        ("neighbours by z of the same digit, %", "retrieval_z", 1, DASH, DASH),
    ]
    first = ["MNIST, test set"]
    mine = scores_by_rows(first, rows, [score[:3] for score in scores])
    lines = [[words, checkpoint, recipe] for words, _, _, checkpoint, recipe in scores]
    lines = [line for line in lines if line[1:] != [DASH, DASH]]
    others = table(["other code", "public checkpoint", "released recipe, nearly"], lines)
    return f"{mine}\n\n{others}\n\n{commands(rows)}"


def sprites_table():
    rows = {"mathieu/sprites-paper-terms": TERMS, "mathieu/sprites": "ours"}
    scores = [
        ("probe on s, error in %", "s_error", 2, "5.2"),
        ("probe on z, sampled, error in %", "z_sample_error", 2, "59.8"),
        ("probe on z, mean, error in %", "z_mean_error", 2, "59.8"),
        ("(guessing, %)", "guess_error", 2, "60.7"),
        ("(always the commonest label, %)", "chance_error", 2, DASH),
        ("pose read from z, R²", "pose_r2_z", 3, DASH),
        ("pose read from s, R²", "pose_r2_s", 3, DASH),
        ("swap against the true picture, squared error", "swap_mse", 4, DASH),
        ("the same, if s were ignored", "swap_mse_ignore_s", 4, DASH),
        ("the same, if z were ignored", "swap_mse_ignore_z", 4, DASH),
        ("squared error, mean of z", "reconstruction_mse", 4, DASH),
    ]
    first = ["sprites, unseen identities", "paper"]
    return f"{scores_by_rows(first, rows, scores)}\n\n{commands(rows)}"


def ablation_table():
    names = {
        "short": "the whole",
        "short-paper-terms": "the paper's terms alone",
        "no-code-discriminator": "no code discriminator",
        "no-dead-zone": "no dead zone",
        "prior-std-1": "prior samples from N(0, I)",
        "constant-kl": "constant weight of the KL",
        "no-prior-term": "no prior samples",
        "no-adversary": "no adversary",
        "weak-kl": "weak KL, as released",
        "weak-kl-no-adversary": "weak KL, no adversary",
        "pretrained-s": "s pre-trained, frozen",
    }
    rows = {f"mathieu/mnist-{name}": (words,) for name, words in names.items()}
    pictures = [
        ("digit of the s donor", "swap_accuracy", 1),
        ("of the z donor", "swap_z_leak", 1),
        ("prior: of the s donor", "prior_accuracy", 1),
    ]
    codes = [
        ("probe on s", "s_error", 2),
        ("on z, sampled", "z_sample_error", 1),
        ("on z, mean", "z_mean_error", 1),
    ]
    errors = rows_by_scores(["errors in %"], rows, codes)
    square = [("squared error", "reconstruction_mse", 4), ("KL, nats", "kl_nats", 1)]
    parts = [rows_by_scores(["swaps show, %"], rows, pictures), errors]
    parts.append(rows_by_scores(["reconstruction"], rows, square))
    parts.append(commands({row: words for row, (words,) in rows.items()}))
    return "\n\n".join(parts)


# ---- results/aae.md ------------------------------------------------------------------------------
def aae_scores(*scores):
    """A table of scores (words, row's name, metric, digits, paper, public), and its commands."""
    lines, rows = [], {}
    for words, name, metric, digits, *published in scores:
        if seeds(f"aae/{name}"):
            lines.append([words, *published, ours(f"aae/{name}", metric, digits)])
        rows[f"aae/{name}"] = ""
    listed = commands(rows)
    return f"{table(['MNIST, test set', 'paper', 'public', 'ours'], lines)}\n\n{listed}"


def prior_table():
    told, component = "codes told from the prior, % (50 at best)", "code in its label's part, %"
    placed = "component_accuracy", 1, "figure", DASH
    return aae_scores(
        (f"Fig. 2: {told}", "prior-gaussian", "code_test", 1, "figure", DASH),
        ("a VAE's codes", "prior-gaussian-kl", "code_test", 1, "figure", DASH),
        ("a WAE-MMD's codes", "prior-gaussian-mmd", "code_test", 1, DASH, DASH),
        ("squared error", "prior-gaussian", "reconstruction_mse", 4, DASH, DASH),
        ("of the VAE", "prior-gaussian-kl", "reconstruction_mse", 4, DASH, DASH),
        ("of the WAE-MMD", "prior-gaussian-mmd", "reconstruction_mse", 4, DASH, DASH),
        (f"Fig. 4a, mixture: {component}", "prior-mixture-10000", *placed),
        (f"Fig. 4c, swiss roll: {component}", "prior-swiss-roll-10000", *placed),
    )


def likelihood_table():
    few = "parzen_10k", 1, "340 ± 2", "378 ± 4"
    many = "parzen_1m", 1, "427 † (ten million)", "412 (500,000)"
    return aae_scores(
        ("20 epochs: 10,000 samples", "likelihood", *few),
        ("20 epochs: a million", "likelihood", *many),
        ("50 epochs: 10,000", "likelihood-50-epochs", *few),
        ("50 epochs: a million", "likelihood-50-epochs", *many),
        ("noise, 100 epochs: 10,000", "likelihood-noise", *few),
        ("noise, 100 epochs: a million", "likelihood-noise", *many),
        ("z of 6, 50 epochs: 10,000", "likelihood-6d", *few),
        ("z of 6, 50 epochs: a million", "likelihood-6d", *many),
        ("VAE, 20 epochs: 10,000", "likelihood-kl", "parzen_10k", 1, DASH, DASH),
        ("WAE-GAN, 20 epochs: 10,000", "likelihood-wae-gan", "parzen_10k", 1, DASH, DASH),
        ("WAE-MMD, 20 epochs: 10,000", "likelihood-mmd", "parzen_10k", 1, DASH, DASH),
    )


def style_table():
    return aae_scores(
        ("image shows the label asked for, %", "style", "style_accuracy", 2, "figure", DASH),
        ("probe on z, error in %", "style", "z_error", 1, DASH, DASH),
        ("(always the commonest label, %)", "style", "chance_error", 1, DASH, DASH),
    )


def semi_table():
    alone, few = "the encoder alone", ("test_error", 2, "1.90", "about 4")
    many = "test_error", 2, "1.60 ± 0.08 †", "5 to 6"
    every = "test_error", 2, "0.85", DASH
    return aae_scores(
        ("100 labels", "semi-100", *few),
        (f"100 labels, {alone}", "semi-100", "baseline_error", 2, "25.80 †", DASH),
        ("100 labels, not warped", "semi-100-no-warps", *few),
        ("100 labels, the paper's terms", "semi-100-paper-terms", *few),
        ("1,000 labels", "semi-1000", *many),
        ("1,000 labels, not warped", "semi-1000-no-warps", *many),
        (f"1,000 labels, {alone}", "semi-1000", "baseline_error", 2, "8.73 †", DASH),
        ("all labels", "semi-60000", *every),
        ("all labels, not warped", "semi-60000-no-warps", *every),
        (f"all labels, {alone}", "semi-60000", "baseline_error", 2, "1.25 †", DASH),
    )


def cluster_table():
    used, error = "clusters in use", ("cluster_error", 2, "9.55 ± 2.05", DASH)
    return aae_scores(
        ("16 clusters, error in %", "cluster-16", *error),
        (used, "cluster-16", "clusters_used", 1, DASH, DASH),
        ("16, the paper's terms, error in %", "cluster-16-paper-terms", *error),
        (used, "cluster-16-paper-terms", "clusters_used", 1, DASH, DASH),
        ("30 clusters, error in %", "cluster-30", "cluster_error", 2, "4.10 ± 1.13", DASH),
        (used, "cluster-30", "clusters_used", 1, DASH, DASH),
    )


def embed_table():
    return aae_scores(
        ("1,000 labels, error in %", "embed-1000", "test_error", 2, "4.20 †", DASH),
        ("100 labels", "embed-100", "test_error", 2, "6.08 †", DASH),
        ("no labels, 20 clusters", "embed-0", "cluster_error", 2, "13.46 †", DASH),
    )


# ---- results/bigan.md ----------------------------------------------------------------------------
TABLE1 = {  # BiGAN's Table 1: words, the paper's error in %
    "mnist": ("BiGAN", "2.61"),
    "gan": ("D of a GAN", "2.70"),
    "lr": ("latent regressor", "2.56"),
    "jlr": ("joint latent regressor", "2.87"),
    "ae-l2": ("autoencoder, l2", "2.42"),
    "ae-l1": ("autoencoder, l1", "2.37"),
}


def bigan_table():
    models = {
        "pixels": ("raw pixels", DASH),
        "untrained": ("untrained E", DASH),
        "mnist": TABLE1["mnist"],
        "bilinear": ("BiGAN, product in D", DASH),
        **TABLE1,  # mnist keeps its place above
        "ali": ("ALI", DASH),
        "alice": ("ALICE", DASH),
    }
    rows = {f"bigan/{name}": cells for name, cells in models.items()}
    plain = {row: cells[:1] for row, cells in rows.items()}
    codes = [("nearest neighbour", "nn_error_code", 2), ("linear probe", "probe_error_code", 2)]
    images = [
        ("length of x - G(E(x))", "reconstruction_l2", 2),
        ("x's digit kept, %", "reconstruction_digit", 1),
        ("inception score", "sample_quality", 2),
    ]
    no_code = "bigan/gan", "bigan/pixels"
    with_code = {row: cells for row, cells in plain.items() if row not in no_code}
    lines = []
    for row, cells in rows.items():  # held out: the last 10,000 training images
        errors = (ours(name, "nn_error_features", 2) for name in (row, f"{row}-held-out"))
        lines.append([*cells, *errors])
    parts = [
        table(["Table 1: error in %", "paper", "ours", "ours, held out"], lines),
        rows_by_scores(["the code: error in %"], with_code, codes),
        rows_by_scores(["the images"], plain, images),
        commands({row: cells[0] for row, cells in plain.items()})
        + "\n- held out: the same with `--validation`, seed 0",
    ]
    return "\n\n".join(parts)


def released_table():
    rows = {"bigan/released": TABLE1["mnist"]}
    rows |= {f"bigan/released-{name}": TABLE1[name] for name in reproduce.TABLE1}
    errors = [(f"{done}", f"nn_error_features_{done}", 2) for done in range(50, 400, 50)]
    errors.append(("400", "nn_error_features", 2))
    parts = []
    for what, end in (("test images", ""), ("held-out images", "-held-out")):
        run = {f"{row}{end}": cells for row, cells in rows.items() if seeds(f"{row}{end}")}
        first = [f"{what}: error in %, after epochs", "paper"]
        parts.append(rows_by_scores(first, run, errors))
        parts.append(commands({row: cells[0] for row, cells in run.items()}))
    return "\n\n".join(parts)


def grid_table():
    models = [  # words, row, its generator, its encoder, the paper's modes hit
        ("ALI", "grid", "ali", "ali", "25 (best of 10)"),
        ("GAN, post-hoc ALI as E", "grid", "gan", "posthoc", "22 (best of 10)"),
        ("GAN, learned inverse", "grid", "gan", "inverse", "22 (best of 10)"),
        ("VAE", "grid", "vae", "vae", DASH),
        ("ALI, random settings", "grid-random", "ali", "ali", "13.4 ± 5.8"),
        ("GAN, random settings", "grid-random", "gan", "none", "10.4 ± 9.2"),
    ]
    hits, shares = [], []
    for words, name, generator, encoder, paper in models:
        row = f"bigan/{name}"
        modes = [ours(row, f"{generator}_{metric}") for metric in ("modes_hit", "modes_good")]
        hits.append([words, paper, *modes])
        same = ours(row, f"{encoder}_reconstruction_mode")
        shares.append([words, ours(row, f"{generator}_samples_good"), same])
    rows = {"bigan/grid": "ours", "bigan/grid-random": "random settings"}
    parts = [
        table(["25 modes", "paper: hit", "ours: hit", "ours: with a good sample"], hits),
        table(["in %", "good samples", "reconstructed in their mode"], shares),
        commands(rows),
    ]
    return "\n\n".join(parts)


# ---- results/infogan.md --------------------------------------------------------------------------
def infogan_table():
    first = {"infogan/mnist": "ours", "infogan/baseline": "regular GAN"}
    first |= {"infogan/paper": "released recipe, nearly"}
    second = {"infogan/weight-2": "lambda 2", "infogan/k10": "far images unjudged"}
    second |= {"infogan/long": "unjudged, longer"}
    scores = [
        ("L_I of the category, nats (log 10 = 2.303)", "mutual_information", 3, "2.30"),
        ("updates until it is 2.25", "steps_to_2.25", 0, DASH),
        ("error, a category a digit, %", "cluster_error", 2, "5"),
        ("error, category's commonest digit, %", "cluster_error_majority", 2, DASH),
        ("normalised mutual information", "nmi", 3, DASH),
        ("images show their category's digit, %", "generated_purity", 2, "figure"),
        ("digits among the categories", "generated_digits", 1, "figure"),
        ("variance within a category", "generated_diversity", 2, DASH),
        ("slant by one code, R²", "slant_r2", 2, "figure"),
        ("stroke width by one code, R²", "width_r2", 2, "figure"),
        ("sweeps -2 to 2 that change the digit, %", "identity_leak", 1, DASH),
        ("sweeps -1 to 1", "identity_leak_inside", 1, DASH),
    ]
    parts = [
        scores_by_rows(["MNIST", "paper"], first, scores),
        scores_by_rows(["MNIST"], second, [score[:3] for score in scores]),
        commands({**first, **second}),
    ]
    return "\n\n".join(parts)


def leak_table():
    names = {
        "k0": "0",
        "k2": "2",
        "k5": "5",
        "k10": "10",
        "paper": "10, released recipe",
        "k20": "20",
        "k30": "30",
        "k50": "50",
        "baseline": "regular GAN",
    }
    rows = {f"infogan/{name}": (words,) for name, words in names.items()}
    grouped = {row: words for row, words in rows.items() if row != "infogan/k0"}
    clusters = [
        ("one to one", "cluster_error", 2),
        ("majority", "cluster_error_majority", 2),
        ("k-means, majority", "kmeans_cluster_error_majority", 2),
    ]
    information = [("category", "nmi", 3), ("k-means on pixels", "kmeans_nmi", 3)]
    labels = {"100": "100 labels", "1000": "1,000", "all": "all"}
    trunk = [(words, f"probe_error_trunk_{count}", 2) for count, words in labels.items()]
    hidden = [(words, f"probe_error_q_hidden_{count}", 2) for count, words in labels.items()]
    beside = ""
    for words, name in (("untrained trunk", "untrained"), ("raw pixels", "pixels")):
        cells = [ours("infogan/long", f"probe_error_{name}_{count}", 2) for count in labels]
        beside += f"\n| {' | '.join([words, *cells])} |"
    parts = [
        rows_by_scores(["K: error in %"], grouped, clusters),
        rows_by_scores(["K: normalised mutual information"], grouped, information),
        rows_by_scores(["K: probe on the trunk, error in %"], rows, trunk) + beside,
        rows_by_scores(["K: probe on Q's hidden layer, error in %"], rows, hidden),
        commands({row: words for row, (words,) in rows.items()}),
    ]
    return "\n\n".join(parts)


# ---- results/machines.md -------------------------------------------------------------------------
def hardware():
    """Machines, precisions and versions behind the tables, with the number of runs."""
    entries = [entry for row in ROWS for entry in reproduce.read(row)]
    lines = []
    for name, runs in Counter(map(machine, entries)).most_common():
        counts = sorted({threads(entry) for entry in entries if machine(entry) == name} - {0})
        lines.append([name, runs, " or ".join(map(str, counts)) or DASH])
    versions = sorted({entry["versions"]["torch"] for entry in entries})
    words = f"{len(entries)} runs in all, by torch {', '.join(versions)}."
    return f"{table(['machine, precision', 'runs', 'threads'], lines)}\n\n{words}"


def slow_rows():
    """The rows whose minutes are of a processor in fp32."""
    found = {}
    for row in ROWS:
        best = fastest(row, "bf16", "fp32")
        if best and best[1].endswith("in fp32"):
            paper, name = row.split("/")
            found.setdefault(paper, []).append(f"`{name}`")
    words = "; ".join(f"{paper}'s {', '.join(names)}" for paper, names in found.items())
    return f"A processor's minutes are in fp32 for {words}; else in bf16."


def speed_table():
    """What tests/benchmark.py wrote, of every machine on file."""
    found = {(machine(entry), entry["step"]): entry for entry in reproduce.read("benchmark")}
    lines = []
    for name in dict.fromkeys(name for name, _ in found):
        for step in "mathieu aae aae-semi aae-small bigan infogan".split():
            entry = found.get((name, step))
            if entry:
                words, ratio = step.replace("-", ", "), entry["ratio"]
                share = f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.1g}"
                lines.append([name, words, f"{entry['images_per_second']:,.0f}", share])
    return table(["machine", "step", "images/s", "share"], lines)


def repeats_table():
    """What --again --keep filed: how far a run lies from those behind the tables."""
    lines = []
    for row in ROWS:
        for e in reproduce.read(f"again/{row}"):
            far = [line for line in compare(row, e) if line[2] and line[4] is not None]
            if not far:  # no deviation
                continue
            name, mean, spread, now, _ = max(far, key=lambda line: line[4])
            near = f"{sum(line[4] <= 2 for line in far)} of {len(far)}"
            furthest = f"{name.replace('_', ' ')}: {now:.4g} ({mean:.4g} ± {spread:.2g})"
            lines.append([f"{row}, seed {e['seed']}, by {machine(e)}", near, furthest])
    head = ["run anew", "within two", "furthest off: now (on file)"]
    return table(head, lines)


# ---- Pages ---------------------------------------------------------------------------------------
PARTS = {
    "across": across_table,
    "minutes": minutes_table,
    "mnist": mnist_table,
    "sprites": sprites_table,
    "ablations": ablation_table,
    "prior": prior_table,
    "likelihood": likelihood_table,
    "style": style_table,
    "semi": semi_table,
    "cluster": cluster_table,
    "embed": embed_table,
    "bigan": bigan_table,
    "released": released_table,
    "grid": grid_table,
    "infogan": infogan_table,
    "leak": leak_table,
    "hardware": hardware,
    "slow": slow_rows,
    "speed": speed_table,
    "repeats": repeats_table,
}


def rendered(text):
    """A page's text with what stands between its markers written anew."""

    def anew(found):
        name = found[1]
        return f"<!-- {name} -->\n{PARTS[name]()}\n<!-- /{name} -->"

    return re.sub(r"<!-- ([\w-]+) -->\n.*?<!-- /\1 -->", anew, text, flags=re.S)


def write_pages():
    """The tables of all pages anew, from what is on file. A page that stays the same is not
    written."""
    for page in PAGES:
        path = reproduce.ROOT / page
        old = path.read_text("utf-8")
        if rendered(old) != old:
            write_atomic(path, rendered(old).encode())
