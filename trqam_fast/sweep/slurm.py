"""A sweep as a Slurm script that submits itself."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import Path

from trqam_fast.errors import UsageError
from trqam_fast.sweep.plan import Job
from trqam_fast.sweep.spec import Resources

# Reads `out`, `jobs` and `pretraining`, which the head of the script sets.
BODY = r"""
if [[ -z "${SLURM_ARRAY_TASK_ID:-}" ]]; then
    # Outside of Slurm: submit this file. An array has at most MaxArraySize elements, on many
    # clusters 1001; more jobs make several arrays, each with the number of its first job.
    size=$(scontrol show config | sed -n 's/^MaxArraySize *= *//p')
    size=${size:-1001}
    submit() { # FIRST END [OPTION]: sets ids to ":" and the number of each array
        local first=$1 end=$2 id
        ids=""
        for ((; first < end; first += size)); do
            count=$((end - first < size ? end - first : size))
            id=$(sbatch --parsable --array="0-$((count - 1))" "${@:3}" "$0" "$first") || exit 1
            ids+=":${id%%;*}"
            echo "submitted jobs $first to $((first + count - 1)) of ${#jobs[@]} as array ${id%%;*}"
        done
    }
    mkdir -p "$out/logs" || exit 1
    submit 0 "$pretraining"
    # Fine-tuning whose pretraining failed refuses by itself, so any end of pretraining will do.
    submit "$pretraining" "${#jobs[@]}" ${ids:+"--dependency=afterany$ids"}
    exit 0
fi

job=${jobs[${1:-0} + SLURM_ARRAY_TASK_ID]}
element=${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}
child="" asked="" caught=""
# shellcheck disable=SC2329 # the traps call it
forward() {
    asked=$1 caught=yes
    [[ -z "$child" ]] || kill -s "$1" "$child" 2>/dev/null
}
trap 'forward USR1' USR1
trap 'forward TERM' TERM
python -m trqam_fast.sweep --out "$out" --job "$job" &
child=$!
[[ -z "$asked" ]] || kill -s "$asked" "$child"
caught=""
wait "$child"
status=$?
while [[ -n "$caught" ]]; do # a trap ends `wait` before the child ends
    caught=""
    wait "$child"
    again=$?
    [[ $again -eq 127 ]] || status=$again # 127: its status has been told already
done
echo "$job: exit status $status"
case "$status:$asked" in
    # Stopped with a checkpoint, or by the signal before it could listen: to be continued, unless
    # this is a cancellation, which a requeue would undo.
    75:* | 138:USR1 | 143:TERM)
        [[ $(scontrol show job "$element") != *JobState=RUNNING* ]] || scontrol requeue "$element"
        ;;
esac
exit "$status"
"""


def slurm_script(jobs: Sequence[Job], out: Path, resources: Resources) -> str:
    """Return a bash script that submits a sweep to Slurm and runs each of its jobs there.

    Outside of Slurm it submits itself as two job arrays, pretraining and what comes after it. In an
    array it runs one job, passes USR1 and TERM on to it, and puts it back into the queue where it
    ends with status 75, unless the user cancelled it.

    Args:
        jobs: The sweep's jobs.
        out: Its folder, on a file system that all nodes share.
        resources: What each job gets.

    Raises:
        UsageError: a value that a line for Slurm cannot hold.
    """
    first = [job for job in jobs if job.pretrains]
    ordered = [*first, *(job for job in jobs if not job.pretrains)]
    out = out.resolve()
    options = {
        "job-name": out.name,
        "output": str(out).replace("%", "%%") + "/logs/slurm-%A_%a.out",
        "open-mode": "append",
        "requeue": None,
        "signal": "B:USR1@120",
        "ntasks": 1,
        "cpus-per-task": math.ceil(resources.cpus),
        "gres": f"gpu:{math.ceil(resources.gpus)}" if resources.gpus > 0 else "",
        "mem": f"{math.ceil(1024 * resources.memory_gb)}M",
        "time": resources.time or "",
        "partition": resources.partition or "",
    }
    lines = ["#!/bin/bash"]
    lines += [directive(name, value) for name, value in options.items() if value != ""]
    if resources.gpus != math.ceil(resources.gpus):
        lines.append(
            f"# Slurm gives whole GPUs: {math.ceil(resources.gpus)} each, where the sweep has "
            f"{resources.gpus}."
        )
    lines += [
        f"# Submit with: bash {shlex.quote(f'{out}/sweep.slurm')}",
        "",
        f"out={shlex.quote(str(out))}",
        f"pretraining={len(first)} # that many jobs come first, the others wait for them",
        "jobs=(",
        *(f"    {shlex.quote(job.name)}" for job in ordered),
        ")",
    ]
    return "\n".join(lines) + "\n" + BODY


def directive(name: str, value: str | int | None) -> str:
    """Return a line for sbatch.

    Raises:
        UsageError: a character that such a line cannot hold.
    """
    if value is None:
        return f"#SBATCH --{name}"
    for character in str(value):
        if not character.isprintable() or character in "\"'\\":
            raise UsageError(
                f"--slurm-script cannot write {value!r} as Slurm's --{name}, because it contains "
                f"{character!r}; use another name"
            )
    plain = shlex.quote(str(value)) == str(value)
    return f"#SBATCH --{name}={value}" if plain else f'#SBATCH --{name}="{value}"'
