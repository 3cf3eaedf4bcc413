//! Each request: may he, what is answered, and what is written down of it.

use std::os::unix::net::UnixStream;

use futures_util::future::BoxFuture;
use tokio::sync::broadcast;
use web::wire::Event;
use web::{Actor, Answer, Console, Control, Problem, Request, Right, Upload};

use super::Admin;
use super::remote::permit;

/// What the audit log says more of a request, as it becomes known.
#[derive(Default)]
pub(super) struct Detail(pub(super) String);

impl Control for Admin {
    fn ask(&self, by: &Actor, request: Request) -> BoxFuture<'_, Result<Answer, Problem>> {
        let by = by.clone();
        Box::pin(async move {
            let right = request.right();
            if right == Right::View && !matches!(request, Request::Note { .. }) {
                permit(&by, right)?;
                return self.answer(&by, request, &mut Detail::default()).await;
            }
            let what = said(&request);
            let mut detail = Detail(about(&request));
            let answer = match permit(&by, right).and_then(|()| self.may_be_written_down(&request)) {
                Ok(()) => self.answer(&by, request, &mut detail).await,
                Err(problem) => Err(problem),
            };
            // Reading it is no change; being refused that is.
            if matches!(answer, Ok(Answer::Audit(_))) {
                return answer;
            }
            let is_note = matches!(answer, Ok(Answer::Note(())));
            match self.write_down(&by, what, detail.0, answer.as_ref().err()).await {
                // Who has something noted does it only then.
                Err(problem) if is_note => Err(problem),
                _ => answer,
            }
        })
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.0.events.subscribe()
    }

    fn console(
        &self,
        by: &Actor,
        guest: &str,
        writes: bool,
    ) -> BoxFuture<'_, Result<Box<dyn Console>, Problem>> {
        let (by, guest) = (by.clone(), guest.to_owned());
        Box::pin(async move {
            let (first, socket) = self.attach(&by, &guest, writes).await?;
            let failed = |error: std::io::Error| super::fault(error);
            socket.set_nonblocking(true).map_err(failed)?;
            let socket = tokio::net::UnixStream::from_std(socket).map_err(failed)?;
            let (read, write) = socket.into_split();
            let read = tokio::io::AsyncReadExt::chain(std::io::Cursor::new(first), read);
            Ok(Box::new(tokio::io::join(read, write)) as Box<dyn Console>)
        })
    }

    fn upload(&self, by: &Actor, name: &str, length: u64) -> BoxFuture<'_, Result<Upload, Problem>> {
        let (by, name) = (by.clone(), name.to_owned());
        Box::pin(async move {
            let begun = match permit(&by, Right::Administer) {
                Ok(()) => self.begin_upload(&by, &name, length).await,
                Err(problem) => Err(problem),
            };
            if let Err(problem) = &begun {
                let detail = format!("{name}, {length} bytes");
                // It was refused anyhow.
                let _ = self.write_down(&by, "upload an image", detail, Some(problem)).await;
            }
            begun
        })
    }

    fn is_there(&self) -> bool {
        !self.0.parts.wishes.is_closed()
    }
}

impl Admin {
    async fn answer(&self, by: &Actor, request: Request, detail: &mut Detail) -> Result<Answer, Problem> {
        Ok(match request {
            Request::Overview {} => Answer::Overview(self.overview().await?),
            Request::Devices {} => Answer::Devices(self.devices().await?),
            Request::Networks {} => Answer::Networks(self.networks().await?),
            Request::Guests {} => Answer::Guests(self.guests().await),
            Request::GuestStats { guest } => Answer::GuestStats(self.guest_stats(&guest).await?),
            Request::Act { guest, verb } => Answer::Act(self.act(&guest, verb).await?),
            Request::Config {} => Answer::Config(self.config().await?),
            Request::Edit { text, edit } => Answer::Edit(self.edit(text, edit).await?),
            Request::Defined { text, guest } => Answer::Defined(self.defined(text, guest).await?),
            Request::Check { text } => Answer::Check(self.check(by, text).await?),
            Request::Plan { text } => Answer::Plan(self.plan(by, text).await?),
            Request::Save { text, tag } => Answer::Save(self.save(by, text, tag, detail).await?),
            Request::Apply { tag } => Answer::Apply(self.apply(by, tag, detail).await?),
            Request::Confirm { change } => Answer::Confirm(self.confirm(by, change).await?),
            Request::Rollback {} => Answer::Rollback(self.rollback(by, detail).await?),
            Request::Changes {} => Answer::Changes(self.changes().await?),
            Request::Drift {} => Answer::Drift(self.drift().await?.unwrap_or_default()),
            Request::Doctor {} => Answer::Doctor(self.doctor().await?),
            Request::Log { guest, console, lines } => {
                Answer::Log(self.log(guest.as_deref(), console, lines).await?)
            }
            Request::Audit { before, limit } => Answer::Audit(self.audit(before, limit).await?),
            Request::Images {} => Answer::Images(self.images().await?),
            Request::FinishUpload { upload } => Answer::FinishUpload(self.finish(by, upload, detail).await?),
            Request::GiveUpUpload { upload, why } => {
                Answer::GiveUpUpload(self.give_up(by, upload, &why, detail).await?)
            }
            Request::RemoveImage { name } => Answer::RemoveImage(self.remove_image(&name).await?),
            Request::Note { .. } => Answer::Note(()),
        })
    }

    /// A guest's console, as its socket, with what came of it already.
    pub(super) async fn attach(
        &self,
        by: &Actor,
        guest: &str,
        writes: bool,
    ) -> Result<(Vec<u8>, UnixStream), Problem> {
        let right = if writes { Right::Operate } else { Right::View };
        let attached = match permit(by, right) {
            Ok(()) => self.open_console(guest, writes).await,
            Err(problem) => Err(problem),
        };
        if writes {
            let detail = format!("guest `{guest}`");
            self.write_down(by, "attach to the console", detail, attached.as_ref().err()).await?;
        }
        attached
    }
}

/// What the audit log calls it.
fn said(request: &Request) -> &'static str {
    match request {
        Request::Act { verb, .. } => match verb {
            web::Verb::Start => "start a guest",
            web::Verb::Stop => "stop a guest",
            web::Verb::Kill => "pull a guest's plug",
            web::Verb::Pause => "pause a guest",
            web::Verb::Resume => "resume a guest",
            web::Verb::Reset => "reset a guest",
            web::Verb::PowerButton => "press a guest's power button",
        },
        Request::Save { .. } => "save the file",
        Request::Apply { .. } => "apply the file",
        Request::Confirm { .. } => "confirm a change",
        Request::Rollback {} => "put the last change back",
        Request::FinishUpload { .. } => "upload an image",
        Request::GiveUpUpload { .. } => "give an upload up",
        Request::RemoveImage { .. } => "remove an image",
        Request::Audit { .. } => "read the audit log",
        Request::Note { .. } => "note",
        other => other.name(),
    }
}

/// What it says more, before it is done.
fn about(request: &Request) -> String {
    match request {
        Request::Act { guest, .. } => format!("guest `{guest}`"),
        Request::Confirm { change } => format!("change {change}"),
        Request::RemoveImage { name } => name.clone(),
        Request::Note { what, detail } => format!("{what}\n{detail}"),
        _ => String::new(),
    }
}
