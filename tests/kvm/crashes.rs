//! Ends that nobody wants: what the processor or KVM cannot go on from. Each ends with 5 and says what is known.

use crate::machine::{Ended, Guest, available, hardware};

fn has_registers(ended: &Ended) -> bool {
    ["rip=", "rsp=", "r13=", "cr0=", "cr3=", "efer=", "cs="].iter().all(|name| ended.log.contains(name))
}

#[test]
fn a_triple_fault_is_named_with_registers_and_the_instruction() {
    if !available() {
        return;
    }
    // The guest is reset where the file says that it may be, but not for ever.
    for (on_reset, resets) in [("restart", 2), ("exit", 0)] {
        let ended = Guest { on_reset, ..Guest::new("test=triple-fault") }.run();
        assert_eq!(ended.code, Some(5), "{}", ended.log);
        assert_eq!(ended.log.matches("The guest is reset, as a board does").count(), resets, "{}", ended.log);
        assert!(
            ended.log.contains("error: Guest `guest` crashed: Triple fault on vCPU 0\n"),
            "{}",
            ended.log
        );
        assert!(has_registers(&ended), "{}", ended.log);
        // ud2 was the last straw. On AMD, KVM has reset the processor before it tells us.
        let told = ended.log.contains("\ncode: 0f 0b ");
        assert!(told || hardware() == Some("svm"), "{}", ended.log);
    }
}

#[test]
fn the_processor_that_crashed_is_named() {
    if !available() {
        return;
    }
    let ended = Guest { cpus: "2", ..Guest::new("test=smp cpus=2 ap=triple-fault") }.run();
    assert_eq!(ended.code, Some(5), "{}", ended.log);
    assert!(ended.log.contains("Triple fault on vCPU 1\n"), "{}", ended.log);
}

#[test]
fn an_exception_that_the_guest_handles_is_no_crash() {
    if !available() {
        return;
    }
    let ended = Guest::new("test=exception").run();
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert!(ended.console.starts_with("\nEXCEPTION 6 "), "{}", ended.console);
}

#[test]
fn an_instruction_that_kvm_does_not_emulate_is_shown_in_bytes() {
    if !available() {
        return;
    }
    let ended = Guest::new("test=not-emulated").run();
    assert_eq!(ended.code, Some(5), "{}", ended.log);
    assert!(
        ended.log.contains("KVM internal error 1 (the instruction is not emulated) on vCPU 0"),
        "{}",
        ended.log
    );
    assert!(has_registers(&ended), "{}", ended.log);
    // popcnt (%rdx), %eax; ret
    assert!(ended.log.contains("\ncode: f3 0f b8 02 c3 "), "{}", ended.log);
}

#[test]
fn running_off_into_nowhere_says_so() {
    if !available() {
        return;
    }
    let ended = Guest::new("test=execute-mmio").run();
    assert_eq!(ended.code, Some(5), "{}", ended.log);
    assert!(ended.log.contains("KVM internal error"), "{}", ended.log);
    assert!(ended.log.contains("rip=00000000d0000000"), "{}", ended.log);
    assert!(
        ended.log.ends_with("code: rip points neither to guest memory nor to firmware\n"),
        "{}",
        ended.log
    );
}
