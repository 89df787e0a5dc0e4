#!/usr/bin/env bash
# One study, however it is run: in one run, as a Slurm job array whose tasks are warned, killed, cancelled and lose their node, by GNU
# parallel, and as three shards. `merge --science` must give the same bytes. The cluster is a slurmctld and four slurmd on loopback; they
# and all that they start end with this script.
#   tests/slurm.sh [PROGRAM]    default: target/release/dlmi
# Needs slurmctld, slurmd, slurm-client, munge and parallel (Debian's); no root.
# shellcheck disable=SC2046  # lists of process ids are split on purpose
set -euo pipefail
cd "$(dirname "$0")/.."
program=$(realpath "${1:-target/release/dlmi}")
PATH=$PATH:/usr/sbin
study=tests/slurm.toml
cells=48

# Daemons listen on what the host's name stands for: that must be loopback.
host=$(hostname -s)
case $(getent hosts "$host") in
  127.*) ;;
  *) [ "$host" != localhost ] || { echo "slurm.sh: localhost is not 127.x" >&2; exit 1; }
     exec unshare --map-root-user --uts bash -c 'hostname localhost && exec "$@"' - "$0" "$program" ;;
esac

# A space and quotes: paths in the batch script must be quoted.
dir=$(mktemp -d)
out="$dir/it's the \"study\" 100%"
export SLURM_CONF=$dir/slurm.conf

# Every process that was started with this cluster's configuration: daemons, steps and tasks.
ours() {
  local process
  for process in /proc/[0-9]*; do
    grep -qszxF "${1:-SLURM_CONF=$SLURM_CONF}" "$process/environ" && echo "${process#/proc/}"
  done || true
}

finish() {
  local status=$?
  trap - EXIT
  if [ "$status" != 0 ]; then
    { squeue; tail -n 15 "$dir"/*.log "$out"/lists/*/*.log; } >&2 2>/dev/null || true
  fi
  for signal in TERM TERM KILL KILL; do
    kill -"$signal" $(ours) 2>/dev/null || break
    sleep 0.5
  done
  rm -rf "$dir"
  exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM

say() { echo "slurm.sh: $*, after $SECONDS s"; }

fail() { echo "slurm.sh: $*" >&2; exit 1; }

# wait_for SECONDS WHAT COMMAND...
wait_for() {
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@"; do
    [ "$SECONDS" -lt "$end" ] || fail "$what: not within its time"
    sleep 0.2
  done
}

start_cluster() {
  # Before 23.11 slurmd must load a cgroup plugin, and v1's touches nothing here.
  case $(slurmd -V) in
    *" 2"[0-2].* | *" 23.02"*) echo 'CgroupPlugin=cgroup/v1' ;;
    *) echo 'CgroupPlugin=disabled' ;;
  esac >"$dir/cgroup.conf"
  local user
  user=$(id -un)
  cat >"$SLURM_CONF" <<END
ClusterName=loop
SlurmctldHost=$host(127.0.0.1)
SlurmUser=$user
SlurmdUser=$user
AuthInfo=socket=$dir/munge.socket,cred_expire=10
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
SlurmdTimeout=10
SlurmdParameters=config_overrides
SlurmctldPort=16817
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool.%n
SlurmctldPidFile=$dir/ctld.pid
SlurmdPidFile=$dir/%n.pid
SlurmctldLogFile=$dir/ctld.log
SlurmdLogFile=$dir/%n.log
NodeName=n[1-4] NodeHostname=$host NodeAddr=127.0.0.1 Port=[17001-17004] CPUs=1 RealMemory=4000 State=UNKNOWN
PartitionName=p Nodes=ALL Default=YES MaxTime=10 State=UP
END
  mkdir "$dir/state"
  head -c 1024 /dev/urandom >"$dir/munge.key"
  chmod 600 "$dir/munge.key"
  munged --foreground --force --socket="$dir/munge.socket" --key-file="$dir/munge.key" --pid-file="$dir/munge.pid" \
    --log-file="$dir/munge.log" --seed-file="$dir/munge.seed" >/dev/null 2>&1 &
  wait_for 10 "munged starts" test -S "$dir/munge.socket"
  slurmctld -D >/dev/null 2>&1 &
  for node in n1 n2 n3 n4; do slurmd -D -N $node >/dev/null 2>&1 & done
  disown -a
  wait_for 30 "four nodes are idle" idle 4
}

idle() { [ "$(sinfo -h -t idle -o %D 2>/dev/null)" = "$1" ]; }
running() { [ "$(squeue -h -r -t R | wc -l)" = "$1" ]; }
no_jobs() { [ -z "$(squeue -h -r)" ]; }
restarted() { scontrol show job "$1" | grep -q Restarts=1; }
# Looking through /proc takes a busy machine seconds, in which a task may end: what was found is kept.
under_way() {
  compgen -G "$out/cells/*.json" >/dev/null || return 1
  killed=$(task_program 2) && warned=$(task_program 1) && [ -n "$killed" ] && [ -n "$warned" ]
}

counted() { "$program" study status "$study" --out "$1" --json | grep -o "\"$2\":[0-9]*" | head -n 1 | cut -d: -f2; }

# The processes of the program in a task of the array.
task_program() {
  local process
  for process in $(ours "SLURM_ARRAY_TASK_ID=$1"); do
    [ "$(cat "/proc/$process/comm")" != "$(basename "$program" | cut -c -15)" ] || echo "$process"
  done
}

# A node loses its power: its daemon, the keepers of its steps, and all that they run.
kill_node() {
  local process keepers=()
  for process in $(ours "SLURMD_NODENAME=$1"); do
    keepers+=("$(cut -d' ' -f4 "/proc/$process/stat")")
  done
  for process in "${keepers[@]}"; do
    ! grep -qsz slurmstepd "/proc/$process/cmdline" || kill -9 "$process" 2>/dev/null || true
  done
  kill -9 "$(cat "$dir/$1.pid")" $(ours "SLURMD_NODENAME=$1") 2>/dev/null || true
}

# Every cell is done, and the records are those of the one run.
same() {
  local folder outs=()
  for folder in "${@:2}"; do outs+=(--out "$folder"); done
  "$program" study merge "$study" "${outs[@]}" --science -o "$dir/merged.jsonl"
  cmp "$dir/one.jsonl" "$dir/merged.jsonl" || fail "$1: not what one run computes"
  say "$1: the same $cells records"
}

"$program" study run "$study" --out "$dir/one" --workers 2 -q >/dev/null
[ "$(counted "$dir/one" "done")" = "$cells" ] || fail "there are not $cells cells"
"$program" study merge "$study" --out "$dir/one" --science -o "$dir/one.jsonl"
say "one run has computed $cells cells"

start_cluster
"$program" study slurm "$study" --out "$out" --tasks 8 >"$dir/job.sbatch"
! grep TASK_COUNT "$dir/job.sbatch" || fail "the size of an array changes when part of it is submitted again"
job=$(sbatch --parsable --time=5 "$dir/job.sbatch")
wait_for 30 "four tasks run" running 4
wait_for 30 "a cell is done" under_way
# As Slurm does when the time is nearly up.
kill -USR1 $warned
kill -9 $killed || say "the program of task 2 has just ended by itself"
kill_node "$(squeue -h -j "${job}_3" -o %N)"
scancel "${job}_8"
say "task 1 is warned, the program of task 2 and the node of task 3 are killed, task 8 is cancelled"
wait_for 120 "all tasks end" no_jobs
restarted "${job}_1" || fail "the warned task was not queued again"
restarted "${job}_3" || fail "the task of the dead node was not queued again"
[ "$(counted "$out" pending)" -gt 0 ] || fail "the cancelled task has left nothing"
[ "$(counted "$out" failed)" = 0 ] || fail "a task that is ended makes no cell fail"
say "$(counted "$out" pending) cells are left"
sbatch --wait --time=5 --array=2,8 "$dir/job.sbatch" >/dev/null
[ "$(grep -ho '"node":"n[1-4]"' "$out"/cells/*.json | sort -u | wc -l)" -ge 3 ] || fail "the cells are of fewer than three nodes"
same "a job array on four nodes" "$out"

"$program" study cells "$study" --ids |
  parallel --will-cite -j 2 "$program" study run "$study" --out "$dir/parallel" --cell {} -q >/dev/null
same "GNU parallel" "$dir/parallel"

for shard in 1 2 3; do "$program" study run "$study" --out "$dir/shard$shard" --shard $shard/3 -q >/dev/null & done
wait
same "three shards" "$dir/shard3" "$dir/shard1" "$dir/shard2"
