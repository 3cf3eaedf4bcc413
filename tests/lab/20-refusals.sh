# proves: What cannot be had is refused with one clear error at its line, status 1, and a host that nobody touched.
# timeout: 300
. /share/box/lib.sh

# Drivers, overrides and VFs of every function, and what ip(8) says of every link and VF.
host_state() {
    for device in /sys/bus/pci/devices/*; do
        echo "${device##*/} $(driver_of "${device##*/}") $(cat "$device/driver_override") $(cat "$device/sriov_numvfs" "$device/sriov_drivers_autoprobe" 2>/dev/null | tr '\n' ' ')"
    done
    ip -d link show
}
# refused TEXT PATTERN: `throughway run` of the guest in /tmp/r.yaml.
refused() {
    host_state >/tmp/before
    throughway run /tmp/r.yaml --vm a </dev/null >/tmp/out 2>/tmp/err
    status=$?
    cat /tmp/err
    host_state >/tmp/after
    is "$1: status 1" "$status" 1
    like "$1: it says so" "$(cat /tmp/err)" "$2"
    is "$1: in one error" "$(grep -c 'error: ' /tmp/err)" 1
    check "$1: the host is as before" cmp /tmp/before /tmp/after
}
# file DEVICES SRIOV GUEST [MEMORY]: the guest `a`, its devices.
file() {
    cat >/tmp/r.yaml <<END
version: 1
devices:
  $1
sriov: {$2}
vms:
  a:
    memory: ${4:-192MiB}
    boot: {kernel: ${kernel:-$GUEST_KERNEL}, initrd: $GUEST_INITRD, cmdline: "console=ttyS0"}
    $3
END
}
whole() { file "x: {match: {address: \"$1\"}}" "" "pci: {x: {device: x}}"; }

# Started often, so it is not brought over by 9p each time.
cp "$(command -v throughway)" /tmp/throughway
throughway() { /tmp/throughway "$@"; }
pf=$(bdf_of igb 0)
card=$(bdf_of e1000e)
disk=$(bdf_of nvme)
lan="lan: {match: {address: \"$pf\"}}"
check "the PF comes up" pf_up "$pf" 10.9.0.1/24
check "the whole card comes up" pf_up "$card"
link=$(netdev_of "$card")

whole 0000:7f:00.0
refused "a function that is not there" "^/tmp/r.yaml:3:[0-9]+: error: There is no such PCI function"
file "x: {match: {address: \"$card\", id: \"8086:1533\"}}" "" "pci: {x: {device: x}}"
refused "another card than the file says" "error: Another device is there now: $card is 8086:10d3"
file "x: {match: {id: \"8086:10c9\"}}" "" "pci: {x: {device: x}}"
refused "a match that fits two" "error: 2 functions fit this: $pf, "
whole "$(basename "$(readlink -f "/sys/bus/pci/devices/$card/..")")"
refused "a root port" "is a bridge"

ip addr add 10.8.0.1/24 dev "$link"
ip route add default via 10.8.0.254 dev "$link"
whole "$card"
refused "the way out of the box" "error: $card is the way to this box: $link"
ip route del default
ip addr del 10.8.0.1/24 dev "$link"
ip link add br0 type bridge
ip link set "$link" master br0
refused "a port of a bridge" "error: $card is in use by the host: $link is a port of br0"
ip link del br0

# Below the function there may be only a hidden path to it (Debian's kernel has multipath NVMe).
block=$(ls /sys/class/block | grep -E '^nvme[0-9]+n[0-9]+$' | head -n 1)
check "the disk has a file system" mke2fs -F "/dev/$block"
mkdir -p /tmp/disk
check "it is mounted" mount -t ext4 "/dev/$block" /tmp/disk || bail "without it the disk would be given away"
whole "$disk"
refused "a mounted disk" "error: $disk is in use by the host: $block is mounted at /tmp/disk"
umount /tmp/disk

file "$lan" "lan: {num-vfs: 8}" "nics: {n: {pf: lan, vf: 0}}"
refused "more VFs than the card has" "error: $pf has at most 7 virtual functions, and 8 are asked for"
file "x: {match: {address: \"$card\"}}" "x: {num-vfs: 1}" "nics: {n: {pf: x, vf: 0}}"
refused "VFs of a card that has none" "error: $card offers no virtual functions"
file "$lan" "lan: {num-vfs: 2}" "nics: {m: {pf: lan, vf: 1}, n: {pf: lan, vf: 1}}"
refused "a VF twice" "error: VF 1 of $pf is given to this guest already"
file "$lan" "lan: {num-vfs: 2}" "nics: {n: {pf: lan, vf: 0}}" 4TiB
refused "more memory than there is" "error: The guest wants 4TiB of memory, and the host has [0-9]+ MiB to give"
file "$lan" "lan: {num-vfs: 2, num-vf: 3}" "nics: {n: {pf: lan, vf: 0}}"
refused "a mistyped key" "^/tmp/r.yaml:4:.*error: Unknown key .num-vf."
kernel=/no/such/kernel
file "$lan" "lan: {num-vfs: 2}" "nics: {n: {pf: lan, vf: 0}}"
refused "a kernel that is not there" ": error: Opening the kernel /no/such/kernel: No such file"

# What is found out only when the card is taken already.
kernel=/tmp/r.yaml
whole "$card"
throughway run /tmp/r.yaml --vm a </dev/null >/tmp/out 2>/tmp/err
status=$?
cat /tmp/err
is "a kernel that is none: status 1" "$status" 1
like "a kernel that is none: it says so" "$(cat /tmp/err)" "error: .*neither a bzImage nor an ELF file"
is "a kernel that is none: the card has its driver back" "$(driver_of "$card")" e1000e
like "a kernel that is none: nothing is left to put back" "$(throughway recover 2>&1)" "Nothing to put back"
