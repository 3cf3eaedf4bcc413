# proves: A guest that starts without any function takes its first VF while it runs, with its memory pinned from then on and no longer than it has the VF; what cannot be done is told in one line.
# timeout: 240
. /share/box/lib.sh

pf=$(bdf_of igb 0)
check "the PF comes up" pf_up "$pf" 10.9.0.1/24
check "two VFs are made" vfs "$pf" 2
vf=$(vf_of "$pf" 0)
check "VF 0 has a host driver" bind "$vf" igbvf
echo >"/sys/bus/pci/devices/$vf/driver_override"
before=$(vf_functions "$pf")

cat >"$LAB_OUT/cold.yaml" <<END
version: 1
devices:
  lan-pf: {match: {address: "$pf"}}
sriov:
  lan-pf: {num-vfs: 2}
vms:
  cold:
    memory: 192MiB
    hotplug-ports: 1
    boot: {kernel: $GUEST_KERNEL, initrd: $GUEST_INITRD, cmdline: "console=ttyS0 quiet lab.agent"}
END
check "the guest starts" guest_spawn cold throughway -v run "$LAB_OUT/cold.yaml" --vm cold
check "it comes up" guest_up cold || bail "without it nothing follows" "$(tail -n 5 "$LAB_OUT/cold.err")"
# VFIO's own container counts as locked what it pins, iommufd as pinned.
locked() { awk '/^Vm(Lck|Pin)/ && $2 > most { most = $2 } END { print (most >= 192 * 1024) ? "pinned" : most + 0 }' "/proc/$(guest_machine cold)/status"; }
card() { guest_run cold 'for net in /sys/class/net/*; do case $(readlink $net/device/driver) in */igbvf) echo ${net##*/};; esac; done'; }
is "nothing of its memory is pinned" "$(locked)" 0

throughway vm add cold wan >"$LAB_OUT/early" 2>&1
is "what its file does not have is refused" "$?" 1
like "in one line" "$(cat "$LAB_OUT/early")" 'There is no device `wan`; it has none'
cat >>"$LAB_OUT/cold.yaml" <<END
    nics:
      wan: {pf: lan-pf, vf: 0, mac-address: "02:00:00:00:42:01"}
      more: {pf: lan-pf, vf: 1, mac-address: "02:00:00:00:42:02"}
END
throughway vm add cold wan --timeout 60 >"$LAB_OUT/add" 2>&1
is "it is added" "$?" 0 || bail "without that nothing follows" "$(cat "$LAB_OUT/add") $(tail -n 3 "$LAB_OUT/cold.err")"
is "the guest's memory is pinned" "$(locked)" pinned
up() { guest_run cold "ip link set $(card) up && ip addr replace 10.9.0.2/24 dev $(card)"; }
check "it has its driver and address" retry 30 up
check "it passes packets" retry 20 guest_run cold 'ping -c 1 -W 1 10.9.0.1' 5
throughway vm add cold more >"$LAB_OUT/full" 2>&1
is "there is no second empty slot" "$?" 1
like "which is told" "$(cat "$LAB_OUT/full")" 'All root ports of the guest are taken'

# The guest's kernel waits five seconds before it does what the button says.
throughway vm remove cold wan --timeout 1 >"$LAB_OUT/hasty" 2>&1
is "a guest is not given less time than it takes" "$?" 1
like "which is told" "$(cat "$LAB_OUT/hasty")" 'has not given `wan` back within 1 s'
throughway vm remove cold wan --timeout 60 >"$LAB_OUT/remove" 2>&1
is "who asks again gets it" "$?" 0 || bail "without that nothing follows" "$(cat "$LAB_OUT/remove") $(tail -n 3 "$LAB_OUT/cold.err")"
is "nothing of its memory is pinned any more" "$(locked)" 0
is "the host has its VF" "$(vf_functions "$pf")" "$before"
guest_run cold 'poweroff -f' 1 >/dev/null
is "the guest powers off" "$(guest_wait cold 30)" 0
is "and nobody holds anything" "$(throughway recover)" "Nothing to put back."
