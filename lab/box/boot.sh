# Run by L1's init once the share is mounted: loads drivers, then runs the
# scenarios listed in /share/plan, or gives a shell.
#
# Results go to the second serial port, one line each:
#   ##up                    L1 is ready
#   ##alive                 every five seconds
#   ##begin NAME            a scenario starts
#   ok/not ok N - TEXT      a check it made (see lib.sh)
#   ##end NAME STATUS       it ended
#   ##done                  all did

stty -F /dev/ttyS1 raw -echo 2>/dev/null
exec 3>/dev/ttyS1

# kmod's modprobe, because it heeds softdeps; built-in drivers are no error.
modprobe -qa kvm-amd vfio-pci vfio_iommu_type1 igb igbvf e1000e nvme macvtap tun bridge vhost_net vhost_vsock 8021q veth virtio_net pci-pf-stub
ulimit -l unlimited

export LAB_KERNEL=$(cat /share/kernel)
export PATH=/share/bin:$PATH
# Where a host has its guests' kernels is for its files to say; ours are in /boot.
ln -s /share/guest /boot
export GUEST_KERNEL=/boot/vmlinux GUEST_BZIMAGE=/boot/bzImage GUEST_INITRD=/boot/initrd
[ -x /share/bin/throughway ] && cp /share/bin/throughway /usr/bin/throughway

. /share/box/reset.sh

if [ -f /share/shell ]; then
    echo "##up" >&3
    . /share/box/lib.sh
    pf_up "$(bdf_of igb 0)"
    pf_up "$(bdf_of igb 1)"
    printf '\nThe box (L1). Scenarios: /share/scenarios; helpers: . /share/box/lib.sh; leave with Ctrl-A x.\n\n'
    cd /root
    ENV=/share/box/lib.sh setsid cttyhack /usr/bin/dash -i
    poweroff -f
fi

# A box that was rebooted by its scenario comes here again; one that was not, and did, is broken.
export LAB_BOOT=1
if [ -e /share/again ]; then
    rm /share/again
    LAB_BOOT=2
elif [ -e /share/booted ]; then
    echo "lab: the box was reset"
    poweroff -f
fi
touch /share/booted

while sleep 5; do echo "##alive"; done >&3 &
echo "##up" >&3
while read -r name seconds; do
    echo "##begin $name" >&3
    mkdir -p "/share/out/$name"
    export LAB_OUT=/share/out/$name LAB_NAME=$name
    # By its path: busybox would run a shell of its own, with its own ip.
    timeout -k 5 "$seconds" /usr/bin/dash "/share/scenarios/$name.sh" >>"$LAB_OUT/log" 2>&1 </dev/null
    status=$?
    dmesg >"$LAB_OUT/dmesg" 2>&1
    reset_box >"$LAB_OUT/reset" 2>&1
    echo "##end $name $status" >&3
done </share/plan
echo "##done" >&3
sync
poweroff -f
