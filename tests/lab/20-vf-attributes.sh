# proves: Every attribute of a VF is set and reads back, what a driver does not have is said or ends the start, and all is put back.
# kernels: debian iommufd
# timeout: 300
. /share/box/lib.sh

# The second witness: what ip(8) says of a VF.
vf_line() { ip -d link show "$link" | sed -n "s/^ *vf $1 *//p"; }
# file NAME VM-NIC-KEYS: a guest `NAME` with VF 0 and these keys.
file() {
    cat >"$LAB_OUT/$1.yaml" <<END
version: 1
devices:
  lan: {match: {address: "$pf"}}
sriov:
  lan: {num-vfs: 2}
vms:
  $1:
    memory: 192MiB
    boot: {kernel: $GUEST_KERNEL, initrd: $GUEST_INITRD, cmdline: "console=ttyS0 quiet lab.agent lab.ip=10.9.1.2/24"}
    nics: {lan: {pf: lan, vf: 0, mac-address: "02:00:00:00:20:01", $2}}
END
}
# untouched WHEN: VF and driver are as they were before, and nothing is left to put back.
untouched() {
    is "$1, the VF is as it was" "$(vf_line 0)" "$before"
    is "$1, its driver is as it was" "$(driver_of "$vf0")" igbvf
    like "$1, nothing is left to put back" "$(throughway recover 2>&1)" "Nothing to put back"
}

pf=$(bdf_of igb 0)
check "the PF comes up" pf_up "$pf" 10.9.0.1/24
check "two VFs are made, by hand" vfs "$pf" 2
link=$(netdev_of "$pf")
vf0=$(vf_of "$pf" 0)
# Making VFs takes the link away for a moment, and igb sets rates only with one.
check "the PF's link is back" retry 10 ip link set "$link" vf 0 max_tx_rate 50
ip link set "$link" vf 0 mac 02:00:00:00:aa:00 vlan 7 qos 2
ip link set "$link" vf 0 spoofchk off
ip link set "$link" vf 0 trust on
check "VF 0 has a host driver" bind "$vf0" igbvf
echo >"/sys/bus/pci/devices/$vf0/driver_override"
before=$(vf_line 0)
other=$(vf_line 1)
like "it was made ready with attributes of its own" "$before" "02:00:00:00:aa:00.*vlan 7, qos 2.*max_tx_rate 50Mbps.*spoof checking off.*trust on"

# ---- all that igb has ------------------------------------------------------
file all "vlan-id: 100, qos: 5, vlan-proto: 802.1q, spoof-check: true, trust: false, link-state: auto, min-tx-rate: 0, max-tx-rate: 200"
guest_spawn all throughway -v run "$LAB_OUT/all.yaml" --vm all
check "a guest starts with all attributes that igb has" guest_up all || bail "without it nothing follows" "$(tail -n 3 "$LAB_OUT/all.err")"
now=$(vf_line 0)
echo "$now"
like "ip sees its MAC" "$now" "link/ether 02:00:00:00:20:01"
like "ip sees its VLAN and priority" "$now" "vlan 100, qos 5"
like "ip sees spoof checking on" "$now" "spoof checking on"
like "ip sees no trust" "$now" "trust off"
like "ip sees its link state" "$now" "link-state auto"
like "ip sees its rate" "$now" "max_tx_rate 200Mbps"
like "each is said to read back" "$(cat "$LAB_OUT/all.err")" "VF 0 reads back with trust false, mac-address 02:00:00:00:20:01, vlan-id 100, qos 5, vlan-proto 802.1q, spoof-check true, link-state auto, min-tx-rate 0, max-tx-rate 200"
if grep -q WARN "$LAB_OUT/all.err"; then not_ok "without a warning" "$(grep WARN "$LAB_OUT/all.err")"; else ok "without a warning"; fi
tree=$(throughway devices --tree)
echo "$tree"
like "devices --tree has the PF below its root port, with its VFs" "$tree" "└─ $pf .* igb .*\($link\); 2 of 7 VFs"
like "and the guest's VF below the PF" "$tree" "─ VF 0  $vf0 .* vfio-pci "
is "the other VF is left alone" "$(vf_line 1)" "$other"
is "the guest's driver has the MAC" "$(guest_run all 'cat /sys/class/net/eth0/address')" 02:00:00:00:20:01
# On the wire its packets carry the tag: only the VLAN's interface of the PF hears it.
ip link add link "$link" name lan100 type vlan id 100
ip addr add 10.9.1.1/24 dev lan100
ip link set lan100 up
check "the guest is in VLAN 100" retry 20 guest_run all 'ping -c 1 -W 1 10.9.1.1' 5
guest_run all 'ip link set eth0 down; ip link set eth0 address 02:00:00:00:66:66; ip link set eth0 up' >/dev/null
is "without trust, a MAC of the guest's own is not taken" "$(vf_line 0)" "$now"
guest_run all 'poweroff -f' 1 >/dev/null
is "it powers off" "$(guest_wait all 60)" 0
ip link del lan100
untouched "after it"

# ---- what must hold, and what is refused -----------------------------------
# refused NAME KEYS PATTERN
refused() {
    file "$1" "$2"
    throughway run "$LAB_OUT/$1.yaml" --vm "$1" </dev/null >"$LAB_OUT/$1.out" 2>&1
    is "$1 ends the start" "$?" 3
    cat "$LAB_OUT/$1.out"
    like "$1 is said with its attribute, value and cause" "$(cat "$LAB_OUT/$1.out")" "$3"
    is "$1 is said in one line" "$(wc -l <"$LAB_OUT/$1.out")" 1
    untouched "after $1"
}
refused service-tag "vlan-id: 100, vlan-proto: 802.1ad" "vlan-id 100 was refused, it stays 7: Protocol not supported.*; vlan-proto 802.1ad is not supported by this driver"
refused least-rate "min-tx-rate: 10, max-tx-rate: 100" "VF 0: .*rate -> [0-9]+.: min-tx-rate 10 was refused, it stays 0: Invalid argument.*change it in the file"
refused too-fast "max-tx-rate: 25000" "VF 0: .*rate -> [0-9]+.: max-tx-rate 25000 was refused, it stays 50: Invalid argument"

# ---- VFs that throughway makes itself, and what igb does not have and a guest can do without ----
# Making VFs takes the link away for a moment, and the rate waits for it.
echo 0 >"/sys/bus/pci/devices/$pf/sriov_numvfs"
file fresh "max-tx-rate: 100, vlan-id: 12, link-state: disable"
guest_start fresh "$LAB_OUT/fresh.yaml"
check "a guest starts whose VF and rate are made at once" guest_up fresh || bail "without it nothing follows" "$(cat "$LAB_OUT/fresh.err")"
like "ip sees rate and VLAN" "$(vf_line 0)" "vlan 12.*max_tx_rate 100Mbps"
is "the log has one line, on what it does without" "$(sed 's/^[^ ]* *//' "$LAB_OUT/fresh.err")" "WARN $pf: VF 0: link-state disable is not supported by this driver; it stays auto"
kill "$(guest_pid fresh)"
is "stopped from outside, it says so" "$(guest_wait fresh 60)" 7
like "after it, the VF has neither" "$(vf_line 0)" "^link/ether [0-9a-f:]* brd ff:ff:ff:ff:ff:ff, spoof checking on, link-state auto, trust off"
