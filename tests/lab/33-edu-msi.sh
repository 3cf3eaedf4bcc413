# proves: A whole function that has only MSI and a pin interrupts a guest by MSI, driven by hand.
# timeout: 150
. /share/box/lib.sh

edu=$(bdf_of edu)
cat >"$LAB_OUT/edu.yaml" <<END
version: 1
host: {iommu: required, interrupt-remapping: required}
devices:
  edu:
    match: {address: "$edu"}
vms:
  edu:
    cpus: 1
    memory: 256MiB
    boot:
      kernel: $GUEST_KERNEL
      initrd: $GUEST_INITRD
      cmdline: "console=ttyS0 quiet lab.agent"
    pci:
      edu: {device: edu}
END
guest_start edu "$LAB_OUT/edu.yaml"
check "the guest comes up" guest_up edu || bail "without a guest" "$(tail -n 5 "$LAB_OUT/edu.err")"

# The device raises its interrupt when its register 0x60 is written, and lowers it by 0x64. No driver: the message has
# a vector that the guest's kernel does not know, and it says so each time one arrives.
guest_run edu 'setpci -s 01:00.0 COMMAND=0006'
bar=$(guest_run edu "sed -n 1p /sys/bus/pci/devices/0000:01:00.0/resource" | cut -d' ' -f1)
like "its BAR has an address" "$bar" '^0x[0-9a-f]+$'
register() { guest_run edu "devmem $((bar + $1)) 32 ${2:-}"; }
like "it says who it is" "$(register 0)" '0x010000ED'
heard() { guest_run edu "dmesg | grep -c 'No irq handler for 0.225'"; }

is "no message has arrived yet" "$(heard | tr -d '\n')" 0
# To the first processor, vector 225.
guest_run edu 'setpci -s 01:00.0 CAP_MSI+4.L=fee00000 CAP_MSI+8.L=0 CAP_MSI+c.W=00e1 CAP_MSI+2.W=1:1'
register 0x60 1
sleep 1
more "a message arrives" "$(heard)" 0
register 0x64 1
arrived=$(heard)
register 0x60 1
sleep 1
more "another one arrives" "$(heard)" "$arrived"
register 0x64 1
guest_run edu 'setpci -s 01:00.0 COMMAND=0406 CAP_MSI+2.W=0:1'
arrived=$(heard)
register 0x60 1
sleep 1
is "none arrives while MSI is off" "$(heard)" "$arrived"
guest_run edu 'poweroff -f' 1 >/dev/null
is "the guest powers off" "$(guest_wait edu 30)" 0
