#!/usr/bin/env bash
# Trains promptmoe-tiny on the sets that DATA holds (folds A and B of benchmarks/folds.py) and on 600 drawn scenes, and
# puts it into the package. About ten minutes on two processor cores.
#
#   tools/adapter.sh DATA WORK [SEED]
set -euo pipefail
cd "$(dirname "$0")/.."
data=$1 work=$2 seed=${3:-111}
mkdir -p "$work"
python -c "
import sys
from zsad.data.synth import write_data_set
write_data_set(sys.argv[1], count=600, seed=1, size=(320, 320), defective=0.6)" "$work/synth"
# The settings were chosen inside the folds (benchmarks/results/README.md).
zsad train promptmoe --out "$work/run" --seed "$seed" \
    --data "$data/MVTec" "$data/MVTec3D-RGB" "$data/CVC-ColonDB" "$data/MagneticTile" "$data/BSData" \
    "$data/CrackForest" "$work/synth" \
    --epochs 5 --warmup-epochs 2 --balance class --limit-per-class 60 --set train_map_size=160
python tools/ship_adapter.py "$work/run" promptmoe-tiny
