# proves: After a reboot of the box `throughway restore` alone brings it back: seven VFs with the same MAC addresses and attributes, a bridge; nothing that nobody has applied.
# timeout: 300
# boot: reboots
. /share/box/lib.sh

pf=$(bdf_of igb 0)
link=$(netdev_of "$pf")
file=$LAB_OUT/file.yaml
other=$(netdev_of "$(bdf_of igb 1)")
# All that `ip` says of VFs: addresses, VLANs, priorities, rates, trust.
vfs_are() { ip link show "$(netdev_of "$pf")" | sed -n 's/^ *\(vf [0-9]*\) /\1 /p'; }
vfs_now() { cat "/sys/bus/pci/devices/$pf/sriov_numvfs"; }

if [ "$LAB_BOOT" = 1 ]; then
    cat >"$file" <<END
version: 1
management: {interface: $other}
devices:
  lan: {match: {permanent-mac: "$(cat "/sys/class/net/$link/address")"}}
sriov:
  lan:
    num-vfs: 7
    vf-defaults: {spoof-check: true, trust: false}
    vfs:
      - {id: 0, mac-address: "02:00:00:00:61:00", vlan-id: 100, qos: 3}
      - {id: 3, mac-address: "02:00:00:00:61:03", trust: true}
      - {id: 4, mac-address: "02:00:00:00:61:04", spoof-check: false}
networks:
  br61: {type: bridge, mac-address: "02:00:00:00:61:61", addresses: [10.61.0.1/24], ports: {$other: {}}}
vms:
  named:
    memory: 192MiB
    boot: {kernel: $GUEST_KERNEL, initrd: $GUEST_INITRD}
    nics: {one: {pf: lan, vf: 1}, two: {pf: lan, vf: 2, vlan-id: 61}}
END
    # The bridge takes the link that is the way in: somebody has to say that he still comes in.
    throughway apply "$file" >"$LAB_OUT/first" 2>&1 &
    check "the file is applied, and waits for somebody" retry 60 grep -q "throughway confirm 1" "$LAB_OUT/first"
    throughway confirm 1
    wait $!
    is "who says that he comes in" "$?" 0 || bail "without it nothing follows" "$(tail -n 3 "$LAB_OUT/first")"
    vfs_are >"$LAB_OUT/before"
    is "seven VFs are there" "$(grep -c . "$LAB_OUT/before")" 7
    like "a VF has the MAC of the file" "$(cat "$LAB_OUT/before")" "vf 0 .*02:00:00:00:61:00.*vlan 100, qos 3"
    more "those of nics have some of their own" "$(grep 'vf [12] ' "$LAB_OUT/before" | grep -vc 00:00:00:00:00:00)" 1
    # Another change is in the middle of it, or waits, as the power goes.
    sed 's/10.61.0.1/10.61.0.2/; s/num-vfs: 7/num-vfs: 5/' "$file" >"$LAB_OUT/unconfirmed.yaml"
    throughway apply "$LAB_OUT/unconfirmed.yaml" >"$LAB_OUT/second" 2>&1 &
    check "another change waits for somebody" retry 60 grep -q "throughway confirm 2" "$LAB_OUT/second"
    is "with five VFs" "$(vfs_now)" 5
    # And the file is edited, which nobody applies.
    sed -i 's/10.61.0.1/10.61.0.3/' "$file"
    box_reboot
fi

more "the box was rebooted" "$LAB_BOOT" 1
is "and has no VFs any more" "$(vfs_now)" 0
box_disk
throughway status >"$LAB_OUT/status" 2>&1
is "the host is not as it was applied" "$?" 2

# The card's driver is late.
echo "$pf" >/sys/bus/pci/drivers/igb/unbind
throughway restore --wait 2 >"$LAB_OUT/without" 2>&1
is "without the card it does not end well" "$?" 3
like "it says what it waits for" "$(cat "$LAB_OUT/without")" "^Waiting up to 2 s: devices.lan.match"
like "and what is missing" "$(cat "$LAB_OUT/without")" "^error: devices.lan.match is missing"
like "the bridge is there all the same" "$(ip -br addr show br61)" "10.61.0.1/24"
throughway restore --wait 60 >"$LAB_OUT/restored" 2>&1 &
check "it waits for the card" retry 30 grep -q "^Waiting up to 60 s" "$LAB_OUT/restored"
echo "$pf" >/sys/bus/pci/drivers/igb/bind
wait $!
is "then it brings all of it back" "$?" 0 || not_ok "what it says" "$(tail -n 3 "$LAB_OUT/restored")"
like "and says what it is" "$(cat "$LAB_OUT/restored")" "what change 1 .apply .*file.yaml. made is back"
like "not the file that somebody has edited" "$(cat "$LAB_OUT/restored")" "file.yaml is not as change .* has it"
is "VFs have the same MAC addresses and attributes" "$(vfs_are)" "$(cat "$LAB_OUT/before")"
is "VF 1 is lent" "$(driver_of "$(vf_of "$pf" 1)")" vfio-pci
is "the bridge has its address" "$(cat /sys/class/net/br61/address)" 02:00:00:00:61:61
like "and its port" "$(ip link show "$other")" "master br61"
throughway status >"$LAB_OUT/status" 2>&1
is "the host is in sync" "$?" 0
throughway history >"$LAB_OUT/history"
like "what nobody has confirmed was not done" "$(cat "$LAB_OUT/history")" "unconfirmed.yaml .* put back: .*the box was started anew"
throughway restore >"$LAB_OUT/again" 2>&1
is "once more does nothing" "$? $(grep -c '^Nothing is to be done' "$LAB_OUT/again")" "0 1"
# The file that it goes back from names the way in: somebody must say that he comes in without it, too.
throughway rollback >"$LAB_OUT/rollback" 2>&1 &
check "going back waits for somebody" retry 60 grep -q "throughway confirm" "$LAB_OUT/rollback"
throughway confirm
wait $!
is "it goes back from what was restored" "$? $(vfs_now)" "0 0"
like "and the bridge is gone" "$(ip link show br61 2>&1)" "does not exist"
