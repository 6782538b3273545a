#!/usr/bin/env bash
# The long trainings for two CPU cores, one after the other:
#
#   results/two_cores.sh
#
# trains two seeds of a network of 5.2 million parameters in two rounds, and three seeds of experiment=fast_70;
# chooses an ensemble of these on PublicTest; distills it into two seeds of `tiny`; measures what single changes to a
# recipe bring; and at the end tests on PrivateTest, which nothing before uses. Running it again skips what is
# finished and resumes the rest; a command that fails ends the script. Arguments are overrides for every training,
# e.g. compile=false without a C++ compiler. FER2013_PATH is the path of the data. Runs are written to runs/, the
# choice of the ensemble to runs/two_cores.json.
#
#   PLAN=1    print the commands without running them
set -euo pipefail
cd "$(dirname "$0")/.."
settings=("$@")
choice=runs/two_cores.json

run() {
    if [ -n "${PLAN:-}" ]; then
        printf '%q ' "$@"
        echo
    else
        echo "--- $*"
        "$@"
    fi
}

# Run jobs as a sweep under a name: finished ones are skipped, the others are resumed.
jobs() { run python train.py -m "name=$1" 'stages=[fit]' "${@:2}" ${settings[@]+"${settings[@]}"}; }

# Test checkpoints, separated by commas, with a set of views, under a name.
score() { run python train.py -m "name=$1" 'stages=[test]' "ckpt=[$2]" "tta=$3"; }

seeds=(0 1) members=()
recipe=(experiment=best model.stem_stride=2 data.batch_size=128 compile=true)
jobs two-cores-round-1 "${recipe[@]}" seed=0,1 optim.lr=0.1
for seed in "${seeds[@]}"; do
    first=runs/best/two-cores-round-1/$seed/checkpoints/best.ckpt
    jobs "two-cores-round-2-$seed" "${recipe[@]}" "seed=$seed" "ckpt=$first" optim.lr=0.05 \
        optim.warmup_epochs=1.0 callbacks.ema.horizon_epochs=5.0 trainer.max_epochs=40
    members+=("runs/best/two-cores-round-2-$seed/0/checkpoints/best.ckpt" "$first")
done
jobs two-cores experiment=fast_70 seed=0,1,2
for seed in 0 1 2; do members+=("runs/fast_70/two-cores/$seed/checkpoints/best.ckpt"); done

[ -f "$choice" ] || run python results/choose_ensemble.py "${members[@]}" --out "$choice"
# A plan may be printed before the choice is made; it names all members.
ckpts=$(IFS=, && echo "${members[*]}") tta=shifts
if [ -f "$choice" ]; then
    read -r ckpts tta < <(python -c '
import json, sys
chosen = json.load(open(sys.argv[1]))["chosen"]
print(",".join(chosen["ckpt"]), chosen["tta"])' "$choice")
fi

jobs two-cores experiment=tiny seed=0,1 "distill.ckpt=[$ckpts]" distill.tta=none tta=shifts
jobs two-cores experiment=best_cpu sweep=ablation_long

for seed in "${seeds[@]}"; do
    score "two-cores-best-$seed" "runs/best/two-cores-round-2-$seed/0/checkpoints/best.ckpt" shifts
    score "two-cores-tiny-$seed" "runs/tiny/two-cores/$seed/checkpoints/best.ckpt" shifts
done
score two-cores-ensemble "$ckpts" "$tta"
