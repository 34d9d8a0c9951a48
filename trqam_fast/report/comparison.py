"""The numbers of a comparison: scores of every method, aggregates, pairs, path KL."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from trqam_fast.agents import ALGORITHMS
from trqam_fast.report.aggregate import (
    Estimate,
    Scores,
    at_least,
    counts,
    estimates,
    improvement,
    iqm,
    mean,
)
from trqam_fast.report.authors import AUTHORS
from trqam_fast.report.collect import FAILED, Result, Tracking
from trqam_fast.report.published import read_published
from trqam_fast.runs.looks import looks

ALL, COMMON = "all", "common tasks"
SETTLING = 2000
"""Updates of a stage before its path KL is compared with the budget."""
ORDER = tuple(ALGORITHMS)


class Pair(NamedTuple):
    """P(X > Y) with its interval over the tasks that both have.

    Attributes:
        first, second: X and Y.
        tasks: With a score of both.
        runs: Of X and of Y with a score, on all tasks.
        failed: Runs of X and of Y that failed or diverged.
        probability: Of the runs with a score.
        tasks_zeroed, zeroed: With a score of 0 for the failed runs; the same where none failed.
    """

    first: str
    second: str
    tasks: int
    runs: tuple[int, int]
    failed: tuple[int, int]
    probability: Estimate
    tasks_zeroed: int
    zeroed: Estimate


class Deviation(NamedTuple):
    """How one seed's path KL went in one stage.

    Attributes:
        result, stage, budget: Whose.
        first, last: First and last value.
        mean: Mean after the first `SETTLING` updates of the stage, NaN if there is no value.
        mean_deviation, largest_deviation: Of the distance from the budget over the budget there.
        lam: Last value of the dual variable, NaN without one.
    """

    result: Result
    stage: str
    budget: float | None
    first: float
    last: float
    mean: float
    mean_deviation: float
    largest_deviation: float
    lam: float

    @property
    def drift(self) -> float:
        """Last value over the first."""
        return self.last / self.first if self.first else math.nan


@dataclass(frozen=True)
class Summary:
    """One method in one group of tasks.

    Attributes:
        method, group: Whose; the group is a domain, `ALL` or `COMMON`.
        tasks, tasks_expected: With a score, and in the group.
        runs, runs_expected: With a score, and planned; a run is one seed on one task.
        seeds: With a score on each task that has any, in words.
        failed: Runs that failed or diverged.
        mean, iqm: Of the runs with a score.
        mean_zeroed, iqm_zeroed: With a score of 0 for the failed ones; the same where none failed.
        updates, data: What the runs were trained with and on, in words.
        episodes: Of the evaluation behind a run's score, in words.
    """

    method: str
    group: str
    tasks: int
    tasks_expected: int
    runs: int
    runs_expected: int
    seeds: str
    failed: int
    mean: Estimate
    iqm: Estimate
    mean_zeroed: Estimate
    iqm_zeroed: Estimate
    updates: str
    data: str
    episodes: str


class Comparison:
    """Scores of methods on tasks.

    Attributes:
        results: Of methods, not of pretraining alone.
        starts: Success of the policies that fine-tuning starts from, by task and seed; one, unless
            methods start from different policies.
        methods, tasks, domains, seeds: In the order of the tables.
        algos: Algorithm of each method.
        reference: The method that the others are compared with.
        scores, zeroed: ``[seeds, tasks]`` of each method; `zeroed` has 0 for the failed runs.
        groups: Tasks by group.
        summaries: By method and group.
        pairs: The reference against each other method, then the others.
        deviations: Of every seed and stage with a path KL.
        looks: How each method is drawn.
    """

    def __init__(self, results: list[Result]) -> None:
        self.results = [result for result in results if result.method is not None]
        self.starts: dict[tuple[str, str], list[float]] = {}
        for result in results:
            known = self.starts.setdefault((result.task, result.seed), [])
            if result.start is not None and result.start not in known:
                known.append(result.start)
        self.algos = {str(result.method): result.algo for result in self.results}
        self.methods = sorted(self.algos, key=self._place)
        budgeted = {str(r.method): r.algorithm.budget for r in self.results}
        self.reference = max(self.methods, key=budgeted.__getitem__)
        domains = {result.task: result.domain for result in self.results}
        self.domains = domain_order(set(domains.values()))
        self.tasks = sorted(
            domains, key=lambda task: (self.domains.index(domains[task]), natural(task))
        )
        self.seeds = sorted({result.seed for result in self.results if result.seed}, key=natural)
        self._cells: dict[tuple[str, str], list[Result]] = {}
        for result in self.results:
            self._cells.setdefault((str(result.method), result.task), []).append(result)
        self.scores = {name: self._scores(name, zeroed=False) for name in self.methods}
        self.zeroed = {name: self._scores(name, zeroed=True) for name in self.methods}
        self.groups = self._groups(domains)
        self.summaries = {
            (name, group): self.summarise(name, group, tasks)
            for name in self.methods
            for group, tasks in self.groups.items()
        }
        self.pairs = self._pairs()
        declared = {str(r.method): r.algorithm.colour for r in reversed(self.results)}
        colours = [declared[name] for name in self.methods]
        self.looks = dict(zip(self.methods, looks(colours), strict=True))
        self.deviations = [
            deviation_of(result, track) for result in self.results for track in result.tracking
        ]

    def _place(self, method: str) -> tuple[bool, int, list[tuple[int, int, str]]]:
        algo = self.algos[method]
        place = ORDER.index(algo) if algo in ORDER else len(ORDER)
        return method.endswith(AUTHORS), place, natural(method)

    def _groups(self, domains: dict[str, str]) -> dict[str, list[str]]:
        """All tasks, those that every method has if some have more, those of each domain."""
        having = [sum(self.has(name, task) for name in self.methods) for task in self.tasks]
        everywhere = [
            task for task, n in zip(self.tasks, having, strict=True) if n == len(self.methods)
        ]
        groups = {ALL: self.tasks}
        if everywhere and sum(having) > len(everywhere) * len(self.methods):
            groups[COMMON] = everywhere
        return groups | {
            name: [task for task in self.tasks if domains[task] == name] for name in self.domains
        }

    def _scores(self, method: str, zeroed: bool) -> Scores:
        scores = np.full((len(self.seeds), len(self.tasks)), math.nan)
        for result in self.results:
            if result.method == method and result.seed:
                where = self.seeds.index(result.seed), self.tasks.index(result.task)
                failed = zeroed and result.status in FAILED
                scores[where] = 0.0 if failed else result.success
        return scores

    def of(self, method: str, task: str) -> list[Result]:
        """Return the results of a method on a task."""
        return self._cells.get((method, task), [])

    def start_of(self, result: Result) -> float | None:
        """Return the success that a run starts from, by another method's run if all agree."""
        if result.start is not None:
            return result.start
        known = self.starts.get((result.task, result.seed), [])
        return known[0] if len(known) == 1 else None

    def has(self, method: str, task: str) -> bool:
        """Whether a method has a score on a task."""
        return any(not math.isnan(result.success) for result in self.of(method, task))

    def summarise(self, method: str, group: str, tasks: list[str]) -> Summary:
        """Return the aggregates of a method over some tasks, which are called `group`."""
        columns = [self.tasks.index(task) for task in tasks]
        scores, zeroed = self.scores[method][:, columns], self.zeroed[method][:, columns]
        cells = [result for task in tasks for result in self.of(method, task)]
        failed = sum(result.status in FAILED for result in cells)
        counted = [result for result in cells if not math.isnan(result.success)]
        played = {result.episodes for result in counted}
        each = min(played, default=0)  # 0 where one does not say
        averages = averages_of(scores, each)
        others = averages_of(zeroed, each) if failed else averages
        numbers = counts(scores)
        present = numbers[numbers > 0]
        return Summary(
            method, group, len(present), len(columns), len(counted),
            sum(result.seed != "" for result in cells),
            " to ".join(dict.fromkeys(str(n) for n in (present.min(), present.max())))
            if len(present)
            else "0",
            failed, *averages, *others,
            updates=each_once(result.updates for result in counted),
            data=each_once(result.data for result in counted),
            episodes=" to ".join(map(str, sorted({min(played), max(played)}))) if played else "",
        )  # fmt: skip

    def _pairs(self) -> list[Pair]:
        others = [name for name in self.methods if name != self.reference]
        ordered = [self.reference, *others]
        pairs = []
        for number, first in enumerate(ordered):
            for second in ordered[number + 1 :]:
                pairs.append(self._pair(first, second))
        return pairs

    def _pair(self, first: str, second: str) -> Pair:
        x, y = self.scores[first], self.scores[second]
        both = [self.summaries[name, ALL] for name in (first, second)]
        failed = both[0].failed, both[1].failed
        probability = improvement_of(x, y)
        zeroed, tasks = probability, shared_tasks(x, y)
        if any(failed):
            x, y = self.zeroed[first], self.zeroed[second]
            zeroed = improvement_of(x, y)
        return Pair(
            first, second, tasks, (both[0].runs, both[1].runs), failed, probability,
            shared_tasks(x, y), zeroed,
        )  # fmt: skip


def averages_of(scores: Scores, episodes: int) -> tuple[Estimate, Estimate]:
    """Return mean and interquartile mean, at least with Wilson's intervals of their episodes.

    Args:
        scores: ``[seeds, tasks]``.
        episodes: Behind each score, 0 if unknown.
    """
    runs = int(counts(scores).sum())
    average, middle = estimates([mean, iqm], scores)
    return at_least(average, episodes * runs), at_least(middle, episodes * (runs - 2 * (runs // 4)))


def improvement_of(x: Scores, y: Scores) -> Estimate:
    """Return P(X > Y); where all resamples agree, with Wilson's interval of the disjoint pairs."""
    (found,) = estimates([improvement], x, y)
    if found.low < found.high:
        return found
    return at_least(found, int(np.minimum(counts(x), counts(y)).sum()))


def shared_tasks(x: Scores, y: Scores) -> int:
    """Return the number of tasks on which both have a score."""
    return int(((counts(x) > 0) & (counts(y) > 0)).sum())


def domain_order(names: set[str]) -> list[str]:
    """Return domains in the order of the published table, then the others."""
    published = read_published().domains
    known = [name for name in published if name in names]
    return known + sorted(names - set(published), key=natural)


def each_once(values: Iterable[str]) -> str:
    """Return different values in words, each once, and a last word that all share once."""
    found = list(dict.fromkeys(value for value in values if value))
    last = {value.rpartition(" ")[2] for value in found}
    if len(found) > 1 and len(last) == 1:
        return f"{' or '.join(value.rpartition(' ')[0] for value in found)} {last.pop()}"
    return " or ".join(found)


def short_task(task: str) -> str:
    """Return a task's name without what all of them have: ``cube-double-play task1``."""
    return re.sub(r"-singletask(-(task\d+))?-v0$", r" \2", task).strip()


def natural(name: str) -> list[tuple[int, int, str]]:
    """Key by which names sort as people do: task2 before task10."""
    return [
        (0, int(part), "") if part.isdigit() else (1, 0, part)
        for part in re.split(r"(\d+)", name)
        if part
    ]


def settled_at(stage: str, config: dict[str, Any]) -> float:
    """Return the step of a stage, of the simulator's in the online one, with so many updates."""
    if stage != "online":
        return SETTLING
    first, each = config.get("start_training", 0), config.get("utd_ratio", 1)
    if not (isinstance(first, int) and isinstance(each, int) and each > 0):
        return SETTLING
    return first + SETTLING / each


def deviation_of(result: Result, track: Tracking) -> Deviation:
    """Return how one seed's path KL went in one stage."""
    begin = settled_at(track.stage, result.config)
    settled = np.array(
        [value for step, value in zip(track.steps, track.path_kl, strict=True) if step > begin]
    )
    average, distance = math.nan, np.array([math.nan])
    if len(settled):
        average = float(settled.mean())
        if track.budget is not None:
            distance = np.abs(settled - track.budget) / track.budget
    return Deviation(
        result, track.stage, track.budget, track.path_kl[0], track.path_kl[-1], average,
        float(distance.mean()), float(distance.max()), track.lam[-1] if track.lam else math.nan,
    )  # fmt: skip
