# proves: A guest's virtio-net on a bridge's VLAN and on a macvtap is served by vhost-net, or by Throughway where there is none; its links come and go with it, and one that is removed is said.
# kernels: debian
# timeout: 420
. /share/box/lib.sh

# A wire from the bridge to one namespace, and from the macvtap's base to another.
wire lan 10.35.0.1/24
wire dmz 10.36.0.1/24

cat >"$LAB_OUT/net.yaml" <<END
version: 1
networks:
  br35:
    type: bridge
    vlan-filtering: true
    ports:
      lan-port: {vlan: {mode: access, tag: 100}}
  up35: {type: macvtap, base-iface: dmz-port, mode: bridge}
vms:
  net:
    cpus: 2
    memory: 256MiB
    rng: true
    boot: {kernel: $GUEST_KERNEL, initrd: $GUEST_INITRD, cmdline: "console=ttyS0 quiet lab.agent"}
    nics:
      lan: {network: br35, vlan: {mode: access, tag: 100}, queues: 2}
      dmz: {network: up35, mac-address: "02:00:00:00:36:02"}
END
throughway apply "$LAB_OUT/net.yaml" >"$LAB_OUT/apply" 2>&1
is "the networks are made" "$?" 0 || bail "without them nothing follows" "$(tail -n 5 "$LAB_OUT/apply")"

# The guest's interfaces come in the order of its root ports: dmz, lan.
addresses() {
    guest_run net 'ip link set eth0 up; ip addr add 10.36.0.2/24 dev eth0; ip link set eth1 up; ip addr add 10.35.0.2/24 dev eth1' 20
}
mac() { guest_run net "cat /sys/class/net/$1/address"; }
pings() { retry 20 guest_run net "ping -c 1 -W 1 $1" 5; }
start() { guest_spawn net throughway -v run "$LAB_OUT/net.yaml" --vm net; }
ups() { [ "$(grep -c '@@up' "$LAB_OUT/net.console")" -ge "$1" ]; }
gone() { ! ip link show "$1" >/dev/null 2>&1; }

start
check "the guest comes up" guest_up net 150 || bail "without a guest" "$(tail -n 5 "$LAB_OUT/net.err")"
addresses
log=$LAB_OUT/net.err
check "vhost-net serves the card on the bridge, and that is said" grep -q 'nic lan: vhost-net in use' "$log"
check "and the one on the macvtap" grep -q 'nic dmz: vhost-net in use' "$log"
more "its threads are there" "$(cat /proc/$(guest_machine net)/task/*/comm | grep -c '^vhost-')" 2
like "the tap is in the bridge's VLAN" "$(bridge vlan show dev net-lan)" '100 PVID Egress Untagged'
is "the macvtap has the guest's address" "$(cat /sys/class/net/net-dmz/address)" 02:00:00:00:36:02
is "and the guest has it" "$(mac eth0)" 02:00:00:00:36:02
lan_mac=$(mac eth1)
like "the other one's is derived" "$lan_mac" '^02:'
is "the driver uses both pairs of queues" "$(guest_run net 'ls -d /sys/class/net/eth1/queues/rx-* | wc -l')" 2
like "interrupts come by MSI-X" "$(guest_run net 'cat /proc/interrupts')" 'MSIX?.*virtio1-input.0'
check "the guest pings over the bridge" pings 10.35.0.1
check "and over the macvtap" pings 10.36.0.1
check "it is pinged over the bridge" retry 20 in_ns lan ping -c 1 -W 1 10.35.0.2
check "and over the macvtap" retry 20 in_ns dmz ping -c 1 -W 1 10.36.0.2
for far in lan dmz; do
    [ $far = lan ] && server=10.35.0.1 || server=10.36.0.1
    in_ns $far iperf3 -s -D 3>&-
    for way in "" -R; do
        guest_run net "sleep 1; iperf3 -c $server -t 3 $way" 40 >"$LAB_OUT/iperf-$far$way"
        mbits=$(iperf_mbits <"$LAB_OUT/iperf-$far$way")
        more "iperf3 passes on $far ${way:-to the box}, in Mbit/s: ${mbits:-none}" "$mbits" 0
    done
done
kill -USR1 "$(guest_pid net)"
check "statistics say what is in use" retry 10 grep -q 'nic lan: vhost-net in use, 2 of 2 queue pairs' "$log"
throughway vm stats net >"$LAB_OUT/stats" 2>&1
counted() { sed -n "s/^nic $1 .*packets received \([0-9]*\), sent \([0-9]*\).*/\1 \2/p" "$LAB_OUT/stats"; }
for nic in lan dmz; do
    read -r received sent <<END
$(counted $nic)
END
    more "packets of $nic that the kernel brought are counted: ${received:-none}" "${received:-0}" 20
    more "and those that it took: ${sent:-none}" "${sent:-0}" 20
done
is "the source of entropy is virtio's" "$(guest_run net 'cat /sys/class/misc/hw_random/rng_current')" virtio_rng.0
is "and it gives" "$(guest_run net 'head -c 16 /dev/hwrng | wc -c')" 16

guest_run net 'reboot -f' 1 >/dev/null
check "it comes up again after a reset" retry 150 ups 2
addresses
check "and pings over the bridge" pings 10.35.0.1
check "and over the macvtap" pings 10.36.0.1

ip link delete net-lan
check "a tap that is removed is said" retry 10 grep -q 'nic lan: its link on the host was removed' "$log"
check "and the guest's cable is out" retry 10 guest_run net '[ "$(cat /sys/class/net/eth1/carrier)" = 0 ]' 5
check "the other card goes on" pings 10.36.0.1
guest_run net 'poweroff -f' 1 >/dev/null
is "the guest powers off" "$(guest_wait net 30)" 0
check "its macvtap is gone" gone net-dmz
check "the network's own is not" ip link show up35

# Without vhost-net, and killed.
mv /dev/vhost-net /dev/vhost-net.away
start
check "the guest comes up without vhost-net" guest_up net 150 || bail "without a guest" "$(tail -n 5 "$log")"
addresses
mv /dev/vhost-net.away /dev/vhost-net
like "that is said" "$(cat "$log")" 'vhost-net not in use'
is "its MAC address is what it was" "$(mac eth1)" "$lan_mac"
check "the guest pings over the bridge" pings 10.35.0.1
check "and over the macvtap" pings 10.36.0.1
guest_run net "iperf3 -c 10.35.0.1 -t 3" 40 >"$LAB_OUT/iperf-user"
mbits=$(iperf_mbits <"$LAB_OUT/iperf-user")
more "iperf3 passes, in Mbit/s: ${mbits:-none}" "$mbits" 0
guest_kill net
throughway recover >"$LAB_OUT/recover" 2>&1
is "what a killed guest leaves is recovered" "$?" 0
check "its tap is gone" gone net-lan
check "its macvtap too" gone net-dmz
throughway status >"$LAB_OUT/status" 2>&1
is "and the host is as its file says" "$?" 0
