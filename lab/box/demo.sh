# proves: One appliance file gives a virtual function to a guest, and packets pass through it.
# timeout: 300
# boot: own
#
# Run by `cargo demo`. Prints checks like any scenario, and facts for the picture
# at the end: `fact NAME VALUE`.
. /share/box/lib.sh

fact() { echo "fact $*" >&3; }
irqs_of_vf() { guest_run demo "grep -E 'eth[0-9]' /proc/interrupts" | awk '{ for (i = 2; i <= NF && $i ~ /^[0-9]+$/; i++) sum += $i } END { print sum + 0 }'; }

file=/share/configs/demo.yaml
mac=$(sed -n 's/.*mac-address: "\(.*\)".*/\1/p' "$file")
pf=$(bdf_of igb 0) || bail "the box has an SR-IOV card"
ok "the box has an SR-IOV card, $pf"
fact pf "$pf"
check "its port is up, as the box's own address 10.9.0.1" pf_up "$pf" 10.9.0.1/24
fact pf-link "$(netdev_of "$pf")"

check "throughway check finds nothing wrong with configs/demo.yaml" throughway check "$file" || exit 1
throughway devices >"$LAB_OUT/devices" 2>&1

log=$LAB_OUT/daemon
said() { sed -n "s/.*$1//p" "$log" | head -n 1; }
is_ready() { [ -n "$(said 'good for an hour: ')" ] && [ -n "$(said 'SHA-256 ')" ] && grep -q 'Change 1 holds' "$log"; }
# The box's file, with its admin interface on the one wire that leads out of the box, to the machine that runs it.
admin() {
    link=$(ip -o link | sed -n 's/^[0-9]*: \([^:]*\):.*52:54:00:10:00:10.*/\1/p')
    ip link set "$link" up && ip addr add 10.0.2.15/24 dev "$link" || return
    mkdir -p /etc/throughway /var/log/throughway
    { cat "$file" && printf '\nmanagement:\n  listen: ["https://10.0.2.15:8443"]\n'; } >/etc/throughway/appliance.yaml
    file=/etc/throughway/appliance.yaml
    throughway daemon "$file" >"$log" 2>&1 3>&- &
    retry 60 is_ready
}
# Its kernel has inotify, which the daemon wants, or the guest is run without one.
if [ -e /proc/sys/fs/inotify ]; then
    check "throughway daemon applies the file, and serves the admin interface" admin || bail "without it nothing follows" "$(tail -n 3 "$log")"
    cp /var/lib/throughway/web/tls/certificate.der "$LAB_OUT/"
    fact fingerprint "$(said 'SHA-256 ' | cut -c 1-95)"
    fact code "$(said 'good for an hour: ' | cut -c 1-14)"
    start() { guest_spawn demo sh -c "throughway vm start demo && exec throughway vm console demo"; }
else
    start() { guest_start demo "$file"; }
fi
check "the guest starts" start || exit 1
retry 20 test -e "/sys/bus/pci/devices/$pf/virtfn0"
check "the virtual functions are there" test -e "/sys/bus/pci/devices/$pf/virtfn0" || {
    cat "$LAB_OUT/demo.err"
    exit 1
}
vf=$(vf_of "$pf" 0)
fact vf "$vf"
retry 20 test "$(driver_of "$vf")" = vfio-pci
is "VF 0 is bound to vfio-pci" "$(driver_of "$vf")" vfio-pci
like "it has an IOMMU group" "$(group_of "$vf")" '^[0-9]+$'
fact group "$(group_of "$vf")"
fact group-members "$(ls "/sys/bus/pci/devices/$vf/iommu_group/devices" | wc -l)"

check "the guest is up" guest_up demo 100 || {
    tail -n 20 "$LAB_OUT/demo.err" "$LAB_OUT/demo.console"
    exit 1
}
fact guest-kernel "$(guest_run demo 'uname -r')"
is "the guest's own driver took the VF" "$(guest_run demo 'basename $(readlink /sys/class/net/eth0/device/driver)')" igbvf
fact guest-bdf "$(guest_run demo 'basename $(readlink /sys/class/net/eth0/device)')"
is "it has the MAC of the file" "$(guest_run demo 'cat /sys/class/net/eth0/address')" "$mac"
fact mac "$mac"
check "the guest pings the port through the VF" retry 30 guest_run demo 'ping -c 1 -W 1 10.9.0.1' 5
guest_run demo 'ping -c 10 -i 0.2 10.9.0.1' 30 >"$LAB_OUT/ping"
like "no ping is lost" "$(cat "$LAB_OUT/ping")" ' 0% packet loss'
fact ping "$(sed -n 's/^round-trip.*= //p' "$LAB_OUT/ping")"

before=$(irqs_of_vf)
iperf_server
guest_run demo 'iperf3 -c 10.9.0.1 -t 3' 40 >"$LAB_OUT/out-of-guest"
guest_run demo 'iperf3 -c 10.9.0.1 -t 3 -R' 40 >"$LAB_OUT/into-guest"
out=$(iperf_mbits <"$LAB_OUT/out-of-guest")
in=$(iperf_mbits <"$LAB_OUT/into-guest")
more "TCP flows out of the guest, ${out:-0} Mbit/s" "$out" 0
more "TCP flows into the guest, ${in:-0} Mbit/s" "$in" 0
fact out "$out"
fact in "$in"
after=$(irqs_of_vf)
more "the VF's interrupts arrive in the guest, $before before and $after after" "$after" "$before"
fact interrupts "$((after - before))"

if [ -f /share/stay ]; then
    # The person's terminal becomes the guest's console: `cargo demo` relays its own to ours.
    fact stay yes
    stty -F /dev/ttyS0 raw -echo
    printf 'x shell\n' >/run/guest-demo/in
    cat /dev/ttyS0 >/run/guest-demo/in &
    tail -n 0 -f "$LAB_OUT/demo.console" >/dev/ttyS0 &
    while guest_running demo; do sleep 1; done
    kill %1 %2 2>/dev/null
else
    guest_run demo 'poweroff -f' 1 >/dev/null
    status=$(guest_wait demo 30)
    is "the guest powers off, and throughway ends well" "$status" 0
    retry 10 test "$(driver_of "$vf")" != vfio-pci
    if [ "$(driver_of "$vf")" != vfio-pci ]; then ok "VF 0 is given back"; else not_ok "VF 0 is given back" "still bound to vfio-pci"; fi
fi
