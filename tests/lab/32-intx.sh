# proves: A whole e1000e works in a guest without MSI: its pin carries all, level-triggered, through KVM's resampling irqfd.
# timeout: 270
. /share/box/lib.sh

check "the PF on the same wire comes up" pf_up "$(bdf_of igb 0)" 10.9.0.1/24
card=$(bdf_of e1000e)
cat >"$LAB_OUT/pin.yaml" <<END
version: 1
host: {iommu: required, interrupt-remapping: required}
devices:
  card:
    match: {address: "$card"}
vms:
  pin:
    cpus: 2
    memory: 256MiB
    boot:
      kernel: $GUEST_KERNEL
      initrd: $GUEST_INITRD
      cmdline: "console=ttyS0 quiet pci=nomsi lab.agent lab.ip=10.9.0.3/24"
    pci:
      lan: {device: card}
END
guest_start pin "$LAB_OUT/pin.yaml"
check "the guest comes up" guest_up pin || bail "without a guest" "$(tail -n 5 "$LAB_OUT/pin.err")"

count() { guest_run pin "grep -E ' eth0\$' /proc/interrupts" | awk '{ for (i = 2; i <= NF && $i ~ /^[0-9]+$/; i++) sum += $i } END { print sum + 0 }'; }
pings() { retry 20 guest_run pin 'ping -c 1 -W 1 10.9.0.1' 5; }

like "it is interrupted by the I/O APIC, level-triggered" "$(guest_run pin 'cat /proc/interrupts')" 'IO-APIC +[0-9]+-fasteoi +eth0'
check "the guest pings the PF" pings
before=$(count)
iperf_server
guest_iperf pin 10.9.0.1 >"$LAB_OUT/out"
guest_iperf pin 10.9.0.1 -R >"$LAB_OUT/in"
more "packets pass out of the guest, in Mbit/s" "$(iperf_mbits <"$LAB_OUT/out")" 0
more "packets pass into the guest, in Mbit/s" "$(iperf_mbits <"$LAB_OUT/in")" 0
more "its pin fires" "$(count)" "$((before + 20))"
check "nobody disabled the interrupt as spurious" sh -c "! grep -q 'nobody cared' $LAB_OUT/pin.console"
guest_run pin 'ip link set eth0 down; ip link set eth0 up' 20 >/dev/null
check "the guest pings the PF after the driver has let its pin go and taken it again" pings
guest_run pin 'poweroff -f' 1 >/dev/null
is "the guest powers off" "$(guest_wait pin 30)" 0
