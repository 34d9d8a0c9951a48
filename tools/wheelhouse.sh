#!/usr/bin/env bash
# Wheels for a machine without a network that has PyTorch and JAX: what this project, OGBench and the
# authors' code need besides. Put them into the folder that tools/gpu_trial.py installs from.
#
#   tools/wheelhouse.sh .whl [PYTHON_VERSION]      # 3.12 by default; Linux on x86-64
#
# dm_control brings 110 MB of bodies and scenes, of which OGBench imports none: it is cut down to its
# readers of MJCF. mujoco-studio, labmaze and dm-tree are left out, as nothing imports them.
set -euo pipefail

into=${1:?name the folder for the wheels}
python_version=${2:-3.12}
limit_mib=45
packages=(
  tyro==1.0.17 typeguard==4.6.1 docstring_parser==0.18.0 tqdm==4.70.1
  ogbench==1.2.2 gymnasium==1.4.0 farama-notifications==0.0.6 cloudpickle==3.1.3
  mujoco==4.0.0 mujoco-core==4.0.0 glfw==2.11.0 pyopengl==3.1.10
  dm_control==1.0.50 dm-env==1.6 ml_collections==1.1.0
)
# What was built for glibc 2.28 and older; pip matches every number exactly.
platforms=()
for minor in 28 27 26 24 17; do
  platforms+=(--platform "manylinux_2_${minor}_x86_64")
done

mkdir -p "$into"
python3 -m pip download --quiet --no-deps --only-binary=:all: --implementation cp \
  --python-version "$python_version" "${platforms[@]}" \
  --platform manylinux2014_x86_64 --platform manylinux1_x86_64 --dest "$into" "${packages[@]}"

python3 - "$into" <<'PYTHON'
import sys
import zipfile
from pathlib import Path

KEPT = ("__init__", "_render", "mjcf", "mujoco", "rl", "utils")
(path,) = Path(sys.argv[1]).glob("dm_control-*.whl")
with zipfile.ZipFile(path) as wheel:
    files = {info.filename: wheel.read(info) for info in wheel.infolist()}


def is_kept(name: str) -> bool:
    folder, _, rest = name.partition("/")
    kept = rest.split("/")[0].removesuffix(".py") in KEPT and "/testing/" not in rest
    return folder.endswith(".dist-info") or kept and not rest.endswith("_test.py")


(record,) = (name for name in files if name.endswith(".dist-info/RECORD"))
lines = files[record].decode().splitlines()
files[record] = "".join(f"{line}\n" for line in lines if is_kept(line.split(",")[0])).encode()
with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
    for name, content in files.items():
        if is_kept(name):
            wheel.writestr(name, content)
PYTHON

total=$(cat "$into"/*.whl | wc -c)
printf '%s\n' "$into"/*.whl
wheels=("$into"/*.whl)
echo "${#wheels[@]} wheels, $((total / 1024)) KiB"
if ((total > limit_mib * 1048576)); then
  echo "more than $limit_mib MiB: leave something out" >&2
  exit 1
fi
