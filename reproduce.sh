#!/usr/bin/env bash
# The whole experiment of the paper: every stage of every fold, then the tables. What is finished is skipped.
#
#   bash reproduce.sh [FOLD ...]     default: all ten
#
# DATA, RUN, TARGETS, EEG_EXTRA and ECG_EXTRA name other data and another run; FLAGS go to every stage, and
# PRETRAIN_FLAGS, FINETUNE_FLAGS and FUSE_FLAGS to one. PYTHON is the interpreter.
set -euo pipefail
cd "$(dirname "$0")"
python=${PYTHON:-python}
data=${DATA:-data/amigos} run=${RUN:-runs/paper} targets=${TARGETS:-arousal valence}
eeg_extra=${EEG_EXTRA-data/bci2000 data/way_eeg_gal data/large_eeg_bci}
ecg_extra=${ECG_EXTRA-data/ascertain data/dreamer data/pspm}
common="--data $data --run $run ${FLAGS:-}"
pretrain="$common ${PRETRAIN_FLAGS:-}" finetune="$common ${FINETUNE_FLAGS:-}" fuse="$common ${FUSE_FLAGS:-}"

for folder in $data $eeg_extra $ecg_extra; do
    if [ ! -e "$folder/manifest.json" ]; then
        echo "reproduce.sh: $folder: no prepared data set; prepare it, or name others in DATA, EEG_EXTRA, ECG_EXTRA" >&2
        exit 2
    fi
done
[ $# -gt 0 ] || set -- 0 1 2 3 4 5 6 7 8 9
for fold in "$@"; do
    $python pretrain.py --modality eeg --fold "$fold" --extra $eeg_extra $pretrain
    $python pretrain.py --modality ecg --fold "$fold" --extra $ecg_extra $pretrain
    for target in $targets; do
        for init in pretrained random; do
            $python finetune.py --modality eeg --target "$target" --fold "$fold" --init $init $finetune
            $python finetune.py --modality ecg --target "$target" --fold "$fold" --init $init $finetune
            $python fuse.py --target "$target" --fold "$fold" --init $init $fuse
        done
    done
done
$python evaluate.py --run "$run"
