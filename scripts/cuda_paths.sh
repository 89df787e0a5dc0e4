# shellcheck shell=bash
# Sourced by gpu.sh: `find_cuda FOLDER` looks for the CUDA headers and NVRTC that the driver can use, in toolkits and in the pip wheels of
# every Python in PATH, and leaves them in CUDA_HEADERS (for CUDA_PATH) and NVRTC (for LD_LIBRARY_PATH), empty where nothing was found.
# FOLDER is for the headers of wheels, which cubecl wants in one place.

# shellcheck disable=SC2034 # gpu.sh reads them
CUDA_HEADERS='' NVRTC=''

# 12.8 as 12008, so that versions compare as numbers.
number() { local major=${1%%.*} minor=${1#*.}; echo $((major * 1000 + ${minor%%.*})); }

# What the driver understands, 0 if nobody can tell.
driver_version() {
  local version
  version=$(nvidia-smi 2>/dev/null | sed -n 's/.*CUDA Version: *\([0-9][0-9]*\.[0-9]*\).*/\1/p' | head -n 1)
  if [ -n "$version" ]; then number "$version"; else echo 0; fi
}

# Toolkits, the likely first.
toolkits() {
  local folder
  for folder in "${CUDA_PATH:-}" "${CUDA_HOME:-}" /usr/local/cuda /opt/cuda; do
    if [ -n "$folder" ] && [ -d "$folder" ]; then echo "$folder"; fi
  done
  printf '%s\n' /usr/local/cuda-[0-9]* /opt/cuda-[0-9]* | grep -v '\*' | sort -rV
}

# The folders site-packages/nvidia of the Pythons in PATH.
wheel_folders() {
  local python
  for python in $(type -ap python3 python | sort -u); do
    "$python" -c 'import sys; print("\n".join(p + "/nvidia" for p in sys.path if p))' 2>/dev/null
  done | sort -u | while read -r folder; do
    if [ -d "$folder" ]; then echo "$folder"; fi
  done
}

# Wheels of CUDA 12 keep a folder for each part, those of CUDA 13 one for all. Prints roots that look like toolkits.
wheels() {
  local nvidia root i=0
  wheel_folders | while read -r nvidia; do
    for root in "$nvidia"/cu[0-9]*; do
      if [ -d "$root" ]; then echo "$root"; fi
    done
    [ -d "$nvidia/cuda_nvrtc" ] || continue
    root=$1/wheel$((i += 1))
    mkdir -p "$root/include/cccl"
    ln -sfn "$nvidia/cuda_nvrtc/lib" "$root/lib"
    for part in cuda_runtime cuda_nvcc; do
      ln -sf "$nvidia/$part"/include/* "$root/include/" 2>/dev/null
    done
    ln -sf "$nvidia"/cuda_cccl/include/* "$root/include/cccl/" 2>/dev/null
    echo "$root"
  done
}

# The version of the NVRTC in a folder, from its companion's name, which both kinds of package spell out.
nvrtc_version() {
  local name
  for name in "$1"/libnvrtc-builtins.so.[0-9]*.[0-9]*; do
    if [ -e "$name" ]; then number "${name##*.so.}"; return; fi
  done
  return 1
}

# 12 of `#define CUDART_VERSION 12090`.
header_major() { sed -n 's/^#define CUDART_VERSION *\([0-9]*\)[0-9]\{3\}$/\1/p' "$1/include/cuda_runtime_api.h" 2>/dev/null; }

has_headers() {
  local header
  for header in cuda_runtime.h cuda_fp16.h cuda_bf16.h mma.h crt/mma.h; do
    [ -e "$1/include/$header" ] || return 1
  done
}

# The first NVRTC that is no newer than the driver, then the first headers of its major version.
find_cuda() {
  local root folder version limit roots=()
  mapfile -t roots < <(toolkits; wheels "$1")
  limit=$(driver_version)
  for root in ${roots[@]+"${roots[@]}"}; do
    for folder in "$root/lib64" "$root/lib" "$root/targets/x86_64-linux/lib"; do
      version=$(nvrtc_version "$folder") || continue
      if [ "$limit" -eq 0 ] || [ "$version" -le "$limit" ]; then NVRTC=$folder; break 2; fi
    done
  done
  [ -n "$NVRTC" ] || return 0
  for root in ${roots[@]+"${roots[@]}"}; do
    if has_headers "$root" && [ "$(header_major "$root")" = $((version / 1000)) ]; then
      # shellcheck disable=SC2034
      CUDA_HEADERS=$root
      return 0
    fi
  done
}
