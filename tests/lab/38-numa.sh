# proves: On a box of two NUMA nodes a guest's memory is on the node of its device, or on the one that is named; where that has no room the guest is refused.
# kernels: debian
# box: two-nodes
# timeout: 300
. /share/box/lib.sh

card=$(bdf_of e1000e 1)
guest() {
    echo "  $1:"
    echo "    memory: {size: $2, numa: $3}"
    echo "    boot: {kernel: $GUEST_KERNEL, initrd: $GUEST_INITRD, cmdline: \"console=ttyS0 quiet lab.agent lab.ip=10.9.0.3/24\"}"
}
file=/run/numa.yaml
{
    echo "version: 1"
    echo "host: {iommu: required, interrupt-remapping: required}"
    echo "devices: {far: {match: {address: \"$card\"}}}"
    echo "vms:"
    guest near 256MiB auto
    echo "    pci: {lan: {device: far}}"
    guest named 192MiB 1
    guest large 1200MiB 1
    guest nowhere 64MiB 7
} >"$file"

# pages GUEST: on which nodes its memory is.
pages() { sed -n 's/.*guest-ram//p' "/proc/$(guest_machine "$1")/numa_maps" | grep -o 'N[0-9]*=' | sort -u | tr -d '\n'; }

is "the box has two nodes" "$(cat /sys/devices/system/node/online)" 0-1
is "the card is near the second one" "$(cat "/sys/bus/pci/devices/$card/numa_node")" 1
like "which is told" "$(throughway devices --json | tr -d ' \n')" "\"address\":\"$card\"[^}]*\"numa-node\":1"
like "a guest that has no room on its node is refused" "$(throughway run "$file" --vm large 2>&1)" 'error: .*node 1'
like "and one whose node is not there" "$(throughway run "$file" --vm nowhere 2>&1)" 'error: .*node 7'
check "the PF on the same wire comes up" pf_up "$(bdf_of igb 0)" 10.9.0.1/24
guest_start near "$file"
check "the guest with the card comes up" guest_up near 150 || bail "without a guest" "$(tail -n 5 "$LAB_OUT/near.err")"
is "all its memory is near the card" "$(pages near)" N1=
check "it pings" retry 20 guest_run near 'ping -c 1 -W 1 10.9.0.1' 5
guest_run near 'poweroff -f' 1 >/dev/null
is "it powers off" "$(guest_wait near 30)" 0
guest_start named "$file"
check "the guest that names the node comes up" guest_up named 150 || bail "without a guest" "$(tail -n 5 "$LAB_OUT/named.err")"
is "all its memory is there" "$(pages named)" N1=
guest_run named 'poweroff -f' 1 >/dev/null
is "it powers off" "$(guest_wait named 30)" 0
