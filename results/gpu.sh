#!/usr/bin/env bash
# The experiments of this project that need a GPU, in commands of less than ten minutes each:
#
#   results/gpu.sh check OUT       the GPU tests, the speed run and the throughput of `best`
#   results/gpu.sh benchmark OUT   the benchmark
#   results/gpu.sh teachers OUT    `best` at 64 and 48 px and a wide VGG, at the same time
#   results/gpu.sh student OUT     `best` and `tiny` distilled from these three, and their ensemble, at the same time
#   results/gpu.sh rest OUT        the baseline in two widths, 3 seeds at the same time; seeds 1 and 2 of `best`
#
# Arguments after OUT are overrides for every training. FER2013_PATH is the path of the data. Runs and measurements are
# written to runs/; running the same command again skips what is finished and resumes the rest. After each step,
# everything worth keeping is copied to OUT: a log, runs.tar.gz with the benchmark and with results.json, config.yaml
# and command.txt of each run, the best weights in half precision, and a table, which is also printed at the end.
#
#   BUDGET_S=540          seconds after which a running training is interrupted, to be resumed, and none is started
#   STEPS=400             training steps that the benchmark times
#   TEACHERS="A.pt B.pt"  more teachers for the student, besides those of the three that finished on this machine
#   PLAN=1                print the commands without running them
#
# Exit codes: 0 finished, 1 a command failed, 3 out of time: run the same command again. Ctrl-C stops the script.
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
call=${1:-} out=${2:-}
case "$call" in check | benchmark | teachers | student | rest) ;; *) call= ;; esac
if [ -z "$call" ] || [ -z "$out" ]; then
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
shift 2
settings=("$@")
mkdir -p "$out" runs
out=$(cd "$out" && pwd)

# Print a command, or run it within the remaining time. A failure is logged and does not stop the other commands.
failed=0 unfinished=0 stopped=
trap 'stopped=1' INT
run() {
    if [ -n "${PLAN:-}" ]; then
        printf '%q ' "$@"
        echo
        return
    fi
    [ -z "$stopped" ] || exit 130
    local left=$((${BUDGET_S:-540} - SECONDS)) started=$SECONDS code=0
    if [ "$left" -lt 1 ]; then
        echo "--- no time left for: $*" | tee -ia "$out/$call.log"
        unfinished=1
        return
    fi
    echo "--- $*" | tee -ia "$out/$call.log"
    timeout --foreground --signal=INT --kill-after=20 "$left" "$@" 2>&1 | (trap '' INT; exec sed -u "s/^/$label/") | tee -ia "$out/$call.log"
    code=${PIPESTATUS[0]}
    case "$code" in 0) ;; 124) unfinished=1 ;; *) failed=1 ;; esac
    echo "$label--- exit code $code after $((SECONDS - started)) s" | tee -ia "$out/$call.log"
    [ -n "$label" ] || keep
}

# Start a function beside others, whose first argument names the run: a single training leaves the GPU idle between its
# steps. `join` waits for all.
label='' jobs=()
beside() {
    if [ -n "${PLAN:-}" ]; then
        "$@"
        return
    fi
    (
        label="$2: "
        "$@"
        exit $((failed + 2 * unfinished))
    ) &
    jobs+=($!)
}
join() {
    local job code
    for job in ${jobs[@]+"${jobs[@]}"}; do
        wait "$job"
        code=$?
        if [ -n "$stopped" ]; then
            wait
            keep
            exit 130
        fi
        case "$code" in 0 | 2) ;; *) failed=1 ;; esac
        case "$code" in 2 | 3) unfinished=1 ;; esac
        keep
    done
    jobs=()
}

# Run a training as a sweep under a name: finished jobs are skipped, the others are resumed.
train() { run python train.py -m "name=$1" "${@:2}" ${settings[@]+"${settings[@]}"}; }

# Test checkpoints, under a name.
evaluate() { run python train.py "name=$1" 'stages=[test]' "${@:2}"; }

# Run a section of the benchmark unless it has been measured completely.
benchmark() {
    grep -qs "\"$1\": {" "runs/gpu-$1.json" ||
        run python -m fer_lightning benchmark "$1" ${settings[@]+"${settings[@]}"} "${@:2}" --out "runs/gpu-$1.json"
}

# Copy the results so far to OUT and update the table.
begun=$(date +%s)
keep() {
    python results/gpu_results.py "$out" --since "$begun" >"$out/table.txt" 2>&1 && return
    failed=1
    cat "$out/table.txt"
}

best=runs/best/gpu/0/checkpoints/best.ckpt
small=runs/best/gpu-48px/0/checkpoints/best.ckpt
wide=runs/best_cpu/gpu-wide/0/checkpoints/best.ckpt

case "$call" in
check)
    run python -m pytest -o addopts='--strict-markers' -q --durations=15 -m gpu tests/test_gpu.py
    train gpu experiment=fast seed=0,1,2,3,4
    train gpu-throughput experiment=best data.image_size=48 data.batch_size=128,256,512 trainer.benchmark=false,true \
        'stages=[fit]' trainer.max_epochs=2 trainer.limit_val_batches=1 callbacks=none logger=none
    ;;
benchmark)
    benchmark training --repeats 1 --steps "${STEPS:-400}"
    benchmark data --repeats 1
    train gpu-compiled experiment=best compile=true 'stages=[fit]' trainer.max_epochs=3 trainer.limit_val_batches=1 \
        callbacks=none logger=none
    for section in overhead inference memory start; do benchmark "$section" --repeats 1 --steps "${STEPS:-400}"; done
    ;;
teachers)
    beside train gpu experiment=best seed=0
    beside train gpu-48px experiment=best seed=0 data.image_size=48 trainer.max_epochs=110
    beside train gpu-wide experiment=best_cpu seed=0 'model.channels=[64,128,256,512]' augment=strong callbacks=long \
        tta=shifts data.batch_size=256 optim.lr=0.2 optim.warmup_epochs=5.0 mix.mixup_alpha=0.2 trainer.max_epochs=130
    join
    ;;
student)
    teachers=(${TEACHERS:-})
    for ckpt in "$best" "$small" "$wide"; do
        results=${ckpt%/checkpoints/*}/results.json
        if [ -n "${PLAN:-}" ] || grep -qs '"status": "finished"' "$results"; then teachers+=("$ckpt"); fi
    done
    if [ "${#teachers[@]}" -eq 0 ]; then
        echo "error: no teachers. Finish $0 teachers OUT, or set TEACHERS to checkpoints." >&2
        exit 1
    fi
    list="[$(IFS=, && echo "${teachers[*]}")]"
    beside train gpu-student experiment=best seed=0 "distill.ckpt=$list" distill.weight=1.0 distill.tta=mirror \
        data.augment_epochs=24 trainer.max_epochs=120
    beside train gpu-tiny experiment=tiny seed=0 "distill.ckpt=$list" distill.tta=none tta=shifts
    beside evaluate "gpu-ensemble-$(date +%H%M%S)" "ckpt=$list" tta=shifts
    join
    ;;
rest)
    for seed in 0 1 2; do
        for channels in 16,32,128 32,64,128; do
            beside train "gpu-${channels//,/-}-$seed" experiment=baseline "seed=$seed" "model.channels=[$channels]" \
                callbacks.prediction_grid.every_n_epochs=20 callbacks.confusion_matrix.every_n_epochs=20
        done
    done
    join
    for seed in 1 2; do beside train "gpu-$seed" experiment=best "seed=$seed"; done
    join
    ;;
esac
[ -z "${PLAN:-}" ] || exit 0
echo
[ ! -f "$out/table.txt" ] || cat "$out/table.txt"
[ "$unfinished" -eq 0 ] || echo "Out of time: run the same command again."
if [ "$failed" -ne 0 ]; then exit 1; elif [ "$unfinished" -ne 0 ]; then exit 3; fi
