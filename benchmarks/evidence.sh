#!/usr/bin/env bash
# What pre-training and honest folds are worth, at a size that two cores carry: 64 Hz and a small network.
#
#   bash benchmarks/evidence.sh simulated|eegmat|cinc2017|transfer SEED [SUFFIX FLAG ...]
#
# SUFFIX and flags: a variant, pre-trained with further flags, in runs of that suffix. NORM: the --encoder-norm of all.
# simulated  EEG (or MODALITY) of 12 rated and 24 unrated people: each share of the labels, fine-tuned and frozen, without and with
#            pre-training on all of them but the held out
# eegmat     rest against mental arithmetic; the recordings are at EEGMAT, those for pre-training at EEGMMIDB
# cinc2017   77 hours of ECG, at CINC2017: pre-training on four fifths, atrial fibrillation (as "arousal") in the rest
# transfer   eegmat's ECG, pre-trained on cinc2017 as well
#
# PYTHON is the interpreter. Called again, it goes on where it stopped. The tables: python benchmark.py evidence --help
set -euo pipefail
cd "$(dirname "$0")/.."
set_name=$1 seed=$2 suffix=${3:-} python=${PYTHON:-python}
further=("${@:4}")
signals="--out data/evidence --rate 64 --high 30"
network="--cnn-kernels 33 17 9 --cnn-channels 16 32 32 --layers 1 --heads 1 --ffn 64 --dropout 0"
network+=" --encoder-norm ${NORM:-output}"
training="--batch-size 8 --threads 1"
classifier="--target arousal --classifier-hidden 64 --classifier-dropout 0.1"
runs=runs/evidence/$set_name-seed$seed$suffix

pretrain() { # modality, fold, epochs, flags: the two runs differ in what the classifier of a frozen encoder reads
    $python pretrain.py --modality "$1" --fold "$2" --run "$runs" $run $training $network --lr 1e-3 --warmup-epochs 1 \
        --epochs "$3" "${@:4}" "${further[@]}"
    mkdir -p "$runs-tokens/$1/fold$2"
    cp "$runs"/{run.json,folds.npy} "$runs-tokens"
    cp "$runs/$1/fold$2/pretrain.pt" "$runs-tokens/$1/fold$2"
}

finetune() { # modality, fold, flags
    $python finetune.py --modality "$1" --fold "$2" $run $training $classifier "${@:3}"
}

inits=("--init pretrained" "--init random $network")

# Fine-tuning at the learning rate and for the epochs that give the least loss on validation, of each side for itself.
finetune_chosen() { # modality, fold, most epochs, flags
    local rate trials chosen call=("$1" "$2" "${@:4}")
    trials=$runs/trials/$(echo "$@" | md5sum | cut -c 1-8)
    for rate in 3e-4 1e-3; do
        finetune "${call[@]}" --lr $rate --epochs "$3" --validation-only "$trials/$rate"
    done
    chosen=$($python -c '
import json, pathlib, sys
logs = pathlib.Path(sys.argv[1]).glob("*/*.jsonl")
lines = [(path.parent.name, json.loads(line)) for path in logs for line in path.read_text().splitlines()]
_, rate, epoch = min((line["validation_loss"], rate, line["epoch"]) for rate, line in lines)
print("--lr", rate, "--epochs", epoch)' "$trials")
    finetune "${call[@]}" $chosen
}

both_pools() { # modality, fold, flags: a frozen encoder under a classifier of CLS, and of mean and SD over its tokens
    finetune "$1" "$2" --run "$runs" --freeze "${@:3}"
    finetune "$1" "$2" --run "$runs-tokens" --freeze --pool tokens "${@:3}"
}

trap 'trap - INT TERM; kill 0' INT TERM
case $set_name in
simulated)
    modality=${MODALITY:-eeg}
    signals=${signals/evidence/evidence/$modality-seed$seed}
    $python prepare_data.py --dataset simulated --raw "raw/evidence/seed$seed" $signals --modalities $modality \
        --seed "$seed" --subjects 12 --unrated-subjects 24 --videos 8 --seconds 50
    run="--data data/evidence/$modality-seed$seed/simulated --split subject --n-folds 4 --fold-seed $seed --seed $seed"
    # The fewer the labels, the fewer the steps of an epoch.
    declare -A epochs=([1]=20 [0.3]=40 [0.1]=80) epochs_frozen=([1]=12 [0.3]=20 [0.1]=40)
    for fold in 0 1 2 3; do
        pretrain $modality $fold 15
        for init in "${inits[@]}"; do
            for fraction in 1 0.3 0.1; do
                flags="--label-fraction $fraction $init"
                both_pools $modality $fold --lr 1e-3 --epochs ${epochs_frozen[$fraction]} $flags
                finetune $modality $fold --run "$runs" --lr 3e-4 --epochs ${epochs[$fraction]} $flags
            done
        done
    done
    ;;
eegmat)
    $python prepare_data.py --dataset eegmat --raw "$EEGMAT" $signals --max-seconds-per-trial 62 --drop-unusable-ecg
    $python prepare_data.py --dataset bci2000 --raw "$EEGMMIDB" $signals
    run="--data data/evidence/eegmat --split subject --n-folds 5 --fold-seed $seed --seed $seed"
    for fold in 0 1 2 3 4; do
        for modality in eeg ecg; do
            extra=""
            [ $modality = ecg ] || extra="--extra data/evidence/bci2000"
            pretrain $modality $fold 8 $extra
            for init in "${inits[@]}"; do
                finetune $modality $fold --run "$runs" --lr 1e-3 --epochs 12 $init
                both_pools $modality $fold --lr 1e-3 --epochs 12 $init
            done
        done
        for init in pretrained random; do
            $python fuse.py --target arousal --fold $fold --run "$runs" $run $training --lr 1e-3 --epochs 30 --init $init
        done
    done
    for split in subject segment; do
        own=$runs
        [ $split = subject ] || own=$runs-segment
        $python baseline.py --target arousal --run "$own" ${run/--split subject/--split $split}
    done
    ;;
cinc2017 | transfer)
    raw=raw/evidence/cinc2017
    mkdir -p $raw
    [ -e $raw/recordings.csv ] || cp -s "$CINC2017"/*.hea "$CINC2017"/*.mat $raw
    # Each record is somebody of its own, but for two that are there twice, byte for byte.
    awk -F '[,\r]' 'BEGIN { print "file,subject,arousal"; twice["A01176"] = "A00227"; twice["A03123"] = "A02656" }
        NR > 1 { print $1 ".hea," (($1 in twice) ? twice[$1] : $1) "," ($2 == "A" ? 9 : 1) }' \
        "$CINC2017/REFERENCE.csv" >$raw/recordings.csv
    $python prepare_data.py --dataset folder --name cinc2017 --raw $raw $signals --modalities ecg
    if [ "$set_name" = cinc2017 ]; then
        run="--data data/evidence/cinc2017 --split subject --n-folds 5 --validation-parts 30 --fold-seed $seed --seed $seed"
        pretrain ecg 0 10
        declare -A epochs=([1]=2 [0.1]=12 [0.01]=60)
        for fraction in 0.01 0.1 1; do
            for init in "${inits[@]}"; do
                finetune_chosen ecg 0 ${epochs[$fraction]} --run "$runs" --label-fraction $fraction $init
                finetune_chosen ecg 0 30 --run "$runs-tokens" --label-fraction $fraction --freeze --pool tokens $init
            done
        done
    else
        $python prepare_data.py --dataset eegmat --raw "$EEGMAT" $signals --max-seconds-per-trial 62 --drop-unusable-ecg
        run="--data data/evidence/eegmat --split subject --n-folds 2 --fold-seed $seed --seed $seed"
        for fold in 0 1; do
            pretrain ecg $fold 10 --extra data/evidence/cinc2017
            for init in "${inits[@]}"; do
                finetune_chosen ecg $fold 30 --run "$runs" $init
                finetune_chosen ecg $fold 30 --run "$runs-tokens" --freeze --pool tokens $init
            done
        done
    fi
    ;;
esac
