#!/usr/bin/env bash
# Starts a SLURM of one node on this machine and runs the app in it: by --executor slurm, and by the
# array script of docs/hpc.md; the outputs have to equal those of a run without SLURM byte for byte.
# The node claims two processors, so that two jobs run at the same time.
# Needs root, slurm-wlm and munge (Debian: apt-get install slurm-wlm munge). All daemons are ended.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$PWD/${VENV:-.venv}/bin

for tool in slurmctld slurmd munged sbatch squeue; do
    PATH=$PATH:/usr/sbin command -v "$tool" >/dev/null \
        || { echo "$tool is missing: apt-get install slurm-wlm munge" >&2; exit 2; }
done
test "$(id -u)" = 0 || { echo "the daemons of SLURM need root" >&2; exit 2; }
export PATH=$bin:$PATH:/usr/sbin

work=$(mktemp -d "${TMPDIR:-/var/tmp}/bmex-slurm.XXXXXX")
chmod 755 "$work"
daemons=()
finish() {
    for pid in "${daemons[@]}"; do kill "$pid" 2>/dev/null || true; done
    for pid in "${daemons[@]}"; do wait "$pid" 2>/dev/null || true; done
    if test -n "${KEEP:-}"; then echo "kept: $work"; else rm -rf "$work"; fi
}
trap finish EXIT
say() { printf '\n== %s\n' "$*"; }

say "a SLURM of one node"
mkdir "$work"/{state,spool,munge}
dd if=/dev/urandom of="$work/munge.key" bs=1024 count=1 status=none
chmod 400 "$work/munge.key"
munged --foreground --force --key-file="$work/munge.key" --socket="$work/munge/socket" \
    --pid-file="$work/munged.pid" --seed-file="$work/munge.seed" --log-file="$work/munged.log" &
daemons+=($!)
host=$(hostname -s)
cat >"$work/slurm.conf" <<CONF
ClusterName=bmex
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$work/munge/socket
SlurmctldPort=26817
SlurmdPort=26818
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
JobAcctGatherType=jobacct_gather/none
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 RealMemory=8192 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF=$work/slurm.conf
for _ in $(seq 100); do test -S "$work/munge/socket" && break; sleep 0.2; done
slurmctld -D -L "$work/slurmctld.log" >/dev/null 2>&1 &
daemons+=($!)
slurmd -D -N "$host" -L "$work/slurmd.log" >/dev/null 2>&1 &
daemons+=($!)
for _ in $(seq 300); do sinfo --noheader --format=%T 2>/dev/null | grep -q idle && break; sleep 1; done
sinfo --noheader --format='%P %N %T, %c CPUs' | grep idle \
    || { tail -20 "$work"/*.log >&2; exit 1; }

say "a dataset, and its results without SLURM"
python - "$work" >"$work/argv" <<'PYTHON'
import shlex, sys
from pathlib import Path
sys.path.insert(0, "tests")
from tiny_app import tiny_argv
print(shlex.join(tiny_argv(Path(sys.argv[1]), Path("OUT"), ["sub-01_T1w", "sub-02_T1w"])))
PYTHON
eval "argv=($(cat "$work/argv"))"
run() { # OUT, more options: the app with its output there
    local out=$1; shift
    bmex "${argv[0]}" "$out" "${argv[@]:2}" "$@"
}
run "$work/here"
same() {
    diff -r --exclude=logs "$work/here" "$1"
    echo "the same bytes: $(find "$1" -type f -not -path '*/logs/*' | wc -l) files"
}

say "--executor slurm --jobs 2"
cat >"$work/site.yml" <<'YAML'
jobqueue:
  slurm:
    cores: 1
    memory: 3GiB
    walltime: "00:30:00"
YAML
run "$work/engine" --executor slurm --jobs 2 --cluster-config "$work/site.yml"
same "$work/engine"
test -z "$(find "$work/engine/logs" -name '*.lock' -o -name 'crash-*')"
for _ in $(seq 60); do test -z "$(squeue --noheader)" && break; sleep 1; done
test -z "$(squeue --noheader)" || { echo "jobs are left in the queue" >&2; exit 1; }

say "the array script of docs/hpc.md"
sed -n '/^#!\/bin\/bash$/,/^```$/p' docs/hpc.md | grep -v '^```$' >"$work/array.sh"
grep -q 'SBATCH --array' "$work/array.sh"
export BIDS=${argv[0]} OUT=$work/array
sbatch --wait --array=1-2 --cpus-per-task=1 --mem=3G --chdir="$work" "$work/array.sh" "${argv[@]:3}"
cat "$work"/bmex-*.out
same "$work/array"
say "all is well"
