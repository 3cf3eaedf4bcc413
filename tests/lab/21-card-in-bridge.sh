# proves: A card with VFs is made a port of a bridge and given back by values alone; its VF reaches a guest on that bridge once the card is told of it.
# kernels: debian iommufd
# needs: nothing
# examples: netconfig/links
# timeout: 120
. /share/box/lib.sh

links() { /share/bin/links "$@"; }
GUEST=02:00:00:00:05:02

pf=$(bdf_of igb 0)
pf_up "$pf" 10.5.0.5/24 || bail "the card has a link"
link=$(netdev_of "$pf")
vfs "$pf" 1
vf=$(vf_of "$pf" 0)
check "a VF has its driver" bind "$vf" igbvf
retry 10 netdev_of_exists "$vf"
vf_link=$(netdev_of "$vf")
ip netns add vf
ip netns add guest
ip link set "$vf_link" netns vf name eth0
in_ns vf ip link set eth0 up
in_ns vf ip addr add 10.5.0.3/24 dev eth0
# Making VFs takes the port's link away for a while.
retry 20 carrier "$link"

before=$(links show "$link")
like "the card is read" "$before" '"addresses":\["10.5.0.5/24"\]'
# The card's own address, which its VFs reach without the card being told; else the least of all ports' is the bridge's.
bridge='{"kind":{"bridge":{"stp":false,"ageing-time":300,"vlan-filtering":false}},"up":true,"mtu":1500,"mac-address":"'$(cat "/sys/class/net/$link/address")'","controller":null,"addresses":["10.5.0.1/24"],"gateways":[],"vlans":{},"forwarded":[]}'
check "a bridge is made" sh -c "echo '$bridge' | /share/bin/links realize br5"
port=$(echo "$before" | sed 's|"controller":null|"controller":"br5"|; s|"addresses":\[[^]]*\]|"addresses":[]|')
check "the card is its port" sh -c "echo '$port' | /share/bin/links realize $link"
ip link add g5 type veth peer name eth0 netns guest address $GUEST
ip link set g5 master br5 up
in_ns guest ip link set eth0 up
in_ns guest ip addr add 10.5.0.2/24 dev eth0
retry 20 carrier "$link"
check "the VF reaches the wire" retry 20 in_ns vf ping -c 1 -W 1 10.5.0.1 || true

told=$(echo "$port" | sed "s|\"forwarded\":\[\]|\"forwarded\":[\"$GUEST\"]|")
check "the card is told of the guest" sh -c "echo '$told' | /share/bin/links realize $link"
like "bridge sees it" "$(bridge fdb show dev "$link" self)" "$GUEST (dev $link )?self permanent"
like "and so do we" "$(links show "$link")" "\"forwarded\":\\[\"$GUEST\"\\]"
check "the VF reaches the guest on the bridge" retry 20 in_ns vf ping -c 1 -W 1 10.5.0.2
check "and the guest the VF" retry 5 in_ns guest ping -c 1 -W 1 10.5.0.3

check "the card is given back" sh -c "echo '$before' | /share/bin/links realize $link"
is "all of it is as before" "$(links show "$link")" "$before"
check "the bridge goes away" sh -c "echo null | /share/bin/links realize br5"
is "it is gone" "$(links show br5)" null
ip netns del vf
ip netns del guest
