#!/usr/bin/env bash
# What a GPU is worth to dlmi: does it compute what the CPU computes, and how fast. Prints each result as it comes, goes on after a
# failure, and ends within 8 minutes (a software renderer: 30). OUT/report.md holds the tables, OUT/raw.jsonl every result as the program gave it, OUT/log.txt the
# commands with what they said on stderr.
#
# usage: gpu.sh BINARY [GGUF] OUT      GGUF: SmolLM2-135M-Instruct (fetch_smollm2.sh); without it, random weights of its shape
#
# To carry it to a bare machine: `strip -o dlmi target/release/dlmi && xz -T0 dlmi` (about 30 MB), this folder, and for Vulkan the package
# libvulkan1 (`dpkg -i libvulkan1_*.deb`). CUDA needs the driver, NVRTC and the toolkit's headers there, from a toolkit or from pip
# (cuda_paths.sh); the random weights need python3, the peer also torch and transformers.
set -u
export LC_NUMERIC=C

LIMIT=470 # seconds in all
SNAP=40   # seconds of a search
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/cuda_paths.sh
. "$here/cuda_paths.sh"

die() { echo "gpu.sh: $*" >&2; exit 2; }
[ $# -eq 2 ] || [ $# -eq 3 ] || die 'usage: gpu.sh BINARY [GGUF] OUT'
binary=$(realpath -e "$1") || die "no program \`$1\`"
gguf=''
if [ $# -eq 3 ]; then gguf=$(realpath -e "$2") || die "no model \`$2\`"; fi
mkdir -p "${!#}" || die "cannot create \`${!#}\`"
out=$(realpath "${!#}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
rm -f "$out/report.md" "$out/raw.jsonl" "$out/log.txt"

# Time and results ---------------------------------------------------------------------------------------------------------------------

left() { echo $((LIMIT - SECONDS)); }

# `late SECONDS WHAT…`: whether fewer are left than it needs at least; then it is listed at the end of the report.
missed=''
late() {
  [ "$(left)" -lt "$1" ] || return 1
  shift
  missed="$missed${missed:+; }$*"
}

# `attempt SHARE COMMAND…`: runs it for at most SHARE seconds of what is left; its last line of stdout is in `answer`, and what went wrong in
# `failure`.
attempt() {
  local share=$1 code
  shift
  if [ "$share" -gt "$(left)" ]; then share=$(left); fi
  answer='' failure='no time left'
  [ "$share" -ge 3 ] || return 1
  echo "[$SECONDS s] $*" >>"$out/log.txt"
  (cd "$work" && exec timeout -k 2 "$share" "$@") >"$work/out" 2>"$work/err" </dev/null
  code=$?
  cat "$work/err" >>"$out/log.txt"
  answer=$(tail -n 1 "$work/out")
  case $code in
    0 | 1) if [ -n "$answer" ]; then return 0; fi ;; # 1 is a search that found nothing exact
    124 | 137) failure="no answer within $share s"; return 1 ;;
  esac
  failure=$(grep -v '^ *$' "$work/err" | tail -n 1 | sed 's/^[a-z: ]*error: //' | tr '|' '/' | cut -c 1-200)
  failure=${failure:-exit code $code}
  return 1
}

# The program with the CUDA libraries that were found; Python keeps its own.
dlmi() {
  local share=$1
  shift
  attempt "$share" env ${CUDA_HEADERS:+CUDA_PATH="$CUDA_HEADERS"} ${NVRTC:+LD_LIBRARY_PATH="$NVRTC${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"} \
    "$binary" "$@"
}

# The value of a field of `answer`, numbers in four digits.
field() {
  local value
  value=$(sed -n "s/.*\"$1\": *\(\[[^]]*\]\|\"[^\"]*\"\|[^,}]*\).*/\1/p" <<<"$answer" | tr -d '"')
  if [[ $value =~ ^-?[0-9]*\.[0-9]+(e-?[0-9]+)?$|^[0-9]+e-?[0-9]+$ ]]; then printf '%.4g' "$value"; else echo "$value"; fi
}

# `keep SECTION`: `answer` as a raw line.
keep() { echo "{\"section\":\"$1\",\"at_seconds\":$SECONDS,\"result\":$answer}" >>"$out/raw.jsonl"; }

# `row SECTION CELL…`: a line of the section's table, and of the terminal; then the report is written again.
row() {
  local section=$1 line
  shift
  printf -v line ' %s |' "$@"
  echo "|$line" >>"$work/$section.md"
  printf '%4d s  %-7s%s\n' "$SECONDS" "$section" "$line"
  render
}

# `table SECTION TITLE COLUMN…`
table() {
  local section=$1 title=$2
  shift 2
  [ -s "$work/$section.md" ] || return 0
  printf '\n### %s\n\n|' "$title"
  printf ' %s |' "$@"
  printf '\n|'
  printf '%s' "${@/*/---|}"
  printf '\n'
  cat "$work/$section.md"
}

render() {
  {
    cat "$work/head.md"
    table parity "Parity: logits and 32 greedy tokens beside the CPU in f32" backend type 'positions' 'largest difference' 'of the largest logit' \
      'same argmax' 'widest lost margin' 'greedy tokens agreed' 'first step of dlmi: loss, gradient' 'worst of all methods'
    table tokens "32 greedy tokens by \`dlmi complete\`" backend type 'tokens agreed' seconds
    table step "A step, $rounds rounds ($step_title)" backend type method N 'seconds (least, most)' 'GFLOP/s, products alone' 'first losses' 'peer in PyTorch' ratio
    table score "Scoring candidates, N = 20, M = 20 ($model_title)" backend type batch 'seconds (least, most)' 'candidates a second' 'GFLOP/s, products alone'
    table snap "A search with \`snap\`, $SNAP s at most ($snap_title)" backend preset target exact steps 'seconds' 'matched prefix'
    printf '\n%s s in all.%s\n' "$SECONDS" "${missed:+ No time was left for: $missed.}"
  } >"$out/report.md"
}

# What there is -------------------------------------------------------------------------------------------------------------------------

# The NVIDIA driver may come without the file that tells the Vulkan loader of it.
find_vulkan() {
  if compgen -G '/usr/share/vulkan/icd.d/nvidia*' >/dev/null || compgen -G '/etc/vulkan/icd.d/nvidia*' >/dev/null; then return 0; fi
  local elsewhere=/usr/local/nvidia/share/vulkan/icd.d/nvidia_icd.json
  if [ -e "$elsewhere" ]; then export VK_ADD_DRIVER_FILES=$elsewhere; return 0; fi
  ldconfig -p 2>/dev/null | grep -q 'libGLX_nvidia\.so\.0' || return 0
  echo '{"file_format_version":"1.0.0","ICD":{"library_path":"libGLX_nvidia.so.0","api_version":"1.3.0"}}' >"$work/nvidia_icd.json"
  export VK_ADD_DRIVER_FILES=$work/nvidia_icd.json
}

# Kernels that one process compiled and tuned serve the next.
keep_kernels() { printf '[compilation]\ncache = "local"\n[autotune]\ncache = "local"\n' >"$work/cubecl.toml"; }

# The devices of a doctor's answer, a line each.
devices() { sed 's/{"row":/\n&/g; s/"absent":.*//' <<<"$1" | grep '^{"row":'; }

# `sound BACKEND`: its devices that passed, software renderers only where there is nothing better.
sound() { devices "$doctor" | grep "\"backend\":\"$1\".*\"state\":\"sound\"" | { if [ "$software" = no ]; then grep -v '"kind":"software"'; else cat; fi; }; }

look() {
  local backend
  echo "## $(uname -n): no device yet" >"$work/head.md"
  if attempt 10 nvidia-smi --query-gpu=name,driver_version,memory.total,power.limit --format=csv,noheader; then nvidia=$answer; else nvidia='no nvidia-smi'; fi
  find_vulkan
  find_cuda "$work"
  echo "CUDA headers: ${CUDA_HEADERS:-left to the program}; NVRTC: ${NVRTC:-left to the program}" | tee -a "$out/log.txt"
  if dlmi 120 doctor --json; then
    keep doctor
    doctor=$answer
    dlmi 90 doctor
    tee "$work/doctor.txt" <"$work/out"
  else
    echo "doctor: $failure; every backend is tried" | tee "$work/doctor.txt"
    doctor=$(printf '{"row":0,"backend":"%s","kind":"unknown","name":"","health":{"state":"sound"},"dtypes":["f32","f16","bf16"]},' cuda wgpu)
  fi
  software=no
  devices "$doctor" | grep '"backend":"\(cuda\|wgpu\)".*"state":"sound"' | grep -qv '"kind":"software"' || software=yes
  backends=()
  for backend in cuda wgpu; do
    if [ -n "$(sound "$backend")" ]; then backends+=("$backend"); fi
  done
  head_of_report >"$work/head.md"
}

head_of_report() {
  local name
  name=$({ sound cuda; sound wgpu; } | sed -n 's/.*"name":"\([^"]*\)".*/\1/p' | head -n 1)
  printf '## %s\n\n%s; CPU %s, %s threads.\n\n```\n' "${name:-No GPU that passed}" "$nvidia" \
    "$(sed -n 's/^model name.*: //p' /proc/cpuinfo 2>/dev/null | head -n 1)" "$(nproc)"
  cat "$work/doctor.txt"
  printf '```\n'
}

# `dtypes BACKEND`: those in which its first device is sound.
dtypes() { sound "$1" | head -n 1 | sed 's/.*"dtypes":\[\([^]]*\)\].*/\1/' | tr -d '"' | tr ',' ' '; }

# The models: `model` for parity, scoring and searches, `step_model` for steps, of which the peer has a copy.
choose_models() {
  model=bard model_title=bard step_model=bard step_title=bard rounds=10 batches='24 96 512 2048' peer='' share=45 grace=15
  if [ "$software" = yes ]; then
    # Only a rehearsal of this script: compiling the kernels takes such a device minutes.
    rounds=2 batches='24 96' SNAP=20 share=240 grace=240 LIMIT=1800
    echo 'a software renderer: bard, fewer rounds, no peer, half an hour at most'
    return
  fi
  if attempt 60 python3 "$here/random_model.py" "$work/random"; then
    step_model=$work/random step_title="random weights of SmolLM2-135M's shape"
    model=$step_model model_title=$step_title
    find_peer
  else
    echo "no random weights: $failure"
  fi
  snap_title=bard
  if [ -n "$gguf" ]; then
    snap_title=$(basename "$gguf" .gguf)
    model=$gguf model_title=$snap_title
    if [ "$step_model" = bard ]; then step_model=$model step_title=$model_title; fi
  fi
}

find_peer() {
  if attempt 40 python3 -c 'import torch, transformers; assert torch.cuda.is_available(), "torch sees no GPU"; print(torch.__version__)'; then
    peer=yes
    echo "peer: torch $answer"
  else
    echo "no peer in PyTorch: $failure"
  fi
}

# Measurements --------------------------------------------------------------------------------------------------------------------------

# `first_steps PATTERN`: the worst deviations from the CPU of the first steps that PATTERN picks, of the loss and of the gradient.
first_steps() {
  local part name figures worst=()
  part=$(grep -o "$1" <<<"${answer#*\"first_steps\":}")
  for name in objective gradient_norm; do
    figures=$(grep -o "\"$name\":[^,}]*" <<<"$part" | cut -d: -f2)
    # Sorting would put what is no number first, where nobody sees it.
    case $figures in
      '' | *null*) worst+=(nan) ;;
      *) worst+=("$(sort -g <<<"$figures" | tail -n 1)") ;;
    esac
  done
  printf '%.1e, %.1e' "${worst[@]}"
}

# `parity BACKEND TYPE`. The first one compiles the kernels of all methods.
parity() {
  if late 10 parity "$@"; then return; fi
  if dlmi $((2 * share)) --model "$model" --backend "$1" --dtype "$2" --json bench parity --prompt-tokens 20 --target-tokens 32 --rounds 3; then
    keep parity
    row parity "$1" "$2" "$(field positions)" "$(field largest_difference)" "$(field relative_difference)" "$(field same_argmax)" \
      "$(field widest_lost_margin)" "$(field greedy_agreement)" "$(first_steps '"dlmi":{[^}]*}')" "$(first_steps '.*')"
  else
    row parity "$1" "$2" "$failure"
  fi
}

# `tokens BACKEND TYPE`: by the verb that users call.
tokens() {
  if late 10 tokens "$@"; then return; fi
  local ids=5,100,237,374,411,548,685,722 expected got
  dlmi "$share" --model "$model" --backend flex --json complete --ids "$ids" --tokens 32 || { row tokens flex f32 "$failure"; return; }
  expected=$(field completion_ids)
  if dlmi "$share" --model "$model" --backend "$1" --dtype "$2" --json complete --ids "$ids" --tokens 32; then
    keep tokens
    got=$(field completion_ids)
    row tokens "$1" "$2" "$(agreed "$expected" "$got") of 32" "$(field seconds)"
  else
    row tokens "$1" "$2" "$failure"
  fi
}

# How many elements of two lists `[1,2]` agree before the first that differs.
agreed() {
  local a b i
  IFS=, read -ra a <<<"${1//[][]/}"
  IFS=, read -ra b <<<"${2//[][]/}"
  for ((i = 0; i < ${#a[@]}; i++)); do [ "${a[i]}" = "${b[i]:-}" ] || break; done
  echo "$i"
}

spread() { echo "$(field seconds_median) ($(field seconds_min), $(field seconds_max))"; }
losses() { for loss in $(field losses | tr -d '[]' | tr ',' ' '); do printf '%.6g ' "$loss"; done; }
products() { echo "$(field achieved_gflops), $(field ceiling_gflops)"; }

# `step BACKEND TYPE METHOD N`
step() {
  if late 10 step "$@"; then return; fi
  local ours cells ratio=''
  if ! dlmi "$share" --model "$step_model" --backend "$1" --dtype "$2" --json bench step --method "$3" --prompt-tokens "$4" --rounds "$rounds" \
    --set all_tokens=true; then
    row step "$1" "$2" "$3" "$4" "$failure"
    return 1
  fi
  keep step
  ours=$(field seconds_median)
  cells=("$(spread)" "$(products)" "$(losses)")
  if [ "$3" = dlmi ] && [ "$2" = f32 ] && [ -n "$peer" ]; then
    ask_peer "$4"
    cells+=("${peer_cell[$4]}")
    if [ -n "${peer_seconds[$4]}" ]; then ratio=$(awk "BEGIN { printf \"%.2f\", $ours / ${peer_seconds[$4]} }"); fi
  else
    cells+=('')
  fi
  row step "$1" "$2" "$3" "$4" "${cells[@]}" "$ratio"
}

# `ask_peer N`: the same step in PyTorch with CUDA, once.
declare -A peer_cell peer_seconds
ask_peer() {
  [ -z "${peer_cell[$1]:-}" ] || return 0
  peer_cell[$1]='' peer_seconds[$1]=''
  if attempt 60 python3 "$here/dlmi_torch.py" "$step_model" --prompt-tokens "$1" --rounds "$rounds" --device cuda; then
    keep peer
    peer_cell[$1]="$(spread); $(losses)" peer_seconds[$1]=$(field seconds_median)
  else
    peer_cell[$1]=$failure
  fi
}

# `score BACKEND TYPE BATCH`
score() {
  if late 10 score "$@"; then return; fi
  if dlmi "$share" --model "$model" --backend "$1" --dtype "$2" --json bench score --candidates "$3" --prompt-tokens 20 --rounds "$rounds"; then
    keep score
    row score "$1" "$2" "$3" "$(spread)" "$(field candidates_per_second)" "$(products)"
  else
    row score "$1" "$2" "$3" "$failure"
    return 1
  fi
}

# `continuation LINE`: the text of a line of SmolLM2's own continuations.
continuation() {
  local text
  text=$(sed -n "$1"'s/.*"text": "\(.*\)", "ids".*/\1/p' "$here/../tests/golden/smollm2/continuations.jsonl")
  printf '%b' "${text//\\\"/\"}"
}

# `snap BACKEND TARGET [--preset gpu]`
snap() {
  if late $((grace + 10)) snap "$1" "$(shown "$2")" "${@:3}"; then return; fi
  local seconds=$(($(left) - grace)) of=$model
  if [ "$seconds" -gt "$SNAP" ]; then seconds=$SNAP; fi
  if [ -z "$gguf" ]; then of=bard; fi
  if dlmi $((seconds + grace)) --model "$of" --backend "$1" --json "${@:3}" invert --method snap --max-seconds "$seconds" -- "$2"; then
    keep snap
    row snap "$1" "${4:-}" "$(shown "$2")" "$(field exact)" "$(field steps)" "$(field seconds)" "$(field matched_prefix)"
  else
    row snap "$1" "${4:-}" "$(shown "$2")" "$failure"
  fi
}

shown() { echo "\`$(printf '%s' "$1" | tr '\n|' ' /' | cut -c 1-40)\`"; }

# In the order of their worth -----------------------------------------------------------------------------------------------------------

# Where the smaller fails or takes too long, the larger is not tried.
basics() {
  local n batch
  parity "$1" f32
  for n in 10 80; do step "$1" f32 dlmi "$n" || break; done
  for batch in $batches; do score "$1" f32 "$batch" || break; done
}

half_precision() {
  local backend type
  for backend in "${backends[@]}"; do
    for type in $(dtypes "$backend"); do
      if [ "$type" != f32 ]; then parity "$backend" "$type"; fi
    done
  done
}

searches() {
  local targets
  if [ -n "$gguf" ] && [ "$model" = "$gguf" ]; then
    targets=("$(continuation 2)" "$(continuation 5)")
  else
    targets=("I'll not be a king, and I am too." "And I am satisfied, and I'll make you")
  fi
  if [ -z "${targets[0]}" ]; then echo 'snap: continuations.jsonl did not come along'; return; fi
  snap "${backends[0]}" "${targets[0]}" --preset gpu
  snap "${backends[0]}" "${targets[0]}"
  snap "${backends[0]}" "${targets[1]}"
  snap "${backends[0]}" "${targets[1]}" --preset gpu
}

other_methods() {
  local backend method n
  for n in 10 80; do
    for backend in "${backends[@]}"; do
      for method in dlmi-tf gbda reinforce soda; do step "$backend" f32 "$method" "$n"; done
    done
  done
}

extras() {
  local backend type
  for backend in "${backends[@]}"; do tokens "$backend" f32; done
  for backend in "${backends[@]}"; do
    for type in $(dtypes "$backend"); do
      if [ "$type" != f32 ]; then
        step "$backend" "$type" dlmi 80
        score "$backend" "$type" 512
      fi
    done
  done
}

keep_kernels
rounds=0 step_title='' model_title='' snap_title=''
look
if [ ${#backends[@]} -eq 0 ]; then
  render
  echo 'gpu.sh: no GPU passed its self-test; report.md says what is missing' >&2
  exit 3
fi
choose_models
render
for backend in "${backends[@]}"; do basics "$backend"; done
half_precision
searches
other_methods
extras
render
echo "$SECONDS s; $out/report.md"
