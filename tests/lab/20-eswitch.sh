# proves: The mode of a card's switch goes to switchdev and back over devlink (netdevsim); what has none says so.
# kernels: debian iommufd
# needs: nothing
# examples: netconfig/eswitch
# timeout: 60
. /share/box/lib.sh

eswitch() { /share/bin/eswitch "$@"; }

igb=$(bdf_of igb 0)
like "a card without modes says so" "$(eswitch pci "$igb" 2>&1)" "^unsupported: "
like "and is not changed" "$(eswitch pci "$igb" switchdev 2>&1)" "^$igb: its eswitch mode cannot be changed: "
like "a card that is not there says so" "$(eswitch pci 0000:ff:1f.7 2>&1)" "^unsupported: "
[ "$LAB_KERNEL" = iommufd ] || exit 0

echo "5 1" >/sys/bus/netdevsim/new_device || bail "the kernel has netdevsim"
device=/sys/bus/netdevsim/devices/netdevsim5
check "a simulated card has an interface" retry 5 sh -c "ls $device/net | grep -q ."
echo 2 >$device/sriov_numvfs
is "it begins as legacy" "$(eswitch netdevsim netdevsim5)" legacy
links=$(ls $device/net | wc -l)
is "it is told switchdev" "$(eswitch netdevsim netdevsim5 switchdev)" switchdev
is "it is switchdev" "$(eswitch netdevsim netdevsim5)" switchdev
is "each VF has a link of its own on the host" "$(ls $device/net | wc -l)" $((links + 2))
is "switchdev again changes nothing" "$(eswitch netdevsim netdevsim5 switchdev)" switchdev
is "it is told legacy" "$(eswitch netdevsim netdevsim5 legacy)" legacy
is "the VFs' links are gone" "$(ls $device/net | wc -l)" "$links"
echo 0 >$device/sriov_numvfs
like "the driver's refusal is told in its words" "$(eswitch netdevsim netdevsim5 switchdev 2>&1)" "switchdev|netdevsim5: setting its eswitch mode to switchdev: "
echo 5 >/sys/bus/netdevsim/del_device
