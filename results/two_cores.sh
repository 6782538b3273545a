#!/usr/bin/env bash
# The long trainings for two CPU cores, one after the other, about a day and a half in all:
#
#   results/two_cores.sh
#
# trains two seeds of a large network, chooses an ensemble on PublicTest, distills it into two seeds of `tiny`, and
# measures what single parts of a recipe pay. Last come the tests on PrivateTest, which nothing before them reads.
# Running it again skips what is finished and resumes the rest. Runs are written to runs/, the choice to
# runs/choice.json. FER2013_PATH is the path of the data. Arguments are overrides for every training.
#
#   PLAN=1    print the commands without running them
set -euo pipefail
cd "$(dirname "$0")/.."
settings=("$@")

run() {
    printf '%q ' "$@"
    echo
    [ -n "${PLAN:-}" ] || "$@"
}

# Fit the runs of a sweep: finished ones are skipped, the others resumed.
fit() { run python train.py -m "name=$1" 'stages=[fit]' "${@:2}" ${settings[@]+"${settings[@]}"}; }

# Test a network unless that is done.
test() { run python train.py -m "name=$1" 'stages=[test]' "${@:2}"; }
