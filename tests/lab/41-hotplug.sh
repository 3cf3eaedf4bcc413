# proves: A VF leaves a guest and comes back ten times under traffic, by the slot's own hotplug and once by force; the virtio-net beside it loses no packet, the VF's interrupts go on, and the host has the VF in between.
# suite: guest
# timeout: 900
. /share/box/lib.sh

pf=$(bdf_of igb 0)
check "the PF comes up" pf_up "$pf" 10.9.0.1/24
check "two VFs are made" vfs "$pf" 2
vf=$(vf_of "$pf" 0)
link=$(netdev_of "$pf")
ip link set "$link" vf 0 mac 02:00:00:00:aa:00
check "VF 0 has a host driver" bind "$vf" igbvf
echo >"/sys/bus/pci/devices/$vf/driver_override"
vf_line() { ip link show "$link" | sed -n 's/^ *vf 0 *//p'; }
before="$(vf_functions "$pf") $(vf_line)"

wire far 10.41.0.1/24

# Applied is the bridge alone: the VF is the host's until the guest starts.
cat >"$LAB_OUT/box.yaml" <<END
version: 1
networks:
  br41: {type: bridge, ports: {far-port: {}}}
END
cat - "$LAB_OUT/box.yaml" >"$LAB_OUT/hot.yaml" <<END
devices:
  lan-pf: {match: {address: "$pf"}}
sriov:
  lan-pf: {num-vfs: 2}
vms:
  hot:
    memory: 256MiB
    hotplug-ports: 1
    boot: {kernel: $GUEST_KERNEL, initrd: $GUEST_INITRD, cmdline: "console=ttyS0 quiet lab.agent"}
    nics:
      lan: {network: br41}
      wan: {pf: lan-pf, vf: 0, mac-address: "02:00:00:00:41:01"}
END
throughway apply "$LAB_OUT/box.yaml" >"$LAB_OUT/apply" 2>&1
is "the bridge is made" "$?" 0 || bail "without it nothing follows" "$(tail -n 5 "$LAB_OUT/apply")"
check "the guest starts" guest_spawn hot throughway -v run "$LAB_OUT/hot.yaml" --vm hot
check "it comes up" guest_up hot || bail "without it nothing follows" "$(tail -n 5 "$LAB_OUT/hot.err")"

# put FILE: standard input becomes a file of the guest's.
put() { guest_run hot "echo $(base64 -w 0) | base64 -d >$1" >/dev/null; }
# The guest's cards by their drivers: names may change from one plugging to the next.
put /tmp/card <<'END'
for net in /sys/class/net/*; do
    case $(readlink $net/device/driver) in */$1) echo ${net##*/};; esac
done
END
card() { guest_run hot "sh /tmp/card $1"; }
lan=$(card virtio_net)
wan=$(card igbvf)
like "it has a virtio-net" "$lan" eth
like "and a VF" "$wan" eth
like "its slots are hotplug slots" "$(guest_run hot 'ls /sys/bus/pci/slots | tr "\n" " "')" '1 2 3'
up_wan() { guest_run hot "wan=\$(sh /tmp/card igbvf); [ -n \"\$wan\" ] && ip link set \$wan up && ip addr replace 10.9.0.2/24 dev \$wan" 20; }
guest_run hot "ip link set $lan up; ip addr add 10.41.0.2/24 dev $lan" >/dev/null
check "the VF has its address" up_wan
check "the guest pings the namespace by the virtio-net" retry 20 guest_run hot 'ping -c 1 -W 1 10.41.0.1' 5
check "and the PF by the VF" retry 20 guest_run hot 'ping -c 1 -W 1 10.9.0.1' 5

# Interrupts of the two cards so far, of all their receive vectors: the virtio-net's and the VF's.
put /tmp/count <<'END'
awk '/ virtio[0-9]+-input/ { lan += $2 } / eth[0-9]+-rx-/ { wan += $2 } END { print lan + 0, wan + 0 }' /proc/interrupts
END
counts() { guest_run hot 'sh /tmp/count'; }
# As the VF comes: its name, its address, its first answer; then ten answers, and the counts before and after them.
put /tmp/back <<'END'
for try in $(seq 40); do
    wan=$(sh /tmp/card igbvf)
    [ -n "$wan" ] && ip link set $wan up && ip addr replace 10.9.0.2/24 dev $wan && ping -c 1 -W 1 10.9.0.1 && break
    sleep 0.3
done >/dev/null 2>&1
before=$(sh /tmp/count)
answers=$(ping -c 10 -i 0.2 -W 2 10.9.0.1 | sed -n 's/.*, \([0-9]*\) packets received.*/\1/p')
echo "back: $wan $before $(sh /tmp/count) $answers"
END
maps() { grep -c vfio "/proc/$(guest_machine hot)/maps"; }
opened() { ls -l "/proc/$(guest_machine hot)/fd" | grep -Ec '/dev/vfio|vfio-device|/dev/iommu'; }

like "both cards have interrupted" "$(counts)" '^[1-9][0-9]* [1-9][0-9]*$'
iperf_server 10.9.0.1
held=$(opened)
more "the VF is open" "$held" 0
guest_run hot '(ping -i 0.2 10.41.0.1 >/tmp/pings 2>&1 & echo $! >/tmp/pinger)' >/dev/null
for round in 1 2 3 4 5 6 7 8 9 10; do
    guest_run hot '(iperf3 -c 10.9.0.1 -t 60 >/dev/null 2>&1 &); sleep 1' >/dev/null
    throughway vm remove hot wan --timeout 60 >"$LAB_OUT/remove" 2>&1
    is "round $round: the VF is removed under traffic" "$?" 0 || bail "without that nothing follows" "$(cat "$LAB_OUT/remove") $(tail -n 3 "$LAB_OUT/hot.err")"
    is "the guest has it no more" "$(guest_run hot 'sh /tmp/card igbvf; killall iperf3 2>/dev/null')" ""
    is "nor has the process anything of it" "$(maps) $(opened)" "0 0"
    is "the host has it as it was" "$(vf_functions "$pf") $(vf_line)" "$before"
    throughway vm add hot wan --timeout 60 >"$LAB_OUT/add" 2>&1
    is "round $round: it is added" "$?" 0 || bail "without that nothing follows" "$(cat "$LAB_OUT/add") $(tail -n 3 "$LAB_OUT/hot.err")"
    guest_run hot 'sh /tmp/back' 60 | sed -n 's/^back: //p' >"$LAB_OUT/back"
    read -r name lan_before wan_before lan_after wan_after answers <"$LAB_OUT/back"
    like "it has its driver" "$name" eth
    is "it passes ten packets, and loses none" "$answers" 10
    more "its vectors have interrupted, $wan_before before" "$wan_after" "$wan_before"
    more "and the virtio-net's, $lan_before before" "$lan_after" "$lan_before"
done
is "as many descriptors as at first" "$(opened)" "$held"
guest_run hot 'kill -INT $(cat /tmp/pinger); sleep 2; tail -n 3 /tmp/pings' 20 >"$LAB_OUT/ping-lan"
like "the virtio-net has lost no packet in all that time: $(grep transmitted "$LAB_OUT/ping-lan")" "$(cat "$LAB_OUT/ping-lan")" ' 0% packet loss'

throughway vm remove hot wan --force >"$LAB_OUT/force" 2>&1
is "by force it goes at once" "$?" 0
gone() { [ -z "$(card igbvf)" ]; }
check "and the guest's kernel notices" retry 20 gone
is "the host has it" "$(vf_functions "$pf") $(vf_line)" "$before"
throughway vm add hot wan --timeout 90 >"$LAB_OUT/again" 2>&1
is "after which it comes back" "$?" 0
check "with its address" retry 30 up_wan
pings_wan() { retry 30 guest_run hot 'ping -c 1 -W 1 10.9.0.1' 5; }
check "and passes packets" pings_wan

# A virtio-net goes and comes by the same slots.
throughway vm remove hot lan --timeout 90 >"$LAB_OUT/lan" 2>&1
is "the virtio-net is removed" "$?" 0
is "the guest has it no more" "$(card virtio_net)" ""
is "its link is gone" "$(ip -o link show master br41 | grep -vc far-port)" 0
throughway vm add hot lan --timeout 90 >"$LAB_OUT/lan" 2>&1
is "and added" "$?" 0
up_lan() { guest_run hot "lan=\$(sh /tmp/card virtio_net); [ -n \"\$lan\" ] && ip link set \$lan up && ip addr replace 10.41.0.2/24 dev \$lan" 20; }
check "it has its address" retry 30 up_lan
check "and passes packets" retry 20 guest_run hot 'ping -c 1 -W 1 10.41.0.1' 5

like "what the guest does not have is refused" "$(throughway vm remove hot nothing 2>&1)" 'no device `nothing`'
like "and what it has already" "$(throughway vm add hot wan 2>&1)" 'has `wan` already'
guest_run hot 'poweroff -f' 1 >/dev/null
is "the guest powers off" "$(guest_wait hot 30)" 0
is "and the host has its VF" "$(vf_functions "$pf") $(vf_line)" "$before"
