"""A small sweep: values of its file, its plan, its command."""

from tests.datasets import TASK
from trqam_fast.cli import run_command
from trqam_fast.sweep import __main__ as command
from trqam_fast.sweep.plan import make_plan
from trqam_fast.sweep.spec import parse_spec

BASE = {"tasks": [TASK], "algos": ["bc", "qam", "trqam"], "seeds": [0, 1, 2]}


def plan(tmp_path, **changes):
    return make_plan(parse_spec(BASE | changes), tmp_path)


def run(*argv):
    return run_command(lambda: command.main([str(word) for word in argv]))
