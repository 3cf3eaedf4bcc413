# proves: Two guests hold a VF each, a VLAN parts them, and the host has its VFs back as they were after a power-off and after kill -9.
# kernels: debian iommufd
# timeout: 420
. /share/box/lib.sh

vf_line() { ip link show "$link" | sed -n "s/^ *vf $1 *//p"; }

pf=$(bdf_of igb 0)
check "the PF comes up" pf_up "$pf" 10.9.0.1/24
check "two VFs are made, by hand" vfs "$pf" 2
link=$(netdev_of "$pf")
ip link set "$link" vf 0 mac 02:00:00:00:aa:00 vlan 7
ip link set "$link" vf 0 trust on
vf0=$(vf_of "$pf" 0)
vf1=$(vf_of "$pf" 1)
check "VF 0 has a host driver" bind "$vf0" igbvf
echo >"/sys/bus/pci/devices/$vf0/driver_override"
before=$(vf_line 0)

cat >/tmp/two.yaml <<E
version: 1
devices:
  lan: {match: {address: "$pf"}}
sriov:
  lan: {num-vfs: 2, vf-defaults: {spoof-check: true, trust: false}}
vms:
  one:
    memory: 192MiB
    boot: {kernel: $GUEST_KERNEL, initrd: $GUEST_INITRD, cmdline: "console=ttyS0 quiet lab.agent lab.ip=10.9.0.2/24"}
    nics: {lan: {pf: lan, vf: 0, mac-address: "02:00:00:00:01:00", vlan-id: 0}}
  two:
    memory: 192MiB
    boot: {kernel: $GUEST_KERNEL, initrd: $GUEST_INITRD, cmdline: "console=ttyS0 quiet lab.agent lab.ip=10.9.0.3/24"}
    nics: {lan: {pf: lan, vf: 1, mac-address: "02:00:00:00:01:01"}}
  greedy:
    memory: 192MiB
    boot: {kernel: $GUEST_KERNEL, initrd: $GUEST_INITRD, cmdline: "console=ttyS0"}
    nics: {lan: {pf: lan, vf: 0}}
E

check "the first guest starts" guest_spawn one throughway -v run /tmp/two.yaml --vm one
check "it comes up" guest_up one || bail "without it nothing follows" "$(tail -n 3 "$LAB_OUT/one.err")"
check "it pings the PF" retry 20 guest_run one 'ping -c 1 -W 1 10.9.0.1' 5
second=$(netdev_of "$(bdf_of igb 1)")
ip netns add second
ip link set "$second" netns second
ip -n second addr add 10.9.0.20/24 dev "$second"
ip -n second link set "$second" up
check "and the second port, over the wire" retry 20 guest_run one 'ping -c 1 -W 1 10.9.0.20' 5
throughway run /tmp/two.yaml --vm greedy </dev/null >/tmp/greedy 2>&1
is "a third guest that wants the first one's VF is refused" "$?" 1
like "and told who holds it" "$(cat /tmp/greedy)" "$vf0 is in use by guest .one."
sed 's/num-vfs: 2/num-vfs: 3/' /tmp/two.yaml >/tmp/three.yaml
throughway run /tmp/three.yaml --vm two </dev/null >/tmp/resize 2>&1
is "another number of VFs is refused while one is held" "$?" 1
like "and told why" "$(cat /tmp/resize)" "num-vfs 2 -> 3 would take $vf0 from guest .one."

check "the second guest starts beside it" guest_start two /tmp/two.yaml
check "it comes up" guest_up two || bail "without it nothing follows" "$(tail -n 3 "$LAB_OUT/two.err")"
check "the second pings the first" retry 20 guest_run two 'ping -c 1 -W 1 10.9.0.2' 5

# What KVM_GET_STATS_FD counts of exits to user space for memory-mapped I/O, which throughway writes when it is asked: traffic makes
# none. (Port I/O is the console's, by which the guest is told what to do.)
written() { grep -c 'KVM statistics of vCPU 0' "$LAB_OUT/one.err"; }
written_more() { [ "$(written)" -gt "$1" ]; }
mmio_exits() {
    lines=$(written)
    kill -USR1 "$(guest_pid one)"
    retry 5 written_more "$lines" || return
    sed -n 's/.*KVM statistics of vCPU 0:.* mmio_exits=\([0-9]*\).*/\1/p' "$LAB_OUT/one.err" | tail -n 1
}
iperf_server
packets_before=$(guest_run one 'cat /sys/class/net/eth0/statistics/rx_packets')
exits_before=$(mmio_exits)
more "KVM counts exits for memory-mapped I/O" "$exits_before" 0
guest_iperf one 10.9.0.1
guest_iperf one 10.9.0.1 -R
packets_after=$(guest_run one 'cat /sys/class/net/eth0/statistics/rx_packets')
more "packets flowed, $((packets_after - packets_before)) into the guest" "$packets_after" "$((packets_before + 1000))"
is "and none made an exit to user space" "$(mmio_exits)" "$exits_before"

ip link set "$link" vf 1 vlan 100
guest_run two 'ip neigh flush all' >/dev/null
if guest_run two 'ping -c 3 -W 1 10.9.0.2' 10 >/dev/null; then not_ok "a VLAN parts them"; else ok "a VLAN parts them"; fi
ip link set "$link" vf 1 vlan 0
check "without it they meet again" retry 20 guest_run two 'ping -c 1 -W 1 10.9.0.2' 5

guest_run one 'poweroff -f' 1 >/dev/null
is "the first guest powers off" "$(guest_wait one 30)" 0
is "VF 0 has its driver back" "$(driver_of "$vf0")" igbvf
is "and its MAC, VLAN and trust" "$(vf_line 0)" "$before"
check "the second one never noticed" retry 10 guest_run two 'ping -c 1 -W 1 10.9.0.1' 5

guest_run two 'iperf3 -c 10.9.0.1 -t 30 >/dev/null 2>&1 &' 5
sleep 3
guest_kill two
like "after kill -9 VF 1 is still lent" "$(driver_of "$vf1")" vfio-pci
check "the same guest starts again" guest_start two /tmp/two.yaml
check "it comes up" guest_up two || bail "without it nothing follows" "$(tail -n 3 "$LAB_OUT/two.err")"
like "throughway said that it tidied up first" "$(cat "$LAB_OUT/two.err")" "ended without giving its devices back"
check "it pings the PF" retry 20 guest_run two 'ping -c 1 -W 1 10.9.0.1' 5
guest_kill two
like "throughway recover puts VF 1 back" "$(throughway recover 2>&1)" "1 guest were put back"
is "VF 1 has no driver, as before" "$(driver_of "$vf1")" ""
like "and nothing is left to do" "$(throughway recover 2>&1)" "Nothing to put back"
