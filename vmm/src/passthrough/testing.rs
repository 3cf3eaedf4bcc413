//! What these tests run on: a machine of KVM's.

use std::sync::Arc;

use crate::vm::Vm;

/// The test's machine, or `None` where there is no KVM, with the reason printed.
pub(crate) fn vm() -> Option<Arc<Vm>> {
    match Vm::new() {
        Ok(vm) => {
            vm.create_interrupt_controllers().unwrap();
            Some(Arc::new(vm))
        }
        Err(error) => {
            let required = std::env::var("REQUIRE").is_ok_and(|suites| suites.split(',').any(|s| s == "kvm"));
            assert!(!required, "KVM is required: {error}");
            eprintln!("skipped: {error}");
            None
        }
    }
}
