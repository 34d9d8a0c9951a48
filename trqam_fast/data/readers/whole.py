"""What a dataset of one's own must have, the same for every format, and what completes it."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from trqam_fast.data.flat import ACTION_LIMIT
from trqam_fast.errors import UsageError
from trqam_fast.simulator.bounds import bounds_in_words, scaled
from trqam_fast.simulator.environment import Interface
from trqam_fast.text import printable

Arrays = dict[str, np.ndarray]

SHAPES = {
    "observations": "[N, O]", "actions": "[N, A]", "rewards": "[N]", "terminals": "[N]",
    "masks": "[N]", "next_observations": "[N, O]", "timeouts": "[N]",
}  # fmt: skip
"""Arrays of a dataset; the first four must be there."""
NEEDED = ("observations", "actions", "rewards", "terminals")
SYNONYMS = {
    "observations": ("obs", "observation", "state", "states"),
    "actions": ("action", "act", "acts"),
    "rewards": ("reward",),
    "terminals": ("terminal", "done", "dones"),
}
"""What others call the arrays that must be there."""
FLAGS = ("terminals", "masks", "timeouts")

OUTSIDE = 0.05
"""Share of actions outside the bounds from which they are taken for actions in other units."""
SLACK = 1e-4
"""How far outside of [-1, 1] rounding may bring a scaled action."""
MOST_BREAKS = 0.5
"""Share of next_observations that are not the next row's above which it is worth saying."""
ROWS_AT_A_TIME = 10_000
"""Rows that are compared together; bounds the memory that takes."""
MOST_ENDS = 0.5
"""Share of ends of the task among rows inside of trajectories above which masks are inverted."""


def complete(arrays: Arrays, place: str) -> tuple[Arrays, list[str]]:
    """Check arrays and fill in what is optional.

    Without `masks` every end of a trajectory counts as an end of the task, but not where there are
    `timeouts`, which end a trajectory too: then `terminals` alone end the task, as in D4RL. Without
    `next_observations` the next row's observation is taken, and a trajectory's last transition,
    which has none, is left out unless the task ended there.

    Args:
        arrays: What a reader returned.
        place: What it was read from, for messages.

    Returns:
        Arrays named like `FIELDS`, float32, and what is worth saying.

    Raises:
        UsageError: an array is missing or wrong.
    """
    check_present(arrays, place)
    found = {name: as_numbers(arrays[name], name, place) for name in SHAPES if name in arrays}
    check_shapes(found, place)
    for name, array in found.items():
        check_values(array, name, place)
    notes, last, timeouts = [], "terminals", found.pop("timeouts", None)
    if timeouts is not None:
        last, ended = "timeouts", found["terminals"]
        note = f"timeouts ends {int((timeouts > ended).sum())} trajectories where terminals is 0"
        if "masks" not in found:
            found["masks"] = 1.0 - ended
            note += f", without ending the task; terminals ends it in {int(ended.sum())} rows"
        notes.append(f"{place}: {note}")
        found["terminals"] = np.maximum(ended, timeouts)
    if found["terminals"][-1] != 1:
        raise UsageError(
            f"{place}: {last} ends with 0, expected 1 in the last row; write 1 there, or add "
            "the rest of the trajectory"
        )
    if "masks" not in found:
        found["masks"] = 1.0 - found["terminals"]
        notes.append(
            f"{place} has no masks, so every end of a trajectory counts as an end of the task; "
            "write masks with 1 where a time limit cut one off"
        )
    notes += check_masks(found, place)
    if "next_observations" not in found:
        found, dropped = follow_rows(found, place)
        if dropped:
            notes.append(
                f"{place} has no next_observations, so the last transitions of {dropped} "
                "trajectories that did not end the task are left out"
            )
    else:
        notes += breaks(found, place)
    return found, notes


def check_arrays(dtypes: Mapping[str, np.dtype], place: str) -> list[str]:
    """Check the arrays of a file before they are read; return what is said of those nobody uses.

    Args:
        dtypes: By name.
        place: The file, for messages.

    Raises:
        UsageError: one is missing, or holds no numbers.
    """
    check_present(dtypes, place)
    for name in SHAPES:
        if name in dtypes:
            check_numbers(dtypes[name], name, place)
    unused = [printable(name) for name in dtypes if name not in SHAPES]
    return [f"{place} has arrays that are not used: {', '.join(unused)}"] if unused else []


def check_present(names: Collection[str], place: str) -> None:
    """Raise `UsageError` where an array is missing among the names of all that there are."""
    missing = [name for name in NEEDED if name not in names]
    if not missing:
        return
    first = missing[0]
    found = ", ".join(map(printable, names)) or "none"
    meant = [f"{own} as {name}" for name in missing for own in SYNONYMS[name] if own in names]
    if missing == ["rewards"] and not meant:
        meant = ["terminals - 1 as rewards if every trajectory succeeded"]
    remedy = f"; save {', '.join(meant)}" if meant else ""
    raise UsageError(
        f"{place} has no array {first!r}, expected {SHAPES[first]}; it has {found}{remedy}"
    )


def as_numbers(array: np.ndarray, name: str, place: str) -> np.ndarray:
    """Return an array as float32.

    Raises:
        UsageError: it holds no numbers.
    """
    array = np.asarray(array)
    check_numbers(array.dtype, name, place)
    with np.errstate(over="ignore"):
        return array.astype(np.float32, copy=False)


def check_numbers(dtype: np.dtype, name: str, place: str) -> None:
    """Raise `UsageError` unless an array holds numbers."""
    if dtype.kind not in "biuf":
        raise UsageError(
            f"{place}: {name} has dtype {printable(dtype)}, expected numbers that convert to "
            "float32; save it as one"
        )


def check_shapes(arrays: Arrays, place: str) -> None:
    """Raise `UsageError` where an array has another shape than the observations imply."""
    for name, array in arrays.items():
        dimensions = SHAPES[name].count(",") + 1
        expected = list(SHAPES[name][1:-1].split(", "))
        rows, widths = arrays["observations"].shape[:1], arrays["observations"].shape[1:]
        fits = array.ndim == dimensions and array.shape[:1] == rows and 0 not in array.shape
        if name != "observations" and rows:
            expected[0] = str(rows[0])
        if name == "next_observations" and len(widths) == 1:
            expected[1] = str(widths[0])
            fits = fits and array.shape[1:] == widths
        if not fits:
            remedy = "every transition is one row of each array"
            if dimensions == 2 and array.ndim == 1:
                remedy = f"reshape it to [{array.shape[0]}, 1] if it is one number each"
            if array.ndim > 2 and name.endswith("observations"):
                remedy = "pictures are not read, so save features, one row of numbers each"
            if array.shape[:1] == (0,):
                remedy = "it holds no transition, so record some"
            raise UsageError(
                f"{place}: {name} has shape {list(array.shape)}, expected "
                f"[{', '.join(expected)}]; {remedy}"
            )


def check_values(array: np.ndarray, name: str, place: str) -> None:
    """Raise `UsageError` where a value is not finite, or a flag is neither 0 nor 1."""
    good, expected = np.isfinite(array), "finite numbers"
    if name in FLAGS:
        good, expected = (array == 0) | (array == 1), "0 or 1"
    if not good.all():
        where = np.argwhere(~good)
        index = where[0].tolist()
        raise UsageError(
            f"{place}: {name} has {array[tuple(index)]:g} at {index}, expected {expected}; mend or "
            f"leave out the {len(where)} values that are not"
        )


def check_masks(arrays: Arrays, place: str) -> list[str]:
    """Return what is worth saying of masks that end the task before a trajectory ends.

    A trajectory may go on where its task is solved, as OGBench's do: its masks are 0 there.

    Raises:
        UsageError: most rows inside of trajectories end the task, so masks has them inverted.
    """
    inside = arrays["terminals"] == 0
    ends = int((inside & (arrays["masks"] == 0)).sum())
    if ends == 0:
        return []
    share = ends / int(inside.sum())
    found = f"{place}: masks is 0 in {ends} rows, {share:.1%} of those before a trajectory's last"
    if share > MOST_ENDS:
        raise UsageError(
            f"{found}, expected 1 where the task goes on; save 1 - masks if they are inverted, or "
            "end trajectories where the task ends"
        )
    return [f"{found}; each counts as an end of the task"]


def breaks(arrays: Arrays, place: str) -> list[str]:
    """Return what is worth saying of next_observations that the next rows contradict."""
    inside, differing = arrays["terminals"][:-1] == 0, 0
    for start in range(0, len(inside), ROWS_AT_A_TIME):
        rows = slice(start, start + ROWS_AT_A_TIME)
        following = arrays["observations"][1:][rows]
        differs = (arrays["next_observations"][:-1][rows] != following).any(axis=1)
        differing += int((differs & inside[rows]).sum())
    if differing <= MOST_BREAKS * inside.sum():
        return []
    return [
        f"{place}: next_observations is not the next row's observations in {differing} of "
        f"{inside.sum()} rows before a trajectory's last; keep rows in the order of their steps, "
        "or leave next_observations out if it is wrong"
    ]


def follow_rows(arrays: Arrays, place: str) -> tuple[Arrays, int]:
    """Take each following observation from the next row; see `complete`.

    Returns:
        The arrays, and how many transitions were left out.

    Raises:
        UsageError: none is left.
    """
    observations, ends = arrays["observations"], arrays["terminals"] == 1
    following = np.concatenate([observations[1:], observations[-1:]])
    following[ends] = observations[ends]
    kept = ~(ends & (arrays["masks"] == 1))
    terminals = arrays["terminals"].copy()
    # The transition before one that is left out ends its trajectory now.
    terminals[:-1][~kept[1:] & ~ends[:-1]] = 1.0
    whole = arrays | {"next_observations": following, "terminals": terminals}
    if not kept.any():
        raise UsageError(
            f"{place} has no next_observations, and its trajectories have one row each; write "
            "next_observations"
        )
    return {name: array[kept] for name, array in whole.items()}, int((~kept).sum())


def fit(
    arrays: Arrays, interface: Interface, env_name: str, place: str
) -> tuple[Arrays, list[str]]:
    """Compare a dataset with an environment and scale its actions to [-1, 1].

    Args:
        arrays: What `complete` returned.
        interface: The environment's.
        env_name: Its name, for messages.
        place: What the data were read from.

    Returns:
        The arrays, actions clipped to +-(1 - 1e-5), and what is worth saying.

    Raises:
        UsageError: they are of another environment, or their actions in other units.
    """
    for name, width in (("observations", interface.obs_dim), ("actions", interface.act_dim)):
        found = arrays[name].shape[1]
        if found != width:
            remedy = "; name the environment that the data are of"
            if interface.pictures and name == "observations":
                remedy = (
                    " with its pictures, which are not read; wrap it so that it gives the features "
                    "that the data have, and no picture"
                )
            raise UsageError(
                f"{place}: {name} has {found} numbers a row, but {env_name} has {width}{remedy}"
            )
    actions = arrays["actions"]
    if (interface.low != -1).any() or (interface.high != 1).any():
        actions = scaled(actions, interface.low, interface.high).astype(np.float32)
    outside = np.abs(actions) > 1.0 + SLACK
    bounds = bounds_in_words(interface.low, interface.high)
    if outside.mean() > OUTSIDE:
        row, column = np.argwhere(outside)[0].tolist()
        raise UsageError(
            f"{place}: actions has {arrays['actions'][row, column]:g} at [{row}, {column}], "
            f"expected the units of {env_name}, {bounds}; {outside.mean():.0%} lie outside, so "
            "scale them"
        )
    notes = []
    if outside.any():
        notes.append(f"{int(outside.sum())} numbers of actions outside {bounds} are clipped to it")
    return arrays | {"actions": actions.clip(-ACTION_LIMIT, ACTION_LIMIT)}, notes
