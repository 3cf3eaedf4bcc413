use super::*;

fn vm(text: &str) -> Vm {
    serde_yaml::from_str(text).unwrap()
}

fn refusal(vm: &Vm, name: &str) -> String {
    only(vm, name).map(|_| ()).unwrap_err().to_string()
}

const VM: &str = "
memory: 256MiB
boot: {kernel: vmlinuz}
rng: true
vsock: {cid: 42}
disks:
  root: {path: root.img, format: raw}
  data: {path: data.img, format: raw}
nics:
  lan: {network: br0}
  data: {network: br1}
pci:
  gpu: {device: gpu}
";

#[test]
fn one_device_alone_is_found_by_its_key_or_its_whole_name() {
    let vm = vm(VM);
    let keys = |vm: &Vm| {
        let all = [
            &mut vm.nics.keys() as &mut dyn Iterator<Item = &String>,
            &mut vm.disks.keys(),
            &mut vm.pci.keys(),
        ];
        (all.into_iter().flatten().cloned().collect::<Vec<_>>(), vm.rng)
    };
    for (name, key) in [("root", "root"), ("disk root", "root"), ("nic data", "data"), ("pci gpu", "gpu")] {
        assert_eq!(keys(&only(&vm, name).unwrap()), (vec![key.to_owned()], false), "{name}");
    }
    assert_eq!(keys(&only(&vm, "rng").unwrap()), (Vec::new(), true));
}

#[test]
fn a_name_of_none_of_several_or_of_what_stays_is_refused() {
    let vm = vm(VM);
    assert_eq!(refusal(&vm, "data"), "`data` may be `nic data` or `disk data`; say which");
    let none = "There is no device `wan`; it has nic data, nic lan, disk data, disk root, pci gpu. Write it into the file first";
    assert_eq!(refusal(&vm, "wan"), none);
    assert!(refusal(&vm, "disk gpu").starts_with("There is no device `disk gpu`"));
    for name in ["console", "vsock"] {
        assert!(refusal(&vm, name).contains("cannot be added while it runs"), "{name}");
    }
}
