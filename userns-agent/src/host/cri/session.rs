//! One connection to the runtime, from the first list to its end.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tonic::Code;

use super::client::{Client, CriError, Version};
use super::wanted::{AFTER_EVENTS, Wanted};
use super::{CriWatcher, proto};
use crate::host::SourceState;

/// Events on their way from the connection. A runtime must not wait for us: kubelet would as well (CRI-O).
const EVENTS: usize = 1024;

/// A connection and what it is good for.
pub(super) struct Session<'a> {
    watcher: &'a mut CriWatcher,
    client: Client,
    version: Version,
    /// What is said of handlers with user namespaces, once the runtime was asked.
    handlers: Option<String>,
    events: Option<Events>,
    wanted: Wanted,
    /// Nudges that were lost before the last list.
    lost: u64,
    /// What failed since everything was well, not being the end of the connection.
    failure: Option<String>,
}

impl<'a> Session<'a> {
    pub(super) fn new(watcher: &'a mut CriWatcher, client: Client, version: Version) -> Self {
        let wanted = Wanted::default();
        Self { watcher, client, version, handlers: None, events: None, wanted, lost: 0, failure: None }
    }

    /// Lists everything and follows changes until the connection ends, or, which is no error, until nobody takes
    /// facts any more.
    pub(super) async fn run(mut self) -> Result<(), CriError> {
        self.events = self.has_events().then(|| Events::subscribe(self.client.clone()));
        // the list knows what was nudged about before it
        while self.watcher.nudges.try_recv().is_ok() {}
        self.list().await?;
        if self.watcher.facts.send(vec![self.watcher.table.all()]).await.is_err() {
            return Ok(());
        }
        let period = self.watcher.times.list;
        // what was being made when the first list was taken is on one soon after it
        let mut list = interval_at(Instant::now() + period.min(Duration::from_secs(1)), period);
        list.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.publish();
            self.step(&mut list).await?;
            let table = &self.watcher.table;
            self.wanted.drop_if(|id| table.knows(id));
            let news = self.watcher.table.news();
            let facts = &self.watcher.facts;
            if facts.is_closed() || !news.is_empty() && facts.send(news).await.is_err() {
                return Ok(());
            }
        }
    }

    async fn step(&mut self, list: &mut Interval) -> Result<(), CriError> {
        let due = self.wanted.due();
        tokio::select! {
            event = next(&mut self.events) => self.took(event).await?,
            Some(id) = self.watcher.nudges.recv() => self.nudged(id).await?,
            () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                self.ask().await?;
            }
            _ = list.tick() => self.list().await?,
            () = self.watcher.facts.closed() => {}
        }
        if self.client.is_closed() { Err(CriError::Closed) } else { Ok(()) }
    }

    /// containerd 1 has one queue of events, and whoever takes one takes it from kubelet.
    fn has_events(&self) -> bool {
        !(self.version.name == "containerd" && self.version.version.starts_with("1."))
    }

    async fn took(&mut self, event: Event) -> Result<(), CriError> {
        match event {
            Event::Happened(event) => self.happened(*event),
            Event::Lost => {
                self.watcher.errors += 1;
                self.list().await?;
            }
            Event::None => self.events = None,
            Event::Failed { error } => return Err(error),
        }
        Ok(())
    }

    fn happened(&mut self, event: proto::ContainerEventResponse) {
        let (table, now) = (&mut self.watcher.table, Instant::now());
        if event.container_event_type == proto::DELETED {
            table.remove(&event.container_id, now);
            return;
        }
        let id = event.container_id.clone();
        // an event may come without statuses
        if !table.happened(event) {
            self.wanted.add(id, 0, now);
        }
    }

    async fn nudged(&mut self, id: String) -> Result<(), CriError> {
        let lost = self.watcher.lost.load(Ordering::Relaxed);
        let known = self.watcher.table.knows(&id);
        let asked = if self.events.is_some() { AFTER_EVENTS } else { 0 };
        if (known || self.wanted.add(id, asked, Instant::now())) && lost == self.lost {
            return Ok(());
        }
        self.list().await
    }

    /// Asks for one container, or sandbox, that the kernel has shown.
    async fn ask(&mut self) -> Result<(), CriError> {
        let Some(id) = self.wanted.take(Instant::now()) else { return Ok(()) };
        match self.look_up(id).await {
            Ok(()) => Ok(()),
            Err(error) => self.weigh(error),
        }
    }

    async fn look_up(&mut self, id: String) -> Result<(), CriError> {
        let listed = self.client.containers(Some(&id)).await?;
        let Some(item) = listed.into_iter().find(|item| item.id == id) else {
            let status = self.client.sandbox(id).await?;
            status.into_iter().for_each(|status| self.watcher.table.add_sandbox(status));
            return Ok(());
        };
        let of = item.pod_sandbox_id;
        if !self.watcher.table.knows_sandbox(&of)
            && let Some(status) = self.client.sandbox(of.clone()).await?
        {
            self.watcher.table.add_sandbox(status);
        }
        if let Some(status) = self.client.container(id).await? {
            self.watcher.table.add_container(&of, status);
        }
        Ok(())
    }

    /// Lists everything, and asks for what is new.
    async fn list(&mut self) -> Result<(), CriError> {
        self.lost = self.watcher.lost.load(Ordering::Relaxed);
        self.failure = None;
        if self.handlers.is_none() {
            match self.client.handlers().await {
                Ok(handlers) => self.handlers = Some(able(handlers.as_deref())),
                Err(error) => self.weigh(error)?,
            }
        }
        // containers first: the sandbox of each is on the list that is taken later
        let listed = async { Ok((self.client.containers(None).await?, self.client.sandboxes().await?)) };
        let (containers, sandboxes) = match listed.await {
            Ok(listed) => listed,
            Err(error) => return self.weigh(error),
        };
        let table = &mut self.watcher.table;
        let missing = table.list(sandboxes, containers, Instant::now());
        let take = |status| table.add_sandbox(status);
        let mut failures = self
            .client
            .each(missing.sandboxes, |client, id| async move { client.sandbox(id).await }, take)
            .await?;
        let take = |status| table.complete_container(status);
        let of_containers = self.client.each(
            missing.containers,
            |client, id| async move { client.container(id).await },
            take,
        );
        failures.extend(of_containers.await?);
        for failure in failures {
            self.weigh(failure)?;
        }
        Ok(())
    }

    /// Counts a failure that leaves the connection usable; passes others on.
    fn weigh(&mut self, error: CriError) -> Result<(), CriError> {
        if error.is_over() {
            return Err(error);
        }
        self.watcher.errors += 1;
        self.failure.get_or_insert_with(|| error.to_string());
        Ok(())
    }

    fn publish(&self) {
        let Version { name, version } = &self.version;
        let mut said = vec![format!("{name} {version}")];
        said.extend(self.handlers.clone());
        if self.events.is_none() {
            let every = humantime::format_duration(self.watcher.times.list);
            said.push(format!(
                "no events of containers: all are listed every {every}, new ones are asked for"
            ));
        }
        let strangers = self.watcher.table.strangers();
        if strangers > 0 {
            said.push(format!("{strangers} sandboxes are no pods"));
        }
        let state = if let Some(failure) = &self.failure {
            said.insert(0, failure.clone());
            SourceState::Failing
        } else {
            SourceState::Ok
        };
        self.watcher.publish(state, said.join("; "));
    }
}

/// Says which handlers have user namespaces.
fn able(handlers: Option<&[String]>) -> String {
    match handlers {
        None => {
            "it does not say which handlers have user namespaces, so kubelet gives none to pods".to_owned()
        }
        Some([]) => "no handler with user namespaces".to_owned(),
        Some(handlers) => format!("handlers with user namespaces: {}", handlers.join(", ")),
    }
}

/// Something from the stream of events.
enum Event {
    Happened(Box<proto::ContainerEventResponse>),
    /// More came than could be taken.
    Lost,
    /// The runtime sends none.
    None,
    /// The stream has ended.
    Failed {
        error: CriError,
    },
}

/// A subscription; ends when it is dropped.
struct Events {
    events: mpsc::Receiver<Event>,
    reader: AbortHandle,
}

impl Drop for Events {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Events {
    fn subscribe(client: Client) -> Self {
        let (sender, events) = mpsc::channel(EVENTS);
        let reader = tokio::spawn(async move {
            let last = read(&client, &sender).await;
            // nobody listens only when the session is over
            let _ = sender.send(last).await;
        });
        Self { events, reader: reader.abort_handle() }
    }
}

/// Reads the stream to its end, and says how it ended.
async fn read(client: &Client, sender: &mpsc::Sender<Event>) -> Event {
    let mut stream = match client.events().await {
        Ok(stream) => stream,
        Err(status) => return client.ended(status),
    };
    let (mut first, mut lost) = (true, false);
    loop {
        match stream.message().await {
            Ok(Some(event)) => {
                lost |= sender.try_send(Event::Happened(Box::new(event))).is_err();
                lost = lost && sender.try_send(Event::Lost).is_err();
            }
            // CRI-O ends it at once if it is configured to have none
            Ok(None) if first => return Event::None,
            Ok(None) => return Event::Failed { error: CriError::Closed },
            Err(status) => return client.ended(status),
        }
        first = false;
    }
}

impl Client {
    fn ended(&self, status: tonic::Status) -> Event {
        if status.code() == Code::Unimplemented {
            return Event::None;
        }
        Event::Failed { error: self.failed("GetContainerEvents", status) }
    }
}

/// The next event; never, if there are none.
async fn next(events: &mut Option<Events>) -> Event {
    let Some(Events { events, .. }) = events else { return std::future::pending().await };
    events.recv().await.unwrap_or(Event::None)
}
