//! What must happen after a register write.

/// What a device asks for when it is written to, or when one of its descriptors is ready.
///
/// A device never calls its bus or its machine back: it returns one of these, and whoever called it acts.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
#[must_use]
pub enum Action {
    /// Nothing beyond the device itself.
    #[default]
    None,
    /// The guest powers the machine off (ACPI S5).
    PowerOff,
    /// The guest resets the machine (0xCF9, i8042, ACPI reset register).
    Reset,
    /// The guest's kernel panicked (pvpanic); the policy `on-panic` decides.
    Panicked,
    /// The guest's kernel panicked and left the rest to its crash kernel.
    CrashKernel,
    /// The guest's watchdog was not reloaded in time; the policy `watchdog` decides.
    WatchdogExpired,
    /// A device failed in a way that the policy `on-device-error` decides about.
    DeviceError {
        /// The label of the function: `0000:65:10.2`.
        device: String,
        /// What it reported, for a person.
        what: String,
    },
}
