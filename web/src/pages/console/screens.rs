//! Screens of guests' consoles: a task for each one that somebody looks at.
//!
//! The task reads what the guest says into a terminal in memory. When nobody has looked for some minutes it lets go of the
//! console. The keyboard is another matter: it is attached for whoever types, under his name, and given back when he has
//! not typed for a while.

use std::collections::BTreeMap;
use std::num::NonZero;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::cells;
use crate::control::{Actor, Console, Problem, Shared};
use crate::pages::shape;

/// A terminal of old: what a guest on a serial line takes it for.
const ROWS: NonZero<u16> = size(24);
const COLUMNS: NonZero<u16> = size(80);
/// As many are kept at once.
const MOST: usize = 32;
/// So long one is kept that nobody looks at.
const KEPT: Duration = Duration::from_secs(300);
/// So long a keyboard is kept that nobody types on.
const TYPING: Duration = Duration::from_secs(60);
/// What comes within this belongs together.
const TOGETHER: Duration = Duration::from_millis(25);

/// A number of rows or columns; 1 where it is none.
pub(super) const fn size(count: u16) -> NonZero<u16> {
    match NonZero::new(count) {
        Some(count) => count,
        None => NonZero::<u16>::MIN,
    }
}

/// All that are kept.
#[derive(Clone, Default)]
pub(in crate::pages) struct Screens(Arc<Mutex<BTreeMap<String, Arc<Screen>>>>);

/// One of them.
pub(super) struct Screen {
    guest: String,
    terminal: Mutex<vt100::Parser>,
    /// Counts what came, from a number on that no screen before it has reached.
    version: watch::Sender<u64>,
    first: u64,
    ended: AtomicBool,
    looked: Mutex<Instant>,
    keyboard: Mutex<Option<Keyboard>>,
}

/// Somebody's keyboard.
struct Keyboard {
    name: String,
    keys: mpsc::Sender<Vec<u8>>,
}

/// A screen as it is now.
pub(super) struct Drawn {
    pub(super) rows: String,
    pub(super) version: u64,
    pub(super) ended: bool,
    pub(super) application_arrows: bool,
    pub(super) bracketed_paste: bool,
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Screens {
    /// The screen of a guest: the one that is kept, or a new one.
    ///
    /// # Errors
    /// There is no console now, or there are too many screens.
    pub(super) async fn open(
        &self,
        control: &Shared,
        by: &Actor,
        guest: &str,
    ) -> Result<Arc<Screen>, Problem> {
        if let Some(screen) = held(&self.0).get(guest).cloned() {
            let over = screen.ended.load(Ordering::Acquire);
            // One that has ended is shown once more, unless the guest runs again.
            if !over {
                *held(&screen.looked) = Instant::now();
                return Ok(screen);
            }
        }
        let console = control.console(by, guest, false).await?;
        let screen = Arc::new(Screen::new(guest));
        {
            let mut all = held(&self.0);
            if let Some(other) = all.get(guest).filter(|other| !other.ended.load(Ordering::Acquire)) {
                return Ok(Arc::clone(other));
            }
            if !all.contains_key(guest) && all.len() >= MOST {
                return Err(Problem::unavailable("Too many consoles are being looked at"));
            }
            all.insert(guest.to_owned(), Arc::clone(&screen));
        }
        let (all, task) = (self.clone(), Arc::clone(&screen));
        tokio::spawn(async move {
            task.read(console).await;
            let mut all = held(&all.0);
            if all.get(&task.guest).is_some_and(|kept| Arc::ptr_eq(kept, &task)) {
                all.remove(&task.guest);
            }
        });
        Ok(screen)
    }
}

impl Screen {
    fn new(guest: &str) -> Self {
        let first = shape::now() << 20;
        Self {
            guest: guest.to_owned(),
            terminal: Mutex::new(vt100::Parser::new(ROWS, COLUMNS, 0)),
            version: watch::Sender::new(first),
            first,
            ended: AtomicBool::new(false),
            looked: Mutex::new(Instant::now()),
            keyboard: Mutex::new(None),
        }
    }

    /// Until the console ends, or nobody has looked for long.
    async fn read(&self, mut console: Box<dyn Console>) {
        let mut bytes = vec![0; 16 << 10];
        loop {
            let left = KEPT.saturating_sub(held(&self.looked).elapsed());
            if left.is_zero() {
                break;
            }
            match timeout(left, console.read(&mut bytes)).await {
                Ok(Ok(0) | Err(_)) => break,
                Ok(Ok(count)) => {
                    if let Some(said) = bytes.get(..count) {
                        held(&self.terminal).process(said);
                    }
                    self.version.send_modify(|version| *version += 1);
                }
                // Whether somebody has looked meanwhile is seen above.
                Err(_) => {}
            }
        }
        self.ended.store(true, Ordering::Release);
        held(&self.keyboard).take();
        self.version.send_modify(|version| *version += 1);
    }

    /// Waits until it is another one than that of this version, and what belongs together has come.
    pub(super) async fn changed(&self, seen: u64) {
        let mut version = self.version.subscribe();
        // The sender is ours: it does not go away.
        let _ = version.wait_for(|version| *version != seen).await;
        tokio::time::sleep(TOGETHER).await;
    }

    /// Waits for what is kept of the console, which comes at once where there is any.
    pub(super) async fn settled(&self) {
        let _ = timeout(TOGETHER * 8, self.changed(self.first)).await;
    }

    /// As it is now.
    pub(super) fn drawn(&self) -> Drawn {
        *held(&self.looked) = Instant::now();
        let version = *self.version.borrow();
        let terminal = held(&self.terminal);
        let screen = terminal.screen();
        Drawn {
            rows: cells::rows(screen),
            version,
            ended: self.ended.load(Ordering::Acquire),
            application_arrows: screen.application_cursor(),
            bracketed_paste: screen.bracketed_paste(),
        }
    }

    /// Types something, under somebody's name.
    ///
    /// # Errors
    /// He may not, or somebody else has the keyboard.
    pub(super) async fn write(&self, control: &Shared, by: &Actor, bytes: Vec<u8>) -> Result<(), Problem> {
        let own = held(&self.keyboard).as_ref().filter(|one| one.name == by.name).map(|one| one.keys.clone());
        let bytes = match own {
            Some(keys) => match keys.send(bytes).await {
                Ok(()) => return Ok(()),
                // It was given back meanwhile.
                Err(unsent) => unsent.0,
            },
            None => bytes,
        };
        // Another's is given back first, as there is only one.
        held(&self.keyboard).take();
        let mut console = control.console(by, &self.guest, true).await?;
        let failed = |error| Problem::conflict(format!("The console takes nothing: {error}"));
        console.write_all(&bytes).await.map_err(failed)?;
        let (keys, typed) = mpsc::channel(64);
        *held(&self.keyboard) = Some(Keyboard { name: by.name.clone(), keys });
        tokio::spawn(type_on(console, typed));
        Ok(())
    }
}

/// Writes what is typed, and reads past what the guest says, which the screen has from elsewhere. It ends when nothing was
/// typed for a while, or somebody else takes the keyboard.
async fn type_on(mut console: Box<dyn Console>, mut typed: mpsc::Receiver<Vec<u8>>) {
    let mut bytes = vec![0; 4 << 10];
    let mut last = Instant::now();
    loop {
        let left = TYPING.saturating_sub(last.elapsed());
        tokio::select! {
            keys = typed.recv() => match keys {
                Some(keys) if console.write_all(&keys).await.is_ok() => last = Instant::now(),
                _ => return,
            },
            read = console.read(&mut bytes) => if !read.is_ok_and(|count| count > 0) { return },
            () = tokio::time::sleep(left) => return,
        }
    }
}
