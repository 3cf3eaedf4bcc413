# proves: A host that wants a device back, or takes it away under a running guest, gets it, and `on-device-error` decides about the guest.
# timeout: 200
. /share/box/lib.sh

pf=$(bdf_of igb 0)
check "the PF comes up" pf_up "$pf" 10.9.0.1/24
# file POLICY
file() {
    cat >"$LAB_OUT/$1.yaml" <<END
version: 1
host: {iommu: required, interrupt-remapping: required}
devices:
  lan-pf:
    match: {address: "$pf"}
sriov:
  lan-pf: {num-vfs: 2, drivers-autoprobe: false}
pools:
  lan-vfs: {pf: [lan-pf], vf-range: "0-0"}
vms:
  $1:
    cpus: 1
    memory: 256MiB
    boot:
      kernel: $GUEST_KERNEL
      initrd: $GUEST_INITRD
      cmdline: "console=ttyS0 quiet lab.agent lab.ip=10.9.0.2/24"
    nics:
      lan: {pool: lan-vfs}
    on-device-error: $1
END
}
# In the background, as the kernel waits until the guest lets go.
take_back() { (echo "$1" >/sys/bus/pci/drivers/vfio-pci/unbind; echo done >"$LAB_OUT/unbound") 3>&- & }

file detach
guest_start detach "$LAB_OUT/detach.yaml"
check "the guest comes up" guest_up detach || bail "without a guest" "$(tail -n 5 "$LAB_OUT/detach.err")"
vf=$(vf_of "$pf" 0)
check "the guest pings the PF" retry 20 guest_run detach 'ping -c 1 -W 1 10.9.0.1' 5
take_back "$vf"
check "with detach, the host has the VF back" retry 20 test -e "$LAB_OUT/unbound"
is "the VF has no driver" "$(driver_of "$vf")" ""
like "the log says why" "$(cat "$LAB_OUT/detach.err")" "$vf.*asks for it back"
is "the guest lives on" "$(guest_run detach 'echo alive')" alive
# A kernel with hotplug has let go of it, too.
check "it finds nothing where the VF was" guest_run detach 'f=/sys/bus/pci/devices/0000:01:00.0/config; [ ! -e $f ] || od -An -tx1 -N4 $f | grep "ff ff ff ff"'
guest_run detach 'poweroff -f' 1 >/dev/null
is "it powers off" "$(guest_wait detach 30)" 0

rm -f "$LAB_OUT/unbound"
file stop
guest_start stop "$LAB_OUT/stop.yaml"
check "the next guest comes up" guest_up stop || bail "without a guest" "$(tail -n 5 "$LAB_OUT/stop.err")"
take_back "$(vf_of "$pf" 0)"
check "with stop, the host has the VF back" retry 20 test -e "$LAB_OUT/unbound"
status=$(guest_wait stop 20)
more "the guest ends, with a status that says so" "$status" 0
like "the log says why" "$(cat "$LAB_OUT/stop.err")" "asks for it back"
