#!/usr/bin/env bash
# Trains the adapters that ship with the package, `METHOD-tiny`, by the recipes of tools/recipes.toml: on the sets that
# DATA holds (folds A and B of benchmarks/systems.py) and on 3,000 drawn scenes. An hour on two processor cores.
# Stops where the inputs are not those of the shipped adapters (tools/inputs.py); INPUTS=any trains on them all the same.
#
#   tools/adapter.sh DATA WORK [METHOD ...]
set -euo pipefail
cd "$(dirname "$0")/.."
data=$1 work=$2
shift 2
[ $# -gt 0 ] || set -- promptmoe mpa mpama wmoeclip moeclip aprilgan anomalyclip adaclip faprompt
mkdir -p "$work"
[ -d "$work/scenes" ] || python -c "
import sys
from zsad.synth import write_data_set
write_data_set(sys.argv[1], count=3000, seed=2, size=(320, 320), defective=0.6)" "$work/scenes"
inputs=("scenes=$work/scenes")
for name in MVTec MVTec3D-RGB CVC-ColonDB MagneticTile BSData CrackForest; do inputs+=("$name=$data/$name"); done
[ "${INPUTS:-}" = any ] || python tools/inputs.py "${inputs[@]}"
python benchmarks/systems.py features "$data" --work "$work" --also "$work/scenes" --methods "$@"
python benchmarks/systems.py run "$data" --work "$work" --also "$work/scenes" --methods "$@" --folds AB --seeds 111
for method in "$@"; do
    python tools/ship_adapter.py "$work/runs/$method-AB-111/fused/model.safetensors" "$method-tiny"
done
