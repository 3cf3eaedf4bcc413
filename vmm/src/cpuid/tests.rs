use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn leaf(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
}

fn vendor(name: &[u8; 12], highest: u32) -> kvm_cpuid_entry2 {
    let word = |at: usize| u32::from_le_bytes(name[at..at + 4].try_into().unwrap());
    leaf(0, 0, [highest, word(0), word(8), word(4)])
}

/// What an Intel host's KVM might say, with every bit set that must not reach the guest.
fn intel() -> Vec<kvm_cpuid_entry2> {
    vec![
        vendor(b"GenuineIntel", 0x1f),
        leaf(1, 0, [0x906ea, 0x5508_0800 | 0x10_0000, !0, !0]),
        leaf(4, 0, [0xfc00_4121, 0, 0, 0]),
        leaf(4, 2, [0xfc00_4143, 0, 0, 0]),
        leaf(4, 3, [0xfc07_c163, 0, 0, 0]),
        leaf(4, 4, [0, 0, 0, 0]),
        leaf(5, 0, [64, 64, 3, 0]),
        leaf(7, 0, [0, !0, !0, !0]),
        leaf(0xb, 0, [9, 9, 9, 9]),
        leaf(0x12, 0, [1, 0, 0, 0]),
        leaf(0x8000_0001, 0, [0, 0, !0, !0]),
        leaf(0x8000_0008, 0, [0x3027, 0, 0x7007, 0]),
    ]
}

fn amd() -> Vec<kvm_cpuid_entry2> {
    vec![
        vendor(b"AuthenticAMD", 0xd),
        leaf(1, 0, [0x800f12, 0x0008_0800, 0, 0]),
        leaf(0x8000_0001, 0, [0, 0, !0, !0]),
        leaf(0x8000_0008, 0, [0x3030, 0, 0x7007, 0]),
        leaf(0x8000_000a, 0, [1, 8, 0, !0]),
        leaf(0x8000_001d, 0, [0x4121, 0, 0, 0]),
        leaf(0x8000_001d, 3, [0x1_c163, 0, 0, 0]),
        leaf(0x8000_001e, 0, [7, 7, 7, 7]),
    ]
}

fn shape(spec: CpuSpec, index: u32) -> Shape {
    Shape::new(spec, index, true).unwrap()
}

fn find(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
    let mut found = entries.iter().filter(|e| e.function == function && e.index == index);
    let entry = *found.next().unwrap();
    assert!(found.next().is_none(), "leaf {function:#x}.{index} is there twice");
    entry
}

/// What an operating system learns from leaf 0xB: (thread, core, socket) of an APIC id.
fn decode(entries: &[kvm_cpuid_entry2]) -> (u32, u32, u32) {
    let (thread, core) = (find(entries, 0xb, 0), find(entries, 0xb, 1));
    let id = thread.edx;
    let within = |shift: u32| id & ((1 << shift) - 1);
    (within(thread.eax), within(core.eax) >> thread.eax, id >> core.eax)
}

#[test]
fn three_cores_take_two_bits() {
    let spec = CpuSpec { sockets: 2, cores: 3, threads: 2 };
    let ids: Vec<_> = (0..spec.count()).map(|i| apic_id(i, spec)).collect();
    assert_eq!(ids, [0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13]);
}

#[test]
fn what_guests_must_not_see_is_gone() {
    let spec = CpuSpec { sockets: 1, cores: 2, threads: 1 };
    let entries = shape(spec, 1).apply(&intel());
    let ecx = find(&entries, 1, 0).ecx;
    assert_eq!(ecx & (LEAF1_ECX_VMX | LEAF1_ECX_MONITOR | LEAF1_ECX_PDCM | LEAF1_ECX_OSXSAVE), 0);
    assert_eq!(ecx & LEAF1_ECX_HYPERVISOR, LEAF1_ECX_HYPERVISOR);
    assert_eq!(find(&entries, 5, 0).ecx, 0);
    assert_eq!(find(&entries, 7, 0).ebx & LEAF7_EBX_SGX, 0);
    assert!(entries.iter().all(|e| e.function != 0x12));
    assert_eq!(
        find(&entries, 0x8000_0001, 0).ecx & (LEAF_8000_0001_ECX_SVM | LEAF_8000_0001_ECX_CMP_LEGACY),
        0
    );
    assert_eq!(find(&entries, 0x8000_0008, 0).ecx, 0);
    let entries = shape(spec, 1).apply(&amd());
    let svm = find(&entries, 0x8000_000a, 0);
    assert_eq!((svm.eax, svm.ebx, svm.ecx, svm.edx), (0, 0, 0, 0));
}

#[test]
fn the_deadline_timer_is_there_when_kvm_has_it() {
    let spec = CpuSpec { sockets: 1, cores: 1, threads: 1 };
    let has = |deadline| {
        let entries = Shape { deadline, ..shape(spec, 0) }.apply(&intel());
        find(&entries, 1, 0).ecx & LEAF1_ECX_TSC_DEADLINE != 0
    };
    assert!(has(true));
    assert!(!has(false));
}

#[test]
fn leaf_0x1f_is_there_only_where_leaf_0_reaches_it() {
    let spec = CpuSpec { sockets: 1, cores: 1, threads: 1 };
    assert!(shape(spec, 0).apply(&intel()).iter().any(|e| e.function == 0x1f));
    assert!(shape(spec, 0).apply(&amd()).iter().all(|e| e.function != 0x1f));
}

#[test]
fn address_width_comes_from_leaf_8000_0008() {
    let width = |eax| address_width(&[leaf(0x8000_0008, 0, [eax, 0, 0, 0])]);
    assert_eq!(address_width(&intel()), 0x27);
    assert_eq!((width(0x3934), width(0x30_3934), width(0x34_3934)), (48, 48, 52));
    assert_eq!(address_width(&[]), 36);
}

#[test]
fn no_processors_at_all_are_refused() {
    let spec = CpuSpec { sockets: 1, cores: 0, threads: 1 };
    assert!(matches!(Shape::new(spec, 0, true), Err(Error::Topology(_))));
}

#[test]
fn this_hosts_kvm_takes_it() {
    let Some(kvm) = crate::boot::tests::kvm() else { return };
    let spec = CpuSpec { sockets: 1, cores: 3, threads: 2 };
    let template = Template::new(Supported::ask(&kvm).unwrap(), spec).unwrap();
    assert!((36..=52).contains(&template.supported.physical_address_bits()));
    let vm = kvm.create_vm().unwrap();
    vm.create_irq_chip().unwrap();
    for index in 0..spec.count() {
        let vcpu = vm.create_vcpu(u64::from(template.apic_id(index))).unwrap();
        let cpuid = template.for_vcpu(index).unwrap();
        vcpu.set_cpuid2(&cpuid).unwrap();
        let back = vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES).unwrap();
        assert_eq!(find(back.as_slice(), 0xb, 1).edx, apic_id(index, spec));
        assert_eq!(&find(back.as_slice(), 0x4000_0000, 0).ebx.to_le_bytes(), b"KVMK");
    }
}

fn specs() -> impl Strategy<Value = CpuSpec> {
    (1_u32..=4, 1_u32..=64, 1_u32..=2).prop_map(|(sockets, cores, threads)| CpuSpec {
        sockets,
        cores,
        threads,
    })
}

proptest! {
    #[test]
    fn ids_differ_and_decode_to_where_the_vcpu_is(spec in specs()) {
        let mut ids = BTreeSet::new();
        for index in 0..spec.count() {
            let entries = shape(spec, index).apply(&intel());
            let place = decode(&entries);
            let expected = (index % spec.threads, index / spec.threads % spec.cores, index / spec.threads / spec.cores);
            prop_assert_eq!(place, expected);
            ids.insert(find(&entries, 0xb, 0).edx);
        }
        prop_assert_eq!(ids.len(), spec.count() as usize);
    }

    #[test]
    fn the_leaves_agree_on_the_topology(spec in specs(), index in 0_u32..512) {
        let index = index % spec.count();
        let entries = shape(spec, index).apply(&intel());
        let logical = spec.cores * spec.threads;
        let (thread, core, end) = (find(&entries, 0xb, 0), find(&entries, 0xb, 1), find(&entries, 0xb, 2));
        prop_assert_eq!((thread.ebx, core.ebx, end.ebx), (spec.threads, logical, 0));
        prop_assert_eq!((thread.ecx, core.ecx, end.ecx), (0x100, 0x201, 2));
        // Leaf 1: rounded up to a power of two, the count is the number of ids that a socket takes.
        let one = find(&entries, 1, 0);
        prop_assert_eq!((one.ebx >> 16 & 0xff).next_power_of_two(), 1 << core.eax);
        prop_assert_eq!(one.edx & LEAF1_EDX_HTT != 0, logical > 1);
        prop_assert_eq!(one.ebx >> 24, core.edx & 0xff);
        prop_assert_eq!(one.ebx >> 8 & 0xff, 8);
        // Leaf 4: first- and second-level caches are a core's, the last level is the socket's.
        for (sub, shift) in [(0, thread.eax), (2, thread.eax), (3, core.eax)] {
            prop_assert_eq!((find(&entries, 4, sub).eax >> 14 & 0xfff) + 1, 1 << shift);
        }
        prop_assert_eq!((find(&entries, 4, 0).eax >> 26) + 1, spec.cores.next_power_of_two());
        prop_assert_eq!(find(&entries, 4, 4).eax, 0);
    }

    #[test]
    fn amd_leaves_agree_too(spec in specs(), index in 0_u32..512) {
        let index = index % spec.count();
        let entries = shape(spec, index).apply(&amd());
        let logical = spec.cores * spec.threads;
        let (size, ids) = (find(&entries, 0x8000_0008, 0).ecx, find(&entries, 0x8000_001e, 0));
        prop_assert_eq!((size & 0xff) + 1, logical);
        prop_assert_eq!(size >> 12, find(&entries, 0xb, 1).eax);
        prop_assert_eq!(ids.eax, apic_id(index, spec));
        prop_assert_eq!(ids.ebx, (index / spec.threads % spec.cores) | ((spec.threads - 1) << 8));
        prop_assert_eq!(ids.ecx, index / logical);
        prop_assert_eq!((find(&entries, 0x8000_001d, 0).eax >> 14 & 0xfff) + 1, spec.threads);
        prop_assert_eq!((find(&entries, 0x8000_001d, 3).eax >> 14 & 0xfff) + 1, logical);
        let legacy = find(&entries, 0x8000_0001, 0).ecx & LEAF_8000_0001_ECX_CMP_LEGACY;
        prop_assert_eq!(legacy != 0, logical > 1);
    }

    #[test]
    fn any_topology_is_numbered_or_refused(sockets in 0_u32..40, cores: u32, threads: u32, index: u32, small in 0_u32..32) {
        let spec = CpuSpec { sockets, cores: cores >> small, threads: threads >> (31 - small) };
        apic_id(index, spec);
        if let Ok(shape) = Shape::new(spec, index, true) {
            shape.apply(&intel());
            shape.apply(&amd());
        }
    }
}
