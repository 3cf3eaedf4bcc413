# proves: Functions of the kernel's VFIO keep the contract that passthrough is built on.
# needs: nothing
# examples: contract
# timeout: 180
. /share/box/lib.sh

# contract NAME BDF SKIPPED: runs the suite on a function that it binds. Of what is skipped, each must be like SKIPPED.
contract() {
    name=$1 bdf=$2 skipped=$3
    check "$name: it is bound to vfio-pci" bind "$bdf" vfio-pci || return
    contract_binary "$bdf" >"$LAB_OUT/$name.tap" 2>"$LAB_OUT/$name.err"
    status=$?
    cat "$LAB_OUT/$name.tap" "$LAB_OUT/$name.err"
    while IFS= read -r line; do
        text=${line#*ok * - }
        case $line in
        "ok "*" # SKIP "*)
            printf '%s\n' "$text" | grep -Eq -- "$skipped" || not_ok "$name: ${text%% # *}" "skipped: ${text#* # SKIP }"
            ;;
        "ok "*) ok "$name: $text" ;;
        "not ok "*) not_ok "$name: ${text%% # *}" "${text#* # }" ;;
        "Bail out"*) not_ok "$name: the suite runs" "$line" ;;
        esac
    done <"$LAB_OUT/$name.tap"
    is "$name: the suite ends well" "$status" 0
    like "$name: it went by the interface that this kernel has" "$(head -n 1 "$LAB_OUT/$name.tap")" "by $backend\$"
}
contract_binary() { /share/bin/contract "$@"; }

case $LAB_KERNEL in
iommufd) backend=Iommufd ;;
*) backend=Group ;;
esac

# What no function of the kernel's can be made to do here.
never='^a function that is gone'

contract edu "$(bdf_of edu)" "$never|neighbours|^a reset"
contract e1000e "$(bdf_of e1000e)" "$never|^the device reaches|^nothing is reached|^each vector|neighbours|^a vector that"

pf=$(bdf_of igb 0)
check "the PF comes up" pf_up "$pf"
vfs "$pf" 2
contract vf "$(vf_of "$pf" 1)" "$never|^the device reaches|^nothing is reached|^INTx|^only one kind"
