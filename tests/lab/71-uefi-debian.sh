# proves: A Debian that debootstrap installed on a disk starts by Debian's OVMF and GRUB to a login, has a VF beside virtio-net on a bridge and on a macvtap, gives the VF back and takes it again while it runs, reboots from inside, and finds a variable, a boot entry and a file that it wrote after a cold start.
# kernels: debian
# suite: uefi
# image: debian
# timeout: 600
# boot: own
. /share/box/lib.sh
. /share/box/debian.sh

# A wire from the bridge to one namespace, and from the macvtap's base to another.
wire lan 10.71.1.1/24
wire dmz 10.71.2.1/24
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
before=$(vf_functions "$pf")

# The guest's cards by their addresses, each with its own as it comes: 10.71.N.2 where the MAC ends in N.
addresses() {
    guest_run "$1" 'for n in 0 1 2; do l=$(ip -o link | sed -n "s/^[0-9]*: \([^:]*\):.*02:00:00:00:71:0$n.*/\1/p"); [ -z "$l" ] || { ip link set $l up; ip addr replace 10.71.$n.2/24 dev $l; }; done' 40
}
pings() { retry 40 guest_run "$1" "ping -c 1 -W 2 $2" 10; }
has_vf() { guest_run debian 'ls /sys/bus/pci/drivers/igbvf' 20 | grep -c '^0000:'; }
variable=/sys/firmware/efi/efivars/Throughway-5e9c7a1f-4b1d-4c59-9f0e-2f6d8a3b7c10

guest_spawn debian throughway -v run "$LAB_OUT/debian.yaml" --vm debian
check "GRUB starts from the ESP" waits debian 'Loading Debian' 1 200 || bail "without a boot loader"
check "the system comes to its login" waits debian 'lab login:' 1 300 || bail "without a login"
check "root logs in" logs_in debian 1 || bail "without a shell" "$(tail -c 300 "$LAB_OUT/debian.console")"
check "it was started by UEFI" guest_run debian 'test -d /sys/firmware/efi/efivars'
check "the kernel is Debian's own" guest_run debian 'grep -q debian-kernel /proc/version'
log=$LAB_OUT/debian.err
check "vhost-net serves the card on the bridge, and that is said" grep -q 'nic lan: vhost-net in use' "$log"
check "and the one on the macvtap" grep -q 'nic dmz: vhost-net in use' "$log"
addresses debian
check "it pings by the VF" pings debian 10.71.0.1
check "it pings over the bridge" pings debian 10.71.1.1
check "it pings over the macvtap" pings debian 10.71.2.1
passes() { more "iperf3 passes by $1, in Mbit/s: ${2:-none}" "$2" 0; }
measure() { guest_run debian "iperf3 -c $1 -t 3" 40 | tee "$LAB_OUT/iperf-$2" | iperf_mbits; }
iperf_server 10.71.0.1
for far in lan dmz; do in_ns $far iperf3 -s -D 3>&-; done
passes "the VF" "$(measure 10.71.0.1 vf)"
passes "the bridge" "$(measure 10.71.1.1 lan)"
passes "the macvtap" "$(measure 10.71.2.1 dmz)"

# The VF leaves and comes back by the slots' own hotplug, in the windows that the firmware made.
guest_run debian '(ping -i 0.5 10.71.1.1 >/tmp/pings 2>&1 & echo $! >/tmp/pinger)' >/dev/null
throughway vm remove debian vf --timeout 90 >"$LAB_OUT/remove" 2>&1
is "the VF is removed while the guest runs" "$?" 0 || bail "without that nothing follows" "$(cat "$LAB_OUT/remove") $(guest_run debian 'dmesg | grep -i pcie' | tail -n 9)"
is "the guest has it no more" "$(has_vf)" 0
is "the host has it as it was" "$(vf_functions "$pf")" "$before"
throughway vm add debian vf --timeout 90 >"$LAB_OUT/add" 2>&1
is "it is added again" "$?" 0 || bail "without that nothing follows" "$(cat "$LAB_OUT/add") $(guest_run debian 'dmesg | grep -i pci' | tail -n 9)"
back() { addresses debian && guest_run debian 'ping -c 1 -W 2 10.71.0.1' 10; }
check "it passes packets" retry 60 back
guest_run debian 'kill -INT $(cat /tmp/pinger); sleep 1; tail -n 3 /tmp/pings' 20 >"$LAB_OUT/ping-lan"
like "the card on the bridge has lost none meanwhile: $(grep transmitted "$LAB_OUT/ping-lan")" "$(cat "$LAB_OUT/ping-lan")" ' 0% packet loss'

guest_run debian 'efibootmgr -q -c -l "\\EFI\\debian\\grubx64.efi" -d /dev/vda -p 1 -L Kept' 60
is "a boot entry is made in the variables" "$?" 0
guest_run debian "printf '\\007\\000\\000\\000kept' >$variable" 60
is "a variable is written" "$?" 0
guest_run debian 'touch /kept; sync' 60
asks debian reboot
check "it reboots from inside" waits debian 'lab login:' 2 400 || bail "without a second login"
check "root logs in again" logs_in debian 2
addresses debian
check "the VF passes packets after the reboot" pings debian 10.71.0.1
check "the bridge too" pings debian 10.71.1.1
check "and the macvtap" pings debian 10.71.2.1
asks debian poweroff
is "it powers off" "$(guest_wait debian 120)" 0

guest_start cold "$LAB_OUT/debian.yaml" debian
check "it starts again from cold" waits cold 'lab login:' 1 400 || bail "without a login"
check "root logs in once more" logs_in cold 1 || bail "without a shell" "$(tail -c 300 "$LAB_OUT/cold.console")"
is "the variable has been kept" "$(guest_run cold "tail -c 4 $variable; echo" 60)" kept
like "the boot entry too" "$(guest_run cold efibootmgr 60)" 'Kept'
check "and the disk" guest_run cold 'test -e /kept' 60
asks cold poweroff
is "it powers off" "$(guest_wait cold 120)" 0
