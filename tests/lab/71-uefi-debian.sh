# proves: A Debian that debootstrap installed on a disk starts by Debian's OVMF and GRUB to a login, has a VF beside virtio-net on a bridge and on a macvtap, and reboots from inside.
# kernels: debian
# suite: uefi
# image: debian
# gates: no
# timeout: 900
# boot: own
. /share/box/lib.sh
. /share/box/debian.sh

in_ns() { ip netns exec "$@"; }

# A wire from the bridge to one namespace, and from the macvtap's base to another.
for far in lan dmz; do
    ip netns add $far
    ip link add $far-port type veth peer name eth0 netns $far
    ip link set $far-port up
    in_ns $far ip link set eth0 up
done
in_ns lan ip addr add 10.71.1.1/24 dev eth0
in_ns dmz ip addr add 10.71.2.1/24 dev eth0
pf=$(bdf_of igb 0)
check "the PF comes up" pf_up "$pf" 10.71.0.1/24

installed_disk
cat >"$LAB_OUT/debian.yaml" <<END
version: 1
devices:
  lan-pf: {match: {address: "$pf"}}
sriov:
  lan-pf:
    num-vfs: 1
    drivers-autoprobe: false
    vfs:
      - {id: 0, mac-address: "02:00:00:00:71:00"}
pools:
  lan-vfs: {pf: [lan-pf]}
networks:
  br71: {type: bridge, ports: {lan-port: {}}}
  up71: {type: macvtap, base-iface: dmz-port, mode: bridge}
vms:
  debian:
    cpus: 2
    memory: 512MiB
    rng: true
$(installed_guest)
    nics:
      vf: {pool: lan-vfs}
      lan: {network: br71, mac-address: "02:00:00:00:71:01"}
      dmz: {network: up71, mac-address: "02:00:00:00:71:02"}
END
throughway apply "$LAB_OUT/debian.yaml" >"$LAB_OUT/apply" 2>&1
is "the host is as the file says" "$?" 0 || bail "without it nothing follows" "$(tail -n 5 "$LAB_OUT/apply")"

addresses() {
    guest_run debian "for n in 0 1 2; do l=\$(ip -o link | sed -n \"s/^[0-9]*: \\([^:]*\\):.*02:00:00:00:71:0\$n.*/\\1/p\"); ip link set \$l up; ip addr add 10.71.\$n.2/24 dev \$l; done; sleep 2; ip -br addr" 40
}
pings() { retry 40 guest_run debian "ping -c 1 -W 2 $1" 10; }

guest_spawn debian throughway -v run "$LAB_OUT/debian.yaml" --vm debian
check "GRUB starts from the ESP" waits debian 'Loading Debian' 1 200 || bail "without a boot loader"
check "the system comes to its login" waits debian 'lab login:' 1 300 || bail "without a login"
check "root logs in" logs_in debian 1 || bail "without a shell" "$(tail -c 300 "$LAB_OUT/debian.console")"
check "it was started by UEFI" guest_run debian 'test -d /sys/firmware/efi/efivars'
check "the kernel is Debian's own" guest_run debian 'grep -q debian-kernel /proc/version'
log=$LAB_OUT/debian.err
check "vhost-net serves the card on the bridge, and that is said" grep -q 'nic lan: vhost-net in use' "$log"
check "and the one on the macvtap" grep -q 'nic dmz: vhost-net in use' "$log"
addresses
check "it pings by the VF" pings 10.71.0.1
check "it pings over the bridge" pings 10.71.1.1
check "it pings over the macvtap" pings 10.71.2.1
passes() { more "iperf3 passes by $1, in Mbit/s: ${2:-none}" "$2" 0; }
measure() { guest_run debian "iperf3 -c $1 -t 3" 40 | tee "$LAB_OUT/iperf-$2" | iperf_mbits; }
iperf_server 10.71.0.1
for far in lan dmz; do in_ns $far iperf3 -s -D 3>&-; done
passes "the VF" "$(measure 10.71.0.1 vf)"
passes "the bridge" "$(measure 10.71.1.1 lan)"
passes "the macvtap" "$(measure 10.71.2.1 dmz)"

asks debian reboot
check "it reboots from inside" waits debian 'lab login:' 2 400 || bail "without a second login"
check "root logs in again" logs_in debian 2
addresses
check "the VF passes packets after the reboot" pings 10.71.0.1
check "the bridge too" pings 10.71.1.1
check "and the macvtap" pings 10.71.2.1
asks debian poweroff
is "it powers off" "$(guest_wait debian 120)" 0
