# proves: A VF's MSI-X vectors reach a guest with two processors, and go on after function level resets and a guest reboot.
# timeout: 240
. /share/box/lib.sh

pf=$(bdf_of igb 0)
check "the PF comes up" pf_up "$pf" 10.9.0.1/24
cat >"$LAB_OUT/vf.yaml" <<END
version: 1
host: {iommu: required, interrupt-remapping: required}
devices:
  lan-pf:
    match: {address: "$pf"}
sriov:
  lan-pf:
    num-vfs: 2
    drivers-autoprobe: false
    vfs:
      - {id: 0, mac-address: "02:00:00:00:30:01"}
pools:
  lan-vfs: {pf: [lan-pf], vf-range: "0-0"}
vms:
  vf:
    cpus: 2
    memory: 256MiB
    boot:
      kernel: $GUEST_KERNEL
      initrd: $GUEST_INITRD
      cmdline: "console=ttyS0 quiet lab.agent lab.ip=10.9.0.2/24"
    nics:
      lan: {pool: lan-vfs}
END
guest_start vf "$LAB_OUT/vf.yaml"
check "the guest comes up" guest_up vf || bail "without a guest" "$(tail -n 5 "$LAB_OUT/vf.err")"

# Interrupts of one vector of the card: NAME as /proc/interrupts ends its line.
count() { guest_run vf "grep -E ' $1\$' /proc/interrupts" | awk '{ for (i = 2; i <= NF && $i ~ /^[0-9]+$/; i++) sum += $i } END { print sum + 0 }'; }
pings() { retry 20 guest_run vf 'ping -c 1 -W 1 10.9.0.1' 5; }

like "its function is given by MSI-X" "$(guest_run vf 'cat /proc/interrupts')" 'MSIX?[^ ]*.*eth0-rx-0'
like "the guest offers a function level reset" "$(guest_run vf 'cat /sys/class/net/eth0/device/reset_method')" flr
unwanted='ARI|Alternative Routing|SR-IOV|Resizable|Access Control'
if guest_run vf 'lspci -vv -s 01:00.0' | grep -Eq "$unwanted"; then
    not_ok "the host's capabilities are hidden" "$(guest_run vf 'lspci -vv -s 01:00.0' | grep -E "$unwanted")"
else
    ok "the host's capabilities are hidden"
fi

check "the guest pings the PF" pings
rx=$(count eth0-rx-0)
tx=$(count eth0-tx-0)
iperf_server
guest_iperf vf 10.9.0.1 >"$LAB_OUT/iperf"
more "packets pass, in Mbit/s" "$(iperf_mbits <"$LAB_OUT/iperf")" 0
more "the receive vector rises" "$(count eth0-rx-0)" "$((rx + 10))"
more "the transmit vector rises" "$(count eth0-tx-0)" "$((tx + 10))"

# One vector moves between processors: masked, rewritten, unmasked.
irq=$(guest_run vf "grep -E ' eth0-rx-0\$' /proc/interrupts" | sed 's/ *\([0-9]*\):.*/\1/')
for cpu in 0 1 0 1; do
    guest_run vf "echo $cpu >/proc/irq/$irq/smp_affinity_list" >/dev/null
    check "the guest pings the PF, interrupted on processor $cpu" pings
done

guest_run vf 'echo 1 >/sys/class/net/eth0/device/reset' 20 >/dev/null
check "the guest pings the PF after a function level reset in operation" pings
rx=$(count eth0-rx-0)
guest_run vf 'ping -c 5 -i 0.2 10.9.0.1' 20 >/dev/null
more "its receive vector still rises" "$(count eth0-rx-0)" "$rx"

guest_run vf 'd=$(readlink -f /sys/class/net/eth0/device); b=${d##*/}; echo $b >/sys/bus/pci/drivers/igbvf/unbind; echo 1 >$d/reset; echo $b >/sys/bus/pci/drivers/igbvf/bind; sleep 1; ip link set eth0 up; ip addr add 10.9.0.2/24 dev eth0' 20 >/dev/null
check "the guest pings the PF after a reset without a driver" pings

guest_run vf 'reboot -f' 1 >/dev/null
up_twice() { [ "$(grep -c @@up "$LAB_OUT/vf.console")" -ge 2 ]; }
check "the guest comes up again after a reboot" retry 80 up_twice
check "the guest pings the PF after a reboot" pings
is "it has its MAC still" "$(guest_run vf 'cat /sys/class/net/eth0/address')" 02:00:00:00:30:01
guest_run vf 'poweroff -f' 1 >/dev/null
is "the guest powers off" "$(guest_wait vf 30)" 0
