# proves: A file that makes a card with VFs a port of a bridge tells the card of the guests on it, so that its VF reaches them; what the file forgets is told no more, and a VF's own MAC address does not stick.
# kernels: debian iommufd
# needs: nothing
# timeout: 240
. /share/box/lib.sh

GUEST=02:00:00:00:05:02

pf=$(bdf_of igb 0)
link=$(netdev_of "$pf")

# file GUEST-MACS VF-LINE
file() {
    cat <<END
version: 1
devices:
  lan: {match: {address: "$pf"}}
sriov:
  lan: {num-vfs: 2, drivers-autoprobe: true, vfs: [$2]}
networks:
  br5: {type: bridge, addresses: [10.5.0.1/24], ports: {$link: {}}, guest-macs: [$1]}
END
}
file "" "" >"$LAB_OUT/none.yaml"
file "\"$GUEST\"" '{id: 1, mac-address: "02:00:00:00:05:99", vlan-id: 7}' >"$LAB_OUT/told.yaml"
vf_line() { ip link show "$link" | sed -n "s/^ *vf $1 *//p"; }

throughway apply "$LAB_OUT/none.yaml" >"$LAB_OUT/none.out" 2>&1
is "the card is a port with VFs" "$?" 0 || bail "without it nothing follows" "$(tail -n 3 "$LAB_OUT/none.out")"
vf=$(vf_of "$pf" 0)
retry 20 netdev_of_exists "$vf"
vf_link=$(netdev_of "$vf")
ip netns add vf
ip netns add guest
ip link set "$vf_link" netns vf name eth0
in_ns vf ip link set eth0 up
in_ns vf ip addr add 10.5.0.3/24 dev eth0
ip link add g5 type veth peer name eth0 netns guest address $GUEST
ip link set g5 master br5 up
in_ns guest ip link set eth0 up
in_ns guest ip addr add 10.5.0.2/24 dev eth0
retry 20 carrier "$link"
check "the VF reaches the box" retry 20 in_ns vf ping -c 1 -W 1 10.5.0.1

vf1_before=$(vf_line 1)
throughway plan "$LAB_OUT/told.yaml" >"$LAB_OUT/plan" 2>&1
is "there is something to do" "$?" 2
like "the plan says what the card is told" "$(cat "$LAB_OUT/plan")" "$link: fdb [+]$GUEST [(]on br5, for VFs of $link[)]"
throughway apply "$LAB_OUT/told.yaml" >"$LAB_OUT/told.out" 2>&1
is "it is applied" "$?" 0 || bail "without it nothing follows" "$(tail -n 3 "$LAB_OUT/told.out")"
like "bridge sees it" "$(bridge fdb show dev "$link" self)" "$GUEST (dev $link )?self permanent"
throughway status >"$LAB_OUT/status" 2>&1
is "the host is in sync" "$?" 0
check "the VF reaches the guest on the bridge" retry 20 in_ns vf ping -c 1 -W 1 10.5.0.2
check "and the guest the VF" retry 5 in_ns guest ping -c 1 -W 1 10.5.0.3
like "VF 1 has its MAC and VLAN" "$(vf_line 1)" "02:00:00:00:05:99.*vlan 7"

bridge fdb del $GUEST dev "$link" self
throughway status >"$LAB_OUT/status" 2>&1
is "somebody else's removal is seen" "$?" 2
like "with what is to be done" "$(cat "$LAB_OUT/status")" "fdb [+]$GUEST"
throughway apply "$LAB_OUT/told.yaml" >"$LAB_OUT/again" 2>&1
is "and made good" "$?" 0

throughway apply "$LAB_OUT/none.yaml" >"$LAB_OUT/forgot" 2>&1
is "a file that forgets them is applied" "$?" 0
is "the card is told no more" "$(bridge fdb show dev "$link" self | grep -c $GUEST)" 0
is "VF 1 has no VLAN any more" "$(vf_line 1 | grep -c "vlan 7")" 0
throughway status >"$LAB_OUT/status" 2>&1
is "in sync again" "$?" 0
like "nor the MAC address" "$(vf_line 1)" "link/ether 00:00:00:00:00:00"
vf1=$(vf_of "$pf" 1)
echo "$vf1" >/sys/bus/pci/drivers/igbvf/unbind
echo "$vf1" >/sys/bus/pci/drivers/igbvf/bind
retry 20 netdev_of_exists "$vf1"
ip link set "$(netdev_of "$vf1")" up
is "its driver draws an address of its own" "$(cat "/sys/bus/pci/devices/$vf1/net/$(netdev_of "$vf1")/addr_assign_type")" 1
throughway status >"$LAB_OUT/status" 2>&1
is "which is no difference" "$?" 0
ip netns del vf
ip netns del guest
