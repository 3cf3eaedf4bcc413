//! A change of the kernel's command line, in the words of the boot loader. Proposed, never made.

use std::fmt;

use serde::Serialize;

/// Who hands the kernel its command line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Loader {
    /// /etc/default/grub.
    Grub,
    /// /etc/kernel/cmdline, as systemd-boot and unified kernel images have it.
    Systemd,
    /// Another one, or none that could be found.
    #[default]
    Unknown,
}

/// What to add, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Edit {
    /// The boot loader.
    pub loader: Loader,
    /// The words to add.
    pub add: String,
}

impl Edit {
    /// What of `wanted` is not there yet; none where nothing lacks.
    pub(super) fn propose(loader: &Loader, there: &[String], wanted: &[String]) -> Option<Self> {
        let lacks = |words: &&String| !words.split(' ').all(|word| there.iter().any(|other| other == word));
        let add: Vec<&str> = wanted.iter().filter(lacks).map(String::as_str).collect();
        (!add.is_empty()).then(|| Self { loader: *loader, add: add.join(" ") })
    }
}

impl fmt::Display for Edit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let add = &self.add;
        match self.loader {
            Loader::Grub => write!(
                f,
                "in /etc/default/grub:\n  -GRUB_CMDLINE_LINUX_DEFAULT=\"...\"\n  +GRUB_CMDLINE_LINUX_DEFAULT=\"... {add}\"\nthen: update-grub (grub2-mkconfig -o /boot/grub2/grub.cfg on Fedora), and reboot"
            ),
            Loader::Systemd => write!(
                f,
                "in /etc/kernel/cmdline:\n  -...\n  +... {add}\nthen: kernel-install add-all (or mkinitcpio -P, dracut --regenerate-all), and reboot"
            ),
            Loader::Unknown => write!(f, "where your boot loader has it, add:\n  +{add}\nand reboot"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lacks_is_added() {
        let there = ["quiet".to_owned(), "iommu=pt".to_owned()];
        let wanted = ["intel_iommu=on".to_owned(), "iommu=pt".to_owned()];
        let edit = Edit::propose(&Loader::Grub, &there, &wanted).unwrap();
        assert_eq!(edit.add, "intel_iommu=on");
        assert!(edit.to_string().contains("+GRUB_CMDLINE_LINUX_DEFAULT=\"... intel_iommu=on\""));
        assert_eq!(Edit::propose(&Loader::Grub, &there, &wanted[1..]), None);
    }
}
