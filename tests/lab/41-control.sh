# proves: A guest with a VF and a virtio-net card is listed, counted, paused and resumed, reset, has its cable pulled and is stopped by throughway vm, and the VF passes packets after each.
# kernels: debian
# timeout: 420
. /share/box/lib.sh

wire lan 10.41.1.1/24
pf=$(bdf_of igb 0)
check "the PF comes up" pf_up "$pf" 10.41.0.1/24
cat >"$LAB_OUT/control.yaml" <<END
version: 1
devices:
  lan-pf: {match: {address: "$pf"}}
sriov:
  lan-pf:
    num-vfs: 1
    drivers-autoprobe: false
    vfs:
      - {id: 0, mac-address: "02:00:00:00:41:00"}
pools:
  lan-vfs: {pf: [lan-pf]}
networks:
  br41: {type: bridge, ports: {lan-port: {}}}
vms:
  control:
    memory: 192MiB
    boot: {kernel: $GUEST_KERNEL, initrd: $GUEST_INITRD, cmdline: "console=ttyS0 quiet lab.agent"}
    nics:
      vf: {pool: lan-vfs}
      lan: {network: br41, mac-address: "02:00:00:00:41:01"}
END
throughway apply "$LAB_OUT/control.yaml" >"$LAB_OUT/apply" 2>&1
is "the host is as the file says" "$?" 0 || bail "without it nothing follows" "$(tail -n 5 "$LAB_OUT/apply")"

vm() {
    lab_verb=$1
    shift
    throughway vm "$lab_verb" control "$@" 2>&1
}
state() { throughway vm list 2>/dev/null | awk '$1 == "control" { print $2 }'; }
# addresses: whatever the cards are called.
addresses() {
    guest_run control 'for n in 0 1; do l=$(ip -o link | sed -n "s/^[0-9]*: \([^:]*\):.*02:00:00:00:41:0$n.*/\1/p"); ip link set $l up; ip addr add 10.41.$n.2/24 dev $l; done' 20
}
pings() { retry 30 guest_run control "ping -c 1 -W 1 $1" 5; }
is_pinged() { ping -c 1 -W 1 10.41.0.2 >/dev/null 2>&1; }
ups() { [ "$(grep -c '@@up' "$LAB_OUT/control.console")" -ge "$1" ]; }
interrupts() { vm stats | awk -v name="$1" '$1 == name { print $2 }'; }
carrier_is() { [ "$(guest_run control 'cat /sys/class/net/$(ip -o link | sed -n "s/^[0-9]*: \([^:]*\):.*02:00:00:00:41:01.*/\1/p")/carrier' 5)" = "$1" ]; }

is "no guest is listed before one runs" "$(throughway vm list)" 'No guest runs.'
guest_spawn control throughway -v run "$LAB_OUT/control.yaml" --vm control
check "the guest comes up" guest_up control 150 || bail "without a guest" "$(tail -n 5 "$LAB_OUT/control.err")"
addresses
check "it pings by the VF" pings 10.41.0.1
check "and by the virtio-net card" pings 10.41.1.1
vf=$(vf_of "$pf" 0)
throughway vm list
like "it is listed, with its function" "$(throughway vm list)" "control *running *$(guest_pid control) .*$vf"

before=$(interrupts "$vf")
more "the VF's interrupts are counted" "$before" 0
guest_run control 'ping -c 20 -i 0.1 10.41.0.1' 30 >/dev/null
more "and rise with traffic" "$(interrupts "$vf")" "$before"
like "memory is pinned for the VF" "$(vm stats)" '^memory .*pinned for devices 192MiB'
like "vhost-net is in use, and that is said" "$(vm stats)" 'vhost-net in use'

vm pause
is "it is paused" "$(state)" paused
sleep 1
check "a paused guest answers no ping" sh -c '! ping -c 3 -W 1 10.41.0.2'
vm resume
is "it goes on" "$(state)" running
check "it is pinged by the VF" retry 20 is_pinged
check "its agent answers" guest_run control true 20
check "and by the virtio-net card it pings" pings 10.41.1.1

vm link lan down
check "the guest sees its cable pulled" retry 10 carrier_is 0
check "the VF goes on" pings 10.41.0.1
vm link lan up
check "the cable is back" retry 10 carrier_is 1
check "and it pings over the bridge" pings 10.41.1.1
like "a VF has no cable to pull" "$(vm link vf down)" 'virtio'

vm reset
check "it comes up again after a reset" retry 150 ups 2
addresses
check "the VF passes packets after the reset" pings 10.41.0.1
check "and the virtio-net card" pings 10.41.1.1

# The guest has nothing that knows of a power button.
throughway vm stop control --timeout 3 >"$LAB_OUT/stop" 2>&1
is "it is stopped" "$?" 0 || cat "$LAB_OUT/stop"
check "the process is gone" retry 5 test -s /run/guest-control/status
is "its VF has no driver, as before" "$(driver_of "$vf")" ""
is "and no guest is listed" "$(throughway vm list)" 'No guest runs.'
