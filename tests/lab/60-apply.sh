# proves: A whole file is applied to real igb and put back: seven VFs with their attributes, a bridge, a lent VF; drift is told as it comes, a resize waits for a guest.
# timeout: 540
. /share/box/lib.sh

pf=$(bdf_of igb 0)
link=$(netdev_of "$pf")
other=$(netdev_of "$(bdf_of igb 1)")
before="$(ip -o link | sed 's/^[0-9]*: //; s/mtu .*//' | sort) $(cat /sys/bus/pci/devices/"$pf"/sriov_numvfs)"

# file NUM-VFS LINES
file() {
    cat <<END
version: 1
devices:
  lan: {match: {address: "$pf"}}
sriov:
  lan:
    num-vfs: $1
    drivers-autoprobe: false
    vf-defaults: {spoof-check: true, trust: false}
    vfs:
      - {id: 0, mac-address: "02:00:00:00:06:00", vlan-id: 100, qos: 3}
      - {id: 1, mac-address: "02:00:00:00:06:01", trust: true}
      - {id: 2, mac-address: "02:00:00:00:06:02", spoof-check: false}
networks:
  br6: {type: bridge, mtu: 1400, addresses: [10.6.0.1/24], ports: {$other: {}}}
  v6: {type: vlan, base-iface: br6, id: 60, addresses: [10.60.0.1/24]}
vms:
  six:
    memory: 192MiB
    boot: {kernel: $GUEST_KERNEL, initrd: $GUEST_INITRD, cmdline: "console=ttyS0 quiet lab.agent"}
    nics: {lan: {pf: lan, vf: 6}}
END
}
file 7 >"$LAB_OUT/seven.yaml"
file 5 | sed '/^vms/,$d' >"$LAB_OUT/five.yaml"

throughway plan "$LAB_OUT/seven.yaml" >"$LAB_OUT/plan"
is "there is something to do" "$?" 2
like "the plan says the VFs" "$(cat "$LAB_OUT/plan")" "num-vfs 0 -> 7"
is "planning did nothing" "$(cat /sys/bus/pci/devices/"$pf"/sriov_numvfs)" 0
throughway apply "$LAB_OUT/seven.yaml" >"$LAB_OUT/applied" 2>&1
is "it is applied" "$?" 0 || bail "without it nothing follows" "$(tail -n 3 "$LAB_OUT/applied")"
is "seven VFs are there" "$(cat /sys/bus/pci/devices/"$pf"/sriov_numvfs)" 7
vf() { ip link show "$link" | sed -n "s/^ *vf $1 *//p"; }
like "VF 0 has its MAC, VLAN and priority" "$(vf 0)" "02:00:00:00:06:00.*vlan 100, qos 3.*spoof checking on.*trust off"
like "VF 1 is trusted" "$(vf 1)" "02:00:00:00:06:01.*spoof checking on.*trust on"
like "VF 2 is not checked" "$(vf 2)" "02:00:00:00:06:02.*spoof checking off"
is "VF 6 is lent" "$(driver_of "$(vf_of "$pf" 6)")" vfio-pci
is "VF 3 has no driver" "$(driver_of "$(vf_of "$pf" 3)")" ""
like "the bridge is there" "$(ip -br addr show br6)" "10.6.0.1/24"
like "with its port" "$(ip link show "$other")" "master br6"
like "and the VLAN on it" "$(ip -d link show v6)" "vlan protocol 802.1Q id 60"
throughway status >"$LAB_OUT/status"
is "the host is in sync" "$?" 0
throughway plan "$LAB_OUT/seven.yaml" >/dev/null
is "planning again finds nothing" "$?" 0

# While it is watched: what the kernel tells is told, field by field; --every is long, so that nothing is found by chance.
throughway status --watch --json --every 3600 >"$LAB_OUT/watch" 2>"$LAB_OUT/watch.err" &
watch=$!
# told EVENT OBJECT FIELD EXPECTED ACTUAL
told() { retry 30 grep -q "\"event\":\"$1\",\"object\":\"$2\",\"field\":\"$3\",\"expected\":\"$4\",\"actual\":\"$5\"" "$LAB_OUT/watch"; }
in_sync() { retry 30 sh -c "tail -n 1 '$LAB_OUT/watch' | grep -q in-sync"; }
check "watching begins with a look: in sync" in_sync
ip link set "$link" vf 1 trust off
check "a VF's trust, changed by ip, is told" told drift "VF 1 of $pf" trust on off
ip link set "$link" vf 1 trust on
check "and that it is back" told gone "VF 1 of $pf" trust on off
check "in sync again" in_sync
ip link set "$link" vf 0 vlan 200 qos 3
check "a VF's VLAN, changed by ip, is told" told drift "VF 0 of $pf" vlan-id 100 200
ip link set "$link" vf 0 vlan 100 qos 3
check "and that it is back" told gone "VF 0 of $pf" vlan-id 100 200
lent=$(vf_of "$pf" 6)
echo "$lent" >/sys/bus/pci/drivers/vfio-pci/unbind
check "a lent VF that lost its driver is told" told drift "VF 6 of $pf" driver vfio-pci none
echo "$lent" >/sys/bus/pci/drivers_probe
check "and that it is back" told gone "VF 6 of $pf" driver vfio-pci none
ip link set br6 mtu 1500
check "a bridge's MTU is told" told drift br6 mtu 1400 1500
ip link set br6 mtu 1400
check "in sync again" in_sync
echo 0 >"/sys/bus/pci/devices/$pf/sriov_numvfs"
check "VFs that are gone are told" told drift "$pf" num-vfs 7 0
throughway apply "$LAB_OUT/seven.yaml" >"$LAB_OUT/again" 2>&1
is "it is made good" "$?" 0
check "in sync again, with another change" retry 30 sh -c "tail -n 1 '$LAB_OUT/watch' | grep -q '\"in-sync\",\"change\":2'"
kill "$watch"
wait "$watch"
is "watching ends as status does" "$?" 0
throughway status --watch --json --every 2 >"$LAB_OUT/watch2" 2>&1 &
watch=$!
check "another one begins in sync" retry 30 grep -q in-sync "$LAB_OUT/watch2"
echo 1 >"/sys/bus/pci/devices/$pf/sriov_drivers_autoprobe"
check "what no event tells of is found by looking" retry 30 grep -q '"field":"drivers-autoprobe","expected":"false","actual":"true"' "$LAB_OUT/watch2"
kill "$watch"
wait "$watch"
is "it ends with 2 while the host differs" "$?" 2
echo 0 >"/sys/bus/pci/devices/$pf/sriov_drivers_autoprobe"

ip link set "$link" vf 1 trust off
ip link del v6
throughway status >"$LAB_OUT/status"
is "a change by others is seen" "$?" 2
like "field by field" "$(cat "$LAB_OUT/status")" "VF 1"
like "the VLAN that is gone too" "$(cat "$LAB_OUT/status")" "v6: make vlan 60"
throughway apply "$LAB_OUT/seven.yaml" >"$LAB_OUT/again" 2>&1
is "it is made good" "$?" 0
like "VF 1 is trusted again" "$(vf 1)" "trust on"

guest_start six "$LAB_OUT/seven.yaml"
check "a guest with VF 6 comes up" guest_up six || bail "without it nothing follows" "$(tail -n 3 "$LAB_OUT/six.err")"
throughway apply "$LAB_OUT/five.yaml" >"$LAB_OUT/refused" 2>&1
is "another number of VFs is refused under it" "$?" 1
like "and told why" "$(cat "$LAB_OUT/refused")" "num-vfs 7 -> 5 would take .* from guest .six."
is "nothing was touched" "$(cat /sys/bus/pci/devices/"$pf"/sriov_numvfs)" 7
guest_run six 'poweroff -f' 1 >/dev/null
is "the guest powers off" "$(guest_wait six 30)" 0
throughway apply "$LAB_OUT/five.yaml" >"$LAB_OUT/five" 2>&1
is "without it the number changes" "$?" 0
is "five VFs are there" "$(cat /sys/bus/pci/devices/"$pf"/sriov_numvfs)" 5
like "VF 0 has its MAC still" "$(vf 0)" "02:00:00:00:06:00.*vlan 100"

# Killed while virtual functions are made and set, which takes the longest: then the host is as before. (62-crash kills the same
# steps at each boundary.)
host() {
    vf_state "$pf"
    bridge link show | sed 's/^[0-9]*: //'
    ip -br addr show type bridge
    ip -br addr show type vlan
}
# child_of PID: a process that it started; one of these kernels has no /proc/PID/task/PID/children.
child_of() {
    for stat in /proc/[0-9]*/stat; do
        { read -r child _ _ parent _ <"$stat"; } 2>/dev/null || continue
        [ "$parent" != "$1" ] || echo "$child"
    done
}
# Waits for so many lines, and starts no process to count them: after the first step the others take no time.
lines() {
    for _ in $(seq 600); do
        count=0
        while read -r _; do count=$((count + 1)); done </tmp/killed
        [ "$count" -lt "$1" ] || return 0
        sleep 0.05
    done
    return 1
}
host >"$LAB_OUT/host-before"
held=0
steps=3
for step in $(seq "$steps"); do
    : >/tmp/killed
    throughway apply "$LAB_OUT/seven.yaml" >/tmp/killed 2>&1 &
    # The process that was started, and the one of its own session that does the work.
    worker=
    for _ in $(seq 100); do
        worker=$(child_of $!)
        [ -z "$worker" ] || break
        sleep 0.05
    done
    lines "$step"
    kill -9 $! $worker 2>/dev/null
    wait
    throughway recover >>"$LAB_OUT/recovered" 2>&1
    host >"$LAB_OUT/host-$step"
    if cmp -s "$LAB_OUT/host-before" "$LAB_OUT/host-$step"; then
        held=$((held + 1))
    else
        not_ok "killed in step $step, the host is as before" "$(diff "$LAB_OUT/host-before" "$LAB_OUT/host-$step" | head -n 4 | tr '\n' ' ')"
    fi
done
is "killed in the first steps, the host is as before" "$held of $steps" "$steps of $steps"
is "every one of them was put back by recover" "$(grep -c 'unfinished change was put back' "$LAB_OUT/recovered")" "$steps"

printf 'version: 1\n' >"$LAB_OUT/none.yaml"
throughway apply "$LAB_OUT/none.yaml" >"$LAB_OUT/none" 2>&1
is "a file that asks for nothing is applied" "$?" 0
after="$(ip -o link | sed 's/^[0-9]*: //; s/mtu .*//' | sort) $(cat /sys/bus/pci/devices/"$pf"/sriov_numvfs)"
is "and all is as it was before the first" "$after" "$before"
throughway history >"$LAB_OUT/history"
is "the history has every change" "$(grep -c . "$LAB_OUT/history")" "$((steps + 5))"
is "and those that were put back" "$(grep -c 'its process ended' "$LAB_OUT/history")" "$steps"
