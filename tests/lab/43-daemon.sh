# proves: Guests with VFs are started in order by the daemon, go on when it is killed, are found again, come back with their VFs when a VMM is killed, and give all back when the daemon is told to end.
# kernels: debian
# timeout: 420
. /share/box/lib.sh

pf=$(bdf_of igb 0)
check "the PF comes up" pf_up "$pf" 10.43.0.1/24
guest() {
    echo "  $1:"
    echo "    memory: 192MiB"
    echo "    autostart: true"
    echo "    stop-timeout: 2s"
    echo "    boot: {kernel: $GUEST_KERNEL, initrd: $GUEST_INITRD, cmdline: \"console=ttyS0 quiet lab.agent lab.ip=10.43.0.$3/24\"}"
    echo "    nics: {lan: {pf: lan, vf: $2, mac-address: \"02:00:00:00:43:0$2\"}}"
}
file=$LAB_OUT/box.yaml
{
    echo "version: 1"
    echo "devices: {lan: {match: {address: \"$pf\"}}}"
    echo "sriov: {lan: {num-vfs: 2, drivers-autoprobe: false}}"
    echo "vms:"
    guest front 0 2
    guest back 1 3
    echo "    depends-on: [front]"
    echo "    start-delay: 15s"
} >"$file"
logs=$LAB_OUT/logs

started=0
# daemon: a new one, whose log is then $log.
daemon() {
    started=$((started + 1))
    log=$LAB_OUT/daemon.$started
    throughway daemon "$file" --log-dir "$logs" --restart-after 100 >"$log" 2>&1 &
    daemon=$!
}
pid_of() { throughway vm list 2>/dev/null | awk -v name="$1" '$1 == name && $2 == "running" { print $3 }'; }
is_pinged() { ping -c 1 -W 1 "10.43.0.$1" >/dev/null 2>&1; }
come_up() {
    retry 150 is_pinged "$2" && return
    {
        echo "Guest $1 is not up. Its console and its log end with:"
        tail -n 5 "$logs/$1.console.log" "$logs/$1.log"
        vmm_why "$(pid_of "$1")" "$1"
    } >>"$LAB_OUT/log" 2>&1
    if [ -n "$(pid_of "$1")" ]; then stands_still "$1" "does not come up"; fi
    return 1
}
# What a guest takes of the box, and what the daemon has open.
counted() {
    echo "functions lent: $(readlink /sys/bus/pci/devices/*/driver | grep -c vfio-pci), VFIO open: $(ls /dev/vfio /dev/vfio/devices 2>/dev/null | wc -l), links: $(ls /sys/class/net | wc -l), guests: $(throughway vm list | grep -c running), descriptors: $(ls "/proc/$daemon/fd" | wc -l)"
}

links=$(ls /sys/class/net)
daemon
check "the first guest comes up" come_up front 2 || bail "without it nothing follows" "$(tail -n 3 "$log")"
check "and the second one" come_up back 3 || bail "without it nothing follows" "$(tail -n 3 "$log")"
like "one after the other" "$(grep 'runs, as process' "$log" | tr '\n' ' ')" 'Guest `front` runs.*Guest `back` runs'
front=$(pid_of front)
back=$(pid_of back)
before=$(counted)
echo "$before"

kill -9 "$daemon"
wait "$daemon" 2>/dev/null
check "without the daemon the first one is pinged" retry 5 is_pinged 2
daemon
check "the next daemon finds the first" retry 20 grep -q "Guest .front. runs, as process $front\$" "$log"
check "and the second" retry 5 grep -q "Guest .back. runs, as process $back\$" "$log"
# It has just begun, and opens some things for a moment.
as_before() { [ "$(counted)" = "$before" ]; }
retry 10 as_before
is "with the devices of before, and no more" "$(counted)" "$before"

has_ended() { [ "$(grep -c 'Guest .front. has ended: .*started again' "$log")" = "$1" ]; }
for round in 1 2; do
    kill -9 "$(pid_of front)"
    check "round $round: whose VMM is killed is started again" retry 20 has_ended "$round"
    check "round $round: and passes packets by its VF" come_up front 2 || bail "without it nothing follows" "$(tail -n 5 "$log")"
    is "round $round: nothing leaks" "$(counted)" "$before"
done
is "the second one never noticed" "$(pid_of back)" "$back"
check "and is pinged" retry 5 is_pinged 3

# Both at once, and nobody there who would see it.
kill -9 "$daemon" "$(pid_of front)" "$back"
wait "$daemon" 2>/dev/null
daemon
check "guests that ended without a daemon are started by the next" come_up front 2
check "both of them" come_up back 3
is "and nothing has leaked" "$(counted)" "$before"

timeout 60 throughway daemon --stop >"$LAB_OUT/stop" 2>&1
is "the daemon is told to end" "$?" 0 || cat "$LAB_OUT/stop"
like "the second guest first" "$(grep 'has ended' "$log" | tail -n 2 | tr '\n' ' ')" 'Guest `back`.*Guest `front`'
is "no guest runs" "$(throughway vm list)" 'No guest runs.'
throughway status >"$LAB_OUT/status" 2>&1
is "the host is as the file says" "$?" 0 || cat "$LAB_OUT/status"
is "the links are those of before" "$(ls /sys/class/net)" "$links"
like "and nothing is left to do" "$(throughway recover 2>&1)" "Nothing to put back"
