# proves: Every attribute of a VF goes over netlink and reads back as it was asked for, where the driver has them all (netdevsim).
# kernels: iommufd
# needs: nothing
# examples: netconfig/vf
# timeout: 90
. /share/box/lib.sh

vf() { /share/bin/vf "$@"; }
vf_line() { ip -d link show "$link" | sed -n "s/^ *vf $1 *//p"; }

echo "7 1" >/sys/bus/netdevsim/new_device || bail "the kernel has netdevsim"
ok "the kernel has netdevsim"
device=/sys/bus/netdevsim/devices/netdevsim7
check "a simulated card has an interface" retry 5 sh -c "ls $device/net | grep -q ."
link=$(ls $device/net | head -n 1)
echo 3 >$device/sriov_numvfs
before=$(vf_line 1)
other=$(vf_line 2)
state=$(vf show "$link" 1)
echo "$state"

# set TEXT ATTRIBUTES PATTERN: all hold, and ip(8) sees them.
set_vf() {
    check "$1: it holds" vf set "$link" 1 "$2"
    like "$1: ip sees it" "$(vf_line 1)" "$3"
}
set_vf "MAC" '{"mac-address": "02:00:00:00:00:77"}' "link/ether 02:00:00:00:00:77"
set_vf "VLAN with priority" '{"vlan-id": 4094, "qos": 7}' "vlan 4094, qos 7"
set_vf "VLAN alone keeps the priority" '{"vlan-id": 12}' "vlan 12, qos 7"
set_vf "service tag keeps both" '{"vlan-proto": "802.1ad"}' "vlan 12, qos 7, vlan protocol 802.1ad"
set_vf "customer tag again" '{"vlan-proto": "802.1q", "vlan-id": 100, "qos": 0}' "vlan 100, (spoof|tx rate|vlan protocol 802.1Q|max_tx|min_tx|link-state)"
set_vf "spoof check" '{"spoof-check": true}' "spoof checking on"
set_vf "no spoof check" '{"spoof-check": false}' "spoof checking off"
set_vf "trust" '{"trust": true}' "trust on"
set_vf "no trust" '{"trust": false}' "trust off"
for state_of_link in enable disable auto; do
    set_vf "link-state $state_of_link" "{\"link-state\": \"$state_of_link\"}" "link-state $state_of_link"
done
set_vf "greatest rate" '{"max-tx-rate": 900}' "max_tx_rate 900Mbps"
set_vf "least rate keeps the greatest" '{"min-tx-rate": 90}' "max_tx_rate 900Mbps, min_tx_rate 90Mbps"
set_vf "greatest rate keeps the least" '{"max-tx-rate": 800}' "max_tx_rate 800Mbps, min_tx_rate 90Mbps"
set_vf "all at once" '{"mac-address": "02:00:00:00:00:78", "vlan-id": 7, "qos": 3, "vlan-proto": "802.1ad", "spoof-check": true, "trust": true, "link-state": "disable", "min-tx-rate": 10, "max-tx-rate": 20}' \
    "02:00:00:00:00:78.*vlan 7, qos 3, vlan protocol 802.1ad.*max_tx_rate 20Mbps, min_tx_rate 10Mbps, spoof checking on, link-state disable, trust on"
is "the other VF is left alone" "$(vf_line 2)" "$other"

said=$(vf set "$link" 1 '{"mac-address": "01:00:5e:00:00:01", "trust": false}')
is "a group's MAC does not hold" "$?" 1
like "it is said with the kernel's word" "$said" "^not ok mac-address 01:00:5e:00:00:01 was refused, it stays 02:00:00:00:00:78: Invalid argument"
like "and spoils no other attribute" "$said" "^ok trust false"
said=$(vf set "$link" 3 '{"trust": true}' 2>&1)
is "a VF that is not there is an error" "$?" 2
is "which says what there is" "$said" "error: $link: there is no VF 3: it has VFs 0 to 2"

check "all is put back" vf restore "$link" "$state"
is "and ip sees the VF as it was" "$(vf_line 1)" "$before"
is "nothing is left to put back" "$(vf restore "$link" "$state")" ""
echo 0 >$device/sriov_numvfs

# A card with as many VFs as there are functions on a bus: all of them are in one answer of the kernel's.
mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null
for count in 128 256; do
    echo $count >/sys/kernel/debug/netdevsim/netdevsim7/max_vfs
    check "$count VFs are made" sh -c "echo $count >$device/sriov_numvfs"
    last=$((count - 1))
    like "the last of $count is read" "$(vf show "$link" $last 2>&1)" "^.\"id\":$last,"
    check "the last of $count is set" vf set "$link" $last '{"vlan-id": 99, "trust": true}'
    like "ip sees the last of $count" "$(vf_line $last)" "vlan 99.*trust on"
    echo 0 >$device/sriov_numvfs
done
echo 7 >/sys/bus/netdevsim/del_device
