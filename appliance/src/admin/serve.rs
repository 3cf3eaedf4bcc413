//! The daemon's end of the socket: each request is answered by a task of its own, as many at once as are worth it.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::net::UnixStream;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Semaphore, mpsc};
use web::Control as _;

use super::Admin;
use super::link::{Asking, Given, Hello, Telling, What, both};

/// Requests that are answered at once.
const AT_ONCE: usize = 32;
/// Answers that may wait to be written.
const WAITING: usize = 64;

/// Serves until the other end is gone.
pub(super) async fn serve(
    admin: &Admin,
    stream: UnixStream,
    hello: Hello,
    beside: Vec<OwnedFd>,
) -> io::Result<()> {
    let (mut reader, mut writer) = both(stream, true);
    // Before it can ask how anything is: what happens from then on is told.
    let mut events = admin.events();
    writer.write(&Telling::Hello(hello), &beside).await?;
    drop(beside);
    let (to, mut said) = mpsc::channel::<(Telling, Vec<OwnedFd>)>(WAITING);
    let write = async {
        while let Some((telling, beside)) = said.recv().await {
            writer.write(&telling, &beside).await?;
        }
        Ok(())
    };
    let tell = {
        let to = to.clone();
        async move {
            loop {
                match events.recv().await {
                    Ok(event) => {
                        if to.send((Telling::Event(event), Vec::new())).await.is_err() {
                            return Ok(());
                        }
                    }
                    // It looks anew at what it shows when it is told of the next one.
                    Err(RecvError::Lagged(count)) => tracing::debug!("{count} events were missed"),
                    Err(RecvError::Closed) => return std::future::pending().await,
                }
            }
        }
    };
    let hear = async {
        let room = Arc::new(Semaphore::new(AT_ONCE));
        while let Some((asking, _)) = reader.next::<Asking>().await? {
            let Ok(turn) = Arc::clone(&room).acquire_owned().await else { break };
            let (admin, to) = (admin.clone(), to.clone());
            tokio::spawn(async move {
                let telling = answer(&admin, asking).await;
                drop(turn);
                let _ = to.send(telling).await;
            });
        }
        Ok(())
    };
    tokio::select! {
        ended = write => ended,
        ended = tell => ended,
        ended = hear => ended,
    }
}

async fn answer(admin: &Admin, asking: Asking) -> (Telling, Vec<OwnedFd>) {
    let Asking { id, by, what } = asking;
    let mut beside = Vec::new();
    let answer = match what {
        What::Request(request) => admin.ask(&by, request).await.map(Given::Answer),
        What::Console { guest, writes } => admin.attach(&by, &guest, writes).await.map(|(first, socket)| {
            beside.push(socket.into());
            Given::Console { first }
        }),
        What::Upload { name, length } => admin.upload(&by, &name, length).await.map(|upload| {
            beside.push(upload.file.into());
            Given::Upload { upload: upload.id }
        }),
    };
    (Telling::Answer { id, answer }, beside)
}
