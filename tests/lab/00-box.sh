# proves: The box itself is sound: an IOMMU with interrupt remapping, SR-IOV cards whose VFs have IOMMU groups of their own, vfio-pci and KVM.
# kernels: debian iommufd
# timeout: 90
# needs: nothing
. /share/box/lib.sh

check "the IOMMU is on" test -n "$(ls -A /sys/class/iommu)"
check "every function has an IOMMU group" sh -c 'for d in /sys/bus/pci/devices/*; do [ -e $d/iommu_group ] || exit 1; done'
like "interrupts are remapped" "$(dmesg)" 'DMAR-IR: Enabled IRQ remapping'
check "/dev/kvm is there" test -c /dev/kvm
check "/dev/vfio/vfio is there" test -c /dev/vfio/vfio
if [ "$LAB_KERNEL" = iommufd ]; then
    check "/dev/iommu is there" test -c /dev/iommu
fi
check "edu is there" bdf_of edu
check "e1000e is there" bdf_of e1000e
check "NVMe is there" bdf_of nvme

pf=$(bdf_of igb 0) || bail "an igb PF is there"
ok "an igb PF is there"
is "its driver is igb" "$(driver_of "$pf")" igb
check "its link comes up" pf_up "$pf" 10.9.0.1/24
check "two VFs are made" vfs "$pf" 2
vf0=$(vf_of "$pf" 0)
vf1=$(vf_of "$pf" 1)
is "VFs are igb VFs" "$(cat "/sys/bus/pci/devices/$vf0/device")" 0x10ca
like "VF 0 has an IOMMU group" "$(group_of "$vf0")" '^[0-9]+$'
like "VF 1 has an IOMMU group" "$(group_of "$vf1")" '^[0-9]+$'
is "VF 0 is alone in its group" "$(ls "/sys/bus/pci/devices/$vf0/iommu_group/devices")" "$vf0"
is "VF 1 is alone in its group" "$(ls "/sys/bus/pci/devices/$vf1/iommu_group/devices")" "$vf1"
check "VF 0 binds to vfio-pci" bind "$vf0" vfio-pci
check "its VFIO group is there" test -c "/dev/vfio/$(group_of "$vf0")"
if [ "$LAB_KERNEL" = iommufd ]; then
    check "its VFIO character device is there" sh -c "ls /sys/bus/pci/devices/$vf0/vfio-dev && ls /dev/vfio/devices"
fi

check "VF 1 binds to igbvf" bind "$vf1" igbvf
check "VF 1 has a link" retry 5 netdev_of_exists "$vf1"
link=$(netdev_of "$vf1")
ip netns add peer
ip link set "$link" netns peer
ip -n peer addr add 10.9.0.2/24 dev "$link"
ip -n peer link set "$link" up
check "packets pass from VF 1 to the PF" retry 20 ip netns exec peer ping -c 1 -W 1 10.9.0.1
