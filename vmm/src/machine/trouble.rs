//! What the guest's file wants done when something goes wrong: a processor that crashes, a panic, a watchdog, a device's error.

use std::time::Instant;

use super::{Error, Running};
use crate::Outcome;
use crate::control::Message;
use crate::outcome::{Crash, CrashKind};
use crate::spec::{OnDeviceError, OnReset, OnTrouble};

impl Running {
    /// A processor that a triple fault shut down is reset by the board (Intel SDM, volume 3, 7.15, interrupt 8), and some
    /// systems restart that way. Anything else is the end.
    pub(super) fn crash(&mut self, crash: Box<Crash>) -> Result<Option<Outcome>, Error> {
        let restarts = self.machine.spec.on_reset == OnReset::Restart;
        if crash.kind != CrashKind::TripleFault || !restarts || !self.shutdowns.may_reset(Instant::now()) {
            return Ok(Some(Outcome::Crash(crash)));
        }
        tracing::warn!("{crash}\nThe guest is reset, as a board does after a triple fault");
        self.reset()
    }

    pub(super) fn trouble(
        &mut self,
        what: &'static str,
        key: &str,
        policy: Option<OnTrouble>,
    ) -> Result<Option<Outcome>, Error> {
        match policy.unwrap_or(OnTrouble::Log) {
            OnTrouble::Log => {
                tracing::error!("The guest is in trouble: {what}; it goes on, as `{key}: log` asks");
                Ok(None)
            }
            OnTrouble::Pause => {
                tracing::error!("The guest is in trouble: {what}; it is paused, as `{key}: pause` asks");
                if let Message::Error(refusal) = self.pause() {
                    tracing::error!("Pausing the guest: {}", refusal.message);
                }
                Ok(None)
            }
            OnTrouble::Reset => {
                tracing::error!("The guest is in trouble: {what}; it is reset, as `{key}: reset` asks");
                self.reset()
            }
            OnTrouble::Stop => Ok(Some(Outcome::Trouble { what })),
        }
    }

    pub(super) fn device_error(&mut self, device: String, what: String) -> Result<Option<Outcome>, Error> {
        match self.machine.spec.on_device_error {
            OnDeviceError::Ignore => {
                tracing::warn!("{device}: {what}; ignored, as `on-device-error: ignore` asks");
                Ok(None)
            }
            OnDeviceError::Stop => Ok(Some(Outcome::DeviceError { device, what })),
            OnDeviceError::Reset => {
                tracing::warn!("{device}: {what}; the guest is reset, as `on-device-error: reset` asks");
                self.reset()
            }
            OnDeviceError::Detach => {
                tracing::warn!(
                    "{device}: {what}; it is taken from the guest, as `on-device-error: detach` asks"
                );
                let leaving = self.hierarchy.detach(&device, &self.events);
                self.with_hotplug(|hotplug, parts| hotplug.detached(leaving, parts));
                Ok(None)
            }
        }
    }
}
