# proves: Debian's OVMF starts from flash, learns of the machine by fw_cfg, reaches its shell on the serial console, and keeps a variable over a cold start and a killed VMM.
# kernels: debian
# suite: uefi
# timeout: 270
. /share/box/lib.sh

peer_mount
# QEMU's emulated SVM ends at once ("bql_locked") when a guest writes CR8 while an interrupt waits for it, and that is how each
# of the firmware's interrupt handlers ends. With time between two ticks of its timer the handlers are done before the next one.
echo 100000 >/sys/module/kvm/parameters/min_timer_period_us
ovmf=/sysroot/usr/share/OVMF
cat >/run/uefi.yaml <<END
version: 1
vms:
  uefi:
    cpus: {count: 2}
    memory: 256MiB
    boot: {firmware: {code: $ovmf/OVMF_CODE_4M.fd, vars: $ovmf/OVMF_VARS_4M.fd}}
  wrong:
    memory: 256MiB
    boot: {firmware: {code: $ovmf/OVMF_CODE.fd, vars: $ovmf/OVMF_VARS_4M.fd}}
END
vars=/var/lib/throughway/firmware/uefi.vars.fd

# types NAME TEXT: as a person would, a line into the guest's shell.
types() { printf '%s\r' "$2" >"/run/guest-$1/in"; }
# shells NAME NUMBER: so many prompts of the shell have come.
shells() { [ "$(grep -ao 'Shell> ' "$LAB_OUT/$1.console" | wc -l)" -ge "$2" ]; }
shells_or_gone() { shells "$1" 1 || ! guest_running "$1"; }
asks_or_gone() { grep -aq 'Press ' "$LAB_OUT/$1.console" || ! guest_running "$1"; }
# in_shell NAME: the firmware's shell is there. A key ends the time that it gives its start-up script.
in_shell() {
    retry 200 asks_or_gone "$1"
    types "$1" ''
    retry 60 shells_or_gone "$1"
    shells "$1" 1 || { tail -c 2000 "$LAB_OUT/$1.console"; head -n 5 "$LAB_OUT/$1.err"; return 1; }
}
has() { grep -aq -- "$2" "$LAB_OUT/$1.console"; }

throughway run /run/uefi.yaml --vm wrong >/run/wrong 2>&1
is "firmware whose halves are of two builds is refused" "$?" 1
like "with the reason" "$(cat /run/wrong)" 'do not go together'

guest_start first /run/uefi.yaml uefi
check "OVMF reaches its shell" in_shell first || bail "without firmware"
types first 'setvar Throughway -guid 5e9c7a1f-4b1d-4c59-9f0e-2f6d8a3b7c10 -bs -rt -nv =L"kept"'
check "a variable is set" retry 30 shells first 2
types first 'smbiosview -t 1'
check "SMBIOS tells of the machine" retry 30 has first 'Product'
throughway run /run/uefi.yaml --vm uefi >/run/second 2>&1 </dev/null
is "a second start of the guest is refused" "$?" 1
like "with the reason" "$(cat /run/second)" 'Guest `uefi` runs already'
guest_kill first
check "the killed VMM left changes behind the image" test "$(stat -c %s "$vars")" -gt 540672

guest_start again /run/uefi.yaml uefi
check "it starts again" in_shell again || bail "without firmware"
types again 'setvar Throughway -guid 5e9c7a1f-4b1d-4c59-9f0e-2f6d8a3b7c10'
check "the variable has been kept" retry 30 has again '6B 00 65 00 70 00 74 00'
types again 'reset -s'
is "the guest powers off" "$(guest_wait again 60)" 0
is "and leaves a plain image" "$(stat -c %s "$vars")" 540672
