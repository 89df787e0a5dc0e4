#!/bin/sh
# Makes the English words of `invert --words` from Debian's wamerican-small, which is SCOWL up to size 35:
#   scripts/words.sh /usr/share/dict/american-english-small > src/problem/words/english.txt
# Kept are words of letters alone; left out are Roman numerals, abbreviations, and single letters but a, I and O.
set -eu
export LC_ALL=C
grep -E '^([a-z]+|[A-Z][a-z]{2,}|I|O)$' "$1" \
    | grep -E '^(a|I|O|..+)$' \
    | grep -E '[AEIOUYaeiouy]' \
    | grep -vE '^(x[cl]|l?x{0,3})(i[xv]|v?i{0,3})$' \
    | sort
