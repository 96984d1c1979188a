#!/usr/bin/env bash
# The whole experiment of the paper: every stage of every fold, then the tables. What is finished is skipped.
#
#   bash reproduce.sh [FOLD ...]     default: all ten
#
# DATA, RUN, EEG_EXTRA, ECG_EXTRA and TARGETS name other data and another run; FLAGS go to every stage.
set -euo pipefail
cd "$(dirname "$0")"
data=${DATA:-data/amigos} run=${RUN:-runs/paper} targets=${TARGETS:-arousal valence}
eeg_extra=${EEG_EXTRA-data/bci2000 data/way_eeg_gal data/large_eeg_bci}
ecg_extra=${ECG_EXTRA-data/ascertain data/dreamer data/pspm}
common="--data $data --run $run ${FLAGS:-}"

[ $# -gt 0 ] || set -- 0 1 2 3 4 5 6 7 8 9
for fold in "$@"; do
    python pretrain.py --modality eeg --fold "$fold" --extra $eeg_extra $common
    python pretrain.py --modality ecg --fold "$fold" --extra $ecg_extra $common
    for target in $targets; do
        for init in pretrained random; do
            python finetune.py --modality eeg --target "$target" --fold "$fold" --init $init $common
            python finetune.py --modality ecg --target "$target" --fold "$fold" --init $init $common
            python fuse.py --target "$target" --fold "$fold" --init $init $common
        done
    done
done
python evaluate.py --run "$run"
