#!/usr/bin/env bash
# Train the bundled models anew, or further, in one command (docs/training.md says what each step does).
#   scripts/train-bundled.sh DATA WORK OUT     DATA: label_maps/ and templates/; OUT: models to start from and replace
# WORKERS  processes that make samples while the training runs (default: one per core, less one)
# SEED     of the samples; choose a new one to train further on new samples (default 11)
# SAMPLES  in all, half of those of a condition with a template from that template (default 400); MASK_SAMPLES (240)
# TISSUE_STEPS, TISSUE_BATCH, TISSUE_PATCH   of the classifier (default 4000, 1, 96); 0 steps leave it as it is
# STEPS, BATCH, PATCH, DEPTH, RATE           of the enhancer (default 3200, 1, 192, 16, 1.5e-3); likewise
# MASK_STEPS, MASK_BATCH         of the brain extraction (default 2400, 2); MASK_STEPS=0 leaves it as it is
# DEVICE   auto, cpu, cuda (default auto);   PYTHON  (default python)
# Labels of the templates, where there are any, lie in WORK/labels. A second start goes on where the first ended.
set -euo pipefail
data=${1:?DATA WORK OUT} work=${2:?WORK OUT} out=${3:?OUT}
python=${PYTHON:-python} cores=$(getconf _NPROCESSORS_ONLN)
workers=${WORKERS:-$((cores > 2 ? cores - 1 : 1))}
seed=${SEED:-11} samples=${SAMPLES:-400} mask_samples=${MASK_SAMPLES:-240}
tissue_steps=${TISSUE_STEPS:-4000} steps=${STEPS:-3200} mask_steps=${MASK_STEPS:-2400}
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

# settings NAME SECTION...: a file for --config, with the bundled network
settings() {
    printf '%s\n' "${@:2}" '[network]' 'name = "TissueGuidedUNet"' 'conditions = 16' 'classes = 5' 'reach = 2' \
        'tissue = {widths = [24, 48, 72, 96], thin = 0, norm = "layer"}' \
        'enhance = {slices = 5, widths = [48, 96, 144, 192, 256], norm = "layer"}' >"$work/$1.toml"
}

if [ $((tissue_steps + steps)) -gt 0 ]; then
    # shellcheck disable=SC2086
    make_samples enhance "$work/pool" "$samples" --conditions $conditions --real "${real[@]}" \
        --real-labels "$labels" --real-share 0.5
    wait_for "$work/pool" $((samples < 32 ? samples : 32))
    start=$out/bmex-pair.safetensors last=
    if [ "$tissue_steps" -gt 0 ]; then
        settings tissue '[loss]' 'enhance_weight = 0.0'
        "$python" -m bmex_bids.training.train enhance "$work/pool" "$work/run-tissue" --config "$work/tissue.toml" \
            --start "$start" --steps "$tissue_steps" --batch "${TISSUE_BATCH:-1}" --patch "${TISSUE_PATCH:-96}" \
            --rate 8e-4 --device "${DEVICE:-auto}"
        start=$work/run-tissue/checkpoint.pt last=$start
    fi
    if [ "$steps" -gt 0 ]; then
        settings enhance '[run]' "depth = ${DEPTH:-16}" '[loss]' 'tissue_weight = 0.0' '[optimiser]' 'enhance_share = 1.0'
        "$python" -m bmex_bids.training.train enhance "$work/pool" "$work/run" --config "$work/enhance.toml" \
            --start "$start" --steps "$steps" --batch "${BATCH:-1}" --patch "${PATCH:-192}" --rate "${RATE:-1.5e-3}" \
            --device "${DEVICE:-auto}"
        last=$work/run/checkpoint.pt
    fi
    kill "${makers[@]}" 2>/dev/null || true
    wait
    "$python" -m bmex_bids.training.bundle "$last" "$out" --templates "$data/templates" \
        --held-out 'Template-Month0-*' 'Template-Month6-*' 'Template-Month12-*' MNI152 Colin27 lifespan_bids \
        --data "heads synthesised from label maps with the contrast of every stage, seed $seed, and degraded templates (fetal T2w, 9 and 24 months); started from the weights before"
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
