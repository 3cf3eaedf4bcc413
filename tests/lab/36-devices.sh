# proves: Linux finds a virtio console, a socket to the host, a watchdog and a pvpanic port by itself, and what becomes of a guest in trouble is what its file says.
# kernels: debian
# examples: vmm/vsock
# suite: guest
# timeout: 600
. /share/box/lib.sh

vsock=/share/bin/vsock
# The guest gets the program too: initial RAM file systems may follow one another.
mkdir -p /run/extra/usr/bin
cp $vsock /run/extra/usr/bin/vsock
cp "$GUEST_INITRD" /run/initrd
(cd /run/extra && find . | busybox cpio -o -H newc 2>/dev/null) >>/run/initrd

cat >"$LAB_OUT/devices.yaml" <<END
version: 1
vms:
  devices:
    cpus: {count: 4, sockets: 2, threads: 2}
    memory: {size: 256MiB, numa: auto, transparent-hugepages: true}
    boot: {kernel: $GUEST_KERNEL, initrd: /run/initrd, cmdline: "console=ttyS0 console=hvc0 quiet lab.agent panic=0"}
    console: virtio
    vsock: {cid: 42}
    watchdog: reset
    on-panic: stop
END
guest_spawn devices throughway -v run "$LAB_OUT/devices.yaml" --vm devices
check "the guest comes up, and its agent answers on hvc0" guest_up devices 200 ||
    bail "without a guest" "$(tail -n 5 "$LAB_OUT/devices.err")"
like "the console is hvc0" "$(guest_run devices 'cat /sys/class/tty/console/active')" 'hvc0$'
like "it has the topology of its file" "$(guest_run devices 'cat /sys/devices/system/cpu/cpu3/topology/physical_package_id /sys/devices/system/cpu/cpu3/topology/thread_siblings_list' | tr '\n' ' ')" '^1 2-3'
is "its drivers took the watchdog" "$(guest_run devices 'cat /sys/class/watchdog/watchdog0/identity')" 'i6300ESB timer'
check "and the panic port" guest_run devices 'ls /sys/bus/platform/drivers/pvpanic-mmio | grep -q QEMU0001'

# Both ways over the socket.
$vsock listen 1000 >/run/heard &
# Until somebody listens it is refused.
upwards() { [ "$(guest_run devices 'vsock say 2 1000 upwards')" = heard ]; }
check "the guest reaches the host" retry 20 upwards
is "the host heard it" "$(cat /run/heard)" upwards
guest_run devices 'vsock listen 2000 >/tmp/heard & sleep 1'
is "the host reaches the guest" "$($vsock say 42 2000 downwards)" heard
is "and the guest heard it" "$(guest_run devices 'cat /tmp/heard')" downwards
like "vhost-vsock is in use, and that is said" "$(cat "$LAB_OUT/devices.err")" 'vsock: vhost-vsock in use, CID 42'

# A watchdog that is opened and left alone: 2 s of its time.
ups() { [ "$(grep -c '@@up' "$LAB_OUT/devices.console")" -ge "$1" ]; }
guest_run devices 'rmmod i6300esb; insmod $(find / -name "i6300esb*.ko*" | head -n 1) heartbeat=4; (echo x >/dev/watchdog0) &' 10
check "a watchdog that nobody reloads resets the guest" retry 200 ups 2
like "and that is said" "$(cat "$LAB_OUT/devices.err")" 'watchdog was not reloaded in time; it is reset'
guest_run devices 'echo c >/proc/sysrq-trigger' 1 >/dev/null
is "a panic stops it" "$(guest_wait devices 60)" 5
like "and that is said" "$(cat "$LAB_OUT/devices.err")" 'was stopped: a panic of its kernel'
