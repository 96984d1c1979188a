#!/usr/bin/env bash
# The whole method on a simulated cohort, with a reduced network, in some five minutes on two cores.
#
#   bash demo.sh [SEED] [EFFECT]     EFFECT 0 simulates signals that say nothing about the ratings
#
# 12 people rate 8 videos; 12 more are recorded without a rating, for pre-training alone. Each model is trained with and
# without pre-training. It makes .venv and installs requirements.txt there first. PYTHON is the interpreter that .venv is
# made with. Fine-tuning and fusion take higher learning rates than the paper's: with those, a network would learn little
# in so few epochs.
set -euo pipefail
cd "$(dirname "$0")"
seed=${1:-0} effect=${2:-1}
name=demo-seed$seed-effect$effect
base=${PYTHON:-python3} python=.venv/bin/python

if ! cmp -s requirements.txt .venv/requirements.txt; then
    about='import sys; print(sys.version.split()[0]); sys.exit(sys.version_info < (3, 11))'
    if ! found=$("$base" -c "$about" 2>/dev/null); then
        echo "demo.sh: expected Python 3.11 or later as $base, found ${found:-none}; call PYTHON=python3.12 bash demo.sh" >&2
        exit 2
    fi
    echo "installing requirements.txt into .venv"
    "$base" -m venv --clear .venv
    $python -m pip install -q -r requirements.txt
    cp requirements.txt .venv/
fi

$python prepare_data.py --dataset simulated --raw "raw/$name" --out "data/$name" --seed "$seed" --effect "$effect" \
    --subjects 12 --unrated-subjects 12 --videos 8 --rate 64 --high 30

run=(--run "runs/$name" --data "data/$name/simulated" --n-folds 3 --seed "$seed" --threads 1 --batch-size 8)
network=(--cnn-kernels 33 17 9 --cnn-channels 16 32 32 --layers 1 --heads 1 --ffn 64 --dropout 0)
classifier=(--classifier-hidden 64 --classifier-dropout 0.1)

single_modality() {  # modality, fold
    local call=(--modality "$1" --fold "$2" "${run[@]}")
    $python pretrain.py "${call[@]}" "${network[@]}" --epochs 4 --warmup-epochs 1 --lr 1e-3
    for target in arousal valence; do
        for init in pretrained "random ${network[*]}"; do
            $python finetune.py "${call[@]}" "${classifier[@]}" --target $target --epochs 10 --lr 3e-4 --init $init
        done
    done
}

trap 'trap - INT TERM; kill 0' INT TERM
for fold in 0 1 2; do
    [ -e "runs/$name/fused/fold$fold/valence-random.npy" ] && continue
    single_modality eeg $fold 2>&1 | cat & # a core each; cat turns progress bars into lines
    eeg=$!
    single_modality ecg $fold 2>&1 | cat &
    both=0
    wait $eeg || both=$?
    wait $! || both=$?
    [ $both = 0 ] || exit $both
    for target in arousal valence; do
        for init in pretrained random; do
            $python fuse.py --target $target --fold $fold "${run[@]}" --epochs 30 --lr 1e-3 --init $init
        done
    done
done
$python evaluate.py --run "runs/$name"
