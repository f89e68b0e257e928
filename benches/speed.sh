#!/usr/bin/env bash
# The clients beside those of others: same machine, same server, same run, medians. Prints tables.
#
#   benches/speed.sh                    all sections, medians of five; about half an hour
#   benches/speed.sh --reps 1 nfs       one section, one run of each
#   benches/speed.sh --raw FILE         also every single run, one a line
#
# Sections:
#   nfs      4KiB (with a stride of 17 pages) and 64KiB in order, depth 1, 16 and 64, on nfs-ganesha: `qemu-img bench`
#            (libnfs) and `netswap io`
#   merge    4KiB in order at depth 64 on nfs-ganesha, with and without merging
#   tgt      as nfs, on tgt: `qemu-img bench` and `iscsi-perf` (both libiscsi; the latter only reads, at random or in order)
#   istgt    the same on istgt
#   digests  4KiB at random on tgt and on the embedded target, without and with header and data digests
#   own      the clients' own limit: unmerged 4KiB on the embedded server and on the embedded target, beside fio's nbd
#            engine on nbdkit's memory plugin
#
# What qemu-img writes is UNSTABLE, or goes to a write cache, and is not made to last before the end; what netswap writes
# is FILE_SYNC, or has FUA: each page is safe when its operation ends. Client CPU is user and system time of the whole
# process, its start included. Server CPU is that of all its threads during the run. Both run on all cores, with the files
# on tmpfs.
#
# Needs root (for network and mount namespaces, which end with the script) and, from Debian: nfs-ganesha nfs-ganesha-vfs
# rpcbind tgt istgt libiscsi-bin qemu-utils qemu-block-extra nbdkit fio. Run it on a machine that does nothing else.

set -euo pipefail

SECTIONS=(nfs merge tgt istgt digests own)
PATH=$PATH:/usr/sbin:/sbin

die() {
    printf 'error: %s\n' "$*" >&2
    exit 2
}

# --- A namespace of our own ---------------------------------------------------------------------
# Port 111, /run/rpcbind.sock and /run/tgtd are fixed places: nobody else's servers are disturbed, nor disturb.

if [[ -z ${NETSWAP_SPEED_INSIDE:-} ]]; then
    cd "$(dirname "${BASH_SOURCE[0]}")/.."
    [[ " $* " == *" --help "* ]] && { sed -n '2,/^$/s/^# \{0,1\}//p' benches/speed.sh; exit; }
    ((EUID == 0)) || die "namespaces need root"
    for tool in ganesha.nfsd rpcbind tgtd istgt iscsi-perf qemu-img nbdkit fio unshare ip; do
        command -v "$tool" >/dev/null || die "$tool is missing: apt-get install nfs-ganesha nfs-ganesha-vfs rpcbind \
tgt istgt libiscsi-bin qemu-utils qemu-block-extra nbdkit fio"
    done
    cargo build --release --quiet
    target=$(cargo metadata --no-deps --format-version 1 | grep -o '"target_directory":"[^"]*"' | cut -d '"' -f 4)
    export NETSWAP_SPEED_INSIDE=$target/release/netswap
    exec unshare --net --mount --propagation private "benches/speed.sh" "$@"
fi

NETSWAP=$NETSWAP_SPEED_INSIDE
REPS=5
RAW=
CHOSEN=()
while (($#)); do
    case $1 in
    --reps) REPS=$2 && shift ;;
    --raw) RAW=$2 && shift ;;
    *) [[ " ${SECTIONS[*]} " == *" $1 "* ]] || die "no section $1; known: ${SECTIONS[*]}" && CHOSEN+=("$1") ;;
    esac
    shift
done
((${#CHOSEN[@]})) || CHOSEN=("${SECTIONS[@]}")

DIR=$(mktemp -d /dev/shm/netswap-speed.XXXXXX)
PIDS=()
cleanup() {
    # At once: tgtd does not end by itself while it has targets.
    for pid in ${PIDS[@]+"${PIDS[@]}"}; do kill -KILL "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    rm -rf "$DIR"
}
trap cleanup EXIT
RUNS=$DIR/runs

mount -t tmpfs tmpfs /run
ip link set lo up
# Names are looked up only where there is more than a loopback.
ip link add speed0 type veth peer name speed1
ip address add 192.0.2.1/24 dev speed0
ip link set speed0 up
ip link set speed1 up

# --- Servers: each sets SERVER, its process id --------------------------------------------------

IQN=iqn.2026-01.test.speed
DIGESTS='?header_digest=crc32c&data_digest=crc32c'

# await WHAT COMMAND...: until the command succeeds.
await() {
    local what=$1 i
    shift
    for ((i = 0; i < 200; i++)); do
        "$@" >/dev/null 2>&1 && return
        sleep 0.1
    done
    die "$what did not start"
}

listens() { ss -Hltn "sport = :$1" | grep -q .; }

# Ends the last server.
stop() {
    kill -KILL "$SERVER"
    wait "$SERVER" 2>/dev/null || true
}

start_rpcbind() {
    mkdir -p /run/rpcbind
    rpcbind -f 2>/dev/null &
    PIDS+=($!)
    await rpcbind test -S /run/rpcbind.sock
}

start_ganesha() {
    [[ -S /run/rpcbind.sock && -d $DIR/export ]] || start_rpcbind
    mkdir -p "$DIR/export" "$DIR/recovery"
    rm -f "$DIR/ganesha.log"
    cat >"$DIR/ganesha.conf" <<-CONF
	NFS_CORE_PARAM { Bind_addr = 127.0.0.1; Enable_NLM = false; Enable_RQUOTA = false; Enable_UDP = false;
	  Protocols = 3; mount_path_pseudo = true; NSM_Use_Caller_Name = false; }
	NFSv4 { Graceless = true; RecoveryRoot = $DIR/recovery; }
	NFS_KRB5 { Active_krb5 = false; }
	EXPORT_DEFAULTS { SecType = sys; Squash = No_Root_Squash; Access_Type = RW; Protocols = 3; Transports = TCP;
	  PrivilegedPort = false; }
	EXPORT { Export_Id = 1; Path = $DIR/export; Pseudo = /swap; FSAL { Name = VFS; } }
	LOG { Default_Log_Level = EVENT; }
	CONF
    ganesha.nfsd -F -f "$DIR/ganesha.conf" -L "$DIR/ganesha.log" -p "$DIR/ganesha.pid" -N NIV_EVENT &
    SERVER=$!
    PIDS+=("$SERVER")
    await nfs-ganesha grep -q 'NFS SERVER INITIALIZED' "$DIR/ganesha.log"
    # One for each client, as qemu-img overwrites the header.
    NFS=nfs://127.0.0.1/swap
    for area in ours peer; do "$NETSWAP" mkswap "$NFS/$area" --size 256MiB --force >/dev/null; done
}

start_tgt() {
    local admin="tgtadm -C 0 --lld iscsi" tid name pair url
    mkdir -p /run/tgtd
    tgtd -f -C 0 -t 4 --iscsi portal=127.0.0.1:3260 >"$DIR/tgt.log" 2>&1 &
    SERVER=$!
    PIDS+=("$SERVER")
    await tgt $admin --op show --mode sys
    tid=0
    for name in ours peer digests; do
        tid=$((tid + 1))
        truncate -s 256M "$DIR/$name.img"
        $admin --op new --mode target --tid $tid -T "$IQN:$name"
        $admin --op new --mode logicalunit --tid $tid --lun 1 -b "$DIR/$name.img"
        for pair in InitialR2T=No MaxRecvDataSegmentLength=262144 MaxOutstandingR2T=8 FirstBurstLength=262144 \
            MaxBurstLength=1048576; do
            $admin --op update --mode target --tid $tid -n "${pair%%=*}" -v "${pair#*=}"
        done
        $admin --op bind --mode target --tid $tid -I ALL
    done
    for pair in HeaderDigest DataDigest; do $admin --op update --mode target --tid 3 -n $pair -v CRC32C; done
    OURS=iscsi://127.0.0.1/$IQN:ours/1
    PEER=iscsi://127.0.0.1/$IQN:peer/1
    # That of the other client too: holes are read faster than what was written.
    for url in "$OURS" "$PEER" "iscsi://127.0.0.1/$IQN:digests/1$DIGESTS"; do "$NETSWAP" mkswap "$url" --force >/dev/null; done
}

start_istgt() {
    : >"$DIR/auth.conf"
    chmod 600 "$DIR/auth.conf"
    cat >"$DIR/istgt.conf" <<-CONF
	[Global]
	  NodeBase "$IQN"
	  PidFile $DIR/istgt.pid
	  AuthFile $DIR/auth.conf
	  MediaDirectory $DIR
	  LogFacility "local7"
	  DiscoveryAuthMethod Auto
	  MaxSessions 16
	  MaxConnections 4
	  MaxR2T 32
	  MaxOutstandingR2T 16
	  FirstBurstLength 262144
	  MaxBurstLength 1048576
	  MaxRecvDataSegmentLength 262144
	  InitialR2T Yes
	  ImmediateData Yes
	[UnitControl]
	  AuthMethod CHAP Mutual
	  AuthGroup AuthGroup10000
	  Portal UC1 127.0.0.1:3262
	  Netmask 127.0.0.1
	[PortalGroup1]
	  Portal DA1 127.0.0.1:3261
	[InitiatorGroup1]
	  InitiatorName "ALL"
	  Netmask 127.0.0.0/8
	CONF
    local unit=0 name url
    for name in ours peer; do
        unit=$((unit + 1))
        truncate -s 256M "$DIR/$name.img"
        cat >>"$DIR/istgt.conf" <<-CONF
	[LogicalUnit$unit]
	  TargetName $name
	  Mapping PortalGroup1 InitiatorGroup1
	  AuthMethod Auto
	  AuthGroup AuthGroup1
	  UseDigest Auto
	  UnitType Disk
	  QueueDepth 64
	  LUN0 Storage $DIR/$name.img 256MB
	CONF
    done
    istgt -D -c "$DIR/istgt.conf" >"$DIR/istgt.log" 2>&1 &
    SERVER=$!
    PIDS+=("$SERVER")
    await istgt listens 3261
    OURS=iscsi://127.0.0.1:3261/$IQN:ours/0
    PEER=iscsi://127.0.0.1:3261/$IQN:peer/0
    for url in "$OURS" "$PEER"; do "$NETSWAP" mkswap "$url" --force >/dev/null; done
}

start_embedded_target() {
    "$NETSWAP" serve iscsi --listen 127.0.0.1:23260 --file "$DIR/own.img" --size 256MiB >"$DIR/own.log" 2>&1 &
    SERVER=$!
    PIDS+=("$SERVER")
    # It listens before it says where.
    await "netswap serve" grep -q 'iscsi://127' "$DIR/own.log"
    OWN=$(grep -o 'iscsi://127[^ ]*' "$DIR/own.log" | head -n 1)
    "$NETSWAP" mkswap "$OWN" --force >/dev/null
}

start_embedded() {
    "$NETSWAP" serve nfs --listen 127.0.0.1:22049 --file "$DIR/own" --size 256MiB >"$DIR/own.log" 2>&1 &
    SERVER=$!
    PIDS+=("$SERVER")
    await "netswap serve" listens 22049
    OWN="nfs://127.0.0.1/swap/own?nfsport=22049&mountport=22049"
    "$NETSWAP" mkswap "$OWN" --size 256MiB --force >/dev/null
}

start_nbdkit() {
    nbdkit --foreground --ipaddr 127.0.0.1 --port 22050 memory 256M &
    SERVER=$!
    PIDS+=("$SERVER")
    await nbdkit listens 22050
}

# --- Runs ---------------------------------------------------------------------------------------

# CPU time of the server so far in nanoseconds, threads that have ended included.
server_cpu() {
    # The name before the last ")" may hold anything; the 12th and 13th field behind it are user and system time in ticks.
    awk -v tick="$(getconf CLK_TCK)" '{ sub(/.*\) /, ""); printf "%.0f", ($12 + $13) * 1e9 / tick }' "/proc/$SERVER/stat"
}

# run CASE WHO OPS COMMAND...: one line to $RUNS: case, who, operations a second, then microseconds an operation
# of the client and of the server. Operations a second are what the command itself says: its start does not count.
run() {
    local label=$1 who=$2 ops=$3 before after times
    shift 3
    before=$(server_cpu)
    TIMEFORMAT='%R %U %S'
    times=$({ time "$@" >"$DIR/out" 2>"$DIR/err"; } 2>&1) || {
        cat "$DIR/out" "$DIR/err" >&2
        die "failed: $*"
    }
    after=$(server_cpu)
    awk -v label="$label" -v who="$who" -v ops="$ops" -v times="$times" -v server="$((after - before))" '
        match($0, /Run completed in [0-9.]+/) { seconds = substr($0, RSTART + 17, RLENGTH - 17) }
        match($0, /"ops_per_s": *[0-9.]+/) { split(substr($0, RSTART, RLENGTH), f, ": *"); rate = f[2] }
        match($0, /iops average [0-9]+ .*in_flight|^iops average [0-9]+/) { n = split($0, f, "iops average "); rate = f[n] + 0 }
        match($0, /IOPS=[0-9.]+k?/) { rate = substr($0, RSTART + 5, RLENGTH - 5); if (rate ~ /k/) rate *= 1000 }
        END {
            split(times, t, " ")
            if (!rate) rate = ops / (seconds ? seconds : t[1])
            if (sub(/^x/, "", ops)) ops *= rate
            printf "%s|%s|%.0f|%.2f|%.2f\n", label, who, rate, (t[2] + t[3]) * 1e6 / ops, server / ops / 1e3
        }' "$DIR/out" >>"$RUNS"
    if [[ -n $RAW ]]; then tail -n 1 "$RUNS" >>"$RAW"; fi
    printf '.' >&2
}

# ours LABEL OPS URL FLAGS...
ours() {
    local label=$1 ops=$2 url=$3
    shift 3
    run "$label" ours "$ops" "$NETSWAP" io "$url" --ops "$ops" --json "$@"
}

# qemu LABEL OPS URL FLAGS...
qemu() {
    local label=$1 ops=$2 url=$3
    shift 3
    run "$label" peer "$ops" qemu-img bench -f raw -t none -c "$ops" "$@" "$url"
}

# perf LABEL SECONDS URL FLAGS...: it says how many operations a second these were.
perf() {
    local label=$1 seconds=$2 url=$3
    shift 3
    run "$label" peer "x$seconds" iscsi-perf -t "$seconds" "$@" "$url"
}

# --- Tables -------------------------------------------------------------------------------------

# Of each case and client the medians, then one row a case in the order of the first runs. Server: microseconds an
# operation, and how many cores of it were busy.
table() {
    printf '\n' >&2
    sort -t '|' -k 1,2 -s "$RUNS" | awk -F '|' -v order="$(cut -d '|' -f 1 "$RUNS" | awk '!seen[$0]++')" -v peer="$1" '
        function median(key,   n, i, j, x, v) {
            n = split(values[key], v, " ")
            for (i = 2; i <= n; i++) for (j = i; j > 1 && v[j] + 0 < v[j - 1] + 0; j--) { x = v[j]; v[j] = v[j - 1]; v[j - 1] = x }
            return v[int((n + 1) / 2)]
        }
        { for (i = 3; i <= 5; i++) values[$1, $2, i] = values[$1, $2, i] " " $i }
        END {
            printf "%-28s | %9s %9s %6s | %7s %7s %6s | %7s %7s | %s\n", "", "ops/s", "", "", "client", "us/op", "", \
                "server", "us/op", "cores busy"
            printf "%-28s | %9s %9s %6s | %7s %7s %6s | %7s %7s | %s\n", "", peer, "netswap", "ratio", peer, "netswap", \
                "ratio", peer, "netswap", "server, client of netswap"
            n = split(order, cases, "\n")
            for (c = 1; c <= n; c++) {
                for (i = 3; i <= 5; i++) { p[i] = median(cases[c] SUBSEP "peer" SUBSEP i); o[i] = median(cases[c] SUBSEP "ours" SUBSEP i) }
                printf "%-28s | %9d %9d %5.2fx | %7.2f %7.2f %5.2fx | %7.2f %7.2f | %.2f, %.2f\n", cases[c], p[3], o[3], o[3] / p[3], \
                    p[4], o[4], o[4] / p[4], p[5], o[5], o[3] * o[5] / 1e6, o[3] * o[4] / 1e6
            }
        }'
    rm -f "$RUNS"
}

# against_qemu NAME LIBRARY PEER OURS: the table of the server that runs, with a URL for each client.
against_qemu() {
    local rep depth way ops flag
    for ((rep = 0; rep < REPS; rep++)); do
        for depth in 1 16 64; do
            for way in read write; do
                ops=$((depth == 1 ? 16000 : 60000))
                flag=()
                if [[ $way == write ]]; then flag=(-w); fi
                qemu "4KiB stride $way, depth $depth" "$ops" "$3" -d "$depth" -s 4096 -S 69632 "${flag[@]}"
                ours "4KiB stride $way, depth $depth" "$ops" "$4" --rw "$way" --qd "$depth" --bs 4KiB --stride 68KiB
                qemu "64KiB $way, depth $depth" 12000 "$3" -d "$depth" -s 65536 "${flag[@]}"
                ours "64KiB $way, depth $depth" 12000 "$4" --rw "$way" --qd "$depth" --bs 64KiB
            done
        done
    done
    printf '\n%s: qemu-img bench (%s) and netswap io, medians of %d\n' "$1" "$2" "$REPS"
    table qemu
}

section_nfs() {
    start_ganesha
    against_qemu 'nfs-ganesha' libnfs "$NFS/peer" "$NFS/ours"
    stop
}

section_merge() {
    local rep way
    start_ganesha
    for ((rep = 0; rep < REPS; rep++)); do
        for way in write read; do
            run "4KiB in order $way" peer 60000 "$NETSWAP" io "$NFS/ours" --rw "$way" --qd 64 --ops 60000 --merge off --json
            ours "4KiB in order $way" 240000 "$NFS/ours" --rw "$way" --qd 64
        done
    done
    printf '\nnfs-ganesha: netswap io at depth 64, without and with merging, medians of %d\n' "$REPS"
    table unmerged
    stop
}

# on_targets NAME: both tables of the target that runs.
on_targets() {
    local rep depth
    against_qemu "$1" libiscsi "$PEER" "$OURS"
    for ((rep = 0; rep < REPS; rep++)); do
        for depth in 1 16 64; do
            perf "4KiB random read, depth $depth" 2 "$PEER" -m "$depth" -b 8 -r
            ours "4KiB random read, depth $depth" $((depth == 1 ? 32000 : 120000)) "$OURS" --rw randread --qd "$depth" --merge off
            perf "64KiB read, depth $depth" 2 "$PEER" -m "$depth" -b 128
            ours "64KiB read, depth $depth" 24000 "$OURS" --rw read --qd "$depth" --bs 64KiB
        done
    done
    printf '\n%s: iscsi-perf (libiscsi) and netswap io, medians of %d\n' "$1" "$REPS"
    table iscsi-perf
}

section_tgt() {
    start_tgt
    on_targets tgt
    stop
}

section_istgt() {
    start_istgt
    on_targets istgt
    stop
}

# with_digests NAME PLAIN WITH
with_digests() {
    local rep depth way
    for ((rep = 0; rep < REPS; rep++)); do
        for depth in 1 16 64; do
            for way in randread randwrite; do
                run "4KiB $way, depth $depth" peer 60000 "$NETSWAP" io "$2" --rw $way --qd "$depth" --ops 60000 --merge off --json
                ours "4KiB $way, depth $depth" 60000 "$3" --rw $way --qd "$depth" --merge off
            done
        done
    done
    printf '\n%s: netswap io without and with digests of headers and data, medians of %d\n' "$1" "$REPS"
    table without
}

section_digests() {
    start_tgt
    with_digests tgt "$OURS" "iscsi://127.0.0.1/$IQN:digests/1$DIGESTS"
    stop
    start_embedded_target
    with_digests 'netswap serve iscsi' "$OWN" "$OWN$DIGESTS"
    stop
}

# own_limit NAME START: the client's own limit on the server that START starts.
own_limit() {
    local rep depth way
    for ((rep = 0; rep < REPS; rep++)); do
        start_nbdkit
        for depth in 16 64; do
            for way in read write; do
                run "4KiB random $way, depth $depth" peer 200000 fio --name=nbd --ioengine=nbd --uri=nbd://127.0.0.1:22050 \
                    --rw="rand$way" --bs=4k --size=256M --io_size=800000k --iodepth="$depth"
            done
        done
        stop
        "$2"
        for depth in 16 64; do
            for way in read write; do
                ours "4KiB random $way, depth $depth" 200000 "$OWN" --rw "rand$way" --qd "$depth" --merge off
            done
        done
        stop
    done
    printf '\nthe client alone: fio (nbd engine) on nbdkit memory, and netswap io, unmerged, on %s, medians of %d\n' "$1" "$REPS"
    table fio
}

section_own() {
    own_limit 'netswap serve nfs' start_embedded
    own_limit 'netswap serve iscsi' start_embedded_target
}

printf '%s cores, %s, Linux %s\n' "$(nproc)" "$("$NETSWAP" --version)" "$(uname -r)"
for section in "${CHOSEN[@]}"; do "section_$section"; done
