"""Which parts of an update share memory without waiting for each other."""

from benchmarks.launches import Clock


class Careless(Clock):
    """Branches without one of their waits."""

    def __init__(self, name, other):
        super().__init__()
        self.forgotten = (name, other)

    def _on(self, name, after):
        return super()._on(name, tuple(o for o in after if (name, o) != self.forgotten))


def ordered(first, second):
    """Whether the second waits for the first."""
    (branch, done), (_, seen) = first.place, second.place
    return seen.get(branch, 0) > done.get(branch, 0)


def races(operations):
    """Pairs in the order recorded, of operations or launches, that share memory without waiting."""
    found = []
    for index, second in enumerate(operations):
        for first in operations[:index]:
            if ordered(first, second):
                continue
            pairs = (
                (first.writes, second.reads | second.writes), (first.reads, second.writes),
            )  # fmt: skip
            if any(
                a[0] == b[0] and a[1] < b[2] and b[1] < a[2]
                for mine, others in pairs for a in mine for b in others
            ):  # fmt: skip
                found.append((first, second))
    return found
