//! What keeps the machine's process from everything that it was not handed.

use std::fmt;
use std::fs;
use std::io;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, CompatLevel, Compatible as _, Ruleset, RulesetAttr as _,
    RulesetStatus, Scope,
};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
use rustix::process::{Resource, Rlimit, chdir, pivot_root, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, Gid, Uid, UnshareFlags, set_capabilities, set_no_new_privs,
    set_thread_groups, set_thread_res_gid, set_thread_res_uid, unshare_unsafe,
};

use super::split::end_with_keeper;

/// Namespaces besides those of users and of process numbers.
const NAMESPACES: UnshareFlags = UnshareFlags::NEWNS
    .union(UnshareFlags::NEWNET)
    .union(UnshareFlags::NEWIPC)
    .union(UnshareFlags::NEWUTS)
    .union(UnshareFlags::NEWCGROUP);
/// What is asked of Landlock where the kernel has it; an older one gives less.
const LANDLOCK: ABI = ABI::V6;

/// What this host does not give, in words.
#[derive(Debug, Default)]
pub struct Lacks(Vec<String>);

impl Lacks {
    /// One thing more.
    pub fn note(&mut self, what: &str, error: &io::Error) {
        self.0.push(format!("{what} ({error})"));
    }
}

impl fmt::Display for Lacks {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0.join(", "))
    }
}

/// The walls around this process.
#[derive(Debug)]
pub struct Walls {
    /// What they lack.
    pub lacks: Lacks,
    /// Users of its own.
    users: bool,
}

impl Walls {
    /// Before there are threads: no capability comes back once it is gone; a user's process gets what only root may do otherwise, in a user namespace.
    pub fn begin(mut lacks: Lacks) -> Self {
        let mut users = false;
        if !rustix::process::geteuid().is_root() {
            match own_users() {
                Ok(()) => users = true,
                Err(error) => lacks.note("a user namespace", &error),
            }
        }
        drop_bounding();
        Self { lacks, users }
    }

    /// Whether it has users of its own.
    pub fn has_users(&self) -> bool {
        self.users
    }

    /// Mounts, network, and the rest become its own: of mounts there is an empty one, of links none. On the calling thread.
    pub fn apart(&mut self) {
        let made = || -> io::Result<()> {
            // SAFETY: descriptors and memory stay shared with other threads; what is named here is this thread's alone.
            unsafe { unshare_unsafe(NAMESPACES) }?;
            empty_root()
        };
        if let Err(error) = made() {
            self.lacks.note("namespaces of its own", &error);
        }
    }

    /// The calling thread becomes that user, and may nothing; nor may what it starts. `memlock` is how much memory may be locked for devices.
    ///
    /// # Errors
    /// Anything that is not done, where this process has the rights for it: then it must not run a guest.
    pub fn enter(&mut self, user: Option<u32>, memlock: Option<u64>) -> io::Result<()> {
        // Without it, devices that need more say so as memory is locked for them.
        if memlock.is_some()
            && let Err(error) = setrlimit(Resource::Memlock, Rlimit { current: memlock, maximum: memlock })
        {
            tracing::debug!("The limit of locked memory stays as it is: {error}");
        }
        let landlock = lock_thread(user)?;
        end_with_keeper()?;
        match landlock {
            RulesetStatus::FullyEnforced => {}
            RulesetStatus::PartiallyEnforced => self.lacks.0.push("a newer Landlock".to_owned()),
            RulesetStatus::NotEnforced => self.lacks.0.push("Landlock".to_owned()),
        }
        Ok(())
    }
}

fn lock_thread(user: Option<u32>) -> io::Result<RulesetStatus> {
    if let Some(user) = user {
        set_thread_groups(&[])?;
        let (group, user) = (Gid::from_raw(user), Uid::from_raw(user));
        set_thread_res_gid(group, group, group)?;
        set_thread_res_uid(user, user, user)?;
    }
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?;
    rustix::thread::clear_ambient_capability_set()?;
    set_no_new_privs(true)?;
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    lock_land()
}

/// No more than the process has can ever be had again, by no thread that begins later. Without the right to drop them there are none to be had: no_new_privs.
fn drop_bounding() {
    for capability in CapabilitySet::all().iter() {
        let _ = rustix::thread::remove_capability_from_bounding_set(capability);
    }
}

/// Nothing of the file system can be opened, no port be bound or connected to, no abstract socket be reached, no other process be
/// sent a signal.
///
/// Before Linux 6.15 that last one holds between threads as well, where each has entered by itself. Here all that are ever sent one
/// begin later, as children of the calling thread, and are in what it has entered.
fn lock_land() -> io::Result<RulesetStatus> {
    let locked = || {
        let rules = Ruleset::default().set_compatibility(CompatLevel::BestEffort);
        let rules = rules.handle_access(AccessFs::from_all(LANDLOCK))?;
        let rules = rules.handle_access(AccessNet::from_all(LANDLOCK))?;
        let rules = rules.scope(Scope::AbstractUnixSocket | Scope::Signal)?;
        rules.create()?.restrict_self()
    };
    Ok(locked().map_err(io::Error::other)?.ruleset)
}

/// This user alone, as itself.
fn own_users() -> io::Result<()> {
    let (user, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    // SAFETY: there are no other threads, and only who this process is changes.
    unsafe { unshare_unsafe(UnshareFlags::NEWUSER) }?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/gid_map", format!("{group} {group} 1"))?;
    fs::write("/proc/self/uid_map", format!("{user} {user} 1"))
}

/// A root with nothing in it, which nobody can write to.
fn empty_root() -> io::Result<()> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::RDONLY;
    // Any folder that every Linux has; what is in it goes with the old root.
    mount("none", "/proc", "tmpfs", flags, c"size=4k,nr_inodes=2,mode=555")?;
    chdir("/proc")?;
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    chdir("/").map_err(io::Error::from)
}
