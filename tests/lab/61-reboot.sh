# proves: After a reboot of the box the same file gives the same MAC addresses, those that the file names and those that come of names.
# timeout: 150
# boot: reboots
. /share/box/lib.sh

pf=$(bdf_of igb 0)
link=$(netdev_of "$pf")
file=$LAB_OUT/file.yaml
macs() { ip link show "$link" | sed -n 's/^ *\(vf [0-9]*\) *link\/ether \([0-9a-f:]*\).*/\1 \2/p'; }
vfs_now() { cat "/sys/bus/pci/devices/$pf/sriov_numvfs"; }

if [ "$LAB_BOOT" = 1 ]; then
    cat >"$file" <<END
version: 1
devices:
  lan: {match: {permanent-mac: "$(cat "/sys/class/net/$link/address")"}}
sriov:
  lan: {num-vfs: 3, vfs: [{id: 0, mac-address: "02:00:00:00:61:00"}]}
networks:
  br61: {type: bridge, mac-address: "02:00:00:00:61:61", addresses: [10.61.0.1/24]}
vms:
  named:
    memory: 192MiB
    boot: {kernel: $GUEST_KERNEL, initrd: $GUEST_INITRD}
    nics: {one: {pf: lan, vf: 1}, two: {pf: lan, vf: 2, vlan-id: 61}}
END
    throughway apply "$file" >"$LAB_OUT/first" 2>&1
    is "the file is applied" "$?" 0 || bail "without it nothing follows" "$(tail -n 3 "$LAB_OUT/first")"
    macs >"$LAB_OUT/before"
    like "a VF has the MAC of the file" "$(cat "$LAB_OUT/before")" "vf 0 02:00:00:00:61:00"
    more "the other two have some of their own" "$(cut -d' ' -f3 "$LAB_OUT/before" | grep -v 00:00:00:00:00:00 | sort -u | wc -l)" 2
    uptime >"$LAB_OUT/uptime"
    box_reboot
fi

more "the box was rebooted" "$LAB_BOOT" 1
is "and has no VFs any more" "$(vfs_now)" 0
box_disk
throughway recover >"$LAB_OUT/recovered" 2>&1
is "nothing was left half done" "$?" 0
throughway status >"$LAB_OUT/status" 2>&1
is "the host is not as it was applied" "$?" 2
throughway apply "$file" >"$LAB_OUT/second" 2>&1
is "the same file is applied" "$?" 0
is "the MAC addresses are the same" "$(macs)" "$(cat "$LAB_OUT/before")"
is "and the bridge's" "$(cat /sys/class/net/br61/address)" 02:00:00:00:61:61
throughway status >"$LAB_OUT/status" 2>&1
is "the host is in sync" "$?" 0
