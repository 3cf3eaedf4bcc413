# proves: Functions and overrides are as lspci and driverctl say; a link that NetworkManager keeps is left to it, told, and taken over once it is released.
# timeout: 240
. /share/box/lib.sh

pf=$(bdf_of igb 0)
link=$(netdev_of "$(bdf_of igb 1)")
root=/tmp/others

# A root of its own for programs that are not in the image: they are linked with libraries that are not either.
mkdir -p /tmp/sysroot $root/usr $root/proc $root/sys $root/dev $root/run $root/tmp $root/etc/dbus-1 $root/var/lib/NetworkManager
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=mmap,ro sysroot /tmp/sysroot || bail "the sysroot is there"
mount --bind /tmp/sysroot/usr $root/usr
for name in bin sbin lib lib64; do ln -s usr/$name $root/$name; done
ln -s ../run $root/var/run
mount -t proc proc $root/proc
# Read-only sysfs tells NetworkManager that there is no udev to wait for.
mount -t sysfs -o ro sysfs $root/sys
mount --bind /dev $root/dev
# Its files are where Throughway looks for them.
mkdir -p /run/NetworkManager /run/dbus
mount --bind /run $root/run
cp /etc/passwd /etc/group $root/etc/

# Numbers in hexadecimal, as lspci has them: address class vendor:device driver.
ours() {
    throughway devices --all --json | awk -F': ' '
        function value(text) { gsub(/[",]/, "", text); return text }
        /^    "address":/ { address = value($2) }
        /^    "vendor":/ { vendor = value($2) }
        /^    "device":/ { device = value($2) }
        /^    "class":/ { class = value($2) }
        /^    "driver":/ { driver = value($2); if (driver == "null") driver = "-" }
        /^    "uses":/ { printf "%s %04x %04x:%04x %s\n", address, class / 256, vendor, device, driver }'
}
theirs() {
    lspci -vmm -k -n -D 2>/dev/null | awk '
        function tell() { if (slot) print slot, class, vendor ":" device, driver }
        /^Slot:/ { tell(); slot = $2; driver = "-" }
        /^Class:/ { class = $2 }
        /^Vendor:/ { vendor = $2 }
        /^Device:/ { device = $2 }
        /^Driver:/ { driver = $2 }
        END { tell() }'
}
overrides() {
    throughway devices --all --json | awk -F': ' '
        function value(text) { gsub(/[",]/, "", text); return text }
        /^    "address":/ { address = value($2) }
        /^    "driver":/ { driver = value($2); if (driver == "null") driver = "(none)" }
        /^    "driver-override":/ { if (value($2) != "null") print address, driver }'
}

our_modules() {
    throughway devices --all --json | awk -F'"' '
        /^    "address":/ { address = $4 }
        /^    "modules": \[$/ { inside = 1; next }
        /^    \]/ { inside = 0 }
        inside { print address, $2 }' | sort
}
their_modules() {
    lspci -vmm -k -n -D 2>/dev/null | awk '
        /^Slot:/ { slot = $2 }
        /^Module:/ { print slot, $2 }' | sort
}

cat >"$LAB_OUT/box.yaml" <<END
version: 1
devices:
  lan: {match: {address: "$pf"}}
sriov:
  lan: {num-vfs: 3, drivers-autoprobe: true, vfs: [{id: 1, vlan-id: 9}]}
vms:
  one:
    memory: 192MiB
    boot: {kernel: $GUEST_KERNEL, initrd: $GUEST_INITRD}
    nics: {lan: {pf: lan, vf: 2}}
END
more "lspci lists functions" "$(theirs | wc -l)" 8
is "every function is as lspci says" "$(ours)" "$(theirs)"
throughway apply "$LAB_OUT/box.yaml" >"$LAB_OUT/applied" 2>&1
is "VFs are made, one is lent" "$?" 0 || bail "without it nothing follows" "$(tail -n 3 "$LAB_OUT/applied")"
vf=$(vf_of "$pf" 2)
is "every function is as lspci says, VFs too" "$(ours)" "$(theirs)"
is "modules that know them are as lspci says" "$(our_modules)" "$(their_modules)"
[ "$LAB_KERNEL" != debian ] || like "a card's is among them" "$(our_modules)" "^$pf igb$"
[ "$LAB_KERNEL" != debian ] || like "explain tells them" "$(throughway explain "$pf")" "modules +igb$"
like "the lent one among them" "$(theirs)" "$vf 0200 .* vfio-pci"
# A script of bash, which is not in the image; what it calls is.
libraries=$root/usr/lib/x86_64-linux-gnu
"$libraries/ld-linux-x86-64.so.2" --library-path "$libraries" $root/usr/bin/bash $root/usr/sbin/driverctl list-overrides >"$LAB_OUT/overrides" 2>&1
like "driverctl has the lent one" "$(cat "$LAB_OUT/overrides")" "$vf vfio-pci"
is "driverctl lists the overrides that are reported, no others" "$(cat "$LAB_OUT/overrides")" "$(overrides)"

# NetworkManager, which keeps one link by a connection of its own.
mkdir -p $root/etc/NetworkManager/system-connections $root/etc/NetworkManager/conf.d
echo 0123456789abcdef0123456789abcdef >$root/etc/machine-id
cat >$root/etc/NetworkManager/NetworkManager.conf <<END
[main]
plugins=keyfile
auth-polkit=false
no-auto-default=*
[keyfile]
unmanaged-devices=*,except:interface-name:$link,except:interface-name:br9
END
cat >$root/etc/NetworkManager/system-connections/lan.nmconnection <<END
[connection]
id=lan
uuid=8c1f2a3e-52b7-4ad0-9f6d-2a0d3f3f7f31
type=ethernet
interface-name=$link
[ipv4]
method=manual
address1=10.9.0.1/24
[ipv6]
method=disabled
END
chmod 600 $root/etc/NetworkManager/system-connections/lan.nmconnection
cat >$root/etc/dbus-1/box.conf <<END
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>unix:path=/run/dbus/system_bus_socket</listen>
  <auth>EXTERNAL</auth>
  <policy context="default"><allow user="*"/><allow own="*"/>
    <allow send_type="method_call"/><allow send_type="method_return"/><allow send_type="signal"/><allow send_type="error"/>
    <allow receive_type="method_call"/><allow receive_type="method_return"/><allow receive_type="signal"/><allow receive_type="error"/>
    <allow send_destination="*" eavesdrop="true"/>
  </policy>
</busconfig>
END
chroot $root /usr/bin/dbus-daemon --config-file=/etc/dbus-1/box.conf --nofork --nopidfile >"$LAB_OUT/dbus.log" 2>&1 &
bus=$!
retry 5 test -S /run/dbus/system_bus_socket
chroot $root /usr/sbin/NetworkManager --debug >"$LAB_OUT/nm.log" 2>&1 &
manager=$!
nmcli() { LC_ALL=C chroot $root /usr/bin/nmcli "$@"; }
has_address() { ip -br address show "$link" | grep -q 10.9.0.1/24; }
retry 20 has_address
check "NetworkManager has set the link" has_address || bail "without it nothing follows" "$(tail -n 3 "$LAB_OUT/nm.log" "$LAB_OUT/dbus.log")"
like "nmcli says so" "$(nmcli -t device)" "$link:ethernet:connected:lan"

cat >"$LAB_OUT/bridged.yaml" <<END
version: 1
networks:
  br9: {type: bridge, ports: {$link: {}}, addresses: [10.9.0.1/24]}
END
throughway plan "$LAB_OUT/bridged.yaml" >"$LAB_OUT/refused" 2>&1
is "a change of its link is refused" "$?" 1
like "with who keeps it" "$(cat "$LAB_OUT/refused")" "$link. is kept by NetworkManager .connection 8c1f2a3e"
like "explain tells it too" "$(throughway explain "$(bdf_of igb 1)")" "$link is kept by NetworkManager"
like "nothing was touched" "$(nmcli -t device)" "$link:ethernet:connected:lan"

# What the refusal says is to be done.
command=$(sed -n 's/.*leave it alone: //p' "$LAB_OUT/refused" | head -n 1 | sed "s#/etc/NetworkManager#$root/etc/NetworkManager#")
eval "$command" >"$LAB_OUT/released" 2>&1
is "what the refusal says can be done" "$?" 0
sleep 1
like "NetworkManager lets go of the link" "$(nmcli -t device)" "$link:ethernet:unmanaged"
check "and leaves its address, so that nobody is locked out" has_address
throughway apply "$LAB_OUT/bridged.yaml" >"$LAB_OUT/bridged" 2>&1
is "then it is a port of the bridge" "$?" 0
sleep 3
like "NetworkManager sees a bridge that others have set" "$(nmcli -t device)" "br9:bridge:connected .externally."
throughway status >"$LAB_OUT/status" 2>&1
is "and leaves it as it is" "$?" 0
sed -i 's/10.9.0.1/10.9.0.2/' "$LAB_OUT/bridged.yaml"
throughway apply "$LAB_OUT/bridged.yaml" >>"$LAB_OUT/bridged" 2>&1
is "a bridge that it only lists can be changed again" "$?" 0
like "and has the new address" "$(ip -br address show br9)" "10.9.0.2/24"

kill $manager $bus
wait $manager $bus 2>/dev/null
printf 'version: 1\n' >"$LAB_OUT/none.yaml"
throughway apply "$LAB_OUT/none.yaml" >"$LAB_OUT/none" 2>&1
is "all is given back" "$?" 0
rm -rf /run/NetworkManager /run/dbus
umount $root/run $root/dev $root/sys $root/proc $root/usr /tmp/sysroot
exit 0
