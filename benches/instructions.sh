#!/bin/sh
# Instructions a page transfer, and how they grow with the host's memory.
#
#   cargo build --release && sh benches/instructions.sh [RAM...]
#
# Runs the release binary under callgrind once for each RAM (default: 64MiB 256MiB 1GiB) with NFS, all
# protections and no flood, and prints all instructions of the process divided by pages moved (page-ins
# plus page-outs), and that figure's ratio to the first RAM's. Nothing is subtracted: start-up, the tasks'
# own work, the link and the far side are in it. Needs valgrind and python3. BIN overrides the binary.
set -eu
bin=${BIN:-${CARGO_TARGET_DIR:-target}/release/netswap}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
first=
echo "ram instructions page_ins+page_outs instructions/transfer ratio"
for ram in ${*:-64MiB 256MiB 1GiB}; do
    valgrind --tool=callgrind --callgrind-out-file="$dir/out" "$bin" sim --backend nfs --ablate none \
        --flood 0 --overcommit 1.25 --rounds 1 --ram "$ram" --json >"$dir/row" 2>"$dir/log" ||
        { cat "$dir/log" >&2; exit 1; }
    line=$(python3 -c '
import json, re, sys
row, out, ram, first = json.load(open(sys.argv[1])), open(sys.argv[2]).read(), sys.argv[3], sys.argv[4]
assert row["outcome"] == "completed", row["reason"]
total = int(re.search(r"^(?:totals|summary): (\d+)", out, re.M)[1])
moved = row["page_ins"] + row["page_outs"]
each = total / moved
print(ram, total, moved, f"{each:.0f}", f"{each / float(first or each):.3f}")
' "$dir/row" "$dir/out" "$ram" "$first")
    echo "$line"
    first=${first:-$(echo "$line" | cut -d' ' -f4)}
done
