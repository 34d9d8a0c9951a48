"""Datasets: python -m trqam_fast.data {list,get,verify,generate,convert}."""

from __future__ import annotations

import sys

from trqam_fast.cli import LONGEST, begin, run_command

if __name__ == "__main__":
    begin()

import contextlib
import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from trqam_fast.damage import Unreadable
from trqam_fast.data.download import get
from trqam_fast.data.flat import problems_of_flat
from trqam_fast.data.flatten import convert
from trqam_fast.data.generate.recipe import GENERATED_DIR, Recipe
from trqam_fast.data.load import OFFICIAL_DIR, Found, present
from trqam_fast.data.names import LARGE_SETS, PUBLISHED, DatasetName, parse_dataset
from trqam_fast.data.npz import layout_of, problems_of
from trqam_fast.data.readers import SOURCES, Source, look_at, parse_source
from trqam_fast.errors import FAILURE, UsageError
from trqam_fast.files import expanded
from trqam_fast.text import printable

NAMED = 10
"""Missing files that a message names."""


@dataclass(frozen=True)
class ListArgs:
    """List domains, kinds and sizes, and what is present."""

    dataset_dir: Path = OFFICIAL_DIR
    """Folder of datasets."""


@dataclass(frozen=True)
class GetArgs:
    """Download the train and validation file of a dataset, or the files of a large set."""

    name: Annotated[str, tyro.conf.Positional]
    """Dataset, e.g. cube-double-play-v0, or a large set, e.g. cube-triple-play-10m-v0."""
    mirror: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Address to ask before the official host, e.g. https://host/ogbench; may be repeated."""
    dataset_dir: Path = OFFICIAL_DIR
    """Folder that the files go to; those of a large set go to a folder of its name in it."""


@dataclass(frozen=True)
class VerifyArgs:
    """Check datasets: checksums, arrays, shapes, dtypes, finite values, terminals."""

    sources: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Names in the folder, npz files, flat sets, folders of them, or data of your own as --dataset
    of the trainer takes them; without any, every archive and flat set in the folder but the -val
    files."""
    dataset_dir: Path = OFFICIAL_DIR
    """Folder where names are looked up."""
    env_id: str | None = None
    """Environment that data of your own must fit: a gymnasium id or MODULE:FACTORY."""


@dataclass(frozen=True)
class GenerateArgs:
    """Generate a dataset with the scripted experts of the ogbench package.

    Possible for pointmaze, cube, scene and puzzle; antmaze, antsoccer and humanoidmaze need
    downloaded experts.
    """

    name: Annotated[str, tyro.conf.Positional]
    """Dataset to imitate, e.g. cube-double-play-v0."""
    transitions: int = 100_000
    """Number of transitions for training; the validation file has a tenth as many."""
    workers: int = 1
    """Processes; the data do not depend on it."""
    seed: int = 0
    """Seed of all random numbers."""
    noise: float | None = None
    """Noise of the expert's actions; the published value if it is not given."""
    corners: bool = False
    """Let half of the expert's goals in mazes lie in corners, where dead ends trap a policy."""
    generated_dir: Path = GENERATED_DIR
    """Folder of generated data, kept apart from the official ones."""


@dataclass(frozen=True)
class ConvertArgs:
    """Turn npz files into a flat set, which training reads from the disk."""

    sources: Annotated[tuple[str, ...], tyro.conf.Positional]
    """A name in the folder, npz files of one dataset, or a folder of them."""
    dataset_dir: Path | None = None
    """Folder where names are looked up and the flat set goes to: for a name by default the one
    that ogbench uses, for files the one that they lie in. A large set lies in a folder of its name
    in it, before and after."""


Command = (
    Annotated[ListArgs, tyro.conf.subcommand("list")]
    | Annotated[GetArgs, tyro.conf.subcommand("get")]
    | Annotated[VerifyArgs, tyro.conf.subcommand("verify")]
    | Annotated[GenerateArgs, tyro.conf.subcommand("generate")]
    | Annotated[ConvertArgs, tyro.conf.subcommand("convert")]
)


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand."""
    match tyro.cli(Command, args=argv, prog="python -m trqam_fast.data"):
        case ListArgs() as args:
            return list_datasets(args)
        case GetArgs() as args:
            paths = get(args.name, args.dataset_dir, [*args.mirror], progress=sys.stderr.isatty())
            print(*paths, sep="\n")
            return 0
        case VerifyArgs() as args:
            return verify(args)
        case GenerateArgs() as args:
            return generate(args)
        case ConvertArgs() as args:
            return convert_sources(args)


def list_datasets(args: ListArgs) -> int:
    """Print every published dataset with its size and what is present of it."""
    folder = expanded(args.dataset_dir)
    stored: dict[tuple[str, str], list[Found]] = {}
    datasets, problems = present(folder)
    for found in datasets:
        parent = found.path.parent.name
        key = found.name.dataset_name, parent if parent in LARGE_SETS else ""
        stored.setdefault(key, []).append(found)
    sizes = {name: entry.transitions for name, entry in PUBLISHED.items()}
    sizes |= {name: large.transitions for name, large in LARGE_SETS.items()}
    print(f"{'dataset':<38}{'transitions':>12}  present in {printable(folder, 400)}")
    for name in sorted(sizes, key=lambda name: (name.partition("-")[0], sizes[name], name)):
        here = stored.get(
            (parse_dataset(name).dataset_name, name if name in LARGE_SETS else ""), []
        )
        print(f"{name:<38}{sizes[name]:>12,}  {describe(here, folder)}".rstrip())
    if args.dataset_dir == OFFICIAL_DIR:
        generated, unreadable = present(GENERATED_DIR)
        problems += unreadable
        for found in generated:
            print(f"generated: {printable(found.path, 400)}{remark(found)}")
    for problem in problems:
        print(f"problem: {problem}", file=sys.stderr)
    return FAILURE if problems else 0


def remark(found: Found) -> str:
    """Return what is wrong with a dataset, in parentheses."""
    return f" ({found.problem})" if found.problem else ""


def describe(here: list[Found], folder: Path) -> str:
    """Return what is present of a dataset in a few words."""
    words = []
    archives = [found for found in here if found.form == "archive"]
    if len(archives) > 1:
        counts = Counter(found.problem for found in archives if found.problem)
        amiss = "".join(f", {count} {problem}" for problem, count in counts.items())
        words.append(f"{len(archives)} archives{amiss}")
    shown = [found for found in here if found.form == "flat" or len(archives) == 1]
    for found in shown:
        where = found.path.parent.relative_to(folder)
        inside = f" in {printable(where)}" if where.name else ""
        words.append(f"{found.form}{inside}{remark(found)}")
    return "; ".join(words)


def resolve(source: str, folder: Path) -> list[Path]:
    """Return the archives and flat sets that a name in `folder`, a file or a folder stands for.

    Raises:
        UsageError: there are none.
    """
    path, base = expanded(Path(source)), expanded(folder)
    if path.suffix in (".npz", ".flat"):
        found = [path]
    elif path.is_file():
        raise UsageError(f"{source!r} is no dataset; name one of OGBench, {SOURCES}")
    elif path.is_dir():
        found = stored_in(path)
    elif source in LARGE_SETS:
        found = stored_in(base / source)
    else:
        name = parse_dataset(source).dataset_name
        found = [base / file for file in (f"{name}.npz", f"{name}-val.npz", f"{name}.flat")]
        found = [path for path in found if path.exists()]
    if not found or not all(path.exists() for path in found):
        raise UsageError(
            f"{source!r} is no dataset in {folder} and no file; the list command shows what is "
            "there, get fetches a dataset"
        )
    return found


def stored_in(folder: Path) -> list[Path]:
    """Return the archives of a folder in order, then its flat sets.

    Raises:
        UsageError: it has the name of a large set, but not all of its archives.
    """
    paths = sorted(folder.iterdir()) if folder.exists() else []
    archives = [path for path in paths if path.suffix == ".npz"]
    flats = [path for path in paths if path.suffix == ".flat"]
    large = LARGE_SETS.get(folder.absolute().name)
    if large is not None and archives:
        missing = sorted({*large.file_names} - {path.name for path in archives})
        if missing:
            more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
            raise UsageError(
                f"{folder} lacks {len(missing)} of {large.files} files, "
                f"{', '.join(missing[:NAMED])}{more}; get them, or name the files that you want"
            )
        archives = [path for path in archives if is_val(path) or path.name in large.file_names]
    return archives + flats


def is_val(path: Path) -> bool:
    """Return whether an archive is for validation."""
    return path.stem.endswith("-val")


def verify(args: VerifyArgs) -> int:
    """Check archives, flat sets and sources; print notes, and what is wrong or that nothing is."""
    wrong, sources = False, args.sources
    if not sources:
        if args.dataset_dir != OFFICIAL_DIR and not expanded(args.dataset_dir).exists():
            raise UsageError(f"--dataset-dir {args.dataset_dir} does not exist; name a folder")
        there, unreadable = present(args.dataset_dir)
        sources = tuple(str(one.path) for one in there)
        wrong = bool(unreadable)
        where = f"no name is given: {len(sources)} in {printable(args.dataset_dir, 400)}"
        print(*unreadable, where + ("" if sources else ", so nothing is checked"), sep="\n")
    for source in sources:
        own = own_source(source)
        for found in [own] if own else resolve(source, args.dataset_dir):
            try:
                problems, notes = looked_at(found, args.env_id)
            except Unreadable as error:
                problems, notes = [str(error)], []
            wrong |= bool(problems)
            said = problems or [f"{source if own else found} is whole"]
            lines = (*(f"note: {note}" for note in notes), *said)
            print(*(printable(line, LONGEST) for line in lines), sep="\n")
    return FAILURE if wrong else 0


def looked_at(found: Path | Source, env_id: str | None) -> tuple[list[str], list[str]]:
    """Return all that is wrong with an archive, a flat set or a source, and what training says.

    Raises:
        Unreadable: the system refuses.
    """
    if isinstance(found, Path):
        found = own_source(str(found)) or found
    if isinstance(found, Source):
        return look_at(found, env_id)
    if found.suffix == ".flat":
        return problems_of_flat(found), []
    return problems_of(found, layout_of(parse_dataset(found.stem))), []


def own_source(text: str) -> Source | None:
    """Return the source that ``--dataset`` would take, None if it is a dataset of OGBench."""
    if Path(text).suffix == ".npz":
        with contextlib.suppress(UsageError):
            parse_dataset(Path(text).stem)
            return None
    try:
        return parse_source(text)
    except UsageError:
        return None


def generate(args: GenerateArgs) -> int:
    """Generate and print the path."""
    recipe = Recipe(args.name, args.transitions, args.noise, args.seed, args.corners)
    path = recipe.ensure(args.generated_dir, workers=args.workers, progress=sys.stderr.isatty())
    flags = (
        f"--generated --generated-transitions {recipe.transitions} "
        f"--generated-noise {recipe.noise} --generated-seed {recipe.seed} "
        f"--{'' if recipe.corners else 'no-'}generated-corners"
    )
    if args.generated_dir != GENERATED_DIR:
        flags += f" --generated-dir {shlex.quote(str(args.generated_dir))}"
    print(f"{path}\ntrain on it with: {flags}")
    return 0


def convert_sources(args: ConvertArgs) -> int:
    """Convert and print the path."""
    looked_up = args.dataset_dir or OFFICIAL_DIR
    found = [path for source in args.sources for path in resolve(source, looked_up)]
    archives = sorted({path for path in found if path.suffix == ".npz" and not is_val(path)})
    if not archives:
        raise UsageError(f"{' '.join(args.sources)} has no npz file to convert")
    names: dict[str, DatasetName] = {}
    for path in archives:
        if own_source(str(path)):
            raise UsageError(
                f"{path} is not OGBench's; train on it as it is, with --dataset {path}"
            )
        name = parse_dataset(path.stem)
        parent = path.parent.absolute().name
        names[parent if parent in LARGE_SETS else name.dataset_name] = name
    if len(names) > 1:
        raise UsageError(f"the files are of {len(names)} datasets, {', '.join(names)}; take one")
    ((stored, name),) = names.items()
    folder = expanded(args.dataset_dir) if args.dataset_dir else archives[0].parent
    if stored in LARGE_SETS and folder.absolute().name != stored:
        folder /= stored  # The files of 1M, 10M and 100M have the same names.
    target = folder / f"{name.dataset_name}.flat"
    print(convert(archives, name, target, progress=sys.stderr.isatty()))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
