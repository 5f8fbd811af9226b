#!/usr/bin/env bash
# What one GPU is to measure, in ten minutes at most: Qwen2-VL-2B and 7B in bfloat16 with random weights, no download.
#     PYTHON=.venv/bin/python benchmarks/gpu.sh [FOLDER]
# Every benchmark writes a file into FOLDER (benchmarks/results) and has a time limit of its own; SIZES="tiny" tries the
# script on a CPU. Answers are sampled plainly, with the prompt shared, with a static cache that transformers compiles,
# and, of texts alone, by continuous batching.
set -uo pipefail
cd "$(dirname "$0")/.."
folder=${1:-benchmarks/results}
mkdir -p "$folder"
failed=0
measure() { # seconds, name of the result, benchmark and its options
    local limit=$1 name=$2
    shift 2
    echo "== $name: $*"
    timeout "$limit" "${PYTHON:-python}" "benchmarks/$1.py" "${@:2}" --output "$folder/$name.json" || {
        echo "$name: no result (exit code $?; its limit is $limit s)"
        failed=1
    }
}
for size in ${SIZES:-2b 7b}; do
    measure 60 "grpo_loss_gpu_$size" grpo_loss --size "$size" --rounds 3 --long
    measure 100 "rollout_speed_gpu_$size" rollout_speed --size "$size" --rounds 2 --samples 8 --static --texts
    measure 60 "group_speed_gpu_$size" group_speed --size "$size" --rounds 3
    measure 80 "grpo_step_gpu_${size}_static" grpo_step_gpu --size "$size" --rounds 2 --static ${LORA:+--lora}
done
exit "$failed"
