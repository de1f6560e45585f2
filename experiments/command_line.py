"""The command line of the scripts: a flag for each field of the settings, its comment the help."""

import argparse
import contextlib
import dataclasses
import difflib
import functools
import inspect
import math
import os
import re
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin, get_type_hints

from common import RunSettings, UserError
from experiments import machine
from experiments.run_folder import read_settings

import matplotlib


@functools.cache
def field_comments(kind):
    """The comment of each field of a dataclass, read from its source: {name: words}."""
    found = {}
    for cls in reversed(kind.__mro__[:-1]):
        found.update(re.findall(r"^    (\w+): [^#\n]*#\s*(.*)$", inspect.getsource(cls), re.M))
    return found


def value_parser(hint):
    """A function from a flag's text to a checked value of this type."""
    if get_origin(hint) is not Annotated:
        return str
    kind, low, high = get_args(hint)

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:  # false for nan, too
            words = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"'{text}' is not {words} from {low:g} to {high:g}")
        return value

    return parse


class Parser(argparse.ArgumentParser):
    """argparse, but a wrong flag ends in one line that names the nearest right one."""

    def error(self, message):
        unknown = re.match(r"unrecognized arguments: (--[\w-]+)", message)
        if unknown:
            near = difflib.get_close_matches(unknown[1], self._option_string_actions, 1)
            message = f"there is no {unknown[1]} here" + (
                f"; did you mean {near[0]}?" if near else ""
            )
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


def make_parser(settings):
    """The flags of a dataclass instance: a flag a field, the instance's values as defaults. A field
    that is None has no flag. Groups: of all scripts, of this one, and ours beyond the paper."""
    doc = sys.modules["__main__"].__doc__ or ""
    title, examples, *_ = [*doc.split("\n\n"), ""]
    parser = Parser(
        usage="one of these; every flag has a default\n" + examples,
        description=title,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    words = "the paper", "all scripts", "ours, beyond the paper"
    paper, everybody, ours = (parser.add_argument_group(title) for title in words)
    comments = field_comments(type(settings))
    for name, hint in get_type_hints(type(settings), include_extras=True).items():
        default = getattr(settings, name)
        if default is None:  # these settings do not have it
            continue
        group = everybody if name in RunSettings.__annotations__ else paper
        group = ours if comments[name].startswith("ours:") else group
        words = {"help": f"{comments[name]} [{default}]".replace("%", "%%"), "default": default}
        if hint is bool:
            words["action"] = "store_true"
        elif get_origin(hint) is Literal:
            words["choices"] = get_args(hint)
        else:
            words["type"] = value_parser(hint)
        group.add_argument(f"--{name.replace('_', '-')}", **words)
    return parser


def parse(recipe, words):
    """Settings from a command line's words. `recipe` gives an instance by the flags in its
    signature. The other flags change it. With --resume all come from that folder's config.json."""
    first = Parser(add_help=False, allow_abbrev=False)
    for name in ["resume", *inspect.signature(recipe).parameters]:
        first.add_argument(f"--{name.replace('_', '-')}")
    chosen = {k: v for k, v in vars(first.parse_known_args(words)[0]).items() if v is not None}
    folder = chosen.pop("resume", None)
    if folder == "":
        raise UserError("--resume needs a run folder, not an empty word")
    given = {word.split("=")[0] for word in words if word.startswith("--")}
    if folder and given - {"--resume", "--device"}:
        raise UserError("beside --resume only --device may stand: the folder has the settings")
    settings = read_settings(folder, recipe) if folder else recipe(**chosen)
    settings = dataclasses.replace(settings, **vars(make_parser(settings).parse_args(words)))
    if settings.dry_run and not folder:
        settings.epochs = min(settings.epochs, 2)
    return settings


class Terminated(KeyboardInterrupt):
    """SIGTERM: it ends a run as Ctrl-C does, with another status."""


def terminate(signal_number, frame):
    raise Terminated


def exit_on_mistake(call, resume="a training goes on with --resume RUN, from its last whole epoch"):
    """Call; what ends it early is one line on stderr. Exit status 2: a mistake by the user; 130 or
    143: stopped; 1: the table could not be printed. resume: how a stopped call goes on."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # None where the shell closed it
    sys.stderr = sys.stderr or open(os.devnull, "w")
    if hasattr(sys.stdout, "reconfigure"):  # some code pages lack the ä of --help
        sys.stdout.reconfigure(errors="replace")
    if threading.current_thread() is threading.main_thread():  # others may not
        signal.signal(signal.SIGTERM, terminate)
    # torch would take memory on each GPU. A script uses one, and this variable says which.
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    matplotlib.rcdefaults()  # figures look alike everywhere, whatever the user's matplotlibrc says
    try:
        return call()
    except UserError as error:
        words, status = error, 2
    except KeyboardInterrupt as error:
        words = f"stopped; {resume}"
        status = 143 if isinstance(error, Terminated) else 130
    except (MemoryError, RuntimeError) as error:
        if not machine.no_memory(error):
            raise
        words, status = "no memory is left: choose smaller settings, batches or networks", 2
    except OSError as error:
        if error.filename is not None:  # of a file, not of stdout
            raise
        words, status = f"cannot print the table ({error.strerror}); the run is in its folder", 1
        with contextlib.suppress(OSError, ValueError):  # what is left is not flushed at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    with contextlib.suppress(OSError):
        print(f"{Path(sys.argv[0]).name}: {words}", file=sys.stderr)
    sys.exit(status)


def print_table(table, metrics):
    """On stdout: rows (words, name of the metric, the paper's value, what to compare with)."""
    if not table:
        return
    lines = [("score", "this run", "paper", "to compare")]
    for words, name, paper, compare in table:
        lines.append((words, f"{metrics[name]:.4g}", paper, compare))
    widths = [max(map(len, column)) for column in zip(*lines)]
    for line in lines:
        print("  ".join(map(str.ljust, line, widths)).rstrip(), flush=True)
