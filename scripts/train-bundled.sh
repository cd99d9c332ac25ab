#!/usr/bin/env bash
# Train the bundled models anew, or further, in one command (docs/training.md says what each step does).
#   scripts/train-bundled.sh DATA WORK OUT     DATA: label_maps/ and templates/; OUT: models to start from and replace
# WORKERS  processes that make samples while the training runs (default: one per core, less one)
# SEED     of the samples; choose a new one to train further on new samples (default 11)
# SAMPLES  in all, half of those of a condition with a template from that template (default 400); MASK_SAMPLES (240)
# STEPS, BATCH, PATCH, RATE      of the pair (default 5600, 2, 64, 1e-3); STEPS=0 leaves it as it is
# MASK_STEPS, MASK_BATCH         of the brain extraction (default 2400, 2); MASK_STEPS=0 leaves it as it is
# DEVICE   auto, cpu, cuda (default auto);   PYTHON  (default python)
# Labels of the templates, where there are any, lie in WORK/labels. A second start goes on where the first ended.
set -euo pipefail
data=${1:?DATA WORK OUT} work=${2:?WORK OUT} out=${3:?OUT}
python=${PYTHON:-python} cores=$(getconf _NPROCESSORS_ONLN)
workers=${WORKERS:-$((cores > 2 ? cores - 1 : 1))}
seed=${SEED:-11} samples=${SAMPLES:-400} mask_samples=${MASK_SAMPLES:-240}
steps=${STEPS:-5600} mask_steps=${MASK_STEPS:-2400}
labels=$work/labels template=$data/templates/Template
conditions=$("$python" -c "from bmex_bids.training.stages import CONDITIONS; print(*CONDITIONS)")
real=(T2w-fetal="$template-Fetal-T2w.nii.gz" T1w-9="$template-Month9-T1w.nii.gz" T2w-9="$template-Month9-T2w.nii.gz"
      T1w-24="$template-Month24-T1w.nii.gz" T2w-24="$template-Month24-T2w.nii.gz")
mkdir -p "$work" "$labels"
makers=()
trap 'kill "${makers[@]}" 2>/dev/null || true' EXIT

# make_samples KIND FOLDER COUNT OPTIONS: COUNT samples, shared among the workers
make_samples() {
    local kind=$1 folder=$2 count=$3 each begin
    shift 3
    each=$(((count + workers - 1) / workers))
    for ((begin = 0; begin < count; begin += each)); do
        OMP_NUM_THREADS=1 "$python" -m bmex_bids.training.pool "$kind" "$folder" \
            --label-maps "$data/label_maps" --seed "$seed" --start "$begin" \
            --count $((begin + each > count ? count - begin : each)) "$@" &
        makers+=($!)
    done
}

# wait_for FOLDER COUNT: until so many samples are there, or no process makes any
wait_for() {
    until [ "$(find "$1" -name '[0-9]*.safetensors' 2>/dev/null | wc -l)" -ge "$2" ]; do
        kill -0 "${makers[@]}" 2>/dev/null || break
        sleep 2
    done
}

if [ "$steps" -gt 0 ]; then
    # shellcheck disable=SC2086
    make_samples enhance "$work/pool" "$samples" --conditions $conditions --real "${real[@]}" \
        --real-labels "$labels" --real-share 0.5 --lesions 0.5
    printf '[loss]\nlesion_weight = 5.0\ndice_weight = 1.0\n' > "$work/pair.toml"
    wait_for "$work/pool" $((samples < 32 ? samples : 32))
    "$python" -m bmex_bids.training.train enhance "$work/pool" "$work/run" --start "$out/bmex-pair.safetensors" \
        --config "$work/pair.toml" \
        --steps "$steps" --batch "${BATCH:-2}" --patch "${PATCH:-64}" --rate "${RATE:-1e-3}" --device "${DEVICE:-auto}"
    kill "${makers[@]}" 2>/dev/null || true
    wait
    "$python" -m bmex_bids.training.bundle "$work/run/checkpoint.pt" "$out" --templates "$data/templates" \
        --held-out Template-Month0-T2w 'Template-Month6-*' 'Template-Month12-*' MNI152 Colin27 lifespan_bids \
        --data "heads synthesised from label maps with the contrast of every stage, seed $seed, and degraded templates (fetal T2w, 9 and 24 months); started from the weights before, whose classifier knows that of 0 months T1w, too"
    "$python" -m bmex_bids.evaluation.baselines.renew "$out"
fi
if [ "$mask_steps" -gt 0 ]; then
    makers=()
    make_samples brainmask "$work/pool-mask" "$mask_samples"
    wait_for "$work/pool-mask" $((mask_samples < 32 ? mask_samples : 32))
    "$python" -m bmex_bids.training.train brainmask "$work/pool-mask" "$work/run-mask" \
        --start "$out/bmex-brainmask.safetensors" --steps "$mask_steps" --batch "${MASK_BATCH:-2}" --rate 1.2e-3 \
        --device "${DEVICE:-auto}"
    kill "${makers[@]}" 2>/dev/null || true
    wait
    "$python" -m bmex_bids.training.export brainmask "$work/run-mask/checkpoint.pt" "$out" --name bmex-brainmask --grid 1.6 \
        --data "synthetic heads of label maps, any contrast, degraded, seed $seed; started from the weights before"
fi
