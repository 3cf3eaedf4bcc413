# proves: QEMU as the VMM in the same box gives the same guest the same VF, so what fails in another scenario is not the box's fault.
# kernels: debian iommufd
# timeout: 200
# needs: nothing
. /share/box/lib.sh

pf=$(bdf_of igb 0)
check "the PF comes up" pf_up "$pf" 10.9.0.1/24
check "two VFs are made" vfs "$pf" 2
link=$(netdev_of "$pf")
ip link set "$link" vf 0 mac 02:00:00:00:09:01
vf=$(vf_of "$pf" 0)
check "VF 0 binds to vfio-pci" bind "$vf" vfio-pci

check "QEMU is there" peer_mount
guest_spawn peer peer_qemu 256 1 "lab.agent lab.ip=10.9.0.2/24" \
    -device "vfio-pci,host=$vf,romfile="
check "the guest comes up" guest_up peer || bail "without a guest" "$(tail -n 5 "$LAB_OUT/peer.err")"
is "the guest's driver is igbvf" "$(guest_run peer 'basename $(readlink /sys/bus/pci/devices/*/driver | grep igbvf)')" igbvf
like "it has the MAC of the VF" "$(guest_run peer 'ip link')" 02:00:00:00:09:01
check "the guest pings the PF" retry 20 guest_run peer 'ping -c 1 -W 1 10.9.0.1' 5
before=$(guest_run peer 'grep -E "eth|rx|tx" /proc/interrupts')
iperf_server
guest_iperf peer 10.9.0.1 >"$LAB_OUT/iperf"
cat "$LAB_OUT/iperf"
more "throughput in Mbit/s from the guest to the PF" "$(iperf_mbits <"$LAB_OUT/iperf")" 1
after=$(guest_run peer 'grep -E "eth|rx|tx" /proc/interrupts')
if [ "$before" != "$after" ]; then ok "the VF's interrupts rise"; else not_ok "the VF's interrupts rise" "$after"; fi
guest_stop peer
