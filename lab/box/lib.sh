# Helpers for scenarios, in POSIX sh. A scenario starts with
#
#   # proves: one sentence
#   # kernels: debian iommufd      (default: both)
#   # timeout: 120                 (seconds, default 120)
#   # gates: no                    (default yes: suites run it)
#   . /share/box/lib.sh
#
# and then makes checks. What it prints goes to $LAB_OUT/log; files it leaves in
# $LAB_OUT are found on the host afterwards.

# ---- checks -----------------------------------------------------------------

lab_count=0
[ -e /proc/self/fd/3 ] || exec 3>&1

# ok TEXT: a check that held.
ok() {
    lab_count=$((lab_count + 1))
    echo "ok $lab_count - $1" >&3
    echo "ok $lab_count - $1"
}

# not_ok TEXT [WHY]: a check that did not.
not_ok() {
    lab_count=$((lab_count + 1))
    echo "not ok $lab_count - $1${2:+ # $2}" >&3
    echo "not ok $lab_count - $1${2:+ # $2}"
    return 1
}

# check TEXT COMMAND...: holds when the command succeeds. All checks return whether they held.
check() {
    lab_text=$1
    shift
    if lab_said=$("$@" 2>&1); then ok "$lab_text"; else not_ok "$lab_text" "$(echo "$* said: $lab_said" | tail -n 3 | tr '\n' ' ')"; fi
}

# is TEXT GOT WANTED: holds when both are equal.
is() {
    if [ "$2" = "$3" ]; then ok "$1"; else not_ok "$1" "got '$2', wanted '$3'"; fi
}

# like TEXT GOT PATTERN: holds when GOT matches the extended regular expression.
like() {
    if printf '%s\n' "$2" | grep -Eq -- "$3"; then ok "$1"; else not_ok "$1" "'$(printf '%s' "$2" | tail -n 3 | tr '\n' ' ')' is not like '$3'"; fi
}

# more TEXT GOT LEAST: holds when the number GOT is greater than LEAST.
more() {
    if [ "${2:-0}" -gt "$3" ] 2>/dev/null; then ok "$1"; else not_ok "$1" "got '$2', wanted more than $3"; fi
}

# bail TEXT [WHY]: a check that did not hold and without which nothing else makes sense.
bail() {
    not_ok "$@"
    exit 1
}

# retry SECONDS COMMAND...: tries until it succeeds.
retry() {
    # Its own: what is tried may retry something itself.
    local lab_until=$(($(date +%s) + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ "$(date +%s)" -lt "$lab_until" ] || return 1
        sleep 0.3
    done
}

# ---- PCI functions ----------------------------------------------------------

# bdf_of KIND [N]: address of the Nth function (from 0) of a kind:
# igb, igbvf, e1000e, edu, nvme, admin.
bdf_of() {
    case $1 in
    igb) lab_id=0x8086:0x10c9 ;;
    igbvf) lab_id=0x8086:0x10ca ;;
    e1000e) lab_id=0x8086:0x10d3 ;;
    edu) lab_id=0x1234:0x11e8 ;;
    nvme) lab_id=0x1b36:0x0010 ;;
    *) return 1 ;;
    esac
    lab_nth=${2:-0}
    for lab_device in /sys/bus/pci/devices/*; do
        [ "$(cat "$lab_device/vendor"):$(cat "$lab_device/device")" = "$lab_id" ] || continue
        if [ "$lab_nth" = 0 ]; then
            echo "${lab_device##*/}"
            return 0
        fi
        lab_nth=$((lab_nth - 1))
    done
    return 1
}

# vf_of PF N: address of VF N of a PF.
vf_of() { basename "$(readlink -f "/sys/bus/pci/devices/$1/virtfn$2")"; }

# netdev_of BDF: the network interface of a function. Names shift; addresses do not.
netdev_of() { ls "/sys/bus/pci/devices/$1/net" 2>/dev/null | head -n 1; }

# driver_of BDF: the bound driver, empty for none.
driver_of() { [ -e "/sys/bus/pci/devices/$1/driver" ] && basename "$(readlink "/sys/bus/pci/devices/$1/driver")"; }

# group_of BDF: the IOMMU group's number.
group_of() { [ -e "/sys/bus/pci/devices/$1/iommu_group" ] && basename "$(readlink "/sys/bus/pci/devices/$1/iommu_group")"; }

# pf_up BDF [ADDRESS/LEN]: brings a PF's link up (before any VF driver probes) and waits for its carrier.
#
# Its interrupts are spaced by a fixed time. The emulated wire has no speed of its own, and a flow out of a guest now and then
# stands still for seconds, under any VMM; with the driver's own choice of spacing it does so more often. Whoever measures a flow
# makes the rings longer first (bench-vf.sh).
pf_up() {
    retry 10 netdev_of_exists "$1" || return 1
    lab_link=$(netdev_of "$1")
    ethtool -C "$lab_link" rx-usecs 20 2>/dev/null
    ip link set "$lab_link" up
    [ -z "$2" ] || ip addr replace "$2" dev "$lab_link"
    retry 10 carrier "$lab_link"
}
netdev_of_exists() { [ -n "$(netdev_of "$1")" ]; }
carrier() { [ "$(cat "/sys/class/net/$1/carrier" 2>/dev/null)" = 1 ]; }

# vfs PF COUNT: makes VFs that no driver probes.
vfs() {
    echo 0 >"/sys/bus/pci/devices/$1/sriov_drivers_autoprobe"
    echo "$2" >"/sys/bus/pci/devices/$1/sriov_numvfs"
}

# bind BDF DRIVER: binds by driver_override.
bind() {
    [ -n "$(driver_of "$1")" ] && echo "$1" >"/sys/bus/pci/devices/$1/driver/unbind"
    echo "$2" >"/sys/bus/pci/devices/$1/driver_override"
    echo "$1" >/sys/bus/pci/drivers_probe
    [ "$(driver_of "$1")" = "$2" ]
}

# vf_functions PF: each VF of a PF, with its driver and driver_override.
vf_functions() {
    for lab_path in /sys/bus/pci/devices/"$1"/virtfn*; do
        [ -e "$lab_path" ] || continue
        lab_vf=$(basename "$(readlink "$lab_path")")
        echo "$lab_vf driver $(driver_of "$lab_vf"), override $(cat "$lab_path/driver_override")"
    done
}

# vf_state PF: all that can be asked about the VFs of a PF.
vf_state() {
    echo "$(cat "/sys/bus/pci/devices/$1/sriov_numvfs") VFs, autoprobe $(cat "/sys/bus/pci/devices/$1/sriov_drivers_autoprobe")"
    ip link show "$(netdev_of "$1")" | grep '^ *vf '
    vf_functions "$1"
}

# irqs NAME: sum of the interrupts of all lines of /proc/interrupts that name NAME.
irqs() { awk -v name="$1" 'index($0, name) { for (i = 2; i <= NF && $i ~ /^[0-9]+$/; i++) sum += $i } END { print sum + 0 }' /proc/interrupts; }

# ---- guests -----------------------------------------------------------------
#
# A guest booted with $GUEST_INITRD and "lab.agent" on its kernel command line
# listens on its console for commands, guest_run sends them.

# guest_start NAME FILE [VM]: runs `throughway run FILE --vm VM` in the background.
guest_start() {
    guest_spawn "$1" throughway run "$2" --vm "${3:-$1}"
}

# guest_spawn NAME COMMAND...: any VMM whose guest console is its standard input and output.
guest_spawn() {
    lab_guest=$1
    shift
    rm -rf "/run/guest-$lab_guest"
    mkdir -p "/run/guest-$lab_guest"
    mkfifo "/run/guest-$lab_guest/in" "/run/guest-$lab_guest/out"
    : >"$LAB_OUT/$lab_guest.console"
    # The input is held open for reading and writing, so that no writer has to come first and none's end is an end. The console
    # goes through a pipe: a VMM writes each byte as it comes, and to a file of the 9p share each takes milliseconds.
    (
        exec 4<>"/run/guest-$lab_guest/in"
        cat <"/run/guest-$lab_guest/out" >"$LAB_OUT/$lab_guest.console" 3>&- 4>&- &
        lab_copier=$!
        "$@" <&4 >"/run/guest-$lab_guest/out" 2>"$LAB_OUT/$lab_guest.err" 3>&- 4>&- &
        echo $! >"/run/guest-$lab_guest/pid"
        wait $!
        lab_status=$?
        wait $lab_copier
        echo $lab_status >"/run/guest-$lab_guest/status"
    ) >/dev/null 2>&1 3>&- &
    retry 5 test -s "/run/guest-$lab_guest/pid"
}

guest_pid() { cat "/run/guest-$1/pid"; }
# guest_machine NAME: the process that the guest runs in, a child of that. The number of one that has none is its own.
guest_machine() {
    lab_keeper=$(guest_pid "$1")
    lab_child=$(grep -ls "^PPid:[[:space:]]*$lab_keeper\$" /proc/[0-9]*/status | head -n 1 | cut -d / -f 3)
    echo "${lab_child:-$lab_keeper}"
}
guest_console() { cat "$LAB_OUT/$1.console"; }
guest_running() { [ ! -e "/run/guest-$1/status" ]; }
guest_said() { grep -q -- "$2" "$LAB_OUT/$1.console"; }
guest_up_or_gone() { guest_said "$1" "@@up" || ! guest_running "$1"; }

# guest_up NAME [SECONDS]: waits until the guest is in user space.
guest_up() {
    retry "${2:-100}" guest_up_or_gone "$1"
    guest_running "$1" && guest_said "$1" "@@up" && return
    stuck "$1" "does not come up"
    return 1
}

# stuck NAME HOW: a guest stands still; where its VMM is there, that is told.
stuck() {
    guest_why "$1" "$2" >>"$LAB_OUT/log" 2>&1
    ! guest_running "$1" || stands_still "$1" "$2"
}

# stands_still NAME HOW: tells who runs the box that a guest does while its VMM is there, for which the emulator may be to blame:
# the scenario is tried again in another box, a few times.
stands_still() { echo "##stuck guest $1 $2, and its VMM is still there" >&3; }

# guest_why NAME HOW: what there is to know of a guest that stands still.
guest_why() {
    echo "Guest $1 $2. Its console and its VMM's log end with:"
    tail -n 5 "$LAB_OUT/$1.console" "$LAB_OUT/$1.err"
    if guest_running "$1"; then vmm_why "$(guest_machine "$1")" "$1"; else echo "Its VMM ended with $(cat "/run/guest-$1/status")."; fi
}

# vmm_why PID NAME: where the threads of a machine are, what KVM counts, and what its vCPU does.
vmm_why() {
    for lab_task in /proc/"$1"/task/*; do
        echo "$(cat "$lab_task/comm"): $(cut -d ' ' -f 3,14,15 "$lab_task/stat"), $(head -n 3 "$lab_task/stack" | tr '\n' ' ')"
    done
    timeout 5 throughway vm stats "$2"
    mount -t tracefs tracefs /sys/kernel/tracing
    echo 1 >/sys/kernel/tracing/events/kvm/enable
    sleep 0.2
    echo 0 >/sys/kernel/tracing/events/kvm/enable
    grep -v '^#' /sys/kernel/tracing/trace | tail -n 12
    timeout 5 throughway vm stats "$2"
}

# guest_run NAME COMMAND [SECONDS]: runs a shell command in the guest, prints what it prints, returns its status. Who gives it
# twenty seconds or more counts on an answer.
guest_run() {
    lab_tag=$(cut -c1-8 /proc/sys/kernel/random/uuid)
    printf '%s %s\n' "$lab_tag" "$2" >"/run/guest-$1/in"
    retry "${3:-30}" guest_said "$1" "@@end $lab_tag" || {
        echo "(no answer from guest $1 in ${3:-30} s)"
        [ "${3:-30}" -lt 20 ] || stuck "$1" "does not answer"
        return 124
    }
    tr -d '\r' <"$LAB_OUT/$1.console" | sed -n "/^@@begin $lab_tag\$/,/^@@end $lab_tag/p" | sed '1d;$d'
    return "$(tr -d '\r' <"$LAB_OUT/$1.console" | sed -n "s/^@@end $lab_tag \([0-9]*\).*/\1/p" | head -n 1)"
}

# guest_wait NAME [SECONDS]: waits for the VMM to end, prints its exit status.
guest_wait() {
    retry "${2:-30}" test -s "/run/guest-$1/status" || return 1
    cat "/run/guest-$1/status"
}

# guest_stop NAME: ends the VMM, hard when it must be.
guest_stop() {
    guest_running "$1" || return 0
    kill "$(guest_pid "$1")" 2>/dev/null
    guest_wait "$1" 10 >/dev/null || kill -9 "$(guest_pid "$1")" 2>/dev/null
    guest_wait "$1" 5 >/dev/null
}

# guest_kill NAME: kill -9.
guest_kill() {
    kill -9 "$(guest_pid "$1")"
    guest_wait "$1" 10 >/dev/null
}

# ---- wires ------------------------------------------------------------------

in_ns() { ip netns exec "$@"; }

# wire NAME ADDRESS/LEN: a namespace NAME with eth0 at that address, and NAME-port here at the other end of its wire.
wire() {
    ip netns add "$1"
    ip link add "$1-port" type veth peer name eth0 netns "$1"
    ip link set "$1-port" up
    ip -n "$1" link set eth0 up
    ip -n "$1" addr add "$2" dev eth0
}

# ---- throughput and reach ---------------------------------------------------

# iperf_server [ADDRESS]: one iperf3 server in the box.
iperf_server() {
    iperf3 -s -D ${1:+-B "$1"} -I /run/iperf3.pid 3>&-
    retry 5 test -s /run/iperf3.pid
}

# guest_iperf GUEST SERVER [OPTION...]: iperf3 of two seconds in a guest, its text on standard output. A flow through an emulated
# card that stands still (see pf_up) is tried again, twice.
guest_iperf() {
    lab_guest=$1
    shift
    for lab_try in 1 2 3; do
        lab_flow=$(guest_run "$lab_guest" "timeout 15 iperf3 --connect-timeout 5000 -t 2 -c $*" 40)
        ! echo "$lab_flow" | grep -q receiver || break
        echo "The flow of guest $lab_guest ($*) stands still, try $lab_try: $lab_flow"
    done >>"$LAB_OUT/log"
    echo "$lab_flow"
}

# iperf_mbits: the receiver's Mbit/s out of iperf3's text on standard input; what is less than one is one.
iperf_mbits() { awk '/receiver/ { for (i = 1; i <= NF; i++) if ($i ~ /bits\/sec/) { v = $(i - 1); if ($i ~ /^G/) v *= 1000; if ($i ~ /^K/) v /= 1000; printf "%d\n", (v > 0 && v < 1 ? 1 : v) } }' | tail -n 1; }

# ---- the box itself ---------------------------------------------------------

# box_reboot: reboots the box, with what throughway keeps on disk; the scenario (`# boot: reboots`) then runs again from its
# start, with LAB_BOOT=2.
box_reboot() {
    cp -a /var/lib/throughway "$LAB_OUT/state" || bail "what is on disk is kept"
    touch /share/again
    sync
    reboot -f
    sleep 60
}

# box_disk: what was on disk before the reboot is there again.
box_disk() { mkdir -p /var/lib && cp -a "$LAB_OUT/state" /var/lib/throughway; }

# ---- the peer ---------------------------------------------------------------

# peer_mount: makes the programs of the host's sysroot, QEMU above all, available below /sysroot.
peer_mount() {
    [ -x /sysroot/usr/bin/qemu-system-x86_64 ] && return 0
    mkdir -p /sysroot
    mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=mmap,ro sysroot /sysroot
}

# peer_qemu MIB CPUS APPEND ARGUMENTS...: QEMU as the VMM, in the shape `throughway` gives a guest.
peer_qemu() {
    lab_mib=$1 lab_cpus=$2 lab_append=$3
    shift 3
    exec /sysroot/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2 --library-path /sysroot/usr/lib/x86_64-linux-gnu:/sysroot/usr/lib \
        /sysroot/usr/bin/qemu-system-x86_64 -nodefaults -no-user-config -display none -no-reboot \
        -L /sysroot/usr/share/qemu -L /sysroot/usr/share/seabios -M q35 -accel kvm -cpu host -smp "$lab_cpus" \
        -m "$lab_mib" -kernel "$GUEST_KERNEL" -initrd "$GUEST_INITRD" -append "console=ttyS0 quiet $lab_append" \
        -chardev stdio,id=console,signal=off -serial chardev:console "$@"
}
