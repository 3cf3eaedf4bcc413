# Puts the box back between scenarios, whatever the last one left: no guest, no
# VF, no device on vfio-pci, no link that was not there at boot.

reset_box() {
    for process in $(pidof throughway qemu-system-x86_64 iperf3 2>/dev/null); do
        kill -9 "$process" 2>/dev/null
    done
    sleep 0.2
    for namespace in $(ip netns list 2>/dev/null | cut -d' ' -f1); do ip netns del "$namespace"; done
    for device in /sys/bus/pci/drivers/vfio-pci/0000:*; do
        [ -e "$device" ] || continue
        bdf=${device##*/}
        [ -e "$device/physfn" ] && continue
        echo "$bdf" >/sys/bus/pci/drivers/vfio-pci/unbind
        echo >"/sys/bus/pci/devices/$bdf/driver_override"
        echo "$bdf" >/sys/bus/pci/drivers_probe
    done
    for count in /sys/bus/pci/devices/*/sriov_numvfs; do
        [ "$(cat "$count")" = 0 ] || echo 0 >"$count"
        echo 1 >"${count%/*}/sriov_drivers_autoprobe"
    done
    for kind in macvtap macvlan bridge vlan dummy; do
        for link in $(ip -o link show type $kind 2>/dev/null | sed 's/^[0-9]*: \([^:@]*\).*/\1/'); do
            ip link del "$link"
        done
    done
    for link in /sys/class/net/*/device; do
        [ -e "$link" ] && ip addr flush dev "$(basename "${link%/device}")"
    done
    rm -rf /var/lib/throughway /run/throughway
    return 0
}
