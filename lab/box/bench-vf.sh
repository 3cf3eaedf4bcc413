# proves: How Throughway and QEMU fare as the VMM of the same guest with the same virtual function, a card on a bridge, a disk and an RNG.
# timeout: 3000
# boot: own
#
# Run by `cargo lab bench vf`. Prints figures: `figure VMM WHAT VALUE`, one line each, in rounds that take turns. The number
# of rounds is in /share/rounds.
. /share/box/lib.sh

mib=256
figure() { echo "figure $*" >&3; }

pf=$(bdf_of igb 0)
check "the PF comes up" pf_up "$pf" 10.9.0.1/24 || exit 1
link=$(netdev_of "$pf")
# All the descriptors that there are: with 256 of them a flow out of a guest stands still nearly always on a quiet machine, with
# these less often.
rings() { ethtool -G "$1" rx 4096; ethtool -C "$1" rx-usecs 100; retry 10 carrier "$1"; }
rings "$link"
check "two VFs are made" vfs "$pf" 2 || exit 1
vf=$(vf_of "$pf" 0)
check "QEMU is there" peer_mount || exit 1
# Into the page cache, so that the first round is like the others.
cat /sysroot/usr/bin/qemu-system-x86_64 "$(command -v throughway)" "$GUEST_KERNEL" "$GUEST_INITRD" >/dev/null
/sysroot/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2 --library-path /sysroot/usr/lib/x86_64-linux-gnu:/sysroot/usr/lib \
    /sysroot/usr/bin/qemu-system-x86_64 --version >/dev/null
iperf_server
# The second port, on the same wire: with a namespace of its own, so that packets take it.
second=$(netdev_of "$(bdf_of igb 1)")
ip link set "$second" up
rings "$second"
ip netns add second
ip link set "$second" netns second
ip -n second addr add 10.9.0.20/24 dev "$second"
ip -n second link set "$second" up
ip netns exec second iperf3 -s -D 3>&-

truncate -s 64M /run/bench.raw
cat >"$LAB_OUT/vf.yaml" <<END
version: 1
host: {iommu: required, interrupt-remapping: required}
devices:
  lan-pf:
    match: {address: "$pf"}
sriov:
  lan-pf:
    num-vfs: 2
    drivers-autoprobe: false
    vfs:
      - {id: 0, mac-address: "02:00:00:00:09:01"}
pools:
  lan-vfs: {pf: [lan-pf], vf-range: "0-0"}
networks:
  br9: {type: bridge}
vms:
  throughway:
    cpus: 1
    memory: ${mib}MiB
    rng: true
    disks:
      data: {path: /run/bench.raw, format: raw, queues: 1}
    boot:
      kernel: $GUEST_KERNEL
      initrd: $GUEST_INITRD
      cmdline: "console=ttyS0 quiet lab.agent"
    nics:
      vf: {pool: lan-vfs}
      lan: {network: br9}
END
throughway apply "$LAB_OUT/vf.yaml" >"$LAB_OUT/apply" 2>&1
is "the host is as the file says" "$?" 0 || exit 1
ip tuntap add bench-qemu mode tap vnet_hdr
ip link set bench-qemu master br9 up

# Both begin with a VF that no driver has; QEMU's is bound and named before its time starts, Throughway does that itself.
free_vf() {
    [ -z "$(driver_of "$vf")" ] || echo "$vf" >"/sys/bus/pci/devices/$vf/driver/unbind"
    echo >"/sys/bus/pci/devices/$vf/driver_override"
}
start_throughway() { guest_start throughway "$LAB_OUT/vf.yaml"; }
start_qemu() {
    guest_spawn qemu peer_qemu $mib 1 lab.agent -device "vfio-pci,host=$vf,romfile=" \
        -netdev tap,id=lan,ifname=bench-qemu,script=no,downscript=no,vhost=on \
        -device virtio-net-pci,netdev=lan,romfile= -drive if=none,id=data,format=raw,file=/run/bench.raw \
        -device virtio-blk-pci,drive=data -device virtio-rng-pci \
        -object "memory-backend-memfd,id=ram,size=${mib}M,share=on" -machine memory-backend=ram
}

# To the guest's VF, whatever its interface is called.
address='for link in /sys/class/net/*; do if grep -q 02:00:00:00:09:01 $link/address; then ip link set ${link##*/} up; ip addr add 10.9.0.2/24 dev ${link##*/}; fi; done'

centiseconds() { awk '{ printf "%d\n", $1 * 100 }' /proc/uptime; }

# KiB of the VMM beside guest RAM (which is a memory file): what it has mapped, in proportion where shared. A kernel without
# smaps (the iommufd one) tells of its own pages and of files' pages.
beside() {
    keeper=/proc/$(guest_pid "$1") machine=/proc/$(guest_machine "$1")
    [ "$keeper" != "$machine" ] || machine=
    [ -e "$keeper/smaps" ] || {
        awk '$1 == "RssAnon:" || $1 == "RssFile:" { sum += $2 } END { print sum + 0 }' "$keeper/status" ${machine:+"$machine/status"}
        return
    }
    awk -v half=$((mib * 512)) '
        /^[0-9a-f]+-[0-9a-f]+ / { memory_file = index($0, "/memfd:"); guest = 0 }
        $1 == "Size:" { guest = memory_file && $2 >= half }
        $1 == "Pss:" && !guest { sum += $2 }
        END { print sum + 0 }' "$keeper/smaps" ${machine:+"$machine/smaps"}
}
peak() {
    now=$(beside "$1")
    [ "$now" -le "$most" ] || most=$now
}

one() {
    free_vf
    if [ "$1" = qemu ]; then
        ip link set "$link" vf 0 mac 02:00:00:00:09:01
        bind "$vf" vfio-pci
    fi
    most=0
    rm -f "$LAB_OUT/$1.console"
    began=$(centiseconds)
    "start_$1"
    until guest_said "$1" "@@up"; do
        guest_running "$1" && [ "$(($(centiseconds) - began))" -lt 12000 ] || return 1
        sleep 0.1
    done
    figure "$1" start $(($(centiseconds) - began))
    peak "$1"
    guest_run "$1" "$address" 20 || return 1
    retry 30 guest_run "$1" 'ping -c 1 -W 1 10.9.0.1 && ping -c 1 -W 1 10.9.0.20' 5 || return 1
    guest_run "$1" 'ping -c 20 -i 0.2 10.9.0.1' 30 >"$LAB_OUT/ping-$1-$round"
    figure "$1" ping-min "$(sed -n 's/^round-trip.*= \([0-9.]*\).*/\1/p' "$LAB_OUT/ping-$1-$round")"
    figure "$1" ping-avg "$(sed -n 's/^round-trip.*= [0-9.]*\/\([0-9.]*\).*/\1/p' "$LAB_OUT/ping-$1-$round")"
    for way in out in pf-out pf-in udp-out; do
        to=10.9.0.20 options=
        [ "${way%-*}" != pf ] || to=10.9.0.1
        # As fast as it goes; what arrives counts.
        [ "${way%-*}" != udp ] || options="-u -b 0 -l 1400"
        [ "${way##*-}" = out ] || options="$options -R"
        guest_run "$1" "iperf3 -c $to -t 4 -O 1 $options" 60 >"$LAB_OUT/$way-$1-$round"
        figure "$1" $way "$(iperf_mbits <"$LAB_OUT/$way-$1-$round")"
        peak "$1"
    done
    figure "$1" memory "$most"
    guest_run "$1" 'poweroff -f' 1 >/dev/null
    guest_wait "$1" 30 >/dev/null
}

rounds=$(cat /share/rounds)
for round in $(seq "$rounds"); do
    for vmm in throughway qemu; do
        if one $vmm; then ok "round $round: $vmm"; else not_ok "round $round: $vmm" "$(tail -n 2 "$LAB_OUT/$vmm.err" | tr '\n' ' ')"; fi
        guest_stop $vmm
    done
done
