# proves: How Throughway and QEMU fare as the VMM of a Debian that UEFI started, by a VF, a bridge and a macvtap.
# timeout: 2000
# boot: own
#
# Run by `cargo lab bench uefi`. Both guests run at once, each with a VF and two virtio-net cards of its own on the same wires,
# and are measured in turns: `figure VMM WHAT VALUE`, one line each. The number of rounds is in /share/rounds.
. /share/box/lib.sh
. /share/box/debian.sh

figure() { echo "figure $*" >&3; }
centiseconds() { awk '{ printf "%d\n", $1 * 100 }' /proc/uptime; }

wire lan 10.71.1.1/24
wire dmz 10.71.2.1/24
pf=$(bdf_of igb 0)
check "the PF comes up" pf_up "$pf" 10.71.0.1/24 || exit 1
link=$(netdev_of "$pf")
ethtool -G "$link" rx 4096
ethtool -C "$link" rx-usecs 100
retry 10 carrier "$link"
iperf_server 10.71.0.1
for far in lan dmz; do in_ns $far iperf3 -s -D 3>&-; done
for vmm in throughway qemu; do
    throughway image create /run/$vmm.qcow2 --backing /installed/disk.raw --allow-backing /installed || exit 1
done

cat >"$LAB_OUT/uefi.yaml" <<END
version: 1
devices:
  lan-pf: {match: {address: "$pf"}}
sriov:
  lan-pf:
    num-vfs: 2
    drivers-autoprobe: false
    vfs:
      - {id: 0, mac-address: "02:00:00:71:01:00"}
      - {id: 1, mac-address: "02:00:00:71:02:00"}
pools:
  lan-vfs: {pf: [lan-pf], vf-range: "0-0"}
networks:
  br71: {type: bridge, ports: {lan-port: {}}}
  up71: {type: macvtap, base-iface: dmz-port, mode: bridge}
vms:
  throughway:
    cpus: 1
    memory: 512MiB
    rng: true
    boot:
      firmware: {code: $OVMF_CODE, vars: $OVMF_VARS}
      order: [root]
    disks:
      root: {path: /run/throughway.qcow2, format: qcow2, backing-folders: [/installed], queues: 1}
    nics:
      vf: {pool: lan-vfs}
      lan: {network: br71, mac-address: "02:00:00:71:01:01"}
      dmz: {network: up71, mac-address: "02:00:00:71:01:02"}
END
throughway apply "$LAB_OUT/uefi.yaml" >"$LAB_OUT/apply" 2>&1
is "the host is as the file says" "$?" 0 || exit 1

start_throughway() { guest_spawn throughway throughway -v run "$LAB_OUT/uefi.yaml" --vm throughway; }
start_qemu() {
    vf=$(vf_of "$pf" 1)
    bind "$vf" vfio-pci || return 1
    ip tuntap add q-lan mode tap
    ip link set q-lan master br71
    ip link set q-lan up
    ip link add link dmz-port name q-dmz address 02:00:00:71:02:02 type macvtap mode bridge
    ip link set q-dmz up
    cp "$OVMF_VARS" /run/qemu.vars.fd
    guest_spawn qemu qemu_with_macvtap
}
qemu_with_macvtap() {
    exec 5<>"/dev/tap$(cat /sys/class/net/q-dmz/ifindex)"
    exec /sysroot/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2 --library-path /sysroot/usr/lib/x86_64-linux-gnu:/sysroot/usr/lib \
        /sysroot/usr/bin/qemu-system-x86_64 -nodefaults -no-user-config -display none -no-reboot \
        -L /sysroot/usr/share/qemu -L /sysroot/usr/share/seabios -M q35 -accel kvm -cpu host -smp 1 \
        -object memory-backend-memfd,id=ram,size=512M,share=on -machine memory-backend=ram -m 512 \
        -drive "if=pflash,format=raw,readonly=on,file=$OVMF_CODE" -drive if=pflash,format=raw,file=/run/qemu.vars.fd \
        -drive if=none,id=root,format=qcow2,file=/run/qemu.qcow2 \
        -device pcie-root-port,id=p1,chassis=1,slot=1 -device virtio-blk-pci,drive=root,bus=p1,bootindex=0 \
        -device pcie-root-port,id=p2,chassis=2,slot=2 -device "vfio-pci,host=$vf,bus=p2,romfile=" \
        -device pcie-root-port,id=p3,chassis=3,slot=3 -netdev tap,id=lan,ifname=q-lan,script=no,downscript=no,vhost=on \
        -device virtio-net-pci,netdev=lan,bus=p3,mac=02:00:00:71:02:01,romfile= \
        -device pcie-root-port,id=p4,chassis=4,slot=4 -netdev tap,id=dmz,fd=5,vhost=on \
        -device virtio-net-pci,netdev=dmz,bus=p4,mac=02:00:00:71:02:02,romfile= \
        -device pcie-root-port,id=p5,chassis=5,slot=5 -device virtio-rng-pci,bus=p5 \
        -chardev stdio,id=console,signal=off -serial chardev:console
}
# comes_up VMM: to its login, with all three cards at their addresses.
comes_up() {
    began=$(centiseconds)
    "start_$1" || return 1
    waits "$1" 'lab login:' 1 400 || return 1
    figure "$1" start $(($(centiseconds) - began))
    logs_in "$1" 1 || return 1
    [ "$1" = qemu ] && host=3 guest=02 || host=2 guest=01
    guest_run "$1" "for n in 0 1 2; do l=\$(ip -o link | sed -n \"s/^[0-9]*: \\([^:]*\\):.*02:00:00:71:$guest:0\$n.*/\\1/p\"); ip link set \$l up; ip addr add 10.71.\$n.$host/24 dev \$l; done; sleep 2; ip -br addr" 60 >"$LAB_OUT/addresses-$1"
    for n in 0 1 2; do retry 60 guest_run "$1" "ping -c 1 -W 2 10.71.$n.1" 15 || return 1; done
}
for vmm in throughway qemu; do
    check "$vmm: Debian comes up by UEFI, and all its cards pass packets" comes_up $vmm || exit 1
done
# As it is for QEMU, whose vhost-net is asked for.
check "vhost-net serves both of Throughway's" test "$(grep -c 'vhost-net in use' "$LAB_OUT/throughway.err")" -ge 2

# one VMM WHAT ADDRESS OPTIONS...: the receiver's figure.
one() {
    vmm=$1 what=$2 to=$3
    shift 3
    guest_run "$vmm" "iperf3 -c $to -t 4 $*" 60 >"$LAB_OUT/$what-$vmm-$round"
    figure "$vmm" "$what" "$(iperf_mbits <"$LAB_OUT/$what-$vmm-$round")"
}
for round in $(seq "$(cat /share/rounds)"); do
    for vmm in throughway qemu; do
        # TCP out of a guest by the emulated card comes to a stand, under either VMM (docs/benchmarks.md): UDP, as much as goes.
        one $vmm vf-out 10.71.0.1 -u -b 400M -l 1400
    done
    for way in "vf-in 10.71.0.1 -R" "lan-out 10.71.1.1" "lan-in 10.71.1.1 -R" "dmz-out 10.71.2.1" "dmz-in 10.71.2.1 -R"; do
        # shellcheck disable=SC2086
        for vmm in throughway qemu; do one $vmm $way -O 1; done
    done
    ok "round $round"
done
for vmm in throughway qemu; do
    asks $vmm poweroff
    is "$vmm: it powers off" "$(guest_wait $vmm 120)" 0
done
