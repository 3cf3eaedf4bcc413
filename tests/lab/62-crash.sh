# proves: A change of real igb (VFs, their attributes, drivers, a bridge) is killed at every boundary of its steps, and the host is as before.
# kernels: debian
# examples: tests/crash
# timeout: 1500
. /share/box/lib.sh

pf=$(bdf_of igb 0)
link=$(netdev_of "$pf")
other=$(netdev_of "$(bdf_of igb 1)")

file() {
    cat <<END
version: 1
devices:
  lan: {match: {address: "$pf"}}
sriov:
  lan:
    num-vfs: $1
    vfs:
      - {id: 0, mac-address: "02:00:00:00:62:00", vlan-id: 100, qos: 3, trust: true}
      - {id: 1, mac-address: "02:00:00:00:62:01", spoof-check: false}
networks:
  br62: {type: bridge, mtu: 1400, ports: {$other: {}}}
END
    [ -z "$2" ] || cat <<END
vms:
  lent:
    memory: 192MiB
    boot: {kernel: $GUEST_KERNEL}
    nics: {lan: {pf: lan, vf: $2}}
END
}
host() {
    vf_state "$pf"
    # Not whether they have a carrier, which comes and goes.
    for name in "$link" "$other" br62; do
        folder=/sys/class/net/$name
        [ ! -e "$folder" ] || echo "$name mtu $(cat "$folder/mtu"), flags $(cat "$folder/flags"), controller $(basename "$(readlink "$folder/master")")"
    done
}

# walk NAME: applies $LAB_OUT/NAME.yaml, killed at one boundary after the other, until it comes to its end.
walk() {
    host >"$LAB_OUT/$1-before"
    at=0
    held=0
    while [ "$at" -lt 100 ]; do
        CRASH_STATE=/var/lib/throughway CRASH_FILE=$(cat "$LAB_OUT/$1.yaml") CRASH_AT=$at \
            /share/bin/crash --exact every_boundary --nocapture >"$LAB_OUT/$1-$at" 2>&1
        status=$?
        [ "$status" != 0 ] || break
        [ "$status" = 137 ] || {
            not_ok "$1: killed at boundary $at" "ended with $status: $(tail -n 3 "$LAB_OUT/$1-$at" | tr '\n' ' ')"
            return
        }
        throughway recover >>"$LAB_OUT/$1-recovered" 2>&1
        host >"$LAB_OUT/$1-after-$at"
        if cmp -s "$LAB_OUT/$1-before" "$LAB_OUT/$1-after-$at"; then
            held=$((held + 1))
        else
            not_ok "$1: killed at boundary $at, the host is as before" "$(diff "$LAB_OUT/$1-before" "$LAB_OUT/$1-after-$at" | head -n 4 | tr '\n' ' ')"
        fi
        at=$((at + 1))
    done
    more "$1: it has many boundaries" "$at" 4
    is "$1: killed at each of them, the host is as before" "$held of $at" "$at of $at"
    throughway plan "$LAB_OUT/$1.yaml" >"$LAB_OUT/$1-left"
    is "$1: not killed, it is as planned" "$?" 0
}

file 2 1 >"$LAB_OUT/made.yaml"
file 3 | sed 's/mtu: 1400, ports: .*/mtu: 1450}/' >"$LAB_OUT/changed.yaml"
printf 'version: 1\n' >"$LAB_OUT/forgotten.yaml"
mkdir -p /var/lib/throughway
host >"$LAB_OUT/first"
walk made
is "VF 1 is lent" "$(driver_of "$(vf_of "$pf" 1)")" vfio-pci
walk changed
is "three VFs are there" "$(cat /sys/bus/pci/devices/"$pf"/sriov_numvfs)" 3
throughway apply "$LAB_OUT/forgotten.yaml" >"$LAB_OUT/forgotten" 2>&1
is "a file that asks for nothing is applied" "$?" 0
is "at the end the host is as at first" "$(host)" "$(cat "$LAB_OUT/first")"
