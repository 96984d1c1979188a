#!/usr/bin/env bash
# What pre-training, fusion and honest folds are worth, at a size that two cores carry: 64 Hz and a small network.
#
#   bash benchmarks/evidence.sh simulated|eegmat SEED
#
# eegmat expects the recordings at EEGMAT and, for pre-training, EEGMMIDB at EEGMMIDB. PYTHON is the interpreter.
# Called again, it goes on where it stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
set_name=$1 seed=$2 python=${PYTHON:-python}
small_signals="--rate 64 --high 30"
network="--cnn-kernels 33 17 9 --cnn-channels 16 32 32 --layers 1 --heads 1 --ffn 64 --dropout 0"
training="--batch-size 8 --lr 1e-3 --threads 1"
classifier="--classifier-hidden 64 --classifier-dropout 0.1"

if [ "$set_name" = simulated ]; then
    root=evidence/simulated-seed$seed data=data/$root/simulated extra="" n_folds=4 pretrain_epochs=5
    $python prepare_data.py --dataset simulated --raw "raw/$root" --out "data/$root" --seed "$seed" $small_signals \
        --subjects 12 --unrated-subjects 6 --videos 8 --seconds 50
else
    root=evidence/eegmat-seed$seed data=data/evidence/eegmat extra=data/evidence/bci2000 n_folds=5 pretrain_epochs=8
    $python prepare_data.py --dataset eegmat --raw "$EEGMAT" --out data/evidence $small_signals \
        --max-seconds-per-trial 62 --drop-unusable-ecg
    $python prepare_data.py --dataset bci2000 --raw "$EEGMMIDB" --out data/evidence $small_signals
fi
declare -A epochs=([1]=12 [0.3]=20 [0.1]=40) # the fewer the labels, the fewer the steps of an epoch

one_modality() { # split, fold, modality
    local run="--run runs/$root-$1 --data $data --split $1 --n-folds $n_folds --fold-seed $seed --seed $seed"
    local call="--modality $3 --fold $2 $run $training" own_extra=""
    [ "$3" = eeg ] && [ -n "$extra" ] && own_extra="--extra $extra"
    $python pretrain.py $call $network $own_extra --epochs $pretrain_epochs --warmup-epochs 1
    for init in "pretrained" "random $network"; do
        local tune="$python finetune.py $call --target arousal $classifier --init $init"
        $tune --epochs ${epochs[1]}
        [ "$1" = subject ] || continue
        for fraction in 0.3 0.1; do
            $tune --epochs ${epochs[$fraction]} --label-fraction $fraction
        done
        $tune --epochs ${epochs[1]} --freeze
        if [ "$init" = pretrained ]; then $tune --epochs ${epochs[1]} --shuffle-labels; fi
    done
}

trap 'trap - INT TERM; kill 0' INT TERM
for split in subject segment; do
    run="--run runs/$root-$split --data $data --split $split --n-folds $n_folds --fold-seed $seed --seed $seed"
    for ((fold = 0; fold < n_folds; fold++)); do
        one_modality $split $fold eeg 2>&1 | cat & # a core each; cat turns progress bars into lines
        eeg=$!
        one_modality $split $fold ecg 2>&1 | cat &
        both=0
        wait $eeg || both=$?
        wait $! || both=$?
        [ $both = 0 ] || exit $both
        fuse="$python fuse.py --target arousal --fold $fold $run $training --epochs 30"
        for init in pretrained random; do
            $fuse --init $init
            [ $split = subject ] || continue
            for fraction in 0.3 0.1; do
                $fuse --init $init --label-fraction $fraction
            done
        done
        [ $split = segment ] || $fuse --shuffle-labels
    done
    $python baseline.py $run --target arousal
    if [ $split = subject ]; then
        for variant in "--label-fraction 0.3" "--label-fraction 0.1" --shuffle-labels; do
            $python baseline.py $run --target arousal $variant
        done
    fi
done
